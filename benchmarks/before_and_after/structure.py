"""How is the package built? Sizes of files and classes, and import cycles, read from the source without importing it."""

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.before_and_after.checkout import Checkout, aligned, save

_PACKAGE: Final = "lit_ppo"
_LARGEST: Final = 12
_FILE_LIMIT: Final = 350  # lines
_CLASS_LIMIT: Final = 250


@dataclass(frozen=True)
class ClassSize:
    """Size of one class: lines with decorators, methods, and attributes of `self` that `__init__` assigns."""

    name: str
    lines: int
    methods: int
    attributes: int


def classes_of(source: str) -> list[ClassSize]:
    """Size of every class in a source text, in order; nested ones as well."""
    return [_size(node) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]


def _size(node: ast.ClassDef) -> ClassSize:
    methods = [item for item in node.body if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)]
    attributes = {name for item in methods if item.name == "__init__" for name in _assigned_to_self(item)}
    first_line = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    assert node.end_lineno is not None
    return ClassSize(node.name, node.end_lineno - first_line + 1, len(methods), len(attributes))


def _assigned_to_self(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    owner = function.args.args[0].arg
    for node in ast.walk(function):
        # a store into `self.name`, also inside a tuple or with an annotation; `self.name[key] = ...` only loads it
        is_store = isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
        if is_store and isinstance(node.value, ast.Name) and node.value.id == owner:
            yield node.attr


# -- imports


def imported_modules(source: str, module: str, modules: Sequence[str]) -> set[str]:
    """Modules of the package that a file imports, in functions as well, except for type checking.

    Args:
        source: Text of the file.
        module: Its dotted name.
        modules: Dotted names of all files of the package.
    """
    tree = ast.parse(source)
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    names: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            # `from package import name` imports a file of that name if there is one
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= (whole & set(modules)) or {node.module}
    return (names & set(modules)) - {module}


def cycles(imports: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, directly or through others; each group sorted."""

    def reached(start: str) -> set[str]:
        found, waiting = set[str](), [start]
        while waiting:
            for name in imports.get(waiting.pop(), set()) - found:
                found.add(name)
                waiting.append(name)
        return found

    reach = {name: reached(name) for name in imports}
    groups = {tuple(sorted(other for other in reach[name] if name in reach[other])) for name in imports if name in reach[name]}
    return sorted(map(list, groups))


# -- the table


def survey(root: Path) -> dict[str, Any]:
    """Files and classes by size, largest first, and import cycles of one checkout's package."""
    sources: dict[str, str] = {}
    modules: dict[str, str] = {}
    for path in sorted((root / _PACKAGE).rglob("*.py")):
        name = str(path.relative_to(root / _PACKAGE))
        sources[name] = path.read_text(encoding="utf-8")
        modules[name] = ".".join((_PACKAGE, *Path(name).with_suffix("").parts)).removesuffix(".__init__")
    files = {name: len(source.splitlines()) for name, source in sources.items()}
    classes = [(size, name) for name, source in sources.items() for size in classes_of(source)]
    names = list(modules.values())
    imports = {modules[name]: imported_modules(source, modules[name], names) for name, source in sources.items()}
    return {
        "files": sorted(files.items(), key=lambda item: -item[1]),
        "classes": sorted(((size.__dict__ | {"file": name}) for size, name in classes), key=lambda entry: -entry["lines"]),
        "cycles": cycles(imports),
    }


def _summary(found: dict[str, Any]) -> list[str]:
    return [
        f"{sum(lines for _, lines in found['files']):,}",
        str(len(found["files"])),
        str(sum(lines > _FILE_LIMIT for _, lines in found["files"])),
        str(len(found["classes"])),
        str(sum(entry["lines"] > _CLASS_LIMIT for entry in found["classes"])),
        str(len(found["cycles"])),
    ]


def _side_by_side(title: str, columns: Sequence[Sequence[str]]) -> str:
    longest = max(map(len, columns))
    padded = [[*column, *[""] * (longest - len(column))] for column in columns]
    return f"{title}\n" + aligned([("before", "after"), *zip(*padded, strict=True)])


def main(before: Checkout, after: Checkout) -> int:
    """Print sizes and cycles of both sides."""
    sides = [survey(checkout.path) for checkout in (before, after)]
    labels = [
        "lines",
        "files",
        f"files over {_FILE_LIMIT} lines",
        "classes",
        f"classes over {_CLASS_LIMIT} lines",
        "import cycles",
    ]
    print(aligned([("", "before", "after"), *zip(labels, *map(_summary, sides), strict=True)]))
    files = [[f"{lines:>5}  {name}" for name, lines in side["files"][:_LARGEST]] for side in sides]
    classes = [
        [
            f"{entry['lines']:>4} / {entry['methods']:>2} / {entry['attributes']:>2}  {entry['name']}"
            for entry in side["classes"]
        ]
        for side in sides
    ]
    print(f"\n{_side_by_side('largest files: lines', files)}")
    print(f"\n{_side_by_side('largest classes: lines / methods / attributes', [c[:_LARGEST] for c in classes])}")
    for checkout, side in zip((before, after), sides, strict=True):
        for group in side["cycles"]:
            print(f"\nimport cycle {checkout.side}: {', '.join(group)}")
    save("structure", (before, after), dict(zip(("before", "after"), sides, strict=True)))
    return 0
