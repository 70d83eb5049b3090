"""The architectures of the zoo, as rows of data: where a network comes from, its family, and how one is made.

A source is a function that lists its rows; `SOURCES` names them. Nothing is exported or measured here: that is
`zoo_export.py`'s and `zoo_measure.py`'s affair. A row is cheap, its network is made by `load`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

CONVOLUTIONAL = ("lrp-epsilon-plus",)
ATTENTION = ("lrp-epsilon-plus", "attn-lrp")


@dataclass(frozen=True)
class Case:
    """A network and what it is fed.

    module: in evaluation mode; its forward takes the inputs by position and returns a tensor or a tuple of tensors.
    inputs: tensors by the names they get in the file. outputs: names of its outputs; the first is explained. batched: the
    inputs whose axis 0 counts samples (and may stay open). leaf: of a network that takes integers, the module whose output
    is explained in their place (an embedding). drawn: whether `zoo_export.randomise` may draw the weights anew.
    heads: weighted modules whose results get variance 1 at most, so that what squashes them does not saturate.
    """

    module: Any
    inputs: Mapping[str, Any]
    outputs: tuple[str, ...] = ("logits",)
    batched: tuple[str, ...] = ("input",)
    leaf: Any = None
    drawn: bool = True
    heads: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Architecture:
    """One row: `methods` are the relevance methods that must run and add up."""

    source: str
    family: str
    name: str
    task: str
    load: Callable[[], Case]
    methods: tuple[str, ...] = CONVOLUTIONAL

    @property
    def stem(self) -> str:
        """What its files are called after."""
        return f"{self.source}-{self.task}-{self.name}"


def picture(*shape: int) -> Any:
    """Random pictures (or volumes) [N, C, *spatial] with content at every scale, mean 0 and variance 1.

    Samples of plain noise look alike to a deep network, and a normalisation makes much of what little sets them apart.
    """
    import torch

    spatial, mode = shape[2:], {1: "linear", 2: "bilinear", 3: "trilinear"}[len(shape) - 2]
    total = torch.randn(shape) * 0.3
    for cells in (1, 3, 8):
        grid = torch.randn(*shape[:2], *(min(cells, d) for d in spatial))
        total = total + torch.nn.functional.interpolate(grid, size=spatial, mode=mode)
    return (total - total.mean()) / total.std()


# ---------------------------------------------------------------------------------------------------------- torchvision

# families that share a module of torchvision's with others; a name belongs to the longest prefix that fits
FAMILIES = (
    *("efficientnet_b", "efficientnet_v2", "mobilenet_v2", "mobilenet_v3", "regnet_x", "regnet_y"),
    *("resnet", "resnext", "wide_resnet", "swin", "swin_v2", "vgg"),
)
SMALLEST = 64  # height and width that most networks take
SIZES = {"alexnet": 224, "inception": 96, "maxvit": 224, "swin": 112, "swin_v2": 128, "vgg": 224, "vgg_bn": 224}
BUILD: dict[str, dict[str, Any]] = {
    "googlenet": {"init_weights": False, "aux_logits": False},
    "inception": {"init_weights": False, "aux_logits": False},
    "vit": {"image_size": SMALLEST},
}
TRANSFORMERS = ("maxvit", "swin", "swin_v2", "vit", "swin3d", "mvit")


def torchvision_family(name: str) -> str:
    """The family of a classification network of torchvision."""
    from torchvision import models

    if name.startswith("vgg") and name.endswith("_bn"):
        return "vgg_bn"
    fits = [f for f in FAMILIES if name.startswith(f)]
    if fits:
        return max(fits, key=len).removesuffix("_b")
    module = models.get_model_builder(name).__module__.rpartition(".")[2]
    return {"vision_transformer": "vit", "mobilenetv2": "mobilenet_v2", "shufflenetv2": "shufflenet_v2"}.get(
        module, module
    )


def parameters(name: str) -> int:
    """How many parameters a network of torchvision has, by what is told of its published weights."""
    from torchvision import models

    return min(int(w.meta["num_params"]) for w in models.get_model_weights(name))


def _unweighted(name: str) -> dict[str, Any]:
    """No weights are downloaded, those of a backbone neither."""
    import inspect

    from torchvision import models

    takes = inspect.signature(models.get_model_builder(name)).parameters
    return {"weights": None} | ({"weights_backbone": None} if "weights_backbone" in takes else {})


def smallest(names: Sequence[str], family: Callable[[str], str]) -> Iterator[tuple[str, str]]:
    """(family, its member with the fewest parameters)."""
    members: dict[str, list[str]] = {}
    for name in names:
        members.setdefault(family(name), []).append(name)
    for kin, found in sorted(members.items()):
        yield kin, found[0] if len(found) == 1 else min(found, key=parameters)


def torchvision_classification(whole: bool) -> list[Architecture]:
    """Every classification family of torchvision, by its smallest member; every member where `whole`."""
    from torchvision import models

    names = models.list_models(module=models)
    chosen = [(torchvision_family(n), n) for n in names] if whole else list(smallest(names, torchvision_family))
    return [
        Architecture(
            "torchvision",
            family,
            name,
            "classification",
            partial(_classifier, name, family),
            ATTENTION if family in TRANSFORMERS else CONVOLUTIONAL,
        )
        for family, name in chosen
    ]


def _classifier(name: str, family: str) -> Case:
    from torchvision import models

    size = SIZES.get(family, SMALLEST)
    module = models.get_model(name, weights=None, **BUILD.get(family, {})).eval()
    return Case(module, {"input": picture(2, 3, size, size)})


def torchvision_segmentation(whole: bool) -> list[Architecture]:
    """The segmentation networks of torchvision."""
    from torchvision import models

    def family(name: str) -> str:
        return name.partition("_")[0]

    names = models.list_models(module=models.segmentation)
    chosen = [(family(n), n) for n in names] if whole else list(smallest(names, family))
    return [Architecture("torchvision", f, n, "segmentation", partial(_segmenter, n)) for f, n in chosen]


def _segmenter(name: str) -> Case:
    import torch
    from torchvision import models

    class Logits(torch.nn.Module):
        """The map of logits alone."""

        def __init__(self) -> None:
            super().__init__()
            self.model = models.get_model(name, **_unweighted(name))

        def forward(self, x: Any) -> Any:
            return self.model(x)["out"]

    return Case(Logits().eval(), {"input": picture(2, 3, SMALLEST, SMALLEST)})


def torchvision_detection(whole: bool) -> list[Architecture]:
    """The detectors of torchvision: the best score is explained, through suppression and all."""
    from torchvision import models

    names = models.list_models(module=models.detection)
    chosen = [(_stem(n), n) for n in names] if whole else list(smallest(names, _stem))
    return [Architecture("torchvision", f, n, "detection", partial(_detector, n)) for f, n in chosen]


def _stem(name: str) -> str:
    return name.partition("_")[0].rstrip("0123456789")


CLASSES = 91
FEW_BOXES = {
    "faster": {
        "rpn_post_nms_top_n_test": 40,
        "rpn_pre_nms_top_n_test": 80,
        "box_detections_per_img": 8,
        "box_score_thresh": 0.0,
    },
    "mask": {
        "rpn_post_nms_top_n_test": 40,
        "rpn_pre_nms_top_n_test": 80,
        "box_detections_per_img": 8,
        "box_score_thresh": 0.0,
    },
    "keypoint": {
        "rpn_post_nms_top_n_test": 40,
        "rpn_pre_nms_top_n_test": 80,
        "box_detections_per_img": 8,
        "box_score_thresh": 0.0,
    },
    "retinanet": {"topk_candidates": 50, "detections_per_img": 8},
    "fcos": {"topk_candidates": 50, "detections_per_img": 8},
    "ssd": {"topk_candidates": 50, "detections_per_img": 8},
}


def _detector(name: str) -> Case:
    import torch
    from torchvision import models

    options = next(o for f, o in FEW_BOXES.items() if name.startswith(f))
    sized = {} if name.startswith("ssd") else {"min_size": 128, "max_size": 128}
    model = models.get_model(name, **_unweighted(name), **options, **sized).eval()
    size = model.transform.min_size[0] if name.startswith("ssd") else 128

    class Found(torch.nn.Module):
        """Scores, boxes and classes of one picture."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Any) -> Any:
            found = self.model([x[0]])[0]
            return found["scores"], found["boxes"], found["labels"]

    outputs = ("scores", "boxes", "labels")
    heads = tuple(m for n, m in model.named_modules() if _squashed(n, m))
    return Case(Found().eval(), {"input": picture(1, 3, size, size)}, outputs, batched=(), heads=heads)


def _squashed(name: str, module: Any) -> bool:
    """Whether a detector squashes what the module gives: scores; of two stages also boxes, whose sizes are exponentials."""
    last = name.rpartition(".")[2]
    maps = ("class" in name or last == "cls_logits") and getattr(module, "out_channels", 1) % CLASSES == 0
    return maps or last in ("cls_score", "bbox_pred")


CLIPS = {"s3d": (16, 224), "mvit": (16, 64), "swin3d": (8, 64)}


def torchvision_video(whole: bool) -> list[Architecture]:
    """The video classifiers of torchvision."""
    from torchvision import models

    names = models.list_models(module=models.video)
    chosen = [(_stem(n), n) for n in names] if whole else list(smallest(names, _stem))
    methods = {f: ATTENTION if f in TRANSFORMERS else CONVOLUTIONAL for f, _ in chosen}
    return [Architecture("torchvision", f, n, "video", partial(_clip, n), methods[f]) for f, n in chosen]


def _clip(name: str) -> Case:
    from torchvision import models

    frames, size = next((v for k, v in CLIPS.items() if name.startswith(k)), (4, 32))
    options = {"spatial_size": (size, size), "temporal_size": frames} if name.startswith("mvit") else {}
    module = models.get_model(name, weights=None, **options).eval()
    return Case(module, {"input": picture(2, 3, frames, size, size)})


def torchvision_flow(whole: bool) -> list[Architecture]:
    """The optical-flow networks of torchvision, two refinements each."""
    from torchvision import models

    names = models.list_models(module=models.optical_flow)
    chosen = [(_stem(n), n) for n in names] if whole else list(smallest(names, _stem))
    return [Architecture("torchvision", f, n, "optical flow", partial(_flow, n)) for f, n in chosen]


def _flow(name: str) -> Case:
    import torch
    from torchvision import models

    class Last(torch.nn.Module):
        """The last refinement of the flow."""

        def __init__(self) -> None:
            super().__init__()
            self.model = models.get_model(name, weights=None)

        def forward(self, before: Any, after: Any) -> Any:
            return self.model(before, after, num_flow_updates=2)[-1]

    pictures = {"before": picture(1, 3, 128, 128), "after": picture(1, 3, 128, 128)}
    return Case(Last().eval(), pictures, ("flow",), batched=())


# ----------------------------------------------------------------------------------------------------------------- timm

# one small member per family of timm's, the smallest first; those whose layers are torchvision's too are left to it
TIMM = """
    test_mambaout starnet_s050 test_vit_relpos edgenext_xx_small mobilevit_xxs mobilevitv2_050 mobilenetv3_small_050
    lcnet_035 tinynet_e efficientvit_m0 repghostnet_050 ghostnet_050 cspnext_tiny iformer_t xcit_nano_12_p16_224
    ese_vovnet19b_slim cs3darknet_focus_s efficientvit_b0 ghostnetv3_050 swiftformer_xs efficientformerv2_s0
    convnextv2_atto pvt_v2_b0 convnext_atto mobilenetv4_conv_small fasternet_t0 fastvit_t8 mixnet_s
    inception_next_atto pit_ti_224 rexnet_100 hardcorenas_a mobileone_s0 resnet10t coat_tiny eva02_tiny_patch14_224
    repvit_m0_9 convit_tiny hgnetv2_b0 ghostnetv2_100 shvit_s1 vit_tiny_r_s16_p8_224 cpubone_nano efficientvim_m1
    crossvit_tiny_240 regnetz_005 tf_efficientnetv2_b0 mambaout_femto maxvit_rmlp_pico_rw_256 levit_128s
    densenetblur121d gernet_s nf_regnet_b0 dpn48b repvgg_a0 regnetz_b16 visformer_tiny resnest14d lambda_resnet26t
    csatv2 resnetblur18 legacy_seresnet18 seresnet18 poolformer_s12 poolformerv2_s12 cait_xxs24_224 skresnet18
    gcvit_xxtiny tiny_vit_5m_224 efficientformer_l1 botnet26t_256 halonet26t gmixer_12_224 hrnet_w18_small
    vit_wee_patch16_reg1_gap_256 coatnext_nano_rw_224 hgnet_tiny coatnet_nano_rw_224 resmlp_12_224 dla34
    ecaresnet26t seresnext26d_32x4d maxxvit_rmlp_nano_rw_256 nest_tiny mixer_s32_224 gmlp_s16_224 gcresnet33ts
    regnetv_040 convmixer_768_32 cspresnet50 vit_srelpos_small_patch16_224 deit3_small_patch16_224 vitamin_small_224
    vovnet39a legacy_xception tnt_s_patch16_224 rdnet_tiny twins_pcpvt_small eca_nfnet_l0 twins_svt_small
    mvitv2_tiny res2next50 resnetv2_50 nf_resnet50 res2net50_26w_4s caformer_s18 volo_d1_224 sam2_hiera_tiny
    xception41 sequencer2d_s hiera_tiny_224 swin_s3_tiny_224 swinv2_cr_tiny_ns_224 swinv2_tiny_window8_256
    davit_tiny focalnet_tiny_srf tresnet_m nextvit_small selecsls42b vit_medium_patch16_rope_reg1_gap_256 darknet53
    inception_v4 inception_resnet_v2 dm_nfnet_f0 pnasnet5large beit_base_patch16_224 samvit_base_patch16_224
    qwen3_vit_88m nasnetalarge
""".split()  # noqa: SIM905 - one quoted name a line would fill three pages
# what a member is built with where its smallest is large still: fewer blocks, smaller pictures
TIMM_BUILD: dict[str, dict[str, Any]] = {
    "beit_base_patch16_224": {"depth": 2},
    "samvit_base_patch16_224": {"depth": 3},
    "qwen3_vit_88m": {"depth": 3},
}
ATTENDING = tuple(
    """
    beit botnet caformer cait coat convit crossvit csatv2 davit deit edgenext efficientformer eva gcvit hiera iformer levit
    maxvit maxxvit mobilevit mvit nest nextvit pit pvt qwen3 sam shvit swiftformer swin test_vit tiny_vit tnt twins
    visformer vit volo xcit
    """.split()  # noqa: SIM905 - as above
)


def timm_classification(whole: bool) -> list[Architecture]:
    """Families of timm."""
    import timm

    known = set(timm.list_models())
    return [
        Architecture(
            "timm",
            name.partition("_")[0],
            name,
            "classification",
            partial(_timm, name),
            ATTENTION if name.startswith(ATTENDING) else CONVOLUTIONAL,
        )
        for name in TIMM
        if name in known
    ]


def _timm(name: str) -> Case:
    import timm

    module = timm.create_model(name, pretrained=False, exportable=True, **TIMM_BUILD.get(name, {})).eval()
    size = module.default_cfg["input_size"][1]
    if not module.default_cfg.get("fixed_input_size") and size > 128:
        size = 128
    return Case(module, {"input": picture(2, 3, size, size)})


def transformers(whole: bool) -> list[Architecture]:
    """Small networks of the `transformers` library."""
    import zoo_transformers

    return zoo_transformers.rows(whole)


SOURCES: dict[str, Callable[[bool], list[Architecture]]] = {
    "torchvision": torchvision_classification,
    "torchvision-segmentation": torchvision_segmentation,
    "torchvision-detection": torchvision_detection,
    "torchvision-video": torchvision_video,
    "torchvision-flow": torchvision_flow,
    "timm": timm_classification,
    "transformers": transformers,
}


def architectures(sources: Sequence[str], whole: bool = False) -> list[Architecture]:
    """The rows of several sources."""
    return [row for source in sources for row in SOURCES[source](whole)]
