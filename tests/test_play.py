"""Watching and exporting a checkpoint's policy: what is seen and written, and what is refused in one line."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lit_ppo import exit_codes
from lit_ppo.errors import ConfigError, EnvironmentRaised
from lit_ppo.module import PPOModule
from lit_ppo.play import play
from lit_ppo.saved_policy import SavedPolicy
from tests.specs import vector_spec
from tests.test_cli import RUN, Run, in_an_empty_directory, run, shared_run, trained  # noqa: F401  fixtures

RENDERED = "tests.toy_envs:RenderedEnv"


def saved(**settings: Any) -> SavedPolicy:
    module = PPOModule(vector_spec(3, 3), actor_hidden_sizes=(8,), critic_hidden_sizes=(8,))
    plain = {"env_id": RENDERED, "env_kwargs": None, "wrappers": None, "contract": {}, "bridge": "process"}
    return SavedPolicy(module, plain | settings)


@pytest.mark.parametrize("settings", [{}, {"remake_each_episode": True}, {"max_episode_steps": 4}])
def test_videos_show_every_step_of_every_episode_and_nothing_else(tmp_path: Path, settings: dict[str, Any]) -> None:
    ffmpeg = pytest.importorskip("imageio_ffmpeg", reason="pip install -e '.[play]'")
    (tmp_path / "episode-1.mp4").touch()  # of an earlier call, which is kept
    results, videos = play(saved(**settings), 2, record=tmp_path)
    assert results.lengths == (4, 4) and not (tmp_path / "episode-1.mp4").stat().st_size
    assert [video.name for video in videos] == ["episode-2.mp4", "episode-3.mp4"] and len(list(tmp_path.iterdir())) == 3
    for video in videos:
        command = [ffmpeg.get_ffmpeg_exe(), "-i", video, "-f", "rawvideo", "-pix_fmt", "gray", "-"]
        read = subprocess.run(command, capture_output=True, check=True)
        assert b", 46x34" in read.stderr and b", 20 fps" in read.stderr
        frames = np.frombuffer(read.stdout, np.uint8).reshape(-1, 34 * 46)
        assert [round(frame.mean() / 50) for frame in frames] == [0, 1, 2, 3, 4]


def test_what_is_missing_for_pictures_is_named_with_its_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    with pytest.raises(ConfigError, match=r"pygame is not installed; or: pip install -e '.\[play\]'"):
        play(saved())
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(ConfigError, match=r"has no package imageio_ffmpeg; run: .* -m pip install 'lit_ppo\[play\]'"):
        play(saved(bridge="inprocess"), record=tmp_path)


class WithoutOpenGL:
    """Stands for a datamodule whose environment cannot render."""

    spec = None

    def play(self, *args: Any) -> None:
        raise EnvironmentRaised("reset", "FatalError: an OpenGL platform library has not been loaded", "", 0)

    def close(self) -> None: ...


def test_missing_opengl_is_named_with_its_installation_and_the_worker_gets_its_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def make_data(saved: SavedPolicy, **settings: Any) -> WithoutOpenGL:
        given.update(settings)
        return WithoutOpenGL()

    monkeypatch.setattr(SavedPolicy, "make_data", make_data)
    monkeypatch.setenv("MUJOCO_GL", "egl")
    with pytest.raises(ConfigError, match=r"^play: the environment cannot render: .*set MUJOCO_GL=egl") as refused:
        play(saved(), record=tmp_path)
    assert "\n" not in str(refused.value) and "MUJOCO_GL" in given["worker_env"]


def test_window_needs_a_display(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"^data.sandbox=strict: a window needs a socket"):
        play(saved(sandbox="strict"))
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match=r"^play: there is no display .*; use --record=DIR"):
        play(saved())


def test_checkpoint_plays_in_a_window(run: Run, trained: None, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    pytest.importorskip("pygame", reason="pip install -e '.[play]'")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    ended = run(f"play --ckpt_path={RUN}/last.ckpt --num_episodes=2 --max_episode_steps=5")
    assert (ended.code, ended.out) == (exit_codes.DONE, "episode 1: return 5, 5 steps\nepisode 2: return 5, 5 steps\n"), ended


def test_checkpoint_is_exported_with_what_a_stranger_needs(
    run: Run,  # noqa: F811
    trained: None,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended = run(f"export --ckpt_path={RUN}/last.ckpt --format=torch --out=a/policy.pt2")
    assert (ended.code, ended.err) == (exit_codes.DONE, "")
    assert ended.out == "a/policy.pt2: the same as the policy on 1,000 visited states, to 1e-05\n"
    extra = {"lit_ppo.json": ""}
    actions, outputs = torch.export.load("a/policy.pt2", extra_files=extra).module()({"": torch.zeros(3, 4)})
    assert actions.shape == (3,) and outputs.shape == (3, 2)
    assert json.loads(extra["lit_ppo.json"])["spec"]["env_id"] == "CartPole-v1"
    monkeypatch.setitem(sys.modules, "onnx", None)
    ended = run("export --ckpt_path=last --format=onnx --out=policy.onnx")
    assert ended.code == exit_codes.USAGE and "pip install -e '.[onnx]'" in ended.err and not Path("policy.onnx").exists()
