"""Finding PyCUDA and NVIDIA's driver: real ones where there are, stand-ins for what can go wrong."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from optgen.runtime.building import nvidia
from optgen.runtime.building.nvidia import Driver, Gpu, ask_driver, why_no_pycuda

GCC = shutil.which("gcc")
needs_gcc = pytest.mark.skipif(GCC is None or sys.platform != "linux", reason="builds a stand-in with gcc on Linux")

DRIVER = """\
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
int cuDriverGetVersion(int* version) { *version = 12080; return 0; }
int cuInit(unsigned flags) { STARTS; return flags; }
int cuDeviceGetCount(int* count) { *count = 2; return 0; }
int cuDeviceGet(int* device, int index) { *device = index + 10; return 0; }
int cuDeviceGetName(char* name, int length, int device) { strcpy(name, device == 10 ? "First" : "Second"); return 0; }
int cuDeviceGetAttribute(int* value, int attribute, int device) {
    *value = attribute == 75 ? (device == 10 ? 8 : 12) : attribute == 76 ? (device == 10 ? 6 : 1) : -1;
    return 0;
}
int cuGetErrorString(int error, const char** text) { *text = error == 999 ? "unknown error" : 0; return 0; }
"""


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put a driver of the test's own in place of the machine's; the text says what cuInit does."""

    def build(starts: str) -> None:
        source, library = tmp_path / "driver.c", tmp_path / "libcuda.so.1"
        source.write_text(DRIVER.replace("STARTS", starts), encoding="utf-8")
        subprocess.run([str(GCC), "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
        monkeypatch.setattr(nvidia, "LIBRARY", str(library))

    return build


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia, "LIBRARY", "libcuda-that-nobody-has.so.1")
    found = ask_driver()
    assert not found.installed
    assert "libcuda-that-nobody-has.so.1: cannot open shared object file" in found.failure
    assert found.gpus == ()


@needs_gcc
def test_a_driver_names_its_devices(driver: Callable[[str], None]) -> None:
    driver("")
    assert ask_driver() == Driver(True, "", "12.8", (Gpu("First", "sm_86"), Gpu("Second", "sm_121")))


@needs_gcc
@pytest.mark.parametrize(
    ("starts", "failure"),
    [
        ("return 100", ""),
        ("return 999", "cuInit failed with 999: unknown error"),
        ("return 803", "cuInit failed with 803: an unknown error"),
        ("abort()", "asking it failed (killed by signal 6)"),
        ("*(volatile int*)0 = 1", "asking it failed (killed by signal 11)"),
    ],
)
def test_a_driver_that_fails(driver: Callable[[str], None], starts: str, failure: str) -> None:
    driver(starts)
    found = ask_driver()
    assert (found.installed, found.failure, found.gpus) == (True, failure, ())


@needs_gcc
def test_a_driver_that_hangs(driver: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    driver("sleep(600)")
    monkeypatch.setattr(nvidia, "DRIVER_TIMEOUT_SECONDS", 1.0)
    start = time.monotonic()
    assert ask_driver() == Driver(True, "does not answer within 1 seconds")
    assert time.monotonic() - start < 60


@needs_gcc
def test_a_library_that_is_no_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "libcuda.so.1"
    (tmp_path / "empty.c").touch()
    subprocess.run([str(GCC), "-shared", "-fPIC", str(tmp_path / "empty.c"), "-o", str(library)], check=True)
    monkeypatch.setattr(nvidia, "LIBRARY", str(library))
    found = ask_driver()
    assert found.installed
    assert "undefined symbol: cuDriverGetVersion" in found.failure


# PyCUDA


@pytest.fixture
def pycuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Put a PyCUDA of the test's own in place of the machine's; the text is its module `driver`."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "pycuda"]:
        monkeypatch.delitem(sys.modules, name)
    why_no_pycuda.cache_clear()
    monkeypatch.setattr(nvidia, "LIBRARY", "libc.so.6")  # anything that loads

    def install(text: str) -> None:
        package = tmp_path / "site" / "pycuda"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "driver.py").write_text(text, encoding="utf-8")
        monkeypatch.syspath_prepend(str(package.parent))

    yield install
    why_no_pycuda.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "pycuda"]:
        del sys.modules[name]


@pytest.mark.skipif(sys.platform != "linux", reason="loads libc.so.6")
class TestPyCuda:
    """Answers of `why_no_pycuda`."""

    def test_not_installed(self, pycuda: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
        real = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pycuda" else real(name))
        assert why_no_pycuda() == "PyCUDA is not installed: pip install pycuda"

    def test_without_a_driver(self, pycuda: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
        pycuda("raise AssertionError('must not be imported')")
        monkeypatch.setattr(nvidia, "LIBRARY", "libcuda-that-nobody-has.so.1")
        assert why_no_pycuda().startswith("the NVIDIA driver is missing: libcuda-that-nobody-has.so.1: ")

    def test_with_a_driver_that_is_too_old(self, pycuda: Callable[[str], None]) -> None:
        pycuda("raise ImportError('/x/_driver.so: undefined symbol: cuGreenCtxCreate_v2')")
        assert "is older than the CUDA that PyCUDA was built with: it lacks cuGreenCtxCreate_v2" in why_no_pycuda()

    def test_that_does_not_import(self, pycuda: Callable[[str], None]) -> None:
        pycuda("import a_module_that_nobody_has")
        assert "ModuleNotFoundError: No module named 'a_module_that_nobody_has'" in why_no_pycuda()
        assert "pip install pycuda" in why_no_pycuda()

    def test_that_works_is_imported_once(self, pycuda: Callable[[str], None], tmp_path: Path) -> None:
        pycuda(f"with open({str(tmp_path / 'log')!r}, 'a') as log: log.write('imported ')")
        assert why_no_pycuda() == why_no_pycuda() == ""
        assert (tmp_path / "log").read_text(encoding="utf-8") == "imported "


@needs_gcc
def test_the_real_pycuda_is_asked_without_starting_cuda(tmp_path: Path) -> None:
    """A library in the driver's place that notes every call: importing PyCUDA, where it can be, makes none."""
    spec = importlib.util.find_spec("pycuda")
    if spec is None or spec.origin is None:
        pytest.skip("PyCUDA is not installed")
    (extension,) = Path(spec.origin).parent.glob("_driver*.so")
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("no nm to list what PyCUDA needs of the driver")
    listed = subprocess.run([nm, "-D", "--undefined-only", extension], capture_output=True, text=True, check=True)
    needed = sorted({word for word in listed.stdout.split() if word.startswith("cu") and word[2:3].isupper()})
    assert "cuInit" in needed
    calls = tmp_path / "calls"
    source = tmp_path / "driver.c"
    note = f'FILE* f = fopen("{calls}", "a"); fputs(__func__, f); fclose(f); return 100;'
    source.write_text("#include <stdio.h>\n" + "".join(f"int {name}() {{ {note} }}\n" for name in needed), "utf-8")
    library = tmp_path / "libcuda.so.1"
    soname = "-Wl,-soname,libcuda.so.1"
    subprocess.run([str(GCC), "-shared", "-fPIC", str(source), soname, "-o", str(library)], check=True)
    script = """
import sys
from optgen.runtime.building.nvidia import why_no_pycuda
print([why_no_pycuda()], 'torch' in sys.modules)
"""
    root = Path(nvidia.__file__).resolve().parents[3]
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": f"{root}:{Path(spec.origin).parents[1]}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[''] False", done.stderr
    assert not calls.exists(), calls.read_text(encoding="utf-8")


def test_this_machine_is_asked_without_harm() -> None:
    """Compared with a process of its own: in this one a stand-in may be loaded."""
    load = f"import ctypes; ctypes.CDLL({nvidia.LIBRARY!r})"
    loads = subprocess.run([sys.executable, "-c", load], capture_output=True).returncode == 0
    assert ask_driver().installed == loads
