"""A stand-in for the CUDA driver: PyCUDA, as it is, runs kernels on the CPU.

    import standin
    driver = standin.load()          # before the first `import pycuda.driver`
    import pycuda.driver as drv

A device pointer is an address of this process, so a CPU tensor's `data_ptr()` can be given to a kernel. A launch, a
copy or a replay is finished when its call returns; streams and events are real handles but carry no order. Blocks run
one after the other, and so do the threads of a block until they meet in a barrier or a warp's collective: results that
depend on the order of threads or blocks show as differences between orders (`Driver.order`).

An error of a kernel is an error of the launch, which names the kernel, the block and the thread: a barrier that not all
threads reach (a thread that ended counts as one that does not), threads at different barriers, a deadlock, a shuffle
that reads a lane outside its mask. Shared memory is filled with 0xff bytes before each block, as newly allocated memory
is. What is not found: threads that wait for each other in a loop over memory, and work that lacks an order between
streams. Function-scope `__shared__` arrays are supported, others are not; a variable that is `static` in a function and
zero at first is taken for one.

Accesses outside of memory are found where AddressSanitizer is built in: `sanitized_run`.
"""

from standin.build import BuildError, cuda_header, library, nvcc, nvrtc
from standin.control import (
    Advice,
    Allocation,
    Capture,
    Driver,
    DriverError,
    Launch,
    Order,
    Prefetch,
    backward,
    compiler,
    forward,
    load,
    shuffled,
)
from standin.sanitized import sanitized_run

__all__ = [
    "Advice",
    "Allocation",
    "BuildError",
    "Capture",
    "Driver",
    "DriverError",
    "Launch",
    "Order",
    "Prefetch",
    "backward",
    "compiler",
    "cuda_header",
    "forward",
    "library",
    "load",
    "nvcc",
    "nvrtc",
    "sanitized_run",
    "shuffled",
]
