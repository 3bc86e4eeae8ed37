"""The README: each of its commands is run, or its options are parsed; its Python example is run; its output is ours."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lit_ppo import cli, exit_codes
from lit_ppo.reproduction.rows import read_row

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
LINES = [line.partition("   #")[0].strip() for _, block in BLOCKS for line in block.splitlines()]
FILES = {  # shown with their names
    name[1]: block for language, block in BLOCKS if language == "python" and (name := re.match(r"# (\w+\.py)\n", block))
}
COMMANDS = [line for line in LINES if line.startswith("python -m lit_ppo ")]
OF_A_CLASS = {  # options of a class that another option names
    "trainer.logger.save_dir",
    "model.torso.width",
    "model.optimizer.weight_decay",
    "model.optimizer.lr",
    "model.lr_scheduler.T",  # T_max
    "model.lr_scheduler.monitor",
    "model.momentum",
}
SHORT = "--total_env_steps=256 --evaluation.num_episodes=1"  # one update


@pytest.fixture(autouse=True)
def in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of a newcomer: with the configs, and the venv activated."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.syspath_prepend(tmp_path)
    for name, text in FILES.items():
        Path(name).write_text(text)


def shell(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, shell=True, capture_output=True, text=True, timeout=100, check=False)


def test_readme_has_the_commands_that_these_tests_are_about() -> None:
    assert len(COMMANDS) == 24
    named = {line.split()[3] for line in COMMANDS}
    assert named == {"fit", "test", "play", "export", "presets", "check-env", "rollout", "plot", "reproduce"}


def parsed(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command of the shell in this process."""
    monkeypatch.setattr(sys, "argv", ["lit_ppo", *shlex.split(line.partition(" > ")[0])[3:]])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code


@pytest.mark.parametrize("command", [line for line in COMMANDS if " fit " in line and "--ckpt_path" not in line])
def test_options_of_a_command_exist(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    if "TensorBoardLogger" in command:  # whose options are known where it is installed
        pytest.importorskip("tensorboard")
    parsed(command if "--print_config" in command else f"{command} --print_config", monkeypatch)
    assert capsys.readouterr().out.startswith("# lightning.pytorch")


def test_row_that_a_command_names_is_there() -> None:
    [line] = [line for line in COMMANDS if " reproduce " in line]
    options = cli.command_parser().parse_args(shlex.split(line)[3:])
    [row] = [read_row(options.rows_dir / f"{name}.yaml") for name in options.rows]
    assert row.seeds >= options.seeds


def test_commands_from_a_first_run_to_a_plot_work_one_after_the_other() -> None:
    first, resume = (line for line in COMMANDS if "--total_env_steps" in line)
    [test] = [line for line in COMMANDS if " test " in line]
    [plot] = [line for line in COMMANDS if " plot " in line]
    [check] = [line for line in COMMANDS if " check-env " in line]
    [presets] = [line for line in COMMANDS if line.endswith(" presets")]
    export, check_file = (line for line in COMMANDS if " rollout " in line)
    [policy] = [line for line in COMMANDS if " export --ckpt_path" in line and "rollout" not in line]
    [recorded] = [line for line in COMMANDS if " play " in line and "--record" in line]
    [predict] = [block for _, block in BLOCKS if ".predict(" in block]
    [load] = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/use.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    Path("use.py").write_text(predict + load)
    settings = "--data.num_envs=2 --model.update_epochs=1 --evaluation.num_episodes=1 --evaluation.every_env_steps=3200"
    for command in (
        f"{first} {settings}".replace("=5000", "=1600"),
        resume.replace("=10000", "=3200"),
        test,
        presets,
        check,
        export,
        check_file,
        f"{recorded} --num_episodes=1 --max_episode_steps=5",
        policy,
        "python use.py",
        plot,
    ):
        ended = shell(command)
        assert ended.returncode == exit_codes.DONE, ended.stderr
    assert Path("curve.png").is_file()


def test_options_in_the_text_exist(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for command in ("fit", "check-env", "reproduce", "rollout export", "rollout check", "play", "export"):
        parsed(f"python -m lit_ppo {command} --help", monkeypatch)
    helped = capsys.readouterr().out
    named = set(re.findall(r"--([a-z_]+(?:\.[a-z_]+)*)", README)) - {"help", "print_config"}
    named |= set(re.findall(r"`((?:data|model|checkpoint|trainer|solved|curve|progress)\.[a-z_]+)`", README))
    assert {name for name in named if f"--{name} " not in helped} <= OF_A_CLASS


def test_summary_in_the_readme_is_what_a_run_prints() -> None:
    """Its numbers are another machine's."""
    ended = shell(f"python -m lit_ppo fit {SHORT}")
    [shown] = [block.splitlines() for _, block in BLOCKS if "checkpoint: " in block]
    assert (ended.stdout.splitlines()[0], ended.stdout.splitlines()[4:]) == (shown[0], shown[4:])


def test_python_example_runs() -> None:
    [example] = [block for _, block in BLOCKS if "max_epochs=200" in block]
    Path("example.py").write_text(example.replace("max_epochs=200", "max_epochs=2"))
    ended = shell("python -W ignore example.py")
    assert ended.returncode == 0, ended.stderr
    printed = ended.stdout.splitlines()
    assert printed[0] == "CartPole-v1, 8 environments, up to 512 env steps, solved at a return of 475"
    assert printed[1] == "not solved: no confirmed evaluation return of 475"
    assert Path("checkpoints/last.ckpt").is_file() and Path("data/rl/ppo_cartpole_trainlog.json").is_file()


def test_program_of_a_users_module_runs() -> None:
    [program] = [line for line in LINES if line.startswith("python my_run.py ")]
    ended = shell(f"{program} {SHORT}")
    assert (ended.returncode, ended.stderr) == (exit_codes.DONE, "")


def test_worker_answers_what_the_readme_types() -> None:
    [talk] = [block for _, block in BLOCKS if block.startswith('{"cmd"')]
    Path("typed").write_text(talk)
    ended = shell("python -m lit_ppo.bridge.worker CartPole-v1 < typed")
    assert ended.stdout.count("\n") == 3 and "error" not in ended.stdout
