"""Runs as directories: each has its own, nothing is overwritten, and they are found again by number, name, newest or path."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_ppo import exit_codes, run_directory
from lit_ppo.callbacks.curve_export import CurveExport
from lit_ppo.callbacks.greedy_evaluation import GreedyEvaluation
from lit_ppo.callbacks.run_checkpoint import RunCheckpoint
from lit_ppo.callbacks.run_status import RunStatus
from lit_ppo.checkpoint_io import read_checkpoint
from lit_ppo.curve import TrainLog
from lit_ppo.errors import CheckpointError, ConfigError
from lit_ppo.run_choice import chosen_checkpoint
from lit_ppo.run_directory import all_runs, directory_name, discard_unused, new_run, run_of
from lit_ppo.run_lock import RunLock
from lit_ppo.run_status import Status, read_status
from tests.runs import IDENTITY, fit
from tests.test_cli import SMALL, Ended, Run, in_an_empty_directory, run, shared_run, trained  # noqa: F401  fixtures

FIRST, SECOND = Path("runs/CartPole-v1/1"), Path("runs/CartPole-v1/2")
LINK = Path("data/rl/ppo_cartpole_trainlog.json")
STATUS = Status("CartPole-v1", 0, 1e9, 1e9, 64, 2, 64, 20.0, 10.0, 475.0, None, "finished", 1, None)


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def update_in(directory: Path) -> int:
    return int(read_checkpoint(directory / "last.ckpt")["RolloutDataModule"]["update"])


def made(number: str, started: float, *checkpoints: str, env: str = "CartPole-v1") -> Path:
    """A run's directory, without a run."""
    directory = Path("runs") / env / number
    directory.mkdir(parents=True)
    replace(STATUS, env_id=env, started=started).write(directory)
    for name in checkpoints:
        (directory / f"{name}.ckpt").touch()
    return directory


# -- directories


@pytest.mark.parametrize(
    ("env_id", "name"),
    [
        ("CartPole-v1", "CartPole-v1"),
        ("ALE/Pong-v5", "ALE-Pong-v5"),
        ("my_package.my_env:MyEnv-v0", "my_package.my_env-MyEnv-v0"),
        ("../../etc:x", "etc-x"),
        ("..", "environment"),
    ],
)
def test_environment_has_a_directory_name_without_separators(env_id: str, name: str) -> None:
    assert directory_name(env_id) == name


def test_runs_that_start_at_once_get_a_number_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_directory, "_entries", lambda directory: [])  # each has looked before another made its directory
    assert [new_run(tmp_path, "CartPole-v1").name for _ in range(3)] == ["1", "2", "3"]


def test_name_of_a_run_is_its_own_and_no_word_with_a_meaning(tmp_path: Path) -> None:
    assert new_run(tmp_path, "CartPole-v1", "baseline") == tmp_path / "CartPole-v1/baseline"
    with pytest.raises(ConfigError, match=r"^run=baseline: .* is there already; go on with --ckpt_path=baseline or choose"):
        new_run(tmp_path, "CartPole-v1", "baseline")
    for name in ("last", "latest", "../up", "a/b", "", ".hidden"):
        with pytest.raises(ConfigError, match=r"choose another name$"):
            new_run(tmp_path, "CartPole-v1", name)


def test_refused_run_leaves_nothing_and_a_run_with_files_stays(tmp_path: Path) -> None:
    kept, refused = new_run(tmp_path, "CartPole-v1"), new_run(tmp_path, "Other-v0")
    (kept / "config.yaml").touch()
    RunLock(refused).release()
    discard_unused(kept)
    discard_unused(refused)
    assert kept.is_dir() and not refused.parent.exists()
    assert run_of(kept / "last.ckpt") is None
    RunLock(kept).release()
    assert run_of(kept / "last.ckpt") == kept.relative_to(tmp_path)  # the working directory


# -- which run is meant


def test_newest_run_with_the_checkpoint_is_taken() -> None:
    made("1", 300.0, "best", "last")
    made("2", 500.0, "last", env="Acrobot-v1")
    made("3", 900.0)  # has saved nothing
    for given, which, path in (
        (None, "best", "Acrobot-v1/2/last.ckpt"),  # it has no best one
        ("last", "last", "Acrobot-v1/2/last.ckpt"),
        ("best", "best", "CartPole-v1/1/best.ckpt"),
        ("1", "last", "CartPole-v1/1/last.ckpt"),
        ("Acrobot-v1/2", "last", "Acrobot-v1/2/last.ckpt"),
        ("runs/CartPole-v1/1", "best", "CartPole-v1/1/best.ckpt"),
    ):
        assert chosen_checkpoint(given, which, Path("runs")).path == Path("runs", path)  # type: ignore[arg-type]


def test_run_that_is_not_found_or_not_unique_is_said() -> None:
    with pytest.raises(CheckpointError, match=r"^ckpt_path: expected a run with best.ckpt or last.ckpt in runs, found none"):
        chosen_checkpoint(None, "best", Path("runs"))
    made("1", 1.0, "best")
    made("1", 2.0, "best", env="Acrobot-v1")
    with pytest.raises(CheckpointError, match=r"^ckpt_path=1: several .*; write one of Acrobot-v1/1, CartPole-v1/1$"):
        chosen_checkpoint("1", "best", Path("runs"))
    with pytest.raises(CheckpointError, match=r"^ckpt_path=7: expected a path, or the name of a run in runs, which has none"):
        chosen_checkpoint("7", "best", Path("runs"))
    with pytest.raises(CheckpointError, match=r"^ckpt_path=a/b.ckpt: expected a checkpoint at a/b.ckpt, found none$"):
        chosen_checkpoint("a/b.ckpt", "best", Path("runs"))


# -- the command line


def test_second_run_leaves_the_first_as_it_was_and_the_links_are_to_the_second(run: Run, trained: None) -> None:  # noqa: F811
    before = contents(FIRST)
    assert LINK.resolve() == (FIRST / "curve.json").resolve()
    LINK.unlink()
    LINK.write_text("of an earlier version")
    ended = run(f"fit {SMALL} --seed_everything=3")
    assert ended.code == exit_codes.DONE and f"last checkpoint: {SECOND}/last.ckpt" in ended.out.splitlines()
    assert contents(FIRST) == before
    assert {"best.ckpt", "last.ckpt", "config.yaml", "curve.json", "run.json", "logs"} <= {p.name for p in SECOND.iterdir()}
    assert (FIRST.parent / "latest").resolve() == SECOND.resolve() and LINK.resolve() == (SECOND / "curve.json").resolve()
    assert (LINK.parent / "ppo_cartpole_trainlog.previous.json").read_text() == "of an earlier version"


def test_resumed_run_goes_on_in_its_directory_by_number_and_is_the_newest_then(run: Run, trained: None) -> None:  # noqa: F811
    run(f"fit {SMALL} --run=named")
    before = contents(Path("runs/CartPole-v1/named"))
    ended = run("fit --ckpt_path=1 --trainer.max_epochs=3")
    assert ended.out.splitlines()[0] == f"checkpoint: {FIRST}/last.ckpt"
    assert (update_in(FIRST), TrainLog.read(FIRST / "curve.json").steps) == (3, [0, 32, 64, 96])
    assert run("fit --ckpt_path=last --trainer.max_epochs=4").code == exit_codes.DONE and update_in(FIRST) == 4
    assert contents(Path("runs/CartPole-v1/named")) == before and len(list(all_runs(Path("runs")))) == 2
    best = run("fit --ckpt_path=best --run=named --trainer.max_epochs=5")
    assert best.out.splitlines()[0] == "checkpoint: runs/CartPole-v1/named/best.ckpt"
    assert update_in(Path("runs/CartPole-v1/named")) == 5


def test_checkpoint_goes_on_under_another_name_beside_its_run(run: Run, trained: None) -> None:  # noqa: F811
    before = contents(FIRST)
    assert run(f"fit --ckpt_path={FIRST}/last.ckpt --run=fork --trainer.max_epochs=3").code == exit_codes.DONE
    assert contents(FIRST) == before and update_in(Path("runs/CartPole-v1/fork")) == 3
    Path("sent.ckpt").write_bytes((FIRST / "last.ckpt").read_bytes())  # a copy is no run's: it goes on in a new one
    assert run("fit --ckpt_path=sent.ckpt --trainer.max_epochs=3").code == exit_codes.DONE
    assert contents(FIRST) == before and update_in(SECOND) == 3


def test_saved_settings_make_another_run_and_name_no_directory(run: Run, trained: None) -> None:  # noqa: F811
    settings = yaml.safe_load((FIRST / "config.yaml").read_text())
    assert settings["checkpoint"]["dirpath"] is None and settings["curve"]["path"] == "{run}/curve.json"
    assert settings["trainer"]["logger"]["init_args"]["save_dir"] == "{run}"
    before = contents(FIRST)
    assert run(f"fit --config {FIRST}/config.yaml").code == exit_codes.DONE
    assert contents(FIRST) == before and (SECOND / "curve.json").read_bytes() == (FIRST / "curve.json").read_bytes()


def test_directories_of_all_runs_can_be_named(run: Run) -> None:  # noqa: F811
    assert run(f"fit {SMALL} --runs_dir=a/b").code == exit_codes.DONE
    assert Path("a/b/CartPole-v1/1/last.ckpt").is_file()
    assert run(f"fit {SMALL} --trainer.default_root_dir=out").code == exit_codes.DONE
    assert Path("out/runs/CartPole-v1/1/last.ckpt").is_file() and not Path("runs").exists()
    assert Path("out", LINK).resolve() == Path("out/runs/CartPole-v1/1/curve.json").resolve()
    tested = run("test --runs_dir=a/b --data.test_episodes=1")
    assert tested.out.startswith("checkpoint: a/b/CartPole-v1/1/best.ckpt, of the newest run\n")


@pytest.mark.parametrize("setting", ["--model.gamma=1.5", "--data.env_id=NoSuch-v0", "--trainer.min_epochs=3"])
def test_refused_command_leaves_no_directory(setting: str, run: Run) -> None:  # noqa: F811
    assert run(f"fit {setting}").code == exit_codes.USAGE
    assert not Path("runs").exists()


def test_directory_of_ones_own_is_not_overwritten_either(run: Run) -> None:  # noqa: F811
    mine = "--checkpoint.dirpath=mine"
    assert run(f"fit {SMALL} {mine}").code == exit_codes.DONE
    before = contents(Path("mine"))
    message = (
        "checkpoint.dirpath=mine: another run is there; go on with --ckpt_path=mine/last.ckpt, or choose another directory"
    )
    assert run(f"fit {SMALL} {mine}") == Ended(exit_codes.USAGE, "", f"lit_ppo: error: {message}\n")
    assert contents(Path("mine")) == before and not Path("runs").exists()
    assert run(f"fit {mine} --ckpt_path=last --trainer.max_epochs=3").code == exit_codes.DONE
    assert update_in(Path("mine")) == 3 and read_status(Path("mine")).updates == 3  # type: ignore[union-attr]


@pytest.mark.slow
def test_two_processes_at_once_make_two_runs() -> None:
    command = [sys.executable, "-m", "lit_ppo", "fit", *SMALL.split()]
    processes = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait() for process in processes] == [exit_codes.DONE] * 2
    assert [update_in(directory) for directory in (FIRST, SECOND)] == [2, 2]


# -- from Python


def test_python_runs_have_directories_too_and_go_on_in_their_own() -> None:
    def parts() -> list[Any]:
        return [GreedyEvaluation(1, 1), CurveExport(), RunCheckpoint(), RunStatus()]

    first, second = (Path("runs", directory_name(IDENTITY), number) for number in "12")
    for _ in range(2):
        fit(1, *parts())
    before = contents(second)
    fit(2, *parts(), ckpt_path=str(first / "last.ckpt"))
    assert TrainLog.read(first / "curve.json").steps == [0, 20, 40]
    assert contents(second) == before and not Path(first.parent / "3").exists()
    assert (first.parent / "latest").resolve() == first.resolve()
    status = read_status(first)
    assert status is not None and (status.updates, status.env_steps, status.state, status.env_id) == (
        2,
        40,
        "finished",
        IDENTITY,
    )


# -- the table


def test_table_and_json_of_runs(run: Run, trained: None) -> None:  # noqa: F811
    (FIRST.parent / "7").mkdir()
    (FIRST.parent / "7/run.json").write_text('{"env_id": "Cart')  # half-written
    made("8", 1.0)
    replace(STATUS, state="running", pid=2**22 + 1, solved_at=64, started=time.time() + 9).write(made("9", 1.0))
    ended = run("runs")
    assert ended.code == exit_codes.DONE
    assert ended.err.startswith(f"lit_ppo: {FIRST.parent}/7/run.json: ") and ended.err.count("\n") == 1
    lines = [line.split() for line in ended.out.splitlines()]
    assert [line[0] for line in lines] == ["run", "CartPole-v1/8", "CartPole-v1/1", "CartPole-v1/9"]  # the oldest first
    assert lines[2][1:4] == ["CartPole-v1", "0", "64"] and lines[2][5:7] == ["-", "finished"]
    assert lines[3][4:7] == ["20", "64", "killed"]
    listed = json.loads(run("runs --json").out)
    assert [(one["run"], one["seed"], one["env_steps"]) for one in listed][1] == ("CartPole-v1/1", 0, 64)
    assert listed[1]["best_return"] == max(TrainLog.read(FIRST / "curve.json").series[0].values[1:])
    assert run("runs --runs_dir=empty").out == "empty: no runs yet; make one with `python -m lit_ppo fit`\n"


def test_status_of_another_program_is_refused_in_one_line_and_its_text_is_escaped(run: Run) -> None:  # noqa: F811
    """A directory of runs may have been sent by somebody."""
    made("1", 1.0)
    replace(STATUS, env_id="A\n\x1b[2Jlit_ppo: all is well").write(made("2\n3", 1.0))
    broken: list[dict[str, Any]] = [
        {"pid": 1 << 40},
        {"pid": -1},
        {"started": 1e300},
        {"updated": -1.0},
        {"env_steps": -1},
        {"best_return": 10**400},
        {"state": "\x1b[2J\n"},
    ]
    for number, change in enumerate(broken):
        (made(f"broken\n{number}", 1.0) / "run.json").write_text(json.dumps({**vars(STATUS), **change}))
    (made("pipe", 1.0) / "run.json").unlink()
    os.mkfifo("runs/CartPole-v1/pipe/run.json")
    ended = run("runs")
    assert ended.code == exit_codes.DONE and len(ended.out.splitlines()) == 3
    assert r"CartPole-v1/2\n3  A\n\x1b[2Jlit_ppo: all is well" in ended.out
    lines = ended.err.splitlines()
    assert len(lines) == len(broken) + 1 and all(line.startswith("lit_ppo: runs/CartPole-v1/") for line in lines), ended.err
    assert "\x1b" not in ended.out + ended.err


def test_runs_and_plot_start_without_torch() -> None:
    made("1", 1.0)
    TrainLog("t", [], [], []).write("runs/CartPole-v1/1/curve.json")
    code = (
        "import sys; from lit_ppo import cli\n"
        "for line in (['runs'], ['plot', 'runs/*/*']):\n"
        "    try: cli.main(line)\n    except SystemExit: pass\n"
        "assert not {'torch', 'lightning', 'gymnasium'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
