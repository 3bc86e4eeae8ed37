"""Lightning's habits: each works, or is refused in one line that names what works. `docs/lightning.md` has the table."""

import csv
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
    Timer,
)
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from lightning.pytorch.tuner import Tuner
from torch.utils.data import DataLoader

import lit_ppo
from lit_ppo import exit_codes
from lit_ppo.bridge.settings import BridgeSettings
from lit_ppo.callbacks.greedy_evaluation import GreedyEvaluation
from lit_ppo.callbacks.run_checkpoint import RunCheckpoint
from lit_ppo.checkpoint_io import read_checkpoint, verified_bytes
from lit_ppo.data import RolloutDataModule
from lit_ppo.errors import CheckpointError, ConfigError
from lit_ppo.evaluation import EpisodeResults
from lit_ppo.module import PPOModule
from lit_ppo.optimization import MONITORED
from lit_ppo.ppo_settings import PPOSettings
from lit_ppo.saved_policy import load
from tests.runs import KeptData, ScriptedPlay, bare_trainer, cartpole_module, parameters, same, small_data, small_module
from tests.specs import vector_spec
from tests.test_cli import SMALL, Run, run  # noqa: F401  a fixture


@pytest.fixture(autouse=True)
def in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def min_of_two(predictions: Any, minibatch: Any) -> Any: ...


def scripted(*returns: float) -> Any:
    data = small_data(cls=ScriptedPlay)
    data.script = {"evaluation": [[value] for value in returns]}
    return data


def refusal(do: Any, error: type[Exception] = ConfigError) -> str:
    with pytest.raises(error) as refused:
        do()
    assert "\n" not in str(refused.value)
    return str(refused.value)


# -- metrics and loggers


class Reads(Callback):
    """What the Trainer's dictionaries hold after each update."""

    def __init__(self) -> None:
        self.after_batch: list[dict[str, float]] = []
        self.after_epoch: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self.after_batch.append({name: float(value) for name, value in trainer.callback_metrics.items()})

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert trainer.logged_metrics.keys() == trainer.callback_metrics.keys()
        self.after_epoch.append({name: float(value) for name, value in trainer.logged_metrics.items()})


def test_callbacks_read_every_diagnostic_of_the_update() -> None:
    reads, module = Reads(), small_module()
    trainer = bare_trainer(2, GreedyEvaluation(1, 1), reads)
    trainer.fit(module, datamodule=scripted(5.0, 6.0, 7.0))
    assert set(MONITORED) <= reads.after_batch[0].keys()
    assert [row["env/steps"] for row in reads.after_batch] == [20, 40]
    assert [row["eval/return"] for row in reads.after_epoch] == [6, 7]
    assert reads.after_epoch[1]["loss/value"] == module.metrics["loss/value"]
    assert float(trainer.callback_metrics["eval/return"]) == 7 and trainer.progress_bar_metrics["eval"] == 7


class LogsByItself(PPOModule):
    def on_train_epoch_end(self) -> None:
        super().on_train_epoch_end()
        self.log("own", float(self.learnt_update or 0))


def test_logger_gets_one_row_a_step_over_env_steps_and_every_setting() -> None:
    callbacks = GreedyEvaluation(40, 1), LearningRateMonitor()
    trainer = bare_trainer(3, *callbacks, logger=CSVLogger("logs"))
    trainer.fit(small_module(seed=3, cls=LogsByItself), datamodule=small_data(seed=1))
    log = Path(trainer.loggers[0].log_dir or "")
    rows = list(csv.DictReader((log / "metrics.csv").read_text().splitlines()))
    assert [(row["step"], row["eval/return"] != "") for row in rows if row["loss/policy"]] == [
        ("20", False),
        ("40", True),
        ("60", False),
    ]
    assert {row["step"] for row in rows if row["lr-Adam"]} == {"0", "20", "40"} | {"60"}
    assert [row["step"] for row in rows if row["own"]] == ["20", "40", "60"]
    settings = yaml.unsafe_load((log / "hparams.yaml").read_text())
    assert (settings["seed"], settings["update_epochs"]) == (3, 4)
    environment = settings["data"]
    assert (environment["env_id"], environment["seed"], environment["num_envs"]) == ("tests.toy_envs:Identity-v0", 1, 2)


# -- callbacks


def test_patience_of_early_stopping_counts_evaluations() -> None:
    stop = EarlyStopping("eval/return", mode="max", patience=2)
    data = scripted(0.0, 5.0, 4.0, 3.0, 9.0)
    bare_trainer(20, GreedyEvaluation(60, 1), stop).fit(small_module(), datamodule=data)  # an update has 20
    assert data.update == 9  # evaluated after updates 3, 6 and 9


def test_early_stopping_looks_at_a_diagnostic_after_every_update() -> None:
    data = small_data()
    stop = EarlyStopping("env/steps", mode="max", stopping_threshold=59.0)
    bare_trainer(9, stop).fit(small_module(), datamodule=data)
    assert data.update == 3


def test_model_checkpoint_takes_only_weights_that_were_evaluated() -> None:
    kept = ModelCheckpoint("kept", "{update}", monitor="eval/return", mode="max", save_top_k=3)
    trainer = bare_trainer(6, GreedyEvaluation(40, 1), kept)
    trainer.fit(small_module(), datamodule=scripted(0.0, 5.0, 4.0, 6.0))
    assert sorted(map(float, kept.best_k_models.values())) == [4, 5, 6]
    assert sorted(read_checkpoint(path)["ScriptedPlay"]["update"] for path in kept.best_k_models) == [2, 4, 6]


class PlaysAndTells(KeptData):
    """Notes the weights of each evaluation."""

    seen: list[dict[str, torch.Tensor]]

    def play(self, policy: Any, *args: Any, **settings: Any) -> EpisodeResults:
        self.seen.append({f"policy.{name}": value.clone() for name, value in policy.state_dict().items()})
        return EpisodeResults((float(len(self.seen)),), (1,))


def test_averaged_weights_are_evaluated_and_saved_and_the_learning_ones_go_on() -> None:
    runs = []
    for average in ([], [EMAWeightAveraging(decay=0.5)]):
        data, module = small_data(cls=PlaysAndTells), small_module()
        data.seen = []
        # after the second update, before Lightning makes the averaged weights the module's at the end
        bare_trainer(3, *average, GreedyEvaluation(40, 1), RunCheckpoint("checkpoints")).fit(module, datamodule=data)
        saved = read_checkpoint("checkpoints/best.ckpt")
        assert same(saved["state_dict"], data.seen[-1])
        runs.append((data, saved))
    (plain, plainly), (averaged, average_too) = runs
    assert same(plainly["state_dict"], average_too["current_model_state"])
    assert not same(plain.seen[-1], averaged.seen[-1])
    assert [rollout.actions.tolist() for rollout in plain.rollouts] == [
        rollout.actions.tolist() for rollout in averaged.rollouts
    ]


@pytest.mark.parametrize("file", ["last.ckpt", "after.ckpt"])
def test_run_with_averaged_weights_that_is_resumed_is_the_run_in_one_go(file: str) -> None:
    learnt = []
    for directory, parts in (("straight", [4]), ("resumed", [2, 4])):
        for number, updates in enumerate(parts):
            callbacks = EMAWeightAveraging(decay=0.5), GreedyEvaluation(40, 1), RunCheckpoint(directory)
            module, data = small_module(total_env_steps=500), small_data()
            path, trainer = f"{directory}/{file}" if number else None, bare_trainer(updates, *callbacks)
            trainer.fit(module, datamodule=data, ckpt_path=path)
            trainer.save_checkpoint(f"{directory}/after.ckpt")  # when the averaged weights are the module's
        learnt.append(read_checkpoint(f"{directory}/{file}"))
    assert all(same(learnt[0][key], learnt[1][key]) for key in ("state_dict", "current_model_state"))


def test_average_that_would_change_after_the_evaluation_is_refused() -> None:
    trainer = bare_trainer(1, GreedyEvaluation(), EMAWeightAveraging())
    message = refusal(lambda: trainer.fit(small_module(), datamodule=small_data()))
    assert message.startswith("trainer.callbacks: EMAWeightAveraging: expected before GreedyEvaluation")


def test_stochastic_weight_averaging_is_refused_with_what_works() -> None:
    trainer = bare_trainer(1, StochasticWeightAveraging(1e-3))
    assert "use EMAWeightAveraging" in refusal(lambda: trainer.fit(small_module(), datamodule=small_data()))


# -- the length of a run


def test_max_steps_counts_optimizer_steps_and_the_update_is_finished() -> None:
    data, module = small_data(), small_module(learning_rate_decay="constant")
    trainer = bare_trainer(-1, max_steps=9)  # an update makes 2 * 4
    trainer.fit(module, datamodule=data)
    assert (data.update, trainer.global_step) == (2, 16)


@pytest.mark.parametrize("limit", ["max_time", "Timer"])
def test_time_limit_ends_the_run_at_an_update(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Timer, "time_elapsed", lambda self, stage="train": 20.0 * data.update)
    data, duration = small_data(), {"seconds": 50}
    callbacks: list[Callback] = [Timer(duration)] if limit == "Timer" else []
    flags = {"max_time": duration} if limit == "max_time" else {}
    trainer = bare_trainer(9, *callbacks, **flags)
    trainer.fit(small_module(), datamodule=data)
    assert data.update == 3


def test_timer_needs_no_interval_on_the_command_line(run: Run) -> None:  # noqa: F811
    duration = "--trainer.callbacks.duration=00:00:05:00"
    ended = run(f"fit {SMALL} --trainer.callbacks+=Timer {duration} --print_config")
    assert ended.code == exit_codes.DONE and "interval: step" in ended.out


@pytest.mark.parametrize("updates", [True, 3])
def test_fast_dev_run_makes_one_update_and_writes_nothing(updates: Any, run: Run) -> None:  # noqa: F811
    ended = run(f"fit {SMALL} --trainer.fast_dev_run={str(updates).lower()}")
    assert ended.code == exit_codes.DONE and "1 updates, 32 env steps" in ended.out
    assert list(Path().iterdir()) == []


# -- precision


@pytest.mark.parametrize(("precision", "dtype"), [("bf16-mixed", torch.float32), ("64-true", torch.float64)])
def test_precision_trains(precision: str, dtype: torch.dtype) -> None:
    module = small_module()
    before = parameters(module)
    bare_trainer(2, precision=precision).fit(module, datamodule=small_data())
    after = parameters(module)
    assert all(tensor.dtype == dtype and not tensor.equal(before[name].to(dtype)) for name, tensor in after.items())


# -- what is asked for is shown


@pytest.mark.parametrize(
    ("flag", "shown"),
    [
        ("--trainer.profiler=simple", "FIT Profiler Report"),
        ("--trainer.profiler=advanced", "Profile stats for: "),
        ("--trainer.enable_model_summary=true", "Trainable params"),
    ],
)
def test_report_is_shown(flag: str, shown: str, run: Run, caplog: pytest.LogCaptureFixture) -> None:  # noqa: F811
    ended = run(f"fit {SMALL} {flag}")
    assert ended.code == exit_codes.DONE and shown in caplog.text + ended.out  # where rich is installed, it prints the summary


def test_progress_bar_of_lightning_takes_the_place_of_ours(run: Run) -> None:  # noqa: F811
    ended = run(f"fit {SMALL} --trainer.callbacks+=TQDMProgressBar")
    assert ended.code == exit_codes.DONE and "Epoch 1" in ended.out and ", eval=" in ended.out and "return=" in ended.out
    assert "2 environments" not in ended.out


# -- playing


def test_predict_gives_the_greedy_episodes_of_validate() -> None:
    module, data = small_module(), small_data(validation_episodes=3)
    [predicted] = bare_trainer(1).predict(module, datamodule=data) or []
    bare_trainer(1).validate(module, datamodule=data, verbose=False)
    assert predicted == data.results and len(data.results.returns) == 3


# -- checkpoints


def python_run(*callbacks: Callback, updates: int = 2) -> Trainer:
    trainer = bare_trainer(updates, *callbacks)
    trainer.fit(cartpole_module(actor_hidden_sizes=(8, 8)), datamodule=small_data("CartPole-v1", cls=RolloutDataModule))
    return trainer


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("by", ["ModelCheckpoint", "RunCheckpoint", "save_checkpoint"])
def test_command_line_takes_a_checkpoint_of_a_python_run(by: str, run: Run) -> None:  # noqa: F811
    path = "own/last.ckpt"
    if by == "save_checkpoint":
        python_run().save_checkpoint(path)
    else:
        python_run(ModelCheckpoint("own", save_last=True) if by == "ModelCheckpoint" else RunCheckpoint("own"))
    verified_bytes(path)
    ended = run(f"test --ckpt_path={path} --data.test_episodes=2")
    assert ended.code == exit_codes.DONE and "mean return" in ended.out
    ended = run(f"fit --ckpt_path={path} --trainer.max_epochs=3 --evaluation.num_episodes=1")
    assert ended.code == exit_codes.DONE and "3 updates, 60 env steps" in ended.out


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_python_takes_a_checkpoint_of_the_command_line(run: Run) -> None:  # noqa: F811
    assert run(f"fit {SMALL}").code == exit_codes.DONE
    path = "runs/CartPole-v1/1/last.ckpt"
    module, data = PPOModule.load_from_checkpoint(path), RolloutDataModule.load_from_checkpoint(path)
    assert (data.num_envs, data.horizon, data.environment.env_id) == (2, 16, "CartPole-v1")
    bare_trainer(3).fit(module, datamodule=data, ckpt_path=path)
    assert data.update == 3


def test_checkpoint_with_two_seeds_is_refused_by_the_command_line(run: Run) -> None:  # noqa: F811
    trainer = bare_trainer(1)
    data = small_data("CartPole-v1", cls=RolloutDataModule, seed=1)
    trainer.fit(cartpole_module(seed=2), datamodule=data)
    trainer.save_checkpoint("own.ckpt")
    ended = run("test --ckpt_path=own.ckpt")
    assert ended.code == exit_codes.CHECKPOINT and "its module has seed 2 and its data seed 1" in ended.err


def test_networks_that_do_not_fit_the_checkpoint_are_refused() -> None:
    python_run(RunCheckpoint("checkpoints"))
    other, data = cartpole_module(), small_data("CartPole-v1")
    again = {"datamodule": data, "ckpt_path": "checkpoints/last.ckpt"}
    message = refusal(lambda: bare_trainer(1).validate(other, **again), CheckpointError)
    assert message.startswith("the checkpoint's state_dict")


def test_checkpoint_elsewhere_is_refused() -> None:
    trainer = bare_trainer(1, ModelCheckpoint("memory://own"))
    message = refusal(lambda: trainer.fit(small_module(), datamodule=small_data()), CheckpointError)
    assert "expected a local path" in message


# -- what cannot work


class OtherModule(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.layer(batch).sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None: ...

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


def loader() -> DataLoader[Any]:
    return DataLoader(torch.zeros(4, 4))  # type: ignore[arg-type]


class OtherData(LightningDataModule):
    def train_dataloader(self) -> Any:
        return loader()

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


def small_parts() -> tuple[Any, Any]:
    return small_module(), small_data()


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")
@pytest.mark.parametrize(
    ("do", "part"),
    [
        (lambda t: t.fit(small_module(), train_dataloaders=loader()), "use trainer.fit(model, datamodule=RolloutDataModule("),
        (
            lambda t: t.fit(small_module()),
            "RolloutDataModule, since PPO collects its own data, got none",
        ),
        (lambda t: t.fit(small_module(), datamodule=OtherData()), "expected a RolloutDataModule, since PPO collects"),
        (lambda t: t.validate(small_module(), datamodule=OtherData()), "use trainer.validate(model, datamodule="),
        (lambda t: t.predict(small_module(), loader()), "use trainer.predict(model, datamodule="),
        (
            lambda t: t.fit(OtherModule(), datamodule=small_data()),
            "expects a PPOModule, or a subclass, got OtherModule",
        ),
        (lambda t: t.validate(OtherModule(), datamodule=small_data()), "use trainer.validate(PPOModule(data.spec), datamodule"),
        (lambda t: Tuner(t).lr_find(*small_parts()), "LearningRateFinder: an update without new rollouts"),
        (lambda t: Tuner(t).scale_batch_size(*small_parts()), "BatchSizeFinder: the batch of an update is data.horizon"),
    ],
)
def test_what_cannot_work_is_refused_with_what_works(do: Any, part: str) -> None:
    assert part in refusal(lambda: do(bare_trainer(1)))


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_environment_with_other_spaces_is_refused(stage: str) -> None:
    module = small_module(spec=vector_spec(3, 2))
    message = refusal(lambda: getattr(bare_trainer(1), stage)(module, datamodule=small_data()))
    assert message == (
        "data.env_id=tests.toy_envs:Identity-v0: its action is discrete () int64 from 0 to 2, and the module was made for "
        "discrete () int64 from 0 to 1 of Test-v0; use the environment of the module, or PPOModule(data.spec)"
    )


def test_environment_with_other_spaces_than_the_checkpoints_is_refused(run: Run) -> None:  # noqa: F811
    assert run(f"fit {SMALL}").code == exit_codes.DONE
    ended = run("validate --data.env_id=Acrobot-v1")
    message = (
        "data.env_id=Acrobot-v1: its observation is box (6,) float32, and the checkpoint was made for box (4,) float32 of "
    )
    assert (ended.code, ended.err) == (
        exit_codes.USAGE,
        f"lit_ppo: error: {message}CartPole-v1; use the environment of the checkpoint\n",
    )


@pytest.mark.parametrize("part", [PPOModule, RolloutDataModule])
@pytest.mark.parametrize("content", [b"", b"nothing", b"PK\x05\x06" + bytes(18)], ids=["empty", "text", "empty archive"])
def test_file_that_is_no_checkpoint_is_refused_by_its_path(part: Any, content: bytes) -> None:
    Path("own.ckpt").write_bytes(content)
    assert refusal(lambda: part.load_from_checkpoint("own.ckpt"), CheckpointError).startswith("own.ckpt: ")


@pytest.mark.parametrize("part", [PPOModule, RolloutDataModule])
def test_damaged_checkpoint_is_refused_before_it_is_loaded(part: Any) -> None:
    bare_trainer(1, RunCheckpoint("own")).fit(*small_parts())
    path = Path("own/last.ckpt")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    message = "own/last.ckpt: corrupt: its bytes do not match their checksum"
    assert refusal(lambda: part.load_from_checkpoint(path), CheckpointError) == message


def test_other_plugin_for_checkpoints_is_refused(run: Run) -> None:  # noqa: F811
    trainer = bare_trainer(1, plugins=[AsyncCheckpointIO()])
    message = refusal(lambda: trainer.fit(*small_parts()))
    assert message.startswith("trainer.plugins: AsyncCheckpointIO is not used")
    ended = run(f"fit {SMALL} --trainer.plugins+=lightning.pytorch.plugins.io.AsyncCheckpointIO")
    assert (ended.code, ended.err) == (exit_codes.USAGE, f"lit_ppo: error: {message}\n")


@pytest.mark.parametrize(
    ("flag", "stage", "value"),
    [("limit_val_batches", "validate", 0), ("limit_test_batches", "test", 0.5), ("limit_predict_batches", "predict", 0)],
)
def test_limit_of_batches_is_refused_where_it_would_play_nothing(flag: str, stage: str, value: float) -> None:
    message = refusal(lambda: getattr(bare_trainer(1, **{flag: value}), stage)(*small_parts()))
    assert message.startswith(f"trainer.{flag}={value}: has no effect")


def test_error_of_a_callback_of_lightning_ends_in_one_line(run: Run) -> None:  # noqa: F811
    ended = run(f"fit {SMALL} --trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor=val_loss")
    line = ended.err.splitlines()[-1]
    assert ended.code == exit_codes.USAGE and "Traceback" not in ended.err
    assert line.startswith("lit_ppo: error: trainer.callbacks: EarlyStopping: ") and "`loss/value`" in line


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (
            "callbacks+=BackboneFinetuning",
            "trainer.callbacks: BackboneFinetuning: 'PPOModule' object has no attribute 'backbone'",
        ),
        ("accelerator=tpu", "trainer (accelerator=tpu, devices=auto): Requirement 'torch_xla"),
        ("logger=tests.toy_callbacks.Unfit", "tests.toy_callbacks.Unfit: expected another machine"),
        (
            "callbacks+=lit_ppo.GreedyEvaluation",
            "trainer.callbacks: GreedyEvaluation: every run has one; use its options, --evaluation.*",
        ),
    ],
)
def test_what_lightning_cannot_make_or_use_ends_in_one_line(typed: str, said: str, run: Run) -> None:  # noqa: F811
    ended = run(f"fit {SMALL} --trainer.{typed}")
    assert ended.code == exit_codes.USAGE and ended.err.splitlines()[-1].startswith(f"lit_ppo: error: {said}")
    assert "Traceback" not in ended.err


def test_early_stopping_without_evaluation_says_that_its_metric_is_missing() -> None:
    trainer = bare_trainer(1, EarlyStopping("eval/return"))
    assert "`eval/return` which is not available" in refusal(lambda: trainer.fit(*small_parts()), RuntimeError)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: PPOModule("CartPole-v1"), "spec: expected RolloutDataModule(env_id).spec, got str 'CartPole-v1'"),  # type: ignore[arg-type]
        (lambda: small_module(learning_rte=1.0), "model.learning_rte: there is no such setting; did you mean learning_rate?"),
        (lambda: small_module(learning_rate="3e-4"), "model.learning_rate='3e-4': expected a number or None"),
        (lambda: small_module(actor_hidden_sizes=64), "model.actor_hidden_sizes=64: expected a list, each item a whole number"),
        (lambda: small_module(activation="Tanh"), "model.activation=Tanh: expected tanh, "),
        (lambda: small_module(minibatch_size=16.5), "model.minibatch_size=16.5: expected a whole number"),
        (lambda: small_module(compile=1), "model.compile=1: expected True or False"),
        (lambda: small_module(loss=min_of_two), "model.loss=<function min_of_two at "),
        (lambda: small_data(n_envs=8), "data.n_envs: there is no such setting; did you mean num_envs?"),
        (lambda: small_data(num_envs="8"), "data.num_envs='8': expected a whole number"),
    ],
)
def test_setting_of_a_python_program_is_refused_by_name_or_type(make: Any, said: str) -> None:
    assert refusal(make).startswith(said)


def test_datamodule_is_printed_without_playing() -> None:
    assert str(small_data()) == "KeptData('tests.toy_envs:Identity-v0', num_envs=2, horizon=10)"


class Momentum(PPOModule):
    """With an argument and parameters of its own."""

    def __init__(self, momentum: float = 0.9, width: int = 0, **settings: Any) -> None:
        super().__init__(**settings)
        self.save_hyperparameters("momentum", "width")
        if width:
            self.layer = torch.nn.Linear(width, width)


def test_policy_of_a_subclass_with_arguments_of_its_own_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    for width in (0, 3):
        module = cartpole_module(cls=Momentum, momentum=0.8, width=width)
        trainer = bare_trainer(1)
        trainer.fit(module, datamodule=small_data("CartPole-v1", cls=RolloutDataModule))
        trainer.save_checkpoint("own.ckpt")
        own = load("own.ckpt", module_class=Momentum).module
        assert isinstance(own, Momentum) and own.hparams["momentum"] == 0.8 and same(parameters(own), parameters(module))
    assert "its parameters are not those of PPOModule" in refusal(lambda: load("own.ckpt"), CheckpointError)
    assert "without its subclass's own settings momentum, width" in capsys.readouterr().err


def test_public_names_are_there() -> None:
    assert all(getattr(lit_ppo, name) is not None for name in lit_ppo.__all__)
    assert {"RunSummary", "VerifiedCheckpointIO", "ConfigError", "preset_named"} <= set(lit_ppo.__all__)


# -- loggers that need a package


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "logger"),
    [
        ("tensorboard", "TensorBoardLogger --trainer.logger.save_dir=logs"),
        ("wandb", "WandbLogger --trainer.logger.offline=true --trainer.logger.save_dir=logs"),
        ("mlflow", "MLFlowLogger --trainer.logger.tracking_uri=sqlite:///mlflow.db"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_logger_takes_metrics_and_settings(package: str, logger: str, run: Run) -> None:  # noqa: F811
    pytest.importorskip(package, reason=f"pip install {package}")
    ended = run(f"fit {SMALL} --data.env_kwargs.sutton_barto_reward=true --trainer.logger={logger}")
    assert ended.code == exit_codes.DONE, ended.err
    settings = set(PPOSettings.__dataclass_fields__)
    of_data = {f"data/{name}" for name in (*BridgeSettings.__dataclass_fields__, "env_id", "num_envs", "horizon", "seed")}
    if package == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        [directory] = {path.parent for path in Path("logs").rglob("events.out*")}
        events = EventAccumulator(str(directory)).Reload()
        assert [event.step for event in events.Scalars("loss/value")] == [32, 64]
        assert [event.step for event in events.Scalars("eval/return")] == [0, 32, 64]
        saved = yaml.unsafe_load((directory / "hparams.yaml").read_text())
        assert settings | of_data <= {*saved, *(f"data/{name}" for name in saved["data"])}
        assert saved["data"]["env_kwargs"] == {"sutton_barto_reward": True}
    elif package == "mlflow":
        from mlflow import MlflowClient

        client = MlflowClient("sqlite:///mlflow.db")
        [made] = client.search_runs([client.get_experiment_by_name("lightning_logs").experiment_id])
        assert [metric.step for metric in client.get_metric_history(made.info.run_id, "loss/value")] == [32, 64]
        assert settings | of_data <= made.data.params.keys()
        assert made.data.params["data/env_kwargs/sutton_barto_reward"] == "True" and made.info.status == "FINISHED"
    else:
        import wandb

        wandb.teardown()  # as at the end of a process: waits until all rows are written
        [file] = Path("logs/wandb").glob("offline-run-*/*.wandb")
        rows, saved = of_wandb(file)
        assert [row["trainer/global_step"] for row in rows] == [0, 32, 64]  # the x axis of all
        assert all({"loss/value", "eval/return"} <= row.keys() for row in rows[1:])
        assert settings | of_data <= {*saved, *(f"data/{name}" for name in saved["data"])}
        assert saved["data"]["env_kwargs"] == {"sutton_barto_reward": True}


def of_wandb(file: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows and settings of a run of W&B that was offline: LevelDB's log format, after a header of 7 bytes, of protobufs."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, part = file.read_bytes(), 7, b""
    rows, settings = [], {}
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:  # the end of a block
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        part += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # the whole of a record, or its end
            record = Record.FromString(part)
            part = b""
            rows += [{item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}]
            for config in (record.config, record.run.config):
                settings |= {item.key or item.nested_key[0]: json.loads(item.value_json) for item in config.update}
    return [row for row in rows if row], settings
