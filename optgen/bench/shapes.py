"""Shapes of a user's own model, read from a list or from a checkpoint, without loading what the checkpoint holds."""

from __future__ import annotations

import json
import math
import pickle
import re
import struct
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optgen.bench.cases import Shape
from optgen.errors import UserError

DTYPES = ("float32", "bfloat16", "float16")
MAX_TENSORS = 100_000
MAX_HEADER = 100 * 2**20  # of a safetensors file, its own limit
OF_SAFETENSORS = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
CHECKPOINTS = (".pt", ".pth", ".bin", ".ckpt", ".tar")
LISTS = "a list has a shape a line (768 x 3072, 12 * 768 x 768 for twelve of them), JSON a list of lists of numbers"


@dataclass(frozen=True)
class Shapes:
    """Shapes read from a file.

    Attributes:
        dtype: dtype of most elements of a checkpoint; None for a list.
        notes: Tensors that were left out, and why, in words.
    """

    shapes: tuple[Shape, ...]
    dtype: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """A tensor of a checkpoint. Those of the same storage and shape are one parameter of two names."""

    name: str
    shape: Shape
    dtype: str
    storage: object


def read_shapes(path: Path) -> Shapes:
    """The shapes in a file: a list as text or JSON, a torch checkpoint, or safetensors (the index of a split one too).

    Raises:
        UserError: if the file does not exist, has another format, or has no tensors or one without elements.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder; name the file with the shapes or the checkpoint in it")
    try:
        with path.open("rb") as file:
            head = file.read(4)
            checkpoint = head[:2] in (b"PK", b"\x80\x02") or path.suffix in (*CHECKPOINTS, ".safetensors")
            data = b"" if checkpoint else head + file.read()  # at once: a pipe is read only once
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    if checkpoint:
        return _chosen(path, list(_safetensors(path) if path.suffix == ".safetensors" else _checkpoint(path)))
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path} is neither text nor a checkpoint; {LISTS}") from None
    if text.lstrip()[:1] in ("{", "["):
        return _json(path, text)
    return Shapes(_counted(path, [shape for line in _lines(path, text) for shape in line]))


def _counted(path: Path, shapes: list[Shape]) -> tuple[Shape, ...]:
    if not shapes:
        raise UserError(f"{path} has no shapes; {LISTS}")
    if len(shapes) > MAX_TENSORS:
        raise UserError(f"{path} has more than {MAX_TENSORS} tensors")
    return tuple(shapes)


def _lines(path: Path, text: str) -> Iterator[list[Shape]]:
    """A shape a line: numbers with `x`, commas or blanks between, brackets or not, a count before it."""
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].strip()
        if not words:
            continue
        found = re.fullmatch(r"(?:(\d+)\s*\*\s*)?[(\[]?\s*(\d+(?:(?:\s*[x,]\s*|\s+)\d+)*)\s*,?\s*[)\]]?", words)
        if found is None:
            raise UserError(f"{path}:{number}: `{words}` is not a shape; {LISTS}")
        count = int(found[1] or 1)
        if not 1 <= count <= MAX_TENSORS:
            raise UserError(f"{path}:{number}: {count} tensors; 1 to {MAX_TENSORS} can be measured")
        yield [_filled(f"{path}:{number}", [int(size) for size in re.findall(r"\d+", found[2])])] * count


def _filled(place: str, sizes: list[int]) -> Shape:
    if math.prod(sizes) == 0:
        raise UserError(f"{place}: a tensor of {' x '.join(map(str, sizes))} has no elements")
    return tuple(sizes)


def _json(path: Path, text: str) -> Shapes:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if isinstance(value, dict) and isinstance(value.get("weight_map"), dict):
        parts = sorted({str(part) for part in value["weight_map"].values()})
        return _chosen(path, [entry for part in parts for entry in _safetensors(path.parent / part)])
    items = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
    shapes = []
    for name, sizes in items:
        if not isinstance(sizes, list) or any(type(size) is not int or size < 0 for size in sizes):
            shown = json.dumps(sizes)
            raise UserError(f"{path}: item {name}: {shown[:60]} is not a shape; {LISTS}")
        shapes.append(_filled(f"{path}: item {name}", sizes))
    return Shapes(_counted(path, shapes))


def _safetensors(path: Path) -> Iterator[Entry]:
    """The tensors that the header of a safetensors file names."""
    try:
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            if size > MAX_HEADER:
                raise ValueError("its header is too long")
            header = json.loads(file.read(size))
        for name, item in header.items():
            if name != "__metadata__":
                shape = tuple(int(number) for number in item["shape"])
                yield Entry(name, shape, OF_SAFETENSORS.get(item["dtype"], item["dtype"]), (path, name))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise UserError(f"{path} is not a safetensors file: {error}") from error


def _checkpoint(path: Path) -> Iterator[Entry]:
    """The tensors of a torch checkpoint without those of optimizers in it."""
    import torch

    def load(**more: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, **more)

    try:
        try:
            value = load(mmap=True)  # nothing is read but what says where tensors are
        except RuntimeError:
            value = load()  # a file of a format without mmap
    except pickle.UnpicklingError as error:
        reason = (
            "it holds Python objects besides tensors"
            if "nsupported" in str(error)
            else "it is not a checkpoint, or is damaged"
        )
        raise UserError(
            f"{path} cannot be loaded as a checkpoint: {reason}; save model.state_dict() with torch.save"
        ) from error
    except Exception as error:
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"{path} cannot be loaded as a checkpoint: {said}") from error
    for name, tensor in _tensors(value, ""):
        dtype = str(tensor.dtype).removeprefix("torch.")
        storage = (tensor.untyped_storage().data_ptr(), tensor.storage_offset())
        yield Entry(name, tuple(tensor.shape), dtype, storage if tensor.numel() else name)


def _tensors(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    import torch

    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if not _is_of_optimizer(key, item):
                yield from _tensors(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _tensors(item, f"{name}.{index}" if name else str(index))


def _is_of_optimizer(key: object, value: object) -> bool:
    """Check whether a part of a checkpoint is the state of one or more optimizers, under whatever name."""
    if isinstance(value, Mapping):
        return "param_groups" in value and "state" in value
    return isinstance(value, list | tuple) and bool(value) and all(_is_of_optimizer(key, item) for item in value)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _chosen(path: Path, entries: list[Entry]) -> Shapes:
    """The parameters among tensors: of floating point, with elements, each storage once."""
    kept: dict[object, Entry] = {}
    left: dict[str, list[str]] = {}
    for entry in entries:
        key = (entry.storage, entry.shape)
        if entry.dtype not in DTYPES:
            left.setdefault(f"of {entry.dtype}", []).append(entry.name)
        elif math.prod(entry.shape) == 0:
            left.setdefault("without elements", []).append(entry.name)
        elif key in kept:
            left.setdefault("the same as another", []).append(entry.name)
        else:
            kept[key] = entry
    notes = [f"{len(names)} left out, {why}: {_some(names)}" for why, names in left.items()]
    if not kept:
        found = f"; {'; '.join(notes)}" if notes else ""
        raise UserError(f"{path} has no tensors of {', '.join(DTYPES)}{found}")
    numbers = {name: sum(math.prod(e.shape) for e in kept.values() if e.dtype == name) for name in DTYPES}
    dtype = max(DTYPES, key=lambda name: numbers[name])
    if sum(count > 0 for count in numbers.values()) > 1:
        notes.append(f"dtypes differ; all are measured as {dtype}, that of most elements")
    return Shapes(_counted(path, [entry.shape for entry in kept.values()]), dtype, tuple(notes))
