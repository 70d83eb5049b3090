"""From a layer's shape and form to one launch: which kernel, compiled with what, on which grid. No GPU, no compiler.

`generic` plans leave every size to run time, and are what the shipped kernels answer to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

from onnx_explain_kernels.errors import UnsupportedShape
from onnx_explain_kernels.forms import ConvForm, DenominatorForm, PoolForm
from onnx_explain_kernels.geometry import LIMIT, Conv, Layout, Pair, Pool, strides_of
from onnx_explain_kernels.specialisation import Constant, Specialisation
from onnx_explain_kernels.tiles import (
    PRECISIONS,
    Precision,
    Tile,
    conv_tile,
    generic_sum_tile,
    generic_tile,
    narrow_tile,
    sum_tile,
)

Storage = Literal["fp32", "bf16", "fp16"]
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
CONV_TENSORS = ("r", "a", "b", "z", "delta", "w", "v", "x", "d", "low", "high", "out", "sums", "counts")
CONV_SIZES = ("N", "G", "C", "K", "H", "W", "P", "Q", "R", "S", "SH", "SW", "PH", "PW", "DH", "DW")
CONV_STRIDES = ("r_n", "r_k", "r_h", "r_w", "x_n", "x_c", "x_h", "x_w", "o_n", "o_c", "o_h", "o_w", "low_n", "low_c")
SUM_TENSORS = ("x", "w", "v", "bias", "z", "r", "delta", "out", "pair", "lost")
SUM_STRIDES = ("r_n", "r_k", "r_w", "x_n", "x_c", "x_h", "x_w", "o_n", "o_k", "o_w")
POOL_SIZES = ("N", "C", "H", "W", "P", "Q", "KH", "KW", "SH", "SW", "PH", "PW", "EH", "EW", "DH", "DW", "PAD")
POOL_STRIDES = tuple(f"{t}_{s}" for t in "xyro" for s in "ncp")
NUMBERS = ("epsilon", "below_epsilon")
SUM_NUMBERS = ("epsilon", "scale")
MIXED = 16  # fewer channels than this share a turn's depth between kernel offsets
THREADS = 256  # of a pooling block
TURNS = 8  # channels, or blocks of them, that one pooling thread takes at most
CROWD = 8192  # pooling blocks that keep a large device busy
_BLOCK = 1024  # elements per program of the shift's two kernels


@dataclass(frozen=True)
class Layouts:
    """How tensors lie in memory: `r` those at the layer's output, `x` those at its input, `out` the result."""

    r: Layout = "nchw"
    x: Layout = "nchw"
    out: Layout = "nchw"


@dataclass(frozen=True)
class Types:
    """Element types in memory; accumulation is always float32."""

    r: Storage = "fp32"
    x: Storage = "fp32"
    out: Storage = "fp32"


LAYOUTS, TYPES = Layouts(), Types()


@dataclass(frozen=True)
class Plan:
    """One launch. `integers`: the value of every integer parameter, whether compiled in or passed. `needs`: bytes of every
    tensor that is read or written. `rows`: row sums per sample, for a form with sums. `operations`: the layer's
    multiply-adds times two, once per branch. `writes`: tensors that are written; `inplace`: those that may lie where the
    result does, read at the very place that is written next.
    """

    specialisation: Specialisation
    grid: tuple[int, int, int]
    threads: int
    integers: Mapping[str, int]
    needs: Mapping[str, int]
    writes: tuple[str, ...]
    inplace: frozenset[str] = frozenset()
    operations: int = 0
    rows: int = 0


def plan_conv(
    conv: Conv,
    form: ConvForm,
    *,
    arch: int,
    layouts: Layouts = LAYOUTS,
    types: Types = TYPES,
    precision: Precision = "tf32",
    bounds: tuple[bool, bool] = (False, True),
    generic: bool = False,
) -> Plan:
    """The launch of one fused pass over a convolution.

    Args:
        conv: the layer's geometry.
        form: what is fused.
        arch: the architecture, e.g. 90.
        layouts: how r (a, b, z), x (d) and the result lie in memory.
        types: their element types; weights have that of `precision`.
        precision: of the products (`docs/kernels.md` has the errors).
        bounds: whether `low` and `high` differ per sample, per channel.
        generic: leave every size to run time, as shipped kernels do.

    Raises:
        UnsupportedShape: the form, precision or size has no kernel, or no generic one.

    """
    if precision not in PRECISIONS:
        raise UnsupportedShape(f"Precision {precision!r} is unknown: {', '.join(PRECISIONS)} are.")
    integers = _conv_integers(conv, layouts, bounds)
    positions = -(-conv.size[0] // conv.strides[0]) * -(-conv.size[1] // conv.strides[1])
    stepped = all(s == 1 or d == 1 for s, d in zip(conv.strides, conv.dilations))
    point = conv.kernel == conv.strides == (1, 1) and conv.begin == (0, 0) and conv.size == conv.out
    small = conv.samples * max(conv.channels * prod(conv.size), conv.filters * prod(conv.out)) < LIMIT
    words: dict[str, Constant] = {
        "QUOTIENT": form.quotient,
        "BRANCH": form.branch,
        "NUMERATOR": form.numerator,
        "BELOW": form.below,
        "GATED": form.gated,
        "SHIFTED": form.shifted,
        "ACCUMULATE": form.accumulate,
        "SUMS": form.sums,
        "FLAT": conv.strides == (1, 1) and not generic,
        "STEPPED": stepped,
        **_rows_first(layouts, (conv.out, conv.size, conv.size), generic),
    }
    if generic and not stepped:
        raise UnsupportedShape(f"{conv}: strides with dilations are compiled per layer, not shipped.")
    if conv.narrow:
        tile = _narrow_tile(conv, layouts, positions, generic)
        columns = -(-conv.channels // tile.columns)
        row_tiles = conv.samples * -(-positions // tile.rows)
    else:
        fold = generic or (small and positions % 128 != 0 and positions < 4096)
        if generic and not small:
            raise UnsupportedShape(f"{conv}: a batch of 2³¹ elements or more has no shipped kernel.")
        tile = _conv_tile(conv, form, arch, precision, conv.samples * positions if fold else positions, generic)
        columns = conv.group * -(-(conv.channels // conv.group) // tile.columns)
        row_tiles = -(-conv.samples * positions // tile.rows) if fold else conv.samples * -(-positions // tile.rows)
        words |= {"FOLD": fold, "POINT": point and not generic, "DOT": _dot(precision), "BK": tile.depth}
        words |= {"EVEN_K": not generic and integers["K"] % tile.depth == 0, "PRECISION": _mode(precision)}
    words |= {"BM": tile.rows, "BN": tile.columns}
    grid = _grid(row_tiles * columns, prod(conv.strides))
    kernel = "narrow_relevance" if conv.narrow else "conv_relevance"
    pointers = _conv_pointers(form, types, "fp32" if conv.narrow else _dot(precision))
    spec = _conv_specialisation(kernel, arch, pointers, integers, words, tile, layouts, generic)
    rows = columns * prod(conv.size) if form.sums else 0
    needs = _conv_needs(conv, form, pointers, rows, bounds)
    alike = layouts.x == layouts.out and types.x == types.out
    return Plan(
        spec,
        grid,
        32 * tile.warps,
        integers,
        needs,
        form.results,
        frozenset({"x", "d"} if alike else ()),
        conv.operations * form.products,
        rows,
    )


def _rows_first(layouts: Layouts, maps: tuple[Pair, Pair, Pair], generic: bool) -> dict[str, Constant]:
    """Of which of r, x and out memory runs along a tile's rows; what is known to be one pixel lies either way."""
    laid = (layouts.r, layouts.x, layouts.out)
    rows = [layout == "nchw" and (generic or prod(size) > 1) for layout, size in zip(laid, maps, strict=True)]
    return dict(zip(_LAID_WORDS, rows, strict=True))


def _dot(precision: Precision) -> str:
    return precision if precision in ("bf16", "fp16") else "fp32"


def _mode(precision: Precision) -> str:
    """How the matrix unit multiplies float32."""
    return "ieee" if precision in ("bf16", "fp16") else precision


def _conv_integers(conv: Conv, layouts: Layouts, bounds: tuple[bool, bool]) -> dict[str, int]:
    per_sample, per_channel = bounds
    sizes = (conv.samples, conv.group, conv.channels // conv.group, conv.filters // conv.group, *conv.size, *conv.out)
    low = (conv.channels if per_channel else 1) if per_sample else 0, 1 if per_channel else 0
    strides = (
        *strides_of(layouts.r, conv.filters, conv.out),
        *strides_of(layouts.x, conv.channels, conv.size),
        *strides_of(layouts.out, conv.channels, conv.size),
    )
    geometry = (*conv.kernel, *conv.strides, *conv.begin, *conv.dilations)
    return dict(zip((*CONV_SIZES, *CONV_STRIDES), (*sizes, *geometry, *strides, *low), strict=True))


def _conv_tile(conv: Conv, form: ConvForm, arch: int, precision: Precision, rows: int, generic: bool) -> Tile:
    columns, depth = conv.channels // conv.group, conv.filters // conv.group
    if generic:
        return generic_tile(arch, columns, branch=form.branch, quotient=form.quotient)
    words: dict[str, Any] = {"branch": form.branch, "quotient": form.quotient, "precision": precision}
    reads = (form.numerator != "one" or form.below == "x") + (form.below == "d") + form.accumulate
    return conv_tile(arch, rows, columns, depth, flat=conv.strides == (1, 1), reads=reads, **words)


def _narrow_tile(conv: Conv, layouts: Layouts, positions: int, generic: bool) -> Tile:
    last = layouts.x == layouts.out == "nhwc"
    return narrow_tile(*(128, 64) if generic else (positions, conv.channels), channels_last=last)


def _conv_pointers(form: ConvForm, types: Types, weights: str) -> dict[str, str]:
    """The element type of every tensor the form touches."""
    kinds = {**dict.fromkeys("rabz", types.r), **dict.fromkeys("xd", types.x), **dict.fromkeys("wv", weights)}
    return {name: kinds.get(name, types.out if name == "out" else "fp32") for name in (*form.operands, *form.results)}


def _conv_specialisation(
    kernel: str,
    arch: int,
    pointers: Mapping[str, str],
    integers: Mapping[str, int],
    words: Mapping[str, Constant],
    tile: Tile,
    layouts: Layouts,
    generic: bool,
) -> Specialisation:
    forward = kernel.endswith("_denominator")
    tensors, numbers, strides = (
        (SUM_TENSORS, SUM_NUMBERS, SUM_STRIDES) if forward else (CONV_TENSORS, NUMBERS, CONV_STRIDES)
    )
    fixed = {k: v for k, v in integers.items() if not generic or k in _unit_strides(layouts)}
    multiples = ("C",) if forward else _aligned_strides(layouts)
    aligned = generic and all(integers[k] % 16 == 0 for k in multiples)
    claims = [*pointers, *(multiples if aligned else ())]
    constants: dict[str, Constant] = {**fixed, **words}
    parameters: list[tuple[str, str]] = []
    for name in (*tensors, *numbers, *CONV_SIZES, *strides):
        if name in pointers:
            parameters.append((name, f"*{pointers[name]}"))
        elif name in tensors or name in fixed:
            constants.setdefault(name, None)
            parameters.append((name, "constexpr"))
        else:
            parameters.append((name, "fp32" if name in numbers else "i32"))
    parameters += [(name, "constexpr") for name in _WORDS[kernel]]
    ordered = tuple((n, constants[n]) for n, t in parameters if t == "constexpr")
    return Specialisation(kernel, arch, tuple(parameters), ordered, tuple(claims), tile.warps, tile.stages)


_FORM_WORDS = ("QUOTIENT", "BRANCH", "NUMERATOR", "BELOW", "GATED", "SHIFTED", "ACCUMULATE", "SUMS")
_LAID_WORDS = ("R_ROWS", "X_ROWS", "OUT_ROWS")
_WORDS = {
    "conv_relevance": (
        *_FORM_WORDS,
        *_LAID_WORDS,
        "FOLD",
        "FLAT",
        "STEPPED",
        "POINT",
        "EVEN_K",
        "DOT",
        "PRECISION",
        "BM",
        "BN",
        "BK",
    ),
    "narrow_relevance": (*_FORM_WORDS, *_LAID_WORDS, "FLAT", "STEPPED", "BM", "BN"),
}
_SUM_WORDS = ("SOURCE", "END", "BIASED", "ACCOUNTS", "GATE", "DIVIDED", "SHIFTED")
_WORDS |= {
    "conv_denominator": (
        *_SUM_WORDS,
        *_LAID_WORDS,
        "FOLD",
        "MIXED",
        "POINT",
        "EVEN_K",
        "DOT",
        "PRECISION",
        "BM",
        "BN",
        "BK",
    ),
    "narrow_denominator": (*_SUM_WORDS, *_LAID_WORDS, "BM", "BN"),
}


def _unit_strides(layouts: Layouts) -> tuple[str, ...]:
    """Strides that a layout makes 1."""
    names = {"r": (("r_w",), ("r_k",)), "x": (("x_w",), ("x_c",)), "o": (("o_w",), ("o_c", "o_k"))}
    laid = (("r", layouts.r), ("x", layouts.x), ("o", layouts.out))
    return tuple(name for t, layout in laid for name in names[t][layout == "nhwc"])


def _aligned_strides(layouts: Layouts) -> tuple[str, ...]:
    """What must be a multiple of 16 for a shipped kernel to load 16 bytes at once along the filters."""
    return ("K", "r_n", "r_h", "r_w") if layouts.r == "nhwc" else ("K",)


def _grid(x: int, y: int) -> tuple[int, int, int]:
    if x >= LIMIT or y > 65535:
        raise UnsupportedShape(f"A grid of {x} x {y} programs is larger than a device takes.")
    return x, y, 1


def _conv_needs(
    conv: Conv, form: ConvForm, pointers: Mapping[str, str], rows: int, bounds: tuple[bool, bool]
) -> dict[str, int]:
    inputs, outputs = conv.samples * conv.channels * prod(conv.size), conv.samples * conv.filters * prod(conv.out)
    bound = (conv.samples if bounds[0] else 1) * (conv.channels if bounds[1] else 1)
    counts = {**dict.fromkeys("rabz", outputs), **dict.fromkeys("xd", inputs), **dict.fromkeys("wv", conv.weights)}
    counts |= {"out": inputs, "delta": conv.samples, "low": bound, "high": bound}
    counts |= dict.fromkeys(("sums", "counts"), conv.samples * rows)
    return {name: counts[name] * BYTES[kind] for name, kind in pointers.items()}


def plan_denominator(
    conv: Conv,
    form: DenominatorForm,
    *,
    arch: int,
    layouts: Layouts = LAYOUTS,
    precision: Precision = "tf32",
    generic: bool = False,
) -> Plan:
    """The launch of one fused pass forward over a convolution, in float32.

    Args:
        conv: the layer's geometry.
        form: what is fused.
        arch: the architecture, e.g. 90.
        layouts: how x, the tensors that are read at the output (r, z; `lost` too), and the results lie in memory.
        precision: of the products.
        generic: leave every size to run time, as shipped kernels do.

    Raises:
        UnsupportedShape: the form, precision or size has no kernel, or no generic one.

    """
    if precision not in PRECISIONS:
        raise UnsupportedShape(f"Precision {precision!r} is unknown: {', '.join(PRECISIONS)} are.")
    integers = _sum_integers(conv, layouts)
    positions, depth, filters = prod(conv.out), conv.channels // conv.group, conv.filters // conv.group
    words: dict[str, Constant] = {
        "SOURCE": form.source,
        "END": form.end,
        "BIASED": form.biased,
        "ACCOUNTS": form.accounts,
        "GATE": form.gate,
        "DIVIDED": form.divided,
        "SHIFTED": form.shifted,
        **_rows_first(layouts, (conv.out, conv.size, conv.out), generic),
    }
    if conv.shallow:
        last = layouts.r == layouts.out == "nhwc"
        tile = narrow_tile(*(128, 64) if generic else (positions, conv.filters), channels_last=last)
        columns = -(-conv.filters // tile.columns)
        row_tiles = conv.samples * -(-positions // tile.rows)
    else:
        small = conv.samples * max(conv.channels * prod(conv.size), conv.filters * positions) < LIMIT
        if generic and not small:
            raise UnsupportedShape(f"{conv}: a batch of 2³¹ elements or more has no shipped kernel.")
        fold = generic or (small and positions % 128 != 0 and positions < 4096)
        branch = {"halves": "dual", "twin": "twin", "magnitudes": "twin"}.get(form.source, "single")
        rows = conv.samples * positions if fold else positions
        if generic:
            tile = generic_sum_tile(arch, filters, branch=branch)
        else:
            tile = sum_tile(arch, rows, filters, depth, branch=branch, end=form.end, precision=precision)
        columns = conv.group * -(-filters // tile.columns)
        row_tiles = -(-rows // tile.rows) if fold else conv.samples * -(-positions // tile.rows)
        point = conv.kernel == conv.strides == (1, 1) and conv.begin == (0, 0) and conv.size == conv.out
        mixed = depth < MIXED
        words |= {"FOLD": fold, "MIXED": mixed, "POINT": point and not generic, "DOT": _dot(precision)}
        words |= {"EVEN_K": not generic and depth % tile.depth == 0, "PRECISION": _mode(precision), "BK": tile.depth}
    words |= {"BM": tile.rows, "BN": tile.columns}
    kernel = "narrow_denominator" if conv.shallow else "conv_denominator"
    weights = "fp32" if conv.shallow else _dot(precision)
    pointers = {name: weights if name in "wv" else "fp32" for name in (*form.operands, *form.results)}
    spec = _conv_specialisation(kernel, arch, pointers, integers, words, tile, layouts, generic)
    outputs = conv.samples * conv.filters * positions
    counts = {**dict.fromkeys(("z", "r", "out", "pair", "lost"), outputs), **dict.fromkeys("wv", conv.weights)}
    counts |= {"x": conv.samples * conv.channels * prod(conv.size), "bias": conv.filters, "delta": conv.samples}
    needs = {name: counts[name] * BYTES[kind] for name, kind in pointers.items()}
    alike = frozenset({"r", "z"} if layouts.r == layouts.out else ())
    grid, operations = _grid(row_tiles * columns, 1), conv.operations * form.products
    return Plan(spec, grid, 32 * tile.warps, integers, needs, form.results, alike, operations)


def _sum_integers(conv: Conv, layouts: Layouts) -> dict[str, int]:
    sizes = (conv.samples, conv.group, conv.channels // conv.group, conv.filters // conv.group, *conv.size, *conv.out)
    geometry = (*conv.kernel, *conv.strides, *conv.begin, *conv.dilations)
    r_n, r_k, _, r_w = strides_of(layouts.r, conv.filters, conv.out)
    o_n, o_k, _, o_w = strides_of(layouts.out, conv.filters, conv.out)
    strides = (r_n, r_k, r_w, *strides_of(layouts.x, conv.channels, conv.size), o_n, o_k, o_w)
    return dict(zip((*CONV_SIZES, *SUM_STRIDES), (*sizes, *geometry, *strides), strict=True))


def plan_pool(pool: Pool, form: PoolForm, *, arch: int, layouts: Layouts = LAYOUTS, generic: bool = False) -> Plan:
    """The launch of one fused pass over a pool, in float32; y lies as r does.

    Raises:
        UnsupportedShape: the grid is larger than a device takes.

    """
    channels_last = layouts.out == "nhwc"
    tile_c = 1 if layouts.out == layouts.x == layouts.r == "nchw" else 32
    tile_p = THREADS // tile_c
    strides: list[int] = []
    for layout, size in (
        (layouts.x, pool.size),
        (layouts.r, pool.out),
        (layouts.r, pool.out),
        (layouts.out, pool.size),
    ):
        n, c, _, p = strides_of(layout, pool.channels, size)
        strides += [n, c, p]
    sizes = (*pool.size, *pool.out, *pool.kernel, *pool.strides, *pool.begin, *pool.end, *pool.dilations)
    values = (pool.samples, pool.channels, *sizes, int(pool.include_pad), *strides)
    integers = dict(zip((*POOL_SIZES, *POOL_STRIDES), values, strict=True))
    fixed = () if generic else POOL_SIZES[1:]
    words: dict[str, Constant] = {
        "kind": form.kind,
        "quotient": form.quotient,
        "numerator": form.numerator,
        "below": form.below,
        "shifted": form.shifted,
        "tile_c": tile_c,
        "tile_p": tile_p,
        "lanes": "channels" if channels_last else "positions",
    }
    parameters = [(name, "*fp32") for name in ("x", "y", "r", "delta", "out")] + [(name, "fp32") for name in NUMBERS]
    parameters += [(name, "i32") for name in (*POOL_SIZES, *POOL_STRIDES)]
    constants = (*words.items(), *((name, integers[name]) for name in fixed))
    spec = Specialisation(f"{form.kind}_pool", arch, tuple(parameters), constants, (), THREADS // 32, 1)
    across, planes = -(-prod(pool.size) // tile_p), pool.samples * -(-pool.channels // tile_c)
    turns = max(1, min(TURNS, across * planes // CROWD))  # per thread: where a position's windows are is found once
    grid = _grid(across, min(-(-planes // turns), 65535))
    inputs, outputs = pool.elements
    counts = {"x": inputs, "out": inputs, "y": outputs, "r": outputs, "delta": pool.samples}
    needs = {name: 4 * counts[name] for name in (*form.operands, "out")}
    work = pool.samples * pool.channels * prod(pool.out) * prod(pool.kernel)
    return Plan(spec, grid, THREADS, integers, needs, ("out",), operations=work)


def plan_shift(samples: int, rows: int, *, arch: int) -> Plan:
    """The launch that makes RAP's δ [samples] from `rows` row sums and counts per sample."""
    pointers = ("sums", "counts", "want", "delta", "kept")
    parameters = (*((name, "*fp32") for name in pointers), ("L", "i32"), ("BLOCK", "constexpr"))
    spec = Specialisation("shift_of_sums", arch, parameters, (("BLOCK", 4 * _BLOCK),), pointers, 8, 2)
    needs = {"sums": 4 * samples * rows, "counts": 4 * samples * rows}
    needs |= dict.fromkeys(("want", "delta", "kept"), 4 * samples)
    return Plan(spec, _grid(samples, 1), 256, {"L": rows}, needs, ("delta", "kept"))


def plan_apply(samples: int, length: int, *, arch: int, types: Types = TYPES) -> Plan:
    """The launch that subtracts δ from the non-zero entries of c [samples, length]."""
    parameters = (
        ("c", f"*{types.r}"),
        ("delta", "*fp32"),
        ("out", f"*{types.out}"),
        ("L", "i32"),
        ("BLOCK", "constexpr"),
    )
    spec = Specialisation("apply_shift", arch, parameters, (("BLOCK", _BLOCK),), ("c", "delta", "out"), 4, 2)
    needs = {"c": samples * length * BYTES[types.r], "delta": 4 * samples, "out": samples * length * BYTES[types.out]}
    return Plan(
        spec,
        _grid(-(-length // _BLOCK), samples),
        128,
        {"L": length},
        needs,
        ("out",),
        frozenset({"c"} if types.r == types.out else ()),
    )
