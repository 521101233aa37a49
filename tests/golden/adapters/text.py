"""Recorded cases of the text encoder."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import UMT5EncoderModel

from s2v_core.config import TextEncoderConfig
from s2v_core.models.text_encoder import build_text_encoder, umt5_key

from ..case import Case


def encoder(case: Case) -> UMT5EncoderModel:
    config = case.config
    model = build_text_encoder(
        TextEncoderConfig(
            vocab_size=config["vocab"],
            dim=config["dim"],
            attention_dim=config["dim_attn"],
            ffn_dim=config["dim_ffn"],
            num_heads=config["num_heads"],
            num_layers=config["num_layers"],
            num_buckets=config["num_buckets"],
        )
    )
    weights = {umt5_key(name): tensor for name, tensor in case.weights[0].items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert missing == ["encoder.embed_tokens.weight"] and not unexpected, (missing, unexpected)
    return model


def t5(case: Case) -> dict[str, Tensor]:
    """The whole batch under its mask, and each prompt alone, without padding, as prompts are encoded here."""
    model, ids, mask = encoder(case), case.tensors["in.ids"], case.tensors.get("in.mask")
    results = {"out.full": model(input_ids=ids, attention_mask=mask).last_hidden_state}
    if mask is not None:
        for index, (row, real) in enumerate(zip(ids, mask.bool(), strict=True)):
            results[f"out.context#{index}"] = model(input_ids=row[real][None]).last_hidden_state[0]
    return results


def t5_buckets(case: Case) -> dict[str, Tensor]:
    """Which bucket a distance falls into: read off a bias that is each bucket's own number."""
    config = TextEncoderConfig(vocab_size=8, dim=8, attention_dim=8, ffn_dim=8, num_heads=1, num_layers=1)
    attention = build_text_encoder(config).encoder.block[0].layer[0].SelfAttention
    attention.relative_attention_bias.weight.copy_(torch.arange(config.num_buckets)[:, None])
    distances = case.tensors["in.rel_pos"]
    reach = int(distances.abs().max())
    bias = attention.compute_bias(reach + 1, reach + 1)[0, 0]   # [query, key]
    queries = (-distances).clamp(min=0)
    return {"out.bucket": bias[queries, queries + distances].long()}


KINDS = {"t5": t5, "t5_buckets": t5_buckets}
