"""A builder for small networks with random weights."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.clone import clone
from graphwright.ir.compare import compare
from graphwright.ir.inputs import random_inputs
from graphwright.ir.opset import CANONICAL_OPSET
from graphwright.ir.reference import run_reference
from graphwright.ir.shapes import infer_node, infer_shapes
from graphwright.ir.verify import verify
from graphwright.passes.channels import analyse, apply_removal, find_groups, masked_model, plan_removal
from graphwright.passes.rewriter import Rewriter


class Network:
    """Builds an `onnx_ir.Model` node by node; shapes are known after every step."""

    def __init__(self, seed: int = 0):
        self.rng = np.random.default_rng(seed)
        self.imports = {"": CANONICAL_OPSET}
        self.graph = ir.Graph([], [], nodes=[], opset_imports=self.imports, name="network")
        self.built = ir.Model(self.graph, ir_version=10)

    def input(self, *shape, name="x", dtype=ir.DataType.FLOAT):
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
        self.graph.inputs.append(value)
        return value

    def constant(self, array, name=None):
        array = np.asarray(array)
        name = name or f"c{len(self.graph.initializers)}"
        value = ir.Value(
            name=name,
            shape=ir.Shape(array.shape),
            type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
            const_value=ir.tensor(array, name=name),
        )
        self.graph.register_initializer(value)
        return value

    def ints(self, *values):
        return self.constant(np.array(values, np.int64))

    def weight(self, *shape):
        fan = max(int(np.prod(shape[1:])), 1)
        return self.constant((self.rng.standard_normal(shape) / np.sqrt(fan)).astype(np.float32))

    def op(self, op_type, *inputs, outputs=1, domain="", **attributes):
        name = f"{op_type.lower()}{len(self.graph)}"
        node = ir.node(
            op_type,
            list(inputs),
            attributes,
            num_outputs=outputs,
            domain=domain,
            name=name,
            version=CANONICAL_OPSET,
        )
        for index, output in enumerate(node.outputs):
            output.name = f"{name}_{index}"
        self.graph.append(node)
        computed = op_type in ("Reshape", "Expand") and not inputs[1].is_initializer()
        if not infer_node(node, self.imports) or computed:
            # Sizes that are computed are only seen by a walk over the whole graph.
            infer_shapes(self.built)
        return node.outputs[0] if outputs == 1 else node.outputs

    def conv(self, x, channels, kernel=3, stride=1, group=1, bias=True):
        inputs = [x, self.weight(channels, x.shape[1] // group, kernel, kernel)]
        if bias:
            inputs.append(self.weight(channels))
        pads = [kernel // 2] * 4
        return self.op(
            "Conv", *inputs, group=group, pads=pads, strides=[stride, stride], kernel_shape=[kernel] * 2
        )

    def norm(self, x):
        size = x.shape[1]
        parameters = [self.rng.uniform(0.5, 2, size), self.rng.normal(size=size), self.rng.normal(size=size)]
        parameters.append(self.rng.uniform(0.5, 2, size))
        return self.op("BatchNormalization", x, *[self.constant(p.astype(np.float32)) for p in parameters])

    def linear(self, x, channels):
        return self.op("Gemm", x, self.weight(channels, x.shape[1]), self.weight(channels), transB=1)

    def matmul(self, x, channels):
        return self.op("Add", self.op("MatMul", x, self.weight(x.shape[-1], channels)), self.weight(channels))

    def block(self, x, channels, **options):
        return self.op("Relu", self.norm(self.conv(x, channels, **options)))

    def model(self, *outputs):
        for index, output in enumerate(outputs):
            output.name = f"y{index}"
            self.graph.outputs.append(output)
        infer_shapes(self.built)
        verify(self.built)
        return self.built


@pytest.fixture(scope="session")
def network():
    """The builder class: `net = network()`."""
    return Network


def assert_exact(model, ratio=0.5, dims=None, seed=0, allow_statistical=False):
    """Remove the first classes of every group; the pruned model must equal the masked one. Returns both counts."""
    model = clone(model)
    infer_shapes(model)
    found = analyse(model, allow_statistical=allow_statistical)
    groups = find_groups(found)
    removed = [int(c) for g in groups for c in g.classes[: int(len(g.classes) * ratio)]]
    removal = plan_removal(found, removed)
    pruned = clone(model)
    apply_removal(pruned, removal, Rewriter(pruned))
    verify(pruned)
    declared = {v.name: v.shape for node in pruned.graph for v in node.outputs}
    infer_shapes(pruned)
    assert {v.name: v.shape for node in pruned.graph for v in node.outputs} == declared
    feeds = random_inputs(model, seed=seed, dims=dims)
    masked = run_reference(masked_model(model, removal), feeds)
    found_far = compare(masked, run_reference(pruned, feeds))
    assert found_far.max_rel <= 1e-5, found_far
    if removed:
        assert not compare(run_reference(model, feeds), masked).equal
    return pruned, len(removed)


@pytest.fixture(scope="session", name="assert_exact")
def assert_exact_fixture():
    """`pruned, number of removed classes = assert_exact(model)`."""
    return assert_exact


@pytest.fixture(scope="session", autouse=True)
def reproducers_stay_here(tmp_path_factory):
    """What crashes on purpose leaves its reproducers among the other files of the tests."""
    import tempfile

    before = tempfile.tempdir
    tempfile.tempdir = str(tmp_path_factory.mktemp("reproducers"))
    yield
    tempfile.tempdir = before
