"""Torch networks drawn at random, in float64, with an input that has exact zeros, and the ONNX file of each.

Here lives what is drawn; `compare_drawn.py` explains it. Every sum, activation and pool is a module of its own and modules
stand in the order in which they run, as the hooks of Captum and Zennit need it. Parameters that ONNX keeps in float32 are
powers of two, so that the file says what torch computes.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass, field

import numpy as np
import onnx
import torch
from captum.attr._utils.custom_modules import Addition_Module
from torch import Tensor, nn

EPS = 2.0**-17  # BatchNorm's
RECTIFIERS = ("ReLU",)
SMOOTH = ("ReLU", "LeakyReLU", "ELU", "Softplus", "SiLU", "GELU", "Tanh", "Sigmoid")


class Summed(nn.Module):
    """A branch, and the input itself or another branch, and their sum."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module | None) -> None:
        super().__init__()
        self.branch, self.shortcut, self.add = branch, shortcut, Addition_Module()

    def summands(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """branch(x) and shortcut(x)."""
        return self.branch(x), x if self.shortcut is None else self.shortcut(x)

    def forward(self, x: Tensor) -> Tensor:
        """branch(x) + shortcut(x)."""
        y: Tensor = self.add(*self.summands(x))
        return y


class Joined(nn.Module):
    """A branch, and the input itself or another branch, one behind the other along the channels."""

    def __init__(self, first: nn.Module, second: nn.Module | None) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        """[first(x), second(x)]."""
        return torch.cat([self.first(x), x if self.second is None else self.second(x)], 1)


class Network(nn.Module):
    """Features with positions, then a dense head."""

    def __init__(self, features: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.features, self.head = features, head

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, *positions] → [N, classes]."""
        y: Tensor = self.head(torch.flatten(self.features(x), 1))
        return y


@dataclass
class Drawn:
    """A network, its input [N, C, *positions] and targets [N], the ONNX file, and what occurs in it."""

    seed: int
    network: nn.Module
    x: Tensor
    target: Tensor
    model: onnx.ModelProto
    has: set[str] = field(default_factory=set)
    layer: str = ""

    def again(self) -> np.random.Generator:
        """Numbers for what a comparison needs beside the network."""
        return np.random.default_rng([self.seed, 1])


class _Drawing:
    """The state of one drawing: numbers, and the shape that the last layer gives."""

    def __init__(self, seed: int, rectified: bool) -> None:
        self.rng, self.has = np.random.default_rng(seed), set[str]()
        self.rank = int(self.rng.choice([1, 2, 3], p=[0.25, 0.55, 0.2]))
        low, high = {1: (14, 24), 2: (8, 13), 3: (5, 8)}[self.rank]
        self.shape = [int(self.rng.integers(1, 5)), *(int(v) for v in self.rng.integers(low, high, self.rank))]
        self.activations = RECTIFIERS if rectified else SMOOTH

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def pick(self, *choices: int) -> int:
        return int(self.rng.choice(choices))

    def of_rank(self, name: str) -> type[nn.Module]:
        found: type[nn.Module] = getattr(nn, f"{name}{self.rank}d")
        return found

    def after(self, layer: nn.Module) -> nn.Module:
        """The layer, its output's shape noted."""
        with torch.no_grad():
            self.shape = list(layer(torch.zeros(1, *self.shape))[0].shape)
        return layer

    def activation(self) -> nn.Module:
        name = str(self.rng.choice(self.activations))
        if name != "ReLU":
            self.has |= {"smooth", name}
        return nn.LeakyReLU(0.125) if name == "LeakyReLU" else getattr(nn, name)()  # type: ignore[no-any-return]

    def convolution(self, *, same: bool = False, out: int | None = None) -> nn.Module:
        c, sizes = self.shape[0], self.shape[1:]
        kernel = [min(self.pick(1, 3) if same else self.pick(1, 2, 3, 4), s) for s in sizes]
        kernel = [k - (same and k % 2 == 0) for k in kernel]
        dilation = [self.pick(1, 1, 2) if 2 * (k - 1) < s else 1 for k, s in zip(kernel, sizes)]
        pads = [d * (k - 1) // 2 if same else self.pick(0, 1, 2) for k, d in zip(kernel, dilation)]
        stride = [1 if same else self.pick(1, 1, 2) for _ in sizes]
        group = c if c > 1 and self.chance(0.2) else 1
        wide = out or group * self.pick(1, 2) if group > 1 else out or self.pick(3, 4, 5)
        group = group if wide % group == 0 else 1
        make = self.of_rank("ConvTranspose" if not same and self.chance(0.12) and max(sizes) < 12 else "Conv")
        if make.__name__.startswith("ConvT"):
            self.has.add("transposed")
            pads = [min(p, d * (k - 1) // 2) for p, k, d in zip(pads, kernel, dilation)]
        layer = make(
            c,
            wide,
            tuple(kernel),
            tuple(stride),
            tuple(pads),
            groups=group,
            bias=self.chance(0.8),
            dilation=tuple(dilation),
        )
        return self.after(layer)

    def norm(self, *, folds: bool) -> nn.Module:
        self.has.add("norm" if folds else "lone norm")
        return self.of_rank("BatchNorm")(self.shape[0], eps=EPS)

    def pool(self) -> nn.Module:
        kernel = tuple(min(self.pick(2, 3), s) for s in self.shape[1:])
        stride = tuple(self.pick(1, 2, k) for k in kernel)
        pads, ceil = tuple(self.pick(0, k // 2) for k in kernel), self.chance(0.3)
        if self.chance(0.55):
            self.has.add("max")
            return self.after(self.of_rank("MaxPool")(kernel, stride, pads, ceil_mode=ceil))
        self.has.add("average")
        return self.after(
            self.of_rank("AvgPool")(kernel, stride, pads, ceil_mode=False, count_include_pad=self.chance(0.5))
        )

    def unit(self, *, same: bool = False, out: int | None = None, active: bool = True) -> list[nn.Module]:
        """A convolution, perhaps normalised, perhaps with an activation."""
        layers = [self.convolution(same=same, out=out)]
        if self.chance(0.4):
            layers.append(self.norm(folds=True))
        return [*layers, self.activation()] if active else layers

    def block(self) -> list[nn.Module]:
        """One of: a unit, a residual sum, a concatenation; then perhaps a pool and a lone normalisation."""
        kind, start = self.rng.random(), list(self.shape)
        layers: list[nn.Module]
        if kind < 0.25:
            self.has.add("sum")
            branch = nn.Sequential(*self.unit(same=True), *self.unit(same=True, out=start[0], active=False))
            self.shape = list(start)
            shortcut = nn.Sequential(*self.unit(same=True, out=start[0], active=False)) if self.chance(0.4) else None
            layers = [Summed(branch, shortcut), self.activation()]
        elif kind < 0.4:
            self.has.add("concat")
            first = nn.Sequential(*self.unit(same=True))
            wide, self.shape = self.shape[0], list(start)
            second = nn.Sequential(*self.unit(same=True)) if self.chance(0.6) else None
            self.shape[0] += wide
            layers = [Joined(first, second)]
        else:
            layers = self.unit()
        if min(self.shape[1:]) > 2 and self.chance(0.45):
            layers.append(self.pool())
        if self.chance(0.12):
            layers.append(self.norm(folds=False))
        return layers

    def features(self) -> nn.Module:
        layers = [self.norm(folds=False)] if self.chance(0.08) else []
        for _ in range(self.pick(1, 2, 3)):
            layers += self.block()
        if self.chance(0.4):
            self.has.add("average")
            layers.append(self.after(self.of_rank("AdaptiveAvgPool")(1)))
        return nn.Sequential(*layers)

    def head(self, classes: int) -> nn.Module:
        size = int(np.prod(self.shape))
        if self.chance(0.5):
            return nn.Linear(size, classes)
        return nn.Sequential(nn.Linear(size, 8), self.activation(), nn.Linear(8, classes))


def _weights(network: nn.Module, rng: np.random.Generator) -> nn.Module:
    """Weights that keep the scale, biases and shifts of both signs, some channels of BatchNorm turned round."""
    network = network.double().eval()
    for module in network.modules():
        for name, p in module.named_parameters(recurse=False):
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                draw = rng.normal(1, 0.6, p.shape) if name == "weight" else rng.normal(0, 0.4, p.shape)
            else:
                fan = max(int(np.prod(p.shape[1:])), 1)
                draw = rng.normal(0, 1.5 / np.sqrt(fan), p.shape) if p.ndim > 1 else rng.normal(0, 0.3, p.shape)
            p.data = torch.from_numpy(np.asarray(draw, np.float64))
            p.requires_grad_(False)
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean = torch.from_numpy(rng.normal(0, 0.3, module.num_features))
            module.running_var = torch.from_numpy(rng.uniform(0.3, 2.0, module.num_features))
    return network


def _input(rng: np.random.Generator, shape: list[int]) -> Tensor:
    """A batch of 1 to 4; in a third of them a corner of exact zeros, in some a whole sample."""
    x = rng.normal(0, 1, (int(rng.integers(1, 5)), *shape))
    if rng.random() < 0.35:
        x[(slice(None), slice(None), *(slice(0, max(1, s // 2)) for s in shape[1:]))] = 0.0
    if rng.random() < 0.1 and len(x) > 1:
        x[0] = 0.0
    return torch.from_numpy(x)


def exported(network: nn.Module, x: Tensor) -> onnx.ModelProto:
    """The network in ONNX, nothing folded, the batch open."""
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network, (x,), stream, dynamo=False, opset_version=17, input_names=["x"], output_names=["y"],
            dynamic_axes={"x": {0: "N"}, "y": {0: "N"}}, training=torch.onnx.TrainingMode.PRESERVE,
        )  # fmt: skip
    return onnx.load_from_string(stream.getvalue())


def draw(seed: int, *, rectified: bool) -> Drawn:
    """The network of this seed; `rectified`: with no activation but ReLU."""
    drawing = _Drawing(seed, rectified)
    start, classes = list(drawing.shape), int(drawing.rng.integers(2, 6))
    features = drawing.features()
    network = _weights(Network(features, drawing.head(classes)), drawing.rng)
    x = _input(drawing.rng, start)
    target = torch.from_numpy(drawing.rng.integers(0, classes, len(x)))
    return Drawn(seed, network, x, target, exported(network, x), drawing.has)
