"""`optgen bench`: optimizers on the shapes of a model, side by side with those of other libraries."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optgen.bench.request import CLASSES, CLASSES_IN_BITS, Request
from optgen.console import print_json, print_table, print_text
from optgen.errors import UserError

if TYPE_CHECKING:
    from optgen.bench.cases import Case
    from optgen.bench.contenders import Catalogue
    from optgen.bench.measure import Budget, CaseResult

TOO_SHORT = "its first step compiles for longer than --seconds {:g}; --seconds 10, or --peers, measures it"


def run_bench(request: Request) -> None:
    """Measure, print a table or JSON, draw a picture.

    Raises:
        UserError: if a class or a file does not exist, memory is too small, or nothing could be measured.
        SpecError: mistakes in the specs.
    """
    if importlib.util.find_spec("torch") is None:
        raise UserError("the bench needs torch: pip install torch")
    if request.png is not None and importlib.util.find_spec("matplotlib") is None:
        raise UserError("a picture needs matplotlib: pip install matplotlib; or leave --png out")
    if request.png is not None:
        request.png.parent.mkdir(parents=True, exist_ok=True)
        if request.png.is_dir():
            raise UserError(f"{request.png} is a folder; give the name of a PNG file")
    import torch

    from optgen.bench import gpu, show
    from optgen.bench.contenders import catalogue, our_contender, wanted
    from optgen.bench.machine import machine
    from optgen.bench.measure import Bandwidth, bandwidth_bytes, measure_case, wall_seconds
    from optgen.bench.memory import check_memory, free_bytes
    from optgen.bench.peers import peers

    device = torch.device(request.device)
    cuda = device.type == "cuda"
    if cuda and gpu.why_no_gpu():
        raise UserError(gpu.why_no_gpu())
    case, notes = _case(request)
    known = catalogue(request.specs)
    asked = wanted(known, request.classes or _usual_classes(known, request), request.bits)
    others = peers(request.peers, asked)
    absent = {**others.absent, **dict.fromkeys(request.left_out, TOO_SHORT.format(request.seconds))}
    contenders = [*(our_contender(one) for one in asked), *others.found]
    beside = 2 * gpu.COPIED_BYTES if cuda else bandwidth_bytes()
    need = check_memory(case, contenders, beside, device)
    about = gpu.machine() if cuda else machine()
    if not request.as_json:
        _print_head(case, about, notes, need.total)
    with show.progress(case.name) as say:
        meter = gpu.CopyBandwidth() if cuda else Bandwidth()
        clock = gpu.event_seconds if cuda else wall_seconds
        result = measure_case(case, contenders, meter, _budget(request.seconds), say, device, clock)
    if request.as_json:
        memory = {"needed": need.total, "free": free_bytes(device)}
        print_json({"machine": about, **show.record(result), "notes": notes, "memory": memory, "absent": absent})
    else:
        print_table(show.COLUMNS, show.rows(result), right=[name for name in show.COLUMNS if name not in show.WORDS])
        print_text(f"\nbandwidth {result.bandwidth / 1e9:.1f} GB/s, measured between the steps ({meter.how})")
        reasons: dict[str, list[str]] = {}
        for name, reason in absent.items():
            reasons.setdefault(reason, []).append(name)
        for reason, missing in reasons.items():
            print_text(f"absent: {', '.join(missing)}: {reason}")
    if not any(one.samples for one in result.measured):
        raise UserError("nothing could be measured; the reasons stand above")
    if request.png is not None:
        _draw(result, request.png, about, request.as_json)


def _usual_classes(known: Catalogue, request: Request) -> tuple[str, ...]:
    """The classes where none is named: of specs all, and where bits are given those that leave them open."""
    if not request.specs:
        return CLASSES_IN_BITS if request.bits else CLASSES
    names = tuple(known.infos)
    return tuple(name for name in names if known.infos[name].spec.entry.bits is None) if request.bits else names


def _case(request: Request) -> tuple[Case, list[str]]:
    """The tensors, and what is to be said of them."""
    import torch

    from optgen.bench.cases import case_of
    from optgen.bench.hugging_face import config_shapes
    from optgen.bench.models import MODELS
    from optgen.bench.shapes import read_shapes

    if request.shapes is None and request.like not in MODELS:
        read = config_shapes(request.like)
        name, shapes, dtype, notes = request.like, read.shapes, read.dtype or "float32", list(read.notes)
    elif request.shapes is None:
        name, shapes, dtype, notes = request.like, MODELS[request.like](), "float32", []
    else:
        read = read_shapes(request.shapes)
        name, shapes, dtype = request.shapes.name, read.shapes, read.dtype or "float32"
        notes = list(read.notes)
    dtype = request.dtype or dtype
    return case_of(name, shapes, dtype, getattr(torch, dtype).itemsize), notes


def _budget(seconds: float) -> Budget:
    from optgen.bench.measure import Budget

    return Budget(run_seconds=4 * seconds, case_seconds=seconds, aging_seconds=max(1.0, seconds / 8), least=3, most=100)


def _print_head(case: Case, about: dict[str, Any], notes: Sequence[str], need: float) -> None:
    from optgen.bench.machine import load_note, machine_line
    from optgen.doctor import readable_size

    count = "1 tensor" if len(case.shapes) == 1 else f"{len(case.shapes)} tensors"
    print_text(machine_line(about))
    print_text(
        f"{case.name}: {count}, {case.numel:,} {case.dtype} parameters; about {readable_size(round(need))} of memory"
    )
    for note in notes:
        print_text(f"note: {note}")
    if load_note(about):
        print_text(load_note(about))
    print_text()


def _draw(result: CaseResult, path: Path, about: dict[str, Any], as_json: bool) -> None:
    from optgen.bench.machine import machine_line
    from optgen.bench.picture import save_picture

    save_picture(result, path, machine_line(about))
    if not as_json:
        print_text(f"picture: {path}")
