"""Time to solve CartPole-v1, seeds 0 to 9: lit_ppo's preset, CleanRL's defaults, and SB3 with rl-zoo3's.

All stop by the same rule, that of `lit_ppo fit`: after each update (256 env steps; 512 for CleanRL) 10 greedy episodes; when
their mean reaches 475, up to 100 fresh ones (the second 50 only if the first reach it too), whose mean must clear 475 by a
hundred standard errors, so nearly all of them end at 500. After the run, and off every clock, 100 more are played with the
policy that it leaves: does it solve, and how many of them end at 500?

Training seconds begin when all is made and leave out the evaluations, for all alike; process seconds hold everything from the
start of the interpreter to its end. lit_ppo evaluates as its users do, in an environment process of its own; the peers play
theirs in process in a native vector env, which is faster.
"""

import argparse
import json
import os
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
_CHECK_EVERY: Final = 256  # env steps
_EPISODES: Final = 10
_CONFIRMING_EPISODES: Final = 100
_MARGIN: Final = 100.0  # standard errors
_MOST_ENV_STEPS: Final = 100_000
_CASE: Final = "solving CartPole-v1"

Policy = Callable[[NDArray[np.float32]], NDArray[np.int64]]


def greedy_returns(policy: Policy, num_episodes: int, seed: int) -> NDArray[np.float64]:
    """Returns of greedy episodes, played side by side."""
    import gymnasium

    envs = gymnasium.make_vec("CartPole-v1", num_episodes, vectorization_mode="vector_entry_point")
    obs, _ = envs.reset(seed=seed)
    returns, playing = np.zeros(num_episodes), np.ones(num_episodes, np.bool_)
    while playing.any():
        obs, rewards, terminated, truncated, _ = envs.step(policy(obs))
        returns += rewards * playing
        playing &= ~(terminated | truncated)
    return returns


class Checks:
    """Looks after each update whether a peer has solved the task, and keeps count of what the looking takes."""

    def __init__(self, seed: int) -> None:
        self._seed, self._checking_s, self._begin = 100_000 * (1 + seed), 0.0, 0.0
        self.result: dict[str, Any] = {}

    def begin(self) -> None:
        """Training starts now."""
        self._begin = perf_counter()

    def over(self, env_steps: int, policy: Policy) -> bool:
        """Whether to stop; `result` says how it went."""
        if env_steps % _CHECK_EVERY:
            return False
        start = perf_counter()
        solved = self._confirmed(policy)
        self._checking_s += perf_counter() - start
        if not solved and env_steps < _MOST_ENV_STEPS:
            return False
        with_checking_s = perf_counter() - self._begin
        self.result = {
            "env_steps": env_steps,
            "training_s": with_checking_s - self._checking_s,
            "with_checking_s": with_checking_s,
            **judged(policy, self._seed),
        }
        return True

    def _confirmed(self, policy: Policy) -> bool:
        if self._play(policy, _EPISODES).mean() < _THRESHOLD:
            return False
        returns = self._play(policy, _CONFIRMING_EPISODES // 2)
        if returns.mean() >= _THRESHOLD:
            returns = np.append(returns, self._play(policy, _CONFIRMING_EPISODES // 2))
        return bool(returns.mean() - _MARGIN * returns.std() / len(returns) ** 0.5 >= _THRESHOLD)

    def _play(self, policy: Policy, num_episodes: int) -> NDArray[np.float64]:
        self._seed += 1
        return greedy_returns(policy, num_episodes, self._seed)


def judged(policy: Policy, seed: int) -> dict[str, Any]:
    """What 100 fresh greedy episodes say of the policy that a run has left, and the seconds they took."""
    start = perf_counter()
    returns = greedy_returns(policy, 100, 50_000 + seed)
    at_top = int((returns >= 500).sum())
    return {"solved": bool(returns.mean() >= _THRESHOLD), "at_top": at_top, "judging_s": perf_counter() - start}


def solve_cleanrl_style(seed: int) -> dict[str, Any]:
    import torch

    from benchmarks.cleanrl_style import Settings, train

    checks = Checks(seed)
    updates = train(Settings(seed=seed))
    next(updates)  # all is made
    checks.begin()
    for env_steps, agent in updates:

        @torch.no_grad()
        def policy(obs: NDArray[np.float32], actor: Any = agent.actor) -> NDArray[np.int64]:
            return actor(torch.from_numpy(obs)).argmax(-1).numpy()  # type: ignore[no-any-return]

        if checks.over(env_steps, policy):
            break
    return checks.result


def solve_sb3(seed: int) -> dict[str, Any]:
    from stable_baselines3.common.callbacks import BaseCallback

    from benchmarks.peers import rl_zoo3_ppo

    class Stop(Exception):
        pass

    class Check(BaseCallback):
        def _on_training_start(self) -> None:
            checks.begin()

        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            """The update before is over."""
            if self.num_timesteps and checks.over(self.num_timesteps, self._greedy):
                raise Stop

        def _greedy(self, obs: NDArray[np.float32]) -> Any:
            return self.model.predict(obs, deterministic=True)[0]

    checks = Checks(seed)
    try:
        rl_zoo3_ppo(seed).learn(_MOST_ENV_STEPS, callback=Check())
    except Stop:
        return checks.result
    raise RuntimeError("SB3 ended before its last check")


def solve_lit_ppo(seed: int) -> dict[str, Any]:
    """`python -m lit_ppo fit`, with a clock on its evaluations."""
    from lit_ppo.bridge.process import start_ahead
    from lit_ppo.compat_torch import defer_dynamo

    start_ahead(2)  # these two as in `lit_ppo.__main__`
    defer_dynamo()

    from lit_ppo import cli
    from lit_ppo.callbacks.run_progress import RunProgress
    from lit_ppo.data import RolloutDataModule

    _same_rule()
    times: dict[str, Any] = {"checking_s": 0.0}
    play, begin, end = RolloutDataModule.play, RunProgress.on_train_start, RunProgress.on_train_end

    def timed_play(self: RolloutDataModule, *args: Any, **kwargs: Any) -> Any:
        start = perf_counter()
        results = play(self, *args, **kwargs)
        if "start" in times:  # the evaluation of the untrained policy may come before
            times["checking_s"] += perf_counter() - start
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
    cli.main(["fit", "--seed_everything", str(seed), "--checkpoint.dirpath=checkpoints"])
    return {**times, "training_s": times["with_checking_s"] - times["checking_s"]}


def _same_rule() -> None:
    """The rule that `Checks` applies to the peers is the one of `fit` with the preset of CartPole."""
    from lit_ppo.callbacks.greedy_evaluation import GreedyEvaluation
    from lit_ppo.callbacks.stop_when_solved import StopWhenSolved
    from lit_ppo.presets import preset_named

    settings = preset_named("CartPole-v1").settings
    evaluation, solved = GreedyEvaluation(**settings["evaluation"]), StopWhenSolved(**settings.get("solved", {}))
    ours = (
        max(evaluation.every_env_steps or 0, settings["data"]["num_envs"] * settings["data"]["horizon"]),
        evaluation.num_episodes,
        solved.confirmation_episodes,
        solved.margin,
    )
    if ours != (_CHECK_EVERY, _EPISODES, _CONFIRMING_EPISODES, _MARGIN):
        raise RuntimeError(f"fit stops by another rule than the peers here: {ours}")


def judge_lit_ppo(seed: int) -> dict[str, Any]:
    """`judged`, of `checkpoints/best.ckpt`."""
    import torch

    weights = torch.load("checkpoints/best.ckpt", weights_only=True)["state_dict"]
    actor = {name: value for name, value in weights.items() if name.startswith("actor.")}
    layers = sorted({name.rpartition(".")[0] for name in actor}, key=lambda name: int(name.rpartition(".")[2]))

    def policy(obs: NDArray[np.float32]) -> NDArray[np.int64]:
        hidden = torch.from_numpy(obs)
        for layer in layers[:-1]:
            hidden = torch.tanh(hidden @ actor[f"{layer}.weight"].T + actor[f"{layer}.bias"])
        return (hidden @ actor[f"{layers[-1]}.weight"].T + actor[f"{layers[-1]}.bias"]).argmax(-1).numpy()  # type: ignore[no-any-return]

    return judged(policy, 100_000 * (1 + seed))


SOLVERS: Final = {"lit_ppo": solve_lit_ppo, "CleanRL-style": solve_cleanrl_style, "SB3 (rl-zoo3)": solve_sb3}


def run(who: str, seed: int, num_threads: int) -> dict[str, float]:
    """One run in a process and a directory of its own."""
    python = peers_python("peers" if who.startswith("SB3") else "plain")
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
            judgement = output_of("-m", "benchmarks.solving", "--judge", str(seed))
            return {**result, **json.loads(judgement.strip().splitlines()[-1]), "process_s": process_s}
        return {**result, "process_s": process_s - result["judging_s"]}
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--solve", nargs=2, metavar=("WHO", "SEED"))
    parser.add_argument("--judge", type=int, metavar="SEED")
    options = parser.parse_args()
    if options.judge is not None:
        print(json.dumps(judge_lit_ppo(options.judge)))
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
        ours = who == "lit_ppo"

        def row(key: str, unit: str, against: str | None = None, target: str | None = None, *, who: str = who) -> None:
            values = [float(run[key]) for run in runs[who]]
            by_seed = "by seed: " + " ".join(f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in values)
            rows.append(Row(_CASE, who, unit, values, against, target if who == "lit_ppo" else None, by_seed, is_paired=False))

        row("env_steps", "env steps", None, "<= 6000")
        worst = [max(run["env_steps"] for run in found)] if found else []
        rows.append(Row(_CASE, who, "env steps, worst", worst, None, "<= 11000" if ours else None))
        row("training_s", "s of training", best("training_s") if ours else None, "<= 0.2")
        row("with_checking_s", "s of training and checking", best("with_checking_s") if ours else None)
        row("process_s", "s of process", best("process_s") if ours else None, "<= 0.85")
        row("at_top", "of 100 at 500", None, ">= 95")
        solved = [sum(run["solved"] for run in found)]
        rows.append(
            Row(_CASE, who, f"solved of {num_seeds}", solved, None, f">= {num_seeds}" if ours else None, notes.get(who, ""))
        )
    return rows


if __name__ == "__main__":
    main()
