"""sweep.cpp as an extension of Python, compiled against the headers of the torch and the Python that run."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import cast

import torch

from optgen.runtime.building.compilers import Compiler, find_compiler, why_no_compiler
from optgen.runtime.building.entries import CompileError, Hash, Kernel, Loader
from optgen.runtime.building.private_dir import cache_dir
from optgen.runtime.building.programs import COMPILE_TIMEOUT_SECONDS, FORMAT_VERSION, run
from optgen.runtime.core.sweep import Sweep

SOURCE = Path(__file__).parents[1] / "core" / "sweep.cpp"
FLAGS = ("-O2", "-std=c++20", "-shared", "-fPIC", "-fvisibility=hidden")

_modules = Loader[ModuleType]()


def missing() -> str:
    """Say in one line what it cannot be built for; "" if all is there."""
    if find_compiler() is None:
        return f"no C++ compiler: {why_no_compiler()}"
    if not (_headers() / "Python.h").is_file():
        return f"{_headers()} has no Python.h"
    return ""


def sweep_extension(behind: bool = False) -> Sweep:
    """The functions of sweep.cpp, built only if no cache has them.

    Args:
        behind: Whether the compiler is to leave the processor to others.

    Raises:
        CompileError: where there is no compiler or no header of Python, and when it cannot be built or loaded.
    """
    compiler, reason = find_compiler(), missing()
    if compiler is None or reason:
        raise CompileError(reason)
    return cast(Sweep, _modules.get(_kernel(compiler, behind)))


def is_stored() -> bool:
    """Whether the cache has it, for this torch and this Python."""
    compiler = find_compiler()
    if compiler is None or missing():
        return False
    kernel = _kernel(compiler)
    try:
        return (cache_dir() / kernel.name(kernel.key())).exists()
    except (OSError, CompileError):
        return False


def _headers() -> Path:
    return Path(sysconfig.get_path("include"))


def _kernel(compiler: Compiler, behind: bool = False) -> Kernel[ModuleType]:
    root = Path(torch.__file__).parent
    includes = [f"-I{_headers()}", "-isystem", f"{root / 'include'}"]
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(getattr(torch._C, '_GLIBCXX_USE_CXX11_ABI', True))}"  # torch's strings
    libraries = [f"-L{root / 'lib'}", "-ltorch_python", "-ltorch_cpu", "-lc10"]
    if sys.platform == "darwin":
        libraries += ["-undefined", "dynamic_lookup"]
    words = (*compiler.command, *FLAGS, abi, *includes, str(SOURCE), *libraries)
    return Kernel(
        source=SOURCE,
        compiler=compiler.path,
        key=lambda: _key(compiler, words),
        name=lambda key: f"sweep-{key[:32]}.so",
        build=lambda output, folder: run((*words, "-o", str(output)), folder, COMPILE_TIMEOUT_SECONDS, behind),
        load=lambda entry, _: _load(entry),
        advice="Steps work without it; those of many small tensors take longer.",
        unloadable=lambda directory: f"If {directory} is mounted noexec, set OPTGEN_CACHE_DIR to another folder.",
        optional=True,
    )


def _key(compiler: Compiler, words: tuple[str, ...]) -> str:
    """Hash everything that decides what the compiler makes: torch's headers by its version."""
    made = Hash(str(FORMAT_VERSION), compiler.version, *words)
    made.add("torch", torch.__version__, str(torch.version.git_version), "python", sys.version)
    made.add_source(SOURCE)
    return made.hexdigest()


def _load(entry: str) -> ModuleType:
    loader = importlib.machinery.ExtensionFileLoader("sweep", entry)
    spec = importlib.util.spec_from_loader("sweep", loader)
    try:
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
    except ImportError as error:
        raise OSError(str(error)) from error
    lacking = [name for name in vars(Sweep) if not name.startswith("_") and not hasattr(module, name)]
    if lacking:
        raise OSError(f"{entry} lacks {', '.join(lacking)}")
    return module
