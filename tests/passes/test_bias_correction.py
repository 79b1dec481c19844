"""Bias correction: the mean error of every channel goes, in the form that the bias has."""

import numpy as np
import pytest
from graphwright.ir.compare import compare
from graphwright.ir.constants import constant_array
from graphwright.ir.errors import PassError
from graphwright.ir.inputs import random_inputs
from graphwright.ir.reference import Reference
from graphwright.ir.save import save
from graphwright.passes.bias_correction import shrunk_mean
from graphwright.passes.optimize import optimize


def small_net(network, bias=True):
    net = network(3)
    x = net.input("n", 3, 8, 8)
    y = net.op("Relu", net.conv(x, 8, bias=bias))
    y = net.op("Relu", net.conv(y, 8, group=8, bias=bias))
    y = net.op("ReduceMean", net.conv(y, 6, kernel=1, bias=bias), net.ints(2, 3), keepdims=0)
    return net.model(net.matmul(net.op("Relu", net.linear(y, 9)), 4))


def data(model, count=6, dims=None):
    return [random_inputs(model, seed=seed, dims=dims or {"n": 4}) for seed in range(count)]


def mean_errors(model, quantized, batches):
    """Largest mean error of a channel at each layer, in steps of its int32 bias (1e-7 for a float one)."""
    expected, actual = Reference(model), Reference(quantized)
    stored = {str(node.name): node for node in quantized.graph}
    found = {}
    for node, name in layers(model).items():
        other = layers(quantized)[node]
        a = np.concatenate([expected.run_values(b, [name])[name] for b in batches])
        b = np.concatenate([actual.run_values(b, [other])[other] for b in batches])
        bias = stored[node].inputs[2].producer() if len(stored[node].inputs) > 2 else None
        step = constant_array(bias.inputs[1]) if bias is not None else np.float64(1e-7)
        error = np.abs((a.astype(np.float64) - b).mean(axis=(0, *range(2, a.ndim))))
        found[name] = float((error / step).max())
    return found


def layers(model):
    return {
        str(node.name): str(node.outputs[0].name) for node in model.graph if node.op_type in ("Conv", "Gemm")
    }


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("text", ["insert-qdq", "insert-qdq{target=x86}"])
def test_mean_errors_go_and_the_output_comes_closer(network, text, bias):
    model = small_net(network, bias)
    batches = data(model)
    plain = optimize(model, text, calibration=batches).model
    result = optimize(model, f"{text},bias-correction{{shrink=false}}", calibration=batches)
    before, after = mean_errors(model, plain, batches), mean_errors(model, result.model, batches)
    assert max(before.values()) > 10
    # Each layer was corrected behind corrected ones; what is left is half a step of its int32 bias.
    assert max(after.values()) < 0.55, after
    expected = np.concatenate([Reference(model).run(b)["y0"] for b in batches])
    far = [
        compare(expected, np.concatenate([Reference(m).run(b)["y0"] for b in batches])).sqnr_db
        for m in (plain, result.model)
    ]
    assert far[1] > far[0] + 1.0
    biases = [node.inputs[2] for node in result.model.graph if node.op_type == "Conv"]
    assert all(value.producer().inputs[0].const_value.dtype.name == "INT32" for value in biases)


def test_weight_only_models_and_float_biases(network):
    model = small_net(network)
    batches = data(model)
    text = "quantize-weights{form=int4 min_size=1},bias-correction{shrink=false}"
    result = optimize(model, text, calibration=batches)
    assert result.report.records[-1].statistics["corrected biases"] == 5
    assert max(mean_errors(model, result.model, batches).values()) < 10


def test_a_matmul_without_a_bias_is_told(network):
    net = network()
    x = net.input("n", 4, 8)
    model = net.model(net.op("Softmax", net.op("MatMul", x, net.weight(8, 8)), axis=-1))
    record = optimize(model, "insert-qdq,bias-correction", calibration=data(model)).report.records[-1]
    assert [each.reason for each in record.left_alone] == ["it has no bias, and no addition behind it"]


def test_a_loaded_model_needs_the_float_file(network, tmp_path):
    model = small_net(network)
    batches = data(model)
    save(model, tmp_path / "float.onnx")
    quantized = optimize(model, "insert-qdq", calibration=batches).model
    quantized.meta.clear()
    with pytest.raises(PassError, match=r"original=FILE\.onnx"):
        optimize(quantized, "bias-correction", calibration=batches)
    text = f'bias-correction{{original="{tmp_path / "float.onnx"}"}}'
    again = optimize(quantized, text, calibration=batches)
    assert again.report.records[-1].statistics["corrected biases"] == 5


def test_bad_input(network):
    model = small_net(network)
    with pytest.raises(PassError, match="it compares layers on data"):
        optimize(optimize(model, "insert-qdq", calibration=data(model)).model, "bias-correction")
    with pytest.raises(PassError, match="samples"):
        optimize(model, "bias-correction{samples=0}", calibration=data(model))
    text = "quantize-weights{min_size=9999},bias-correction"
    record = optimize(model, text, calibration=data(model)).report.records[-1]
    assert "no layer has integer weights" in record.notes[0]


@pytest.mark.parametrize("true", [0.0, 0.05, 0.5, 5.0])
@pytest.mark.parametrize("count", [4, 16])
def test_means_of_few_samples_are_shrunk_and_err_less(true, count):
    rng = np.random.default_rng(0)
    shrunk = plain = 0.0
    for _ in range(200):
        shifts = true * rng.normal(size=64)
        samples = shifts + rng.normal(size=(count, 64))
        shrunk += np.square(shrunk_mean(samples) - shifts).sum()
        plain += np.square(samples.mean(axis=0) - shifts).sum()
    # What is chance hardly moves a bias; what is not moves it as ever.
    assert shrunk < {0.0: 0.1, 0.05: 0.2, 0.5: 0.85, 5.0: 1.005}[true] * plain


def test_shrunk_means_at_the_edges():
    np.testing.assert_array_equal(shrunk_mean(np.array([[1.0, -2.0]])), [1.0, -2.0])
    np.testing.assert_array_equal(shrunk_mean(np.zeros((4, 3))), np.zeros(3))
    np.testing.assert_allclose(shrunk_mean(np.tile([3.0, 0.0], (5, 1))), [3.0, 0.0])
    assert not np.isfinite(shrunk_mean(np.array([[np.nan, 1.0], [1.0, 1.0]]))).all()
