"""Runs cases in several processes, and compares what comes with what is written down."""

from __future__ import annotations

import multiprocessing
import sys
import time
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from results.files import Record, Recorded
from results.machine import Uses, probes
from results.training import Case, Result, run

AT_ONCE = 8  # cases that a process takes
EVERY_SECONDS = 30.0  # between two lines of progress


@dataclass(frozen=True)
class Workers:
    """Processes that run cases, each of so many threads."""

    processes: int = 2
    threads: int = 1

    def record(self, cases: Sequence[Case]) -> tuple[Record, list[str]]:
        """Run cases and record their results, with a line for each that could not be run."""
        done, errors = [], []
        for case, result, uses in self._run(cases, notes_uses=True):
            if isinstance(result, Result):
                done.append(Recorded(case, result, uses))
            else:
                errors.append(f"{case.label}: {result}")
        return Record(probes(), tuple(done)), errors

    def compare(self, record: Record) -> Comparison:
        """Run the cases of a file and compare, but for those that this machine computes in a way of its own."""
        here = probes()
        others = {name for name, value in record.probes.items() if here.get(name) != value}
        compared = [each for each in record.cases if not others & set(each.uses)]
        left_out = Counter(name for each in record.cases for name in others & set(each.uses))
        differing = []
        found = self._run([each.case for each in compared], notes_uses=False)
        for each, (case, result, _) in zip(compared, found, strict=True):
            if isinstance(result, str):
                differing.append(f"{case.label}: {result}")
            elif result != each.result:
                differing.append(f"{case.label}: {each.result.difference(result, case)}")
        return Comparison(len(compared), len(record.cases) - len(compared), left_out, tuple(differing))

    def _run(self, cases: Sequence[Case], notes_uses: bool) -> list[Outcome]:
        """In the order of the cases."""
        if self.processes == 1:
            _begin(self.threads)
            return _run_all(cases, notes_uses)
        parts = [cases[at : at + AT_ONCE] for at in range(0, len(cases), AT_ONCE)]
        begun = said = time.monotonic()
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self.processes, context, _begin, (self.threads,)) as pool:
            running = [pool.submit(_run_all, part, notes_uses) for part in parts]
            for count, _ in enumerate(as_completed(running), 1):
                if time.monotonic() - said > EVERY_SECONDS:
                    said = time.monotonic()
                    print(f"{count * AT_ONCE} of {len(cases)} cases, {said - begun:.0f} s", file=sys.stderr, flush=True)
            return [outcome for done in running for outcome in done.result()]


Outcome = tuple[Case, Result | str, tuple[str, ...]]  # of a case: its results or the error, the probes that it uses


@dataclass(frozen=True)
class Comparison:
    """Comparison with the cases of a file.

    Attributes:
        compared: Cases that were run.
        left_out: Cases that were not, since they use a probe in which this machine differs.
        reasons: Number of those that use each such probe.
        differing: A line for each case of which something else has come.
    """

    compared: int
    left_out: int
    reasons: Mapping[str, int]
    differing: tuple[str, ...]


def _begin(threads: int) -> None:
    torch.set_num_threads(threads)


def _run_all(cases: Sequence[Case], notes_uses: bool) -> list[Outcome]:
    return [_outcome(case, notes_uses) for case in cases]


def _outcome(case: Case, notes_uses: bool) -> Outcome:
    uses = Uses()
    try:
        with warnings.catch_warnings(), uses if notes_uses else nullcontext():
            warnings.simplefilter("ignore")  # what a class says of its settings is for other tests
            result = run(case)
    except Exception as error:  # whatever goes wrong in a changed kernel or class is what is to be said of the case
        return case, f"{type(error).__name__}: {error}", ()
    return case, result, uses.probed(case.target)
