"""Kernels of whole models beside ONNX Runtime, each on the reference's own integers."""

import numpy as np
import onnx_ir as ir
import pytest
import typer
from graphwright.ir.inputs import random_inputs
from graphwright.ir.reference import Reference
from graphwright.ir.save import save
from graphwright.ir.shapes import infer_shapes
from graphwright.tools import int8_exactness as exactness
from graphwright.tools.int8_measure import FLOAT, build_model, quantize
from typer.testing import CliRunner

app = typer.Typer()
app.command()(exactness.main)


@pytest.fixture(scope="module")
def quantized():
    from graphwright.passes.optimize import optimize

    model = quantize(optimize(build_model("resnet18_small"), FLOAT).model, "x86-vnni")
    infer_shapes(model)
    return model


def test_a_cut_model_gives_the_same_integers_from_those_of_the_whole(quantized):
    parts, names = exactness.cut(quantized)
    assert len(names) == sum(node.op_type == "QuantizeLinear" for node in quantized.graph)
    feeds = random_inputs(quantized, seed=3)
    expected = Reference(quantized).run_values(feeds, names)
    wanted = {value.name for value in parts.graph.inputs}
    given = {f"given/{name}": array for name, array in expected.items() if f"given/{name}" in wanted}
    found = Reference(parts).run({**feeds, **given})
    assert all(np.array_equal(expected[name], found[name]) for name in names)
    # Nothing of one part reaches the next: what is fed decides.
    last = next(name for name in reversed(names) if f"given/{name}" in wanted)
    moved = {**given, f"given/{names[0]}": np.zeros_like(expected[names[0]])}
    other = Reference(parts).run({**feeds, **moved})
    assert np.array_equal(other[last], found[last]) and not np.array_equal(other[names[1]], found[names[1]])


def test_kernels_are_exact(quantized):
    row = exactness.compare_kernels("m", quantized, "x86", random_inputs(quantized, seed=1))
    assert row.kernels == 7 and row.missed == []
    assert sum(row.instructions.values()) == 7
    assert all(tensor.steps <= 1 and tensor.equal >= 0.999 * tensor.elements for tensor in row.tensors)


_WORDS = {"amx": "tdpb", "vnni": "vpdpbusd", "avx2": "vpmaddwd", "dotprod": "sdot", "neon": "widening"}


@pytest.mark.parametrize("name", exactness.instruction_sets())
def test_every_instruction_set_of_the_machine_is_one_to_compare(quantized, name):
    target = exactness.instruction_sets()[name]
    row = exactness.compare_kernels("m", quantized, target, random_inputs(quantized, seed=2))
    assert row.missed == [] and row.target == name
    assert any(used.startswith(_WORDS[name]) for used in row.instructions), row.instructions
    assert name == "amx" or not any(used.startswith("tdpb") for used in row.instructions)


def test_a_host_with_tiles_is_compared_without_them_as_well(monkeypatch):
    from graphwright.backends import target as targets

    host = targets.resolve_target("sapphirerapids")
    monkeypatch.setattr(targets, "host_target", lambda: host)
    monkeypatch.setattr(targets.Target, "why_not_here", lambda self: None)
    assert list(exactness.instruction_sets()) == ["amx", "vnni", "avx2"]
    left = exactness.instruction_sets()["vnni"]
    assert left.has("avx512vnni") and not any(each.startswith("amx") for each in left.features)
    arm = targets.resolve_target("raspberry-pi-5")
    monkeypatch.setattr(targets, "host_target", lambda: arm)
    assert list(exactness.instruction_sets()) == ["dotprod", "neon"]


def test_what_is_off_is_named_and_ends_with_code_1(quantized, tmp_path, monkeypatch):
    file = tmp_path / "model.onnx"
    save(quantized, file)
    good = CliRunner().invoke(app, ["--model", str(file), "-o", str(tmp_path / "table.md")])
    assert good.exit_code == 0, good.output
    written = (tmp_path / "table.md").read_text()
    assert all(f"| model | {name} |" in written for name in exactness.instruction_sets())
    tensor = exactness.Tensor("bad", 1000, 998, 2)
    monkeypatch.setattr(
        exactness, "compare_kernels", lambda *given: exactness.Exactness("m", "x86", 1, (tensor,))
    )
    bad = CliRunner().invoke(app, ["--model", str(file)])
    assert bad.exit_code == 1 and "`bad`: 99.8000% of 1,000 equal, 2 steps" in bad.output


@pytest.mark.parametrize("fed", [True, False])
def test_open_dimensions_are_those_of_the_inputs(tmp_path, fed):
    from graphwright.passes.optimize import optimize

    weights = ", ".join(str(number / 96 - 0.5) for number in range(96))
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 23]> g (float[N,12] x) => (float[N,8] y) '
        f"<float[12,8] w = {{ {weights} }}> {{ y = MatMul(x, w) }}"
    )
    data = np.random.default_rng(0).standard_normal((4, 12), np.float32)
    file = tmp_path / "open.onnx"
    save(optimize(model, "insert-qdq{target=x86-vnni}", calibration=[{"x": data}]).model, file)
    np.savez(tmp_path / "x.npz", x=np.ones((5, 12), np.float32))
    given = ["--input", str(tmp_path / "x.npz")] if fed else []
    result = CliRunner().invoke(app, ["--model", str(file), "--target", "x86", *given])
    assert result.exit_code == 0, result.output
    assert not fed or "| 60 |" in result.output


@pytest.mark.parametrize(
    ("elements", "equal", "steps", "holds"),
    [(1000, 999, 1, True), (1000, 998, 1, False), (1000, 999, 2, False), (0, 0, 0, True), (10, 9, 1, False)],
)
def test_bounds(elements, equal, steps, holds):
    assert exactness.Tensor("t", elements, equal, steps).holds is holds


def test_mistakes_are_one_line(tmp_path):
    run = CliRunner().invoke
    assert run(app, ["--only", "no_such_model"]).exit_code == 2
    assert run(app, ["--target", "raspberry-pi-4"]).exit_code == 2
    lacking = next(name for name in ("neon", "avx2") if name not in exactness.instruction_sets())
    refused = run(app, ["--target", lacking])
    assert refused.exit_code == 2 and f"this machine has no {lacking}; it has: " in refused.output
    assert run(app, ["--input", str(tmp_path / "x.npz")]).exit_code == 2
    x = ir.Value(name="x", shape=ir.Shape([2]), type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.Node("", "Relu", [x])
    node.outputs[0].name, node.outputs[0].shape, node.outputs[0].type = "y", x.shape, x.type
    model = ir.Model(
        ir.Graph([x], list(node.outputs), nodes=[node], opset_imports={"": 23}, name="g"), ir_version=10
    )
    save(model, tmp_path / "float.onnx")
    result = run(app, ["--model", str(tmp_path / "float.onnx")])
    assert result.exit_code == 2 and "holds no quantized tensor" in result.output
