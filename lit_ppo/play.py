"""Watching a policy: greedy episodes in a window, or as videos. The environment process renders."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from lit_ppo.bridge.settings import LARGEST_COUNT
from lit_ppo.errors import CheckpointError, ConfigError, EnvironmentRaised
from lit_ppo.evaluation import EpisodeResults
from lit_ppo.saved_policy import SavedPolicy

_RECORDER: Final = "lit_ppo.bridge.recording.RecordedEpisodes"
# What a worker needs of the trainer's environment variables to open a window, and to render without one.
_OF_A_DISPLAY: Final = ("DISPLAY", "WAYLAND_DISPLAY", "XAUTHORITY", "XDG_RUNTIME_DIR", "SDL_VIDEODRIVER")
_OF_RENDERING: Final = ("MUJOCO_GL", "PYOPENGL_PLATFORM", "MUJOCO_EGL_DEVICE_ID")
_EPISODE: Final = r"episode-[1-9][0-9]*\.mp4"  # as `RecordedEpisodes` names them
_STEP_TIMEOUT_S: Final = 3600.0  # a window waits for its frame rate, and a video is completed within a reset


def play(
    saved: SavedPolicy,
    num_episodes: int = 3,
    seed: int = 0,
    record: Path | None = None,
    other: Mapping[str, Any] | None = None,
) -> tuple[EpisodeResults, list[Path]]:
    """Play greedy episodes where they can be seen.

    Args:
        saved: Policy and environment.
        num_episodes: Number of episodes.
        seed: The episodes' seeds follow from it.
        record: Directory for the videos; None for a window.
        other: Settings of the environments that replace the run's, as arguments of `RolloutDataModule`.

    Returns:
        Returns and lengths of the episodes, and the videos.

    Raises:
        ConfigError: A setting is invalid, a package for rendering is missing, or there is no display.
        CheckpointError: The directory cannot be made.
        EnvironmentFault: The environment broke its contract or raised.
    """
    if not 1 <= num_episodes <= LARGEST_COUNT:
        raise ConfigError(f"num_episodes={num_episodes}: expected 1 to {LARGEST_COUNT:,}")
    settings = {**saved.data, "step_timeout_s": _STEP_TIMEOUT_S, **(other or {})}
    settings["env_kwargs"] = {**(settings["env_kwargs"] or {}), "render_mode": "human" if record is None else "rgb_array"}
    if settings["bridge"] == "process":
        wanted = _OF_RENDERING if record is not None else _OF_A_DISPLAY + _OF_RENDERING
        passed = [name for name in wanted if name in os.environ]
        settings["worker_env"] = list(dict.fromkeys([*(settings.get("worker_env") or []), *passed]))
    if record is None:
        _require_display(settings)
    else:
        try:
            record.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"--record={record}: cannot be made: {error.strerror}") from error
        recorder = {"class_path": _RECORDER, "init_args": {"directory": str(record.resolve())}}
        settings["wrappers"] = [*(settings["wrappers"] or []), recorder]
        if settings.get("sandbox", "off") != "off":
            settings["sandbox_write"] = [*(settings.get("sandbox_write") or []), str(record.resolve())]
    before = _videos(record)
    data = saved.make_data(**settings | {"evaluation_envs": 1, "seed": seed, "report_dir": None})
    try:
        data.spec  # noqa: B018  what cannot be made is refused here, in the words of the settings
        results = data.play(saved.module.policy, "evaluation", num_episodes, saved.module.device)
    except EnvironmentRaised as error:
        if error.exception.startswith("DependencyNotInstalled"):
            raise ConfigError(f"{error.exception}; or: pip install -e '.[play]' in lit_ppo's directory") from error
        if any(word in error.exception for word in ("OpenGL", "MUJOCO_GL")):
            raise ConfigError(
                f"play: the environment cannot render: {error.exception}; MuJoCo needs an OpenGL library: "
                "without a display install libegl1 or libosmesa6 and set MUJOCO_GL=egl or MUJOCO_GL=osmesa"
            ) from error
        raise
    finally:
        data.close()
    return results, sorted(_videos(record) - before, key=lambda path: (len(path.name), path.name))


def _require_display(settings: Mapping[str, Any]) -> None:
    sandbox = settings.get("sandbox", "off")
    if sandbox != "off":
        raise ConfigError(f"data.sandbox={sandbox}: a window needs a socket, which it denies; use --record=DIR for videos")
    if not any(name in os.environ for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")):
        raise ConfigError("play: there is no display (DISPLAY is not set); use --record=DIR for videos")


def _videos(directory: Path | None) -> set[Path]:
    """The files that `RecordedEpisodes` may have written; the worker, which can write there, may have made others."""
    if directory is None:
        return set()
    with os.scandir(directory) as entries:
        return {directory / e.name for e in entries if re.fullmatch(_EPISODE, e.name) and e.is_file(follow_symlinks=False)}
