"""Env steps per second: the bridge, with contract and journal, beside the same environment in process and other vector envs.

Run by the peers' interpreter where there is one: the bridge needs numpy and gymnasium alone, so all share one process. Each
round gives every competitor one short turn, so that drift of the machine hits all alike.
"""

import argparse
import itertools
import multiprocessing
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any, Final

import gymnasium
import numpy as np
from numpy.typing import NDArray

from benchmarks.report import Row, show
from lit_ppo.bridge.client import EnvBridge
from lit_ppo.bridge.settings import BridgeSettings, EnvironmentSettings

Actions = NDArray[np.int64]
_ACTION_ROWS: Final = 1024
_MOST_PROCESSES: Final = 64


@dataclass
class Competitor:
    """Something that steps N environments."""

    name: str
    step: Callable[[Actions], object]
    close: Callable[[], None]

    def turn(self, actions: Actions, seconds: float) -> float:
        """Vector steps per second, over at least `seconds`."""
        num_steps, start = 0, perf_counter()
        while (elapsed := perf_counter() - start) < seconds or num_steps == 0:
            for row in itertools.islice(actions, 16):
                self.step(row)
            num_steps += 16
        return num_steps / elapsed


def bridge(env_id: str, num_envs: int, vectorization: Any, num_workers: Any, **env_kwargs: Any) -> Competitor:
    settings = BridgeSettings(vectorization=vectorization, num_workers=num_workers)
    environment = EnvironmentSettings(env_id, env_kwargs)
    env = EnvBridge(environment, num_envs, lambda row, episode: row + 1000 * episode, settings=settings)
    try:
        env.reset()
    except BaseException:
        env.close()
        raise
    return Competitor(f"bridge {vectorization}, {num_workers} worker{'s' * (num_workers != 1)}", env.step, env.close)


def in_process_native(env_id: str, num_envs: int) -> Competitor:
    env = gymnasium.make_vec(env_id, num_envs, vectorization_mode="vector_entry_point")
    env.reset(seed=0)
    return Competitor("native in process", env.step, env.close)


def in_process_sync(env_id: str, num_envs: int, **env_kwargs: Any) -> Competitor:
    env = gymnasium.vector.SyncVectorEnv([_maker(env_id, **env_kwargs)] * num_envs)
    env.reset(seed=0)
    return Competitor("SyncVectorEnv", env.step, env.close)


def gymnasium_async(env_id: str, num_envs: int) -> Competitor:
    env = gymnasium.vector.AsyncVectorEnv([_maker(env_id)] * num_envs, context="fork")
    env.reset(seed=0)
    return Competitor("AsyncVectorEnv", env.step, env.close)


def sb3_dummy(env_id: str, num_envs: int) -> Competitor:
    from stable_baselines3.common.vec_env import DummyVecEnv

    env = DummyVecEnv([_maker(env_id)] * num_envs)
    env.reset()
    return Competitor("SB3 DummyVecEnv", env.step, env.close)


def sb3_subproc(env_id: str, num_envs: int) -> Competitor:
    from stable_baselines3.common.vec_env import SubprocVecEnv

    env = SubprocVecEnv([_maker(env_id)] * num_envs, start_method="fork")
    env.reset()
    return Competitor("SB3 SubprocVecEnv", env.step, env.close)


def envpool_pool(env_id: str, num_envs: int, num_threads: int) -> Competitor:
    import envpool

    env = envpool.make(env_id, env_type="gymnasium", num_envs=num_envs, num_threads=num_threads)
    env.reset()
    return Competitor(f"EnvPool, {num_threads} thread{'s' * (num_threads > 1)}", env.step, env.close)


def _maker(env_id: str, **env_kwargs: Any) -> Callable[[], gymnasium.Env[Any, Any]]:
    # without Gymnasium's checker, as in the bridge: it costs more than our contract does
    return partial(gymnasium.make, env_id, disable_env_checker=True, **env_kwargs)


def competitors(env_id: str, num_envs: int, native: bool) -> tuple[list[Competitor], list[tuple[str, str]]]:
    """Those that can be made here, and why others cannot."""
    makers: dict[str, Callable[[], Competitor]] = {}
    workers = (1, 2) if num_envs > 1 else (1,)
    if native:
        makers["native in process"] = lambda: in_process_native(env_id, num_envs)
        for n in workers:
            makers[f"bridge native, {n}"] = partial(bridge, env_id, num_envs, "native", n)
    if num_envs <= 256:
        makers["SyncVectorEnv"] = lambda: in_process_sync(env_id, num_envs)
        for n in workers:
            makers[f"bridge sync, {n}"] = partial(bridge, env_id, num_envs, "sync", n)
    if num_envs <= 256:
        makers["SB3 DummyVecEnv"] = lambda: sb3_dummy(env_id, num_envs)
        for n in workers:
            makers[f"EnvPool, {n}"] = partial(envpool_pool, env_id, num_envs, n)
    if num_envs <= _MOST_PROCESSES:
        makers["AsyncVectorEnv"] = lambda: gymnasium_async(env_id, num_envs)
        makers["SB3 SubprocVecEnv"] = lambda: sb3_subproc(env_id, num_envs)
    # those that fork go first: a fork of a process with threads may hang
    forking = ("AsyncVectorEnv", "SB3 SubprocVecEnv")
    made, failed = [], []
    for name in sorted(makers, key=lambda name: name not in forking):
        try:
            made.append(makers[name]())
        except Exception as error:  # one peer that fails must not end the others; the table says why
            failed.append((name, f"{type(error).__name__}: {error}"[:100]))
    return made, failed


def reference(who: str) -> str | None:
    """What a competitor is compared with."""
    if who == "native in process" or who == "SyncVectorEnv":
        return None
    if who.startswith("bridge native"):
        return "native in process"
    return "SyncVectorEnv"


_TARGETS: Final = {
    (8, "bridge native, 1 worker"): ">= 0.7",
    (64, "bridge native, 1 worker"): ">= 0.9",
    (256, "bridge native, 1 worker"): ">= 0.9",
    (64, "bridge sync, 1 worker"): ">= 0.9",
    (64, "bridge sync, 2 workers"): ">= 1.6",
}


def measure(env_id: str, num_envs: int, num_actions: int, native: bool, rounds: int, seconds: float) -> list[Row]:
    """One case: `rounds` turns of every competitor, after one that does not count."""
    actions = np.random.default_rng(0).integers(num_actions, size=(_ACTION_ROWS, num_envs))
    made, failed = competitors(env_id, num_envs, native)
    case = f"stepping {env_id.rpartition(':')[2]} N={num_envs}"
    rows = {
        who.name: Row(case, who.name, "env steps/s", against=reference(who.name), target=_TARGETS.get((num_envs, who.name)))
        for who in made
    }
    take_turns(made, rows, actions, rounds, seconds)
    return [*rows.values(), *(Row(case, name, "env steps/s", note=note) for name, note in failed)]


def take_turns(made: list[Competitor], rows: Mapping[str, Row], actions: Actions, rounds: int, seconds: float) -> None:
    """Append the env steps per second of each competitor in each round to its row; then close them.

    Args:
        made: The competitors.
        rows: By name of the competitor.
        actions: Shape (steps, N).
        rounds: Besides the first, which does not count.
        seconds: Of a turn.
    """
    try:
        for turn in range(rounds + 1):
            for who in made[turn % len(made) :] + made[: turn % len(made)]:  # nobody always comes after the same one
                rate = actions.shape[1] * who.turn(actions, seconds)
                if turn:
                    rows[who.name].values.append(rate)
    finally:
        for who in made:
            who.close()


def against_process_per_env(rows: list[Row]) -> list[Row]:
    """The target of ten times the vector envs that run one process for each environment."""
    found = []
    for row in rows:
        if "N=64" in row.case and "CartPole" in row.case and row.who == "bridge native, 1 worker":
            found += [
                Row(row.case, row.who, row.unit, row.values, peer, ">= 10") for peer in ("AsyncVectorEnv", "SB3 SubprocVecEnv")
            ]
    return found


def slow(rounds: int, seconds: float) -> list[Row]:
    """16 environments of 1 ms a step: how many workers the bridge takes by itself, and what that gains."""
    env_id, num_envs, case = "benchmarks.slow_env:Slow-v0", 16, "stepping, 1 ms a step N=16"
    made = [bridge(env_id, num_envs, "sync", num_workers) for num_workers in (1, 2, "auto")]
    alone = made[0].name
    rows = {who.name: Row(case, who.name, "env steps/s", against=None if who.name == alone else alone) for who in made}
    rows["bridge sync, auto workers"].target = ">= 1.8"
    take_turns(made, rows, np.zeros((_ACTION_ROWS, num_envs), np.int64), rounds, seconds)
    return list(rows.values())


def _busy(num_envs: int, vectorization: str, stop: Any, ready: Any) -> None:
    who = bridge("CartPole-v1", num_envs, vectorization, 1)
    actions = np.zeros((_ACTION_ROWS, num_envs), np.int64)
    ready.set()
    while not stop.is_set():
        who.turn(actions, 0.05)
    who.close()


def side_by_side(rounds: int, seconds: float) -> list[Row]:
    """A run alone, and beside another of its kind: two trainers and two workers on however few cores there are."""
    actions, case = np.zeros((_ACTION_ROWS, 64), np.int64), "stepping, two runs side by side N=64"
    context, rows = multiprocessing.get_context("spawn"), []
    for vectorization in ("native", "sync"):
        who = bridge("CartPole-v1", 64, vectorization, 1)
        alone = Row(case, f"{vectorization}, alone", "env steps/s")
        beside = Row(case, f"{vectorization}, beside", alone.unit, against=alone.who, note="0.5 is a fair share of two cores")
        who.turn(actions, seconds)
        for _ in range(rounds):
            alone.values.append(64 * who.turn(actions, seconds))
            stop, ready = context.Event(), context.Event()
            other = context.Process(target=_busy, args=(64, vectorization, stop, ready))
            other.start()
            ready.wait()
            who.turn(actions, seconds / 2)  # the polling budget adapts
            beside.values.append(64 * who.turn(actions, seconds))
            stop.set()
            other.join()
        who.close()
        rows += [alone, beside]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, help="turns of each competitor")
    options = parser.parse_args()
    quick = options.quick
    rounds, seconds = options.rounds or (3 if quick else 21), 0.1 if quick else 0.25
    rows: list[Row] = []
    for num_envs in (1, 8, 64, 256) if quick else (1, 8, 64, 256, 1024):
        print(f"stepping: CartPole-v1 N={num_envs}", file=sys.stderr)
        rows += measure("CartPole-v1", num_envs, 2, True, rounds, seconds)
    rows += measure("Acrobot-v1", 8 if quick else 64, 3, False, rounds, seconds)
    rows += slow(min(5, rounds), 4 * seconds)
    rows += against_process_per_env(rows)
    if not quick:
        rows += side_by_side(min(5, rounds), 4 * seconds)
    show(rows)


if __name__ == "__main__":
    main()
