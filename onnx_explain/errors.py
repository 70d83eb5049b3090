"""Every error a user can meet. Each message says what, where, why and what to do.

::

    ExplainError
    ├── ModelError               the file: malformed, truncated, hostile, or not runnable
    ├── UnsupportedOperator      a node on the path from the target to an input has no room
    ├── MethodError              unknown method, rule or option
    ├── TargetError              unknown output, index out of range, not an explainable tensor
    ├── InputError               shape, dtype, layout, NaN, unreadable picture
    ├── OutputError              a result cannot be written where it was asked for
    ├── RuntimeMissing           neither onnxruntime nor onnxruntime-gpu is installed
    └── VerificationError        a built graph breaks an invariant, or differs from the original model

A user's fault never raises anything else; the command line prints the message and exits with 2.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches


class ExplainError(Exception):
    """The root: catch this to catch every error of onnx-explain."""


class ModelError(ExplainError):
    """The model file cannot be read, is not valid ONNX, or reaches outside its own folder."""


class UnsupportedOperator(ExplainError):
    """A node that relevance must pass has no room; names node, operator, opset, shapes, method and remedy."""


class MethodError(ExplainError):
    """An unknown method or rule, or an option the method does not have."""


class TargetError(ExplainError):
    """The asked-for output element does not exist or cannot be explained."""


class InputError(ExplainError):
    """An input does not fit the model: name, shape, dtype, layout, values, or an unreadable file."""


class OutputError(ExplainError):
    """A result cannot be written."""


class RuntimeMissing(ExplainError):
    """ONNX Runtime is not installed: `pip install "onnx-explain[cpu]"` or `"onnx-explain[gpu]"`."""


class VerificationError(ExplainError):
    """A built graph breaks an invariant, or its prediction differs from the original model's."""


def suggest(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"``, or the known names where none is close, or ``""`` where there are none.

    Case and separators do not count; initials stand for a name (``IG``: integrated-gradients).
    """
    names = [n for n in known if isinstance(n, str)]
    folded = {_folded(n): n for n in reversed(names)}
    initials = {"".join(word[0] for word in re.findall(r"[^\W_]+", n.casefold())): n for n in reversed(names)}
    asked = _folded(str(name))
    close = [folded[c] for c in get_close_matches(asked, folded, n=1, cutoff=0.5)]
    if asked not in folded and len(asked) > 1 and asked in initials:
        close = [initials[asked]]
    if close:
        return f" Did you mean {close[0]!r}?"
    if not names:
        return ""
    shown = ", ".join(repr(n) for n in names[:12])
    return f" Known: {shown}{', …' if len(names) > 12 else ''}."


def _folded(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold()) or name
