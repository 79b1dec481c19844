"""Rule sets of `onnxscript.rewriter` run unchanged in our driver."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.errors import PassError
from graphwright.ir.verify import verify
from graphwright.passes.base import Pass, PassContext
from graphwright.passes.bounds import Bound
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


def shipped_sets() -> dict[str, object]:
    """Every rule set that onnxscript ships, by module and name."""
    import importlib
    import pkgutil

    from onnxscript.rewriter import _DEFAULT_REWRITE_RULES, RewriteRuleSet, ort_fusions
    from onnxscript.rewriter.rules import common, fusion

    found: dict[str, object] = {"default": RewriteRuleSet(list(_DEFAULT_REWRITE_RULES))}
    for package in (common, fusion, ort_fusions):
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if info.name.endswith("_test_utils"):
                continue
            for name, thing in vars(importlib.import_module(info.name)).items():
                if isinstance(thing, RewriteRuleSet):
                    found[f"{info.name.removeprefix('onnxscript.rewriter.')}:{name}"] = thing
    return found


@dataclass(frozen=True)
class RunRules(Pass):
    """Run a rule set of onnxscript."""

    name: ClassVar[str] = "test-onnxscript"
    rules: Any = None

    def apply(self, model, context):
        context.rewrite(model, *from_onnxscript(self.rules))


def test_every_rule_of_every_set_that_ships_is_indexed():
    sets = shipped_sets()
    assert len(sets) >= 40
    unknown = [
        (name, rule.label)
        for name, rules in sets.items()
        for rule in from_onnxscript(rules)
        if not rule.op_types
    ]
    # This one leaves the operator open on purpose.
    assert {rule for _, rule in unknown} <= {"RewriteRule"} and len(unknown) <= 2, unknown
    commuted = from_onnxscript(sets["rules.common._no_op:rules"])
    assert [rule.op_types for rule in commuted if rule.op_types == ("Mul",)] == [("Mul",)] * 2


# Fusions that make an operator which exists only until the next fusion.
_HALFWAY = ("ort_fusions.sdpa:sdpa_rules",)


@pytest.mark.parametrize(
    "name", ["light_shufflenet", pytest.param("bert_base_small", marks=pytest.mark.slow)]
)
def test_every_set_does_in_our_driver_what_it_does_in_its_own(name):
    from graphwright.ir.clone import clone
    from graphwright.passes.manager import count_nodes
    from graphwright.tools.zoo import zoo_model

    model, _ = PassManager("fold-constants").run(zoo_model(name))
    fired = 0
    for label, rules in shipped_sets().items():
        theirs = clone(model)
        count = rules.apply_to_model(theirs)
        ours, (record,) = PassManager(RunRules(rules=rules), investigate=False).run(model)
        assert count_nodes(ours) == count_nodes(theirs), label
        assert bool(record.statistics) == bool(count), label
        fired += bool(count)
        if record.statistics and label not in _HALFWAY:
            assert check_equivalent(model, ours, bound=Bound("max_rel", 1e-4)).passed, label
    assert fired >= 2


def test_a_rule_that_makes_a_function_of_what_it_matched():
    from onnxscript.rewriter import pattern

    def target(op, x, y):
        return op.Mul(op.Sigmoid(x), op.Add(x, y))

    def replacement(op, x, y, **_):
        return op.GatedSum(x, y, _domain="my.fusions")

    rule = pattern.RewriteRule(target, replacement, name="Gate", as_function=True)
    model = model_of("""
        g (float[2] a, float[2] b) => (float[2] c, float[2] d) <float[2] w = {3.0, 4.0}> {
            s = Sigmoid(a)
            p = Add(a, b)
            c = Mul(s, p)
            t = Sigmoid(b)
            q = Add(b, w)
            d = Mul(t, q)
        }""")
    result, (record,) = PassManager(RunRules(rules=rule)).run(model)
    assert [node.op_type for node in result.graph] == ["GatedSum", "GatedSum"]
    assert record.statistics == {"Gate": 2}
    assert sorted(overload for _, _, overload in result.functions) == ["1", "2"]
    inlined, _ = PassManager("inline-functions").run(result)
    assert check_equivalent(model, inlined).passed


def test_visitors_of_a_rule_see_each_graph():
    from onnxscript.rewriter import pattern

    seen = []
    rule = pattern.RewriteRule(
        lambda op, x: op.Abs(op.Abs(x)), lambda op, x, **_: op.Abs(x), name="AbsAbs",
        graph_pre_visitor=lambda: seen.append("in"), graph_post_visitor=lambda: seen.append("out"),
    )  # fmt: skip
    model = model_of("""
        g (bool f, float[2] a) => (float[2] y) {
            p = Abs(a)
            q = Abs(p)
            y = If (f) <then_branch = t () => (float[2] u) { u1 = Abs(q)
                          u = Abs(u1) },
                        else_branch = e () => (float[2] v) { v = Neg(q) }>
        }""")
    result, _ = PassManager(RunRules(rules=rule)).run(model)
    assert seen[:3] == ["in", "out", "in"]
    assert sum(node.op_type == "Abs" for graph in result.graphs() for node in graph) <= 3
    assert check_equivalent(model, result).passed


def test_what_is_no_rule_is_refused():
    with pytest.raises(PassError, match="int is not an onnxscript rewrite rule"):
        from_onnxscript(3)
