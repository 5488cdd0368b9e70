"""Devices, contexts and memory as PyCUDA sees them."""

from __future__ import annotations

import ctypes
import threading
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import standin
from standin.texts import Compile, prepared

DEVICE, HOST = 1, 2  # CUmemLocationType
PREFERRED_LOCATION = 3  # CUmem_advise
ADD_ONE = """
extern "C" __global__ void add_one(float* a, float* b, int64_t n) {
  if (threadIdx.x < n) b[threadIdx.x] = a[threadIdx.x] + 1;
}
"""


class Location(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int), ("id", ctypes.c_int))


def prefetch(driver: standin.Driver, pointer: int, size: int, location: Location, stream: int = 0) -> None:
    arguments = ctypes.c_uint64(pointer), ctypes.c_size_t(size), location, ctypes.c_uint(0), ctypes.c_void_p(stream)
    driver.call("cuMemPrefetchAsync_v2", *arguments)


def managed(drv: ModuleType, count: int) -> np.ndarray:
    return drv.managed_empty(count, np.float32, mem_flags=drv.mem_attach_flags.GLOBAL)


def test_what_the_devices_are(driver: standin.Driver, drv: ModuleType) -> None:
    driver.configure(devices=3, compute_capability=(8, 6), multiprocessors=7, concurrent_managed_access=False)
    assert drv.Device.count() == 3
    device = drv.Device(2)
    attribute = drv.device_attribute
    assert device.compute_capability() == (8, 6)
    assert device.get_attribute(attribute.MULTIPROCESSOR_COUNT) == 7
    assert device.get_attribute(attribute.CONCURRENT_MANAGED_ACCESS) == 0
    with pytest.raises(drv.LogicError, match="there are 3"):
        drv.Device(3)
    driver.reset()
    assert drv.Device.count() == 1
    assert drv.Device(0).get_attribute(attribute.CONCURRENT_MANAGED_ACCESS) == 1


def test_a_function_that_is_not_there_says_so(drv: ModuleType, context: Any) -> None:
    with pytest.raises(drv.Error, match="not supported by the stand-in"):
        drv.Context.get_cache_config()


def test_primary_contexts_are_shared_and_stacked(driver: standin.Driver, drv: ModuleType) -> None:
    driver.configure(devices=2)
    first, second = (drv.Device(i).retain_primary_context() for i in (0, 1))
    first.push()
    second.push()
    assert drv.Context.get_device().get_attributes() == drv.Device(1).get_attributes()
    assert current_device(driver) == 1
    drv.Context.pop()
    assert current_device(driver) == 0
    drv.Context.pop()
    with pytest.raises(standin.DriverError, match="no current context"):
        current_device(driver)


def current_device(driver: standin.Driver) -> int:
    device = ctypes.c_int()
    driver.call("cuCtxGetDevice", ctypes.byref(device))
    return device.value


def test_contexts_are_current_by_thread(driver: standin.Driver, context: Any) -> None:
    found: list[object] = []

    def look() -> None:
        try:
            found.append(current_device(driver))
        except standin.DriverError as error:
            found.append(error.code)

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert current_device(driver) == 0
    assert found == [201]


def test_a_launch_needs_the_context_of_its_module(
    load_kernels: Compile, driver: standin.Driver, drv: ModuleType
) -> None:
    driver.configure(devices=2)
    function = prepared(load_kernels(ADD_ONE), "add_one")
    other = drv.Device(1).retain_primary_context()
    other.push()
    try:
        with pytest.raises(drv.LogicError, match=r"context of device 0, the current one is of device 1"):
            function.prepared_async_call((1, 1), (32, 1, 1), None, 0, 0, 0)
        stream = drv.Stream()
    finally:
        drv.Context.pop()
    with pytest.raises(
        drv.LogicError, match=r"stream belongs to a context of device 1, the current one is of device 0"
    ):
        function.prepared_async_call((1, 1), (32, 1, 1), stream, 0, 0, 0)


def test_a_stream_that_is_none(driver: standin.Driver, context: Any) -> None:
    with pytest.raises(standin.DriverError, match="is not a stream"):
        driver.call("cuStreamSynchronize", ctypes.c_void_p(12345))


def test_memory_is_poisoned_copied_and_counted(driver: standin.Driver, drv: ModuleType, context: Any) -> None:
    before = driver.live_allocations()
    pointer = drv.mem_alloc(4000)
    new = [allocation for allocation in driver.live_allocations() if allocation not in before]
    assert new == [standin.Allocation(int(pointer), 4000, "device", 0)]
    back = np.zeros(1000, np.float32)
    drv.memcpy_dtoh(back, pointer)
    assert np.isnan(back).all()
    drv.memcpy_htod(pointer, np.arange(1000, dtype=np.float32))
    drv.memcpy_dtoh(back, pointer)
    assert np.array_equal(back, np.arange(1000))
    drv.memset_d32(int(pointer), 0, 500)
    drv.memcpy_dtoh(back, pointer)
    assert back[:501].tolist() == [0] * 500 + [500]
    with pytest.raises(drv.LogicError, match="exceed the allocation of 4000 bytes"):
        drv.memcpy_dtoh(np.zeros(1001, np.float32), pointer)
    pointer.free()
    assert driver.live_allocations() == before


def test_running_out_of_memory(driver: standin.Driver, drv: ModuleType, context: Any) -> None:
    driver.fail_after(10_000)
    kept = drv.mem_alloc(6000)
    with pytest.raises(drv.MemoryError, match="cuMemAlloc: out of memory"):
        drv.mem_alloc(4001)
    with pytest.raises(drv.MemoryError, match="cuMemAllocManaged: out of memory"):
        managed(drv, 1001)
    with pytest.raises(drv.MemoryError, match="cuMemHostAlloc: out of memory"):
        drv.pagelocked_empty(1001, np.float32)
    more = managed(drv, 1000)
    kept.free()
    again = drv.mem_alloc(6000)
    driver.fail_after(None)
    drv.mem_alloc(20_000).free()
    again.free()
    del more
    driver.configure(device_memory=1 << 20)
    with pytest.raises(drv.MemoryError):
        drv.mem_alloc(1 << 21)


def test_tensors_of_the_cpu_are_device_memory(load_kernels: Compile) -> None:
    a, b = torch.arange(32.0), torch.zeros(32)
    prepared(load_kernels(ADD_ONE), "add_one").prepared_call((1, 1), (32, 1, 1), a.data_ptr(), b.data_ptr(), 30)
    assert torch.equal(b[:30], a[:30] + 1)
    assert b[30:].tolist() == [0, 0]


def test_managed_memory_with_prefetch_and_advice(
    load_kernels: Compile, driver: standin.Driver, drv: ModuleType, context: Any
) -> None:
    with pytest.raises(drv.LogicError, match="neither GLOBAL nor HOST"):
        drv.managed_empty(4, np.float32)
    array = managed(drv, 64)
    pointer = int(array.base)
    assert [a.kind for a in driver.live_allocations() if a.pointer == pointer] == ["managed"]
    tensor = torch.from_numpy(np.asarray(array))
    tensor.fill_(2)
    prepared(load_kernels(ADD_ONE), "add_one").prepared_call((1, 1), (64, 1, 1), pointer, pointer, 64)
    assert tensor.tolist() == [3] * 64
    stream = drv.Stream()
    prefetch(driver, pointer, 128, Location(DEVICE, 0), stream.handle)
    prefetch(driver, pointer + 128, 64, Location(HOST, 0))
    advice = ctypes.c_uint64(pointer), ctypes.c_size_t(256), ctypes.c_int(PREFERRED_LOCATION), Location(HOST, 0)
    driver.call("cuMemAdvise_v2", *advice)
    assert driver.prefetches() == [
        standin.Prefetch(pointer, 128, DEVICE, 0, stream.handle),
        standin.Prefetch(pointer + 128, 64, HOST, 0, 0),
    ]
    assert driver.advices() == [standin.Advice(pointer, 256, PREFERRED_LOCATION, HOST, 0)]
    driver.clear_logs()
    assert driver.prefetches() == driver.advices() == []


def test_prefetches_that_are_refused(driver: standin.Driver, drv: ModuleType, context: Any) -> None:
    plain, shared = drv.mem_alloc(64), managed(drv, 16)
    for pointer, size, said in (
        (int(plain), 64, "are not managed memory"),
        (int(shared.base), 65, "exceed the allocation of 64 bytes"),
    ):
        with pytest.raises(standin.DriverError, match=said):
            prefetch(driver, pointer, size, Location(DEVICE, 0))
    with pytest.raises(standin.DriverError, match="device 1: there are 1"):
        prefetch(driver, int(shared.base), 64, Location(DEVICE, 1))
    driver.configure(concurrent_managed_access=False)
    with pytest.raises(standin.DriverError, match="no concurrent managed access") as error:
        prefetch(driver, int(shared.base), 64, Location(DEVICE, 0))
    assert error.value.code == 101
    assert driver.prefetches() == []


def test_an_image_for_another_device_is_refused(load_kernels: Compile, driver: standin.Driver, drv: ModuleType) -> None:
    load_kernels(ADD_ONE)
    driver.configure(compute_capability=(8, 0))
    with pytest.raises(drv.Error, match=r"the image is for sm_90, the device is of compute capability 8\.0"):
        load_kernels(ADD_ONE)
    with pytest.raises(drv.Error, match="not made by the stand-in"):
        drv.module_from_buffer(b"\x7fELF" + b"\0" * 100)


def test_a_kernel_that_is_not_there(load_kernels: Compile, drv: ModuleType) -> None:
    with pytest.raises(drv.LogicError, match=r"no extern \"C\" __global__ function add_two"):
        load_kernels(ADD_ONE).get_function("add_two")
