"""Whole transformers, exported as torch exports them: every attention and rotary embedding is found."""

from collections import Counter

import pytest
from graphwright.ir.trace import trace
from graphwright.passes.equivalence import check_equivalent
from graphwright.passes.optimize import optimize
from graphwright.tools.zoo import language, transformers, windows

PIPELINE = "simplify,fuse-normalization,fuse-rotary,fuse-attention,merge-projections,fuse-skip-normalization,simplify"


def fused(built, dynamic=None):
    model = trace(*built, dynamic_shapes=dynamic)
    result = optimize(model, PIPELINE).model
    found = check_equivalent(model, result)
    assert found.passed, found
    return Counter(node.op_type for node in result.graph)


def test_llama_of_any_batch_and_length():
    counts = fused(language.build_llama(depth=1, batch=2), ({0: "batch", 1: "sequence"},))
    assert (counts["Attention"], counts["RotaryEmbedding"], counts["Softmax"]) == (1, 2, 0)
    assert counts["SkipRMSNormalization"] == 2
    # Queries, keys and values in one product, both branches of the gated MLP in another.
    assert counts["Split"] == 2
    # Heads of keys are not repeated, and the mask is the causal one.
    assert counts["Where"] == 0


def test_bert_with_padding():
    counts = fused(transformers.build_bert(vocabulary=50, length=8, width=32, depth=2, heads=2))
    assert (counts["Attention"], counts["Softmax"], counts["MatMul"]) == (2, 0, 8)
    assert counts["Expand"] == 1, "the layers share one mask"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "attentions"),
    [
        (language.build_gpt2, 4),
        (language.build_whisper, 4),
        (windows.build_swin, 8),
    ],
)
def test_others(build, attentions):
    counts = fused(build())
    assert (counts["Attention"], counts["Softmax"]) == (attentions, 0)
