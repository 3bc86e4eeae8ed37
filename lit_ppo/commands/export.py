"""`python -m lit_ppo export`: a checkpoint's policy as a file that needs neither lit_ppo nor its environment."""

import argparse
from pathlib import Path

from lit_ppo.commands.checkpoint_options import CKPT_PATH_HELP, add_runs_dir_option, add_trust_option, typed_checkpoint
from lit_ppo.commands.environment_options import add_environment_options, typed_settings
from lit_ppo.exit_codes import USAGE, fail
from lit_ppo.standard_streams import say

SUMMARY = "Export a checkpoint's policy as ONNX or for torch.export, checked on states that it visits."
_OF_ONNX = ("onnx", "onnxruntime", "onnxscript")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ckpt_path", help=CKPT_PATH_HELP)
    add_runs_dir_option(parser)
    add_trust_option(parser)
    parser.add_argument("--format", choices=("torch", "onnx"), required=True, help="torch for a .pt2 of torch.export")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="file to write")
    parser.add_argument("--seed", type=int, default=0, help="of the episodes on whose states it is checked (default: 0)")
    add_environment_options(parser)


def run(options: argparse.Namespace) -> None:
    """Export, check and write; exit code 2 if the policy cannot be exported or a package is missing."""
    from lit_ppo.compat_torch import defer_dynamo

    defer_dynamo()
    from lit_ppo.export import NUM_CHECKED_STATES, TOLERANCE, export_saved
    from lit_ppo.saved_policy import load

    settings = typed_settings(options)
    try:
        saved = load(typed_checkpoint(options), settings, options.trust_checkpoint == "true")
        export_saved(saved, options.format, options.out, options.seed, settings)
    except ModuleNotFoundError as error:
        if error.name not in _OF_ONNX:
            raise
        fail("--format=onnx needs onnx, onnxruntime and onnxscript: pip install -e '.[onnx]' in lit_ppo's directory", USAGE)
    say(f"{options.out}: the same as the policy on {NUM_CHECKED_STATES:,} visited states, to {TOLERANCE:g}")
