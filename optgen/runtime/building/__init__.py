"""Compilation of kernels: compilers and their results, the cache, kernels inside a package."""
