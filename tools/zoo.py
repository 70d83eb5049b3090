"""Every architecture of the zoo, exported by every exporter of PyTorch, explained and compared with autograd.

Networks have random weights; nothing is downloaded. Each is exported once into a folder that is kept, then measured; what is
done is not done again. Needs the extra `[dev]`. `python tools/zoo.py --work DIR --out docs/benchmarks/zoo`.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench_cpu import environment, markdown, show, write_report
from zoo_measure import ADDS_UP, GRADIENT, OUTPUT

CONFIRMED = 0.05  # of the distance between ours and torch's, by which finite differences may be off
TWICE = 2.0  # outputs that move by a rounding move no more than this further in another run
TOOLS = Path(__file__).parent
EXPORTERS = ("torchscript", "dynamo")
LIST = (
    "import sys, json, zoo_sources as z;"
    "print(json.dumps([{'at': s, 'source': r.source, 'family': r.family, 'name': r.name, 'task': r.task, 'stem': r.stem,"
    " 'methods': r.methods} for s in (sys.argv[2:] or z.SOURCES) for r in z.SOURCES[s](sys.argv[1] == 'all')]))"
)
Row = Mapping[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Export, measure, print, write; 1 where anything of ours falls short."""
    args = arguments(argv)
    args.work.mkdir(parents=True, exist_ok=True)
    rows = [r for r in listed(args) if not args.only or any(o in r["stem"] for o in args.only)]
    records, left = [], []
    for row in rows:
        if not args.report:
            exported(row, args)
        for exporter in args.exporters:
            if args.report and not any(
                (args.work / f"{row['stem']}.{exporter}.{s}").exists() for s in ("json", "failed")
            ):
                left.append(f"{row['name']} ({exporter})")
                continue
            records.append({**row, "exporter": exporter, **measured(row, exporter, args)})
            if not args.report:
                print(" | ".join(cells(records[-1])), flush=True)
    title = "Architectures of PyTorch's libraries by both exporters"
    lines = [cells(r) for r in records]
    show(HEADINGS, lines, title)
    print(summary(records))
    if args.out:
        chosen = [*(["--sources", *args.sources] if args.sources else []), *(["--all"] if args.all else [])]
        command = shlex.join(["python", "tools/zoo.py", *chosen, "--work", "DIR", "--out", args.out.as_posix()])
        facts = environment(command, ("onnx-explain", "onnxruntime", "onnx", "numpy")) | versions(args)
        page = markdown(HEADINGS, lines, facts, title)
        told = f"{page}\n{READING}\n\n{summary(records)}\n{sentences(records)}\n"
        told += f"\nNot measured yet: {', '.join(left)}.\n" if left else ""
        write_report(args.out, told, {**facts, "rows": [{k: v for k, v in r.items() if k != "at"} for r in records]})
    return int(not all(well(r) for r in records if "not exported" not in r))


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Command line of this tool."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sources", nargs="+", help="names of zoo_sources.SOURCES; default: all")
    parser.add_argument("--all", action="store_true", help="every member of a family, not the smallest alone")
    parser.add_argument("--only", nargs="+", help="rows whose name holds one of these")
    parser.add_argument("--exporters", nargs="+", choices=EXPORTERS, default=list(EXPORTERS))
    parser.add_argument("--work", type=Path, required=True, help="folder of exported files and results; kept")
    parser.add_argument("--again", action="store_true", help="measure again what was measured; exports are kept")
    parser.add_argument("--report", action="store_true", help="start nothing: tell what has been measured")
    parser.add_argument("--python", default=sys.executable, help="the interpreter that has the frameworks")
    parser.add_argument("--limit", type=int, default=900, help="seconds for one export or one measurement")
    parser.add_argument("--out", type=Path, help="stem of a .md and a .json file")
    return parser.parse_args(argv)


# --------------------------------------------------------------------------------------------------------- the processes


def listed(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of the asked-for sources."""
    command = [args.python, "-c", LIST, "all" if args.all else "smallest", *(args.sources or ())]
    done = subprocess.run(command, capture_output=True, text=True, cwd=TOOLS, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def versions(args: argparse.Namespace) -> dict[str, str]:
    """The frameworks that exported."""
    code = (
        "import importlib.metadata as m\nfor p in ('torch', 'torchvision', 'timm', 'transformers', 'onnxscript'):\n"
        " try: print(p, m.version(p))\n except m.PackageNotFoundError: pass"
    )
    done = subprocess.run([args.python, "-c", code], capture_output=True, text=True, check=True)
    return {"exported by": ", ".join(done.stdout.split("\n")).strip(", ")}


def exported(row: Row, args: argparse.Namespace) -> None:
    """Every exporter's file of a row, or why there is none."""
    done = args.work / f"{row['stem']}.exported"
    if done.exists():
        return
    command = [args.python, str(TOOLS / "zoo_export.py"), row["at"], row["name"], str(args.work)]
    code, _, said = run(command, args.limit)
    if code:
        for exporter in EXPORTERS:
            failed = args.work / f"{row['stem']}.{exporter}.failed"
            if not failed.exists() and not (args.work / f"{row['stem']}.{exporter}.onnx").exists():
                failed.write_text(said.strip().splitlines()[-1] if said.strip() else f"exit {code}", encoding="utf-8")
    done.touch()


def measured(row: Row, exporter: str, args: argparse.Namespace) -> dict[str, Any]:
    """The record of one file."""
    base = args.work / f"{row['stem']}.{exporter}"
    failed, kept = Path(f"{base}.failed"), Path(f"{base}.json")
    if failed.exists():
        return {"not exported": failed.read_text(encoding="utf-8")}
    if kept.exists() and not args.again:
        found: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
        return found
    command = [sys.executable, str(TOOLS / "zoo_measure.py"), row["stem"], exporter, str(args.work), *row["methods"]]
    started = time.perf_counter()
    code, printed, said = run(command, args.limit)
    if code:
        last = said.strip().splitlines()[-1:] or [""]
        return {"gradient": {"crashed": f"the process ended with {code}: {last[0]}"}}
    found = json.loads(printed.strip().splitlines()[-1]) | {"seconds": time.perf_counter() - started}
    kept.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return found


def run(command: Sequence[str], limit: int) -> tuple[int, str, str]:
    """(exit code, standard output, standard error); -1 where the limit ended it."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return -1, "", f"not done after {limit} seconds"
    return done.returncode, done.stdout, done.stderr


# ------------------------------------------------------------------------------------------------------------- the table

READING = """Weights and inputs are random (`tools/zoo_export.py`). *output*: farthest from ONNX Runtime's on the exported file;
*gradient*: farthest from torch.autograd's; *alone*: farthest that gradient or relevance of a sample is from its own without the
rest of the batch; all relative to the largest value of a sample. A file whose float32 gradient lies farther than 1e-4 from
autograd's is compared in float64. Where exporters fold BatchNormalization in float32, a unit near its kink may change sides: the
file is then another function than the network, and finite differences of the file in float64 tell whether the gradient is its own.
Of a file whose own outputs move when its input moves by a rounding (1e-7), the same is expected of ours. Regions that RoiAlign reads
are moved by the input too, which neither gradient counts: finite differences say nothing there.
The last two columns are the methods' conservation: what is missing between what was seeded, what arrived and what was absorbed.
*build CPU s*: processor seconds from the file to an answer by all methods of the row, on a machine that others used too."""

HEADINGS = (
    *("architecture", "exporter", "opset", "nodes", "batch", "build CPU s", "output", "gradient", "alone"),
    *("lrp-epsilon-plus", "attn-lrp"),
)


def cells(r: Row) -> tuple[str, ...]:
    """One record as text, in the order of `HEADINGS`."""
    named = f"{r['source']}: {r['name']}" + ("" if r["task"] == "classification" else f" ({r['task']})")
    if "not exported" in r or "exporter's file" in r:
        why = "not exported" if "not exported" in r else "does not run in ONNX Runtime"
        return named, r["exporter"], *[""] * 5, why, *[""] * 3
    g = r.get("gradient", {})
    return (
        named,
        r["exporter"],
        *(str(r.get(k, "")) for k in ("opset", "nodes", "batch")),
        f"{g['build seconds']:.1f}" if "build seconds" in g else "",
        output_cell(g) if "output" in g else problem(g),
        gradient_cell(g),
        alone_cell(g),
        *(relevance_cell(r.get(m)) for m in ("lrp-epsilon-plus", "attn-lrp")),
    )


def problem(step: Row) -> str:
    """Refused, crashed, or nothing of that."""
    return "refused" if "refused" in step else "CRASHED" if "crashed" in step else ""


def verdict(value: float | None, limit: float) -> str:
    """A figure, marked where it is too large."""
    return "" if value is None else f"{value:.0e}" + ("" if value <= limit else " MISSED")


def output_cell(g: Row) -> str:
    """The outputs' distance; no fault of ours where the file's own outputs move as far under a rounding of its inputs."""
    if g["output"] > OUTPUT and g["output"] <= TWICE * g.get("output moved", 0.0):
        return f"{g['output']:.0e} (the file's own under a rounding of its input: {g['output moved']:.0e})"
    return verdict(g["output"], OUTPUT)


def alone_cell(g: Row) -> str:
    """The distance of a sample's relevance from its own without the others, in float64 where float32 moves a unit."""
    if g.get("alone", 0.0) > GRADIENT >= g.get("alone in float64", 1.0):
        return f"{g['alone in float64']:.0e} in float64 (float32: {g['alone']:.0e})"
    return verdict(g.get("alone"), GRADIENT)


def gradient_cell(g: Row) -> str:
    """The error to torch's float32, to its float64, or in float64 against float64."""
    if "error" not in g:
        return problem(g)
    for key, kind in (("error", ""), ("error to float64", " to float64"), ("error in float64", " in float64")):
        if g.get(key, 1.0) <= GRADIENT:
            noise = f" (float32: {g['error']:.0e}, torch's own {g.get('own', 0.0):.0e})"
            return f"{g[key]:.0e}{kind}" + (noise if kind else "")
    if g.get("file's own", 1.0) <= CONFIRMED:
        return f"the file's own ({g['error']:.0e} from torch's)"
    return f"{g['error']:.0e} MISSED"


def relevance_cell(step: Row | None) -> str:
    """Conservation, or what went wrong."""
    if step is None:
        return ""
    if "conservation" not in step:
        return problem(step)
    if not step["finite"] or not step["anything"]:
        return "NOT FINITE" if not step["finite"] else "ZERO"
    if step["conservation"] > ADDS_UP >= step["of what flowed"]:
        return f"{step['conservation']:.0e} ({step['of what flowed']:.0e} of what flowed)"
    return verdict(step["conservation"], ADDS_UP)


def well(r: Row) -> bool:
    """Whether nothing of ours falls short."""
    told = cells(r)
    return not any(word in cell for cell in told for word in ("MISSED", "CRASHED", "refused", "NOT FINITE", "ZERO"))


def summary(records: Sequence[Row]) -> str:
    """How many of how many, per task."""
    lines = []
    for task in dict.fromkeys((r["source"], r["task"]) for r in records):
        own = [r for r in records if (r["source"], r["task"]) == task]
        files = [r for r in own if "not exported" not in r and "exporter's file" not in r]
        gradients = sum(
            "error" in r.get("gradient", {}) and "MISSED" not in gradient_cell(r["gradient"]) for r in files
        )
        others = sum("the file's own" in gradient_cell(r.get("gradient", {})) for r in files)
        methods = [r.get(m) for r in files for m in r["methods"]]
        adding = sum(relevance_cell(m)[:1].isdigit() and "MISSED" not in relevance_cell(m) for m in methods)
        lines.append(
            f"{task[0]}, {task[1]}: {len(own)} exports tried, {len(files)} files; "
            f"gradient right in {gradients} of {len(files)} (in {others} of these by finite differences of the file); "
            f"relevance runs and adds up in {adding} of {len(methods)}."
        )
    return "\n\n".join(lines) + "\n"


def sentences(records: Sequence[Row]) -> str:
    """What was refused, in the tool's own words, and what exporters said."""
    return "\n".join(dict.fromkeys(_sentences(records)))


def _sentences(records: Sequence[Row]) -> Iterator[str]:
    for r in records:
        named = f"{r['source']}: {r['name']}, {r['exporter']}"
        for key in ("not exported", "exporter's file"):
            if key in r:
                yield f"* {named}: {key}: {' / '.join(str(r[key]).splitlines())[:300]}"
        for step in ("gradient", *r["methods"]):
            for key in ("refused", "crashed"):
                if key in r.get(step, {}):
                    yield f"* {named}, {step}: {key}: {r[step][key]}"


if __name__ == "__main__":
    sys.exit(main())
