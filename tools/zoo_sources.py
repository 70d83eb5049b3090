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
    """

    module: Any
    inputs: Mapping[str, Any]
    outputs: tuple[str, ...] = ("logits",)
    batched: tuple[str, ...] = ("input",)
    leaf: Any = None
    drawn: bool = True


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
    import torch
    from torchvision import models

    size = SIZES.get(family, SMALLEST)
    module = models.get_model(name, weights=None, **BUILD.get(family, {})).eval()
    return Case(module, {"input": torch.rand(2, 3, size, size)})


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

    return Case(Logits().eval(), {"input": torch.rand(2, 3, SMALLEST, SMALLEST)})


SOURCES: dict[str, Callable[[bool], list[Architecture]]] = {
    "torchvision": torchvision_classification,
    "torchvision-segmentation": torchvision_segmentation,
}


def architectures(sources: Sequence[str], whole: bool = False) -> list[Architecture]:
    """The rows of several sources."""
    return [row for source in sources for row in SOURCES[source](whole)]
