"""The nine light models bundled with the onnx package, as shipped: opset 9, IR 3, every weight a ConstantOfShape.

onnx2torch with Captum or Zennit converts none of them as shipped; after repair LRP runs on none. Here all nine load, say
what ONNX Runtime says, and give every method with its conservation. With He-random weights and no bias LRP-ε is
conserved to 1 %. `python tests/test_light_models.py` prints the figures.
"""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from ready import CONVERTIBLE, FEW, FREE

from onnx_explain import METHODS, Explainer, Explanation

FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
MODELS = (
    "bvlc_alexnet", "densenet121", "inception_v1", "inception_v2", "resnet50", "shufflenet", "squeezenet", "vgg19", "zfnet512",
)  # fmt: skip
QUICK = ("squeezenet", "shufflenet", "inception_v1")  # under two seconds a method
QUICK_METHODS = ("gradient", "lrp-epsilon", "lrp-epsilon-plus", "rap")
PREDICTION = 1e-5  # float32, of the largest value
CONSERVED = 0.01  # the bound
ROUNDING = 2e-6  # of the relevance moved, for every weighted layer: each rounds its own float32 shares, αβ the largest
Array = np.ndarray[Any, Any]


def he_random(name: str) -> onnx.ModelProto:
    """The model with initialisers for its ConstantOfShape nodes and all it stores: weights He-random, scales and variances
    one, biases, shifts and means zero.
    """
    proto = onnx.load(FOLDER / f"light_{name}.onnx")
    proto.ir_version = 8  # before 4, initialisers are inputs, too
    stored = {i.name: numpy_helper.to_array(i) for i in proto.graph.initializer}
    sizes = {
        n.output[0]: tuple(int(d) for d in stored[n.input[0]])
        for n in proto.graph.node
        if n.op_type == "ConstantOfShape"
    }
    sizes |= {n: a.shape for n, a in stored.items() if a.dtype == np.float32}
    roles = {v: (n.op_type, k) for n in proto.graph.node for k, v in enumerate(n.input)}
    behind = {n.input[0]: n.output[0] for n in proto.graph.node if n.op_type == "Unsqueeze"}
    generator = np.random.default_rng(0)
    kept = [i for i in proto.graph.initializer if i.name not in sizes]
    for out, shape in sizes.items():
        role = roles.get(behind.get(out, out), ("", 0))
        kept.append(numpy_helper.from_array(_drawn(shape, *role, generator), out))
    nodes = [n for n in proto.graph.node if n.op_type != "ConstantOfShape"]
    del proto.graph.node[:], proto.graph.initializer[:]
    proto.graph.node.extend(nodes)
    proto.graph.initializer.extend(kept)
    return proto


def _drawn(shape: tuple[int, ...], op_type: str, position: int, generator: np.random.Generator) -> Array:
    if op_type == "BatchNormalization":
        return np.ones(shape, np.float32) if position in (1, 4) else np.zeros(shape, np.float32)
    if op_type == "Mul":  # DenseNet's and Inception's scale behind a BatchNormalization
        return np.ones(shape, np.float32)
    if len(shape) < 2 or op_type == "Add":
        return np.zeros(shape, np.float32)
    fan_in = int(np.prod(shape[1:])) if len(shape) > 2 else shape[1] if op_type == "Gemm" else shape[0]
    return (generator.standard_normal(shape) * np.sqrt(2 / fan_in)).astype(np.float32)


def feed(source: Any) -> dict[str, Array]:
    """Noise in the shape that the file declares."""
    ((name, (shape, dtype)),) = Explainer(source, "gradient", threads=2).inputs.items()
    return {name: np.random.default_rng(1).standard_normal([d or 1 for d in shape]).astype(dtype)}


@cache
def shipped_output(name: str) -> tuple[dict[str, Array], dict[str, Array]]:
    """(feeds, outputs) of the file as shipped, in stock ONNX Runtime."""
    path = FOLDER / f"light_{name}.onnx"
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 2
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feeds = feed(path)
    names = [o.name for o in session.get_outputs()]
    return feeds, dict(zip(names, session.run(names, feeds)))


def explained(name: str, method: str, **options: Any) -> Explanation:
    options |= {k: v for k, v in FEW.items() if k in METHODS[method].options}
    return Explainer(FOLDER / f"light_{name}.onnx", method, threads=2, **options)(shipped_output(name)[0])


def depth(name: str) -> int:
    """How many layers with weights relevance passes one after the other, or side by side."""
    nodes = onnx.load(FOLDER / f"light_{name}.onnx").graph.node
    return sum(node.op_type in ("Conv", "Gemm") for node in nodes)


def assert_sound(name: str, method: str) -> None:
    e = explained(name, method)
    for output, value in shipped_output(name)[1].items():
        np.testing.assert_allclose(e.outputs[output], value, rtol=0, atol=PREDICTION * np.abs(value).max())
    (r,), (x,) = e.relevance.values(), e.inputs.values()
    assert (r.shape, r.dtype) == (x.shape, x.dtype)
    assert np.isfinite(r).all()
    assert np.isfinite([*e.conservation, *e.absorbed]).all()
    assert len(e.conservation) == len(x)
    if METHODS[method].conserves:
        amount = np.abs(r.astype(np.float64)).reshape(len(x), -1).sum(1) + np.abs(e.absorbed)
        gap = e.conservation * np.abs(e.target.score) if e.completeness is None else np.abs(e.completeness)
        np.testing.assert_array_less(
            gap, np.maximum(CONSERVED * np.abs(e.target.score), ROUNDING * depth(name) * amount)
        )


@pytest.mark.parametrize("method", QUICK_METHODS)
@pytest.mark.parametrize("name", QUICK)
def test_a_light_model_as_shipped_is_explained(name: str, method: str) -> None:
    assert_sound(name, method)


@pytest.mark.parametrize("name", [m for m in MODELS if m not in QUICK])
def test_every_light_model_as_shipped_is_explained(name: str) -> None:
    assert_sound(name, "lrp-epsilon-plus")


BEYOND_FLOAT32 = ("smoothgrad-squared", "vargrad", "rsp")  # they square or multiply what the shipped weights blow up


@pytest.mark.slow
@pytest.mark.parametrize("method", [m for m in FREE if m in CONVERTIBLE])
@pytest.mark.parametrize("name", MODELS)
def test_every_light_model_as_shipped_is_explained_by_every_method(name: str, method: str) -> None:
    if method in BEYOND_FLOAT32:
        pytest.skip("constant weights give gradients and activations of 1e30, whose squares are beyond float32")
    assert_sound(name, method)


@pytest.mark.parametrize("name", [pytest.param(m, marks=() if m in QUICK else pytest.mark.slow) for m in MODELS])
def test_lrp_epsilon_without_bias_is_conserved(name: str) -> None:
    total, score, e = summed(name)
    assert abs(score) > 1e-3
    assert abs(total / score - 1) <= CONSERVED
    assert e.conservation.max() <= CONSERVED


def summed(name: str, **options: Any) -> tuple[float, float, Explanation]:
    """(sum of the relevance, the score it started with, explanation), of He-random weights without biases."""
    proto = he_random(name)
    e = Explainer(proto, "lrp-epsilon", threads=2, **options)(feed(proto))
    (r,) = e.relevance.values()
    return float(r.astype(np.float64).sum()), float(e.target.score[0]), e


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg19", "squeezenet"])
def test_a_light_model_converts_into_a_file_of_its_own_size(name: str, tmp_path: Path) -> None:
    source, path = FOLDER / f"light_{name}.onnx", tmp_path / "out.onnx"
    Explainer(source, "lrp-epsilon-plus", threads=2).convert(path)
    assert path.stat().st_size < 1_000_000, "a weight made by ConstantOfShape must not fill the file"
    onnx.checker.check_model(str(path), full_check=True)


def table() -> None:
    """The figures, as a table of Markdown."""
    print(
        "| model | nodes | ΣR / score − 1 (ε, no bias) | as shipped: worst conservation over methods | slowest method |"
    )
    print("|---|---|---|---|---|")
    for name in MODELS:
        total, score, _ = summed(name)
        worst, slowest = ("", 0.0), ("", 0.0)
        for method in (m for m in FREE if m in CONVERTIBLE):
            started = time.perf_counter()
            e = explained(name, method)
            seconds = time.perf_counter() - started
            slowest = max(slowest, (method, seconds), key=lambda pair: pair[1])
            if METHODS[method].conserves:
                worst = max(worst, (method, float(e.conservation.max())), key=lambda pair: pair[1])
        nodes = len(onnx.load(FOLDER / f"light_{name}.onnx").graph.node)
        print(
            f"| {name} | {nodes} | {total / score - 1:+.1e} | {worst[1]:.1e} ({worst[0]}) | {slowest[1]:.1f} s ({slowest[0]}) |",
            flush=True,
        )


if __name__ == "__main__":
    table()
