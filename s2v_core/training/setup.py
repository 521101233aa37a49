"""A run's student: built, given the weights it starts from, and told which of them learn.

Knows configs and weight files; not data, steps or outputs.
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import torch
from torch import nn

from ..checkpoints import keymaps
from ..checkpoints.files import open_weights
from ..checkpoints.loading import fold_scales, load_into, read_component
from ..checkpoints.official import read_model_config
from ..conditioning.text import byte_tokenizer
from ..config import WAN_S2V_14B, ModelConfig
from ..errors import CheckpointError, ConfigError
from ..models.dit import WanS2VTransformer
from ..models.text_encoder import build_text_encoder
from ..ops.quantized import QuantizedLinear
from ..parallel.context import share_sequences
from ..parallel.ranks import Ranks
from ..parallel.weights import shard_layers, shard_rest
from ..placement import DTYPES
from .config import ModelSource, TrainConfig
from .initialise import add_nothing_yet, initialise
from .lora import add_lora
from .student import PromptEncoder, Student, checkpoint_blocks, compile_blocks, store_weights
from .windows import load_empty_prompt

log = logging.getLogger(__name__)

SHARED = ("blocks.", "patch_embedding.", "text_embedding.", "time_embedding.", "time_projection.", "head.")


def model_config(config: TrainConfig) -> ModelConfig:
    return WAN_S2V_14B if config.model.config is None else read_model_config(config.model.config)


def build_student(
    config: TrainConfig, *, device: torch.device, ranks: Ranks | None = None, learns: bool = True
) -> Student:
    """The student of a run, before its first step.

    Args:
        ranks: that share it out among themselves.
        learns: without, it makes no step, and needs no windows.

    Raises: ConfigError, CheckpointError.
    """
    source, settings = config.model, model_config(config)
    log.info("%s starts from %s", config.name, source.origin)
    transformer = build_transformer(settings, source.weights, seed=config.run.seed)
    if source.trained != "lora":
        _require_numbers(transformer, source)
    transformer.compute_dtype = DTYPES[source.compute_dtype]
    if source.text_encoder == "trained":
        prompts = build_prompts(settings, source.text_weights, seed=config.run.seed)
        student = Student(transformer, negative="", prompts=prompts)
    elif not learns:
        student = Student(transformer, negative=torch.zeros(1, 0, settings.transformer.text_dim))
    else:
        folder = (*config.data.windows, config.precompute.windows)[0]
        student = Student(transformer, negative=load_empty_prompt(folder))
    if source.trained == "lora" and source.text_encoder == "trained":
        raise ConfigError("a LoRA is of the transformer: use text_encoder: frozen with it")
    if source.trained == "lora":
        add_lora(transformer, rank=source.lora_rank, alpha=source.lora_alpha, seed=config.run.seed)
    student.choose_trained(source.trained)
    store = partial(store_weights, frozen=DTYPES[source.frozen_dtype])
    if source.checkpoint_blocks:
        checkpoint_blocks(transformer)
    if source.compile_blocks:
        compile_blocks(transformer)
    if ranks is None or ranks.meshes is None:
        for part in (*transformer.blocks, transformer):   # one by one: all at once in the file's dtype may not fit
            store(part.to(device))
        return student.to(device)
    share_sequences(transformer, ranks)
    shard_layers(transformer, ranks.meshes.world, prepare=store)   # brings each part to its device by itself
    store(transformer)
    shard_rest(student, ranks.meshes.world)
    return student


def _require_numbers(transformer: WanS2VTransformer, source: ModelSource) -> None:
    """Raises: ConfigError for matrices that stay packed: they cannot learn, and would be missing from the export."""
    packed = [module.packed_format for module in transformer.modules() if isinstance(module, QuantizedLinear)]
    if packed:
        raise ConfigError(
            f"{source.weights} packs {len(packed)} matrices as {', '.join(sorted(set(packed)))}: trained: "
            f"{source.trained} starts from the bf16, fp16 or fp32 file; beside packed weights a LoRA can learn "
            "(trained: lora)"
        )


def build_transformer(settings: ModelConfig, weights: Path | None, *, seed: int) -> WanS2VTransformer:
    """The transformer: of S2V weights, on top of Wan text-to-video weights, or fresh.

    What a file has keeps the file's dtype and stays memory-mapped, so that processes which each keep a share of it need
    no copy of all of it; what is fresh is float32.

    Raises: CheckpointError for weights of something else.
    """
    if weights is None:
        model = WanS2VTransformer(settings.transformer)
        initialise(model, seed=seed)
        return model
    model = WanS2VTransformer(settings.transformer, device="meta")
    kind, _ = keymaps.identify(open_weights(weights).tensors)
    if kind.component == "transformer":
        load_into(model, read_component(weights, "transformer"), path=weights)
    elif _is_text_to_video(kind):
        for name, part in model.named_children():
            if not f"{name}.".startswith(SHARED):
                part.to_empty(device="cpu")
        initialise(model, seed=seed)
        add_nothing_yet(model)
        take_text_to_video(model, weights)
    else:
        raise CheckpointError(f"{weights} is {kind.title}; training starts from S2V or Wan text-to-video weights")
    return model.train()


def take_text_to_video(model: WanS2VTransformer, path: Path) -> None:
    """Give a model what a Wan text-to-video model shares with S2V; what it lacks is left as it is.

    Raises: CheckpointError when a block has no weights there, or a shape differs.
    """
    file = open_weights(path)
    _, prefix = keymaps.identify(file.tensors)
    tensors = {name.removeprefix(prefix): stored for name, stored in fold_scales(file).items()}
    for name, parameter in list(model.named_parameters()):
        stored = tensors.get(name)
        if stored is None and name.startswith(SHARED):
            raise CheckpointError(f"{path} lacks {name}: it is incomplete, or of a smaller model than the config")
        if stored is None:
            continue
        if tuple(stored.shape) != tuple(parameter.shape):
            raise CheckpointError(
                f"{path} has {name} of shape {list(stored.shape)} where the config asks for {list(parameter.shape)}"
            )
        module, _, leaf = name.rpartition(".")
        tensor = stored.dense(torch.float32 if stored.is_packed else None)
        setattr(model.get_submodule(module), leaf, nn.Parameter(tensor))


def _is_text_to_video(kind: keymaps.Kind) -> bool:
    return "text-to-video" in kind.title


def build_prompts(settings: ModelConfig, weights: Path | None, *, seed: int) -> PromptEncoder:
    """A text encoder that learns, fresh or from `weights`. Only the byte vocabulary is small enough for that.

    Raises: ConfigError for another tokenizer, CheckpointError for weights of something else.
    """
    if settings.text_encoder.tokenizer != "bytes":
        raise ConfigError(
            f"text_encoder: trained needs a model with the byte tokenizer, {settings.name} has "
            f"{settings.text_encoder.tokenizer}; use text_encoder: frozen"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = build_text_encoder(settings.text_encoder)
    if weights is not None:
        load_into(encoder, read_component(weights, "text_encoder"), path=weights)
    return PromptEncoder(encoder, byte_tokenizer, max_tokens=settings.transformer.text_len)
