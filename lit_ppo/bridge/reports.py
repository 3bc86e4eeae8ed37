"""Where a fault of an environment happened, and a report from which it can be replayed."""

import platform
from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray

from lit_ppo import __version__
from lit_ppo.bridge.episodes import Episodes
from lit_ppo.bridge.journal import Journal
from lit_ppo.bridge.worker_slice import WorkerSlice
from lit_ppo.errors import BridgeError, ContractViolation, EnvironmentFault, EnvironmentRaised, shown

Fault = EnvironmentFault | BridgeError


class FaultReports:
    """Completes faults with the episode, its seed and its actions, and hands them on.

    Args:
        phase: Which part of the run these environments are for: `training` or `evaluation`.
        run: What every report says of the run: environment, `processes`, `contract`.
        episodes: Numbers and next seeds.
        journal: Seeds and actions of the episodes under way.
        on_fault: Called with each fault of an environment that is complete, and with a failure of a process that ends the run.
    """

    def __init__(
        self, phase: str, run: dict[str, Any], episodes: Episodes, journal: Journal, on_fault: Callable[[Fault], None]
    ) -> None:
        self._phase, self._run, self._episodes, self._journal, self.on_fault = phase, run, episodes, journal, on_fault
        self.versions: dict[str, Any] = {}

    def complete(
        self,
        fault: Fault,
        part: WorkerSlice,
        past: list[Any],
        actions: NDArray[Any] | Mapping[int, NDArray[Any]] | None = None,
        *,
        begins: bool = False,
    ) -> None:
        """Give a fault its place and its report.

        Args:
            fault: What happened. One that is complete already stays as it is, and so does the end of a worker that was not
                calling an environment.
            part: Where; its first row is the place of a violation that names no environment.
            past: Actions of the episode before this step.
            actions: Those of this step, by environment; None in a reset.
            begins: The reset was to begin the next episode, not the one that the journal has.
        """
        if fault.where or not isinstance(fault, ContractViolation | EnvironmentRaised | BridgeError):
            return
        fault.printed = fault.printed or part.worker.printed()
        if fault.env is None and isinstance(fault, BridgeError):
            return
        env = part.rows.start if fault.env is None else fault.env
        next_seed = int(self._episodes.next_seeds[env])
        seed = next_seed if begins else int(self._journal.seeds[env])
        episode = self._episodes.numbers[env] + begins
        fault.where = {"phase": self._phase, "env": env, "episode": episode, "step": len(past), "seed": seed}
        fault.report = {
            **self._run,
            "actions": past if actions is None else [*past, actions[env].tolist()],
            **fault.where,
            "in_next_reset": fault.in_next_reset,
            "next_seed": self._episodes.seed_of(env, episode + 1),
            **_described(fault, "reset" if actions is None else "step"),
            "printed": fault.printed,
            "versions": {**self.versions, "lit_ppo": __version__, "platform": platform.platform()},
        }
        if fault.in_next_reset:  # a replay begins with the episode before, but the place is in the next one
            fault.where |= {"episode": episode + 1, "step": 0, "seed": next_seed}
        if isinstance(fault, EnvironmentFault):
            self.on_fault(fault)
        elif actions is not None and not fault.in_next_reset:
            fault.where["action"] = shown(actions[env].tolist())


def _described(fault: ContractViolation | EnvironmentRaised | BridgeError, call: str) -> dict[str, Any]:
    """What happened, as a report says it; `kind`, `field` and the step tell whether a replay comes to the same fault."""
    if isinstance(fault, ContractViolation):
        return {"kind": "violation", "field": fault.field, "rule": fault.rule, "value": fault.value, "traceback": None}
    if isinstance(fault, EnvironmentRaised):
        kind, field, rule, value = "raised", fault.during, "returns without raising", fault.exception
        return {"kind": kind, "field": field, "rule": rule, "value": value, "traceback": fault.traceback}
    return {
        "kind": fault.outcome,
        "field": call,
        "rule": "an answer",
        "value": f"a worker that {fault.outcome}",
        "traceback": None,
    }
