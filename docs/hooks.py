"""What `mkdocs build` adds to the pages: the reference of settings and commands, made from the parsers and the code.

Files of the repository that are pages as well, such as README.md, are added too, with their links turned to the pages.
"""

import argparse
import re
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from mkdocs.structure.files import File, Files

from lit_ppo import cli, exit_codes
from lit_ppo.commands import PROGRAM, TRAINING
from lit_ppo.commands.train import LitPPOCLI

ROOT: Final = Path(__file__).parents[1]
_PAGES: Final = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
}
_ABOUT_TRAINER: Final = "[Lightning's habits](../lightning.md) says which of these a run takes."


class _Parser(LitPPOCLI):
    """The parser alone: no model, no data, no Trainer."""

    def instantiate_classes(self) -> None:
        """Nothing is made."""


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages, and those that are files of the repository."""
    pages = {path: relinked((ROOT / file).read_text(encoding="utf-8")) for file, path in _PAGES.items()}
    pages |= {"reference/settings.md": settings_page(), "reference/commands.md": commands_page()}
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def relinked(text: str) -> str:
    """Links between files of the repository as links between pages."""
    for file, page in _PAGES.items():
        text = text.replace(f"]({file})", f"]({page})")
    return text.replace("](docs/", "](")


def settings_page() -> str:
    """Every option of `fit`, in the order and with the words of its help."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning calls what jsonargparse deprecates, and does not like `args` in a program
        parser = _Parser(args=["--preset=none"], run=False).parser  # as for an environment without a preset
    parts = [
        "# Settings",
        "Every setting is an option of `fit`, a key of a configuration file, and an argument in Python: `--model.gamma=0.98`, "
        "`model: {gamma: 0.98}`, `PPOModule(data.spec, gamma=0.98)`. This page is made from the code; "
        f"`{PROGRAM} fit --help` says the same. [Presets](../presets.md) replace the defaults for known environments.",
    ]
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if _is_setting(action)]
        if actions and group.title not in ("options", "Linked arguments"):
            about = (
                ["[Lightning's habits](../lightning.md) says which of these a run takes."] if "Lightning" in group.title else []
            )
            parts += [f"## {group.title}", *about]
            parts += [_table(["option", "meaning"], map(_setting_row, actions))]
    return "\n\n".join(parts) + "\n"


def commands_page() -> str:
    """Every command with its options, and the exit codes."""
    parts = ["# Commands and exit codes", "This page is made from the code."]
    parts += [_table(["command", "what it does"], ([f"`{PROGRAM} {name}`", summary] for name, summary in _summaries()))]
    parts += ["## Exit codes", _table(["code", "name", "meaning"], _codes())]
    for name, parser in _commands(cli.command_parser()):
        rows = [[_names(action), _cell(action.help)] for action in parser._actions if _is_setting(action)]
        if name not in TRAINING and rows:
            parts += [f"## {name}", _cell(parser.description), _table(["option", "meaning"], rows)]
    return "\n\n".join(parts) + "\n"


def _is_setting(action: argparse.Action) -> bool:
    is_other = isinstance(action, argparse._HelpAction | argparse._SubParsersAction | argparse._VersionAction)
    option = action.option_strings[0] if action.option_strings else ""
    return not is_other and action.help != argparse.SUPPRESS and not option.endswith(".help") and not _is_whole(action)


def _is_whole(action: argparse.Action) -> bool:
    """Whether an option takes a configuration file in place of a group's options."""
    return action.help == "Path to a configuration file."


def _setting_row(action: argparse.Action) -> list[str]:
    default = "" if action.default == argparse.SUPPRESS else _value(action.default)
    meaning = _cell(action.help)
    if action.dest.startswith("trainer."):  # Lightning's, whose help is markup for Sphinx after its first sentence
        meaning = re.split(r"(?<=\w)\.(?=\s|$)", meaning)[0].replace("``", "`")
    kind = _kind(getattr(action, "_typehint", None) or action.type)
    return [f"{_names(action)}<br>{kind}{f'; `{default}`' if default else ''}", meaning]


def _kind(hint: Any) -> str:
    """A type as a reader types its values: `auto, first or last`, `int or null`."""
    text = hint.__name__ if isinstance(hint, type) else str(hint)
    text = re.sub(r"(?:\w+\.)+(?=\w)", "", text).replace("Verbatim", "Any")
    text = re.sub(r"Literal\[(.*?)\]", lambda found: found[1].replace("'", "").replace(", ", " | "), text)
    text = re.sub(r"^(?:Optional|Union)\[(.*)\]$", lambda found: re.sub(r", (?![^\[]*\])", " | ", found[1]), text)
    kinds = re.sub(r"\bNone(?:Type)?\b", "null", text).split(" | ")
    if hint is not None and str(hint).startswith(("Optional", "typing.Optional")):
        kinds.append("null")
    *others, last = kinds
    return f"{', '.join(others)} or {last}" if others else last


def _value(default: Any) -> str:
    words = {None: "null", True: "true", False: "false"}
    if isinstance(default, bool | None):
        return words[default]
    if hasattr(default, "class_path"):
        return str(default.class_path).rpartition(".")[2]
    return str(list(default)) if isinstance(default, tuple) else str(default)


def _names(action: argparse.Action) -> str:
    names = [name for name in action.option_strings if not name.endswith("+")] or [action.metavar or action.dest]
    return ", ".join(f"`{name}`" for name in names)


def _commands(parser: argparse.ArgumentParser, prefix: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, subparser in action.choices.items():
                yield f"{prefix}{name}", subparser
                yield from _commands(subparser, f"{prefix}{name} ")


def _summaries() -> Iterator[tuple[str, str]]:
    for name, parser in _commands(cli.command_parser()):
        yield name, _cell(TRAINING.get(name) or parser.description or "")


def _codes() -> Iterator[list[str]]:
    """As the comments in `exit_codes.py` have them."""
    source = Path(exit_codes.__file__).read_text(encoding="utf-8")
    for name, code, meaning in re.findall(r"^([A-Z_]+): Final = (\d+)(?:  # (.*))?$", source, re.M):
        yield [code, f"`{name}`", meaning or "everything that was asked for is done"]
    yield ["130, 143", "", "ended by SIGINT, by SIGTERM"]


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "&#124;") for cell in line) + " |" for line in lines)


def _cell(text: str | None) -> str:
    """On one line, in the words of YAML."""
    plain = re.sub(r"\bNone\b", "null", " ".join((text or "").split())).replace("%%", "%")
    return re.sub(r"(?<![`\w])<(\w+)>", r"`\1`", plain)
