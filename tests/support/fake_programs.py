"""Programs that tests put in the place of compilers; and the real nvcc."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from optgen.runtime.building.nvcc import Nvcc, find_nvcc, why_no_nvcc

FAKE_ARCHS = "sm_75 sm_80 sm_86 sm_87 sm_90"


def script(path: Path, body: str) -> Path:
    """An executable shell script; `body` can use what the shell itself has, whatever PATH is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def fake_nvcc(
    path: Path, release: str = "13.0", archs: str = FAKE_ARCHS, build: str = "", log: Path | None = None
) -> Path:
    """A program that answers as nvcc does, and whose cubins hold its arguments.

    Args:
        build: Shell commands that stand before a build; `exit 1` there makes it fail.
        log: A file that gets a line for each run.
    """
    return script(
        path,
        f"""{f'echo "$@" >> "{log}"' if log else ":"}
case "$*" in
*--version) echo "Cuda compilation tools, release {release}, V{release}.1"; exit 0;;
*--list-gpu-code) for arch in {archs}; do echo "$arch"; done; exit 0;;
esac
all="$*"
{build or ":"}
while [ $# -gt 0 ]; do [ "$1" = -o ] && out="$2"; shift; done
printf '\\177ELF %s' "$all" > "$out" """,
    )


def real_nvcc() -> Nvcc:
    """This machine's nvcc; skips the test where there is none."""
    found = find_nvcc()
    if found is None:
        pytest.skip(f"no nvcc: {why_no_nvcc()}")
    return found


def runs(log: Path, word: str) -> int:
    """Number of runs in a log with this word among the arguments."""
    return sum(word in line for line in log.read_text(encoding="utf-8").splitlines())


def no_nvcc(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let this process find neither an nvcc nor NVRTC, which is not looked for where a program is asked for."""
    monkeypatch.setenv("OPTGEN_NVCC", os.fspath(folder / "absent-nvcc"))
