"""Every case of the table through `build_vjp`: outputs kept, exact calculus, both precisions, a valid model.

The gradient is judged in float64 by the evaluator of `oracles.py`; ONNX Runtime runs the same model in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property

import numpy as np
import onnx
import onnxruntime
import pytest
from cases import CASES, Array, Case, drawn_pads, drawn_resizes, drawn_slices, drawn_windows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import shape_inference
from oracles import evaluate, evaluator, winner_takes_all

from onnx_explain import build_vjp
from onnx_explain.errors import ExplainError, UnsupportedOperator
from onnx_explain.operators import NO_RELEVANCE, ROOMS

EXACT = 1e-12  # float64, relative to the sum of the magnitudes: another order of summation
DIRECTIONS = 3
COORDINATES = 8
Arrays = dict[str, Array]


class Explained:
    """A case, its model, and its vector-Jacobian product, built on demand and once per process."""

    def __init__(self, case: Case) -> None:
        self.case = case

    @cached_property
    def model64(self) -> onnx.ModelProto:
        return self.case.build(np.float64)

    @cached_property
    def model32(self) -> onnx.ModelProto:
        return self.case.build(np.float32)

    @cached_property
    def vjp64(self) -> onnx.ModelProto:
        return self._vjp(self.model64)

    @cached_property
    def vjp32(self) -> onnx.ModelProto:
        return self._vjp(self.model32)

    @cached_property
    def cotangents(self) -> Arrays:
        y = evaluate(self.model64, self.case.values(np.float64))
        return self.case.cotangents({name: y[name].shape for name in self.case.outputs}, np.float64)

    @cached_property
    def exact(self) -> Arrays:
        """Outputs and gradients in float64."""
        if self.case.only_float32:
            return {name: array.astype(np.float64) for name, array in self.single.items()}
        return evaluate(self.vjp64, self.case.values(np.float64) | named(self.cotangents))

    @cached_property
    def single(self) -> Arrays:
        """Outputs and gradients in float32."""
        cotangents = {name: s.astype(np.float32) for name, s in named(self.cotangents).items()}
        return runtime(self.vjp32, self.case.values(np.float32) | cotangents)

    def _vjp(self, model: onnx.ModelProto) -> onnx.ModelProto:
        try:
            return build_vjp(model, list(self.case.inputs), list(self.case.outputs))
        except UnsupportedOperator:
            if self.case.optional:
                pytest.skip("the library refuses this optional operator")
            raise


@pytest.fixture(scope="module", params=CASES, ids=str)
def explained(request: pytest.FixtureRequest) -> Iterator[Explained]:
    yield Explained(request.param)


def named(cotangents: Mapping[str, Array]) -> Arrays:
    """Cotangents by the name of the input that takes them."""
    return {f"{name}_cotangent": s for name, s in cotangents.items()}


def runtime(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> Arrays:
    """All outputs by name under ONNX Runtime, one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, dict(feeds))))


def assert_close(actual: Array, expected: Array, tolerance: float) -> None:
    """Same shape and, relative to the largest value, the same values."""
    assert actual.shape == expected.shape
    if expected.size:
        error = np.abs(actual.astype(np.float64) - expected).max()
        assert error <= tolerance * max(np.abs(expected).max(), 1e-30)


def inner(a: Mapping[str, Array], b: Mapping[str, Array]) -> float:
    """The inner product of two families of arrays."""
    return float(sum((a[name] * b[name]).sum() for name in a))


def compiled(case: Case, model: onnx.ModelProto) -> Callable[[Arrays], Arrays]:
    """The differentiable outputs of a model as a function of its inputs."""
    session, names = evaluator(model), list(case.outputs)
    return lambda feeds: {name: np.asarray(y) for name, y in zip(names, list(session.run(names, feeds)))}


def directions(x: Arrays) -> Iterator[Arrays]:
    """A few directions in which every coordinate moves by the same distance, then a few single coordinates."""
    rng = np.random.default_rng(5)
    for _ in range(DIRECTIONS):
        yield {name: np.where(rng.random(array.shape) < 0.5, -1.0, 1.0) for name, array in x.items()}
    for _ in range(COORDINATES):
        axis = {name: np.zeros(array.shape) for name, array in x.items()}
        chosen = axis[sorted(axis)[rng.integers(len(axis))]]
        chosen.flat[rng.integers(chosen.size)] = 1.0
        yield axis


def assert_matches_finite_differences(case: Case, model: onnx.ModelProto, cotangents: Arrays, gradient: Arrays) -> None:
    """Central differences of <s, y> along every direction."""
    forward, x = compiled(case, model), case.values(np.float64)

    def scalar(feeds: Arrays) -> float:
        return inner(cotangents, forward(feeds))

    largest = max(float(np.abs(g).max()) for g in gradient.values())
    slack = max(case.slack, 3 * case.rtol if case.only_float32 else 0.0)
    for direction in directions(x):
        moved = [scalar({name: x[name] + side * case.step * direction[name] for name in x}) for side in (1, -1)]
        measured = (moved[0] - moved[1]) / (2 * case.step)
        magnitude = inner({n: np.abs(g) for n, g in gradient.items()}, {n: np.abs(d) for n, d in direction.items()})
        # The differences of two outputs of this size carry rounding of 1e-16 / step.
        floor = max(magnitude, largest, 1e-3 * abs(moved[0]))
        assert abs(measured - inner(gradient, direction)) <= slack * floor


def assert_adjoint(case: Case, model: onnx.ModelProto, cotangents: Arrays, gradient: Arrays) -> None:
    """<J v, s> = <v, J' s> for an affine map: J v = f(v) - f(0)."""
    forward, v = compiled(case, model), case.values(np.float64, seed=3)
    zero, moved = forward({name: np.zeros_like(array) for name, array in v.items()}), forward(v)
    change = {name: moved[name] - zero[name] for name in moved}
    magnitude = {name: np.abs(moved[name]) + np.abs(zero[name]) for name in moved}
    scale = inner(magnitude, {name: np.abs(s) for name, s in cotangents.items()})
    slack = max(EXACT, 3 * case.rtol if case.only_float32 else 0.0)
    assert abs(inner(change, cotangents) - inner(v, gradient)) <= slack * max(scale, 1e-30)


# --------------------------------------------------------------------------- every case


def test_the_outputs_are_unchanged(explained: Explained) -> None:
    case = explained.case
    before = evaluate(explained.model64, case.values(np.float64))
    for name in case.outputs:
        assert_close(explained.exact[name], before[name], case.rtol if case.only_float32 else EXACT)
    single = runtime(explained.model32, case.values(np.float32))
    for name, array in single.items():
        assert explained.single[name].dtype == array.dtype
        assert_close(explained.single[name], array, case.rtol)


def test_the_gradient_matches_finite_differences(explained: Explained) -> None:
    case = explained.case
    gradient = {name: explained.exact[f"{name}_gradient"] for name in case.inputs}
    assert_matches_finite_differences(case, explained.model64, explained.cotangents, gradient)


@pytest.mark.parametrize("case", [case for case in CASES if case.linear], ids=str)
def test_a_linear_map_has_its_adjoint(case: Case) -> None:
    explained = Explained(case)
    gradient = {name: explained.exact[f"{name}_gradient"] for name in case.inputs}
    assert_adjoint(case, explained.model64, explained.cotangents, gradient)


def test_float32_in_onnx_runtime_equals_float64(explained: Explained) -> None:
    case = explained.case
    for name, x in case.values(np.float32).items():
        gradient = explained.single[f"{name}_gradient"]
        assert gradient.dtype == x.dtype
        assert gradient.shape == x.shape
        assert_close(gradient, explained.exact[f"{name}_gradient"], case.rtol)


def test_the_model_is_valid_and_says_its_shapes(explained: Explained) -> None:
    case, model = explained.case, explained.vjp32
    onnx.checker.check_model(model, full_check=True)
    shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    before = explained.model32.graph
    fed = [i.name for i in before.input if i.name not in case.constants]
    assert [i.name for i in model.graph.input] == fed + [f"{name}_cotangent" for name in case.outputs]
    assert [o.name for o in model.graph.output] == [o.name for o in before.output] + [
        f"{name}_gradient" for name in case.inputs
    ]
    types = {v.name: v.type for v in [*model.graph.input, *model.graph.output]}
    for name in case.inputs:
        assert types[f"{name}_gradient"].tensor_type.elem_type == types[name].tensor_type.elem_type
        assert dimensions(types[f"{name}_gradient"]) == dimensions(types[name])
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}


def dimensions(of: onnx.TypeProto) -> list[int | None]:
    """Static sizes, None where open."""
    return [d.dim_value if d.HasField("dim_value") else None for d in of.tensor_type.shape.dim]


DYNAMIC = [case for case in CASES if all(v.declared is not None for v in case.inputs.values())]


@pytest.mark.parametrize("case", DYNAMIC, ids=str)
def test_a_dynamic_batch_gives_each_sample_what_it_gets_alone(case: Case) -> None:
    explained = Explained(case)
    together = explained.single
    feeds = {name: x[:1] for name, x in case.values(np.float32).items()}
    feeds |= {name: s[:1].astype(np.float32) for name, s in named(explained.cotangents).items()}
    alone = runtime(explained.vjp32, feeds)
    for name in case.inputs:
        assert_close(alone[f"{name}_gradient"], together[f"{name}_gradient"][:1].astype(np.float64), case.rtol)


def test_every_operator_that_relevance_can_pass_has_a_case() -> None:
    covered = {("", op_type) for case in CASES for op_type in case.op_types}
    assert (
        sorted({room for room in ROOMS if room[0] == ""} - covered - {("", op_type) for op_type in NO_RELEVANCE}) == []
    )


# --------------------------------------------------------------------------- drawn geometry


FAMILIES: dict[str, st.SearchStrategy[Case]] = {
    "Conv": drawn_windows("Conv"),
    "ConvTranspose": drawn_windows("ConvTranspose"),
    "MaxPool": drawn_windows("MaxPool"),
    "AveragePool": drawn_windows("AveragePool"),
    "Resize": drawn_resizes(),
    "Slice": drawn_slices(),
    "Pad": drawn_pads(),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_any_geometry_has_its_adjoint_in_both_precisions(family: str) -> None:
    @settings(max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(FAMILIES[family])
    def check(case: Case) -> None:
        explained = Explained(case)
        gradient = {"x": explained.exact["x_gradient"]}
        assert_matches_finite_differences(case, explained.model64, explained.cotangents, gradient)
        if case.linear:
            assert_adjoint(case, explained.model64, explained.cotangents, gradient)
        assert_close(explained.single["x_gradient"], gradient["x"], case.rtol)

    check()


# --------------------------------------------------------------------------- the arguments


def case_named(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


def test_only_what_is_asked_for_is_differentiated() -> None:
    case = case_named("two-outputs")
    model = build_vjp(case.build(), ["b"], ["z"])
    assert [i.name for i in model.graph.input] == ["a", "b", "z_cotangent"]
    assert [o.name for o in model.graph.output] == ["y", "z", "b_gradient"]
    x, s = case.values(), np.ones((2, 3), np.float32)
    assert_close(runtime(model, x | {"z_cotangent": s})["b_gradient"], x["a"].astype(np.float64), 1e-6)


def test_an_input_without_influence_has_gradient_zero() -> None:
    explained = Explained(case_named("input-unused"))
    assert not explained.exact["b_gradient"].any()


def test_equal_maxima_give_all_to_the_first_in_row_major_order() -> None:
    case = replace(case_named("maxpool-overlapping"), name="maxpool-of-zeros")
    model = build_vjp(case.build(np.float64), ["x"], ["y"])
    x = np.zeros(case.inputs["x"].shape)
    s = np.ones(evaluate(case.build(np.float64), {"x": x})["y"].shape)
    got = evaluate(model, {"x": x, "y_cotangent": s})["x_gradient"]
    assert_close(got, winner_takes_all(x, s, (3, 3), strides=[2, 2], pads=[1, 1, 1, 1]), EXACT)


@pytest.mark.parametrize("wrt, outputs", [(["nothing"], ["y"]), (["a"], ["nothing"]), ([], ["y"]), (["a"], [])])
def test_an_unknown_or_missing_name_is_one_clear_error(wrt: list[str], outputs: list[str]) -> None:
    with pytest.raises(ExplainError):
        build_vjp(case_named("two-inputs").build(), wrt, outputs)
