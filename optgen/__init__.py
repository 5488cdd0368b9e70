"""optgen: a compiler for optimizers.

`optgen.load("my.yaml").MyOptimizer(model.parameters(), lr=1e-3)` compiles a spec and imports what comes of it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optgen.diagnostics import SpecError, SpecWarning
    from optgen.errors import UserError
    from optgen.evaluation import reference
    from optgen.loading import load

__version__ = "0.1.0"
__all__ = ["SpecError", "SpecWarning", "UserError", "__version__", "load", "reference"]

# Imported when they are asked for: generated code imports this package at every start.
_PLACES = {
    "SpecError": "optgen.diagnostics",
    "SpecWarning": "optgen.diagnostics",
    "UserError": "optgen.errors",
    "load": "optgen.loading",
    "reference": "optgen.evaluation",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'optgen' has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)
