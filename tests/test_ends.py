"""Every end of a command has its exit code and one line that says where and what to do."""

import math
from pathlib import Path
from typing import Any

import pytest

from lit_ppo import exit_codes
from lit_ppo.checkpoint_io import read_checkpoint, write_checkpoint
from lit_ppo.errors import CheckpointError, ConfigError, NonFiniteUpdate
from tests.runs import bare_trainer, small_data, small_module
from tests.test_cli import SMALL, Run, in_an_empty_directory, run, shared_run, trained  # noqa: F401

LAST = "runs/CartPole-v1/1/last.ckpt"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused_by_each_command(value: float, run: Run, trained: None) -> None:  # noqa: F811
    checkpoint = read_checkpoint(LAST)
    name = next(key for key in checkpoint["state_dict"] if key.startswith("policy.actor"))
    checkpoint["state_dict"][name].view(-1)[0] = value
    write_checkpoint(checkpoint, LAST)
    for line in ("test", "validate", "fit --trainer.max_epochs=3", "play --record=videos", "export --format=torch --out=a.pt2"):
        ended = run(f"{line} --ckpt_path={LAST}")
        assert (ended.code, ended.out) == (exit_codes.NON_FINITE, ""), (line, ended.err)
        assert ended.err.splitlines()[-1].startswith(f"lit_ppo: error: {name}: expected finite parameters"), ended.err


@pytest.mark.parametrize("part", ["actor.head.bias", "observation_normalizer.leaves.0.mean"])
def test_weights_that_are_not_finite_play_no_episode_from_python_either(part: str) -> None:
    module, data = small_module(normalize_observations=True), small_data(report_dir=None)
    module.policy.state_dict()[part].view(-1)[0] = math.nan
    with pytest.raises(NonFiniteUpdate, match="expected finite parameters"):
        bare_trainer(1).test(module, data)


def test_fault_in_the_replay_of_a_resume_ends_in_exit_code_3_with_place_and_report(run: Run, tmp_path: Path) -> None:  # noqa: F811
    marker = tmp_path / "marker"
    marker.touch()  # until it is gone, all goes well
    kwargs: dict[str, Any] = {"fault": "raise", "once": str(marker)}
    env = ["--data.env_id=tests.fault_envs:Faulty-v0", *(f"--data.env_kwargs.{key}={value}" for key, value in kwargs.items())]
    assert run(f"fit {SMALL} --trainer.logger=false {' '.join(env)} --data.horizon=10 --model.minibatch_size=10").code == 0
    marker.unlink()
    ended = run("fit --ckpt_path=last --trainer.max_epochs=3")
    assert ended.code == exit_codes.ENVIRONMENT
    assert "(phase training, env 0, episode 1, step 3, seed " in ended.err
    report = "runs/tests.fault_envs-Faulty-v0/1/reports/fault-training-env0-episode1-step3.json"
    assert f"report {report})" in ended.err and Path(report).is_file()


@pytest.mark.parametrize("error", [ConfigError, CheckpointError])
def test_text_of_others_in_a_message_begins_no_line_and_steers_no_terminal(
    error: type[Exception], capsys: pytest.CaptureFixture[str]
) -> None:
    text = "env_id=X\nlit_ppo: all is well\x1b[2J\udc80"
    assert str(error(text)) == r"env_id=X\nlit_ppo: all is well\x1b[2J\udc80"
    with pytest.raises(SystemExit):
        exit_codes.fail("\x1b]0;a title\a", exit_codes.USAGE)
    assert capsys.readouterr().err == "lit_ppo: error: \\x1b]0;a title\\x07\n"
