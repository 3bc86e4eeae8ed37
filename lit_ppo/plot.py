"""Training curves as a picture."""

from collections.abc import Sequence
from pathlib import Path

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
