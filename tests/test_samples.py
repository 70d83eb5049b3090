"""Samples explained together get what each gets alone, wherever the model has its batch, and whoever its neighbours are.

In float64: 1e-9 of the largest value, where sums of other lengths round otherwise. Every model is explained by RAP, which
sums and shifts per sample, by LRP-ε, whose absorbed relevance is told per sample, and by methods in turn, so that each
meets several layouts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
from case import Array
from layouts import LAYOUTS, Layout
from ready import ANYWHERE, FEW, ready
from test_convert import model

from onnx_explain import METHODS, Explainer, Explanation
from onnx_explain.backends.gpu.lowering import lower
from onnx_explain.errors import MethodError, TargetError
from onnx_explain.ir.canonicalize import canonicalize
from onnx_explain.ir.model import load
from onnx_explain.methods import resolve
from onnx_explain.operators.samples import FIRST, Held, Nowhere
from onnx_explain.path import tensors
from onnx_explain.relevance import Options, build
from onnx_explain.relevance.apart import samples_of

EXACT = 1e-9
TURNS = [m for m in ANYWHERE if m not in ("rap", "lrp-epsilon")]
NAMED = {layout.name: layout for layout in LAYOUTS}


def methods(layout: Layout) -> list[str]:
    """RAP, LRP-ε, and two others in turn."""
    first = 2 * LAYOUTS.index(layout)
    return ["rap", "lrp-epsilon", *(TURNS[(first + i) % len(TURNS)] for i in range(2))]


def among_others(layout: Layout, x: dict[str, Array], z: dict[str, Array], i: int) -> dict[str, Array]:
    """The samples z, with sample i of x in its place."""
    found = {}
    for name, array in z.items():
        there = (slice(None),) * layout.axis(name) + (i,)
        found[name] = array.copy()
        found[name][there] = x[name][there]
    return found


def assert_alike(layout: Layout, a: Explanation, i: int, b: Explanation, j: int) -> None:
    """Relevance of sample i of one explanation is that of sample j of the other, and so is what was absorbed."""
    scale = max(np.abs(r).max() for r in a.relevance.values())
    for name, r in a.relevance.items():
        axis = layout.axis(name)
        gap = np.abs(np.take(r, i, axis) - np.take(b.relevance[name], j, axis)).max()
        assert gap <= EXACT * scale, f"{a.method}, {name}: {gap / scale:.1e}"
    if len(a.absorbed) > 1:
        flow = max(np.abs(a.absorbed).max(), np.abs(a.target.score).max(), scale)
        assert abs(a.absorbed[i] - b.absorbed[j]) <= EXACT * flow, a.method
        assert abs(a.conservation[i] - b.conservation[j]) <= 1e-6 * max(1.0, abs(a.conservation[i])), a.method


def explained(layout: Layout, method: str, count: int = 3) -> tuple[Explainer, dict[str, Array]]:
    x, proto = layout.samples(count, 1), layout.build()
    options: dict[str, Any] = ready(method, proto, x if len(x) > 1 else next(iter(x.values())))
    options |= {name: min(value, 2) for name, value in FEW.items() if name in options}
    return Explainer(proto, method=method, backend="reference", **options), x


@pytest.mark.parametrize(
    ("layout", "method"), [(lay, m) for lay in LAYOUTS for m in methods(lay)], ids=lambda v: str(v).replace(" ", "-")
)
def test_a_sample_gets_what_it_gets_alone_and_among_others(layout: Layout, method: str) -> None:
    explain, x = explained(layout, method)
    target: Any = 1 if layout.target is None else layout.target.format(i=1)
    try:
        together = explain(x, target=target)
    except (TargetError, MethodError) as refused:
        assert "layer" in str(refused) or "samples lie along" in str(refused)
        return
    if method in ("rap", "lrp-epsilon"):
        assert all(np.abs(r).max() > 0 for r in together.relevance.values())
    if METHODS[method].conserves:
        assert np.abs(together.conservation).max() < 1e-3
    other = explain(among_others(layout, x, layout.samples(3, 2), 1), target=target)
    if any("masked all samples as one" in note for note in together.notes):
        return  # what has its samples elsewhere is no batch to a method that feeds masks, and it says so
    assert_alike(layout, together, 1, other, 1)
    if layout.fixed is None and layout.target is None:
        alone = explain({n: np.take(a, [1], layout.axis(n)) for n, a in x.items()}, target=target)
        assert_alike(layout, together, 1, alone, 0)


@pytest.mark.parametrize("method", ["grad-cam", "rsp", "rap"])
@pytest.mark.parametrize("name", ["pictures", "frames merged", "frames merged to the end", "frames first, merged"])
def test_frames_merged_with_the_batch_have_maps_of_their_own(name: str, method: str) -> None:
    layout = NAMED[name]
    explain, x = explained(layout, method)
    if method == "grad-cam" and name == "frames first, merged":
        with pytest.raises(MethodError, match="cannot be laid over it"):
            explain(x, target=1)
        return
    together = explain(x, target=1)
    assert np.abs(together.relevance["x"][1]).max() > 0
    assert_alike(layout, together, 1, explain({"x": x["x"][1:2]}, target=1), 0)


VARIANTS = [
    ("rap", "published", ("tokens first, classes per token", "samples last", "frames merged to the end")),
    ("rsp", "general", ("dense on tokens first, windows behind", "frames merged")),
    ("rsp", "published", ("dense on tokens first, windows behind",)),
]


@pytest.mark.parametrize(("method", "variant", "name"), [(m, v, name) for m, v, names in VARIANTS for name in names])
def test_the_released_rules_keep_samples_apart_as_well(method: str, variant: str, name: str) -> None:
    layout, more = NAMED[name], {"hostile": "top-1", "purge": True} if method == "rsp" else {}
    x = layout.samples(3, 1)
    explain = Explainer(layout.build(), method, variant=variant, backend="reference", **more)
    together = explain(x, target=1)
    assert np.abs(together.relevance["x"][1]).max() > 0
    assert_alike(layout, together, 1, explain({"x": x["x"][1:2]}, target=1), 0)


@pytest.mark.parametrize(
    "name", [lay.name for lay in LAYOUTS if lay.name.startswith(("input tokens", "tags", "recurrent, "))]
)
def test_noise_around_a_sample_is_measured_by_that_sample(name: str) -> None:
    layout = NAMED[name]
    explain, x = explained(layout, "smoothgrad")
    target = (layout.target or "").format(i=2)
    here = explain(x, target=target)
    there = explain(among_others(layout, x, layout.samples(3, 2), 2), target=target)
    assert_alike(layout, here, 2, there, 2)


@pytest.mark.parametrize("name", ["frames merged to the end", "tokens first, classes per token", "samples last"])
def test_the_explained_file_keeps_samples_apart_too(name: str) -> None:
    layout = NAMED[name]
    x = layout.samples(3, 1)["x"]
    file = Explainer(layout.build(), "rap").convert(target=1)
    session = onnxruntime.InferenceSession(file.SerializeToString(), providers=["CPUExecutionProvider"])
    there = [o.name for o in session.get_outputs()].index("x_relevance")
    together, alone = (session.run(None, {"x": part})[there] for part in (x, x[1:2]))
    # float32 sums of other lengths, through quotients
    np.testing.assert_allclose(together[1:2], alone, rtol=0, atol=2e-5 * np.abs(alone).max())


def test_kernels_leave_a_merged_batch_to_the_expansion() -> None:
    runs = {}
    for name in ("pictures", "frames merged"):
        work = canonicalize(load(NAMED[name].build()).model)
        graph = build(work, resolve("rap").build(), Options())
        lines = [line for line in lower(graph.model).lines if line.composite in ("RelativeShare", "Box")]
        runs[name] = [line.by_kernel for line in lines]
    assert all(runs["pictures"]) and not any(runs["frames merged"])


PLACES = {
    "tokens first": {"h": Held(1), "q2": Held(1, 1, 2), "s": Held(0, 1, 2), "hc": Held(0, 4, 1), "m": FIRST},
    "frames merged": {"f": Held(0, 1, 3), "p": Held(0, 1, 3), "m": FIRST},
    "frames first, merged": {"f": Held(0, 3, 1), "s": Held(1), "y": FIRST},
    "pairs joined along the batch": {"c": Held(0, 2, 1), "e": Held(0, 2, 1), "a": FIRST, "b": FIRST},
    "windows": {"a": FIRST, "f": Held(0, 1, 4), "s": Held(0, 1, 4), "i": FIRST},
    "samples last in Gemm": {"t": Held(1), "h": FIRST, "s": Held(1), "y": FIRST},
    "samples among channels, fixed": {"a": Held(1, 1, 4), "i": Held(1, 1, 4), "b": FIRST},
    "input tokens first, as many as samples": {"e": Held(1), "s": Held(0, 1, 2), "m": FIRST, "y": FIRST},
}


@pytest.mark.parametrize("name", PLACES)
def test_every_value_says_where_it_has_its_samples(name: str) -> None:
    work = canonicalize(load(NAMED[name].build()).model)
    known = tensors(work)
    found = samples_of(work, known["y"], [v.name or "" for v in work.graph.inputs])
    assert {n: found.place(known[n]) for n in PLACES[name]} == PLACES[name]


@pytest.mark.parametrize(
    ("body", "shape"),
    [
        ("t = Transpose<perm=[1,0]>(x)\n y = MatMul(x, t)", "float[3,3]"),
        ("y = Softmax<axis=0>(x)", "float[3,4]"),
        ("a, b = Split<axis=0>(x, sizes)\n y = Concat<axis=0>(b, a)", "float[3,4]"),
    ],
    ids=["product", "softmax", "rolled"],
)
def test_what_joins_entries_of_an_axis_makes_it_no_batch(body: str, shape: str) -> None:
    out = shape if "MatMul" not in body else "float[3,3]"
    proto = model(f"g ({shape} x) => ({out} y) {{ {body} }}", sizes=np.asarray([1, 2]))
    work = canonicalize(load(proto).model)
    found = samples_of(work, tensors(work)["y"], ["x"])
    assert not found.apart
    assert found.place(tensors(work)["y"]) in (Nowhere.UNKNOWN, Held(1))


def test_a_method_that_masks_all_samples_as_one_says_so() -> None:
    explain, x = explained(NAMED["two inputs, samples on different axes"], "rise")
    assert explain(x, target=1).notes == (
        "Method 'rise' masked all samples as one, because axis 0 of 'z' does not count them: a sample's map depends on its "
        "neighbours.",
    )
