"""Compilers asked by tests: what they say and write is kept in the tests' cache until something that they read changes.

Kernels that a step runs have a cache of their own (`optgen.runtime.building`). This one is for what tests ask beyond
it: warnings, registers, vectorised loops, and the headers by themselves.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from optgen.runtime.building.compilers import processor
from optgen.runtime.building.entries import Hash
from optgen.runtime.building.private_dir import cache_dir

SOURCE = "<source>"  # stands in what is kept for the path of the source, which lies elsewhere the next time


@dataclass(frozen=True)
class Answer:
    """A compiler that has ended: its exit status and all that it printed."""

    status: int
    said: str


def ask(command: Sequence[str], source: Path, output: Path | None = None) -> Answer:
    """Compile `source`, a word of the command, which includes nothing but optgen's headers and the system's.

    Args:
        output: Where the command writes to, a word of it.

    Returns:
        What was answered, now or when the same was asked before; `output` is then written too. Failures are not kept.
    """
    made = Hash(
        _version(command[0]), processor(), *(word for word in command if word not in (str(source), str(output)))
    )
    made.add_source(source)
    kept = cache_dir() / f"asked-{made.hexdigest()[:32]}"
    if not (kept / "said").is_file():
        folder = Path(tempfile.mkdtemp(prefix="asked-", dir=cache_dir()))
        written = folder / "output"
        words = [str(written) if word == str(output) else word for word in command]
        done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if done.returncode != 0:
            shutil.rmtree(folder)
            return Answer(done.returncode, done.stdout)
        (folder / "said").write_text(done.stdout.replace(str(source), SOURCE), encoding="utf-8")
        try:
            folder.rename(kept)
        except OSError:  # another process was quicker
            shutil.rmtree(folder)
    if output is not None:
        shutil.copyfile(kept / "output", output)
        shutil.copymode(kept / "output", output)
    return Answer(0, (kept / "said").read_text(encoding="utf-8").replace(SOURCE, str(source)))


@functools.cache
def _version(program: str) -> str:
    found = os.path.realpath(shutil.which(program) or program)
    done = subprocess.run([found, "--version"], capture_output=True, text=True, check=True)
    return f"{found} {done.stdout}"
