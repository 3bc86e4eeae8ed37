"""`python -m tests.other_release`: a small run for each private name of torch and Lightning, as if a release lacked that name.

The files that use private names are read with the name replaced, so that only they miss it. The outcomes are printed as JSON.
"""

import json
import os
import re
import sys
import tempfile
import warnings
from hashlib import sha256
from importlib.abc import Loader
from importlib.machinery import PathFinder, SourceFileLoader
from pathlib import Path

from lightning.pytorch.callbacks import EarlyStopping  # before the forks, which have nothing heavy left to import

FILES = {"lit_ppo.compat_torch": "compat_torch.py", "lit_ppo.compat_lightning": "compat_lightning.py"}
OWN = r"^(?:def |class )?(_\w+)"  # at the beginning of a line


def private_names() -> list[str]:
    """Those of other packages in the files."""
    sources = [Path(__file__).parents[1].joinpath("lit_ppo", file).read_text(encoding="utf-8") for file in FILES.values()]
    names = {name for source in sources for name in re.findall(r"(?<!\w)_[a-zA-Z]\w*", source)}
    return sorted(names - {name for source in sources for name in re.findall(OWN, source, re.MULTILINE)})


class Renamed(SourceFileLoader):
    """Reads a file with another name in the place of `missing`."""

    missing = ""

    def get_data(self, path: str) -> bytes:
        if path.endswith(".pyc"):
            raise OSError
        return re.sub(rf"\b{self.missing}\b".encode(), b"_of_another_release", super().get_data(path))

    def set_data(self, *arguments: object, **settings: object) -> None:
        """Nothing: what is compiled from this source must not be found by other processes."""


class Finder:
    """Finds the files with a name renamed."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> object:
        spec = PathFinder.find_spec(name, path) if name in FILES else None  # type: ignore[arg-type]
        if spec is not None and spec.origin is not None:
            loader: Loader = Renamed(name, spec.origin)
            spec.loader = loader
        return spec


def outcome(missing: str) -> str:
    """What a run leaves that trains, evaluates, is saved and resumed, without the name: a digest of its parameters."""
    Renamed.missing = missing
    sys.meta_path.insert(0, Finder)  # type: ignore[arg-type]
    from lit_ppo import compat_lightning
    from lit_ppo.callbacks.greedy_evaluation import GreedyEvaluation
    from lit_ppo.callbacks.run_checkpoint import RunCheckpoint
    from tests.runs import bare_trainer, fit, small_data, small_module

    assert isinstance(compat_lightning.__loader__, Renamed)
    with tempfile.TemporaryDirectory() as directory:
        for updates, ckpt_path in ((1, None), (2, f"{directory}/last.ckpt")):
            callbacks = [
                RunCheckpoint(directory),
                GreedyEvaluation(every_env_steps=1, num_episodes=1),
                EarlyStopping("eval/return", patience=100),
            ]
            data = small_data(bridge="inprocess")
            module = small_module(normalize_observations=True, total_env_steps=40)
            fit(updates, *callbacks, module=module, data=data, ckpt_path=ckpt_path)
    alone = bare_trainer(1, strategy="ddp", devices=1)
    assert compat_lightning.unfit_for_ranks(alone) is None and compat_lightning.rank_strategy_of(alone) is alone.strategy
    compat_lightning.end_with_lost_ranks()
    digest = sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def in_a_fork(missing: str) -> str:
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            warnings.simplefilter("ignore")
            text = outcome(missing)
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        os.write(writing, text.encode()[:4096])
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        text = pipe.read().decode()
    os.waitpid(pid, 0)
    return text


if __name__ == "__main__":
    print(json.dumps({name: in_a_fork(name) for name in sys.argv[1:] or ["nothing", *private_names()]}))
