"""Class activation maps: their formulas against stored arrays, the way over the input in every layout, and what is refused."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import onnxruntime
import pytest

from onnx_explain import METHODS, Explainer, MethodError, TargetError

Array = npt.NDArray[Any]
HERE = Path(__file__).parent / "golden"
SHARED = Path(__file__).resolve().parents[2] / "shared" / "golden" / "classic"
LAYER = "/relu3/Relu_output_0"
CAMS = {
    "grad-cam": "GradCAM",
    "grad-cam-plus-plus": "GradCAMPlusPlus",
    "hires-cam": "HiResCAM",
    "layer-cam": "LayerCAM",
    "xgrad-cam": "XGradCAM",
}
BACKENDS = [("reference", 1e-9), ("onnx", 1e-5)]


@lru_cache(maxsize=2)
def _arrays(net: str) -> tuple[Path, dict[str, Array]] | None:
    for folder in (SHARED, HERE):
        if (folder / f"{net}.f64.npz").is_file() and (folder / f"{net}.onnx").is_file():
            with np.load(folder / f"{net}.f64.npz") as stored:
                wanted = ("x", "target", "cam_layer/activation", "cam_layer/gradient")
                found = {k: stored[k] for k in stored.files if "cam" in k or "CAM" in k or k in wanted}
            if "pytorch_grad_cam/GradCAM_raw" in found:
                return folder / f"{net}.onnx", found
    return None


def _golden(net: str) -> tuple[Path, dict[str, Array]]:
    found = _arrays(net)
    if found is None:
        pytest.skip("../shared is absent, and the CAM arrays are not committed")
    return found


def _close(ours: Array, theirs: Array, limit: float) -> None:
    assert ours.shape == theirs.shape
    assert np.isfinite(ours).all()
    assert np.abs(ours - theirs).max() <= limit * max(float(np.abs(theirs).max()), 1e-30)


@pytest.mark.parametrize(("backend", "limit"), BACKENDS, ids=["float64", "float32"])
@pytest.mark.parametrize("method", CAMS)
@pytest.mark.parametrize("net", ["vggish", "bnnet"])
def test_the_layers_map_is_the_peers(net: str, method: str, backend: Any, limit: float) -> None:
    path, arrays = _golden(net)
    x, target = arrays["x"].astype(np.float32), [int(t) for t in arrays["target"]]
    r = Explainer(path, method, layer=LAYER, at=LAYER, backend=backend)(x, target=target).relevance[LAYER]
    assert r.shape == arrays["cam_layer/activation"].shape
    raw = arrays[f"pytorch_grad_cam/{CAMS[method]}_raw"]
    _close(r.sum(axis=1), raw.reshape(r[:, 0].shape), limit)
    if method == "grad-cam":
        _close(r.sum(axis=1, keepdims=True), arrays["captum/gradcam"], limit)


@pytest.mark.parametrize("method", CAMS)
@pytest.mark.parametrize("net", ["vggish", "bnnet"])
def test_the_inputs_map_is_the_peers_up_to_its_scaling(net: str, method: str) -> None:
    path, arrays = _golden(net)
    x, target = arrays["x"].astype(np.float32), [int(t) for t in arrays["target"]]
    e = Explainer(path, method, relu=True, backend="reference")(x, target=target)
    assert e.layer == LAYER
    heat = e.heatmap()
    scaled = heat - heat.min(axis=(1, 2), keepdims=True)
    # the peer scales before and after resizing, and resizes in float32
    scaled = scaled / np.maximum(scaled.max(axis=(1, 2), keepdims=True), 1e-30)
    _close(scaled, arrays[f"pytorch_grad_cam/{CAMS[method]}_scaled_upsampled"].reshape(scaled.shape), 1e-6)


# ------------------------------------------------------------------------------------------- own small models


def _model(text: str, **shapes: tuple[int, ...]) -> onnx.ModelProto:
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> {text}')
    draw = np.random.default_rng(4)
    for name, shape in shapes.items():
        array = draw.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return model


HEAD = "g = GlobalAveragePool(a)  f = Flatten(g)  y = MatMul(f, v)"
WEIGHTS: dict[str, tuple[int, ...]] = {"w": (6, 3, 3, 3), "v": (6, 4)}


def _pictures(batch: str = "N") -> onnx.ModelProto:
    return _model(
        f"g (float[{batch},3,8,10] x) => (float[{batch},4] y) {{ c = Conv<strides=[2,2],pads=[1,1,1,1]>(x, w) a = Relu(c) {HEAD} }}",
        **WEIGHTS,
    )


def _channels_last() -> onnx.ModelProto:
    return _model(
        "g (float[N,8,10,3] x) => (float[N,4] y) { t = Transpose<perm=[0,3,1,2]>(x)"
        f" c = Conv<strides=[2,2],pads=[1,1,1,1]>(t, w) a = Relu(c) {HEAD} }}",
        **WEIGHTS,
    )


def _drawn(*shape: int) -> Array:
    return np.random.default_rng(6).standard_normal(shape).astype(np.float32)


def _doubled(m: Array, size: tuple[int, ...]) -> Array:
    """Linear resizing with half-pixel places, axis by axis, by hand."""
    for axis, out in enumerate(size, start=1):
        old = m.shape[axis]
        places = np.clip((np.arange(out) + 0.5) * old / out - 0.5, 0, old - 1)
        low = np.minimum(np.floor(places).astype(int), max(old - 2, 0))
        part = (places - low).reshape(-1, *[1] * (m.ndim - axis - 1))
        m = np.take(m, low, axis) * (1 - part) + np.take(m, np.minimum(low + 1, old - 1), axis) * part
    return m


@pytest.mark.parametrize("method", CAMS)
def test_the_map_is_the_layers_resized_and_the_channels_share_it(method: str) -> None:
    x = _drawn(2, 3, 8, 10)
    relu = bool(METHODS[method].options["relu"])
    assert relu == (method != "hires-cam")
    layer = Explainer(_pictures(), method, layer="a", at="a")(x).relevance["a"]
    e = Explainer(_pictures(), method)(x)
    assert e.layer == "a"
    m = layer.sum(axis=1)
    _close(e.heatmap(), _doubled(np.maximum(m, 0) if relu else m, (8, 10)), 1e-5)
    _close(e.relevance["x"], np.repeat(e.relevance["x"][:, :1], 3, axis=1), 0)
    signed = Explainer(_pictures(), method, relu=False)(x)
    _close(signed.heatmap(), _doubled(m, (8, 10)), 1e-5)


SCALES = (
    "g (float[N,3,8,10] x) => (float[N,27] y) { c = Conv(x, w) a = Relu(c)"
    " f = Conv(a, h) p = Flatten(f) d = MaxPool<kernel_shape=[2,2],strides=[2,2]>(a)"
    " e = Conv(d, k) q = Flatten(e) y = Concat<axis=1>(p, q) }"
)


@pytest.mark.parametrize("method", [*CAMS, "rsp"])
def test_a_detector_is_looked_at_on_every_grid_that_its_target_may_lie_on(method: str) -> None:
    x = _drawn(2, 3, 8, 10)
    model = _model(SCALES, w=(6, 3, 3, 3), h=(1, 6, 4, 4), k=(1, 6, 1, 1))
    fine, coarse = (Explainer(model, method, layer=name) for name in ("f", "e"))
    both = Explainer(model, method)
    for target, one, other in ((7, fine, coarse), (20, coarse, fine)):
        e = both(x, target)
        assert e.layer == "f, e"
        assert not other(x, target).relevance["x"].any()
        _close(e.relevance["x"], one(x, target).relevance["x"], 1e-5)
    where = np.array([7, 20])  # each sample on its own grid
    _close(both(x, where).relevance["x"][1], coarse(x, 20).relevance["x"][1], 1e-5)
    assert both(x, where).conservation.max() < 1e-4 or method != "rsp"


def test_channels_last_pictures_get_the_same_map() -> None:
    x = _drawn(2, 3, 8, 10)
    plain = Explainer(_pictures(), "grad-cam")(x)
    last = Explainer(_channels_last(), "grad-cam")(np.ascontiguousarray(x.transpose(0, 2, 3, 1)))
    assert last.layer == "a"
    _close(last.relevance["x"], plain.relevance["x"].transpose(0, 2, 3, 1), 1e-6)
    _close(last.heatmap(), plain.heatmap(), 1e-6)


def test_a_layer_written_channels_last_is_looked_at_as_it_is() -> None:
    model = _model(
        "g (float[N,3,8,10] x) => (float[N,4] y) { c = Conv(x, w) a = Relu(c) t = Transpose<perm=[0,2,3,1]>(a)"
        " s = Sigmoid(t) f = ReduceMean<keepdims=0>(s, axes) y = MatMul(f, v) }",
        **WEIGHTS,
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, 2]), "axes"))
    x = _drawn(2, 3, 8, 10)
    named = Explainer(model, "hires-cam")(x)
    assert named.layer == "s"
    at = Explainer(model, "hires-cam", layer="s", at="s")(x).relevance["s"]
    assert at.shape == (2, 6, 8, 6)
    _close(named.heatmap(), _doubled(at.sum(axis=3), (8, 10)), 1e-5)


@pytest.mark.parametrize(("size", "kernel"), [((12,), (3,)), ((4, 6, 5), (3, 3, 3))], ids=["1-d", "3-d"])
@pytest.mark.parametrize("method", CAMS)
def test_signals_and_volumes_have_maps_too(method: str, size: tuple[int, ...], kernel: tuple[int, ...]) -> None:
    dims = ",".join(map(str, size))
    model = _model(
        f"g (float[N,3,{dims}] x) => (float[N,4] y) {{ c = Conv(x, w) a = Relu(c) {HEAD} }}",
        w=(6, 3, *kernel),
        v=(6, 4),
    )
    x = _drawn(2, 3, *size)
    layer = Explainer(model, method, layer="a", at="a")(x).relevance["a"].sum(axis=1)
    e = Explainer(model, method, relu=False)(x)
    _close(e.relevance["x"].sum(axis=1), _doubled(layer, size), 1e-5)


def test_what_branches_made_is_looked_at_where_it_is_joined() -> None:
    model = _model(
        "g (float[N,3,8,10] x) => (float[N,4] y) { c = Conv<strides=[2,2],pads=[1,1,1,1]>(x, w) p, q = Split<axis=1, num_outputs=2>(c) a = Relu(p)"
        " b = Relu(q) j = Concat<axis=1>(a, b) g = GlobalAveragePool(j) f = Flatten(g) y = MatMul(f, v) }",
        **WEIGHTS,
    )
    x = _drawn(2, 3, 8, 10)
    e, plain = Explainer(model, "grad-cam")(x), Explainer(_pictures(), "grad-cam")(x)
    assert e.layer == "j"
    _close(e.heatmap(), plain.heatmap(), 1e-6)


def test_a_flat_input_gets_the_map_of_what_it_is_reshaped_to() -> None:
    model = _model(
        f"g (float[N,240] x) => (float[N,4] y) {{ p = Reshape(x, shape) c = Conv<strides=[2,2],pads=[1,1,1,1]>(p, w)"
        f" a = Relu(c) {HEAD} }}",
        **WEIGHTS,
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0, 3, 8, 10]), "shape"))
    x = _drawn(2, 3, 8, 10)
    flat = Explainer(model, "grad-cam")(x.reshape(2, -1)).relevance["x"]
    _close(flat.reshape(x.shape), Explainer(_pictures(), "grad-cam")(x).relevance["x"], 1e-6)


def test_of_several_inputs_those_with_positions_below_the_layer_get_the_map() -> None:
    model = _model(
        "g (float[N,3,8,10] x, float[N,6] z, float[N,3,8,10] late) => (float[N,4] y) { c = Conv(x, w) a = Relu(c)"
        " g = GlobalAveragePool(a) f = Flatten(g) h = Add(f, z) m = MatMul(h, v) k = ReduceMean<keepdims=0>(late, axes)"
        " q = MatMul(k, u) y = Add(m, q) }",
        **WEIGHTS, u=(3, 4),
    )  # fmt: skip
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2, 3]), "axes"))
    feeds = {"x": _drawn(2, 3, 8, 10), "z": _drawn(2, 6), "late": _drawn(2, 3, 8, 10)}
    e = Explainer(model, "grad-cam", layer="a")(feeds)
    assert np.abs(e.relevance["x"]).max() > 0
    assert (e.relevance["z"] == 0).all()
    assert (e.relevance["late"] == 0).all()


def _tokens(count: int) -> onnx.ModelProto:
    """Patches as tokens, with a leading token of its own where `count` is no square."""
    text = (
        "g (float[N,3,8,8] x) => (float[N,4] y) { c = Conv<strides=[2,2]>(x, w) r = Reshape(c, shape)"
        " t = Transpose<perm=[0,2,1]>(r) "
    )
    text += "k = Pad(t, pads) p = Add(k, e) q = MatMul(p, v1) a = Gelu(q) f = ReduceMean<keepdims=0>(a, axes) y = MatMul(f, v) }"
    model = _model(text.replace("Gelu", "Relu"), w=(6, 3, 2, 2), e=(1, count, 6), v1=(6, 6), v=(6, 4))
    for name, values in (("shape", [0, 6, 16]), ("pads", [0, count - 16, 0, 0, 0, 0]), ("axes", [1])):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(values), name))
    return model


@pytest.mark.parametrize("count", [16, 17])
@pytest.mark.parametrize("method", CAMS)
def test_tokens_are_a_square_grid_without_the_class_token(method: str, count: int) -> None:
    x = _drawn(2, 3, 8, 8)
    at = Explainer(_tokens(count), method, layer="a", at="a")(x).relevance["a"]
    assert at.shape == (2, count, 6)
    assert (at[:, : count - 16] == 0).all()
    grid = at[:, count - 16 :].sum(axis=2).reshape(2, 4, 4)
    _close(Explainer(_tokens(count), method, layer="a", relu=False)(x).heatmap(), _doubled(grid, (8, 8)), 1e-5)
    assert Explainer(_tokens(count), method)(x).layer == "c"


def test_tokens_that_are_no_square_are_refused() -> None:
    with pytest.raises(MethodError, match="20 tokens, which are no square"):
        Explainer(_tokens(20), "grad-cam", layer="a")(_drawn(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("layer", "error", "told"),
    [("nowhere", TargetError, "no tensor 'nowhere'"), ("f", MethodError, "no positions"), ("y", MethodError, "no positions")],
)  # fmt: skip
def test_a_layer_that_cannot_be_mapped_is_refused(layer: str, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        Explainer(_pictures(), "grad-cam", layer=layer)(_drawn(1, 3, 8, 10))


def test_a_model_without_positions_is_refused() -> None:
    model = _model("g (float[N,6] x) => (float[N,4] y) { y = MatMul(x, v) }", v=(6, 4))
    with pytest.raises(TargetError, match="No tensor with spatial positions"):
        Explainer(model, "grad-cam")(_drawn(1, 6))


def test_another_layer_than_its_own_cannot_be_asked_for() -> None:
    with pytest.raises(MethodError, match="give the same name"):
        Explainer(_pictures(), "grad-cam", layer="a", at="c")(_drawn(1, 3, 8, 10))


@pytest.mark.parametrize("method", CAMS)
@pytest.mark.parametrize("x", [np.zeros((1, 3, 8, 10)), np.full((1, 3, 8, 10), 1e-25)], ids=["black", "tiny"])
def test_dead_layers_give_numbers(method: str, x: Array) -> None:
    assert np.isfinite(Explainer(_pictures(), method)(x.astype(np.float32)).relevance["x"]).all()


@pytest.mark.parametrize("method", CAMS)
@pytest.mark.parametrize("batch", ["N", "1"])
def test_a_converted_file_gives_what_explain_gives(method: str, batch: str) -> None:
    x = _drawn(1 if batch == "1" else 3, 3, 8, 10)
    explainer = Explainer(_pictures(batch), method)
    session = onnxruntime.InferenceSession(explainer.convert().SerializeToString(), providers=["CPUExecutionProvider"])
    _close(session.run(["x_relevance"], {"x": x})[0], explainer(x).relevance["x"], 1e-6)


@pytest.mark.parametrize("method", CAMS)
def test_a_batch_equals_its_samples(method: str) -> None:
    x = _drawn(3, 3, 8, 10)
    whole = Explainer(_pictures(), method)(x, target=[0, 1, 2]).relevance["x"]
    fixed = Explainer(_pictures("1"), method)(x, target=[0, 1, 2]).relevance["x"]
    _close(fixed, whole, 1e-6)
