"""What learns: the transformer, and beside it the text encoder where that is trained too. One module, one forward.

Knows batches and draws; no optimiser, files or ranks, so that sharding can be put around it from outside.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint
from transformers import UMT5EncoderModel

from ..checkpoints.keymaps import AUDIO_ENCODER
from ..conditioning.text import END, PADDING, Tokenizer, clean_prompt
from ..models.dit import WanS2VTransformer
from .objective import Batch, Draw, predict_velocity

SOUND_MODULES = (AUDIO_ENCODER, "audio_injector")   # of the transformer


class PromptEncoder(nn.Module):
    """A text encoder that learns: prompts to embeddings, with gradients."""

    def __init__(self, encoder: UMT5EncoderModel, tokenizer: Tokenizer, *, max_tokens: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens

    def forward(self, prompts: tuple[str, ...]) -> Tensor:
        """[B, L, D], zero rows after a prompt's last token: what `encode_prompt` gives, padded as the model pads."""
        device = self.encoder.get_input_embeddings().weight.device
        rows = [torch.tensor(self._tokens(prompt)) for prompt in prompts]
        ids = pad_sequence(rows, batch_first=True, padding_value=PADDING).to(device)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).to(device)
        embeds = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        return embeds * mask.unsqueeze(-1).to(embeds)

    def _tokens(self, prompt: str) -> list[int]:
        ids = self.tokenizer(clean_prompt(prompt))
        return ids if len(ids) <= self.max_tokens else [*ids[: self.max_tokens - 1], END]


class Student(nn.Module):
    """The transformer with its prompts.

    Args:
        prompts: the text encoder, when it is trained; batches then need no embeds.
        negative: stands in for prompts that are dropped: its text where `prompts` encodes it, else [1, L, D] embeds.
    """

    def __init__(
        self, transformer: WanS2VTransformer, *, negative: str | Tensor, prompts: PromptEncoder | None = None
    ) -> None:
        super().__init__()
        assert isinstance(negative, str) == (prompts is not None), "a text needs an encoder, embeds need none"
        self.transformer = transformer
        self.prompts = prompts
        self.negative = negative

    def forward(self, batch: Batch, drawn: Draw) -> Tensor:
        """Velocity [B, 16, T, h, w]."""
        batch, negative = self.with_embeds(batch)
        return predict_velocity(self.transformer, batch, drawn, negative)

    def with_embeds(self, batch: Batch) -> tuple[Batch, Tensor]:
        """The batch with embeds for its prompts, and the negative prompt's."""
        if self.prompts is None:
            return batch, self.negative.to(batch.prompt_embeds)
        embeds = self.prompts((*batch.prompts, self.negative))
        return batch.with_embeds(embeds[:-1]), embeds[-1:]

    def choose_trained(self, what: str) -> None:
        """Let gradients reach "all" weights, those of the "audio" modules, or those of the "lora" that was added."""
        if what == "lora":
            return   # adding it has frozen the rest
        self.requires_grad_(what == "all")
        if what == "audio":
            for name in SOUND_MODULES:
                self.transformer.get_submodule(name).requires_grad_(True)

    def trained(self) -> dict[str, nn.Parameter]:
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def store_weights(module: nn.Module, *, frozen: torch.dtype) -> None:
    """Keep weights that learn in float32 and the others in `frozen`, whatever their file had.

    Layers bring them to their input's dtype at use.
    """
    for parameter in module.parameters():
        wanted = torch.float32 if parameter.requires_grad else frozen
        if parameter.dtype != wanted:
            parameter.data = parameter.data.to(wanted)


def checkpoint_blocks(model: WanS2VTransformer) -> None:
    """Keep only the inputs of blocks and audio layers for the backward pass, and compute the rest again there."""
    for block in model.blocks:
        block.forward = _checkpointed(block.forward)
    model.audio_injector.residuals = _checkpointed(model.audio_injector.residuals)


def _checkpointed(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return partial(checkpoint, forward, use_reentrant=False)


def compile_blocks(model: WanS2VTransformer, backend: str = "inductor") -> None:
    """torch.compile, block by block: they are alike, so one compilation serves all."""
    for block in model.blocks:
        block.compile(backend=backend)
