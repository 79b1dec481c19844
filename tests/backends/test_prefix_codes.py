"""Codes whose frequent ones are short: near their entropy, restored in Python and in C++."""

import struct
import subprocess

import numpy as np
import pytest
from graphwright.backends.coding import CODES, COMPACT, CodedArray, Coding, read_coding
from graphwright.backends.prefix_codes import MOST_LEVELS, read_codes, write_codes
from graphwright.backends.weights import read_weights, write_weights
from graphwright.ir.errors import ToolError
from graphwright.passes.quantization.weight_forms import pack
from hypothesis import given, settings
from hypothesis import strategies as st


def crowded(levels, size, seed=0, spread=3.0):
    """Codes of normally distributed numbers."""
    numbers = np.random.default_rng(seed).normal(size=size) * levels / (2 * spread)
    return np.clip(np.rint(numbers + (levels - 1) / 2), 0, levels - 1).astype(np.uint8)


def entropy(codes):
    """Bits of a code."""
    share = np.bincount(codes) / codes.size
    share = share[share > 0]
    return float(-(share * np.log2(share)).sum())


@given(
    st.integers(1, MOST_LEVELS), st.integers(0, 700), st.integers(0, 99), st.sampled_from([1.0, 3.0, 30.0])
)
@settings(max_examples=150, deadline=None)
def test_any_codes_come_back(levels, size, seed, spread):
    codes = crowded(levels, size, seed, spread)
    payload = write_codes(codes, levels)
    found, used = read_codes(memoryview(payload + b"rest"), size, levels)
    assert used == len(payload) and found.dtype == np.uint8
    np.testing.assert_array_equal(found, codes)


@pytest.mark.parametrize("levels", [3, 7, 15, 16, 255])
def test_they_take_little_more_than_their_entropy(levels):
    codes = crowded(levels, 200_000)
    bits = 8 * len(write_codes(codes, levels)) / codes.size
    assert entropy(codes) <= bits <= 1.12 * entropy(codes)
    even = np.arange(200_000, dtype=np.uint32).astype(np.uint64) % levels
    whole = max((levels - 1).bit_length(), 1)
    assert 8 * len(write_codes(even.astype(np.uint8), levels)) <= 200_000 * whole + 8 * (levels + 4)


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_whatever_a_payload_says_ends_in_codes_or_an_error(data):
    levels, size = data.draw(st.integers(0, 300)), data.draw(st.integers(0, 300))
    written = min(max(levels, 1), MOST_LEVELS)
    payload = bytearray(write_codes(crowded(written, size), written))
    for place in data.draw(st.lists(st.integers(0, min(len(payload) - 1, 40)), max_size=3)):
        payload[place] = data.draw(st.integers(0, 255))
    payload = payload[: data.draw(st.integers(0, len(payload)))]
    try:
        found, used = read_codes(memoryview(bytes(payload)), size, levels)
    except ValueError:
        return
    assert used <= len(payload) and found.size == size
    assert not size or found.max() < levels


def coded(levels=15, size=6000, blocks=1, zeros=False):
    """A vector of codes with a scale for each block."""
    rng = np.random.default_rng(levels)
    codes = crowded(levels, size)
    table = np.linspace(-1, 1, levels).astype(np.float32)
    scales = rng.uniform(0.5, 2, blocks).astype(np.float32)
    shift = rng.normal(size=blocks if zeros else 0).astype(np.float32)
    block = -(-size // blocks)
    return Coding(CODES, (size,), pack(codes, levels), table, scales, shift, (1,), (0,), block, 1)


@pytest.fixture
def file(tmp_path):
    """A file of coded vectors, and the vectors."""
    codings = [coded(), coded(16, 5001, 40, zeros=True), coded(3, 999, 2), coded(255, 4000, 3), coded(1, 64)]
    arrays = [CodedArray.of(each.restore(), each) for each in codings]
    write_weights(tmp_path / "w.bin", arrays)
    return tmp_path / "w.bin", arrays


def test_files_hold_them_compactly_in_python_and_in_cpp(file, reader, tmp_path):
    path, arrays = file
    bits = sum(entropy(crowded(*each)) * each[1] for each in [(15, 6000), (16, 5001), (3, 999), (255, 4000)])
    tables = 5 * (15 + 16 + 3 + 255 + 1)
    assert path.stat().st_size < 1.13 * bits / 8 + tables + 600
    subprocess.run([str(reader), str(path), str(tmp_path / "plain.bin")], check=True, timeout=60)
    for theirs in (read_weights(path), read_weights(tmp_path / "plain.bin")):
        for expected, found in zip(arrays, theirs, strict=True):
            np.testing.assert_array_equal(found, expected)


def test_plain_codes_of_older_files_are_still_read(reader, tmp_path):
    kept = coded(15, 3000, 5)
    integers = (3000, 1, 0, kept.block, kept.step, 5, 0, 0, 0, 0, 0, 0, 0, 0)
    plain = struct.pack("<4I14q", CODES, 1, 15, 2, *integers)
    plain += kept.levels.tobytes() + kept.scales.tobytes() + kept.codes.tobytes()
    found = read_coding(plain, 3000)
    np.testing.assert_array_equal(found.restore(), kept.restore())
    compact = kept.to_bytes()
    assert struct.unpack_from("<I", compact) == (COMPACT,) and len(compact) < len(plain) - 150
    path = tmp_path / "w.bin"
    head = struct.pack("<4sIBBHIQQq", b"GWW1", 1, 192, 32, 1, 1, 64, len(plain), 3000)
    path.write_bytes(head.ljust(64, b"\0") + plain)
    subprocess.run([str(reader), str(path), str(tmp_path / "out.bin")], check=True, timeout=60)
    np.testing.assert_array_equal(read_weights(tmp_path / "out.bin")[0], kept.restore())


def test_damaged_files_end_in_one_line_in_python_and_in_cpp(file, reader, tmp_path):
    path, arrays = file
    whole = path.read_bytes()
    start = whole.index(arrays[0].coding.to_bytes())
    # Rank, levels, the reserved number, sizes and strides, and the first bytes of scales and codes.
    places = [start + place for place in (4, 8, 12, 16, 17, 18, 19, 20, 26, 30)]
    places += [start + 16 + 16 + 60 + place for place in range(0, 40, 3)]
    for place in places:
        for value in (0xFF, 0x7F, 0):
            broken = bytearray(whole)
            broken[place] = value
            (tmp_path / "broken.bin").write_bytes(broken)
            ended = subprocess.run(
                [str(reader), str(tmp_path / "broken.bin"), str(tmp_path / "out.bin")],
                capture_output=True, text=True, timeout=60, check=False,
            )  # fmt: skip
            assert ended.returncode in (0, 2) and len(ended.stderr.splitlines()) == ended.returncode // 2
            try:
                found = read_weights(tmp_path / "broken.bin")
            except ToolError as error:
                assert ended.returncode == 2 and "broken.bin" in str(error), (place - start, value)
                continue
            assert ended.returncode == 0, (place - start, value, ended.stderr)
            theirs = read_weights(tmp_path / "out.bin")
            np.testing.assert_array_equal(found[0].view(np.uint32), theirs[0].view(np.uint32))
