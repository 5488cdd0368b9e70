"""Files of results: what the machine computes in its own way, then a case and its hashes in each line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from results.training import Case, Result

USUAL = asdict(Case("", ""))


@dataclass(frozen=True)
class Recorded:
    """A case, what came of it, and which of the machine's probes decide that."""

    case: Case
    result: Result
    uses: tuple[str, ...] = ()


@dataclass(frozen=True)
class Record:
    """A file's content.

    Attributes:
        probes: Probes of the machine that wrote it (results/machine.py).
    """

    probes: Mapping[str, str]
    cases: tuple[Recorded, ...] = field(repr=False)


def write(path: Path, record: Record) -> None:
    """Write a file, or replace it."""
    lines = [_line({"probes": record.probes}), *(_line(_as_data(each)) for each in record.cases)]
    path.write_text("".join(lines), encoding="utf-8")


def read(path: Path) -> Record:
    """Read what `write` has written. Raises OSError, and ValueError for what is no such file."""
    head, *lines = path.read_text(encoding="utf-8").splitlines()
    try:
        return Record(json.loads(head)["probes"], tuple(_from_data(json.loads(line)) for line in lines))
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no results: {error!r}") from None


def _line(data: Mapping[str, Any]) -> str:
    return json.dumps(data, separators=(",", ":")) + "\n"


def _as_data(recorded: Recorded) -> dict[str, Any]:
    given = {name: value for name, value in asdict(recorded.case).items() if value != USUAL[name]}
    result = recorded.result
    return {**given, "uses": recorded.uses, "is": [result.whole, result.steps, result.tensors, result.entries]}


def _from_data(data: Mapping[str, Any]) -> Recorded:
    case = {name: _with_tuples(value) for name, value in data.items() if name not in ("is", "uses")}
    whole, steps, tensors, entries = data["is"]
    return Recorded(Case(**case), Result(whole, steps, tensors, entries), tuple(data["uses"]))


def _with_tuples(value: Any) -> Any:
    """As Python has it: JSON knows no tuples."""
    if isinstance(value, dict):
        return {name: _with_tuples(part) for name, part in value.items()}
    return tuple(value) if isinstance(value, list) else value
