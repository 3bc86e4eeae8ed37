"""Greedy episodes: the same numbers however many are played at a time, and those of gymnasium in this process."""

import contextlib
import os
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lit_ppo import data, evaluation
from lit_ppo.bridge import dealing, making
from lit_ppo.bridge.settings import BridgeSettings, EnvironmentSettings
from lit_ppo.callbacks.greedy_evaluation import GreedyEvaluation
from lit_ppo.callbacks.stop_when_solved import StopWhenSolved
from lit_ppo.contract import VectorStep
from lit_ppo.distributions import Categorical
from lit_ppo.errors import ConfigError, EnvironmentFault, EnvironmentRaised
from lit_ppo.evaluation import EpisodeResults, GreedyPlayer
from tests.runs import fit, small_data
from tests.specs import box, discrete, policy_of, spec_of
from tests.toy_envs import EPISODE_STEPS

SEEDS = [11, 5, 99, 2**31 - 1, 0]
CPU = torch.device("cpu")


def playing(rule: Callable[[Tensor], Tensor]) -> Any:
    """A policy of two actions whose logits are a function of the one vector that it sees."""
    return SimpleNamespace(
        act=lambda obs, state, begins, noise: (rule(obs[""]).argmax(dim=1), None),
        initial_state=lambda num_envs: None,
        distribution=Categorical(2, 0),
        seen_as=lambda path, dtype: np.dtype(np.float32),
    )


def push_where_it_leans(obs: Tensor) -> Tensor:
    """Logits of CartPole's simplest rule; its episodes last some 25 to 60 steps."""
    return torch.stack([-obs[:, 2], obs[:, 2]], dim=1)


def in_process(seeds: list[int]) -> EpisodeResults:
    env = gymnasium.make("CartPole-v1")
    returns, lengths = [], []
    for seed in seeds:
        obs, _ = env.reset(seed=seed)
        total, length, ended = 0.0, 0, False
        while not ended:
            action = int(push_where_it_leans(torch.from_numpy(obs[None])).argmax())
            obs, reward, terminated, truncated, _ = env.step(action)
            total, length, ended = total + float(reward), length + 1, terminated or truncated
        returns.append(total)
        lengths.append(length)
    env.close()
    return EpisodeResults(tuple(returns), tuple(lengths))


@pytest.fixture(scope="module", params=[(1, 1), (3, 3), (7, 1), (4, 2), (6, "auto")])
def player(request: pytest.FixtureRequest) -> Iterator[GreedyPlayer]:
    num_envs, num_workers = request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dealing, "_LEAST_SHARE_S", 1e-9)  # `auto` then takes more workers in the midst of the first episodes
        patch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2})
        settings = BridgeSettings(num_workers=num_workers)
        player = GreedyPlayer(EnvironmentSettings("CartPole-v1"), num_envs, settings=settings)
        assert len(player.bridge.slices) == settings.first_workers
        yield player
        assert len(player.bridge.slices) == (3 if num_workers == "auto" else num_workers)
    player.close()


def test_episodes_are_those_of_gymnasium_in_the_order_of_the_seeds(player: GreedyPlayer) -> None:
    expected = in_process(SEEDS)
    assert len(set(expected.lengths)) > 2  # else the order is not seen
    assert player.play(playing(push_where_it_leans), SEEDS, CPU) == expected


def test_player_can_play_again_and_forgets_what_was_before(player: GreedyPlayer) -> None:
    player.play(playing(push_where_it_leans), SEEDS, CPU)
    assert player.play(playing(push_where_it_leans), SEEDS[1:3], CPU) == in_process(SEEDS[1:3])


FAULTY = "tests.fault_envs:Faulty-v0"


def larger_of_two(obs: Tensor) -> Tensor:
    """Logits for `FAULTY`."""
    return obs[:, :2]


def played(seeds: list[int], num_envs: int, broken: dict[int, str], **settings: Any) -> tuple[EpisodeResults, list[str]]:
    """Results and events of greedy episodes of which those of the seeds in `broken` raise."""
    events: list[str] = []
    player = GreedyPlayer(
        EnvironmentSettings(
            FAULTY, {"fault": "raise", "at_step": 2, "of_seeds": {str(seed): call for seed, call in broken.items()}}
        ),
        num_envs,
        # one worker: on a busy machine `auto` would find the steps long enough for two
        settings=BridgeSettings(on_violation="restart", num_workers=1, **settings),
        on_event=events.append,
    )
    try:
        return player.play(playing(larger_of_two), seeds, CPU), events
    finally:
        player.close()


@pytest.mark.parametrize("num_envs", [1, 2, 7])
def test_episodes_that_were_given_up_are_left_out_and_the_others_are_what_they_were(num_envs: int) -> None:
    whole, events = played(SEEDS, num_envs, {})
    assert len(whole.returns) == len(SEEDS) and len(set(whole.returns)) == len(SEEDS) and events == []
    for broken in ([11], [99], [0], [5, 99, 0]):
        results, events = played(SEEDS, num_envs, dict.fromkeys(broken, "step"))
        kept = [k for k, seed in enumerate(SEEDS) if seed not in broken]
        assert results == EpisodeResults(tuple(whole.returns[k] for k in kept), tuple(whole.lengths[k] for k in kept))
        assert len(events) == len(broken)
        expected = ("evaluation worker 0 of 1", "RuntimeError: the pole is on fire")
        assert [event for event in events if not all(words in event for words in expected)] == []


@pytest.mark.parametrize("num_envs", [1, 2, 7])
def test_episodes_that_could_not_even_begin_are_left_out_and_the_others_keep_their_seeds(num_envs: int) -> None:
    whole, _ = played(SEEDS, num_envs, {})
    for broken in ([SEEDS[0]], [SEEDS[-1]], [SEEDS[0], SEEDS[2]]):
        results, events = played(SEEDS, num_envs, dict.fromkeys(broken, "reset"))
        # the reset belongs to the step that ended the episode before: that one is lost too, if it is not the very first reset
        lost = {k - offset for k, seed in enumerate(SEEDS) if seed in broken for offset in (0, num_envs)}
        kept = [k for k in range(len(SEEDS)) if k not in lost]
        assert results == EpisodeResults(tuple(whole.returns[k] for k in kept), tuple(whole.lengths[k] for k in kept))
        assert len(events) >= len(broken)


def test_evaluation_of_which_every_episode_was_given_up_is_none() -> None:
    with pytest.raises(EnvironmentFault) as raised:
        played(SEEDS[:2], 2, dict.fromkeys(SEEDS, "step"))
    assert str(raised.value) == "all 2 greedy episodes were abandoned: the environment broke its contract or raised in each"


def test_evaluation_that_gives_up_more_than_it_may_ends_with_the_fault_itself() -> None:
    with pytest.raises(EnvironmentRaised, match=r"2 faults within 10000 steps are more than data\.max_restarts=1"):
        played(SEEDS, 2, dict.fromkeys(SEEDS, "step"), max_restarts=1)


def test_results_know_their_mean_and_spread() -> None:
    results = EpisodeResults((1.0, 3.0), (1, 3)) + EpisodeResults((5.0,), (5,))
    assert results == EpisodeResults((1.0, 3.0, 5.0), (1, 3, 5))
    assert results.mean == 3.0
    assert results.std == pytest.approx((8 / 3) ** 0.5)  # of the whole population: ((-2)^2 + 0 + 2^2) / 3


ENDLESS = "tests.toy_envs:IdentityEnv"  # a class: nothing but a setting limits its episodes


@pytest.mark.parametrize(
    ("env_id", "settings", "length", "is_cut"),
    [
        (ENDLESS, {}, 30, True),
        (ENDLESS, {"wrappers": ["gymnasium.wrappers.OrderEnforcing"], "frame_stack": 2}, 30, True),
        (ENDLESS, {"remake_each_episode": True, "evaluation_envs": 1}, 30, True),
        (ENDLESS, {"max_episode_steps": 40}, 40, False),  # longer, since it was asked for
        (ENDLESS, {"max_episode_steps": 30}, 30, False),
        ("tests.toy_envs:Identity-v0", {}, EPISODE_STEPS, False),
        ("tests.toy_envs:Identity-v0", {"max_episode_steps": 40}, 40, False),
        ("tests.toy_envs:Identity-v0", {"env_kwargs": {"max_episode_steps": -1}}, 30, True),  # how Gymnasium takes a limit off
        ("tests.toy_envs:Identity-v0", {"env_kwargs": {"max_episode_steps": 40}}, 40, False),
        ("tests.toy_envs:Anything-v0", {"env_kwargs": {"action": "discrete"}}, 7, False),  # ends by itself
    ],
)
def test_greedy_episode_that_nothing_ends_is_cut_and_no_other(
    env_id: str, settings: dict[str, Any], length: int, is_cut: bool, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    for module in (making, data):
        monkeypatch.setattr(module, "EVALUATION_LIMIT", 30)
    with contextlib.closing(small_data(env_id, bridge="inprocess", **settings)) as environments:
        spec = environments.spec
        results = [environments.play(policy_of(spec), "test", 3, CPU) for _ in range(2)]
    assert results[0] == results[1] and max(results[0].lengths) == length
    assert all(environments.is_cut(each) == is_cut for each in results)
    said = [record.getMessage() for record in caplog.records if "--data.max_episode_steps=N" in record.getMessage()]
    assert len(said) == is_cut and all("has not ended after 30 steps" in line for line in said)


def test_task_without_an_end_is_trained_on_and_never_counts_as_solved(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (making, data):
        monkeypatch.setattr(module, "EVALUATION_LIMIT", 30)
    evaluation, solved = GreedyEvaluation(every_env_steps=1, num_episodes=2), StopWhenSolved(0.0, margin=0.0)
    _, environments = fit(2, evaluation, solved, data=small_data(ENDLESS, bridge="inprocess"))
    assert environments.update == 2 and solved.solved_at is None
    assert evaluation.latest is not None
    assert evaluation.latest.results.mean >= 0 and evaluation.latest.results.lengths == (30, 30)


@pytest.mark.parametrize("num_workers", ["auto", 1, 2, 3, 4, 8, 1000])
def test_evaluation_has_as_many_workers_as_share_its_environments_evenly(num_workers: Any) -> None:
    for num_envs in range(1, 13):
        settings = BridgeSettings(vectorization="native", num_workers=num_workers).for_evaluation(num_envs)
        most = 0 if num_workers == "auto" else min(num_workers, num_envs)
        even = [count for count in range(1, most + 1) if num_envs % count == 0]
        assert (settings.vectorization, settings.num_workers) == ("sync", max(even, default="auto"))


def test_native_environments_are_refused_for_evaluation() -> None:
    with pytest.raises(ConfigError, match="vectorization=native: evaluation needs sync, a seed for each episode"):
        GreedyPlayer(EnvironmentSettings("CartPole-v1"), 1, settings=BridgeSettings(vectorization="native"))


# -- masks, and observations of several leaves

MASKED = spec_of(
    discrete(3, path="seen"),
    box(3, path="mask", dtype="bool", low=0, high=1),
    action=discrete(3, start=5),
    mask="mask",
)


class MaskedBridge:
    """Episodes of one step, worth the action; env i may not take action i, and only the rows that play may act at all."""

    def __init__(self, environment: EnvironmentSettings, num_envs: int, *args: Any, **settings: Any) -> None:
        assert not environment.is_training
        self.spec, self._n, self.episodes = MASKED, num_envs, [0] * num_envs

    def reset(self) -> dict[str, np.ndarray]:
        self._obs = {"seen": np.zeros(self._n, np.int64), "mask": ~np.eye(self._n, 3, dtype=np.bool_)}
        return self._obs

    def step(self, actions: np.ndarray, active: np.ndarray | None = None) -> VectorStep:
        assert actions.dtype == np.int64 and ((actions >= 5) & (actions <= 7)).all()
        stepped = np.ones(self._n, np.bool_) if active is None else active == 1
        self.episodes = [number + 1 for number in self.episodes]
        never = np.zeros(self._n, np.bool_)
        return VectorStep(self._obs, self._obs, actions.astype(np.float64), stepped, never, stepped, True, bool(stepped.all()))


def test_greedy_episodes_keep_to_the_mask_and_to_the_environments_own_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "EnvBridge", MaskedBridge)
    policy = policy_of(MASKED)
    with torch.no_grad():
        policy.actor.head.bias.copy_(torch.tensor([0.0, 9.0, 5.0]))  # the best action is the second, then the third
    player = GreedyPlayer(EnvironmentSettings("Masked-v0"), 3, settings=BridgeSettings())
    assert player.play(policy, [0, 1, 2, 3], CPU).returns == (6.0, 7.0, 6.0, 6.0)


# -- memory


class Counting(nn.Module):
    """A policy that remembers how many steps its episode has had, and leaves its direction every third step."""

    distribution = Categorical(2, 0)

    def seen_as(self, path: str, dtype: np.dtype[Any]) -> np.dtype[Any]:
        return np.dtype(np.float32)

    def initial_state(self, num_envs: int) -> Tensor:
        return torch.full((num_envs, 1), 77.0)  # must not matter where an episode begins

    def act(self, obs: dict[str, Tensor], state: Tensor, begins: Tensor, noise: None) -> tuple[Tensor, Tensor]:
        steps = torch.where(begins.unsqueeze(-1), 0.0, state)
        leans, turns = obs[""][:, 2:3], (steps % 3 == 2).float()
        push = leans.sign() * (1 - 2 * turns)
        return (push[:, 0] > 0).long(), steps + 1


@pytest.mark.parametrize("num_envs", [1, 3, 7])
def test_memory_begins_anew_with_each_episode(num_envs: int) -> None:
    """Each episode comes out as it does alone, however many are played in one row, one after the other."""
    seeds = list(range(7))
    with contextlib.closing(GreedyPlayer(EnvironmentSettings("CartPole-v1"), num_envs, settings=BridgeSettings())) as player:
        together = player.play(Counting(), seeds, CPU)  # type: ignore[arg-type]
    lengths = []
    for seed in seeds:
        env, steps, ended = gymnasium.make("CartPole-v1"), 0, False
        obs, _ = env.reset(seed=seed)
        while not ended:
            push = obs[2] * (-1 if steps % 3 == 2 else 1)
            obs, _, terminated, truncated, _ = env.step(int(push > 0))
            steps, ended = steps + 1, terminated or truncated
        lengths.append(steps)
    assert list(together.lengths) == lengths and len(set(lengths)) > 1
