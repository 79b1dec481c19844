"""Inputs without a shape: one is found with which the model runs, or the line says how to give it."""

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.errors import ModelError
from graphwright.ir.fitting_inputs import fitted
from graphwright.ir.inputs import random_inputs
from graphwright.ir.reference import Reference
from graphwright.passes.optimize import optimize

CONV = "float[4,3,3,3] w"


def model_of(body: str, inputs: str, weights: str = "", outputs: str = "float y") -> ir.Model:
    """A graph; the `weights` are stored, filled with noise."""
    declared = f"{inputs}, {weights}" if weights else inputs
    model = ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["" : 23]>\ng ({declared}) => ({outputs}) {{ {body} }}'
    )
    names = [part.split()[-1] for part in weights.split(", ")] if weights else []
    for value in [value for value in model.graph.inputs if value.name in names]:
        model.graph.inputs.remove(value)
        noise = np.random.default_rng(0).standard_normal(value.shape.numpy()).astype(value.dtype.numpy())
        value.const_value = ir.tensor(noise, name=value.name)
        model.graph.register_initializer(value)
    for value in (*model.graph.inputs, *model.graph.outputs):
        # In ONNX text a type without brackets has no dimensions; here it stands for an unknown rank.
        if value.shape is not None and len(value.shape) == 0:
            value.shape = None
    return model


CASES = {
    "convolution": ("a = Relu(x)\n y = Conv(a, w)", "float x", CONV, [2, 3, 32, 32]),
    "grouped convolution": ("y = Conv<group = 3>(x, v)", "float x", "float[6,1,3] v", [2, 3, 8]),
    "channels of convolution": ("y = Conv(x, w)", "float[n,c,h,v] x", CONV, [2, 3, 32, 32]),
    "transposed convolution": ("y = ConvTranspose(x, w)", "float x", CONV, [2, 4, 32, 32]),
    "product": ("m = MatMul(x, k)\n y = Add(m, b)", "float x", "float[5,7] k, float[7] b", [2, 5]),
    "gemm": ("y = Gemm<transB = 1>(x, k)", "float x", "float[5,7] k", [2, 7]),
    "normalization": ("a = Sigmoid(x)\n y = LayerNormalization(a, s)", "float x", "float[6] s", [2, 6]),
    "bias": ("y = Add(b, x)", "float x", "float[1,3,1,5] b", None),
    "two of a kind": ("y = Add(x, z)", "float x, float z", "", [2, 8]),
    "flattened": (
        "c = Conv(x, w)\n f = Flatten(c)\n y = MatMul(f, k)",
        "float[?,?,?,?] x",
        f"{CONV}, float[784,3] k",
        [16, 3, 16, 16],
    ),
}


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_shape_is_found(name):
    body, inputs, weights, wanted = CASES[name]
    model = model_of(body, inputs.replace("?", "N"), weights)
    if "?" in inputs:
        model.graph.inputs[0].shape = ir.Shape([None] * 4)
    reference = Reference(model)
    found = fitted(model, reference.run)
    feeds = random_inputs(found)
    assert wanted is None or list(feeds["x"].shape) == wanted
    reference.run(feeds)


@pytest.mark.parametrize("name", sorted(CASES))
def test_passes_are_checked_on_it(name):
    body, inputs, weights, _ = CASES[name]
    model = model_of(body.replace("y =", "n =") + "\n p = Neg(n)\n y = Neg(p)", inputs, weights)
    result = optimize(model, "simplify", check_each=True)
    (check,) = [record.check for record in result.report.records if record.check is not None]
    assert check.passed and check.tried >= 3
    assert "Neg" not in [node.op_type for node in result.model.graph]


def test_where_none_is_found_the_options_are_named():
    body = "a = Reshape(x, s)\n b = Reshape(x, t)\n c = ReduceSum<keepdims = 0>(b)\n y = Add(a, c)"
    model = model_of(body, "float x", "int64[2] s, int64[1] t")
    for name, sizes in (("s", [7, 13]), ("t", [5])):
        model.graph.initializers[name].const_value = ir.tensor(np.array(sizes, np.int64), name=name)
    with pytest.raises(ModelError, match=r"for 'x' .*--inputs X.npz, or sizes with --dim NAME=SIZE"):
        optimize(model, "simplify", check_each=True)
