"""Texts become the inputs that a model takes, and come back as sentences whose parts have their relevance."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper, parser
from tokenizers import Tokenizer as Library
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers
from typer.testing import CliRunner

from onnx_explain import Explainer, render
from onnx_explain.cli.app import app
from onnx_explain.cli.strips import with_shares
from onnx_explain.data import InputSpec
from onnx_explain.data.tokenizer import fillings
from onnx_explain.errors import InputError, RuntimeMissing
from onnx_explain.text import TextExplanation, Tokenizer, parts_of

Array = npt.NDArray[Any]
CORPUS = ["a good film, really good!", "the plot was dull and the acting worse", "unbelievable café 🙂"]
RNG = np.random.default_rng(0)


def words() -> Library:
    library = Library(
        models.WordLevel({w: i for i, w in enumerate(["[PAD]", "[UNK]", "a", "good", "dull", "film"])}, "[UNK]")
    )
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    return library


def pieces() -> Library:
    library = Library(models.WordPiece(unk_token="[UNK]"))
    library.normalizer, library.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    library.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=60, special_tokens=special, show_progress=False)
    )
    library.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return library


def byte_pairs(trim: bool = True) -> Library:
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.post_processor = processors.ByteLevel(trim_offsets=trim)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    library.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=300, special_tokens=["<pad>"], initial_alphabet=alphabet, show_progress=False),
    )
    return library


def unigrams() -> Library:
    library = Library(models.Unigram())
    library.normalizer, library.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    library.train_from_iterator(
        CORPUS,
        trainers.UnigramTrainer(
            vocab_size=80, special_tokens=["<unk>", "<pad>"], unk_token="<unk>", show_progress=False
        ),
    )
    return library


LIBRARIES = {
    "words": words(),
    "unigrams": unigrams(),
    "pieces": pieces(),
    "bytes": byte_pairs(),
    "untrimmed bytes": byte_pairs(trim=False),
}


def spec(name: str, *shape: int | None, dtype: Any = np.int64) -> InputSpec:
    return InputSpec(name, shape or (None, None), np.dtype(dtype))


def bag(size: str = "N,T", mask: bool = True, dtype: str = "int64") -> onnx.ModelProto:
    """The sum of the shown words' rows times a matrix."""
    shown = "k = Cast<to=1>(attention_mask) u = Unsqueeze(k, last) v = Mul(e, u)" if mask else "v = Identity(e)"
    inputs = f"{dtype}[{size}] input_ids" + (f", {dtype}[{size}] attention_mask" if mask else "")
    graph = parser.parse_graph(
        f"g ({inputs}) => (float[N,2] y) {{ e = Gather(table, input_ids) {shown}"
        " b = ReduceSum<keepdims=0>(v, axes) y = MatMul(b, head) }"
    )
    weights = {"table": TABLE, "head": HEAD, "axes": np.array([1]), **({"last": np.array([2])} if mask else {})}
    graph.initializer.extend(numpy_helper.from_array(w, n) for n, w in weights.items())
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


TABLE, HEAD = RNG.normal(size=(300, 4)).astype(np.float32), RNG.normal(size=(4, 2)).astype(np.float32)


# ------------------------------------------------------------------------------------------- tokens and their text


@pytest.mark.parametrize("name", LIBRARIES)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_the_parts_of_any_text_read_like_the_text(name: str, text: str) -> None:
    tokenizer = Tokenizer(LIBRARIES[name], [spec("ids")])
    try:
        [found] = tokenizer([text]).texts
    except InputError as error:
        assert "holds no token" in str(error)
        return
    parts = list(found.parts())
    assert "".join(said for said, tokens in parts if not (tokens and tokens[0].special)) == text
    assert [t for _, tokens in parts for t in tokens] == list(found.tokens)


def test_pieces_of_words_and_bytes_of_letters_stand_for_what_the_text_has() -> None:
    [text] = Tokenizer(LIBRARIES["pieces"], [spec("ids")])(["Unbelievable CAFÉ"]).texts
    said = [part for part, tokens in text.parts() if tokens]
    assert said[0] == "[CLS]" and said[-1] == "[SEP]" and "".join(said[1:-1]) == "UnbelievableCAFÉ"
    [text] = Tokenizer(LIBRARIES["bytes"], [spec("ids")])(["a 🦜"]).texts
    bird = [tokens for part, tokens in text.parts() if part == "🦜"]
    assert len(bird) == 1 and len(bird[0]) > 1  # several bytes, one letter
    assert not any(t.special for t in text.tokens)  # a blank that was trimmed is a blank


@pytest.mark.parametrize("library", [words(), LIBRARIES["pieces"]], ids=["words", "pieces"])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_every_input_takes_what_its_name_says(library: Library, dtype: Any) -> None:
    specs = [spec(n, dtype=dtype) for n in ("input_ids", "attention_mask", "token_type_ids", "position_ids")]
    batch = Tokenizer(library, specs)(["a good film", "dull"])
    n = [len(t.tokens) for t in batch.texts]
    assert batch.ids == "input_ids" and all(a.dtype == dtype for a in batch.values())
    assert batch["attention_mask"].sum(1).tolist() == n
    assert batch["input_ids"][1, n[1] :].tolist() == [0] * (n[0] - n[1]) and not batch["token_type_ids"].any()
    assert batch["position_ids"][0].tolist() == list(range(n[0]))


@pytest.mark.parametrize(
    ("specs", "found"),
    [
        ([spec("x")], {"x": "ids"}),
        ([spec("tokens"), spec("src_mask", dtype=bool)], {"tokens": "ids", "src_mask": "mask"}),
        (
            [spec("words"), spec("segment_ids"), spec("length", None)],
            {"words": "ids", "segment_ids": "types", "length": "length"},
        ),
        ([spec("input_ids:0"), spec("input_mask:0", dtype=np.float32)], {"input_ids:0": "ids", "input_mask:0": "mask"}),
    ],
)
def test_what_inputs_take_is_read_off_their_names_and_what_is_left_takes_the_ids(
    specs: list[InputSpec], found: dict[str, str]
) -> None:
    assert fillings(specs) == found


@pytest.mark.parametrize(
    ("specs", "stated", "said"),
    [
        ([spec("a"), spec("b")], {}, "'a' .*'b' "),
        ([spec("ids"), spec("picture", None, 3, 8, 8, dtype=np.float32)], {}, "'picture'"),
        ([spec("ids", None)], {}, "'ids'"),
        ([spec("ids")], {"idz": "ids"}, "Did you mean 'ids'"),
        ([spec("ids")], {"ids": "words"}, "a text gives ids, mask"),
        ([spec("x", None, dtype=np.float32)], {"x": "ids"}, "do not fit"),
    ],
)
def test_inputs_that_a_text_cannot_fill_are_named(specs: list[InputSpec], stated: dict[str, str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        fillings(specs, stated)


def test_a_stated_input_overrides_its_name() -> None:
    assert fillings([spec("a"), spec("b")], {"b": "mask"}) == {"a": "ids", "b": "mask"}


def test_texts_are_cut_and_padded_to_the_number_of_tokens_that_the_model_takes() -> None:
    batch = Tokenizer(LIBRARIES["pieces"], [spec("ids", None, 6)])(["the plot was dull and worse", "a"])
    assert batch["ids"].shape == (2, 6)
    assert batch.texts[0].cut > 0 and batch.texts[1].cut == 0
    assert batch.texts[0].tokens[-1].name == "[SEP]" and len(batch.texts[1].tokens) == 3


def test_a_tokenizer_that_pads_on_the_left_does_so_and_its_tokens_know_where_they_are() -> None:
    library = words()
    library.enable_padding(direction="left", pad_id=0)
    batch = Tokenizer(library, [spec("ids"), spec("mask")])(["a good film", "dull"])
    assert batch["ids"][1].tolist() == [0, 0, 4] and batch["mask"][1].tolist() == [0, 0, 1]
    assert [t.position for t in batch.texts[1].tokens] == [2]
    assert library.padding["direction"] == "left"  # the caller's own stays as it was


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Tokenizer("none.json", [spec("ids")]), "none.json: the tokenizer cannot be read"),
        (lambda: Tokenizer(__file__, [spec("ids")]), "not a tokenizer.json"),
        (lambda: Tokenizer(words(), [spec("ids")])([]), "No text"),
        (lambda: Tokenizer(words(), [spec("ids")])([" "]), "holds no token"),
        (lambda: Tokenizer(words(), [spec("ids")])(["a", "a good"]), "no mask"),
        (lambda: Tokenizer(words(), [spec("ids")])("a"), "put the one into a list"),
        (lambda: Tokenizer(words(), [spec("ids")], most=0)(["a"]), "1 or more"),
        (lambda: Tokenizer(words(), [spec("ids", None, 3), spec("mask", None, 4)]), "different numbers"),
        (lambda: Tokenizer(byte_pairs(), [spec("ids", dtype=np.int8)])(["ab cd é"]), "beyond the range"),
    ],
)
def test_what_cannot_become_tokens_is_told_in_one_sentence(make: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        make()


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(RuntimeMissing, match=r"onnx-explain\[text\]"):
        Tokenizer("tokenizer.json", [spec("ids")])


# ------------------------------------------------------------------------------------------- relevance of tokens


@pytest.mark.parametrize("name", LIBRARIES)
def test_tokens_have_the_relevance_of_their_embeddings_and_padding_has_none(name: str) -> None:
    explainer = Explainer(bag(), "lrp-zero")
    batch = Tokenizer(LIBRARIES[name], explainer.inputs)(["a good film, not dull", "good"])
    told = TextExplanation(explainer(batch, target=1), batch)
    for k in range(2):
        for token, relevance in told.tokens(k):
            assert relevance == pytest.approx(float(TABLE[token.id] @ HEAD[:, 1]), abs=1e-5)
        e, total = told.explanation, sum(r for _, r in told.tokens(k))
        assert total + e.absorbed[k] == pytest.approx(float(e.target.score[k]), abs=1e-4)
    assert not told.explanation.entries["input_ids"][1, len(batch.texts[1].tokens) :].any()
    assert sum(p.relevance or 0 for p in told.parts(0)) == pytest.approx(sum(r for _, r in told.tokens(0)), abs=1e-4)


def test_an_explanation_of_another_batch_or_of_no_ids_is_refused() -> None:
    explainer = Explainer(bag(), "gradient")
    tokenizer = Tokenizer(LIBRARIES["words"], explainer.inputs)
    e = explainer(tokenizer(["a good film"]))
    with pytest.raises(InputError, match=r"ids \[1, 3\]"):
        TextExplanation(e, tokenizer(["a"]))
    with pytest.raises(InputError, match="no text 1"):
        TextExplanation(e, tokenizer(["a good film"])).tokens(1)
    with pytest.raises(InputError, match="without `at`"):
        TextExplanation(Explainer(bag(), "gradient", at="b")(tokenizer(["a"])), tokenizer(["a"]))


# ------------------------------------------------------------------------------------------- pages and pictures

HOSTILE = "</span><script>alert(1)</script>\x1b[31m\u202etxt\" onmouseover='x' & \x00\x9b"


def test_a_page_escapes_whatever_a_text_holds() -> None:
    parts = [render.Part(HOSTILE, 1.0, HOSTILE), render.Part("fine", -0.5), render.Part(HOSTILE)]
    page = render.page_of_tokens(parts, title=HOSTILE, facts=[(HOSTILE, HOSTILE)])
    assert "<script" not in page and "\x1b" not in page and "\u202e" not in page and "\x00" not in page
    assert not re.search(r"<[^>]*onmouseover='", page)
    assert (
        "prefers-color-scheme: dark" in page
        and "default-src 'none'" in page
        and not re.search(r"https?:|src=|url\(", page)
    )
    assert 'title="-0.5"' in page and 'class="against" style="--a:0.500"' in page


def test_a_line_without_colours_says_the_shares() -> None:
    parts = [render.Part("[CLS]", 0.001, special=True), render.Part("a"), render.Part(" "), render.Part("good", 2.0)]
    assert with_shares([*parts, render.Part("\n\x1bno", -1.0)]) == "[CLS] a good[+1.00] ␛no[-0.50]"


@pytest.mark.parametrize("dark", [False, True])
def test_a_long_text_is_broken_into_lines_within_the_picture(dark: bool) -> None:
    parts = [render.Part(w, float(i % 5 - 2)) for i, w in enumerate(["long", " ", "x" * 300, "\n", "é", "\t$"] * 12)]
    figure = render.figure_tokens(parts, title="t", dark=dark)
    figure.canvas.draw()
    boxes = [t.get_window_extent() for t in figure.texts]
    assert all(b.x0 >= 0 and b.x1 <= figure.bbox.x1 and b.y0 >= 0 and b.y1 <= figure.bbox.y1 for b in boxes)


def test_a_text_under_several_methods_is_one_figure() -> None:
    parts = [render.Part("good", 1.0), render.Part(" film", -1.0)]
    figure = render.figure_texts({"a": parts, "b": parts}, notes={"a": "3 ms"})
    said = [t.get_text() for t in figure.texts]
    assert said.count("good") == 2 and any("3 ms" in s for s in said)


# ------------------------------------------------------------------------------------------- command line


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)
    onnx.save(bag(), "bag.onnx")
    LIBRARIES["pieces"].save("tokenizer.json")
    return tmp_path


def run(*args: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, [*args])
    assert result.exit_code == code, result.output
    return result.output


def test_a_text_on_the_command_line_leaves_a_page_a_picture_arrays_and_numbers(place: Path) -> None:
    said = run("explain", "bag.onnx", "--tokenizer", "tokenizer.json", "--text", "a good\nfilm 🙂", "-m", "lrp-zero")
    assert "good" in said and re.search(r"\[[+-]1\.00\]", said)
    found = {p.name for p in (place / "explanations" / "text").iterdir()}
    assert found == {"lrp-zero.html", "lrp-zero.png", "lrp-zero.npz"}
    [result] = json.loads((place / "explanations" / "explanations.json").read_text())["results"]
    tokens = result["tokens"]["tokens"]
    assert result["tokens"]["text"] == "a good\nfilm 🙂" and tokens[0]["span"] is None and tokens[0]["text"] == "[CLS]"
    assert all(t["text"] == "a good\nfilm 🙂"[slice(*t["span"])] for t in tokens[1:-1])
    with np.load(place / "explanations" / "text" / "lrp-zero.npz") as arrays:
        assert arrays["entries/input_ids"][0].tolist() == pytest.approx([t["relevance"] for t in tokens])


def test_a_text_file_is_a_sample_per_line_and_goes_beside_texts(place: Path) -> None:
    Path("lines.txt").write_text("a good film\n\nthe plot was dull\r\n", encoding="utf-8")
    run("explain", "bag.onnx", "lines.txt", "--tokenizer", "tokenizer.json", "--text", "good", "-m", "gradient")
    assert {p.name for p in Path("explanations").iterdir()} >= {"text", "lines-0", "lines-1"}


def test_compare_draws_a_text_under_every_method(place: Path) -> None:
    run(
        "compare",
        "bag.onnx",
        "--tokenizer",
        "tokenizer.json",
        "--text",
        "good",
        "-m",
        "gradient,lrp-zero",
        "-o",
        "c.png",
    )
    assert Path("c.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--text", "a"], "name its tokenizer.json by --tokenizer"),
        (["--tokenizer", "tokenizer.json"], "No input was given"),
        (["--tokenizer", "bag.onnx", "--text", "a"], "the tokenizer cannot be read"),
        (["--tokenizer", "tokenizer.json", "--text", "a", "--feed", "input_ids"], "write NAME=VALUE"),
        (["--tokenizer", "tokenizer.json", "--text", "a", "--feed", "x=ids"], "no input 'x'"),
        (["--tokenizer", "tokenizer.json", "empty.txt"], "holds no text"),
        (["--input", "input_ids=a.npy", "--text", "a", "--tokenizer", "tokenizer.json"], "either one file per input"),
        (["--input", "input_ids=tokenizer.json"], "No file is given for the input 'attention_mask'"),
    ],
)
def test_texts_that_cannot_be_explained_are_refused(place: Path, args: list[str], said: str) -> None:
    Path("empty.txt").write_text("\n \n")
    assert said in " ".join(run("explain", "bag.onnx", *args, code=2).split())


def test_parts_of_a_text_add_up_to_its_tokens() -> None:
    [text] = Tokenizer(LIBRARIES["bytes"], [spec("ids")])(["🦜🦜 x"]).texts
    row = np.arange(1.0, 1 + len(text.tokens))
    assert sum(p.relevance or 0 for p in parts_of(text, row)) == row.sum()
