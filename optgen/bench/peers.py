"""The same rules in other libraries, by the names that they have there."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from optgen.bench.cases import Shape
from optgen.bench.contenders import SETTINGS, Contender, Make, PerElement, Wanted, unknown
from optgen.bench.driving import arguments
from optgen.schedule.traffic import state_bytes, traffic

FUSED, FOREACH, COMPILED = "torch AdamW fused", "torch AdamW foreach", "torch AdamW compiled"
BNB8, BNB32 = "bitsandbytes AdamW8bit", "bitsandbytes AdamW32bit"
TORCHAO8 = "torchao AdamW8bit"
FLASH8, FLASH32 = "flashoptim AdamW8bit", "flashoptim AdamW32bit"
ADAMW = "AdamW"
FORK = "bitsandbytes-cpu-fork"
FORK8 = f"{FORK} AdamW8bit"


@dataclass(frozen=True)
class Peers:
    """Contenders from other libraries that can be measured here; the absent ones by name, with the reason."""

    found: tuple[Contender, ...]
    absent: Mapping[str, str]


def peers(packages: Sequence[str], classes: Sequence[Wanted]) -> Peers:
    """The contenders of other packages to some classes, each once; torch's fused AdamW always, as a yardstick.

    Args:
        packages: Names of PACKAGES.
    """
    found: dict[str, Contender] = {}
    absent: dict[str, str] = {}
    for package in packages:
        module, make = PACKAGES[package]
        if importlib.util.find_spec(module.partition(".")[0]) is None:
            absent[package] = f"not installed: pip install {package}"
            continue
        reason = other_package(package, module)
        if reason:
            absent[package] = reason
            continue
        try:
            with quiet():
                optim: Any = importlib.import_module(module)
        except Exception as error:  # a package that is broken is as absent as one that is not installed
            absent[package] = f"cannot be imported: {type(error).__name__}: {error}".splitlines()[0]
            continue
        for one in classes:
            made = make(optim, one)
            found |= {contender.name: contender for contender in made}
            if not made:
                name = one.base if package in OF_BASE else one.public_name
                absent[f"{package} {name}"] = f"{package} has no such class"
        if package == "torch":
            found |= {one.name: one for one in torch_fused_adamw()}
    return Peers(tuple(found.values()), absent)


def other_package(package: str, module: str) -> str:
    """Reason why a module is another package's of that name; "" if it is this one's, or nobody's that is known."""
    if module != PACKAGES[FORK][0]:
        return ""
    spec = importlib.util.find_spec(module.partition(".")[0])
    folder = Path(spec.origin).parents[1] if spec is not None and spec.origin is not None else Path()
    beside = {one.name.lower().replace("_", "-") for one in importlib.metadata.distributions(path=[str(folder)])}
    if (FORK in beside) == (package == FORK):
        return ""
    if package == FORK:
        return (
            f"not installed where Python looks first: pip install --no-deps --target DIR {FORK}, then PYTHONPATH=DIR "
            "(it is imported by the name of bitsandbytes, so that one run has one of the two)"
        )
    return f"what is installed by this name is {FORK}"


def settings_for(made: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a class of another package takes too."""
    known = arguments(made)
    return {name: value for name, value in settings.items() if name in known}


def in_own_dtype(each: PerElement) -> PerElement:
    """Bytes where everything, states too, is of the parameter's dtype, from those of float32."""

    def scaled(shape: Shape, dtype: str) -> float | None:
        known = each(shape, "float32")
        return None if known is None else known * float(getattr(torch, dtype).itemsize) / 4

    return scaled


def torch_peers(optim: Any, wanted: Wanted) -> list[Contender]:
    """torch's class of the rule: as one native call and as lists of operations, where it has them."""
    made = getattr(optim, wanted.base, None)
    if made is None:
        return []
    settings, known, (moved, kept) = settings_for(made, wanted.settings), arguments(made), of_torch(wanted)

    def contender(way: str, scratch: float) -> Contender:
        def maker(**more: Any) -> Make:
            return lambda params: made(params, **settings, **{way: True}, **more)

        capturable = maker(capturable=True) if way == "fused" and "capturable" in known else None
        return Contender(f"torch {wanted.base} {way}", maker(), moved, False, capturable, kept, scratch)

    ways = (("fused", 0.0), ("foreach", 1.0))  # lists of operations keep one list of results as large as the parameters
    found = [contender(way, scratch) for way, scratch in ways if way in known]
    return found or [Contender(f"torch {wanted.base}", lambda params: made(params, **settings), moved, states=kept)]


def of_torch(wanted: Wanted) -> tuple[PerElement, PerElement]:
    """Bytes that torch's class of the rule moves and keeps."""
    return in_own_dtype(wanted.bytes_of(traffic, 32)), in_own_dtype(wanted.bytes_of(state_bytes, 32))


def torch_fused_adamw() -> list[Contender]:
    """torch's AdamW as one native call, known without any class of ours: 28 bytes a parameter in float32."""

    def fused(params: list[Tensor], **more: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(params, **SETTINGS, fused=True, **more)

    moved, kept = (in_own_dtype(lambda *_, value=value: value) for value in (28.0, 8.0))
    return [Contender(FUSED, fused, moved, False, lambda params: fused(params, capturable=True), kept)]


def compiled_peers(optim: Any, wanted: Wanted) -> list[Contender]:
    """torch's class as torch.compile makes it; it compiles at its first step."""
    made = getattr(optim, wanted.base, None)
    if made is None:
        return []
    settings, known, (moved, kept) = settings_for(made, wanted.settings), arguments(made), of_torch(wanted)

    def compiled(params: list[Tensor]) -> torch.optim.Optimizer:
        more: dict[str, Any] = {"foreach": True} if "foreach" in known else {}
        more |= {"capturable": params[0].is_cuda} if "capturable" in known else {}
        optimizer: torch.optim.Optimizer = made(params, **settings, **more)
        optimizer.step = torch.compile(optimizer.step, fullgraph=False)  # type: ignore[method-assign, assignment]
        return optimizer

    return [Contender(f"torch {wanted.base} compiled", compiled, moved, states=kept, scratch=1.0)]


def named_peer(package: str) -> Callable[[Any, Wanted], list[Contender]]:
    """The class of the same name in a package whose states are stored as ours."""

    def make(optim: Any, wanted: Wanted) -> list[Contender]:
        made = getattr(optim, wanted.public_name, None)
        if made is None:
            return []
        # A class whose name says the bits takes them for a mistake: bitsandbytes' AdamW8bit refuses `optim_bits=8`.
        usual = {name: value for name, value in wanted.settings.items() if name != "optim_bits"}
        settings = settings_for(made, usual if wanted.public_name != wanted.base else wanted.settings)
        moved, kept = wanted.bytes_of(traffic), wanted.bytes_of(state_bytes)
        name = f"{package} {wanted.public_name}"
        return [Contender(name, lambda params: made(params, **settings), moved, states=kept)]

    return make


def flash_peer(optim: Any, wanted: Wanted) -> list[Contender]:
    """flashoptim's class of the rule, in 32 bits or in 8 of its own kind, without a correction of the weights."""
    made = getattr(optim, f"Flash{wanted.base}", None)
    if made is None or wanted.bits not in (8, 32):
        return []
    settings = {**settings_for(made, wanted.settings), "quantize": wanted.bits == 8, "master_weight_bits": None}
    return [Contender(f"flashoptim {wanted.base}{wanted.bits}bit", lambda params: made(params, **settings), unknown)]


PACKAGES: dict[str, tuple[str, Callable[[Any, Wanted], list[Contender]]]] = {
    "torch": ("torch.optim", torch_peers),
    "compile": ("torch.optim", compiled_peers),
    "bitsandbytes": ("bitsandbytes.optim", named_peer("bitsandbytes")),
    FORK: ("bitsandbytes.optim", named_peer(FORK)),
    "torchao": ("torchao.optim", named_peer("torchao")),
    "flashoptim": ("flashoptim", flash_peer),
}
OF_BASE = ("torch", "compile")  # where a rule has one class for all bits


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
