"""Shards: what is computed apart and summed in order, on one rank; `tests/test_ranks.py` has several."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_ppo import functional
from lit_ppo.bridge.checkpoint import dealt, joined
from lit_ppo.bridge.client import EnvBridge
from lit_ppo.bridge.settings import BridgeSettings
from lit_ppo.callbacks.greedy_evaluation import GreedyEvaluation
from lit_ppo.callbacks.run_checkpoint import RunCheckpoint
from lit_ppo.errors import ConfigError
from lit_ppo.passes import Passes, columns_of
from lit_ppo.ppo_settings import PPOSettings
from lit_ppo.ranks import Ranks
from lit_ppo.rollout import Batch
from lit_ppo.shards import Shards
from lit_ppo.update import EagerGradients, MinibatchResult, SummedGradients
from tests.runs import cartpole_module, fit, parameters, same, small_data
from tests.test_update import gradients, minibatch, networks

EVERYTHING = {"normalize_observations": True, "normalize_rewards": True, "target_kl": 0.02, "clip_decay": "linear"}
MEMORY = {"memory": "gru", "memory_size": 4, "sequence_length": 4, "minibatch_size": 32, "update_epochs": 2}


@pytest.fixture(autouse=True)
def in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_each_rank_has_neighbouring_shards_and_their_environments() -> None:
    ranks = [Shards(num_envs=24, num_shards=4, num_ranks=2, rank=rank) for rank in (0, 1)]
    assert [shards.own for shards in ranks] == [range(2), range(2, 4)]
    assert [shards.own_envs for shards in ranks] == [slice(0, 12), slice(12, 24)]
    assert ranks[0].parts == ranks[1].parts == (slice(0, 6), slice(6, 12))
    assert Shards(24).parts == ()  # all rows together


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((8, 0, 1), "data.shards=0: expected at least 1"),
        ((8, 3, 1), "data.num_envs=8: expected a multiple of data.shards=3"),
        ((8, 2, 4), "trainer.devices: 4 ranks: expected a number that divides data.shards=2"),
    ],
)
def test_shards_that_cannot_be_dealt_out_are_refused(numbers: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Shards(*numbers)
    assert str(refused.value) == message


def test_gradients_and_losses_of_the_parts_add_up_to_those_of_the_whole() -> None:
    """Parts of 6, 4 and 2 rows: their means count 6/12, 4/12 and 2/12."""
    settings, whole = PPOSettings(max_grad_norm=0.5, entropy_coefficient=0.01), minibatch(12)
    rows = torch.arange(12).split([6, 4, 2])
    one, other = networks(), networks()
    expected = SummedGradients(EagerGradients(one, settings), one.parameters(), 0.5)([whole], [1.0], 0.2)
    of_parts = SummedGradients(EagerGradients(other, settings), other.parameters(), 0.5, 3)
    result = of_parts([whole.sequences(index) for index in rows], [len(index) / 12 for index in rows], 0.2)
    torch.testing.assert_close(result.loss, expected.loss)
    torch.testing.assert_close(result.gradient_norm, expected.gradient_norm)
    torch.testing.assert_close(gradients(other), gradients(one))


@given(st.integers(0, 2**31), st.sampled_from([1, 2, 4]), st.booleans())
@settings(max_examples=50)
def test_kl_and_clip_fraction_of_shards_are_those_of_all_their_transitions(seed: int, num_shards: int, weighted: bool) -> None:
    draws = torch.Generator().manual_seed(seed)
    log_ratios = [0.5 * torch.randn(12, generator=draws) for _ in range(num_shards)]
    weights = [(torch.rand(12, generator=draws) < 0.3 * (k + 1)).float() for k in range(num_shards)]
    weights[0][0] = 1  # at least one transition
    batches = [
        minibatch(12)._replace(old_log_probs=own, weights=row if weighted else None)
        for own, row in zip(log_ratios, weights, strict=True)
    ]
    ranks = Ranks()

    def learns_nothing(parts: Sequence[Batch], *_: Any) -> MinibatchResult:
        return MinibatchResult(
            functional.PPOLoss(*torch.zeros(4)), tuple(part.old_log_probs for part in parts), torch.zeros(())
        )

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    sizes = PPOSettings(update_epochs=1, minibatch_size=5 * num_shards)
    passes = Passes(sizes, learns_nothing, optimizer, lambda closure: None, Shards(4, num_shards), ranks)  # type: ignore[arg-type]
    end = passes.run(batches, columns_of(batches, ranks), 0, 0.2).end
    counted = torch.cat(log_ratios)[torch.cat(weights) == 1 if weighted else slice(None)].double().tolist()
    assert end is not None
    assert end.kl == pytest.approx(sum(math.exp(x) - 1 - x for x in counted) / len(counted), rel=1e-4)
    assert end.clip_fraction == pytest.approx(sum(abs(math.exp(x) - 1) > 0.2 for x in counted) / len(counted), rel=1e-4)


def sharded_run(parts: list[int], settings: dict[str, Any], **data: Any) -> tuple[dict[str, Any], list[float]]:
    """Parameters, and the returns of every update's evaluation, of a run in parts, each in fresh objects."""
    Path("checkpoints/last.ckpt").unlink(missing_ok=True)
    for number, updates in enumerate(parts):
        evaluation = GreedyEvaluation(every_env_steps=1, num_episodes=6)
        module, _ = fit(
            updates,
            evaluation,
            RunCheckpoint("checkpoints", every_n_updates=100),
            module=cartpole_module(learning_rate=0.01, total_env_steps=2000, **settings),
            data=small_data("CartPole-v1", **({"num_envs": 8, "horizon": 12} | data)),
            ckpt_path="checkpoints/last.ckpt" if number else None,
        )
    assert evaluation.latest is not None
    return parameters(module), list(evaluation.latest.results.returns)


@pytest.mark.parametrize("settings", [EVERYTHING, EVERYTHING | MEMORY, {"normalize_advantages": "rollout"}])
def test_run_of_four_shards_goes_the_same_way_again_and_resumes_exactly(settings: dict[str, Any]) -> None:
    vectorization = "native" if "normalize_advantages" in settings else "sync"  # rows that are no transitions
    straight = sharded_run([4], settings, shards=4, vectorization=vectorization)
    resumed = sharded_run([2, 4], settings, shards=4, vectorization=vectorization)
    other = sharded_run([4], settings, shards=1 if vectorization == "sync" else 2, vectorization=vectorization)
    assert same(straight[0], resumed[0]) and straight[1] == resumed[1]
    assert not same(straight[0], other[0])  # else it would not show anything


def test_one_shard_is_a_run_without_shards() -> None:
    one, none = sharded_run([2], EVERYTHING, shards=1), sharded_run([2], EVERYTHING)
    assert same(one[0], none[0]) and one[1] == none[1]


def test_minibatch_has_as_many_rows_of_one_shard_as_of_every_other(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    shipped = functional.ppo_loss

    def spy(log_ratio: torch.Tensor, *arguments: Any, **settings: Any) -> Any:
        sizes.append(len(log_ratio))
        return shipped(log_ratio, *arguments, **settings)

    monkeypatch.setattr(functional, "ppo_loss", spy)
    fit(1, module=cartpole_module(update_epochs=1, minibatch_size=40), data=small_data("CartPole-v1", num_envs=8, shards=4))
    assert sizes == [10] * 8  # 80 rows in 2 minibatches of 4 parts each


def test_shards_of_a_checkpoint_stay() -> None:
    settings: dict[str, Any] = {"num_envs": 4, "horizon": 10}
    fit(1, RunCheckpoint("checkpoints"), data=small_data(shards=2, **settings))
    _, data = fit(2, RunCheckpoint("checkpoints"), data=small_data(**settings), ckpt_path="checkpoints/last.ckpt")
    assert data.shards == Shards(4, 2)
    with pytest.raises(ConfigError) as refused:
        fit(2, RunCheckpoint("checkpoints"), data=small_data(shards=4, **settings), ckpt_path="checkpoints/last.ckpt")
    assert str(refused.value) == "data.shards=4: the checkpoint's run has 2, which cannot change on resume"


def test_minibatch_smaller_than_the_shards_is_refused() -> None:
    with pytest.raises(ConfigError) as refused:
        fit(
            1,
            module=cartpole_module(**MEMORY | {"minibatch_size": 15}),
            data=small_data("CartPole-v1", num_envs=8, horizon=12, shards=4),
        )
    expected = "model.minibatch_size=15: expected at least model.sequence_length * data.shards = 4 * 4 = 16"
    assert str(refused.value) == expected


@pytest.mark.parametrize("vectorization", ["sync", "native"])
def test_episodes_of_a_bridge_can_be_dealt_out_and_joined_again(vectorization: Any) -> None:
    settings = BridgeSettings(vectorization=vectorization, num_workers=2)
    with EnvBridge("CartPole-v1", 4, lambda env, episode: 7 * env + episode, settings=settings) as bridge:
        bridge.reset()
        for k in range(15):
            bridge.step(torch.full((4,), k % 2).numpy())
        whole = bridge.state_dict()
    parts = [dealt(whole, slice(0, 2)), dealt(whole, slice(2, 4))]
    assert parts[1]["num_envs"] == 2 and len(parts[1]["journal"]["actions"]) == 2
    assert joined(parts) == whole
