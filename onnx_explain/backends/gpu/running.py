"""A relevance graph on a device: sessions and kernels in turn on one stream, all tensors in one planned workspace.

Only what was asked for leaves the device. Places, kernels and shapes are found once per choice of input shapes.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnx_explain.backends.gpu.arrays import Tensor, is_on_device
from onnx_explain.backends.gpu.calls import Call, Launch, version
from onnx_explain.backends.gpu.device import Device, DeviceSession, OutOfMemory, foreign
from onnx_explain.backends.gpu.graphs import Replayed
from onnx_explain.backends.gpu.lowering import Line, lower
from onnx_explain.backends.gpu.segments import KernelStep, Segment, Steps, cut
from onnx_explain.backends.onnx import Arrays, Session
from onnx_explain.errors import InputError, ModelError

SMALL = 1024  # elements of a constant that may decide a shape
_FLOAT = np.dtype(np.float32)
_NEVER = -1
_Sized = tuple[tuple[int, ...], np.dtype[Any]]
_Found = tuple[list[tuple[Any, Launch | None]], dict[str, int]]


@dataclass
class _Prepared:
    """What one choice of input shapes needs: places (None: ONNX Runtime's own memory), prepared launches per step, and the
    CUDA graphs of runs of them by the first step.
    """

    places: dict[str, Tensor | None]
    launches: dict[int, list[_Ready]] = field(default_factory=dict)
    replayed: dict[int, Replayed] = field(default_factory=dict)


@dataclass(frozen=True)
class _Ready:
    """A prepared kernel with its tensors: pointers, or names of values whose place is known when they are made."""

    kernel: Any
    tensors: Mapping[str, int | str]
    numbers: Mapping[str, float] = field(default_factory=dict)


class GpuRunner:
    """Computes a relevance graph's outputs on a device."""

    def __init__(self, model: ir.Model, device: Device, say: Callable[[str], None] | None = None) -> None:
        """Lower the model and load its sessions; `say` takes sentences on how it ran.

        Raises:
            ModelError: ONNX Runtime cannot load a part of it.

        """
        choices: dict[str, Any] = {"precision": device.precision, "dense": device.dense}
        lowered = lower(model, lambda constants: Session(constants).run({}), **choices)
        self.device, self.lines = device, lowered.lines
        self._say = say if say is not None else _silent
        self.steps: Steps = cut(lowered.model)
        self.outputs = list(self.steps.outputs)
        self._declared = {v.name or "": v for n in lowered.model.graph for v in n.outputs if v.shape is not None}
        self._takes = {v.name or "": v for v in lowered.model.graph.inputs}
        self._sessions: dict[int, DeviceSession] = {}
        self._light: dict[int, onnx.ModelProto] = {}
        for i, step in enumerate(self.steps.steps):
            if isinstance(step, Segment):
                self._sessions[i] = device.session(_serialised(step.model))
                self._light[i] = _without_weights(step.model)
        self._turn = threading.Lock()  # there is one workspace
        self._constants: dict[Any, Tensor] = {}
        self._known: dict[Any, _Prepared] = {}
        self._workspace: _Block | None = None
        self._last = _lives(self.steps)
        self._channels_last = _channels_last(self.steps)
        self._groups = _groups(self.steps)

    @property
    def workspace(self) -> int:
        """Bytes of the workspace."""
        return self._workspace.size if self._workspace is not None else 0

    def run(self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None) -> Arrays:
        """Outputs by name, on the host; inputs may be host or device arrays."""
        with self._turn:
            found = self._run(feeds)
            return {n: self.device.fetch(found[n]) for n in outputs or self.outputs}

    def run_on_device(self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Outputs by name, as device arrays of their own (`__cuda_array_interface__`); nothing is copied to the host."""
        with self._turn:
            found = self._run(feeds)
            kept = {}
            for name in outputs or self.outputs:
                place = found[name]
                block = _Block(self.device, place.size)
                kept[name] = Tensor(block.pointer, place.shape, place.dtype, block)
                self.device.put(kept[name], place)
            self.device.wait()
            return kept

    # -- one run

    def _run(self, feeds: Mapping[str, Any]) -> dict[str, Tensor]:
        from onnx_explain_kernels.errors import KernelError

        given = {name: self._given(name, feeds) for name in self.steps.inputs}
        if any(isinstance(a, Tensor) for a in given.values()):
            self.device.wait()  # the caller's own stream may still be writing
        shapes = tuple((n, tuple(a.shape)) for n, a in given.items())
        try:
            if shapes not in self._known:
                self._known[shapes] = self._prepare({n: (a.shape, a.dtype) for n, a in given.items()})
            prepared = self._known[shapes]
            values: dict[str, Tensor] = {}
            for name, array in given.items():
                place = prepared.places[name]
                if place is not None:
                    self.device.put(place, array)
                    values[name] = place
            for group in self._groups:
                i = group[0]
                step = self.steps.steps[i]
                if isinstance(step, Segment):
                    takes = {n: values[n] for n in step.takes}
                    values |= self._sessions[i].run(takes, {n: prepared.places[n] for n in step.gives})
                    continue
                gives = [n for k in group for n in self.steps.steps[k].gives]
                values |= {n: p for n in gives if (p := prepared.places[n]) is not None}
                self._replay(prepared, group, values)
        except OutOfMemory:
            self._known.clear()
            self._workspace = None  # a smaller batch shall find room for its weights too
            raise
        except KernelError as error:
            raise ModelError(f"The GPU kernels cannot run this: {str(error).rstrip('.')}.") from error
        return {n: values[n] if n in values else self._constant(n) for n in self.outputs}

    def _given(self, name: str, feeds: Mapping[str, Any]) -> Any:
        value = self._takes[name]
        default = self.steps.defaults.get(name)
        if name not in feeds:
            if default is None:
                raise InputError(f"Input {name!r} is missing.")
            return np.asarray(default.numpy())
        dtype = self._dtype(name)
        if is_on_device(feeds[name]):
            shape = None if value.shape is None else [d if isinstance(d, int) else None for d in value.shape]
            return foreign(name, feeds[name], shape, dtype)
        return np.asarray(feeds[name], order="C")

    def _dtype(self, name: str) -> np.dtype[Any]:
        """Of an input."""
        kind = self._takes[name].dtype
        return np.dtype(kind.numpy()) if kind is not None else _FLOAT

    def _replay(self, prepared: _Prepared, group: Sequence[int], values: Mapping[str, Tensor]) -> None:
        """Launch the kernels of a run of steps, as one graph where their tensors keep their places."""

        def work(stream: int) -> None:
            for k in group:
                self._launch(prepared.launches[k], values, stream)

        if group[0] in prepared.replayed:
            prepared.replayed[group[0]].run(work)
        else:
            work(self.device.stream)

    def _launch(self, ready: Sequence[_Ready], values: Mapping[str, Tensor], stream: int) -> None:
        for one in ready:
            tensors = {k: values[p].pointer if isinstance(p, str) else p for k, p in one.tensors.items()}
            one.kernel(tensors, stream=stream, **one.numbers)

    # -- shapes, places and kernels of one choice of input shapes

    def plans(self, shapes: Mapping[str, tuple[int, ...]], arch: int) -> list[Any]:
        """The plans of all launches for inputs of these shapes, in order; no device is asked.

        Raises:
            UnsupportedShape: (of the kernels) a call cannot be launched for them.

        """
        from onnx_explain_kernels.launch import Planner

        inputs = {n: (shapes[n], self._dtype(n)) for n in self.steps.inputs if n in shapes}
        inputs |= {n: (t.numpy().shape, t.numpy().dtype) for n, t in self.steps.defaults.items() if n not in inputs}
        _, _, kernels = self._walk(inputs, Planner(arch))
        return [kernel.plan for found, _ in kernels.values() for kernel, _ in found]

    def _walk(
        self, inputs: Mapping[str, _Sized], planner: Any
    ) -> tuple[dict[str, _Sized], list[Any], dict[int, _Found]]:
        """From the inputs' shapes to all others': (shapes and dtypes, needs of the workspace, kernels per step)."""
        from onnx_explain_kernels.workspace import Need

        known = dict(inputs)
        sizes = {s: d for n in inputs for s, d in zip(map(str, self._takes[n].shape or ()), inputs[n][0])}
        needs = [Need(n, _bytes(*known[n]), 0, self._last.get(n, 0)) for n in inputs]
        kernels: dict[int, _Found] = {}
        for i, step in enumerate(self.steps.steps):
            if isinstance(step, Segment):
                made = _inferred(self._light[i], {n: known[n] for n in step.takes if n in known}, step.gives)
                made |= _sized(
                    {n: self._declared[n] for n in step.gives if n in self._declared and n not in made}, sizes
                )
            else:
                kernels[i] = self._kernels(step, known, planner)
                made = self._results(step, known)
                needs += [Need(f"{i}/{k}", size, i + 1, i + 1) for k, size in kernels[i][1].items()]
            known |= made
            needs += [Need(n, _bytes(*made[n]), i + 1, max(self._last.get(n, 0), i + 1)) for n in made]
        return known, needs, kernels

    def _prepare(self, inputs: Mapping[str, _Sized]) -> _Prepared:
        from onnx_explain_kernels.workspace import plan_workspace

        known, needs, kernels = self._walk(inputs, self.device.kernels)
        plan = plan_workspace(needs)
        base = self._reserved(plan.size)
        names = [n for n in known if n in plan.offsets]
        places: dict[str, Tensor | None] = {n: Tensor(base + plan.offsets[n], *known[n]) for n in names}
        for step in self.steps.steps:
            places |= {n: None for n in step.gives if n not in places}
        prepared = _Prepared(places)
        for i, (found, scratch) in kernels.items():
            at = {k: base + plan.offsets[f"{i}/{k}"] for k in scratch}
            prepared.launches[i] = [self._ready(self.steps.steps[i], kernel, launch, at) for kernel, launch in found]
        if self.device.graphs:
            for group in self._groups:
                steps = [self.steps.steps[k] for k in group]
                fixed = all(places.get(n, True) is not None for one in steps for n in (*one.takes, *one.gives))
                if fixed and isinstance(steps[0], KernelStep):
                    prepared.replayed[group[0]] = Replayed(self.device, self._say)
        return prepared

    def _reserved(self, size: int) -> int:
        """The workspace, at least this large."""
        if self._workspace is None or size > self._workspace.size:
            self.device.wait()
            self._known.clear()  # their places lie in it
            self._workspace = None  # given back before the larger one is asked for
            self._workspace = _Block(self.device, size)
        return self._workspace.pointer

    def _results(self, step: KernelStep, known: Mapping[str, _Sized]) -> dict[str, _Sized]:
        """Shapes and dtypes of a call's results."""
        call, geometry = step.call, step.call.geometry
        forward = call.kind == "denominator"
        given = known[step.takes[call.launches[0].operands["x" if forward else "r"]]][0]
        channels, size = (geometry["filters"], geometry["out"]) if forward else (geometry["channels"], geometry["size"])
        shape = (*given[:-1], channels) if call.dense else (given[0], channels, *size[4 - len(given) :])
        shapes = [shape] * len(step.gives) if forward else [shape, (given[0],), (given[0],)]
        return dict(zip(step.gives, [(one, _FLOAT) for one in shapes]))

    def _kernels(self, step: KernelStep, known: Mapping[str, _Sized], kernels: Any) -> _Found:
        """The kernels of a call, and the bytes of what they write beside the result."""
        call, launches = step.call, step.call.launches
        letter = "x" if call.kind == "denominator" else "r"
        r = step.takes[launches[0].operands[letter]]
        samples = int(np.prod(known[r][0][:-1])) if call.dense else known[r][0][0]
        found: list[tuple[Any, Launch | None]] = [
            (self._kernel(step, launch, samples, kernels), launch) for launch in launches
        ]
        if not call.shifted:
            return found, {}
        plan = found[-1][0].plan
        scratch = {"sums": plan.needs["sums"], "counts": plan.needs["counts"]}
        found.append((kernels.shift(samples, plan.rows), None))
        if not call.deferred:
            found.append((kernels.apply(samples, plan.needs["out"] // (4 * samples)), None))
            scratch["delta"] = 4 * samples
        return found, scratch

    def _kernel(self, step: KernelStep, launch: Launch, samples: int, kernels: Any) -> Any:
        from onnx_explain_kernels.forms import ConvForm, DenominatorForm, PoolForm
        from onnx_explain_kernels.geometry import Conv, Pool
        from onnx_explain_kernels.plan import Layouts

        geometry = {**step.call.geometry, "samples": samples}
        r = step.takes[launch.operands["r"]] if "r" in launch.operands else ""
        layouts = Layouts(
            r="nhwc" if r in self._channels_last else "nchw",
            out="nhwc" if step.gives[0] in self._channels_last else "nchw",
        )
        if step.call.kind == "pool":
            return kernels.pool(Pool(**geometry), PoolForm(**launch.form), layouts=layouts)
        options = {"layouts": layouts, "precision": self.device.precision}
        if step.call.kind == "denominator":
            return kernels.denominator(Conv(**geometry), DenominatorForm(**launch.form), **options)
        return kernels.conv(Conv(**geometry), ConvForm(**launch.form), bounds=launch.bounds, **options)

    def _ready(self, step: Any, kernel: Any, launch: Launch | None, scratch: Mapping[str, int]) -> _Ready:
        call: Call = step.call
        everything: dict[str, int | str] = dict(scratch)
        out = step.gives[0]
        if launch is None:
            everything |= {"c": out, "out": out, "want": step.takes[call.want], "kept": step.gives[1]}
            everything |= {"delta": step.gives[2]} if call.deferred else {}
            return _Ready(kernel, self._placed(kernel, everything))
        for letter, position in launch.operands.items():
            name = step.takes[position]
            if letter in launch.weights:
                everything[letter] = self._weight(name, launch.weights[letter], call).pointer
            else:
                everything[letter] = self._constant(name, _FLOAT).pointer if name in self.steps.constants else name
        numbers = {"epsilon": launch.epsilon, "below_epsilon": launch.below_epsilon, "scale": launch.scale}
        written = kernel.plan.writes if call.kind == "denominator" else ("out",)
        return _Ready(kernel, self._placed(kernel, {**everything, **dict(zip(written, step.gives))}), numbers)

    def _placed(self, kernel: Any, tensors: Mapping[str, int | str]) -> dict[str, int | str]:
        return {k: tensors[k] for k in kernel.plan.needs}

    def _constant(self, name: str, dtype: np.dtype[Any] | None = None) -> Tensor:
        if (name, dtype) not in self._constants:
            self._constants[name, dtype] = self._held(np.asarray(self.steps.constants[name].numpy(), dtype))
        return self._constants[name, dtype]

    def _held(self, array: np.ndarray[Any, Any]) -> Tensor:
        """A copy on the device for as long as this runner lives."""
        flat = np.asarray(array, order="C")
        block = _Block(self.device, flat.nbytes)
        tensor = Tensor(block.pointer, flat.shape, flat.dtype, block)
        self.device.put(tensor, flat)
        return tensor

    def _weight(self, name: str, kind: str, call: Call) -> Tensor:
        """A version of a weight as the kernels read it, uploaded once."""
        from onnx_explain_kernels.geometry import Conv
        from onnx_explain_kernels.weights import pack

        forward = call.kind == "denominator"
        key = (name, kind, call.gamma, call.geometry["group"], forward, call.flipped)
        if key not in self._constants:
            w = np.asarray(self.steps.constants[name].numpy(), np.float32)
            w = w.T if call.flipped else w
            conv = Conv(**{**call.geometry, "samples": 1})
            packed = pack(version(w, kind, call.gamma), conv, precision=self.device.precision, forward=forward)
            self._constants[key] = self._held(packed)
        return self._constants[key]


class _Block:
    """Device memory that is given back when nothing refers to it."""

    def __init__(self, device: Device, size: int) -> None:
        self.pointer, self.size = device.allocate(size), size
        weakref.finalize(self, device.driver.drop, self.pointer).atexit = False


def _serialised(model: onnx.ModelProto) -> bytes:
    """A part of the model as ONNX Runtime takes it."""
    try:
        return bytes(model.SerializeToString())
    except Exception as error:  # EncodeError or ValueError, as protobuf's version has it
        raise ModelError(
            "A part of the model has more weights than one ONNX message holds (2 GB), which the GPU kernels' backend does not "
            'split; use backend="onnx", or device="cpu".'
        ) from error


def _silent(sentence: str) -> None:
    """Nobody asks how it ran."""


def _groups(steps: Steps) -> list[list[int]]:
    """Steps by number: kernels that follow one another together, sessions alone."""
    groups: list[list[int]] = []
    for i, step in enumerate(steps.steps):
        kernel = isinstance(step, KernelStep)
        if kernel and groups and isinstance(steps.steps[groups[-1][0]], KernelStep):
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def _bytes(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    return int(np.prod(shape, dtype=np.int64)) * dtype.itemsize


def _lives(steps: Steps) -> dict[str, int]:
    """The last step that reads each value; steps count from one, and outputs live to the end."""
    last: dict[str, int] = {}
    for i, step in enumerate(steps.steps):
        last.update(dict.fromkeys(step.takes, i + 1))
    last.update(dict.fromkeys(steps.outputs, len(steps.steps) + 1))
    return last


def _channels_last(steps: Steps) -> set[str]:
    """Values that go from kernel to kernel as the quotients of a convolution: these lie with their channels last."""
    kernels = [s for s in steps.steps if isinstance(s, KernelStep)]
    made = {name for s in kernels if not s.call.shifted and not s.call.dense for name in _quotients_of(s)}
    read: dict[str, set[str]] = {}
    for step in steps.steps:
        takes = step.takes if isinstance(step, Segment) else ()
        made -= set(takes)
    for step in kernels:
        for launch in step.call.launches:
            form = launch.form
            alone = step.call.kind == "conv" and form["quotient"] == "given" and not form["shifted"]
            free = ("r", "a") if alone else ()
            made -= {step.takes[p] for letter, p in launch.operands.items() if letter not in free}
            both = {step.takes[launch.operands[k]] for k in free if k in launch.operands}
            for name in both:
                read.setdefault(name, set()).update(both)
        if step.call.want != _NEVER:
            made.discard(step.takes[step.call.want])
    made -= set(steps.outputs)
    for step in kernels:  # what is written by one kernel, or read by one, lies one way
        together = set(_quotients_of(step))
        if not together <= made:
            made -= together
    return {name for name in made if read.get(name, {name}) <= made}


def _quotients_of(step: KernelStep) -> tuple[str, ...]:
    """The results of a call that a convolution may read as quotients; of a forward pass, what is lost is none."""
    if step.call.kind != "denominator":
        return step.gives[:1]
    form = step.call.launches[0].form
    return step.gives[:2] if form["end"] == "pair" else step.gives[:1]


def _sized(values: Mapping[str, ir.Value], sizes: Mapping[str, int]) -> dict[str, _Sized]:
    """Shapes and dtypes as declared, with the `sizes` that the inputs give their open dimensions; without those still open."""
    found: dict[str, _Sized] = {}
    for name, value in values.items():
        shape = [d if isinstance(d, int) else sizes.get(str(d)) for d in value.shape or ()]
        if value.dtype is not None and None not in shape:
            found[name] = (tuple(d for d in shape if d is not None), np.dtype(value.dtype.numpy()))
    return found


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same nodes with large constants as inputs of their shape: enough to infer shapes."""
    light = onnx.ModelProto(ir_version=model.ir_version)
    light.opset_import.extend(model.opset_import)
    light.graph.name = "shapes"
    light.graph.node.extend(model.graph.node)
    for tensor in model.graph.initializer:
        if int(np.prod(tensor.dims, dtype=np.int64)) <= SMALL:
            light.graph.initializer.append(tensor)
        else:
            light.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    light.graph.output.extend(model.graph.output)
    return light


def _inferred(light: onnx.ModelProto, takes: Mapping[str, _Sized], gives: Sequence[str]) -> dict[str, _Sized]:
    """Shapes and dtypes of a segment's outputs, as far as they follow from those of its inputs."""
    model = onnx.ModelProto()
    model.CopyFrom(light)
    for name, (shape, dtype) in takes.items():
        kind = onnx.helper.np_dtype_to_tensor_dtype(dtype)
        model.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, shape))
    try:
        done = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except onnx.shape_inference.InferenceError:
        return {}
    found = {}
    for value in done.graph.output:
        kind = value.type.tensor_type
        if value.name in gives and kind.HasField("shape") and all(d.HasField("dim_value") for d in kind.shape.dim):
            dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
            found[value.name] = (tuple(d.dim_value for d in kind.shape.dim), dtype)
    return found


__all__ = ["GpuRunner", "Line"]
