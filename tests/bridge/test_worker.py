"""The worker as a person meets it in a terminal, and its host as it judges what environments return."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from lit_ppo.bridge.faults import error_to_json
from lit_ppo.bridge.frame import FrameLayout
from lit_ppo.bridge.hosts import NativeHost, SyncHost
from lit_ppo.bridge.protocol import decode, encode
from lit_ppo.bridge.settings import EnvironmentSettings
from lit_ppo.bridge.worker import Worker
from lit_ppo.contract import Contract, ContractSettings
from lit_ppo.errors import ContractViolation, EnvironmentRaised, ProtocolError
from lit_ppo.spaces import Row

ROOT = Path(__file__).parents[2]
PARTS = ["camera/left", "flags", "kinds", "pair/0", "pair/1", "pos", "where", "info:possible"]


def dialogue(arguments: list[str], lines: list[str | dict[str, Any]]) -> list[dict[str, Any]]:
    """What the worker answers to these lines, and nothing else on its standard output."""
    typed = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    done = subprocess.run(
        [sys.executable, "-m", "lit_ppo.bridge.worker", *arguments],
        input=typed.encode(),
        capture_output=True,
        cwd=ROOT,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def refused(reply: dict[str, Any]) -> str:
    assert reply["error"]["kind"] == "refused"
    message: str = reply["error"]["message"]
    return message


def test_a_person_can_describe_reset_step_and_close() -> None:
    first, stepped, described, again, closed = dialogue(
        ["CartPole-v1"],
        [
            {"cmd": "reset", "seed": 3},
            "",
            {"cmd": "step", "action": [1]},
            {"cmd": "describe", "seq": 41},
            {"cmd": "reset", "seed": 3},
            {"cmd": "close"},
            {"cmd": "describe"},  # nobody is there any more
        ],
    )
    env = gymnasium.make("CartPole-v1")
    assert first == {"obs": [env.reset(seed=3)[0].tolist()]} == again
    obs = [env.step(1)[0].tolist()]
    flags = {"terminated": [False], "truncated": [False], "invalid": [False]}
    assert stepped == {"obs": obs, "next_obs": obs, "reward": [1.0], **flags}
    assert described["seq"] == 41 and described["env_id"] == "CartPole-v1" and described["num_envs"] == 1
    assert described["action"] == {"path": "", "kind": "discrete", "shape": [], "dtype": "int64", "low": 0, "high": 1}
    assert described["observation"][0]["shape"] == [4] and described["max_episode_steps"] == 500
    assert described["action_space"] == "Discrete(2)"
    assert closed == {"closed": True}


@pytest.mark.parametrize("vectorization", ["sync", "native"])
def test_an_episode_that_ends_is_followed_by_the_next(vectorization: str) -> None:
    step = {"cmd": "step", "action": [1, 1], "next_seed": 70}
    options = ["CartPole-v1", "--num-envs", "2", "--vectorization", vectorization]
    _, *steps = dialogue(options, [{"cmd": "reset", "seed": 3}, *[step] * 15])
    assert len(steps) == 15  # the end of the input is an end, too
    at = next(k for k, reply in enumerate(steps) if reply["terminated"][0])
    if vectorization == "sync":
        assert steps[at]["obs"][0] == gymnasium.make("CartPole-v1").reset(seed=70)[0].tolist() != steps[at]["next_obs"][0]
        assert not any(any(reply["invalid"]) for reply in steps)
    else:
        assert steps[at]["obs"] == steps[at]["next_obs"] and [reply["invalid"][0] for reply in steps][at + 1]


def test_bad_lines_are_answered_and_harm_nothing() -> None:
    bad: dict[str, Any] = {
        "hello": "message: expected one JSON object on a line, got b'hello'",
        "[1]": "message: expected a JSON object, got list",
        "{}": "cmd: expected str, got nothing",
        '{"cmd":"fly"}': "cmd: unknown command 'fly'",
        '{"cmd":"serve"}': "cmd: unknown command 'serve'",
        '{"cmd":"step","action":[0]}': "step: not possible while the environments were not reset yet; "
        "expected one of attach, check, close, describe, reset, restore, save",
        '{"cmd":"reset"}': "seed: expected int, got nothing",
        '{"cmd":"reset","seed":-1}': "seeds: expected 1 seeds (non-negative integers or null), got [-1]",
        '{"cmd":"reset","seeds":[1,2]}': "seeds: expected 1 seeds (non-negative integers or null), got [1, 2]",
        '{"cmd":"make","env_id":"CartPole-v1"}': "make: not possible while the environments were not "
        "reset yet; expected one of attach, check, close, describe, reset, restore, save",
        '{"cmd":"attach","bytes":640}': "attach: this worker was started without a shared frame",
        '{"cmd":"save"}': "save: sync environments are restored from their journal",
        '{"cmd":"restore","state":{}}': "restore: sync environments are restored from their journal",
    }
    after_reset: dict[str, Any] = {
        '{"cmd":"step"}': "action: expected list, got nothing",
        '{"cmd":"step","action":0}': "action: expected list, got 0",
        '{"cmd":"step","action":[0,1]}': "action: expected 1 actions of discrete, got [0, 1]",
        '{"cmd":"step","action":[true]}': "action: expected 1 actions of discrete, got [True]",
        '{"cmd":"step","action":[2]}': "action: actions[0]: expected a value in [0, 1] (the action space), got 2",
        '{"cmd":"step","action":[0],"next_seed":"7"}': "next_seed: expected int, got '7'",
        '{"cmd":"step","action":[0],"next_seed":-7}': "next_seed: expected a non-negative integer, got -7",
    }
    reset, step = '{"cmd":"reset","seed":3}', '{"cmd":"step","action":[1]}'
    replies = dialogue(["CartPole-v1"], [*bad, reset, *after_reset, step, '{"cmd":"close","seq":5}'])
    for (line, message), reply in zip(bad.items(), replies, strict=False):
        assert refused(reply).startswith(message), line
    for (line, message), reply in zip(after_reset.items(), replies[len(bad) + 1 :], strict=False):
        assert refused(reply) == message, line
    env = gymnasium.make("CartPole-v1")
    env.reset(seed=3)
    assert replies[-2]["obs"] == [env.step(1)[0].tolist()] and replies[-1] == {"seq": 5, "closed": True}


def test_what_an_environment_prints_does_not_disturb_the_replies() -> None:
    lines = [{"cmd": "reset", "seed": 0, "seq": 1}, *({"cmd": "step", "action": [0], "seq": k} for k in range(2, 30))]
    replies = dialogue(["tests.fault_envs:Noisy-v0"], lines)
    assert [reply["seq"] for reply in replies] == list(range(1, 30))
    assert all("error" not in reply for reply in replies)


def test_an_observation_that_json_cannot_hold_is_an_error_reply_and_not_the_end() -> None:
    step = {"cmd": "step", "action": [0], "seq": 9}
    _, nan, later = dialogue(["tests.fault_envs:NaN-v0"], [{"cmd": "reset", "seed": 0}, step, step])
    assert nan["seq"] == 9 and "Out of range float values" in refused(nan)
    assert later["seq"] == 9 and len(later["obs"][0]) == 3


def test_a_worker_without_an_environment_says_what_it_needs() -> None:
    make = {"cmd": "make", "env_id": "tests.fault_envs:Spaces-v0", "env_kwargs": {"observation": "text"}}
    nothing, refusal, reset = dialogue([], [{"cmd": "describe"}, make, {"cmd": "reset", "seed": 0}])
    assert refused(nothing) == "describe: not possible while no environments are made yet; expected one of close, make"
    assert refused(refusal).startswith("env_id=tests.fault_envs:Spaces-v0: observation space Text is not supported")
    assert refused(reset).startswith("reset: not possible while no environments are made yet")


def test_a_person_can_step_every_space() -> None:
    steps: list[str | dict[str, Any]] = [{"cmd": "reset", "seed": 3}, {"cmd": "step", "action": [3]}]
    described, first, stepped = dialogue(
        ["tests.fault_envs:Parts-v0", "--action-mask", "info:possible"], [{"cmd": "describe"}, *steps]
    )
    assert [leaf["path"] for leaf in described["observation"]] == PARTS
    assert described["mask"] == "info:possible"
    assert list(first["obs"]) == list(stepped["next_obs"]) == PARTS
    assert np.array(stepped["obs"]["camera/left"]).shape == (1, 4, 4, 3) and stepped["obs"]["where"][0] in range(2, 6)
    _, pushed = dialogue(["Pendulum-v1"], [{"cmd": "reset", "seed": 3}, {"cmd": "step", "action": [[0.5]]}])
    env = gymnasium.make("Pendulum-v1")
    env.reset(seed=3)
    assert pushed["obs"] == [env.step(np.array([0.5], np.float32))[0].tolist()]


@pytest.mark.parametrize(
    ("action", "typed", "wrong", "message"),
    [
        ("box", [[0.5, -1, 0.25], [0, 0, 1]], [[0.5, -1, 2], [0, 0, 1]], "action: actions[1, 0, 2]: expected a value in"),
        ("multi_discrete", [2, 3], [2, 4], "action: actions[1, 1]: expected a value in [0, 3]"),
        ("multi_binary", [1, 0, 1, 1], [1, 0, -1, 1], "action: actions[1, 2]: expected a value in [0, 1]"),
    ],
)
def test_a_person_can_type_every_action_and_read_parts_of_an_observation(
    action: str, typed: list[Any], wrong: list[Any], message: str
) -> None:
    kwargs, keys = {"action": action}, ["camera", "pair"]
    make = {"cmd": "make", "env_id": "tests.fault_envs:Sum-v0", "num_envs": 2, "env_kwargs": kwargs, "obs_keys": keys}
    lines: list[str | dict[str, Any]] = [make, {"cmd": "describe"}, {"cmd": "reset", "seed": 3}]
    lines += [{"cmd": "step", "action": both} for both in ([typed, wrong], [typed], [typed, typed])]
    made, described, reset, outside, too_few, stepped = dialogue([], lines)
    env = gymnasium.make("tests.fault_envs:Sum-v0", disable_env_checker=True, **kwargs)
    assert made == described and described["action"]["kind"] == action
    assert described["action"]["shape"] == list(env.action_space.shape or ())
    assert [leaf["path"] for leaf in described["observation"]] == ["camera/left", "pair/0", "pair/1"]
    assert refused(outside).startswith(message) and refused(too_few).startswith(f"action: expected 2 actions of {action}")
    for row in (0, 1):
        first, _ = env.reset(seed=3 + row)
        successor, reward, *_ = env.step(np.array(typed, env.action_space.dtype))
        for obs, answer in ((first, reset["obs"]), (successor, stepped["obs"]), (successor, stepped["next_obs"])):
            assert answer["camera/left"][row] == obs["camera"]["left"].tolist()
            assert [answer["pair/0"][row], answer["pair/1"][row]] == [obs["pair"][0].tolist(), obs["pair"][1]]
        assert stepped["reward"][row] == reward and not stepped["terminated"][row]


def test_an_unknown_environment_ends_the_worker_with_a_message() -> None:
    command = [sys.executable, "-m", "lit_ppo.bridge.worker", "Nowhere-v0"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stdout == ""
    hint = "If a package registers it, name its module as well: env_id=module:EnvId"
    assert done.stderr.strip() == f"env_id=Nowhere-v0: Environment `Nowhere` doesn't exist. {hint}"


def test_a_trainer_must_send_checksums_and_gets_them() -> None:
    """A worker with a frame has a program to talk to."""
    frame_fd = os.memfd_create("frame")
    command = [sys.executable, "-m", "lit_ppo.bridge.worker", "CartPole-v1", "--frame-fd", str(frame_fd)]
    asked = [{"cmd": "reset", "seed": 3, "seq": 1}, {"cmd": "close", "seq": 2}]
    try:
        done = subprocess.run(
            command,
            input=json.dumps(asked[0]).encode() + b"\n" + b"".join(map(encode, asked)),
            capture_output=True,
            cwd=ROOT,
            check=True,
            pass_fds=(frame_fd,),
        )
    finally:
        os.close(frame_fd)
    refusal, first, closed = map(decode, done.stdout.splitlines())
    assert "message: expected the checksum" in refused(refusal) and "seq" not in refusal
    assert first == {"seq": 1, "obs": [gymnasium.make("CartPole-v1").reset(seed=3)[0].tolist()]}
    assert closed == {"seq": 2, "closed": True}


def test_a_person_gets_no_checksums_and_need_not_know_them() -> None:
    typed, answered = dialogue(["CartPole-v1"], ['{"cmd":"save"}', encode({"cmd": "close"}).decode().strip()])
    assert refused(typed).startswith("save: ") and refused(answered).startswith("message: expected one JSON object on a line")


def test_a_frame_that_is_none_of_ours_is_refused() -> None:
    frame_fd = os.memfd_create("frame")
    try:
        worker = Worker(-1, -1, frame_fd, {})
        worker.make({"env_id": "CartPole-v1", "num_envs": 2})
        size = FrameLayout(2, 16).total_bytes
        os.ftruncate(frame_fd, size)
        for wrong in (0, -1, -size, size - 1, size + 1, 1 << 62):
            with pytest.raises(ProtocolError, match=f"attach: expected a frame of {size} bytes, got {wrong}$"):
                worker.attach({"bytes": wrong})
        with pytest.raises(ProtocolError, match=r"bytes: expected int, got 640\.0"):
            worker.attach({"bytes": 640.0})
        os.pwrite(frame_fd, b"lit_ppo0", 0)
        with pytest.raises(ProtocolError, match="attach: the frame does not begin with the magic number"):
            worker.attach({"bytes": size})
        os.ftruncate(frame_fd, size // 2)  # announced right, and not there
        with pytest.raises(ProtocolError, match="attach: expected a frame"):
            worker.attach({"bytes": size})
        assert worker.doorbell is None
    finally:
        os.close(frame_fd)


# -- the host, in this process

OUTSIDE = "(the declared observation space; data.contract.check_membership=warn or off accepts it)"
TUPLE = "step: expected a tuple (obs, reward, terminated, truncated, info), got "
VERDICTS = {
    "obs nan": "obs[1, 1]: expected a finite value, got nan",
    "obs inf": "obs[1, 1]: expected a finite value, got inf",
    "obs -inf": "obs[1, 1]: expected a finite value, got -inf",
    "obs outside": f"obs[1, 1]: expected a value in [-2.0, 2.0] {OUTSIDE}, got 3.0",
    "obs list": "obs: expected a numpy array of shape (3,), got list [",
    "obs none": "obs: expected a numpy array of shape (3,), got NoneType None",
    "obs scalar": "obs: expected shape (3,), got shape ()",
    "obs short": "obs: expected shape (3,), got shape (2,)",
    "obs one": "obs: expected shape (3,), got shape (1,)",
    "obs column": "obs: expected shape (3,), got shape (3, 1)",
    "obs empty": "obs: expected shape (3,), got shape (0,)",
    "obs int": "obs: expected dtype float32, got dtype int32",
    "obs time": "obs: expected dtype float32, got dtype timedelta64[s]",
    "obs object": "obs: expected dtype float32, got dtype object",
    "obs text": "obs: expected dtype float32, got dtype <U",
    "obs complex": "obs: expected dtype float32, got dtype complex64",
    "obs 1e300": "obs: expected values that float32 can hold, got 1e+300",
    "reward nan": "rewards[1]: expected a finite value, got nan",
    "reward inf": "rewards[1]: expected a finite value, got inf",
    "reward 1e300": "rewards[1]: expected a value that float32 can hold, got 1e+300",
    "reward huge": "reward: expected a number that float64 can hold, got 1000",
    "reward none": "reward: expected a real number, got NoneType None",
    "reward text": "reward: expected a real number, got str '1.0'",
    "reward time": "reward: expected a real number, got timedelta64 np.timedelta64(1,'s')",
    "reward array": "reward: expected a real number, got ndarray array([1.])",
    "reward complex": "reward: expected a real number, got complex (1+0j)",
    "reward unshowable": "reward: expected a real number, got BrokenRepr <BrokenRepr whose repr raises ValueError>",
    "terminated int": "terminated: expected true or false, got int 1",
    "terminated zero": "terminated: expected true or false, got int 0",
    "terminated none": "terminated: expected true or false, got NoneType None",
    "terminated text": "terminated: expected true or false, got str 'False'",
    "terminated array": "terminated: expected true or false, got ndarray array([ True])",
    "truncated float": "truncated: expected true or false, got float 0.0",
    "truncated text": "truncated: expected true or false, got str 'True'",
    "tuple of 4": TUPLE + "(array(",
    "tuple of 6": TUPLE + "(array(",
    "list": TUPLE + "[array(",
    "none": TUPLE + "None",
    "obs only": TUPLE + "array(",
}


def hosted(monkeypatch: pytest.MonkeyPatch, **kwargs: Any) -> tuple[SyncHost, dict[str, np.ndarray]]:
    from tests.fault_envs import FaultyEnv

    monkeypatch.setattr(FaultyEnv, "made", 0)
    host = SyncHost(EnvironmentSettings("tests.fault_envs:Faulty-v0", kwargs), 3)
    layout = FrameLayout(3, 12)
    views = layout.reply_views(bytearray(layout.reply_bytes), 0)
    host.allocate(Row(host.spec.observation), views)
    return host, views


@pytest.mark.parametrize("fault", VERDICTS)
def test_every_wrong_value_of_a_step_is_refused(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.fault_envs import VALUES

    assert set(VALUES) == set(VERDICTS)
    host, views = hosted(monkeypatch, fault=fault, row=1, at_step=2)
    strict = ContractSettings(check_membership="error")
    contract = Contract(host.spec, strict)
    host.reset([1, 2, 3])
    for step in range(3):
        violation = None
        try:
            host.step(np.array([0, 1, 0]), np.array([7, 8, 9]), b"\x01\x01\x01")
            leaves = (Row(host.spec.observation).views(views[name]) for name in ("rows", "final_rows"))
            contract.check_values(*leaves, views["rewards"], views["flags"].tobytes(), bytes(3))
        except ContractViolation as error:
            violation = error
        assert (violation is not None) == (step == 2)
    assert str(violation).startswith(VERDICTS[fault]) and violation is not None and violation.env == 1
    host.close()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("obs list", "obs: expected a numpy array of shape (3,), got list ["),
        ("obs short", "obs: expected shape (3,), got shape (2,)"),
        ("obs 1e300", "obs: expected values that float32 can hold, got 1e+300"),
        ("obs only", "reset: expected a tuple (obs, info), got array("),
        ("none", "reset: expected a tuple (obs, info), got None"),
    ],
)
def test_every_wrong_value_of_a_reset_is_refused(fault: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    host, _ = hosted(monkeypatch, fault=fault, call="reset", row=2)
    host.reset([1, 2, None])
    with pytest.raises(ContractViolation) as raised:
        host.reset([None, None, 3])
    assert str(raised.value).startswith(message) and raised.value.env == 2


def test_what_raises_is_named_with_its_call(monkeypatch: pytest.MonkeyPatch) -> None:
    for call in ("make", "reset", "step", "close"):
        with pytest.raises(EnvironmentRaised) as raised:
            _provoke(call, monkeypatch)
        assert raised.value.during == call and raised.value.env == 1
        assert error_to_json(raised.value)["error"]["exception"] == "RuntimeError: the pole is on fire"


def _provoke(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    host, _ = hosted(monkeypatch, fault="raise", call=call, row=1, at_step=0)
    host.reset([1, 2, 3])
    host.step(np.zeros(3, np.int64), np.array([7, 8, 9]), b"\x01\x01\x01")
    host.close()


def test_errors_become_plain_data() -> None:
    assert error_to_json(ContractViolation("obs", "a rule", "x", 1))["error"] == {
        "kind": "violation",
        "field": "obs",
        "rule": "a rule",
        "value": "x",
        "env": 1,
    }
    assert error_to_json(ProtocolError("no"))["error"] == {"kind": "refused", "message": "no"}


def test_native_environment_refuses_actions_itself_but_for_those_that_the_contract_has_looked_at() -> None:
    host = NativeHost(EnvironmentSettings("CartPole-v1"), 3)
    layout = FrameLayout(3, 16, resets_within_step=False)
    host.allocate(Row(host.spec.observation), layout.reply_views(bytearray(layout.reply_bytes), 0))
    host.reset([1, None, None])
    checked = np.array([0, 1, 0])
    host.step(checked)
    space = host.vector.unwrapped.action_space
    assert (
        host.asked is not checked
        and space.contains(host.asked)
        and space.contains(np.array([1, 1, 0]))
        and not space.contains(np.array([0, 2, 0]))
    )
    host.close()
