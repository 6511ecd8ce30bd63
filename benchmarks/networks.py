"""Networks of the sweep: the families of CNNs, and of transformers with MLPs, that people use."""

from collections.abc import Mapping

_NAMES: Mapping[str, str] = {
    "torchvision": """
        alexnet vgg11 vgg11_bn vgg16_bn vgg19_bn resnet18 resnet34 resnet50 resnet101 resnet152
        resnext50_32x4d resnext101_32x8d resnext101_64x4d wide_resnet50_2 wide_resnet101_2 densenet121
        densenet161 densenet169 densenet201 googlenet inception_v3 mobilenet_v2 mobilenet_v3_small
        mobilenet_v3_large mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3 efficientnet_b0 efficientnet_b1
        efficientnet_b2 efficientnet_b3 efficientnet_b4 efficientnet_b5 efficientnet_v2_s
        efficientnet_v2_m regnet_x_400mf regnet_x_800mf regnet_x_1_6gf regnet_x_3_2gf regnet_x_8gf
        regnet_y_400mf regnet_y_800mf regnet_y_1_6gf regnet_y_3_2gf regnet_y_8gf shufflenet_v2_x0_5
        shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0 squeezenet1_0 squeezenet1_1
        convnext_tiny convnext_small convnext_base fcn_resnet50 fcn_resnet101 deeplabv3_resnet50
        deeplabv3_resnet101 deeplabv3_mobilenet_v3_large lraspp_mobilenet_v3_large vit_b_16 swin_t
        swin_v2_t
    """,
    "timm": """
        cspresnet50 cspdarknet53 darknet53 dla34 dpn68 ese_vovnet19b_dw efficientvit_b0 fastvit_t8
        fbnetc_100 gernet_s ghostnet_100 ghostnetv2_100 hardcorenas_a hgnetv2_b0 hrnet_w18_small
        inception_next_atto inception_v4 lcnet_050 legacy_xception mixnet_s mobilenetv4_conv_small
        mobileone_s0 nf_resnet50 poolformer_s12 regnetz_b16 repghostnet_050 repvgg_a0 res2net50_26w_4s
        resnest14d resnetv2_50 rexnet_100 selecsls42 semnasnet_075 seresnet50 skresnet18 starnet_s1
        tf_efficientnetv2_b0 tinynet_e tresnet_m convnextv2_atto edgenext_xx_small
    """,
}
"""Names by source, as on the command line; separated by spaces."""


def default_models() -> list[str]:
    """Every network of the table, as on the command line."""
    return [f"{source}:{name}" for source, names in _NAMES.items() for name in names.split()]
