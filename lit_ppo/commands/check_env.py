"""`python -m lit_ppo check-env ID`: is this environment fit for training, and with which settings?"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from lit_ppo.commands.environment_options import add_environment_options, environment_of, processes_of
from lit_ppo.errors import CheckpointError
from lit_ppo.exit_codes import ENVIRONMENT, fail
from lit_ppo.standard_streams import say

if TYPE_CHECKING:
    from lit_ppo.environment_check import Cost, EnvironmentReport

SUMMARY = "Check an environment: contract, determinism, a second one beside it, speed; and the settings that follow."
_ONLY_REMARKS = (
    "(remarks only: lit_ppo copies what it is given and judges by contract and determinism; other libraries may not)"
)
_BYTES_OF_PARAMETER = 12  # itself, and the optimizer's two moments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("env_id", help="Gymnasium id, or module:EnvId")
    add_environment_options(parser)
    parser.add_argument("--steps", type=int, default=1000, help="random steps (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of episodes and actions (default: 0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there as JSON, too")


def run(options: argparse.Namespace) -> None:
    """Print the report; exit code 3 if the environment is not fit for training, whatever the settings."""
    from lit_ppo.environment_check import check_environment

    environment = environment_of(options.env_id, options)
    report = check_environment(environment, processes_of(options), num_steps=options.steps, seed=options.seed)
    say(*(line for name, text in _lines(report) for line in f"{name:<14}{text}".splitlines()))
    if options.json is not None:
        try:
            options.json.write_text(json.dumps(report.to_json(), indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise CheckpointError(f"--json={options.json}: cannot be written: {error}") from error
    if report.fault is None and report.difference is not None:
        fail(
            f"{options.env_id}: not deterministic: it trains, but a resume or a crash loses its unfinished episodes",
            ENVIRONMENT,
        )
    if not report.is_fit:
        fail(f"{options.env_id}: not fit for training as it is", ENVIRONMENT)


def _lines(report: "EnvironmentReport") -> list[tuple[str, str]]:
    spec = report.spec
    return [
        ("environment", f"{spec.env_id} ({', '.join(f'{name} {version}' for name, version in report.versions.items())})"),
        *((f"obs {leaf.path}".strip(), f"{leaf.kind} {leaf.shape} {leaf.dtype}") for leaf in spec.observation),
        ("action", f"{spec.action.kind} {spec.action.shape} {spec.action.dtype}"),
        ("threshold", "none" if spec.reward_threshold is None else f"{spec.reward_threshold:g}"),
        ("time limit", "none" if spec.max_episode_steps is None else f"{spec.max_episode_steps} steps"),
        ("contract", report.fault or f"kept in {report.steps} random steps, {report.episodes} episodes"),
        *(("", remark) for remark in report.remarks),
        (
            "determinism",
            report.difference or ("not tried" if report.fault else "a fresh process answers the same bits"),
        ),
        ("beside", _beside(report)),
        *([] if report.apart is None else [("", f"with each in a process of its own: {report.apart}")]),
        ("gymnasium", report.gymnasium[0] if report.gymnasium else "no remarks"),
        *(("", remark) for remark in [*report.gymnasium[1:], *([_ONLY_REMARKS] if report.gymnasium else [])]),
        ("reset", _cost(report.reset)),
        ("step", _cost(report.step)),
        ("start", f"{report.start_s:.2f} s until a fresh process has made the environment"),
        *([] if report.parameters is None else [("policy", _size(report.parameters))]),
        *(("setting", f"--{option}: {reason}") for option, reason in report.settings.items()),
    ]


def _beside(report: "EnvironmentReport") -> str:
    """True if one process can hold two of the environments."""
    if report.fault is not None or report.difference is not None:
        return "not tried"
    if report.beside is None:
        return "a second one beside it changes nothing" if report.apart is None else "not with a second one"
    cure = "; each in a process of its own is undisturbed" if report.apart is None else ""
    return f"not with a second one in the same process: {report.beside}{cure}"


def _size(parameters: int) -> str:
    megabytes = parameters * _BYTES_OF_PARAMETER / 1e6
    return f"{parameters:,} parameters with the default networks, and {megabytes:,.0f} MB in each checkpoint"


def _cost(cost: "Cost | None") -> str:
    return "not measured" if cost is None else f"{cost.median_s * 1e3:.3f} ms; 95 of 100 below {cost.high_s * 1e3:.3f} ms"
