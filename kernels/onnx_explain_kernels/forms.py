"""What is fused into one pass over a layer: how the quotient is made while loading, what the result is multiplied by.

A form is data; the reference, the kernels and the planner read the same one. Letters: r incoming relevance (or a
quotient), a b denominators of this layer, z its pre-activation, x its input, d the denominator of the layer below.
D(z, ε) = z + ε·sgn(z) with sgn(0) = 1, and every r/0 is 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from onnx_explain_kernels.errors import UnsupportedShape

Quotient = Literal["given", "ratio", "relative", "relative_dense"]
Branch = Literal["single", "dual", "twin"]
Numerator = Literal["one", "x", "x+", "x-", "|x-|", "active", "halves", "box"]
Below = Literal["none", "x", "d"]

QUOTIENTS: tuple[Quotient, ...] = ("given", "ratio", "relative", "relative_dense")
BRANCHES: tuple[Branch, ...] = ("single", "dual", "twin")
NUMERATORS: tuple[Numerator, ...] = ("one", "x", "x+", "x-", "|x-|", "active", "halves", "box")
BELOW: tuple[Below, ...] = ("none", "x", "d")


@dataclass(frozen=True)
class ConvForm:
    """One fused pass over a convolution, out = below(numerator(x) ⊙ Σ Lᵀ s).

    quotient: ``given`` s = r (dual: t = a); ``ratio`` s = r/D(a, ε) (dual: t = r/D(b, ε)); ``relative``
    s = r⁺⊘a, t = r⊘(a+b) + r⁻⊘b (RAP for convolutions); ``relative_dense`` s = r⊘a, t = r⊘(a+b) (RAP for dense layers).
    branch: ``single`` L_wᵀs; ``dual`` L_wᵀs + L_vᵀt; ``twin`` L_wᵀs and L_vᵀs kept apart, for ``halves`` and ``box``.
    numerator: ``one``, ``x``, ``x+`` = max(x, 0), ``x-`` = min(x, 0), ``|x-|``, ``active`` = 1[x > 0],
    ``halves`` x⁺·(L_wᵀs) + x⁻·(L_vᵀs), ``box`` (x - low)·(L_wᵀs) + (x - high)·(L_vᵀs).
    below: ``none``; ``x``: divided by D(x, ε'), the quotient of the layer below a Relu; ``d``: divided by D(d, ε').
    gated: s counts where z > 0 alone, t where z < 0 alone (generalised γ). shifted: r - delta[n]·1[r ≠ 0] is read for r.
    accumulate: added to what `out` holds, before `below`. sums: row sums and counts of non-zeros are written beside it.
    """

    quotient: Quotient = "given"
    branch: Branch = "single"
    numerator: Numerator = "x"
    below: Below = "none"
    gated: bool = False
    shifted: bool = False
    accumulate: bool = False
    sums: bool = False

    def __post_init__(self) -> None:
        """Refuse combinations without a meaning.

        Raises:
            UnsupportedShape: an unknown word, or words that exclude each other.

        """
        known = (QUOTIENTS, BRANCHES, NUMERATORS, BELOW)
        for word, words in zip((self.quotient, self.branch, self.numerator, self.below), known):
            if word not in words:
                raise UnsupportedShape(f"A form cannot say {word!r}; it is one of {', '.join(words)}.")
        if self.quotient.startswith("relative") and self.branch != "dual":
            raise UnsupportedShape(f"{self.quotient!r} makes two quotients and takes the branch 'dual'.")
        if (self.branch == "twin") != (self.numerator in ("halves", "box")):
            raise UnsupportedShape("The branch 'twin' and the numerators 'halves' and 'box' come together.")
        if self.gated and self.quotient != "ratio":
            raise UnsupportedShape("Only the quotient 'ratio' can be gated by the sign of z.")
        if self.sums and self.below != "none":
            raise UnsupportedShape("Sums are those of relevance: a form with sums divides by nothing below.")

    @property
    def operands(self) -> tuple[str, ...]:
        """The tensors that are read, in the kernels' order; `out`, `sums` and `counts` are written."""
        used = ["r"]
        if self.quotient != "given" or self.branch == "dual":
            used.append("a")
        if self.branch == "dual" and self.quotient != "given":
            used.append("b")
        used += ["z"] * self.gated + ["delta"] * self.shifted + ["w"] + ["v"] * (self.branch != "single")
        used += ["x"] * (self.numerator != "one" or self.below == "x") + ["d"] * (self.below == "d")
        return (*used, *(("low", "high") if self.numerator == "box" else ()))

    @property
    def results(self) -> tuple[str, ...]:
        """The tensors that are written."""
        return ("out", "sums", "counts") if self.sums else ("out",)

    @property
    def products(self) -> int:
        """How many passes over the layer's multiply-adds the form takes."""
        return 1 if self.branch == "single" else 2


@dataclass(frozen=True)
class PoolForm:
    """One fused pass over a pool: out = below(numerator(x) ⊙ back(s)).

    kind ``max``: each window's entry goes to its first maximum in row-major order (y: the forward output; NaN is never a
    maximum). kind ``average``: each entry is spread evenly over its window; quotient ``ratio`` is r/D(y, ε).
    """

    kind: Literal["max", "average"]
    quotient: Literal["given", "ratio"] = "given"
    numerator: Literal["one", "x", "active"] = "one"
    below: Literal["none", "x"] = "none"
    shifted: bool = False

    def __post_init__(self) -> None:
        """Refuse combinations without a meaning.

        Raises:
            UnsupportedShape: an unknown word, or a quotient for a maximum, which routes relevance as it is.

        """
        known: tuple[tuple[str, tuple[str, ...]], ...] = (
            (self.kind, ("max", "average")),
            (self.quotient, ("given", "ratio")),
            (self.numerator, ("one", "x", "active")),
            (self.below, ("none", "x")),
        )
        for word, words in known:
            if word not in words:
                raise UnsupportedShape(f"A pool's form cannot say {word!r}; it is one of {', '.join(words)}.")
        if self.kind == "max" and self.quotient != "given":
            raise UnsupportedShape("A maximum routes relevance as it is: its quotient is 'given'.")

    @property
    def operands(self) -> tuple[str, ...]:
        """The tensors that are read, in the kernels' order; `out` is written."""
        x = self.kind == "max" or self.numerator != "one" or self.below == "x"
        y = self.kind == "max" or self.quotient == "ratio"
        return (*(["x"] * x), *(["y"] * y), "r", *(["delta"] * self.shifted))


EPSILON = ConvForm("ratio")  # LRP-ε, z⁺ and γ of a non-negative input: R = x ⊙ L_wᵀ(r / D(a, ε))
CHAIN = ConvForm("given", below="x")  # between Relu layers: S of the layer below from S, no relevance in between
CHAIN_FIRST = ConvForm("ratio", below="x")
PRODUCT = ConvForm("given")  # the end of a chain: R = x ⊙ L_wᵀ s
BELOW_D = ConvForm("given", below="d")  # as CHAIN, with a denominator that is not the activation (z⁺, γ)
GRADIENT = ConvForm("given", numerator="one")
GRADIENT_CHAIN = ConvForm("given", numerator="active")
ALPHA_BETA = ConvForm("ratio", "dual")  # α and -β are folded into w and v
GAMMA = ConvForm("ratio", "dual", gated=True)
RELATIVE = ConvForm("relative", "dual", sums=True)  # RAP, x >= 0: w = W⁺, v = |W⁻|
RELATIVE_CHAIN = ConvForm("relative", "dual", shifted=True, sums=True)
HALVES = ConvForm("ratio", "twin", "halves")  # z⁺ of an input of any sign: w = W⁺, v = W⁻
BOX = ConvForm("ratio", "twin", "box")  # zᴮ: w = W⁺, v = W⁻; (x - l) ⊙ L_wᵀs + (x - h) ⊙ L_vᵀs
BOX_GIVEN = ConvForm("given", "twin", "box")
NAMED: dict[str, ConvForm] = {
    "epsilon": EPSILON,
    "chain": CHAIN,
    "chain_first": CHAIN_FIRST,
    "product": PRODUCT,
    "below_d": BELOW_D,
    "gradient": GRADIENT,
    "gradient_chain": GRADIENT_CHAIN,
    "alpha_beta": ALPHA_BETA,
    "gamma": GAMMA,
    "relative": RELATIVE,
    "relative_chain": RELATIVE_CHAIN,
    "halves": HALVES,
    "box": BOX,
    "box_given": BOX_GIVEN,
}
