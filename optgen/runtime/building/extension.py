"""Extensions of Python, compiled against the headers of the torch and the Python that run."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch

from optgen.runtime.building.compilers import Compiler, find_compiler, why_no_compiler
from optgen.runtime.building.entries import CompileError, Hash, Kernel, Loader
from optgen.runtime.building.private_dir import cache_dir
from optgen.runtime.building.programs import COMPILE_TIMEOUT_SECONDS, FORMAT_VERSION, run

FLAGS = ("-O2", "-std=c++20", "-shared", "-fPIC", "-fvisibility=hidden")

_modules = Loader[ModuleType]()


def missing() -> str:
    """Reason in one line why it cannot be built; "" if it can."""
    if find_compiler() is None:
        return f"no C++ compiler: {why_no_compiler()}"
    if not (_headers() / "Python.h").is_file():
        return f"{_headers()} has no Python.h"
    return ""


def load_extension(source: Path, functions: Sequence[str], behind: bool = False) -> ModuleType:
    """The module that a source in C++ makes, built only if no cache has it.

    Args:
        source: Its name is the module's.
        functions: Functions that the module must have.
        behind: Whether the compiler is to leave the processor to others.

    Raises:
        CompileError: if the compiler or Python's headers are missing, or it cannot be built or loaded.
    """
    compiler, reason = find_compiler(), missing()
    if compiler is None or reason:
        raise CompileError(reason)
    return _modules.get(_kernel(source, functions, compiler, behind))


def is_stored(source: Path) -> bool:
    """Check whether the cache has the module of a source, for this torch and this Python."""
    compiler = find_compiler()
    if compiler is None or missing():
        return False
    kernel = _kernel(source, (), compiler)
    try:
        return (cache_dir() / kernel.name(kernel.key())).exists()
    except (OSError, CompileError):
        return False


def _headers() -> Path:
    return Path(sysconfig.get_path("include"))


def _kernel(source: Path, functions: Sequence[str], compiler: Compiler, behind: bool = False) -> Kernel[ModuleType]:
    root = Path(torch.__file__).parent
    includes = [f"-I{_headers()}", "-isystem", f"{root / 'include'}"]
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"  # torch's strings
    libraries = [f"-L{root / 'lib'}", "-ltorch_python", "-ltorch_cpu", "-lc10"]
    if sys.platform == "darwin":
        libraries += ["-undefined", "dynamic_lookup"]
    words = (*compiler.command, *FLAGS, abi, *includes, str(source), *libraries)
    return Kernel(
        source=source,
        compiler=compiler.path,
        key=lambda: _key(source, compiler, words),
        name=lambda key: f"{source.stem}-{key[:32]}.so",
        build=lambda output, folder: run((*words, "-o", str(output)), folder, COMPILE_TIMEOUT_SECONDS, behind),
        load=lambda entry, _: _load(source.stem, functions, entry),
        advice="Steps work without it; those of many small tensors take longer.",
        unloadable=lambda directory: f"If {directory} is mounted noexec, set OPTGEN_CACHE_DIR to another folder.",
        optional=True,
    )


def _key(source: Path, compiler: Compiler, words: tuple[str, ...]) -> str:
    """Hash everything that decides what the compiler makes: torch's headers by its version."""
    made = Hash(str(FORMAT_VERSION), compiler.version, *words)
    made.add("torch", torch.__version__, str(torch.version.git_version), "python", sys.version)
    made.add_source(source)
    return made.hexdigest()


def _load(name: str, functions: Sequence[str], entry: str) -> ModuleType:
    loader = importlib.machinery.ExtensionFileLoader(name, entry)
    spec = importlib.util.spec_from_loader(name, loader)
    try:
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
    except ImportError as error:
        raise OSError(str(error)) from error
    lacking = [function for function in functions if not hasattr(module, function)]
    if lacking:
        raise OSError(f"{entry} lacks {', '.join(lacking)}")
    return module
