"""Compilers asked by tests: what they say and write is kept in the cache, beside the kernels that steps run.

This is for what tests ask beyond those: warnings, registers, vectorised loops, and the headers by themselves.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from optgen.runtime.building.compilers import processor
from optgen.runtime.building.entries import Hash, Kernel, Loader
from optgen.runtime.building.nvcc import VARIABLES
from optgen.runtime.building.programs import COMPILE_TIMEOUT_SECONDS, Output, identity, run

# What else of the environment decides what a compiler does.
ENVIRONMENT = (*VARIABLES, "PATH", "CPATH", "C_INCLUDE_PATH", "CPLUS_INCLUDE_PATH", "LIBRARY_PATH", "COMPILER_PATH")
SOURCE, OUTPUT = "<source>", "<output>"  # stand in what is kept for paths, which are others the next time


@dataclass(frozen=True)
class Answer:
    """Answer of a compiler without errors: what it printed, and wrote, if anything."""

    said: str
    output: bytes


_answers = Loader[Answer]()


def ask(command: Sequence[str], source: Path, output: Path | None = None) -> str:
    """Compile `source`, a word of the command, now or when the same was asked before.

    Asked again when one of these has changed: the command, its programs, the environment's words to them, the source, a
    header beside it, one of optgen's. Headers of the system and assemblers count as parts of the compiler that is of
    their version.

    Args:
        output: File that the command writes, a word of it.

    Returns:
        All that was printed.

    Raises:
        CompileError: the compiler's own words, when it ends with an error.
    """
    places = {str(source): SOURCE, str(output): OUTPUT} if output is not None else {str(source): SOURCE}
    plain = [places.get(word, word) for word in command]

    def key() -> str:
        made = Hash(processor(), identity([word for word in plain if word not in (SOURCE, OUTPUT)]), *plain)
        made.add(_version(command[0]))
        made.add("environment", *(f"{name}={os.environ.get(name)}" for name in ENVIRONMENT))
        made.add_source(source)
        return made.hexdigest()

    def build(record: Path, folder: Path) -> Output:
        written = folder / "written"
        words = [str(written) if place == OUTPUT else word for word, place in zip(command, plain, strict=True)]
        done = run(words, folder, COMPILE_TIMEOUT_SECONDS)
        if done.status == 0:
            content = base64.b64encode(written.read_bytes()).decode() if output is not None else ""
            record.write_text(json.dumps({"said": done.said.replace(str(source), SOURCE), "output": content}))
        return replace(done, said=done.said.replace(str(written), str(output)))

    answer = _answers.get(
        Kernel(
            source=source,
            compiler=command[0],
            key=key,
            name=lambda key: f"asked-{key[:32]}.json",
            build=build,
            load=lambda _, content: _read(content),
            advice="",
            unloadable=lambda directory: f"{directory} holds what cannot be read.",
        )
    )
    if output is not None:
        output.write_bytes(answer.output)
        output.chmod(0o700)
    return answer.said.replace(SOURCE, str(source))


def _read(content: bytes) -> Answer:
    record = json.loads(content)
    return Answer(record["said"], base64.b64decode(record["output"]))


@cache
def _version(program: str) -> str:
    return subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
