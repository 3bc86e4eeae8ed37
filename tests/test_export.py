"""Exported policies compute what the policy does, for every kind of space, and nothing else is ever written."""

import io
import json
from typing import Any

import numpy as np
import pytest
import torch

from lit_ppo.bridge.client import EnvBridge
from lit_ppo.bridge.settings import BridgeSettings, EnvironmentSettings
from lit_ppo.errors import ConfigError
from lit_ppo.export import METADATA_KEY, Arrays, ExportedPolicy, Format, Visited, export
from lit_ppo.normalization import Moments
from lit_ppo.ppo_settings import PPOSettings
from lit_ppo.spaces import spec_from_json
from tests.specs import policy_of

ANYTHING = "tests.toy_envs:Anything-v0"
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "vector": ({}, {"normalize_observations": True}),
    "image_lstm": ({"env_kwargs": {"observation": "image"}}, {"memory": "lstm", "memory_size": 8}),
    "masked_gru": (
        {"env_kwargs": {"observation": "nested", "masked": True}, "action_mask": "info:possible"},
        {"memory": "gru", "memory_size": 8, "normalize_observations": True},
    ),
    "multi_discrete": ({"env_kwargs": {"action": "multi_discrete"}}, {"shared_torso": True, "critic_hidden_sizes": (8,)}),
    "multi_binary_lstm": ({"env_kwargs": {"action": "multi_binary"}}, {"memory": "lstm", "memory_size": 8}),
    "box": ({"env_kwargs": {"action": "box"}}, {"gsde": True}),
}


def visited(name: str, num_states: int = 60) -> tuple[ExportedPolicy, Visited]:
    environment, settings = CASES[name]
    processes = BridgeSettings(bridge="inprocess")
    seed_of = lambda env, episode: 10 * env + episode  # noqa: E731
    with EnvBridge(EnvironmentSettings(ANYTHING, **environment), 3, seed_of, settings=processes) as bridge:
        policy = policy_of(bridge.spec, PPOSettings(actor_hidden_sizes=(8,), **settings))
        torch.nn.init.normal_(policy.actor.head.weight, generator=torch.Generator().manual_seed(1))  # else all is near 0
        if policy.observation_normalizer is not None:
            for moments in policy.observation_normalizer.leaves:
                shape = moments.mean.shape
                moments.replace(Moments(*(torch.full(size, 3.0, dtype=torch.float64) for size in ((), shape, shape))))
        exported = ExportedPolicy(policy, bridge.spec, "clip")
        return exported, exported.visit(bridge, num_states)


def run_file(contents: bytes, form: Format, exported: ExportedPolicy, inputs: Arrays) -> tuple[list[Any], dict[str, Any]]:
    """Outputs of a file, and its metadata, by what a stranger to lit_ppo would use."""
    if form == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(contents)
        metadata = session.get_modelmeta().custom_metadata_map[METADATA_KEY]
        return session.run(None, inputs), json.loads(metadata)
    extra = {"lit_ppo.json": ""}
    program = torch.export.load(io.BytesIO(contents), extra_files=extra)
    return [part.detach().numpy() for part in program.module()(*exported.arguments(inputs))], json.loads(extra["lit_ppo.json"])


@pytest.mark.parametrize("form", ["torch", "onnx"])
@pytest.mark.parametrize("name", CASES)
def test_exported_policy_of_any_space_acts_as_the_policy_for_any_number_of_rows(name: str, form: Format) -> None:
    if form == "onnx":
        for library in ("onnx", "onnxruntime", "onnxscript"):
            pytest.importorskip(library, reason="pip install -e '.[onnx]'")
    exported, seen = visited(name)
    contents = export(exported, seen, form)
    for rows in (1, 7):
        outputs, metadata = run_file(contents, form, exported, {key: array[:rows] for key, array in seen.inputs.items()})
        assert np.allclose(outputs[1], seen.outputs[:rows], atol=1e-5)
        assert len(outputs) == (2 if seen.states is None else 3)
    assert spec_from_json(metadata["spec"]) == exported.spec and metadata["contract"]["check_membership"] == "warn"
    assert [entry["name"] for entry in metadata["inputs"]] == list(seen.inputs)


def test_program_that_computes_something_else_is_refused() -> None:
    exported, seen = visited("vector")
    wrong = seen._replace(outputs=seen.outputs + np.float32(1e-3))
    with pytest.raises(ConfigError, match=r"^export: outputs\[0, 0\]: expected .* nothing is written"):
        export(exported, wrong, "torch")
