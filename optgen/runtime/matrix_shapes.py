"""Functions of matrices of any shapes, in torch: products, decompositions, sums over rows and columns.

Matrices are float32 of shape (..., rows, cols). What is known up to a sign has one that is fixed, so that processors
and libraries agree: the greatest component of a vector is positive.
"""

from __future__ import annotations

import torch
from torch import Tensor

from optgen.runtime.sums import means, roots, sums

DIMS = {"tensor": (-2, -1), "row": (-1,), "col": (-2,)}
"""The dimensions that a reduction over each leaves out."""


def transpose(x: Tensor) -> Tensor:
    """The transpose."""
    return x.mT


def product(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """The product, in memory that there is for it, which may be a transpose."""
    return torch.mm(a, b, out=out)


def times(a: Tensor | float, b: Tensor, out: Tensor) -> Tensor:
    """A number or matrix times a matrix, likewise; `b` may lie in the same memory."""
    return torch.mul(b, a, out=out)


def tall(x: Tensor) -> Tensor:
    """The matrix, transposed where it has more columns than rows."""
    return x if x.shape[-2] >= x.shape[-1] else x.mT


def svd_basis(x: Tensor, rank: int) -> Tensor:
    """The leading right singular vectors, one a row, as (..., rank, cols).

    Those of singular values that are nothing but rounding are arbitrary, and 0 here, but of a matrix that is 0 itself.
    """
    values: Tensor
    vectors: Tensor
    _, values, vectors = torch.linalg.svd(x, full_matrices=False)
    if not x.numel():
        return torch.zeros_like(x)[..., :rank, :]
    greatest = values[..., :1]
    known = (values > greatest * (max(x.shape[-2:]) * torch.finfo(x.dtype).eps)) | (greatest == 0)
    return _positive(vectors * known.unsqueeze(-1), -1)[..., :rank, :].contiguous()


def qr(x: Tensor) -> Tensor:
    """The orthogonal factor of x, as large as x, for a triangular one without negative numbers on its diagonal."""
    q, r = torch.linalg.qr(x)
    signs = torch.where(torch.diagonal(r, dim1=-2, dim2=-1) < 0, -1.0, 1.0)
    factor: Tensor = q * signs.unsqueeze(-2)
    return factor


def eigenvectors(x: Tensor) -> Tensor:
    """The eigenvectors of a symmetric matrix, one a column, that of the greatest value first."""
    return _positive(torch.linalg.eigh(x).eigenvectors.flip(-1), -2)


def inverse_root(x: Tensor, exponent: float, eps: float) -> Tensor:
    """(x + eps I) ** -exponent of a symmetric matrix, whose eigenvalues are shifted up to eps if the least is below."""
    values, vectors = torch.linalg.eigh(x)
    values = values + eps
    values = (values + (eps - values.amin(-1, keepdim=True)).clamp(min=0.0)).clamp(min=eps)
    root: Tensor = (vectors * (values**-exponent).unsqueeze(-2)) @ vectors.mT
    return root


def diagonal(x: Tensor) -> Tensor:
    """The diagonal as a column."""
    return torch.diagonal(x, dim1=-2, dim2=-1).unsqueeze(-1)


def sorted_rows(x: Tensor, by: Tensor) -> Tensor:
    """The rows in the order of a column's numbers, the greatest first; equal ones keep their order."""
    order = torch.argsort(by, dim=-2, descending=True, stable=True)
    return torch.take_along_dim(x, order, dim=-2)


def _positive(x: Tensor, dim: int) -> Tensor:
    """Vectors along a dimension with signs such that the greatest component in magnitude is positive."""
    if not x.numel():
        return x
    greatest = torch.take_along_dim(x, x.abs().argmax(dim, keepdim=True), dim)
    return x * torch.where(greatest < 0, -1.0, 1.0)


def sum_over(x: Tensor, over: str) -> Tensor:
    """Sums; the dimensions that they leave out have a size of 1."""
    return sums(x, DIMS[over]).to(x.dtype)


def mean_over(x: Tensor, over: str) -> Tensor:
    """Means, likewise."""
    return means(x, DIMS[over]).to(x.dtype)


def norm_over(x: Tensor, over: str) -> Tensor:
    """Roots of sums of squares, likewise."""
    return roots(x, DIMS[over], mean=False).to(x.dtype)


def rms_over(x: Tensor, over: str) -> Tensor:
    """Roots of mean squares, likewise."""
    return roots(x, DIMS[over], mean=True).to(x.dtype)


def absmax_over(x: Tensor, over: str) -> Tensor:
    """The greatest magnitudes, likewise."""
    return x.abs().amax(DIMS[over], keepdim=True)


def max_over(x: Tensor, over: str) -> Tensor:
    """The greatest numbers, likewise."""
    return x.amax(DIMS[over], keepdim=True)


def min_over(x: Tensor, over: str) -> Tensor:
    """The least numbers, likewise."""
    return x.amin(DIMS[over], keepdim=True)
