"""How the environment processes are run."""

from dataclasses import dataclass
from typing import Any, Literal

from lit_ppo.errors import ConfigError

Vectorization = Literal["sync", "native"]


@dataclass(frozen=True)
class EnvironmentSettings:
    """Which environment is made, and which parts of its observations are used.

    Attributes:
        env_id: Gymnasium id, or `module:EnvId`.
        env_kwargs: Passed to `gymnasium.make`.
        obs_keys: Names of the parts of a Dict or Tuple observation that are used; None for all.
        action_mask: Where the environment says which actions are possible: `info:KEY` or `obs:PATH`; None for nowhere.
    """

    env_id: str
    env_kwargs: dict[str, Any]
    obs_keys: list[str] | None = None
    action_mask: str | None = None


@dataclass(frozen=True)
class BridgeSettings:
    """How the environment processes are run, and how faults are handled.

    Attributes:
        vectorization: `sync` steps N environments of the ordinary kind one after the other; `native` uses Gymnasium's own
            vector version of the environment, where it has one.
        bridge: `process` runs the environments in processes of their own; `inprocess` runs them inside the training process,
            for a debugger or a notebook: nothing isolates the run from them, and no wait for them has a limit.
        num_workers: Number of processes that share the N environments; `auto` begins with one and uses more if the first steps
            show that the environments take long and there are cores for them. The results are the same.
        python: Interpreter of the workers, such as another venv's; None for the trainer's own.
        start_timeout_s: Longest wait for a worker to start and make its environments, seconds.
        step_timeout_s: Longest wait for a reset or step, seconds.
        close_timeout_s: Longest wait for the environments to close; then they are killed, seconds.
        max_restarts: Faults of workers (and, with `on_violation=restart`, of environments) that a run survives in every
            `restart_window` steps; one more ends it.
        restart_window: Steps over which `max_restarts` counts.
        on_violation: What follows when an environment breaks its contract or raises: `stop` the run, or `restart`: give up
            that episode and go on.
        on_replay_mismatch: What follows when the replay of an episode differs from the recorded one: `restart` it with a
            warning, or stop with an `error`.
        sandbox: `strict` denies the workers sockets, signals to other processes and new privileges.
        rlimits: Resource limits of a worker by their names in the `resource` module, such as `as` (bytes of address space),
            `nofile`, `fsize`; None for those of the trainer.
        worker_cwd: Working directory of the workers; None for an empty one that is removed at the end.
        show_output: Show what the environments print, each line behind the name of its worker. The last lines are shown with
            every fault anyway.
    """

    vectorization: Vectorization = "sync"
    bridge: Literal["process", "inprocess"] = "process"
    num_workers: int | Literal["auto"] = "auto"
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
    show_output: bool = False

    @property
    def first_workers(self) -> int:
        """Number of workers at the start."""
        return 1 if self.num_workers == "auto" else self.num_workers

    def __post_init__(self) -> None:
        for name, value in {"num_workers": self.first_workers, "restart_window": self.restart_window}.items():
            if value < 1:
                raise ConfigError(f"data.{name}={value}: expected at least 1")
        for name in ("start_timeout_s", "step_timeout_s", "close_timeout_s"):
            if not 0 < getattr(self, name) < 1e6:
                raise ConfigError(f"data.{name}={getattr(self, name)}: expected a time above 0 s")
        if self.vectorization == "native" and self.on_violation == "restart":
            raise ConfigError("data.on_violation=restart: native environments cannot give up one episode; use sync")
        if self.max_restarts < 0:
            raise ConfigError(f"data.max_restarts={self.max_restarts}: expected at least 0")
        if self.bridge == "inprocess":
            needs_process = {
                "num_workers": self.first_workers > 1,
                "python": self.python is not None,
                "sandbox": self.sandbox != "off",
                "rlimits": bool(self.rlimits),
                "worker_cwd": self.worker_cwd is not None,
            }
            for name, is_set in needs_process.items():
                if is_set:
                    raise ConfigError(f"data.{name}={getattr(self, name)}: needs a process; use data.bridge=process")
