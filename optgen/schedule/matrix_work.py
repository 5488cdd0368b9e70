"""Products and decompositions of a step on matrices, with what they take and when they run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from optgen.ir.formula import TRUE, Formula
from optgen.ir.guards import GuardTable
from optgen.ir.matrix_stage import MatrixStage
from optgen.ir.nodes import Call, walk
from optgen.ir.shapes import OWN, Shape, shape_of, shown
from optgen.operations import MATRIX_FUNCTIONS
from optgen.passes.drop_unused import drop_unused
from optgen.passes.fold import fold

DECOMPOSITIONS = frozenset(("svd_basis", "qr", "eigenvectors", "inverse_root"))


@dataclass(frozen=True)
class MatrixWork:
    """A function of matrices that a step calls.

    Attributes:
        name: Its name in specs.
        shapes: The matrices that it takes.
        when: The condition on the number of the step under which it runs.
    """

    name: str
    shapes: tuple[Shape, ...]
    when: Formula = TRUE

    def __str__(self) -> str:
        return f"{self.name} {' '.join(map(shown, self.shapes))}"

    @property
    def factors(self) -> tuple[str, ...]:
        """The dimensions of a product: it takes two operations for each of their product."""
        return (*self.shapes[0], self.shapes[1][1]) if self.name == "matmul" else ()

    @property
    def operations(self) -> str:
        """Its operations, as text; those of decompositions are not counted."""
        if self.factors:
            return f"2 {' '.join(self.factors)}"
        return MATRIX_FUNCTIONS[self.name].products if self.name in MATRIX_FUNCTIONS else "not counted"

    def count(self, sizes: Mapping[str, int]) -> int:
        """The operations of a product whose dimensions have these sizes; 0 of another function."""
        return 2 * math.prod(sizes[name] for name in self.factors) if self.factors else 0


def matrix_work(stage: MatrixStage, answers: Mapping[str, bool], guards: GuardTable) -> tuple[MatrixWork, ...]:
    """The functions that a step calls under settings that answer the guards so, in the order of their statements."""
    program = drop_unused(fold(stage.under(answers, guards).program))
    shapes = {**stage.shapes, "grad": OWN, "param": OWN}
    found = []
    for let in program.lets:
        for node in reversed(list(walk(let.expr))):  # operands before what takes them
            if isinstance(node, Call) and (node.op == "matmul" or node.op in DECOMPOSITIONS | MATRIX_FUNCTIONS.keys()):
                taken = (shape_of(arg, shapes) for arg in (node.args if node.op == "matmul" else node.args[:1]))
                found.append(MatrixWork(node.op, tuple(shape for shape in taken if shape is not None), let.path))
        shape = shape_of(let.expr, shapes)
        if shape is not None:
            shapes[let.name] = shape
    return tuple(work for work in found if not work.when.is_false)
