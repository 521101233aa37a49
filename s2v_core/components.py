"""The four models of a pipeline: found at once, each read when it is first needed, each in its place.

Knows which model does what and where it runs; not what a job is or in which order its parts come.
"""

from __future__ import annotations

import gc
import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from .checkpoints.files import open_weights
from .checkpoints.loading import load_model, main_dtype, read_component, takes_eight_bits
from .checkpoints.lora import Lora, apply_lora, load_lora, required_to_fit
from .checkpoints.official import ModelFiles, find_components
from .conditioning.text import Tokenizer, byte_tokenizer, encode_prompt, folder_tokenizer, sentencepiece_tokenizer
from .config import ModelConfig, TransformerConfig
from .denoiser import TransformerDenoiser, num_evaluations
from .errors import ConfigError
from .geometry import SPATIAL_STRIDE, TokenLayout, VideoSize, num_latent_frames, token_layout
from .models.cost import decoder_room, step_cache_bytes
from .models.dit import WanS2VTransformer
from .models.sound_encoder import SoundEncoder
from .models.text_encoder import build_text_encoder
from .models.tiles import TiledVAE, tiled_share
from .models.vae import WanVAE
from .ops.attention import AttentionFn, make_attention
from .ops.eight_bit import EightBit, make_eight_bit
from .pace import ClipTime, Copies, seconds_per_step, time_block, time_codec, time_copy
from .parallel.codec import CodecPart, SharedCodec
from .parallel.layout import denoising_layout, sequence_layout
from .parallel.ranks import Ranks, joined, launched, make_ranks
from .parallel.together import Lead, follow, share_denoising
from .placement import (
    DTYPES,
    OFFLOADS,
    BlockStreamer,
    MemoryEstimate,
    choose_device,
    choose_dtype,
    device_of_process,
    free_memory,
    num_bytes,
    on_device,
    release_cached_memory,
)
from .planning import HEADROOM, LIBRARIES, RGB, Way, Work, choose_way, frames_in_ram
from .types import ClipInputs, ClipSettings, Denoiser, SamplerSettings, StepCallback, VideoCodec

log = logging.getLogger(__name__)

BUNDLED = Path(__file__).parent / "bundled"
CAST = ("F64", "F32", "F16", "BF16")   # numbers that are brought into the dtype asked for; others stay packed
VAE_TILES = (1, 2, 4, 8)   # that a picture may be cut into, one after the other


class Components:
    """Text encoder, sound encoder, autoencoder and transformer of one model, on one machine.

    Make one with `find`; nothing is read before it is used.
    """

    def __init__(
        self,
        files: ModelFiles,
        *,
        device: torch.device,
        dtype: torch.dtype | None,
        attention: AttentionFn,
        offload: str,
        loras: Sequence[tuple[Path, Lora, float]],
        load_weights: bool,
        eight_bit: EightBit | None = None,
        vae_dtype: torch.dtype = torch.float32,
    ) -> None:
        self.files = files
        self.config: ModelConfig = files.config
        self.device = device
        self.attention = attention
        self.loras = tuple(loras)
        self.load_weights = load_weights
        self.eight_bit = eight_bit
        self.vae_dtype = vae_dtype
        self.ranks = self._everyone = Ranks()   # one process, unless it works `together` with others
        self.lead: Lead | None = None   # of those, where this one leads
        self._weights = {name: _total_bytes(path, name) for name, path in self._paths().items()}
        self._stored_dtype = main_dtype(read_component(files.transformer, "transformer").values())
        self._asked_dtype = dtype
        self.dtype = self._choose_dtype(dtype)
        if eight_bit is not None:
            self._weights["transformer"] = _bytes_in_8_bits(files.transformer, eight_bit)
        self.set_offload(offload)
        self.way = Way(dtype=self.dtype, offload=self.offload)   # until an estimate chooses one

    @classmethod
    def find(
        cls,
        model: Path | None,
        *,
        dtype: torch.dtype | None,
        device: str | torch.device | None,
        attention: str,
        offload: str,
        loras: Sequence[tuple[Path, float]],
        load_weights: bool,
        matmul: str = "off",
        vae_dtype: torch.dtype = torch.float32,
    ) -> Components:
        """Find and identify a model's files; None is the bundled one.

        Raises: CheckpointError, ConfigError.
        """
        where, (_, local_rank, num_processes) = choose_device(device), launched()
        files = find_components(BUNDLED if model is None else model)
        read = [(path, load_lora(path), strength) for path, strength in loras]
        _check_loras(files.config.transformer, [lora for _, lora, _ in read])
        return cls(
            files,
            device=device_of_process(where, local_rank) if num_processes > 1 else where,
            dtype=dtype,
            attention=make_attention(attention),
            offload=offload,
            loras=read,
            load_weights=load_weights,
            eight_bit=make_eight_bit(matmul),
            vae_dtype=vae_dtype,
        )

    def set_offload(self, what: str) -> None:
        """"none", "model", "blocks", or "auto": as little as fits the device."""
        if what not in OFFLOADS:
            raise ConfigError(f"offload must be one of {', '.join(OFFLOADS)}; got {what!r}")
        self._asked_offload = what
        if what == "auto":
            what = self._offload_that_fits()
        self.offload = "none" if self.device.type == "cpu" else what

    def identity(self) -> dict[str, object]:
        """What tells these models and their arithmetic from others: a continued run must have the same."""
        return {
            "files": {name: _digest(path) for name, path in self._paths().items()},
            "loras": [[_digest(lora.path), strength] for _, lora, strength in self.loras],
            "config": hashlib.sha256(repr(asdict(self.config)).encode()).hexdigest(),
            "device": self.device.type,
            "dtype": str(self.dtype),
            "matmul": "off" if self.eight_bit is None else self.eight_bit.name,
            "vae_dtype": str(self.vae_dtype),
        }

    # ---- what they do ---------------------------------------------------------------------------------------------

    def encode_prompts(self, prompts: Sequence[str]) -> list[Tensor]:
        """Each prompt to [1, L, text_dim]. The text encoder is read for this and let go again."""
        self._require_weights()
        config = self.config.text_encoder
        encoder = load_model(self.files.text_encoder, "text_encoder", lambda: build_text_encoder(config))
        self._make_room(num_bytes(encoder))
        tokenizer, max_tokens = self._tokenizer(), self.config.transformer.text_len
        with self._visiting(encoder):
            return [encode_prompt(encoder, tokenizer, text, max_tokens=max_tokens).cpu() for text in prompts]

    def hidden_states(self, waveform: Tensor) -> Tensor:
        """A waveform [1, S] at 16 kHz to hidden states [L, T, C] on the CPU, float32."""
        self._require_weights()
        with self._visiting(self._sound_encoder):
            return self._sound_encoder.hidden_states(waveform.to(self.device)).float().cpu()

    @property
    def codec(self) -> VideoCodec:
        """The autoencoder, on the device; of several processes each computes some rows of every picture, and where
        memory is short one does it tile by tile."""
        if self.lead is not None:
            return self._shared_codec
        return self._vae if self.way.vae_tiles == 1 else TiledVAE(self._vae, self.way.vae_tiles)

    @cached_property
    def _shared_codec(self) -> SharedCodec:
        return SharedCodec(self._vae, self.lead)

    @cached_property
    def _vae(self) -> WanVAE:
        self._require_weights()
        vae = load_model(self.files.vae, "vae", lambda: WanVAE(self.config.vae), dtype=self.vae_dtype)
        return vae.to(self.device)

    @contextmanager
    def together(self) -> Iterator[bool]:
        """Connected with the other processes of a launch, which share the work of denoising, encoding and decoding;
        nothing happens for one alone.

        Yields: whether this process leads. One that does not has followed until the leader had no more to do.
        """
        num_processes = launched()[2]
        if num_processes == 1:
            yield True
            return
        with joined(self.device):
            num_heads = self.config.transformer.num_heads
            layout = denoising_layout(num_processes, num_heads)
            self.ranks = make_ranks(layout, self.device)
            self._everyone = make_ranks(sequence_layout(num_processes, num_heads), self.device)
            if self.ranks.is_main:
                log.info("%d processes share the denoising: %s", num_processes, layout)
                self.lead = Lead()
                yield True
                self.lead.dismiss()
            else:
                follow(self._following, lambda: self._codec_part)
                yield False

    @cached_property
    def _codec_part(self) -> CodecPart:
        """What this process does of another's encoding and decoding."""
        return CodecPart(self._vae)

    @contextmanager
    def denoising(self, settings: SamplerSettings) -> Iterator[Denoiser]:
        """A denoiser for one video; its transformer is in place while the context lasts."""
        with self._denoiser(settings) as denoiser:
            if self.lead is None:
                yield denoiser
            else:
                with self.lead.denoising(denoiser, settings, self.way) as led:
                    yield led

    def _following(self, settings: SamplerSettings, way: Way) -> AbstractContextManager[Denoiser]:
        """This process's own, in the way that the leader's estimate chose."""
        self._go(way)
        return self._denoiser(settings)

    def _go(self, way: Way) -> None:
        self.way, self.dtype, self.offload = way, way.dtype, way.offload

    def _make_room(self, needed: int) -> None:
        """Where so many bytes do not fit beside the last video's transformer, let it go; the next video reads it."""
        if self.device.type == "cpu" or "_transformer" not in self.__dict__:
            return
        if self._held(self._transformer) and needed > HEADROOM * free_memory(self.device):
            del self.__dict__["_transformer"]
            gc.collect()
            release_cached_memory(self.device)

    @contextmanager
    def _denoiser(self, settings: SamplerSettings) -> Iterator[Denoiser]:
        """This process's own."""
        model = self._transformer
        for block in model.blocks:
            block.ffn.chunk_tokens = self.way.chunk_tokens
        with ExitStack() as stack:
            if self.offload == "blocks":
                num_stay = self.way.resident_blocks
                for block in model.blocks[:num_stay]:
                    stack.enter_context(on_device(block, self.device))
                stack.callback(BlockStreamer(model.blocks[num_stay:], self.device).stop)
                stack.enter_context(_all_but_blocks(model, self.device))
            elif self.offload == "none":
                model.to(self.device)
            denoiser = TransformerDenoiser(model, settings, device=self.device)
            yield _TakingTurns(denoiser, model, self.device) if self.offload == "model" else denoiser

    # ---- what they take -------------------------------------------------------------------------------------------

    def estimate(self, size: VideoSize, clip: ClipSettings, *, step_cache: bool = False) -> MemoryEstimate:
        """Memory for a video, before any weight is read, in the fastest way that fits. With it `way` is chosen: dtype,
        what visits the device, and chunks, as far as nobody has asked for others and nothing is loaded yet."""
        work, offloads = self._work(size, clip, step_cache=step_cache), self._offloads()
        way, estimate = choose_way(work, offloads, free_memory(self.device) + self._held_bytes())
        self._go(way)
        return estimate

    def clip_time(self, size: VideoSize, clip: ClipSettings, settings: SamplerSettings) -> ClipTime | None:
        """How long a clip will take, in the way that `estimate` chose: a block and the autoencoder are timed for it.

        Returns: None where a block of plain weights on one device does not tell it.
        """
        if self._stored_dtype not in DTYPES.values() or self.eight_bit is not None or launched()[2] > 1:
            return None
        config, layout = self.config.transformer, self._layout(size, clip)
        block = time_block(config, layout, dtype=self.dtype, device=self.device, attention=self.attention)
        copies = None
        if self.offload == "blocks":
            spent = time_copy(self._transformer_bytes(self.dtype) // config.num_layers, self.device)
            copies = Copies(seconds=spent, num=config.num_layers - self.way.resident_blocks)
        evaluations = num_evaluations(settings)
        seconds = {n: seconds_per_step(config, layout, block, branches=n, copies=copies) for n in set(evaluations)}
        return ClipTime(
            step=max(seconds.values()),
            denoising=sum(seconds[n] for n in evaluations),
            codec=self._codec_seconds(size, clip),
        )

    def _codec_seconds(self, size: VideoSize, clip: ClipSettings) -> float:
        """Of a clip that goes on from another. Where tiles meet, work is done twice."""
        tiles, num_motion = self.way.vae_tiles, num_latent_frames(clip.motion_frames)
        times = tiles * tiled_share(self.config.vae, size.width // SPATIAL_STRIDE, tiles)
        pixels = int(times * size.width * size.height)
        found = time_codec(self.config.vae, pixels, num_motion, dtype=self.vae_dtype, device=self.device)
        return found.clip(clip.num_latents, num_motion)

    def _work(self, size: VideoSize, clip: ClipSettings, *, step_cache: bool) -> Work:
        pixels, is_host = size.width * size.height, self.device.type == "cpu"
        grid = size.latent_grid(clip.num_latents)
        beside = _total_bytes(self.files.audio_encoder, "audio_encoder", torch.float32) + (LIBRARIES if is_host else 0)
        return Work(
            config=self.config.transformer,
            layout=self._layout(size, clip),
            transformer={dtype: self._transformer_bytes(dtype) for dtype in self._dtypes()},
            others=_total_bytes(self.files.vae, "vae", self.vae_dtype),
            beside=step_cache_bytes(self.config.transformer, grid) if step_cache else 0,
            decoding={tiles: self._decoding_bytes(size, tiles) for tiles in VAE_TILES},
            encoding=self._weights["text_encoder"],
            decoded=clip.frames * pixels * RGB,
            host=frames_in_ram(clip.frames + clip.motion_frames, pixels) + beside,
            is_host=is_host,
        )

    def _decoding_bytes(self, size: VideoSize, tiles: int) -> int:
        """Of several processes each has its rows, so that none has tiles."""
        alone = launched()[2] == 1
        share = tiled_share(self.config.vae, size.width // SPATIAL_STRIDE, tiles) if alone else 1
        pixels, on_cpu = int(share * size.width * size.height), self.device.type == "cpu"
        return decoder_room(self.config.vae, pixels, self.vae_dtype.itemsize, on_cpu=on_cpu)

    def _layout(self, size: VideoSize, clip: ClipSettings) -> TokenLayout:
        return token_layout(size.latent_grid(clip.num_latents), has_motion=True)

    def _transformer_bytes(self, dtype: torch.dtype) -> int:
        beside = sum(lora.num_bytes for _, lora, _ in self.loras)
        if self.eight_bit is not None:
            return self._weights["transformer"] + beside
        return _total_bytes(self.files.transformer, "transformer", dtype) + beside

    def _held_bytes(self) -> int:
        """What loaded models have on the device already."""
        return sum(self._held(self.__dict__[name]) for name in ("_vae", "_transformer") if name in self.__dict__)

    def _held(self, module: nn.Module) -> int:
        tensors = [*module.parameters(), *module.buffers()]
        return sum(t.nbytes for t in tensors if t.device.type == self.device.type)

    def _dtypes(self) -> tuple[torch.dtype, ...]:
        """That the transformer may compute in, the best one first."""
        if self._asked_dtype is not None or "_transformer" in self.__dict__:
            return (self.dtype,)
        return tuple(dict.fromkeys([self.dtype, choose_dtype(None, self.device, self._stored_dtype)]))

    def _offloads(self) -> tuple[str, ...]:
        """That may be used, the fastest one first."""
        if self._asked_offload != "auto":
            return (self.offload,)
        return ("none",) if self.device.type == "cpu" else ("none", "blocks")

    def _offload_that_fits(self) -> str:
        """Before a size is known, which takes some room itself."""
        if self.device.type == "cpu":
            return "none"
        needed = self._weights["vae"] + self._weights["transformer"]
        return "none" if 1.4 * needed < HEADROOM * free_memory(self.device) else "blocks"

    def _choose_dtype(self, asked: torch.dtype | None) -> torch.dtype:
        """As asked; on a CPU float32 where it takes little of the memory, else as stored."""
        stored = self._stored_dtype
        if asked is None and self.device.type == "cpu" and stored.is_floating_point and stored.itemsize > 1:
            small = self._weights["transformer"] * 4 / stored.itemsize < free_memory(self.device) / 4
            asked = torch.float32 if small else None
        return choose_dtype(asked, self.device, stored)

    # ---- how they are read ----------------------------------------------------------------------------------------

    @cached_property
    def _transformer(self) -> WanS2VTransformer:
        self._require_weights()
        config = self.config.transformer
        model = load_model(
            self.files.transformer,
            "transformer",
            lambda: WanS2VTransformer(config, attention=self.attention),
            dtype=self.dtype,
            eight_bit=self.eight_bit,
        )
        model.compute_dtype = self.dtype
        for _, lora, strength in self.loras:
            apply_lora(model, lora, strength)
        if not self.ranks.is_alone:
            share_denoising(model, self.ranks, self._everyone)
        return model

    @cached_property
    def _sound_encoder(self) -> SoundEncoder:
        return load_model(
            self.files.audio_encoder,
            "audio_encoder",
            lambda: SoundEncoder(self.config.audio_encoder),
            dtype=torch.float32,
        )

    def _tokenizer(self) -> Tokenizer:
        if self.config.text_encoder.tokenizer == "bytes":
            return byte_tokenizer
        if self.files.tokenizer is not None:
            return folder_tokenizer(self.files.tokenizer)
        return sentencepiece_tokenizer(self.files.read_spiece_model())

    def _visiting(self, module: nn.Module) -> object:
        return nullcontext() if self.device.type == "cpu" else on_device(module, self.device)

    def _require_weights(self) -> None:
        if not self.load_weights:
            raise ConfigError("this pipeline was made to plan only; make it with load_weights=True to run")

    def _paths(self) -> dict[str, Path]:
        files = self.files
        return {
            "transformer": files.transformer,
            "vae": files.vae,
            "text_encoder": files.text_encoder,
            "audio_encoder": files.audio_encoder,
        }


class _TakingTurns:
    """A denoiser whose transformer is on the device only while it denoises."""

    def __init__(self, denoiser: TransformerDenoiser, model: nn.Module, device: torch.device) -> None:
        self.denoiser = denoiser
        self.model = model
        self.device = device

    def __call__(self, inputs: ClipInputs, noise: Tensor, on_step: StepCallback) -> Tensor:
        with on_device(self.model, self.device):
            return self.denoiser(inputs, noise, on_step)


@contextmanager
def _all_but_blocks(model: WanS2VTransformer, device: torch.device) -> Iterator[None]:
    """Everything of the transformer on the device, except the blocks, which are streamed."""
    with ExitStack() as stack:
        for name, child in model.named_children():
            if name != "blocks":
                stack.enter_context(on_device(child, device))
        yield


def _check_loras(config: TransformerConfig, loras: Sequence[Lora]) -> None:
    """Before anything large is read. Raises: CheckpointError for a LoRA of another model."""
    if loras:
        with torch.device("meta"):
            model = WanS2VTransformer(config)
        for lora in loras:
            required_to_fit(model, lora)


def _total_bytes(path: Path, component: str, dtype: torch.dtype | None = None) -> int:
    """Of the weights as they are stored, or as they are when `load_model` has read them in `dtype`."""
    return sum(
        stored.num_values * dtype.itemsize if dtype is not None and stored.format in CAST else stored.num_bytes
        for stored in read_component(path, component).values()
    )


def _bytes_in_8_bits(path: Path, eight_bit: EightBit) -> int:
    """Of a transformer whose large matrices are kept so."""
    return sum(
        eight_bit.num_bytes(stored.shape) if takes_eight_bits(name, stored) else stored.num_bytes
        for name, stored in read_component(path, "transformer").items()
    )


def _digest(path: Path) -> str:
    return hashlib.sha256(open_weights(path).summary()).hexdigest()
