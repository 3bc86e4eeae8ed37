"""SIGINT and SIGTERM in every phase of a command: the exit code, the one line, what is left, and how the run goes on."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lit_ppo import exit_codes, interrupts, seeding
from lit_ppo.checkpoint_io import read_checkpoint
from tests.faults.harness import LAST, CommandLine, fit_of, wait_for

Start = Callable[..., CommandLine]
CODES = {number: exit_codes.of_signal(number) for number in (signal.SIGINT, signal.SIGTERM)}
BOTH = pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
ENDLESS = ["--trainer.max_epochs=1000000", "--checkpoint.every_n_updates=1"]
PATIENT = ["--data.step_timeout_s=1000", "--data.start_timeout_s=1000", "--data.close_timeout_s=0.5"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a command in a directory below `tmp_path`; all are ended with the test."""
    started = []

    def call(*arguments: str, **streams: Any) -> CommandLine:
        started.append(CommandLine(tmp_path / "run", *arguments, **streams))
        return started[-1]

    yield call
    for run in started:
        run.close()


def line_of(number: signal.Signals, advice: str | None) -> str:
    return f"lit_ppo: error: {number.name}{f': {advice}' if advice else ''}\n"


NOTHING_SAVED = "nothing was saved yet; start again"
CONTINUE = "continue with --ckpt_path last"
SAVED = f"continue with --ckpt_path {LAST}"


def update_in(directory: Path) -> int:
    return int(read_checkpoint(directory / LAST)["RolloutDataModule"]["update"])


def holding(hook: str, marker: Path) -> list[str]:
    """Options for a run that stays in a hook of its first update, once `marker` is made, until the signal has come."""
    callback = f"--trainer.callbacks=tests.faults.holding.Hold{hook}"
    return [callback, f"--trainer.callbacks.init_args.marker={marker}"]


# -- before anything can be lost: at once


@BOTH
def test_signal_during_the_imports_ends_the_run_in_one_line(number: signal.Signals, start: Start) -> None:
    run = start("fit")
    wait_for(lambda: "libtorch" in Path(f"/proc/{run.process.pid}/maps").read_text(), "the import of torch")
    run.process.send_signal(number)
    assert run.ended() == (CODES[number], "", line_of(number, NOTHING_SAVED))


@pytest.fixture
def checkpoint(start: Start) -> str:
    """The option that names the checkpoint of a run of one update."""
    assert start(*fit_of({}, "--trainer.max_epochs=1")).ended().code == exit_codes.DONE
    return "--ckpt_path=last"


def test_sigterm_while_environments_start_ends_a_run_at_once(start: Start, tmp_path: Path) -> None:
    env_kwargs = {"fault": "hang blocked", "call": "make", "once": str(tmp_path / "marker")}
    run = start(*fit_of(env_kwargs, *PATIENT))
    wait_for((tmp_path / "marker").exists, "the hang")
    run.process.send_signal(signal.SIGTERM)
    assert run.ended() == (CODES[signal.SIGTERM], "", line_of(signal.SIGTERM, NOTHING_SAVED))


@pytest.mark.parametrize("command", [pytest.param("validate", marks=pytest.mark.slow), "test"])
def test_sigterm_while_environments_start_ends_a_test_without_advice(
    command: str, start: Start, tmp_path: Path, checkpoint: str
) -> None:
    env_kwargs = {"fault": "hang blocked", "call": "make", "once": str(tmp_path / "marker")}
    _, *options = fit_of(env_kwargs, *PATIENT, checkpoint)
    run = start(command, *options)
    wait_for((tmp_path / "marker").exists, "the hang")
    run.process.send_signal(signal.SIGTERM)
    assert run.ended() == (CODES[signal.SIGTERM], "", line_of(signal.SIGTERM, None))


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        ("fit", NOTHING_SAVED),
        ("fit --ckpt_path=null", NOTHING_SAVED),
        ("fit --ckpt_path=last --seed_everything=3", CONTINUE),
        ("fit --seed_everything=3 --ckpt_path some/where.ckpt", "continue with --ckpt_path some/where.ckpt"),
        ("fit --ckpt_path=best --ckpt_path=last", CONTINUE),
        ("fit --ckpt_path=last --print_config", ""),
        ("fit -h", ""),
        ("test --ckpt_path=last", ""),
        ("--help", ""),
        ("", ""),
    ],
)
def test_advice_before_anything_is_saved_is_that_of_the_command(line: str, advice: str) -> None:
    assert interrupts.advice_at_start(line.split()) == advice


def test_signal_at_the_start_of_a_resumed_run_advises_its_checkpoint(start: Start, checkpoint: str) -> None:
    run = start("fit", checkpoint)
    wait_for(lambda: "libtorch" in Path(f"/proc/{run.process.pid}/maps").read_text(), "the import of torch")
    run.process.send_signal(signal.SIGINT)
    assert run.ended() == (CODES[signal.SIGINT], "", line_of(signal.SIGINT, CONTINUE))


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("command", ["validate", "test"])
def test_signal_ends_test_and_validate_at_once(
    command: str, number: signal.Signals, start: Start, tmp_path: Path, checkpoint: str
) -> None:
    _, *options = fit_of({"fault": "hang", "once": str(tmp_path / "marker")}, *PATIENT, checkpoint)
    run = start(command, *options)
    wait_for((tmp_path / "marker").exists, "the hang")
    run.process.send_signal(number)
    assert run.ended() == (CODES[number], "", line_of(number, None))


# -- while it trains: at the next boundary


@BOTH
def test_signal_ends_a_healthy_run_at_the_next_boundary(number: signal.Signals, start: Start, tmp_path: Path) -> None:
    run = start(*fit_of({}, *ENDLESS))
    wait_for((tmp_path / "run" / LAST).exists, "the first checkpoint")
    run.process.send_signal(number)
    ended = run.ended()
    assert (ended.code, ended.err) == (CODES[number], line_of(number, SAVED))
    assert update_in(tmp_path / "run") >= 1


@pytest.mark.slow
def test_line_names_the_checkpoint_in_the_directory_that_was_typed(start: Start, tmp_path: Path) -> None:
    run = start(*fit_of({}, *ENDLESS, "--checkpoint.dirpath=other/place"))
    wait_for((tmp_path / "run/other/place/last.ckpt").exists, "the first checkpoint")
    run.process.send_signal(signal.SIGTERM)
    assert run.ended().err == line_of(signal.SIGTERM, "continue with --ckpt_path other/place/last.ckpt")


@pytest.mark.slow
def test_checkpoint_of_an_earlier_run_is_not_said_to_be_this_runs(start: Start, tmp_path: Path) -> None:
    assert start(*fit_of({}, "--trainer.max_epochs=1")).ended().code == exit_codes.DONE
    env_kwargs = {"fault": "hang", "call": "reset", "at_reset": 0, "row": 1, "once": str(tmp_path / "marker")}
    run = start(*fit_of(env_kwargs, *PATIENT, "--interrupt.grace_s=0.2", "--checkpoint.dirpath=null"))
    wait_for((tmp_path / "marker").exists, "the hang")
    run.process.send_signal(signal.SIGTERM)
    assert run.ended().err.endswith(f"{NOTHING_SAVED}\n")


@pytest.mark.parametrize("hook", ["Update", pytest.param("Save", marks=pytest.mark.slow)])
def test_sigterm_during_an_update_or_a_save_ends_the_run_at_that_boundary(hook: str, start: Start, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    run = start(*fit_of({}, *ENDLESS, *holding(hook, marker)))
    wait_for(marker.exists, f"the {hook}")
    run.process.send_signal(signal.SIGTERM)
    ended = run.ended()
    assert (ended.code, ended.err) == (CODES[signal.SIGTERM], line_of(signal.SIGTERM, SAVED))
    assert update_in(tmp_path / "run") == 1


@pytest.mark.slow
def test_sigterm_in_an_evaluation_that_hangs_saves_the_boundary_before_it(start: Start, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    second = seeding.episode_seed(0, "evaluation", 0, 2, 0)  # after two updates
    env_kwargs = {"fault": "hang", "of_seeds": {str(second): "step"}, "once": str(marker)}
    run = start(*fit_of(env_kwargs, *PATIENT, "--interrupt.grace_s=0.2", "--checkpoint.every_n_updates=100"))
    wait_for(marker.exists, "the hang")
    run.process.send_signal(signal.SIGTERM)
    ended = run.ended()
    assert ended.code == CODES[signal.SIGTERM] and ended.err.endswith(f"{SAVED}\n")
    assert update_in(tmp_path / "run") == 2


# -- output that nobody reads


@pytest.fixture
def full_pipe() -> Iterator[int]:
    """The writing end of a pipe that takes nothing more."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    for size in (4096, 1):
        try:
            while True:
                os.write(writing, bytes(size))
        except BlockingIOError:
            pass
    os.set_blocking(writing, True)
    yield writing
    os.close(reading)
    os.close(writing)


def is_writing(run: CommandLine, descriptor: int) -> bool:
    """Whether the main thread waits in write(2), whose number is 1 or, on other processors, 64."""
    call = Path(f"/proc/{run.process.pid}/syscall").read_text().split()
    return call[0] in ("1", "64") and call[1] == hex(descriptor)


def test_sigterm_ends_a_run_whose_output_nobody_reads(start: Start, tmp_path: Path, full_pipe: int) -> None:
    # without lines of progress, the first of which would wait already
    quiet = "--trainer.enable_progress_bar=false"
    run = start(*fit_of({}, "--trainer.max_epochs=1", "--interrupt.grace_s=0.2", quiet), out=full_pipe)
    wait_for(lambda: is_writing(run, 1), "the write of the summary")
    run.process.send_signal(signal.SIGTERM)
    ended = run.ended()
    assert (ended.code, ended.err) == (CODES[signal.SIGTERM], line_of(signal.SIGTERM, SAVED))
    assert update_in(tmp_path / "run") == 1


def test_sigterm_ends_a_run_whose_messages_nobody_reads(start: Start, tmp_path: Path, full_pipe: int) -> None:
    """The worker that dies in the middle of a rollout is worth a warning, whose write waits."""
    env_kwargs = {"fault": "kill", "once": str(tmp_path / "marker"), "row": 1, "at_reset": 4}
    run = start(*fit_of(env_kwargs, *ENDLESS, "--interrupt.grace_s=0.2"), err=full_pipe)
    wait_for(lambda: is_writing(run, 2), "the write of the warning")
    before = update_in(tmp_path / "run")
    run.process.send_signal(signal.SIGTERM)
    assert run.ended().code == CODES[signal.SIGTERM]
    assert update_in(tmp_path / "run") in (before, before + 1)  # the rollout under way is completed, or waits for its worker


@pytest.mark.slow
def test_sigterm_ends_a_test_whose_table_nobody_reads(start: Start, full_pipe: int, checkpoint: str) -> None:
    _, *options = fit_of({}, "--data.test_episodes=2", checkpoint)
    run = start("test", *options, out=full_pipe)
    wait_for(lambda: is_writing(run, 1), "the write of the table")
    run.process.send_signal(signal.SIGTERM)
    assert run.ended() == (CODES[signal.SIGTERM], "", line_of(signal.SIGTERM, None))
