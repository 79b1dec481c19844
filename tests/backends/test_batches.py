"""Several batch sizes in one library: numbers against ONNX Runtime, weights stored once, other sizes."""

import json

import graphwright as gw
import numpy as np
import onnx_ir as ir
import pytest
from graphwright.backends.artifact import load_executable, read_manifest
from graphwright.backends.batches import Batches, checked_sizes
from graphwright.backends.code_sizes import code_sizes
from graphwright.backends.features import with_features
from graphwright.backends.target import host_target
from graphwright.ir.compare import compare
from graphwright.ir.errors import CompileError, ModelError, ToolError
from graphwright.ir.reference import run_reference
from hypothesis import given
from hypothesis import strategies as st

NET = """net (float[{n},3,16,16] x, float[16,3,3,3] w, float[16] b, float[16,16,3,3] v, float[10,16] u)
        => (float[{n},10] y)
        {{
          c = Conv<pads = [1, 1, 1, 1]>(x, w, b)
          r = Relu(c)
          d = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(r, v)
          e = Relu(d)
          p = GlobalAveragePool(e)
          {flatten}
          y = Gemm<transB = 1>(f, u)
        }}"""
WEIGHTS = {"w": (16, 3, 3, 3), "b": (16,), "v": (16, 16, 3, 3), "u": (10, 16)}


@pytest.fixture(scope="module")
def net(build_model):
    return build_model(NET.format(n="N", flatten="f = Flatten<axis = 1>(p)"), **WEIGHTS)


@pytest.fixture(scope="module")
def compiled(net):
    return gw.compile(net, batch_sizes=(4, 1, 8, 4))


def _x(rows, seed=0):
    return np.random.default_rng([rows, seed]).standard_normal((rows, 3, 16, 16)).astype(np.float32)


@given(st.sets(st.integers(1, 40), min_size=1, max_size=5), st.integers(1, 200))
def test_pieces_cover_a_batch_in_order(sizes, rows):
    plan = Batches("N", tuple(sorted(sizes)), (0,), (0,)).plan(rows)
    assert [piece.start for piece in plan] == [sum(each.size for each in plan[:i]) for i in range(len(plan))]
    assert sum(piece.rows for piece in plan) == rows
    assert {piece.size for piece in plan} <= sizes
    assert all(piece.rows == piece.size for piece in plan[:-1])
    assert rows not in sizes or len(plan) == 1


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 8, 13])
def test_every_batch_gives_the_reference_numbers(net, compiled, rows):
    x = _x(rows)
    expected = run_reference(net, {"x": x})
    assert compare(expected, compiled.run({"x": x})).max_rel <= 1e-4
    assert compiled(x).shape == (rows, 10)


def test_weights_are_stored_once(net, build_model):
    """Where all sizes want them in one layout, as vectors do here and tile registers do not."""
    tiles = ["-amx-tile"] if host_target().has("amx-tile") else []
    plain = with_features(host_target(), tiles)
    compiled = gw.compile(net, plain, batch_sizes=(4, 1, 8, 4))
    single = gw.compile(build_model(NET.format(n=1, flatten="f = Flatten<axis = 1>(p)"), **WEIGHTS), plain)
    assert compiled.report.weight_bytes == single.report.weight_bytes
    rows = compiled.report.batches.rows
    assert [row.size for row in rows] == [1, 4, 8] == list(compiled.batches.sizes)
    assert all(row.weight_bytes == single.report.weight_bytes and not row.own_weight_bytes for row in rows)


def test_the_report_says_what_each_size_takes(compiled):
    report = compiled.report.to_json()["batches"]
    assert report["sizes"] == [1, 4, 8] and report["refusal"] == ""
    for row in report["rows"]:
        assert row["check"]["checked"] and row["check"]["comparison"]["max_rel"] <= 1e-4
        assert row["kernels"] >= 3 and row["code_bytes"] > 500
    text = compiled.report.to_markdown()
    assert "## Batch sizes" in text and "other batch sizes run in pieces (2 as 1 + 1)" in text
    assert sum(code_sizes(compiled.library).values()) < compiled.report.library_bytes


def test_an_artifact_keeps_its_batch_sizes(compiled, tmp_path):
    folder = compiled.save(tmp_path / "net")
    manifest = read_manifest(folder)
    assert manifest["version"] == 2
    assert manifest["inputs"] == [{"name": "x", "shape": ["N", 3, 16, 16], "dtype": "float32"}]
    loaded = load_executable(folder)
    assert loaded.batches == compiled.batches
    for rows in (4, 5):
        np.testing.assert_array_equal(loaded(_x(rows)), compiled(_x(rows)))
    assert loaded.random_feeds(batch=8)["x"].shape == (8, 3, 16, 16)
    again = loaded.save(tmp_path / "again")
    assert load_executable(again).batches == compiled.batches


@pytest.mark.parametrize("damage", [None, {"sizes": [1]}, {"sizes": []}, "gone"])
def test_a_damaged_manifest_is_refused(compiled, tmp_path, damage):
    folder = compiled.save(tmp_path / "net")
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    if damage == "gone":
        del manifest["batches"]
    else:
        manifest["batches"] = damage
    path.write_text(json.dumps(manifest))
    with pytest.raises(ToolError, match="batches"):
        load_executable(folder)


def test_a_profile_is_of_one_program(compiled):
    profile = compiled.profile(compiled.random_feeds(batch=4), repeats=1, peaks=False)
    assert all(call.shapes[0].startswith("float32[4,") for call in profile.calls)
    assert all(call.nodes for call in profile.calls if call.kind == "conv")
    with pytest.raises(ModelError, match="runs in 2 pieces; give one of 1, 4, 8"):
        compiled.profile(compiled.random_feeds(batch=5), repeats=1, peaks=False)


def test_rows_that_depend_on_each_other_are_not_cut(build_model):
    model = build_model("""net (float[N,8] x) => (float[N,8] y) { y = Softmax<axis = 0>(x) }""")
    executable = gw.compile(model, batch_sizes=[2, 4])
    x = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
    assert compare(run_reference(model, {"x": x}), executable.run({"x": x})).max_rel <= 1e-4
    with pytest.raises(
        ModelError, match="a batch of 3 .* batches of 2, 4, and its rows depend on each other"
    ):
        executable(x[:3])
    assert "other batch sizes are refused" in executable.report.to_markdown()


def test_an_output_without_a_batch_is_not_cut(build_model):
    model = build_model("""net (float[N,8] x) => (float s) { s = ReduceSum<keepdims = 0>(x) }""")
    executable = gw.compile(model, batch_sizes=[2, 3])
    x = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    assert compare(run_reference(model, {"x": x}), executable.run({"x": x})).max_rel <= 1e-4
    with pytest.raises(ModelError, match="output 's' does not begin with the batch"):
        executable(x[:1])


def test_the_batch_may_stand_elsewhere(build_model):
    model = build_model(
        """net (float[5,N,8] x, float[8,4] w) => (float[5,N,4] y) { y = MatMul(x, w) }""", w=(8, 4)
    )
    executable = gw.compile(model, batch_sizes=[1, 2])
    x = np.random.default_rng(0).standard_normal((5, 2, 8)).astype(np.float32)
    assert compare(run_reference(model, {"x": x}), executable.run({"x": x})).max_rel <= 1e-4
    with pytest.raises(ModelError, match="input 'x' has the batch in dimension 1"):
        executable(x[:, [0, 1, 0]])


def test_inputs_without_a_batch_go_to_every_piece(build_model):
    model = build_model("""net (float[N,8] x, float[8] m) => (float[N,8] y, float[N,8] z)
        { y = Mul(x, m) z = Relu(x) }""")
    executable = gw.compile(model, batch_sizes=[2, 4])
    feeds = {"x": np.arange(56, dtype=np.float32).reshape(7, 8) - 20, "m": np.arange(8, dtype=np.float32)}
    assert executable.batches.describe(7) == "4 + 2 + 2 (1 used)"
    assert compare(run_reference(model, feeds), executable.run(feeds)).max_rel <= 1e-6


def test_a_model_for_one_image_is_freed(build_model):
    """Exports often hold a Reshape to [1, 16]; it must not keep the model from other batches."""
    flatten = "s = Constant<value_ints = [1, 16]>() f = Reshape(p, s)"
    fixed = build_model(NET.format(n=1, flatten=flatten), **WEIGHTS)
    executable = gw.compile(fixed, batch_sizes=[1, 3])
    x = _x(3)
    rows = [run_reference(fixed, {"x": x[i : i + 1]})["y"] for i in range(3)]
    assert compare({"y": np.concatenate(rows)}, executable.run({"x": x})).max_rel <= 1e-4
    assert fixed.graph.inputs[0].shape == [1, 3, 16, 16]


@pytest.mark.parametrize(
    ("text", "sizes", "line"),
    [
        ("net (float[1,6] x) => (float[2,3] y) { s = Constant<value_ints=[2, 3]>() y = Reshape(x, s) }", [2], "export it with a dynamic batch dimension"),
        ("net (float[N,6] x, float[M,6] z) => (float[P,6] y) { y = Concat<axis=0>(x, z) }", [2], "fix one of them with --dim"),
        ("net (float[2,6] x, float[3,6] z) => (float[5,6] y) { y = Concat<axis=0>(x, z) }", [2], "begin with different sizes"),
        ("net (float x) => (float y) { y = Relu(x) }", [2], "no input has a dimension"),
        ("net (float[N,N] x) => (float[N,N] y) { y = Relu(x) }", [2], "more than one plain dimension"),
        ("net (float[N,6] x) => (float[N,6] y) { y = Relu(x) }", [], "such as \\(1, 4, 8\\)"),
        ("net (float[N,6] x) => (float[N,6] y) { y = Relu(x) }", [0], "positive integer"),
        ("net (float[N,6] x) => (float[N,6] y) { y = Relu(x) }", 4, "such as \\(1, 4, 8\\)"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line(build_model, text, sizes, line):
    with pytest.raises(CompileError, match=line) as caught:
        gw.compile(build_model(text), batch_sizes=sizes)
    assert "\n" not in str(caught.value)


def test_sizes_are_sorted_and_each_taken_once():
    assert checked_sizes([8, 1, 4, 1]) == (1, 4, 8)


@pytest.mark.parametrize("rows", [0])
def test_an_empty_batch_is_refused(compiled, rows):
    with pytest.raises(
        ModelError, match="a batch of 0 was given; the model was compiled for batches of 1, 4, 8"
    ):
        compiled(_x(1)[:rows])


def test_quantized_models_have_batches_too(net):
    calibration = [{"x": _x(2, seed)} for seed in range(2)]
    pipeline = "simplify,fold-batch-norm,insert-qdq{target=x86}"
    executable = gw.compile(net, pipeline=pipeline, calibration=calibration, batch_sizes=[1, 4])
    assert any(
        kernel["kind"].startswith("int8") or "int8" in kernel["note"] for kernel in executable.report.kernels
    )
    for rows in (1, 4, 5):
        expected = run_reference(executable.model, {"x": _x(rows)})
        assert compare(expected, executable.run({"x": _x(rows)})).sqnr_db >= 30
    assert all(row.own_weight_bytes == 0 for row in executable.report.batches.rows)


@pytest.mark.parametrize("backend", ["onnxruntime", "auto"])
def test_other_backends_take_every_batch(net, backend, tmp_path):
    executable = gw.compile(net, backend=backend, batch_sizes=[1, 2])
    loaded = load_executable(executable.save(tmp_path / "net"))
    for rows in (1, 2, 3):
        expected = run_reference(net, {"x": _x(rows)})
        assert compare(expected, loaded.run({"x": _x(rows)})).max_rel <= 1e-4
    if backend == "auto":
        choice = executable.report.choice
        assert len(choice.batches) == 2 and "geometric mean over the batch sizes" in str(choice)


def test_the_model_is_not_changed(net, compiled):
    assert isinstance(net.graph.inputs[0].shape[0], ir.SymbolicDim)
    assert isinstance(compiled.model.graph.inputs[0].shape[0], ir.SymbolicDim)
