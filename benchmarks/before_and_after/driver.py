"""What runs inside the interpreter of a checkout: one measurement, printed as one JSON line.

Copied into the measured process's directory and run there as a script, so it uses only what every version's Python API has.
Heavy imports are inside the functions: the environment process imports this file too, for `driver:Endless-v0`.
"""

import itertools
import json
import sys
from time import perf_counter
from typing import Any

import gymnasium
import numpy as np

Stepped = tuple[np.ndarray, float, bool, bool, dict[str, Any]]
_WARM_UP_STEPS = 500


class Endless(gymnasium.Env[np.ndarray, np.int64]):
    """One constant observation; episodes never end."""

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(0.0, 1.0, (1,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(2)
        self._obs = np.ones(1, np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return self._obs, {}

    def step(self, action: np.int64) -> Stepped:
        return self._obs, 1.0, False, False, {}


gymnasium.register("Endless-v0", Endless)


def _fit(data: Any, module: Any, updates: int) -> list[float]:
    """Train without checkpoints; seconds at which each update ended."""
    from lightning.pytorch import Callback, Trainer
    from lightning.pytorch.loggers import CSVLogger

    class Clock(Callback):
        """Notes when updates end."""

        times: list[float] = []

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            self.times.append(perf_counter())

    trainer = Trainer(
        accelerator="cpu",
        max_epochs=updates,
        logger=CSVLogger("logs", name=""),  # the command line's default
        callbacks=[Clock()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, datamodule=data)
    return Clock.times


def _spaces(data: Any) -> tuple[Any, ...]:
    """What a PPOModule is told of the environment: its spec, in versions before 0.3 two sizes."""
    return (data.obs_size, data.num_actions) if hasattr(type(data), "obs_size") else (data.spec,)


def train(num_envs: int, minibatch_size: int, compiled: bool, warm_up: int, updates: int) -> float:
    """Env steps per second of collection and update, over `updates` updates after `warm_up` others."""
    from lit_ppo import PPOModule, RolloutDataModule

    horizon = 128
    data = RolloutDataModule("CartPole-v1", num_envs=num_envs, horizon=horizon)
    # so small a learning rate leaves the policy as it is: both versions step the same episodes, whatever their schedules
    settings = {"learning_rate": 1e-9, "update_epochs": 4, "minibatch_size": minibatch_size, "compile": compiled}
    module = PPOModule(*_spaces(data), **settings)
    times = _fit(data, module, warm_up + updates)
    if compiled:
        from torch._dynamo.utils import counters

        if not counters["stats"]["unique_graphs"]:  # without a C++ compiler the run goes on eagerly
            raise RuntimeError("compile=True: expected a compiled program, got none")
    return updates * num_envs * horizon / (times[-1] - times[warm_up - 1])


def step(vectorization: str, num_envs: int, steps: int) -> float:
    """Env steps per second of the bridge."""
    from typing import get_args, get_type_hints

    from lit_ppo import EnvBridge

    # from a signature: versions before 0.3 have no public name for it
    [settings, _] = get_args(get_type_hints(EnvBridge.__init__)["settings"])
    actions = np.random.default_rng(0).integers(0, 2, (_WARM_UP_STEPS + steps, num_envs))
    with EnvBridge(
        "CartPole-v1", num_envs, lambda env, episode: 1000 * env + episode, settings=settings(vectorization=vectorization)
    ) as bridge:
        bridge.reset()
        for row in actions[:_WARM_UP_STEPS]:
            bridge.step(row)
        start = perf_counter()
        for row in actions[_WARM_UP_STEPS:]:
            bridge.step(row)
        return steps * num_envs / (perf_counter() - start)


def boundary(num_envs: int, horizon: int, updates: int) -> list[float]:
    """Seconds of each update but the first, while episodes that never end get longer."""
    from lit_ppo import PPOModule, RolloutDataModule

    data = RolloutDataModule("driver:Endless-v0", num_envs=num_envs, horizon=horizon)
    module = PPOModule(
        *_spaces(data), actor_hidden_sizes=(4,), critic_hidden_sizes=(4,), update_epochs=1, minibatch_size=num_envs * horizon
    )
    times = _fit(data, module, updates + 1)
    return [end - begin for begin, end in itertools.pairwise(times)]


def main() -> None:
    import warnings

    warnings.filterwarnings("ignore")
    call = json.loads(sys.argv[1])
    if call["measure"] != "step":  # the bridge alone needs no torch
        import torch

        torch.set_num_threads(1)  # as the command line does
    result = {"train": train, "step": step, "boundary": boundary}[call.pop("measure")](**call)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
