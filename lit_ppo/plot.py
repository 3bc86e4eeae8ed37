"""Training curves as pictures."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lit_ppo.errors import one_line
from lit_ppo.run_curves import Configuration, Points, RunCurve, configurations
from lit_ppo.run_statistics import bootstrap_band, thinned

_LONGEST_BESIDE_ANOTHER: Final = 36  # characters of a label, for a legend of two columns


def plot(curves: Sequence[RunCurve], outputs: Sequence[Path]) -> None:
    """Draw runs, each environment on axes of its own; seeds of one configuration as their mean, with a band.

    The band is the 95 % bootstrap interval of the mean. A run that ended earlier than another of its configuration, such as one
    that was solved, keeps its last return in the mean.

    Args:
        curves: Of the runs.
        outputs: The same picture in different formats, which their suffixes select.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        OSError: A picture cannot be written.
        ValueError: There is no such format.
    """
    from matplotlib.figure import Figure  # not pyplot, which looks for a display

    environments = dict.fromkeys(curve.env_id for curve in curves)
    columns = min(2, len(environments))
    rows = -(-len(environments) // columns)
    with _drawing("lit_ppo"):
        figure = Figure(figsize=(8 if columns == 1 else 12, 4.8 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).flatten()
        for env_id, axes in zip(environments, panels, strict=False):
            _draw_environment(axes, env_id, [curve for curve in curves if curve.env_id == env_id])
        for axes in panels[len(environments) :]:
            axes.set_visible(False)
        for output in outputs:
            output.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(output, dpi=120, metadata={"Date": None} if output.suffix == ".svg" else None)


@contextmanager
def _drawing(salt: str) -> Iterator[None]:
    """Pictures in which the ids are not drawn at random, and text is as it is written: `$` begins no formula."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": salt, "text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        yield


def _text(text: str) -> str:
    """Text of others for a picture; matplotlib leaves labels out that begin with an underscore."""
    return one_line(f" {text}" if text.startswith("_") else text)


def _draw_environment(axes: Any, env_id: str | None, curves: Sequence[RunCurve]) -> None:
    for number, configuration in enumerate(configurations(curves)):
        _draw_configuration(axes, configuration, f"C{number % 10}")
    thresholds = sorted({curve.threshold for curve in curves if curve.threshold is not None and np.isfinite(curve.threshold)})
    for threshold in thresholds:
        axes.axhline(threshold, color="black", linestyle="--", linewidth=1, label=f"solved at {threshold:g}")
    if any(curve.training.env_steps for curve in curves):
        axes.plot([], [], color="grey", linestyle=":", linewidth=1.5, label="dotted: episodes of training")
    axes.set_title(_text(env_id or "training curves"))
    axes.set_xlabel("env steps")
    axes.set_ylabel("return")
    axes.xaxis.set_major_formatter(_in_thousands)
    axes.grid(alpha=0.3)
    labels = axes.get_legend_handles_labels()[1]
    columns = 2 if max(map(len, labels), default=0) <= _LONGEST_BESIDE_ANOTHER else 1
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.15), frameon=False, fontsize="small", ncols=columns
    )  # below: it hides no line


def _in_thousands(value: float, position: int) -> str:
    """Env steps as `20k` or `1.5M`."""
    size, unit = (1e6, "M") if abs(value) >= 1e6 else (1e3, "k") if abs(value) >= 1e3 else (1.0, "")
    return f"{value / size:g}{unit}"


def _draw_configuration(axes: Any, configuration: Configuration, color: str) -> None:
    runs = configuration.runs
    label = _text(configuration.label) + (f" ({len(runs)} seeds)" if len(runs) > 1 else "")
    evaluations = [run.evaluation for run in runs if run.evaluation.env_steps]
    if evaluations:
        grid, values = _on_one_grid(evaluations)
        axes.plot(grid, values.mean(axis=0), color=color, linewidth=1.8, label=label)
        if len(evaluations) > 1:
            axes.fill_between(grid, *bootstrap_band(values), color=color, alpha=0.2, linewidth=0)
    trainings = [_thinned(run.training) for run in runs if run.training.env_steps]
    if trainings:
        grid, values = _on_one_grid(trainings)
        name = None if evaluations else label
        axes.plot(grid, values.mean(axis=0), color=color, linewidth=1.2, linestyle=":", alpha=0.8, label=name)


def _thinned(points: Points) -> Points:
    steps, returns = thinned(points.env_steps, points.returns, points.counts)
    return Points(steps, returns, [1] * len(steps))


def _on_one_grid(curves: Sequence[Points]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Env steps of all curves, shape (P,), and the returns of each there, shape (S, P), interpolated between its own."""
    grid = np.unique(np.concatenate([curve.env_steps for curve in curves]))
    return grid, np.stack([np.interp(grid, curve.env_steps, curve.returns) for curve in curves])


class Lines(NamedTuple):
    """Curves of several runs that have one colour.

    Attributes:
        name: In the legend.
        curves: Env steps and returns of each run.
    """

    name: str
    curves: Sequence[tuple[Sequence[int], Sequence[float]]]


def plot_runs(title: str, lines: Sequence[Lines], level: tuple[str, float] | None, output: Path) -> None:
    """Draw runs with different seeds, each as a line of its own.

    Args:
        title: Of the picture.
        lines: What to compare.
        level: Name and return of a horizontal line; None for none.
        output: The picture, as SVG; the same runs give the same bytes.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    with _drawing(output.stem):
        figure = Figure(figsize=(8, 4), layout="constrained")
        axes = figure.subplots()
        for number, group in enumerate(lines):
            for index, (env_steps, returns) in enumerate(group.curves):
                label = f"{group.name}, {len(group.curves)} seeds" if index == 0 else None
                axes.plot(env_steps, returns, color=f"C{number}", alpha=0.7, linewidth=1.2, label=label)
        if level is not None:
            axes.axhline(level[1], color="black", linestyle="--", linewidth=1, label=f"{level[0]} {level[1]:g}")
        axes.set_xlabel("env steps")
        axes.set_ylabel("return")
        axes.set_title(title)
        axes.grid(alpha=0.3)
        axes.legend()
        output.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(output, format="svg", metadata={"Date": None})
