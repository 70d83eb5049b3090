"""Texts whose parts are coloured by their relevance: a picture of the text, and a page of HTML that stands alone.

Whatever a text holds is shown and never obeyed: markup is escaped, control and direction characters get visible signs.
"""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from onnx_explain.errors import InputError
from onnx_explain.render.colours import BLUE, RED, Picture, rgb, scale_of
from onnx_explain.render.page import AGAINST, DARK, LIGHT, SUPPORTS, Page, colour_strip, text_width

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZE, LINE, WIDE = 10.0, 0.27, 8.4
_MOST_LINES = 120


@dataclass(frozen=True)
class Part:
    """A part of a text: what it says, its relevance (None: no token stands for it), and more about it for who points at it.

    special: a token that the tokenizer added, shown by its name.
    """

    text: str
    relevance: float | None = None
    about: str = ""
    special: bool = False


def visible(text: str) -> str:
    """The text with a sign for every character that would steer a terminal, a page or the order of reading."""
    return "".join(map(_sign, text))


def _sign(character: str) -> str:
    if character in "\n\t":
        return character
    kind, code = unicodedata.category(character), ord(character)
    if kind == "Cc":
        return chr(0x2400 + code) if code < 0x20 else "\u2421" if code == 0x7F else f"<{code:02X}>"
    # format characters that join emoji and letters stay; those that turn the direction, and lone surrogates, do not
    if kind == "Cs" or code in _TURNS:
        return f"<{code:04X}>"
    return character


_TURNS = frozenset((*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C, 0x2028, 0x2029))


def strengths(parts: Sequence[Part]) -> list[float]:
    """Of every part its share of the largest |relevance|, in [-1, 1]; 0 where it has none."""
    values = np.array([p.relevance or 0.0 for p in parts], dtype=np.float64)
    limit = scale_of(values, percentile=100)
    return [float(v) for v in (values / limit if limit > 0 else values)]


def figure_tokens(parts: Sequence[Part], *, title: str | None = None, dark: bool = False) -> Figure:
    """Return a text [parts in their order] as a picture, each part on the colour of its relevance.

    Raises InputError: no parts, NaN or infinite relevance.
    """
    if not parts:
        raise InputError("There is no text to draw.")
    theme = DARK if dark else LIGHT
    placed, rows = laid_out(parts, strengths(parts))
    note = f"the first {_MOST_LINES} lines" if rows > _MOST_LINES else ""
    rows = min(rows, _MOST_LINES)
    legend = blend(theme.face)
    page = Page(WIDE + 0.5, LINE * rows + 0.12, title, theme, note=note, legend=legend)
    for row, left, wide, text, strength in placed:
        if row < rows:
            page.box(0.25 + left, LINE * row + 0.05, wide, LINE - 0.04, RED if strength > 0 else BLUE, abs(strength))
            page.text(0.25 + left, LINE * row + 0.05 + LINE / 2, text, SIZE, ha="left")
    return page.figure


def blend(ground: str) -> Picture:
    """The legend of what is coloured on that ground."""
    ends = Image.fromarray(colour_strip(BLUE, ground, RED)).resize((255, 1), Image.Resampling.BILINEAR)
    return np.asarray(ends)


Placed = tuple[int, float, float, str, float]
"""Row, left edge, width, text, strength."""


def laid_out(parts: Sequence[Part], heats: Sequence[float]) -> tuple[list[Placed], int]:
    """(row, left, width, text, strength) of every piece, in inches, broken between parts; and the number of rows."""
    space = text_width("a a", SIZE) - text_width("aa", SIZE)
    placed: list[Placed] = []
    row, left = 0, 0.0
    for part, heat in zip(parts, heats):
        for k, line in enumerate(visible(part.text).replace("\t", "    ").split("\n")):
            if k:
                row, left = row + 1, 0.0
            for piece in _pieces(line):
                wide = len(piece) * space if piece.isspace() else text_width(piece, SIZE) if piece else 0.0
                if left and left + wide > WIDE:
                    row, left = row + 1, 0.0
                if piece:
                    placed.append((row, left, wide, piece, heat))
                left += wide + (space if part.special else 0.0)
    return placed, row + 1


def _pieces(line: str, most: int = 60) -> list[str]:
    """Blanks apart from words; what is longer than a line in several pieces."""
    inner = line.strip(" ")
    head, tail = len(line) - len(line.lstrip(" ")), len(line) - len(line.rstrip(" "))
    if not inner:
        return [line]
    words = [inner[i : i + most] for i in range(0, len(inner), most)]
    return [*([" " * head] if head else []), *words, *([" " * tail] if tail else [])]


# ------------------------------------------------------------------------------------------------------- HTML


def page_of_tokens(
    parts: Sequence[Part], *, title: str, facts: Sequence[tuple[str, str]] = (), dark: bool = False
) -> str:
    """Return a page of HTML: the text with its parts coloured, what was explained, and a table of the strongest parts.

    It needs no other file and runs nothing. It follows the reader's light or dark setting; `dark`: dark for everyone.
    """
    spans = "".join(_span(p, heat) for p, heat in zip(parts, strengths(parts)))
    told = "".join(f"<dt>{_text(k)}</dt><dd>{_text(v)}</dd>" for k, v in facts)
    strongest = sorted((p for p in parts if p.relevance is not None), key=lambda p: -abs(p.relevance or 0.0))[:30]
    rows = "".join(
        f'<tr><td class="{_side(p.relevance or 0.0)}">{_text(p.text)}</td><td>{p.relevance:+.4g}</td></tr>'
        for p in strongest
    )
    scheme = "dark" if dark else "light dark"
    night = f":root {{ {_NIGHT} }}" if dark else f"@media (prefers-color-scheme: dark) {{ :root {{ {_NIGHT} }} }}"
    return f"""<!doctype html>
<html lang="und"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="{scheme}">
<title>{_text(title)}</title>
<style>:root {{ {_DAY} }} {night}
{_STYLE}</style></head><body><main>
<h1>{_text(title)}</h1>
<p class="text" dir="auto">{spans}</p>
<p class="legend"><span>{AGAINST}</span><i></i><span>{SUPPORTS}</span></p>
<dl>{told}</dl>
<details><summary>The strongest parts</summary><table>{rows}</table></details>
</main></body></html>
"""


def _span(part: Part, heat: float) -> str:
    if part.relevance is None:
        return _text(part.text)
    about = f"{part.relevance:+.4g}" + (f"\n{part.about}" if part.about else "")
    kind = f"{_side(heat)} special" if part.special else _side(heat)
    return f'<span class="{kind}" style="--a:{abs(heat):.3f}" title="{_text(about)}">{_text(part.text)}</span>'


def _side(value: float) -> str:
    return "for" if value > 0 else "against" if value < 0 else "none"


def _text(text: str) -> str:
    return html.escape(visible(text), quote=True)


def _numbers(colour: str) -> str:
    return ",".join(str(round(255 * part)) for part in rgb(colour))


_DAY = "--ground:#fff; --ink:#1a1a1a; --muted:#666; --edge:#ddd; --most:.75;"
_NIGHT = "--ground:#14161a; --ink:#ececec; --muted:#a3a7ae; --edge:#3a3e45; --most:.8;"
_STYLE = f"""body {{ margin:0; background:var(--ground); color:var(--ink); font:16px/1.5 system-ui,sans-serif; }}
main {{ max-width:48rem; margin:2rem auto; padding:0 1rem; }}
h1 {{ font-size:1.1rem; overflow-wrap:anywhere; }}
.text {{ font-size:1.15rem; line-height:2; white-space:pre-wrap; overflow-wrap:anywhere; }}
.text span {{ border-radius:.2em; padding:.18em 0; unicode-bidi:isolate; }}
.for {{ background:rgba({_numbers(RED)},calc(var(--a,.35)*var(--most))); }}
.against {{ background:rgba({_numbers(BLUE)},calc(var(--a,.35)*var(--most))); }}
.special {{ font-size:.7em; outline:1px solid var(--edge); margin:0 .3em; padding:.2em .3em; }}
.legend {{ display:flex; gap:.6rem; align-items:center; color:var(--muted); font-size:.85rem; }}
.legend i {{ width:8rem; height:.7rem; background:linear-gradient(90deg,{BLUE},var(--ground),{RED}); border:1px solid var(--edge); }}
dl {{ display:grid; grid-template-columns:max-content 1fr; gap:.1rem 1rem; font-size:.9rem; }}
dt {{ color:var(--muted); }} dd {{ margin:0; overflow-wrap:anywhere; }}
table {{ border-collapse:collapse; font-size:.9rem; }} td {{ padding:.15rem .8rem .15rem .3rem; white-space:pre-wrap; }}
td + td {{ text-align:right; font-variant-numeric:tabular-nums; }}
summary {{ color:var(--muted); cursor:pointer; }}"""
