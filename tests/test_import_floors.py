"""The house: a file imports only from its own floor or lower ones, and heavy libraries only where they belong."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lit_ppo

PACKAGE = Path(lit_ppo.__file__).parent
MODULES = {
    ".".join(("lit_ppo", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}
FLOORS = {
    0: """errors exit_codes interrupts standard_streams allocator spaces leaf_rules contract curve functional networks
        distributions seeding random_actions plot run_lock origin strict_yaml run_directory
        run_status run_choice run_curves atomic_file run_statistics compat_torch ppo_settings policy
        setting_types foreign_settings normalization callables presets shards ranks rank_watch elastic
        bridge bridge.settings bridge.protocol
        bridge.frame bridge.faults bridge.doorbell
        bridge.journal bridge.episodes bridge.restart_budget bridge.dealing
        bridge.kernel bridge.system_calls bridge.landlock bridge.namespaces bridge.sandbox bridge.guard bridge.sweeper""",
    1: """bridge.gymnasium_checker
        bridge.trees bridge.vector_state bridge.frame_stack bridge.atari bridge.recording bridge.making bridge.interpreter
        bridge.hosts bridge.typed
        bridge.worker bridge.command bridge.child bridge.channel bridge.process bridge.inprocess
        bridge.history bridge.reports bridge.worker_slice bridge.restoration bridge.recovery bridge.pool bridge.checkpoint
        bridge.client""",
    2: """rollout exchange rank_share evaluation prediction replay transitions environment_check update passes optimization
        run_scheduler""",
    3: """module data compilation diagnostics checkpoint_io checkpoint_structure compat_lightning trainer_checks
        callbacks callbacks.curve_export callbacks.graceful_exit callbacks.greedy_evaluation
        callbacks.run_checkpoint callbacks.run_config callbacks.run_place callbacks.run_progress
        callbacks.run_status callbacks.run_summary callbacks.stop_when_solved
        option_parser resume_settings settings_structure saved_policy play export""",
    4: """commands commands.environment_options commands.train commands.checkpoint_choice commands.checkpoint_options
        commands.lightning_output commands.run_place
        commands.preset_choice commands.training_errors commands.training_options commands.typed_settings
        commands.check_env commands.export commands.play commands.plot commands.presets
        commands.replay commands.rollout commands.runs""",
    5: "cli __main__",
}
FLOOR_OF = {f"lit_ppo.{name}": floor for floor, names in FLOORS.items() for name in names.split()}
STANDARD = sys.stdlib_module_names
# what a file may import besides the standard library and this package
ALLOWED = {
    0: {"numpy", "torch"},
    1: {"numpy"},
    2: {"numpy", "torch"},
    3: {"numpy", "torch", "lightning", "torchmetrics", "tqdm", "yaml"},
    4: {"numpy", "torch", "lightning"},
    5: set(),
}
NARROWER = {
    "lit_ppo": set(),
    "lit_ppo.errors": set(),
    "lit_ppo.exit_codes": set(),
    "lit_ppo.interrupts": set(),
    "lit_ppo.standard_streams": set(),
    "lit_ppo.curve": set(),
    "lit_ppo.run_lock": set(),
    "lit_ppo.origin": set(),
    "lit_ppo.strict_yaml": {"yaml"},
    "lit_ppo.foreign_settings": set(),
    "lit_ppo.settings_structure": set(),
    **{f"lit_ppo.{name}": set() for name in ("run_directory", "run_status", "run_choice")},
    **{f"lit_ppo.commands.{name}": set() for name in ("checkpoint_options", "runs")},
    "lit_ppo.commands.run_place": {"lightning"},
    "lit_ppo.allocator": set(),
    "lit_ppo.shards": set(),
    "lit_ppo.elastic": set(),
    "lit_ppo.rank_watch": set(),
    "lit_ppo.ranks": {"torch"},
    "lit_ppo.atomic_file": set(),
    "lit_ppo.run_statistics": {"numpy"},
    "lit_ppo.run_scheduler": set(),
    "lit_ppo.contract": {"numpy"},
    "lit_ppo.plot": {"matplotlib", "numpy"},
    "lit_ppo.run_curves": {"yaml"},
    "lit_ppo.presets": {"yaml"},
    "lit_ppo.commands": set(),
    "lit_ppo.commands.plot": set(),
    "lit_ppo.commands.export": set(),
    "lit_ppo.commands.play": set(),
    "lit_ppo.saved_policy": set(),
    "lit_ppo.play": set(),
    "lit_ppo.export": {"numpy", "torch", "onnx", "onnxruntime", "onnxscript"},
    "lit_ppo.prediction": {"numpy", "torch"},
    "lit_ppo.commands.presets": set(),
    "lit_ppo.commands.replay": set(),
    "lit_ppo.commands.check_env": set(),
    "lit_ppo.commands.environment_options": {"yaml"},
    "lit_ppo.commands.rollout": {"numpy", "torch"},
    "lit_ppo.random_actions": {"numpy"},
    "lit_ppo.transitions": {"numpy"},
    "lit_ppo.environment_check": {"numpy", "torch"},
    "lit_ppo.bridge.gymnasium_checker": {"gymnasium"},
    "lit_ppo.option_parser": {"jsonargparse", "lightning", "yaml"},
    "lit_ppo.compat_torch": {"torch"},
    "lit_ppo.normalization": {"numpy", "torch"},
    "lit_ppo.callables": {"torch"},
    "lit_ppo.optimization": {"torch"},
    "lit_ppo.commands.train": {"torch", "lightning"},
    "lit_ppo.commands.checkpoint_choice": set(),
    "lit_ppo.commands.preset_choice": set(),
    "lit_ppo.commands.typed_settings": {"lightning", "yaml"},
    "lit_ppo.commands.training_errors": {"lightning", "torch"},
    "lit_ppo.commands.training_options": {"lightning"},
    "lit_ppo.replay": {"numpy"},
    "lit_ppo.spaces": {"numpy"},
    "lit_ppo.setting_types": {"yaml"},
    **{f"lit_ppo.bridge.{name}": {"numpy"} for name in ("frame", "journal", "episodes")},
    **{
        f"lit_ppo.bridge.{name}": set()
        for name in [
            "settings",
            "protocol",
            "faults",
            "doorbell",
            "restart_budget",
            "dealing",
            "pool",
            "kernel",
            "system_calls",
            "landlock",
            "namespaces",
            "sandbox",
            "guard",
            "sweeper",
            "command",
            "interpreter",
            "child",
            "channel",
        ]
    },
    "lit_ppo.leaf_rules": {"numpy"},
    "lit_ppo.bridge.making": {"gymnasium"},
    **{f"lit_ppo.bridge.{name}": {"numpy", "gymnasium"} for name in ("trees", "frame_stack", "atari", "hosts", "worker")},
    "lit_ppo.bridge.recording": {"gymnasium"},
}


def imported(path: Path) -> Iterator[str]:
    """Dotted names of all that a file imports, in functions as well, except for type checking."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module is not None, f"{path}: relative import"
            # `from lit_ppo import seeding` imports a module, `from lit_ppo.data import X` a name of one
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else node.module for name in names)


def test_every_file_has_a_floor_and_every_floor_its_files() -> None:
    assert set(MODULES) - {"lit_ppo"} == set(FLOOR_OF)


@pytest.mark.parametrize("module", sorted(FLOOR_OF))
def test_file_imports_nothing_from_a_higher_floor(module: str) -> None:
    higher = {name for name in imported(MODULES[module]) if FLOOR_OF.get(name, -1) > FLOOR_OF[module]}
    assert higher == set()


def circles(imports: dict[str, set[str]]) -> list[str]:
    """Files of a circle, and those that lead to one: what is left when files without imports are taken away repeatedly."""
    left = {name: set(names) & set(imports) for name, names in imports.items()}
    while free := [name for name, names in left.items() if not names]:
        for name in free:
            del left[name]
        left = {name: names - set(free) for name, names in left.items()}
    return sorted(left)


def test_no_files_import_each_other_in_a_circle() -> None:
    assert circles({name: set(imported(path)) - {"lit_ppo"} for name, path in MODULES.items()}) == []


def test_circle_would_be_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"os"}}) == ["a", "b", "c"]


@pytest.mark.parametrize("module", sorted(MODULES))
def test_file_imports_only_libraries_of_its_floor(module: str) -> None:
    libraries = {name.partition(".")[0] for name in imported(MODULES[module])} - set(STANDARD) - {"lit_ppo"}
    allowed = NARROWER[module] if module in NARROWER else ALLOWED[FLOOR_OF[module]]
    assert libraries - allowed == set()


def test_gymnasium_is_imported_by_the_worker_process_alone() -> None:
    users = {name for name, path in MODULES.items() if any(i.split(".")[0] == "gymnasium" for i in imported(path))}
    in_the_bridge = ("gymnasium_checker", "trees", "frame_stack", "recording", "atari", "making", "hosts", "worker")
    assert users == {f"lit_ppo.bridge.{name}" for name in in_the_bridge}


def test_worker_process_loads_neither_torch_nor_lightning() -> None:
    code = "import sys, lit_ppo, lit_ppo.bridge.worker; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "gymnasium" in run.stdout.split()
    assert {"torch", "lightning", "torchmetrics", "jsonargparse", "yaml", "matplotlib"}.isdisjoint(run.stdout.split())


def test_commands_that_do_not_train_start_without_torch() -> None:
    code = "import sys; from lit_ppo.cli import command_parser; command_parser(); print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"torch", "lightning", "numpy", "jsonargparse", "matplotlib"}.isdisjoint(run.stdout.split())


def test_package_itself_loads_nothing_but_the_standard_library() -> None:
    code = "import sys; before = set(sys.modules); import lit_ppo; print(*sorted(set(sys.modules) - before))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {name.partition(".")[0] for name in run.stdout.split()} <= {"lit_ppo", *STANDARD}


@pytest.mark.parametrize("name", sorted(lit_ppo.__all__))
def test_public_name_is_there_when_it_is_asked_for(name: str) -> None:
    assert getattr(lit_ppo, name).__name__ == name if name != "__version__" else lit_ppo.__version__


def test_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'lit_ppo' has no attribute 'Absent'"):
        _ = lit_ppo.Absent  # type: ignore[attr-defined]
