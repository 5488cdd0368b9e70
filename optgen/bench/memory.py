"""Memory: what a bench will need, said before it is asked for, and what optimizers keep, counted from their tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from optgen.bench.cases import Case
from optgen.bench.contenders import Contender
from optgen.doctor import readable_size
from optgen.errors import UserError

SPARE = 0.1  # of what is needed: allocators, and what libraries make beside
UNKNOWN_STATES = 2.0  # as a share of float32 parameters, where nothing is known of an optimizer
CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
    ),
)


@dataclass(frozen=True)
class Need:
    """Bytes that a case needs at once: contenders take turns, so that all states stand beside each other.

    Attributes:
        states: By the contender's name.
        beside: Memory that steps make and drop again, and that measuring the bandwidth takes.
    """

    parameters: float
    gradients: float
    states: Mapping[str, float]
    beside: float

    @property
    def total(self) -> float:
        """All of it, and what is to be spare beside it."""
        return (self.parameters + self.gradients + sum(self.states.values()) + self.beside) * (1 + SPARE)


def needed(case: Case, contenders: Sequence[Contender], beside: float = 0.0) -> Need:
    """Memory that a case needs.

    Args:
        beside: Bytes of what runs between steps.
    """
    itemsize = getattr(torch, case.dtype).itemsize
    parameters = float(itemsize * case.numel)
    states = {}
    for one in contenders:
        kept = one.bytes_kept(case)
        states[one.name] = 4 * UNKNOWN_STATES * case.numel if kept is None else kept
    largest = 4.0 * max(math.prod(shape) for shape in case.shapes)
    # While tensors are drawn, one stands in float32 beside its copy of another dtype.
    scratch = max([one.scratch * parameters for one in contenders] + [2 * largest])
    return Need(parameters, case.gradient_sets * parameters, states, scratch + beside)


def check_memory(case: Case, contenders: Sequence[Contender], beside: float, device: torch.device) -> Need:
    """Check that the memory for a case is free, and return the need.

    Raises:
        UserError: if it is not free; the message says what takes how much, and what would fit.
    """
    need, free = needed(case, contenders, beside), free_bytes(device)
    if free is None or need.total <= free:
        return need
    states = ", ".join(f"{name} {shown(size)}" for name, size in need.states.items())
    sets = "gradients" if case.gradient_sets == 1 else f"{case.gradient_sets} sets of gradients"
    raise UserError(
        f"{case.name} needs about {shown(need.total)} of memory, and {shown(free)} is free: parameters "
        f"{shown(need.parameters)}, {sets} {shown(need.gradients)}, states of {states}; nothing was measured. "
        f"{_advice(case, contenders, beside, free)}"
    )


def shown(size: float) -> str:
    """Bytes as a person would say them."""
    return readable_size(round(size))


def _advice(case: Case, contenders: Sequence[Contender], beside: float, free: float) -> str:
    alone = [one.name for one in contenders if needed(case, [one], beside).total <= free]
    if alone and len(contenders) > 1:
        return f"Of these {', '.join(alone)} would fit alone: name fewer classes and peers"
    share = free / min(needed(case, [one], beside).total for one in contenders)
    return f"Take a smaller model, or about {100 * share:.0f} % of these shapes with --shapes"


def free_bytes(device: torch.device) -> float | None:
    """Memory that can still be had: on a GPU what its driver says, else what the system and its limits leave."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    known = [size for size in (_available(), *(_bytes_left(*files) for files in CGROUPS)) if size is not None]
    return min(known, default=None)


def _available() -> float | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = {name: rest for name, _, rest in (line.partition(":") for line in lines)}
    return 1024.0 * int(found["MemAvailable"].split()[0]) if "MemAvailable" in found else None


def _bytes_left(limit: str, usage: str, stat: str) -> float | None:
    """Bytes that a container's limit leaves; pages of files that can be dropped do not count as used."""
    try:
        most, used = (Path(name).read_text(encoding="ascii").strip() for name in (limit, usage))
        lines = dict(line.split(" ", 1) for line in Path(stat).read_text(encoding="ascii").splitlines())
        cached = int(lines.get("total_inactive_file", lines.get("inactive_file", "0")))
        return None if most == "max" else max(float(int(most) - int(used) + cached), 0.0)
    except (OSError, ValueError):
        return None


def stored_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all tensors that an optimizer keeps for its parameters, each storage once."""
    storages = {}
    for tensor in _plain(value for state in optimizer.state.values() for value in _values(state)):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def _values(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _values(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _values(item)
    else:
        yield value


def _plain(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors that hold numbers: those of which a tensor subclass is made in its place."""
    for value in values:
        if not isinstance(value, Tensor):
            continue
        if type(value) not in (Tensor, torch.nn.Parameter) and hasattr(value, "__tensor_flatten__"):
            yield from _plain(getattr(value, name) for name in value.__tensor_flatten__()[0])
        else:
            yield value
