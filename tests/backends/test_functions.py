"""Model functions through the compiler: recognized, one kernel each, reported by name, same numbers."""

import graphwright as gw
import numpy as np
import onnx_ir as ir
import pytest
from graphwright.backends.functions import LOWERED, without_functions
from graphwright.ir.compare import compare
from graphwright.ir.shapes import infer_shapes
from graphwright.passes.functions import FUNCTION_KEY
from graphwright.passes.optimize import optimize

FUSIONS = "fuse-activation,fuse-gemm,fuse-swish,fuse-conv-activation,eliminate-dead"


def network() -> ir.Model:
    """Residual convolutions with three activations, a gate on its own, a product with bias and GELU."""
    rng = np.random.default_rng(0)
    constants = {
        "w1": rng.standard_normal((8, 4, 3, 3)) / 6,
        "w2": rng.standard_normal((8, 8, 1, 1)) / 3,
        "w3": rng.standard_normal((8, 6)) / 3,
        "b3": rng.standard_normal(6),
        "scale": np.array(1.702),
    }
    text = """<ir_version: 11, opset_import: ["" : 23]>
    g (float[1,4,9,9] x, float w1, float w2, float w3, float b3, float scale) => (float[1,6] y, float[1,8,4,4] z) {
        c = Conv <kernel_shape = [3, 3], strides = [2, 2]> (x, w1)
        s = Sigmoid(c)
        a = Mul(c, s)
        d = Conv(a, w2)
        e = Add(d, a)
        r = Relu(e)
        t = Mul(r, scale)
        u = Sigmoid(t)
        z = Mul(r, u)
        p = GlobalAveragePool(z)
        f = Flatten(p)
        m = MatMul(f, w3)
        q = Add(m, b3)
        y = Gelu(q)
    }"""
    model = ir.from_onnx_text(text)
    for i, node in enumerate(model.graph):
        node.name = f"n{i}"
    for value in list(model.graph.inputs)[1:]:
        tensor = ir.tensor(np.asarray(constants[value.name], np.float32), name=value.name)
        model.graph.inputs.remove(value)
        value.shape, value.const_value = ir.Shape(tensor.shape), tensor
        model.graph.register_initializer(value)
    infer_shapes(model)
    return model


@pytest.fixture(scope="module")
def compiled():
    model = network()
    return (
        model,
        gw.compile(model, pipeline="simplify"),
        gw.compile(model, pipeline=f"simplify,{FUSIONS}"),
    )


def test_kernels_name_the_functions_they_came_from(compiled):
    _, _, fused = compiled
    assert sorted(node.op_type for node in fused.model.graph if node.domain == "graphwright") == [
        "ConvAddRelu",
        "ConvSwish",
        "GemmGelu",
        "QuickGelu",
    ]
    origins = {name: k for k in fused.report.kernels for name in k["from"]}
    assert origins["graphwright::ConvSwish"]["kind"] == "conv"
    assert origins["graphwright::ConvAddRelu"]["kind"] == "conv"
    assert origins["graphwright::GemmGelu"]["kind"] != "elementwise"
    assert "graphwright::QuickGelu" in origins
    assert "graphwright::ConvAddRelu" in fused.report.to_markdown()


def test_fusing_makes_no_more_kernels_and_the_same_numbers(compiled):
    model, plain, fused = compiled
    calls = [sum(kernel["calls"] for kernel in each.report.kernels) for each in (plain, fused)]
    assert calls[1] <= calls[0]
    assert not any(kernel["from"] for kernel in plain.report.kernels)
    assert fused.report.check.comparison.max_rel <= 1e-4
    feeds = {"x": np.random.default_rng(1).standard_normal((1, 4, 9, 9)).astype(np.float32)}
    assert compare(plain.run(feeds), fused.run(feeds)).max_rel <= 1e-5


def test_known_functions_become_the_backends_operator_and_others_their_body():
    model = optimize(network(), FUSIONS).model
    flat = without_functions(model)
    assert not flat.functions and model.functions
    kinds = {node.metadata_props.get(FUNCTION_KEY): node.op_type for node in flat.graph}
    assert kinds["graphwright::QuickGelu"] == "Swish"
    (swish,) = [node for node in flat.graph if node.op_type == "Swish"]
    assert swish.attributes.get_float("alpha") == pytest.approx(1.702)
    assert all(identifier[0] == "graphwright" for identifier in LOWERED)
    assert not [node for node in flat.graph if node.domain]


def test_the_onnxruntime_backend_runs_functions_as_they_are():
    fused = gw.compile(network(), pipeline=FUSIONS, backend="onnxruntime")
    assert fused.model.functions and fused.report.check.comparison.max_rel <= 1e-4
