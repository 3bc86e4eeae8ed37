"""Start, step and stop, over and over: what the process holds, and what lies about, stays what it was."""

import gc
import os
import resource
import select
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import numpy as np
import pytest

from lit_ppo.bridge.client import EnvBridge
from lit_ppo.bridge.process import WorkerProcess
from lit_ppo.bridge.settings import BridgeSettings
from lit_ppo.errors import ConfigError
from tests.faults.harness import child_of
from tests.patience import patient

NUM_ENVS = 2
SETTINGS = BridgeSettings(start_timeout_s=patient(60.0), step_timeout_s=patient(30.0), close_timeout_s=patient(20.0))


class Holdings(NamedTuple):
    """What may leak."""

    descriptors: list[str]
    threads: int
    children: list[str]
    shared: list[str]
    temporary: list[str]


def holdings() -> Holdings:
    gc.collect()
    descriptors = []
    for entry in os.listdir("/proc/self/fd"):
        try:
            descriptors.append(os.readlink(f"/proc/self/fd/{entry}"))
        except FileNotFoundError:
            continue  # the listing's own
    return Holdings(
        sorted(descriptors),
        threading.active_count(),
        Path(f"/proc/self/task/{os.getpid()}/children").read_text().split(),  # zombies among them
        sorted(os.listdir("/dev/shm")),
        sorted(os.listdir(tempfile.gettempdir())),
    )


def resident_kib() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


@pytest.fixture(autouse=True)
def _temporary_directory_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield
    assert list(tmp_path.glob("*/*")) == []  # the directory of the run itself goes with this process


def seed_of(env: int, episode: int) -> int:
    return 1000 * env + episode


def kill(worker: WorkerProcess, who: str) -> None:
    """Kill worker or guard, and wait until neither is there."""
    pids = {"worker": child_of(worker.guard_pid), "guard": worker.guard_pid}
    ends = [os.pidfd_open(pid) for pid in pids.values()]
    os.kill(pids[who], signal.SIGKILL)
    for end in ends:
        assert select.select([end], [], [], patient(20.0))[0]
        os.close(end)


def cycle(is_struck: bool, number: int) -> None:
    """One bridge, from its start to its end; if `is_struck`, its worker or its guard is killed before a step."""
    with EnvBridge("CartPole-v1", NUM_ENVS, seed_of, settings=SETTINGS) as bridge:
        bridge.reset()
        for step in range(3):
            if is_struck and step == 1:
                kill(bridge.slices[0].worker, "worker" if number % 2 else "guard")
            bridge.step(np.full(NUM_ENVS, step % 2))
        assert bridge.restarts == is_struck


def cycles(count: int, is_struck: bool) -> None:
    """Cycles after which everything is as it was after the first few of them."""
    for number in range(4):
        cycle(is_struck, number)
    before, resident = holdings(), resident_kib()
    for number in range(count):
        cycle(is_struck, number)
    assert holdings() == before
    grown = resident_kib() - resident
    print(f"{count} cycles, struck: {is_struck}; resident memory grew by {grown} KiB")
    assert grown < 8192  # what the allocator keeps; a leaked frame or pipe buffer in each cycle would be more


@pytest.mark.parametrize("is_struck", [False, True])
def test_twenty_cycles_leave_nothing(is_struck: bool) -> None:
    cycles(10, is_struck)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_thousand_cycles_leave_nothing() -> None:
    cycles(1000, is_struck=False)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_hundred_cycles_with_a_killed_worker_leave_nothing() -> None:
    cycles(200, is_struck=True)


def test_start_that_fails_leaves_nothing() -> None:
    def fail() -> None:
        with (
            EnvBridge("CartPole-v1", 1, seed_of, settings=BridgeSettings(python="/bin/true", max_restarts=1)) as bridge,
            pytest.raises(ConfigError),  # no interpreter
        ):
            bridge.reset()

    fail()
    before = holdings()
    for _ in range(5):
        fail()
    assert holdings() == before


def step_256(num_workers: int) -> float:
    """256 environments under a limit of 1024 descriptors: the numbers are right; how long start, step and close took."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    try:
        begin = perf_counter()
        settings = BridgeSettings(num_workers=num_workers, start_timeout_s=patient(120.0))
        with EnvBridge("CartPole-v1", 256, seed_of, settings=settings) as bridge:
            first = bridge.reset()[""]
            for _ in range(20):
                step = bridge.step(np.zeros(256, np.int64))
            assert bridge.restarts == 0
        took = perf_counter() - begin
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with EnvBridge("CartPole-v1", 1, lambda env, episode: seed_of(200, episode)) as one:  # row 200, alone
        assert one.reset()[""][0].tobytes() == first[200].tobytes()
        for _ in range(20):
            alone = one.step(np.zeros(1, np.int64))
        assert alone.obs[""][0].tobytes() == step.obs[""][200].tobytes()
    print(f"256 environments in {num_workers} workers: {took:.2f} s")
    return took


@pytest.mark.parametrize("num_workers", [1, 4])
def test_256_environments_start_step_and_close(num_workers: int) -> None:
    step_256(num_workers)


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 4])
def test_256_environments_start_step_and_close_within_ten_seconds(num_workers: int) -> None:
    assert step_256(num_workers) < patient(10)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_256_environments_each_in_its_own_worker_stay_within_the_limit_of_descriptors() -> None:
    """A worker costs the trainer five descriptors and, once it is attached, one for its frame."""
    step_256(128)
