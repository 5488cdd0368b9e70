"""Measure the share of mutants, small mistakes put into the code one at a time, that the tests find.

Usage: python tools/mutants.py [--count 100] [--seed 14] [--list] [--only 3,17] [--jobs 2] [--json FILE]
       [--tests-from DIR]

Areas get equal shares, and the lines of an area equal chances; tools/mutant_edits.py says what a mutant is,
tools/mutant_trials.py how it is tried. Headers for AVX-512 and for GPUs count only where a machine has AVX-512 and
PyCUDA.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from mutant_edits import Edit, edits_of
from mutant_trials import Mutant, Trials, files

ROOT = Path(__file__).resolve().parent.parent

# Each area's files below a folder, and its tests: the likeliest killers first, and all within the time limit.
# int8_books.h is no part of it: tools/make_books.py writes it.
AREAS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    area: (folder, tuple(files.split()), tuple(tests.split()))
    for area, folder, files, tests in (
        ("codecs", "optgen", "codecs.py runtime/states/torch_codecs.py runtime/states/torch_rounding.py"
         " runtime/settings/storage.py",
         "codecs/test_torch*.py codecs/test_books.py oracles/test_storage.py runtime/*/test_*stor*.py "
         "cuda/test_*codecs.py numerics/test_rounding.py codecs/test_*.py"),
        ("headers", "templates/include/optgen", "*[!s].h *[!k]s.h cuda_books.h int4_books.h",
         "codecs/test_conversions.py codecs/test_*headers.py codecs/test_books.py cuda/test_*codecs.py"
         " cuda/test_companded.py standin/test_kernels.py cuda/test_kernels.py numerics/test_rounding.py"
         " building/test_vectorised.py"),
        ("planner", "optgen/schedule", "*.py",
         "schedule/test_*.py snapshots/test_*.py cli/test_commands.py numerics/test_generality.py"),
        ("passes", "optgen/passes", "*.py",
         "passes/test_*.py schedule/test_*.py snapshots/test_*.py ir/test_*.py numerics/test_generality.py"),
        ("printers", "optgen/backends", "*.py",
         "backends/test_*.py snapshots/test_*.py numerics/test_generality.py ir/test_*.py"),
        ("engines", "optgen/runtime", "*.py core/[!s]*.py core/sweep.py core/step_inputs.py engines/*.py hooks/*.py"
         " cuda/[gp]*.py settings/[!s]*.py states/s*.py step/[pt]*.py",
         "runtime/test_sums.py runtime/test_torch_math.py runtime/s*/test_*.py runtime/core/test_*.py"
         " runtime/test_o*.py runtime/hooks/test_f*.py numerics/test_parity.py cuda/test_host.py"
         " cuda/test_paging.py cuda/test_fallback.py runtime/cuda/test_*.py runtime/hooks/test_c*.py"),
        ("checkpoints", "optgen/runtime", "checkpoints/*.py",
         "runtime/checkpoints/test_[ckms]*.py parity/test_bitsandbytes_checkpoints.py"
         " parity/test_migration.py runtime/checkpoints/test_resume.py distributed/test_processes.py"),
        ("distributed", "optgen/runtime", "core/shards.py states/philox.py step/all_*.py step/fsdp1.py"
         " step/find_shards.py step/*owners.py step/matrix_parts.py step/shard_limits.py",
         "codecs/test_torch_rounding.py numerics/test_rounding.py distributed/test_*.py docs/test_distributed.py"),
    )
}  # fmt: skip


def draw(root: Path, count: int, seed: int) -> list[Mutant]:
    """Draw mutants; those of an area do not depend on the files of another."""
    drawn: list[Mutant] = []
    for index, (area, (folder, patterns, _)) in enumerate(AREAS.items()):
        edits: dict[tuple[Path, int], list[Edit]] = defaultdict(list)
        for path in files(root / folder, patterns):
            text = path.read_bytes()
            for edit in edits_of(path.name, text):
                edits[path, text.count(b"\n", 0, edit.start)].append(edit)
        chance = random.Random(f"{seed} {area}")
        share = count * (index + 1) // len(AREAS) - count * index // len(AREAS)
        for path, line in chance.sample(sorted(edits), share):
            edit, text, name = chance.choice(edits[path, line]), path.read_bytes(), path.relative_to(root).as_posix()
            column = edit.start - text.rfind(b"\n", 0, edit.start)
            old, whole = text[edit.start : edit.end].decode(), text.split(b"\n")[line].decode().strip()
            change = f"{name}:{line + 1}:{column}: `{old}` -> `{edit.new.decode()}` in `{whole}`"
            drawn.append(Mutant(len(drawn) + 1, area, name, edit, f"{len(drawn) + 1:3} {area:11} {change}"))
    return drawn


def main() -> None:
    """Draw mutants, try them, print what came of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=14)
    parser.add_argument("--list", action="store_true", help="print the mutants without trying them")
    parser.add_argument("--only", help="numbers of the mutants to try, as 3,17")
    parser.add_argument("--jobs", type=int, default=2, help="how many are tried at a time")
    parser.add_argument("--json", type=Path, help="a file for the results")
    parser.add_argument("--tests-from", type=Path, help="another checkout, whose tests/ and pyproject.toml are taken")
    asked = parser.parse_args()
    only = [int(number) for number in asked.only.split(",")] if asked.only else range(1, asked.count + 1)
    mutants = [mutant for mutant in draw(ROOT, asked.count, asked.seed) if mutant.number in only]
    if asked.list:
        print(*(mutant.about for mutant in mutants), sep="\n")
        return
    tests = {mutant.area: AREAS[mutant.area][2] for mutant in mutants}
    rows, drawn, killed = [], Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder, ThreadPoolExecutor(asked.jobs) as pool:
        trials = Trials(ROOT, Path(folder), asked.jobs, asked.tests_from, tests)
        for done in as_completed([pool.submit(trials.attempt, mutant) for mutant in mutants]):
            mutant, killer, seconds = done.result()
            print(f"{mutant.about}: {f'killed by {killer}' if killer else 'SURVIVED'}, {seconds:.0f} s", flush=True)
            rows.append(
                {"number": mutant.number, "about": mutant.about, "killer": killer, "seconds": round(seconds, 1)}
            )
            drawn.update([mutant.area, "total"])
            killed.update([mutant.area, "total"] if killer else [])
    print(f"\n{'area':11} mutants  killed")
    print(*(f"{area:11} {drawn[area]:7} {killed[area]:7}" for area in [*AREAS, "total"]), sep="\n")
    if asked.json:
        table = {area: {"mutants": drawn[area], "killed": killed[area]} for area in [*AREAS, "total"]}
        asked.json.write_text(json.dumps({"seed": asked.seed, "mutants": rows, "areas": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
