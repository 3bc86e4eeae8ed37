"""The subcommands of `python -m lit_ppo`: one file each; `train.py` holds fit, validate and test."""

from typing import Final

PROGRAM: Final = "python -m lit_ppo"
DESCRIPTION: Final = "PPO for Lightning, on environments in a checked subprocess."
TRAINING: Final = {
    "fit": "Train a policy with PPO, or resume a run.",
    "validate": "Play greedy episodes with the policy of a checkpoint and print their returns.",
    "test": "Play greedy episodes from test seeds, which no other command uses, and print their returns.",
}
