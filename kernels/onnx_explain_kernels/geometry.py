"""Shapes of convolutions, dense layers and pools, as plain numbers; no arrays and no GPU.

Everything is two-dimensional inside: one spatial axis becomes (1, length), and a dense layer a 1x1 convolution of a 1x1 map.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

from onnx_explain_kernels.errors import UnsupportedShape

Pair = tuple[int, int]
Layout = Literal["nchw", "nhwc"]
NARROW = 8  # filters (forward: channels) per group
LIMIT = 2**31 - 4096  # offsets within a sample, and of rows behind a tile's last one, are 32-bit in the kernels


def pair(values: tuple[int, ...], default: int) -> Pair:
    """One number per spatial axis as two: a missing first axis is filled with `default`."""
    if len(values) == 1:
        return default, int(values[0])
    if len(values) == 2:
        return int(values[0]), int(values[1])
    raise UnsupportedShape(f"{len(values)} spatial axes have no kernel: one or two have.")


def strides_of(layout: Layout, channels: int, size: Pair) -> tuple[int, int, int, int]:
    """Element strides (sample, channel, row, column) of a dense tensor."""
    height, width = size
    if layout == "nchw":
        return channels * height * width, height * width, width, 1
    if layout == "nhwc":
        return height * width * channels, 1, width * channels, channels
    raise UnsupportedShape(f"Layout {layout!r} is unknown: 'nchw' and 'nhwc' are.")


@dataclass(frozen=True)
class Conv:
    """A convolution's forward geometry: x [samples, channels, *size] to y [samples, filters, *out].

    `begin`: padding in front of each axis; what lies behind follows from `out`. Made by `Conv.of` or `Conv.dense`.
    """

    samples: int
    channels: int
    filters: int
    size: Pair
    out: Pair
    kernel: Pair
    strides: Pair = (1, 1)
    begin: Pair = (0, 0)
    dilations: Pair = (1, 1)
    group: int = 1

    def __post_init__(self) -> None:
        """Refuse what no kernel can index.

        Raises:
            UnsupportedShape: a size below one, groups that do not divide, or more than 2³¹ elements in one sample.

        """
        sizes = (self.samples, self.channels, self.filters, *self.size, *self.out, *self.kernel, self.group)
        if min(*sizes, *self.strides, *self.dilations) < 1 or min(self.begin) < 0:
            raise UnsupportedShape(f"{self}: every size, stride and dilation is at least 1, every pad at least 0.")
        if self.channels % self.group or self.filters % self.group:
            raise UnsupportedShape(f"{self}: {self.group} groups do not divide the channels.")
        if max(self.channels * prod(self.size), self.filters * prod(self.out), self.weights) >= LIMIT:
            raise UnsupportedShape(f"{self}: one sample or the weight has 2³¹ elements or more.")

    @staticmethod
    def of(
        samples: int,
        channels: int,
        filters: int,
        size: tuple[int, ...],
        kernel: tuple[int, ...],
        *,
        out: tuple[int, ...] | None = None,
        strides: tuple[int, ...] | None = None,
        pads: tuple[int, ...] | None = None,
        dilations: tuple[int, ...] | None = None,
        group: int = 1,
    ) -> Conv:
        """A convolution of one or two spatial axes, attributes as ONNX spells them.

        `pads`: all begins, then all ends. `out` follows from them where it is not given.
        """
        n = len(size)
        ones = (1,) * n
        strides, dilations, pads = strides or ones, dilations or ones, pads or (0,) * 2 * n
        if out is None:
            out = tuple(
                (i + b + e - d * (k - 1) - 1) // s + 1
                for i, b, e, d, k, s in zip(size, pads[:n], pads[n:], dilations, kernel, strides)
            )
        return Conv(
            samples,
            channels,
            filters,
            pair(size, 1),
            pair(out, 1),
            pair(kernel, 1),
            pair(strides, 1),
            pair(pads[:n], 0),
            pair(dilations, 1),
            group,
        )

    @staticmethod
    def dense(rows: int, inputs: int, outputs: int) -> Conv:
        """A dense layer: x [rows, inputs] to y [rows, outputs], weight [outputs, inputs]."""
        return Conv(rows, inputs, outputs, (1, 1), (1, 1), (1, 1))

    @property
    def weights(self) -> int:
        """Entries of the weight."""
        return self.filters * (self.channels // self.group) * prod(self.kernel)

    @property
    def narrow(self) -> bool:
        """Whether its groups are too narrow for the matrix unit (depthwise): the kernel without it takes them."""
        return self.group > 1 and self.filters // self.group <= NARROW

    @property
    def shallow(self) -> bool:
        """As `narrow`, for a pass forward: its sums run over few channels."""
        return self.group > 1 and self.channels // self.group <= NARROW

    @property
    def operations(self) -> int:
        """Floating-point operations of one pass over the layer, forward or back: two per multiply-add."""
        return 2 * self.samples * prod(self.out) * self.weights


@dataclass(frozen=True)
class Pool:
    """A pool's forward geometry: x [samples, channels, *size] to y [samples, channels, *out].

    `end` is the declared padding behind; under ceil_mode the last window may reach past it. `include_pad`: declared
    padding counts in the divisor of an average.
    """

    samples: int
    channels: int
    size: Pair
    out: Pair
    kernel: Pair
    strides: Pair = (1, 1)
    begin: Pair = (0, 0)
    end: Pair = (0, 0)
    dilations: Pair = (1, 1)
    include_pad: bool = False

    def __post_init__(self) -> None:
        """Refuse what no kernel can index.

        Raises:
            UnsupportedShape: a size below one, or more than 2³¹ elements in one sample.

        """
        sizes = (self.samples, self.channels, *self.size, *self.out, *self.kernel)
        if min(*sizes, *self.strides, *self.dilations) < 1 or min(*self.begin, *self.end) < 0:
            raise UnsupportedShape(f"{self}: every size, stride and dilation is at least 1, every pad at least 0.")
        if self.channels * max(prod(self.size), prod(self.out)) >= LIMIT:
            raise UnsupportedShape(f"{self}: one sample has 2³¹ elements or more.")

    @staticmethod
    def of(
        samples: int,
        channels: int,
        size: tuple[int, ...],
        kernel: tuple[int, ...],
        *,
        out: tuple[int, ...] | None = None,
        strides: tuple[int, ...] | None = None,
        pads: tuple[int, ...] | None = None,
        dilations: tuple[int, ...] | None = None,
        ceil_mode: bool = False,
        include_pad: bool = False,
    ) -> Pool:
        """A pool of one or two spatial axes, attributes as ONNX spells them; as in ONNX Runtime no window starts
        behind the input and its leading pads.
        """
        n = len(size)
        ones = (1,) * n
        strides, dilations, pads = strides or ones, dilations or ones, pads or (0,) * 2 * n
        if out is None:
            found = []
            for i, b, e, d, k, s in zip(size, pads[:n], pads[n:], dilations, kernel, strides):
                room = i + b + e - d * (k - 1) - 1
                count = (-(-room // s) if ceil_mode else room // s) + 1
                found.append(count - 1 if ceil_mode and (count - 1) * s >= i + b else count)
            out = tuple(found)
        return Pool(
            samples,
            channels,
            pair(size, 1),
            pair(out, 1),
            pair(kernel, 1),
            pair(strides, 1),
            pair(pads[:n], 0),
            pair(pads[n:], 0),
            pair(dilations, 1),
            include_pad,
        )

    @property
    def elements(self) -> tuple[int, int]:
        """How many elements x and y have."""
        planes = self.samples * self.channels
        return planes * prod(self.size), planes * prod(self.out)
