"""The headers that stand beside a generated source."""

from __future__ import annotations

import shutil
from pathlib import Path


def copy_headers(source: Path, folder: Path) -> None:
    """Copy all headers beside a source, which it or others of them include."""
    for header in source.parent.glob("*.h"):
        shutil.copy(header, folder)
