"""CUDA C++ source in, machine code of a GPU out: from the package, from the compile cache, or by a compiler.

A cubin is named `<source>-<architecture>-<source and headers>-<defines>.cubin` in the folder `cubins` beside its source
(`optgen build --arch` puts it there); this name is the same whatever nvcc made it, so that no nvcc is needed to find
it. Entries of the compile cache add a hash of what nvcc made them and how.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from optgen.runtime.building.archs import best, capability, is_arch
from optgen.runtime.building.entries import (
    CompileError,
    Hash,
    Kernel,
    Loader,
    with_footer,
    without_footer,
    words,
)
from optgen.runtime.building.nvcc import FLAGS, Nvcc, compile_cubin, escaped
from optgen.runtime.building.nvrtc import INSTALL, why_no_cuda_compiler
from optgen.runtime.building.private_dir import cache_dir, publish, read_own
from optgen.runtime.building.programs import FORMAT_VERSION

FOLDER = "cubins"
HASH_LENGTH = 16
ELF = b"\x7fELF"
ADVICE = (
    'To go on without compiled kernels, pass target="torch" to the optimizer; '
    "to use another compiler, set OPTGEN_NVCC; `optgen doctor` shows what was found."
)

_cubins = Loader[bytes]()


@dataclass(frozen=True)
class _Made:
    """Properties that decide a cubin besides its architecture and the nvcc."""

    source: str
    content: str
    defines: str

    @classmethod
    def of(cls, source: Path, defines: Mapping[str, str]) -> _Made:
        macros = Hash()
        macros.add_defines(defines)
        return cls(source.stem, _content(source), macros.hexdigest()[:HASH_LENGTH])

    def name(self, arch: str) -> str:
        return f"{self.source}-{arch}-{self.content}-{self.defines}"

    def arch(self, name: str) -> str | None:
        """The architecture of a file's name, if the rest of it fits."""
        arch = name[len(self.source) + 1 :].partition("-")[0]
        return arch if is_arch(arch) and name.partition(".")[0].startswith(self.name(arch)) else None


def cubin(source: Path, defines: Mapping[str, str], arch: str, nvcc: Nvcc | None, told: str = "") -> bytes:
    """Return the machine code of `source` with `-D` for each of `defines`, for a device of the architecture `arch`.

    It comes from the folder `cubins` beside the source, else from the compile cache, else from nvcc, which stores it in
    the cache. Code for a lower minor number of the same major one serves where there is none for `arch` itself. Safe to
    call from many processes and threads at once.

    Args:
        source: A .cu file; a header beside it that it includes is a part of the content that the name is made of.
        arch: "sm_90" for compute capability 9.0.
        nvcc: Compiler that builds it, nvcc or NVRTC; None where there is none.
        told: Said to the user while it is built for longer than a moment; "" for nothing.

    Raises:
        CompileError: when it is stored nowhere and cannot be built.
        ValueError: if `arch` is not an architecture.
    """
    capability(arch)
    made = _Made.of(source, defines)
    found = _best_stored(made, arch, source.parent / FOLDER, _read)
    if found is not None:
        return found
    target = None if nvcc is None else best(nvcc.archs, arch)
    if nvcc is None or target is None:
        # One that an nvcc made which is not here, on a machine that shares this cache.
        with suppress(OSError):
            found = _best_stored(made, arch, cache_dir(), read_own)
        if found is None:
            raise CompileError(_missing_message(source, arch, nvcc))
        return found
    return build_cubin(source, defines, target, nvcc, told)


def build_cubin(source: Path, defines: Mapping[str, str], arch: str, nvcc: Nvcc, told: str = "") -> bytes:
    """Return the machine code for exactly this architecture, by this nvcc, building it only if no cache has it.

    Raises:
        CompileError: when it cannot be built.
    """

    def key() -> str:
        made = _Made.of(source, defines)
        full = Hash(str(FORMAT_VERSION), nvcc.version, *nvcc.command, "flags", *nvcc.flags, "variables")
        full.add(*nvcc.variables, made.name(arch))
        return f"{made.content}-{made.defines}-{full.hexdigest()[:32]}"

    def load(_: str, content: bytes) -> bytes:
        if not content.startswith(ELF):
            raise OSError("it is not machine code of a GPU")
        return content

    arguments = [*escaped(words(defines)), str(source.absolute())]
    return _cubins.get(
        Kernel(
            source=source,
            compiler=nvcc.file,
            key=key,
            name=lambda key: f"{source.stem}-{arch}-{key}.cubin",
            build=lambda output, folder: compile_cubin(nvcc, arch, [*arguments, "-o", str(output)], folder),
            load=load,
            advice=ADVICE,
            unloadable=lambda _: f"Is {nvcc.file} a compiler of CUDA?",
            told=told,
        )
    )


def store_cubin(source: Path, defines: Mapping[str, str], arch: str, content: bytes) -> Path:
    """Put machine code into the folder beside its source, where it is found without nvcc; return its path.

    Raises:
        OSError: when it cannot be written.
    """
    folder = source.parent / FOLDER
    if folder.is_symlink():
        raise OSError(f"{folder} is a link, through which nothing is written; make it a folder")
    folder.mkdir(exist_ok=True)
    path = folder / f"{_Made.of(source, defines).name(arch)}.cubin"
    if without_footer(_read(path)) == content:
        return path
    descriptor, name = tempfile.mkstemp(prefix=".tmp-", dir=folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(with_footer(content))
        Path(name).chmod(0o644)
        publish(Path(name), path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path


def stored_cubins(package: Path) -> list[Path]:
    """The cubins inside a package, in the order of their names."""
    return sorted((package / FOLDER).glob("*-sm_*-*.cubin"))


def drop_stale_cubins(package: Path) -> int:
    """Remove the cubins inside a package whose source or headers are not what they were built from.

    Where the folder is a link, what it holds is no part of the package and stays.

    Returns:
        How many were removed.

    Raises:
        OSError: when one cannot be removed.
        CompileError: when a source cannot be read.
    """
    folder = package / FOLDER
    if folder.is_symlink():
        return 0
    contents: dict[str, str | None] = {}
    dropped = 0
    for path in stored_cubins(package):
        stem, _, rest = path.name.partition("-sm_")
        if stem not in contents:
            source = package / f"{stem}.cu"
            contents[stem] = _content(source) if source.is_file() else None
        if rest.split("-")[1:2] != [contents[stem]]:
            path.unlink()
            dropped += 1
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
    return dropped


def _content(source: Path) -> str:
    """The part of a name that says what was compiled."""
    content = Hash("cubin", str(FORMAT_VERSION), *FLAGS)
    content.add_source(source)
    return content.hexdigest()[:HASH_LENGTH]


def _best_stored(made: _Made, device: str, folder: Path, read: Callable[[Path], bytes | None]) -> bytes | None:
    """The content of the file that serves a device best; damaged ones are passed over."""
    fitting: dict[str, list[Path]] = {}
    for path in folder.glob(f"{made.source}-sm_*.cubin"):
        arch = made.arch(path.name)
        if arch is not None:
            fitting.setdefault(arch, []).append(path)
    while (arch := best(fitting, device)) is not None:
        for path in sorted(fitting.pop(arch)):
            content = without_footer(read(path))
            if content is not None and content.startswith(ELF):
                return content
    return None


def _read(path: Path) -> bytes | None:
    """A file of the package: whoever could change it could change the code beside it, which is run as it is."""
    try:
        return path.read_bytes()
    except OSError:
        return None


def _missing_message(source: Path, arch: str, nvcc: Nvcc | None) -> str:
    """Message about a cubin that is not stored and cannot be built: what is missing, and what mends it."""
    ahead = f"`optgen build --arch {arch}` where there is one puts it into the package, which then needs none here."
    if nvcc is None:
        looked = why_no_cuda_compiler()
        reason = f"there is no nvcc or NVRTC to build it ({looked})" if looked else "no compiler was given to build it"
        return f"no kernel of {source} for {arch} is stored, and {reason}\nInstall one: {INSTALL}. Or {ahead}\n{ADVICE}"
    return (
        f"no kernel of {source} for {arch} is stored, and {nvcc.file} of CUDA {nvcc.release} cannot build it: "
        f"it builds for {', '.join(nvcc.archs)}\n"
        f"Install a release of CUDA that knows {arch} ({INSTALL} brings the newest, OPTGEN_NVCC=nvrtc takes it). "
        f"Or {ahead}\n{ADVICE}"
    )
