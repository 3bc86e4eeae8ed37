"""The options that say which environment is made and how its processes run, for the commands that do not train.

They are the fields of `EnvironmentSettings` and `BridgeSettings`, with the types and refusals of `fit`: a new setting is an
option of every command.
"""

import argparse
import dataclasses
from collections.abc import Mapping
from typing import Any, Final

from lit_ppo.bridge.settings import BridgeSettings, EnvironmentSettings
from lit_ppo.setting_types import kinds_of, value_of_option, words_of_option

_NO_OPTIONS: Final = {  # of these commands
    *("env_id", "is_training"),  # named by the command, and decided by it
    *("vectorization", "bridge"),  # ordinary environments in processes: each episode has its seed, and a crash ends no command
    *("max_restarts", "restart_window", "on_violation", "on_replay_mismatch", "show_output"),  # how a long run goes on
}
_GROUPS: Final = {
    "environment: what is made": EnvironmentSettings,
    "process: how its processes run": BridgeSettings,
}


def _names(settings: type) -> list[str]:
    return [field.name for field in dataclasses.fields(settings) if field.name not in _NO_OPTIONS]


def add_environment_options(parser: argparse.ArgumentParser) -> None:
    """Add a group of options for each of the two; what is not typed is missing in the parsed namespace."""
    for title, settings in _GROUPS.items():
        group = parser.add_argument_group(title, "as the options data.* of fit, whose --help describes them")
        for name in _names(settings):
            words = words_of_option(kinds_of(settings)[name])
            group.add_argument(f"--{name}", default=argparse.SUPPRESS, metavar="YAML", help=words)


def typed_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Those of the options that were typed, as arguments of `RolloutDataModule`.

    Raises:
        ConfigError: A value has another type.
    """
    return {**_typed(options, EnvironmentSettings), **_typed(options, BridgeSettings)}


def _typed(options: argparse.Namespace, settings: type) -> dict[str, Any]:
    kinds = kinds_of(settings)
    return {
        name: value_of_option(f"data.{name}", getattr(options, name), kinds[name])
        for name in _names(settings)
        if hasattr(options, name)
    }


def environment_of(env_id: str, options: argparse.Namespace, saved: Mapping[str, Any] | None = None) -> EnvironmentSettings:
    """The environment that the options name; what is not typed is as a run saved it."""
    return EnvironmentSettings.of({**(saved or {}), **_typed(options, EnvironmentSettings), "env_id": env_id})


def processes_of(options: argparse.Namespace, saved: Mapping[str, Any] | None = None) -> BridgeSettings:
    """How the environments' processes run.

    Args:
        options: What was typed.
        saved: Settings of the run whose policy plays: they hold unless others are typed, but for the number of workers, which
            is that of the run's environments.
    """
    of_run = {name: value for name, value in (saved or {}).items() if name in _names(BridgeSettings) and name != "num_workers"}
    return BridgeSettings(**{**of_run, **_typed(options, BridgeSettings)})
