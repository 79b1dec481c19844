"""eliminate-identity, eliminate-dead and eliminate-common-subexpressions: text in, text out, same numbers."""

import onnx_ir as ir
import pytest
from graphwright.passes.optimize import optimize


def model_of(text: str) -> ir.Model:
    model = ir.from_onnx_text('<ir_version: 10, opset_import: ["" : 23, "local" : 1]>\n' + text)
    for i, node in enumerate(node for graph in model.graphs() for node in graph):
        node.name = f"{node.op_type}_{i}"
    return model


def run(text: str, pipeline: str):
    result = optimize(model_of(text), pipeline, check_each=True)
    return result.model, result.report.records[0]


def ops(graph) -> list[str]:
    return [node.op_type for node in getattr(graph, "graph", graph)]


def wrapped(line: str, constants: str = "") -> str:
    return f"g (float[2,3] x) => (float[2,3] y) {constants} {{ a = Relu(x)\n {line}\n y = Neg(b) }}"


@pytest.mark.parametrize(
    ("line", "constants"),
    [
        ("b = Identity(a)", ""),
        ("b = Dropout(a)", ""),
        ("b, m = Dropout(a, r, t)", "<float r = {0.5}, bool t = {0}>"),
        ("b = Concat <axis = 0> (a)", ""),
        ("b = Sum(a)", ""),
        ("b = Cast <to = 1> (a)", ""),
        ("b = Transpose <perm = [0, 1]> (a)", ""),
        ("b = Reshape(a, s)", "<int64[2] s = {2, -1}>"),
        ("b = Flatten <axis = 1> (a)", ""),
        ("b = Expand(a, s)", "<int64[2] s = {1, 3}>"),
        ("b = Tile(a, s)", "<int64[2] s = {1, 1}>"),
        ("b = Pad(a, s)", "<int64[4] s = {0, 0, 0, 0}>"),
        ("b = Slice(a, s, e)", "<int64[1] s = {0}, int64[1] e = {9}>"),
        ("b = Split <num_outputs = 1> (a)", ""),
        ("b = Add(a, c)", "<float c = {0.0}>"),
        ("b = Add(c, a)", "<float[3] c = {0.0, 0.0, 0.0}>"),
        ("b = Mul(a, c)", "<float[1,1] c = {1.0}>"),
        ("b = Sub(a, c)", "<float c = {0.0}>"),
        ("b = Div(a, c)", "<float c = {1.0}>"),
        ("b = Pow(a, c)", "<float c = {1.0}>"),
        ("b = Clip(a)", ""),
    ],
)
def test_operators_that_hand_on_their_input_go(line, constants):
    model, record = run(wrapped(line, constants), "eliminate-identity")
    assert ops(model) == ["Relu", "Neg"]
    assert record.statistics == {"removed": 1}


@pytest.mark.parametrize(
    ("line", "constants"),
    [
        (
            "b = Cast <to = 11> (a)\n b = Cast <to = 1> (b)".replace(
                "b = Cast <to = 11>", "k = Cast <to = 11>"
            ).replace("(b)", "(k)"),
            "",
        ),
        ("t = Transpose <perm = [1, 0]> (a)\n b = Transpose <perm = [1, 0]> (t)", ""),
        (
            "b = Slice(a, s, e, ax, st)",
            "<int64[1] s = {2}, int64[1] e = {-9}, int64[1] ax = {1}, int64[1] st = {-1}>",
        ),
        ("b = Add(a, c)", "<float c = {1.0}>"),
        ("b = Sub(c, a)", "<float c = {0.0}>"),
        ("b = Div(c, a)", "<float c = {1.0}>"),
        ("b = Clip(a, c)", "<float c = {1.0}>"),
    ],
)
def test_operators_that_change_something_stay(line, constants):
    model, record = run(wrapped(line, constants), "eliminate-identity")
    assert not record.changed
    assert len(ops(model)) > 2


def test_a_constant_that_broadcasts_the_input_stays():
    model, record = run(
        "g (float[1,3] x) => (float[2,3] y) <float[2,1] c = {0.0, 0.0}> { a = Relu(x)\n y = Add(a, c) }",
        "eliminate-identity",
    )
    assert not record.changed


def test_dropout_in_training_mode_or_with_a_used_mask_stays():
    text = "g (float[2] x) => (float[2] y, bool[2] m) { a, m = Dropout(x)\n y = Neg(a) }"
    model, record = run(text, "eliminate-identity")
    assert not record.changed
    text = "g (float[2] x) => (float[2] y) <float r = {0.5}, bool t = {1}> { a, m = Dropout(x, r, t)\n y = Neg(a) }"
    assert not optimize(model_of(text), "eliminate-identity").report.records[0].changed


def test_identity_at_the_border_stays_and_says_why():
    model, record = run("g (float[2] x) => (float[2] y) { y = Identity(x) }", "eliminate-identity")
    assert not record.changed
    assert record.left_alone[0].reason == "it gives a graph output its name"


def test_identity_before_an_output_goes_and_the_name_stays():
    model, _ = run("g (float[2] x) => (float[2] y) { a = Relu(x)\n y = Identity(a) }", "eliminate-identity")
    assert ops(model) == ["Relu"]
    assert model.graph.outputs[0].name == "y"


def test_dynamic_shapes_are_compared_by_symbol():
    text = "g (float[N,3] x) => (float[N,3] y) <float[1,3] c = {0.0, 0.0, 0.0}> { a = Relu(x)\n b = Add(a, c)\n y = Neg(b) }"
    model, record = run(text, "eliminate-identity")
    assert ops(model) == ["Relu", "Neg"]


def test_dead_nodes_initializers_and_functions_go():
    text = """
    g (float[2] x, float[2] unused) => (float[2] y) <float[2] w = {1.0, 2.0}> {
        y = Neg(x)
        a = Add(x, w)
        b, c = Split <num_outputs = 2> (a)
        d = local.f(b)
    }
    <domain: "local", opset_import: ["" : 23]> f (p) => (q) { q = Relu(p) }
    """
    model, record = run(text, "eliminate-dead")
    assert ops(model) == ["Neg"]
    assert not model.graph.initializers
    assert not model.functions
    assert [value.name for value in model.graph.inputs] == ["x", "unused"]
    assert record.statistics == {"nodes removed": 3, "initializers removed": 1, "functions removed": 1}


def test_what_a_body_reads_is_alive():
    text = """
    g (bool c, float[2] x) => (float[2] y) {
        a = Abs(x)
        y = If (c) < then_branch = then () => (float[2] t) { t = Neg(a) },
                     else_branch = other () => (float[2] o) { u = Neg(x)
                       o = Abs(x) } >
    }"""
    model, record = run(text, "eliminate-dead")
    assert ops(model) == ["Abs", "If"]
    (other,) = [graph for graph in model.graphs() if graph.name == "other"]
    assert ops(other) == ["Abs"]


def test_a_dead_if_goes_with_everything_it_read():
    text = """
    g (bool c, float[2] x) => (float[2] y) {
        a = Abs(x)
        d = If (c) < then_branch = then () => (float[2] t) { t = Neg(a) },
                     else_branch = other () => (float[2] o) { o = Abs(a) } >
        y = Relu(x)
    }"""
    model, _ = run(text, "eliminate-dead")
    assert ops(model) == ["Relu"]


def test_equal_nodes_are_computed_once():
    text = """
    g (float[2] x, float[2] z) => (float[2] y) {
        a = Add(x, z)
        b = Add(z, x)
        c = Sub(x, z)
        d = Sub(z, x)
        y = Sum(a, b, c, d)
    }"""
    model, record = run(text, "eliminate-common-subexpressions")
    assert ops(model) == ["Add", "Sub", "Sub", "Sum"]
    assert record.statistics == {"nodes merged": 1}


def test_chains_merge_in_one_sweep():
    text = (
        "g (float[2] x) => (float[2] y) { a = Abs(x)\n b = Abs(x)\n c = Neg(a)\n d = Neg(b)\n y = Add(c, d) }"
    )
    model, _ = run(text, "eliminate-common-subexpressions")
    assert ops(model) == ["Abs", "Neg", "Add"]


@pytest.mark.parametrize(
    "text",
    [
        "g (float[2] x) => (float[2] y, float[2] z) { y = Neg(x)\n z = Neg(x) }",
        "g (float[4] x) => (float[4] y) { a = LeakyRelu <alpha = 0.1> (x)\n b = LeakyRelu <alpha = 0.2> (x)\n y = Add(a, b) }",
    ],
)
def test_outputs_and_different_attributes_do_not_merge(text):
    _, record = run(text, "eliminate-common-subexpressions")
    assert not record.changed


def test_random_nodes_do_not_merge():
    text = (
        "g (float[2] x) => (float[2] y) { a = RandomNormalLike(x)\n b = RandomNormalLike(x)\n y = Sub(a, b) }"
    )
    assert not optimize(model_of(text), "eliminate-common-subexpressions").report.records[0].changed


def test_sibling_bodies_do_not_share_but_may_use_the_outer_node():
    text = """
    g (bool c, float[2] x) => (float[2] y) {
        a = Abs(x)
        r = If (c) < then_branch = then () => (float[2] t) { p = Abs(x)
                       q = Exp(x)
                       t = Add(p, q) },
                     else_branch = other () => (float[2] o) { u = Exp(x)
                       o = Neg(u) } >
        y = Add(a, r)
    }"""
    model, record = run(text, "eliminate-common-subexpressions")
    bodies = {graph.name: ops(graph) for graph in model.graphs()}
    assert bodies["then"] == ["Exp", "Add"]
    assert bodies["other"] == ["Exp", "Neg"]


def test_small_integer_constants_merge_but_weights_stay_apart():
    text = """
    g (float[2] x) => (float[2] y) <int64[1] s = {2}, int64[1] t = {2}, float[2] w = {1.0, 2.0}, float[2] v = {1.0, 2.0}> {
        a = Reshape(x, s)
        b = Reshape(x, t)
        c = Mul(a, w)
        d = Mul(b, v)
        y = Add(c, d)
    }"""
    model, _ = run(text, "eliminate-common-subexpressions")
    assert ops(model) == ["Reshape", "Mul", "Mul", "Add"]
    assert sorted(model.graph.initializers) == ["s", "v", "w"]
