"""Labels, ties and runs of reshapes; random small networks pruned at random prove exact."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.clone import clone
from graphwright.ir.compare import compare
from graphwright.ir.inputs import random_inputs
from graphwright.ir.reference import run_reference
from graphwright.ir.shapes import infer_shapes
from graphwright.ir.verify import verify
from graphwright.passes.channels import analyse, apply_removal, find_groups, masked_model, plan_removal
from graphwright.passes.channels.labels import Labels
from graphwright.passes.channels.removal import emptied_axes
from graphwright.passes.channels.reshapes import Run, match_runs
from graphwright.passes.rewriter import Rewriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


def test_ties_are_transitive_and_pins_spread():
    labels = Labels()
    a, b, c = labels.fresh(3), labels.fresh(3), labels.fresh(3)
    labels.tie(a, b)
    labels.tie(b[::-1], c)
    labels.tie(c[:1], labels.new_pin(None, "first of c"))
    found = labels.resolve()
    np.testing.assert_array_equal(found.of[a], found.of[b])
    np.testing.assert_array_equal(found.of[b[::-1]], found.of[c])
    assert [found.pin[found.of[x]] for x in a] == [-1, -1, 0]


def test_mixed_labels_and_pins_tie_index_by_index():
    labels = Labels()
    a, pin = labels.fresh(4), labels.new_pin(None, "stays")
    labels.tie(a, np.array([pin, a[2], a[2], pin]))
    found = labels.resolve()
    assert found.of[a[1]] == found.of[a[2]]
    assert [found.pin[found.of[x]] >= 0 for x in a] == [True, False, False, True]


@given(st.integers(1, 60), st.lists(st.tuples(st.integers(0, 59), st.integers(0, 59)), max_size=120))
def test_components_match_a_plain_union(size, pairs):
    pairs = [(a % size, b % size) for a, b in pairs]
    labels = Labels()
    labels.fresh(size)
    for a, b in pairs:
        labels.tie(np.array([a]), np.array([b]))
    plain = list(range(size))
    for _ in range(size):
        for a, b in pairs:
            plain[a] = plain[b] = min(plain[a], plain[b])
    assert labels.resolve().of.tolist() == plain


@pytest.mark.parametrize(
    ("before", "after", "runs"),
    [
        ((2, 3, 4), (6, 4), [((0, 1), (0,)), ((2,), (1,))]),
        (("N", 8, 4, 4), ("N", 128), [((0,), (0,)), ((1, 2, 3), (1,))]),
        (("N", "S", 12), ("N", "S", 3, 4), [((0,), (0,)), ((1,), (1,)), ((2,), (2, 3))]),
        (("N", "S", 12), ("N*S", 12), [((0, 1), (0,)), ((2,), (1,))]),
        ((1, 6, 1, 4), (6, 1, 2, 2), [((1,), (0,)), ((3,), (2, 3))]),
        ((4, 6), (6, 4), [((0, 1), (0, 1))]),
        ((None, 8), (None, 8), [((0,), (0,)), ((1,), (1,))]),
    ],
)
def test_runs_of_a_reshape(before, after, runs):
    assert match_runs(before, after) == [Run(*run) for run in runs]


def classes(model, name, axis):
    found = analyse(model)
    value = model.graph.initializers.get(name) or next(
        v for node in model.graph for v in node.outputs if v.name == name
    )
    return found.classes_of(value, axis)


def test_flatten_ties_each_channel_to_its_run_of_columns(network):
    net = network()
    x = net.conv(net.input(1, 3, 2, 2), 4)
    weight = net.weight(5, 16)
    model = net.model(net.op("Gemm", net.op("Flatten", x), weight, transB=1))
    columns = classes(model, weight.name, 1)
    assert len(set(columns)) == 4
    np.testing.assert_array_equal(columns, np.repeat(columns[::4], 4))


def test_permuted_flatten_ties_with_a_stride(network):
    net = network()
    x = net.op("Transpose", net.conv(net.input(1, 3, 2, 2), 4), perm=[0, 2, 3, 1])
    weight = net.weight(5, 16)
    model = net.model(net.op("Gemm", net.op("Flatten", x), weight, transB=1))
    columns = classes(model, weight.name, 1)
    np.testing.assert_array_equal(columns, np.tile(columns[:4], 4))


def test_reason_names_the_node_that_stops(network):
    net = network()
    x = net.conv(net.input(1, 3, 4, 4), 4)
    y = net.op("Softmax", net.op("Relu", x), axis=1)
    model = net.model(net.conv(y, 2))
    found = analyse(model)
    pin = found.why_kept(x.producer().inputs[1], 0)
    assert pin.node.op_type == "Softmax" and "along" in pin.reason


def test_a_barrier_keeps_what_comes_out_too(network):
    net = network()
    x = net.op("Unfolded", net.input(1, 3, 4, 4), domain="custom")
    x.shape, x.type = ir.Shape([1, 3, 4, 4]), ir.TensorType(ir.DataType.FLOAT)
    y = net.op("Add", net.conv(x, 3), x)
    weight = y.producer().inputs[0].producer().inputs[1]
    net.conv(y, 2)
    found = analyse(net.built)
    assert "custom::Unfolded" in found.why_kept(weight, 0).reason


def test_deep_graph_is_linear(network):
    import time

    def seconds(depth):
        net = network()
        graph = net.graph
        x = net.input(1, 16, 8, 8)
        for index in range(depth):
            start_of_block = x
            for op in ("Conv", "Relu", "Add"):
                extra = {"Conv": [net.weight(16, 16, 1, 1)], "Relu": [], "Add": [start_of_block]}[op]
                node = ir.node(op, [x, *extra], name=f"{op}{index}")
                graph.append(node)
                made = node.outputs[0]
                made.name, made.shape, made.type = f"{op}{index}_out", x.shape, x.type
                x = made
        start = time.process_time()
        find_groups(analyse(net.built))
        return time.process_time() - start

    small, large = (min(seconds(depth) for _ in range(3)) for depth in (100, 800))
    assert large < 8 * small * 3


# fmt: off
_KINDS = [
    "conv", "conv", "norm", "depthwise", "grouped", "residual", "concat", "split", "gate", "shuffle", "transpose",
    "activation", "bias", "slice", "gather", "pad", "reshape", "smooth", "d2s", "mlp",
    "attention", "gram", "upconv", "prelu", "instance", "total", "where", "tile", "einsum", "shared", "pick", "resize",
    "lstm", "group_norm", "layer_norm", "standard_attention", "stride", "mean", "running", "grouped_upconv", "rows",
    "softmax", "branch", "eca", "lrn", "fourier",
]
# fmt: on


class _Builder:
    """Grows a random network whose every layer is one of the operators the analysis knows."""

    def __init__(self, net, draw):
        self.net, self.draw = net, draw
        self.pool = [net.input(2, 3, 4, 4)]

    def step(self):
        net = self.net
        x = self.draw(st.sampled_from(self.pool))
        channels = x.shape[1]
        kind = self.draw(st.sampled_from(_KINDS))
        getattr(self, kind)(net, x, channels)

    def finish(self):
        net, last = self.net, self.pool[-1]
        means = net.op("Concat", *[net.op("GlobalAveragePool", value) for value in self.pool], axis=1)
        read_by_all = net.linear(net.op("Flatten", means), 4)
        return net.model(net.conv(last, 3), net.linear(net.op("Flatten", last), 4), read_by_all)

    def conv(self, net, x, channels):
        self.pool.append(
            net.conv(x, self.draw(st.sampled_from([4, 6, 8, 12])), bias=self.draw(st.booleans()))
        )

    def norm(self, net, x, channels):
        self.pool.append(net.norm(x))

    def depthwise(self, net, x, channels):
        self.pool.append(net.conv(x, channels * self.draw(st.sampled_from([1, 1, 2])), group=channels))

    def grouped(self, net, x, channels):
        if channels % 2 == 0:
            self.pool.append(net.conv(x, self.draw(st.sampled_from([4, 8])), group=2))

    def residual(self, net, x, channels):
        same = [y for y in self.pool if y.shape == x.shape]
        self.pool.append(
            net.op(
                self.draw(st.sampled_from(["Add", "Sub", "Mul", "Max"])), x, self.draw(st.sampled_from(same))
            )
        )

    def concat(self, net, x, channels):
        fitting = [y for y in self.pool if list(y.shape)[2:] == list(x.shape)[2:]]
        self.pool.append(net.op("Concat", x, self.draw(st.sampled_from(fitting)), axis=1))

    def split(self, net, x, channels):
        if channels < 2:
            return
        cut = self.draw(st.integers(1, channels - 1))
        self.pool.extend(net.op("Split", x, net.ints(cut, channels - cut), outputs=2, axis=1))

    def gate(self, net, x, channels):
        gate = net.op("GlobalAveragePool", x)
        self.pool.append(net.op("Mul", x, net.op("Sigmoid", net.conv(gate, channels, kernel=1))))

    def eca(self, net, x, channels):
        rows = net.op("Reshape", net.op("GlobalAveragePool", x), net.ints(2, 1, channels))
        gate = net.op("Sigmoid", net.op("Conv", rows, net.weight(1, 1, 3), pads=[1, 1]))
        self.pool.append(net.op("Mul", x, net.op("Reshape", gate, net.ints(2, channels, 1, 1))))

    def lrn(self, net, x, channels):
        self.pool.append(net.op("LRN", x, size=3, alpha=0.2))

    def fourier(self, net, x, channels):
        turned = net.op(
            "DFT", net.op("Unsqueeze", x, net.ints(-1)), None, net.constant(np.array(1, np.int64))
        )
        part = self.draw(st.integers(0, 1))
        self.pool.append(net.op("Gather", turned, net.constant(np.array(part, np.int64)), axis=4))

    def shuffle(self, net, x, channels):
        if channels % 2 == 0:
            n, _, h, w = x.shape
            y = net.op("Reshape", x, net.ints(n, 2, channels // 2, h, w))
            y = net.op("Transpose", y, perm=[0, 2, 1, 3, 4])
            self.pool.append(net.op("Reshape", y, net.ints(n, channels, h, w)))

    def transpose(self, net, x, channels):
        y = net.op("Transpose", x, perm=[0, 2, 3, 1])
        y = net.op("Tanh", net.op("Add", y, net.weight(channels)))
        self.pool.append(net.op("Transpose", y, perm=[0, 3, 1, 2]))

    def activation(self, net, x, channels):
        self.pool.append(
            net.op(self.draw(st.sampled_from(["Relu", "Sigmoid", "Tanh", "HardSwish", "Cos"])), x)
        )

    def bias(self, net, x, channels):
        self.pool.append(
            net.op("Add", x, net.weight(*self.draw(st.sampled_from([(1, channels, 1, 1), (1,), (4,)]))))
        )

    def slice(self, net, x, channels):
        start = self.draw(st.integers(0, channels - 1))
        end = self.draw(st.integers(start + 1, channels))
        self.pool.append(net.op("Slice", x, net.ints(start), net.ints(end), net.ints(1)))

    def gather(self, net, x, channels):
        picked = self.draw(st.lists(st.integers(-channels, channels - 1), min_size=1, max_size=8))
        self.pool.append(net.op("Gather", x, net.ints(*picked), axis=1))

    def pad(self, net, x, channels):
        before, after = self.draw(st.integers(0, 2)), self.draw(st.integers(0, 2))
        self.pool.append(net.op("Pad", x, net.ints(0, before, 0, 0, 0, after, 0, 0)))

    def reshape(self, net, x, channels):
        n, c, h, w = x.shape
        y = net.op("Cos", net.op("Reshape", x, net.ints(n, c * h, w)))
        self.pool.append(net.op("Reshape", y, net.ints(n, -1, h, w)))

    def smooth(self, net, x, channels):
        self.pool.append(net.op("AveragePool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1]))

    def d2s(self, net, x, channels):
        y = net.op("SpaceToDepth", x, blocksize=2)
        mode = self.draw(st.sampled_from(["DCR", "CRD"]))
        self.pool.append(net.op("DepthToSpace", net.norm(y), blocksize=2, mode=mode))

    def mlp(self, net, x, channels):
        y = net.op("Transpose", x, perm=[0, 2, 3, 1])
        y = net.matmul(net.op("Gelu", net.matmul(y, 6)), 5)
        self.pool.append(net.op("Transpose", y, perm=[0, 3, 1, 2]))

    def attention(self, net, x, channels):
        tokens = net.op("Transpose", net.op("Reshape", x, net.ints(2, channels, 16)), perm=[0, 2, 1])
        heads = self.draw(st.sampled_from([1, 2, 4]))
        parts = []
        for perm in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]):
            part = net.op("Reshape", net.matmul(tokens, 8), net.ints(0, 0, heads, 8 // heads))
            parts.append(net.op("Transpose", part, perm=perm))
        mixed = net.op("MatMul", net.op("Softmax", net.op("MatMul", parts[0], parts[1]), axis=-1), parts[2])
        mixed = net.op("Reshape", net.op("Transpose", mixed, perm=[0, 2, 1, 3]), net.ints(0, 0, 8))
        y = net.op("Transpose", net.matmul(mixed, 6), perm=[0, 2, 1])
        self.pool.append(net.op("Reshape", y, net.ints(2, 6, 4, 4)))

    def gram(self, net, x, channels):
        flat = net.op("Reshape", x, net.ints(2, channels, 16))
        gram = net.op("Tanh", net.op("MatMul", flat, net.op("Transpose", flat, perm=[0, 2, 1])))
        self.pool.append(net.op("Reshape", net.op("MatMul", gram, flat), net.ints(2, channels, 4, 4)))

    def upconv(self, net, x, channels):
        weight = net.weight(channels, 6, 3, 3)
        self.pool.append(net.op("ConvTranspose", x, weight, net.weight(6), pads=[1, 1, 1, 1]))

    def prelu(self, net, x, channels):
        self.pool.append(net.op("PRelu", x, net.weight(channels, 1, 1)))

    def instance(self, net, x, channels):
        self.pool.append(net.op("InstanceNormalization", x, net.weight(channels), net.weight(channels)))

    def total(self, net, x, channels):
        total = net.op("ReduceL2", x, net.ints(1), keepdims=self.draw(st.sampled_from([0, 1])))
        if len(total.shape) == 3:
            total = net.op("Unsqueeze", total, net.ints(1))
        self.pool.append(net.op("Mul", x, net.op("Sigmoid", total)))

    def where(self, net, x, channels):
        chosen = net.op("Greater", x, net.weight(channels, 1, 1))
        self.pool.append(net.op("Where", chosen, x, net.weight(1, channels, 1, 1)))

    def tile(self, net, x, channels):
        if channels < 16:
            self.pool.append(net.op("Tile", x, net.ints(1, 2, 1, 1)))

    def einsum(self, net, x, channels):
        self.pool.append(net.op("Einsum", x, net.weight(channels, 5), equation="nchw,cd->ndhw"))

    def shared(self, net, x, channels):
        weight = net.weight(channels, channels, 3, 3)
        once = net.op("Conv", x, weight, pads=[1, 1, 1, 1])
        self.pool.append(net.op("Conv", net.op("Tanh", once), weight, pads=[1, 1, 1, 1]))

    def pick(self, net, x, channels):
        index = net.constant(np.array(self.draw(st.integers(0, channels - 1)), np.int64))
        one = net.op("Unsqueeze", net.op("Gather", x, index, axis=1), net.ints(1))
        self.pool.append(net.op("Concat", net.op("Expand", one, net.ints(2, 3, 4, 4)), x, axis=1))

    def resize(self, net, x, channels):
        y = net.op("Resize", x, None, None, net.ints(2, channels, 8, 8), mode="linear")
        self.pool.append(net.op("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2]))

    def lstm(self, net, x, channels):
        kind = self.draw(st.sampled_from(["LSTM", "GRU", "RNN"]))
        gates, directions, hidden = (
            {"LSTM": 4, "GRU": 3, "RNN": 1}[kind],
            self.draw(st.sampled_from([1, 2])),
            3,
        )
        steps = net.op("Transpose", net.op("Reshape", x, net.ints(2, channels, 16)), perm=[2, 0, 1])
        weights = [
            net.weight(directions, gates * hidden, channels),
            net.weight(directions, gates * hidden, hidden),
            net.weight(directions, 2 * gates * hidden),
        ]
        y, *_ = net.op(
            kind,
            steps,
            *weights,
            outputs=3 if kind == "LSTM" else 2,
            hidden_size=hidden,
            direction="bidirectional" if directions == 2 else "forward",
        )
        y = net.op("Transpose", y, perm=[2, 1, 3, 0])
        self.pool.append(net.op("Reshape", y, net.ints(2, directions * hidden, 4, 4)))

    def group_norm(self, net, x, channels):
        groups = max(g for g in (1, 2, 4) if channels % g == 0)
        if self.draw(st.booleans()):
            y = net.op("Reshape", x, net.ints(0, groups, -1))
            y = net.op("InstanceNormalization", y, net.weight(groups), net.weight(groups))
            self.pool.append(net.op("Reshape", y, net.ints(2, channels, 4, 4)))
            return
        scales = net.weight(channels), net.weight(channels)
        self.pool.append(net.op("GroupNormalization", x, *scales, num_groups=groups))

    def layer_norm(self, net, x, channels):
        y = net.op("Transpose", x, perm=[0, 2, 3, 1])
        if self.draw(st.booleans()):
            y = net.op("LayerNormalization", y, net.weight(channels), net.weight(channels), epsilon=1e-2)
        else:
            y = net.op("RMSNormalization", y, net.weight(channels), epsilon=1e-2)
        self.pool.append(net.op("Transpose", y, perm=[0, 3, 1, 2]))

    def standard_attention(self, net, x, channels):
        tokens = net.op("Transpose", net.op("Reshape", x, net.ints(2, channels, 16)), perm=[0, 2, 1])
        query, shared, size = self.draw(st.sampled_from([(2, 1, 4), (4, 2, 2), (4, 4, 2), (2, 2, 4)]))
        parts = [net.matmul(tokens, heads * size) for heads in (query, shared, shared)]
        if self.draw(st.booleans()):
            angles = net.rng.uniform(0, 3, (2, 16, size // 2)).astype(np.float32)
            caches = net.constant(np.cos(angles)), net.constant(np.sin(angles))
            for index, heads in ((0, query), (1, shared)):
                parts[index] = net.op("RotaryEmbedding", parts[index], *caches, num_heads=heads)
        y = net.op("Attention", *parts, q_num_heads=query, kv_num_heads=shared)
        y = net.op("Transpose", net.matmul(y, 6), perm=[0, 2, 1])
        self.pool.append(net.op("Reshape", y, net.ints(2, 6, 4, 4)))

    def stride(self, net, x, channels):
        if channels % 2 == 0:
            start = self.draw(st.integers(0, 1))
            self.pool.append(net.op("Slice", x, net.ints(start), net.ints(999), net.ints(1), net.ints(2)))
        else:
            self.pool.append(net.op("Slice", x, net.ints(-1), net.ints(-(2**31)), net.ints(1), net.ints(-1)))

    def mean(self, net, x, channels):
        kind = self.draw(st.sampled_from(["ReduceMean", "ReduceMax", "ReduceMin", "ReduceLogSumExp"]))
        self.pool.append(net.op("Mul", x, net.op("Sigmoid", net.op(kind, x, net.ints(1), keepdims=1))))

    def running(self, net, x, channels):
        y = net.op("CumSum", x, net.constant(np.array(1)), reverse=self.draw(st.integers(0, 1)))
        self.pool.append(net.op("LpNormalization", y, axis=1))

    def grouped_upconv(self, net, x, channels):
        if channels % 2 == 0:
            weight = net.weight(channels, 3, 3, 3)
            self.pool.append(net.op("ConvTranspose", x, weight, net.weight(6), pads=[1, 1, 1, 1], group=2))

    def rows(self, net, x, channels):
        y = net.op("Transpose", x, perm=[2, 0, 1, 3])
        places = net.constant(net.rng.permutation(4).reshape(4, 1))
        if self.draw(st.booleans()):
            y = net.op("GatherND", y, places)
        else:
            y = net.op("ScatterND", net.op("Tanh", y), places, y)
        self.pool.append(net.op("Transpose", y, perm=[1, 2, 0, 3]))

    def softmax(self, net, x, channels):
        self.pool.append(net.op(self.draw(st.sampled_from(["Softmax", "LogSoftmax"])), x, axis=1))

    def branch(self, net, x, channels):
        self.branches = getattr(self, "branches", 0) + 1
        bodies, outer = [], net.graph
        for side, weight in (("then", net.weight(channels, channels, 3, 3)), ("else", None)):
            net.graph = ir.Graph([], [], nodes=[], opset_imports=net.imports, name=side)
            out = net.op("Tanh", x) if weight is None else net.op("Conv", x, weight, pads=[1, 1, 1, 1])
            net.graph.outputs.append(out)
            for node in net.graph:
                node.name = out.name = f"{side}{self.branches}_{node.name}"
            bodies.append(net.graph)
        net.graph = outer
        flag = net.op("Greater", net.op("ReduceSum", x, keepdims=0), net.constant(np.float32(0)))
        node = ir.node("If", [flag], {"then_branch": bodies[0], "else_branch": bodies[1]}, version=23)
        node.name = f"if{self.branches}"
        node.outputs[0].name = f"{node.name}_out"
        node.outputs[0].shape, node.outputs[0].type = x.shape, ir.TensorType(ir.DataType.FLOAT)
        net.graph.append(node)
        self.pool.append(node.outputs[0])


def prune_at_random_and_prove(network, data, most):
    net = network(data.draw(st.integers(0, 100)))
    builder = _Builder(net, data.draw)
    for _ in range(data.draw(st.integers(2, most))):
        builder.step()
    model = builder.finish()

    found = analyse(model, allow_statistical=data.draw(st.booleans()))
    free = [int(c) for group in find_groups(found) for c in group.classes]
    removed = {c for c in free if data.draw(st.booleans())}
    while empty := emptied_axes(found, removed):
        removed -= {int(c) for classes in empty for c in classes}
    removal = plan_removal(found, removed)
    pruned = clone(model)
    apply_removal(pruned, removal, Rewriter(pruned))
    verify(pruned)
    declared = {v.name: v.shape for node in pruned.graph for v in node.outputs}
    infer_shapes(pruned)
    assert {v.name: v.shape for node in pruned.graph for v in node.outputs} == declared

    feeds = random_inputs(model, seed=1)
    far = compare(run_reference(masked_model(model, removal), feeds), run_reference(pruned, feeds))
    assert far.max_rel <= 1e-4, far


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_random_networks_pruned_at_random_are_exact(network, data):
    prune_at_random_and_prove(network, data, most=10)


@pytest.mark.slow
@settings(max_examples=1500, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_many_random_networks_pruned_at_random_are_exact(network, data):
    prune_at_random_and_prove(network, data, most=20)
