"""Whether the update of a run is one compiled program or eager, and compiling it before the first update."""

import logging
import os
from collections.abc import Sequence

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import LightningModule, Trainer

from lit_ppo.compat_lightning import backward_listener
from lit_ppo.errors import one_line
from lit_ppo.policy import Policy
from lit_ppo.ppo_settings import PPOSettings
from lit_ppo.spaces import Leaf
from lit_ppo.update import CompiledGradients, EagerGradients, blank_minibatch

log = logging.getLogger(__name__)


def gradients_for(
    trainer: Trainer,
    module: LightningModule,
    policy: Policy,
    settings: PPOSettings,
    observation: Sequence[Leaf],
    minibatch_sizes: Sequence[int],
    *,
    calls_hooks: bool,
    weighted: bool,
) -> EagerGradients | CompiledGradients:
    """Compiled gradients if `compile` is set and possible, else eager ones; a warning says why compiling is impossible.

    Args:
        trainer, module: Of the run.
        policy, settings: As in `EagerGradients`.
        observation: Leaves of an observation.
        minibatch_sizes: Numbers of sequences for which the program is compiled.
        calls_hooks: Whether Lightning's hooks around each backward pass are called.
        weighted: Whether rows have weights.
    """
    eager = EagerGradients(policy, settings, module.manual_backward if calls_hooks else torch.autograd.backward)
    if not settings.compile:
        return eager
    if listener := backward_listener(trainer, module):
        log.warning(
            "model.compile: nothing is compiled: %s needs the backward pass, which a compiled update does not have",
            listener,
        )
        return eager
    precision = trainer.precision_plugin
    try:  # compile now, not in the middle of the first update
        compiled = CompiledGradients(policy, settings)
        for size in minibatch_sizes:
            blank = blank_minibatch(observation, policy, size, weighted=weighted)
            minibatch = move_data_to_device(precision.convert_input(blank), module.device)
            with precision.train_step_context():
                compiled(minibatch, 1.0, settings.clip_epsilon)
    except Exception as error:  # each stage of the compiler raises its own types
        reason = one_line(str(error).strip().partition("\n")[0])[:200]
        folder = os.environ.get("TORCHINDUCTOR_CACHE_DIR")  # set by torch when it compiles
        hint = f"; if a kill has damaged torch's cache, delete {one_line(folder)}" if folder else ""
        log.warning("model.compile: nothing is compiled: %s%s", reason, hint)
        return eager
    return compiled
