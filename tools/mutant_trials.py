"""Try mutants in copies of what git keeps of a tree: the drift check where they are of the compiler, then the tests.

A test that fails without a mutant too kills nothing. Compiled kernels are shared by all (OPTGEN_CACHE_DIR).
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

from mutant_edits import Edit

SECONDS = 600  # for one run of pytest; a mutant that takes longer is killed, if the tree without it does not
DRIFT_SECONDS = 120  # for the drift check, which takes three
COMPILER = ("planner", "passes", "printers")  # what these generate is compared with generated/ before any test runs


class Mutant(NamedTuple):
    """One edit of one file; `about` says which in a line."""

    number: int
    area: str
    file: str
    edit: Edit
    about: str


def files(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    """Give the files of patterns, in the patterns' order, each once."""
    for pattern in patterns:
        if not any(folder.glob(pattern)):
            print(f"warning: no {pattern} in {folder}", file=sys.stderr)
    return [*dict.fromkeys(path for pattern in patterns for path in sorted(folder.glob(pattern)))]


def put(path: Path, text: bytes) -> None:
    """Write a file; Python's compiled form goes, which knows its source by length and seconds alone."""
    path.write_bytes(text)
    for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
        compiled.unlink()


class Trials:
    """Copies of the tree, in which mutants are tried."""

    def __init__(
        self, root: Path, folder: Path, jobs: int, tests_from: Path | None, tests: Mapping[str, tuple[str, ...]]
    ) -> None:
        """Make the copies, and look at one that is unchanged."""
        self.fails_unchanged: dict[str, bool] = {}
        self.copies: SimpleQueue[Path] = SimpleQueue()
        for copy in (folder / str(job) for job in range(jobs)):
            self.copies.put(copy)
            sources = {root: [".", *([":!tests"] if tests_from else [])]}
            if tests_from:
                sources[tests_from] = ["tests", "pyproject.toml"]
            for source, paths in sources.items():
                names = subprocess.check_output(["git", "ls-files", "-z", *paths], cwd=source, text=True).split("\0")
                for name in names:
                    if (source / name).is_file():
                        (copy / name).parent.mkdir(parents=True, exist_ok=True)
                        shutil.copy2(source / name, copy / name)
        found = {area: files(copy / "tests", patterns) for area, patterns in tests.items()}
        self.tests = {area: [str(path.relative_to(copy)) for path in paths] for area, paths in found.items()}
        code, output = self.drift(copy)
        if code != 0:
            raise SystemExit(f"the tree without a mutant does not pass the drift check:\n{output}")
        every = {name for names in self.tests.values() for name in names}
        while (collected := self.pytest(copy, ["--collect-only", "--maxfail=0", *sorted(every)]))[0] != 0:
            broken = every & set(re.findall(r"^ERROR (\S+)", collected[1], re.MULTILINE))
            if not broken:
                raise SystemExit(f"no tests can be collected without a mutant:\n{collected[1]}")
            print(f"warning: left out, for it cannot be collected without a mutant: {sorted(broken)}", file=sys.stderr)
            every -= broken
        self.tests = {area: [name for name in names if name in every] for area, names in self.tests.items()}

    @staticmethod
    def run(copy: Path, *arguments: str, seconds: int = SECONDS) -> tuple[int | None, str]:
        """Run Python in a copy: the exit status, None where it took longer, and what was printed."""
        path = os.pathsep.join([str(copy), str(copy / "generated")])
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=copy, env=os.environ | {"PYTHONPATH": path}, text=True, errors="replace",
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            output, _ = process.communicate(timeout=seconds)
            return process.returncode, output
        except subprocess.TimeoutExpired:
            return None, ""
        finally:
            with contextlib.suppress(ProcessLookupError):  # what tests have left running goes too
                os.killpg(process.pid, signal.SIGKILL)

    def drift(self, copy: Path) -> tuple[int | None, str]:
        """Compare what the compiler of a copy writes with its generated/."""
        program = "from optgen.cli import main; main()"
        return self.run(copy, "-c", program, "build", "specs/", "--check", seconds=DRIFT_SECONDS)

    def pytest(self, copy: Path, tests: list[str]) -> tuple[int | None, str]:
        """Run tests until one fails, without those that fail in the tree as it is."""
        out = [f"--deselect={test}" for test, fails in [*self.fails_unchanged.items()] if fails]
        return self.run(copy, "-m", "pytest", "-x", "-q", "-pno:cacheprovider", "-n0", "-rfE", "--tb=no", *out, *tests)

    def killer(self, copy: Path, mutant: Mutant) -> str | None:
        """Name what finds a mutant."""
        path = copy / mutant.file
        text = path.read_bytes()
        changed = text[: mutant.edit.start] + mutant.edit.new + text[mutant.edit.end :]
        try:
            put(path, changed)
            if mutant.area in COMPILER and self.drift(copy)[0] != 0:
                return "the drift check"
            while True:
                code, output = self.pytest(copy, self.tests[mutant.area])
                if code in (0, 5):
                    return None
                found = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", output, re.MULTILINE)
                late = code is None
                test = f"{mutant.area}: the time limit" if late else found[1] if found else f"exit status {code}"
                if (late or "::" in test) and test not in self.fails_unchanged:
                    put(path, text)
                    code, _ = self.pytest(copy, self.tests[mutant.area] if late else [test])
                    self.fails_unchanged[test] = code is None if late else code == 1
                    put(path, changed)
                if not self.fails_unchanged.get(test):
                    return test
                print(f"warning: {test} fails without a mutant too, and is left out", file=sys.stderr)
                if late:
                    return None
        finally:
            put(path, text)

    def attempt(self, mutant: Mutant) -> tuple[Mutant, str | None, float]:
        """Try a mutant in a copy that is free: what killed it, and the seconds."""
        copy, begin = self.copies.get(), time.monotonic()
        try:
            return mutant, self.killer(copy, mutant), time.monotonic() - begin
        finally:
            self.copies.put(copy)
