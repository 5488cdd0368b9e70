"""Measure generated optimizers against torch, bitsandbytes and torchao, side by side in one run.

    python tools/bench.py                      all cases, all peers, under four minutes
    python tools/bench.py --quick              a rough look
    python tools/bench.py --case gpt2 --peers torch --classes AdamW32bit,AdamW8bit
    python tools/bench.py --all                every class on 10^7 parameters, as a share of its plan's roofline
    python tools/bench.py --imports            import, build and first-step times
    python tools/bench.py --python             steps and loads of few numbers: what Python costs beside torch's
    python tools/bench.py --sizes --png FILE   time a parameter over the size of tensors, on one thread and on all
    python tools/bench.py --widths             the cases with AVX-512 and with AVX2, as tables of Markdown
    python tools/bench.py --device cuda        on an NVIDIA GPU, with the host's part of a step and CUDA graphs

Every figure is a median of single steps that were taken in turns. Before each step the caches are emptied by the
in-place update a += s * b, whose own median is the memory bandwidth that the column "roofline" refers to: the bytes
that the step's plan must move, divided by the time and by that bandwidth. On a GPU the time is that between two events,
and what empties the L2 cache and measures the bandwidth is a copy of a large buffer.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.status import Status
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
for folder in (ROOT / "generated", ROOT):  # a source checkout can be measured without installing it
    if str(folder) not in sys.path:
        sys.path.append(str(folder))

import bench_every as every  # noqa: E402
import bench_sizes as sizes  # noqa: E402
import bench_widths as widths  # noqa: E402
from bench_host import HOST_COLUMNS, HostResult, host_rows, measure_host  # noqa: E402
from bench_python import RUNS, PythonPart, python_figures  # noqa: E402
from bench_startup import Startup, startup_figures  # noqa: E402

from optgen.bench import gpu, show  # noqa: E402
from optgen.bench.cases import Case, gpt2_shapes  # noqa: E402
from optgen.bench.contenders import Contender, catalogue, our_contender, wanted  # noqa: E402
from optgen.bench.machine import BUSY_FROM, Work, load_note, machine, machine_line  # noqa: E402
from optgen.bench.measure import Bandwidth, Budget, CaseResult, Meter, measure_case, wall_seconds  # noqa: E402
from optgen.bench.models import llama_shapes  # noqa: E402
from optgen.bench.peers import BNB8, BNB32, COMPILED, FLASH8, FLASH32, FORK, FORK8, FUSED, PACKAGES, TORCHAO8, peers  # noqa: E402

CASES = (
    Case("4096x4096", ((4096, 4096),), 3),
    Case("gpt2", gpt2_shapes(), 2),
    Case("1000x1024", ((1024,),) * 1000, 16),
)
CUDA_CASES = (
    Case("1e8", ((10**8,),), 2),
    Case("gpt2", gpt2_shapes(), 3),
    Case("1000x1024", ((1024,),) * 1000, 16),
    Case("1e8-bf16", ((10**8,),), 2, "bfloat16"),
    Case("gpt2-bf16", gpt2_shapes(), 3, "bfloat16"),
    Case("llama3-8b-bf16", llama_shapes(128256, 4096, 2, 14336, 1024), 1, "bfloat16"),  # two of its 32 layers
)
ALL_CASES = {"cpu": CASES, "cuda": CUDA_CASES}


@dataclass(frozen=True)
class Target:
    """Target of a benchmark: `at_least` of the speed, or `at_most` of the time, of another contender.

    The other may be COPY, the bandwidth of a copy, or HOST and REPLAY, the microseconds that the host takes for
    `step()` and for a graph of it.
    """

    case: str
    ours: str
    other: str
    at_least: float | None = None
    at_most: float | None = None

    @property
    def wanted(self) -> str:
        """The target, as the table shows it."""
        if self.other in ON_HOST:
            return f"<= {self.at_most:g} µs"
        if self.other == COPY:
            return f">= {self.at_least:g} of it"
        if self.at_least is not None:
            return f"speed >= {self.at_least:g}x"
        return f"time <= {self.at_most:g}x"

    def measured(self, ours: float, other: float) -> tuple[float, bool]:
        """Return the ratio as it is wanted, and whether it is met."""
        if self.at_least is not None:
            return other / ours, other / ours >= self.at_least
        assert self.at_most is not None
        return ours / other, ours / other <= self.at_most


DEFAULT = Budget(run_seconds=220.0, case_seconds=28.0, aging_seconds=4.0, least=3, most=60)
QUICK = Budget(run_seconds=60.0, case_seconds=5.0, aging_seconds=1.0, least=1, most=10)
ALL = Budget(run_seconds=600.0, case_seconds=14.0, aging_seconds=4.0, least=5, most=30)
ALL_QUICK = Budget(run_seconds=200.0, case_seconds=4.0, aging_seconds=1.0, least=3, most=8)
PEERS_OF = ("AdamW32bit", "AdamW8bit")
COPY, HOST, REPLAY = "copy bandwidth", "time of the host", "time of the host, replayed"
ON_HOST = (HOST, REPLAY)
# torchao and torch.compile compile for a minute.
QUICK_PEERS = "torch,bitsandbytes"
DEFAULT_PEERS = {"cpu": "torch,bitsandbytes,torchao", "cuda": ",".join(name for name in PACKAGES if name != FORK)}

TARGETS = (
    Target("4096x4096", "AdamW32bit", FUSED, at_least=1.0),
    Target("4096x4096", "AdamW8bit", FUSED, at_most=1.0),
    Target("4096x4096", "LAMB8bit", FUSED, at_most=1.7),
    Target("4096x4096", "AdamW8bit", BNB8, at_least=25),
    Target("4096x4096", "AdamW8bit", FORK8, at_least=6),
    Target("gpt2", "AdamW32bit", FUSED, at_least=1.15),
    Target("gpt2", "AdamW8bit", FUSED, at_most=1.2),
    Target("gpt2", "AdamW8bit", BNB8, at_least=12),
    Target("1000x1024", "AdamW32bit", FUSED, at_least=1.0),
    Target("1000x1024", "AdamW8bit", FUSED, at_least=1.0),
)
FOUR_BITS = "AdamW@4"
DEFAULT_CLASSES = ("AdamW32bit", "AdamW8bit", "LAMB", "LAMB8bit", "LARS", "LARS8bit")
CUDA_CLASSES = (*DEFAULT_CLASSES, FOUR_BITS)
CUDA_TARGETS = (
    *(
        Target(case, ours, COPY, at_least=share)
        for case in ("1e8", "1e8-bf16")
        for ours, share in (("AdamW32bit", 0.92), ("AdamW8bit", 0.88), ("AdamW in 4 bits", 0.8))
    ),
    *(Target("1e8", ours, COPY, at_least=0.87) for ours in ("LAMB", "LAMB8bit", "LARS", "LARS8bit")),
    *(
        Target(case, ours, other, at_least=1.0)
        for case in ("1e8", "1e8-bf16", "gpt2", "gpt2-bf16", "1000x1024", "llama3-8b-bf16")
        for ours, others in (("AdamW32bit", (FUSED, COMPILED, BNB32, FLASH32)), ("AdamW8bit", (TORCHAO8, FLASH8)))
        for other in others
    ),
    Target("1e8", "AdamW8bit", BNB8, at_least=1.3),
    Target("gpt2", "AdamW8bit", BNB8, at_least=3.0),
    *(Target("gpt2", ours, HOST, at_most=100.0) for ours in ("AdamW32bit", "AdamW8bit")),
    *(Target("1000x1024", ours, HOST, at_most=600.0) for ours in ("AdamW32bit", "AdamW8bit")),
    *(Target(case, "AdamW32bit", REPLAY, at_most=20.0) for case in ("gpt2", "1000x1024")),
)


def table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1, words: Sequence[str] = ()
) -> Table:
    """Return a table whose first `left` columns, and those of `words`, hold words and the others numbers."""
    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD if sys.stdout.isatty() else box.ASCII2)
    for number, column in enumerate(columns):
        is_text = number < left or column in words
        made.add_column(column, justify="left" if is_text else "right", no_wrap=not is_text)
    for row in rows:
        made.add_row(*row)
    return made


def target_records(
    results: Sequence[CaseResult],
    targets: Sequence[Target] = TARGETS,
    hosts: Sequence[HostResult] = (),
) -> list[dict[str, Any]]:
    """Return every target of the cases that were run, with what was measured where both sides were."""
    found: list[dict[str, Any]] = []
    times = {
        (result.case.name, one.contender.name): (one.seconds, min(one.samples))
        for result in results
        for one in result.measured
        if one.samples
    }
    for result in results:
        for one in result.measured:
            moved = one.contender.bytes_moved(result.case)
            if moved is not None:
                ideal = moved / result.bandwidth
                times[result.case.name, f"{COPY} of {one.contender.name}"] = (ideal, ideal)
    on_host = {(one.case, one.name, HOST): one.host for one in hosts}
    on_host |= {(one.case, one.name, REPLAY): one.replay for one in hosts}
    cases = {result.case.name for result in results}
    for target in targets:
        if target.case not in cases:
            continue
        record: dict[str, Any] = {"case": target.case, "ours": target.ours, "other": target.other}
        record |= {"target": target.wanted, "measured": None, "met": None, "best": None}
        if target.other in ON_HOST:
            seconds = on_host.get((target.case, target.ours, target.other))
            assert target.at_most is not None
            if seconds is not None:
                record["measured"], record["met"] = 1e6 * seconds, 1e6 * seconds <= target.at_most
            found.append(record)
            continue
        name = f"{COPY} of {target.ours}" if target.other == COPY else target.other
        ours, other = times.get((target.case, target.ours)), times.get((target.case, name))
        if ours is not None and other is not None:
            record["measured"], record["met"] = target.measured(ours[0], other[0])
            # Of the best steps: on a busy machine it tells more than the medians do.
            record["best"], _ = target.measured(ours[1], other[1])
        found.append(record)
    return found


def target_rows(records: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """One row a target: what was measured, whether it is met, and what the best steps say."""
    rows: list[tuple[str, ...]] = []
    for record in records:
        unit = "{:.0f} µs" if record["other"] in ON_HOST else "{:.2f}x"
        value = "absent" if record["measured"] is None else unit.format(record["measured"])
        met = "-" if record["met"] is None else ("yes" if record["met"] else "no")
        best = "-" if record["best"] is None else f"{record['best']:.2f}x"
        rows.append((record["case"], record["ours"], record["other"], record["target"], value, met, best))
    return rows


def startup_rows(figures: Sequence[Startup]) -> list[tuple[str, ...]]:
    """One row a figure of starting, in milliseconds beside its limit."""
    rows: list[tuple[str, ...]] = []
    for figure in figures:
        if figure.seconds is None:
            rows.append((figure.name, f"absent: {figure.failure}", "", f"<= {1e3 * figure.limit:.0f}", "-"))
        else:
            met = "yes" if figure.seconds <= figure.limit else "no"
            rows.append((figure.name, "", f"{1e3 * figure.seconds:.1f}", f"<= {1e3 * figure.limit:.0f}", met))
    return rows


def python_rows(figures: Sequence[PythonPart]) -> list[tuple[str, ...]]:
    """One row a figure of Python's part, in microseconds, with the ratio and its limit."""
    return [
        (
            one.name,
            f"{1e6 * one.ours:.1f}",
            f"{1e6 * one.other:.1f}",
            f"{one.ratio:.2f}x",
            "" if one.limit is None else f"<= {one.limit:g}x",
            "-" if one.limit is None else ("yes" if one.ratio <= one.limit else "no"),
        )
        for one in figures
    ]


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; a wrong one ends the program with status 2 and says what may be given."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--classes",
        help=f'generated classes, with commas between, or "none"; AdamW@4 is one in 4 bits (default: '
        f"{','.join(DEFAULT_CLASSES)}, on a GPU {FOUR_BITS} too; with --all every class)",
    )
    parser.add_argument(
        "--peers",
        help=f'others, with commas between, or "none" (default: {DEFAULT_PEERS["cpu"]}, on a GPU '
        f"{DEFAULT_PEERS['cuda']}; with --quick {QUICK_PEERS})",
    )
    parser.add_argument("--device", choices=list(ALL_CASES), default="cpu", help="where to measure (default: cpu)")
    names = dict.fromkeys(case.name for cases in ALL_CASES.values() for case in cases)
    parser.add_argument("--case", action="append", choices=list(names), help="only these cases")
    parser.add_argument("--all", action="store_true", help="measure every class instead, each against its roofline")
    parser.add_argument("--quick", action="store_true", help="fewer steps: a rough look")
    parser.add_argument("--imports", action="store_true", help="measure import, build and first-step times instead")
    parser.add_argument("--python", action="store_true", help="measure what Python takes of steps and loads instead")
    parser.add_argument("--sizes", action="store_true", help="measure tensors of 10^2 to 10^8 parameters instead")
    parser.add_argument("--png", type=Path, metavar="FILE", help="with --sizes, draw the figures there")
    parser.add_argument("--widths", action="store_true", help="measure with AVX-512 and with AVX2, each in a process")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there too")
    given = parser.parse_args(words)
    if given.png is not None and not given.sizes:
        parser.error("--png draws what --sizes measures; give --sizes too")
    if given.sizes:
        refused = [name for name in ("classes", "peers", "case", "all", "imports", "python") if getattr(given, name)]
        if refused or given.device != "cpu":
            parser.error(f"--sizes has cases and contenders of its own; leave --{(refused or ['device'])[0]} out")
        given.classes, given.peers = ",".join(sizes.CLASSES), ",".join(sizes.PEERS)
    if given.widths and (given.sizes or given.all or given.imports or given.python or given.device != "cpu"):
        parser.error("--widths measures the cases of the cpu; leave the other choices out")
    if given.all:
        others = {"--peers": given.peers, "--case": given.case, "--imports": given.imports, "--python": given.python}
        refused = [name for name, value in others.items() if value]
        if refused or given.device != "cpu":
            parser.error(f"--all is one case of its own, on the cpu; leave {(refused or ['--device'])[0]} out")
    if given.classes is None:
        usual = CUDA_CLASSES if given.device == "cuda" else DEFAULT_CLASSES
        given.classes = "none" if given.all else ",".join(usual)
    if given.peers is None:
        given.peers = QUICK_PEERS if given.quick else DEFAULT_PEERS[given.device]
    for name in ("classes", "peers"):
        items = [item.strip() for item in getattr(given, name).split(",") if item.strip()]
        setattr(given, name, [] if items == ["none"] else items)
    wrong = [peer for peer in given.peers if peer not in PACKAGES]
    if wrong:
        parser.error(f"--peers: {wrong[0]} is not one of {', '.join(PACKAGES)}, none")
    here = [case.name for case in ALL_CASES[given.device]]
    elsewhere = [name for name in given.case or () if name not in here]
    if elsewhere:
        parser.error(f"--case: on {given.device} {elsewhere[0]} is not one of {', '.join(here)}")
    if given.device == "cuda":
        for name in ("imports", "python"):
            if getattr(given, name):
                parser.error(f"--{name} is measured on the cpu; leave --device out")
        reason = gpu.why_no_gpu()
        if reason:
            parser.error(reason)
    return given


def main(words: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return the exit status."""
    given = arguments(words)
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    progress = Console(stderr=True, highlight=False)
    if given.widths:
        return run_widths(given, list(sys.argv[1:] if words is None else words), console)
    about = gpu.machine() if given.device == "cuda" else machine()
    console.print(machine_line(about), markup=False, soft_wrap=True)
    if load_note(about):
        console.print(load_note(about), markup=False)
    record: dict[str, Any] = {"machine": about}
    began = Work.now()
    if given.all:
        record |= run_all(given, console, progress)
    elif given.imports:
        classes = [name for name in given.classes if name in ("AdamW32bit", "AdamW8bit")] or given.classes[:1]
        figures = startup_figures(tuple(classes), given.quick)
        record["startup"] = [asdict(figure) for figure in figures]
        console.print(table("Starting", ("what", "", "median ms", "target ms", "met"), startup_rows(figures), 2))
    elif given.python:
        record["python"] = run_python(given, console)
    elif given.sizes:
        record["sizes"] = run_sizes(given, console, progress, machine_line(about))
    else:
        record |= run_cases(given, console, progress)
    about["load_while_measuring"] = began.others_since() if began is not None else None
    if (about["load_while_measuring"] or 0.0) >= BUSY_FROM:
        busy = about["load_while_measuring"]
        console.print(f"note: while this was measured, other programs kept {busy:.1f} processors busy on average")
    if given.json is not None:
        given.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


def run_all(given: argparse.Namespace, console: Console, progress: Console) -> dict[str, Any]:
    """Measure every class, print the table and what does not reach what it should."""
    found = every.entries(given.classes)
    unknown = set(given.classes) - {name for entry in found for name in (entry.name, *entry.alike)}
    for name in sorted(unknown):
        reason = "it runs functions of matrices" if name in every.of_matrices() else "no spec makes such a class"
        console.print(f"absent: {name} ({reason})", markup=False)
    bandwidth = Bandwidth()
    start = time.perf_counter()
    with progress.status("every class") as status:
        figures, rounds = every.measure(
            found,
            bandwidth,
            ALL_QUICK if given.quick else ALL,
            lambda text, _: status.update(text),
            lambda known: console.print(*map(every.line, known), sep="\n", markup=False, soft_wrap=True),
        )
    speeds = sorted(one["bandwidth"] / 1e9 for one in rounds) or [0.0]
    title = (
        f"{len(figures)} steps on {every.CASE.numel / 1e6:.0f} M float32 parameters; bandwidth {speeds[0]:.1f} to "
        f"{speeds[-1]:.1f} GB/s ({bandwidth.how}); took {time.perf_counter() - start:.0f} s"
    )
    console.print(table(title, every.COLUMNS, every.rows(figures), 3))
    for line in every.alike(figures):
        console.print(line, markup=False)
    missed = sum(bool(one.flag) for one in figures)
    console.print(f"{missed} of {len(figures)} miss what they should reach")
    return {"all": every.records(figures), "rounds": rounds}


def run_sizes(given: argparse.Namespace, console: Console, progress: Console, machine: str) -> list[dict[str, Any]]:
    """Measure tensors of all sizes, print the table and draw it."""
    found, absent = contenders(given.classes, given.peers)
    for name, reason in absent.items():
        console.print(f"absent: {name} ({reason})", markup=False)
    chosen = [one for one in found if one.name in sizes.LINES]
    budget, which = (sizes.QUICK, sizes.QUICK_SIZES) if given.quick else (sizes.BUDGET, sizes.SIZES)
    start = time.perf_counter()
    with progress.status("sizes") as status:
        points = list(sizes.measure(chosen, Bandwidth(), budget, which, lambda text, _: status.update(text)))
    title = f"Nanoseconds a parameter and step; took {time.perf_counter() - start:.0f} s"
    console.print(table(title, sizes.columns(points), sizes.rows(points), 0))
    if given.png is not None:
        sizes.draw(points, given.png, machine)
        console.print(f"picture: {given.png}", markup=False)
    return [asdict(point) for point in points]


def run_widths(given: argparse.Namespace, words: list[str], console: Console) -> int:
    """Measure with each width of vectors in a process of its own, then print tables of them side by side."""
    more = [word for word in words if word != "--widths"]
    records = {width: widths.measure(width, more) for width in widths.widths()}
    if not records:
        console.print("this processor has neither AVX-512 nor AVX2")
        return 1
    console.print(widths.tables(records), markup=False, soft_wrap=True)
    if given.json is not None:
        given.json.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    return 0


def run_python(given: argparse.Namespace, console: Console) -> list[dict[str, Any]]:
    """Measure AdamW's steps and loads of few numbers beside those of torch's fused class."""
    ours, other = partial(catalogue().made["AdamW"], target="cpu"), partial(torch.optim.AdamW, fused=True)
    figures = python_figures(ours, other, RUNS // 10 if given.quick else RUNS)
    columns = ("what", "AdamW µs", f"{FUSED} µs", "ratio", "target", "met")
    console.print(table("Python's part, the least of many runs", columns, python_rows(figures), 1))
    return [{**asdict(one), "ratio": one.ratio} for one in figures]


def contenders(classes: Sequence[str], packages: Sequence[str]) -> tuple[list[Contender], dict[str, str]]:
    """The optimizers that can be measured here, and those that cannot, each with the reason. Peers are AdamW's."""
    known = catalogue()
    ours, unknown = [], {}
    for name in classes:
        base, _, bits = name.partition("@")
        if base in known.made:
            ours += [our_contender(one) for one in wanted(known, [base], [int(bits)] if bits else ())]
        else:
            unknown[name] = "optgen_optim has no such class"
    others = peers(packages, wanted(known, PEERS_OF))
    return [*ours, *others.found], {**unknown, **others.absent}


def run_cases(given: argparse.Namespace, console: Console, progress: Console) -> dict[str, Any]:
    """Measure the cases, printing each table as soon as it is known."""
    found, absent = contenders(given.classes, given.peers)
    for name, reason in absent.items():
        console.print(f"absent: {name} ({reason})", markup=False)
    cuda = given.device == "cuda"
    bandwidth: Meter = gpu.CopyBandwidth() if cuda else Bandwidth()
    device, clock = torch.device(given.device), gpu.event_seconds if cuda else wall_seconds
    results: list[CaseResult] = []
    budget = QUICK if given.quick else DEFAULT
    hosts: list[HostResult] = []
    cases = [case for case in ALL_CASES[given.device] if not given.case or case.name in given.case]
    begun = time.perf_counter()
    for number, case in enumerate(cases):
        start = time.perf_counter()
        own = budget.for_case(start - begun, len(cases) - number)
        with progress.status(case.name) as status:

            def say(text: str, share: float, status: Status = status, name: str = case.name) -> None:
                status.update(f"{name}: {text}, {100 * share:.0f} %")

            result = measure_case(case, found, bandwidth, own, say, device, clock)
            if cuda and len(case.shapes) > 1:
                hosts += [measure_host(case, one) for one in found]
        count = "1 tensor" if len(case.shapes) == 1 else f"{len(case.shapes)} tensors"
        title = (
            f"{case.name}: {count}, {case.numel / 1e6:.1f} M {case.dtype} parameters; bandwidth "
            f"{result.bandwidth / 1e9:.1f} GB/s ({bandwidth.how}); took {time.perf_counter() - start:.0f} s"
        )
        console.print(table(title, show.COLUMNS, show.rows(result), 1, show.WORDS))
        results.append(result)
    if hosts:
        console.print(table("The host's part", HOST_COLUMNS, host_rows(hosts), 3))
    records = target_records(results, CUDA_TARGETS if cuda else TARGETS, hosts)
    columns = ("case", "ours", "against", "target", "measured", "met", "best steps")
    console.print(table("Targets", columns, target_rows(records), 4))
    record = {"cases": [show.record(result) for result in results], "targets": records, "absent": absent}
    return {**record, "host": [asdict(one) for one in hosts]}


if __name__ == "__main__":
    sys.exit(main())
