"""How many ranks there are: what torchrun and SLURM have started, and what the options of the Trainer say, must agree."""

from pathlib import Path

import pytest

from lit_ppo import elastic, exit_codes
from tests.test_cli import Run, run  # noqa: F401  a fixture

OF_TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
OF_SLURM = {"SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "x", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
TWO = "--trainer.devices=2 --trainer.strategy=ddp"


def test_what_torchrun_has_started_is_what_the_trainer_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    assert elastic.trainer_options() == {}
    for name, value in OF_TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert elastic.trainer_options() == {"devices": 2, "num_nodes": 2, "strategy": "ddp"}
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert elastic.trainer_options() == {}


@pytest.mark.parametrize(
    ("environment", "options", "message"),
    [
        (OF_TORCHRUN, "--trainer.devices=1", "expected 4 in all, the number of ranks that torchrun has started"),
        (OF_TORCHRUN, TWO + " --trainer.devices=3", "expected 4 in all, the number of ranks that torchrun has started"),
        (OF_SLURM | {"SLURM_NTASKS": "1"}, TWO, "expected 1 in all, the number of ranks that SLURM has started"),
        (OF_SLURM | {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1"}, TWO, "You set `devices=2` in Lightning"),
        (OF_SLURM | {"SLURM_NTASKS": "2"}, "", "You set `--ntasks=2` in your SLURM bash script"),
        ({}, TWO + "_spawn", "trainer.strategy: expected processes started anew (ddp), got start_method=spawn"),
        ({}, TWO + " --data.shards=3", "data.num_envs=8: expected a multiple of data.shards=3"),
        ({}, TWO + " --data.num_workers=3 --data.num_envs=6", "data.num_workers=3: expected a multiple of the number of ranks"),
    ],
)
def test_ranks_that_cannot_be_are_refused_before_any_is_started(
    environment: dict[str, str],
    options: str,
    message: str,
    run: Run,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    ended = run(f"fit {options}")
    assert ended.code == exit_codes.USAGE and message in ended.err
    assert ended.err.count("\n") == 1 and not list(tmp_path.iterdir())
