"""Every builder of torchvision, with random weights at a small input."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

DETECTORS = ("rcnn", "retinanet", "ssd", "fcos")
BACKBONED = (*DETECTORS, "deeplabv3", "fcn_", "lraspp")
PARTS = "the trained parts of the detector: torch cannot export how many boxes are left"
"""What is said of detectors: proposals and suppression make shapes that depend on the data."""


def names() -> list[str]:
    """The builders, alphabetically."""
    _declare_operators()
    import torchvision

    return list(torchvision.models.list_models())


def build(name: str) -> tuple[torch.nn.Module, tuple[Any, ...], str]:
    """A module with random weights, example inputs, and a remark where it is only a part ("" else)."""
    _declare_operators()
    import torch
    import torchvision

    options: dict[str, Any] = {"weights": None}
    if any(word in name for word in BACKBONED):
        options["weights_backbone"] = None
    if name.startswith("vit_"):
        options["image_size"] = 56 if name.endswith("14") else 64
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    module = torchvision.models.get_model(name, **options)
    inputs = tuple(torch.rand(shape) for shape in _shapes(name, options))
    if any(word in name for word in DETECTORS):
        return _detector_parts(module), inputs, PARTS
    return module, inputs, ""


def _shapes(name: str, options: dict[str, Any]) -> list[tuple[int, ...]]:
    if name.startswith("raft"):
        return [(1, 3, 128, 128)] * 2
    if name.startswith(("r3d", "mc3", "r2plus1d")):
        return [(1, 3, 8, 64, 64)]
    if name.startswith(("mvit", "s3d")):
        # Positions, or pooling at the end, fix the size.
        return [(1, 3, 16, 224, 224)]
    if name.startswith("swin3d"):
        return [(1, 3, 8, 64, 64)]
    if name.startswith(("swin", "maxvit")):
        return [(1, 3, 224, 224)]
    size = 96
    if any(word in name for word in DETECTORS):
        size = {"ssd300_vgg16": 300, "ssdlite320_mobilenet_v3_large": 320}.get(name, 128)
    if name.endswith("inception_v3"):
        size = 128
    size = options.get("image_size", size)
    return [(1, 3, size, size)]


def _declare_operators() -> None:
    """Let torchvision be imported beside a torch that its compiled operators do not fit.

    It registers fake versions of operators when it is imported, and fails where they are not declared.
    """
    import torch

    if _LIBRARIES:
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _LIBRARIES.append(library)


_LIBRARIES: list[Any] = []
"""Operators are forgotten with the library that declared them."""


def _detector_parts(detector: Any) -> torch.nn.Module:
    """Everything of a detector that has weights, with pooled features where regions of interest would be."""
    import torch

    class Parts(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.detector = detector

        def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
            features = self.detector.backbone(image)
            levels = list(features.values()) if isinstance(features, dict) else [features]
            if not hasattr(self.detector, "rpn"):
                return tuple(self.detector.head(levels).values())
            scores, boxes = self.detector.rpn.head(levels)
            heads = self.detector.roi_heads
            pooled = torch.nn.functional.adaptive_avg_pool2d(levels[0], 7)
            found = [*scores, *boxes, *heads.box_predictor(heads.box_head(pooled))]
            larger = torch.nn.functional.adaptive_avg_pool2d(levels[0], 14)
            for kind in ("mask", "keypoint"):
                if getattr(heads, f"{kind}_head", None) is not None:
                    predictor = getattr(heads, f"{kind}_predictor")
                    found.append(predictor(getattr(heads, f"{kind}_head")(larger)))
            return tuple(found)

    return Parts()
