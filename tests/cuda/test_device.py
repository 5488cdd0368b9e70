"""A GPU as torch and PyCUDA share it: contexts, streams, threads, modules. On the stand-in; torch's side is acted."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import Any

import pytest
import torch
from optgen_optim import LAMB, AdamW
from support.gpu import StandinDevice, install_standin

from optgen.runtime.cuda import cuda_device
from optgen.runtime.cuda.cuda_device import CudaDevice

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def make(count: int = 3, **settings: Any) -> tuple[list[torch.Tensor], AdamW]:
    params = [torch.randn(300 + i, requires_grad=True) for i in range(count)]
    for param in params:
        param.grad = torch.randn_like(param)
    return params, AdamW(params, target="cuda", **settings)


class ActedStream:
    """Stand-in for a stream of torch, with what the device needs of it."""

    def __init__(self, handle: int, log: list[str], name: str) -> None:
        self.cuda_stream, self.log, self.name = handle, log, name

    def wait_stream(self, other: ActedStream) -> None:
        self.log.append(f"{self.name} waits for {other.name}")


class TestStreams:
    def test_on_the_default_stream_kernels_run_there(self, driver, monkeypatch) -> None:
        gpu = CudaDevice(0)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda index: ActedStream(0, [], "torch's"))
        with gpu.stream() as stream:
            assert stream is None

    def test_beside_any_other_stream_they_wait_for_it_and_it_for_them(self, driver, monkeypatch) -> None:
        gpu, log = CudaDevice(0), []
        made = []

        def external(handle: int, device: int) -> ActedStream:
            made.append((handle, device))
            return ActedStream(handle, log, "PyCUDA's")

        monkeypatch.setattr(torch.cuda, "current_stream", lambda index: ActedStream(7, log, "torch's"))
        monkeypatch.setattr(torch.cuda, "ExternalStream", external)
        for _ in range(2):
            with gpu.stream() as stream:
                log.append("launch")
                assert made == [(stream.handle, 0)], "made once"
        assert log == ["PyCUDA's waits for torch's", "launch", "torch's waits for PyCUDA's"] * 2

    def test_torchs_stream_waits_even_if_a_launch_fails(self, driver, monkeypatch) -> None:
        gpu, log = CudaDevice(0), []
        monkeypatch.setattr(torch.cuda, "current_stream", lambda index: ActedStream(7, log, "torch's"))
        monkeypatch.setattr(torch.cuda, "ExternalStream", lambda handle, device: ActedStream(handle, log, "PyCUDA's"))
        with pytest.raises(RuntimeError, match="launch"), gpu.stream():
            raise RuntimeError("launch")
        assert log[-1] == "torch's waits for PyCUDA's"
        assert gpu.driver.Context.get_current() is None

    def test_every_stream_of_torchs_has_its_own(self, driver, monkeypatch) -> None:
        gpu, handles = CudaDevice(0), []
        monkeypatch.setattr(torch.cuda, "ExternalStream", lambda handle, device: ActedStream(handle, [], "PyCUDA's"))
        for number in (7, 8, 7):
            monkeypatch.setattr(torch.cuda, "current_stream", lambda index, n=number: ActedStream(n, [], "torch's"))
            with gpu.stream() as stream:
                handles.append(stream.handle)
        assert handles[0] == handles[2] != handles[1]

    def test_nothing_is_said_when_the_process_ends(self, driver) -> None:
        script = """
import threading, torch, standin
standin.load()
from optgen.runtime.cuda.cuda_device import CudaDevice, cuda_device
from support.gpu import install_standin
gpu = install_standin()
from optgen_optim import AdamW
def step():
    param = torch.ones(5, requires_grad=True)
    param.grad = torch.ones(5)
    AdamW([param], target="cuda").step()
step()
thread = threading.Thread(target=step)
thread.start()
thread.join()
"""
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=ENVIRONMENT)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


class TestContexts:
    def test_a_step_leaves_the_context_stack_as_it_was(self, driver) -> None:
        _, opt = make()
        gpu = install_standin()
        assert gpu.driver.Context.get_current() is None
        opt.step()
        assert gpu.driver.Context.get_current() is None

    def test_the_context_is_the_primary_one(self, driver) -> None:
        first, second = CudaDevice(0), StandinDevice(0)
        assert first.context.handle == second.context.handle

    def test_steps_in_threads_equal_steps_in_one(self, driver) -> None:
        results: dict[int, list[torch.Tensor]] = {}

        def train(number: int) -> None:
            generator = torch.Generator().manual_seed(number)
            param = torch.randn(700, generator=generator).requires_grad_()
            opt = LAMB([param], target="cuda", lr=0.1)
            for _ in range(3):
                param.grad = torch.randn(700, generator=generator)
                opt.step()
            results.setdefault(number, []).append(param.detach())

        for number in range(4):
            train(number)
        threads = [threading.Thread(target=train, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(torch.equal(alone, together) for alone, together in results.values())
        assert len(results) == 4


class TestModules:
    def test_a_kernel_is_loaded_once_for_all_optimizers(self, driver, monkeypatch) -> None:
        gpu = StandinDevice(0)
        monkeypatch.setitem(cuda_device._devices, torch.device("cpu"), gpu)
        loads = []
        load = gpu.driver.module_from_buffer
        monkeypatch.setattr(gpu.driver, "module_from_buffer", lambda image: loads.append(1) or load(image))
        for _ in range(2):
            _, opt = make()
            opt.step()
        assert len(loads) == 1

    @pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 6), (9, 0), (10, 0)])
    def test_kernels_are_made_for_the_device_at_hand(self, capability, driver) -> None:
        driver.configure(compute_capability=capability)
        gpu = StandinDevice(0)
        assert (gpu.capability, gpu.arch) == (capability, f"sm_{capability[0]}{capability[1]}")

    def test_an_old_device_is_refused(self, driver, monkeypatch) -> None:
        driver.configure(compute_capability=(7, 0))
        monkeypatch.setitem(cuda_device._devices, torch.device("cpu"), StandinDevice(0))
        params, opt = make()
        before = [param.detach().clone() for param in params]
        message = r"AdamW: target='cuda' cannot serve: cpu has compute capability 7\.0, and .* need 7\.5 or newer"
        with pytest.raises(RuntimeError, match=message):
            opt.step()
        assert all(map(torch.equal, before, params))
        assert not opt.state
