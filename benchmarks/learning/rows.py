"""Rows: a published score, and all settings of the run that is to reach it.

A *row* is a YAML file: what was published, by whom, and all settings of the run in lit_ppo's own option names.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal

import yaml

from lit_ppo import strict_yaml
from lit_ppo.atomic_file import read_text
from lit_ppo.errors import ConfigError

FIRST_SEED: Final = 101  # settings are tuned with seeds 0 to 9
Kind = Literal["training", "greedy"]


@dataclass(frozen=True)
class Published:
    """A published score.

    Attributes:
        mean: Its mean return.
        env_steps: Length of the run.
        seeds: Number of runs.
        std: As the source says it: over runs, or over episodes.
        env_id: The environment's id then; None for that of the row.
    """

    mean: float
    env_steps: int
    seeds: int
    std: float | None = None
    env_id: str | None = None


@dataclass(frozen=True)
class Evaluation:
    """Greedy episodes during a run, which choose its best checkpoint.

    Attributes:
        times: How often, at equal distances.
        num_episodes: Of each.
    """

    times: int = 50
    num_episodes: int = 10


@dataclass(frozen=True)
class Row:
    """One score to reach, and the settings to reach it with.

    Attributes:
        name: Of the row and its files.
        source: Whose numbers they are.
        returns: Which returns are compared: `training` (the last 100 episodes) or `greedy` (the last policy, fresh episodes).
        settings: Of `fit`; all that decide the run, since defaults may change.
        page: Where the score was published; None for settings of our own.
        published: The score; None if there is none.
        solved_at: For rows that either succeed or fail: the return from which a run counts as solved. Then the share of solved
            runs is compared with SB3's.
        target: For rows without a published score: what the best checkpoint of each run has to reach, such as `>= 9.5`.
        target_share: Share of the runs that have to reach it.
        seeds: Number of runs.
        sb3_seeds: Number of runs of Stable-Baselines3 beside them.
        num_episodes: Greedy episodes that judge a policy.
        evaluation: Greedy episodes during a run.
        note: What a reader of the results has to know.
    """

    name: str
    source: str
    returns: Kind
    settings: dict[str, Any]
    page: str | None = None
    published: Published | None = None
    solved_at: float | None = None
    target: str | None = None
    target_share: float = 1.0
    seeds: int = 3
    sb3_seeds: int = 0
    num_episodes: int = 100
    evaluation: Evaluation = field(default_factory=Evaluation)
    note: str = ""

    @property
    def env_id(self) -> str:
        env_id: str = self.settings["data"]["env_id"]
        return env_id

    @property
    def env_steps(self) -> int:
        """Length of a run: `total_env_steps`, or fewer if `trainer.max_epochs` ends it earlier."""
        total: int = self.settings["total_env_steps"]
        updates = self.settings.get("trainer", {}).get("max_epochs")
        return total if updates is None else min(total, updates * self.env_steps_per_update)

    @property
    def env_steps_per_update(self) -> int:
        data = self.settings["data"]
        steps: int = data["num_envs"] * data["horizon"]
        return steps

    @property
    def sha256(self) -> str:
        """Checksum of all that decides the results: settings, evaluation, number of judging episodes."""
        decisive = {"settings": self.settings, "evaluation": vars(self.evaluation), "num_episodes": self.num_episodes}
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()

    def command(self, seeds: Iterable[int]) -> str:
        """What to type to run it again."""
        chosen = list(seeds)
        first = "" if chosen[0] == FIRST_SEED else f" --first_seed={chosen[0]}"
        return f"python -m benchmarks.learning.reproduce {self.name} --seeds={len(chosen)}{first}"

    def is_met(self, mean: float) -> bool:
        """Whether a run's mean return reaches the row's own target."""
        assert self.target is not None
        operator, bound = self.target.split()
        return mean >= float(bound) if operator == ">=" else mean <= float(bound)


def read_row(path: Path) -> Row:
    """The row in a file.

    Raises:
        ConfigError: There is no such file, or it is no row; one line says what is wrong.
    """
    try:
        content = strict_yaml.load(read_text(path))
    except OSError as error:
        known = ", ".join(sorted(other.stem for other in path.parent.glob("*.yaml")))
        raise ConfigError(f"{path}: no such row; expected one of {known or 'none: the directory has no rows'}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path}: expected YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a mapping, got {type(content).__name__}")
    try:
        for name, kind in {"published": Published, "evaluation": Evaluation}.items():
            if content.get(name) is not None:
                content[name] = kind(**content[name])
        row = Row(**(content | {"name": path.stem}))
        judges = [name for name in ("published", "solved_at", "target", "sb3_seeds") if getattr(row, name)]
        _require(row.returns in ("training", "greedy"), f"returns={row.returns}: expected training or greedy")
        _require(bool(judges), "expected something to compare with: published, target, or sb3_seeds")
        _require(row.seeds >= 1 and row.num_episodes >= 1, "seeds and num_episodes: expected at least 1")
        _require(row.target is None or row.target.partition(" ")[0] in (">=", "<="), f"target={row.target}: expected `>= X`")
        _require(row.env_steps >= 1 and bool(row.env_id), "settings: expected total_env_steps and data.env_id")
        _require(not {"seed_everything", "evaluation", "checkpoint"} & row.settings.keys(), "settings: only those of the run")
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise ConfigError(f"{path}: not a row: {error}; its keys are {', '.join(f.name for f in fields(Row)[1:])}") from error
    return row


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise ValueError(problem)
