"""Weights to start from: all fresh, or those of a Wan model with what sound, reference and motion need added.

Knows the transformer's modules; not where weights were read.
"""

from __future__ import annotations

import torch
from torch import nn

from ..checkpoints.keymaps import AUDIO_ENCODER
from ..models.dit import WanS2VTransformer

LAYER_WEIGHT = 0.01   # of every hidden state of the sound encoder, so all count alike; SiLU of 0 would divide 0 by 0


@torch.no_grad()
def initialise(model: WanS2VTransformer, *, seed: int) -> None:
    """Fresh weights for every module.

    Source: the reference's `init_weights` (Xavier matrices, small embeddings, a head that begins at 0), and its
        constructor for the rest.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in model.modules():
            _reset(module)
        for embedding in (model.text_embedding, model.time_embedding):
            for layer in embedding:
                if isinstance(layer, nn.Linear):
                    nn.init.normal_(layer.weight, std=0.02)
        for block in model.blocks:
            nn.init.normal_(block.modulation, std=model.config.dim**-0.5)
        nn.init.normal_(model.head.modulation, std=model.config.dim**-0.5)
        nn.init.zeros_(model.head.head.weight)
        _initialise_sound(model)


def _reset(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv3d):
        nn.init.xavier_uniform_(module.weight.flatten(1))
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv1d | nn.Embedding | nn.LayerNorm | nn.RMSNorm):
        module.reset_parameters()


def _initialise_sound(model: WanS2VTransformer) -> None:
    encoder = model.get_submodule(AUDIO_ENCODER)
    nn.init.constant_(encoder.weights, LAYER_WEIGHT)
    nn.init.zeros_(encoder.encoder.padding_tokens)


@torch.no_grad()
def add_nothing_yet(model: WanS2VTransformer) -> None:
    """Let the modules that a text-to-video model lacks begin without effect: sound, pose, and the marks of tokens.

    Source: the reference's `zero_init_weights`.
    """
    silent = [model.trainable_cond_mask, model.cond_encoder]
    silent += [layer.o for layer in model.audio_injector.injector]
    if model.config.use_adain:
        silent += [layer.linear for layer in model.audio_injector.injector_adain_layers]
    for module in silent:
        for parameter in module.parameters():
            nn.init.zeros_(parameter)
