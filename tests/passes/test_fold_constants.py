"""fold-constants: what does not depend on the inputs is computed once, and the model never swells."""

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.reference import run_reference
from graphwright.passes.optimize import optimize


def model_of(text: str) -> ir.Model:
    model = ir.from_onnx_text('<ir_version: 10, opset_import: ["" : 23]>\n' + text)
    for i, node in enumerate(node for graph in model.graphs() for node in graph):
        node.name = f"{node.op_type}_{i}"
    return model


def folded(model: ir.Model, pipeline: str = "fold-constants"):
    result = optimize(model, pipeline, check_each=True)
    return result.model, result.report.records[0]


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def constant_bytes(model: ir.Model) -> int:
    return sum(value.const_value.nbytes for value in model.graph.initializers.values())


def test_a_chain_of_constants_becomes_one_initializer():
    model, record = folded(
        model_of("""
        g (float[2] x) => (float[2] y) <float[2] a = {1.0, 2.0}> {
            b = Constant <value_floats = [3.0, 4.0]> ()
            c = Mul(a, b)
            d = Neg(c)
            y = Add(x, d)
        }""")
    )
    assert ops(model) == ["Add"]
    (value,) = model.graph.initializers.values()
    np.testing.assert_array_equal(value.const_value.numpy(), [-3, -8])
    assert record.statistics["folded"] == 2


def test_the_zero_bias_that_torch_ties_to_the_input_is_folded():
    model, record = folded(
        model_of("""
        g (float[N,3] x) => (float[N,2] y) <float[2,3] w = {1, 2, 3, 4, 5, 6}, int64[1] n = {2}, int64 zero = {0}> {
            z = CastLike(zero, x)
            b = Expand(z, n)
            y = Gemm <transB = 1> (x, w, b)
        }""")
    )
    assert ops(model) == ["Gemm"]
    assert model.graph[0].inputs[2].const_value.numpy().dtype == np.float32
    assert record.statistics["types folded"] == 1


def test_shape_chains_of_static_shapes_disappear():
    model, _ = folded(
        model_of("""
        g (float[2,3,4] x) => (float[2,12] y) <int64[1] minus = {-1}, int64 zero = {0}, int64[1] axis = {0}> {
            s = Shape(x)
            n = Gather(s, zero)
            m = Unsqueeze(n, axis)
            t = Concat <axis = 0> (m, minus)
            y = Reshape(x, t)
        }""")
    )
    assert ops(model) == ["Reshape"]


def test_static_dimensions_of_a_dynamic_shape_are_folded():
    model, _ = folded(
        model_of("""
        g (float[N,3,4] x) => (float[N,M] y) <int64 one = {1}, int64 two = {2}, int64 zero = {0}, int64[1] ax
        = {0}> {
            s = Shape(x)
            c = Gather(s, one)
            d = Gather(s, two)
            e = Mul(c, d)
            n = Gather(s, zero)
            n1 = Unsqueeze(n, ax)
            e1 = Unsqueeze(e, ax)
            t = Concat <axis = 0> (n1, e1)
            y = Reshape(x, t)
        }""")
    )
    assert ops(model) == ["Shape", "Gather", "Unsqueeze", "Concat", "Reshape"]
    assert any(value.const_value.numpy().tolist() == [12] for value in model.graph.initializers.values()), (
        "3 * 4 is known although N is not"
    )


def test_results_beyond_the_budget_stay_and_are_reported():
    text = """
    g (float[1] x) => (float[512,512] y) <int64[2] shape = {512, 512}, float[1] one = {1.0}> {
        big = Expand(one, shape)
        y = Add(x, big)
    }"""
    model, record = folded(model_of(text))
    assert ops(model) == ["Expand", "Add"]
    assert constant_bytes(model) < 1000
    (left,) = record.left_alone
    assert left.node == "Expand_0"
    assert "1048576 bytes" in left.reason

    model, record = folded(model_of(text), "fold-constants{limit=2000000}")
    assert ops(model) == ["Add"]


def test_what_depends_on_a_result_beyond_the_budget_stays_too():
    text = """
    g (float[1] x) => (float[1024,1024] y)
      <int64[2] shape = {512, 512}, int64[2] twice = {2, 2}, float[1] one = {1.0}> {
        big = Expand(one, shape)
        bigger = Tile(big, twice)
        y = Add(x, bigger)
    }"""
    model, _ = folded(model_of(text))
    assert ops(model) == ["Expand", "Tile", "Add"]


def test_many_small_growths_are_bounded_together():
    lines = "\n".join(f"b{i} = Expand(one, shape)\n c{i} = Add(x, b{i})" for i in range(40))
    total = "y = Sum(" + ", ".join(f"c{i}" for i in range(40)) + ")"
    model = model_of(
        f"g (float[1] x) => (float[2048] y) <int64[1] shape = {{2048}}, float[1] one = "
        f"{{1.0}}> {{ {lines}\n{total} }}"
    )
    before = constant_bytes(model)
    result, record = folded(model)
    assert constant_bytes(result) <= before + 65536
    assert 0 < record.statistics["folded"] < 40
    assert record.left_alone


def test_quantized_weights_stay_small():
    model, _ = folded(
        model_of("""
        g (float[2] x) => (float[2] y) <int8[2] w = {1, 2}, float s = {0.5}, int8 z = {0}> {
            f = DequantizeLinear(w, s, z)
            y = Add(x, f)
        }""")
    )
    assert ops(model) == ["DequantizeLinear", "Add"]


def test_random_results_are_not_constants():
    result = optimize(
        model_of("g (float[2] x) => (float[2] y) { r = RandomNormal <shape = [2]> ()\n y = Add(x, r) }"),
        "fold-constants",
    )
    assert ops(result.model) == ["RandomNormal", "Add"]


def test_a_constant_graph_output_keeps_its_producer():
    model, _ = folded(
        model_of(
            "g (float[2] x) => (float[2] y, float[2] c) { c = Constant <value_floats = [1.0, "
            "2.0]> ()\n y = Add(x, c) }"
        )
    )
    assert [output.name for output in model.graph.outputs] == ["y", "c"]
    np.testing.assert_array_equal(run_reference(model, {"x": np.zeros(2, np.float32)})["c"], [1, 2])


def test_what_computes_a_constant_graph_output_becomes_a_constant_node():
    model, result = folded(
        model_of("""
        g (float[2] x, float[3, 4] w) => (float[2] y, float[2] c, int64[2] s, float[2] both) <float[2] a = {1.0, 2.0}> {
            n = Neg (a)
            c = Mul (n, n)
            s = Shape (w)
            both = Sub (n, c)
            y = Add (x, both)
        }
        """)
    )
    assert sorted(ops(model)) == ["Add", "Constant", "Constant", "Constant"]
    assert [output.name for output in model.graph.outputs] == ["y", "c", "s", "both"]
    found = run_reference(model, {"x": np.zeros(2, np.float32), "w": np.zeros((3, 4), np.float32)})
    expected = {"y": [-2, -6], "c": [1, 4], "s": [3, 4], "both": [-2, -6]}
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_a_constant_result_of_a_body_becomes_a_constant_node():
    model, _ = folded(
        model_of("""
        g (bool c, float[2] x) => (float[2] y) <float[2] a = {1.0, 2.0}> {
            y = If (c) <
                then_branch = then () => (float[2] t) { n = Neg (a)
                  t = Mul (n, n) },
                else_branch = other () => (float[2] e) { e = Neg (x) }
            >
        }
        """)
    )
    (branch,) = (graph for graph in model.graphs() if graph.name == "then")
    assert [node.op_type for node in branch] == ["Constant"]
    feeds = {"c": np.array(True), "x": np.zeros(2, np.float32)}
    np.testing.assert_array_equal(run_reference(model, feeds)["y"], [1, 4])


def test_bodies_are_folded_too():
    model, _ = folded(
        model_of("""
        g (bool c, float[2] x) => (float[2] y) <float[2] a = {1.0, 2.0}> {
            y = If (c) <
                then_branch = then () => (float[2] t) { n = Neg(a)
                  m = Neg(n)
                  k = Mul(m, m)
                  t = Add(x, k) },
                else_branch = other () => (float[2] o) { o = Abs(x) }
            >
        }""")
    )
    (then,) = [graph for graph in model.graphs() if graph.name == "then"]
    assert [node.op_type for node in then] == ["Add"]


def test_selectors_exempt_nodes():
    model = model_of("g (float[1] x) => (float[1] y) <float[1] a = {2.0}> { b = Neg(a)\n y = Add(x, b) }")
    result, _ = folded(model, "fold-constants{skip=Neg}")
    assert ops(result) == ["Neg", "Add"]


def test_a_graph_input_with_a_default_is_no_constant():
    model = model_of(
        "g (float[1] x, float[1] w) => (float[1] y) <float[1] w = {2.0}> { b = Neg(w)\n y = Add(x, b) }"
    )
    result = optimize(model, "fold-constants")
    assert ops(result.model) == ["Neg", "Add"]


def test_nothing_to_do_changes_nothing():
    result = optimize(model_of("g (float[1] x) => (float[1] y) { y = Neg(x) }"), "fold-constants")
    assert not result.report.records[0].changed


@pytest.mark.parametrize("shape", ["float[0]", "float[]"])
def test_empty_and_scalar_constants_keep_their_shape(shape):
    value = "{}" if shape == "float[0]" else "{2.0}"
    model, _ = folded(
        model_of(
            f"g (float[3] x) => ({shape} y, float[3] z) <{shape.replace('[]', '')} a = {value}> {{ "
            f"b = Neg(a)\n c = Abs(b)\n y = Identity(c)\n z = Identity(x) }}"
        )
    )
    out = run_reference(model, {"x": np.zeros(3, np.float32)})["y"]
    assert out.shape == ((0,) if shape == "float[0]" else ())
