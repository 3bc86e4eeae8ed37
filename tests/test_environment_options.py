"""The options of environment and process: every command has all of them, reads them as `fit` does, and a run's own hold."""

import argparse
import contextlib
import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest

from lit_ppo.bridge.settings import BridgeSettings, EnvironmentSettings
from lit_ppo.cli import command_parser
from lit_ppo.commands import environment_options
from lit_ppo.commands.environment_options import environment_of, processes_of, typed_settings
from lit_ppo.data import RolloutDataModule
from lit_ppo.errors import ConfigError
from lit_ppo.foreign_settings import refuse_foreign
from lit_ppo.option_parser import OptionParser, add_verbatim_options

COMMANDS = {
    "check-env": ["check-env", "X"],
    "play": ["play"],
    "export": ["export", "--format=torch", "--out=x"],
    "replay": ["replay", "x.json"],
    "rollout export": ["rollout", "export", "--env_id=X", "--out=x"],
    "rollout check": ["rollout", "check", "x.json"],
}
# In `fit` a run is told how it goes on after faults, too; the other commands make no run.
OF_RUNS = {"vectorization", "bridge", "max_restarts", "restart_window", "on_violation", "on_replay_mismatch", "show_output"}
NAMES = [
    field.name
    for settings in (EnvironmentSettings, BridgeSettings)
    for field in dataclasses.fields(settings)
    if field.name not in {"env_id", "is_training"} | OF_RUNS
]
VALUES = [
    *("word", "'quoted'", "5", "-1", "0", "2.5", "1e3", "true", "auto", "strict"),
    *("[1]", "[a, b]", "[a", "[[a]]", "{", "{a: 1}", "{a: b}", "{a: {b: 1}}", "{'a': 1, 'a': 2}"),
]


def parsed(command: str, *more: str) -> argparse.Namespace:
    return command_parser().parse_args([*COMMANDS[command], *more])


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_every_option_and_knows_which_were_typed(command: str) -> None:
    assert typed_settings(parsed(command)) == {}
    typed = typed_settings(parsed(command, "--python=null", "--start_timeout_s=8", "--max_episode_steps=5", "--num_workers=2"))
    assert typed == {"python": None, "start_timeout_s": 8.0, "max_episode_steps": 5, "num_workers": 2}
    for name in NAMES:
        assert vars(parsed(command, f"--{name}=x"))[name] == "x"


@functools.cache
def parser_of_fit() -> OptionParser:
    parser = OptionParser()
    parser.add_class_arguments(RolloutDataModule, "data", fail_untyped=False, sub_configs=True, skip={"env_kwargs", "wrappers"})
    add_verbatim_options(parser)
    return parser


def of_fit(name: str, value: str, capsys: pytest.CaptureFixture[str]) -> tuple[Any, str]:
    """The value of an option of `fit`, or how it is refused."""
    try:
        return parser_of_fit().parse_args([f"--data.{name}={value}"]).data[name], ""
    except SystemExit:
        return None, capsys.readouterr().err.removeprefix("lit_ppo: error: ").strip()


def of_command(name: str, value: str) -> tuple[Any, str]:
    """The same of the other commands."""
    try:
        return typed_settings(parsed("check-env", f"--{name}={value}"))[name], ""
    except ConfigError as error:
        return None, str(error)


@pytest.mark.parametrize("name", NAMES)
def test_values_are_read_and_refused_as_those_of_fit(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for value in VALUES:
        (expected, refusal), (mine, own_refusal) = of_fit(name, value, capsys), of_command(name, value)
        assert repr(mine) == repr(expected), value
        assert own_refusal.partition(", got ")[0] == refusal.partition(", got ")[0], value


def test_settings_of_a_checkpoints_run_hold_unless_others_are_typed() -> None:
    saved = {
        "env_id": "Y",
        "sandbox": "strict",
        "python": "/elsewhere",
        "step_timeout_s": 7.0,
        "num_workers": 4,
        "frame_stack": 2,
    }
    processes = processes_of(parsed("check-env"), saved)
    assert (processes.sandbox, processes.python, processes.step_timeout_s) == ("strict", "/elsewhere", 7.0)
    assert processes.num_workers == "auto"  # the number of environments is another
    typed = processes_of(parsed("check-env", "--sandbox=isolated", "--python=null", "--num_workers=2"), saved)
    assert (typed.sandbox, typed.python, typed.num_workers) == ("isolated", None, 2)
    assert processes_of(parsed("check-env")) == BridgeSettings()
    assert environment_of("X", parsed("check-env"), saved) == EnvironmentSettings("X", frame_stack=2)


@pytest.mark.parametrize("name", ["python", "worker_env", "worker_cwd", "rlimits", "sandbox_read", "sandbox_write", "env_path"])
def test_foreign_checkpoint_does_not_decide_on_the_process_unless_it_is_typed(name: str, tmp_path: Path) -> None:
    values = {"python": "/bin/false", "worker_env": ["SECRET"], "rlimits": {"nofile": 99}}
    saved = {"data": {name: values.get(name, ["/home"]), "start_timeout_s": 900.0}}
    for typed, is_refused in (("--start_timeout_s=5", True), (f"--{name}=null", False)):
        with pytest.raises(ConfigError, match=f"it sets data.{name}=") if is_refused else contextlib.nullcontext():
            refuse_foreign(tmp_path, saved, {"data": typed_settings(parsed("play", typed))}, is_own=False)


def test_options_are_declared_for_every_setting_but_those_of_runs() -> None:
    assert {"env_id", "is_training"} | OF_RUNS == environment_options._NO_OPTIONS
