"""The cases of the benchmark with every width of vectors that this processor has, as tables for the documentation.

Each width is a process of its own, in which all that can be told to use it does so: the kernels by OPTGEN_CXXFLAGS,
torch by ATEN_CPU_CAPABILITY. Within each, contenders take turns as always.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optgen.bench.machine import machine_line
from optgen.runtime.building.compilers import processor

TOOL = Path(__file__).with_name("bench.py")
WIDTHS: Mapping[str, Mapping[str, str]] = {
    "AVX-512": {"OPTGEN_CXXFLAGS": "", "ATEN_CPU_CAPABILITY": "avx512"},
    "AVX2": {"OPTGEN_CXXFLAGS": "-mno-avx512f", "ATEN_CPU_CAPABILITY": "avx2"},
}
UNKNOWN = "-"


def widths() -> list[str]:
    """Names of WIDTHS that this processor has, widest first."""
    has = set(processor().split())
    return [name for name, feature in (("AVX-512", "avx512f"), ("AVX2", "avx2")) if feature in has]


def measure(width: str, words: Sequence[str]) -> dict[str, Any]:
    """Run the benchmark with a width; return its record.

    Args:
        words: Arguments of the benchmark.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "bench.json"
        own = WIDTHS[width]
        flags = f"{os.environ.get('OPTGEN_CXXFLAGS', '')} {own['OPTGEN_CXXFLAGS']}".strip()
        command = [sys.executable, str(TOOL), *words, "--json", str(report)]
        subprocess.run(command, env={**os.environ, **own, "OPTGEN_CXXFLAGS": flags}, check=True)
        record: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    return record


def tables(records: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: a table for each case with columns for each width, and one of milliseconds alone."""
    parts = [f"{width}: {machine_line(record['machine'])}" for width, record in records.items()]
    by_case: dict[str, dict[str, dict[str, Any]]] = {}
    for width, record in records.items():
        for case in record["cases"]:
            speed = f"{case['bandwidth'] / 1e9:.0f} GB/s"
            by_case.setdefault(case["case"], {})[width] = {"bandwidth": speed, **_by_name(case)}
    for name, found in by_case.items():
        speeds = ", ".join(f"{width} at {cells['bandwidth']}" for width, cells in found.items())
        parts.append(f"{name} ({speeds}):\n\n{_case_table(found)}")
    parts.append(f"Milliseconds a step:\n\n{_short_table(by_case)}")
    return "\n\n".join(parts)


def _by_name(case: Mapping[str, Any]) -> dict[str, tuple[str, str, str]]:
    """Milliseconds, share of the roofline and speed against torch's fused AdamW, by contender, fastest first."""
    fused = next((one["median"] for one in case["optimizers"] if one["name"] == "torch AdamW fused"), None)
    found = {}
    for one in case["optimizers"]:
        median = one["median"]
        if median is not None:
            share = UNKNOWN if one["roofline"] is None else f"{100 * one['roofline']:.0f} %"
            found[one["name"]] = (f"{1e3 * median:.2f}", share, UNKNOWN if fused is None else f"{fused / median:.2f} x")
    return found


def _case_table(found: Mapping[str, Mapping[str, Any]]) -> str:
    names = dict.fromkeys(name for cells in found.values() for name in cells if name != "bandwidth")
    head = [f"{column}, {width}" for width in found for column in ("ms", "roofline", "speed against torch fused")]
    lines = [[name, *(cell for width in found for cell in found[width].get(name, (UNKNOWN,) * 3))] for name in names]
    return _markdown(["optimizer", *head], lines)


def _short_table(by_case: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    names = dict.fromkeys(
        name for found in by_case.values() for cells in found.values() for name in cells if name != "bandwidth"
    )
    places = [(case, width) for case, found in by_case.items() for width in found]
    lines = [
        [name, *(_short(by_case[case][width].get(name, (UNKNOWN,))[0]) for case, width in places)] for name in names
    ]
    return _markdown(["", *(f"{case}, {width}" for case, width in places)], lines)


def _short(cell: str) -> str:
    """Three digits of a number."""
    return cell if cell == UNKNOWN else f"{float(cell):.0f}" if float(cell) >= 100 else f"{float(cell):.1f}"


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines))
