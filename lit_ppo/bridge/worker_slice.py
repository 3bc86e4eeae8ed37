"""One worker and its slice of the environments: started, asked, awaited, replaced."""

import dataclasses
from collections.abc import Callable
from time import monotonic
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lit_ppo.bridge import protocol
from lit_ppo.bridge.frame import FrameLayout
from lit_ppo.bridge.history import Slot
from lit_ppo.bridge.interpreter import refusal, refusal_after_failure
from lit_ppo.bridge.journal import digest_rows
from lit_ppo.bridge.settings import BridgeSettings, EnvironmentSettings
from lit_ppo.errors import (
    AnnouncementError,
    BridgeError,
    ConfigError,
    ContractViolation,
    ProtocolError,
    WorkerExited,
    WorkerTimeout,
    one_line,
    shown,
)
from lit_ppo.spaces import EnvSpec, Row, spec_from_json


class Wire(Protocol):
    """What a slice needs of its worker; `process.WorkerProcess` is the real one."""

    name: str
    requested: dict[str, NDArray[Any]]  # empty once the worker was killed
    replied: dict[str, NDArray[Any]]

    def ask(self, command: str, deadline_s: float, **fields: Any) -> dict[str, Any]: ...
    def post(self, command: str, deadline_s: float, **fields: Any) -> None: ...
    def reply(self, command: str, deadline_s: float) -> dict[str, Any]: ...
    def attach(self, layout: FrameLayout, deadline_s: float) -> None: ...
    def ring(self, deadline: float) -> None: ...
    def await_step(self, deadline: float) -> None: ...
    def printed(self) -> str: ...
    def show_printed(self, show: Callable[[str], None]) -> None: ...
    def close(self, deadline_s: float) -> None: ...
    def kill(self) -> None: ...


StartWorker = Callable[[str | None, str, range, dict[str, Any]], Wire]  # as `process.started_worker`


class WorkerSlice:
    """The rows that one worker hosts, and the worker that hosts them now.

    The worker makes its environments while the caller goes on; `await_made` waits for them.

    Args:
        name: How messages call the worker.
        index: Number of the worker.
        num_rows: How many environments each worker hosts.
        environment: What to make.
        settings: How processes are run.
        resets_within_step: As in `Contract`.
        start_worker: Starts a worker process.
        show: Called with each line that the environments print, if `settings.show_output`.
    """

    def __init__(
        self,
        name: str,
        index: int,
        num_rows: int,
        environment: EnvironmentSettings,
        settings: BridgeSettings,
        resets_within_step: bool,
        start_worker: StartWorker,
        show: Callable[[str], None],
    ) -> None:
        self.name, self._show = name, show
        self.index, self.rows = index, slice(index * num_rows, (index + 1) * num_rows)
        self._num_rows, self._environment = num_rows, environment
        self._settings, self._resets_within_step, self._start_worker = settings, resets_within_step, start_worker
        self.versions: dict[str, Any] = {}
        self.sandbox_layers: dict[str, Any] = {}
        self.worker = self._spawn()

    def _spawn(self) -> Wire:
        settings = self._settings
        is_confined = settings.sandbox != "off"
        worker = self._start_worker(
            settings.python,
            self.name,
            range(self.rows.start, self.rows.stop),
            {
                "cwd": settings.worker_cwd,
                "rlimits": settings.rlimits or {},
                "level": settings.sandbox,
                "read": [*(settings.sandbox_read or []), *(self._environment.env_path or [])] if is_confined else [],
                "write": [*(settings.sandbox_write or [])] if is_confined else [],
                "modules": self._environment.modules if is_confined else [],
                "env": settings.worker_env or [],
            },
        )
        if settings.show_output:
            worker.show_printed(lambda line: self._show(f"{self.name} | {line}"))
        worker.post(
            "make",
            settings.start_timeout_s,
            num_envs=self._num_rows,
            vectorization=settings.vectorization,
            **dataclasses.asdict(self._environment),
        )
        return worker

    def await_made(self) -> EnvSpec:
        """Wait until a fresh worker has made its environments, and share the frame with it; what they announce.

        Raises:
            ConfigError: The environment cannot be made or trained on, or the interpreter is none that can run a worker.
            ProtocolError, BridgeError: The handshake failed.
        """
        settings, worker = self._settings, self.worker
        try:
            announced = worker.reply("make", settings.start_timeout_s)
        except WorkerTimeout as late:
            late.args = (f"{self.name} took longer than data.start_timeout_s={settings.start_timeout_s:g} to start; raise it",)
            late.is_start = True
            raise
        except (WorkerExited, ProtocolError) as error:
            can_be_refused = settings.python is not None or settings.rlimits
            if can_be_refused and (refused := refusal_after_failure(settings.python, settings.rlimits)) is not None:
                raise ConfigError(refused) from error
            raise
        try:
            spec, layout = self._announced(announced)
        except ProtocolError as error:
            raise AnnouncementError(str(error)) from error
        worker.attach(layout, settings.start_timeout_s)
        return spec

    def _announced(self, announced: dict[str, Any]) -> tuple[EnvSpec, FrameLayout]:
        """The environments as a worker announces them, and the frame that they need."""
        expected = {"protocol": protocol.PROTOCOL_VERSION, "env_id": self._environment.env_id, "num_envs": self._num_rows}
        for key, value in expected.items():
            if protocol.take(announced, key, type(value)) != value:
                raise ProtocolError(f"{self.name}: expected {key} {value}, got {shown(announced[key])}")
        try:
            spec = spec_from_json(announced)
            action = spec.action
            layout = FrameLayout(
                self._num_rows, Row(spec.observation).size, action.shape, action.dtype, self._resets_within_step
            )
        except ValueError as error:
            raise ConfigError(str(error)) from error
        versions = protocol.take(announced, "versions", dict)
        self.versions = {one_line(str(name)): one_line(str(version)) for name, version in versions.items()}
        if (refused := refusal(self._settings.python, self.versions)) is not None:
            raise ConfigError(refused)
        self.sandbox_layers = protocol.take(announced, "sandbox", dict)
        return spec, layout

    def replace(self, expected: EnvSpec | None) -> None:
        """Kill the worker and start a fresh one.

        Args:
            expected: What the old one announced; None if it did not come to that, and the start itself is tried again.

        Raises:
            ContractViolation: The fresh one announces something else.
            As `await_made`.
        """
        self.worker.kill()
        self.worker = self._spawn()
        if expected is not None and (spec := self.await_made()) != expected:
            violation = ContractViolation("spaces", f"those of the first handshake: {expected}", str(spec))
            violation.where = {"worker": self.index}  # not of one row, so that no episode is abandoned for it
            raise violation

    def reset(self, seeds: list[int | None]) -> NDArray[np.uint8]:
        """Begin episodes where a seed is given; a copy of the observations to act on, as `obs_rows`."""
        self.worker.ask("reset", self._settings.step_timeout_s, seeds=seeds)
        return self.obs_rows()

    def obs_rows(self) -> NDArray[np.uint8]:
        """A copy of the observations to act on, shape (rows, size)."""
        copy: NDArray[np.uint8] = self.worker.replied["rows"].copy()
        return copy

    def ask_step(
        self,
        actions: NDArray[Any],
        next_seeds: NDArray[np.int64] | None,
        active: NDArray[np.uint8] | None,
        deadline: float,
    ) -> BridgeError | ProtocolError | None:
        """Ask for a step; a failure is returned, to be handled once the other workers are busy.

        Args:
            actions: Of all environments, shape (N, *shape).
            next_seeds: Seeds of the episodes that follow, shape (N,); None where the worker does not use them.
            active: Rows to step, shape (N,); None where the worker does not look at them.
            deadline: By the monotonic clock.
        """
        requested, rows = self.worker.requested, self.rows
        if not requested:
            return WorkerExited(f"{self.worker.name} had ended before this step")
        requested["actions"][...] = actions[rows]
        if next_seeds is not None:
            requested["next_seeds"][...] = next_seeds[rows]
        if active is not None:
            requested["active"][...] = active[rows]
        try:
            self.worker.ring(deadline)
        except (BridgeError, ProtocolError) as error:
            return error
        return None

    def await_step(self, slot: Slot, deadline: float) -> None:
        """Wait for the answer and copy it into this worker's part of `slot`.

        Raises:
            EnvironmentFault, BridgeError, ProtocolError: There was none.
        """
        self.worker.await_step(deadline)
        replied = self.worker.replied
        rows, rewards, flags, _ = slot.parts[self.index]
        rows[...], rewards[...], flags[...] = replied["rows"], replied["rewards"], replied["flags"]

    def copy_final_rows(self, slot: Slot) -> None:
        """Copy what episodes ended with, in a step in which some did."""
        slot.parts[self.index][3][...] = self.worker.replied["final_rows"]

    def replay_step(
        self, actions: NDArray[Any], active: NDArray[np.uint8] | None = None
    ) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
        """One step outside the journal.

        Args:
            actions: Of this worker's environments, shape (rows, *shape).
            active: Rows to step, shape (rows,); None for all.

        Returns:
            Digests of the answers, and which rows ended an episode; shape (rows,) each.
        """
        worker = self.worker
        worker.requested["actions"][...] = actions
        worker.requested["active"][...] = 1 if active is None else active
        deadline = monotonic() + self._settings.step_timeout_s
        worker.ring(deadline)
        worker.await_step(deadline)
        replied = worker.replied
        ended: NDArray[np.bool_] = np.logical_or.reduce(replied["flags"][:3])
        return digest_rows(replied["rows"], replied["rewards"]), ended

    def save(self) -> dict[str, Any]:
        """The whole state of a native vector environment, as plain data."""
        state: dict[str, Any] = protocol.take(self.worker.ask("save", self._settings.step_timeout_s), "state", dict)
        return state

    def restore(self, state: dict[str, Any]) -> None:
        """Put a native vector environment back to what `save` returned."""
        self.worker.ask("restore", self._settings.step_timeout_s, state=state)
