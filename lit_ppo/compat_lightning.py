"""Every use that lit_ppo makes of Lightning's private or undocumented names, written against lightning 2.6.6.

A new release of Lightning may change them without notice. `tests/test_compat.py` tests that each does what it is used for, and
that a run without it still trains: it is slower, or lacks what the function here adds to Lightning.
"""

import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, RichProgressBar, WeightAveraging
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden

from lit_ppo import exit_codes, interrupts
from lit_ppo.compat_torch import backward_hook_owner
from lit_ppo.errors import RankLost
from lit_ppo.ranks import Ranks, attempt_name

if TYPE_CHECKING:  # these would import jsonargparse, which the Python API does not need
    from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

_BACKWARD_HOOKS: Final = ("on_before_backward", "on_after_backward")
_STEP_HOOK: Final = "on_before_optimizer_step"
# On progress bars of Lightning, which have room for a few numbers with short names.
_ON_PROGRESS_BARS: Final = {"eval/return": "eval", "episodes/return": "return"}
_STORE_LIMIT: Final = timedelta(seconds=20)  # to reach torchrun's rendezvous
_GROUP_LIMIT: Final = timedelta(minutes=30)  # torch's own
_OF_EVALUATIONS: Final = "eval/"  # how the names of evaluation metrics begin


def backward_listener(trainer: Trainer, module: LightningModule) -> str | None:
    """Name of the first callback, module, flag or hook that needs the backward pass; None if there is none.

    Lightning has no public way to ask whether a hook is overridden (`is_overridden`), or whether anomalies are detected
    (`trainer._detect_anomaly`) before it trains.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if any(is_overridden(hook, callback, Callback) for hook in _BACKWARD_HOOKS):
            return type(callback).__name__
    if any(is_overridden(hook, module, LightningModule) for hook in (*_BACKWARD_HOOKS, "backward")):
        return type(module).__name__
    if getattr(trainer, "_detect_anomaly", torch.is_anomaly_enabled()):
        return "trainer.detect_anomaly"
    owner = backward_hook_owner(module)
    return None if owner is None else f"a hook on {owner}"


def needs_optimizer_hooks(trainer: Trainer, module: LightningModule) -> bool:
    """Whether a callback, strategy, precision plugin or profiler needs Lightning's optimizer hooks.

    The hooks cost a tenth of an update, and Lightning calls them whether or not they do anything.
    """
    return (
        backward_listener(trainer, module) is not None
        or any(is_overridden(_STEP_HOOK, callback, Callback) for callback in trainer.callbacks)  # type: ignore[attr-defined]
        or is_overridden(_STEP_HOOK, module, LightningModule)
        or not isinstance(trainer.strategy, SingleDeviceStrategy | RankStrategy)
        or type(trainer.precision_plugin) is not Precision
        or type(trainer.profiler) is not PassThroughProfiler  # type: ignore[attr-defined]
    )


def step_without_hooks(trainer: Trainer, optimizer: LightningOptimizer, closure: Callable[[], Any] | None = None) -> None:
    """Step the optimizer and count the step in `trainer.global_step`, without the hooks of `LightningOptimizer.step`.

    Lightning counts the steps of manual optimisation in `optim_step_progress`, and only its own `step` increments it.

    Args:
        trainer: Whose steps are counted.
        optimizer: Lightning's wrapper of the optimizer.
        closure: As in `torch.optim.Optimizer.step`.
    """
    loop: Any = getattr(trainer.fit_loop.epoch_loop, "manual_optimization", None)
    progress = getattr(loop, "optim_step_progress", None)
    if progress is None:
        optimizer.step(closure)
        return
    progress.increment_ready()
    if closure is None:
        optimizer.optimizer.step()
    else:
        optimizer.optimizer.step(closure)
    progress.increment_completed()


def epochs_made(trainer: Trainer) -> int:
    """Updates that the Trainer has counted, also in earlier fits."""
    total: Any = trainer.fit_loop.epoch_progress.total
    return cast(int, total.processed)


def is_restoring(trainer: Trainer) -> bool:
    """True while a checkpoint is restored only in part: optimizers and loops are restored after `on_fit_start`."""
    return bool(trainer._checkpoint_connector._loaded_checkpoint)


def averages_weights(trainer: Trainer) -> bool:
    """True if a WeightAveraging callback replaces the trained weights when training ends."""
    return any(isinstance(callback, WeightAveraging) for callback in trainer.callbacks)  # type: ignore[attr-defined]


class TrainingState(NamedTuple):
    """Copy of the state at an update boundary that the next update changes."""

    update: int  # number of the next update
    parameters: dict[str, Any]
    optimizers: list[Any]
    schedulers: list[Any]
    optimizer_steps: dict[str, Any]  # Lightning's counts


def training_state(trainer: Trainer, module: LightningModule, update: int) -> TrainingState:
    """The state of this moment, at the boundary before an update."""
    progress = trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
    schedulers = [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs]
    optimizers = [optimizer.state_dict() for optimizer in trainer.optimizers]
    return TrainingState(update, *deepcopy((dict(module.state_dict()), optimizers, schedulers, progress.state_dict())))


def move_to_boundary(checkpoint: dict[str, Any], epochs: int, env_steps: int, state: TrainingState | None) -> None:
    """Let Lightning's part of a checkpoint be that of the newest update boundary, as it is saved at the end of an epoch.

    Args:
        checkpoint: As Lightning has made it, at any moment.
        epochs: Updates up to the boundary, as the Trainer counts them.
        env_steps: Transitions collected up to the boundary.
        state: The training state there; None if it has not changed since.
    """
    if state is not None:
        # where a WeightAveraging callback puts the weights that learn
        learning = "current_model_state" if "current_model_state" in checkpoint else "state_dict"
        checkpoint[learning], checkpoint["optimizer_states"] = state.parameters, state.optimizers
        checkpoint["lr_schedulers"] = state.schedulers
    loop = checkpoint["loops"]["fit_loop"]
    steps = "epoch_loop.manual_optimization.optim_step_progress"
    if state is not None:
        loop[steps] = state.optimizer_steps
    completed, in_epoch = max(epochs - 1, 0), min(epochs, 1)
    made = {"ready": epochs, "completed": epochs, "started": epochs, "processed": epochs}
    loop["epoch_progress"] = {"total": {**made, "completed": completed}, "current": {**made, "completed": completed}}
    loop["epoch_loop.batch_progress"] = {
        "total": made,
        "current": dict.fromkeys(made, in_epoch),
        "is_last_batch": bool(in_epoch),
    }
    loop["epoch_loop.state_dict"] = {"_batches_that_stepped": env_steps}
    checkpoint["epoch"], checkpoint["global_step"] = completed, loop[steps]["total"]["completed"]


class RankStrategy(DDPStrategy):
    """The processes of Lightning's DDP without its wrapper, which would average gradients that we sum ourselves.

    What Lightning broadcasts is sent as JSON: nothing is unpickled.
    """

    ranks: Ranks

    def configure_ddp(self) -> None:
        """Nothing: the module stays as it is."""

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        messages = self.ranks.gather_bytes(json.dumps(obj, default=os.fspath).encode())
        return json.loads(messages[src])

    def barrier(self, *args: Any, **kwargs: Any) -> None:
        self.ranks.gather(torch.zeros(1))


def rank_strategy_of(trainer: Trainer) -> RankStrategy | None:
    """The strategy of a run with ranks, made of Lightning's DDP at the first call; None for another strategy.

    What a subclass of DDP says of devices, such as Ray Train's, stays.

    Lightning looks every 5 s for a process of its own that has failed, and then kills this one, without an exit code of ours
    (`_ChildProcessObserver`); a rank sees by itself that another was lost.
    """
    strategy: Any = trainer.strategy
    if not isinstance(strategy, DDPStrategy):
        return None
    if not isinstance(strategy, RankStrategy):
        as_any: Any = strategy
        as_any.__class__ = type("RankStrategy", (RankStrategy, type(strategy)), {})
        as_any.ranks = Ranks(trainer.world_size, trainer.global_rank)
        for thread in threading.enumerate():
            if type(thread) is _observer():
                thread._finished = True  # type: ignore[attr-defined]
    return cast(RankStrategy, strategy)


def _observer() -> Any:
    """Lightning's class of the thread that looks after the ranks that it has started; None if this release has none."""
    try:
        from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
    except ImportError:
        return None
    return _ChildProcessObserver


def end_with_lost_ranks() -> None:
    """If a rank ends before the ranks have met, let Lightning's observer end the first one with a line and an exit code.

    It would kill it without a word.
    """

    def end(observer: Any) -> None:
        for process in observer._child_processes:
            process.kill()
        interrupts.end_with("a rank has ended before the ranks had met", exit_codes.RANK)

    if observer := _observer():
        observer._terminate_all = end


def join_ranks(trainer: Trainer) -> None:
    """Make the process group of ranks that torchrun started, under a name of this attempt; Lightning finds it.

    torch (2.13) lets the ranks meet in the store of torchrun's rendezvous, as it is. After a restart, they could find there the
    addresses of ranks that are gone, and wait for them for half an hour.

    Raises:
        RankLost: The store cannot be reached: torchrun has ended before this rank could see that.
    """
    strategy: Any = trainer.strategy
    has_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True)
    if not (has_agent and isinstance(strategy, DDPStrategy)) or dist.is_initialized():
        return
    rank, count = trainer.global_rank, trainer.world_size
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    limit: Any = getattr(strategy, "_timeout", _GROUP_LIMIT)
    backend = strategy.process_group_backend or dist.get_default_backend_for_device(strategy.root_device)
    public: Any = dist  # torch's stubs leave the stores out
    try:  # the store is there before any rank is started
        store = public.TCPStore(address, port, is_master=False, timeout=_STORE_LIMIT, wait_for_workers=False)
        store.set_timeout(limit)
        attempt = public.PrefixStore(f"lit_ppo/{attempt_name(store, rank, count)}", store)
        dist.init_process_group(backend, store=attempt, rank=rank, world_size=count, timeout=limit)
    except dist.DistError as error:
        reason = str(error).partition("\n")[0]
        raise RankLost(f"the rendezvous of torchrun at {address}:{port} cannot be reached: {reason}") from error


def unfit_for_ranks(trainer: Trainer) -> str | None:
    """Why the strategy of the Trainer cannot be that of several ranks; None if it can."""
    strategy: Any = trainer.strategy
    if not isinstance(strategy, DDPStrategy):
        return f"expected ddp, got {type(strategy).__name__}"
    if (method := getattr(strategy, "_start_method", "popen")) != "popen":
        return f"expected processes started anew (ddp), got start_method={method}"
    if any(getattr(strategy, name, None) is not None for name in ("_ddp_comm_hook", "_model_averaging_period")):
        return "expected ddp without ddp_comm_hook and model_averaging_period, which would be ignored"
    return None


def end_with_keyboard_interrupt(trainer: Trainer, interrupt: KeyboardInterrupt) -> None:
    """Let the stage that ends raise what has interrupted it, once all of it is torn down; Lightning ends the process instead.

    With ranks that Lightning has started, it does, since it must kill them.
    """
    connector = trainer._signal_connector
    restore = connector.teardown

    def restore_and_raise() -> None:  # the last that is called before `sys.exit`
        del connector.teardown
        restore()
        raise interrupt

    if trainer.strategy.launcher is None:
        connector.teardown = restore_and_raise  # type: ignore[method-assign]


def attached_trainer(module: LightningModule) -> Trainer | None:
    """The Trainer that uses a module, if any; `module.trainer` raises if there is none."""
    try:
        return module.trainer if module.fabric is None else None
    except RuntimeError:
        return None


def publish_metrics(trainer: Trainer, values: Mapping[str, float]) -> None:
    """Put metrics where `self.log` puts them, for callbacks, Lightning's progress bars and `trainer.logged_metrics`.

    `self.log` costs 0.5 ms for each number, this some 20 us for all of them. Nothing goes to the loggers.
    """
    tensors = dict(zip(values, torch.tensor(list(values.values()), dtype=torch.float64).unbind(), strict=True))
    trainer.callback_metrics.update(tensors)
    trainer.logged_metrics.update(tensors)
    trainer.progress_bar_metrics.update({short: values[name] for name, short in _ON_PROGRESS_BARS.items() if name in values})


def hide_missing_length(trainer: Trainer) -> None:
    """Let a RichProgressBar of Lightning say `Epoch 7` where the number of epochs is not limited; it says `Epoch 7/-2`."""
    if trainer.max_epochs == -1:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, RichProgressBar):
                callback._get_train_description = lambda current_epoch: f"Epoch {current_epoch}"  # type: ignore[method-assign]


def log_over_env_steps(trainer: Trainer, env_steps: Callable[[], int]) -> None:
    """Make env steps the x axis of everything that Lightning logs during fit: `self.log`, LearningRateMonitor, and others.

    Args:
        trainer: Whose metrics are logged.
        env_steps: Env steps of the run so far.
    """
    loop: Any = trainer.fit_loop.epoch_loop
    # the setter does nothing: Lightning counts batches there, and restores their number from a checkpoint
    count = property(lambda self: env_steps(), lambda self, batches: None)
    loop.__class__ = type("LoopOverEnvSteps", (type(loop),), {"_batches_that_stepped": count})


def monitor_after_evaluations(trainer: Trainer) -> None:
    """Let callbacks that monitor an evaluation look at it when it is new, instead of at the end of every update.

    Otherwise the patience of EarlyStopping would count updates, and ModelCheckpoint would take weights for evaluated that are
    not. Their switches are Lightning's for runs that validate less often than once an epoch.
    """
    for callback in _monitors_of_evaluations(trainer):
        if isinstance(callback, EarlyStopping):
            callback._check_on_train_epoch_end = False
        elif getattr(callback, "_save_on_train_epoch_end", None) is None:
            callback._save_on_train_epoch_end = False


def tell_of_evaluation(trainer: Trainer, module: LightningModule) -> None:
    """Let callbacks that monitor an evaluation look at the new one."""
    for callback in _monitors_of_evaluations(trainer):
        callback.on_validation_end(trainer, module)


def _monitors_of_evaluations(trainer: Trainer) -> list[EarlyStopping | ModelCheckpoint]:
    return [
        callback
        for callback in trainer.callbacks  # type: ignore[attr-defined]
        if isinstance(callback, EarlyStopping | ModelCheckpoint) and (callback.monitor or "").startswith(_OF_EVALUATIONS)
    ]


@contextmanager
def averaged_weights(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """Inside, the module has the weights that a checkpoint gets: those of a WeightAveraging callback, if there is one."""
    averages = [callback for callback in trainer.callbacks if isinstance(callback, WeightAveraging)]  # type: ignore[attr-defined]
    for average in averages:
        average.on_validation_epoch_start(trainer, module)
    try:
        yield
    finally:
        for average in averages:
            average.on_validation_epoch_end(trainer, module)


def save_checkpoint(callback: ModelCheckpoint, trainer: Trainer, path: str) -> None:
    """Write a checkpoint and tell the loggers, as `ModelCheckpoint` does; `trainer.save_checkpoint` does not tell them."""
    getattr(callback, "_save_checkpoint", lambda trainer, path: trainer.save_checkpoint(path))(trainer, path)


def settings_of(cli: "LightningCLI", key: str, *, instantiated: bool = False) -> Any:
    """The settings under `key` of the command that runs, or the objects made of them.

    `LightningCLI` keeps them under the subcommand's name, or at the top if it runs no subcommand (`run=False`).
    """
    config = cli.config_init if instantiated else cli.config
    return config.get(str(cli.subcommand), config).get(key)


def parser_of(cli: "LightningCLI", command: str | None) -> "LightningArgumentParser":
    """The parser of a command, or of a program that runs none; its `callback_keys` decide which callbacks the Trainer gets."""
    if command is None:
        return cli.parser
    subparsers = next(action.choices for action in cli.parser._actions if isinstance(action.choices, dict))
    return cast("LightningArgumentParser", subparsers[command])


def option_names(parser: "LightningArgumentParser") -> Iterator[str]:
    """Every option of a parser and of its subcommands' parsers, such as `--model.gamma`.

    argparse has no public list of the options of a parser (`_actions`).
    """
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action.choices, dict):  # the subcommands' parsers
            for subparser in action.choices.values():
                yield from option_names(subparser)


def remove_option(parser: "LightningArgumentParser", option: str) -> None:
    """Remove an option that jsonargparse has added to a parser; argparse has no public way."""
    action = parser._option_string_actions.pop(option)
    parser._actions.remove(action)
    for group in parser._action_groups:
        if action in group._group_actions:
            group._group_actions.remove(action)
