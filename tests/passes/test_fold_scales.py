"""fold-batch-norm on constants beside linear operators: Mul, Div, Add, Sub, behind and before."""

import numpy as np
import pytest
from graphwright.passes.optimize import optimize

VECTOR = np.array([0.5, -2.0, 3.0, 1.5], np.float32)


def run(model):
    result = optimize(model, "fold-batch-norm", check_each=True)
    reasons = [left.reason for left in result.report.records[0].left_alone]
    return [node.op_type for node in result.model.graph], reasons


def linear(net, kind, x):
    if kind == "Conv":
        return net.op("Conv", x, net.weight(4, 4, 3, 3), kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    if kind == "ConvTranspose":
        return net.op("ConvTranspose", x, net.weight(4, 2, 2, 2), group=2, kernel_shape=[2, 2])
    if kind == "Gemm":
        return net.op("Gemm", x, net.weight(4, 4), net.weight(4), transB=1, alpha=0.5)
    return net.op("MatMul", x, net.weight(4, 4))


def source(net, kind):
    return net.input(2, 4, 6, 6) if kind.startswith("Conv") else net.input(3, 4)


def constant(net, kind):
    return net.constant(VECTOR.reshape(4, 1, 1) if kind.startswith("Conv") else VECTOR)


@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose", "Gemm"])
@pytest.mark.parametrize("op", ["Mul", "Div", "Add", "Sub"])
@pytest.mark.parametrize("constant_first", [False, True])
def test_behind(network, kind, op, constant_first):
    net = network()
    value, number = linear(net, kind, source(net, kind)), constant(net, kind)
    ops, _ = run(net.model(net.op(op, number, value) if constant_first else net.op(op, value, number)))
    divides_by_it = op == "Div" and constant_first
    assert ops == ([kind, "Div"] if divides_by_it else [kind])


@pytest.mark.parametrize(
    ("kind", "op", "folds"),
    [
        ("Conv", "Mul", True),
        ("Conv", "Div", True),
        ("Conv", "Add", False),
        ("ConvTranspose", "Mul", True),
        ("ConvTranspose", "Sub", False),
        ("Gemm", "Mul", True),
        ("Gemm", "Add", False),
        ("MatMul", "Div", True),
        ("MatMul", "Sub", False),
    ],
)
def test_before(network, kind, op, folds):
    net = network()
    x = net.op("Relu", source(net, kind))
    ops, _ = run(net.model(linear(net, kind, net.op(op, x, constant(net, kind)))))
    assert ops == (["Relu", kind] if folds else ["Relu", op, kind])


def test_a_picture_is_normalized_by_a_convolution_without_padding(network):
    net = network()
    x = net.input("N", 3, 8, 8)
    mean, deviation = (
        net.constant(np.array(v, np.float32).reshape(1, 3, 1, 1)) for v in ([0.5, 0.4, 0.3], [0.2, 0.3, 0.25])
    )
    normalized = net.op("Div", net.op("Sub", x, mean), deviation)
    assert run(net.model(net.op("Conv", normalized, net.weight(4, 3, 3, 3), kernel_shape=[3, 3])))[0] == [
        "Conv"
    ]


def test_the_scale_of_a_normalization_is_left_to_its_fusion(network):
    net = network()
    x = net.input(3, 4)
    root = net.op(
        "Sqrt",
        net.op(
            "Add", net.op("ReduceMean", net.op("Mul", x, x), net.ints(-1)), net.constant(np.float32(1e-5))
        ),
    )
    scaled = net.op("Mul", net.op("Div", x, root), net.constant(VECTOR))
    model = net.model(net.op("MatMul", scaled, net.weight(4, 4)))
    assert not optimize(model, "fold-batch-norm").report.records[0].changed
    assert "RMSNormalization" in [
        n.op_type for n in optimize(model, "fold-batch-norm,fuse-normalization").model.graph
    ]


@pytest.mark.parametrize("number", [0.0, 1e-42])
def test_division_by_next_to_nothing_stays(network, number):
    net = network()
    value = linear(net, "Conv", source(net, "Conv"))
    result = optimize(net.model(net.op("Div", value, net.constant(np.float32(number)))), "fold-batch-norm")
    assert [node.op_type for node in result.model.graph] == ["Conv", "Div"]
    assert result.report.records[0].left_alone
