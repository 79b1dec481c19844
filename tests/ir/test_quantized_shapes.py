"""Shapes and types of ONNX Runtime's quantized operators beside what it computes."""

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.reference import run_reference
from graphwright.ir.shapes import infer_shapes

PAIR = "float {0}s, uint8 {0}z"
CASES = {
    "average pool": (
        "y = com.microsoft.QLinearAveragePool<kernel_shape=[3,2], strides=[2,1], pads=[1,0,1,1]>(x, xs, xz, ys, yz)",
        "uint8[2,3,3,6]",
    ),
    "global average pool": ("y = com.microsoft.QLinearGlobalAveragePool(x, xs, xz, ys, yz)", "uint8[2,3,1,1]"),
    "sigmoid": ("y = com.microsoft.QLinearSigmoid(x, xs, xz, ys, yz)", "uint8[2,3,5,6]"),
    "gemm": (
        "f = Flatten(x)  y = com.microsoft.QGemm<transB=1>(f, xs, xz, w, ws, wz, , ys, yz)",
        "uint8[2,4]",
    ),
    "gemm of floats": ("f = Flatten(x)  y = com.microsoft.QGemm<transB=1>(f, xs, xz, w, ws, wz)", "float[2,4]"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_as_onnx_runtime_has_them(name):
    body, expected = CASES[name]
    pairs = ", ".join(PAIR.format(each) for each in "xyw")
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 17, "com.microsoft" : 1]> '
        f"g (uint8[2,3,5,6] x, {pairs}, uint8[4,90] w) => ({expected} y) {{ {body} }}"
    )
    output = model.graph.outputs[0]
    declared = output.dtype, tuple(output.shape)
    output.type, output.shape = None, None
    infer_shapes(model)
    assert (output.dtype, tuple(output.shape)) == declared
    feeds = {
        **{f"{each}s": np.float32(0.1) for each in "xyw"},
        **{f"{each}z": np.uint8(3) for each in "xyw"},
        "x": np.arange(180, dtype=np.uint8).reshape(2, 3, 5, 6),
        "w": np.ones((4, 90), np.uint8),
    }
    result = run_reference(model, {value.name: feeds[value.name] for value in model.graph.inputs})["y"]
    assert (result.dtype, result.shape) == (declared[0].numpy(), declared[1])
