"""Evaluation, stop when solved, checkpoints, curve, progress: when they act, and what they leave."""

import contextlib
import io
import json
import logging
import math
import os
import re
import signal
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer

from lit_ppo.callbacks.curve_export import CurveExport, slug
from lit_ppo.callbacks.graceful_exit import GracefulExit
from lit_ppo.callbacks.greedy_evaluation import Evaluation, GreedyEvaluation, data_of, next_evaluation, spacing_of
from lit_ppo.callbacks.run_checkpoint import RunCheckpoint
from lit_ppo.callbacks.run_progress import RunProgress
from lit_ppo.callbacks.run_summary import RunSummary
from lit_ppo.callbacks.stop_when_solved import StopWhenSolved
from lit_ppo.curve import TrainLog
from lit_ppo.data import RolloutDataModule
from lit_ppo.errors import CheckpointError, ConfigError, RunInterrupted
from lit_ppo.evaluation import EpisodeResults
from lit_ppo.module import PPOModule
from lit_ppo.rollout import Rollout
from tests.runs import ScriptedPlay, bare_trainer, fit, parameters, same, small_data, small_module
from tests.specs import vector_spec


@pytest.fixture(autouse=True)
def in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def scripted(evaluation: list[float] | list[list[float]], confirmation: list[list[float]] | None = None) -> Any:
    """A datamodule whose evaluations come out as told."""
    data = small_data(cls=ScriptedPlay)
    lists = [returns if isinstance(returns, list) else [returns] for returns in evaluation]
    data.script = {"evaluation": lists, "confirmation": confirmation or []}
    return data


def loaded(path: str) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(path, weights_only=True)
    return checkpoint


def update_of(path: str) -> int:
    """After how many updates a checkpoint was written."""
    return int(loaded(path)["ScriptedPlay"]["update"])


# -- settings


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GreedyEvaluation(every_env_steps=0), "evaluation.every_env_steps=0: expected at least 1"),
        (lambda: GreedyEvaluation(num_episodes=0), "evaluation.num_episodes=0: expected at least 1"),
        (lambda: StopWhenSolved(confirmation_episodes=-1), "solved.confirmation_episodes=-1: expected at least 0"),
        (lambda: StopWhenSolved(margin=-0.5), "solved.margin=-0.5: expected at least 0"),
        (lambda: RunProgress(interval_s=-1.0), "progress.interval_s=-1.0: expected at least 0 s"),
        (lambda: RunCheckpoint(every_n_updates=0), "checkpoint.every_n_updates=0: expected at least 1"),
    ],
)
def test_setting_out_of_range_is_refused_by_name_value_and_range(make: Any, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        make()
    assert str(refused.value) == message


@pytest.mark.parametrize("callback", [StopWhenSolved(), CurveExport()])
@pytest.mark.parametrize("evaluation_behind", [True, False])
def test_callback_that_needs_an_evaluation_before_it_says_so(callback: Callback, evaluation_behind: bool) -> None:
    behind = [GreedyEvaluation(num_episodes=1)] if evaluation_behind else []
    with pytest.raises(ConfigError) as refused:
        fit(1, callback, *behind)
    name = type(callback).__name__
    assert str(refused.value) == f"trainer.callbacks: {name} expects a GreedyEvaluation before it"


def test_another_datamodule_is_refused() -> None:
    trainer = bare_trainer(1)
    trainer.datamodule = LightningDataModule()  # type: ignore[attr-defined]
    with pytest.raises(ConfigError) as refused:
        data_of(trainer)
    assert str(refused.value) == "trainer.fit(datamodule=...): expected a RolloutDataModule, got LightningDataModule"


# -- greedy evaluation


class Seen(Callback):
    """After each update: what callback_metrics say, and which update the newest evaluation is of."""

    def __init__(self, evaluation: GreedyEvaluation) -> None:
        self.evaluation, self.rows = evaluation, []  # type: ignore[var-annotated]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self.evaluation.latest is not None
        self.rows.append((self.evaluation.latest.update, self.evaluation.is_fresh(trainer)))


def test_untrained_policy_and_then_every_few_env_steps_are_evaluated() -> None:
    evaluation = GreedyEvaluation(every_env_steps=40, num_episodes=1)  # an update has 20
    seen, data = Seen(evaluation), scripted([5.0, 7.0, 6.0])
    trainer = bare_trainer(5, evaluation, seen)
    trainer.fit(small_module(), datamodule=data)
    assert seen.rows == [(0, False), (2, True), (2, False), (4, True), (4, False)]
    assert evaluation.latest is not None and evaluation.latest.env_steps == 4 * 20
    assert float(trainer.callback_metrics["eval/return"]) == 6.0
    assert data.script["evaluation"] == []


@pytest.mark.parametrize(
    ("every_env_steps", "run_env_steps", "spacing"),
    [(None, 1000, 20), (None, 1049, 20), (None, 30, 1), (None, None, 20_000), (7, 1000, 7), (7, None, 7)],
)
def test_spacing_is_a_fiftieth_of_the_run_unless_it_is_set(
    every_env_steps: int | None, run_env_steps: int | None, spacing: int
) -> None:
    assert spacing_of(every_env_steps, run_env_steps) == spacing


@pytest.mark.parametrize(
    ("env_steps", "lengths", "every_env_steps", "run_env_steps", "due"),
    [
        (2048, (9, 8), None, 100_000, 4_000),  # the next fiftieth: 6 * 17 env steps are less
        (2048, (500, 500), None, 100_000, 8_048),  # 6 * 1000 env steps after the last one
        (97_000, (500, 500), None, 100_000, 100_000),  # the end comes before them
        (100_352, (500, 500), None, 100_000, 106_352),  # the end has been evaluated
        (2048, (500, 500), None, None, 20_000),
        (2048, (5000, 5000), None, None, 62_048),
        (2048, (500, 500), 3, 100_000, 2_049),  # what was set holds
    ],
)
def test_default_evaluations_take_at_most_one_of_seven_env_steps(
    env_steps: int, lengths: tuple[int, ...], every_env_steps: int | None, run_env_steps: int | None, due: int
) -> None:
    latest = Evaluation(8, env_steps, EpisodeResults(tuple(map(float, lengths)), lengths))
    assert next_evaluation(latest, every_env_steps, run_env_steps) == due


def evaluated(total_env_steps: int, num_updates: int) -> list[int]:
    """After each of the updates of 20 env steps: which update the newest evaluation, of one episode of 7 steps, is of."""
    evaluation = GreedyEvaluation(num_episodes=1)
    seen, module = Seen(evaluation), small_module(total_env_steps=total_env_steps)
    fit(num_updates, evaluation, seen, module=module, data=scripted([1.0, 2.0, 3.0]))
    return [update for update, _ in seen.rows]


def test_evaluations_follow_the_updates_that_reach_another_fiftieth_of_the_run() -> None:
    assert evaluated(3500, 8) == [0, 0, 0, 4, 4, 4, 7, 7]  # every 70 env steps: at 80 and 140


def test_long_episodes_delay_the_next_evaluation_but_not_that_of_the_end() -> None:
    assert evaluated(100, 5) == [0, 0, 3, 3, 5]  # 6 * 7 env steps after 0 and after 60, but the run ends at 100


# -- stop when solved


def stopped_after(solved: StopWhenSolved, data: Any, updates: int = 4) -> int:
    fit(updates, GreedyEvaluation(every_env_steps=1, num_episodes=1), solved, data=data)
    return int(data.update)


def test_evaluation_exactly_at_the_threshold_stops_the_run() -> None:
    solved = StopWhenSolved(threshold=6.0, confirmation_episodes=0)
    assert stopped_after(solved, scripted([0.0, 5.999, 6.0])) == 2
    assert solved.solved_at == 2 * 20


def test_untrained_policy_does_not_stop_a_run() -> None:
    assert stopped_after(StopWhenSolved(threshold=6.0, confirmation_episodes=0), scripted([9.0, 5.0, 6.0])) == 2


def test_confirmation_exactly_at_the_threshold_stops_the_run() -> None:
    solved = StopWhenSolved(threshold=6.0, confirmation_episodes=3)
    assert stopped_after(solved, scripted([0.0, 8.0], [[6.0, 6.0, 6.0]])) == 1
    assert solved.confirmation is not None and solved.confirmation.returns == (6.0, 6.0, 6.0)


@pytest.mark.parametrize(
    ("margin", "returns", "stops"),
    [
        (2.0, [6.0, 10.0], False),  # 8 - 2 * 2 / sqrt(2) = 5.17 < 6: the mean alone is not enough
        (1.0, [6.0, 10.0], True),  # 8 - 2 / sqrt(2) = 6.59
        (0.0, [7.0, 5.0], True),  # the mean alone counts
        (0.0, [5.0, 7.0], False),  # the first half speaks against it, so the second is not played
        (0.0, [5.0, 6.9], False),
    ],
)
def test_confirmation_must_clear_the_threshold_by_the_margin(margin: float, returns: list[float], stops: bool) -> None:
    solved = StopWhenSolved(threshold=6.0, confirmation_episodes=2, margin=margin)
    stopped_after(solved, scripted([0.0, 8.0], [returns]), updates=1)
    assert (solved.solved_at is not None) == stops


def test_run_goes_on_after_a_confirmation_that_failed() -> None:
    solved = StopWhenSolved(threshold=6.0, confirmation_episodes=1)
    data = scripted([0.0, 8.0, 5.0, 7.0], [[5.0], [6.5]])  # no confirmation after the 5.0
    assert stopped_after(solved, data) == 3
    assert data.script["confirmation"] == []


def test_old_evaluation_is_not_looked_at_again() -> None:
    data = scripted([0.0, 8.0], [[5.0]])
    fit(3, GreedyEvaluation(every_env_steps=40, num_episodes=1), StopWhenSolved(6.0, confirmation_episodes=1), data=data)
    assert data.update == 3 and data.script["confirmation"] == []


def test_threshold_is_the_environments_own_unless_it_is_set() -> None:
    solved = StopWhenSolved(confirmation_episodes=0)
    assert stopped_after(solved, scripted([0.0, 9.79, 9.8])) == 2  # 0.98 * 10 steps, as registered


def test_environment_without_a_threshold_is_never_solved() -> None:
    data = small_data("tests.toy_envs:ConstantReward-v0", num_envs=1)
    solved = StopWhenSolved(confirmation_episodes=0)
    fit(1, GreedyEvaluation(1, 1), solved, module=small_module(spec=vector_spec(1, 2)), data=data)
    assert solved.solved_at is None


# -- checkpoints


def test_best_is_the_latest_of_the_best_and_last_is_the_last() -> None:
    checkpoint = RunCheckpoint("checkpoints", every_n_updates=100)
    fit(5, GreedyEvaluation(1, 1), checkpoint, data=scripted([9.0, 1.0, 3.0, 2.0, 3.0, 2.5]))
    assert update_of("checkpoints/best.ckpt") == 4  # the second 3.0; the untrained policy's 9.0 does not count
    assert update_of("checkpoints/last.ckpt") == 5
    assert {path.name for path in Path("checkpoints").glob("*.ckpt")} == {"best.ckpt", "best.previous.ckpt", "last.ckpt"}
    assert Path(checkpoint.best_model_path).name == "best.ckpt"
    assert checkpoint.best_model_score is not None and float(checkpoint.best_model_score) == 3.0


def test_policy_that_solved_the_run_is_better_than_any_that_did_not() -> None:
    data = scripted([0.0, 9.0, 6.0], [[4.0], [6.0]])  # 9.0 is not confirmed, 6.0 is
    fit(5, GreedyEvaluation(1, 1), StopWhenSolved(6.0, 1), RunCheckpoint("checkpoints"), data=data)
    assert update_of("checkpoints/best.ckpt") == update_of("checkpoints/last.ckpt") == 2


def test_last_is_written_every_few_updates_and_at_the_end() -> None:
    written: list[int] = []

    class Watched(RunCheckpoint):
        def _save_last(self, trainer: Trainer, update: int) -> None:
            super()._save_last(trainer, update)
            written.append(update_of("checkpoints/last.ckpt"))

    fit(5, Watched("checkpoints", every_n_updates=2), data=scripted([]))
    assert written == [2, 4, 5]


def test_last_is_not_written_twice_for_the_same_update() -> None:
    written: list[int] = []

    class Watched(RunCheckpoint):
        def _save_last(self, trainer: Trainer, update: int) -> None:
            super()._save_last(trainer, update)
            written.append(update)

    fit(4, Watched("checkpoints", every_n_updates=2), data=scripted([]))
    assert written == [2, 4]


def test_checkpoint_holds_the_parameters_of_its_update() -> None:
    module, _ = fit(2, RunCheckpoint("checkpoints"))
    assert same(loaded("checkpoints/last.ckpt")["state_dict"], parameters(module))


def test_module_comes_back_from_a_checkpoint_without_being_told_its_settings() -> None:
    module, _ = fit(1, RunCheckpoint("checkpoints"), module=small_module(gamma=0.9, activation="relu"))
    restored = PPOModule.load_from_checkpoint("checkpoints/last.ckpt")
    assert same(parameters(restored), parameters(module))
    assert dict(restored.hparams) == dict(module.hparams)
    obs = {"": torch.rand(16, 3, generator=torch.Generator().manual_seed(0))}
    assert restored(obs)[0].equal(module(obs)[0])


def test_trainer_tests_the_policy_of_a_checkpoint() -> None:
    trained, _ = fit(3, RunCheckpoint("checkpoints"), module=small_module(learning_rate=0.1))
    by_hand, from_file = small_data(), small_data()
    bare_trainer(1).test(trained, datamodule=by_hand, verbose=False)
    trainer = bare_trainer(1, RunCheckpoint("checkpoints"))
    trainer.test(small_module(seed=9), datamodule=from_file, ckpt_path="checkpoints/last.ckpt", verbose=False)
    by_hand.update = 3
    assert from_file.update == 3  # the counters are the checkpoint's; on them the seeds depend
    bare_trainer(1).test(trained, datamodule=by_hand, verbose=False)
    assert from_file.results == by_hand.results


def test_fast_dev_run_writes_no_files() -> None:
    callbacks = GreedyEvaluation(1, 1), RunCheckpoint("checkpoints")
    bare_trainer(1, *callbacks, fast_dev_run=True).fit(small_module(), datamodule=small_data())
    assert list(Path().iterdir()) == []


# -- the curve


def test_curve_begins_with_the_untrained_policy_and_is_rewritten_at_every_evaluation() -> None:
    lengths: list[list[int]] = []

    class Reader(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            lengths.append(TrainLog.read("deep/down/curve.json").steps)

    fit(3, GreedyEvaluation(40, 1), CurveExport("deep/down/curve.json"), Reader(), data=scripted([5.0, 7.0]))
    assert lengths == [[0], [0, 40], [0, 40]]
    written = json.loads(Path("deep/down/curve.json").read_text())
    assert written == {
        "title": "PPO on tests.toy_envs:Identity-v0: greedy evaluation return",
        "steps": [0, 40],
        "series": [{"name": "avg_return", "values": [5.0, 7.0], "color": "#4e79a7"}],
        "notes": ["env tests.toy_envs:Identity-v0, seed 0, 2 envs x 10 steps; x axis: env steps"],
    }


def test_curve_notes_where_the_run_was_solved() -> None:
    callbacks = GreedyEvaluation(1, 1), StopWhenSolved(6.0, 0), CurveExport("curve.json")
    fit(3, *callbacks, data=scripted([0.0, 6.0]))
    assert TrainLog.read("curve.json").notes[1] == "solved at env step 20 (threshold 6)"


def test_curve_without_a_path_is_not_written() -> None:
    fit(1, GreedyEvaluation(1, 1), CurveExport(None))
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("env_id", "name"),
    [
        ("CartPole-v1", "cartpole"),
        ("LunarLander-v3", "lunarlander"),
        ("my.package:MyEnv-v0", "myenv"),
        ("ALE/Pong-v5", "ale_pong"),
        ("MiniGrid-DoorKey-5x5-v0", "minigrid-doorkey-5x5"),
        ("GymV26Environment", "gymv26environment"),
        ("a:b/../C d-v1", "b_c_d"),
    ],
)
def test_name_of_an_environment_is_safe_in_a_path(env_id: str, name: str) -> None:
    assert slug(env_id) == name


def test_curve_of_a_run_is_linked_to_by_the_name_of_its_environment(capsys: pytest.CaptureFixture[str]) -> None:
    fit(1, GreedyEvaluation(1, 1), CurveExport(), RunSummary())
    link, path = Path("data/rl/ppo_identity_trainlog.json"), "runs/tests.toy_envs-Identity-v0/1/curve.json"
    assert TrainLog.read(link).steps == [0, 20] and link.resolve() == Path(path).resolve()
    assert f"curve: {path}" in capsys.readouterr().out.splitlines()


def test_curve_that_cannot_be_written_is_the_disks_fault() -> None:
    Path("taken").write_text("a file, not a directory")
    with pytest.raises(CheckpointError, match=r"curve\.path=taken/curve\.json: cannot be written: "):
        fit(1, GreedyEvaluation(1, 1), CurveExport("taken/curve.json"))


def test_same_seed_writes_the_same_curve_to_the_last_byte() -> None:
    for name, seed in (("first", 1), ("second", 1), ("third", 2)):
        module, data = small_module(seed=seed, learning_rate=0.01), small_data(seed=seed)
        fit(3, GreedyEvaluation(1, 3), CurveExport(f"{name}.json"), module=module, data=data)
    assert Path("first.json").read_bytes() == Path("second.json").read_bytes()
    assert TrainLog.read("third.json").series != TrainLog.read("first.json").series


# -- progress


def summary(capsys: pytest.CaptureFixture[str], updates: int, *callbacks: Callback, data: Any) -> list[str]:
    fit(updates, *callbacks, RunSummary(), data=data)
    return capsys.readouterr().out.splitlines()


def test_summary_says_solved_and_where_things_are(capsys: pytest.CaptureFixture[str]) -> None:
    callbacks = GreedyEvaluation(1, 1), StopWhenSolved(6.0, 2), CurveExport("curve.json"), RunCheckpoint("checkpoints")
    lines = summary(capsys, 3, *callbacks, data=scripted([0.0, 7.0], [[6.5, 6.5]]))
    assert lines[0] == "solved at env step 20: 2 fresh greedy episodes average 6.5 (threshold 6)"
    assert lines[1].startswith("1 updates, 20 env steps, ")
    assert "curve: curve.json" in lines
    assert [Path(line.partition(": ")[2]).exists() for line in lines if "checkpoint: " in line] == [True, True]


def test_summary_says_not_solved(capsys: pytest.CaptureFixture[str]) -> None:
    lines = summary(capsys, 1, GreedyEvaluation(1, 1), StopWhenSolved(6.0, 1), data=scripted([0.0, 5.0]))
    assert lines[0] == "not solved: no confirmed evaluation return of 6"


def test_summary_of_a_run_that_never_counts_as_solved_names_no_return(capsys: pytest.CaptureFixture[str]) -> None:
    lines = summary(capsys, 1, GreedyEvaluation(1, 1), StopWhenSolved(math.inf, 1), data=scripted([0.0, 5.0]))
    assert lines[0] == "not solved: no threshold"


def test_progress_bar_shows_steps_returns_and_threshold_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr("lit_ppo.callbacks.run_progress._REFRESHES_PER_S", 1e9)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    fit(3, GreedyEvaluation(1, 1), StopWhenSolved(9.0, 0), RunProgress(), data=scripted([5.0, 6.0, 7.0, 8.0]))
    drawn = terminal.getvalue()
    assert "3/3" in drawn and "60.0 steps" in drawn and "/s return " in drawn
    assert drawn.rstrip().endswith("eval 8 of 9")  # which comes after the last update


class ReturnsOnce(Callback):
    """Only the first rollout has ended episodes."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        metrics = data_of(trainer).metrics
        metrics.pop("episodes/return", None)
        if data_of(trainer).update == 1:
            metrics["episodes/return"] = -1234.5


def test_progress_bar_keeps_the_last_return_and_fits_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, terminal = os.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    with os.fdopen(terminal, "w") as stderr:
        monkeypatch.setattr("sys.stderr", stderr)
        monkeypatch.setattr("lit_ppo.callbacks.run_progress._REFRESHES_PER_S", 1e9)
        data = scripted([-1234.5] * 4)
        data.env_steps = 123_456_789
        fit(3, ReturnsOnce(), GreedyEvaluation(1, 1), StopWhenSolved(1234.5, 0), RunProgress(), data=data)
        drawn = os.read(reader, 10_000).decode().replace("\r", "\n").split("\n")
    os.close(reader)
    shown = [line for line in drawn if line.strip()]
    assert shown[-1].startswith("3/3 |") and shown[-1].endswith("return -1234 eval -1234 of 1234.5")
    assert 70 < max(map(len, shown)) <= 80


def test_infinite_threshold_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    fit(1, GreedyEvaluation(1, 1), StopWhenSolved(math.inf, 1), RunProgress(interval_s=0.0), data=scripted([5.0, 6.0]))
    shown = capsys.readouterr().out
    assert "inf" not in shown and "eval 5" in shown


class Clock:
    """Goes forward by 4 s for each update."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class Ticks(Callback):
    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_batch_start(self, *args: Any) -> None:
        self.clock.seconds += 4.0


def test_without_a_terminal_a_line_comes_at_once_and_then_every_ten_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    monkeypatch.setattr("lit_ppo.callbacks.run_progress.perf_counter", clock)
    callbacks = GreedyEvaluation(1, 1), StopWhenSolved(9.0, 0), RunProgress(), Ticks(clock)
    fit(7, *callbacks, data=scripted([5.0] * 8))
    out, err = capsys.readouterr()
    lines = [re.sub(r" return [^,]+,", " return R,", line) for line in out.splitlines()]
    assert lines == [
        "tests.toy_envs:Identity-v0, 2 environments, up to 140 env steps, solved at a return of 9",
        "00:12 update 3/7, 60 env steps, 5 steps/s, return R, eval 5 of 9",  # 12 s is the first update past 10 s
        "00:24 update 6/7, 120 env steps, 5 steps/s, return R, eval 5 of 9",
    ]
    assert err == ""


def test_notebook_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("lit_ppo.callbacks.run_progress._IN_NOTEBOOK", True)
    fit(2, RunProgress(interval_s=0.0), data=scripted([]))
    out, err = capsys.readouterr()
    assert "2/2 |" in err and "update 2" not in out


@pytest.mark.parametrize(("total", "drawn"), [(60, "3/3"), (41, "3/3"), (None, "3/4")])
def test_progress_bar_counts_the_updates_of_the_run(total: int | None, drawn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr("lit_ppo.callbacks.run_progress._REFRESHES_PER_S", 1e9)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    fit(4 if total is None else -1, RunProgress(), data=scripted([]), module=small_module(total_env_steps=total))
    assert drawn in terminal.getvalue() and "inf" not in terminal.getvalue()


def test_progress_bar_needs_no_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", None)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    fit(1, RunProgress(), data=scripted([]))


def test_progress_bar_is_not_drawn_into_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr("sys.stderr", file)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    fit(1, RunProgress(), data=scripted([]))
    assert file.getvalue() == ""


# -- signals, in a program of one's own

ALL_SIGNALS = sorted(signal.valid_signals())
SILENT = ("on_exception", "on_sanity", "on_validation", "on_test", "on_predict", "on_save", "on_load", "on_before_zero_grad")
CALLED_IN_FIT = [name for name in vars(Callback) if re.match("on_|setup|teardown", name) and not name.startswith(SILENT)]


class Does(Callback):
    """Does something when a hook is called for the first time."""

    def __init__(self, hook: str, act: Callable[[], None]) -> None:
        acts = iter([act])
        call = lambda *arguments, **named: next(acts, lambda: None)()  # noqa: E731
        self.__class__ = type("Does", (Does,), {hook: call})  # Lightning looks for hooks that a class overrides


def raising(error: BaseException) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


def signals(*numbers: int) -> Callable[[], None]:
    return lambda: [signal.raise_signal(number) for number in numbers] and None


class Signalled(RolloutDataModule):
    """Gets a signal when it collects its first rollout."""

    def next_rollout(self) -> Rollout:
        signal.raise_signal(signal.SIGTERM)
        return super().next_rollout()


HANGING = {
    "cls": Signalled,
    "env_id": "tests.fault_envs:Faulty-v0",
    "env_kwargs": {"fault": "hang", "at_reset": 0},
    "step_timeout_s": 1000.0,
}
WAYS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "normal": (None, None, {}),
    "refused": (None, ConfigError, {"horizon": 2}),
    **{
        f"{type(error).__name__} in {hook}": ((hook, raising(error)), type(error), {})
        for hook in CALLED_IN_FIT
        for error in (OSError("of another"), KeyboardInterrupt())
    },
    **{f"signal {n}": (("on_train_epoch_start", signals(n)), None, {}) for n in (signal.SIGINT, signal.SIGTERM)},
    **{
        f"signals {a} and {b}": (("on_before_optimizer_step", signals(a, b)), KeyboardInterrupt, {})
        for a in (signal.SIGINT, signal.SIGTERM)
        for b in (signal.SIGINT, signal.SIGTERM)
    },
    "signal while environments hang": (None, RunInterrupted, HANGING),
}


@pytest.mark.parametrize(
    ("way", "is_last"), [*((way, True) for way in WAYS), *((way, False) for way in WAYS if "setup" in way)]
)
def test_handlers_and_timer_of_the_program_are_back_however_fit_ends(way: str, is_last: bool) -> None:
    (act, error, settings), exits = WAYS[way], GracefulExit(grace_s=0.1)
    callbacks = [exits] if act is None else [exits, Does(*act)] if is_last else [Does(*act), exits]
    data = small_data(**({"bridge": "process" if "env_id" in settings else "inprocess"} | settings))
    own = {signal.SIGALRM: signal.signal(signal.SIGALRM, lambda number, frame: None)}
    own[signal.SIGTERM] = signal.signal(signal.SIGTERM, lambda number, frame: None)
    own[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 1e6, 7)
    before = {number: signal.getsignal(number) for number in ALL_SIGNALS}
    try:
        with pytest.raises(error) if error else contextlib.nullcontext():
            bare_trainer(2, *callbacks).fit(small_module(spec=data.spec, update_epochs=1), datamodule=data)
        assert {number: signal.getsignal(number) for number in ALL_SIGNALS} == before
        remaining, interval = signal.getitimer(signal.ITIMER_REAL)
        assert remaining > 9e5 and interval == 7
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in own.items():
            signal.signal(number, handler)
    assert (exits.received is not None) == way.startswith("signal")


def test_run_that_a_signal_has_ended_goes_on_when_it_is_fitted_again() -> None:
    module, data, exits = small_module(), small_data(bridge="inprocess"), GracefulExit()
    bare_trainer(5, exits, Does("on_train_batch_start", signals(signal.SIGINT))).fit(module, datamodule=data)
    assert (data.update, exits.received) == (1, signal.SIGINT)
    bare_trainer(3, exits).fit(module, datamodule=data)
    assert (data.update, exits.received) == (4, None)
