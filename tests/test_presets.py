"""Presets: chosen by the environment or by name, above the defaults and below what is typed, and complete."""

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.learning.rows import read_row
from lit_ppo import exit_codes, presets
from lit_ppo.callbacks.greedy_evaluation import GreedyEvaluation
from lit_ppo.callbacks.run_config import CONFIG_KEY
from lit_ppo.checkpoint_io import read_checkpoint
from lit_ppo.commands.train import LitPPOCLI
from lit_ppo.errors import ConfigError
from lit_ppo.ppo_settings import PPOSettings
from lit_ppo.presets import Preset, all_presets, preset_for, preset_named
from lit_ppo.run_directory import directory_name
from tests.test_cli import PRESET, SMALL, Ended, Run, run  # noqa: F401  a fixture

ROOT = Path(__file__).parents[1]
NAMES = [preset.name for preset in all_presets()]
TOY = "tests.toy_envs:Identity-v0"
LAST = f"runs/{directory_name(TOY)}/1/last.ckpt"
LENGTHENED = f"changed since {LAST}: length: 64 -> 96 env steps\n"
BOLD = {  # the settings of CartPole's run before there were presets
    "data": {"env_id": "CartPole-v1", "num_envs": 8, "horizon": 32},
    "model": {"learning_rate": 3e-3, "update_epochs": 4, "minibatch_size": 64, "clip_epsilon": 0.4},
}


@pytest.fixture(autouse=True)
def in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Preset:
    """A preset for the toy environment, beside those that are shipped."""
    own = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.5, "weight_decay": 0.25}}
    settings = {"total_env_steps": 96, "data": {"env_id": TOY, "horizon": 16}, "model": {"gamma": 0.5, "optimizer": own}}
    preset = Preset("toy", (TOY,), "the tests", None, settings)
    shipped = all_presets()
    monkeypatch.setattr(presets, "all_presets", lambda: (*shipped, preset))
    return preset


def settings_of(run: Run, line: str) -> dict[str, Any]:  # noqa: F811
    printed = run(f"fit {line} --print_config")
    assert (printed.code, printed.err) == (exit_codes.DONE, "")
    settings: dict[str, Any] = yaml.safe_load(printed.out)
    return settings


# -- precedence


def test_preset_of_the_environment_stands_in_for_the_defaults(run: Run) -> None:  # noqa: F811
    settings = settings_of(run, "")
    assert {section: {key: settings[section][key] for key in values} for section, values in BOLD.items()} == BOLD
    assert settings["evaluation"]["every_env_steps"] == 1
    assert settings["model"]["gamma"] == PPOSettings().gamma  # the default


def test_without_a_preset_there_are_the_defaults(run: Run) -> None:  # noqa: F811
    for line in ("--preset=none", f"--data.env_id={TOY}"):
        model, defaults = settings_of(run, line)["model"], PPOSettings()
        for name in ("learning_rate", "update_epochs", "clip_epsilon", "gamma", "gae_lambda"):
            assert model[name] == getattr(defaults, name)
    assert (defaults.clip_epsilon, defaults.learning_rate) == (0.2, None)


@pytest.mark.parametrize("how", ["typed", "config"])
def test_what_is_typed_wins_over_the_preset(how: str, run: Run) -> None:  # noqa: F811
    Path("my.yaml").write_text("model: {clip_epsilon: 0.1}\ndata: {horizon: 64}\n")
    line = {"typed": "--model.clip_epsilon=0.1 --data.horizon=64", "config": "--config my.yaml"}[how]
    settings = settings_of(run, line)
    assert (settings["model"]["clip_epsilon"], settings["data"]["horizon"]) == (0.1, 64)
    assert settings["model"]["learning_rate"] == 3e-3  # of the preset


def test_checkpoint_wins_over_a_preset_that_has_changed_since(run: Run, toy: Preset) -> None:  # noqa: F811
    small = SMALL.replace("--data.horizon 16", "")
    assert run(f"fit --data.env_id {TOY} {small}").code == exit_codes.DONE
    toy.settings["model"] = {"gamma": 0.25, "learning_rate": 0.125}
    toy.settings["data"]["num_envs"] = 4
    resumed = run("fit --ckpt_path last --trainer.max_epochs 3")
    assert (resumed.code, resumed.err) == (exit_codes.DONE, LENGTHENED)
    assert "preset" not in resumed.out  # none is chosen again
    settings = read_checkpoint(LAST)[CONFIG_KEY]
    assert (settings["preset"], settings["model"]["gamma"], settings["model"]["learning_rate"]) == ("toy", 0.5, None)
    assert settings["model"]["optimizer"]["init_args"]["weight_decay"] == 0.25


def test_typed_setting_wins_over_a_checkpoint_with_a_preset(run: Run, toy: Preset) -> None:  # noqa: F811
    run(f"fit --data.env_id {TOY} {SMALL}")
    ended = run("fit --ckpt_path last --trainer.max_epochs 3 --model.gamma 0.75")
    assert ended.err == f"changed since {LAST}: model.gamma: 0.5 -> 0.75\n{LENGTHENED}"


def test_another_preset_is_refused_on_resume(run: Run, toy: Preset) -> None:  # noqa: F811
    run(f"fit --data.env_id {TOY} {SMALL}")
    for typed in ("none", "CartPole-v1"):
        message = f"preset={typed}: the checkpoint's run has toy, which cannot change on resume"
        assert run(f"fit --ckpt_path {LAST} --preset={typed}") == Ended(exit_codes.USAGE, "", f"lit_ppo: error: {message}\n")
    assert run("fit --ckpt_path last --preset=toy --trainer.max_epochs 3").code == exit_codes.DONE


def test_block_of_another_class_is_replaced_whole(run: Run, toy: Preset) -> None:  # noqa: F811
    same = settings_of(run, f"--data.env_id={TOY} --model.optimizer=torch.optim.AdamW --model.optimizer.lr=1")
    assert same["model"]["optimizer"]["init_args"]["weight_decay"] == 0.25
    other = settings_of(run, f"--data.env_id={TOY} --model.optimizer=torch.optim.SGD --model.optimizer.lr=1")
    assert other["model"]["optimizer"]["init_args"]["weight_decay"] == 0  # SGD's own, though it has a setting of that name


def test_own_part_leaves_out_the_settings_that_it_replaces(run: Run) -> None:  # noqa: F811
    model = settings_of(run, "--model.optimizer=torch.optim.SGD --model.optimizer.lr=1")["model"]
    assert (model["learning_rate"], model["clip_epsilon"]) == (None, 0.4)


# -- which one


def test_preset_is_named_in_the_first_line_and_in_the_settings_of_the_run(run: Run) -> None:  # noqa: F811
    assert run(f"fit {SMALL}").out.splitlines()[0] == PRESET
    assert yaml.safe_load(Path("runs/CartPole-v1/1/config.yaml").read_text())["preset"] == "CartPole-v1"
    assert "preset" not in run(f"fit {SMALL} --preset=none").out
    assert yaml.safe_load(Path("runs/CartPole-v1/2/config.yaml").read_text())["preset"] == "none"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "CartPole-v2",
            "preset=CartPole-v2: expected none, or a name that `python -m lit_ppo presets` lists (did you mean CartPole-v1?)",
        ),
        ("non", "preset=non: expected none, or a name that `python -m lit_ppo presets` lists (did you mean none?)"),
        ("?!", "preset=?!: expected none, or a name that `python -m lit_ppo presets` lists"),
    ],
)
def test_unknown_preset_ends_in_one_line_and_exit_code_2(name: str, message: str, run: Run) -> None:  # noqa: F811
    assert run(f"fit --preset={name}") == Ended(exit_codes.USAGE, "", f"lit_ppo: error: {message}\n")


def test_preset_that_is_named_brings_its_environment_unless_another_is_typed(run: Run) -> None:  # noqa: F811
    assert settings_of(run, "--preset=Acrobot-v1")["data"]["env_id"] == "Acrobot-v1"
    settings = settings_of(run, f"--preset=Acrobot-v1 --data.env_id={TOY}")
    assert (settings["data"]["env_id"], settings["model"]["gae_lambda"]) == (TOY, 0.94)


def test_environment_that_is_changed_is_another_one(run: Run) -> None:  # noqa: F811
    line = "--data.env_id=ALE/Pong-v5"
    assert settings_of(run, line)["data"]["wrappers"] == ["atari"]
    assert settings_of(run, f"{line} --data.wrappers=[atari]")["model"]["shared_torso"] is True
    ram = settings_of(run, f'{line} --data.env_kwargs={{"obs_type":"ram"}}')
    assert (ram["data"]["wrappers"], ram["model"]["shared_torso"]) == (None, False)
    said = run(f"fit {SMALL} --data.max_episode_steps=9").out.splitlines()[0]
    reason = "that of CartPole-v1 is for another data.max_episode_steps"
    assert said == f"preset: none, since {reason}; --preset=CartPole-v1 takes it all the same"


def test_settings_that_are_printed_with_a_preset_are_those_of_the_same_run(run: Run) -> None:  # noqa: F811
    printed = run("fit --data.env_id=Acrobot-v1 --print_config").out
    Path("my.yaml").write_text(printed)
    assert run("fit --config my.yaml --print_config").out == printed


def test_program_without_a_command_has_presets_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["my_run.py"])
    cli = LitPPOCLI(args=["--data.num_envs=2", "--data.horizon=32", "--trainer.logger=false"], run=False)
    assert cli.model.settings.clip_epsilon == 0.4 and cli.config.preset == "CartPole-v1"
    cli.datamodule.close()


# -- those that are shipped


@pytest.mark.parametrize("name", NAMES)
def test_preset_is_complete_and_each_of_its_settings_counts(name: str, run: Run) -> None:  # noqa: F811
    preset = preset_named(name)
    assert preset.source and preset.total_env_steps >= 10_000
    env_id = preset.settings["data"].get("env_id", "ALE/Pong-v5")
    assert preset.is_for(env_id) and preset_for(env_id) is preset
    settings = settings_of(run, f"--data.env_id={env_id}")
    for section, values in preset.settings.items():
        if section != "total_env_steps":
            assert {key: settings[section][key] for key in values} == values
    data, model = settings["data"], PPOSettings(**{k: v for k, v in settings["model"].items() if k != "spec"})
    assert data["num_envs"] * data["horizon"] % model.minibatch_size == 0


def test_every_environment_has_one_preset_at_most() -> None:
    ids = [env_id for preset in all_presets() for env_id in preset.env_ids]
    assert len(set(ids)) == len(ids)
    assert preset_for("MyEnv-v0") is None
    assert preset_for("minigrid:MiniGrid-DoorKey-5x5-v0") is preset_for("MiniGrid-DoorKey-5x5-v0")
    with pytest.raises(ConfigError, match=r"preset=MyEnv-v0: expected none, or a name"):
        preset_named("MyEnv-v0")


@pytest.mark.parametrize(
    "preset", [preset for preset in all_presets() if "(row " in (preset.score or "")], ids=lambda own: own.name
)
def test_preset_with_the_score_of_a_row_has_its_settings(preset: Preset) -> None:
    [name] = re.findall(r"\(row (\w+)\)", preset.score or "")
    row = read_row(ROOT / "configs" / "rows" / f"{name}.yaml").settings
    stands_for_none = {"learning_rate_decay": "linear", "adam_epsilon": 1e-5}
    in_full = stands_for_none | {key: value for key, value in vars(PPOSettings()).items() if value is not None}
    in_full |= preset.settings["model"]
    for key, value in row["model"].items():
        expected = list(in_full[key]) if key.endswith("_sizes") else in_full.get(key)
        assert value == expected, key
    assert preset.settings["total_env_steps"] == row["total_env_steps"]
    assert {key: preset.settings["data"][key] for key in ("num_envs", "horizon")}.items() <= row["data"].items()


def test_command_lists_them(run: Run) -> None:  # noqa: F811
    ended = run("presets --json presets.json")
    assert (ended.code, ended.err) == (exit_codes.DONE, "")
    head, *rows = ended.out.splitlines()
    assert head.split() == ["preset", "environment", "env", "steps", "score", "source"]
    assert [row.split()[0] for row in rows] == NAMES
    listed = {entry["name"]: entry for entry in json.loads(Path("presets.json").read_text())}
    assert listed["CartPole-v1"]["settings"]["model"]["clip_epsilon"] == 0.4
    assert all({"env_ids", "source", "score", "settings"} <= entry.keys() for entry in listed.values())
    assert run("presets --json absent/presets.json").code == exit_codes.CHECKPOINT


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", NAMES)
def test_preset_trains_two_updates(name: str, run: Run) -> None:  # noqa: F811
    env_id = preset_named(name).settings["data"].get("env_id", "ALE/Pong-v5")
    for prefix, package in {"ALE/": "ale_py", "MiniGrid": "minigrid", "Lunar": "Box2D", "Bipedal": "Box2D"}.items():
        if env_id.startswith(prefix):
            pytest.importorskip(package)
    if env_id.endswith("-v5") and not env_id.startswith("ALE/"):
        pytest.importorskip("mujoco")
    ended = run(f"fit --data.env_id={env_id} --trainer.max_epochs=2 --evaluation.num_episodes=1 --data.evaluation_envs=1")
    assert (ended.code, ended.err) == (exit_codes.DONE, "")


@pytest.mark.slow
def test_wheel_has_them(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(ROOT)]
    subprocess.run(command, capture_output=True, check=True)
    [wheel] = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"lit_ppo/presets/{name}.yaml" for name in NAMES} <= set(names)


# -- evaluations of a run


@pytest.mark.parametrize(("line", "every"), [("", 1), ("--preset=none", None), ("--evaluation.every_env_steps=7", 7)])
def test_spacing_of_evaluations_is_typed_or_the_presets_or_left_to_the_length(line: str, every: int | None, run: Run) -> None:  # noqa: F811
    assert settings_of(run, line)["evaluation"]["every_env_steps"] == every
    assert GreedyEvaluation().every_env_steps is None
