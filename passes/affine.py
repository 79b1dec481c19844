"""Per-channel affine maps y = a * x + t, and the operators with constant weights that can absorb them.

Absorbing behind (y = a * L(x) + t) and before (y = L(a * x + t)), with W the weights, b the bias, o output
and i input channels. Maps and biases are computed in float64; W and b are stored in their own type, and a
float32 W is multiplied by a float32 a:

    behind   W'[o, ...] = a[o] * W[o, ...]        b' = a * b + t
    before   W'[o, i, ...] = W[o, i, ...] * a[i]  b' = b + sum over i and the window of W[o, i, ...] * t[i]

Before a convolution the shift t[i] must be zero or the padding must be: behind the map padded positions hold
0, not t. Gemm carries alpha and beta along: y = alpha * A B + beta * C.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..ir.constants import constant_array, constant_tensor
from ..ir.file_data import FileTensor
from .leftovers import drop_unread
from .rewriter import Rewriter

LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_BLOCK = 1 << 16
_TINY = np.finfo(np.float32).tiny
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


@dataclass(frozen=True)
class Affine:
    """a * x + t along a channel axis; both float64 `[channels]`."""

    a: np.ndarray
    t: np.ndarray


def batch_norm_affine(node: ir.Node) -> Affine | str:
    """The map a BatchNormalization computes at inference, or why it is not known.

    With scale g, bias B, mean m, variance v:  a = g / sqrt(v + epsilon),  t = B - a * m.
    """
    if node.attributes.get_int("training_mode", 0):
        return "it is in training mode"
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return "its running statistics are used"
    arrays = [constant_array(value) for value in node.inputs[1:5]]
    if len(arrays) != 4 or any(array is None for array in arrays):
        return "its parameters are not constant"
    scale, bias, mean, variance = (np.asarray(array, np.float64) for array in arrays)
    with np.errstate(all="ignore"):
        a = scale / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
        t = bias - a * mean
    if not (np.isfinite(a).all() and np.isfinite(t).all()):
        return "its parameters give NaN or infinity"
    return Affine(a, t)


@dataclass(frozen=True)
class Linear:
    """A linear operator whose constant weights may be changed.

    Attributes:
        node: the operator.
        weight: its weights, used nowhere else.
        tensor: what holds them.
    """

    node: ir.Node
    weight: ir.Value
    tensor: ir.TensorProtocol

    @property
    def array(self) -> np.ndarray:
        """The contents of the weights."""
        array = constant_array(self.weight)
        assert array is not None
        return array

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weights."""
        return tuple(self.tensor.shape.numpy())

    @property
    def dtype(self) -> np.dtype:
        """The element type of the weights."""
        return self.tensor.dtype.numpy()

    @property
    def groups(self) -> int:
        """Groups of a convolution, 1 for the others."""
        return self.node.attributes.get_int("group", 1)

    @property
    def output_channels(self) -> int:
        """Number of output channels."""
        shape = self.shape
        if self.node.op_type == "ConvTranspose":
            return shape[1] * self.groups
        return shape[0] if self.node.op_type == "Conv" or self.transposed else shape[1]

    @property
    def input_channels(self) -> int:
        """Number of input channels."""
        shape = self.shape
        if self.node.op_type == "Conv":
            return shape[1] * self.groups
        return shape[1] if self.transposed else shape[0]

    @property
    def transposed(self) -> bool:
        """Whether Gemm stores its weights as `[out, in]`."""
        return bool(self.node.attributes.get_int("transB", 0))

    def scaled_outputs(self, a: np.ndarray) -> np.ndarray | None:
        """The weights with every output channel o multiplied by a[o]; None where one is not finite then."""
        shape = self.shape
        if self.node.op_type == "ConvTranspose":
            # [in, out / groups, ...]: the inputs of group g make the outputs of group g.
            per_group = np.repeat(a.reshape(self.groups, -1), shape[0] // self.groups, axis=0)
            return _product(self.tensor, _along(per_group, len(shape)))
        if self.node.op_type == "Conv" or self.transposed:
            return _product(self.tensor, _along(a[:, None], len(shape)))
        return _product(self.tensor, a)

    def scaled_inputs(self, a: np.ndarray) -> np.ndarray | None:
        """The weights with every input channel i multiplied by a[i]; None where one is not finite then."""
        return _product(self.tensor, self._per_input(a))

    def shift_of_inputs(self, t: np.ndarray) -> np.ndarray:
        """What a constant t[i] on every input adds to each output channel, without alpha, float64."""
        weights = self.array.astype(np.float64) * self._per_input(t)
        if self.node.op_type == "Conv" or self.transposed:
            return weights.reshape(weights.shape[0], -1).sum(axis=1)
        return weights.sum(axis=0)

    def _per_input(self, a: np.ndarray) -> np.ndarray:
        """One number per input channel, in a shape that broadcasts to the weights."""
        if self.node.op_type == "Conv":
            # [out, in / groups, ...]: outputs of group g read the inputs of group g.
            per_group = np.repeat(a.reshape(self.groups, -1), self.shape[0] // self.groups, axis=0)
            return _along(per_group, len(self.shape))
        return a if self.transposed else _along(a[:, None], len(self.shape))


def match_linear(node: ir.Node) -> Linear | str:
    """Prepares a linear operator for absorbing, or says why its weights must not change."""
    if len(node.inputs) < 2:
        return f"'{node.name}' has no weights"
    weight = node.inputs[1]
    tensor = constant_tensor(weight)
    if weight is None or tensor is None:
        return f"the weights of '{node.name}' are not constant"
    if len(weight.uses()) > 1 or weight.is_graph_output():
        return f"the weights of '{node.name}' are shared with another node"
    if node.op_type in ("Gemm", "MatMul") and len(tensor.shape) != 2:
        return f"the weights of '{node.name}' are no matrix"
    if weight.dtype not in _FLOATS:
        return f"the weights of '{node.name}' are {weight.dtype}"
    if len(node.inputs) > 2 and node.inputs[2] is not None and constant_array(node.inputs[2]) is None:
        return f"the bias of '{node.name}' is not constant"
    return Linear(node, weight, tensor)


def absorb_behind(linear: Linear, affine: Affine, rewriter: Rewriter) -> bool | str:
    """Folds a map behind `linear` into it; a MatMul, which has no bias, takes only maps without shift."""
    node = linear.node
    if len(affine.a) != linear.output_channels:
        return f"'{node.name}' has {linear.output_channels} channels, not {len(affine.a)}"
    beta = node.attributes.get_float("beta", 1.0) if node.op_type == "Gemm" else 1.0
    bias = _bias(node)
    new_bias = affine.t if bias is None else affine.a * (bias * beta) + affine.t
    if node.op_type == "MatMul" and np.any(affine.t):
        return f"'{node.name}' has no bias"
    return _store(linear, linear.scaled_outputs(affine.a), new_bias, rewriter)


def absorb_before(linear: Linear, affine: Affine, rewriter: Rewriter) -> bool | str:
    """Folds a map before `linear` into it, where that is exact."""
    node = linear.node
    if node.op_type == "Gemm" and node.attributes.get_int("transA", 0) != 0:
        return f"'{node.name}' transposes its input"
    if len(affine.a) != linear.input_channels:
        return f"'{node.name}' has {linear.input_channels} input channels, not {len(affine.a)}"
    shifts = bool(np.any(affine.t))
    if shifts and node.op_type == "ConvTranspose":
        return f"the shift would spread unevenly through the transposed convolution '{node.name}'"
    if shifts and node.op_type == "Conv" and pads(node):
        return f"'{node.name}' pads with zeros, which the shift would move"
    alpha, beta = (
        node.attributes.get_float(name, 1.0) if node.op_type == "Gemm" else 1.0 for name in ("alpha", "beta")
    )
    bias = _bias(node)
    shift = alpha * linear.shift_of_inputs(affine.t) if shifts else np.zeros(linear.output_channels)
    new_bias = shift if bias is None else bias * beta + shift
    if node.op_type == "MatMul" and shifts:
        return _store_with_add(linear, linear.scaled_inputs(affine.a), shift, rewriter)
    return _store(linear, linear.scaled_inputs(affine.a), new_bias, rewriter)


def add_behind(node: ir.Node, vector: np.ndarray, rewriter: Rewriter) -> None:
    """Inserts an Add of a constant behind a node with one output."""
    output = node.outputs[0]
    value = rewriter.initializer(f"{node.name or output.name}.bias", vector)
    (total,) = rewriter.insert_after(node, "Add", [output, value])
    rewriter.replace_uses(output, total)
    add = total.producer()
    assert add is not None
    rewriter.set_input(add, 0, output)


def pads(node: ir.Node) -> bool:
    """Whether a convolution pads, or may pad."""
    auto = node.attributes.get_string("auto_pad", "NOTSET") or "NOTSET"
    if auto == "NOTSET":
        return any(node.attributes.get_ints("pads", ()) or ())
    return auto != "VALID"


def replace_constant(node: ir.Node, index: int, array: np.ndarray, hint: str, rewriter: Rewriter) -> None:
    """Gives a node another constant operand, under the old name where nobody else reads that one."""
    old = node.inputs[index] if index < len(node.inputs) else None
    if old is not None and old.is_initializer() and len(old.uses()) == 1 and not old.is_graph_output():
        rewriter.set_initializer(old, array)
        return
    rewriter.set_input(node, index, rewriter.initializer(hint, array))
    drop_unread(rewriter, [old])


def channel_vector(array: np.ndarray, channels: int, rank: int | None, axis: int) -> np.ndarray | None:
    """A constant operand as float64 `[channels]`, or None if it varies along anything but the channel axis.

    Args:
        array: the operand, broadcast against a tensor of `rank` dimensions.
        channels: size of the channel axis.
        rank: rank of that tensor; None where unknown, which allows only axis -1.
        axis: the channel axis, from the left, or -1.
    """
    if rank is None and axis != -1:
        return None
    if array.ndim > (rank if rank is not None else 1):
        return None
    if array.size == 1:
        return np.full(channels, array.reshape(()), np.float64)
    from_right = 1 if axis == -1 else rank - axis  # type: ignore[operator]
    if array.size != channels or array.ndim < from_right or array.shape[-from_right] != channels:
        return None
    return array.reshape(-1).astype(np.float64)


def _bias(node: ir.Node) -> np.ndarray | None:
    if node.op_type == "MatMul" or len(node.inputs) < 3:
        return None
    array = constant_array(node.inputs[2])
    return None if array is None else array.astype(np.float64)


def _store_with_add(
    linear: Linear, weights: np.ndarray | None, shift: np.ndarray, rewriter: Rewriter
) -> bool | str:
    vector = _fits(shift, linear.dtype)
    if vector is None:
        return f"the shift of '{linear.node.name}' would overflow {linear.dtype}"
    outcome = _store(linear, weights, np.zeros(0), rewriter)
    if outcome is True:
        add_behind(linear.node, vector, rewriter)
    return outcome


def _store(linear: Linear, weights: np.ndarray | None, bias: np.ndarray, rewriter: Rewriter) -> bool | str:
    node, dtype = linear.node, linear.dtype
    new_bias = _fits(bias, dtype)
    if weights is None or new_bias is None:
        rotten = not _is_finite(linear.array)
        return (
            f"the weights of '{node.name}' {'hold NaN or infinity' if rotten else f'would overflow {dtype}'}"
        )
    replace_constant(node, 1, weights, str(linear.weight.name), rewriter)
    has_bias = node.op_type != "MatMul" and len(node.inputs) > 2 and node.inputs[2] is not None
    if node.op_type != "MatMul" and (has_bias or np.any(new_bias)):
        old = node.inputs[2] if has_bias else None
        hint = str(old.name) if old is not None else _bias_hint(str(linear.weight.name))
        replace_constant(node, 2, new_bias, hint, rewriter)
    if node.op_type == "Gemm" and node.attributes.get_float("beta", 1.0) != 1.0:
        rewriter.set_attribute(node, "beta", 1.0)
    return True


def _bias_hint(weight_name: str) -> str:
    stem = weight_name.removesuffix("weight")
    return f"{stem}bias" if stem != weight_name else f"{weight_name}.bias"


def _fits(array: np.ndarray, dtype: np.dtype) -> np.ndarray | None:
    """The array in `dtype`, or None where a number would not be finite."""
    with np.errstate(all="ignore"):
        stored = array.astype(dtype, copy=False)
    return stored if _is_finite(stored) else None


def _product(tensor: ir.TensorProtocol, factor: np.ndarray) -> np.ndarray | None:
    """Weights times a factor (float64) in the type of the weights; None where one of them is not finite.

    Block by block, so that each is still in the cache when it is looked through; and in place where the
    weights were just read from their file.
    """
    fresh = tensor.fresh() if isinstance(tensor, FileTensor) else None
    weights = tensor.numpy() if fresh is None else fresh
    result = np.empty(weights.shape, weights.dtype) if fresh is None else fresh
    factor = _as_narrow_as(weights, factor)
    rows = max(1, _BLOCK // max(1, math.prod(weights.shape[1:])))
    per_row = factor.ndim == weights.ndim and factor.shape[0] > 1
    with np.errstate(all="ignore"):
        for start in range(0, weights.shape[0], rows):
            block = slice(start, start + rows)
            part = factor[block] if per_row else factor
            if weights.dtype.kind == "f":
                np.multiply(weights[block], part, out=result[block], casting="same_kind")
            else:
                result[block] = (weights[block].astype(np.float64) * part).astype(weights.dtype)
            if not _is_finite(result[block]):
                return None
    return result


def _as_narrow_as(weights: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """A factor of float32 weights in float32, unless it is too large or too small for that."""
    if weights.dtype != np.float32:
        return factor
    with np.errstate(all="ignore"):
        narrow = factor.astype(np.float32)
    sizes = np.abs(narrow[factor != 0])
    return narrow if sizes.size == 0 or (sizes.min() >= _TINY and np.isfinite(sizes.max())) else factor


def _is_finite(array: np.ndarray) -> bool:
    if array.dtype == np.float32:
        flat = array.reshape(-1)
        # One pass, no temporary array; the sum itself may overflow where no number does.
        if math.isfinite(np.dot(flat, flat)):
            return True
    return bool(np.isfinite(array if array.dtype.kind == "f" else array.astype(np.float64)).all())


def _along(array: np.ndarray, ndim: int) -> np.ndarray:
    """Adds trailing axes up to `ndim`."""
    return array.reshape(array.shape + (1,) * (ndim - array.ndim))
