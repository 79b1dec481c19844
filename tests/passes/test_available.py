"""What a fusion would use, in an opset that does not have it."""

import numpy as np
import onnx_ir as ir
from graphwright.ir.inputs import random_inputs
from graphwright.ir.reference import run_reference
from graphwright.ir.shapes import infer_shapes
from graphwright.ir.upgrade import upgrade
from graphwright.passes.optimize import optimize

TEXT = """<ir_version: 10, opset_import: ["" : 20]>
noisy (float[1,2,5,8] q, float[1,2,8,5] k, float[1,2,5,8] v, float[1,4,6] x, float[1,3,4,8] t, float[4,8] cos, float[4,8] sin) =>
      (float[1,2,5,8] y, float[1,4,6] z, float[1,3,4,8] u)
<float two = {2.0}, float eps = {0.00001}, int64[1] last = {-1}, int64[1] zero = {0}, int64[1] four = {4}, int64[1] eight = {8}, int64[1] three = {3}>
{
    scores = MatMul(q, k)
    weights = Softmax<axis = -1>(scores)
    a = MatMul(weights, v)
    MIDDLE
    y = Add(a, r)
    square = Pow(x, two)
    mean = ReduceMean(square, last)
    shifted = Add(mean, eps)
    root = Sqrt(shifted)
    z = Div(x, root)
    left = Slice(t, zero, four, three)
    right = Slice(t, four, eight, three)
    minus = Neg(right)
    turned = Concat<axis = -1>(minus, left)
    c = Mul(t, cos)
    s = Mul(turned, sin)
    u = Add(c, s)
}"""


def noisy(middle: str = "[noise] r = RandomNormalLike<seed = 1.0>(a)") -> ir.Model:
    model = ir.from_onnx_text(TEXT.replace("MIDDLE", middle))
    angles = np.tile(np.linspace(0, 3, 16, dtype=np.float32).reshape(4, 4), (1, 2))
    for name, table in (("cos", np.cos(angles)), ("sin", np.sin(angles))):
        value = next(each for each in model.graph.inputs if each.name == name)
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor(table, name=name)
        model.graph.register_initializer(value)
    upgrade(model)
    infer_shapes(model)
    return model


def test_fusions_say_why_they_stay_away():
    model = noisy()
    feeds = random_inputs(model)
    before = run_reference(model, feeds)

    result = optimize(model, "simplify,fuse", check_each=True)

    assert result.model.opset_imports[""] == 21
    reasons = {entry.reason for record in result.report.records for entry in record.left_alone}
    for op_type in ("Attention", "RMSNormalization", "RotaryEmbedding"):
        assert (
            f"opset 21, in which the model is written, has no {op_type}; ONNX Runtime runs node "
            "'noise' (RandomNormalLike) only up to opset 21" in reasons
        )
    after = run_reference(result.model, feeds)
    for name in before:
        np.testing.assert_allclose(after[name], before[name], rtol=1e-5, atol=1e-6)


def test_without_that_node_they_fire():
    model = noisy("r = Neg(a)")
    result = optimize(model, "simplify,fuse", check_each=True)
    kinds = {node.op_type for node in result.model.graph}
    assert {"Attention", "RMSNormalization", "RotaryEmbedding"} <= kinds
