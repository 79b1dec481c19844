"""Declarative patterns: operands, constants, alternatives, commutativity, captures, and why they fail."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.shapes import infer_shapes
from graphwright.passes.base import Pass, PassContext
from graphwright.passes.driver import drive
from graphwright.passes.matcher import match_pattern
from graphwright.passes.pattern_rule import PatternRule
from graphwright.passes.patterns import any_of, constant, maybe, op, outputs, rest, value


def model_of(text: str) -> ir.Model:
    model = ir.from_onnx_text('<ir_version: 10, opset_import: ["" : 23]>\n' + text)
    for i, node in enumerate(model.graph):
        node.name = f"{node.op_type}_{i}"
    return model


def match(pattern, text: str):
    model = model_of(text)
    return match_pattern(pattern, model.graph[-1])


x, y = value("x"), value("y")


def test_captures_values_and_nodes():
    found, _ = match(
        op("Add", op("Relu", x, name="relu"), y),
        "g (float[2] a, float[2] b) => (float[2] c) { r = Relu(a)\n c = Add(r, b) }",
    )
    assert (found["x"].name, found["y"].name) == ("a", "b")
    assert found.nodes["relu"].op_type == "Relu"
    assert [node.op_type for node in found.covered] == ["Add", "Relu"]


def test_the_same_name_means_the_same_value():
    square = op("Mul", x, x)
    assert match(square, "g (float[2] a) => (float[2] c) { c = Mul(a, a) }")[0]
    found, reason = match(square, "g (float[2] a, float[2] b) => (float[2] c) { c = Mul(a, b) }")
    assert found is None
    assert reason == "'x' would be two different values"


def test_the_same_pattern_object_means_the_same_node():
    shared = op("Relu", x)
    pattern = op("Add", shared, op("Neg", shared))
    assert match(pattern, "g (float[2] a) => (float[2] c) { r = Relu(a)\n n = Neg(r)\n c = Add(r, n) }")[0]
    found, _ = match(
        pattern, "g (float[2] a) => (float[2] c) { r = Relu(a)\n s = Relu(a)\n n = Neg(s)\n c = Add(r, n) }"
    )
    assert found is None


def test_commutative_operands_may_stand_in_either_order():
    text = "g (float[2] a) => (float[2] c) {{ s = Sigmoid(a)\n c = Mul({}) }}"
    pattern = op("Mul", x, op("Sigmoid", x), commutative=True)
    assert match(pattern, text.format("a, s"))[0]
    assert match(pattern, text.format("s, a"))[0]
    assert match(op("Mul", x, op("Sigmoid", x)), text.format("s, a"))[0] is None


def test_nested_commutative_operands_backtrack():
    """The first order of the inner Add binds x and y the wrong way for the outer one."""
    pattern = op("Mul", op("Add", x, y, commutative=True), op("Sub", y, x))
    text = "g (float[2] a, float[2] b) => (float[2] c) { p = Add(a, b)\n q = Sub(a, b)\n c = Mul(p, q) }"
    found, _ = match(pattern, text)
    assert (found["x"].name, found["y"].name) == ("b", "a")


def test_alternatives_are_tried_in_order_and_backtrack():
    pattern = op("Add", any_of(op("Relu", x), op("Relu", y), x), op("Neg", y))
    found, _ = match(pattern, "g (float[2] a) => (float[2] c) { r = Relu(a)\n n = Neg(a)\n c = Add(r, n) }")
    assert found.get("x").name == "a"
    assert found.get("y").name == "a"


def test_an_optional_node_may_be_there_or_not():
    pattern = op("Neg", maybe("Relu", x))
    assert match(pattern, "g (float[2] a) => (float[2] c) { r = Relu(a)\n c = Neg(r) }")[0]["x"].name == "a"
    assert match(pattern, "g (float[2] a) => (float[2] c) { r = Abs(a)\n c = Neg(r) }")[0]["x"].name == "r"


def test_constants_are_compared_with_a_tolerance():
    pattern = op("Mul", x, constant("k", 0.7071067811865476, scalar=True))
    text = "g (float[2] a) => (float[2] c) <{}> {{ c = Mul(a, k) }}"
    found, _ = match(pattern, text.format("float k = {0.70710677}"))
    np.testing.assert_allclose(found.array("k"), 0.70710677)
    found, reason = match(pattern, text.format("float k = {0.708}"))
    assert (found, reason) == (None, "'k' is not 0.707107")
    found, reason = match(pattern, text.format("float[2] k = {0.70710677, 0.70710677}"))
    assert (found, reason) == (None, "'k' is not a scalar")


def test_attributes_by_value_default_and_predicate():
    text = "g (float[2,3] a) => (float[2,3] c) {{ c = Softmax {} (a) }}"
    last = op("Softmax", x, axis=(-1, -1))
    assert match(last, text.format(""))[0]
    assert match(last, text.format("<axis = -1>"))[0]
    assert match(last, text.format("<axis = 0>"))[1] == "attribute 'axis' of 'Softmax_0' does not fit"
    assert match(op("Softmax", x, axis=lambda axis: axis in (0, None)), text.format("<axis = 0>"))[0]


def test_absent_inputs_can_be_demanded_or_captured():
    clip = "g (float[2] a) => (float[2] c) <float h = {1.0}> { c = Clip(a, , h) }"
    found, _ = match(op("Clip", x, value("low", optional=True), value("high")), clip)
    assert found.get("low") is None
    assert found["high"].name == "h"
    assert match(op("Clip", x, None, constant("h")), clip)[0]
    assert match(op("Clip", x, None, None), clip)[0] is None


def test_inner_values_used_elsewhere_forbid_the_match_unless_they_escape():
    text = "g (float[2] a) => (float[2] c, float[2] d) { r = Relu(a)\n d = Abs(r)\n c = Neg(r) }"
    found, reason = match(op("Neg", op("Relu", x)), text)
    assert (found, reason) == (None, "inner value 'r' is also used by 'Abs_1'")
    assert match(op("Neg", op("Relu", x, escapes=True)), text)[0]
    text = "g (float[2] a) => (float[2] c, float[2] r) { r = Relu(a)\n c = Neg(r) }"
    assert match(op("Neg", op("Relu", x)), text)[1] == "inner value 'r' is a graph output"


def test_the_deepest_failure_is_reported():
    pattern = op(
        "Mul", x, op("Sigmoid", op("Add", x, constant(equals=3.0), commutative=True)), commutative=True
    )
    text = (
        "g (float[2] a) => (float[2] c) <float k = {2.0}> { p = Add(a, k)\n s = Sigmoid(p)\n c = Mul(a, s) }"
    )
    assert match(pattern, text)[1] == "'k' is not 3"


class FuseSilu(PatternRule):
    """x * Sigmoid(x) = Swish(x)."""

    pattern = op("Mul", x, op("Sigmoid", x), commutative=True)

    def check(self, match):
        return None if match["x"].dtype == ir.DataType.FLOAT else "only float32"

    def rewrite(self, match, rewriter):
        return rewriter.insert_before(match.root, "Elu", [match["x"]])[0]


def test_a_pattern_rule_replaces_and_cleans_up():
    model = model_of("g (float[2] a) => (float[2] c) { r = Relu(a)\n s = Sigmoid(r)\n c = Mul(s, r) }")
    infer_shapes(model)
    context = PassContext().for_pass(Pass())
    assert drive(model, [FuseSilu()], context)
    assert [node.op_type for node in model.graph] == ["Relu", "Elu"]
    assert context.statistics == {"FuseSilu": 1}
    assert model.graph.outputs[0].name == "c"


def test_a_refused_check_gives_its_reason():
    model = model_of("g (double[2] a) => (double[2] c) { s = Sigmoid(a)\n c = Mul(s, a) }")
    context = PassContext()
    assert not drive(model, [FuseSilu()], context)
    assert [left.reason for left in context.left_alone] == ["only float32"]


def test_a_pattern_must_be_rooted_at_an_operator():
    with pytest.raises(TypeError, match="root of a pattern"):

        class Bad(PatternRule):
            pattern = value("x")


def test_the_operands_of_sum_and_max_may_stand_in_any_order():
    pattern = op("Max", op("Neg", x), constant("k"), y, commutative=True)
    text = "g (float[2] a, float[2] b) => (float[2] c) <float k = {{1.0}}> {{ n = Neg(a)\n c = Max({}) }}"
    for order in ("n, k, b", "b, n, k", "k, b, n", "b, k, n"):
        found, reason = match(pattern, text.format(order))
        assert found, reason
        assert (found["x"].name, found["y"].name, found["k"].name) == ("a", "b", "k")
    assert match(pattern, text.format("n, b, a"))[0] is None
    where = op("Where", op("Not", x), y, value("z"), commutative=True)
    text = "g (bool[2] a, float[2] b) => (float[2] c) { n = Not(a)\n c = Where(n, b, b) }"
    assert match(where, text)[0]


def test_what_is_left_of_many_inputs_is_captured_as_a_list():
    text = "g (float[2] a, float[2] b) => (float[6] c) { r = Relu(a)\n c = Concat <axis = 0> (r, b, a) }"
    found, _ = match(op("Concat", op("Relu", x), rest("others")), text)
    assert [v.name for v in found.rest["others"]] == ["b", "a"]
    found, _ = match(op("Concat", x, y, value("z"), rest("others")), text)
    assert found.rest["others"] == []
    text = "g (float[2] a, float[2] b) => (float[2] c) { n = Neg(b)\n c = Sum(a, b, n) }"
    found, _ = match(op("Sum", op("Neg", x), rest("others"), commutative=True), text)
    assert [v.name for v in found.rest["others"]] == ["a", "b"]


def test_an_absent_attribute_stands_for_the_default_of_the_standard():
    text = "g (float[2,3] a) => (float[2,3] c) {{ c = {} }}"
    assert match(op("Softmax", x, axis=-1), text.format("Softmax (a)"))[0]
    assert match(op("Softmax", x, axis=1), text.format("Softmax (a)"))[0] is None
    assert match(op("LeakyRelu", x, alpha=0.01), text.format("LeakyRelu (a)"))[0]
    assert match(op("Gelu", x, approximate="none"), text.format("Gelu (a)"))[0]
    assert match(op("LeakyRelu", x, alpha=None), text.format("LeakyRelu (a)"))[0]
    assert match(op("LeakyRelu", x, alpha=None), text.format("LeakyRelu <alpha = 0.01> (a)"))[0] is None
    assert match(op("Transpose", x, perm=[1, 0]), text.format("Transpose <perm = [1, 0]> (a)"))[0]
    assert match(op("Transpose", x, perm=1), text.format("Transpose <perm = [1, 0]> (a)"))[0] is None


def test_a_second_output_can_be_matched():
    pattern = op("Neg", op("Split", x, name="split", output=1, num_outputs=2))
    text = "g (float[4] a) => (float[2] c) {{ p, q = Split <num_outputs = 2> (a)\n c = Neg({}) }}"
    assert match(pattern, text.format("q"))[0].nodes["split"].op_type == "Split"
    assert match(pattern, text.format("p"))[1] == "'p' is not output 1 of 'Split_0'"


def matching_steps(pattern, model: ir.Model) -> tuple[bool, int]:
    """Whether the last node matches, and how many calls it took."""
    import sys

    count = 0

    def tick(frame, event, argument):
        nonlocal count
        count += event == "call"

    sys.setprofile(tick)
    try:
        found, _ = match_pattern(pattern, model.graph[-1])
    finally:
        sys.setprofile(None)
    return found is not None, count


def ladder(n: int) -> ir.Model:
    """Each step adds the last two values, both of which are sums: 2^n ways down."""
    steps = "\n".join(f"p{i} = Add(p{i - 1}, q{i - 1})\n q{i} = Add(q{i - 1}, p{i - 1})" for i in range(1, n))
    return model_of(
        f"g (float[2] a, float[2] b) => (float[2] c) {{ p0 = Add(a, b)\n q0 = Add(b, a)\n {steps}\n c = Add(p{n - 1}, q{n - 1}) }}"
    )


def chain_pattern(n: int, last):
    """n nested commutative Adds, each with a capture of its own."""
    pattern = last
    for i in range(n):
        pattern = op("Add", pattern, value(f"v{i}"), commutative=True, escapes=True)
    return pattern


@pytest.mark.parametrize("fits", [True, False])
def test_nested_commutative_operators_do_not_multiply(fits):
    last = op("Add", value("s"), value("t"), commutative=True, escapes=True) if fits else op("Exp", x)
    costs = {n: matching_steps(chain_pattern(n - 1 if fits else n, last), ladder(n)) for n in (6, 12, 24)}
    assert [found for found, _ in costs.values()] == [fits] * 3
    assert costs[24][1] < 5 * costs[12][1] < 25 * costs[6][1], costs


def balanced(depth: int, names) -> object:
    if depth == 0:
        return value(next(names))
    return op("Mul", balanced(depth - 1, names), balanced(depth - 1, names), commutative=True, escapes=True)


def test_a_tree_of_commutative_operators_that_fails_at_the_end_is_cheap():
    """Without care 2^15 orders of the tree would be tried for the last operand."""
    names = (f"w{i}" for i in range(100))
    pattern = op("Add", balanced(4, names), op("Exp", value("e")))
    lines, values = [], [f"l{i}" for i in range(16)]
    leaves = "\n".join(f"l{i} = Exp(a)" for i in range(16))
    while len(values) > 1:
        pairs = [values[i : i + 2] for i in range(0, len(values), 2)]
        values = [f"m{len(lines) + i}" for i in range(len(pairs))]
        lines += [f"{made} = Mul({left}, {right})" for made, (left, right) in zip(values, pairs, strict=True)]
    text = "\n".join([leaves, *lines])
    model = model_of(f"g (float[2] a) => (float[2] c) {{ {text}\n n = Neg(a)\n c = Add({values[0]}, n) }}")
    found, steps = matching_steps(pattern, model)
    assert not found and steps < 20_000, steps


def test_a_search_without_end_is_given_up_and_says_so():
    shared = [value(f"s{i % 4}") for i in range(24)]
    pattern = shared[0]
    for each in shared[1:]:
        pattern = op("Add", pattern, op("Add", each, value(f"f{id(each)}"), commutative=True, escapes=True),
                     commutative=True, escapes=True)  # fmt: skip
    model = ladder(24)
    found, reason = match_pattern(op("Add", pattern, pattern, commutative=True), model.graph[-1])
    assert found is None
    assert "too many ways" in reason or reason


QKV = """
g (float[2,4] a, float[2,4] b) => (float[2,3] q, float[2,3] k, float[2,5] v, float[2,4] o)
<float[4,3] wq = {1.0,2.0,3.0,4.0,5.0,6.0,7.0,8.0,9.0,1.0,2.0,3.0}, float[4,3] wk = {3.0,2.0,3.0,4.0,1.0,6.0,7.0,8.0,9.0,1.0,2.0,0.0},
 float[4,5] wv = {1.0,2.0,3.0,4.0,5.0,6.0,7.0,8.0,9.0,1.0,2.0,3.0,1.0,2.0,3.0,4.0,5.0,6.0,7.0,8.0}> {
    q = MatMul (a, wq)
    o = Neg (b)
    k = MatMul (a, wk)
    v = MatMul (a, wv)
}
"""


class MergeMatMuls(PatternRule):
    """x W, x V = Split(x [W V])."""

    pattern = outputs(op("MatMul", x, constant("first")), op("MatMul", x, constant("second")))

    def check(self, match):
        return "only what was never merged" if "Concat" in (match.root.name or "") else None

    def rewrite(self, match, rewriter):
        one, two = match.array("first"), match.array("second")
        sizes = rewriter.initializer("sizes", np.array([one.shape[1], two.shape[1]], np.int64))
        both = rewriter.initializer("both", np.concatenate([one, two], axis=1))
        (product,) = rewriter.insert_before(match.root, "Gemm", [match["x"], both])
        return rewriter.insert_before(match.root, "Split", [product, sizes], {"axis": 1}, num_outputs=2)


def test_several_outputs_are_replaced_together():
    from graphwright.passes.equivalence import check_equivalent
    from graphwright.passes.manager import PassManager

    @dataclass(frozen=True)
    class Merge(Pass):
        """Merge products of the same matrix."""

        name = "test-merge-matmuls"

        def apply(self, model, context):
            context.rewrite(model, MergeMatMuls())

    model = model_of(QKV)
    result, records = PassManager(Merge()).run(model)
    assert [node.op_type for node in result.graph] == ["Gemm", "Split", "Neg", "MatMul"]
    assert [output.name for output in result.graph.outputs] == ["q", "k", "v", "o"]
    assert check_equivalent(model, result).passed
    assert records[0].statistics == {"MergeMatMuls": 1}


def test_what_several_outputs_need_must_be_there_in_time():
    """The second product reads what is computed from the first: there is no place for both."""
    pattern = outputs(op("Mul", x, y), op("Sub", x, value("z")))
    text = "g (float[2] a, float[2] b) => (float[2] d) {{ {} }}"
    late = model_of(text.format("m = Mul(a, b)\n e = Exp(m)\n d = Sub(a, e)"))
    found, reason = match_pattern(pattern, late.graph[0])
    assert found is None and reason == "'e' is computed after 'Mul_0' is used"
    fine = model_of(text.format("m = Mul(a, b)\n e = Exp(b)\n d = Sub(a, e)\n f = Neg(m)"))
    found, _ = match_pattern(pattern, fine.graph[0])
    assert found.root.op_type == "Sub" and [node.op_type for node in found.roots] == ["Mul", "Sub"]
    found, reason = match_pattern(pattern, model_of(text.format("m = Mul(a, b)\n d = Neg(m)")).graph[0])
    assert found is None and reason == "there is no Sub behind what is bound"
