"""What numpy computes must be what the reference computes, bit for bit; what it cannot it leaves alone."""

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir import numpy_operators
from graphwright.ir.constants import evaluate_values
from graphwright.ir.numpy_operators import evaluate
from graphwright.ir.tensors import tensor_of
from hypothesis import given, settings
from hypothesis import strategies as st

RNG = np.random.default_rng(0)
F = RNG.standard_normal((2, 3, 4)).astype(np.float32)
I = np.arange(-12, 12, dtype=np.int64).reshape(2, 3, 4)  # noqa: E741
ROW = np.array([3, -7, 5, 2], np.int64)
FLAGS = np.array([True, False, True, True])


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def make(op_type: str, arrays: list[np.ndarray | None], **attributes) -> ir.Node:
    inputs = [
        None if a is None else ir.Value(name=f"x{i}", const_value=tensor_of(a, f"x{i}"))
        for i, a in enumerate(arrays)
    ]
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 23}, name="g")
    for value in inputs:
        if value is not None:
            graph.register_initializer(value)
    node = ir.node(op_type, inputs, attributes, name="n")
    node.outputs[0].name = "y"
    graph.append(node)
    return node


CASES = [
    ("Identity", [F], {}),
    ("Shape", [F], {}),
    ("Shape", [F], {"start": 1, "end": -1}),
    ("Gather", [F, ints(1, -1)], {"axis": 1}),
    ("Gather", [ROW, np.array(2, np.int64)], {}),
    ("Concat", [I, I[:, :1]], {"axis": 1}),
    ("Concat", [F, F], {"axis": -1}),
    ("Unsqueeze", [F, ints(-1, 0)], {}),
    ("Squeeze", [F[:1, :, :1], ints(0, -1)], {}),
    ("Squeeze", [F[:1]], {}),
    ("Reshape", [F, ints(0, -1)], {}),
    ("Reshape", [F, ints(4, 6)], {}),
    ("Reshape", [F, ints(-1, 24)], {"allowzero": 1}),
    ("Reshape", [F[:0], ints(3, 0, 7)], {"allowzero": 1}),
    ("GatherND", [F, np.array([[0, 1], [-1, -2]], np.int64)], {}),
    ("GatherND", [I, np.array([[[1], [0]]], np.int64)], {}),
    ("GatherND", [ROW, ints(-1)], {}),
    ("Mod", [I, ROW], {}),
    ("Mod", [I, ROW], {"fmod": 1}),
    ("Transpose", [F], {}),
    ("Transpose", [F], {"perm": [1, 2, 0]}),
    ("Slice", [F, ints(1, -3), ints(9, -1), ints(1, 2)], {}),
    ("Slice", [ROW, ints(0), ints(2**62), ints(0), ints(2)], {}),
    ("Slice", [ROW, ints(-100), ints(3)], {}),
    ("Cast", [I], {"to": 1}),
    ("Cast", [I], {"to": 9}),
    ("Cast", [FLAGS], {"to": 7}),
    ("Where", [FLAGS, ROW, ints(9)], {}),
    ("Expand", [ROW, ints(2, 1)], {}),
    ("Range", [np.array(7), np.array(-5), np.array(-3)], {}),
    ("ConstantOfShape", [ints(2, 3)], {}),
    ("ConstantOfShape", [ints(2)], {"value": ir.tensor(np.array([5], np.int64))}),
    ("Tile", [ROW, ints(3)], {}),
    ("Not", [FLAGS], {}),
    ("ReduceProd", [ROW, ints(0)], {"keepdims": 0}),
    ("ReduceProd", [ROW], {}),
    ("Neg", [ROW], {}),
    ("Neg", [F], {}),
    ("Neg", [np.array(3, np.int64)], {}),
    ("Not", [np.array(True)], {}),
    *[(name, [F, F[::-1].copy() + np.float32(0.1)], {}) for name in ("Add", "Sub", "Mul", "Div")],
    *[(name, [I, ROW], {}) for name in ("Add", "Sub", "Mul", "Div", "Max", "Min")],
    *[(name, [I, ROW], {}) for name in ("Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual")],
    *[(name, [FLAGS, ~FLAGS], {}) for name in ("And", "Or")],
    ("Mul", [ints(2**62, -5), ints(3, 7)], {}),
    ("Div", [F, np.zeros(4, np.float32)], {}),
]


@pytest.fixture
def reference(monkeypatch):
    """The reference's answer for a node."""

    def answer(node: ir.Node) -> np.ndarray:
        with monkeypatch.context() as patch:
            patch.setattr(numpy_operators, "_OPERATORS", {})
            return evaluate_values(None, list(node.outputs))[0]

    return answer


@pytest.mark.parametrize(("op_type", "arrays", "attributes"), CASES)
def test_as_the_reference(reference, op_type, arrays, attributes):
    node = make(op_type, arrays, **attributes)
    found = evaluate(node, arrays)
    expected = reference(node)
    assert isinstance(found, np.ndarray)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(found, expected)


@settings(max_examples=30, deadline=None)
@given(
    a=st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=6),
    b=st.integers(-9, 9).filter(bool),
)
def test_integers_are_divided_towards_zero(a, b):
    node = make("Div", [np.array(a, np.int64), ints(b)])
    found = evaluate(node, [np.array(a, np.int64), ints(b)])
    assert found.tolist() == [int(abs(x) // abs(b)) * (1 if (x < 0) == (b < 0) else -1) for x in a]


@pytest.mark.parametrize(
    ("op_type", "arrays", "attributes"),
    [
        ("Gather", [ROW, ints(9)], {}),
        ("Div", [ROW, ints(0, 1, 1, 1)], {}),
        ("Slice", [ROW, ints(3), ints(0), ints(0), ints(-1)], {}),
        ("Reshape", [F, ints(5, 5)], {}),
        ("Reshape", [F[:0], ints(0, -1)], {"allowzero": 1}),
        ("Mod", [ROW, ints(0, 1, 1, 1)], {}),
        ("Mod", [F, F], {"fmod": 1}),
        ("GatherND", [ROW, ints(4)], {}),
        ("GatherND", [F, ints(0, 1)[:, None]], {"batch_dims": 1}),
        ("GatherND", [np.zeros((1, 1 << 16), np.float32), np.zeros((2, 1), np.int64)], {}),
        ("Cast", [F], {"to": 7}),
        ("Cast", [ROW], {"to": 10}),
        ("Add", [F.astype(np.float16), F.astype(np.float16)], {}),
        ("ConstantOfShape", [ints(1 << 20, 1 << 20)], {}),
        ("Tile", [F, ints(1 << 10, 1 << 10, 1)], {}),
        ("Exp", [F], {}),
    ],
)
def test_what_is_left_to_the_reference(op_type, arrays, attributes):
    assert evaluate(make(op_type, arrays, **attributes), arrays) is None


def test_large_operands_are_left_to_the_reference_unless_they_are_only_viewed():
    large = np.ones((300, 300), np.float32)
    assert evaluate(make("Add", [large, large]), [large, large]) is None
    transposed = evaluate(make("Transpose", [large]), [large])
    assert transposed is not None and np.shares_memory(transposed, large)


def test_numpy_and_the_reference_take_turns():
    """Exp stands between operators that numpy computes."""
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 23]>
        g () => (float[2] y) <float[2] a = {1.0, 2.0}, int64[1] zero = {0}> {
            s = Add (a, a)
            e = Exp (s)
            y = Mul (e, s)
        }"""
    )
    values = {value.name: value for node in model.graph for value in node.outputs}
    s, e, y = evaluate_values(model, [values["s"], values["e"], values["y"]])
    assert s.tolist() == [2, 4]
    np.testing.assert_allclose(e, np.exp(s), rtol=1e-6)
    np.testing.assert_array_equal(y, e * s)
