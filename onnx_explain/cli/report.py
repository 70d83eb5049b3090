"""What each command does once its arguments are read, and what it prints: tables for people, JSON for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from onnx_explain.cli import console
from onnx_explain.cli.arguments import Aim, aim_of
from onnx_explain.cli.explaining import Finished, Job, explained, run
from onnx_explain.cli.labels import labels_of
from onnx_explain.cli.results import Record, write_bytes
from onnx_explain.cli.strips import coloured, print_parts
from onnx_explain.errors import OutputError, UnsupportedOperator
from onnx_explain.explainer import Explainer
from onnx_explain.methods import FAMILIES, METHODS, Method, Seed
from onnx_explain.relevance import Row
from onnx_explain.version import __version__

_MOST_LINES = 60
Shapes = Mapping[str, Sequence[int | None]]


# ------------------------------------------------------------------------------------------- explain


def explain(job: Job, *, as_json: bool) -> None:
    """Run the job with a progress bar, print its table or document, and leave the document beside the results."""
    with console.progress("explaining", visible=not as_json) as advance:
        finished = run(job, advance)
    document = explain_document(job.model, job.out, finished)
    write_bytes(job.out / "explanations.json", console.as_json(document).encode() + b"\n")
    if as_json:
        console.print_json(document)
        return
    print_records(finished.records)
    print_texts(finished.records)
    classes = finished.records[0].classes
    if finished.labels and classes not in (None, finished.labels):
        console.note(
            f"There are {finished.labels} labels for {classes} classes; the names may be those of other classes."
        )
    for sentence in (*expressions(finished.records), *finished.notes):
        console.note(sentence)
    console.say(
        f"\n{console.counted(len(finished.records), 'explanation')} of {console.counted(finished.inputs, 'input')} in {job.out}/"
    )


def expressions(records: Sequence[Record]) -> list[str]:
    """What presets stand for, and where a computed target had nothing to look at."""
    found = [f"{r.target} is {r.expression}." for r in records if r.expression is not None and r.target != r.expression]
    for target in dict.fromkeys(r.target for r in records if r.sure is False):
        names = list(dict.fromkeys(r.name for r in records if r.sure is False and r.target == target))
        listed = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        found.append(f"{target}: in {listed} nothing fulfils a condition, or a divisor is 0; that part counts as 0.")
    return list(dict.fromkeys(found))


def explain_document(model: Path, out: Path, finished: Finished) -> dict[str, Any]:
    """The run as plain data."""
    return {
        "onnx_explain": __version__,
        "model": {"path": str(model), "sha256": finished.sha256},
        "folder": str(out),
        "results": [r.as_dict() for r in finished.records],
        **({"notes": list(finished.notes)} if finished.notes else {}),
    }


def print_records(records: Sequence[Record]) -> None:
    """A line per method and target below the name of each input."""
    rows: list[Sequence[str] | str] = []
    last = ""
    for r in records[:_MOST_LINES]:
        if r.name != last:
            rows.append(_heading(r.name, records))
        conservation = console.short(r.conservation) if r.conserves else "-"
        rows.append((r.method, r.explained, console.short(r.score), conservation, f"{r.seconds:.3f}"))
        last = r.name
    console.print_table(("method", "explained", "score", "conservation", "seconds"), rows, flexible=1, right=(2, 3, 4))
    if len(records) > _MOST_LINES:
        console.say(f"… and {len(records) - _MOST_LINES} more in explanations.json")


def print_texts(records: Sequence[Record]) -> None:
    """Every text on the colours of its relevance, below the name of the method."""
    texts = [r for r in records if r.parts]
    for r in texts[:_MOST_LINES]:
        console.say()
        console.print_indented(f"{r.name}: {r.explained}, {r.method}", 0)
        print_parts(r.parts)
    for r in texts:
        cut = int((r.tokens or {}).get("cut", 0))
        if cut:
            console.note(f"{r.name}: the last {console.counted(cut, 'character')} did not fit into the model's tokens.")
    if texts:
        told = (
            "red supports the target, blue speaks against it"
            if coloured()
            else "in brackets: the share of the strongest"
        )
        console.say(f"\n{told}")


def _heading(name: str, records: Sequence[Record]) -> str:
    """The input, and what the model says about it, where one of its lines knows."""
    told = next((r.prediction for r in records if r.name == name and r.prediction is not None), None)
    return name if told is None else f"{name}: predicted {told}"


def compare(job: Job, figure: Path, *, as_json: bool) -> None:
    """Draw the job's input under its methods, with a progress bar over the methods."""
    from onnx_explain.cli.comparing import compare as draw

    with console.progress("comparing", visible=not as_json) as advance:
        told = draw(job, figure, progress=advance)
    told.print(figure, as_json=as_json)


# ------------------------------------------------------------------------------------------- convert


def convert(
    model: Path,
    out: Path,
    method: str,
    *,
    options: Mapping[str, Any],
    seed: Seed | None,
    output: str | None,
    logits: bool,
    at: str | None,
    keep: Sequence[str],
    target: str | None,
    functions: bool,
    fold: bool,
    check: bool,
    input_shapes: Shapes,
    as_json: bool,
) -> None:
    """Write the explained model and tell what is in it."""
    if out.suffix.lower() != ".onnx":
        raise OutputError(f"{out}: an explained model is an .onnx file; give it that suffix.")
    explainer = Explainer(
        model, method, seed=seed, output=output, logits=logits, at=at, input_shapes=input_shapes or None, **options
    )
    aim = aim_of(target, labels_of(explainer, None))
    written = explainer.convert(out, target=aim.target, functions=functions, fold=fold, keep=keep, check=check)
    document = written_document(written, out)
    document["source"] = {"path": str(model), "sha256": explainer.sha256, "bytes": model.stat().st_size}
    if as_json:
        console.print_json(document)
        return
    print_written(document, checked=check)


def written_document(written: onnx.ModelProto, path: Path) -> dict[str, Any]:
    """What the file holds, as plain data."""
    notes = {
        p.key.removeprefix("onnx_explain."): p.value
        for p in written.metadata_props
        if p.key.startswith("onnx_explain.")
    }
    return {
        "onnx_explain": __version__,
        "path": str(path),
        "bytes": path.stat().st_size,
        "nodes": len(written.graph.node),
        "functions": len(written.functions),
        "inputs": [_told(v) for v in written.graph.input],
        "outputs": [_told(v) for v in written.graph.output],
        "method": notes.get("method", ""),
        "explained": notes.get("explained", ""),
        "expression": notes.get("expression"),
        "seed": notes.get("seed", ""),
    }


def print_written(document: Mapping[str, Any], *, checked: bool) -> None:
    """The written file for people."""
    values = [("input", v) for v in document["inputs"]] + [("output", v) for v in document["outputs"]]
    console.print_table(
        ("", "name", "dtype", "shape"), [(kind, v["name"], v["dtype"], v["shape"]) for kind, v in values], flexible=1
    )
    told = "its outputs equal the original's" if checked else "not checked"
    parts = [console.size(document["bytes"]), console.counted(document["nodes"], "node")]
    parts += [console.counted(document["functions"], "function")] if document["functions"] else []
    start = "its value" if document["seed"] == "score" else "one"
    console.say(f"\nwritten    {document['path']}: {', '.join(parts)}; {told}")
    console.say(f"explained  {document['explained']} by {document['method']}, starting at {start}")


def _told(value: onnx.ValueInfoProto) -> dict[str, str]:
    tensor = value.type.tensor_type
    sizes = [d.dim_param or "?" if not d.HasField("dim_value") else str(d.dim_value) for d in tensor.shape.dim]
    dtype = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    return {"name": value.name, "dtype": _DTYPES.get(dtype, dtype), "shape": f"[{', '.join(sizes)}]"}


_DTYPES = {"float": "float32", "double": "float64"}


# ------------------------------------------------------------------------------------------- check


def check(
    model: Path,
    method: str,
    *,
    options: Mapping[str, Any],
    output: str | None,
    logits: bool,
    target: str | None,
    input_shapes: Shapes,
    as_json: bool,
) -> bool:
    """Whether the method can pass every operator; prints operator, role and rule."""
    explainer = Explainer(model, method, output=output, logits=logits, input_shapes=input_shapes or None, **options)
    aim = aim_of(target, labels_of(explainer, None))
    tensor, shape = explained(explainer, aim)
    rows, missing, refusal = _plan(explainer, aim)
    if as_json:
        document = {
            "onnx_explain": __version__,
            "model": {"path": str(model), "sha256": explainer.sha256},
            "method": explainer.method,
            "explained": {"tensor": tensor, "shape": shape},
            "supported": refusal is None,
            "unsupported": missing,
            "reason": refusal,
            "operators": [vars(r) for r in rows],
        }
        console.print_json(document)
        return refusal is None
    lines = [(r.op_type, r.role, r.rule or "UNSUPPORTED", r.outputs, r.name) for r in rows]
    console.print_table(("operator", "role", "rule", "shape", "node"), lines, flexible=4, cut=True)
    told = dict.fromkeys((r.op_type, r.reason) for r in rows if r.reason)
    if told:
        console.say()
    for op_type, reason in told:
        console.print_hanging(op_type, reason)
    way = f"from {tensor} {shape} to the inputs under {explainer.method}"
    if refusal is None:
        console.say(f"\nsupported: {console.counted(len(rows), 'operator')} {way}")
    else:
        console.say(f"\nunsupported {way}: {refusal}")
    return refusal is None


def _plan(explainer: Explainer, aim: Aim) -> tuple[list[Row], list[str], str | None]:
    """The plan, the nodes without a room, and why the graph cannot be built (None: it can)."""
    rows: list[Row] = []
    missing: list[str] = []
    try:
        rows, missing = explainer.plan(aim.target)
        explainer.build(aim.target)
    except UnsupportedOperator as error:
        return rows, missing, str(error)
    return rows, missing, None


# ------------------------------------------------------------------------------------------- methods


def methods(*, as_json: bool) -> None:
    """The registry as a table."""
    if as_json:
        console.print_json([_method(m) for m in METHODS.values()])
        return
    for family, title in FAMILIES.items():
        found = [m for m in METHODS.values() if m.family == family]
        console.say(f"{title}\n")
        for m in found:
            console.print_hanging(
                m.name, m.summary + ("" if m.conserves or family != "relevance" else " (does not conserve)")
            )
            console.print_indented(f"{m.paper}.")
            if m.options:
                console.print_indented(", ".join(f"{k}={_option(v)}" for k, v in m.options.items()))
        console.say()
    console.say("The last line of each: its options with their defaults, set by --option.")
    console.say("Relevance methods start at the explained value (--seed score), all others at one.")


def _method(m: Method) -> dict[str, Any]:
    return {
        "name": m.name,
        "family": m.family,
        "meaning": m.summary,
        "paper": m.paper,
        "options": dict(m.options),
        "seed": m.seed,
        "conserves": m.conserves,
    }


def _option(value: Any) -> str:
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
