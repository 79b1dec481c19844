"""merge-shapes: text in, text out, same numbers for several sizes."""

import onnx_ir as ir
import pytest
from graphwright.ir.compare import compare
from graphwright.ir.inputs import random_inputs
from graphwright.ir.reference import run_reference
from graphwright.passes.optimize import optimize

CONSTANTS = """int64 zero = {0}, int64 one = {1}, int64 last = {-1}, int64[1] v0 = {0}, int64[1] v1 = {1},
    int64[1] v2 = {2}, int64[2] ends = {0, 2}, int64[2] row = {1, 2}, int64[1] big = {99}, int64[1] four = {4}"""


def run(text, pipeline="merge-shapes"):
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 23]>\n{text}')
    for i, node in enumerate(model.graph):
        node.name = f"{node.op_type}_{i}"
    result = optimize(model, pipeline, check_each=True)
    for sizes in ({"N": 1, "M": 5}, {"N": 3, "M": 1}):
        feeds = random_inputs(model, dims=sizes)
        assert compare(run_reference(model, feeds), run_reference(result.model, feeds)).max_rel <= 1e-6
    return [describe(node) for node in result.model.graph], result


def describe(node):
    if node.op_type != "Shape":
        return node.op_type
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", -99)
    return f"Shape[{start}:{'' if end == -99 else end}]"


@pytest.mark.parametrize(
    ("body", "size", "left"),
    [
        ("s = Shape(x)\n y = Gather(s, row)", 2, ["Shape[1:3]"]),
        ("s = Shape(x)\n y = Gather(s, ends)", 2, ["Shape[0:]", "Gather"]),
        ("s = Shape<start = 1>(x)\n y = Gather(s, v0)", 1, ["Shape[1:2]"]),
        ("s = Shape(x)\n y = Slice(s, v1, big)", 2, ["Shape[1:3]"]),
        ("s = Shape<start = -2>(x)\n y = Slice(s, v0, v1)", 1, ["Shape[1:2]"]),
        ("s = Shape(x)\n g = Gather(s, one)\n y = Unsqueeze(g, v0)", 1, ["Shape[1:2]"]),
        ("s = Shape(x)\n g = Gather(s, zero)\n y = Reshape(g, v1)", 1, ["Shape[0:1]"]),
        ("r = Relu(x)\n c = Cast<to = 1>(r)\n s = Softmax(c)\n y = Shape(s)", 3, ["Shape[0:]"]),
        (
            "a = Shape<end = 1>(x)\n b = Shape<start = 1, end = 2>(x)\n y = Concat<axis = 0>(a, b)",
            2,
            ["Shape[0:2]"],
        ),
        (
            "a = Shape<end = 1>(x)\n b = Shape<start = 1>(x)\n y = Concat<axis = 0>(v1, a, b, v2)",
            5,
            ["Shape[0:3]", "Concat"],
        ),
        (
            "a = Shape<start = 1>(x)\n b = Shape<end = 1>(x)\n y = Concat<axis = 0>(a, b)",
            3,
            ["Shape[1:]", "Shape[0:1]", "Concat"],
        ),
    ],
)
def test_parts_of_shapes(body, size, left):
    ops, _ = run(f"g (float[N,M,4] x) => (int64[{size}] y) <{CONSTANTS}> {{ {body} }}")
    assert ops == left


def test_known_sizes_are_constants():
    ops, result = run(
        f"""g (float[N,M,4] x) => (float[N,4] y) <{CONSTANTS}> {{
            n = Shape<start = 0, end = 1>(x)
            d = Shape<start = 2>(x)
            s = Concat<axis = 0>(n, d)
            m = ReduceMax<keepdims = 0>(x, v1)
            y = Expand(m, s)
        }}"""
    )
    assert ops == ["ReduceMax", "Expand"]
    assert result.model.graph[1].inputs[1].const_value.numpy().tolist() == [1, 4]


def test_fills_of_known_sizes_get_a_constant():
    ops, _ = run(
        f"""g (float[N,M,4] x) => (float[4,4] y) <{CONSTANTS}> {{
            d = Shape<start = 2>(x)
            s = Concat<axis = 0>(d, four)
            y = ConstantOfShape(s)
        }}"""
    )
    assert ops == ["ConstantOfShape"]


def test_expands_to_sizes_of_something_else_stay():
    ops, result = run(
        f"""g (float[N,M,4] x, float[1,1,4] z) => (float[N,M,4] y) <{CONSTANTS}> {{
            s = Shape(x)
            y = Expand(z, s)
        }}"""
    )
    assert ops == ["Shape[0:]", "Expand"]
    assert result.report.records[0].left_alone[0].reason == "one of its sizes is known at run time only"


def test_the_same_symbols_are_read_once():
    ops, result = run(
        f"""g (float[N,M] x, float[N,4] z) => (int64[1] p, int64[1] q, int64[1] r) <{CONSTANTS}> {{
            a = Shape<end = 1>(x)
            b = Shape<end = 1>(z)
            c = Shape<start = 1>(x)
            p = Neg(a)
            q = Neg(b)
            r = Neg(c)
        }}""",
        "eliminate-common-subexpressions",
    )
    assert ops == ["Shape[0:1]", "Shape[1:]", "Neg", "Neg", "Neg"]
    assert result.report.records[0].statistics["nodes merged"] == 1


def test_sizes_in_a_loop_are_not_those_outside():
    text = """g (float[N,4] x, float[N,4] z) => (int64[1] p, int64[k] q) <int64 three = {3}, bool yes = {1}> {
        p = Shape<end = 1>(x)
        w, q = Loop(three, yes, x) <body = body (int64 i, bool c, float[N,4] v) => (bool d, float[L,4] u, int64[1] s) {
            d = Identity(c)
            u = Concat<axis = 0>(v, z)
            s = Shape<end = 1>(v)
        }>
    }"""
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 23]>\n{text}')
    before = optimize(model, "eliminate-dead").model
    feeds = random_inputs(before, dims={"N": 2})
    after = optimize(model, "merge-shapes,eliminate-common-subexpressions").model
    assert run_reference(after, feeds)["q"].ravel().tolist() == [2, 4, 6]
