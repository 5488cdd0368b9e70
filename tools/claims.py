"""Print what README.md claims beside what holds here: its figures, what shows its sentences, and its table of speeds.

    python tools/claims.py                  all three (`make claims`, some ten minutes)
    python tools/claims.py figures          the numbers in its text, worked out again from the specs
    python tools/claims.py tests            the tests that show its sentences, run
    python tools/claims.py speed [--quick]  its table of speeds, measured again on this machine

The exit status is 1 if a figure or a test fails. Times are shown and not judged: they are another machine's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from typer.main import get_command  # noqa: E402

from optgen.codecs import PAGED_NUMEL  # noqa: E402
from optgen.commands import app  # noqa: E402
from optgen.compiler import compile_specs  # noqa: E402
from optgen.console import print_table  # noqa: E402
from optgen.explanation import ClassInfo  # noqa: E402
from optgen.runtime.core import sweep  # noqa: E402

README = ROOT / "README.md"
SUBJECTS = ("figures", "tests", "speed")
CASES = ("4096x4096", "gpt2", "1000x1024")


@dataclass(frozen=True)
class Figure:
    """Words of the README that hold figures.

    Attributes:
        words: The words, with a `{}` for each figure.
        work_out: The figures as they are today.
    """

    words: str
    work_out: Callable[[], tuple[object, ...]]

    def today(self) -> str:
        """The words as they would have to be."""
        return self.words.format(*self.work_out())


@dataclass(frozen=True)
class Sentence:
    """Words of the README, and the tests that show that they are true."""

    words: str
    tests: tuple[str, ...]


@cache
def classes() -> dict[str, ClassInfo]:
    """The stock classes by name."""
    return {info.name: info for info in compile_specs([ROOT / "specs"], "optgen_optim").classes}


def traffic(name: str) -> str:
    """The bytes a step moves for each parameter."""
    return f"{round(classes()[name].traffic, 2):g}"


def all_bits() -> str:
    """The bits that states can have, in words."""
    bits = sorted({bits for info in classes().values() for bits in info.bits_choices}, reverse=True)
    return f"{', '.join(map(str, bits[:-1]))} or {bits[-1]} bits"


FIGURES = (
    Figure(
        "AdamW reads and writes each value once, {} bytes a parameter with 32-bit states and {} with 8-bit ones",
        lambda: (traffic("AdamW32bit"), traffic("AdamW8bit")),
    ),
    Figure(
        "States of AdamW take {} bytes a parameter in 32 bits, as torch's do, {} in 8 bits and {} in 4",
        lambda: tuple(f"{round(classes()['AdamW'].stored_in(bits).state_bytes, 2):g}" for bits in (32, 8, 4)),
    ),
    Figure(
        "LAMB takes a {} pass for its norms",
        lambda: ({1: "single", 2: "second", 3: "third"}[classes()["LAMB"].passes],),
    ),
    Figure("{} rules as {} classes", lambda: (len({info.rule for info in classes().values()}), len(classes()))),
    Figure("states in {} and in other codecs", lambda: (all_bits(),)),
    Figure("keep states of {} elements or more in memory", lambda: (f"{PAGED_NUMEL:,}".replace(",", " "),)),
    Figure("once steps have gone on for {}", lambda: ({30.0: "half a minute", 60.0: "a minute"}[sweep.PATIENCE],)),
)
SENTENCES = (
    Sentence(
        "take the same arguments in the same order as those of bitsandbytes",
        ("tests/test_signatures.py", "tests/parity/test_drop_in.py"),
    ),
    Sentence("no argument is accepted and then ignored", ("tests/numerics/test_arguments.py",)),
    Sentence(
        "parameter groups, schedulers, hooks, closures, `state_dict` and `torch.load(weights_only=True)` work",
        (
            "tests/runtime/settings/test_groups.py",
            "tests/runtime/test_optimizer.py",
            "tests/runtime/settings/test_schedulers.py",
            "tests/runtime/checkpoints/test_checkpoints.py",
        ),
    ),
    Sentence("`optgen list` shows their memory", ("tests/cli/test_commands.py",)),
    Sentence("makes any", ("tests/runtime/settings/test_create_storage.py",)),
    Sentence(
        "A class for which an argument has no effect does not have it, or refuses it and says why",
        ("tests/numerics/test_refusals.py",),
    ),
    Sentence("tested against independent formulas in float64", ("tests/numerics/test_parity.py",)),
    Sentence("Generated C++ makes no temporary of a tensor's size", ("tests/test_memory.py",)),
    Sentence("Only the last pass of a step writes", ("tests/schedule/test_plans.py",)),
    Sentence("Installing compiles nothing", ("tests/wheel/test_wheel.py",)),
    Sentence(
        "A kernel is compiled at its first use, for this processor or GPU, into a cache of your own",
        ("tests/building/test_cache.py",),
    ),
    Sentence(
        "Without a compiler, plain torch operations are used, and a warning says so once",
        ("tests/runtime/step/test_engines.py", "tests/cuda/test_fallback.py"),
    ),
    Sentence("Exit codes: 0 success, 1 an error in the input, 2 wrong usage", ("tests/cli/test_commands.py",)),
    Sentence(
        "`list`, `explain`, `bench` and `doctor` take `--json`",
        ("tests/cli/test_commands.py", "tests/cli/test_bench.py", "tests/cli/test_doctor.py"),
    ),
    Sentence("the checks of a step before its kernels are then compiled too", ("tests/runtime/core/test_sweep.py",)),
    Sentence('`target="cuda"`, `"cpu"` or `"torch"` requires one of them', ("tests/runtime/step/test_engines.py",)),
    Sentence("Mistakes are shown as a compiler shows them", ("tests/cli/test_readme.py",)),
    Sentence("in bitsandbytes' code books", ("tests/codecs/test_books.py",)),
    Sentence("`optimizer.override(param, optim_bits=32)`", ("tests/runtime/states/test_storage.py",)),
    Sentence(
        "also mixed; all arithmetic is float32 with one rounding at the end",
        ("tests/codecs/test_parameter_headers.py",),
    ),
    Sentence(
        "The type of a state comes from its spec, also after loading a checkpoint",
        ("tests/runtime/states/test_stored_types.py",),
    ),
    Sentence(
        "On a CPU all memory is ordinary memory, and this changes nothing", ("tests/runtime/settings/test_settings.py",)
    ),
    Sentence("`optimizer.engines()` says how many parameters each served", ("tests/runtime/step/test_engines.py",)),
    Sentence("a step with an Inf or NaN changes nothing, counters included", ("tests/runtime/hooks/test_amp.py",)),
    Sentence(
        "`torch.cuda.graph` can record a step", ("tests/runtime/cuda/test_capturable.py", "tests/cuda/test_host.py")
    ),
    Sentence(
        '`optgen_optim.create("adamw", params, bits=8, paged=True', ("tests/runtime/settings/test_create_storage.py",)
    ),
    Sentence(
        "`create` takes any division of a model, by names, modules or a function",
        ("tests/runtime/several/test_routes.py", "tests/runtime/several/test_models.py"),
    ),
    Sentence(
        '`nonfinite="skip"` leaves their elements unchanged',
        ("tests/numerics/test_special.py",),
    ),
    Sentence("compiled by nvcc and NVRTC for sm_75 to sm_100", ("tests/cuda/test_nvcc_build.py",)),
    Sentence("run on the CPU in the tests, by a stand-in for NVIDIA's driver", ("tests/cuda/test_kernels.py",)),
)


def plain(text: str) -> str:
    """The text on one line."""
    return " ".join(text.split())


def commands() -> list[str]:
    """The names of the program's commands, those of a group behind the group's."""
    found: dict[str, Any] = getattr(get_command(app), "commands", {})
    names = [
        f"{name} {inner}".strip()
        for name, command in found.items()
        for inner in getattr(command, "commands", None) or [""]
    ]
    return sorted(names)


def documented_commands(text: str) -> list[str]:
    """The commands that the README's table names."""
    lines = [line for line in text.splitlines() if line.startswith("| `optgen ")]
    names = [part.split("optgen ")[1] for line in lines for part in line.split("|")[1].split("`")[1::2]]
    words = [[word for word in name.split() if word.isalpha() and word.islower()] for name in names]
    return sorted({" ".join(found) for found in words})


def show_figures(text: str) -> bool:
    """Print each figure of the text beside today's; return whether they agree."""
    whole = plain(text)
    rows = [("yes" if one.today() in whole else "NO", one.today()) for one in FIGURES]
    named, real = documented_commands(text), commands()
    rows.append(("yes" if named == real else "NO", f"commands: {', '.join(real)}"))
    print_table(("in README", "today"), rows)
    return all(holds == "yes" for holds, _ in rows)


def outcomes(files: Sequence[str], report: Path, folder: Path = ROOT) -> dict[str, Counter[str]]:
    """Run tests of a folder; return how many of each file passed, failed and were skipped."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "worksteal", "--no-header", "--tb=short"]
    subprocess.run([*command, f"--junitxml={report}", *files], cwd=folder, check=False)
    found: dict[str, Counter[str]] = {name: Counter() for name in files}
    for case in ElementTree.parse(report).iter("testcase"):
        place = case.get("classname", "").replace(".", "/")
        inner = {child.tag for child in case}
        kind = "failed" if inner & {"failure", "error"} else "skipped" if "skipped" in inner else "passed"
        for name in files:
            if f"{place}/".startswith(f"{name.removesuffix('.py')}/"):
                found[name][kind] += 1
    return found


def show_tests() -> bool:
    """Run the tests behind the sentences and print each sentence with what they came to."""
    files = sorted({name for one in SENTENCES for name in one.tests})
    with tempfile.TemporaryDirectory() as folder:
        found = outcomes(files, Path(folder) / "tests.xml")
    rows = []
    for one in SENTENCES:
        sums = sum((found[name] for name in one.tests), Counter[str]())
        holds = sums["passed"] > 0 and not sums["failed"]
        counts = ", ".join(f"{sums[kind]} {kind}" for kind in ("passed", "failed", "skipped") if sums[kind])
        rows.append(("yes" if holds else "NO", one.words, counts or "none ran"))
    print_table(("holds", "README", "tests"), rows)
    return all(holds == "yes" for holds, _, _ in rows)


def table_of(text: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The rows of the README's table of speeds: an optimizer, and milliseconds in each of CASES.

    Where a case has a column for each width of vectors, its milliseconds are joined by " / ".
    """
    lines = text.partition("\n## Speed\n")[2].partition("\n## ")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    for name, *cells in rows[2:]:
        widths = max(len(cells) // len(CASES), 1)
        yield name, tuple(" / ".join(cells[at : at + widths]) for at in range(0, len(cells), widths))


def milliseconds(seconds: float | None) -> str:
    """Three digits of it, as in the README."""
    if seconds is None:
        return "-"
    value = 1e3 * seconds
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def show_speed(text: str, quick: bool) -> bool:
    """Measure (tools/bench.py prints all that it finds), then print the README's table again."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "bench.json"
        command = [sys.executable, str(ROOT / "tools" / "bench.py"), "--json", str(report)]
        command += [word for name in CASES for word in ("--case", name)]
        command += ["--classes", ",".join(name for name, _ in table_of(text) if name in classes())]
        subprocess.run([*command, *(["--quick"] if quick else [])], cwd=ROOT, check=True)
        record = json.loads(report.read_text(encoding="utf-8"))
    times = {(case["case"], one["name"]): one["median"] for case in record["cases"] for one in case["optimizers"]}
    rows = [
        (
            name,
            *(f"{milliseconds(times.get((case, name)))} ({there})" for case, there in zip(CASES, cells, strict=True)),
        )
        for name, cells in table_of(text)
    ]
    print(f"\nmilliseconds a step, here: {record['machine']['processor']} (and in README.md)")
    print_table(("", *CASES), rows, CASES)
    return True


def main(words: Sequence[str] | None = None, readme: Path = README) -> int:
    """Print what is asked for; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("subject", nargs="*", metavar="SUBJECT", help=f"{', '.join(SUBJECTS)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="fewer steps, and no torchao: a rough look at speed")
    given = parser.parse_args(words)
    unknown = [name for name in given.subject if name not in SUBJECTS]
    if unknown:
        parser.error(f"{unknown[0]} is not one of {', '.join(SUBJECTS)}")
    text = readme.read_text(encoding="utf-8")
    shown: dict[str, Callable[[], bool]] = {
        "figures": lambda: show_figures(text),
        "tests": show_tests,
        "speed": lambda: show_speed(text, given.quick),
    }
    held = [show() for subject, show in shown.items() if subject in (given.subject or SUBJECTS)]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
