"""The parser of options: errors on one line, a short usage, and `env_kwargs` as YAML writes them."""

import argparse
import difflib
import re
import sys
from typing import Any, Final, NoReturn

import yaml
from jsonargparse import DefaultHelpFormatter, set_dumper
from jsonargparse.typing import register_type
from lightning.pytorch.cli import LightningArgumentParser

from lit_ppo.compat_lightning import option_names
from lit_ppo.exit_codes import USAGE, fail

_VERBATIM: Final = "--data.env_kwargs"
_REPLACED: Final = {  # options and keys of earlier versions
    "model.learning_rate_decay_steps": "total_env_steps (model.learning_rate_decay=constant for no decay)",
    "model.clip_decay_steps": "total_env_steps and model.clip_decay=linear",
    "model.total_env_steps": "total_env_steps",
}


class Verbatim:
    """The type of an option's value that is taken as YAML wrote it; `Any` would parse the string "123" again, into a number."""


register_type(Verbatim, serializer=lambda value: value, deserializer=lambda value: value, type_check=lambda value, kind: True)


class _Dumper(yaml.SafeDumper):
    """Quotes the strings that jsonargparse would read as numbers, although YAML 1.1 would not: "1e3"."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+$"), list("-+0123456789"))
set_dumper("yaml", lambda data: yaml.dump(data, Dumper=_Dumper, default_flow_style=False, allow_unicode=True, sort_keys=False))


class OptionParser(LightningArgumentParser):
    """Reports an error in one line, without the usage of two hundred options."""

    def parse_args(self, args: Any = None, namespace: Any = None, **kwargs: Any) -> Any:  # type: ignore[override]
        """Parse, unless an item of `env_kwargs` is given by itself: the shell has taken its quotes, and its type with them."""
        for argument in sys.argv[1:] if args is None else args:
            if argument.startswith(f"{_VERBATIM}."):
                name = argument.partition("=")[0]
                fail(f"{name}: expected the mapping as a whole, such as {_VERBATIM}='{{level: 3}}'", USAGE)
        return super().parse_args(args, namespace, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        text = re.sub(r'^Parser key "([^"]+)"', r"\1", condensed(message))
        for old, new in _REPLACED.items():
            if old in text:
                fail(f"{old}: use {new}", USAGE)
        if unknown := re.match(r"unrecognized arguments: --([\w.]+)", text):
            options = [option[2:] for option in option_names(self) if option.startswith("--")]
            if similar := difflib.get_close_matches(unknown[1], options, n=1):
                text += f" (did you mean --{similar[0]}?)"
        fail(text, USAGE)


class HelpFormatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """jsonargparse's help, with the examples kept line by line."""


def condensed(message: str) -> str:
    """A message of jsonargparse on one line, in plain type names; of a union, the branch that was meant."""
    if problem := re.search(r"Problem with given class_path.*\n.*", message):
        message = problem[0]
    return re.sub(r"<class '([\w.]+)'>", r"\1", " ".join(message.split())).replace("typing.", "")


def add_env_kwargs(group: Any) -> None:
    """Add `--data.env_kwargs` to a parser or group."""
    group.add_argument(
        _VERBATIM,
        type=dict[str, Verbatim] | None,
        default=None,
        help="Keyword arguments of `gymnasium.make`, as one YAML mapping.",
    )
