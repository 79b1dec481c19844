"""Records where kernels on tile registers compete with those on vectors: none keeps a layer from the other."""

import numpy as np
import onnx_ir as ir
from graphwright.backends.target import resolve_target
from graphwright.backends.tuning.database import Database
from graphwright.backends.tuning.record import VERDICT, Key, Record, isa_of

AMX, PLAIN = "sapphirerapids", "sapphirerapids,-amx-tile"
VECTORS = {"tile": (3, 2, 16), "chunks": 1}


def product_of(rows=64):
    """What lowering makes of a float product, and its workload."""
    x = ir.Value(name="x", shape=ir.Shape((rows, 256)), type=ir.TensorType(ir.DataType.FLOAT))
    weight = ir.tensor(np.random.default_rng(0).standard_normal((256, 128)).astype(np.float32), name="w")
    w = ir.Value(name="w", shape=weight.shape, type=ir.TensorType(weight.dtype), const_value=weight)
    node = ir.node("MatMul", [x, w])
    node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = "y", x.type, ir.Shape((rows, 128))
    graph = ir.Graph(
        [x], node.outputs, nodes=[node], initializers=[w], opset_imports={"": 23}, name="product"
    )
    return ir.Model(graph, ir_version=10)


def lowered_with(target, records=None):
    """The kernel of the product by a database that has a verdict for each of these targets."""
    from graphwright.backends.tvm.lower import lower

    target = resolve_target(target)
    (kernel,) = lower(product_of(), target).kernels
    database = Database()
    for name, schedule in (records or {}).items():
        key = Key(kernel.workload, isa_of(resolve_target(name)), 1)
        database.add(Record(key, VERDICT, schedule, 1.0, 2.0))
    (kernel,) = lower(product_of(), target, database.schedules(target, 1)).kernels
    return kernel


def test_targets_that_differ_in_tiles_have_records_of_their_own():
    edits = ("", ",+bf16x6", ",-amx-bf16", ",-amx-int8", ",-amx-tile")
    isas = [isa_of(resolve_target(AMX + each)) for each in edits]
    assert len(set(isas)) == 5 and isa_of(resolve_target(f"{AMX},+bf16x3")) == isas[0]
    keys = [Key("w", isa, 1) for isa in isas]
    assert [key.without_tiles for key in keys] == [*4 * [keys[4]], None]
    assert Key("w", "x86_64:amx-bf16/512", 1).without_tiles == Key("w", "x86_64:base/512", 1)
    assert Key("w", "anything", 1).without_tiles is None


def test_a_record_from_before_does_not_keep_a_layer_from_tiles():
    """Neither one of a CPU without them, nor one of this CPU that was made without that choice."""
    untouched = lowered_with(AMX)
    assert "tdpbf16ps" in untouched.note and not untouched.tuned
    assert "3x2x16" in lowered_with(PLAIN, {PLAIN: VECTORS}).note
    for made_on in (PLAIN, AMX):
        kernel = lowered_with(AMX, {made_on: VECTORS})
        assert kernel.note == untouched.note and not kernel.tuned
    # but one that has weighed both is heeded,
    slow = lowered_with(AMX, {AMX: {"tiles": 0, **VECTORS}})
    assert "3x2x16" in slow.note and slow.tuned
    # and comes before those of other CPUs, in whatever order they were made
    both = {AMX: {"tiles": 1, "registers": (1, 3)}, PLAIN: VECTORS}
    for order in (both, dict(reversed(both.items()))):
        assert "16x3x16 tdpbf16ps" in lowered_with(AMX, order).note
        assert "3x2x16" in lowered_with(PLAIN, order).note


def test_a_record_of_tiles_does_not_reach_vectors():
    """Parameters of both kernels share names, so a record of the one says nothing about the other."""
    untouched = lowered_with(PLAIN)
    kernel = lowered_with(PLAIN, {PLAIN: {"tiles": 1, **VECTORS}})
    assert kernel.note == untouched.note and not kernel.tuned


def test_records_of_vectors_serve_other_kernels_of_a_cpu_with_tiles():
    own, shipped = Database(), Database()
    own.fallback = shipped
    amx = Key("w", isa_of(resolve_target(AMX)), 1)
    plain = amx.without_tiles

    def add(database, key, rows):
        database.add(Record(key, VERDICT, {"rows": rows}, 1.0, 2.0))
        return own.schedules(resolve_target(AMX), 1)("w")["rows"], own.is_own(amx)

    assert own.verdict(amx) is None and not own.is_own(amx)
    assert add(shipped, plain, 1) == (1, False)
    assert add(own, plain, 2) == (2, True)
    assert add(shipped, amx, 3) == (3, False)
    assert add(own, amx, 4) == (4, True)
    assert own.schedules(resolve_target(PLAIN), 1)("w") == {"rows": 2}
