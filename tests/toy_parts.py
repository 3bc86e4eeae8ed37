"""Classes and functions of a user, named in a command line or passed from Python."""

from torch import Tensor, nn

from lit_ppo.functional import PPOLoss
from lit_ppo.rollout import Batch
from lit_ppo.update import LossSettings, Predictions, ppo_loss


class Torso(nn.Module):
    """One layer."""

    def __init__(self, inputs: int, width: int = 64) -> None:
        super().__init__()
        self.layer = nn.Linear(inputs, width)

    def forward(self, features: Tensor) -> Tensor:
        return self.layer(features)


def torso(inputs: int) -> nn.Module:
    return nn.Linear(inputs, 8)


def unannotated(inputs):  # type: ignore[no-untyped-def]
    return nn.Linear(inputs, 8)


def loss(predictions: Predictions, minibatch: Batch, settings: LossSettings) -> PPOLoss:
    """PPO's with twice the entropy bonus."""
    return ppo_loss(predictions, minibatch, settings._replace(entropy_coefficient=2 * settings.entropy_coefficient))


class Loss:
    """Has an argument, which an import path does not bring back."""

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight

    def __call__(self, predictions: Predictions, minibatch: Batch, settings: LossSettings) -> PPOLoss:
        return loss(predictions, minibatch, settings)
