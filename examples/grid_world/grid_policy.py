"""GridPolicy: what a policy does in each cell of a grid, and the way that it takes, as TorchLean's JSON."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_ppo.callbacks.greedy_evaluation import data_of
from lit_ppo.errors import CheckpointError, ConfigError
from lit_ppo.module import PPOModule

_MAX_STEPS = 1000


class GridPolicy(Callback):
    """Writes the greedy action in each cell, and the greedy path, before and after training.

    The files have TorchLean's formats: `{width, height, before, after, notes}`, with the actions row by row in the one file,
    and the cells [row, column] of an episode in the other.

    Args:
        policy_path: File of the actions.
        path_path: File of the paths.
    """

    def __init__(
        self, policy_path: str = "data/rl/ppo_gridworld_policy.json", path_path: str = "data/rl/ppo_gridworld_path.json"
    ) -> None:
        self.policy_path, self.path_path = Path(policy_path), Path(path_path)
        self._before: dict[str, Any] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._before is None:  # a resumed run knows it from its checkpoint
            self._before = _played(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._before is not None
        before, after = self._before, _played(trainer, pl_module)
        if not trainer.is_global_zero:
            return
        (height, width), data = _size(pl_module), data_of(trainer)
        notes = [f"env {data.environment.env_id}, seed {data.seed}, {data.env_steps} env steps"]
        for path, key in ((self.policy_path, "actions"), (self.path_path, "path")):
            document = {"width": width, "height": height, "before": before[key], "after": after[key], "notes": notes}
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(document) + "\n", encoding="utf-8")
            except OSError as error:
                raise CheckpointError(f"{path}: cannot be written: {error}") from error

    def state_dict(self) -> dict[str, Any]:
        return {"before": self._before}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before = state_dict["before"]


def _size(pl_module: LightningModule) -> tuple[int, int]:
    """Rows and columns of the grid."""
    assert isinstance(pl_module, PPOModule)
    leaves, action = pl_module.spec.observation, pl_module.spec.action
    if len(leaves) != 1 or leaves[0].kind != "multi_discrete" or leaves[0].shape != (2,) or action.kind != "discrete":
        raise ConfigError("GridPolicy: expected observations (row, column) and a Discrete action, as those of GridWorld-v0")
    height, width = leaves[0].choices
    return height, width


@torch.inference_mode()
def _played(trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
    """Greedy actions of all cells, row by row, and the cells of one greedy episode."""
    assert isinstance(pl_module, PPOModule)
    height, width = _size(pl_module)
    cells = torch.cartesian_prod(torch.arange(height), torch.arange(width)).to(pl_module.device)
    actions = pl_module({"": cells})[0].cpu().numpy()
    player = data_of(trainer).player
    active = (np.arange(player.num_envs) == 0).astype(np.uint8)
    obs = player.bridge.reset()[""]
    path, is_over = [obs[0].tolist()], False
    while not is_over and len(path) <= _MAX_STEPS:
        row, column = path[-1]
        step = player.bridge.step(np.full(player.num_envs, actions[row * width + column]), active)
        is_over = bool(step.terminated[0] or step.truncated[0])
        path.append((step.final_obs if is_over else step.obs)[""][0].tolist())
    return {"actions": actions.tolist(), "path": path}
