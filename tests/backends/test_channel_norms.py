"""Group and instance norms on CPUs, and copies that turn axes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.backends.target import resolve_target
from graphwright.backends.tvm.kernels.relayout import as_matrices, side_of
from graphwright.ir.compare import compare

HEADER = '<ir_version: 10, opset_import: ["" : 23]>\n'
TARGETS = [name for name in ("host", "x86-64-v3") if resolve_target(name).runs_here]


def test_norms_of_any_rank_and_group_count(through_tvm):
    shapes = {"flat": (3, 12), "line": (2, 12, 50), "image": (2, 12, 7, 9), "cube": (1, 12, 3, 4, 5)}
    inputs, outputs, nodes = ["float[12] s", "float[12] b"], [], []
    for name, shape in shapes.items():
        dims = f"float[{','.join(map(str, shape))}]"
        inputs.append(f"{dims} {name}")
        for groups in (1, 4, 12):
            outputs.append(f"{dims} {name}{groups}")
            nodes.append(
                f"{name}{groups} = GroupNormalization<num_groups = {groups}, epsilon = 1e-3>({name}, s, b)"
            )
        if len(shape) > 2:
            outputs.append(f"{dims} {name}_each")
            nodes.append(f"{name}_each = InstanceNormalization({name}, s, b)")
    model = ir.from_onnx_text(
        HEADER + f"g ({', '.join(inputs)}) => ({', '.join(outputs)}) {{ {' '.join(nodes)} }}"
    )
    results, expected, _ = through_tvm(model)
    for name, wanted in expected.items():
        assert compare(wanted, results[name]).max_rel <= 2e-5, name


def test_a_norm_far_from_zero_keeps_its_digits(through_tvm):
    model = ir.from_onnx_text(
        HEADER
        + "g (float[1,8,16,16] x, float[8] s, float[8] b) => (float[1,8,16,16] y) { y = GroupNormalization<num_groups = 2>(x, s, b) }"
    )
    x = np.random.default_rng(0).standard_normal((1, 8, 16, 16)) + 1000.0
    feeds = {"x": x.astype(np.float32), "s": np.ones(8, np.float32), "b": np.zeros(8, np.float32)}
    groups = feeds["x"].astype(np.float64).reshape(2, -1)
    exact = (groups - groups.mean(1, keepdims=True)) / np.sqrt(groups.var(1, keepdims=True) + 1e-5)
    results, _, _ = through_tvm(model, feeds)
    assert np.abs(results["y"].reshape(2, -1) - exact).max() <= 2e-3


def test_a_norm_between_convolutions_stays_channels_last(through_tvm, build_model):
    model = build_model(
        """g (float[1,16,12,12] x, float[32,16,3,3] w1, float[8,32,3,3] w2, float[32] s, float[32] b) => (float[1,8,1,1] y) {
          c1 = Conv<pads = [1,1,1,1]>(x, w1) n = GroupNormalization<num_groups = 4>(c1, s, b) g = Sigmoid(n) a = Mul(n, g)
          c2 = Conv<pads = [1,1,1,1]>(a, w2) y = GlobalAveragePool(c2) }""",
        w1=(32, 16, 3, 3),
        w2=(8, 32, 3, 3),
        s=(32,),
        b=(32,),
    )
    results, expected, lowered = through_tvm(model)
    assert compare(expected["y"], results["y"]).max_rel <= 1e-5
    copies = [kernel.name for kernel in lowered.kernels if kernel.name.startswith(("identity", "transpose"))]
    assert copies == ["identity"], copies


@pytest.mark.parametrize("target", TARGETS)
def test_transposes(through_tvm, target):
    cases = {
        "batched": ("float", (2, 70, 33), (0, 2, 1), True),
        "heads": ("float", (4, 16, 9, 40), (0, 3, 1, 2), True),
        "plain": ("float", (100, 48), (1, 0), True),
        "integers": ("int32", (3, 5, 400), (0, 2, 1), True),
        "joined": ("float", (4, 50, 3, 20), (0, 2, 3, 1), True),
        "rows_move": ("float", (4, 50, 8, 20), (0, 2, 1, 3), False),
        "narrow": ("float", (3000, 3), (1, 0), False),
        "doubles": ("double", (100, 48), (1, 0), False),
    }
    inputs = [f"{kind}[{','.join(map(str, shape))}] {name}" for name, (kind, shape, *_) in cases.items()]
    outputs = [
        f"{kind}[{','.join(str(shape[axis]) for axis in perm)}] {name}_turned"
        for name, (kind, shape, perm, _) in cases.items()
    ]
    nodes = [
        f"{name}_turned = Transpose<perm = [{','.join(map(str, perm))}]>({name})"
        for name, (_, _, perm, _) in cases.items()
    ]
    model = ir.from_onnx_text(
        HEADER + f"g ({', '.join(inputs)}) => ({', '.join(outputs)}) {{ {' '.join(nodes)} }}"
    )
    for node in model.graph:
        node.name = node.inputs[0].name
    results, expected, lowered = through_tvm(model, target=target)
    for name, wanted in expected.items():
        assert np.array_equal(results[name], wanted), name
    noted = {node: bool(kernel.note) for kernel in lowered.kernels for node in kernel.nodes}
    assert noted == {name: turned for name, (*_, turned) in cases.items()}


def test_what_counts_as_a_transpose_of_matrices():
    assert as_matrices((2, 3, 4), (0, 2, 1)) == (2, 3, 4)
    assert as_matrices((2, 3, 4, 5), (0, 3, 1, 2)) == (2, 12, 5)
    assert as_matrices((2, 1, 3, 4), (2, 3, 1, 0)) == (1, 2, 12)
    assert as_matrices((2, 3, 4, 5), (0, 2, 1, 3)) is None
    assert as_matrices((2, 3), (0, 1)) is None
    assert as_matrices((2, 3, 4), (2, 1, 0)) is None
    assert (side_of(100, 19, 16), side_of(100, 9, 16), side_of(3, 100, 16)) == (16, 8, 0)


def test_a_resized_output_is_made_channels_last_and_turned(through_tvm, build_model):
    model = build_model(
        """g (float[1,8,12,12] x, float[20,8,3,3] w) => (float[1,20,36,36] y)
        <float[4] scales = {1.0, 1.0, 3.0, 3.0}> {
          c = Conv<pads = [1,1,1,1]>(x, w) y = Resize<mode = "linear">(c, , scales) }""",
        w=(20, 8, 3, 3),
    )
    results, expected, lowered = through_tvm(model)
    assert compare(expected["y"], results["y"]).max_rel <= 1e-5
    copies = [kernel for kernel in lowered.kernels if kernel.name.startswith("identity")]
    assert any(kernel.note.startswith("transpose") for kernel in copies), copies
