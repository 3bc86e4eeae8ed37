"""The options of fit, validate and test: ours first, the Trainer's last."""

from collections.abc import Sequence
from typing import Any, Final

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.cli import LightningArgumentParser

from lit_ppo.callbacks.curve_export import CurveExport
from lit_ppo.callbacks.graceful_exit import GracefulExit
from lit_ppo.callbacks.greedy_evaluation import GreedyEvaluation
from lit_ppo.callbacks.run_checkpoint import RunCheckpoint
from lit_ppo.callbacks.run_progress import RunProgress
from lit_ppo.callbacks.stop_when_solved import StopWhenSolved
from lit_ppo.compat_lightning import remove_option
from lit_ppo.data import RolloutDataModule
from lit_ppo.errors import ConfigError
from lit_ppo.module import PPOModule
from lit_ppo.option_parser import add_verbatim_options
from lit_ppo.run_directory import RUN

TRAINER_DEFAULTS: Final[dict[str, Any]] = {
    "accelerator": "cpu",  # networks this small are slower on an accelerator
    "logger": {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": RUN, "name": "logs"}},
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}
# Options whose value is that of others too, which are options no more.
LINKED: Final = {"seed_everything": [("data", "seed"), ("model", "seed")], "total_env_steps": [("model", "total_env_steps")]}
_CALLBACKS: Final = {  # in the order in which they act
    "interrupt": (GracefulExit, "interrupt: how a signal ends the run"),
    "evaluation": (GreedyEvaluation, "evaluation: greedy episodes during training"),
    "solved": (StopWhenSolved, "solved: when the run ends early"),
    "curve": (CurveExport, "curve: the evaluation returns as JSON"),
    "progress": (RunProgress, "progress: one bar for the whole run, or a line from time to time"),
    "checkpoint": (RunCheckpoint, "checkpoint: best.ckpt and last.ckpt"),
}
_TITLES: Final = {
    "model": "model: networks and PPO update",
    "data": "data: environments and rollouts",
    "data.contract": "data.contract: rules for the environment's values",
}


def refuse_callbacks_of_every_run(typed: Sequence[Callback]) -> None:
    """Refuse a second callback of a kind that every run has; a progress bar takes the place of ours.

    Args:
        typed: Callbacks that were typed.

    Raises:
        ConfigError: Names the options of the one that is there.
    """
    for callback in typed:
        for key, (kind, _) in _CALLBACKS.items():
            if isinstance(callback, kind) and kind is not RunProgress:
                name = type(callback).__name__
                raise ConfigError(f"trainer.callbacks: {name}: every run has one; use its options, --{key}.*")


def add_run_options(parser: LightningArgumentParser) -> None:
    """Add the options of the run as a whole."""
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
        help="Settings that replace the defaults: a name that the command presets lists, or none. Default: the preset "
        "of the environment, if it has one. What is typed wins.",
    )
    run.add_argument(
        "--ckpt_path",
        type=str | None,
        default=None,
        help="Checkpoint to start from: last or best, of the run that was started or continued last; a run's name, such as "
        "3 or CartPole-v1/3; or a path. Its settings replace the defaults. Default of validate and test: best.",
    )
    run.add_argument(
        "--run",
        type=str | None,
        default=None,
        help="Name of the run, and of its directory. Default: the next number. With --ckpt_path=last or best: the run that is "
        "meant.",
    )
    run.add_argument(
        "--runs_dir",
        type=str | None,
        default=None,
        help="Directory of all runs; a run's is RUNS_DIR/<environment>/<run>, which a path in the settings may name as "
        "`{run}`. Default: runs, in trainer.default_root_dir.",
    )
    run.add_argument(
        "--trust_checkpoint",
        type=bool,
        default=False,
        help="Take all settings from a checkpoint that no run of its directory wrote, also those that name programs, paths or "
        "code, or lower a guard.",
    )
    run.add_argument(
        "--torch_threads",
        type=int,
        default=1,
        help="CPU threads of torch; more than 1 pays only for networks far larger than the default ones.",
    )


def add_class_options(parser: LightningArgumentParser, module_class: type[PPOModule]) -> None:
    """Add the options of module, data and callbacks, then those of the Trainer."""
    parser.add_lightning_class_args(module_class, "model")
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
    parser.set_defaults({f"trainer.{key}": value for key, value in TRAINER_DEFAULTS.items()})
    parser.set_defaults({"data.report_dir": f"{RUN}/reports"})


def link_options(parser: LightningArgumentParser) -> None:
    """Let one option be the value of several, and the module have the spaces of the data."""
    for source, targets in LINKED.items():
        for section, key in targets:
            parser.link_arguments(source, f"{section}.{key}")
    parser.link_arguments("data.spec", "model.spec", apply_on="instantiate")
    remove_option(parser, "--model.spec.help")  # left over from the argument that is a link now
