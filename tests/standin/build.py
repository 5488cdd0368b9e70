"""Builds the stand-in's libcuda.so.1 with g++, once for each content."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

HERE = Path(__file__).resolve().parent
SOURCES = HERE / "driver"
NVCC = HERE / "nvcc"
NVRTC = HERE / "nvrtc.cpp"
SONAME = "libcuda.so.1"
CXX = os.environ.get("CXX", "g++")
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-shared", f"-Wl,-soname,{SONAME}"]
SANITIZE_FLAGS = ["-g1", "-fno-omit-frame-pointer", "-fsanitize=address"]
NOT_SUPPORTED = 801


class BuildError(RuntimeError):
    """The stand-in cannot be built. The message says what is missing, or what the compiler said."""


def cuda_header() -> Path:
    """Find cuda.h: in OPTGEN_CUDA_HEADERS, this environment's include/cuda, a CUDA toolkit, NVIDIA's Python packages.

    Raises BuildError.
    """
    for folder in _include_folders():
        if (folder / "cuda.h").is_file():
            return folder / "cuda.h"
    raise BuildError(
        "no cuda.h: install the CUDA toolkit (CUDA_HOME says where it is) or the package nvidia-cuda-runtime"
    )


def _include_folders() -> Iterator[Path]:
    named = os.environ.get("OPTGEN_CUDA_HEADERS", "")
    yield from [Path(named)] if "/" in named else []
    yield Path(sys.prefix) / "include" / "cuda"
    for variable in ("CUDA_HOME", "CUDA_ROOT", "CUDA_PATH"):
        if variable in os.environ:
            yield Path(os.environ[variable]) / "include"
    nvcc = shutil.which("nvcc")
    if nvcc is not None:
        yield Path(nvcc).resolve().parents[1] / "include"
    yield Path("/usr/local/cuda/include")
    yield from sorted(Path("/usr/local").glob("cuda-*/include"), reverse=True)
    yield from sorted(Path("/opt").glob("cuda*/include"), reverse=True)
    for site in dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *sys.path]):
        yield from sorted(Path(site).glob("nvidia/cu[0-9]*/include"), reverse=True)
        yield Path(site) / "nvidia" / "cuda_runtime" / "include"


def library(sanitize: bool = False, portable: bool = False) -> Path:
    """Return libcuda.so.1, building it if no process has done so yet. Safe to call from many processes at once.

    Args:
        sanitize: With AddressSanitizer built in.
        portable: With the switching of fibers that needs no assembly, as on aarch64.

    Raises BuildError.
    """
    flags = [*FLAGS, *(SANITIZE_FLAGS if sanitize else []), *(["-DSTANDIN_UCONTEXT"] if portable else [])]
    header = cuda_header()
    wanted = _wanted_symbols()
    path = _cache_folder() / _key(flags, header, wanted) / SONAME
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
                built = _build(flags, header, wanted, Path(scratch))
                built.replace(path)
    return path


def nvcc(sanitize: bool = False) -> Path:
    """Return a program that is the stand-in for nvcc. Its path changes with what it makes, as caches may rely on."""
    digest = hashlib.sha256()
    for path in (NVCC, *sorted(HERE.glob("*.h")), SOURCES / "abi.h"):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    text = (
        "#!/bin/sh\n"
        f"export STANDIN_SANITIZE={int(sanitize)} CXX={shlex.quote(CXX)}\n"
        f'exec {shlex.quote(sys.executable)} {shlex.quote(str(NVCC))} "$@"\n'
    )
    digest.update(text.encode())
    path = _cache_folder() / digest.hexdigest()[:32] / "nvcc"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            draft = path.with_suffix(".draft")
            draft.write_text(text, encoding="utf-8")
            draft.chmod(0o755)
            draft.replace(path)
    return path


def nvrtc(sanitize: bool = False) -> Path:
    """Return libnvrtc.so.13, the stand-in for NVRTC, building it if no process has done so yet."""
    own = nvcc(sanitize)
    flags = ["-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-shared", f'-DNVCC="{own}"']
    digest = hashlib.sha256("\0".join([_output([CXX, "--version"]), *flags, NVRTC.read_text()]).encode()).hexdigest()
    path = _cache_folder() / digest[:32] / "libnvrtc.so.13"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            draft = path.with_suffix(".draft")
            _output([CXX, *flags, str(NVRTC), "-o", str(draft)])
            draft.replace(path)
    return path


def _cache_folder() -> Path:
    kept = os.environ.get("OPTGEN_CACHE_DIR")
    return Path(kept) / "standin" if kept else Path(tempfile.gettempdir()) / f"optgen-standin-{os.getuid()}"


def _key(flags: list[str], header: Path, wanted: list[str]) -> str:
    """Hash everything that decides what is built."""
    digest = hashlib.sha256(header.read_bytes())
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    compiler = _output([CXX, "--version"])
    digest.update("\0".join([compiler, *flags, *wanted]).encode())
    return digest.hexdigest()[:32]


def _wanted_symbols() -> list[str]:
    """The functions of the driver that PyCUDA's extension module must find when it is loaded."""
    spec = importlib.util.find_spec("pycuda")
    if spec is None or not spec.submodule_search_locations:
        return []
    folder = Path(spec.submodule_search_locations[0])
    extensions = sorted(folder.glob("_driver*.so"))
    if not extensions:
        raise BuildError(f"{folder} has no _driver*.so")
    lines = _output(["nm", "-D", "--undefined-only", str(extensions[0])]).splitlines()
    names = {line.split()[-1].partition("@")[0] for line in lines}
    return sorted(name for name in names if name.startswith("cu") and name[2:3].isupper())


def _build(flags: list[str], header: Path, wanted: list[str], scratch: Path) -> Path:
    """Build in `scratch`: the driver, and for what PyCUDA needs besides, functions that say it is not supported."""
    driver = scratch / "driver.o"
    compile_flags = [flag for flag in flags if flag != "-shared" and not flag.startswith("-Wl,")]
    _output([CXX, *compile_flags, f"-I{header.parent}", "-c", str(SOURCES / "all.cpp"), "-o", str(driver)])
    defined = {line.split()[-1] for line in _output(["nm", "--defined-only", str(driver)]).splitlines()}
    rest = scratch / "not_supported.cpp"
    functions = (
        f'extern "C" __attribute__((visibility("default"))) int {name}() {{ return {NOT_SUPPORTED}; }}\n'
        for name in wanted
        if name not in defined
    )
    rest.write_text("".join(functions), encoding="utf-8")
    built = scratch / SONAME
    _output([CXX, *flags, str(driver), str(rest), "-ldl", "-lpthread", "-o", str(built)])
    return built


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    except FileNotFoundError:
        raise BuildError(f"{command[0]} is not installed") from None
    if done.returncode != 0:
        raise BuildError(f"{' '.join(command)} failed:\n{done.stderr}")
    return done.stdout
