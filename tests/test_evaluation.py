"""Greedy episodes: the same numbers however many are played at a time, and those of gymnasium in this process."""

from collections.abc import Iterator

import gymnasium
import pytest
import torch
from torch import Tensor

from lit_ppo.bridge.client import BridgeSettings
from lit_ppo.errors import ConfigError
from lit_ppo.evaluation import EpisodeResults, GreedyPlayer

SEEDS = [11, 5, 99, 2**31 - 1, 0]
CPU = torch.device("cpu")


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


@pytest.fixture(scope="module", params=[1, 3, 7])
def player(request: pytest.FixtureRequest) -> Iterator[GreedyPlayer]:
    player = GreedyPlayer("CartPole-v1", request.param, settings=BridgeSettings())
    yield player
    player.close()


def test_episodes_are_those_of_gymnasium_in_the_order_of_the_seeds(player: GreedyPlayer) -> None:
    expected = in_process(SEEDS)
    assert len(set(expected.lengths)) > 2  # else the order is not seen
    assert player.play(push_where_it_leans, SEEDS, CPU) == expected


def test_player_can_play_again_and_forgets_what_was_before(player: GreedyPlayer) -> None:
    player.play(push_where_it_leans, SEEDS, CPU)
    assert player.play(push_where_it_leans, SEEDS[1:3], CPU) == in_process(SEEDS[1:3])


def test_results_know_their_mean_and_spread() -> None:
    results = EpisodeResults((1.0, 3.0), (1, 3)) + EpisodeResults((5.0,), (5,))
    assert results == EpisodeResults((1.0, 3.0, 5.0), (1, 3, 5))
    assert results.mean == 3.0
    assert results.std == pytest.approx((8 / 3) ** 0.5)  # of the whole population: ((-2)^2 + 0 + 2^2) / 3


def test_native_environments_are_refused_for_evaluation() -> None:
    with pytest.raises(ConfigError, match="vectorization=native: evaluation needs sync, a seed for each episode"):
        GreedyPlayer("CartPole-v1", 1, settings=BridgeSettings(vectorization="native"))
