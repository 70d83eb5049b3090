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
Numerator = Literal["one", "x", "x+", "x-", "|x-|", "active", "inside", "halves", "box"]
Below = Literal["none", "x", "d"]
Source = Literal["x", "x+", "x-", "|x|", "halves", "twin", "magnitudes"]
End = Literal["sum", "quotient", "pair"]
Gate = Literal["", "positive", "negative"]

SOURCES: tuple[Source, ...] = ("x", "x+", "x-", "|x|", "halves", "twin", "magnitudes")
ENDS: tuple[End, ...] = ("sum", "quotient", "pair")
GATES: tuple[Gate, ...] = ("", "positive", "negative")
QUOTIENTS: tuple[Quotient, ...] = ("given", "ratio", "relative", "relative_dense")
BRANCHES: tuple[Branch, ...] = ("single", "dual", "twin")
NUMERATORS: tuple[Numerator, ...] = ("one", "x", "x+", "x-", "|x-|", "active", "inside", "halves", "box")
BELOW: tuple[Below, ...] = ("none", "x", "d")


@dataclass(frozen=True)
class ConvForm:
    """One fused pass over a convolution, out = below(numerator(x) ⊙ Σ Lᵀ s).

    quotient: ``given`` s = r (dual: t = a); ``ratio`` s = r/D(a, ε) (dual: t = r/D(b, ε)); ``relative``
    s = r⁺⊘a, t = r⊘(a+b) + r⁻⊘b (RAP for convolutions); ``relative_dense`` s = r⊘a, t = r⊘(a+b) (RAP for dense layers).
    branch: ``single`` L_wᵀs; ``dual`` L_wᵀs + L_vᵀt; ``twin`` L_wᵀs and L_vᵀs kept apart, for ``halves`` and ``box``.
    numerator: ``one``, ``x``, ``x+`` = max(x, 0), ``x-`` = min(x, 0), ``|x-|``, ``active`` = 1[x > 0],
    ``inside`` = 1[low < x < high], ``halves`` x⁺·(L_wᵀs) + x⁻·(L_vᵀs), ``box`` (x - low)·(L_wᵀs) + (x - high)·(L_vᵀs).
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
        return (*used, *(("low", "high") if self.numerator in ("inside", "box") else ()))

    @property
    def results(self) -> tuple[str, ...]:
        """The tensors that are written."""
        return ("out", "sums", "counts") if self.sums else ("out",)

    @property
    def products(self) -> int:
        """How many passes over the layer's multiply-adds the form takes."""
        return 1 if self.branch == "single" else 2


@dataclass(frozen=True)
class DenominatorForm:
    """One fused pass forward over a convolution: what relevance is divided by, or already the quotient.

    source: which input meets which weight. ``x``, ``x+``, ``x-`` = min(x, 0) and ``|x|`` meet w; ``halves`` L_w x⁺ + L_v x⁻;
    ``twin`` L_w x and L_v x apart; ``magnitudes`` L_w |x| and L_v x apart.
    end: ``sum`` out = L + bias; ``quotient`` out = scale·r ⊘ D(L + bias, ε), and with `accounts` lost = scale·r - out·L,
    what neither the weights nor the input took. ``pair`` RAP's Z⁺ and Z⁻ (rap_rsp.md §6) in out and pair: of ``x`` Z⁺ = L,
    Z⁻ = Z⁺ - (z - bias); of ``|x|`` both from T = L as (T ± (z - bias))/2; of ``twin`` directly; of ``magnitudes`` from T = L_w |x|
    and U = L_v x as (T ± U)/2. `divided`: in their place RAP's two quotients of r.
    Where both come from rounded products, ``twin`` and ``magnitudes`` do not cancel: z is not rounded as L is.
    biased: `bias` [K] is read. gate: r counts where z > 0, or z < 0, alone. shifted: as in `ConvForm`.
    """

    source: Source = "x"
    end: End = "sum"
    biased: bool = False
    accounts: bool = False
    gate: Gate = ""
    divided: bool = False
    shifted: bool = False

    def __post_init__(self) -> None:
        """Refuse combinations without a meaning.

        Raises:
            UnsupportedShape: an unknown word, or words that exclude each other.

        """
        for word, words in zip((self.source, self.end, self.gate), (SOURCES, ENDS, GATES)):
            if word not in words:
                raise UnsupportedShape(f"A denominator's form cannot say {word!r}; it is one of {', '.join(words)}.")
        pair = self.end == "pair"
        if pair and self.source not in ("x", "|x|", "twin", "magnitudes"):
            raise UnsupportedShape(f"RAP's pair is not made of the source {self.source!r}.")
        if not pair and self.source in ("twin", "magnitudes"):
            raise UnsupportedShape(f"The source {self.source!r} makes two sums: the end is 'pair'.")
        if (self.accounts or self.gate) and self.end != "quotient":
            raise UnsupportedShape("Only a quotient accounts for what is lost, or is gated by the sign of z.")
        if self.divided and not pair:
            raise UnsupportedShape("Only RAP's pair is divided apart from 'quotient'.")
        if self.shifted and not self.reads_r:
            raise UnsupportedShape("A shift is one of r, which this form does not read.")

    @property
    def reads_r(self) -> bool:
        """Whether relevance is divided here."""
        return self.end == "quotient" or self.divided

    @property
    def reads_z(self) -> bool:
        """Whether the pre-activation is needed."""
        return bool(self.gate) or (self.end == "pair" and self.source in ("x", "|x|"))

    @property
    def two_weights(self) -> bool:
        """Whether v is read beside w."""
        return self.source in ("halves", "twin", "magnitudes")

    @property
    def operands(self) -> tuple[str, ...]:
        """The tensors that are read, in the kernels' order; `results` are written."""
        used = ["x", "w"] + ["v"] * self.two_weights + ["bias"] * self.biased + ["z"] * self.reads_z
        return (*used, *(["r"] * self.reads_r), *(["delta"] * self.shifted))

    @property
    def results(self) -> tuple[str, ...]:
        """The tensors that are written."""
        return ("out", *(["pair"] * (self.end == "pair")), *(["lost"] * self.accounts))

    @property
    def products(self) -> int:
        """How many passes over the layer's multiply-adds the form takes."""
        return 2 if self.two_weights else 1


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
GRADIENT_CLIP = ConvForm("given", numerator="inside")
ALPHA_BETA = ConvForm("ratio", "dual")  # α and -β are folded into w and v
GAMMA = ConvForm("ratio", "dual", gated=True)
RELATIVE = ConvForm("relative", "dual", sums=True)  # RAP, x >= 0: w = W⁺, v = |W⁻|
RELATIVE_CHAIN = ConvForm("relative", "dual", shifted=True, sums=True)
RELATIVE_GIVEN = ConvForm("given", "dual", sums=True)  # its two quotients were made with the denominators
HALVES = ConvForm("ratio", "twin", "halves")  # z⁺ of an input of any sign: w = W⁺, v = W⁻
HALVES_GIVEN = ConvForm("given", "twin", "halves")
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
    "gradient_clip": GRADIENT_CLIP,
    "alpha_beta": ALPHA_BETA,
    "gamma": GAMMA,
    "relative": RELATIVE,
    "relative_chain": RELATIVE_CHAIN,
    "relative_given": RELATIVE_GIVEN,
    "halves": HALVES,
    "halves_given": HALVES_GIVEN,
    "box": BOX,
    "box_given": BOX_GIVEN,
}
