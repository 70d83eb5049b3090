"""Triton: relevance through convolutions and dense layers, and RAP's shift. Importing this module imports triton.

`conv_relevance` is one implicit GEMM per layer, rows = positions of the forward input, columns = its channels within a group,
depth = (kernel offset, filter). `narrow_relevance` does the same without tensor cores, for groups of few filters
(depthwise). What is fused is told by compile-time words; the host counterpart of every word is in `forms`.

A strided layer is cut into SH·SW classes of input positions (one per grid row): all positions of a class see the same
kernel offsets, so that no multiply-add is masked out.
"""

import triton
import triton.language as tl


@triton.jit
def _above(x, bound):
    """The larger one; of a NaN, NaN (`tl.maximum` would hide it, and relevance of a NaN would look like a number)."""
    return tl.maximum(x, bound, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _below(x, bound):
    """The smaller one; of a NaN, NaN."""
    return tl.minimum(x, bound, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _places(sample, row, row_stride, column, column_stride, ROWS: tl.constexpr):
    """Offsets of a tile's rows; ROWS: memory runs along them, so that neighbouring threads are to take neighbouring rows.

    Of padded, strided or odd maps the compiler cannot prove it, and would give neighbouring threads neighbouring columns,
    each in a cache line of its own. Nothing is promised about alignment, so that rows are still read one by one.
    """
    place = sample + row * row_stride + column * column_stride
    if ROWS:
        place = tl.max_contiguous(tl.multiple_of(place, 1), 2)
    return place


@triton.jit
def _over(r, z, epsilon):
    """r/D(z, ε), 0 where D is 0."""
    d = z + tl.where(z >= 0, epsilon, -epsilon)
    live = d != 0
    return tl.where(live, r / tl.where(live, d, 1.0), 0.0)


@triton.jit
def _quotients(
    r, a, b, z, at, mask, delta, epsilon,
    QUOTIENT: tl.constexpr, BRANCH: tl.constexpr, GATED: tl.constexpr, SHIFTED: tl.constexpr,
):  # fmt: skip
    """s and t on one tile; t is s again where a form has one quotient."""
    s = tl.load(r + at, mask=mask, other=0.0)
    if SHIFTED:
        s = s.to(tl.float32)
        s = tl.where(s != 0, s - delta, 0.0)
    t = s
    if QUOTIENT == "given":
        if BRANCH == "dual":
            t = tl.load(a + at, mask=mask, other=0.0)
    else:
        share = s.to(tl.float32)
        da = tl.load(a + at, mask=mask, other=1.0).to(tl.float32)
        if QUOTIENT == "ratio":
            s = _over(share, da, epsilon)
            t = s
            if GATED:
                gate = tl.load(z + at, mask=mask, other=0.0).to(tl.float32)
                s = tl.where(gate > 0, s, 0.0)
            if BRANCH == "dual":
                db = tl.load(b + at, mask=mask, other=1.0).to(tl.float32)
                t = _over(share, db, epsilon)
                if GATED:
                    t = tl.where(gate < 0, t, 0.0)
            else:
                t = s
        else:
            db = tl.load(b + at, mask=mask, other=0.0).to(tl.float32)
            even = _over(share, da + db, 0.0)
            if QUOTIENT == "relative":
                gain = _above(share, 0.0)
                s = _over(gain, da, 0.0)
                t = even + _over(share - gain, db, 0.0)
            else:
                s = _over(share, da, 0.0)
                t = even
    return s, t


@triton.jit
def _operand(s, DOT: tl.constexpr, PRECISION: tl.constexpr):
    """What is multiplied, in the precision of the product; half precision saturates instead of overflowing.

    Of a tf32 operand the matrix unit drops 13 bits. Products would all become smaller, and a bias adds up from layer to
    layer: half a unit of what remains is added first, which rounds to nearest (weights are packed rounded).
    """
    if DOT == tl.float16:  # noqa: SIM300
        s = _below(_above(s.to(tl.float32), -65504.0), 65504.0)
    if PRECISION == "tf32":
        s = s.to(tl.float32)
        nearest = (s.to(tl.int32, bitcast=True) + 0x1000).to(tl.float32, bitcast=True)
        s = tl.where(s == s, nearest, s)  # a NaN of all ones would become a zero
    return s.to(DOT)


@triton.jit
def _finish(
    first, second, x, d, low, high, out, sums, counts,
    n, channel, row, column, rows, valid, at_x, at_out, low_n, low_c, below_epsilon, J, tile_n, H, W,
    NUMERATOR: tl.constexpr, BELOW: tl.constexpr, ACCUMULATE: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """The fused end: numerator, what is there already, the division for the layer below, row sums, the store."""
    if NUMERATOR != "one" or BELOW == "x":
        xv = tl.load(x + at_x, mask=valid, other=0.0).to(tl.float32)
    if NUMERATOR == "one":
        value = first
    elif NUMERATOR == "x":
        value = xv * first
    elif NUMERATOR == "x+":
        value = _above(xv, 0.0) * first
    elif NUMERATOR == "x-":
        value = _below(xv, 0.0) * first
    elif NUMERATOR == "|x-|":
        value = _above(-xv, 0.0) * first
    elif NUMERATOR == "active":
        value = tl.where(xv > 0, first, 0.0)
    elif NUMERATOR == "halves":
        value = _above(xv, 0.0) * first + _below(xv, 0.0) * second
    else:
        at_bound = tl.where(valid, (n * low_n)[:, None] + (channel * low_c)[None, :], 0)
        lv = tl.load(low + at_bound, mask=valid, other=0.0).to(tl.float32)
        hv = tl.load(high + at_bound, mask=valid, other=0.0).to(tl.float32)
        if NUMERATOR == "inside":  # noqa: SIM108 (a branch that is compiled or not)
            value = tl.where((xv > lv) & (xv < hv), first, 0.0)
        else:
            value = (xv - lv) * first + (xv - hv) * second
    if ACCUMULATE:
        value += tl.load(out + at_out, mask=valid, other=0.0).to(tl.float32)
    if BELOW == "x":
        value = _over(value, xv, below_epsilon)
    elif BELOW == "d":
        value = _over(value, tl.load(d + at_x, mask=valid, other=1.0).to(tl.float32), below_epsilon)
    if SUMS:
        kept = tl.where(valid, value, 0.0)
        at_row = (n.to(tl.int64) * J + tile_n) * (H * W) + row * W + column
        tl.store(sums + at_row, tl.sum(kept, axis=1), mask=rows)
        tl.store(counts + at_row, tl.sum(tl.where(kept != 0, 1.0, 0.0), axis=1), mask=rows)
    tl.store(out + at_out, value.to(out.dtype.element_ty), mask=valid)


@triton.jit
def conv_relevance(
    r, a, b, z, delta, w, v, x, d, low, high, out, sums, counts,
    epsilon, below_epsilon,
    N, G, C, K, H, W, P, Q, R, S, SH, SW, PH, PW, DH, DW,
    r_n, r_k, r_h, r_w, x_n, x_c, x_h, x_w, o_n, o_c, o_h, o_w, low_n, low_c,
    QUOTIENT: tl.constexpr, BRANCH: tl.constexpr, NUMERATOR: tl.constexpr, BELOW: tl.constexpr,
    GATED: tl.constexpr, SHIFTED: tl.constexpr, ACCUMULATE: tl.constexpr, SUMS: tl.constexpr,
    R_ROWS: tl.constexpr, X_ROWS: tl.constexpr, OUT_ROWS: tl.constexpr,
    FOLD: tl.constexpr, FLAT: tl.constexpr, STEPPED: tl.constexpr, POINT: tl.constexpr, EVEN_K: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """C and K count within a group; weights are packed [R, S, G, C, K]. Grid: (row tiles · G · column tiles, SH · SW).

    FOLD: rows run over the whole batch (small maps), else over one sample. FLAT: stride 1 and dense maps, so that an
    offset is position · x_w. STEPPED: kernel offsets are stepped by the stride (needs stride or dilation 1 per axis).
    POINT: a 1x1 kernel that neither strides nor pads. EVEN_K: BK divides K.
    """
    pid = tl.program_id(0)
    phase_h = 0 if FLAT else tl.program_id(1) // SW
    phase_w = 0 if FLAT else tl.program_id(1) % SW
    tiles_c = tl.cdiv(C, BN)
    J = G * tiles_c
    tile_n = pid % J
    tile_m = pid // J
    group = tile_n // tiles_c
    c = (tile_n % tiles_c) * BN + tl.arange(0, BN)

    width = tl.maximum((W - phase_w + SW - 1) // SW, 1)
    area = ((H - phase_h + SH - 1) // SH) * ((W - phase_w + SW - 1) // SW)
    if FOLD:
        m = tile_m * BM + tl.arange(0, BM)
        rows = m < N * area
        n = m // tl.maximum(area, 1)
        i = m % tl.maximum(area, 1)
        r_row = n * r_n
        x_row = n * x_n
        o_row = n * o_n
    else:
        tiles = tl.cdiv(((H + SH - 1) // SH) * ((W + SW - 1) // SW), BM)
        sample = tile_m // tiles
        i = (tile_m % tiles) * BM + tl.arange(0, BM)
        rows = i < area
        n = sample + i * 0
        r_row = i * 0
        x_row = i * 0
        o_row = i * 0
        far = sample.to(tl.int64)
        r += far * r_n
        if QUOTIENT != "given" or BRANCH == "dual":
            a += far * r_n
        if QUOTIENT != "given" and BRANCH == "dual":
            b += far * r_n
        if GATED:
            z += far * r_n
        if NUMERATOR != "one" or BELOW == "x":
            x += far * x_n
        if BELOW == "d":
            d += far * x_n
        out += far * o_n
    row = phase_h + (i // width) * SH
    column = phase_w + (i % width) * SW
    shift = tl.load(delta + n, mask=rows, other=0.0)[:, None] if SHIFTED else 0.0

    if STEPPED:
        first_h = (phase_h + PH) % SH
        first_w = (phase_w + PW) % SW
        step_h = SH
        step_w = SW
    else:
        first_h = 0
        first_w = 0
        step_h = 1
        step_w = 1
    taps_h = (R - first_h + step_h - 1) // step_h
    taps_w = (S - first_w + step_w - 1) // step_w
    blocks = tl.cdiv(K, BK)
    first = tl.zeros((BM, BN), tl.float32)
    second = tl.zeros((BM, BN), tl.float32)
    span = tl.arange(0, BK)
    columns = c < C
    for turn in range(0, taps_h * taps_w * blocks):
        tap = turn // blocks
        k = (turn % blocks) * BK + span
        kh = first_h + (tap // taps_w) * step_h
        kw = first_w + (tap % taps_w) * step_w
        over_h = row + PH - kh * DH
        over_w = column + PW - kw * DW
        p = over_h // SH
        q = over_w // SW
        if POINT:
            live = rows
        else:
            live = rows & (over_h >= 0) & (p < P) & (over_w >= 0) & (q < Q)
            if not STEPPED:
                live = live & (over_h % SH == 0) & (over_w % SW == 0)
        if POINT:  # noqa: SIM108 (a branch that is compiled or not)
            place = _places(r_row, 0, 0, i, r_w, R_ROWS and P * Q % 4 != 0)
        else:
            place = _places(r_row, p, r_h, q, r_w, R_ROWS)
        at = place[:, None] + ((group * K + k) * r_k)[None, :]
        at_w = (((kh * S + kw) * G + group) * C + c)[None, :] * K + k[:, None]
        if EVEN_K:
            mask = live[:, None]
            mask_w = columns[None, :]
        else:
            mask = live[:, None] & (k < K)[None, :]
            mask_w = (k < K)[:, None] & columns[None, :]
        s, t = _quotients(r, a, b, z, at, mask, shift, epsilon, QUOTIENT, BRANCH, GATED, SHIFTED)
        s = _operand(s, DOT, PRECISION)
        wv = tl.load(w + at_w, mask=mask_w, other=0.0).to(DOT)
        first = tl.dot(s, wv, first, input_precision=PRECISION)
        if BRANCH != "single":
            vv = tl.load(v + at_w, mask=mask_w, other=0.0).to(DOT)
            if BRANCH == "dual":
                first = tl.dot(_operand(t, DOT, PRECISION), vv, first, input_precision=PRECISION)
            else:
                second = tl.dot(s, vv, second, input_precision=PRECISION)

    channel = group * C + c
    if FLAT:
        place_x = _places(x_row, 0, 0, i, x_w, X_ROWS and H * W % 4 != 0)
        place_o = _places(o_row, 0, 0, i, o_w, OUT_ROWS and H * W % 4 != 0)
    else:
        place_x = _places(x_row, row, x_h, column, x_w, X_ROWS)
        place_o = _places(o_row, row, o_h, column, o_w, OUT_ROWS)
    at_x = place_x[:, None] + (channel * x_c)[None, :]
    at_out = place_o[:, None] + (channel * o_c)[None, :]
    _finish(
        first, second, x, d, low, high, out, sums, counts, n, channel, row, column, rows, rows[:, None] & columns[None, :],
        at_x, at_out, low_n, low_c, below_epsilon, J, tile_n, H, W, NUMERATOR, BELOW, ACCUMULATE, SUMS,
    )  # fmt: skip


@triton.jit
def narrow_relevance(
    r, a, b, z, delta, w, v, x, d, low, high, out, sums, counts,
    epsilon, below_epsilon,
    N, G, C, K, H, W, P, Q, R, S, SH, SW, PH, PW, DH, DW,
    r_n, r_k, r_h, r_w, x_n, x_c, x_h, x_w, o_n, o_c, o_h, o_w, low_n, low_c,
    QUOTIENT: tl.constexpr, BRANCH: tl.constexpr, NUMERATOR: tl.constexpr, BELOW: tl.constexpr,
    GATED: tl.constexpr, SHIFTED: tl.constexpr, ACCUMULATE: tl.constexpr, SUMS: tl.constexpr,
    R_ROWS: tl.constexpr, X_ROWS: tl.constexpr, OUT_ROWS: tl.constexpr,
    FLAT: tl.constexpr, STEPPED: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """As `conv_relevance`, columns running over all channels: each reads the K filters of its own group, in float32.

    Grid: (samples · row tiles · column tiles, SH · SW).
    """
    pid = tl.program_id(0)
    phase_h = 0 if FLAT else tl.program_id(1) // SW
    phase_w = 0 if FLAT else tl.program_id(1) % SW
    J = tl.cdiv(G * C, BN)
    tile_n = pid % J
    tile_m = pid // J
    channel = tile_n * BN + tl.arange(0, BN)
    columns = channel < G * C
    group = channel // C

    width = tl.maximum((W - phase_w + SW - 1) // SW, 1)
    area = ((H - phase_h + SH - 1) // SH) * ((W - phase_w + SW - 1) // SW)
    tiles = tl.cdiv(((H + SH - 1) // SH) * ((W + SW - 1) // SW), BM)
    sample = tile_m // tiles
    i = (tile_m % tiles) * BM + tl.arange(0, BM)
    rows = i < area
    n = sample + i * 0
    far = sample.to(tl.int64)
    r += far * r_n
    if QUOTIENT != "given" or BRANCH == "dual":
        a += far * r_n
    if QUOTIENT != "given" and BRANCH == "dual":
        b += far * r_n
    if GATED:
        z += far * r_n
    if NUMERATOR != "one" or BELOW == "x":
        x += far * x_n
    if BELOW == "d":
        d += far * x_n
    out += far * o_n
    row = phase_h + (i // width) * SH
    column = phase_w + (i % width) * SW
    shift = tl.load(delta + sample) if SHIFTED else 0.0

    if STEPPED:
        first_h = (phase_h + PH) % SH
        first_w = (phase_w + PW) % SW
        step_h = SH
        step_w = SW
    else:
        first_h = 0
        first_w = 0
        step_h = 1
        step_w = 1
    taps_h = (R - first_h + step_h - 1) // step_h
    taps_w = (S - first_w + step_w - 1) // step_w
    first = tl.zeros((BM, BN), tl.float32)
    second = tl.zeros((BM, BN), tl.float32)
    for turn in range(0, taps_h * taps_w * K):
        tap = turn // K
        k = turn % K
        kh = first_h + (tap // taps_w) * step_h
        kw = first_w + (tap % taps_w) * step_w
        over_h = row + PH - kh * DH
        over_w = column + PW - kw * DW
        p = over_h // SH
        q = over_w // SW
        live = rows & (over_h >= 0) & (p < P) & (over_w >= 0) & (q < Q)
        if not STEPPED:
            live = live & (over_h % SH == 0) & (over_w % SW == 0)
        at = _places(0, p, r_h, q, r_w, R_ROWS)[:, None] + ((group * K + k) * r_k)[None, :]
        mask = live[:, None] & columns[None, :]
        s, t = _quotients(r, a, b, z, at, mask, shift, epsilon, QUOTIENT, BRANCH, GATED, SHIFTED)
        at_w = ((kh * S + kw) * G * C + channel) * K + k
        wv = tl.load(w + at_w, mask=columns, other=0.0).to(tl.float32)
        first += s.to(tl.float32) * wv[None, :]
        if BRANCH != "single":
            vv = tl.load(v + at_w, mask=columns, other=0.0).to(tl.float32)
            if BRANCH == "dual":
                first += t.to(tl.float32) * vv[None, :]
            else:
                second += s.to(tl.float32) * vv[None, :]

    if FLAT:
        place_x = _places(0, 0, 0, i, x_w, X_ROWS and H * W % 4 != 0)
        place_o = _places(0, 0, 0, i, o_w, OUT_ROWS and H * W % 4 != 0)
    else:
        place_x = _places(0, row, x_h, column, x_w, X_ROWS)
        place_o = _places(0, row, o_h, column, o_w, OUT_ROWS)
    at_x = place_x[:, None] + (channel * x_c)[None, :]
    at_out = place_o[:, None] + (channel * o_c)[None, :]
    _finish(
        first, second, x, d, low, high, out, sums, counts, n, channel, row, column, rows, rows[:, None] & columns[None, :],
        at_x, at_out, low_n, low_c, below_epsilon, J, tile_n, H, W, NUMERATOR, BELOW, ACCUMULATE, SUMS,
    )  # fmt: skip


@triton.jit
def shift_of_sums(sums, counts, want, delta, kept, L, BLOCK: tl.constexpr):
    """RAP's δ of one sample from its L row sums and counts, added in float64; one program per sample."""
    sample = tl.program_id(0)
    base = sample.to(tl.int64) * L
    total = tl.zeros((BLOCK,), tl.float64)
    count = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, L, BLOCK):
        at = start + tl.arange(0, BLOCK)
        total += tl.load(sums + base + at, mask=at < L, other=0.0).to(tl.float64)
        count += tl.load(counts + base + at, mask=at < L, other=0.0).to(tl.float64)
    all_sum = tl.sum(total, axis=0)
    all_count = tl.sum(count, axis=0)
    goal = tl.load(want + sample).to(tl.float64)
    live = all_count > 0
    tl.store(delta + sample, tl.where(live, (all_sum - goal) / tl.where(live, all_count, 1.0), 0.0).to(tl.float32))
    tl.store(kept + sample, tl.where(live, goal, all_sum).to(tl.float32))


@triton.jit
def apply_shift(c, delta, out, L, BLOCK: tl.constexpr):
    """C - δ[n]·1[C ≠ 0] on L elements per sample; grid (blocks, samples)."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    sample = tl.program_id(1)
    base = sample.to(tl.int64) * L
    value = tl.load(c + base + at, mask=at < L, other=0.0).to(tl.float32)
    shift = tl.load(delta + sample)
    tl.store(out + base + at, tl.where(value != 0, value - shift, 0.0).to(out.dtype.element_ty), mask=at < L)
