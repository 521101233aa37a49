"""The text encoder is umT5 to the last weight, and a prompt becomes what the transformer reads."""

from __future__ import annotations

import io
import json
import logging

import pytest
import sentencepiece
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from s2v_core.conditioning.text import (
    byte_tokenizer,
    encode_prompt,
    folder_tokenizer,
    sentencepiece_tokenizer,
)
from s2v_core.config import TextEncoderConfig
from s2v_core.errors import CheckpointError
from s2v_core.models.text_encoder import build_text_encoder, umt5_key

from ..golden.case import ROOT

TINY = TextEncoderConfig(vocab_size=259, dim=16, attention_dim=24, ffn_dim=20, num_heads=3, num_layers=2)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_text_encoder(TINY)


@pytest.fixture
def folder(tmp_path):
    """A tokenizer folder of umT5's form: padding 0, end 1, and a few words."""
    words = {"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "talking": 4, "face": 5, "&": 6}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(tmp_path / "umt5")
    return tmp_path / "umt5"


def test_the_full_size_model_has_the_published_keys_shapes_and_count():
    published = json.loads((ROOT / "keys_umt5_xxl_encoder.json").read_text(encoding="utf-8"))
    with torch.device("meta"):
        parameters = dict(build_text_encoder(TextEncoderConfig()).named_parameters())
    theirs = {umt5_key(name): entry["shape"] for name, entry in published["keys"].items()}
    assert {name: list(parameter.shape) for name, parameter in parameters.items()} == theirs
    assert len(parameters) == published["num_keys"]
    assert sum(parameter.numel() for parameter in parameters.values()) == published["total_parameters"]


def test_transformers_own_names_stay_and_a_scale_follows_its_weight(model):
    for name, _ in model.named_parameters():
        assert umt5_key(name) == name
    assert umt5_key("encoder.embed_tokens.weight") == "shared.weight"
    assert umt5_key("blocks.7.ffn.fc2.scale_weight") == "encoder.block.7.layer.1.DenseReluDense.wo.scale_weight"


def test_loading_the_embedding_under_one_name_loads_it_everywhere():
    with torch.device("meta"):
        empty = build_text_encoder(TINY)
    weight = torch.randn(TINY.vocab_size, TINY.dim)
    empty.load_state_dict({"shared.weight": weight}, strict=False, assign=True)
    assert torch.equal(empty.encoder.embed_tokens.weight, weight)


def test_bytes_are_the_bundled_models_tokens():
    assert byte_tokenizer("aé") == [0x61 + 3, 0xC3 + 3, 0xA9 + 3, 1]
    assert byte_tokenizer("") == [1]
    assert max(byte_tokenizer("\U0010ffff")) < TINY.vocab_size


def test_embeds_are_the_real_tokens_of_the_cleaned_prompt(model):
    embeds = encode_prompt(model, byte_tokenizer, "  a &amp;  b ")
    ids = torch.tensor([byte_tokenizer("a & b")])
    assert torch.equal(embeds, model(input_ids=ids).last_hidden_state)
    assert embeds.shape == (1, 6, TINY.dim) and not embeds.requires_grad


def test_padding_under_a_mask_changes_nothing(model):
    embeds = encode_prompt(model, byte_tokenizer, "hello")
    ids = torch.tensor([byte_tokenizer("hello") + [0] * 10])
    padded = model(input_ids=ids, attention_mask=(ids > 0).long()).last_hidden_state
    torch.testing.assert_close(padded[:, :6], embeds, atol=1e-6, rtol=1e-5)


def test_an_empty_prompt_is_one_end_token(model):
    assert encode_prompt(model, byte_tokenizer, "").shape == (1, 1, TINY.dim)


def test_embeds_come_in_the_models_dtype():
    model = build_text_encoder(TINY).bfloat16()
    assert encode_prompt(model, byte_tokenizer, "x").dtype == torch.bfloat16


def test_a_long_prompt_is_cut_to_what_the_model_reads_and_the_log_says_by_how_much(model, caplog):
    with caplog.at_level(logging.WARNING):
        embeds = encode_prompt(model, byte_tokenizer, "x" * 600)
    assert embeds.shape == (1, 512, TINY.dim)
    assert "601 tokens" in caplog.text and "the last 89 are cut" in caplog.text
    ids = torch.tensor([[ord("x") + 3] * 511 + [1]])
    assert torch.equal(embeds, model(input_ids=ids).last_hidden_state)


def test_a_prompt_that_fits_exactly_is_not_cut(model, caplog):
    assert encode_prompt(model, byte_tokenizer, "x" * 19, max_tokens=20).shape[1] == 20
    assert not caplog.records


def test_a_folder_gives_its_tokens_and_the_end_once(folder):
    assert folder_tokenizer(folder)("a talking face nobody") == [3, 4, 5, 2, 1]
    assert folder_tokenizer(folder)("") == [1]


def test_a_wrong_tokenizer_folder_is_refused_with_the_reason(folder, tmp_path):
    (tmp_path / "hollow").mkdir()
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<unk>": 0, "e": 1}, unk_token="<unk>")), eos_token="e"
    ).save_pretrained(tmp_path / "other")
    for name, words in {"absent": "there is no tokenizer", "hollow": "cannot be read", "other": "ends with 1"}.items():
        with pytest.raises(CheckpointError, match=words):
            folder_tokenizer(tmp_path / name)


def test_a_tokenizer_of_another_model_is_found_out(model):
    with pytest.raises(CheckpointError, match="token 259, and the text encoder knows 259"):
        encode_prompt(model, lambda text: [259, 1], "x")


def test_the_tokenizer_inside_a_single_file_gives_its_tokens():
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a talking face", "a face that talks"] * 20), model_writer=written,
        vocab_size=20, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    tokens = sentencepiece_tokenizer(written.getvalue())
    processor = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    ids = tokens("a talking face")
    assert ids[-1] == 1 and 1 not in ids[:-1] and processor.decode(ids[:-1]) == "a talking face"
    assert tokens("") == [1]
    with pytest.raises(CheckpointError, match="broken"):
        sentencepiece_tokenizer(b"no model")
