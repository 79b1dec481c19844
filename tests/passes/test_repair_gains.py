"""Where the papers say that a repair gains, it gains."""

import json

import numpy as np
import pytest
from graphwright.ir.compare import compare
from graphwright.ir.reference import run_reference
from graphwright.passes.optimize import optimize
from graphwright.passes.quantization.tables import TABLES

from .quantization_models import model_of, samples_for

BLOCK = """g (float[N,8,10,10] x, float[32,8,1,1] we, float[32] be, float[32,1,3,3] wd, float[32] bd,
  float[8,32,1,1] wp) => (float[N,8,10,10] y) {
  a = Conv(x, we, be)  b = Relu(a)  c = Conv<group=32, pads=[1,1,1,1]>(b, wd, bd)  d = Relu(c)
  e = Conv(d, wp)  y = Add(e, x)
}"""
LINEAR = "g (float[N,256] x, float[256,128] w, float[128,64] v) => (float[N,64] y) { a = MatMul(x, w)  b = Relu(a)  y = MatMul(b, v) }"  # fmt: skip


def sqnr(model, pipeline: str) -> float:
    calibration, unseen = samples_for(model, 16), samples_for(model, 16, seed=5)
    made = optimize(model, pipeline, calibration=[calibration]).model
    return compare(run_reference(model, unseen), run_reference(made, unseen)).sqnr_db


@pytest.fixture
def table(tmp_path):
    """A table with one scale per weight tensor."""
    data = json.loads(json.dumps(TABLES["generic"].to_json()))
    data["name"] = "per-tensor"
    for kind in data["weighted"].values():
        kind["per_channel"] = False
    path = tmp_path / "table.json"
    path.write_text(json.dumps(data))
    return path


def test_equalization_of_an_inverted_residual_with_unequal_channels(table):
    rng = np.random.default_rng(0)
    first, second = 10 ** rng.uniform(-1.2, 1.2, (2, 32))

    def weight(*shape):
        return rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))

    model = model_of(
        BLOCK,
        we=weight(32, 8, 1, 1) * first[:, None, None, None],
        wd=weight(32, 1, 3, 3) * (second / first)[:, None, None, None],
        wp=weight(8, 32, 1, 1) / second[None, :, None, None],
        be=rng.normal(size=32) * first * 0.3,
        bd=rng.normal(size=32) * second * 0.3,
    )
    assert sqnr(model, f'insert-qdq{{target="{table}"}}') < 15
    assert sqnr(model, f'equalize,insert-qdq{{target="{table}"}}') > 35
    assert sqnr(model, "equalize,insert-qdq") > sqnr(model, "insert-qdq") + 10


def test_hqq_on_weights_with_heavy_tails():
    gains = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        tails = rng.standard_t(3, size=(256, 128)) / 16, rng.standard_t(3, size=(128, 64)) / 11
        model = model_of(LINEAR, w=tails[0], v=tails[1])
        for options in ("block=64", "block=64 symmetric=false", "block=0 symmetric=false"):
            plain = f"quantize-weights{{form=int4 scale=absmax {options}}}"
            gains.append(sqnr(model, f"{plain},hqq") - sqnr(model, plain))
    # The weights' error always falls; of one model's outputs chance has its share.
    assert np.mean(gains) > 0.2 and min(gains) > -0.5
