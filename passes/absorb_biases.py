"""High-bias absorption: what always comes through a ReLU moves into the biases of the layers behind.

    Relu(W1 x + b1) -> W2 y + b2   =   Relu(W1 x + b1 - c) -> W2 y + b2 + W2 c       where W1 x + b1 >= c >= 0

Equalization may leave channels whose biases are far larger than what varies: their activations fill the upper
end of a grid that has to hold zero, too. A ReLU hands on such a channel as it is, so that c may be taken out
in front of it and put back behind it (Nagel et al., "Data-Free Quantization Through Weight Equalization and
Bias Correction", 2019, section 4.1.3). With c = max(0, mean - 3 deviations) the paper loses one number in a
thousand; here, mean and deviation are measured on data, as batch norms are folded by then, and where the
smallest number that was seen is larger still it is taken, at no loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..ir.constants import constant_array
from ..ir.errors import PassError
from ..ir.static import input_of, only_reader
from .base import PassContext
from .bias_correction import add_to_bias, bias_place
from .quantization.repair.channel_statistics import ChannelStatistics, channel_statistics
from .quantization.repair.passing import pass_through
from .quantization.repair.places import Place
from .quantization.repair.roots import Root, root_of
from .quantization.repair.sampled import SampledPass
from .quantization.repair.scaling import Edit, is_reader, weight_edit
from .registry import register

_DEFAULT = ("", "ai.onnx")
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# Behind these a constant that was added to a channel is still the same constant.
_KEEP_CONSTANTS = (
    *("MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool", "ReduceMean", "ReduceMax", "ReduceMin"),
    *("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Dropout"),
)


@dataclass
class _Chain:
    """A layer, what goes into its ReLU, and the weights that read what comes out."""

    root: Root
    value: ir.Value
    relu: ir.Node
    readers: list[Edit]


@register
@dataclass(frozen=True)
class AbsorbBiases(SampledPass):
    """Move what always comes through a ReLU into the biases behind it (high-bias absorption; needs data).

    For behind `equalize` and before `insert-qdq`. Between the ReLU and the layers that read it may stand
    pooling, means, reshapes and transposes. Layers that pad with zeros, or are transposed, cannot take a
    constant up; activations with an upper bound (ReLU6) need `relax-clips` first. Numbers below the constant,
    one in a thousand where channels are normally distributed, are cut. Lossy.
    """

    name: ClassVar[str] = "absorb-biases"
    lossless: ClassVar[bool] = False

    deviations: float = 3.0
    """Standard deviations below a channel's mean that its constant lies."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.deviations > 0.0:
            raise PassError(f"{self.name}: option 'deviations' must be above 0, not {self.deviations}")

    def apply(self, model: ir.Model, context: PassContext) -> None:
        """Find the chains, measure what goes into their ReLUs, and move constants.

        Raises:
            PassError: There is no calibration data, or it does not suit the model.
        """
        self.require_data(context, "measures activations")
        chains = []
        for node in model.graph:
            if node.op_type not in _LAYERS or node.domain not in _DEFAULT or not self.selects(node):
                continue
            chain = self._chain(node)
            if isinstance(chain, _Chain):
                chains.append(chain)
            elif chain is not None:
                context.leave(node, chain)
        if not chains:
            return
        places = [(chain.value, _place(chain)) for chain in chains]
        statistics = channel_statistics(model, places, self.batches(model, context))
        rewriter = context.rewriter(model)
        for chain in chains:
            node = chain.root.node
            constants = self._constants(statistics[str(chain.value.name)])
            if constants is None:
                context.leave(node, "its results are not finite")
                continue
            if not constants.any():
                context.leave(node, "no channel stays above zero")
                continue
            for edit in chain.readers:
                add_to_bias(edit.operand[0], _shift(edit, constants), rewriter)
            add_to_bias(node, -constants, rewriter)
            context.count("layers with absorbed biases")
            context.count("channels with absorbed biases", int((constants > 0.0).sum()))

    def _constants(self, found: ChannelStatistics) -> np.ndarray | None:
        """The constant of every channel, float64 `[channels]`; None where a number is not finite."""
        if not found.finite:
            return None
        deviation = np.sqrt(np.maximum(found.square - np.square(found.mean), 0.0))
        return np.maximum(np.maximum(found.mean - self.deviations * deviation, found.low), 0.0)

    def _chain(self, node: ir.Node) -> _Chain | str | None:
        """What a layer's constants would touch, why they cannot be moved, or None where no ReLU follows."""
        place = bias_place(node)
        value = node.outputs[0] if place is None or place[0] is node else place[0].outputs[0]
        users = value.consumers()
        if not any(user.op_type == "Relu" and user.domain in _DEFAULT for user in users):
            return None
        if not only_reader(value):
            return "something else reads it in front of the Relu"
        root = root_of(node)
        if not isinstance(root, Root):
            return root or "its weight is not a constant"
        problem = _bias_problem(node, root.channels)
        if problem is not None:
            return problem
        if value.shape is None:
            return "its shape is not known"
        (relu,) = users
        chain = _Chain(root, value, relu, [])
        problem = self._follow(chain)
        return problem if problem is not None else chain if chain.readers else None

    def _follow(self, chain: _Chain) -> str | None:
        """Collect the readers of a chain; returns why there is a way that no constant can go, or None."""
        behind = chain.relu.outputs[0]
        scaled = {behind: _place(chain)}
        pending = [behind]
        while pending:
            value = pending.pop()
            if value.is_graph_output():
                return f"it reaches the output '{value.name}' of the model"
            for user, index in value.uses():
                if user.graph is not chain.relu.graph:
                    return "it is read inside a body"
                if is_reader(user) and user.domain in _DEFAULT:
                    edit = self._reader(user, index, scaled[value])
                    if isinstance(edit, str):
                        return edit
                    chain.readers.append(edit)
                    continue
                if user.op_type not in _KEEP_CONSTANTS or user.domain not in _DEFAULT or _mixes_zeros(user):
                    return f"{user.op_type} '{user.name}' does not hand a constant on"
                passed = pass_through(user, [index], scaled)
                if isinstance(passed, str):
                    return passed
                scaled.update(passed[0])
                pending.extend(passed[0])
        return None

    def _reader(self, node: ir.Node, index: int, place: Place) -> Edit | str:
        if not self.selects(node):
            return f"'{node.name}' behind it is not selected"
        if node.op_type == "ConvTranspose" or _mixes_zeros(node):
            return f"{node.op_type} '{node.name}' adds zeros to what it reads"
        edit = weight_edit(node, index, place)
        if isinstance(edit, str):
            return edit
        shape = node.inputs[1].shape  # type: ignore[union-attr]
        if node.op_type == "MatMul" and (shape is None or len(shape) != 2):
            return f"the weights of MatMul '{node.name}' are not a matrix"
        problem = _bias_problem(node, _outputs(node))
        return f"'{node.name}' behind it: {problem}" if problem is not None else edit


def _place(chain: _Chain) -> Place:
    # An addition behind a product may have more axes than the product.
    more = len(chain.value.shape or ()) - len(chain.root.value.shape or ())
    return Place((chain.root.axis + more,), (chain.root.channels,))


def _mixes_zeros(node: ir.Node) -> bool:
    """Whether a convolution or an average sees padding."""
    if node.op_type not in ("Conv", "AveragePool"):
        return False
    if node.op_type == "AveragePool" and not node.attributes.get_int("count_include_pad", 0):
        return False
    if node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return True
    return any(node.attributes.get_ints("pads", [])) or node.attributes.get_int("ceil_mode", 0) != 0


def _outputs(node: ir.Node) -> int:
    shape = node.inputs[1].shape  # type: ignore[union-attr]
    assert shape is not None
    return int(shape[_output_axis(node)])  # type: ignore[arg-type]


def _output_axis(node: ir.Node) -> int:
    if node.op_type == "Gemm":
        return 1 - node.attributes.get_int("transB", 0)
    return 0 if node.op_type == "Conv" else 1


def _shift(edit: Edit, constants: np.ndarray) -> np.ndarray:
    """W c, float64 `[outputs]`."""
    node = edit.operand[0]
    weight = constant_array(node.inputs[1])
    assert weight is not None
    products = edit.scaled(weight.astype(np.float64), constants)
    others = tuple(axis for axis in range(products.ndim) if axis != _output_axis(node))
    factor = node.attributes.get_float("alpha", 1.0) if node.op_type == "Gemm" else 1.0
    return products.sum(axis=others) * factor


def _bias_problem(node: ir.Node, outputs: int) -> str | None:
    """Why nothing can be added to the bias of a float layer, or None."""
    place = bias_place(node)
    if place is None:
        return "it has no bias, and no addition behind it"
    reader, index = place
    bias = input_of(reader, index)
    if bias is None:
        return None
    array = constant_array(bias)
    if array is None:
        return "its bias is not a constant"
    if array.size not in (1, outputs) or (array.ndim and array.shape[-1] != array.size):
        return "its bias is not one number per channel"
    if reader is node and node.attributes.get_float("beta", 1.0) == 0.0:
        return "its bias counts nothing"
    return None
