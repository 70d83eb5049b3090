"""Texts as the integer inputs of a model, by a Hugging Face ``tokenizer.json`` (library ``tokenizers``, the extra ``text``).

Which input takes what is read off its name and rank (:func:`fillings`); nothing here knows a model file or a runtime.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_explain.data.samples import Sample
from onnx_explain.data.specs import Array, InputSpec, integer_range, quoted, reason
from onnx_explain.data.tokens import Text, Token
from onnx_explain.errors import InputError, RuntimeMissing, suggest

if TYPE_CHECKING:
    import tokenizers

FILLINGS = ("ids", "mask", "types", "positions", "length")
# What a name says, looked for in this order: "attention_mask", "token_type_ids" and "position_ids" all hold other words too.
_WORDS = (
    ("mask", ("mask",)),
    ("types", ("type", "segment")),
    ("positions", ("position", "pos_id")),
    ("length", ("length", "seq_len", "lens")),
)
_PADS = ("[PAD]", "<pad>", "<|pad|>", "<PAD>", "[pad]", "<|padding|>", "<|endoftext|>")


def fillings(specs: Sequence[InputSpec], stated: Mapping[str, str] | None = None) -> dict[str, str]:
    """What every input of a model of texts takes: ``ids``, ``mask``, ``types``, ``positions`` or ``length``.

    A name with *mask*, *type* or *segment*, *position*, or *length* in it says so itself; the one input of whole numbers
    [N, tokens] that is left takes the ids. ``stated`` overrides that, by the input's name.

    Raises InputError: an input that takes none of these, or several that could take the ids.
    """
    given = dict(stated or {})
    named = {s.name: s for s in specs}
    for name, what in given.items():
        if name not in named:
            raise InputError(f"The model has no input {name!r} to fill.{suggest(name, named)}")
        if what not in FILLINGS:
            raise InputError(f"Input {name!r} cannot be filled with {what!r}; a text gives {', '.join(FILLINGS)}.")
    for spec in specs:
        told = next((what for what, words in _WORDS if any(w in spec.name.lower() for w in words)), None)
        if spec.name not in given and told is not None and _takes(spec, told):
            given[spec.name] = told
    left = [s for s in specs if s.name not in given]
    candidates = [s for s in left if _takes(s, "ids")]
    if "ids" not in given.values():
        named_so = [s for s in candidates if "ids" in s.name.lower()]
        [*chosen] = candidates if len(candidates) == 1 else named_so if len(named_so) == 1 else []
        given |= {s.name: "ids" for s in chosen}
    unfilled = [s.name for s in specs if s.name not in given]
    if unfilled or "ids" not in given.values():
        listed = ", ".join(f"{s.name!r} {s}" for s in (named[n] for n in unfilled or named))
        raise InputError(
            f"A text does not say what the input {listed} takes: name it (NAME=ids, mask, types, positions or length), or "
            "give the model's inputs as arrays."
        )
    for name, what in given.items():
        if not _takes(named[name], what):
            raise InputError(f"Input {name!r} is {named[name]}, which the {what} of a text do not fit.")
    return {s.name: given[s.name] for s in specs}


def _takes(spec: InputSpec, what: str) -> bool:
    if what == "length":
        return len(spec.shape) == 1 and spec.dtype.kind in "iu"
    return len(spec.shape) == 2 and (spec.dtype.kind in "iu" or (what == "mask" and spec.dtype.kind in "bf"))


class Encoded(Mapping[str, Array]):
    """Texts as a batch: a mapping from every input's name to its array, as an `Explainer` takes it.

    texts: each with its tokens. ids: the input that takes the ids.
    """

    def __init__(self, arrays: Mapping[str, Array], texts: Sequence[Text], ids: str) -> None:
        self._arrays, self.texts, self.ids = dict(arrays), tuple(texts), ids

    def __getitem__(self, name: str) -> Array:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


@dataclass(frozen=True)
class _Row:
    """One text's tokens as the model takes them, before padding."""

    text: Text
    ids: list[int]
    types: list[int]


class Tokenizer:
    """Makes texts into the inputs of a model.

    source: a ``tokenizer.json``, or a ``tokenizers.Tokenizer``. inputs: the model's, as `Explainer.inputs` tells them, or
    `InputSpec`s. feed: ``{input name: "ids" | "mask" | "types" | "positions" | "length"}`` where names do not say it.
    most: the most tokens of a text, where the model's shape and the file leave that open.

    A model of a fixed number of tokens gets as many: texts are cut and padded. Elsewhere the texts of one call are padded to
    the longest of them where the model takes a mask; without one they must be of equal length, so give them one by one.

    Raises InputError: no readable tokenizer, or inputs that a text cannot fill. RuntimeMissing: no library ``tokenizers``.
    """

    def __init__(
        self,
        source: str | Path | tokenizers.Tokenizer,
        inputs: Mapping[str, tuple[tuple[int | None, ...], np.dtype[Any]]] | Sequence[InputSpec],
        *,
        feed: Mapping[str, str] | None = None,
        most: int | None = None,
    ) -> None:
        specs = [InputSpec(n, *told) for n, told in inputs.items()] if isinstance(inputs, Mapping) else list(inputs)
        self._specs = {s.name: s for s in specs}
        self._fillings = fillings(specs, feed)
        self.ids = next(n for n, what in self._fillings.items() if what == "ids")
        self._tokenizer = _opened(source)
        self._length = self._fixed()
        own = self._tokenizer.truncation
        if self._length is not None or most is None:
            most = self._length or (own["max_length"] if own else None)
        if most is not None and most < 1:
            raise InputError(f"A text cannot be cut to {most} tokens: give 1 or more.")
        padding: dict[str, Any] = self._tokenizer.padding or {}
        self._left = padding.get("direction") == "left"
        known = (i for i in map(self._tokenizer.token_to_id, _PADS) if i is not None)
        self._pad = int(padding["pad_id"] if "pad_id" in padding else next(known, 0))
        self._tokenizer.no_padding()
        if most is not None:
            try:
                self._tokenizer.enable_truncation(most)
            except Exception as error:  # fewer places than the tokenizer's own special tokens take
                raise InputError(f"A text cannot be cut to {most} tokens: {reason(error)}.") from error

    def __call__(self, texts: Sequence[str]) -> Encoded:
        """The texts as one batch. Raises InputError: no text, one without a token, or lengths that differ without a mask."""
        if isinstance(texts, str):
            raise InputError("The tokenizer takes a list of texts; put the one into a list.")
        rows = [self._row(text) for text in texts]
        if not rows:
            raise InputError("No text was given.")
        lengths = [len(r.ids) for r in rows]
        if self._length is None and len(set(lengths)) > 1 and not self.pads:
            raise InputError(
                f"The texts have {min(lengths)} to {max(lengths)} tokens, and the model takes no mask that says which are "
                "padding: give them one by one."
            )
        size = self._length or max(lengths)
        arrays = {n: self._filled(self._specs[n], what, rows, size) for n, what in self._fillings.items()}
        shifted = [self._placed(r, size) for r in rows]
        return Encoded(arrays, shifted, self.ids)

    def samples(self, texts: Sequence[str], name: str) -> Iterator[Sample]:
        """One sample per text: ``name``, or ``name-0``, ``name-1``, … of several."""
        batches = [self(texts)] if texts and self.pads else [self([text]) for text in texts]
        rows = [(batch, i) for batch in batches for i in range(len(batch.texts))]
        digits = len(str(len(rows) - 1))
        for k, (batch, i) in enumerate(rows):
            feeds = {n: a[i : i + 1] for n, a in batch.items()}
            yield Sample(name if len(rows) == 1 else f"{name}-{k:0{digits}d}", feeds, texts={batch.ids: batch.texts[i]})

    @property
    def pads(self) -> bool:
        """Whether texts of different length can share a batch."""
        return self._length is not None or bool({"mask", "length"} & {*self._fillings.values()})

    def _fixed(self) -> int | None:
        sizes = {s.shape[1] for n, s in self._specs.items() if self._fillings[n] != "length" and s.shape[1] is not None}
        if len(sizes) > 1:
            raise InputError(f"The inputs {quoted(self._specs)} take different numbers of tokens: give them as arrays.")
        return next(iter(sizes), None)

    def _row(self, text: str) -> _Row:
        try:
            found = self._tokenizer.encode(text)
        except Exception as error:  # the library raises plain Exception: an unknown word without an unknown token, …
            raise InputError(f"The text {_short(text)} cannot be made into tokens: {reason(error)}.") from error
        if not found.ids:
            raise InputError(f"The text {_short(text)} holds no token.")
        spans = [_span(text, *o, added=bool(m)) for o, m in zip(found.offsets, found.special_tokens_mask)]
        tokens = tuple(Token(i, n, int(k), *s) for i, (n, k, s) in enumerate(zip(found.tokens, found.ids, spans)))
        seen = max((t.end or 0 for t in tokens), default=0)
        return _Row(Text(text, tokens, len(text) - seen if found.overflowing else 0), found.ids, found.type_ids)

    def _placed(self, row: _Row, size: int) -> Text:
        before = size - len(row.ids) if self._left else 0
        moved = tuple(Token(t.position + before, t.name, t.id, t.start, t.end) for t in row.text.tokens)
        return Text(row.text.text, moved, row.text.cut)

    def _filled(self, spec: InputSpec, what: str, rows: Sequence[_Row], size: int) -> Array:
        if what == "length":
            return np.array([len(r.ids) for r in rows], dtype=spec.dtype)
        lines = [self._padded(*self._line(what, r), size) for r in rows]
        if spec.dtype.kind in "iu":
            lowest, highest = integer_range(spec)
            largest = max(max(line) for line in lines)
            if not lowest <= largest <= highest:
                raise InputError(f"The {what} reach {largest}, beyond the range of input {spec.name!r} ({spec.dtype}).")
        return np.array(lines).astype(spec.dtype)

    def _line(self, what: str, row: _Row) -> tuple[list[int], int]:
        """One text's numbers of that kind, and what stands for padding among them."""
        if what == "ids":
            return row.ids, self._pad
        if what == "types":
            return row.types, 0
        return ([1] * len(row.ids) if what == "mask" else list(range(len(row.ids)))), 0

    def _padded(self, line: list[int], pad: int, size: int) -> list[int]:
        missing = [pad] * (size - len(line))
        return missing + line if self._left else line + missing


def _span(text: str, start: int, end: int, *, added: bool) -> tuple[int, int] | tuple[None, None]:
    """Where a token stands in the text; an added one has an empty span, one that the text itself holds ("[SEP]") has not.

    Byte-level tokenizers trim blanks off spans: a token that is a blank ends where it ended, and began one before.
    """
    if start != end:
        return start, end
    return (start - 1, end) if not added and text[start - 1 : start].isspace() else (None, None)


def _opened(source: str | Path | tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    try:
        from tokenizers import Tokenizer as Library
    except ImportError as error:
        raise RuntimeMissing(
            'Texts need the library tokenizers, which is not installed: `pip install "onnx-explain[text]"`.'
        ) from error
    if isinstance(source, Library):
        return Library.from_str(source.to_str())  # a copy: padding and truncation are set here
    path = Path(source)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: the tokenizer cannot be read: {reason(error)}.") from error
    try:
        return Library.from_str(text)
    except Exception as error:  # the library raises plain Exception
        raise InputError(
            f"{path}: not a tokenizer.json of the Hugging Face library tokenizers ({reason(error)})."
        ) from error


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:39] + "…")


def read_lines(path: str | Path) -> list[str]:
    """The texts of a file in UTF-8, one per line; empty lines are left out. InputError."""
    path = Path(path)
    try:
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: the file cannot be read as UTF-8 text: {reason(error)}.") from error
    lines = [line for line in content.split("\n") if line.strip()]
    if not lines:
        raise InputError(f"{path}: the file holds no text.")
    return [line.rstrip("\r") for line in lines]
