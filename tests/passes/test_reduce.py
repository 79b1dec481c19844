"""Reduction: the smallest slice and the shortest pipeline that still fail, in one file that replays."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.errors import ToolError
from graphwright.ir.reference import run_reference
from graphwright.ir.verify import verify
from graphwright.passes.base import Pass
from graphwright.passes.pipeline import parse_pipeline
from graphwright.passes.reduce import observe, reduce, replay
from graphwright.passes.registry import register
from graphwright.passes.slicing import slice_model


def model_of(text: str) -> ir.Model:
    model = ir.from_onnx_text('<ir_version: 10, opset_import: ["" : 23]>\n' + text)
    for i, node in enumerate(model.graph):
        node.name = f"{node.op_type}_{i}"
    return model


NET = """
g (float[2,3] x) => (float[2,4] y, float[2,3] z) <float[3,4] w = {1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0}> {
    a = Relu(x)
    b = Exp(a)
    c = Tanh(b)
    d = MatMul(c, w)
    e = Sigmoid(d)
    f = Identity(e)
    y = Neg(f)
    z = Abs(c)
}
"""


@register
@dataclass(frozen=True)
class TanhToRelu(Pass):
    """Replaces Tanh by Relu, which is wrong."""

    name: ClassVar[str] = "test-tanh-to-relu"

    def apply(self, model, context):
        rewriter = context.rewriter(model)
        for node in list(model.graph):
            if node.op_type == "Tanh":
                rewriter.replace(node, rewriter.insert_before(node, "Relu", [node.inputs[0]]))


@register
@dataclass(frozen=True)
class NoMatMul(Pass):
    """Raises when there is a MatMul."""

    name: ClassVar[str] = "test-no-matmul"

    def apply(self, model, context):
        for node in model.graph:
            if node.op_type == "MatMul":
                raise RuntimeError("cannot stand a MatMul")


def test_slices_cut_anywhere_are_valid():
    from graphwright.passes.manager import PassManager

    model, _ = PassManager("").run(model_of(NET))
    names = [node.name for node in model.graph]
    x = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
    values = {"x": x}
    b = np.exp(np.maximum(x, 0))
    values["b"] = b
    for mask in range(1, 1 << len(names)):
        piece = slice_model(model, {name for i, name in enumerate(names) if mask >> i & 1})
        if piece is not None:
            verify(piece)
    piece = slice_model(model, {"Tanh_2", "Abs_7"})
    assert [value.name for value in piece.graph.inputs] == ["b"]
    assert [value.name for value in piece.graph.outputs] == ["c", "z"]
    assert not piece.graph.initializers
    np.testing.assert_allclose(run_reference(piece, {"b": b})["z"], np.abs(np.tanh(b)), rtol=1e-6)


PIPELINE = "eliminate-dead,test-tanh-to-relu,eliminate-identity"


def test_wrong_numbers_are_reduced_to_the_guilty_node():
    found = reduce(model_of(NET), PIPELINE)
    assert [node.op_type for node in found.model.graph] == ["Tanh"]
    assert found.pipeline == "test-tanh-to-relu"
    assert found.failure.kind == "bound"


def test_a_crash_is_reduced_to_what_it_needs():
    found = reduce(model_of(NET), "simplify,test-no-matmul")
    assert [node.op_type for node in found.model.graph] == ["MatMul"]
    assert found.pipeline == "test-no-matmul"
    assert "cannot stand a MatMul" in found.failure.message


def test_the_file_replays(tmp_path):
    reduce(model_of(NET), PIPELINE).save(tmp_path / "repro.onnx")
    assert replay(tmp_path / "repro.onnx").kind == "bound"


def test_what_does_not_fail_cannot_be_reduced():
    assert observe(model_of(NET), "simplify") is None
    with pytest.raises(ToolError, match="does not fail"):
        reduce(model_of(NET), parse_pipeline("simplify"))


def test_a_plain_model_is_no_reproducer(tmp_path):
    from graphwright.ir.save import save

    save(model_of(NET), tmp_path / "plain.onnx")
    with pytest.raises(ToolError, match="is not a reproducer"):
        replay(tmp_path / "plain.onnx")
