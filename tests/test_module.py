"""PPOModule: what an update does to the parameters, and what it refuses to do."""

import math
import random
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from torch._dynamo.utils import counters

from lit_ppo import functional
from lit_ppo.callbacks.greedy_evaluation import GreedyEvaluation
from lit_ppo.callbacks.run_checkpoint import RunCheckpoint
from lit_ppo.errors import ConfigError, NonFiniteUpdate
from lit_ppo.module import PPOModule
from lit_ppo.rollout import Batch, Rollout
from lit_ppo.trainer_checks import refuse_flags
from lit_ppo.update import CompiledGradients
from tests.runs import bare_trainer, cartpole_module, fit, parameters, same, small_data, small_module
from tests.specs import box, discrete, image, spec_of, vector_spec
from tests.toy_envs import EPISODE_STEPS


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> list[SimpleNamespace]:
    """What `functional.ppo_loss` is called with, minibatch by minibatch."""
    seen: list[SimpleNamespace] = []
    shipped = functional.ppo_loss

    def spy(
        log_ratio: Any, advantages: Any, entropies: Any, values: Any, old_values: Any, returns: Any, **settings: Any
    ) -> Any:
        columns = {"log_ratio": log_ratio, "advantages": advantages, "returns": returns}
        seen.append(SimpleNamespace(**{name: tensor.detach().clone() for name, tensor in columns.items()}, **settings))
        return shipped(log_ratio, advantages, entropies, values, old_values, returns, **settings)

    monkeypatch.setattr(functional, "ppo_loss", spy)
    return seen


# -- training


def test_training_on_the_cpu_changes_every_layer_of_actor_and_critic() -> None:
    module = small_module()
    before = parameters(module)
    fit(2, module=module)
    changed = {name for name, tensor in parameters(module).items() if not tensor.equal(before[name])}
    assert changed == set(before)


def test_identity_environment_is_learnt_in_seconds() -> None:
    data = small_data(num_envs=8, horizon=32)
    module, _ = fit(25, module=small_module(minibatch_size=64, learning_rate=0.01, entropy_coefficient=0.0), data=data)
    assert module({"": torch.eye(3)})[0].tolist() == [0, 1, 2]  # each observation is the code of its right action
    assert data.metrics["episodes/return"] > 0.9 * EPISODE_STEPS  # sampled, not greedy


def test_first_minibatch_of_an_update_finds_the_policy_that_acted(losses: list[SimpleNamespace]) -> None:
    fit(2, module=small_module(update_epochs=1, learning_rate=0.01))
    assert len(losses) == 4  # 2 updates of 20 transitions in 2 minibatches
    for first, second in (losses[:2], losses[2:]):
        assert first.log_ratio.abs().max() < 1e-6
        assert functional.approximate_kl(first.log_ratio).item() == pytest.approx(0, abs=1e-9)
        assert second.log_ratio.abs().max() > 1e-4


def test_every_pass_sees_every_transition_once_in_an_order_of_its_own(losses: list[SimpleNamespace]) -> None:
    module, _ = fit(1, module=small_module(update_epochs=3, minibatch_size=8))
    # 20 transitions in the fewest parts of at most 8, as equal as can be
    assert [len(loss.returns) for loss in losses] == [7, 7, 6] * 3
    passes = [torch.cat([loss.returns for loss in losses[k : k + 3]]) for k in (0, 3, 6)]
    for returns in passes:
        assert returns.sort().values.equal(module.batches[0].returns.sort().values)
    assert not passes[0].equal(passes[1]) and not passes[1].equal(passes[2])
    assert module.metrics["optimizer/steps"] == 9


def test_order_of_the_minibatches_is_another_in_each_update_and_for_each_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    shipped, orders = torch.randperm, []

    def spy(*args: Any, **settings: Any) -> torch.Tensor:
        orders.append(tuple(shipped(*args, **settings).tolist()))
        return torch.tensor(orders[-1])

    monkeypatch.setattr(torch, "randperm", spy)
    for seed in (0, 1):
        fit(2, module=small_module(update_epochs=2, seed=seed))
    assert len(set(orders)) == len(orders) == 2 * 2 * 2


@pytest.mark.parametrize("over", ["minibatch", "rollout", "off"])
def test_advantages_are_normalised_over_what_the_setting_says(over: str, losses: list[SimpleNamespace]) -> None:
    module, _ = fit(1, module=small_module(update_epochs=1, normalize_advantages=over))
    minibatches = [loss.advantages for loss in losses]
    whole, raw = torch.cat(minibatches), module.batches[0].advantages
    if over == "minibatch":
        assert all(
            float(part.mean()) == pytest.approx(0, abs=1e-6) and float(part.std()) == pytest.approx(1, abs=1e-4)
            for part in minibatches
        )
    elif over == "rollout":
        torch.testing.assert_close(whole.sort().values, functional.normalize(raw).sort().values)
        assert any(abs(float(part.mean())) > 1e-3 for part in minibatches)
    else:
        assert whole.sort().values.equal(raw.sort().values)


def test_settings_of_the_loss_reach_the_loss(losses: list[SimpleNamespace]) -> None:
    settings = {"clip_epsilon": 0.3, "value_clip": 0.4, "value_coefficient": 0.6, "entropy_coefficient": 0.7}
    fit(1, module=small_module(**settings))
    assert all({name: getattr(loss, name) for name in settings} == settings for loss in losses)


def test_learning_rate_and_clip_range_decay_linearly_over_the_whole_run(losses: list[SimpleNamespace]) -> None:
    rates: list[float] = []

    class Watched(PPOModule):
        def on_train_batch_end(self, *args: Any) -> None:
            rates.append(self.metrics["optimizer/learning_rate"])
            assert self.optimizers().param_groups[0]["lr"] == rates[-1]  # type: ignore[union-attr]

    module = Watched(
        vector_spec(3, 3),
        minibatch_size=20,
        update_epochs=1,
        learning_rate=0.01,
        clip_epsilon=0.2,
        clip_decay="linear",
    )
    fit(4, module=module)
    # updates begin at env steps 0, 20, 40, 60 of 4 * 20
    assert rates == pytest.approx([0.01, 0.0075, 0.005, 0.0025])
    assert [loss.clip_epsilon for loss in losses] == pytest.approx([0.2, 0.15, 0.1, 0.05])


def test_learning_rate_without_decay_stays() -> None:
    module, _ = fit(2, module=small_module(learning_rate=0.01, learning_rate_decay="constant"))
    assert module.metrics["optimizer/learning_rate"] == 0.01


@pytest.mark.parametrize(
    ("updates", "rate"), [(200, 0.01 * (1 - 40 / 50)), (-1, 0.01 * (1 - 40 / 50)), (2, 0.01 * (1 - 20 / 50))]
)
def test_run_ends_at_the_first_update_that_reaches_its_env_steps_or_at_its_last_epoch(updates: int, rate: float) -> None:
    module, data = fit(updates, module=small_module(learning_rate=0.01, total_env_steps=50))
    assert data.env_steps == (40 if updates == 2 else 60)
    assert module.metrics["optimizer/learning_rate"] == pytest.approx(rate)


def test_last_update_of_a_run_that_reached_its_env_steps_is_saved_and_nothing_more_is_trained(tmp_path: Path) -> None:
    checkpoints = lambda: RunCheckpoint(str(tmp_path), every_n_updates=1000)  # noqa: E731
    fit(200, checkpoints(), module=small_module(total_env_steps=50))
    _, data = fit(200, checkpoints(), module=small_module(total_env_steps=50), ckpt_path=str(tmp_path / "last.ckpt"))
    assert (data.update, data.env_steps, data.rollouts) == (3, 60, [])


@pytest.mark.parametrize(("total", "warned"), [(60, []), (80, ["the schedules run over 80 env steps now, 60 before"])])
def test_resumed_run_of_another_length_says_so(
    total: int, warned: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit(2, RunCheckpoint(str(tmp_path)), module=small_module(total_env_steps=60))
    module = small_module(total_env_steps=total, learning_rate=0.01)
    fit(4, RunCheckpoint(str(tmp_path)), module=module, ckpt_path=str(tmp_path / "last.ckpt"))
    assert [record.getMessage() for record in caplog.records if record.name == "lit_ppo.module"] == warned
    # the last update begins 20 env steps before the end
    assert module.metrics["optimizer/learning_rate"] == pytest.approx(0.01 * 20 / total)


@pytest.mark.parametrize("setting", ["learning_rate_decay", "clip_decay"])
@pytest.mark.parametrize("bound", [{}, {"max_steps": 5}, {"max_time": "00:00:01:00"}])
def test_decay_over_a_run_of_unknown_length_is_refused(setting: str, bound: dict[str, Any]) -> None:
    settings = {"learning_rate_decay": "constant", setting: "linear"}
    with pytest.raises(ConfigError) as refused:
        bare_trainer(-1, **bound).fit(small_module(**settings), datamodule=small_data())
    expected = f"model.{setting}=linear: expected a run of known length; set total_env_steps or trainer.max_epochs"
    assert str(refused.value) == expected


def test_run_without_decay_needs_no_length() -> None:
    module = small_module(learning_rate_decay="constant")
    trainer = bare_trainer(-1, max_steps=16)  # 2 updates of 4 passes in 2 minibatches
    trainer.fit(module, datamodule=small_data())
    assert (trainer.global_step, module.metrics["optimizer/learning_rate"]) == (16, 3e-4)


@pytest.mark.parametrize(("target_kl", "passes"), [(1e-12, 1), (1e6, 5), (None, 5)])
def test_target_kl_ends_an_update_after_the_pass_that_went_too_far(target_kl: float | None, passes: int) -> None:
    module, _ = fit(1, module=small_module(update_epochs=5, target_kl=target_kl))
    assert module.metrics["optimizer/steps"] == 2 * passes  # 20 transitions in minibatches of 10


@pytest.mark.parametrize(("share", "steps"), [(0.55, 4), (0.45, 2)])
def test_target_kl_is_compared_with_the_kl_of_the_whole_pass(share: float, steps: int, losses: list[SimpleNamespace]) -> None:
    settings = {"update_epochs": 2, "learning_rate": 0.03}
    fit(1, module=small_module(**settings))
    first, last = (float(functional.approximate_kl(loss.log_ratio)) for loss in losses[:2])  # minibatches of 10
    assert abs(first) < 1e-6 < last  # so the whole pass has half the KL of its last minibatch
    module, _ = fit(1, module=small_module(**settings, target_kl=share * last))
    assert module.metrics["optimizer/steps"] == steps


@pytest.mark.parametrize("settings", [{}, {"shared_torso": True, "memory": "lstm"}, {"gsde": True}, {"log_std": "state"}])
def test_optimizer_has_every_parameter_that_learns_once_and_in_their_order(settings: dict[str, Any]) -> None:
    module = PPOModule(spec_of(image(9, 9, 3, path="a"), box(2, path="b"), action=box(2)), **settings)
    frozen = module.policy.critic.head.bias
    frozen.requires_grad_(False)
    optimizer = module.configure_optimizers()
    assert isinstance(optimizer, torch.optim.Optimizer)
    found = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    layers = [layer for layer in module.policy.modules() if layer._parameters]
    by_hand = [one for layer in layers for one in layer._parameters.values() if one is not None and one is not frozen]
    assert [id(parameter) for parameter in found] == [id(parameter) for parameter in by_hand]


@pytest.mark.parametrize("epsilon", [1e-5, 1e-3])
def test_optimizer_is_adam_with_the_settings_of_the_module(epsilon: float) -> None:
    module = small_module(learning_rate=0.02, adam_epsilon=epsilon)
    optimizer = module.configure_optimizers()
    assert isinstance(optimizer, torch.optim.Adam)
    [group] = optimizer.param_groups
    assert (group["lr"], group["eps"]) == (0.02, epsilon)
    assert {id(parameter) for parameter in group["params"]} == {id(parameter) for parameter in module.parameters()}


@pytest.mark.parametrize("limit", [1e-3, None])
def test_gradients_are_cut_to_the_largest_norm(limit: float | None) -> None:
    norms: list[float] = []

    class Watched(PPOModule):
        def on_train_batch_end(self, *args: Any) -> None:
            gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
            norms.append(float(torch.cat([gradient.flatten() for gradient in gradients]).norm()))

    module = Watched(vector_spec(3, 3), update_epochs=1, minibatch_size=20, max_grad_norm=limit)
    fit(1, module=module)
    measured = module.metrics["optimizer/gradient_norm"]  # before the cut
    assert measured > 0.01
    assert norms == [pytest.approx(measured if limit is None else limit, rel=1e-3)]


def test_diagnostics_of_an_update_are_complete_and_finite() -> None:
    module, data = fit(2, module=small_module(learning_rate=0.01))
    assert set(module.metrics) == {
        "loss/total",
        "loss/policy",
        "loss/value",
        "policy/entropy",
        "policy/approx_kl",
        "policy/clip_fraction",
        "critic/explained_variance",
        "optimizer/gradient_norm",
        "optimizer/learning_rate",
        "optimizer/steps",
        "time/update_steps_per_s",
        "time/overall_steps_per_s",
    }
    assert all(math.isfinite(value) for value in (module.metrics | data.metrics).values())
    assert 0 < module.metrics["policy/entropy"] <= math.log(3)
    parts = module.metrics["loss/policy"] + 0.5 * module.metrics["loss/value"]
    assert module.metrics["loss/total"] == pytest.approx(parts, abs=1e-5)


# -- determinism


def test_same_seed_makes_the_same_parameters_and_another_seed_others() -> None:
    runs = [parameters(fit(2, module=small_module(seed=seed), data=small_data(seed=seed))[0]) for seed in (1, 1, 2)]
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


def test_seed_of_the_data_and_seed_of_the_module_both_count() -> None:
    base, other_data, other_module = (
        parameters(fit(1, module=small_module(seed=seed), data=small_data(seed=data_seed))[0])
        for seed, data_seed in ((1, 1), (1, 2), (2, 1))
    )
    assert not same(base, other_data) and not same(base, other_module)


@pytest.mark.parametrize("evaluates_every", [1, 20_000])
def test_evaluation_does_not_touch_training(evaluates_every: int) -> None:
    without, _ = fit(4)
    with_it, _ = fit(4, GreedyEvaluation(every_env_steps=evaluates_every, num_episodes=3))
    assert same(parameters(without), parameters(with_it))


def test_training_draws_nothing_from_global_random_streams() -> None:
    def streams() -> tuple[Any, ...]:
        return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist(), np.random.get_state()[2]  # type: ignore[index, union-attr]

    before = streams()
    fit(2, GreedyEvaluation(every_env_steps=1, num_episodes=2))
    assert streams() == before


# -- updates that must not happen


class PoisonedModule(PPOModule):
    """From update 1 on, every return is `poison`."""

    poison = math.nan

    def make_batch(self, rollout: Rollout) -> Batch:
        batch = super().make_batch(rollout)
        return batch if rollout.update == 0 else batch._replace(returns=torch.full_like(batch.returns, self.poison))


@pytest.mark.parametrize(
    ("poison", "message"),
    [
        (
            math.nan,
            r"update 1: the loss is nan and the norm of its gradients nan; the parameters are those of the last good step",
        ),
        (math.inf, r"update 1: the loss is inf and the norm of its gradients nan"),
        (1e19, r"update 1: the loss is inf and the norm of its gradients [0-9.]+e\+\d+"),  # 10 * (1e19)^2 does not fit float32
    ],
)
def test_non_finite_update_is_refused_with_parameters_as_they_were(poison: float, message: str) -> None:
    after_one_update = parameters(fit(1)[0])
    module, data = small_module(PoisonedModule), small_data()
    module.poison = poison
    with pytest.raises(NonFiniteUpdate, match=message):
        fit(2, module=module, data=data)
    assert same(parameters(module), after_one_update)


def test_non_finite_gradient_of_a_finite_loss_is_refused_too() -> None:
    module = small_module()
    before = parameters(module)
    module.policy.critic.torso.hidden.layers[0].weight.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(NonFiniteUpdate, match=r"update 0: the loss is -?[0-9.]+ and the norm of its gradients nan"):
        fit(1, module=module)
    assert same(parameters(module), before)


# -- what Lightning sees of an update


class Listener(Callback):
    """Counts the hooks of optimizer steps."""

    def __init__(self) -> None:
        self.heard: Counter[str] = Counter()

    def on_before_backward(self, *args: Any) -> None:
        self.heard["before backward"] += 1

    def on_after_backward(self, *args: Any) -> None:
        self.heard["after backward"] += 1

    def on_before_optimizer_step(self, *args: Any) -> None:
        self.heard["before step"] += 1


def test_hooks_of_optimizer_steps_are_called_for_those_who_listen_and_change_nothing() -> None:
    unheard, listener = small_module(), Listener()
    alone, beside = bare_trainer(2), bare_trainer(2, listener)
    alone.fit(unheard, datamodule=small_data())
    heard = small_module()
    beside.fit(heard, datamodule=small_data())
    num_steps = 2 * 2 * unheard.hparams["update_epochs"]
    assert set(listener.heard.values()) == {num_steps} and len(listener.heard) == 3
    assert alone.global_step == beside.global_step == num_steps
    assert same(parameters(unheard), parameters(heard))


def test_run_goes_on_with_a_warning_where_nothing_can_be_compiled(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(function: Any, **options: Any) -> Any:
        def call(*args: Any) -> Any:
            raise RuntimeError("no working C++ compiler\nand a page about it")

        return call

    monkeypatch.setattr(torch, "compile", refuse)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/cached")  # as torch does: a file there that a kill has cut fails for ever
    module, _ = fit(2, module=small_module(compile=True))
    warned = [record.getMessage() for record in caplog.records if record.name == "lit_ppo.compilation"]
    cure = "if a kill has damaged torch's cache, delete /cached"
    assert warned == [f"model.compile: nothing is compiled: no working C++ compiler; {cure}"]
    assert same(parameters(module), parameters(fit(2, module=small_module())[0]))


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_nothing_is_compiled_for_those_who_listen_to_backward_passes(caplog: pytest.LogCaptureFixture) -> None:
    def warnings_of(module: PPOModule, *callbacks: Callback, **flags: Any) -> list[str]:
        caplog.clear()
        bare_trainer(1, *callbacks, **flags).fit(module, datamodule=small_data())
        return [record.getMessage() for record in caplog.records if record.name == "lit_ppo.compilation"]

    rest = "needs the backward pass, which a compiled update does not have"
    listener, seen = Listener(), []
    assert warnings_of(small_module(compile=True), listener) == [f"model.compile: nothing is compiled: Listener {rest}"]
    assert len(listener.heard) == 3
    module = small_module(compile=True)
    module.policy.critic.torso.hidden.layers[0].bias.register_hook(seen.append)
    assert warnings_of(module) == [
        f"model.compile: nothing is compiled: a hook on policy.critic.torso.hidden.layers.0.bias {rest}"
    ]
    assert seen
    module = small_module(compile=True)
    module.policy.actor.register_full_backward_hook(lambda *args: seen.clear())
    assert warnings_of(module) == [f"model.compile: nothing is compiled: a hook on policy.actor {rest}"]
    assert not seen
    anomalies = warnings_of(small_module(compile=True), detect_anomaly=True)
    assert anomalies == [f"model.compile: nothing is compiled: trainer.detect_anomaly {rest}"]


@pytest.mark.slow
@pytest.mark.parametrize("vectorization", ["sync", "native"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler, in torch's compiler
def test_compiled_update_does_what_the_eager_one_does(vectorization: str) -> None:
    settings = {"clip_decay": "linear", "minibatch_size": 8}  # a clip range that changes, and parts of two sizes
    compiled, at_start = cartpole_module(compile=True, **settings), []
    steps = {"horizon": 50, "vectorization": vectorization}  # native: rows that are no transition, so parts of more sizes

    class Start(Callback):
        def on_train_start(self, *args: Any) -> None:
            at_start.append(counters["stats"]["unique_graphs"])

    bare_trainer(3, Start()).fit(compiled, datamodule=small_data("CartPole-v1", **steps))
    assert at_start == [counters["stats"]["unique_graphs"]]  # all that is needed was compiled before the first update
    assert isinstance(compiled._passes.gradients.of_part, CompiledGradients)
    eager, _ = fit(3, module=cartpole_module(**settings), data=small_data("CartPole-v1", **steps))
    for one, other in zip(compiled.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


# -- settings


@pytest.mark.parametrize(
    ("setting", "value", "allowed"),
    [
        ("update_epochs", 0, "1 to 10,000"),
        ("minibatch_size", -1, "1 to 1,099,511,627,776"),
        ("actor_hidden_sizes", (8, 0), "sizes of at least 1"),
        ("critic_hidden_sizes", (0,), "sizes of at least 1"),
        ("gamma", 1.5, "a number in [0, 1]"),
        ("gamma", -0.1, "a number in [0, 1]"),
        ("gamma", math.nan, "a number in [0, 1]"),
        ("gae_lambda", 1.01, "a number in [0, 1]"),
        ("learning_rate", 0.0, "a number above 0, or null"),
        ("learning_rate", math.inf, "a number above 0, or null"),
        ("adam_epsilon", -1e-5, "a number above 0, or null"),
        ("clip_epsilon", 0.0, "a number above 0"),
        ("value_coefficient", -0.5, "a number of at least 0"),
        ("entropy_coefficient", math.nan, "a number of at least 0"),
        ("learning_rate_decay", "cosine", "linear, constant or null"),
        ("clip_decay", None, "linear or constant"),
        ("action_bounds", "wrap", "clip or refuse"),
        ("log_std", "fixed", "parameter or state"),
        ("log_std_init", -math.inf, "a finite number"),
        ("gsde_steps", 4, "null without model.gsde"),
        ("gsde_steps", 0, "at least 1, or null"),
        ("total_env_steps", 0, "a number above 0, or null"),
        ("value_clip", 0.0, "a number above 0, or null"),
        ("max_grad_norm", math.nan, "a number above 0, or null"),
        ("target_kl", -0.01, "a number above 0, or null"),
        ("seed", -1, "at least 0"),
    ],
)
def test_setting_out_of_range_is_refused_by_name_value_and_range(setting: str, value: Any, allowed: str) -> None:
    with pytest.raises(ConfigError) as refused:
        small_module(**{setting: value})
    assert str(refused.value) == f"model.{setting}={value}: expected {allowed}"


@pytest.mark.parametrize(
    "settings",
    [
        {"gamma": 0.0, "gae_lambda": 0.0},
        {"gamma": 1.0, "gae_lambda": 1.0},
        {"value_coefficient": 0.0, "entropy_coefficient": 0.0},
        {"total_env_steps": None, "value_clip": None, "max_grad_norm": None},
        {"update_epochs": 1, "minibatch_size": 1, "seed": 0, "actor_hidden_sizes": ()},
    ],
)
def test_settings_at_the_ends_of_their_ranges_are_accepted(settings: dict[str, Any]) -> None:
    small_module(**settings)


def test_minibatch_larger_than_the_rollout_is_refused() -> None:
    with pytest.raises(ConfigError) as refused:
        fit(1, module=small_module(minibatch_size=21))
    assert str(refused.value) == "model.minibatch_size=21: expected at most data.horizon * data.num_envs = 10 * 2 = 20"


def test_minibatch_as_large_as_the_rollout_is_accepted() -> None:
    module, _ = fit(1, module=small_module(minibatch_size=20, update_epochs=1))
    assert module.metrics["optimizer/steps"] == 1


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("gradient_clip_val", 1.0, "trainer.gradient_clip_val=1.0: has no effect on PPO updates; use --model.max_grad_norm"),
        (
            "accumulate_grad_batches",
            2,
            "trainer.accumulate_grad_batches=2: has no effect on PPO updates; use a larger --model.minibatch_size",
        ),
        (
            "limit_train_batches",
            0.5,
            "trainer.limit_train_batches=0.5: has no effect on PPO updates; an update is one batch; use --data.horizon",
        ),
        (
            "overfit_batches",
            0.5,
            "trainer.overfit_batches=0.5: has no effect on PPO updates; on-policy data cannot be used again",
        ),
        (
            "check_val_every_n_epoch",
            2,
            "trainer.check_val_every_n_epoch=2: has no effect on PPO updates; use --evaluation.every_env_steps",
        ),
        (
            "val_check_interval",
            0.5,
            "trainer.val_check_interval=0.5: has no effect on PPO updates; use --evaluation.every_env_steps",
        ),
    ],
)
def test_trainer_flag_without_effect_is_refused_with_what_to_use_instead(flag: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        refuse_flags(bare_trainer(1, **{flag: value}))
    assert str(refused.value) == message


def test_plain_trainer_is_not_refused() -> None:
    refuse_flags(bare_trainer(1))
    refuse_flags(bare_trainer(1, fast_dev_run=True))


def a_trainer(precision: str, world_size: int) -> Any:
    strategy = SimpleNamespace()
    return SimpleNamespace(precision=precision, world_size=world_size, fast_dev_run=False, barebones=False, strategy=strategy)


def test_half_precision_and_other_strategies_of_several_devices_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"trainer\.precision=16-mixed: PPO's ratios need the range of bf16-mixed or 32-true"):
        refuse_flags(a_trainer("16-mixed", 1))
    with pytest.raises(ConfigError, match=r"trainer\.precision=bf16-true: PPO's ratios need"):
        refuse_flags(a_trainer("bf16-true", 1))
    with pytest.raises(ConfigError, match=r"trainer\.strategy: expected ddp, got SimpleNamespace; use --trainer\.strategy=ddp"):
        refuse_flags(a_trainer("32-true", 2))


def test_refused_flag_stops_a_fit_before_anything_is_trained() -> None:
    module = small_module()
    before = parameters(module)
    with pytest.raises(ConfigError, match=r"trainer\.check_val_every_n_epoch=2"):
        bare_trainer(1, check_val_every_n_epoch=2).fit(module, datamodule=small_data())
    assert same(parameters(module), before)


def test_forward_gives_the_greedy_actions() -> None:
    module, obs = small_module(), {"": torch.eye(3)}
    actions, state = module(obs)
    assert actions.equal(module.policy(obs).outputs.argmax(dim=-1)) and state is None


# -- what a checkpoint holds of the spaces


def test_module_comes_back_from_a_checkpoint_that_holds_plain_data(tmp_path: Path) -> None:
    mask = box(5, path="mask", dtype="int8", low=0, high=1)
    spec = spec_of(
        image(5, 5, 3, path="camera"), box(2, path="0/1", low=(-1.0, -9.0)), mask, action=discrete(5, start=-3), mask="mask"
    )
    module = small_module(PPOModule, spec=spec, shared_torso=True)
    trainer = bare_trainer(1)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path := tmp_path / "module.ckpt")
    assert torch.load(path, weights_only=True)["hyper_parameters"]["spec"]["mask"] == "mask"
    again = PPOModule.load_from_checkpoint(path, weights_only=True)
    assert (again.spec, again.settings) == (spec, module.settings)
    assert same(parameters(again), parameters(module))


def test_parameters_have_one_name_each_in_a_checkpoint() -> None:
    layers = [f"policy.{network}.{layer}" for network in ("actor", "critic") for layer in ("torso.hidden.layers.0", "head")]
    names = [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
    assert list(small_module().state_dict()) == names
