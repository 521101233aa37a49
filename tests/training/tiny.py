"""A tiny real transformer and batches for it."""

from __future__ import annotations

import torch

from s2v_core.conditioning.text import byte_tokenizer
from s2v_core.config import TextEncoderConfig, TransformerConfig
from s2v_core.models.dit import WanS2VTransformer
from s2v_core.models.text_encoder import build_text_encoder
from s2v_core.training.initialise import initialise
from s2v_core.training.objective import Batch
from s2v_core.training.student import PromptEncoder, Student

CONFIG = TransformerConfig(
    dim=24, ffn_dim=32, num_heads=2, num_layers=2, text_dim=12, text_len=24, freq_dim=16, audio_dim=6,
    num_audio_layers=3, num_audio_tokens=2, audio_inject_layers=(0, 1),
)  # fmt: skip
TEXT = TextEncoderConfig(
    vocab_size=259, dim=12, attention_dim=12, ffn_dim=16, num_heads=2, num_layers=2, tokenizer="bytes"
)
T, H, W = 2, 8, 8


def tiny_transformer(seed=0, dtype=torch.float32):
    """With every weight away from 0, so that every gradient is."""
    model = WanS2VTransformer(CONFIG, dtype=dtype)
    initialise(model, seed=seed)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=g).to(parameter) * 0.1)
    return model


def tiny_student(seed=0, dtype=torch.float32, *, learns_text=False):
    if not learns_text:
        return Student(tiny_transformer(seed, dtype), negative=torch.ones(1, 3, 12, dtype=dtype))
    torch.manual_seed(seed)
    encoder = build_text_encoder(TEXT)
    prompts = PromptEncoder(encoder, byte_tokenizer, max_tokens=CONFIG.text_len)
    return Student(tiny_transformer(seed, dtype), negative="", prompts=prompts)


def tiny_batch(
    seed=0, size=2, dtype=torch.float32, *, motion=True, pose=False, masks=True, embeds=True, speakers=0
):
    g = torch.Generator().manual_seed(seed)

    def some(*shape):
        return torch.randn(size, *shape, generator=g, dtype=torch.float32).to(dtype)

    return Batch(
        latents=some(16, T, H, W),
        reference_latent=some(16, 1, H, W),
        audio_features=some(3, 6, 4 * T),
        prompts=tuple(f"face {seed} {i}" for i in range(size)),
        prompt_embeds=some(5, 12) if embeds else None,
        motion_latents=some(16, 19, H, W) if motion else None,
        pose_latents=some(16, T, H, W) if pose else None,
        face_mask=some(T, H, W).sigmoid() if masks else None,
        mouth_mask=some(T, H, W).sigmoid() if masks else None,
        speaker_features=some(speakers, 3, 6, 4 * T) if speakers else None,
        speaker_masks=some(speakers, T, H, W).sigmoid() if speakers else None,
    )


class Batches:
    """A source of `num` batches, over and over."""

    def __init__(self, num=4, **options):
        self.items = [tiny_batch(seed, motion=seed % 2 == 0, **options) for seed in range(num)]
        self.asked = []

    def batch(self, index):
        self.asked.append(index)
        return self.items[index % len(self.items)]
