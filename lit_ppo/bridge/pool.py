"""The workers of a bridge: how they are started, and how they become more."""

import dataclasses
import os
from collections.abc import Callable
from typing import Final

from lit_ppo.bridge.dealing import Dealing
from lit_ppo.bridge.inprocess import started_in_process
from lit_ppo.bridge.process import started_worker
from lit_ppo.bridge.restoration import RESTORATIONS, Recorded
from lit_ppo.bridge.settings import BridgeSettings, EnvironmentSettings
from lit_ppo.bridge.worker_slice import StartWorker, WorkerSlice
from lit_ppo.errors import BridgeError, ConfigError, ContractViolation, EnvironmentFault, ProtocolError

_STARTERS: Final[dict[str, StartWorker]] = {"process": started_worker, "inprocess": started_in_process}


class WorkerPool:
    """Starts the workers that share N environments, and more of them once it is known that this pays.

    Args:
        environment: What they make.
        num_envs: N.
        settings: How they are run.
        phase: Which part of the run the environments are for: in the workers' names.
        on_event: Called with a line of text if more workers cannot be used, and for what the environments print.
        start_worker: Starts a worker; None for what `settings.bridge` says.
    """

    def __init__(
        self,
        environment: EnvironmentSettings,
        num_envs: int,
        settings: BridgeSettings,
        phase: str,
        on_event: Callable[[str], None],
        start_worker: StartWorker | None,
    ) -> None:
        self._environment, self._num_envs, self._settings = environment, num_envs, settings
        self._phase, self._on_event = phase, on_event
        self._start_worker = start_worker or _STARTERS[settings.bridge]
        self._restoration_kind = RESTORATIONS[settings.vectorization]
        is_open = settings.num_workers == "auto" and settings.vectorization == "sync" and settings.bridge == "process"
        self._dealing = Dealing(num_envs, len(os.sched_getaffinity(0))) if is_open else None

    def start(self, num_workers: int) -> list[WorkerSlice]:
        """Deal the environments out to fresh workers."""
        return [
            WorkerSlice(
                f"{self._phase} worker {index} of {num_workers} ({self._environment.env_id})",
                index,
                self._num_envs // num_workers,
                self._environment,
                self._settings,
                self._restoration_kind.resets_within_step,
                self._start_worker,
                self._on_event,
            )
            for index in range(num_workers)
        ]

    @property
    def is_measuring(self) -> bool:
        """Whether it is still open how many workers there will be."""
        return self._dealing is not None

    def share_cores(self, num_cores: int) -> None:
        """Count on these cores only, since other ranks use the others."""
        if self._dealing is not None:
            self._dealing.num_cores = num_cores

    def after_step(self, step_s: float, recorded: Recorded) -> list[WorkerSlice] | None:
        """Take in how long a step took, and start more workers when it is known that this pays.

        Args:
            step_s: Seconds that all environments took for one step.
            recorded: The run's records, and the worker that hosts the environments now.

        Returns:
            The workers that host the environments from now on; None if those of `recorded` do.
        """
        assert self._dealing is not None
        num_workers = self._dealing.workers_after(step_s)
        if num_workers is None:
            return None
        self._dealing = None
        if num_workers == 1 or recorded.journal.lost.any():
            return None
        return self._moved_to(num_workers, recorded)

    def _moved_to(self, num_workers: int, recorded: Recorded) -> list[WorkerSlice] | None:
        """Restore all environments in several fresh workers; None if that fails, and the old one goes on."""
        recorded.history.digest()
        strict = dataclasses.replace(self._settings, on_replay_mismatch="error")  # no episode is given up for this
        slices, is_done = self.start(num_workers), False
        restoration = self._restoration_kind(dataclasses.replace(recorded, slices=slices, settings=strict))
        try:
            for part in slices:
                if (spec := part.await_made()) != recorded.contract.spec:
                    raise ContractViolation("spaces", f"those of the first worker: {recorded.contract.spec}", str(spec))
            for part in slices:
                restoration.rebuild(part, set())
            is_done = True
        except (BridgeError, ProtocolError, EnvironmentFault, ConfigError) as error:
            self._on_event(f"data.num_workers=auto: one worker goes on alone, since {num_workers} cannot be used: {error}")
        finally:  # also after an interrupt
            for part in recorded.slices if is_done else slices:
                part.worker.close(self._settings.close_timeout_s)
        return slices if is_done else None
