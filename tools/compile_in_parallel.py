"""Runs the setup.py of the current folder with as many compilers at a time as there are processors.

    python compile_in_parallel.py bdist_wheel -d DIR

setuptools compiles the files of an extension one after another; of some forty, as in PyCUDA, that takes twice as long
on two processors as it needs to.
"""

from __future__ import annotations

import os
import runpy
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import setuptools  # noqa: F401  # first: it brings distutils, which newer Pythons lack

from distutils.unixccompiler import UnixCCompiler  # isort: skip


def compile_all(
    self: Any,
    sources: list[str],
    output_dir: str | None = None,
    macros: Any = None,
    include_dirs: Any = None,
    debug: bool = False,
    extra_preargs: list[str] | None = None,
    extra_postargs: list[str] | None = None,
    depends: Any = None,
) -> list[str]:
    """Compile `sources` as `distutils.ccompiler.CCompiler.compile` does, all at once; return the object files."""
    _, objects, extra, preprocessor, build = self._setup_compile(
        output_dir, macros, include_dirs, sources, depends, extra_postargs
    )
    arguments = self._get_cc_args(preprocessor, debug, extra_preargs)
    # The largest first: one that is begun last is waited for.
    pending = sorted((name for name in objects if name in build), key=lambda name: -Path(build[name][0]).stat().st_size)
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        done = [
            pool.submit(self._compile, name, *build[name], arguments, extra, preprocessor)  # a process each
            for name in pending
        ]
        for future in done:
            future.result()
    return list(objects)


if __name__ == "__main__":
    UnixCCompiler.compile = compile_all
    sys.argv[0] = "setup.py"
    sys.path[0] = str(Path.cwd())
    runpy.run_path("setup.py", run_name="__main__")
