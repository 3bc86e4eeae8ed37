"""`python -m tests.faults.soak`: kill -9 workers and trainers at random, resume, and compare with the undisturbed run.

A round is one training run, brought to its end through as many deaths as chance has it. Its curve must be that of the
undisturbed run of the same seed to the last byte, its parameters, optimizer and half-finished episodes to the last bit.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from lit_ppo import exit_codes
from lit_ppo.checkpoint_io import read_checkpoint
from tests.faults.harness import CURVE, LAST, CommandLine, Ended, outcome
from tests.patience import patient
from tests.test_resume import differences

UPDATES = 60
ROUND_S = 240.0  # on an idle machine; a round that takes longer than this hangs
VECTORIZATIONS = ("sync", "native")


@dataclass
class Deaths:
    """What was killed in a round."""

    workers: int = 0
    trainers: int = 0
    resumes: int = 0
    restarts: int = 0


def arguments_of(seed: int, vectorization: str) -> list[str]:
    options = {
        "data.vectorization": vectorization,
        "data.num_workers": 2,
        "data.max_restarts": 1000,
        "data.num_envs": 8,
        "data.horizon": 64,
        "data.evaluation_envs": 4,
        "model.minibatch_size": 128,
        "evaluation.every_env_steps": 1536,
        "evaluation.num_episodes": 4,
        "solved.threshold": ".inf",
        "checkpoint.every_n_updates": 1,
        "trainer.max_epochs": UPDATES,
        "trainer.logger": "false",
        "curve.path": CURVE,
        "checkpoint.dirpath": "checkpoints",
        "seed_everything": seed,
    }
    return ["fit", *(f"--{key}={value}" for key, value in options.items())]


def undisturbed(directory: Path, seed: int, vectorization: str) -> None:
    """The run to compare with."""
    run = CommandLine(directory, *arguments_of(seed, vectorization))
    try:
        ended = run.ended(ROUND_S)
    finally:
        run.close()
    if ended.code != exit_codes.DONE:
        raise SystemExit(f"the undisturbed run ended with {ended.code}:\n{ended.err}")


def disturbed(directory: Path, seed: int, vectorization: str, chance: random.Random) -> tuple[Ended, Deaths]:
    """The same run, killed and resumed until it is done or fails."""
    deaths, deadline = Deaths(), monotonic() + patient(ROUND_S)
    run = CommandLine(directory, *arguments_of(seed, vectorization))
    while True:
        trainer_is_due = monotonic() + chance.uniform(1.0, 9.0) if deaths.trainers < 4 else deadline
        try:
            while run.process.poll() is None and monotonic() < min(trainer_is_due, deadline):
                # the time between two kills is the point here: nothing is waited for
                signal.sigtimedwait([], chance.uniform(0.05, 1.5))
                workers = run.workers()
                if workers and run.process.poll() is None and chance.random() < 0.5:
                    try:
                        os.kill(chance.choice(workers), signal.SIGKILL)
                    except ProcessLookupError:
                        continue  # it ended while we looked
                    deaths.workers += 1
            if run.process.poll() is None:
                deaths.trainers += 1
                run.kill()
            ended = run.ended()
        finally:
            run.close()
        if ended.code != -signal.SIGKILL or monotonic() > deadline:
            return ended, deaths
        deaths.resumes += (directory / LAST).exists()
        resume = ["fit", f"--ckpt_path={LAST}"] if (directory / LAST).exists() else arguments_of(seed, vectorization)
        run = CommandLine(directory, *resume)


def faults_of(directory: Path, reference: Path, ended: Ended) -> list[str]:
    """What is wrong with a round."""
    if ended.code != exit_codes.DONE:
        return [f"exit code {ended.code}: {ended.err}"]
    (curve, kept), (expected_curve, expected) = outcome(directory), outcome(reference)
    found = differences(kept, expected)
    if curve != expected_curve:
        found.append("the curve's bytes")
    found = found[:8]  # where one differs most do
    if left := [path.name for path in (directory / "checkpoints").glob(".*.tmp")]:
        found.append(f"left behind: {left}")
    return found


def main() -> int:
    """Rounds until the time is up; 1 if any of them differs."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance, end = random.Random(options.seed), monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory(prefix="soak-") as scratch:
        references: dict[str, Path] = {}
        number = 0
        while monotonic() < end:
            vectorization = VECTORIZATIONS[number % len(VECTORIZATIONS)]
            if vectorization not in references:
                references[vectorization] = Path(scratch, vectorization)
                undisturbed(references[vectorization], options.seed, vectorization)
            directory, begin = Path(scratch, f"round-{number}"), monotonic()
            ended, deaths = disturbed(directory, options.seed, vectorization, chance)
            found = faults_of(directory, references[vectorization], ended)
            if ended.code == exit_codes.DONE:
                deaths.restarts = read_checkpoint(directory / LAST)["RolloutDataModule"]["bridge"]["restarts"]
            print(
                f"round {number} ({vectorization}): {deaths.trainers} trainers and {deaths.workers} workers killed, "
                f"{deaths.resumes} resumes, {deaths.restarts} restarts in training, "
                f"{monotonic() - begin:.0f} s: "
                f"{'the same, bit for bit' if not found else 'DIFFERS: ' + '; '.join(found)}",
                flush=True,
            )
            if found:
                return 1
            shutil.rmtree(directory)
            number += 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
