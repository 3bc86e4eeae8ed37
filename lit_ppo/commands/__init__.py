"""The subcommands of `python -m lit_ppo`: one file each, except that `train.py` holds those of `TRAINING`."""

from typing import Final

PROGRAM: Final = "python -m lit_ppo"
TRAINING: Final = {
    "fit": "Train a policy with PPO, or resume a run.",
    "validate": "Play greedy episodes with the policy of a checkpoint and print their returns.",
    "test": "The same on test seeds, which nothing else plays.",
}
