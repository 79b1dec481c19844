"""Architectures of transformers: small configurations with random weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .torchvision import _declare_operators as declare_operators

if TYPE_CHECKING:
    import torch

TOKENS = ("input_ids",)
MASKED = ("input_ids", "attention_mask")
SEQ2SEQ = ("input_ids", "decoder_input_ids")
IMAGE = ("pixel_values",)

SIZES = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
DECODER = {**SIZES, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
VISION = {**{k: v for k, v in SIZES.items() if k != "vocab_size"}, "image_size": 64, "patch_size": 16}
ENCODER_DECODER = {
    "vocab_size": 100,
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": 2,
}
SPEECH = {
    **SIZES,
    "vocab_size": 32,
    "conv_dim": (32, 32, 32),
    "conv_kernel": (10, 3, 3),
    "conv_stride": (5, 2, 2),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
STAGES = {"hidden_sizes": [16, 32, 40, 64]}


@dataclass(frozen=True)
class Architecture:
    """A class of transformers, its configuration, what it is fed and what is read.

    Attributes:
        kind: Name before `Config`.
        head: Name after `kind` of the class.
        inputs: Keyword arguments of `forward`.
        options: Of the configuration.
        outputs: Keys of what `forward` returns.
    """

    kind: str
    head: str
    inputs: tuple[str, ...] = TOKENS
    options: dict[str, Any] = field(default_factory=dict)
    outputs: tuple[str, ...] = ("logits",)


def _decoder(kind: str, **options: Any) -> Architecture:
    return Architecture(kind, "ForCausalLM", TOKENS, {**DECODER, **options})


def _encoder(kind: str, **options: Any) -> Architecture:
    return Architecture(kind, "ForSequenceClassification", MASKED, {**SIZES, **options})


def _image(kind: str, options: dict[str, Any]) -> Architecture:
    return Architecture(kind, "ForImageClassification", IMAGE, options)


ARCHITECTURES = {
    "albert": _encoder("Albert"),
    "bart": Architecture("Bart", "ForConditionalGeneration", SEQ2SEQ, ENCODER_DECODER),
    "beit": _image("Beit", VISION),
    "bert": _encoder("Bert"),
    "clip": Architecture(
        "CLIP",
        "Model",
        ("input_ids", "pixel_values"),
        {
            "text_config": {**SIZES, "max_position_embeddings": 32, "eos_token_id": 2},
            "vision_config": VISION,
            "projection_dim": 32,
        },
        ("logits_per_image",),
    ),
    "cohere": _decoder("Cohere"),
    "convbert": _encoder("ConvBert"),
    "convnextv2": _image("ConvNextV2", {**STAGES, "depths": [1, 1, 2, 1]}),
    "deberta_v2": _encoder(
        "DebertaV2", relative_attention=True, position_biased_input=False, pos_att_type=["p2c", "c2p"]
    ),
    "deit": _image("DeiT", VISION),
    "detr": Architecture("Detr", "ForObjectDetection", IMAGE, {}, ("logits", "pred_boxes")),
    "dinov2": _image("Dinov2", VISION),
    "distilbert": Architecture(
        "DistilBert",
        "ForSequenceClassification",
        MASKED,
        {"vocab_size": 100, "dim": 64, "hidden_dim": 96, "n_layers": 2, "n_heads": 4},
    ),
    "electra": _encoder("Electra"),
    "esm": _encoder("Esm", pad_token_id=1, mask_token_id=2, max_position_embeddings=64),
    "fnet": Architecture("FNet", "ForSequenceClassification", TOKENS, SIZES),
    "gemma2": _decoder("Gemma2", head_dim=16),
    "gpt2": Architecture(
        "GPT2",
        "LMHeadModel",
        TOKENS,
        {"vocab_size": 100, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64},
    ),
    "hubert": Architecture("Hubert", "ForCTC", ("input_values",), SPEECH),
    "llama": _decoder("Llama"),
    "mamba": Architecture(
        "Mamba",
        "ForCausalLM",
        TOKENS,
        {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    ),
    "mistral": _decoder("Mistral"),
    "mixtral": _decoder("Mixtral", num_local_experts=2),
    "mobilebert": _encoder("MobileBert"),
    "mobilevit": _image(
        "MobileViT",
        {"image_size": 64, "hidden_sizes": [32, 48, 64], "neck_hidden_sizes": [8, 16, 24, 32, 48, 64, 96]},
    ),
    "modernbert": _encoder(
        "ModernBert", pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2
    ),
    "mpnet": _encoder("MPNet"),
    "nystromformer": _encoder("Nystromformer"),
    "olmo2": _decoder("Olmo2"),
    "phi3": _decoder("Phi3"),
    "qwen2": _decoder("Qwen2"),
    "qwen3": _decoder("Qwen3", head_dim=16),
    "roberta": _encoder("Roberta"),
    "roformer": _encoder("RoFormer"),
    "segformer": _image("Segformer", {**STAGES, "decoder_hidden_size": 32}),
    "stablelm": _decoder("StableLm"),
    "swin": _image(
        "Swin",
        {
            "image_size": 64,
            "patch_size": 4,
            "embed_dim": 32,
            "depths": [2, 2],
            "num_heads": [2, 4],
            "window_size": 4,
        },
    ),
    "t5": Architecture(
        "T5",
        "ForConditionalGeneration",
        SEQ2SEQ,
        {"vocab_size": 100, "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4},
    ),
    "vit": _image("ViT", VISION),
    "wav2vec2": Architecture("Wav2Vec2", "ForCTC", ("input_values",), SPEECH),
    "whisper": Architecture(
        "Whisper",
        "ForConditionalGeneration",
        ("input_features", "decoder_input_ids"),
        {
            **ENCODER_DECODER,
            "max_source_positions": 50,
            "max_target_positions": 32,
            "num_mel_bins": 20,
            "suppress_tokens": None,
            "begin_suppress_tokens": None,
        },
    ),
    "xlnet": Architecture(
        "XLNet",
        "ForSequenceClassification",
        MASKED,
        {"vocab_size": 100, "d_model": 64, "d_inner": 96, "n_layer": 2, "n_head": 4},
    ),
}


def names() -> list[str]:
    """The architectures, alphabetically."""
    return list(ARCHITECTURES)


def build(name: str) -> tuple[torch.nn.Module, tuple[Any, ...], str]:
    """A module with random weights, example inputs, and no remark."""
    declare_operators()
    import torch
    import transformers

    architecture = ARCHITECTURES[name]
    options = _detr_options(transformers) if name == "detr" else architecture.options
    config = getattr(transformers, f"{architecture.kind}Config")(**options)
    config.use_cache = False
    model = getattr(transformers, f"{architecture.kind}{architecture.head}")(config)
    if "num_local_experts" in architecture.options:
        # The default is an operator of transformers' own, which no exporter knows.
        model.set_experts_implementation("batched_mm")

    class Positional(torch.nn.Module):
        """Takes inputs by position, gives a tuple: what an exporter and other tools want."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
            given = dict(zip(architecture.inputs, inputs, strict=True))
            found = self.model(**given, return_dict=True)
            return tuple(found[key] for key in architecture.outputs)

    return Positional(), tuple(_example(kind) for kind in architecture.inputs), ""


def _example(kind: str) -> torch.Tensor:
    import torch

    if kind.endswith("input_ids"):
        return torch.randint(3, 90, (1, 16))
    shapes = {"pixel_values": (1, 3, 64, 64), "input_features": (1, 20, 100), "input_values": (1, 2000)}
    return torch.rand(shapes[kind]) if kind in shapes else torch.ones(1, 16, dtype=torch.int64)


def _detr_options(transformers: Any) -> dict[str, Any]:
    backbone = transformers.ResNetConfig(
        embedding_size=16,
        **STAGES,
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage4"],
    )
    return {
        "use_timm_backbone": False,
        "use_pretrained_backbone": False,
        "backbone": None,
        "backbone_config": backbone,
        "d_model": 32,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "num_queries": 10,
        "num_labels": 5,
    }
