"""The small text encoder's recipe: prompts and what they say, and that it learns to tell them apart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from s2v_core.checkpoints.official import read_model_config
from s2v_core.errors import ConfigError
from s2v_core.training.setup import build_prompts
from s2v_core.training.synthetic import CAMERA_MOTIONS, HEAD_MOTIONS
from s2v_core.training.text import QUESTIONS, UNSAID, TextRecipe, answers_loss, main, mean_embeds, random_prompt

CONFIGS = Path(__file__).parents[2] / "configs" / "bundled"
MOTION_WORDS = {"still": ("still", "straight ahead"), "nods": ("nod",), "shakes": ("shak",)}
CAMERA_WORDS = {"still": ("stays still", "does not move"), "moves in": ("moves in", "comes closer"),
                "pans left": ("left",), "pans right": ("right",)}  # fmt: skip


def test_answers_are_what_prompts_say() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        prompt, answers = random_prompt(rng, (1.0,))
        told = dict(zip(QUESTIONS, answers, strict=True))
        assert any(word in prompt for word in MOTION_WORDS[HEAD_MOTIONS[told["motion 1"] - 1]]), prompt
        assert any(word in prompt.split("camera")[1] for word in CAMERA_WORDS[CAMERA_MOTIONS[told["camera"]]]), prompt
        assert ("woman" in prompt) == (told["person 1"] == 2)
        assert ("glasses" in prompt) == (told["glasses 1"] == 2)
        assert ("background" in prompt) == (told["background"] != UNSAID)
        assert told["motion 0"] == told["motion 2"] == 0, "nobody else is there"


def test_people_are_told_by_their_place() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        prompt, answers = random_prompt(rng, (0.0, 1.0))
        told = dict(zip(QUESTIONS, answers, strict=True))
        left, right = prompt.split(", ")[:2]
        for part, place in ((left, 0), (right, 2)):
            assert any(word in part for word in MOTION_WORDS[HEAD_MOTIONS[told[f"motion {place}"] - 1]]), prompt
        assert told["motion 1"] == 0


def test_what_is_left_open_costs_nothing() -> None:
    scores = [torch.randn(2, number) for number in QUESTIONS.values()]
    answers = torch.zeros(2, len(QUESTIONS), dtype=torch.long)
    answers[:, 1:] = UNSAID
    assert torch.equal(answers_loss(scores, answers), torch.nn.functional.cross_entropy(scores[0], answers[:, 0]))


def test_the_mean_is_over_a_prompts_own_tokens() -> None:
    encoder = build_prompts(read_model_config(CONFIGS.parents[1] / "s2v_core/bundled/model.json"), None, seed=0).eval()
    short = "a man nods"
    with torch.no_grad():
        alone = mean_embeds(encoder, (short,))
        beside = mean_embeds(encoder, (short, short + ", and says so at length"))
    torch.testing.assert_close(alone[0], beside[0], rtol=1e-4, atol=1e-5)


def test_a_short_run_tells_motions_apart(tmp_path: Path) -> None:
    """Chance is a third for the head, a quarter for the camera."""
    settings = yaml.safe_load((CONFIGS / "text.yaml").read_text(encoding="utf-8"))
    settings |= {"model": str(CONFIGS.parents[1] / settings["model"]), "steps": 240, "batch": 16, "faces": [1.0]}
    (tmp_path / "text.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    main(["--config", str(tmp_path / "text.yaml"), "--out", str(tmp_path / "out")])
    lines = [json.loads(line) for line in (tmp_path / "text.log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines[2]["loss"] < 0.8 * lines[1]["loss"]
    assert lines[-1]["held_out"]["motion"] > 0.5
    assert lines[-1]["held_out"]["camera"] > 0.5
    build_prompts(read_model_config(Path(settings["model"])), tmp_path / "out/text_encoder.safetensors", seed=1)


def test_faces_without_shares_are_refused() -> None:
    with pytest.raises(ConfigError, match="shares"):
        TextRecipe(model="model.json", faces=(0.0, 0.0))
