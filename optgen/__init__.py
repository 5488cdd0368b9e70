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
_OF_COMPILER = ("jinja2", "pydantic", "rich", "typer", "yaml")


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'optgen' has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_PLACES[name]), name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in {"optgen", *_OF_COMPILER}:
            raise
        raise ImportError(
            f"optgen.{name} is part of the compiler, of which {error.name} is not installed here: this is the runtime "
            "alone (optgen-runtime). Install optgen: `pip install .` in its source folder",
            name=error.name,
        ) from None


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
