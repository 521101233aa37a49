"""A model's files are found in each published layout, told apart by content, and what lacks is named."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import save_file

from s2v_core.checkpoints.loading import load_model
from s2v_core.checkpoints.official import find_components, read_model_config
from s2v_core.config import ModelConfig
from s2v_core.errors import CheckpointError, ConfigError
from s2v_core.models.dit import WanS2VTransformer

from . import checkpoints_tiny as tiny


@pytest.fixture(scope="module")
def released() -> dict[str, torch.Tensor]:
    """A transformer small in width, with the released layout: no config.json is needed."""
    return tiny.weights(tiny.transformer(tiny.RELEASED), torch.bfloat16)


def save_tokenizer(folder) -> None:
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text("{}")


def official_folder(root):
    """config.json, shards, pickles, tokenizer and wav2vec2 folders; for the small transformer of OFFICIAL."""
    root.mkdir(exist_ok=True)
    (root / "config.json").write_text(json.dumps({**tiny.OFFICIAL, "_class_name": "WanModel_S2V"}))
    tiny.save_sharded(root, tiny.transformer_weights())
    torch.save(tiny.vae_weights(), root / "Wan2.1_VAE.pth")
    torch.save(tiny.text_weights(torch.bfloat16), root / "models_t5_umt5-xxl-enc-bf16.pth")
    save_tokenizer(root / "google" / "umt5-xxl")
    sound = root / "wav2vec2-large-xlsr-53-english"
    sound.mkdir()
    audio = {**asdict(tiny.AUDIO), "hidden_size": 32, "num_attention_heads": 2, "model_type": "wav2vec2"}
    (sound / "config.json").write_text(json.dumps(audio))
    config = tiny.AudioEncoderConfig(**{k: v for k, v in audio.items() if k != "model_type"})
    tensors = tiny.weights(tiny.randomised(tiny.SoundEncoder(config), 3))
    save_file(tensors, sound / "model.safetensors")
    torch.save(tensors, sound / "pytorch_model.bin")
    return root


def fault(path) -> str:
    with pytest.raises(CheckpointError) as caught:
        find_components(path)
    text = str(caught.value)
    assert "\n" not in text
    return text


# ---- the official folder


def test_official_folder(tmp_path):
    root = official_folder(tmp_path / "Wan2.2-S2V-14B")
    files = find_components(root)
    assert files.transformer == root / "diffusion_pytorch_model.safetensors.index.json"
    assert files.vae == root / "Wan2.1_VAE.pth"
    assert files.text_encoder == root / "models_t5_umt5-xxl-enc-bf16.pth"
    assert files.audio_encoder == root / "wav2vec2-large-xlsr-53-english" / "model.safetensors"
    assert files.tokenizer == root / "google" / "umt5-xxl"
    assert files.config.transformer == tiny.CONFIG
    assert files.config.vae == tiny.VAE and files.config.text_encoder == tiny.TEXT
    assert files.config.audio_encoder.num_attention_heads == 2   # from its config.json: no shape says so


def test_what_is_found_loads(tmp_path):
    files = find_components(official_folder(tmp_path))
    model = load_model(files.transformer, "transformer", lambda: WanS2VTransformer(files.config.transformer))
    assert torch.equal(tiny.velocity(model), tiny.velocity(tiny.transformer()))


@pytest.mark.parametrize(
    "name,says",
    [
        ("Wan2.1_VAE.pth", "no Wan 2.1 VAE .* put Wan2.1_VAE.pth or wan_2.1_vae.safetensors there"),
        ("models_t5_umt5-xxl-enc-bf16.pth", "no umT5 text encoder .* put models_t5_umt5-xxl-enc-bf16.pth"),
        ("wav2vec2-large-xlsr-53-english", "no wav2vec2 sound encoder .* folder wav2vec2-large-xlsr-53-english"),
        ("google", "without a tokenizer: put the folder google/umt5-xxl"),
        ("diffusion_pytorch_model-00002-of-00003.safetensors", "no S2V transformer .*-00002-of-00003.* is missing"),
    ],
)
def test_missing_part_is_named_with_its_file_and_place(tmp_path, name, says):
    root = official_folder(tmp_path)
    shutil.rmtree(root / name) if (root / name).is_dir() else (root / name).unlink()
    text = fault(root)
    assert re.search(says, text) and str(root) in text


def test_a_broken_part_is_named(tmp_path):
    root = official_folder(tmp_path)
    content = (root / "Wan2.1_VAE.pth").read_bytes()
    (root / "Wan2.1_VAE.pth").write_bytes(content[: len(content) // 2])
    assert "Wan2.1_VAE.pth is cut short" in fault(root)


def test_an_unfit_config_json_is_refused(tmp_path):
    root = official_folder(tmp_path)
    (root / "config.json").write_text(json.dumps({**tiny.OFFICIAL, "enable_motioner": True}))
    with pytest.raises(ConfigError, match="enable_motioner"):
        find_components(root)


# ---- single files


@pytest.fixture
def singles(tmp_path, released):
    save_file(released, tmp_path / "wan2.2_s2v_14B_bf16.safetensors")
    save_file(tiny.vae_weights(), tmp_path / "wan_2.1_vae.safetensors")
    text = {**tiny.text_weights(), "spiece_model": torch.tensor(list(b"a tokenizer"), dtype=torch.uint8)}
    save_file(text, tmp_path / "umt5_xxl_fp16.safetensors")
    save_file(tiny.audio_weights(), tmp_path / "wav2vec2_large_english_fp16.safetensors")
    return tmp_path


def test_single_files_need_no_config_and_carry_their_tokenizer(singles):
    files = find_components(singles)
    assert files.config.transformer == tiny.RELEASED
    assert files.config.audio_encoder == tiny.AUDIO
    assert files.tokenizer is None and files.read_spiece_model() == b"a tokenizer"


def test_names_do_not_matter(singles):
    for i, path in enumerate(sorted(singles.iterdir())):
        path.rename(singles / f"{i}.safetensors")
    assert find_components(singles).config.transformer == tiny.RELEASED


def test_quantised_transformers_are_found(singles, released):
    (singles / "wan2.2_s2v_14B_bf16.safetensors").unlink()
    tiny.save_fp8_scaled(singles / "wan2.2_s2v_14B_fp8_scaled.safetensors", released)
    assert find_components(singles).transformer.name == "wan2.2_s2v_14B_fp8_scaled.safetensors"
    (singles / "wan2.2_s2v_14B_fp8_scaled.safetensors").unlink()
    tiny.save_gguf(singles / "Wan2.2-S2V-14B-Q8_0.gguf", released)
    assert find_components(singles).transformer.name == "Wan2.2-S2V-14B-Q8_0.gguf"


def test_two_transformers_are_a_question_and_naming_one_the_answer(singles, released):
    tiny.save_fp8_scaled(singles / "wan2.2_s2v_14B_fp8_scaled.safetensors", released)
    text = fault(singles)
    assert "2 S2V transformers" in text and "wan2.2_s2v_14B_bf16.safetensors" in text
    chosen = singles / "wan2.2_s2v_14B_fp8_scaled.safetensors"
    files = find_components(chosen)
    assert files.transformer == chosen and files.vae.parent == singles


def test_of_two_text_encoders_the_more_precise_is_taken(singles):
    tiny.save_fp8_scaled(singles / "a_umt5_fp8.safetensors", tiny.text_weights())
    assert find_components(singles).text_encoder.name == "umt5_xxl_fp16.safetensors"


@pytest.mark.parametrize("give", ["tree", "root", "folder", "file"])
def test_comfyui_models_tree(singles, give):
    tree = singles / "ComfyUI" / "models"
    places = {
        "wan2.2_s2v_14B_bf16.safetensors": "diffusion_models/Wan",
        "wan_2.1_vae.safetensors": "vae",
        "umt5_xxl_fp16.safetensors": "text_encoders",
        "wav2vec2_large_english_fp16.safetensors": "audio_encoders",
    }
    for name, folder in places.items():
        (tree / folder).mkdir(parents=True)
        (singles / name).rename(tree / folder / name)
    transformer = tree / "diffusion_models" / "Wan" / "wan2.2_s2v_14B_bf16.safetensors"
    given = {"tree": tree, "root": tree.parent, "folder": tree / "diffusion_models", "file": transformer}[give]
    files = find_components(given)
    assert files.transformer == transformer and files.vae == tree / "vae" / "wan_2.1_vae.safetensors"
    assert files.audio_encoder.parent.name == "audio_encoders"


def test_a_text_to_video_model_is_named(singles, released):
    (singles / "wan2.2_s2v_14B_bf16.safetensors").unlink()
    deaf = {n: t for n, t in released.items() if not n.startswith(("casual_audio_encoder", "audio_injector"))}
    save_file(deaf, singles / "wan2.2_t2v.safetensors")
    assert "wan2.2_t2v.safetensors is a Wan text-to-video transformer" in fault(singles)
    assert "is a Wan text-to-video transformer" in fault(singles / "wan2.2_t2v.safetensors")


def test_companion_of_another_model_is_refused(singles):
    other = tiny.AudioEncoderConfig(**{**asdict(tiny.AUDIO), "hidden_size": 128, "num_attention_heads": 2})
    tensors = tiny.weights(tiny.randomised(tiny.SoundEncoder(other)))
    save_file(tensors, singles / "wav2vec2_large_english_fp16.safetensors")
    assert "hidden states of width 128, the transformer reads 64" in fault(singles)


def test_single_text_encoder_without_any_tokenizer(singles):
    save_file(tiny.text_weights(), singles / "umt5_xxl_fp16.safetensors")
    assert "without a tokenizer" in fault(singles)
    save_tokenizer(singles / "umt5-xxl")
    assert find_components(singles).tokenizer == singles / "umt5-xxl"


def test_empty_folder_and_no_folder(tmp_path):
    assert "no S2V transformer was found" in fault(tmp_path)
    assert "does not exist" in fault(tmp_path / "nowhere")


# ---- our own layout

OWN = ModelConfig(
    name="tiny", transformer=tiny.CONFIG, vae=tiny.VAE, text_encoder=tiny.TEXT, audio_encoder=tiny.AUDIO,
    default_area=64 * 64, default_steps=4, default_shift=1.5, default_guidance=1.0, negative_prompt="blurred",
)  # fmt: skip


@pytest.fixture
def own(tmp_path):
    (tmp_path / "model.json").write_text(json.dumps(asdict(OWN)))
    parts = {
        "transformer": tiny.transformer_weights(),
        "vae": tiny.vae_weights(),
        "text_encoder": tiny.text_weights(),
        "audio_encoder": tiny.audio_weights(),
    }
    for name, tensors in parts.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
    return tmp_path


def test_own_layout(own):
    files = find_components(own)
    assert files.config == OWN
    assert files.transformer == own / "transformer.safetensors" and files.tokenizer == own / "google/umt5-xxl"


def test_own_layout_with_byte_tokens_has_no_tokenizer(own):
    config = asdict(OWN)
    config["text_encoder"]["tokenizer"] = "bytes"
    (own / "model.json").write_text(json.dumps(config))
    assert find_components(own).tokenizer is None


def test_own_layout_with_a_missing_part(own):
    (own / "vae.safetensors").unlink()
    assert "no vae.safetensors" in fault(own)


@pytest.mark.parametrize(
    "text,error,says",
    [
        ("{", CheckpointError, "JSON"),
        ("[]", ConfigError, "needs a name"),
        ('{"name": "x", "transformer": {"width": 3}}', ConfigError, "sets width, which TransformerConfig"),
        ('{"name": "x", "speed": 3}', ConfigError, "sets speed, which ModelConfig"),
        ('{"name": "x", "transformer": {"dim": 10, "num_heads": 3}}', ConfigError, "must split into 3 heads"),
    ],
)
def test_broken_model_json(tmp_path, text, error, says):
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(error, match=says):
        read_model_config(tmp_path / "model.json")
