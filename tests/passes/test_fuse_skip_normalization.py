"""fuse-skip-normalization: a residual sum and the normalization behind it become one function."""

import numpy as np
import pytest
from graphwright.passes.equivalence import check_equivalent
from graphwright.passes.optimize import optimize

from .test_fuse_attention import model_of, types

CONSTANTS = {"g": np.linspace(0.5, 2, 8), "b": np.linspace(-1, 1, 8), "c": np.linspace(1, 2, 8)}


def fuse(
    body: str, outputs: str = "float y", s: str = "float[n,5,8] s", pipeline: str = "fuse-skip-normalization"
):
    text = f"g (float[n,5,8] x, {s}, float[8] g, float[8] b, float[8] c) => ({outputs}) {{ {body} }}"
    model = model_of(text, **CONSTANTS)
    result = optimize(model, pipeline)
    found = check_equivalent(model, result.model)
    assert found.passed, found
    return result.model, [one.reason for record in result.report.records for one in record.left_alone]


LAYER = "y = LayerNormalization <epsilon = 0.01> (t, g, b)"
RMS = "y = RMSNormalization <epsilon = 0.01> (t, g)"


@pytest.mark.parametrize(
    ("norm", "name"),
    [
        (LAYER, "SkipLayerNormalization"),
        ("y = LayerNormalization (t, g)", "SkipLayerNormalization"),
        (LAYER.replace("epsilon", "axis = 2, epsilon"), "SkipLayerNormalization"),
        (RMS, "SkipRMSNormalization"),
    ],
)
def test_sum_and_normalization(norm, name):
    fused, _ = fuse(f"t = Add (x, s) {norm}")
    assert types(fused) == [name]
    assert [function.name for function in fused.functions.values()] == [name]


@pytest.mark.parametrize("norm", [LAYER, RMS])
def test_the_sum_is_used_further(norm):
    fused, _ = fuse(f"t = Add (x, s) {norm} z = Neg (t)", "float y, float z, float t")
    assert types(fused)[1:] == ["Neg"]
    assert next(iter(fused.graph)).outputs[1] is fused.graph.outputs[2]


def test_readers_of_the_sum_in_front_of_the_normalization():
    fused, _ = fuse(f"t = Add (x, s) z = Neg (t) {LAYER}", "float y, float z")
    assert types(fused) == ["SkipLayerNormalization", "Neg"]


@pytest.mark.parametrize("order", ["m = Add (x, c) t = Add (m, s)", "m = Add (c, x) t = Add (s, m)"])
@pytest.mark.parametrize(
    ("norm", "name"), [(LAYER, "SkipLayerBiasNormalization"), (RMS, "SkipRMSBiasNormalization")]
)
def test_a_bias_of_the_layer_before(order, norm, name):
    fused, _ = fuse(f"{order} {norm}")
    assert types(fused) == [name]


def test_a_biased_value_in_use_elsewhere_stays():
    fused, _ = fuse(f"m = Add (x, c) t = Add (m, s) {LAYER}", "float y, float m")
    assert types(fused) == ["Add", "SkipLayerNormalization"]


@pytest.mark.parametrize(
    ("body", "s", "reason"),
    [
        (f"t = Add (x, s) {LAYER}", "float[1,5,8] s", "the two addends are not known to have the same shape"),
        (f"t = Add (x, s) {LAYER}", "float[m,5,8] s", "the two addends are not known to have the same shape"),
        (f"t = Add (x, c) {LAYER}", "float[n,5,8] s", "it normalizes the sum with a constant"),
        (
            "t = Add (x, s) n = Neg (g) y = LayerNormalization (t, n, b)",
            "float[n,5,8] s",
            "its scale or bias is computed",
        ),
    ],
)
def test_what_is_left_and_why(body, s, reason):
    if "[m," in s:
        # Only equal sizes run, but nothing says that they are.
        text = f"g (float[n,5,8] x, {s}, float[8] g, float[8] b) => (float y) {{ {body} }}"
        result = optimize(model_of(text, g=CONSTANTS["g"], b=CONSTANTS["b"]), "fuse-skip-normalization")
        left = [one.reason for record in result.report.records for one in record.left_alone]
        fused = result.model
    else:
        fused, left = fuse(body, s=s)
    assert not any(name.startswith("Skip") for name in types(fused))
    assert left == [reason]


def test_mean_in_use():
    body = "t = Add (x, s) y, mean = LayerNormalization (t, g, b)"
    fused, left = fuse(body, "float y, float mean")
    assert types(fused) == ["Add", "LayerNormalization"]
    assert left == ["its mean or deviation is used"]


def test_other_axes_are_left():
    body = "t = Add (x, s) y = LayerNormalization <axis = 1> (t, w)"
    text = f"g (float[2,5,8] x, float[2,5,8] s, float[5,8] w) => (float y) {{ {body} }}"
    result = optimize(model_of(text, w=np.ones((5, 8))), "fuse-skip-normalization")
    assert types(result.model) == ["Add", "LayerNormalization"]


def test_inlined_again_it_is_what_it_was():
    fused, _ = fuse(f"t = Add (x, s) {LAYER}", pipeline="fuse-skip-normalization,inline-functions")
    assert types(fused) == ["Add", "LayerNormalization"]
