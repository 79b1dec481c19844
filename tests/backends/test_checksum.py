import hashlib
import mmap

import numpy as np
import pytest
from graphwright.backends import checksum as module
from graphwright.backends.checksum import checksum, checksum_of, sha256_of
from hypothesis import given
from hypothesis import strategies as st

BLOCK = 4096


def _plain(data):
    """The definition, without numpy."""
    padded = data + bytes(-len(data) % BLOCK or BLOCK * (len(data) % BLOCK == 0))
    first = second = 0
    for number, start in enumerate(range(0, len(padded), BLOCK), 1):
        block = padded[start : start + BLOCK]
        total = sum(int.from_bytes(block[at : at + 8], "little") for at in range(0, BLOCK, 8))
        first, second = first + total, second + number * total
    return f"{first % 2**64:016x}{second % 2**64:016x}"


@given(st.integers(0, 3 * BLOCK + 9), st.integers(0, 99))
def test_it_is_what_the_definition_says(size, seed):
    data = np.random.default_rng(seed).bytes(size)
    assert checksum(data) == _plain(data)


@given(st.data())
def test_flipped_bits_and_moved_blocks_are_found(data):
    original = np.random.default_rng(data.draw(st.integers(0, 9))).bytes(5 * BLOCK + 100)
    changed = bytearray(original)
    changed[data.draw(st.integers(0, len(original) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert checksum(bytes(changed)) != checksum(original)
    first, second = data.draw(st.sets(st.integers(0, 4), min_size=2, max_size=2))
    blocks = [original[at : at + BLOCK] for at in range(0, len(original), BLOCK)]
    blocks[first], blocks[second] = blocks[second], blocks[first]
    assert checksum(b"".join(blocks)) != checksum(original)


def test_large_files_in_chunks_that_are_released(tmp_path, monkeypatch):
    data = np.random.default_rng(0).bytes(9 * BLOCK + 17)
    (tmp_path / "file").write_bytes(data)
    monkeypatch.setattr(module, "_CHUNK", 2 * BLOCK)
    with (tmp_path / "file").open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    assert checksum(mapped, release=True) == checksum(data) == _plain(data)
    assert mapped[:] == data


@pytest.mark.parametrize("size", [0, 1, BLOCK, 70_001])
def test_of_files(tmp_path, size):
    data = bytes(range(256)) * (size // 256 + 1)
    (tmp_path / "file").write_bytes(data[:size])
    assert checksum_of(tmp_path / "file") == checksum(data[:size])
    assert sha256_of(tmp_path / "file") == hashlib.sha256(data[:size]).hexdigest()
