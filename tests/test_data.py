"""RolloutDataModule: when rollouts are collected, what they count, which seeds they use, and what is left behind."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback

from lit_ppo.bridge.journal import Journal
from lit_ppo.bridge.worker_slice import WorkerSlice
from lit_ppo.callbacks.greedy_evaluation import GreedyEvaluation
from lit_ppo.contract import ContractSettings
from lit_ppo.data import OneItem, RolloutDataModule
from lit_ppo.errors import ConfigError, ContractViolation
from lit_ppo.module import PPOModule
from lit_ppo.rollout import Batch, Rollout
from tests.runs import IDENTITY, KeptData, KeptModule, ScriptedPlay, bare_trainer, fit, small_data, small_module
from tests.toy_envs import EPISODE_STEPS

CPU = torch.device("cpu")


def children() -> set[int]:
    """Processes whose parent we are, zombies too."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        found |= {int(pid) for pid in (task / "children").read_text().split()}
    return found


# -- the dataset


def test_dataset_has_one_item_and_makes_nothing_before_it_is_asked() -> None:
    made: list[int] = []
    dataset = OneItem(lambda: made.append(len(made)) or len(made))
    assert len(dataset) == 1
    items = iter(dataset)
    assert made == []
    assert list(items) == [1]  # and no second one
    assert list(dataset) == [2]  # each pass makes it anew


def test_each_update_learns_from_a_rollout_of_the_policy_it_updates() -> None:
    """Nothing is fetched ahead: a rollout is collected only once the update before it is over."""
    order: list[str] = []

    class Watched(KeptData):
        def next_rollout(self) -> Any:
            order.append("collect")
            return super().next_rollout()

    module = small_module()
    shipped = module.training_step
    module.training_step = lambda batch, batch_idx: (order.append("update"), shipped(batch, batch_idx))[1]  # type: ignore[method-assign]
    fit(3, module=module, data=small_data(cls=Watched))
    assert order == ["collect", "update"] * 3


def test_saved_state_is_that_before_the_rollout_until_the_module_has_learnt_from_it() -> None:
    seen: list[tuple[str, int, int]] = []
    data = small_data()

    def look(moment: str) -> None:
        state = data.state_dict()
        seen.append((moment, state["update"], state["env_steps"]))

    class Watched(KeptModule):
        def make_batch(self, rollout: Rollout) -> Batch:
            look("updating")
            return super().make_batch(rollout)

    class Watcher(Callback):
        def on_train_batch_start(self, *args: Any) -> None:
            look("collected")

        def on_train_batch_end(self, *args: Any) -> None:
            look("updated")

    module = small_module(Watched)
    module.policy.actor.register_forward_hook(
        lambda *args: look("collecting") if not seen or seen[-1][0] == "updated" else None
    )
    fit(2, Watcher(), module=module, data=data)
    moments = ["collecting", "collected", "updating", "updated"]
    assert seen == [
        *zip(moments, (0, 0, 0, 1), (0, 0, 0, 20), strict=True),
        *zip(moments, (1, 1, 1, 2), (20, 20, 20, 40), strict=True),
    ]


def test_module_that_learnt_in_another_run_does_not_end_the_boundary_of_this_one() -> None:
    states: list[int] = []

    class Watcher(Callback):
        def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
            states.append(trainer.datamodule.state_dict()["update"])

    module = small_module()
    for _ in range(2):  # the first update of each run is number 0
        fit(1, Watcher(), module=module)
    assert states == [0, 0]


# -- what a rollout counts


def test_counters_and_episode_metrics_go_on_from_update_to_update() -> None:
    # 2 envs x 15 steps with episodes of 10: each env ends one in the first rollout and two in the second
    _, data = fit(2, data=small_data(horizon=15))
    assert (data.update, data.env_steps) == (2, 60)
    assert [(rollout.update, rollout.env_steps) for rollout in data.rollouts] == [(0, 0), (1, 30)]
    assert data.metrics["env/steps"] == 60
    assert data.metrics["episodes/ended"] == 4
    assert data.metrics["episodes/length"] == EPISODE_STEPS
    assert data.metrics["env/restarts"] == data.metrics["env/abandoned_episodes"] == 0


def test_episode_return_is_the_mean_over_the_episodes_that_ended() -> None:
    _, data = fit(1, data=small_data(num_envs=3, horizon=EPISODE_STEPS))
    rollout = data.rollouts[0]
    rewards = (rollout.obs[""][:-1].argmax(dim=-1) == rollout.actions).double()  # 1 where the action is the observation's
    assert data.metrics["episodes/return"] == pytest.approx(float(rewards.sum() / 3))


def test_rollout_without_an_ended_episode_has_no_episode_return() -> None:
    _, data = fit(1, data=small_data(horizon=5))
    assert data.metrics["episodes/ended"] == 0
    assert "episodes/return" not in data.metrics and "episodes/length" not in data.metrics


def test_environments_go_on_where_the_last_rollout_left_them() -> None:
    _, one = fit(1, data=small_data(horizon=15))
    _, two = fit(2, data=small_data(horizon=15))
    assert one.rollouts[0].obs[""].equal(two.rollouts[0].obs[""])
    # step 15 of a new episode begun in the middle, not the first observations of a run again
    assert not two.rollouts[1].obs[""].equal(two.rollouts[0].obs[""])
    assert two.rollouts[1].obs[""][0].equal(two.rollouts[0].obs[""][-1])


# -- seeds


def test_greedy_episodes_have_seeds_of_their_own_for_each_purpose_and_update() -> None:
    data, played = small_data(), []

    class Player:
        def play_each(self, policy: Any, seeds: list[int], device: torch.device) -> Any:
            played.append(seeds)
            return np.zeros(len(seeds)), np.ones(len(seeds), np.int64)

    data._player = Player()
    for data.update in (0, 1):
        for purpose in ("evaluation", "test", "confirmation"):
            data.play(lambda obs: obs, purpose, 20, CPU)
    training = [data._training_seed(env, episode) for env in range(2) for episode in range(20)]
    seeds = training + [seed for episodes in played for seed in episodes]
    assert len(set(seeds)) == len(seeds) == 40 + 6 * 20


def test_seeds_of_greedy_episodes_do_not_depend_on_how_many_are_played() -> None:
    data, played = small_data(), []

    class Player:
        def play_each(self, policy: Any, seeds: list[int], device: torch.device) -> Any:
            played.append(seeds)
            return np.zeros(len(seeds)), np.ones(len(seeds), np.int64)

    data._player = Player()
    for num_episodes in (3, 5):
        data.play(lambda obs: obs, "test", num_episodes, CPU)
    assert played[0] == played[1][:3]


# -- settings


@pytest.mark.parametrize("setting", ["num_envs", "horizon", "evaluation_envs", "validation_episodes", "test_episodes"])
def test_count_below_1_is_refused_by_name_and_value(setting: str) -> None:
    with pytest.raises(ConfigError) as refused:
        RolloutDataModule(**{setting: 0})  # type: ignore[arg-type]
    assert str(refused.value) == f"data.{setting}=0: expected at least 1"


def test_negative_seed_is_refused() -> None:
    with pytest.raises(ConfigError) as refused:
        RolloutDataModule(seed=-1)
    assert str(refused.value) == "data.seed=-1: expected at least 0"


def test_workers_must_share_the_environments_evenly() -> None:
    with pytest.raises(ConfigError) as refused:
        RolloutDataModule(num_envs=8, num_workers=3)
    assert str(refused.value) == "data.num_envs=8: expected a multiple of data.num_workers=3"


# -- boundaries


def test_native_environments_are_not_saved_at_every_update(monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    save = WorkerSlice.save
    monkeypatch.setattr(WorkerSlice, "save", lambda part: (saved.append(part.index), save(part))[1])
    data = RolloutDataModule("CartPole-v1", num_envs=2, horizon=8, vectorization="native", evaluation_envs=1)
    module = PPOModule(data.spec, minibatch_size=16)
    bare_trainer(5).fit(module, data)
    assert saved == [0, 0]  # in the first reset, where it is proved to work


def test_boundary_before_a_rollout_is_made_text_of_only_when_it_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    state_dict = Journal.state_dict
    monkeypatch.setattr(Journal, "state_dict", lambda journal, mark: (written.append(mark.end), state_dict(journal, mark))[1])
    fit(4)
    assert written == []


# -- observations outside their space


def test_training_and_evaluation_warn_once_together(caplog: pytest.LogCaptureFixture) -> None:
    leaving = {"env_id": "tests.fault_envs:Faulty-v0", "env_kwargs": {"fault": "obs outside", "at_step": 1}}
    data = RolloutDataModule(**leaving, num_envs=2, horizon=8, evaluation_envs=1)
    module = PPOModule(data.spec, minibatch_size=16)
    bare_trainer(2, GreedyEvaluation(num_episodes=1)).fit(module, data)
    warnings = [record.getMessage() for record in caplog.records if "declared observation space" in record.getMessage()]
    assert len(warnings) == 1 and "got 3.0" in warnings[0]


# -- processes


def test_fit_leaves_no_process_behind() -> None:
    before = children()
    fit(1)
    assert children() == before


def test_fit_that_raises_leaves_no_process_behind() -> None:
    class Broken(KeptData):
        def next_rollout(self) -> Any:
            super().next_rollout()
            raise RuntimeError("in the middle of a run")

    before, data = children(), small_data(cls=Broken)
    with pytest.raises(RuntimeError, match="in the middle of a run"):
        fit(1, data=data)
    assert children() == before


def test_environment_that_breaks_its_contract_ends_the_fit_by_name() -> None:
    before = children()
    data = small_data(contract=ContractSettings(reward_range=(-0.5, 0.5)))
    with pytest.raises(ContractViolation, match=r"rewards\[\d\]: expected .*got 1\.0"):
        fit(1, data=data)
    assert children() == before


def test_close_may_be_called_again_and_the_datamodule_used_again() -> None:
    data = small_data()
    assert data.spec.observation[0].shape == (3,) and data.spec.action.choices == (3,)
    data.close()
    data.close()
    assert data.spec.observation[0].shape == (3,)  # another process
    data.close()


def test_workers_do_not_change_what_is_trained_on() -> None:
    _, one = fit(2, data=small_data(num_envs=4))
    _, two = fit(2, data=small_data(num_envs=4, num_workers=2))
    for first, second in zip(one.rollouts, two.rollouts, strict=True):
        assert first.obs[""].equal(second.obs[""]) and first.final_obs[""].equal(second.final_obs[""])
        assert all(mine.equal(other) for mine, other in zip(first[1:7], second[1:7], strict=True))


# -- validate and test


def test_fit_has_nothing_to_validate() -> None:
    data = small_data()
    data._stage = "fit"
    assert data.val_dataloader() == []


@pytest.mark.parametrize(("stage", "purpose", "episodes"), [("validate", "evaluation", 4), ("test", "test", 6)])
def test_stage_plays_its_own_episodes_when_its_one_item_is_asked_for(stage: str, purpose: str, episodes: int) -> None:
    data = small_data(cls=ScriptedPlay, validation_episodes=4, test_episodes=6)
    data.script = {purpose: [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]]}
    data.trainer = SimpleNamespace(lightning_module=small_module())
    data._stage = stage
    loader = data.val_dataloader() if stage == "validate" else data.test_dataloader()
    assert len(loader) == 1 and data.results is None
    assert [list(results.returns) for results in loader] == [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0][:episodes]]
    assert data.results is not None


@pytest.mark.parametrize(("stage", "prefix", "episodes"), [("validate", "val", 4), ("test", "test", 6)])
def test_trainer_plays_greedy_episodes_and_reports_them(stage: str, prefix: str, episodes: int) -> None:
    before, data = children(), small_data(validation_episodes=4, test_episodes=6)
    [metrics] = getattr(bare_trainer(1), stage)(small_module(), datamodule=data, verbose=False)
    assert metrics[f"{prefix}/episodes"] == len(data.results.returns) == episodes
    assert metrics[f"{prefix}/return_mean"] == pytest.approx(data.results.mean)
    assert metrics[f"{prefix}/return_std"] == pytest.approx(data.results.std)
    assert metrics[f"{prefix}/return_min"] == min(data.results.returns)
    assert metrics[f"{prefix}/return_max"] == max(data.results.returns)
    assert metrics[f"{prefix}/length_mean"] == EPISODE_STEPS
    assert data.environment.env_id == IDENTITY and os.getpid() not in children() and children() == before
