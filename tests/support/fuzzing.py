"""Checks of the compiler's answer to any spec: refused in plain words, or code that is whole."""

from __future__ import annotations

import ast
import builtins
import re
import subprocess
import symtable
from collections.abc import Iterator, Sequence
from pathlib import Path

from optgen.codecs import CODECS
from optgen.compiler import Package, compile_specs
from optgen.diagnostics import SpecError, printable
from optgen.ir.nodes import Kind
from optgen.page import page
from support.compiling import ROOT
from support.hostile import c_code
from support.mutations import Case
from support.plan_invariants import verify_plan
from support.verified import verified_statements

MODULE_NAMES = {*dir(builtins), "__file__", "__name__", "__package__", "__all__", "__class__"}
TYPE = r"(?:double|float|bool|int|int64_t|uint32_t|Mask|auto|Window<\d+>|Tile<[^;{}]*>)"
DECLARATION = re.compile(rf"(?:constexpr |const )?{TYPE}[ *]+(?:const )?(\w+)(?: =|\(|$)")
CHECKED = ("-std=c++17", "-fopenmp", "-fsyntax-only", "-w", f"-I{ROOT / 'templates' / 'include'}")


class FaultError(AssertionError):
    """Something that must not happen."""


def examine(case: Case, folder: Path, compiler: str = "") -> str:
    """Compile a case.

    Args:
        folder: An empty folder for its files.
        compiler: A C++ compiler that looks at the kernels too.

    Returns:
        "refused" or "accepted".

    Raises:
        FaultError: what was made is not whole. Whatever else is raised is a fault as well.
    """
    for name, data in case.files.items():
        (folder / name).write_bytes(data)
    try:
        with verified_statements():
            package = compile_specs([folder], "fuzzed")
    except SpecError as error:
        if not error.diagnostics:
            raise FaultError("refused without a reason") from error
        _check_said(str(error))
        return "refused"
    _check_said("\n".join(map(str, package.warnings)))
    for fault in faults(package):
        raise FaultError(fault)
    for info in package.classes:
        for plan in info.plans.values():
            verify_plan(plan)
        info.explain()
        page(info)
    if compiler:
        _compile(package, folder, compiler)
    return "accepted"


def _check_said(said: str) -> None:
    for line in said.split("\n"):
        if printable(line) != line:
            raise FaultError(f"a message holds what disturbs terminals: {line!r}")


def faults(package: Package) -> Iterator[str]:
    """Faults of a package's files, in words."""
    for path, text in package.files.items():
        if not re.fullmatch(r"[A-Za-z_]\w*\.(py|h|cpp|cu|typed)", path):
            yield f"a file is called {path!r}"
        if any(printable(line) != line for line in text.split("\n")):
            yield f"{path} holds what nobody can see"
        if path.endswith(".py"):
            yield from (f"{path}: {fault}" for fault in python_faults(text))
        elif path.endswith((".h", ".cpp", ".cu")):
            yield from (f"{path}: {fault}" for fault in c_faults(text))


def python_faults(text: str) -> Iterator[str]:
    """Names of a module that nothing defines, and what it defines twice."""
    tree = ast.parse(text.encode())
    named = [node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    names = [node.name for node in named if "overload" not in map(ast.unparse, node.decorator_list)]
    yield from (f"{name} is defined twice" for name in sorted({n for n in names if names.count(n) > 1}))
    table = symtable.symtable(text, "module", "exec")
    known = MODULE_NAMES | {s.get_name() for s in table.get_symbols() if s.is_assigned() or s.is_imported()}
    known |= {s.get_name() for s in table.get_symbols() if s.is_namespace()}
    scopes = [*table.get_children()]
    while scopes:
        scope = scopes.pop()
        scopes += scope.get_children()
        for symbol in scope.get_symbols():
            if symbol.is_global() and symbol.is_referenced() and symbol.get_name() not in known:
                yield f"{scope.get_name()} reads {symbol.get_name()}, which nothing defines"


def c_faults(text: str) -> Iterator[str]:
    """Brackets that do not match, and names that are declared twice in a block."""
    code = "\n".join(line for line in c_code(text).split("\n") if not line.startswith("#"))
    scopes: list[set[str]] = [set()]
    statement, parentheses = "", 0
    for char in code:
        if char in "()":
            parentheses += 1 if char == "(" else -1
        if char in "{};" and parentheses == 0:
            found = DECLARATION.match(statement.strip())
            if found and char == ";":
                if found[1] in scopes[-1]:
                    yield f"{found[1]} is declared twice"
                scopes[-1].add(found[1])
            statement = ""
            if char == "{":
                scopes.append(set())
            elif char == "}":
                scopes.pop()
                if not scopes:
                    yield "a bracket closes nothing"
                    return
        else:
            statement += char
    if len(scopes) != 1 or parentheses:
        yield "a bracket stays open"


def _compile(package: Package, folder: Path, compiler: str) -> None:
    """Have the kernels of cpu compiled, all that is optional in them off, and on."""
    rules = {info.rule: info.whole_rule for info in package.classes}
    for name, rule in rules.items():
        source = folder / f"{name}.cpp"
        for path in (source, *(folder / file for file in package.files if file.endswith(".h"))):
            path.write_text(package.files[path.name], encoding="utf-8")
        guards = [guard.name for guard in rule.guards.guards.values() if guard.about != "codec"]
        states = [i for i in rule.inputs.values() if i.role == "state" and i.kind is Kind.ELEMENT]
        codecs = {f"{i.name}_codec": CODECS[i.codecs[-1]].cpp_type(i.signed) for i in states}
        fixed = {"param_codec": "Plain<float>", "grad_codec": "Plain<bf16>", **codecs}
        for value in ("0", "1"):
            given = {**fixed, **dict.fromkeys(guards, value)}
            words = [f"-DOPTGEN_{name.upper()}={text}" for name, text in given.items()]
            _run([compiler, *CHECKED, *words, str(source)])


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        _, _, reason = done.stderr.partition("error: ")
        raise FaultError(f"{done.stderr[:1500]}\nthe first of them: {reason.split(chr(10))[0]}")
