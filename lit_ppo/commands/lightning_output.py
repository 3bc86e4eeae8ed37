"""What Lightning says in a training command."""

import logging
import warnings
from typing import Final

# Lightning's advice that does not apply here: the data loader is an environment, the metrics go to the loggers directly.
_IRRELEVANT_WARNINGS: Final = (
    ".*does not have many workers.*",
    ".*The number of training batches.*",
    ".*is smaller than the logging interval.*",
    ".*`isinstance.treespec, LeafSpec.` is deprecated.*",
    ".*GPU available but not used.*",
    ".*Experiment logs directory.*",
    ".*total length of `list` across ranks is zero.*",
)


def quiet_lightning() -> None:
    """Silence Lightning's remarks about hardware, products and data loaders; its real warnings stay, and what was asked for."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    for name in ("callbacks", "profilers"):  # the model summary, a stop for a reason, the report of a profiler
        logging.getLogger(f"lightning.pytorch.{name}").setLevel(logging.INFO)
    for message in _IRRELEVANT_WARNINGS:
        warnings.filterwarnings("ignore", message)
