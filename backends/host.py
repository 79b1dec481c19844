"""Looking at the machine at hand: instruction set, usable cores, caches, GPU.

Everything comes from files that containers and virtual machines also show (/proc/cpuinfo, sysfs, cgroup
limits); where one is missing a modest default is taken, never an error.
"""

from __future__ import annotations

import ctypes
import functools
import math
import os
import platform
import re
from pathlib import Path
from typing import Any

from .features import ARM_FEATURES, X86_FEATURES, x86_vectors
from .presets import X86_CPUS, X86_TILES

_KERNEL_TO_LLVM = {
    # x86: where Linux spells a feature differently
    "pni": "sse3",
    "sse4_1": "sse4.1",
    "sse4_2": "sse4.2",
    "abm": "lzcnt",
    "bmi1": "bmi",
    "avx_vnni": "avxvnni",
    "avx512_vnni": "avx512vnni",
    "avx512_bf16": "avx512bf16",
    "avx512_fp16": "avx512fp16",
    "avx512_vbmi2": "avx512vbmi2",
    "avx512_bitalg": "avx512bitalg",
    "avx512_vpopcntdq": "avx512vpopcntdq",
    "amx_tile": "amx-tile",
    "amx_int8": "amx-int8",
    "amx_bf16": "amx-bf16",
    # ARM
    "asimd": "neon",
    "asimddp": "dotprod",
    "asimdhp": "fullfp16",
    "atomics": "lse",
    "asimdrdm": "rdm",
}

_ARM_PARTS = {
    "0xd03": "cortex-a53",
    "0xd05": "cortex-a55",
    "0xd07": "cortex-a57",
    "0xd08": "cortex-a72",
    "0xd0b": "cortex-a76",
    "0xd0c": "neoverse-n1",
    "0xd40": "neoverse-v1",
    "0xd41": "cortex-a78",
    "0xd4f": "neoverse-v2",
}

_ARCH_PRCTL = 158
_REQUEST_PERMISSION = 0x1023
_TILE_DATA = 18
"""x86-64 Linux: the system call, ARCH_REQ_XCOMP_PERM, and the number of the state of tile registers."""

_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76
"""The driver's numbers of these device attributes."""

_DEFAULT_CACHES = {1: 32 << 10, 2: 512 << 10, 3: 0}


def host_arch() -> str:
    """Instruction set family of this machine, as the first part of an LLVM triple."""
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


@functools.lru_cache(maxsize=1)
def _cpuinfo() -> dict[str, str]:
    return parse_cpuinfo(_read("/proc/cpuinfo"))


def parse_cpuinfo(text: str) -> dict[str, str]:
    """The first processor's entries of /proc/cpuinfo, keys in lower case."""
    entries: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if not colon:
            if entries:
                break
            continue
        entries.setdefault(key.strip().lower(), value.strip())
    return entries


@functools.lru_cache(maxsize=1)
def host_features() -> frozenset[str]:
    """Features of this CPU in LLVM's spelling; the kernel lists only what the system lets programs use.

    Tile registers are among them where the kernel grants them to this process, which this asks for.
    """
    features = features_of(_cpuinfo())
    return features if features.isdisjoint(X86_TILES) or tiles_granted() else features.difference(X86_TILES)


def refused_features() -> frozenset[str]:
    """Features that this CPU has and the kernel keeps from this process."""
    return features_of(_cpuinfo()).intersection(X86_TILES) - host_features()


def tiles_granted() -> bool:
    """Whether this process may use AMX tile registers; asks the kernel, which then grants it to all threads.

    Linux 5.16 and later grant it unless a thread's signal stack is too small; a child process inherits it, a
    new program must ask again (Linux, Documentation/arch/x86/xstate.rst).
    """
    if platform.system() != "Linux" or host_arch() != "x86_64":
        return False
    try:
        call = ctypes.CDLL(None).syscall
    except (OSError, AttributeError):
        return False
    return (
        int(call(ctypes.c_long(_ARCH_PRCTL), ctypes.c_long(_REQUEST_PERMISSION), ctypes.c_long(_TILE_DATA)))
        == 0
    )


def features_of(cpuinfo: dict[str, str]) -> frozenset[str]:
    """Features listed in parsed /proc/cpuinfo entries, in LLVM's spelling."""
    flags = (cpuinfo.get("flags") or cpuinfo.get("features") or "").split()
    found = {_KERNEL_TO_LLVM.get(flag, flag) for flag in flags}
    if not found and host_arch() == "aarch64":
        found = {"neon"}  # part of the architecture, listed or not
    return frozenset(found)


def choose_x86_cpu(features: frozenset[str], vendor: str = "") -> str:
    """The newest LLVM CPU name whose code runs with these features.

    Names of the other vendor are passed over: their code would run, but be ordered for another pipeline.
    """
    amd = "amd" in vendor.lower()
    for name, needed in X86_CPUS.items():
        generic = name.startswith("x86-64")
        if not generic and name.startswith("znver") != amd:
            continue
        if features.issuperset(needed):
            return name
    return "x86-64"


def describe_host() -> dict[str, Any]:
    """The fields of a `Target` for this machine."""
    arch = host_arch()
    features = host_features()
    cpuinfo = _cpuinfo()
    if arch == "x86_64":
        cpu = choose_x86_cpu(features, cpuinfo.get("vendor_id", ""))
        used = tuple(feature for feature in X86_FEATURES if feature in features)
        vector_bits, registers = x86_vectors(features)
        name = "x86"
    else:
        cpu = _ARM_PARTS.get(cpuinfo.get("cpu part", "").lower(), "generic")
        used = tuple(feature for feature in ARM_FEATURES if feature in features)
        vector_bits, registers = 128, 32
        name = "arm" if arch == "aarch64" else "host"
    caches = host_caches()
    model = cpuinfo.get("model name") or cpuinfo.get("hardware") or platform.processor() or arch
    return {
        "name": name,
        "kind": "llvm",
        "triple": f"{arch}-linux-gnu",
        "cpu": cpu,
        "features": used,
        "vector_bits": vector_bits,
        "vector_registers": registers,
        "cores": usable_cores(),
        "l1_bytes": caches[1],
        "l2_bytes": caches[2],
        "l3_bytes": caches[3],
        "summary": f"this machine: {' '.join(model.split())}",
    }


def host_caches(root: str | Path = "/sys/devices/system/cpu/cpu0/cache") -> dict[int, int]:
    """Bytes of data cache by level, as the first core sees them."""
    sizes = dict(_DEFAULT_CACHES)
    for index in sorted(Path(root).glob("index*")):
        level, size = _read(index / "level").strip(), _read(index / "size").strip()
        match = re.fullmatch(r"(\d+)([KMG]?)", size)
        if _read(index / "type").strip() == "Instruction" or not level.isdigit() or not match:
            continue
        scale = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[match[2]]
        if int(level) in sizes and int(match[1]) > 0:
            sizes[int(level)] = int(match[1]) * scale
    return sizes


def usable_cores() -> int:
    """Physical cores this process may keep busy: within its affinity and quota, hyper-threads once."""
    physical = set()
    for core in _logical_cores():
        topology = Path(f"/sys/devices/system/cpu/cpu{core}/topology")
        package, number = _read(topology / "physical_package_id").strip(), _read(topology / "core_id").strip()
        physical.add((package, number) if number else core)
    quota = _cgroup_quota()
    count = len(physical)
    return max(1, min(count, math.ceil(quota)) if quota else count)


def logical_cores() -> int:
    """Logical cores this process may run on, each hyper-thread counted: an upper limit for threads."""
    return len(_logical_cores())


def _logical_cores() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _cgroup_quota() -> float | None:
    """CPUs' worth of time the container may use, or None if it has no limit."""
    words = _read("/sys/fs/cgroup/cpu.max").split()
    if not words:
        words = [_read(f"/sys/fs/cgroup/cpu/cpu.cfs_{part}_us").strip() for part in ("quota", "period")]
    try:
        quota, period = float(words[0]), float(words[1])
    except (ValueError, IndexError):  # "max": no limit
        return None
    return quota / period if quota > 0 and period > 0 else None


def cuda_problem(arch: str) -> str | None:
    """Why code for a compute capability ("sm_90") cannot run here, or None if it can.

    Machine code runs on devices of the same major version and the same or a later minor one.
    """
    found = cuda_capability()
    if isinstance(found, str):
        return found
    digits = re.sub(r"\D", "", arch)
    major, minor = int(digits[:-1]), int(digits[-1])
    if found[0] != major or found[1] < minor:
        return f"this machine's GPU is sm_{found[0]}{found[1]}, the code is for {arch}"
    return None


@functools.lru_cache(maxsize=1)
def cuda_capability() -> tuple[int, int] | str:
    """Compute capability of the first GPU, or why there is none."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        count, major, minor = ctypes.c_int(0), ctypes.c_int(0), ctypes.c_int(0)
        if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
            return "this machine has no CUDA device"
        for attribute, value in ((_CAPABILITY_MAJOR, major), (_CAPABILITY_MINOR, minor)):
            if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, 0):
                return "this machine's CUDA device does not answer"
    except (OSError, AttributeError):
        return "this machine has no NVIDIA driver"
    return major.value, minor.value


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
