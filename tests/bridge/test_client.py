"""The bridge: the same numbers as in process, whatever happens to the processes; and nothing left behind."""

import gc
import json
import os
import random
import select
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import gymnasium
import numpy as np
import pytest

import tests.fault_envs  # noqa: F401  registers the ids, for the runs in process
from lit_ppo.bridge import restoration, sweeper
from lit_ppo.bridge.client import EnvBridge
from lit_ppo.bridge.journal import MAX_EPISODE_STEPS, to_text
from lit_ppo.bridge.process import WorkerProcess
from lit_ppo.bridge.protocol import PROTOCOL_VERSION
from lit_ppo.bridge.settings import BridgeSettings, EnvironmentSettings
from lit_ppo.bridge.worker_slice import WorkerSlice
from lit_ppo.contract import ContractSettings, VectorStep
from lit_ppo.errors import (
    BridgeError,
    ConfigError,
    ContractViolation,
    EnvironmentFault,
    EnvironmentRaised,
    ProtocolError,
    WorkerExited,
    WorkerTimeout,
)
from tests.faults.harness import child_of, wait_for
from tests.patience import patient

FAULTY = "tests.fault_envs:Faulty-v0"
IMAGE = "tests.fault_envs:Image-v0"
PARTS = "tests.fault_envs:Parts-v0"
FIELDS = ("obs", "next_obs", "rewards", "terminated", "truncated")
Steps = list[tuple[np.ndarray, ...]]


def episode_seed(env: int, episode: int) -> int:
    return 1000 * env + episode


def children() -> set[int]:
    """Processes whose parent we are, zombies too."""
    found = set()
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                parent = int(Path(f"/proc/{entry}/stat").read_bytes().rsplit(b")", 1)[1].split()[1])
            except (OSError, IndexError):
                continue
            if parent == os.getpid():
                found.add(int(entry))
    return found


def descriptors() -> dict[int, str]:
    found = {}
    for entry in os.listdir("/proc/self/fd"):
        try:
            found[int(entry)] = os.readlink(f"/proc/self/fd/{entry}")
        except FileNotFoundError:
            continue  # the listing's own
    return found


def all_ended(pidfds: list[int], deadline_s: float = 20.0) -> bool:
    """Whether the processes end within the deadline; closes the descriptors."""
    deadline = monotonic() + patient(deadline_s)
    ended = []
    for pidfd in pidfds:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        ended.append(bool(poll.poll(max(0.0, deadline - monotonic()) * 1000)))
        os.close(pidfd)
    return all(ended)


@pytest.fixture(autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    sweeper.run_directory()  # its process and descriptors stay for all tests
    children_before, descriptors_before = children(), descriptors()
    yield
    assert children() == children_before
    assert descriptors() == descriptors_before


def bridge_of(
    env_id: str = FAULTY,
    num_envs: int = 4,
    *,
    contract: ContractSettings | None = None,
    on_event: Callable[[str], None] = lambda text: None,
    on_fault: Callable[[EnvironmentFault], None] = lambda fault: None,
    env_kwargs: dict[str, Any] | None = None,
    **settings: Any,
) -> EnvBridge:
    settings = {"start_timeout_s": patient(60), "step_timeout_s": patient(30), "close_timeout_s": patient(5)} | settings
    return EnvBridge(
        EnvironmentSettings(env_id, env_kwargs),
        num_envs,
        episode_seed,
        settings=BridgeSettings(**settings),
        contract=contract,
        on_event=on_event,
        on_fault=on_fault,
    )


def actions_of(steps: int, num_envs: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2, (steps, num_envs))


def next_obs_of(step: VectorStep) -> np.ndarray:
    """What each row was led to: in rows that ended an episode, the final observation."""
    ended = (step.terminated | step.truncated).reshape(-1, *[1] * (step.obs[""].ndim - 1))
    return np.where(ended, step.final_obs[""], step.obs[""])


def fields_of(step: VectorStep) -> tuple[np.ndarray, ...]:
    return step.obs[""].copy(), next_obs_of(step), step.rewards, step.terminated, step.truncated, step.valid


def played(bridge: EnvBridge, actions: np.ndarray) -> Steps:
    return [tuple(part.copy() for part in fields_of(bridge.step(row))) for row in actions]


def in_process(
    env_id: str, actions: np.ndarray, first_action: int = 0, first_episodes: list[int] | None = None, **kwargs: Any
) -> tuple[np.ndarray, Steps]:
    """The oracle: Gymnasium itself, one environment after the other; first observations and all steps."""
    envs = [gymnasium.make(env_id, **kwargs).unwrapped if env_id == FAULTY else gymnasium.make(env_id) for _ in actions[0]]
    episodes = list(first_episodes or [0] * len(envs))
    first = np.array([env.reset(seed=episode_seed(i, episodes[i]))[0] for i, env in enumerate(envs)])
    steps: Steps = []
    for row in actions:
        results = [env.step(np.int64(action + first_action)) for env, action in zip(envs, row, strict=True)]
        next_obs, rewards, terminated, truncated = (np.array([result[k] for result in results]) for k in range(4))
        obs = next_obs.copy()
        for i in np.flatnonzero(terminated | truncated):
            episodes[i] += 1
            obs[i] = envs[i].reset(seed=episode_seed(int(i), episodes[i]))[0]
        steps.append((obs, next_obs, rewards.astype(np.float64), terminated, truncated, np.ones(len(envs), bool)))
    for env in envs:
        env.close()
    return first, steps


def assert_same(arrived: Steps, expected: Steps) -> None:
    assert len(arrived) == len(expected)
    for step, (got, wanted) in enumerate(zip(arrived, expected, strict=True)):
        for name, a, b in zip((*FIELDS, "valid"), got, wanted, strict=True):
            assert a.dtype == b.dtype and a.tobytes() == b.tobytes(), f"{name} of step {step}: {a} is not {b}"


def worker_pid(bridge: EnvBridge, index: int = 0) -> int:
    return child_of(guard_pid(bridge, index))


def guard_pid(bridge: EnvBridge, index: int = 0) -> int:
    worker = bridge.slices[index].worker
    assert isinstance(worker, WorkerProcess)
    return worker.guard_pid


# -- the same as in process


@pytest.mark.parametrize("num_workers", [1, 2])
def test_cartpole_behind_the_bridge_equals_cartpole_in_process(num_workers: int) -> None:
    actions = actions_of(300, 4)  # some fifty episodes of random play
    first, expected = in_process("CartPole-v1", actions)
    with bridge_of("CartPole-v1", num_workers=num_workers) as bridge:
        assert bridge.reset()[""].tobytes() == first.tobytes()
        assert_same(played(bridge, actions), expected)
        assert (
            bridge.spec.action.choices == (2,)
            and bridge.spec.reward_threshold == 475.0
            and bridge.spec.max_episode_steps == 500
        )
        assert bridge.restarts == bridge.abandoned_episodes == 0
        assert bridge.versions["gymnasium"] == gymnasium.__version__


@pytest.mark.parametrize("num_workers", [1, 2])
def test_images_behind_the_bridge_equal_images_in_process_whatever_is_killed(num_workers: int) -> None:
    actions = actions_of(60, 2)
    first, expected = in_process(IMAGE, actions)
    assert sum(int((step[3] | step[4]).sum()) for step in expected) > 8
    with bridge_of(IMAGE, 2, num_workers=num_workers) as bridge:
        assert bridge.reset()[""].tobytes() == first.tobytes()
        assert [(leaf.shape, leaf.dtype) for leaf in bridge.spec.observation] == [((84, 84, 3), "uint8")]
        arrived = played(bridge, actions[:25])
        strike_worker(bridge)
        arrived += played(bridge, actions[25:40])
        state = bridge.state_dict()
        assert_same(arrived + played(bridge, actions[40:]), expected)
        assert bridge.restarts == 1
    with bridge_of(IMAGE, 2) as resumed:
        assert resumed.load_state_dict(state)[""].tobytes() == expected[39][0].tobytes()
        assert_same(played(resumed, actions[40:]), expected[40:])


def test_a_pixel_outside_the_declared_space_is_named() -> None:
    strict = ContractSettings(check_membership="error")
    with bridge_of(IMAGE, 2, env_kwargs={"high": 254}, contract=strict) as bridge, pytest.raises(ContractViolation) as raised:
        bridge.reset()
    env = gymnasium.make(IMAGE).unwrapped
    pixel = next(tuple(index) for index in np.argwhere(env.reset(seed=0)[0] == 255).tolist())
    assert str(raised.value) == (
        f"obs[0, {', '.join(map(str, pixel))}]: expected a value in [0, 254] (the declared observation space; "
        "data.contract.check_membership=warn or off accepts it), got 255 (phase training, env 0, episode 0, step 0, seed 0)"
    )


def test_an_ending_gives_the_true_final_observation_and_the_first_of_the_next_episode() -> None:
    actions = np.ones((60, 2), np.int64)  # always to the right: the pole falls within a dozen steps
    with bridge_of("CartPole-v1", 2) as bridge:
        bridge.reset()
        endings = [(i, step) for step in map(bridge.step, actions) if step.any_ended for i in np.flatnonzero(step.terminated)]
        seen = {0: 0, 1: 0}
        for env, step in endings:
            seen[int(env)] += 1
            reference = gymnasium.make("CartPole-v1")
            assert step.obs[""][env].tobytes() == reference.reset(seed=episode_seed(int(env), seen[int(env)]))[0].tobytes()
            assert (
                abs(step.final_obs[""][env][2]) > 0.2095 or abs(step.final_obs[""][env][0]) > 2.4
            )  # beyond CartPole's own limits
        assert min(seen.values()) >= 3


def test_the_time_limit_truncates_and_does_not_terminate() -> None:
    with bridge_of(FAULTY, 1, env_kwargs={"length": 2}) as bridge:
        bridge.reset()
        steps = played(bridge, np.zeros((4, 1), np.int64))
        assert [bool(step[4][0]) for step in steps] == [False, True, False, True]
        assert not any(step[3][0] for step in steps)


def test_an_action_space_that_starts_elsewhere_is_stepped_in_its_own_numbers() -> None:
    actions = actions_of(20, 2)
    _, expected = in_process(FAULTY, actions, first_action=-3, start=-3)
    with bridge_of(num_envs=2, env_kwargs={"start": -3}) as bridge:
        bridge.reset()
        assert bridge.spec.action.low == -3
        assert_same(played(bridge, actions - 3), expected)


def test_steps_stay_readable_for_the_history_and_beyond_the_digests() -> None:
    actions = actions_of(700, 2)
    _, expected = in_process(FAULTY, actions)
    with bridge_of(num_envs=2) as bridge:
        bridge.reset()
        assert bridge.history_steps == 256
        kept = [bridge.step(row) for row in actions]
        recent = [fields_of(step) for step in kept[-256:]]
        assert_same(recent, expected[-256:])


def test_reset_begins_the_first_episodes_again() -> None:
    actions = actions_of(40, 2)
    first, expected = in_process(FAULTY, actions)
    with bridge_of(num_envs=2) as bridge:
        for _ in range(2):
            assert bridge.reset()[""].tobytes() == first.tobytes()
            assert_same(played(bridge, actions), expected)


def test_a_row_that_is_not_active_stays_where_it_is_and_is_not_valid() -> None:
    actions = actions_of(12, 3)
    mask = np.random.default_rng(1).integers(0, 2, (12, 3)).astype(np.uint8)
    reference = [gymnasium.make(FAULTY).unwrapped for _ in range(3)]
    with bridge_of(num_envs=3) as bridge:
        last = bridge.reset()[""].copy()
        for i, env in enumerate(reference):
            env.reset(seed=episode_seed(i, 0))
        begun = [0, 0, 0]
        for k, (row, active) in enumerate(zip(actions, mask, strict=True)):
            if k == 6:
                strike_worker(bridge)  # the rebuilt rows, too, have stepped only where they were active
            step = bridge.step(row, active)
            assert step.valid.tolist() == [bool(a) for a in active] and step.all_valid == active.all()
            for i, env in enumerate(reference):
                if not active[i]:
                    assert step.obs[""][i].tobytes() == last[i].tobytes() and step.rewards[i] == 0 and not step.terminated[i]
                    continue
                obs, reward, terminated, truncated, _ = env.step(row[i])
                assert next_obs_of(step)[i].tobytes() == obs.tobytes() and step.rewards[i] == reward
                if terminated or truncated:
                    begun[i] += 1
                    obs, _ = env.reset(seed=episode_seed(i, begun[i]))
                assert step.obs[""][i].tobytes() == obs.tobytes()
            last = step.obs[""].copy()
        assert bridge.restarts == 1


# -- surviving


def strike_guard(bridge: EnvBridge) -> None:
    """Kill the guard; the worker has ended with it."""
    pidfds = [os.pidfd_open(guard_pid(bridge)), os.pidfd_open(worker_pid(bridge))]
    os.kill(guard_pid(bridge), signal.SIGKILL)
    assert all_ended(pidfds)


def strike_worker(bridge: EnvBridge, number: int = signal.SIGKILL, index: int = 0) -> None:
    """Send a signal; it has had its effect."""
    pid = worker_pid(bridge, index)
    pidfd = os.pidfd_open(pid)
    os.kill(pid, number)
    if number == signal.SIGSTOP:
        os.close(pidfd)
        wait_for(lambda: Path(f"/proc/{pid}/stat").read_bytes().rsplit(b")", 1)[1].split()[0] == b"T", "the stop")
    else:
        assert all_ended([pidfd])


STRIKES = {
    "kill -9 of the guard": strike_guard,
    "kill -9 of the worker": lambda bridge: strike_worker(bridge, signal.SIGKILL),
    "a segmentation fault of the worker": lambda bridge: strike_worker(bridge, signal.SIGSEGV),
    "a real-time signal": lambda bridge: strike_worker(bridge, signal.SIGRTMIN + 3),
    "SIGTERM": lambda bridge: strike_worker(bridge, signal.SIGTERM),
    "SIGSTOP, found by the deadline": lambda bridge: strike_worker(bridge, signal.SIGSTOP),
}


@pytest.mark.parametrize(
    ("strike", "num_workers"), [*((strike, 1) for strike in STRIKES), ("kill -9 of the worker", 2), ("kill -9 of the guard", 2)]
)
def test_a_run_goes_on_bit_for_bit_after(strike: str, num_workers: int) -> None:
    actions = actions_of(50, 4)
    _, expected = in_process(FAULTY, actions)
    at = random.Random(f"{strike} {num_workers}").randrange(1, 49)
    events: list[str] = []
    timeout_s = patient(0.7 if "SIGSTOP" in strike else 30.0)
    with bridge_of(num_workers=num_workers, step_timeout_s=timeout_s, on_event=events.append) as bridge:
        bridge.reset()
        before = played(bridge, actions[:at])
        STRIKES[strike](bridge)
        assert_same(before + played(bridge, actions[at:]), expected)
        assert bridge.restarts == len(events) == 1
        assert "training worker 0 of" in events[0] and "is replaced" in events[0]


CRASHES = {
    "exit 7": "exited with status 7",
    "kill": "was killed by SIGKILL",
    "segv": "was killed by SIGSEGV",
    "real-time signal": f"was killed by signal {signal.SIGRTMIN + 3}",
}


@pytest.mark.parametrize("fault", CRASHES)
def test_a_crash_of_the_environment_that_happens_once_is_survived(fault: str, tmp_path: Path) -> None:
    actions = actions_of(30, 2)
    _, expected = in_process(FAULTY, actions)
    events: list[str] = []
    kwargs = {"fault": fault, "row": 1, "at_reset": 2, "once": str(tmp_path / "once")}
    with bridge_of(num_envs=2, env_kwargs=kwargs, on_event=events.append) as bridge:
        bridge.reset()
        assert_same(played(bridge, actions), expected)
        assert bridge.restarts == 1 and f"{CRASHES[fault]} while answering step" in events[0]


@pytest.mark.parametrize("call", ["step", "reset"])
@pytest.mark.parametrize("fault", ["hang", "hang blocked"])
def test_a_hang_that_happens_once_is_survived(fault: str, call: str, tmp_path: Path) -> None:
    actions = actions_of(8, 2)
    first, expected = in_process(FAULTY, actions)
    events: list[str] = []
    kwargs = {"fault": fault, "call": call, "row": 0, "once": str(tmp_path / "once")}
    with bridge_of(num_envs=2, env_kwargs=kwargs, step_timeout_s=patient(0.7), on_event=events.append) as bridge:
        assert bridge.reset()[""].tobytes() == first.tobytes()
        assert_same(played(bridge, actions), expected)
        assert len(events) == 1 and f"did not answer {call} in time" in events[0]


def test_a_crash_in_reset_that_happens_once_is_survived(tmp_path: Path) -> None:
    kwargs = {"fault": "exit 7", "call": "reset", "at_reset": 0, "once": str(tmp_path / "once")}
    first, expected = in_process(FAULTY, actions_of(3, 2))
    with bridge_of(num_envs=2, env_kwargs=kwargs) as bridge:
        assert bridge.reset()[""].tobytes() == first.tobytes()
        strike_worker(bridge)  # another fault before the first step is no proof of a deterministic one
        assert_same(played(bridge, actions_of(3, 2)), expected)
        assert bridge.restarts == 2


def test_crashes_at_the_same_step_of_two_runs_are_not_taken_for_one_that_repeats() -> None:
    actions = actions_of(5, 2)
    _, expected = in_process(FAULTY, actions)
    with bridge_of(num_envs=2) as bridge:
        for _ in range(2):
            bridge.reset()
            before = played(bridge, actions[:2])
            strike_worker(bridge)
            assert_same(before + played(bridge, actions[2:]), expected)
        assert bridge.restarts == 2


@pytest.mark.parametrize("call", ["reset", "step"])
def test_a_deterministic_crash_is_given_up_the_second_time(call: str) -> None:
    with bridge_of(num_envs=2, env_kwargs={"fault": "exit 7", "call": call, "row": 1}) as bridge:
        if call == "step":
            bridge.reset()
        with pytest.raises(WorkerExited) as raised:
            bridge.reset() if call == "reset" else played(bridge, actions_of(5, 2))
        assert bridge.restarts == 1
    message = str(raised.value)
    assert message.startswith(f"training worker 0 of 1 ({FAULTY}) exited with status 7 while answering {call}")
    assert message.endswith("the same step killed the worker twice: a deterministic crash")


def test_dead_worker_is_reported_with_the_environment_that_it_was_in(tmp_path: Path) -> None:
    """In row 1 of the second worker, in the fourth step of its second episode, and again in the worker that replays it."""
    actions, faults = actions_of(40, 4), []
    kwargs = {"fault": "segv", "of_seeds": {str(episode_seed(3, 1)): "step"}}
    with bridge_of(num_workers=2, env_kwargs=kwargs, on_fault=faults.append) as bridge:
        bridge.reset()
        with pytest.raises(WorkerExited, match="a deterministic crash") as raised:
            played(bridge, actions)
        assert bridge.restarts == 1 and faults == [raised.value]
    report = raised.value.report
    assert [report[key] for key in ("phase", "env", "episode", "step", "seed")] == ["training", 3, 1, 3, episode_seed(3, 1)]
    assert (report["kind"], report["field"]) == ("was killed by SIGSEGV", "step") and len(report["actions"]) == 4
    assert report["processes"]["num_workers"] == 2 and report["env_kwargs"] == kwargs
    place = f"(phase training, env 3, episode 1, step 3, seed {episode_seed(3, 1)}, action {report['actions'][-1]})"
    assert f"training worker 1 of 2 ({FAULTY}) was killed by SIGSEGV while answering step {place}" in str(raised.value)


@pytest.mark.parametrize("fault", ["exit 7", "hang"])
def test_worker_that_dies_or_hangs_in_a_reset_is_reported_with_the_environment(fault: str) -> None:
    kwargs = {"fault": fault, "call": "reset", "row": 1}
    with (
        bridge_of(num_envs=2, step_timeout_s=patient(1), max_restarts=0, env_kwargs=kwargs) as bridge,
        pytest.raises(BridgeError) as raised,
    ):
        bridge.reset()
    assert [raised.value.report[key] for key in ("env", "episode", "step", "actions", "field")] == [1, 0, 0, [], "reset"]


def test_worker_that_dies_outside_of_its_environments_has_no_place_and_no_report() -> None:
    faults: list[Any] = []
    with bridge_of(num_envs=2, max_restarts=0, on_fault=faults.append) as bridge:
        bridge.reset()
        strike_worker(bridge)
        with pytest.raises(WorkerExited, match="was killed by SIGKILL") as raised:
            played(bridge, actions_of(2, 2))
    assert (raised.value.where, raised.value.report, faults) == ({}, {}, [])


def test_kills_from_outside_in_one_step_are_survived_however_close_together(monkeypatch: pytest.MonkeyPatch) -> None:
    actions, struck = actions_of(20, 4), []
    _, expected = in_process(FAULTY, actions)
    ask_step = WorkerSlice.ask_step

    def strike_and_ask(part: WorkerSlice, *args: Any) -> Any:
        if bridge._journal.steps == 7 and len(struck) < 4:
            struck.append(worker_pid(bridge))
            strike_worker(bridge)
        return ask_step(part, *args)

    with bridge_of() as bridge:
        monkeypatch.setattr(WorkerSlice, "ask_step", strike_and_ask)
        bridge.reset()
        assert_same(played(bridge, actions), expected)
        assert bridge.restarts == len(set(struck)) == 4


def test_environment_that_kills_its_own_process_ends_the_run_by_max_restarts() -> None:
    with bridge_of(num_envs=1, max_restarts=3, env_kwargs={"fault": "kill"}) as bridge:
        bridge.reset()
        with pytest.raises(WorkerExited, match=r"4 faults within 10000 steps are more than data\.max_restarts=3") as raised:
            played(bridge, actions_of(5, 1))
        assert bridge.restarts == 3
    assert "from the kernel if memory is short, or from the environment itself" in str(raised.value)
    assert raised.value.report["kind"] == "was killed by SIGKILL" and raised.value.report["step"] == 3


def test_last_words_of_an_environment_come_with_its_end_although_nothing_flushed_them() -> None:
    with bridge_of(num_envs=1, max_restarts=0, env_kwargs={"fault": "speak and exit 7"}) as bridge:
        bridge.reset()
        with pytest.raises(WorkerExited) as raised:
            played(bridge, actions_of(5, 1))
    assert "\nthe end of what was printed in its process:\n  last words\n" in str(raised.value)
    assert raised.value.report["printed"] == "last words"


@pytest.mark.parametrize("fault", ["obs nan", "raise", "obs short"])
def test_what_an_environment_has_printed_comes_with_its_fault(fault: str) -> None:
    with bridge_of(num_envs=1, env_kwargs={"fault": fault, "announce": "here I am"}) as bridge:
        bridge.reset()
        with pytest.raises(EnvironmentFault) as raised:
            played(bridge, actions_of(5, 1))
    assert str(raised.value).endswith("\nthe end of what was printed in its process:\n  here I am")


def test_output_is_shown_on_request_line_by_line_behind_the_name_of_its_worker() -> None:
    events: list[str] = []
    kwargs = {"announce": "first\n\x1b[2Jlit_ppo: error: second\nno end"}
    with bridge_of(num_workers=2, show_output=True, env_kwargs=kwargs, on_event=events.append) as bridge:
        bridge.reset()
        played(bridge, actions_of(3, 4))
    lines = ["first", "\\x1b[2Jlit_ppo: error: second", "no end"] * 2
    for worker in (0, 1):
        name = f"training worker {worker} of 2 ({FAULTY}) | "
        assert [event.removeprefix(name) for event in events if event.startswith(name)] == lines
    assert len(events) == 12
    with bridge_of(env_kwargs=kwargs, on_event=events.append) as bridge:
        bridge.reset()
    assert len(events) == 12


@pytest.mark.parametrize("settings", [{}, {"bridge": "inprocess"}, {"on_violation": "restart", "max_restarts": 1}], ids=str)
def test_text_of_an_exception_cannot_pass_for_a_line_of_ours(settings: dict[str, Any]) -> None:
    """It has newlines, what clears a terminal, and what some terminals take for a newline; its class has them in its name."""
    events: list[str] = []
    with bridge_of(num_envs=1, env_kwargs={"fault": "raise forged"}, on_event=events.append, **settings) as bridge:
        bridge.reset()
        with pytest.raises(EnvironmentRaised) as raised:
            played(bridge, actions_of(30, 1))
    first, *others = str(raised.value).splitlines()
    assert first == r"env 0 raised in step: A\nlit_ppo: : oh\nlit_ppo: error: forged\x1b[2J\x0d\u2028\x9b"
    assert len(others) > 5 and len(events) == len(settings.keys() & {"max_restarts"})
    for line in [*others[: -1 if events else None], *(line for event in events for line in event.splitlines()[1:])]:
        assert line.startswith("  ") and line.isprintable()


@pytest.mark.parametrize("fault", ["raise", "obs nan", "obs short", "exit 7", "sys.exit"])
def test_fault_in_the_reset_after_a_step_is_told_with_the_episode_that_began(fault: str) -> None:
    faults: list[Any] = []
    kwargs = {"fault": fault, "call": "reset", "at_reset": 1, "row": 1}
    with bridge_of(num_envs=2, env_kwargs=kwargs, max_restarts=0, on_fault=faults.append) as bridge:
        bridge.reset()
        with pytest.raises((ContractViolation, EnvironmentRaised, WorkerExited)) as raised:
            played(bridge, actions_of(30, 2))
    assert raised.value.where == {"phase": "training", "env": 1, "episode": 1, "step": 0, "seed": 1001}
    report = raised.value.report  # of the episode before, since the fault may come from it
    assert (report["seed"], report["next_seed"], report["in_next_reset"]) == (1000, 1001, True)
    assert len(report["actions"]) > 3 and [fault.report for fault in faults] == [report]


@pytest.mark.parametrize("fault", ["raise", "obs short", "exit 7"])
@pytest.mark.parametrize("call", ["step", "reset"])
def test_fault_in_the_replay_of_a_resume_is_told_with_its_place_and_reported(fault: str, call: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    marker.touch()  # until it is gone, all goes well
    kwargs = {"fault": fault, "call": call, "at_step": 2, "row": 1, "once": str(marker)}
    actions, faults = actions_of(4, 2), list[Any]()
    with bridge_of(num_envs=2, env_kwargs=kwargs) as bridge:
        bridge.reset()
        played(bridge, actions)
        state = bridge.state_dict()
    marker.unlink()
    again = bridge_of(num_envs=2, env_kwargs=kwargs, max_restarts=0, on_fault=faults.append)
    with again as bridge, pytest.raises((ContractViolation, EnvironmentRaised, WorkerExited)) as raised:
        bridge.load_state_dict(state)
    step = 2 if call == "step" else 0
    place = {"phase": "training", "env": 1, "episode": 0, "step": step, "seed": 1000}
    assert {key: raised.value.where[key] for key in place} == place
    [reported] = [fault.report for fault in faults]
    assert reported["actions"] == (actions[:3, 1].tolist() if call == "step" else [])


def test_episode_whose_replay_fails_is_given_up_if_so_set() -> None:
    """The environment has changed since the checkpoint: episode 0 of row 1 always raises in its step 2 now."""
    actions = actions_of(4, 2)
    with bridge_of(num_envs=2) as bridge:
        bridge.reset()
        played(bridge, actions)
        state = bridge.state_dict()
    kwargs = {"fault": "raise", "at_step": 2, "of_seeds": {episode_seed(1, 0): "step"}}
    with bridge_of(num_envs=2, env_kwargs=kwargs, on_violation="restart") as bridge:
        bridge.load_state_dict({**state, "env_kwargs": kwargs})
        assert bridge.episodes == (0, 1) and bridge.restarts == bridge.abandoned_episodes == 1


def test_a_bridge_that_has_given_up_says_so_again_and_touches_nothing() -> None:
    with bridge_of(num_envs=1, max_restarts=0, env_kwargs={"fault": "exit 7"}) as bridge:
        bridge.reset()
        with pytest.raises(WorkerExited, match="max_restarts=0"):
            played(bridge, actions_of(5, 1))
        with pytest.raises(WorkerExited):
            bridge.step(np.zeros(1, np.int64))
        with pytest.raises(WorkerExited):
            bridge.reset()


@pytest.mark.parametrize("fault", ["raise", "obs nan", "kill"])
def test_max_restarts_bounds_what_a_run_survives(fault: str) -> None:
    # the fault strikes in step 3 of every episode; a kill does so deterministically, so that one is struck from outside
    struck = fault == "kill"
    kwargs = {} if struck else {"fault": fault}
    errors = {"raise": EnvironmentRaised, "obs nan": ContractViolation, "kill": WorkerExited}
    with bridge_of(num_envs=1, max_restarts=2, on_violation="restart", env_kwargs=kwargs) as bridge:
        bridge.reset()

        def play() -> None:
            for _ in range(40):
                if struck:
                    strike_worker(bridge)
                bridge.step(np.zeros(1, np.int64))

        with pytest.raises(errors[fault], match=r"3 faults within 10000 steps are more than data\.max_restarts=2"):
            play()
        assert bridge.restarts == 2


def test_faults_outside_the_restart_window_do_not_count() -> None:
    with bridge_of(num_envs=1, max_restarts=1, restart_window=4) as bridge:
        for _ in range(2):  # the window goes on across resets
            bridge.reset()
            strike_worker(bridge)
            played(bridge, np.zeros((4, 1), np.int64))
        assert bridge.restarts == 2


def test_bytes_that_are_no_answer_are_survived(tmp_path: Path) -> None:
    actions = actions_of(6, 2)
    first, expected = in_process(FAULTY, actions)
    events: list[str] = []
    kwargs = {"fault": "forge", "once": str(tmp_path / "once")}
    with bridge_of(num_envs=2, env_kwargs=kwargs, on_event=events.append) as bridge:
        bridge.reset()
        played(bridge, actions)  # the forged line is between two messages, where only doorbells may be
        assert bridge.reset()[""].tobytes() == first.tobytes()
        assert_same(played(bridge, actions), expected)
        assert bridge.restarts == 1
    assert "expected the reply to reset (seq 4), got seq 1" in events[0]


@pytest.mark.parametrize("fault", ["forge", "forge and kill"])
def test_a_forged_line_of_a_dead_worker_does_not_hide_its_death(fault: str) -> None:
    """The worker is dead before the step is asked for, or dies in it."""
    kwargs = {"fault": fault, "at_step": 0}
    with bridge_of(num_envs=1, max_restarts=0, step_timeout_s=patient(5.0), env_kwargs=kwargs) as bridge:
        bridge.reset()
        pidfds = [os.pidfd_open(worker_pid(bridge)), os.pidfd_open(guard_pid(bridge))]
        if fault == "forge":
            bridge.step(np.zeros(1, np.int64))
            strike_guard(bridge)
        with pytest.raises(WorkerExited, match="was killed by SIGKILL while answering step"):
            bridge.step(np.zeros(1, np.int64))
    assert all_ended(pidfds, 0.0)


def test_noise_and_forged_replies_on_stdout_and_stderr_change_nothing() -> None:
    actions = actions_of(400, 2)  # 3 kB of noise a step: many times what a pipe holds
    _, expected = in_process(FAULTY, actions)
    with bridge_of(num_envs=2, env_kwargs={"fault": "noise", "at_step": None}) as bridge:
        bridge.reset()
        assert_same(played(bridge, actions), expected)
        assert bridge.restarts == 0


def test_noise_ends_up_in_the_message_without_its_control_characters(tmp_path: Path) -> None:
    with bridge_of(num_envs=1, max_restarts=0, env_kwargs={"fault": "noise", "at_step": None}) as bridge:
        bridge.reset()
        played(bridge, np.zeros((2, 1), np.int64))
        strike_worker(bridge)
        with pytest.raises(WorkerExited) as raised:
            played(bridge, np.zeros((2, 1), np.int64))
    assert "\nthe end of what was printed in its process:\n  " in str(raised.value)
    assert "\\x1b[31mprinted\n  complained" in str(raised.value) and "\x1b" not in str(raised.value)


def test_an_environment_that_reads_standard_input_does_not_take_the_requests() -> None:
    actions = actions_of(10, 1)
    _, expected = in_process(FAULTY, actions)
    with bridge_of(num_envs=1, step_timeout_s=patient(5.0), env_kwargs={"fault": "read stdin", "at_step": None}) as bridge:
        bridge.reset()
        assert_same(played(bridge, actions), expected)
        assert bridge.restarts == 0


# -- the environment's own faults


@pytest.mark.parametrize(
    ("fault", "exception"),
    [
        ("raise", "RuntimeError: the pole is on fire"),
        ("raise unpicklable", "UnpicklableError: cannot be pickled"),
        ("raise broken str", "BrokenStrError: <message cannot be shown>"),
    ],
)
def test_an_exception_of_the_environment_arrives_with_its_traceback_and_its_place(fault: str, exception: str) -> None:
    actions = actions_of(6, 4)
    with bridge_of(num_workers=2, env_kwargs={"fault": fault, "row": 1, "at_step": 2}) as bridge:
        bridge.reset()
        played(bridge, actions[:2])
        with pytest.raises(EnvironmentRaised) as raised:
            bridge.step(actions[2])
    error = raised.value
    assert error.env == 1 and error.during == "step" and error.exception == exception
    assert str(error).startswith(f"env 1 raised in step: {exception}\n  Traceback (most recent call last):")
    assert "tests/fault_envs.py" in error.traceback
    assert str(error).endswith("(phase training, env 1, episode 0, step 2, seed 1000)")
    assert error.report["actions"] == actions[:3, 1].tolist() and error.report["seed"] == 1000
    assert error.report["env_id"] == FAULTY and error.report["rule"] == "returns without raising"


def test_a_fault_in_the_second_worker_is_of_its_own_row() -> None:
    with bridge_of(num_workers=2, env_kwargs={"fault": "raise", "row": 1}) as bridge:  # row 1 of each worker: 1 and 3
        bridge.reset()
        played(bridge, np.zeros((3, 4), np.int64))
        with pytest.raises(EnvironmentRaised) as raised:
            bridge.step(np.zeros(4, np.int64), np.array([1, 0, 1, 1], np.uint8))
    assert str(raised.value).startswith("env 3 raised in step: ") and raised.value.env == raised.value.where["env"] == 3
    assert raised.value.report["seed"] == 3000 and raised.value.report["actions"] == [0, 0, 0, 0]


BRIDGE_VALUES = {
    "obs nan": "obs[2, 1]: expected a finite value, got nan",
    "obs outside": "obs[2, 1]: expected a value in [-2.0, 2.0] "
    "(the declared observation space; data.contract.check_membership=warn or off accepts it), got 3.0",
    "obs one": "obs: expected shape (3,), got shape (1,)",
    "reward inf": "rewards[2]: expected a finite value, got inf",
    "terminated text": "terminated: expected true or false, got str 'False'",
    "tuple of 4": "step: expected a tuple (obs, reward, terminated, truncated, info), got (array(",
}


@pytest.mark.parametrize("fault", BRIDGE_VALUES)
def test_a_value_that_breaks_the_contract_stops_the_run_and_is_located(fault: str) -> None:
    actions = actions_of(6, 3)
    strict = ContractSettings(check_membership="error")
    with bridge_of(num_envs=3, env_kwargs={"fault": fault, "row": 2}, contract=strict) as bridge:
        bridge.reset()
        played(bridge, actions[:3])
        with pytest.raises(ContractViolation) as raised:
            bridge.step(actions[3])
    assert str(raised.value).startswith(BRIDGE_VALUES[fault])
    assert str(raised.value).endswith(" (phase training, env 2, episode 0, step 3, seed 2000)")
    assert raised.value.report["actions"] == actions[:4, 2].tolist()
    assert raised.value.report["value"] == raised.value.value and raised.value.report["versions"]["lit_ppo"]


def test_a_first_observation_is_checked_like_any_other() -> None:
    kwargs = {"fault": "obs nan", "call": "reset", "row": 1}
    with bridge_of(num_workers=2, env_kwargs=kwargs) as bridge, pytest.raises(ContractViolation) as raised:
        bridge.reset()
    place = "(phase training, env 1, episode 0, step 0, seed 1000)"
    assert str(raised.value) == f"obs[1, 1]: expected a finite value, got nan {place}"


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("fault", ["obs nan", "obs short", "raise"])
def test_a_fault_in_the_very_first_reset_takes_the_next_seed_if_so_set(fault: str, num_workers: int) -> None:
    """The fault is of the seed: the first one of row 1 never works."""
    events: list[str] = []
    faults: list[EnvironmentFault] = []
    kwargs = {"fault": fault, "of_seeds": {episode_seed(1, 0): "reset"}}
    settings: dict[str, Any] = {"num_workers": num_workers, "on_violation": "restart"}
    actions = actions_of(30, 4)
    with bridge_of(env_kwargs=kwargs, on_event=events.append, on_fault=faults.append, **settings) as bridge:
        first = bridge.reset()[""].copy()
        assert bridge.restarts == bridge.abandoned_episodes == len(events) == len(faults) == 1
        arrived = played(bridge, actions[:2])
        strike_worker(bridge)  # the journal, too, has the seed that was taken
        arrived += played(bridge, actions[2:])
        assert bridge.restarts == 2 and bridge.abandoned_episodes == 1
    assert "is replaced: reset: " in events[0] and events[0].endswith("(phase training, env 1, episode 0, step 0, seed 1000)")
    assert (faults[0].report["seed"], faults[0].report["episode"], faults[0].report["actions"]) == (1000, 0, [])
    # row 1 is one episode ahead of what it would be, the others are not touched
    expected_first, expected = in_process(FAULTY, actions, first_episodes=[0, 1, 0, 0])
    assert first.tobytes() == expected_first.tobytes()
    assert_same(arrived, expected)


def test_first_resets_that_all_fail_end_the_run() -> None:
    kwargs = {"fault": "obs nan", "call": "reset", "row": 1}
    settings: dict[str, Any] = {"on_violation": "restart", "max_restarts": 3}
    with bridge_of(num_envs=2, env_kwargs=kwargs, **settings) as bridge:
        with pytest.raises(
            ContractViolation, match=r"4 faults within 10000 steps are more than data\.max_restarts=3"
        ) as raised:
            bridge.reset()
        assert raised.value.where == {"phase": "training", "env": 1, "episode": 3, "step": 0, "seed": 1003}
        assert bridge.restarts == 3


def test_an_episode_that_takes_the_place_of_an_abandoned_one_may_fail_to_begin_as_well(tmp_path: Path) -> None:
    """Of row 1, episode 2 raises in a step, and the episodes 3 and 4 cannot begin."""
    faults: list[EnvironmentFault] = []
    kwargs = {
        "fault": "raise",
        "of_seeds": {episode_seed(1, k): call for k, call in {2: "step", 3: "reset", 4: "reset"}.items()},
    }
    with bridge_of(num_envs=2, on_violation="restart", env_kwargs=kwargs, on_fault=faults.append) as bridge:
        bridge.reset()
        played(bridge, actions_of(60, 2))
        assert bridge.abandoned_episodes == 3
    places = [(fault.where["episode"], fault.where["step"], fault.where["seed"]) for fault in faults]
    assert places == [(2, 3, 1002), (3, 0, 1003), (4, 0, 1004)]
    assert [len(fault.report["actions"]) for fault in faults] == [4, 0, 0]


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("fault", ["obs nan", "raise"])
def test_on_violation_restart_abandons_just_that_episode(fault: str, num_workers: int, tmp_path: Path) -> None:
    actions = actions_of(40, 4)
    _, expected = in_process(FAULTY, actions)
    events: list[str] = []
    # row 1 of a worker; the marker file lets it happen in one worker only, wherever it comes first
    kwargs = {"fault": fault, "row": 1, "at_reset": 2, "at_step": 3, "once": str(tmp_path / "once")}
    with bridge_of(num_workers=num_workers, on_violation="restart", env_kwargs=kwargs, on_event=events.append) as bridge:
        bridge.reset()
        arrived = played(bridge, actions)
        assert bridge.restarts == bridge.abandoned_episodes == len(events) == 1
    bad = [(k, int(i)) for k, step in enumerate(arrived) for i in np.flatnonzero(~step[5])]
    assert len(bad) == 1
    at, row = bad[0]
    assert row == 1 or (num_workers == 2 and row == 3)
    assert f"env {row}, episode 1, step 3" in events[0]
    others = [i for i in range(4) if i != row]
    for got, wanted in zip(arrived, expected, strict=True):
        for a, b in zip(got, wanted, strict=True):
            assert a[others].tobytes() == b[others].tobytes()
    # the abandoned row: as before up to the fault, then the next episode, from the next seed
    for got, wanted in zip(arrived[:at], expected[:at], strict=True):
        assert got[0][row].tobytes() == wanted[0][row].tobytes()
    reference = gymnasium.make(FAULTY).unwrapped
    assert arrived[at][0][row].tobytes() == reference.reset(seed=episode_seed(row, 2))[0].tobytes()
    assert arrived[at][2][row] == 0.0 and not arrived[at][3][row] and not arrived[at][4][row]
    assert arrived[at + 1][1][row].tobytes() == reference.step(actions[at + 1, row])[0].tobytes()


def test_an_environment_that_is_not_deterministic_begins_a_new_episode_after_a_crash() -> None:
    events: list[str] = []
    kwargs = {"drift": True, "row": 0}
    with bridge_of(num_workers=2, env_kwargs=kwargs, on_event=events.append) as bridge:
        bridge.reset()
        played(bridge, actions_of(2, 4))
        strike_worker(bridge, index=1)
        step = bridge.step(np.zeros(4, np.int64))
        assert step.valid.tolist() == [True, True, False, False] and not step.all_valid
        assert bridge.abandoned_episodes == 2
        assert events[1] == (
            f"{FAULTY} is not deterministic: the replay of env [2, 3] did not come back to what was seen; "
            "a new episode begins there"
        )
        assert bridge.step(np.zeros(4, np.int64)).all_valid


def test_an_episode_that_ends_in_the_replay_is_no_longer_the_one_under_way(tmp_path: Path) -> None:
    shorter = tmp_path / "shorter"
    with bridge_of(num_envs=1, env_kwargs={"shorter": str(shorter)}) as bridge:
        bridge.reset()
        assert not any(step[4][0] for step in played(bridge, np.zeros((4, 1), np.int64)))
        shorter.touch()  # observations and rewards come back as they were, but the last of these steps ends the episode
        strike_worker(bridge)
        assert not bridge.step(np.zeros(1, np.int64)).all_valid
        assert bridge.abandoned_episodes == 1


@pytest.mark.parametrize("on_violation", ["stop", "restart"])
def test_a_replay_that_differs_stops_the_run_if_so_set(on_violation: str) -> None:
    settings: dict[str, Any] = {"num_workers": 2, "on_replay_mismatch": "error", "on_violation": on_violation}
    with bridge_of(env_kwargs={"drift": True}, **settings) as bridge:
        bridge.reset()
        played(bridge, actions_of(2, 4))
        strike_worker(bridge, index=1)
        with pytest.raises(ContractViolation) as raised:
            bridge.step(np.zeros(4, np.int64))
    assert str(raised.value) == (
        "replay: expected the observations and rewards seen before, got others (worker 1, envs [2, 3])"
    )


# -- what the environments announce


LIAR = """#!{python}
import json, sys, zlib
if len(sys.argv) == 3:  # asked which Python it is
    exec(sys.argv[2])
for line in sys.stdin.buffer:
    if not line.strip():
        continue
    request = json.loads(line[:-10])
    text = json.dumps({{**json.loads({announced!r}), "seq": request["seq"]}}).encode()
    sys.stdout.buffer.write(text + b" %08x\\n" % zlib.crc32(text))
    sys.stdout.buffer.flush()
    if request["cmd"] == "close":
        break
"""
ANNOUNCED: dict[str, Any] = {
    "protocol": PROTOCOL_VERSION,
    "env_id": FAULTY,
    "num_envs": 2,
    "observation": [{"path": "", "kind": "box", "shape": [3], "dtype": "float32", "low": -2, "high": 2}],
    "action": {"path": "", "kind": "discrete", "shape": [], "dtype": "int64", "low": 0, "high": 1},
    "mask": None,
    "reward_threshold": None,
    "max_episode_steps": None,
    "versions": {},
    "sandbox": {},
}
LIES: dict[str, tuple[dict[str, Any], str]] = {
    "an older version": ({"protocol": 3}, "expected protocol 5, got 3"),
    "no version": ({"protocol": None}, "protocol: expected int, got None"),
    "another environment": ({"env_id": "CartPole-v1"}, f"expected env_id {FAULTY}, got 'CartPole-v1'"),
    "fewer environments": ({"num_envs": 1}, "expected num_envs 2, got 1"),
    "a negative size": ({"observation": [ANNOUNCED["observation"][0] | {"shape": [-3]}]}, "of shape (-3,) is not"),
    "a size beyond all memory": ({"observation": [ANNOUNCED["observation"][0] | {"shape": [1 << 50]}]}, "is not supported"),
    "no actions": ({"action": ANNOUNCED["action"] | {"high": -1}}, "the action with (0,) choices is not supported"),
    "bounds that are none": ({"observation": [ANNOUNCED["observation"][0] | {"low": "low"}]}, "low: expected a number"),
    "an error of no kind": ({"error": {"kind": "love"}}, "error: unknown kind 'love'"),
}


def liar(directory: Path, announced: dict[str, Any]) -> str:
    """An interpreter that runs no worker: to every request it answers with this announcement."""
    path = directory / "liar"
    path.write_text(LIAR.format(python=sys.executable, announced=json.dumps(announced)))
    path.chmod(0o700)
    return str(path)


@pytest.mark.parametrize("lie", LIES)
def test_a_handshake_that_cannot_be_true_is_refused(lie: str, tmp_path: Path) -> None:
    changes, message = LIES[lie]
    python = liar(tmp_path, ANNOUNCED | changes)
    with bridge_of(num_envs=2, python=python, max_restarts=0) as bridge, pytest.raises((ProtocolError, ConfigError)) as raised:
        bridge.reset()
    assert message in str(raised.value)


def test_a_worker_that_goes_on_lying_is_held_to_its_deadline(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"max_restarts": 0, "step_timeout_s": 0.3, "close_timeout_s": 0.3}
    with bridge_of(num_envs=2, python=liar(tmp_path, ANNOUNCED), **settings) as bridge:
        assert not bridge.reset()[""].any()  # what nobody has written
        with pytest.raises(WorkerTimeout, match="did not answer step in time"):
            bridge.step(np.zeros(2, np.int64))


def test_spaces_that_change_with_the_process_stop_the_run(tmp_path: Path) -> None:
    other = tmp_path / "other"
    for on_violation in ("stop", "restart"):
        with bridge_of(num_envs=2, on_violation=on_violation, env_kwargs={"other_space": str(other)}) as bridge:
            bridge.reset()
            other.touch()
            strike_worker(bridge)
            with pytest.raises(ContractViolation, match=r"^spaces: expected those of the first handshake: .*high=2\.0"):
                bridge.step(np.zeros(2, np.int64))
        other.unlink()


@pytest.mark.parametrize("num_workers", [1, 2])
def test_environments_with_different_spaces_are_refused(num_workers: int, tmp_path: Path) -> None:
    kwargs = {"other_once": str(tmp_path / "other")}
    with (
        bridge_of(num_envs=2, num_workers=num_workers, env_kwargs=kwargs) as bridge,
        pytest.raises(ContractViolation) as raised,
    ):
        bridge.reset()
    assert str(raised.value).startswith("spaces: expected the same ")


# -- native vector environments


def native_in_process(actions: np.ndarray) -> tuple[np.ndarray, Steps]:
    num_envs = actions.shape[1]
    vector = gymnasium.make_vec("CartPole-v1", num_envs, vectorization_mode="vector_entry_point")
    first, _ = vector.reset(seed=episode_seed(0, 0))
    first, steps, ended = first.copy(), [], np.zeros(num_envs, bool)
    for row in actions:
        obs, rewards, terminated, truncated, _ = vector.step(row)
        steps.append((obs.copy(), obs.copy(), rewards.astype(np.float64), terminated.copy(), truncated.copy(), ~ended))
        ended = terminated | truncated
    vector.close()
    return first, steps


def test_native_environments_equal_gymnasiums_own_with_autoreset_rows_marked_invalid() -> None:
    actions = actions_of(120, 4)
    first, expected = native_in_process(actions)
    with bridge_of("CartPole-v1", vectorization="native") as bridge:
        assert bridge.reset()[""].tobytes() == first.tobytes()
        arrived = played(bridge, actions)
        assert_same(arrived, expected)
        assert sum(int((~step[5]).sum()) for step in arrived) > 10


@pytest.mark.parametrize("num_workers", [1, 2])
def test_native_environments_survive_kill_bit_for_bit_in_steps_and_snapshots(num_workers: int) -> None:
    actions = actions_of(100, 4)
    settings: dict[str, Any] = {"vectorization": "native", "num_workers": num_workers}
    with bridge_of("CartPole-v1", **settings) as undisturbed:
        undisturbed.reset()
        expected = played(undisturbed, actions)
    with bridge_of("CartPole-v1", **settings) as bridge:
        bridge.reset()
        arrived = played(bridge, actions[:30])
        strike_worker(bridge)
        arrived += played(bridge, actions[30:60])
        bridge.state_dict()
        arrived += played(bridge, actions[60:70])
        strike_worker(bridge)
        bridge.state_dict()  # the death is found here, not in a step
        assert_same(arrived + played(bridge, actions[70:]), expected)
        assert bridge.restarts == 2


@pytest.mark.parametrize("num_workers", [1, 2])
def test_native_environments_are_saved_in_time_and_come_back_from_long_after(
    num_workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long without a checkpoint: the journal stays short, and a replay of all but a whole interval ends where the steps did."""
    interval = 1200  # more than the rows that a journal begins with
    assert restoration.STEPS_PER_SNAPSHOT < MAX_EPISODE_STEPS / 100
    monkeypatch.setattr(restoration, "STEPS_PER_SNAPSHOT", interval)
    actions = actions_of(3 * interval + 100, 4)
    settings: dict[str, Any] = {"vectorization": "native", "num_workers": num_workers}
    with bridge_of("CartPole-v1", **settings) as undisturbed:
        undisturbed.reset()
        expected = played(undisturbed, actions)
    saved: list[int] = []
    save = WorkerSlice.save
    with bridge_of("CartPole-v1", **settings) as bridge:
        bridge.reset()
        monkeypatch.setattr(WorkerSlice, "save", lambda part: (saved.append(bridge.mark().journal.end), save(part))[1])
        arrived = played(bridge, actions[: 2 * interval - 1])
        strike_worker(bridge)
        arrived += played(bridge, actions[2 * interval - 1 :])
        assert_same(arrived, expected)
        assert bridge.restarts == 1
        assert saved == [step for step in (interval, 2 * interval, 3 * interval) for _ in range(num_workers)]
        journal = bridge.mark().journal
        assert journal.end - journal.begins.min() <= interval and not journal.lost.any()


def test_native_environments_that_are_killed_while_they_are_saved_go_on_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice in a row, in the second of two workers: the first has its new snapshot by then, the old one is still in force."""
    actions = actions_of(60, 4)
    settings: dict[str, Any] = {"vectorization": "native", "num_workers": 2}
    with bridge_of("CartPole-v1", **settings) as undisturbed:
        undisturbed.reset()
        expected = played(undisturbed, actions)
    save, struck = WorkerSlice.save, []

    def struck_save(part: WorkerSlice) -> dict[str, Any]:
        if part.index == 1 and len(struck) < 2:
            struck.append(worker_pid(bridge, 1))
            os.kill(struck[-1], signal.SIGKILL)
        return save(part)

    with bridge_of("CartPole-v1", **settings) as bridge:
        bridge.reset()
        before = played(bridge, actions[:30])
        monkeypatch.setattr(WorkerSlice, "save", struck_save)
        state = bridge.state_dict()
        assert state["restarts"] == bridge.restarts == 2
        assert_same(before + played(bridge, actions[30:]), expected)
    with bridge_of("CartPole-v1", **settings) as resumed:
        resumed.load_state_dict(state)
        assert_same(played(resumed, actions[30:]), expected[30:])


def test_native_environments_that_are_killed_while_they_are_proved_start_again(monkeypatch: pytest.MonkeyPatch) -> None:
    first, expected = native_in_process(actions_of(20, 2))
    save, struck = WorkerSlice.save, []

    def struck_save(part: WorkerSlice) -> dict[str, Any]:
        taken = save(part)
        if not struck:
            struck.append(worker_pid(bridge))
            os.kill(struck[-1], signal.SIGKILL)
        return taken

    monkeypatch.setattr(WorkerSlice, "save", struck_save)
    with bridge_of("CartPole-v1", 2, vectorization="native") as bridge:
        assert bridge.reset()[""].tobytes() == first.tobytes()
        assert_same(played(bridge, actions_of(20, 2)), expected)
        assert bridge.restarts == 1


def test_native_environments_need_a_native_version_and_all_their_rows() -> None:
    with bridge_of(vectorization="native") as bridge, pytest.raises(ConfigError, match="has no native vector environment"):
        bridge.reset()
    with bridge_of("CartPole-v1", 2, vectorization="native") as bridge:
        bridge.reset()
        with pytest.raises(ValueError, match="native environments are stepped all together"):
            bridge.step(np.zeros(2, np.int64), np.ones(2, np.uint8))


# -- checkpoints


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("vectorization", ["sync", "native"])
def test_a_checkpoint_continues_in_fresh_workers_as_if_nothing_had_happened(vectorization: str, num_workers: int) -> None:
    actions = actions_of(90, 4)
    settings: dict[str, Any] = {"vectorization": vectorization, "num_workers": num_workers}
    with bridge_of("CartPole-v1", **settings) as bridge:
        bridge.reset()
        before = played(bridge, actions[:37])
        state = bridge.state_dict()
        expected = played(bridge, actions[37:])
    with bridge_of("CartPole-v1", **settings) as resumed:
        obs = resumed.load_state_dict(state)[""]
        assert obs.tobytes() == before[-1][0].tobytes()
        arrived = played(resumed, actions[37:50])
        strike_worker(resumed)  # what was loaded serves for a rebuild, too
        assert_same(arrived + played(resumed, actions[50:]), expected)


def test_a_sync_checkpoint_may_be_continued_by_another_number_of_workers() -> None:
    actions = actions_of(50, 4)
    _, expected = in_process(FAULTY, actions)
    with bridge_of() as bridge:
        bridge.reset()
        played(bridge, actions[:20])
        state = bridge.state_dict()
    with bridge_of(num_workers=2) as resumed:
        resumed.load_state_dict(state)
        assert_same(played(resumed, actions[20:]), expected[20:])


def test_a_checkpoint_holds_plain_data_and_is_refused_by_other_environments() -> None:
    with bridge_of(num_envs=2) as bridge:
        with pytest.raises(ValueError, match="expected reset before"):
            bridge.state_dict()
        bridge.reset()
        state = bridge.state_dict()
        assert json.loads(json.dumps(state, allow_nan=False)) == state
        for key, other in {"env_id": "CartPole-v1", "num_envs": 3, "vectorization": "native"}.items():
            with pytest.raises(ConfigError, match=f"the checkpoint holds episodes with {key}={other}; use that"):
                bridge.load_state_dict(state | {key: other})


def test_a_resumed_observation_that_differs_is_refused() -> None:
    with bridge_of(num_envs=2) as bridge:
        obs = bridge.reset()[""].copy()
        state = bridge.state_dict()
        obs[1, 2] = np.nextafter(obs[1, 2], np.float32(9))
        with pytest.raises(ContractViolation, match=r"^obs\[1\]: expected the observation of the checkpoint, bit for bit"):
            bridge.load_state_dict(state | {"rows": to_text(obs.tobytes())})


def test_an_environment_that_keeps_something_survives_kill_and_resume_bit_for_bit_if_it_is_made_anew() -> None:
    leaky, actions = EnvironmentSettings("tests.toy_envs:Leaky-v0", remake_each_episode=True), actions_of(35, 2)
    with EnvBridge(leaky, 2, episode_seed) as undisturbed:
        undisturbed.reset()
        expected = played(undisturbed, actions)
    with EnvBridge(leaky, 2, episode_seed) as bridge:
        bridge.reset()
        arrived = played(bridge, actions[:15])  # in the second episode
        strike_worker(bridge)
        arrived += played(bridge, actions[15:25])
        state = bridge.state_dict()
    with EnvBridge("tests.toy_envs:Leaky-v0", 2, episode_seed) as kept, pytest.raises(ConfigError, match="remake_each_episode"):
        kept.load_state_dict(state)
    with EnvBridge(leaky, 2, episode_seed) as resumed:
        resumed.load_state_dict(state)
        assert_same(arrived + played(resumed, actions[25:]), expected)
        assert resumed.restarts == 1 and resumed.abandoned_episodes == 0


def test_an_environment_that_is_made_anew_with_other_spaces_is_at_fault(tmp_path: Path) -> None:
    other = tmp_path / "other"
    faulty = EnvironmentSettings(FAULTY, {"other_space": str(other)}, remake_each_episode=True)
    with EnvBridge(faulty, 1, episode_seed) as bridge:
        bridge.reset()
        other.touch()
        with pytest.raises(ContractViolation, match=r"spaces: expected the same spaces as env 0, got .*3\.0"):
            played(bridge, actions_of(13, 1))


def test_an_environment_that_is_not_deterministic_resumes_with_new_episodes() -> None:
    with bridge_of(num_envs=2, env_kwargs={"drift": True}) as bridge:
        bridge.reset()
        state = bridge.state_dict()
    events: list[str] = []
    with bridge_of(num_envs=2, env_kwargs={"drift": True}, on_event=events.append) as resumed:
        resumed.load_state_dict(state)
        assert resumed.abandoned_episodes == 2 and "a new episode begins there" in events[0]
        assert resumed.step(np.zeros(2, np.int64)).all_valid


# -- any space


def parts_played(num_workers: int = 1, struck_at: int | None = None, resumed_at: int | None = None) -> list[bytes]:
    """All that a caller sees of an environment with every kind of leaf and a mask; on the way a kill, or a resume."""

    def bridge() -> EnvBridge:
        settings = BridgeSettings(num_workers=num_workers)
        return EnvBridge(EnvironmentSettings(PARTS, action_mask="info:possible"), 4, episode_seed, settings=settings)

    rng, current = np.random.default_rng(0), bridge()
    obs = current.reset()
    seen = [leaf.tobytes() for leaf in obs.values()]
    for k in range(40):
        if k == struck_at:
            strike_worker(current)
        if k == resumed_at:
            state = json.loads(json.dumps(current.state_dict()))
            current.close()
            current = bridge()
            obs = current.load_state_dict(state)
        mask = obs["info:possible"]
        step = current.step((rng.random(mask.shape) * mask).argmax(axis=1) + 1)
        obs, ended = step.obs, step.terminated | step.truncated
        seen += [leaf.tobytes() for leaf in obs.values()] + [leaf[ended].tobytes() for leaf in step.final_obs.values()]
        seen += [step.rewards.tobytes(), ended.tobytes()]
    assert current.restarts == (struck_at is not None)
    current.close()
    return seen


@pytest.mark.parametrize("num_workers", [1, 2])
def test_every_kind_of_leaf_survives_kill_and_resume_bit_for_bit(num_workers: int) -> None:
    expected = parts_played()
    assert parts_played(num_workers, struck_at=23) == expected
    assert parts_played(num_workers, resumed_at=29) == expected


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "FrozenLake-v1", "Blackjack-v1"])
def test_environments_with_other_spaces_equal_those_in_process_whatever_is_killed(env_id: str) -> None:
    rng, episodes = np.random.default_rng(0), [0, 0]
    envs = [gymnasium.make(env_id) for _ in range(2)]
    for i, env in enumerate(envs):
        env.reset(seed=episode_seed(i, 0))
    with bridge_of(env_id, 2) as bridge:
        bridge.reset()
        action = bridge.spec.action
        for k in range(30):
            if k == 17:
                strike_worker(bridge)
            low, high = action.bounds()
            drawn = rng.uniform(low, high, (2, *low.shape)) if action.kind == "box" else rng.integers(low, high + 1, 2)
            actions = drawn.astype(action.dtype)
            step = bridge.step(actions)
            for i, env in enumerate(envs):
                asked = actions[i] if action.kind == "box" else int(actions[i])
                returned, reward, terminated, truncated, _ = env.step(asked)
                assert step.rewards[i] == float(reward) and (step.terminated[i], step.truncated[i]) == (terminated, truncated)
                if terminated or truncated:
                    episodes[i] += 1
                    returned, _ = env.reset(seed=episode_seed(i, episodes[i]))
                expected = returned if isinstance(returned, tuple) else (returned,)
                assert all(np.array_equal(leaf[i], part) for leaf, part in zip(step.obs.values(), expected, strict=True))
        assert bridge.restarts == 1


# -- the caller's faults


@pytest.mark.parametrize(
    ("num_envs", "settings", "message"),
    [
        (0, {}, "num_envs=0: expected at least 1"),
        (3, {"num_workers": 2}, "num_envs=3: expected a multiple of data.num_workers=2"),
        (1, {"num_workers": 0}, "data.num_workers=0: expected at least 1"),
        (1, {"restart_window": 0}, "data.restart_window=0: expected at least 1"),
        (1, {"max_restarts": -1}, "data.max_restarts=-1: expected at least 0"),
        (1, {"step_timeout_s": 0.0}, "data.step_timeout_s=0.0: expected a time above 0 s"),
        (1, {"close_timeout_s": float("nan")}, "data.close_timeout_s=nan: expected a time above 0 s"),
        (1, {"start_timeout_s": float("inf")}, "data.start_timeout_s=inf: expected a time above 0 s"),
        (1, {"python": "/nowhere/py"}, "data.python=/nowhere/py: expected a Python interpreter: No such file or directory"),
    ],
)
def test_settings_that_cannot_be_are_refused_at_once(num_envs: int, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        bridge_of(num_envs=num_envs, **settings)
    assert str(raised.value) == message


def test_arguments_that_json_cannot_hold_are_refused_at_once() -> None:
    for value in (object(), float("nan")):
        with pytest.raises(ConfigError, match=r"^data.env_kwargs: expected plain data"):
            bridge_of(env_kwargs={"x": value})


@pytest.mark.parametrize(
    ("env_id", "env_kwargs", "message"),
    [
        ("Nowhere-v0", {}, "env_id=Nowhere-v0: Environment `Nowhere` doesn't exist."),
        (
            "tests.fault_envs:Spaces-v0",
            {"observation": "text"},
            "observation space Text is not supported: it has no arrays of fixed size; write a gymnasium.ObservationWrapper",
        ),
        (
            "tests.fault_envs:Spaces-v0",
            {"observation": "dict with text"},
            "part 'said' of the observation space, a Text, is not supported: it has no arrays of fixed size; "
            "leave it out with --data.obs_keys=[seen], or",
        ),
        (
            "tests.fault_envs:Spaces-v0",
            {"action": "text"},
            "action space Text is not supported; expected Discrete, MultiDiscrete",
        ),
    ],
)
def test_an_environment_that_cannot_be_trained_on_is_refused(env_id: str, env_kwargs: dict[str, Any], message: str) -> None:
    with bridge_of(env_id, 2, env_kwargs=env_kwargs) as bridge, pytest.raises(ConfigError) as raised:
        bridge.reset()
    assert message in str(raised.value) and f"env_id={env_id}: " in str(raised.value)


def test_a_module_that_is_not_there_is_the_callers_fault() -> None:
    with bridge_of("no.such.module:X-v0", 1) as bridge, pytest.raises(ConfigError) as raised:
        bridge.reset()
    assert str(raised.value).startswith("env_id=no.such.module:X-v0: there is no module no in ")


def test_a_contract_that_the_announcement_does_not_meet_is_refused() -> None:
    with bridge_of(contract=ContractSettings(num_actions=3)) as bridge, pytest.raises(ContractViolation) as raised:
        bridge.reset()
    assert str(raised.value) == "num_actions: expected 3 (contract), got discrete (2,) (handshake)"


def test_a_slow_start_and_a_hang_in_make_are_bounded() -> None:
    kwargs = {"fault": "hang blocked", "call": "make"}
    with (
        bridge_of(num_envs=1, start_timeout_s=1.0, close_timeout_s=0.3, env_kwargs=kwargs) as bridge,
        pytest.raises(WorkerTimeout, match=r"took longer than data\.start_timeout_s=1 to start; raise it"),
    ):
        bridge.reset()


def test_start_that_failed_says_so_again_whoever_asks() -> None:
    contract = ContractSettings(num_actions=3)
    with bridge_of("CartPole-v1", num_envs=1, contract=contract) as bridge:
        for ask in (bridge.reset, lambda: bridge.spec, bridge.reset):
            with pytest.raises(ContractViolation, match="num_actions: expected 3"):
                ask()


def test_start_that_was_broken_off_cannot_be_gone_on_with(monkeypatch: pytest.MonkeyPatch) -> None:
    with bridge_of("CartPole-v1", num_envs=1) as bridge:
        with monkeypatch.context() as patch:
            patch.setattr(WorkerProcess, "attach", lambda *args: signal.default_int_handler(signal.SIGINT, None))
            with pytest.raises(KeyboardInterrupt):
                bridge.reset()
        with pytest.raises(BridgeError, match="starting the environments was interrupted"):
            bridge.reset()


def test_wrong_actions_and_masks_are_the_callers_fault_and_harm_nothing() -> None:
    actions = actions_of(10, 2)
    _, expected = in_process(FAULTY, actions)
    right, refused = np.zeros(2, np.int64), {}
    refused["actions: expected int64 of shape (N,), got int32 of shape (2,)"] = (right.astype(np.int32), None)
    refused["actions: expected int64 of shape (N,), got int64 of shape (2, 1)"] = (right[:, None], None)
    refused["actions: expected 2 of them, got 1"] = (right[:1], None)
    refused["actions: expected 2 of them, got 3"] = (np.zeros(3, np.int64), None)
    refused["actions[1]: expected a value in [0, 1] (the action space), got 2"] = (np.array([1, 2]), None)
    refused["actions[0]: expected a value in [0, 1] (the action space), got -1"] = (np.array([-1, 5]), None)
    for name, active in {
        "array([ True, False])": np.array([True, False]),
        "array([1], dtype=uint8)": np.ones(1, np.uint8),
        "array([1, 2], dtype=uint8)": np.array([1, 2], np.uint8),
    }.items():
        refused[f"active: expected uint8 zeros and ones of shape (2,), got {name}"] = (right, active)
    with bridge_of(num_envs=2) as bridge:
        with pytest.raises(ValueError, match="expected reset before the first step"):
            bridge.step(right)
        bridge.reset()
        for message, (wrong, active) in refused.items():
            with pytest.raises(ValueError) as raised:
                bridge.step(wrong, active)
            assert str(raised.value) == message
        assert_same(played(bridge, actions), expected)


# -- the end


def test_after_close_nothing_can_be_done_and_close_may_be_called_again() -> None:
    bridge = bridge_of(num_envs=2, vectorization="sync")
    bridge.reset()
    state = bridge.state_dict()
    bridge.close()
    bridge.close()
    for use in (bridge.reset, lambda: bridge.step(np.zeros(2, np.int64)), lambda: bridge.load_state_dict(state)):
        with pytest.raises(ValueError, match="close"):
            use()
    assert bridge.spec.action.choices == (2,)


@pytest.mark.parametrize("vectorization", ["sync", "native"])
def test_what_a_bridge_held_is_freed_with_it_and_not_only_by_the_garbage_collector(vectorization: Any) -> None:
    with EnvBridge("CartPole-v1", 2, lambda env, episode: env, settings=BridgeSettings(vectorization=vectorization)) as bridge:
        bridge.reset()
        bridge.step(np.zeros(2, np.int64))
    gc.collect()
    gc.disable()
    try:
        history = weakref.ref(bridge._history)
        del bridge
        assert history() is None
    finally:
        gc.enable()


def test_a_bridge_that_was_never_used_closes() -> None:
    bridge = bridge_of(num_workers=2)
    bridge.close()
    with pytest.raises(ValueError, match="this bridge is closed"):
        bridge.reset()


@pytest.mark.parametrize("fault", ["raise", "hang blocked", "exit 7"])
def test_close_ends_everything_whatever_the_environment_does_in_close(fault: str) -> None:
    bridge = bridge_of(num_envs=2, close_timeout_s=0.3, env_kwargs={"fault": fault, "call": "close"})
    bridge.reset()
    pidfds = [os.pidfd_open(worker_pid(bridge)), os.pidfd_open(guard_pid(bridge))]
    bridge.close()
    assert all_ended(pidfds, 0.0)


def test_a_hanging_worker_dies_with_its_guard() -> None:
    with bridge_of(num_envs=1, close_timeout_s=0.3, env_kwargs={"fault": "hang blocked", "at_step": 0}) as bridge:
        bridge.reset()
        pidfd = os.pidfd_open(worker_pid(bridge))
        zeros = np.zeros(1, np.int64)
        assert bridge.slices[0].ask_step(zeros, zeros, np.ones(1, np.uint8), monotonic() + patient(5)) is None
        strike_guard(bridge)
        assert all_ended([pidfd])


def test_close_kills_a_stopped_guard() -> None:
    bridge = bridge_of(num_envs=1)
    bridge.reset()
    pidfds = [os.pidfd_open(worker_pid(bridge))]
    os.kill(worker_pid(bridge), signal.SIGSTOP)
    os.kill(guard_pid(bridge), signal.SIGSTOP)
    bridge.slices[0].worker.kill()
    assert all_ended(pidfds)
    bridge.close()


@pytest.mark.parametrize("how", ["close", "kill"])
def test_grandchildren_and_daemons_end_with_the_worker(how: str, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    with bridge_of(num_envs=1, env_kwargs={"grandchildren": str(pids)}) as bridge:
        bridge.reset()
        pidfds = [os.pidfd_open(int(pid)) for pid in pids.read_text().split()]
        if how == "kill":
            strike_worker(bridge)
            bridge.step(np.zeros(1, np.int64))
            assert all_ended(pidfds, 0.0)
            pidfds = [os.pidfd_open(int(pid)) for pid in pids.read_text().split()]
            assert len(pidfds) == 2
    assert all_ended(pidfds, 0.0)


PARENT = """
import sys, numpy as np
from tests.bridge.test_client import bridge_of, guard_pid, worker_pid
if __name__ == "__main__":
    pids, fault, call = sys.argv[1:]
    kwargs = {"grandchildren": pids, "fault": fault or None, "call": call}
    bridge = bridge_of(num_envs=1, env_kwargs=kwargs)
    bridge.reset()
    print(guard_pid(bridge), worker_pid(bridge), open(pids).read().strip(), flush=True)
    while True:
        bridge.step(np.zeros(1, np.int64))
"""


@pytest.mark.parametrize(("fault", "call"), [("", "step"), ("hang blocked", "step"), ("hold its pipes", "make")])
def test_nothing_outlives_a_trainer_that_is_killed(fault: str, call: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PARENT, str(tmp_path / "pids"), fault, call]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as parent:
        try:
            assert parent.stdout is not None
            assert select.select([parent.stdout], [], [], patient(60))[0], "the parent did not start in time"
            pids = [int(pid) for pid in parent.stdout.readline().split()]
            assert len(pids) == 4  # guard, worker, sleeper, daemon
            pidfds = [os.pidfd_open(pid) for pid in pids]
        finally:
            parent.kill()
    assert all_ended(pidfds)


def test_what_is_killed_is_never_what_a_worker_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment makes its process believe that it is process 1, whose group is every process of the user."""
    struck: list[int] = []
    kill = os.kill
    with bridge_of(num_envs=1, env_kwargs={"fault": "pretend to be process 1", "call": "make"}) as bridge:
        bridge.reset()
        ours = {guard_pid(bridge), worker_pid(bridge)}
        monkeypatch.setattr(os, "killpg", lambda group, number: struck.append(-group))
        monkeypatch.setattr(os, "kill", lambda pid, number: (struck.append(pid), pid in ours and kill(pid, number)))
        kill(worker_pid(bridge), signal.SIGKILL)
        bridge.step(np.zeros(1, np.int64))
        assert bridge.restarts == 1
    assert set(struck) <= ours


def test_what_the_worker_had_started_is_killed_when_the_guard_was(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    with bridge_of(num_envs=1, env_kwargs={"grandchildren": str(pids)}) as bridge:
        bridge.reset()
        sleeper, daemon = map(int, pids.read_text().split())
        ends = [os.pidfd_open(sleeper), os.pidfd_open(daemon)]
        strike_guard(bridge)
        bridge.step(np.zeros(1, np.int64))
        assert all_ended(ends, 5.0)


def test_a_frame_that_the_environment_has_sealed_is_a_protocol_error() -> None:
    kwargs = {"fault": "seal the frame", "call": "make"}
    with (
        bridge_of(num_envs=1, max_restarts=0, env_kwargs=kwargs) as bridge,
        pytest.raises(ProtocolError, match="expected a frame that can be sized and sealed"),
    ):
        bridge.reset()


@pytest.mark.parametrize("observation", ["many bounds"])
def test_an_announcement_that_is_too_long_is_refused_without_another_try(observation: str) -> None:
    env_kwargs = {"observation": observation}
    with bridge_of("tests.fault_envs:Spaces-v0", 1, env_kwargs=env_kwargs) as bridge:
        with pytest.raises(ConfigError, match=r"an answer of \d+ bytes; expected at most 1048576"):
            bridge.reset()
        assert bridge.restarts == 0


def test_too_many_actions_are_refused_without_another_try() -> None:
    with bridge_of("tests.fault_envs:Spaces-v0", 1, env_kwargs={"action": "many"}) as bridge:
        with pytest.raises(ConfigError, match=r"the action with \(2097152,\) choices is not supported"):
            bridge.reset()
        assert bridge.restarts == 0


def test_a_huge_space_is_refused_before_more_than_one_environment_is_made(tmp_path: Path) -> None:
    log = tmp_path / "log"
    kwargs = {"observation": "huge", "log": str(log)}
    with bridge_of("tests.fault_envs:Spaces-v0", 4, env_kwargs=kwargs) as bridge, pytest.raises(ConfigError) as raised:
        bridge.reset()
    assert "observation space Box of shape (67108864,) is not supported: expected 1 to 16777216 components" in str(raised.value)
    assert log.read_text() == "made\n"


CLOSED_DESCRIPTORS = """
import sys, numpy as np
from tests.bridge.test_client import bridge_of
if __name__ == "__main__":
    with bridge_of("CartPole-v1", 2) as bridge:
        bridge.reset()
        open(sys.argv[1], "w").write(str(bridge.step(np.zeros(2, np.int64)).rewards.tolist()))
"""


@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&-", "<&- >&- 2>&-"])
def test_a_trainer_whose_standard_descriptors_are_closed_can_step(closed: str, tmp_path: Path) -> None:
    command = ["sh", "-c", f'exec "$0" -c "$1" "$2" {closed}', sys.executable, CLOSED_DESCRIPTORS, str(tmp_path / "rewards")]
    subprocess.run(command, cwd=Path(__file__).parents[2], check=True)
    assert (tmp_path / "rewards").read_text() == "[1.0, 1.0]"


def test_an_observation_outside_its_space_is_an_event_and_not_the_end() -> None:
    actions = actions_of(30, 2)
    events: list[str] = []
    kwargs = {"fault": "obs outside", "at_step": 3}
    with bridge_of(num_envs=2, env_kwargs=kwargs, on_event=events.append) as bridge:
        bridge.reset()
        arrived = played(bridge, actions)
        assert bridge.restarts == bridge.abandoned_episodes == 0
    assert sum(int((step[1] == 3.0).sum()) for step in arrived) > 2
    assert len(events) == 1 and events[0].startswith("obs[0, 1]: expected a value in [-2.0, 2.0]")
    assert events[0].endswith("data.contract.check_membership=error stops instead, =off says nothing")


def test_secrets_of_the_trainer_are_not_visible_to_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_TOKEN", "hunter2")
    with bridge_of(num_envs=1, env_kwargs={"fault": "tell secret"}) as bridge:
        bridge.reset()
        for pid in (worker_pid(bridge), guard_pid(bridge)):
            assert b"hunter2" not in Path(f"/proc/{pid}/environ").read_bytes()
        with pytest.raises(EnvironmentFault, match="RuntimeError: secret is hidden"):
            played(bridge, np.zeros((5, 1), np.int64))
