"""The tools that make the pages: a small board, and a small page of real data, from end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import sets

pytest.importorskip("pyarrow", reason="results are Parquet: the extra [eval]")

TOOLS = Path(__file__).parents[2] / "tools"


def run(tool: str, *arguments: object) -> None:
    command = [sys.executable, str(TOOLS / tool), *map(str, arguments), "--threads", "1"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


def test_the_leader_board_is_made_by_one_command(tmp_path: Path) -> None:
    run(
        "leaderboard.py",
        "--samples",
        3,
        "--methods",
        "gradient,rap",
        "--fitted-on",
        0,
        "--out",
        tmp_path / "board",
        "--work",
        tmp_path,
    )
    page = (tmp_path / "board.md").read_text(encoding="utf-8")
    document = json.loads((tmp_path / "board.json").read_text(encoding="utf-8"))
    assert "| rap |" in page
    assert "tools/leaderboard.py" in page
    assert "## outside-inside-pos" in page
    assert str(tmp_path) not in json.dumps(document["plan"])
    assert {r["method"] for r in document["results"]} == {"gradient", "rap"}


def test_published_and_measured_orders_stand_side_by_side(tmp_path: Path) -> None:
    folder = sets.write(tmp_path, 6)
    plan = {
        "runs": [
            {
                "name": "shapes", "told": "Shapes.", "model": str(sets.MODEL), "pictures": "images", "masks": "masks",
                "preprocessing": {"preset": "0..1"}, "methods": ["gradient", "rap"], "metrics": ["roc-auc", "outside-inside"],
            }
        ],
        "claims": [
            {"claim": "better", "runs": ["shapes"], "metric": "roc-auc", "published": ["rap", "gradient"], "cause": "none"},
            {"claim": "worse", "runs": ["shapes"], "metric": "roc-auc", "published": ["gradient", "rap"]},
            {"claim": "ratio", "runs": ["shapes"], "metric": "outside-inside-all", "published": ["rap", "other"]},
        ],
    }  # fmt: skip
    (folder / "plan.json").write_text(json.dumps(plan))
    run("evaluate_real.py", folder / "plan.json", "--work", tmp_path / "work", "--out", tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "rap is ahead of gradient" in page
    assert "gradient is behind rap" in page
    assert "not measured" in page
    assert str(tmp_path) not in page
    assert json.loads((tmp_path / "page.json").read_text())["runs"][0]["run"]["name"] == "shapes"
