"""scikit-learn's linear models and preprocessing as primitives: the same numbers as ONNX Runtime's kernels, and explained."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_explain import Explainer, UnsupportedOperator
from onnx_explain.backends.onnx import lower
from onnx_explain.ir import unfuse
from onnx_explain.ir.canonicalize import canonicalize
from onnx_explain.ir.model import load

X = np.array([[1.0, -2.0], [-0.5, 0.75], [0.0, 0.0]], np.float32)
LINEAR: dict[str, Any] = {"coefficients": [0.5, -0.2, 0.3, 0.1], "intercepts": [0.1, -0.1]}
ONE_ROW: dict[str, Any] = {"coefficients": [0.5, -0.2], "intercepts": [0.1], "classlabels_ints": [3, 7]}
NAN = np.array([[np.nan, 1.0], [2.0, np.nan], [0.0, 5.0]], np.float32)
TABLE: list[tuple[str, dict[str, Any], np.ndarray]] = [
    *(("LinearRegressor", {**LINEAR, "targets": 2, "post_transform": p}, X) for p in ("NONE", "LOGISTIC", "SOFTMAX")),
    ("LinearRegressor", {"coefficients": [0.5, -0.2]}, X),
    *(
        ("LinearClassifier", {**LINEAR, "classlabels_ints": [3, 7], "post_transform": p}, X)
        for p in ("NONE", "LOGISTIC", "SOFTMAX")
    ),
    *(("LinearClassifier", {**ONE_ROW, "post_transform": p}, X) for p in ("NONE", "LOGISTIC", "SOFTMAX")),
    ("LinearClassifier", {**LINEAR, "classlabels_strings": ["cat", "dog"]}, X),
    ("Scaler", {"offset": [1.0, 2.0], "scale": [2.0, 3.0]}, X),
    ("Scaler", {"offset": [1.0], "scale": [2.0]}, X),
    *(("Normalizer", {"norm": n}, X) for n in ("MAX", "L1", "L2")),
    ("Imputer", {"imputed_value_floats": [5.0, 6.0], "replaced_value_float": float("nan")}, NAN),
    ("Imputer", {"imputed_value_floats": [5.0], "replaced_value_float": 0.0}, X),
    ("FeatureVectorizer", {"inputdimensions": [2]}, X),
]


def model(op: str, said: dict[str, Any], opset: int = 17) -> onnx.ModelProto:
    """One node, its result `y`; a classifier's labels are an output too."""
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", None])]
    names = ["y"]
    if op == "LinearClassifier":
        kind = TensorProto.STRING if "classlabels_strings" in said else TensorProto.INT64
        outputs.insert(0, helper.make_tensor_value_info("label", kind, ["N"]))
        names.insert(0, "label")
    node = helper.make_node(op, ["x"], names, domain="ai.onnx.ml", **said)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", 1)]
    return helper.make_model(helper.make_graph([node], op, [x], outputs), opset_imports=imports, ir_version=8)


def run(proto: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, {"x": x}))


@pytest.mark.parametrize("op, said, x", TABLE)
@pytest.mark.parametrize("opset", [12, 17])
def test_the_primitives_compute_what_the_kernel_does(op: str, said: dict[str, Any], x: np.ndarray, opset: int) -> None:
    proto = model(op, said, opset)
    canonical = canonicalize(load(proto).model)
    assert {node.domain for node in canonical.graph} == {""}
    for ours, theirs in zip(run(ir.to_proto(lower(canonical)), x), run(proto, x), strict=True):
        if theirs.dtype == np.float32:
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
        else:
            assert ours.tolist() == theirs.tolist()


def picked(x: np.ndarray) -> tuple[onnx.ModelProto, np.ndarray]:
    """Columns of x by ArrayFeatureExtractor."""
    node = helper.make_node("ArrayFeatureExtractor", ["x", "i"], ["y"], domain="ai.onnx.ml")
    proto = model("Scaler", {})
    proto.graph.node[0].CopyFrom(node)
    proto.graph.initializer.append(numpy_helper.from_array(np.array([1, 0, 1]), "i"))
    return proto, x[:, [1, 0, 1]]


def test_columns_are_picked() -> None:
    proto, expected = picked(X)
    np.testing.assert_array_equal(run(ir.to_proto(lower(canonicalize(load(proto).model))), X)[0], expected)
    assert Explainer(proto, method="gradient")(X[:1], target=2).relevance["x"].tolist() == [[0.0, 1.0]]


def test_every_operator_that_is_written_out_is_tested_here() -> None:
    unfuse.register()
    tested = {op for op, _, _ in TABLE} | {"ArrayFeatureExtractor"}
    assert tested == {op for domain, op in unfuse.EXPANSIONS if domain == unfuse.CLASSIC}


def test_a_linear_classifier_is_explained_by_its_coefficients() -> None:
    proto = model("LinearClassifier", {**LINEAR, "classlabels_ints": [3, 7], "post_transform": "SOFTMAX"})
    e = Explainer(proto, method="input-x-gradient")(X[:1], target=1)
    np.testing.assert_allclose(e.relevance["x"], X[:1] * np.array([[0.3, 0.1]]), rtol=1e-5)


def test_a_scaled_regression_is_explained_as_one() -> None:
    proto = model("Scaler", {"offset": [1.0, 2.0], "scale": [2.0, 3.0]})
    e = Explainer(proto, method="gradient")(X[:1], target=1)
    assert e.relevance["x"].tolist() == [[0.0, 3.0]]


def test_an_unusual_transform_of_scores_is_refused_by_name() -> None:
    proto = model("LinearRegressor", {**LINEAR, "targets": 2, "post_transform": "PROBIT"})
    with pytest.raises(UnsupportedOperator, match="LinearRegressor.*PROBIT"):
        Explainer(proto)
