"""Transposed matrices come out in C order with the same numbers."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from graphwright.ir.contiguous import contiguous


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int8, ml_dtypes.bfloat16])
@pytest.mark.parametrize("shape", [(1031, 2053), (1, 1 << 20), (1 << 20, 1), (256, 32), (0, 7)])
def test_transposed(shape, dtype):
    matrix = np.random.default_rng(0).integers(-99, 99, shape).astype(dtype)
    for view in (matrix, matrix.T, matrix.T[::-1], matrix[:, ::2], matrix.T[3:, 5:]):
        found = contiguous(view)
        assert found.flags.c_contiguous
        np.testing.assert_array_equal(found, view)


def test_what_is_contiguous_is_not_copied():
    array = np.ones((1024, 1024), np.float32)
    assert contiguous(array) is array


def test_other_ranks_are_left_to_numpy():
    array = np.arange(4 * 600 * 500, dtype=np.float32).reshape(4, 600, 500).transpose(2, 0, 1)
    np.testing.assert_array_equal(contiguous(array), array)
