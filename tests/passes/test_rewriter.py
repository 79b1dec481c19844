"""The rewriter keeps names unique, outputs named and provenance recorded."""

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.errors import PassError
from graphwright.ir.reference import run_reference
from graphwright.ir.verify import verify
from graphwright.passes.rewriter import FROM_KEY, PASS_KEY, Rewriter


def model_of(text: str) -> ir.Model:
    model = ir.from_onnx_text('<ir_version: 10, opset_import: ["" : 23]>\n' + text)
    for i, node in enumerate(model.graph):
        node.name = f"{node.op_type}_{i}"
    return model


CHAIN = """
g (float[2,3] x) => (float[2,3] y) {
    a = Relu(x)
    y = Neg(a)
}
"""


def test_a_replaced_graph_output_keeps_its_name():
    model = model_of(CHAIN)
    relu, neg = model.graph
    rewriter = Rewriter(model, origin="some-pass")
    (new,) = rewriter.insert_before(neg, "Abs", [relu.outputs[0]])
    rewriter.replace(neg, [new])
    verify(model)
    assert [node.op_type for node in model.graph] == ["Relu", "Abs"]
    assert [output.name for output in model.graph.outputs] == ["y"]
    assert list(model.graph.outputs[0].shape) == [2, 3]
    x = np.array([[1, -2, 3], [-4, 5, -6]], np.float32)
    np.testing.assert_array_equal(run_reference(model, {"x": x})["y"], np.maximum(x, 0))


def test_an_output_replaced_by_a_graph_input_goes_through_identity():
    model = model_of("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    (relu,) = model.graph
    rewriter = Rewriter(model)
    rewriter.replace(relu, [model.graph.inputs[0]])
    verify(model)
    assert [node.op_type for node in model.graph] == ["Identity"]
    assert model.graph.outputs[0].name == "y"


def test_two_outputs_can_become_the_same_value():
    model = model_of("g (float[2] x) => (float[2] y, float[2] z) { y = Relu(x)\n z = Relu(x) }")
    first, second = model.graph
    Rewriter(model).replace(second, [first.outputs[0]])
    verify(model)
    assert [output.name for output in model.graph.outputs] == ["y", "z"]
    result = run_reference(model, {"x": np.array([-1, 2], np.float32)})
    np.testing.assert_array_equal(result["y"], result["z"])


def test_new_nodes_carry_pass_sources_and_module_path():
    model = model_of(CHAIN)
    relu, neg = model.graph
    relu.metadata_props["pkg.torch.onnx.name_scopes"] = "['', 'block.relu', 'relu']"
    rewriter = Rewriter(model, origin="some-pass")
    (first,) = rewriter.insert_before(relu, "Abs", [model.graph.inputs[0]])
    made = first.producer()
    assert made.metadata_props[PASS_KEY] == "some-pass"
    assert made.metadata_props[FROM_KEY] == "Relu_0"
    assert made.metadata_props["pkg.torch.onnx.name_scopes"] == "['', 'block.relu', 'relu']"
    (second,) = rewriter.insert_before(neg, "Abs", [relu.outputs[0]])
    rewriter.replace(relu, [first])
    assert second.producer().metadata_props[FROM_KEY] == "Neg_1"


def test_names_never_collide():
    model = model_of(CHAIN)
    rewriter = Rewriter(model)
    names = [rewriter.initializer("x", np.zeros(1, np.float32)).name for _ in range(3)]
    assert names == ["x_1", "x_2", "x_3"]
    relu = model.graph[0]
    made = [rewriter.insert_before(relu, "Abs", [relu.inputs[0]])[0] for _ in range(3)]
    assert len({value.name for value in made} | {value.producer().name for value in made}) == 6
    verify(model)


def test_a_tensor_shared_with_another_graph_is_not_renamed():
    model = model_of(CHAIN)
    tensor = ir.tensor(np.ones(2, np.float32), name="original")
    value = Rewriter(model).initializer("copy", tensor)
    assert (value.name, value.const_value.name, tensor.name) == ("copy", "copy", "original")


def test_setting_an_initializer_updates_shape_and_type():
    model = model_of("g (float[2] x) => (float[2] y) <float[2] w = {1.0, 2.0}> { y = Add(x, w) }")
    w = model.graph.initializers["w"]
    Rewriter(model).set_initializer(w, np.zeros((1,), np.float64))
    assert list(w.shape) == [1]
    assert w.dtype == ir.DataType.DOUBLE


def test_what_is_in_use_cannot_be_erased():
    model = model_of(CHAIN)
    relu, neg = model.graph
    rewriter = Rewriter(model)
    with pytest.raises(PassError, match="'Relu_0'.*'a' is in use"):
        rewriter.erase(relu)
    with pytest.raises(PassError, match="'y' is in use"):
        rewriter.erase(neg)
    assert rewriter.changes == 0


def test_attributes_and_optional_inputs_can_be_set():
    model = model_of("g (float[4] x) => (float[4] y) { y = Clip(x) }")
    (clip,) = model.graph
    rewriter = Rewriter(model)
    rewriter.set_input(clip, 2, rewriter.initializer("high", np.array(1, np.float32)))
    verify(model)
    assert [value.name if value else None for value in clip.inputs] == ["x", None, "high"]
    result = run_reference(model, {"x": np.array([-2, 0, 1, 2], np.float32)})["y"]
    np.testing.assert_array_equal(result, [-2, 0, 1, 1])
