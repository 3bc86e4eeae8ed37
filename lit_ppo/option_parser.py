"""The parser of options: errors on one line, a short usage, and YAML 1.2, in which `off` is a word and not a boolean."""

import argparse
import difflib
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Final, NoReturn

import yaml
from jsonargparse import DefaultHelpFormatter, Namespace, get_loader, set_dumper, set_loader
from jsonargparse.typing import register_type
from lightning.pytorch.cli import LightningArgumentParser

from lit_ppo import strict_yaml
from lit_ppo.compat_lightning import option_names
from lit_ppo.errors import shown
from lit_ppo.exit_codes import USAGE, fail
from lit_ppo.setting_types import cut_short, words_of_names

_VERBATIM: Final = "--data.env_kwargs"
_ITEM_MARK: Final = "\0"  # cannot be part of a typed argument
_REPLACED: Final = {  # options and keys of earlier versions, and keys whose value is that of another option
    "model.learning_rate_decay_steps": "total_env_steps (model.learning_rate_decay=constant for no decay)",
    "model.clip_decay_steps": "total_env_steps and model.clip_decay=linear",
    "model.total_env_steps": "total_env_steps",
    "model.seed": "seed_everything",
    "data.seed": "seed_everything",
    "evaluation.every_n_updates": "evaluation.every_env_steps, in env steps (1 evaluates after every update)",
}


class Verbatim:
    """The type of an option's value that is taken as YAML wrote it; `Any` would parse the string "123" again, into a number."""


def _is_marked(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(_ITEM_MARK)


register_type(
    Verbatim,
    serializer=lambda value: value,
    deserializer=lambda value: _load(value.removeprefix(_ITEM_MARK)),  # of a single item
    type_check=lambda value, kind: not _is_marked(value),
)


_load_default: Final = get_loader("yaml")


def _load(text: str) -> Any:
    """The value of YAML; jsonargparse takes some mappings for text: `{env}`.

    Raises:
        yaml.YAMLError: As in `strict_yaml.load`.
    """
    value = strict_yaml.load(text)
    return text if isinstance(value, dict) and isinstance(_load_default(text), str) else value


set_loader("yaml", _load, exceptions=(yaml.YAMLError,))
set_dumper("yaml", strict_yaml.dump)


class OptionParser(LightningArgumentParser):
    """Takes options by their whole names only, and reports an error in one line, without the usage of two hundred options."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **settings})

    def parse_args(self, args: Any = None, namespace: Any = None, **kwargs: Any) -> Any:  # type: ignore[override]
        """Parse, with the values of single items of `env_kwargs` marked."""
        arguments = list(_marked(sys.argv[1:] if args is None else args))
        if odd := next((text for text in arguments if any("\ud800" <= c <= "\udfff" for c in text)), None):
            self.error(f"expected options in UTF-8, got {odd}")  # checkpoints and config.yaml could not hold it
        try:
            return super().parse_args(arguments, namespace, **kwargs)
        except UnicodeDecodeError as error:
            self.error(f"expected a configuration file in UTF-8, got byte 0x{error.object[error.start]:02x} at {error.start}")

    def parse_string(self, *args: Any, **kwargs: Any) -> Any:
        """Parse a configuration file's text; refuse a key that another option replaces, and a group that is no mapping."""
        settings = super().parse_string(*args, **kwargs)
        for group in sorted({option[2:].partition(".")[0] for option in option_names(self) if "." in option}):
            value = settings.get(group)
            if not isinstance(value, str | dict | Namespace | None):  # text is the path of another file
                self.error(f"{group}: expected a mapping, got {shown(value)}")
        for key in _REPLACED:
            if settings.get(key) is not None:
                self.error(key)
        return settings

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        text = re.sub(r'^Parser key "([^"]+)"', r"\1", re.sub(r"\bgot None$", "got null", condensed(message)))
        for old, new in _REPLACED.items():
            if re.search(rf"(?<![\w.]){re.escape(old)}(?!\w)", text):
                fail(f"{old}: use {new}", USAGE)
        if unknown := re.match(r"unrecognized arguments: --([\w.]+)", text):
            options = [option[2:] for option in option_names(self) if option.startswith("--")]
            longer = [option for option in options if option.startswith(f"{unknown[1]}_")]  # --seed for --seed_everything
            if similar := longer or difflib.get_close_matches(unknown[1], options, n=1):
                text += f" (did you mean --{similar[0]}?)"
        fail(cut_short(text), USAGE)


class HelpFormatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """jsonargparse's help, with the examples kept line by line, and null for None, as it is typed."""

    def _expand_help(self, action: argparse.Action) -> str:
        text = re.sub(r"\bNone(?:Type)?\b", "null", super()._expand_help(action)).replace("Verbatim", "Any")
        return re.sub(r", known subclasses: torch\.nn\.Module, .*\)$", ")", text)  # hundreds


def _marked(arguments: Sequence[str]) -> Iterator[str]:
    """Arguments, in which the values of single items of `env_kwargs` are marked: their YAML is not parsed yet.

    jsonargparse hands over the value of `--data.env_kwargs.level=3` as the string "3", which it would also get from '"3"'.
    """
    awaiting = ""  # name of the item whose value is the next argument
    for argument in arguments:
        name, assigned, value = argument.partition("=")
        if awaiting and not argument.startswith("--"):
            yield _item(awaiting, argument)
            awaiting = ""
        elif name.startswith(f"{_VERBATIM}."):
            yield f"{name}={_item(name, value)}" if assigned else argument
            awaiting = "" if assigned else name
        else:
            yield argument
            awaiting = ""


def _item(name: str, value: str) -> str:
    if _is_marked(value):  # by the parser of all commands
        return value
    try:
        _load(value)
    except yaml.YAMLError:
        fail(f"{name}: expected a value in YAML, got {value}", USAGE)
    return f"{_ITEM_MARK}{value}"


def condensed(message: str) -> str:
    """A message of jsonargparse on one line, in plain type names; of a union, the branch that was meant."""
    if problem := re.search(r"Problem with given class_path.*\n.*", message):
        message = problem[0]
    text = re.sub(r"<class '([\w.]+)'>", r"\1", " ".join(message.split())).replace("typing.", "")
    mismatch = re.search(r"Does not validate against any of the Union subtypes Subtypes: \[(?P<types>.*)\] Errors: .*", text)
    if mismatch and (given := re.search(r"Given value type: \S+ Given value: (.*)$", mismatch[0])):
        refused = re.match(r"\[?Namespace\(class_path='([\w.]+)'", given[1])
        if refused and (why := re.search(r"Errors: - (.*?) - (?:Expected an? |Not a valid subclass)", mismatch[0])):
            return f"{refused[1]}: {why[1]}"  # a class that raised when it was made
        part = re.search(
            r"Errors: - (?:Type .*? expects a function or a callable class: )?(.*?) - Expected an? NoneType", mismatch[0]
        )
        if part and "Callable[" in mismatch["types"]:  # the user's own code: why it cannot be used
            return f"{text.partition(': ')[0]}={given[1]}: {_of_code(part[1])}"
        kinds = re.split(r", (?![^\[]*\])", mismatch["types"])
        return f"{text.partition(': ')[0]}: expected {words_of_names(kinds)}, got {given[1]}"
    return re.sub(
        r"Expected an? (.+?)\. Got value: (.*)$", lambda match: f"expected {words_of_names([match[1]])}, got {match[2]}", text
    )


def _of_code(reason: str) -> str:
    """Why a class or function cannot be used, with what jsonargparse means by a function that returns something."""
    returns = re.match(r"Expected '[\w.]+' to be a (?:function that returns|subclass of) (?:[\w.]+\.)?(\w+)", reason)
    return f"expected a class of {returns[1]}, or a function annotated as returning one" if returns else reason


def add_verbatim_options(group: Any) -> None:
    """Add `--data.env_kwargs` and `--data.wrappers` to a parser or group."""
    group.add_argument(
        _VERBATIM,
        type=dict[str, Verbatim] | None,
        default=None,
        help="Keyword arguments of `gymnasium.make`, as one YAML mapping or one by one: '{level: 3}', or env_kwargs.level=3.",
    )
    group.add_argument(
        "--data.wrappers",
        type=list[Verbatim] | None,
        default=None,
        help="Wrappers of the environment in their order, imported in its process: import paths such as my_file.MyWrapper, "
        "mappings '{class_path: my_file.MyWrapper, init_args: {size: 3}}', or atari for Atari's usual preprocessing.",
    )
