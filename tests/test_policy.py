"""Policies: what actor and critic make of the spaces, what they share, and the default one, bit for bit."""

import itertools
import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_ppo import seeding
from lit_ppo.errors import ConfigError
from lit_ppo.networks import OwnTorso
from lit_ppo.policy import Policy, Torso, policy_for
from lit_ppo.ppo_settings import PPOSettings
from lit_ppo.spaces import EnvSpec
from tests.specs import box, discrete, generator, image, multi_discrete, policy_of, spec_of, vector_spec

SEES_IMAGE = spec_of(image(9, 9, 3, path="camera"), box(2, path="speed"), action=discrete(3))


def image_obs(size: int = 4) -> dict[str, Tensor]:
    draws = torch.Generator().manual_seed(1)
    pixels = torch.randint(256, (size, 9, 9, 3), generator=draws, dtype=torch.uint8)
    return {"camera": pixels, "speed": torch.randn(size, 2, generator=draws)}


# -- the default


def test_default_policy_for_a_vector_has_the_weights_that_its_seed_always_had() -> None:
    """One generator, first the actor, then the critic, layer by layer: what `nn.init.orthogonal_` draws by itself."""
    weights = seeding.generator(5, "weights")
    policy = policy_for([box(4)], discrete(2), None, PPOSettings(), seeding.generator(5, "weights"))
    expected = {}
    for network, num_outputs, output_gain in (("actor", 2, 0.01), ("critic", 1, 1.0)):
        for k, size in enumerate(itertools.pairwise([4, 64, 64, num_outputs])):
            weight = torch.empty(size[1], size[0])
            nn.init.orthogonal_(weight, math.sqrt(2) if k < 2 else output_gain, generator=weights)
            name = f"{network}.torso.hidden.layers.{k}" if k < 2 else f"{network}.head"
            expected[f"{name}.weight"], expected[f"{name}.bias"] = weight, torch.zeros(size[1])
    found = policy.state_dict()
    assert list(found) == list(expected)
    assert all(found[name].equal(expected[name]) for name in expected)
    # of version 0.2, to as many digits as another LAPACK keeps
    assert float(sum(tensor.abs().sum() for tensor in found.values())) == pytest.approx(1238.464, rel=1e-5)
    first = found["actor.torso.hidden.layers.0.weight"][0].tolist()
    assert first == pytest.approx([-0.137798, 0.313371, -0.165817, 0.0856763], rel=1e-4)


def test_untrained_policy_is_nearly_uniform() -> None:
    logits = policy_of(vector_spec(4, 3))({"": torch.randn(100, 4, generator=torch.Generator().manual_seed(1))}).outputs
    assert (logits.softmax(dim=-1) - 1 / 3).abs().max() < 0.02


def test_critic_gives_one_flat_value_for_each_observation() -> None:
    policy = policy_of(vector_spec(4, 3))
    for size in (5, 1):
        assert policy({"": torch.zeros(size, 4)}).values.shape == (size,)


# -- masks


def test_mask_takes_the_probability_of_a_choice_and_is_not_seen() -> None:
    mask = box(3, path="mask", dtype="int8", low=0, high=1)
    policy = policy_of(spec_of(box(2, path="seen"), mask, action=discrete(3), mask="mask"))
    assert policy.actor.torso.inputs.num_features == policy.critic.torso.inputs.num_features == 2
    possible = torch.tensor([[1, 0, 1], [0, 1, 0]], dtype=torch.int8)
    probabilities = policy({"seen": torch.zeros(2, 2), "mask": possible}).outputs.softmax(dim=-1)
    assert ((probabilities == 0) == (possible == 0)).all()
    assert probabilities[1].tolist() == [0, 1, 0]


def test_mask_of_several_choices_covers_all_of_them_side_by_side() -> None:
    mask = box(2, 2, path="mask", dtype="bool", low=0, high=1)
    policy = policy_of(spec_of(box(2, path="seen"), mask, action=multi_discrete(2, 2), mask="mask"))
    possible = torch.tensor([[[True, False], [False, True]]])
    outputs, values, _ = policy({"seen": torch.zeros(1, 2), "mask": possible})
    assert policy.distribution.mode(outputs).tolist() == [[0, 1]]
    (policy.distribution.log_probs_and_entropies(outputs, torch.tensor([[0, 1]]))[1].sum() + values.sum()).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in policy.parameters())


def test_mask_alone_is_nothing_to_see() -> None:
    spec = spec_of(box(3, path="mask", dtype="int8", low=0, high=1), action=discrete(3), mask="mask")
    with pytest.raises(ConfigError) as refused:
        policy_of(spec)
    assert str(refused.value) == "data.action_mask=obs:mask: expected an observation besides the mask"


# -- normalisation


def test_mask_is_not_normalised_and_what_is_named_is_no_longer_scaled() -> None:
    counts = box(2, path="counts", dtype="uint8", low=0, high=9)
    mask = box(3, path="mask", low=0, high=1, dtype="int8")
    spec = spec_of(box(2, path="seen"), counts, mask, action=discrete(3), mask="mask")
    policy = policy_of(spec, PPOSettings(normalize_observations=["counts"]))
    normalizer = policy.observation_normalizer
    assert normalizer is not None
    obs = {"seen": torch.ones(1, 2), "counts": torch.tensor([[9, 0]], dtype=torch.uint8), "mask": torch.ones(1, 3)}
    assert policy.actor.torso.inputs(normalizer(obs)).tolist() == [[1, 1, 9, 0]]  # nothing is known yet
    with pytest.raises(ConfigError, match="expected paths among 'seen', 'counts', got 'mask'"):
        policy_of(spec, PPOSettings(normalize_observations=["mask"]))


# -- continuous actions


def test_standard_deviation_is_one_parameter_for_each_component() -> None:
    policy = policy_of(spec_of(box(3), action=box(2)), PPOSettings(log_std_init=-0.5))
    outputs = policy({"": torch.randn(4, 3)}).outputs
    assert outputs.shape == (4, 4) and policy.actor.head.out_features == 2
    assert outputs[:, 2:].tolist() == [[-0.5, -0.5]] * 4
    assert isinstance(policy.actor.log_std, nn.Parameter) and policy.actor.log_std.shape == (2,)


def test_standard_deviation_may_depend_on_the_state() -> None:
    policy = policy_of(spec_of(box(3), action=box(2)), PPOSettings(log_std="state", log_std_init=-0.5))
    outputs = policy({"": torch.randn(4, 3)}).outputs
    assert policy.actor.log_std is None and outputs.shape == (4, 4)
    torch.testing.assert_close(outputs[:, 2:], torch.full((4, 2), -0.5), rtol=0, atol=0.05)
    assert outputs[:, 2].std() > 0
    assert policy.actor.head.bias.tolist() == [0, 0, -0.5, -0.5]


def test_gsde_explores_by_a_random_linear_function_of_the_features() -> None:
    """Raffin et al. 2021, equation 4: action = mean + features * theta, theta ~ N(0, std^2); and its density, equation 6."""
    settings = PPOSettings(gsde=True, log_std_init=-0.7)
    policy, draws = policy_of(spec_of(box(3), action=box(2)), settings), generator(4)
    assert policy.actor.log_std is not None and policy.actor.log_std.shape == (64, 2)
    with torch.no_grad():
        policy.actor.log_std += 0.3 * torch.randn(64, 2, generator=draws)
    obs = {"": torch.randn(5, 3, generator=draws)}
    features, _ = policy.actor.torso(obs, None, None)
    stds = policy.actor.log_std.exp()
    noise = policy.draw_noise(1, 5, draws)[0]
    actions, _ = policy.act(obs, None, None, noise)
    means = policy.actor.head(features)
    expected = means + torch.stack([row @ (theta * stds) for row, theta in zip(features, noise, strict=True)])
    torch.testing.assert_close(actions, expected)
    density = torch.distributions.Normal(means, ((features**2) @ stds**2 + 1e-6).sqrt())
    log_probs, entropies = policy.distribution.log_probs_and_entropies(policy(obs).outputs, actions)
    torch.testing.assert_close(log_probs, density.log_prob(actions).sum(dim=-1))
    torch.testing.assert_close(entropies, density.entropy().sum(dim=-1))
    # many draws have the standard deviation that the density says
    one = {"": obs[""][:1].expand(20_000, 3)}
    many, _ = policy.act(one, None, None, policy.draw_noise(1, 20_000, draws)[0])
    torch.testing.assert_close(many.std(dim=0), density.scale[0], rtol=0.03, atol=0)
    # the features learn nothing from the noise
    entropies.sum().backward()
    assert policy.actor.log_std.grad is not None and policy.actor.log_std.grad.abs().sum() > 0
    assert all(not weight.grad.any() for weight in policy.actor.torso.parameters() if weight.grad is not None)


@pytest.mark.parametrize(("steps", "expected"), [(None, [0, 0, 0, 0, 0]), (2, [0, 0, 1, 1, 2]), (1, [0, 1, 2, 3, 4])])
def test_gsde_keeps_its_noise_for_some_steps(steps: int | None, expected: list[int]) -> None:
    policy = policy_of(spec_of(box(3), action=box(2)), PPOSettings(gsde=True, gsde_steps=steps))
    noise = policy.draw_noise(5, 4, generator())
    assert noise.shape == (5, 4, 64, 2)
    same = [[bool(noise[a].equal(noise[b])) for b in range(5)] for a in range(5)]
    assert same == [[a == b for b in expected] for a in expected]
    assert not noise[0, 0].equal(noise[0, 1])  # each environment has its own


def test_gsde_is_refused_where_there_is_no_continuous_noise() -> None:
    with pytest.raises(ConfigError, match=r"model\.gsde: expected a Box of actions"):
        policy_of(vector_spec(4, 3), PPOSettings(gsde=True))


def test_choices_have_no_standard_deviation() -> None:
    for log_std in ("parameter", "state"):
        policy = policy_of(vector_spec(4, 3), PPOSettings(log_std=log_std, log_std_init=-0.5))  # type: ignore[arg-type]
        assert policy.actor.log_std is None and not policy.actor.head.bias.any()


# -- what actor and critic share


def test_actor_and_critic_are_apart() -> None:
    policy = policy_of(SEES_IMAGE)
    policy(image_obs()).values.sum().backward()
    assert all(parameter.grad is None for parameter in policy.actor.parameters())
    assert all(parameter.grad is not None for parameter in policy.critic.parameters())


@pytest.mark.parametrize("spec", [SEES_IMAGE, vector_spec(4, 2)])
@pytest.mark.parametrize("memory", [None, "gru"])
def test_shared_torso_is_everything_but_the_last_layers_and_runs_once(spec: EnvSpec, memory: Any) -> None:
    settings, calls = PPOSettings(shared_torso=True, memory=memory), []
    policy, apart = policy_of(spec, settings), policy_of(spec, replace(settings, shared_torso=False))
    torso = policy.actor.torso
    assert torso is policy.critic.torso and apart.actor.torso is not apart.critic.torso
    assert apart.state_size == 2 * policy.state_size
    torso.register_forward_hook(lambda *args: calls.append(1))
    obs = image_obs() if spec is SEES_IMAGE else {"": torch.randn(4, 4)}
    begins = torch.tensor([True, False, False, False])
    outputs, values, _ = policy(obs, policy.initial_state(2), begins if memory else None)
    assert len(calls) == 1
    for one in (outputs.sum(), values.sum()):
        gradients = torch.autograd.grad(one, list(torso.parameters()), retain_graph=True)
        assert all(gradient.any() for gradient in gradients)
    sizes = [sum(parameter.numel() for parameter in both.parameters()) for both in (apart, policy)]
    assert sizes[0] - sizes[1] == sum(parameter.numel() for parameter in torso.parameters())


def test_shared_torso_of_two_sizes_is_refused() -> None:
    with pytest.raises(ConfigError) as refused:
        PPOSettings(shared_torso=True, critic_hidden_sizes=(32,))
    assert str(refused.value) == "model.critic_hidden_sizes=(32,): expected those of the actor, with model.shared_torso"


# -- a torso of the user's


class Widening(nn.Module):
    """Draws its weights from the global generator, as torch's own layers do."""

    def __init__(self, num_inputs: int, width: int = 5) -> None:
        super().__init__()
        self.layer = nn.Linear(num_inputs, width)

    def forward(self, features: Tensor) -> Tensor:
        return self.layer(features).relu()


def test_torso_of_the_users_stands_in_place_of_the_hidden_layers() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    policy = policy_of(SEES_IMAGE, PPOSettings(torso=partial(Widening, width=7)))
    assert torch.get_rng_state().equal(before)  # as if nothing had been drawn
    own = policy.actor.torso.hidden
    assert isinstance(own, OwnTorso) and own.module.layer.in_features == 128 + 2 and own.num_features == 7
    assert policy.actor.head.in_features == policy.critic.head.in_features == 7
    assert policy(image_obs()).outputs.shape == (4, 3)
    again, other = (policy_of(SEES_IMAGE, PPOSettings(torso=Widening), seed) for seed in (0, 1))
    weights = [each.actor.torso.hidden.module.layer.weight for each in (again, other)]
    assert weights[0].equal(policy_of(SEES_IMAGE, PPOSettings(torso=Widening)).actor.torso.hidden.module.layer.weight)
    assert not weights[0].equal(weights[1])


@pytest.mark.parametrize(
    ("torso", "message"),
    [
        (lambda n: "a word", "expected a torch.nn.Module, got str"),
        (lambda n: nn.Linear(n + 1, 3), "with 4 inputs: RuntimeError: mat1 and mat2 shapes cannot be multiplied (2x4 and 5x3)"),
        (
            lambda n: nn.Unflatten(1, (2, n // 2)),
            "expected outputs of shape (2, features) for inputs of shape (2, 4), got (2, 2, 2)",
        ),
        (lambda n: 1 / 0, "with 4 inputs: ZeroDivisionError: division by zero"),
        (
            lambda n: nn.ReLU(inplace=True),
            "with 4 inputs: RuntimeError: a leaf Variable that requires grad is being used in an in-place operation.",
        ),
    ],
)
def test_torso_that_does_not_fit_is_refused_in_one_line(torso: Any, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        policy_of(vector_spec(4, 2), PPOSettings(torso=torso))
    assert str(refused.value) == f"model.torso: {message}"


class Raising(nn.Module):
    """Changes in place what the gradient needs."""

    def forward(self, features: Tensor) -> Tensor:
        return features.tanh().add_(1)


def test_torso_without_a_gradient_is_refused_when_it_is_made() -> None:
    with pytest.raises(ConfigError, match=r"^model\.torso: with 4 inputs: RuntimeError: .*modified by an inplace operation"):
        policy_of(vector_spec(4, 2), PPOSettings(torso=lambda n: Raising()))


class Frozen(nn.Module):
    """Somebody's pretrained features."""

    @torch.no_grad()
    def forward(self, features: Tensor) -> Tensor:
        return features.tanh()


def test_torso_that_is_frozen_on_purpose_is_taken() -> None:
    assert policy_of(vector_spec(4, 2), PPOSettings(torso=lambda n: Frozen())).actor.torso.num_features == 4


@pytest.mark.parametrize("settings", [{}, {"log_std": "state"}, {"gsde": True}])
def test_gradients_of_the_standard_deviations_are_those_of_the_formulas(settings: dict[str, Any]) -> None:
    """Of sum(log pi(a|s)) + 0.3 * sum(entropy): d / d log std is ((a - mean) / std)^2 - 1, and 1."""
    policy = policy_of(spec_of(box(4), action=box(2)), PPOSettings(log_std_init=-0.5, **settings)).double()
    actor, draws = policy.actor, generator(3)
    features = torch.randn(7, actor.torso.num_features, generator=draws, dtype=torch.float64, requires_grad=True)
    actions = torch.randn(7, 2, generator=draws, dtype=torch.float64)
    outputs = actor(features, {})
    log_probs, entropies = policy.distribution.log_probs_and_entropies(outputs, actions)
    (log_probs.sum() + 0.3 * entropies.sum()).backward()
    f, (means, log_stds) = features.detach(), outputs.detach().chunk(2, dim=1)
    errors = (actions - means) / log_stds.exp()
    of_means, of_log_stds = errors / log_stds.exp(), errors**2 - 1 + 0.3
    of_outputs = of_means
    if settings.get("log_std") == "state":
        of_outputs = torch.cat([of_means, of_log_stds], dim=1)
    elif "gsde" in settings:  # log std = log(sum_f f^2 exp(2 l) + 1e-6) / 2, so d / d l is f^2 exp(2 l) / variance
        assert actor.log_std is not None and actor.log_std.grad is not None
        squares = f.square().unsqueeze(2) * (2 * actor.log_std.detach()).exp()  # (7, F, 2)
        torch.testing.assert_close(log_stds, 0.5 * (squares.sum(1) + 1e-6).log())
        expected = (of_log_stds.unsqueeze(1) * squares / (squares.sum(1, keepdim=True) + 1e-6)).sum(0)
        torch.testing.assert_close(actor.log_std.grad, expected)
    else:
        assert actor.log_std is not None
        torch.testing.assert_close(actor.log_std.grad, of_log_stds.sum(0))
    torch.testing.assert_close(actor.head.weight.grad, of_outputs.T @ f)
    torch.testing.assert_close(actor.head.bias.grad, of_outputs.sum(0))
    torch.testing.assert_close(features.grad, of_outputs @ actor.head.weight.detach())  # gSDE's noise does not reach features


# -- memory


class Remembering(nn.Module):
    """The same policy written step by step with torch's own cells, for one environment at a time."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, torso: Torso, obs: Tensor, begins: Tensor) -> tuple[Tensor, Any]:
        assert torso.memory is not None
        cell, state, features = torso.memory.cell, None, []
        for step, begin in zip(obs, begins, strict=True):
            seen = torso.hidden(step.unsqueeze(0))
            state = cell(seen, None if begin else state)
            features.append((state if isinstance(cell, nn.GRUCell) else state[0]).squeeze(0))
        return torch.stack(features), state


@pytest.mark.parametrize("memory", ["gru", "lstm"])
@pytest.mark.parametrize("shared", [False, True])
def test_sequences_are_what_a_cell_makes_of_them_step_by_step(memory: Any, shared: bool) -> None:
    policy = policy_of(vector_spec(4, 2), PPOSettings(memory=memory, memory_size=6, shared_torso=shared)).double()
    reference, draws = Remembering(policy), generator(3)
    obs = torch.randn(3, 8, 4, generator=draws, dtype=torch.float64)  # 3 environments, 8 steps
    begins = torch.rand(3, 8, generator=draws) < 0.3
    begins[:, 0] = True
    # all at once, and in two halves, the second from the states of the first
    outputs, values, states = policy({"": obs.flatten(0, 1)}, policy.initial_state(3), begins.flatten())
    assert states is not None
    first = policy({"": obs[:, :4].flatten(0, 1)}, policy.initial_state(3), begins[:, :4].flatten())
    assert first.states is not None
    second = policy({"": obs[:, 4:].flatten(0, 1)}, first.states.view(3, 4, -1)[:, -1], begins[:, 4:].flatten())
    halves = torch.cat([first.values.view(3, 4), second.values.view(3, 4)], dim=1)
    torch.testing.assert_close(halves, values.view(3, 8), rtol=1e-6, atol=1e-6)
    for env in range(3):
        features, _ = reference(policy.actor.torso, obs[env], begins[env])
        torch.testing.assert_close(outputs.view(3, 8, 2)[env], policy.actor.head(features), rtol=1e-6, atol=1e-6)
        features, _ = reference(policy.critic.torso, obs[env], begins[env])
        torch.testing.assert_close(values.view(3, 8)[env], policy.critic.head(features).squeeze(-1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("memory", ["gru", "lstm"])
def test_steps_one_by_one_remember_what_sequences_do(memory: Any) -> None:
    policy = policy_of(vector_spec(4, 2), PPOSettings(memory=memory))
    obs, begins = torch.randn(5, 8, 4, generator=generator(3)), torch.zeros(5, 8, dtype=torch.bool)
    begins[:, 0] = begins[2, 5] = True
    state, outputs = policy.initial_state(5), []
    for t in range(8):
        step = policy({"": obs[:, t]}, state, begins[:, t])
        actions, state = policy.act({"": obs[:, t]}, state, begins[:, t], None)
        assert actions.equal(policy.distribution.mode(step.outputs)) and step.states is not None
        torch.testing.assert_close(state, step.states)
        outputs.append(step.outputs)
    together = policy({"": obs.flatten(0, 1)}, policy.initial_state(5), begins.flatten())
    torch.testing.assert_close(torch.stack(outputs, dim=1).flatten(0, 1), together.outputs, rtol=1e-6, atol=1e-6)
    assert together.states is not None
    torch.testing.assert_close(state, together.states.view(5, 8, -1)[:, -1], rtol=1e-6, atol=1e-6)
