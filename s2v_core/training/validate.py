"""How well a student does on what it does not learn from, the same every time: losses at fixed noise levels, clips.

Knows a run's settings and its trainer; changes nothing of either.
"""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import torch

from ..errors import ConfigError
from ..parallel.weights import gathered_rest
from .config import ObjectiveConfig, TrainConfig
from .dataset import KeptWindows, WindowBatches
from .objective import draw, velocity_loss
from .precompute import find_windows
from .samples import Samples
from .setup import model_config
from .student import Student
from .trainer import BatchSource, Trainer
from .windows import FIRST

SIGMAS = (0.2, 0.5, 0.8, 0.95)
SAMPLES = "samples"


class Validation:
    """What a run measures every `validate_every` steps; all that it needs is found when it is made.

    Raises: ConfigError when there is nothing to measure, or it cannot be found.
    """

    def __init__(self, config: TrainConfig, *, device: torch.device) -> None:
        self.config = config
        self._windows: WindowBatches | None = None
        self._samples: Samples | None = None
        run = config.run
        if not run.validate_every:
            return
        if not config.data.validation and not run.validate_clips:
            raise ConfigError("validate_every needs windows to measure (data: validation) or clips (validate_clips)")
        if config.data.validation:
            windows = KeptWindows(find_windows(config.data.validation))
            self._windows = WindowBatches(
                windows,
                batch_size=config.data.batch_size,
                first_clip=_share_of_first(windows, config.data.first_clip),
                seed=0,
            )
        if run.validate_clips:
            self._samples = Samples(
                config.precompute_validation,
                model_config(config),
                num_clips=run.validate_clips,
                steps=run.validate_steps,
                encodes_prompts=config.model.text_encoder == "trained",
                device=device,
            )

    def measure(self, trainer: Trainer) -> dict[str, dict[str, float]]:
        """The averaged weights: "validation" losses by noise level, and scores of "samples", whose mp4s are written."""
        found = {}
        with trainer.averaged() as student:
            if self._windows is not None:
                found["validation"] = validation_losses(
                    student,
                    self._windows,
                    num_batches=self.config.run.validation_batches,
                    objective=self.config.objective,
                    device=trainer.device,
                )
            if self._samples is not None:
                path = self.config.run.output / SAMPLES / f"step-{trainer.step:08d}.mp4"
                with gathered_rest(student):
                    found["samples"] = self._samples.make(student, path if trainer.ranks.is_main else None)
        return {name: scores for name, scores in found.items() if scores}


def _share_of_first(windows: KeptWindows, wanted: float) -> float:
    """As in training where there are both kinds of windows; few videos may give one alone."""
    kinds = {entry.kind for entry in windows.entries}
    return float(kinds == {FIRST}) if len(kinds) == 1 else wanted


@torch.no_grad()
def validation_losses(
    student: Student, source: BatchSource, *, num_batches: int, objective: ObjectiveConfig, device: torch.device
) -> dict[str, float]:
    """Mean loss over the first batches of a source, by noise level and in all; nothing is dropped.

    Returns: "0.2", "0.5", ... and "mean".
    """
    drops = dict.fromkeys([f.name for f in fields(objective) if f.name.startswith("drop_")], 0.0)
    whole = replace(objective, motion_noise=False, **drops)
    totals = dict.fromkeys(SIGMAS, 0.0)
    for index in range(num_batches):
        batch = source.batch(index)
        drawn = draw(batch, whole, np.random.default_rng([0, index]))
        batch = batch.to(device)
        for sigma in SIGMAS:
            at_sigma = replace(drawn, sigmas=torch.full_like(drawn.sigmas, sigma))
            totals[sigma] += velocity_loss(student(batch, at_sigma), batch, at_sigma, whole).item() / num_batches
    losses = {str(sigma): total for sigma, total in totals.items()}
    return {**losses, "mean": sum(totals.values()) / len(totals)}
