"""What a target expression is made of: its tree, its words, and how it is read. Nothing here knows a model.

::

    expression = or ;  or = and { ("|" | "or") and } ;  and = not { ("&" | "and") not } ;  not = ("~" | "not") not | compared
    compared   = sum [ (">" | ">=" | "<" | "<=" | "==" | "!=") sum ]
    sum        = product { ("+" | "-") product } ;  product = signed { ("*" | "/") signed } ;  signed = ["-" | "+"] part
    part       = ( number | name | "(" expression ")" ) { "[" index { "," index } "]" | "." method "(" arguments ")" }
    index      = integer | [integer] ":" [integer] [":" [integer]] | "..." | "[" integers "]" | expression
    name       = letters, digits and _ . : / - in one word | "'" anything "'"

Comparisons bind tighter than ``&`` and ``|``, so that ``a > 0 & b > 0`` is what it looks like. Hostile text ends here: no
`eval`, and limits on length, depth and number of parts, so that whatever walks the tree has an end.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from onnx_explain.errors import TargetError, suggest

LONGEST = 4096  # characters
DEEPEST = 64  # brackets within brackets
MOST = 128  # operations in one expression
LARGEST = 1 << 31  # an index beyond this is a slip of the keyboard

Order = Literal[">", ">=", "<", "<=", "==", "!="]


@dataclass(frozen=True)
class Number:
    """A number as written."""

    value: float


@dataclass(frozen=True)
class Tensor:
    """An output or inner tensor by its name."""

    name: str


@dataclass(frozen=True)
class Span:
    """``start:stop:step`` of an axis, as Python slices."""

    start: int | None = None
    stop: int | None = None
    step: int | None = None


@dataclass(frozen=True)
class Rest:
    """``...``: all axes that no other index names."""


@dataclass(frozen=True)
class Listed:
    """``[3,7]``: several entries of an axis."""

    places: tuple[int, ...]


@dataclass(frozen=True)
class Index:
    """Entries of a value, one item per axis from the front."""

    of: Expression
    items: tuple[int | Span | Rest | Listed | Expression, ...]


@dataclass(frozen=True)
class Call:
    """A method of a value; `axes`: those it works along, None for all; `count`: of ``topk``."""

    of: Expression
    method: str
    arguments: tuple[Expression, ...] = ()
    axes: tuple[int, ...] | None = None
    count: int = 0


@dataclass(frozen=True)
class Unary:
    """``-x`` or ``~x``."""

    sign: str
    of: Expression


@dataclass(frozen=True)
class Binary:
    """Two values and what is between them: ``+ - * /``, an order, ``&`` or ``|``."""

    sign: str
    left: Expression
    right: Expression


Expression = Number | Tensor | Index | Call | Unary | Binary

REDUCTIONS = ("max", "min", "sum", "mean", "argmax", "argmin", "any", "all")
MAPS = ("abs", "log", "sigmoid", "softmax")
METHODS = (*REDUCTIONS, *MAPS, "topk", "where")
ORDERS = (">=", "<=", "==", "!=", ">", "<")
_STRENGTH = {"or": 1, "|": 1, "and": 2, "&": 2, **dict.fromkeys(ORDERS, 4), "+": 5, "-": 5, "*": 6, "/": 6}
_WORDS = {"and": "&", "or": "|", "not": "~"}

_TOKEN = re.compile(
    r"""(?P<space>\s+)
    |(?P<quoted>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
    |(?P<number>(?:\d+\.\d*(?![\w.])|\.\d+|\d+)(?:[eE][+-]?\d+)?(?![\w]))
    |(?P<name>[^\W\d][\w]*(?:\.(?!\s*[^\W\d]\w*\s*\()[\w]+|[:/-]+(?=[^\W])[\w]+)*
              |/[\w]+(?:\.(?!\s*[^\W\d]\w*\s*\()[\w]+|[:/-]+(?=[^\W])[\w]+)*)
    |(?P<sign>\.\.\.|>=|<=|==|!=|[-+*/()\[\].,:<>&|~=])""",
    re.VERBOSE,
)


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    place: int


def parse_expression(text: str) -> Expression:
    """The tree of an expression; TargetError says what is wrong where, and what could stand there."""
    if len(text) > LONGEST:
        raise TargetError(f"The target has {len(text)} characters, more than {LONGEST}; write a shorter expression.")
    return _Parser(text).whole()


class _Parser:
    """Precedence climbing over tokens made one by one."""

    def __init__(self, text: str) -> None:
        self._text, self._depth, self._parts, self._place = text, 0, 0, 0
        self._token = _Token("start", "", 0)
        self._token = self._next()

    def whole(self) -> Expression:
        """All of the text."""
        found = self._expression(0)
        if self._token.kind != "end":
            raise self._fault(f"{self._token.text!r} does not belong here")
        return found

    # -- words

    def _next(self) -> _Token:
        while self._place < len(self._text):
            start = self._place
            found = _TOKEN.match(self._text, start)
            if found is None:
                raise self._fault(f"{self._text[start]!r} means nothing", start)
            kind, word = found.lastgroup or "", found.group()
            if kind == "name" and word[0] == "/" and self._operand_ended:
                kind, word = "sign", "/"  # behind an operand it divides; in front of a word it begins a name
            self._place = start + len(word)
            if kind != "space":
                return _Token("sign" if word in _WORDS else kind, _WORDS.get(word, word), start)
        return _Token("end", "the end", len(self._text))

    @property
    def _operand_ended(self) -> bool:
        return self._token.kind in ("name", "quoted", "number") or self._token.text in (")", "]")

    def _advance(self) -> _Token:
        token = self._token
        self._token = self._next()
        return token

    def _is(self, *signs: str) -> bool:
        return self._token.kind == "sign" and self._token.text in signs

    def _expect(self, sign: str, what: str) -> None:
        if not self._is(sign):
            raise self._fault(f"{sign!r} is missing {what}")
        self._advance()

    def _fault(self, what: str, place: int | None = None) -> TargetError:
        at = self._token.place if place is None else place
        shown = self._text if len(self._text) <= 80 else f"…{self._text[max(0, at - 40) : at + 40]}…"
        return TargetError(
            f"Target {shown!r} is not understood at character {at + 1}: {what.rstrip('.')}; write an index (17), an element "
            "('output[0,17]') or an expression ('output[0,:,17].max()')."
        )

    def _count(self) -> None:
        self._parts += 1
        if self._parts > MOST:
            raise self._fault(f"it has more than {MOST} operations")

    # -- operators

    def _expression(self, weakest: int) -> Expression:
        self._depth += 1
        if self._depth > DEEPEST:
            raise self._fault(f"it is nested more than {DEEPEST} deep")
        left = self._prefixed(weakest)
        while self._token.kind == "sign" and _STRENGTH.get(self._token.text, 0) > weakest:
            sign = self._advance().text
            strength = _STRENGTH[sign]
            self._count()
            left = Binary(sign, left, self._expression(strength))
            if sign in ORDERS and self._is(*ORDERS):
                raise self._fault("compare two values at a time")
        self._depth -= 1
        return left

    def _prefixed(self, weakest: int) -> Expression:
        if self._is("~"):
            self._count()
            self._advance()
            return Unary("~", self._expression(3))
        if self._is("-", "+"):
            self._count()
            sign = self._advance().text
            inner = self._expression(6)
            if isinstance(inner, Number):
                return Number(-inner.value if sign == "-" else inner.value)
            return Unary("-", inner) if sign == "-" else inner
        return self._postfixed(self._atom())

    def _atom(self) -> Expression:
        token = self._token
        if token.kind == "number":
            self._advance()
            return Number(self._number(token))
        if token.kind == "name":
            self._advance()
            return Tensor(token.text)
        if token.kind == "quoted":
            self._advance()
            return Tensor(re.sub(r"\\(.)", r"\1", token.text[1:-1]))
        if self._is("("):
            self._advance()
            inner = self._expression(0)
            self._expect(")", "to close '('")
            return inner
        raise self._fault(f"a number, a tensor's name or '(' is wanted, not {token.text!r}")

    def _number(self, token: _Token) -> float:
        value = float(token.text)
        if len(token.text) > 40 or not abs(value) < 1e30:
            raise self._fault(f"the number {token.text[:12]}… is too long or too large", token.place)
        return value

    # -- what stands behind a value

    def _postfixed(self, value: Expression) -> Expression:
        while self._is("[", "."):
            self._count()
            value = self._indexed(value) if self._advance().text == "[" else self._called(value)
        return value

    def _indexed(self, value: Expression) -> Expression:
        items = [self._item()]
        while self._is(","):
            self._advance()
            items.append(self._item())
            self._count()
        self._expect("]", "to close '['")
        if sum(isinstance(i, Rest) for i in items) > 1:
            raise self._fault("'...' can stand once in an index")
        return Index(value, tuple(items))

    def _item(self) -> int | Span | Rest | Listed | Expression:
        if self._is("..."):
            self._advance()
            return Rest()
        if self._is("["):
            self._advance()
            places = [self._integer()]
            while self._is(","):
                self._advance()
                places.append(self._integer())
            self._expect("]", "to close the list")
            return Listed(tuple(places))
        if self._is(":"):
            return self._span(None)
        found = self._expression(0)
        if self._is(":"):
            return self._span(self._whole(found))
        return self._whole(found) if isinstance(found, Number) else found

    def _span(self, start: int | None) -> Span:
        ends: list[int | None] = []
        while self._is(":") and len(ends) < 2:
            self._advance()
            ends.append(None if self._is(":", ",", "]") else self._integer())
        stop, step = (*ends, None, None)[:2]
        if step == 0:
            raise self._fault("a slice's step cannot be 0")
        return Span(start, stop, step)

    def _integer(self) -> int:
        return self._whole(self._expression(4))

    def _whole(self, found: Expression) -> int:
        if not isinstance(found, Number) or found.value != int(found.value) or abs(found.value) > LARGEST:
            raise self._fault("an index is a whole number")
        return int(found.value)

    def _called(self, value: Expression) -> Expression:
        token = self._token
        if token.kind != "name" or token.text not in METHODS:
            raise self._fault(f"{token.text!r} is no method of a value.{suggest(token.text, METHODS)}")
        self._advance()
        self._expect("(", f"behind {token.text!r}")
        special = {"where": self._where, "topk": self._largest}.get(token.text)
        made = self._reduced(value, token.text) if special is None else special(value)
        self._expect(")", "to close '('")
        return made

    def _where(self, value: Expression) -> Expression:
        if self._is(")"):
            raise self._fault("where(…) needs a condition, such as x.where(x > 0)")
        arguments = [self._expression(0)]
        if self._is(","):
            self._advance()
            arguments.append(self._expression(0))
        return Call(value, "where", tuple(arguments))

    def _largest(self, value: Expression) -> Expression:
        count = self._integer()
        if count < 1:
            raise self._fault("topk(k) takes at least 1")
        if not self._is(","):
            return Call(value, "topk", count=count)
        self._advance()
        along = self._reduced(value, "topk")
        return replace(along, count=count)

    def _reduced(self, value: Expression, method: str) -> Call:
        if self._is(")"):
            return Call(value, method)
        if method in MAPS and method != "softmax":
            raise self._fault(f"{method}() takes nothing")
        if self._token.kind == "name" and self._token.text in ("axis", "axes", "dim"):
            self._advance()
            self._expect("=", "behind 'axis'")
        if self._is("(", "["):
            close = {"(": ")", "[": "]"}[self._advance().text]
            axes = [self._integer()]
            while self._is(","):
                self._advance()
                if self._is(close):
                    break
                axes.append(self._integer())
            self._expect(close, "to close the axes")
            return Call(value, method, (), tuple(axes))
        axes = [self._integer()]
        while self._is(","):
            self._advance()
            axes.append(self._integer())
        return Call(value, method, (), tuple(axes))
