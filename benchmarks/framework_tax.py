"""What the framework costs: one update through Trainer and LightningModule beside the same mathematics in a bare loop.

Both learn from the same batch of real transitions and take turns, one update each. Inside the Trainer an "epoch" is all that
happens between two fetches of a batch: hooks, `training_step` with its checks and diagnostics, loggers. The bare loop has the
same functions and the same fused Adam, and neither checks nor diagnostics.
"""

import argparse
import tempfile
import warnings
from collections.abc import Sequence
from time import perf_counter
from typing import Any, Final

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger

from benchmarks.report import Row, show
from lit_ppo import functional
from lit_ppo.callbacks.run_progress import RunProgress
from lit_ppo.commands.lightning_output import quiet_lightning
from lit_ppo.data import RolloutDataModule
from lit_ppo.module import PPOModule
from lit_ppo.rollout import Batch, Rollout
from lit_ppo.spaces import EnvSpec

CASES: Final = {128: (4, 128), 2048: (64, 128)}  # minibatch: num_envs, horizon; 4 epochs x 4 minibatches
_WARM_UP: Final = 3


class BareLoop:
    """The update without a framework."""

    def __init__(self, spec: EnvSpec, minibatch_size: int) -> None:
        self.module = _module(spec, minibatch_size)  # for its networks and settings alone
        self.settings: Any = dict(self.module.hparams)
        self.parameters = list(self.module.parameters())
        self.optimizer = torch.optim.Adam(self.parameters, lr=2.5e-4, eps=1e-5, fused=True)

    def update(self, batch: Batch) -> None:
        s, actor, critic, distribution = self.settings, self.module.actor, self.module.critic, self.module.distribution
        [(path, all_obs)] = batch.obs.items()
        columns = (all_obs, batch.actions, batch.old_log_probs, batch.old_values, batch.advantages, batch.returns)
        num_minibatches = len(batch.actions) // s["minibatch_size"]
        for _ in range(s["update_epochs"]):
            order = torch.randperm(len(batch.actions))
            shuffled = [column[order].tensor_split(num_minibatches) for column in columns]
            for obs, actions, old_log_probs, old_values, advantages, returns in zip(*shuffled, strict=True):
                log_probs, entropies = distribution.log_probs_and_entropies(actor({path: obs}), actions)
                loss = functional.ppo_loss(
                    log_probs - old_log_probs,
                    functional.normalize(advantages),
                    entropies,
                    critic({path: obs}),
                    old_values,
                    returns,
                    clip_epsilon=s["clip_epsilon"],
                    value_clip=s["value_clip"],
                    value_coefficient=s["value_coefficient"],
                    entropy_coefficient=s["entropy_coefficient"],
                )
                for parameter in self.parameters:
                    parameter.grad = None
                loss.total.backward()
                torch.nn.utils.clip_grad_norm_(self.parameters, s["max_grad_norm"])
                self.optimizer.step()


def _module(spec: EnvSpec, minibatch_size: int) -> "SameBatch":
    settings = {"learning_rate": 2.5e-4, "learning_rate_decay": "constant", "update_epochs": 4, "max_grad_norm": 0.5}
    return SameBatch(spec, minibatch_size=minibatch_size, **settings)


class SameBatch(PPOModule):
    """Makes one batch, of its first rollout, and learns from that in every update."""

    batch: Batch | None = None

    def make_batch(self, rollout: Rollout) -> Batch:
        if self.batch is None:
            self.batch = super().make_batch(rollout)
        return self.batch


class SameRollout(RolloutDataModule):
    """The first rollout again and again; while it is fetched, the bare loop has its turn."""

    def __init__(self, minibatch_size: int, num_updates: int) -> None:
        num_envs, horizon = CASES[minibatch_size]
        super().__init__(num_envs=num_envs, horizon=horizon)
        self.bare, self.left = BareLoop(self.spec, minibatch_size), num_updates + _WARM_UP
        self.rollout: Rollout | None = None
        self.epochs: list[float] = []
        self.bare_updates: list[float] = []
        self._returned: float | None = None

    def next_rollout(self) -> Rollout:
        fetched = perf_counter()
        if self._returned is not None:
            self.epochs.append(fetched - self._returned)
        assert self.trainer is not None
        if self.rollout is None:
            self.rollout = super().next_rollout()
        batch = self.trainer.lightning_module.make_batch(self.rollout)
        start = perf_counter()
        self.bare.update(batch)
        self.bare_updates.append(perf_counter() - start)
        self.left -= 1
        self.trainer.should_stop = self.left < 0
        self._returned = perf_counter()
        return self.rollout


class Clock(Callback):
    """Times `training_step` by itself."""

    def __init__(self, module: PPOModule) -> None:
        self.steps: list[float] = []
        step = module.training_step

        def timed(*args: Any, **kwargs: Any) -> None:
            start = perf_counter()
            step(*args, **kwargs)
            self.steps.append(perf_counter() - start)

        module.training_step = timed  # type: ignore[method-assign]


def measure(minibatch_size: int, num_updates: int) -> list[Row]:
    """Paired times of one update, in milliseconds."""
    torch.manual_seed(0)
    data = SameRollout(minibatch_size, num_updates)
    module = _module(data.spec, minibatch_size)
    clock = Clock(module)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=-1,
        logger=CSVLogger(tempfile.mkdtemp(), name=""),
        callbacks=[RunProgress(), clock],
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, datamodule=data)
    case, unit = f"one update, 4 x 4 minibatches of {minibatch_size}", "ms"
    bare = Row(case, "bare loop", unit, _paired(data.bare_updates, num_updates))
    return [
        bare,
        Row(case, "training_step", unit, _paired(clock.steps, num_updates), bare.who),
        Row(case, "whole Trainer epoch", unit, _paired(data.epochs, num_updates), bare.who, "<= 1.05"),
    ]


def _paired(seconds: Sequence[float], num_updates: int) -> list[float]:
    return (1000 * np.array(seconds[_WARM_UP : _WARM_UP + num_updates])).tolist()  # type: ignore[no-any-return]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, help="updates of each size")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    quiet_lightning()
    torch.set_num_threads(1)
    quick, rounds = options.quick, options.rounds
    show([*measure(128, rounds or (20 if quick else 200)), *measure(2048, rounds or (10 if quick else 60))])


if __name__ == "__main__":
    main()
