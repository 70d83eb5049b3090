"""Train the bundled CNN on `onnx_explain.shapes` and write it as ONNX, with labels, demo picture and a README.

The network is written once (`shapes_cnn`) against five operations; torch runs them to train, `onnx.helper` records
them to export, so that file and training cannot drift apart and no exporter's version matters.
`python tools/train_shapes.py` needs torch, onnx, onnxruntime and a few minutes on one CPU core; two runs on one
machine give the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from onnx_explain import shapes

if TYPE_CHECKING:
    import torch

BUNDLED = Path(__file__).resolve().parent.parent / "onnx_explain" / "bundled"
OPSET = 18
IR_VERSION = 8
SIZE = 64
EPSILON = 1e-5  # of the normalisation
TRAIN_SEED = 20_240_731  # far from the small seeds that people type: those stay unseen
TEST_SEED = 1
DEMO = (2, 18)  # seed and index of the demo picture, picked by eye: a clear target among many distractors
BATCH = 64
THREADS = 1  # sums would be split by thread; a second one gains little at this size, and loses on a busy machine
PEAK_RATE = 4e-3
WEIGHT_DECAY = 5e-3
MIN_ACCURACY = 0.97
MIN_CONFIDENCE = 0.9
Arrays = dict[str, npt.NDArray[np.float32]]
T = TypeVar("T")

README = """# The bundled model and picture

Everything here is made by `python tools/train_shapes.py` from the package's own synthetic pictures
(`onnx_explain/shapes.py`): no outside data, no outside weights.

- `shapes_cnn.onnx`: a residual ReLU CNN of {parameters} parameters (running statistics included) that names the one
  coloured shape in a picture. Input `input` [N, 3, {size}, {size}] float32, RGB in 0..1; output `logits`
  [N, classes]. Opset {opset}, IR {ir}. Conv, BatchNormalization (left unfolded), Relu, MaxPool, Add,
  GlobalAveragePool, Flatten, Gemm. The metadata entries `preprocessing` and `labels` say how to feed and read it.
- `labels.txt`: one class per line, in the order of the logits:
  {classes}.
- `demo.png`: sample {demo[1]} of seed {demo[0]}, {size} x {size}. Its exact object mask is
  `onnx_explain.shapes.draw({demo[1]}, seed={demo[0]}).mask`.

Trained on seed {train} alone, measured on seed {test}: samples of any other seed are unseen.
Two runs with the same versions on one machine give the same bytes; another processor may round differently.

{facts}
"""


class Operations(Protocol[T]):
    """What the network is written against; `T` is a tensor that is computed or the name of one."""

    def conv(self, x: T, name: str, channels: tuple[int, int]) -> T:
        """3x3 convolution of stride 1 without bias, then BatchNormalization."""

    def relu(self, x: T) -> T:
        """Rectify."""

    def pool(self, x: T) -> T:
        """Maximum over windows of 2x2, stride 2."""

    def add(self, x: T, y: T) -> T:
        """Sum of two activations."""

    def classify(self, x: T, name: str, channels: tuple[int, int]) -> T:
        """Mean over space, then a dense layer: the logits."""


def shapes_cnn(net: Operations[T], x: T) -> T:
    """From pictures [N, 3, 64, 64] in 0..1 to logits [N, classes]."""
    x = net.pool(net.relu(net.conv(x, "stem", (3, 16))))
    x = net.pool(net.relu(net.conv(x, "stage1.conv", (16, 32))))
    x = residual(net, x, "stage1.block", 32)
    x = net.pool(net.relu(net.conv(x, "stage2.conv", (32, 64))))
    x = residual(net, x, "stage2.block", 64)
    x = net.relu(net.conv(x, "head.conv", (64, 96)))
    return net.classify(x, "head.classifier", (96, len(shapes.CLASSES)))


def residual(net: Operations[T], x: T, name: str, channels: int) -> T:
    """Two convolutions beside the identity."""
    y = net.relu(net.conv(x, f"{name}.conv1", (channels, channels)))
    return net.relu(net.add(net.conv(y, f"{name}.conv2", (channels, channels)), x))


class Trained:
    """The operations run by torch; parameters are made when first met, from a seeded NumPy generator."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.learned: dict[str, torch.Tensor] = {}
        self.statistics: dict[str, torch.Tensor] = {}
        self.training = False

    def conv(self, x: torch.Tensor, name: str, channels: tuple[int, int]) -> torch.Tensor:
        from torch.nn import functional

        w = self._parameter(f"{name}.weight", (channels[1], channels[0], 3, 3), math.sqrt(2 / (9 * channels[0])))
        gamma = self._parameter(f"{name}.bn.scale", (channels[1],), 0.0, offset=1.0)
        beta = self._parameter(f"{name}.bn.bias", (channels[1],), 0.0)
        mean = self._statistic(f"{name}.bn.mean", channels[1], 0.0)
        variance = self._statistic(f"{name}.bn.variance", channels[1], 1.0)
        x = functional.conv2d(x, w, padding=1)
        return functional.batch_norm(x, mean, variance, gamma, beta, training=self.training, eps=EPSILON)

    def relu(self, x: torch.Tensor) -> torch.Tensor:
        return x.relu()

    def pool(self, x: torch.Tensor) -> torch.Tensor:
        from torch.nn import functional

        return functional.max_pool2d(x, 2)

    def add(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + y

    def classify(self, x: torch.Tensor, name: str, channels: tuple[int, int]) -> torch.Tensor:
        w = self._parameter(f"{name}.weight", channels[::-1], math.sqrt(1 / channels[0]))
        return x.mean((2, 3)) @ w.T + self._parameter(f"{name}.bias", channels[1:], 0.0)

    def arrays(self) -> Arrays:
        """Return all parameters and running statistics."""
        return {name: p.detach().contiguous().numpy() for name, p in {**self.learned, **self.statistics}.items()}

    def _parameter(self, name: str, shape: tuple[int, ...], scale: float, offset: float = 0.0) -> torch.Tensor:
        import torch

        if name not in self.learned:
            values = (offset + scale * self.rng.standard_normal(shape)).astype(np.float32)
            self.learned[name] = torch.from_numpy(values).requires_grad_()
        return self.learned[name]

    def _statistic(self, name: str, channels: int, value: float) -> torch.Tensor:
        import torch

        return self.statistics.setdefault(name, torch.full((channels,), value))


class Recorded:
    """The operations recorded as ONNX nodes, called after their parameters."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []

    def conv(self, x: str, name: str, channels: tuple[int, int]) -> str:
        x = self._node("Conv", [x, f"{name}.weight"], name, kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[1, 1])
        scales = [f"{name}.bn.{part}" for part in ("scale", "bias", "mean", "variance")]
        return self._node("BatchNormalization", [x, *scales], f"{name}.bn", epsilon=EPSILON)

    def relu(self, x: str) -> str:
        return self._node("Relu", [x], f"{x}.relu")

    def pool(self, x: str) -> str:
        return self._node("MaxPool", [x], f"{x}.pool", kernel_shape=[2, 2], strides=[2, 2])

    def add(self, x: str, y: str) -> str:
        return self._node("Add", [x, y], f"{x}.add")

    def classify(self, x: str, name: str, channels: tuple[int, int]) -> str:
        x = self._node("GlobalAveragePool", [x], "head.mean")
        x = self._node("Flatten", [x], "head.flatten", axis=1)
        return self._node("Gemm", [x, f"{name}.weight", f"{name}.bias"], name, output="logits", transB=1)

    def _node(self, op: str, inputs: list[str], name: str, output: str = "", **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output or name], name=name, **attributes))
        return output or name


def export(arrays: Arrays) -> onnx.ModelProto:
    """Return the checked ONNX model of `shapes_cnn` with these parameters."""
    recorded = Recorded()
    shapes_cnn(recorded, "input")
    graph = helper.make_graph(
        recorded.nodes,
        "shapes_cnn",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", len(shapes.CLASSES)])],
        [numpy_helper.from_array(array, name) for name, array in sorted(arrays.items())],
        doc_string="input: RGB pictures, NCHW float32 in 0..1; logits: one per class of `labels`, before softmax.",
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    model.producer_name = "onnx-explain tools/train_shapes.py"
    model.doc_string = (
        "A small residual ReLU CNN that names the one coloured shape in a picture of onnx_explain.shapes."
    )
    helper.set_model_props(model, {"preprocessing": "0..1", "labels": ",".join(shapes.CLASSES)})
    onnx.checker.check_model(model, full_check=True)
    return model


def pictures(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """From uint8 [N, H, W, 3] to what the model takes, float32 [N, 3, H, W] in 0..1."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2), dtype=np.float32) / np.float32(255)


def augmented(images: npt.NDArray[np.uint8], rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Turn and mirror each eighth of a batch in its own way, and swap its colour channels at random."""
    images = images.copy()
    for part, group in enumerate(np.array_split(images, 8)):
        mirrored = group[:, :, ::-1] if part >= 4 else group
        group[...] = np.rot90(mirrored, part % 4, axes=(1, 2))[..., rng.permutation(3)]
    return images


def batches(
    images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64], rng: np.random.Generator
) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]]:
    """One shuffled, augmented pass over the set; the odd rest is left out."""
    order = rng.permutation(len(labels))
    for first in range(0, len(labels) - BATCH + 1, BATCH):
        chosen = order[first : first + BATCH]
        yield pictures(augmented(images[chosen], rng)), labels[chosen]


def train(images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64], epochs: int, seed: int) -> Arrays:
    """Return trained parameters: AdamW, one cycle of the learning rate, cross-entropy."""
    import torch
    from torch.nn import functional

    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a debugging aid that costs a third of the time
    torch.set_num_threads(THREADS)
    net, rng = Trained(seed), np.random.default_rng(seed)
    shapes_cnn(net, torch.zeros(1, 3, SIZE, SIZE))
    net.training = True
    optimizer = torch.optim.AdamW(net.learned.values(), lr=PEAK_RATE, weight_decay=WEIGHT_DECAY)
    steps = epochs * (len(labels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=steps, pct_start=0.2)
    for epoch in range(epochs):
        started, total = time.perf_counter(), 0.0
        for x, y in batches(images, labels, rng):
            loss = functional.cross_entropy(
                shapes_cnn(net, torch.from_numpy(x).to(memory_format=torch.channels_last)), torch.from_numpy(y)
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        mean = total * BATCH / len(labels)
        print(f"epoch {epoch + 1}/{epochs}: loss {mean:.4f}, {time.perf_counter() - started:.1f} s", flush=True)
    return net.arrays()


def logits(model: onnx.ModelProto, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return [N, classes], computed by ONNX Runtime in batches."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    parts = [images[first : first + 200] for first in range(0, len(images), 200)]
    return np.concatenate([session.run(["logits"], {"input": pictures(part)})[0] for part in parts])


def softmax(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Probabilities over the last axis."""
    powers: npt.NDArray[np.float32] = np.exp(scores - scores.max(axis=-1, keepdims=True))
    powers /= powers.sum(axis=-1, keepdims=True)
    return powers


def report(model: onnx.ModelProto, tests: int) -> tuple[float, list[str]]:
    """Return the accuracy on `tests` unseen samples, and one line per class: its recall and its commonest mistake."""
    images, _, labels = shapes.batch(tests, seed=TEST_SEED, size=SIZE)
    predicted = logits(model, images).argmax(axis=1)
    lines = []
    for label, name in enumerate(shapes.CLASSES):
        counts = np.bincount(predicted[labels == label], minlength=len(shapes.CLASSES))
        others = np.where(np.arange(len(counts)) == label, 0, counts)
        mistake = f", most often taken for {shapes.CLASSES[others.argmax()]}" if others.any() else ""
        lines.append(f"{name}: {counts[label]} of {counts.sum()}{mistake}")
    return float((predicted == labels).mean()), lines


def readme(model: onnx.ModelProto, facts: Sequence[str]) -> str:
    """Return the text that lies beside the model."""
    count = sum(math.prod(array.dims) for array in model.graph.initializer)
    return README.format(
        classes=", ".join(shapes.CLASSES),
        size=SIZE,
        opset=OPSET,
        ir=IR_VERSION,
        parameters=f"{count:,}",
        train=TRAIN_SEED,
        test=TEST_SEED,
        demo=DEMO,
        facts="\n".join(f"- {fact}" for fact in facts),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Train, export, measure on unseen samples, and write the files unless the accuracy is too low to ship."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=BUNDLED)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--samples", type=int, default=24_000, help="distinct training pictures")
    parser.add_argument("--tests", type=int, default=4_000, help="unseen pictures the accuracy is measured on")
    parser.add_argument("--seed", type=int, default=0, help="of the initial weights and the order of the pictures")
    args = parser.parse_args(argv)
    started = time.perf_counter()
    images, _, labels = shapes.batch(args.samples, seed=TRAIN_SEED, size=SIZE)
    print(f"{args.samples} pictures in {time.perf_counter() - started:.0f} s", flush=True)
    model = export(train(images, labels, args.epochs, args.seed))
    print(
        f"trained after {time.perf_counter() - started:.0f} s ({time.process_time():.0f} s of processor time)",
        flush=True,
    )
    accuracy, lines = report(model, args.tests)
    demo = shapes.draw(DEMO[1], seed=DEMO[0], size=SIZE)
    confidence = float(softmax(logits(model, demo.image[None]))[0, demo.label])
    content = model.SerializeToString()
    lines = [
        f"accuracy {accuracy:.2%} on {args.tests} unseen samples (ONNX Runtime)",
        f"{args.epochs} epochs of {args.samples} pictures, initial seed {args.seed}",
        f"{len(content)} bytes, sha256 {hashlib.sha256(content).hexdigest()}",
        f"demo.png: {shapes.CLASSES[demo.label]} with probability {confidence:.3f}",
        *lines,
    ]
    print(*lines, sep="\n")
    if accuracy < MIN_ACCURACY or confidence < MIN_CONFIDENCE:
        print(f"Not good enough ({MIN_ACCURACY:.0%} on tests, {MIN_CONFIDENCE:.0%} on the demo): nothing written.")
        return 1
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "shapes_cnn.onnx").write_bytes(content)
    (args.out / "labels.txt").write_text("\n".join(shapes.CLASSES) + "\n", encoding="utf-8")
    (args.out / "README.md").write_text(readme(model, lines), encoding="utf-8")
    Image.fromarray(demo.image).save(args.out / "demo.png", optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
