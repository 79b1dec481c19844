"""Inputs and outputs without copies, and copies where memory would be shared that must not be."""

from __future__ import annotations

import graphwright as gw
import numpy as np
import pytest
from graphwright.ir.errors import ModelError


def _aligned(shape, offset=0):
    size = 4 * int(np.prod(shape))
    memory = np.zeros(size + 128, np.uint8)
    start = -memory.ctypes.data % 64 + offset
    return memory[start : start + size].view(np.float32).reshape(shape)


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    from onnx_ir import from_onnx_text

    model = from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 21]>
        net (float[4,8] x) => (float[4,8] y) { y = Add(x, x) }"""
    )
    return gw.load_executable(gw.compile(model, "host").save(tmp_path_factory.mktemp("made") / "net"))


def test_aligned_inputs_are_read_where_they_lie(twice):
    program = twice.load()
    for offset, in_place in ((0, True), (16, False), (4, False)):
        x = _aligned((4, 8), offset)
        (tensor,) = program.prepare([x])
        assert (tensor.address == x.ctypes.data) is in_place
        x[...] = np.arange(32).reshape(4, 8)
        np.testing.assert_array_equal(twice(x), 2 * x)


def test_tensors_of_torch_are_read_where_they_lie(twice):
    import torch

    x = torch.arange(32, dtype=torch.float32).reshape(4, 8)
    y = twice(x)
    np.testing.assert_array_equal(y, 2 * x.numpy())
    shared = torch.from_dlpack(y)
    assert shared.data_ptr() == y.ctypes.data
    shared += 1
    np.testing.assert_array_equal(y, 2 * x.numpy() + 1)


def test_outputs_outlive_runs_and_executables(twice):
    first = twice(np.ones((4, 8), np.float32))
    second = twice(np.full((4, 8), 3, np.float32))
    assert not np.shares_memory(first, second)
    np.testing.assert_array_equal(first, np.full((4, 8), 2))
    first[...] = 0
    np.testing.assert_array_equal(second, np.full((4, 8), 6))
    assert second.flags.writeable


class Foreign:
    """A tensor of a library that nobody here knows."""

    def __init__(self, array):
        self._array = array

    def __dlpack__(self, **options):
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()


class Elsewhere(Foreign):
    def __dlpack_device__(self):
        return (2, 0)

    def __dlpack__(self, **options):
        raise BufferError("it is on a GPU")


def test_tensors_of_other_libraries(twice):
    x = np.arange(32, dtype=np.float32).reshape(4, 8)
    np.testing.assert_array_equal(twice(Foreign(x)), 2 * x)
    with pytest.raises(ModelError, match="input 'x' is float64"):
        twice(Foreign(x.astype(np.float64)))
    with pytest.raises(ModelError, match="input 'x' cannot be made an array of float32"):
        twice(Elsewhere(x))


def test_outputs_that_are_something_else_as_well_are_copied(build_model, tmp_path):
    model = build_model(
        "net (float[4,8] x, float[4,8] w) => (float[32] a, float[4,8] b, float[4,8] c, float[4,8] d)"
        "{ a = Flatten0(x) b = Identity(x) c = Identity(w) d = Neg(x) }".replace(
            "a = Flatten0(x)", "s = Constant<value_ints = [32]>() a = Reshape(x, s)"
        ),
        w=(4, 8),
    )
    exe = gw.load_executable(gw.compile(model, "host").save(tmp_path / "net"))
    x = _aligned((4, 8))
    x[...] = np.arange(32).reshape(4, 8)
    found = exe(x)
    for index, array in enumerate(found):
        assert not np.shares_memory(array, x)
        for other in found[index + 1 :]:
            assert not np.shares_memory(array, other)
    before = found[2].copy()
    for array in found:
        array[...] = -1  # neither the input nor the model's weights may feel it
    np.testing.assert_array_equal(x, np.arange(32).reshape(4, 8))
    np.testing.assert_array_equal(exe(x)[2], before)


def test_inputs_that_are_copied_do_not_meet(build_model, tmp_path):
    model = build_model("net (float[N,8] x, float[N,8] z) => (float[N,8] y) { y = Sub(x, z) }")
    exe = gw.load_executable(gw.compile(model, "host", batch_sizes=(2, 4)).save(tmp_path / "net"))
    for rows in (2, 4, 2, 5, 4):
        x, z = _aligned((rows, 8), 16), _aligned((rows, 8), 4)
        x[...], z[...] = rows, np.arange(rows * 8).reshape(rows, 8)
        first = exe(x, z)
        np.testing.assert_array_equal(first, x - z)
        np.testing.assert_array_equal(exe(z, x), z - x)
        np.testing.assert_array_equal(first, x - z)
