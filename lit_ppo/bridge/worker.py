"""The other process: hosts environments and answers requests; the only file that imports gymnasium to step them.

Try it in a terminal::

    $ python -m lit_ppo.bridge.worker CartPole-v1
    {"cmd":"describe"}
    {"cmd":"reset","seed":0}
    {"cmd":"step","action":[0]}
    {"cmd":"close"}

A trainer ends each line with its checksum, and gets one. It first sends `attach`; from then on steps go through the shared
frame (see `protocol`), everything else stays as typed above. Whatever environments print goes to standard error, and what they
read is empty: requests and replies have private duplicates of standard input and output.
"""

import argparse
import base64
import gc
import importlib
import itertools
import mmap
import os
import sys
import traceback
from collections.abc import Iterable
from time import perf_counter
from typing import Any, Final

import gymnasium
import numpy as np
from numpy.typing import NDArray

from lit_ppo.bridge import protocol
from lit_ppo.bridge.doorbell import Doorbell
from lit_ppo.contract import admit_flag, admit_observation, admit_reset, admit_reward, admit_step, shown
from lit_ppo.errors import ContractViolation, EnvironmentRaised, ProtocolError

_READ_BYTES: Final = 1 << 16
_STEPS_PER_DRAIN: Final = 4096  # a pipe holds 64 Ki doorbells; unread ones are thrown away long before
_TRACEBACK_CHARACTERS: Final = 16_000


class SyncHost:
    """N environments, stepped one after the other; each new episode starts from a seed of its own."""

    resets_within_step: Final = True

    def __init__(self, env_id: str, num_envs: int, kwargs: dict[str, Any]) -> None:
        self.num_envs = num_envs
        self.envs: list[gymnasium.Env[Any, Any]] = []
        for env in range(num_envs):
            # the checker looks at less than our contract does, and costs more
            made = _call(env, "make", gymnasium.make, env_id, disable_env_checker=True, **kwargs)
            self.envs.append(made)
        first = self.envs[0]
        self.observation_space, self.action_space, self.spec = first.observation_space, first.action_space, first.spec
        for env, other in enumerate(self.envs):
            if other.observation_space != self.observation_space or other.action_space != self.action_space:
                raise ContractViolation("spaces", "the same spaces as env 0", shown(other), env)
        self.action_start = _first_action(self.action_space)

    def allocate(self, observations: NDArray[Any], rewards: NDArray[np.float64], flags: NDArray[np.uint8]) -> None:
        """Use these arrays, which the trainer can see, for all results from now on."""
        self.obs, self.next_obs = observations
        self.rewards, self.flags = rewards, flags
        self.terminated, self.truncated, self.reset_flags, self.invalid = flags
        self.shape, self.dtype = self.obs.shape[1:], self.obs.dtype

    def reset(self, seeds: list[int | None]) -> None:
        """Begin new episodes where a seed is given; leave the other environments as they are."""
        for env, seed in enumerate(seeds):
            if seed is not None:
                self._reset_one(env, seed)

    def _reset_one(self, env: int, seed: int) -> None:
        returned = _call(env, "reset", self.envs[env].reset, seed=seed)
        try:
            self.obs[env] = admit_observation(admit_reset(returned), self.shape, self.dtype)
        except ContractViolation as violation:
            raise _of_env(violation, env) from None

    def step(self, actions: list[int], next_seeds: list[int], active: list[int]) -> None:
        """Step the active environments; where an episode ends, begin the next one."""
        self.flags[...] = 0
        next_obs, rewards, start, shape, dtype = self.next_obs, self.rewards, self.action_start, self.shape, self.dtype
        ended = []
        rows: Iterable[int] = range(self.num_envs)
        if not all(active):  # rows that stay where they are
            self.invalid[...] = [1 - is_active for is_active in active]
            rewards[...] = 0.0
            next_obs[...] = self.obs
            rows = itertools.compress(rows, active)
        for env in rows:
            try:
                returned = self.envs[env].step(actions[env] + start)
            except Exception as error:
                raise _raised(env, "step", error) from None
            try:
                obs, reward, terminated, truncated, _ = admit_step(returned)
                next_obs[env] = admit_observation(obs, shape, dtype)
                rewards[env] = admit_reward(reward)
                if terminated is not False and admit_flag("terminated", terminated):
                    self.terminated[env] = 1
                    ended.append(env)
                if truncated is not False and admit_flag("truncated", truncated):
                    self.truncated[env] = 1
                    ended.append(env)
            except ContractViolation as violation:
                raise _of_env(violation, env) from None
        self.obs[...] = next_obs
        for env in dict.fromkeys(ended):
            self._reset_one(env, next_seeds[env])
            self.reset_flags[env] = 1

    def close(self) -> None:
        for env, environment in enumerate(self.envs):
            _call(env, "close", environment.close)


class NativeHost:
    """One vector environment of Gymnasium's own: all rows in one numpy program, one random stream for all of them.

    Its rows reset in the step after the one that ended an episode (NEXT_STEP); that step is no transition and marked invalid.
    """

    resets_within_step: Final = False

    def __init__(self, env_id: str, num_envs: int, kwargs: dict[str, Any]) -> None:
        self.num_envs = num_envs
        self.vector: gymnasium.vector.VectorEnv[Any, Any, Any] = _call(
            0, "make", gymnasium.make_vec, env_id, num_envs, vectorization_mode="vector_entry_point", **kwargs
        )
        mode = self.vector.metadata.get("autoreset_mode")
        if mode != gymnasium.vector.AutoresetMode.NEXT_STEP:
            raise ContractViolation("autoreset_mode", "NEXT_STEP", shown(mode), 0)
        self.observation_space, self.action_space = self.vector.single_observation_space, self.vector.single_action_space
        self.spec = self.vector.spec
        self.action_start = _first_action(self.action_space)
        self._accept_checked_actions(self.vector.unwrapped.action_space)

    def _accept_checked_actions(self, space: gymnasium.Space[Any]) -> None:
        """Spare the environment its own look at actions that the contract has looked at: a sixth of CartPole's step."""
        self.asked: NDArray[np.int64] | None = None
        contains = space.contains
        space.contains = lambda actions: actions is self.asked or contains(actions)  # type: ignore[method-assign, assignment]

    def allocate(self, observations: NDArray[Any], rewards: NDArray[np.float64], flags: NDArray[np.uint8]) -> None:
        """Use these arrays, which the trainer can see, for all results from now on."""
        self.observations, self.rewards, self.flags = observations, rewards, flags
        self.ended = np.zeros(self.num_envs, np.bool_)

    def reset(self, seeds: list[int | None]) -> None:
        """Begin all episodes anew from the first seed; there is one random stream."""
        if seeds[0] is None or any(seed is not None for seed in seeds[1:]):
            raise ProtocolError("reset: expected a seed for row 0 alone: native environments share one random stream")
        returned = _call(0, "reset", self.vector.reset, seed=seeds[0])
        self._admit_obs(admit_reset(returned))
        self.ended[:] = False

    def step(self, actions: NDArray[np.int64], next_seeds: object, active: object) -> None:
        """Step all rows; those whose episode ended in the step before begin the next one instead."""
        try:
            self.asked = actions + self.action_start if self.action_start else actions
            returned = self.vector.step(self.asked)
        except Exception as error:
            raise _raised(0, "step", error) from None
        obs, rewards, terminated, truncated, _ = admit_step(returned)
        self._admit_obs(obs)
        for name, value, kinds in (("reward", rewards, "fiu"), ("terminated", terminated, "b"), ("truncated", truncated, "b")):
            if not isinstance(value, np.ndarray) or value.shape != (self.num_envs,) or value.dtype.kind not in kinds:
                raise ContractViolation(name, f"an array of shape ({self.num_envs},) of kind {kinds}", shown(value), 0)
        self.rewards[...] = rewards
        flags = self.flags
        flags[0], flags[1], flags[3] = terminated, truncated, self.ended
        np.logical_or(terminated, truncated, out=self.ended)

    def _admit_obs(self, obs: object) -> None:
        self.observations[...] = admit_observation(obs, self.observations.shape[1:], self.observations.dtype)

    def save(self) -> dict[str, Any]:
        """The whole state as plain data: arrays, numbers, and the random stream's own state."""
        environment = self.vector.unwrapped
        fields = {
            name: _array_to_json(value) if isinstance(value, np.ndarray) else _number_to_json(value)
            for name, value in vars(environment).items()
            if isinstance(value, np.ndarray) or type(value) in (bool, int, float)
        }
        return {
            "fields": fields,
            "random": environment.np_random.bit_generator.state,
            "ended": _array_to_json(self.ended),
            "obs": _array_to_json(self.observations[0]),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what `save` returned."""
        environment = self.vector.unwrapped
        stream = environment.np_random.bit_generator  # first: in a fresh environment this makes it, and sets `_np_random_seed`
        for name, value in protocol.take(state, "fields", dict).items():
            # by what was saved, not by what is there now: in a fresh environment many a field is still None
            setattr(environment, name, _array_from_json(value) if "dtype" in value else _number_from_json(value))
        try:
            stream.state = protocol.take(state, "random", dict)
        except (ValueError, TypeError, KeyError) as error:
            raise ProtocolError(f"random: expected a bit generator's state: {error}") from error
        self.ended[...] = _array_from_json(protocol.take(state, "ended", dict))
        self.observations[...] = _array_from_json(protocol.take(state, "obs", dict))

    def close(self) -> None:
        _call(0, "close", self.vector.close)


def _first_action(space: gymnasium.Space[Any]) -> int:
    """The environment's name for action 0; spaces that cannot be trained on are described all the same."""
    return int(space.start) if isinstance(space, gymnasium.spaces.Discrete) else 0


HOSTS: Final[dict[str, type[SyncHost] | type[NativeHost]]] = {"sync": SyncHost, "native": NativeHost}


def _array_to_json(array: NDArray[Any]) -> dict[str, Any]:
    return {"dtype": array.dtype.str, "shape": list(array.shape), "data": base64.b64encode(array.tobytes()).decode()}


def _array_from_json(value: dict[str, Any]) -> NDArray[Any]:
    shape = [int(size) for size in protocol.take(value, "shape", list)]
    data = base64.b64decode(protocol.take(value, "data", str), validate=True)
    return np.frombuffer(data, np.dtype(protocol.take(value, "dtype", str))).reshape(shape).copy()


def _number_to_json(value: float) -> dict[str, Any]:
    return {"float": value.hex()} if type(value) is float else {"integer": value}  # hex: JSON has no infinities


def _number_from_json(value: dict[str, Any]) -> float:
    if "float" in value:
        return float.fromhex(protocol.take(value, "float", str))
    number: int = protocol.take(value, "integer", int, bool)
    return number


def _raised(env: int, during: str, error: BaseException) -> EnvironmentRaised:
    text = "".join(traceback.format_exception(error))[-_TRACEBACK_CHARACTERS:]
    return EnvironmentRaised(during, f"{type(error).__name__}: {shown_message(error)}", text, env)


def shown_message(error: BaseException) -> str:
    """The message of any exception, however broken."""
    try:
        return str(error)[:400]
    except Exception:  # a broken __str__ must not hide the exception
        return "<message cannot be shown>"


def _of_env(violation: ContractViolation, env: int) -> ContractViolation:
    return ContractViolation(violation.field, violation.rule, violation.value, env)


def _call(env: int, during: str, function: Any, *args: Any, **kwargs: Any) -> Any:
    """Call into environment code; whatever it raises is its own fault, with its own traceback."""
    try:
        return function(*args, **kwargs)
    except Exception as error:
        raise _raised(env, during, error) from None


def error_to_json(error: Exception) -> dict[str, Any]:
    """An error as the body of a reply."""
    if isinstance(error, ContractViolation):
        body = {"kind": "violation", "field": error.field, "rule": error.rule, "value": error.value, "env": error.env}
    elif isinstance(error, EnvironmentRaised):
        body = {
            "kind": "raised",
            "during": error.during,
            "exception": error.exception,
            "traceback": error.traceback,
            "env": error.env,
        }
    else:
        body = {"kind": "refused", "message": shown_message(error)}
    return {"error": body}


def _space_to_json(space: gymnasium.Space[Any]) -> dict[str, Any]:
    if isinstance(space, gymnasium.spaces.Box):
        return {
            "type": "Box",
            "shape": list(space.shape),
            "dtype": str(space.dtype),
            "low": protocol.bound_to_json(space.low),
            "high": protocol.bound_to_json(space.high),
            "repr": shown(space),
        }
    if isinstance(space, gymnasium.spaces.Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start), "repr": shown(space)}
    return {"type": type(space).__name__, "repr": shown(space)}


class Worker:
    """Reads requests, answers them, and steps through the shared frame once it is attached."""

    def __init__(self, requests_fd: int, replies_fd: int, frame_fd: int | None, confined: dict[str, str]) -> None:
        self.confined = confined
        self.requests_fd, self.replies_fd, self.frame_fd = requests_fd, replies_fd, frame_fd
        self.is_program = frame_fd is not None  # that asks: a person at a terminal has no frame, and computes no checksums
        self.host: SyncHost | NativeHost | None = None
        self.doorbell: Doorbell | None = None
        self.answered = 0
        self.was_reset = False

    def serve(self) -> None:
        """Until `close` or the end of the requests."""
        buffer, since_drain = b"", 0
        while True:
            if self.doorbell is not None:
                while since_drain < _STEPS_PER_DRAIN and self.doorbell.poll(self.answered + 1):
                    self.step_frame()
                    since_drain += 1
                since_drain = 0
            start = perf_counter()
            while received := os.read(self.requests_fd, _READ_BYTES):
                buffer += received
                if self.doorbell is None or self.is_asked() or buffer.strip(b"\n"):
                    break
                buffer = b""  # doorbells of steps that were polled for
            if not received:
                return
            if self.doorbell is not None and self.is_asked():
                self.doorbell.waited(perf_counter() - start)
            *lines, buffer = buffer.split(b"\n")
            if len(buffer) > protocol.MAX_LINE_BYTES:
                self.reply({}, error_to_json(ProtocolError(f"message: expected at most {protocol.MAX_LINE_BYTES} bytes")))
                return
            for line in lines:
                if self.is_asked():
                    self.step_frame()
                if line.strip() and not self.answer(line):
                    return

    def is_asked(self) -> bool:
        """Whether a step stands in the shared frame that is not answered yet."""
        return self.doorbell is not None and self.words[protocol.REQUEST_WORD] == self.answered + 1

    def answer(self, line: bytes) -> bool:
        """Answer one control message; false when it was the last."""
        request: dict[str, Any] = {}
        try:
            request = protocol.decode(line, checksum=self.is_program)
            command = protocol.take(request, "cmd", str)
            if command not in ("make", "describe", "attach", "reset", "step", "save", "restore", "close"):
                raise ProtocolError(f"cmd: unknown command {shown(command)}")
            line_back = self.encoded(request, getattr(self, command)(request))  # NaN is no JSON, and an answer as well
        except Exception as error:  # whatever went wrong is an answer; the trainer decides what it means
            self.reply(request, error_to_json(error))
            return True
        self.send(line_back)
        return request.get("cmd") != "close"

    def encoded(self, request: dict[str, Any], body: dict[str, Any]) -> bytes:
        if type(request.get("seq")) is int:
            body = {"seq": request["seq"], **body}
        return protocol.encode(body, checksum=self.is_program)

    def reply(self, request: dict[str, Any], body: dict[str, Any]) -> None:
        self.send(self.encoded(request, body))

    def send(self, rest: bytes) -> None:
        while rest:
            rest = rest[os.write(self.replies_fd, rest) :]

    def make(self, request: dict[str, Any]) -> dict[str, Any]:
        """Make the environments."""
        if self.host is not None:
            raise ProtocolError("make: the environments are made already")
        if "error" in self.confined:
            raise ValueError(self.confined["error"])
        env_id, vectorization = protocol.take(request, "env_id", str), request.get("vectorization", "sync")
        num_envs, kwargs = request.get("num_envs", 1), request.get("env_kwargs", {})
        self.env_id = env_id
        if vectorization not in HOSTS or type(num_envs) is not int or num_envs < 1 or type(kwargs) is not dict:
            raise ProtocolError("make: expected vectorization sync or native, num_envs >= 1, env_kwargs an object")
        module, _, name = env_id.rpartition(":")
        if module:  # "module:EnvId" imports the module first, as in gymnasium.make
            try:
                importlib.import_module(module)
            except ModuleNotFoundError as error:
                if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                    raise _raised(0, "import", error) from None
                raise ValueError(f"env_id={env_id}: there is no module {error.name} on the path {sys.path[:3]}") from None
            except Exception as error:
                raise _raised(0, "import", error) from None
        try:
            spec = gymnasium.spec(name)
        except gymnasium.error.Error as error:
            raise ValueError(f"env_id={env_id}: {shown_message(error)}") from None
        if vectorization == "native" and spec.vector_entry_point is None:
            raise ValueError(f"vectorization=native: {env_id} has no native vector environment; use vectorization=sync")
        host = HOSTS[vectorization](name, num_envs, kwargs)
        if isinstance(host.observation_space, gymnasium.spaces.Box):
            space = host.observation_space
            self.layout = protocol.FrameLayout(num_envs, space.shape, str(space.dtype), host.resets_within_step)
            self.own = self.layout.reply_views(bytearray(self.layout.reply_bytes), 0)
            host.allocate(self.own["observations"], self.own["rewards"], self.own["flags"])
        self.host = host
        return self.describe({})

    def made(self) -> SyncHost | NativeHost:
        if self.host is None:
            raise ProtocolError("expected make before this")
        return self.host

    def playable(self) -> SyncHost | NativeHost:
        """The host, if its observations fit into a frame: other spaces can be described, not stepped."""
        host = self.made()
        if not isinstance(host.observation_space, gymnasium.spaces.Box):
            raise ValueError(f"env_id={self.env_id}: observation space {shown(host.observation_space)} is not supported")
        return host

    def describe(self, request: dict[str, Any]) -> dict[str, Any]:
        """What the environments are, and what hosts them."""
        host = self.made()
        return {
            "protocol": protocol.PROTOCOL_VERSION,
            "env_id": self.env_id,
            "num_envs": host.num_envs,
            "observation_space": _space_to_json(host.observation_space),
            "action_space": _space_to_json(host.action_space),
            "reward_threshold": host.spec.reward_threshold if host.spec else None,
            "max_episode_steps": host.spec.max_episode_steps if host.spec else None,
            "resets_within_step": host.resets_within_step,
            "pid": os.getpid(),
            "sandbox": self.confined,
            "versions": {
                "python": sys.version.split()[0],
                "gymnasium": gymnasium.__version__,
                "numpy": np.__version__,
            },
        }

    def attach(self, request: dict[str, Any]) -> dict[str, Any]:
        """Use the shared frame for results from now on."""
        if self.frame_fd is None:
            raise ProtocolError("attach: this worker was started without a shared frame")
        size = protocol.take(request, "bytes", int)
        if size != self.layout.total_bytes or os.fstat(self.frame_fd).st_size != size:
            raise ProtocolError(f"attach: expected a frame of {self.layout.total_bytes} bytes, got {size}")
        frame = mmap.mmap(self.frame_fd, size)
        self.words = memoryview(frame).cast("Q")
        if self.words[protocol.MAGIC_WORD] != protocol.MAGIC:
            raise ProtocolError("attach: the frame does not begin with the magic number")
        self.requested = self.layout.request_views(frame)
        self.own = self.layout.reply_views(frame, self.layout.reply_start)
        self.made().allocate(self.own["observations"], self.own["rewards"], self.own["flags"])
        self.doorbell = Doorbell(self.words, protocol.REQUEST_WORD)
        gc.collect()
        gc.freeze()  # what start-up made stays for good; the collector need not look at it again
        return {"attached": size}

    def reset(self, request: dict[str, Any]) -> dict[str, Any]:
        """Begin episodes: `seed` for all environments (env i gets seed + i), or `seeds`, with null for "leave it"."""
        host = self.playable()
        if "seeds" in request:
            seeds = protocol.take(request, "seeds", list)
        else:
            first = protocol.take(request, "seed", int)
            seeds = [first + env for env in range(host.num_envs)]
            if not host.resets_within_step:
                seeds[1:] = [None] * (host.num_envs - 1)
        if len(seeds) != host.num_envs or any(seed is not None and (type(seed) is not int or seed < 0) for seed in seeds):
            raise ProtocolError(f"seeds: expected {host.num_envs} seeds (non-negative integers or null), got {shown(seeds)}")
        host.reset(seeds)
        self.was_reset = True
        if self.doorbell is not None:
            return {"reset": True}
        return {"obs": self.own["observations"][0].tolist()}

    def step(self, request: dict[str, Any]) -> dict[str, Any]:
        """Step by message, for a person; a new episode begins by itself where one ended, from the seed `next_seed`."""
        host = self.made()
        if self.doorbell is not None:
            raise ProtocolError("step: this worker steps through its shared frame")
        if not self.was_reset:
            raise ProtocolError("step: expected reset before the first step")
        actions, next_seed = protocol.take(request, "action", list), protocol.take({"next_seed": 0} | request, "next_seed", int)
        if next_seed < 0:
            raise ProtocolError(f"next_seed: expected a non-negative integer, got {next_seed}")
        if len(actions) != host.num_envs or any(type(action) is not int for action in actions):
            raise ProtocolError(f"action: expected {host.num_envs} integers, got {shown(actions)}")
        size = int(getattr(host.action_space, "n", 0))
        if any(not 0 <= action < size for action in actions):
            raise ProtocolError(f"action: expected 0 to {size - 1}, got {shown(actions)}")
        chosen: Any = actions if host.resets_within_step else np.asarray(actions, np.int64)
        host.step(chosen, [next_seed + env for env in range(host.num_envs)], [1] * host.num_envs)
        terminated, truncated, _, invalid = self.own["flags"].astype(bool).tolist()
        return {
            "obs": self.own["observations"][0].tolist(),
            "next_obs": self.own["observations"][-1].tolist(),
            "reward": self.own["rewards"].tolist(),
            "terminated": terminated,
            "truncated": truncated,
            "invalid": invalid,
        }

    def step_frame(self) -> None:
        """Answer the step that stands in the shared frame."""
        number, host, requested = self.answered + 1, self.made(), self.requested
        status, error_line = protocol.STATUS_DONE, None
        try:
            if isinstance(host, SyncHost):
                host.step(requested["actions"].tolist(), requested["next_seeds"].tolist(), requested["active"].tolist())
            else:
                host.step(requested["actions"], None, None)
        except Exception as error:  # as in `answer`
            status, error_line = protocol.STATUS_ERROR, error_to_json(error)
        self.words[protocol.STATUS_WORD] = status
        self.answered = number
        if error_line is not None:
            self.reply({"seq": -number}, error_line)
        self.words[protocol.REPLY_WORD] = number
        os.write(self.replies_fd, protocol.DOORBELL)

    def save(self, request: dict[str, Any]) -> dict[str, Any]:
        """The state of a native vector environment as plain data."""
        host = self.made()
        if not isinstance(host, NativeHost):
            raise ProtocolError("save: sync environments are restored from their journal")
        return {"state": host.save()}

    def restore(self, request: dict[str, Any]) -> dict[str, Any]:
        """Continue a native vector environment from what `save` said."""
        host = self.made()
        if not isinstance(host, NativeHost):
            raise ProtocolError("restore: sync environments are restored from their journal")
        host.restore(protocol.take(request, "state", dict))
        self.was_reset = True
        return {"restored": True}

    def close(self, request: dict[str, Any]) -> dict[str, Any]:
        """Close the environments; the last request."""
        if self.host is not None:
            self.host.close()
        return {"closed": True}


def main(arguments: list[str] | None = None, confined: dict[str, str] | None = None) -> None:
    """Serve on standard input and output.

    Args:
        arguments: Of the command line.
        confined: What `guard.split` reported.
    """
    parser = argparse.ArgumentParser(prog="python -m lit_ppo.bridge.worker", description=__doc__.partition("\n")[0])
    parser.add_argument("env_id", nargs="?", help="Gymnasium id, or module:EnvId; a trainer sends it by message instead")
    parser.add_argument("--num-envs", type=int, default=1)
    parser.add_argument("--vectorization", choices=sorted(HOSTS), default="sync")
    parser.add_argument("--frame-fd", type=int, help="descriptor of the shared frame (set by the trainer)")
    options = parser.parse_args(arguments)
    requests_fd, replies_fd = os.dup(0), os.dup(1)  # private: a child that an environment starts does not inherit them
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)  # what environments read must not be taken from the requests
    os.close(nothing)
    os.dup2(2, 1)  # what environments print must not reach the replies
    worker = Worker(requests_fd, replies_fd, options.frame_fd, confined or {})
    if options.env_id is not None:
        request = {"env_id": options.env_id, "num_envs": options.num_envs, "vectorization": options.vectorization}
        try:
            worker.make(request)
        except (ValueError, EnvironmentRaised, ContractViolation) as error:
            sys.exit(str(error))
    worker.serve()


if __name__ == "__main__":
    main()
