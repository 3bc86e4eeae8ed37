"""Training curves as pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lit_ppo.curve import TrainLog


def plot(curves: Sequence[tuple[str, TrainLog]], output: Path) -> None:
    """Draw several curves on one pair of axes.

    Args:
        curves: Name and curve of each run.
        output: The picture; its suffix selects the format.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure  # not pyplot, which looks for a display

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for number, (name, curve) in enumerate(curves):
        for line in curve.series:
            label = f"{name}: {line.name}" if len(curves) > 1 or len(curve.series) > 1 else line.name
            # a single run keeps the colours of its file; several runs get one colour each
            axes.plot(curve.steps, line.values, marker=".", label=label, color=line.color if len(curves) == 1 else f"C{number}")
    axes.set_xlabel("env steps")
    axes.set_ylabel("return")
    axes.set_title(curves[0][1].title if len({curve.title for _, curve in curves}) == 1 else "training curves")
    axes.grid(alpha=0.3)
    axes.legend()
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=120)


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
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": output.stem}):  # else the ids in the file are drawn at random
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
