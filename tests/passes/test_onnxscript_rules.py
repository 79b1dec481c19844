"""Rule sets of `onnxscript.rewriter` run unchanged in our driver."""

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.errors import PassError
from graphwright.ir.verify import verify
from graphwright.passes.base import Pass, PassContext
from graphwright.passes.driver import drive
from graphwright.passes.equivalence import check_equivalent
from graphwright.passes.manager import PassManager
from graphwright.passes.onnxscript_rules import from_onnxscript
from graphwright.passes.rewriter import PASS_KEY, RULE_KEY


def model_of(text: str, **weights: np.ndarray) -> ir.Model:
    model = ir.from_onnx_text('<ir_version: 10, opset_import: ["" : 23]>\n' + text)
    for i, node in enumerate(model.graph):
        node.name = f"{node.op_type}_{i}"
        for value in node.inputs:
            if value is not None and value.name in weights and not value.is_initializer():
                value.const_value = ir.tensor(weights[value.name], name=value.name)
                value.shape = ir.Shape(weights[value.name].shape)
                value.type = ir.TensorType(value.const_value.dtype)
                model.graph.register_initializer(value)
    return PassManager("").run(model)[0]


def test_the_default_rules_run_to_a_fixpoint_and_keep_the_numbers():
    from onnxscript.rewriter import _DEFAULT_REWRITE_RULES

    generator = np.random.default_rng(0)
    weights = {
        "w": generator.normal(size=(4, 3, 3, 3)).astype(np.float32),
        "s": generator.uniform(0.5, 1, 4).astype(np.float32),
        "b": generator.normal(size=4).astype(np.float32),
        "m": generator.normal(size=4).astype(np.float32),
        "v": generator.uniform(0.5, 1, 4).astype(np.float32),
    }
    model = model_of(
        """
        g (float[1,3,6,6] x) => (float[1,6,6,4] y) {
            c = Conv <pads = [1, 1, 1, 1]> (x, w)
            n = BatchNormalization(c, s, b, m, v)
            r = Relu(n)
            q = Relu(r)
            t = Transpose <perm = [0, 3, 1, 2]> (q)
            u = Transpose <perm = [0, 3, 1, 2]> (t)
            y = Transpose <perm = [0, 2, 3, 1]> (u)
        }""",
        **weights,
    )
    before = ir.from_proto(ir.to_proto(model))
    context = PassContext().for_pass(Pass())
    assert drive(model, from_onnxscript(_DEFAULT_REWRITE_RULES), context)
    verify(model)
    assert "BatchNormalization" not in [node.op_type for node in model.graph]
    assert sum(node.op_type == "Transpose" for node in model.graph) <= 1
    assert check_equivalent(before, model).passed


def test_two_rewrites_that_name_their_constant_alike_do_not_collide():
    from onnxscript.rewriter import pattern

    def target(op, x):
        return op.Neg(op.Neg(x))

    def replacement(op, x, **_):
        zero = op.initializer(ir.tensor(np.zeros(1, np.float32)), name="the_zero")
        return op.Add(x, zero)

    model = model_of("""
    g (float[2] x) => (float[2] y) { a = Neg(x)
        b = Neg(a)
        c = Abs(b)
        d = Neg(c)
        e = Neg(d)
        y = Abs(e) }""")
    context = PassContext().for_pass(Pass())
    drive(model, from_onnxscript(pattern.RewriteRule(target, replacement, name="NegNeg")), context)
    verify(model)
    assert [node.op_type for node in model.graph] == ["Add", "Abs", "Add", "Abs"]
    assert context.statistics == {"NegNeg": 2}
    assert model.graph[0].metadata_props[RULE_KEY] == "NegNeg"
    assert PASS_KEY in model.graph[0].metadata_props


def test_rules_are_indexed_by_their_root():
    from onnxscript.rewriter import pattern

    rule = pattern.RewriteRule(lambda op, x: op.Relu(op.Abs(x)), lambda op, x, **_: op.Abs(x), name="r")
    assert from_onnxscript([rule])[0].op_types == ("Relu",)


def test_what_is_no_rule_is_refused():
    with pytest.raises(PassError, match="int is not an onnxscript rewrite rule"):
        from_onnxscript(3)
