"""Fit the small text encoder to tell prompts apart: `python -m s2v_core.training.text --config FILE.yaml --out FOLDER`.

Knows nothing of pictures. The mean of a prompt's embeddings learns to tell what the prompt says of each person, the
background and the camera; what reads that is thrown away. The transformer's training then goes on with the encoder.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoints.official import read_model_config
from ..errors import ConfigError
from .export import rounded, save_weights
from .faces import BACKGROUNDS, HAIR_COLORS, random_backdrop, random_look
from .recipes import recipe_parser, recipe_run
from .setup import build_prompts
from .student import PromptEncoder
from .synthetic import CAMERA_MOTIONS, HEAD_MOTIONS, describe

UNSAID = -100      # what a prompt leaves open
REPORT_EVERY = 50  # steps
PLACES = {1: (1,), 2: (0, 2), 3: (0, 1, 2)}   # left, middle, right, by the number of faces
HAIR, GROUNDS = list(HAIR_COLORS), list(BACKGROUNDS)
QUESTIONS = {   # how many answers each has; of a place, 0 is nobody
    "camera": len(CAMERA_MOTIONS),
    "background": len(GROUNDS),
    **{f"{what} {place}": 1 + number for place in range(3)
       for what, number in (("motion", len(HEAD_MOTIONS)), ("person", 2), ("glasses", 2), ("hair", len(HAIR)))},
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class TextRecipe:
    """One training run. All but its duration follows from these numbers."""

    model: str                  # a model.json; its text encoder is fitted
    seed: int = 0
    steps: int = 1000
    batch: int = 32
    learning_rate: float = 3e-3
    warmup: int = 30            # steps
    faces: tuple[float, ...] = (0.75, 0.17, 0.08)   # shares of prompts of one person, two and three

    def __post_init__(self) -> None:
        if not 1 <= len(self.faces) <= 3 or min(self.faces) < 0 or not sum(self.faces) > 0:
            raise ConfigError(f"faces are the shares of prompts of one to three people, got {list(self.faces)}")


def random_prompt(
    rng: np.random.Generator, faces: tuple[float, ...], *, held_out: bool = False
) -> tuple[str, list[int]]:
    """A prompt as of a drawn clip, and the answers to QUESTIONS that it gives."""
    count = 1 + int(rng.choice(len(faces), p=np.asarray(faces) / sum(faces)))
    looks = [random_look(rng, held_out=held_out) for _ in range(count)]
    motions = [int(rng.integers(len(HEAD_MOTIONS))) for _ in range(count)]
    camera = int(rng.integers(len(CAMERA_MOTIONS))) if count == 1 else 0
    backdrop = random_backdrop(rng)
    told = [(look, HEAD_MOTIONS[motion]) for look, motion in zip(looks, motions, strict=True)]
    prompt = describe(told, backdrop, CAMERA_MOTIONS[camera], rng)
    answers = dict.fromkeys(QUESTIONS, 0)
    answers["camera"] = camera
    answers["background"] = GROUNDS.index(backdrop.name) if f"{backdrop.name} background" in prompt else UNSAID
    parts = prompt.split(", ")   # a person each, first of all
    for part, place, look, motion in zip(parts, PLACES[count], looks, motions, strict=False):
        answers[f"motion {place}"] = 1 + motion
        answers[f"person {place}"] = 1 + (look.person == "woman")
        answers[f"glasses {place}"] = 1 + look.glasses
        answers[f"hair {place}"] = 1 + HAIR.index(look.hair_name) if f"{look.hair_name} hair" in part else UNSAID
    return prompt, list(answers.values())


def mean_embeds(encoder: PromptEncoder, prompts: tuple[str, ...]) -> Tensor:
    """[B, D]: the mean over a prompt's tokens."""
    embeds = encoder(prompts)
    return embeds.sum(1) / (embeds != 0).any(-1).sum(1, keepdim=True)


def train(recipe: TextRecipe) -> Iterator[tuple[dict[str, float], PromptEncoder, nn.ModuleList]]:
    """Fit a text encoder.

    Yields: after every REPORT_EVERY steps what was measured, the encoder, and the linear readers, one a question.
    """
    settings = read_model_config(Path(recipe.model))
    encoder = build_prompts(settings, None, seed=recipe.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        heads = nn.ModuleList(nn.Linear(settings.text_encoder.dim, number) for number in QUESTIONS.values())
    parameters = [*encoder.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / recipe.warmup, 2 * (recipe.steps - step) / recipe.steps)
    )
    rng = np.random.default_rng(recipe.seed)
    began, losses = time.monotonic(), []
    for step in range(1, recipe.steps + 1):
        prompts, answers = zip(*(random_prompt(rng, recipe.faces) for _ in range(recipe.batch)), strict=True)
        told = mean_embeds(encoder, prompts)
        scores = [head(told) for head in heads]
        loss = answers_loss(scores, torch.tensor(answers))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % REPORT_EVERY == 0 or step == recipe.steps:
            seconds = round(time.monotonic() - began, 1)
            yield {"step": step, "seconds": seconds, "loss": float(np.mean(losses))}, encoder, heads
            losses = []


def answers_loss(scores: list[Tensor], answers: Tensor) -> Tensor:
    """Cross entropy, the mean over questions; answers [B, Q], UNSAID ones left out."""
    said = [(score, column) for score, column in zip(scores, answers.T, strict=True) if (column != UNSAID).any()]
    return torch.stack([F.cross_entropy(score, column, ignore_index=UNSAID) for score, column in said]).mean()


@torch.no_grad()
def judge(encoder: PromptEncoder, heads: nn.ModuleList, recipe: TextRecipe, *, num_prompts: int) -> dict[str, float]:
    """Share of right answers to what held-out people's prompts say, by kind of question; of people that are there."""
    rng = np.random.default_rng(recipe.seed + 1)
    prompts, answers = zip(
        *(random_prompt(rng, recipe.faces, held_out=True) for _ in range(num_prompts)), strict=True
    )
    told = mean_embeds(encoder, prompts)
    given = torch.stack([head(told).argmax(-1) for head in heads], 1)
    right: dict[str, list[Tensor]] = {}
    for column, question in enumerate(QUESTIONS):
        wanted = torch.tensor(answers)[:, column]
        said = (wanted != UNSAID) & ((wanted > 0) | (question in ("camera", "background")))
        right.setdefault(question.split()[0], []).append((given[said, column] == wanted[said]).float())
    return {kind: float(torch.cat(parts).mean()) for kind, parts in right.items()}


def main(argv: list[str] | None = None) -> None:
    parser = recipe_parser("Fit the small text encoder to tell prompts apart.", "text_encoder.safetensors")
    options = parser.parse_args(argv)
    with recipe_run(TextRecipe, options) as (recipe, tell):
        for report, encoder, heads in train(recipe):   # noqa: B007 the last ones are kept
            tell(report)
        save_weights(options.out / "text_encoder.safetensors", rounded(encoder.encoder, torch.float32))
        tell({"held_out": judge(encoder, heads, recipe, num_prompts=200)})


if __name__ == "__main__":
    main()
