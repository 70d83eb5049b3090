"""Cases of operators that pick, place or read entries by indices and coordinates: TopK, Scatter*, GridSample, RoiAlign, …"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from case import Case, Values, cases, distinct, int0, ints, moved, positive, signed
from onnx import TensorProto

UNIT = "unit"


def indexed() -> Iterator[Case]:
    """All of them."""
    for family in (_sorted, _scattered, _picked, _grids, _regions):
        yield from family()


def _sorted() -> Iterator[Case]:
    x, k = distinct(2, 5, 3), {"k": ints(2)}
    yield from moved("topk-attribute", "y, i = TopK<axis=1,k=2>(x)", x, opset=9, linear=False)
    yield from moved("topk", "y, i = TopK<axis=1>(x, k)", x, k, opset=(10, 11, 24), linear=False)
    yield from moved("topk-smallest", "y, i = TopK<axis=-2,largest=0>(x, k)", x, k, opset=11, linear=False)
    yield from moved("topk-all", "y, i = TopK(x, k)", x, {"k": ints(3)}, linear=False)
    yield from moved("topk-indices-kept", "y, i = TopK(x, k)", x, k, others={"i": TensorProto.INT64}, linear=False)
    text = "y, i = TopK<axis=1>(x, k); z = GatherElements<axis=1>(x, i)"
    yield from moved("topk-and-gather", text, x, k, outputs=("y", "z"), linear=False)
    open_batch = Values((3, 4), "distinct", declared=("N", 4))
    yield from moved("topk-dynamic-batch", "y, i = TopK(x, k)", open_batch, k, linear=False)
    lengths = {"l": ints(3, 1, 2)}
    yield from moved("reversesequence", "y = ReverseSequence(x, l)", signed(3, 3, 2), lengths)
    along = "y = ReverseSequence<batch_axis=0,time_axis=1>(x, l)"
    yield from moved("reversesequence-batch-first", along, signed(3, 4), lengths)
    for upper in (0, 1):
        for name, diagonal in {"": None, "-above": int0(1), "-below": int0(-2), "-far": int0(9)}.items():
            text = f"y = Trilu<upper={upper}>(x{'' if diagonal is None else ', k'})"
            yield from moved(f"trilu-{upper}{name}", text, signed(2, 3, 4), {} if diagonal is None else {"k": diagonal})
    options: dict[str, Any] = {"role": "linear", "linear": True}
    for name, attributes in {
        "": "",
        "-exclusive": "exclusive=1",
        "-reverse": "reverse=1",
        "-both": "exclusive=1,reverse=1",
    }.items():
        opset = (11, 14) if not name else 17
        text = f"y = CumSum<{attributes}>(x, a)"
        yield from cases(f"cumsum{name}", text, {"x": signed(2, 4, 3)}, {"a": int0(-2)}, opset=opset, **options)
    both = {"s": ints(2, 6)}
    yield from moved("centercroppad", "y = CenterCropPad<axes=[1,-1]>(x, s)", signed(2, 5, 3), both, opset=18)
    whole = {"s": ints(3, 2, 4)}
    yield from moved("centercroppad-all", "y = CenterCropPad(x, s)", signed(2, 5, 3), whole, opset=18)


def _scattered() -> Iterator[Case]:
    pair = {"x": signed(3, 4), "u": signed(2, 3)}
    apart, again = {"i": np.array([[0, 3, 1], [-1, 0, 2]])}, {"i": np.array([[0, 3, 0], [2, -2, 2]])}
    text = "y = ScatterElements<axis=1{}>(x, i, u)"
    yield from moved("scatter", "y = Scatter<axis=1>(x, i, u)", pair, apart, opset=9)
    yield from moved("scatterelements", text.format(""), pair, apart, opset=(11, 13, 16, 18))
    yield from moved("scatterelements-repeated", text.format(""), pair, again)
    yield from moved("scatterelements-updates", text.format(""), {"u": pair["u"]}, apart | {"x": pair["x"]})
    yield from moved("scatterelements-data", text.format(""), {"x": pair["x"]}, apart | {"u": pair["u"]})
    yield from moved("scatterelements-add", text.format(',reduction="add"'), pair, again, opset=(16, 18))
    yield from moved(
        "scatterelements-add-updates", text.format(',reduction="add"'), {"u": pair["u"]}, again | {"x": pair["x"]}
    )
    product = {"x": positive(3, 4), "u": positive(2, 3)}
    smooth: dict[str, Any] = {"linear": False}
    yield from moved("scatterelements-mul", text.format(',reduction="mul"'), product, again, opset=16, **smooth)
    apart_values = {"x": Values((3, 4), "distinct", (0.0,)), "u": Values((2, 3), "distinct")}
    for extremum in ("max", "min"):
        reduced = text.format(f',reduction="{extremum}"')
        yield from moved(f"scatterelements-{extremum}", reduced, apart_values, again, opset=18, **smooth)
    rows = {"x": signed(4, 3), "u": signed(3, 3)}
    twice, once = {"i": np.array([[1], [3], [1]])}, {"i": np.array([[1], [-1], [0]])}
    text = "y = ScatterND<>(x, i, u)"
    yield from moved("scatternd", text, rows, once, opset=(11, 13, 16, 18))
    yield from moved("scatternd-entries", text, {"x": signed(2, 3), "u": signed(2)}, {"i": np.array([[0, 2], [1, -3]])})
    added = 'y = ScatterND<reduction="add">(x, i, u)'
    yield from moved("scatternd-add", added, rows, twice, opset=(16, 18))
    values = {"x": Values((4, 3), "distinct", (0.0,)), "u": Values((3, 3), "distinct")}
    yield from moved("scatternd-max", 'y = ScatterND<reduction="max">(x, i, u)', values, twice, opset=18, **smooth)
    rows = {"x": positive(4, 3), "u": positive(3, 3)}
    yield from moved("scatternd-mul", 'y = ScatterND<reduction="mul">(x, i, u)', rows, twice, opset=18, **smooth)
    cache = {"x": signed(2, 4, 3), "u": signed(2, 2, 3)}
    text = "y = TensorScatter(x, u, i)"
    yield from moved("tensorscatter", text, cache, {"i": ints(2, 0)}, opset=24)
    ring = 'y = TensorScatter<axis=1,mode="circular">(x, u, i)'
    yield from moved("tensorscatter-circular", ring, cache, {"i": ints(3, 1)}, opset=24)
    yield from moved("tensorscatter-update", "y = TensorScatter(x, u)", {"u": cache["u"]}, {"x": cache["x"]}, opset=24)
    places = (
        "p, i = MaxPool<kernel_shape=[2,2],strides=[2,2]>(x); y = MaxUnpool<kernel_shape=[2,2],strides=[2,2]>(p, i)"
    )
    yield from moved("maxunpool", places, distinct(2, 2, 4, 4), opset=(11, 22), linear=False, only_float32=_UNPOOL)
    kept = {"c": np.array([True, False, True])}
    yield from moved("compress", "y = Compress<axis=1>(x, c)", signed(2, 4), kept, opset=(9, 11), declared=(2, 2))
    yield from moved("compress-flat", "y = Compress(x, c)", signed(2, 4), kept, declared=(2,))


_UNPOOL = "ONNX Runtime unpools float32 alone"


def _picked() -> Iterator[Case]:
    tuples = {"i": np.array([[[0, 1], [2, -1]], [[1, 0], [1, 0]]])}
    text = "y = GatherND<batch_dims=1>(x, i)"
    yield from moved("gathernd-batch", text, signed(2, 3, 4), tuples, opset=(12, 13))
    yield from moved("gathernd-batch-slices", text, signed(2, 3, 4), {"i": np.array([[[0], [2]], [[1], [1]]])})
    two = {"i": np.zeros((2, 3, 1, 1), np.int64)}
    yield from moved("gathernd-batch-2", "y = GatherND<batch_dims=2>(x, i)", signed(2, 3, 4), two)


def _grids() -> Iterator[Case]:
    # Places that keep away from the kinks of linear reading: not within 0.02 of a pixel, for these sizes and numbers.
    x = signed(2, 2, 4, 5)
    grid = Values((2, 3, 2, 2), "over")
    inside = Values((2, 3, 2, 2), UNIT)
    text = "y = GridSample<{}>(x, g)"
    options: dict[str, Any] = {"role": "linear", "linear": True, "opset": 20}
    for mode in ("nearest", "linear", "cubic"):
        for padding in ("zeros", "border", "reflection"):
            for align in (0, 1):
                attributes = f'mode="{mode}",padding_mode="{padding}",align_corners={align}'
                for name, values in (("", inside), ("-out", grid)):
                    if name and mode == "nearest" and align:
                        continue
                    label = f"gridsample-{mode}-{padding}-{align}{name}"
                    yield from cases(label, text.format(attributes), {"x": x}, {"g": values}, **options)
    old = 'y = GridSample<mode="bilinear">(x, g)'
    yield from cases("gridsample-bilinear", old, {"x": x}, {"g": inside}, **(options | {"opset": 16}))
    yield from cases(
        "gridsample-bicubic",
        'y = GridSample<mode="bicubic">(x, g)',
        {"x": x},
        {"g": inside},
        **(options | {"opset": 16}),
    )
    deep = {"g": Values((1, 2, 2, 1, 3), UNIT)}
    for mode in ("nearest", "linear"):
        yield from cases(
            f"gridsample-{mode}-3d", text.format(f'mode="{mode}"'), {"x": signed(1, 2, 2, 3, 3)}, deep, **options
        )
    steered: dict[str, Any] = {"role": "product", "opset": 20, "step": 1e-7, "slack": 1e-5}
    for mode in ("linear", "cubic"):
        for padding in ("zeros", "border", "reflection"):
            attributes = f'mode="{mode}",padding_mode="{padding}"'
            for name, values in (("", inside), ("-out", grid)):
                if padding == "border" and name:
                    continue  # beyond the border nothing changes: the gradient is zero
                label = f"gridsample-grid-{mode}-{padding}{name}"
                yield from cases(label, text.format(attributes), {"x": x, "g": values}, **steered)
    open_batch = signed(3, 2, 3, 3, declared=("N", 2, 3, 3))
    places = Values((3, 2, 2, 2), UNIT, declared=("N", 2, 2, 2))
    yield from cases("gridsample-dynamic-batch", text.format(""), {"x": open_batch, "g": places}, **steered)
    flat: dict[str, Any] = {"role": "linear", "linear": True, "opset": 20}
    for align in (0, 1):
        text = f"y = AffineGrid<align_corners={align}>(x, s)"
        yield from cases(f"affinegrid-{align}", text, {"x": signed(2, 2, 3)}, {"s": ints(2, 1, 2, 3)}, **flat)
    text = "y = AffineGrid(x, s)"
    yield from cases("affinegrid-3d", text, {"x": signed(1, 3, 4)}, {"s": ints(1, 1, 2, 3, 2)}, **flat)


def _regions() -> Iterator[Case]:
    x = signed(2, 3, 6, 7)
    where = np.array([[0.3, 0.7, 4.1, 3.9], [2.2, 1.1, 9.0, 8.5], [-4.0, -3.5, 1.7, 2.9], [1.0, 1.0, 1.3, 1.2]])
    regions = {"r": where.astype(np.float64), "b": np.array([0, 1, 1, 0])}
    options: dict[str, Any] = {"role": "linear", "linear": True, "opset": 16}
    text = "y = RoiAlign<output_height=2,output_width=3,{}>(x, r, b)"
    yield from cases("roialign", text.format("sampling_ratio=2"), {"x": x}, regions, **(options | {"opset": (10, 16)}))
    yield from cases("roialign-adaptive", text.format("spatial_scale=0.5"), {"x": x}, regions, **options)
    shifted = 'sampling_ratio=1,coordinate_transformation_mode="output_half_pixel"'
    yield from cases("roialign-output-half-pixel", text.format(shifted), {"x": x}, regions, **options)
    one = "y = RoiAlign<sampling_ratio=3>(x, r, b)"
    yield from cases("roialign-one", one, {"x": x}, regions, **options)
