"""The README is true: its commands and its Python run as they stand, and it names every method."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from onnx_explain import METHODS
from onnx_explain.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the demo has run."""
    place = tmp_path_factory.mktemp("readme")
    assert CliRunner().invoke(app, ["demo", "-o", str(place / "demo")]).exit_code == 0
    return place


COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]


@pytest.mark.parametrize("line", [c for c in COMMANDS if c.startswith("onnx-explain ")])
def test_a_command_of_the_readme_runs(line: str, shown: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shown)
    result = CliRunner().invoke(app, shlex.split(line)[1:])
    assert result.exit_code == 0, result.output


def test_the_readme_installs_and_tests_in_one_command_each() -> None:
    assert 'pip install -e ".[cpu]" && onnx-explain demo' in COMMANDS
    assert 'pip install -e ".[cpu,test]" && python -m pytest' in COMMANDS


def test_the_python_of_the_readme_runs(shown: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shown)
    names: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 5
    exec(compile("\n".join(blocks), "README.md", "exec"), names)
    assert Path("map.png").is_file()
    assert Path("map.npz").is_file()
    of_ring, gradient, x = (np.asarray(names[n]) for n in ("of_ring", "gradient", "x"))
    assert of_ring.shape == gradient.shape == x.shape
    assert np.abs(gradient).max() > 0


def test_the_readme_names_every_method_and_no_other() -> None:
    section = README.split("## Methods")[1].split("\n## ")[0]
    table = {
        n
        for line in section.splitlines()
        if line.startswith("| `")
        for n in re.findall(r"`([a-z0-9-]+)`", line.split("|")[1])
    }
    assert table == set(METHODS)


@pytest.mark.parametrize("path", re.findall(r"\]\(([^)#:]+)\)", README))
def test_a_link_of_the_readme_leads_somewhere(path: str) -> None:
    assert (ROOT / path).exists()
