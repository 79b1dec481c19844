"""What the kernel of recurrent layers computes, by shapes and equations alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..recurrent_activations import Activation
from .weight_form import WeightForm

Cell = Literal["LSTM", "GRU", "RNN"]
GATES: dict[str, int] = {"LSTM": 4, "GRU": 3, "RNN": 1}


@dataclass(frozen=True)
class RecurrenceSpec:
    """The part of an LSTM, GRU or RNN that depends on the state; products with the input are done before.

    With time T, directions D, batch B, hidden size H and gates G the operands are the products with their
    biases (T, B, D G H) or (B, T, D G H), recurrent weights (D, G H, H), and where they are given the bias of
    the recurrent part of GRU's new value (D, H), lengths (B), first states h and c (D, B, H) or (B, D, H) and
    peepholes (D, 3 H). The output has the axes `order`; behind the steps of its time axis it holds the last
    states that are asked for, each as one more step.
    """

    cell: Cell
    steps: int
    batch: int
    hidden: int
    backwards: tuple[bool, ...]
    """Per direction: whether it begins with the last step."""
    activations: tuple[tuple[Activation, ...], ...]
    """Per direction: the activations f, g and h of the equations of ONNX."""
    order: str = "tdbh"
    """Axes of the output, from t, d, b and h; the last is always h."""
    batch_first: bool = False
    """Whether the products have the batch in front of time."""
    states_batch_first: bool = False
    """Whether first states have the batch in front of directions."""
    clip: float = 0.0
    """Bound on what goes into the gates' activations; 0 for none."""
    coupled: bool = False
    """LSTM: whether the forget gate is what the input gate leaves."""
    reset_after: bool = False
    """GRU: whether the reset gate multiplies the product with the state instead of the state."""
    has_bias: bool = False
    has_lengths: bool = False
    has_h: bool = False
    has_c: bool = False
    has_peepholes: bool = False
    constant_weights: bool = True
    weights: WeightForm | None = None
    """How recurrent weights are stored; None for floats."""
    keeps: tuple[bool, bool, bool] = (True, False, False)
    """Which of all states h, the last h and the last c are stored."""

    @property
    def gates(self) -> int:
        """Gates of a cell."""
        return GATES[self.cell]

    @property
    def groups(self) -> int:
        """Groups of units read whose weights share a scale."""
        return 1 if self.weights is None else -(-self.hidden // self.weights.group)

    @property
    def directions(self) -> int:
        """Directions."""
        return len(self.backwards)

    @property
    def rows(self) -> int:
        """Size of the time axis of the output."""
        return self.steps * self.keeps[0] + self.keeps[1] + self.keeps[2]

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Shape of the output."""
        sizes = {"t": self.rows, "d": self.directions, "b": self.batch, "h": self.hidden}
        return tuple(sizes[axis] for axis in self.order)

    @property
    def products_shape(self) -> tuple[int, int, int]:
        """Shape of the products with the input."""
        outer = (self.batch, self.steps) if self.batch_first else (self.steps, self.batch)
        return (*outer, self.directions * self.gates * self.hidden)

    @property
    def flops(self) -> int:
        """Additions and multiplications of the products with the state."""
        return 2 * self.steps * self.batch * self.directions * self.gates * self.hidden * self.hidden
