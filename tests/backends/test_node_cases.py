"""ONNX's own operator cases through the TVM backend: right, or refused by name; never silently wrong."""

import collections
import fnmatch
import functools
import warnings

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphwright.backends.target import host_target
from graphwright.backends.tvm.build import build
from graphwright.backends.tvm.lower import lower
from graphwright.backends.tvm.op import STATIC_INPUTS
from graphwright.backends.tvm.runtime import TvmProgram
from graphwright.ir.errors import GraphwrightError
from graphwright.ir.load import load
from graphwright.ir.reference import Reference
from graphwright.ir.shapes import infer_shapes
from onnx import numpy_helper

QUICK = [
    "test_argmax_keepdims_example",
    "test_averagepool_2d_ceil",
    "test_averagepool_2d_pads_count_include_pad",
    "test_convtranspose_output_shape",
    "test_convtranspose_pads",
    "test_conv_with_autopad_same",
    "test_depthtospace_crd_mode_example",
    "test_einsum_batch_matmul",
    "test_gemm_all_attributes",
    "test_maxpool_2d_dilations",
    "test_prelu_broadcast",
    "test_reduce_log_sum_exp_do_not_keepdims_random",
    "test_resize_downsample_scales_cubic",
    "test_resize_upsample_sizes_nearest_floor_align_corners",
    "test_rotary_embedding_interleaved",
    "test_wrap_pad",
]
# Outputs that ONNX's definition and ONNX Runtime put differently where a score is masked out.
DEBUG_OUTPUTS = "test_attention_4d_with_past_and_present_qk_matmul_bias_*_mask_causal"
# Lists of tensors, which this comparison does not read.
SEQUENCES = "test_split_to_sequence*"


@functools.lru_cache(maxsize=1)
def all_cases():
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {case.name: case for case in collect_testcases(None)}


def static_model(case, path):
    """The case's model with inputs that decide shapes as constants, and the other inputs; None if not tensors."""
    arrays = case.data_sets[0][0] if case.model is not None else [None]
    if any(not isinstance(each, np.ndarray) or each.dtype.kind in "OSU" for each in arrays):
        return None
    proto = onnx.ModelProto()
    proto.CopyFrom(case.model)
    given = {value.name: array for value, array in zip(proto.graph.input, arrays, strict=False)}
    static = {
        node.input[position]
        for node in proto.graph.node
        for position in STATIC_INPUTS.get(node.op_type, ())
        if position < len(node.input)
    }
    kept = [value for value in proto.graph.input if value.name not in static]
    proto.graph.initializer.extend(numpy_helper.from_array(given[n], n) for n in given if n in static)
    del proto.graph.input[:]
    for value in kept:
        dims = value.type.tensor_type.shape.dim
        del dims[:]
        for size in given[value.name].shape:
            dims.add().dim_value = size
        proto.graph.input.append(value)
    onnx.save(proto, path)
    return {value.name: given[value.name] for value in kept}


def outcome(case, folder) -> str:
    """ "right", "refused: ..." (by us or by the reference), "skipped", or what is wrong."""
    path = folder / f"{case.name}.onnx"
    feeds = static_model(case, path)
    if feeds is None or fnmatch.fnmatch(case.name, SEQUENCES):
        return "skipped"
    try:
        model: ir.Model = load(path)
        infer_shapes(model)
        expected = Reference(model).run(feeds)
        lowered = lower(model, host_target())
    except GraphwrightError as error:
        return f"refused: {error}"
    build(lowered, host_target(), folder / f"{case.name}.so")
    program = TvmProgram(folder / f"{case.name}.so", lowered.weights)
    outputs = program.run([feeds[each.name] for each in lowered.inputs])
    for (name, wanted), given in zip(expected.items(), outputs, strict=True):
        if given.shape != wanted.shape or given.dtype != wanted.dtype or not close(given, wanted):
            return f"{name} differs"
    return "right"


def close(given: np.ndarray, wanted: np.ndarray) -> bool:
    if wanted.dtype.kind != "f":
        return np.array_equal(given, wanted)
    tolerance = 1e-2 if wanted.dtype == np.float16 else 1e-4
    scale = max(1e-3, float(np.abs(wanted[np.isfinite(wanted)]).max(initial=0)))
    return np.allclose(given, wanted, rtol=tolerance, atol=tolerance * scale, equal_nan=True)


@pytest.mark.parametrize("name", QUICK)
def test_chosen_cases(name, tmp_path):
    assert outcome(all_cases()[name], tmp_path) == "right"


@pytest.mark.slow
def test_no_case_is_silently_wrong(tmp_path):
    found = collections.Counter()
    wrong = []
    for name, case in all_cases().items():
        if fnmatch.fnmatch(name, DEBUG_OUTPUTS):
            continue
        result = outcome(case, tmp_path)
        found[result.split(":")[0]] += 1
        if result.split(":")[0] not in ("right", "refused", "skipped"):
            wrong.append(f"{name}: {result}")
    assert not wrong
    assert found["right"] >= 1150
