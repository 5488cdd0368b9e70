"""Check that every module of optgen/ imports only from the floors below it, in no circle, and that files stay small.

Run `python tools/check_layers.py [ROOT]`; it prints what is wrong, one line each, and exits with 1 if anything is.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# From the top down; `optgen` itself (its __init__) stands with the commands. A module imports from lower floors only,
# and freely inside its own folder. Modules of the top floor may also use each other and runtime/.
FLOORS: tuple[tuple[str, ...], ...] = (
    (
        "optgen",
        "__main__",
        "bench",
        "catalogue",
        "cli",
        "commands",
        "console",
        "demo",
        "distribution",
        "doctor",
        "evaluation",
        "explain",
        "loading",
        "new",
        "page",
        "precompile",
    ),
    ("compiler",),
    ("explanation",),
    ("emit",),
    ("backends",),
    ("schedule",),
    ("passes",),
    ("ir",),
    ("spec",),
    ("operations",),
    ("diagnostics",),
    ("prose",),
    ("package_name",),
    ("errors",),
    ("garbage",),
    ("abi",),
    ("log",),
    ("codecs",),
    ("dtypes",),
    ("paths",),
)
# Two floors stand apart, with what they may import: what generated code runs on, and what joins it to other libraries.
APART: dict[str, frozenset[str]] = {
    "runtime": frozenset({"runtime", "codecs", "dtypes", "log", "paths"}),
    "integrations": frozenset({"integrations", "runtime"}),
}
# The rooms of runtime/, from the top down; a room imports from lower ones only, and its files form no circle.
ROOMS: tuple[str, ...] = (
    "precompile",
    "classes",
    "counts",
    "several",
    "optimizer",
    "hooks",
    "checkpoints",
    "step",
    "engines",
    "states",
    "cuda",
    "core",
    "settings",
    "building",
    "torch_math",
    "matrix_shapes",
    "sums",
    "matrix_math",
    "rule",
    "dimensions",
    "block",
)
NEVER_APART = frozenset({"jinja2", "pydantic", "yaml", "typer"})
# What they import inside functions only, so that importing a generated package stays quick.
LATE_APART = frozenset({"rich"})
# What integrations import inside functions only, so that importing them brings nothing that is not used.
JOINED = frozenset({"torch", "numpy", "transformers", "accelerate", "lightning", "bitsandbytes", "optgen_optim"})
MAX_LINES = 500
MAX_RUNTIME_LINES = 400
CHECKED_SUFFIXES = frozenset({".py", ".h", ".cpp", ".cu", ".j2", ".yaml", ".md", ".sh"})


@dataclass(frozen=True)
class Import:
    """One import: the dotted name as seen from the top, its line, and whether it waits in a function or never runs."""

    module: str
    names: tuple[str, ...]
    line: int
    lazy: bool


def imports_of(tree: ast.Module, package: Sequence[str]) -> Iterator[Import]:
    """Yield all imports of a module that lies in `package`, also those inside functions and TYPE_CHECKING blocks."""

    def walk(node: ast.AST, lazy: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            match child:
                case ast.Import(names=names):
                    for alias in names:
                        yield Import(alias.name, (), child.lineno, lazy)
                case ast.ImportFrom(module=module, names=names, level=level):
                    base = list(package[: len(package) - level + 1]) if level else []
                    name = ".".join([*base, *([module] if module else [])])
                    yield Import(name, tuple(alias.name for alias in names), child.lineno, lazy)
                case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                    yield from walk(child, True)
                case ast.If(test=ast.Name(id="TYPE_CHECKING"), orelse=[]):
                    yield from walk(child, True)
                case _:
                    yield from walk(child, lazy)

    yield from walk(tree, False)


def used_modules(found: Import, modules: frozenset[str]) -> Iterator[str]:
    """Yield the modules directly below optgen/ that an import uses; "optgen" for the package's own names."""
    parts = found.module.split(".")
    if parts[0] != "optgen":
        return
    if len(parts) > 1:
        yield parts[1]
        return
    if not found.names:
        yield "optgen"
    for name in found.names:
        if name in modules:
            yield name
        elif name != "__version__":
            yield "optgen"


def floor_of(module: str) -> int | None:
    """Return the floor's number, 0 at the top, or None for a module that has none."""
    return next((number for number, names in enumerate(FLOORS) if module in names), None)


def check_import(module: str, found: Import, modules: frozenset[str]) -> Iterator[str]:
    """Yield what is wrong with one import of `module` (the part of its name just below optgen)."""
    top = found.module.partition(".")[0]
    if module in APART:
        if top in NEVER_APART:
            yield f"{module}/ must not import {top}"
        if top in LATE_APART and not found.lazy:
            yield f"{module}/ may import {top} inside functions only"
        if module == "integrations" and top in JOINED and not found.lazy:
            yield f"integrations/ may import {top} inside functions only"
        for used in used_modules(found, modules):
            if used not in APART[module]:
                yield f"{module}/ must not import {used if used == 'optgen' else f'optgen.{used}'}"
        return
    floor = floor_of(module)
    if floor is None:
        return
    if top in ("torch", "numpy"):
        if floor > 0:
            yield f"the compiler must not import {top}"
        elif not found.lazy and module not in ("bench", "demo", "evaluation", "loading"):
            yield f"{top} may be imported inside functions only, so that commands start quickly"
    for used in used_modules(found, modules):
        if used == module or (floor == 0 and used == "runtime"):
            continue
        if used in APART:
            yield f"the compiler must not import optgen.{used}"
            continue
        below = floor_of(used)
        if below is not None and (below < floor or (below == floor and floor > 0)):
            name = used if used == "optgen" else f"optgen.{used}"
            yield f"optgen.{module} must not import {name}, which stands above it"


def check_rooms(package: Path, imports: Mapping[Path, Sequence[Import]]) -> Iterator[str]:
    """Yield what is wrong between the rooms of runtime/ and within them, also in imports for types alone."""
    runtime = package / "runtime"
    shown = {path: path.relative_to(package.parent).as_posix() for path in imports}
    names = {".".join(("optgen", *path.relative_to(package).with_suffix("").parts)): path for path in imports}
    used: dict[Path, dict[Path, int]] = {}
    for path, found in imports.items():
        if not path.is_relative_to(runtime) or path.name == "__init__.py":
            continue
        room = path.relative_to(runtime).parts[0].removesuffix(".py")
        if room not in ROOMS:
            yield f"{shown[path]}:1: {room} is not a room of runtime/; give it a floor in {Path(__file__).name}"
            continue
        used[path] = {}
        for item in found:
            modules = [f"{item.module}.{name}" for name in item.names if f"{item.module}.{name}" in names]
            for module in modules or [item.module]:
                other = module.removeprefix("optgen.runtime.").partition(".")[0]
                if not module.startswith("optgen.runtime.") or other not in ROOMS:
                    continue
                if ROOMS.index(other) < ROOMS.index(room):
                    yield f"{shown[path]}:{item.line}: runtime/{room} must not import {module}, which stands above it"
                elif module in names:
                    used[path].setdefault(names[module], item.line)
    for circle in circles(used):
        line = used[circle[0]][circle[1]]
        yield f"{shown[circle[0]]}:{line}: imports in a circle: {' -> '.join(shown[path] for path in circle)}"


def circles(used: Mapping[Path, Mapping[Path, int]]) -> Iterator[list[Path]]:
    """Yield one way round, from a file to itself, for each that a walk along the imports closes."""
    done: set[Path] = set()

    def walk(path: Path, way: list[Path]) -> Iterator[list[Path]]:
        if path in way:
            yield [*way[way.index(path) :], path]
        elif path not in done:
            for other in used.get(path, {}):
                yield from walk(other, [*way, path])
            done.add(path)

    for path in used:
        yield from walk(path, [])


def check_tree(root: Path) -> list[str]:
    """Check optgen/ and tools/ below `root`; return what is wrong, as "file:line: message", sorted by file."""
    problems: list[str] = []
    package = root / "optgen"
    files = sorted(path for path in package.rglob("*.py") if "_data" not in path.relative_to(package).parts)
    modules = frozenset(path.relative_to(package).parts[0].removesuffix(".py") for path in files) - {"__init__"}
    imports: dict[Path, list[Import]] = {}
    for path in files:
        shown = path.relative_to(root).as_posix()
        parts = path.relative_to(package).parts
        module = "optgen" if parts == ("__init__.py",) else parts[0].removesuffix(".py")
        if module not in APART and floor_of(module) is None:
            problems.append(f"{shown}:1: optgen.{module} has no floor; give it one in {Path(__file__).name}")
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        except (SyntaxError, UnicodeDecodeError) as error:
            problems.append(f"{shown}:1: cannot be read: {error}")
            continue
        imports[path] = list(imports_of(tree, ("optgen", *parts[:-1])))
        for found in imports[path]:
            problems.extend(f"{shown}:{found.line}: {message}" for message in check_import(module, found, modules))
    problems.extend(check_rooms(package, imports))
    problems.extend(long_files(root))
    return problems


def long_files(root: Path) -> Iterator[str]:
    """Yield the files of optgen/ and tools/ that have too many lines."""
    for folder in (root / "optgen", root / "tools"):
        for path in sorted(folder.rglob("*")):
            inside = path.relative_to(folder).parts
            if path.suffix not in CHECKED_SUFFIXES or not path.is_file() or "_data" in inside:
                continue
            lines = path.read_bytes().count(b"\n")
            most = MAX_RUNTIME_LINES if folder.name == "optgen" and inside[0] == "runtime" else MAX_LINES
            if lines > most:
                yield f"{path.relative_to(root).as_posix()}:{lines}: {lines} lines, more than {most}; split it"


def main(arguments: Sequence[str]) -> int:
    """Check the tree given, or the one this file lies in; return the exit status."""
    root = Path(arguments[0]) if arguments else Path(__file__).resolve().parent.parent
    problems = check_tree(root)
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
