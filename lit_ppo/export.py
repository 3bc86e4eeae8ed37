"""A trained policy as a file that needs neither lit_ppo nor its environment: `torch.export` or ONNX.

The file has the actor with its observation normaliser and memory. Inputs are the leaves of an observation by their paths, in
the environment's dtypes, and with memory `state` and `begins`; the number of rows is free. Outputs are the environment's own
greedy actions, the numbers that describe the distribution of actions, and with memory the next state. Every file is checked on
observations that the policy visits, before it is written.

R is a number of rows.
"""

import dataclasses
import io
import json
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lit_ppo import __version__, atomic_file
from lit_ppo.bridge.client import EnvBridge
from lit_ppo.contract import ContractSettings
from lit_ppo.distributions import ActionBounds
from lit_ppo.errors import CheckpointError, ConfigError
from lit_ppo.networks import seen_as
from lit_ppo.policy import Policy
from lit_ppo.prediction import evaluation_mode
from lit_ppo.saved_policy import SavedPolicy
from lit_ppo.seeding import episode_seed
from lit_ppo.spaces import EnvSpec, Leaf, spec_to_json

Format = Literal["torch", "onnx"]
Arrays = dict[str, NDArray[Any]]  # by the name of an input or output

METADATA_KEY: Final = "lit_ppo"  # of an ONNX file's metadata; that of a `.pt2` is an extra file, `lit_ppo.json`
TOLERANCE: Final = 1e-5  # of outputs and states, absolute and relative
NUM_CHECKED_STATES: Final = 1_000
_STATE, _BEGINS = "state", "begins"
_OPSET: Final = 18
_NUM_ENVS: Final = 4  # in which the visited states are collected, if the run's evaluation has as many


class GreedyActor(nn.Module):
    """The part of a policy that acts, from tensors to tensors.

    Args:
        policy: Trained; its parts are used, not copied.
        action: The leaf of an action.
        mask: Path of the leaf that says which choices are possible.
        bounds: As in `Gaussian`.
    """

    low: Tensor
    high: Tensor

    def __init__(self, policy: Policy, action: Leaf, mask: str | None, bounds: ActionBounds) -> None:
        super().__init__()
        self.actor, self.observation_normalizer = policy.actor, policy.observation_normalizer
        self._distribution, self._action, self._mask, self._bounds = policy.distribution, action, mask, bounds
        low, high = action.bounds()
        self.register_buffer("low", torch.from_numpy(low.copy()), persistent=False)
        self.register_buffer("high", torch.from_numpy(high.copy()), persistent=False)

    def forward(
        self, obs: Mapping[str, Tensor], state: Tensor | None = None, begins: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Greedy actions of the environment, outputs of the actor, and with memory the next state.

        Args:
            obs: By path, shape (R, *leaf.shape), in the environment's dtypes.
            state: Shape (R, state_size); None without memory.
            begins: Whether an episode begins with this observation, shape (R,), bool; None without memory.
        """
        seen = dict(obs) if self.observation_normalizer is None else self.observation_normalizer(obs)
        parameters = self.actor.head.weight.dtype
        seen = {path: leaf.to(parameters) if leaf.is_floating_point() else leaf for path, leaf in seen.items()}
        if self._mask is not None:  # runtimes compare few integer types
            seen[self._mask] = seen[self._mask].to(torch.int64)
        features, after = self.actor.torso(seen, state, begins)
        outputs = self.actor(features, seen)
        actions = self._to_env(self._distribution.mode(outputs))
        return (actions, outputs) if after is None else (actions, outputs, after)

    def _to_env(self, actions: Tensor) -> Tensor:
        """As `Distribution.to_env`, on tensors; `check` compares the two."""
        dtype: torch.dtype = getattr(torch, self._action.dtype)
        if self._action.kind != "box":
            return (actions + self.low).to(dtype)
        if self._action.is_integer:
            actions = actions.round()
        if self._bounds == "clip":
            actions = actions.to(self.high.dtype).clamp(self.low, self.high)
        return actions.to(dtype)


class _Positional(nn.Module):
    """The same with one argument for each input, for formats without mappings."""

    def __init__(self, greedy: GreedyActor, paths: Sequence[str]) -> None:
        super().__init__()
        self.greedy, self._paths = greedy, tuple(paths)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        num_leaves = len(self._paths)
        obs = dict(zip(self._paths, inputs[:num_leaves], strict=True))
        outputs: tuple[Tensor, ...] = self.greedy(obs, *inputs[num_leaves:])
        return outputs


class Visited(NamedTuple):
    """Observations that a policy has visited, and what it makes of them."""

    inputs: Arrays  # by name, shape (R, ...)
    outputs: NDArray[Any]  # (R, num_outputs)
    states: NDArray[Any] | None  # (R, state_size) after each observation; None without memory


class ExportedPolicy:
    """What an exported file needs of a module: the acting part, its names, its metadata.

    Args:
        policy: Trained.
        spec: The environment's spaces.
        bounds: Of actions, as in `PPOSettings.action_bounds`.
        contract: Demands on the environment that the policy was trained in, for the metadata.
    """

    def __init__(self, policy: Policy, spec: EnvSpec, bounds: ActionBounds, contract: ContractSettings | None = None) -> None:
        self.policy, self.spec = policy, spec
        self.greedy = GreedyActor(policy, spec.action, spec.mask, bounds)
        self.state_size = policy.actor.torso.state_size
        own = {_STATE, _BEGINS} if self.state_size else set()
        # by path; an observation without parts is called `obs`
        self.names = {leaf.path: f"obs/{leaf.path}" if leaf.path in own else leaf.path or "obs" for leaf in spec.observation}
        self.outputs = ["action", "outputs", *(["next_state"] if self.state_size else [])]
        self._contract = contract or ContractSettings()

    @property
    def metadata(self) -> dict[str, Any]:
        """Spaces, contract, and what the inputs and outputs are, as plain data."""
        inputs = [
            {
                "name": self.names[leaf.path],
                "path": leaf.path,
                "dtype": leaf.dtype,
                "shape": ["rows", *leaf.shape],
            }
            for leaf in self.spec.observation
        ]
        if self.state_size:
            inputs += [
                {"name": _STATE, "dtype": self._float.name, "shape": ["rows", self.state_size]},
                {"name": _BEGINS, "dtype": "bool", "shape": ["rows"]},
            ]
        return {
            "lit_ppo": __version__,
            "inputs": inputs,
            "outputs": self.outputs,
            "distribution": type(self.policy.distribution).__name__,
            "spec": spec_to_json(self.spec),
            "contract": dataclasses.asdict(self._contract),
        }

    @property
    def _float(self) -> np.dtype[Any]:
        """Of states: that of the parameters."""
        return seen_as(np.dtype(np.float32), self.policy.dtype)

    @torch.no_grad()
    def visit(self, bridge: EnvBridge, num_states: int = NUM_CHECKED_STATES) -> Visited:
        """Play greedily, and note what is seen.

        Args:
            bridge: Environments of the spaces that the policy was trained in; they are reset first.
            num_states: Number of observations, R.

        Raises:
            ConfigError: The environment has other spaces.
        """
        if (bridge.spec.observation, bridge.spec.action, bridge.spec.mask) != (
            self.spec.observation,
            self.spec.action,
            self.spec.mask,
        ):
            raise ConfigError(f"data.env_id={bridge.spec.env_id}: expected the spaces that the policy was trained in")
        obs, begins, size = bridge.reset(), np.ones(bridge.num_envs, np.bool_), bridge.num_envs
        state = np.zeros((size, self.state_size), self._float)
        noted: list[Arrays] = []
        seen_outputs, states = [], []
        with evaluation_mode(self.greedy):
            for _ in range(-(-num_states // size)):
                inputs = {self.names[leaf.path]: obs[leaf.path] for leaf in self.spec.observation}
                if self.state_size:
                    inputs |= {_STATE: state, _BEGINS: begins}
                _, outputs, *after = (part.numpy() for part in self.greedy(*self.arguments(inputs)))
                noted.append({name: array.copy() for name, array in inputs.items()})
                seen_outputs.append(outputs)
                states += after
                state = after[0] if after else state
                step = bridge.step(self._actions_of(outputs))
                obs, begins = step.obs, step.terminated | step.truncated
        joined = {name: np.concatenate([arrays[name] for arrays in noted])[:num_states] for name in noted[0]}
        return Visited(
            joined,
            np.concatenate(seen_outputs)[:num_states],
            np.concatenate(states)[:num_states] if states else None,
        )

    def _actions_of(self, outputs: NDArray[Any]) -> NDArray[Any]:
        distribution = self.policy.distribution
        return distribution.to_env(distribution.mode(torch.from_numpy(outputs)).numpy())

    def arguments(self, inputs: Arrays) -> tuple[Any, ...]:
        """Arguments of `GreedyActor.forward` for inputs by name."""
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in inputs.items()}
        obs = {path: tensors[name] for path, name in self.names.items()}
        return (obs, tensors[_STATE], tensors[_BEGINS]) if self.state_size else (obs,)

    def check(self, run: Callable[[Arrays], Sequence[NDArray[Any]]], visited: Visited) -> None:
        """Compare an exported program with the policy.

        Args:
            run: The program, from inputs by name to outputs in order.
            visited: What is compared.

        Raises:
            ConfigError: An output differs by more than `TOLERANCE`; the message says which.
        """
        actions, outputs, *states = run(visited.inputs)
        expected = {"outputs": (outputs, visited.outputs), "action": (actions, self._actions_of(np.array(outputs)))}
        if visited.states is not None:
            expected["next_state"] = states[0], visited.states
        for name, (arrived, right) in expected.items():
            if arrived.shape != right.shape or arrived.dtype != right.dtype:
                raise ConfigError(
                    f"export: {name}: expected shape {right.shape} of {right.dtype}, got {arrived.shape} of {arrived.dtype}"
                )
            close = np.isclose(arrived, right, TOLERANCE, TOLERANCE) if right.dtype.kind == "f" else arrived == right
            if not close.all():
                index = tuple(int(k) for k in np.argwhere(~close)[0])
                raise ConfigError(
                    f"export: {name}{list(index)}: expected {right[index]}, got {arrived[index]}: nothing is written"
                )


def export_saved(saved: SavedPolicy, form: Format, path: Path, seed: int = 0, other: Mapping[str, Any] | None = None) -> None:
    """Write the policy of a checkpoint, once the file is checked in the run's environment.

    Args:
        saved: Policy and environment.
        form: As in `export`.
        path: The file.
        seed: The seeds of the episodes follow from it.
        other: Settings of the environments that replace the run's, as arguments of `RolloutDataModule`.

    Raises:
        ConfigError, ModuleNotFoundError: As in `export`.
        CheckpointError: The file cannot be written.
    """
    module, data = saved.module, saved.make_data(**(other or {}))
    exported = ExportedPolicy(module.policy, module.spec, module.settings.action_bounds, data.contract_settings)
    num_envs = min(_NUM_ENVS, data.evaluation_envs)
    with EnvBridge(
        dataclasses.replace(data.environment, is_training=False),
        num_envs,
        lambda env, episode: episode_seed(seed, "evaluation", 0, env, episode),
        settings=data.bridge_settings.for_evaluation(num_envs),
        contract=data.contract_settings,
        phase="evaluation",
    ) as bridge:
        visited = exported.visit(bridge)
    contents = export(exported, visited, form)
    try:
        atomic_file.replace(path, contents)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror}") from error


def export(exported: ExportedPolicy, visited: Visited, form: Format) -> bytes:
    """The contents of a file with a policy, checked.

    Args:
        exported: What to write.
        visited: Observations to check it on; `ExportedPolicy.visit` collects them.
        form: `torch` for `torch.export`, `onnx` for ONNX.

    Raises:
        ConfigError: A part of the policy cannot be exported, or the exported program computes something else.
        ModuleNotFoundError: `onnx` needs onnx, onnxscript and onnxruntime.
    """
    sample = {name: array[:2] for name, array in visited.inputs.items()}
    with evaluation_mode(exported.greedy):
        return (_as_torch if form == "torch" else _as_onnx)(exported, visited, sample)


def _as_torch(exported: ExportedPolicy, visited: Visited, sample: Arrays) -> bytes:
    rows = torch.export.Dim("rows", min=1)
    dynamic: tuple[Any, ...] = ({path: {0: rows} for path in exported.names},)
    if exported.state_size:
        dynamic += ({0: rows}, {0: rows})
    program = _traced(lambda: torch.export.export(exported.greedy, exported.arguments(sample), dynamic_shapes=dynamic))
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={"lit_ppo.json": json.dumps(exported.metadata)})
    buffer.seek(0)
    loaded = torch.export.load(buffer).module()

    def run(inputs: Arrays) -> list[NDArray[Any]]:
        with torch.no_grad():
            return [part.numpy() for part in loaded(*exported.arguments(inputs))]

    exported.check(run, visited)
    return buffer.getvalue()


def _as_onnx(exported: ExportedPolicy, visited: Visited, sample: Arrays) -> bytes:
    import onnx
    import onnxruntime
    import onnxscript  # noqa: F401  what torch.onnx needs; here, so that its absence is not an error of the policy

    names = [entry["name"] for entry in exported.metadata["inputs"]]
    tensors = tuple(torch.from_numpy(np.ascontiguousarray(sample[name])) for name in names)
    rows = torch.export.Dim("rows", min=1)
    program = _traced(
        lambda: torch.onnx.export(
            _Positional(exported.greedy, list(exported.names)),
            tensors,
            input_names=names,
            output_names=exported.outputs,
            dynamic_shapes=(tuple({0: rows} for _ in names),),
            opset_version=_OPSET,
            dynamo=True,
            verbose=False,
        )
    )
    model = program.model_proto
    model.producer_name, model.producer_version = "lit_ppo", __version__
    onnx.helper.set_model_props(model, {METADATA_KEY: json.dumps(exported.metadata)})
    contents: bytes = model.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(contents, options, providers=["CPUExecutionProvider"])
    used = {entry.name for entry in session.get_inputs()}
    if used != set(names):
        raise ConfigError(f"export: expected the inputs {names}, got {sorted(used)}")
    exported.check(lambda inputs: session.run(exported.outputs, inputs), visited)
    return contents


def _traced(trace: Callable[[], Any]) -> Any:
    """Run an exporter of torch; what it refuses, above all a torso of the user's, is an error in one line.

    Raises:
        ConfigError: The policy cannot be traced.
    """
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")  # misses torchvision aloud
    level = registration.level
    registration.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own internals
        try:
            return trace()
        except Exception as error:  # each stage raises its own types
            reason = str(error).strip().partition("\n")[0][:200]
            raise ConfigError(f"export: torch.export cannot trace this policy: {type(error).__name__}: {reason}") from error
        finally:
            registration.setLevel(level)
