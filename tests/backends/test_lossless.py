import struct
import subprocess
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from graphwright.backends.coding import CodedArray, coding_of
from graphwright.backends.lossless import Lossless, encode, restore, shrunk
from graphwright.backends.weights import ALIGNMENT, read_weights, stored_bytes, write_weights
from graphwright.ir.errors import ToolError
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

TYPES = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
TYPES += ["float16", "float32", "float64", "bool"]


def position_biases(windows, heads, size):
    """Biases of shifted windows as models expand them: tables by relative position, and masks of two values."""
    rng = np.random.default_rng(0)
    table = rng.normal(size=((2 * size - 1) ** 2, heads)).astype(np.float32)
    at = np.stack(np.meshgrid(range(size), range(size), indexing="ij")).reshape(2, -1)
    apart = at[:, :, None] - at[:, None, :] + size - 1
    biases = table[apart[0] * (2 * size - 1) + apart[1]].transpose(2, 0, 1)
    # As of windows in the middle, at the right, at the bottom and in the corner.
    regions = (np.arange(windows)[:, None] % 4 >> (at[0] > size // 2).astype(int)) & 1
    masks = np.where(regions[:, :, None] == regions[:, None, :], np.float32(0), np.float32(-100))
    return biases[None] + masks[:, None]


def some_tensors():
    rng = np.random.default_rng(1)
    return [
        position_biases(4, 3, 7),
        rng.integers(-70000, 70000, 1152).astype(np.int32),
        rng.uniform(1e-4, 9e-4, 960).astype(np.float32),
        -rng.uniform(1e-4, 9e-4, 960).astype(np.float32),
        rng.normal(size=300).astype(np.float16).astype(np.float32),
        np.zeros((3, 5), np.float32),
        np.float32(2.5).reshape(()),
        rng.random((40, 40)) < 0.5,
        np.arange(500, dtype=np.int64),
        rng.uniform(1, 2, 100),
        np.full((2, 3, 4), np.nan, np.float32),
        np.repeat(rng.integers(0, 9, 90), 4).astype(ml_dtypes.bfloat16),
    ]


def same_bits(found, expected):
    assert found.dtype == expected.dtype and found.shape == expected.shape
    assert np.ascontiguousarray(found).tobytes() == np.ascontiguousarray(expected).tobytes()


def test_expanded_position_biases_take_what_their_tables_take():
    biases = position_biases(16, 6, 7)
    payload = encode(biases)
    assert len(payload) < biases.nbytes / 40
    found = restore(payload, biases.size, 4)
    np.testing.assert_array_equal(found.view(np.float32).reshape(biases.shape), biases)


def test_biases_and_scales_take_the_bits_of_their_range():
    rng = np.random.default_rng(0)
    biases = rng.integers(-60000, 60000, 1000).astype(np.int32)
    assert len(encode(biases)) <= 12 + 17 * 1000 / 8
    scales = rng.uniform(1e-4, 4e-4, 1000).astype(np.float32)
    assert len(encode(scales)) <= 12 + 26 * 1000 / 8
    signed = np.where(rng.random(1000) < 0.5, -scales, scales)
    assert len(encode(signed)) <= 12 + 27 * 1000 / 8


def test_weights_stay_where_they_can_be_read_in_place():
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(64, 3, 3, 48)).astype(np.float32)
    padded = np.pad(weights, ((0, 0), (0, 0), (0, 0), (0, 16)))
    bytes_ = rng.integers(-127, 128, (512, 512)).astype(np.int8)
    for array in (weights, padded, bytes_, np.zeros((0, 4), np.float32)):
        assert encode(array) is None if array.size else True
        (same,) = shrunk([array])
        assert same is array


def test_files_give_back_the_same_bits_and_are_shorter(tmp_path):
    tensors = some_tensors()
    small = shrunk(tensors)
    assert all(isinstance(coding_of(each), Lossless) for each in small)
    plain = write_weights(tmp_path / "plain.bin", tensors)
    assert write_weights(tmp_path / "w.bin", small) == (tmp_path / "w.bin").stat().st_size < plain / 4
    read = read_weights(tmp_path / "w.bin")
    for expected, found, kept in zip(tensors, read, small, strict=True):
        same_bits(found, expected)
        assert found.ctypes.data % ALIGNMENT == 0
        assert stored_bytes(found) == stored_bytes(kept) == len(coding_of(kept).data)
    write_weights(tmp_path / "again.bin", read)
    assert (tmp_path / "again.bin").read_bytes() == (tmp_path / "w.bin").read_bytes()


def test_what_is_read_in_place_is_aligned_beside_what_is_not(tmp_path):
    rng = np.random.default_rng(0)
    raw = [rng.normal(size=size).astype(np.float32) for size in (33, 100)]
    tensors = shrunk([some_tensors()[1], raw[0], some_tensors()[2], raw[1]])
    write_weights(tmp_path / "w.bin", tensors)
    for expected, found in zip(tensors, read_weights(tmp_path / "w.bin"), strict=True):
        same_bits(found, expected)
        assert found.ctypes.data % ALIGNMENT == 0


@given(st.data())
@settings(deadline=None, max_examples=120)
def test_any_tensor_comes_back_to_the_bit(data):
    dtype = np.dtype(data.draw(st.sampled_from(TYPES)))
    shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=4, max_side=9))
    elements = None
    if dtype.kind in "iu":
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
        span = data.draw(st.sampled_from([0, 1, 5, 100, high]))
        base = data.draw(st.integers(low, high - span))
        elements = st.integers(base, base + span)
    kinds = data.draw(st.sampled_from(["any", "few"]))
    fill = None if kinds == "any" else st.nothing()
    array = data.draw(hnp.arrays(dtype, shape, elements=elements, fill=fill))
    array = np.broadcast_to(array, (data.draw(st.integers(1, 5)), *shape))
    payload = encode(array)
    if payload is not None:
        found = restore(payload, array.size, dtype.itemsize)
        assert found.tobytes() == np.ascontiguousarray(array).tobytes()
        assert len(payload) <= -(-array.nbytes // 64) * 64 * 0.9


def run_reader(reader, source, result):
    return subprocess.run(
        [str(reader), str(source), str(result)], capture_output=True, text=True, timeout=60, check=False
    )


def test_cpp_restores_the_same_bits(reader, tmp_path):
    tensors = some_tensors()
    write_weights(tmp_path / "w.bin", shrunk(tensors))
    ended = run_reader(reader, tmp_path / "w.bin", tmp_path / "out.bin")
    assert ended.returncode == 0, ended.stderr
    for expected, found in zip(tensors, read_weights(tmp_path / "out.bin"), strict=True):
        assert coding_of(found) is None
        same_bits(found, expected)


def test_damaged_payloads_end_in_one_line_or_in_the_same_numbers(reader, tmp_path):
    rng = np.random.default_rng(0)
    refused = 0
    for array in (position_biases(2, 2, 3), some_tensors()[1]):
        payload = encode(array)
        for _ in range(20):
            broken = bytearray(payload)
            place = int(rng.integers(0, min(len(broken), 60)))
            broken[place] = int(rng.choice([0, 1, 2, 9, 64, 255]))
            broken = broken[: int(rng.integers(1, len(broken)))] if rng.random() < 0.2 else broken
            write_weights(tmp_path / "w.bin", [CodedArray.of(array, Lossless(bytes(broken)))])
            ended = run_reader(reader, tmp_path / "w.bin", tmp_path / "out.bin")
            try:
                (mine,) = read_weights(tmp_path / "w.bin")
            except ToolError as error:
                refused += 1
                assert "damaged" in str(error) and "\n" not in str(error)
                assert ended.returncode == 2 and len(ended.stderr.splitlines()) == 1, ended
            else:
                assert ended.returncode == 0, ended.stderr
                same_bits(read_weights(tmp_path / "out.bin")[0], mine)
    assert refused > 10


@pytest.mark.parametrize(
    "payload",
    [
        struct.pack("<4BQ", 0, 0, 0, 0, 0),
        struct.pack("<4BI3Q", 1, 0, 0, 0, 1, 1 << 40, 1, 1) + struct.pack("<4BQ", 0, 0, 0, 0, 0) * 2,
        struct.pack("<4BI3Q", 1, 0, 0, 0, 1, 1 << 62, 0, 4) + struct.pack("<4BQ", 0, 0, 0, 0, 0) * 2,
    ],
)
@pytest.mark.parametrize("count", [0, 1 << 40])
def test_small_payloads_take_no_memory_for_large_tensors(payload, count):
    tracemalloc.start()
    try:
        found = restore(payload, count, 4)
        assert found.size == count == 0
    except ValueError as error:
        assert "packed tensor" in str(error)
    finally:
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert most < 1 << 20
