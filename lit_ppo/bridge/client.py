"""N environments in other processes, as the trainer sees them: reset, step, survive, close.

The order of one step: actions checked and written, all workers asked, answers awaited, copied into private memory, checked
there (so that what is checked is what is used), written to the journal. A worker that dies, hangs or talks nonsense is
replaced, its environments are replayed from the journal, the replay is compared with what was seen, and the step is asked for
again: the caller gets the same numbers as if nothing had happened.
"""

import dataclasses
import platform
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic, sleep
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lit_ppo import __version__
from lit_ppo.bridge import protocol
from lit_ppo.bridge.journal import Journal, digest_rows, from_text, to_text
from lit_ppo.bridge.process import WorkerProcess, started_worker
from lit_ppo.contract import Contract, ContractSettings, EnvSpec, VectorStep, shown
from lit_ppo.errors import (
    BridgeError,
    ConfigError,
    ContractViolation,
    EnvironmentFault,
    EnvironmentRaised,
    ProtocolError,
    WorkerExited,
)

Vectorization = Literal["sync", "native"]
_HISTORY_BYTES: Final = 64 << 20
_MOST_HISTORY_STEPS: Final = 256
_PROBE_STEPS: Final = 3
# Native environments are saved this often: what a failed worker has to be stepped again is bounded, and so is the journal.
_STEPS_OF_A_SNAPSHOT: Final = 4096
# Digests are worked out while the workers step: of so much at a time that they are done before the workers are.
_BYTES_OF_A_DIGEST: Final = 1 << 15
_BACK_OFF_S: Final = 0.02
_MOST_BACK_OFF_S: Final = 2.0


@dataclass(frozen=True)
class BridgeSettings:
    """How the environment processes are run, and what becomes of a fault.

    Attributes:
        vectorization: `sync` steps N environments of the ordinary kind one after the other; `native` uses Gymnasium's own
            vector version of the environment, where it has one.
        num_workers: Number of processes that share the N environments.
        python: Interpreter of the workers, such as another venv's; None for the trainer's own.
        start_timeout_s: Longest wait for a worker to start and make its environments, seconds.
        step_timeout_s: Longest wait for a reset or step, seconds.
        close_timeout_s: Longest wait for the environments to close; then they are killed, seconds.
        max_restarts: Faults of workers (and, with `on_violation=restart`, of environments) that a run survives in every
            `restart_window` steps; one more ends it.
        restart_window: Steps over which `max_restarts` counts.
        on_violation: `stop` the run when an environment breaks its contract or raises, or `restart`: abandon that episode.
        on_replay_mismatch: What to do when a replayed environment does not come back to where it was: `restart` its episode,
            with a warning, or stop with an `error`.
        sandbox: `strict` takes sockets, signals to other processes and new privileges away from the workers.
        rlimits: Resource limits of a worker by their names in the `resource` module, such as `as` (bytes of address space),
            `nofile`, `fsize`; None for those of the trainer.
        worker_cwd: Working directory of the workers; None for an empty one that is removed at the end.
    """

    vectorization: Vectorization = "sync"
    num_workers: int = 1
    python: str | None = None
    start_timeout_s: float = 60.0
    step_timeout_s: float = 30.0
    close_timeout_s: float = 5.0
    max_restarts: int = 10
    restart_window: int = 10_000
    on_violation: Literal["stop", "restart"] = "stop"
    on_replay_mismatch: Literal["restart", "error"] = "restart"
    sandbox: Literal["off", "strict"] = "off"
    rlimits: dict[str, int] | None = None
    worker_cwd: str | None = None

    def __post_init__(self) -> None:
        for name in ("num_workers", "restart_window"):
            if getattr(self, name) < 1:
                raise ConfigError(f"data.{name}={getattr(self, name)}: expected at least 1")
        for name in ("start_timeout_s", "step_timeout_s", "close_timeout_s"):
            if not 0 < getattr(self, name) < 1e6:
                raise ConfigError(f"data.{name}={getattr(self, name)}: expected a time above 0 s")
        if self.vectorization == "native" and self.on_violation == "restart":
            raise ConfigError("data.on_violation=restart: native environments cannot give up one episode; use sync")
        if self.max_restarts < 0:
            raise ConfigError(f"data.max_restarts={self.max_restarts}: expected at least 0")


class _Slot(NamedTuple):
    """Where one step is kept, as the caller and the journal see it; and the part of it that each worker fills."""

    observations: NDArray[Any]  # (K, N, *obs_shape), as in `protocol.FrameLayout`
    rewards: NDArray[np.float64]
    flags: NDArray[np.uint8]  # (4, N)
    obs: NDArray[Any]  # (N, *obs_shape), to act on next
    next_obs: NDArray[Any]  # (N, *obs_shape), what the step led to
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    parts: list[tuple[NDArray[Any], NDArray[np.float64], NDArray[np.uint8]]]  # observations, rewards and flags


class EnvBridge:
    """N environments of one kind, in `num_workers` processes.

    The processes are spawned at once, boot and make their environments while the caller goes on; the first use waits for them.

    Args:
        env_id: Gymnasium id, or `module:EnvId`.
        num_envs: N.
        episode_seed: Seed of an episode, from the row of its environment and its number there (0, 1, ...).
        env_kwargs: Passed to `gymnasium.make`.
        settings: How processes are run.
        contract: What values must satisfy beyond the rules that always hold.
        on_event: Called with a line of text when something was survived: a restart, an abandoned episode.
        on_fault: Called with each fault of an environment, once it says where it happened and has its report.

    Raises:
        ConfigError: A setting cannot be, or the environment cannot be made or trained on (on first use).
    """

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        episode_seed: Callable[[int, int], int],
        *,
        env_kwargs: dict[str, Any] | None = None,
        settings: BridgeSettings | None = None,
        contract: ContractSettings | None = None,
        on_event: Callable[[str], None] = lambda text: None,
        on_fault: Callable[[EnvironmentFault], None] = lambda fault: None,
    ) -> None:
        self.settings = settings or BridgeSettings()
        if num_envs < 1:
            raise ConfigError(f"num_envs={num_envs}: expected at least 1")
        if num_envs % self.settings.num_workers:
            raise ConfigError(f"num_envs={num_envs}: expected a multiple of data.num_workers={self.settings.num_workers}")
        self.env_id, self.num_envs, self.env_kwargs = env_id, num_envs, dict(env_kwargs or {})
        self.restarts = 0
        self.abandoned_episodes = 0
        self.versions: dict[str, Any] = {}
        self.sandbox_layers: dict[str, Any] = {}
        self._episode_seed, self._contract_settings = episode_seed, contract or ContractSettings()
        self._on_event, self._on_fault = on_event, on_fault
        self._rows_per_worker = num_envs // self.settings.num_workers
        self._is_native = self.settings.vectorization == "native"
        try:
            protocol.encode(self.env_kwargs)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"env_kwargs: expected plain data that JSON can hold: {error}") from error
        self._contract: Contract | None = None
        self._closed = False
        self._start_failure: Exception | None = None
        self._workers = [self._spawn(index) for index in range(self.settings.num_workers)]
        self._episodes = [0] * num_envs
        self._snapshots: list[dict[str, Any]] = [{} for _ in self._workers]
        self._saved_at = 0  # step of the journal
        self._incidents: list[int] = []
        self._last_crash: tuple[int, int] | None = None
        self._steps_before = 0  # steps before the last reset, for what counts over all of them
        self._journal = Journal(num_envs)
        self._was_reset = False

    # -- starting

    def _spawn(self, index: int) -> WorkerProcess:
        """A worker that makes its environments while the caller goes on."""
        rows = self._rows(index)
        worker = started_worker(
            self.settings.python,
            name=f"env worker {index} of {self.settings.num_workers} ({self.env_id})",
            rows=range(rows.start, rows.stop),
            confinement={
                "cwd": self.settings.worker_cwd,
                "rlimits": self.settings.rlimits or {},
                "strict": self.settings.sandbox == "strict",
            },
        )
        worker.post(
            "make",
            self.settings.start_timeout_s,
            env_id=self.env_id,
            num_envs=self._rows_per_worker,
            vectorization=self.settings.vectorization,
            env_kwargs=self.env_kwargs,
        )
        return worker

    def _rows(self, index: int) -> slice:
        return slice(index * self._rows_per_worker, (index + 1) * self._rows_per_worker)

    @property
    def spec(self) -> EnvSpec:
        """What the environment announced; waits for the workers to be up."""
        return self.contract.spec

    @property
    def episodes(self) -> tuple[int, ...]:
        """The number of the episode under way in each environment, from 0 at the reset; those that were given up count."""
        return tuple(self._episodes)

    @property
    def contract(self) -> Contract:
        """The rules that hold for every value; waits for the workers to be up."""
        if self._contract is None:
            if self._start_failure is not None:  # what was announced has been read, and will not come again
                raise self._start_failure
            try:
                self._start()
            except BaseException as failure:
                self._start_failure = failure if isinstance(failure, Exception) else BridgeError("the start was broken off")
                raise
        assert self._contract is not None
        return self._contract

    def _start(self) -> None:
        if self._closed:
            raise ValueError("this bridge is closed")
        specs: dict[int, EnvSpec] = {}
        for index in range(len(self._workers)):
            self._surviving(index, "start", lambda index=index: specs.update({index: self._await_made(index)}))  # type: ignore[misc]
        for index, spec in specs.items():
            if spec != specs[0]:
                raise ContractViolation("spaces", f"the same in every worker: {specs[0]}", f"{spec} in worker {index}")
        self._contract = Contract(specs[0], self._contract_settings, resets_within_step=not self._is_native)
        self._allocate_history(specs[0])

    def _await_made(self, index: int) -> EnvSpec:
        """Wait until a fresh worker has made its environments; what they announce."""
        worker = self._workers[index]
        announced = worker.reply(self.settings.start_timeout_s)
        due = {"protocol": protocol.PROTOCOL_VERSION, "env_id": self.env_id, "num_envs": self._rows_per_worker}
        for key, value in due.items():
            if protocol.take(announced, key, type(value)) != value:
                raise ProtocolError(f"{worker.name}: expected {key} {value}, got {shown(announced[key])}")
        try:
            spec = protocol.spec_from_json(announced)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        worker.worker_pid = protocol.take(announced, "pid", int)
        self.versions = protocol.take(announced, "versions", dict)
        self.sandbox_layers = protocol.take(announced, "sandbox", dict)
        layout = protocol.FrameLayout(self._rows_per_worker, spec.obs_shape, spec.obs_dtype, not self._is_native)
        worker.attach(layout, self.settings.start_timeout_s)
        return spec

    def _allocate_history(self, spec: EnvSpec) -> None:
        n, dtype = self.num_envs, np.dtype(spec.obs_dtype)
        step_bytes = n * (2 * int(np.prod(spec.obs_shape)) * dtype.itemsize + 8 + 4)
        self.history_steps = max(4, min(_MOST_HISTORY_STEPS, _HISTORY_BYTES // step_bytes))
        self._steps_of_a_digest = max(1, min(self.history_steps // 2, _BYTES_OF_A_DIGEST // step_bytes))
        self._observations = np.zeros((self.history_steps, 1 if self._is_native else 2, n, *spec.obs_shape), dtype)
        self._rewards = np.zeros((self.history_steps, n))
        self._flags = np.zeros((self.history_steps, 4, n), np.uint8)
        self._all_active, self._all_valid = np.ones(n, np.uint8), np.ones(n, np.bool_)
        self._none_invalid = bytes(n)
        self._ended_before = self._none_invalid
        self._next_seeds = np.zeros(n, np.int64)
        # views made once: making them costs as much as the copies that go through them
        self._slots = [self._slot(k) for k in range(self.history_steps)]

    def _slot(self, k: int) -> _Slot:
        observations, rewards, flags = self._observations[k], self._rewards[k], self._flags[k]
        terminated, truncated = flags[:2].view(np.bool_)
        rows = [self._rows(index) for index in range(len(self._workers))]
        parts = [(observations[:, part], rewards[part], flags[:, part]) for part in rows]
        return _Slot(observations, rewards, flags, observations[0], observations[-1], terminated, truncated, parts)

    # -- the caller's side

    def reset(self) -> NDArray[Any]:
        """Begin a new episode everywhere; the first observations, shape (N, *obs_shape)."""
        contract = self.contract
        self._refuse_if_closed("reset")
        self._steps_before += self._journal.steps
        self._journal, self._saved_at = Journal(self.num_envs), 0
        self._episodes = [0] * self.num_envs
        self._ended_before = self._none_invalid
        obs = np.empty((self.num_envs, *contract.spec.obs_shape), contract.spec.obs_dtype)
        for env in range(self.num_envs):
            self._journal.seeds[env] = self._episode_seed(env, 0)
            self._next_seeds[env] = self._episode_seed(env, 1)
        self._was_reset = True
        for index in range(len(self._workers)):
            self._surviving(index, "reset", lambda index=index: self._reset_worker(index))  # type: ignore[misc]
            obs[self._rows(index)] = self._workers[index].replied["observations"][0]
        for env in range(self.num_envs):
            self._journal.begin(env, int(self._journal.seeds[env]), obs[env])
        self._last_obs = obs
        return obs

    def _reset_worker(self, index: int) -> None:
        """Begin the journal's episodes in one worker, from their first observations."""
        worker, rows = self._workers[index], self._rows(index)
        seeds: list[int | None] = self._journal.seeds[rows].tolist()
        if self._is_native:
            seeds[1:] = [None] * (len(seeds) - 1)
        try:
            worker.ask("reset", self.settings.step_timeout_s, seeds=seeds)
            self._check_first_obs(worker.replied["observations"][0].copy(), rows)
            if self._is_native:
                self._snapshots[index] = self._prove_snapshot(index)
        except EnvironmentFault as fault:
            located = self._located(fault, index)
            env = located.where["env"]
            self._journal.seeds[env] = self._next_seeds[env]
            self._pass_over(env)
            raise located from None

    def _check_first_obs(self, obs: NDArray[Any], rows: slice) -> None:
        try:
            self.contract.check_observations(obs)
        except ContractViolation as violation:
            env = rows.start + (violation.env or 0)
            component = violation.field.partition(",")[2]
            raise ContractViolation(f"obs[{env},{component}", violation.rule, violation.value, env) from None

    def step(self, actions: NDArray[np.int64], active: NDArray[np.uint8] | None = None) -> VectorStep:
        """One step of all environments, or of those where `active` is 1.

        Args:
            actions: Shape (N,), int64, each in 0..num_actions-1.
            active: Shape (N,), uint8; None for all. Rows that are not active stay where they are and come back as not valid.

        Raises:
            ValueError: The actions, or the moment, are wrong.
            ContractViolation, EnvironmentRaised: The environment is at fault, and `on_violation` says to stop.
            BridgeError, ProtocolError: A worker failed more often than it may.
        """
        if not self._was_reset or self._closed:
            raise ValueError("step: expected reset before the first step, and no step after close")
        self.contract.check_actions(actions)
        if len(actions) != self.num_envs:
            raise ValueError(f"actions: expected shape ({self.num_envs},), got {actions.shape}")
        if active is not None:
            self._check_active(active)
        journal = self._journal
        if self._is_native and journal.steps - self._saved_at >= _STEPS_OF_A_SNAPSHOT:
            self._take_snapshots()
        deadline = monotonic() + self.settings.step_timeout_s
        asked = []
        for index, worker in enumerate(self._workers):
            asked.append(self._ask_step(index, worker, actions, active, deadline))
        if journal.undigested >= self._steps_of_a_digest:
            self._digest()  # the workers are busy now anyway
        slot = self._slots[journal.steps % self.history_steps]
        for index, failure in enumerate(asked):
            active = self._await_step(index, slot, actions, active, failure, deadline)
        while True:
            observations, rewards, flags, obs, next_obs, terminated, truncated, _ = slot
            flag_bytes = flags.tobytes()
            if self._is_native:
                expected_invalid = self._ended_before
            else:
                expected_invalid = self._none_invalid if active is None else (1 - active).tobytes()
            try:
                self.contract.check_values(observations, rewards, flag_bytes, expected_invalid)
                break
            except ContractViolation as violation:
                index = (violation.env or 0) // self._rows_per_worker
                fault = self._located(violation, index, actions)
                active = self._await_step(index, slot, actions, active, fault, deadline)
        journal.append(actions, active)
        ended_bytes = flag_bytes[: 2 * self.num_envs]
        any_ended = b"\x01" in ended_bytes
        if any_ended or self._is_native:
            self._note_endings(obs, terminated | truncated)
        self._last_obs = obs
        all_valid = b"\x01" not in flag_bytes[3 * self.num_envs :]
        valid = self._all_valid if all_valid else flags[3] == 0
        return VectorStep(obs, next_obs, rewards, terminated, truncated, valid, any_ended, all_valid)

    def _check_active(self, active: NDArray[np.uint8]) -> None:
        if self._is_native:
            raise ValueError("step: native environments are stepped all together")
        if active.dtype != np.uint8 or active.shape != (self.num_envs,) or active.tobytes().strip(b"\x00\x01"):
            raise ValueError(f"active: expected uint8 zeros and ones of shape ({self.num_envs},), got {active!r}")

    def _refuse_if_closed(self, what: str) -> None:
        if self._closed:
            raise ValueError(f"{what}: this bridge is closed")

    def _note_endings(self, obs: NDArray[Any], ended: NDArray[np.bool_]) -> None:
        if self._is_native:
            self._ended_before = ended.tobytes()
            return
        for env in np.flatnonzero(ended).tolist():
            self._begin_episode(env, obs[env])

    def _begin_episode(self, env: int, first_obs: NDArray[Any]) -> None:
        """The next episode of `env` has begun, from the seed that was laid ready for it."""
        self._journal.begin(env, int(self._next_seeds[env]), first_obs)
        self._count_episode(env)

    def _count_episode(self, env: int) -> None:
        """The next episode of `env` is the one under way now; the seed of the one after it is laid ready."""
        self._episodes[env] += 1
        self._next_seeds[env] = self._episode_seed(env, self._episodes[env] + 1)

    def _pass_over(self, env: int) -> None:
        """Give up the episode that `env` was to begin: its seed would bring the fault again; the next attempt takes another."""
        self._count_episode(env)
        self.abandoned_episodes += 1

    def _digest(self) -> None:
        """Give the journal the digests it lacks, while the observations are still in the history."""
        while missing := self._journal.undigested:
            first = (self._journal.steps - missing) % self.history_steps
            block = slice(first, min(first + missing, self.history_steps))
            self._journal.add_digests(self._observations[block, -1], self._rewards[block])

    # -- one worker's part of a step

    def _ask_step(
        self,
        index: int,
        worker: WorkerProcess,
        actions: NDArray[np.int64],
        active: NDArray[np.uint8] | None,
        deadline: float,
    ) -> Exception | None:
        """Ask one worker; a failure is returned, to be dealt with once the others are busy."""
        rows = self._rows(index)
        requested = worker.requested
        if not requested:
            return WorkerExited(f"{worker.name} had ended before this step")
        requested["actions"][...] = actions[rows]
        if not self._is_native:
            requested["next_seeds"][...] = self._next_seeds[rows]
            requested["active"][...] = (self._all_active if active is None else active)[rows]
        try:
            worker.ring(deadline)
        except (BridgeError, ProtocolError) as error:
            return error
        return None

    def _await_step(
        self,
        index: int,
        slot: _Slot,
        actions: NDArray[np.int64],
        active: NDArray[np.uint8] | None,
        failure: Exception | None,
        deadline: float,
    ) -> NDArray[np.uint8] | None:
        """Wait for one worker's answer and copy it into `slot`, recovering as often as allowed; the rows really stepped."""
        while True:
            worker = self._workers[index]
            if failure is not None:
                self._judge(index, failure)  # outside the try: what is not to be survived must get out of here
            try:
                if failure is not None:
                    active = self._recover(index, failure, active)
                    deadline = monotonic() + self.settings.step_timeout_s
                    worker = self._workers[index]
                    failure = self._ask_step(index, worker, actions, active, deadline)
                    continue
                worker.await_step(deadline)
                replied = worker.replied
                observations, rewards, flags = slot.parts[index]
                observations[...], rewards[...], flags[...] = replied["observations"], replied["rewards"], replied["flags"]
                return active
            except EnvironmentFault as fault:
                failure = self._located(fault, index, actions)
            except (BridgeError, ProtocolError) as error:
                failure = error

    def _located(
        self, fault: EnvironmentFault, index: int, actions: NDArray[np.int64] | None = None, *, begins: bool = False
    ) -> EnvironmentFault:
        """The fault with what is known of where it happened, and a report from which it can be replayed.

        Args:
            fault: What the environment did.
            index: Of the worker.
            actions: Those of the step in which it did that; None in a reset.
            begins: That reset was to begin the next episode; otherwise, the one that the journal has.
        """
        if fault.where or not isinstance(fault, ContractViolation | EnvironmentRaised):
            return fault
        env = self._rows(index).start if fault.env is None else fault.env
        self._digest()
        past = [] if self._is_native or actions is None else self._journal.episode(env)[0].tolist()
        seed, step = int((self._next_seeds if begins else self._journal.seeds)[env]), len(past)
        fault.where = {"env": env, "episode": self._episodes[env] + begins, "step": step, "seed": seed}
        fault.report = {
            "env_id": self.env_id,
            "env_kwargs": self.env_kwargs,
            "vectorization": self.settings.vectorization,
            "contract": dataclasses.asdict(self._contract_settings),
            "actions": past if actions is None else [*past, int(actions[env])],
            **fault.where,
            "next_seed": self._episode_seed(env, fault.where["episode"] + 1),  # the fault may be in the reset that follows
            "field": fault.field if isinstance(fault, ContractViolation) else fault.during,
            "rule": fault.rule if isinstance(fault, ContractViolation) else "returns without raising",
            "value": fault.value if isinstance(fault, ContractViolation) else fault.exception,
            "traceback": fault.traceback if isinstance(fault, EnvironmentRaised) else None,
            "versions": {**self.versions, "lit_ppo": __version__, "platform": platform.platform()},
        }
        self._on_fault(fault)
        return fault

    # -- surviving

    def _surviving(self, index: int, what: str, attempt: Callable[[], None]) -> None:
        """Run `attempt` on one worker, replacing the worker when it fails."""
        failure: Exception | None = None
        while True:
            try:
                if failure is not None:
                    self._replace(index, f"{what}: {failure}")
                attempt()
                self._last_crash = None  # a crash in what comes next is another one, even before the next step
                return
            except (BridgeError, ProtocolError, EnvironmentFault) as error:
                failure = error
            self._judge(index, failure)

    def _judge(self, index: int, error: Exception) -> None:
        """Whether to go on: bound the restarts, and do not try a third time what has killed a worker twice.

        Raises:
            The error itself, when it is not to be survived.
        """
        if isinstance(error, EnvironmentFault) and (
            self.settings.on_violation == "stop" or self._is_native or "env" not in error.where
        ):
            raise error
        steps = self._steps_before + self._journal.steps
        self._incidents = [step for step in self._incidents if steps - step < self.settings.restart_window] + [steps]
        if len(self._incidents) > self.settings.max_restarts:
            error.args = (
                f"{error.args[0]}\n{len(self._incidents)} faults within {self.settings.restart_window} steps are more than "
                f"data.max_restarts={self.settings.max_restarts}",
            )
            raise error
        if isinstance(error, BridgeError):
            if self._last_crash == (index, steps):
                raise type(error)(f"{error}\nthe same step killed the worker twice: a deterministic crash") from error
            self._last_crash = (index, steps)

    def _replace(self, index: int, why: str) -> None:
        """A fresh worker with fresh environments in place of a failed one; the more often, the slower."""
        old = self._workers[index]
        old.kill()
        self.restarts += 1
        self._on_event(f"{old.name} is replaced: {why}")
        sleep(min(_MOST_BACK_OFF_S, _BACK_OFF_S * (2 ** (len(self._incidents) - 1) - 1)))
        self._workers[index] = self._spawn(index)
        if self._contract is None:
            return  # what is tried again is the start itself
        spec = self._await_made(index)
        if spec != self.spec:
            violation = ContractViolation("spaces", f"those of the first handshake: {self.spec}", str(spec))
            violation.where = {"worker": index}  # not of one row, so that no episode is abandoned for it
            raise violation

    def _recover(self, index: int, error: Exception, active: NDArray[np.uint8] | None) -> NDArray[np.uint8] | None:
        """Bring the environments of one worker back to where they were before this step; the rows that are to be stepped."""
        abandoned: set[int] = {error.where["env"]} if isinstance(error, EnvironmentFault) else set()
        self._replace(index, str(error))
        abandoned |= self._rebuild(index, abandoned)
        if abandoned:
            active = (self._all_active if active is None else active).copy()
            active[sorted(abandoned)] = 0
        return active

    def _rebuild(self, index: int, abandon: set[int]) -> set[int]:
        """Replay the episodes under way in a fresh worker; the rows that begin a new episode instead.

        Args:
            index: Which worker.
            abandon: Rows whose episode is not to be continued.
        """
        if self._is_native:
            return self._rebuild_native(index)
        self._digest()
        rows, worker, journal = self._rows(index), self._workers[index], self._journal
        for env in range(rows.start, rows.stop):
            if journal.lost[env]:
                abandon = abandon | {env}
        kept = [env for env in range(rows.start, rows.stop) if env not in abandon]
        worker.ask("reset", self.settings.step_timeout_s, seeds=journal.seeds[rows].tolist())
        first = digest_rows(worker.replied["observations"][0])
        diverged = {env for env in kept if first[env - rows.start] != journal.first_digests[env]}
        episodes = {env: journal.episode(env) for env in kept}
        longest = max((len(actions) for actions, _ in episodes.values()), default=0)
        for k in range(longest):
            replayed = [env for env in kept if env not in diverged and k < len(episodes[env][0])]
            worker.requested["active"][...] = 0
            for env in replayed:
                worker.requested["active"][env - rows.start] = 1
                worker.requested["actions"][env - rows.start] = episodes[env][0][k]
            deadline = monotonic() + self.settings.step_timeout_s
            worker.ring(deadline)
            worker.await_step(deadline)
            digests = digest_rows(worker.replied["observations"][-1], worker.replied["rewards"])
            ended: NDArray[np.bool_] = np.logical_or.reduce(worker.replied["flags"][:3])
            diverged |= {env for env in replayed if digests[env - rows.start] != episodes[env][1][k] or ended[env - rows.start]}
        if diverged:
            text = (
                f"{self.env_id} is not deterministic: the replay of env {sorted(diverged)} did not come back to what was seen"
            )
            if self.settings.on_replay_mismatch == "error":
                raise self._replay_differs(index, sorted(diverged))
            self._on_event(f"{text}; a new episode begins there")
        self._abandon(index, abandon | diverged)
        return abandon | diverged

    def _replay_differs(self, index: int, envs: list[int]) -> ContractViolation:
        violation = ContractViolation("replay", "the observations and rewards seen before", "others", envs[0])
        violation.where = {"worker": index, "envs": envs}
        return violation

    def _abandon(self, index: int, abandon: set[int]) -> None:
        """Begin new episodes in place of those that are given up."""
        if not abandon:
            return
        rows, worker = self._rows(index), self._workers[index]
        seeds = [int(self._next_seeds[env]) if env in abandon else None for env in range(rows.start, rows.stop)]
        try:
            worker.ask("reset", self.settings.step_timeout_s, seeds=seeds)
            obs = worker.replied["observations"][0].copy()
            self._check_first_obs(obs, rows)
        except EnvironmentFault as fault:
            located = self._located(fault, index, begins=True)
            if located.where["env"] in abandon:
                self._pass_over(located.where["env"])
            raise located from None
        for env in sorted(abandon):
            self._begin_episode(env, obs[env - rows.start])
        self.abandoned_episodes += len(abandon)

    # -- native vector environments: a snapshot, and the steps since

    def _rebuild_native(self, index: int) -> set[int]:
        self._digest()
        rows, worker, journal = self._rows(index), self._workers[index], self._journal
        worker.ask("restore", self.settings.step_timeout_s, state=self._snapshots[index])
        actions, digests = zip(*(journal.episode(env) for env in range(rows.start, rows.stop)), strict=True)
        for k in range(len(actions[0])):
            replayed = self._step_native(worker, np.array([column[k] for column in actions], np.int64))
            if (replayed != np.array([column[k] for column in digests])).any():
                raise self._replay_differs(index, list(range(rows.start, rows.stop)))
        return set()

    def _step_native(self, worker: WorkerProcess, actions: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Step outside the journal; the digests of what came back."""
        worker.requested["actions"][...] = actions
        deadline = monotonic() + self.settings.step_timeout_s
        worker.ring(deadline)
        worker.await_step(deadline)
        return digest_rows(worker.replied["observations"][-1], worker.replied["rewards"])

    def _prove_snapshot(self, index: int) -> dict[str, Any]:
        """A snapshot that is known to work: the environment was put back to it, and went the same way again."""
        worker = self._workers[index]
        snapshot = self._snapshot(index)
        actions = np.zeros(self._rows_per_worker, np.int64)
        seen = [self._step_native(worker, actions) for _ in range(_PROBE_STEPS)]
        worker.ask("restore", self.settings.step_timeout_s, state=snapshot)
        again = [self._step_native(worker, actions) for _ in range(_PROBE_STEPS)]
        worker.ask("restore", self.settings.step_timeout_s, state=snapshot)
        if not np.array_equal(seen, again):
            raise ConfigError(f"data.vectorization=native: {self.env_id} cannot be saved as plain data; use sync")
        return snapshot

    def _snapshot(self, index: int) -> dict[str, Any]:
        state: dict[str, Any] = protocol.take(self._workers[index].ask("save", self.settings.step_timeout_s), "state", dict)
        return state

    def _take_snapshots(self) -> None:
        """Save native environments; their journal begins anew."""
        snapshots: list[dict[str, Any]] = []
        for index, worker in enumerate(self._workers):

            def save(index: int = index, worker: WorkerProcess = worker) -> None:
                if self._workers[index] is not worker:  # it failed, and its successor is fresh
                    self._rebuild_native(index)
                snapshots.append(self._snapshot(index))

            self._surviving(index, "save", save)
        self._snapshots = snapshots
        self._journal.begin_all()
        self._saved_at = self._journal.steps

    # -- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Where all episodes are, as plain data; after `reset`, between steps."""
        if not self._was_reset:
            raise ValueError("state_dict: expected reset before this")
        if self._is_native:
            self._take_snapshots()
        state: dict[str, Any] = {
            "env_id": self.env_id,
            "num_envs": self.num_envs,
            "vectorization": self.settings.vectorization,
            "num_workers": self.settings.num_workers,
            "episodes": list(self._episodes),
            "obs": to_text(self._last_obs.tobytes()),
            "restarts": self.restarts,
            "abandoned_episodes": self.abandoned_episodes,
        }
        if self._is_native:
            state["snapshots"], state["ended"] = self._snapshots, to_text(self._ended_before)
        else:
            self._digest()
            state["journal"] = self._journal.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> NDArray[Any]:
        """Bring fresh workers to where `state_dict` was taken; the observations to act on, shape (N, *obs_shape).

        Raises:
            ConfigError: The state is of other environments; the message says what differs.
        """
        self._refuse_if_closed("load_state_dict")
        workers = {"num_workers": self.settings.num_workers} if self._is_native else {}
        for key, mine in {
            "env_id": self.env_id,
            "num_envs": self.num_envs,
            "vectorization": self.settings.vectorization,
            **workers,
        }.items():
            if state[key] != mine:
                raise ConfigError(f"data.{key}={mine}: the checkpoint holds episodes with {key}={state[key]}; use that")
        spec, obs_bytes = self.spec, from_text(state["obs"])
        self._episodes = list(state["episodes"])
        self.restarts, self.abandoned_episodes = state["restarts"], state["abandoned_episodes"]
        self._next_seeds[:] = [self._episode_seed(env, episode + 1) for env, episode in enumerate(self._episodes)]
        seen = np.frombuffer(obs_bytes, spec.obs_dtype).reshape(self.num_envs, *spec.obs_shape)
        self._steps_before += self._journal.steps
        self._journal, self._saved_at = Journal(self.num_envs), 0
        self._was_reset = True
        if self._is_native:
            self._snapshots, self._ended_before = state["snapshots"], from_text(state["ended"])
        else:
            self._journal.load_state_dict(state["journal"])
        obs = np.empty_like(seen)
        for index in range(len(self._workers)):
            self._surviving(index, "resume", lambda index=index: self._resume(index, seen))  # type: ignore[misc]
            obs[self._rows(index)] = self._workers[index].replied["observations"][0]
        self._last_obs = self.contract.check_observations(obs)
        return obs

    def _resume(self, index: int, seen: NDArray[Any]) -> None:
        """Replay one worker's episodes; the last observation must be the one that was saved, bit for bit."""
        rows = self._rows(index)
        begun = self._rebuild(index, set())
        replayed = self._workers[index].replied["observations"][0].copy()
        for env in range(rows.start, rows.stop):
            if env not in begun and replayed[env - rows.start].tobytes() != seen[env].tobytes():
                raise ContractViolation(f"obs[{env}]", "the observation of the checkpoint, bit for bit", "another", env)

    # -- the end

    def close(self) -> None:
        """Let the environments close and end all processes; never raises, and may be called again."""
        self._closed = True
        for worker in self._workers:
            worker.close(self.settings.close_timeout_s)

    def __enter__(self) -> "EnvBridge":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
