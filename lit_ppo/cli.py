"""The command line: `python -m lit_ppo fit | validate | test | plot | replay`.

Rules. What the user typed wins over what a checkpoint holds, what a checkpoint holds wins over the defaults, and what cannot be
combined is refused. Every expected error ends in one line on standard error and a documented exit code, without a traceback.
"""

import difflib
import logging
import re
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NoReturn

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from lit_ppo import exit_codes
from lit_ppo.callbacks.curve_export import CurveExport
from lit_ppo.callbacks.graceful_exit import GracefulExit, RunInterrupted
from lit_ppo.callbacks.greedy_evaluation import GreedyEvaluation
from lit_ppo.callbacks.run_checkpoint import RunCheckpoint
from lit_ppo.callbacks.run_config import CONFIG_KEY, RunConfig
from lit_ppo.callbacks.run_progress import RunProgress
from lit_ppo.callbacks.run_summary import RunSummary
from lit_ppo.callbacks.stop_when_solved import StopWhenSolved
from lit_ppo.checkpoint_io import VerifiedCheckpointIO, previous_of, read_checkpoint
from lit_ppo.data import RolloutDataModule
from lit_ppo.errors import CheckpointError, ConfigError
from lit_ppo.module import PPOModule

_COMMANDS: Final = ("fit", "validate", "test")  # of Lightning; `plot` and `replay` have their own
_CALLBACKS: Final = {
    "interrupt": GracefulExit,
    "evaluation": GreedyEvaluation,
    "solved": StopWhenSolved,
    "curve": CurveExport,
    "progress": RunProgress,
    "checkpoint": RunCheckpoint,
}
_TRAINER_DEFAULTS: Final[dict[str, Any]] = {
    "accelerator": "cpu",  # networks this small are slower on an accelerator
    "max_epochs": 200,
    "logger": {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "logs", "name": ""}},
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}
# What a checkpoint's own settings stand in for when the user does not type them.
_SECTIONS_OF_A_RUN: Final = ("seed_everything", "model", "data", "evaluation", "solved", "curve", "checkpoint")
_TRAINER_KEYS_OF_A_RUN: Final = ("max_epochs", "max_steps", "precision", "deterministic", "logger")
_NOT_TYPED: Final = 2**62 - 1
# What a run cannot change half-way: its episodes under way and its parameters would not fit.
_FIXED_ON_RESUME: Final = (
    "data.env_id",
    "data.env_kwargs",
    "data.num_envs",
    "data.vectorization",
    "model.actor_hidden_sizes",
    "model.critic_hidden_sizes",
    "model.activation",
)
# Lightning's advice that does not apply here: the data loader is an environment, the metrics go to the loggers directly.
_IRRELEVANT_WARNINGS: Final = (
    ".*does not have many workers.*",
    ".*The number of training batches.*",
    ".*is smaller than the logging interval.*",
    ".*`isinstance.treespec, LeafSpec.` is deprecated.*",
    ".*GPU available but not used.*",
    ".*Experiment logs directory.*",
    ".*total length of `list` across ranks is zero.*",
)


class OneLineParser(LightningArgumentParser):
    """Says what is wrong in one line, without the usage of two hundred options."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        text = re.sub(r'^Parser key "([^"]+)"', r"\1", _condensed(message))
        if unknown := re.match(r"unrecognized arguments: --([\w.]+)", text):
            options = [option[2:] for option in self._known_options() if option.startswith("--")]
            if similar := difflib.get_close_matches(unknown[1], options, n=1):
                text += f" (did you mean --{similar[0]}?)"
        fail(text, exit_codes.USAGE)

    def _known_options(self) -> Iterator[str]:
        for action in self._actions:
            yield from action.option_strings
            if isinstance(action.choices, dict):  # the subcommands' parsers
                for parser in action.choices.values():
                    yield from parser._known_options()


class LitPPOCLI(LightningCLI):
    """LightningCLI with this project's classes, defaults, links and rules for checkpoints."""

    def __init__(self, args: ArgsType = None, run: bool = True) -> None:
        self._arguments = args
        super().__init__(
            PPOModule,
            RolloutDataModule,
            save_config_callback=RunConfig,
            trainer_defaults={**_TRAINER_DEFAULTS, "callbacks": [RunSummary()]},
            seed_everything_default=0,
            parser_kwargs={"prog": "python -m lit_ppo"},
            parser_class=OneLineParser,
            args=args,
            run=run,
            auto_configure_optimizers=False,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """`predict` has no meaning here; and if one is asked for, the options of the others need not be worked out."""
        asked = list(sys.argv[1:] if self._arguments is None else self._arguments)[:1]
        return {
            # the results are printed as a table of our own; checkpoints are never unpickled
            command: LightningCLI.subcommands()[command] | {"verbose", "weights_only"}
            for command in (asked if set(asked) & set(_COMMANDS) else _COMMANDS)
        }

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--seed_everything", type=int, default=0, help="Seed of weights, episodes, actions and minibatches."
        )
        parser.add_argument(
            "--torch_threads",
            type=int,
            default=1,
            help="CPU threads of torch; more than 1 pays only for networks far larger than the default ones.",
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for key, callback in _CALLBACKS.items():
            parser.add_lightning_class_args(callback, key)
        parser.link_arguments("seed_everything", "data.seed")
        parser.link_arguments("seed_everything", "model.seed")
        parser.link_arguments("data.obs_size", "model.obs_size", apply_on="instantiate")
        parser.link_arguments("data.num_actions", "model.num_actions", apply_on="instantiate")

    def _parse_ckpt_path(self) -> None:
        """Let the settings of a checkpoint stand in for what was not typed, and refuse what cannot be changed."""
        command = self.config.get("subcommand")
        given = self.config[command].get("ckpt_path") if command else None
        if given is None:
            return
        path = self._resolved(given, Path(self.config[command].checkpoint.dirpath))
        saved, typed = _saved_settings(path), self._typed(command)
        if command == "fit":
            _refuse_fixed(saved, typed)
            for line in _differences(saved, typed):
                print(f"changed since {path}: {line}", file=sys.stderr)
        self.config = self.parser.parse_object({"subcommand": command, command: _merged(saved, typed)})
        self.config[command].ckpt_path = str(path)

    def _typed(self, command: str) -> dict[str, Any]:
        """The settings that were typed, on the command line or in configuration files, without the defaults."""
        arguments = list(sys.argv[1:] if self._arguments is None else self._arguments)
        # links need their source, so the seed gets a value first that what is typed replaces
        arguments.insert(arguments.index(command) + 1, f"--seed_everything={_NOT_TYPED}")
        typed: dict[str, Any] = self.parser.parse_args(arguments, defaults=False)[command].as_dict()
        typed.pop("config", None)
        if typed["seed_everything"] == _NOT_TYPED:
            del typed["seed_everything"]
        for section in ("data", "model"):
            typed.get(section, {}).pop("seed", None)  # linked
        return typed

    @staticmethod
    def _resolved(given: str, directory: Path) -> Path:
        """The checkpoint that is meant; if that is not as it was written, the one before it.

        Raises:
            CheckpointError: There is no good one.
        """
        path = directory / f"{given}.ckpt" if given in ("last", "best") else Path(given)
        if not path.is_file():
            raise CheckpointError(f"ckpt_path={given}: expected a checkpoint at {path}, found none")
        try:
            read_checkpoint(path)
        except CheckpointError as error:
            previous = previous_of(path)
            if not previous.is_file():
                raise
            read_checkpoint(previous)
            print(f"{error}; falling back to {previous}", file=sys.stderr)
            return previous
        return path

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except ConfigError:
            raise
        except ValueError as error:  # of jsonargparse, for a class that cannot be made: a logger that is not installed
            raise ConfigError(_condensed(str(error))) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self._get(self.config_init, "trainer")
        callbacks = self._parser(self.subcommand).callback_keys
        for key, wanted in {"progress": config.enable_progress_bar, "checkpoint": config.enable_checkpointing}.items():
            if wanted is False:  # Lightning would refuse the flag because of the callback
                callbacks.remove(key)
        config.plugins = [*(config.plugins or []), VerifiedCheckpointIO()]
        try:
            return super().instantiate_trainer(**kwargs)
        except MisconfigurationException as error:
            raise ConfigError(f"trainer (accelerator={config.accelerator}, devices={config.devices}): {error}") from error

    def _set_seed(self) -> None:
        """Nothing here draws from the global streams; they are seeded for what a user's own code may draw."""
        seed, num_threads = self._get(self.config, "seed_everything"), self._get(self.config, "torch_threads")
        if not 0 <= seed < 1 << 32:
            raise ConfigError(f"seed_everything={seed}: expected 0 to 2^32 - 1")
        if num_threads < 1:
            raise ConfigError(f"torch_threads={num_threads}: expected at least 1")
        seed_everything(seed, workers=True, verbose=False)
        torch.set_num_threads(num_threads)

    def before_instantiate_classes(self) -> None:
        quiet_lightning()

    def fit(self, **kwargs: Any) -> None:
        """Train; a run that a signal ended exits as the signal would have it."""
        self.model.refuse_flags(self.trainer)  # Lightning would refuse some itself, without saying what to use instead
        interrupt: GracefulExit = self._get(self.config_init, "interrupt")
        try:
            self.trainer.fit(**kwargs)
        except RunInterrupted as interrupted:
            fail(f"{interrupted}; {self._way_on()}", 128 + (interrupt.received or 0))
        if interrupt.received is not None:
            fail(f"{signal.Signals(interrupt.received).name}: {self._way_on()}", 128 + interrupt.received)

    def _way_on(self) -> str:
        """What somebody can do whose run was interrupted."""
        last = Path(self._get(self.config, "checkpoint").dirpath) / "last.ckpt"
        return "continue with --ckpt_path last" if last.is_file() else "nothing was saved yet; start again"

    def validate(self, **kwargs: Any) -> None:
        """Play greedy episodes and print what came of them."""
        self.trainer.validate(**{**kwargs, "verbose": False})
        self._print_results()

    def test(self, **kwargs: Any) -> None:
        """Play greedy episodes on seeds of their own and print what came of them."""
        self.trainer.test(**{**kwargs, "verbose": False})
        self._print_results()

    def _print_results(self) -> None:
        results = self.datamodule.results
        solved: StopWhenSolved = self._get(self.config_init, "solved")
        threshold = solved.threshold if solved.threshold is not None else self.datamodule.reward_threshold
        rows = [
            ("episodes", f"{len(results.returns)}"),
            ("mean return", f"{results.mean:.2f}"),
            ("std", f"{results.std:.2f}"),
            ("min", f"{min(results.returns):.2f}"),
            ("max", f"{max(results.returns):.2f}"),
        ]
        if threshold is not None:
            rows.append((f"solved (mean >= {threshold:g})", "yes" if results.mean >= threshold else "no"))
        width = max(len(name) for name, _ in rows)
        print("\n".join(f"{name:<{width}}  {value:>8}" for name, value in rows))


def _saved_settings(path: Path) -> dict[str, Any]:
    """The settings that a checkpoint's run was started with."""
    settings = read_checkpoint(path).get(CONFIG_KEY)
    if settings is None:
        raise CheckpointError(f"{path}: expected the settings of its run, found none: it was not written by this command line")
    saved = {key: settings[key] for key in _SECTIONS_OF_A_RUN if key in settings}
    saved["trainer"] = {key: settings["trainer"][key] for key in _TRAINER_KEYS_OF_A_RUN if key in settings["trainer"]}
    for section in ("data", "model"):
        saved[section] = {key: value for key, value in saved[section].items() if key != "seed"}  # linked
    return saved


def _condensed(message: str) -> str:
    """A message of jsonargparse on one line, without Python's way of writing types; of a union, the branch that was meant."""
    if problem := re.search(r"Problem with given class_path.*\n.*", message):
        message = problem[0]
    return re.sub(r"<class '([\w.]+)'>", r"\1", " ".join(message.split())).replace("typing.", "")


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value and key != "env_kwargs":
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _differences(saved: dict[str, Any], typed: dict[str, Any]) -> list[str]:
    before = dict(_leaves(saved))
    return [
        f"{key}: {before[key]} -> {value}" for key, value in _leaves(typed) if key in before and before[key] != _listed(value)
    ]


def _refuse_fixed(saved: dict[str, Any], typed: dict[str, Any]) -> None:
    before, now = dict(_leaves(saved)), dict(_leaves(typed))
    for key in _FIXED_ON_RESUME:
        if key in now and _listed(now[key]) != before.get(key):
            raise ConfigError(f"{key}={now[key]}: the checkpoint's run has {before.get(key)}, which cannot change on resume")


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def quiet_lightning() -> None:
    """Silence what Lightning says about hardware, products and data loaders; its real warnings stay."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    for message in _IRRELEVANT_WARNINGS:
        warnings.filterwarnings("ignore", message)


def fail(message: str, code: int) -> NoReturn:
    """End the process with the error on standard error."""
    print(f"lit_ppo: error: {message.strip()}", file=sys.stderr)
    sys.exit(code)


def main(arguments: list[str] | None = None) -> None:
    """The entry point."""
    if arguments is not None:
        sys.argv[1:] = arguments
    for command in sys.argv[1:2]:
        known = [*_COMMANDS, "plot", "replay"]
        if command not in known and not command.startswith("-"):
            similar = difflib.get_close_matches(command, known, n=1)
            hint = f" (did you mean {similar[0]}?)" if similar else ""
            fail(f"{command}: expected one of {', '.join(known)}{hint}", exit_codes.USAGE)
    if sys.argv[1:2] == ["plot"]:
        from lit_ppo.plot import main as plot

        return plot(sys.argv[2:])
    if sys.argv[1:2] == ["replay"]:
        from lit_ppo.replay import main as replay

        return replay(sys.argv[2:])
    try:
        LitPPOCLI()
    except Exception as error:
        code = exit_codes.USAGE if isinstance(error, MisconfigurationException) else exit_codes.of(error)
        if code is None:
            raise
        fail(f"trainer: {error}" if isinstance(error, MisconfigurationException) else str(error), code)
