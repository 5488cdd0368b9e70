"""Train every rule in 32, 8 and 4 bits on small real tasks, and compare what they come to.

    python tools/converge.py                                   all of it (`make converge`)
    python tools/converge.py --families adam,lamb --bits 32,8
    python tools/converge.py --families adam --bits 32 --seeds 0 --rates 1e-3,2e-3,5e-3

One class stands for each rule. Every run is kept in OUT/runs.jsonl as soon as it is done: a run that is there already,
made by the same code, is not made again. OUT/converge.md and .json hold the table, converge.png a picture of it. The
exit status is 1 if something does not train, or trains worse in few bits than it may: converge_results.py says what is
computed. `--rates` compares learning rates instead, for the table in converge_rates.py.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
for folder in (ROOT, ROOT / "generated"):
    if str(folder) not in sys.path:
        sys.path.append(str(folder))

from converge_rates import RATES  # noqa: E402
from converge_results import COLUMNS, RIGHT, Outcome, markdown, outcomes, rows, save_picture  # noqa: E402
from converge_runs import Run, Wanted, key_of, read, representative, rules, steps_of, train  # noqa: E402
from converge_tasks import TASKS  # noqa: E402

from optgen.console import print_table  # noqa: E402

BITS = (32, 8, 4)
SEEDS = (0, 1, 2)
PACKAGE = "optgen_optim"


def selected_runs(given: argparse.Namespace) -> tuple[list[Wanted], list[str]]:
    """The runs that are asked for, and what cannot be run, in words."""
    known = rules(importlib.import_module(PACKAGE).CLASSES)
    unknown = [name for name in given.families or () if name not in known]
    if unknown:
        raise SystemExit(f"--families: {unknown[0]} is not one of {', '.join(known)}")
    wanted, absent = [], []
    for family, members in known.items():
        if given.families and family not in given.families:
            continue
        for bits in given.bits:
            made = representative(members, bits)
            if made is None:
                absent.append(f"{family}: no class takes {bits} bits")
                continue
            wanted += [
                Wanted(task, family, made.__name__, bits, seed, given.steps or steps_of(task, family), lr, PACKAGE)
                for task in given.tasks
                for seed in given.seeds
                for lr in given.rates or (None,)
            ]
    return wanted, absent


def make_runs(wanted: Sequence[Wanted], store: Path, jobs: int) -> Iterator[Run]:
    """The runs, in any order: those in the store, then the others as they are done, which are added to it."""
    known = {run.key: run for run in stored(store)}
    keys = {one: key_of(one) for one in wanted}
    missing = [one for one in wanted if keys[one] not in known]
    for one in wanted:
        if keys[one] in known:
            yield known[keys[one]]
    if not missing:
        return
    # Started again, not forked: torch's threads do not survive a fork.
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for future in as_completed([pool.submit(train, one) for one in missing]):
            run = future.result()
            with store.open("a", encoding="utf-8") as file:
                file.write(json.dumps(run.record()) + "\n")
            yield run


def stored(store: Path) -> Iterator[Run]:
    """Read the results of earlier runs; a last line that was cut off is left out."""
    if not store.exists():
        return
    for line in store.read_text(encoding="utf-8").split("\n"):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        yield read(record)


def compare_rates(runs: Sequence[Run]) -> None:
    """The mean final loss of each learning rate, the best marked."""
    groups: dict[tuple[str, str, int], dict[float, list[float]]] = {}
    for run in runs:
        it = run.wanted
        groups.setdefault((it.task, it.family, it.bits), {}).setdefault(it.lr or 0.0, []).append(run.final)
    table = []
    for (task, family, bits), finals in sorted(groups.items()):
        means = {lr: sum(values) / len(values) for lr, values in sorted(finals.items())}
        best = min(means.values())
        table += [(task, family, str(bits), f"{lr:g}", f"{m:.4f}", "*" if m == best else "") for lr, m in means.items()]
    print_table(("task", "rule", "bits", "lr", "final", "best"), table, right=("bits", "lr", "final"))


def save(found: Sequence[Outcome], out: Path) -> None:
    """The table and the picture."""
    (out / "converge.md").write_text(markdown(found), encoding="utf-8")
    records = [asdict(one) | {"passed": one.passed} for one in found]
    (out / "converge.json").write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    save_picture(found, out / "converge.png")


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""

    def listed(text: str) -> list[str]:
        return [item.strip() for item in text.split(",") if item.strip()]

    def numbers(text: str) -> list[int]:
        return [int(item) for item in listed(text)]

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--families", type=listed, help="rules, with commas between (default: all of the package)")
    parser.add_argument("--tasks", type=listed, default=list(TASKS), help=f"of {', '.join(TASKS)} (default: all)")
    parser.add_argument("--bits", type=numbers, default=list(BITS), help="of the states (default: 32,8,4)")
    parser.add_argument("--seeds", type=numbers, default=list(SEEDS), help="(default: 0,1,2)")
    parser.add_argument("--steps", type=int, help="of each run (default: the task's own)")
    parser.add_argument("--rates", type=lambda text: [float(item) for item in listed(text)], help="compare these")
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one thread each (default: 2)")
    parser.add_argument("--out", type=Path, default=ROOT / "converge", help="where results go (default: converge/)")
    given = parser.parse_args(words)
    wrong = [task for task in given.tasks if task not in TASKS]
    if wrong:
        parser.error(f"--tasks: {wrong[0]} is not one of {', '.join(TASKS)}")
    if given.jobs < 1 or (given.steps is not None and given.steps < 1):
        parser.error("--jobs and --steps are at least 1")
    return given


def main(words: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return the exit status."""
    given = arguments(words)
    wanted, absent = selected_runs(given)
    for line in absent:
        print(line)
    unused = sorted(set(RATES) - set(rules(importlib.import_module(PACKAGE).CLASSES)))
    if unused:
        print(f"converge_rates.py names rules that {PACKAGE} does not have: {', '.join(unused)}")
    given.out.mkdir(parents=True, exist_ok=True)
    began, runs = time.perf_counter(), []
    for run in make_runs(wanted, given.out / "runs.jsonl", given.jobs):
        runs.append(run)
        it = run.wanted
        rate = "" if it.lr is None else f", lr {it.lr:g}"
        shown = f"{it.task} {it.name} in {it.bits} bits, seed {it.seed}{rate}: {run.start:.3f} -> {run.final:.4f}"
        print(f"[{len(runs)}/{len(wanted)}] {shown} ({run.seconds:.1f} s)", flush=True)
    print(f"{len(runs)} runs, {time.perf_counter() - began:.0f} s")
    if given.rates:
        compare_rates(runs)
        return 0
    found = outcomes(runs)
    print_table(COLUMNS, rows(found), right=RIGHT)
    save(found, given.out)
    print(f"table and picture: {given.out}/converge.md, converge.json, converge.png")
    return 0 if found and all(one.passed for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
