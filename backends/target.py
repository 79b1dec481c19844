"""Target descriptions: what the machine that will run the compiled model can do.

A `Target` is plain data. Schedules read its numbers (vector width, registers, caches) instead of asking for
names, and adding a device means adding a preset (`presets.py`), not a branch. `resolve_target` turns what a
user types into a `Target`; the machine at hand is described by `host.py`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..ir.errors import TargetError
from .features import split_target, with_features
from .presets import CUDA_HOST, DEFAULT_CPU, DEFAULT_CUDA, PRESETS


@dataclass(frozen=True)
class Target:
    """One device to compile for; immutable, comparable and JSON-able.

    `features` holds only what compiled code may use, in LLVM's spelling ("avx2", "fma", "neon", "dotprod");
    an artifact is refused on a CPU that lacks one of them. Sizes are in bytes, 0 where unknown; `l1_bytes`
    and `l2_bytes` are per core, `l3_bytes` is shared.
    """

    name: str
    """What the user typed or the preset's name, with features that were added or taken away."""
    kind: str
    """"llvm" or "cuda"."""
    triple: str
    """LLVM target triple of the CPU (of the host program for a GPU)."""
    cpu: str
    """LLVM CPU name, or the compute capability ("sm_90") of a GPU."""
    features: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    """Features that the CPU of that name has and code must not use: those taken away by hand."""
    float_parts: int = 0
    """bfloat16 numbers that a float32 is split into for products on tile registers: 2 for three products, 3
    for six; 0 for as few as are exact enough for the model."""
    exact_share: int = 0
    """Percent of a model's layers, from its inputs on, that take six products while `float_parts` is 0."""
    vector_bits: int = 128
    """Widest vector register worth using."""
    vector_registers: int = 16
    cores: int = 1
    """Cores that can compute at the same time (streaming multiprocessors of a GPU)."""
    l1_bytes: int = 32 << 10
    l2_bytes: int = 512 << 10
    l3_bytes: int = 0
    device: str = "cpu"
    """Where tensors live while the model runs: "cpu" or "cuda"."""
    shared_memory_bytes: int = 0
    """Shared memory per block (GPUs only)."""
    summary: str = ""
    """One line for people."""

    @property
    def arch(self) -> str:
        """Instruction set family of the CPU side: "x86_64", "aarch64", ..."""
        return self.triple.split("-", 1)[0]

    @property
    def family(self) -> str:
        """What the user asked for in one word: "x86", "arm" or "cuda"."""
        if self.kind == "cuda":
            return "cuda"
        return {"x86_64": "x86", "aarch64": "arm"}.get(self.arch, self.arch)

    def has(self, *features: str) -> bool:
        """Whether every one of the named ISA features may be used."""
        return all(feature in self.features for feature in features)

    @property
    def runs_here(self) -> bool:
        """Whether code for this target can run on the machine at hand."""
        return self.why_not_here() is None

    def why_not_here(self) -> str | None:
        """The reason why code for this target cannot run here in a few words, or None if it can."""
        from .host import cuda_problem, host_arch, host_features, refused_features

        if self.arch != host_arch():
            return f"it needs {self.arch}, this machine is {host_arch()}"
        missing = sorted(set(self.features) - host_features()) if self.kind == "llvm" else []
        if missing:
            refused = host_arch() == "x86_64" and set(missing) <= refused_features()
            return f"this {'kernel does not grant' if refused else 'CPU lacks'} {', '.join(missing)}"
        return cuda_problem(self.cpu) if self.device == "cuda" else None

    def to_tvm(self) -> dict[str, Any]:
        """The dictionary that `tvm.target.Target` takes, the host part of a GPU target included."""
        if self.kind == "cuda":
            return {
                "kind": "cuda",
                "arch": self.cpu,
                "max_threads_per_block": 1024,
                "max_num_threads": 1024,
                "max_shared_memory_per_block": self.shared_memory_bytes,
                "registers_per_block": 65536,
                "thread_warp_size": 32,
                "l2_cache_size_bytes": self.l2_bytes,
                "host": {"kind": "llvm", "mtriple": self.triple, "mcpu": CUDA_HOST.get(self.arch, "generic")},
            }
        described: dict[str, Any] = {
            "kind": "llvm",
            "mtriple": self.triple,
            "mcpu": self.cpu,
            "num-cores": self.cores,
        }
        if self.features or self.without:
            described["mattr"] = [
                *(f"+{feature}" for feature in self.features),
                *(f"-{feature}" for feature in self.without),
            ]
        return described

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dictionary; `from_json` restores the same target."""
        data = {**dataclasses.asdict(self), "features": list(self.features), "without": list(self.without)}
        if not self.without:
            del data["without"]
        for name in ("float_parts", "exact_share"):
            if not data[name]:
                del data[name]
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Target:
        """The target that `to_json` wrote.

        Raises:
            TargetError: a field is missing or unknown.
        """
        try:
            lists = {name: tuple(data.get(name, ())) for name in ("features", "without")}
            return cls(**{**data, **lists})
        except TypeError as error:
            detail = str(error).removeprefix("Target.__init__() ")
            raise TargetError(f"not a target description: {detail}") from None

    def __str__(self) -> str:
        if self.kind == "cuda":
            return f"{self.name} ({self.cpu})"
        cores = "1 core" if self.cores == 1 else f"{self.cores} cores"
        return f"{self.name} ({self.cpu}, {self.vector_bits}-bit vectors, {cores})"


def host_target() -> Target:
    """The machine at hand: its CPU's features, usable cores and caches."""
    from .host import describe_host

    return _host_target(**describe_host())


@functools.lru_cache(maxsize=1)
def _host_target(**fields: Any) -> Target:
    return Target(**fields)


def all_targets() -> dict[str, Target]:
    """Every name `resolve_target` takes, with its target: the short names first, then the presets."""
    names = ["host", *DEFAULT_CPU, "cuda", *PRESETS]
    return {name: resolve_target(name) for name in names}


def resolve_target(target: str | Target) -> Target:
    """The target of that name.

    "x86" and "arm" mean the machine at hand where it is one, else a preset that runs on any recent CPU of the
    family; "host" is always the machine at hand; "cuda" is a recent data-centre GPU. Features can be taken
    away and added as LLVM's `mattr` does: "host,-amx-bf16", "x86-64-v3,+avxvnni".

    Raises:
        TargetError: there is no such target or feature; the line names the nearest ones.
    """
    if isinstance(target, Target):
        return target
    if not isinstance(target, str):
        raise TargetError(f"a target is a name or a Target, not {type(target).__name__}")
    name, edits = split_target(target)
    found = _named(name)
    return with_features(found, edits, target.strip()) if edits else found


def _named(target: str) -> Target:
    name = target.lower().replace("_", "-")
    if name in PRESETS:
        return Target(name=name, **PRESETS[name])
    if name.replace("-", "_") in _by_cuda_arch():
        return _by_cuda_arch()[name.replace("-", "_")]
    if name == "cuda":
        return Target(name="cuda", **PRESETS[DEFAULT_CUDA])
    if name == "host":
        return host_target()
    if name in DEFAULT_CPU:
        host = host_target()
        return host if host.family == name else Target(name=name, **PRESETS[DEFAULT_CPU[name]])
    import difflib

    known = ["host", *DEFAULT_CPU, "cuda", *PRESETS]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "`graphwright targets` lists them"
    raise TargetError(f"unknown target {target!r}; {hint}")


def _by_cuda_arch() -> dict[str, Target]:
    """CUDA presets under their compute capability, so that "sm_86" works as a target."""
    return {
        fields["cpu"]: Target(name=name, **fields)
        for name, fields in reversed(PRESETS.items())
        if fields["kind"] == "cuda"
    }
