"""From environments to a batch: on scripted bridges, where every number is known, and on CartPole behind a real one."""

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import tests.toy_envs  # noqa: F401  registers the environments
from lit_ppo import functional, rollout
from lit_ppo.bridge.client import EnvBridge
from lit_ppo.bridge.settings import BridgeSettings, EnvironmentSettings
from lit_ppo.contract import VectorStep
from lit_ppo.data import RolloutDataModule
from lit_ppo.distributions import Categorical
from lit_ppo.errors import ConfigError
from lit_ppo.evaluation import GreedyPlayer
from lit_ppo.exchange import everywhere
from lit_ppo.export import ExportedPolicy
from lit_ppo.module import PPOModule
from lit_ppo.networks import Inputs
from lit_ppo.policy import Policy, PolicyOutputs
from lit_ppo.ppo_settings import PPOSettings
from lit_ppo.rollout import Batch, EpisodeStatistics, Rollout, Standpoint, collect_rollout, make_batch
from lit_ppo.trainer_checks import check_run
from tests.specs import box, discrete, generator, image, multi_discrete, policy_of, spec_of, vector_spec

GAMMA = 0.5


class ScriptedBridge:
    """Answers each step with the next line of a script, whatever the actions."""

    def __init__(self, steps: list[VectorStep]) -> None:
        self._steps = iter(steps)
        self.actions: list[Any] = []

    def step(self, actions: np.ndarray) -> VectorStep:
        self.actions.append(actions.tolist())
        return next(self._steps)


def line(
    obs: list[float],
    rewards: list[float],
    *,
    next_obs: list[float] | None = None,
    terminated: tuple[int, ...] = (),
    truncated: tuple[int, ...] = (),
    invalid: tuple[int, ...] = (),
) -> VectorStep:
    """A step of a script, with observations of one component; `next_obs` where it led elsewhere, rows where a flag is true."""

    def rows(which: tuple[int, ...]) -> np.ndarray:
        return np.isin(np.arange(len(obs)), which)

    return VectorStep(
        tall(obs),
        tall(next_obs or obs),
        np.array(rewards),
        rows(terminated),
        rows(truncated),
        ~rows(invalid),
        bool(terminated or truncated),
        not invalid,
    )


def tall(numbers: list[float]) -> dict[str, np.ndarray]:
    return {"": np.array(numbers, np.float32)[:, None]}


class Seer:
    """A uniform actor, and a critic that says what it sees."""

    distribution, dtype, sequence_length = Categorical(2, 0), torch.float32, 1

    def seen_as(self, path: str, dtype: np.dtype[Any]) -> np.dtype[Any]:
        return np.dtype(np.float32)

    def __call__(self, obs: dict[str, Tensor], state: None = None, begins: None = None) -> PolicyOutputs:
        return PolicyOutputs(torch.zeros(len(obs[""]), 2), obs[""][:, 0], None)

    def act(self, obs: dict[str, Tensor], state: None, begins: None, noise: Tensor) -> tuple[Tensor, None]:
        return self.distribution.sample(self(obs).outputs, noise), None


SEER: Any = Seer()


def start(obs: Any, policy: Policy | None = None) -> Standpoint:
    """Where a policy stands in environments of which all episodes begin."""
    num_envs = len(next(iter(obs.values())))
    return Standpoint(obs, np.ones(num_envs, np.bool_), None if policy is None else policy.initial_state(num_envs))


def tensors(rollout: Rollout) -> list[Tensor]:
    return [*rollout.obs.values(), *rollout.final_obs.values(), *rollout[1:7], rollout.begins]


def collect(bridge: ScriptedBridge, first_obs: list[float], noise: Tensor, *, update: int = 0, env_steps: int = 0) -> Rollout:
    return collect_rollout(bridge, start(tall(first_obs)), SEER, noise, update=update, env_steps=env_steps)  # type: ignore[arg-type]


def collected(script: list[VectorStep], first_obs: list[float], **counters: int) -> Rollout:
    return collect(ScriptedBridge(script), first_obs, torch.zeros(len(script), len(first_obs), 2), **counters)


def one_step_batch(script: list[VectorStep], first_obs: list[float]) -> Batch:
    """With lambda 0 an advantage is r + gamma * V(next_obs) - V(obs): it shows what was taken for the next observation."""
    rollout = collected(script, first_obs)
    return make_batch(rollout, SEER, gamma=GAMMA, gae_lambda=0.0, weighted=not rollout.valid.all())


# -- collection


def test_rollout_holds_the_steps_in_order_and_ends_where_the_next_begins() -> None:
    bridge = ScriptedBridge([line([3, 4], [1, 2], terminated=(1,), next_obs=[3, 40]), line([5, 6], [7, 8], truncated=(0,))])
    noise = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]])
    rollout = collect(bridge, [1, 2], noise, update=3, env_steps=17)
    assert rollout.obs[""].squeeze(-1).tolist() == [[1, 2], [3, 4], [5, 6]]
    assert rollout.actions.tolist() == bridge.actions == [[0, 1], [1, 1]]  # of equal logits the larger noise wins
    assert rollout.rewards.tolist() == [[1, 2], [7, 8]]
    assert rollout.terminated.tolist() == [[False, True], [False, False]]
    assert rollout.truncated.tolist() == [[False, False], [True, False]]
    assert rollout.valid.all()
    # t * N + env of steps that ended an episode, and their successors
    assert rollout.final_steps.tolist() == [1, 2] and rollout.final_obs[""].tolist() == [[40], [5]]
    assert (rollout.update, rollout.env_steps) == (3, 17)


def test_rollout_without_an_ending_has_no_final_observations() -> None:
    rollout = collected([line([3], [1])], [1])
    assert rollout.final_steps.shape == (0,) and rollout.final_obs[""].shape == (0, 1)
    assert rollout.final_steps.dtype == torch.int64 and rollout.final_obs[""].dtype == torch.float32


def test_rollout_that_is_kept_does_not_change_with_the_next_or_with_the_bridges_memory() -> None:
    steps = [line([3], [1], terminated=(0,), next_obs=[30]), line([5], [7], invalid=(0,))]
    rollout = collected(steps, [1])
    kept = [column.clone() for column in tensors(rollout)]
    for step in steps:
        for column in (*step.obs.values(), *step.final_obs.values(), *step[2:6]):
            column[:] = 99
    collected([line([8], [2]), line([9], [3])], [7])
    assert all(column.equal(copy) for column, copy in zip(tensors(rollout), kept, strict=True))


# -- successors


def test_truncated_step_bootstraps_from_its_own_final_observation() -> None:
    batch = one_step_batch([line([7], [1], truncated=(0,), next_obs=[20]), line([8], [2])], [4])
    # 1 + 0.5 * 20 - 4, not 1 + 0.5 * 7 - 4: 7 begins another episode; then 2 + 0.5 * 8 - 7
    assert batch.advantages.tolist() == [7.0, -1.0]


def test_terminated_step_does_not_bootstrap() -> None:
    batch = one_step_batch([line([7], [1], terminated=(0,), next_obs=[20]), line([8], [2])], [4])
    assert batch.advantages.tolist() == [-3.0, -1.0]  # 1 - 4, then 2 + 0.5 * 8 - 7


def test_last_step_bootstraps_from_the_observation_after_the_rollout() -> None:
    assert one_step_batch([line([8], [2])], [4]).advantages.tolist() == [2.0]  # 2 + 0.5 * 8 - 4


def test_final_observations_of_several_steps_and_environments_go_where_they_belong() -> None:
    script = [
        line([10, 20, 30], [0, 0, 0], truncated=(0, 2), next_obs=[100, 20, 300]),
        line([11, 21, 31], [0, 0, 0], truncated=(1,), next_obs=[11, 210, 31]),
    ]
    batch = one_step_batch(script, [0, 0, 0])
    # 0.5 * V(next_obs) - V(obs), rows in the order (t, env)
    assert batch.advantages.tolist() == [50, 10, 150, 0.5 * 11 - 10, 0.5 * 210 - 20, 0.5 * 31 - 30]


# -- the batch


def test_invalid_rows_stay_in_the_batch_with_weight_0() -> None:
    script = [line([3, 4], [1, 1]), line([5, 6], [1, 666], invalid=(1,)), line([7, 8], [1, 1])]
    batch = one_step_batch(script, [1, 2])
    assert batch.obs[""].squeeze(-1).tolist() == [1, 2, 3, 4, 5, 6]
    assert batch.weights is not None and batch.weights.tolist() == [1, 1, 1, 0, 1, 1]  # row (1, 1), which acted on 4
    # 1 + 0.5 * V(next_obs) - V(obs)
    assert batch.advantages.tolist() == [1.5, 1.0, 0.5, 0, -0.5, -1.0]


def test_returns_are_advantages_on_top_of_values() -> None:
    batch = one_step_batch([line([3], [1]), line([5], [1])], [1])
    assert batch.old_values.tolist() == [1, 3]
    assert batch.returns.tolist() == [2.5, 3.5]  # 1 + 0.5 * 3 and 1 + 0.5 * 5


def test_rollout_and_batch_can_be_learnt_from() -> None:
    rollout = collected([line([3], [1], truncated=(0,), next_obs=[4])], [1])
    batch = make_batch(rollout, SEER, gamma=GAMMA, gae_lambda=0.9, weighted=False)
    assert not any(
        column.is_inference() or column.requires_grad for column in (*tensors(rollout), *batch.obs.values(), *batch[1:6])
    )


def test_sequences_of_a_batch_are_taken_in_the_order_of_the_index() -> None:
    batch = one_step_batch([line([3, 4], [1, 1]), line([5, 6], [1, 1])], [1, 2])
    some = batch.sequences(torch.tensor([3, 0]))
    assert some.obs[""].tolist() == [[4], [1]] and some.old_values.tolist() == [4, 1]
    assert some.advantages.tolist() == batch.advantages[[3, 0]].tolist()


# -- whole batches


@st.composite
def random_rollouts(draw: st.DrawFn) -> tuple[Policy, Rollout]:
    """A policy of any memory, with an action mask, and a rollout of it with endings, truncations and invalid rows."""
    memory, length = draw(st.sampled_from([(None, 1), ("gru", 1), ("gru", 3), ("lstm", 2), ("lstm", 6)]))
    options: dict[str, Any] = {"sequence_length": length, "memory_size": 5} if memory else {}
    is_shared = draw(st.booleans())
    layers = PPOSettings(shared_torso=is_shared, actor_hidden_sizes=(4,), critic_hidden_sizes=(4 if is_shared else 3,))
    spec = spec_of(box(2, path="x"), box(5, path="mask", dtype="int8", low=0, high=1), action=multi_discrete(3, 2), mask="mask")
    policy = policy_of(spec, dataclasses.replace(layers, memory=memory, **options), draw(st.integers(0, 9))).double()
    random = np.random.default_rng(draw(st.integers(0, 2**32)))

    def observed() -> dict[str, np.ndarray]:
        mask = random.integers(2, size=(3, 5), dtype=np.int8)
        mask[:, [0, 4]] = 1
        return {"x": random.standard_normal((3, 2)), "mask": mask}

    steps, ended_before = [], np.zeros(3, np.bool_)
    for kinds in (random.choice(4, 3, p=[0.5, 0.15, 0.25, 0.1]) for _ in range(6)):
        # a row that is no transition follows an ending, as in native environments, or an abandoned episode
        invalid = (kinds == 3) | (ended_before & (kinds == 0))
        terminated, truncated = kinds == 1, kinds == 2
        ended_before = terminated | truncated
        any_ended = bool(ended_before.any())
        rewards = random.standard_normal(3)
        steps.append(VectorStep(observed(), observed(), rewards, terminated, truncated, ~invalid, any_ended, not invalid.any()))
    begun = Standpoint(observed(), random.integers(2, size=3).astype(np.bool_), policy.initial_state(3))
    if begun.state is not None:
        begun = begun._replace(state=torch.from_numpy(random.standard_normal(begun.state.shape)))
    noise = policy.draw_noise(6, 3, generator())
    return policy, collect_rollout(ScriptedBridge(steps), begun, policy, noise, update=0, env_steps=0)  # type: ignore[arg-type]


@given(random_rollouts(), st.sampled_from([0.0, 0.7, 1.0]))
@settings(max_examples=40)
def test_batch_is_what_a_walk_of_one_step_at_a_time_makes_of_a_rollout(
    drawn: tuple[Policy, Rollout], gae_lambda: float
) -> None:
    policy, steps = drawn
    batch = make_batch(steps, policy, gamma=GAMMA, gae_lambda=gae_lambda, weighted=True)
    final_at, rows = steps.final_steps.tolist(), {}
    for env in range(3):
        state = None if steps.states is None else steps.states[0, env : env + 1]
        forgets, walked = bool(steps.begins[env]), []
        for t in range(6):
            if forgets and state is not None:
                state = torch.zeros_like(state)
            now = {path: leaf[t, env][None] for path, leaf in steps.obs.items()}
            outputs, value, after = seen_alone(policy, now, state)
            terminated, truncated, valid = (bool(flags[t, env]) for flags in (steps.terminated, steps.truncated, steps.valid))
            if terminated or truncated:
                successor = {path: leaf[final_at.index(3 * t + env)][None] for path, leaf in steps.final_obs.items()}
            else:
                successor = {path: leaf[t + 1, env][None] for path, leaf in steps.obs.items()}
            next_value = 0.0 if terminated else seen_alone(policy, successor, after)[1]  # with what is remembered of the step
            chances = [
                part.softmax(0)[choice] for part, choice in zip(outputs.split([3, 2]), steps.actions[t, env], strict=True)
            ]
            walked.append(
                (value, steps.rewards[t, env].item() + GAMMA * next_value - value, sum(c.log().item() for c in chances))
            )
            forgets, state = terminated or truncated or not valid, after
        advantage = 0.0
        for t in reversed(range(6)):
            value, delta, log_prob = walked[t]
            goes_on = bool(steps.valid[t, env]) and not bool(steps.terminated[t, env] | steps.truncated[t, env])
            advantage = (delta + GAMMA * gae_lambda * advantage * goes_on) * bool(steps.valid[t, env])
            rows[env, t] = [log_prob, value, advantage, value + advantage, float(steps.valid[t, env])]
    length = policy.sequence_length
    order = [(env, s * length + k) for s in range(6 // length) for env in range(3) for k in range(length)]
    assert batch.weights is not None
    got = torch.stack([batch.old_log_probs, batch.old_values, batch.advantages, batch.returns, batch.weights.double()], dim=1)
    np.testing.assert_allclose(got.numpy(), np.array([rows[place] for place in order]), rtol=1e-9, atol=1e-9)
    for path, leaf in batch.obs.items():
        assert leaf.tolist() == [steps.obs[path][t, env].tolist() for env, t in order]
    assert batch.actions.tolist() == [steps.actions[t, env].tolist() for env, t in order]


def seen_alone(policy: Policy, obs: dict[str, Tensor], state: Tensor | None) -> tuple[Tensor, float, Tensor | None]:
    """The actor's outputs for one observation, shape (5,), the critic's value of it, and the next state."""
    begins = None if state is None else torch.zeros(1, dtype=torch.bool)
    with torch.no_grad():
        outputs, values, states = policy(obs, state, begins)
    return outputs[0], values.item(), states


# -- numbers far from zero


def test_every_way_to_the_policy_keeps_what_float32_would_lose(monkeypatch: pytest.MonkeyPatch) -> None:
    env = gymnasium.make("Far-v0", disable_env_checker=True)
    episode = [env.reset(seed=5)[0], *(env.step(0)[0] for _ in range(8))]
    raw = {path: np.stack([obs[path] for obs in episode]) for path in ("metres", "time")}
    metres = raw["metres"]
    exact = np.hstack([(metres - metres.mean(0)) / np.sqrt(metres.var(0) + 1e-8), (raw["time"] - 1_700_000_000) / 100])
    processes = BridgeSettings(bridge="inprocess")
    far = EnvironmentSettings("tests.toy_envs:Far-v0")
    seen: list[np.ndarray] = []
    forward = Inputs.forward

    def noted(inputs: Inputs, obs: dict[str, Tensor]) -> Tensor:
        made = forward(inputs, obs)
        if inputs is module.policy.actor.torso.inputs:
            seen.append(made.detach().numpy().copy())
        return made

    def require_exact(num_rows: int = 9) -> None:
        np.testing.assert_allclose(np.concatenate(seen)[:num_rows], exact[:num_rows], rtol=1e-5, atol=1e-6)
        seen.clear()

    with EnvBridge(far, 1, lambda env, episode: 5, settings=processes) as bridge:
        module = PPOModule(bridge.spec, normalize_observations=True)
        policy, normalizer = module.policy, module.policy.observation_normalizer
        assert normalizer is not None
        normalizer.commit(normalizer.updated(normalizer.moments_of({"metres": torch.from_numpy(metres)})))
        monkeypatch.setattr(Inputs, "forward", noted)
        noise = policy.draw_noise(10, 1, generator())
        rollout = collect_rollout(bridge, start(bridge.reset()), policy, noise, update=0, env_steps=0)
        require_exact()
        make_batch(rollout, policy, gamma=GAMMA, gae_lambda=0.9, weighted=False)
        require_exact()
        ExportedPolicy(policy, bridge.spec, "clip").visit(bridge, 9)
        require_exact()
    module.predict(raw)
    require_exact()
    with contextlib.closing(GreedyPlayer(far, 1, settings=processes)) as player:
        results = player.play(policy, [5], torch.device("cpu"))
    require_exact()
    ended = EpisodeStatistics(1).update(rollout.outcomes)
    assert ended.returns == list(results.returns) == [9 * 16_777_217.0]
    of_two_ranks: Any = SimpleNamespace(count=2, gather=lambda rows: torch.cat([rows, rows]))
    outcomes, _ = everywhere(of_two_ranks, rollout.outcomes, [0])
    assert EpisodeStatistics(2).update(outcomes).returns == 2 * ended.returns


def test_rewards_are_rounded_only_on_devices_without_float64() -> None:
    rollout = collected([line([3], [16_777_217.0])], [1])
    data = RolloutDataModule()
    for device, reward in (("mps", 16_777_216.0), ("cuda", 16_777_217.0), ("cpu", 16_777_217.0)):
        data.trainer = SimpleNamespace(lightning_module=SimpleNamespace(device=torch.device(device)))  # type: ignore[assignment]
        sent = data.on_before_batch_transfer(rollout._replace(everywhere=rollout.outcomes), 0)
        assert sent.rewards.item() == sent.outcomes.rewards.item() == reward
        assert all(part.dtype != torch.float64 for part in tensors(sent)) is (device == "mps")


@pytest.mark.parametrize("setting", ["trainer.precision=64-true", "model.normalize_observations", "model.normalize_rewards"])
def test_float64_on_a_device_without_it_is_refused_by_name(setting: str) -> None:
    name = setting.removeprefix("model.")
    module = PPOModule(vector_spec(3, 2), **({} if name == setting else {name: True}))
    trainer: Any = SimpleNamespace(
        strategy=SimpleNamespace(root_device=torch.device("mps")),
        precision="64-true" if name == setting else "32-true",
        datamodule=RolloutDataModule(),
        state=SimpleNamespace(fn=None),
    )
    with pytest.raises(ConfigError, match=rf"^{re.escape(setting)}: expected a device with float64, got mps; use"):
        check_run(trainer, module)


# -- observations of several leaves, actions of several components

NESTED = spec_of(
    image(5, 5, 3, path="camera/left"),
    discrete(3, path="camera/mode", start=-1),
    box(2, path="joints", dtype="float64", low=-9.0, high=9.0),
    box(1, path="mask", dtype="bool", low=0, high=1),
    action=multi_discrete(3, 2, start=(5, 0)),
)


def nested_obs(k: int, num_envs: int = 2) -> dict[str, np.ndarray]:
    """Everywhere the number k."""
    return {leaf.path: np.full((num_envs, *leaf.shape), k, leaf.dtype) for leaf in NESTED.observation}


def nested_steps() -> list[VectorStep]:
    still, ended = np.zeros(2, np.bool_), np.array([False, True])
    return [
        VectorStep(nested_obs(0), nested_obs(0), np.ones(2), still, still, ~still, False, True),
        VectorStep(nested_obs(1), nested_obs(-1 % 2), np.ones(2), still, ended, ~still, True, True),
        VectorStep(nested_obs(0), nested_obs(0), np.ones(2), still, still, ended, False, False),
    ]


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_every_leaf_keeps_its_shape_and_dtype_from_the_bridge_to_the_minibatch(precision: torch.dtype) -> None:
    policy, bridge = policy_of(NESTED).to(precision), ScriptedBridge(nested_steps())
    noise = policy.distribution.draw_noise(3, 2, generator())
    rollout = collect_rollout(bridge, start(nested_obs(1)), policy, noise, update=0, env_steps=0)  # type: ignore[arg-type]
    batch = make_batch(rollout, policy, gamma=GAMMA, gae_lambda=0.9, weighted=False)
    dtypes = {"camera/left": torch.uint8, "camera/mode": torch.int64, "joints": precision, "mask": torch.bool}
    for leaf in NESTED.observation:
        for obs, lead in ((rollout.obs, (4, 2)), (rollout.final_obs, (1,)), (batch.obs, (6,))):
            assert (obs[leaf.path].shape, obs[leaf.path].dtype) == ((*lead, *leaf.shape), dtypes[leaf.path])
        assert rollout.obs[leaf.path].flatten(1).double().mean(dim=1).tolist() == [1, 0, 1, 0]
    assert rollout.actions.shape == (3, 2, 2) and rollout.actions.dtype == torch.int64
    assert batch.actions.tolist() == rollout.actions.flatten(0, 1).tolist()
    # what the environment gets is in its own numbering
    assert bridge.actions == (rollout.actions + torch.tensor([5, 0])).tolist()


def test_environment_gets_clipped_numbers_and_the_policy_learns_from_those_it_drew() -> None:
    spec = spec_of(box(1), action=box(2, low=-0.1, high=0.1))
    policy, script = policy_of(spec), [line([0, 0], [0, 0])] * 3
    bridge, noise = ScriptedBridge(script), policy.distribution.draw_noise(3, 2, generator())
    rollout = collect_rollout(bridge, start(tall([0, 0])), policy, noise, update=0, env_steps=0)  # type: ignore[arg-type]
    assert rollout.actions.dtype == torch.float32 and rollout.actions.abs().max() > 0.5
    torch.testing.assert_close(torch.tensor(bridge.actions), rollout.actions.clamp(-0.1, 0.1))
    batch = make_batch(rollout, policy, gamma=GAMMA, gae_lambda=0.9, weighted=False)
    expected = torch.distributions.Normal(rollout.actions.flatten(0, 1) - noise.flatten(0, 1), 1.0)
    torch.testing.assert_close(batch.old_log_probs, expected.log_prob(rollout.actions.flatten(0, 1)).sum(dim=-1))


def test_values_of_many_images_are_computed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, sizes = policy_of(NESTED), []
    policy.register_forward_hook(lambda module, args, outputs: sizes.append(len(outputs.values)))
    row_bytes = 5 * 5 * 3 + 8 + 2 * 4 + 1
    batches = []
    for limit in (rollout._BYTES_OF_A_PASS, 3 * row_bytes):
        monkeypatch.setattr(rollout, "_BYTES_OF_A_PASS", limit)
        bridge, noise = ScriptedBridge(nested_steps()), policy.distribution.draw_noise(3, 2, generator())
        collected = collect_rollout(bridge, start(nested_obs(1)), policy, noise, update=0, env_steps=0)  # type: ignore[arg-type]
        batches.append(make_batch(collected, policy, gamma=GAMMA, gae_lambda=0.9, weighted=False))
    assert sizes == [8, 1, 3, 3, 2, 1]  # (T + 1) * N rows and one final one
    torch.testing.assert_close(batches[0], batches[1])


# -- CartPole behind a real bridge

TIME_LIMIT = 7


def episode_seed(env: int, episode: int) -> int:
    return 100 * env + episode


@pytest.fixture(scope="module")
def cartpole() -> Iterator[EnvBridge]:
    with EnvBridge(EnvironmentSettings("CartPole-v1", max_episode_steps=TIME_LIMIT), 3, episode_seed) as bridge:
        yield bridge


def small_policy() -> Policy:
    return policy_of(vector_spec(4, 2), PPOSettings(actor_hidden_sizes=[8], critic_hidden_sizes=[8]))


def rollout_of(bridge: EnvBridge, policy: Policy, horizon: int = 40) -> Rollout:
    noise = policy.distribution.draw_noise(horizon, bridge.num_envs, generator(1))
    return collect_rollout(bridge, start(bridge.reset()), policy, noise, update=0, env_steps=0)


def test_rollout_through_the_bridge_is_what_gymnasium_does_in_process(cartpole: EnvBridge) -> None:
    rollout = rollout_of(cartpole, small_policy())
    final_steps = [divmod(step, 3) for step in rollout.final_steps.tolist()]
    finals = dict(zip(final_steps, rollout.final_obs[""].numpy(), strict=True))
    ended = rollout.terminated | rollout.truncated
    assert set(finals) == {tuple(where) for where in ended.nonzero().tolist()}
    assert rollout.truncated.sum() >= 3  # else the test shows nothing
    for number in range(3):
        env, episode = gymnasium.make("CartPole-v1", max_episode_steps=TIME_LIMIT), 0
        obs, _ = env.reset(seed=episode_seed(number, 0))
        for t in range(len(rollout.actions)):
            np.testing.assert_array_equal(rollout.obs[""][t, number].numpy(), obs)
            obs, reward, terminated, truncated, _ = env.step(int(rollout.actions[t, number]))
            assert rollout.rewards[t, number] == reward
            assert (bool(rollout.terminated[t, number]), bool(rollout.truncated[t, number])) == (terminated, truncated)
            if terminated or truncated:
                np.testing.assert_array_equal(finals[t, number], obs)
                episode += 1
                obs, _ = env.reset(seed=episode_seed(number, episode))
        env.close()


def test_batch_of_cartpole_bootstraps_truncations_from_final_observations(cartpole: EnvBridge) -> None:
    policy = small_policy()
    rollout = rollout_of(cartpole, policy)
    batch = make_batch(rollout, policy, gamma=0.9, gae_lambda=0.0, weighted=False)
    steps, finals = rollout.final_steps, rollout.final_obs[""]
    truncated = rollout.truncated.flatten()[steps]
    assert truncated.any()
    with torch.no_grad():
        expected = 1 + 0.9 * policy({"": finals[truncated]}).values - policy({"": batch.obs[""][steps[truncated]]}).values
    torch.testing.assert_close(batch.advantages[steps[truncated]], expected, rtol=0, atol=1e-6)


def test_policy_that_acted_has_ratio_1_and_no_divergence_on_its_own_batch(cartpole: EnvBridge) -> None:
    policy = small_policy()
    with torch.no_grad():
        policy.actor.head.weight.mul_(1000)  # a policy with opinions, else all ratios are near 1 anyway
    batch = make_batch(rollout_of(cartpole, policy), policy, gamma=0.9, gae_lambda=0.9, weighted=False)
    assert batch.old_log_probs.std() > 0.1
    first = batch.sequences(torch.arange(32))
    log_probs, _ = policy.distribution.log_probs_and_entropies(policy(first.obs).outputs, first.actions)
    log_ratio = log_probs - first.old_log_probs
    assert log_ratio.abs().max() < 1e-6  # the first minibatch: as many rows as it has may be summed in another order
    assert functional.approximate_kl(log_ratio).item() == pytest.approx(0, abs=1e-9)
    assert functional.clip_fraction(log_ratio, 0.2).item() == 0


# -- episode statistics


@st.composite
def rollouts(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Flags and rewards of some rollouts of the same environments, in which no artefact ends an episode."""
    num_envs, horizon = draw(st.integers(1, 3)), draw(st.integers(1, 8))
    kind = st.sampled_from(["step"] * 5 + ["terminated", "truncated", "both", "invalid"])
    row = st.lists(st.tuples(kind, st.integers(-5, 5)), min_size=num_envs, max_size=num_envs)
    return draw(st.lists(st.lists(row, min_size=horizon, max_size=horizon), min_size=1, max_size=4))


def filled(rows: list[list[tuple[str, int]]]) -> Rollout:
    def flags(*kinds: str) -> Tensor:
        return torch.tensor([[kind in kinds for kind, _ in row] for row in rows])

    blank = collected([line([0.0] * len(rows[0]), [0.0] * len(rows[0]))] * len(rows), [0.0] * len(rows[0]))
    return blank._replace(
        rewards=torch.tensor([[float(reward) for _, reward in row] for row in rows]),
        terminated=flags("terminated", "both"),
        truncated=flags("truncated", "both"),
        valid=~flags("invalid"),
    )


@given(rollouts(), st.booleans())
@settings(max_examples=200)
def test_episode_statistics_are_those_of_a_plain_count(all_rows: list[Any], reloads: bool) -> None:
    num_envs = len(all_rows[0][0])
    statistics, returns, lengths = EpisodeStatistics(num_envs), [0] * num_envs, [0] * num_envs
    for rows in all_rows:
        expected_returns, expected_lengths = [], []
        for row in rows:
            for env, (kind, reward) in enumerate(row):
                if kind != "invalid":
                    returns[env] += reward
                    lengths[env] += 1
                if kind in ("terminated", "truncated", "both"):
                    expected_returns.append(returns[env])
                    expected_lengths.append(lengths[env])
                if kind != "step":
                    returns[env], lengths[env] = 0, 0
        if reloads:
            state, statistics = statistics.state_dict(), EpisodeStatistics(num_envs)
            statistics.load_state_dict(state)
        ended = statistics.update(filled(rows))
        assert (ended.returns, ended.lengths) == (expected_returns, expected_lengths)


def test_saved_statistics_do_not_change_with_the_run() -> None:
    statistics = EpisodeStatistics(1)
    statistics.update(filled([[("step", 2)]]))
    state = statistics.state_dict()
    statistics.update(filled([[("step", 3)]]))
    assert state == {"returns": [2.0], "lengths": [1]}
