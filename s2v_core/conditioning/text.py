"""Prompts: cleaned, cut into tokens, and encoded to what the transformer reads.

Knows how umT5 wants its text; not where its weights come from.
"""

from __future__ import annotations

import html
import logging
from collections.abc import Callable
from pathlib import Path

import ftfy
import torch
from torch import Tensor
from transformers import AutoTokenizer, UMT5EncoderModel

from ..errors import CheckpointError

log = logging.getLogger(__name__)

PADDING, END = 0, 1   # umT5's own ids; the bundled model shares them
FIRST_BYTE = 3        # id of byte 0 in the byte vocabulary: 3 + 256 ids, of which 2 (unknown) never occurs

Tokenizer = Callable[[str], list[int]]
"""Clean text -> token ids of any length: the end token last, no padding."""


def clean_prompt(text: str) -> str:
    """Mend broken Unicode, resolve HTML entities (also those escaped twice), leave single spaces.

    Source: the text that umT5 was fed in training; the recorded table `e_t5/text_clean.json`.
    """
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split())


def byte_tokenizer(text: str) -> list[int]:
    """The bundled model's tokens: its UTF-8 bytes, each plus 3."""
    return [FIRST_BYTE + byte for byte in text.encode("utf-8")] + [END]


def folder_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer that lies beside the official weights (`google/umt5-xxl`), read from disk alone.

    Raises: CheckpointError for a folder that is missing, broken, or another model's.
    """
    if not folder.is_dir():
        raise CheckpointError(f"there is no tokenizer folder {folder}; download it with the weights (google/umt5-xxl)")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # transformers raises whatever its many formats raise
        raise CheckpointError(f"the tokenizer in {folder} cannot be read; download the folder again") from error
    if (tokenizer.pad_token_id, tokenizer.eos_token_id) != (PADDING, END):
        raise CheckpointError(
            f"the tokenizer in {folder} pads with {tokenizer.pad_token_id} and ends with {tokenizer.eos_token_id}, "
            f"umT5's with {PADDING} and {END}; use the google/umt5-xxl folder of the weights"
        )
    return lambda text: [*tokenizer(text, add_special_tokens=False)["input_ids"], END]


def sentencepiece_tokenizer(model: bytes) -> Tokenizer:
    """The tokenizer that single-file umT5 weights carry inside (the `spiece_model` tensor), as bytes.

    Raises: CheckpointError for bytes that are no SentencePiece model.
    """
    import sentencepiece  # only these files need it

    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
        raise CheckpointError("the tokenizer inside the text encoder's file is broken; download it again") from error
    return lambda text: [*processor.encode(text), END]


@torch.no_grad()
def encode_prompt(model: UMT5EncoderModel, tokenizer: Tokenizer, text: str, *, max_tokens: int = 512) -> Tensor:
    """One prompt, empty or not, to its embeddings; the transformer pads them.

    Args:
        model: on its device, in its dtype.
        max_tokens: what the transformer reads, end token included; more are cut, and the log says how many.

    Returns: [1, L, D] in the model's dtype, on its device: real tokens only, 1 <= L <= max_tokens.
    Raises: CheckpointError when the tokenizer is not this model's.
    """
    ids = tokenizer(clean_prompt(text))
    if len(ids) > max_tokens:
        log.warning(
            "the prompt has %d tokens and the model reads %d: the last %d are cut off",
            len(ids), max_tokens, len(ids) - max_tokens,
        )  # fmt: skip
        ids = [*ids[: max_tokens - 1], END]
    if max(ids) >= model.config.vocab_size:
        raise CheckpointError(
            f"the tokenizer gave token {max(ids)}, and the text encoder knows {model.config.vocab_size}: "
            "they are of different models; take both from the same download"
        )
    device = model.get_input_embeddings().weight.device
    return model(input_ids=torch.tensor([ids], device=device)).last_hidden_state
