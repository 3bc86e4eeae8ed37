"""Canaries: every private name of torch and Lightning that lit_ppo uses still exists and still does what it is used for.

If one of these tests fails after an upgrade, the library has changed, and the function named in the message has to follow.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from copy import deepcopy
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from jsonargparse import ArgumentError
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from lit_ppo import compat_lightning, compat_torch, exit_codes, interrupts
from lit_ppo.compat_torch import Float64Buffers, backward_hook_owner, clip_gradients, weight_and_bias
from lit_ppo.data import RolloutDataModule
from lit_ppo.errors import RankLost
from lit_ppo.module import PPOModule
from tests.runs import bare_trainer, parameters, same, small_data, small_module
from tests.specs import vector_spec

# -- a release that lacks one of them


@pytest.mark.slow
def test_run_without_one_of_the_private_names_is_the_same_run() -> None:
    command = [sys.executable, "-m", "tests.other_release"]
    outcomes = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert len(outcomes) > 20 and len(outcomes["nothing"]) == 64  # a digest
    assert {name: outcome for name, outcome in outcomes.items() if outcome != outcomes["nothing"]} == {}


def test_package_that_is_not_there_is_not_deferred(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat_torch, "_NAME", "torch._dynamo_of_another_release")
    compat_torch.defer_dynamo()
    assert "torch._dynamo_of_another_release" not in sys.modules


def test_hooks_that_are_kept_elsewhere_may_be_there() -> None:
    class Elsewhere(nn.Linear):
        def __getattribute__(self, name: str) -> Any:
            if name == "_backward_hooks":
                raise AttributeError(name)
            return super().__getattribute__(name)

    assert backward_hook_owner(nn.Sequential(nn.Linear(1, 1), Elsewhere(1, 1))) == "1"


# -- torch


def in_a_new_process(code: str) -> str:
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, f"compat_torch.defer_dynamo: {run.stderr}"
    return run.stdout


def test_python_api_defers_dynamo_until_something_is_compiled() -> None:
    stages = in_a_new_process(
        """
import sys, warnings
import lit_ppo

def stage():
    print(type(sys.modules.get("torch._dynamo")).__name__, end=" ")

lit_ppo.PPOModule, lit_ppo.RolloutDataModule, lit_ppo.RunCheckpoint
stage()
import torch
weight = torch.nn.Parameter(torch.ones(2))
optimizer = torch.optim.Adam([weight])
weight.sum().backward()
optimizer.step()
optimizer.zero_grad()
stage()
warnings.simplefilter("ignore")
assert torch.compile(lambda x: 2 * x, backend="eager")(torch.ones(2)).tolist() == [2, 2]
stage()
assert torch._dynamo is sys.modules["torch._dynamo"] and torch._dynamo.OptimizedModule.__module__.startswith("torch.")
"""
    )
    assert stages.split() == ["_StandIn", "_StandIn", "module"]


def test_submodule_of_dynamo_brings_the_real_package() -> None:
    code = (
        "import lit_ppo; lit_ppo.PPOModule; from torch._dynamo.utils import counters; import torch; print(type(torch._dynamo))"
    )
    assert in_a_new_process(code) == "<class 'module'>\n"


def test_dynamo_that_is_imported_already_stays() -> None:
    code = "import torch._dynamo as real, lit_ppo; lit_ppo.PPOModule; import torch; print(torch._dynamo is real)"
    assert in_a_new_process(code) == "True\n"


@pytest.mark.parametrize("name", ["Contract", "ContractSettings", "ContractViolation", "EnvBridge"])
def test_names_that_do_not_need_torch_do_not_import_it(name: str) -> None:
    assert in_a_new_process(f"import sys, lit_ppo; lit_ppo.{name}; print('torch' in sys.modules)") == "False\n"


def test_backward_hook_of_every_kind_is_found() -> None:
    def two_layers() -> nn.Sequential:
        return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))

    assert backward_hook_owner(two_layers()) is None
    registered = {
        "0.bias": lambda net: net[0].bias.register_hook(lambda gradient: None),
        "1.weight": lambda net: net[1].weight.register_post_accumulate_grad_hook(lambda parameter: None),
        "0": lambda net: net[0].register_full_backward_hook(lambda *args: None),
        "1": lambda net: net[1].register_full_backward_pre_hook(lambda *args: None),
    }
    for owner, register in registered.items():
        net = two_layers()
        register(net)
        assert backward_hook_owner(net) == owner, "compat_torch.backward_hook_owner: torch keeps this hook elsewhere now"


def test_weight_and_bias_of_a_layer_are_found_also_while_they_are_replaced() -> None:
    layer, message = nn.Linear(2, 3), "compat_torch.weight_and_bias: torch keeps parameters elsewhere now"
    assert all(found is held for found, held in zip(weight_and_bias(layer), (layer.weight, layer.bias), strict=True)), message

    class Probe(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
            return weight_and_bias(self.layer)

    replaced = torch.func.functional_call(Probe(), {"layer.weight": torch.ones(3, 2), "layer.bias": torch.zeros(3)}, ())
    assert replaced[0].equal(torch.ones(3, 2)) and replaced[1].equal(torch.zeros(3)), message


@pytest.mark.parametrize("max_norm", [0.5, 1e3, float("inf")])
def test_gradients_are_clipped_as_torch_does_bit_for_bit(max_norm: float) -> None:
    nets = [nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    for net in nets:
        net(torch.arange(6.0).view(3, 2)).square().sum().backward()
    unused = nn.Parameter(torch.ones(2))
    norms = (
        clip_gradients([*nets[0].parameters(), unused], max_norm),
        nn.utils.clip_grad_norm_(nets[1].parameters(), max_norm),
    )
    message = "compat_torch.clip_gradients: torch clips in another way now"
    assert norms[0].equal(norms[1]) and norms[0] > 0.5, message
    for ours, theirs in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None and ours.grad.equal(theirs.grad), message
    assert unused.grad is None


class TwoBuffers(Float64Buffers):
    float64_buffers = ("exact",)

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("exact", torch.tensor([0.1], dtype=torch.float64))
        self.register_buffer("quick", torch.tensor([0.1]))
        self.conversions: list[tuple[torch.dtype, torch.dtype]] = []

    def after_conversion(self) -> None:
        self.conversions.append((self.get_buffer("exact").dtype, self.get_buffer("quick").dtype))


@pytest.mark.parametrize(
    "convert", [nn.Module.half, lambda whole: whole.to(torch.float16), lambda whole: whole.type(torch.half)]
)
def test_float64_buffer_of_a_part_outlives_conversions_of_the_whole(convert: Any) -> None:
    part = TwoBuffers()
    convert(nn.Sequential(nn.Linear(1, 1), nn.Sequential(part)))
    message = "Float64Buffers: nn.Module does not convert through _apply any more"
    assert part.conversions == [(torch.float64, torch.float16)], message
    assert part.get_buffer("exact").item() == 0.1, message


# -- Lightning


class BackwardListener(Callback):
    def on_after_backward(self, *args: Any) -> None: ...


class StepListener(Callback):
    def on_before_optimizer_step(self, *args: Any) -> None: ...


class OwnBackward(PPOModule):
    def backward(self, *args: Any, **settings: Any) -> None: ...


def test_listeners_to_backward_passes_are_found_by_name() -> None:
    listener = compat_lightning.backward_listener
    assert listener(bare_trainer(1, StepListener()), small_module()) is None
    assert listener(bare_trainer(1, BackwardListener()), small_module()) == "BackwardListener"
    assert listener(bare_trainer(1), small_module(OwnBackward)) == "OwnBackward"
    assert listener(bare_trainer(1, detect_anomaly=True), small_module()) == "trainer.detect_anomaly"
    module = small_module()
    module.policy.actor.register_full_backward_hook(lambda *args: None)
    assert listener(bare_trainer(1), module) == "a hook on policy.actor"


@pytest.mark.parametrize(
    ("callbacks", "flags", "needed"),
    [
        ([], {}, False),
        ([StepListener()], {}, True),
        ([BackwardListener()], {}, True),
        ([], {"profiler": "simple"}, True),
        ([], {"precision": "bf16-mixed"}, True),
    ],
)
def test_optimizer_hooks_are_skipped_only_if_nothing_needs_them(
    callbacks: list[Callback], flags: dict[str, Any], needed: bool
) -> None:
    trainer = bare_trainer(1, *callbacks, **flags)
    assert compat_lightning.needs_optimizer_hooks(trainer, small_module()) == needed


def test_step_without_hooks_is_counted_as_lightning_counts_it() -> None:
    counts = []

    class BothWays(PPOModule):
        def training_step(self, rollout: Any, batch_idx: int) -> None:
            trainer, optimizer = self.trainer, self.optimizers()
            progress = trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
            for step in (
                lambda: compat_lightning.step_without_hooks(trainer, optimizer),
                lambda: compat_lightning.step_without_hooks(trainer, optimizer, lambda: 0.0),
                optimizer.step,
            ):
                before = (trainer.global_step, progress.total.ready, progress.total.completed)
                step()
                after = (trainer.global_step, progress.total.ready, progress.total.completed)
                counts.append(tuple(one - other for one, other in zip(after, before, strict=True)))

    bare_trainer(1).fit(small_module(BothWays), datamodule=small_data())
    assert counts == [(1, 1, 1)] * 3, "compat_lightning.step_without_hooks: Lightning counts optimizer steps in another way now"


def test_published_metrics_are_where_lightning_keeps_those_of_self_log() -> None:
    found = []

    class Publishes(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
            compat_lightning.publish_metrics(trainer, {"eval/return": 0.1, "count": 2.0**30 + 1})
            module.log("logged", 1.0, prog_bar=True)

        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            found.extend([trainer.callback_metrics, trainer.logged_metrics, trainer.progress_bar_metrics])

    bare_trainer(1, Publishes()).fit(small_module(), datamodule=small_data())
    names = "eval/return", "eval/return", "eval"
    assert all("logged" in metrics and metrics[name] == 0.1 for metrics, name in zip(found, names, strict=True)), (
        "compat_lightning.publish_metrics: Lightning keeps its metrics elsewhere now"
    )
    assert float(found[0]["count"]) == 2.0**30 + 1  # float32 would lose it


def test_rich_progress_bar_says_no_number_of_epochs_that_is_not_limited() -> None:
    pytest.importorskip("rich", reason="pip install rich")
    bar = RichProgressBar()
    trainer = bare_trainer(-1, bar)
    bar._trainer = trainer
    assert bar._get_train_description(7).split() == ["Epoch", "7/-2"], "Lightning says it well now: hide_missing_length can go"
    compat_lightning.hide_missing_length(trainer)
    assert bar._get_train_description(7) == "Epoch 7"


def test_lightning_logs_over_env_steps() -> None:
    trainer, steps = bare_trainer(1), iter(range(7, 1000, 7))
    before = set(vars(trainer.fit_loop.epoch_loop))
    assert "_batches_that_stepped" in before, "compat_lightning.log_over_env_steps: Lightning counts elsewhere now"
    compat_lightning.log_over_env_steps(trainer, lambda: next(steps))
    trainer.fit_loop.epoch_loop._batches_that_stepped += 1
    assert trainer.fit_loop.epoch_loop._batches_that_stepped == 14


class KeepsLoops(Callback):
    """Keeps what Lightning would save of its loops at the end of each epoch."""

    def __init__(self) -> None:
        self.loops: list[dict[str, Any]] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.loops.append({"fit_loop": trainer.fit_loop.state_dict()})


def test_loops_of_a_checkpoint_are_moved_to_where_lightning_has_them_at_the_end_of_an_epoch() -> None:
    keeps, data = KeepsLoops(), small_data(bridge="inprocess")
    bare_trainer(2, keeps).fit(small_module(), datamodule=data)
    for epochs, loops in enumerate(keeps.loops, 1):
        checkpoint = {"loops": deepcopy(loops)}
        compat_lightning.move_to_boundary(checkpoint, epochs, 20 * epochs, None)
        assert checkpoint["loops"] == loops, "compat_lightning.move_to_boundary: Lightning counts its epochs in another way now"
        assert checkpoint["epoch"] == epochs - 1 and checkpoint["global_step"] == 8 * epochs


def test_switches_of_callbacks_that_monitor_evaluations_are_still_there() -> None:
    of_evaluations = EarlyStopping("eval/return"), ModelCheckpoint(monitor="eval/return")
    of_updates = EarlyStopping("loss/value"), ModelCheckpoint(monitor="loss/value")
    for callback in (*of_evaluations, *of_updates):
        assert {"_check_on_train_epoch_end", "_save_on_train_epoch_end"} & set(vars(callback))
    compat_lightning.monitor_after_evaluations(bare_trainer(1, *of_evaluations, *of_updates))
    assert [each._check_on_train_epoch_end for each in (of_evaluations[0], of_updates[0])] == [False, None]
    assert [each._save_on_train_epoch_end for each in (of_evaluations[1], of_updates[1])] == [False, None]


def test_model_checkpoint_saves_and_tells_the_loggers(tmp_path: Path) -> None:
    class Told(Logger):
        name, version = "told", 0
        told = 0

        def log_metrics(self, *args: Any, **settings: Any) -> None: ...

        def log_hyperparams(self, *args: Any, **settings: Any) -> None: ...

        def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
            self.told += 1

    class SaveAtStart(ModelCheckpoint):
        def on_train_start(self, trainer: Any, module: Any) -> None:
            compat_lightning.save_checkpoint(self, trainer, str(tmp_path / "asked.ckpt"))

    logger = Told()
    bare_trainer(1, SaveAtStart(tmp_path, save_top_k=0), logger=logger, log_every_n_steps=1).fit(
        small_module(), datamodule=small_data()
    )
    assert torch.load(tmp_path / "asked.ckpt", weights_only=True)["global_step"] == 0
    assert logger.told >= 1, "compat_lightning.save_checkpoint: ModelCheckpoint does not tell the loggers any more"


def test_lightning_cli_calls_its_private_hooks_and_keeps_settings_where_they_are_looked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called = []

    class Watched(LightningCLI):
        def _parse_ckpt_path(self) -> None:
            called.append("_parse_ckpt_path")

        def _set_seed(self) -> None:
            called.append("_set_seed")

    class CartPoleModule(PPOModule):
        def __init__(self, **settings: Any) -> None:
            super().__init__(vector_spec(4, 2), **settings)

    arguments = ["--trainer.max_epochs=7", "--trainer.accelerator=cpu"]
    monkeypatch.setattr(sys, "argv", ["lit_ppo"])
    cli = Watched(
        CartPoleModule,
        RolloutDataModule,
        args=arguments,
        run=False,
        save_config_callback=None,
        trainer_defaults={"logger": False, "enable_checkpointing": False},
    )
    assert called == ["_parse_ckpt_path", "_set_seed"], (
        "LightningCLI: a private hook that lit_ppo overrides is not called any more"
    )
    assert compat_lightning.settings_of(cli, "trainer").max_epochs == 7
    assert compat_lightning.settings_of(cli, "model", instantiated=True) is cli.model
    assert compat_lightning.parser_of(cli, None) is cli.parser and cli.parser.callback_keys == []


def test_options_of_a_parser_and_its_subcommands_are_found() -> None:
    parser, subparser = LightningArgumentParser(), LightningArgumentParser()
    subparser.add_argument("--below.it")
    parser.add_argument("--of-all")
    parser.add_subcommands().add_subcommand("command", subparser)
    found = set(compat_lightning.option_names(parser))
    assert {"--of-all", "--below.it"} <= found, "compat_lightning.option_names: argparse keeps its options elsewhere now"


def test_option_of_a_parser_is_removed_from_its_help_and_its_arguments() -> None:
    parser = LightningArgumentParser(exit_on_error=False)
    group = parser.add_argument_group("group")
    for option in ("--kept", "--removed"):
        group.add_argument(option)
    compat_lightning.remove_option(parser, "--removed")
    message = "compat_lightning.remove_option: argparse keeps its options elsewhere now"
    assert "--kept" in parser.format_help() and "--removed" not in parser.format_help(), message
    with pytest.raises(ArgumentError):
        parser.parse_args(["--removed=1"])


# -- ranks


def test_ddp_can_be_made_the_strategy_of_ranks() -> None:
    trainer = bare_trainer(1, strategy="ddp", devices=1)
    strategy = compat_lightning.rank_strategy_of(trainer)
    message = "compat_lightning.RankStrategy: Lightning's DDP has other parts now"
    assert strategy is trainer.strategy is compat_lightning.rank_strategy_of(trainer) and strategy.ranks.count == 1, message
    assert compat_lightning.unfit_for_ranks(trainer) is None, message
    for name in ("configure_ddp", "broadcast", "barrier"):
        assert name in vars(DDPStrategy), message
    strategy.configure_ddp()
    assert strategy.broadcast({"path": Path("a")}) == {"path": "a"}, message
    forked = bare_trainer(1, strategy="ddp_fork", devices=2)
    assert compat_lightning.unfit_for_ranks(forked) == "expected processes started anew (ddp), got start_method=fork", message
    assert compat_lightning.unfit_for_ranks(bare_trainer(1)) == "expected ddp, got SingleDeviceStrategy", message


def test_subclass_of_ddp_keeps_what_it_says_of_devices() -> None:
    """As Ray Train's does."""

    class OwnDDP(DDPStrategy):
        @property
        def root_device(self) -> torch.device:
            return torch.device("meta")

    trainer = bare_trainer(1, strategy=OwnDDP(), devices=1)
    strategy = compat_lightning.rank_strategy_of(trainer)
    assert isinstance(strategy, OwnDDP) and isinstance(strategy, compat_lightning.RankStrategy)
    assert strategy.root_device == torch.device("meta") and strategy.broadcast(1) == 1


def test_observer_of_lightnings_processes_can_be_stopped() -> None:
    observer = _ChildProcessObserver(main_pid=0, child_processes=[])
    assert observer._finished is False, "compat_lightning.rank_strategy_of: Lightning's observer is stopped in another way now"
    observer._finished = True
    observer.run()  # returns without a look at the processes


def test_observer_of_lightnings_processes_ends_the_first_rank_with_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[tuple[str, int]] = []
    monkeypatch.setattr(interrupts, "end_with", lambda *end: ends.append(end))
    monkeypatch.setattr(_ChildProcessObserver, "_terminate_all", _ChildProcessObserver._terminate_all)  # restored afterwards
    compat_lightning.end_with_lost_ranks()
    with subprocess.Popen(["false"]) as ended, subprocess.Popen(["sleep", "100"]) as other:
        ended.wait()
        _ChildProcessObserver(main_pid=0, child_processes=[ended, other])._run()
        assert other.wait() == -signal.SIGKILL
    assert ends == [("a rank has ended before the ranks had met", exit_codes.RANK)]


def test_run_with_ddp_of_one_rank_is_the_run_without_it() -> None:
    modules, threads = [small_module(), small_module()], torch.get_num_threads()
    with patch.dict(os.environ):  # Lightning leaves a rank's variables there; runs that other tests start would be that rank
        for module, flags in zip(modules, ({}, {"strategy": "ddp", "devices": 1}), strict=True):
            bare_trainer(2, **flags).fit(module, datamodule=small_data())
    torch.distributed.destroy_process_group()  # which Lightning leaves as well
    assert torch.get_num_threads() == threads  # its launcher sets as many as there are cores
    assert same(*(parameters(module) for module in modules))


def test_rank_whose_torchrun_has_ended_ends_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be gone before the rank could begin to watch it; then nobody listens at its rendezvous."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    of_torchrun = {"RANK": 1, "LOCAL_RANK": 1, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "GROUP_RANK": 0}
    of_torchrun |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "gone"}
    of_torchrun |= {"TORCHELASTIC_USE_AGENT_STORE": True}
    for name, value in of_torchrun.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(compat_lightning, "_STORE_LIMIT", timedelta(seconds=0.1))
    monkeypatch.setattr(rank_zero_only, "rank", 0, raising=False)  # the Trainer sets it, for all that is run afterwards
    trainer = bare_trainer(1, devices=2, strategy="ddp")
    with pytest.raises(RankLost, match=f"^the rendezvous of torchrun at 127.0.0.1:{port} cannot be reached: "):
        compat_lightning.join_ranks(trainer)
