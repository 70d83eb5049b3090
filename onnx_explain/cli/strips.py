"""A text as one line of a terminal: each part on the colour of its relevance; with numbers where there are no colours."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import numpy as np
import typer

from onnx_explain import render
from onnx_explain.render import Part

_WEAK = 0.06  # of the strongest part: not worth a colour, nor a number


def print_parts(parts: Sequence[Part]) -> None:
    """Print a text: coloured for a terminal that shows colours, else every part that matters with its share in brackets."""
    if coloured():
        _print_colours(parts)
    else:
        typer.echo(with_shares(parts))


def coloured() -> bool:
    """Whether stdout is a terminal that is asked to show colours, and has enough of them: of sixteen, orange is yellow."""
    if not sys.stdout.isatty() or "NO_COLOR" in os.environ:
        return False
    from rich.console import Console

    return Console().color_system in ("256", "truecolor", "windows")


def with_shares(parts: Sequence[Part]) -> str:
    """``A good[+1.00] film[+0.31]``: relevance as a share of the strongest part's."""
    told = (
        (render.visible(p.text), f"[{heat:+.2f}]" if abs(heat) >= _WEAK else "")
        for p, heat in zip(parts, render.strengths(parts))
    )
    line = "".join(f" {text}{share} " if p.special else text + share for p, (text, share) in zip(parts, told))
    return " ".join(line.split("\n")).strip()


def _print_colours(parts: Sequence[Part]) -> None:
    from rich.console import Console
    from rich.text import Text

    line = Text()
    for part, heat in zip(parts, render.strengths(parts)):
        text = render.visible(part.text)
        if part.special:
            text = f" {text} "
        line.append(text, style=_style(heat))
    Console(highlight=False).print(line)


def _style(heat: float) -> str:
    if abs(heat) < _WEAK:
        return ""
    strength = np.array([[np.sign(heat) * (0.2 + 0.65 * abs(heat))]])
    red, green, blue = (int(c) for c in render.colourise(strength)[0, 0])
    ink = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"
    return f"{ink} on rgb({red},{green},{blue})"
