"""Products of a weight with more than two axes, letter by letter as in Einsum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir


@dataclass(frozen=True)
class Letters:
    """How source, weight and result of a product are indexed, one letter per axis.

    Attributes:
        source, weight, result: Letters of each, in order.
        shared: Letters that all three have: one product for each of their values.
        summed: Letters that the result lacks.
        made: Letters that the source lacks.
        rows: Letters that the weight lacks.
    """

    source: str
    weight: str
    result: str
    shared: str
    summed: str
    made: str
    rows: str

    def arranged(self, array: np.ndarray, letters: str, rows: str, columns: str) -> np.ndarray:
        """[shared, rows, columns] of an array that `letters` index."""
        order = [letters.index(letter) for letter in self.shared + rows + columns]
        moved = np.transpose(array, order)
        first, second = len(self.shared), len(self.shared) + len(rows)
        parts = moved.shape[:first], moved.shape[first:second], moved.shape[second:]
        return moved.reshape([math.prod(part) for part in parts])

    def as_weight(self, change: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """A change [shared times made, summed] in the layout of the weight."""
        sizes = dict(zip(self.weight, shape, strict=True))
        inside = self.shared + self.made + self.summed
        split = change.reshape([sizes[letter] for letter in inside])
        return np.transpose(split, [inside.index(letter) for letter in self.weight])

    def as_bias(self, shift: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """A shift [shared times made] that broadcasts over the result."""
        sizes = dict(zip(self.weight, shape, strict=True))
        inside = self.shared + self.made
        split = shift.reshape([sizes[letter] for letter in inside])
        held = [letter for letter in self.result if letter in inside]
        moved = np.transpose(split, [inside.index(letter) for letter in held])
        return moved.reshape([sizes[letter] if letter in inside else 1 for letter in self.result])


def letters_of(node: ir.Node, source: ir.Value, weight: ir.Value) -> Letters | None:
    """The letters of an Einsum of two operands, or of a MatMul with a stack of matrices; None of others."""
    terms = _einsum(node, weight) if node.op_type == "Einsum" else _stack(source, weight)
    if terms is None or any(len(set(term)) != len(term) for term in terms):
        return None
    read, stored, result = terms
    if set(result) != set(read + stored) - (set(read) & set(stored) - set(result)):
        # A letter of one operand alone is summed over.
        return None
    return Letters(
        read,
        stored,
        result,
        shared="".join(letter for letter in stored if letter in read and letter in result),
        summed="".join(letter for letter in stored if letter in read and letter not in result),
        made="".join(letter for letter in stored if letter not in read),
        rows="".join(letter for letter in read if letter not in stored),
    )


def _einsum(node: ir.Node, weight: ir.Value) -> tuple[str, str, str] | None:
    equation = node.attributes.get_string("equation", "").replace(" ", "")
    left, arrow, result = equation.partition("->")
    terms = left.split(",")
    if "." in equation or not arrow or len(terms) != 2 or len(node.inputs) != 2:
        return None
    read, stored = terms if node.inputs[1] is weight else terms[::-1]
    return read, stored, result


def _stack(source: ir.Value, weight: ir.Value) -> tuple[str, str, str] | None:
    ranks = {len(value.shape or ()) for value in (source, weight)}
    if len(ranks) != 1 or max(ranks) < 3:
        return None
    batch = "".join(chr(ord("a") + index) for index in range(max(ranks) - 2))
    return f"{batch}xy", f"{batch}yz", f"{batch}xz"
