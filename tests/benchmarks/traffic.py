"""What one forward of the 14B transformer asks of a GPU: kernels, bytes moved and live activations, without a GPU.

    python tests/benchmarks/traffic.py                       # 832x480 and 1280x720
    python tests/benchmarks/traffic.py --size 1024x704 --names
    python tests/benchmarks/traffic.py --compiled            # and what torch.compile makes of it, block by block

The forward runs on the meta device, at real shapes and without numbers, under a dispatch mode that counts. A kernel is
an operator that makes or writes a tensor; views cost nothing. Bytes are those that elementwise kernels, norms and
copies read and write; of matrix products and attention only the time matters, and it is the same for everybody. The
peak counts tensors made during the forward, not weights, and not what was prepared once for the clip: that is a column
of its own.

Compiled, a block's kernels are those of torch's inductor for a CPU at real shapes, as it has fused them and before they
are built; each reads what it takes and writes what others need once. What is outside of blocks stays as it is. Prints
a table and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor
from torch._inductor.graph import GraphLowering
from torch._inductor.ir import MultiOutput
from torch._inductor.scheduler import ExternKernelSchedulerNode, NopKernelSchedulerNode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from s2v_core.config import WAN_S2V_14B, TransformerConfig
from s2v_core.geometry import TokenLayout, VideoSize
from s2v_core.models.audio import AudioContext
from s2v_core.models.dit import ClipContext, WanS2VTransformer
from s2v_core.models.dit_blocks import Block, BlockPart, PromptKeys
from s2v_core.ops import layers
from s2v_core.ops.attention import sdpa
from s2v_core.ops.layers import Factory

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "attention")
NO_KERNEL = ("empty", "empty_like", "empty_strided", "detach", "_unsafe_view", "lift_fresh", "sym_size")


@torch.library.custom_op("s2v_traffic::attention", mutates_args=())
def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Stands for one attention kernel: on the meta device torch does not choose any."""
    raise NotImplementedError("counted, never computed")


@torch.library.custom_op("s2v_traffic::rms_norm", mutates_args=())
def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """Stands for the kernel that torch has on CUDA (2.9 and newer) and takes apart on the meta device."""
    raise NotImplementedError("counted, never computed")


@attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.empty(q.shape, dtype=q.dtype, device=q.device)


@rms_norm.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return torch.empty_like(x)


class RMSNorm(layers.RMSNorm):
    def forward(self, input: Tensor) -> Tensor:
        return rms_norm(input, self.weight)


class CUDALayers:
    """Our layers as they run on CUDA."""

    Linear, Conv1d, Conv3d = layers.Linear, layers.Conv1d, layers.Conv3d
    LayerNorm, RMSNorm, Embedding = layers.LayerNorm, RMSNorm, layers.Embedding


def num_bytes(tensors: Sequence[Tensor]) -> int:
    """Of the numbers themselves: what is only expanded is not there more often."""
    total = 0
    for t in tensors:
        sizes = [size for size, stride in zip(t.shape, t.stride(), strict=True) if stride]
        total += math.prod(sizes) * t.element_size()
    return total


class Traffic(TorchDispatchMode):
    """Counts while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = 0
        self.moved = 0   # bytes, by everything but products
        self.peak = 0    # bytes
        self.by_name: dict[str, list[int]] = {}   # kernels, bytes
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}   # storages made inside, with their bytes

    def __torch_dispatch__(
        self, func: torch._ops.OpOverload, types: Sequence[type], args: tuple = (), kwargs: dict | None = None
    ) -> object:
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        out = func(*args, **(kwargs or {}))
        made = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        self._remember(made, {t.untyped_storage()._cdata for t in given})
        name = func._schema.name.split("::")[-1]
        if not func.is_view and name not in NO_KERNEL:
            self._count(name, given, made)
        return out

    def _count(self, name: str, given: list[Tensor], made: list[Tensor]) -> None:
        written = {id(t) for t in made}
        updates = name.endswith("_") and name != "copy_"   # reads what it writes
        read = [t for t in given if updates or id(t) not in written]
        moved = 0 if any(product in name for product in PRODUCTS) else num_bytes(read) + num_bytes(made)
        self.kernels += 1
        self.moved += moved
        entry = self.by_name.setdefault(name, [0, 0])
        entry[0] += 1
        entry[1] += moved

    def _remember(self, made: list[Tensor], given: set[int]) -> None:
        """Add what is new, forget what is gone."""
        self._made = {key: entry for key, entry in self._made.items() if not entry[0].expired()}
        for tensor in made:
            storage = tensor.untyped_storage()
            if storage._cdata not in given and storage._cdata not in self._made:
                self._made[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.peak = max(self.peak, sum(size for _, size in self._made.values()))


# ---- compiled ------------------------------------------------------------------------------------------------------


class Counted(BaseException):
    """Ends a compilation whose kernels are known."""


def kernels_of(graph: GraphLowering) -> tuple[int, int]:
    """How many kernels inductor makes of a graph, products included, and the bytes that all but products move."""
    graph.init_wrapper_code()
    graph._update_scheduler()
    kernels = moved = 0
    for node in graph.scheduler.nodes:
        if isinstance(node, NopKernelSchedulerNode) or isinstance(node.node, MultiOutput):
            continue
        kernels += 1
        called = getattr(node.node, "python_kernel_name", None) if isinstance(node, ExternKernelSchedulerNode) else ""
        if not any(product in str(called) for product in PRODUCTS):
            moved += node.get_read_write_buffers_sizes()
    return kernels, moved


def compiled_block(config: TransformerConfig, num_tokens: int, num_video: int, part: BlockPart) -> tuple[int, int]:
    """Kernels of one compiled block, and the bytes they move. Its tensors are made and never touched."""
    found: list[tuple[int, int]] = []

    def count(graph: GraphLowering) -> None:
        found.append(kernels_of(graph))
        raise Counted

    block = Block(config, Factory(layers, "meta", torch.bfloat16), sdpa).to_empty(device="cpu").requires_grad_(False)
    x, time = torch.empty(1, num_tokens, config.dim), torch.empty(1, 6, 2, config.dim)
    rope = torch.empty(num_tokens, 1, config.head_dim // 2, 2)
    prompt = PromptKeys(*[torch.empty(1, config.text_len, config.num_heads, config.head_dim, dtype=torch.bfloat16)] * 2)
    GraphLowering.compile_to_module = count
    torch._inductor.config.force_disable_caches = True
    with torch.no_grad(), suppress(Counted):
        torch.compile(block, fullgraph=True)(x, time, rope, prompt, num_video, part)
    if not found:
        raise RuntimeError("torch.compile did not get as far as kernels")
    return found[0]


def compiled_blocks(layout: TokenLayout) -> dict[BlockPart, tuple[int, int]]:
    """`compiled_block` of a whole one and of the last, by this script in a process of its own: torch.compile makes
    Python hold a call's arguments longer, and so would change what else is counted here."""
    asked = ["--blocks", str(layout.total), str(layout.num_video)]
    where = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, __file__, *asked], env=where, check=True, stdout=subprocess.PIPE, text=True)
    return {part: tuple(found) for part, found in json.loads(done.stdout.splitlines()[-1]).items()}


@torch.no_grad()
def eager_block(model: WanS2VTransformer, clip: ClipContext, i: int, part: BlockPart) -> Traffic:
    x = torch.empty(1, clip.layout.total, model.config.dim, device="meta")
    time = model.embed_time(torch.empty(1, device="meta")).modulation
    with Traffic() as traffic:
        model.blocks[i](x, time, clip.rope, clip.prompt.keys_values[i], clip.layout.num_video, part)
    return traffic


def compiled_forward(model: WanS2VTransformer, clip: ClipContext, whole: Traffic) -> tuple[int, int]:
    """Kernels and bytes of a forward whose blocks are compiled; `whole` is the forward's as it is."""
    kernels, moved = whole.kernels, whole.moved
    for part, (fewer, less) in compiled_blocks(clip.layout).items():
        count = 1 if part == "video" else model.config.num_layers - 1
        before = eager_block(model, clip, 0, part)
        kernels += count * (fewer - before.kernels)
        moved += count * (less - before.moved)
    return kernels, moved


def make_clip(model: WanS2VTransformer, size: VideoSize, num_latents: int) -> ClipContext:
    config = model.config
    grid = size.latent_grid(num_latents)

    def latents(frames: int) -> Tensor:
        return torch.empty(1, config.in_channels, frames, grid.height, grid.width, device="meta")

    return model.prepare_clip(
        prompt=model.prepare_prompt(torch.empty(1, config.text_len, config.text_dim, device="meta")),
        num_latents=num_latents,
        reference_latent=latents(1),
        audio_features=torch.empty(1, config.num_audio_layers, config.audio_dim, 4 * num_latents, device="meta"),
        motion_latents=latents(19),
    )


def prepared_bytes(clip: ClipContext) -> int:
    """What is kept for a clip over its steps."""
    heard = [part for sound in clip.sounds for layer in sound.layers for part in fields_of(layer)]
    pairs = [t for pair in clip.prompt.keys_values for t in (pair.keys, pair.values)]
    return num_bytes([clip.rope, clip.video_offset, clip.condition_tokens, *pairs, *heard])


def fields_of(layer: AudioContext) -> list[Tensor]:
    return [t for t in (layer.keys, layer.values, layer.shift, layer.scale) if t is not None]


@torch.no_grad()
def measure(model: WanS2VTransformer, size: VideoSize, num_latents: int = 20) -> tuple[Traffic, ClipContext]:
    """One forward of a continuing clip with its timestep prepared."""
    clip = make_clip(model, size, num_latents)
    grid = clip.grid
    latents = torch.empty(1, model.config.in_channels, grid.frames, grid.height, grid.width, device="meta")
    time = model.embed_time(torch.empty(1, device="meta"))
    with Traffic() as traffic:
        model(latents, time, clip)
    return traffic, clip


def make_model(
    dtype: torch.dtype = torch.bfloat16, config: TransformerConfig = WAN_S2V_14B.transformer
) -> WanS2VTransformer:
    return WanS2VTransformer(config, layers=CUDALayers, attention=attention, device="meta", dtype=dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", nargs="+", default=["832x480", "1280x720"], help="WIDTHxHEIGHT in pixels")
    parser.add_argument("--compiled", action="store_true", help="also with blocks that torch.compile has compiled")
    parser.add_argument("--names", action="store_true", help="also every operator's share")
    parser.add_argument("--blocks", nargs=2, type=int, metavar=("TOKENS", "VIDEO"), help="only compile; for --compiled")
    args = parser.parse_args()
    if args.blocks:
        config = WAN_S2V_14B.transformer
        print(json.dumps({part: compiled_block(config, *args.blocks, part) for part in ("all", "video")}))
        return
    model, rows = make_model(), []
    print(f"{'size':>10} {'tokens':>8} {'kernels':>8} {'elementwise GB':>15} {'peak live GB':>13} {'prepared GB':>12}")
    for text in args.size:
        width, height = (int(side) for side in text.split("x"))
        traffic, clip = measure(model, VideoSize(width=width, height=height))
        row = {
            "size": text,
            "tokens": clip.layout.total,
            "kernels": traffic.kernels,
            "elementwise_gb": round(traffic.moved / 1e9, 1),
            "peak_live_gb": round(traffic.peak / 1e9, 2),
            "prepared_gb": round(prepared_bytes(clip) / 1e9, 2),
        }
        rows.append(row)
        if args.compiled:
            kernels, moved = compiled_forward(model, clip, traffic)
            row["compiled_kernels"], row["compiled_elementwise_gb"] = kernels, round(moved / 1e9, 1)
            row["compiled_of_eager"] = round(moved / traffic.moved, 3)
        print("{size:>10} {tokens:8} {kernels:8} {elementwise_gb:15} {peak_live_gb:13} {prepared_gb:12}".format(**row))
        if args.compiled:
            line = "{compiled_kernels:8} {compiled_elementwise_gb:15} {compiled_of_eager:12} of it"
            print(f"{'compiled':>19} " + line.format(**row))
        if args.names:
            for name, (kernels, moved) in sorted(traffic.by_name.items(), key=lambda item: -item[1][1]):
                print(f"{name:>32} {kernels:8} {moved / 1e9:10.1f} GB")
    print(json.dumps({"dtype": "bf16", "torch": torch.__version__, "sizes": rows}))


if __name__ == "__main__":
    main()
