"""Rows of a sparse matrix of SciPy, which become dense batch by batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from easytorch._utils.pytree import leaves, map_leaves
from easytorch.data.batch import from_numpy

SPARSE_LAYOUTS = {torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc}


def is_sparse(x: Any) -> bool:
    """Return whether ``x`` is a sparse matrix or array of SciPy."""
    return hasattr(x, "toarray") and hasattr(x, "nnz")


def refuse_sparse_tensors(**parts: Any) -> None:
    """Raise a ``TypeError`` if a tensor in ``parts``, by the name of an argument, is sparse, in a layout of torch."""
    for name, part in parts.items():
        for leaf in leaves(part):
            if isinstance(leaf, Tensor) and leaf.layout in SPARSE_LAYOUTS:
                raise TypeError(
                    f"{name} is a sparse tensor of torch, {str(leaf.layout).removeprefix('torch.')}, which is not split into "
                    f"batches. Pass scipy.sparse.csr_array(...), whose rows become dense in each batch, or {name}.to_dense()."
                )


class SparseRows:
    """The rows of a sparse matrix; an index gives dense rows.

    Args:
        matrix: A sparse matrix or array of SciPy, ``[N, columns]``. A format without fast rows, such as COO, is converted to CSR.

    Raises:
        ValueError: If it has another number of dimensions than 2.
        TypeError: If its values are no numbers.

    Examples:
        >>> SparseRows(scipy.sparse.eye_array(3))[torch.tensor([2])]
        tensor([[0., 0., 1.]], dtype=torch.float64)
    """

    device = torch.device("cpu")

    def __init__(self, matrix: Any) -> None:
        if len(matrix.shape) != 2:
            raise ValueError(
                f"Expected a sparse matrix with one row for each sample, received the shape {list(matrix.shape)}. Pass "
                "x[[i]] for one row, x.reshape(len, columns), or x.toarray()."
            )
        self.matrix = matrix.tocsr()
        if self.matrix.dtype.kind not in "biuf":
            raise TypeError(
                f"Expected numbers in a sparse matrix, received {self.matrix.dtype}. Pass x.astype('float32')."
            )
        self.shape = torch.Size(matrix.shape)

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, index: Any) -> Tensor:
        if isinstance(index, Tensor):
            index = index.numpy()
        if not np.ndim(index) and not isinstance(index, slice):
            return from_numpy(self.matrix[[int(index)]].toarray())[0]
        return from_numpy(self.matrix[index].toarray())

    def sums_of_rows(self) -> Tensor:
        """Return the sum of each row, which is not finite where a value of the row is not."""
        return from_numpy(np.asarray(self.matrix.sum(axis=1)).reshape(-1))


def as_dense(tree: Any) -> Any:
    """Return ``tree`` with dense tensors instead of sparse rows."""
    return map_leaves(lambda leaf: leaf[:] if isinstance(leaf, SparseRows) else leaf, tree)


def has_sparse(leaves: Any) -> bool:
    """Return whether one of ``leaves`` is sparse."""
    return any(isinstance(leaf, SparseRows) for leaf in leaves)
