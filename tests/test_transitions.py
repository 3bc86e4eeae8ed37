"""Transitions as JSON: what is exported keeps the contract, and every planted error is found, with its index and rule."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_ppo import cli
from lit_ppo.bridge.client import EnvBridge
from lit_ppo.bridge.settings import EnvironmentSettings
from lit_ppo.contract import ContractSettings
from lit_ppo.errors import ConfigError
from lit_ppo.random_actions import random_actions
from lit_ppo.transitions import check, collect

ANYTHING = "tests.toy_envs:Anything-v0"
SPACES: dict[str, dict[str, Any]] = {
    "nested": {"env_kwargs": {"observation": "nested"}},
    "masked": {"env_kwargs": {"observation": "nested", "masked": True}, "action_mask": "info:possible"},
    "image": {"env_kwargs": {"observation": "image"}},
    "box": {"env_kwargs": {"action": "box"}},
    "multi_discrete": {"env_kwargs": {"action": "multi_discrete"}},
    "multi_binary": {"env_kwargs": {"action": "multi_binary"}},
}


def exported(env_id: str, num_steps: int = 40, **settings: Any) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    with EnvBridge(EnvironmentSettings(env_id, **settings), 2, lambda env, episode: 10 * env + episode) as bridge:
        spec = bridge.spec
        document = collect(
            bridge,
            num_steps,
            lambda obs, begins: random_actions(spec, obs, generator),
            lambda env, episode: 10 * env + episode,
        )
    plain: dict[str, Any] = json.loads(json.dumps(document, allow_nan=False))  # as it stands in its file
    return plain


@pytest.mark.parametrize("name", SPACES)
def test_what_is_exported_from_any_space_keeps_every_rule(name: str) -> None:
    document = exported(ANYTHING, **SPACES[name])
    report = check(document)
    assert report.num_transitions == 80 and report.violated.total() == 0, report.first
    assert all(report.checked[rule] == 80 for rule in ("keys", "obs: values", "next_obs: values", "action", "flags"))
    ends = [transition["terminated"] or transition["truncated"] for transition in document["transitions"]]
    assert sum(ends) > 2 and report.checked["obs: is next_obs before"] == 78 - sum(ends[:-2])


CARTPOLE = exported("CartPole-v1")
LAST = next(k for k, each in enumerate(CARTPOLE["transitions"]) if each["terminated"])  # of an episode
NEXT = next(k for k, each in enumerate(CARTPOLE["transitions"]) if k > LAST and not each["step"])  # the first of another


def put(index: int, key: str, value: Any) -> Callable[[list[dict[str, Any]]], None]:
    def change(transitions: list[dict[str, Any]]) -> None:
        transitions[index][key] = value

    return change


def drop(index: int, key: str) -> Callable[[list[dict[str, Any]]], None]:
    return lambda transitions: transitions[index].pop(key)


PLANTED: dict[str, tuple[Callable[[list[dict[str, Any]]], Any], int, str, str]] = {
    "NaN": (put(3, "obs", [0.0, "NaN", 0.0, 0.0]), 3, "obs: values", "obs[3, 1]: expected a finite value, got nan"),
    "out of bounds": (put(5, "next_obs", [9.0, 0, 0, 0]), 5, "next_obs: values", "obs[5, 0]: expected a value in [-4.8"),
    "shape": (put(4, "obs", [0.0, 0.0]), 4, "obs: parts, shapes and types", "obs: expected shape (4,), got shape (2,)"),
    "ragged": (put(4, "obs", [[0.0], [0.0, 1.0]]), 4, "obs: parts, shapes and types", "obs: expected numbers in nested lists"),
    "text": (put(4, "obs", ["0.0", 0, 0, 0]), 4, "obs: parts, shapes and types", "obs: expected dtype float32"),
    "missing": (drop(7, "reward"), 7, "keys", "missing: reward"),
    "no object": (lambda all: all.__setitem__(2, [1]), 2, "keys", "missing: obs"),
    "action": (put(8, "action", 2), 8, "action", "actions[0]: expected a value in [0, 1]"),
    "action as float": (put(8, "action", 1.0), 8, "action", "action: expected a whole number, got float 1.0"),
    "reward": (put(9, "reward", "Infinity"), 9, "reward: value", "rewards[0]: expected a finite value, got inf"),
    "reward as text": (put(9, "reward", "1"), 9, "reward: type", "reward: expected a real number, got str '1'"),
    "flag": (put(9, "truncated", 0), 9, "truncated", "truncated: expected true or false, got int 0"),
    "step after the end": (put(NEXT, "episode", 0), NEXT, "order", "which has ended"),
    "gap": (lambda all: all.pop(4), 4 + 1, "order", "got step 3 of episode 0"),
    "another observation": (put(6, "obs", [0.0, 0.0, 0.0, 0.0]), 6, "obs: is next_obs before", "expected next_obs"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_error_is_found_with_its_index_and_rule(name: str) -> None:
    plant, index, rule, message = PLANTED[name]
    document = copy.deepcopy(CARTPOLE)
    assert check(document).violated.total() == 0
    plant(document["transitions"])
    found = [violation for violation in check(document).first if violation.rule == rule]
    assert found and found[0].transition == index and message in found[0].message, check(document).first


def test_missing_part_of_a_nested_observation_is_found() -> None:
    document = exported(ANYTHING, **SPACES["nested"])
    del document["transitions"][1]["obs"]["pair/0"]
    [violation, *_] = check(document).first
    assert violation[:2] == (1, "obs: parts, shapes and types") and "pair/0" in violation.message


def test_settings_of_the_contract_count() -> None:
    contract = ContractSettings(check_membership="error", reward_range=(-1.0, 0.5))
    assert check(CARTPOLE, settings=contract).violated == {"reward: value": 80}


def test_file_of_torchlean_needs_the_environments_name() -> None:
    document = {"transitions": [{key: each[key] for key in list(each)[:6]} for each in CARTPOLE["transitions"]]}
    with pytest.raises(ConfigError, match="--env_id"):
        check(document)
    with EnvBridge(EnvironmentSettings("CartPole-v1"), 1, lambda env, episode: 0) as bridge:
        report = check(document, bridge.spec)
    assert report.checked["obs: values"] == 80 and not report.violated and "order" not in report.checked


@pytest.mark.parametrize("document", [[], {}, {"transitions": {}}, {"spec": 3, "transitions": []}])
def test_file_that_is_no_rollout_is_refused(document: Any) -> None:
    with pytest.raises(ConfigError):
        check(document)


def test_commands_write_and_check_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rollout.json"
    cli.main(["rollout", "export", "--env_id=CartPole-v1", "--steps=30", f"--out={path}"])
    cli.main(["rollout", "check", str(path)])
    assert capsys.readouterr().out.splitlines()[0] == f"{path}: 30 transitions"
    document = json.loads(path.read_text())
    document["transitions"][2]["reward"] = None
    path.write_text(json.dumps(document))
    with pytest.raises(SystemExit) as ended:
        cli.main(["rollout", "check", str(path), "--json", str(tmp_path / "report.json")])
    assert ended.value.code == 3
    said = capsys.readouterr()
    assert "transition 2: reward: type: reward: expected a real number, got NoneType None" in said.out
    assert said.err == f"lit_ppo: error: {path}: 1 violations in 30 transitions\n"
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["rules"]["reward: type"] == {"checked": 30, "violated": 1}
