"""Well-known environments train in a sandbox, and come to the same numbers as without one."""

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.faults.harness import CommandLine, outcome
from tests.test_resume import differences

ENVIRONMENTS = {
    "gymnasium": ["--data.env_id=CartPole-v1"],
    "mujoco": ["--data.env_id=Hopper-v5"],
    "ale_py": ["--data.env_id=ALE/Pong-v5", "--data.env_kwargs={obs_type: ram}"],
    "Box2D": ["--data.env_id=LunarLander-v3"],
}


def trained(directory: Path, package: str, level: str) -> tuple[bytes, dict[str, Any]]:
    """What a small run comes to, and that it ends well."""
    arguments = [
        *("fit", *ENVIRONMENTS[package], f"--data.sandbox={level}", "--total_env_steps=256", "--data.num_envs=2"),
        *("--evaluation.num_episodes=1", "--data.evaluation_envs=1", "--trainer.logger=false", "--curve.path=curve.json"),
        "--checkpoint.dirpath=checkpoints",
        "--evaluation.every_env_steps=1000000",
    ]
    with closing(CommandLine(directory / level, *arguments)) as run:
        ended = run.ended()
        assert ended.code == 0, ended.err
        assert "sandbox" not in ended.err
        return outcome(run.directory)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("package", ENVIRONMENTS)
def test_environment_trains_in_a_sandbox_to_the_same_numbers(package: str, tmp_path: Path) -> None:
    pytest.importorskip(package)
    free = trained(tmp_path, package, "off")
    for level in ("strict", "isolated"):
        assert differences(list(trained(tmp_path, package, level)), list(free)) == [], level
