import struct
import subprocess

import ml_dtypes
import numpy as np
import pytest
from graphwright.backends.varints import read_varint, write_varints
from graphwright.backends.weights import ALIGNMENT, read_weights, write_weights
from graphwright.ir.errors import ToolError
from hypothesis import given
from hypothesis import strategies as st

DTYPES = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
DTYPES += ["float16", "float32", "float64", "bool"]


@pytest.mark.parametrize("compact", [False, True])
def test_every_element_type_and_odd_shapes_survive(tmp_path, reader, compact):
    generator = np.random.default_rng(0)
    tensors = [generator.integers(0, 100, (3, 5)).astype(dtype) for dtype in DTYPES]
    tensors += [
        np.arange(7).astype(ml_dtypes.bfloat16),
        np.float32(3.5).reshape(()),
        np.zeros((0, 4), np.float32),
        np.arange(12, dtype=np.float32).reshape(3, 4).T,
        np.ones((1, 2, 1, 3, 1), np.int64),
    ]
    size = write_weights(tmp_path / "w.bin", tensors, compact=compact)
    assert size == (tmp_path / "w.bin").stat().st_size
    subprocess.run([str(reader), str(tmp_path / "w.bin"), str(tmp_path / "cpp.bin")], check=True, timeout=60)
    for read in (read_weights(tmp_path / "w.bin"), read_weights(tmp_path / "cpp.bin")):
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


def test_the_compact_layout_is_the_documented_one(tmp_path):
    tensors = [np.arange(200, dtype=np.float32).reshape(1, 200), np.array([7], np.int8)]
    write_weights(tmp_path / "w.bin", tensors, compact=True)
    data = (tmp_path / "w.bin").read_bytes()
    assert data[:8] == b"GWW2" + struct.pack("<I", 2)
    # Each size, offset and number of bytes from 128 on takes two bytes.
    assert data[8:17] == bytes([2, 32, 2, 0, 800 % 128 | 128, 800 // 128, 1, 200 % 128 | 128, 200 // 128])
    assert data[17:24] == bytes([0, 8, 1, 832 % 128 | 128, 832 // 128, 1, 1])
    assert data[64:864] == tensors[0].tobytes()
    assert (data[64 + 832], len(data)) == (7, 64 + 832 + 64)


@given(st.lists(st.integers(0, 2**64 - 1)), st.integers(0, 12))
def test_integers_of_few_bytes_come_back(numbers, cut):
    written = write_varints(numbers)
    place, found = 0, []
    for _ in numbers:
        number, place = read_varint(written, place)
        found.append(number)
    assert (found, place) == (numbers, len(written))
    if numbers and numbers[-1] >= 128:
        with pytest.raises(ValueError, match="truncated"):
            read_varint(write_varints(numbers[-1:])[:-1], 0)
    with pytest.raises(ValueError, match="more than 64 bits"):
        read_varint(b"\xff" * 9 + bytes([2 + cut]), 0)


def test_files_end_in_one_line_wherever_they_are_cut_or_changed(tmp_path, reader):
    write_weights(tmp_path / "w.bin", [np.ones((10, 10), np.float32), np.ones(3, np.int8)], compact=True)
    whole = (tmp_path / "w.bin").read_bytes()
    wrong = [whole[:keep] for keep in (0, 3, 7, 9, 12, 20, 70, 500)]
    wrong += [whole[:at] + b"\xff" + whole[at + 1 :] for at in (0, 4, 7, *range(8, 22))]
    for content in wrong:
        (tmp_path / "w.bin").write_bytes(content)
        with pytest.raises(ToolError, match=r"w\.bin") as caught:
            read_weights(tmp_path / "w.bin")
        assert "\n" not in str(caught.value)
        command = [str(reader), str(tmp_path / "w.bin"), str(tmp_path / "cpp.bin")]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert ended.returncode == 2 and len(ended.stderr.splitlines()) == 1


@pytest.mark.parametrize("compact", [False, True])
def test_no_tensors_at_all(tmp_path, compact):
    write_weights(tmp_path / "w.bin", [], compact=compact)
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
