"""What a model means: its results in ONNX Runtime with all graph optimizations off."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from . import ort
from .clone import clone
from .errors import ModelError
from .quiet import collected_warnings
from .runtime_gaps import make_runnable
from .tensors import tensor_of
from .wider import ALL, run_between_casts

# Tensors above this many bytes are lent to the session instead of being copied through protobuf, whose
# messages end at 2 GB. Smaller ones may be shape operands, which type inference wants to see.
_LEND_ABOVE = 4096


class Reference:
    """Runs a model by the reference semantics. The model is neither changed nor may it change meanwhile.

    Args:
        model: any valid model; weights may be external and over 2 GB.
        threads: threads within an operator; None takes all cores.
        consume: the model is the caller's to lose, which saves a copy of its graph; of use for one run.

    Raises:
        ModelError: the model holds an operator that the reference cannot run; the line names the node.
    """

    def __init__(self, model: ir.Model, *, threads: int | None = None, consume: bool = False):
        self._model = model
        self._consume = consume
        self._threads = threads
        self._sessions: dict[tuple[str, ...], Any] = {}
        # Operators without a kernel for the types that they have here.
        self._between_casts: set[str] = set()
        self._inputs = [value for value in model.graph.inputs if value.name not in model.graph.initializers]
        self._optional = [value for value in model.graph.inputs if value.name in model.graph.initializers]
        self._output_names = tuple(str(value.name) for value in model.graph.outputs)
        self._session(self._output_names)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The model's outputs, by name, for one set of inputs.

        Raises:
            ModelError: an input is missing, unknown, or of another dtype or shape; or an operator failed.
        """
        return self.run_values(feeds, self._output_names)

    def run_values(self, feeds: Mapping[str, np.ndarray], names: Sequence[str]) -> dict[str, np.ndarray]:
        """Any values of the main graph by name, inputs and initializers included.

        Raises:
            ModelError: as for `run`, or there is no value of that name.
        """
        checked = self._check_feeds(feeds)
        given = {name: checked[name] for name in names if name in checked}
        stored = {
            name: self._initializer(name)
            for name in names
            if name not in given and name in self._model.graph.initializers
        }
        wanted = tuple(dict.fromkeys(name for name in names if name not in given and name not in stored))
        results: dict[str, np.ndarray] = {}
        if wanted:
            results = ort.run_session(self._session(wanted), checked, wanted)
        return {name: {**given, **stored, **results}[name] for name in names}

    def _initializer(self, name: str) -> np.ndarray:
        tensor = self._model.graph.initializers[name].const_value
        if tensor is None:
            raise ModelError(f"initializer '{name}' has no data")
        return tensor.numpy()

    def _session(self, names: tuple[str, ...]) -> Any:
        while names not in self._sessions:
            proto, shared = serialize_for_session(
                self._model, names, consume=self._consume, between_casts=self._between_casts
            )
            try:
                self._sessions[names] = ort.open_session(proto, threads=self._threads, shared=shared)
            except ort.MissingKernel as missing:
                cast = self._to_cast(missing.op_type)
                if cast is None:
                    raise
                self._between_casts.add(cast)
                for name, array in shared.items() if self._consume else ():
                    self._model.graph.initializers[name].const_value = tensor_of(array)
        return self._sessions[names]

    def _to_cast(self, op_type: str) -> str | None:
        """Which nodes are to run between casts as there is no kernel for an operator; None where none can."""
        # ONNX Runtime takes some operators apart; what is missing then is in no node of the model.
        for candidate in (op_type, ALL):
            if candidate not in self._between_casts and run_between_casts(clone(self._model), {candidate}):
                return candidate
        return None

    def _check_feeds(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        known = {str(value.name): value for value in (*self._inputs, *self._optional)}
        for name in feeds:
            if name not in known:
                raise ModelError(f"the model has no input '{name}'; its inputs are {_quoted(known)}")
        for value in self._inputs:
            if value.name not in feeds:
                raise ModelError(f"input '{value.name}' is missing; the model's inputs are {_quoted(known)}")
        sizes: dict[str, tuple[int, str]] = {}
        return {name: check_feed(known[name], feeds[name], sizes) for name in feeds}


def run_reference(
    model: ir.Model, feeds: Mapping[str, np.ndarray], *, threads: int | None = None
) -> dict[str, np.ndarray]:
    """The outputs of a model for one set of inputs; see `Reference` to run it more than once."""
    return Reference(model, threads=threads).run(feeds)


def check_feed(value: ir.Value, array: Any, sizes: dict[str, tuple[int, str]] | None = None) -> np.ndarray:
    """Checks one input against its declared dtype and shape.

    Args:
        value: the graph input.
        array: what is fed.
        sizes: what symbolic dimensions were seen to be so far (name to size and input name); extended.

    Raises:
        ModelError: dtype or shape contradict the declaration.
    """
    if value.type is not None and not isinstance(value.type, ir.TensorType):
        # A sequence, an optional or a map: ONNX Runtime checks those itself.
        return array
    array = np.asarray(array)
    if value.dtype is not None and value.dtype != ir.DataType.STRING:
        wanted = value.dtype.numpy()
        if array.dtype != wanted:
            raise ModelError(f"input '{value.name}' is {array.dtype}, the model wants {wanted}")
    if value.shape is None:
        return array
    declared = f"[{', '.join('?' if dim is None else str(dim) for dim in _dims(value.shape))}]"
    if len(array.shape) != len(value.shape):
        raise ModelError(f"input '{value.name}' has shape {list(array.shape)}, the model wants {declared}")
    for dim, size in zip(_dims(value.shape), array.shape, strict=True):
        if isinstance(dim, int):
            if dim != size:
                raise ModelError(
                    f"input '{value.name}' has shape {list(array.shape)}, the model wants {declared}"
                )
        elif dim is not None and sizes is not None:
            seen, where = sizes.setdefault(dim, (size, str(value.name)))
            if seen != size:
                raise ModelError(
                    f"dimension '{dim}' is {seen} in input '{where}' but {size} in '{value.name}'"
                )
    return array


def serialize_for_session(
    model: ir.Model,
    outputs: Sequence[str] | None = None,
    *,
    consume: bool = False,
    between_casts: Collection[str] = (),
) -> tuple[bytes, dict[str, np.ndarray]]:
    """Serializes a model without its large weights, which are returned beside it by initializer name.

    Args:
        model: any model; not changed, unless `consume` says that it may be.
        outputs: names of values of the main graph to be the outputs instead of the model's own.
        consume: work on the model itself.
        between_casts: types of operators that are to compute in float32.

    Raises:
        ModelError: no such value, or what remains does not fit a protobuf message.
    """
    copy = model if consume else clone(model)
    if outputs is not None:
        _set_outputs(copy.graph, outputs)
    make_runnable(copy)
    if between_casts:
        run_between_casts(copy, between_casts)
    copy.ir_version = min(copy.ir_version or ort.MAX_IR_VERSION, ort.MAX_IR_VERSION)
    shared: dict[str, np.ndarray] = {}
    for name, value in list(copy.graph.initializers.items()):
        if not (value.uses() or value.is_graph_output() or value.is_graph_input()):
            # The session drops what nothing reads, and would miss it when it is lent.
            del copy.graph.initializers[name]
            continue
        tensor = value.const_value
        if tensor is None:
            raise ModelError(f"initializer '{name}' has no data")
        # ONNX Runtime drops what nothing reads, and then complains about memory lent for it.
        if not value.uses() and not value.is_graph_output():
            continue
        if tensor.nbytes <= _LEND_ABOVE or not ort.is_shareable(tensor.dtype):
            continue
        shared[name] = tensor.numpy()
        value.const_value = ir.ExternalTensor(
            "lent", 0, tensor.nbytes, tensor.dtype, shape=ir.Shape(shared[name].shape), name=name
        )
    try:
        with collected_warnings("onnx_ir"):
            return ir.to_proto(copy).SerializeToString(), shared
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"cannot serialize the model for the reference: {reason}") from error


def _set_outputs(graph: ir.Graph, names: Sequence[str]) -> None:
    values = {value.name: value for node in graph for value in node.outputs}
    for value in (*graph.inputs, *graph.initializers.values()):
        values.setdefault(value.name, value)
    for name in names:
        if name not in values:
            raise ModelError(f"the main graph has no value '{name}'")
    graph.outputs[:] = [values[name] for name in names]


def _dims(shape: ir.Shape) -> list[int | str | None]:
    return [dim if isinstance(dim, int) else dim.value for dim in shape]


def _quoted(names: Mapping[str, Any]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "none"
