"""A text as tokens: which part of the text each one stands for, and what of the text no token stands for.

Tokens are shown as the text has them, by their offsets, so that pieces of words join and read like the sentence.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Token:
    """One token: its place among the model's positions, its name in the vocabulary and its id, and the part of the text that
    it stands for (characters `start` to `end`; both None of tokens that the tokenizer added, such as ``[CLS]``).
    """

    position: int
    name: str
    id: int
    start: int | None
    end: int | None

    @property
    def special(self) -> bool:
        """Whether it stands for nothing in the text."""
        return self.start is None


@dataclass(frozen=True)
class Text:
    """A text and its tokens, in their order, without padding; `cut`: characters at its end that did not fit the model."""

    text: str
    tokens: tuple[Token, ...]
    cut: int = 0

    def parts(self) -> Iterator[tuple[str, tuple[Token, ...]]]:
        """The text from end to end in parts, each with the tokens that stand for it (none: what lies between tokens).

        Tokens that share a character (the bytes of one letter) make one part. A token that stands for nothing is a part of
        its own, under its name, where it comes.
        """
        done = 0
        group: list[Token] = []
        span = (0, 0)
        for token in self.tokens:
            if token.start is None or token.end is None:
                if group:
                    yield self.text[span[0] : span[1]], tuple(group)
                    done, group = span[1], []
                yield token.name, (token,)
                continue
            if group and token.start < span[1]:
                group.append(token)
                span = (min(span[0], token.start), max(span[1], token.end))
                continue
            if group:
                yield self.text[span[0] : span[1]], tuple(group)
                done = span[1]
            if token.start > done:
                yield self.text[done : token.start], ()
            group, span = [token], (max(token.start, done), token.end)
        if group:
            yield self.text[span[0] : span[1]], tuple(group)
            done = span[1]
        if done < len(self.text):
            yield self.text[done:], ()
