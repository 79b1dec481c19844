"""Models of the runtime benchmark: the graph computes what torch computes, and sizes are the published ones."""

import pytest
import torch
from graphwright.ir.compare import compare
from graphwright.ir.reference import run_reference
from graphwright.ir.trace import trace_with_inputs
from graphwright.tools.runtimes.models import MODELS
from graphwright.tools.zoo import classic, recurrent
from graphwright.tools.zoo.language import build_gpt2

SMALL = {
    "vgg": lambda: classic.build_vgg(plan=(8, 0, 16, 0), image=16, hidden=32, classes=10),
    "densenet": lambda: classic.build_densenet(depths=(2, 3), growth=8, image=32, classes=10),
    "shufflenet": lambda: classic.build_shufflenet_v2(
        widths=(16, 32), repeats=(2, 2), last=32, image=32, classes=10
    ),
    "unet": lambda: classic.build_unet(width=8, depth=2, image=16),
    "gru": lambda: recurrent.build_recurrent("gru", length=5, inputs=8, width=16, classes=4),
    "lstm": lambda: recurrent.build_recurrent("lstm", length=5, inputs=8, width=16, classes=4),
    "decode": lambda: recurrent.build_gpt2_decode(
        vocabulary=50, past=7, width=16, depth=2, heads=2, positions=20
    ),
}
QUICK = ("unet", "decode")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in SMALL]
)
def test_the_graph_computes_what_torch_computes(name):
    module, example = SMALL[name]()
    model, feeds = trace_with_inputs(module, example)
    found = run_reference(model, feeds)
    wanted = module(*example)
    arrays = [each.numpy() for each in (wanted if isinstance(wanted, tuple) else (wanted,))]
    assert compare(dict(zip(found, arrays, strict=True)), found).max_rel < 1e-5
    again = SMALL[name]()[0](*example)
    first = (wanted if isinstance(wanted, tuple) else (wanted,))[0]
    assert torch.equal(first, again[0] if isinstance(again, tuple) else again), "weights are seeded"


def test_a_token_with_a_cache_is_the_last_token_of_the_whole_sequence():
    whole, (ids,) = build_gpt2(vocabulary=50, length=8, width=16, depth=2, heads=2)
    step, _ = recurrent.build_gpt2_decode(vocabulary=50, past=0, width=16, depth=2, heads=2, positions=8)
    weights = {name: each for name, each in whole.state_dict().items() if not name.endswith("triangle")}
    step.load_state_dict(weights)
    cache = tuple(torch.zeros(1, 2, 0, 8) for _ in range(4))
    for place in range(8):
        logits, *cache = step(ids[:, place : place + 1], *cache)
    assert torch.allclose(logits[:, 0], whole(ids)[:, -1], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("resnet18", 11.69), ("resnet50", 25.56), ("mobilenet_v2", 3.50), ("mobilenet_v3", 5.48),
        ("efficientnet_b0", 5.29), ("shufflenet_v2", 2.28), ("densenet121", 7.98), ("vgg16", 138.36),
        ("vit_s16", 22.05), ("swin_t", 28.29), ("convnext_t", 28.59), ("gpt2_prefill", 124.4),
    ],
)  # fmt: skip
def test_sizes_are_those_that_were_published(name, millions):
    found = sum(each.numel() for each in MODELS[name].build()[0].parameters()) / 1e6
    assert found == pytest.approx(millions, rel=0.01)
