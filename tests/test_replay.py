"""Reports of faults, played again."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from lit_ppo import cli, exit_codes
from lit_ppo.bridge.client import EnvBridge
from lit_ppo.bridge.settings import BridgeSettings, EnvironmentSettings
from lit_ppo.contract import ContractSettings
from lit_ppo.errors import BridgeError, ConfigError, EnvironmentFault
from lit_ppo.replay import is_same, replay, write_report
from tests.patience import patient

FAULTY = "tests.fault_envs:Faulty-v0"


def seed_of(env: int, episode: int) -> int:
    return 100 * env + episode + 1


def report_of(
    env_kwargs: dict[str, Any],
    env_id: str = FAULTY,
    actions: Callable[[], np.ndarray] = lambda: np.zeros(2, np.int64),
    obs_keys: list[str] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """The report of the fault that such an environment comes to, in two rows of which the second is at fault."""
    with EnvBridge(EnvironmentSettings(env_id, env_kwargs, obs_keys=obs_keys), 2, seed_of, **options) as bridge:
        try:
            bridge.reset()
            for _ in range(100):
                bridge.step(actions())
        except (EnvironmentFault, BridgeError) as fault:
            return fault.report
    raise AssertionError("the fault did not happen")


@pytest.mark.parametrize("call", ["step", "reset"])
def test_fault_of_one_episode_happens_again_in_its_step_or_in_the_reset_that_begins_it(call: str) -> None:
    report = report_of({"fault": "raise", "at_step": 2, "of_seeds": {str(seed_of(1, 1)): call}})
    again = replay(report)
    assert again is not None and "the pole is on fire" in str(again)
    assert again.report["seed"] == report["seed"] and again.report["actions"] == report["actions"]
    assert is_same(again, report)


@pytest.mark.parametrize("action", ["box", "multi_discrete", "multi_binary"])
def test_fault_in_a_part_of_a_nested_observation_happens_again_after_the_same_actions(action: str) -> None:
    space: Any = gymnasium.make("tests.fault_envs:Sum-v0", action=action).action_space
    space.seed(3)
    found = report_of(
        {"action": action},
        "tests.fault_envs:Sum-v0",
        lambda: np.stack([0 * space.sample(), np.abs(space.sample())]),  # the sum of row 0 stays 0
        obs_keys=["camera", "pair"],
        contract=ContractSettings(check_membership="error"),
    )
    report = json.loads(json.dumps(found))  # as it stands in its file
    again = replay(report)
    assert len(report["actions"]) > 1 and report["env"] == 1 and report["obs_keys"] == ["camera", "pair"]
    assert again is not None and report["field"] == "obs.pair/0[1, 0]" and again.report["field"] == "obs.pair/0[0, 0]"
    assert again.report["value"] == report["value"]  # the sum of all actions, to the last bit
    assert again.report["actions"] == report["actions"] and is_same(again, report)


def test_fault_that_does_not_happen_again_is_none() -> None:
    report = report_of({"fault": "raise", "at_step": 2, "of_seeds": {str(seed_of(1, 0)): "step"}})
    assert replay({**report, "seed": 12345}) is None


@pytest.mark.parametrize(("fault", "call"), [("segv", "step"), ("exit 7", "reset"), ("hang", "step"), ("kill", "step")])
def test_worker_that_dies_in_an_environment_dies_again_in_the_same_step(fault: str, call: str) -> None:
    kwargs = {"fault": fault, "of_seeds": {str(seed_of(1, 1)): call}}
    report = json.loads(json.dumps(report_of(kwargs, settings=BridgeSettings(max_restarts=0, step_timeout_s=patient(1.0)))))
    again = replay(report)
    assert isinstance(again, BridgeError) and is_same(again, report)
    assert (again.report["env"], again.report["step"]) == (0, report["step"])
    other = replay({**report, "env_kwargs": {**kwargs, "fault": "exit 7" if fault == "segv" else "segv"}})
    assert other is not None and not is_same(other, report)  # another signal is another fault


@pytest.mark.parametrize("change", [{"kind": "raised"}, {"field": "obs[1, 0]"}, {"field": "rewards[1]"}, {"step": 4}])
def test_fault_of_another_kind_field_or_step_is_another_fault(change: dict[str, Any]) -> None:
    report = report_of({"fault": "obs nan"})
    again = replay(report)
    assert again is not None and report["field"] == "obs[0, 1]"
    assert is_same(again, report) and is_same(again, {**report, "field": "obs[7, 1]"})  # the row is not the fault's
    assert not is_same(again, {**report, **change})


def test_replay_has_the_limits_of_the_run() -> None:
    """With them the file that is written is too large; without them nothing happens."""
    kwargs = {"fault": "write 64 KiB", "row": 0}
    report = report_of(kwargs, settings=BridgeSettings(rlimits={"fsize": 1 << 15}))
    again = replay(report)
    assert report["kind"] == "raised" and "File too large" in report["value"]
    assert again is not None and is_same(again, report)
    assert replay({**report, "processes": {**report["processes"], "rlimits": None}}) is None


def test_replay_has_the_interpreter_of_the_run() -> None:
    report = report_of({"fault": "raise"})
    with pytest.raises(ConfigError, match=r"data\.python=/no/such/python"):
        replay({**report, "processes": {**report["processes"], "python": "/no/such/python"}})


def test_native_fault_is_not_replayed_as_if_it_were_one_environments() -> None:
    report = report_of({"fault": "raise"})
    with pytest.raises(ConfigError, match="native rows share one random stream"):
        replay({**report, "processes": {**report["processes"], "vectorization": "native"}})


# -- reports as files


def written(report: dict[str, Any], directory: Path) -> Path:
    fault = EnvironmentFault("as reported")
    fault.report, fault.where = report, {key: report[key] for key in ("phase", "env", "episode", "step")}
    return write_report(fault, directory)


def replayed(*line: object) -> int:
    """The exit code of the command."""
    try:
        cli.main(["replay", *map(str, line)])
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_report_from_elsewhere_names_no_program_and_no_code_unless_typed_or_trusted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = written(report_of({"fault": "raise"}), tmp_path / "here")
    (tmp_path / "there").mkdir()
    foreign = Path(shutil.copy(own, tmp_path / "there"))
    assert replayed(own) == exit_codes.DONE
    capsys.readouterr()
    assert replayed(foreign) == exit_codes.USAGE
    told = capsys.readouterr()
    assert told.out == "" and told.err == (
        f"lit_ppo: error: {foreign}: no run of its directory wrote it, and it sets data.env_id='{FAULTY}': type what you want "
        "of that, or use --trust_report=true if you know who made it\n"
    )
    assert replayed(foreign, f"--env_id={FAULTY}") == replayed(foreign, "--trust_report=true") == exit_codes.DONE
    changed = json.loads(own.read_text())
    changed["processes"]["python"] = "/tmp/evil"
    own.write_text(json.dumps(changed))
    assert replayed(own, f"--env_id={FAULTY}") == exit_codes.USAGE
    assert "it sets data.python='/tmp/evil'" in capsys.readouterr().err


def test_sandbox_that_is_typed_holds_in_a_replay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = written(report_of({"fault": "raise"}), tmp_path)
    assert replayed(report, "--sandbox=strict") == exit_codes.DONE
    assert replayed(report, "--sandbox=strict", "--sandbox_write=[/no/such]") == exit_codes.USAGE
    assert "data.sandbox_write='/no/such'" in capsys.readouterr().err


BROKEN: dict[str, Any] = {
    "a list": [],
    "nothing": {},
    "processes that are a list": {"processes": []},
    "a process setting of another type": {"processes": {"rlimits": "x"}},
    "a process setting that is unknown": {"processes": {"x": 1}},
    "a rule of another type": {"contract": {"num_actions": "x"}},
    "actions that are text": {"actions": "x"},
    "actions that are none": {"actions": None},
    "an action that is too large": {"actions": [1 << 80]},
    "an action of another shape": {"actions": [[[1]], {}]},
    "a seed that is text": {"seed": "x"},
    "a seed that is too large": {"seed": 1 << 80},
    "no field": {"field": None},
    "wrappers of another type": {"wrappers": [[3]]},
    "an environment of another type": {"env_id": 3},
    "a limit of another type": {"max_episode_steps": "x"},
}


def test_report_that_is_broken_ends_in_one_line_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = {**report_of({"fault": "raise"})}
    path = tmp_path / "report.json"
    for name, change in BROKEN.items():
        path.write_text(json.dumps({**whole, **change} if change else change))
        capsys.readouterr()
        assert replayed(path, "--trust_report=true") == exit_codes.USAGE, name
        told = capsys.readouterr()
        assert told.out == "" and told.err.count("\n") == 1 and told.err.startswith("lit_ppo: error: "), (name, told.err)
    path.write_text("[" * 100_000)
    assert replayed(path) == exit_codes.USAGE
