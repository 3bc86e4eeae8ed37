"""README and pages: every command is parsed, the README's are run; the slow tests run all, `tests/pages.py` says how.

`-m slow -k docs/start.md` runs one page.
"""

import ast
import os
import pydoc
import re
import shlex
import subprocess
import sys
import tomllib
from importlib import import_module
from operator import attrgetter
from pathlib import Path

import pytest

import lit_ppo
from benchmarks.learning import reproduce
from benchmarks.learning.rows import read_row
from lit_ppo import cli, exit_codes
from lit_ppo.presets import all_presets
from tests import pages
from tests.pages import BLOCKS, LANGUAGES, MARKS, ROOT, Block, all_blocks

README = {block.line: block for block in BLOCKS["README.md"]}
TEXTS = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in pages.PAGES}
FITS = sorted({(command, block.missing) for block in all_blocks() for command in block.commands if "lit_ppo fit" in command})
OF_A_CLASS = {  # options of a class that another option names
    "trainer.logger.save_dir",
    "trainer.logger.project",
    "model.torso.width",
    "model.optimizer.weight_decay",
    "model.optimizer.lr",
    "model.lr_scheduler.T",  # T_max
    "model.lr_scheduler.monitor",
    "model.momentum",
}
WITH_OPTIONS_OF_OTHERS = ("benchmarks/README.md", "docs/details.md", "docs/coming-from.md")
SECTIONS = "data|model|checkpoint|trainer|solved|curve|progress|evaluation|interrupt"
NO_OPTIONS = {  # named in the texts like an option
    *("data.py", "curve.py", "curve.json", "evaluation.py", "checkpoint.py"),
    *("trainer.callback_metrics", "trainer.logged_metrics", "trainer.save_checkpoint", "model.total_env_steps"),
    *("before", "nodes", "nnodes"),  # of a benchmark, Slurm and torchrun
    "trainer.logger.tracking_uri",  # of a logger whose package may be missing
}
# -- where the names in the texts come from
FOREIGN = {"PPO.load"}  # of Stable-Baselines3
FOREIGN_FILES = {
    "ppo.py",
    "ppo_atari.py",
    "ppo_continuous_action.py",
    "torch.py",
    "config.yaml",
}  # CleanRL's, a user's, a run's
OBJECTS = {  # that are not lit_ppo's, by what the texts call them
    "Process": "multiprocessing.Process",
    "Tuner": "lightning.pytorch.tuner.Tuner",
    "env": "gymnasium.Env",
    "module": "lit_ppo.PPOModule",
    "self": "lit_ppo.PPOModule gymnasium.Env",
    "trainer": "lightning.pytorch.Trainer",
}
SHORT = "--total_env_steps=256 --evaluation.num_episodes=1"  # one update


@pytest.fixture(autouse=True)
def newcomers_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the configs and the files of all pages, and the venv activated."""
    monkeypatch.chdir(tmp_path)
    for page in BLOCKS:
        pages.prepare(tmp_path, page)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.syspath_prepend(tmp_path)


def shell(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, shell=True, capture_output=True, text=True, check=False)


def parsed(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command of the shell in this process."""
    monkeypatch.setattr(sys, "argv", ["lit_ppo", *shlex.split(line.partition(" > ")[0])[3:]])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code


# -- what stands in the pages


def test_every_block_has_a_language_and_known_marks() -> None:
    for page, text in TEXTS.items():
        fences = re.findall(r"^ *```(\w*)", text, re.MULTILINE)
        assert len(fences) == 2 * len(BLOCKS[page]), f"{page}: a fence that is not read as a block"
    for block in all_blocks():
        assert block.language in LANGUAGES, block
        assert block.marks.keys() <= MARKS, block
    assert sum(len(block.commands) for block in all_blocks()) > 80


def test_every_block_that_is_not_run_is_listed_with_its_reason() -> None:
    listed = TEXTS["CONTRIBUTING.md"].partition("| page | what is not run | reason |\n")[2].splitlines()[1:]
    unrun = [
        f"| {block.page} | `{block.commands[0]}` | {block.marks['not run']} |"
        for block in all_blocks()
        if "not run" in block.marks
    ]
    assert listed == unrun


def test_extras_that_pages_install_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named = {name for text in TEXTS.values() for names in re.findall(r"'\.\[([\w,]+)\]'", text) for name in names.split(",")}
    assert named - {"EXTRA"} <= extras.keys()
    assert pages.PACKAGES.keys() <= extras.keys()


def test_targets_of_make_exist() -> None:
    """Those of a block, and those in the text."""
    typed = [command.partition("#")[0] for block in all_blocks() for command in block.commands if command.startswith("make ")]
    typed += [line for text in TEXTS.values() for line in re.findall(r"`(make [a-z -]+)`", text)]
    targets = {word for line in typed for word in line.split()[1:]}
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {"fit", "test", "docs"} <= targets <= known


def test_options_in_the_texts_exist(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for command in (
        "fit",
        "check-env",
        "replay",
        "rollout export",
        "rollout check",
        "play",
        "export",
        "presets",
        "runs",
        "plot",
    ):
        parsed(f"python -m lit_ppo {command} --help", monkeypatch)
    helped = capsys.readouterr().out + reproduce.command_parser().format_help()
    text = "\n".join(text for page, text in TEXTS.items() if page not in WITH_OPTIONS_OF_OTHERS)
    named = set(re.findall(r"(?<![\w-])--([a-z_]+(?:\.[a-z_]+)*)(?![\w-])", text)) - {"help", "print_config", "version"}
    named |= set(re.findall(rf"`((?:{SECTIONS})\.[a-z_]+(?:\.[a-z_]+)*)[`=]", text))
    unknown = {name for name in named if f"--{name} " not in helped and not name.startswith("data.env_kwargs.")} - NO_OPTIONS
    assert unknown <= OF_A_CLASS


def spans(pattern: str) -> list[tuple[str, str]]:
    """Page and text of each piece of inline code that matches."""
    found = []
    for page in pages.PAGES:
        for text in re.findall(r"`([^`\n]+)`", pages.without_blocks(page.read_text(encoding="utf-8"))):
            if match := re.fullmatch(pattern, text):
                found.append((str(page.relative_to(ROOT)), match[1]))
    return found


PACKAGE = [
    import_module(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
    for path in (ROOT / "lit_ppo").rglob("*.py")
    if path.name != "__main__.py"
]


def resolves(name: str) -> bool:
    """Whether a dotted name is that of something in a file of the package, in an installed module or in `OBJECTS`."""
    first, _, rest = name.partition(".")
    if any(pydoc.locate(f"{each}.{rest}") for each in OBJECTS.get(first, first).split()):
        return True
    for module in PACKAGE:
        try:
            attrgetter(name)(module)
        except AttributeError:
            continue
        return True
    return False


def test_names_in_the_texts_are_those_of_something() -> None:
    options_and_files = re.compile(rf"({SECTIONS}|contract)\..*|.*\.(py|json|yaml|txt|md|ckpt|cff)")
    named = {
        pair for pair in spans(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+)(?:\(.*\))?") if not options_and_files.fullmatch(pair[1])
    }
    assert len(named) > 50
    assert {(page, name) for page, name in named if name not in FOREIGN and not resolves(name)} == set()


def test_files_in_the_texts_exist() -> None:
    own = [
        path
        for folder in ("benchmarks", "configs", "docs", "examples", "lit_ppo", "tests")
        for path in (ROOT / folder).rglob("*")
    ]
    paths = {f"/{path.relative_to(ROOT)}" for path in [*own, *ROOT.glob("*.*")]}
    named = {
        (page, name)
        for page, name in spans(r"([\w./-]+\.(?:py|md|yaml|sh|toml|txt|cff))(?:::\w+)?")
        if name not in FOREIGN_FILES
    }
    assert len(named) > 150
    assert {(page, name) for page, name in named if not any(path.endswith(f"/{name}") for path in paths)} == set()


def test_name_that_is_gone_is_found() -> None:
    for name in ("PPOModule._run_passes", "update.minibatch_losses", "Policy.acts", "torch.Generators", "worker._PREVIOUS"):
        assert not resolves(name)


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    """`mkdocs` takes a page that is not in it for a mistake."""
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = set(re.findall(r"^ +- (?:\w+: )?([\w/-]+\.md)$", settings, re.MULTILINE))
    written = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert written <= listed


def test_every_public_name_is_in_the_reference() -> None:
    names = re.findall(r"^::: lit_ppo\.(\w+)$|members: \[(.+)\]$", TEXTS["docs/reference/api.md"], re.MULTILINE)
    assert {*lit_ppo.__all__} - {"__version__"} <= {word for pair in names for word in re.findall(r"\w+", " ".join(pair))}


def test_tests_that_guarantees_name_exist_and_are_marked_if_slow() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`( \(slow\))?", TEXTS["docs/guarantees.md"])
    assert len(named) > 35
    for file, test, slow in named:
        text = (ROOT / file).read_text(encoding="utf-8")
        found = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef) and node.name == test]
        marks = [ast.unparse(decorator) for node in found for decorator in node.decorator_list]
        is_slow = "pytest.mark.slow" in marks or "\npytestmark = [pytest.mark.slow" in text
        assert len(found) == 1 and bool(slow) == is_slow, f"{file}::{test}"


@pytest.mark.parametrize("block", [block for block in all_blocks() if block.language == "python"], ids=str)
def test_python_compiles_and_imports_what_exists(block: Block) -> None:
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("lit_ppo"):
            assert all(hasattr(import_module(node.module), alias.name) for alias in node.names)


# -- commands


@pytest.mark.parametrize(("command", "missing"), FITS, ids=[command[20:] for command, _ in FITS])
def test_options_of_a_training_command_exist(
    command: str, missing: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if missing and "trainer.logger" in command:  # whose options are known where it is installed
        pytest.skip(missing)
    if "--ckpt_path" in command or command.endswith("--help") or "--config my.yaml" in command:
        pytest.skip("needs what a command before it has written; test_commands_of_a_page_run runs it")
    parsed(command if "--print_config" in command else f"{command} --print_config", monkeypatch)
    assert capsys.readouterr().out.startswith("# lightning.pytorch")


def test_options_of_every_other_command_exist() -> None:
    parser = cli.command_parser()
    commands = [command for block in all_blocks() for command in block.commands if command.startswith("python -m lit_ppo ")]
    others = [
        words for command in commands if (words := shlex.split(command)[3:])[0] not in ("fit", "test", "validate", "--help")
    ]
    assert {words[0] for words in others} == {
        "check-env",
        "export",
        "play",
        "plot",
        "presets",
        "replay",
        "rollout",
        "runs",
    }
    for words in others:
        parser.parse_args(words)


def test_rows_of_every_reproduction_exist() -> None:
    program = "python -m benchmarks.learning.reproduce "
    commands = [command for block in all_blocks() for command in block.commands if command.startswith(program.strip())]
    assert commands
    for command in commands:
        options = reproduce.command_parser().parse_args(shlex.split(command)[3:])
        assert all(read_row(options.rows_dir / f"{name}.yaml") for name in options.rows)


def test_presets_that_pages_name_exist() -> None:
    named = set(re.findall(r"--preset=([\w-]+)", "".join(TEXTS.values()))) - {"NAME", "none"}
    assert named <= {preset.name for preset in all_presets()}


# -- the README, in the quick tests


def test_summary_in_the_readme_is_what_a_run_prints() -> None:
    """Its numbers are another machine's."""
    printed = shell(f"python -m lit_ppo fit {SHORT}").stdout.splitlines()
    [shown] = [block.text.splitlines() for block in README.values() if "checkpoint: " in block.text]
    assert (printed[0], printed[-3:]) == (shown[0], shown[-3:])


def test_readmes_commands_work_one_after_the_other() -> None:
    """The run as the page has it is a slow test; here it is one of CartPole, and each other command is shortened by itself."""
    typed = [command for block in README.values() for command in block.commands if command.startswith("python -m lit_ppo ")]
    commands = {shlex.split(command)[3]: command for command in typed}
    settings = "--data.num_envs=2 --model.update_epochs=1 --evaluation.num_episodes=1 --evaluation.every_env_steps=512"
    for command in (
        f"python -m lit_ppo fit {settings} --total_env_steps=256 --solved.threshold=.inf",
        f"python -m lit_ppo fit --ckpt_path=last {settings} --total_env_steps=512",
        commands["runs"],
        commands["plot"],
        commands["test"],
        f"{commands['play']} --num_episodes=1 --max_episode_steps=5",
        commands["export"],
    ):
        ended = shell(command)
        assert ended.returncode == exit_codes.DONE, ended.stderr


def test_readmes_python_example_runs() -> None:
    [example] = [block.text for block in README.values() if "max_epochs=200" in block.text]
    Path("example.py").write_text(example.replace("max_epochs=200", "max_epochs=2"))
    ended = shell("python -W ignore example.py")
    assert ended.returncode == 0, ended.stderr
    printed = ended.stdout.splitlines()
    assert printed[0] == "CartPole-v1, 8 environments, up to 512 env steps, solved at a return of 475"
    assert "not solved: no confirmed evaluation return of 475" in printed
    assert Path("runs/CartPole-v1/1/last.ckpt").is_file() and Path("data/rl/ppo_cartpole_trainlog.json").is_file()


# -- all of it, in the slow ones


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "page", [page for page, blocks in BLOCKS.items() if any(block.language in ("bash", "python") for block in blocks)]
)
def test_commands_of_a_page_run(page: str, tmp_path: Path, subtests: pytest.Subtests) -> None:
    directory = tmp_path / "page"
    directory.mkdir()
    pages.prepare(directory, page)
    for block in BLOCKS[page]:
        if block.language not in ("bash", "python") or block.file or "not run" in block.marks:
            continue
        with subtests.test(str(block)):
            if block.missing:
                pytest.skip(block.missing)
            ended = pages.run(block, directory)
            assert ended.returncode == int(block.marks.get("exit code", 0)), (
                f"{block}\n{block.text}\n{ended.stdout}\n{ended.stderr}"
            )
