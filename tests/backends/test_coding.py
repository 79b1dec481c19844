"""Weights of few bits: small in the artifact, restored to what was compiled, in Python and in C++."""

import dataclasses
import struct
import subprocess
import tracemalloc
from pathlib import Path

import graphwright as gw
import ml_dtypes
import numpy as np
import pytest
from graphwright.backends import runner
from graphwright.backends.coding import CodedArray, Coding, Pieces, Transform, coding_of, read_coding
from graphwright.backends.encoding import Source, encode_halves, encode_packed
from graphwright.backends.split_coding import Panels, Split
from graphwright.backends.weights import ALIGNMENT, read_weights, stored_bytes, write_weights
from graphwright.ir.errors import ToolError
from graphwright.ir.reference import run_reference
from hypothesis import given, settings
from hypothesis import strategies as st

from .quantized_models import Graph, tensor

SOURCES = Path(runner.__file__).parent


def blocks_of(array, block, axis=-1):
    """A weight of four levels and a scale per block along an axis, with its source."""
    scales = np.random.default_rng(1).uniform(0.5, 2.0, array.shape).astype(np.float32)
    moved = np.moveaxis(scales, axis, -1)
    parts = moved[..., ::block]
    wide = np.repeat(parts, block, axis=-1)[..., : moved.shape[-1]]
    axis %= array.ndim
    source = Source(
        array.shape, array.shape, array, np.moveaxis(parts, -1, axis).copy(), axis=axis, block=block
    )
    return array * np.moveaxis(wide, -1, axis), source


def panels(weights, block=8):
    """(O, C, KH, KW) -> (panels, KH, KW, C, block), filled with zeros, as kernels want it."""
    out, channels, height, width = weights.shape
    count = -(-out // block)
    packed = np.zeros((count * block, channels, height, width), weights.dtype)
    packed[:out] = weights
    return np.ascontiguousarray(
        packed.reshape(count, block, channels, height, width).transpose(0, 3, 4, 2, 1)
    )


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(*[st.integers(1, n) for n in (20, 9, 3, 3)]),
    st.sampled_from([(-3.0, -1.0, 1.0, 3.0), (-1.0, 0.0, 1.0), (0.1, 0.2), tuple(np.linspace(-1, 1, 16))]),
    st.integers(1, 40),
)
def test_packed_weights_are_restored_bit_for_bit(shape, levels, block):
    rng = np.random.default_rng(0)
    numbers = rng.choice(np.array(levels, np.float32), shape)
    flat, source = blocks_of(numbers.reshape(shape[0], -1), block, 1)
    source = Source(shape, source.view, source.numbers, source.scales, axis=1, block=source.block)
    packed = panels(flat.reshape(shape))
    coding = encode_packed(packed, source, panels)
    if coding is None:
        # A handful of numbers are not worth a header, and what fills one output up is no level of every form.
        assert packed.nbytes < 2000 or (shape[0] == 1 and 0.0 not in levels)
        return
    again = Coding.from_bytes(coding.to_bytes())
    np.testing.assert_array_equal(again.restore().reshape(packed.shape), packed)
    assert len(coding.to_bytes()) < packed.nbytes


def test_zero_points_are_taken_off_first():
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 16, (64, 96)).astype(np.float32)
    scales = rng.uniform(0.1, 1.0, (64, 3)).astype(np.float32)
    zeros = rng.integers(0, 16, (64, 3)).astype(np.float32)
    array = (numbers - zeros.repeat(32, 1)) * scales.repeat(32, 1)
    source = Source(array.shape, array.shape, numbers, scales, zeros, 1, 32)
    coding = encode_packed(array.T.copy(), source, lambda given: np.ascontiguousarray(given.T))
    np.testing.assert_array_equal(coding.restore(), array.T)
    assert len(coding.to_bytes()) < 0.16 * array.nbytes + 2 * scales.nbytes


def test_an_order_that_no_strides_describe_is_left_alone():
    rng = np.random.default_rng(0)
    array, source = blocks_of(rng.choice(np.array([-1.0, 1.0], np.float32), (64, 64)), 16)
    order = rng.permutation(64)
    assert encode_packed(array[order], source, lambda given: given[order]) is None


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_halves(dtype):
    rng = np.random.default_rng(0)
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    array = rng.normal(size=(30, 50)).astype(kind).astype(np.float32)
    coding = encode_halves(array)
    assert len(coding.to_bytes()) < 0.6 * array.nbytes
    np.testing.assert_array_equal(Coding.from_bytes(coding.to_bytes()).restore(), array)
    assert encode_halves(rng.normal(size=9).astype(np.float32)) is None


def test_what_is_computed_from_a_coded_array_is_plain(tmp_path):
    array = np.ones((8, 8), np.float32)
    made = CodedArray.of(array, encode_halves(array))
    assert coding_of(made) is not None and coding_of(made[:4]) is None and coding_of(made * 2) is None
    write_weights(tmp_path / "w.bin", [made * 2, made])
    twice, once = read_weights(tmp_path / "w.bin")
    np.testing.assert_array_equal(twice, 2 * array)
    np.testing.assert_array_equal(once, array)
    assert once.ctypes.data % ALIGNMENT == 0


FORMS = {
    "int8": 0.28, "int4": 0.17, "int4 symmetric=false": 0.19, "int2": 0.10, "ternary": 0.09, "binary": 0.07,
    "kmeans": 0.15, "kmeans bits=2": 0.09, "power-of-two": 0.16, "nf4": 0.17, "fp4": 0.17, "fp8-e4m3": 0.28,
    "fp8-e5m2": 0.28, "float16": 0.52, "bfloat16": 0.52,
}  # fmt: skip


def network():
    """Direct, grouped, transformed and transposed convolutions, a product and an embedding."""
    g = Graph(0)
    x = tensor("x", (1, 32, 12, 12))

    def weight(*shape):
        return g.constant((g.random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32))

    y = g("Relu", g("Conv", x, weight(48, 32, 3, 3), pads=[1, 1, 1, 1]))
    y = g("Relu", g("Conv", y, weight(48, 48, 1, 1)))
    y = g("Relu", g("Conv", y, weight(48, 16, 3, 3), group=3, strides=[2, 2]))
    y = g("Relu", g("ConvTranspose", y, weight(48, 32, 2, 2), strides=[2, 2]))
    y = g("MatMul", g("Flatten", y), weight(32 * 100, 32))
    return g.model({"x": x}, y)


@pytest.fixture(scope="module")
def compiled_forms(tmp_path_factory):
    """Artifacts by form, made when they are asked for."""
    made = {}

    def make(form):
        if form not in made:
            model = gw.optimize(network(), f"quantize-weights{{form={form}}}").model
            folder = tmp_path_factory.mktemp("form") / "artifact"
            gw.compile(model, target="x86", pipeline="").save(folder)
            made[form] = model, folder
        return made[form]

    return make


@pytest.mark.parametrize("form", ["int4", "ternary", "nf4", "bfloat16"])
def test_artifacts_hold_weights_in_their_form(compiled_forms, form):
    model, folder = compiled_forms(form)
    feeds = {"x": np.random.default_rng(3).normal(size=(1, 32, 12, 12)).astype(np.float32)}
    found = gw.load_executable(folder)(feeds["x"])
    expected = next(iter(run_reference(model, feeds).values()))
    # Three products of bfloat16 are exact to some 1e-5 of the largest sum, as docs/float-kernels.md has it.
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    _assert_small(folder, form)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_every_form_stays_small(compiled_forms, form):
    model, folder = compiled_forms(form)
    feeds = {"x": np.random.default_rng(3).normal(size=(1, 32, 12, 12)).astype(np.float32)}
    found = gw.load_executable(folder)(feeds["x"])
    expected = next(iter(run_reference(model, feeds).values()))
    # Three products of bfloat16 are exact to some 1e-5 of the largest sum, as docs/float-kernels.md has it.
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    _assert_small(folder, form)


def _assert_small(folder, form):
    numbers = sum(value.const_value.size for value in network().graph.initializers.values())
    size = (folder / "weights.bin").stat().st_size
    assert size < FORMS[form] * 4 * numbers + 4096, size / (4 * numbers)


def test_cpp_restores_the_same_numbers(reader, compiled_forms, tmp_path):
    for form in ("int4", "ternary", "nf4", "bfloat16"):
        _, folder = compiled_forms(form)
        weights = read_weights(folder / "weights.bin")
        assert any(coding_of(each) is not None for each in weights)
        subprocess.run(
            [str(reader), str(folder / "weights.bin"), str(tmp_path / "out.bin")], check=True, timeout=60
        )
        for expected, found in zip(weights, read_weights(tmp_path / "out.bin"), strict=True):
            assert coding_of(found) is None
            if getattr(coding_of(expected), "transform", None) is None:
                np.testing.assert_array_equal(found, expected)
            else:
                np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("panels", [Panels(16, 1, 2), Panels(8, 4, 2, 2, 3), Panels(4, 2, 1, 8, 1)])
def test_numbers_split_into_bfloat16_are_stored_as_codes_of_them(reader, tmp_path, panels, parts):
    array, source = blocks_of(np.random.default_rng(0).choice(np.float32([-1, 0, 1]), (64, 64)), 16)
    split = Split(encode_packed(array, source, lambda given: given), parts, panels)
    bits = split.restore()
    planes = bits.view(ml_dtypes.bfloat16).astype(np.float32).reshape(-1, parts, panels.run)
    whole = planes.sum(axis=1).reshape(array.shape)
    np.testing.assert_allclose(whole, panels.moved_up(array), rtol=2.0 ** (-8 * parts))
    kept = panels.moved_up(panels.straightened(array))
    assert np.count_nonzero(kept != array) <= array.size * panels.gap / panels.depth / panels.period
    np.testing.assert_array_equal(panels.moved_up(panels.straightened(kept)), kept)
    write_weights(tmp_path / "w.bin", [CodedArray.of(bits.reshape(64, -1), split)])
    assert (tmp_path / "w.bin").stat().st_size < array.size / 4 + 2048
    (found,) = read_weights(tmp_path / "w.bin")
    assert found.dtype == np.uint16 and stored_bytes(found) == len(split.to_bytes())
    np.testing.assert_array_equal(found.reshape(-1), bits)
    subprocess.run([str(reader), str(tmp_path / "w.bin"), str(tmp_path / "out.bin")], check=True, timeout=60)
    np.testing.assert_array_equal(read_weights(tmp_path / "out.bin")[0], found)


@pytest.mark.parametrize("special", [0.0, -0.0, np.inf, -np.inf, np.nan, 3.4e38, 1e-40])
def test_special_numbers_are_split_alike_in_cpp(reader, tmp_path, special):
    array = np.resize(np.float32([special, 1.00390625, 1.01171875, -3.3]), (32, 32))
    numbers = encode_packed(array, Source(array.shape, array.shape, array, np.ones((1, 1), np.float32)),
                            lambda given: given)  # fmt: skip
    if numbers is None:
        assert np.isnan(special)
        return
    split = Split(numbers, 3, Panels(2, 1, 2))
    write_weights(tmp_path / "w.bin", [CodedArray.of(split.restore(), split)])
    subprocess.run([str(reader), str(tmp_path / "w.bin"), str(tmp_path / "out.bin")], check=True, timeout=60)
    np.testing.assert_array_equal(*(read_weights(tmp_path / each)[0] for each in ("w.bin", "out.bin")))


def test_weights_of_tile_registers_stay_in_their_form():
    g = Graph(0)
    x = tensor("x", (1, 192, 28, 28))

    def weight(*shape):
        return g.constant(g.random.standard_normal(shape).astype(np.float32))

    y = g("Relu", g("Conv", x, weight(112, 192, 3, 3), pads=[1, 1, 1, 1]))
    y = g("Relu", g("Conv", y, weight(80, 112, 1, 1)))
    # 80 inputs are summed in three steps, the last of which overlaps with the one before.
    y = g("Conv", y, weight(240, 80, 1, 1))
    model = gw.optimize(g.model({"x": x}, y), "quantize-weights{form=int4}").model
    compiled = gw.compile(model, target="sapphirerapids", pipeline="", check=False)
    large = [each for each in compiled.weights if each.size > 4096]
    assert any(each.dtype == np.uint16 for each in large)
    assert all(coding_of(each) is not None for each in large)
    numbers = 112 * 192 * 9 + 80 * 112 + 240 * 80
    assert compiled.report.weight_bytes < 0.16 * 4 * numbers


def test_damaged_codes_end_in_one_line(reader, tmp_path):
    array, source = blocks_of(np.random.default_rng(0).choice(np.float32([-1, 1]), (64, 64)), 16)
    coding = encode_packed(array, source, lambda given: given)
    write_weights(tmp_path / "w.bin", [CodedArray.of(array, coding)])
    assert stored_bytes(read_weights(tmp_path / "w.bin")[0]) == len(coding.to_bytes())
    data = bytearray((tmp_path / "w.bin").read_bytes())
    start = data.index(coding.to_bytes()[:16])
    for place, value in ((0, 77), (8, 0), (4, 200), (12, 99)):
        broken = bytearray(data)
        broken[start + place] = value
        (tmp_path / "broken.bin").write_bytes(broken)
        with pytest.raises(ToolError, match=r"broken\.bin"):
            read_weights(tmp_path / "broken.bin")
        ended = subprocess.run(
            [str(reader), str(tmp_path / "broken.bin"), str(tmp_path / "out.bin")],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert ended.returncode == 2 and len(ended.stderr.splitlines()) == 1


def _payloads():
    rng = np.random.default_rng(0)
    array, source = blocks_of(rng.choice(np.float32([-1, 1]), (64, 64)), 16)
    plain = encode_packed(array, source, lambda given: given)
    halves = encode_halves(rng.normal(size=(8, 8)).astype(np.float16).astype(np.float32))
    taps = dataclasses.replace(
        halves, shape=(4, 4, 4), f_strides=(0,) * 3, g_strides=(0,) * 3,
        transform=Transform(rng.normal(size=(8, 4)), 4, 4, 16),
    )  # fmt: skip
    return [plain, halves, taps, Pieces((plain, halves)), Split(plain, 2, Panels(4, 2, 2, 4, 2))]


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_whatever_stands_in_a_payload_ends_in_numbers_or_one_error(data):
    coding = data.draw(st.sampled_from(_payloads()))
    payload = bytearray(coding.to_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, min(len(payload) // 8 - 1, 30))) * 8 + data.draw(
            st.sampled_from([0, 4])
        )
        wide = data.draw(st.sampled_from("Iq"))
        value = data.draw(st.sampled_from([0, 1, 2, 3, 255, 256, 1 << 20, 1 << 31, -1 % (1 << 32)]))
        value = (
            value
            if wide == "I"
            else data.draw(st.sampled_from([value, -value, 1 << 40, 1 << 62, -(1 << 63)]))
        )
        struct.pack_into(f"<{wide}", payload, min(place, len(payload) - 8), value)
    size = data.draw(st.sampled_from([coding.size, 1, 1 << 40]))
    tracemalloc.start()
    try:
        found = read_coding(bytes(payload), size)
        assert found.size == size
        assert found.restore().size == size
    except (ValueError, struct.error):
        pass
    finally:
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert most < 100 << 20


def test_hostile_sizes_take_no_memory_in_cpp(reader, tmp_path):
    rng = np.random.default_rng(1)
    for number, coding in enumerate(_payloads()):
        array = coding.restore()
        path = tmp_path / f"{number}.bin"
        write_weights(path, [CodedArray.of(array, coding)])
        whole = path.read_bytes()
        start = whole.index(coding.to_bytes())
        for _ in range(12):
            broken = bytearray(whole)
            for _ in range(int(rng.integers(1, 3))):
                place = 8 + 4 * int(rng.integers(0, 50))
                if place + 8 <= len(broken) - start:
                    value = int(rng.choice([0, 1, 7, 1 << 33, 1 << 40, 1 << 62, -1, -(1 << 63)]))
                    struct.pack_into("<q", broken, start + place, value)
            (tmp_path / "broken.bin").write_bytes(broken)
            ended = subprocess.run(
                ["bash", "-c", 'ulimit -v 400000; exec "$0" "$@"', str(reader),
                 str(tmp_path / "broken.bin"), str(tmp_path / "out.bin")],
                capture_output=True, text=True, timeout=60, check=False,
            )  # fmt: skip
            assert ended.returncode in (0, 2) and "bad_alloc" not in ended.stderr, (number, ended)
            assert len(ended.stderr.splitlines()) == (ended.returncode == 2)
            try:
                (mine,) = read_weights(tmp_path / "broken.bin")
            except ToolError:
                assert ended.returncode == 2
            else:
                assert ended.returncode == 0
                (theirs,) = read_weights(tmp_path / "out.bin")
                np.testing.assert_allclose(theirs, mine, rtol=1e-6, equal_nan=True)
