"""Kernels: what they compute in whatever order threads run, and the errors that are found in them."""

from __future__ import annotations

import ctypes
import time
from typing import Any

import numpy as np
import pytest

import standin
from standin.texts import Call, Compile, address, cubins, prepared

ORDERS = {
    "forward": (standin.forward, standin.forward),
    "backward": (standin.backward, standin.backward),
    "shuffled": (standin.shuffled(1), standin.shuffled(2)),
}
KERNELS = r"""
struct Call { const float* source; float* target; int64_t count; double factor; };
#define KERNEL(name) extern "C" __global__ void __launch_bounds__(256) name(const float* a, float* b, int64_t n)

extern "C" __global__ void __launch_bounds__(256) scale(const Call call) {
  const int64_t stride = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < call.count; i += stride)
    call.target[i] = static_cast<float>(call.source[i] * call.factor);
}

template <int WARPS>
__device__ __forceinline__ float block_sum(float value) {
  __shared__ float partial[WARPS];
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffff, value, offset);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
  __syncthreads();
  float sum = 0;
  for (int i = 0; i < WARPS; ++i) sum += partial[i];
  __syncthreads();
  return sum;
}

KERNEL(sums) {
  for (int64_t block = blockIdx.x; block * 256 < n; block += gridDim.x) {
    const float sum = block_sum<8>(a[block * 256 + threadIdx.x]);
    if (threadIdx.x == 0) b[block] = sum;
  }
}

KERNEL(reversed) {
  __shared__ float tile[256];
  tile[threadIdx.x] = a[threadIdx.x];
  __syncthreads();
  b[threadIdx.x] = tile[255 - threadIdx.x];
}

KERNEL(no_barrier) {
  __shared__ float tile[256];
  tile[threadIdx.x] = a[threadIdx.x];
  b[threadIdx.x] = tile[255 - threadIdx.x];
}

KERNEL(no_second_barrier) {
  __shared__ float tile[256];
  for (int64_t round = 0; round < n; ++round) {
    tile[threadIdx.x] = a[threadIdx.x] + round;
    __syncthreads();
    b[threadIdx.x] += tile[(threadIdx.x + 1) % 256];
  }
}

KERNEL(last_block_wins) {
  if (threadIdx.x == 0) b[0] = blockIdx.x;
}

KERNEL(written_too_late) {
  __shared__ float tile[256];
  b[blockIdx.x * 256 + threadIdx.x] = tile[threadIdx.x];
  tile[threadIdx.x] = 1;
}

KERNEL(only_read) {
  __shared__ float tile[256];
  b[blockIdx.x * 256 + threadIdx.x] = tile[threadIdx.x];
}

KERNEL(barrier_not_reached) {
  if (threadIdx.x == 7) return;
  __syncthreads();
}

KERNEL(first_thread_ends) {
  if (threadIdx.x > 0) __syncthreads();
}

KERNEL(two_barriers) {
  if (threadIdx.x < 128) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

KERNEL(waits_forever) {
  if (threadIdx.x < 8) __syncwarp(); else __syncthreads();
}

KERNEL(lane_outside_mask) {
  if (threadIdx.x < 16) b[threadIdx.x] = __shfl_sync(0x0000ffff, a[threadIdx.x], 20);
}

KERNEL(ended_lane) {
  if (threadIdx.x >= 16) return;
  b[threadIdx.x] = __shfl_xor_sync(0xffffffff, a[threadIdx.x], 16);
}

KERNEL(not_in_mask) { __syncwarp(1); }

KERNEL(two_collectives) {
  if (threadIdx.x & 1) __syncwarp(); else __ballot_sync(0xffffffff, 1);
}

extern "C" __global__ void collectives(int* b) {
  const int lane = threadIdx.x % 32;
  int* out = b + threadIdx.x * 16;
  out[0] = __shfl_sync(0xffffffff, lane, 5);
  out[1] = __shfl_sync(0xffffffff, lane, 3, 8);
  out[2] = __shfl_up_sync(0xffffffff, lane, 2);
  out[3] = __shfl_down_sync(0xffffffff, lane, 3, 16);
  out[4] = __shfl_xor_sync(0xffffffff, lane, 9);
  out[5] = __shfl_xor_sync(0xffffffff, lane, 16, 16);
  out[6] = static_cast<int>(__ballot_sync(0xffffffff, lane % 3 == 0));
  out[7] = __any_sync(0xffffffff, lane == 31);
  out[8] = __all_sync(0xffffffff, lane < 31);
  out[9] = __reduce_add_sync(0xffffffff, lane);
  out[10] = __reduce_max_sync(0xffffffff, lane);
  out[11] = __syncthreads_count(lane < 4);
  out[12] = __syncthreads_or(threadIdx.x == 40);
  out[13] = __syncthreads_and(threadIdx.x < 63);
  out[14] = static_cast<int>(__shfl_sync(0xffffffff, int64_t(lane) << 40, 6) >> 40);
  if (lane < 20) out[15] = static_cast<int>(__ballot_sync(0x000fffff, 1));
}

extern "C" __global__ void shape(int* b) {
  const int block = blockIdx.y * gridDim.x + blockIdx.x;
  const int at = (block * blockDim.z + threadIdx.z) * 12 + threadIdx.y * 4 + threadIdx.x;
  b[at] = blockIdx.x + 10 * blockIdx.y + 100 * threadIdx.x + 1000 * threadIdx.y + 10000 * threadIdx.z;
}

extern "C" __global__ void count(int* b, unsigned long long* total) {
  __shared__ int counter;
  if (threadIdx.x == 0) counter = 0;
  __syncthreads();
  atomicAdd(&counter, static_cast<int>(threadIdx.x));
  atomicAdd(total, 1ull);
  __syncthreads();
  if (threadIdx.x == 0) atomicMax(b, counter);
}

extern "C" __global__ void dynamic(float* b) {
  extern __shared__ float tile[];
  tile[threadIdx.x] = threadIdx.x;
  __syncthreads();
  b[threadIdx.x] = tile[blockDim.x - 1 - threadIdx.x];
}

__constant__ float table[4] = {1, 2, 3, 4};

KERNEL(constants) { b[threadIdx.x] = table[threadIdx.x % 4]; }

KERNEL(vectors) {
  const float4 v = reinterpret_cast<const float4*>(a)[threadIdx.x];
  reinterpret_cast<float4*>(b)[threadIdx.x] = make_float4(v.w, v.z, __uint_as_float(__float_as_uint(v.y)), v.x);
}
"""


@pytest.fixture
def kernels(load_kernels: Compile) -> Any:
    return load_kernels(KERNELS)


@pytest.fixture(params=list(ORDERS))
def order(request: pytest.FixtureRequest, driver: standin.Driver) -> Any:
    threads, blocks = ORDERS[request.param]
    driver.set_order(threads, blocks)
    return request.param


def numbers(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.float32) + 1


def call(kernels: Any, name: str, a: np.ndarray, b: np.ndarray, *, grid: int = 1, block: int = 256) -> None:
    prepared(kernels, name).prepared_call((grid, 1), (block, 1, 1), address(a), address(b), len(a))


def test_a_struct_by_value(kernels: Any, order: str) -> None:
    a, b = numbers(5000), np.zeros(5000, np.float32)
    arguments = Call(address(a), address(b), len(a), 0.5)
    function = kernels.get_function("scale")
    function.prepare("32s")
    function.prepared_async_call((3, 1), (256, 1, 1), None, bytes(arguments))
    assert np.array_equal(b, a / 2)


def test_shuffles_and_barriers(kernels: Any, order: str) -> None:
    a, b = numbers(20 * 256), np.zeros(20, np.float32)
    call(kernels, "sums", a, b, grid=3)
    assert np.array_equal(b, a.reshape(20, 256).sum(1))


def test_shared_memory(kernels: Any, order: str) -> None:
    a, b = numbers(256), np.zeros(256, np.float32)
    call(kernels, "reversed", a, b)
    assert np.array_equal(b, a[::-1])


def test_a_missing_barrier_reads_nan(kernels: Any, order: str) -> None:
    a, b = numbers(256), np.zeros(256, np.float32)
    call(kernels, "no_barrier", a, b)
    assert np.isnan(b).any()
    assert not np.array_equal(b, a[::-1])


def test_a_missing_second_barrier_shows_between_orders(kernels: Any, driver: standin.Driver) -> None:
    a = numbers(256)
    results = set()
    for threads, _ in ORDERS.values():
        b = np.zeros(256, np.float32)
        function = prepared(kernels, "no_second_barrier")
        with driver.order(threads=threads):
            function.prepared_call((1, 1), (256, 1, 1), address(a), address(b), 3)
        results.add(b.tobytes())
    assert len(results) == 3


def test_orders_of_blocks(kernels: Any, driver: standin.Driver) -> None:
    last = []
    for blocks in (standin.forward, standin.backward, standin.shuffled(3), standin.shuffled(3), standin.shuffled(4)):
        b = np.zeros(1, np.float32)
        with driver.order(blocks=blocks):
            call(kernels, "last_block_wins", b, b, grid=1000)
        last.append(int(b[0]))
    assert last[:2] == [999, 0]
    assert last[2] == last[3] != last[4]


@pytest.mark.parametrize("name", ["written_too_late", "only_read"])
def test_each_block_gets_fresh_shared_memory(kernels: Any, name: str) -> None:
    b = np.zeros(3 * 256, np.float32)
    call(kernels, name, b, b, grid=3)
    assert np.isnan(b).all()


def test_collectives(kernels: Any, order: str) -> None:
    b = np.zeros((64, 16), np.int32)
    prepared(kernels, "collectives", "P").prepared_call((1, 1), (64, 1, 1), address(b))
    lane = np.arange(64) % 32
    expected = np.zeros_like(b)
    expected[:, 0] = 5
    expected[:, 1] = lane // 8 * 8 + 3
    expected[:, 2] = np.where(lane >= 2, lane - 2, lane)
    expected[:, 3] = np.where(lane % 16 + 3 < 16, lane + 3, lane)
    expected[:, 4] = lane ^ 9
    expected[:, 5] = np.where(lane < 16, lane, lane ^ 16)
    expected[:, 6] = sum(1 << i for i in range(0, 32, 3))
    expected[:, 7] = 1
    expected[:, 9] = 31 * 16
    expected[:, 10] = 31
    expected[:, 11] = 8
    expected[:, 12] = 1
    expected[:, 14] = 6
    expected[:, 15] = np.where(lane < 20, 0xFFFFF, 0)
    assert np.array_equal(b.view(np.uint32), expected.astype(np.uint32))


def test_indices_of_three_dimensions(kernels: Any, order: str) -> None:
    b = np.zeros((2, 3, 2, 3, 4), np.int32)
    prepared(kernels, "shape", "P").prepared_call((3, 2), (4, 3, 2), address(b))
    y, x, tz, ty, tx = np.indices(b.shape)
    assert np.array_equal(b, x + 10 * y + 100 * tx + 1000 * ty + 10000 * tz)


def test_atomics_on_integers(kernels: Any, order: str) -> None:
    b, total = np.zeros(1, np.int32), np.zeros(1, np.uint64)
    prepared(kernels, "count", "PP").prepared_call((5, 1), (64, 1, 1), address(b), address(total))
    assert (b[0], total[0]) == (64 * 63 // 2, 320)


def test_dynamic_shared_memory(kernels: Any, driver: standin.Driver, order: str) -> None:
    b = np.zeros(64, np.float32)
    prepared(kernels, "dynamic", "P").prepared_call((1, 1), (64, 1, 1), address(b), shared_size=256)
    assert np.array_equal(b, np.arange(64)[::-1])
    assert driver.launches()[-1].shared_bytes == 256


def test_constants_can_be_read_and_set(kernels: Any, drv: Any) -> None:
    b = np.zeros(256, np.float32)
    call(kernels, "constants", b, b)
    assert b[:4].tolist() == [1, 2, 3, 4]
    pointer, size = kernels.get_global("table")
    assert size == 16
    drv.memcpy_htod(pointer, np.array([5, 6, 7, 8], np.float32))
    call(kernels, "constants", b, b)
    assert b[:4].tolist() == [5, 6, 7, 8]


def test_vector_types(kernels: Any) -> None:
    a = numbers(1024)
    b = np.zeros_like(a)
    call(kernels, "vectors", a, b)
    assert np.array_equal(b.reshape(-1, 4), a.reshape(-1, 4)[:, ::-1])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("barrier_not_reached", ["(7, 0, 0)", "without reaching", "__syncthreads at", "kernels.cu:"]),
        ("first_thread_ends", ["(0, 0, 0)", "ended without reaching"]),
        ("two_barriers", ["__syncthreads at", "but thread"]),
        ("waits_forever", ["deadlock", "__syncwarp at", "mask 0xffffffff", "__syncthreads at"]),
        ("lane_outside_mask", ["__shfl_sync at", "reads a lane outside its mask"]),
        ("ended_lane", ["__shfl_xor_sync at", "ended or does not exist"]),
        ("not_in_mask", ["its mask 0x00000001 lacks the calling lane"]),
        ("two_collectives", ["__syncwarp at", "__ballot_sync at"]),
    ],
)
def test_errors_of_a_kernel(kernels: Any, drv: Any, order: str, name: str, said: list[str]) -> None:
    a, b = numbers(256), np.zeros(256, np.float32)
    with pytest.raises(drv.LaunchError) as error:
        call(kernels, name, a, b)
    for words in [f"kernel {name}, block (0, 0, 0)", "thread (", *said]:
        assert words in str(error.value)
    call(kernels, "reversed", a, b)  # the next launch is as if nothing had happened
    assert np.array_equal(b, a[::-1])


def test_the_block_of_an_error_is_named(load_kernels: Compile, drv: Any) -> None:
    module = load_kernels('extern "C" __global__ void third() { if (blockIdx.x == 2) __syncwarp(2); }')
    with pytest.raises(drv.LaunchError, match=r"kernel third, block \(2, 0, 0\), thread \(0, 0, 0\): __syncwarp at"):
        module.get_function("third")(block=(32, 1, 1), grid=(4, 1))


@pytest.mark.parametrize(
    ("block", "grid", "shared", "said"),
    [
        ((1025, 1, 1), (1, 1), 0, "1024 are possible"),
        ((1, 1, 65), (1, 1), 0, "1024 are possible"),
        ((257, 1, 1), (1, 1), 0, "a block of 257 threads, but its __launch_bounds__ say 256"),
        ((256, 1, 1), (1, 65536), 0, "a grid of"),
        ((256, 1, 1), (0, 1), 0, "a grid of"),
        ((256, 1, 1), (1, 1), 48 * 1024 - 1023, "49152 bytes of dynamic shared memory"),
    ],
)
def test_launches_that_are_too_large(
    kernels: Any, driver: standin.Driver, drv: Any, block: Any, grid: Any, shared: int, said: str
) -> None:
    b = np.zeros(256, np.float32)
    with pytest.raises(drv.Error) as error:  # `reversed` has an array of 1 KiB
        prepared(kernels, "reversed").prepared_call(grid, block, address(b), address(b), 0, shared_size=shared)
    assert said.replace("49152", str(shared)) in str(error.value)
    assert driver.launches() == []


def test_arguments_that_do_not_match(kernels: Any, driver: standin.Driver, drv: Any) -> None:
    function = prepared(kernels, "reversed", "PP")
    with pytest.raises(drv.LogicError, match="kernel reversed: its parameters take 24 bytes, the launch passes 16"):
        function.prepared_call((1, 1), (256, 1, 1), 0, 0)
    assert driver.launches() == []


def test_arguments_given_one_by_one(kernels: Any, driver: standin.Driver) -> None:
    """As a caller of the driver API other than PyCUDA may."""
    a, b = numbers(256), np.zeros(256, np.float32)
    values = (ctypes.c_uint64(address(a)), ctypes.c_uint64(address(b)), ctypes.c_int64(256))
    pointers = (ctypes.c_void_p * 3)(*(ctypes.addressof(value) for value in values))
    call(kernels, "reversed", b, b)
    function = function_handle(driver, "reversed")
    shape = [ctypes.c_uint(n) for n in (1, 1, 1, 256, 1, 1, 0)]
    driver.call("cuLaunchKernel", function, *shape, None, pointers, None)
    assert np.array_equal(b, a[::-1])


def function_handle(driver: standin.Driver, name: str) -> ctypes.c_void_p:
    """A handle of one's own, since PyCUDA shows none."""
    image = next(image for (text, *_), image in cubins.items() if text == KERNELS)
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    driver.call("cuModuleLoadData", ctypes.byref(module), image)
    driver.call("cuModuleGetFunction", ctypes.byref(function), module, name.encode())
    return function


def test_two_modules_do_not_share_variables(load_kernels: Compile) -> None:
    text = """
    template <int N> __device__ float* shared_array() { __shared__ float kept[N]; return kept; }
    __constant__ int64_t number = NUMBER;
    extern "C" __global__ void get(int64_t* b) { b[0] = number; b[1] = reinterpret_cast<int64_t>(shared_array<4>()); }
    """
    modules = [load_kernels(text, f"-DNUMBER={n}") for n in (3, 5)]
    found = []
    for module in modules:
        b = np.zeros(2, np.int64)
        prepared(module, "get", "P").prepared_call((1, 1), (1, 1, 1), address(b))
        found.append(b.tolist())
    (first, first_array), (second, second_array) = found
    assert (first, second) == (3, 5)
    assert first_array != second_array


LARGE_ARRAYS = """
template <int number, class Body> __device__ void with_array(const Body& body) {
  __shared__ float kept[30 * 256];
  kept[threadIdx.x] = 1;
  body(kept[threadIdx.x]);
}
extern "C" __global__ void one(float* b) { with_array<1>([&](float x) { b[threadIdx.x] = x; }); }
extern "C" __global__ void other(float* b) { with_array<1>([&](float x) { b[threadIdx.x] = -x; }); }
extern "C" __global__ void both(float* b) {
  const auto add = [&](float x) { b[threadIdx.x] += x; };
  with_array<1>(add);
  with_array<2>(add);
}
"""


def test_arrays_of_a_kernels_functions_count_for_it_alone(load_kernels: Compile, drv: Any) -> None:
    module = load_kernels(LARGE_ARRAYS)
    for name, value in (("one", 1), ("other", -1)):
        b = np.zeros(1, np.float32)
        prepared(module, name, "P").prepared_call((1, 1), (1, 1, 1), address(b))
        assert b[0] == value
    with pytest.raises(drv.Error, match="kernel both: 61440 bytes of __shared__ arrays, at most 49152 are possible"):
        module.get_function("both")


def test_speed_of_a_kernel_that_never_waits(kernels: Any) -> None:
    """An element costs nanoseconds, not a switch of stacks: a generous bound of 1 µs, on a busy machine."""
    a = numbers(1 << 18)
    b = np.zeros_like(a)
    arguments = bytes(Call(address(a), address(b), len(a), 2.0))
    function = kernels.get_function("scale")
    function.prepare("32s")
    start = time.process_time()
    function.prepared_call((1024, 1), (256, 1, 1), arguments)
    assert time.process_time() - start < 1e-6 * len(a)
