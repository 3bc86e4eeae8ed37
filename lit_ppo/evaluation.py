"""Greedy episodes, which measure the policy without exploration."""

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lit_ppo.bridge.client import EnvBridge
from lit_ppo.bridge.reports import Fault
from lit_ppo.bridge.settings import BridgeSettings, EnvironmentSettings
from lit_ppo.contract import ContractSettings
from lit_ppo.errors import ConfigError, EnvironmentFault
from lit_ppo.policy import Policy
from lit_ppo.spaces import Leaf, Leaves


class EpisodeResults(NamedTuple):
    """Undiscounted returns and lengths of complete episodes."""

    returns: tuple[float, ...]
    lengths: tuple[int, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.returns)

    @property
    def std(self) -> float:
        """Population standard deviation."""
        return statistics.pstdev(self.returns)

    def __add__(self, other: "EpisodeResults") -> "EpisodeResults":  # type: ignore[override]
        return EpisodeResults(self.returns + other.returns, self.lengths + other.lengths)


class GreedyPlayer:
    """Plays greedy episodes in its own environments, separate from the training environments.

    An episode that neither the task nor a time limit ends is cut after `EVALUATION_LIMIT` steps.

    Args:
        environment: What to make; its `is_training` is ignored, since these are for evaluation.
        contract, on_event, on_warning, on_fault: As in `EnvBridge`.
        num_envs: Number of episodes played at a time.
        settings: How the processes run; `vectorization` must be `sync`, because the rows of a native vector environment share
            one random stream and cannot be seeded one by one.
    """

    def __init__(
        self,
        environment: EnvironmentSettings,
        num_envs: int,
        *,
        settings: BridgeSettings,
        contract: ContractSettings | None = None,
        on_event: Callable[[str], None] = lambda text: None,
        on_warning: Callable[[str], None] | None = None,
        on_fault: Callable[[Fault], None] = lambda fault: None,
    ) -> None:
        if settings.vectorization != "sync":
            raise ConfigError(f"vectorization={settings.vectorization}: evaluation needs sync, a seed for each episode")
        self.num_envs = num_envs
        self._seeds: Sequence[int] = ()
        self._bridge = EnvBridge(
            dataclasses.replace(environment, is_training=False),
            num_envs,
            self._seed,
            settings=settings,
            contract=contract,
            phase="evaluation",
            on_event=on_event,
            on_warning=on_warning,
            on_fault=on_fault,
        )

    @property
    def bridge(self) -> EnvBridge:
        return self._bridge

    def _seed(self, env: int, episode: int) -> int:
        if not self._seeds:
            return 0
        own = range(env % len(self._seeds), len(self._seeds), self.num_envs)
        if episode < len(own):
            return self._seeds[own[episode]]
        # a row that has played all its episodes begins the last one again, or another if that fails, and is not stepped
        return self._seeds[(own[-1] + episode - len(own)) % len(self._seeds)]

    def play(self, policy: Policy, seeds: Sequence[int], device: torch.device) -> EpisodeResults:
        """Play one complete greedy episode from each seed; arguments and errors as in `play_each`.

        Returns:
            Results in the order of the seeds, without abandoned episodes (`BridgeSettings.on_violation`).
        """
        return results_of(*self.play_each(policy, seeds, device))

    @torch.inference_mode()
    def play_each(
        self, policy: Policy, seeds: Sequence[int], device: torch.device
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Play one complete greedy episode from each seed.

        Args:
            policy: Whose most probable actions are played.
            seeds: One for each episode.
            device: Device of the policy's parameters.

        Returns:
            Returns and lengths in the order of the seeds; the length is 0 where an episode was abandoned.

        Raises:
            EnvironmentFault: As in `EnvBridge.step`.
        """
        self._seeds = seeds
        n, num_episodes = self.num_envs, len(seeds)
        num_used = min(n, num_episodes)  # the rows that play; the policy ignores the others
        obs: Leaves = self._bridge.reset()
        actions = np.stack([_idle_action(self._bridge.spec.action)] * n)
        distribution, dtypes = policy.distribution, {path: policy.seen_as(path, leaf.dtype) for path, leaf in obs.items()}
        # number of the episode that each row plays; the bridge may have skipped some that could not begin
        playing = np.arange(n) + n * np.array(self._bridge.episodes)
        active = (playing < num_episodes).astype(np.uint8)
        num_active = int(active.sum())
        totals, lengths = np.zeros(num_episodes), np.zeros(num_episodes, np.int64)
        row_totals, row_lengths = np.zeros(n), np.zeros(n, np.int64)
        state = policy.initial_state(num_used)
        begins = None if state is None else torch.ones(num_used, dtype=torch.bool, device=device)
        while num_active:
            seen = {path: torch.from_numpy(obs[path][:num_used].astype(dtype)).to(device) for path, dtype in dtypes.items()}
            chosen, state = policy.act(seen, state, begins, None)
            actions[:num_used] = distribution.to_env(chosen.cpu().numpy())
            step = self._bridge.step(actions, None if num_active == n else active)
            row_totals += step.rewards
            row_lengths += step.valid
            ended = (step.terminated | step.truncated) if step.any_ended else None
            # an active row that was not stepped has abandoned its episode
            if not step.all_valid and np.count_nonzero(step.valid) < num_active:
                abandoned = (active == 1) & ~step.valid
                ended = abandoned if ended is None else ended | abandoned
            obs = step.obs
            if state is not None:
                begins = torch.from_numpy(np.zeros(num_used, np.bool_) if ended is None else ended[:num_used]).to(device)
            if ended is None:
                continue
            for env in np.flatnonzero(ended).tolist():
                if step.valid[env]:
                    totals[playing[env]], lengths[playing[env]] = row_totals[env], row_lengths[env]
                row_totals[env], row_lengths[env] = 0.0, 0
                playing[env] = env + n * self._bridge.episodes[env]
                active[env] = playing[env] < num_episodes
            num_active = int(active.sum())
        return totals, lengths

    def close(self) -> None:
        """End the environment processes; safe to call more than once."""
        self._bridge.close()


def results_of(totals: NDArray[np.float64], lengths: NDArray[np.int64]) -> EpisodeResults:
    """The results of episodes without those that were abandoned, whose length is 0.

    Raises:
        EnvironmentFault: All were abandoned.
    """
    finished = lengths > 0
    if len(lengths) and not finished.any():
        raise EnvironmentFault(
            f"all {len(lengths)} greedy episodes were abandoned: the environment broke its contract or raised in each"
        )
    return EpisodeResults(tuple(totals[finished].tolist()), tuple(lengths[finished].tolist()))


def _idle_action(leaf: Leaf) -> NDArray[Any]:
    """An action inside its bounds, for rows whose actions are not used."""
    action: NDArray[Any] = np.clip(0, *leaf.bounds()).astype(leaf.dtype)
    return action
