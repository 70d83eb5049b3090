"""Slow, obvious float64 versions of every rule, written from the papers' formulas on an explicit dense matrix.

Three parts: an evaluator (onnx's own, with the operators replaced that it gets wrong), the dense matrix of a linear
operator, and the rules. A rule sees ONE sample, flat: x [I], W [O, I] with z = W x + b, b [O], r [O] -> r [I].
Sources: methods.md §1 and §5 (gradient family, LRP), rap_rsp.md §2 (RAP). Nothing here knows the library.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from math import erf
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_pad import Pad_18
from onnx.reference.ops.op_resize import Resize as OnnxResize
from recurrences import RECURRENCES

# what picks, places and reads between pixels: compared with ONNX Runtime case by case, as everything here
from onnx_explain.backends.interpolation import Resize as ExactResize
from onnx_explain.backends.reference import GatherElements, LpNormalization, ScatterElements, ScatterND
from onnx_explain.backends.sampling import AffineGrid, GridSample, RoiAlign
from onnx_explain.backends.windows import GlobalLpPool, LpPool

Array = npt.NDArray[Any]
Rule = Callable[..., Array]


# --------------------------------------------------------------------------- windows


def window_sizes(
    size: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], pads: Sequence[int],
    ceil: bool,
) -> list[int]:  # fmt: skip
    """Number of windows per axis; with `ceil`, none that would start behind the input and its leading padding."""
    out = []
    for i, n in enumerate(size):
        span = (kernel[i] - 1) * dilations[i] + 1
        room = n + pads[i] + pads[i + len(size)] - span
        count = (-(-room // strides[i]) if ceil else room // strides[i]) + 1
        if ceil and (count - 1) * strides[i] >= n + pads[i]:
            count -= 1
        out.append(count)
    return out


def same_pads(
    size: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], upper: bool
) -> list[int]:
    """SAME_UPPER or SAME_LOWER: ceil(size / stride) windows, the odd pad at the end or at the start."""
    totals = [
        max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0) for n, k, s, d in zip(size, kernel, strides, dilations)
    ]
    small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
    return small + large if upper else large + small


def window(
    place: Sequence[int], size: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int],
    pads: Sequence[int],
) -> Iterator[tuple[int, ...]]:  # fmt: skip
    """The input positions that the window at `place` covers, in row-major order, without the padding."""
    for tap in product(*map(range, kernel)):
        position = tuple(p * s + t * d - b for p, s, t, d, b in zip(place, strides, tap, dilations, pads))
        if all(0 <= q < n for q, n in zip(position, size)):
            yield position


def winners(x: Array, kernel: Sequence[int], **geometry: Any) -> tuple[Array, dict[tuple[int, ...], tuple[int, ...]]]:
    """Max pooling of x [N, C, *S] with explicit loops: the maxima, and per output index the index of its winner.

    The first maximum in row-major order wins. `geometry`: strides, dilations, pads, ceil, as ONNX means them.
    """
    rank, size = x.ndim - 2, x.shape[2:]
    strides, dilations = geometry.get("strides") or [1] * rank, geometry.get("dilations") or [1] * rank
    pads = geometry.get("pads") or [0] * 2 * rank
    out = window_sizes(size, kernel, strides, dilations, pads, geometry.get("ceil", False))
    y = np.full((*x.shape[:2], *out), np.nan, x.dtype)
    winner = {}
    for index in np.ndindex(*y.shape):
        best: tuple[int, ...] | None = None
        for position in window(index[2:], size, kernel, strides, dilations, pads):
            here = (*index[:2], *position)
            if best is None or x[here] > x[best]:
                best = here
        if best is None:
            raise ValueError(f"the window at {index} lies wholly in the padding")
        y[index], winner[index] = x[best], best
    return y, winner


def winner_takes_all(x: Array, r: Array, kernel: Sequence[int], drop_zero: bool = False, **geometry: Any) -> Array:
    """All relevance of a maximum to its winner; windows add. `drop_zero`: RAP's release loses it where y = 0."""
    y, winner = winners(x, kernel, **geometry)
    given = np.zeros_like(x)
    for index, position in winner.items():
        if not (drop_zero and y[index] == 0):
            given[position] += r[index]
    return given


def reduced_winner_takes_all(x: Array, r: Array, axes: Sequence[int]) -> Array:
    """ReduceMax over `axes`, kept: all to the first maximum in row-major order of the reduced axes."""
    given = np.zeros_like(x)
    kept = [range(1) if axis in axes else range(n) for axis, n in enumerate(x.shape)]
    for place in product(*kept):
        best: tuple[int, ...] | None = None
        for part in product(*[range(n) if axis in axes else [place[axis]] for axis, n in enumerate(x.shape)]):
            if best is None or x[part] > x[best]:
                best = part
        assert best is not None
        given[best] += r[place]
    return given


# --------------------------------------------------------------------------- the evaluator


class ConvTranspose(OpRun):
    """onnx's splits groups along the wrong axis, and takes output_shape without the pads it implies."""

    op_domain = ""

    def _run(self, x: Array, w: Array, b: Array | None = None, **said: Any) -> tuple[Array, ...]:
        rank, size, kernel, group = x.ndim - 2, x.shape[2:], w.shape[2:], said["group"] or 1
        strides, dilations = said["strides"] or [1] * rank, said["dilations"] or [1] * rank
        extra, wanted = said["output_padding"] or [0] * rank, said["output_shape"]
        full = [(n - 1) * s + (k - 1) * d + 1 + e for n, s, k, d, e in zip(size, strides, kernel, dilations, extra)]
        if wanted is None and said["auto_pad"] in ("SAME_UPPER", "SAME_LOWER"):
            wanted = [n * s for n, s in zip(size, strides)]
        if wanted is None:
            pads = said["pads"] or [0] * 2 * rank
        else:
            total = [f - o for f, o in zip(full, wanted[-rank:])]
            small, large = [t // 2 for t in total], [t - t // 2 for t in total]
            pads = small + large if said["auto_pad"] == "SAME_UPPER" else large + small
        out = [f - pads[i] - pads[i + rank] for i, f in enumerate(full)]
        y = np.zeros((x.shape[0], w.shape[1] * group, *out), x.dtype)
        into, onto = x.shape[1] // group, w.shape[1]
        for place, tap in product(np.ndindex(*size), np.ndindex(*kernel)):
            at = tuple(p * s + t * d - b0 for p, s, t, d, b0 in zip(place, strides, tap, dilations, pads))
            if all(0 <= a < o for a, o in zip(at, out)):
                for g in range(group):
                    part, to = slice(g * into, (g + 1) * into), slice(g * onto, (g + 1) * onto)
                    y[(slice(None), to, *at)] += x[(slice(None), part, *place)] @ w[(part, slice(None), *tap)]
        return (y if b is None else y + b.reshape(-1, *[1] * rank),)


class MaxPool(OpRun):
    """onnx's counts the windows of SAME_LOWER wrongly."""

    op_domain = ""

    def _run(self, x: Array, **said: Any) -> tuple[Array, ...]:
        rank, kernel, pads = x.ndim - 2, said["kernel_shape"], said["pads"]
        strides, dilations = said["strides"] or [1] * rank, said["dilations"] or [1] * rank
        if said["auto_pad"] in ("SAME_UPPER", "SAME_LOWER"):
            pads = same_pads(x.shape[2:], kernel, strides, dilations, said["auto_pad"] == "SAME_UPPER")
        geometry = {"strides": strides, "dilations": dilations, "pads": pads, "ceil": bool(said["ceil_mode"])}
        y, winner = winners(x, kernel, **geometry)
        if len(self.onnx_node.output) == 1:
            return (y,)
        columns_first = bool(said["storage_order"])
        size = (*x.shape[:2], *reversed(x.shape[2:])) if columns_first else x.shape
        indices = np.zeros(y.shape, np.int64)
        for index, place in winner.items():
            stored = (*place[:2], *reversed(place[2:])) if columns_first else place
            indices[index] = np.ravel_multi_index(stored, size)
        return y, indices


class Erf(OpRun):
    """onnx's rounds to float32."""

    op_domain = ""

    def _run(self, x: Array) -> tuple[Array, ...]:
        return (np.vectorize(erf, otypes=[x.dtype])(x),)


class Gelu(OpRun):
    """onnx's is expanded into the Erf that rounds."""

    op_domain = ""

    def _run(self, x: Array, approximate: str | None = None) -> tuple[Array, ...]:
        inner = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
        shape = np.tanh(inner) if approximate == "tanh" else np.vectorize(erf, otypes=[x.dtype])(x / np.sqrt(2.0))
        return ((0.5 * x * (1 + shape)).astype(x.dtype),)


class GlobalMaxPool(OpRun):
    """onnx's reduces the wrong axes except in 2-D."""

    op_domain = ""

    def _run(self, x: Array) -> tuple[Array, ...]:
        return (x.max(axis=tuple(range(2, x.ndim)), keepdims=True),)


class BatchNormalization(OpRun):
    """onnx's computes batch statistics at opset 9, where momentum has a default."""

    op_domain = ""

    def _run(self, x: Array, *statistics: Array, **said: Any) -> tuple[Array, ...]:
        scale, bias, mean, var = (a.reshape(-1, *[1] * (x.ndim - 2)) for a in statistics)
        return ((scale * (x - mean) / np.sqrt(var + said["epsilon"]) + bias).astype(x.dtype),)


class LRN(OpRun):
    """onnx's iterates over the batch instead of the channels."""

    op_domain = ""

    def _run(self, x: Array, alpha: float, beta: float, bias: float, size: int) -> tuple[Array, ...]:
        total = np.zeros_like(x)
        for c in range(x.shape[1]):
            first, last = max(0, c - (size - 1) // 2), min(x.shape[1] - 1, c + size // 2)
            total[:, c] = (x[:, first : last + 1] ** 2).sum(axis=1)
        return ((x / (bias + alpha / size * total) ** beta).astype(x.dtype),)


class MeanVarianceNormalization(OpRun):
    """onnx's expands it with a float32 constant, and then refuses float64."""

    op_domain = ""

    def _run(self, x: Array, axes: Sequence[int] | None = None) -> tuple[Array, ...]:
        over = tuple(axes or (0, 2, 3))
        mean = x.mean(over, keepdims=True)
        deviation = np.sqrt((x**2).mean(over, keepdims=True) - mean**2)
        return (((x - mean) / (deviation + 1e-9)).astype(x.dtype),)


class Softmax(OpRun):
    """Before opset 13 a softmax spans all axes from `axis` (1) on; onnx's knows the new one alone."""

    op_domain = ""

    def _run(self, x: Array, **_: Any) -> tuple[Array, ...]:
        said = [a.i for a in self.onnx_node.attribute if a.name == "axis"]
        if self.run_params["opsets"][""] >= 13:
            return (self._of(x, said[0] if said else -1),)
        axis = (said[0] if said else 1) % x.ndim
        flat = x.reshape(int(np.prod(x.shape[:axis])), -1)
        return (self._of(flat, 1).reshape(x.shape),)

    def _of(self, x: Array, axis: int) -> Array:
        e = np.exp(x - x.max(axis=axis, keepdims=True))
        return np.asarray(e / e.sum(axis=axis, keepdims=True))


class LogSoftmax(Softmax):
    """The same."""

    def _of(self, x: Array, axis: int) -> Array:
        low = x - x.max(axis=axis, keepdims=True)
        return np.asarray(low - np.log(np.exp(low).sum(axis=axis, keepdims=True)))


class Mean(OpRun):
    """onnx's adds in place and cannot broadcast its first operand."""

    op_domain = ""

    def _run(self, *x: Array) -> tuple[Array, ...]:
        return (np.mean(np.broadcast_arrays(*x), axis=0, dtype=x[0].dtype),)


def _upsampled(x: Array, scales: Any, mode: str) -> Array:
    """Axis by axis; the source position of an output is its index / scale, for nearest the floor of that."""
    for axis, scale in enumerate(np.asarray(scales, np.float64)):
        size = x.shape[axis]
        matrix = np.zeros((int(np.floor(size * scale)), size))
        for row in range(len(matrix)):
            at = min(row / scale, size - 1.0)
            left = int(np.floor(at))
            share = at - left if mode == "linear" else 0.0
            matrix[row, left] += 1 - share
            matrix[row, min(left + 1, size - 1)] += share
        x = np.moveaxis(np.tensordot(matrix, x, (1, axis)), 0, axis).astype(x.dtype)
    return x


class Upsample(OpRun):
    """onnx's has no scales as attribute and no linear mode."""

    op_domain = ""

    def _run(self, x: Array, scales: Array | None = None, **said: Any) -> tuple[Array, ...]:
        listed = next((a.floats for a in self.onnx_node.attribute if a.name == "scales"), scales)
        return (_upsampled(x, listed, said["mode"]),)


class Resize(OnnxResize):
    """onnx's lacks opset 10: (x, scales), positions as Upsample's; it cuts out and filters in float32."""

    op_domain = ""

    def _run(self, *inputs: Any, **said: Any) -> Any:
        if self.run_params["opsets"][""] == 10:
            return (_upsampled(inputs[0], inputs[1], said["mode"]),)
        if said.get("antialias") or said["coordinate_transformation_mode"] == "tf_crop_and_resize":
            told = {"antialias": 0, "axes": None, "keep_aspect_ratio_policy": "stretch", **said}
            return ExactResize._run(self, *inputs, **told)  # type: ignore[arg-type]
        return super()._run(*inputs, **said)


class Pad(Pad_18):
    """onnx's cannot crop: cut what is negative first, pad afterwards."""

    op_domain = ""

    def _run(self, x: Array, pads: Array, *rest: Any, **said: Any) -> Any:  # type: ignore[override]
        named = range(x.ndim) if len(rest) < 2 or rest[1] is None else [int(a) % x.ndim for a in rest[1]]
        for i, axis in enumerate(named):
            first, last = max(-int(pads[i]), 0), x.shape[axis] - max(-int(pads[i + len(named)]), 0)
            x = x[tuple(slice(first, last) if a == axis else slice(None) for a in range(x.ndim))]
        return super()._run(x, np.maximum(pads, 0), *rest, **said)  # type: ignore[no-untyped-call]


class DeformConv(OpRun):
    """onnx's rounds to float32."""

    def _run(
        self, x: Array, w: Array, offset: Array, b: Array | None = None, mask: Array | None = None, *,
        group: int, offset_group: int, pads: list[int], **said: Any,
    ) -> tuple[Array, ...]:  # fmt: skip
        strides, dilations = (said[k] or [1, 1] for k in ("strides", "dilations"))
        (n, c, h, width), (m, inner, kh, kw), out = x.shape, w.shape, offset.shape[2:]
        moved = offset.reshape(n, offset_group, kh, kw, 2, *out)
        weighed = (
            np.ones((n, offset_group, kh, kw, *out)) if mask is None else mask.reshape(n, offset_group, kh, kw, *out)
        )
        y = np.zeros((n, m, *out)) + (0 if b is None else b.reshape(-1, 1, 1))
        for s, o, i, j, r, q in product(*map(range, (n, c, kh, kw, *out))):
            part = o // (c // offset_group)
            place = [p * t - e + k * d for p, t, e, k, d in zip((r, q), strides, pads, (i, j), dilations)] + moved[
                s, part, i, j, :, r, q
            ]
            rows, columns = (np.maximum(1 - np.abs(np.arange(k) - p), 0) for k, p in zip((h, width), place))
            seen = rows @ x[s, o] @ columns * weighed[s, part, i, j, r, q]
            first = o // inner * (m // group)
            y[s, first : first + m // group, r, q] += w[first : first + m // group, o % inner, i, j] * seen
        return (y.astype(x.dtype),)


class Scatter(ScatterElements):
    """onnx's has forgotten it."""


class OldRoiAlign(RoiAlign):
    """Before opset 16 regions were not moved by half a pixel."""

    def _run(self, *operands: Array, **said: Any) -> tuple[Array, ...]:
        return super()._run(*operands, **{**said, "coordinate_transformation_mode": "output_half_pixel"})


OldRoiAlign.__name__ = "RoiAlign"
REPLACED: tuple[type[OpRun], ...] = (
    BatchNormalization, ConvTranspose, Erf, Gelu, GlobalMaxPool, LogSoftmax, LRN, MaxPool, Mean,
    MeanVarianceNormalization, Pad, Resize, Softmax, Upsample, AffineGrid, GatherElements, GridSample, RoiAlign, Scatter,
    ScatterElements, ScatterND, GlobalLpPool, LpNormalization, LpPool, DeformConv, *RECURRENCES,
)  # fmt: skip


def evaluator(model: onnx.ModelProto) -> ReferenceEvaluator:
    """onnx's evaluator, which computes in the dtype of what it is fed, with the operators above in place of its own."""
    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    # Pad took its amounts as an attribute before opset 11; onnx's version of that one is right.
    replaced = [op for op in REPLACED if op.__name__ != "Pad" or opset >= 11]
    if opset < 16:
        replaced = [OldRoiAlign if op is RoiAlign else op for op in replaced]
    return ReferenceEvaluator(model, new_ops=replaced)


def evaluate(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """All graph outputs by name."""
    names = [output.name for output in model.graph.output]
    return dict(zip(names, evaluator(model).run(None, dict(feeds))))


# --------------------------------------------------------------------------- the dense matrix


def dense(forward: Callable[[Array], Array], shape: Sequence[int]) -> tuple[Array, Array]:
    """W [O, I] and b [O] of an affine map of one sample of `shape` (batch axis first, of size 1), by unit vectors."""
    offset = forward(np.zeros(shape)).ravel()
    columns = []
    for i in range(int(np.prod(shape))):
        unit = np.zeros(shape)
        unit.flat[i] = 1.0
        columns.append(forward(unit).ravel() - offset)
    return np.stack(columns, axis=1), offset


def dense_of(model: onnx.ModelProto, shape: Sequence[int]) -> tuple[Array, Array]:
    """The same for a model with one input and one output."""
    session, name = evaluator(model), model.graph.input[0].name
    return dense(lambda x: np.asarray(next(iter(session.run(None, {name: x})))), shape)


def by_sample(rule: Rule, x: Array, r: Array, **operands: Any) -> Array:
    """Apply a rule on flat samples to a batch x [N, ...], r [N, ...]."""
    rows = [rule(xi.ravel(), r=ri.ravel(), **operands) for xi, ri in zip(x, r)]
    return np.stack(rows).reshape(x.shape)


# --------------------------------------------------------------------------- quotients


def plus(a: Array) -> Array:
    """max(a, 0)."""
    return np.maximum(a, 0.0)


def minus(a: Array) -> Array:
    """min(a, 0)."""
    return np.minimum(a, 0.0)


def stabilized(z: Array, epsilon: float) -> Array:
    """z + epsilon * sign(z), where sign(0) = +1 (methods.md §0.5)."""
    return z + epsilon * np.where(z >= 0, 1.0, -1.0)


def safe(a: Array, b: Array) -> Array:
    """a / b, and 0 where b is exactly 0 (rap_rsp.md §1)."""
    zero = b == 0
    return np.where(zero, 0.0, a / np.where(zero, 1.0, b))


def shared(parts: Array, total: Array, r: Array, epsilon: float) -> Array:
    """Each output j gives r_j in proportion to its parts [O, I]; r_i = sum_j parts_ji r_j / D(total_j)."""
    quotient = safe(r, stabilized(total, epsilon))
    received = np.zeros(parts.shape[1])
    for j in range(parts.shape[0]):
        received += parts[j] * quotient[j]
    return received


# --------------------------------------------------------------------------- LRP (methods.md §5)


def lrp_epsilon(x: Array, W: Array, b: Array, r: Array, epsilon: float = 1e-6) -> Array:
    """z_ji = W_ji x_i; the bias takes its share, too."""
    z = W * x
    return shared(z, z.sum(1) + b, r, epsilon)


def lrp_zero(x: Array, W: Array, b: Array, r: Array) -> Array:
    """Epsilon 0, with r / 0 := 0."""
    return lrp_epsilon(x, W, b, r, epsilon=0.0)


def lrp_z_plus(x: Array, W: Array, b: Array, r: Array, epsilon: float = 1e-6) -> Array:
    """Positive contributions and the positive bias alone."""
    z = plus(W * x)
    return shared(z, z.sum(1) + plus(b), r, epsilon)


def lrp_alpha_beta(x: Array, W: Array, b: Array, r: Array, alpha: float, beta: float, epsilon: float = 1e-6) -> Array:
    """alpha times the positive share minus beta times the negative one, alpha - beta = 1."""
    z = W * x
    positive = shared(plus(z), plus(z).sum(1) + plus(b), r, epsilon)
    negative = shared(minus(z), minus(z).sum(1) + minus(b), r, epsilon)
    return alpha * positive - beta * negative


def lrp_gamma(
    x: Array, W: Array, b: Array, r: Array, gamma: float, epsilon: float = 1e-6, zero_bias: bool = False
) -> Array:
    """Favour what agrees with z's sign: z_ji + gamma [z_ji]+ where z_j > 0, + gamma [z_ji]- where z_j < 0, else 0.

    `zero_bias` drops b from the denominators; the sign of z = W x + b still decides.
    """
    z = W * x
    total = z.sum(1) + b
    received = np.zeros_like(x)
    for j in range(len(b)):
        if total[j] == 0:
            continue
        favoured = plus if total[j] > 0 else minus
        parts = z[j] + gamma * favoured(z[j])
        whole = parts.sum() + (0.0 if zero_bias else b[j] + gamma * favoured(b[j]))
        received += shared(parts[None], np.array([whole]), r[j : j + 1], epsilon)
    return received


def lrp_flat(x: Array, ones: Array, b: Array, r: Array, epsilon: float = 1e-6) -> Array:
    """Every connected input the same; `ones` [O, I] is 1 where the operator connects, whatever the weight."""
    return shared(ones, ones.sum(1), r, epsilon)


def lrp_w_square(x: Array, W: Array, b: Array, r: Array, epsilon: float = 1e-6, bias: bool = False) -> Array:
    """In proportion to the squared weights; without the bias, as deep Taylor decomposition has it."""
    return shared(W**2, (W**2).sum(1) + (b**2 if bias else 0.0), r, epsilon)


def lrp_z_box(
    x: Array, W: Array, b: Array, r: Array, low: Array | float, high: Array | float, epsilon: float = 1e-6
) -> Array:
    """W x - W+ low - W- high; low, high [I] bound the input. The bias cancels."""
    z = W * x - plus(W) * low - minus(W) * high
    return shared(z, z.sum(1), r, epsilon)


def sum_epsilon(parts: Sequence[Array], r: Array, epsilon: float = 1e-6) -> list[Array]:
    """A sum of several tensors of one shape: each in proportion to its signed value."""
    quotient = safe(r, stabilized(np.sum(parts, axis=0), epsilon))
    return [part * quotient for part in parts]


def sum_absolute(parts: Sequence[Array], r: Array) -> list[Array]:
    """The stable alternative: each in proportion to its magnitude."""
    total = np.sum([np.abs(part) for part in parts], axis=0)
    return [safe(np.abs(part) * r, total) for part in parts]


# --------------------------------------------------------------------------- RAP (rap_rsp.md §2)


def shift(c: Array, total: float) -> Array:
    """Move every non-zero entry by the same amount, so that the sum is `total`; zeros stay zero."""
    count = np.count_nonzero(c)
    return c.copy() if count == 0 else c - (c != 0) * (c.sum() - total) / count


def _rap(positive: Array, negative: Array, r: Array, split_negative: bool) -> Array:
    """Shares of |z+| and |z-| [O, I], then the shift. `split_negative`: Conv sends negative r through z- alone."""
    p, n = positive.sum(1), negative.sum(1)
    through_positive = safe(plus(r) if split_negative else r, p)
    through_negative = safe(r, p + n) + (safe(minus(r), n) if split_negative else 0.0)
    c = np.zeros(positive.shape[1])
    for j in range(len(r)):
        c += positive[j] * through_positive[j] + negative[j] * through_negative[j]
    return shift(c, float(r.sum()))


def rap_official(x: Array, W: Array, r: Array, conv: bool) -> Array:
    """The released rule of hidden layers (§2.2, 2.3): by the sign of W, first positive, then negative x (§2.4)."""
    received = np.zeros_like(x)
    for part in (plus(x), plus(-x)):
        if part.any():
            received += _rap(plus(W) * part, plus(-W) * part, r, conv)
    return received


def rap_joint(x: Array, W: Array, r: Array, conv: bool) -> Array:
    """The recommended rule for signed inputs (§2.4): by the sign of the product, one shift."""
    z = W * x
    return _rap(plus(z), plus(-z), r, conv)


def rap_first_official(x: Array, w: Array, b: float) -> Array:
    """First propagation (§2.1) of the target's row w [I]: the bias goes to the positive inputs alone."""
    z = w * x
    z1, z2 = z[(x > 0) & (w > 0)].sum(), z[(x > 0) & (w < 0)].sum()
    z3, z4 = z[(x < 0) & (w > 0)].sum(), z[(x < 0) & (w < 0)].sum()
    pos, neg = z1 + z4, z2 + z3
    a = z.copy()
    for i in range(len(x)):
        if x[i] > 0 and w[i] != 0:
            share, group = (pos, z1) if w[i] > 0 else (neg, z2)
            a[i] = z[i] * (1 + safe(safe(b * share, pos + neg), group))
    return np.asarray(safe(np.abs(a), np.abs(a).sum()) * a.sum())


def rap_first_joint(x: Array, w: Array, b: float) -> Array:
    """The recommended first propagation (§4, item 5): the bias over all products, then |a| / sum |a| of the logit."""
    a = w * x
    a = a * (1 + safe(np.asarray(b), a.sum()))
    return np.asarray(safe(np.abs(a), np.abs(a).sum()) * a.sum())


def rap_z_box(x: Array, W: Array, r: Array) -> Array:
    """First convolution (§2.5): the box is this image's own minimum and maximum over all channels; no stabiliser."""
    return lrp_z_box(x, W, np.zeros(len(r)), r, x.min(), x.max(), epsilon=0.0)


def rap_ratio(x: Array, W: Array, r: Array) -> Array:
    """Average pools (§2.6): x_i r / sum of the window; nothing where that sum is exactly 0."""
    return shared(W * x, (W * x).sum(1), r, 0.0)


def rap_add(parts: Sequence[Array], r: Array) -> list[Array]:
    """Add (§2.6): x_k r / (x_1 + x_2); nothing where the sum is exactly 0."""
    return sum_epsilon(parts, r, epsilon=0.0)


def rap_concat(parts: Sequence[Array], r: Array, axis: int) -> list[Array]:
    """Concat (§2.6): the slice of r, lost where x is exactly 0."""
    edges = np.cumsum([part.shape[axis] for part in parts])[:-1]
    return [slice_ * (part != 0) for part, slice_ in zip(parts, np.split(r, edges, axis=axis))]


def rap_batchnorm(x: Array, scale: Array, r: Array) -> Array:
    """BatchNormalization (§2.6): identity, lost where x or its channel's scale is exactly 0. x [N, C, *S]."""
    kept: Array = (x != 0) & (scale != 0).reshape(-1, *[1] * (x.ndim - 2))
    return np.where(kept, r, 0.0)


# --------------------------------------------------------------------------- gradient family (methods.md §1)


def relu_gradient(x: Array, g: Array) -> Array:
    """1[x > 0] g; the derivative at 0 is 0."""
    return g * (x > 0)


def relu_deconvnet(x: Array, g: Array) -> Array:
    """[g]+, whatever x was."""
    return plus(g)


def relu_guided(x: Array, g: Array) -> Array:
    """1[x > 0] [g]+."""
    return plus(g) * (x > 0)
