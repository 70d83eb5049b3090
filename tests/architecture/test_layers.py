"""Imports only go down, graphs are changed in `ir/` alone, and no training framework is in sight: read off the source.

Nothing is imported here; a module that has no place in `LAYERS` fails the test.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE, KERNELS = "onnx_explain", "onnx_explain_kernels"
# A module may import those of a lower rank; of its own rank only its own package.
LAYERS = {
    "errors": 0,
    "version": 0,
    "files": 0.5,
    "patterns": 0.7,
    "ir": 1,
    "operators": 2,
    "rules": 3,
    "methods": 4,
    "embedded": 4.4,
    "path": 4.5,
    "relevance": 5,
    "aiming": 5.5,
    "backends": 6,
    "explanation": 6,
    "conversion": 6.5,
    "prepared": 6.7,
    "asked": 6.8,
    "ensembles": 6.9,
    "fitting": 6.9,
    "perturbation": 6.9,
    "explainer": 7,
    "text": 7.2,
    "metrics": 7.5,
    "evaluation": 7.7,
    "cli": 8,
    "__init__": 9,
    "__main__": 9,
}
# Self-contained modules: they know the errors and how files are written; any layer above the methods may use them.
LEAVES = {"target", "feeds", "data", "render", "shapes", "annotations"}
LEAF_RANK = 4.2
# Drawing is loaded when a picture is asked for.
LAZY = {("explanation", "render")}
FRAMEWORKS = {"torch", "tensorflow", "keras", "jax", "flax", "paddle", "mxnet"}
GRAPH_EDITORS = ("onnxscript", "onnx_ir.passes", "onnx_ir.convenience", "onnx_ir.tape")
MUTATORS = {
    "insert_after",
    "insert_before",
    "register_initializer",
    "replace_all_uses_with",
    "replace_input_with",
    "resize_inputs",
    "resize_outputs",
}
VAGUE = {"utils", "util", "helpers", "helper", "common", "manager", "managers", "misc"}


def shown(path: Path) -> str:
    """A path in a test's name: the same on every machine."""
    return path.relative_to(ROOT).as_posix()


LIBRARY = sorted((ROOT / PACKAGE).rglob("*.py"))
EVERYWHERE = sorted(p for top in (PACKAGE, "kernels", "tests", "tools") for p in (ROOT / top).rglob("*.py"))


@dataclass(frozen=True)
class Import:
    """One imported module, by its full name; `lazy`: inside a function."""

    module: str
    line: int
    lazy: bool = False


def layer_of(module: str) -> str:
    """``ir`` of ``onnx_explain.ir.emit``, ``__init__`` of the package itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def name_of(path: Path) -> str:
    """The module in a file, packages by their own name."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def is_module(name: str) -> bool:
    place = ROOT.joinpath(*name.split("."))
    return place.is_dir() or place.with_suffix(".py").is_file()


def imports(source: str, module: str = PACKAGE) -> Iterator[Import]:
    """Every import of a module's source, relative ones resolved, `from package import module` told from a name."""

    def walk(node: ast.AST, lazy: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            inside = lazy or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            if isinstance(child, ast.Import):
                yield from (Import(alias.name, child.lineno, lazy) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ""
                if child.level:
                    base = ".".join([*module.split(".")[: -child.level], *([base] if base else [])])
                for alias in child.names:
                    full = f"{base}.{alias.name}"
                    is_ours = base.split(".")[0] == PACKAGE
                    yield Import(full if is_ours and is_module(full) else base, child.lineno, lazy)
            elif isinstance(child, ast.Call) and ast.unparse(child.func).split(".")[-1] in (
                "import_module",
                "__import__",
            ):
                yield from (Import(a.value, child.lineno, True) for a in child.args if is_text(a))
            yield from walk(child, inside)

    return walk(ast.parse(source), False)


def is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def rank(layer: str) -> float:
    return LEAF_RANK if layer in LEAVES else LAYERS[layer]


def upward(module: str, source: str) -> list[str]:
    """Imports that do not go down, as ``line: what``."""
    mine = layer_of(module)
    found = []
    for entry in imports(source, module):
        if entry.module.split(".")[0] != PACKAGE or layer_of(entry.module) == mine:
            continue
        theirs = layer_of(entry.module)
        allowed = theirs in ("errors", "version", "files") if mine in LEAVES else rank(theirs) < rank(mine)
        if not allowed or ((mine, theirs) in LAZY and not entry.lazy):
            found.append(f"{entry.line}: {entry.module}")
    return found


def mutations(source: str) -> list[str]:
    """Where a graph is changed: onnx_ir's own mutators, a graph's inputs and outputs, a value's constant."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = ast.unparse(node.func.value)
            ends = owner.endswith(("graph.inputs", "graph.outputs")) and node.func.attr in (
                "append",
                "extend",
                "insert",
            )
            if (
                node.func.attr in MUTATORS
                or ends
                or (owner.endswith("graph") and node.func.attr in ("sort", "remove", "append"))
            ):
                found.append(f"{node.lineno}: {owner}.{node.func.attr}")
        elif isinstance(node, ast.Assign):
            targets = [ast.unparse(t) for t in node.targets]
            found.extend(f"{node.lineno}: {t} =" for t in targets if t.endswith(".const_value") or ".attributes[" in t)
    return found


@pytest.mark.parametrize("path", LIBRARY, ids=shown)
def test_imports_only_go_down(path: Path) -> None:
    module = name_of(path)
    assert layer_of(module) in {*LAYERS, *LEAVES}, "a new module: give it a place in LAYERS"
    assert upward(module, path.read_text(encoding="utf-8")) == []


def test_an_import_that_goes_up_or_sideways_is_seen() -> None:
    assert upward("onnx_explain.ir.emit", "from onnx_explain.operators import find") != []
    assert upward("onnx_explain.ir.emit", "def f():\n    import onnx_explain.explainer") != []
    assert upward("onnx_explain.rules.lrp", "from ..methods import METHODS") != []
    assert upward("onnx_explain.explanation", "from onnx_explain import render") != []
    assert upward("onnx_explain.explanation", "from onnx_explain.backends import onnx") != []
    assert upward("onnx_explain.data", "from onnx_explain.ir import view") != []
    assert upward("onnx_explain.explainer", "from onnx_explain import Explanation") != []
    assert upward("onnx_explain.explanation", "def f():\n    from onnx_explain import render") == []
    assert upward("onnx_explain.rules.lrp", "from .share import Rule\nfrom ..operators import find") == []


@pytest.mark.parametrize("path", LIBRARY, ids=shown)
def test_graphs_are_changed_in_the_graph_layer_alone(path: Path) -> None:
    module, source = name_of(path), path.read_text(encoding="utf-8")
    if layer_of(module) == "ir":
        return
    editors = [
        f"{i.line}: {i.module}"
        for i in imports(source, module)
        if f"{i.module}.".startswith(tuple(f"{e}." for e in GRAPH_EDITORS))
    ]
    assert editors + mutations(source) == []


def test_a_change_of_a_graph_is_seen() -> None:
    assert mutations("value.replace_all_uses_with(other)") != []
    assert mutations("self.graph.outputs.append(value)") != []
    assert mutations("model.graph.sort()") != []
    assert mutations("value.const_value = tensor") != []
    assert mutations("self.parts.append(value)\nnames.sort()\nvalue.shape = like.shape") == []


@pytest.mark.parametrize("path", LIBRARY, ids=shown)
def test_no_training_framework_is_imported(path: Path) -> None:
    assert [
        i for i in imports(path.read_text(encoding="utf-8"), name_of(path)) if i.module.split(".")[0] in FRAMEWORKS
    ] == []


def test_the_kernels_do_not_know_the_library() -> None:
    for path in sorted((ROOT / "kernels").rglob("*.py")):
        assert [i for i in imports(path.read_text(encoding="utf-8")) if i.module.split(".")[0] == PACKAGE] == [], path


def test_the_kernels_are_imported_by_their_backend_alone_and_late() -> None:
    for path in LIBRARY:
        for entry in imports(path.read_text(encoding="utf-8"), name_of(path)):
            if entry.module.split(".")[0] == KERNELS:
                assert name_of(path).startswith("onnx_explain.backends.gpu"), path
                assert entry.lazy, f"{path}:{entry.line}"


def test_no_module_has_a_name_that_says_nothing() -> None:
    assert [p for p in EVERYWHERE if {p.stem, *p.parent.relative_to(ROOT).parts} & VAGUE] == []


@pytest.mark.parametrize(
    "path", [p for p in EVERYWHERE if p.relative_to(ROOT).parts[0] in (PACKAGE, "kernels")], ids=shown
)
def test_no_fault_is_left_to_an_assert(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)] == []
