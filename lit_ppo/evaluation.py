"""Greedy episodes: how good the policy is when it does not explore."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_ppo import distributions
from lit_ppo.bridge.client import EnvBridge
from lit_ppo.bridge.settings import BridgeSettings
from lit_ppo.contract import ContractSettings
from lit_ppo.errors import ConfigError, EnvironmentFault


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
    """Plays greedy episodes in environments of its own, apart from those that train.

    Args:
        env_id, env_kwargs, contract, on_event, on_fault: As in `EnvBridge`.
        num_envs: How many episodes are played at a time.
        settings: How processes are run; native vector environments share one random stream, so episodes with seeds of their own
            are always played in ordinary ones.
    """

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        *,
        env_kwargs: dict[str, Any] | None = None,
        settings: BridgeSettings,
        contract: ContractSettings | None = None,
        on_event: Callable[[str], None] = lambda text: None,
        on_fault: Callable[[EnvironmentFault], None] = lambda fault: None,
    ) -> None:
        if settings.vectorization != "sync":
            raise ConfigError(f"vectorization={settings.vectorization}: evaluation needs sync, a seed for each episode")
        self.num_envs = num_envs
        self._seeds: Sequence[int] = ()
        self._bridge = EnvBridge(
            env_id,
            num_envs,
            self._seed,
            env_kwargs=env_kwargs,
            settings=settings,
            contract=contract,
            on_event=on_event,
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
        # a row that has played all of its own begins the last of them again, or whichever can be begun, and stays there
        return self._seeds[(own[-1] + episode - len(own)) % len(self._seeds)]

    @torch.inference_mode()
    def play(self, policy: Callable[[Tensor], Tensor], seeds: Sequence[int], device: torch.device) -> EpisodeResults:
        """One complete greedy episode from each seed.

        Args:
            policy: The actor: observations (N, *obs_shape) to logits (N, A).
            seeds: One for each episode.
            device: Where the actor is.

        Returns:
            Results in the order of the seeds, without episodes that were given up (`BridgeSettings.on_violation`).

        Raises:
            EnvironmentFault: As `EnvBridge.step`; or all episodes were given up.
        """
        self._seeds = seeds
        n, num_episodes = self.num_envs, len(seeds)
        num_used = min(n, num_episodes)  # rows that play at all; the others are not worth the policy's time
        actions = np.zeros(n, np.int64)
        obs: NDArray[Any] = self._bridge.reset()
        # the number of the episode that each row plays: the bridge may have passed over some that could not begin
        playing = np.arange(n) + n * np.array(self._bridge.episodes)
        active = (playing < num_episodes).astype(np.uint8)
        num_active = int(active.sum())
        totals, lengths = np.zeros(num_episodes), np.zeros(num_episodes, np.int64)
        row_totals, row_lengths = np.zeros(n), np.zeros(n, np.int64)
        finished = np.zeros(num_episodes, np.bool_)
        while num_active:
            seen = torch.from_numpy(obs[:num_used].astype(np.float32))
            actions[:num_used] = distributions.mode(policy(seen.to(device))).cpu().numpy()
            step = self._bridge.step(actions, None if num_active == n else active)
            row_totals += step.rewards
            row_lengths += step.valid
            ended = (step.terminated | step.truncated) if step.any_ended else None
            # an active row that was not stepped has given its episode up
            if not step.all_valid and np.count_nonzero(step.valid) < num_active:
                given_up = (active == 1) & ~step.valid
                ended = given_up if ended is None else ended | given_up
            obs = step.obs
            if ended is None:
                continue
            for env in np.flatnonzero(ended).tolist():
                if step.valid[env]:
                    totals[playing[env]], lengths[playing[env]] = row_totals[env], row_lengths[env]
                    finished[playing[env]] = True
                row_totals[env], row_lengths[env] = 0.0, 0
                playing[env] = env + n * self._bridge.episodes[env]
                active[env] = playing[env] < num_episodes
            num_active = int(active.sum())
        if num_episodes and not finished.any():
            raise EnvironmentFault(f"{num_episodes} greedy episodes were to be played, and every one had to be given up")
        return EpisodeResults(tuple(totals[finished].tolist()), tuple(lengths[finished].tolist()))

    def close(self) -> None:
        """End the environment processes; may be called again."""
        self._bridge.close()
