"""Tables, signals and several inputs: what a file of numbers fills, what features are called, and what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper, parser
from PIL import Image
from typer.testing import CliRunner

from onnx_explain import Explainer, render
from onnx_explain.cli.app import app
from onnx_explain.data import InputSpec, Sample, load, load_each, preprocessing
from onnx_explain.errors import InputError

FLOAT, INT = np.dtype(np.float32), np.dtype(np.int64)
RNG = np.random.default_rng(0)
PLAIN = preprocessing()


def table(
    folder: Path, text: str, *specs: InputSpec, name: str = "t.csv", features: list[str] | None = None
) -> list[Sample]:
    path = folder / name
    path.write_bytes(text.encode("utf-8"))
    return list(load(path, specs, PLAIN, features=features))


def row(*shape: int | None, dtype: Any = FLOAT, name: str = "x") -> InputSpec:
    return InputSpec(name, (None, *shape), dtype)


# ------------------------------------------------------------------------------------------- features


@pytest.mark.parametrize(
    "text",
    [
        "a,b\n1,2\n-3,4.5e-1\n",
        "\ufeffa,b\r\n1,2\r\n\r\n-3,0.45\r\n",
        'a;"b"\n1;2\n-3;0,45\n',
        "a\tb\n1\t2\n-3\t0.45",
        '"a" , "b"\n"1", 2\n-3,.45\n',
        ",a,b\n0,1,2\n1,-3,.45\n",
    ],
)
def test_a_row_is_a_sample_whatever_separates_its_cells(tmp_path: Path, text: str) -> None:
    first, second = table(tmp_path, text, row(2))
    assert first.names["x"] == ("a", "b") and [first.name, second.name] == ["t-0", "t-1"]
    np.testing.assert_allclose(np.concatenate([first.feeds["x"], second.feeds["x"]]), [[1, 2], [-3, 0.45]])


def test_a_table_without_a_header_takes_names_and_one_with_a_header_gives_columns(tmp_path: Path) -> None:
    [plain] = table(tmp_path, "1,2\n", row(2))
    assert not plain.names
    [named] = table(tmp_path, "1,2\n", row(2), features=["p", "q"])
    assert named.names["x"] == ("p", "q")
    [chosen] = table(tmp_path, "label,a,b\n7,1,2\n", row(2), features=["b", "a"])
    assert chosen.feeds["x"].tolist() == [[2, 1]] and chosen.names["x"] == ("b", "a")
    [counted] = table(tmp_path, "0,1,2\n5,6,7\n", row(3))
    assert counted.feeds["x"].tolist() == [[5, 6, 7]]


def test_every_input_takes_the_column_of_its_name_and_one_takes_what_is_left(tmp_path: Path) -> None:
    specs = [row(1, name="petal_length__cm_"), row(1, name="kind", dtype=INT), row(2, name="rest")]
    [sample] = table(tmp_path, "u,kind,petal length (cm),v\n1,3,0.5,2\n", *specs)
    assert {n: a.tolist() for n, a in sample.feeds.items()} == {
        "petal_length__cm_": [[0.5]], "kind": [[3]], "rest": [[1, 2]],
    }  # fmt: skip
    assert sample.names["rest"] == ("u", "v") and sample.feeds["kind"].dtype == INT


def test_a_column_of_words_fills_an_input_of_words(tmp_path: Path) -> None:
    [sample] = table(tmp_path, "age,city\n40,Köln\n", row(1, name="age"), row(1, name="city", dtype=np.dtype(object)))
    assert sample.feeds["city"].tolist() == [["Köln"]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b\n1,2\n3,x\n", r"line 3, column 'b' holds 'x', which is not a finite number"),
        ("a,b\n1,\n", r"line 2, column 'b' is empty"),
        ("1,2\n1,nan\n", r"line 2, column 2 holds 'nan'"),
        ("a,b\n1,2\n3\n", r"line 3 has 1 columns, but the first has 2"),
        ("a,b,c\n1,2,3\n", r"3 columns, but input 'x' takes 2 features .*--features"),
        ("", "the table is empty"),
        ("a,b\n", "the table is empty below its header"),
        ('a,b\n"1,2\n', "line 2 has 1 columns"),
        ("a,b\n1,2\0\n", "null characters"),
        ("a,b\n1,1_0\n", "'1_0'"),
    ],
)
def test_what_is_wrong_with_a_table_is_told_by_line_and_column(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        table(tmp_path, text, row(2))


@pytest.mark.parametrize(
    ("text", "specs", "features", "said"),
    [
        ("a,b\n1,2\n", [row(1, name="a"), row(1, name="c")], None, None),
        ("a,b\n1,2\n", [row(1, name="c"), row(1, name="d")], None, r"no column for the input 'c', 'd'"),
        ("a\n1\n", [row(1, name="a"), row(1, name="d")], None, r"no column for the input 'd'"),
        ("1,2\n", [row(1, name="a"), row(1, name="b")], None, "the first line must name the columns"),
        ("a,A\n1,2\n", [row(1, name="a"), row(1, name="b")], None, "one name"),
        ("a,b,c\n1,2,3\n", [row(1, name="a"), row(3, name="x")], None, "takes 3 values per sample"),
        ("a,b\n1,2.5\n", [row(2, dtype=INT)], None, r"line 2, column 'b' holds 2.5, but input 'x' takes int64"),
        ("a,b\n1,2\n", [row(2)], ["a", "q"], "no column 'q'"),
        ("1,2\n", [row(2)], ["a"], "1 names of features for 2 columns"),
        ("1,2\n", [row(3, 8, 8)], None, "give an .npy array"),
        ("1,2\n3,4\n", [row(3, 5)], None, "2 lines of 2 columns do not fit the signal"),
    ],
)
def test_columns_that_do_not_fit_the_inputs_are_told(
    tmp_path: Path, text: str, specs: list[InputSpec], features: list[str] | None, said: str | None
) -> None:
    if said is None:
        [sample] = table(tmp_path, text, *specs, features=features)
        assert sample.feeds["c"].tolist() == [[2]]  # the one input that is left takes the one column that is left
        return
    with pytest.raises(InputError, match=said):
        table(tmp_path, text, *specs, features=features)


@given(data=st.binary(max_size=60))
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_a_table_or_one_sentence(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(data)
    try:
        samples = list(load(path, [row(2)], PLAIN))
    except InputError as error:
        assert "\n" not in str(error)
        return
    assert all(s.feeds["x"].shape == (1, 2) and np.isfinite(s.feeds["x"]).all() for s in samples)


# ------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize(
    ("shape", "cells", "wanted"),
    [
        ((2, 5), (5, 2), (1, 2, 5)),  # a line per time
        ((2, 5), (2, 5), (1, 2, 5)),  # a line per channel
        ((None, None), (5, 2), (1, 2, 5)),
        ((1, 4), (3, 4), (3, 1, 4)),  # a signal per line
        ((1, 4), (4, 1), (1, 1, 4)),
    ],
)
def test_a_table_is_a_signal_in_the_layout_of_the_input(
    tmp_path: Path, shape: tuple[int | None, ...], cells: tuple[int, int], wanted: tuple[int, ...]
) -> None:
    values = np.arange(cells[0] * cells[1], dtype=float).reshape(cells)
    text = "\n".join(",".join(map(str, line)) for line in values.tolist())
    samples = table(tmp_path, text, InputSpec("x", (None, *shape), FLOAT, channels_axis=1))
    found = np.concatenate([s.feeds["x"] for s in samples])
    assert found.shape == wanted
    upright = values.T if cells in ((5, 2), (4, 1)) else values
    np.testing.assert_array_equal(found.reshape(upright.shape), upright)


def test_the_time_axis_counts_seconds_where_the_sampling_rate_is_known() -> None:
    figure = render.figure_signal(np.sin(np.arange(500) / 9), np.cos(np.arange(500) / 9), rate=100.0)
    figure.canvas.draw()
    labels = [t.get_text() for t in figure.axes[1].get_xticklabels()]
    assert labels[0] == "0 s" and "2 s" in labels
    with pytest.raises(InputError, match="positive"):
        render.figure_signal(np.ones(4), np.ones(4), rate=0.0)


def test_ids_are_drawn_as_a_bar_each_and_many_share_one() -> None:
    few, many = (np.arange(float(n)) - n / 2 for n in (12, 4096))
    bars = render.figure_positions(np.arange(12), few).axes[1].patches
    assert [b.get_height() for b in bars] == few.tolist()  # type: ignore[attr-defined]
    shown = render.figure_positions(np.arange(4096), many).axes[1].patches
    assert len(shown) <= 600 and shown[0].get_height() == many.min()  # type: ignore[attr-defined]


def test_bands_need_relevance_of_one_length() -> None:
    with pytest.raises(InputError, match="equally many"):
        render.figure_bands({"a": np.ones(3), "b": np.ones(4)})


# ------------------------------------------------------------------------------------------- several inputs, command line


def model(text: str, **weights: Any) -> onnx.ModelProto:
    graph = parser.parse_graph(text)
    graph.initializer.extend(numpy_helper.from_array(np.asarray(w), n) for n, w in weights.items())
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def drawn(*shape: int) -> Any:
    return RNG.normal(size=shape).astype(np.float32)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    onnx.save(model("g (float[N,3] x) => (float[N,2] y) { y = MatMul(x, w) }", w=drawn(3, 2)), "row.onnx")
    onnx.save(
        model(
            """g (float[N,1] age, int64[N,1] kind, float[N,1] income) => (float[N,2] y) {
                 e = Gather(t, kind) f = Flatten(e) x = Concat<axis=1>(age, f, income) y = MatMul(x, w) }""",
            t=drawn(4, 2), w=drawn(4, 2),
        ), "columns.onnx",
    )  # fmt: skip
    onnx.save(
        model(
            """g (float[N,3,8,8] image, float[N,2] meta) => (float[N,2] y) {
                 c = Conv<pads=[1,1,1,1]>(image, k) p = GlobalAveragePool(c) f = Flatten(p)
                 x = Concat<axis=1>(f, meta) y = MatMul(x, w) }""",
            k=drawn(4, 3, 3, 3), w=drawn(6, 2),
        ), "two.onnx",
    )  # fmt: skip
    onnx.save(
        model(
            """g (float[N,40] x) => (float[N,2] y) {
                 u = Unsqueeze(x, one) c = Conv<pads=[1,1]>(u, k) p = GlobalAveragePool(c) f = Flatten(p) y = MatMul(f, w) }""",
            one=np.array([1]), k=drawn(4, 1, 3), w=drawn(4, 2),
        ), "signal.onnx",
    )  # fmt: skip
    return tmp_path


def run(*args: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, [*args])
    assert result.exit_code == code, result.output
    return result.output


def results() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(Path("explanations/explanations.json").read_text())["results"]
    return found


def test_features_have_their_names_in_pictures_arrays_and_numbers(place: Path) -> None:
    Path("clients.csv").write_text("age,debt,income\n40,1,2\n30,0,5\n")
    run("explain", "row.onnx", "clients.csv", "-m", "lrp-zero")
    first = results()[0]
    assert [f["name"] for f in first["features"]] == ["age", "debt", "income"] and first["features"][0]["value"] == 40
    with np.load("explanations/clients-0/lrp-zero.npz") as arrays:
        assert arrays["names/x"].tolist() == ["age", "debt", "income"]
        assert arrays["relevance/x"][0].tolist() == pytest.approx([f["relevance"] for f in first["features"]])


def test_rows_of_an_array_get_names_by_an_option(place: Path) -> None:
    np.save("x.npy", drawn(1, 3))
    Path("names.txt").write_text("a\nb\nc\n")
    run("explain", "row.onnx", "x.npy", "--features", "names.txt", "-m", "gradient")
    assert [f["name"] for f in results()[0]["features"]] == ["a", "b", "c"]
    assert "fit none of the inputs" in run("explain", "row.onnx", "x.npy", "--features", "a,b", code=2)
    assert "once" in run("explain", "row.onnx", "x.npy", "--features", "a,a,b", code=2)


def test_columns_that_are_inputs_of_their_own_share_one_picture_and_a_category_has_its_relevance(place: Path) -> None:
    Path("people.csv").write_text("kind,income,age\n3,1.5,40\n")
    run("explain", "columns.onnx", "people.csv", "-m", "input-x-gradient")
    assert {p.name for p in Path("explanations/people").iterdir()} == {"input-x-gradient.png", "input-x-gradient.npz"}
    names = {f["name"]: f["relevance"] for f in results()[0]["features"]}
    assert set(names) == {"age", "kind", "income"}
    assert sum(names.values()) == pytest.approx(results()[0]["score"], rel=1e-5)


def test_a_picture_and_a_vector_come_from_a_file_each(place: Path) -> None:
    Image.fromarray(RNG.integers(0, 256, (20, 30, 3), np.uint8)).save("cat.png")
    Path("meta.csv").write_text("a,b\n1,2\n")
    run("explain", "two.onnx", "-i", "image=cat.png", "-i", "meta=meta.csv", "-m", "gradient")
    found = {p.name for p in Path("explanations/cat").iterdir()}
    assert found == {
        "gradient-image.png", "gradient-image-overlay.png", "gradient-meta.png", "gradient.npz", "overview-image.png"
    }  # fmt: skip
    np.savez("both.npz", image=drawn(1, 3, 8, 8), meta=drawn(1, 2))
    run("explain", "two.onnx", "both.npz", "-m", "gradient")
    Path("more.csv").write_text("a,b\n1,2\n3,4\n")
    said = run("explain", "two.onnx", "-i", "image=cat.png", "-i", "meta=more.csv", code=2)
    assert "different numbers of samples" in said
    with pytest.raises(InputError, match="no input 'imag'"):
        load_each({"imag": "cat.png"}, [row(3, 8, 8, name="image")], PLAIN)


def test_a_signal_without_an_axis_for_its_channel_is_drawn_as_a_line(place: Path) -> None:
    x = drawn(1, 40)
    assert Explainer("signal.onnx", "gradient")(x).layout("x") == "NT"
    assert Explainer("row.onnx", "gradient")(drawn(1, 3)).layout("x") == "NF"
    np.save("beat.npy", x)
    run("explain", "signal.onnx", "beat.npy", "-m", "gradient", "--sampling-rate", "100")


@pytest.mark.parametrize(("net", "file"), [("row.onnx", "r.csv"), ("signal.onnx", "s.npy"), ("columns.onnx", "c.csv")])
def test_compare_draws_rows_and_signals(place: Path, net: str, file: str) -> None:
    Path("r.csv").write_text("a,b,c\n1,2,3\n")
    Path("c.csv").write_text("age,kind,income\n1,2,3\n")
    np.save("s.npy", drawn(1, 40))
    run("compare", net, file, "-m", "gradient,lrp-epsilon", "-o", "c.png", "--dark")
    assert Path("c.png").stat().st_size > 5000


def test_evaluate_reads_no_tables_and_says_so(place: Path) -> None:
    Path("r.csv").write_text("a,b,c\n1,2,3\n")
    said = run("evaluate", "two.onnx", "r.csv", "-m", "gradient", "-o", "out", code=2)
    assert "put the array into an .npz file" in " ".join(said.split())
