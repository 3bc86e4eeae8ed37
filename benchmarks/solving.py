"""Time to solve CartPole-v1: a greedy average of at least 475 over 100 fresh episodes, seeds 0 to 9.

lit_ppo runs as users run it: `fit` with its defaults, which evaluates, confirms and stops by itself; then `test` plays 100
fresh episodes of the best checkpoint. The peers have no such thing, so they are checked with 100 greedy episodes every 2,048
env steps, and the seconds spent on that are taken off their training and process times; lit_ppo's process time holds its own.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from time import perf_counter
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import ROOT, Row, peers_python, show

_THRESHOLD: Final = 475.0
_CHECK_EVERY: Final = 2048  # env steps
_MOST_ENV_STEPS: Final = 100_000
_EPISODES: Final = 100
_CASE: Final = "solving CartPole-v1"


def greedy_returns(policy: Callable[[NDArray[np.float32]], NDArray[np.int64]], seed: int) -> NDArray[np.float64]:
    """Returns of 100 fresh greedy episodes, played side by side."""
    import gymnasium

    envs = gymnasium.make_vec("CartPole-v1", _EPISODES, vectorization_mode="vector_entry_point")
    obs, _ = envs.reset(seed=seed)
    returns, playing = np.zeros(_EPISODES), np.ones(_EPISODES, np.bool_)
    while playing.any():
        obs, rewards, terminated, truncated, _ = envs.step(policy(obs))
        returns += rewards * playing
        playing &= ~(terminated | truncated)
    return returns


class Checks:
    """Looks every 2,048 env steps whether a peer has solved the task, and keeps count of what the looking takes."""

    def __init__(self, seed: int) -> None:
        self.checking_s, self.start, self._seed = 0.0, perf_counter(), 10_000 + 1_000 * seed
        self.result: dict[str, Any] = {}

    def solved(self, env_steps: int, policy: Callable[[NDArray[np.float32]], NDArray[np.int64]]) -> bool:
        """Whether to stop; `result` says how it went."""
        if env_steps % _CHECK_EVERY:
            return False
        start = perf_counter()
        self._seed += 1
        mean = float(greedy_returns(policy, self._seed).mean())
        self.checking_s += perf_counter() - start
        if mean < _THRESHOLD and env_steps < _MOST_ENV_STEPS:
            return False
        training_s = perf_counter() - self.start - self.checking_s
        fresh_start = perf_counter()
        at_top = int((greedy_returns(policy, self._seed + 500) >= 500).sum())
        self.checking_s += perf_counter() - fresh_start
        self.result = {
            "solved": mean >= _THRESHOLD,
            "env_steps": env_steps,
            "training_s": training_s,
            "checking_s": self.checking_s,
            "at_top": at_top,
        }
        return True


def solve_cleanrl_style(seed: int) -> dict[str, Any]:
    import torch

    from benchmarks.cleanrl_style import Settings, train

    checks = Checks(seed)
    for env_steps, agent in train(Settings(seed=seed)):

        @torch.no_grad()
        def policy(obs: NDArray[np.float32], actor: Any = agent.actor) -> NDArray[np.int64]:
            return actor(torch.from_numpy(obs)).argmax(-1).numpy()  # type: ignore[no-any-return]

        if checks.solved(env_steps, policy):
            break
    return checks.result


def solve_sb3(seed: int) -> dict[str, Any]:
    """With the hyper-parameters of rl-zoo3 for CartPole-v1."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env

    class Stop(Exception):
        pass

    class Check(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            """The update before is over."""
            if self.num_timesteps and checks.solved(self.num_timesteps, self._greedy):
                raise Stop

        def _greedy(self, obs: NDArray[np.float32]) -> Any:
            return self.model.predict(obs, deterministic=True)[0]

    checks = Checks(seed)
    model = PPO(
        "MlpPolicy",
        make_vec_env("CartPole-v1", 8, seed=seed),
        n_steps=32,
        batch_size=256,
        gae_lambda=0.8,
        gamma=0.98,
        n_epochs=20,
        ent_coef=0.0,
        learning_rate=lambda remaining: 0.001 * remaining,
        clip_range=lambda remaining: 0.2 * remaining,
        device="cpu",
        seed=seed,
    )
    try:
        model.learn(_MOST_ENV_STEPS, callback=Check())
    except Stop:
        return checks.result
    raise RuntimeError("SB3 ended before its last check")


def solve_lit_ppo(seed: int) -> dict[str, Any]:
    """`python -m lit_ppo fit`, with a clock on its evaluations."""
    from lit_ppo import cli
    from lit_ppo.callbacks.run_progress import RunProgress
    from lit_ppo.data import RolloutDataModule

    times: dict[str, Any] = {"checking_s": 0.0}
    play, begin, end = RolloutDataModule.play, RunProgress.on_train_start, RunProgress.on_train_end

    def timed_play(self: RolloutDataModule, *args: Any, **kwargs: Any) -> Any:
        start = perf_counter()
        results = play(self, *args, **kwargs)
        if "start" in times:
            times["checking_s"] += perf_counter() - start
        if len(results.returns) == _EPISODES and results.mean >= _THRESHOLD:
            times.setdefault("env_steps_first", self.env_steps)
        return results

    def timed_begin(self: RunProgress, trainer: Any, pl_module: Any) -> None:
        begin(self, trainer, pl_module)
        times["start"] = perf_counter()

    def timed_end(self: RunProgress, trainer: Any, pl_module: Any) -> None:
        times["with_checking_s"] = perf_counter() - times["start"]
        times["env_steps"] = trainer.datamodule.env_steps
        end(self, trainer, pl_module)

    RolloutDataModule.play = timed_play  # type: ignore[method-assign]
    RunProgress.on_train_start, RunProgress.on_train_end = timed_begin, timed_end  # type: ignore[method-assign]
    cli.main(["fit", "--seed_everything", str(seed)])
    times.setdefault("env_steps_first", times["env_steps"])
    return {**times, "training_s": times["with_checking_s"] - times["checking_s"]}


SOLVERS: Final = {"lit_ppo": solve_lit_ppo, "CleanRL-style": solve_cleanrl_style, "SB3 (rl-zoo3)": solve_sb3}


def run(who: str, seed: int, num_threads: int) -> dict[str, float]:
    """One run in a process and a directory of its own."""
    python = peers_python() if who.startswith("SB3") else sys.executable
    directory = tempfile.mkdtemp(prefix="solving-")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(num_threads)}

    def output_of(*arguments: str) -> str:
        done = subprocess.run(
            [python, *arguments], cwd=directory, env=environment, capture_output=True, text=True, timeout=600, check=False
        )
        if done.returncode:
            raise RuntimeError((done.stderr.strip().splitlines() or ["no message"])[-1])
        return done.stdout

    try:
        start = perf_counter()
        output = output_of("-m", "benchmarks.solving", "--solve", who, str(seed))
        process_s = perf_counter() - start
        result: dict[str, float] = json.loads(output.strip().splitlines()[-1])
        if who == "lit_ppo":
            # played by `test` in a process of its own, and once more by us for what `test` does not print
            tested = output_of("-m", "lit_ppo", "test", "--ckpt_path", "best")
            mean = float(re.search(r"mean return\s+([\d.]+)", tested)[1])  # type: ignore[index]
            at_top = json.loads(output_of("-m", "benchmarks.solving", "--count", str(seed)).strip().splitlines()[-1])
            return {**result, "solved": mean >= _THRESHOLD, "at_top": at_top, "process_s": process_s}
        return {**result, "process_s": process_s - result["checking_s"]}
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def count_at_top(seed: int) -> int:
    """How many of 100 fresh greedy episodes of `checkpoints/best.ckpt` reach 500."""
    import torch

    weights = torch.load("checkpoints/best.ckpt", weights_only=True)["state_dict"]
    actor = {name: value for name, value in weights.items() if name.startswith("actor.")}
    layers = sorted({name.rpartition(".")[0] for name in actor}, key=lambda name: int(name.rpartition(".")[2]))

    def policy(obs: NDArray[np.float32]) -> NDArray[np.int64]:
        hidden = torch.from_numpy(obs)
        for layer in layers[:-1]:
            hidden = torch.tanh(hidden @ actor[f"{layer}.weight"].T + actor[f"{layer}.bias"])
        return (hidden @ actor[f"{layers[-1]}.weight"].T + actor[f"{layers[-1]}.bias"]).argmax(-1).numpy()  # type: ignore[no-any-return]

    return int((greedy_returns(policy, 10_000 + 1_000 * seed + 900) >= 500).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--solve", nargs=2, metavar=("WHO", "SEED"))
    parser.add_argument("--count", type=int, metavar="SEED")
    options = parser.parse_args()
    if options.count is not None:
        print(count_at_top(options.count))
        return
    if options.solve:
        warnings.filterwarnings("ignore")
        import torch

        torch.set_num_threads(1)  # best of 1 and 2 for all of them, see the part on training
        who, seed = options.solve
        print(json.dumps(SOLVERS[who](int(seed))))
        return
    num_seeds = options.seeds or (1 if options.quick else 10)
    runs: dict[str, list[dict[str, float]]] = {who: [] for who in SOLVERS}
    notes: dict[str, str] = {}
    for seed in range(num_seeds):
        for who in SOLVERS:
            try:
                runs[who].append(run(who, seed, 1))
                print(f"solving: {who}, seed {seed}: {runs[who][-1]}", file=sys.stderr)
            except (RuntimeError, FileNotFoundError, subprocess.TimeoutExpired) as error:
                notes[who] = f"seed {seed}: {error}"[:120]
    show(_rows(runs, notes, num_seeds))


def _rows(runs: dict[str, list[dict[str, float]]], notes: dict[str, str], num_seeds: int) -> list[Row]:
    peers = [who for who in runs if who != "lit_ppo" and runs[who]]

    def best(key: str) -> str | None:
        return min(peers, key=lambda who: statistics.median(run[key] for run in runs[who]), default=None)

    rows = []
    for who, found in runs.items():
        ours, note = who == "lit_ppo", notes.get(who, "")

        def row(
            key: str, unit: str, against: str | None = None, target: str | None = None, *, who: str = who, remark: str = note
        ) -> None:
            rows.append(Row(_CASE, who, unit, [float(run[key]) for run in runs[who]], against, target, remark))

        row("env_steps", "env steps", None, "<= 6000" if ours else None)
        if ours:
            row("env_steps_first", "env steps, peers' rule", remark="first mean >= 475 of 100 episodes, without our margin")
        if ours and found:
            rows.append(Row(_CASE, who, "env steps, worst", [max(run["env_steps"] for run in found)], None, "<= 11000"))
        row("training_s", "s of training", best("training_s") if ours else None, "<= 0.2" if ours else None)
        if ours:
            row("with_checking_s", "s of training and checking")
        row(
            "process_s",
            "s of process",
            best("process_s") if ours else None,
            "<= 0.85" if ours else None,
            remark="its checking included" if ours else "checking taken off",
        )
        row("at_top", "of 100 at 500", None, ">= 95" if ours else None)
        rows.append(Row(_CASE, who, f"solved of {num_seeds}", [sum(run["solved"] for run in found)], note=note))
    return rows


if __name__ == "__main__":
    main()
