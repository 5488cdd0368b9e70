"""Tests that need processes of their own: loading, sanitizers, the portable fibers, many workers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import standin
from standin.build import library

pytest.importorskip("pycuda")

PRELUDE = """
import pathlib, tempfile
import numpy as np
import standin
driver = standin.load()
import pycuda.driver as drv
from standin.texts import address, cubin
drv.init()
context = drv.Device(0).retain_primary_context()
context.push()
module = drv.module_from_buffer(cubin(pathlib.Path(tempfile.mkdtemp()), KERNELS))
def run(name, a, b, n, threads=64):
    function = module.get_function(name)
    function.prepare("PPq")
    try:
        function.prepared_call((2, 1), (threads, 1, 1), a, b, n)
    except drv.Error as error:
        print(error)
"""
KERNELS = r"""
extern "C" __global__ void shift(const float* a, float* b, int64_t n) {
  __shared__ float tile[64];
  for (int64_t i = blockIdx.x * 64 + threadIdx.x; i < n; i += 128) {
    float v = a[i];
    tile[threadIdx.x] = __shfl_xor_sync(0xffffffff, v, 1);
    __syncthreads();
    b[i] = tile[threadIdx.x ^ 1] + __shfl_xor_sync(0xffffffff, v, 2);
  }
}
extern "C" __global__ void wrong(const float* a, float* b, int64_t n) {
  float kept[40];  // the sanitizer marks what is beside it on the stack
  for (int i = 0; i < 40; ++i) kept[i * n % 40] = a[i];
  if (threadIdx.x != 50) __syncthreads();
  for (int i = 0; i < 40; ++i) b[i] = kept[i * n % 39];
}
extern "C" __global__ void vector(const float4* a, float4* b, int64_t n) { b[0] = a[0]; }
extern "C" __global__ void beyond(const float* a, float* b, int64_t n) {
  __shared__ float tile[64];
  tile[threadIdx.x + n] = 1;
  b[0] = tile[0];
}
"""
CHECK = """
a = np.arange(256, dtype=np.float32); b = np.zeros_like(a)
run("shift", address(a), address(b), 256)
assert np.array_equal(b, a + a[np.arange(256) ^ 2])
run("wrong", address(a), address(b), 1)
run("shift", address(a), address(b), 256)
assert np.array_equal(b, a + a[np.arange(256) ^ 2])
"""


def script(body: str) -> str:
    """A script in which what `body` does to arrays is done by kernels."""
    return f"KERNELS = {KERNELS!r}\n{PRELUDE}{body}\ncontext.pop()\nprint('finished')\n"


def plain_run(text: str, **environment: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": paths, **environment}
    return subprocess.run([sys.executable, "-c", text], env=environment, capture_output=True, text=True, check=False)


def test_right_kernels_pass_the_sanitizer() -> None:
    done = standin.sanitized_run(script(CHECK))
    assert done.returncode == 0, done.stderr
    assert (
        "kernel wrong, block (0, 0, 0), thread (50, 0, 0): ended without reaching the barrier __syncthreads at"
        in done.stdout
    )
    assert done.stdout.endswith("finished\n")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("a = np.zeros(200, np.float32); run('shift', address(a), address(a), 256)", "heap-buffer-overflow"),
        ("p = drv.mem_alloc(1020); run('shift', int(p), int(p), 256)", "heap-buffer-overflow"),
        ("a = np.zeros(64, np.float32); run('vector', address(a) + 4, address(a) + 16, 0)", "misaligned address"),
        ("a = np.zeros(64, np.float32); run('beyond', address(a), address(a), 1)", "out of bounds"),
    ],
    ids=["array", "driver-memory", "misaligned-vector", "shared-array"],
)
def test_the_sanitizer_finds(body: str, said: str) -> None:
    done = standin.sanitized_run(script(body))
    assert done.returncode != 0
    assert "finished" not in done.stdout
    assert said in done.stderr
    assert "kernels.cu" in done.stderr


def test_the_sanitizer_watches_torch_tensors() -> None:
    tensors = "import torch\na, b = torch.zeros(256), torch.zeros(250)\n"
    done = standin.sanitized_run(script(f"{tensors}run('shift', a.data_ptr(), b.data_ptr(), 256)"))
    assert "heap-buffer-overflow" in done.stderr
    assert "WRITE of size 4" in done.stderr


def test_fibers_without_assembly() -> None:
    done = plain_run(script(CHECK), STANDIN_UCONTEXT="1")
    assert done.returncode == 0, done.stderr
    assert "thread (50, 0, 0): ended without reaching" in done.stdout


def test_a_driver_that_is_loaded_already_is_refused() -> None:
    done = plain_run(
        f"import ctypes, standin\nctypes.CDLL({str(library())!r})\n"
        "try:\n    standin.load()\nexcept RuntimeError as error:\n    print(error)\n"
    )
    assert "a CUDA driver is loaded already" in done.stdout


def test_loading_names_the_compiler(driver: standin.Driver) -> None:
    assert standin.load() is driver
    assert os.environ["OPTGEN_NVCC"] == standin.compiler()
    assert os.access(driver.nvcc, os.X_OK)


def test_many_processes_build_once(tmp_path: Path) -> None:
    """A compiler that counts: whoever comes second waits for the first."""
    counter = tmp_path / "count"
    compiler = tmp_path / "g++"
    compiler.write_text(
        f'#!/bin/sh\ncase "$*" in *all.cpp*) echo x >> {counter};; esac\nexec g++ "$@"\n', encoding="utf-8"
    )
    compiler.chmod(0o755)
    environment = {
        **os.environ,
        "CXX": str(compiler),
        "OPTGEN_CACHE_DIR": str(tmp_path / "cache"),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    command = [sys.executable, "-c", "import standin; print(standin.library())"]
    running = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    paths = {process.communicate()[0] for process in running}
    assert len(paths) == 1
    assert Path(paths.pop().strip()).exists()
    assert counter.read_text(encoding="utf-8") == "x\n"
