"""Is an environment fit for training? Start it, step it under the contract, replay it, and measure it."""

import hashlib
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from time import perf_counter
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lit_ppo import seeding
from lit_ppo.bridge import protocol, sandbox
from lit_ppo.bridge.client import EnvBridge
from lit_ppo.bridge.settings import LARGEST_COUNT, BridgeSettings, EnvironmentSettings
from lit_ppo.contract import ContractSettings, VectorStep
from lit_ppo.errors import BridgeError, ConfigError, EnvironmentFault, ProtocolError, one_line
from lit_ppo.leaf_rules import field_of
from lit_ppo.random_actions import random_actions
from lit_ppo.spaces import EnvSpec, Leaves, channel_order, spec_to_json

_NUM_RESETS: Final = 5
_DEFAULT_ENVS: Final = 8  # of `fit`
_DEFAULT_HORIZON: Final = 32  # steps
_ROLLOUT_S: Final = 10.0  # longest rollout that is no nuisance
_LARGE: Final = 10.0  # observations beyond this are too large for networks as they are
_STEPS_BESIDE: Final = 4  # one of so many random steps is made again with a second environment beside the first
_MANY_INPUTS: Final = 10_000  # numbers of an observation; with fewer the default policy is small
_LARGE_SIDE: Final = 100  # pixels
_RESIZE: Final = "gymnasium.wrappers.ResizeObservation"
_SHARE: Final = 0.01  # float32 must tell apart what differs by this share of the observed spread
_LEAST_SPREAD: Final = 1e-4  # less than this is noise, to normalisation, too


@dataclass
class Cost:
    """Seconds that a call takes, as the trainer sees it."""

    median_s: float
    high_s: float  # 95 of 100 are faster

    @classmethod
    def of(cls, seconds: list[float]) -> "Cost":
        """The cost of a call that was made several times."""
        return cls(statistics.median(seconds), float(np.quantile(seconds, 0.95)))


@dataclass
class EnvironmentReport:
    """What was found out about an environment.

    Attributes:
        spec: What it announces.
        versions: Of Python and its packages in the worker.
        steps, episodes: How many random steps were made, and how many episodes ended in them.
        fault: How it broke the contract or raised; None if it did not.
        remarks: Warnings of the contract, and which layers of the sandbox are missing.
        difference: Where the same actions from the same seeds, in a fresh process, came to something else; None if nowhere.
        beside: What happened when a second environment was made and stepped in the process of the first; None if nothing.
        apart: What happened with each of the two in a process of its own, if they cannot share one; None if nothing.
        parameters: Of the default policy, if the observations are large.
        gymnasium: What Gymnasium's own checker says; the last may begin with `error: `. It does not count for `is_fit`.
        reset, step: What the calls cost.
        start_s: Seconds until a fresh process has made the environment.
        settings: Options of `fit` that follow, with the reasons.
    """

    spec: EnvSpec
    versions: dict[str, Any] = field(default_factory=dict)
    steps: int = 0
    episodes: int = 0
    fault: str | None = None
    remarks: list[str] = field(default_factory=list)
    difference: str | None = None
    beside: str | None = None
    apart: str | None = None
    parameters: int | None = None
    gymnasium: list[str] = field(default_factory=list)
    reset: Cost | None = None
    step: Cost | None = None
    start_s: float = 0.0
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def is_fit(self) -> bool:
        """Whether the environment can be trained on, with `settings`, with all that a run guarantees."""
        return self.fault is None and self.difference is None and self.apart is None

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("spec", "reset", "step")}
        costs = {name: None if cost is None else asdict(cost) for name, cost in (("reset", self.reset), ("step", self.step))}
        return {"is_fit": self.is_fit, "spec": spec_to_json(self.spec), **fields, **costs}


def check_environment(
    environment: EnvironmentSettings,
    settings: BridgeSettings | None = None,
    contract: ContractSettings | None = None,
    num_steps: int = 1000,
    seed: int = 0,
) -> EnvironmentReport:
    """Try an environment, with random actions.

    Args:
        environment: What to make.
        settings: How its processes run; with `num_workers` above 1 two environments are not tried in one process.
        contract: Demands beyond the rules that always hold.
        num_steps: Random steps, and as many of the replay.
        seed: Of episodes and actions.

    Raises:
        ConfigError: The environment cannot be made, or a setting is invalid.
        BridgeError, ProtocolError: Its process failed.
    """
    if num_steps > LARGEST_COUNT:
        raise ConfigError(f"steps={num_steps}: expected at most {LARGEST_COUNT:,}")
    if num_steps < 1 or seed < 0:
        raise ConfigError(f"steps={num_steps}, seed={seed}: expected at least one step, and a seed of at least 0")
    given = settings or BridgeSettings()
    settings = replace(given, vectorization="sync", num_workers=1, max_restarts=0)
    bridge = partial(_bridge, environment, settings, contract)
    seeds, remarks = partial(seeding.episode_seed, seed, "training", 0), list[str]()
    with bridge(seeds, on_warning=remarks.append) as first:
        report = EnvironmentReport(first.spec, first.versions, remarks=remarks)
        if missing := sandbox.missing(first.sandbox_layers):
            remarks.append(f"sandbox={settings.sandbox}: {missing}")
        trial = _Trial(first.spec, num_steps, seed)
        try:
            trial.play(first, seeds, report)
        except EnvironmentFault as fault:
            report.fault = str(fault)
    if report.fault is None and given.first_workers == 1:
        report.beside = trial.disturbance(partial(bridge, seeds, num_envs=2))
    if report.beside is not None or (report.fault is None and given.first_workers > 1):
        report.apart = trial.disturbance(partial(bridge, seeds, num_envs=2, num_workers=2))
    start = perf_counter()
    remarks += _blurred(trial)
    with bridge(lambda env, episode: trial.seed_to_replay) as second:
        _ = second.spec
        report.start_s = perf_counter() - start
        if report.fault is None:
            report.difference = trial.difference(second)
    if report.difference is not None:  # then two of them differ anyway
        report.beside = report.apart = None
    report.gymnasium = _gymnasium_remarks(partial(bridge, seeds), settings)
    report.parameters = _parameters(report.spec)
    report.settings = _settings_for(report, trial)
    if report.difference is not None and not environment.remake_each_episode:
        remade = partial(_bridge, replace(environment, remake_each_episode=True), settings, contract)
        if _Trial(report.spec, num_steps, seed).is_repeated(remade, seeds):
            report.settings["data.remake_each_episode=true"] = "it keeps something from one episode to the next"
    return report


def _bridge(
    environment: EnvironmentSettings,
    settings: BridgeSettings,
    contract: ContractSettings | None,
    episode_seed: Callable[[int, int], int],
    on_warning: Callable[[str], None] = lambda text: None,
    num_envs: int = 1,
    num_workers: int = 1,
) -> EnvBridge:
    settings = replace(settings, num_workers=num_workers)
    return EnvBridge(environment, num_envs, episode_seed, settings=settings, contract=contract, on_warning=on_warning)


@dataclass
class _Episode:
    """One episode: its seed, its actions, and what the environment answered: the reset, and each step."""

    seed: int
    actions: list[NDArray[Any]]
    answers: list[dict[str, bytes]]  # digests of values, by name


class _Trial:
    """Random steps, and what came of them.

    Args:
        spec: What the environment announces.
        num_steps: How many.
        seed: Of the actions.
    """

    def __init__(self, spec: EnvSpec, num_steps: int, seed: int) -> None:
        self._spec, self._num_steps = spec, num_steps
        self._generator = np.random.default_rng(seed)
        self._episodes: list[_Episode] = []
        self._vectors = [leaf.path for leaf in spec.observation if leaf.dtype.startswith("float") and len(leaf.shape) < 3]
        self.largest = 0.0  # of all numbers in vectors of floats
        self.wide = [leaf for leaf in spec.observation if np.promote_types(leaf.dtype, np.float32) == np.float64]
        self.extremes: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {}  # of these, by path, shape (1, *leaf.shape)

    def play(self, bridge: EnvBridge, seeds: Callable[[int, int], int], report: EnvironmentReport) -> None:
        """Make the steps, and note what the environment answers and how long it takes.

        Args:
            bridge: One environment.
            seeds: Of its episodes.
            report: Gets steps, episodes and costs, also if the environment fails.
        """
        resets: list[float] = []
        steps: list[float] = []
        try:
            for _ in range(_NUM_RESETS):
                obs = _timed(resets, bridge.reset)
            self._episodes.append(_Episode(seeds(0, 0), [], [_digests(obs)]))
            for _ in range(self._num_steps):
                actions = random_actions(self._spec, obs, self._generator)
                step = _timed(steps, lambda actions=actions: bridge.step(actions))  # type: ignore[misc]
                self._episodes[-1].actions.append(actions)
                self._episodes[-1].answers.append(_answer(step))
                obs = step.obs
                for path in self._vectors:
                    self.largest = max(self.largest, float(np.abs(obs[path]).max()))
                for path in (leaf.path for leaf in self.wide):
                    lows, highs = self.extremes.get(path, (obs[path], obs[path]))
                    self.extremes[path] = np.minimum(lows, obs[path]), np.maximum(highs, obs[path])
                if step.any_ended:
                    report.episodes += 1
                    self._episodes.append(_Episode(seeds(0, bridge.episodes[0]), [], [_digests(obs)]))
        finally:
            report.steps = len(steps)
            report.reset, report.step = (Cost.of(seconds) if seconds else None for seconds in (resets, steps))

    def disturbance(self, make: Callable[[], EnvBridge]) -> str | None:
        """How a second environment cannot be made or stepped beside the first, or changes it; None if neither.

        Args:
            make: Makes the two, whose seeds are those of `play`.
        """
        generator, num_steps = np.random.default_rng(1), -(-self._num_steps // _STEPS_BESIDE)
        steps = [(episode, number) for episode in self._episodes for number in range(len(episode.actions) + 1)]
        try:
            with make() as bridge:
                obs = bridge.reset()
                found = None
                for episode, number in steps[: num_steps + 1]:
                    if found:
                        break
                    if number == 0:  # the step before has begun the episode
                        found = _first_difference(f"reset of seed {episode.seed}", episode.answers[0], _digests(obs))
                        continue
                    actions = random_actions(self._spec, obs, generator)
                    actions[0] = episode.actions[number - 1][0]
                    step = bridge.step(actions)
                    obs, where = step.obs, f"step {number} of the episode of seed {episode.seed}"
                    found = _first_difference(where, episode.answers[number], _answer(step))
        except (BridgeError, ProtocolError, EnvironmentFault, ConfigError) as failure:
            return str(failure).partition("\n")[0]
        return found

    def is_repeated(self, make: Callable[..., EnvBridge], seeds: Callable[[int, int], int]) -> bool:
        """Whether a second process answers as the first one does.

        Args:
            make: Makes an environment whose episodes begin from the seeds that it is given.
            seeds: Of the episodes of the first.
        """
        with make(seeds) as first, make(lambda env, episode: self.seed_to_replay) as second:
            try:
                self.play(first, seeds, EnvironmentReport(self._spec))
            except EnvironmentFault:
                return False
            return self.difference(second) is None

    @property
    def seed_to_replay(self) -> int:
        """Of the episode that `difference` plays next."""
        return self._episodes[-1].seed

    def difference(self, bridge: EnvBridge) -> str | None:
        """Where a fresh process answers otherwise; None if nowhere.

        The last episode is played first: what an environment keeps from one episode to the next is found, too. A resumed run
        and a replaced worker start in the middle, and rely on an episode being a function of its seed and its actions.

        Args:
            bridge: One environment, whose episodes begin from `seed_to_replay`.
        """
        while self._episodes:
            episode = self._episodes[-1]
            where = f"the episode of seed {episode.seed}, in a fresh process without the episodes before"
            try:
                found = _first_difference(f"reset of {where}", episode.answers[0], _digests(bridge.reset()))
                for number, actions in enumerate(episode.actions, 1):
                    if found:
                        break
                    found = _first_difference(
                        f"step {number} of {where}", episode.answers[number], _answer(bridge.step(actions))
                    )
            except EnvironmentFault as fault:
                found = f"{where}: {fault}"
            if found:
                return found
            self._episodes.pop()
        return None


def _timed(seconds: list[float], call: Callable[[], Any]) -> Any:
    """What a call returns; the seconds that it took are noted, unless it raises."""
    start = perf_counter()
    returned = call()
    seconds.append(perf_counter() - start)
    return returned


def _answer(step: VectorStep) -> dict[str, bytes]:
    """Digests of what a step of the first environment returned; where it ended the episode, of the last observation."""
    values = {name: getattr(step, name)[:1].tobytes() for name in ("rewards", "terminated", "truncated")}
    has_ended = step.terminated[0] or step.truncated[0]
    return {**_digests(step.final_obs if has_ended else step.obs), **values}


def _digests(obs: Leaves) -> dict[str, bytes]:
    return {field_of("obs", path): hashlib.blake2b(leaf[:1].tobytes(), digest_size=16).digest() for path, leaf in obs.items()}


def _first_difference(where: str, mine: dict[str, bytes], other: dict[str, bytes]) -> str | None:
    names = [name for name in {**mine, **other} if mine.get(name) != other.get(name)]
    return f"{where}: {', '.join(names)} differ" if names else None


def _gymnasium_remarks(make: Callable[[], EnvBridge], settings: BridgeSettings) -> list[str]:
    with make() as bridge:
        _ = bridge.spec
        reply = bridge.slices[0].worker.ask("check", settings.start_timeout_s)
    return [one_line(protocol.take({"remark": remark}, "remark", str)) for remark in protocol.take(reply, "remarks", list)]


def _parameters(spec: EnvSpec) -> int | None:
    """Number of parameters of the default policy; None where the observations are too small for it to matter."""
    choices = ("discrete", "multi_discrete")
    if sum(sum(leaf.choices) if leaf.kind in choices else leaf.num_components for leaf in spec.observation) <= _MANY_INPUTS:
        return None
    import torch  # here, since it takes longer than the rest of the check

    from lit_ppo.policy import policy_for
    from lit_ppo.ppo_settings import PPOSettings

    try:
        with torch.device("meta"):
            policy = policy_for(spec.observation, spec.action, spec.mask, PPOSettings(), torch.Generator())
    except ConfigError:  # of a mask with nothing beside it, or of actions without a distribution
        return None
    return sum(parameter.numel() for parameter in policy.parameters())


def _wrappers_for(spec: EnvSpec, parameters: int | None) -> dict[str, str]:
    """The option that makes large images small, with the reason; empty if there are none."""
    images = [leaf for leaf in spec.observation if leaf.kind == "box" and leaf.dtype == "uint8" and len(leaf.shape) in (2, 3)]
    for leaf in images:
        if max(leaf.shape) > _LARGE_SIDE:
            has_sides_first = channel_order(leaf.shape) != "first"
            is_plain = leaf.path == "" and (leaf.low, leaf.high) == (0, 255) and has_sides_first
            wrapper = f"{{class_path: {_RESIZE}, init_args: {{shape: [84, 84]}}}}" if is_plain else "WRAPPER"
            many = "" if parameters is None else f", and {parameters:,} parameters see it"
            as_usual = "" if is_plain else f"; a wrapper of your own can resize it as {_RESIZE} does"
            return {
                f"data.wrappers=[{wrapper}]": f"the image {leaf.shape} has a side above {_LARGE_SIDE} pixels{many}{as_usual}"
            }
    return {}


def _blurred(trial: _Trial) -> list[str]:
    """Parts of the observation that float32 cannot tell apart as a policy sees them unless they are normalised."""
    remarks = []
    for leaf in trial.wide:
        if leaf.kind != "box" or leaf.path not in trial.extremes:
            continue
        low, high, lows, highs = (ends.astype(np.float64) for ends in (*leaf.bounds(), *trial.extremes[leaf.path]))
        spread = highs - lows
        # whole numbers are scaled from their bounds to [0, 1]
        spacing = (high - low) * 2.0**-24 if leaf.is_integer else np.spacing(np.maximum(-lows, highs).astype(np.float32))
        blurred = (spread > _LEAST_SPREAD) & (spacing > _SHARE * spread)
        if blurred.any():
            first, last = float(lows[blurred][0]), float(highs[blurred][0])
            use = f'["{leaf.path}"]' if leaf.is_integer else "true"
            remarks.append(
                f"{field_of('obs', leaf.path)}: float32 cannot tell apart what lies between {first!r} and {last!r}; "
                f"use --model.normalize_observations={use}"
            )
    return remarks


def _settings_for(report: EnvironmentReport, trial: _Trial) -> dict[str, str]:
    """Options of `fit` that differ from the defaults, by what was measured."""
    found, spec = {}, report.spec
    if report.step is not None:
        typical, rare = report.step.median_s, max(report.step.high_s, report.reset.high_s if report.reset else 0.0)
        if typical * _DEFAULT_ENVS * _DEFAULT_HORIZON > _ROLLOUT_S:
            horizon = max(8, int(_ROLLOUT_S / typical / _DEFAULT_ENVS))
            found[f"data.horizon={horizon}"] = (
                f"a step takes {typical:.2f} s, and each of {_DEFAULT_ENVS} environments makes them all"
            )
        if 10 * rare > BridgeSettings.step_timeout_s:
            found[f"data.step_timeout_s={10 * rare:.0f}"] = f"a step or reset may take {rare:.2f} s"
    if report.beside is not None and report.apart is None:
        found[f"data.num_workers={_DEFAULT_ENVS}"] = "as many as data.num_envs: one environment in each process"
        found[f"data.evaluation_envs={_DEFAULT_ENVS}"] = "at most as many as data.num_workers, for the same in evaluation"
    found |= _wrappers_for(spec, report.parameters)
    if trial.largest > _LARGE:
        found["model.normalize_observations=true"] = f"observations reach {trial.largest:.3g}"
    if spec.reward_threshold is None:
        found["solved.threshold=RETURN"] = (
            "the environment does not say when it is solved; otherwise the run goes on to its end"
        )
    if report.fault is None and not report.episodes and spec.max_episode_steps is None:
        found["data.max_episode_steps=STEPS"] = f"no episode ended in {report.steps} steps, and there is no time limit"
    return found
