"""Training throughput: env steps per second of collection and update together, same networks, same hyper-parameters.

Every competitor is a process of its own, as in use. They start one after the other and then take turns: the parent says `go` to
one at a time, so that they are measured at nearly the same moment and never beside each other. A turn is a number of complete
cycles of collection and update; the first one, like the warm-up before it, does not count.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Final, NoReturn

from benchmarks import peers
from benchmarks.competition import HORIZON, LEARNING_RATE, UPDATE_EPOCHS, Turns
from benchmarks.report import ROOT, Row, peers_python, show

CASES: Final = {"4x128": (4, 128), "64x128": (64, 2048)}  # num_envs, minibatch_size; horizon 128, 4 epochs


# -- a competitor's side


class Stopwatch:
    """Adds up the time that a method of one object takes."""

    def __init__(self, owner: Any, method: str) -> None:
        self.running = 0.0
        called = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = perf_counter()
            try:
                return called(*args, **kwargs)
            finally:
                self.running += perf_counter() - start

        setattr(owner, method, timed)

    def take(self) -> float:
        """Seconds since the last call."""
        taken, self.running = self.running, 0.0
        return taken


def run_lit_ppo(
    num_envs: int, minibatch_size: int, updates_per_turn: int, vectorization: Any, num_workers: int = 1, **model: Any
) -> None:
    from lightning.pytorch import Callback, Trainer
    from lightning.pytorch.loggers import CSVLogger

    from lit_ppo.callbacks.run_progress import RunProgress
    from lit_ppo.commands.lightning_output import quiet_lightning
    from lit_ppo.data import RolloutDataModule
    from lit_ppo.module import PPOModule

    class TakeTurns(Callback):
        """Pauses the run between updates."""

        def __init__(self) -> None:
            self.turns, self.updates = Turns(), 0

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            self.updates += 1
            steps = num_envs * HORIZON
            if self.updates == 1:
                self.env = Stopwatch(trainer.datamodule._bridge, "step")
                self.batch = Stopwatch(pl_module, "make_batch")
            environments, batch = self.env.take(), self.batch.take()
            if self.updates > updates_per_turn:
                collection = steps / trainer.datamodule.metrics["time/collection_steps_per_s"]
                self.turns.add("environments", environments)
                self.turns.add("inference", collection - environments)
                self.turns.add("values and advantages", batch)
                self.turns.add("update", steps / pl_module.metrics["time/update_steps_per_s"])
            if self.updates % updates_per_turn:
                return
            if self.updates == updates_per_turn:
                self.turns.ready()
            else:
                self.turns.done()
            trainer.should_stop = not self.turns.next()

    quiet_lightning()
    data = RolloutDataModule(num_envs=num_envs, horizon=HORIZON, vectorization=vectorization, num_workers=num_workers)
    module = PPOModule(
        data.spec,
        learning_rate=LEARNING_RATE,
        learning_rate_decay="constant",
        update_epochs=UPDATE_EPOCHS,
        minibatch_size=minibatch_size,
        clip_epsilon=0.2,
        max_grad_norm=0.5,
        **model,
    )
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=-1,
        logger=CSVLogger(tempfile.mkdtemp(), name=""),  # as the CLI's default
        callbacks=[RunProgress(), TakeTurns()],
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, datamodule=data)


def run_cleanrl_style(num_envs: int, minibatch_size: int, updates_per_turn: int) -> None:
    from benchmarks.cleanrl_style import Settings, train

    settings = Settings(
        num_envs=num_envs,
        num_minibatches=num_envs * HORIZON // minibatch_size,
        learning_rate=LEARNING_RATE,
        anneal_over=None,
        clips_value_loss=False,
    )
    updates, turns = train(settings), Turns()
    for _ in range(1 + updates_per_turn):  # the first is no update
        next(updates)
    turns.ready()
    while turns.next():
        for _ in range(updates_per_turn):
            next(updates)
        turns.done()


RUNNERS: Final[dict[str, Callable[[int, int, int], None]]] = {
    "lit_ppo, sync": lambda n, b, u: run_lit_ppo(n, b, u, vectorization="sync"),
    "lit_ppo, sync in 2 workers": lambda n, b, u: run_lit_ppo(n, b, u, vectorization="sync", num_workers=2),
    "lit_ppo, native": lambda n, b, u: run_lit_ppo(n, b, u, vectorization="native"),
    "lit_ppo, sync, compiled": lambda n, b, u: run_lit_ppo(n, b, u, vectorization="sync", compile=True),
    "lit_ppo, native, compiled": lambda n, b, u: run_lit_ppo(n, b, u, vectorization="native", compile=True),
    "CleanRL-style": run_cleanrl_style,
    "SB3": peers.run_sb3,
    "TorchRL": peers.run_torchrl,
    "Tianshou": peers.run_tianshou,
    "SheepRL": peers.run_sheeprl,
}
VENVS: Final = {"SB3": "peers", "TorchRL": "torchrl", "Tianshou": "tianshou", "SheepRL": "sheeprl"}


def compete(who: str, num_threads: int, case: str, updates_per_turn: int) -> None:
    """Be one competitor."""
    sys.stdout = sys.stderr  # summaries and logs of a competitor; `Turns` has the real one for itself
    import torch

    warnings.filterwarnings("ignore")
    torch.set_num_threads(num_threads)
    num_envs, minibatch_size = CASES[case]
    RUNNERS[who](num_envs, minibatch_size, updates_per_turn)


# -- the parent's side


@dataclass
class Turn:
    """What a competitor said of one turn."""

    seconds: float
    phases: dict[str, float]


def _name(who: str, num_threads: int) -> str:
    return f"{who}, {num_threads} thread{'s' * (num_threads > 1)}"


class Competitor:
    """A competitor's process."""

    def __init__(self, who: str, num_threads: int, case: str, updates_per_turn: int) -> None:
        self.who, self.num_threads, self.turns = who, num_threads, list[Turn]()
        self.name = _name(who, num_threads)
        python = peers_python(VENVS[who]) if who in VENVS else sys.executable
        start = perf_counter()
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.training", "--compete", who, str(num_threads), case, str(updates_per_turn)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self.rss_mib = self._read()["rss_mib"]
        self.start_s = perf_counter() - start  # imports, environments, and one warm-up turn

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        message: dict[str, Any] = json.loads(line) if line else self._fail()
        return message

    def _fail(self) -> NoReturn:
        assert self._process.stderr is not None
        lines = self._process.stderr.read().strip().splitlines() or ["it ended without a word"]
        raise RuntimeError(lines[-1])

    def _say(self, word: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()

    def turn(self) -> None:
        """Let it train for one turn."""
        self._say("go")
        answer = self._read()
        self.turns.append(Turn(answer["seconds"], answer["phases"]))
        self.rss_mib = answer["rss_mib"]

    @property
    def counted(self) -> list[Turn]:
        """All turns but the first."""
        return self.turns[1:]

    def finish(self) -> float:
        """Let it end; seconds that took."""
        start = perf_counter()
        self._say("end")
        self._process.communicate(timeout=60)
        return perf_counter() - start


def measure(case: str, entrants: list[tuple[str, int]], rounds: int, updates_per_turn: int) -> list[Row]:
    """All competitors in one case."""
    label, num_envs = f"training {case}", CASES[case][0]
    steps, rows, competitors = updates_per_turn * num_envs * HORIZON, list[Row](), list[Competitor]()
    for who, num_threads in entrants:
        print(f"{label}: starting {who}, {num_threads} thread(s)", file=sys.stderr)
        try:
            competitors.append(Competitor(who, num_threads, case, updates_per_turn))
        except (RuntimeError, FileNotFoundError, OSError) as error:
            rows.append(Row(label, _name(who, num_threads), "env steps/s", note=f"{error}"[:100]))
    for turn in range(rounds + 1):
        for competitor in competitors[turn % len(competitors) :] + competitors[: turn % len(competitors)]:
            competitor.turn()
    wall: dict[str, float] = {}
    for competitor in competitors:
        wall[competitor.name] = competitor.start_s + sum(turn.seconds for turn in competitor.turns) + competitor.finish()
    rates = {c.name: [steps / turn.seconds for turn in c.counted] for c in competitors}
    others = [name for name in rates if not name.startswith("lit_ppo")]
    best_peer = max(others, key=lambda name: statistics.median(rates[name]), default=None)
    target = {"4x128": 1.7, "64x128": 1.6}[case]
    for name, values in rates.items():
        row = Row(label, name, "env steps/s", values)
        if name.startswith("lit_ppo"):
            row.against, row.target = best_peer, f">= {2.2 if 'compiled' in name else target}"
        rows.append(row)
    for competitor in competitors:
        for phase in competitor.counted[0].phases:
            shares = [turn.phases[phase] / turn.seconds for turn in competitor.counted]
            rows.append(Row(f"{label}, share of time", f"{competitor.name}: {phase}", "of a turn", shares))
        if competitor.counted[0].phases:
            rest = [1 - sum(turn.phases.values()) / turn.seconds for turn in competitor.counted]
            note = "Trainer, logger, statistics, journal of a checkpoint"
            rows.append(Row(f"{label}, share of time", f"{competitor.name}: rest", "of a turn", rest, note=note))
    sb3 = next((c.name for c in competitors if c.who == "SB3"), None)
    for competitor in competitors:
        ours = competitor.who.startswith("lit_ppo")
        wall_note = f"for {(rounds + 2) * steps:,} env steps, imports and end included"
        rows.append(Row(label, competitor.name, "s of process", [wall[competitor.name]], sb3 if ours else None, note=wall_note))
        memory_note = "sum over its processes; shared pages count for each" if ours else ""
        rows.append(Row(label, competitor.name, "MiB peak RSS", [competitor.rss_mib], sb3 if ours else None, note=memory_note))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, help="turns of each competitor")
    parser.add_argument("--compete", nargs=4, metavar=("WHO", "THREADS", "CASE", "UPDATES_PER_TURN"))
    options = parser.parse_args()
    if options.compete:
        who, num_threads, case, updates_per_turn = options.compete
        compete(who, int(num_threads), case, int(updates_per_turn))
        return
    ours = [who for who in RUNNERS if who.startswith("lit_ppo")]
    entrants = [(who, 1) for who in (("lit_ppo, sync", "lit_ppo, native") if options.quick else ours)]
    threads = (1,) if options.quick else (1, 2)
    peers_here = ("CleanRL-style", "SB3") if options.quick else ("CleanRL-style", *VENVS)  # the others are slow to start
    entrants += [(who, n) for who in peers_here for n in threads]  # each its best of 1 and 2
    rounds = options.rounds or (4 if options.quick else 15)
    rows = measure("4x128", entrants, rounds, 4 if options.quick else 8)
    rows += measure("64x128", entrants, rounds, 1 if options.quick else 2)
    show(rows)


if __name__ == "__main__":
    main()
