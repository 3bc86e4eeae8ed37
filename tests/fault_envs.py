"""Environments that misbehave on demand, for the worker process; imported there as `tests.fault_envs:Faulty-v0`."""

import ctypes
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

Returned = Any


class UnpicklableError(Exception):
    """Holds what no pickle can carry."""

    def __init__(self) -> None:
        super().__init__("cannot be pickled")
        self.held = lambda: None


class BrokenStrError(Exception):
    """Cannot even say what went wrong."""

    def __str__(self) -> str:
        raise ValueError("no words")

    __repr__ = __str__


class BrokenRepr:
    """Cannot be shown."""

    def __repr__(self) -> str:
        raise ValueError("no words")


def _obs(change: Any) -> Any:
    return lambda r: (change(r[0]), *r[1:])


def _component(value: float) -> Any:
    return lambda obs: np.array([obs[0], value, obs[2]], obs.dtype)


def _part(index: int, value: Any) -> Any:
    return lambda r: (*r[:index], value, *r[index + 1 :])


# what becomes of the tuple that a step returns
VALUES: dict[str, Any] = {
    "obs nan": _obs(_component(np.nan)),
    "obs inf": _obs(_component(np.inf)),
    "obs -inf": _obs(_component(-np.inf)),
    "obs outside": _obs(_component(3.0)),
    "obs list": _obs(lambda obs: [*obs.tolist()[:2], "0"]),
    "obs none": _obs(lambda obs: None),
    "obs scalar": _obs(lambda obs: obs[0]),
    "obs short": _obs(lambda obs: obs[:2]),
    "obs one": _obs(lambda obs: obs[:1]),
    "obs column": _obs(lambda obs: obs[:, None]),
    "obs empty": _obs(lambda obs: obs[:0]),
    "obs int": _obs(lambda obs: obs.astype(np.int32)),
    "obs time": _obs(lambda obs: np.zeros(3, "m8[s]")),
    "obs object": _obs(lambda obs: obs.astype(object)),
    "obs text": _obs(lambda obs: obs.astype(str)),
    "obs complex": _obs(lambda obs: obs.astype(np.complex64)),
    "obs 1e300": _obs(lambda obs: np.array([0.0, 1e300, 0.0])),
    "reward nan": _part(1, float("nan")),
    "reward inf": _part(1, float("inf")),
    "reward 1e300": _part(1, 1e300),
    "reward huge": _part(1, 10**400),
    "reward none": _part(1, None),
    "reward text": _part(1, "1.0"),
    "reward time": _part(1, np.timedelta64(1, "s")),
    "reward array": _part(1, np.array([1.0])),
    "reward complex": _part(1, 1 + 0j),
    "reward unshowable": _part(1, BrokenRepr()),
    "terminated int": _part(2, 1),
    "terminated zero": _part(2, 0),
    "terminated none": _part(2, None),
    "terminated text": _part(2, "False"),
    "terminated array": _part(2, np.array([True])),
    "truncated float": _part(3, 0.0),
    "truncated text": _part(3, "True"),
    "tuple of 4": lambda r: r[:4],
    "tuple of 6": lambda r: (*r, {}),
    "list": list,
    "none": lambda r: None,
    "obs only": lambda r: r[0],
}


def _noise() -> None:
    forged = b'\n{"seq":1,"obs":[0]}\n' * 40
    for descriptor in (1, 2):
        os.write(descriptor, forged)
    print("\x1b[31mprinted", file=sys.stdout, flush=True)
    print("complained", file=sys.stderr, flush=True)


def _forge() -> None:
    """Write a line where the trainer reads replies; every pipe that can be written to is tried."""
    for entry in os.listdir("/proc/self/fd"):
        descriptor = int(entry)
        try:
            is_open_for_writing = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY
            if descriptor > 2 and is_open_for_writing and os.readlink(f"/proc/self/fd/{entry}").startswith("pipe:"):
                os.write(descriptor, b'{"seq":1} a589bc6d\n')  # with its checksum
        except OSError:
            continue  # the listing's own


def _hold_pipes() -> None:
    """Keep them from being closed: a second write end of each, for the life of this process."""
    for descriptor in os.listdir("/proc/self/fd"):
        if os.path.realpath(f"/proc/self/fd/{descriptor}").rpartition("/")[2].startswith("pipe:"):
            os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK)


def _seal_frames() -> None:
    """Seal every memfd of this process against a change of its size."""
    for entry in os.listdir("/proc/self/fd"):
        try:
            if "memfd" in os.readlink(f"/proc/self/fd/{entry}"):
                fcntl.fcntl(int(entry), fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        except OSError:
            continue  # the listing's own


def _hang(blocked: bool = False) -> None:
    if blocked:
        signal.pthread_sigmask(signal.SIG_BLOCK, range(1, signal.NSIG))
    while True:
        signal.sigtimedwait([], 3600)


def _raise(error: BaseException) -> None:
    raise error


# what happens instead of returning
ACTS: dict[str, Any] = {
    "raise": lambda: _raise(RuntimeError("the pole is on fire")),
    "raise unpicklable": lambda: _raise(UnpicklableError()),
    "raise broken str": lambda: _raise(BrokenStrError()),
    "tell secret": lambda: _raise(RuntimeError(f"secret is {os.environ.get('MY_API_TOKEN', 'hidden')}")),
    "seal the frame": lambda: _seal_frames(),
    "hold its pipes": lambda: _hold_pipes(),
    "pretend to be process 1": lambda: setattr(os, "getpid", lambda: 1),
    "exit 7": lambda: os._exit(7),
    "sys.exit": lambda: sys.exit(3),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "real-time signal": lambda: os.kill(os.getpid(), signal.SIGRTMIN + 3),
    "segv": lambda: ctypes.string_at(0),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "dawdle": lambda: signal.sigtimedwait([], 3.0),
    "write 64 KiB": lambda: Path("large").write_bytes(bytes(1 << 16)),
    "forge": _forge,
    "forge and kill": lambda: (_forge(), os.kill(os.getpid(), signal.SIGKILL)),
    "hang": _hang,
    "hang blocked": lambda: _hang(blocked=True),
    "noise": _noise,
    "speak and exit 7": lambda: (print("last words"), os._exit(7)),  # not flushed
    "raise forged": lambda: _raise(type("A\nlit_ppo: ", (RuntimeError,), {})("oh\nlit_ppo: error: forged\x1b[2J\r\u2028\x9b")),
    "read stdin": lambda: sys.stdin.read() and _raise(RuntimeError("there was something to read")),
}


def _is_first(marker: str) -> bool:
    """Whether this file was not there yet; now it is."""
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


class FaultyEnv(gymnasium.Env[np.ndarray, int]):
    """A small deterministic environment, with a fault.

    Args:
        fault: What goes wrong: a key of `VALUES` or `ACTS`; None for nothing.
        call: In which call: `make`, `reset`, `step` or `close`.
        at_step: In which step of an episode (0 is the first); None for every one.
        at_reset: After how many earlier resets of this instance; None whenever.
        row: In which environment of the worker; None for all.
        of_seeds: In which call it goes wrong in the episode of which seed (as text), in place of `call`; others go well.
        once: The fault happens only while this file does not exist; it is made first.
        drift: Observations differ from process to process.
        start: Number of action 0.
        length: Longest episode.
        shorter: While this file exists, episodes end after four steps.
        other_space: While this file exists, another observation space is declared.
        other_once: The other space is declared by the first environment that makes this file, and by no other.
        announce: Printed when it is made.
        grandchildren: A file for the pids of a sleeping child and a daemon in a session of its own, started in the first reset.
    """

    made = 0  # by this process

    def __init__(
        self,
        fault: str | None = None,
        call: str = "step",
        at_step: int | None = 3,
        at_reset: int | None = None,
        row: int | None = None,
        of_seeds: dict[str, str] | None = None,
        once: str | None = None,
        drift: bool = False,
        start: int = 0,
        length: int = 12,
        shorter: str | None = None,
        other_space: str | None = None,
        other_once: str | None = None,
        grandchildren: str | None = None,
        announce: str | None = None,
    ) -> None:
        if announce is not None:
            print(announce)
        assert fault is None or fault in VALUES or fault in ACTS, fault
        is_other = other_space is not None and os.path.exists(other_space)
        is_other |= other_once is not None and _is_first(other_once)
        self.observation_space = gymnasium.spaces.Box(-2.0, 3.0 if is_other else 2.0, (3,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(2, start=start)
        self.fault, self.call, self.at_step, self.at_reset, self.once = fault, call, at_step, at_reset, once
        self.drift, self.start, self.length, self.grandchildren = drift, start, length, grandchildren
        self.shorter, self.of_seeds = shorter, of_seeds
        self.seed: int | None = None
        self.is_affected = row is None or row == FaultyEnv.made
        FaultyEnv.made += 1
        self.resets = self.steps = 0
        self._act("make")

    def _is_due(self, call: str) -> bool:
        due = self.call if self.of_seeds is None else self.of_seeds.get(str(self.seed))
        if self.fault is None or call != due or not self.is_affected:
            return False
        if call == "step" and self.at_step not in (None, self.steps):
            return False
        if self.at_reset not in (None, self.resets):
            return False
        return self.once is None or _is_first(self.once)

    def _act(self, call: str, returned: Returned = None) -> Returned:
        if not self._is_due(call):
            return returned
        if self.fault in VALUES:
            return VALUES[self.fault](returned)
        ACTS[self.fault]()
        return returned

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Returned:
        super().reset(seed=seed)
        self.seed = seed
        if self.grandchildren and not self.resets:
            sleeper = subprocess.Popen(["sleep", "1000"])
            daemon = subprocess.Popen(["sh", "-c", "sleep 1000 & echo $!"], stdout=subprocess.PIPE, start_new_session=True)
            assert daemon.stdout is not None
            orphan = int(daemon.stdout.readline())
            Path(self.grandchildren).write_text(f"{sleeper.pid} {orphan}\n")
        self.x = self.np_random.uniform(-1, 1, 3).astype(np.float32)
        self.steps = 0
        if self.drift:
            self.x[0] = np.float32(os.getpid() / 2**23)
        returned = self._act("reset", (self.x.copy(), {}))
        self.resets += 1
        return returned

    def step(self, action: int) -> Returned:
        assert action - self.start in (0, 1)
        self.x = np.sin(1.7 * self.x + 0.3 * (action - self.start) + 0.1).astype(np.float32)
        reward = float(self.x.sum())
        terminated = bool(self.x[0] > 0.99 and self.steps > 2)
        length = 4 if self.shorter is not None and os.path.exists(self.shorter) else self.length
        returned = self._act("step", (self.x.copy(), reward, terminated, self.steps + 1 >= length, {}))
        self.steps += 1
        return returned

    def close(self) -> None:
        self._act("close")


class ImageEnv(gymnasium.Env[np.ndarray, int]):
    """A screen whose every pixel follows from seed and actions, and says something else in each step.

    Args:
        high: The greatest value of a pixel, by the space; by what is seen, 255.
    """

    def __init__(self, high: int = 255) -> None:
        self.observation_space = gymnasium.spaces.Box(0, high, (84, 84, 3), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.screen, self.steps = self.np_random.integers(0, 256, (84, 84, 3), np.uint8), 0
        return self.screen, {}

    def step(self, action: int) -> Returned:
        self.screen = self.screen * np.uint8(5) + np.uint8(action + 1)  # modulo 256
        self.steps += 1
        return self.screen, float(self.screen[0, 0, 0]), bool(self.screen[1, 2, 0] < 16), self.steps >= 12, {}


class SpaceEnv(gymnasium.Env[Any, Any]):
    """An environment with spaces of one's choice; it can only be described.

    Args:
        observation: A key of the spaces below.
        action: Likewise.
        log: A file that gets a line for each environment that is made.
    """

    def __init__(self, observation: str = "box", action: str = "discrete", log: str | None = None) -> None:
        spaces = {
            "box": gymnasium.spaces.Box(-1, 1, (3,)),
            "image": gymnasium.spaces.Box(0, 255, (8, 8, 3), np.uint8),
            "bool": gymnasium.spaces.Box(0, 1, (3,), np.bool_),
            "discrete": gymnasium.spaces.Discrete(2),
            "multi": gymnasium.spaces.MultiDiscrete([2, 3]),
            "text": gymnasium.spaces.Text(5),
        }
        spaces["many"] = gymnasium.spaces.Discrete(1 << 21)
        spaces["many bounds"] = gymnasium.spaces.Box(-np.random.default_rng(0).random(1 << 17), 1.0, dtype=np.float64)
        spaces["dict with text"] = gymnasium.spaces.Dict({"seen": spaces["box"], "said": spaces["text"]})
        spaces["huge"] = gymnasium.spaces.Box(0, 1, (1,))
        spaces["huge"]._shape = (1 << 26,)  # without the gigabyte of its bounds
        self.observation_space, self.action_space = spaces[observation], spaces[action]
        if log is not None:
            with open(log, "a") as file:
                file.write("made\n")


class PartsEnv(gymnasium.Env[Any, int]):
    """Every kind of leaf in one observation, a mask of possible actions in info, and actions from 1 to 4."""

    def __init__(self, change: str | None = None) -> None:
        box, discrete = gymnasium.spaces.Box, gymnasium.spaces.Discrete
        self.observation_space = gymnasium.spaces.Dict(
            {
                "camera": gymnasium.spaces.Dict({"left": box(0, 255, (4, 4, 3), np.uint8)}),
                "flags": gymnasium.spaces.MultiBinary(3),
                "kinds": gymnasium.spaces.MultiDiscrete([3, 4]),
                "pair": gymnasium.spaces.Tuple((box(0, 1, (2,), np.bool_), discrete(2))),
                "pos": box(-5.0, 5.0, (3,), np.float64),
                "where": discrete(4, start=2),
            }
        )
        self.action_space = discrete(4, start=1)
        self.change = change

    def _returned(self) -> tuple[dict[str, Any], dict[str, Any]]:
        draw = self.np_random
        self.possible = draw.integers(0, 2, 4).astype(np.int8)
        self.possible[2] = 1
        obs = {
            "camera": {"left": draw.integers(0, 256, (4, 4, 3), np.uint8)},
            "flags": draw.integers(0, 2, 3).astype(np.int8),
            "kinds": draw.integers(0, 3, 2),
            "pair": (draw.integers(0, 2, 2).astype(np.bool_), np.int64(draw.integers(0, 2))),
            "pos": draw.uniform(-5, 5, 3),
            "where": int(draw.integers(2, 6)),
        }
        return obs, {"possible": self.possible}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return self._returned()

    def step(self, action: int) -> Returned:
        assert self.possible[action - 1] == 1
        self.steps += 1
        obs, info = self._returned()
        if self.change is not None and self.steps == 3:
            obs, info = CHANGES[self.change](obs, info)
        return obs, float(action), bool(self.np_random.random() < 0.1), self.steps >= 15, info


class SumEnv(gymnasium.Env[Any, Any]):
    """A nested observation with the sum of all numbers of all actions so far, which may not exceed 5, and a part to leave out.

    Args:
        action: A key of the spaces below.
    """

    def __init__(self, action: str = "box") -> None:
        box = gymnasium.spaces.Box
        self.observation_space = gymnasium.spaces.Dict(
            {
                "camera": gymnasium.spaces.Dict({"left": box(0, 255, (4, 4, 1), np.uint8)}),
                "pair": gymnasium.spaces.Tuple((box(-5.0, 5.0, (1,), np.float64), gymnasium.spaces.Discrete(3))),
                "always nan": box(0, 1, (2,)),
            }
        )
        self.action_space = {
            "box": box(-1, 1, (2, 3)),
            "multi_discrete": gymnasium.spaces.MultiDiscrete([3, 4]),
            "multi_binary": gymnasium.spaces.MultiBinary(4),
        }[action]

    def _observation(self) -> dict[str, Any]:
        left = self.np_random.integers(0, 256, (4, 4, 1), np.uint8)
        pair = (np.array([self.total]), np.int64(self.steps % 3))
        return {"camera": {"left": left}, "pair": pair, "always nan": np.full(2, np.nan, np.float32)}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.total, self.steps = 0.0, 0
        return self._observation(), {}

    def step(self, action: Any) -> Returned:
        assert self.action_space.contains(action)
        self.total, self.steps = self.total + float(action.sum()), self.steps + 1
        return self._observation(), self.total, False, False, {}


# what becomes of the third observation and info of an episode
CHANGES: dict[str, Any] = {
    "no flags": lambda obs, info: ({key: obs[key] for key in obs if key != "flags"}, info),
    "more": lambda obs, info: (obs | {"more": 1}, info),
    "list": lambda obs, info: (list(obs.values()), info),
    "pair of three": lambda obs, info: (obs | {"pair": (*obs["pair"], 1)}, info),
    "pair as array": lambda obs, info: (obs | {"pair": np.array(["a", "b"])}, info),
    "camera as float": lambda obs, info: (obs | {"camera": {"left": obs["camera"]["left"] / 255}}, info),
    "where outside": lambda obs, info: (obs | {"where": 6}, info),
    "where a float": lambda obs, info: (obs | {"where": 2.0}, info),
    "where true": lambda obs, info: (obs | {"where": True}, info),
    "flags of two": lambda obs, info: (obs | {"flags": np.array([0, 1, 2], np.int8)}, info),
    "kinds outside": lambda obs, info: (obs | {"kinds": np.array([0, 4])}, info),
    "pos nan": lambda obs, info: (obs | {"pos": np.array([0.0, np.nan, 0.0])}, info),
    "pos of one": lambda obs, info: (obs | {"pos": np.zeros(1)}, info),  # numpy would repeat it
    "no mask": lambda obs, info: (obs, {}),
    "mask of zeros": lambda obs, info: (obs, {"possible": np.zeros(4, np.int8)}),
    "mask of three": lambda obs, info: (obs, {"possible": np.ones(3, np.int8)}),
    "mask of halves": lambda obs, info: (obs, {"possible": np.full(4, 0.5)}),
}


gymnasium.register("Parts-v0", entry_point=PartsEnv)
gymnasium.register("Sum-v0", entry_point=SumEnv)
gymnasium.register("Faulty-v0", entry_point=FaultyEnv)
gymnasium.register("Noisy-v0", entry_point=FaultyEnv, kwargs={"fault": "noise", "at_step": None})
gymnasium.register("NaN-v0", entry_point=FaultyEnv, kwargs={"fault": "obs nan", "at_step": 0})
gymnasium.register("Image-v0", entry_point=ImageEnv)
gymnasium.register("Spaces-v0", entry_point=SpaceEnv)
