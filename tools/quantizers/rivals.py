"""Ways to make an 8-bit model of a float one: ours and those of ONNX Runtime, NNCF and torchao.

All get the same float model, the same calibration batches, 8 bits for weights and activations and weight
scales per channel, and are run on the same test batches: ONNX files in ONNX Runtime with its optimizations
off, so that no kernel saturates, torchao's in torch.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from ...ir.quiet import silence
from .subjects import Subject

Feeds = dict[str, np.ndarray]
PREPARATION = "simplify,fold-batch-norm"


@dataclass(frozen=True)
class Job:
    """One model to quantize.

    Attributes:
        subject: gives the torch module to whom wants that; a function, since building it takes a while.
        path: file of the float model, batch norms folded.
        calibration: feeds of that file.
        tests: feeds of that file to give results for; nothing may be fitted to them.
        transformer: see `Subject`.
    """

    subject: Callable[[], Subject]
    path: Path
    calibration: list[Feeds]
    tests: list[Feeds]
    transformer: bool


@dataclass(frozen=True)
class Made:
    """What became of it: the first result for every test batch, the file's size where there is one."""

    results: list[np.ndarray]
    size: int | None = None


Way = Callable[[Job], Made]


def ours(pipeline: str) -> Way:
    """A pipeline of ours, run by ONNX Runtime with its optimizations off."""

    def way(job: Job) -> Made:
        from ...ir.load import load
        from ...passes.optimize import optimize

        return _run(optimize(load(job.path), pipeline, calibration=job.calibration).model, job)

    return way


def _onnxruntime(method: str) -> Way:
    def way(job: Job) -> Made:
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "int8.onnx"
            quantize_static(job.path, target, job.calibration, method)
            return _run_file(target, job)

    return way


def quantize_static(source: Path, target: Path, batches: Sequence[Feeds], method: str) -> None:
    """ONNX Runtime's own quantization: QDQ, per channel, uint8 activations, int8 weights."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType
    from onnxruntime.quantization import quantize_static as quantize

    with silence():
        quantize(
            str(source),
            str(target),
            data_reader(batches),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod[method],
        )


def data_reader(batches: Sequence[Feeds]) -> Any:
    """Batches as ONNX Runtime's quantizers read them."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._batches = iter(batches)

        def get_next(self) -> Feeds | None:
            return next(self._batches, None)

    return Reader()


def _nncf(*, fast: bool) -> Way:
    """NNCF on the ONNX file: asymmetric activations, weights in all 8 bits, with its own bias correction."""

    def way(job: Job) -> Made:
        import nncf
        import onnx
        from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix

        with silence():
            made = nncf.quantize(
                onnx.load(job.path),
                nncf.Dataset(job.calibration),
                preset=nncf.QuantizationPreset.MIXED,
                subset_size=len(job.calibration),
                fast_bias_correction=fast,
                model_type=nncf.ModelType.TRANSFORMER if job.transformer else None,
                advanced_parameters=AdvancedQuantizationParameters(overflow_fix=OverflowFix.DISABLE),
            )
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "int8.onnx"
            onnx.save(made, target)
            return _run_file(target, job)

    return way


def _torchao(job: Job) -> Made:
    """The PT2E flow of torchao on the torch module: export, prepare, calibrate, convert."""
    import torch
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    subject = job.subject()
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    with silence(), torch.no_grad():
        exported = torch.export.export(subject.module, subject.example, strict=False).module()
        prepared = prepare_pt2e(exported, quantizer)
        for batch in subject.calibration:
            prepared(*map(torch.from_numpy, batch))
        made = convert_pt2e(prepared)
        if not any("quantize_per_tensor" in str(node.target) for node in made.graph.nodes):
            raise RuntimeError("it left everything in float")
        return Made([made(*map(torch.from_numpy, feeds.values())).numpy() for feeds in job.tests])


def _run(model: ir.Model, job: Job) -> Made:
    from ...ir.reference import Reference
    from ...ir.save import serialized_size

    reference = Reference(model, threads=1)
    # Names of outputs may differ; the first is what counts.
    results = [next(iter(reference.run(feeds).values())) for feeds in job.tests]
    return Made(results, serialized_size(model))


def _run_file(path: Path, job: Job) -> Made:
    from ...ir.load import load

    return _run(load(path), job)


OURS, OURS_ON_ORT, PLAIN = "graphwright", "graphwright for ONNX Runtime", "graphwright unrepaired"
RIVALS = ("ONNX Runtime", "NNCF", "torchao")
PIPELINES = {
    OURS: {
        "full": "equalize-activations,smooth-quant{insert=true},insert-qdq{target=tvm calibration=mse},gptq,"
        "bias-correction",
    },
    OURS_ON_ORT: {
        "quick": "equalize-activations,insert-qdq{target=generic calibration=mse},bias-correction",
    },
    PLAIN: {method: f"insert-qdq{{target=tvm calibration={method}}}" for method in ("minmax", "mse")},
}
"""The same for all models; of ours there is one setting, and nothing to pick. With the table `tvm` a layer's
sums go on in float, as with NNCF and torchao."""
WAYS: dict[str, dict[str, Way]] = {
    **{way: {name: ours(text) for name, text in each.items()} for way, each in PIPELINES.items()},
    "ONNX Runtime": {name: _onnxruntime(name) for name in ("MinMax", "Percentile")},
    "NNCF": {"fast bias correction": _nncf(fast=True), "bias correction": _nncf(fast=False)},
    "torchao": {"X86InductorQuantizer": _torchao},
}
"""Ways by name, each in its variants, of which the one counts that is best on held-out data; the first is
what all models get where nothing is picked."""
