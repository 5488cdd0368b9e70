"""Request of what to measure, read from the command's options."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from optgen.diagnostics import suggest

MODEL = "gpt2"
CLASSES = ("AdamW32bit", "AdamW8bit")
CLASSES_IN_BITS = ("AdamW",)
PEERS = ("torch", "compile", "bitsandbytes", "bitsandbytes-cpu-fork", "torchao")
USUAL_PEERS = ("torch", "bitsandbytes", "torchao")
COMPILING = ("torchao",)
"""Usual peers whose first step compiles for half a minute or more."""
SECONDS_FOR_COMPILING = 10.0
BITS = ("32", "16", "8", "4")
DTYPES = ("float32", "bfloat16", "float16")
DEVICES = ("cpu", "cuda")
NONE = "none"


class RequestError(ValueError):
    """An option is wrong; the message says what may be given."""

    def __init__(self, option: str, message: str) -> None:
        super().__init__(message)
        self.option = option


@dataclass(frozen=True)
class Request:
    """Request of what to measure.

    Attributes:
        classes: Names; none for CLASSES, for CLASSES_IN_BITS where bits are given, or for all of `specs`.
        bits: Bits of the states, for each class; none for its own.
        peers: Other libraries, of PEERS.
        left_out: Those of the usual ones that so short a time is not enough for.
        like: A name of `optgen.bench.models.MODELS`, or of a configuration of Transformers.
        shapes: A file in place of it.
        dtype: Of parameters and gradients; None for what the file says, else float32.
        device: "cpu" or "cuda".
        specs: Specs whose classes are measured, in place of the stock ones.
        seconds: Seconds of measuring, first steps apart.
        png: File for the picture.
        as_json: JSON in place of the table.
    """

    classes: tuple[str, ...] = ()
    bits: tuple[int, ...] = ()
    peers: tuple[str, ...] = USUAL_PEERS
    left_out: tuple[str, ...] = ()
    like: str = MODEL
    shapes: Path | None = None
    dtype: str | None = None
    device: str = "cpu"
    specs: tuple[Path, ...] = ()
    seconds: float = 20.0
    png: Path | None = None
    as_json: bool = False


def request_of(
    *,
    classes: Sequence[str],
    like: str | None,
    shapes: Path | None,
    peers: str | None,
    bits: str | None,
    dtype: str | None,
    device: str,
    seconds: float,
    specs: Sequence[Path],
    png: Path | None,
    as_json: bool,
) -> Request:
    """The request of a command line.

    Raises:
        RequestError: if an option has a wrong value, or two options exclude each other.
    """
    from optgen.bench.hugging_face import names_a_config
    from optgen.bench.models import MODELS

    if like is not None and shapes is not None:
        raise RequestError("--shapes", "--like and --shapes both say which shapes; give one of them")
    if png is not None and png.suffix.lower() != ".png":
        raise RequestError("--png", f"{png} is not the name of a PNG file; use {png.with_suffix('.png')}")
    if dtype is not None:
        _one_of("--dtype", dtype, DTYPES)
    left_out = COMPILING if peers is None and seconds < SECONDS_FOR_COMPILING else ()
    usual = tuple(name for name in USUAL_PEERS if name not in left_out)
    if like is None or not names_a_config(like):
        like = _one_of("--like", MODEL if like is None else like, MODELS)
    return Request(
        classes=tuple(classes),
        bits=tuple(int(one) for one in _several("--bits", bits, BITS)) if bits is not None else (),
        peers=usual if peers is None else _several("--peers", peers, PEERS, NONE),
        left_out=left_out,
        like=like,
        shapes=shapes,
        dtype=dtype,
        device=_one_of("--device", device, DEVICES),
        specs=tuple(specs),
        seconds=seconds,
        png=png,
        as_json=as_json,
    )


def _one_of(option: str, given: str, known: Iterable[str]) -> str:
    names = list(known)
    if given not in names:
        hint = suggest(given, names)
        raise RequestError(option, f"{given!r} is not one of {', '.join(names)}" + (f"; {hint}" if hint else ""))
    return given


def _several(option: str, given: str, known: Sequence[str], nothing: str | None = None) -> tuple[str, ...]:
    """Names with commas between; a word for none of them."""
    names = [name.strip() for name in given.split(",")]
    if nothing is not None and names == [nothing]:
        return ()
    offered = [*known, nothing] if nothing is not None else list(known)
    return tuple(dict.fromkeys(_one_of(option, name, offered) for name in names if name != nothing))
