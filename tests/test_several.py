"""Several methods and targets over one forward pass, and explanations at inner tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from test_convert import residual_cnn

from onnx_explain import Explainer, Explainers, MethodError, TargetError

X = np.random.default_rng(3).standard_normal((3, 3, 16, 16)).astype(np.float32)
METHODS = ["gradient", "lrp-epsilon", "lrp-epsilon-plus", "rap", ("lrp-gamma", {"gamma": 0.1}), "excitation-backprop"]


def _alone(method: Any, target: Any, **settings: Any) -> Any:
    name, options = (method, {}) if isinstance(method, str) else method
    return Explainer(residual_cnn(), name, threads=1, **settings, **options)(X, target)


def _close(a: np.ndarray, b: np.ndarray, tolerance: float = 1e-6) -> None:
    assert a.shape == b.shape
    assert a.dtype == b.dtype
    assert float(np.abs(a - b).max()) <= tolerance * float(np.abs(b).max())


def test_several_methods_give_what_each_gives_alone() -> None:
    together = Explainers(residual_cnn(), METHODS, threads=1)
    assert together.methods == tuple(m if isinstance(m, str) else m[0] for m in METHODS)
    [found] = together(X)
    for method, ours in zip(METHODS, found):
        alone = _alone(method, None)
        _close(ours.relevance["picture"], alone.relevance["picture"])
        np.testing.assert_allclose(ours.conservation, alone.conservation, atol=1e-4)
        assert ours.method == alone.method
        assert ours.options == alone.options


def test_several_targets_give_what_each_gives_alone() -> None:
    targets = [0, 2, None, [0, 1, 2]]
    found = Explainers(residual_cnn(), METHODS, threads=1)(X, targets)
    for target, row in zip(targets, found):
        for method, ours in zip(METHODS, row):
            alone = _alone(method, target)
            _close(ours.relevance["picture"], alone.relevance["picture"])
            np.testing.assert_array_equal(ours.target.index, alone.target.index)


def test_the_forward_pass_is_in_the_graph_once() -> None:
    explainers = Explainers(residual_cnn(), METHODS, threads=1)
    explainers(X, [0, 1])
    [built] = [v for k, v in explainers._prepared._known.items() if k[0][0] == "one pass"]
    forward = {n.name for n in residual_cnn().graph.node}
    names = [n.name for n in built.graph.model.graph]
    assert all(names.count(name) == 1 for name in forward & set(names))
    assert sum(not (name or "").startswith("explain/") for name in names) <= len(forward) + 8


def test_targets_of_several_outputs_may_be_mixed() -> None:
    name = residual_cnn().graph.output[0].name
    found = Explainers(residual_cnn(), ["gradient"], threads=1)(X, [f"{name}[:,1]", 1, f"{name}[0,2]"])
    _close(found[0][0].relevance["picture"], found[1][0].relevance["picture"])
    assert not found[2][0].relevance["picture"][1:].any()


def test_no_method_is_refused() -> None:
    with pytest.raises(MethodError, match="No method"):
        Explainers(residual_cnn(), [])


# ------------------------------------------------------------------------------------------- at an inner tensor


def _inner() -> list[str]:
    return [n.output[0] for n in residual_cnn().graph.node if n.op_type in ("Relu", "Add", "MaxPool")]


@pytest.mark.parametrize("method", ["gradient", "lrp-epsilon", "lrp-epsilon-plus-flat", "lrp-gamma", "rap"])
@pytest.mark.parametrize("tensor", _inner())
def test_the_relevance_at_a_tensor_is_what_passes_it_on_the_way_to_the_input(method: str, tensor: str) -> None:
    at = Explainer(residual_cnn(), method, at=tensor, threads=1)(X, 1)
    kept = Explainer(residual_cnn(), method, keep=tensor, threads=1)(X, 1)
    assert list(at.relevance) == [tensor]
    _close(at.relevance[tensor], kept.kept[tensor], 1e-5)
    assert at.inputs[tensor].shape == at.relevance[tensor].shape


def test_what_passes_by_a_tensor_is_counted_as_absorbed() -> None:
    for tensor in _inner():
        e = Explainer(residual_cnn(), "lrp-epsilon", at=tensor, backend="reference")(X, 1)
        assert float(e.conservation.max()) < 1e-9


def test_input_times_gradient_at_a_tensor_is_that_tensor_times_its_gradient() -> None:
    tensor = _inner()[0]
    gradient = Explainer(residual_cnn(), "gradient", at=tensor, threads=1)(X, 1)
    product = Explainer(residual_cnn(), "input-x-gradient", at=tensor, threads=1)(X, 1)
    _close(product.relevance[tensor], gradient.relevance[tensor] * gradient.inputs[tensor])


def test_a_converted_model_explains_the_tensor_too(tmp_path: Path) -> None:
    import onnxruntime

    tensor = _inner()[0]
    explainer = Explainer(residual_cnn(), "lrp-epsilon-plus", at=tensor, threads=1)
    explainer.convert(tmp_path / "e.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "e.onnx", providers=["CPUExecutionProvider"])
    [theirs] = session.run([f"{tensor}_relevance"], {"picture": X, "target": np.asarray([1, 1, 1])})
    _close(theirs, explainer(X, 1).relevance[tensor])
    onnx.checker.check_model(onnx.load(tmp_path / "e.onnx"), full_check=True)


@pytest.mark.parametrize(("name", "told"), [("nowhere", "no tensor 'nowhere'"), (7, "name")])
def test_a_tensor_that_is_not_there_is_named(name: Any, told: str) -> None:
    with pytest.raises(Exception, match=told) as error:
        Explainer(residual_cnn(), at=name, threads=1)(X)
    assert type(error.value).__module__ == "onnx_explain.errors"


def test_the_explained_output_itself_is_no_place_to_stop_at_but_what_it_is() -> None:
    name = residual_cnn().graph.output[0].name
    with pytest.raises(TargetError, match="does not lie between"):
        Explainer(residual_cnn(), at=name, threads=1)(X)
