"""fold-batch-norm: text in, text out, and the numbers of the reference on random and edge inputs.

In the texts every graph input but `x` becomes an initializer with random contents; variances (`v...`) are
positive.
"""

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.compare import compare
from graphwright.ir.inputs import edge_inputs, random_inputs
from graphwright.ir.reference import run_reference
from graphwright.passes.optimize import optimize
from hypothesis import given, settings
from hypothesis import strategies as st

BN = "float[4] s, float[4] b, float[4] m, float[4] v"


def model_of(text: str, seed: int = 0, keep: str = "x", **contents) -> ir.Model:
    """Parses a graph and makes initializers of all inputs but `keep`; `contents` gives arrays by name."""
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 23, "local" : 1]>\n{text}')
    rng = np.random.default_rng(seed)
    for value in list(model.graph.inputs):
        if value.name in keep.split():
            continue
        model.graph.inputs.remove(value)
        dtype = value.dtype.numpy()
        array = rng.normal(size=tuple(value.shape)).astype(dtype)
        array = np.abs(array) + dtype.type(0.3) if value.name.startswith("v") else array
        array = np.asarray(contents.get(value.name, array), dtype)
        value.const_value = ir.tensor(array, name=value.name)
        model.graph.register_initializer(value)
    for i, node in enumerate(node for graph in model.graphs() for node in graph):
        node.name = f"{node.op_type}_{i}"
    return model


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def fold(model: ir.Model, tolerance: float = 1e-5, options: str = ""):
    """Folds, and compares the results on random and edge inputs."""
    result = optimize(model, f"fold-batch-norm{options}")
    cases = [random_inputs(model, seed=seed) for seed in (0, 1)]
    cases += [feeds for _, feeds in edge_inputs(model)]
    for feeds in cases:
        comparison = compare(run_reference(model, feeds), run_reference(result.model, feeds))
        assert comparison.equal or comparison.max_rel <= tolerance, comparison
    return result.model, result.report.records[0]


def reasons(record) -> str:
    return "; ".join(entry.reason for entry in record.left_alone)


CONV = "float[4,3,3,3] w, float[4] c"

FOLDED = {
    "conv": (
        f"g (float[N,3,8,8] x, {CONV}, {BN}) => (float[N,4,8,8] y) "
        "{ a = Conv<pads=[1,1,1,1]>(x, w, c) y = BatchNormalization(a, s, b, m, v) }",
        ["Conv"],
    ),
    "conv without bias": (
        f"g (float[N,3,8,8] x, float[4,3,3,3] w, {BN}) => (float[N,4,6,6] y) "
        "{ a = Conv(x, w) y = BatchNormalization<epsilon=0.1>(a, s, b, m, v) }",
        ["Conv"],
    ),
    "depthwise conv": (
        f"g (float[N,4,8,8] x, float[4,1,3,3] w, {BN}) => (float[N,4,6,6] y) "
        "{ a = Conv<group=4>(x, w) y = BatchNormalization(a, s, b, m, v) }",
        ["Conv"],
    ),
    "conv over one dimension": (
        f"g (float[N,3,8] x, float[4,3,3] w, {BN}) => (float[N,4,6] y) "
        "{ a = Conv(x, w) y = BatchNormalization(a, s, b, m, v) }",
        ["Conv"],
    ),
    "transposed conv": (
        f"g (float[N,3,8,8] x, float[3,4,2,2] w, float[4] c, {BN}) => (float[N,4,16,16] y) "
        "{ a = ConvTranspose<strides=[2,2]>(x, w, c) y = BatchNormalization(a, s, b, m, v) }",
        ["ConvTranspose"],
    ),
    "grouped transposed conv": (
        f"g (float[N,6,8,8] x, float[6,2,2,2] w, {BN}) => (float[N,4,16,16] y) "
        "{ a = ConvTranspose<group=2, strides=[2,2]>(x, w) y = BatchNormalization(a, s, b, m, v) }",
        ["ConvTranspose"],
    ),
    "gemm": (
        f"g (float[N,5] x, float[4,5] w, float[4] c, {BN}) => (float[N,4] y) "
        "{ a = Gemm<transB=1, alpha=0.5, beta=2.0>(x, w, c) y = BatchNormalization(a, s, b, m, v) }",
        ["Gemm"],
    ),
    "gemm without bias": (
        f"g (float[N,5] x, float[5,4] w, {BN}) => (float[N,4] y) "
        "{ a = Gemm<beta=0.5>(x, w) y = BatchNormalization(a, s, b, m, v) }",
        ["Gemm"],
    ),
    "gemm with a bias per row": (
        f"g (float[3,5] x, float[5,4] w, float[3,1] c, {BN}) => (float[3,4] y) "
        "{ a = Gemm(x, w, c) y = BatchNormalization(a, s, b, m, v) }",
        ["Gemm"],
    ),
    "matmul": (
        f"g (float[N,5] x, float[5,4] w, {BN}) => (float[N,4] y) "
        "{ a = MatMul(x, w) y = BatchNormalization(a, s, b, m, v) }",
        ["MatMul", "Add"],
    ),
    "matmul and add": (
        f"g (float[N,5] x, float[5,4] w, float[4] c, {BN}) => (float[N,4] y) "
        "{ a = MatMul(x, w) d = Add(c, a) y = BatchNormalization(d, s, b, m, v) }",
        ["MatMul", "Add"],
    ),
    "before a conv without padding": (
        f"g (float[N,4,8,8] x, float[6,4,3,3] w, {BN}) => (float[N,6,6,6] y) "
        "{ a = BatchNormalization(x, s, b, m, v) y = Conv(a, w) }",
        ["Conv"],
    ),
    "before a grouped conv": (
        f"g (float[N,4,8,8] x, float[6,2,3,3] w, float[6] c, {BN}) => (float[N,6,6,6] y) "
        '{ a = BatchNormalization(x, s, b, m, v) y = Conv<group=2, auto_pad="VALID">(a, w, c) }',
        ["Conv"],
    ),
    "before a gemm": (
        f"g (float[N,4] x, float[6,4] w, float[6] c, {BN}) => (float[N,6] y) "
        "{ a = BatchNormalization(x, s, b, m, v) y = Gemm<transB=1, alpha=0.5, beta=3.0>(a, w, c) }",
        ["Gemm"],
    ),
    "before a gemm without bias": (
        f"g (float[N,4] x, float[4,6] w, {BN}) => (float[N,6] y) "
        "{ a = BatchNormalization(x, s, b, m, v) y = Gemm<alpha=2.0>(a, w) }",
        ["Gemm"],
    ),
    "before a matmul": (
        f"g (float[N,4] x, float[4,6] w, {BN}) => (float[N,6] y) "
        "{ a = BatchNormalization(x, s, b, m, v) y = MatMul(a, w) }",
        ["MatMul", "Add"],
    ),
    "two in a row": (
        f"g (float[N,3,8,8] x, {CONV}, {BN}, float[4] v2) => (float[N,4,6,6] y) "
        "{ a = Conv(x, w, c) d = BatchNormalization(a, s, b, m, v) y = BatchNormalization(d, b, s, c, v2) }",
        ["Conv"],
    ),
    "scale and shift behind a conv": (
        "g (float[N,3,8,8] x, float[4,3,3,3] w, float[4,1,1] k, float[1,4,1,1] t, float h) "
        "=> (float[N,4,6,6] y) { a = Conv(x, w) d = Mul(a, k) e = Add(t, d) y = Mul(h, e) }",
        ["Conv"],
    ),
    "scale behind a matmul of any rank": (
        "g (float[N,7,5] x, float[5,4] w, float[4] c, float[1,4] k) => (float[N,7,4] y) "
        "{ a = MatMul(x, w) d = Add(a, c) y = Mul(d, k) }",
        ["MatMul", "Add"],
    ),
    "scale and shift behind a batch norm": (
        f"g (float[N,4,8,8] x, {BN}, float[4,1,1] k, float[1,4,1,1] t) => (float[N,4,8,8] y) "
        "{ a = BatchNormalization(x, s, b, m, v) d = Mul(a, k) e = Add(d, t) y = Relu(e) }",
        ["BatchNormalization", "Relu"],
    ),
}


@pytest.mark.parametrize("case", FOLDED)
def test_it_folds(case):
    text, expected = FOLDED[case]
    model, record = fold(model_of(text))
    assert ops(model) == expected
    assert sum(record.statistics.values()) >= 1
    assert [value.name for value in model.graph.outputs] == ["y"]
    assert all(value.uses() for value in model.graph.initializers.values())


KEPT = {
    "training mode": (
        f"g (float[N,3,8,8] x, {CONV}, {BN}) => (float[N,4,6,6] y) "
        "{ a = Conv(x, w, c) y, n, o = BatchNormalization<training_mode=1>(a, s, b, m, v) }",
        "training mode",
    ),
    "weights shared": (
        f"g (float[N,3,8,8] x, {CONV}, {BN}) => (float[N,4,6,6] y, float[N,4,6,6] z) "
        "{ a = Conv(x, w, c) y = BatchNormalization(a, s, b, m, v) z = Conv(x, w) }",
        "the weights of 'Conv_0' are shared",
    ),
    "result of the conv read elsewhere": (
        f"g (float[N,3,8,8] x, {CONV}, {BN}) => (float[N,4,6,6] y, float[N,4,6,6] z) "
        "{ a = Conv(x, w, c) y = BatchNormalization(a, s, b, m, v) z = Relu(a) }",
        "the result of 'Conv_0' is read by other nodes too",
    ),
    "result of the conv is a graph output": (
        f"g (float[N,3,8,8] x, {CONV}, {BN}) => (float[N,4,6,6] y, float[N,4,6,6] a) "
        "{ a = Conv(x, w, c) y = BatchNormalization(a, s, b, m, v) }",
        "the result of 'Conv_0' is a graph output",
    ),
    "padding and a shift": (
        f"g (float[N,4,8,8] x, float[6,4,3,3] w, {BN}) => (float[N,6,8,8] y) "
        "{ a = BatchNormalization(x, s, b, m, v) y = Conv<pads=[1,1,1,1]>(a, w) }",
        "pads with zeros",
    ),
    "automatic padding and a shift": (
        f"g (float[N,4,8,8] x, float[6,4,3,3] w, {BN}) => (float[N,6,8,8] y) "
        '{ a = BatchNormalization(x, s, b, m, v) y = Conv<auto_pad="SAME_UPPER">(a, w) }',
        "pads with zeros",
    ),
    "a shift before a transposed conv": (
        f"g (float[N,4,8,8] x, float[4,6,3,3] w, {BN}) => (float[N,6,10,10] y) "
        "{ a = BatchNormalization(x, s, b, m, v) y = ConvTranspose(a, w) }",
        "spread unevenly",
    ),
    "rows instead of columns before a gemm": (
        f"g (float[5,4] x, float[5,6] w, {BN}) => (float[4,6] y) "
        "{ a = BatchNormalization(x, s, b, m, v) y = Gemm<transA=1>(a, w) }",
        "transposes its input",
    ),
    "batch norm over the rows of a matmul": (
        f"g (float[N,4,5] x, float[5,4] w, {BN}) => (float[N,4,4] y) "
        "{ a = MatMul(x, w) y = BatchNormalization(a, s, b, m, v) }",
        "are not its columns",
    ),
    "batch norm read as weights": (
        f"g (float[4,4] x, {BN}) => (float[4,4] y) "
        "{ a = BatchNormalization(x, s, b, m, v) y = Gemm(x, a) }",
        "reads it as data",
    ),
    "nothing linear around": (
        f"g (float[N,4,8,8] x, {BN}) => (float[N,4,8,8] y) "
        "{ a = Relu(x) d = BatchNormalization(a, s, b, m, v) y = Relu(d) }",
        "'Relu_0' (Relu) before it is no linear operator; 'Relu_2' (Relu) behind it is no linear operator",
    ),
    "a scale per pixel": (
        "g (float[N,3,8,8] x, float[4,3,3,3] w, float[6] k) => (float[N,4,6,6] y) "
        "{ a = Conv(x, w) y = Mul(a, k) }",
        "one number per channel",
    ),
    "a scale per row of a matmul": (
        "g (float[N,4,5] x, float[5,4] w, float[4,1] k) => (float[N,4,4] y) "
        "{ a = MatMul(x, w) y = Mul(a, k) }",
        "one number per channel",
    ),
    "the batch norm before the scale is an output": (
        f"g (float[N,4,8,8] x, {BN}, float[4,1,1] k) => (float[N,4,8,8] y, float[N,4,8,8] a) "
        "{ a = BatchNormalization(x, s, b, m, v) y = Mul(a, k) }",
        "is a graph output",
    ),
}


@pytest.mark.parametrize("case", KEPT)
def test_it_does_not_fold(case):
    text, reason = KEPT[case]
    model = model_of(text)
    result = optimize(model, "fold-batch-norm")
    record = result.report.records[0]
    assert ops(result.model) == ops(model)
    assert not record.changed
    assert reason in reasons(record)


@pytest.mark.parametrize(
    ("keep", "reason"),
    [("x w", "the weights of 'Conv_0' are not constant"), ("x c", "the bias of 'Conv_0' is not constant")]
    + [(f"x {name}", "its parameters are not constant") for name in "sbmv"],
)
def test_it_needs_constants(keep, reason):
    text, _ = FOLDED["conv"]
    model = model_of(text, keep=keep)
    result = optimize(model, "fold-batch-norm")
    assert ops(result.model) == ops(model)
    assert reason in reasons(result.report.records[0])


def test_padding_is_no_obstacle_without_a_shift():
    text, _ = KEPT["padding and a shift"]
    model, _ = fold(model_of(text, b=np.zeros(4), m=np.zeros(4)))
    assert ops(model) == ["Conv"]
    text, _ = KEPT["a shift before a transposed conv"]
    model, _ = fold(model_of(text, b=np.zeros(4), m=np.zeros(4)))
    assert ops(model) == ["ConvTranspose"]


def test_an_add_behind_a_matmul_is_its_bias_and_stays():
    text = "g (float[N,5] x, float[5,4] w, float[4] c) => (float[N,4] y) { a = MatMul(x, w) y = Add(a, c) }"
    result = optimize(model_of(text), "fold-batch-norm")
    assert not result.report.records[0].changed
    assert not result.report.records[0].left_alone


def test_dead_and_extreme_channels():
    text, _ = FOLDED["conv"]
    model, _ = fold(model_of(text, s=[0.0, 1e-30, 1e6, -2.0], v=[0.0, 1e-12, 1e8, 1.0]))
    assert ops(model) == ["Conv"]


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        ({"v": [-1.0, 1, 1, 1]}, "give NaN or infinity"),
        ({"m": [np.inf, 1, 1, 1]}, "give NaN or infinity"),
        ({"s": [3e38, 1, 1, 1], "v": [1e-12, 1, 1, 1]}, "would overflow"),
        ({"w": np.full((4, 3, 3, 3), np.nan)}, "hold NaN or infinity"),
    ],
)
def test_numbers_that_do_not_fit_stay(contents, reason):
    text, _ = FOLDED["conv"]
    result = optimize(model_of(text, **contents), "fold-batch-norm")
    assert "BatchNormalization" in ops(result.model)
    assert reason in reasons(result.report.records[0])


def test_weights_keep_type_and_name():
    text = (
        "g (float16[N,3,8,8] x, float16[4,3,3,3] w, float16[4] s, float16[4] b, float16[4] m, float16[4] v) "
        "=> (float16[N,4,6,6] y) { a = Conv(x, w) y = BatchNormalization(a, s, b, m, v) }"
    )
    model = model_of(text)
    folded = optimize(model, "fold-batch-norm").model
    conv = folded.graph[0]
    assert conv.inputs[1].name == "w"
    assert [value.dtype for value in conv.inputs[1:]] == [ir.DataType.FLOAT16] * 2
    initializers = model.graph.initializers
    weights = {name: initializers[name].const_value.numpy().astype(np.float64) for name in "wsbmv"}
    scale = weights["s"] / np.sqrt(weights["v"] + 1e-5)
    expected = (weights["w"] * scale[:, None, None, None]).astype(np.float16)
    np.testing.assert_array_equal(conv.inputs[1].const_value.numpy(), expected)
    bias = (weights["b"] - scale * weights["m"]).astype(np.float16)
    np.testing.assert_array_equal(conv.inputs[2].const_value.numpy(), bias)


def test_bfloat16_weights():
    text = (
        "g (bfloat16[N,5] x, bfloat16[4,5] w, bfloat16[4] k) => (bfloat16[N,4] y) "
        "{ a = Gemm<transB=1>(x, w) y = Mul(a, k) }"
    )
    model = model_of(text, w=np.ones((4, 5)), k=[1.0, 2.0, 4.0, 0.5])
    folded = optimize(model, "fold-batch-norm").model
    assert ops(folded) == ["Gemm"]
    weights = folded.graph[0].inputs[1].const_value.numpy()
    assert weights.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(weights[:, 0].astype(np.float32), [1.0, 2.0, 4.0, 0.5])


def test_a_bias_shared_with_another_node_is_copied():
    text = (
        f"g (float[N,3,8,8] x, {CONV}, {BN}, float[4,3,3,3] w2) => (float[N,4,6,6] y, float[N,4,6,6] z) "
        "{ a = Conv(x, w, c) y = BatchNormalization(a, s, b, m, v) z = Conv(x, w2, c) }"
    )
    model, _ = fold(model_of(text))
    assert ops(model) == ["Conv", "Conv"]
    biases = [node.inputs[2].name for node in model.graph]
    assert len(set(biases)) == 2


def test_weights_in_constant_nodes():
    text = (
        "g (float[N,1] x) => (float[N,2] y) { w = Constant<value = float[1,2] {1.0, 2.0}>() "
        "k = Constant<value_floats = [3.0, 5.0]>() a = MatMul(x, w) y = Mul(a, k) }"
    )
    model, _ = fold(model_of(text))
    assert "Mul" not in ops(model)


def test_selectors_are_honoured():
    text = (
        f"g (float[N,3,8,8] x, {CONV}, {BN}, float[4,4,1,1] w2) => (float[N,4,6,6] y) "
        "{ a = Conv(x, w, c) d = BatchNormalization(a, s, b, m, v) e = Relu(d) f = Conv(e, w2) "
        "y = BatchNormalization(f, b, s, c, v) }"
    )
    model, _ = fold(model_of(text), options='{skip="BatchNormalization_1"}')
    assert ops(model) == ["Conv", "BatchNormalization", "Relu", "Conv"]


def test_inside_subgraphs():
    text = """g (float[2,4] x, bool p, float[4,4] w, float[4] s, float[4] b, float[4] m, float[4] v)
      => (float[2,4] y) {
        y = If (p) <
          then_branch = t () => (float[2,4] ty) { ta = MatMul(x, w) ty = BatchNormalization(ta, s, b, m, v) },
          else_branch = e () => (float[2,4] ey) { ey = Relu(x) }>
      }"""
    model, _ = fold(model_of(text, keep="x p"))
    branch = model.graph[-1].attributes["then_branch"].as_graph()
    assert [node.op_type for node in branch] == ["MatMul", "Add"]


def test_functions_are_left_alone():
    text = """g (float[2,2] x) => (float[2,2] y) { y = local.f(x) }
    <domain: "local", opset_import: ["" : 23]>
    f (p) => (q) { w = Constant<value = float[2,2] {1.0, 2.0, 3.0, 4.0}>() k = Constant<value_float = 3.0>()
      r = MatMul(p, w) q = Mul(r, k) }"""
    result = optimize(model_of(text), "fold-batch-norm")
    assert not result.report.records[0].changed


def test_twice_changes_nothing():
    text, _ = FOLDED["conv"]
    once, _ = fold(model_of(text))
    _, record = fold(once)
    assert not record.changed


@settings(max_examples=25, deadline=None)
@given(
    groups=st.sampled_from([1, 2, 4]),
    per_group=st.integers(1, 3),
    outputs=st.integers(1, 3),
    kernel=st.integers(1, 3),
    op=st.sampled_from(["Conv", "ConvTranspose"]),
    before=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any_grouping_folds_exactly(groups, per_group, outputs, kernel, op, before, seed):
    c_in, c_out = groups * per_group, groups * outputs
    shape = (c_out, per_group) if op == "Conv" else (c_in, outputs)
    channels = c_in if before else c_out
    size = 6 - kernel + 1 if op == "Conv" else 6 + kernel - 1
    norm = f"float[{channels}] s, float[{channels}] b, float[{channels}] m, float[{channels}] v"
    linear = f"{op}<group={groups}>"
    body = (
        f"a = BatchNormalization(x, s, b, m, v) y = {linear}(a, w)"
        if before
        else f"a = {linear}(x, w) y = BatchNormalization(a, s, b, m, v)"
    )
    text = (
        f"g (float[N,{c_in},6,6] x, float[{shape[0]},{shape[1]},{kernel},{kernel}] w, {norm}) "
        f"=> (float[N,{c_out},{size},{size}] y) {{ {body} }}"
    )
    unshifted = {"b": np.zeros(channels), "m": np.zeros(channels)} if before and op == "ConvTranspose" else {}
    model, _ = fold(model_of(text, seed=seed, **unshifted))
    assert ops(model) == [op]
