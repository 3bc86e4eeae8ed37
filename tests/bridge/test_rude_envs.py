"""Whatever an environment raises is its own fault, and what it sets for its process does not reach our code."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_ppo import exit_codes
from lit_ppo.bridge.client import EnvBridge
from lit_ppo.bridge.faults import error_from_json, error_to_json
from lit_ppo.bridge.frame import Busy
from lit_ppo.bridge.protocol import MAX_LINE_BYTES, encode
from lit_ppo.bridge.settings import BridgeSettings, EnvironmentSettings
from lit_ppo.bridge.worker import Worker
from lit_ppo.errors import EnvironmentRaised, WorkerDefect, WorkerExited, WorkerTimeout
from tests.rude_envs import RAISING, SETTINGS

PLACES = ("import", "make", "reset", "step", "close")


@pytest.fixture
def no_signal_means_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a worker process, where a KeyboardInterrupt can only be the environment's."""
    monkeypatch.setattr("lit_ppo.bridge.faults.is_environment_process", True)


def played(environment: EnvironmentSettings, faults: list[Any] | None = None, **settings: Any) -> list[bytes]:
    seen = []
    processes = BridgeSettings(**settings)
    on_fault = [].append if faults is None else faults.append
    with EnvBridge(environment, 2, lambda env, episode: 100 * env + episode, settings=processes, on_fault=on_fault) as bridge:
        seen.append(bridge.reset()[""].tobytes())
        for k in range(12):
            step = bridge.step(np.array([k % 2, 1]))
            seen += [step.obs[""].tobytes(), step.rewards.tobytes(), step.terminated.tobytes()]
        assert bridge.restarts == 0
    return seen


def rude(raising: str, place: str, tmp_path: Path) -> EnvironmentSettings:
    if place != "import":
        return EnvironmentSettings("tests.rude_envs:RudeEnv", env_kwargs={"raising": raising, "place": place})
    name = f"rude_{abs(hash(raising))}"
    (tmp_path / f"{name}.py").write_text(f"from tests.rude_envs import RAISING\nRAISING[{raising!r}]()\n")
    return EnvironmentSettings(f"{name}:Env", env_path=[str(tmp_path)])


def assert_fault(raising: str, place: str, tmp_path: Path, **settings: Any) -> None:
    faults: list[Any] = []
    environment = rude(raising, place, tmp_path)
    if place == "close":
        environment = EnvironmentSettings(**{**vars(environment), "remake_each_episode": True})  # else nothing depends on it
    with pytest.raises(EnvironmentRaised) as raised:
        played(environment, faults, **settings)
    error = raised.value
    assert exit_codes.of(error) == exit_codes.ENVIRONMENT and error.during == place
    assert error.exception.startswith(raising.removesuffix("xxx").partition("\\")[0])
    lines = str(error).splitlines()
    assert len(lines) < 50 and max(map(len, lines)) < 5000
    if place in ("reset", "step"):
        assert [fault.report["seed"] for fault in faults] == [error.where["seed"]]
        assert error.where["step"] == (2 if place == "step" else 0)


@pytest.mark.usefixtures("no_signal_means_interrupt")
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("raising", RAISING)
def test_whatever_an_environment_raises_is_its_fault_at_once(raising: str, place: str, tmp_path: Path) -> None:
    assert_fault(raising, place, tmp_path, bridge="inprocess")


@pytest.mark.parametrize(
    ("raising", "place"),
    [("KeyboardInterrupt", place) for place in PLACES] + [("SystemExit: 0", "import"), ("RecursionError", "step")],
)
def test_it_is_its_fault_in_a_process_of_its_own_as_well(raising: str, place: str, tmp_path: Path) -> None:
    assert_fault(raising, place, tmp_path)


def test_an_interrupt_is_its_fault_with_a_handler_of_its_own_as_well() -> None:
    rude_one = {"raising": "KeyboardInterrupt", "settings": ["python's handler"]}
    with pytest.raises(EnvironmentRaised, match="KeyboardInterrupt"):
        played(EnvironmentSettings("tests.rude_envs:RudeEnv", env_kwargs=rude_one))


def test_an_interrupt_of_the_process_itself_is_no_fault_of_the_environment(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        played(rude("KeyboardInterrupt", "step", tmp_path), bridge="inprocess")


def test_a_long_traceback_is_shortened_on_the_screen_and_whole_in_the_report(tmp_path: Path) -> None:
    faults: list[Any] = []
    with pytest.raises(EnvironmentRaised) as raised:
        played(rude("RecursionError", "step", tmp_path), faults)
    whole = faults[0].report["traceback"]
    assert whole.count("\n") > 500
    _, *shown, _ = str(raised.value).splitlines()
    at = next(k for k, line in enumerate(shown) if "more lines, which the report of the fault has" in line)
    assert at == 20 and [line[2:] for line in shown[:20]] == whole.splitlines()[:20]


@pytest.mark.parametrize("text", ["\x00", "\U0001f300", '"', "\\", "\n", "é"])
def test_an_error_of_any_length_fits_into_a_message(text: str) -> None:
    for error in (EnvironmentRaised("step", "E", "", 0), RuntimeError(text * 2_000_000)):
        assert len(encode(error_to_json(error))) < MAX_LINE_BYTES


def test_an_exception_of_our_own_code_is_a_defect_and_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Worker, "describe", lambda worker, request: 1 / 0)
    with pytest.raises(WorkerDefect, match="a defect of lit_ppo, in a worker: ZeroDivisionError") as raised:
        played(EnvironmentSettings("tests.rude_envs:RudeEnv"), bridge="inprocess")
    assert "in <lambda>" in str(raised.value) and exit_codes.of(raised.value) is None


def test_a_message_of_a_defect_holds_no_line_of_ours() -> None:
    forged = error_from_json(
        {"kind": "defect", "message": "a\nb\x1b", "traceback": "c\nlit_ppo: error:"}, range(1), Busy(None, False)
    )
    assert str(forged).splitlines() == ["a defect of lit_ppo, in a worker: a\\nb\\x1b", "  c", "  lit_ppo: error:"]


def undisturbed() -> list[bytes]:
    return played(EnvironmentSettings("tests.rude_envs:RudeEnv"))


def test_settings_of_the_environments_process_change_no_number() -> None:
    together = [name for name in SETTINGS if name != "no output"]
    assert played(EnvironmentSettings("tests.rude_envs:RudeEnv", env_kwargs={"settings": together})) == undisturbed()


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_one_setting_of_the_environments_process_changes_no_number(name: str) -> None:
    assert played(EnvironmentSettings("tests.rude_envs:RudeEnv", env_kwargs={"settings": [name]})) == undisturbed()


def test_a_worker_is_a_program_without_arguments(tmp_path: Path) -> None:
    (tmp_path / "parsing_env.py").write_text(
        "import argparse, json, sys\nfrom tests.rude_envs import RudeEnv\n"
        f"argparse.ArgumentParser().parse_args()\njson.dump(sys.argv, open({str(tmp_path / 'argv')!r}, 'w'))\n"
    )
    played(EnvironmentSettings("parsing_env:RudeEnv", env_path=[str(tmp_path)]))
    assert json.loads((tmp_path / "argv").read_text()) == [""]
    assert sys.argv != [""]


READS = {
    "open": "open({!r})",
    "numpy": "__import__('numpy').loadtxt({!r})",
    "pathlib": "__import__('pathlib').Path({!r}).read_text()",
    "another error": "try: open({!r})\nexcept OSError as error: raise ValueError(1) from error",
    "listdir": "__import__('os').listdir({!r})",
    "in words": "raise FileNotFoundError('there is no {}.')",
}


@pytest.mark.parametrize("name", ["prices.csv", "a b.txt", "data/prices.csv"])
@pytest.mark.parametrize("read", READS)
def test_a_file_where_the_command_was_started_is_named_with_the_cure(
    read: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if read in ("in words", "numpy") and " " in name:
        return  # no words tell where such a name ends
    module = f"reading_{abs(hash((read, name)))}"
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / f"{module}.py").write_text(READS[read].format(name))
    environment = EnvironmentSettings(f"{module}:Env", env_path=[str(tmp_path / "modules")])
    monkeypatch.chdir(tmp_path)
    for is_there in (False, True):
        if is_there:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
            monkeypatch.chdir(tmp_path)
        error = error_to_json(_raised_where(environment, tmp_path / "modules", monkeypatch))["error"]
        text = str(error_from_json(error, range(1), Busy(None, False))).partition("\n")[0]
        assert ("use data.worker_cwd=. or an absolute path" in text) == is_there, text
        assert not is_there or f"; {name} is where the command was started" in text
        sys.modules.pop(module, None)


def _raised_where(environment: EnvironmentSettings, directory: Path, monkeypatch: pytest.MonkeyPatch) -> Exception:
    """What a worker in another directory raises."""
    from lit_ppo.bridge.making import EnvironmentMaker

    with monkeypatch.context() as elsewhere:
        elsewhere.chdir(directory)
        with pytest.raises(EnvironmentRaised) as raised:
            EnvironmentMaker(environment)
    return raised.value


def test_a_slow_start_names_its_setting(tmp_path: Path) -> None:
    (tmp_path / "slow_env.py").write_text("import threading\nthreading.Event().wait()\n")
    with pytest.raises(WorkerTimeout, match=r"took longer than data\.start_timeout_s=1 to start; raise it") as raised:
        played(EnvironmentSettings("slow_env:Env", env_path=[str(tmp_path)]), start_timeout_s=1.0)
    assert "no other worker started in time" in str(raised.value) and "crash" not in str(raised.value)
    assert not isinstance(raised.value, WorkerExited)
