"""Graphs drawn at random from the operator table: built, run, differentiated and explained, or refused by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import onnxruntime
import pytest
from case import Array
from cases import CASES
from drawn_graphs import POOL, Drawn, cotangents, draw, op_types
from onnx import parser
from oracles import evaluate, evaluator

from onnx_explain import Explainer, build_vjp
from onnx_explain.errors import ExplainError
from onnx_explain.operators import NO_RELEVANCE, ROOMS

GRAPHS, SHARDS = 2000, 40
EXPLAINED = 4  # every fourth graph by LRP in ONNX Runtime too
STEP = 1e-6
SLACK = 2e-5  # of the gradient's magnitude: float64 differences of a few dozen roundings at this step
SINGLE = 1e-3  # float32 through up to a dozen operators with quotients among them
Arrays = dict[str, Array]


def inner(a: Mapping[str, Array], b: Mapping[str, Array]) -> float:
    return float(sum((a[n] * b[n]).sum() for n in b))


def runtime(drawn: Drawn) -> Arrays:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    data = drawn.model(np.float32).SerializeToString()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, drawn.values(np.float32))))


def assert_differentiated(drawn: Drawn) -> bool:
    """Outputs kept, and ⟨s, J u⟩ by differences equal to ⟨Jᵀ s, u⟩; False where every direction crosses a kink."""
    model, x = drawn.model(np.float64), drawn.values(np.float64)
    vjp = build_vjp(model)
    before = evaluate(model, x)
    if not all(np.isfinite(y).all() for y in before.values()):
        return False  # a remainder of a division by zero, a power of a negative number
    s = cotangents(drawn, before)
    found = evaluate(vjp, x | {f"{n}_cotangent": a for n, a in s.items()})
    for name, y in before.items():
        np.testing.assert_allclose(found[name], y, rtol=0, atol=1e-11 * np.abs(y).max(initial=1.0))
    gradient = {n: found[f"{n}_gradient"] for n in x}
    session, names = evaluator(model), list(s)

    def scalar(moved: Arrays) -> float:
        return inner(dict(zip(names, session.run(names, moved))), s)

    here, smooth, rng = scalar(x), False, np.random.default_rng([9, drawn.seed])
    for _ in range(2):
        u = {n: rng.choice([-1.0, 1.0], a.shape) for n, a in x.items()}
        ahead, back = (scalar({n: x[n] + side * STEP * u[n] for n in x}) for side in (1, -1))
        rise, fall = (ahead - here) / STEP, (here - back) / STEP
        magnitude = inner({n: np.abs(g) for n, g in gradient.items()}, {n: np.abs(a) for n, a in u.items()})
        scale = max(magnitude, 1e-3 * abs(here), 1e-6)
        if abs(rise - fall) > 1e-3 * scale:
            continue  # a kink lies between, or the function bends too much for differences to say anything
        smooth = True
        assert abs((rise + fall) / 2 - inner(gradient, u)) <= SLACK * scale
    return smooth


def assert_explained(drawn: Drawn) -> None:
    """The forward pass is ONNX Runtime's, and what was seeded arrives or is counted as absorbed."""
    plain = runtime(drawn)
    found = Explainer(drawn.model(np.float32), "lrp-epsilon", threads=1)(drawn.values(np.float32), target=0)
    for name, y in plain.items():
        scale = np.abs(y).max(initial=1e-30)
        assert found.outputs[name].shape == y.shape
        np.testing.assert_allclose(found.outputs[name], y, rtol=0, atol=SINGLE * scale)
    # of all samples together: joined as they are, one sample's entries may reach another's
    arrived = [float(r.sum(dtype=np.float64)) for r in found.relevance.values()] + [float(found.absorbed.sum())]
    flow = sum(float(np.abs(r).sum()) for r in found.relevance.values()) + float(np.abs(found.absorbed).sum())
    assert abs(float(found.target.score.sum()) - sum(arrived)) <= SINGLE * max(flow, 1e-6)


@pytest.mark.parametrize("shard", range(SHARDS))
def test_graphs_drawn_at_random_are_right_or_refused_by_name(shard: int) -> None:
    fates = Counter[str]()
    for seed in range(shard * GRAPHS // SHARDS, (shard + 1) * GRAPHS // SHARDS):
        drawn = draw(seed)
        told = f"seed {seed}: {[c.name for c in drawn.cases]}"
        try:
            with np.errstate(all="ignore"):
                fates["checked" if assert_differentiated(drawn) else "kinks"] += 1
                if seed % EXPLAINED == 0:
                    assert_explained(drawn)
        except ExplainError as refusal:
            fates["refused"] += 1
            assert "\n" not in str(refusal), told
            assert "unforeseen" not in str(refusal), f"{told}: {refusal}"
        except Exception as error:
            raise AssertionError(f"{told}: {error}") from error
    assert fates["checked"] >= 0.8 * fates.total(), fates
    assert fates["refused"] <= 0.1 * fates.total(), fates


def test_every_operator_that_relevance_can_pass_is_drawn() -> None:
    rooms = {op_type for domain, op_type in ROOMS if domain == ""}
    single = {
        op_type for case in CASES if case.only_float32 for op_type in case.op_types
    }  # the standard has no float64
    assert len(POOL) <= GRAPHS
    assert sorted(rooms - set(op_types()) - set(NO_RELEVANCE) - single) == []


def test_an_input_whose_rows_are_no_samples_is_accounted_for_all_the_same() -> None:
    text = """<ir_version: 8, opset_import: ["" : 18]> g (float[2, 3] a, float[5, 4] b) => (float[2, 3] y) {
        t = Mul(a, a)
        q = Sqrt(t)
        c = Sigmoid(b)
        s = ReduceSum<keepdims = 0>(c)
        y = Add(q, s)
    }"""
    rng = np.random.default_rng(0)
    x = {"a": rng.random((2, 3), np.float32), "b": rng.random((5, 4), np.float32)}
    found = Explainer(parser.parse_model(text), "lrp-epsilon")(x, target=1)
    assert found.absorbed.shape == (2,)
    total = sum(float(r.sum()) for r in found.relevance.values()) + float(found.absorbed.sum())
    np.testing.assert_allclose(total, found.target.score.sum(), rtol=1e-4)
