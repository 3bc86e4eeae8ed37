"""`make env-list`: every environment that has no result yet, one after the other, and the table of all.

python -m benchmarks.env_list [FAMILY ...] [--only ID] [--again]
"""

import argparse
import importlib.util
import json
import os
import sys
from typing import Any, Final

from benchmarks.env_list.rows import ROWS, Row
from benchmarks.report import ROOT, machine

RESULTS: Final = ROOT / "benchmarks" / "results" / "env_list"
TABLE: Final = ROOT / "docs" / "environment_list.md"
_HEAD: Final = """# List of environments

Made by `make env-list`. Each environment is named by its id, plus what the third column says, and has to pass three trials: two
updates; the same with the environment process killed (SIGKILL) between them; the same stopped and resumed between them. All
three must come to the same parameters, optimizer, episodes and curve, bit for bit. Each run has 2 environments, rollouts of 16
steps, and episodes that are cut after 24 steps. The cost of a step is that of one environment through the bridge, with the
contract.

BipedalWalker keeps something of its physics engine from one episode to the next: an episode does not follow from its seed and
its actions, unless the environment is made anew for each (`docs/environments.md`). A step that differs is named by
`lit_ppo check-env BipedalWalker-v3 --steps 3000 --max_episode_steps 24`, and the option with it.

"""
_COLUMNS: Final = ("family", "environment", "besides the id", "observation", "action", "step, ms", "result")


def main() -> int:
    """Run what is missing; 1 if an environment fails."""
    families = list(dict.fromkeys(row.family for row in ROWS))
    parser = argparse.ArgumentParser(prog="python -m benchmarks.env_list", description=__doc__)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=f"of {', '.join(families)}; default: all")
    parser.add_argument("--only", metavar="ID", help="only rows whose name contains this")
    parser.add_argument("--again", action="store_true", help="also those that have a result")
    options = parser.parse_args()
    if unknown := set(options.families) - set(families):
        parser.error(f"unknown family {', '.join(sorted(unknown))}: expected some of {', '.join(families)}")
    chosen = [row for row in ROWS if row.family in (options.families or families) and (options.only or "") in row.name]
    failed = False
    for row in chosen:
        result = None if options.again else result_of(row)
        if result is None:
            result = _tried(row)
            print(f"{row.family}: {row.name}: {result['result']} ({result['wall_s']} s)", flush=True)
        failed |= result["result"] != "ok"
    TABLE.write_text(table())
    return int(failed)


def result_of(row: Row) -> dict[str, Any] | None:
    """What was found out about a row before; None if nothing was."""
    path = RESULTS / f"{row.name}.json"
    result: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
    return result


def _tried(row: Row) -> dict[str, Any]:
    """Try a row and keep the result, unless its package is missing."""
    if row.package is not None and importlib.util.find_spec(row.package[0]) is None:
        reason = f"{row.package[0]} is not installed; run pip install -c constraints.txt -e '.[{row.package[1]}]'"
        return {"result": reason, "wall_s": 0.0}
    from benchmarks.env_list.trial import trial  # here, so that --help does not pay for it

    result = trial(row)
    RESULTS.mkdir(parents=True, exist_ok=True)
    unfinished = RESULTS / f"{row.name}.tmp"
    unfinished.write_text(json.dumps({**result, "machine": machine()}, indent=1) + "\n")
    os.replace(unfinished, RESULTS / f"{row.name}.json")
    return result


def table() -> str:
    """All rows as Markdown."""
    lines = [
        "| family | environment | besides the id | observation | action | step, ms | result |",
        "|" + " --- |" * 5 + " --: | --- |",
    ]
    num_ok = 0
    for row in ROWS:
        result = result_of(row) or {"result": "not tried"}
        num_ok += result["result"] == "ok"
        besides = ", ".join(f"{key}={json.dumps(value)}" for key, value in row.data.items()).replace('"', "")
        observation = "<br>".join(result.get("observation", []))
        cells = (row.family, f"`{row.env_id}`", besides, observation, result.get("action", ""), result.get("step_ms", ""))
        lines.append(f"| {' | '.join(map(str, cells))} | {result['result'].replace('|', '/')} |")
    return f"{_HEAD}{num_ok} of {len(ROWS)} pass.\n\n" + "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
