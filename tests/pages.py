"""The pages of the site and the README: their code blocks, what the comments before them demand, and how they are run.

Each block is fenced and has a language. `bash` and `python` blocks are run, all of a page one after the other in one empty
directory; a `python` or `yaml` block whose first line is `# NAME.py` or `# NAME.yaml` is written to that file; `text` and
`json` are not run. An HTML comment on the line before a block is for its tests:

    <!-- not run: REASON -->           its commands are only parsed; CONTRIBUTING.md lists all of these
    <!-- needs: EXTRA -->              skipped where a package of this extra is missing
    <!-- short: OPTIONS -->            options added to the block's commands, to make them shorter
    <!-- exit code: N -->              what the block ends with; 0 if it is not given

`shell.sh` says what is added to every training command, and what `make` and `pip` do in a test.
"""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
SHELL: Final = Path(__file__).with_name("shell.sh")
PAGES: Final = [  # CHANGELOG.md has no commands
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
LANGUAGES: Final = {"bash", "python", "yaml", "json", "text"}
MARKS: Final = {"not run", "needs", "short", "exit code"}
PACKAGES: Final = {  # what an extra installs, by the name that is imported
    "atari": ("ale_py", "cv2"),
    "box2d": ("Box2D",),
    "minigrid": ("minigrid",),
    "mujoco": ("mujoco",),
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
    "optuna": ("optuna",),
    "play": ("pygame", "imageio"),
    "plot": ("matplotlib",),
    "ray": ("ray", "pyarrow"),
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
}
_FENCE: Final = re.compile(
    r"^(?P<marks>(?:[ ]*<!-- [^\n]* -->\n)*)(?P<indent>[ ]*)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)


def without_blocks(text: str) -> str:
    """The prose of a page."""
    return _FENCE.sub("", text)


@dataclass(frozen=True)
class Block:
    """A code block of a page.

    Attributes:
        page: Path below the repository's root.
        line: Number of its first line.
        language: As in the fence.
        text: The code.
        marks: What the comments before it say, by their names.
    """

    page: str
    line: int
    language: str
    text: str
    marks: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def file(self) -> str | None:
        """Name of the file that the block is, if it is one."""
        named = re.match(r"# ([\w./-]+\.(?:py|yaml))\n", self.text)
        return named[1] if named and self.language in ("python", "yaml") else None

    @property
    def commands(self) -> list[str]:
        """The commands of a bash block, without comments."""
        if self.language != "bash":
            return []
        lines = re.sub(r"<<'END'\n.*?^END$", "", self.text.replace("\\\n", " "), flags=re.M | re.S).splitlines()
        return [line for line in (line.partition("  #")[0].strip() for line in lines) if line and not line.startswith("#")]

    @property
    def missing(self) -> str | None:
        """How to install the first package that the block needs and that is not there."""
        for extra in re.findall(r"\w+", self.marks.get("needs", "")):
            if not all(importlib.util.find_spec(package) for package in PACKAGES[extra]):
                return f"pip install -e '.[{extra}]'"
        return None


def blocks_of(path: Path) -> list[Block]:
    """All code blocks of a page."""
    text = path.read_text(encoding="utf-8")
    blocks = []
    for found in _FENCE.finditer(text):
        marks = dict(re.findall(r"<!-- (.*?)(?:: (.*))? -->", found["marks"]))
        lines = [line.removeprefix(found["indent"]) for line in found["text"].splitlines(keepends=True)]
        line = text.count("\n", 0, found.start("text")) + 1
        blocks.append(Block(str(path.relative_to(ROOT)), line, found["language"], "".join(lines), marks))
    return blocks


BLOCKS: Final = {str(path.relative_to(ROOT)): blocks_of(path) for path in PAGES}


def all_blocks() -> Iterator[Block]:
    """Of all pages."""
    for blocks in BLOCKS.values():
        yield from blocks


def prepare(directory: Path, page: str) -> None:
    """Make a directory that of a newcomer who has typed `make fit` and copied the files that the page shows."""
    for name in ("configs", "examples"):
        link(directory / name, ROOT / name)
    for name in (".venv", "other"):  # two pages tell how to make these
        link(directory / name, Path(sys.prefix))
    for block in BLOCKS[page]:
        if block.file is not None:
            (directory / block.file).parent.mkdir(parents=True, exist_ok=True)
            (directory / block.file).write_text(block.text, encoding="utf-8")


def link(path: Path, target: Path) -> None:
    """Make a symbolic link, unless it is there."""
    if not path.exists():
        path.symlink_to(target)


def run(block: Block, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run a `bash` or `python` block in a directory that `prepare` has made."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "REPOSITORY": str(ROOT),
        "OMP_NUM_THREADS": "1",  # networks this small are fastest so, above all beside other tests
        "OPTIONS": block.marks.get("short", ""),
        "WANDB_MODE": "offline",
    }
    command = [sys.executable, "-W", "ignore", "-c", block.text]
    if block.language == "bash":
        command = ["bash", "-e", "-c", f". {shlex.quote(str(SHELL))}\n{block.text}"]
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)
