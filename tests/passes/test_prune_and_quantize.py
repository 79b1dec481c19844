"""Pruning and quantization from one pipeline, in either order."""

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.compare import compare
from graphwright.ir.errors import PassError
from graphwright.ir.inputs import random_inputs
from graphwright.ir.reference import Reference
from graphwright.passes.optimize import optimize


def weaken(net, value, axis, weak):
    """Makes some channels weak, so that every criterion takes the same."""
    array = value.const_value.numpy().copy()
    array[(slice(None),) * axis + (weak,)] *= 0.02
    value.const_value = ir.tensor(array, name=value.name)


def cnn(network):
    net = network(7)
    x = net.op("Relu", net.conv(net.input("n", 3, 8, 8), 8))
    y = net.op("Relu", net.conv(x, 12))
    y = net.op("Relu", net.conv(y, 12, group=12))
    y = net.op("Add", net.conv(y, 8, kernel=1), x)
    y = net.op("MaxPool", net.op("Relu", y), kernel_shape=[2, 2], strides=[2, 2])
    y = net.op("Concat", net.op("Relu", net.conv(y, 6)), net.op("Relu", net.conv(y, 6, kernel=1)), axis=1)
    y = net.op("Reshape", net.op("GlobalAveragePool", y), net.ints(-1, 12))
    model = net.model(net.linear(net.op("Relu", net.linear(y, 10)), 4))
    for node in model.graph:
        if node.op_type in ("Conv", "Gemm") and node.outputs[0] is not model.graph.outputs[0]:
            weak = np.arange(0, node.inputs[1].shape[0], 2)
            weaken(net, node.inputs[1], 0, weak)
            weaken(net, node.inputs[2], 0, weak)
    return model


def transformer(network):
    net = network(7)
    x = net.input("n", 6, 16)
    y = net.op("LayerNormalization", x, net.weight(16), net.weight(16), axis=-1)
    hidden = net.matmul(y, 32)
    y = net.op("Add", net.matmul(net.op("Gelu", hidden), 16), x)
    y = net.op("LayerNormalization", y, net.weight(16), net.weight(16), axis=-1)
    model = net.model(net.matmul(net.op("Relu", net.matmul(y, 24)), 4))
    for node in model.graph:
        if node.op_type == "MatMul" and node.inputs[1].shape[1] in (24, 32):
            size = node.inputs[1].shape[1]
            weaken(net, node.inputs[1], 1, np.arange(0, size, 2))
            (add,) = node.outputs[0].consumers()
            weaken(net, add.inputs[1], 0, np.arange(0, size, 2))
    return model


MODELS = {"cnn": cnn, "transformer": transformer}
PRUNE = "prune-channels{ratio=0.5}"


def batches(model, count=4, first=0):
    return [random_inputs(model, seed=first + seed, dims={"n": 4}) for seed in range(count)]


def outputs(model, feeds):
    return np.concatenate([Reference(model).run(each)["y0"] for each in feeds])


def weight_shapes(model):
    """Shapes of the weights by layer, stored as integers or not."""
    layers = ("Conv", "Gemm", "MatMul")
    return {str(n.name): tuple(n.inputs[1].shape) for n in model.graph if n.op_type in layers}


def integer_layers(model):
    return sum(
        node.op_type in ("Conv", "Gemm", "MatMul")
        and node.inputs[1].producer() is not None
        and node.inputs[1].producer().op_type == "DequantizeLinear"
        for node in model.graph
    )


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("quantize", ["insert-qdq", "insert-qdq{target=x86}", "quantize-weights{min_size=1}"])
def test_either_order_gives_the_small_integer_model(network, name, quantize):
    model = MODELS[name](network)
    data, fresh = batches(model), batches(model, 3, 50)
    pruned = optimize(model, PRUNE, calibration=data).model
    assert sum(map(np.prod, weight_shapes(pruned).values())) < 0.6 * sum(
        map(np.prod, weight_shapes(model).values())
    )
    expected = outputs(pruned, fresh)
    layers = integer_layers(optimize(model, quantize, calibration=data).model)
    for text in (f"{PRUNE},{quantize}", f"{quantize},{PRUNE}"):
        made = optimize(model, text, calibration=data).model
        assert weight_shapes(made) == weight_shapes(pruned)
        assert integer_layers(made) == layers > 0
        assert compare(expected, outputs(made, fresh)).sqnr_db > 22.0


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "quantize", ["insert-qdq", "insert-qdq{precision=a16w8}", "quantize-weights{min_size=1}"]
)
def test_pruning_integers_is_exact(network, assert_exact, name, quantize):
    model = MODELS[name](network)
    quantized = optimize(model, quantize, calibration=batches(model)).model
    pruned, removed = assert_exact(quantized, dims={"n": 2})
    assert removed >= 20
    assert integer_layers(pruned) == integer_layers(quantized)


def test_blocks_that_share_scales_are_told(network):
    model = cnn(network)
    record = optimize(model, f"quantize-weights{{form=int4 block=8 min_size=1}},{PRUNE}").report.records[-1]
    assert any("blocked quantization" in each.reason for each in record.left_alone)


@pytest.mark.parametrize("name", MODELS)
def test_repair_between_and_behind(network, name):
    model = MODELS[name](network)
    data, fresh = batches(model, 8), batches(model, 3, 50)
    expected = outputs(optimize(model, PRUNE, calibration=data).model, fresh)
    found = [
        compare(expected, outputs(optimize(model, text, calibration=data).model, fresh)).sqnr_db
        for text in (f"{PRUNE},insert-qdq", f"{PRUNE},equalize,insert-qdq,gptq,bias-correction")
    ]
    assert found[1] > found[0]
    with pytest.raises(PassError, match="prune before quantizing, or repair before pruning"):
        optimize(model, f"insert-qdq,{PRUNE},bias-correction", calibration=data)
    # Repaired first, the pruned integers are those that were repaired.
    optimize(model, f"insert-qdq,gptq,{PRUNE}", calibration=data)
