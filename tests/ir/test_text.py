"""The text form: what it shows, that it is stable, and that nothing in a file can disturb a terminal."""

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.text import node_text, summary, summary_text, tensor_text, to_text, type_text

TINY = """
<ir_version: 10, opset_import: ["" : 23]>
tiny (float[batch,2] x) => (float[batch,3] y)
<float[2,3] w = {1,2,3,4,5,6}, int64[1] axes = {-1}>
{
  [fc] h = MatMul(x, w)
  [act] y = LeakyRelu<alpha = 0.1>(h)
}
"""

BRANCHES = """
<ir_version: 10, opset_import: ["" : 23, "mine" : 1]>
branches (bool c, float[4] x) => (float[4] y)
{
  [choose] y = If(c) <
    then_branch = yes () => (float[4] t) { [pos] t = mine.leaky<slope = 0.5>(x) },
    else_branch = no () => (float[4] e) { [neg] e = Neg(x) }
  >
}
<domain: "mine", opset_import: ["" : 23]>
leaky <slope> (a) => (b) { b = LeakyRelu<alpha : float = @slope>(a) }
"""


def test_one_node_per_line():
    assert (
        to_text(ir.from_onnx_text(TINY))
        == """\
model 'tiny', opset 23
graph %tiny(%x: f32[batch,2]) -> (%y: f32[batch,3])
  weight %w: f32[2,3] [1,2,3,4,5,6]
  weight %axes: i64[1] [-1]
  %h = MatMul(%x, %w)
  %y = LeakyRelu(%h) {alpha=0.1} : f32[batch,3]
"""
    )


def test_subgraphs_are_indented_and_functions_follow():
    assert (
        to_text(ir.from_onnx_text(BRANCHES))
        == """\
model 'branches', opset 23, mine 1
graph %branches(%c: b8[], %x: f32[4]) -> (%y: f32[4])
  %y = If(%c) {else_branch={...}, then_branch={...}} : f32[4]
    then_branch() -> (%t: f32[4])
      %t = mine::leaky(%x) {slope=0.5} : f32[4]
    else_branch() -> (%e: f32[4])
      %e = Neg(%x) : f32[4]

function mine::leaky <opset 23> {slope}(%a: ?[...]) -> (%b: ?[...])
  %b = LeakyRelu(%a) {alpha=@slope}
"""
    )


def test_text_does_not_depend_on_identity():
    model = ir.from_onnx_text(BRANCHES)
    assert to_text(model) == to_text(model.clone())


def test_statistics_of_weights():
    model = ir.from_onnx_text(TINY)
    weight = model.graph.initializers["w"]
    weight.const_value = ir.tensor(np.arange(12, dtype=np.float32).reshape(4, 3), name="w")
    assert "%w: f32[4,3] (min 0, max 11, mean 5.5, std 3.452)" in to_text(model, weights=True)
    assert "mean" not in to_text(model)


def test_modules_of_a_traced_graph():
    model = ir.from_onnx_text(TINY)
    node = model.graph[0]
    node.metadata_props["pkg.torch.onnx.name_scopes"] = "['', 'layer1', 'layer1.0', 'conv']"
    assert "%h = MatMul(%x, %w)  # layer1.0\n" in to_text(model, modules=True)
    assert "layer1" not in to_text(model)


def test_attributes():
    def written(value) -> str:
        node = ir.node("Op", [], {"a": value}, name="n")
        return node_text(node, types=False).partition("{")[2][:-1]

    assert written([1, 2, 3]) == "a=[1,2,3]"
    assert written(1e-5) == "a=1e-05"
    assert written(2.0) == "a=2"
    assert written("text") == 'a="text"'
    assert written(["p", "q"]) == 'a=["p","q"]'
    assert written(ir.tensor(np.array([1.5, float("nan")], np.float32))) == "a=f32[2] [1.5,nan]"
    assert written(ir.tensor(np.zeros((3, 3), np.int8))) == "a=i8[3,3]"


def test_left_out_inputs_and_outputs():
    x = ir.Value(name="x")
    node = ir.node("Clip", [x, None, x, None], num_outputs=2, name="n")
    node.outputs[0].name, node.outputs[1].name = "y", ""
    assert node_text(node) == "%y, _ = Clip(%x, _, %x)"


@pytest.mark.parametrize("hostile", ["a\nb", "\x1b[31mred", 'quo"te', "sp ace", "\u202ereversed", "\ud800"])
def test_hostile_names_stay_on_their_line(hostile):
    model = ir.from_onnx_text(TINY)
    model.graph[0].outputs[0].name = hostile
    model.graph.name = hostile
    model.graph[1].attributes["alpha"] = ir.AttrString("alpha", hostile)
    text = to_text(model)
    assert len(text.splitlines()) == 6
    assert all(character.isprintable() for line in text.splitlines() for character in line)
    assert all(character.isprintable() for line in summary_text(model).splitlines() for character in line)


def test_types():
    value = ir.Value(name="v")
    assert type_text(value) == "?[...]"
    value.shape = ir.Shape(["n", None, 3])
    value.dtype = ir.DataType.BFLOAT16
    assert type_text(value) == "bf16[n,?,3]"


def test_strings_and_large_tensors():
    assert tensor_text(ir.tensor(["a", "b"])) == 's[2] ["a","b"]'
    assert tensor_text(ir.tensor(np.zeros((2, 5), np.float64))) == "f64[2,5]"
    assert tensor_text(None) == "?"


def test_summary():
    model = ir.from_onnx_text(TINY)
    model.graph[0].outputs[0].shape = ir.Shape(["batch", 3])
    facts = summary(model)
    assert facts["inputs"] == [{"name": "x", "type": "f32[batch,2]"}]
    assert facts["operators"] == {"LeakyRelu": 1, "MatMul": 1}
    assert (facts["parameters"], facts["parameter_bytes"]) == (6, 24)
    assert (facts["macs"], facts["macs_formula"]) == (None, "6*batch")
    assert "parameters 6 (24 bytes)\nMACs       6*batch\n" in summary_text(model)
