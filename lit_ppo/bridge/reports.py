"""Where a fault of an environment happened, and a report from which it can be replayed."""

import platform
from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from lit_ppo import __version__
from lit_ppo.bridge.episodes import Episodes
from lit_ppo.bridge.journal import Journal
from lit_ppo.errors import ContractViolation, EnvironmentFault, EnvironmentRaised


class FaultReports:
    """Completes faults with the episode, its seed and its actions, and hands each of them on once.

    Args:
        run: What every report says of the run: environment, `vectorization`, `contract`.
        episodes: Numbers and next seeds.
        journal: Seeds and actions of the episodes under way.
        on_fault: Called with each fault that is complete.
    """

    def __init__(
        self, run: dict[str, Any], episodes: Episodes, journal: Journal, on_fault: Callable[[EnvironmentFault], None]
    ) -> None:
        self._run, self._episodes, self._journal, self._on_fault = run, episodes, journal, on_fault
        self.versions: dict[str, Any] = {}

    def complete(
        self,
        fault: EnvironmentFault,
        first_row: int,
        past: list[Any],
        actions: NDArray[Any] | None = None,
        *,
        begins: bool = False,
    ) -> EnvironmentFault:
        """The fault with its place and its report.

        Args:
            fault: What the environment did; one that is complete already comes back as it is.
            first_row: Row of the worker's first environment: the place of a fault that names no environment.
            past: Actions of the episode before this step.
            actions: Those of all environments in this step; None in a reset.
            begins: The reset was to begin the next episode, not the one that the journal has.
        """
        if fault.where or not isinstance(fault, ContractViolation | EnvironmentRaised):
            return fault
        env = first_row if fault.env is None else fault.env
        seed = int((self._episodes.next_seeds if begins else self._journal.seeds)[env])
        episode = self._episodes.numbers[env] + begins
        fault.where = {"env": env, "episode": episode, "step": len(past), "seed": seed}
        fault.report = {
            **self._run,
            "actions": past if actions is None else [*past, actions[env].tolist()],
            **fault.where,
            "next_seed": self._episodes.seed_of(env, episode + 1),  # the fault may be in the reset that follows
            "field": fault.field if isinstance(fault, ContractViolation) else fault.during,
            "rule": fault.rule if isinstance(fault, ContractViolation) else "returns without raising",
            "value": fault.value if isinstance(fault, ContractViolation) else fault.exception,
            "traceback": fault.traceback if isinstance(fault, EnvironmentRaised) else None,
            "versions": {**self.versions, "lit_ppo": __version__, "platform": platform.platform()},
        }
        self._on_fault(fault)
        return fault
