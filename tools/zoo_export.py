"""One architecture of the zoo: weights drawn, the truth by torch's autograd, one ONNX file per exporter.

`python tools/zoo_export.py SOURCE NAME FOLDER` writes FOLDER/STEM.npz (inputs, outputs, target, gradients in both
precisions), FOLDER/STEM.EXPORTER.onnx, and FOLDER/STEM.EXPORTER.failed with the reason where an exporter gives up. It is
a process of its own, because exporters keep what they allocate.
"""

from __future__ import annotations

import contextlib
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zoo_sources
from zoo_sources import Architecture, Case

OPSET = 17  # of the exporter by tracing
SEED = 0
DRAWINGS = 8
AGREES = 2e-5  # of the largest gradient, between float32 and float64


def main() -> int:
    """Export one row; 0 also where an exporter fails, which its file says."""
    source, name, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    warnings.simplefilter("ignore")
    row = next(r for r in zoo_sources.SOURCES[source](True) if r.name == name)
    torch.backends.mha.set_fastpath_enabled(False)  # of layers the exporter by tracing does not know
    torch.manual_seed(SEED)
    case = row.load()
    if case.drawn:
        randomise(case)
    truth(row, case, folder)
    for exporter, export in EXPORTERS.items():
        path = folder / f"{row.stem}.{exporter}.onnx"
        if not path.exists() and not path.with_suffix(".failed").exists():
            attempt(export, case, path)
    return 0


# -------------------------------------------------------------------------------------------------------------- weights


def randomise(case: Case) -> None:
    """Weights under which every layer matters: no branch scaled to nothing, statistics those of the layer's own input.

    Initial values make degenerate networks: LayerScale is 1e-6, heads and class tokens are zero, and
    BatchNormalization with mean 0 and variance 1 lets activations grow or vanish.
    """
    with torch.no_grad():
        for module in case.module.modules():
            frozen = hasattr(module, "running_var") and not list(module.parameters(recurse=False))
            named = module.named_buffers if frozen else module.named_parameters
            for name, p in named(recurse=False):
                _draw(module, name, p)
        _calibrate(case)


def _draw(module: torch.nn.Module, name: str, p: torch.Tensor) -> None:
    if not p.is_floating_point():
        return
    normalises = "Norm" in type(module).__name__
    if normalises and name == "weight":
        p.uniform_(
            0.4, 1.0
        )  # with biases as large as these, small changes shrink on their way: gradients stay comparable
    elif normalises and name == "bias":
        p.normal_(0.0, 0.5)
    elif name == "bias":
        p.normal_(0.0, 0.1)
    elif name == "layer_scale" or (p.numel() and float(p.abs().max()) < 1e-4 and float(p.abs().max()) > 0.0):
        p.uniform_(0.1, 0.5)
    elif p.ndim >= 2 and isinstance(module, (torch.nn.Linear, torch.nn.modules.conv._ConvNd)):
        fan = p[0].numel() if not getattr(module, "transposed", False) else p.shape[0] * p[0, 0].numel()
        p.normal_(0.0, math.sqrt((1.0 if isinstance(module, torch.nn.Linear) else 2.0) / fan))
    elif p.numel() > 1 and float(p.std()) < 1e-6:
        p.normal_(0.0, 0.2)


def _calibrate(case: Case) -> None:
    """Statistics of BatchNormalization near those of the layer's own input, layer by layer in one pass of evaluation."""
    norms = [m for m in case.module.modules() if getattr(m, "running_var", None) is not None]
    handles = [m.register_forward_pre_hook(_statistics) for m in norms]
    handles += [m.register_forward_hook(_of_variance_one_at_most) for m in case.heads]
    inputs = [_several(x) if n in case.batched else x for n, x in case.inputs.items()]
    if handles:
        case.module(*inputs)
    for handle in handles:
        handle.remove()


def _statistics(norm: Any, inputs: tuple[torch.Tensor]) -> None:
    x = inputs[0]
    axes = [0, *range(2, x.ndim)]
    spread = x.var(axes, unbiased=False).clamp(min=1e-3)
    norm.running_mean.copy_(x.mean(axes) + spread.sqrt() * torch.empty_like(spread).uniform_(-0.2, 0.2))
    norm.running_var.copy_(spread * torch.empty_like(spread).uniform_(0.7, 1.4))


def _of_variance_one_at_most(head: Any, inputs: tuple[torch.Tensor], y: torch.Tensor) -> torch.Tensor:
    size = y.std().clamp(min=1.0)  # of several maps through one head none may be wider
    head.weight /= size
    head.bias /= size
    return y / size


def _several(x: torch.Tensor) -> torch.Tensor:
    """The inputs among others like them: few samples alone have a variance that says little."""
    return torch.cat([x, zoo_sources.picture(14, *x.shape[1:])]) if x.is_floating_point() and x.ndim > 2 else x


# ---------------------------------------------------------------------------------------------------------------- truth


def truth(row: Architecture, case: Case, folder: Path) -> None:
    """What autograd says: the gradient of every sample's largest output by the inputs (or by the leaf's output).

    Inputs near a kink of some unit have one gradient in float32 and another in float64. Pictures are drawn anew until torch
    agrees with itself, and with itself a rounding away; the best drawing is kept.
    """
    best: dict[str, Any] = {}
    for _ in range(DRAWINGS if case.drawn else 1):
        found = _compared(case)
        if not best or found["own"] < best["own"]:
            best = found
        pictures = [n for n, x in case.inputs.items() if x.is_floating_point() and x.ndim > 2]
        if best["own"] <= AGREES or not pictures:
            break
        case = replace(
            case, inputs={n: zoo_sources.picture(*x.shape) if n in pictures else x for n, x in case.inputs.items()}
        )
    best.pop("own")
    np.savez(folder / f"{row.stem}.npz", **best)


def _compared(case: Case) -> dict[str, Any]:
    """Inputs, outputs and gradients in both precisions; `own`: how far these are from each other (0: only one is known)."""
    arrays: dict[str, Any] = {f"input/{n}": x.numpy() for n, x in case.inputs.items()}
    outputs, index, gradients, leaf = derivative(case, None)
    arrays |= {f"output/{n}": y.detach().numpy() for n, y in zip(case.outputs, outputs)}
    arrays |= {} if leaf is None else {"value": leaf.detach().numpy()}
    arrays |= {"target": index.numpy()} | {f"gradient/{n}": g.numpy() for n, g in gradients.items()}
    own = 0.0
    try:
        case.module.double()
        _, _, exact, _ = derivative(case, index)
        arrays |= {f"exact/{n}": g.numpy() for n, g in exact.items()}
        near = replace(case, inputs={n: _moved(x) for n, x in case.inputs.items()})
        _, _, moved, _ = derivative(near, index)
        own = max(
            float((other[n] - g).abs().max() / g.abs().max()) for n, g in exact.items() for other in (gradients, moved)
        )
    except RuntimeError as error:
        print(f"no float64 run ({error})", file=sys.stderr)
    finally:
        case.module.float()
    return arrays | {"own": own if math.isfinite(own) else math.inf}


def _moved(x: torch.Tensor) -> torch.Tensor:
    """Moved as much as rounding moves it: no unit may lie so near its kink."""
    return x.double() * (1.0 + 1e-6 * torch.randn(x.shape)) if x.is_floating_point() else x


def derivative(
    case: Case, index: torch.Tensor | None
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor, dict[str, torch.Tensor], torch.Tensor | None]:
    """(outputs, index of the explained element per sample, gradients by name, the leaf), in the module's own precision."""
    dtype = next(p.dtype for p in case.module.parameters() if p.is_floating_point())
    inputs = {n: x.to(dtype).requires_grad_() if x.is_floating_point() else x for n, x in case.inputs.items()}
    seen: dict[str, torch.Tensor] = {n: x for n, x in inputs.items() if x.is_floating_point()}
    with _leaf(case, seen):
        found = case.module(*inputs.values())
    outputs = (found,) if isinstance(found, torch.Tensor) else tuple(found)
    samples = len(next(x for n, x in inputs.items() if n in case.batched)) if case.batched else 0
    apart = bool(samples) and len(outputs[0]) == samples
    flat = outputs[0].reshape(samples if apart else 1, -1)
    index = flat.argmax(1) if index is None else index
    score = flat.gather(1, index[:, None]).sum()
    gradients = torch.autograd.grad(score, list(seen.values()), allow_unused=True)
    return outputs, index, {n: g for n, g in zip(seen, gradients) if g is not None}, seen.get("leaf")


@contextlib.contextmanager
def _leaf(case: Case, seen: dict[str, torch.Tensor]) -> Iterator[None]:
    """The leaf's output noted as what is differentiated; of an embedding that no gradient may stop at."""
    if case.leaf is None:
        yield
        return

    def note(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        seen["leaf"] = output.detach().requires_grad_()
        return seen["leaf"]  # its value is stored too: the tables of a file are told apart by it

    handle = case.leaf.register_forward_hook(note)
    try:
        yield
    finally:
        handle.remove()


# -------------------------------------------------------------------------------------------------------------- exports


def traced(case: Case, path: Path, *, open_batch: bool) -> None:
    """torch.onnx.export by tracing (TorchScript)."""
    axes = {n: {0: "batch"} for n in (*case.batched, *case.outputs)} if open_batch else None
    torch.onnx.export(
        case.module,
        tuple(case.inputs.values()),
        str(path),
        input_names=list(case.inputs),
        output_names=list(case.outputs),
        dynamic_axes=axes,
        opset_version=OPSET,
        dynamo=False,
    )


def captured(case: Case, path: Path, *, open_batch: bool) -> None:
    """torch.onnx.export by torch.export, at its own opset."""
    shapes = tuple({0: torch.export.Dim("batch")} if n in case.batched else None for n in case.inputs)
    program = torch.onnx.export(
        case.module,
        tuple(case.inputs.values()),
        input_names=list(case.inputs),
        output_names=list(case.outputs),
        dynamic_shapes=shapes if open_batch else None,
        dynamo=True,
        verbose=False,
    )
    program.save(str(path))


EXPORTERS: dict[str, Callable[..., None]] = {"torchscript": traced, "dynamo": captured}


def attempt(export: Callable[..., None], case: Case, path: Path) -> None:
    """With an open batch, else with the fixed one; the reason is kept where neither works."""
    reasons = []
    with torch.no_grad():
        for open_batch in (True, False) if case.batched else (False,):
            try:
                export(case, path, open_batch=open_batch)
                return
            except Exception as error:  # an exporter fails in any way it likes
                path.unlink(missing_ok=True)
                reasons.append(_reason(error))
    path.with_suffix(".failed").write_text("\n".join(reasons), encoding="utf-8")


def _reason(error: BaseException) -> str:
    """The first line of what was wrong at the bottom."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


if __name__ == "__main__":
    sys.exit(main())
