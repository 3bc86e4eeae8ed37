"""`python -m lit_ppo fit | validate | test`: LightningCLI with this project's classes, defaults and rules for checkpoints.

A typed setting wins over the checkpoint's, the checkpoint's over the preset's, the preset's over the default. Every expected
error ends in one line on standard error and a documented exit code.
"""

import atexit
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from lit_ppo import elastic, exit_codes, interrupts, standard_streams
from lit_ppo.bridge.faults import require_outside_environments
from lit_ppo.callbacks.graceful_exit import GracefulExit
from lit_ppo.callbacks.run_checkpoint import RunCheckpoint
from lit_ppo.callbacks.run_config import RunConfig
from lit_ppo.callbacks.run_place import place_run
from lit_ppo.callbacks.run_status import RunStatus
from lit_ppo.callbacks.run_summary import RunSummary
from lit_ppo.callbacks.stop_when_solved import StopWhenSolved
from lit_ppo.commands import DESCRIPTION, PROGRAM, TRAINING
from lit_ppo.commands.checkpoint_choice import choice_of_checkpoint, settings_from, settings_of_continuation
from lit_ppo.commands.lightning_output import quiet_lightning
from lit_ppo.commands.preset_choice import PresetChoice, chosen_preset
from lit_ppo.commands.run_place import RunPlace, is_first_rank, place_for
from lit_ppo.commands.training_errors import errors_of_construction, expected_errors, logger_errors
from lit_ppo.commands.training_options import (
    TRAINER_DEFAULTS,
    add_class_options,
    add_run_options,
    link_options,
    refuse_callbacks_of_every_run,
)
from lit_ppo.commands.typed_settings import typed_settings
from lit_ppo.compat_lightning import end_with_lost_ranks, join_ranks, option_names, parser_of, settings_of
from lit_ppo.data import RolloutDataModule
from lit_ppo.errors import ConfigError, RunInterrupted
from lit_ppo.exit_codes import fail
from lit_ppo.module import PPOModule
from lit_ppo.option_parser import HelpFormatter, OptionParser
from lit_ppo.resume_settings import checkpoint_at
from lit_ppo.run_directory import discard_unused
from lit_ppo.standard_streams import discard_unread_output, say
from lit_ppo.trainer_checks import check_ranks, refuse_flags

_EXAMPLES: Final = """examples:
  {program} fit --data.env_id=Acrobot-v1 --solved.threshold=-100
  {program} fit --config my.yaml --model.learning_rate=3e-4
  {program} fit --print_config > my.yaml
  {program} fit --ckpt_path=last --total_env_steps=100000
  {program} test --ckpt_path=best --data.test_episodes=1000"""
_DEFAULT_ENV_STEPS: Final = 1_000_000
_MOST_THREADS: Final = 1024  # torch crashes where the system does not give it as many as it asks for


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
        with expected_errors() if run else nullcontext():
            require_outside_environments(type(self).__name__)
        self._arguments, self._module_class, self._runs = args, module_class, run
        self._typed: dict[str, Any] = {}  # settings that were typed, without the defaults
        self._preset = PresetChoice()
        self._place: RunPlace | None = None
        if program is None:
            program = f"python {Path(sys.argv[0]).name}"
            if run and args is None:
                standard_streams.prepare()
                interrupts.advise(interrupts.advice_at_start(sys.argv[1:]))
                interrupts.install()
                elastic.end_with_launcher()
        of_commands = {
            name: {
                "usage": f"{program} {name} [options]",
                "description": TRAINING[name],
                "epilog": _EXAMPLES.format(program=program),
            }
            for name in self.subcommands()
        }
        with expected_errors() if run else nullcontext(), self._unused_place_removed():
            super().__init__(
                module_class,
                RolloutDataModule,
                save_config_callback=RunConfig,
                trainer_defaults={**TRAINER_DEFAULTS, "callbacks": [RunSummary(), RunStatus()]},
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

    @contextmanager
    def _unused_place_removed(self) -> Iterator[None]:
        """Inside, a run may be refused; then nothing of its directory stays."""
        try:
            yield
        finally:
            if self._place is not None and self._runs:
                self._place.end()

    def _given(self) -> list[str]:
        """Command and options."""
        return list(sys.argv[1:] if self._arguments is None else self._arguments)

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The options of the run as a whole."""
        add_run_options(parser)

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Ours first, the Trainer's last."""
        add_class_options(parser, self._module_class)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        link_options(parser)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Let the settings of a preset replace the defaults, unless a checkpoint's will.

        Settings that a Python program gives as a mapping are taken as they are, without a preset.
        """
        command = next((word for word in self._given() if word in TRAINING), None) if self._runs else None
        if (args is None or isinstance(args, list)) and (command is not None or not self._runs):
            self._typed = typed_settings(self.parser, self._given(), command)
            if self._typed.get("ckpt_path") is None:
                of_command = parser_of(self, command)
                self._preset = chosen_preset(self._typed, of_command.get_default("data.env_id"))
                if self._preset.preset is not None:
                    known = set(option_names(of_command))  # a user's module may lack some
                    standing_in = self._preset.preset.defaults_beside(self._typed)
                    of_command.set_defaults({key: value for key, value in standing_in.items() if f"--{key}" in known})
        super().parse_arguments(parser, args)

    def _parse_ckpt_path(self) -> None:
        """Let a checkpoint's settings replace the defaults, and refuse typed ones that cannot change on resume."""
        command = self.config.get("subcommand")
        if command is None:
            return
        config = self.config[command]
        choice = choice_of_checkpoint(command, config)
        if choice is None:
            return
        path = checkpoint_at(choice.path)
        if choice.about and is_first_rank():
            say(choice.about)
        if command == "fit":
            settings = settings_of_continuation(path, str(path), self._typed, self._module_class.makes_own_optimizer())
        else:
            settings = settings_from(path, self._typed)
        self.config = self.parser.parse_object({"subcommand": command, command: settings})
        self.config[command].ckpt_path = str(path)

    def before_instantiate_classes(self) -> None:
        """Record the preset, and give the run its length, the preset's if `trainer.max_epochs` is not given either."""
        quiet_lightning()
        config = self.config if self.subcommand is None else self.config[self.subcommand]
        if config.ckpt_path is None:
            config.preset = self._preset.name
        if config.trainer.max_epochs is None:
            config.trainer.max_epochs = -1  # unlimited
            if config.total_env_steps is None:
                preset = self._preset.preset
                length = _DEFAULT_ENV_STEPS if preset is None else preset.total_env_steps
                config.total_env_steps = config.model.total_env_steps = length
        if config.total_env_steps is not None and config.total_env_steps < 1:
            raise ConfigError(f"total_env_steps={config.total_env_steps}: expected at least 1")
        if config.total_env_steps is not None and config.total_env_steps >= 1 << 63:
            raise ConfigError(f"total_env_steps={config.total_env_steps}: expected less than 2^63")

    def instantiate_classes(self) -> None:
        """Make the objects, with the run's directory in their settings; the settings that are saved do not name it."""
        command = self.config.get("subcommand")
        settings = self.config if command is None else self.config[command]
        checkpoint = None if settings.ckpt_path is None else Path(settings.ckpt_path)
        self._place = place_for(command or "fit", settings, self._typed, checkpoint)
        if self._place.is_new and not self._runs:  # the program may make no run of the objects
            atexit.register(discard_unused, self._place.directory.absolute())
        placed = self._place.placed(settings)
        self._saved_config = self.config
        self.config = placed
        if command is not None:
            self.config = self._saved_config.clone()
            self.config[command] = placed
        with errors_of_construction():
            super().instantiate_classes()
        self.datamodule.require_ranks(self.trainer.world_size)
        place_run(self.trainer, self._place.directory)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        self.config = self._saved_config
        config = settings_of(self, "trainer", instantiated=True)
        callbacks = parser_of(self, self.subcommand).callback_keys
        typed = config.callbacks or []
        typed = typed if isinstance(typed, list) else [typed]
        refuse_callbacks_of_every_run(typed)
        has_bar = any(isinstance(callback, ProgressBar) for callback in typed)
        wanted_bar = False if has_bar else config.enable_progress_bar  # theirs in place of ours
        for key, wanted in {"progress": wanted_bar, "checkpoint": config.enable_checkpointing}.items():
            if wanted is False:  # Lightning would refuse the flag because of the callback
                callbacks.remove(key)
        defaults = {"devices": "auto", "num_nodes": 1, "strategy": "auto"}
        started = {name: value for name, value in elastic.trainer_options().items() if config[name] == defaults[name]}
        try:
            trainer = super().instantiate_trainer(**(started | kwargs))
        # ImportError where a package is missing, the others if SLURM has started another number of ranks
        except (MisconfigurationException, ImportError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"trainer (accelerator={config.accelerator}, devices={config.devices}): {reason}") from error
        check_ranks(trainer)
        end_with_lost_ranks()
        join_ranks(trainer)
        return trainer

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
        if self._preset.about and self.trainer.is_global_zero:
            say(self._preset.about)
        try:
            for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, RunCheckpoint):
                    callback.lock(self.trainer)
            with logger_errors():
                self.trainer.fit(**kwargs, ckpt_path=settings_of(self, "ckpt_path"))
        except RunInterrupted as interrupted:
            reason = str(interrupted)
        if interrupt.received is not None:
            discard_unread_output()  # else the line below or the flush at exit could wait for ever
            reason = reason or signal.Signals(interrupt.received).name
            code = exit_codes.of_signal(interrupt.received)
            if not self.trainer.is_global_zero:
                sys.exit(code)  # the first rank says it for all
            fail(interrupts.message(reason), code)

    def validate(self, **kwargs: Any) -> None:
        """Play greedy episodes and print their returns."""
        with logger_errors():
            self.trainer.validate(**kwargs, ckpt_path=settings_of(self, "ckpt_path"), verbose=False)
        self._print_results()

    def test(self, **kwargs: Any) -> None:
        """Play greedy episodes on test seeds and print their returns."""
        with logger_errors():
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
            is_solved = results.mean >= threshold and not self.datamodule.is_cut(results)
            rows.append((f"solved (mean >= {threshold:g})", "yes" if is_solved else "no"))
        width = max(len(name) for name, _ in rows)
        say(*(f"{name:<{width}}  {value:>8}" for name, value in rows))


def main() -> None:
    """Run the command in `sys.argv`, in a process that `__main__` has prepared."""
    LitPPOCLI(program=PROGRAM)
