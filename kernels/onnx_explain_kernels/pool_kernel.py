"""Numba-CUDA: relevance through pools, gathered per element of the input, so that no two threads write one address.

Importing this module imports numba. Arguments are flat buffers and integers: the same source runs in Numba's simulator on
1-D arrays and compiles ahead of time to a plain C-like ABI. The factories bake what is known into a kernel: an integer of
`fixed` that is not negative replaces the argument of that name.

Grid: x = blocks of TILE_P positions, y = blocks of TILE_C channels of all samples (strided). Lanes run over positions, or
over channels where the output has its channels last: x may be [N, C, H, W] and the output [N, H, W, C].
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numba import cuda

from onnx_explain_kernels.forms import PoolForm


def make_max_pool(
    form: PoolForm, fixed: Mapping[str, int], tile_c: int, tile_p: int, lanes: str
) -> Callable[..., None]:
    """The kernel that routes each window's entry to its first maximum in row-major order."""
    f_c, f_h, f_w, f_p, f_q = (fixed.get(k, -1) for k in ("C", "H", "W", "P", "Q"))
    f_kh, f_kw, f_sh, f_sw = (fixed.get(k, -1) for k in ("KH", "KW", "SH", "SW"))
    f_ph, f_pw, f_dh, f_dw = (fixed.get(k, -1) for k in ("PH", "PW", "DH", "DW"))
    shifted, active, scaled, below = form.shifted, form.numerator == "active", form.numerator == "x", form.below == "x"
    channels_fast = lanes == "channels"

    def max_pool(
        x, y, r, delta, out, epsilon, below_epsilon, N, C_, H_, W_, P_, Q_, KH, KW, SH, SW, PH, PW, EH, EW, DH, DW, PAD,
        x_n, x_c, x_p, y_n, y_c, y_p, r_n, r_c, r_p, o_n, o_c, o_p,
    ):  # fmt: skip
        C = f_c if f_c >= 0 else C_
        H = f_h if f_h >= 0 else H_
        W = f_w if f_w >= 0 else W_
        P = f_p if f_p >= 0 else P_
        Q = f_q if f_q >= 0 else Q_
        kh = f_kh if f_kh >= 0 else KH
        kw = f_kw if f_kw >= 0 else KW
        sh = f_sh if f_sh >= 0 else SH
        sw = f_sw if f_sw >= 0 else SW
        ph = f_ph if f_ph >= 0 else PH
        pw = f_pw if f_pw >= 0 else PW
        dh = f_dh if f_dh >= 0 else DH
        dw = f_dw if f_dw >= 0 else DW
        lane = np.uint32(cuda.threadIdx.x)
        if channels_fast:
            dc = np.int32(lane % np.uint32(tile_c))
            dp = np.int32(lane // np.uint32(tile_c))
        else:
            dp = np.int32(lane % np.uint32(tile_p))
            dc = np.int32(lane // np.uint32(tile_p))
        i = np.int32(np.int32(cuda.blockIdx.x) * tile_p + dp)
        if i >= H * W:
            return
        h = np.int32(np.uint32(i) // np.uint32(W))
        w = np.int32(i - h * W)
        # windows p0..p1, q0..q1 may hold this element; under a dilation only every dh-th of them does
        low_h = np.int32(h + ph - (kh - 1) * dh)
        low_w = np.int32(w + pw - (kw - 1) * dw)
        p0 = np.int32(np.uint32(low_h + sh - 1) // np.uint32(sh)) if low_h > 0 else np.int32(0)
        q0 = np.int32(np.uint32(low_w + sw - 1) // np.uint32(sw)) if low_w > 0 else np.int32(0)
        p1 = np.int32(np.uint32(h + ph) // np.uint32(sh))
        q1 = np.int32(np.uint32(w + pw) // np.uint32(sw))
        p1 = p1 if p1 < P - 1 else np.int32(P - 1)
        q1 = q1 if q1 < Q - 1 else np.int32(Q - 1)
        # as many windows as may hold an element: a number that is compiled in unrolls the loops
        many_h = ((kh - 1) * dh + sh) // sh
        many_w = ((kw - 1) * dw + sw) // sw
        blocks = (C + tile_c - 1) // tile_c
        block = cuda.blockIdx.y
        while block < N * blocks:
            n = block // blocks
            c = (block - n * blocks) * tile_c + dc
            if c < C:
                x_base = n * x_n + c * x_c
                y_base = n * y_n + c * y_c
                r_base = n * r_n + c * r_c
                value = x[x_base + i * x_p]
                total = np.float32(0)
                for turn_h in range(many_h):
                    p = np.int32(p1 - many_h + 1 + turn_h)
                    away_h = np.int32(h + ph - p * sh)
                    if p >= p0 and (dh == 1 or np.uint32(away_h) % np.uint32(dh) == 0):
                        for turn_w in range(many_w):
                            q = np.int32(q1 - many_w + 1 + turn_w)
                            away_w = np.int32(w + pw - q * sw)
                            if q >= q0 and (dw == 1 or np.uint32(away_w) % np.uint32(dw) == 0):
                                at = np.int32(p * Q + q)
                                if y[y_base + at * y_p] == value:
                                    # the maximum: it takes all unless an earlier entry of the window equals it
                                    wins = True
                                    for e in range(kh):
                                        hh = np.int32(p * sh - ph + e * dh)
                                        for g in range(kw):
                                            ww = np.int32(q * sw - pw + g * dw)
                                            earlier = hh < h or (hh == h and ww < w)
                                            inside = hh >= 0 and ww >= 0 and ww < W
                                            at_x = x_base + np.int32(hh * W + ww) * x_p
                                            if earlier and inside and x[at_x] == value:
                                                wins = False
                                    if wins:
                                        share = r[r_base + at * r_p]
                                        if shifted and share != np.float32(0):
                                            share = share - delta[n]
                                        total += share
                if active and not value > np.float32(0):
                    total = np.float32(0)
                if scaled:
                    total = total * value
                if below:
                    bottom = value + below_epsilon if value >= np.float32(0) else value - below_epsilon
                    total = total / bottom if bottom != np.float32(0) else np.float32(0)
                out[n * o_n + c * o_c + i * o_p] = total
            block += cuda.gridDim.y

    return max_pool


def make_average_pool(
    form: PoolForm, fixed: Mapping[str, int], tile_c: int, tile_p: int, lanes: str
) -> Callable[..., None]:
    """The kernel that spreads each window's entry evenly over the window."""
    f_c, f_h, f_w, f_p, f_q = (fixed.get(k, -1) for k in ("C", "H", "W", "P", "Q"))
    f_kh, f_kw, f_sh, f_sw = (fixed.get(k, -1) for k in ("KH", "KW", "SH", "SW"))
    f_ph, f_pw, f_eh, f_ew = (fixed.get(k, -1) for k in ("PH", "PW", "EH", "EW"))
    f_dh, f_dw, f_pad = (fixed.get(k, -1) for k in ("DH", "DW", "PAD"))
    shifted, active, scaled, below = form.shifted, form.numerator == "active", form.numerator == "x", form.below == "x"
    ratio, reads_x, channels_fast = form.quotient == "ratio", "x" in form.operands, lanes == "channels"

    def average_pool(
        x, y, r, delta, out, epsilon, below_epsilon, N, C_, H_, W_, P_, Q_, KH, KW, SH, SW, PH, PW, EH, EW, DH, DW, PAD,
        x_n, x_c, x_p, y_n, y_c, y_p, r_n, r_c, r_p, o_n, o_c, o_p,
    ):  # fmt: skip
        C = f_c if f_c >= 0 else C_
        H = f_h if f_h >= 0 else H_
        W = f_w if f_w >= 0 else W_
        P = f_p if f_p >= 0 else P_
        Q = f_q if f_q >= 0 else Q_
        kh = f_kh if f_kh >= 0 else KH
        kw = f_kw if f_kw >= 0 else KW
        sh = f_sh if f_sh >= 0 else SH
        sw = f_sw if f_sw >= 0 else SW
        ph = f_ph if f_ph >= 0 else PH
        pw = f_pw if f_pw >= 0 else PW
        eh = f_eh if f_eh >= 0 else EH
        ew = f_ew if f_ew >= 0 else EW
        dh = f_dh if f_dh >= 0 else DH
        dw = f_dw if f_dw >= 0 else DW
        pad = f_pad if f_pad >= 0 else PAD
        lane = np.uint32(cuda.threadIdx.x)
        if channels_fast:
            dc = np.int32(lane % np.uint32(tile_c))
            dp = np.int32(lane // np.uint32(tile_c))
        else:
            dp = np.int32(lane % np.uint32(tile_p))
            dc = np.int32(lane // np.uint32(tile_p))
        i = np.int32(np.int32(cuda.blockIdx.x) * tile_p + dp)
        if i >= H * W:
            return
        h = np.int32(np.uint32(i) // np.uint32(W))
        w = np.int32(i - h * W)
        low_h = np.int32(h + ph - (kh - 1) * dh)
        low_w = np.int32(w + pw - (kw - 1) * dw)
        p0 = np.int32(np.uint32(low_h + sh - 1) // np.uint32(sh)) if low_h > 0 else np.int32(0)
        q0 = np.int32(np.uint32(low_w + sw - 1) // np.uint32(sw)) if low_w > 0 else np.int32(0)
        p1 = np.int32(np.uint32(h + ph) // np.uint32(sh))
        q1 = np.int32(np.uint32(w + pw) // np.uint32(sw))
        p1 = p1 if p1 < P - 1 else np.int32(P - 1)
        q1 = q1 if q1 < Q - 1 else np.int32(Q - 1)
        # the divisor counts entries within [0, H), or within the declared padding too
        floor_h = -ph if pad else 0
        floor_w = -pw if pad else 0
        roof_h = H + eh if pad else H
        roof_w = W + ew if pad else W
        # as many windows as may hold an element: a number that is compiled in unrolls the loops
        many_h = ((kh - 1) * dh + sh) // sh
        many_w = ((kw - 1) * dw + sw) // sw
        blocks = (C + tile_c - 1) // tile_c
        block = cuda.blockIdx.y
        while block < N * blocks:
            n = block // blocks
            c = (block - n * blocks) * tile_c + dc
            if c < C:
                y_base = n * y_n + c * y_c
                r_base = n * r_n + c * r_c
                total = np.float32(0)
                for turn_h in range(many_h):
                    p = np.int32(p1 - many_h + 1 + turn_h)
                    start = np.int32(p * sh - ph)
                    if p >= p0 and (dh == 1 or np.uint32(h - start) % np.uint32(dh) == 0):
                        below_h = (floor_h - start + dh - 1) // dh if floor_h > start else 0
                        above_h = (roof_h - start + dh - 1) // dh
                        rows = (above_h if above_h < kh else kh) - below_h
                        for turn_w in range(many_w):
                            q = np.int32(q1 - many_w + 1 + turn_w)
                            start_w = np.int32(q * sw - pw)
                            if q >= q0 and (dw == 1 or np.uint32(w - start_w) % np.uint32(dw) == 0):
                                below_w = (floor_w - start_w + dw - 1) // dw if floor_w > start_w else 0
                                above_w = (roof_w - start_w + dw - 1) // dw
                                columns = (above_w if above_w < kw else kw) - below_w
                                at = np.int32(p * Q + q)
                                share = r[r_base + at * r_p]
                                if shifted and share != np.float32(0):
                                    share = share - delta[n]
                                if ratio:
                                    z = y[y_base + at * y_p]
                                    z = z + epsilon if z >= np.float32(0) else z - epsilon
                                    share = share / z if z != np.float32(0) else np.float32(0)
                                total += share / np.float32(rows * columns)
                if reads_x:
                    value = x[n * x_n + c * x_c + i * x_p]
                    if active and not value > np.float32(0):
                        total = np.float32(0)
                    if scaled:
                        total = total * value
                    if below:
                        bottom = value + below_epsilon if value >= np.float32(0) else value - below_epsilon
                        total = total / bottom if bottom != np.float32(0) else np.float32(0)
                out[n * o_n + c * o_c + i * o_p] = total
            block += cuda.gridDim.y

    return average_pool


FACTORIES: dict[str, Callable[..., Callable[..., Any]]] = {"max_pool": make_max_pool, "average_pool": make_average_pool}
