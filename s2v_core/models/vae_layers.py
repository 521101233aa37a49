"""The layers of the causal video autoencoder: frames in, frames out, their past in a `Carry`.

Knows no latents, no streams and no settings of a model. Inference only: tensors of its own are changed in place.

B batch, C channels, H W cells. Frames are lists of [B, C, H, W] tensors in channels-last memory, oldest first. Every
frame goes through the same operations of the same shapes however a video is cut into calls, so results are equal bit
for bit. `wanted` is how many of the newest frames somebody will look at; a layer makes no others, and `needed`
says how many it must be given for them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Frames = list[Tensor]
EVERY = 1 << 30   # wanted: all there are


class Carry:
    """What a stream keeps from call to call: at most two frames a layer, and kernels brought into working form.

    A picture may be shared out by rows to several who compute: then frames are an own run of rows, and a subclass
    brings what layers need of the others'.
    """

    rows_around = 1   # rows of zeros that a 3x3 convolution puts above and below its frames

    def __init__(self) -> None:
        self.is_first = True   # now comes the stream's first frame, which no layer doubles or pairs in time
        self.past: dict[nn.Module, Frames] = {}
        self.kernels: dict[tuple[nn.Module, str], Tensor] = {}

    def kernel(self, layer: nn.Module, form: str, make: Callable[[Tensor], Tensor]) -> Tensor:
        """The layer's weight in one of its forms [co, ci, kh, kw], computed once, in float32."""
        if (layer, form) not in self.kernels:
            kernel = make(layer.weight.float()).to(layer.weight.dtype)
            self.kernels[layer, form] = kernel.contiguous(memory_format=torch.channels_last)
        return self.kernels[layer, form]

    def edged(self, frames: Frames, *, above: bool = True) -> Frames:
        """Frames with the rows next to them that `rows_around` leaves out: one below, and one `above`."""
        return frames

    def all_cells(self, x: Tensor) -> Tensor:
        """[B, 1, n, C] of own cells -> [B, 1, N, C] of the whole picture's."""
        return x


def mix(x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    """A 1x1 convolution, done as what it is in channels-last memory: a matrix product. kernel: [co, ci, 1, 1]."""
    return F.linear(x.permute(0, 2, 3, 1), kernel.flatten(1), bias).permute(0, 3, 1, 2)


def newest(frames: Frames, wanted: int) -> Frames:
    return frames[max(0, len(frames) - max(0, wanted)) :]


class CausalConv(nn.Conv3d):
    """A convolution over a frame and the two before it; before the first frame there are zeros."""

    def __init__(self, num_in: int, num_out: int, side: int = 3) -> None:
        super().__init__(num_in, num_out, (3, side, side))

    def forward(self, frames: Frames, carry: Carry, wanted: int = EVERY) -> Frames:
        seen = carry.past.get(self, []) + (frames if self.kernel_size[1] == 1 else carry.edged(frames))
        carry.past[self] = seen[-2:]
        first = len(seen) - len(newest(frames, wanted))
        if (len(seen) - first) % 2:
            return [self.single(seen[max(0, i - 2) : i + 1], carry) for i in range(first, len(seen))]
        return [out for i in range(first, len(seen), 2) for out in self._pair(seen[max(0, i - 2) : i + 2], carry)]

    def single(self, taps: Frames, carry: Carry) -> Tensor:
        """The output at the last of one to three frames."""
        if len(taps) == 1:
            return self._conv2d(taps[0], self.weight[:, :, 2], carry, self.bias)
        kernel = carry.kernel(self, "single", lambda weight: weight.transpose(1, 2).flatten(1, 2))
        return self._conv2d(torch.cat(taps, 1), kernel[:, -len(taps) * self.in_channels :], carry, self.bias)

    def _pair(self, taps: Frames, carry: Carry) -> Frames:
        """The outputs at the last two of two to four frames, by four 2-D convolutions; one by one they take six.

        Source: Winograd's minimal filtering F(2, 3), here along time; Lavin and Gray, arXiv 1509.09308, section 4.1.
        """
        a, b, c, d = [taps[0].new_zeros(())] * (4 - len(taps)) + taps
        outer, plus, minus, inner = carry.kernel(self, "pair", _pair_kernels).chunk(4)
        mixed = a - c
        even = self._conv2d(mixed, outer, carry)
        odd = self._conv2d(torch.sub(b, d, out=mixed), inner, carry)
        plus = self._conv2d(torch.add(b, c, out=mixed), plus, carry, self.bias)
        minus = self._conv2d(torch.sub(c, b, out=mixed), minus, carry)
        return [even.add_(plus).add_(minus), torch.sub(plus, minus, out=minus).sub_(odd)]

    def _conv2d(self, frame: Tensor, kernel: Tensor, carry: Carry, bias: Tensor | None = None) -> Tensor:
        if kernel.shape[2:] == (1, 1):
            return mix(frame, kernel, bias)
        return F.conv2d(frame, kernel, bias, padding=(carry.rows_around, 1))


def _pair_kernels(weight: Tensor) -> Tensor:
    oldest, middle, now = weight.unbind(2)
    return torch.cat([oldest, (oldest + middle + now) / 2, (oldest - middle + now) / 2, now])


class PointConv(nn.Conv3d):
    """A linear map of every cell's channels."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__(num_in, num_out, 1)

    def forward(self, frame: Tensor) -> Tensor:
        return mix(frame, self.weight[:, :, 0], self.bias)


class ChannelNorm(nn.Module):
    """Every cell's channels scaled to unit mean square, then by `gamma`; in float32, and rounded once."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(shape))

    def forward(self, x: Tensor) -> Tensor:
        return self._scaled(x).to(x.dtype)

    def _scaled(self, x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32).clamp_(min=1e-12)
        return (x * length.reciprocal_().mul_(math.sqrt(x.shape[1]))).mul_(self.gamma.float().view(-1, 1, 1))


class NormSiLU(ChannelNorm):
    """What stands before every causal convolution."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, 1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self._scaled(x), inplace=True).to(x.dtype)


class ResidualBlock(nn.Module):
    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        self.residual = nn.ModuleDict({
            "0": NormSiLU(num_in),
            "2": CausalConv(num_in, num_out),
            "3": NormSiLU(num_out),
            "6": CausalConv(num_out, num_out),
        })  # fmt: skip
        self.shortcut = PointConv(num_in, num_out) if num_in != num_out else nn.Identity()

    @staticmethod
    def needed(wanted: int) -> int:
        return wanted + 4

    def forward(self, frames: Frames, carry: Carry, wanted: int = EVERY) -> Frames:
        out: Frames = []
        for i in range(0, len(frames), 2):   # two at a time, for what lies between the convolutions takes much memory
            later = max(0, len(frames) - i - 2)
            out += self._two(frames[i : i + 2], carry, wanted - later)
        return out

    def _two(self, frames: Frames, carry: Carry, wanted: int) -> Frames:
        norm1, conv1, norm2, conv2 = self.residual.values()
        out = conv1([norm1(x) for x in frames], carry, wanted + 2)
        out = [norm2(x) for x in out]
        out = conv2(out, carry, wanted)
        return [y.add_(self.shortcut(x)) for x, y in zip(newest(frames, wanted), out, strict=True)]


class Attention(nn.Module):
    """Self-attention among the cells of one frame, one head."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(dim, 1, 1)
        self.to_qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.proj = nn.Conv2d(dim, dim, 1)

    @staticmethod
    def needed(wanted: int) -> int:
        return wanted

    def forward(self, frames: Frames, carry: Carry, wanted: int = EVERY) -> Frames:
        return [self._attend(x, carry) for x in newest(frames, wanted)]

    def _attend(self, x: Tensor, carry: Carry) -> Tensor:
        qkv = mix(self.norm(x), self.to_qkv.weight, self.to_qkv.bias).flatten(2).mT.unsqueeze(1)   # [B, 1, H*W, 3C]
        q, kv = qkv.split([x.shape[1], 2 * x.shape[1]], -1)
        out = F.scaled_dot_product_attention(q, *carry.all_cells(kv).chunk(2, -1)).squeeze(1).mT   # [B, C, H*W]
        return mix(out.unflatten(2, x.shape[2:]), self.proj.weight, self.proj.bias).add_(x)


class Downsample(nn.Module):
    """Half the height and width, rounded down; with `in_time` also half the frames, the stream's first one apart."""

    def __init__(self, dim: int, *, in_time: bool) -> None:
        super().__init__()
        self.resample = nn.ModuleDict({"1": nn.Conv2d(dim, dim, 3, stride=2)})
        self.time_conv = CausalConv(dim, dim, 1) if in_time else None

    def forward(self, frames: Frames, carry: Carry) -> Frames:
        frames = carry.edged(frames, above=False)
        frames = [self.resample["1"](F.pad(x, (0, 1, 0, carry.rows_around))) for x in frames]
        if self.time_conv is None:
            return frames
        seen = carry.past.get(self, []) + frames
        carry.past[self] = seen[-1:]
        if carry.is_first:
            return frames
        return [self.time_conv.single(seen[i : i + 3], carry) for i in range(0, len(seen) - 2, 2)]


class Upsample(nn.Module):
    """Twice the height and width, half the channels; with `in_time` twice the frames, the stream's first one apart.

    Args:
        rate: frames per latent frame that come in; only for `in_time`.
    """

    def __init__(self, dim: int, *, in_time: bool, rate: int) -> None:
        super().__init__()
        self.rate = rate
        self.resample = nn.ModuleDict({"1": nn.Conv2d(dim, dim // 2, 3, padding=1)})
        self.time_conv = CausalConv(dim, 2 * dim, 1) if in_time else None

    def needed(self, wanted: int) -> int:
        return wanted if self.time_conv is None else self._to_double(wanted) + 2

    def _to_double(self, wanted: int) -> int:
        """How many frames to double: those of whole latent frames, for frames made in pairs stay in the same pairs."""
        return math.ceil(wanted / (2 * self.rate)) * self.rate

    def forward(self, frames: Frames, carry: Carry, wanted: int = EVERY) -> Frames:
        if self.time_conv is not None and not carry.is_first:   # so the first frame is in no later one's past either
            doubled = self.time_conv(frames, carry, self._to_double(wanted))
            frames = [x for both in doubled for x in both.chunk(2, 1)]
        return [self._double(x, carry) for x in carry.edged(newest(frames, wanted))]

    def _double(self, x: Tensor, carry: Carry) -> Tensor:
        """Nearest-neighbour doubling and the 3x3 convolution at once: a 2x2 kernel for each of a cell's children."""
        conv = self.resample["1"]
        kernel = carry.kernel(conv, "children", _child_kernels)
        children = F.conv2d(x, kernel, conv.bias.repeat(4), padding=(carry.rows_around, 1))   # [B, 4C, H+1, W+1]
        B, C, H, W = len(x), conv.out_channels, children.shape[2] - 1, children.shape[3] - 1
        out = x.new_empty(B, 2 * H, 2 * W, C).permute(0, 3, 1, 2)
        for i, child in enumerate(children.chunk(4, 1)):
            row, column = divmod(i, 2)
            out[:, :, row::2, column::2] = child[:, :, row : row + H, column : column + W]
        return out


def _child_kernels(weight: Tensor) -> Tensor:
    """[co, ci, 3, 3] -> [4*co, ci, 2, 2]: a 3x3 window over doubled cells meets only 2x2 different ones."""
    top_left, bottom_right = weight.new_tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])
    halves = (top_left, bottom_right)
    return torch.cat([rows @ weight @ columns.mT for rows in halves for columns in halves])
