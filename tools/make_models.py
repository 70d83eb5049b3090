"""Build well-known CNNs as ONNX files with He-random weights: VGG-16, ResNet-18/50, MobileNet-v2, DenseNet-121.

Nothing is trained and nothing is downloaded: the graphs serve the benchmarks, where only geometry matters.
BatchNormalization stays a node of its own, and parameters carry the names of torchvision's state dicts, so that
`compare_peers.py` can load the same weights.  `python tools/make_models.py NAME OUT.onnx`.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
IR_VERSION = 8
RESIDUAL_GAIN = 0.25  # last scale of a residual branch: 16 blocks then grow the variance by less than a factor 3


@dataclass(frozen=True)
class Parameter:
    """One named array of the network, described before it is drawn.

    `kind` is `normal` (mean 0, standard deviation `scale`), `positive` (uniform in scale·[0.8, 1.2]),
    or `constant` (filled with `scale`). `learned` is False for running statistics and bounds, which are
    not counted as parameters.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    scale: float
    learned: bool = True

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Return the values, float32, of the described shape."""
        if self.kind == "normal":
            return rng.standard_normal(self.shape, dtype=np.float32) * np.float32(self.scale)
        if self.kind == "positive":
            return rng.uniform(0.8 * self.scale, 1.2 * self.scale, self.shape).astype(np.float32)
        return np.full(self.shape, self.scale, np.float32)


@dataclass
class Network:
    """A feed-forward graph under construction: nodes and parameter descriptions, no values yet.

    Every method appends nodes and returns the name of its output; `width` scales the channel counts.
    """

    name: str
    size: int = 224
    classes: int = 1000
    width: float = 1.0
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    parameters: list[Parameter] = field(default_factory=list)

    def channels(self, count: int) -> int:
        """Scale a channel count by `width`; at least 8, and a multiple of 8 where the width is not 1."""
        return count if self.width == 1.0 else max(8, round(count * self.width / 8) * 8)

    def add(self, op: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """Append one node; its output is called as the node is."""
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def parameter(self, name: str, shape: tuple[int, ...], kind: str, scale: float, learned: bool = True) -> str:
        """Describe one parameter and return its name."""
        self.parameters.append(Parameter(name, shape, kind, scale, learned))
        return name

    def conv(
        self,
        x: str,
        name: str,
        c_in: int,
        c_out: int,
        kernel: int,
        *,
        stride: int = 1,
        group: int = 1,
        bias: bool = False,
        gain: float = 2.0,
    ) -> str:
        """Convolution with padding (kernel-1)/2; weight variance gain / fan-in (2 after a ReLU, 1 after none)."""
        shape = (c_out, c_in // group, kernel, kernel)
        scale = math.sqrt(gain / (c_in // group * kernel * kernel))
        inputs = [x, self.parameter(f"{name}.weight", shape, "normal", scale)]
        if bias:
            inputs.append(self.parameter(f"{name}.bias", (c_out,), "normal", 0.05))
        pad = (kernel - 1) // 2
        geometry: dict[str, Any] = {
            "kernel_shape": [kernel] * 2,
            "strides": [stride] * 2,
            "pads": [pad] * 4,
            "group": group,
        }
        return self.add("Conv", inputs, name, **geometry)

    def batch_norm(self, x: str, name: str, channels: int, *, gain: float = 1.0) -> str:
        """Inference-mode BatchNormalization with running statistics near those of a unit-variance input."""
        inputs = [
            x,
            self.parameter(f"{name}.weight", (channels,), "positive", gain),
            self.parameter(f"{name}.bias", (channels,), "normal", 0.1 * gain),
            self.parameter(f"{name}.running_mean", (channels,), "normal", 0.1, learned=False),
            self.parameter(f"{name}.running_var", (channels,), "positive", 1.0, learned=False),
        ]
        return self.add("BatchNormalization", inputs, name, epsilon=1e-5)

    def relu(self, x: str) -> str:
        """Rectifier."""
        return self.add("Relu", [x], f"{x}.relu")

    def relu6(self, x: str) -> str:
        """Rectifier with the ceiling 6, as Clip with two constant bounds."""
        if not any(p.name == "relu6.min" for p in self.parameters):
            self.parameter("relu6.min", (), "constant", 0.0, learned=False)
            self.parameter("relu6.max", (), "constant", 6.0, learned=False)
        return self.add("Clip", [x, "relu6.min", "relu6.max"], f"{x}.relu6")

    def max_pool(self, x: str, name: str, kernel: int, stride: int, pad: int = 0) -> str:
        """Max-pooling."""
        geometry: dict[str, Any] = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [pad] * 4}
        return self.add("MaxPool", [x], name, **geometry)

    def linear(self, x: str, name: str, c_in: int, c_out: int, *, gain: float = 2.0, output: str | None = None) -> str:
        """Fully connected layer (Gemm with transB); its weight is [c_out, c_in] as torch stores it."""
        inputs = [
            x,
            self.parameter(f"{name}.weight", (c_out, c_in), "normal", math.sqrt(gain / c_in)),
            self.parameter(f"{name}.bias", (c_out,), "normal", 0.05),
        ]
        out = output or name
        self.nodes.append(helper.make_node("Gemm", inputs, [out], name=name, transB=1))
        return out

    def head(self, x: str, name: str, channels: int) -> None:
        """Global average, flatten, and the linear layer that yields `logits`."""
        pooled = self.add("GlobalAveragePool", [x], "avgpool")
        flat = self.add("Flatten", [pooled], "flatten", axis=1)
        self.linear(flat, name, channels, self.classes, output="logits")

    def count(self) -> int:
        """Number of learned parameters (running statistics excluded, as torch counts)."""
        return sum(math.prod(p.shape) for p in self.parameters if p.learned)

    def model(self, seed: int = 0, batch: int | None = None) -> onnx.ModelProto:
        """Draw the parameters and return the model: input [N, 3, size, size] → logits [N, classes], float32.

        `batch` fixes N; None leaves it dynamic (`batch`).
        """
        rng = np.random.default_rng(seed)
        initializers = [numpy_helper.from_array(p.draw(rng), p.name) for p in self.parameters]
        n: int | str = "batch" if batch is None else batch
        inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, [n, 3, self.size, self.size])]
        outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [n, self.classes])]
        graph = helper.make_graph(self.nodes, self.name, inputs, outputs, initializers)
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="make_models")


VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)  # 0: max-pool 2×2


def vgg16_network(size: int = 224, classes: int = 1000, width: float = 1.0) -> Network:
    """VGG-16 (Simonyan & Zisserman 2015, configuration D), without dropout; 138.36 M parameters."""
    net = Network("vgg16", size, classes, width)
    x, c_in, index = "input", 3, 0
    for entry in VGG16:
        if entry == 0:
            x, index = net.max_pool(x, f"features.{index}", 2, 2), index + 1
            continue
        c_out = net.channels(entry)
        x = net.conv(x, f"features.{index}", c_in, c_out, 3, bias=True, gain=1.0 if index == 0 else 2.0)
        x, c_in, index = net.relu(x), c_out, index + 2
    hidden = net.channels(4096)
    x = net.add("Flatten", [x], "flatten", axis=1)
    x = net.relu(net.linear(x, "classifier.0", c_in * (size // 32) ** 2, hidden))
    x = net.relu(net.linear(x, "classifier.3", hidden, hidden))
    net.linear(x, "classifier.6", hidden, classes, output="logits")
    return net


def _stem(net: Network) -> tuple[str, int]:
    """The 7×7/2 convolution and 3×3/2 max-pool of residual networks."""
    c = net.channels(64)
    x = net.batch_norm(net.conv("input", "conv1", 3, c, 7, stride=2, gain=1.0), "bn1", c)
    return net.max_pool(net.relu(x), "maxpool", 3, 2, 1), c


def _residual(
    net: Network, x: str, name: str, c_in: int, widths: Sequence[int], kernels: Sequence[int], stride: int
) -> str:
    """A residual block: convolutions with BN (the stride on the first 3×3), shortcut, Add, ReLU."""
    branch, c, strided = x, c_in, kernels.index(3)
    for i, (c_out, kernel) in enumerate(zip(widths, kernels, strict=True)):
        branch = net.conv(branch, f"{name}.conv{i + 1}", c, c_out, kernel, stride=stride if i == strided else 1)
        last = i == len(kernels) - 1
        branch = net.batch_norm(branch, f"{name}.bn{i + 1}", c_out, gain=RESIDUAL_GAIN if last else 1.0)
        branch, c = branch if last else net.relu(branch), c_out
    if stride != 1 or c_in != c:
        x = net.conv(x, f"{name}.downsample.0", c_in, c, 1, stride=stride)
        x = net.batch_norm(x, f"{name}.downsample.1", c)
    return net.relu(net.add("Add", [branch, x], f"{name}.add"))


def _resnet(name: str, blocks: Sequence[int], bottleneck: bool, size: int, classes: int, width: float) -> Network:
    """Residual network (He et al. 2016) in torchvision's form: a bottleneck's stride is on its 3×3."""
    net = Network(name, size, classes, width)
    x, c_in = _stem(net)
    for stage, repeats in enumerate(blocks):
        c = net.channels(64 * 2**stage)
        widths, kernels = ((c, c, 4 * c), (1, 3, 1)) if bottleneck else ((c, c), (3, 3))
        for i in range(repeats):
            stride = 2 if i == 0 and stage > 0 else 1
            x, c_in = _residual(net, x, f"layer{stage + 1}.{i}", c_in, widths, kernels, stride), widths[-1]
    net.head(x, "fc", c_in)
    return net


def resnet18_network(size: int = 224, classes: int = 1000, width: float = 1.0) -> Network:
    """ResNet-18; 11.69 M parameters."""
    return _resnet("resnet18", (2, 2, 2, 2), False, size, classes, width)


def resnet50_network(size: int = 224, classes: int = 1000, width: float = 1.0) -> Network:
    """ResNet-50; 25.56 M parameters."""
    return _resnet("resnet50", (3, 4, 6, 3), True, size, classes, width)


# expansion, channels, repeats, stride (Sandler et al. 2018, table 2)
MOBILENET_V2 = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def _inverted_residual(net: Network, x: str, name: str, c_in: int, c_out: int, expansion: int, stride: int) -> str:
    """Expand 1×1, depthwise 3×3, project 1×1 without activation; Add where the shape is kept."""
    branch, hidden, i = x, c_in * expansion, 0
    if expansion != 1:
        branch = net.conv(x, f"{name}.conv.0.0", c_in, hidden, 1, gain=1.0)
        branch, i = net.relu6(net.batch_norm(branch, f"{name}.conv.0.1", hidden)), 1
    branch = net.conv(branch, f"{name}.conv.{i}.0", hidden, hidden, 3, stride=stride, group=hidden)
    branch = net.relu6(net.batch_norm(branch, f"{name}.conv.{i}.1", hidden))
    branch = net.conv(branch, f"{name}.conv.{i + 1}", hidden, c_out, 1)
    residual = stride == 1 and c_in == c_out
    branch = net.batch_norm(branch, f"{name}.conv.{i + 2}", c_out, gain=0.5 if residual else 1.0)
    return net.add("Add", [x, branch], f"{name}.add") if residual else branch


def mobilenet_v2_network(size: int = 224, classes: int = 1000, width: float = 1.0) -> Network:
    """MobileNet-v2 (Sandler et al. 2018); 3.50 M parameters."""
    net = Network("mobilenet_v2", size, classes, width)
    c_in = net.channels(32)
    x = net.conv("input", "features.0.0", 3, c_in, 3, stride=2, gain=1.0)
    x, index = net.relu6(net.batch_norm(x, "features.0.1", c_in)), 1
    for expansion, channels, repeats, first_stride in MOBILENET_V2:
        c_out = net.channels(channels)
        for i in range(repeats):
            stride = first_stride if i == 0 else 1
            x = _inverted_residual(net, x, f"features.{index}", c_in, c_out, expansion, stride)
            c_in, index = c_out, index + 1
    last = net.channels(1280)
    x = net.batch_norm(net.conv(x, f"features.{index}.0", c_in, last, 1, gain=1.0), f"features.{index}.1", last)
    net.head(net.relu6(x), "classifier.1", last)
    return net


def _dense_layer(net: Network, features: Sequence[str], name: str, c_in: int, growth: int) -> str:
    """BN-ReLU-Conv 1×1 (4·growth) then BN-ReLU-Conv 3×3 (growth) over the concatenated features."""
    x = net.add("Concat", features, f"{name}.concat", axis=1) if len(features) > 1 else features[0]
    x = net.relu(net.batch_norm(x, f"{name}.norm1", c_in))
    x = net.conv(x, f"{name}.conv1", c_in, 4 * growth, 1)
    x = net.relu(net.batch_norm(x, f"{name}.norm2", 4 * growth))
    return net.conv(x, f"{name}.conv2", 4 * growth, growth, 3)


def densenet121_network(size: int = 224, classes: int = 1000, width: float = 1.0) -> Network:
    """DenseNet-121 (Huang et al. 2017); 7.98 M parameters."""
    net = Network("densenet121", size, classes, width)
    c, growth, blocks = net.channels(64), net.channels(32), (6, 12, 24, 16)
    x = net.conv("input", "features.conv0", 3, c, 7, stride=2, gain=1.0)
    x = net.relu(net.batch_norm(x, "features.norm0", c))
    x = net.max_pool(x, "features.pool0", 3, 2, 1)
    for b, repeats in enumerate(blocks, start=1):
        features = [x]
        for i in range(repeats):
            name = f"features.denseblock{b}.denselayer{i + 1}"
            features.append(_dense_layer(net, features, name, c + i * growth, growth))
        x, c = net.add("Concat", features, f"features.denseblock{b}", axis=1), c + repeats * growth
        if b < len(blocks):
            x = net.relu(net.batch_norm(x, f"features.transition{b}.norm", c))
            x, c = net.conv(x, f"features.transition{b}.conv", c, c // 2, 1), c // 2
            x = net.add("AveragePool", [x], f"features.transition{b}.pool", kernel_shape=[2, 2], strides=[2, 2])
    net.head(net.relu(net.batch_norm(x, "features.norm5", c)), "classifier", c)
    return net


NETWORKS: dict[str, Callable[..., Network]] = {
    "vgg16": vgg16_network,
    "resnet18": resnet18_network,
    "resnet50": resnet50_network,
    "mobilenet_v2": mobilenet_v2_network,
    "densenet121": densenet121_network,
}


def build(
    name: str,
    *,
    seed: int = 0,
    batch: int | None = None,
    size: int = 224,
    classes: int = 1000,
    width: float = 1.0,
) -> onnx.ModelProto:
    """Build a network by its name in `NETWORKS`; `size` is a multiple of 32; KeyError for an unknown name."""
    return NETWORKS[name](size, classes, width).model(seed, batch)


def vgg16(**options: Any) -> onnx.ModelProto:
    """VGG-16; options as `build`."""
    return build("vgg16", **options)


def resnet18(**options: Any) -> onnx.ModelProto:
    """ResNet-18; options as `build`."""
    return build("resnet18", **options)


def resnet50(**options: Any) -> onnx.ModelProto:
    """ResNet-50; options as `build`."""
    return build("resnet50", **options)


def mobilenet_v2(**options: Any) -> onnx.ModelProto:
    """MobileNet-v2; options as `build`."""
    return build("mobilenet_v2", **options)


def densenet121(**options: Any) -> onnx.ModelProto:
    """DenseNet-121; options as `build`."""
    return build("densenet121", **options)


def main(argv: Sequence[str] | None = None) -> int:
    """Write one model to a file and print its size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=sorted(NETWORKS))
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=None, help="fixed batch size (default: dynamic)")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--width", type=float, default=1.0, help="channel multiplier")
    args = parser.parse_args(argv)
    if args.size % 32:
        parser.error(f"--size {args.size} is not a multiple of 32")
    net = NETWORKS[args.name](args.size, args.classes, args.width)
    onnx.save(net.model(args.seed, args.batch), args.out)
    print(f"{args.out}: {args.name}, {net.count() / 1e6:.2f} M parameters, {args.out.stat().st_size / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
