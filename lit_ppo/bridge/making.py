"""From settings to environments, in the worker: modules imported, environments made and wrapped.

Whose fault it is, is decided here. What a person can put right in the settings or by installing a package is a `ValueError`;
what the environment's own code raises is an `EnvironmentRaised`.
"""

import contextvars
import copy
import difflib
import importlib
import inspect
import re
import sys
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any, Final, NoReturn

import gymnasium

from lit_ppo.bridge import faults
from lit_ppo.bridge.faults import message_of, raised
from lit_ppo.bridge.frame_stack import FrameStack
from lit_ppo.bridge.settings import EVALUATION_LIMIT, EnvironmentSettings, package_of
from lit_ppo.errors import shown

_SHORT_NAMES: Final = {"atari": "lit_ppo.bridge.atari.atari"}
# For each package that an environment may lack: the extra of lit_ppo that brings it, and what to install without lit_ppo.
_EXTRAS: Final = {
    "ale_py": ("atari", "ale-py"),
    "cv2": ("atari", "opencv-python-headless"),
    "Box2D": ("box2d", "gymnasium[box2d]"),
    "pygame": ("box2d", "gymnasium[box2d]"),
    "mujoco": ("mujoco", "gymnasium[mujoco]"),
    "minigrid": ("minigrid", "minigrid"),
    "highway_env": ("highway", "highway-env"),
    "imageio": ("play", "imageio[ffmpeg]"),
    "imageio_ffmpeg": ("play", "imageio[ffmpeg]"),
}

_OF_OLD_GYM: Final = (
    "for an environment of the old gym run: pip install 'shimmy[gym-v26]', and use env_id=GymV26Environment-v0 with "
    "env_kwargs={env_id: ID}, or return shimmy.GymV26CompatibilityV0(env=ENV); for gym 0.21 gym-v21 and GymV21 in their place"
)


class EnvironmentMaker:
    """Makes environments of one kind.

    Args:
        settings: What to make.

    Raises:
        ValueError: A module, environment or wrapper is not there, or a package is not installed.
        EnvironmentRaised: A module raised an exception when it was imported.
    """

    def __init__(self, settings: EnvironmentSettings) -> None:
        self.settings = settings
        # environment code runs in a context of its own: the error state of numpy that it sets is not ours
        self.run_traced: Callable[..., Any] = contextvars.copy_context().run
        # takes off its tracer; of C, since a function of ours would be traced; without a process it may be a debugger's
        self.untrace: Callable[[], object] = partial(sys.settrace, sys.gettrace()) if faults.is_environment_process else bool
        sys.path[:0] = [entry for entry in settings.env_path or [] if entry not in sys.path]
        self._env_id, self._kwargs = f"env_id={settings.env_id}", settings.env_kwargs or {}
        self._given = f"env_kwargs={shown(self._kwargs)}" if self._kwargs else self._env_id
        self.name: str | None = None  # in Gymnasium's registry; None for a factory
        self._factory = self._found()
        self._wrappers = [self._wrapper(wrapper, settings.is_training) for wrapper in settings.wrappers or []]

    def run(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call environment code in its context, without its tracer afterwards."""
        try:
            return self.run_traced(function, *args, **kwargs)
        finally:
            self.untrace()

    def _found(self) -> Callable[..., Any]:
        """What makes an environment, once its module is imported; notes its registered name."""
        module_name, _, name = self.settings.env_id.rpartition(":")
        package = module_name or package_of(name)
        module = self._imported(package, self._env_id) if package else None
        if module_name and name not in gymnasium.registry and callable(factory := self._member(module, name, self._env_id)):
            return factory  # type: ignore[no-any-return]
        try:
            gymnasium.spec(name)
        except gymnasium.error.Error as error:
            message = message_of(error)
            if "id you mean" not in message:
                if similar := difflib.get_close_matches(name, gymnasium.registry, 1):
                    hint = f"Did you mean: `{similar[0]}`?"
                elif package:
                    hint = f"{package} is there, but registers no such id with Gymnasium {gymnasium.__version__}"
                    functions = [key for key, value in vars(module).items() if key.startswith("register") and callable(value)]
                    if functions:
                        hint += (
                            f"; call {package}.{functions[0]}() in a module of your own, and name that: env_id=module:{name}"
                        )
                    if "gym" in sys.modules:
                        hint += f"; {_OF_OLD_GYM}"
                else:
                    hint = "If a package registers it, name its module as well: env_id=module:EnvId"
                message = f"{message if message.endswith('?') else message.rstrip('.') + '.'} {hint}"
            raise ValueError(f"{self._env_id}: {message}") from None
        self.name = name
        return gymnasium.make

    def make(self, row: int) -> "gymnasium.Env[Any, Any]":
        """One environment, wrapped.

        Args:
            row: Its number in this worker.

        Raises:
            ValueError: A setting, or what is installed, does not fit.
            EnvironmentRaised: The environment cannot be made.
        """
        limit, fixed = self.settings.max_episode_steps, {}
        target: tuple[Any, ...] = ()
        if self.name is not None:
            spec = copy.deepcopy(gymnasium.spec(self.name))
            if limit is not None:
                spec.max_episode_steps = None
            # the checker looks at less than our contract does, and costs more
            target, fixed = (spec,), {"disable_env_checker": True}
        env = self.call(row, self._given, self._factory, *target, **fixed, **self._kwargs)
        _require_environment(env, self._env_id)
        if row == 0:
            self.spec = env.spec  # of the environment itself: many wrappers cannot be described
        for path, wrapper, arguments in self._wrappers:
            env = self.call(row, f"wrappers: {path}", wrapper, env, **arguments)
            _require_environment(env, f"wrappers: {path}")
        if self.settings.frame_stack is not None:
            env = FrameStack(env, self.settings.frame_stack, self.settings.action_mask)
        if self.time_limit is None and not self.settings.is_training:
            limit = EVALUATION_LIMIT
        return env if limit is None else gymnasium.wrappers.TimeLimit(env, limit)

    @property
    def time_limit(self) -> int | None:
        """Steps of an episode, as the settings or the environment limit them; None for no limit."""
        own: int | None = getattr(self.spec, "max_episode_steps", None)
        return own if self.settings.max_episode_steps is None else self.settings.max_episode_steps

    def make_vector(self, num_envs: int) -> "gymnasium.vector.VectorEnv[Any, Any, Any]":
        """Gymnasium's own vector version of the environment.

        Raises:
            ValueError: It has none, or a setting needs ordinary environments.
            EnvironmentRaised: It cannot be made.
        """
        settings, prefix = self.settings, "vectorization=native: "
        for name in ("wrappers", "frame_stack", "obs_keys", "action_mask", "remake_each_episode"):
            if getattr(settings, name) not in (None, False):
                raise ValueError(f"{prefix}{name} needs vectorization=sync")
        if not hasattr(gymnasium.vector, "AutoresetMode"):
            version = gymnasium.__version__
            raise ValueError(
                f"{prefix}expected Gymnasium 1.1 or newer, got {version} in {sys.executable}; use vectorization=sync"
            )
        if self.name is None or gymnasium.spec(self.name).vector_entry_point is None:
            raise ValueError(f"{prefix}{settings.env_id} has no native vector environment; use vectorization=sync")
        limit = {} if settings.max_episode_steps is None else {"max_episode_steps": settings.max_episode_steps}
        how = {"vectorization_mode": "vector_entry_point", **limit}
        vector = self.call(0, self._given, gymnasium.make_vec, self.name, num_envs, **how, **self._kwargs)
        self.spec = vector.spec
        return vector  # type: ignore[no-any-return]

    def call(self, row: int, setting: str, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call into the environment's code while it is made; its exceptions become ours."""
        try:
            return self.run(function, *args, **kwargs)
        except (ModuleNotFoundError, gymnasium.error.DependencyNotInstalled) as error:
            _refuse_missing(error, self._env_id)
        except TypeError as error:
            if (reason := _refused_arguments(error)) is not None:
                if "'render_mode'" in reason:
                    reason += "; to be seen or recorded, the environment takes it, and renders accordingly"
                raise ValueError(f"{setting}: {reason}") from None
            raise raised(row, "make", error) from None
        except BaseException as error:
            raise raised(row, "make", error) from None

    def _wrapper(self, wrapper: str | dict[str, Any], is_training: bool) -> tuple[str, Callable[..., Any], dict[str, Any]]:
        """Import path, what it names, and the arguments besides the environment."""
        path: str = wrapper if isinstance(wrapper, str) else wrapper["class_path"]
        arguments: dict[str, Any] = {} if isinstance(wrapper, str) else dict(wrapper.get("init_args") or {})
        module_name, dot, name = _SHORT_NAMES.get(path, path).replace(":", ".").rpartition(".")
        if not dot:
            known = ", ".join(_SHORT_NAMES)
            raise ValueError(f"wrappers: expected an import path such as my_package.MyWrapper, or one of {known}, got {path}")
        module = self._imported(module_name, f"wrappers: {path}")
        function = self._member(module, name, f"wrappers: {path}")
        if not callable(function):
            similar = difflib.get_close_matches(name, dir(module), 1)
            hint = f" (did you mean {module_name}.{similar[0]}?)" if similar else ""
            raise ValueError(f"wrappers: {path}: there is no class or function {name} in {module_name}{hint}")
        for parameter in inspect.signature(function).parameters.values():
            if parameter.name == "is_training":
                arguments.setdefault("is_training", is_training)
            # YAML has no tuples, which Gymnasium's ResizeObservation insists on
            wants_tuple = "tuple[" in (kind := str(parameter.annotation)) and "list[" not in kind
            if wants_tuple and type(given := arguments.get(parameter.name)) is list:
                arguments[parameter.name] = tuple(given)
        return path, function, arguments

    def _imported(self, name: str, setting: str) -> ModuleType:
        try:
            module: ModuleType = self.run(importlib.import_module, name)
            return module
        except ModuleNotFoundError as error:
            root = (error.name or "").partition(".")[0]
            if root not in _EXTRAS and f"{name}.".startswith(f"{error.name}."):
                path = ", ".join(sys.path[:3])
                raise ValueError(
                    f"{setting}: there is no module {error.name} in {path}; name its directory in env_path"
                ) from None
            _refuse_missing(error, setting)
        except BaseException as error:
            raise raised(0, "import", error) from None

    def _member(self, module: ModuleType | None, name: str, setting: str) -> Any:
        """Attribute of a module, which may import it lazily; None if there is none."""
        try:
            return self.run(getattr, module, name, None)
        except ModuleNotFoundError as error:
            _refuse_missing(error, setting)
        except BaseException as error:
            raise raised(0, "import", error) from None


def _refuse_missing(error: Exception, setting: str) -> NoReturn:
    """Say what is not installed, for which interpreter, and how to install it.

    Raises:
        ValueError: Always.
    """
    cause = error if isinstance(error, ImportError) else error.__cause__ or error.__context__
    name = (getattr(cause, "name", None) or "").partition(".")[0]
    if not name or sys.modules.get(name) is not None:  # it is there, but cannot be used
        raise ValueError(
            f"{setting}: {sys.executable} cannot import what it needs: {' '.join(message_of(error).split())}"
        ) from None
    from importlib import metadata  # here, so that starting does not pay for it

    extra, plain = _EXTRAS.get(name, (None, name))
    try:
        metadata.distribution("lit_ppo")
        requirement = plain if extra is None else f"lit_ppo[{extra}]"
    except metadata.PackageNotFoundError:  # another interpreter
        requirement = plain
    install = f"{sys.executable} -m pip install '{requirement}'"
    own = "" if name in _EXTRAS else ", or name the directory of your own module in env_path"
    raise ValueError(f"{setting}: {sys.executable} has no package {name}; run: {install}{own}") from None


def _refused_arguments(error: BaseException) -> str | None:
    """The message of a call that refuses its arguments; None if the error comes from deeper inside.

    The call is ours or Gymnasium's, or that of a constructor which passes unknown **kwargs on to another.
    """
    while isinstance(error.__cause__, TypeError):  # gymnasium.make raises another one
        error = error.__cause__
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    assert trace is not None
    frame, code = trace.tb_frame, trace.tb_frame.f_code
    if frame.f_globals.get("__name__") in (__name__, gymnasium.make.__module__):
        return str(error)
    unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if unknown is None or not code.co_flags & inspect.CO_VARKEYWORDS:
        return None
    index = code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & inspect.CO_VARARGS)
    return str(error) if unknown[1] in frame.f_locals.get(code.co_varnames[index], {}) else None


def _require_environment(made: object, setting: str) -> None:
    if not isinstance(made, gymnasium.Env):
        is_old = any(base.__module__.partition(".")[0] == "gym" for base in type(made).__mro__)
        is_vector = isinstance(made, gymnasium.vector.VectorEnv)
        raise ValueError(
            f"{setting}: expected it to return a gymnasium.Env, got {type(made).__module__}.{type(made).__name__}"
            + (f"; {_OF_OLD_GYM}" if is_old else "")
            + ("; name what makes one environment: lit_ppo steps data.num_envs of them" if is_vector else "")
        )
