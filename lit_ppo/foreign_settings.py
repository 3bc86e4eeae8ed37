"""Settings that are not taken from a foreign file: those that name programs, paths or code, or lower a guard.

A checkpoint, or the report of a fault, is foreign unless a run of its own directory wrote it (`origin`). What such a file says
may be typed again, or the file is trusted as a whole.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, get_args

from lit_ppo.bridge.settings import SandboxLevel
from lit_ppo.errors import ConfigError, shown
from lit_ppo.run_directory import CURVE_NAME, RUN

Rule = Callable[[Any], bool]  # whether a value is harmless, whoever chose it
_WORD: Final = re.compile(r"[A-Za-z0-9_-]{0,40}")
_KNOWN_ID: Final = re.compile(r"(?:[\w.-]+/)?[\w.-]+")  # not of a module that is imported for it
_CSV_LOGGER: Final = "lightning.pytorch.loggers.CSVLogger"
_CURVE_LINK: Final = "data/rl/ppo_{env}_trainlog.json"


def _is_unset(value: Any) -> bool:
    return value is None or value == [] or value == {}


def _is_plain(value: Any) -> bool:
    """Numbers, booleans and single words, also in lists and mappings: they name no file and no code."""
    if isinstance(value, Mapping):
        return all(_is_plain(key) and _is_plain(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float) or (type(value) is str and bool(_WORD.fullmatch(value)))


def _is_in_run(value: Any) -> bool:
    """Nowhere, or in the run's own directory."""
    return value is None or (type(value) is str and Path(value).parts[:1] == (RUN,) and ".." not in Path(value).parts)


def _is_known_environment(value: Any) -> bool:
    return type(value) is str and bool(_KNOWN_ID.fullmatch(value))


def _are_known_wrappers(value: Any) -> bool:
    names = [item.get("class_path") if isinstance(item, Mapping) else item for item in value or []]
    return all(name == "atari" for name in names) and all(_is_plain(item) for item in value or [])


def _is_logger_of_run(value: Any) -> bool:
    if not isinstance(value, Mapping):
        return value is None or type(value) is bool
    arguments: Mapping[str, Any] = value.get("init_args") or {}
    is_inside = all(_is_in_run(item) or _is_plain(item) for item in arguments.values())
    return value.get("class_path") == _CSV_LOGGER and is_inside and _is_in_run(arguments.get("save_dir"))


# Options that a foreign file may not decide on, and which of their values are harmless all the same.
GUARDED: Final[dict[str, Rule]] = {
    # code
    "data.env_id": _is_known_environment,
    "data.env_kwargs": _is_plain,
    "data.wrappers": _are_known_wrappers,
    "data.env_path": _is_unset,
    "model.torso": _is_unset,
    "model.optimizer": _is_unset,
    "model.lr_scheduler": _is_unset,
    "model.loss": _is_unset,
    "trainer.logger": _is_logger_of_run,
    # programs and what they are given
    "data.python": _is_unset,
    "data.worker_env": _is_unset,
    # paths
    "data.worker_cwd": _is_unset,
    "data.report_dir": lambda value: _is_in_run(value) or value == "data/reports",
    "curve.path": lambda value: value in (None, f"{RUN}/{CURVE_NAME}"),  # no other file of the run is replaced by it
    "curve.link": lambda value: value in (None, _CURVE_LINK),
    "checkpoint.dirpath": _is_unset,
    # guards
    "data.bridge": lambda value: value == "process",
    "data.sandbox": lambda value: value in get_args(SandboxLevel),  # the lowest level is the default
    "data.sandbox_read": _is_unset,
    "data.sandbox_write": _is_unset,
    "data.rlimits": _is_unset,
    "data.contract.check_membership": lambda value: value in ("warn", "error"),
}
# Options that it may decide on: numbers, switches and names within the run.
_NAMES_OF_FREE: Final = """
seed_everything total_env_steps preset checkpoint.every_n_updates
trainer.max_epochs trainer.max_steps trainer.precision trainer.deterministic
evaluation.every_env_steps evaluation.num_episodes
solved.threshold solved.margin solved.confirmation_episodes
data.contract.exclusive_flags data.contract.num_actions data.contract.obs_shape data.contract.observation_range
data.contract.reward_range
data.action_mask data.close_timeout_s data.evaluation_envs data.frame_stack data.horizon data.max_episode_steps
data.max_restarts data.num_envs data.num_workers data.obs_keys data.on_replay_mismatch data.on_violation
data.rank_patience_s data.rank_timeout_s data.remake_each_episode data.restart_window data.seed data.shards data.show_output
data.start_timeout_s data.step_timeout_s
data.test_episodes data.validation_episodes data.vectorization
model.action_bounds model.activation model.actor_hidden_sizes model.adam_epsilon model.clip_decay model.clip_epsilon
model.compile model.critic_hidden_sizes model.entropy_coefficient model.gae_lambda model.gamma model.gsde model.gsde_steps
model.image_channels model.image_network model.learning_rate model.learning_rate_decay model.log_std model.log_std_init
model.max_grad_norm model.memory model.memory_size model.minibatch_size model.normalize_advantages
model.normalize_observations model.normalize_rewards model.observation_clip model.orthogonal_init model.reward_clip
model.reward_scale model.seed model.sequence_length model.shared_torso model.target_kl model.total_env_steps
model.update_epochs model.value_clip model.value_coefficient
"""
FREE: Final = frozenset(_NAMES_OF_FREE.split())
_NOT_TYPED: Final = object()


def refuse_foreign(
    path: Path, saved: Mapping[str, Any], typed: Mapping[str, Any], *, is_own: bool, trust: str = "trust_checkpoint"
) -> None:
    """Refuse a foreign file whose settings name programs, paths or code, or lower a guard.

    Args:
        path: Of the file.
        saved: Its settings, by section.
        typed: Those that were typed, which replace the saved ones.
        is_own: Whether a run of its directory wrote it, or it is trusted as a whole.
        trust: Option that trusts it.

    Raises:
        ConfigError: It is foreign and has such settings; the message lists them.
    """
    found = [f"{option}={shown(value)}" for option, value in _options(saved) if _is_refused(option, value, typed)]
    if found and not is_own:
        raise ConfigError(
            f"{path}: no run of its directory wrote it, and it sets {', '.join(found)}: "
            f"type what you want of that, or use --{trust}=true if you know who made it"
        )


def _options(saved: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for section, settings in saved.items():
        if not isinstance(settings, Mapping):
            yield section, settings
            continue
        for name, value in settings.items():
            if name == "contract" and isinstance(value, Mapping):
                yield from ((f"{section}.contract.{rule}", of_rule) for rule, of_rule in value.items())
            else:
                yield f"{section}.{name}", value


def _is_refused(option: str, value: Any, typed: Mapping[str, Any]) -> bool:
    if option in FREE:
        return False
    again: Any = typed
    for name in option.split("."):
        again = again[name] if isinstance(again, Mapping) and name in again else _NOT_TYPED
    if again is _NOT_TYPED:
        return not GUARDED.get(option, _is_plain)(value)  # an option of a subclass of `PPOModule` is not known here
    return not _is_plain(_left(value, again))


def _left(value: Any, typed: Any) -> Any:
    """What a typed value leaves of a saved one: of mappings the other keys, of a class those of its arguments."""
    if not isinstance(value, Mapping) or not isinstance(typed, Mapping):
        return None
    if "class_path" in typed and typed["class_path"] != value.get("class_path"):
        return None
    both = {name for name in value if isinstance(value[name], Mapping) and isinstance(typed.get(name), Mapping)}
    return {
        name: _left(value[name], typed[name]) if name in both else value[name]
        for name in value
        if name in both or name not in typed
    }
