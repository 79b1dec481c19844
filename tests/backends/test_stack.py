"""Accumulators live in registers: what the kernels allocate locally never reaches the heap."""

from __future__ import annotations

import re

import numpy as np
import pytest
import tvm
from graphwright.backends.target import resolve_target
from graphwright.backends.tvm.kernels import Conv2dSpec, MatmulSpec, Operand, conv2d, matmul
from graphwright.backends.tvm.kernels.choices import Choices, choosing
from graphwright.backends.tvm.stack import lowering


def compiled(func: tvm.tirx.PrimFunc, target_name: str) -> tvm.runtime.Module:
    target = tvm.target.Target(resolve_target(target_name).to_tvm())
    func = func.with_attr("global_symbol", "main")
    return tvm.compile(tvm.IRModule({"main": func}), target=target, tir_pipeline=lowering())


@pytest.mark.parametrize("name", ["x86-64-v3", "x86-64-v4", "armv8-a"])
def test_sums_stay_in_registers_beside_prefetches(name):
    target = resolve_target(name)
    spec = MatmulSpec(Operand((128, 768)), Operand((768, 3072)), constant_b=True)
    with choosing(Choices({"prefetch": 1, "slices": 1})):
        kernel = matmul(spec, None, target)
    assembly = compiled(kernel.func, name).mod.inspect_source("asm")
    assert "AllocWorkspace" not in assembly
    assert not re.search(r"(call\w*|bl)\s+memset", assembly)
    loops = [
        text for text in re.split(r"^\.L\w+:", assembly, flags=re.M) if "prefetch" in text or "prfm" in text
    ]
    assert loops
    for loop in loops:
        body = re.split(r"^\s+(?:j|b\.|cbnz|tbnz)", loop, maxsplit=1, flags=re.M)[0]
        stores = re.findall(r"vmov[au]ps\s+%[yz]mm\d+, -?\d*\(|^\s+stp?\s+q", body, flags=re.M)
        assert len(stores) <= 2, body


def test_local_buffers_that_are_large_go_to_the_heap():
    from tvm import tirx

    def copied(elements: int) -> str:
        source = tirx.decl_buffer((elements,), "float32", "source")
        target = tirx.decl_buffer((elements,), "float32", "target")
        local = tirx.decl_buffer((elements,), "float32", "copy", scope="local")

        def moved(to: tirx.Buffer, of: tirx.Buffer, shift: int) -> tirx.For:
            i = tirx.Var("i", "int32")
            value = tirx.BufferLoad(of, [(i + shift) % elements])
            return tirx.For(
                i, tirx.const(0), tirx.const(elements), tirx.ForKind.SERIAL, tirx.BufferStore(to, value, [i])
            )

        body = tirx.SeqStmt([tirx.AllocBuffer(local), moved(local, source, 1), moved(target, local, 3)])
        func = tirx.PrimFunc([source, target], body).with_attr("global_symbol", "main")
        built = tvm.compile(
            tvm.IRModule({"main": func}),
            target=tvm.target.Target(resolve_target("host").to_tvm()),
            tir_pipeline=lowering(),
        )
        given, made = np.arange(elements, dtype="f4"), tvm.runtime.tensor(np.zeros(elements, "f4"))
        built["main"](tvm.runtime.tensor(given), made)
        assert made.numpy().tolist() == np.roll(given, -4).tolist()
        return built.mod.inspect_source("ll")

    assert "TVMBackendAllocWorkspace" not in copied(100).replace("@__TVMBackendAllocWorkspace =", "")
    assert "TVMBackendAllocWorkspace" in copied(100_000)


def test_convolution_computes_the_same_with_locals_on_the_stack():
    spec = Conv2dSpec(1, 20, 9, 9, 40, (3, 3), pads=(1, 1, 1, 1))
    kernel = conv2d(spec, None, resolve_target("host"))
    rng = np.random.default_rng(0)
    data, weights = (
        rng.normal(size=spec.data_shape).astype("f4"),
        rng.normal(size=(40, 20, 3, 3)).astype("f4"),
    )
    outputs = []
    for pipeline in ("default", lowering()):
        target = tvm.target.Target(resolve_target("host").to_tvm())
        func = kernel.func.with_attr("global_symbol", "main")
        built = tvm.compile(tvm.IRModule({"main": func}), target=target, tir_pipeline=pipeline)
        out = tvm.runtime.tensor(np.zeros(spec.out_shape, "f4"))
        built["main"](tvm.runtime.tensor(data), tvm.runtime.tensor(kernel.pack[0](weights)), out)
        outputs.append(out.numpy())
    np.testing.assert_allclose(outputs[1], outputs[0], rtol=1e-6, atol=1e-6)


def test_the_code_generator_has_nothing_to_warn_about_in_a_scatter(capfd):
    from tvm import te, topi

    data, updates = te.placeholder((50, 8), "float32"), te.placeholder((20, 8), "float32")
    indices = te.placeholder((20, 8), "int64")
    result = topi.scatter_elements(data, indices, updates, 0, "add")
    func = te.create_prim_func([data, indices, updates, result])
    assert "pragma_scope" in func.script()
    compiled(func, "host")
    assert "pragma" not in capfd.readouterr().err
