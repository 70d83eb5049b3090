"""An ONNX model and its explanations inside Quantus' metrics, which by themselves take torch and TensorFlow models only.

>>> from onnx_explain.metrics.quantus_adapter import QuantusModel, admitted, explain
>>> with admitted():                                                  # doctest: +SKIP
...     quantus.PixelFlipping(features_in_step=64)(model=QuantusModel("model.onnx"), x_batch=x, y_batch=y, a_batch=None,
...         explain_func=explain, explain_func_kwargs={"method": "rap"}, softmax=True)

Quantus (LGPL) is an optional extra: `pip install "onnx-explain[eval]"`. Nothing of it is imported before `admitted`.
Limits: pictures [N, C, H, W] (channel_first=True); no InputInvariance (it edits the first layer's bias), no
RelativeRepresentationStability (it asks torch for hidden layers), no SmoothMPRT (it insists on captum or zennit).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnx_explain.errors import InputError, MethodError
from onnx_explain.metrics.arrays import Array, Ints
from onnx_explain.metrics.scoring import OnnxScore, softmax
from onnx_explain.metrics.weights import Order, loaded, randomised_models, weight_layers

_ORDERS: dict[str, Order] = {"top_down": "cascading", "bottom_up": "bottom-up", "independent": "independent"}


class QuantusModel:
    """What Quantus calls a ModelInterface, on ONNX Runtime.

    model: path, bytes or `onnx.ModelProto` with one input of pictures and class scores as an output. output: its name. Whether
    `predict` gives the output itself or its soft-max is up to the metric's `softmax` argument, as for a torch model; a model
    that ends in a Softmax wants ``softmax=False``.

    Raises ModelError, TargetError, InputError, RuntimeMissing.
    """

    def __init__(self, model: Any, *, output: str | None = None, threads: int | None = None) -> None:
        self.proto: onnx.ModelProto = loaded(model)
        self.softmax = False
        self.channel_first = True
        self._output, self._threads = output, threads
        self._score = OnnxScore(self.proto, output=output, threads=threads)
        self._explainers: dict[Any, Any] = {}

    def with_softmax(self, wanted: bool) -> QuantusModel:
        """The same model, session and explainers, with `predict` behind a soft-max or not."""
        other = object.__new__(QuantusModel)
        other.__dict__.update(self.__dict__, softmax=bool(wanted))
        return other

    def predict(self, x: npt.ArrayLike, **_: Any) -> Array:
        """Scores [B, classes] of pictures [B, C, H, W], which are cast to the model's own dtype."""
        scores = self._score(np.asarray(x).astype(self._score.dtype))
        return softmax(scores) if self.softmax else scores

    def shape_input(
        self, x: Array, shape: tuple[int, ...], channel_first: bool | None = None, batched: bool = False
    ) -> Array:
        """The pictures in the given shape, with a batch axis; InputError where the channels come last."""
        if channel_first is False:
            raise InputError("Quantus was told channel_first=False; give pictures [N, C, H, W] and channel_first=True.")
        return np.asarray(x).reshape(shape if batched else (1, *shape))

    def get_model(self) -> QuantusModel:
        """What `explain_func` gets as its model."""
        return self

    def get_softmax_arg_model(self) -> QuantusModel:
        """The model itself: the soft-max is no part of the graph."""
        return self

    def state_dict(self) -> dict[str, Array]:
        """The initialisers by name."""
        return {t.name: onnx.numpy_helper.to_array(t) for t in self.proto.graph.initializer}

    @property
    def random_layer_generator_length(self) -> int:
        """How many layers `get_random_layer_generator` gives."""
        return len(weight_layers(self.proto))

    def get_random_layer_generator(self, order: str = "top_down", seed: int = 42) -> Iterator[tuple[str, QuantusModel]]:
        """One layer after another re-initialised by `randomised_models`: (its name, the model)."""
        if order not in _ORDERS:
            raise MethodError(f"There is no order {order!r}; use one of {', '.join(_ORDERS)}.")
        for step in randomised_models(self.proto, order=_ORDERS[order], seed=seed):
            model = QuantusModel(step.model, output=self._output, threads=self._threads)
            yield step.layer, model.with_softmax(self.softmax)

    def add_mean_shift_to_first_layer(self, input_shift: Any, shape: Any) -> QuantusModel:
        """Not there: raises MethodError."""
        raise MethodError(
            "Quantus' InputInvariance edits the first layer of a torch model; it has no ONNX counterpart here."
        )

    def explainer(self, method: str, **options: Any) -> Any:
        """The `Explainer` of this model for a method, made once."""
        from onnx_explain.explainer import Explainer

        key = (method, repr(sorted(options.items())))
        if key not in self._explainers:
            self._explainers[key] = Explainer(self.proto, method, threads=self._threads, **options)
        return self._explainers[key]


def explain(
    model: QuantusModel,
    inputs: npt.ArrayLike,
    targets: npt.ArrayLike,
    *,
    method: str = "lrp-epsilon-plus",
    **options: Any,
) -> Array:
    """Quantus' `explain_func`: relevance in the shape of the pictures. `explain_func_kwargs`: a method's name and its options."""
    options.pop("device", None)
    x = np.asarray(inputs).astype(model._score.dtype)
    index: Ints = np.asarray(targets, np.int64)
    (relevance,) = model.explainer(method, **options)(x, index).relevance.values()
    return np.asarray(relevance)


@contextmanager
def admitted() -> Iterator[None]:
    """While it lasts, Quantus' metrics take a `QuantusModel` as their model; other models go on as before.

    Quantus wraps every model by one function, which knows torch and TensorFlow alone and cannot be extended; it is replaced and
    put back afterwards. Not for use in several threads at once. Raises MethodError: Quantus is not installed.
    """
    try:
        places = [import_module("quantus.helpers.utils"), import_module("quantus.functions.explanation_func")]
    except ImportError as error:
        raise MethodError('Quantus is not installed: pip install "onnx-explain[eval]".') from error
    wrap = places[0].get_wrapped_model

    def wrapped(model: Any, *args: Any, **given: Any) -> Any:
        if not isinstance(model, QuantusModel):
            return wrap(model, *args, **given)
        # Quantus' own order of arguments: model, channel_first, softmax
        chosen = given.get("softmax", args[1] if len(args) > 1 else None)
        return model if chosen is None else model.with_softmax(chosen)

    for place in places:
        place.get_wrapped_model = wrapped  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for place in places:
            place.get_wrapped_model = wrap  # type: ignore[attr-defined]
