"""Checkpoints on disk: whole, verified, never unpickled; a save that fails harms nothing."""

import errno
import io
import os
import pickle
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_ppo import checkpoint_io, cli, exit_codes
from lit_ppo.checkpoint_io import VerifiedCheckpointIO, previous_of, read_checkpoint, sealed, verified, write_checkpoint
from lit_ppo.errors import CheckpointError
from lit_ppo.origin import KEY_NAME, tag_of

CONTENT = {"weights": torch.arange(4.0), "update": 7, "name": "first"}
OTHER = {"weights": torch.ones(4), "update": 8, "name": "second"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints" / "last.ckpt"


def names_in(directory: Path) -> set[str]:
    return {entry.name for entry in directory.iterdir()} - {KEY_NAME}


def is_same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return {**first, "weights": first["weights"].tolist()} == {**second, "weights": second["weights"].tolist()}


# -- what was written is what is read


def test_what_is_written_is_read_again_and_nothing_else_is_left(path: Path) -> None:
    write_checkpoint(CONTENT, path)
    assert is_same(read_checkpoint(path), CONTENT)
    assert names_in(path.parent) == {"last.ckpt"}


def test_file_is_an_ordinary_one_to_torch(path: Path) -> None:
    write_checkpoint(CONTENT, path)
    assert is_same(torch.load(path, weights_only=True), {**CONTENT, "lit_ppo_format": 3})


def test_checkpoint_before_is_kept_as_previous(path: Path) -> None:
    write_checkpoint(CONTENT, path)
    write_checkpoint(OTHER, path)
    assert is_same(read_checkpoint(path), OTHER)
    assert is_same(read_checkpoint(previous_of(path)), CONTENT)
    write_checkpoint(CONTENT, path)
    assert is_same(read_checkpoint(previous_of(path)), OTHER)
    assert names_in(path.parent) == {"last.ckpt", "last.previous.ckpt"}


def test_plugin_reads_what_it_wrote_whatever_it_is_asked_for(path: Path) -> None:
    plugin = VerifiedCheckpointIO()
    content = CONTENT | {"pytorch-lightning_version": "2.6.4"}
    plugin.save_checkpoint(dict(content), path)
    assert is_same(plugin.load_checkpoint(path, weights_only=False), content)
    plugin.remove_checkpoint(path)
    plugin.remove_checkpoint(path)
    assert not path.exists()


# -- damage


def test_every_flipped_bit_is_caught(path: Path) -> None:
    write_checkpoint({"update": 7}, path)
    data = path.read_bytes()
    assert verified(data, path) == data
    for position in range(len(data)):
        for bit in {position % 8, (position + 3) % 8}:
            damaged = bytearray(data)
            damaged[position] ^= 1 << bit
            with pytest.raises(CheckpointError):
                verified(bytes(damaged), path)


def test_checkpoint_cut_short_anywhere_is_caught(path: Path) -> None:
    write_checkpoint({"update": 7}, path)
    data = path.read_bytes()
    for length in range(len(data)):
        with pytest.raises(CheckpointError):
            verified(data[:length], path)
    with pytest.raises(CheckpointError):
        verified(data + b"\0", path)


def test_damage_is_named_with_the_path(path: Path) -> None:
    write_checkpoint(CONTENT, path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"last\.ckpt: corrupt: its bytes do not match their checksum"):
        read_checkpoint(path)


@pytest.mark.parametrize("content", [b"", b"no checkpoint", pickle.dumps({"update": 1}), b"PK\x05\x06" + bytes(18)])
def test_foreign_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "foreign.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"foreign\.ckpt: expected a checkpoint of lit_ppo, got a file without checksum"):
        read_checkpoint(tmp_path / "foreign.ckpt")


def test_checkpoint_of_plain_torch_is_refused(tmp_path: Path) -> None:
    torch.save(CONTENT, tmp_path / "foreign.ckpt")
    with pytest.raises(CheckpointError, match="without checksum"):
        read_checkpoint(tmp_path / "foreign.ckpt")


def test_checkpoint_that_is_not_there_is_named(path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"last\.ckpt: cannot be read: No such file or directory \(errno 2\)"):
        read_checkpoint(path)


class Malicious:
    """Makes a directory when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("variable", ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None])
def test_nothing_is_unpickled_even_if_the_checksum_is_right(
    variable: str | None, tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable is not None:
        monkeypatch.setenv(variable, "1")
    target = tmp_path / "made by a checkpoint"
    write_checkpoint({"update": 7, "more": Malicious(target)}, path)
    with pytest.raises(CheckpointError, match=r"last\.ckpt: expected plain data and tensors, got code, ") as caught:
        read_checkpoint(path)
    assert not target.exists()
    assert "weights_only" not in "".join(traceback.format_exception(caught.value))  # torch's advice to load it unsafely


def test_seal_covers_the_zip_structure(path: Path) -> None:
    """A second archive appended behind the first is what a zip reader would find."""
    write_checkpoint({"update": 7}, path)
    write_checkpoint({"update": 8}, path.with_name("other.ckpt"))
    joined = path.read_bytes() + path.with_name("other.ckpt").read_bytes()
    with pytest.raises(CheckpointError, match="corrupt"):
        verified(joined, path)


def test_sealed_bytes_without_their_comment_are_refused() -> None:
    with pytest.raises(AssertionError):
        sealed(b"no zip archive, and long enough to have an end record", Path())


# -- formats


def write_format(number: int | None, path: Path) -> None:
    """A checkpoint whose seal is right and whose format is another."""
    buffer = io.BytesIO()
    torch.save(CONTENT if number is None else {**CONTENT, "lit_ppo_format": number}, buffer)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(sealed(buffer.getvalue(), path.parent))


@pytest.mark.parametrize(("number", "said"), [(None, "1 of lit_ppo 0.1"), (1, "1 of lit_ppo 0.1"), (2, "2 of another lit_ppo")])
def test_checkpoint_of_another_format_is_refused_by_name(number: int | None, said: str, path: Path) -> None:
    write_format(number, path)
    with pytest.raises(CheckpointError) as refused:
        read_checkpoint(path)
    assert str(refused.value) == (
        f"{path}: format {said}, this version reads format 3; "
        f"continue or test it with {said[5:]}, or train again, in another checkpoint.dirpath"
    )


# -- a save that fails

CALLS = ["fsync", "replace", "link"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("call", CALLS)
def test_save_that_fails_is_loud_and_leaves_what_was_there(
    call: str, number: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(CONTENT, path)

    def fail(*args: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(CheckpointError) as caught:
        write_checkpoint(OTHER, path)
    monkeypatch.undo()
    assert str(caught.value) == f"{path}: cannot be written: {os.strerror(number)} (errno {number})"
    assert is_same(read_checkpoint(path), CONTENT)
    assert names_in(path.parent) == {"last.ckpt"}


@pytest.mark.parametrize("number_of_replace", [1, 2])
def test_save_that_fails_between_its_renames_leaves_a_good_file_under_each_name(
    number_of_replace: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(CONTENT, path)
    write_checkpoint(OTHER, path)
    calls = []
    replace = os.replace

    def fail(*args: Any) -> None:
        calls.append(args)
        if len(calls) == number_of_replace:
            raise OSError(errno.EIO, "Input/output error")
        replace(*args)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(CheckpointError, match="errno 5"):
        write_checkpoint({"weights": torch.zeros(1), "update": 9, "name": "third"}, path)
    monkeypatch.undo()
    assert is_same(read_checkpoint(path), OTHER)
    assert is_same(read_checkpoint(previous_of(path)), CONTENT if number_of_replace == 1 else OTHER)
    assert names_in(path.parent) == {"last.ckpt", "last.previous.ckpt"}


def test_what_does_not_read_back_never_takes_the_place_of_what_does(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(CONTENT, path)
    monkeypatch.setattr(Path, "read_bytes", lambda self: b"the disk lies")
    with pytest.raises(CheckpointError, match="does not read back"):
        write_checkpoint(OTHER, path)
    monkeypatch.undo()
    assert is_same(read_checkpoint(path), CONTENT)
    assert names_in(path.parent) == {"last.ckpt"}


def test_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"file/last\.ckpt: cannot be written: .* \(errno (17|20)\)"):
        write_checkpoint(CONTENT, tmp_path / "file" / "last.ckpt")


def test_file_and_directory_are_synced_before_and_after_the_rename(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    fsync, replace = os.fsync, os.replace

    def note_sync(descriptor: int) -> None:
        order.append("sync " + Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def note_replace(source: Any, target: Any) -> None:
        order.append(f"replace {Path(target).name}")
        replace(source, target)

    path.parent.mkdir()
    tag_of(b"", path.parent)  # the directory has its key already
    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_replace)
    write_checkpoint(CONTENT, path)
    assert order == [f"sync .last.ckpt.{os.getpid()}.tmp", "replace last.ckpt", "sync checkpoints"]


# -- by the command line

SMALL = """fit --data.num_envs 2 --data.horizon 16 --data.evaluation_envs 2 --model.minibatch_size 16 --model.update_epochs 1
    --evaluation.num_episodes 2 --trainer.max_epochs 2 --trainer.logger false --checkpoint.every_n_updates 1"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    """Runs a command in this process, in an empty directory; exit code and what it said."""

    def call(line: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["lit_ppo", *line.split()])
        capfd.readouterr()
        try:
            cli.main()
        except SystemExit as ended:
            return int(ended.code or 0), capfd.readouterr().err
        return 0, capfd.readouterr().err

    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield call
    torch.set_num_threads(threads)


def test_fallback_to_the_previous_checkpoint_is_announced(run: Any) -> None:
    last = Path("runs/CartPole-v1/1/last.ckpt")
    assert run(SMALL) == (exit_codes.DONE, "")
    data = bytearray(last.read_bytes())
    data[1000] ^= 1
    last.write_bytes(data)
    code, err = run("fit --ckpt_path last --trainer.max_epochs 3")
    assert code == exit_codes.DONE
    assert err.splitlines()[0] == (
        f"{last}: corrupt: its bytes do not match their checksum; falling back to {previous_of(last)}"
    )
    assert read_checkpoint(last)["RolloutDataModule"]["update"] == 3
    for path in (last, previous_of(last)):
        path.write_bytes(b"gone")
    code, err = run("fit --ckpt_path last")
    assert code == exit_codes.CHECKPOINT and err.count("\n") == 1 and "without checksum" in err


def test_checkpoint_of_another_format_is_no_reason_to_fall_back(run: Any) -> None:
    last = Path("runs/CartPole-v1/1/last.ckpt")
    assert run(SMALL) == (exit_codes.DONE, "")
    write_format(4, last)
    code, err = run("fit --ckpt_path last")
    assert code == exit_codes.CHECKPOINT and err.count("\n") == 1
    assert err.startswith(f"lit_ppo: error: {last}: format 4 ")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_run_that_cannot_save_ends_with_exit_code_5(number: int, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(SMALL)[0] == exit_codes.DONE
    before = Path("runs/CartPole-v1/1/last.ckpt").read_bytes()

    def fail(*args: Any) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_io.os, "fsync", fail)
        code, err = run("fit --ckpt_path last --trainer.max_epochs 3")
    assert code == exit_codes.CHECKPOINT
    assert f"cannot be written: {os.strerror(number)} (errno {number})" in err
    assert "Traceback" not in err
    assert Path("runs/CartPole-v1/1/last.ckpt").read_bytes() == before
    assert not list(Path("runs").rglob(".*.tmp"))
