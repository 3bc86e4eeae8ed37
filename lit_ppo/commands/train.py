"""`python -m lit_ppo fit | validate | test`: LightningCLI with this project's classes, defaults and rules for checkpoints.

A typed setting wins over the checkpoint's, the checkpoint's over the preset's, the preset's over the default. Every expected
error ends in one line on standard error and a documented exit code.
"""

import logging
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final

import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger

from lit_ppo import elastic, exit_codes, interrupts, presets, standard_streams
from lit_ppo.callbacks.curve_export import CurveExport
from lit_ppo.callbacks.graceful_exit import GracefulExit
from lit_ppo.callbacks.greedy_evaluation import GreedyEvaluation
from lit_ppo.callbacks.run_checkpoint import RunCheckpoint
from lit_ppo.callbacks.run_config import RunConfig
from lit_ppo.callbacks.run_progress import RunProgress
from lit_ppo.callbacks.run_summary import RunSummary
from lit_ppo.callbacks.stop_when_solved import StopWhenSolved
from lit_ppo.commands import DESCRIPTION, PROGRAM, TRAINING
from lit_ppo.compat_lightning import option_names, parser_of, remove_option, settings_of
from lit_ppo.data import RolloutDataModule
from lit_ppo.errors import CheckpointError, ConfigError, RunInterrupted
from lit_ppo.exit_codes import fail
from lit_ppo.module import PPOModule
from lit_ppo.option_parser import HelpFormatter, OptionParser, add_verbatim_options, condensed
from lit_ppo.resume_settings import checkpoint_at, differences, refuse_fixed, resumed, saved_settings
from lit_ppo.standard_streams import discard_unread_output
from lit_ppo.trainer_checks import refuse_flags

_CALLBACKS: Final = {  # in the order in which they act
    "interrupt": (GracefulExit, "interrupt: how a signal ends the run"),
    "evaluation": (GreedyEvaluation, "evaluation: greedy episodes during training"),
    "solved": (StopWhenSolved, "solved: when the run ends early"),
    "curve": (CurveExport, "curve: the evaluation returns as JSON"),
    "progress": (RunProgress, "progress: one bar for the whole run, on a terminal only"),
    "checkpoint": (RunCheckpoint, "checkpoint: best.ckpt and last.ckpt"),
}
_TITLES: Final = {
    "model": "model: networks and PPO update",
    "data": "data: environments and rollouts",
    "data.contract": "data.contract: rules for the environment's values",
}
_TRAINER_DEFAULTS: Final[dict[str, Any]] = {
    "accelerator": "cpu",  # networks this small are slower on an accelerator
    "logger": {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "logs", "name": ""}},
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}
_EXAMPLES: Final = """examples:
  {program} fit --data.env_id=Acrobot-v1 --solved.threshold=-100
  {program} fit --config my.yaml --model.learning_rate=3e-4
  {program} fit --print_config > my.yaml
  {program} fit --ckpt_path=last --total_env_steps=100000
  {program} test --ckpt_path=best --data.test_episodes=1000"""
_DEFAULT_ENV_STEPS: Final = 1_000_000
_MOST_THREADS: Final = 1024  # torch crashes where the system does not give it as many as it asks for
_LINKED: Final = {"seed_everything": [("data", "seed"), ("model", "seed")], "total_env_steps": [("model", "total_env_steps")]}
_NOT_TYPED: Final = 2**62 - 1
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


class LitPPOCLI(LightningCLI):
    """LightningCLI with this project's classes, defaults, links and rules for checkpoints.

    `LitPPOCLI(MyModule)` in a file of one's own makes that file a program with the commands fit, validate and test. An expected
    error of a command ends the process with one line and a documented exit code.

    Args:
        module_class: `PPOModule`, or a subclass; the arguments of its constructor are options too.
        args: Command and options; None for those of the process.
        run: Whether to run a command. Otherwise the objects are made only, and errors are raised.
        program: Name of the program in its help. None for that of the process, whose signals and standard streams are then
            handled as in `python -m lit_ppo`.
    """

    def __init__(
        self,
        module_class: type[PPOModule] = PPOModule,
        args: ArgsType = None,
        run: bool = True,
        *,
        program: str | None = None,
    ) -> None:
        self._arguments, self._module_class, self._runs = args, module_class, run
        self._typed: dict[str, Any] = {}  # settings that were typed, without the defaults
        self._preset: presets.Preset | None = None  # whose settings stand in for the defaults
        self._about_preset = ""  # first line of output
        if program is None:
            program = f"python {Path(sys.argv[0]).name}"
            if run and args is None:
                standard_streams.prepare()
                interrupts.advise(interrupts.advice_at_start(sys.argv[1:]))
                interrupts.install()
        of_commands = {
            name: {
                "usage": f"{program} {name} [options]",
                "description": TRAINING[name],
                "epilog": _EXAMPLES.format(program=program),
            }
            for name in self.subcommands()
        }
        with _expected_errors() if run else nullcontext():
            super().__init__(
                module_class,
                RolloutDataModule,
                save_config_callback=RunConfig,
                trainer_defaults={**_TRAINER_DEFAULTS, "callbacks": [RunSummary()]},
                seed_everything_default=0,
                parser_kwargs={
                    "prog": program,
                    "description": DESCRIPTION,
                    "formatter_class": HelpFormatter,
                    **of_commands,
                },
                parser_class=OptionParser,
                args=args,
                run=run,
                auto_configure_optimizers=False,
                # else a subclass's checkpoint would name the code that rebuilds it, and Lightning would import that
                load_from_checkpoint_support=False,
            )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The training commands and the arguments that they skip; only the command that is asked for is worked out."""
        asked = self._given()[:1]
        return {
            # results are printed as our own table; checkpoints are never unpickled; --ckpt_path is ours
            command: LightningCLI.subcommands()[command] | {"verbose", "weights_only", "ckpt_path"}
            for command in (asked if set(asked) & set(TRAINING) else TRAINING)
        }

    def _given(self) -> list[str]:
        """Command and options."""
        return list(sys.argv[1:] if self._arguments is None else self._arguments)

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The options of the run as a whole."""
        run = parser.add_argument_group("run")
        run.add_argument("--seed_everything", type=int, default=0, help="Seed of weights, episodes, actions and minibatches.")
        run.add_argument(
            "--total_env_steps",
            type=int | None,
            default=None,
            help="Length of the run in env steps, over which learning rate and clip range decay. Default: trainer.max_epochs "
            "rollouts if that is given, else that of the preset, else 1,000,000. trainer.max_epochs, max_steps and max_time "
            "can end the run earlier.",
        )
        run.add_argument(
            "--preset",
            type=str | None,
            default=None,
            help="Settings that stand in for the defaults: a name that the command presets lists, or none. Default: the preset "
            "of the environment, if it has one. What is typed wins.",
        )
        run.add_argument(
            "--ckpt_path",
            type=str | None,
            default=None,
            help="Checkpoint to start from: last or best, in checkpoint.dirpath, or a path. Its settings replace the defaults.",
        )
        run.add_argument(
            "--torch_threads",
            type=int,
            default=1,
            help="CPU threads of torch; more than 1 pays only for networks far larger than the default ones.",
        )

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Ours first, the Trainer's last."""
        parser.add_lightning_class_args(self._module_class, "model")
        skipped: set[str | int] = {"env_kwargs", "wrappers"}  # added below
        parser.add_class_arguments(RolloutDataModule, "data", fail_untyped=False, sub_configs=True, skip=skipped)
        assert parser.groups is not None
        groups: dict[str, Any] = parser.groups
        add_verbatim_options(groups["data"])
        for key, title in _TITLES.items():
            groups[key].title = title
        for key, (callback, title) in _CALLBACKS.items():
            parser.add_lightning_class_args(callback, key)
            groups[key].title = title
        parser.add_lightning_class_args(Trainer, "trainer")
        groups["trainer"].title = "trainer: Lightning's options"
        parser.set_defaults({f"trainer.{key}": value for key, value in _TRAINER_DEFAULTS.items()})

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for source, targets in _LINKED.items():
            for section, key in targets:
                parser.link_arguments(source, f"{section}.{key}")
        parser.link_arguments("data.spec", "model.spec", apply_on="instantiate")
        remove_option(parser, "--model.spec.help")  # left over from the argument that is a link now

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Let the settings of a preset replace the defaults, unless a checkpoint's will.

        Settings that a Python program gives as a mapping are taken as they are, without a preset.
        """
        command = next((word for word in self._given() if word in TRAINING), None) if self._runs else None
        if (args is None or isinstance(args, list)) and (command is not None or not self._runs):
            self._typed = self._parse_typed(command)
            if self._typed.get("ckpt_path") is None:
                of_command = parser_of(self, command)
                self._choose_preset(of_command.get_default("data.env_id"))
                if self._preset is not None:
                    known = set(option_names(of_command))  # a user's module may lack some
                    standing_in = self._preset.defaults_beside(self._typed)
                    of_command.set_defaults({key: value for key, value in standing_in.items() if f"--{key}" in known})
        super().parse_arguments(parser, args)

    def _choose_preset(self, default_env_id: str) -> None:
        """Take the typed preset, or that of the environment.

        Raises:
            ConfigError: There is no preset of the typed name.
        """
        name, data = self._typed.get("preset"), self._typed.get("data", {})
        if name is not None:
            self._preset = None if name == presets.NONE else presets.preset_named(name)
        elif (preset := presets.preset_for(data.get("env_id", default_env_id))) is not None:
            if changed := preset.changed_by(data):
                self._about_preset = (
                    f"preset: none, since that of {preset.name} is for another data.{changed[0]}; "
                    f"--preset={preset.name} takes it all the same"
                )
            else:
                self._preset = preset
        if self._preset is not None:
            self._about_preset = f"preset: {self._preset.name}, in place of the defaults (--preset=none for these)"

    def _parse_ckpt_path(self) -> None:
        """Let a checkpoint's settings replace the defaults, and refuse typed ones that cannot change on resume."""
        command = self.config.get("subcommand")
        given = self.config[command].ckpt_path if command else None
        if command == "fit" and elastic.is_restart():
            directory = Path(self.config[command].checkpoint.dirpath)
            given = "last" if elastic.was_written_meanwhile(directory / "last.ckpt") else given
        if given is None:
            if command in ("validate", "test"):
                raise ConfigError(f"ckpt_path: {command} needs a checkpoint; use --ckpt_path=best")
            return
        path = checkpoint_at(given, Path(self.config[command].checkpoint.dirpath))
        saved, typed = saved_settings(path), self._typed
        if command == "fit":
            interrupts.advise(interrupts.continue_from(given))
            refuse_fixed(saved, typed)
            for line in differences(saved, typed, self._module_class.makes_own_optimizer()):
                print(f"changed since {path}: {line}", file=sys.stderr)
        self.config = self.parser.parse_object({"subcommand": command, command: resumed(saved, typed)})
        self.config[command].ckpt_path = str(path)

    def _parse_typed(self, command: str | None) -> dict[str, Any]:
        """The settings that were typed, on the command line or in configuration files, without the defaults."""
        arguments = [argument for argument in self._given() if not argument.startswith("--print_config")]
        # links need their sources, so these get a value first, which a typed one replaces
        first = 0 if command is None else arguments.index(command) + 1
        arguments[first:first] = [f"--{source}={_NOT_TYPED}" for source in _LINKED]
        parsed = self.parser.parse_args(arguments, defaults=False)
        # as plain data, as a checkpoint holds the settings: functions by their import paths
        settings = yaml.safe_load(self.parser.dump(parsed, skip_none=False, skip_validation=True))
        typed: dict[str, Any] = settings if command is None else settings[command]
        typed.pop("config", None)
        if typed.get("preset") is None:  # null, as a printed configuration file has it, is that of the environment
            typed.pop("preset", None)
        for source, targets in _LINKED.items():
            for section, key in targets:
                typed.get(section, {}).pop(key, None)
            if typed[source] == _NOT_TYPED:
                del typed[source]
        return typed

    def before_instantiate_classes(self) -> None:
        """Record the preset, and give the run its length, the preset's if `trainer.max_epochs` is not given either."""
        quiet_lightning()
        config = self.config if self.subcommand is None else self.config[self.subcommand]
        if config.ckpt_path is None:
            config.preset = presets.NONE if self._preset is None else self._preset.name
        if config.trainer.max_epochs is None:
            config.trainer.max_epochs = -1  # unlimited
            if config.total_env_steps is None:
                length = _DEFAULT_ENV_STEPS if self._preset is None else self._preset.total_env_steps
                config.total_env_steps = config.model.total_env_steps = length
        if config.total_env_steps is not None and config.total_env_steps < 1:
            raise ConfigError(f"total_env_steps={config.total_env_steps}: expected at least 1")
        if config.total_env_steps is not None and config.total_env_steps >= 1 << 63:
            raise ConfigError(f"total_env_steps={config.total_env_steps}: expected less than 2^63")

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except ConfigError:
            raise
        except ValueError as error:  # of jsonargparse, for a class that raises, such as a logger that is not installed
            raise ConfigError(condensed(str(error))) from error
        except (MemoryError, OverflowError, RuntimeError, TypeError) as error:
            if not isinstance(error, MemoryError) and not re.search("can't allocate memory|[Oo]verflow", str(error)):
                raise
            reason = " ".join(str(error).split())
            raise ConfigError(f"model, data: expected sizes that this machine has the memory for: {reason[:200]}") from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = settings_of(self, "trainer", instantiated=True)
        callbacks = parser_of(self, self.subcommand).callback_keys
        typed = config.callbacks or []
        has_bar = any(isinstance(callback, ProgressBar) for callback in (typed if isinstance(typed, list) else [typed]))
        wanted_bar = False if has_bar else config.enable_progress_bar  # theirs in place of ours
        for key, wanted in {"progress": wanted_bar, "checkpoint": config.enable_checkpointing}.items():
            if wanted is False:  # Lightning would refuse the flag because of the callback
                callbacks.remove(key)
        try:
            return super().instantiate_trainer(**kwargs)
        except MisconfigurationException as error:
            raise ConfigError(f"trainer (accelerator={config.accelerator}, devices={config.devices}): {error}") from error

    def _set_seed(self) -> None:
        """Nothing here draws from the global streams; they are seeded for what a user's own code may draw."""
        seed, num_threads = settings_of(self, "seed_everything"), settings_of(self, "torch_threads")
        if not 0 <= seed < 1 << 32:
            raise ConfigError(f"seed_everything={seed}: expected 0 to 2^32 - 1")
        if num_threads < 1:
            raise ConfigError(f"torch_threads={num_threads}: expected at least 1")
        if num_threads > _MOST_THREADS:
            raise ConfigError(f"torch_threads={num_threads}: expected at most {_MOST_THREADS}")
        seed_everything(seed, workers=True, verbose=False)
        torch.set_num_threads(num_threads)

    def fit(self, **kwargs: Any) -> None:
        """Train; a run that a signal ended exits with that signal's code."""
        refuse_flags(self.trainer)  # Lightning would refuse some itself, without saying what to use instead
        interrupt: GracefulExit = settings_of(self, "interrupt", instantiated=True)
        reason = ""
        if self._about_preset and self.trainer.is_global_zero:
            print(self._about_preset, flush=True)
        try:
            for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, RunCheckpoint):
                    callback.lock(self.trainer)
            with _logger_errors():
                self.trainer.fit(**kwargs, ckpt_path=settings_of(self, "ckpt_path"))
        except RunInterrupted as interrupted:
            reason = str(interrupted)
        if interrupt.received is not None:
            discard_unread_output()  # else the line below or the flush at exit could wait for ever
            reason = reason or signal.Signals(interrupt.received).name
            fail(interrupts.message(reason), exit_codes.of_signal(interrupt.received))

    def validate(self, **kwargs: Any) -> None:
        """Play greedy episodes and print their returns."""
        with _logger_errors():
            self.trainer.validate(**kwargs, ckpt_path=settings_of(self, "ckpt_path"), verbose=False)
        self._print_results()

    def test(self, **kwargs: Any) -> None:
        """Play greedy episodes on test seeds and print their returns."""
        with _logger_errors():
            self.trainer.test(**kwargs, ckpt_path=settings_of(self, "ckpt_path"), verbose=False)
        self._print_results()

    def _print_results(self) -> None:
        if not self.trainer.is_global_zero:
            return
        results = self.datamodule.results
        solved: StopWhenSolved = settings_of(self, "solved", instantiated=True)
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


@contextmanager
def _logger_errors() -> Iterator[None]:
    """Turn a logger's failure to write into an expected error.

    Raises:
        CheckpointError: An OSError was raised in a logger.
    """
    try:
        yield
    except OSError as error:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            logger = frame.f_locals.get("self")
            if isinstance(logger, Logger):
                raise CheckpointError(f"trainer.logger.save_dir={logger.save_dir}: cannot be written: {error}") from error
        raise


def quiet_lightning() -> None:
    """Silence Lightning's remarks about hardware, products and data loaders; its real warnings stay, and what was asked for."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    for name in ("callbacks", "profilers"):  # the model summary, a stop for a reason, the report of a profiler
        logging.getLogger(f"lightning.pytorch.{name}").setLevel(logging.INFO)
    for message in _IRRELEVANT_WARNINGS:
        warnings.filterwarnings("ignore", message)


@contextmanager
def _expected_errors() -> Iterator[None]:
    """End the process with one line and a documented exit code if an expected error is raised, also by standard output."""
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except MisconfigurationException as error:
        fail(f"trainer: {error}", exit_codes.USAGE)
    except Exception as error:
        code = exit_codes.of(error)
        if code is not None:
            fail(str(error), code)
        if (part := _part_of_lightning(error)) is None:
            raise
        fail(f"{part}: {condensed(str(error))}", exit_codes.USAGE)


def main() -> None:
    """Run the command in `sys.argv`, in a process that `__main__` has prepared."""
    LitPPOCLI(program=PROGRAM)


def _part_of_lightning(error: Exception) -> str | None:
    """Which callback, logger or profiler of Lightning's raised the error, as `trainer.callbacks: EarlyStopping`."""
    frame = [frame for frame, _ in traceback.walk_tb(error.__traceback__)][-1]
    kind = re.match(r"lightning\.pytorch\.(callbacks|loggers|profilers)\.", frame.f_globals.get("__name__", ""))
    if kind is None or not isinstance(error, RuntimeError | ValueError | ImportError):
        return None
    owner = frame.f_locals.get("self")
    return f"trainer.{kind[1].removesuffix('s') if kind[1] != 'callbacks' else kind[1]}: {type(owner).__name__}"
