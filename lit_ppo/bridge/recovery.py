"""What follows a failure: whether it is survived, a fresh worker, restored environments, the same request again."""

from collections.abc import Callable
from time import monotonic, sleep
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_ppo.bridge.history import Slot
from lit_ppo.bridge.journal import Journal
from lit_ppo.bridge.reports import Fault, FaultReports
from lit_ppo.bridge.restart_budget import RestartBudget
from lit_ppo.bridge.restoration import Restoration
from lit_ppo.bridge.settings import BridgeSettings
from lit_ppo.bridge.worker_slice import WorkerSlice
from lit_ppo.errors import (
    AnnouncementError,
    BridgeError,
    ContractViolation,
    EnvironmentFault,
    EnvironmentRaised,
    ProtocolError,
    WorkerExited,
    WorkerTimeout,
)
from lit_ppo.spaces import EnvSpec


class Recovery:
    """Replaces workers that fail, as often as the settings allow.

    Args:
        settings: What is survived, and how often.
        journal: For the number of steps so far.
        reports: Completes faults.
        on_event: Called with a line of text for each worker that is replaced.
    """

    def __init__(
        self, settings: BridgeSettings, journal: Journal, reports: FaultReports, on_event: Callable[[str], None]
    ) -> None:
        self._settings, self._journal, self._reports, self._on_event = settings, journal, reports, on_event
        self._budget = RestartBudget(settings.max_restarts, settings.restart_window)
        self.restarts = 0
        # both are known once the environments have started
        self.spec: EnvSpec | None = None
        self.restoration: Restoration

    def retry(self, part: WorkerSlice, what: str, attempt: Callable[[], None]) -> None:
        """Run `attempt` on one slice; when it fails, replace the worker and run it again.

        Raises:
            EnvironmentFault, BridgeError, ProtocolError: The failure, when it is not survived.
        """
        failure: Fault | ProtocolError | None = None
        while True:
            try:
                if failure is not None:
                    self._replace(part, f"{what}: {failure}")
                attempt()
                self._budget.succeeded()
                return
            except (BridgeError, ProtocolError, EnvironmentFault) as error:
                failure = error
            self._raise_if_unrecoverable(part, failure)

    def await_step(
        self,
        part: WorkerSlice,
        slot: Slot,
        actions: NDArray[Any],
        active: NDArray[np.uint8] | None,
        failure: Fault | ProtocolError | None,
        deadline: float,
    ) -> NDArray[np.uint8] | None:
        """Wait for one worker's part of a step, recovering as often as allowed.

        Args:
            part: The slice.
            slot: Where the answer goes.
            actions: Of all environments, shape (N, *shape).
            active: The rows to step, shape (N,); None for all.
            failure: What is known to have failed already.
            deadline: By the monotonic clock.

        Returns:
            The rows that were really stepped, as `active`.

        Raises:
            EnvironmentFault, BridgeError, ProtocolError: The failure, when it is not survived.
        """
        while True:
            if failure is not None:
                self._raise_if_unrecoverable(part, failure)  # outside the try: it must not be caught below
            try:
                if failure is not None:
                    active = self._recover(part, failure, active)
                    deadline = monotonic() + self._settings.step_timeout_s
                    failure = part.ask_step(actions, *self.restoration.request(active), deadline)
                    continue
                self._await_answer(part, slot, actions, deadline)
                return active
            except EnvironmentFault as fault:
                self.complete(fault, part, actions)
                failure = fault
            except (BridgeError, ProtocolError) as error:
                failure = error

    def _await_answer(self, part: WorkerSlice, slot: Slot, actions: NDArray[Any], deadline: float) -> None:
        """Wait for one worker's part of a step. A worker that fails now does so in this step, and not in a replay before it."""
        try:
            part.await_step(slot, deadline)
        except BridgeError as error:
            self.complete(error, part, actions)
            raise

    def complete(self, fault: Fault, part: WorkerSlice, actions: NDArray[Any]) -> None:
        """Give a fault of a step its place and report."""
        env = fault.env if isinstance(fault, ContractViolation | EnvironmentRaised | BridgeError) else None
        past = self.restoration.past_actions(part.rows.start if env is None else env)
        self._reports.complete(fault, part, past, actions)

    def _raise_if_unrecoverable(self, part: WorkerSlice, error: Fault | ProtocolError) -> None:
        """Raise `error` when the run must not go on: the environment's fault, or one fault too many."""
        if isinstance(error, AnnouncementError):
            raise error
        if isinstance(error, EnvironmentFault) and (self._settings.on_violation == "stop" or "env" not in error.where):
            raise error
        is_killed = isinstance(error, WorkerExited) and error.is_killed
        crashed = part.index if isinstance(error, BridgeError) and not is_killed else None
        reason = self._budget.spend(self._journal.steps, crashed)
        if reason is None:
            return
        if isinstance(error, WorkerTimeout) and error.is_start:
            reason = "no other worker started in time"
        if is_killed:
            reason += (
                "; such a signal comes from another process, from the kernel if memory is short, or from the environment itself"
            )
        if isinstance(error, ProtocolError):
            error.args = (f"{error.args[0]}\n{reason}",)
        else:
            error.reason = reason
        if isinstance(error, BridgeError) and error.report:
            self._reports.on_fault(error)
        raise error

    def _replace(self, part: WorkerSlice, why: str) -> None:
        """A fresh worker with fresh environments in place of a failed one; the more often, the slower."""
        self.restarts += 1
        self._on_event(f"{part.worker.name} is replaced: {why}")
        part.worker.kill()
        sleep(self._budget.back_off_s)
        part.replace(self.spec)

    def _recover(self, part: WorkerSlice, error: Exception, active: NDArray[np.uint8] | None) -> NDArray[np.uint8] | None:
        """Bring the environments of one slice back to where they were before this step; the rows that are to be stepped."""
        self._replace(part, str(error))
        fault_of = {error.where["env"]} if isinstance(error, EnvironmentFault) else set()
        abandoned = self.restoration.rebuild(part, fault_of)
        if abandoned:
            active = np.ones(self._journal.num_envs, np.uint8) if active is None else active.copy()
            active[sorted(abandoned)] = 0
        return active
