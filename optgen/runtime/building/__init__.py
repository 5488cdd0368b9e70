"""From the source of a kernel to machine code: compilers and what they make, the cache, kernels inside a package."""
