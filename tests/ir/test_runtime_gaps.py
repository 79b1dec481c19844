"""Operators that ONNX Runtime only has in an opset before the canonical one: loaded, optimized, saved, run."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from graphwright.ir.clone import clone
from graphwright.ir.compare import compare
from graphwright.ir.errors import ModelError
from graphwright.ir.inputs import random_inputs
from graphwright.ir.load import load
from graphwright.ir.opset import CANONICAL_OPSET, LAST_RUNNABLE
from graphwright.ir.reference import run_reference
from graphwright.ir.save import save
from graphwright.passes.base import Pass
from graphwright.passes.optimize import optimize

FEED = "float[1,4,8,8] x"
ROIS = "<float[2,4] rois = {0,0,4,4, 1,1,6,6}, int64[2] batch = {0,0}>"
GRAPHS = {
    "Bernoulli": f"({FEED}) => (float[1,4,8,8] y) {{ p = Sigmoid(x)\n y = Bernoulli<seed = 3.0>(p) }}",
    "GlobalLpPool": f"({FEED}) => (float[1,4,1,1] y) {{ a = Identity(x)\n y = GlobalLpPool<p = 2>(a) }}",
    "MaxRoiPool": f"""({FEED}) => (float[2,4,2,2] y) <float[2,5] rois = {{0,0,0,4,4, 0,1,1,6,6}}>
        {{ a = Relu(x)\n y = MaxRoiPool<pooled_shape = [2,2]>(a, rois) }}""",
    "Multinomial": """(float[3,5] x) => (int32[3,4] y)
        { l = LogSoftmax(x)\n y = Multinomial<sample_size = 4, seed = 3.0>(l) }""",
    "RandomNormal": """(float[2,3] x) => (float[2,3] y)
        { r = RandomNormal<shape = [2,3], seed = 3.0>()\n y = Add(x, r) }""",
    "RandomNormalLike": "(float[2,3] x) => (float[2,3] y) { r = RandomNormalLike<seed = 3.0>(x)\n y = Add(x, r) }",
    "RandomUniform": """(float[2,3] x) => (float[2,3] y)
        { r = RandomUniform<shape = [2,3], seed = 3.0>()\n y = Mul(x, r) }""",
    "RandomUniformLike": "(float[2,3] x) => (float[2,3] y) { r = RandomUniformLike<seed = 3.0>(x)\n y = Mul(x, r) }",
    "RoiAlign": f"""({FEED}) => (float[2,4,2,2] y) {ROIS}
        {{ a = Relu(x)\n y = RoiAlign<output_height = 2, output_width = 2>(a, rois, batch) }}""",
}


def write(path, op_type: str, opset: int, text: str | None = None):
    header = f'<ir_version: 10, opset_import: ["" : {opset}]>\nagraph '
    path.write_bytes(onnx.parser.parse_model(header + (text or GRAPHS[op_type])).SerializeToString())
    return path


def outputs(path, feeds) -> list[np.ndarray]:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feeds)


def has_kernel(kernels, op_type: str, opset: int) -> bool:
    """Whether ONNX Runtime takes up an operator: by its own kernel, or by those of its definition."""
    schema = onnx.defs.get_schema(op_type, opset, "")
    since = schema.since_version
    for first, last in kernels.get(op_type, ()):
        # A range without an end is matched by its beginning only.
        if first == since or (first <= since <= last and last < 2**31 - 1):
            return True
    body = definition(schema, opset)
    return body is not None and all(
        node.domain or node.op_type == "Constant" or has_kernel(kernels, node.op_type, opset)
        for node in body.node
    )


def definition(schema: onnx.defs.OpSchema, opset: int) -> onnx.FunctionProto | None:
    """How the standard spells an operator out; None where it does not."""
    if schema.has_function:
        return schema.function_body
    needs_more = any(attribute.required for attribute in schema.attributes.values())
    if not schema.has_context_dependent_function or needs_more:
        return None
    node = onnx.helper.make_node(schema.name, [p.name for p in schema.inputs][: schema.min_input], ["y"])
    types = [onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, None)] * schema.min_input
    versions = [v for v in schema.context_dependent_function_opset_versions if v <= opset]
    text = schema.get_context_dependent_function_with_opset_version(
        max(versions, default=schema.since_version),
        node.SerializeToString(),
        [each.SerializeToString() for each in types],
    )
    return onnx.FunctionProto.FromString(text)


def test_the_table_is_what_this_onnx_runtime_lacks():
    from onnxruntime.capi import onnxruntime_pybind11_state

    kernels: dict[str, list[tuple[int, int]]] = {}
    for kernel in onnxruntime_pybind11_state.get_all_opkernel_def():
        if kernel.provider == "CPUExecutionProvider" and kernel.domain == "":
            kernels.setdefault(kernel.op_name, []).append(tuple(kernel.version_range))
    assert len(kernels) > 150
    lacking = {}
    for schema in onnx.defs.get_all_schemas():
        if schema.domain or schema.name == "Constant" or schema.deprecated:
            continue
        runnable = []
        for opset in range(7, CANONICAL_OPSET + 1):
            try:
                runnable.append((opset, has_kernel(kernels, schema.name, opset)))
            except onnx.defs.SchemaError:
                continue
        if runnable and not runnable[-1][1] and any(has for _, has in runnable):
            lacking[schema.name] = max(opset for opset, has in runnable if has)
    assert lacking == LAST_RUNNABLE
    assert sorted(GRAPHS) == sorted(LAST_RUNNABLE)


@pytest.mark.parametrize("opset", [16, 21, CANONICAL_OPSET])
@pytest.mark.parametrize("op_type", sorted(GRAPHS))
def test_loaded_optimized_saved_and_run(tmp_path, op_type, opset):
    model = load(write(tmp_path / "m.onnx", op_type, opset))
    assert op_type in {node.op_type for node in model.graph}
    before = clone(model)
    feeds = random_inputs(model, seed=1)

    result = optimize(model, "simplify,fuse", verify_each=True, check_each=True)
    save(result.model, tmp_path / "out.onnx")

    onnx.checker.check_model(str(tmp_path / "out.onnx"), full_check=True)
    (y,) = outputs(tmp_path / "out.onnx", feeds)
    assert compare(run_reference(before, feeds), {"y": y}).max_rel < 1e-5
    if opset <= 21:
        (original,) = outputs(tmp_path / "m.onnx", feeds)
        assert compare({"y": original}, {"y": y}).max_rel < 1e-5


def test_bodies_and_functions_count_too(tmp_path):
    text = """agraph (bool c, float[2,3] x) => (float[2,3] y) {
        y = If(c) <
            then_branch = t () => (float[2,3] p) { p = local.noise(x) },
            else_branch = e () => (float[2,3] q) { q = Neg(x) }
        >
    }
    <domain: "local", opset_import: ["" : 23]>
    noise (a) => (b) { r = RandomNormalLike<seed = 1.0>(a)\n b = Add(a, r) }"""
    header = '<ir_version: 10, opset_import: ["" : 23, "local" : 1]>\n'
    (tmp_path / "m.onnx").write_bytes(onnx.parser.parse_model(header + text).SerializeToString())
    model = load(tmp_path / "m.onnx")
    assert [function.opset_imports[""] for function in model.functions.values()] == [21]
    result = optimize(model, "simplify,fuse,inline-functions", check_each=True)
    save(result.model, tmp_path / "out.onnx")
    x = np.ones((2, 3), np.float32)
    (y,) = outputs(tmp_path / "out.onnx", {"c": np.array(True), "x": x})
    assert np.abs(y - x).max() > 0.01


class AddNoise(Pass):
    """Add noise to every Relu."""

    name = "add-noise"
    lossless = False

    def apply(self, model, context):
        rewriter = context.rewriter(model)
        for node in list(model.graph):
            if node.op_type == "Relu":
                (copy,) = rewriter.insert_before(node, "Relu", node.inputs)
                (noise,) = rewriter.insert_before(node, "RandomNormalLike", [copy], {"seed": 1.0})
                rewriter.replace(node, rewriter.insert_before(node, "Add", [copy, noise]))


def test_what_a_pass_adds_is_saved_in_an_opset_that_runs(tmp_path):
    model = load(write(tmp_path / "m.onnx", "", 23, "(float[2,3] x) => (float[2,3] y) { y = Relu(x) }"))
    result = optimize(model, [AddNoise()])
    feeds = random_inputs(result.model)
    expected = run_reference(result.model, feeds)
    save(result.model, tmp_path / "out.onnx")

    assert result.model.opset_imports[""] == CANONICAL_OPSET
    assert onnx.load(tmp_path / "out.onnx").opset_import[0].version == 21
    (y,) = outputs(tmp_path / "out.onnx", feeds)
    assert compare(expected, {"y": y}).equal


def test_an_operator_that_needs_the_later_opset_is_named():
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 23]>\nagraph (float[2,8] x) => (float[2,8] y)'
        "<float[8] g = {1,1,1,1,1,1,1,1}> { [noise] r = RandomNormalLike(x)\n y = RMSNormalization(r, g) }"
    )
    with pytest.raises(ModelError, match=r"'noise' \(RandomNormalLike\) only runs in opsets up to 21"):
        run_reference(model, random_inputs(model))
