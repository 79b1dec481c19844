"""Reduction: the smallest slice and the shortest pipeline that still fail, in one file that replays."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.bodies import all_graphs
from graphwright.ir.errors import PassCrash, ToolError
from graphwright.ir.load import load
from graphwright.ir.reference import run_reference
from graphwright.ir.verify import verify
from graphwright.passes.base import Pass
from graphwright.passes.optimize import optimize
from graphwright.passes.pipeline import parse_pipeline
from graphwright.passes.quantization.calibration import as_calibration
from graphwright.passes.reduce import observe, reduce, replay
from graphwright.passes.registry import register
from graphwright.passes.reproducer import INPUTS_KEY, PIPELINE_KEY, unpacked
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


@register
@dataclass(frozen=True)
class AbsToRelu(Pass):
    """Replaces Abs by Relu everywhere, which is right only for what is not negative."""

    name: ClassVar[str] = "test-abs-to-relu"

    def apply(self, model, context):
        rewriter = context.rewriter(model)
        for graph in list(all_graphs(model)):
            for node in list(graph):
                if node.op_type == "Abs":
                    rewriter.replace(node, rewriter.insert_before(node, "Relu", [node.inputs[0]]))


def test_reduction_steps_into_bodies():
    model = model_of("""
        g (bool c, float[2,3] x) => (float[2,3] y) {
            a = Exp(x)
            b = If (c) <
                then_branch = then () => (float[2,3] t) { t0 = Sigmoid(a)
                    t1 = Neg(t0)
                    t2 = Abs(t1)
                    t = Tanh(t2) },
                else_branch = other () => (float[2,3] e) { e = Neg(a) }
            >
            y = Relu(b)
        }""")
    for graph in model.graphs():
        for i, node in enumerate(graph):
            node.name = f"{graph.name}/{node.op_type}_{i}"
    found = reduce(model, "eliminate-dead,test-abs-to-relu")
    assert [node.op_type for node in found.model.graph] == ["Abs"]
    verify(found.model)
    assert found.failure.kind == "bound"


def test_a_slice_is_fed_what_the_model_computed_there(tmp_path):
    """Random inputs have both signs, so the wrong rule shows; the smallest slice needs no data of its own."""
    model = model_of("g (float[2,3] x) => (float[2,3] y) { a = Neg(x)\n b = Abs(a)\n y = Exp(b) }")
    found = reduce(model, "test-abs-to-relu")
    assert [node.op_type for node in found.model.graph] == ["Abs"] and found.inputs is None
    # Here only one input of the user's shows it, so slices take what became of it, and the file carries it.
    model = model_of("""
        g (float[2,3] x) => (float[2,3] y) <float k = {100.0}> {
            p = Add(x, k)
            q = Exp(p)
            r = Log(q)
            b = Abs(r)
            y = Neg(b)
        }""")
    feeds = {"x": np.full((2, 3), -150.0, np.float32)}
    own = {"x": np.full((2, 3), -101.0, np.float32)}
    assert observe(model, "test-abs-to-relu", inputs=[feeds]) is not None
    found = reduce(model, "test-abs-to-relu", inputs=[own])
    assert [node.op_type for node in found.model.graph] == ["Abs"]
    found.save(tmp_path / "own.onnx")
    (carried,) = unpacked(load(tmp_path / "own.onnx").metadata_props[INPUTS_KEY], "own.onnx")
    np.testing.assert_allclose(carried["r"], np.full((2, 3), -1), rtol=1e-5)
    assert replay(tmp_path / "own.onnx").kind == "bound"


@register
@dataclass(frozen=True)
class NeedsData(Pass):
    """Raises where the calibration data of the first input has its largest number at 7."""

    name: ClassVar[str] = "test-needs-data"
    lossless: ClassVar[bool] = False

    def apply(self, model, context):
        batches = list(as_calibration(context.calibration).batches(model))
        if any(array.max() == 7 for feeds in batches for array in feeds.values()):
            raise RuntimeError("seven")


def test_calibration_data_travels_with_the_file(tmp_path):
    model = model_of("g (float[2] x) => (float[2] y) { a = Neg(x)\n b = Neg(a)\n y = Identity(b) }")
    data = [{"x": np.array([1, 7], np.float32)}, {"x": np.array([0, 1], np.float32)}]
    found = reduce(model, "eliminate-identity,test-needs-data", calibration=data)
    assert len(found.model.graph) == 1
    found.save(tmp_path / "data.onnx")
    assert "seven" in replay(tmp_path / "data.onnx").message
    with pytest.raises(PassCrash, match="seven") as caught:
        optimize(model, "test-needs-data", calibration=data, reproducer=tmp_path)
    file = str(caught.value).rpartition("reproducer: ")[2]
    assert "seven" in replay(file).message


def test_damaged_data_is_refused(tmp_path):
    from graphwright.ir.save import save

    model = model_of(NET)
    model.metadata_props.update({PIPELINE_KEY: "eliminate-dead", INPUTS_KEY: "no base 64"})
    save(model, tmp_path / "damaged.onnx")
    with pytest.raises(ToolError, match="carries data that cannot be read"):
        replay(tmp_path / "damaged.onnx")
