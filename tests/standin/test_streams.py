"""Streams, events, captures and replays; the log of launches."""

from __future__ import annotations

import struct
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import standin
from standin.texts import Compile, address, prepared

UNSUPPORTED = "not permitted when a stream is capturing"
ADD = """
extern "C" __global__ void add(float* a, double value, int64_t n) {
  if (threadIdx.x < n) a[threadIdx.x] += value;
}
"""


@pytest.fixture
def add(load_kernels: Compile) -> Any:
    return prepared(load_kernels(ADD), "add", "Pdq")


def launch(add: Any, stream: Any, array: np.ndarray, value: float) -> None:
    add.prepared_async_call((1, 1), (32, 1, 1), stream, address(array), value, len(array))


def test_the_log_of_launches(add: Any, driver: standin.Driver, drv: ModuleType) -> None:
    array, stream = np.zeros(8, np.float32), drv.Stream()
    launch(add, stream, array, 2.5)
    add.prepared_async_call((2, 3), (32, 1, 1), None, address(array), 1.0, 8, shared_size=64)
    first, second = driver.launches()
    packed = struct.pack("Pdq", address(array), 2.5, 8)
    assert first == standin.Launch("add", (1, 1, 1), (32, 1, 1), stream.handle, 0, packed, False)
    assert (second.grid, second.stream, second.shared_bytes) == ((2, 3, 1), 0, 64)
    assert array.tolist() == [8.5] * 8
    driver.clear_logs()
    assert driver.launches() == []


def test_streams_and_events(add: Any, drv: ModuleType) -> None:
    array, one, two = np.zeros(8, np.float32), drv.Stream(), drv.Stream()
    assert one.handle != two.handle != 0
    start, end = drv.Event(), drv.Event()
    start.record(one)
    launch(add, one, array, 1)
    end.record(one)
    two.wait_for_event(end)
    launch(add, two, array, 2)
    two.synchronize()
    assert end.query()
    assert two.is_done()
    assert end.time_since(start) >= 0
    assert array.tolist() == [3] * 8


def test_capture_and_replay(add: Any, driver: standin.Driver, drv: ModuleType) -> None:
    array, copied = np.zeros(8, np.float32), np.zeros(8, np.float32)
    stream = drv.Stream()
    memory = drv.mem_alloc(32)
    drv.memcpy_htod(memory, array)
    with driver.capture(stream) as graph:
        add.prepared_async_call((1, 1), (32, 1, 1), stream, int(memory), 2.0, 8)
        drv.memcpy_dtoh_async(copied, memory, stream)
    assert driver.launches() == []
    assert copied.tolist() == [0] * 8
    for replays in (1, 2, 3):
        graph.replay()
        assert copied.tolist() == [2.0 * replays] * 8
    launches = driver.launches()
    assert [(log.stream, log.replayed) for log in launches] == [(stream.handle, True)] * 3
    assert launches[0].arguments == struct.pack("Pdq", int(memory), 2.0, 8)
    add.prepared_async_call((1, 1), (32, 1, 1), stream, int(memory), 1.0, 8)  # the stream runs again
    drv.memcpy_dtoh(copied, memory)
    assert copied.tolist() == [7] * 8


def test_a_fork_is_captured_and_must_join(add: Any, driver: standin.Driver, drv: ModuleType) -> None:
    array, origin, side = np.zeros(8, np.float32), drv.Stream(), drv.Stream()
    forked, joined = drv.Event(), drv.Event()
    with driver.capture(origin) as graph:
        forked.record(origin)
        side.wait_for_event(forked)
        launch(add, side, array, 1)
        joined.record(side)
        origin.wait_for_event(joined)
        launch(add, origin, array, 2)
    assert array.tolist() == [0] * 8
    graph.replay()
    assert array.tolist() == [3] * 8
    launch(add, side, array, 1)  # no longer captured
    assert array.tolist() == [4] * 8
    with driver.capture(origin) as graph:
        forked.record(origin)
        side.wait_for_event(forked)
        launch(add, side, array, 1)
    with pytest.raises(standin.DriverError, match="does not wait for all work of another"):
        graph.replay()


def test_a_fork_joins_through_another(add: Any, driver: standin.Driver, drv: ModuleType) -> None:
    array, streams, events = np.zeros(8, np.float32), [drv.Stream() for _ in range(3)], [drv.Event() for _ in range(3)]
    origin = streams[0]
    with driver.capture(origin) as graph:
        for i, stream in enumerate(streams):  # each waits for the one before, the first at last for the last
            launch(add, stream, array, 1)
            events[i].record(stream)
            streams[(i + 1) % 3].wait_for_event(events[i])
    graph.replay()
    assert array.tolist() == [3] * 8


def test_what_a_capture_forbids(add: Any, driver: standin.Driver, drv: ModuleType, context: Any) -> None:
    array, stream, other = np.zeros(8, np.float32), drv.Stream(), drv.Stream()
    outside = drv.Event()
    outside.record(other)
    memory = drv.mem_alloc(32)
    forbidden = {
        "a launch on the null stream": lambda: launch(add, None, array, 1),
        "an allocation": lambda: drv.mem_alloc(32),
        "a copy that waits": lambda: drv.memcpy_dtoh(array, memory),
        "waiting for the context": lambda: drv.Context.synchronize(),
        "waiting for the stream": lambda: stream.synchronize(),
        "asking the stream": lambda: stream.is_done(),
        "a copy on the null stream": lambda: drv.memcpy_dtoh_async(array, memory, None),
    }
    for what, operation in forbidden.items():
        with driver.capture(stream) as graph:
            launch(add, other, array, 1)  # another stream runs as usual
            with pytest.raises(drv.Error, match=UNSUPPORTED):
                operation()
        with pytest.raises(standin.DriverError, match="made the capture invalid"):
            graph.replay()
        assert array.tolist() == [1] * 8, what
        array[:] = 0
    with driver.capture(stream), pytest.raises(drv.Error, match="not recorded in this stream's capture"):
        stream.wait_for_event(outside)
    assert [log.stream for log in driver.launches()] == [other.handle] * len(forbidden)


def test_the_null_stream_cannot_capture(driver: standin.Driver, context: Any) -> None:
    with pytest.raises(standin.DriverError, match="the null stream cannot capture") as error, driver.capture(0):
        pass
    assert error.value.code == 900


def test_a_replay_finds_errors(load_kernels: Compile, driver: standin.Driver, drv: ModuleType) -> None:
    kernel = load_kernels('extern "C" __global__ void wrong() { if (threadIdx.x) __syncthreads(); }').get_function(
        "wrong"
    )
    kernel.prepare("")
    stream = drv.Stream()
    with driver.capture(stream) as graph:
        kernel.prepared_async_call((1, 1), (32, 1, 1), stream)
    with pytest.raises(standin.DriverError, match="kernel wrong, block"):
        graph.replay()
