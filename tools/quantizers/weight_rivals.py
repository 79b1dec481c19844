"""Ways to store weights alone in 4 or 8 bits: ours and those of NNCF, ONNX Runtime and torchao.

All get the same float model and quantize the constant weights of its MatMul nodes and nothing else, since
that is what all of them take: ONNX Runtime has no 4-bit Gemm or Conv, NNCF and torchao keep convolutions in
8 bits or float. Activations stay in float everywhere, so only the rounding of weights is compared.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...ir.quiet import silence
from .rivals import Job, Made, Way, data_reader, ours


@dataclass(frozen=True)
class Setting:
    """A grid that all sides can have.

    Attributes:
        bits: of a weight, 4 or 8.
        symmetric: whether zero stands in the middle.
        block: weights along the sum that share a scale, 0 for all of an output.
    """

    bits: int
    symmetric: bool
    block: int

    @property
    def name(self) -> str:
        """As "int4 symmetric 64"."""
        return f"int{self.bits} {'symmetric' if self.symmetric else 'asymmetric'} {self.block or 'row'}"


SETTINGS = (
    *(Setting(4, symmetric, block) for block in (16, 32, 64, 128) for symmetric in (True, False)),
    *(Setting(8, symmetric, 0) for symmetric in (True, False)),
)
WEIGHT_MODELS = ("digits-vit", "minilm", "swin_t", "bert_base_small", "vit_s16_small")
"""Transformers: the layers that all sides take are theirs."""
_BLOCKS = {"digits-vit": (16,), "swin_t": (32,), "bert_base_small": (32,), "vit_s16_small": (32,)}


def settings_of(model: str) -> tuple[Setting, ...]:
    """The grids that a model is measured on: blocks of 64 and 128 unless its rows are no multiples."""
    blocks = (0, *_BLOCKS.get(model, (64, 128)))
    return tuple(setting for setting in SETTINGS if setting.block in blocks)


def _graphwright(setting: Setting, pipeline: str) -> Way:
    """Ours: `STORE` in the pipeline is the pass that stores the weights."""
    flag = "true" if setting.symmetric else "false"
    options = f"form=int{setting.bits} block={setting.block} symmetric={flag}"
    grid = pipeline.replace("GRID", options)
    return ours(grid.replace("STORE", f"quantize-weights{{{options} min_size=1 only=MatMul}}"))


def _nncf(setting: Setting, **extra: Any) -> Way:
    """NNCF's `compress_weights`; refuses groups that do not divide a row, instead of taking 8 bits."""

    def way(job: Job) -> Made:
        import nncf
        import onnx
        from nncf.quantization.advanced_parameters import (
            AdvancedCompressionParameters,
            GroupSizeFallbackMode,
        )

        kind = f"INT{setting.bits}_{'SYM' if setting.symmetric else 'ASYM'}"
        options: dict[str, Any] = {"mode": nncf.CompressWeightsMode[kind]}
        if setting.bits == 4:
            options |= {
                "group_size": setting.block,
                "ratio": 1.0,
                "all_layers": True,
                "advanced_parameters": AdvancedCompressionParameters(
                    group_size_fallback_mode=GroupSizeFallbackMode.ERROR
                ),
            }
        if extra:
            options |= {
                **extra,
                "dataset": nncf.Dataset(job.calibration),
                "subset_size": len(job.calibration),
            }
        model = onnx.load(job.path)
        others = sorted({node.op_type for node in model.graph.node} & {"Gemm", "Conv", "Gather"})
        with silence():
            made = nncf.compress_weights(
                model, ignored_scope=nncf.IgnoredScope(types=others, validate=False), **options
            )
        return _run_proto(made, job)

    return way


def _onnxruntime(setting: Setting, algorithm: str) -> Way:
    """ONNX Runtime's `MatMulNBitsQuantizer`, products in float (its accuracy level 0)."""

    def way(job: Job) -> Made:
        import onnx
        from onnxruntime.quantization import matmul_nbits_quantizer as nbits

        model = onnx.load(job.path)
        symmetric, block = setting.symmetric, setting.block
        configs = {
            "default": lambda: nbits.DefaultWeightOnlyQuantConfig(
                block_size=block, is_symmetric=symmetric, bits=setting.bits, op_types_to_quantize=("MatMul",)
            ),
            "HQQ": lambda: nbits.HQQWeightOnlyQuantConfig(
                block_size=block, bits=setting.bits, op_types_to_quantize=("MatMul",)
            ),
            "GPTQ": lambda: nbits.GPTQWeightOnlyQuantConfig(
                calibration_data_reader=data_reader(job.calibration),
                block_size=block,
                op_types_to_quantize=("MatMul",),
            ),
        }
        with silence():
            quantizer = nbits.MatMulNBitsQuantizer(
                model,
                bits=setting.bits,
                block_size=block,
                is_symmetric=symmetric,
                op_types_to_quantize=("MatMul",),
                algo_config=configs[algorithm](),
            )
            quantizer.process()
        return _run_proto(quantizer.model.model, job)

    return way


def _torchao(setting: Setting) -> Way:
    """The `IntxWeightOnlyConfig` of torchao on the linear modules that became MatMul nodes."""

    def way(job: Job) -> Made:
        import torch
        from torchao.quantization import IntxWeightOnlyConfig, quantize_
        from torchao.quantization.granularity import PerAxis, PerGroup
        from torchao.quantization.quant_primitives import MappingType

        module = job.subject().module
        matrices = _matrices(job.path)

        def takes(part: torch.nn.Module, name: str) -> bool:
            if not isinstance(part, torch.nn.Linear):
                return False
            return part.weight.detach().numpy().T.tobytes() in matrices

        count = sum(takes(part, name) for name, part in module.named_modules())
        if count < len(matrices):
            raise RuntimeError(f"of {len(matrices)} weights {count} are those of linear modules")
        config = IntxWeightOnlyConfig(
            weight_dtype=getattr(torch, f"int{setting.bits}"),
            granularity=PerGroup(setting.block) if setting.block else PerAxis(0),
            mapping_type=MappingType.SYMMETRIC if setting.symmetric else MappingType.ASYMMETRIC,
        )
        with silence(), torch.no_grad():
            quantize_(module, config, takes)
            return Made([module(*map(torch.from_numpy, feeds.values())).numpy() for feeds in job.tests])

    return way


def _matrices(path: Path) -> set[bytes]:
    """The constant weights of MatMul nodes."""
    from ...ir.constants import constant_array
    from ...ir.load import load

    found = set()
    for node in load(path).graph:
        array = constant_array(node.inputs[1]) if node.op_type == "MatMul" else None
        if array is not None and array.ndim == 2:
            found.add(np.ascontiguousarray(array).tobytes())
    return found


def _run_proto(model: Any, job: Job) -> Made:
    """Results of an ONNX model, contrib operators included, with optimizations off."""
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "weights.onnx"
        onnx.save(model, target)
        session = onnxruntime.InferenceSession(str(target), options, providers=["CPUExecutionProvider"])
        return Made([session.run(None, feeds)[0] for feeds in job.tests], target.stat().st_size)


NO_DATA, WITH_DATA = "graphwright without data", "graphwright with data"
PIPELINES = {NO_DATA: "STORE", WITH_DATA: "STORE,gptq,bias-correction"}
"""One setting of ours for all models, without data and with."""
NNCF_PLAIN, NNCF_DATA = "NNCF without data", "NNCF AWQ and scale estimation"
ORT_PLAIN, ORT_HQQ, ORT_GPTQ = "ONNX Runtime nearest", "ONNX Runtime HQQ", "ONNX Runtime GPTQ"
TORCHAO = "torchao weights"


def _is_there(way: str, setting: Setting) -> bool:
    """What a side offers: HQQ and GPTQ of ONNX Runtime have one kind of grid, NNCF repairs 4 bits alone."""
    if setting.bits == 8:
        return way in (NO_DATA, WITH_DATA, NNCF_PLAIN, TORCHAO)
    return not setting.symmetric if way == ORT_HQQ else setting.symmetric if way == ORT_GPTQ else True


_MAKERS = {
    WITH_DATA: lambda setting: _graphwright(setting, PIPELINES[WITH_DATA]),
    NNCF_DATA: lambda setting: _nncf(setting, awq=True, scale_estimation=True),
    ORT_GPTQ: lambda setting: _onnxruntime(setting, "GPTQ"),
    NO_DATA: lambda setting: _graphwright(setting, PIPELINES[NO_DATA]),
    NNCF_PLAIN: _nncf,
    ORT_PLAIN: lambda setting: _onnxruntime(setting, "default"),
    ORT_HQQ: lambda setting: _onnxruntime(setting, "HQQ"),
    TORCHAO: _torchao,
}
USES_DATA = (WITH_DATA, NNCF_DATA, ORT_GPTQ)
WEIGHT_WAYS: dict[str, dict[str, Way]] = {
    way: {setting.name: make(setting) for setting in SETTINGS if _is_there(way, setting)}
    for way, make in _MAKERS.items()
}
"""Ways by name, each with a variant for every setting that it offers."""
