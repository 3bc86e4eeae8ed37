"""A checkpoint from elsewhere does not decide which programs, paths and code a run has, and how it is guarded."""

import os
import re
import shutil
from pathlib import Path
from typing import Any, Final

import pytest

from lit_ppo import RolloutDataModule, exit_codes
from lit_ppo.callbacks.run_config import CONFIG_KEY
from lit_ppo.checkpoint_io import is_of_its_directory, read_checkpoint, write_checkpoint
from lit_ppo.commands.train import LitPPOCLI
from lit_ppo.compat_lightning import option_names, parser_of
from lit_ppo.errors import ConfigError
from lit_ppo.foreign_settings import FREE, GUARDED, refuse_foreign
from lit_ppo.origin import KEY_NAME
from lit_ppo.resume_settings import _SECTIONS_OF_A_RUN, _TRAINER_KEYS_OF_A_RUN
from tests.test_cli import SMALL, Run, in_an_empty_directory, run, shared_run  # noqa: F401

WRITTEN: Final = Path("here/x.ckpt")
# Of each guarded option a value that is not for a foreign checkpoint to decide.
HOSTILE: Final[dict[str, Any]] = {
    "data.env_id": "evil:make",
    "data.env_kwargs": {"xml_file": "/tmp/evil.xml"},
    "data.wrappers": ["atari", "evil.Wrapper"],
    "data.env_path": ["/tmp"],
    "model.torso": {"class_path": "evil.Torso", "init_args": {}},
    "model.optimizer": {"class_path": "evil.Optimizer", "init_args": {}},
    "model.lr_scheduler": {"class_path": "evil.Scheduler", "init_args": {}},
    "model.loss": "evil.loss",
    "trainer.logger": {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "{run}/../../etc"}},
    "data.python": "/tmp/evil",
    "data.worker_env": ["AWS_SECRET_ACCESS_KEY"],
    "data.worker_cwd": "/home",
    "data.report_dir": "/etc",
    "curve.path": "{run}/last.ckpt",
    "curve.link": "lit_ppo/__init__.py",
    "checkpoint.dirpath": "/home",
    "data.bridge": "inprocess",
    "data.sandbox": "none of the levels",
    "data.sandbox_read": ["/home"],
    "data.sandbox_write": ["/home"],
    "data.rlimits": {"core": 1 << 30},
    "data.contract.check_membership": "off",
}


def nested(option: str, value: Any) -> dict[str, Any]:
    for name in reversed(option.split(".")):
        value = {name: value}
    return value  # type: ignore[no-any-return]


def refuse(path: Path, saved: dict[str, Any], typed: dict[str, Any] | None = None) -> None:
    refuse_foreign(path, saved, typed or {}, is_own=is_of_its_directory(path))


@pytest.fixture
def foreign() -> Path:
    """A checkpoint of another directory."""
    write_checkpoint({}, WRITTEN)
    Path("there").mkdir()
    return Path(shutil.copy(WRITTEN, "there"))


def test_every_option_that_a_checkpoint_can_set_is_classified_once() -> None:
    found: set[str] = set()

    class Listing(LitPPOCLI):
        def parse_arguments(self, parser: Any, args: Any) -> None:
            found.update(name.removeprefix("--").rstrip("+") for name in option_names(parser_of(self, None)))
            raise InterruptedError

    with pytest.raises(InterruptedError):
        Listing(args=[], run=False)
    of_trainer = {f"trainer.{key}" for key in _TRAINER_KEYS_OF_A_RUN}
    taken = {
        option
        for option in found
        if (option.partition(".")[0] in _SECTIONS_OF_A_RUN or option in of_trainer) and not re.search(r"\.help$| ", option)
    } - {"model", "data", "data.contract", "evaluation", "solved", "curve", "checkpoint"}
    linked = {"model.seed", "model.total_env_steps", "data.seed"}
    assert taken | linked == FREE | GUARDED.keys() and not FREE & GUARDED.keys()
    assert GUARDED.keys() == HOSTILE.keys()


@pytest.mark.parametrize("option", HOSTILE)
def test_guarded_setting_of_a_foreign_checkpoint_is_refused_unless_typed_or_trusted(option: str, foreign: Path) -> None:
    saved = nested(option, HOSTILE[option])
    with pytest.raises(ConfigError, match="no run of its directory wrote it") as refused:
        refuse(foreign, saved)
    assert f"it sets {option}=" in str(refused.value) and "--trust_checkpoint=true" in str(refused.value)
    refuse_foreign(foreign, saved, {}, is_own=True)
    refuse(foreign, saved, saved)  # typed again
    refuse(foreign, saved, nested(option, None))  # typed otherwise
    refuse(WRITTEN, saved)  # its own


def test_rest_of_a_setting_that_was_typed_in_part_is_refused_as_well(foreign: Path) -> None:
    saved = nested("model.torso", {"class_path": "mine.Torso", "init_args": {"width": 8, "weights": "/tmp/evil.pt"}})
    typed = {"class_path": "mine.Torso", "init_args": {"width": 8}}
    with pytest.raises(ConfigError, match=r"model\.torso"):
        refuse(foreign, saved, nested("model.torso", typed))
    typed["init_args"] = {"weights": "mine.pt"}
    refuse(foreign, saved, nested("model.torso", typed))
    with pytest.raises(ConfigError, match=r"model\.own"):  # an option of a user's module
        refuse(foreign, nested("model.own", "/tmp/evil.pt"))
    refuse(foreign, nested("model.own", [1, "word", None]))


def test_harmless_settings_are_taken_from_anywhere(foreign: Path) -> None:
    saved = {
        "data": {"env_id": "ALE/Pong-v5", "env_kwargs": {"obs_type": "ram"}, "wrappers": ["atari"], "sandbox": "strict"},
        "curve": {"path": "{run}/curve.json", "link": "data/rl/ppo_{env}_trainlog.json"},
        "model": {"torso": None, "gamma": 0.9},
    }
    refuse(foreign, saved)


def test_checkpoint_is_its_directorys_own_only_where_it_was_written(foreign: Path) -> None:
    """Neither a file that is brought there, nor a directory that is copied with its key, nor a changed file."""
    assert is_of_its_directory(WRITTEN) and not is_of_its_directory(foreign)
    os.symlink(WRITTEN.resolve(), "there/link.ckpt")
    assert is_of_its_directory(Path("there/link.ckpt"))
    shutil.copytree("here", "copied")  # with modes and times, as an archive keeps them
    assert Path("copied", KEY_NAME).read_bytes() == Path("here", KEY_NAME).read_bytes()
    assert not is_of_its_directory(Path("copied/x.ckpt"))
    write_checkpoint({}, Path("copied/y.ckpt"))
    assert is_of_its_directory(Path("copied/y.ckpt")) and not is_of_its_directory(Path("copied/x.ckpt"))
    data = bytearray(WRITTEN.read_bytes())
    data[40] ^= 1
    Path("here/changed.ckpt").write_bytes(data)
    assert not is_of_its_directory(Path("here/changed.ckpt"))
    Path("here").rename("moved")
    assert is_of_its_directory(Path("moved/x.ckpt"))


def test_key_that_others_can_read_is_none() -> None:
    write_checkpoint({}, WRITTEN)
    key = WRITTEN.with_name(KEY_NAME)
    assert key.stat().st_mode & 0o777 == 0o600
    key.chmod(0o644)
    assert not is_of_its_directory(WRITTEN)
    write_checkpoint({}, WRITTEN)
    assert key.stat().st_mode & 0o777 == 0o600 and is_of_its_directory(WRITTEN)


def test_every_command_refuses_a_foreign_checkpoint_and_takes_its_own(run: Run, tmp_path: Path) -> None:  # noqa: F811
    """The environment processes of the checkpoint's run print; a foreign one may not name the directory for their reports."""
    assert run(f"fit {SMALL} --run=a --data.report_dir={tmp_path}/reports --trainer.logger=false").code == exit_codes.DONE
    own = "runs/CartPole-v1/a/last.ckpt"
    shutil.copy(own, "foreign.ckpt")
    commands = (
        "fit --trainer.max_epochs=3",
        "test --data.test_episodes=2",
        "validate --data.validation_episodes=2",
        "play --record=videos --num_episodes=1",
        "export --format=torch --out=a.pt2",
        "rollout export --out=a.json --steps=2",
    )
    for line in commands:
        ended = run(f"{line} --ckpt_path=foreign.ckpt")
        assert (ended.code, ended.out) == (exit_codes.USAGE, ""), line
        assert ended.err.count("\n") == 1 and f"it sets data.report_dir='{tmp_path}/reports'" in ended.err, ended.err
    for line in (commands[1], commands[-1]):
        assert run(f"{line} --ckpt_path={own}").code == exit_codes.DONE
        assert run(f"{line} --ckpt_path=foreign.ckpt --trust_checkpoint=true").code == exit_codes.DONE
    assert run(f"{commands[1]} --ckpt_path=foreign.ckpt --data.report_dir=null").code == exit_codes.DONE
    assert run(f"{commands[0]} --ckpt_path={own}").code == exit_codes.DONE
    assert "trust_checkpoint" not in read_checkpoint(own)[CONFIG_KEY]


def test_datamodule_from_a_foreign_checkpoint_asks_for_what_it_may_not_decide() -> None:
    settings = dict(RolloutDataModule(report_dir="/etc").hparams)
    content = {"datamodule_hyper_parameters": settings, "pytorch-lightning_version": "2.6.6", "state_dict": {}}
    write_checkpoint(content, WRITTEN)
    Path("there").mkdir()
    foreign = shutil.copy(WRITTEN, "there")
    assert RolloutDataModule.load_from_checkpoint(WRITTEN).report_dir == "/etc"
    with pytest.raises(ConfigError, match=r"it sets data\.report_dir='/etc'"):
        RolloutDataModule.load_from_checkpoint(foreign)
    assert RolloutDataModule.load_from_checkpoint(foreign, report_dir=None).report_dir is None
    assert RolloutDataModule.load_from_checkpoint(foreign, trust_checkpoint=True).report_dir == "/etc"
