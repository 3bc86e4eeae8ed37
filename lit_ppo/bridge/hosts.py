"""The environments of a worker: made, reset and stepped, their answers checked and written where the trainer reads them.

The only file that steps environments. What a host returns has the declared types and shapes (`contract.admit_*`); the trainer
checks the values.
"""

import dataclasses
import itertools
import sys
from collections.abc import Iterable
from functools import partial
from typing import Any, Final

import gymnasium
import numpy as np
from numpy.typing import NDArray

from lit_ppo.bridge.faults import call, raised
from lit_ppo.bridge.making import EnvironmentMaker
from lit_ppo.bridge.protocol import take
from lit_ppo.bridge.settings import EnvironmentSettings
from lit_ppo.bridge.trees import CALL, ObservationTree, action_leaf, mask_leaf
from lit_ppo.bridge.vector_state import VectorState, array_from_json, array_to_json
from lit_ppo.contract import admit_flag, admit_reset, admit_reward, admit_step
from lit_ppo.errors import ContractViolation, EnvironmentRaised, ProtocolError, shown
from lit_ppo.leaf_rules import admit_leaf, as_array
from lit_ppo.spaces import EnvSpec, Kind, Leaf, Row, spec_from_json, spec_to_json


def _announced(maker: EnvironmentMaker, tree: ObservationTree, action: Leaf, mask: str | None) -> EnvSpec:
    """Announcement of the environments, read by the same rules as in the trainer.

    Raises:
        ValueError: The announcement cannot express it.
    """
    env_id = maker.settings.env_id
    threshold, limit = getattr(maker.spec, "reward_threshold", None), maker.time_limit
    try:
        threshold = None if threshold is None else float(threshold)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"env_id={env_id}: reward_threshold: expected a number, got {shown(threshold)}") from error
    try:
        return spec_from_json(spec_to_json(EnvSpec(env_id, tree.leaves, action, mask, threshold, limit)))
    except (ProtocolError, TypeError, OverflowError) as error:
        raise ValueError(f"env_id={env_id}: {error}") from error


class SyncHost:
    """N environments, stepped one after the other; each episode starts from its own seed.

    Args:
        settings: Which environments.
        num_envs: N.

    Raises:
        EnvironmentRaised: An environment cannot be made.
        ValueError: A setting does not fit, a package is not installed, or the spaces are not supported.
    """

    resets_within_step: Final = True

    def __init__(self, settings: EnvironmentSettings, num_envs: int) -> None:
        self.num_envs, self._maker = num_envs, EnvironmentMaker(settings)
        self._run = self._maker.run
        self.envs: list[gymnasium.Env[Any, Any]] = []
        for env in range(num_envs):
            self.envs.append(self._maker.make(env))
            if env == 0:  # refused before the others take their memory
                mask = self._plan(settings, self.envs[0])
        self._steps = [partial(self._maker.run_traced, made.step) for made in self.envs]
        self.spaces = dict(zip(("observation_space", "action_space"), map(shown, self._spaces), strict=True))
        for env in range(1, num_envs):
            self._require_same_spaces(env)
        self.spec = _announced(self._maker, self.tree, self.action, mask)
        self._action_dtype = np.dtype(self._spaces[1].dtype)  # of the environment: the announced one of choices is int64
        self._is_fresh = [True] * num_envs  # not reset yet

    def _plan(self, settings: EnvironmentSettings, made: gymnasium.Env[Any, Any]) -> str | None:
        """Plan actions and observations by the spaces of the first environment; the path of the action mask."""
        self._spaces = observation_space, action_space = call(0, "make", self._run, _spaces_of, made)
        self.action = action_leaf(settings.env_id, action_space)
        mask, leaf, self._mask_method = None, None, None
        if settings.action_mask is not None:
            mask, leaf = mask_leaf(settings.action_mask, self.action)
            if mask.startswith(CALL) and leaf is not None:
                self._mask_method = mask.removeprefix(CALL)
                if not _has_method(made, self._mask_method):
                    raise ValueError(f"action_mask={mask}: expected a method of the environment, but it has none of that name")
        hint = " (it has a method for it: data.action_mask=call:action_masks)" if _has_method(made, "action_masks") else ""
        observed = mask if leaf is None else None
        self.tree = ObservationTree(settings.env_id, observation_space, settings.obs_keys, leaf, observed, hint)
        return mask

    def _called_mask(self, env: int) -> object:
        """The action mask that a method of the environment returns."""
        name = str(self._mask_method)
        return call(env, name, self._run, lambda: self.envs[env].get_wrapper_attr(name)())

    def _require_same_spaces(self, env: int) -> None:
        spaces = call(env, "make", self._run, _spaces_of, self.envs[env])
        if not call(env, "make", self._run, self._spaces.__eq__, spaces):
            arrived = " and ".join(map(shown, spaces))
            raise ContractViolation("spaces", "the same spaces as env 0", arrived, env)

    def allocate(self, row: Row, reply: dict[str, NDArray[Any]]) -> None:
        """Write all results into the reply's arrays from now on."""
        self.rows, self.final_rows, self.rewards, self.flags = (
            reply[name] for name in ("rows", "final_rows", "rewards", "flags")
        )
        self.busy_with = reply["busy_with"].data  # a store costs half of an array's
        views = row.views(self.rows)
        self.write = self.tree.writer(views, None if self._mask_method is None else self._called_mask)
        self.write_last = self.write if self.spec.mask is None else self.tree.writer(views, reads_mask=False)
        self.terminated, self.truncated, self.reset_flags, self.invalid = self.flags

    def reset(self, seeds: list[int | None]) -> None:
        """Begin new episodes where a seed is given; leave the other environments as they are."""
        for env, seed in enumerate(seeds):
            if seed is not None:
                self._reset_one(env, seed)
        self.busy_with[0] = 0

    def _reset_one(self, env: int, seed: int, *, follows_step: bool = False) -> None:
        self.busy_with[0] = env + 1 + (self.num_envs if follows_step else 0)
        if self._maker.settings.remake_each_episode and not self._is_fresh[env]:
            self._remake(env)
        self._is_fresh[env] = False
        returned = call(env, "reset", self._run, self.envs[env].reset, seed=seed)
        try:
            obs, info = admit_reset(returned)
            self.write(obs, info, env)
        except BaseException as error:
            raise _blamed(error, env, "reset") from None

    def _remake(self, env: int) -> None:
        """Put a new environment in the place of one: its next episode depends on its seed and its actions alone."""
        call(env, "close", self._run, self.envs[env].close)
        self.envs[env] = self._maker.make(env)
        self._require_same_spaces(env)
        self._steps[env] = partial(self._maker.run_traced, self.envs[env].step)

    def step_requested(self, requested: dict[str, NDArray[Any]]) -> None:
        """The step that stands in the shared frame."""
        self.step(requested["actions"], requested["next_seeds"], requested["active"].tobytes())

    def step(self, actions: NDArray[Any], next_seeds: NDArray[np.int64], active: bytes) -> None:
        """Step the active environments; where an episode ends, begin the next one.

        Args:
            actions: Shape (N, *shape).
            next_seeds: Of the episodes that follow, shape (N,).
            active: One byte for each environment: 1 to step it, 0 to leave it as it is.
        """
        self.flags.fill(0)
        asked = self._as_sampled(actions)
        steps, rewards, write, busy_with = self._steps, self.rewards, self.write, self.busy_with
        ended, gettrace, untrace = [], sys.gettrace, self._maker.untrace
        rows: Iterable[int] = range(self.num_envs)
        if 0 in active:  # rows that stay where they are
            self.invalid[...] = [1 - is_active for is_active in active]
            rewards[...] = 0.0
            rows = itertools.compress(rows, active)
        for env in rows:
            busy_with[0] = env + 1
            try:
                returned = steps[env](asked[env])
                if gettrace() is not None:  # as in `EnvironmentMaker.run`, whose call is dearer
                    untrace()
            except BaseException as error:
                untrace()
                raise raised(env, "step", error) from None
            try:
                obs, reward, terminated, truncated, info = admit_step(returned)
                rewards[env] = admit_reward(reward)
                if terminated is not False and admit_flag("terminated", terminated):
                    self.terminated[env] = 1
                    ended.append(env)
                if truncated is not False and admit_flag("truncated", truncated):
                    self.truncated[env] = 1
                    ended.append(env)
                (self.write_last if ended and ended[-1] == env else write)(obs, info, env)
            except BaseException as error:
                raise _blamed(error, env, "step") from None
        for env in dict.fromkeys(ended):
            self.final_rows[env] = self.rows[env]
            self._reset_one(env, int(next_seeds[env]), follows_step=True)
            self.reset_flags[env] = 1
        busy_with[0] = 0

    def _as_sampled(self, actions: NDArray[Any]) -> list[Any]:
        """Actions as `action_space.sample()` returns them: numpy scalars, or arrays of their own, which may be kept."""
        dtype = self._action_dtype
        if self.action.shape:
            return [row.astype(dtype) for row in actions]
        if dtype.kind == "f":  # of a float Box without axes: an array as well
            return [np.array(number, dtype) for number in actions]
        return list(actions if actions.dtype == dtype else actions.astype(dtype))

    def save(self) -> dict[str, Any]:
        """Not possible: an ordinary environment may keep its state anywhere.

        Raises:
            ProtocolError: Always.
        """
        raise ProtocolError("save: sync environments are restored from their journal")

    def restore(self, state: dict[str, Any]) -> None:
        """Not possible, as `save`.

        Raises:
            ProtocolError: Always.
        """
        raise ProtocolError("restore: sync environments are restored from their journal")

    def close(self) -> None:
        """Close all environments."""
        for env, environment in enumerate(self.envs):
            call(env, "close", self._run, environment.close)


class NativeHost:
    """Gymnasium's vector version of an environment: all rows in one numpy program, with one random stream for all.

    Its rows reset in the step after the one that ended an episode (NEXT_STEP); that step is no transition and marked invalid.
    """

    resets_within_step: Final = False

    def __init__(self, settings: EnvironmentSettings, num_envs: int) -> None:
        self.num_envs, maker, env_id = num_envs, EnvironmentMaker(settings), settings.env_id
        self.vector, self._run = maker.make_vector(num_envs), maker.run
        mode = self.vector.metadata.get("autoreset_mode")
        if mode != gymnasium.vector.AutoresetMode.NEXT_STEP:
            raise ContractViolation("autoreset_mode", "NEXT_STEP", shown(mode), 0)
        observation_space, action_space = self.vector.single_observation_space, self.vector.single_action_space
        self.spaces = {"observation_space": shown(observation_space), "action_space": shown(action_space)}
        self.action, tree = action_leaf(env_id, action_space), ObservationTree(env_id, observation_space)
        if not tree.is_bare:
            raise ValueError(f"vectorization=native: observations of {env_id} have parts; use vectorization=sync")
        [leaf] = tree.leaves
        kind: Kind = "multi_discrete" if leaf.kind == "discrete" else leaf.kind  # of all rows together it is an array
        self._batch = dataclasses.replace(leaf, kind=kind, shape=(num_envs, *leaf.shape))
        self.spec = _announced(maker, tree, self.action, None)
        self._action_dtype = action_space.dtype
        self._accept_checked_actions(self.vector.unwrapped.action_space)
        self._state = VectorState(self.vector, self)

    def _accept_checked_actions(self, space: gymnasium.Space[Any]) -> None:
        """Skip the environment's own check of actions that the contract has checked: a sixth of CartPole's step."""
        self.asked: NDArray[Any] | None = None
        contains = space.contains
        space.contains = lambda actions: actions is self.asked or contains(actions)  # type: ignore[method-assign, assignment]

    def allocate(self, row: Row, reply: dict[str, NDArray[Any]]) -> None:
        """Write all results into the reply's arrays from now on."""
        self.rows, self.rewards, self.flags = reply["rows"], reply["rewards"], reply["flags"]
        self.obs = row.views(self.rows)[""]
        self.ended = np.zeros(self.num_envs, np.bool_)

    def reset(self, seeds: list[int | None]) -> None:
        """Begin all episodes anew from the first seed; there is one random stream."""
        if seeds[0] is None or any(seed is not None for seed in seeds[1:]):
            raise ProtocolError("reset: expected a seed for row 0 alone: native environments share one random stream")
        obs, _ = admit_reset(call(0, "reset", self._run, self.vector.reset, seed=seeds[0]))
        self._write(obs)
        self.ended[:] = False

    def _write(self, obs: object) -> None:
        self.obs[...] = admit_leaf(obs, self._batch, self.obs.dtype, "obs")

    def step_requested(self, requested: dict[str, NDArray[Any]]) -> None:
        """The step that stands in the shared frame."""
        self.step(requested["actions"])

    def step(self, actions: NDArray[Any], next_seeds: object = None, active: object = None) -> None:
        """Step all rows; those whose episode ended in the step before begin the next one instead."""
        try:
            # a copy: the environment may keep what it gets
            self.asked = actions.copy() if actions.dtype == self._action_dtype else actions.astype(self._action_dtype)
            returned = self._run(self.vector.step, self.asked)
        except BaseException as error:
            raise raised(0, "step", error) from None
        obs, rewards, terminated, truncated, _ = admit_step(returned)
        self._write(obs)
        for name, value, kinds in (("reward", rewards, "fiu"), ("terminated", terminated, "b"), ("truncated", truncated, "b")):
            array = as_array(value, name, (self.num_envs,))
            if array.shape != (self.num_envs,) or array.dtype.kind not in kinds:
                raise ContractViolation(name, f"an array of shape ({self.num_envs},) of kind {kinds}", shown(value), 0)
        self.rewards[...] = rewards
        flags = self.flags
        flags[0], flags[1], flags[3] = terminated, truncated, self.ended
        np.logical_or(terminated, truncated, out=self.ended)

    def save(self) -> dict[str, Any]:
        """The whole state as plain data.

        Raises:
            ConfigError: The environment keeps part of it where it cannot be saved.
        """
        return {**self._state.save(), "ended": array_to_json(self.ended), "rows": array_to_json(self.rows)}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what `save` returned."""
        self._state.restore(state)
        self.ended[...] = array_from_json(take(state, "ended", dict))
        self.rows[...] = array_from_json(take(state, "rows", dict))

    def close(self) -> None:
        """Close the vector environment."""
        call(0, "close", self._run, self.vector.close)


HOSTS: Final[dict[str, type[SyncHost] | type[NativeHost]]] = {"sync": SyncHost, "native": NativeHost}


def _spaces_of(env: gymnasium.Env[Any, Any]) -> tuple[Any, Any]:
    """Observation and action space, which may be properties: code of the environment."""
    return env.observation_space, env.action_space


def _has_method(env: gymnasium.Env[Any, Any], name: str) -> bool:
    try:
        return callable(env.get_wrapper_attr(name))
    except BaseException as error:  # a property of the environment may raise anything
        raised(0, "make", error)  # passes a signal on
        return False


def _blamed(error: BaseException, env: int, during: str) -> Exception:
    """An error from reading what an environment returned, which may run its code and raise anything; with its row."""
    if isinstance(error, ContractViolation):
        return ContractViolation(error.field, error.rule, error.value, env)
    return error if isinstance(error, EnvironmentRaised) else raised(env, during, error)
