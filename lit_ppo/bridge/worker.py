"""The other process: makes environments and answers requests.

Try it in a terminal::

    $ python -m lit_ppo.bridge.worker CartPole-v1
    {"cmd":"describe"}
    {"cmd":"reset","seed":0}
    {"cmd":"step","action":[0]}
    {"cmd":"close"}

A trainer ends each line with its checksum, and gets one. It sends `make` and `attach` first; from then on steps go through the
shared frame (see `frame`), and everything else stays as typed above. Which request is possible when is a table (`_NEXT`).

What environments print goes to standard error, and their standard input is empty: requests and replies have private
duplicates of standard input and output.
"""

import argparse
import gc
import mmap
import os
import signal
import sys
from enum import Enum
from time import perf_counter
from typing import Any, Final

import gymnasium
import numpy as np
from numpy.typing import NDArray

from lit_ppo.bridge import protocol
from lit_ppo.bridge.doorbell import Doorbell
from lit_ppo.bridge.faults import error_to_json, mark_environment_process
from lit_ppo.bridge.frame import (
    MAGIC,
    MAGIC_WORD,
    REPLY_WORD,
    REQUEST_WORD,
    STATUS_DONE,
    STATUS_ERROR,
    STATUS_WORD,
    Frame,
    FrameLayout,
)
from lit_ppo.bridge.gymnasium_checker import remarks_on
from lit_ppo.bridge.hosts import HOSTS, NativeHost, SyncHost
from lit_ppo.bridge.settings import EnvironmentSettings
from lit_ppo.bridge.typed import shown_rows, typed_actions
from lit_ppo.errors import ConfigError, ContractViolation, EnvironmentRaised, ProtocolError, shown
from lit_ppo.spaces import Row, spec_to_json

_READ_BYTES: Final = 1 << 16
_STEPS_PER_DRAIN: Final = 4096  # a pipe holds 64 Ki doorbells; unread ones are thrown away long before


class State(Enum):
    """How far a worker is; the value is how messages say it."""

    EMPTY = "no environments are made yet"
    MADE = "the environments were not reset yet"
    PLAYING = "steps come by message"
    ATTACHED = "steps go through the shared frame"
    CLOSED = "the environments are closed"


# What each request leads to; a request that is missing in a state is refused there.
_NEXT: Final[dict[State, dict[str, State]]] = {
    State.EMPTY: {"make": State.MADE, "close": State.CLOSED},
    State.MADE: {
        "describe": State.MADE,
        "check": State.MADE,
        "save": State.MADE,
        "attach": State.ATTACHED,
        "reset": State.PLAYING,
        "restore": State.PLAYING,
        "close": State.CLOSED,
    },
    State.PLAYING: {
        **dict.fromkeys(("describe", "reset", "step", "save", "restore"), State.PLAYING),
        "close": State.CLOSED,
    },
    State.ATTACHED: {
        **dict.fromkeys(("describe", "check", "reset", "save", "restore"), State.ATTACHED),
        "close": State.CLOSED,
    },
    State.CLOSED: {},
}
_COMMANDS: Final = {command for moves in _NEXT.values() for command in moves}


class Worker:
    """Reads requests, answers them, and steps through the shared frame once it is attached.

    Args:
        requests_fd: Where control messages are read.
        replies_fd: Where answers go.
        frame_fd: The shared frame; None when a person types, who computes no checksums.
        confined: What `guard.split` reported.
    """

    def __init__(self, requests_fd: int, replies_fd: int, frame_fd: int | None, confined: dict[str, str]) -> None:
        self.confined = confined
        self.requests_fd, self.replies_fd, self.frame_fd = requests_fd, replies_fd, frame_fd
        self.is_program = frame_fd is not None
        self.state = State.EMPTY
        self.doorbell: Doorbell | None = None
        self.answered = 0  # steps of the frame

    def serve(self) -> None:
        """Answer requests until `close` or their end."""
        buffer, since_drain, is_frozen = b"", 0, False
        while True:
            if self.doorbell is not None:
                if not is_frozen:
                    gc.collect()
                    gc.freeze()  # the objects of the start-up stay for good, so the collector need not look at them again
                    is_frozen = True
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
        return self.doorbell is not None and self.frame.words[REQUEST_WORD] == self.answered + 1

    def answer(self, line: bytes) -> bool:
        """Answer one control message; false when it was the last."""
        request: dict[str, Any] = {}
        try:
            request = protocol.decode(line, checksum=self.is_program)
            encoded_reply = self.encoded(request, self.follow(request))  # NaN is no JSON: that is an answer as well
            if len(encoded_reply) > protocol.MAX_LINE_BYTES:
                raise ConfigError(f"an answer of {len(encoded_reply)} bytes; expected at most {protocol.MAX_LINE_BYTES}")
        except Exception as error:  # the trainer decides what it means
            self.reply(request, error_to_json(error))
            return True
        self.send(encoded_reply)
        return self.state is not State.CLOSED

    def follow(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what a request says, if the table has it; the body of the reply.

        Raises:
            ProtocolError: The request is malformed, or not possible now.
            ConfigError, ContractViolation, EnvironmentRaised: It could not be done.
        """
        command = protocol.take(request, "cmd", str)
        if command not in _COMMANDS:
            raise ProtocolError(f"cmd: unknown command {shown(command)}")
        if command not in _NEXT[self.state]:
            possible = ", ".join(sorted(_NEXT[self.state]))
            raise ProtocolError(f"{command}: not possible while {self.state.value}; expected one of {possible}")
        body: dict[str, Any] = getattr(self, command)(request)
        self.state = _NEXT[self.state][command]
        return body

    def encoded(self, request: dict[str, Any], body: dict[str, Any]) -> bytes:
        if type(request.get("seq")) is int:
            body = {"seq": request["seq"], **body}
        try:
            return protocol.encode(body, checksum=self.is_program)
        except ValueError as error:
            raise ConfigError(f"the answer: {error}") from error

    def reply(self, request: dict[str, Any], body: dict[str, Any]) -> None:
        self.send(self.encoded(request, body))

    def send(self, rest: bytes) -> None:
        """Write all of it to the trainer."""
        while rest:
            rest = rest[os.write(self.replies_fd, rest) :]

    def make(self, request: dict[str, Any]) -> dict[str, Any]:
        """Make the environments."""
        if "error" in self.confined:
            raise ConfigError(self.confined["error"])
        protocol.take(request, "env_id", str)
        vectorization, num_envs = request.get("vectorization", "sync"), request.get("num_envs", 1)
        if vectorization not in HOSTS or type(num_envs) is not int or num_envs < 1:
            raise ProtocolError("make: expected vectorization sync or native, num_envs >= 1")
        try:
            self.host: SyncHost | NativeHost = HOSTS[vectorization](EnvironmentSettings.of(request), num_envs)
            self.row, action = Row(self.host.spec.observation), self.host.action
            self.layout = FrameLayout(num_envs, self.row.size, action.shape, action.dtype, self.host.resets_within_step)
        except ValueError as error:  # which says what does not fit
            raise ConfigError(str(error)) from error
        self._write_results_to(self.layout.reply_views(bytearray(self.layout.reply_bytes), 0))
        return self.describe({})

    def _write_results_to(self, reply_arrays: dict[str, NDArray[Any]]) -> None:
        self.reply_arrays = reply_arrays
        self.host.allocate(self.row, reply_arrays)

    def describe(self, request: dict[str, Any]) -> dict[str, Any]:
        """What the environments are, and which versions run them."""
        host = self.host
        return {
            "protocol": protocol.PROTOCOL_VERSION,
            **spec_to_json(host.spec),
            **host.spaces,
            "num_envs": host.num_envs,
            "resets_within_step": host.resets_within_step,
            "sandbox": self.confined,
            "versions": {
                "python": sys.version.split()[0],
                "gymnasium": gymnasium.__version__,
                "numpy": np.__version__,
            },
        }

    def check(self, request: dict[str, Any]) -> dict[str, Any]:
        """What Gymnasium's own checker says of the first environment, which is of no use afterwards."""
        if not isinstance(self.host, SyncHost):
            raise ConfigError("vectorization=native: Gymnasium checks ordinary environments only; use vectorization=sync")
        return {"remarks": remarks_on(self.host.envs[0])}

    def attach(self, request: dict[str, Any]) -> dict[str, Any]:
        """Use the shared frame for results from now on."""
        if self.frame_fd is None:
            raise ProtocolError("attach: this worker was started without a shared frame")
        size = protocol.take(request, "bytes", int)
        if size != self.layout.total_bytes or os.fstat(self.frame_fd).st_size != size:
            raise ProtocolError(f"attach: expected a frame of {self.layout.total_bytes} bytes, got {size}")
        self.use(Frame(mmap.mmap(self.frame_fd, size), self.layout))
        return {"attached": size}

    def use(self, frame: Frame) -> None:
        """Step through this frame, and write results there."""
        if frame.words[MAGIC_WORD] != MAGIC:
            raise ProtocolError("attach: the frame does not begin with the magic number")
        self.frame = frame
        self._write_results_to(frame.replied)
        self.doorbell = Doorbell(frame.words, REQUEST_WORD)

    def reset(self, request: dict[str, Any]) -> dict[str, Any]:
        """Begin episodes: `seed` for all environments (env i gets seed + i), or `seeds`, where null leaves one as it is."""
        host = self.host
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
        return {"reset": True} if self.doorbell is not None else {"obs": shown_rows(self.row, self.reply_arrays["rows"])}

    def step(self, request: dict[str, Any]) -> dict[str, Any]:
        """Step by message, for a person; where an episode ends the next one begins, from the seed `next_seed`."""
        host = self.host
        next_seed = protocol.take({"next_seed": 0} | request, "next_seed", int)
        if next_seed < 0:
            raise ProtocolError(f"next_seed: expected a non-negative integer, got {next_seed}")
        actions = typed_actions(protocol.take(request, "action", list), host.spec, host.num_envs)
        host.step(actions, next_seed + np.arange(host.num_envs), b"\x01" * host.num_envs)
        rows, (terminated, truncated, _, invalid) = self.reply_arrays["rows"], self.reply_arrays["flags"].astype(bool)
        ended = (terminated | truncated)[:, None] & host.resets_within_step
        final_rows = self.reply_arrays["final_rows"] if host.resets_within_step else rows
        return {
            "obs": shown_rows(self.row, rows),
            "next_obs": shown_rows(self.row, np.where(ended, final_rows, rows)),
            "reward": self.reply_arrays["rewards"].tolist(),
            "terminated": terminated.tolist(),
            "truncated": truncated.tolist(),
            "invalid": invalid.tolist(),
        }

    def step_frame(self) -> None:
        """Answer the step that stands in the shared frame."""
        number, words = self.answered + 1, self.frame.words
        status, error_body = STATUS_DONE, None
        try:
            self.host.step_requested(self.frame.requested)
        except Exception as error:  # as in `answer`
            status, error_body = STATUS_ERROR, error_to_json(error)
        words[STATUS_WORD] = status
        self.answered = number
        if error_body is not None:
            self.reply({"seq": -number}, error_body)
        words[REPLY_WORD] = number
        self.send(protocol.DOORBELL)

    def save(self, request: dict[str, Any]) -> dict[str, Any]:
        """The state of a native vector environment as plain data."""
        return {"state": self.host.save()}

    def restore(self, request: dict[str, Any]) -> dict[str, Any]:
        """Continue a native vector environment from the state that `save` returned."""
        self.host.restore(protocol.take(request, "state", dict))
        return {"restored": True}

    def close(self, request: dict[str, Any]) -> dict[str, Any]:
        """Close the environments; the last request."""
        if self.state is not State.EMPTY:
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
    parser.add_argument("--obs-keys", nargs="*", help="parts of a Dict or Tuple observation that are used")
    parser.add_argument("--action-mask", help="info:KEY, obs:PATH or call:METHOD")
    parser.add_argument("--frame-fd", type=int, help="descriptor of the shared frame (set by the trainer)")
    options = parser.parse_args(arguments)
    sys.argv[:] = [""]  # packages that parse it find a program without arguments
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a signal from outside ends the process, and is no fault of the environment's
    requests_fd, replies_fd = os.dup(0), os.dup(1)  # private: a child that an environment starts does not inherit them
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)  # environments that read standard input must not take the requests
    os.close(nothing)
    os.dup2(2, 1)  # what environments print must not reach the replies
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # else a worker that dies takes it along
    mark_environment_process()
    worker = Worker(requests_fd, replies_fd, options.frame_fd, confined or {})
    if options.env_id is not None:
        request = {
            "cmd": "make",
            "env_id": options.env_id,
            "num_envs": options.num_envs,
            "vectorization": options.vectorization,
            "obs_keys": options.obs_keys,
            "action_mask": options.action_mask,
        }
        try:
            worker.follow(request)
        except (ValueError, EnvironmentRaised, ContractViolation) as error:
            sys.exit(str(error))
    worker.serve()


if __name__ == "__main__":
    main()
