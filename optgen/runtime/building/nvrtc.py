"""Finding the compiler of kernels for GPUs: an nvcc, else NVRTC, the compiler as a library that torch's wheels bring.

NVRTC is run as a program of its own (run_nvrtc.py), so that it can be ended, says what nvcc would say, and is found
out about and remembered in the same way.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from optgen.runtime.building.nvcc import SYSTEM_ROOT, Nvcc, nvcc_candidates, nvidia_folders, probe, read
from optgen.runtime.building.private_dir import cache_dir
from optgen.runtime.building.programs import Candidate, examine, first_found, why_none

NAME = "nvrtc"
INSTALL = "pip install nvidia-cuda-nvrtc"
PREFIX = Path(sys.prefix)  # of conda, say
PROGRAM = Path(__file__).with_name("run_nvrtc.py")
# libnvrtc.so.13, also with a hash as some wheels rename it; not libnvrtc-builtins, nor NVRTC's other build (.alt).
FILE = re.compile(r"libnvrtc(-[0-9a-f]+)?\.so(\.(\d+))[.\d]*")


def find_cuda_compiler() -> Nvcc | None:
    """Return the first compiler that builds cubins here, or None.

    `$OPTGEN_NVCC` alone is tried where it is set: a program, or `nvrtc`. Otherwise every nvcc (`nvcc_candidates`), then
    NVRTC, wherever it is (`nvrtc_candidates`).
    """
    return first_found(cuda_compiler_candidates())


def why_no_cuda_compiler() -> str:
    """Return in one line what was looked for and why none of it serves; "" if one was found."""
    return why_none(cuda_compiler_candidates())


def cuda_compiler_candidates() -> Iterator[Candidate[Nvcc]]:
    """Yield what is looked for, in order. Later ones are examined only when they are asked for."""
    forced = os.environ.get("OPTGEN_NVCC")
    if forced == NAME:
        return nvrtc_candidates()
    return nvcc_candidates() if forced else chain(nvcc_candidates(), nvrtc_candidates())


def nvrtc_candidates() -> Iterator[Candidate[Nvcc]]:
    """Yield the libraries that there are: that of torch's own CUDA first, then newer ones before older ones."""
    there = libraries()
    try:
        directory = str(cache_dir())
    except OSError as error:
        yield Candidate("NVRTC", "the cache", None, f"cannot be tried: {error}")
        return
    if not there:
        yield Candidate("NVRTC", "PyPI", None, f"not found; {INSTALL}")
    for path in there:
        yield _examine(str(path), directory)


def libraries() -> list[Path]:
    """NVRTC in NVIDIA's packages, in torch's folder, in this environment (conda), in toolkits; each file once."""
    patterns = [(root, pattern) for root in nvidia_folders() for pattern in ("cu[0-9]*/lib", "cuda_nvrtc/lib")]
    torch = loaded_torch()
    if torch is not None:
        patterns.append((Path(torch.__file__).parent, "lib"))
    patterns.append((PREFIX, "lib"))
    homes = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    patterns += [(root, folder) for root in homes for folder in ("lib64", "lib")]
    patterns.append((SYSTEM_ROOT, "cuda*/lib64"))
    found: dict[str, tuple[Path, int]] = {}
    for root, pattern in patterns:
        for path in sorted(root.glob(f"{pattern}/libnvrtc*.so*")):
            name = FILE.fullmatch(path.name)
            if name is not None:
                found.setdefault(os.path.realpath(path), (path, int(name[3])))
    cuda = None if torch is None else torch.version.cuda
    wanted = int(cuda.partition(".")[0]) if cuda else 0
    ordered = sorted(found.values(), key=lambda item: (item[1] != wanted, -item[1]))
    return [path for path, _ in ordered]


def loaded_torch() -> Any:
    """torch, if this process has imported it."""
    return sys.modules.get("torch")


def command(library: Path) -> tuple[str, ...]:
    """The words that a command line of a library begins with."""
    return (sys.executable, "-I", str(PROGRAM), str(library))


@functools.lru_cache(maxsize=64)
def _examine(path: str, directory: str) -> Candidate[Nvcc]:
    """Examine one library, once a process."""
    words = command(Path(path))
    found = examine("nvcc", words, "", Path(directory), read, lambda folder: probe(words, (), None, folder))
    if isinstance(found, str):
        return Candidate(path, "NVRTC", None, found)
    return Candidate(path, "NVRTC", found)
