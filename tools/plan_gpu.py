"""Print which kernel of the GPU backend runs each step of a relevance pass, and how much of the work kernels do. No GPU.

python tools/plan_gpu.py resnet50 -m lrp-epsilon -m rap      # a network of tools/make_models.py, or a model file
python tools/plan_gpu.py vgg16 --nodes                       # every node
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import make_models

from onnx_explain import Explainer
from onnx_explain.backends.gpu import PRECISIONS, GpuPlan, plan_of
from onnx_explain.errors import ExplainError

METHODS = ("lrp-epsilon", "lrp-epsilon-plus", "gradient", "rap")


def table(plan: GpuPlan, *, nodes: bool = False) -> list[str]:
    """The plan as lines of text: by operator and form, or node by node."""
    if nodes:
        return [f"  {one.node:32} {one.operator:18} {one.operations / 1e6:12.3f}  {one.runs}" for one in plan.lines]
    kinds = [(one.operator, one.composite, one.runs) for one in plan.lines]
    work: Counter[tuple[str, str, str]] = Counter()
    for kind, one in zip(kinds, plan.lines):
        work[kind] += one.operations
    return [
        f"  {count:4} x {operator:18} {composite:16} {work[operator, composite, runs] / 1e9:10.3f} GFLOP  {runs}"
        for (operator, composite, runs), count in sorted(Counter(kinds).items())
    ]


def summary(plan: GpuPlan) -> str:
    """One line: the share of the work, and what else runs."""
    return (
        f"  {plan.share:.1%} of {plan.operations / 1e9:.2f} GFLOP of convolutions and pools by kernels "
        f"({plan.redistributed / 1e9:.2f} redistribution, {plan.denominators / 1e9:.2f} denominators; in ONNX "
        f"{plan.remaining / 1e9:.2f}); {plan.launches} launches, {plan.sessions} sessions"
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", default=["vgg16", "resnet50", "mobilenet_v2", "densenet121"])
    parser.add_argument("-m", "--method", action="append", help=f"default: {', '.join(METHODS)}")
    parser.add_argument("--arch", type=int, default=90, help="compute capability, e.g. 90")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--precision", choices=PRECISIONS, default="tf32")
    parser.add_argument("--dense", choices=("onnx", "kernel"), default="onnx", help="what runs dense layers")
    parser.add_argument("--nodes", action="store_true", help="every node")
    asked = parser.parse_args(argv)
    for name in asked.models:
        try:
            model = make_models.build(name) if name in make_models.NETWORKS else Path(name)
            for method in asked.method or METHODS:
                graph, choices = (
                    Explainer(model, method).build().model,
                    {"precision": asked.precision, "dense": asked.dense},
                )
                plan = plan_of(graph, arch=asked.arch, samples=asked.batch, **choices)
                print(f"{name}, {method} (per sample)")
                print("\n".join([*table(plan, nodes=asked.nodes), summary(plan)]))
        except ExplainError as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
