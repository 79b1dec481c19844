import struct

import ml_dtypes
import numpy as np
import pytest
from graphwright.backends.weights import ALIGNMENT, read_weights, write_weights
from graphwright.ir.errors import ToolError

DTYPES = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
DTYPES += ["float16", "float32", "float64", "bool"]


def test_every_element_type_and_odd_shapes_survive(tmp_path):
    generator = np.random.default_rng(0)
    tensors = [generator.integers(0, 100, (3, 5)).astype(dtype) for dtype in DTYPES]
    tensors += [
        np.arange(7).astype(ml_dtypes.bfloat16),
        np.float32(3.5).reshape(()),
        np.zeros((0, 4), np.float32),
        np.arange(12, dtype=np.float32).reshape(3, 4).T,
        np.ones((1, 2, 1, 3, 1), np.int64),
    ]
    size = write_weights(tmp_path / "w.bin", tensors)
    assert size == (tmp_path / "w.bin").stat().st_size
    read = read_weights(tmp_path / "w.bin")
    assert len(read) == len(tensors)
    for expected, actual in zip(tensors, read, strict=True):
        assert actual.dtype == expected.dtype
        np.testing.assert_array_equal(actual, expected)
        assert actual.ctypes.data % ALIGNMENT == 0


def test_the_layout_is_the_documented_one(tmp_path):
    write_weights(tmp_path / "w.bin", [np.array([[1.0, 2.0]], np.float32), np.array([7], np.int8)])
    data = (tmp_path / "w.bin").read_bytes()
    assert data[:8] == b"GWW1" + struct.pack("<I", 2)
    assert struct.unpack_from("<BBHIQQ2q", data, 8) == (2, 32, 1, 2, 128, 8, 1, 2)
    assert struct.unpack_from("<BBHIQQ1q", data, 48) == (0, 8, 1, 1, 192, 1, 1)
    assert struct.unpack_from("<2f", data, 128) == (1.0, 2.0)
    assert (data[192], len(data)) == (7, 256)


def test_no_tensors_at_all(tmp_path):
    write_weights(tmp_path / "w.bin", [])
    assert read_weights(tmp_path / "w.bin") == []


def test_mapped_tensors_cannot_be_written(tmp_path):
    write_weights(tmp_path / "w.bin", [np.zeros(100, np.float32)])
    (tensor,) = read_weights(tmp_path / "w.bin")
    with pytest.raises(ValueError, match="read-only"):
        tensor[:] = 1


def test_tensors_of_the_other_byte_order_keep_their_numbers(tmp_path):
    numbers = np.arange(5, dtype=">f4")
    write_weights(tmp_path / "w.bin", [numbers])
    np.testing.assert_array_equal(read_weights(tmp_path / "w.bin")[0], numbers)


@pytest.mark.parametrize("keep", [0, 3, 7, 20, 40, 130, 4000])
def test_truncated_files_end_in_one_line(tmp_path, keep):
    write_weights(tmp_path / "w.bin", [np.ones((10, 10), np.float32), np.ones(1000, np.float32)])
    data = (tmp_path / "w.bin").read_bytes()
    (tmp_path / "w.bin").write_bytes(data[:keep])
    with pytest.raises(ToolError, match=r"w\.bin") as caught:
        read_weights(tmp_path / "w.bin")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (0, b"GWW9"),
        (4, b"\xff\xff\xff\xff"),
        (8, b"\x77"),
        (12, b"\xff"),
        (16, b"\x01"),
        (24, b"\x01"),
        (32, b"\xff" * 8),
    ],
)
def test_damaged_headers_end_in_one_line(tmp_path, offset, value):
    write_weights(tmp_path / "w.bin", [np.ones((10, 10), np.float32)])
    data = bytearray((tmp_path / "w.bin").read_bytes())
    data[offset : offset + len(value)] = value
    (tmp_path / "w.bin").write_bytes(data)
    with pytest.raises(ToolError, match="damaged"):
        read_weights(tmp_path / "w.bin")


def test_missing_files_and_strange_types_are_refused(tmp_path):
    with pytest.raises(ToolError, match="cannot read weights file"):
        read_weights(tmp_path / "none.bin")
    with pytest.raises(ToolError, match="packed weight 1"):
        write_weights(tmp_path / "w.bin", [np.zeros(1), np.array(["text"])])
