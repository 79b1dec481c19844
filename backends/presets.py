"""Targets as data: one entry per device that can be named without having it at hand."""

from __future__ import annotations

from typing import Any

_V2 = ("sse3", "ssse3", "sse4.1", "sse4.2", "popcnt")
_V3 = (*_V2, "avx", "avx2", "fma", "f16c", "bmi", "bmi2", "lzcnt", "movbe")
_V4 = (*_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
_ICELAKE = (
    *_V4,
    "avx512vnni",
    "avx512vbmi",
    "avx512vbmi2",
    "avx512ifma",
    "avx512bitalg",
    "avx512vpopcntdq",
    "gfni",
    "vaes",
    "vpclmulqdq",
)

X86_CPUS: dict[str, tuple[str, ...]] = {
    "sapphirerapids": (*_ICELAKE, "avxvnni", "avx512bf16", "avx512fp16"),
    "znver5": (*_ICELAKE, "avxvnni", "avx512bf16"),
    "znver4": (*_ICELAKE, "avx512bf16"),
    "icelake-server": _ICELAKE,
    "cooperlake": (*_V4, "avx512vnni", "avx512bf16"),
    "cascadelake": (*_V4, "avx512vnni"),
    "skylake-avx512": _V4,
    "alderlake": (*_V3, "avxvnni", "gfni", "vaes", "vpclmulqdq"),
    "znver3": (*_V3, "vaes", "vpclmulqdq"),
    "znver2": _V3,
    "haswell": _V3,
    "x86-64-v4": _V4,
    "x86-64-v3": _V3,
    "x86-64-v2": _V2,
    "x86-64": (),
}
"""LLVM's x86 CPU names, newest first, with the features of each that compiled code may use.

A host is named by what it has rather than by its model number, which a hypervisor may show together with
features it hides: code for the name then never uses an instruction that traps. AMX stands apart, since a
program must ask the kernel before it may use it: a host keeps its name without it.
"""

X86_TILES = ("amx-tile", "amx-int8", "amx-bf16")
"""What an x86 CPU may have besides, if the kernel grants it (`host.tiles_granted`)."""

_NEON = ("neon",)
_DOTPROD = ("neon", "dotprod")
_DOTPROD_HALF = ("neon", "dotprod", "fullfp16")
_KIB, _MIB = 1 << 10, 1 << 20


def _x86(
    cpu: str, l1: int, l2: int, l3: int, cores: int, summary: str, more: tuple[str, ...] = ()
) -> dict[str, Any]:
    features = (*X86_CPUS[cpu], *more)
    wide = "avx512f" in features
    return {
        "kind": "llvm",
        "triple": "x86_64-linux-gnu",
        "cpu": cpu,
        "features": features,
        "vector_bits": 512 if wide else 256 if "avx2" in features else 128,
        "vector_registers": 32 if wide else 16,
        "cores": cores,
        "l1_bytes": l1,
        "l2_bytes": l2,
        "l3_bytes": l3,
        "summary": summary,
    }


def _arm(
    cpu: str, features: tuple[str, ...], l1: int, l2: int, l3: int, cores: int, text: str
) -> dict[str, Any]:
    return {
        "kind": "llvm",
        "triple": "aarch64-linux-gnu",
        "cpu": cpu,
        "features": features,
        "vector_bits": 128,
        "vector_registers": 32,
        "cores": cores,
        "l1_bytes": l1,
        "l2_bytes": l2,
        "l3_bytes": l3,
        "summary": text,
    }


def _cuda(arch: str, multiprocessors: int, l2: int, summary: str) -> dict[str, Any]:
    return {
        "kind": "cuda",
        "triple": "x86_64-linux-gnu",
        "cpu": arch,
        "vector_bits": 128,
        "vector_registers": 255,
        "cores": multiprocessors,
        "l1_bytes": 128 * _KIB,
        "l2_bytes": l2,
        "device": "cuda",
        "shared_memory_bytes": 48 * _KIB,
        "summary": summary,
    }


PRESETS: dict[str, dict[str, Any]] = {
    "x86-64-v2": _x86("x86-64-v2", 32 * _KIB, 256 * _KIB, 8 * _MIB, 4, "any x86-64 since 2009: SSE4.2"),
    "x86-64-v3": _x86(
        "x86-64-v3", 32 * _KIB, 512 * _KIB, 8 * _MIB, 4, "any x86-64 with AVX2 and FMA (2013 on)"
    ),
    "x86-64-v4": _x86(
        "x86-64-v4", 32 * _KIB, 1 * _MIB, 16 * _MIB, 8, "any x86-64 with AVX-512 F/BW/CD/DQ/VL"
    ),
    "haswell": _x86("haswell", 32 * _KIB, 256 * _KIB, 8 * _MIB, 4, "Intel Core 4th generation"),
    "skylake-avx512": _x86(
        "skylake-avx512", 32 * _KIB, 1 * _MIB, 24 * _MIB, 16, "Intel Xeon Scalable, 1st gen."
    ),
    "cascadelake": _x86(
        "cascadelake", 32 * _KIB, 1 * _MIB, 32 * _MIB, 24, "Intel Xeon Scalable, 2nd gen. (VNNI)"
    ),
    "icelake-server": _x86("icelake-server", 48 * _KIB, 1280 * _KIB, 48 * _MIB, 32, "Intel Xeon, 3rd gen."),
    "sapphirerapids": _x86(
        "sapphirerapids", 48 * _KIB, 2 * _MIB, 96 * _MIB, 48, "Intel Xeon, 4th gen. (AMX)", X86_TILES
    ),
    "alderlake": _x86("alderlake", 48 * _KIB, 1280 * _KIB, 30 * _MIB, 8, "Intel Core 12th generation"),
    "znver2": _x86("znver2", 32 * _KIB, 512 * _KIB, 16 * _MIB, 8, "AMD Zen 2"),
    "znver3": _x86("znver3", 32 * _KIB, 512 * _KIB, 32 * _MIB, 8, "AMD Zen 3"),
    "znver4": _x86("znver4", 32 * _KIB, 1 * _MIB, 32 * _MIB, 8, "AMD Zen 4 (AVX-512 in two halves)"),
    "znver5": _x86("znver5", 48 * _KIB, 1 * _MIB, 32 * _MIB, 8, "AMD Zen 5"),
    "armv8-a": _arm("generic", _NEON, 32 * _KIB, 512 * _KIB, 0, 4, "any 64-bit ARM: NEON"),
    "armv8.2-a-dotprod": _arm(
        "generic", _DOTPROD, 32 * _KIB, 512 * _KIB, 0, 4, "64-bit ARM with dot products"
    ),
    "cortex-a53": _arm("cortex-a53", _NEON, 32 * _KIB, 128 * _KIB, 0, 4, "ARM Cortex-A53, in order"),
    "cortex-a55": _arm(
        "cortex-a55", _DOTPROD_HALF, 32 * _KIB, 128 * _KIB, 1 * _MIB, 4, "ARM Cortex-A55, in order"
    ),
    "cortex-a72": _arm("cortex-a72", _NEON, 32 * _KIB, 256 * _KIB, 0, 4, "ARM Cortex-A72"),
    "cortex-a76": _arm("cortex-a76", _DOTPROD_HALF, 64 * _KIB, 512 * _KIB, 2 * _MIB, 4, "ARM Cortex-A76"),
    "cortex-a78": _arm("cortex-a78", _DOTPROD_HALF, 64 * _KIB, 512 * _KIB, 4 * _MIB, 4, "ARM Cortex-A78"),
    "neoverse-n1": _arm(
        "neoverse-n1", _DOTPROD_HALF, 64 * _KIB, 1 * _MIB, 32 * _MIB, 16, "ARM Neoverse N1 (Graviton 2)"
    ),
    "apple-m1": _arm("apple-m1", _DOTPROD_HALF, 128 * _KIB, 3 * _MIB, 0, 4, "Apple M1 under Linux"),
    "raspberry-pi-3": _arm("cortex-a53", _NEON, 32 * _KIB, 128 * _KIB, 0, 4, "Raspberry Pi 3 (Cortex-A53)"),
    "raspberry-pi-4": _arm("cortex-a72", _NEON, 32 * _KIB, 256 * _KIB, 0, 4, "Raspberry Pi 4 (Cortex-A72)"),
    "raspberry-pi-5": _arm(
        "cortex-a76", _DOTPROD_HALF, 64 * _KIB, 512 * _KIB, 2 * _MIB, 4, "Raspberry Pi 5 (Cortex-A76)"
    ),
    "jetson-orin": {
        **_cuda("sm_87", 16, 4 * _MIB, "NVIDIA Jetson AGX Orin"),
        "triple": "aarch64-linux-gnu",
    },
    "t4": _cuda("sm_75", 40, 4 * _MIB, "NVIDIA T4"),
    "a100": _cuda("sm_80", 108, 40 * _MIB, "NVIDIA A100"),
    "rtx-3090": _cuda("sm_86", 82, 6 * _MIB, "NVIDIA GeForce RTX 3090"),
    "rtx-4090": _cuda("sm_89", 128, 72 * _MIB, "NVIDIA GeForce RTX 4090"),
    "h100": _cuda("sm_90", 132, 50 * _MIB, "NVIDIA H100"),
    "h200": _cuda("sm_90", 132, 60 * _MIB, "NVIDIA H200"),
    "b200": _cuda("sm_100", 148, 126 * _MIB, "NVIDIA B200"),
}

DEFAULT_CPU = {"x86": "x86-64-v3", "arm": "armv8-a"}
"""What a family's short name means on a machine of another family: something every recent CPU of it runs."""

DEFAULT_CUDA = "h100"

CUDA_HOST = {"x86_64": "x86-64-v2", "aarch64": "generic"}
"""CPU of the program that launches the kernels: it only sequences, so it may as well run everywhere."""
