"""What a case is: a tiny model written in ONNX's own text syntax, with the values its inputs and constants are drawn from.

It builds in float32 and in float64 from the same float32 numbers, so that the two runs differ by rounding alone. Which
cases there are stands in `cases.py`.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper, parser, shape_inference

Array = npt.NDArray[Any]

# A value nearer than this to a kink is moved away; finite differences step by 1e-5 in every coordinate at most.
MARGIN = 0.02
HALF_PRECISION = 2e-3


@dataclass(frozen=True)
class Values:
    """How the values of one tensor are drawn, and the shape the model declares for it where that is not static.

    `kind`: signed (normal), positive (0.3..2), negative (-2..-0.3), unit (-0.8..0.8), over (1.3..3), wide (±60),
    distinct (all differ by MARGIN / 4 or more).
    """

    shape: tuple[int, ...]
    kind: str = "signed"
    kinks: tuple[float, ...] = ()
    declared: tuple[int | str | None, ...] | None = None

    def draw(self, seed: Sequence[int]) -> Array:
        """Values of this shape, float64 holding float32 numbers."""
        rng = np.random.default_rng(seed)
        count = int(np.prod(self.shape, dtype=np.int64))
        if self.kind == "distinct":
            flat = (rng.permutation(count) - count / 2 + 0.3) * max(4.0 / max(count, 1), MARGIN / 4)
        elif self.kind == "wide":
            flat = rng.uniform(-60, 60, count)
        elif self.kind == "signed":
            flat = rng.standard_normal(count)
        else:
            bounds = {"positive": (0.3, 2.0), "negative": (-2.0, -0.3), "unit": (-0.8, 0.8), "over": (1.3, 3.0)}
            flat = rng.uniform(*bounds[self.kind], count)
        for kink in self.kinks:
            side = np.where(flat >= kink, 1.0, -1.0)
            flat = np.where(np.abs(flat - kink) < MARGIN, kink + side * 2 * MARGIN, flat)
        return np.asarray(flat.astype(np.float32).astype(np.float64).reshape(self.shape))


@dataclass(frozen=True, eq=False)
class Case:
    """A small model with everything a generic test must know about it.

    `text`: nodes, separated by `;`, in ONNX's text syntax; FLOAT is the number and TENSOR the name of the element type.
    `constants`: float64 arrays and drawn values follow the element type, all other arrays stay as they are.
    `outputs`: the differentiable graph outputs; `others`: further graph outputs with their element type.
    `linear`: affine in all inputs together, so that the adjoint property holds.
    `rtol`: float32 against float64, relative to the largest value, because of `reason`.
    `step`, `slack`: of the finite differences, relative to the gradient.
    `optional`: the library may refuse it (UnsupportedOperator), but must be right if it does not.
    `as_inputs`: the constants are listed among the graph inputs, too, as IR 3 wants it.
    `declared`: the shape of the outputs where ONNX's inference gives up.
    `only_float32`: why the standard has no float64 for it; then the float32 model is fed with float64.
    """

    name: str
    text: str
    inputs: Mapping[str, Values]
    constants: Mapping[str, Values | Array] = field(default_factory=dict)
    outputs: tuple[str, ...] = ("y",)
    others: Mapping[str, int] = field(default_factory=dict)
    role: str = ""
    opset: int = 17
    linear: bool = False
    rtol: float = 1e-5
    reason: str = "a few float32 roundings of a short sum"
    step: float = 1e-5
    slack: float = 1e-6
    optional: bool = False
    ir_version: int | None = None
    functions: tuple[str, ...] = ()
    as_inputs: bool = False
    declared: tuple[int | str, ...] | None = None
    only_float32: str = ""

    def __str__(self) -> str:
        return self.name

    @cached_property
    def op_types(self) -> frozenset[str]:
        """The operators this case contains."""
        bodies: list[Any] = [self._graph(np.float32), *(parser.parse_function(f) for f in self.functions)]
        return frozenset(node.op_type for body in bodies for node in body.node)

    def values(self, dtype: npt.DTypeLike = np.float32, seed: int = 0) -> dict[str, Array]:
        """One array per input; the same numbers in every dtype."""
        return {name: v.draw([seed, self._salt(name)]).astype(dtype) for name, v in self.inputs.items()}

    def cotangents(self, shapes: Mapping[str, tuple[int, ...]], dtype: npt.DTypeLike = np.float32) -> dict[str, Array]:
        """One random array per differentiable output."""
        return {name: Values(shapes[name]).draw([1, self._salt(name)]).astype(dtype) for name in self.outputs}

    def build(self, dtype: npt.DTypeLike = np.float32) -> onnx.ModelProto:
        """The model, checked, with inferred output shapes."""
        dtype = np.float32 if self.only_float32 else dtype
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        graph = self._graph(dtype)
        for name, v in self.inputs.items():
            shape = v.shape if v.declared is None else v.declared
            graph.input.append(helper.make_tensor_value_info(name, kind, shape))
        for name, constant in self.constants.items():
            array = constant.draw([2, self._salt(name)]) if isinstance(constant, Values) else constant
            array = array.astype(dtype) if array.dtype == np.float64 else array
            graph.initializer.append(numpy_helper.from_array(array, name))
            if self.as_inputs:
                info = helper.make_tensor_value_info(name, graph.initializer[-1].data_type, array.shape)
                graph.input.append(info)
        for name, of in [*((n, kind) for n in self.outputs), *self.others.items()]:
            graph.output.append(helper.make_tensor_value_info(name, of, self.declared))
        return self._checked(graph)

    def _checked(self, graph: onnx.GraphProto) -> onnx.ModelProto:
        version = self.ir_version or (10 if self.opset > 20 else 9 if self.opset == 20 else 8)
        imports = [helper.make_opsetid("", self.opset)]
        functions = [parser.parse_function(f) for f in self.functions]
        imports += [helper.make_opsetid(domain, 1) for domain in sorted({f.domain for f in functions})]
        model = helper.make_model(graph, ir_version=version, opset_imports=imports, functions=functions)
        model = shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
        del model.graph.value_info[:]
        onnx.checker.check_model(model, full_check=True)
        return model

    def _graph(self, dtype: npt.DTypeLike) -> onnx.GraphProto:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        text = self.text.replace("FLOAT16", "\0").replace("FLOAT", str(kind)).replace("\0", str(TensorProto.FLOAT16))
        text = text.replace("TENSOR", "float" if kind == TensorProto.FLOAT else "double")
        text = text.replace(";", "\n").replace("<>", "")
        name = "".join(c if c.isalnum() else "_" for c in self.name)
        return parser.parse_graph(f"{name} () => () {{ {text} }}")

    def _salt(self, name: str) -> int:
        # The same numbers for the same model at every opset.
        return zlib.crc32(f"{self.name.split('@')[0]}/{name}".encode())


def signed(*shape: int, kinks: tuple[float, ...] = (), declared: tuple[int | str | None, ...] | None = None) -> Values:
    """Normal values, at a distance from the kinks."""
    return Values(shape, kinks=kinks, declared=declared)


def away(*shape: int) -> Values:
    """Normal values at a distance from 0."""
    return Values(shape, kinks=(0.0,))


def positive(*shape: int) -> Values:
    """Values in 0.3..2."""
    return Values(shape, "positive")


def distinct(*shape: int) -> Values:
    """Values without ties."""
    return Values(shape, "distinct")


def wide(*shape: int) -> Values:
    """Values in ±60, where a careless exp overflows."""
    return Values(shape, "wide", kinks=(0.0,))


def ints(*values: int) -> Array:
    """A 1-D int64 constant."""
    return np.array(values, dtype=np.int64)


def int0(value: int) -> Array:
    """A 0-D int64 constant."""
    return np.array(value, dtype=np.int64)


def floats(*values: float) -> Array:
    """A 1-D constant that follows the element type."""
    return np.array(values, dtype=np.float64)


def float0(value: float) -> Array:
    """A 0-D constant that follows the element type."""
    return np.array(value, dtype=np.float64)


def float32s(*values: float) -> Array:
    """A 1-D constant that stays float32 (scales of Resize)."""
    return np.array(values, dtype=np.float32)


def cases(
    name: str,
    text: str,
    inputs: Mapping[str, Values],
    constants: Mapping[str, Values | Array] | None = None,
    *,
    opset: int | Sequence[int] = 17,
    **options: Any,
) -> Iterator[Case]:
    """One case per opset; `@N` is appended to the name where there are several."""
    opsets = [opset] if isinstance(opset, int) else list(opset)
    for version in opsets:
        label = name if len(opsets) == 1 else f"{name}@{version}"
        yield Case(label, text, inputs, constants or {}, opset=version, **options)


def moved(name: str, text: str, x: Values | Mapping[str, Values], constants: Any = None, **o: Any) -> Iterator[Case]:
    """Cases of a rearrangement, which is linear."""
    inputs = {"x": x} if isinstance(x, Values) else x
    options: dict[str, Any] = {"role": "rearrangement", "linear": True, **o}
    yield from cases(name, text, inputs, constants, **options)
