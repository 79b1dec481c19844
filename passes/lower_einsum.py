"""`lower-einsum`: an Einsum of one or two operands becomes a product that other passes and kernels know."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..ir.constants import constant_array
from ..ir.static import same_dim
from .attention.dimensions import Dim, dims_of, reshaped
from .base import Pass, PassContext
from .equations import Equation, parse_equation
from .registry import register
from .rewriter import Rewriter
from .rules import NoMatch, Rule


@register
@dataclass(frozen=True)
class LowerEinsum(Pass):
    """Write Einsum as MatMul, Mul, ReduceSum, Transpose and Reshape.

    With batch labels b (in both operands and the result), l and r (in one operand and the result) and c (in
    both operands, summed):

    1. Labels of one operand alone that the result lacks are summed: ReduceSum.
    2. A[b, l, c] B[b, c, r] = MatMul(A, B)[b, l, r]; several labels of a kind are one dimension meanwhile.
    3. Nothing to sum: both operands broadcast against each other, Mul.

    Constant operands are transposed and reshaped on the spot. It does not fire for three or more operands, a
    label twice in one operand, dimensions of unknown rank, or sizes not known to be the same (Einsum
    broadcasts a size of one).
    """

    name: ClassVar[str] = "lower-einsum"

    def apply(self, model: ir.Model, context: PassContext) -> None:
        """Drive the rule to a fixpoint."""
        context.rewrite(model, EinsumToProduct())


@dataclass(frozen=True)
class _Term:
    """An operand on its way: what it is, and the label of each of its dimensions."""

    value: ir.Value
    labels: tuple[str, ...]


class EinsumToProduct(Rule):
    """Einsum(A, B) = MatMul(A, B) between transposes."""

    op_types: ClassVar[tuple[str, ...]] = ("Einsum",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Read the equation, then emit the shortest of the two orders of the operands."""
        if len(node.inputs) > 2:
            return f"it has {len(node.inputs)} operands"
        values = [value for value in node.inputs if value is not None]
        ranks = [None if value.shape is None else len(value.shape) for value in values]
        equation = parse_equation(node.attributes.get_string("equation", ""), ranks)
        if isinstance(equation, str):
            return NoMatch(equation) if "rank" not in equation else equation
        sizes = _sizes(equation, values)
        if isinstance(sizes, str):
            return sizes
        lowering = _Lowering(node, rewriter, equation, sizes)
        terms = [_Term(*each) for each in zip(values, equation.operands, strict=True)]
        refusal = lowering.refusal(terms)
        if refusal is not None:
            return refusal
        if len(terms) == 2 and lowering.cost(terms[::-1]) < lowering.cost(terms):
            terms.reverse()
        terms = [lowering.summed(each, terms) for each in terms]
        result = terms[0] if len(terms) == 1 else lowering.product(*terms)
        y = lowering.ordered(result, equation.result).value
        if y is values[0]:
            (y,) = rewriter.insert_before(node, "Identity", [y])
        rewriter.replace(node, [y])
        return True


def _sizes(equation: Equation, values: list[ir.Value]) -> dict[str, tuple[Dim, ir.Value, int]] | str:
    """For each label its size, and where to read it: a value and an axis."""
    found: dict[str, tuple[Dim, ir.Value, int]] = {}
    for value, labels in zip(values, equation.operands, strict=True):
        for axis, (label, dim) in enumerate(zip(labels, dims_of(value) or (), strict=True)):
            if label in found and not same_dim(found[label][0], dim):
                return f"the sizes of '{label}' are not known to be the same"
            if label not in found or constant_array(found[label][1]) is not None:
                found[label] = (dim, value, axis)
    if any(dim == 0 for dim, _, _ in found.values()):
        return "an operand is empty"
    return found


class _Lowering:
    """What is emitted in front of one Einsum."""

    def __init__(
        self,
        node: ir.Node,
        rewriter: Rewriter,
        equation: Equation,
        sizes: dict[str, tuple[Dim, ir.Value, int]],
    ):
        self._node = node
        self._rewriter = rewriter
        self._result = equation.result
        self._sizes = sizes

    def refusal(self, terms: list[_Term]) -> str | None:
        """Why the product cannot be written: more than one dimension of a reshape would be unknown."""
        if len(terms) == 1:
            return None
        _, left, summed, right = self._kinds(terms)
        if not summed:
            return None
        unknown = [
            sum(not isinstance(self._sizes[label][0], int) for label in group)
            for group in (left, summed, right)
            if len(group) > 1
        ]
        if sum(1 for count in unknown if count) > 1:
            return "more than one group of dimensions to be joined has an unknown size"
        return None

    def cost(self, terms: list[_Term]) -> int:
        """How many transposes and reshapes of what is computed it takes with the operands in this order."""
        batch, left, summed, right = self._kinds(terms)
        if not summed:
            return 0
        if batch and len(left) > 1 and len(right) == 1:
            lead = tuple(label for label in self._result if label in (*batch, *left[:-1]))
            wanted = (*lead, left[-1], *summed), (*batch, *summed, *right), self._result
            return self._moves(terms, wanted, (*lead, left[-1], *right))
        wanted = (*batch, *left, *summed), (*batch, *summed, *right), self._result
        joined = (bool(batch) and len(left) > 1) or len(right) > 1
        return self._moves(terms, wanted, (*batch, *left, *right)) + 2 * joined

    @staticmethod
    def _moves(terms: list[_Term], wanted: tuple[tuple[str, ...], ...], made: tuple[str, ...]) -> int:
        given = (
            tuple(label for label in terms[0].labels if label in wanted[0]),
            tuple(label for label in terms[1].labels if label in wanted[1]),
            made,
        )
        fixed = (*(constant_array(term.value) is not None for term in terms), False)
        return sum(not free and a != b for a, b, free in zip(wanted, given, fixed, strict=True))

    def summed(self, term: _Term, terms: list[_Term]) -> _Term:
        """Sums over the labels that nothing else has."""
        others = {label for other in terms if other is not term for label in other.labels}
        axes = [
            axis
            for axis, label in enumerate(term.labels)
            if label not in others and label not in self._result
        ]
        if not axes:
            return term
        operand = self._rewriter.initializer(f"{self._node.name}/axes", np.array(axes, np.int64))
        (value,) = self._rewriter.insert_before(
            self._node, "ReduceSum", [term.value, operand], {"keepdims": 0}
        )
        return _Term(value, tuple(label for axis, label in enumerate(term.labels) if axis not in axes))

    def product(self, a: _Term, b: _Term) -> _Term:
        """The product, its labels in the order that costs least."""
        batch, left, summed, right = self._kinds([a, b])
        if not summed:
            return self._outer(a, b)
        if batch and len(left) > 1 and len(right) == 1:
            return self._spread(a, b)
        a = self.ordered(a, (*batch, *left, *summed))
        b = self.ordered(b, (*batch, *summed, *right))
        # A matrix on the right takes whatever stands in front of it.
        joined = [left] if batch or not left else [(label,) for label in left]
        x = self._shaped(a, [*((label,) for label in batch), *joined, summed])
        y = self._shaped(b, [*((label,) for label in batch), summed, right])
        (value,) = self._rewriter.insert_before(self._node, "MatMul", [x, y])
        labels = (*batch, *left, *right)
        if (len(left) == 1 or (not batch and left)) and len(right) == 1:
            return _Term(value, labels)
        return _Term(self._reshaped(value, labels), labels)

    def _spread(self, a: _Term, b: _Term) -> _Term:
        """The right operand without some of the batch of the left one: it has one entry for all of them."""
        batch, left, summed, right = self._kinds([a, b])
        lead = tuple(label for label in self._result if label in (*batch, *left[:-1]))
        a = self.ordered(a, (*lead, left[-1], *summed))
        b = self.ordered(b, (*batch, *summed, *right))
        x = self._shaped(a, [*((label,) for label in (*lead, left[-1])), summed])
        y = self._shaped(b, [*((label,) for label in batch), summed, right])
        (value,) = self._rewriter.insert_before(
            self._node, "MatMul", [x, self._unsqueezed(y, [i for i, each in enumerate(lead) if each in left])]
        )
        return _Term(value, (*lead, left[-1], *right))

    def ordered(self, term: _Term, labels: tuple[str, ...]) -> _Term:
        """The operand with its dimensions in another order."""
        if term.labels == labels:
            return term
        perm = [term.labels.index(label) for label in labels]
        stored = constant_array(term.value)
        if stored is not None:
            return _Term(self._stored(stored.transpose(perm)), labels)
        (value,) = self._rewriter.insert_before(self._node, "Transpose", [term.value], {"perm": perm})
        return _Term(value, labels)

    def _kinds(self, terms: list[_Term]) -> tuple[tuple[str, ...], ...]:
        """Labels of the batch, of the left and the summed ones, and of the right."""
        a, b = terms[0].labels, terms[1].labels
        return (
            tuple(label for label in self._result if label in a and label in b),
            tuple(label for label in self._result if label in a and label not in b),
            tuple(label for label in a if label in b and label not in self._result),
            tuple(label for label in self._result if label in b and label not in a),
        )

    def _outer(self, a: _Term, b: _Term) -> _Term:
        operands = []
        for term in (a, b):
            term = self.ordered(term, tuple(label for label in self._result if label in term.labels))
            axes = [axis for axis, label in enumerate(self._result) if label not in term.labels]
            operands.append(self._unsqueezed(term.value, axes))
        (value,) = self._rewriter.insert_before(self._node, "Mul", operands)
        return _Term(value, self._result)

    def _unsqueezed(self, value: ir.Value, axes: list[int]) -> ir.Value:
        """A value with dimensions of one at `axes`; those in front of all others need no mention."""
        if axes == list(range(len(axes))):
            return value
        stored = constant_array(value)
        if stored is not None:
            return self._stored(np.expand_dims(stored, tuple(axes)))
        operand = self._rewriter.initializer(f"{self._node.name}/axes", np.array(axes, np.int64))
        return self._rewriter.insert_before(self._node, "Unsqueeze", [value, operand])[0]

    def _shaped(self, term: _Term, groups: list[tuple[str, ...]]) -> ir.Value:
        """The operand with the labels of each group as one dimension."""
        if all(len(group) == 1 for group in groups):
            return term.value
        stored = constant_array(term.value)
        if stored is not None:
            sizes = dict(zip(term.labels, stored.shape, strict=True))
            return self._stored(stored.reshape([math.prod(sizes[each] for each in g) for g in groups]))
        return reshaped(self._rewriter, self._node, term.value, [self._entry(group) for group in groups])

    def _reshaped(self, value: ir.Value, labels: tuple[str, ...]) -> ir.Value:
        return reshaped(self._rewriter, self._node, value, [self._entry((label,)) for label in labels])

    def _entry(self, group: tuple[str, ...]) -> int | tuple[ir.Value, int]:
        dims = [self._sizes[label][0] for label in group]
        known = [dim for dim in dims if isinstance(dim, int)]
        if len(known) == len(dims):
            return math.prod(known)
        return self._sizes[group[0]][1:] if len(group) == 1 else -1

    def _stored(self, array: np.ndarray) -> ir.Value:
        return self._rewriter.constant_before(
            self._node, f"{self._node.name}/operand", np.ascontiguousarray(array).reshape(array.shape)
        )
