"""Seeds: functions of what they are for, and never shared between purposes."""

import itertools
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import seed_everything

from lit_ppo import seeding
from lit_ppo.commands.train import LitPPOCLI
from lit_ppo.errors import ConfigError
from lit_ppo.module import PPOModule
from lit_ppo.ppo_settings import PPOSettings
from tests.runs import bare_trainer, parameters, same, small_data, small_module
from tests.test_resume import differences
from tests.toy_parts import Torso

PURPOSES = ("training", "evaluation", "test", "confirmation")
NUMBERS = st.integers(0, 2**63)


@given(st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS), min_size=4, max_size=4))
def test_episodes_of_different_purposes_never_share_a_seed(numbers: list[tuple[int, int, int, int]]) -> None:
    seeds = [seeding.episode_seed(n[0], purpose, *n[1:]) for purpose, n in zip(PURPOSES, numbers, strict=True)]
    assert len({seed >> 29 for seed in seeds}) == 4  # not by luck: each purpose has a quarter of the 31 bits to itself


@given(NUMBERS, st.sampled_from(PURPOSES), NUMBERS, NUMBERS, NUMBERS)
def test_episode_seeds_are_31_bits(run_seed: int, purpose: seeding.Purpose, rank: int, env: int, episode: int) -> None:
    assert 0 <= seeding.episode_seed(run_seed, purpose, rank, env, episode) < 2**31


def test_neighbouring_episodes_have_seeds_of_their_own() -> None:
    seeds = [seeding.episode_seed(*where) for where in itertools.product((0, 1), ("training",), (0, 1), range(8), range(20))]
    # 640 draws from 2^29 share a number with probability 640^2 / 2^30 = 0.0004
    assert len(set(seeds)) == len(seeds)


def test_generators_differ_by_seed_purpose_and_index() -> None:
    keys = [(0, "actions", 0), (1, "actions", 0), (0, "minibatches", 0), (0, "actions", 1), (0, "actions"), (0, "weights")]
    draws = [torch.rand(2, generator=seeding.generator(*key)).tolist() for key in keys]  # type: ignore[arg-type]
    assert len({tuple(draw) for draw in draws}) == len(keys)


def test_generator_of_one_key_always_draws_the_same() -> None:
    first, second = (torch.rand(4, generator=seeding.generator(5, "actions", 9)) for _ in range(2))
    assert first.equal(second)


def test_seeds_are_the_same_in_another_process() -> None:
    numbers = "seeding.episode_seed(3, 'test', 0, 1, 2), seeding.generator(3, 'actions', 4).initial_seed()"
    command = [sys.executable, "-c", f"from lit_ppo import seeding; print({numbers})"]
    # Python's own hash() of a string would differ there
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    here = seeding.episode_seed(3, "test", 0, 1, 2), seeding.generator(3, "actions", 4).initial_seed()
    assert printed.split() == [str(number) for number in here]


# -- one seed for module and data

TYPED = (None, 1, 2)


@pytest.fixture(autouse=True)
def without_lightnings_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)


def made(of_module: int | None, of_data: int | None, **settings: Any) -> tuple[Any, Any]:
    seeds = [{} if seed is None else {"seed": seed} for seed in (of_module, of_data)]
    return small_module(**settings, **seeds[0]), small_data(bridge="inprocess", **seeds[1])


def outcome(module: Any, data: Any, ckpt_path: str | None = None) -> list[Any]:
    """What follows from the seeds of a run: weights, minibatches, actions, episodes, and what is saved of the seeds."""
    before = parameters(module)
    trainer = bare_trainer(1 + data.update)
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    saved = module.hparams["seed"], dict(module.hparams_initial)["seed"], data.hparams["seed"], module.run_seed, data.seed
    rollout = data.rollouts[0]
    return [before if ckpt_path else None, parameters(module), rollout.actions, rollout.obs[""], list(saved)]


@cache
def typed_on_both(of_module: int, of_data: int) -> list[Any]:
    return outcome(*made(of_module, of_data))


@pytest.mark.parametrize("of_lightning", TYPED)
@pytest.mark.parametrize("of_module", TYPED)
@pytest.mark.parametrize("of_data", TYPED)
def test_run_has_the_seed_that_was_typed_or_lightnings(
    of_module: int | None, of_data: int | None, of_lightning: int | None
) -> None:
    if of_lightning is not None:
        seed_everything(of_lightning, verbose=False)
    module, data = made(of_module, of_data)
    default = of_lightning or 0
    expected = (
        default if of_module is of_data is None else of_data if of_module is None else of_module,
        default if of_module is of_data is None else of_module if of_data is None else of_data,
    )
    if of_module is None and of_data is None:
        assert (module.hparams["seed"], data.hparams["seed"]) == expected
    assert differences(typed_on_both(*expected), outcome(module, data)) == []


def test_runs_of_different_seeds_differ_in_all_that_follows_from_them() -> None:
    runs = [typed_on_both(seed, seed) for seed in (0, 1, 2)]
    for first, second in itertools.combinations(runs, 2):
        for part in (1, 2, 3):
            assert differences(first[part], second[part]) != []


def nudged(module: Any) -> None:
    with torch.no_grad():
        list(module.policy.parameters())[-1].add_(1e-6)


CHANGES: dict[str, tuple[Callable[[Any], Any], bool]] = {
    "nothing": (lambda module: None, True),
    "dtype": (lambda module: module.double().float(), True),
    "frozen": (lambda module: module.policy.actor.requires_grad_(False), True),
    "one weight": (nudged, False),
    "moments": (lambda module: module.policy.observation_normalizer.leaves[0].mean.add_(1), False),
    "other weights": (lambda module: module.load_state_dict(made(5, 5, normalize_observations=True)[0].state_dict()), False),
    "another policy": (lambda module: setattr(module, "policy", made(5, 5)[0].policy), False),
    "trained": (lambda module: outcome(module, made(None, None)[1]), False),
}


@pytest.mark.parametrize("change", CHANGES)
def test_weights_are_drawn_anew_only_if_they_are_a_fresh_draw(change: str) -> None:
    act, is_fresh = CHANGES[change]
    module, data = made(None, 3, normalize_observations=True)
    act(module)
    before = list(module.parameters())
    if is_fresh:
        assert outcome(module, data)[-1] == [3] * 5
        assert all(own is kept for own, kept in zip(module.parameters(), before, strict=True))
    else:
        with pytest.raises(ConfigError, match=r"model\.seed=0, data\.seed=3"):
            outcome(module, data)


def test_weights_of_an_own_torso_are_drawn_anew() -> None:
    sizes = dict.fromkeys(("actor_hidden_sizes", "critic_hidden_sizes"), PPOSettings().actor_hidden_sizes)
    runs = [outcome(*made(seed, 3, torso=Torso, **sizes)) for seed in (None, 3)]
    assert differences(*runs) == []


def test_loaded_module_keeps_its_weights_and_its_seed_and_a_resumed_run_its_own(tmp_path: Path) -> None:
    module, data = made(None, 3)
    outcome(module, data)
    data.trainer.save_checkpoint(tmp_path / "saved.ckpt")
    loaded, other = PPOModule.load_from_checkpoint(tmp_path / "saved.ckpt"), made(None, 4)[1]
    weights = parameters(loaded)
    bare_trainer(0).fit(loaded, datamodule=other)
    assert (loaded.run_seed, other.seed) == (3, 4) and same(weights, parameters(loaded))
    resumed = made(None, None)
    seed_everything(9, verbose=False)
    bare_trainer(2).fit(resumed[0], datamodule=resumed[1], ckpt_path=tmp_path / "saved.ckpt")
    assert (resumed[0].run_seed, resumed[1].seed) == (3, 3)


@pytest.mark.parametrize("variable", ["7", "nonsense"])
def test_command_line_has_seed_0_whatever_the_variable_says(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", variable)
    monkeypatch.setattr("sys.argv", ["fit"])
    cli = LitPPOCLI(args=["--data.bridge=inprocess"], run=False)
    assert (cli.model.run_seed, cli.datamodule.seed) == (0, 0)


def test_variable_that_holds_no_seed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "nonsense")
    with pytest.raises(ConfigError, match="PL_GLOBAL_SEED=nonsense: expected"):
        made(None, None)
