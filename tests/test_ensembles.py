"""Path and sampling methods: against the peers' arrays, closed forms and slow loops over the gradient; and as one file.

The peers' arrays are those of ../shared/golden/classic (captum 0.9.0, the GNL authors' code, and methods.md §2).
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tracemalloc
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from test_convert import Array, X, assert_same, drawn, model, residual_cnn, run

from onnx_explain import METHODS, Explainer, Explanation, InputError, MethodError, TargetError
from onnx_explain import ensembles as ensembles_module
from onnx_explain.backends.onnx import Session
from onnx_explain.ensembles.refining import Way, refined
from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.model import load
from onnx_explain.methods.ensemble import Ensemble, quadrature
from onnx_explain.prepared import Prepared
from onnx_explain.relevance import Options
from onnx_explain.rules.points import mixed, normal, quantiles, stream
from onnx_explain.target import parse

SHARED = Path(__file__).resolve().parents[2] / "shared" / "golden" / "classic"
HERE = Path(__file__).parent / "golden"
ROWS = np.random.default_rng(3).standard_normal((4, 3, 16, 16))
# every method, light
CALLS: dict[str, dict[str, Any]] = {
    "integrated-gradients": {"steps": 6},
    "gnl-ig": {"steps": 5, "rule": "middle", "baseline": "blur:2"},
    "smoothgrad": {"samples": 5},
    "smoothgrad-squared": {"samples": 4, "sigma": 0.3},
    "vargrad": {"samples": 6, "random_seed": 11},
    "expected-gradients": {"samples": 7, "baselines": ROWS},
}


def only(e: Explanation) -> Array:
    [r] = e.relevance.values()
    return r


def explained(proto: Any, method: str, x: Any, target: Any = None, **options: Any) -> Explanation:
    """In float64."""
    return Explainer(proto, method, backend="reference", **options)(x, target=target)


def close(found: Array, wanted: Array, tolerance: float = 1e-12) -> None:
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * float(np.abs(wanted).max(initial=1e-30)))


# ------------------------------------------------------------------------------------------- the peers' arrays

RIEMANN = ("left", "middle", "right", "trapezoid")
PATHS: dict[str, tuple[str, dict[str, Any], bool, float]] = {
    "captum/ig_zero_gausslegendre_50": ("integrated-gradients", {}, False, 1.0),
    "captum/ig_zero_gausslegendre_8": ("integrated-gradients", {"steps": 8}, False, 1.0),
    "captum/ig_base_gausslegendre_20": ("integrated-gradients", {"steps": 20}, True, 1.0),
    # captum's trapezoid weighs (n - 1)/n in all
    **{
        f"captum/ig_zero_riemann_{rule}_50": (
            "integrated-gradients",
            {"rule": rule},
            False,
            50 / 49 if rule == "trapezoid" else 1.0,
        )
        for rule in RIEMANN
    },
    "gnl_authors/ig_zero_gausslegendre_50": ("gnl-ig", {"variant": "authors"}, False, 1.0),
    "gnl_authors/ig_base_gausslegendre_20": ("gnl-ig", {"variant": "authors", "steps": 20}, True, 1.0),
    "reference/gnl_ig_zero_gausslegendre_50": ("gnl-ig", {}, False, 1.0),
    "reference/gnl_ig_base_gausslegendre_20": ("gnl-ig", {"steps": 20}, True, 1.0),
    "reference/gnl_input_ig_zero_gausslegendre_50": ("gnl-ig", {"variant": "input"}, False, 1.0),
}
NOISY = {"captum/smoothgrad": "smoothgrad", "captum/smoothgrad_sq": "smoothgrad-squared", "captum/vargrad": "vargrad"}
# Of 200 points times 3e5 units some lie within float32 rounding of a kink: one Relu of vggish opens at α = 0.99 of the
# middle rule and one at α = 0.0006 of Gauss-Legendre's, and the gradient there changes by a tenth.
KINKS = {
    ("vggish", "captum/ig_zero_riemann_middle_50"): 3e-3,
    ("vggish", "captum/ig_zero_gausslegendre_50"): 2e-4,
}


def folder(name: str) -> Path | None:
    return next((d for d in (SHARED, HERE) if (d / name).is_file()), None)


@lru_cache(maxsize=4)
def golden(net: str) -> dict[str, Array]:
    place = folder(f"{net}.f64.npz")
    if place is None:
        return {}
    wanted = {*PATHS, *NOISY, "x", "target", "baseline_nonzero", "smoothgrad_noise"}
    with np.load(place / f"{net}.f64.npz") as stored:
        return {k: stored[k] for k in stored.files if k in wanted}


NETS = ("vggish", "bnnet", "mlp", "smooth")
GOLDEN = [(net, key) for net in NETS for key in golden(net) if key in PATHS]
GOLDEN_NOISE = [(net, key) for net in NETS for key in golden(net) if key in NOISY]


def file_of(net: str) -> Path:
    place = folder(f"{net}.onnx")
    assert place is not None
    return place / f"{net}.onnx"


def along_the_path(net: str, key: str, backend: Any) -> Array:
    arrays, (method, options, from_baseline, _) = golden(net), PATHS[key]
    x = arrays["x"].astype(np.float64 if backend == "reference" else np.float32)
    if not from_baseline:
        return only(Explainer(file_of(net), method, backend=backend, threads=1, **options)(x, target=arrays["target"]))
    maps = []
    for i, far in enumerate(arrays["baseline_nonzero"]):
        explainer = Explainer(file_of(net), method, backend=backend, threads=1, baseline=far, **options)
        maps.append(only(explainer(x[i : i + 1], target=int(arrays["target"][i]))))
    return np.concatenate(maps)


@pytest.mark.parametrize(("net", "key"), GOLDEN)
def test_path_methods_equal_the_peers_in_float64(net: str, key: str) -> None:
    wanted = golden(net)[key] * PATHS[key][3]
    # captum, in which the authors' code runs, keeps the steps' weights in float32
    close(along_the_path(net, key, "reference"), wanted, 1e-9 if key.startswith("reference") else 1e-7)


@pytest.mark.parametrize(("net", "key"), GOLDEN)
def test_path_methods_equal_the_peers_in_onnx_runtime(net: str, key: str) -> None:
    close(along_the_path(net, key, "onnx"), golden(net)[key] * PATHS[key][3], KINKS.get((net, key), 1e-5))


@pytest.mark.parametrize(("net", "key"), GOLDEN_NOISE)
@pytest.mark.parametrize("batch_size", [None, 3])
def test_noise_methods_equal_captum_on_its_noise(net: str, key: str, batch_size: int | None) -> None:
    arrays, method = golden(net), NOISY[key]
    for backend, tolerance in (("reference", 1e-7), ("onnx", 1e-5)):
        ensemble = METHODS[method].procedure({"samples": len(arrays["smoothgrad_noise"])})
        assert isinstance(ensemble, Ensemble)
        given = dataclasses.replace(ensemble, noise=arrays["smoothgrad_noise"])
        prepared = Prepared(
            load(file_of(net)),
            backend=backend,
            batch_size=batch_size,
            threads=1,
            input_shapes={},  # type: ignore[arg-type]
        )
        aim = parse(arrays["target"].tolist())
        outcome = ensembles_module.explain(
            prepared, given, prepared.feeds(arrays["x"]), aim, Options(seed="one"), method=method
        )
        close(next(iter(outcome.relevance.values())), arrays[key], tolerance)


# ------------------------------------------------------------------------------------------- closed forms


def product() -> onnx.ModelProto:
    return model("g (float[N,3] a, float[N,3] b) => (float[N] y) { p = Mul(a, b)\n y = ReduceSum<keepdims=0>(p, one) }",
                 one=np.asarray([1], np.int64))  # fmt: skip


def test_a_product_is_shared_by_the_means_of_its_factors() -> None:
    a, b = drawn(2, 3).astype(float), drawn(2, 3, seed=1).astype(float)
    a0, b0 = drawn(1, 3, seed=2).astype(float), 0.25
    for steps in (1, 2, 7):  # Gauss-Legendre is exact: the integrand is linear
        e = explained(product(), "integrated-gradients", {"a": a, "b": b}, baseline={"a": a0, "b": b0}, steps=steps)
        close(e.relevance["a"], (a - a0) * (b + b0) / 2)
        close(e.relevance["b"], (b - b0) * (a + a0) / 2)
        assert e.completeness is not None
        np.testing.assert_allclose(e.completeness, 0, atol=1e-12)
        np.testing.assert_allclose(e.conservation, 0, atol=1e-12)


@pytest.mark.parametrize(("rule", "share"), [("left", 0.9), ("middle", 1.0), ("right", 1.1), ("trapezoid", 1.0)])
def test_a_square_gets_what_the_rule_makes_of_a_line(rule: str, share: float) -> None:
    """∫ 2αx dα = x: ten left steps give 0.9 of it, ten right steps 1.1."""
    proto = model("g (float[N,4] x) => (float[N,4] y) { y = Mul(x, x) }")
    x = drawn(3, 4).astype(float)
    e = explained(proto, "integrated-gradients", x, [0, 1, 3], rule=rule, steps=10, logits=False)
    wanted = np.zeros((3, 4))
    wanted[range(3), [0, 1, 3]] = share * x[range(3), [0, 1, 3]] ** 2
    close(only(e), wanted)
    assert e.completeness is not None
    np.testing.assert_allclose(e.completeness, (share - 1) * x[range(3), [0, 1, 3]] ** 2, atol=1e-12)


@pytest.mark.parametrize("rule", ["gausslegendre", *RIEMANN])
@pytest.mark.parametrize("steps", [2, 5])
def test_of_a_linear_model_it_is_input_times_gradient(rule: str, steps: int) -> None:
    proto = model("g (float[N,6] x) => (float[N,3] y) { h = MatMul(x, w)\n y = Add(h, b) }", w=drawn(6, 3), b=drawn(3))
    x = drawn(4, 6).astype(float)
    wanted = only(explained(proto, "input-x-gradient", x, logits=False))
    for method in ("integrated-gradients", "gnl-ig"):
        close(only(explained(proto, method, x, rule=rule, steps=steps, logits=False)), wanted)


@pytest.mark.parametrize("rule", ["gausslegendre", *RIEMANN])
def test_the_weights_of_every_rule_add_up_to_one(rule: Any) -> None:
    for n in (2, 3, 50, 333):
        alphas, weights = quadrature(rule, n)
        assert alphas.shape == weights.shape == (n,)
        assert alphas.min() >= 0
        assert alphas.max() <= 1
        np.testing.assert_allclose(weights.sum(), 1, rtol=1e-12)


def test_gauss_legendre_is_numpys() -> None:
    for n in (1, 2, 3, 4, 8, 20, 50, 151):
        nodes, weights = np.polynomial.legendre.leggauss(n)
        found = quadrature("gausslegendre", n)
        np.testing.assert_allclose(found[0], (1 + nodes) / 2, rtol=0, atol=2e-15)
        np.testing.assert_allclose(found[1], weights / 2, rtol=1e-11, atol=1e-15)
    alphas, weights = quadrature("gausslegendre", 2000)
    np.testing.assert_allclose((weights * alphas**1001).sum(), 1 / 1002, rtol=1e-12)


def test_the_class_at_the_input_is_explained_at_every_point() -> None:
    """At the baseline another class is the highest."""
    proto = model(
        "g (float[N,2] x) => (float[N,2] y) { h = Mul(x, x)\n y = Add(h, b) }", b=np.asarray([0, 2], np.float32)
    )
    x = np.asarray([[3.0, 0.5]])
    e = explained(proto, "integrated-gradients", x, steps=4, logits=False)
    assert e.target.index.tolist() == [0]
    close(only(e), [[9.0, 0.0]])


def test_samples_that_are_not_explained_get_nothing() -> None:
    for method, options in CALLS.items():
        e = Explainer(residual_cnn(), method, threads=1, **options)(X[:3], target="scores[1,2]")
        assert e.target.index.tolist() == [-2, 2, -2]
        assert not only(e)[[0, 2]].any()
        assert only(e)[1].any()
        assert np.isfinite(e.conservation).all()


# ------------------------------------------------------------------------------------------- slow loops


def gradient_at(x: Array, target: Any) -> Array:
    return only(explained(residual_cnn(), "gradient", x, target))


def counted_noise(draw: int, shape: tuple[int, ...], *, seed: int, name: str) -> Array:
    """The numbers of one draw, by whole numbers of any size."""
    begin = mixed((draw + stream(seed, name)) & 0xFFFFFFFF)
    levels = [mixed(mixed(i) ^ begin) >> 16 for i in range(int(np.prod(shape)))]
    return quantiles()[levels].reshape(1, *shape)


def test_smoothgrad_and_its_kin_are_moments_of_the_gradient_in_noise() -> None:
    x, target = X[:2].astype(float), [1, 4]
    sigma = 0.15 * (x.max((1, 2, 3), keepdims=True) - x.min((1, 2, 3), keepdims=True))
    points = [x + sigma * counted_noise(k, (3, 16, 16), seed=5, name="picture") for k in range(6)]
    g = np.stack([gradient_at(p, target) for p in points])
    wanted = {"smoothgrad": g.mean(0), "smoothgrad-squared": (g**2).mean(0), "vargrad": g.var(0)}
    for method, array in wanted.items():
        close(only(explained(residual_cnn(), method, x, target, samples=6, random_seed=5)), array, 1e-10)


def test_expected_gradients_is_a_mean_over_ways_from_the_set() -> None:
    x, target, n = X[:2].astype(float), [1, 4], 9
    procedure = METHODS["expected-gradients"].procedure({"baselines": ROWS, "samples": n, "random_seed": 2})
    assert isinstance(procedure, Ensemble)
    rows, (alphas, weights) = procedure.rows(len(ROWS)), procedure.quadrature()
    wanted = np.zeros_like(x)
    for row, alpha, weight in zip(rows, alphas, weights):
        far = ROWS[row]
        wanted += weight * (x - far) * gradient_at(far + alpha * (x - far), target)
    e = explained(residual_cnn(), "expected-gradients", x, target, baselines=ROWS, samples=n, random_seed=2)
    close(only(e), wanted, 1e-10)
    assert sorted(np.bincount(rows).tolist()) == [2, 2, 2, 3]
    assert sorted(np.floor(alphas * n).astype(int).tolist()) == list(range(n))
    scores = explained(residual_cnn(), "gradient", ROWS).outputs
    assert set(scores) == {"scores"}
    logits = np.stack([explained(residual_cnn(), "gradient", ROWS, [t] * 4).target.score for t in target])
    change = e.target.score - logits[:, rows].mean(1)
    assert e.completeness is not None
    close(e.completeness, wanted.sum((1, 2, 3)) - change, 1e-9)


def test_one_baseline_in_the_set_is_integrated_gradients() -> None:
    x = X[:2].astype(float)
    many = explained(residual_cnn(), "integrated-gradients", x, steps=100, baseline=ROWS[0])
    one = explained(residual_cnn(), "expected-gradients", x, baselines=ROWS[:1], samples=100)
    close(only(one), only(many), 0.02)


# ------------------------------------------------------------------------------------------- random numbers


def noise_of(shape: tuple[int, ...], draws: int, seed: int, name: str = "x") -> Array:
    """[draws, …] in ONNX Runtime."""
    proto = model(f"g (float[N,{','.join(map(str, shape))}] x, int64[1] k) => (float[N] y) {{ y = Identity(x) }}")
    graph_model = ir.from_proto(proto)
    graph_model.graph.outputs.clear()
    op = Emitter(graph_model.graph)
    x, k = graph_model.graph.inputs
    r = normal(op, x, k, seed=seed, name=name)
    op.output(r, "noise", r)
    session = Session(graph_model, threads=1)
    fed = np.zeros((1, *shape), np.float32)
    return np.concatenate([session.run({"x": fed, "k": np.asarray([d])})["noise"] for d in range(draws)])


@pytest.mark.parametrize(("seed", "draw"), [(0, 0), (0, 3), (7, 1), (2**40 + 5, 2)])
def test_onnx_counts_the_same_random_numbers_bit_for_bit(seed: int, draw: int) -> None:
    found = noise_of((2, 9, 5), draw + 1, seed)[draw : draw + 1]
    np.testing.assert_array_equal(found, counted_noise(draw, (2, 9, 5), seed=seed, name="x").astype(np.float32))


def test_the_noise_is_normal_and_its_draws_have_nothing_in_common() -> None:
    noise = noise_of((3, 64, 64), 12, 0).reshape(12, -1).astype(float)
    count = noise.shape[1]
    np.testing.assert_array_less(np.abs(noise.mean(1)), 5 / np.sqrt(count))
    np.testing.assert_array_less(np.abs(noise.std(1) - 1), 5 / np.sqrt(2 * count))
    np.testing.assert_array_less(np.abs((noise**4).mean(1) - 3), 0.6)
    together = np.concatenate(
        [noise, noise_of((3, 64, 64), 3, 1).reshape(3, -1), noise[:, ::-1][:2], np.roll(noise, 1, 1)[:2]]
    )
    correlation = np.corrcoef(together) - np.eye(len(together))
    assert np.abs(correlation).max() < 5 / np.sqrt(count)
    assert np.abs(np.corrcoef(together**2) - np.eye(len(together))).max() < 6 / np.sqrt(count)
    assert quantiles().shape == (65536,)
    np.testing.assert_allclose([quantiles().mean(), quantiles().var()], [0, 1], atol=1e-3)


def test_another_seed_and_another_input_get_other_noise() -> None:
    x = X[:1]
    maps = [only(Explainer(residual_cnn(), "smoothgrad", samples=2, random_seed=s, threads=1)(x)) for s in (0, 0, 1)]
    np.testing.assert_array_equal(maps[0], maps[1])
    assert np.abs(maps[0] - maps[2]).max() > 1e-3
    assert stream(0, "a") != stream(0, "b")


def test_noise_does_not_depend_on_the_place_in_a_batch() -> None:
    e = Explainer(residual_cnn(), "smoothgrad", samples=3, backend="reference")
    close(only(e(X[:3]))[2:], only(e(X[2:3])))


# ------------------------------------------------------------------------------------------- batches, chunks, memory


@pytest.mark.parametrize("method", CALLS)
def test_batches_chunks_and_a_fixed_batch_of_one_give_the_same(method: str) -> None:
    x, target = X[:3].astype(float), [0, 2, 4]
    whole = explained(residual_cnn(), method, x, target, **CALLS[method])
    chunked = explained(residual_cnn(), method, x, target, batch_size=2, **CALLS[method])
    fixed = explained(residual_cnn("1"), method, x, target, **CALLS[method])
    for e in (chunked, fixed):
        close(only(e), only(whole), 1e-12)
        close(e.conservation, whole.conservation, 1e-9)
    assert e.outputs["scores"].shape == (3, 5)


@pytest.mark.parametrize("method", ["integrated-gradients", "vargrad", "expected-gradients"])
def test_memory_does_not_grow_with_the_steps(method: str) -> None:
    name = "steps" if method == "integrated-gradients" else "samples"
    more = {"baselines": ROWS} if method == "expected-gradients" else {}
    x = np.tile(X, (2, 1, 1, 1))
    peaks = []
    for count in (50, 500):
        explainer = Explainer(residual_cnn(), method, threads=1, **{name: count}, **more)
        explainer(x)  # the graphs are built
        tracemalloc.start()
        explainer(x)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] <= peaks[0] + x.nbytes, peaks


# ------------------------------------------------------------------------------------------- inner tensors


def test_a_path_through_an_inner_tensor_is_the_path_of_what_follows() -> None:
    """[pool] p1 moves between its values at the picture and at the baseline, as in the model cut there."""
    x = X[:2].astype(float)
    cut = onnx.utils.Extractor(onnx.shape_inference.infer_shapes(residual_cnn())).extract_model(["p1"], ["scores"])
    values = {}
    for name, picture in (("near", x), ("far", np.full((1, 3, 16, 16), 0.3))):
        e = explained(residual_cnn(), "gradient", picture, [0] * len(picture), at="p1")
        values[name] = e.inputs["p1"]
    wanted = explained(cut, "integrated-gradients", values["near"], [1, 2], steps=7, baseline=values["far"])
    found = explained(residual_cnn(), "integrated-gradients", x, [1, 2], steps=7, baseline=0.3, at="p1")
    assert list(found.relevance) == ["p1"]
    close(only(found), only(wanted), 1e-10)
    assert found.completeness is not None
    assert wanted.completeness is not None
    close(found.completeness, wanted.completeness, 1e-6)


@pytest.mark.parametrize("method", CALLS)
def test_inner_tensors_are_explained_and_converted(method: str) -> None:
    explainer = Explainer(residual_cnn(), method, at="r1", threads=1, **CALLS[method])
    e = explainer(X[:2])
    assert e.relevance["r1"].shape == e.inputs["r1"].shape == (2, 8, 16, 16)
    assert_same(run(explainer.convert(), {"picture": X[:2]})["r1_relevance"], e.relevance["r1"])


def test_noise_is_on_the_input_where_an_inner_tensor_is_explained() -> None:
    x = X[:1].astype(float)
    noise = counted_noise(0, (3, 16, 16), seed=0, name="picture")
    wanted = explained(residual_cnn(), "gradient", x + 0.5 * noise, 2, at="r1")
    close(only(explained(residual_cnn(), "smoothgrad", x, 2, samples=1, sigma=0.5, at="r1")), only(wanted), 1e-10)


def test_only_the_named_input_moves() -> None:
    a, b = drawn(2, 3).astype(float), drawn(2, 3, seed=1).astype(float)
    for options in ({"wrt": ["a"]}, {"at": "a"}):
        e = explained(product(), "integrated-gradients", {"a": a, "b": b}, steps=3, **options)
        assert list(e.relevance) == ["a"]
        close(e.relevance["a"], a * b)
        np.testing.assert_allclose(e.conservation, 0, atol=1e-12)


# ------------------------------------------------------------------------------------------- adaptive refinement


class Bent:
    """F(x) = Σ max(w·x + b, 0) on the ray α·d: a broken line, its derivative a staircase."""

    def __init__(self, bends: Array, slopes: Array) -> None:
        self.bends, self.slopes, self.gradients, self.scores = bends, slopes, 0, 0

    def gradient(self, alpha: Array) -> dict[str, Array]:
        self.gradients += 1
        return {"x": ((alpha[:, None] > self.bends) * self.slopes).sum(1)[:, None]}

    def score(self, alpha: Array) -> Array:
        self.scores += 1
        return (np.maximum(alpha[:, None] - self.bends, 0) * self.slopes).sum(1)

    def way(self) -> Way:
        lanes = len(self.bends)
        return Way(lanes, self.gradient, self.score, {"x": np.ones((lanes, 1))})


def bent() -> Bent:
    return Bent(np.asarray([[0.3141, 0.777]]), np.asarray([[1.0, -1.0]]))


def even_gap(n: int) -> float:
    """The relative error of n even steps."""
    line, (alphas, weights) = bent(), quadrature("gausslegendre", n)
    change = float(line.score(np.ones(1))[0])
    return (
        abs(float(sum(w * line.gradient(np.asarray([a]))["x"].item() for a, w in zip(alphas, weights))) - change)
        / change
    )


@pytest.mark.parametrize("tolerance", [1e-2, 1e-3, 1e-4])
def test_refinement_reaches_the_tolerance_with_fewer_evaluations_than_even_steps(tolerance: float) -> None:
    line = bent()
    change = line.score(np.ones(1))
    total = refined(line.way(), quadrature("gausslegendre", 4), 16, tolerance, change)
    assert abs(float(total["x"].item()) - change[0]) <= tolerance * change[0]
    assert max(even_gap(n) for n in range(line.gradients, line.gradients + 8)) > tolerance
    assert max(even_gap(n) for n in range(2 * line.gradients, 2 * line.gradients + 8)) > tolerance / 2


def test_refinement_of_a_smooth_path_stops_at_once() -> None:
    line = Bent(np.asarray([[-1.0]]), np.asarray([[2.0]]))
    refined(line.way(), quadrature("gausslegendre", 4), 8, 1e-9, np.asarray([2.0]))
    assert line.gradients == 8


def test_refinement_gives_up_at_its_limit() -> None:
    line = Bent(np.asarray([[0.3141]]), np.asarray([[1.0]]))
    refined(line.way(), quadrature("gausslegendre", 4), 8, 1e-300, np.asarray([0.6859]))
    assert line.gradients <= 20 * 8 + 12


@pytest.mark.parametrize("at", [None, "p1"])
def test_the_completeness_error_is_within_the_tolerance(at: str | None) -> None:
    x, tolerance = X[:3].astype(float), 2e-4
    options: dict[str, Any] = {"steps": 8, "at": at}
    plain = explained(residual_cnn(), "integrated-gradients", x, [0, 1, 2], **options)
    e = explained(residual_cnn(), "integrated-gradients", x, [0, 1, 2], tolerance=tolerance, **options)
    assert plain.conservation.max() > tolerance
    np.testing.assert_array_less(e.conservation, tolerance * (1 + 1e-9))
    fine = explained(residual_cnn(), "integrated-gradients", x, [0, 1, 2], steps=150, at=at)
    assert np.abs(only(e) - only(fine)).max() < np.abs(only(plain) - only(fine)).max()
    alone = explained(residual_cnn(), "integrated-gradients", x[1:2], 1, tolerance=tolerance, **options)
    close(only(alone), only(e)[1:2], 1e-10)


# ------------------------------------------------------------------------------------------- one file

ISOLATED = """
import sys
BLOCKED = {"onnx_explain", "onnx", "onnx_ir", "onnxscript", "torch"}
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(name + " is not to be imported")
sys.meta_path.insert(0, Blocker())
import numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.log_severity_level, options.intra_op_num_threads = 4, 1
stored = numpy.load(sys.argv[1])
for path in sys.argv[2:]:
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    step = 1 if path.endswith("one.onnx") else len(stored["x"])
    for i in range(0, len(stored["x"]), step):
        part = slice(i, i + step)
        r, scores = session.run(["picture_relevance", "scores"], {"picture": stored["x"][part], "target": stored["target"][part]})
        wanted = stored[path][part]
        assert r.shape == wanted.shape and abs(r - wanted).max() <= 1e-6 * abs(wanted).max(), (path, abs(r - wanted).max())
print("ran", len(sys.argv) - 2)
"""


def test_the_files_run_alone_and_equal_the_explanations(tmp_path: Path) -> None:
    target = np.asarray([3, -1, 0])
    stored: dict[str, Array] = {"x": X[:3], "target": target}
    for method, options in CALLS.items():
        for batch, name in (("N", "open"), ("1", "one")):
            explainer = Explainer(residual_cnn(batch), method, threads=1, **options)
            path = tmp_path / f"{method}-{name}.onnx"
            explainer.convert(path, fold=method == "vargrad")
            onnx.checker.check_model(str(path), full_check=True)
            chosen = np.where(target < 0, explainer(X[:3]).target.index, target)
            stored[str(path)] = only(explainer(X[:3], target=chosen.tolist()))
    np.savez(tmp_path / "stored.npz", **stored)
    files = [p for p in stored if p.endswith(".onnx")]
    command = [sys.executable, "-I", "-c", ISOLATED, str(tmp_path / "stored.npz"), *files]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["ran", str(2 * len(CALLS))]


def test_the_file_has_one_loop_and_every_weight_once(tmp_path: Path) -> None:
    for width in (8, 64):
        onnx.save(residual_cnn(width=width), tmp_path / f"{width}.onnx")
    grown = {}
    for method, options in CALLS.items():
        for width in (8, 64):
            source = tmp_path / f"{width}.onnx"
            proto = Explainer(source, method, threads=1, **options).convert()
            grown[width] = proto.ByteSize() - source.stat().st_size
            loops = [n for n in proto.graph.node if n.op_type == "Loop"]
            assert len(loops) == 1
            [body] = [a.g for a in loops[0].attribute if a.name == "body"]
            assert not body.initializer
            assert [o.name for o in proto.graph.output] == ["scores", "picture_relevance"]
            assert [i.name for i in proto.graph.input] == ["picture", "target"]
        assert abs(grown[64] - grown[8]) < 2000, method


def test_more_steps_are_no_more_nodes() -> None:
    sizes = [
        Explainer(residual_cnn(), "integrated-gradients", steps=n).convert(check=False).ByteSize() for n in (50, 500)
    ]
    assert sizes[1] - sizes[0] <= 450 * 2 * 8 + 100  # α and its weight


def test_several_inputs_are_converted_together() -> None:
    feeds = {"a": drawn(3, 3), "b": drawn(3, 3, seed=1)}
    rows = {"a": drawn(2, 3, seed=2), "b": drawn(2, 3, seed=3)}
    calls: dict[str, dict[str, Any]] = {**CALLS, "expected-gradients": {"samples": 5, "baselines": rows}}
    for method, options in calls.items():
        explainer = Explainer(product(), method, threads=1, **{k: v for k, v in options.items() if k != "baseline"})
        e, found = explainer(feeds), run(explainer.convert(), feeds)
        for name in feeds:
            assert_same(found[f"{name}_relevance"], e.relevance[name])


# ------------------------------------------------------------------------------------------- bad input

REFUSED: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("integrated-gradients", {"steps": 0}, MethodError, "steps must be a whole number of at least 1"),
    ("integrated-gradients", {"rule": "simpson"}, MethodError, "'gausslegendre'.*'simpson'"),
    ("integrated-gradients", {"rule": "trapezoid", "steps": 1}, MethodError, "at least 2 steps"),
    ("integrated-gradients", {"tolerance": 0.0}, MethodError, "tolerance must be a number above 0"),
    ("integrated-gradients", {"tolerance": "small"}, MethodError, "tolerance must be a number above 0"),
    ("integrated-gradients", {"baseline": "blurr"}, MethodError, "Did you mean 'blur'"),
    ("integrated-gradients", {"baseline": drawn(3, 16, 15)}, InputError, r"\[3, 16, 15\].*\[N, 3, 16, 16\]"),
    ("integrated-gradients", {"baseline": {"pictur": 0.5}}, InputError, "Did you mean 'picture'"),
    ("integrated-gradients", {"seed": "score"}, MethodError, "leave `seed` out"),
    ("integrated-gradients", {"keep": ["r1"]}, MethodError, "`at`"),
    ("integrated-gradients", {"at": "r9"}, TargetError, "Did you mean 'r"),
    ("integrated-gradients", {"at": "scores", "output": "logits"}, TargetError, "'scores'"),
    ("smoothgrad", {"samples": 0}, MethodError, "samples must be"),
    ("smoothgrad", {"sigma": -1.0}, MethodError, "sigma must be a number above 0"),
    ("smoothgrad", {"noise_level": -0.1}, MethodError, "noise_level must not be negative"),
    ("vargrad", {"noise_level": float("nan")}, MethodError, "noise_level must be a finite number"),
    ("expected-gradients", {}, MethodError, "needs `baselines`"),
    ("expected-gradients", {"baselines": "nowhere.npy"}, InputError, "there is no such file"),
    ("expected-gradients", {"baselines": np.zeros((0, 3, 16, 16))}, InputError, "empty"),
    ("expected-gradients", {"baselines": np.full((2, 3, 16, 16), np.nan)}, InputError, r"NaN.*\[0, 0, 0, 0\]"),
    (
        "expected-gradients",
        {"baselines": np.zeros((3, 16, 16))},
        InputError,
        r"\[3, 16, 16\].*axis 0 counts the baselines",
    ),
    ("expected-gradients", {"baselines": {"other": ROWS}}, InputError, "'other'"),
]


@pytest.mark.parametrize(("method", "options", "error", "says"), REFUSED)
def test_bad_input_is_told_in_a_sentence(
    method: str, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says) as caught:
        Explainer(residual_cnn(), method, threads=1, **options)(X[:1])
    assert "\n" not in str(caught.value)
    assert "explain/" not in str(caught.value)


def test_a_file_cannot_decide_its_steps_while_it_runs() -> None:
    with pytest.raises(MethodError, match="give `steps` alone"):
        Explainer(residual_cnn(), "integrated-gradients", tolerance=0.01).convert()


def test_sets_of_baselines_for_several_inputs_must_go_together() -> None:
    feeds = {"a": drawn(2, 3), "b": drawn(2, 3)}
    cases: list[tuple[Any, str]] = [
        (drawn(4, 3), "give the baselines as {name: array}"),
        ({"a": drawn(4, 3)}, "'b'.*no baselines"),
        ({"a": drawn(4, 3), "b": drawn(5, 3)}, "'a' 4, 'b' 5"),
    ]
    for baselines, says in cases:
        with pytest.raises(InputError, match=says):
            Explainer(product(), "expected-gradients", baselines=baselines, threads=1)(feeds)


def test_a_change_of_zero_is_no_division_by_zero() -> None:
    e = Explainer(residual_cnn(), "integrated-gradients", steps=3, threads=1)(np.zeros((1, 3, 16, 16), np.float32))
    assert not only(e).any()
    assert np.isfinite(e.conservation).all()
    refined_too = Explainer(residual_cnn(), "integrated-gradients", steps=3, tolerance=0.1, threads=1)
    assert not only(refined_too(np.zeros((1, 3, 16, 16), np.float32))).any()
