"""Architectures of timm: small members of different families, with random weights at a small input."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .torchvision import _declare_operators as declare_operators

if TYPE_CHECKING:
    import torch

SMALL = 128
"""Height and width for networks whose positions do not fix the size."""

_LIST = """
bat_resnext26ts beit_base_patch16_224 botnet26t_256 caformer_s18 cait_xxs24_224 coat_tiny
coatnet_nano_rw_224 convformer_s18 convit_tiny convmixer_768_32 convnext_atto convnextv2_atto
crossvit_tiny_240 cs3darknet_s csatv2 cspdarknet53 cspnext_tiny cspresnet50 cspresnext50 darknet53
davit_tiny deit3_small_patch16_224 deit_tiny_patch16_224 densenet121 dla34 dla46_c dm_nfnet_f0
dpn68 eca_botnext26ts_256 eca_nfnet_l0 eca_resnet33ts ecaresnet26t edgenext_xx_small
efficientformer_l1 efficientformerv2_s0 efficientnet_b0 efficientvim_m1 efficientvit_b0
efficientvit_m0 ese_vovnet19b_dw eva02_tiny_patch14_224 fasternet_t0 fastvit_t8 fbnetc_100
fbnetv3_b focalnet_tiny_srf gcresnet33ts gcvit_xxtiny gernet_s ghostnet_100 ghostnetv2_100
gmixer_12_224 gmlp_ti16_224 halonet26t hardcorenas_a hgnet_tiny hgnetv2_b0 hiera_tiny_224
hrnet_w18_small inception_next_atto inception_resnet_v2 inception_v3 inception_v4 lambda_resnet26t
lcnet_050 lcnetv2_small legacy_seresnet18 legacy_xception levit_128s lowformer_b0 mambaout_femto
maxvit_tiny_rw_224 mixer_s32_224 mixnet_s mnasnet_050 mobilenetv1_100 mobilenetv2_050
mobilenetv3_small_050 mobilenetv4_conv_small mobilenetv4_hybrid_medium mobileone_s0 mobilevit_xxs
mobilevitv2_050 mvitv2_tiny nasnetalarge nest_tiny nextvit_small nf_resnet50 pit_ti_224
pnasnet5large poolformer_s12 poolformerv2_s12 pvt_v2_b0 rdnet_tiny regnetx_002 regnety_002
regnetz_b16 repghostnet_050 repvgg_a0 repvit_m0_9 res2net50_26w_4s resmlp_12_224 resnest14d
resnet18 resnet51q resnetv2_18 resnext50_32x4d rexnet_100 samvit_base_patch16_224 selecsls42b
semnasnet_050 sequencer2d_s seresnet33ts shvit_s1 skresnet18 spnasnet_100 starnet_s1 swiftformer_xs
swin_tiny_patch4_window7_224 swinv2_cr_tiny_224 swinv2_tiny_window8_256 test_vit_relpos
tf_efficientnetv2_b0 tiny_vit_5m_224 tinynet_a tnt_s_patch16_224 tresnet_m twins_pcpvt_small
twins_svt_small vgg11 visformer_tiny vit_small_patch16_rope_224 vit_small_r26_s32_224
vit_tiny_patch16_224 vitamin_small_224 volo_d1_224 wide_resnet50_2 xception41 xcit_nano_12_p16_224
"""


def names() -> list[str]:
    """One small member of each family."""
    return _LIST.split()


def build(name: str) -> tuple[torch.nn.Module, tuple[Any, ...], str]:
    """A module with random weights, example inputs, and no remark.

    The input is `SMALL` where the network runs at that size, else what timm says it was made for.
    """
    declare_operators()
    import timm
    import torch

    module = timm.create_model(name, pretrained=False).eval()
    config: dict[str, Any] = module.default_cfg
    size = tuple(config.get("input_size", (3, 224, 224)))
    small = torch.rand(1, size[0], SMALL, SMALL)
    if not config.get("fixed_input_size", False) and size[1] > SMALL and _runs(module, small):
        return module, (small,), ""
    return module, (torch.rand(1, *size),), ""


def _runs(module: torch.nn.Module, image: torch.Tensor) -> bool:
    import torch

    try:
        with torch.no_grad():
            module(image)
    except (RuntimeError, AssertionError, ValueError, IndexError):
        return False
    return True
