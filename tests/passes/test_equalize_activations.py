"""equalize-activations: the same outputs, evener channels, one factor for everything that is added up."""

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.constants import constant_array
from graphwright.ir.errors import PassError
from graphwright.ir.reference import run_reference
from graphwright.passes.equivalence import check_equivalent
from graphwright.passes.optimize import optimize
from graphwright.passes.quantization.repair.channel_statistics import channel_statistics
from graphwright.passes.quantization.repair.places import Place
from graphwright.passes.quantization.repair.sites import joint_sites
from hypothesis import given, settings
from hypothesis import strategies as st

RESIDUAL = """
<ir_version: 10, opset_import: ["" : 23]>
net (float[2,6,5,5] x, float[8,6,1,1] w0, float[8] b0, float[8,8,3,3] w1, float[8] b1, float[8,8,1,1] w2,
     float[8,1,3,3] w3, float[4,8] w4) => (float[2,4] y) {
  a = Conv(x, w0, b0)
  r0 = Relu(a)
  c = Conv<pads=[1,1,1,1]>(r0, w1, b1)
  s1 = Add(c, r0)
  r1 = Relu(s1)
  d = Conv(r1, w2)
  s2 = Add(r1, d)
  p = MaxPool<kernel_shape=[2,2]>(s2)
  e = Conv<pads=[1,1,1,1], group=8>(p, w3)
  g = GlobalAveragePool(e)
  f = Flatten(g)
  y = Gemm<transB=1>(f, w4)
}
"""


def built(text: str, seed: int = 0, uneven: float = 8.0) -> ir.Model:
    model = ir.from_onnx_text(text)
    rng = np.random.default_rng(seed)
    for value in list(model.graph.inputs)[1:]:
        assert value.shape is not None
        array = rng.normal(size=value.shape.numpy()).astype(np.float32)
        if value.name in ("w0", "b0"):
            spread = uneven ** np.linspace(-1, 1, len(array))
            array *= spread.reshape(-1, *[1] * (array.ndim - 1)).astype(np.float32)
        value.const_value = ir.tensor(array, name=value.name)
        model.graph.register_initializer(value)
    model.graph.inputs[:] = [model.graph.inputs[0]]
    for node in model.graph:
        node.name = f"make_{node.outputs[0].name}"
    return optimize(model, "eliminate-dead").model


def data(count: int = 3) -> list[dict[str, np.ndarray]]:
    return [
        {"x": np.random.default_rng(seed).normal(size=(2, 6, 5, 5)).astype(np.float32)}
        for seed in range(count)
    ]


def unevenness(model: ir.Model, name: str) -> float:
    value = next(value for node in model.graph for value in node.outputs if value.name == name)
    found = channel_statistics(model, [(value, Place((1,), (8,)))], data())[name].magnitude
    return float(found.max() / found.mean())


def test_one_factor_for_all_that_is_added_up():
    model = built(RESIDUAL)
    left: dict[str, str] = {}
    sites = joint_sites(
        model.graph,
        lambda node: node.op_type in ("Conv", "Gemm"),
        lambda n, why: left.update({n.op_type: why}),
    )
    made = [{value.name for node in site.roots for value in node.outputs} for site in sites]
    assert made == [{"a", "c", "d"}, {"e"}]
    assert {value.name for value, _ in sites[0].entries} == {"r0", "r1", "p"}
    assert {value.name for value, _, _ in sites[0].terms} == {"c", "r0", "r1", "d"}
    assert left == {"Gemm": "it reaches the output 'y' of the model"}


def test_outputs_stay_and_channels_become_even():
    model = built(RESIDUAL.replace("s1 = Add(c, r0)", "s1 = Relu(c)"))
    result = optimize(model, "equalize-activations", calibration=data())
    check_equivalent(model, result.model)
    record = result.report.records[0]
    assert record.statistics["equalized activations"] >= 1
    assert all(row["expected_gain_db"] > 0 for row in record.details["equalized"])
    assert unevenness(result.model, "r0") < 0.7 * unevenness(model, "r0")


def test_int8_comes_closer():
    model = built(RESIDUAL)
    tests = [{"x": np.random.default_rng(99).normal(size=(2, 6, 5, 5)).astype(np.float32)}]

    def noise(pipeline: str) -> float:
        made = optimize(model, pipeline, calibration=data()).model
        return sum(
            float(np.square(run_reference(made, feeds)["y"] - run_reference(model, feeds)["y"]).sum())
            for feeds in tests
        )

    quantize = "insert-qdq{target=tvm calibration=minmax}"
    assert noise(f"equalize-activations,{quantize}") < 0.6 * noise(quantize)


def test_even_channels_are_left_alone():
    model = built(RESIDUAL)
    once = optimize(model, "equalize-activations", calibration=data()).model
    twice = optimize(once, "equalize-activations", calibration=data())
    gains = [row["expected_gain_db"] for row in twice.report.records[0].details.get("equalized", [])]
    assert all(gain < 1.5 for gain in gains)


@pytest.mark.parametrize("nonlinear", ["Sigmoid", "HardSwish", "Tanh"])
def test_what_is_not_homogeneous_stops_a_factor(nonlinear):
    model = built(RESIDUAL.replace("r0 = Relu(a)", f"r0 = {nonlinear}(a)"))
    weight = next(node for node in model.graph if node.outputs[0].name == "a").inputs[1]
    before = constant_array(weight).copy()
    result = optimize(model, "equalize-activations", calibration=data())
    check_equivalent(model, result.model)
    after = next(node for node in result.model.graph if node.outputs[0].name == "a").inputs[1]
    assert np.array_equal(before, constant_array(after))


def test_a_reader_that_was_not_selected_keeps_its_weights():
    model = built(RESIDUAL)
    kept = next(node for node in model.graph if node.outputs[0].name == "d")
    result = optimize(model, f'equalize-activations{{skip="{kept.name}"}}', calibration=data())
    after = next(node for node in result.model.graph if node.outputs[0].name == "d")
    assert np.array_equal(constant_array(kept.inputs[1]), constant_array(after.inputs[1]))
    assert any("is no layer that may change" in reason for _, reason in reasons(result))


def reasons(result) -> list[tuple[str, str]]:
    return [(str(each), str(each)) for each in result.report.records[0].left_alone]


def test_no_data_is_one_line():
    with pytest.raises(PassError, match="it measures activations: give"):
        optimize(built(RESIDUAL), "equalize-activations")


def test_values_that_are_not_finite_are_left():
    model = built(RESIDUAL)
    node = next(node for node in model.graph if node.outputs[0].name == "a")
    array = constant_array(node.inputs[2]).copy()
    array[3] = np.inf
    node.inputs[2].const_value = ir.tensor(array, name="b0")
    result = optimize(model, "equalize-activations", calibration=data())
    assert any("not finite" in reason for _, reason in reasons(result))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**16), uneven=st.sampled_from([1.0, 5.0, 1e3, 1e6]), dead=st.integers(0, 7))
def test_any_weights_give_the_same_outputs(seed, uneven, dead):
    model = built(RESIDUAL, seed, uneven)
    node = next(node for node in model.graph if node.outputs[0].name == "a")
    for index in (1, 2):
        array = constant_array(node.inputs[index]).copy()
        array[dead] = 0.0
        node.inputs[index].const_value = ir.tensor(array, name=node.inputs[index].name)
    result = optimize(model, "equalize-activations", calibration=data(2))
    expected, found = (run_reference(each, data(1)[0])["y"] for each in (model, result.model))
    assert np.abs(expected - found).max() <= 1e-4 * max(np.abs(expected).max(), 1e-6)
    for value in result.model.graph.initializers.values():
        assert np.isfinite(constant_array(value)).all()
