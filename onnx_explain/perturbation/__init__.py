"""Methods that change the input and watch the score: forward passes alone, many at once.

Every method is a set of masks and what is made of the scores that they leave. Memory is that of one batch of masked
inputs and of the result, however many masks there are.
"""

from __future__ import annotations

from collections.abc import Mapping

from onnx_explain.errors import MethodError
from onnx_explain.methods.perturbation import Occlusion, Perturbation, Rise, ShapleySampling
from onnx_explain.perturbation.occlusion import occlusion
from onnx_explain.perturbation.rise import rise
from onnx_explain.perturbation.shapley import shapley
from onnx_explain.perturbation.trial import Progress, Trial
from onnx_explain.prepared import Array, Outcome, Prepared
from onnx_explain.relevance import Options
from onnx_explain.target import Parsed

__all__ = ["explain"]


def explain(
    prepared: Prepared,
    how: Perturbation,
    feeds: Mapping[str, Array],
    aim: Parsed,
    options: Options,
    *,
    method: str,
    progress: Progress | None = None,
) -> Outcome:
    """Explain one batch. `progress(done, total)` is called after every batch of evaluations.

    Relevance is float64 in each explained tensor's shape; nothing is absorbed. Of Shapley values `seeded` is the change
    of the score from the baseline to the input, of other methods the score, which their relevance is not meant to sum to.
    Raises MethodError, InputError, TargetError, ModelError.
    """
    if options.seed != "score":
        raise MethodError(f"Method {method!r} has no backward pass to seed; leave out seed={options.seed!r}.")
    if options.keep:
        raise MethodError(f"Method {method!r} passes no inner tensor; explain at one (`at`) instead of keeping it.")
    trial = Trial(prepared, how, dict(feeds), aim, options, method, progress)
    if isinstance(how, Occlusion):
        return trial.outcome(occlusion(trial, how))
    if isinstance(how, Rise):
        return trial.outcome(rise(trial, how))
    if isinstance(how, ShapleySampling):
        return shapley(trial, how)
    raise MethodError(f"Method {method!r} is of a kind that nothing runs: {type(how).__name__}.")
