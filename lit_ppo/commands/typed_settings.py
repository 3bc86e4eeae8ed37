"""Which settings of a training command were typed, without the defaults."""

from collections.abc import Sequence
from typing import Any, Final

from lightning.pytorch.cli import LightningArgumentParser

from lit_ppo import strict_yaml
from lit_ppo.commands.training_options import LINKED

_NOT_TYPED: Final = 2**62 - 1


def typed_settings(parser: LightningArgumentParser, given: Sequence[str], command: str | None) -> dict[str, Any]:
    """The settings that were typed, on the command line or in configuration files, as plain data.

    Args:
        parser: Of all training commands, or of a program that runs none.
        given: Command and options.
        command: The one among them; None for a program that runs none.
    """
    arguments = [argument for argument in given if not argument.startswith("--print_config")]
    # links need their sources, so these get a value first, which a typed one replaces
    first = 0 if command is None else arguments.index(command) + 1
    arguments[first:first] = [f"--{source}={_NOT_TYPED}" for source in LINKED]
    parsed = parser.parse_args(arguments, defaults=False)
    # as a checkpoint holds the settings: functions by their import paths
    settings = strict_yaml.load_own(parser.dump(parsed, skip_none=False, skip_validation=True))
    typed: dict[str, Any] = settings if command is None else settings[command]
    typed.pop("config", None)
    if typed.get("preset") is None:  # null, as a printed configuration file has it, is that of the environment
        typed.pop("preset", None)
    for source, targets in LINKED.items():
        for section, key in targets:
            typed.get(section, {}).pop(key, None)
        if typed[source] == _NOT_TYPED:
            del typed[source]
    return typed
