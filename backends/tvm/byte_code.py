"""The virtual machine's program in a library: packed, a tenth of its size.

TVM stores it in words of eight bytes, most of which are zero, as the bytes of `__tvm_ffi__library_bin`. Here
a library holds a DEFLATE stream of them (RFC 1951), which `inflate.cc` unpacks when the library is loaded, so
that whatever opens the library finds what TVM would have stored.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

COMPILING = ("-Os", "-fno-exceptions", "-fno-asynchronous-unwind-tables", "-fno-stack-protector")
"""Options of the C++ compiler for `source_of`."""
LEAST = 1 << 13
"""Bytes of a program from which packing pays: unpacking takes a kilobyte of code and a tenth of a second to
compile."""
_SYMBOL = "__tvm_ffi__library_bin"
_PER_LINE = 32


def program_of(module: Any) -> bytes:
    """What a library of a module holds beside the code of its kernels."""
    import tvm_ffi

    return bytes(tvm_ffi.get_global_func("runtime.ModulePackImportsToTensor")(module).numpy().tobytes())


def source_of(program: bytes) -> str:
    """C++ of an object file that has the program where TVM looks for it."""
    packing = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = packing.compress(program) + packing.flush()
    numbers = [str(byte) for byte in packed]
    lines = [",".join(numbers[at : at + _PER_LINE]) for at in range(0, len(numbers), _PER_LINE)]
    variable = f"unsigned char {_SYMBOL}[{len(program)}]"
    return "\n".join(
        [
            f'extern "C" __attribute__((visibility("default"), aligned(64))) {variable};',
            f"{variable};",
            f"static const unsigned char packed[] = {{{f',{chr(10)}'.join(lines)}}};",
            Path(__file__).with_name("inflate.cc").read_text(encoding="utf-8"),
        ]
    )
