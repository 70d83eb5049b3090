"""Texts, their tokens and what each of them did: the Python side of ``onnx-explain explain MODEL --tokenizer … --text …``.

>>> explainer = Explainer("sentiment.onnx", "attn-lrp")                         # doctest: +SKIP
>>> batch = Tokenizer("tokenizer.json", explainer.inputs)(["a good film"])      # doctest: +SKIP
>>> told = TextExplanation(explainer(batch), batch)                             # doctest: +SKIP
>>> [(t.name, r) for t, r in told.tokens(0)]                                    # doctest: +SKIP

A token's relevance is what arrived at the embeddings that its id selects, summed over their features. What arrived at other
embeddings (positions, segments) stands under their own names in `Explanation.relevance` and `Explanation.entries`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx_explain import render
from onnx_explain.data import Encoded, Text, Token, Tokenizer
from onnx_explain.errors import InputError
from onnx_explain.explanation import Explanation
from onnx_explain.files import draft

__all__ = ["Encoded", "Text", "TextExplanation", "Token", "Tokenizer", "parts_of"]


@dataclass(frozen=True)
class TextExplanation:
    """An explanation of a batch of texts, told by their tokens.

    Raises InputError: the explanation is of another batch, or the model's score does not depend on the ids' embeddings.
    """

    explanation: Explanation
    batch: Encoded

    def __post_init__(self) -> None:
        """Raise InputError where the two do not belong together."""
        ids = self.batch.ids
        found = self.explanation.entries.get(ids)
        if found is None:
            raise InputError(
                f"No relevance arrived at an embedding that the ids {ids!r} select, so there is none of a token; explain "
                "without `at`, or another output."
            )
        if found.shape != self.batch[ids].shape:
            raise InputError(
                f"The explanation is of ids {list(found.shape)}, but the batch holds {list(self.batch[ids].shape)}."
            )

    def tokens(self, sample: int = 0) -> list[tuple[Token, float]]:
        """The tokens of one text in their order, without padding, each with its relevance."""
        row = self.explanation.entries[self.batch.ids][self._checked(sample)]
        return [(t, float(row[t.position])) for t in self.batch.texts[sample].tokens]

    def parts(self, sample: int = 0) -> list[render.Part]:
        """The text from end to end in parts, as pictures show it."""
        row = self.explanation.entries[self.batch.ids][self._checked(sample)]
        return parts_of(self.batch.texts[sample], row)

    def as_dict(self, sample: int = 0) -> dict[str, Any]:
        """The text and its tokens as plain data."""
        return told(self.batch.texts[self._checked(sample)], self.explanation.entries[self.batch.ids][sample])

    def save_html(self, path: str | os.PathLike[str], sample: int = 0, *, dark: bool = False) -> None:
        """Write one text as a page that stands alone; light or dark as its reader likes, `dark`: dark for everyone."""
        e, parts = self.explanation, self.parts(sample)
        element = e.target.told(sample)
        facts = (("explained", element), ("score", f"{float(e.target.score[sample]):.6g}"), ("method", e.method))
        save_html(path, render.page_of_tokens(parts, title=f"{element} by {e.method}", facts=facts, dark=dark))

    def plot(self, path: str | os.PathLike[str], sample: int = 0, *, dark: bool = False) -> None:
        """Draw one text into a .png, .svg or .pdf file."""
        e = self.explanation
        title = f"{e.method}: {e.target.told(self._checked(sample))}"
        render.save_figure(render.figure_tokens(self.parts(sample), title=title, dark=dark), Path(path))

    def _checked(self, sample: int) -> int:
        if not 0 <= sample < len(self.batch.texts):
            raise InputError(f"There is no text {sample}: the batch holds {len(self.batch.texts)}.")
        return sample


def parts_of(text: Text, row: Any) -> list[render.Part]:
    """A text from end to end in parts; `row`: relevance [positions]."""
    found = []
    for said, tokens in text.parts():
        if not tokens:
            found.append(render.Part(said))
            continue
        about = ", ".join(f"{t.name} ({t.id})" for t in tokens)
        total = sum(float(row[t.position]) for t in tokens)
        found.append(render.Part(said, total, about, special=tokens[0].special))
    return found


def told(text: Text, row: Any) -> dict[str, Any]:
    """A text and its tokens as plain data: name, id, span in the text (None of added tokens), relevance."""
    return {
        "text": text.text,
        "cut": text.cut,
        "tokens": [
            {
                "text": t.name if t.special else text.text[t.start : t.end],
                "token": t.name,
                "id": t.id,
                "span": None if t.special else [t.start, t.end],
                "relevance": float(row[t.position]),
            }
            for t in text.tokens
        ],
    }


def save_html(path: str | os.PathLike[str], page: str) -> None:
    """Write a page, whole or not at all; OutputError."""
    with draft(path) as whole:
        whole.write_text(page, encoding="utf-8", errors="backslashreplace", newline="\n")
