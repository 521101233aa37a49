"""Training on a pretended GPU, which refuses what a real one refuses: runs learn what they learn on a CPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from s2v_core.placement import choose_device
from s2v_core.training.encoders import ModelEncoders
from s2v_core.training.footage import find_footage
from s2v_core.training.precompute import find_windows, precompute
from s2v_core.training.run import train
from s2v_core.training.windows import load_window, save_empty_prompt, save_window

from ..pretended_gpu import pretended_gpu
from .test_runs import CPU, Silent, config_of, losses
from .test_windows import CONFIG, some_window

MODELS = {
    "all": {},
    "audio": {"trained": "audio"},
    "lora": {"trained": "lora", "lora_rank": 2, "text_encoder": "frozen"},
    "checkpointed": {"checkpoint_blocks": True},
}


@pytest.mark.parametrize("how", MODELS)
def test_a_run_and_its_resumption_learn_what_a_cpu_learns(settings, tmp_path, how):
    if how == "lora":
        save_empty_prompt(tmp_path / "windows", torch.ones(2, 12), model="m")
        for seed in range(8):
            window = some_window(seed, motion=seed < 5)
            save_window(tmp_path / "windows" / f"{seed}.safetensors", window, fingerprint="f", model="m")
    settings["model"] |= MODELS[how]
    cpu, first, whole = (
        config_of(settings, output=str(tmp_path / name), steps=steps, validate_every=2, validation_batches=1)
        for name, steps in (("cpu", 5), ("gpu", 3), ("gpu", 5))
    )
    train(cpu, device=CPU, progress=Silent())
    for config in (first, whole):
        with pretended_gpu():
            train(config, device=choose_device("cuda"), progress=Silent())
    assert len(losses(tmp_path / "gpu")) == 5
    assert losses(tmp_path / "gpu")[1] == pytest.approx(losses(tmp_path / "cpu")[1], rel=1e-5)
    assert losses(tmp_path / "gpu")[3] == pytest.approx(losses(tmp_path / "cpu")[3], rel=1e-2)   # another rate by then


def test_windows_are_encoded_as_on_a_cpu(tmp_path):
    found = []
    for name in ("cpu", "cuda"):
        config = replace(CONFIG, windows=tmp_path / name, num_videos=1)
        with pretended_gpu():
            encoders = ModelEncoders(None, device=choose_device(name), with_text=True)
            precompute(find_footage(config), encoders, config)
        found.append(load_window(*find_windows([tmp_path / name])))
    on_cpu, on_gpu = found
    for name in ("latents", "reference_latent", "audio_features"):
        torch.testing.assert_close(getattr(on_gpu, name), getattr(on_cpu, name), atol=1e-4, rtol=1e-4)
