"""Random graphs with odd weights and odd ranges through every quantizing pass: nothing breaks, all is told."""

from typing import get_args, get_type_hints

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.errors import PassError
from graphwright.ir.reference import run_reference
from graphwright.ir.verify import verify
from graphwright.passes.insert_qdq import InsertQdq
from graphwright.passes.optimize import optimize
from graphwright.passes.quantization.tables import TABLES
from graphwright.passes.quantization.weight_forms import WEIGHT_FORMS
from hypothesis import given, settings
from hypothesis import strategies as st

from .quantization_models import model_of, samples_for

CALIBRATORS = get_args(get_type_hints(InsertQdq)["calibration"])
FORMS = [*WEIGHT_FORMS, "int8 symmetric=false", "int4 symmetric=false block=3", "kmeans bits=1 block=3"]
GENERIC = "insert-qdq{target=generic"
PIPELINES = [
    *(f"insert-qdq{{target={table}}}" for table in TABLES),
    *(f"{GENERIC} calibration={name}}}" for name in CALIBRATORS),
    *(f"{GENERIC} precision={name} calibration={calibrator}}}"
      for name in ("a16w8", "a16w16", "a8w4", "fp8-e4m3", "fp8-e5m2") for calibrator in ("minmax", "mse")),
    f"{GENERIC} symmetric_weights=false symmetric_activations=true}}",
    f'{GENERIC} layers="Conv=a16w8;Gemm=a8w4;MatMul=fp8-e5m2"}}',
    f"{GENERIC} ends=float reduce_range=true}}",
    "quantize-dynamic{min_size=1}",
    *(f"quantize-weights{{min_size=1 form={name}}}" for name in FORMS),
    "convert-float",
    "convert-float{to=bfloat16}",
    *(f"{before},insert-qdq{{target=tvm}}" for before in
      ("equalize", "equalize-activations", "relax-clips{share=1},equalize,absorb-biases", "smooth-quant{insert=true}")),
    *(f"insert-qdq{{target=cuda}},{repair}" for repair in
      ("gptq", "ada-round{iterations=5}", "bias-correction", "gptq,bias-correction")),
    *(f"quantize-weights{{min_size=1 form={form}}},{repair}" for form in ("int4 block=3", "int2") for repair in
      ("gptq", "ada-round{iterations=5}", "hqq", "bias-correction")),
    "awq{form=int4},quantize-weights{min_size=1 form=int4 scale=absmax}",
    'quantize{budget="sqnr>=20dB"}',
]  # fmt: skip
# What a step does to the values, so that ranges are constant, one-sided, empty of everything or not finite.
STEPS = {
    "relu": "Relu({0})",
    "negative": "Neg(Relu({0}))",
    "zero": "Sub({0}, {0})",
    "constant": "Max({0}, huge)",
    "nan": "Div({0}, zero)",
    "infinite": "Exp(Mul({0}, huge))",
    "tiny": "Mul({0}, tiny)",
    "large": "Mul({0}, large)",
    "sigmoid": "Sigmoid({0})",
    "clip": "Clip({0}, lo, hi)",
}
WEIGHTS = {
    "normal": lambda rng, shape: rng.normal(size=shape) * 0.3,
    "zero": lambda rng, shape: np.zeros(shape),
    "constant": lambda rng, shape: np.full(shape, 0.25),
    "positive": lambda rng, shape: rng.uniform(0.5, 1.0, shape),
    "dead channel": lambda rng, shape: rng.normal(size=shape) * (np.arange(shape[0]) > 0).reshape(-1, *[1] * (len(shape) - 1)),
    "nan": lambda rng, shape: np.where(rng.random(shape) < 0.1, np.nan, 0.1),
    "infinite": lambda rng, shape: np.where(rng.random(shape) < 0.1, np.inf, 0.1),
    "tiny": lambda rng, shape: rng.normal(size=shape) * 1e-40,
    "huge": lambda rng, shape: rng.normal(size=shape) * 1e30,
    "outlier": lambda rng, shape: rng.normal(size=shape) * np.where(rng.random(shape) < 0.02, 1e4, 1.0),
}  # fmt: skip


@st.composite
def networks(draw) -> ir.Model:
    """Layers of all kinds with steps between them, on images [N, 4, 5, 5], a matrix product at the end."""
    lines, inputs, contents = [], [], {}
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    last = "x"

    def weight(name: str, shape: tuple[int, ...]) -> None:
        kind = draw(st.sampled_from(sorted(WEIGHTS)) | st.just("normal"))
        with np.errstate(all="ignore"):
            contents[name] = WEIGHTS[kind](rng, shape).astype(np.float32)
        inputs.append(f"float[{','.join(map(str, shape))}] {name}")

    for i in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["conv", "depthwise", "transposed", "add", "concat", *STEPS]))
        if kind in STEPS:
            body = STEPS[kind].format(last)
            inner = body[body.index("(") + 1 : -1]
            if "(" in inner:
                lines.append(f"i{i} = {inner[: inner.rindex(')') + 1]}")
                body = f"{body[: body.index('(')]}(i{i})"
            lines.append(f"v{i} = {body}")
        elif kind == "concat":
            weight(f"w{i}", (4, 8, 1, 1))
            lines.append(f"c{i} = Concat<axis=1>({last}, x)  v{i} = Conv(c{i}, w{i})")
        else:
            weight(f"w{i}", (4, 1, 3, 3) if kind == "depthwise" else (4, 4, 3, 3))
            weight(f"b{i}", (4,))
            op = "ConvTranspose" if kind == "transposed" else "Conv"
            group = "group=4, " if kind == "depthwise" else ""
            lines.append(f"k{i} = {op}<{group}pads=[1,1,1,1]>({last}, w{i}, b{i})")
            lines.append(f"v{i} = Add(k{i}, {last})" if kind == "add" else f"v{i} = Relu(k{i})")
        last = f"v{i}"
    weight("wm", (100, 6))
    weight("wg", (3, 6))
    lines.append(f"f = Flatten({last})  m = MatMul(f, wm)  y = Gemm<transB=1>(m, wg)")
    constants = {"huge": 1e3, "zero": 0.0, "tiny": 1e-30, "large": 1e20, "lo": -0.5, "hi": 6.0}
    scalars = [f"float {name}" for name in constants]
    text = (
        f"g ({', '.join(['float[N,4,5,5] x', *inputs, *scalars])}) => (float[N,3] y) {{ {'  '.join(lines)} }}"
    )
    return model_of(text, **contents, **constants)


def float_layers(model: ir.Model) -> set[str]:
    """Names of layers that still read float weights."""
    found = set()
    for node in model.graph:
        if node.op_type in ("Conv", "ConvTranspose", "MatMul", "Gemm"):
            weight = node.inputs[1]
            if weight.producer() is None and weight.dtype == ir.DataType.FLOAT:
                found.add(node.name)
    return found


def check(pipeline: str, network: ir.Model, magnitude: float) -> None:
    """What must hold whatever the network and its data are."""
    feeds = {"x": samples_for(network, 3)["x"] * np.float32(magnitude)}
    try:
        with np.errstate(all="ignore"):
            result = optimize(network, pipeline, calibration=[feeds])
    except PassError as error:
        # A budget is refused where no layer can be quantized, or none well enough.
        assert "budget" in pipeline and ("nothing can be" in str(error) or "cannot be kept" in str(error))
        return
    verify(result.model)
    for value in result.model.graph.initializers.values():
        if value.name.endswith("_scale"):
            scale = value.const_value.numpy()
            # Symmetric weights of 4 bits have scales of either sign.
            sound = scale != 0 if "form=int4" in pipeline else scale > 0
            assert np.isfinite(scale).all() and sound.all(), value.name
    told = {entry.node for record in result.report.records for entry in record.left_alone}
    if "convert" not in pipeline:
        assert float_layers(result.model) <= told
    expected = run_reference(network, feeds)["y"]
    found = run_reference(result.model, feeds)["y"]
    # Half precision may overflow where float32 did not, everything else keeps what is finite finite.
    if "float16" not in pipeline and pipeline != "convert-float" and np.abs(expected).max(initial=0.0) < 1e30:
        assert np.isfinite(found[np.isfinite(expected)]).all()


@given(
    pipeline=st.sampled_from(PIPELINES),
    network=networks(),
    magnitude=st.sampled_from([0.0, 1e-20, 1.0, 1e15]),
)
@settings(max_examples=16, deadline=None)
def test_nothing_breaks_and_all_is_told(pipeline, network, magnitude):
    check(pipeline, network, magnitude)


@pytest.mark.slow
@pytest.mark.parametrize("pipeline", PIPELINES)
@given(network=networks(), magnitude=st.sampled_from([0.0, 1e-20, 1.0, 1e15]))
@settings(max_examples=30, deadline=None)
def test_nothing_breaks_in_the_long_run(pipeline, network, magnitude):
    check(pipeline, network, magnitude)
