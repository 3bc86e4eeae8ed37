"""`docs/results.md` and its plots, from the rows and the JSON of their runs."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.learning.results import LIT_PPO, SB3, RowResults
from benchmarks.learning.rows import Kind, Row
from lit_ppo.errors import CheckpointError
from lit_ppo.plot import Lines, plot_runs
from lit_ppo.run_statistics import bootstrap_interval, interquartile_mean

_NAMES: Final = {LIT_PPO: "lit_ppo", SB3: "SB3 2.9"}
_HEAD: Final = """# Results

Made by `python -m benchmarks.learning.reproduce --report` from the rows in `configs/rows/` and the runs in `results/`.
`python -m benchmarks.learning.reproduce ROW` runs a row again. A result whose row has other settings now is refused.

- **Ours** is the interquartile mean over the seeds, with the 95 % interval of a percentile bootstrap. Of fewer than four seeds
  the interquartile mean is the mean; one seed has no interval.
- **Training** is the mean return of the last 100 training episodes. **Greedy** is that of fresh episodes with the most probable
  actions of the last policy. They are never mixed: a row compares the kind that its source reports. **Best** is greedy too, of
  the checkpoint that the run's own evaluation chose.
- **SB3** is Stable-Baselines3 2.9 or sb3-contrib with the same settings and env steps, measured alike (`make reproduce-sb3`).
- A row **passes** if the upper end of our interval reaches the published mean, or the lower end of SB3's interval. Rows that
  either succeed or fail compare the share of solved runs with SB3's. Rows without a published score have a target that was
  written down before they were run; the best checkpoint of each run has to reach it.
- Seeds are 101, 102, ...; settings of our own were tuned on 0 to 9 alone. Seconds are those of training and evaluation
  together, on the machine named in the JSON, which did other work as well.

"""


@dataclass(frozen=True)
class Score:
    """Returns of several runs.

    Attributes:
        mean: Interquartile mean.
        low, high: 95 % interval.
        values: One for each seed.
    """

    mean: float
    low: float
    high: float
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> "Score | None":
        """None without values."""
        return cls(interquartile_mean(values), *bootstrap_interval(values), tuple(values)) if values else None

    def __str__(self) -> str:
        mean = _number(self.mean)
        return mean if len(self.values) == 1 else f"{mean} [{_number(self.low)}, {_number(self.high)}]"


@dataclass(frozen=True)
class Verdict:
    """Whether a row passes.

    Attributes:
        passes: None if there is nothing to compare with yet.
        reason: In a few words.
    """

    passes: bool | None
    reason: str


def score(runs: Sequence[dict[str, Any]], kind: Kind | str) -> Score | None:
    """The score of runs.

    Args:
        runs: As the results hold them.
        kind: `training`, `greedy` or `best`.
    """
    key = {"training": "final_training", "greedy": "final_greedy", "best": "best_greedy"}[kind]
    return Score.of([run[key]["mean"] for run in runs if run.get(key) is not None])


def verdict(row: Row, ours: Sequence[dict[str, Any]], sb3: Sequence[dict[str, Any]]) -> Verdict:
    """Whether a row passes, by the rule in the head of the report.

    Args:
        row: The row.
        ours, sb3: Runs, as the results hold them.
    """
    if row.target is not None:
        return _by_target(row, ours)
    found, theirs = score(ours, row.returns), score(sb3, row.returns)
    if found is None:
        return Verdict(None, "not run")
    if row.solved_at is not None:
        return _by_share(row.solved_at, found, theirs)
    if row.published is not None and found.high >= row.published.mean:
        return Verdict(True, "above" if found.low > row.published.mean else "within")
    if theirs is not None and found.high >= theirs.low:
        return Verdict(True, "above SB3" if found.low > theirs.high else "within SB3's")
    if theirs is None and row.published is None:
        return Verdict(None, "SB3 not run")
    return Verdict(False, "below")


def _by_target(row: Row, ours: Sequence[dict[str, Any]]) -> Verdict:
    means = [run["best_greedy"]["mean"] for run in ours]
    if not means:
        return Verdict(None, "not run")
    num_met = sum(map(row.is_met, means))
    return Verdict(num_met >= row.target_share * len(means), f"{num_met} of {len(means)} reach {row.target}")


def _by_share(solved_at: float, ours: Score, theirs: Score | None) -> Verdict:
    num_solved = sum(value >= solved_at for value in ours.values)
    text = f"{num_solved} of {len(ours.values)} solved (>= {solved_at:g})"
    if theirs is None:
        return Verdict(None, f"{text}, SB3 not run")
    num_theirs = sum(value >= solved_at for value in theirs.values)
    # as products, since shares are not exact
    passes = num_solved * len(theirs.values) >= num_theirs * len(ours.values)
    return Verdict(passes, f"{text}, SB3 {num_theirs} of {len(theirs.values)}")


def report_text(rows: Sequence[Row], results_dir: Path, plots: str = "results") -> str:
    """The report as Markdown.

    Args:
        rows: All rows.
        results_dir: Where their results are.
        plots: Directory of the plots, as the report names it.

    Raises:
        ConfigError: Results come from other settings than those of their row.
    """
    found = [RowResults(row, results_dir) for row in rows]
    made = [results for results in found if results.by(LIT_PPO)]
    verdicts = {results.row.name: verdict(results.row, results.by(LIT_PPO), results.by(SB3)) for results in made}
    lines: list[str] = []
    for title, has_target in {"Published scores": False, "Targets of our own": True}.items():
        of_kind = [results for results in made if (results.row.target is not None) == has_target]
        lines += [f"## {title}", "", _count([verdicts[results.row.name] for results in of_kind]), ""]
        lines += [*_scores(of_kind, verdicts), ""] if of_kind else []
    lines += ["## All returns", "", *_returns(made), ""]
    below = [results.row for results in made if verdicts[results.row.name].passes is False]
    lines += ["## Below", "", *([f"- `{row.name}`: {row.note or 'no reason is known yet'}" for row in below] or ["None."]), ""]
    absent = [results.row for results in found if results not in made]
    names = [f"- `{row.name}`: {row.source}, {row.env_id.rpartition(':')[2]}, {row.env_steps:,} env steps" for row in absent]
    lines += ["## Not run", "", *(names or ["None."]), "", "## Curves", ""]
    lines += [line for results in made if _has_curves(results) for line in _section(results, plots)] or ["None."]
    return _HEAD + "\n".join(lines).rstrip() + "\n"


def _count(verdicts: Sequence[Verdict]) -> str:
    num_passed, num_below = (sum(judged.passes is wanted for judged in verdicts) for wanted in (True, False))
    text = f"{num_passed} of {len(verdicts)} rows that were run pass, {num_below} are below"
    num_open = len(verdicts) - num_passed - num_below
    return f"{text}, {num_open} have nothing to be compared with yet." if num_open else f"{text}."


def _scores(made: Sequence[RowResults], verdicts: dict[str, Verdict]) -> list[str]:
    lines = [
        "| row | environment | env steps | returns | seeds | ours | published | SB3 2.9 | result | s, ours / SB3 |",
        "| --- | --- | --: | --- | --: | --- | --- | --- | --- | --: |",
    ]
    for results in made:
        row, ours, sb3 = results.row, results.by(LIT_PPO), results.by(SB3)
        kind = "best" if row.target is not None else row.returns
        judged = verdicts[row.name]
        mark = {True: "**passes**", False: "**below**", None: "open"}[judged.passes]
        published = "-" if row.published is None else _published(row)
        cells = [
            f"`{row.name}`",
            row.env_id.rpartition(":")[2],
            f"{row.env_steps:,}",
            kind,
            str(len(ours)) if len(ours) >= row.seeds else f"{len(ours)} of {row.seeds}",
            str(score(ours, kind) or "-"),
            published,
            str(score(sb3, kind) or "-"),
            f"{mark}: {judged.reason}",
            f"{_seconds(ours)} / {_seconds(sb3)}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _published(row: Row) -> str:
    """Score, runs, and the id if it was another one."""
    published = row.published
    assert published is not None
    std = "" if published.std is None else f" ± {_number(published.std)}"
    remarks = [f"{published.seeds} run" + ("s" if published.seeds > 1 else "")]
    if published.env_id not in (None, row.env_id):
        remarks.append(f"{published.env_id}")
    if published.env_steps != row.env_steps:
        remarks.append(f"{published.env_steps:,} env steps")
    text = f"{_number(published.mean)}{std} ({', '.join(remarks)})"
    return text if row.page is None else f"[{text}]({row.page})"


def _returns(made: Sequence[RowResults]) -> list[str]:
    lines = ["| row | whose | training | greedy | best | single runs |", "| --- | --- | --- | --- | --- | --- |"]
    for results in made:
        kind = "best" if results.row.target is not None else results.row.returns
        for who, name in _NAMES.items():
            if runs := results.by(who):
                scores = [str(score(runs, other) or "-") for other in ("training", "greedy", "best")]
                single = score(runs, kind)
                values = " ".join(_number(value) for value in single.values) if single else "-"
                lines.append(f"| `{results.row.name}` | {name} | {' | '.join(scores)} | {kind}: {values} |")
    return lines


def _section(results: RowResults, plots: str) -> list[str]:
    row = results.row
    lines = [f"### {row.name}", "", f"{row.source}. {row.note}".strip(), ""]
    return [*lines, f"![{row.name}]({plots}/{row.name}.svg)", ""]


def _has_curves(results: RowResults) -> bool:
    return any(run.get(results.row.returns, {}).get("env_steps") for run in results.by(LIT_PPO))


def _seconds(runs: Sequence[dict[str, Any]]) -> str:
    return f"{statistics.median(run['wall_s'] for run in runs):,.0f}" if runs else "-"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def write_report(rows: Sequence[Row], results_dir: Path, docs_dir: Path) -> list[Path]:
    """Write `results.md` and `results/ROW.svg`.

    Args:
        rows: All rows.
        results_dir: Where their results are.
        docs_dir: Where the report goes.

    Returns:
        What was written.

    Raises:
        ConfigError: Results come from other settings than those of their row.
        CheckpointError: A file cannot be written.
        ModuleNotFoundError: matplotlib is not installed.
    """
    text, written = report_text(rows, results_dir), []
    try:
        for row in rows:
            results = RowResults(row, results_dir)
            if _has_curves(results):
                written.append(docs_dir / "results" / f"{row.name}.svg")
                plot_runs(_title(row), _lines(results), _level(row), written[-1])
        docs_dir.mkdir(parents=True, exist_ok=True)
        written.append(docs_dir / "results.md")
        written[-1].write_text(text, encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{error.filename}: cannot be written: {error.strerror} (errno {error.errno})") from error
    return written


def _title(row: Row) -> str:
    return f"{row.env_id.rpartition(':')[2]}: {row.source}, {row.returns} return"


def _lines(results: RowResults) -> list[Lines]:
    kind = results.row.returns
    return [
        Lines(name, [(run[kind]["env_steps"], run[kind]["returns"]) for run in results.by(who) if run.get(kind)])
        for who, name in _NAMES.items()
        if results.by(who)
    ]


def _level(row: Row) -> tuple[str, float] | None:
    return None if row.published is None else ("published", row.published.mean)
