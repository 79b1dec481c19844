"""Building a `torch.fx` graph from ONNX nodes: values, names of parameters, and sizes kept out of tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import fx

from ..constants import constant_array
from ..errors import ModelError
from ..provenance import module_path
from ..static import static_shape
from . import hosts
from .dtypes import carrier, tensor_from

Form = Callable[["Emitter", ir.Node], Any]
"""Emits a node: returns its only result, or a list with one per output (None for one that is not made)."""

KIND_KEY = "pkg.torch.export.graph_signature.InputSpec.kind"
"""What torch's exporter says of an initializer: PARAMETER, BUFFER or CONSTANT_TENSOR."""

_TAKEN = frozenset(dir(torch.nn.Module())) | frozenset(dir(fx.GraphModule)) | {"graph", "_graph", "code"}
_HOST_LIMIT = 256

# Operand positions that hold what training changes, whatever the initializer is called.
_WEIGHTS = {
    **dict.fromkeys(("Conv", "ConvTranspose", "Gemm"), (1, 2)),
    "MatMul": (0, 1),
    "PRelu": (1,),
    **dict.fromkeys(("LayerNormalization", "InstanceNormalization", "GroupNormalization"), (1, 2)),
    "RMSNormalization": (1,),
    "BatchNormalization": (1, 2),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), (1, 2, 3, 7)),
    "Gather": (0,),
}


class Emitter:
    """One `torch.fx` graph in the making.

    A value is a tensor (an `fx.Node`), or a *host* value: sizes and what is computed from them stay plain
    numbers or lists of numbers, as in hand-written torch, so that the module can be traced again with
    dynamic shapes and never waits for a device to learn a size.

    Attributes:
        root: holds parameters, buffers and submodules under their dotted names.
        graph: the graph; nodes are appended in order.
    """

    def __init__(self, model: ir.Model, outer: Emitter | None = None) -> None:
        self.model = model
        self.root = torch.nn.Module()
        self.graph = fx.Graph()
        self.outer = outer
        self._values: dict[ir.Value, Any] = {}
        self._hosts: dict[ir.Value, Any] = {}
        self._names: set[str] = set()
        self._device: fx.Node | None = None

    # Results ---------------------------------------------------------------------------------------------

    def define(self, value: ir.Value, made: Any) -> None:
        """Says which tensor a value of the model is."""
        self._values[value] = made

    def define_host(self, value: ir.Value, made: Any) -> None:
        """Says which number or list of numbers (literal, or an `fx.Node` that gives it) a value is."""
        self._hosts[value] = made

    def placeholder(self, value: ir.Value) -> fx.Node:
        """A graph input."""
        made = self.graph.placeholder(identifier(str(value.name)))
        self._device = self._device or made
        self.define(value, made)
        return made

    def call(self, function: Callable[..., Any], *arguments: Any, **more: Any) -> fx.Node:
        """A call of a function on tensors, numbers and lists."""
        return self.graph.call_function(function, arguments, more)

    def call_module(self, path: str, *arguments: Any) -> fx.Node:
        """A call of the submodule at `path`."""
        return self.graph.call_module(path, arguments)

    # Operands --------------------------------------------------------------------------------------------

    def tensor(self, value: ir.Value | None) -> Any:
        """A value as a tensor operand; None stays None.

        Constants become parameters or buffers where they are first used.
        """
        if value is None:
            return None
        if value not in self._values:
            self._values[value] = self._make(value)
        return self._values[value]

    def tensors(self, node: ir.Node) -> list[Any]:
        """All operands of a node as tensors."""
        return [self.tensor(value) for value in node.inputs]

    def operand(self, value: ir.Value | None) -> Any:
        """Like `tensor`, but constants of a single number are written into the code."""
        if value is None or value in self._values or is_trainable(value):
            return self.tensor(value)
        if value in self._hosts:
            host = self._hosts[value]
            return (
                host if isinstance(host, (int, float)) and not isinstance(host, bool) else self.tensor(value)
            )
        array = constant_array(value, 1)
        if array is None or array.shape or array.dtype.kind not in "fiu" or array.dtype.itemsize < 4:
            return self.tensor(value)
        return array.item()

    def literal(self, value: ir.Value | None) -> np.ndarray | None:
        """The numbers of a value that is known now: a constant, or sizes that are static."""
        if value is None:
            return None
        if value in self._hosts:
            host = self._hosts[value]
            return None if isinstance(host, fx.Node) else np.asarray(host, numpy_type(value))
        return constant_array(value)

    def host(self, value: ir.Value, what: str = "") -> Any:
        """A small value of rank 0 or 1 as a number or a list, known now or an `fx.Node` that gives it."""
        known = self.literal(value)
        if known is not None:
            return known.tolist()
        if value in self._hosts:
            return self._hosts[value]
        return self.call(hosts.from_tensor, self.tensor(value))

    def numbers(self, value: ir.Value | None) -> Any:
        """A small value as a list."""
        assert value is not None
        host = self.host(value)
        return self.call(hosts.to_list, host) if isinstance(host, fx.Node) else hosts.to_list(host)

    def number(self, value: ir.Value | None) -> Any:
        """A value of one element as a number."""
        assert value is not None
        host = self.host(value)
        return self.call(hosts.to_number, host) if isinstance(host, fx.Node) else hosts.to_number(host)

    def is_host(self, value: ir.Value | None) -> bool:
        """Whether a value can be had without reading a tensor: sizes, and small integer constants."""
        if value is None or value in self._hosts:
            return value is not None
        array = constant_array(value, _HOST_LIMIT)
        if array is None or array.ndim > 1 or array.dtype.kind not in "iubf":
            return False
        return array.dtype.kind != "f" or not is_trainable(value)

    def is_made(self, value: ir.Value) -> bool:
        """Whether a value is a tensor already."""
        return value in self._values

    def is_size(self, value: ir.Value) -> bool:
        """Whether a value was computed from sizes."""
        return value in self._hosts

    def known_ints(self, node: ir.Node, index: int, what: str) -> list[int] | None:
        """The integers of an operand that torch must know beforehand; None if it is absent.

        Raises:
            ModelError: it is computed from data.
        """
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is None:
            return None
        known = self.literal(value)
        if known is None:
            raise refusal(node, f"its {what} are computed while it runs")
        return [int(each) for each in np.atleast_1d(known)]

    def device(self) -> fx.Node:
        """A tensor that lives where the module does, for what is made out of nothing."""
        if self._device is None:
            self._device = self.constant(torch.zeros(0), "device_marker")
        return self._device

    def constant(self, data: torch.Tensor, name: str) -> fx.Node:
        """A buffer that holds `data`."""
        path = self._place(name, data)
        return self.graph.get_attr(path)

    def weight(self, value: ir.Value | None) -> torch.Tensor:
        """A copy of a stored constant."""
        array = constant_array(value)
        assert array is not None
        return tensor_from(array)

    def submodule(self, path: str, module: torch.nn.Module) -> str:
        """Puts a module at `path`, or close to it if that is taken; returns where."""
        return self._place(path, module)

    def parameter(self, name: str, data: torch.Tensor) -> fx.Node:
        """A trainable parameter."""
        return self.graph.get_attr(self._place(name, torch.nn.Parameter(data)))

    # Making ----------------------------------------------------------------------------------------------

    def _make(self, value: ir.Value) -> Any:
        if value in self._hosts:
            host = self._hosts[value]
            if not isinstance(host, fx.Node):
                return self.constant(tensor_from(np.asarray(host, numpy_type(value))), str(value.name))
            return self.call(hosts.as_tensor, host, carrier(value.dtype), self.device())
        array = constant_array(value)
        if array is None:
            if self.outer is not None:
                raise KeyError(value)
            raise ModelError(f"value '{value.name}' is neither computed nor a constant")
        data = tensor_from(array)
        if is_trainable(value):
            return self.parameter(str(value.name), data)
        return self.constant(data, str(value.name))

    def _place(self, name: str, thing: torch.Tensor | torch.nn.Module) -> str:
        path = self.free_path(name)
        *scopes, leaf = path.split(".")
        owner = self.root
        for scope in scopes:
            if scope not in owner._modules:
                owner.add_module(scope, torch.nn.Module())
            owner = owner.get_submodule(scope)
        if isinstance(thing, torch.nn.Module):
            if leaf in owner._modules:
                for key, each in owner._modules[leaf]._modules.items():  # type: ignore[union-attr]
                    thing.add_module(key, each)
            owner.add_module(leaf, thing)
        elif isinstance(thing, torch.nn.Parameter):
            owner.register_parameter(leaf, thing)
        else:
            owner.register_buffer(leaf, thing)
        self._names.add(path)
        return path

    def free_path(self, name: str) -> str:
        """The attribute path for a name of the model: the name itself wherever torch allows it."""
        parts = [re.sub(r"\W", "_", part) for part in name.split(".")]
        parts = [part for part in parts if part] or ["value"]
        parts = [f"{part}_" if part in _TAKEN or part == "_modules" else part for part in parts]
        path = stem = ".".join(parts)
        number = 0
        while not self._is_free(path):
            number += 1
            path = f"{stem}_{number}"
        return path

    def is_free(self, path: str) -> bool:
        """Whether a submodule can stand at exactly this path."""
        return bool(path) and self.free_path(path) == path

    def _is_free(self, path: str) -> bool:
        scopes = path.split(".")
        ancestors = {".".join(scopes[:depth]) for depth in range(1, len(scopes))}
        if path in self._names or ancestors & self._names:
            return False
        if len(scopes) == 1 or "." in path:
            owner: Any = self.root
            for scope in scopes:
                owner = getattr(owner, scope, None)
                if owner is None:
                    return True
            # A container of other parameters may still become a module that has them.
            return type(owner) is torch.nn.Module
        return True


def is_trainable(value: ir.Value) -> bool:
    """Whether an initializer is a parameter rather than a buffer.

    A graph that was traced from torch remembers; else a floating-point initializer is a parameter where it
    is a weight by its place, or where it has several numbers that are no mask.
    """
    if not value.is_initializer() or value.dtype is None or not value.dtype.is_floating_point():
        return False
    if value.dtype.bitwidth < 16:
        return False
    kind = value.metadata_props.get(KIND_KEY)
    if kind is not None:
        return kind == "PARAMETER"
    uses = value.uses()
    if any(use.idx in (3, 4) and use.node.op_type == "BatchNormalization" for use in uses):
        return False
    if any(use.node.op_type in ("QuantizeLinear", "DequantizeLinear") and use.idx for use in uses):
        return False
    if any(use.idx in _WEIGHTS.get(use.node.op_type, ()) for use in uses):
        return True
    array = constant_array(value)
    if array is None or array.size < 2:
        return False
    return bool(np.isfinite(array).all() and np.abs(array).max() < 1e4)


def layer_path(
    emitter: Emitter, node: ir.Node, weights: Sequence[ir.Value | None], slots: Sequence[str]
) -> str | None:
    """Where a layer's module can stand: the stem of its weights' names, or the module it was traced from.

    None where the layer shares a weight, computes one, or has no place of its own; it is then a call of a
    function.
    """
    for value in weights:
        if value is not None and (
            not value.is_initializer() or len(value.uses()) != 1 or value.is_graph_output()
        ):
            return None
    stems = {
        str(value.name).removesuffix(f".{slot}") if str(value.name).endswith(f".{slot}") else None
        for value, slot in zip(weights, slots, strict=True)
        if value is not None
    }
    stem = stems.pop() if len(stems) == 1 else None
    for path in (stem, module_path(node)):
        if path and emitter.is_free(path):
            return path
    return None


def identifier(name: str) -> str:
    """A name as Python allows it."""
    text = re.sub(r"\W", "_", name) or "value"
    return f"_{text}" if text[0].isdigit() else text


def numpy_type(value: ir.Value) -> np.dtype:
    """The numpy type of a host value; int64 where it is not known."""
    return np.dtype(np.int64) if value.dtype is None else value.dtype.numpy()


def refusal(node: ir.Node, reason: str) -> ModelError:
    """The error for a node that has no torch form."""
    return ModelError(f"{node.op_type} '{node.name}' has no torch form: {reason}")


def rank(value: ir.Value | None, node: ir.Node) -> int:
    """Number of dimensions of an operand.

    Raises:
        ModelError: it is not known.
    """
    if value is None or value.shape is None:
        raise refusal(node, "the rank of an input is not known; run shape inference or give shapes")
    return len(value.shape)


def static_sizes(value: ir.Value | None) -> list[int] | None:
    """The shape of a value if every dimension is known."""
    shape = static_shape(value)
    return None if shape is None else list(shape)
