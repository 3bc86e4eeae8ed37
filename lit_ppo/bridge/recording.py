"""A wrapper that writes episodes as videos, in the worker: `play --record`."""

import importlib
import itertools
from pathlib import Path
from typing import Any

import gymnasium


class RecordedEpisodes(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Writes each episode with at least one step as `episode-N.mp4`, N from 1; files that are there already are kept.

    A file is complete when the next episode begins, or the environment closes. Frames are encoded as they come, so memory does
    not grow with an episode.

    Args:
        env: With `render_mode=rgb_array`.
        directory: Where to write; it must be there.

    Raises:
        ModuleNotFoundError: imageio or imageio-ffmpeg is not installed.
        TypeError: The environment does not render pictures.
    """

    def __init__(self, env: "gymnasium.Env[Any, Any]", directory: str) -> None:
        super().__init__(env)
        importlib.import_module("imageio_ffmpeg")  # imageio itself would miss it at the first frame only
        self._imageio = importlib.import_module("imageio.v2")
        if env.render_mode != "rgb_array":
            raise TypeError(f"expected an environment with render_mode=rgb_array, got {env.render_mode}")
        self._directory = Path(directory)
        self._writer: Any = None  # of the episode under way, once it has a step
        self._first_frame: Any = None

    def reset(self, **arguments: Any) -> tuple[Any, dict[str, Any]]:
        """Begin an episode, and complete the video of the one before."""
        self._complete()
        returned = self.env.reset(**arguments)
        self._first_frame = self.env.render()
        return returned

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step, and write the picture that follows."""
        returned = self.env.step(action)
        if self._writer is None:
            free = (path for n in itertools.count(1) if not (path := self._directory / f"episode-{n}.mp4").exists())
            fps = self.env.metadata.get("render_fps") or 30
            # sides must be even; the default of 16 would scale most pictures
            self._writer = self._imageio.get_writer(next(free), fps=fps, macro_block_size=2)
            self._writer.append_data(self._first_frame)
        self._writer.append_data(self.env.render())
        return returned

    def close(self) -> None:
        """Complete the last video, and close the environment."""
        self._complete()
        super().close()

    def _complete(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
