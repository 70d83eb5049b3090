"""Kernels that follow one another as one CUDA graph: launched together, with the addresses of the first run.

Only kernels are captured. ONNX Runtime's sessions run as they are: the provider may allocate or wait while it runs, which
a capture does not allow.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from onnx_explain.backends.gpu.device import Device


class Replayed:
    """A fixed sequence of launches: run as it is at first, captured at the second time, replayed from then on."""

    def __init__(self, device: Device, say: Callable[[str], None]) -> None:
        """For one sequence whose tensors keep their places; `say` takes the sentence when a capture is refused."""
        self._device, self._say = device, say
        self._runs = 0
        self._graph: Any = None

    def run(self, work: Callable[[int], None]) -> None:
        """Put the sequence on the device's stream; `work` launches it kernel by kernel on the stream that it is given."""
        from onnx_explain_kernels.errors import DeviceError

        device = self._device
        self._runs += 1
        if self._runs == 2:  # the driver may load code at a kernel's first launch, which no capture holds
            try:
                self._graph = device.driver.capture(work)
                weakref.finalize(self, device.driver.release, self._graph).atexit = False
            except DeviceError as error:
                self._say(f"CUDA graphs are off: {str(error).rstrip('.')}.")
        if self._graph is None:
            work(device.stream)
        else:
            device.driver.replay(self._graph, device.stream)
