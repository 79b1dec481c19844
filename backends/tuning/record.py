"""One line of a tuning database: what was measured of one schedule of one workload."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..target import Target

Value = int | str | tuple[int, ...]

TRIAL, VERDICT = "trial", "verdict"
_TILES = frozenset({"amx-int8", "amx-bf16"})
_SIX_PRODUCTS = "bf16x6"
_FEATURES = _TILES | frozenset(
    {"sse4.2", "avx", "avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni"}
    | {"avx512fp16", "avxvnni", "neon", "dotprod", "fullfp16", "i8mm", "sve"}
)
"""What generated code may differ by; records are shared between CPUs that agree in these."""


def isa_of(target: Target) -> str:
    """The instruction set that records are kept for: "x86_64:avx+avx2+fma+sse4.2/256"."""
    features = _FEATURES.intersection(target.features)
    if target.float_parts == 3:
        features |= {_SIX_PRODUCTS}
    used = "+".join(sorted(features)) or "base"
    return f"{target.arch}:{used}/{target.vector_bits}"


@dataclass(frozen=True)
class Key:
    """What records are looked up by; it names no model."""

    workload: str
    isa: str
    threads: int

    @property
    def without_tiles(self) -> Key | None:
        """The same on a CPU without tile registers, whose records serve where there is no other: most kernels
        are the same there, and a record of vectors is passed over where tiles are used. None for such a CPU.
        """
        arch, _, rest = self.isa.partition(":")
        used, _, bits = rest.partition("/")
        left = [feature for feature in used.split("+") if feature not in {*_TILES, _SIX_PRODUCTS}]
        isa = f"{arch}:{'+'.join(left) or 'base'}/{bits}"
        return None if isa == self.isa or not rest else replace(self, isa=isa)


@dataclass(frozen=True)
class Record:
    """A measurement.

    A *trial* is one schedule, measured or failed. A *verdict* ends a round: the schedule that was compared
    with the analytic one in pairs and found faster, or the analytic one itself (an empty schedule).

    Attributes:
        key: what was measured.
        kind: "trial" or "verdict".
        schedule: parameters by name; empty for the analytic choice.
        microseconds: least time of one call; None where it failed.
        analytic: least time of the analytic choice in the same round, in microseconds.
        error: why a trial failed; "" where it did not.
        cpu: LLVM's name of the CPU that the code was made for.
        machine: the CPU that ran it, for people.
    """

    key: Key
    kind: str
    schedule: Mapping[str, Value] = field(default_factory=dict)
    microseconds: float | None = None
    analytic: float | None = None
    error: str = ""
    cpu: str = ""
    machine: str = ""

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dictionary; `from_json` restores the same record."""
        data: dict[str, Any] = {
            "kind": self.kind,
            "workload": self.key.workload,
            "isa": self.key.isa,
            "threads": self.key.threads,
            "schedule": {
                name: list(value) if isinstance(value, tuple) else value
                for name, value in self.schedule.items()
            },
            "us": self.microseconds,
            "analytic_us": self.analytic,
            "cpu": self.cpu,
            "machine": self.machine,
        }
        return {**data, "error": self.error} if self.error else data

    @classmethod
    def from_json(cls, data: Any) -> Record:
        """The record that `to_json` wrote.

        Raises:
            ValueError: a field is missing or of another type; the message says which.
        """
        if not isinstance(data, dict):
            raise ValueError("not an object")
        if data.get("kind") not in (TRIAL, VERDICT):
            raise ValueError(f"kind is {data.get('kind')!r}")
        for name, kind in (("workload", str), ("isa", str), ("threads", int), ("schedule", dict)):
            if not isinstance(data.get(name), kind):
                raise ValueError(f"'{name}' is missing or no {kind.__name__}")
        return cls(
            Key(data["workload"], data["isa"], data["threads"]),
            data["kind"],
            {str(name): _value(name, value) for name, value in data["schedule"].items()},
            _time(data, "us"),
            _time(data, "analytic_us"),
            str(data.get("error", "")),
            str(data.get("cpu", "")),
            str(data.get("machine", "")),
        )


def _value(name: str, value: Any) -> Value:
    if isinstance(value, list) and all(type(each) is int for each in value):
        return tuple(value)
    if type(value) is int or isinstance(value, str):
        return value
    raise ValueError(f"parameter '{name}' is {value!r}")


def _time(data: dict[str, Any], name: str) -> float | None:
    value = data.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ValueError(f"'{name}' is {value!r}")
    return float(value)
