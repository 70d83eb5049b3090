"""The explained file: original inputs and outputs first, relevance after, standard ONNX, small, of any batch, and the same
numbers as the Explainer in a process that cannot import this package.
"""

from __future__ import annotations

import errno
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper, parser
from ready import CONVERTIBLE, ready

import onnx_explain
from onnx_explain import METHODS, Explainer, ExplainError, OutputError, TargetError, VerificationError
from onnx_explain.backends import onnx as backend
from onnx_explain.explanation import plain_option

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]

SAME = 1e-6  # float32, of the largest value: the same graph, but ONNX Runtime may pick other kernels for another batch
OVERHEAD = 48_000  # bytes the backward half of a ten-layer network may add: nodes, names, small constants
REPRESENTATIVE = ("gradient", "lrp-epsilon", "lrp-gamma", "lrp-epsilon-plus-flat", "excitation-backprop", "rap")


def model(text: str, *, opset: int = 18, **weights: Any) -> onnx.ModelProto:
    """A model from ONNX's text form, with its initialisers as arrays."""
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]>\n{text}')
    for name, array in weights.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return proto


def drawn(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def residual_cnn(batch: str = "N", width: int = 8) -> onnx.ModelProto:
    """Stem, BatchNormalization, a residual block, max pooling, global pooling, Gemm, Softmax."""
    w = width
    proto = model(
        f"""g (float[{batch},3,16,16] picture) => (float[{batch},5] scores) {{
             [stem] c1 = Conv<pads=[1,1,1,1]>(picture, w1, b1)
             [stem_bn] n1 = BatchNormalization(c1, s1, h1, m1, v1)
             [stem_relu] r1 = Relu(n1)
             [pool] p1 = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r1)
             [block_conv] c2 = Conv<pads=[1,1,1,1]>(p1, w2)
             [block_relu] r2 = Relu(c2)
             [block_add] a2 = Add(r2, p1)
             [gap] g = GlobalAveragePool(a2)
             [flat] f = Flatten(g)
             [head] logits = Gemm<transB=1>(f, w3, b3)
             [prob] scores = Softmax<axis=1>(logits)
           }}""",
        w1=drawn(w, 3, 3, 3), b1=drawn(w, seed=1), s1=np.abs(drawn(w, seed=2)) + 0.5, h1=drawn(w, seed=3),
        m1=drawn(w, seed=4), v1=np.abs(drawn(w, seed=5)) + 0.5, w2=drawn(w, w, 3, 3, seed=6) / 4,
        w3=drawn(5, w, seed=7), b3=drawn(5, seed=8),
    )  # fmt: skip
    return proto


X = drawn(8, 3, 16, 16, seed=9)


def quiet() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    return options


def run(explained: onnx.ModelProto | Path, feeds: Mapping[str, Any]) -> Arrays:
    """Every output in stock ONNX Runtime."""
    source = str(explained) if isinstance(explained, Path) else explained.SerializeToString()
    session = onnxruntime.InferenceSession(source, quiet(), providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds))))


def assert_same(found: Array, wanted: Array, tolerance: float = SAME) -> None:
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * float(np.abs(wanted).max(initial=1e-30)))


def renamed(proto: onnx.ModelProto, **names: str) -> onnx.ModelProto:
    """The model with tensors called otherwise."""
    fresh = onnx.ModelProto()
    fresh.CopyFrom(proto)
    for node in fresh.graph.node:
        for names_of in (node.input, node.output):
            names_of[:] = [names.get(n, n) for n in names_of]
    for value in (*fresh.graph.input, *fresh.graph.output, *fresh.graph.initializer):
        value.name = names.get(value.name, value.name)
    return fresh


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "cnn.onnx"
    onnx.save(residual_cnn(), path)
    return path


SAMPLING = {m for m in METHODS if "random_seed" in METHODS[m].options}


@pytest.fixture(scope="module", params=CONVERTIBLE)
def converted(
    request: pytest.FixtureRequest, source: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Explainer, Path]:
    """(explainer, explained file), once per method."""
    explainer = Explainer(source, request.param, threads=1, **ready(request.param, source, X))
    path = tmp_path_factory.mktemp("explained") / f"{request.param}.onnx"
    explainer.convert(path)
    return explainer, path


# ------------------------------------------------------------------------------------------- the file, for every method


def test_original_inputs_and_outputs_come_first(converted: tuple[Explainer, Path]) -> None:
    graph = onnx.load(converted[1]).graph
    assert [v.name for v in graph.input] == ["picture", "target"]
    assert [v.name for v in graph.output] == ["scores", "picture_relevance"]
    original = residual_cnn().graph
    relevance, picture = graph.output[1].type.tensor_type, original.input[0].type.tensor_type
    assert graph.input[0].type.tensor_type.elem_type == picture.elem_type == relevance.elem_type
    assert [d.dim_value for d in relevance.shape.dim] == [d.dim_value for d in picture.shape.dim]
    assert graph.input[1].type.tensor_type.elem_type == TensorProto.INT64
    assert [i.name for i in graph.initializer if i.name == "target"] == ["target"], (
        "without a default, target is not optional"
    )


def test_the_file_is_valid_standard_onnx(converted: tuple[Explainer, Path]) -> None:
    onnx.checker.check_model(str(converted[1]), full_check=True)
    proto = onnx.load(converted[1])
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    assert {n.domain for n in proto.graph.node} <= {"", "ai.onnx"}
    assert {o.domain for o in proto.opset_import} <= {"", "ai.onnx"}
    assert not proto.functions


@pytest.mark.parametrize("count", [1, 3, 8])
def test_any_batch_gives_the_explainers_numbers(converted: tuple[Explainer, Path], count: int) -> None:
    explainer, path = converted
    e, found = explainer(X[:count]), run(path, {"picture": X[:count]})
    assert_same(found["scores"], e.outputs["scores"])
    assert_same(found["picture_relevance"], e.relevance["picture"])


def test_the_target_is_one_per_sample_or_one_for_all_and_arg_max_without(converted: tuple[Explainer, Path]) -> None:
    explainer, path = converted
    each = np.array([4, 0, 2])
    assert_same(
        run(path, {"picture": X[:3], "target": each})["picture_relevance"],
        explainer(X[:3], target=each).relevance["picture"],
    )
    assert_same(
        run(path, {"picture": X[:3], "target": each[:1]})["picture_relevance"],
        explainer(X[:3], target=4).relevance["picture"],
    )
    best = run(path, {"picture": X[:3]})["scores"].argmax(1)
    with_target = run(path, {"picture": X[:3], "target": best})["picture_relevance"]
    assert_same(run(path, {"picture": X[:3]})["picture_relevance"], with_target)


def test_two_pictures_give_two_maps(converted: tuple[Explainer, Path]) -> None:
    r = run(converted[1], {"picture": X[:2], "target": np.array([1, 1])})["picture_relevance"]
    assert np.isfinite(r).all()
    if np.abs(r).max() == 0:  # positive_seed: a negative score starts nothing
        assert converted[0].method == "deep-taylor"
        r = run(converted[1], {"picture": X[:2]})["picture_relevance"]
    assert np.abs(r[0] - r[1]).max() > 1e-3 * np.abs(r).max(), "a constant heat map (captum#1778)"


def test_an_auditor_reads_method_version_options_and_source_off_the_file(
    converted: tuple[Explainer, Path], source: Path
) -> None:
    explainer, path = converted
    props = {p.key: p.value for p in onnx.load(path).metadata_props}
    assert props["onnx_explain.method"] == explainer.method
    assert props["onnx_explain.version"] == onnx_explain.__version__
    assert json.loads(props["onnx_explain.options"]) == {k: plain_option(v) for k, v in explainer.options.items()}
    assert props["onnx_explain.source_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()


def nodes_of(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes of a graph and of the bodies of its loops."""
    bodies = [a.g for n in graph.node for a in n.attribute if a.type == onnx.AttributeProto.GRAPH]
    return [*graph.node, *(n for body in bodies for n in nodes_of(body))]


def test_inserted_nodes_are_called_after_their_forward_nodes(converted: tuple[Explainer, Path]) -> None:
    nodes = nodes_of(onnx.load(converted[1]).graph)
    forward = {n.name for n in residual_cnn().graph.node}
    own = (n.name.removeprefix("explain/step/") for n in nodes if n.name not in forward)  # a step: the body of a loop
    served = [name.removeprefix("explain/").rpartition("/")[0] for name in own]
    served = [name for name in served if name not in ("", "step", "sum")]
    assert all(n.name.startswith("explain/") for n in nodes if n.name not in forward)
    tensors = {"target", "picture", *(o for n in residual_cnn().graph.node for o in n.output)}
    assert {name.removeprefix("reference/") for name in served} <= forward | tensors
    weighted = {"head"} if converted[0](X[:1]).layer else {"stem", "block_conv", "head"}
    assert weighted <= set(served), "every weighted layer on the way has its backward half"
    assert len({n.name for n in nodes}) == len(nodes)


def test_each_weight_is_stored_once(converted: tuple[Explainer, Path], source: Path) -> None:
    if {"patterns", "baselines", "random_seed"} & set(converted[0].options) | SAMPLING & {converted[0].method}:
        pytest.skip("what was fitted, the baselines and the table of random numbers are in the file too")
    kept = {hashlib.sha256(i.SerializeToString()).hexdigest() for i in onnx.load(source).graph.initializer}
    proto = onnx.load(converted[1])
    added = [i for i in proto.graph.initializer if hashlib.sha256(i.SerializeToString()).hexdigest() not in kept]
    assert max(int(np.prod(i.dims)) for i in added) <= 16, "only axes, shapes and scalars are added"
    assert converted[1].stat().st_size <= source.stat().st_size + OVERHEAD


def test_the_overhead_does_not_grow_with_the_weights(tmp_path: Path) -> None:
    sizes = {}
    for width in (8, 64):
        onnx.save(residual_cnn(width=width), tmp_path / f"{width}.onnx")
        Explainer(tmp_path / f"{width}.onnx", "rap").convert(tmp_path / f"{width}.out.onnx")
        sizes[width] = (tmp_path / f"{width}.out.onnx").stat().st_size - (tmp_path / f"{width}.onnx").stat().st_size
    assert abs(sizes[64] - sizes[8]) < 2000, sizes


def test_folding_stores_constants_and_keeps_the_numbers(converted: tuple[Explainer, Path]) -> None:
    explainer, path = converted
    folded, plain = explainer.convert(fold=True), onnx.load(path)
    assert_same(run(folded, {"picture": X})["picture_relevance"], run(path, {"picture": X})["picture_relevance"])
    onnx.checker.check_model(folded, full_check=True)
    constant = {i.name for i in folded.graph.initializer} - {"target"}
    assert [n.name for n in folded.graph.node if n.input and set(n.input) <= constant] == []
    assert len(folded.graph.node) <= len(plain.graph.node)


def test_functions_keep_the_composites_and_the_numbers(converted: tuple[Explainer, Path]) -> None:
    explainer, path = converted
    if METHODS[explainer.method].family == "path":
        pytest.skip("the body of a loop is expanded")
    proto = explainer.convert(functions=True)
    onnx.checker.check_model(proto, full_check=True)
    assert_same(run(proto, {"picture": X})["picture_relevance"], run(path, {"picture": X})["picture_relevance"])
    assert {f.domain for f in proto.functions} == {"ai.onnx_explain"}
    assert {n.domain for f in proto.functions for n in f.node} <= {""}, "functions of plain ONNX"
    called = {(n.domain, n.op_type) for n in proto.graph.node if n.domain}
    assert called == {(f.domain, f.name) for f in proto.functions}


ISOLATED = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in ("numpy", "onnxruntime") and name.partition(".")[0] in BLOCKED:
            raise ImportError(name + " is not to be imported")
BLOCKED = {"onnx_explain", "onnx", "onnx_ir", "onnxscript", "torch", "matplotlib"}
sys.meta_path.insert(0, Blocker())
import numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.log_severity_level, options.intra_op_num_threads = 4, 1
stored = numpy.load(sys.argv[1])
for path in sys.argv[2:]:
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    scores, r = session.run(["scores", "picture_relevance"], {"picture": stored["x"]})
    wanted = stored[path]
    assert r.shape == wanted.shape and abs(r - wanted).max() <= 1e-6 * abs(wanted).max(), path
assert not BLOCKED & {name.partition(".")[0] for name in sys.modules}
print("ran", len(sys.argv) - 2)
"""


def test_the_files_run_where_only_onnxruntime_and_numpy_are(source: Path, tmp_path: Path) -> None:
    stored: Arrays = {"x": X[:3]}
    for name in CONVERTIBLE:
        explainer, path = Explainer(source, name, threads=1, **ready(name, source, X)), tmp_path / f"{name}.onnx"
        explainer.convert(path, functions=name == "lrp-gamma", fold=name == "lrp-z-plus")
        stored[str(path)] = explainer(X[:3]).relevance["picture"]
    np.savez(tmp_path / "stored.npz", **stored)
    command = [sys.executable, "-I", "-c", ISOLATED, str(tmp_path / "stored.npz"), *(p for p in stored if p != "x")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["ran", str(len(CONVERTIBLE))]


# ------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize("method", REPRESENTATIVE)
def test_kept_tensors_have_their_relevance_as_outputs(method: str) -> None:
    proto = Explainer(residual_cnn(), method, threads=1).convert(keep=["a2", "p1"])
    assert [o.name for o in proto.graph.output] == ["scores", "picture_relevance", "a2_relevance", "p1_relevance"]
    onnx.checker.check_model(proto, full_check=True)
    found = run(proto, {"picture": X[:2]})
    e = Explainer(residual_cnn(), method, keep=["a2", "p1"], threads=1)(X[:2])
    assert found["a2_relevance"].shape == (2, 8, 8, 8)
    for name in ("a2", "p1"):
        assert_same(found[f"{name}_relevance"], e.kept[name])
    if method in ("lrp-epsilon", "rap"):
        score, arrived = e.target.score, e.kept["a2"].astype(np.float64).sum((1, 2, 3))
        biases = 0.0 if method == "rap" else 1.0  # ε leaves relevance to the head's bias
        assert np.all(np.abs(score - arrived) <= 1e-4 * np.abs(score) + biases * np.abs(drawn(5, seed=8)).max())


def test_options_and_seed_stand_in_the_metadata() -> None:
    proto = Explainer(residual_cnn(), "rap", variant="published", seed="one").convert()
    props = {p.key: p.value for p in proto.metadata_props}
    assert json.loads(props["onnx_explain.options"]) == {"variant": "published"}
    assert props["onnx_explain.seed"] == "one"
    assert props["onnx_explain.explained"] == "logits"


def test_a_fixed_batch_stays_fixed() -> None:
    proto = Explainer(residual_cnn(batch="1"), "lrp-epsilon", threads=1).convert()
    assert [d.dim_value for d in proto.graph.output[1].type.tensor_type.shape.dim] == [1, 3, 16, 16]
    assert_same(
        run(proto, {"picture": X[:1]})["picture_relevance"],
        Explainer(residual_cnn(), "lrp-epsilon", threads=1)(X[:1]).relevance["picture"],
    )


def test_bytes_and_protos_convert_as_files_do(source: Path, tmp_path: Path) -> None:
    wanted = run(Explainer(source, "lrp-gamma").convert(), {"picture": X})["picture_relevance"]
    before = residual_cnn()
    for given in (source.read_bytes(), before):
        path = tmp_path / "out.onnx"
        Explainer(given, "lrp-gamma").convert(path)
        assert_same(run(path, {"picture": X})["picture_relevance"], wanted)
    assert before == residual_cnn(), "the user's model is never mutated"


def test_a_model_with_external_data_converts(tmp_path: Path) -> None:
    folder, other = tmp_path / "model", tmp_path / "other"
    folder.mkdir()
    other.mkdir()
    onnx.save(residual_cnn(), folder / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    data = (folder / "weights.bin").read_bytes()
    wanted = run(Explainer(residual_cnn(), "rap").convert(), {"picture": X})["picture_relevance"]
    for place in (folder / "out.onnx", other / "out.onnx"):
        Explainer(folder / "m.onnx", "rap").convert(place)
        assert_same(run(place, {"picture": X})["picture_relevance"], wanted)
    assert (folder / "weights.bin").read_bytes() == data


def two_by_two() -> onnx.ModelProto:
    """Two inputs of floats, one of integers, one of booleans; two float outputs and one of integers."""
    return model(
        """g (float[N,2,6,6] left, float[N,2,6,6] right, int64[N,1] bias, bool[N,4,6,6] mask)
           => (float[N,3] y, float[N,4,1,1] pooled, int64[N,1] best) {
             a = Conv<pads=[1,1,1,1]>(left, w)
             b = Conv<pads=[1,1,1,1]>(right, w)
             s = Add(a, b)
             r = Relu(s)
             q = Where(mask, r, s)
             pooled = GlobalAveragePool(q)
             f = Flatten(q)
             m = MatMul(f, k)
             i = Cast<to=1>(bias)
             y = Add(m, i)
             best = ArgMax<axis=1>(y)
           }""",
        w=drawn(4, 2, 3, 3), k=drawn(144, 3),
    )  # fmt: skip


def two_feeds() -> Arrays:
    mask = np.random.default_rng(3).random((2, 4, 6, 6)) < 0.5
    return {"left": drawn(2, 2, 6, 6), "right": drawn(2, 2, 6, 6, seed=1), "bias": np.array([[1], [2]]), "mask": mask}


@pytest.mark.parametrize("method", CONVERTIBLE)
def test_several_inputs_and_outputs(method: str) -> None:
    if "patterns" in METHODS[method].options:
        pytest.skip("an input of integers multiplies as a weight there, and has no pattern")
    explainer = Explainer(two_by_two(), method, threads=1, **ready(method, two_by_two(), two_feeds()))
    e, proto = explainer(two_feeds(), target=[0, 2]), explainer.convert()
    onnx.checker.check_model(proto, full_check=True)
    assert [i.name for i in proto.graph.input] == ["left", "right", "bias", "mask", "target"]
    assert [o.name for o in proto.graph.output] == ["y", "pooled", "best", "left_relevance", "right_relevance"]
    found = run(proto, {**two_feeds(), "target": np.array([0, 2])})
    for name in ("left", "right"):
        assert_same(found[f"{name}_relevance"], e.relevance[name])
    assert np.array_equal(found["best"], run(two_by_two(), two_feeds())["best"])


# ------------------------------------------------------------------------------------------- names


NAMES: dict[str, dict[str, str]] = {
    "an input is called target": {"picture": "target"},
    "a weight is called target": {"w1": "target"},
    "an inner tensor is called target": {"r1": "target"},
    "an output is called target": {"scores": "target"},
    "an input and a weight take target and explain_target": {"picture": "target", "w1": "explain_target"},
    "an output is called like the relevance": {"scores": "picture_relevance"},
    "an inner tensor is called like the relevance": {"r1": "picture_relevance"},
    "a weight is called like the relevance": {"w1": "picture_relevance"},
    "an inner tensor is called like a report": {"r1": "explain_score"},
    "an output is called like a report": {"scores": "explain_absorbed"},
    "tensors are called like our constants": {
        "r1": "explain/constant",
        "w1": "explain/constant_1",
        "p1": "explain/stem/Conv_out",
    },
    "slashes and colons": {"picture": "serving/default:0", "scores": "StatefulPartitionedCall:0", "r1": "a/b//c:0"},
    "unicode": {"picture": "Bild–ä", "scores": "スコア", "r1": "😀"},
    "blanks and quotes": {"picture": "the input", "scores": 'it\'s "out"', "r1": "a\tb"},
    "numbers": {"picture": "0", "scores": "1", "r1": "2"},
}


@pytest.mark.parametrize("label", NAMES)
def test_any_name_of_a_tensor_will_do(label: str, tmp_path: Path) -> None:
    names = NAMES[label]
    proto = renamed(residual_cnn(), **names)
    picture, scores = names.get("picture", "picture"), names.get("scores", "scores")
    explainer = Explainer(proto, "lrp-epsilon-plus", threads=1)
    e = explainer(X[:2], target=[1, 2])
    wanted = Explainer(residual_cnn(), "lrp-epsilon-plus", threads=1)(X[:2], target=[1, 2])
    assert_same(e.relevance[picture], wanted.relevance["picture"])
    assert_same(e.outputs[scores], wanted.outputs["scores"])
    explained = explainer.convert(tmp_path / "out.onnx")
    onnx.checker.check_model(explained, full_check=True)
    chooser = explained.graph.input[1].name
    props = {p.key: p.value for p in explained.metadata_props}
    found = run(tmp_path / "out.onnx", {picture: X[:2], chooser: np.array([1, 2])})
    assert list(found)[0] == scores
    assert_same(found[json.loads(props["onnx_explain.relevance"])[picture]], wanted.relevance["picture"])


@pytest.mark.parametrize("name", ["", "a/b:c", "ä 😀", "explain/stem/Conv"])
def test_any_name_of_a_node_will_do(name: str) -> None:
    proto = residual_cnn()
    for index, node in enumerate(proto.graph.node):
        node.name = name and f"{name}{index}"
    explained = Explainer(proto, "rap", threads=1).convert()
    onnx.checker.check_model(explained, full_check=True)
    wanted = Explainer(residual_cnn(), "rap", threads=1)(X[:2]).relevance["picture"]
    assert_same(run(explained, {"picture": X[:2]})["picture_relevance"], wanted)


def test_nodes_of_one_name_are_told_apart() -> None:
    """ONNX's checker accepts them, ONNX Runtime does not: ours explains all the same, or says so."""
    proto = residual_cnn()
    for node in proto.graph.node:
        node.name = "same"
    wanted = Explainer(residual_cnn(), "lrp-epsilon", threads=1)(X[:2]).relevance["picture"]
    assert_same(Explainer(proto, "lrp-epsilon", threads=1)(X[:2]).relevance["picture"], wanted)
    try:
        explained = Explainer(proto, "lrp-epsilon", threads=1).convert()
    except ExplainError as error:
        assert "same" in str(error)
    else:
        assert_same(run(explained, {"picture": X[:2]})["picture_relevance"], wanted)


# ------------------------------------------------------------------------------------------- where it is written


def test_the_source_is_never_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(residual_cnn(), path)
    before = path.read_bytes()
    (tmp_path / "link.onnx").symlink_to(path)
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    for out in (path, "m.onnx", "folder/../m.onnx", "link.onnx"):
        with pytest.raises(OutputError, match="source"):
            Explainer(path, "gradient").convert(out)
    with pytest.raises(OutputError, match="source"):
        Explainer("link.onnx", "gradient").convert(path)
    (tmp_path / "hard.onnx").hardlink_to(path)
    try:
        Explainer(path, "gradient").convert("hard.onnx")
    except OutputError:
        pass
    assert path.read_bytes() == before, "a hard link is another name of the same bytes"


def test_the_sources_data_file_is_never_overwritten(tmp_path: Path) -> None:
    onnx.save(residual_cnn(), tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    before = (tmp_path / "m.data").read_bytes()
    with pytest.raises(OutputError, match="source|data"):
        Explainer(tmp_path / "m.onnx", "gradient").convert(tmp_path / "m.data")
    assert (tmp_path / "m.data").read_bytes() == before


def _wrong(proto_or_path: Any) -> Callable[..., Any]:
    """`Session.run` that adds one to every output of the explained model."""
    original = backend.Session.run

    def run_wrong(self: Any, feeds: Any, outputs: Any = None) -> Any:
        found = original(self, feeds, outputs)
        return {n: a + 1 if any(o.endswith("_relevance") for o in self.outputs) else a for n, a in found.items()}

    return run_wrong


def test_a_failed_check_leaves_no_file(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend.Session, "run", _wrong(None))
    with pytest.raises(VerificationError, match="scores"):
        Explainer(source, "gradient").convert(tmp_path / "out.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_check_leaves_an_earlier_file_alone(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.onnx"
    Explainer(source, "gradient").convert(path)
    before = path.read_bytes()
    monkeypatch.setattr(backend.Session, "run", _wrong(None))
    with pytest.raises(VerificationError):
        Explainer(source, "saliency").convert(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["out.onnx"]


@pytest.mark.parametrize("large", [False, True], ids=["one message", "with a data file"])
@pytest.mark.parametrize("failure", [KeyboardInterrupt, MemoryError, OSError(errno.ENOSPC, "No space left on device")])
def test_an_interruption_while_writing_leaves_no_file(
    failure: Any, large: bool, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnx_explain.ir import message

    explainer, write_bytes = Explainer(source, "gradient"), Path.write_bytes

    def fail(path: Path, *_: Any) -> None:
        write_bytes(path, b"half")
        raise failure

    if large:
        monkeypatch.setattr(message, "too_large", lambda _: True)
        monkeypatch.setattr(message.ir, "save", lambda _, path, **__: fail(path))
    else:
        monkeypatch.setattr(Path, "write_bytes", fail)
    wanted = OutputError if isinstance(failure, OSError) else failure
    with pytest.raises(wanted):
        explainer.convert(tmp_path / "out.onnx")
    assert list(tmp_path.iterdir()) == []


PLACES: dict[str, Callable[[Path], Any]] = {
    "a folder": lambda p: p,
    "a folder that does not exist": lambda p: p / "nowhere" / "out.onnx",
    "a file as a folder": lambda p: p / "file" / "out.onnx",
    "no name": lambda p: "",
    "a name with a zero byte": lambda p: "out\0.onnx",
    "a name that is too long": lambda p: p / ("x" * 5000),
    "a number": lambda p: 3,
    "a pipe": lambda p: p / "pipe",
}


@pytest.mark.parametrize("label", PLACES)
def test_a_place_that_cannot_be_written_is_named(label: str, tmp_path: Path) -> None:
    import os

    (tmp_path / "file").write_text("text")
    os.mkfifo(tmp_path / "pipe")
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(OutputError) as caught:
        Explainer(residual_cnn(), "gradient").convert(PLACES[label](tmp_path))
    assert "\n" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    assert (tmp_path / "pipe").is_fifo()


def test_a_folder_without_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    def denied(*_: Any, **__: Any) -> str:
        raise PermissionError(errno.EACCES, "Permission denied")

    explainer = Explainer(residual_cnn(), "gradient")  # made before: the check needs no scratch space
    monkeypatch.setattr(tempfile, "mkdtemp", denied)  # permissions do not stop the root user that tests may run as
    monkeypatch.setattr(tempfile, "mkstemp", denied)
    with pytest.raises(OutputError, match="cannot be written: Permission denied"):
        explainer.convert(tmp_path / "out.onnx")
    assert list(tmp_path.iterdir()) == []


def test_keeping_an_unknown_tensor_says_which_one_is_meant() -> None:
    with pytest.raises(TargetError, match="'logit'.*'logits'"):
        Explainer(residual_cnn(), "gradient").convert(keep=["logit"])


def test_a_kept_name_may_be_given_alone() -> None:
    proto = Explainer(residual_cnn(), "gradient").convert(keep="logits")
    assert [o.name for o in proto.graph.output][2:] == ["logits_relevance"]
