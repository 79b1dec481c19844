"""Torch modules of graphs: they compute what the graphs compute, or are refused in a line."""

import numpy as np
import onnx_ir as ir
import pytest
import torch
from graphwright.ir.compare import compare
from graphwright.ir.errors import ToolError
from graphwright.ir.inputs import random_inputs
from graphwright.ir.reference import run_reference
from graphwright.ir.shapes import infer_shapes
from graphwright.tools.runtimes.torch_module import torch_module


def model_of(text, **weights):
    """The graph of a text, the named inputs replaced by seeded random weights of their shape."""
    model = ir.from_onnx_text('<ir_version: 10, opset_import: ["" : 23]>\n' + text)
    generator = np.random.default_rng(0)
    for value in list(model.graph.inputs):
        if value.name != "x":
            drawn = weights.get(value.name)
            array = (
                generator.standard_normal(tuple(value.shape)).astype(np.float32) if drawn is None else drawn
            )
            value.const_value = ir.tensor(array, name=value.name)
            model.graph.inputs.remove(value)
            model.graph.register_initializer(value)
    infer_shapes(model)
    return model


def assert_same(model):
    feeds = random_inputs(model, seed=3)
    wanted = run_reference(model, feeds)
    with torch.inference_mode():
        found = torch_module(model)(*(torch.from_numpy(array) for array in feeds.values()))
    assert compare(wanted, dict(zip(wanted, (each.numpy() for each in found), strict=True))).max_rel < 1e-5


def test_convolutions_pooling_and_movement():
    assert_same(
        model_of(
            """net (float[1,4,8,8] x, float[8,2,3,3] w, float[8] bias, float[8,3,2,2] t, float[6,12] head,
                    int64[1] one, int64[1] three, int64[1] axis, float low, float high, float[4] scales, int64[2] halves)
            => (float[1,6] y) {
              padded = Conv <group = 2, pads = [0, 0, 1, 1]> (x, w, bias)
              a = Conv <group = 2, pads = [1, 1, 1, 1], strides = [2, 2]> (x, w, bias)
              b = Clip (a, low, high)
              c, d = Split <axis = 1> (b, halves)
              e = HardSigmoid <alpha = 0.3> (c)
              f = Concat <axis = 1> (e, d)
              g = Resize <mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor">
                (f, , scales)
              h = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (g)
              i = ConvTranspose <strides = [2, 2]> (h, t)
              j = Slice (i, one, three, axis)
              k = AveragePool <kernel_shape = [1, 4], strides = [1, 4]> (j)
              l = GlobalAveragePool (padded)
              m = Flatten (k)
              n = Gemm <transB = 1> (m, head)
              o = ReduceMean <keepdims = 0> (l, one)
              p = Flatten (o)
              y = Add (n, p)
            }""",
            one=np.array([1]),
            three=np.array([3]),
            axis=np.array([2]),
            halves=np.array([4, 4]),
            low=np.float32(-1),
            high=np.float32(2),
            scales=np.array([1, 1, 2, 2], np.float32),
        )
    )


def test_a_transformer_layer():
    assert_same(
        model_of(
            """net (int64[1,5] x, float[9,8] table, float[8] scale, float[8] shift, float[8,8] w, int64[4] heads)
            => (float[1,2,5,4] y) {
              a = Gather (table, x)
              b = LayerNormalization <axis = -1, epsilon = 0.01> (a, scale, shift)
              c = MatMul (b, w)
              d = Gelu <approximate = "tanh"> (c)
              e = Reshape (d, heads)
              f = Transpose <perm = [0, 2, 1, 3]> (e)
              y = Softmax (f)
            }""",
            heads=np.array([1, 5, 2, 4]),
        )
    )


@pytest.mark.parametrize(
    ("kind", "gates", "more"), [("GRU", 3, ", linear_before_reset = 1"), ("LSTM", 4, "")]
)
def test_recurrent_layers_with_their_gates_in_the_other_order(kind, gates, more):
    assert_same(
        model_of(
            f"""net (float[5,1,3] x, float[1,{4 * gates},3] w, float[1,{4 * gates},4] r, float[1,{8 * gates}] b)
            => (float[5,1,1,4] y) {{ y = {kind} <hidden_size = 4{more}> (x, w, r, b) }}"""
        )
    )


def test_what_has_no_torch_form_is_named():
    with pytest.raises(ToolError, match="CumSum has no torch form"):
        torch_module(
            model_of(
                "net (float[3] x, int64 axis) => (float[3] y) { y = CumSum (x, axis) }", axis=np.int64(0)
            )
        )
    backwards = """net (float[5,1,3] x, float[1,12,3] w, float[1,12,4] r, float[1,24] b) => (float[5,1,1,4] y) {
        y = GRU <hidden_size = 4, linear_before_reset = 1, direction = "reverse"> (x, w, r, b) }"""
    with pytest.raises(ToolError, match="recurrence backwards"):
        torch_module(model_of(backwards))
