"""`python -m lit_ppo rollout export | check`: transitions as TorchLean's JSON, and which of them keep the contract."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_ppo.bridge.settings import LARGEST_COUNT, BridgeSettings, EnvironmentSettings
from lit_ppo.commands.checkpoint_options import add_runs_dir_option, add_trust_option, typed_checkpoint
from lit_ppo.commands.environment_options import (
    add_environment_options,
    environment_of,
    processes_of,
    typed_settings,
)
from lit_ppo.errors import CheckpointError, ConfigError
from lit_ppo.exit_codes import ENVIRONMENT, fail
from lit_ppo.standard_streams import say

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lit_ppo.spaces import EnvSpec, Leaves
    from lit_ppo.transitions import Choose

SUMMARY = "Export transitions as TorchLean's JSON, or check such a file against the contract."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    export = actions.add_parser("export", help="play, and write every transition", allow_abbrev=False)
    who = export.add_mutually_exclusive_group(required=True)
    who.add_argument("--env_id", help="Gymnasium id, or module:EnvId; its actions are random")
    who.add_argument(
        "--ckpt_path", help="checkpoint (last, best, a run or a path), whose greedy policy plays in its environment"
    )
    add_runs_dir_option(export)
    add_trust_option(export)
    add_environment_options(export)
    export.add_argument("--num_envs", type=int, default=1, help="environments (default: 1)")
    export.add_argument("--steps", type=int, default=256, help="steps of each environment (default: 256)")
    export.add_argument("--seed", type=int, default=0, help="of episodes and random actions (default: 0)")
    export.add_argument("--out", type=Path, required=True, help="file to write")
    export.set_defaults(act=_export)
    check = actions.add_parser("check", help="report which rules of the contract a file breaks", allow_abbrev=False)
    check.add_argument("path", type=Path, help="file of transitions")
    check.add_argument("--env_id", help="environment whose spaces count; default: those that the file names")
    add_environment_options(check)
    check.add_argument("--observation_range", type=float, nargs=2, metavar=("LOW", "HIGH"), help="as data.contract's")
    check.add_argument("--reward_range", type=float, nargs=2, metavar=("LOW", "HIGH"), help="as data.contract's")
    check.add_argument("--exclusive_flags", action="store_true", help="refuse a step both terminated and truncated")
    check.add_argument("--any_observation", action="store_true", help="accept observations outside their declared space")
    check.add_argument("--show", type=int, default=12, help="how many violations to name (default: 12)")
    check.add_argument("--json", type=Path, metavar="FILE", help="write the report there as JSON, too")
    check.set_defaults(act=_check)


def run(options: argparse.Namespace) -> None:
    """Do what is asked for; exit code 3 if a file breaks the contract."""
    options.act(options)


def _export(options: argparse.Namespace) -> None:
    from lit_ppo.bridge.client import EnvBridge
    from lit_ppo.seeding import episode_seed
    from lit_ppo.transitions import collect

    for name, value in (("steps", options.steps), ("num_envs", options.num_envs)):
        if value > LARGEST_COUNT:
            raise ConfigError(f"{name}={value}: expected at most {LARGEST_COUNT:,}")
    if options.steps < 1 or options.seed < 0:
        raise ConfigError(f"steps={options.steps}, seed={options.seed}: expected at least one step, and a seed of at least 0")
    if options.ckpt_path is None:
        environment, settings, choose = environment_of(options.env_id, options), processes_of(options), None
    else:
        environment, settings, choose = _policy_of(options)

    def seed_of(env: int, episode: int) -> int:
        return episode_seed(options.seed, "training" if choose is None else "evaluation", 0, env, episode)

    with EnvBridge(environment, options.num_envs, seed_of, settings=settings) as bridge:
        choose = choose or _random(bridge.spec, options.seed)
        document = collect(bridge, options.steps, choose, seed_of)
    _write(options.out, "--out", document)
    say(f"{options.out}: {len(document['transitions'])} transitions")


def _random(spec: "EnvSpec", seed: int) -> "Choose":
    import numpy as np

    from lit_ppo.random_actions import random_actions

    generator = np.random.default_rng(seed)
    return lambda obs, begins: random_actions(spec, obs, generator)


def _policy_of(options: argparse.Namespace) -> "tuple[EnvironmentSettings, BridgeSettings, Choose]":
    """The environment of a checkpoint's run and how its processes run, except for what was typed, and its greedy policy."""
    from lit_ppo.compat_torch import defer_dynamo

    defer_dynamo()
    import torch

    from lit_ppo.saved_policy import load

    saved = load(typed_checkpoint(options), typed_settings(options), options.trust_checkpoint == "true")
    policy = saved.module.policy
    state = policy.initial_state(options.num_envs)

    @torch.inference_mode()
    def choose(obs: "Leaves", begins: "NDArray[np.bool_]") -> "NDArray[Any]":
        nonlocal state
        seen = {path: torch.from_numpy(leaf.astype(policy.seen_as(path, leaf.dtype))) for path, leaf in obs.items()}
        chosen, state = policy.act(seen, state, None if state is None else torch.from_numpy(begins), None)
        return policy.distribution.to_env(chosen.numpy())

    return environment_of(saved.data["env_id"], options, saved.data), processes_of(options, saved.data), choose


def _check(options: argparse.Namespace) -> None:
    from lit_ppo.contract import ContractSettings
    from lit_ppo.transitions import check

    try:
        document = json.loads(options.path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{options.path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{options.path}: expected JSON: {error}") from error
    contract = ContractSettings(
        check_membership="off" if options.any_observation else "error",
        observation_range=options.observation_range,
        reward_range=options.reward_range,
        exclusive_flags=options.exclusive_flags,
    )
    try:
        report = check(document, None if options.env_id is None else _announced(options), contract, options.show)
    except ConfigError as error:
        raise ConfigError(f"{options.path}: {error}") from error
    width = max((len(rule) for rule in report.checked), default=0)
    say(f"{'rule':<{width}}  {'checked':>8}  {'violated':>8}")
    for rule, checked in report.checked.items():
        say(f"{rule:<{width}}  {checked:>8}  {report.violated[rule]:>8}")
    for violation in report.first:
        say(f"transition {violation.transition}: {violation.rule}: {violation.message}")
    if options.json is not None:
        _write(options.json, "--json", report.to_json())
    if report.violated:
        fail(f"{options.path}: {report.violated.total()} violations in {report.num_transitions} transitions", ENVIRONMENT)


def _announced(options: argparse.Namespace) -> "EnvSpec":
    from lit_ppo.bridge.client import EnvBridge

    environment, settings = environment_of(options.env_id, options), processes_of(options)
    with EnvBridge(environment, 1, lambda env, episode: 0, settings=settings) as bridge:
        return bridge.spec


def _write(path: Path, option: str, document: object) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document) + "\n", encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{option}={path}: cannot be written: {error}") from error
