"""Runs that learn: does the whole of it find what is known to be there?"""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_ppo import cli
from lit_ppo.callbacks.greedy_evaluation import GreedyEvaluation
from lit_ppo.callbacks.stop_when_solved import StopWhenSolved
from lit_ppo.data import RolloutDataModule
from lit_ppo.evaluation import EpisodeResults
from lit_ppo.module import PPOModule
from lit_ppo.presets import preset_named
from tests.runs import CONSTANT, bare_trainer, fit, small_data, small_module
from tests.specs import vector_spec
from tests.toy_envs import EPISODE_STEPS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CPU = torch.device("cpu")
CONFIGS = Path(__file__).parents[2] / "configs"


def hundred_fresh_episodes(module: PPOModule, data: RolloutDataModule) -> EpisodeResults:
    """Greedy, from the seeds of `test`, which nothing has played before."""
    results = data.play(module.policy, "test", 100, CPU)
    data.close()
    return results


@pytest.mark.parametrize("seed", [0, 1])
def test_identity_environment_is_learnt_to_98_percent(seed: int) -> None:
    settings = {"minibatch_size": 64, "learning_rate": 0.01, "seed": seed}
    module, data = fit(60, module=small_module(**settings), data=small_data(num_envs=8, horizon=32, seed=seed))
    assert hundred_fresh_episodes(module, data).mean >= 0.98 * EPISODE_STEPS


def test_value_of_a_constant_reward_is_that_of_a_life_without_end() -> None:
    """V = 1 + gamma * V, so V = 1 / (1 - 0.9) = 10, although every episode is cut after 10 steps.

    Were a truncation taken for a termination, a state with m steps left would be worth (1 - 0.9^m) / (1 - 0.9). All states look
    the same, so the critic would say the mean over m = 1..10: 10 - 0.9 * (1 - 0.9^10) / (1 - 0.9) = 4.14.
    """
    settings = {"spec": vector_spec(1, 2), "gamma": 0.9, "learning_rate": 0.01, "total_env_steps": 40_000}
    module, _ = fit(150, module=small_module(**settings, minibatch_size=64), data=small_data(CONSTANT, num_envs=8, horizon=32))
    with torch.no_grad():
        value = float(module.policy({"": torch.ones(1, 1)}).values)
    assert value == pytest.approx(1 / (1 - 0.9), rel=0.05)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_preset_solves_cartpole_and_keep_their_word(seed: int, precision: Any) -> None:
    settings = preset_named("CartPole-v1").settings
    data = RolloutDataModule(**settings["data"], seed=seed)
    module = PPOModule(data.spec, **settings["model"], total_env_steps=settings["total_env_steps"], seed=seed)
    evaluation, solved = GreedyEvaluation(**settings["evaluation"]), StopWhenSolved(**settings.get("solved", {}))
    bare_trainer(-1, evaluation, solved, precision=precision).fit(module, datamodule=data)
    assert solved.solved_at is not None and solved.solved_at <= 20_000
    assert hundred_fresh_episodes(module, data).mean >= 475


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("cartpole*.yaml")), ids=lambda path: path.stem)
def test_config_solves_cartpole_and_its_best_checkpoint_keeps_its_word(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lit_ppo", "fit", "--config", str(config)])
    cli.main()
    assert "solved at env step " in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["lit_ppo", "test", "--ckpt_path", "best"])
    cli.main()
    assert capsys.readouterr().out.splitlines()[-1].split() == ["solved", "(mean", ">=", "475)", "yes"]
