"""Output of `optgen explain`: a class as text, as a record for `--json`, and the values of a step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from optgen.console import brief, print_table, print_text
from optgen.explanation import SIDE, ClassInfo

SHAPES: tuple[tuple[int, ...], ...] = ((2, 3), (4,))
"""Shapes of the tensors of a trace: a matrix and a vector."""


def class_record(info: ClassInfo) -> dict[str, object]:
    """Figures of a class, as `optgen list --json` has them."""
    return {
        "class": info.name,
        "family": info.rule,
        "title": info.whole_rule.title.raw,
        "module": info.module,
        "bits": info.bits,
        "states": list(info.states),
        "state_bytes_per_parameter": info.state_bytes,
        "passes": info.passes,
        "traffic_bytes_per_parameter": info.traffic,
    }


def explanation_record(info: ClassInfo) -> dict[str, object]:
    """The rest of what `optgen explain --json` has."""
    explanation = info.explain()
    return {
        "doc": info.doc.raw,
        "paged_bytes_per_parameter": info.pageable_bytes if info.is_paged else 0.0,
        "pageable_bytes_per_parameter": info.pageable_bytes,
        "paged_from_elements": info.paged_from,
        "equations": list(explanation.equations),
        "values": [{"name": name, "kind": kind, "expression": text} for name, kind, text in explanation.kinds],
        "plan": [
            {
                "name": plan_pass.name,
                "reads": list(plan_pass.reads),
                "writes": list(plan_pass.writes),
                "reduces": list(plan_pass.reduces),
                "bytes_per_parameter": plan_pass.bytes,
            }
            for plan_pass in explanation.passes
        ],
        "visits": [list(visit) for visit in info.visits],
        "visit_bytes_per_parameter": info.visit_traffic,
        "matrix_functions": [
            {"function": str(work), "operations": work.operations, "when": when} for work, when in info.matrix_work
        ],
        "matrix_operations_per_parameter": info.matrix_operations,
        "matrix_bytes_per_parameter": info.matrix_traffic,
        "files": list(explanation.files),
    }


def _paging(info: ClassInfo) -> str:
    what = f"{brief(info.pageable_bytes)} bytes a parameter, on a GPU and from {info.paged_from} elements on"
    return f"paging: {what}" if info.is_paged else f"paging: none; is_paged=True pages {what}"


def print_explanation(info: ClassInfo) -> None:
    """Print equations, values, passes, memory and files."""
    from optgen.page.plain import equations, values

    explanation = info.explain()
    print_text(f"{info.name}: rule {info.rule}, {info.bits}-bit states")
    if info.doc:
        print_text(info.doc.raw)
    print_text("\n  ".join(("\nequations", *equations(info))))
    print_text()
    print_table(("value", "kind", "expression"), values(explanation))
    print_text()
    rows = [
        (
            plan_pass.name,
            ", ".join(plan_pass.reads),
            ", ".join(plan_pass.writes),
            ", ".join(plan_pass.reduces),
            brief(plan_pass.bytes),
        )
        for plan_pass in explanation.passes
    ]
    print_table(("pass", "reads", "writes", "reduces", "B/param"), rows, right=("B/param",))
    print_text(
        f"\nmemory: states {brief(info.state_bytes)} bytes a parameter; a step moves {brief(info.traffic)}"
        + (f", and of matrices {brief(info.matrix_traffic)}" if info.matrix_work else "")
    )
    for first, *_, last in (visit for visit in info.visits if len(visit) > 1):
        print_text(f"on a CPU {first} to {last} are one visit of memory, and a step moves {brief(info.visit_traffic)}")
    for products in info.matrix_functions:
        print_text(f"products of {products}")
    if info.matrix_work:
        print_text(f"products of {SIDE} x {SIDE}: {info.matrix_operations:,.0f} operations a parameter\n")
        functions = [(str(work), work.operations, when or "every step") for work, when in info.matrix_work]
        print_table(("function of matrices", "operations", "runs"), functions)
        print_text()
    print_text(_paging(info))
    print_text("\nfiles")
    for path in explanation.files:
        print_text(f"  {path}")


def print_trace(info: ClassInfo, step: int) -> None:
    """Print every value of a step of two small tensors, or of one where the rule takes no other, in float64.

    Settings have their defaults, required numbers are 1; parameters and gradients are random and the same every time.

    Args:
        step: Its number, from 1; those before it are taken first.
    """
    import torch

    from optgen.evaluation import Reference

    generator = torch.Generator().manual_seed(0)
    ndim = info.whole_rule.spec.ndim
    shapes: list[tuple[int, ...]] = [shape for shape in SHAPES if ndim in (None, len(shape))] or [(2,) * (ndim or 0)]
    now = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    rule, state = Reference(info, {}), None
    for _ in range(step):
        before, grads = now, [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
        since = state
        now, state = rule.step(before, grads, since)
    traced = rule.trace(before, grads, since)
    print_text(f"{info.name}: step {step} of {len(shapes)} small tensor{'s' if len(shapes) > 1 else ''}, in float64")
    for index, (shape, param, grad) in enumerate(zip(shapes, before, grads, strict=True)):
        given = [("", "param", "element", _numbers(param)), ("", "grad", "element", _numbers(grad))]
        found = [(v.source, v.name, v.kind, _numbers(v.value)) for v in traced if v.index == index]
        print_text(f"\ntensor {index + 1}, {' x '.join(map(str, shape))}")
        print_table(("statement", "value", "kind", "numbers"), [*given, *_statements_once(found)])


def _statements_once(rows: Sequence[tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
    """Rows in which a statement stands beside the first of its values alone."""
    before = ""
    for statement, *others in rows:
        yield ("" if statement == before else statement, *others)
        before = statement


def _numbers(value: Any) -> str:
    """A number, or those of a tensor in brackets, with four digits."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list):
        return f"[{', '.join(map(_numbers, value))}]"
    return str(value) if isinstance(value, bool) else f"{value:.4g}"
