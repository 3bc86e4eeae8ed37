"""A checkpoint that is not whole is refused before anything of it is used, by the key that is at fault."""

import re
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from lit_ppo import CurveExport, GreedyEvaluation, PPOModule, RolloutDataModule, RunCheckpoint, StopWhenSolved, exit_codes
from lit_ppo.bridge.journal import to_text
from lit_ppo.callbacks.run_config import CONFIG_KEY
from lit_ppo.checkpoint_io import VerifiedCheckpointIO, read_checkpoint, write_checkpoint
from lit_ppo.errors import CheckpointError
from lit_ppo.resume_settings import saved_settings
from lit_ppo.saved_policy import load
from tests.test_cli import SMALL, Run, in_an_empty_directory, run  # noqa: F401

Damage = Callable[[dict[str, Any]], object]


def fit(max_epochs: int, ckpt_path: str | None = None) -> None:
    """A small run, in the working directory."""
    data = RolloutDataModule(num_envs=2, horizon=8, evaluation_envs=1, bridge="inprocess", report_dir=None)
    module = PPOModule(data.spec, minibatch_size=16, actor_hidden_sizes=[4], critic_hidden_sizes=[4], total_env_steps=160)
    trainer = Trainer(
        max_epochs=max_epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[GreedyEvaluation(num_episodes=1), StopWhenSolved(), CurveExport("curve.json"), RunCheckpoint("checkpoints")],
        plugins=[VerifiedCheckpointIO()],
    )
    try:
        trainer.fit(module, data, ckpt_path=ckpt_path)
    finally:
        data.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The checkpoint of a small run, as the command line would have written it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("run"))
        fit(2)
        return {**read_checkpoint("checkpoints/last.ckpt"), CONFIG_KEY: {}}


def bridge(checkpoint: dict[str, Any]) -> dict[str, Any]:
    state: dict[str, Any] = checkpoint["RolloutDataModule"]["bridge"]
    return state


FIRST = "policy.actor.torso.hidden.layers.0.weight"
DAMAGES: dict[str, tuple[Damage, str]] = {
    "no weights": (lambda c: c.pop("state_dict"), "expected 'state_dict', which is missing"),
    "one weight less": (lambda c: c["state_dict"].pop(FIRST), f"state_dict: expected '{FIRST}', which is missing"),
    "one weight more": (lambda c: c["state_dict"].update(x=torch.zeros(1)), "state_dict: 'x' is none of its keys"),
    "a weight of another shape": (
        lambda c: c["state_dict"].update({FIRST: torch.zeros(3, 3)}),
        rf"state_dict\.{FIRST}: expected a tensor of floating-point numbers of shape \(4, 4\), got 'torch.float32 \(3, 3\)'",
    ),
    "a weight that is text": (lambda c: c["state_dict"].update({FIRST: "x"}), f"{FIRST}: expected a tensor .* got 'x'"),
    "no optimizer": (lambda c: c.pop("optimizer_states"), "expected 'optimizer_states', which is missing"),
    "two optimizers": (lambda c: c["optimizer_states"].append({}), "optimizer_states: expected a list of 1"),
    "moments of a parameter less": (
        lambda c: c["optimizer_states"][0]["state"].pop(0),
        r"optimizer_states\[0\]\.state: expected 0, which is missing",
    ),
    "a moment of another shape": (
        lambda c: c["optimizer_states"][0]["state"][0].update(exp_avg=torch.zeros(1)),
        r"optimizer_states\[0\]\.state\.0\.exp_avg: expected a tensor",
    ),
    "no rate": (lambda c: c["optimizer_states"][0]["param_groups"][0].pop("lr"), r"param_groups\[0\]: expected 'lr'"),
    "a scheduler that the run has not": (lambda c: c["lr_schedulers"].append({}), "lr_schedulers: expected a list of 0"),
    "no loops": (lambda c: c.pop("loops"), "expected 'loops', which is missing"),
    "a loop that is a number": (lambda c: c["loops"].update(fit_loop=3), "loops.fit_loop: expected a mapping, got 3"),
    "no callbacks": (lambda c: c.pop("callbacks"), "expected 'callbacks', which is missing"),
    "one callback less": (lambda c: c["callbacks"].pop("CurveExport"), "callbacks: expected 'CurveExport', which is missing"),
    "a curve of text": (lambda c: c["callbacks"]["CurveExport"].update(steps=["x"]), r"CurveExport\.steps\[0\]: expected"),
    "no datamodule": (lambda c: c.pop("RolloutDataModule"), "expected 'RolloutDataModule', which is missing"),
    "no counter": (lambda c: c["RolloutDataModule"].pop("update"), "datamodule: expected 'update', which is missing"),
    "a counter below zero": (lambda c: c["RolloutDataModule"].update(update=-1), "datamodule.update: expected a whole number"),
    "no bridge": (lambda c: c["RolloutDataModule"].pop("bridge"), "datamodule: expected 'bridge', which is missing"),
    "more than belongs there": (lambda c: c["RolloutDataModule"].update(x=1), "datamodule: 'x' is none of its keys"),
    "too few statistics": (
        lambda c: c["RolloutDataModule"]["statistics"]["returns"].pop(),
        "statistics.returns: expected a list of 2",
    ),
    "a memory that the policy has not": (
        lambda c: c["RolloutDataModule"].update(policy_state=torch.zeros(2, 2)),
        "policy_state: expected NoneType",
    ),
    "no journal": (lambda c: bridge(c).pop("journal"), "datamodule.bridge: expected 'journal', which is missing"),
    "a seed less": (lambda c: bridge(c)["journal"]["seeds"].pop(), r"journal\.seeds: expected a list of 2"),
    "a seed that is none": (
        lambda c: bridge(c)["journal"].update(seeds=[-1, 0]),
        r"journal\.seeds\[0\]: expected a whole number",
    ),
    "a digest that is too large": (
        lambda c: bridge(c)["journal"].update(first_digests=[1 << 64, 0]),
        r"first_digests\[0\]: expected a whole number",
    ),
    "actions that are no text": (lambda c: bridge(c)["journal"].update(actions=[1, 2]), r"actions\[0\]: expected str, got 1"),
    "actions that are cut": (
        lambda c: bridge(c)["journal"].update(actions=[to_text(b"1234567"), ""]),
        r"journal\.actions\[0\]: expected whole items of 8 bytes, got 7 bytes",
    ),
    "text that is no bytes": (lambda c: bridge(c).update(rows="!"), r"bridge\.rows: expected base64"),
    "too few rows": (lambda c: bridge(c).update(rows=to_text(b"123")), r"bridge\.rows: expected 2 items of 16 bytes, got 3"),
    "digests of other actions": (
        lambda c: bridge(c)["journal"].update(actions=["", ""]),
        r"journal\.digests\[0\]: expected 0 items",
    ),
    "an action that is impossible": (
        lambda c: bridge(c)["journal"].update(actions=[to_text(b"\7" * 8), ""], digests=[to_text(bytes(8)), ""]),
        r"journal\.actions\[0\]: actions\[0\]: expected",
    ),
    "no version of Lightning": (
        lambda c: c.pop("pytorch-lightning_version"),
        "pytorch-lightning_version: expected a version, got None",
    ),
    "a weight that is not dense": (
        lambda c: c["state_dict"].update({FIRST: c["state_dict"][FIRST].to_sparse()}),
        rf"{FIRST}: expected a tensor .* got 'torch.float32 \(4, 4\), torch.sparse_coo on cpu'",
    ),
    "a weight without numbers": (
        lambda c: c["state_dict"].update({FIRST: c["state_dict"][FIRST].to("meta")}),
        rf"{FIRST}: expected a tensor .* got 'torch.float32 \(4, 4\), torch.strided on meta'",
    ),
    "betas of text": (
        lambda c: c["optimizer_states"][0]["param_groups"][0].update(betas=["x", "y"]),
        r"param_groups\[0\]\.betas\[0\]: expected float or int, got 'x'",
    ),
    "another kind of Adam": (
        lambda c: c["optimizer_states"][0]["param_groups"][0].update(amsgrad=True),
        r"param_groups\[0\]\.amsgrad: expected False, got True",
    ),
    "a curve with more steps than returns": (
        lambda c: c["callbacks"]["CurveExport"].update(steps=[1, 2], returns=[1.0]),
        r"CurveExport\.returns: expected a list of 2, got \[1\.0\]",
    ),
    "returns of other environments": (
        lambda c: c.update(lit_ppo_running_returns=torch.zeros(7)),
        r"lit_ppo_running_returns: expected a tensor of floating-point numbers of shape \(2,\)",
    ),
    "a length that is text": (lambda c: c.update(lit_ppo_run_env_steps="x"), "lit_ppo_run_env_steps: expected a whole number"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_checkpoint_that_is_not_whole_is_refused_with_its_key(damage: str, whole: dict[str, Any]) -> None:
    change, message = DAMAGES[damage]
    checkpoint = deepcopy(whole)
    change(checkpoint)
    write_checkpoint(checkpoint, "damaged.ckpt")
    with pytest.raises(CheckpointError, match=message):
        fit(3, "damaged.ckpt")


def test_checkpoint_that_is_whole_is_not_refused(whole: dict[str, Any]) -> None:
    write_checkpoint(whole, "whole.ckpt")
    fit(3, "whole.ckpt")
    assert read_checkpoint("checkpoints/last.ckpt")["RolloutDataModule"]["update"] == 3


def test_checkpoint_that_is_nested_deeply_is_refused_as_it_is_read() -> None:
    nested: list[Any] = []
    for _ in range(100):
        nested = [nested]
    write_checkpoint({"x": {"y": nested}}, "deep.ckpt")
    with pytest.raises(CheckpointError, match=r"^deep\.ckpt: expected a mapping that is nested at most 64 times$"):
        read_checkpoint("deep.ckpt")


def test_checkpoint_without_its_datamodule_ends_in_one_line_and_exit_code_5(run: Run) -> None:  # noqa: F811
    assert run(f"fit {SMALL} --trainer.logger=false").code == exit_codes.DONE
    checkpoint = read_checkpoint("runs/CartPole-v1/1/last.ckpt")
    del checkpoint["RolloutDataModule"]
    write_checkpoint(checkpoint, "damaged.ckpt")
    ended = run("fit --ckpt_path=damaged.ckpt --trainer.max_epochs=3")
    expected = "lit_ppo: error: the checkpoint: expected 'RolloutDataModule', which is missing\n"
    assert ended.code == exit_codes.CHECKPOINT and ended.err.endswith(expected)


SETTINGS: dict[str, tuple[Damage, str]] = {
    "settings that are a list": (lambda c: c.update({CONFIG_KEY: [1]}), f"{CONFIG_KEY}: expected a mapping, got"),
    "no section of the model": (lambda c: c[CONFIG_KEY].pop("model"), rf"{CONFIG_KEY}\.model: expected a mapping, got None"),
    "a setting less": (lambda c: c[CONFIG_KEY]["data"].pop("horizon"), r"\.data: expected 'horizon', which is missing"),
    "a setting more": (lambda c: c[CONFIG_KEY]["data"].update(x=1), r"\.data: 'x' is none of its keys"),
    "text for a number": (lambda c: c[CONFIG_KEY]["model"].update(gamma="0.9"), r"\.model\.gamma: expected float, got '0\.9'"),
    "a number for a switch": (lambda c: c[CONFIG_KEY]["model"].update(compile=1), r"\.model\.compile: expected bool, got 1"),
    "a word that is none": (lambda c: c[CONFIG_KEY]["data"].update(bridge="x"), r"\.data\.bridge: expected Literal"),
    "a list of text": (lambda c: c[CONFIG_KEY]["model"].update(actor_hidden_sizes=["4"]), r"actor_hidden_sizes: expected"),
    "a rule more": (lambda c: c[CONFIG_KEY]["data"]["contract"].update(x=1), r"\.data\.contract: expected"),
    "a callback's setting": (
        lambda c: c[CONFIG_KEY]["evaluation"].update(num_episodes=[]),
        r"evaluation\.num_episodes: expected",
    ),
    "no seed": (lambda c: c[CONFIG_KEY].pop("seed_everything"), f"{CONFIG_KEY}: expected 'seed_everything', which is missing"),
    **{
        f"no {section}": (lambda c, section=section: c[CONFIG_KEY].pop(section), f"expected '{section}', which is missing")
        for section in ("preset", "total_env_steps", "curve", "evaluation", "solved", "checkpoint")
    },
    "a length of text": (
        lambda c: c[CONFIG_KEY]["trainer"].update(max_epochs="x"),
        rf"{CONFIG_KEY}\.trainer\.max_epochs: expected int | None, got 'x'",
    ),
    "a name that is a number": (lambda c: c["hyper_parameters"].update({3: 4}), "hyper_parameters: expected names, got 3"),
    "no spaces": (lambda c: c["hyper_parameters"].pop("spec"), "hyper_parameters: expected 'spec', which is missing"),
    "spaces that are none": (
        lambda c: c["hyper_parameters"].update(spec={"env_id": 3}),
        r"hyper_parameters\.spec: env_id: expected",
    ),
    "a hyperparameter of another type": (
        lambda c: c["hyper_parameters"].update(update_epochs=1.5),
        r"hyper_parameters\.update_epochs: expected int, got 1\.5",
    ),
    "data of another type": (
        lambda c: c["datamodule_hyper_parameters"].update(env_id=3),
        r"datamodule_hyper_parameters\.env_id: expected str, got 3",
    ),
}


def test_settings_that_are_not_whole_are_refused_with_their_key_and_exit_code_5(run: Run) -> None:  # noqa: F811
    assert run(f"fit {SMALL} --trainer.logger=false").code == exit_codes.DONE
    last = "runs/CartPole-v1/1/last.ckpt"
    whole = read_checkpoint(last)
    for name, (change, message) in SETTINGS.items():
        checkpoint = deepcopy(whole)
        change(checkpoint)
        write_checkpoint(checkpoint, last)
        with pytest.raises(CheckpointError) as refused:
            saved_settings(Path(last))
        assert re.search(f"^the checkpoint's .*{message}", str(refused.value)), name
    ended = run(f"test --ckpt_path={last}")
    assert (ended.code, ended.out, ended.err) == (exit_codes.CHECKPOINT, "", f"lit_ppo: error: {refused.value}\n")


@pytest.mark.parametrize("size", [1 << 33, 1 << 62], ids=["more than memory", "more than an index"])
def test_sizes_that_no_policy_can_have_are_refused_when_it_is_used(size: int, run: Run) -> None:  # noqa: F811
    assert run(f"fit {SMALL} --trainer.logger=false").code == exit_codes.DONE
    last = "runs/CartPole-v1/1/last.ckpt"
    checkpoint = read_checkpoint(last)
    checkpoint["hyper_parameters"]["actor_hidden_sizes"] = [size, size]
    write_checkpoint(checkpoint, last)
    message = f"{last}: its hyper_parameters describe no policy that can be made here: "
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}"):
        load(last)
    for line in ("export --format=torch --out=policy.pt2", "play --num_episodes=1"):
        ended = run(f"{line} --ckpt_path={last}")
        assert ended.code == exit_codes.CHECKPOINT and ended.err.startswith(f"lit_ppo: error: {message}"), line
        assert ended.err.count("\n") == 1, line
