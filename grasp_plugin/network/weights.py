"""Weights of a projection: dense, sparse or convolutional, all over flattened (C-order) neurons.

A weight maps a flat source vector x of `in` entries to a flat target vector y of `out` entries:

    dense        y = W x                      ndarray [out, in]
    sparse       y = W x                      scipy.sparse.csr_matrix [out, in]
    convolution  torch cross-correlation      `Conv`: kernel [C_out, C_in/groups, *K]

The functions below compose and scale them without leaving the cheapest form.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

Array: TypeAlias = npt.NDArray[Any]

DENSE_ABOVE = 0.25  # a composed sparse matrix with more non-zeros than this is stored dense


@dataclass(frozen=True, eq=False)
class Conv:
    """A convolution (torch's cross-correlation) of any number of spatial axes.

    y[o, p] = sum_{i, q} kernel[o, i, q] x[i, p * stride + q * dilation - padding_low]

    Args:
        kernel: [C_out, C_in / groups, *K].
        in_shape: (C_in, *S), one sample without batch axis.
        stride, dilation: one integer per spatial axis.
        padding: (low, high) zeros per spatial axis.
        groups: number of channel groups.
    """

    kernel: Array
    in_shape: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int = 1

    @property
    def out_shape(self) -> tuple[int, ...]:
        spatial = (
            (size + low + high - step * (k - 1) - 1) // stride + 1
            for size, k, stride, (low, high), step in zip(
                self.in_shape[1:],
                self.kernel.shape[2:],
                self.stride,
                self.padding,
                self.dilation,
                strict=True,
            )
        )
        return (self.kernel.shape[0], *spatial)

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the equivalent matrix."""
        return int(np.prod(self.out_shape)), int(np.prod(self.in_shape))

    def to_sparse(self) -> sp.csr_matrix:
        """The same map as a matrix over flattened neurons."""
        out_shape, in_shape = self.out_shape, self.in_shape
        c_out, c_in = out_shape[0] // self.groups, in_shape[0] // self.groups
        rows, cols, values = [], [], []
        sources = np.arange(np.prod(in_shape)).reshape(in_shape)
        targets = np.arange(np.prod(out_shape)).reshape(out_shape)
        for offset in product(*(range(k) for k in self.kernel.shape[2:])):
            where = [
                np.arange(n) * stride + k * step - low
                for n, k, stride, step, (low, _) in zip(
                    out_shape[1:], offset, self.stride, self.dilation, self.padding, strict=True
                )
            ]
            inside = [(w >= 0) & (w < n) for w, n in zip(where, in_shape[1:], strict=True)]
            take = np.ix_(*(w[ok] for w, ok in zip(where, inside, strict=True)))
            put = np.ix_(*(np.flatnonzero(ok) for ok in inside))
            for group in range(self.groups):
                for o, i in product(range(c_out), range(c_in)):
                    row, column = group * c_out + o, group * c_in + i
                    target = targets[row][put].ravel()
                    rows.append(target)
                    cols.append(sources[column][take].ravel())
                    values.append(np.full(target.size, self.kernel[row, i][offset]))
        stacked = (np.concatenate(values), (np.concatenate(rows), np.concatenate(cols)))
        return sp.csr_matrix(stacked, shape=self.shape)


Weight: TypeAlias = Any  # Array | scipy.sparse.csr_matrix | Conv; scipy is untyped


def values(weight: Weight) -> Array:
    """The free parameters: the matrix, the stored non-zeros, or the kernel."""
    if isinstance(weight, Conv):
        return weight.kernel
    return cast(Array, weight.data) if sp.issparse(weight) else cast(Array, weight)


def with_values(weight: Weight, new: Array) -> Weight:
    """The same structure with other parameters, as `values` gives them."""
    if isinstance(weight, Conv):
        return replace(weight, kernel=new)
    if sp.issparse(weight):
        return sp.csr_matrix((new, weight.indices, weight.indptr), shape=weight.shape)
    return new


def to_sparse(weight: Weight) -> sp.csr_matrix:
    """Any weight as a CSR matrix [out, in]."""
    return weight.to_sparse() if isinstance(weight, Conv) else sp.csr_matrix(weight)


def to_dense(weight: Weight) -> Array:
    """Any weight as an array [out, in]."""
    if isinstance(weight, np.ndarray):
        return weight
    return cast(Array, to_sparse(weight).toarray())


def apply(weight: Weight, x: Array) -> Array:
    """y = W x over the last axis of x, shape (..., in) -> (..., out)."""
    flat = x.reshape(-1, x.shape[-1])
    if isinstance(weight, np.ndarray):
        y = flat @ weight.T
    else:
        y = to_sparse(weight).dot(flat.T).T
    return cast(Array, np.asarray(y).reshape(*x.shape[:-1], weight.shape[0]))


def identity(size: int) -> sp.csr_matrix:
    return sp.identity(size, dtype=np.float64, format="csr")


def is_identity(weight: Weight) -> bool:
    if not sp.issparse(weight) or weight.shape[0] != weight.shape[1]:
        return False
    size = weight.shape[0]
    return bool(weight.nnz == size and (weight != identity(size)).nnz == 0)


def compose(outer: Weight, inner: Weight) -> Weight:
    """outer after inner. A factor that is the identity leaves the other as it is."""
    if is_identity(inner):
        return outer
    if is_identity(outer):
        return inner
    if isinstance(outer, np.ndarray) and isinstance(inner, np.ndarray):
        return outer @ inner
    return compact(to_sparse(outer) @ to_sparse(inner))


def add(first: Weight, second: Weight) -> Weight:
    """The sum of two parallel paths."""
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        return first + second
    return compact(to_sparse(first) + to_sparse(second))


def scale_rows(weight: Weight, factor: Array) -> Weight:
    """diag(factor) W: an output gain, shape (out,)."""
    if np.all(factor == 1):
        return weight
    if isinstance(weight, np.ndarray):
        return weight * factor[:, None]
    if isinstance(weight, Conv):
        channels = factor.reshape(weight.out_shape[0], -1)
        if np.all(channels == channels[:, :1]):
            gain = channels[:, 0].reshape(-1, *[1] * (weight.kernel.ndim - 1))
            return replace(weight, kernel=weight.kernel * gain)
    return sp.csr_matrix(sp.diags(factor) @ to_sparse(weight))


def scale_columns(weight: Weight, factor: Array) -> Weight:
    """W diag(factor): an input gain, shape (in,)."""
    if np.all(factor == 1):
        return weight
    if isinstance(weight, np.ndarray):
        return weight * factor[None, :]
    if isinstance(weight, Conv) and np.all(factor == factor[0]):
        return replace(weight, kernel=weight.kernel * factor[0])
    return sp.csr_matrix(to_sparse(weight) @ sp.diags(factor))


def mask_rows(weight: Weight, keep: npt.NDArray[np.bool_]) -> Weight:
    """W with the rows outside `keep` set to zero (dropped, where sparse)."""
    if np.all(keep):
        return weight
    if isinstance(weight, np.ndarray):
        return np.where(keep[:, None], weight, 0.0)
    masked = sp.csr_matrix(sp.diags(keep.astype(np.float64)) @ to_sparse(weight))
    masked.eliminate_zeros()
    return masked


def compact(matrix: sp.csr_matrix) -> Weight:
    """Dense where a sparse form would not pay."""
    full = matrix.shape[0] * matrix.shape[1]
    if full and matrix.nnz > DENSE_ABOVE * full:
        return cast(Array, matrix.toarray())
    return sp.csr_matrix(matrix)
