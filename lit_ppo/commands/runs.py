"""`python -m lit_ppo runs`: the runs that were made, as a table or as JSON."""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_ppo.errors import one_line
from lit_ppo.exit_codes import CHECKPOINT, fail
from lit_ppo.run_directory import RUNS_DIR, all_runs
from lit_ppo.run_status import Status, read_status
from lit_ppo.standard_streams import say

SUMMARY = "List runs: environment, seed, steps, best return, when it was solved, state and date."
_RIGHT = ("seed", "env steps", "best return", "solved at")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", nargs="*", type=Path, help="directories of runs (default: all runs in --runs_dir)")
    parser.add_argument("--runs_dir", type=Path, default=Path(RUNS_DIR), help=f"directory of all runs (default: {RUNS_DIR})")
    parser.add_argument("--json", action="store_true", help="print a JSON list instead of a table")


def run(options: argparse.Namespace) -> None:
    """Print the runs, the oldest first; a run whose file is damaged is named on standard error."""
    found: list[tuple[Path, Status]] = []
    damaged = 0
    for directory in options.directory or all_runs(options.runs_dir):
        try:
            status = read_status(directory)
        except (ValueError, OSError) as error:
            damaged += 1
            say(f"lit_ppo: {error}", file=sys.stderr)
            continue
        if status is not None:
            found.append((directory, status))
        elif options.directory:
            damaged += 1
            say(f"lit_ppo: {directory}: expected the directory of a run, with run.json", file=sys.stderr)
    found.sort(key=lambda pair: pair[1].started)
    if damaged and not found:
        fail("no run could be read", CHECKPOINT)
    if options.json:
        listed = [_as_json(directory, status, options.runs_dir) for directory, status in found]
        say(*json.dumps(listed, indent=2).splitlines())
    elif found:
        say(*_table([_row(directory, status, options.runs_dir) for directory, status in found]))
    else:
        say(f"{options.runs_dir}: no runs yet; make one with `python -m lit_ppo fit`")


def _name(directory: Path, runs_dir: Path) -> str:
    """What can be typed as `--ckpt_path`: the run's name in the directory of all runs, or its path."""
    return str(directory.relative_to(runs_dir)) if directory.is_relative_to(runs_dir) else str(directory)


def state_of(status: Status) -> str:
    """The state of a run; `killed` if its process ended without saying so."""
    if status.state != "running":
        return status.state
    try:
        os.kill(status.pid, 0)
    except ProcessLookupError:
        return "killed"
    except PermissionError:  # another user's process
        pass
    return "running"


def _as_json(directory: Path, status: Status, runs_dir: Path) -> dict[str, Any]:
    return {"run": _name(directory, runs_dir), "path": str(directory), **vars(status), "state": state_of(status)}


def _row(directory: Path, status: Status, runs_dir: Path) -> dict[str, str]:
    return {
        "run": one_line(_name(directory, runs_dir)),
        "environment": one_line(status.env_id),
        "seed": str(status.seed),
        "env steps": f"{status.env_steps:,}",
        "best return": "-" if status.best_return is None else f"{status.best_return:.5g}",
        "solved at": "-" if status.solved_at is None else f"{status.solved_at:,}",
        "state": state_of(status),
        "started": time.strftime("%Y-%m-%d %H:%M", time.localtime(status.started)),
    }


def _table(rows: Sequence[dict[str, str]]) -> list[str]:
    rows = [{name: name for name in rows[0]}, *rows]
    widths = {name: max(len(row[name]) for row in rows) for name in rows[0]}
    lines = []
    for row in rows:
        cells = (f"{text:>{widths[name]}}" if name in _RIGHT else f"{text:<{widths[name]}}" for name, text in row.items())
        lines.append("  ".join(cells).rstrip())
    return lines
