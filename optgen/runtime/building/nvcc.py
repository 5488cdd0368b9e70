"""Finding an nvcc that can build cubins here, and remembering on disk what was found out about it.

NVRTC (nvrtc.py) is one more, with the same command line.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shlex
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optgen.runtime.building.archs import in_order, is_arch
from optgen.runtime.building.private_dir import cache_dir
from optgen.runtime.building.programs import (
    COMPILE_TIMEOUT_SECONDS,
    PROBE_TIMEOUT_SECONDS,
    Candidate,
    Output,
    examine,
    first_found,
    first_line,
    identity,
    out_of_space,
    resolve,
    run,
    why_none,
)

OLDEST = (12, 0)
INSTALL = "pip install nvidia-cuda-nvcc"
SYSTEM_ROOT = Path("/usr/local")
HOST_COMPILERS = ("g++", "clang++", "c++")
VARIABLES = ("NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS", "NVCC_CCBIN")  # nvcc's own: they change what it does

FLAGS = (
    "-O3",
    "-std=c++17",
    # Products and sums are rounded one by one, as in torch's own operations, so that all targets agree.
    "-fmad=false",
    "--cubin",
)

PROBE = """\
#include <stdint.h>
#include <type_traits>
template <class T> __device__ T twice(T value) {
    if constexpr (std::is_same_v<T, float>) return value * 2.0f;
    else return value;
}
extern "C" __global__ void probe(float* values, int64_t count) {
    const int64_t at = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
    if (at < count) values[at] = twice(sqrtf(values[at]));
}
"""

# Packages that NVIDIA's package of nvcc needs, by a file of each.
COMPANIONS = {
    "nvvm/bin/cicc": "nvidia-nvvm",
    "include/crt/host_config.h": "nvidia-cuda-crt",
    "include/cuda_runtime.h": "nvidia-cuda-runtime",
}


def escaped(words: Iterable[str]) -> tuple[str, ...]:
    """Arguments as nvcc takes them: a bare comma in an option's value would end it."""
    return tuple(word.replace(",", "\\,") if word.startswith("-") else word for word in words)


@dataclass(frozen=True)
class Nvcc:
    """An nvcc, or what has its command line, that builds C++17 for GPUs here.

    Attributes:
        path: The program as found.
        version: Output of `--version`.
        archs: The architectures it builds for, as "sm_90", oldest first.
        arguments: Words that stand before every other argument.
        flags: Arguments that it needs to build here: which host compiler.
        variables: The values of `VARIABLES`.
    """

    path: str
    version: str
    archs: tuple[str, ...]
    arguments: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()

    @property
    def command(self) -> tuple[str, ...]:
        """The words that a command line begins with."""
        return (self.path, *self.arguments)

    @property
    def file(self) -> str:
        """The program, or the library that it runs, for messages."""
        return self.arguments[-1] if self.is_library else self.path

    @property
    def is_library(self) -> bool:
        """True for NVRTC (nvrtc.py)."""
        return self.version.startswith("NVRTC")

    @property
    def release(self) -> str:
        """The release of CUDA it belongs to: "13.0"."""
        found = _release(self.version)
        return "unknown" if found is None else f"{found[0]}.{found[1]}"


def find_nvcc() -> Nvcc | None:
    """Return the first nvcc of CUDA 12.0 or newer that builds here, or None.

    `$OPTGEN_NVCC` alone is tried where it is set; otherwise those on PATH, in `$CUDA_HOME`, in `$CUDA_PATH`, in
    /usr/local/cuda* (newest first), and in NVIDIA's packages from PyPI, in this order.
    """
    return first_found(nvcc_candidates())


def why_no_nvcc() -> str:
    """Return in one line what was looked for and why none of it serves; "" if an nvcc was found."""
    return why_none(nvcc_candidates())


def nvcc_candidates() -> Iterator[Candidate[Nvcc]]:
    """Yield what is looked for, in order. Later ones are examined only when they are asked for."""
    search_path = os.environ.get("PATH", os.defpath)
    variables = tuple(os.environ.get(name, "") for name in VARIABLES)
    try:
        directory = str(cache_dir())
    except OSError as error:
        yield Candidate("nvcc", "PATH", None, f"cannot be tried: {error}")
        return
    forced = os.environ.get("OPTGEN_NVCC")
    if forced:
        yield _examine(forced, "OPTGEN_NVCC", search_path, variables, directory)
        return
    seen = set()
    for name, origin in _wanted():
        found = shutil.which(name, path=search_path)
        real = os.path.realpath(found or name)
        if real not in seen:
            seen.add(real)
            yield _examine(name, origin, search_path, variables, directory)


def _wanted() -> Iterator[tuple[str, str]]:
    """Yield programs and where each comes from: names on PATH, else whole paths."""
    yield "nvcc", "PATH"
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        root = os.environ.get(variable)
        if root:
            yield str(Path(root) / "bin" / "nvcc"), variable
    yield from ((str(path), "the CUDA toolkit") for path in _toolkits())
    yield from ((str(path), "PyPI") for path in _packages())


def _toolkits() -> list[Path]:
    """Candidates in toolkits below /usr/local, newest first; the link `cuda` counts as its target."""
    found = {Path(os.path.realpath(path)): path for path in sorted(SYSTEM_ROOT.glob("cuda*/bin/nvcc"), reverse=True)}

    def version(real: Path) -> list[int]:
        return [int(number) for number in re.findall(r"\d+", real.parent.parent.name)]

    return [found[real] for real in sorted(found, key=version, reverse=True)]


def _packages() -> list[Path]:
    """Candidates in NVIDIA's packages from PyPI that this Python imports, newest first, also without nvcc itself.

    CUDA 13 and later share one folder a major version (`nvidia/cu13`); of CUDA 12 every package has its own.
    """
    roots = nvidia_folders()
    shared = [path for root in roots for path in root.glob("cu[0-9]*/bin/nvcc")]
    shared.sort(key=lambda path: int(re.sub(r"\D", "", path.parent.parent.name)), reverse=True)
    return [*shared, *(root / "cuda_nvcc/bin/nvcc" for root in roots if (root / "cuda_nvcc").is_dir())]


def nvidia_folders() -> list[Path]:
    """The folders that make up the namespace package `nvidia`."""
    spec = None
    with suppress(ImportError, ValueError):
        spec = importlib.util.find_spec("nvidia")
    return [] if spec is None else [Path(place) for place in spec.submodule_search_locations or ()]


@functools.lru_cache(maxsize=64)
def _examine(name: str, origin: str, search_path: str, variables: tuple[str, ...], directory: str) -> Candidate[Nvcc]:
    """Examine one candidate, once a process."""
    if os.name == "nt":
        return Candidate(name, origin, None, "building kernels is not supported on Windows")
    command = resolve(name, search_path)
    if command is None:
        return Candidate(name, origin, None, _reason_absent(Path(name), origin))
    # A host compiler that was updated or installed since may be taken, or refused, by the same nvcc.
    hosts = _host_compilers()
    facts = "\0".join((*variables, identity([*variables[-1:], "gcc", *hosts])))
    found = examine(
        "nvcc", command, facts, Path(directory), read, lambda folder: probe(command, variables, hosts, folder)
    )
    if not isinstance(found, str):
        return Candidate(name, origin, found)
    return Candidate(name, origin, None, _missing_companions(Path(command[0]), origin) or found)


def _reason_absent(path: Path, origin: str) -> str:
    if path.is_file():
        return f"is not executable; chmod +x {shlex.quote(str(path))}"
    if origin == "PyPI":
        return f"NVIDIA's package for CUDA 12 is installed, which holds no nvcc; {INSTALL} brings that of CUDA 13"
    return "not found"


def _missing_companions(path: Path, origin: str) -> str:
    """Names of packages that an nvcc from PyPI lacks to build; "" if none."""
    if origin != "PyPI":
        return ""
    root = path.parent.parent
    missing = [package for file, package in COMPANIONS.items() if not (root / file).exists()]
    return f"does not work without {' and '.join(missing)}; pip install {' '.join(missing)}" if missing else ""


def read(fields: Any) -> Nvcc:
    """Read the record of an nvcc. Raises ValueError, KeyError or TypeError for what is no such record."""
    found = Nvcc(
        str(fields["path"]),
        str(fields["version"]),
        tuple(str(arch) for arch in fields["archs"]),
        tuple(fields["arguments"]),
        tuple(fields["flags"]),
        tuple(fields["variables"]),
    )
    if not found.archs or not all(is_arch(arch) for arch in found.archs):
        raise ValueError(found.archs)
    return found


def _release(version: str) -> tuple[int, int] | None:
    found = re.search(r"\brelease (\d+)\.(\d+)", version)
    return None if found is None else (int(found[1]), int(found[2]))


def probe(
    command: tuple[str, ...], variables: tuple[str, ...], hosts: Sequence[str] | None, temporary: Path
) -> Nvcc | str:
    """Try an nvcc out; return it, or the reason why it cannot serve.

    Args:
        hosts: C++ compilers that may stand beside it; None if it needs none.
    """
    version = run((*command, "--version"), temporary, PROBE_TIMEOUT_SECONDS)
    if version.status != 0:
        return f"`--version` failed: {first_line(version.said)}".rstrip(": ")
    release = _release(version.said)
    if release is None:
        return f"`--version` names no release of CUDA: {first_line(version.said)}".rstrip(": ")
    if release < OLDEST:
        return f"is of CUDA {release[0]}.{release[1]}; {OLDEST[0]}.{OLDEST[1]} or newer is needed"
    listed = run((*command, "--list-gpu-code"), temporary, PROBE_TIMEOUT_SECONDS)
    archs = tuple(in_order(word for word in listed.said.split() if is_arch(word)))
    if listed.status != 0 or not archs:
        return f"`--list-gpu-code` failed: {first_line(listed.said)}".rstrip(": ")
    flags = _working_flags(command, archs[-1], hosts, temporary)
    if isinstance(flags, str):
        return flags
    return Nvcc(command[0], version.said.strip(), archs, command[1:], flags, variables)


def _working_flags(
    command: tuple[str, ...], arch: str, hosts: Sequence[str] | None, temporary: Path
) -> tuple[str, ...] | str:
    """Find the flags with which an nvcc builds; else say why it does not."""
    source, output = temporary / "probe.cu", temporary / "probe.cubin"
    source.write_text(PROBE, encoding="utf-8")
    attempts: list[tuple[str, ...]] = [(), *(("-ccbin", host) for host in hosts or ())]
    message = ""
    while attempts:
        flags = attempts.pop(0)
        arguments = (*FLAGS, f"-arch={arch}", *flags, str(source), "-o", str(output))
        done = run((*command, *arguments), temporary, PROBE_TIMEOUT_SECONDS)
        if done.status == 0 and output.exists():
            return flags
        full = out_of_space(done, temporary)
        if full:
            raise OSError(f"{full} in {temporary.parent}")
        message = message or done.said
        # Too new a host compiler is refused by its number alone; of its headers kernels need next to nothing.
        if "unsupported" in done.said and "-allow-unsupported-compiler" not in flags:
            attempts.append((*flags, "-allow-unsupported-compiler"))
    if hosts is not None and not hosts and shutil.which("gcc") is None and not os.environ.get("NVCC_CCBIN"):
        return "needs a C++ compiler beside it, and there is no g++ or clang++; install one (apt install g++)"
    return f"does not build C++17 for {arch}: {first_line(message)}".rstrip(": ")


def _host_compilers() -> list[str]:
    """The C++ compilers there are, as whole paths, those that the user names first."""
    named = (os.environ.get("OPTGEN_CXX"), os.environ.get("CXX"), *HOST_COMPILERS)
    commands = [resolve(name, os.environ.get("PATH", os.defpath)) for name in named if name]
    # nvcc takes a path alone: no "ccache g++".
    return list(dict.fromkeys(command[0] for command in commands if command is not None and len(command) == 1))


def compile_cubin(nvcc: Nvcc, arch: str, arguments: Sequence[str], temporary: Path) -> Output:
    """Run nvcc. Raises OSError."""
    return run((*nvcc.command, *FLAGS, f"-arch={arch}", *nvcc.flags, *arguments), temporary, COMPILE_TIMEOUT_SECONDS)
