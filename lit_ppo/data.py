"""RolloutDataModule: the environments as a LightningDataModule; each epoch is one new rollout.

The dataset goes to the Trainer without a DataLoader, which would draw from torch's global random generator in each iteration.
It has a length (1), so Lightning fetches nothing ahead.
"""

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, Trainer
from numpy.typing import NDArray
from torch.utils.data import IterableDataset

from lit_ppo import elastic, exit_codes, seeding
from lit_ppo.bridge import sandbox
from lit_ppo.bridge.checkpoint import BridgeMark, dealt
from lit_ppo.bridge.client import EnvBridge
from lit_ppo.bridge.faults import require_outside_environments
from lit_ppo.bridge.reports import Fault
from lit_ppo.bridge.settings import EVALUATION_LIMIT, LARGEST_COUNT, BridgeSettings, EnvironmentSettings
from lit_ppo.callables import plain
from lit_ppo.checkpoint_io import is_of_its_directory, read_checkpoint
from lit_ppo.checkpoint_structure import require_data
from lit_ppo.compat_lightning import rank_strategy_of
from lit_ppo.contract import ContractSettings
from lit_ppo.errors import ConfigError, ContractViolation, NonFiniteUpdate, RankLost, RunInterrupted
from lit_ppo.evaluation import EpisodeResults, GreedyPlayer, results_of
from lit_ppo.exchange import everywhere, raise_together
from lit_ppo.foreign_settings import refuse_foreign
from lit_ppo.policy import Policy, require_finite
from lit_ppo.rank_share import fair_cores, joined_of_ranks, settings_of_rank
from lit_ppo.rank_watch import RankWatch
from lit_ppo.ranks import Ranks
from lit_ppo.replay import write_report
from lit_ppo.rollout import (
    DEVICES_WITHOUT_FLOAT64,
    EpisodeStatistics,
    Learner,
    Rollout,
    Standpoint,
    collect_rollout,
    standpoint_after,
)
from lit_ppo.setting_types import kinds_of, require_settings
from lit_ppo.shards import Shards
from lit_ppo.spaces import EnvSpec
from lit_ppo.trainer_checks import check_run, check_spaces

log = logging.getLogger(__name__)
_log_of_other_ranks = logging.getLogger(f"{__name__}.ranks")
_log_of_other_ranks.setLevel(logging.WARNING)  # whatever the level above it
Item = TypeVar("Item")


class OneItem(IterableDataset[Item]):
    """A dataset of one item, which is made on demand, anew in each pass.

    Args:
        make: Collects a rollout, or plays greedy episodes.
    """

    def __init__(self, make: Callable[[], Item]) -> None:
        self._make = make

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Item]:
        yield self._make()  # a generator: nothing is made before the first `next`


class _Boundary(NamedTuple):
    """An update boundary: what a checkpoint of it is made from."""

    update: int
    env_steps: int
    statistics: dict[str, Any]
    standpoint: Standpoint | None  # None before the first rollout
    mark: BridgeMark | None  # None: now


class RolloutDataModule(LightningDataModule):
    """N environments behind the bridge, and the rollouts collected in them.

    Args:
        env_id: Gymnasium id, `module:EnvId` to import a module first, or `module:factory` for what a function or class returns.
        env_kwargs: Passed to `gymnasium.make`, or to the factory.
        wrappers: Wrappers of the environment in their order, each an import path, or a mapping of `class_path` and `init_args`;
            `atari` is Atari's usual preprocessing. They are imported and made in the environment process.
        max_episode_steps: Time limit in steps of the agent, instead of the environment's own; None for that. If there is
            neither, greedy episodes are cut after 30,000 steps: such a one counts with its return so far, and never as solved.
        frame_stack: Number of observations that are joined to one; None for the newest alone.
        obs_keys: Paths of the parts of a Dict or Tuple observation that are used; None for all of them.
        action_mask: Where the mask of possible actions is: `info:KEY`, `obs:KEY`, or `call:METHOD` for a method of the
            environment (sb3-contrib's convention is `call:action_masks`); None if all actions always are possible.
        env_path: Directories, or one, from which the environment processes import modules first; None for none.
        remake_each_episode: Make the environment anew for every episode, if it keeps something from one episode to the next,
            such as the state of a physics engine: exact resume and recovery need episodes that depend on their seed alone.
        num_envs: Number of environments stepped together, N; of all ranks.
        horizon: Steps of each environment in one rollout, T.
        shards: Number of groups of environments whose numbers are computed apart and then summed in order, S. Any number of
            ranks that divides it computes the same, bit for bit. None: the number of ranks at the start of the run.
        seed: Seed of the episodes and of the sampled actions. None for that of the module, if one was typed there; else
            Lightning's, if `seed_everything` was called, else 0. So one seed that is typed serves both.
        contract: Rules for the environment's values in addition to those that always hold.
        evaluation_envs: Number of environments for greedy episodes, which play that many at a time.
        validation_episodes: Number of greedy episodes played by `validate`.
        test_episodes: Number of greedy episodes played by `test`.
        report_dir: Directory for the reports of faults, which `replay` plays again; None for no reports.
        rank_timeout_s: If a rank of several ends, is stopped or cannot be reached, all others end within this time, seconds.
        rank_patience_s: Longest wait for a rank that lives, but does not come to the next exchange with the others, seconds:
            more than any single step of an update, compilation, checkpoint or callback may take. Then all ranks end.
        **bridge: How the environment processes run: the fields of `BridgeSettings`.

    Raises:
        ConfigError: A setting is out of its range.
    """

    def __init__(
        self,
        env_id: str = "CartPole-v1",
        env_kwargs: dict[str, Any] | None = None,
        wrappers: list[str | dict[str, Any]] | None = None,
        max_episode_steps: int | None = None,
        frame_stack: int | None = None,
        obs_keys: list[str] | None = None,
        action_mask: str | None = None,
        env_path: list[str] | str | None = None,
        remake_each_episode: bool = False,
        num_envs: int = 8,
        horizon: int = 256,
        shards: int | None = None,
        seed: int | None = None,
        contract: ContractSettings = ContractSettings(),  # noqa: B008  frozen, so sharing it is safe
        evaluation_envs: int = 10,
        validation_episodes: int = 20,
        test_episodes: int = 100,
        report_dir: str | None = "data/reports",
        rank_timeout_s: float = 10.0,
        rank_patience_s: float = 300.0,
        **bridge: Any,
    ) -> None:
        super().__init__()
        require_outside_environments(type(self).__name__)
        if isinstance(contract, Mapping):  # from a checkpoint, which holds plain data
            contract = ContractSettings(**contract)
        settings = {
            "num_envs": num_envs,
            "horizon": horizon,
            "evaluation_envs": evaluation_envs,
            "validation_episodes": validation_episodes,
            "test_episodes": test_episodes,
        }
        kinds = {**kinds_of(BridgeSettings), **dict.fromkeys(settings, int), "seed": int | None}
        require_settings({**bridge, **settings, "seed": seed}, kinds, "data")
        processes = BridgeSettings(**bridge)
        for name, value in settings.items():
            if value < 1:
                raise ConfigError(f"data.{name}={value}: expected at least 1")
            if value > LARGEST_COUNT:
                raise ConfigError(f"data.{name}={value}: expected at most {LARGEST_COUNT:,}")
        self.seed_origin: seeding.SeedOrigin = "default" if seed is None else "typed"
        seed = seeding.seed_of_run(seed)
        if seed < 0:
            raise ConfigError(f"data.seed={seed}: expected at least 0")
        if num_envs % processes.first_workers:
            raise ConfigError(f"data.num_envs={num_envs}: expected a multiple of data.num_workers={processes.num_workers}")
        self.environment = EnvironmentSettings(
            env_id,
            env_kwargs,
            wrappers,
            max_episode_steps,
            frame_stack,
            obs_keys,
            action_mask,
            env_path,
            remake_each_episode,
        )
        environment = {key: value for key, value in vars(self.environment).items() if key != "is_training"}
        self.shards = Shards(num_envs, 1 if shards is None else shards)
        saved = environment | settings | {"shards": shards, "seed": seed, "contract": vars(contract), "report_dir": report_dir}
        limits = {"rank_timeout_s": rank_timeout_s, "rank_patience_s": rank_patience_s}
        saved |= limits
        for name, limit in limits.items():
            if not 0 < limit < 1e6:
                raise ConfigError(f"data.{name}={limit}: expected a time above 0 s")
        # the module hands them to the loggers: Lightning would refuse a seed other than the module's
        self.save_hyperparameters(plain(saved | vars(processes), "data"), logger=False)
        self.num_envs, self.horizon, self.seed = num_envs, horizon, seed
        self.bridge_settings, self.contract_settings = processes, contract
        self.evaluation_envs, self.report_dir = evaluation_envs, report_dir
        self.validation_episodes, self.test_episodes = validation_episodes, test_episodes
        self.ranks, self._given_shards, self._num_threads = Ranks(), shards, torch.get_num_threads()
        self._rank_limits, self._watch = (rank_timeout_s, rank_patience_s), cast(RankWatch | None, None)
        self.interrupt: int | None = None  # signal that this rank has received
        self._agreed_interrupt: int | None = None
        self.failed_together: BaseException | None = None  # which every rank raises at the same moment
        self.update, self.env_steps = 0, 0
        self.metrics: dict[str, float] = {}  # of the newest rollout
        self.results: EpisodeResults | None = None  # of the newest validate or test
        self.reward_threshold: float | None = None  # the environment's own; None until `spec` is read
        self._has_no_limit = self._has_told_of_limit = False  # of an episode's steps
        self._bridge: EnvBridge | None = None
        self._player: GreedyPlayer | None = None
        self._standpoint: Standpoint | None = None  # None before the first rollout
        self._boundary: _Boundary | None = None  # the one before the newest rollout
        self._ended: tuple[_Boundary, EnvBridge] | None = None  # the last boundary of a fit that has ended
        self._has_warned_of_space = False
        self.is_waiting = False  # for an environment; a signal may interrupt it without loss
        self._stage: str | None = None
        self._statistics = EpisodeStatistics(num_envs)
        if processes.bridge == "inprocess":
            log.warning(
                "data.bridge=inprocess: the environments run inside this process, and nothing isolates the run from them: "
                "if one of them crashes or hangs, the run does"
            )

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | Path, *args: Any, trust_checkpoint: bool = False, **settings: Any
    ) -> "RolloutDataModule":
        """As in Lightning; a checkpoint from elsewhere does not decide on programs, paths, code and guards.

        Raises:
            ConfigError: It comes from elsewhere and does; pass those settings, or `trust_checkpoint=True`.
        """
        saved = read_checkpoint(checkpoint_path).get("datamodule_hyper_parameters", {})
        path = Path(checkpoint_path)
        refuse_foreign(path, {"data": saved}, {"data": settings}, is_own=trust_checkpoint or is_of_its_directory(path))
        loaded: RolloutDataModule = super().load_from_checkpoint(checkpoint_path, *args, **settings)
        return loaded

    # -- the environments

    @property
    def spec(self) -> EnvSpec:
        """The environment's spaces and thresholds; starts the evaluation process if it does not run yet.

        Raises:
            ConfigError: The environment cannot be made, or lit_ppo cannot train on it.
        """
        bridge = self.player.bridge
        try:
            spec = bridge.spec
        except ConfigError as error:  # the bridge's messages lack the prefix of its options
            raise ConfigError(str(error) if str(error).startswith("data.") else f"data.{error}") from error
        if self.reward_threshold is None and (missing := sandbox.missing(bridge.sandbox_layers)):
            log.warning("data.sandbox=%s: %s", self.bridge_settings.sandbox, missing)
        self.reward_threshold, self._has_no_limit = spec.reward_threshold, spec.max_episode_steps is None
        return spec

    @property
    def player(self) -> GreedyPlayer:
        """Plays greedy episodes in a process of its own."""
        if self._player is None:
            self._player = GreedyPlayer(
                self.environment,
                self.evaluation_envs,
                settings=self.bridge_settings.for_evaluation(self.evaluation_envs),
                contract=self.contract_settings,
                on_event=self._tell,
                on_warning=self._warn_of_space,
                on_fault=self._report,
            )
        return self._player

    def play(
        self, policy: Policy, purpose: seeding.Purpose, num_episodes: int, device: torch.device, first_episode: int = 0
    ) -> EpisodeResults:
        """Play greedy episodes, with seeds that depend on `purpose` and on the number of updates so far.

        Args:
            policy: Whose most probable actions are played.
            purpose: Use of the episodes; each has its own range of seeds.
            num_episodes: Number of episodes.
            device: Device of the policy's parameters.
            first_episode: Number of the first episode; those before it were played in an earlier call.
        """
        numbers = range(first_episode, first_episode + num_episodes)
        seeds = [seeding.episode_seed(self.seed, purpose, 0, self.update, number) for number in numbers]
        shards = self.shards
        played: list[tuple[Sequence[float] | NDArray[Any], Sequence[int] | NDArray[Any]]] = []
        with self._together():
            for shard in shards.own:
                own_seeds = seeds[shard :: shards.num_shards]
                played.append(self.player.play_each(policy, own_seeds, device) if own_seeds else ((), ()))
        table = torch.zeros(len(played), 2, -(-num_episodes // shards.num_shards), dtype=torch.float64)
        for row, columns in zip(table, played, strict=True):
            for cells, values in zip(row, columns, strict=True):
                cells[: len(values)] = torch.as_tensor(values)
        # (S, 2, K) -> (2, K * S): episode k * S + s was the k-th of shard s
        totals, lengths = self.ranks.gather(table).permute(1, 2, 0).flatten(1).numpy()[:, :num_episodes]
        results = results_of(totals, lengths.astype(np.int64))
        if self.is_cut(results) and not self._has_told_of_limit:
            self._has_told_of_limit = True
            log.warning(
                f"a greedy episode has not ended after {EVALUATION_LIMIT:,} steps, and there is no time limit: it is cut "
                "there and counts with its return so far, never as solved; --data.max_episode_steps=N sets a limit"
            )
        return results

    def is_cut(self, results: EpisodeResults) -> bool:
        """True if `EVALUATION_LIMIT` has cut one of the episodes."""
        return self._has_no_limit and max(results.lengths) >= EVALUATION_LIMIT

    @contextmanager
    def _together(self) -> Iterator[None]:
        """Inside, each rank waits for its own environments; what it raises there, every rank raises at the end.

        Raises:
            RankFailed: Another rank has failed.
        """
        failure: BaseException | None = None
        self.is_waiting = True
        try:
            yield
        except (Exception, RunInterrupted) as error:
            failure = error
        self.is_waiting = False
        code = failure.code if isinstance(failure, RunInterrupted) else None if failure is None else exit_codes.of(failure)
        try:
            raise_together(self.ranks, failure, code)
        except RankLost:
            raise
        except BaseException as error:
            self.failed_together = error
            raise

    def _tell(self, text: str) -> None:
        """Log what has happened to this rank's environments."""
        if self.ranks.rank == 0:
            log.warning(text)
        else:
            _log_of_other_ranks.warning("rank %d: %s", self.ranks.rank, text)

    def _report(self, fault: Fault) -> None:
        """Write a report from which the fault can be replayed."""
        if self.report_dir is not None:
            try:
                fault.where["report"] = write_report(fault, Path(self.report_dir))
            except OSError as error:  # must not hide the fault itself
                log.warning("%s: the report cannot be written: %s", self.report_dir, error)

    def _warn_of_space(self, text: str) -> None:
        """Log that an observation is outside its space, once for training and evaluation together."""
        if not self._has_warned_of_space:
            self._has_warned_of_space = True
            log.warning(text)

    def _training_seed(self, env: int, episode: int) -> int:
        return seeding.episode_seed(self.seed, "training", 0, self.shards.own_envs.start + env, episode)

    # -- Lightning's side

    def setup(self, stage: str) -> None:
        """Start the training environments for `fit`; they boot while Lightning continues.

        Raises:
            ConfigError: The module, a callback, a plugin or a flag of the Trainer is refused.
        """
        self._stage = stage
        if self.trainer is not None:
            check_run(self.trainer, self.trainer.lightning_module)
            self._join(self.trainer)
        if stage == "fit" and self._bridge is None:
            self._ended, own = None, self.shards.own_envs
            self.interrupt = self._agreed_interrupt = None
            self._bridge = EnvBridge(
                self.environment,
                own.stop - own.start,
                self._training_seed,
                settings=settings_of_rank(self.bridge_settings, self.shards),
                contract=self.contract_settings,
                phase="training" if self.ranks.count == 1 else f"training-rank{self.ranks.rank}",
                on_event=self._tell,
                on_warning=self._warn_of_space,
                on_fault=self._report,
            )
            self._evaluation_spec = self.spec  # raises now if its spaces cannot be used
        if (cores := fair_cores(self.ranks)) is not None:
            for bridge in filter(None, (self._bridge, self.player.bridge)):
                bridge.share_cores(cores)
        if self.trainer is not None:
            check_spaces(self._learner.spec, self.spec)
            if stage == "fit":
                self._share_seed(self._learner)

    def _share_seed(self, learner: Learner) -> None:
        """Let a seed that was typed on one side alone, here or for the module, serve both."""
        origins = self.seed_origin, learner.seed_origin
        if origins == ("default", "typed"):
            self._use_seed(learner.run_seed)
        elif origins == ("typed", "default") and learner.run_seed != self.seed:
            learner.take_seed(self.seed)

    def _use_seed(self, seed: int) -> None:
        self.seed = seed
        self.save_hyperparameters({"seed": seed}, logger=False)

    def __str__(self) -> str:
        """In one line; Lightning would ask for the dataloaders, which play."""
        return f"{type(self).__name__}({self.environment.env_id!r}, num_envs={self.num_envs}, horizon={self.horizon})"

    def _join(self, trainer: Trainer) -> None:
        """Become one of the Trainer's ranks.

        Raises:
            ConfigError: Their number does not divide that of the shards.
        """
        strategy = rank_strategy_of(trainer)
        self.ranks = Ranks() if strategy is None else strategy.ranks
        if strategy is not None:
            torch.set_num_threads(self._num_threads)  # Lightning's launcher sets another number, also for one rank
        if self.ranks.count > 1:
            if self._watch is None:
                address = os.environ["MASTER_ADDR"]
                self._watch = RankWatch(self.ranks, address, *self._rank_limits, lambda: self.is_waiting)
                self.ranks.await_end = self._watch.wait_for_end
                elastic.ranks_have_met()
            # every rank logs the same values
            warnings.filterwarnings("ignore", ".*sync_dist=True.*")
        if self.ranks.rank > 0:
            logging.getLogger("lit_ppo").setLevel(logging.ERROR)  # the first rank says it for all
        self._deal_out(self.ranks.count if self._given_shards is None else self._given_shards)

    def require_ranks(self, count: int) -> None:
        """Refuse a number of ranks among which the environments and their processes cannot be dealt out.

        Raises:
            ConfigError: Names the setting, and what is expected.
        """
        shards = Shards(self.num_envs, count if self._given_shards is None else self._given_shards, count)
        settings_of_rank(self.bridge_settings, shards)

    def _deal_out(self, num_shards: int) -> None:
        self.shards = Shards(self.num_envs, num_shards, self.ranks.count, self.ranks.rank)

    @property
    def agreed_interrupt(self) -> int | None:
        """The signal because of which every rank stops after this update; None if they go on."""
        return self.interrupt if self.ranks.count == 1 else self._agreed_interrupt

    def train_dataloader(self) -> OneItem[Rollout]:
        """One rollout in each epoch."""
        return OneItem(self.next_rollout)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Round the rewards of a rollout where the device has no float64; Lightning's hook before a batch goes there."""
        if self._learner.device.type in DEVICES_WITHOUT_FLOAT64 and isinstance(batch, Rollout):
            told = batch.everywhere and batch.everywhere._replace(rewards=batch.everywhere.rewards.float())
            return batch._replace(rewards=batch.rewards.float(), everywhere=told)
        return batch

    def val_dataloader(self) -> OneItem[EpisodeResults] | list[OneItem[EpisodeResults]]:
        """The episodes of `validate`; during `fit` the `GreedyEvaluation` callback evaluates instead."""
        if self._stage == "fit":
            warnings.filterwarnings("ignore", "Total length of `list` across ranks is zero", UserWarning)  # of what follows
            return []
        return OneItem(partial(self._results_of, "evaluation", self.validation_episodes))

    def predict_dataloader(self) -> OneItem[EpisodeResults]:
        """The episodes of `predict`, which are those of `validate`."""
        return OneItem(partial(self._results_of, "evaluation", self.validation_episodes))

    def test_dataloader(self) -> OneItem[EpisodeResults]:
        """The episodes of `test`."""
        return OneItem(partial(self._results_of, "test", self.test_episodes))

    @property
    def _learner(self) -> Learner:
        assert self.trainer is not None
        return cast(Learner, self.trainer.lightning_module)

    def _results_of(self, purpose: seeding.Purpose, num_episodes: int) -> EpisodeResults:
        require_finite(self._learner.policy.state_dict().items())
        self.results = self.play(self._learner.policy, purpose, num_episodes, self._learner.device)
        return self.results

    @property
    def has_invalid_rows(self) -> bool:
        """Whether a rollout may contain rows that are not transitions: resets of native environments, abandoned episodes."""
        return self.bridge_settings.vectorization == "native" or self.bridge_settings.on_violation == "restart"

    def next_rollout(self) -> Rollout:
        """Collect one rollout with the learner's policy."""
        start = perf_counter()
        with self._together():
            rollout = self._own_rollout()
        collected = perf_counter()
        rollout, restarts, abandoned = self._told(rollout)
        outcomes = rollout.outcomes
        ended, transitions = self._statistics.update(outcomes), int(outcomes.valid.sum())
        self.update += 1
        self.env_steps += transitions
        self.metrics = {
            "env/steps": float(self.env_steps),
            "env/restarts": float(restarts),
            "env/abandoned_episodes": float(abandoned),
            "episodes/ended": float(len(ended.returns)),
            "time/collection_steps_per_s": transitions / (collected - start),
        }
        if ended.returns:
            self.metrics["episodes/return"] = sum(ended.returns) / len(ended.returns)
            self.metrics["episodes/length"] = sum(ended.lengths) / len(ended.lengths)
        return rollout

    def _own_rollout(self) -> Rollout:
        """The rollout of this rank's environments."""
        assert self._bridge is not None
        learner, num_envs, own = self._learner, self._bridge.num_envs, self.shards.own_envs
        policy = learner.policy
        if self._standpoint is None:
            if self._bridge.spec != self._evaluation_spec:
                raise ContractViolation("spaces", f"{self._evaluation_spec} as in evaluation", f"{self._bridge.spec}")
            obs, begins = self._bridge.reset(), np.ones(num_envs, np.bool_)
            self._standpoint = Standpoint(obs, begins, policy.initial_state(num_envs))
        self._boundary = self._boundary_at(self._bridge.mark())
        draws = seeding.generator(self.seed, "actions", self.update)
        noise = policy.draw_noise(self.horizon, self.num_envs, draws)[:, own].to(learner.device)
        where = {"update": self.update, "env_steps": self.env_steps}
        rollout = collect_rollout(self._bridge, self._standpoint, policy, noise, **where, parts=self.shards.parts)
        self._standpoint = standpoint_after(rollout)
        return rollout

    def _told(self, rollout: Rollout) -> tuple[Rollout, int, int]:
        """A rollout with the outcomes of all ranks, and how many workers were replaced and episodes given up on all of them."""
        assert self._bridge is not None
        faults = [self._bridge.restarts, self._bridge.abandoned_episodes]
        if self.ranks.count == 1:
            return rollout, *faults  # type: ignore[return-value]
        outcomes, notes = everywhere(self.ranks, rollout.outcomes, [*faults, self.interrupt or 0])
        restarts, abandoned, interrupts = zip(*notes, strict=True)
        self._agreed_interrupt = max(interrupts) or None
        return rollout._replace(everywhere=outcomes), sum(restarts), sum(abandoned)

    def state_dict(self) -> dict[str, Any]:
        """Counters, statistics, and every unfinished episode as its journal: plain data.

        Always the state at an update boundary. While a rollout is collected, and until the module has learnt from it, that is
        the boundary before the rollout: if the environments or the update fail, the run continues from there. After `fit` it is
        its last boundary.
        """
        boundary, bridge = self._ended or (self._last_boundary, self._bridge)
        state: dict[str, Any] = {"update": boundary.update, "env_steps": boundary.env_steps, "seed": self.seed}
        state["shards"] = self.shards.num_shards
        if boundary.standpoint is not None and bridge is not None:
            state["statistics"] = boundary.statistics
            begins, remembered = torch.from_numpy(boundary.standpoint.begins), boundary.standpoint.state
            state["begins"] = self.ranks.gather(begins).tolist()
            state["policy_state"] = None if remembered is None else self.ranks.gather(remembered)
            own = bridge.state_dict(boundary.mark)
            state["bridge"] = own if self.ranks.count == 1 else joined_of_ranks(self.ranks, own)
        return state

    @property
    def boundary_update(self) -> int:
        """The update whose boundary `state_dict` is of."""
        return self._last_boundary.update

    @property
    def can_continue(self) -> bool:
        """True if `state_dict` includes the environments: while `fit` runs, and after it."""
        return self._bridge is not None or self._ended is not None

    @property
    def _last_boundary(self) -> _Boundary:
        boundary = self._boundary
        return self._boundary_at(None) if boundary is None or self._learner.learnt_update == boundary.update else boundary

    def _boundary_at(self, mark: BridgeMark | None) -> _Boundary:
        return _Boundary(self.update, self.env_steps, self._statistics.state_dict(), self._standpoint, mark)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken; stages other than `fit` need only the counters.

        Raises:
            ConfigError: The run has made more updates than the Trainer allows. Lightning's own count of epochs is one less in a
                checkpoint that was saved at the end of an update.
        """
        is_fit = self._stage == "fit"
        nothing_remembered = self._learner.policy.initial_state(1) if is_fit else None
        require_data(state, nothing_remembered, is_fit=is_fit, has_more=type(self) is not RolloutDataModule)
        self.update, self.env_steps, self._ended = state["update"], state["env_steps"], None
        self._continue_shards(state.get("shards", 1), is_fit=is_fit)
        if is_fit and self.seed_origin == "default":  # a resumed run keeps the seed that it had
            self._use_seed(state["seed"])
        self.seed_origin = "loaded"
        if not is_fit or "bridge" not in state:
            if is_fit and self.update:  # of an earlier version, which saved it when `fit` had ended
                log.warning("the checkpoint was saved without its environments, whose episodes begin anew")
            return
        max_epochs = -1 if self.trainer is None else self.trainer.max_epochs
        if max_epochs is not None and 0 <= max_epochs < self.update:
            raise ConfigError(
                f"trainer.max_epochs={max_epochs}: expected at least {self.update}, "
                "the updates that the checkpoint's run has made"
            )
        assert self._bridge is not None
        self._statistics.load_state_dict(state["statistics"])
        own = self.shards.own_envs
        saved = state["bridge"] if self.ranks.count == 1 else dealt(state["bridge"], own)
        with self._together():
            obs = self._bridge.load_state_dict(saved)
        # an episode that could not be restored was replaced by a new one
        is_new = np.array(self._bridge.episodes) != np.array(saved["episodes"])
        begins = np.array(state["begins"], np.bool_)[own] | is_new
        self._statistics.begin(self.ranks.gather(torch.from_numpy(is_new)).nonzero().flatten().tolist())
        policy_state: torch.Tensor | None = state["policy_state"]
        remembered = None if policy_state is None else policy_state[own].clone().to(self._learner.device)
        self._standpoint = Standpoint(obs, begins, remembered)

    def _continue_shards(self, num_shards: int, *, is_fit: bool) -> None:
        """Take over the shards of a checkpoint's run.

        Raises:
            ConfigError: Others were asked for, or the environments were made for others.
        """
        if self._given_shards not in (None, num_shards):
            raise ConfigError(
                f"data.shards={self._given_shards}: the checkpoint's run has {num_shards}, which cannot change on resume"
            )
        is_native = self.bridge_settings.vectorization == "native"
        if is_fit and is_native and num_shards != self.shards.num_shards:
            raise ConfigError(f"data.shards: native environments are made for it at once; use --data.shards={num_shards}")
        self._deal_out(num_shards)

    def teardown(self, stage: str) -> None:
        """End the environment processes."""
        self.close()
        self._leave()

    def on_exception(self, exception: BaseException) -> None:
        """End the environment processes; Lightning does not call `teardown` after an exception."""
        self.close()
        if exception is self.failed_together or isinstance(exception, ConfigError | NonFiniteUpdate):
            self._leave()  # every rank raises it; otherwise the others must see that this one is lost

    def _leave(self) -> None:
        """Stop watching the other ranks."""
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def close(self) -> None:
        """End the environment processes; safe to call more than once."""
        if self._bridge is not None and self._standpoint is not None:
            boundary = self._last_boundary
            self._ended = boundary._replace(mark=boundary.mark or self._bridge.mark()), self._bridge
        for owner in (self._bridge, self._player):
            if owner is not None:
                owner.close()
        self._bridge, self._player, self._standpoint, self._boundary = None, None, None, None
