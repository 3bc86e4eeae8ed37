"""check-env: what it finds out about an environment, and how it ends."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from lit_ppo import cli, environment_check
from lit_ppo.bridge.settings import BridgeSettings, EnvironmentSettings
from lit_ppo.callbacks.greedy_evaluation import GreedyEvaluation
from lit_ppo.environment_check import EnvironmentReport, check_environment
from lit_ppo.errors import ConfigError
from tests.runs import fit, small_data

FAULTY = "tests.fault_envs:Faulty-v0"


def checked(env_id: str, num_steps: int = 60, **env_kwargs: Any) -> EnvironmentReport:
    return check_environment(EnvironmentSettings(env_id, env_kwargs), num_steps=num_steps)


def test_good_environment_is_fit() -> None:
    report = checked("CartPole-v1", 200)
    assert report.is_fit and report.fault is None and report.difference is None
    assert report.steps == 200 and report.episodes > 3
    assert report.reset is not None and report.step is not None and 0 < report.step.median_s <= report.step.high_s
    assert any("infinity" in remark for remark in report.gymnasium)
    assert report.settings == {} and report.spec.reward_threshold == 475


def test_fault_ends_the_steps_and_is_named() -> None:
    report = checked(FAULTY, fault="obs nan", at_step=3)
    assert not report.is_fit and report.steps == 3
    assert report.fault is not None and "expected a finite value, got nan" in report.fault and "step 3" in report.fault


def test_first_step_that_another_process_answers_otherwise_is_named() -> None:
    report = checked(FAULTY, drift=True)
    assert not report.is_fit and report.fault is None
    assert report.difference is not None and re.match(
        r"(reset|step \d+) of the episode of seed \d+, .*: obs", report.difference
    )
    assert "data.remake_each_episode=true" not in report.settings  # it would not help


@pytest.mark.parametrize(("leaks", "is_fit"), [(True, False), (False, True)])
def test_what_an_environment_keeps_from_one_episode_to_the_next_is_found(leaks: bool, is_fit: bool) -> None:
    report = checked("tests.toy_envs:Leaky-v0", 25, leaks=leaks)
    assert report.is_fit is is_fit and report.episodes == 2
    assert is_fit or (report.difference or "").startswith("reset of the episode")
    assert ("data.remake_each_episode=true" in report.settings) is not is_fit


def test_environment_that_is_made_anew_for_each_episode_keeps_nothing() -> None:
    report = check_environment(EnvironmentSettings("tests.toy_envs:Leaky-v0", remake_each_episode=True), num_steps=25)
    assert report.is_fit and report.episodes == 2


def test_settings_follow_from_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment_check, "_ROLLOUT_S", 0.0)
    monkeypatch.setattr(environment_check, "_LARGE", 0.0)
    settings = checked("Pendulum-v1", 5).settings
    expected = ["data.horizon=8", "model.normalize_observations=true", "solved.threshold=RETURN"]
    assert list(settings) == expected


def test_observations_that_float32_cannot_tell_apart_are_named() -> None:
    [remark] = checked("tests.toy_envs:Far-v0", 40).remarks  # its time is scaled from its bounds before it is rounded
    assert re.match(r"obs\.metres: float32 cannot tell apart what lies between 6399\S+ and 6400\S+; use", remark), remark
    assert remark.endswith("--model.normalize_observations=true") and checked("tests.toy_envs:Anything-v0").remarks == []
    [metres, time] = checked("tests.toy_envs:Far-v0", 40, has_bounds=False).remarks
    assert metres == remark and time.startswith("obs.time: ") and time.endswith('normalize_observations=["time"]')


def test_environment_that_never_ends_needs_a_time_limit() -> None:
    assert "data.max_episode_steps=STEPS" in checked("CliffWalking-v1", 20).settings


@pytest.mark.parametrize("num_workers", ["auto", 2])
@pytest.mark.parametrize("bears", ["any", "no state", "no other", "none on the machine"])
def test_environment_that_bears_no_other_in_its_process_is_fit_with_one_in_each(bears: str, num_workers: Any) -> None:
    environment = EnvironmentSettings("tests.toy_envs:Beside-v0", {"bears": bears, "name": f"lit_ppo-{os.getpid()}"})
    report = check_environment(environment, BridgeSettings(num_workers=num_workers), num_steps=60)
    assert report.fault is None and report.difference is None
    is_alone = bears == "none on the machine"
    assert report.is_fit is not is_alone and (report.apart is not None) is is_alone
    is_disturbed = bears != "any" and num_workers == "auto"  # with more workers two are never in one process
    assert (report.beside is not None) is is_disturbed
    named = {"data.num_workers=8", "data.evaluation_envs=8"}
    assert named & set(report.settings) == (named if is_disturbed and not is_alone else set())
    assert "\n" not in f"{report.beside}{report.apart}"


def test_one_environment_in_each_process_trains_and_is_evaluated_with_the_settings_that_are_named(tmp_path: Path) -> None:
    kwargs = {"bears": "no other"}
    data = small_data("tests.toy_envs:Beside-v0", num_envs=2, num_workers=2, evaluation_envs=2, env_kwargs=kwargs)
    evaluation = GreedyEvaluation(every_env_steps=1, num_episodes=3)
    _, data = fit(1, evaluation, data=data)
    alone = small_data("tests.toy_envs:Beside-v0", num_envs=2, num_workers=2, evaluation_envs=1, env_kwargs=kwargs)
    other = GreedyEvaluation(every_env_steps=1, num_episodes=3)
    fit(1, other, data=alone)
    assert evaluation.latest == other.latest and data.update == 1


def test_what_gymnasiums_checker_says_is_a_remark(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["check-env", "tests.toy_envs:Sharing-v0", "--steps=20"])
    said = capsys.readouterr().out
    assert re.search(r"gymnasium +error: AssertionError: .* share an object", said) and "(remarks only: lit_ppo copies" in said
    assert "policy " not in said  # small


@pytest.mark.parametrize(
    ("kwargs", "wrapper", "channels", "last_sides"),
    [
        (
            {"shape": [210, 160, 3]},
            "{class_path: gymnasium.wrappers.ResizeObservation, init_args: {shape: [84, 84]}}",
            3,
            (22, 16),
        ),
        ({"shape": [3, 210, 160]}, "WRAPPER", 3, (22, 16)),  # which that one takes for sides of 3 and 210
        ({"shape": [120, 90], "in_parts": True}, "WRAPPER", 1, (11, 7)),
        ({"shape": [84, 84, 4]}, None, 4, (7, 7)),
    ],
)
def test_large_images_are_named_with_what_makes_them_small_and_the_size_of_the_policy(
    kwargs: dict[str, Any], wrapper: str | None, channels: int, last_sides: tuple[int, int]
) -> None:
    report = checked("tests.toy_envs:Sharing-v0", 3, **kwargs)
    assert report.is_fit
    reasons = {name: reason for name, reason in report.settings.items() if name.startswith("data.wrappers=")}
    assert list(reasons) == ([] if wrapper is None else [f"data.wrappers=[{wrapper}]"])
    assert all("gymnasium.wrappers.ResizeObservation" in f"{name} {reason}" for name, reason in reasons.items())
    # weights and biases of the three convolutions, of the layer behind them, and of two hidden layers
    convolutions = 32 * (channels * 8 * 8 + 1) + 64 * (32 * 4 * 4 + 1) + 64 * (64 * 3 * 3 + 1)
    torso = convolutions + 512 * (64 * last_sides[0] * last_sides[1] + 1) + 64 * (512 + 1) + 64 * (64 + 1)
    assert report.parameters == 2 * torso + (3 + 1) * (64 + 1)  # of actor and critic; heads of three actions and a value


@pytest.mark.parametrize("arguments", [{"num_steps": 0}, {"seed": -1}])
def test_settings_that_make_no_sense_are_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        check_environment(EnvironmentSettings("CartPole-v1", {}), **arguments)


def test_command_prints_and_writes_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "report.json"
    cli.main(["check-env", FAULTY, "--steps=20", "--env_kwargs={drift: false}", "--json", str(path)])
    said = capsys.readouterr().out
    assert "contract      kept in 20 random steps" in said and "a fresh process answers the same bits" in said
    report = json.loads(path.read_text())
    assert report["is_fit"] is True and report["spec"]["env_id"] == FAULTY and report["steps"] == 20


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([FAULTY, "--env_kwargs={fault: raise, at_step: 2}", "--steps=5"], 3, f"{FAULTY}: not fit for training as it is"),
        (["Absent-v7"], 2, "env_id=Absent-v7"),
        (["CartPole-v1", "--env_kwargs={"], 2, "data.env_kwargs: expected a mapping or null, got {"),
    ],
)
def test_command_ends_with_one_line_and_whose_fault_it_is(
    arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["check-env", *arguments])
    [line] = capsys.readouterr().err.splitlines()
    assert ended.value.code == code and message in line
