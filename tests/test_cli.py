"""The command line: what a run leaves, what a resume keeps, and how each bad setting ends."""

import contextlib
import csv
import gc
import io
import json
import os
import select
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import gymnasium
import pytest
import torch
import yaml

import lit_ppo
from lit_ppo import cli, exit_codes
from lit_ppo.callbacks.run_config import CONFIG_KEY
from lit_ppo.checkpoint_io import read_checkpoint
from lit_ppo.curve import TrainLog
from lit_ppo.run_lock import RunLock
from tests.patience import patient
from tests.runs import IDENTITY

ROOT = Path(__file__).parents[1]
FIXTURES = ROOT / "tests" / "fixtures"
CONFIGS = [*sorted((ROOT / "configs").glob("*.yaml")), *sorted((ROOT / "examples").glob("*/*.yaml"))]
SMALL = """--data.num_envs 2 --data.horizon 16 --data.evaluation_envs 2 --model.minibatch_size 16 --model.update_epochs 1
    --evaluation.num_episodes 2 --evaluation.every_env_steps 1 --solved.confirmation_episodes 2 --trainer.max_epochs 2"""


RUN = "runs/CartPole-v1/1"  # directory of the first run
NEWEST = "runs/CartPole-v1/latest"
PRESET = "preset: CartPole-v1, in place of the defaults (--preset=none for these)"


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


Run = Callable[[str], Ended]


@pytest.fixture(autouse=True)
def in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Runs a command in this process, which has imported torch and Lightning already."""
    codes = []

    def call(line: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["lit_ppo", *line.split()])
        capfd.readouterr()
        codes.append(exit_code())
        return Ended(codes[-1], *capfd.readouterr())

    yield call
    if any(codes):
        # a command that fails before its fit leaves it to the end of its process to end the environments; here that is
        # for the collector, now rather than in somebody else's test
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()


def exit_code() -> int:
    """Run the command in `sys.argv`."""
    threads = torch.get_num_threads()
    try:
        cli.main()
    except SystemExit as ended:
        return int(ended.code or exit_codes.DONE)
    finally:
        torch.set_num_threads(threads)
    return exit_codes.DONE


@pytest.fixture(scope="module")
def shared_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a small run."""
    directory = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.chdir(directory)
        patch.setattr(sys, "argv", ["lit_ppo", "fit", *SMALL.split()])
        assert exit_code() == exit_codes.DONE
    return directory


@pytest.fixture
def trained(shared_run: Path, in_an_empty_directory: None) -> None:
    """The working directory is that of a small run of one's own."""
    shutil.copytree(shared_run, Path(), symlinks=True, dirs_exist_ok=True)


def in_a_process(line: str) -> tuple[Ended, list[int]]:
    """Run a command as a user does; how it ended, and the processes of its own that outlive it by more than 10 s."""
    mark = f"PYTHONLITPPOTEST={uuid4()}"  # workers get the variables that begin with PYTHON
    environment = os.environ | dict([mark.split("=")])
    command = [sys.executable, "-m", "lit_ppo", *line.split()]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    return Ended(ended.returncode, ended.stdout, ended.stderr), [pid for pid in marked(mark) if outlives(pid, 10.0)]


def marked(mark: str) -> Iterator[int]:
    """Processes that were started with this in their environment."""
    for entry in os.listdir("/proc"):
        try:
            if entry.isdigit() and mark.encode() in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0"):
                yield int(entry)
        except OSError:
            continue  # it ended while we looked


def outlives(pid: int, seconds: float) -> bool:
    """Whether a process is still there after so long on an idle machine."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    ends = select.poll()
    ends.register(descriptor, select.POLLIN)
    ended = ends.poll(1000 * patient(seconds))
    os.close(descriptor)
    return not ended


def update_of(path: str) -> int:
    return int(torch.load(path, weights_only=True)["RolloutDataModule"]["update"])


# -- fit


def test_fit_from_an_empty_directory_leaves_curve_checkpoints_config_and_metrics() -> None:
    ended, left = in_a_process("fit --trainer.max_epochs 2 --evaluation.num_episodes 2")
    assert (ended.code, ended.err, left) == (exit_codes.DONE, "", [])
    at_once = "CartPole-v1, 8 environments, up to 512 env steps, solved at a return of 475"
    assert ended.out.splitlines()[:3] == [PRESET, at_once, "not solved: no confirmed evaluation return of 475"]
    # the preset: 8 envs x 32 steps, evaluated before the first update and after every one
    curve = TrainLog.read("data/rl/ppo_cartpole_trainlog.json")
    assert curve.steps == [0, 8 * 32, 2 * 8 * 32]
    assert update_of(f"{RUN}/last.ckpt") == 2 and update_of(f"{RUN}/best.ckpt") in (1, 2)
    config = yaml.safe_load(Path(RUN, "config.yaml").read_text())
    assert (config["trainer"]["max_epochs"], config["data"]["env_id"]) == (2, "CartPole-v1")
    [metrics] = Path("runs").rglob("metrics.csv")
    header = metrics.read_text().splitlines()[0].split(",")
    assert {"step", "loss/policy", "policy/entropy", "env/steps", "eval/return"} <= set(header)


def test_same_command_writes_the_same_curve(run: Run) -> None:
    curves = []
    for _ in range(2):
        assert run(f"fit {SMALL} --seed_everything 3").code == exit_codes.DONE
        curves.append(Path("data/rl/ppo_cartpole_trainlog.json").read_bytes())
    assert curves[0] == curves[1]


def test_own_environment_and_paths_can_be_named(run: Run) -> None:
    ended = run(f"fit {SMALL} --data.env_id {IDENTITY} --curve.path my/curve.json --checkpoint.dirpath my/checkpoints")
    assert ended.code == exit_codes.DONE
    assert TrainLog.read("my/curve.json").title == f"PPO on {IDENTITY}: greedy evaluation return"
    assert Path("my/checkpoints/last.ckpt").is_file() and Path("my/checkpoints/config.yaml").is_file()
    assert not Path("data/rl").exists() and not Path("runs").exists()
    assert "curve: my/curve.json" in ended.out.splitlines()


def test_curve_and_logger_can_be_turned_off(run: Run) -> None:
    assert run(f"fit {SMALL} --curve.path null --trainer.logger false").code == exit_codes.DONE
    assert not Path("data/rl").exists() and {path.name for path in Path(RUN).iterdir()} >= {"last.ckpt", "run.json"}
    assert not Path(RUN, "curve.json").exists() and not Path(RUN, "logs").exists()


def test_run_stops_as_solved_at_a_threshold_that_is_met(run: Run) -> None:
    ended = run(f"fit {SMALL} --trainer.max_epochs 5 --solved.threshold 1 --solved.margin 0")
    assert ended.out.splitlines()[2].startswith("solved at env step 32: 2 fresh greedy episodes average ")
    assert update_of(f"{NEWEST}/last.ckpt") == 1


# -- the length of a run


def length_of(path: str) -> Any:
    """Env steps of the run, from the settings in a checkpoint; and those over which its schedules run."""
    checkpoint = read_checkpoint(path)
    settings = checkpoint[CONFIG_KEY]
    return settings["total_env_steps"], settings["trainer"]["max_epochs"], checkpoint["lit_ppo_run_env_steps"]


@pytest.mark.parametrize(
    ("typed", "length"),
    [
        ("", (50_000, -1, 50_000)),  # that of the preset
        ("--preset=none", (1_000_000, -1, 1_000_000)),
        ("--trainer.max_epochs=1000", (None, 1000, 1000 * 8 * 32)),
        ("--total_env_steps=1000000", (1_000_000, -1, 1_000_000)),
        ("--total_env_steps=300 --trainer.max_epochs=7", (300, 7, 300)),
        ("--total_env_steps=3000 --trainer.max_epochs=2", (3000, 2, 3000)),
        ("--trainer.max_epochs=-1 --model.learning_rate_decay=constant", (None, -1, None)),
    ],
)
def test_length_of_a_run_is_what_is_typed(typed: str, length: Any, run: Run) -> None:
    ended = run(f"fit --evaluation.num_episodes 1 --trainer.callbacks=tests.toy_callbacks.StopsAfterOneUpdate {typed}")
    assert (ended.code, ended.err) == (exit_codes.DONE, "")
    assert length_of(f"{NEWEST}/last.ckpt") == length


def test_learning_rate_is_above_0_until_the_end_of_a_run_of_1000_updates(run: Run) -> None:
    """Its 64,000 env steps are more than the 50,000 after which the rate used to be 0."""
    small = "--data.num_envs 2 --data.horizon 32 --model.update_epochs 1 --evaluation.every_env_steps 128000"
    assert run(f"fit --data.env_id {IDENTITY} {small} --trainer.max_epochs=1000").code == exit_codes.DONE
    [metrics] = Path("runs").rglob("metrics.csv")
    with metrics.open() as file:
        rates = [float(row["optimizer/learning_rate"]) for row in csv.DictReader(file) if row["optimizer/learning_rate"]]
    assert len(rates) == 1000
    assert rates[-1] == pytest.approx(3e-4 / 1000) and rates == sorted(rates, reverse=True)


@pytest.mark.parametrize(
    ("typed", "updates"),
    [("--total_env_steps=65", 3), ("--total_env_steps=96 --trainer.max_epochs=2", 2), ("--total_env_steps=33", 2)],
)
def test_run_ends_with_the_budget_that_is_used_up_first(typed: str, updates: int, run: Run) -> None:
    assert run(f"fit {SMALL.removesuffix('--trainer.max_epochs 2')} {typed}").code == exit_codes.DONE  # 32 env steps an update
    assert update_of(f"{NEWEST}/last.ckpt") == updates


def test_resumed_run_keeps_its_length_unless_another_is_typed(run: Run) -> None:
    small = SMALL.removesuffix("--trainer.max_epochs 2")
    assert run(f"fit {small} --total_env_steps=64").code == exit_codes.DONE
    ended = run("fit --ckpt_path last")  # nothing is left to do
    assert (ended.code, ended.err, length_of(f"{NEWEST}/last.ckpt")) == (exit_codes.DONE, "", (64, -1, 64))
    for typed, length in (
        ("--total_env_steps=96", (96, -1, 96)),
        ("--trainer.max_epochs=4", (None, 4, 128)),
        ("--total_env_steps=1000 --trainer.max_epochs=5", (1000, 5, 1000)),
    ):
        assert run(f"fit --ckpt_path last {typed}").code == exit_codes.DONE
        assert length_of(f"{NEWEST}/last.ckpt") == length


def test_new_length_of_a_resumed_run_is_said_once(run: Run, trained: None, caplog: pytest.LogCaptureFixture) -> None:
    """By the module if a schedule runs over it, else by the command line; the run had two updates of 32 env steps."""
    for typed, said, warned in (
        ("--trainer.max_epochs=3", "", ["the schedules run over 96 env steps now, 64 before"]),
        (
            "--trainer.max_epochs=4 --model.learning_rate_decay=constant",
            "changed since runs/CartPole-v1/1/last.ckpt: model.learning_rate_decay: None -> constant\n"
            "changed since runs/CartPole-v1/1/last.ckpt: length: 96 -> 128 env steps\n",
            [],
        ),
    ):
        caplog.clear()
        assert run(f"fit --ckpt_path last {typed}").err == said
        assert [record.getMessage() for record in caplog.records] == warned


def test_length_that_is_null_in_a_configuration_file_replaces_nothing(run: Run) -> None:
    small = SMALL.removesuffix("--trainer.max_epochs 2")
    Path("my.yaml").write_text(run(f"fit {small} --print_config").out)
    assert "total_env_steps: null" in Path("my.yaml").read_text() and "max_epochs: null" in Path("my.yaml").read_text()
    assert run("fit --config my.yaml --total_env_steps=64").code == exit_codes.DONE
    ended = run("fit --config my.yaml --ckpt_path=last")
    assert (ended.code, ended.err) == (exit_codes.DONE, "")
    assert (update_of(f"{NEWEST}/last.ckpt"), length_of(f"{NEWEST}/last.ckpt")) == (2, (64, -1, 64))


def test_run_that_has_made_more_updates_than_are_typed_is_refused(run: Run) -> None:
    run(f"fit {SMALL} --trainer.max_epochs 4")
    message = "trainer.max_epochs=3: expected at least 4, the updates that the checkpoint's run has made"
    ended = run("fit --ckpt_path last --trainer.max_epochs 3")
    assert (ended.code, ended.err) == (exit_codes.USAGE, f"lit_ppo: error: {message}\n")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("model.learning_rate_decay_steps", "total_env_steps (model.learning_rate_decay=constant for no decay)"),
        ("model.clip_decay_steps", "total_env_steps and model.clip_decay=linear"),
        ("model.total_env_steps", "total_env_steps"),
        ("model.seed", "seed_everything"),
        ("data.seed", "seed_everything"),
        ("evaluation.every_n_updates", "evaluation.every_env_steps, in env steps (1 evaluates after every update)"),
    ],
)
def test_old_name_of_an_option_is_refused_with_the_new_one(old: str, new: str, run: Run) -> None:
    assert run(f"fit --{old}=1000") == Ended(exit_codes.USAGE, "", f"lit_ppo: error: {old}: use {new}\n")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("model.learning_rate_decay_steps", "total_env_steps (model.learning_rate_decay=constant for no decay)"),
        ("model.total_env_steps", "total_env_steps"),
        ("model.seed", "seed_everything"),
        ("data.seed", "seed_everything"),
        ("evaluation.every_n_updates", "evaluation.every_env_steps, in env steps (1 evaluates after every update)"),
    ],
)
def test_key_in_a_configuration_file_that_another_option_replaces_is_refused(old: str, new: str, run: Run) -> None:
    section, key = old.split(".")
    Path("run.yaml").write_text(f"{section}: {{{key}: 1000}}\n")
    assert run("fit --config run.yaml") == Ended(exit_codes.USAGE, "", f"lit_ppo: error: {old}: use {new}\n")


# -- configuration files


def test_printed_config_is_a_config(run: Run) -> None:
    printed = run(f"fit {SMALL} --model.gamma 0.9 --print_config")
    assert printed.code == exit_codes.DONE
    Path("run.yaml").write_text(printed.out)
    assert yaml.safe_load(printed.out)["model"]["gamma"] == 0.9
    assert run("fit --config run.yaml --trainer.max_epochs 1").code == exit_codes.DONE  # what is typed after it wins
    assert update_of(f"{NEWEST}/last.ckpt") == 1
    assert torch.load(f"{NEWEST}/last.ckpt", weights_only=True)["hyper_parameters"]["gamma"] == 0.9


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_in_configs_is_accepted_and_each_line_of_it_counts(path: Path, run: Run) -> None:
    printed = run(f"fit --config {path} --print_config")
    assert (printed.code, printed.err) == (exit_codes.DONE, "")
    printed_config = yaml.safe_load(printed.out)

    def check(asked: Any, got: Any) -> None:
        if isinstance(asked, dict):
            for key, value in asked.items():
                check(value, got[key])
        elif isinstance(asked, list):
            for value, other in zip(asked, got, strict=True):
                check(value, other)
        else:
            assert got == asked

    check(yaml.safe_load(path.read_text()), printed_config)


@pytest.mark.parametrize("group", ["data", "model", "trainer", "evaluation", "solved", "checkpoint"])
def test_group_in_a_configuration_file_that_is_no_mapping_is_refused(group: str, run: Run) -> None:
    for value, got in {"5": "5", "[gamma]": "['gamma']", "!!set {gamma}": "{'gamma'}", "false": "False"}.items():
        Path("run.yaml").write_text(f"total_env_steps: 64\n{group}: {value}\n")
        expected = f"lit_ppo: error: {group}: expected a mapping, got {got}\n"
        assert run("fit --config run.yaml") == Ended(exit_codes.USAGE, "", expected)


def test_off_in_a_configuration_file_is_a_word(run: Run) -> None:
    """YAML 1.1 reads it as false."""
    Path("run.yaml").write_text(
        "model: {normalize_advantages: off}\n"
        "data: {sandbox: off, contract: {check_membership: off}, env_kwargs: {render: off}}\n"
    )
    printed = run("fit --config run.yaml --print_config")
    for text in (printed.out, printed.out.replace("'off'", "off")):
        Path("run.yaml").write_text(text)
        config = yaml.safe_load(run("fit --config run.yaml --print_config").out)
        assert (config["model"]["normalize_advantages"], config["data"]["sandbox"]) == ("off", "off")
        assert (config["data"]["contract"]["check_membership"], config["data"]["env_kwargs"]) == ("off", {"render": "off"})


def test_boolean_that_check_membership_used_to_be_is_refused_with_the_new_values(run: Run) -> None:
    Path("run.yaml").write_text("data: {contract: {check_membership: true}}\n")
    ended = run("fit --config run.yaml")
    message = "data.contract.check_membership: expected warn, error or off, got True"
    assert ended == Ended(exit_codes.USAGE, "", f"lit_ppo: error: {message}\n")


def test_configs_are_there() -> None:
    assert {path.stem for path in CONFIGS} >= {"cartpole", "cartpole_torchlean", "smoke"}


def test_smoke_config_runs(run: Run) -> None:
    [path] = [path for path in CONFIGS if path.stem == "smoke"]
    ended = run(f"fit --config {path}")
    assert (ended.code, ended.err) == (exit_codes.DONE, "")
    assert update_of(f"{NEWEST}/last.ckpt") == 2


# -- directories that cannot be written


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ("--checkpoint.dirpath=taken/a", ["taken/a: cannot be written: "]),
        ("--curve.path=taken/a.json", ["curve.path=taken/a.json: cannot be written: "]),
        ("--trainer.logger.save_dir=taken/a", ["trainer.logger.save_dir=taken/a: cannot be written: "]),
        ("--checkpoint.dirpath=full", ["full/config.yaml: cannot be written: Is a directory (errno 21)"]),
    ],
)
def test_directory_that_cannot_be_written_ends_in_one_line_and_exit_code_5(setting: str, parts: list[str], run: Run) -> None:
    Path("taken").touch()
    Path("full/config.yaml").mkdir(parents=True)
    ended = run(f"fit {SMALL} {setting}")
    assert (ended.code, ended.out.splitlines()[0], ended.err.count("\n")) == (exit_codes.CHECKPOINT, PRESET, 1)
    assert "solved" not in ended.out.splitlines()[-1].partition(",")[0]  # no summary
    assert ended.err.startswith("lit_ppo: error: ") and all(part in ended.err for part in parts)


def test_log_that_cannot_be_written_ends_test_and_validate_with_exit_code_5(run: Run, trained: None) -> None:
    Path("taken").touch()
    for command in ("test", "validate"):
        ended = run(f"{command} --ckpt_path=last --trainer.logger.save_dir=taken/a")
        assert (ended.code, ended.out.count("\n"), ended.err.count("\n")) == (exit_codes.CHECKPOINT, 1, 1)  # the checkpoint


def test_error_of_ones_own_callback_keeps_its_traceback(run: Run) -> None:
    with pytest.raises(FileNotFoundError):
        run(f"fit {SMALL} --trainer.callbacks=tests.toy_callbacks.ReadsAbsentFile")


def test_report_that_cannot_be_written_does_not_hide_the_fault(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    Path("taken").touch()
    ended = run(f"fit {SMALL} --data.env_id tests.fault_envs:NaN-v0 --data.report_dir taken/reports")
    assert (ended.code, ended.err.count("\n")) == (exit_codes.ENVIRONMENT, 1)
    assert "taken/reports: the report cannot be written: " in caplog.text


def test_run_that_is_refused_leaves_no_log_and_the_config_of_the_run_that_holds_the_directory(run: Run, trained: None) -> None:
    before = sorted(Path(RUN, "logs").iterdir()), Path(RUN, "config.yaml").read_bytes()
    lock = RunLock(Path(RUN))
    ended = run(f"fit --ckpt_path={RUN}/last.ckpt --model.gamma 0.5")
    lock.release()
    assert ended.code == exit_codes.USAGE and "writes there" in ended.err
    assert (sorted(Path(RUN, "logs").iterdir()), Path(RUN, "config.yaml").read_bytes()) == before


# -- keyword arguments of the environment


VERBATIM = {
    "number": 3,
    "digits": "123",
    "word": "null",
    "nothing": None,
    "flag": "true",
    "time": "12:30",
    "zeros": "010",
    "list": ["1", 2],
    "tree": {"a": "1e3", "b": "0o10"},
}


def env_kwargs_of(printed: str) -> Any:
    return yaml.safe_load(printed)["data"]["env_kwargs"]


def test_env_kwargs_arrive_as_yaml_writes_them(run: Run) -> None:
    """From the command line, a configuration file, and the configuration that either of them prints."""
    typed = run(f"fit --data.env_kwargs={json.dumps(VERBATIM, separators=(',', ':'))} --print_config")
    assert env_kwargs_of(typed.out) == VERBATIM
    Path("run.yaml").write_text(typed.out)
    assert env_kwargs_of(run("fit --config run.yaml --print_config").out) == VERBATIM


def test_env_kwargs_reach_the_environment_and_a_resumed_run_unchanged(run: Run) -> None:
    env = 'tests.toy_envs:Verbatim-v0 --data.env_kwargs={"digits":"123","word":"null"}'
    assert run(f"fit {SMALL} --data.env_id {env}").code == exit_codes.DONE
    assert read_checkpoint("runs/tests.toy_envs-Verbatim-v0/1/last.ckpt")[CONFIG_KEY]["data"]["env_kwargs"] == {
        "digits": "123",
        "word": "null",
    }
    ended = run("fit --ckpt_path last --trainer.max_epochs 3")
    assert (ended.code, update_of("runs/tests.toy_envs-Verbatim-v0/1/last.ckpt")) == (exit_codes.DONE, 3)


def test_wrappers_keep_their_arguments_in_a_config_a_checkpoint_and_a_resumed_run(run: Run) -> None:
    scale = {"class_path": "tests.toy_wrappers.Scale", "init_args": {"factor": 3.0}}
    wrappers = ["tests.toy_wrappers.Repeat", scale]
    typed = f"--data.wrappers={json.dumps(wrappers, separators=(',', ':'))} --data.max_episode_steps 4 --data.frame_stack 2"
    constant = "--data.env_id tests.toy_envs:ConstantReward-v0"
    Path("run.yaml").write_text(run(f"fit {SMALL} {constant} {typed} --print_config").out)
    assert yaml.safe_load(Path("run.yaml").read_text())["data"]["wrappers"] == wrappers
    assert run("fit --config run.yaml").code == exit_codes.DONE
    assert read_checkpoint("runs/tests.toy_envs-ConstantReward-v0/1/last.ckpt")[CONFIG_KEY]["data"]["wrappers"] == wrappers
    assert run("fit --ckpt_path last --trainer.max_epochs 3").code == exit_codes.DONE
    tested = run("test --ckpt_path last --data.test_episodes 2")  # 4 steps of the reward 1 * 3, in evaluation
    assert dict(row.rsplit(maxsplit=1) for row in tested.out.splitlines())["mean return"] == "12.00"


def test_single_items_of_env_kwargs_are_read_as_yaml_and_added_to_the_mapping(run: Run) -> None:
    items = {
        "number": "3",
        "digits": '"123"',
        "word": '"null"',
        "nothing": "null",
        "flag": '"true"',
        "time": "12:30",
        "list": '["1",2]',
    }
    items["zeros"] = "'010'"
    first, *others = [f"--data.env_kwargs.{name}={value}" for name, value in items.items()]
    typed = run(
        f'fit --data.env_kwargs={{"tree":{{"a":"1e3","b":"0o10"}}}} {" ".join(others)} {first.replace("=", " ")} --print_config'
    )
    assert (typed.code, env_kwargs_of(typed.out)) == (exit_codes.DONE, VERBATIM)


def test_item_of_env_kwargs_that_is_not_yaml_is_refused(run: Run) -> None:
    message = "--data.env_kwargs.level: expected a value in YAML, got {"
    assert run("fit --data.env_kwargs.level={") == Ended(exit_codes.USAGE, "", f"lit_ppo: error: {message}\n")


# -- bad settings


BAD = {
    "--model.gamma 1.5": "model.gamma=1.5: expected a number in [0, 1]",
    "--data.num_envs 0": "data.num_envs=0: expected at least 1",
    "--data.num_workers 3": "data.num_envs=8: expected a multiple of data.num_workers=3",
    "--seed_everything -1": "seed_everything=-1: expected 0 to 2^32 - 1",
    "--total_env_steps 0": "total_env_steps=0: expected at least 1",
    "--torch_threads 0": "torch_threads=0: expected at least 1",
    "--evaluation.num_episodes 0": "evaluation.num_episodes=0: expected at least 1",
    "--model.gama 0.9": "unrecognized arguments: --model.gama 0.9 (did you mean --model.gamma?)",
    "--data.num_env 4": "unrecognized arguments: --data.num_env 4 (did you mean --data.num_envs?)",
    "--total_env_step=3": "unrecognized arguments: --total_env_step=3 (did you mean --total_env_steps?)",
    "--data.num_envs four": "data.num_envs: expected an integer, got four",
    "--total_env_steps=1e3": "total_env_steps: expected an integer or null, got 1e3",
    "--data.env_kwargs=level": "data.env_kwargs: expected a mapping or null, got level",
    "--data.wrappers=atari": "data.wrappers: expected a list or null, got atari",
    "--data.frame_stack=0": "data.frame_stack=0: expected at least 1",
    "--data.rlimits=[1]": "data.rlimits: expected a mapping to integers or null, got [1]",
    "--model.activation sigmoid": "model.activation: expected tanh, relu, elu, silu or gelu, got sigmoid",
    "--trainer.min_epochs 3": "trainer.min_epochs=3: keeps a signal and total_env_steps from ending the run; leave it out",
    "--trainer.min_steps 3": "trainer.min_steps=3: keeps a signal and total_env_steps from ending the run; leave it out",
    "--trainer.gradient_clip_val 1.0": "trainer.gradient_clip_val=1.0: has no effect on PPO updates; use --model.max_grad_norm",
    "--trainer.accumulate_grad_batches 2": (
        "trainer.accumulate_grad_batches=2: has no effect on PPO updates; use a larger --model.minibatch_size"
    ),
}


@pytest.mark.parametrize("setting", BAD)
def test_bad_setting_ends_in_one_line_and_exit_code_2(setting: str, run: Run) -> None:
    ended = run(f"fit {setting}")
    assert ended == Ended(exit_codes.USAGE, "", f"lit_ppo: error: {BAD[setting]}\n")


@pytest.mark.parametrize(
    ("env_id", "parts"),
    [
        ("NoSuch-v0", ["env_id=NoSuch-v0: ", "doesn't exist", "name its module as well: env_id=module:EnvId"]),
        ("CartPol-v1", ["env_id=CartPol-v1: ", "Did you mean: `CartPole`?"]),
        ('CartPole-v1 --data.env_kwargs {"level":3}', ["env_kwargs={'level': 3}: ", "unexpected keyword argument 'level'"]),
        ("tests.toy_wrappers:lacking", ["has no package no_such_package; run: ", "-m pip install 'no_such_package'"]),
        ("no_such_module:Env-v0", ["env_id=no_such_module:Env-v0: there is no module no_such_module"]),
        (
            'tests.fault_envs:Spaces-v0 --data.env_kwargs {"observation":"text"}',
            ["env_id=tests.fault_envs:Spaces-v0: observation space Text is not supported: ", "ObservationWrapper"],
        ),
    ],
)
def test_environment_that_cannot_be_trained_on_ends_in_one_line_and_exit_code_2(
    env_id: str, parts: list[str], run: Run
) -> None:
    ended = run(f"fit --data.env_id {env_id}")
    assert (ended.code, ended.out, ended.err.count("\n")) == (exit_codes.USAGE, "", 1)
    assert ended.err.startswith("lit_ppo: error: ") and all(part in ended.err for part in parts)


def test_environment_of_a_notebook_cell_ends_in_one_line_and_exit_code_2(run: Run) -> None:
    exec("import gymnasium\ngymnasium.register('Cell-v0', lambda: None)", {"__name__": "__main__"})
    try:
        ended = run("fit --data.env_id=Cell-v0")
    finally:
        del gymnasium.registry["Cell-v0"]
    reason = "it is made in __main__ (a script or notebook), which environment processes do not run"
    advice = "move it, and its gymnasium.register, into a file my_env.py, and write env_id=my_env:Cell-v0"
    assert ended == Ended(exit_codes.USAGE, "", f"lit_ppo: error: data.env_id=Cell-v0: {reason}; {advice}\n")


def test_interpreter_that_is_too_old_ends_in_one_line_and_exit_code_2(run: Run) -> None:
    python = Path("python").absolute()
    python.write_text('#!/bin/sh\necho \'{"python": "3.9.2", "numpy": "1.26.4", "gymnasium": "0.29.1"}\'\n')
    python.chmod(0o700)
    expected = "expected Python 3.10, numpy 1.26 and Gymnasium 0.29, or newer, got python 3.9.2"
    assert run(f"fit --data.python={python}") == Ended(
        exit_codes.USAGE, "", f"lit_ppo: error: data.python={python}: {expected}\n"
    )


def test_minibatch_that_is_larger_than_a_rollout_is_refused(run: Run) -> None:
    ended = run("fit --model.minibatch_size 257")  # found out when the run begins
    message = "model.minibatch_size=257: expected at most data.horizon * data.num_envs = 32 * 8 = 256"
    assert (ended.code, ended.err) == (exit_codes.USAGE, f"lit_ppo: error: {message}\n")


def test_bad_setting_leaves_no_traceback_and_no_process() -> None:
    ended, left = in_a_process("fit --model.gamma 1.5")  # found out after the environments were started
    assert ended == Ended(exit_codes.USAGE, "", "lit_ppo: error: model.gamma=1.5: expected a number in [0, 1]\n")
    assert left == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_that_is_not_there_is_named(run: Run) -> None:
    ended = run(f"fit {SMALL} --trainer.accelerator gpu")
    assert (ended.code, ended.out, ended.err.count("\n")) == (exit_codes.USAGE, "", 1)
    assert "gpu" in ended.err


def test_misspelt_key_in_a_config_file_is_named(run: Run) -> None:
    Path("run.yaml").write_text("model:\n  gama: 0.9\n")
    ended = run("fit --config run.yaml")
    assert (ended.code, ended.err.count("\n")) == (exit_codes.USAGE, 1)
    assert "gama" in ended.err


def test_environment_that_breaks_its_contract_has_an_exit_code_of_its_own(run: Run) -> None:
    ended = run(f"fit {SMALL} --data.env_id tests.fault_envs:NaN-v0")
    assert ended.code == exit_codes.ENVIRONMENT
    assert "nan" in ended.err and "Traceback" not in ended.err


# -- checkpoints


def test_results_of_a_checkpoint_are_printed_as_a_table(run: Run, trained: None) -> None:
    for command, episodes in (("test --data.test_episodes 5", 5), ("validate --data.validation_episodes 3", 3)):
        ended = run(f"{command} --ckpt_path last")
        assert ended.code == exit_codes.DONE
        rows = [line.rsplit(maxsplit=1) for line in ended.out.splitlines()[1:]]
        assert [name for name, _ in rows] == ["episodes", "mean return", "std", "min", "max", "solved (mean >= 475)"]
        table = dict(rows)
        assert table["episodes"] == str(episodes) and table["solved (mean >= 475)"] == "no"
        assert float(table["min"]) <= float(table["mean return"]) <= float(table["max"]) <= 500


def test_tested_policy_meets_its_threshold_inclusively(run: Run) -> None:
    """An environment whose episodes all return 10 meets a threshold of 10."""
    constant = f"{SMALL} --data.env_id tests.toy_envs:ConstantReward-v0"
    run(f"fit {constant}")
    for threshold, verdict in (("10", "yes"), ("10.001", "no")):
        ended = run(f"test --ckpt_path last --data.test_episodes 2 --solved.threshold {threshold}")
        assert ended.out.splitlines()[-1].split() == ["solved", "(mean", ">=", f"{threshold})", verdict]


@pytest.mark.parametrize("command", ["test", "validate"])
def test_without_a_checkpoint_the_best_of_the_newest_run_plays_and_is_named(command: str, run: Run, trained: None) -> None:
    ended = run(f"{command} --data.{command.replace('validate', 'validation')}_episodes=1")
    assert (ended.code, ended.out.splitlines()[0]) == (exit_codes.DONE, f"checkpoint: {RUN}/best.ckpt, of the newest run")


def test_resume_takes_the_settings_of_the_checkpoint_and_goes_on(run: Run, trained: None) -> None:
    """The checkpoint's 2 environments and minibatches, not the defaults, though nothing of them is typed again."""
    ended = run("fit --ckpt_path last --trainer.max_epochs 3")
    assert ended.code == exit_codes.DONE
    assert ended.err == ""
    assert TrainLog.read("data/rl/ppo_cartpole_trainlog.json").steps == [0, 32, 64, 96]


def test_run_resumed_by_command_equals_the_run_in_one_go(run: Run) -> None:
    length = "--total_env_steps 128"  # of the schedules, for both: 4 updates
    run(f"fit {SMALL} {length} --trainer.max_epochs 4 --checkpoint.dirpath straight --curve.path straight.json")
    run(f"fit {SMALL} {length} --checkpoint.dirpath parts --curve.path parts.json")
    run("fit --ckpt_path parts/last.ckpt --total_env_steps 128")
    straight, parts = (torch.load(f"{name}/last.ckpt", weights_only=True)["state_dict"] for name in ("straight", "parts"))
    assert all(straight[name].equal(parts[name]) for name in straight)
    assert Path("straight.json").read_bytes() == Path("parts.json").read_bytes()


def test_typed_value_wins_over_the_checkpoint_and_is_shown(run: Run, trained: None) -> None:
    ended = run("fit --ckpt_path last --trainer.max_epochs 3 --model.learning_rate 0.5 --model.learning_rate_decay constant")
    assert ended.code == exit_codes.DONE
    assert "changed since runs/CartPole-v1/1/last.ckpt: model.learning_rate: 0.003 -> 0.5\n" in ended.err
    assert "model.learning_rate_decay: None -> constant\n" in ended.err
    checkpoint = torch.load(f"{NEWEST}/last.ckpt", weights_only=True)
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] == 0.5
    assert checkpoint["hyper_parameters"]["learning_rate"] == 0.5


def test_value_in_a_config_file_wins_over_the_checkpoint_too(run: Run, trained: None) -> None:
    Path("more.yaml").write_text("trainer: {max_epochs: 3}\nmodel: {learning_rate: 0.25}\n")
    ended = run("fit --config more.yaml --ckpt_path last")
    assert "model.learning_rate: 0.003 -> 0.25\n" in ended.err
    assert torch.load(f"{NEWEST}/last.ckpt", weights_only=True)["hyper_parameters"]["learning_rate"] == 0.25


def test_value_that_is_typed_again_unchanged_is_no_difference(run: Run, trained: None) -> None:
    assert run("fit --ckpt_path last --data.num_envs 2 --model.gamma 0.99 --trainer.max_epochs 2").err == ""


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("--data.num_envs 4", "data.num_envs=4: the checkpoint's run has 2, which cannot change on resume"),
        (
            "--data.env_id Acrobot-v1",
            "data.env_id=Acrobot-v1: the checkpoint's run has CartPole-v1, which cannot change on resume",
        ),
        ("--data.frame_stack 2", "data.frame_stack=2: the checkpoint's run has None, which cannot change on resume"),
        ("--data.wrappers [a.B]", "data.wrappers=['a.B']: the checkpoint's run has None, which cannot change on resume"),
        ("--model.activation relu", "model.activation=relu: the checkpoint's run has tanh, which cannot change on resume"),
        ("--model.memory gru", "model.memory=gru: the checkpoint's run has None, which cannot change on resume"),
        ("--model.gsde true", "model.gsde=True: the checkpoint's run has False, which cannot change on resume"),
        (
            "--data.remake_each_episode true",
            "data.remake_each_episode=True: the checkpoint's run has False, which cannot change on resume",
        ),
        (
            "--model.actor_hidden_sizes [32]",
            "model.actor_hidden_sizes=[32]: the checkpoint's run has [64, 64], which cannot change on resume",
        ),
        (
            "--data.vectorization native",
            "data.vectorization=native: the checkpoint's run has sync, which cannot change on resume",
        ),
    ],
)
def test_what_a_run_cannot_change_half_way_is_refused(typed: str, message: str, run: Run, trained: None) -> None:
    before = Path(f"{NEWEST}/last.ckpt").read_bytes()
    assert run(f"fit --ckpt_path {RUN}/last.ckpt --trainer.max_epochs 3 {typed}") == Ended(
        exit_codes.USAGE, "", f"lit_ppo: error: {message}\n"
    )
    assert Path(f"{NEWEST}/last.ckpt").read_bytes() == before


def test_last_checkpoint_that_is_not_there_is_an_error(run: Run) -> None:
    message = (
        "ckpt_path: expected a run with last.ckpt in runs, found none; make one with `python -m lit_ppo fit`, or name a path"
    )
    assert run("fit --ckpt_path last") == Ended(exit_codes.CHECKPOINT, "", f"lit_ppo: error: {message}\n")


@pytest.mark.parametrize("content", ["text", "another"])
def test_file_that_is_no_checkpoint_of_ours_is_an_error(content: str, run: Run) -> None:
    if content == "text":
        Path("foreign.ckpt").write_text("no checkpoint")
    else:
        torch.save({"state_dict": {}}, "foreign.ckpt")
    ended = run("fit --ckpt_path foreign.ckpt")
    assert (ended.code, ended.out, ended.err.count("\n")) == (exit_codes.CHECKPOINT, "", 1)
    assert ended.err.startswith("lit_ppo: error: ") and "foreign.ckpt" in ended.err


# -- plot


def test_plot_command_draws_the_curve_of_a_run(run: Run, trained: None) -> None:
    assert run("plot data/rl/ppo_cartpole_trainlog.json --output curve.png") == Ended(exit_codes.DONE, "curve.png\n", "")
    assert Path("curve.png").stat().st_size > 1000


@pytest.mark.parametrize("content", [None, "no curve"])
def test_curve_that_cannot_be_read_ends_in_one_line_and_exit_code_5(content: str | None, run: Run) -> None:
    if content is not None:
        Path("curve.json").write_text(content)
    ended = run("plot curve.json")
    assert (ended.code, ended.out, ended.err.count("\n")) == (exit_codes.CHECKPOINT, "", 1)
    assert ended.err.startswith("lit_ppo: error: curve.json: ")


# -- standard streams that are closed or full


def in_the_shell(line: str) -> Ended:
    """Run `lit_ppo` with redirections."""
    command = f"{sys.executable} -m lit_ppo {line}"
    ended = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    return Ended(ended.returncode, ended.stdout, ended.stderr)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("--help > /dev/full", "No space left on device (errno 28)"),
        ("--version >&-", "Bad file descriptor (errno 9)"),
        ("fit --print_config >&-", "Bad file descriptor (errno 9)"),
        ("runs >&-", "Bad file descriptor (errno 9)"),
        ("fit --print_config > /dev/full", "No space left on device (errno 28)"),
        (f"fit {' '.join(SMALL.split())} > /dev/full", "No space left on device (errno 28)"),
    ],
)
def test_output_that_cannot_be_written_ends_in_one_line_and_exit_code_5(line: str, reason: str) -> None:
    message = f"lit_ppo: error: standard output: cannot be written: {reason}\n"
    assert in_the_shell(line) == Ended(exit_codes.CHECKPOINT, "", message)


@pytest.mark.parametrize(("closed", "lines"), [("2>&-", 7), (">&-", 0), ("<&- >&- 2>&-", 0)])
def test_run_whose_standard_streams_are_closed_works(closed: str, lines: int) -> None:
    ended = in_the_shell(f"fit {' '.join(SMALL.split())} {closed}")
    assert (ended.code, ended.out.count("\n"), ended.err) == (exit_codes.DONE, lines, "")
    assert Path(RUN, "last.ckpt").exists()


def test_checkpoints_hold_the_settings_of_their_run_as_plain_data(run: Run) -> None:
    run(f"fit {SMALL} --model.gamma 0.9")
    settings = torch.load(f"{NEWEST}/last.ckpt", weights_only=True)[CONFIG_KEY]
    assert settings["model"]["gamma"] == 0.9 and settings["data"]["num_envs"] == 2
    json.dumps(settings)


# -- commands and their help


def test_help_lists_all_commands(run: Run) -> None:
    ended = run("--help")
    assert (ended.code, ended.err) == (exit_codes.DONE, "")
    listed = [line.split()[0] for line in ended.out.splitlines() if line.startswith("    ") and line[4] != " "]
    assert listed == [
        "fit",
        "validate",
        "test",
        "check-env",
        "export",
        "play",
        "plot",
        "presets",
        "replay",
        "rollout",
        "runs",
    ]


def test_version_is_that_of_the_package(run: Run) -> None:
    assert run("--version") == Ended(exit_codes.DONE, f"lit_ppo {lit_ppo.__version__}\n", "")


@pytest.mark.parametrize("command", ["fit", "validate", "test"])
def test_help_of_a_training_command_shows_our_options_first_and_the_trainers_last(command: str, run: Run) -> None:
    lines = run(f"{command} --help").out.splitlines()
    titles = [line.partition(":")[0] for line in lines if line and line[0] not in " " and line.endswith(":")]
    callbacks = ["interrupt", "evaluation", "solved", "curve", "progress", "checkpoint"]
    assert titles == ["options", "run", "model", "data", "data.contract", *callbacks, "trainer", "Linked arguments", "examples"]
    assert len(lines) - lines.index("examples:") - 1 == 5


def test_help_writes_null_as_it_is_typed(run: Run) -> None:
    shown = run("fit --help").out
    assert "None" not in shown and "Verbatim" not in shown
    assert "null for no clipping" in " ".join(shown.split())


def test_examples_of_the_help_are_valid(run: Run, trained: None) -> None:
    Path("my.yaml").write_text("trainer: {max_epochs: 3}")
    examples = [line.strip() for help in ("--help", "fit --help") for line in run(help).out.splitlines() if line[:4] == "  py"]
    assert len(examples) == 13
    for example in examples:
        line = example.partition(" > ")[0].removeprefix("python -m lit_ppo ")
        if line.partition(" ")[0] in ("fit", "test"):
            ended = run(line if "--print_config" in line else f"{line} --print_config")
            assert (ended.code, ended.err) == (exit_codes.DONE, "")


@pytest.mark.parametrize("line", ["", "--config a.yaml fit"])
def test_line_that_does_not_begin_with_a_command_is_refused(line: str, run: Run) -> None:
    ended = run(line)
    assert (ended.code, ended.err.count("\n")) == (exit_codes.USAGE, 1)
    assert "expected one of fit, validate, test, check-env, export, play, plot, presets, replay, rollout, runs" in ended.err


def test_word_that_is_no_command_is_refused_with_all_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["fti"])
    assert ended.value.code == exit_codes.USAGE
    expected = (
        "lit_ppo: error: fti: expected one of fit, validate, test, check-env, export, play, plot, presets, replay, "
        "rollout, runs (did you mean fit?)\n"
    )
    assert capsys.readouterr().err == expected


def test_checkpoint_of_an_older_version_resumes_to_the_end_that_it_came_to(run: Run) -> None:
    """Both files were written by version 0.2.0 of November 2026: one at 96 env steps, one when that had been resumed to 192."""
    old = FIXTURES / "0.2.0_at_96.ckpt"
    ended = run(f"fit --ckpt_path={old} --trust_checkpoint=true --total_env_steps=192 --checkpoint.dirpath=after")
    assert ended.code == exit_codes.DONE, ended.err
    expected, found = (read_checkpoint(path) for path in (FIXTURES / "0.2.0_at_192.ckpt", Path("after/last.ckpt")))
    for part in ("state_dict", "optimizer_states"):
        # close, not equal: processors round differently
        torch.testing.assert_close(found[part], expected[part], rtol=1e-5, atol=1e-7)
    for part in ("update", "env_steps", "seed", "statistics", "begins", "bridge"):
        assert found["RolloutDataModule"][part] == expected["RolloutDataModule"][part]
    assert [found[part] for part in ("epoch", "global_step")] == [expected[part] for part in ("epoch", "global_step")]
