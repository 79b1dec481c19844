"""What `make bench-int8` measures of one model, in a process of its own.

    python -m graphwright.tools.int8_measure MODEL SETTINGS

prints a row as a line of JSON; `SETTINGS` is a JSON object, see `Settings`.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..ir.errors import ToolError
from .measure import measure_interleaved
from .processes import answers

if TYPE_CHECKING:
    import onnx_ir as ir

    from ..backends.executable import Executable

MODELS = (
    *("resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3", "efficientnet_b0"),
    *("vit_s16", "swin_t", "bert_base"),
)
WEIGHTS_INT4 = "quantize-weights{form=int4}"
FLOAT = "simplify,fold-batch-norm,fuse"
INT8, INT4, FLOAT_TVM = "int8", "int4", "float"
ORT, ORT_FLOAT = "ONNX Runtime int8", "ONNX Runtime float"
_CALIBRATION_SAMPLES = 2
_FLOAT_KINDS = ("conv", "convtranspose", "gemm", "matmul")


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        threads: thread counts.
        seconds: for each contender.
        target: CPU to compile for; it must run here.
        table: what `insert-qdq` quantizes for.
        trials: tuning trials, for int8 and for float.
    """

    threads: tuple[int, ...] = (1, 2)
    seconds: float = 1.0
    target: str = "x86"
    table: str = "x86-vnni"
    trials: int = 0


@dataclass
class Row:
    """What was measured about one model.

    Attributes:
        name: of the model.
        sqnr: at the outputs, of the compiled library against the reference on the same file, in dB.
        sizes: bytes of the artifact by form of the weights: int8, int4 (weight-only), float.
        integer: calls of kernels whose products are of integers, and of all others that multiply.
        timings: by contender, then by threads: median and 10th and 90th percentile, in milliseconds.
        commit: of the sources.
        day: year-month-day.
        failure: why there is nothing else.
    """

    name: str
    sqnr: float = 0.0
    sizes: dict[str, int] = field(default_factory=dict)
    integer: tuple[int, int] = (0, 0)
    timings: dict[str, dict[str, tuple[float, float, float]]] = field(default_factory=dict)
    commit: str = ""
    day: str = ""
    failure: str = ""

    def share(self, form: str) -> float:
        """Size of an artifact over that of the float one."""
        return self.sizes[form] / self.sizes[FLOAT_TVM]

    def median(self, contender: str, threads: int) -> float:
        """Milliseconds."""
        return self.timings[contender][str(threads)][0]

    def ratio(self, rival: str, threads: int) -> float:
        """How many times longer a rival takes."""
        return self.median(rival, threads) / self.median(INT8, threads)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Row:
        """What `dataclasses.asdict` made.

        Raises:
            ToolError: a field is missing or unknown.
        """
        if set(data) != {each.name for each in dataclasses.fields(cls)}:
            raise ToolError("it was written by another version; remove it")
        return cls(**data)


def known_models() -> list[str]:
    """Names that `--only` chooses from."""
    from .runtimes.models import MODELS as full_size
    from .zoo import MODEL_NAMES, SMALL_NAMES

    return list(dict.fromkeys((*full_size, *MODEL_NAMES, *SMALL_NAMES)))


def build_model(name: str) -> ir.Model:
    """The graph of one of `known_models`."""
    from ..ir.trace import trace
    from .runtimes.models import MODELS as full_size
    from .zoo import zoo_model

    if name not in full_size:
        return zoo_model(name)
    module, example = full_size[name].build()
    return trace(module, example, name=name)


def measure_model(name: str, settings: Settings) -> Row:
    """Everything about one model.

    Raises:
        GraphwrightError: it cannot be quantized or compiled, or the target does not run here.
    """
    from ..backends.compile import compile as compile_graph
    from ..backends.onnxruntime import OnnxRuntimeExecutable
    from ..backends.target import resolve_target
    from ..ir.compare import compare
    from ..ir.inputs import random_inputs
    from ..ir.reference import run_reference
    from ..passes.optimize import optimize

    resolved = resolve_target(settings.target)
    reason = resolved.why_not_here()
    if reason:
        raise ToolError(f"code for {resolved.name} cannot be timed here: {reason}")
    model = optimize(build_model(name), FLOAT).model
    quantized = quantize(model, settings.table)
    ours = compile_graph(quantized, resolved, pipeline="eliminate-dead", trials=settings.trials)
    floats = compile_graph(model, resolved, pipeline="eliminate-dead", trials=settings.trials)
    small = compile_graph(optimize(model, WEIGHTS_INT4).model, resolved, pipeline="eliminate-dead")
    sizes = {INT8: artifact_size(ours), INT4: artifact_size(small), FLOAT_TVM: artifact_size(floats)}
    del small
    contenders: dict[str, Executable] = {
        INT8: ours,
        FLOAT_TVM: floats,
        ORT: OnnxRuntimeExecutable(quantized),
        ORT_FLOAT: OnnxRuntimeExecutable(model),
    }
    feeds = random_inputs(model, seed=1)
    agreement = compare(run_reference(quantized, feeds), ours.run(feeds))
    row = Row(name, agreement.sqnr_db, sizes, _integer_calls(ours))
    for count in settings.threads:
        found = measure_interleaved(contenders, feeds, threads=count, seconds=settings.seconds)
        for contender, timing in found.items():
            row.timings.setdefault(contender, {})[str(count)] = (timing.median_ms, timing.p10, timing.p90)
    return row


def quantize(model: ir.Model, table: str) -> ir.Model:
    """The model with quantizers where the table puts them, calibrated on random data."""
    from ..passes.optimize import optimize
    from .feeds import calibration_feeds

    data = calibration_feeds(model, None, _CALIBRATION_SAMPLES, 0)
    return optimize(model, f"insert-qdq{{target={table}}}", calibration=data).model


def artifact_size(executable: Executable) -> int:
    """Bytes of library and weights as they are saved."""
    from ..backends.artifact import LIBRARY, WEIGHTS

    with tempfile.TemporaryDirectory() as folder:
        saved = executable.save(Path(folder) / "artifact")
        return sum((saved / part).stat().st_size for part in (LIBRARY, WEIGHTS))


def _integer_calls(executable: Executable) -> tuple[int, int]:
    kernels = executable.report.kernels if executable.report is not None else ()
    integer = sum(each["calls"] for each in kernels if each["kind"].startswith("integer"))
    return integer, sum(each["calls"] for each in kernels if each["kind"] in _FLOAT_KINDS)


if __name__ == "__main__":
    with answers() as channel:
        given = json.loads(sys.argv[2])
        result = measure_model(sys.argv[1], Settings(**{**given, "threads": tuple(given["threads"])}))
        print(json.dumps(dataclasses.asdict(result)), file=channel)
