"""How many bytes of code each function of an object file takes, by its own table of symbols (ELF-64)."""

from __future__ import annotations

import itertools
import struct
from pathlib import Path

_MAGIC = b"\x7fELF\x02\x01"
_SYMBOLS, _CODE = 2, 2
"""Type of the section with symbols; type of a symbol that is a function."""
_ENTRY, _BODY = "__tvm_ffi_", "_compute_"


def code_sizes(path: str | Path) -> dict[str, int]:
    """Bytes of machine code by kernel: its entry, its body and the parallel loops that follow the body.

    Empty for a file of another format, or without symbols; libraries as `build` leaves them have few.
    """
    data = Path(path).read_bytes()
    if data[:6] != _MAGIC:
        return {}
    try:
        symbols = _functions(data)
    except struct.error:
        return {}
    sizes: dict[str, int] = {}
    # Loops that became functions of their own have no symbol: they lie between their body and the next one.
    starts = sorted({start for _, start, _ in symbols})
    following = dict(itertools.pairwise(starts))
    for name, start, size in symbols:
        if name.startswith(_ENTRY):
            kernel = name.removeprefix(_ENTRY)
        elif name.endswith(_BODY):
            kernel, size = name.removesuffix(_BODY), following.get(start, start + size) - start
        else:
            continue
        sizes[kernel] = sizes.get(kernel, 0) + size
    return sizes


def _functions(data: bytes) -> list[tuple[str, int, int]]:
    """Name, address and size of every function with a symbol."""
    (table,) = struct.unpack_from("<Q", data, 0x28)
    width, count = struct.unpack_from("<HH", data, 0x3A)
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, table + index * width) for index in range(count)]
    found = []
    for _, kind, _, _, offset, size, link, _, _, entry in sections:
        if kind != _SYMBOLS or not entry:
            continue
        names = sections[link][4]
        for position in range(offset, offset + size, entry):
            name, info, _, section, address, length = struct.unpack_from("<IBBHQQ", data, position)
            if info & 0xF == _CODE and section:
                end = data.index(b"\0", names + name)
                found.append((data[names + name : end].decode(errors="replace"), address, length))
    return found
