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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
SETTINGS: dict[str, Any] = {"lr": 1e-3, "weight_decay": 1e-2}
EXTRA_SETTINGS: dict[str, dict[str, Any]] = {"LARS": {"momentum": 0.9}}
DEFAULT_CLASSES = ("AdamW32bit", "AdamW8bit", "LAMB", "LAMB8bit", "LARS", "LARS8bit")
FUSED, FOREACH = "torch AdamW fused", "torch AdamW foreach"
BNB8, BNB32 = "bitsandbytes AdamW8bit", "bitsandbytes AdamW32bit"
TORCHAO8 = "torchao AdamW8bit"
PEERS = {"torch": (FUSED, FOREACH), "bitsandbytes": (BNB8, BNB32), "torchao": (TORCHAO8,)}
MIN_8BIT_SIZE = 4096
# Bytes a step must move per parameter: parameter read and written, gradient read, states read and written.
TRAFFIC_FP32, TRAFFIC_8BIT = 28.0, 12 + 4 + 16 / 256


@dataclass(frozen=True)
class Case:
    """A set of fp32 parameters; `gradient_sets` is how many sets of gradients take turns."""

    name: str
    shapes: tuple[tuple[int, ...], ...]
    gradient_sets: int

    @property
    def numel(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes)


@dataclass(frozen=True)
class Contender:
    """An optimizer to measure. `make` builds it; `traffic` gives bytes per parameter for a tensor of that many."""

    name: str
    make: Callable[[list[Tensor]], torch.optim.Optimizer]
    traffic: Callable[[int], float | None]
    ours: bool = False

    def bytes_moved(self, case: Case) -> float | None:
        """Return the bytes that one step of `case` must move, or None if that is not known."""
        total = 0.0
        for shape in case.shapes:
            numel = math.prod(shape)
            each = self.traffic(numel)
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


def plan_traffic() -> dict[str, float]:
    """Return each stock class's bytes per parameter and step, from its plan; empty if the compiler is missing."""
    try:
        compiler = importlib.import_module("optgen.compiler")
        specs = importlib.import_module("optgen.paths").specs_dir()
        package = compiler.compile_specs([specs], "optgen_optim")
    except ImportError:
        return {}
    return {info.name: float(info.traffic) for info in package.classes}


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


def our_contender(name: str, made: Callable[..., torch.optim.Optimizer], traffic: dict[str, float]) -> Contender:
    """Describe a generated class; below `min_8bit_size` elements an 8-bit class moves what its 32-bit sibling does."""
    family = name.removesuffix("32bit").removesuffix("8bit")
    settings = {**SETTINGS, **EXTRA_SETTINGS.get(family, {})}
    own = traffic.get(name)
    small = traffic.get(f"{family}32bit", traffic.get(family)) if name.endswith("8bit") else own
    return Contender(
        name,
        lambda params: made(params, **settings),
        lambda numel: own if numel >= MIN_8BIT_SIZE else small,
        ours=True,
    )


def torch_peers() -> list[Contender]:
    """Return torch's own AdamW, as one native call and as lists of operations."""

    return [
        Contender(FUSED, lambda params: torch.optim.AdamW(params, **SETTINGS, fused=True), lambda _: TRAFFIC_FP32),
        Contender(FOREACH, lambda params: torch.optim.AdamW(params, **SETTINGS, foreach=True), lambda _: TRAFFIC_FP32),
    ]


def bitsandbytes_peers() -> list[Contender]:
    """Return bitsandbytes' AdamW with 8-bit and with 32-bit states."""
    with quiet():
        optim: Any = importlib.import_module("bitsandbytes.optim")
    return [
        Contender(BNB8, lambda params: optim.AdamW8bit(params, **SETTINGS), traffic_8bit),
        Contender(BNB32, lambda params: optim.AdamW32bit(params, **SETTINGS), lambda _: TRAFFIC_FP32),
    ]


def torchao_peers() -> list[Contender]:
    """Return torchao's AdamW with 8-bit states; it compiles itself at its first step."""
    with quiet():
        optim: Any = importlib.import_module("torchao.optim")
    return [Contender(TORCHAO8, lambda params: optim.AdamW8bit(params, **SETTINGS), traffic_8bit)]


PEER_MAKERS: dict[str, Callable[[], list[Contender]]] = {
    "torch": torch_peers,
    "bitsandbytes": bitsandbytes_peers,
    "torchao": torchao_peers,
}


def traffic_8bit(numel: int) -> float:
    """Return the bytes per parameter of AdamW with two 8-bit states in blocks of 256."""
    return TRAFFIC_8BIT if numel >= MIN_8BIT_SIZE else TRAFFIC_FP32


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
