"""The documentation is true: generated pages are current, Python blocks run, links lead somewhere, names exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from onnx_explain import METHODS, Explainer

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"])
RUN = ("extending.md", "inputs.md", "explained-models.md", "metrics.md", "patterns.md")
MODEL = ROOT / "onnx_explain" / "bundled" / "shapes_cnn.onnx"


def shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def text(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def test_the_tables_are_what_the_registries_say() -> None:
    """In a process of its own: other tests register methods and rooms."""
    command = [sys.executable, str(ROOT / "tools" / "tables.py"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, f"run `python tools/tables.py`\n{result.stdout}{result.stderr}"


@pytest.mark.parametrize("page", RUN)
def test_the_python_of_a_page_runs(page: str, tmp_path: Path) -> None:
    code = "\n".join(re.findall(r"```python\n(.*?)```", text(page), re.DOTALL))
    script = tmp_path / "page.py"
    script.write_text(code, encoding="utf-8")
    command = [sys.executable, "-W", "error", str(script)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert result.returncode == 0, result.stderr


def test_no_other_page_has_python_that_nobody_runs() -> None:
    others = [p for p in DOCS.rglob("*.md") if p.name not in RUN]
    assert [shown(p) for p in others if "```python" in p.read_text(encoding="utf-8")] == []


def test_every_metadata_entry_of_an_explained_model_is_listed(tmp_path: Path) -> None:
    Explainer(str(MODEL), method="gradient").convert(tmp_path / "explained.onnx")
    props = onnx.load(tmp_path / "explained.onnx").metadata_props
    written = {p.key for p in props if p.key.startswith("onnx_explain.")}
    section = text("explained-models.md").split("| metadata entry |")[1].split("\n\n")[0]
    assert set(re.findall(r"`(onnx_explain\.\w+)`", section)) == written


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_a_link_leads_somewhere(page: Path) -> None:
    content = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)#]+)\)", content):
        if not link.startswith(("http:", "https:")):
            assert (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_a_file_that_is_named_exists(page: Path) -> None:
    content = page.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:tools|tests|docs|onnx_explain|kernels)/[\w/.-]+)`", content):
        assert (ROOT / name).exists(), name


def test_every_page_is_reached_from_the_index() -> None:
    linked = {(DOCS / link).resolve() for link in re.findall(r"\]\(([^)#]+)\)", text("index.md"))}
    adrs = {p.resolve() for p in (DOCS / "adr").glob("*.md")}
    assert {p.resolve() for p in DOCS.rglob("*.md")} - linked - adrs == {(DOCS / "index.md").resolve()}
    assert (DOCS / "adr").resolve() in linked


def test_decisions_are_numbered_without_a_gap_and_have_the_four_parts() -> None:
    pages = sorted((DOCS / "adr").glob("*.md"))
    assert [int(p.name[:4]) for p in pages] == list(range(1, len(pages) + 1))
    for page in pages:
        parts = re.findall(r"^## (\w+)", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert parts == ["Context", "Decision", "Alternatives", "Consequences"], page.name


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_in_the_table(method: str) -> None:
    assert f"| `{method}` |" in text("methods.md")
