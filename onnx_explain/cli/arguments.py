"""Reading what is written on the command line: ``key=value``, ``name:[1,3,224,224]``, ``0.5,0.5,0.5``, targets."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnx_explain.cli.reading import Given
from onnx_explain.data import read_labels
from onnx_explain.errors import InputError, MethodError, TargetError, suggest
from onnx_explain.target import Parsed, parse
from onnx_explain.target.presets import Preset, parse_preset
from onnx_explain.target.presets import told as told_preset

ARGMAX = "argmax"


def options(pairs: Sequence[str]) -> dict[str, Any]:
    """``["epsilon=1e-3", "zero_bias=true"]`` as a mapping; a value is a number, true/false, null, a JSON list, or text.

    Raises MethodError: no ``=``, or an option given twice.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key:
            raise MethodError(f"--option {pair!r} is not understood; write key=value, such as epsilon=1e-3.")
        if key in found:
            raise MethodError(f"--option {key} is given twice.")
        found[key] = _value(text.strip())
    return found


def _value(text: str) -> Any:
    if text.lower() in ("true", "false", "none"):
        return {"true": True, "false": False, "none": None}[text.lower()]
    try:
        parsed = json.loads(text)
    except ValueError:
        parsed = text
    if isinstance(parsed, str):
        try:
            return float(parsed)  # .5 and 1e-3 are numbers to everyone but JSON
        except ValueError:
            return parsed
    return parsed


def shared_options(methods: Mapping[str, Mapping[str, Any]], given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Per method the given options that it has; `methods` maps each method's name to its options.

    Raises MethodError: an option that none of the methods has.
    """
    for name in given:
        if not any(name in known for known in methods.values()):
            who = "Method" if len(methods) == 1 else "None of the methods"
            listed = ", ".join(map(repr, methods))
            known = sorted({k for known in methods.values() for k in known})
            hint = suggest(name, known) or " It takes no options."
            raise MethodError(f"{who} {listed} has {'no' if len(methods) == 1 else 'an'} option {name!r}.{hint}")
    return {method: {k: v for k, v in given.items() if k in known} for method, known in methods.items()}


def input_shapes(texts: Sequence[str]) -> dict[str, list[int | None]]:
    """``["data:[N,3,224,224]"]`` as {name: sizes}; N, ? and -1 leave a dimension open.

    Raises InputError: another form, or a size below 1.
    """
    found: dict[str, list[int | None]] = {}
    for text in texts:
        match = re.fullmatch(r"(?P<name>.+?)\s*[:=]\s*\[?(?P<sizes>[^\[\]]*)\]?\s*", text)
        sizes = [s.strip() for s in match["sizes"].split(",")] if match else []
        if match is None or not all(re.fullmatch(r"[1-9]\d{0,9}|[A-Za-z_]\w*|\?|-1", s) for s in sizes):
            raise InputError(
                f"--input-shape {text!r} is not understood; write name:[1,3,224,224] (N leaves the batch open)."
            )
        found[match["name"]] = [int(s) if s.isdigit() else None for s in sizes]
    return found


def inputs(
    files: Sequence[str],
    each: Sequence[str] | None,
    texts: Sequence[str] | None,
    tokenizer: Path | None,
    feed: Sequence[str] | None,
    most: int | None,
    features: str | None,
    *,
    skip_bad: bool = False,
) -> Given:
    """What is to be explained, as it was given. Raises InputError."""
    return Given(
        files,
        texts or (),
        tokenizer,
        pairs(feed or (), "--feed", "input_ids=ids"),
        most,
        {name: Path(file) for name, file in pairs(each or (), "--input", "image=cat.png").items()},
        listed(features) if features else (),
        skip_bad,
    )


def pairs(texts: Sequence[str], option: str, example: str) -> dict[str, str]:
    """``["a=b"]`` as {a: b}. Raises InputError: no ``=``, or a name given twice."""
    found: dict[str, str] = {}
    for text in texts:
        # a name of ONNX may hold "=" as little as it may hold nothing; a file's may
        name, equals, value = (part.strip() for part in text.partition("="))
        if not (name and equals and value):
            raise InputError(f"{option} {text!r} is not understood; write NAME=VALUE, such as {example}.")
        if name in found:
            raise InputError(f"{option} {name} is given twice.")
        found[name] = value
    return found


def listed(text: str) -> list[str]:
    """Names: those of a file (one per line, or JSON), or those between commas. Raises InputError: none, or one twice."""
    path = Path(text)
    names = read_labels(path) if "," not in text and path.is_file() else [n.strip() for n in text.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise InputError(
            f"--features {text[:80]!r} must name every feature once: a list a,b,c, or a file with one per line."
        )
    return names


def hostile(text: str) -> list[int] | str:
    """``3,7`` as [3, 7], ``top-3`` as it is, ``none`` as []. Raises MethodError: another form."""
    stripped = text.strip().lower()
    if stripped in ("", "none"):
        return []
    if re.fullmatch(r"top-[1-9]\d{0,5}", stripped):
        return stripped
    if not re.fullmatch(r"\d{1,9}(\s*,\s*\d{1,9})*", stripped):
        raise MethodError(f"--hostile {text!r} is not understood; write class indices (3,7) or top-3.")
    return [int(part) for part in stripped.split(",")]


def numbers(text: str | None, option: str) -> list[float] | None:
    """``"0.485,0.456,0.406"`` as numbers; None stays None. Raises InputError naming the option."""
    if text is None:
        return None
    try:
        return [float(part) for part in text.strip("[]() ").split(",")]
    except ValueError:
        raise InputError(
            f"{option} {text!r} is not understood; write one number, or one per channel: 0.5,0.5,0.5."
        ) from None


@dataclass(frozen=True)
class Aim:
    """One target as the Explainer takes it (`target`), what results are named by (`text`), and a preset's class."""

    text: str
    target: int | Parsed | None = None
    label: str | None = None


def aims(texts: Sequence[str], labels: Sequence[str]) -> list[Aim]:
    """What to explain of every input: ``17``, ``3,7``, ``argmax``, a label's name, ``output[0,17]``, an expression, a preset.

    Each once. The sample index 0 means every input's own: inputs run in batches, and no result depends on those.

    Raises TargetError: none of these.
    """
    found: dict[Aim, None] = {}
    for text in texts or [ARGMAX]:
        for aim in _aims(text.strip(), labels):
            found.setdefault(aim)
    return list(found)


def aim_of(text: str | None, labels: Sequence[str]) -> Aim:
    """The one target of a file; TargetError where there are several."""
    [first, *more] = aims([] if text is None else [text], labels)
    if more:
        raise TargetError(f"Target {text!r} is several, but a file explains one; give one index.")
    return first


def _aims(text: str, labels: Sequence[str]) -> list[Aim]:
    if text.lower() in (ARGMAX, "arg-max"):
        return [Aim(ARGMAX)]
    if re.fullmatch(r"\d{1,18}(\s*,\s*\d{1,18})*", text):
        return [Aim(str(int(part)), int(part)) for part in text.split(",")]
    named = _labelled(text, labels)
    if named is not None:
        return [Aim(str(named), named)]
    preset = parse_preset(text)
    if preset is not None:
        return [_preset_aim(preset, labels)]
    if labels and not set("[(") & set(text):
        raise TargetError(f"There is no label {text!r}.{suggest(text, labels)}")
    parsed = parse(text)
    if parsed.element is None:
        return [Aim(" ".join(text.split()), replace(parsed, own=True))]
    places = tuple(place or 0 if axis == 0 else place for axis, place in enumerate(parsed.element))
    told = f"{parsed.output}[{','.join(':' if p is None else str(p) for p in places)}]"
    return [Aim(told, replace(parse(told), own=True))]


def _preset_aim(preset: Preset, labels: Sequence[str]) -> Aim:
    """A preset with its class by index; the class's name where that is known."""
    if not preset.label.isdecimal():
        named = _labelled(preset.label, labels)
        if named is None:
            known = suggest(preset.label, labels) or " Give its index, or --labels FILE."
            raise TargetError(f"There is no label {preset.label!r}.{known}")
        preset = replace(preset, label=str(named))
    index = int(preset.label[:9])
    return Aim(
        told_preset(preset),
        Parsed(told_preset(preset), preset=preset, own=True),
        ([*labels, None])[min(index, len(labels))],
    )


def _labelled(text: str, labels: Sequence[str]) -> int | None:
    """The class with this name; TargetError where several have it."""
    named = [i for i, label in enumerate(labels) if label.casefold() == text.casefold()]
    if len(named) > 1:
        raise TargetError(
            f"The label {text!r} stands for several classes ({', '.join(map(str, named[:8]))}); give an index."
        )
    return named[0] if named else None
