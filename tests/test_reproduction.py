"""Rows, their runs and their report: what is refused, what is kept, and that a killed command comes to the same results."""

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.learning import reproduce
from benchmarks.learning.fits import fit_config
from benchmarks.learning.results import LIT_PPO, SB3, RowResults
from benchmarks.learning.results_report import Verdict, report_text, verdict, write_report
from benchmarks.learning.rows import Published, Row, read_row
from lit_ppo import cli, exit_codes
from lit_ppo.data import RolloutDataModule
from lit_ppo.errors import CheckpointError, ConfigError
from lit_ppo.ppo_settings import PPOSettings
from lit_ppo.run_scheduler import RECORD, Failure, Run, make_runs
from tests.faults.harness import CommandLine

ROOT = Path(__file__).parents[1]
ROWS = sorted((ROOT / "configs" / "rows").glob("*.yaml"))
# Every setting that decides a run of any row; those of memory only with a memory, those of exploration only for a Box.
MODEL = """
    actor_hidden_sizes critic_hidden_sizes activation shared_torso orthogonal_init memory action_bounds log_std log_std_init
    learning_rate learning_rate_decay adam_epsilon normalize_observations observation_clip normalize_rewards reward_clip
    reward_scale gamma gae_lambda update_epochs minibatch_size clip_epsilon clip_decay value_clip value_coefficient
    entropy_coefficient normalize_advantages max_grad_norm target_kl compile"""
BOXES = ("Pendulum-", "MountainCarC", "LunarLanderC", "BipedalWalker-", "InvertedPendulum-", "Hopper-", "HalfCh", "Walker2d-")
DATA = "env_id env_kwargs wrappers max_episode_steps frame_stack obs_keys action_mask vectorization num_envs horizon"


def row(**changes: Any) -> Row:
    settings = {"total_env_steps": 480, "data": {"env_id": "CartPole-v1", "num_envs": 2, "horizon": 16}, "model": {}}
    fields: dict[str, Any] = {"name": "tiny", "source": "a page", "returns": "greedy", "settings": settings, "target": ">= 5"}
    return Row(**(fields | changes))


def record(mean: float, seconds: float = 2.0) -> dict[str, Any]:
    """What a run has come to; its training returns are 100 below its greedy ones."""
    curve = {"env_steps": [160, 320, 480], "returns": [1.0, 2.0, mean]}
    return {
        "env_steps": 480,
        "wall_s": seconds,
        "training": curve,
        "greedy": curve,
        "final_training": {"mean": mean - 100, "episodes": 100},
        "final_greedy": {"mean": mean, "std": 0.0, "episodes": 10},
        "best_greedy": {"mean": mean + 1, "std": 0.0, "episodes": 10, "env_steps": 320},
    }


# -- rows


@pytest.mark.parametrize("path", ROWS, ids=lambda path: path.stem)
def test_row_leans_on_no_default_and_its_settings_are_valid(path: Path) -> None:
    found = read_row(path)
    model, data = found.settings["model"], found.settings["data"]
    memory = ["memory_size", "sequence_length"] if model["memory"] else []
    exploration = ["gsde", "gsde_steps"] if found.env_id.startswith(BOXES) else []
    assert set(model) >= {*MODEL.split(), *memory, *exploration}
    assert set(data) >= set(DATA.split())
    assert found.settings.keys() <= {"total_env_steps", "data", "model", "trainer"}
    PPOSettings(**model)
    RolloutDataModule(**data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("unknown: 1", "unknown"),
        ("returns: best", "returns=best: expected training or greedy"),
        ("target: null", "expected something to compare with"),
        ("target: '> 5'", "target=> 5"),
        ("published: {mean: 3}", "env_steps"),
        ("seeds: 0", "seeds and num_episodes"),
        ("settings: {total_env_steps: 3, data: {env_id: A-v0}, checkpoint: {}}", "only those of the run"),
        ("source: [", "expected YAML"),
    ],
)
def test_file_that_is_no_row_is_refused_in_one_line(change: str, message: str, tmp_path: Path) -> None:
    plain = {"source": "a page", "returns": "greedy", "target": ">= 5", "settings": row().settings}
    key = change.partition(":")[0]
    text = yaml.safe_dump({name: value for name, value in plain.items() if name != key}) + change
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_row(tmp_path / "bad.yaml")
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_unknown_row_is_refused_and_the_known_ones_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        reproduce.main(["absent", "--rows_dir", str(ROOT / "configs" / "rows")])
    assert ended.value.code == exit_codes.USAGE
    assert "absent.yaml: no such row; expected one of cartpole_novel_gru_100k, " in capsys.readouterr().err


def test_checksum_is_that_of_what_decides_the_results() -> None:
    assert row(note="read this", source="another page").sha256 == row().sha256
    assert row(num_episodes=7).sha256 != row().sha256
    changed = row().settings | {"model": {"gamma": 0.9}}
    assert row(settings=changed).sha256 != row().sha256


def test_length_of_a_row_is_that_of_its_last_update() -> None:
    assert row().env_steps == 480
    assert row(settings=row().settings | {"trainer": {"max_epochs": 3}}).env_steps == 96  # 3 updates of 2 x 16


def test_config_of_a_run_is_the_row_with_its_seed_and_record() -> None:
    config = fit_config(row(), 103, Path("runs"))
    assert config["seed_everything"] == 103 and config["total_env_steps"] == 480
    assert config["data"]["horizon"] == 16 and config["checkpoint"] == {"dirpath": "runs/checkpoints"}
    assert config["trainer"]["callbacks"][-1]["init_args"] == {"path": "runs/record.json", "num_episodes": 100}


# -- results


def test_results_are_kept_and_found_again(tmp_path: Path) -> None:
    RowResults(row(), tmp_path).add(LIT_PPO, 102, record(6.0))
    RowResults(row(), tmp_path).add(SB3, 101, record(4.0))
    RowResults(row(), tmp_path).add(LIT_PPO, 101, record(5.0))
    found = RowResults(row(), tmp_path)
    assert [run["seed"] for run in found.by(LIT_PPO)] == [101, 102]
    assert found.of(LIT_PPO, 102) == {"who": "lit_ppo", "seed": 102, **record(6.0)}
    assert found.of(SB3, 102) is None
    assert json.loads(found.path.read_text())["command"] == "python -m benchmarks.learning.reproduce tiny --seeds=2"


def test_results_of_other_settings_are_refused_by_runs_and_report(tmp_path: Path) -> None:
    RowResults(row(), tmp_path).add(LIT_PPO, 101, record(6.0))
    other = row(num_episodes=7)
    with pytest.raises(ConfigError, match=r"tiny\.json: made with other settings .* delete it and run the row again"):
        RowResults(other, tmp_path)
    with pytest.raises(ConfigError, match=r"made with other settings"):
        report_text([other], tmp_path)


def test_file_that_holds_no_results_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tiny.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"tiny\.json: expected results of a row"):
        RowResults(row(), tmp_path)


# -- runs

WRITES_ITS_RECORD = f"""
import json, sys
with open(sys.argv[1] + "/{RECORD}", "w") as file:
    json.dump({record(7.0)!r}, file)
"""


@pytest.fixture
def made(tmp_path: Path) -> Callable[[int, str], Run]:
    results = RowResults(row(), tmp_path / "results")

    def make(seed: int, code: str) -> Run:
        [run] = results.missing(
            LIT_PPO, [seed], tmp_path / "runs", lambda _, directory: [sys.executable, "-c", code, str(directory)]
        )
        return run

    return make


def test_runs_are_made_and_failures_reported(made: Callable[[int, str], Run], tmp_path: Path) -> None:
    said: list[str] = []
    fails = "import sys; print('lit_ppo: error: it breaks', file=sys.stderr); sys.exit(3)"
    runs = [made(101, WRITES_ITS_RECORD), made(102, fails), made(103, "import os; os.kill(os.getpid(), 9)"), made(104, "")]
    failures = make_runs(runs, 2, said.append)
    assert sorted(failures, key=lambda failure: failure.name) == [
        Failure("tiny, lit_ppo, seed 102", 3, "it breaks"),
        Failure("tiny, lit_ppo, seed 103", 137, "no output"),
        Failure("tiny, lit_ppo, seed 104", exit_codes.CHECKPOINT, "no output"),  # it ended well without a record
    ]
    assert [run["seed"] for run in RowResults(row(), tmp_path / "results").by(LIT_PPO)] == [101]
    assert "tiny, lit_ppo, seed 101: training -93, greedy 7, best checkpoint 8, 2 s" in said


def test_record_of_a_run_that_ended_alone_is_kept_without_another_run(made: Callable[[int, str], Run], tmp_path: Path) -> None:
    run = made(101, "import sys; sys.exit(1)")
    run.directory.mkdir(parents=True)
    (run.directory / RECORD).write_text(json.dumps(record(7.0)))
    assert make_runs([run], 1, lambda line: None) == []
    assert RowResults(row(), tmp_path / "results").of(LIT_PPO, 101) == {"who": "lit_ppo", "seed": 101, **record(7.0)}


def test_run_whose_result_was_deleted_starts_anew(made: Callable[[int, str], Run], tmp_path: Path) -> None:
    run = made(101, WRITES_ITS_RECORD)
    assert make_runs([run], 1, lambda line: None) == []
    (run.directory / "checkpoints").mkdir()
    (tmp_path / "results" / "tiny.json").unlink()
    assert make_runs([run], 1, lambda line: None) == []
    assert not (run.directory / "checkpoints").exists()
    assert RowResults(row(), tmp_path / "results").of(LIT_PPO, 101) is not None


def test_row_that_another_process_runs_is_refused(made: Callable[[int, str], Run]) -> None:
    seen: list[str] = []

    def say(line: str) -> None:
        if "started" in line:  # the lock is held while runs are made
            with pytest.raises(ConfigError, match=r"--runs_dir=.*: the run of process \d+ writes there"):
                make_runs([made(102, "")], 1, lambda line: None)
            seen.append(line)

    assert make_runs([made(101, WRITES_ITS_RECORD)], 1, say) == []
    assert len(seen) == 1


# -- a killed command

KILL_AT = 12  # updates; last.ckpt is that of the tenth


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Callable[[str], CommandLine]]:
    """Starts `reproduce` of a row with two seeds in a directory of its own."""
    kill = {"update": KILL_AT, "once": "kill_once", "starts": "starts"}
    settings = row().settings | {
        "trainer": {"callbacks": [{"class_path": "tests.toy_callbacks.KillsTheCommand", "init_args": kill}]},
        "model": {"minibatch_size": 32, "update_epochs": 1, "normalize_rewards": True},
    }
    content = {"source": "a page", "returns": "greedy", "target": ">= 5", "seeds": 2, "num_episodes": 3, "settings": settings}
    started: list[CommandLine] = []

    def start(name: str) -> CommandLine:
        directory = tmp_path / name
        (directory / "rows").mkdir(parents=True, exist_ok=True)
        evaluation = {"evaluation": {"times": 5, "num_episodes": 2}}
        (directory / "rows" / "tiny.yaml").write_text(yaml.safe_dump(content | evaluation))
        started.append(
            CommandLine(directory, "tiny", "--rows_dir=rows", "--jobs=2", launcher=["-m", "benchmarks.learning.reproduce"])
        )
        return started[-1]

    yield start
    for process in started:
        process.close()


def test_killed_command_goes_on_and_comes_to_the_same_results(command: Callable[[str], CommandLine], tmp_path: Path) -> None:
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / "kill_once").touch()
    assert command("killed").ended(is_tidy=False).code == -9
    again, straight = command("killed").ended(is_tidy=False), command("straight").ended()
    assert again.code == straight.code == exit_codes.DONE, again.err + straight.err
    assert not (tmp_path / "killed" / "kill_once").exists()
    starts = [int(line) for line in (tmp_path / "killed" / "starts").read_text().split()]
    assert 10 in starts  # the seed that struck went on from its checkpoint
    assert len(starts) in (3, 4)  # the other seed may not have begun yet when it struck

    def results(name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((tmp_path / name / "results" / "tiny.json").read_text())
        for run in found["runs"]:
            del run["wall_s"]
        return found

    assert results("killed") == results("straight")
    assert [run["seed"] for run in results("straight")["runs"]] == [101, 102]
    first = results("straight")["runs"][0]
    assert (first["env_steps"], first["updates"], first["final_greedy"]["episodes"]) == (480, 15, 3)
    assert first["training"]["env_steps"][-1] <= 480 and len(first["greedy"]["env_steps"]) == 6  # and the untrained policy


# -- the report


@pytest.mark.parametrize(
    ("changes", "ours", "sb3", "expected"),
    [
        # the upper end of the interval of 480, 490 and 500 is 500
        ({"published": 495}, [480, 490, 500], [], Verdict(True, "within")),
        ({"published": 470}, [480, 490, 500], [], Verdict(True, "above")),
        ({"published": 501}, [480, 490, 500], [], Verdict(False, "below")),
        ({"published": 501}, [480, 490, 500], [490, 600], Verdict(True, "within SB3's")),
        ({"published": 501}, [480, 490, 500], [505, 600], Verdict(False, "below")),
        ({"published": 395, "returns": "training"}, [480, 490, 500], [], Verdict(True, "within")),  # 100 below the greedy ones
        ({"published": 495, "returns": "training"}, [480, 490, 500], [], Verdict(False, "below")),
        ({"sb3_seeds": 3}, [480, 490, 500], [], Verdict(None, "SB3 not run")),
        ({"sb3_seeds": 3}, [480, 490, 500], [400, 410], Verdict(True, "above SB3")),
        ({"published": 93, "solved_at": 85}, [93, 0, 92], [91, 0], Verdict(True, "2 of 3 solved (>= 85), SB3 1 of 2")),
        ({"published": 93, "solved_at": 85}, [93, 0, 0], [91, 0], Verdict(False, "1 of 3 solved (>= 85), SB3 1 of 2")),
        ({"published": 93, "solved_at": 85}, [93, 0], [], Verdict(None, "1 of 2 solved (>= 85), SB3 not run")),
        ({"target": ">= 10"}, [9, 10], [], Verdict(True, "2 of 2 reach >= 10")),  # of the best checkpoint: 10 and 11
        ({"target": ">= 11"}, [9, 10], [], Verdict(False, "1 of 2 reach >= 11")),
        ({"target": ">= 11", "target_share": 0.5}, [9, 10], [], Verdict(True, "1 of 2 reach >= 11")),
        ({"target": "<= 9.5"}, [9, 10], [], Verdict(False, "0 of 2 reach <= 9.5")),
        ({"published": 93}, [], [], Verdict(None, "not run")),
    ],
)
def test_row_passes_by_its_rule(changes: dict[str, Any], ours: list[float], sb3: list[float], expected: Verdict) -> None:
    settings = {"target": None, **changes}
    if "published" in settings:
        settings["published"] = Published(settings["published"], 480, 3)
    assert verdict(row(**settings), *([record(mean) for mean in means] for means in (ours, sb3))) == expected


def test_report_has_every_row_with_its_result_and_a_plot(tmp_path: Path) -> None:
    published = Published(495, 1000, 3, 6.0, "CartPole-v0")
    rows = [
        row(name="a", target=None, published=published, page="https://page"),
        row(name="b", note="it was not tried for long enough", target=">= 500"),
        row(name="c"),
    ]
    for seed, mean in ((101, 480.0), (102, 490.0), (103, 500.0)):
        RowResults(rows[0], tmp_path / "results").add(LIT_PPO, seed, record(mean))
    RowResults(rows[0], tmp_path / "results").add(SB3, 101, record(470.0, seconds=8.0))
    RowResults(rows[1], tmp_path / "results").add(LIT_PPO, 101, record(6.0))
    written = write_report(rows, tmp_path / "results", tmp_path / "docs")
    text = (tmp_path / "docs" / "results.md").read_text()
    assert (
        "| `a` | CartPole-v1 | 480 | greedy | 3 | 490.0 [480.0, 500.0] | [495.0 ± 6 (3 runs, CartPole-v0, 1,000 env steps)]"
        "(https://page) | 470.0 | **passes**: within | 2 / 8 |"
    ) in text
    assert "1 of 1 rows that were run pass, 0 are below." in text
    assert "| `a` | lit_ppo | 390.0 [380.0, 400.0] | 490.0 [480.0, 500.0] | 491.0 [481.0, 501.0] | greedy: 480.0 490.0" in text
    assert "**below**: 0 of 1 reach >= 500" in text and "- `b`: it was not tried for long enough" in text
    assert "## Not run\n\n- `c`: a page, CartPole-v1, 480 env steps" in text
    assert written == [tmp_path / "docs" / "results" / f"{name}.svg" for name in "ab"] + [tmp_path / "docs" / "results.md"]
    before = written[0].read_bytes()
    write_report(rows, tmp_path / "results", tmp_path / "docs")
    assert before.startswith(b"<?xml") and written[0].read_bytes() == before


def test_report_in_the_docs_is_that_of_the_results() -> None:
    expected = report_text([read_row(path) for path in ROWS], ROOT / "results")
    assert (ROOT / "docs" / "results.md").read_text() == expected
    assert all((ROOT / "docs" / plot).is_file() for plot in re.findall(r"!\[.*\]\((.*)\)", expected))


def test_command_without_a_row_lists_all_and_with_report_writes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "configs" / "rows", "configs/rows")
    reproduce.main([])
    listed = capsys.readouterr().out.splitlines()
    assert len(listed) == len(ROWS)
    [line] = [line for line in listed if line.startswith("cleanrl_cartpole ")]
    assert line.split(maxsplit=1)[1] == "500,000 env steps  0 of 5 seeds  CleanRL, ppo.py"
    reproduce.main(["--report"])
    assert capsys.readouterr().out == f"docs{os.sep}results.md\n"
    assert "- `cleanrl_cartpole`: CleanRL, ppo.py" in Path("docs/results.md").read_text()


def test_directory_without_rows_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        reproduce.main([f"--rows_dir={tmp_path}"])
    message = f"lit_ppo: error: --rows_dir={tmp_path}: expected a directory with rows (*.yaml), found none\n"
    assert (ended.value.code, capsys.readouterr().err) == (exit_codes.USAGE, message)


def test_old_command_names_the_new_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["reproduce", "dials"])
    message = "lit_ppo: error: reproduce: it is `python -m benchmarks.learning.reproduce` now, in a checkout of lit_ppo\n"
    assert (ended.value.code, capsys.readouterr().err) == (exit_codes.USAGE, message)


def test_command_refuses_no_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        reproduce.main(["--seeds=0"])
    assert (ended.value.code, capsys.readouterr().err) == (exit_codes.USAGE, "lit_ppo: error: --seeds=0: expected at least 1\n")
