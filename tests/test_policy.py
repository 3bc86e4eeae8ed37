"""Policies: what actor and critic make of the spaces, what they share, and the default one, bit for bit."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from lit_ppo import seeding
from lit_ppo.errors import ConfigError
from lit_ppo.policy import policy_for
from lit_ppo.ppo_settings import PPOSettings
from tests.specs import box, discrete, image, multi_discrete, policy_of, spec_of, vector_spec

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
            expected[f"{network}.layers.{k}.weight"] = weight
            expected[f"{network}.layers.{k}.bias"] = torch.zeros(size[1])
    found = policy.state_dict()
    assert list(found) == list(expected)
    assert all(found[name].equal(expected[name]) for name in expected)
    # of version 0.2, to as many digits as another LAPACK keeps
    assert float(sum(tensor.abs().sum() for tensor in found.values())) == pytest.approx(1238.464, rel=1e-5)
    assert found["actor.layers.0.weight"][0].tolist() == pytest.approx([-0.137798, 0.313371, -0.165817, 0.0856763], rel=1e-4)


def test_untrained_policy_is_nearly_uniform() -> None:
    logits = policy_of(vector_spec(4, 3)).actor({"": torch.randn(100, 4, generator=torch.Generator().manual_seed(1))})
    assert (logits.softmax(dim=-1) - 1 / 3).abs().max() < 0.02


def test_critic_gives_one_flat_value_for_each_observation() -> None:
    policy = policy_of(vector_spec(4, 3))
    for size in (5, 1):
        assert policy.critic({"": torch.zeros(size, 4)}).shape == (size,)


# -- masks


def test_mask_takes_the_probability_of_a_choice_and_is_not_seen() -> None:
    mask = box(3, path="mask", dtype="int8", low=0, high=1)
    policy = policy_of(spec_of(box(2, path="seen"), mask, action=discrete(3), mask="mask"))
    assert policy.actor.inputs.num_features == policy.critic.inputs.num_features == 2
    possible = torch.tensor([[1, 0, 1], [0, 1, 0]], dtype=torch.int8)
    probabilities = policy.actor({"seen": torch.zeros(2, 2), "mask": possible}).softmax(dim=-1)
    assert ((probabilities == 0) == (possible == 0)).all()
    assert probabilities[1].tolist() == [0, 1, 0]


def test_mask_of_several_choices_covers_all_of_them_side_by_side() -> None:
    mask = box(2, 2, path="mask", dtype="bool", low=0, high=1)
    policy = policy_of(spec_of(box(2, path="seen"), mask, action=multi_discrete(2, 2), mask="mask"))
    possible = torch.tensor([[[True, False], [False, True]]])
    outputs, values = policy({"seen": torch.zeros(1, 2), "mask": possible})
    assert policy.distribution.mode(outputs).tolist() == [[0, 1]]
    (policy.distribution.log_probs_and_entropies(outputs, torch.tensor([[0, 1]]))[1].sum() + values.sum()).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in policy.parameters())


def test_mask_alone_is_nothing_to_see() -> None:
    spec = spec_of(box(3, path="mask", dtype="int8", low=0, high=1), action=discrete(3), mask="mask")
    with pytest.raises(ConfigError) as refused:
        policy_of(spec)
    assert str(refused.value) == "data.action_mask=obs:mask: expected an observation besides the mask"


# -- continuous actions


def test_standard_deviation_is_one_parameter_for_each_component() -> None:
    policy = policy_of(spec_of(box(3), action=box(2)), PPOSettings(log_std_init=-0.5))
    outputs = policy.actor({"": torch.randn(4, 3)})
    assert outputs.shape == (4, 4) and policy.actor.layers[-1].out_features == 2
    assert outputs[:, 2:].tolist() == [[-0.5, -0.5]] * 4
    assert isinstance(policy.actor.log_std, nn.Parameter) and policy.actor.log_std.shape == (2,)


def test_standard_deviation_may_depend_on_the_state() -> None:
    policy = policy_of(spec_of(box(3), action=box(2)), PPOSettings(log_std="state", log_std_init=-0.5))
    outputs = policy.actor({"": torch.randn(4, 3)})
    assert policy.actor.log_std is None and outputs.shape == (4, 4)
    torch.testing.assert_close(outputs[:, 2:], torch.full((4, 2), -0.5), rtol=0, atol=0.05)
    assert outputs[:, 2].std() > 0
    assert policy.actor.layers[-1].bias.tolist() == [0, 0, -0.5, -0.5]


def test_choices_have_no_standard_deviation() -> None:
    for log_std in ("parameter", "state"):
        policy = policy_of(vector_spec(4, 3), PPOSettings(log_std=log_std, log_std_init=-0.5))  # type: ignore[arg-type]
        assert policy.actor.log_std is None and not policy.actor.layers[-1].bias.any()


# -- what actor and critic share


def test_actor_and_critic_are_apart() -> None:
    policy = policy_of(SEES_IMAGE)
    policy(image_obs())[1].sum().backward()
    assert all(parameter.grad is None for parameter in policy.actor.parameters())
    assert all(parameter.grad is not None for parameter in policy.critic.parameters())


def test_shared_torso_is_one_network_that_runs_once_and_learns_from_both() -> None:
    policy, calls = policy_of(SEES_IMAGE, PPOSettings(shared_torso=True)), []
    torso = policy.actor.inputs
    assert torso is policy.critic.inputs
    torso.register_forward_hook(lambda *args: calls.append(1))
    outputs, values = policy(image_obs())
    assert len(calls) == 1
    assert outputs.equal(policy.actor(image_obs())) and values.equal(policy.critic(image_obs()))
    for one in (outputs.sum(), values.sum()):
        gradients = torch.autograd.grad(one, list(torso.parameters()), retain_graph=True)
        assert all(gradient.any() for gradient in gradients)
    apart = policy_of(SEES_IMAGE)
    torso_size = sum(parameter.numel() for parameter in torso.parameters())
    sizes = [sum(parameter.numel() for parameter in both.parameters()) for both in (apart, policy)]
    assert sizes[0] - sizes[1] == torso_size > 0


def test_shared_torso_without_an_image_is_refused() -> None:
    with pytest.raises(ConfigError) as refused:
        policy_of(vector_spec(4, 2), PPOSettings(shared_torso=True))
    assert str(refused.value) == "model.shared_torso=True: expected an image in the observation, nothing else is shared"
