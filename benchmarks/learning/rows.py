"""The rows of the evidence: what is demanded, named before it is run."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Final

from benchmarks.report import ROOT

JUDGING_SEEDS: Final = (101, 102, 103)  # settings were found with seeds 0 to 9
QUICK_SEED: Final = 0


@dataclass(frozen=True)
class Row:
    """One environment with one configuration.

    Attributes:
        name: Of the row and of its file of results.
        config: File in `configs/`; it also says the length of the run.
        target: What the mean greedy return of a seed must be, such as `>= -200`.
        share: Of the seeds that must reach it.
        options: Settings beside those of the configuration.
        episodes: Greedy episodes that judge a policy.
        extras: Optional dependencies that the environment needs.
        is_quick: Whether a run takes less than a minute or so.
        has_peer: Whether Stable-Baselines3 or sb3-contrib has what the configuration asks for; neither has a GRU.
    """

    name: str
    config: str
    target: str
    share: Fraction = Fraction(1)
    options: Sequence[str] = ()
    episodes: int = 100
    extras: Sequence[str] = ()
    is_quick: bool = True
    has_peer: bool = True

    @property
    def config_path(self) -> Path:
        return ROOT / "configs" / f"{self.config}.yaml"

    def is_met(self, mean: float) -> bool:
        """Whether the mean return of one seed reaches the target."""
        operator, bound = self.target.split()
        return mean >= float(bound) if operator == ">=" else mean <= float(bound)


# The same run as `masked_ranks` without the mask: the policy sees it, but it is not applied; or does not see it either.
_UNMASKED: Final = ("--data.action_mask=null",)
_UNSEEN: Final = (*_UNMASKED, "--data.obs_keys=[wanted]")

ROWS: Final = (
    Row("masked_ranks", "masked_ranks", ">= 9.5"),  # optimum 10
    Row("masked_ranks_seen_only", "masked_ranks", "<= 5", options=_UNMASKED),
    Row("masked_ranks_unseen", "masked_ranks", "<= 0.3", options=_UNSEEN),  # no policy has an expected return above 1/15
    Row("dials", "dials", ">= 9.8"),  # MultiDiscrete; optimum 10
    Row("parity_bits", "parity_bits", ">= 9.8"),  # MultiBinary; optimum 10
    Row("coloured_pads", "coloured_pads", ">= 0.95"),  # Dict; optimum 1
    Row("frozenlake_8x8", "frozenlake_8x8", ">= 1"),
    Row("pendulum", "pendulum", ">= -200", episodes=1000),
    Row("doorkey", "doorkey", ">= 0.95", extras=("minigrid",), is_quick=False),
    Row("inverted_pendulum", "inverted_pendulum", ">= 950", extras=("mujoco",), is_quick=False),
    *(
        Row(
            f"cartpole_novel_{kind}_{steps}k",
            f"cartpole_novel_{kind}",
            ">= 475",
            share,
            options,
            is_quick=False,
            has_peer=kind == "lstm",
        )
        for kind in ("lstm", "gru")
        for steps, share, options in ((100, Fraction(2, 3), ("--total_env_steps=100000",)), (200, Fraction(1), ()))
    ),
)
