"""Old models that are told the new opset instead of being converted: they mean what they meant."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from graphwright.ir import carry_over as module
from graphwright.ir import upgrade
from graphwright.ir.carry_over import _AXES_TO_INPUT, SAME_SINCE, carry_over
from graphwright.ir.compare import compare
from graphwright.ir.inputs import random_inputs
from graphwright.ir.load import load
from graphwright.ir.opset import CANONICAL_OPSET
from graphwright.ir.reference import run_reference
from graphwright.ir.text import to_text

# What the standard wrote down later, or lets a node say again: not a change of meaning.
_SAID_LATER = {
    ("BatchNormalization", "momentum"),
    ("BatchNormalization", "spatial"),
    ("BatchNormalization", "is_test"),
}


@pytest.mark.parametrize("op_type", sorted(SAME_SINCE))
def test_the_standard_only_added_to_it(op_type):
    """Inputs keep their places, attributes their defaults; one that went makes a node be converted."""
    newest = onnx.defs.get_schema(op_type, CANONICAL_OPSET, "")
    for opset in range(7, CANONICAL_OPSET):
        try:
            schema = onnx.defs.get_schema(op_type, opset, "")
        except onnx.defs.SchemaError:
            continue
        if schema.since_version < SAME_SINCE[op_type] or module._how(op_type, opset, CANONICAL_OPSET) is None:
            continue
        assert len(newest.inputs) >= len(schema.inputs)
        assert newest.min_input <= schema.min_input or op_type in _AXES_TO_INPUT
        assert newest.max_output >= schema.min_output
        for name, attribute in schema.attributes.items():
            if name in newest.attributes and (op_type, name) not in _SAID_LATER:
                now = newest.attributes[name]
                assert (now.default_value, now.type) == (attribute.default_value, attribute.type), (
                    opset,
                    name,
                )
        for name, attribute in newest.attributes.items():
            assert not attribute.required or name in schema.attributes, (opset, name)


CARRIED = [
    (9, "agraph (float[2,3] x) => (float[1,2,3] y) { y = Unsqueeze<axes = [0]>(x) }"),
    (11, "agraph (float[2,3] x) => (float[2,3] y) "
         "{ a = Unsqueeze<axes = [0, 3]>(x)\n b = Squeeze<axes = [0, 3]>(a)\n c = Unsqueeze<axes = [0]>(b)\n y = Squeeze(c) }"),
    (9, "agraph (float[2,3,4] x) => (float[2,1,1] y) { y = ReduceSum<axes = [1, 2]>(x) }"),
    (13, "agraph (float[2,3,4] x) => (float[2,4] y) { y = ReduceL2<axes = [-2], keepdims = 0>(x) }"),
    (9, "agraph (float[2,3] x) => (float[2,3] y) { y, mask = Dropout<ratio = 0.5>(x) }"),
    (9, "agraph (float[2,3] x, float[3,5] w, float[5] b) => (float[N,M] y) { a = Gemm(x, w, b)\n y = Softmax(a) }"),
    (9, "agraph (float[1,2,4,4] x) => (float[1,2,1,1] y) { a = GlobalAveragePool(x)\n y = Softmax(a) }"),
    (12, "agraph (float[2,3,4] x) => (float[2,3,4] y) { y = LogSoftmax<axis = 0>(x) }"),
    (9, "agraph (float[2,3,4] x) => (float[2,3,4] y) { y = Hardmax<axis = -1>(x) }"),
    (9, "agraph (float[1,3,4,4] x) => (float[1,3,4,4] y) { y = LRN<size = 3, alpha = 0.1, beta = 0.7, bias = 2.0>(x) }"),
    (9, "agraph (float[2,2,3] x) => (float[2,2,3] y) <float[2] s = {1,2}, float[2] v = {1,4}>"
        "{ y = BatchNormalization<epsilon = 0.1>(x, s, s, s, v) }"),
    (7, "agraph (float[1,2,5,5] x) => (float[1,2,2,2] y) "
        "{ y = AveragePool<kernel_shape = [3,3], strides = [2,2], pads = [0,0,0,0]>(x) }"),
    (8, "agraph (float[1,2,5,5] x) => (float[1,2,3,3] y) "
        "{ y = MaxPool<kernel_shape = [3,3], strides = [2,2], pads = [1,1,1,1]>(x) }"),
    (11, "agraph (float[2,3] x) => (float[2,3] y) <float a = {-0.1}, float b = {0.1}> { y = Clip(x, a, b) }"),
    (13, "agraph (float[2,4] x) => (float[2,1] y, float[2,3] z) <int64[2] s = {1, 3}> { y, z = Split<axis = 1>(x, s) }"),
    (13, "agraph (float[1,1,2,2] x) => (float[1,1,4,4] y) <float[4] s = {1,1,2,2}>"
         "{ y = Resize<mode = \"linear\", coordinate_transformation_mode = \"align_corners\">(x, , s) }"),
    (11, "agraph (float[2,3] x, bool b) => (float[3] y) { y = If(b) <"
         "then_branch = g1 () => (float[3] p) { t = ReduceSum<axes = [0]>(x)\n p = Squeeze<axes = [0]>(t) },"
         "else_branch = g2 () => (float[3] q) { q = ReduceMean<axes = [0], keepdims = 0>(x) }> }"),
]  # fmt: skip


def write(path: Path, opset: int, text: str) -> Path:
    header = f'<ir_version: 8, opset_import: ["" : {opset}]>\n'
    path.write_bytes(onnx.parser.parse_model(header + text).SerializeToString())
    return path


@pytest.mark.parametrize(("opset", "text"), CARRIED)
def test_without_a_converter(tmp_path, monkeypatch, opset, text):
    monkeypatch.setattr(upgrade, "_convert_step", lambda *_: pytest.fail("it was converted"))
    path = write(tmp_path / "m.onnx", opset, text)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options)

    model = load(path)

    assert model.opset_imports == {"": CANONICAL_OPSET}
    feeds = random_inputs(model)
    expected = dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))
    assert compare(expected, run_reference(model, feeds)).max_rel < 1e-6


def test_equal_constants_are_one_and_take_no_name(tmp_path):
    text = (
        "agraph (float[2] x) => (float[1,2] y, float[1,2] z) <float axes_0 = {1}>"
        "{ a = Add(x, axes_0)\n y = Unsqueeze<axes = [0]>(a)\n z = Unsqueeze<axes = [0]>(x) }"
    )
    model = load(write(tmp_path / "m.onnx", 9, text))
    assert list(model.graph.initializers) == ["axes_0", "axes_0_"]
    np.testing.assert_array_equal(model.graph.initializers["axes_0_"].const_value.numpy(), [0])


LEFT = [
    (9, "agraph (float[2,3] x) => (float[2,3] y) { y = Clip<max = 0.5>(x) }"),
    (9, "agraph (float[2,3] x) => (float[2,3] y, float[2,3] m) { y, m = Dropout(x) }"),
    (9, "agraph (float[2,3] x, int64[2] s) => (float[N,M] y) { r = Reshape(x, s)\n y = Softmax(r) }"),
    (9, "agraph (float[2,2] x, float[2] s) => (float[2,2] y, float[2] m) "
        "{ y, m, v, d, e = BatchNormalization(x, s, s, s, s) }"),
    (11, "agraph (float[2,4] x) => (float[2,1] y, float[2,3] z) { y, z = Split<axis = 1, split = [1, 3]>(x) }"),
    (6, "agraph (float[2,3] x) => (float[2,3] y) { y = Relu(x) }"),
    (17, "agraph (float[1,1,4,4] x, float[1,2,2,2] g) => (float[1,1,2,2] y) { y = GridSample(x, g) }"),
]  # fmt: skip


@pytest.mark.parametrize(("opset", "text"), LEFT)
def test_what_is_left_to_the_converter_is_not_touched(opset, text):
    header = f'<ir_version: 8, opset_import: ["" : {opset}]>\n'
    # Something that would be respelled stands first.
    model = ir.from_onnx_text(header + text.replace("{ y", "{ w = Unsqueeze<axes = [0]>(x)\n y", 1))
    before = to_text(model)
    assert not carry_over(model, CANONICAL_OPSET)
    assert to_text(model) == before


def test_functions_are_left_to_the_converter():
    model = ir.from_onnx_text(
        '<ir_version: 8, opset_import: ["" : 17, "local" : 1]>\n'
        "agraph (float[2] x) => (float[2] y) { y = local.f(x) }\n"
        '<domain: "local", opset_import: ["" : 17]> f (a) => (b) { b = Relu(a) }'
    )
    assert not carry_over(model, CANONICAL_OPSET)
