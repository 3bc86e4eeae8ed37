"""`python -m lit_ppo play`: greedy episodes of a checkpoint's policy in a window, or as videos."""

import argparse
from pathlib import Path

from lit_ppo.commands.checkpoint_options import CKPT_PATH_HELP, add_runs_dir_option, add_trust_option, typed_checkpoint
from lit_ppo.commands.environment_options import add_environment_options, typed_settings
from lit_ppo.errors import ConfigError
from lit_ppo.standard_streams import say

SUMMARY = "Watch a checkpoint's policy play, in a window or as videos."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ckpt_path", help=CKPT_PATH_HELP)
    add_runs_dir_option(parser)
    add_trust_option(parser)
    parser.add_argument("--num_episodes", type=int, default=3, help="greedy episodes (default: 3)")
    parser.add_argument("--seed", type=int, default=0, help="of the episodes (default: 0)")
    parser.add_argument("--record", type=Path, metavar="DIR", help="write a video of each episode (mp4) there; no window")
    add_environment_options(parser)


def run(options: argparse.Namespace) -> None:
    """Play, and print the return of each episode and where its video is."""
    if options.seed < 0:
        raise ConfigError(f"--seed={options.seed}: expected at least 0")
    from lit_ppo.compat_torch import defer_dynamo

    defer_dynamo()
    from lit_ppo.play import play
    from lit_ppo.saved_policy import load

    settings = typed_settings(options)
    saved = load(typed_checkpoint(options), settings, options.trust_checkpoint == "true")
    results, videos = play(saved, options.num_episodes, options.seed, options.record, settings)
    for number, (total, length) in enumerate(zip(results.returns, results.lengths, strict=True), 1):
        say(f"episode {number}: return {total:g}, {length} steps")
    for video in videos:
        say(str(video))
