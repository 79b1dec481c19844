"""Taking features of a CPU away from a target or adding them: "host,-amx-bf16".

As in LLVM's `mattr`, a feature brings along what it is built on, and takes along what is built on it:
"-avx512f" takes all of AVX-512, "-avx512vl" vectors of 512 bits. Numbers that follow from features follow.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..ir.errors import TargetError
from .presets import X86_CPUS, X86_TILES

if TYPE_CHECKING:
    from .target import Target

X86_FEATURES = (
    *dict.fromkeys(feature for listed in reversed(X86_CPUS.values()) for feature in listed),
    *X86_TILES,
)
"""Everything that code for x86 may be made to use, in LLVM's spelling."""

FLOAT_PARTS = {"bf16x3": 2, "bf16x6": 3}
"""How float32 is multiplied with "amx-bf16": products of bfloat16, and the parts of a number."""
_SHARE = re.compile(r"bf16x6:([1-9]\d?)")
"""bf16x6 for so many percent of the layers, from the inputs on."""

ARM_FEATURES = ("neon", "dotprod", "fullfp16", "i8mm")

WIDE = ("avx512f", "avx512bw", "avx512dq", "avx512vl")
"""What kernels with vectors of 512 bits are made of."""

_KNOWN = {"x86_64": X86_FEATURES, "aarch64": ARM_FEATURES}
_NEEDED = {"neon": "every 64-bit ARM has it, and all kernels use it"}

_BUILT_ON: dict[str, tuple[str, ...]] = {
    "ssse3": ("sse3",),
    "sse4.1": ("ssse3",),
    "sse4.2": ("sse4.1",),
    "avx": ("sse4.2",),
    "f16c": ("avx",),
    "fma": ("avx",),
    "avx2": ("avx",),
    "vaes": ("avx2",),
    "vpclmulqdq": ("avx",),
    "avxvnni": ("avx2",),
    "avx512f": ("avx2", "f16c", "fma"),
    **dict.fromkeys(
        ("avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512vnni", "avx512ifma", "avx512vpopcntdq"),
        ("avx512f",),
    ),
    **dict.fromkeys(("avx512bf16", "avx512vbmi", "avx512vbmi2", "avx512bitalg", "avx512fp16"), ("avx512bw",)),
    "amx-int8": ("amx-tile",),
    "amx-bf16": ("amx-tile",),
}
"""LLVM's table of implied features (X86.td)."""


def x86_vectors(features: Iterable[str]) -> tuple[int, int]:
    """Bits of the widest vectors worth using on an x86 CPU, and how many registers hold one."""
    if set(WIDE) <= set(features):
        return 512, 32
    return (256 if "avx2" in features else 128), 16


def with_features(target: Target, edits: Sequence[str], asked: str = "") -> Target:
    """A target with features added ("+avx2") or taken away ("-amx-bf16"), one after the other.

    Args:
        target: a CPU.
        edits: signs and names.
        asked: what the user typed, for errors.

    Raises:
        TargetError: a feature is unknown, needed, named twice, or not there to be taken away.
    """
    asked = asked or ",".join((target.name, *edits))
    if target.kind != "llvm":
        raise TargetError(f"target '{asked}': features are those of CPUs, and {target.name} is a GPU")
    known = _KNOWN.get(target.arch, ())
    features, effective, named = set(target.features), [], set()
    parts, share = target.float_parts, target.exact_share
    for edit in edits:
        way = edit.lower().removeprefix("+").strip()
        found = _SHARE.fullmatch(way)
        if way in FLOAT_PARTS or found:
            parts, share = (0, int(found[1])) if found else (FLOAT_PARTS[way], 0)
            effective.append(f"+{way}")
            continue
        sign, feature = _parsed(edit, asked, known, target.arch)
        if feature in named:
            raise TargetError(f"target '{asked}' names {feature} twice")
        named.add(feature)
        if sign == "+":
            if feature in features:
                continue
            features |= _closure(feature, _BUILT_ON)
        else:
            if feature not in features:
                raise TargetError(f"target '{asked}': {target.name} has no {feature} to take away")
            features -= _closure(feature, _users())
        effective.append(sign + feature)
    if not effective:
        return target
    if (parts or share) and "amx-bf16" not in features:
        raise TargetError(f"target '{asked}': bf16x3 and bf16x6 need amx-bf16, which {target.name} has not")
    bits, registers = target.vector_bits, target.vector_registers
    if target.arch == "x86_64":
        bits, registers = x86_vectors(features)
    return replace(
        target,
        name=",".join((target.name, *effective)),
        features=tuple(feature for feature in known if feature in features),
        without=tuple(
            feature
            for feature in known
            if feature in {*target.features, *target.without} and feature not in features
        ),
        float_parts=parts,
        exact_share=share,
        vector_bits=bits,
        vector_registers=registers,
    )


def split_target(text: str) -> tuple[str, tuple[str, ...]]:
    """A target's name and the edits of its features: "host,-amx-bf16" is "host" and ("-amx-bf16",)."""
    name, *edits = (part.strip() for part in text.split(","))
    return name, tuple(edits)


def split_targets(text: str) -> list[str]:
    """Several targets in a list: "x86,-amx-int8,arm" is "x86,-amx-int8" and "arm"."""
    found: list[str] = []
    for part in (part.strip() for part in text.split(",")):
        if found and part[:1] in ("+", "-"):
            found[-1] += f",{part}"
        else:
            found.append(part)
    return found


def _parsed(edit: str, asked: str, known: Sequence[str], arch: str) -> tuple[str, str]:
    """The sign of an edit and its feature in LLVM's spelling; Linux's ("amx_bf16") is understood as well."""
    sign, said = edit[:1], edit[1:].strip()
    if sign not in ("+", "-") or not said:
        raise TargetError(
            f"target '{asked}': after the name come features such as -amx-bf16 or +avx2, not '{edit}'"
        )
    plain = {_plain(feature): feature for feature in known}
    feature = plain.get(_plain(said), "")
    if not feature:
        near = difflib.get_close_matches(said.lower(), known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
        raise TargetError(f"target '{asked}': unknown feature '{said}' for {arch}; {hint}")
    if sign == "-" and feature in _NEEDED:
        raise TargetError(f"target '{asked}': {feature} cannot be taken away: {_NEEDED[feature]}")
    return sign, feature


def _plain(feature: str) -> str:
    return re.sub(r"[-_.]", "", feature.lower())


def _closure(feature: str, edges: dict[str, tuple[str, ...]]) -> set[str]:
    return {feature}.union(*(_closure(each, edges) for each in edges.get(feature, ())))


def _users() -> dict[str, tuple[str, ...]]:
    """What is built on each feature directly."""
    return {
        feature: tuple(user for user, bases in _BUILT_ON.items() if feature in bases)
        for feature in X86_FEATURES
    }
