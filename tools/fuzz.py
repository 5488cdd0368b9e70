"""Give the compiler specs at random, and keep those that it fails on: from the YAML through planner and printers.

Usage: python tools/fuzz.py [--hours 1] [--first 0] [--jobs 2] [--out fuzz] [--compiler g++] [--seed N]

Each seed is a spec: a stock one with some changes (tests/support/mutations.py). It has to be refused in plain words, or
to become files that are whole (tests/support/fuzzing.py), within ten seconds and two gigabytes. What fails is
written to OUT/SEED with what was said, reduced to the lines that it takes; --seed tries one again. With --compiler
the kernels of each tenth spec that is taken are compiled too. The exit status is 1 if anything failed.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support.fuzzing import examine  # noqa: E402
from support.mutations import Case, make_case  # noqa: E402

SECONDS = 10
BYTES = 2 * 2**30
BATCH = 50


@dataclass(frozen=True)
class Failure:
    """A case that the compiler fails on, with the traceback."""

    case: Case
    said: str

    @property
    def kind(self) -> str:
        """Its last line: failures that agree in it are taken for one."""
        return self.said.strip().rsplit("\n", 1)[-1][:200]


def attempt(case: Case, compiler: str = "") -> str | Failure:
    """Try a case: "refused", "accepted", or what went wrong."""
    with tempfile.TemporaryDirectory(prefix="optgen-fuzz-") as folder:
        signal.signal(signal.SIGVTALRM, _late)
        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
        try:
            return examine(case, Path(folder), compiler)
        except (Exception, RecursionError, MemoryError):
            return Failure(case, traceback.format_exc().replace(folder, "FOLDER"))
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def _late(*_: object) -> None:
    raise TimeoutError(f"more than {SECONDS} s of computing")


def reduced(failure: Failure) -> Failure:
    """The failure with as few lines as it takes."""
    smallest, size = failure, 8
    while size:
        before = smallest
        for name, text in smallest.case.files.items():
            lines = text.split(b"\n")
            for start in reversed(range(0, len(lines), size)):
                rest = [*lines[:start], *lines[start + size :]]
                files = {**smallest.case.files, name: b"\n".join(rest)}
                found = attempt(replace(smallest.case, files=files))
                if isinstance(found, Failure) and found.kind == failure.kind:
                    smallest, lines = found, rest
        size = size if smallest is not before and size == 1 else size // 2
    return smallest


def batch(compiler: str, seeds: range) -> tuple[Counter[str], list[Failure]]:
    """Try some seeds."""
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    outcomes: Counter[str] = Counter()
    failures = []
    for seed in seeds:
        found = attempt(make_case(seed), compiler if seed % 10 == 0 else "")
        outcomes["failed" if isinstance(found, Failure) else found] += 1
        failures += [found] if isinstance(found, Failure) else []
    return outcomes, failures


def batches(first: int, until: float) -> Iterator[range]:
    """Seeds in order, as long as there is time."""
    for start in itertools.count(first, BATCH):
        if time.monotonic() > until:
            return
        yield range(start, start + BATCH)


def keep(failure: Failure, out: Path) -> None:
    """Write a failure's files and what was said."""
    folder = out / str(failure.case.seed)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, data in failure.case.files.items():
        (folder / name).write_bytes(data)
    (folder / "said.txt").write_text(failure.said, encoding="utf-8", errors="backslashreplace")


def main() -> int:
    """Try seeds until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("fuzz"))
    parser.add_argument("--compiler", default="", help="compiles kernels too")
    parser.add_argument("--seed", type=int, help="only this one, and its files are kept")
    given = parser.parse_args()
    if given.seed is not None:
        found = attempt(make_case(given.seed), given.compiler)
        keep(found if isinstance(found, Failure) else Failure(make_case(given.seed), found), given.out)
        print(found.said if isinstance(found, Failure) else found)
        return int(isinstance(found, Failure))
    outcomes: Counter[str] = Counter()
    known: set[str] = set()
    until = time.monotonic() + 3600 * given.hours
    with ProcessPoolExecutor(given.jobs) as pool:
        waiting = batches(given.first, until)
        running = {
            pool.submit(partial(batch, given.compiler), seeds) for seeds in itertools.islice(waiting, given.jobs)
        }
        while running:
            done = next(iter(running))
            some, failures = done.result()
            running.discard(done)
            running |= {pool.submit(partial(batch, given.compiler), seeds) for seeds in itertools.islice(waiting, 1)}
            outcomes += some
            for failure in failures:
                if failure.kind not in known:
                    known.add(failure.kind)
                    keep(reduced(failure), given.out)
                    print(f"{failure.case.seed}: {failure.kind}", flush=True)
    print(", ".join(f"{count} {what}" for what, count in sorted(outcomes.items())))
    return int(bool(known))


if __name__ == "__main__":
    raise SystemExit(main())
