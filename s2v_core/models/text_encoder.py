"""The umT5 text encoder, built through `transformers` from our own numbers, and its published spelling.

Knows no tokenizer, no files and no devices.
"""

from __future__ import annotations

import re

from transformers import UMT5Config, UMT5EncoderModel

from ..config import TextEncoderConfig

# The official checkpoint's parts -> where transformers keeps them.
_TOP = {
    "token_embedding": "shared",
    "norm": "encoder.final_layer_norm",
    "encoder.embed_tokens": "shared",   # transformers files may hold the embedding under either name
}
_BLOCK = {
    "norm1": "layer.0.layer_norm",
    "attn": "layer.0.SelfAttention",
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "norm2": "layer.1.layer_norm",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
}


def build_text_encoder(config: TextEncoderConfig) -> UMT5EncoderModel:
    """An encoder with fresh weights, on torch's current default device (`torch.device("meta")` costs nothing).

    Call it as `model(input_ids=ids, attention_mask=mask).last_hidden_state`: ids and mask [B, L] (1 = token)
    -> [B, L, dim]; rows of padding come out too, and mean nothing.
    """
    model = UMT5EncoderModel(
        UMT5Config(
            vocab_size=config.vocab_size,
            d_model=config.dim,
            d_kv=config.attention_dim // config.num_heads,
            d_ff=config.ffn_dim,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            relative_attention_num_buckets=config.num_buckets,
            relative_attention_max_distance=config.max_distance,
            dropout_rate=0.0,
            layer_norm_epsilon=1e-6,
            feed_forward_proj="gated-gelu",
            attn_implementation="eager",   # as the reference: the position bias joins the scores
        )
    )
    model.set_input_embeddings(model.shared)   # one module under both names, so that loading one loads the other
    return model.eval()


def umt5_key(name: str) -> str:
    """A checkpoint's name for a weight -> ours, which is the name `transformers` uses; its own names stay as they are.

    Whatever follows the layer (`.weight`, a scale beside it) is kept.
    """
    block = re.match(r"blocks\.(\d+)\.", name)
    if block:
        prefix, rest, table = f"encoder.block.{block[1]}.", name[block.end() :], _BLOCK
    else:
        prefix, rest, table = "", name, _TOP
    for official, ours in table.items():
        if rest.startswith(official + "."):
            return prefix + ours + rest[len(official) :]
    return name
