"""Models in bfloat16 and double run although ONNX Runtime has no kernels for them; any type seen in float32."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.bodies import all_graphs
from graphwright.ir.errors import ModelError
from graphwright.ir.inputs import random_inputs
from graphwright.ir.reference import Reference, run_reference
from graphwright.ir.shapes import infer_shapes
from graphwright.ir.wider import feeds_to_float32, has_other_floats, to_float32

DTYPES = {"double": np.float64, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


def model_of(text, **initializers):
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 23, "house" : 1]>\n{text}')
    for name, array in initializers.items():
        value = next(v for node in model.graph for v in node.inputs if v is not None and v.name == name)
        value.const_value = ir.tensor(array, name=name)
        model.graph.register_initializer(value)
    infer_shapes(model)
    return model


def convolution(dtype):
    weight = np.random.default_rng(0).standard_normal((4, 2, 3, 3)).astype(DTYPES[dtype])
    return model_of(
        f"m ({dtype}[1, 2, 6, 6] x) => ({dtype}[1, 4, 4, 4] y) {{ c = Conv (x, w) y = HardSwish (c) }}",
        w=weight,
    )


def in_float32(model):
    wide = model.clone()
    to_float32(wide)
    return wide


@pytest.mark.parametrize("dtype", ["double", "bfloat16", "float16"])
def test_operators_without_kernels_run_between_casts(dtype):
    model = convolution(dtype)
    feeds = random_inputs(model)
    (found,) = run_reference(model, feeds).values()
    assert found.dtype == DTYPES[dtype]
    (wide,) = run_reference(in_float32(model), feeds_to_float32(feeds)).values()
    assert wide.dtype == np.float32
    tolerance = {"double": 1e-6, "bfloat16": 2e-2, "float16": 2e-3}[dtype]
    assert np.abs(found.astype(np.float64) - wide).max() <= tolerance * np.abs(wide).max()
    # The model itself is as it was.
    assert [node.op_type for node in model.graph] == ["Conv", "HardSwish"]


def test_results_in_between_and_a_model_that_may_be_lost():
    model = convolution("double")
    feeds = random_inputs(model)
    kept = Reference(model).run_values(feeds, ["c", "y"])
    assert [array.dtype for array in kept.values()] == [np.float64, np.float64]
    lost = Reference(model.clone(), consume=True).run(feeds)
    assert np.array_equal(lost["y"], kept["y"])


def test_large_weights_of_a_model_that_may_be_lost():
    weight = np.random.default_rng(0).standard_normal((64, 8, 3, 3))
    model = model_of("m (double[1, 8, 6, 6] x) => (double[1, 64, 4, 4] y) { y = Conv (x, w) }", w=weight)
    feeds = random_inputs(model)
    kept, lost = run_reference(model, feeds), Reference(model.clone(), consume=True).run(feeds)
    assert np.array_equal(kept["y"], lost["y"])


def test_bodies_and_functions():
    weight = np.random.default_rng(0).standard_normal((2, 2, 1, 1)).astype(ml_dtypes.bfloat16)
    model = model_of(
        """m (bfloat16[1, 2, 3, 3] x, bool b) => (bfloat16[1, 2, 3, 3] y)
        { y = If (b) <
            then_branch = t () => (bfloat16[1, 2, 3, 3] u) { u = Conv (x, w) },
            else_branch = e () => (bfloat16[1, 2, 3, 3] v) { v = house.Twice (x) }
        > }
        <domain: "house", opset_import: ["" : 23]>
        Twice (a) => (c) { d = HardSwish (a) c = Add (d, d) }""",
    )
    body = model.graph[0].attributes["then_branch"].as_graph()
    held = body[0].inputs[1]
    held.const_value = ir.tensor(weight, name="w")
    model.graph.register_initializer(held)
    x = np.linspace(-2, 2, 18).reshape(1, 2, 3, 3).astype(ml_dtypes.bfloat16)
    (chosen,) = run_reference(model, {"x": x, "b": np.array(True)}).values()
    (other,) = run_reference(model, {"x": x, "b": np.array(False)}).values()
    expected = np.einsum("oi,nihw->nohw", weight[:, :, 0, 0].astype(np.float32), x.astype(np.float32))
    assert np.allclose(chosen.astype(np.float32), expected, atol=2e-2)
    wide = x.astype(np.float32)
    assert np.allclose(other.astype(np.float32), 2 * wide * np.clip(wide / 6 + 0.5, 0, 1), atol=2e-2)


def test_what_really_has_no_kernel_is_still_named():
    model = model_of("m (int8[4] x) => (int8[4] y) { y = Sin (x) }")
    with pytest.raises(ModelError, match="the reference cannot run this model"):
        run_reference(model, {"x": np.zeros(4, np.int8)})


def test_everything_becomes_float32():
    model = model_of(
        """m (float16[2, 3] x, int64[1] n) => (float16[2, 3] y, double[N] z)
        { a = Add (x, w) b = Cast <to = 11> (a) c = Cast <to = 10> (b) y = Relu (c)
          s = ConstantOfShape <value = double[1] {2.5}> (n) z = Identity (s) }""",
        w=np.array([1, 2, 3], np.float16),
    )
    assert has_other_floats(model)
    wide = in_float32(model)
    assert not has_other_floats(wide) and has_other_floats(model)
    assert {v.dtype for graph in all_graphs(wide) for node in graph for v in node.outputs} == {
        ir.DataType.FLOAT
    }
    x = np.arange(6, dtype=np.float16).reshape(2, 3)
    feeds = {"x": x, "n": np.array([4])}
    results = run_reference(wide, feeds_to_float32(feeds))
    assert np.array_equal(results["y"], x + np.array([1, 2, 3])) and np.array_equal(results["z"], [2.5] * 4)
