"""What is measured against what: the sets of tensors, the optimizers, and the memory traffic each step needs."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
SETTINGS: dict[str, Any] = {"lr": 1e-3, "weight_decay": 1e-2}
EXTRA_SETTINGS: dict[str, dict[str, Any]] = {"LARS": {"momentum": 0.9}}
DEFAULT_CLASSES = ("AdamW32bit", "AdamW8bit", "LAMB", "LAMB8bit", "LARS", "LARS8bit")
FUSED, FOREACH, COMPILED = "torch AdamW fused", "torch AdamW foreach", "torch AdamW compiled"
BNB8, BNB32 = "bitsandbytes AdamW8bit", "bitsandbytes AdamW32bit"
TORCHAO8 = "torchao AdamW8bit"
PEERS = {"torch": (FUSED, FOREACH), "compile": (COMPILED,), "bitsandbytes": (BNB8, BNB32), "torchao": (TORCHAO8,)}
MIN_8BIT_SIZE = 4096
STATES_8BIT = 4 + 16 / 256  # bytes per parameter that two 8-bit states move, scales read and written


@dataclass(frozen=True)
class Case:
    """A set of parameters; `gradient_sets` is how many sets of gradients take turns."""

    name: str
    shapes: tuple[tuple[int, ...], ...]
    gradient_sets: int
    dtype: str = "float32"

    @property
    def numel(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes)


@dataclass(frozen=True)
class Contender:
    """An optimizer to measure.

    Attributes:
        make: Builds it.
        traffic: Bytes per parameter that a step must move for a tensor of that many elements of a dtype.
        capturable: Builds one whose steps a CUDA graph can record, if there is one.
    """

    name: str
    make: Callable[[list[Tensor]], torch.optim.Optimizer]
    traffic: Callable[[int, str], float | None]
    ours: bool = False
    capturable: Callable[[list[Tensor]], torch.optim.Optimizer] | None = None

    def bytes_moved(self, case: Case) -> float | None:
        """Return the bytes that one step of `case` must move, or None if that is not known."""
        total = 0.0
        for shape in case.shapes:
            numel = math.prod(shape)
            each = self.traffic(numel, case.dtype)
            if each is None:
                return None
            total += each * numel
        return total


def gpt2_shapes() -> tuple[tuple[int, ...], ...]:
    """Return the shapes of GPT-2 small's 148 parameters, in the order of the model."""
    width, layers = 768, 12
    norm: tuple[tuple[int, ...], ...] = ((width,), (width,))
    attention = ((width, 3 * width), (3 * width,), (width, width), (width,))
    mlp = ((width, 4 * width), (4 * width,), (4 * width, width), (width,))
    block = (*norm, *attention, *norm, *mlp)
    return ((50257, width), (1024, width), *(block * layers), *norm)


CASES = (
    Case("4096x4096", ((4096, 4096),), 3),
    Case("gpt2", gpt2_shapes(), 2),
    Case("1000x1024", ((1024,),) * 1000, 16),
)


def plan_traffic() -> dict[tuple[str, str], float]:
    """Return bytes per parameter and step, from plans, by class and dtype; empty if the compiler is missing."""
    try:
        compiler = importlib.import_module("optgen.compiler")
        specs = importlib.import_module("optgen.paths").specs_dir()
        package = compiler.compile_specs([specs], "optgen_optim")
    except ImportError:
        return {}
    traffic = importlib.import_module("optgen.schedule.traffic").traffic
    return {
        (info.name, dtype): float(traffic(info.plans["step"], replace(info.setting, param=dtype, grad=dtype)))
        for info in package.classes
        for dtype in ("float32", "bfloat16")
    }


def contenders(classes: Sequence[str], peers: Sequence[str]) -> tuple[list[Contender], dict[str, str]]:
    """Return the optimizers that can be measured here, and those that cannot, each with the reason."""
    found: list[Contender] = []
    absent: dict[str, str] = {}
    for peer in peers:
        try:
            found += PEER_MAKERS[peer]()
        except Exception as error:  # a package that is broken is as absent as one that is not installed
            absent.update(dict.fromkeys(PEERS[peer], f"{type(error).__name__}: {error}".splitlines()[0]))
    if not classes:
        return found, absent
    try:
        package = importlib.import_module("optgen_optim")
    except ImportError as error:
        absent.update(dict.fromkeys(classes, f"{type(error).__name__}: {error}"))
        return found, absent
    traffic = plan_traffic()
    ours = []
    for name in classes:
        if hasattr(package, name):
            ours.append(our_contender(name, getattr(package, name), traffic))
        else:
            absent[name] = "optgen_optim has no such class"
    return ours + found, absent


def our_contender(
    name: str, made: Callable[..., torch.optim.Optimizer], traffic: dict[tuple[str, str], float]
) -> Contender:
    """Describe a generated class; below `min_8bit_size` elements an 8-bit class moves what its 32-bit sibling does."""
    family = name.removesuffix("32bit").removesuffix("8bit")
    settings = {**SETTINGS, **EXTRA_SETTINGS.get(family, {})}

    def moved(numel: int, dtype: str) -> float | None:
        if name.endswith("8bit") and numel < MIN_8BIT_SIZE:
            return traffic.get((f"{family}32bit", dtype), traffic.get((family, dtype)))
        return traffic.get((name, dtype))

    return Contender(
        name,
        lambda params: made(params, **settings),
        moved,
        ours=True,
        capturable=lambda params: made(params, **settings, capturable=True),
    )


def torch_peers() -> list[Contender]:
    """Return torch's own AdamW, as one native call and as lists of operations."""

    def fused(params: list[Tensor], **more: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(params, **SETTINGS, fused=True, **more)

    return [
        Contender(FUSED, fused, traffic_own, capturable=lambda params: fused(params, capturable=True)),
        Contender(FOREACH, lambda params: torch.optim.AdamW(params, **SETTINGS, foreach=True), traffic_own),
    ]


def compiled_peers() -> list[Contender]:
    """Return torch's AdamW as torch.compile makes it; it compiles at its first step."""

    def compiled(params: list[Tensor]) -> torch.optim.Optimizer:
        optimizer = torch.optim.AdamW(params, **SETTINGS, foreach=True, capturable=params[0].is_cuda)
        optimizer.step = torch.compile(optimizer.step, fullgraph=False)  # type: ignore[method-assign]
        return optimizer

    return [Contender(COMPILED, compiled, traffic_own)]


def bitsandbytes_peers() -> list[Contender]:
    """Return bitsandbytes' AdamW with 8-bit and with 32-bit states."""
    with quiet():
        optim: Any = importlib.import_module("bitsandbytes.optim")
    return [
        Contender(BNB8, lambda params: optim.AdamW8bit(params, **SETTINGS), traffic_8bit),
        Contender(BNB32, lambda params: optim.AdamW32bit(params, **SETTINGS), traffic_32bit),
    ]


def torchao_peers() -> list[Contender]:
    """Return torchao's AdamW with 8-bit states; it compiles itself at its first step."""
    with quiet():
        optim: Any = importlib.import_module("torchao.optim")
    return [Contender(TORCHAO8, lambda params: optim.AdamW8bit(params, **SETTINGS), traffic_8bit)]


PEER_MAKERS: dict[str, Callable[[], list[Contender]]] = {
    "torch": torch_peers,
    "compile": compiled_peers,
    "bitsandbytes": bitsandbytes_peers,
    "torchao": torchao_peers,
}


def weight_traffic(dtype: str) -> float:
    """Return the bytes of a parameter read and written and of its gradient read."""
    return 3.0 * getattr(torch, dtype).itemsize


def traffic_own(_: int, dtype: str) -> float:
    """Return the bytes per parameter of AdamW with two states of the parameter's dtype."""
    return weight_traffic(dtype) / 3 * 7


def traffic_32bit(_: int, dtype: str) -> float:
    """Return the bytes per parameter of AdamW with two 32-bit states."""
    return weight_traffic(dtype) + 16


def traffic_8bit(numel: int, dtype: str) -> float:
    """Return the bytes per parameter of AdamW with two 8-bit states in blocks of 256."""
    return weight_traffic(dtype) + STATES_8BIT if numel >= MIN_8BIT_SIZE else traffic_32bit(numel, dtype)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what other packages print while they load or compile out of the report."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def find_packages() -> None:
    """Let a source checkout be measured without installing it."""
    for folder in (ROOT / "generated", ROOT):
        if folder.is_dir() and str(folder) not in sys.path:
            sys.path.append(str(folder))
