"""Weights that are places in a table (NF4, k-means, powers of two): small in memory, looked up in registers."""

import graphwright as gw
import numpy as np
import pytest
from graphwright.backends.target import resolve_target
from graphwright.backends.tvm.lower import lower
from graphwright.ir.compare import compare
from graphwright.ir.reference import run_reference
from graphwright.passes.optimize import optimize
from hypothesis import given, settings
from hypothesis import strategies as st

from .quantized_models import Graph, tensor

TARGETS = ("x86-64-v3", "sapphirerapids")


def product(rows, terms, columns, form, *, gemm=False, flipped=False, seed=0, least=1):
    """A product of `rows` by a matrix in some form, with a bias."""
    g = Graph(seed)
    shape = (columns, terms) if flipped else (terms, columns)
    weight = g.constant(g.random.standard_normal(shape).astype(np.float32))
    x = tensor("x", (rows, terms))
    if gemm:
        bias = g.constant(g.random.standard_normal(columns).astype(np.float32))
        y = g("Gemm", x, weight, bias, alpha=0.5, beta=2.0, transB=int(flipped))
    else:
        y = g("Relu", g("MatMul", x, weight))
    model = g.model({"x": x}, y)
    return optimize(model, f"quantize-weights{{form={form} min_size={least}}}").model


def runs_here(target):
    return resolve_target(target).why_not_here() is None


def assert_right(model, target, note):
    lowered = lower(model, resolve_target(target))
    assert [note in (kernel.note or "") for kernel in lowered.kernels].count(True) == 1
    exe = gw.compile(model, target, pipeline="eliminate-dead")
    feeds = exe.random_feeds(3)
    assert compare(run_reference(model, feeds), exe.run(feeds)).max_rel <= 2e-6
    return lowered


@given(
    st.integers(1, 9),
    st.sampled_from([64, 96, 130, 257]),
    st.sampled_from([5, 16, 33, 130]),
    st.sampled_from(["nf4", "fp4", "kmeans bits=2", "kmeans bits=4 block=32", "power-of-two bits=3"]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([target for target in TARGETS if runs_here(target)]),
)
@settings(max_examples=8, deadline=None)
def test_products_are_right(rows, terms, columns, form, gemm, flipped, target):
    model = product(rows, terms, columns, form, gemm=gemm, flipped=gemm and flipped)
    assert_right(model, target, "levels weights matmul")


@pytest.mark.parametrize("form", ["int4", "int4 symmetric=false", "int2", "ternary", "binary"])
def test_even_weights_are_right_on_every_vector(form):
    for target in filter(runs_here, TARGETS):
        assert_right(product(3, 128, 48, form), target, "weights matmul")


@pytest.mark.parametrize("form", ["nf4", "int4 symmetric=false", "int8 symmetric=false", "kmeans"])
def test_one_group_of_rows_and_a_bias(form):
    for target in filter(runs_here, TARGETS):
        assert_right(product(10, 64, 384, form, gemm=True), target, "weights matmul")


@pytest.mark.parametrize(("form", "share"), [("nf4", 0.2), ("kmeans", 0.15), ("kmeans bits=2", 0.1)])
def test_memory_holds_codes(form, share):
    lowered = lower(product(1, 512, 256, form), resolve_target("x86-64-v3"))
    assert sum(weight.nbytes for weight in lowered.weights) < share * 4 * 512 * 256


def test_what_has_more_levels_or_no_instruction_stays_in_float():
    for form, target in (("kmeans bits=6", "x86-64-v3"), ("nf4", "x86-64-v2")):
        lowered = lower(product(1, 128, 64, form), resolve_target(target))
        assert not any("weights matmul" in (kernel.note or "") for kernel in lowered.kernels)
