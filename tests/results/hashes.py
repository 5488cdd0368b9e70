"""Hold a change of generated code to the results of today.

    python tests/results/hashes.py check                      this tree against the results in tests/results/kept
    python tests/results/hashes.py against HEAD~1             this tree against another commit, both run here
    python tests/results/hashes.py record FILE --set whole    write down what this tree computes
    python tests/results/hashes.py check FILE --only LAMB     hold a tree to a file, in part

Every case is a training of a few steps (results/cases.py says which), and its hash covers all bits of the parameters
and of `state_dict()`. `--target` and `--only` (text of a case's label; several are alternatives) choose among cases.
A case that differs is printed with its settings, with the call from which on parameters differ, and with the entries
and tensors that do. The exit status is 1 if one does.

`check` without a file takes the files of kept/, which hold on every machine: cases that depend on what this one
computes in another way are left out, and it is said how many and why (results/machine.py). A new class, or a change
that is meant to change results, records them, a file for each target: `record tests/results/kept/cpu.jsonl --target
cpu`.

`against` needs no data. It is also for kernels as users have them, in vectorised loops, whose sums differ from machine
to machine: OPTGEN_CXXFLAGS="" compiles with the usual flags, OPTGEN_CXXFLAGS="-mno-avx512f" for another width.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from results.training import Case

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
KEPT = HERE / "kept"  # a file for each target
SETS = ("quick", "core", "whole")  # each within the next: results/cases.py
SHOWN = 40  # cases that differ, at most

sys.path.insert(0, str(ROOT / "tests"))
from support.environment import prepare_compiling, same_loops  # noqa: E402


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status."""
    asked = _parser().parse_args(arguments)
    tree: Path = asked.tree
    prepare_compiling()
    same_loops()
    sys.path[:0] = [str(tree), str(tree / "generated")]
    match asked.command:
        case "record":
            return record(asked)
        case "check":
            return check(asked, asked.files)
        case _:
            return against(asked)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="write down what a tree computes")
    recording.add_argument("file", type=Path, metavar="FILE")
    checking = commands.add_parser("check", help="hold a tree to what is written down")
    checking.add_argument("files", type=Path, metavar="FILE", nargs="*", default=sorted(KEPT.glob("*.jsonl")))
    comparing = commands.add_parser("against", help="hold this tree to another commit")
    comparing.add_argument("commit", metavar="COMMIT")
    for command, usual in ((recording, "core"), (checking, "whole"), (comparing, "core")):
        command.add_argument("--set", choices=SETS, default=usual, help=f"which cases ({usual})")
        command.add_argument("--target", action="append", choices=("torch", "cpu", "cuda"), help="cases of a target")
        command.add_argument("--only", action="append", default=[], metavar="TEXT", help="cases whose label has it")
        command.add_argument("--every", type=int, default=1, metavar="N", help="one of N of these cases")
        command.add_argument("--jobs", type=int, default=2, metavar="N", help="processes (2)")
        command.add_argument("--threads", type=int, default=1, metavar="N", help="threads of each (1)")
        command.add_argument("--tree", type=Path, default=ROOT, metavar="FOLDER", help="the checkout that is run")
    return parser


def record(asked: argparse.Namespace) -> int:
    """Write a file of results."""
    from results.cases import cases
    from results.files import write
    from results.work import Workers

    chosen = [case for case in cases(asked.set, asked.target) if _wanted(case, asked)][:: asked.every]
    found, errors = Workers(asked.jobs, asked.threads).record(chosen)
    write(asked.file, found)
    print(f"{len(found.cases)} cases are in {asked.file}")
    if errors:
        print(f"{len(errors)} could not be run:", *errors[:SHOWN], sep="\n  ")
    return int(bool(errors))


def check(asked: argparse.Namespace, files: Sequence[Path]) -> int:
    """Hold a tree to files of results."""
    from results.files import Record, read
    from results.work import Workers

    failed, looked_at = False, 0
    for file in files:
        whole = read(file)
        chosen = [each for each in whole.cases if _wanted(each.case, asked)][:: asked.every]
        if not chosen:
            continue
        done = Workers(asked.jobs, asked.threads).compare(Record(whole.probes, tuple(chosen)))
        if done.left_out:
            reasons = ", ".join(f"{name} ({count})" for name, count in sorted(done.reasons.items()))
            print(f"{file.name}: {done.left_out} cases are left out, since these are others here: {reasons}")
        print(f"{file.name}: {len(done.differing)} of {done.compared} cases differ")
        print(*(f"  {line}\n" for line in done.differing[:SHOWN]), sep="", end="")
        if len(done.differing) > SHOWN:
            print(f"  and {len(done.differing) - SHOWN} more")
        failed |= bool(done.differing)
        looked_at += len(chosen)
    if not looked_at:
        print("no such case is written down")
    return int(failed or not looked_at)


def against(asked: argparse.Namespace) -> int:
    """Hold this tree to another commit, whose package is run with the cases and trainings of this one."""
    with _checkout(asked.commit) as tree:
        file = tree / "results.jsonl"
        passed = [sys.argv[0], "record", str(file), "--tree", str(tree), "--set", asked.set]
        for name in ("target", "only"):
            passed += [word for value in getattr(asked, name) or () for word in (f"--{name}", value)]
        for name in ("every", "jobs", "threads"):
            passed += [f"--{name}", str(getattr(asked, name))]
        subprocess.run([sys.executable, *passed], check=False)
        asked.every = 1
        return check(asked, [file])


@contextmanager
def _checkout(commit: str) -> Iterator[Path]:
    """A tree of a commit, for as long as it is asked for."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        subprocess.run(["git", "-C", str(ROOT), "worktree", "add", "--detach", str(tree), commit], check=True)
        try:
            yield tree
        finally:
            subprocess.run(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(tree)], check=True)


def _wanted(case: Case, asked: argparse.Namespace) -> bool:
    within = SETS.index(case.set) <= SETS.index(asked.set)
    named = not asked.only or any(text in case.label for text in asked.only)
    return within and named and (not asked.target or case.target in asked.target)


if __name__ == "__main__":
    sys.exit(main())
