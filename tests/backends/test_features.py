"""Features taken away from targets and added to them, and that code is made accordingly."""

import json
import subprocess

import graphwright as gw
import numpy as np
import onnx_ir as ir
import pytest
from graphwright.backends.artifact import load_executable
from graphwright.backends.features import (
    _BUILT_ON,
    ARM_FEATURES,
    X86_FEATURES,
    split_targets,
    with_features,
)
from graphwright.backends.presets import PRESETS, X86_CPUS
from graphwright.backends.target import Target, host_target, resolve_target
from graphwright.ir.errors import TargetError
from hypothesis import given
from hypothesis import strategies as st

from .quantized_models import Graph, tensor

CPUS = sorted(name for name, fields in PRESETS.items() if fields["kind"] == "llvm")
edits = st.lists(st.tuples(st.sampled_from("+-"), st.sampled_from(X86_FEATURES)), max_size=4)


def test_a_feature_goes_and_comes_with_what_depends_on_it():
    amx = resolve_target("sapphirerapids")
    plain = resolve_target("sapphirerapids,-amx-bf16")
    assert set(amx.features) - set(plain.features) == {"amx-bf16"} == set(plain.without)
    assert (plain.name, plain.vector_bits) == ("sapphirerapids,-amx-bf16", 512)
    assert resolve_target("sapphirerapids,-amx-tile").without == ("amx-tile", "amx-int8", "amx-bf16")
    added = resolve_target("x86-64-v3,+amx-bf16")
    assert added.has("amx-tile", "amx-bf16") and not added.has("amx-int8") and added.without == ()
    assert resolve_target("x86-64-v2,+avx2").has("avx", "avx2")


def test_vectors_are_as_wide_as_what_is_left():
    def vectors(name):
        target = resolve_target(name)
        return target.vector_bits, target.vector_registers

    assert vectors("sapphirerapids,-avx512f") == (256, 16)
    assert vectors("sapphirerapids,-avx512vl") == (256, 16)
    assert vectors("sapphirerapids,-avx2") == (128, 16)
    assert vectors("x86-64-v3,+avx512f") == (256, 16)
    assert vectors("x86-64-v3,+avx512bw,+avx512dq,+avx512vl") == (512, 32)
    assert vectors("cortex-a76,-dotprod") == (128, 32)


def test_spellings_of_linux_and_spaces_are_understood():
    assert resolve_target(" SapphireRapids , -AMX_BF16,-avx512_vnni") == resolve_target(
        "sapphirerapids,-amx-bf16,-avx512vnni"
    )
    assert resolve_target("x86-64-v4,+avx2") == resolve_target("x86-64-v4")
    assert split_targets("x86,-amx-int8, -amx-bf16,arm,host,+avx2") == [
        "x86,-amx-int8,-amx-bf16",
        "arm",
        "host,+avx2",
    ]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sapphirerapids,-amx-bf61", "did you mean amx-bf16"),
        ("sapphirerapids,-quux", "unknown feature 'quux' for x86_64; there are sse3"),
        ("haswell,-amx-bf16", "haswell has no amx-bf16 to take away"),
        ("sapphirerapids,-amx-tile,-amx-bf16", "has no amx-bf16 to take away"),
        ("sapphirerapids,-avx2,+avx2", "names avx2 twice"),
        ("sapphirerapids,amx-bf16", "such as -amx-bf16"),
        ("sapphirerapids,", "such as -amx-bf16"),
        ("sapphirerapids,-", "such as -amx-bf16"),
        ("cortex-a76,-avx2", "unknown feature 'avx2' for aarch64; there are neon, dotprod"),
        ("cortex-a76,-neon", "neon cannot be taken away"),
        ("h100,-avx2", "h100 is a GPU"),
        ("saphirerapids,-avx2", "did you mean sapphirerapids"),
        (",-avx2", "unknown target ''"),
    ],
)
def test_mistakes_get_one_line(name, said):
    with pytest.raises(TargetError) as caught:
        resolve_target(name)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@given(st.sampled_from(CPUS), edits)
def test_edited_targets_are_consistent_and_survive(name, edited):
    text = ",".join([name, *(sign + feature for sign, feature in edited)])
    try:
        target = resolve_target(text)
    except TargetError as error:
        assert "\n" not in str(error)
        return
    features = set(target.features)
    assert not features & set(target.without)
    assert {base for feature in features for base in _BUILT_ON.get(feature, ())} <= features | {"neon"}
    assert (target.vector_bits == 512) <= {"avx512f", "avx512bw", "avx512dq", "avx512vl"}.issubset(features)
    assert Target.from_json(json.loads(json.dumps(target.to_json()))) == target
    assert resolve_target(target.name) == target
    assert set(resolve_target(name).features) - features == set(target.without)


def test_the_table_of_what_is_built_on_what_is_that_of_llvm():
    from graphwright.backends.tvm_import import import_tvm

    tvm = import_tvm()
    from tvm.target import codegen

    def features(triple, cpu, *edited):
        described = {"kind": "llvm", "mtriple": triple, "mcpu": cpu, "mattr": list(edited)}
        found = codegen.llvm_get_cpu_features(tvm.target.Target(described))
        return {str(feature) for feature in found} & {*X86_FEATURES, *ARM_FEATURES}

    newest = Target("newest", "llvm", "x86_64-linux-gnu", "sapphirerapids", X86_FEATURES, vector_bits=512)
    for feature in X86_FEATURES:
        plain = Target("plain", "llvm", newest.triple, "x86-64")
        assert set(with_features(plain, [f"+{feature}"]).features) == features(
            newest.triple, "x86-64", f"+{feature}"
        )
        left = with_features(newest, [f"-{feature}"])
        assert set(left.features) == features(newest.triple, newest.cpu, f"-{feature}")
        # and the same with all that is said to TVM
        assert set(left.features) == features(newest.triple, newest.cpu, *left.to_tvm()["mattr"])
    arm = resolve_target("cortex-a76,-dotprod")
    assert "dotprod" not in features(arm.triple, arm.cpu, *arm.to_tvm()["mattr"])
    assert set(X86_CPUS["sapphirerapids"]) <= set(X86_FEATURES)


@pytest.mark.skipif(host_target().arch != "x86_64", reason="for x86")
def test_code_keeps_to_what_is_left_and_artifacts_say_so(tmp_path):
    g, x = Graph(1), tensor("x", (64, 256))
    output = g("MatMul", x, g.constant(g.random.standard_normal((256, 128)).astype(np.float32)))
    output.type, output.shape = x.type, ir.Shape((64, 128))
    executable = gw.compile(g.model({"x": x}, output), "sapphirerapids,-avx512f")
    folder = executable.save(tmp_path / "out")
    command = ["objdump", "-d", "--no-show-raw-insn", str(folder / "model.so")]
    code = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert "%ymm" in code and "%zmm" not in code and "tdp" not in code
    described = json.loads((folder / "manifest.json").read_text())["target"]
    assert described["name"] == "sapphirerapids,-avx512f" and "avx512vl" in described["without"]
    if executable.target.runs_here:
        assert load_executable(folder).target == executable.target


@pytest.mark.parametrize(
    ("way", "parts", "share"), [("bf16x3", 2, 0), ("bf16x6", 3, 0), ("bf16x6:25", 0, 25), ("BF16X6", 3, 0)]
)
def test_how_float32_is_multiplied_stands_behind_the_name_as_well(way, parts, share):
    target = resolve_target(f"sapphirerapids,-amx-int8,+{way}")
    assert (target.float_parts, target.exact_share) == (parts, share)
    assert target.without == ("amx-int8",)
    assert resolve_target(target.name) == target
    assert Target.from_json(json.loads(json.dumps(target.to_json()))) == target
    for other in (f"icelake-server,+{way}", f"sapphirerapids,+{way},-amx-bf16", f"cortex-a76,+{way}"):
        with pytest.raises(TargetError, match="need amx-bf16"):
            resolve_target(other)
