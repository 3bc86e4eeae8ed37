"""`python -m lit_ppo presets`: the settings for known environments, where they come from, and what they reach."""

import argparse
import dataclasses
import json
from pathlib import Path

from lit_ppo.errors import CheckpointError
from lit_ppo.standard_streams import say

SUMMARY = "List the presets: settings for known environments, where they come from, and what they reach."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="write them there as JSON, too, with all their settings")


def run(options: argparse.Namespace) -> None:
    """Print the list."""
    from lit_ppo.presets import all_presets  # here, so that --help does not pay for it

    presets = all_presets()
    rows = [("preset", "environment", "env steps", "score", "source")]
    rows += [
        (preset.name, ", ".join(preset.env_ids), f"{preset.total_env_steps:,}", preset.score or "not measured", preset.source)
        for preset in presets
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if options.json is not None:
        text = json.dumps([dataclasses.asdict(preset) for preset in presets], indent=2)
        try:
            options.json.write_text(f"{text}\n", encoding="utf-8")
        except OSError as error:
            raise CheckpointError(f"--json={options.json}: cannot be written: {error}") from error
