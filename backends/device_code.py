"""What device code a built library holds: the kernels of the machine code for NVIDIA GPUs inside of it.

nvcc's output is a "fat binary" around ELF files whose machine is CUDA; every kernel has a section
`.text.NAME` there. Where there was no nvcc the library holds CUDA source instead.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_ELF = b"\x7fELF\x02\x01"
_CUDA_MACHINE = 190
_SOURCE_KERNEL = re.compile(rb'extern "C" __global__ void (?:__launch_bounds__\([^)]*\) )?(\w+)\(')


@dataclass(frozen=True)
class DeviceCode:
    """Kernels found in a library.

    Attributes:
        form: "machine code", "source", or "none".
        kernels: their names, sorted.
        architectures: compute capabilities of the machine code, such as "sm_90".
    """

    form: str
    kernels: tuple[str, ...]
    architectures: tuple[str, ...]


def device_code(library: str | Path) -> DeviceCode:
    """Look into a built library."""
    data = Path(library).read_bytes()
    kernels: set[str] = set()
    architectures: set[str] = set()
    for start in _cuda_elfs(data):
        architectures.add(_architecture(data, start))
        kernels.update(
            name.removeprefix(".text.") for name in _section_names(data, start) if name[:6] == ".text."
        )
    if architectures:
        return DeviceCode("machine code", tuple(sorted(kernels)), tuple(sorted(architectures)))
    named = sorted({name.decode() for name in _SOURCE_KERNEL.findall(data)})
    return DeviceCode("source" if named else "none", tuple(named), ())


def _cuda_elfs(data: bytes) -> Iterator[int]:
    start = data.find(_ELF)
    while start >= 0:
        if len(data) >= start + 64 and struct.unpack_from("<H", data, start + 18)[0] == _CUDA_MACHINE:
            yield start
        start = data.find(_ELF, start + 1)


def _architecture(data: bytes, start: int) -> str:
    """The compute capability in the ELF flags: the second byte where the ABI is CUDA 13's, else the first."""
    (flags,) = struct.unpack_from("<I", data, start + 48)
    abi_version = data[start + 8]
    return f"sm_{(flags >> 8) & 0xFF if abi_version >= 8 else flags & 0xFF}"


def _section_names(data: bytes, start: int) -> list[str]:
    (table,) = struct.unpack_from("<Q", data, start + 40)
    size, count, names_index = struct.unpack_from("<HHH", data, start + 58)
    headers = [start + table + index * size for index in range(count)]
    (names,) = struct.unpack_from("<Q", data, headers[names_index] + 24)
    found = []
    for header in headers:
        (offset,) = struct.unpack_from("<I", data, header)
        first = start + names + offset
        found.append(data[first : data.index(b"\0", first)].decode("ascii", "replace"))
    return found
