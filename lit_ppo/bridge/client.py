"""N environments in other processes, as the trainer sees them: reset, step, survive, close.

The order of one step: actions checked and written, all workers asked, answers awaited, copied into private memory and checked
there, written to the journal. A worker that dies, hangs or breaks the protocol is replaced, its environments are restored, the
restoration is compared with what was seen, and the step is asked for again: the caller gets the same numbers as if nothing had
happened.
"""

import dataclasses
from collections.abc import Callable
from time import monotonic, perf_counter
from typing import Any
from weakref import proxy

import numpy as np
from numpy.typing import NDArray

from lit_ppo.bridge.checkpoint import BridgeMark, require_same_environments, restored_rows
from lit_ppo.bridge.episodes import Episodes
from lit_ppo.bridge.faults import require_outside_environments
from lit_ppo.bridge.history import History
from lit_ppo.bridge.journal import Journal
from lit_ppo.bridge.pool import WorkerPool
from lit_ppo.bridge.recovery import Recovery
from lit_ppo.bridge.reports import Fault, FaultReports
from lit_ppo.bridge.restoration import RESTORATIONS, Recorded, Restoration
from lit_ppo.bridge.settings import BridgeSettings, EnvironmentSettings
from lit_ppo.bridge.worker_slice import StartWorker, WorkerSlice
from lit_ppo.contract import Contract, ContractSettings, VectorStep
from lit_ppo.errors import BridgeError, ConfigError, ContractViolation, EnvironmentFault
from lit_ppo.spaces import EnvSpec, Leaves, Row


class EnvBridge:
    """N environments of one kind, in one or several processes.

    The processes are spawned at once, boot and make their environments while the caller goes on; the first use waits for them.

    Args:
        environment: What to make; an id alone has the default settings.
        num_envs: N.
        episode_seed: Seed of an episode, from the row of its environment and its number there (0, 1, ...).
        settings: How processes are run.
        contract: Demands on values beyond the rules that always hold.
        phase: Which part of the run the environments are for, `training` or `evaluation`: in messages and reports.
        on_event: Called with a line of text after a restart or an abandoned episode, and for what the environments print.
        on_warning: Called with the contract's warning (see `ContractSettings.check_membership`); None for `on_event`.
        on_fault: Called with each fault of an environment, and with a failure of a worker that ends the run, once it has its
            place and its report.
        start_worker: Starts a worker; None for what `settings.bridge` says.

    Raises:
        ConfigError: A setting is invalid, or the environment cannot be made or trained on (on first use).
    """

    def __init__(
        self,
        environment: EnvironmentSettings | str,
        num_envs: int,
        episode_seed: Callable[[int, int], int],
        *,
        settings: BridgeSettings | None = None,
        contract: ContractSettings | None = None,
        phase: str = "training",
        on_event: Callable[[str], None] = lambda text: None,
        on_warning: Callable[[str], None] | None = None,
        on_fault: Callable[[Fault], None] = lambda fault: None,
        start_worker: StartWorker | None = None,
    ) -> None:
        require_outside_environments("EnvBridge")
        self.settings = settings or BridgeSettings()
        if num_envs < 1:
            raise ConfigError(f"num_envs={num_envs}: expected at least 1")
        if num_envs % self.settings.first_workers:
            raise ConfigError(f"num_envs={num_envs}: expected a multiple of data.num_workers={self.settings.num_workers}")
        if not isinstance(environment, EnvironmentSettings):
            environment = EnvironmentSettings(environment)
        if self.settings.bridge == "process":
            environment.require_known_elsewhere()
        self.environment, self.num_envs = environment, num_envs
        self._contract_settings = contract or ContractSettings()
        self._on_event, self._on_warning = on_event, on_warning or on_event
        self._journal, self._episodes = Journal(num_envs), Episodes(num_envs, episode_seed)
        self._identity = {
            **dataclasses.asdict(environment),
            "num_envs": num_envs,
            "vectorization": self.settings.vectorization,
            "num_workers": self.settings.first_workers,
        }
        run = {
            **dataclasses.asdict(environment),
            "processes": dataclasses.asdict(self.settings),
            "contract": dataclasses.asdict(self._contract_settings),
        }
        self._reports = FaultReports(phase, run, self._episodes, self._journal, on_fault)
        self._recovery = Recovery(self.settings, self._journal, self._reports, on_event)
        self._restoration_kind = RESTORATIONS[self.settings.vectorization]
        self._contract: Contract | None = None
        self._start_failure: Exception | None = None
        self._is_closed = self._was_reset = False
        self._pool = WorkerPool(environment, num_envs, self.settings, phase, on_event, start_worker)
        self.slices = self._pool.start(self.settings.first_workers)

    # -- what is known

    @property
    def spec(self) -> EnvSpec:
        """What the environment announced; waits for the workers to be up."""
        return self.contract.spec

    @property
    def history_steps(self) -> int:
        """For how many steps the arrays of a `VectorStep` stay as they are."""
        return self._history.steps

    @property
    def episodes(self) -> tuple[int, ...]:
        """The number of the episode under way in each environment, from 0 at the reset; abandoned ones count."""
        return tuple(self._episodes.numbers)

    @property
    def restarts(self) -> int:
        """How many workers were replaced."""
        return self._recovery.restarts

    @property
    def abandoned_episodes(self) -> int:
        """How many episodes were given up."""
        return self._episodes.given_up

    @property
    def versions(self) -> dict[str, Any]:
        """Versions of Python and its packages in the workers."""
        return self.slices[0].versions

    @property
    def sandbox_layers(self) -> dict[str, Any]:
        """Each layer of the sandbox: `on`, or why it is off."""
        return self.slices[0].sandbox_layers

    @property
    def contract(self) -> Contract:
        """The rules that hold for every value; waits for the workers to be up."""
        self._ensure_started()
        assert self._contract is not None
        return self._contract

    def _ensure_started(self) -> None:
        if self._contract is None:
            if self._start_failure is not None:  # the announcement has been read, and will not come again
                raise self._start_failure
            try:
                self._start()
            except BaseException as failure:
                interrupted = BridgeError("starting the environments was interrupted")
                self._start_failure = failure if isinstance(failure, Exception) else interrupted
                raise

    def _start(self) -> None:
        if self._is_closed:
            raise ValueError("this bridge is closed")
        specs: dict[int, EnvSpec] = {}
        for part in self.slices:
            self._recovery.retry(part, "start", lambda part=part: specs.update({part.index: part.await_made()}))  # type: ignore[misc]
        for index, spec in specs.items():
            if spec != specs[0]:
                raise ContractViolation("spaces", f"the same in every worker: {specs[0]}", f"{spec} in worker {index}")
        self._reports.versions = self.versions
        resets_within_step = self._restoration_kind.resets_within_step
        contract = Contract(
            specs[0], self._contract_settings, resets_within_step=resets_within_step, on_warning=self._on_warning
        )
        action = specs[0].action
        self._journal.hold_actions(action.shape, np.dtype(action.dtype))
        self._contract, self._recovery.spec = contract, specs[0]
        self._all_valid = np.ones(self.num_envs, np.bool_)
        self._record(self.slices)

    def _record(self, slices: list[WorkerSlice]) -> None:
        """Use these workers from now on."""
        contract = self._contract
        assert contract is not None
        self.slices, row = slices, Row(contract.spec.observation)
        resets_within_step = self._restoration_kind.resets_within_step
        self._history = History(row, self.num_envs, resets_within_step, [part.rows for part in slices], self._journal)
        self._recorded = Recorded(
            self.environment.env_id,
            self.settings,
            slices,
            row,
            self._journal,
            self._history,
            self._episodes,
            self._reports,
            contract,
            self._on_event,
            self._recovery.retry,
        )
        self._restoration: Restoration = self._restoration_kind(self._recorded)
        # weakly: a bridge that is no longer used would wait for the garbage collector, with all of its history
        self._recovery.restoration = proxy(self._restoration)

    def share_cores(self, num_cores: int) -> None:
        """Count on these cores only for the workers that `num_workers=auto` may add."""
        self._pool.share_cores(num_cores)

    # -- reset and step

    def reset(self) -> Leaves:
        """Begin a new episode everywhere; the first observations by path, shape (N, *shape) each."""
        self._ensure_started()
        self._refuse_if_closed("reset")
        self._journal.begin_all()
        self._episodes.start([0] * self.num_envs)
        self._journal.seeds[:] = [self._episodes.seed_of(env, 0) for env in range(self.num_envs)]
        rows = np.empty((self.num_envs, self._recorded.row.size), np.uint8)
        self._was_reset = True
        for part in self.slices:
            self._recovery.retry(part, "reset", lambda part=part: self._reset_slice(part))  # type: ignore[misc]
            rows[part.rows] = part.obs_rows()
        self._journal.begin(range(self.num_envs), self._journal.seeds, rows)
        self._last_rows = rows
        return self._recorded.row.views(rows)

    def _reset_slice(self, part: WorkerSlice) -> None:
        """Begin the journal's episodes in one worker, from their first observations."""
        try:
            self._recorded.check_first_obs(part, part.reset(self._restoration.first_seeds(part)))
            self._restoration.after_reset(part)
        except (EnvironmentFault, BridgeError) as fault:
            self._reports.complete(fault, part, [])
            if isinstance(fault, EnvironmentFault) and "env" in fault.where:
                env = fault.where["env"]
                self._journal.seeds[env] = self._episodes.next_seeds[env]
                self._episodes.skip(env)
            raise

    def step(self, actions: NDArray[Any], active: NDArray[np.uint8] | None = None) -> VectorStep:
        """One step of all environments, or of those where `active` is 1.

        Args:
            actions: Shape (N, *shape) in the dtype of the action leaf, in the environment's own numbering.
            active: Shape (N,), uint8; None for all. Rows that are not active stay where they are and come back as not valid.

        Raises:
            ValueError: The actions are invalid, or this is not the moment to step.
            ContractViolation, EnvironmentRaised: The environment is at fault, and `on_violation` says to stop.
            BridgeError, ProtocolError: A worker failed more often than it may.
        """
        if not self._was_reset or self._is_closed:
            raise ValueError("step: expected reset before the first step, and no step after close")
        contract, journal, restoration = self._recorded.contract, self._journal, self._restoration
        contract.check_actions(actions)
        if len(actions) != self.num_envs:
            raise ValueError(f"actions: expected {self.num_envs} of them, got {len(actions)}")
        next_seeds, rows = restoration.before_step(active)
        start = perf_counter()
        deadline = monotonic() + self.settings.step_timeout_s
        failures = [part.ask_step(actions, next_seeds, rows, deadline) for part in self.slices]
        self._history.digest_when_due()  # the workers are busy now anyway
        slot = self._history.slot()
        for part, failure in zip(self.slices, failures, strict=True):
            active = self._recovery.await_step(part, slot, actions, active, failure, deadline)
        while True:
            flags = slot.flags.tobytes()
            any_ended = 1 in flags[: 2 * self.num_envs]
            if any_ended and restoration.resets_within_step:
                for part in self.slices:
                    part.copy_final_rows(slot)
            expected_invalid = restoration.expected_invalid(active)
            try:
                ended = contract.check_values(slot.obs, slot.final_obs, slot.rewards, flags, expected_invalid)
                break
            except ContractViolation as violation:
                env = violation.env or 0
                part = self.slices[env * len(self.slices) // self.num_envs]
                violation.in_next_reset = bool(slot.flags[2, env]) and violation.field.startswith("obs")
                self._recovery.complete(violation, part, actions)
                active = self._recovery.await_step(part, slot, actions, active, violation, deadline)
        journal.append(actions, active)
        restoration.after_step(slot, ended)
        self._last_rows = slot.rows
        if self._pool.is_measuring and (more := self._pool.after_step(perf_counter() - start, self._recorded)) is not None:
            self._record(more)
        all_valid = 1 not in flags[3 * self.num_envs :]
        valid = self._all_valid if all_valid else ~slot.invalid
        return VectorStep(slot.obs, slot.final_obs, slot.rewards, slot.terminated, slot.truncated, valid, any_ended, all_valid)

    def _refuse_if_closed(self, call: str) -> None:
        if self._is_closed:
            raise ValueError(f"{call}: this bridge is closed")

    # -- checkpoints

    def mark(self) -> BridgeMark:
        """This moment, between steps and after `reset`; `state_dict` can be asked for it as long as it is kept."""
        if not self._was_reset:
            raise ValueError("mark: expected reset before this")
        return BridgeMark(
            self._journal.mark(),
            self._restoration.mark(),
            self._last_rows.copy(),
            list(self._episodes.numbers),
            self.restarts,
            self.abandoned_episodes,
        )

    def state_dict(self, mark: BridgeMark | None = None) -> dict[str, Any]:
        """Where all episodes were at `mark`, or are now, as plain data."""
        if mark is None:
            if not self._was_reset:
                raise ValueError("state_dict: expected reset before this")
            self._restoration.before_save()
            mark = self.mark()
        self._history.digest()
        return mark.state_dict(self._identity, self._journal, self._restoration)

    def load_state_dict(self, state: dict[str, Any]) -> Leaves:
        """Bring fresh workers to where `state_dict` was taken; the observations to act on, as `reset` returns them.

        Raises:
            ConfigError: The state is of other environments; the message says what differs.
        """
        self._refuse_if_closed("load_state_dict")
        require_same_environments(state, self._identity, self._restoration_kind.fixed_settings)
        self._ensure_started()
        self._recovery.restarts, self._was_reset = state["restarts"], True
        self._last_rows = restored_rows(state, self._recorded, self._restoration)
        return self.contract.check_observations(self._recorded.row.views(self._last_rows))

    # -- the end

    def close(self) -> None:
        """Let the environments close and end all processes; never raises, and may be called again."""
        self._is_closed = True
        for part in self.slices:
            part.worker.close(self.settings.close_timeout_s)

    def __enter__(self) -> "EnvBridge":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
