"""Env steps per second by kind of observation: a Dict beside one array of as many bytes, images beside the same in process.

The environments cost next to nothing (`toy_envs`), so that a ratio shows what rows cost on their way to the trainer.
"""

import argparse
import sys
from typing import Final

import numpy as np

from benchmarks.report import Row, show
from benchmarks.stepping import Competitor, bridge, in_process_sync, take_turns

_UNIT: Final = "env steps/s"
_ACTION_ROWS: Final = 1024


def dict_beside_box(num_envs: int, rounds: int, seconds: float) -> list[Row]:
    """Four leaves of four numbers beside one of sixteen, both through the bridge."""
    case, env_id = f"rows, 64 bytes N={num_envs}", "benchmarks.toy_envs:Constant-v0"
    box, parts = (bridge(env_id, num_envs, "sync", 1, has_parts=has_parts) for has_parts in (False, True))
    box.name, parts.name = "bridge, Box", "bridge, Dict of 4"
    target = Row(case, parts.name, _UNIT, against=box.name, target=">= 0.5")
    return _compare([box, parts], [Row(case, box.name, _UNIT), target], num_envs, rounds, seconds)


def image_beside_in_process(channels: int, num_envs: int, rounds: int, seconds: float) -> list[Row]:
    """84 x 84 pixels through the bridge beside Gymnasium's vector env in the same process."""
    case, env_id = f"rows, 84 x 84 x {channels} N={num_envs}", "benchmarks.toy_envs:Screen-v0"
    in_process = in_process_sync(env_id, num_envs, channels=channels)
    through = bridge(env_id, num_envs, "sync", 1, channels=channels)
    target = Row(case, through.name, _UNIT, against=in_process.name, target=">= 0.8")
    return _compare([in_process, through], [Row(case, in_process.name, _UNIT), target], num_envs, rounds, seconds)


def _compare(made: list[Competitor], rows: list[Row], num_envs: int, rounds: int, seconds: float) -> list[Row]:
    print(rows[0].case, file=sys.stderr)
    actions = np.zeros((_ACTION_ROWS, num_envs), np.int64)
    take_turns(made, {row.who: row for row in rows}, actions, rounds, seconds)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, help="turns of each competitor")
    options = parser.parse_args()
    rounds, seconds = options.rounds or (3 if options.quick else 21), 0.1 if options.quick else 0.25
    rows: list[Row] = []
    for num_envs in (8, 64):
        rows += dict_beside_box(num_envs, rounds, seconds)
    for channels in (1, 4):
        for num_envs in (8, 16):
            rows += image_beside_in_process(channels, num_envs, rounds, seconds)
    show(rows)


if __name__ == "__main__":
    main()
