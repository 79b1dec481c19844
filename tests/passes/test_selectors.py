"""Every pass that is registered honours `only=` and `skip=`."""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.constants import constant_array
from graphwright.ir.inputs import random_inputs
from graphwright.ir.text import to_text
from graphwright.passes.equivalence import check_equivalent
from graphwright.passes.manager import PassManager
from graphwright.passes.optimize import optimize
from graphwright.passes.options import build, options_of
from graphwright.passes.registry import _BUILT_IN, lookup

PASSES = sorted(_BUILT_IN)

# Something for everybody to do: chains, constants, formulas, layers, a body and a call of a function.
TEXT = """
<ir_version: 10, opset_import: ["" : 23, "local" : 1]>
net (float[1,3,8,8] x, bool flag) => (float[1,4] y, float[1,8,8,8] z)
<float half = {0.5}, int64[4] flat = {1, 8, 8, 8}, int64[2] axes = {2, 3}, bool yes = {1}> {
    same = Identity (x)
    conv = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (same, w)
    norm = BatchNormalization (conv, scale, shift, mean, variance)
    relu = Relu (norm)
    conv2 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (relu, w2)
    t = Transpose <perm = [0, 2, 3, 1]> (conv2)
    tt = Transpose <perm = [0, 3, 1, 2]> (t)
    r = Reshape (tt, flat)
    s = Sigmoid (r)
    swish = Mul (r, s)
    one = Constant <value = float {1.0}> ()
    two = Add (one, one)
    again = Mul (swish, two)
    twin = Mul (swish, two)
    sum = Add (again, twin)
    dead = Exp (sum)
    known = If (yes) <
        then_branch = then () => (float[1,8,8,8] a) { a0 = Cast <to = 1> (sum)
          a = Relu (a0) },
        else_branch = other () => (float[1,8,8,8] b) { b = Neg (sum) }
    >
    z = local.halve (known)
    pooled = GlobalAveragePool (z)
    vector = Squeeze (pooled, axes)
    product = Gemm <transB = 1> (vector, v, u)
    y = Softmax (product)
}
<opset_import: ["" : 23], domain: "local">
halve (p) => (q) { h = Constant <value = float {0.5}> ()
  q = Mul (p, h) }
"""

WEIGHTS = {
    "w": [8, 3, 3, 3],
    "w2": [8, 8, 3, 3],
    "v": [4, 8],
    "u": [4],
    **{name: [8] for name in ("scale", "shift", "mean", "variance")},
}


@pytest.fixture(scope="module")
def model() -> ir.Model:
    made = ir.from_onnx_text(TEXT)
    generator = np.random.default_rng(0)
    read = {v.name: v for node in made.graph for v in node.inputs if v is not None and v.producer() is None}
    for name, dims in WEIGHTS.items():
        array = np.abs(generator.normal(0.5, 0.3, dims)).astype(np.float32) + 0.1
        read[name].const_value = ir.tensor(array, name=name)
        read[name].shape, read[name].type = ir.Shape(dims), ir.TensorType(ir.DataType.FLOAT)
        made.graph.register_initializer(read[name])
    for graph in made.graphs():
        for i, node in enumerate(graph):
            node.name = f"{graph.name}/{node.op_type}_{i}"
    return PassManager("").run(made)[0]


def instance(name: str, **options: str):
    cls = lookup(name)
    needed = {}
    for option in options_of(cls):
        if option.required:
            needed[option.name] = {"float": "0.5", "int": "2"}.get(option.type, option.type.split("|")[0])
    return build(cls, {**needed, **options})


def run(model: ir.Model, chosen):
    feeds = [random_inputs(model, seed=seed) for seed in (7, 8)]
    return optimize(model, chosen, calibration=feeds, reproducer=None)


def nodes_of(model: ir.Model) -> list[tuple[str, str]]:
    graphs = [*model.graphs(), *(function.graph for function in model.functions.values())]
    return [(node.name or "", node.op_type) for graph in graphs for node in graph]


@pytest.mark.parametrize("name", PASSES)
def test_what_is_skipped_stays(model, name):
    """With `skip=.*` no node is touched and no number changes, constants that are read included."""
    before = {key: constant_array(value) for key, value in model.graph.initializers.items()}
    for options in ({"skip": ".*"}, {"only": "nothing is called this"}):
        result = run(model, instance(name, **options))
        assert result.report.records[0].notes == ["only= and skip= leave no node of this model to it"]
        assert nodes_of(result.model) == nodes_of(model), options
        assert check_equivalent(model, result.model).worst.equal
        for key, value in result.model.graph.initializers.items():
            np.testing.assert_array_equal(constant_array(value), before[key])


@pytest.mark.parametrize("name", [name for name in PASSES if lookup(name).lossless])
def test_what_is_skipped_stays_although_the_rest_does_not(model, name):
    """Some nodes are let at; whatever the pass makes of them, those it does not need are there under their names."""
    pattern = re.compile("net/(Conv_1|Transpose|If|Sigmoid)")
    result = run(model, instance(name, only=pattern.pattern))
    names = {node for node, _ in nodes_of(result.model)}
    assert check_equivalent(model, result.model, seed=3).passed
    lost = [n for n, op in nodes_of(model) if n and n not in names and not pattern.match(n)]
    assert set(lost) <= _around(model, pattern), lost


def _around(model: ir.Model, pattern: re.Pattern[str]) -> set[str]:
    """Nodes that a chosen one is fused with at most: everything it is made of, and its direct readers."""
    found, pending = set(), []
    for graph in model.graphs():
        for node in graph:
            if pattern.match(node.name or ""):
                pending.append(node)
                found.update(reader.name for value in node.outputs for reader in value.consumers())
    while pending:
        node = pending.pop()
        for body in (a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH):
            found.update(inner.name for inner in body)
        makers = [v.producer() for v in node.inputs if v is not None and v.producer() is not None]
        pending += [maker for maker in makers if maker.name not in found]
        found.update(maker.name for maker in makers)
    return found


@pytest.mark.parametrize("face", ["net/Mul_.*", "Mul"])
def test_by_name_and_by_operator(model, face):
    result = run(model, instance("eliminate-common-subexpressions", skip=face))
    assert sum(op == "Mul" for _, op in nodes_of(result.model)) == sum(
        op == "Mul" for _, op in nodes_of(model)
    )
    result = run(model, instance("eliminate-common-subexpressions", only=face))
    assert sum(op == "Mul" for _, op in nodes_of(result.model)) < sum(
        op == "Mul" for _, op in nodes_of(model)
    )


def test_by_module_path(model):
    from graphwright.ir.clone import clone
    from graphwright.ir.provenance import NAME_SCOPES_KEY

    copy = clone(model)
    (node,) = [node for node in copy.graph if node.op_type == "Identity"]
    node.metadata_props[NAME_SCOPES_KEY] = "['', 'stem', 'stem.same', 'identity']"
    kept = run(copy, instance("eliminate-identity", skip="stem"))
    assert "Identity" in to_text(kept.model)
    gone = run(copy, instance("eliminate-identity", only="stem[.]same"))
    assert "Identity" not in to_text(gone.model)
