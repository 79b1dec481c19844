"""What a model would take to run, without running it: a roofline over its nodes.

Each node takes the longer of its arithmetic and its traffic, and a fixed cost to be started. Channel counts
are padded to whole vectors, on both sides of a layer, as blocked layouts do: 9 channels cost what 16 do. The
result is good for comparing versions of one model, not for telling milliseconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from ...ir.account import rounds_of
from ...ir.bodies import bodies_of
from ...ir.macs import node_macs
from ...ir.static import static_shape


@dataclass(frozen=True)
class Machine:
    """Numbers of a device.

    Attributes:
        lanes: float32 numbers in one vector.
        macs: Multiply-accumulates per second.
        bandwidth: Bytes per second.
        start: Seconds to start one node.
    """

    lanes: int = 8
    macs: float = 4e10
    bandwidth: float = 1.5e10
    start: float = 2e-6

    @classmethod
    def of(cls, target: Any) -> Machine:
        """The machine behind a target description; a common x86 core where there is none.

        Args:
            target: Anything with `vector_bits` and `device`, as `backends.target.Target` has them, or None.
        """
        if target is None:
            return cls()
        if getattr(target, "device", "cpu") == "cuda":
            return cls(lanes=8, macs=2e13, bandwidth=1.5e12, start=4e-6)
        lanes = max(int(getattr(target, "vector_bits", 256)) // 32, 1)
        return cls(lanes=lanes, macs=5e9 * lanes)


def preferred_multiple(target: Any) -> int:
    """Channels that a target likes to see together: its vector, but 8 at least; 1 without a target."""
    return 1 if target is None else max(8, Machine.of(target).lanes)


def estimate(graph: ir.Graph, machine: Machine) -> float:
    """Estimated milliseconds of one run of a graph whose shapes are static.

    Of an If the slower branch counts, a Loop or Scan of which the rounds are not known counts one.
    """
    return 1e3 * _seconds(graph, machine)


def _seconds(graph: ir.Graph, machine: Machine) -> float:
    total = 0.0
    for node in graph:
        if node.op_type == "Constant":
            continue
        bodies = [_seconds(body, machine) for body in bodies_of(node)]
        rounds = rounds_of(node) if bodies else None
        times = rounds if isinstance(rounds, int) else 1
        total += times * max(bodies, default=0.0) + _node(node, machine)
    return total


def _node(node: ir.Node, machine: Machine) -> float:
    macs, _ = node_macs(node)
    traffic = sum(_bytes(value, machine) for value in (*node.inputs, *node.outputs) if value is not None)
    work = float(macs) if isinstance(macs, int) else 0.0
    if work and len(node.inputs) > 1 and node.inputs[1] is not None:
        work *= _padding(node, node.inputs[1], machine)
    return max(work / machine.macs, traffic / machine.bandwidth) + machine.start


def _padding(node: ir.Node, weight: ir.Value, machine: Machine) -> float:
    """How much larger a product becomes when the two channel axes of its weight are padded."""
    dims = [dim for dim in weight.shape or () if isinstance(dim, int)]
    if len(dims) < 2:
        return 1.0
    axes = dims[:2] if node.op_type in ("Conv", "ConvTranspose", "Gemm") else dims[-2:]
    # An axis of one (depthwise) holds no channels to pad; its channels lie in the other.
    return math.prod(_padded(dim, machine) / dim for dim in axes if dim > 1)


def _bytes(value: ir.Value, machine: Machine) -> float:
    dims = static_shape(value)
    if not dims or value.dtype is None:
        return 0.0
    size = math.prod(dims) * value.dtype.itemsize
    channels = [dim for dim in (dims[:2] if value.is_initializer() else dims[1:2]) if dim > 1]
    return float(size) * math.prod(_padded(dim, machine) / dim for dim in channels)


def _padded(channels: int, machine: Machine) -> int:
    return math.ceil(channels / machine.lanes) * machine.lanes
