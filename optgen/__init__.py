"""optgen: a compiler for optimizers.

`optgen.load("my.yaml").MyOptimizer(model.parameters(), lr=1e-3)` compiles a spec and imports what comes of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optgen.loading import load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from optgen.loading import load

        return load
    raise AttributeError(f"module 'optgen' has no attribute {name!r}")
