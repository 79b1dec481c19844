"""quantize-weights: every form runs in ONNX Runtime, as numpy says it should, from a file that is small."""

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.compare import compare
from graphwright.ir.errors import PassError, PipelineError
from graphwright.ir.reference import run_reference
from graphwright.ir.save import serialized_size
from graphwright.passes.optimize import optimize
from graphwright.passes.quantization.kmeans import kmeans_levels
from graphwright.passes.quantization.weight_forms import (
    WEIGHT_FORMS,
    byte_table,
    codes_per_byte,
    encode,
    pack,
)
from graphwright.passes.quantization.weight_sums import keep_sums
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from .quantization_models import model_of, optimized_in_onnx_runtime

MIXED = """g (float[N,12,9,9] x, float[32,12,3,3] w1, float[32] b1, float[32,16,2,2] wt, float[256,100] wm,
             float[7,100] wg, int64[3,5] i, float[50,64] table) => (float[N,7] y, float[3,5,64] e) {
    c = Conv<pads=[1,1,1,1]>(x, w1, b1)  r = Relu(c)
    t = ConvTranspose(r, wt)  f = AveragePool<kernel_shape=[4,4], strides=[2,2]>(t)  v = Flatten(f)
    m = MatMul(v, wm)  y = Gemm<transB=1>(m, wg)
    e = Gather(table, i)
  }"""
# By form: bits per weight in the file, scales included, and the SQNR (dB) that Gaussian weights must reach.
EXPECTED = {
    "int8": (8.7, 40), "int8 symmetric=false": (8.9, 40), "int4": (4.8, 19), "int4 symmetric=false": (4.9, 20),
    "int2": (3.0, 8.5), "ternary": (2.6, 7), "binary": (2.2, 4), "kmeans": (4.3, 19), "kmeans bits=8": (10.0, 40),
    "kmeans bits=3": (4.8, 13.5), "kmeans bits=1": (1.7, 3.5), "kmeans bits=5": (8.3, 24), "kmeans block=64": (4.9, 20),
    "power-of-two": (4.8, 13), "nf4": (4.9, 19.5), "fp4": (4.9, 19), "int4 block=32": (5.4, 20),
    "int4 block=32 scale=absmax": (5.4, 18), "int4 block=0": (4.8, 17.5), "int8 block=16": (10.1, 44),
    "fp8-e4m3": (8.7, 30), "fp8-e5m2": (8.7, 24), "float16": (16.1, 70), "bfloat16": (16.1, 50),
}  # fmt: skip

# Forms whose scales come from the largest magnitude in convolutions.
LARGEST = ("int8", "int4", "nf4")


def feeds_of(seed: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "x": rng.normal(size=(3, 12, 9, 9)).astype(np.float32),
        "i": rng.integers(-50, 50, size=(3, 5)),
    }


@pytest.fixture(scope="module")
def mixed() -> ir.Model:
    return model_of(MIXED, keep="x i")


def with_weights(model: ir.Model, weights: dict[str, np.ndarray]) -> ir.Model:
    copy = model.clone()
    for name, array in weights.items():
        copy.graph.initializers[name].const_value = ir.tensor(array, name=name)
    return copy


def rounded(model: ir.Model, options: str) -> dict[str, np.ndarray]:
    """The weights as `encode` rounds them, without any graph."""
    form, *others = options.split()
    given = dict(each.split("=") for each in others)
    rounded = {}
    layouts = {"w1": (32, 108), "wg": (7, 100), "table": (50, 64)}
    windows = {"w1": 9, "wt": 1}
    for name in ("w1", "wt", "wm", "table"):
        array = model.graph.initializers[name].const_value.numpy()
        if name in layouts:
            matrix = array.reshape(layouts[name])
        else:
            matrix = np.moveaxis(array, 0, -1).reshape(-1, array.shape[0])
        encoded = encode(
            matrix,
            WEIGHT_FORMS[form],
            block=int(given["block"]) if "block" in given else None,
            symmetric=given.get("symmetric") != "false",
            bits=int(given.get("bits", 4)),
            rule=given.get("scale", "absmax" if name in windows and form in LARGEST else "search"),
        )
        if name in windows:
            encoded = keep_sums(encoded, matrix, windows[name])
        matrix = encoded.decode()
        if name not in layouts:
            matrix = np.moveaxis(matrix.reshape(*array.shape[1:], -1), -1, 0)
        rounded[name] = matrix.reshape(array.shape)
    return rounded


@pytest.mark.parametrize("options", EXPECTED)
def test_forms_run_and_give_what_numpy_gives(mixed, options):
    result = optimize(mixed, f"quantize-weights{{form={options}}}")
    record = result.report.records[0]
    feeds = feeds_of()
    found = run_reference(result.model, feeds)
    wanted = run_reference(with_weights(mixed, rounded(mixed, options)), feeds)
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], rtol=2e-5, atol=2e-5)
    bits, sqnr = EXPECTED[options]
    for name, weight in record.details["weights"].items():
        assert weight["sqnr_db"] > sqnr, name
    assert {entry.node for entry in record.left_alone} == {"Gemm_6"}
    stored = sum(tensor.const_value.nbytes for tensor in result.model.graph.initializers.values())
    numbers = sum(mixed.graph.initializers[name].const_value.size for name in ("w1", "wt", "wm", "table"))
    assert 8 * (stored - 4 * (700 + 32)) / numbers < bits


@pytest.mark.parametrize("options", ["int4", "ternary", "nf4", "kmeans", "int8"])
def test_onnx_runtime_with_optimizations_agrees(mixed, options, tmp_path):
    model = optimize(mixed, f"quantize-weights{{form={options}}}").model
    feeds = feeds_of()
    outputs, _ = optimized_in_onnx_runtime(model, feeds, tmp_path)
    for name, array in run_reference(model, feeds).items():
        assert np.abs(outputs[name] - array).max() <= 0.02 * np.abs(array).max()


def test_int4_products_become_onnx_runtimes_own_kernel(tmp_path):
    text = "g (float[N,256] x, float[256,128] w, int64[4] i, float[64,256] t) => (float[N,128] y, float[4,256] e)"
    model = model_of(text + " { y = MatMul(x, w)  e = Gather(t, i) }", keep="x i")
    model = optimize(model, "quantize-weights{form=int4 block=32}").model
    feeds = {"x": np.ones((2, 256), np.float32), "i": np.arange(4)}
    _, kernels = optimized_in_onnx_runtime(model, feeds, tmp_path)
    # The embedding is gathered in its packed form; no whole table is ever restored.
    assert "MatMulNBits" in kernels and "DequantizeLinear" not in kernels


@pytest.mark.parametrize(
    ("form", "share"),
    [("int8", 0.27), ("int4", 0.16), ("int2", 0.09), ("ternary", 0.08), ("binary", 0.06), ("nf4", 0.16),
     ("kmeans", 0.135), ("power-of-two", 0.135), ("fp8-e4m3", 0.27), ("float16", 0.51)],
)  # fmt: skip
def test_files_are_small(form, share):
    text = """g (float[N,512] x, float[512,1024] w1, float[1024,512] w2, float[256,64,3,3] wc, float[2,64,9,9] z)
        => (float[N,512] y, float[2,256,7,7] c) { h = MatMul(x, w1)  y = MatMul(h, w2)  c = Conv(z, wc) }"""
    model = model_of(text, keep="x z")
    small = optimize(model, f"quantize-weights{{form={form}}}").model
    assert serialized_size(small) < share * serialized_size(model)


def test_folding_keeps_weights_packed():
    text = "g (float[N,64] x, float[64,128] w) => (float[N,128] y) { y = MatMul(x, w) }"
    for form in ("ternary", "kmeans", "nf4", "bfloat16"):
        model = optimize(model_of(text), f"quantize-weights{{form={form}}}").model
        folded = optimize(model, "simplify").model
        assert serialized_size(folded) <= serialized_size(model) + 64
        assert [node.op_type for node in folded.graph] == [node.op_type for node in model.graph]


def test_shared_weights_are_stored_once_and_embeddings_are_gathered_small():
    text = """g (float[N,64] x, float[64,64] w, int64[5] i) => (float[N,64] y, float[5,64] e) {
        a = MatMul(x, w)  y = MatMul(a, w)  e = Gather(w, i) }"""
    model = optimize(model_of(text, keep="x i"), "quantize-weights{form=int8}").model
    assert sum(node.op_type == "DequantizeLinear" for node in model.graph) == 1
    text = "g (int64[5] i, float[64,64] w) => (float[5,64] e) { e = Gather(w, i) }"
    model = optimize(model_of(text, keep="i"), "quantize-weights{form=int8}").model
    assert model.graph.initializers["w_quantized"].consumers()[0].op_type == "Gather"


def test_recurrent_weights():
    text = """g (float[5,2,24] x, float[2,64,24] w, float[2,64,16] r, float[2,128] b) => (float[5,2,2,16] y) {
        y = LSTM<hidden_size=16, direction="bidirectional">(x, w, r, b) }"""
    model = model_of(text)
    for form in ("int8", "int4", "ternary", "nf4"):
        small = optimize(model, f"quantize-weights{{form={form} block=8}}").model
        feeds = {"x": np.random.default_rng(0).normal(size=(5, 2, 24)).astype(np.float32)}
        comparison = compare(run_reference(model, feeds), run_reference(small, feeds))
        assert comparison.sqnr_db > {"int8": 35, "int4": 18, "ternary": 5, "nf4": 18}[form]


def test_weights_in_bodies_are_restored_there():
    text = """g (float[N,64] x, bool c, float[64,64] w) => (float[N,64] y) {
        y = If(c)<then_branch = t () => (float[N,64] a) { a = MatMul(x, w) },
                  else_branch = e () => (float[N,64] b) { b = MatMul(x, w) }> }"""
    model = model_of(text, keep="x c")
    small = optimize(model, "quantize-weights{form=ternary}").model
    for c in (True, False):
        feeds = {"x": np.ones((2, 64), np.float32), "c": np.asarray(c)}
        assert compare(run_reference(model, feeds), run_reference(small, feeds)).sqnr_db > 4


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        (np.full((64, 64), np.nan), "NaN or infinity in its weights"),
        (np.full((64, 64), np.inf), "NaN or infinity in its weights"),
        (np.full((64, 64), 1e30), "numbers beyond 1e+18 in its weights"),
    ],
)
def test_what_stays_is_reported(weights, reason):
    text = "g (float[N,64] x, float[64,64] w) => (float[N,64] y) { y = MatMul(x, w) }"
    result = optimize(model_of(text, w=weights), "quantize-weights")
    assert [entry.reason for entry in result.report.records[0].left_alone] == [reason]
    assert [node.op_type for node in result.model.graph] == ["MatMul"]


@pytest.mark.parametrize("number", [0.0, 0.25, -2.0])
@pytest.mark.parametrize("options", EXPECTED)
def test_weights_of_one_number_have_one_level(options, number):
    text = "g (float[N,64] x, float[64,64] w) => (float[N,64] y) { y = MatMul(x, w) }"
    model = model_of(text, w=np.full((64, 64), number))
    small = optimize(model, f"quantize-weights{{form={options}}}").model
    feeds = {"x": np.random.default_rng(0).normal(size=(5, 64)).astype(np.float32)}
    found, wanted = run_reference(small, feeds)["y"], run_reference(model, feeds)["y"]
    np.testing.assert_allclose(found, wanted, rtol=0.1, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ("form=int3", "option 'form' must be one of"),
        ("form=kmeans bits=9", "option 'bits' must be 1 to 8, not 9"),
        ("form=power-of-two bits=1", "option 'bits' must be 2 to 8, not 1"),
        ("block=-1", "option 'block' must be 0 or more, not -1"),
        ("form=nf4 symmetric=false", "symmetric=false is there for int8 and int4, not for nf4"),
        ("form=float16 block=8", "float16 has no scales"),
    ],
)
def test_mistakes_are_one_line(mixed, options, line):
    with pytest.raises((PassError, PipelineError), match=line) as error:
        optimize(mixed, f"quantize-weights{{{options}}}")
    assert "\n" not in str(error.value)


@given(st.integers(1, 256), st.integers(0, 40), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_packing_loses_nothing(levels, count, seed):
    codes = np.random.default_rng(seed).integers(0, levels, size=count).astype(np.uint8)
    table = byte_table(np.arange(levels, dtype=np.float32))
    assert table.shape == (levels ** codes_per_byte(levels), codes_per_byte(levels))
    np.testing.assert_array_equal(table[pack(codes, levels)].reshape(-1)[:count], codes)


@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 70)),
               elements=st.floats(-1e6, 1e6, width=32) | st.just(0.0)),
    st.sampled_from(sorted(WEIGHT_FORMS)),
    st.sampled_from([None, 0, 1, 7, 16, 64]),
    st.booleans(),
    st.integers(2, 8),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
@example(np.eye(1, 65, dtype=np.float32), "int2", None, True, 2)
@example(np.ones((1, 1), np.float32), "int4", None, True, 2)
@example(
    np.repeat(np.arange(8, dtype=np.float32) > 0, 3)[:, None] * np.float32([[1e-6, 4e-7]]),
    "kmeans",
    0,
    True,
    1,
)
def test_any_matrix_is_encoded(matrix, form, block, symmetric, bits):
    if WEIGHT_FORMS[form].is_cast:
        matrix = np.clip(matrix, -60000, 60000)
    encoded = encode(matrix, WEIGHT_FORMS[form], block=block, symmetric=symmetric, bits=bits)
    if encoded.scales is not None:
        assert np.isfinite(encoded.scales).all()
        # -8 serves either side, if it may.
        signed = form == "int4" and symmetric
        assert (np.abs(encoded.scales) > 0).all() and (signed or (encoded.scales > 0).all())
    restored = encoded.decode()
    assert restored.shape == matrix.shape and np.isfinite(restored).all()
    # No form is worse than storing nothing, and zeros stay zeros wherever there is a level for them.
    assert (
        np.square(restored - matrix, dtype=np.float64).sum()
        <= 1.0001 * np.square(matrix, dtype=np.float64).sum() + 1e-30
    )
    if not matrix.any():
        assert np.abs(restored).max() < 1e-30


def test_kmeans_is_the_optimum_of_lloyd():
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=4000)
    levels = kmeans_levels(numbers, 16)
    near = np.abs(numbers[:, None] - levels).argmin(axis=1)
    means = np.array([numbers[near == i].mean() for i in range(16)])
    np.testing.assert_allclose(levels, means, atol=2e-3)
    assert 10 * np.log10(1 / np.square(levels[near] - numbers).mean()) > 20.0


def test_ternary_scale_is_the_best_of_all():
    row = np.random.default_rng(3).normal(size=(1, 24)).astype(np.float32)
    found = np.square(encode(row, WEIGHT_FORMS["ternary"], block=0).decode() - row).sum()
    tried = [np.square(np.clip(np.rint(row / s), -1, 1) * s - row).sum() for s in np.linspace(0.05, 3, 4000)]
    assert found <= min(tried) + 1e-5


def test_four_bits_are_stored_as_four_bits(mixed):
    model = optimize(mixed, "quantize-weights{form=int4}").model
    stored = model.graph.initializers["wm_quantized"].const_value
    assert stored.dtype == ir.DataType.INT4 and stored.nbytes == 256 * 100 // 2
    assert stored.numpy().dtype == ml_dtypes.int4
