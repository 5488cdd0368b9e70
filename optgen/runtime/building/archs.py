"""GPU architectures: which cubins run on which devices.

Machine code built for a compute capability runs on devices of the same major number and the same or a higher minor
one. NVIDIA promises this for discrete GPUs; code for an integrated one (Jetson, Drive) runs on that one alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

INTEGRATED = frozenset({"sm_53", "sm_62", "sm_72", "sm_87", "sm_88", "sm_101", "sm_110"})
_NAME = re.compile(r"sm_(\d{1,2})(\d)")


def capability(arch: str) -> tuple[int, int]:
    """Major and minor number of an architecture: (8, 6) for "sm_86".

    Raises:
        ValueError: if it is not the name of an architecture.
    """
    found = _NAME.fullmatch(arch)
    if found is None:
        raise ValueError(f"{arch!r} is not a GPU architecture; one looks like sm_86, for compute capability 8.6")
    return int(found[1]), int(found[2])


def is_arch(arch: str) -> bool:
    """Check whether a text is the name of an architecture."""
    return _NAME.fullmatch(arch) is not None


def serves(built: str, device: str) -> bool:
    """Check whether a cubin for `built` runs on a device of the architecture `device`."""
    if built == device:
        return True
    if built in INTEGRATED or device in INTEGRATED:
        return False
    (major, minor), (other, most) = capability(built), capability(device)
    return major == other and minor <= most


def best(available: Iterable[str], device: str) -> str | None:
    """The architecture whose cubins run best on a device: its own, else the nearest below; None if none runs."""
    return max((arch for arch in available if serves(arch, device)), key=capability, default=None)


def in_order(archs: Iterable[str]) -> list[str]:
    """Architectures from the oldest to the newest, each once."""
    return sorted(set(archs), key=capability)
