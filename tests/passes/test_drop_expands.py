"""drop-expands and inline-ifs: text in, text out, same numbers."""

import onnx_ir as ir
import pytest
from graphwright.passes.optimize import optimize


def run(text: str, pipeline: str):
    model = ir.from_onnx_text('<ir_version: 10, opset_import: ["" : 23]>\n' + text)
    for i, node in enumerate(model.graph):
        node.name = f"{node.op_type}_{i}"
    result = optimize(model, pipeline, check_each=True)
    return [node.op_type for node in result.model.graph], result.report.records[0], result.model


def test_an_expand_to_what_the_other_operand_has_is_dropped():
    ops, _, model = run(
        """
        g (float[N,3] x, float[3] b) => (float[N,3] y) {
            s = Shape(x)
            e = Expand(b, s)
            y = Add(x, e)
        }""",
        "drop-expands",
    )
    assert ops == ["Add"]
    assert [v.name for v in model.graph[0].inputs] == ["x", "b"]


def test_an_expand_that_makes_the_output_larger_stays():
    ops, record, _ = run(
        """
        g (float[1,3] x, float[3] b) => (float[2,3] y) <int64[2] s = {2, 3}> {
            e = Expand(b, s)
            y = Add(x, e)
        }""",
        "drop-expands",
    )
    assert ops == ["Expand", "Add"] and not record.changed


def test_one_of_two_expands_stays_where_nothing_else_has_the_size():
    ops, _, _ = run(
        """
        g (float[1,3] x, float[3] b) => (float[2,3] y) <int64[2] s = {2, 3}> {
            e = Expand(b, s)
            f = Expand(x, s)
            y = Mul(e, f)
        }""",
        "drop-expands",
    )
    assert ops == ["Expand", "Mul"]


@pytest.mark.parametrize(("flags", "kept"), [("1, 1", "Relu"), ("0, 0", "Neg")])
def test_where_of_a_known_condition_is_one_operand(flags, kept):
    ops, _, _ = run(
        f"""
        g (float[3,2] x) => (float[3,2] y) <bool[2] c = {{{flags}}}> {{
            a = Relu(x)
            b = Neg(x)
            w = Where(c, a, b)
            y = Abs(w)
        }}""",
        "drop-expands",
    )
    assert ops == [kept, "Abs"]


def test_where_stays_where_its_choice_would_have_to_be_broadcast():
    ops, record, _ = run(
        """
        g (float[1,2] x, float[3,2] z) => (float[3,2] y) <bool c = {1}> { y = Where(c, x, z) }""",
        "drop-expands",
    )
    assert ops == ["Where"]
    assert record.left_alone[0].reason == "the chosen operand would have to be broadcast"


BRANCHES = """
    g (float[3] x, bool r) => (float[3] y) <bool c = {%d}> {
        a = Relu(x)
        y = If (c) <
            then_branch = t () => (float[3] o) <float two = {2.0}> {
                m = Mul(a, two)
                o = If (r) <
                    then_branch = tt () => (float[3] p) { p = Neg(m) },
                    else_branch = te () => (float[3] q) { q = Abs(m) }
                >
            },
            else_branch = e () => (float[3] o2) { m = Sqrt(a) o2 = Add(m, x) }
        >
    }"""


def test_the_branch_taken_moves_out_with_its_constants():
    ops, record, model = run(BRANCHES % 1, "inline-ifs")
    assert ops == ["Relu", "Mul", "If"]
    assert model.graph.outputs[0].name == "y"
    assert record.statistics == {"branches taken": 1}
    assert record.left_alone[0].reason == "its condition is computed"


def test_the_other_branch_leaves_nothing_behind():
    ops, _, model = run(BRANCHES % 0, "inline-ifs,eliminate-dead")
    assert ops == ["Relu", "Sqrt", "Add"]
    assert not model.graph.initializers


def test_names_of_moved_nodes_do_not_clash():
    ops, _, model = run(
        """
        g (float[3] x) => (float[3] y) <bool c = {1}> {
            a = If (c) <then_branch = t () => (float[3] o) { n = Neg(x) o = Abs(n) },
                        else_branch = e () => (float[3] o) { o = Exp(x) }>
            b = If (c) <then_branch = t () => (float[3] o) { n = Sin(a) o = Cos(n) },
                        else_branch = e () => (float[3] o) { o = Exp(a) }>
            y = Add(a, b)
        }""",
        "inline-ifs",
    )
    assert ops == ["Neg", "Abs", "Sin", "Cos", "Add"]
    names = [value.name for node in model.graph for value in node.outputs]
    assert len(set(names)) == len(names)


WIDE = "int64[3] wide = {2, 3, 4}, int64[2] pair = {3, 4}, int64[2] rows = {5, 1}, int64[2] three = {3, 1}, float c = {2.0}"


@pytest.mark.parametrize(
    ("inputs", "body", "shape", "left"),
    [
        ("float[1,4] x, float[3,4] z", "t = Tile(x, three)\n y = Add(t, z)", "3,4", ["Add"]),
        ("float[1,4] x, float[1,4] z", "t = Tile(x, three)\n y = Add(t, z)", "3,4", ["Tile", "Add"]),
        ("float[2,4] x, float[6,4] z", "t = Tile(x, three)\n y = Add(t, z)", "6,4", ["Tile", "Add"]),
        ("float[3,4] x, float[2,4,5] z", "e = Expand(x, wide)\n y = MatMul(e, z)", "2,3,5", ["MatMul"]),
        (
            "float[1,3,4] x, float[4,5] z",
            "e = Expand(x, wide)\n y = MatMul(e, z)",
            "2,3,5",
            ["Expand", "MatMul"],
        ),
        (
            "float[1,1,4] x, float[2,4,5] z",
            "e = Expand(x, wide)\n y = MatMul(e, z)",
            "2,3,5",
            ["Expand", "MatMul"],
        ),
        (
            "float[4] x, float[2,3,4] z",
            "e = Expand(x, pair)\n f = Expand(e, wide)\n y = Neg(f)",
            "2,3,4",
            ["Expand", "Neg"],
        ),
        (
            "float[N,1] x, float[1] z",
            "e = Tile(x, three)\n f = Tile(e, rows)\n y = Neg(f)",
            "M,1",
            ["Tile", "Neg"],
        ),
        ("float[N,4] x, float[1] z", "s = Shape(x)\n f = ConstantOfShape(s)\n y = Add(x, f)", "N,4", ["Add"]),
        (
            "float[N,4] x, float[1] z",
            "s = Shape(x)\n f = ConstantOfShape(s)\n y = Add(z, f)",
            "N,4",
            ["Shape", "ConstantOfShape", "Add"],
        ),
    ],
)
def test_what_broadcasts_by_itself(inputs, body, shape, left):
    ops, _, _ = run(f"g ({inputs}) => (float[{shape}] y) <{WIDE}> {{ {body} }}", "drop-expands")
    assert ops == left


def test_fills_keep_their_number():
    _, _, model = run(
        """g (int64[N] x) => (int64[N] y) {
            s = Shape(x)
            f = ConstantOfShape<value = int64[1] {7}>(s)
            y = Mul(x, f)
        }""",
        "drop-expands",
    )
    assert model.graph[0].inputs[1].const_value.numpy().tolist() == 7
