"""One worker process: whatever bytes it sends, an answer, an error of ours, in time; and how it is confined."""

import gc
import itertools
import json
import os
import random
import resource
import select
import signal
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lit_ppo.bridge import channel as channel_module
from lit_ppo.bridge import child, process, protocol, sweeper
from lit_ppo.bridge.client import EnvBridge
from lit_ppo.bridge.frame import REPLY_WORD, REQUEST_WORD, STATUS_WORD, FrameLayout
from lit_ppo.bridge.process import WorkerProcess
from lit_ppo.bridge.settings import BridgeSettings, EnvironmentSettings
from lit_ppo.errors import (
    BridgeError,
    ConfigError,
    ContractViolation,
    EnvironmentRaised,
    ProtocolError,
    WorkerExited,
    WorkerTimeout,
)
from tests.faults.harness import child_of, wait_for
from tests.patience import patient

DEADLINE_S = patient(20.0)
SHORT_S = 0.3  # for what never comes
REPLY = protocol.encode({"seq": 1, "pid": 77, "versions": {"numpy": "2.0"}, "ok": True})
LAYOUT = FrameLayout(2, 12)
# Whatever a worker says, these are what a caller is told.
ANSWERS = (ProtocolError, BridgeError, ConfigError, ContractViolation, EnvironmentRaised)
Start = Callable[..., WorkerProcess]
Probed = tuple[WorkerProcess, dict[str, Any], Any]


@pytest.fixture(scope="module")
def scripts() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)


@pytest.fixture
def start(scripts: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts a worker that is a shell script: it ignores what it is told to run, and says what the test likes."""
    monkeypatch.setattr(child, "KILL_WAIT_S", 0.1)  # there is no guard that would have to clean up
    started: list[WorkerProcess] = []

    def call(script: str, rows: range = range(2), reply: bytes = REPLY) -> WorkerProcess:
        for worker in started:  # one at a time, so that hundreds of examples need few descriptors
            worker.kill()
        started.clear()
        (scripts / "reply").write_bytes(reply)
        path = scripts / "fake"
        path.write_text(f"#!/bin/sh\nexec 3>&1\nreply={scripts}/reply\n{script}\n")  # 3: standard output stays open
        path.chmod(0o700)
        started.append(WorkerProcess(str(path), rows=rows))
        return started[-1]

    yield call
    for worker in started:
        worker.kill()


ANSWER_AND_END = 'read request; cat "$reply"'
ANSWER_AND_STAY = f"{ANSWER_AND_END}; exec cat > /dev/null"


def answer_of(worker: WorkerProcess, deadline_s: float = DEADLINE_S) -> dict[str, Any] | Exception:
    """What `ask` comes to: a message, or one of the errors that a caller knows; anything else gets out of here."""
    try:
        return worker.ask("make", deadline_s)
    except ANSWERS as error:
        return error


# -- bytes


@pytest.mark.parametrize("script", [ANSWER_AND_END, ANSWER_AND_STAY])
def test_reply_is_an_answer_even_if_it_was_the_last_words(script: str, start: Start) -> None:
    assert start(script).ask("make", DEADLINE_S)["pid"] == 77


def test_reply_cut_short_anywhere_by_the_workers_end_is_no_answer(start: Start) -> None:
    for length in range(len(REPLY)):
        assert type(answer_of(start(ANSWER_AND_END, reply=REPLY[:length]))) is WorkerExited, length


@pytest.mark.parametrize("length", [0, 1, len(REPLY) // 2, len(REPLY) - 1])
def test_reply_that_does_not_go_on_is_waited_for_until_the_deadline(length: int, start: Start) -> None:
    begin = monotonic()
    assert type(answer_of(start(ANSWER_AND_STAY, reply=REPLY[:length]), SHORT_S)) is WorkerTimeout
    assert monotonic() - begin >= SHORT_S


def test_no_reply_with_a_flipped_bit_is_an_answer(start: Start) -> None:
    for bit in range(8 * (len(REPLY) - 1)):  # without the newline, whose loss is the test above
        damaged = bytearray(REPLY)
        damaged[bit // 8] ^= 1 << bit % 8
        assert type(answer_of(start(ANSWER_AND_END, reply=bytes(damaged)))) is ProtocolError, damaged


def test_reply_without_its_checksum_is_no_answer(start: Start) -> None:
    answer = answer_of(start(ANSWER_AND_STAY, reply=protocol.encode({"seq": 1}, checksum=False)))
    assert type(answer) is ProtocolError and str(answer).startswith("worker: message: expected the checksum")


def test_each_request_carries_its_checksum(start: Start, tmp_path: Path) -> None:
    request = tmp_path / "request"
    worker = start(f'IFS= read -r request; printf \'%s\' "$request" > {request}; cat "$reply"')
    worker.ask("make", DEADLINE_S, env_id="CartPole-v1")
    assert protocol.decode(request.read_bytes()) == {"cmd": "make", "seq": 1, "env_id": "CartPole-v1"}


JSON = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
KEYS: st.SearchStrategy[str] = st.sampled_from(["seq", "error", "kind", "env", "message", "field"])


def sealed(text: bytes) -> bytes:
    """As a line with its checksum: only what is in it can be wrong."""
    return text + b" %08x\n" % zlib.crc32(text)


def as_line(value: Any) -> bytes:
    """JSON as lax as Python writes it, NaN and all."""
    return sealed(json.dumps(value).encode())


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        st.binary(max_size=300),
        st.binary(max_size=300).map(sealed),
        st.recursive(JSON, lambda inner: st.lists(inner) | st.dictionaries(KEYS | st.text(), inner)).map(as_line),
        st.dictionaries(KEYS, JSON).map(lambda error: as_line({"seq": 1, "error": error})),
    )
)
def test_arbitrary_bytes_are_an_answer_to_this_request_or_an_error(start: Start, reply: bytes) -> None:
    answer = answer_of(start(ANSWER_AND_END, reply=reply))
    assert isinstance(answer, Exception) or answer["seq"] == 1


@pytest.mark.parametrize("seq", ["0", "2", "-1", "null", '"1"', "1.0", "true", "[1]", None])
def test_reply_to_another_request_is_refused(seq: str | None, start: Start) -> None:
    reply = b'{"pid":77}' if seq is None else b'{"seq":%s,"pid":77}' % seq.encode()
    answer = answer_of(start(ANSWER_AND_END, reply=sealed(reply)))
    assert type(answer) is ProtocolError
    assert "expected the reply to make (seq 1), got seq " in str(answer)


def test_reply_that_comes_twice_is_not_the_answer_to_the_next_request(start: Start) -> None:
    worker = start(ANSWER_AND_STAY, reply=2 * REPLY)
    assert worker.ask("make", DEADLINE_S)["seq"] == 1
    with pytest.raises(ProtocolError, match=r"expected the reply to reset \(seq 2\), got seq 1"):
        worker.ask("reset", DEADLINE_S)


def test_reply_that_comes_byte_by_byte_is_an_answer(start: Start) -> None:
    drops = "; ".join(f"printf '\\{byte:03o}'" for byte in REPLY)
    assert start(f"read request; {drops}; exec cat > /dev/null").ask("make", DEADLINE_S)["pid"] == 77


def test_one_deadline_holds_for_the_whole_message(start: Start) -> None:
    """Each byte comes in time after the one before."""
    drops = "; ".join(f"printf '\\{byte:03o}'; sleep 0.1" for byte in REPLY)
    assert type(answer_of(start(f"read request; {drops}"), 0.5)) is WorkerTimeout


def test_line_without_end_is_refused_and_not_kept(start: Start) -> None:
    worker = start("read request; exec cat /dev/zero")
    answer = answer_of(worker)
    assert type(answer) is ProtocolError and "expected a message of at most 1048576 bytes" in str(answer)
    assert len(worker.channel.message_bytes()) <= protocol.MAX_LINE_BYTES + (1 << 16)


@pytest.mark.parametrize("flood", ["yes ''", "yes '' >&2", "yes squeamish >&2"])
def test_flood_is_no_answer_and_not_kept(flood: str, start: Start) -> None:
    """Doorbells that nobody asked for, and standard error."""
    worker = start(f"exec {flood}")
    assert type(answer_of(worker, SHORT_S)) is WorkerTimeout
    assert len(worker.channel.message_bytes()) <= protocol.MAX_LINE_BYTES + (1 << 16)
    assert len(worker.printed()) <= 16_384


def test_worker_that_never_reads_does_not_hold_us(start: Start) -> None:
    worker = start("exec sleep 100")
    begin = monotonic()
    with pytest.raises(WorkerTimeout):
        worker.ask("make", SHORT_S, env_kwargs={"large": "x" * (1 << 19)})  # a pipe holds an eighth of this
    assert monotonic() - begin >= SHORT_S


def test_text_from_the_worker_is_escaped_and_capped(start: Start) -> None:
    body = {"kind": "raised", "env": 1, "during": "step", "exception": "\x1b]0;title\x07", "traceback": "x" * 900_000}
    answer = answer_of(start(ANSWER_AND_END, rows=range(4, 6), reply=protocol.encode({"seq": 1, "error": body})))
    assert type(answer) is EnvironmentRaised and answer.env == 5
    assert "\x1b" not in str(answer) and "\\x1b]0;title\\x07" in str(answer)
    assert len(str(answer)) < 50_000


@pytest.mark.parametrize("env", ["2", "-1", "true", '"0"', "1.0"])
def test_error_of_an_environment_that_the_worker_does_not_have_is_refused(env: str, start: Start) -> None:
    reply = b'{"seq":1,"error":{"kind":"violation","env":%s,"field":"obs","rule":"a","value":"b"}}' % env.encode()
    answer = answer_of(start(ANSWER_AND_END, reply=sealed(reply)))
    assert type(answer) is ProtocolError and "env: expected 0 to 1, got " in str(answer)


# -- the frame: what a worker may write there, the test writes itself


def attached(start: Start, rest: str = "exec cat > /dev/null") -> WorkerProcess:
    worker = start(f"{ANSWER_AND_END}; {rest}", reply=protocol.encode({"seq": 1, "attached": LAYOUT.total_bytes}))
    worker.attach(LAYOUT, DEADLINE_S)
    return worker


def words_of(worker: WorkerProcess) -> Any:
    assert worker.frame is not None
    return worker.frame.words


def test_number_of_the_step_before_is_not_this_ones_answer(start: Start) -> None:
    worker = attached(start)
    deadline = monotonic() + SHORT_S
    worker.ring(deadline)
    words_of(worker)[REPLY_WORD] = 0
    with pytest.raises(WorkerTimeout):
        worker.await_step(deadline)


@pytest.mark.parametrize("number", [2, 1 << 40, (1 << 64) - 1])
def test_number_that_no_step_has_breaks_the_protocol(number: int, start: Start) -> None:
    worker = attached(start)
    deadline = monotonic() + DEADLINE_S
    worker.ring(deadline)
    words_of(worker)[REPLY_WORD] = number
    with pytest.raises(ProtocolError, match=f"expected 1 as the reply's number, got {number}"):
        worker.await_step(deadline)


def test_steps_are_counted_by_the_trainer_whatever_stands_in_the_frame(start: Start) -> None:
    worker = attached(start)
    for number in (1, 2, 3):
        worker.ring(monotonic() + DEADLINE_S)
        assert words_of(worker)[REQUEST_WORD] == number
        words_of(worker)[REPLY_WORD] = number
        words_of(worker)[REQUEST_WORD] = (1 << 64) - 1
        worker.await_step(monotonic() + DEADLINE_S)


def test_forged_doorbells_are_no_answer(start: Start) -> None:
    worker = attached(start, "exec yes ''")
    deadline = monotonic() + SHORT_S
    worker.ring(deadline)
    with pytest.raises(WorkerTimeout):
        worker.await_step(deadline)
    assert len(worker.channel.message_bytes()) <= protocol.MAX_LINE_BYTES + (1 << 16)


class SlowEnvironments:
    """Stands in for the worker's pipes: with each wait a time passes, and the worker says which environment it is calling.

    Args:
        worker: Whose frame it writes.
        calls: Environments, counted from 1, and how long each call takes in seconds; then the step is done.
    """

    def __init__(self, worker: WorkerProcess, calls: list[tuple[int, float]]) -> None:
        self.worker, self.calls, self.now = worker, iter(calls), 0.0
        self.ends = 0.0

    def monotonic(self) -> float:
        return self.now

    def wait(self, deadline: float, *, for_message: bool) -> None:
        if self.now >= deadline:
            raise TimeoutError
        self.now += 0.5
        if self.now < self.ends:
            return
        env, seconds = next(self.calls, (0, 0.0))
        self.worker.replied["busy_with"][0], self.ends = env, self.now + seconds
        words_of(self.worker)[REPLY_WORD] = 0 if env else 1


@pytest.mark.parametrize(
    ("calls", "hanging"),
    [
        ([(1, 9.0), (2, 9.0), (1, 9.0), (2, 9.0)], None),  # both step and reset: 36 s in all
        ([(1, 9.0), (2, 12.0)], 1),
        ([(1, 9.0), (2, 9.0)] * 5, 0),  # a lie: 5 calls are more than a step and a reset of each
    ],
)
def test_each_environment_has_the_whole_time_of_a_step(
    calls: list[tuple[int, float]], hanging: int | None, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = attached(start)
    slow = SlowEnvironments(worker, calls)
    monkeypatch.setattr(process, "monotonic", slow.monotonic)
    monkeypatch.setattr(worker.channel, "wait", slow.wait)
    worker.ring(10.0)
    if hanging is None:
        worker.await_step(10.0)
        assert slow.now > 36.0
    else:
        with pytest.raises(WorkerTimeout) as late:
            worker.await_step(10.0)
        assert late.value.env == hanging


def test_worker_that_is_to_close_has_one_deadline_for_all_that_it_owes(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = attached(start)
    slow = SlowEnvironments(worker, [(1, 9.0), (2, 9.0)])
    monkeypatch.setattr(process, "monotonic", slow.monotonic)
    monkeypatch.setattr(worker.channel, "wait", slow.wait)
    worker.ring(1000.0)
    worker.close(10.0)
    assert slow.now < 11.0


@pytest.mark.parametrize("status", [1, 7, (1 << 64) - 1])
def test_failed_step_without_its_message_is_waited_for_until_the_deadline(status: int, start: Start) -> None:
    worker = attached(start)
    deadline = monotonic() + SHORT_S
    worker.ring(deadline)
    words_of(worker)[STATUS_WORD] = status
    words_of(worker)[REPLY_WORD] = 1
    with pytest.raises(WorkerTimeout):
        worker.await_step(deadline)


def test_message_between_steps_is_found_out_before_the_pipe_is_full(start: Start) -> None:
    worker = attached(start, "echo '{\"seq\":-1}'; exec cat > /dev/null")
    wait_for(worker.channel.message_bytes, "the message")  # with the answer to attach or after it
    for number in range(1, process.STEPS_PER_DRAIN + 1):
        worker.ring(monotonic() + DEADLINE_S)
        words_of(worker)[REPLY_WORD] = number
        if number < process.STEPS_PER_DRAIN:
            worker.await_step(monotonic() + DEADLINE_S)
    with pytest.raises(ProtocolError, match="expected nothing but doorbells between steps"):
        worker.await_step(monotonic() + DEADLINE_S)


def is_frame(descriptor: str) -> bool:
    try:
        return "lit_ppo-frame" in os.readlink(f"/proc/self/fd/{descriptor}") and os.fstat(int(descriptor)).st_size > 0
    except OSError:
        return False  # the listing's own


def test_frame_cannot_be_cut_under_our_feet(start: Start) -> None:
    worker = attached(start)
    descriptors = [int(entry) for entry in os.listdir("/proc/self/fd") if is_frame(entry)]
    assert worker.frame is not None and len(descriptors) >= 2  # the one that the worker gets, and the mapping's own
    for descriptor, size in itertools.product(descriptors, (0, LAYOUT.total_bytes - 1, LAYOUT.total_bytes + 1)):
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, size)


# -- confinement

PROBE = """
import errno, json, os, resource, socket, tempfile
import gymnasium, numpy as np

def outcome(function):
    try:
        function()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"

class Probe(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (1,))
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, path):
        status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
        json.dump({
            "socket": outcome(socket.socket),
            "kill_guard": outcome(lambda: os.kill(os.getppid(), 0)),
            "kill_group": outcome(lambda: os.kill(0, 0)),
            "kill_self": outcome(lambda: os.kill(os.getpid(), 0)),
            "capabilities": int(status["CapEff"], 16),
            "cwd": os.getcwd(),
            "temporary": tempfile.gettempdir(),
            "files": os.listdir(),
            "environment": dict(os.environ),
            "descriptors": [os.path.realpath(f"/proc/self/fd/{entry}") for entry in os.listdir("/proc/self/fd")],
            "nofile": resource.getrlimit(resource.RLIMIT_NOFILE),
        }, open(path, "w"))
        open("left by the environment", "w").close()

    def reset(self, *, seed=None, options=None):
        if seed == 6:
            os.abort()
        return np.zeros(1, np.float32), {}

gymnasium.register("Probe-v0", Probe)
"""


@pytest.fixture
def probe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., tuple[WorkerProcess, dict[str, Any], Any]]]:
    """Starts a real worker with an environment that looks around; the worker, what it saw, and the reported layers."""
    (tmp_path / "probe_env.py").write_text(PROBE)
    monkeypatch.syspath_prepend(str(tmp_path))
    started = []

    def call(**confinement: Any) -> Probed:
        started.append(WorkerProcess(confinement=confinement))
        seen = tmp_path / "seen.json"
        reply = started[-1].ask("make", 60.0, env_id="probe_env:Probe-v0", env_kwargs={"path": str(seen)})
        return started[-1], json.loads(seen.read_text()), reply["sandbox"]

    yield call
    for worker in started:
        worker.kill()


@pytest.mark.parametrize("level", ["strict", "isolated"])
def test_confined_worker_may_write_what_it_is_allowed_signal_itself_and_die_as_ever(
    level: str, probe: Any, tmp_path: Path
) -> None:
    worker, seen, layers = probe(level=level, write=[str(tmp_path)])
    assert set(layers.values()) == {"on"}
    assert seen["socket"] == seen["kill_group"] == "EPERM" and seen["capabilities"] == 0
    assert seen["kill_self"] == "done"
    assert Path(seen["temporary"]).parent == Path(seen["cwd"]).parent and seen["files"] == []
    with pytest.raises(WorkerExited, match="was killed by SIGABRT"):
        worker.ask("reset", DEADLINE_S, seed=6)
    assert not Path(seen["cwd"]).parent.exists()


def test_without_a_sandbox_nothing_is_taken_away_and_none_is_reported(probe: Any) -> None:
    _, seen, layers = probe()
    assert layers == {}
    assert seen["socket"] == seen["kill_guard"] == seen["kill_group"] == "done"


def test_limits_are_set_in_the_worker_and_not_here(probe: Any) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    _, seen, _ = probe(rlimits={"nofile": 77})
    assert seen["nofile"] == [77, 77]
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before


@pytest.mark.parametrize(
    ("rlimits", "message"),
    [
        ({"memory": 1}, r"rlimits: expected one of as, .*nofile.*, got 'memory'"),
        ({"nofile": 1 << 62}, "nofile=.* cannot be set"),
    ],
)
def test_limit_that_cannot_be_set_is_the_callers_fault(rlimits: dict[str, int], message: str, probe: Any) -> None:
    with pytest.raises(ConfigError, match=message):
        probe(rlimits=rlimits)


@pytest.mark.parametrize("end", ["close", "kill", "SIGKILL of the worker", "SIGKILL of the guard"])
def test_private_directory_is_empty_and_goes_with_the_worker(end: str, probe: Any) -> None:
    worker, seen, _ = probe()
    cwd = Path(seen["cwd"])
    assert seen["files"] == [] and (cwd / "left by the environment").exists()
    assert cwd.stat().st_mode & 0o777 == 0o700
    if end == "close":
        worker.close(DEADLINE_S)
    elif end == "kill":
        worker.kill()
    else:
        guard_end = os.pidfd_open(worker.guard_pid)
        os.kill(worker.guard_pid if end == "SIGKILL of the guard" else child_of(worker.guard_pid), signal.SIGKILL)
        assert select.select([guard_end], [], [], DEADLINE_S)[0]
        os.close(guard_end)
        worker.kill()
    assert not cwd.exists()


def test_worker_that_is_forgotten_is_killed_with_all_that_it_held(probe: Any) -> None:
    sweeper.run_directory()
    gc.collect()
    before = sorted(os.listdir("/proc/self/fd"))
    worker = WorkerProcess()
    worker.ask("make", 60.0, env_id="CartPole-v1", num_envs=2)
    worker.attach(FrameLayout(2, 16), DEADLINE_S)
    pid = child_of(worker.guard_pid)
    cwd = Path(f"/proc/{pid}/cwd").readlink()
    ends = [os.pidfd_open(number) for number in (pid, worker.guard_pid)]
    del worker
    gc.collect()
    for end in ends:
        assert select.select([end], [], [], 0.0)[0]
        os.close(end)
    assert not cwd.exists()
    assert sorted(os.listdir("/proc/self/fd")) == before


FORGETFUL = """
import os, sys
from lit_ppo.bridge.client import EnvBridge
bridge = EnvBridge("CartPole-v1", 2, lambda env, episode: env)
bridge.reset()
guard = bridge.slices[0].worker.guard_pid
with open(f"/proc/{guard}/task/{guard}/children") as children:
    print(guard, children.read())
"""


def test_process_that_ends_without_closing_its_bridge_leaves_nothing_and_no_word(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", FORGETFUL],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        check=True,
    )
    assert done.stderr == ""
    assert not any(Path(f"/proc/{pid}").exists() for pid in done.stdout.split())
    assert os.listdir(tmp_path) == []


def test_directory_of_ones_own_stays(tmp_path: Path, probe: Any) -> None:
    (tmp_path / "mine").mkdir()
    worker, seen, _ = probe(cwd=str(tmp_path / "mine"))
    worker.close(DEADLINE_S)
    assert seen["cwd"] == str(tmp_path / "mine")
    assert os.listdir(tmp_path / "mine") == ["left by the environment"]


def test_worker_sees_no_variable_that_could_be_a_secret(probe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = [
        "HF_TOKEN",
        "AWS_SECRET_ACCESS_KEY",
        "GITHUB_TOKEN",
        "WANDB_API_KEY",
        "SSH_AUTH_SOCK",
        "LD_PRELOAD",
        "DATABASE_URL",
    ]
    for name in secrets:
        monkeypatch.setenv(name, "" if name == "LD_PRELOAD" else "squeamish ossifrage")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    _, seen, _ = probe()
    assert not set(secrets) & set(seen["environment"])
    assert "squeamish ossifrage" not in seen["environment"].values()
    assert seen["environment"]["SDL_VIDEODRIVER"] == "dummy" and seen["environment"]["PATH"] == os.environ["PATH"]


def test_worker_has_no_descriptor_of_the_trainers(probe: Any, tmp_path: Path) -> None:
    with open(tmp_path / "a file of the trainer", "w") as file:
        os.set_inheritable(file.fileno(), True)
        _, seen, _ = probe()
    assert str(tmp_path / "a file of the trainer") not in seen["descriptors"]


def test_random_bits_in_the_middle_of_a_run_of_messages_change_no_later_answer(start: Start) -> None:
    """A damaged message is refused as a whole: the next one is read from its own beginning."""
    chance = random.Random(0)
    for _ in range(20):
        damaged = bytearray(REPLY)
        damaged[chance.randrange(len(REPLY) - 1)] = chance.randrange(128, 256)  # no UTF-8
        good = protocol.encode({"seq": 2, "pid": 78})
        worker = start(ANSWER_AND_STAY, reply=bytes(damaged) + good)
        assert type(answer_of(worker)) is ProtocolError
        assert worker.ask("reset", DEADLINE_S)["pid"] == 78


# -- requests that are not waited for at once

WATCHED = """
import os, gymnasium, numpy as np

class Watched(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (1,))
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, begun, closed):
        os.read(os.open(begun, os.O_RDONLY), 1)
        self.closed = f"{closed}-{os.getpid()}"

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}

    def close(self):
        open(self.closed, "w").close()

gymnasium.register("Watched-v0", Watched)
"""


def test_all_workers_make_their_environments_before_anybody_asks_and_close_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "watched.py").write_text(WATCHED)
    monkeypatch.syspath_prepend(str(tmp_path))
    begun = tmp_path / "begun"
    os.mkfifo(begun)
    kwargs = {"begun": str(begun), "closed": str(tmp_path / "closed")}
    settings = BridgeSettings(num_workers=2)
    kill, ended_before = WorkerProcess.kill, list[int | None]()

    def kill_and_tell(worker: WorkerProcess) -> None:
        ended = os.waitid(os.P_PID, worker.guard_pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        ended_before.append(ended and ended.si_status)
        kill(worker)

    monkeypatch.setattr(WorkerProcess, "kill", kill_and_tell)
    with EnvBridge(EnvironmentSettings("watched:Watched-v0", kwargs), 2, lambda env, episode: episode, settings=settings):
        pipe = os.open(begun, os.O_WRONLY)  # returns once an environment reads, although nobody has asked for anything so far
        os.write(pipe, b"12")
    os.close(pipe)
    assert len(list(tmp_path.glob("closed-*"))) == 2 and ended_before == [0, 0]


def waits_without_sleeping(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long each wait of a channel would last, seconds; time passes by them alone, and nothing ever arrives."""
    waits: list[float] = []

    class Poll:
        def register(self, descriptor: int, events: int) -> None:
            pass

        def unregister(self, descriptor: int) -> None:
            pass

        def poll(self, milliseconds: float) -> list[tuple[int, int]]:
            waits.append(milliseconds / 1000)
            return []

    monkeypatch.setattr(channel_module, "select", SimpleNamespace(poll=Poll, POLLIN=select.POLLIN, POLLOUT=select.POLLOUT))
    for module in (channel_module, process):
        monkeypatch.setattr(module, "monotonic", lambda: 10.0 + sum(waits))
    return waits


def test_environment_that_hangs_while_it_is_made_is_closed_on_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "watched.py").write_text(WATCHED)
    monkeypatch.syspath_prepend(str(tmp_path))
    os.mkfifo(tmp_path / "begun")
    waits = waits_without_sleeping(monkeypatch)
    worker = WorkerProcess()
    worker.post("make", DEADLINE_S, env_id="watched:Watched-v0", env_kwargs={"begun": str(tmp_path / "begun"), "closed": ""})
    worker.close(2.0)
    assert sum(waits) == pytest.approx(2.0) and worker.exit_status is not None


def test_request_that_could_not_be_written_is_told_by_who_waits_for_its_reply(start: Start) -> None:
    worker = start("exec sleep 600")  # which never reads
    worker.post("make", 0.05, env_kwargs={"long": "x" * (1 << 17)})
    with pytest.raises(WorkerTimeout, match="did not answer make in time"):
        worker.reply("make", 1e6)  # it is over already: half a request is not answered


def test_worker_that_ends_before_its_reply_is_found_out_by_who_waits(start: Start) -> None:
    worker = start("exit 7")
    ended = os.pidfd_open(worker.guard_pid)
    assert select.select([ended], [], [], DEADLINE_S)[0]
    os.close(ended)
    for _ in range(2):
        worker.post("make", DEADLINE_S)
        with pytest.raises(WorkerExited, match="exited with status 7 while answering make"):
            worker.reply("make", DEADLINE_S)


# -- workers that are started ahead


@pytest.fixture
def ahead() -> Iterator[list[WorkerProcess]]:
    """Those that nobody has taken yet."""
    yield process.started_ahead
    while process.started_ahead:
        process.started_ahead.pop().kill()


def test_worker_started_ahead_is_taken_by_who_wants_such_a_one(ahead: list[WorkerProcess]) -> None:
    process.start_ahead(2)
    first, second = ahead
    taken = process.started_worker(None, "env worker 1", range(2, 4), {"level": "off"})
    assert taken is first and (taken.name, taken.rows) == ("env worker 1", range(2, 4)) and ahead == [second]
    assert taken.ask("make", DEADLINE_S, env_id="CartPole-v1")["env_id"] == "CartPole-v1"
    other = process.started_worker(None, "another", range(1), {"rlimits": {"core": 0}})
    assert other is not second and ahead == []
    assert second.exit_status is not None  # nobody will want it any more
    for worker in (taken, other):
        worker.kill()


def test_worker_started_ahead_in_another_environment_is_not_taken(
    ahead: list[WorkerProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    process.start_ahead(1)
    [early] = ahead
    monkeypatch.setenv("GYM_MOOD", "changed")
    late = process.started_worker(None, "late", range(1), {})
    assert late is not early and early.exit_status is not None
    late.kill()


def test_bridge_with_default_settings_takes_the_worker_started_ahead(ahead: list[WorkerProcess]) -> None:
    process.start_ahead(1)
    [early] = ahead
    with EnvBridge("CartPole-v1", 1, lambda env, episode: episode) as bridge:
        assert [part.worker for part in bridge.slices] == [early] and ahead == []
        assert bridge.reset()[""].shape == (1, 4)


# -- signals


def test_no_sleep_is_so_long_that_a_signal_just_before_it_would_go_unheard(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = waits_without_sleeping(monkeypatch)
    with pytest.raises(WorkerTimeout):
        start("sleep 60", reply=b"").ask("make", 3.0)
    assert sum(waits) == pytest.approx(3.0) and max(waits) <= 1.0
