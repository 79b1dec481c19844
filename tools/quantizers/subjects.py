"""The models of the quantization benchmark, with data to calibrate on, other data, and a task metric."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...ir.errors import ToolError

if TYPE_CHECKING:
    import torch

    Built = tuple["torch.nn.Module", tuple["torch.Tensor", ...]]

Arrays = tuple[np.ndarray, ...]
Metric = Callable[[Sequence[np.ndarray], Sequence[np.ndarray]], str]

CALIBRATION_SAMPLES, TEST_SAMPLES, HELD_OUT_SAMPLES = 8, 16, 8
_IMAGES = 50


@dataclass(frozen=True)
class Subject:
    """A model with its data.

    Attributes:
        module: the torch module, in evaluation mode.
        example: inputs to trace it with.
        calibration: batches in the order of the module's arguments.
        held_out: other batches, by which every way picks its variant.
        tests: yet others.
        metric: the task metric as text, from the float model's results and from those to judge, one array
            per batch; None where the weights are random and there is no task.
        transformer: whether rivals that treat transformers in their own way should be told.
    """

    module: torch.nn.Module
    example: tuple[torch.Tensor, ...]
    calibration: Sequence[Arrays]
    held_out: Sequence[Arrays]
    tests: Sequence[Arrays]
    metric: Metric | None = None
    transformer: bool = False


_ZOO: dict[str, tuple[str, str, dict[str, Any]]] = {
    "mobilenet_v2": ("convolutional", "build_mobilenet_v2", {}),
    "mobilenet_v3_large": ("mobile", "build_mobilenet_v3", {"image": 224, "scale": 1, "classes": 1000}),
    "efficientnet_b0": (
        *("mobile", "build_efficientnet"),
        {"image": 224, "scale": 1, "classes": 1000, "published": True},
    ),
    "resnet18": ("convolutional", "build_resnet", {"block": "basic", "depths": (2, 2, 2, 2)}),
    "resnet50": ("convolutional", "build_resnet", {"block": "bottleneck", "depths": (3, 4, 6, 3)}),
    "swin_t": (
        *("windows", "build_swin"),
        {"image": 224, "width": 96, "depths": (2, 2, 6, 2), "size": 7, "classes": 1000, "head": 32},
    ),
    "bert_base": ("transformers", "build_bert", {}),
}
_DIGITS = ("digits-cnn", "digits-vit")
MINILM = "minilm"
MODELS = (*_DIGITS, MINILM, *_ZOO)
_TRANSFORMERS = ("digits-vit", MINILM, "swin_t", "bert_base", "vit", "bert", "swin")


def build_subject(name: str, folder: Path) -> Subject:
    """One of `MODELS`, or a torch model of the zoo by its name there.

    Args:
        name: of the model.
        folder: where the networks trained on digits are kept.

    Raises:
        ToolError: there is no such model, or what it needs is not installed.
    """
    if name in _DIGITS:
        return _digits(name, folder)
    if name == MINILM:
        return _minilm()
    module, example = _built(name)
    return Subject(module, example, *_noise(example), None, name.startswith(_TRANSFORMERS))


def _built(name: str) -> Built:
    from .. import zoo

    if name in _ZOO:
        room, builder, options = _ZOO[name]
        return getattr(importlib.import_module(f"..zoo.{room}", __package__), builder)(**options)
    if name in (*zoo.TORCH_NAMES, *zoo.SMALL_NAMES):
        return getattr(zoo, name)()
    known = ", ".join(dict.fromkeys((*MODELS, *zoo.TORCH_NAMES, *zoo.SMALL_NAMES)))
    raise ToolError(f"the benchmark has no model {name!r}; there are: {known}")


def _noise(example: tuple[torch.Tensor, ...]) -> tuple[list[Arrays], list[Arrays], list[Arrays]]:
    """Normal noise for images; random tokens and sequences of random length for texts.

    Returns:
        Batches to calibrate on, to pick variants by, and to test on.
    """
    generator = np.random.default_rng(7)

    def batch() -> Arrays:
        arrays: list[np.ndarray] = []
        for position, tensor in enumerate(example):
            shape = tuple(tensor.shape)
            if tensor.is_floating_point():
                arrays.append(generator.normal(size=shape).astype(np.float32))
            elif position == 0:
                arrays.append(generator.integers(0, int(tensor.max()), shape))
            else:
                lengths = generator.integers(shape[1] // 2, shape[1] + 1, (shape[0], 1))
                arrays.append((np.arange(shape[1])[None] < lengths).astype(np.int64))
        return tuple(arrays)

    calibration, tests, held_out = (
        [batch() for _ in range(count)] for count in (CALIBRATION_SAMPLES, TEST_SAMPLES, HELD_OUT_SAMPLES)
    )
    return calibration, held_out, tests


def _minilm() -> Subject:
    from . import sentences

    module, example = sentences.build_minilm()
    calibration, held_out, tests = (
        [tuple(each.values()) for each in sentences.feeds(texts)]
        for texts in (sentences.CALIBRATION, sentences.HELD_OUT, sentences.TESTS)
    )

    def metric(expected: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> str:
        before, after = np.concatenate(expected), np.concatenate(found)
        cosine = sentences.mean_cosine(before, after)
        ranks, nearest = sentences.rank_agreement(before, after), sentences.same_nearest(before, after)
        return f"cosine {cosine:.5f}, ranks {ranks:.4f}, nearest {nearest:.0%}"

    return Subject(module, example, calibration, held_out, tests, metric, transformer=True)


def _digits(name: str, folder: Path) -> Subject:
    import torch

    from ...ir.constants import constant_array
    from ..digits import DigitsNet, load_digits
    from ..digits_vit import DigitsViT
    from ..pruning_bench import trained_file

    stored = trained_file(name.removeprefix("digits-"), folder).graph.initializers
    module: torch.nn.Module = DigitsNet() if name == "digits-cnn" else DigitsViT()
    weights = {key: constant_array(value) for key, value in stored.items()}
    state = module.state_dict()
    missing = [key for key in state if weights.get(key) is None and not key.endswith("num_batches_tracked")]
    if missing:
        raise ToolError(f"'{folder}' holds another {name} without '{missing[0]}'; remove its file")
    found = {key: torch.from_numpy(np.array(weights[key])) for key in state if key in weights}
    module.load_state_dict({**state, **found})
    data = load_digits()
    batches = [(data.train_images[start : start + _IMAGES],) for start in range(0, 14 * _IMAGES, _IMAGES)]
    count = len(data.test_images) // _IMAGES * _IMAGES
    tests = [(data.test_images[start : start + _IMAGES],) for start in range(0, count, _IMAGES)]
    example = (torch.from_numpy(data.test_images[:_IMAGES]),)
    accuracy = functools.partial(_accuracy, data.test_labels[:count])
    return Subject(
        *(module.eval().requires_grad_(False), example, batches[:10], batches[10:], tests, accuracy),
        name == "digits-vit",
    )


def _accuracy(labels: np.ndarray, expected: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> str:
    right = np.concatenate(list(found)).argmax(1) == labels
    return f"accuracy {right.mean():.2%}"
