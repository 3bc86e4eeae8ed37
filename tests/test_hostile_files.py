"""Files and names that others have made, for every command that reads them: one line for each, and the rest is shown."""

import ast
import contextlib
import io
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lit_ppo
from lit_ppo import cli, errors, exit_codes
from tests.test_cli import Ended
from tests.test_plot import make_run

FORGED: Final = "\nlit_ppo: error: forged\nepisode 1: return 999, 1 steps"
# Characters that steer a terminal, begin a line, turn the direction of text, are no text, or mean something to a reader.
NASTY: Final = (
    "\x1b[2J\r\n\t\b\x00\x07\x7f\x85\x9b\u2028\u2029\u202e\u200b\ufeff\ue000\ud800\udcff\U0001f600$_^{}\\%'\"#:-é中 a"
)
NAMES: Final = (
    st.text(NASTY, min_size=1, max_size=12) | st.just(FORGED) | st.sampled_from(["$x_{", "_hidden", "$", "-", "{run}"])
)
FILE_NAMES: Final = NAMES.map(lambda name: re.sub("[/\x00\ud800]", "", name)).filter(lambda name: name not in ("", ".", ".."))
DEEP: Final = b"[" * 100_000
JSON_SCALARS: Final = (
    st.none()
    | st.booleans()
    | st.floats()
    | st.integers()
    | NAMES
    | st.sampled_from([10**400, -(10**400), 1 << 63, 1e308, -1e308])
)
PLAIN: Final = st.recursive(
    JSON_SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
NUMBERS: Final = st.sampled_from(
    ["inf", "-inf", "nan", "1e999", "9" * 400, "-1", "", "1e308", "-1e308", "0x10", "1_0", "\x00", "3"]
)
BYTES: Final = st.binary(max_size=40) | st.sampled_from(
    [DEEP, b'{"a":' * 100_000, b"9" * 5000, b"\xff\xfe", b"\xef\xbb\xbf{}", b""]
)


def ended(*arguments: str) -> Ended:
    """How a command ends in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main(list(arguments))
            code: Any = exit_codes.DONE
        except SystemExit as error:
            code = error.code or exit_codes.DONE
    return Ended(int(code), out.getvalue(), err.getvalue())


def require_clean(ended: Ended) -> None:
    """No control character, and no line that another line's text has begun."""
    for line in (ended.out + ended.err).split("\n"):
        assert line.isprintable(), line
        assert not re.match("lit_ppo: error: forged|episode 1", line), line
    assert all(line.startswith("lit_ppo: ") for line in ended.err.splitlines()), ended.err


@given(st.text() | NAMES)
def test_any_text_becomes_one_printable_line(text: str) -> None:
    assert errors.one_line(text).isprintable() and errors.shown(text).isprintable()
    assert all(line.replace("\t", "").isprintable() for line in errors.printable(text).split("\n"))


def test_only_one_function_prints() -> None:
    """`standard_streams.say`, which escapes; `exit_codes.fail` has the line for a closed standard error."""
    found = {
        path.name
        for path in Path(lit_ppo.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    }
    assert found == {"standard_streams.py", "exit_codes.py"}


def changed(document: Any) -> st.SearchStrategy[Any]:
    """A document with some of its values replaced, as JSON or YAML has them."""
    if isinstance(document, dict):
        return st.fixed_dictionaries({key: st.just(value) | changed(value) for key, value in document.items()}) | PLAIN
    return PLAIN


def damaged(path: Path) -> st.SearchStrategy[bytes]:
    """What may stand in a file of a run in the place of what stands there."""
    text = path.read_text()
    if path.suffix == ".json":
        whole = changed(json.loads(text)).map(lambda data: json.dumps(data).encode())
    elif path.suffix == ".yaml":
        whole = changed(yaml.safe_load(text)).map(lambda data: yaml.safe_dump(data).encode("utf-8", "replace"))
    else:
        rows = st.lists(st.lists(NUMBERS, min_size=4, max_size=4).map(",".join), max_size=4)
        whole = rows.map(lambda lines: "\n".join([text.splitlines()[0], *lines, ""]).encode())
    return whole | BYTES | st.integers(0, len(text)).map(lambda size: text[:size].encode())


FILES: Final = ("run.json", "config.yaml", "curve.json", "logs/version_0/metrics.csv")


def odd_places(path: Path) -> None:
    """A directory, a pipe, a link to nothing and a file that is too large, each in the place of a file of some run."""
    for number, make in enumerate([Path.mkdir, os.mkfifo, lambda path: path.symlink_to("nothing"), lambda path: path.touch()]):
        for name in FILES:
            file = make_run(100 + number, seed=1, env_id=f"{path.name}-{number}-{Path(name).stem}") / name
            file.unlink()
            make(file)
            if file.is_file():
                os.truncate(file, 1 << 29)


@pytest.mark.slow
@settings(max_examples=10, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_damaged_files_cost_a_line_each_and_the_rest_is_listed_and_drawn(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as directory, contextlib.chdir(directory):
        make_run(1, seed=1, env_id="whole")
        for number in range(2):
            for name in FILES:
                file = make_run(number, seed=1, env_id=Path(name).stem) / name
                file.write_bytes(data.draw(damaged(file)))
        for command in (["runs"], ["runs", "--json"], ["plot", "runs", "--output", "a.svg"]):
            result = ended(*command)
            assert result.code == exit_codes.DONE, result.err
            require_clean(result)
            assert "whole" in (Path("a.svg").read_text() if command[0] == "plot" else result.out)
            assert len(result.err.splitlines()) <= 2 * len(FILES)


def test_what_is_no_file_costs_a_line_and_the_rest_is_listed_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(1, seed=1, env_id="whole")
    odd_places(tmp_path)
    for command in (["runs"], ["plot", "runs", "--output", "a.svg"]):
        result = ended(*command)
        assert result.code == exit_codes.DONE
        require_clean(result)
        assert "whole" in (Path("a.svg").read_text() if command[0] == "plot" else result.out)
        assert result.err.count("expected a file of at most") == (3 if command == ["runs"] else 12)


@settings(max_examples=4, suppress_health_check=list(HealthCheck))
@given(run_name=FILE_NAMES, env_id=NAMES, label=NAMES)
def test_names_of_others_stay_in_their_lines(run_name: str, env_id: str, label: str) -> None:
    with tempfile.TemporaryDirectory() as directory, contextlib.chdir(directory):
        for number, value in enumerate([label, "other"]):
            made = make_run(number, seed=1, odd=value.encode("utf-8", "replace").decode())
            status = json.loads((made / "run.json").read_text())
            (made / "run.json").write_text(json.dumps({**status, "env_id": env_id}))
        Path("runs/CartPole-v1/0").rename(Path("runs/CartPole-v1", run_name))
        for command in (["runs"], ["runs", "--json"], ["plot", "runs/CartPole-v1", "--output", "a.svg"], ["plot", run_name]):
            result = ended(*command)
            require_clean(result)
            assert command[-1] == run_name or result.code == exit_codes.DONE, result.err
        picture = Path("a.svg").read_text()
        assert "<!-- odd=other -->" in picture
