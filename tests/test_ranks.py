"""Several ranks compute what one does, bit for bit: curve, parameters, optimizer, episodes under way."""

import json
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import monotonic
from types import SimpleNamespace
from typing import Any

import pytest

from lit_ppo import exit_codes
from lit_ppo.checkpoint_io import read_checkpoint
from lit_ppo.commands.checkpoint_choice import choice_of_checkpoint
from lit_ppo.errors import ConfigError
from lit_ppo.seeding import episode_seed
from tests.faults.harness import FAULTY, LAST, CommandLine, Ended, outcome, wait_for
from tests.patience import patient
from tests.test_resume import differences

SETTINGS = {
    "preset": "none",
    "data.env_id": "CartPole-v1",
    "data.num_envs": 8,
    "data.horizon": 16,
    "data.shards": 4,
    "model.minibatch_size": 32,
    "model.update_epochs": 3,
    "model.normalize_observations": "true",
    "model.normalize_rewards": "true",
    "model.target_kl": 0.01,
    "model.clip_decay": "linear",
    "evaluation.every_env_steps": 512,  # after every fourth update
    "evaluation.num_episodes": 6,
    "solved.threshold": ".inf",
    "progress.interval_s": 1000000,  # no lines that depend on the time
    "trainer.logger": "false",
    "curve.path": "curve.json",
    "checkpoint.dirpath": "checkpoints",
}
MEMORY = {"model.memory": "gru", "model.memory_size": 8, "model.sequence_length": 8}
COMPILED = {"model.compile": "true"}
BOX = {"data.env_id": "Pendulum-v1", "model.log_std": "state"}
MASKED_DICT = {
    "data.env_id": "tests.toy_envs:Anything-v0",
    "data.env_kwargs": '{"observation": "nested", "masked": true}',
    "data.action_mask": "info:possible",
}
MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "memory": MEMORY,
    "compiled": COMPILED,
    "compiled, memory": COMPILED | MEMORY,
    "compiled, Box": COMPILED | BOX,
    "masked Dict, memory": MASKED_DICT | MEMORY,
    "compiled, masked Dict": COMPILED | MASKED_DICT,
    "native": {"data.vectorization": "native"},
}
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=3", "-m", "lit_ppo"]
ADVICE = f"continue with --ckpt_path {LAST}"
LONG = 60  # updates of a run that is struck near its beginning; schedules depend on the length
DEADLINE_S = 200.0  # on an idle machine

Start = Callable[..., CommandLine]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    runs: list[CommandLine] = []

    def start(
        name: str,
        ranks: int,
        updates: int,
        *,
        command: str = "fit",
        launcher: Sequence[str] = (),
        prefix: Sequence[str] = (),
        **settings: Any,
    ) -> CommandLine:
        options = SETTINGS | {"trainer.max_epochs": updates}
        if ranks > 1:
            options |= {"trainer.devices": ranks, "trainer.strategy": "ddp"}
        options |= {key.replace("__", "."): settings[key] for key in settings}
        arguments = [f"--{key}={value}" for key, value in options.items() if value is not None]
        runs.append(CommandLine(tmp_path / name, command, *arguments, launcher=launcher, prefix=prefix))
        return runs[-1]

    yield start
    for run in runs:
        run.close()


def finished(run: CommandLine) -> Ended:
    ended = run.ended(DEADLINE_S)
    assert ended.code == 0 and "nothing is compiled" not in ended.err, ended
    return ended


def same_outcome(one: Path, other: Path) -> bool:
    """Bit for bit, but for the number of workers, which is one for each rank at least."""
    outcomes = [outcome(directory) for directory in (one, other)]
    for _, kept in outcomes:
        kept["data"]["bridge"].pop("num_workers")
    assert differences(*outcomes) == []
    return True


def test_two_ranks_make_the_run_of_one_with_one_curve_and_one_voice(start: Start, tmp_path: Path) -> None:
    runs = start("one", 1, 3), start("two", 2, 3)
    one, two = (finished(run) for run in runs)
    assert same_outcome(tmp_path / "one", tmp_path / "two")
    assert one.out.splitlines()[:2] == two.out.splitlines()[:2]  # nothing is said twice
    assert len(two.out.splitlines()) == len(one.out.splitlines())
    assert two.err == ""
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["checkpoints", "curve.json", "tmp"]


def test_restart_on_several_nodes_needs_a_name_by_which_they_find_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    of_torchrun = {"GROUP_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_MAX_RESTARTS": "3"}
    for name, value in of_torchrun.items():
        monkeypatch.setenv(name, value)
    settings = SimpleNamespace(ckpt_path=None, checkpoint=SimpleNamespace(dirpath=None), runs_dir="runs")
    with pytest.raises(ConfigError) as refused:
        choice_of_checkpoint("fit", settings)
    assert "on several nodes: expected --rdzv-id=NAME" in str(refused.value)
    for found in ({"TORCHELASTIC_RUN_ID": "named"}, {"TORCHELASTIC_MAX_RESTARTS": "0"}, {"GROUP_WORLD_SIZE": "1"}):
        with monkeypatch.context() as patch:
            patch.setenv(*next(iter(found.items())))
            assert choice_of_checkpoint("fit", settings) is None


def ranks_of(run: CommandLine, number: int) -> list[int]:
    """Processes that were started as rank `number` of this machine."""
    wanted = f"LOCAL_RANK={number}".encode()
    return [pid for pid in run.processes() if wanted in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")]


def strike(run: CommandLine, number: int, action: signal.Signals) -> float:
    """Send a signal to a rank as soon as there is a second checkpoint, so that the first is known to all; the moment."""
    second = run.directory / "checkpoints" / "last.previous.ckpt"
    wait_for(second.exists, "the second checkpoint", DEADLINE_S)
    os.kill(run.process.pid if number == 0 else ranks_of(run, number)[0], action)
    return monotonic()


@pytest.mark.slow
def test_validate_and_test_play_the_same_episodes_with_any_number_of_ranks(start: Start) -> None:
    finished(start("run", 1, 2))
    for command in ("validate", "test"):
        said = [finished(start("run", ranks, 2, command=command, ckpt_path="last")).out for ranks in (1, 2, 4)]
        assert "mean return" in said[0] and said[0] == said[1] == said[2]


@pytest.mark.slow
@pytest.mark.parametrize("action", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("number", [0, 1])
def test_rank_that_is_killed_or_hangs_ends_all_within_the_limit(
    number: int, action: signal.Signals, start: Start, tmp_path: Path
) -> None:
    run = start("struck", 2, LONG, data__rank_timeout_s=10.0, checkpoint__every_n_updates=1)
    other = wait_for(lambda: ranks_of(run, 1), "the second rank", DEADLINE_S)[0] if number == 0 else run.process.pid
    struck_at = strike(run, number, action)
    wait_for(lambda: not is_alive(other), "the end of the other rank", 15.0)
    assert monotonic() - struck_at < patient(10.0)
    ended = run.ended(15.0, is_tidy=False)  # no process is left
    line = f"rank {number} has ended" if action == signal.SIGKILL else f"rank {number} has not answered for "
    assert line in ended.err and ended.err.endswith(f"{ADVICE}\n") and ended.err.count("\n") == 1
    assert ended.code == (exit_codes.RANK if number == 1 else -signal.SIGKILL)
    assert read_checkpoint(tmp_path / "struck" / LAST)["RolloutDataModule"]["update"] < LONG
    finished(start("struck", 1, LONG, ckpt_path="last"))
    finished(start("straight", 1, LONG))
    assert same_outcome(tmp_path / "straight", tmp_path / "struck")


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_rank_that_hangs_in_python_ends_all_when_the_patience_of_the_others_ends(
    number: int, start: Start, tmp_path: Path
) -> None:
    """Its other threads go on, that of its watch among them."""
    hang = {"class_path": "tests.toy_callbacks.HangsInRank", "init_args": {"number": number, "update": 5}}
    limits = {"data.rank_patience_s": 5, "checkpoint.every_n_updates": 1}
    ended = start("hangs", 2, LONG, **limits, **{"trainer.callbacks": json.dumps([hang])}).ended(DEADLINE_S)
    line = f"lit_ppo: error: rank {number} lives, but has kept the others waiting for 5."
    assert ended.err.startswith(line) and ended.err.endswith(f"{ADVICE}\n"), ended
    assert ended.code == (exit_codes.RANK if number == 1 else -signal.SIGKILL)
    assert read_checkpoint(tmp_path / "hangs" / LAST)["RolloutDataModule"]["update"] in (4, 5)


def is_alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.slow
def test_run_under_torchrun_goes_on_by_itself_after_a_rank_was_killed(start: Start, tmp_path: Path) -> None:
    finished(start("undisturbed", 1, 24))
    run = start("killed", 2, 24, launcher=TORCHRUN, checkpoint__every_n_updates=4)
    for _ in range(2):
        before = (tmp_path / "killed" / LAST).stat().st_mtime if (tmp_path / "killed" / LAST).exists() else 0.0
        strike_after(run, before)
    finished(run)
    assert same_outcome(tmp_path / "undisturbed", tmp_path / "killed")


@pytest.mark.slow
def test_launches_at_once_have_two_run_directories_and_each_goes_on_in_its_own(start: Start, tmp_path: Path) -> None:
    """One by torchrun's rendezvous, whose launch has a name, and one without; both lose a rank."""
    place = {"checkpoint.dirpath": None, "curve.path": None, "checkpoint.every_n_updates": 4}
    finished(start("undisturbed", 1, LONG))
    unnamed = [word for word in TORCHRUN if word != "--standalone"]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    launchers = [TORCHRUN, [*unnamed[:2], f"--master-port={port}", *unnamed[2:]]]
    runs = [start("both", 2, LONG, launcher=launcher, **place) for launcher in launchers]
    directories = [tmp_path / f"both/runs/CartPole-v1/{number}" for number in (1, 2)]

    def has_checkpoint(run: CommandLine) -> bool:
        saved = [directory for directory in directories if (directory / "last.ckpt").exists()]
        return any(json.loads((directory / "run.json").read_text())["pid"] in run.processes() for directory in saved)

    for run in runs:
        wait_for(lambda run=run: has_checkpoint(run), "the first checkpoint", DEADLINE_S)
        os.kill(ranks_of(run, 1)[0], signal.SIGKILL)
    for run in runs:
        assert ", of the run that torchrun restarts" in finished(run).out
    names = sorted(path.name for path in directories[0].parent.iterdir())
    assert names == ["1", "2", "latest"]
    launches = {json.loads((directory / "run.json").read_text())["launch"] for directory in directories}
    assert len(launches) == 2
    for directory in directories:
        assert (directory / "curve.json").read_bytes() == (tmp_path / "undisturbed/curve.json").read_bytes()


@pytest.mark.slow
def test_run_that_loses_a_rank_before_its_first_checkpoint_begins_again_in_its_directory(start: Start, tmp_path: Path) -> None:
    place = {"checkpoint.dirpath": None, "curve.path": None, "checkpoint.every_n_updates": 1000}
    finished(start("undisturbed", 1, LONG))
    launcher = [*TORCHRUN[:-1], "--", TORCHRUN[-1]]  # else torchrun would take --run for one of its own options
    run = start("killed", 2, LONG, launcher=launcher, run="baseline", **place)
    directory = tmp_path / "killed/runs/CartPole-v1/baseline"
    wait_for((directory / "run.json").exists, "the start of training", DEADLINE_S)
    os.kill(ranks_of(run, 1)[0], signal.SIGKILL)
    assert "has ended" in finished(run).err
    assert (directory / "curve.json").read_bytes() == (tmp_path / "undisturbed/curve.json").read_bytes()
    assert sorted(path.name for path in directory.parent.iterdir()) == ["baseline", "latest"]


@pytest.mark.slow
@pytest.mark.parametrize("action", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("number", [0, 1])
def test_rank_that_ends_before_the_ranks_have_met_leaves_none_behind(
    number: int, action: signal.Signals, start: Start, tmp_path: Path
) -> None:
    run = start("run", 2, 2000)
    second = wait_for(lambda: ranks_of(run, 1), "the second rank", DEADLINE_S)[0]
    os.kill([run.process.pid, second][number], action)
    ended = run.ended(is_tidy=False)
    if number == 1:
        assert ended.code == exit_codes.RANK and "a rank has ended before the ranks had met" in ended.err
    else:
        assert ended.code == (-signal.SIGKILL if action == signal.SIGKILL else 128 + signal.SIGTERM)


@pytest.mark.slow
def test_signal_while_ranks_wait_for_a_machine_that_is_not_there_ends_them(start: Start, tmp_path: Path) -> None:
    run = start("run", 2, 2000, trainer__num_nodes=2)
    waiting = wait_for(lambda: ranks_of(run, 1), "the second rank", DEADLINE_S)[0]
    # no sign of it can be seen from outside but that it no longer uses the processor
    wait_for(lambda: is_idle(waiting), "the meeting", DEADLINE_S)
    run.process.send_signal(signal.SIGTERM)
    ended = run.ended(DEADLINE_S, is_tidy=False)
    assert ended.code == 128 + signal.SIGTERM and "nothing was saved yet" in ended.err


def is_idle(pid: int) -> bool:
    """Whether a process that has imported torch has used no processor for a while."""

    def ticks() -> int:
        return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))

    before = ticks()
    signal.sigtimedwait([], 0.5)
    return ticks() == before and "libtorch" in Path(f"/proc/{pid}/maps").read_text()


@pytest.mark.slow
def test_ranks_of_torchrun_need_no_options_of_the_trainer(start: Start, tmp_path: Path) -> None:
    finished(start("one", 1, 3))
    finished(start("two", 1, 3, launcher=TORCHRUN))
    assert same_outcome(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
@pytest.mark.parametrize("has_trained", [False, True])
def test_ranks_end_with_the_torchrun_that_started_them(has_trained: bool, start: Start, tmp_path: Path) -> None:
    run = start("orphaned", 2, 2000, launcher=TORCHRUN, checkpoint__every_n_updates=1)
    wait_for(lambda: ranks_of(run, 1), "the second rank", DEADLINE_S)
    last = run.directory / LAST
    if has_trained:
        wait_for(last.exists, "the first checkpoint", DEADLINE_S)
    run.process.kill()
    wait_for(lambda: not run.processes(), "the end of all ranks", DEADLINE_S)
    run.ended(is_tidy=False)
    assert last.exists() == has_trained
    if has_trained:
        finished(start("orphaned", 1, 5 + int(read_checkpoint(last)["epoch"]), ckpt_path="last"))


def strike_after(run: CommandLine, before: float) -> None:
    """Kill the second rank when there is a checkpoint newer than `before`."""
    last = run.directory / LAST
    wait_for(lambda: last.exists() and last.stat().st_mtime > before, "another checkpoint", DEADLINE_S)
    os.kill(wait_for(lambda: ranks_of(run, 1), "the second rank", DEADLINE_S)[0], signal.SIGKILL)


@pytest.mark.slow
def test_workers_that_are_killed_change_nothing(start: Start, tmp_path: Path) -> None:
    finished(start("undisturbed", 1, 40))
    run = start("disturbed", 2, 40, checkpoint__every_n_updates=2)
    wait_for(lambda: (run.directory / LAST).exists(), "the first checkpoint", DEADLINE_S)
    ranks = {run.process.pid, *ranks_of(run, 1)}
    for pid in set(run.processes()) - ranks:
        os.kill(pid, signal.SIGKILL)
    ended = finished(run)
    assert "is replaced" in ended.err and "rank 1: training-rank1 worker 0 of 1" in ended.err
    assert same_outcome(tmp_path / "undisturbed", tmp_path / "disturbed")


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_signal_to_one_rank_stops_all_at_the_same_boundary(number: int, start: Start, tmp_path: Path) -> None:
    run = start("run", 2, LONG, checkpoint__every_n_updates=2)
    strike(run, number, signal.SIGTERM)
    ended = run.ended(DEADLINE_S)
    assert ended.code == 128 + signal.SIGTERM and ended.err == f"lit_ppo: error: SIGTERM: {ADVICE}\n"
    finished(start("run", 4, LONG, ckpt_path="last"))
    finished(start("straight", 1, LONG))
    assert same_outcome(tmp_path / "straight", tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("action", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("launcher", [[], TORCHRUN], ids=["lightning", "torchrun"])
def test_signal_to_the_launcher_or_to_all_as_a_terminal_sends_it_saves_the_boundary(
    launcher: list[str], action: signal.Signals, start: Start, tmp_path: Path
) -> None:
    """torchrun hands signals on to its ranks; Lightning's launcher is the first rank."""
    run = start("run", 2, LONG, launcher=launcher, checkpoint__every_n_updates=2)
    second = tmp_path / "run/checkpoints/last.previous.ckpt"
    wait_for(second.exists, "the second checkpoint", DEADLINE_S)
    ranks = [] if launcher else ranks_of(run, 1)
    for pid in [run.process.pid, *(ranks if action == signal.SIGINT else [])]:
        os.kill(pid, action)
    ended = run.ended(DEADLINE_S)
    lines = [line for line in ended.err.splitlines() if line.startswith("lit_ppo: error")]
    assert lines == [f"lit_ppo: error: {action.name}: {ADVICE}"], ended
    assert ended.code == (1 if launcher else 128 + action), ended
    finished(start("run", 1, LONG, ckpt_path="last"))
    finished(start("straight", 1, LONG))
    assert same_outcome(tmp_path / "straight", tmp_path / "run")


@pytest.mark.slow
def test_fault_of_an_environment_ends_every_rank_with_its_code_and_saves_the_boundary(start: Start, tmp_path: Path) -> None:
    """The third episode of environment 5, which the second rank has, raises."""
    call = {str(episode_seed(0, "training", 0, 5, 2)): "step"}
    faulty = {"fault": "raise", "at_step": 2, "length": 40, "of_seeds": call}
    settings = {"data.env_id": FAULTY, "data.env_kwargs": json.dumps(faulty), "checkpoint.every_n_updates": 1000}
    ended = start("run", 2, 2000, **settings).ended(DEADLINE_S)
    assert ended.code == exit_codes.ENVIRONMENT
    assert "training-rank1, env 1, episode 2, step 2" in ended.err and "rank 1: env 1 raised in step" in ended.err
    update = read_checkpoint(tmp_path / "run" / LAST)["RolloutDataModule"]["update"]
    assert update > 0 and f"saved update {update} to" in ended.err


@pytest.mark.slow
@pytest.mark.parametrize("settings", MODES.values(), ids=MODES)
def test_any_number_of_ranks_makes_the_same_run(settings: dict[str, Any], start: Start, tmp_path: Path) -> None:
    for ranks in (1, 2, 4):
        finished(start(f"{ranks}", ranks, 50, **settings))
    assert same_outcome(tmp_path / "1", tmp_path / "2") and same_outcome(tmp_path / "1", tmp_path / "4")
    assert len(json.loads((tmp_path / "4" / "curve.json").read_text())["steps"]) == 13  # 50 * 128 env steps, and the start


@pytest.mark.slow
@pytest.mark.parametrize("vectorization", ["sync", "native"])
def test_run_goes_on_with_any_number_of_ranks(vectorization: str, start: Start, tmp_path: Path) -> None:
    # the parts have lengths of their own, on which schedules depend
    constant = {"model.clip_decay": "constant", "model.learning_rate_decay": "constant"}
    settings = {"data.vectorization": vectorization} | constant
    finished(start("straight", 1, 6, **settings))
    resumed = {"ckpt_path": "last"} | settings
    for updates, ranks in ((2, 4), (3, 1), (4, 2), (6, 4)):
        finished(start("resumed", ranks, updates, **(resumed if updates > 2 else settings)))
    assert same_outcome(tmp_path / "straight", tmp_path / "resumed")
    assert (tmp_path / "resumed" / LAST).exists()
