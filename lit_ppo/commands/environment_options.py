"""The options that name an environment, for the commands that do not train."""

import argparse
import dataclasses
from collections.abc import Mapping
from typing import Any, Final, get_args

from lit_ppo.bridge.settings import BridgeSettings, EnvironmentSettings, SandboxLevel
from lit_ppo.errors import shown
from lit_ppo.exit_codes import USAGE, fail

# `is_training` is not typed
_NAMES = [field.name for field in dataclasses.fields(EnvironmentSettings) if field.name not in ("env_id", "is_training")]
_CONFINEMENT: Final = ("sandbox", "sandbox_read", "sandbox_write")


def add_environment_options(parser: argparse.ArgumentParser) -> None:
    """Add the fields of `EnvironmentSettings` besides the id, as YAML, and the sandbox."""
    for name in _NAMES:
        parser.add_argument(f"--{name}", type=_yaml, metavar="YAML", help=f"as data.{name} of fit")
    parser.add_argument("--sandbox", choices=get_args(SandboxLevel), help="as data.sandbox of fit")
    for name in ("sandbox_read", "sandbox_write"):
        parser.add_argument(f"--{name}", type=_yaml, metavar="YAML", help=f"as data.{name} of fit")


def typed_environment(options: argparse.Namespace) -> dict[str, Any]:
    """Those of the options that were typed."""
    return {name: value for name in _NAMES if (value := getattr(options, name)) is not None}


def typed_confinement(options: argparse.Namespace) -> dict[str, Any]:
    """Settings of the sandbox that were typed."""
    return {name: value for name in _CONFINEMENT if (value := getattr(options, name)) is not None}


def environment_of(env_id: str, options: argparse.Namespace) -> EnvironmentSettings:
    """The environment that the options name."""
    return EnvironmentSettings(env_id, **typed_environment(options))


def processes_of(options: argparse.Namespace, saved: Mapping[str, Any] | None = None) -> BridgeSettings:
    """How the environment's process is run.

    Args:
        options: What was typed.
        saved: Settings of the run whose policy plays: its sandbox holds unless another one is typed.
    """
    of_run = {name: value for name in _CONFINEMENT if (value := (saved or {}).get(name)) is not None}
    return BridgeSettings(**{**of_run, **typed_confinement(options)})


def _yaml(text: str) -> Any:
    import yaml  # here, so that --help does not pay for it

    from lit_ppo import strict_yaml

    try:
        return strict_yaml.load(text)
    except yaml.YAMLError as error:
        fail(f"expected a value in YAML, got {shown(text)}: {' '.join(str(error).split())}", USAGE)
