"""Hidden units of LSTM, GRU and RNN go with all their gates, in both directions, and the rest is exact."""

from __future__ import annotations

import numpy as np
import pytest

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def recurrent(net, kind, x, hidden, directions=1, bias=True, state=False, peepholes=False, **attributes):
    gates, width = GATES[kind], x.shape[2]
    inputs = [
        x,
        net.weight(directions, gates * hidden, width),
        net.weight(directions, gates * hidden, hidden),
    ]
    inputs.append(net.weight(directions, 2 * gates * hidden) if bias else None)
    if state or peepholes:
        batch = x.shape[0] if attributes.get("layout") else x.shape[1]
        inputs.append(None)
        inputs.append(net.weight(directions, batch, hidden))
        if kind == "LSTM":
            inputs.append(net.weight(directions, batch, hidden))
            if peepholes:
                inputs.append(net.weight(directions, 3 * hidden))
    if directions == 2:
        attributes["direction"] = "bidirectional"
    return net.op(kind, *inputs, outputs=3 if kind == "LSTM" else 2, hidden_size=hidden, **attributes)


def shapes_of(model, kind):
    return [[list(v.shape) for v in n.inputs[1:3]] for n in model.graph if n.op_type == kind]


@pytest.mark.parametrize("kind", list(GATES))
@pytest.mark.parametrize("directions", [1, 2])
def test_stacked_layers_lose_units_with_all_gates(network, assert_exact, kind, directions):
    net = network()
    x = net.matmul(net.input(5, 2, 6), 8)
    for _ in range(2):
        sequence = recurrent(net, kind, x, 6, directions)[0]
        x = net.op("Transpose", sequence, perm=[0, 2, 1, 3])
        x = net.op("Reshape", x, net.ints(5, 2, 6 * directions))
    pruned, removed = assert_exact(net.model(net.matmul(x, 3)))
    assert removed == 4 + 3 + 3
    gates = GATES[kind]
    assert shapes_of(pruned, kind) == [
        [[directions, gates * 3, 4], [directions, gates * 3, 3]],
        [[directions, gates * 3, 3 * directions], [directions, gates * 3, 3]],
    ]
    assert all(n.attributes.get_int("hidden_size") == 3 for n in pruned.graph if n.op_type == kind)


def test_states_peepholes_and_all_three_outputs(network, assert_exact):
    net = network()
    x = net.input(4, 2, 5)
    y, h, c = recurrent(net, "LSTM", x, 8, directions=2, state=True, peepholes=True)
    last = net.op("Concat", h, c, axis=0)
    outs = [net.matmul(y, 2), net.matmul(last, 3), net.matmul(net.op("Tanh", c), 2)]
    pruned, removed = assert_exact(net.model(*outs))
    assert removed == 4
    node = next(n for n in pruned.graph if n.op_type == "LSTM")
    assert [list(v.shape) for v in node.inputs[5:8]] == [[2, 2, 4], [2, 2, 4], [2, 12]]


def test_linear_before_reset_keeps_its_meaning(network, assert_exact):
    net = network()
    y, h = recurrent(net, "GRU", net.input(4, 2, 5), 6, linear_before_reset=1)
    assert assert_exact(net.model(net.matmul(y, 3), net.matmul(h, 2)))[1] == 3


def test_a_state_that_is_a_graph_input_keeps_its_size(network, assert_exact):
    net = network()
    x, h = net.input(4, 2, 5), net.input(1, 2, 6, name="h")
    y, _ = net.op("RNN", x, net.weight(1, 6, 5), net.weight(1, 6, 6), None, None, h, outputs=2, hidden_size=6)
    assert assert_exact(net.model(net.matmul(y, 3)))[1] == 0


def test_units_feed_a_residual_and_embeddings_feed_units(network, assert_exact):
    import onnx_ir as ir

    net = network()
    words = net.input(4, 2, name="ids", dtype=ir.DataType.INT64)
    x = net.op("Gather", net.weight(11, 6), words, axis=0)
    y, *_ = recurrent(net, "LSTM", x, 6)
    y = net.op("Squeeze", y, net.ints(1))
    pruned, removed = assert_exact(net.model(net.matmul(net.op("Add", x, y), 3)))
    assert removed == 3
    table = next(n for n in pruned.graph if n.op_type == "Gather").inputs[0]
    assert list(table.shape) == [11, 3]
    assert shapes_of(pruned, "LSTM") == [[[1, 12, 3], [1, 12, 3]]]


def test_torch_lstm_is_pruned(assert_exact):
    import torch
    from graphwright.ir.trace import trace
    from graphwright.passes.optimize import optimize

    class Tagger(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = torch.nn.LSTM(6, 8, num_layers=2, bidirectional=True, batch_first=True)
            self.head = torch.nn.Linear(16, 3)

        def forward(self, x):
            return self.head(self.lstm(x)[0])

    torch.manual_seed(0)
    model = trace(Tagger(), torch.randn(2, 5, 6))
    model = optimize(model, "fold-constants").model
    pruned, removed = assert_exact(model)
    assert removed == 4 + 4
    assert np.prod(shapes_of(pruned, "LSTM")[1][0]) == 2 * 16 * 8
