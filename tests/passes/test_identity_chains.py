"""What leads from a graph input straight to a graph output ends as one Identity."""

import onnx_ir as ir
import pytest
from graphwright.passes.optimize import optimize

WHOLE, ONE = "9223372036854775807", "float[2,3] x) => (float[2,3] y)"
CUTS = "<int64[1] s = {0}, int64[1] m = {1}, int64[1] e = {3}, int64[1] a = {1}>"
CHAINS = {
    "slice": f"(float[2,3,4] x) => (float[2,3,4] y) {CUTS} {{ y = Slice(x, s, e, a) }}",
    "slices": f"(float[N,3] x) => (float[N,3] y) {CUTS} {{ p = Slice(x, s, m, a)\n q = Slice(x, m, e, a)\n y = Concat<axis = 1>(p, q) }}",
    "from the end": f"(float[2,4] x) => (float[2,4] y) <int64[1] s = {{0}}, int64[1] m = {{-1}}, int64[1] e = {{{WHOLE}}}, int64[1] a = {{1}}> {{ p = Slice(x, s, m, a)\n q = Slice(x, m, e, a)\n y = Concat<axis = 1>(p, q) }}",
    "split": "(float[2,4] x) => (float[2,4] y) { p, q = Split<axis = 1, num_outputs = 2>(x)\n y = Concat<axis = 1>(p, q) }",
    "slice of concat": "(float[2,3] x, float[2,3] z) => (float[2,3] y) <int64[1] s = {0}, int64[1] e = {2}, int64[1] a = {0}> { c = Concat<axis = 0>(x, z)\n y = Slice(c, s, e, a) }",
    "views": f"({ONE} <int64[2] t = {{2,3}}, int64[1] a = {{0}}> {{ p = Unsqueeze(x, a)\n q = Squeeze(p, a)\n y = Reshape(q, t) }}",
    "transposes": f"({ONE} {{ p = Transpose<perm = [1,0]>(x)\n q = Transpose<perm = [1,0]>(p)\n y = Cast<to = 1>(q) }}",
    "pad": f"({ONE} <int64[4] p = {{0,0,0,0}}> {{ y = Pad(x, p) }}",
    "expand": f"({ONE} <int64[2] s = {{2,3}}> {{ y = Expand(x, s) }}",
    "tile": f"({ONE} <int64[2] s = {{1,1}}> {{ y = Tile(x, s) }}",
    "sum of one": f"({ONE} {{ y = Sum(x) }}",
    "zero": f"({ONE} <float z = {{0}}> {{ a = Sub(x, z)\n y = Add(z, a) }}",
    "dropout": f"({ONE} {{ y = Dropout(x) }}",
    "where": f"({ONE} <bool c = {{1}}> {{ y = Where(c, x, x) }}",
    "two signs": f"({ONE} {{ a = Neg(x)\n y = Neg(a) }}",
}  # fmt: skip


def parsed(text: str) -> ir.Model:
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 23]>\ng {text}')
    for i, node in enumerate(model.graph):
        node.name = f"{node.op_type}_{i}"
    return model


@pytest.mark.parametrize("name", sorted(CHAINS))
def test_one_identity_is_left(name):
    result = optimize(parsed(CHAINS[name]), "simplify", check_each=True)
    (node,) = result.model.graph
    assert node.op_type == "Identity" and node.inputs[0] is result.model.graph.inputs[0]
    assert [value.name for value in result.model.graph.outputs] == ["y"]


def test_two_outputs_of_one_value_keep_their_names():
    text = "(float[2,3] x) => (float[2,3] y, float[2,3] z) { y = Neg(x)\n z = Cast<to = 1>(y) }"
    result = optimize(parsed(text), "simplify", check_each=True)
    assert [node.op_type for node in result.model.graph] == ["Neg", "Identity"]
    assert [value.name for value in result.model.graph.outputs] == ["y", "z"]


def test_a_body_that_returns_what_it_captures():
    text = """(bool c, float[2,3] x) => (float[2,3] y) <float z = {0}> { a = Abs(x)
        y = If(c) <then_branch = t () => (float[2,3] u) { u = Add(a, z) },
                   else_branch = e () => (float[2,3] v) { v = Neg(a) }> }"""
    result = optimize(parsed(text), "simplify", check_each=True)
    (branch,) = [graph for graph in result.model.graphs() if graph.name == "t"]
    assert [node.op_type for node in branch] == ["Identity"]
