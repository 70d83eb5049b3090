"""Fused operators and their expansions: ONNX Runtime's own kernel is the judge of every one that its CPU has.

A model of one fused node runs in ONNX Runtime as it is, and again in canonical form, which holds primitives alone.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from cases import CASES
from fused_cases import (
    B3,
    GAIN,
    HEADS,
    MICROSOFT,
    QKV,
    SEQUENCE,
    SHIFT,
    TABLE,
    TOLERANCE,
    W3,
    Fused,
    decoders,
    diffusion,
    drawn,
    further,
    fused,
    run,
)
from onnx import numpy_helper, parser, version_converter

from onnx_explain import Explainer
from onnx_explain.errors import ExplainError, UnsupportedOperator
from onnx_explain.ir.canonicalize import canonicalize
from onnx_explain.ir.spell import spell_out
from onnx_explain.ir.unfuse import CLASSIC, EXPANSIONS, register
from onnx_explain.ir.unfuse import REFUSED as UNCOVERED

Array = npt.NDArray[Any]


@pytest.mark.parametrize("case", TABLE, ids=str)
def test_the_expansion_computes_what_the_kernel_computes(case: Fused) -> None:
    model = case.build()
    theirs = case.expected()
    plain = ir.to_proto(spell_out(canonicalize(ir.from_proto(model))))
    left = {(n.domain, n.op_type) for n in plain.graph.node} - {("", "LayerNormalization")}
    assert (case.domain, case.op_type) not in left
    assert {n.domain for n in plain.graph.node} == {""}
    onnx.checker.check_model(plain, full_check=True)
    ours = run(plain.SerializeToString(), case.feeds)
    assert list(ours) == list(theirs)
    for name, expected in theirs.items():
        assert ours[name].shape == expected.shape
        assert np.abs(ours[name] - expected).max() <= TOLERANCE * max(np.abs(expected).max(), 1.0)


# ONNX's checker refuses the GroupNormalization of opset 18 as deprecated, and with it the whole file
FLOATS = [
    c for c in TABLE if any(a.dtype == np.float32 for a in c.feeds.values()) and c.name != "GroupNormalization-opset-18"
]


ALIKE = {str(c) for c in (*further(), *decoders(), *diffusion())}  # of the same primitives as the others: one method
TRIED = [
    pytest.param(method, case, id=f"{method}-{case}")
    for method in ("gradient", "attn-lrp", "cp-lrp", "lrp-epsilon")
    for case in FLOATS
    if method == "attn-lrp" or str(case) not in ALIKE
]


@pytest.mark.parametrize(("method", "case"), TRIED)
def test_it_is_explained(method: str, case: Fused) -> None:
    y = next(iter(case.expected().values()))
    flat = y.reshape(len(y), -1)
    target = np.argsort(flat, axis=1)[:, flat.shape[1] * 3 // 4]  # neither cut off below nor saturated above
    explanation = Explainer(case.build(), method, logits=False)(case.feeds, target=target)
    assert all(np.isfinite(r).all() for r in explanation.relevance.values())
    assert any(r.any() for r in explanation.relevance.values())
    if method != "gradient":
        assert np.abs(explanation.conservation).max() <= 1e-3


def test_every_expansion_has_a_case() -> None:
    covered = {(c.domain, c.op_type) for c in TABLE} | {("", t) for c in CASES for t in c.op_types}
    here = {key for key in EXPANSIONS if key[0] != CLASSIC}  # tests/test_classic.py has those
    missing = here - covered - {(MICROSOFT, "SimplifiedLayerNormalization")}  # the same function as in ""
    assert missing == set()


REFUSED = {
    "do_rotary": fused("Attention", x=SEQUENCE, w=W3, b=B3, attributes={**HEADS, "do_rotary": 1}),
    "packed": fused("MultiHeadAttention", x=drawn(2, 5, 2, 3, 4), attributes=HEADS),
    "activation": fused("FusedGemm", x=drawn(3, 5), w=drawn(5, 4), c=drawn(4), attributes={"activation": "Swish"}),
    "opset": fused("Attention", x=SEQUENCE, w=W3, b=B3, attributes=HEADS, opset=10),
    "no expansion": fused("LongformerAttention", x=SEQUENCE, w=W3, b=B3),
    "cache": fused("GroupQueryAttention", **QKV, pk=drawn(2, 2, 3, 4), pv=drawn(2, 2, 3, 4), l=np.array([7, 7], np.int32),
                   t=np.array(8, np.int32), attributes={"num_heads": 2, "kv_num_heads": 2}, fed=("x", "k", "v", "pk", "pv")),
    "positions": fused("GroupQueryAttention", **QKV, pk=None, pv=None, l=np.array([4, 4], np.int32), t=np.array(5, np.int32),
                       c=None, s=None, p=np.tile(np.arange(5), (2, 1)), attributes={"num_heads": 2, "kv_num_heads": 2},
                       fed=("x", "k", "v")),
    "blocks": fused("MatMulNBits", x=drawn(2, 24), w=np.zeros((6, 2, 8), np.uint8), s=drawn(6, 2),
                    attributes={"K": 24, "N": 6, "block_size": 32, "bits": 4}),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_an_expansion_does_not_cover_is_refused_by_name(what: str) -> None:
    case = REFUSED[what]
    with pytest.raises(UnsupportedOperator, match=case.op_type):
        Explainer(case.build(), "gradient", logits=False).build()


def test_an_output_that_no_expansion_computes_is_refused() -> None:
    case = fused("SkipLayerNormalization", x=SEQUENCE, s=SEQUENCE, g=GAIN, fed=("x", "s"), outputs=("y", "mean"))
    with pytest.raises(ExplainError, match="mean"):
        Explainer(case.build(), "gradient", logits=False).build()


# --------------------------------------------------------------------------- what ONNX Runtime's optimizer writes

SHARED = Path(__file__).resolve().parents[2] / "shared"
CNN = """<ir_version: 8, opset_import: ["": 17]> cnn (float[N,3,8,8] x) => (float[N,4] y) {
 c = Conv<pads=[1,1,1,1]>(x, w, b)
 r = Relu(c)
 d = Conv(r, v, b)
 s = Sigmoid(d)
 g = GlobalAveragePool(s)
 f = Flatten(g)
 h = Gemm(f, k, b)
 l = Relu(h)
 y = Gemm(l, k, b)
}"""
BLOCK = """<ir_version: 8, opset_import: ["": 17]> block (float[N,5,8] x) => (float[N,3] y) {
 n = LayerNormalization(x, g, s)
 a = MatMul(n, wa)
 i = Add(a, ba)
 d = Div(i, root)
 e = Erf(d)
 p = Add(e, one)
 q = Mul(i, p)
 t = Mul(q, half)
 o = MatMul(t, wb)
 j = Add(o, s)
 r = Add(x, j)
 z = LayerNormalization(r, g, s)
 u = Transpose<perm=[0,2,1]>(z)
 k = MatMul(z, u)
 f = MatMul(k, z)
 m = ReduceMean<axes=[1],keepdims=0>(f)
 y = MatMul(m, wy)
}"""
NETWORKS: dict[str, tuple[str, dict[str, Array], tuple[int, ...]]] = {
    "cnn": (CNN, {"w": drawn(4, 3, 3, 3), "v": drawn(4, 4, 3, 3), "b": drawn(4), "k": drawn(4, 4)}, (2, 3, 8, 8)),
    "block": (
        BLOCK,
        {"g": GAIN, "s": SHIFT, "wa": drawn(8, 16), "ba": drawn(16), "wb": drawn(16, 8), "wy": drawn(8, 3),
         "root": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5)},
        (2, 5, 8),
    ),
}  # fmt: skip


def optimised(model: bytes | str, path: Path) -> onnx.ModelProto:
    """The file that ONNX Runtime writes at its extended level."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath, options.log_severity_level = str(path), 4
    onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return onnx.load(path)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_file_that_onnx_runtime_has_optimised_says_the_same(name: str, tmp_path: Path) -> None:
    text, weights, shape = NETWORKS[name]
    plain = parser.parse_model(text)
    plain.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), n) for n, a in weights.items())
    fused_file = optimised(plain.SerializeToString(), tmp_path / "optimised.onnx")
    assert MICROSOFT in {n.domain for n in fused_file.graph.node}
    x = drawn(*shape, seed=20)
    for method in ("gradient", "attn-lrp", "cp-lrp", "lrp-epsilon-plus"):
        a, b = (Explainer(m, method)(x, target=1).relevance["x"] for m in (plain, fused_file))
        assert np.abs(a - b).max() <= 1e-4 * np.abs(a).max()


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared is absent: it holds the models")
@pytest.mark.parametrize(
    "name", ["golden/classic/enc_gelu_ln.op13_decomposed", "models/cifar_vit_pgd", "models/cifar_resnet2b"]
)
def test_a_real_file_that_onnx_runtime_has_optimised_says_the_same(name: str, tmp_path: Path) -> None:
    plain = onnx.load(SHARED / f"{name}.onnx")
    if "vit" in name:  # of opset 9; its shapes are computed by operators that ONNX evaluates from opset 13 on
        plain = version_converter.convert_version(plain, 17)
    fused_file = optimised(plain.SerializeToString(), tmp_path / "optimised.onnx")
    assert MICROSOFT in {n.domain for n in fused_file.graph.node}
    sizes = [d.dim_value or 1 for d in fused_file.graph.input[0].type.tensor_type.shape.dim]
    for method in ("gradient", "attn-lrp"):
        a, b = (
            next(iter(Explainer(m, method)(drawn(*sizes), target=1).relevance.values())) for m in (plain, fused_file)
        )
        assert np.abs(a - b).max() <= 1e-4 * np.abs(a).max()


@pytest.mark.parametrize("order", ["x, m", "m, x"])
def test_a_bias_that_was_taken_in_stays_with_its_product(order: str) -> None:
    """ε meets the product and its bias together, as in the file that was optimised: a large one would tell."""
    head = '<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]> net (float[N,5,8] x) => (float[N,5,8] y)'
    texts = (
        f"{head} {{ m = MatMul(x, w) y = com.microsoft.SkipLayerNormalization<epsilon=1e-5>({order}, g, s, b) }}",
        f"{head} {{ m = MatMul(x, w) a = Add(m, b) r = Add(x, a) y = LayerNormalization<epsilon=1e-5>(r, g, s) }}",
    )
    weights = {"w": drawn(8, 8), "b": drawn(8), "g": GAIN, "s": SHIFT}
    found = []
    for text in texts:
        model = parser.parse_model(text)
        model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in weights.items())
        explainer = Explainer(model, "attn-lrp", epsilon=0.1, product_epsilon=0.1)
        found.append(explainer(SEQUENCE, target=3).relevance["x"])
    np.testing.assert_allclose(found[0], found[1], atol=1e-6 * np.abs(found[1]).max())


def test_a_mask_reaches_attention_as_the_lengths_that_the_embeddings_count() -> None:
    """As ONNX Runtime's optimizer writes BERT."""
    text = """<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]>
    bert (int32[N,3] ids, int32[N,3] segments, int32[N,3] mask) => (float[N,3,8] y) {
      e, l = com.microsoft.EmbedLayerNormalization(ids, segments, w, p, q, g, s, mask)
      y = com.microsoft.Attention<num_heads=2>(e, wa, ba, l)
    }"""
    weights = {"w": drawn(6, 8), "p": drawn(9, 8), "q": drawn(2, 8), "g": GAIN, "s": SHIFT, "wa": W3, "ba": B3}
    model = parser.parse_model(text)
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in weights.items())
    feeds = {
        "ids": np.array([[1, 3, 2], [0, 2, 4]], np.int32),
        "segments": np.array([[0, 0, 1], [1, 1, 0]], np.int32),
        "mask": np.array([[1, 1, 1], [1, 1, 0]], np.int32),
    }
    theirs = run(model.SerializeToString(), feeds)["y"]
    e = Explainer(model, "attn-lrp")(feeds, target=0)
    np.testing.assert_allclose(e.outputs["y"], theirs, atol=TOLERANCE)
    words = next(r for r in e.relevance.values() if r.any())
    assert words[0, 2].any()
    assert not words[1, 2].any()  # what the mask hides has no share in another word


def test_a_file_for_gpus_alone_is_converted_for_any(tmp_path: Path) -> None:
    """ONNX Runtime has no kernel of the file's operator here; the converted file holds primitives."""
    case = next(c for c in TABLE if str(c) == "GroupNorm")
    explainer = Explainer(case.build(), "attn-lrp", logits=False)
    explainer.convert(tmp_path / "explained.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "explained.onnx", providers=["CPUExecutionProvider"])
    found = dict(
        zip([o.name for o in session.get_outputs()], session.run(None, {**case.feeds, "target": np.array([5, 5])}))
    )
    e = explainer(case.feeds, target=5)
    np.testing.assert_allclose(found["y"], case.expected()["y"], atol=TOLERANCE)
    np.testing.assert_allclose(found["x_relevance"], e.relevance["x"], atol=1e-6 * np.abs(e.relevance["x"]).max())


def test_the_page_on_transformers_lists_what_is_un_fused_and_what_is_refused() -> None:
    register()
    page = (Path(__file__).parents[1] / "docs" / "transformers.md").read_text(encoding="utf-8")
    listed, refused = page.split("of domain `com.microsoft`:")[1].split("Refused, with the reason:")
    named = set(re.findall(r"`([A-Za-z0-9]+)`", listed.split(".\n")[0]))
    assert named == {t for domain, t in EXPANSIONS if domain == MICROSOFT}
    assert set(re.findall(r"`([A-Za-z0-9]+)`", refused)) == set(UNCOVERED)
