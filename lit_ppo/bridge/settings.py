"""Which environments are made, and how their processes are run."""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final, Literal

from lit_ppo.errors import ConfigError, shown

LARGEST_COUNT: Final = 1_000_000  # of environments, steps of a rollout, episodes: more is a slip of the hand
EVALUATION_LIMIT: Final = 30_000  # steps of a greedy episode that nothing else ends: longer than any game of Atari (27,000)
_MOST_WORKERS: Final = 1024
Vectorization = Literal["sync", "native"]
SandboxLevel = Literal["off", "best-effort", "strict", "isolated"]


@dataclass(frozen=True)
class EnvironmentSettings:
    """Which environment is made, and what is seen of it: plain data, as it stands in requests, reports and checkpoints.

    Attributes:
        env_id: Gymnasium id, `module:EnvId` or `module:factory`.
        env_kwargs: Passed to `gymnasium.make`, or to the factory.
        wrappers: Applied one after the other: import paths, or mappings with `class_path` and `init_args`; None for none.
        max_episode_steps: Time limit outside all wrappers, in steps of the agent, instead of the environment's own. If there is
            neither, episodes for evaluation end after `EVALUATION_LIMIT` steps, those of training never.
        frame_stack: Number of observations that are joined to one; None for the newest alone.
        obs_keys: Names of the parts of a Dict or Tuple observation that are used; None for all.
        action_mask: Where the environment says which actions are possible: `info:KEY`, `obs:PATH`, or `call:METHOD` (that of
            sb3-contrib is `call:action_masks`); None for nowhere.
        env_path: Directories, or one, from which the worker imports modules first; None for none.
        remake_each_episode: Make the environment anew for every episode, if it keeps something from one episode to the next.
        is_training: Whether it is made for training or for evaluation, for wrappers that want to know.

    Raises:
        ConfigError: A setting is invalid.
    """

    env_id: str
    env_kwargs: dict[str, Any] | None = None
    wrappers: list[str | dict[str, Any]] | None = None
    max_episode_steps: int | None = None
    frame_stack: int | None = None
    obs_keys: list[str] | None = None
    action_mask: str | None = None
    env_path: list[str] | str | None = None
    remake_each_episode: bool = False
    is_training: bool = True

    def __post_init__(self) -> None:
        if type(self.env_id) is not str:
            raise ConfigError(_not_an_id(self.env_id))
        if isinstance(self.env_path, str):
            object.__setattr__(self, "env_path", [self.env_path])
        for name, kinds in _KINDS.items():
            value = getattr(self, name)
            if value is not None and type(value) is not kinds:
                raise ConfigError(f"data.{name}={shown(value)}: expected {_IN_WORDS[kinds]} or null")
            try:
                json.dumps(value, allow_nan=False)
            except (TypeError, ValueError) as error:
                raise ConfigError(f"data.{name}: expected plain data that JSON can hold: {error}") from error
        for wrapper in self.wrappers or []:
            if not _is_wrapper(wrapper):
                raise ConfigError(
                    f"data.wrappers: expected import paths, or mappings with class_path and init_args, got {shown(wrapper)}"
                )
        for name in ("max_episode_steps", "frame_stack"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"data.{name}={value}: expected at least 1")
            if value is not None and value >= 1 << 31:
                raise ConfigError(f"data.{name}={value}: expected less than 2^31")
        if type(self.remake_each_episode) is not bool:
            raise ConfigError(f"data.remake_each_episode={shown(self.remake_each_episode)}: expected true or false")
        if self.env_path is not None:  # absolute, since the worker has another working directory
            for entry in self.env_path:
                if not os.path.isdir(entry):
                    raise ConfigError(f"data.env_path={entry}: expected a directory")
            object.__setattr__(self, "env_path", [os.path.abspath(entry) for entry in self.env_path])

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "EnvironmentSettings":
        """Those in a request, report or checkpoint; what is missing there, as in an old one, has its default."""
        return cls(**{field.name: record[field.name] for field in fields(cls) if field.name in record})

    @property
    def modules(self) -> list[str]:
        """Top-level names of the modules that the environment and its wrappers are imported from, as far as they are named."""
        paths = [wrapper["class_path"] if isinstance(wrapper, dict) else wrapper for wrapper in self.wrappers or []]
        return sorted({path.partition(".")[0] for path in (self.env_id.rpartition(":")[0], *paths) if path})

    def require_known_elsewhere(self) -> None:
        """Refuse an environment that is known in this process alone, where another process cannot find it.

        Raises:
            ConfigError: Says where to move it, or what to write.
        """
        gymnasium = sys.modules.get("gymnasium")  # if it is not imported, nothing is registered here
        spec = getattr(gymnasium, "registry", {}).get(self.env_id)
        entry: Any = getattr(spec, "entry_point", None)
        entry = getattr(entry, "func", entry)  # of a functools.partial
        module = entry.partition(":")[0] if isinstance(entry, str) else str(getattr(entry, "__module__", "gymnasium"))
        named, _, name = self.env_id.rpartition(":")
        if "__main__" in (module, named):
            raise ConfigError(
                f"data.env_id={self.env_id}: it is made in __main__ (a script or notebook), which environment processes do not "
                f"run; move it, and its gymnasium.register, into a file my_env.py, and write env_id=my_env:{name}"
            )
        if module.partition(".")[0] != "gymnasium" and package_of(self.env_id) is None:
            raise ConfigError(
                f"data.env_id={self.env_id}: it is registered in this process only; write env_id={module}:{self.env_id}, "
                "the module that registers it, which the environment processes then import"
            )


_KINDS = {
    "env_kwargs": dict,
    "wrappers": list,
    "max_episode_steps": int,
    "frame_stack": int,
    "obs_keys": list,
    "action_mask": str,
    "env_path": list,
}
_IN_WORDS = {dict: "a mapping", list: "a list", int: "an integer", str: "text"}
# What an id begins with, and the package that has to be imported for it.
_PACKAGES = {"ALE/": "ale_py", "MiniGrid-": "minigrid", "BabyAI-": "minigrid", "highway-": "highway_env"}


def package_of(env_id: str) -> str | None:
    """The package that registers a well-known environment; None if Gymnasium itself does, or a module is named."""
    return next((package for prefix, package in _PACKAGES.items() if env_id.startswith(prefix)), None)


def _is_wrapper(value: object) -> bool:
    if isinstance(value, dict):
        arguments = value.get("init_args") or {}
        return value.keys() <= {"class_path", "init_args"} and type(value.get("class_path")) is str and type(arguments) is dict
    return type(value) is str


def _not_an_id(value: object) -> str:
    """Why an object cannot be an `env_id`, and what to write."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", "<")
    is_importable = callable(value) and module not in (None, "__main__") and name.isidentifier()
    path = f"{module}:{name}" if is_importable else "my_env:make, a function of a file my_env.py that returns the environment"
    return f"data.env_id={shown(value)}: expected text, since environments are made in another process; write env_id={path}"


@dataclass(frozen=True)
class BridgeSettings:
    """How the environment processes are run, and how faults are handled.

    Attributes:
        vectorization: `sync` steps N environments of the ordinary kind one after the other; `native` uses Gymnasium's own
            vector version of the environment, where it has one.
        bridge: `process` runs the environments in processes of their own; `inprocess` runs them inside the training process,
            for a debugger or a notebook: nothing isolates the run from them, and no wait for them has a limit.
        num_workers: Number of processes that share the N environments; `auto` begins with one and uses more if the first steps
            show that the environments take long and there are cores for them. Evaluation has as many of its own, or fewer, so
            that they share its environments evenly. The results are the same.
        python: Interpreter of the workers, such as another venv's; None for the trainer's own.
        start_timeout_s: Longest wait for a worker to start and make its environments, seconds.
        step_timeout_s: Longest time that one environment may take for a reset, or for a step and the reset after it, seconds;
            native environments together.
        close_timeout_s: Longest wait for the environments to close; then they are killed, seconds.
        max_restarts: Faults of workers (and, with `on_violation=restart`, of environments) that a run survives in every
            `restart_window` steps; one more ends it.
        restart_window: Steps over which `max_restarts` counts.
        on_violation: What follows when an environment breaks its contract or raises: `stop` the run, or `restart`: give up
            that episode and go on.
        on_replay_mismatch: What follows when the replay of an episode differs from the recorded one: `restart` it with a
            warning, or stop with an `error`.
        sandbox: What the workers may not do: `strict` takes the network, other processes, most files and all privileges from
            them; `isolated` gives them namespaces of their own as well; `best-effort` does what this machine allows.
        sandbox_read: Files and directories that workers in a sandbox may read, besides the system, Python and its modules.
        sandbox_write: Files and directories that they may change, besides a working directory and a TMPDIR of their own.
        rlimits: Resource limits of a worker by their names in the `resource` module, such as `as` (bytes of address space),
            `nofile`, `fsize`; None for those of the trainer.
        worker_env: Names of environment variables that the workers get besides the harmless ones; None for no others.
        worker_cwd: Working directory of the workers, such as `.` for files that the environment names by relative paths; None
            for an empty one that is removed at the end. With a sandbox the training process must not import from it.
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
    sandbox: SandboxLevel = "off"
    sandbox_read: list[str] | None = None
    sandbox_write: list[str] | None = None
    rlimits: dict[str, int] | None = None
    worker_cwd: str | None = None
    worker_env: list[str] | None = None
    show_output: bool = False

    @property
    def first_workers(self) -> int:
        """Number of workers at the start."""
        return 1 if self.num_workers == "auto" else self.num_workers

    def for_evaluation(self, num_envs: int) -> "BridgeSettings":
        """The same for ordinary environments, which take a seed for each episode, in at most as many workers.

        Args:
            num_envs: Number of environments, which the workers share evenly.
        """
        most: int = num_envs if self.num_workers == "auto" else min(self.num_workers, num_envs)
        shared = next(count for count in range(most, 0, -1) if num_envs % count == 0)
        return replace(self, vectorization="sync", num_workers="auto" if self.num_workers == "auto" else shared)

    def __post_init__(self) -> None:
        for name, value in {"num_workers": self.first_workers, "restart_window": self.restart_window}.items():
            if value < 1:
                raise ConfigError(f"data.{name}={value}: expected at least 1")
        if self.first_workers > _MOST_WORKERS:
            raise ConfigError(f"data.num_workers={self.num_workers}: expected at most {_MOST_WORKERS}")
        for name in ("start_timeout_s", "step_timeout_s", "close_timeout_s"):
            if not 0 < getattr(self, name) < 1e6:
                raise ConfigError(f"data.{name}={getattr(self, name)}: expected a time above 0 s")
        if self.vectorization == "native" and self.on_violation == "restart":
            raise ConfigError("data.on_violation=restart: native environments cannot give up one episode; use sync")
        if self.max_restarts < 0:
            raise ConfigError(f"data.max_restarts={self.max_restarts}: expected at least 0")
        for name in ("sandbox_read", "sandbox_write"):
            if getattr(self, name) is not None:
                paths = [_absolute(f"data.{name}", path) for path in getattr(self, name)]
                object.__setattr__(self, name, paths)
        if self.worker_cwd is not None:
            object.__setattr__(self, "worker_cwd", _absolute("data.worker_cwd", self.worker_cwd))
            if self.sandbox != "off":  # without a sandbox workers can write anywhere
                _require_no_imports_from("data.worker_cwd", self.worker_cwd)
        for path in self.sandbox_write or []:
            _require_no_imports_from("data.sandbox_write", path)
        if self.bridge == "inprocess":
            needs_process = {
                "num_workers": self.first_workers > 1,
                "python": self.python is not None,
                "sandbox": self.sandbox != "off",
                "rlimits": bool(self.rlimits),
                "worker_env": bool(self.worker_env),
                "worker_cwd": self.worker_cwd is not None,
            }
            for name, is_set in needs_process.items():
                if is_set:
                    raise ConfigError(f"data.{name}={getattr(self, name)}: needs a process; use data.bridge=process")


def _absolute(setting: str, path: object) -> str:
    """A path that is there, absolute: the worker has another working directory.

    Raises:
        ConfigError: There is no such file or directory.
    """
    if type(path) is not str or not os.path.exists(expanded := os.path.expanduser(path)):
        raise ConfigError(f"{setting}={shown(path)}: expected a file or directory that exists")
    return os.path.abspath(expanded)


def _require_no_imports_from(setting: str, directory: str) -> None:
    """Refuse a directory in which a worker could place code that this process imports.

    Raises:
        ConfigError: A part of this process's import path is there.
    """
    real = os.path.realpath(directory)
    for entry in map(os.path.realpath, sys.path):
        if os.path.commonpath([real, entry]) == real:
            raise ConfigError(
                f"{setting}={directory}: expected a directory from which the training process imports nothing, since workers "
                f"can write there, but {entry} is on its import path; use another directory"
            )
