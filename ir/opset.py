"""The operator set that every graph inside the house is written in."""

CANONICAL_OPSET = 23

LAST_RUNNABLE: dict[str, int] = dict.fromkeys(
    (
        "Bernoulli",
        "GlobalLpPool",
        "MaxRoiPool",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
        "RoiAlign",
    ),
    21,
)
"""The last opset in which ONNX Runtime can run an operator, where that is before the canonical one.

Opset 22 gave many operators bfloat16. ONNX Runtime matches kernels by the version of an operator and took up
most of these, not all: a model with one of the others only runs when it imports an opset before.
"""
