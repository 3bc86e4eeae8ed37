"""Gradients of a minibatch: eager, and as the one function that is compiled."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from lit_ppo import functional
from lit_ppo.errors import ConfigError
from lit_ppo.policy import Policy
from lit_ppo.ppo_settings import PPOSettings
from lit_ppo.rollout import Batch
from lit_ppo.spaces import EnvSpec
from lit_ppo.update import (
    CompiledGradients,
    EagerGradients,
    LossSettings,
    MinibatchResult,
    Predictions,
    SummedGradients,
    blank_minibatch,
)
from tests.specs import box, discrete, image, multi_binary, multi_discrete, policy_of, spec_of, vector_spec

SETTINGS = PPOSettings(max_grad_norm=None)


def networks() -> Policy:
    return policy_of(vector_spec(4, 3), PPOSettings(actor_hidden_sizes=(8,), critic_hidden_sizes=(8, 8)))


def minibatch(size: int = 12) -> Batch:
    draws = torch.Generator().manual_seed(1)
    columns = torch.randn(5, size, generator=draws)
    return Batch(
        obs={"": torch.randn(size, 4, generator=draws)},
        actions=torch.randint(3, (size,), generator=draws),
        old_log_probs=-1.1 + 0.2 * columns[0],
        old_values=columns[1],
        advantages=columns[2],
        returns=3 * columns[3],
    )


def learnt(
    of_part: EagerGradients | CompiledGradients, nets: Policy, settings: PPOSettings, data: Batch, clip_epsilon: float
) -> MinibatchResult:
    """What an update with one shard does with a minibatch, before the optimizer step."""
    if settings.normalize_advantages == "minibatch":
        data = data._replace(advantages=functional.normalize(data.advantages, data.weights))
    return SummedGradients(of_part, nets.parameters(), settings.max_grad_norm)([data], [1.0], clip_epsilon)


def eager(nets: Policy, settings: PPOSettings, data: Batch, clip_epsilon: float) -> MinibatchResult:
    return learnt(EagerGradients(nets, settings), nets, settings, data, clip_epsilon)


def compiled(nets: Policy, settings: PPOSettings, data: Batch, clip_epsilon: float) -> MinibatchResult:
    return learnt(CompiledGradients(nets, settings), nets, settings, data, clip_epsilon)


def gradients(networks: nn.Module) -> list[torch.Tensor | None]:
    return [parameter.grad for parameter in networks.parameters()]


@pytest.fixture
def compiles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is to be compiled runs as it is: it must be right by itself."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)


def test_gradients_are_those_of_the_loss_and_replace_older_ones() -> None:
    nets, data = networks(), minibatch()
    result = eager(nets, SETTINGS, data, 0.2)
    result = eager(nets, SETTINGS, data, 0.2)
    log_ratio = nets(data.obs).outputs.log_softmax(-1)[torch.arange(12), data.actions] - data.old_log_probs
    policy = functional.clipped_surrogate_loss(log_ratio, functional.normalize(data.advantages), 0.2)
    total = policy + 0.5 * functional.value_loss(nets(data.obs).values, data.old_values, data.returns, None)
    expected = torch.autograd.grad(total, list(nets.parameters()))
    torch.testing.assert_close(gradients(nets), list(expected))
    torch.testing.assert_close(result.loss.total, total.detach())
    torch.testing.assert_close(result.log_ratios[0], log_ratio.detach())
    torch.testing.assert_close(result.gradient_norm, torch.cat([gradient.flatten() for gradient in expected]).norm())
    assert not any(tensor.requires_grad for tensor in (*result.loss, result.log_ratios[0], result.gradient_norm))


@pytest.mark.parametrize("limit", [0.01, 1e6, None])
def test_gradients_are_clipped_and_their_norm_is_that_before(limit: float | None) -> None:
    nets = networks()
    free = eager(nets, SETTINGS, minibatch(), 0.2).gradient_norm
    result = eager(nets, PPOSettings(max_grad_norm=limit), minibatch(), 0.2)
    torch.testing.assert_close(result.gradient_norm, free)
    norm = torch.cat([gradient.flatten() for gradient in gradients(nets) if gradient is not None]).norm()
    torch.testing.assert_close(norm, torch.tensor(0.01) if limit == 0.01 else free)


def test_backward_pass_goes_through_whoever_is_to_see_it() -> None:
    seen = []

    def backward(loss: torch.Tensor) -> None:
        seen.append(loss.item())
        loss.backward()

    nets = networks()
    result = learnt(EagerGradients(nets, SETTINGS, backward), nets, SETTINGS, minibatch(), 0.2)
    assert seen == [result.loss.total.item()]


ALTERNATIVES = [
    SETTINGS,
    PPOSettings(normalize_advantages="rollout", value_clip=0.3, value_coefficient=1.0, entropy_coefficient=0.01),
    PPOSettings(
        normalize_advantages="off", value_clip=0.01, value_coefficient=0.1, entropy_coefficient=0.2, max_grad_norm=0.01
    ),
    PPOSettings(max_grad_norm=1e6),
]


@pytest.mark.parametrize("settings", ALTERNATIVES)
@pytest.mark.parametrize("size", [1, 12])
@pytest.mark.usefixtures("compiles_nothing")
def test_function_to_be_compiled_does_what_eager_mode_does(settings: PPOSettings, size: int) -> None:
    one, other = networks(), networks()
    expected = eager(one, settings, minibatch(size), 0.2)
    torch.testing.assert_close(compiled(other, settings, minibatch(size), 0.2), expected)
    torch.testing.assert_close(gradients(other), gradients(one))


@pytest.mark.usefixtures("compiles_nothing")
def test_clip_range_may_change_from_one_minibatch_to_the_next() -> None:
    nets = networks()
    gradients_of = CompiledGradients(nets, SETTINGS)
    for clip_epsilon in (0.2, 0.01, 0.2):
        expected = eager(networks(), SETTINGS, minibatch(), clip_epsilon)
        torch.testing.assert_close(learnt(gradients_of, nets, SETTINGS, minibatch(), clip_epsilon), expected)


@pytest.mark.usefixtures("compiles_nothing")
def test_frozen_parameters_get_no_gradients() -> None:
    for kind in (eager, compiled):
        nets = networks()
        next(nets.actor.parameters()).requires_grad_(False)
        kind(nets, SETTINGS, minibatch(), 0.2)
        frozen, *others = gradients(nets)
        assert frozen is None and all(gradient is not None for gradient in others)


@pytest.mark.usefixtures("compiles_nothing")
def test_layer_that_actor_and_critic_share_counts_once() -> None:
    found: list[Any] = []
    for kind in (eager, compiled):
        nets = networks()
        nets.critic.torso.hidden.layers[0] = nets.actor.torso.hidden.layers[0]
        found.append((kind(nets, SETTINGS, minibatch(), 0.2).gradient_norm, gradients(nets)))
    torch.testing.assert_close(found[0], found[1])


def test_parameter_of_two_layers_cannot_be_compiled() -> None:
    nets = networks()
    nets.critic.torso.hidden.layers[0].weight = nets.actor.torso.hidden.layers[0].weight
    with pytest.raises(ValueError, match="two layers share one parameter"):
        CompiledGradients(nets, SETTINGS)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler, in torch's compiler
def test_compiled_program_does_what_eager_mode_does_for_any_clip_range_and_size() -> None:
    one, other = networks(), networks()
    gradients_of = CompiledGradients(other, ALTERNATIVES[1])
    for size, clip_epsilon in ((12, 0.2), (12, 0.1), (13, 0.1), (14, 0.05)):
        expected = eager(one, ALTERNATIVES[1], minibatch(size), clip_epsilon)
        torch.testing.assert_close(learnt(gradients_of, other, ALTERNATIVES[1], minibatch(size), clip_epsilon), expected)
        torch.testing.assert_close(gradients(other), gradients(one))


# -- every kind of action and observation

MASK = box(5, path="mask", dtype="bool", low=0, high=1)
SEEN = (box(3, path="vector"), image(5, 5, 3, path="camera/left"), discrete(3, path="mode", start=2))
SPECS = {
    "discrete": spec_of(*SEEN, action=discrete(5)),
    "masked discrete": spec_of(*SEEN, MASK, action=discrete(5), mask="mask"),
    "multi_discrete": spec_of(*SEEN, action=multi_discrete(2, 3)),
    "masked multi_discrete": spec_of(*SEEN, MASK, action=multi_discrete(2, 3), mask="mask"),
    "multi_binary": spec_of(*SEEN, action=multi_binary(2, 2)),
    "box": spec_of(*SEEN, action=box(2, low=-1.0, high=1.0)),
    "box of integers": spec_of(*SEEN, action=box(2, 2, dtype="int32", low=-3, high=3)),
    "box without rank": spec_of(*SEEN, action=box(dtype="float64")),
}


def minibatch_of(spec: EnvSpec, policy: Policy, size: int = 12, *, weighted: bool = False) -> Batch:
    """Observations and draws of a policy that differs a little from `policy`; with memory in sequences of its length."""
    draws, numbers = torch.Generator().manual_seed(1), np.random.default_rng(1)
    obs = {}
    for leaf in spec.observation:
        if leaf.is_integer:
            values = numbers.integers(leaf.low, leaf.high, (size, *leaf.shape), endpoint=True).astype(leaf.dtype)
        else:
            values = numbers.normal(size=(size, *leaf.shape)).astype(leaf.dtype)
        obs[leaf.path] = torch.from_numpy(values)
    if spec.mask is not None:
        obs[spec.mask][:, [0, 2]] = True  # never none
    state = policy.initial_state(size // policy.sequence_length)
    begins = None if state is None else torch.arange(size) % 7 == 2
    with torch.no_grad():
        outputs, _, _ = policy(obs, state, begins)
        actions = policy.distribution.sample(outputs, policy.distribution.draw_noise(1, size, draws)[0])
        log_probs, _ = policy.distribution.log_probs_and_entropies(outputs, actions)
    columns = torch.randn(4, size, generator=draws)
    return Batch(
        obs,
        actions,
        log_probs + 0.1 * columns[0],
        columns[1],
        columns[2],
        3 * columns[3],
        weights=(torch.arange(size) % 5 != 1).float() if weighted else None,
        begins=begins,
        state=state,
    )


WITH_ENTROPY = PPOSettings(entropy_coefficient=0.01, value_clip=0.3)
POLICIES = {
    "plain": PPOSettings(),
    "shared torso": PPOSettings(shared_torso=True, log_std="state"),
    "gru": PPOSettings(memory="gru", memory_size=5, sequence_length=4),
    "gsde": PPOSettings(gsde=True),
    "shared lstm": PPOSettings(memory="lstm", memory_size=5, sequence_length=4, shared_torso=True),
}
PAIRS = [(name, how) for name in SPECS for how in POLICIES if how != "gsde" or "box" in name]


@pytest.mark.parametrize(("name", "how"), PAIRS)
@pytest.mark.usefixtures("compiles_nothing")
def test_function_to_be_compiled_does_what_eager_mode_does_in_every_space(name: str, how: str) -> None:
    one, other = policy_of(SPECS[name], POLICIES[how]), policy_of(SPECS[name], POLICIES[how])
    data = minibatch_of(SPECS[name], one, weighted=how != "plain")
    expected = eager(one, WITH_ENTROPY, data, 0.2)
    torch.testing.assert_close(compiled(other, WITH_ENTROPY, data, 0.2), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradients(other), gradients(one), rtol=1e-6, atol=1e-6)
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients(one))


MEMORIES: dict[str, dict[str, Any]] = {
    "no memory": {},
    "gru": {"memory": "gru", "memory_size": 5, "sequence_length": 4},
    "lstm": {"memory": "lstm", "memory_size": 5, "sequence_length": 4, "shared_torso": True},
}
DEVIATIONS: dict[str, dict[str, Any]] = {"parameter": {}, "state": {"log_std": "state"}, "gsde": {"gsde": True}}
EVERY_KIND = [
    (name, memory, deviation, normalized)
    for name in SPECS
    for memory in MEMORIES
    for deviation in (DEVIATIONS if "box" in name else ("parameter",))
    for normalized in (False, True)
]
SOME_KINDS = [  # each memory, deviation and normalisation, and each distribution
    ("masked discrete", "lstm", "parameter", True),
    ("masked multi_discrete", "no memory", "parameter", False),
    ("multi_binary", "no memory", "parameter", False),
    ("box", "gru", "parameter", True),
    ("box of integers", "no memory", "gsde", True),
    ("box without rank", "no memory", "state", False),
]


def assert_compiled_is_eager(name: str, memory: str, deviation: str, normalized: bool, tolerance: float) -> None:
    """`CompiledGradients` has no fall-back: what cannot be compiled raises."""
    settings = PPOSettings(**MEMORIES[memory], **DEVIATIONS[deviation], normalize_observations=normalized)
    one, other = policy_of(SPECS[name], settings), policy_of(SPECS[name], settings)
    weighted = memory != "no memory"
    gradients_of = CompiledGradients(other, WITH_ENTROPY)
    blank = blank_minibatch(SPECS[name].observation, other, 12 // other.sequence_length, weighted=weighted)
    learnt(gradients_of, other, WITH_ENTROPY, blank, 0.2)
    programs = counters["stats"]["unique_graphs"]
    data = minibatch_of(SPECS[name], one, weighted=weighted)
    expected = eager(one, WITH_ENTROPY, data, 0.2)
    torch.testing.assert_close(learnt(gradients_of, other, WITH_ENTROPY, data, 0.2), expected, rtol=tolerance, atol=1e-6)
    torch.testing.assert_close(gradients(other), gradients(one), rtol=tolerance, atol=1e-6)
    assert counters["stats"]["unique_graphs"] == programs > 0  # the one that the blank minibatch has made


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile as it is, but for the code that it would generate, which takes most of its time."""
    torch.compiler.reset()
    counters.clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager", fullgraph=True))


@pytest.mark.parametrize("kind", SOME_KINDS)
@pytest.mark.usefixtures("traces")
def test_program_is_traced_and_does_what_eager_mode_does(kind: Any) -> None:
    assert_compiled_is_eager(*kind, 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in EVERY_KIND if kind not in SOME_KINDS])
@pytest.mark.usefixtures("traces")
def test_program_is_traced_in_every_kind_of_policy(kind: Any) -> None:
    assert_compiled_is_eager(*kind, 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SOME_KINDS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler, in torch's compiler
def test_compiled_program_does_what_eager_mode_does(kind: Any) -> None:
    torch.compiler.reset()
    assert_compiled_is_eager(*kind, 1e-5)


@pytest.mark.parametrize(("name", "how"), PAIRS)
def test_blank_minibatch_has_the_shapes_and_dtypes_of_a_real_one_and_can_be_learnt_from(name: str, how: str) -> None:
    policy, weighted = policy_of(SPECS[name], POLICIES[how]), how != "plain"
    blank = blank_minibatch(SPECS[name].observation, policy, 12 // policy.sequence_length, weighted=weighted)
    real = minibatch_of(SPECS[name], policy, weighted=weighted)
    assert list(blank.obs) == list(real.obs)
    pairs = zip((*blank.obs.values(), *blank[1:]), (*real.obs.values(), *real[1:]), strict=True)
    for one, other in pairs:
        assert (one is None) == (other is None)
        assert one is None or (one.shape, one.dtype) == (other.shape, other.dtype)
    assert eager(policy, SETTINGS, blank, 0.2).loss.total.isfinite()


# -- rows that are not transitions


@pytest.mark.parametrize("over", ["minibatch", "off"])
def test_padded_rows_change_neither_loss_nor_gradients(over: Any) -> None:
    """The weighted loss is the loss of the rows that count, whatever the others hold."""
    settings = PPOSettings(entropy_coefficient=0.01, value_clip=0.3, max_grad_norm=None, normalize_advantages=over)
    data, counts = minibatch(12), torch.tensor([1.0, 0, 1, 1, 0, 1, 1, 1, 0, 1, 1, 1])
    padding = (counts == 0).nonzero().squeeze(-1)
    for column in data[2:6]:
        assert isinstance(column, torch.Tensor)
        column[padding] = 50.0
    data.old_log_probs[padding] = -500.0  # a ratio of infinity
    one, other = networks(), networks()
    expected = eager(one, settings, data.sequences(counts.nonzero().squeeze(-1)), 0.2)
    result = eager(other, settings, data._replace(weights=counts), 0.2)
    torch.testing.assert_close(result.loss, expected.loss, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradients(other), gradients(one), rtol=1e-6, atol=1e-6)
    assert result.log_ratios[0][padding].tolist() == [0, 0, 0]


def test_minibatch_without_a_transition_has_no_loss_and_no_gradient() -> None:
    nets = networks()
    result = eager(nets, WITH_ENTROPY, minibatch()._replace(weights=torch.zeros(12)), 0.2)
    assert float(result.loss.total) == float(result.gradient_norm) == 0


def test_single_transition_is_learnt_from_as_if_it_were_alone() -> None:
    one, other, weights = networks(), networks(), torch.zeros(12)
    weights[4] = 1
    expected = eager(one, WITH_ENTROPY, minibatch().sequences(torch.tensor([4])), 0.2)
    result = eager(other, WITH_ENTROPY, minibatch()._replace(weights=weights), 0.2)
    torch.testing.assert_close(result.loss, expected.loss, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradients(other), gradients(one), rtol=1e-6, atol=1e-6)
    assert float(result.loss.policy) == 0  # one advantage is its own mean


def test_weights_of_one_change_no_bit_of_a_loss_without_normalisation() -> None:
    settings = PPOSettings(entropy_coefficient=0.01, value_clip=0.3, normalize_advantages="off")
    for size in (1, 12, 31, 250):
        one, other = networks(), networks()
        expected = eager(one, settings, minibatch(size), 0.2)
        result = eager(other, settings, minibatch(size)._replace(weights=torch.ones(size)), 0.2)
        assert all(a.equal(b) for a, b in zip(result.loss, expected.loss, strict=True))
        assert all(a.equal(b) for a, b in zip(gradients(other), gradients(one), strict=True) if a is not None and b is not None)


# -- a loss of the user's


def my_loss(predictions: Predictions, minibatch: Batch, settings: LossSettings) -> functional.PPOLoss:
    """The policy gradient without a ratio, and a critic that learns twice as much."""
    policy = -functional.weighted_mean(predictions.log_ratio * minibatch.advantages, minibatch.weights)
    value = functional.weighted_mean((predictions.values - minibatch.returns).square(), minibatch.weights)
    entropy = functional.weighted_mean(predictions.entropies, minibatch.weights)
    return functional.PPOLoss(policy + value + 0 * settings.clip_epsilon, policy, value, entropy)


@pytest.mark.usefixtures("compiles_nothing")
def test_loss_of_the_users_is_learnt_from_eager_and_compiled() -> None:
    settings = PPOSettings(loss=my_loss, normalize_advantages="off", max_grad_norm=None)
    one, other, data = networks(), networks(), minibatch()
    result = eager(one, settings, data, 0.2)
    torch.testing.assert_close(compiled(other, settings, data, 0.2), result)
    torch.testing.assert_close(gradients(other), gradients(one))
    torch.testing.assert_close(result.loss.value, (networks()(data.obs).values - data.returns).square().mean().detach())


def test_loss_that_returns_something_else_is_refused() -> None:
    settings = PPOSettings(loss=lambda predictions, minibatch, settings: predictions.values.mean())
    with pytest.raises(ConfigError) as refused:
        eager(networks(), settings, minibatch(), 0.2)
    assert str(refused.value) == "model.loss: expected it to return a lit_ppo.functional.PPOLoss, got Tensor"
