"""Repair of files that were quantized earlier: the float model must be the one that was quantized."""

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.compare import compare
from graphwright.ir.errors import PassError
from graphwright.ir.inputs import random_inputs
from graphwright.ir.load import load
from graphwright.ir.reference import Reference
from graphwright.ir.save import save
from graphwright.passes.optimize import optimize


def normalized(network, seed=5):
    """Two convolutions, each in front of a batch norm that scales and shifts channels, and a linear layer."""
    net = network(seed)
    rng = np.random.default_rng(seed)
    y = net.input("n", 3, 8, 8)
    for _ in range(2):
        y = net.conv(y, 8)
        numbers = [rng.uniform(0.5, 2, 8), rng.normal(size=8), rng.normal(size=8), rng.uniform(0.3, 2, 8)]
        y = net.op(
            "Relu", net.op("BatchNormalization", y, *(net.constant(n.astype(np.float32)) for n in numbers))
        )
    y = net.op("ReduceMean", y, net.ints(2, 3), keepdims=0)
    return net.model(net.linear(y, 6))


def batches(model, count=4):
    return [random_inputs(model, seed=seed, dims={"n": 4}) for seed in range(count)]


def sqnr(model, other):
    return min(
        compare(Reference(model).run(feeds), Reference(other).run(feeds)).sqnr_db for feeds in batches(model)
    )


@pytest.fixture
def files(network, tmp_path):
    """The float model, and paths of its file and of the file that was quantized behind folding."""
    model = normalized(network)
    save(model, tmp_path / "float.onnx")
    quantized = optimize(model, "simplify,fold-batch-norm,insert-qdq", calibration=batches(model)).model
    save(quantized, tmp_path / "int8.onnx")
    return model, tmp_path / "float.onnx", tmp_path / "int8.onnx"


@pytest.mark.parametrize("repair", ["gptq", "ada-round{iterations=50}", "bias-correction"])
def test_a_file_from_before_batch_norms_were_folded_serves(files, repair):
    model, path, quantized = files
    name, _, options = repair.partition("{")
    text = f'{name}{{original="{path}" {options or "}"}'
    before = sqnr(model, load(quantized))
    result = optimize(load(quantized), text, calibration=batches(model))
    assert sqnr(model, result.model) > before - 0.5
    assert not result.report.records[-1].left_alone


def test_blocks_are_fitted_to_the_folded_weights(files, tmp_path):
    model, path, _ = files
    text = "simplify,fold-batch-norm,quantize-weights{form=int4 block=16 min_size=1 scale=absmax}"
    quantized = optimize(model, text).model
    here = optimize(quantized, "hqq").model
    save(quantized, tmp_path / "int4.onnx")
    there = optimize(load(tmp_path / "int4.onnx"), f'hqq{{original="{path}"}}').model
    assert sqnr(here, there) > 100


@pytest.mark.parametrize("repair", ["gptq", "ada-round", "bias-correction", "hqq"])
def test_another_model_is_refused(files, network, tmp_path, repair):
    model, _, quantized = files
    save(normalized(network, seed=6), tmp_path / "other.onnx")
    net = network(1)
    save(net.model(net.op("Softmax", net.input("n", 3, 8, 8))), tmp_path / "layerless.onnx")
    for other, match in (
        ("other", "weights of '.*' in .* are not those"),
        ("layerless", "its layers are others"),
    ):
        with pytest.raises(PassError, match=match):
            optimize(
                load(quantized),
                f'{repair}{{original="{tmp_path / other}.onnx"}}',
                calibration=batches(model),
            )


def test_weights_that_were_equalized_since_are_refused(network, tmp_path):
    model = normalized(network)
    for value in model.graph.initializers.values():
        if value.const_value.numpy().ndim == 4:
            array = value.const_value.numpy() * np.geomspace(1, 50, 8, dtype=np.float32)[:, None, None, None]
            value.const_value = ir.tensor(array, name=value.name)
    save(model, tmp_path / "float.onnx")
    text = "simplify,fold-batch-norm,equalize,insert-qdq"
    quantized = optimize(model, text, calibration=batches(model)).model
    save(quantized, tmp_path / "int8.onnx")
    with pytest.raises(PassError, match="right in front of quantization"):
        optimize(
            load(tmp_path / "int8.onnx"),
            f'gptq{{original="{tmp_path / "float.onnx"}"}}',
            calibration=batches(model),
        )
