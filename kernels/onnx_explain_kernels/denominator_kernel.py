"""Triton: what relevance is divided by, W⁺x and its kin: convolutions forward with derived weights, and the division itself.

`conv_denominator` is one implicit GEMM per layer, rows = positions of the forward output, columns = its filters within a
group, depth = (kernel offset, channel). `narrow_denominator` does the same without tensor cores, for groups of few channels
(depthwise). What is fused is told by compile-time words; the host counterpart of every word is in `forms`.
"""

import triton
import triton.language as tl

from onnx_explain_kernels.conv_kernel import _above, _below, _operand, _over, _places

TINY = tl.constexpr(1e-20)
ROUNDING = tl.constexpr(1.1920928955078125e-07)  # float32's


@triton.jit
def _first(x, SOURCE: tl.constexpr):
    """The input that meets w."""
    if SOURCE == "x+" or SOURCE == "halves":
        x = _above(x, 0.0)
    elif SOURCE == "x-":
        x = _below(x, 0.0)
    elif SOURCE == "|x|" or SOURCE == "magnitudes":
        x = tl.abs(x)
    return x


@triton.jit
def _second(x, SOURCE: tl.constexpr):
    """The input that meets v."""
    if SOURCE == "halves":
        x = _below(x, 0.0)
    return x


@triton.jit
def _relative_pair(first, second, z, offset, SOURCE: tl.constexpr):
    """RAP's Z⁺ and Z⁻; neither falls below what float32 rounds away."""
    total = first + TINY
    if SOURCE == "twin":
        above = total
        below = second
    elif SOURCE == "x":
        above = total
        below = _above(total - (z - offset), 4.0 * ROUNDING * (total + tl.abs(offset)))
    else:
        u = z - offset
        if SOURCE == "magnitudes":
            u = second
        floor = 8.0 * ROUNDING * total
        above = _above((total + u) * 0.5, floor)
        below = _above((total - u) * 0.5, floor)
    return above, below


@triton.jit
def _end(
    first, second, bias, z, r, delta, out, pair, lost, filter_, n, rows, valid, columns, at_r, at_out, epsilon, scale,
    SOURCE: tl.constexpr, END: tl.constexpr, BIASED: tl.constexpr, ACCOUNTS: tl.constexpr, GATE: tl.constexpr,
    DIVIDED: tl.constexpr, SHIFTED: tl.constexpr,
):  # fmt: skip
    """The fused end: bias, RAP's pair, the division of r, what is lost, the stores."""
    offset = 0.0
    if BIASED:
        offset = tl.load(bias + filter_, mask=columns, other=0.0).to(tl.float32)[None, :]
    zv = first
    if GATE != "" or (END == "pair" and (SOURCE == "x" or SOURCE == "|x|")):
        zv = tl.load(z + at_r, mask=valid, other=0.0).to(tl.float32)
    share = first
    if END == "quotient" or DIVIDED:
        share = tl.load(r + at_r, mask=valid, other=0.0).to(tl.float32) * scale
        if SHIFTED:
            shift = tl.load(delta + n, mask=rows, other=0.0)[:, None]
            share = tl.where(share != 0, share - shift, 0.0)
        if GATE == "positive":
            share = tl.where(zv > 0, share, 0.0)
        elif GATE == "negative":
            share = tl.where(zv < 0, share, 0.0)
    if END == "sum":
        tl.store(out + at_out, (first + offset).to(out.dtype.element_ty), mask=valid)
    elif END == "quotient":
        s = _over(share, first + offset, epsilon)
        tl.store(out + at_out, s.to(out.dtype.element_ty), mask=valid)
        if ACCOUNTS:
            tl.store(lost + at_r, (share - s * first).to(lost.dtype.element_ty), mask=valid)
    else:
        above, below = _relative_pair(first, second, zv, offset, SOURCE)
        if DIVIDED:
            gain = _above(share, 0.0)
            t = _over(share, above + below, 0.0) + _over(share - gain, below, 0.0)
            above = _over(gain, above, 0.0)
            below = t
        tl.store(out + at_out, above.to(out.dtype.element_ty), mask=valid)
        tl.store(pair + at_out, below.to(pair.dtype.element_ty), mask=valid)


@triton.jit
def conv_denominator(
    x, w, v, bias, z, r, delta, out, pair, lost,
    epsilon, scale,
    N, G, C, K, H, W, P, Q, R, S, SH, SW, PH, PW, DH, DW,
    r_n, r_k, r_w, x_n, x_c, x_h, x_w, o_n, o_k, o_w,
    SOURCE: tl.constexpr, END: tl.constexpr, BIASED: tl.constexpr, ACCOUNTS: tl.constexpr, GATE: tl.constexpr,
    DIVIDED: tl.constexpr, SHIFTED: tl.constexpr,
    R_ROWS: tl.constexpr, X_ROWS: tl.constexpr, OUT_ROWS: tl.constexpr,
    FOLD: tl.constexpr, MIXED: tl.constexpr, POINT: tl.constexpr, EVEN_K: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """C and K count within a group; weights are packed [R, S, G, K, C]. Grid: (row tiles · G · column tiles).

    FOLD: rows run over the whole batch (small maps), else over one sample. MIXED: few channels, so that a turn's depth
    holds several kernel offsets. POINT: a 1x1 kernel that neither strides nor pads. EVEN_K: BK divides C.
    """
    pid = tl.program_id(0)
    tiles_k = tl.cdiv(K, BN)
    J = G * tiles_k
    tile_n = pid % J
    tile_m = pid // J
    group = tile_n // tiles_k
    k = (tile_n % tiles_k) * BN + tl.arange(0, BN)
    columns = k < K
    if FOLD:
        m = tile_m * BM + tl.arange(0, BM)
        rows = m < N * P * Q
        n = m // (P * Q)
        i = m % (P * Q)
        x_row = n * x_n
        r_row = n * r_n
        o_row = n * o_n
    else:
        tiles = tl.cdiv(P * Q, BM)
        sample = tile_m // tiles
        i = (tile_m % tiles) * BM + tl.arange(0, BM)
        rows = i < P * Q
        n = sample + i * 0
        x_row = i * 0
        r_row = i * 0
        o_row = i * 0
        far = sample.to(tl.int64)
        x += far * x_n
        if GATE != "" or (END == "pair" and (SOURCE == "x" or SOURCE == "|x|")):
            z += far * r_n
        if END == "quotient" or DIVIDED:
            r += far * r_n
        out += far * o_n
        if END == "pair":
            pair += far * o_n
        if ACCOUNTS:
            lost += far * r_n
    top = (i // Q) * SH - PH
    left = (i % Q) * SW - PW

    blocks = tl.cdiv(C, BK)
    turns = R * S * blocks
    if MIXED:
        turns = tl.cdiv(R * S * C, BK)
    first = tl.zeros((BM, BN), tl.float32)
    second = tl.zeros((BM, BN), tl.float32)
    span = tl.arange(0, BK)
    for turn in range(0, turns):
        if MIXED:
            place = turn * BK + span
            c = place % C
            tap = place // C
            inside = tap < R * S
            h = top[:, None] + ((tap // S) * DH)[None, :]
            q = left[:, None] + ((tap % S) * DW)[None, :]
            mask = rows[:, None] & inside[None, :] & (h >= 0) & (h < H) & (q >= 0) & (q < W)
            at = x_row[:, None] + h * x_h + q * x_w + ((group * C + c) * x_c)[None, :]
            if X_ROWS:
                at = tl.max_contiguous(tl.multiple_of(at, [1, 1]), [2, 1])
            at_w = ((tap * G + group) * K * C + c)[:, None] + (k * C)[None, :]
            mask_w = inside[:, None] & columns[None, :]
        else:
            tap = turn // blocks
            c = (turn % blocks) * BK + span
            h = top + (tap // S) * DH
            q = left + (tap % S) * DW
            live = rows
            if not POINT:
                live = rows & (h >= 0) & (h < H) & (q >= 0) & (q < W)
            if POINT:  # noqa: SIM108 (a branch that is compiled or not)
                place = _places(x_row, 0, 0, i, x_w, X_ROWS and P * Q % 4 != 0)
            else:
                place = _places(x_row, h, x_h, q, x_w, X_ROWS)
            at = place[:, None] + ((group * C + c) * x_c)[None, :]
            at_w = ((tap * G + group) * K + k)[None, :] * C + c[:, None]
            if EVEN_K:
                mask = live[:, None]
                mask_w = columns[None, :]
            else:
                mask = live[:, None] & (c < C)[None, :]
                mask_w = (c < C)[:, None] & columns[None, :]
        xv = tl.load(x + at, mask=mask, other=0.0)
        wv = tl.load(w + at_w, mask=mask_w, other=0.0).to(DOT)
        first = tl.dot(_operand(_first(xv, SOURCE), DOT, PRECISION), wv, first, input_precision=PRECISION)
        if SOURCE == "halves" or SOURCE == "twin" or SOURCE == "magnitudes":
            vv = tl.load(v + at_w, mask=mask_w, other=0.0).to(DOT)
            if SOURCE == "halves":
                first = tl.dot(_operand(_second(xv, SOURCE), DOT, PRECISION), vv, first, input_precision=PRECISION)
            else:
                second = tl.dot(_operand(_second(xv, SOURCE), DOT, PRECISION), vv, second, input_precision=PRECISION)

    filter_ = group * K + k
    at_r = _places(r_row, 0, 0, i, r_w, R_ROWS and P * Q % 4 != 0)[:, None] + (filter_ * r_k)[None, :]
    at_out = _places(o_row, 0, 0, i, o_w, OUT_ROWS and P * Q % 4 != 0)[:, None] + (filter_ * o_k)[None, :]
    _end(
        first, second, bias, z, r, delta, out, pair, lost, filter_, n, rows, rows[:, None] & columns[None, :], columns,
        at_r, at_out, epsilon, scale, SOURCE, END, BIASED, ACCOUNTS, GATE, DIVIDED, SHIFTED,
    )  # fmt: skip


@triton.jit
def narrow_denominator(
    x, w, v, bias, z, r, delta, out, pair, lost,
    epsilon, scale,
    N, G, C, K, H, W, P, Q, R, S, SH, SW, PH, PW, DH, DW,
    r_n, r_k, r_w, x_n, x_c, x_h, x_w, o_n, o_k, o_w,
    SOURCE: tl.constexpr, END: tl.constexpr, BIASED: tl.constexpr, ACCOUNTS: tl.constexpr, GATE: tl.constexpr,
    DIVIDED: tl.constexpr, SHIFTED: tl.constexpr,
    R_ROWS: tl.constexpr, X_ROWS: tl.constexpr, OUT_ROWS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """As `conv_denominator`, columns running over all filters: each reads the C channels of its own group, in float32.

    Grid: (samples · row tiles · column tiles).
    """
    pid = tl.program_id(0)
    J = tl.cdiv(G * K, BN)
    tile_n = pid % J
    tile_m = pid // J
    filter_ = tile_n * BN + tl.arange(0, BN)
    columns = filter_ < G * K
    group = filter_ // K
    tiles = tl.cdiv(P * Q, BM)
    sample = tile_m // tiles
    i = (tile_m % tiles) * BM + tl.arange(0, BM)
    rows = i < P * Q
    n = sample + i * 0
    far = sample.to(tl.int64)
    x += far * x_n
    if GATE != "" or (END == "pair" and (SOURCE == "x" or SOURCE == "|x|")):
        z += far * r_n
    if END == "quotient" or DIVIDED:
        r += far * r_n
    out += far * o_n
    if END == "pair":
        pair += far * o_n
    if ACCOUNTS:
        lost += far * r_n
    top = (i // Q) * SH - PH
    left = (i % Q) * SW - PW
    first = tl.zeros((BM, BN), tl.float32)
    second = tl.zeros((BM, BN), tl.float32)
    for turn in range(0, R * S * C):
        tap = turn // C
        c = turn % C
        h = top + (tap // S) * DH
        q = left + (tap % S) * DW
        live = rows & (h >= 0) & (h < H) & (q >= 0) & (q < W)
        at = _places(0, h, x_h, q, x_w, X_ROWS)[:, None] + ((group * C + c) * x_c)[None, :]
        xv = tl.load(x + at, mask=live[:, None] & columns[None, :], other=0.0).to(tl.float32)
        at_w = (tap * G * K + filter_) * C + c
        wv = tl.load(w + at_w, mask=columns, other=0.0).to(tl.float32)
        first += _first(xv, SOURCE) * wv[None, :]
        if SOURCE == "halves" or SOURCE == "twin" or SOURCE == "magnitudes":
            vv = tl.load(v + at_w, mask=columns, other=0.0).to(tl.float32)
            if SOURCE == "halves":
                first += _second(xv, SOURCE) * vv[None, :]
            else:
                second += _second(xv, SOURCE) * vv[None, :]

    at_r = _places(0, 0, 0, i, r_w, R_ROWS and P * Q % 4 != 0)[:, None] + (filter_ * r_k)[None, :]
    at_out = _places(0, 0, 0, i, o_w, OUT_ROWS and P * Q % 4 != 0)[:, None] + (filter_ * o_k)[None, :]
    _end(
        first, second, bias, z, r, delta, out, pair, lost, filter_, n, rows, rows[:, None] & columns[None, :], columns,
        at_r, at_out, epsilon, scale, SOURCE, END, BIASED, ACCOUNTS, GATE, DIVIDED, SHIFTED,
    )  # fmt: skip
