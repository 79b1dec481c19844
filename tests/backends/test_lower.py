"""Whole graphs through the lowering: numbers against the reference, structure by the functions that come out."""

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.backends.target import host_target, resolve_target
from graphwright.backends.tvm.lower import lower
from graphwright.ir.compare import compare
from graphwright.ir.errors import CompileError, ShapeError
from graphwright.ir.shapes import infer_shapes


def text(body: str, opset: int = 23) -> ir.Model:
    return ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : {opset}]>\n{body}')


def assert_same(outputs, expected, bound=1e-5):
    assert outputs.keys() == expected.keys()
    for name, wanted in expected.items():
        assert outputs[name].shape == wanted.shape and outputs[name].dtype == wanted.dtype, name
        assert compare(wanted, outputs[name]).max_rel <= bound, name


def kinds(lowered) -> dict[str, int]:
    return {kernel.name: kernel.calls for kernel in lowered.kernels}


def test_a_small_network_runs_in_few_kernels(through_tvm, cnn):
    outputs, expected, lowered = through_tvm(cnn)
    assert_same(outputs, expected)
    calls = kinds(lowered)
    # The copy is the image, which comes in ONNX's order; everything element-wise sits in an anchor's kernel.
    assert sum(calls.values()) == 6
    assert [name for name in calls if name.startswith("identity")] == ["identity"]


def test_equal_layers_share_one_function(through_tvm, build_model):
    layers = "\n".join(
        f"c{i} = Conv<pads = [1, 1, 1, 1]>(x{i}, w{i}) x{i + 1} = Relu(c{i})" for i in range(4)
    )
    weights = {f"w{i}": (8, 8, 3, 3) for i in range(4)}
    inputs = ", ".join(f"float[8,8,3,3] {name}" for name in weights)
    model = build_model(
        f"g (float[1,8,10,10] x0, {inputs}) => (float[1,8,10,10] x4) {{ {layers} }}", **weights
    )
    outputs, expected, lowered = through_tvm(model)
    assert_same(outputs, expected)
    assert kinds(lowered)["conv_relu"] == 4
    assert len(lowered.weights) == 4


def test_movement_operators(through_tvm):
    model = text(
        """g (float[2,6,4,5] x, float[2,6,4,5] y, int64[3] chosen) => (float[2,6,4,5] shuffled, float[2,9,4,5] joined,
            float[2,6,8,9] padded, float[2,6,8,9] mirrored, float[2,6,6,7] clamped, float[2,3,4,5] gathered,
            float[2,3,2,5] cut, float[4,12,4,5] tiled, float[2,24,2,2] deep, float[2,6,4,4] wide,
            float[2,6,4,4] wide_crd, float[2,6,4,5] turned, float[2,6,4,5] upper, float[2,6,8,10] large)
        <int64[5] split = {2, 2, 3, 4, 5}, int64[4] shape = {2, 6, 4, 5}, int64[8] pads = {0, 0, 2, 1, 0, 0, 2, 3},
         int64[8] more = {0, 0, 2, 1, 0, 0, 2, 3}, int64[8] rim = {0, 0, 1, 1, 0, 0, 1, 1},
         int64[2] s = {-1, 0}, int64[2] e = {-7, 4}, int64[2] axes = {1, 2}, int64[2] steps = {-2, 2},
         int64[4] repeats = {2, 2, 1, 1}, int64[3] parts = {1, 2, 3}, float fill = {7.0},
         int64[4] even = {2, 6, 4, 4}, int64[4] zero = {0, 0, 0, 0}, float[4] scales = {1, 1, 2, 2},
         int64[1] one = {1}> {
          a = Reshape(x, split) b = Transpose<perm = [0, 2, 1, 3, 4]>(a) shuffled = Reshape(b, shape)
          p, q, r = Split<axis = 1>(x, parts) rr = Relu(r) joined = Concat<axis = 1>(y, rr)
          padded = Pad(x, pads, fill) mirrored = Pad<mode = "reflect">(x, more) clamped = Pad<mode = "edge">(x, rim)
          gathered = Gather<axis = 1>(x, chosen) cut = Slice(x, s, e, axes, steps) tiled = Tile(x, repeats)
          four = Slice(x, zero, even) deep = SpaceToDepth<blocksize = 2>(four)
          wide = DepthToSpace<blocksize = 2>(deep) wide_crd = DepthToSpace<blocksize = 2, mode = "CRD">(deep)
          t = Transpose<perm = [3, 2, 1, 0]>(x) turned = Transpose<perm = [3, 2, 1, 0]>(t)
          upper = Trilu<upper = 1>(x) large = Resize<mode = "linear">(x, , scales) }"""
    )
    generator = np.random.default_rng(0)
    feeds = {name: generator.standard_normal((2, 6, 4, 5)).astype(np.float32) for name in "xy"}
    outputs, expected, _ = through_tvm(model, {**feeds, "chosen": np.array([5, -1, 0])})
    assert_same(outputs, expected)


def test_rows_in_both_directions_and_layouts(through_tvm, build_model):
    """Reductions, softmax and normalization along the innermost axis and across it, also behind a convolution."""
    model = build_model(
        """g (float[2,5,9,11] x, float[8,5,1,1] w, float[11] s, float[11] b, float[8] gs, float[8] gb) => (float[2,8,1,1] mean,
            float[2,9,11] top, float[2,8,9,11] first, float[2,8,9,11] last, float[2,8,9,11] norm,
            float[2,8,9,11] rms, float[2] norms, float[2,5,9,11] logs, float[2,8,9,11] grouped)
        <int64[1] one = {1}, int64[3] rest = {1, 2, 3}> {
          c = Conv(x, w) mean = GlobalAveragePool(c) top = ReduceMax<keepdims = 0>(c, one)
          first = Softmax<axis = 1>(c) last = Softmax(c) norm = LayerNormalization(c, s, b)
          rms = RMSNormalization(c, s) norms = ReduceL2<keepdims = 0>(c, rest) logs = LogSoftmax<axis = 2>(x)
          grouped = GroupNormalization<num_groups = 4>(c, gs, gb) }""",
        w=(8, 5, 1, 1),
        s=(11,),
        b=(11,),
        gs=(8,),
        gb=(8,),
    )
    outputs, expected, _ = through_tvm(model)
    assert_same(outputs, expected, 2e-5)


def test_products_of_every_rank(through_tvm, build_model):
    model = build_model(
        """g (float[3,7] a, float[2,3,4,7] b, float[2,1,7,5] c, float[7] v, float[7,6] w, float[6,7] wt, float[6] bias)
            => (float[3,6] p, float[2,3,4,5] q, float[3] r, float[2,3,4,6] s, float[3,6] t, float[6] u)
        {
          p = MatMul(a, w) q = MatMul(b, c) r = MatMul(a, v) s = MatMul(b, w)
          t = Gemm<transB = 1, alpha = 0.5, beta = 2.0>(a, wt, bias) u = MatMul(v, w) }""",
        w=(7, 6),
        wt=(6, 7),
        bias=(6,),
    )
    outputs, expected, _ = through_tvm(model)
    assert_same(outputs, expected)


def test_convolutions_of_every_kind(through_tvm, build_model):
    model = build_model(
        """g (float[1,6,9,9] x, float[1,6,15] line, float[1,2,5,5,5] cube, float[4,6,3,3] w, float[6,1,3,3] d,
             float[6,3,3,3] g2, float[6,4,2,2] up, float[8,6,3] w1, float[3,2,2,2,2] w3, float[8] b1)
            => (float[1,4,5,5] dense, float[1,6,9,9] depth, float[1,6,9,9] grouped, float[1,4,18,18] bigger,
                float[1,8,13] one, float[1,3,4,4,4] three, float[1,6,5,5] top, float[1,6,8,8] average) {
          dense = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x, w)
          depth = Conv<pads = [1, 1, 1, 1], group = 6>(x, d)
          grouped = Conv<auto_pad = "SAME_UPPER", group = 2>(x, g2)
          bigger = ConvTranspose<strides = [2, 2]>(x, up)
          one = Conv(line, w1, b1) three = Conv(cube, w3)
          top = MaxPool<kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]>(x)
          average = AveragePool<kernel_shape = [2, 2]>(x) }""",
        w=(4, 6, 3, 3),
        d=(6, 1, 3, 3),
        g2=(6, 3, 3, 3),
        up=(6, 4, 2, 2),
        w1=(8, 6, 3),
        w3=(3, 2, 2, 2, 2),
        b1=(8,),
    )
    outputs, expected, _ = through_tvm(model)
    assert_same(outputs, expected)


def test_batch_norm_local_response_norm_and_concatenation(through_tvm, build_model):
    model = build_model(
        """g (float[1,6,7,7] x, float[6,6,1,1] w, float[12] s, float[12] b, float[12] m, float[12] v)
            => (float[1,12,7,7] y, float[1,6,7,7] z) {
          c = Conv(x, w) j = Concat<axis = 1>(c, x) vv = Mul(v, v)
          n = BatchNormalization(j, s, b, m, vv) y = Relu(n)
          z = LRN<size = 5, alpha = 0.01, beta = 0.75, bias = 1.0>(c) }""",
        w=(6, 6, 1, 1),
        s=(12,),
        b=(12,),
        m=(12,),
        v=(12,),
    )
    outputs, expected, _ = through_tvm(model)
    assert_same(outputs, expected)


def test_attention_is_decomposed(through_tvm):
    model = text(
        """g (float[2,4,6,8] q, float[2,2,6,8] k, float[2,2,6,8] v, bool[6,6] mask) => (float[2,4,6,8] y) {
          y = Attention<is_causal = 1>(q, k, v, mask) }"""
    )
    generator = np.random.default_rng(7)
    feeds = {n: generator.standard_normal((2, 4 if n == "q" else 2, 6, 8)).astype(np.float32) for n in "qkv"}
    mask = generator.random((6, 6)) < 0.7
    np.fill_diagonal(mask, True)
    outputs, expected, _ = through_tvm(model, {**feeds, "mask": mask})
    assert_same(outputs, expected)


def test_keys_turned_before_attention_and_a_float_mask(through_tvm):
    model = text(
        """g (float[2,4,6,8] q, float[2,6,2,8] k0, float[2,2,6,3] v, float[6,6] mask) => (float[2,4,6,3] y) {
          k = Transpose<perm = [0, 2, 1, 3]>(k0) y = Attention<scale = 0.3, softcap = 2.0>(q, k, v, mask) }"""
    )
    generator = np.random.default_rng(7)
    shapes = {"q": (2, 4, 6, 8), "k0": (2, 6, 2, 8), "v": (2, 2, 6, 3), "mask": (6, 6)}
    feeds = {name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    feeds["mask"][2] = -np.inf
    outputs, expected, _ = through_tvm(model, feeds)
    assert_same(outputs, expected)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_recurrent_layers_are_a_product_and_a_loop(through_tvm, build_model, kind):
    gates = {"LSTM": 4, "GRU": 3}[kind]
    model = build_model(
        f"""g (float[12,2,6] x, float[2,{gates * 8},6] w, float[2,{gates * 8},8] r, float[2,{gates * 16}] b)
            => (float[12,2,2,8] y, float[2,2,8] h) {{
          y, h = {kind}<hidden_size = 8, direction = "bidirectional">(x, w, r, b) }}""",
        w=(2, gates * 8, 6),
        r=(2, gates * 8, 8),
        b=(2, gates * 16),
    )
    outputs, expected, lowered = through_tvm(model)
    assert_same(outputs, expected)
    calls = kinds(lowered)
    # All steps and the last ones come out of one kernel and are told apart behind it.
    assert sum(calls.values()) == 4
    assert list(calls)[:2] == ["matmul_add", "recurrence__recurrence"]


def test_outputs_that_are_inputs_constants_or_views(through_tvm):
    model = text(
        """g (float[2,6] x) => (float[2,6] same, float[3,4] view, float[2] fixed, float[2,6] twice)
        <int64[2] shape = {3, 4}, float[2] c = {1, 2}> {
          same = Identity(x) view = Reshape(x, shape) fixed = Identity(c) twice = Add(x, x) }"""
    )
    outputs, expected, _ = through_tvm(model)
    assert_same(outputs, expected, 0)


def test_the_model_is_left_as_it_was(cnn):
    infer_shapes(cnn)
    before = ir.to_proto(cnn).SerializeToString()
    lower(cnn, host_target())
    assert ir.to_proto(cnn).SerializeToString() == before


def test_every_target_gets_the_same_graph_of_calls(cnn):
    """Only a strategy knows what it serves: kernels differ, the work does not."""
    infer_shapes(cnn)
    for target in ("x86", "arm", "cuda"):
        lowered = lower(cnn, resolve_target(target))
        assert sum(kernel.calls for kernel in lowered.kernels) in (5, 6)


@pytest.mark.parametrize(
    ("body", "message", "error"),
    [
        ("g (float[2,N] x) => (float[2,N] y) { y = Relu(x) }", "dimension 1 of 'x' is N", ShapeError),
        (
            "g (float[2,3] x) => (float[2,3] y) { [wanted] y = com.acme.Fancy(x) }",
            "node 'wanted': the TVM backend has no lowering for operator com.acme::Fancy",
            CompileError,
        ),
        (
            """g (float[2,3] x, bool c) => (float[2,3] y) {
              [branch] y = If(c) <then_branch = t () => (float[2,3] a) { a = Relu(x) },
                                  else_branch = e () => (float[2,3] b) { b = Neg(x) }> }""",
            "node 'branch' (If) has a body that depends on data",
            CompileError,
        ),
        (
            "g (float[2,3] x, int64[2] s) => (float[3,2] y) { [late] y = Reshape(x, s) }",
            "node 'late' (Reshape)",
            CompileError,
        ),
        (
            "g (bfloat16[2,3] x) => (bfloat16[2,3] y) { y = Relu(x) }",
            "input 'x' is BFLOAT16, which the TVM backend cannot pass",
            CompileError,
        ),
    ],
)
def test_what_cannot_be_lowered_is_named(body, message, error, capfd):
    model = text(body)
    for value in model.graph.outputs:
        node = value.producer()
        if node is not None and node.op_type == "Fancy":
            value.shape, value.type = ir.Shape([2, 3]), ir.TensorType(ir.DataType.FLOAT)
    with pytest.raises(error) as caught:
        lower(model, host_target())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""
