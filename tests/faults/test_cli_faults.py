"""Faults of every kind through the command line: how the run ends, what it says, what it leaves, and how it goes on."""

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lit_ppo import cli, exit_codes
from lit_ppo.checkpoint_io import read_checkpoint
from tests.bridge.test_client import ANNOUNCED, liar
from tests.bridge.test_worker import VERDICTS
from tests.faults.harness import LAST, CommandLine, fit_of, outcome, wait_for
from tests.patience import patient
from tests.test_resume import differences

Start = Callable[..., CommandLine]
# Row 1 is the training process's alone: evaluation has one environment. In the fourth episode two boundaries have passed.
MIDWAY = {"row": 1, "at_reset": 4, "at_step": 3}
# What `MIDWAY` makes of a replay in a fresh process would be another episode; this happens in every one that is long enough.
LATE = {"row": 1, "at_step": 20, "length": 40}


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a command in a directory below `tmp_path`; all are ended with the test."""
    started = []

    def call(directory: str, *arguments: str) -> CommandLine:
        started.append(CommandLine(tmp_path / directory, *arguments))
        return started[-1]

    yield call
    for run in started:
        run.close()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, dict[str, Any]]:
    """What the small run comes to when nothing happens to it."""
    directory = tmp_path_factory.mktemp("undisturbed")
    run = CommandLine(directory, *fit_of({}))
    try:
        assert run.ended().code == exit_codes.DONE
    finally:
        run.close()
    return outcome(directory)


def assert_same_as(undisturbed: tuple[bytes, dict[str, Any]], directory: Path) -> None:
    curve, kept = outcome(directory)
    assert curve == undisturbed[0]
    # all but the arguments of the environment, which say what happens to it
    others = [line for line in differences(kept, undisturbed[1]) if not line.startswith(".data.bridge.env_kwargs")]
    assert others == []


def update_of(directory: Path) -> int:
    return int(read_checkpoint(directory / LAST)["RolloutDataModule"]["update"])


def report_in(directory: Path) -> Path:
    [report] = (directory / "data/reports").glob("*.json")
    return report


# -- faults of the environment


def test_environment_that_raises_ends_the_run_with_its_traceback_and_a_report_that_replays(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shorter = tmp_path / "shorter"  # while it is there, no episode gets as far as step 20
    shorter.touch()
    env_kwargs = {"fault": "raise", "at_step": 20, "length": 40, "shorter": str(shorter)}
    run = start("run", *fit_of(env_kwargs, "--trainer.max_epochs=1000000", "--checkpoint.every_n_updates=1"))
    wait_for((tmp_path / "run" / LAST).exists, "the first checkpoint")
    shorter.unlink()
    ended = run.ended()
    assert ended.code == exit_codes.ENVIRONMENT
    report = report_in(tmp_path / "run")
    told = json.loads(report.read_text())
    for part in (
        f"env {told['env']} raised in step: RuntimeError: the pole is on fire",
        'tests/fault_envs.py", line',  # the environment's own traceback
        f"(phase {told['phase']}, env {told['env']}, episode {told['episode']}, step 20, seed {told['seed']}, "
        f"report data/reports/{report.name})",
    ):
        assert part in ended.err
    assert "lit_ppo/commands/train.py" not in ended.err  # and not ours
    assert (told["step"], len(told["actions"]), told["value"]) == (20, 21, "RuntimeError: the pole is on fire")
    assert update_of(tmp_path / "run") >= 1  # the boundary before the fault
    assert report.name == f"fault-{told['phase']}-env{told['env']}-episode{told['episode']}-step20.json"
    cli.main(["replay", str(report)])
    assert "happens again: env 0 raised in step: RuntimeError: the pole is on fire" in capsys.readouterr().out


def test_replay_says_so_when_a_fault_does_not_happen_again(
    tmp_path: Path, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    env_kwargs = {"fault": "obs nan", "once": str(tmp_path / "marker"), **MIDWAY}
    ended = start("run", *fit_of(env_kwargs)).ended()
    assert ended.code == exit_codes.ENVIRONMENT
    assert "obs[1, 1]: expected a finite value, got nan" in ended.err and "Traceback" not in ended.err
    assert update_of(tmp_path / "run") >= 1
    with pytest.raises(SystemExit) as left:
        cli.main(["replay", str(report_in(tmp_path / "run"))])
    assert left.value.code == exit_codes.NOT_THE_SAME
    assert "does not happen again: 4 steps from seed" in capsys.readouterr().out


def test_run_goes_on_after_a_violation_if_so_set(start: Start, tmp_path: Path) -> None:
    env_kwargs = {"fault": "obs nan", "once": str(tmp_path / "marker"), **MIDWAY}
    ended = start("run", *fit_of(env_kwargs, "--data.on_violation=restart")).ended()
    assert ended.code == exit_codes.DONE
    assert "obs[1, 1]: expected a finite value, got nan" in ended.err
    assert read_checkpoint(tmp_path / "run" / LAST)["RolloutDataModule"]["bridge"]["abandoned_episodes"] == 1
    assert update_of(tmp_path / "run") == 6
    assert report_in(tmp_path / "run").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("fault", VERDICTS)
def test_value_that_breaks_the_contract_ends_the_run_before_it_is_used(fault: str, start: Start, tmp_path: Path) -> None:
    ended = start("run", *fit_of({"fault": fault, **LATE}, "--data.contract.check_membership=error")).ended()
    assert ended.code == exit_codes.ENVIRONMENT
    message = ended.err.splitlines()[-1].removeprefix("lit_ppo: error: ")
    assert message.startswith(VERDICTS[fault])  # field, expected, got
    report = report_in(tmp_path / "run")
    told = json.loads(report.read_text())
    assert message.endswith(
        f" (phase {told['phase']}, env 1, episode {told['episode']}, step 20, seed {told['seed']}, "
        f"report data/reports/{report.name})"
    )
    assert (told["env"], told["step"], len(told["actions"])) == (1, 20, 21)
    assert "Traceback" not in ended.err
    assert update_of(tmp_path / "run") >= 1


@pytest.mark.slow
def test_first_observation_that_breaks_the_contract_ends_the_run(start: Start, tmp_path: Path) -> None:
    ended = start("run", *fit_of({"fault": "obs nan", **MIDWAY, "call": "reset"})).ended()
    assert ended.code == exit_codes.ENVIRONMENT
    assert "obs[1, 1]: expected a finite value, got nan (phase training, env 1, episode 3, step " in ended.err
    assert update_of(tmp_path / "run") >= 1 and report_in(tmp_path / "run").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["raise unpicklable", "raise broken str"])
def test_exception_of_any_kind_ends_the_run_with_its_traceback(fault: str, start: Start) -> None:
    ended = start("run", *fit_of({"fault": fault, **LATE})).ended()
    assert ended.code == exit_codes.ENVIRONMENT
    assert "env 1 raised in step: " in ended.err and "tests/fault_envs.py" in ended.err


# -- faults of the process


def test_worker_that_always_dies_ends_the_run_at_the_last_boundary(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = start("run", *fit_of({"fault": "exit 7", **LATE})).ended()
    assert ended.code == exit_codes.WORKER
    assert "exited with status 7 while answering step" in ended.err
    assert "the same step killed the worker twice: a deterministic crash" in ended.err
    assert update_of(tmp_path / "run") >= 1
    report = report_in(tmp_path / "run")
    told = json.loads(report.read_text())
    place = f"phase training, env 1, episode {told['episode']}, step 20, seed {told['seed']}, action {told['actions'][-1]}"
    assert f"({place}, report data/reports/{report.name})" in ended.err
    del told["env_kwargs"]["row"]  # in a replay it would be another one
    report.write_text(json.dumps(told))
    cli.main(["replay", str(report), "--trust_report=true"])
    out = capsys.readouterr().out
    assert "reported: step: expected an answer, got a worker that exited with status 7\nhappens again: replay worker 0" in out


def test_fault_in_evaluation_is_told_apart_from_one_in_training(start: Start, tmp_path: Path) -> None:
    ended = start("run", *fit_of({"fault": "raise", "at_step": 10})).ended()
    assert ended.code == exit_codes.ENVIRONMENT, ended.err
    report = report_in(tmp_path / "run")
    assert "(phase evaluation, env 0, episode 0, step 10, seed " in ended.err
    assert (
        report.name == "fault-evaluation-env0-episode0-step10.json" and json.loads(report.read_text())["phase"] == "evaluation"
    )


def test_killed_worker_changes_nothing(start: Start, tmp_path: Path, undisturbed: tuple[bytes, dict[str, Any]]) -> None:
    marker = tmp_path / "marker"
    ended = start("run", *fit_of({"fault": "kill", "once": str(marker), **MIDWAY})).ended()
    assert ended.code == exit_codes.DONE and marker.exists()
    assert "is replaced: " in ended.err and "was killed by SIGKILL while answering step" in ended.err
    assert read_checkpoint(tmp_path / "run" / LAST)["RolloutDataModule"]["bridge"]["restarts"] == 1
    assert_same_as(undisturbed, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("call", ["step", "reset", "make"])
@pytest.mark.parametrize("fault", ["segv", "exit 7", "real-time signal", "hang", "hang blocked", "stop"])
def test_worker_that_fails_once_changes_nothing(
    fault: str, call: str, start: Start, tmp_path: Path, undisturbed: tuple[bytes, dict[str, Any]]
) -> None:
    at = {} if call == "make" else MIDWAY
    env_kwargs = {"fault": fault, "once": str(tmp_path / "marker"), **at, "call": call, "row": 1}
    settings = [f"--data.step_timeout_s={patient(2)}", f"--data.start_timeout_s={patient(8)}"]
    ended = start("run", *fit_of(env_kwargs, *settings)).ended()
    assert ended.code == exit_codes.DONE and (tmp_path / "marker").exists()
    assert "is replaced: " in ended.err
    assert_same_as(undisturbed, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["hang", "hang blocked"])
def test_environment_that_always_hangs_ends_the_run(fault: str, start: Start, tmp_path: Path) -> None:
    ended = start("run", *fit_of({"fault": fault, **LATE}, f"--data.step_timeout_s={patient(1)}")).ended()
    assert ended.code == exit_codes.WORKER
    assert "did not answer step in time" in ended.err and "a deterministic crash" in ended.err
    assert update_of(tmp_path / "run") >= 1


@pytest.mark.slow
def test_start_that_takes_long_changes_nothing_and_one_that_takes_too_long_ends_the_run(
    start: Start, tmp_path: Path, undisturbed: tuple[bytes, dict[str, Any]]
) -> None:
    dawdling = {"fault": "dawdle", "call": "make", "row": 0}
    ended = start("patient", *fit_of(dawdling)).ended()
    assert (ended.code, ended.err) == (exit_codes.DONE, "")
    assert_same_as(undisturbed, tmp_path / "patient")
    ended = start("impatient", *fit_of(dawdling, "--data.start_timeout_s=1.5")).ended()
    assert ended.code == exit_codes.WORKER
    assert "to start; raise it" in ended.err and "no other worker started in time" in ended.err


@pytest.mark.slow
def test_spaces_that_change_when_a_worker_is_replaced_end_the_run(start: Start, tmp_path: Path) -> None:
    marker = str(tmp_path / "marker")  # the process that is killed makes it, the one in its place finds it
    ended = start("run", *fit_of({"fault": "kill", "once": marker, "other_space": marker, **MIDWAY})).ended()
    assert ended.code == exit_codes.ENVIRONMENT
    assert "spaces: expected those of the first handshake: " in ended.err and "high=3.0" in ended.err
    assert "Traceback" not in ended.err
    assert update_of(tmp_path / "run") >= 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lie", "code", "message"),
    [
        ({"protocol": 1}, exit_codes.WORKER, "expected protocol 5, got 1"),
        ({"num_envs": 3}, exit_codes.WORKER, "expected num_envs 1, got 3"),
        (
            {"action": ANNOUNCED["action"] | {"high": -2}},
            exit_codes.USAGE,
            "a leaf with (-1,) choices is not supported; expected 1 to 2^20",
        ),
        (
            {"observation": [ANNOUNCED["observation"][0] | {"kind": "\x1b[2J"}]},
            exit_codes.WORKER,
            "leaf: expected one of box, discrete, multi_discrete, multi_binary",
        ),
    ],
)
def test_handshake_that_cannot_be_true_ends_the_run(
    lie: dict[str, Any], code: int, message: str, start: Start, tmp_path: Path
) -> None:
    python = liar(tmp_path, {**ANNOUNCED, "num_envs": 1, **lie})
    ended = start("run", *fit_of({}, f"--data.python={python}", "--data.max_restarts=2")).ended()
    assert ended.code == code
    assert message in ended.err and "Traceback" not in ended.err and "\x1b" not in ended.err


@pytest.mark.slow
def test_noise_on_standard_output_and_error_changes_nothing(
    start: Start, tmp_path: Path, undisturbed: tuple[bytes, dict[str, Any]]
) -> None:
    ended = start("run", *fit_of({"fault": "noise", "at_step": None})).ended()
    assert ended.code == exit_codes.DONE
    assert "\x1b" not in ended.err + ended.out
    assert_same_as(undisturbed, tmp_path / "run")


@pytest.mark.slow
def test_what_the_environment_started_ends_with_the_run(start: Start, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    assert start("run", *fit_of({"grandchildren": str(pids)})).ended().code == exit_codes.DONE
    assert pids.exists()  # `ended` has looked for them: they have the mark of the run, whoever their parent is


@pytest.mark.slow
def test_secrets_do_not_reach_the_environment(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_TOKEN", "squeamish ossifrage")
    ended = start("run", *fit_of({"fault": "tell secret", **LATE})).ended()
    assert ended.code == exit_codes.ENVIRONMENT
    assert "secret is hidden" in ended.err and "ossifrage" not in ended.err


# -- signals


def test_sigterm_in_a_hung_environment_saves_the_boundary_from_which_the_run_goes_on(
    start: Start, tmp_path: Path, undisturbed: tuple[bytes, dict[str, Any]]
) -> None:
    marker = tmp_path / "marker"
    settings = ["--interrupt.grace_s=0.5", "--checkpoint.every_n_updates=100", "--data.step_timeout_s=1000"]
    settings.append("--data.close_timeout_s=0.5")  # an environment that hangs cannot close either
    run = start("run", *fit_of({"fault": "hang", "once": str(marker), **MIDWAY}, *settings))
    wait_for(marker.exists, "the hang")
    run.process.send_signal(signal.SIGTERM)
    ended = run.ended()
    assert ended.code == exit_codes.of_signal(signal.SIGTERM)
    assert "lit_ppo: error: interrupted by SIGTERM" in ended.err and "Traceback" not in ended.err
    assert 1 <= update_of(tmp_path / "run") < 6
    resumed = start("run", "fit", f"--ckpt_path={LAST}").ended()
    assert (resumed.code, resumed.err) == (exit_codes.DONE, "")
    assert_same_as(undisturbed, tmp_path / "run")


def test_sigterm_in_a_first_reset_that_hangs_ends_the_run_which_can_be_started_again(
    start: Start, tmp_path: Path, undisturbed: tuple[bytes, dict[str, Any]]
) -> None:
    marker = tmp_path / "marker"
    env_kwargs = {"fault": "hang", "call": "reset", "at_reset": 0, "row": 1, "once": str(marker)}
    fit = fit_of(env_kwargs, "--interrupt.grace_s=0.5", "--data.step_timeout_s=1000", "--data.close_timeout_s=0.5")
    run = start("run", *fit)
    wait_for(marker.exists, "the hang")
    run.process.send_signal(signal.SIGTERM)
    ended = run.ended()
    assert ended.code == exit_codes.of_signal(signal.SIGTERM)
    way_on = "nothing was saved yet; start again"
    assert f"lit_ppo: error: interrupted by SIGTERM while waiting for the environments: {way_on}\n" in ended.err
    assert "Traceback" not in ended.err
    assert not (tmp_path / "run" / LAST).exists()  # no update was made
    assert start("run", *fit).ended().code == exit_codes.DONE
    assert_same_as(undisturbed, tmp_path / "run")


def test_second_signal_forces_the_end(start: Start, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    env_kwargs = {"fault": "hang blocked", "once": str(marker), **MIDWAY}
    run = start("run", *fit_of(env_kwargs, "--interrupt.grace_s=1000", "--data.step_timeout_s=1000"))
    wait_for(marker.exists, "the hang")
    for number in (signal.SIGINT, signal.SIGTERM):
        run.process.send_signal(number)
    assert run.ended().code in (130, 143)  # whichever of them was the second to be handled


# -- kill -9


def test_run_whose_trainer_was_killed_goes_on_as_if_nothing_had_happened(
    start: Start, tmp_path: Path, undisturbed: tuple[bytes, dict[str, Any]]
) -> None:
    marker = tmp_path / "marker"  # the hang holds the run in the middle of a rollout
    settings = ["--checkpoint.every_n_updates=1", "--data.step_timeout_s=1000"]
    run = start("run", *fit_of({"fault": "hang", "once": str(marker), **MIDWAY}, *settings))
    wait_for(marker.exists, "the hang")
    assert len(run.workers()) == 4  # training and evaluation, each with its guard
    run.kill()
    assert run.ended().code == -signal.SIGKILL
    resumed = start("run", "fit", f"--ckpt_path={LAST}").ended()
    assert (resumed.code, resumed.err) == (exit_codes.DONE, "")
    assert_same_as(undisturbed, tmp_path / "run")


@pytest.mark.slow
def test_second_run_in_the_same_directory_is_refused_and_the_first_one_is_not_disturbed(
    start: Start, tmp_path: Path, undisturbed: tuple[bytes, dict[str, Any]]
) -> None:
    marker = tmp_path / "marker"
    env_kwargs = {"fault": "hang", "once": str(marker), **MIDWAY}
    first = start("run", *fit_of(env_kwargs, "--data.step_timeout_s=20"))
    wait_for(marker.exists, "the hang")
    refused = start("run", *fit_of({})).ended(is_tidy=False)  # the first one's temporary files are in the same place
    assert refused.code == exit_codes.USAGE
    assert "checkpoint.dirpath=" in refused.err and f"the run of process {first.process.pid} writes there" in refused.err
    assert first.ended().code == exit_codes.DONE
    assert_same_as(undisturbed, tmp_path / "run")
