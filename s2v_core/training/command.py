"""The words `train` and `precompute`: what they do and say.

Knows how people are spoken to; the work is `run.py`'s and `precompute.py`'s.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TextIO

import torch

from ..checkpoints.files import open_weights
from ..errors import ConfigError, S2VError
from ..parallel.ranks import joined, launched, make_ranks
from ..placement import choose_device, device_of_process, free_memory
from .checkpoint import checkpoints
from .config import PrecomputeConfig, TrainConfig, read_train_config
from .encoders import ModelEncoders
from .estimate import GB, Packed, TrainingEstimate, estimate_training, sample_layout
from .faults import in_words
from .footage import find_footage
from .precompute import PrecomputeReport
from .precompute import precompute as write_windows
from .run import CHECKPOINTS, EXPORT, export, layout_of, make_trainer
from .run import train as run_training
from .setup import model_config
from .trackers import check_trackers
from .trainer import StepReport

log = logging.getLogger(__name__)

HOW_TO_START = (
    "set model: weights (such as Wan2.2-S2V-14B/diffusion_pytorch_model.safetensors.index.json), or let it follow the "
    "stage before it (--config FIRST.yaml --stage THIS.yaml)"
)
BAR_WIDTH = 20
DRY_RUN_GPUS = 8
REPORT_EVERY = 30.0   # seconds between lines where there is no terminal


@in_words()
def train(arguments: argparse.Namespace, say: Callable[[str], None] = log.info) -> int:
    """Run, resume, export or estimate a training run, or several that follow each other.

    Args:
        say: takes what was asked to be told.

    Raises: S2VError.
    """
    stages = chained([read_train_config(Path(path)) for path in (arguments.config, *(arguments.stage or ()))])
    if arguments.dry_run:
        for config in stages:
            say(f"{config.name}\n{dry_run(config, num_gpus=arguments.gpus, gpu_bytes=arguments.gpu_memory * GB)}")
            say(f"starts from {config.model.origin}{f': {HOW_TO_START}' if lacks_weights(config) else ''}")
            if not config.data.windows:
                say("videos are encoded on the way: the encoders lie on every GPU too, unless precompute is run before")
        return 0
    rank = launched()[0]
    for config in stages:
        if lacks_weights(config):
            raise ConfigError(f"{config.name} would train the 14B model from {config.model.origin}: {HOW_TO_START}")
        layout_of(config, makes_steps=not arguments.export)
        check_trackers(() if arguments.export else config.run.trackers)
    # The weights of a run that shares them out may not fit one device, and nothing is computed with them.
    device = own_device("cpu" if arguments.export and arguments.device == "auto" else arguments.device)
    with joined(device):
        for config in stages:
            told = _run_stage(config, arguments, device, is_quiet=arguments.quiet or rank > 0)
            if rank == 0:
                say(f"{config.name}: {told}")
    return 0


def own_device(name: str) -> torch.device:
    """The named device, or the best one; of several processes, each one's own.

    Raises: ConfigError.
    """
    device, (_, local_rank, num_processes) = choose_device(name), launched()
    return device_of_process(device, local_rank) if num_processes > 1 else device


def _run_stage(config: TrainConfig, arguments: argparse.Namespace, device: torch.device, *, is_quiet: bool) -> str:
    """Run or export; returns what there is to tell."""
    ranks = make_ranks(layout_of(config, makes_steps=not arguments.export), device)
    if arguments.export:
        trainer = make_trainer(config, device=device, ranks=ranks)
        return f"step {trainer.step} exported: {', '.join(map(str, export(trainer, config)))}"
    progress = TrainProgress(sys.stderr, device=device, is_quiet=is_quiet)
    config = with_validation(config, device)
    ranks.wait()   # until the others have written their shares
    result = run_training(config, device=device, progress=progress, ranks=ranks)
    return f"{result.steps} steps done; weights in {', '.join(map(str, result.exported))}"


def chained(stages: list[TrainConfig]) -> list[TrainConfig]:
    """Stages of which each begins with the weights that the one before it exports.

    Raises: ConfigError for stages that share a folder, or a later one that names weights of its own.
    """
    outputs = [config.run.output for config in stages]
    if len(set(outputs)) < len(outputs):
        raise ConfigError(f"every stage needs an output of its own, got {', '.join(map(str, outputs))}")
    joined = stages[:1]
    for before, config in zip(stages, stages[1:], strict=False):
        if config.model.weights is not None:
            raise ConfigError(f"{config.name} starts from the weights of {before.name}: leave out its model: weights")
        if before.model.trained == "lora":
            raise ConfigError(f"{before.name} trains a LoRA, which is no stage that another can start from")
        exported = before.run.output / EXPORT
        model = replace(config.model, weights=exported / "transformer.safetensors")
        if config.model.text_encoder == before.model.text_encoder == "trained":
            model = replace(model, text_weights=exported / "text_encoder.safetensors")
        joined.append(replace(config, model=model))
    return joined


def lacks_weights(config: TrainConfig) -> bool:
    """Whether the 14B model would be taught from random numbers, which nobody means.

    A run of all its weights that has a checkpoint goes on from there, and needs no others.
    """
    source = config.model
    resumes = source.trained == "all" and bool(checkpoints(config.run.output / CHECKPOINTS))
    return source.weights is None and source.config is None and not resumes


def dry_run(config: TrainConfig, *, num_gpus: int | None, gpu_bytes: float) -> TrainingEstimate:
    """With the settings' layout, or the best one for `num_gpus`.

    Raises: ConfigError for fewer than one.
    """
    model = model_config(config).transformer
    if num_gpus is None:
        num_gpus = DRY_RUN_GPUS
    else:
        config = replace(config, parallel=None)
    return estimate_training(
        config, model, sample_layout(config, model), num_gpus=num_gpus, gpu_bytes=gpu_bytes, packed=_packed(config)
    )


def _packed(config: TrainConfig) -> Packed:
    """As far as the file that the run starts from is there already."""
    weights = config.model.weights
    if weights is None or not weights.is_file():
        return Packed()
    matrices = [t for t in open_weights(weights).tensors.values() if t.is_packed and len(t.shape) == 2]
    return Packed(num_parameters=sum(t.num_values for t in matrices), num_bytes=sum(t.num_bytes for t in matrices))


def with_validation(config: TrainConfig, device: torch.device) -> TrainConfig:
    """A run that has something to measure and names no windows of it writes them first.

    Raises: ConfigError when they would lie among those that it learns from.
    """
    settings = config.precompute_validation
    if not (config.run.validate_every and settings.source) or config.data.validation:
        return config
    if settings.windows in (config.data.windows or (config.precompute.windows,)):
        raise ConfigError(f"precompute_validation: windows needs a folder of its own, not {settings.windows}")
    rank, _, num_processes = launched()
    try:
        log.info("%s: %s", settings.windows, _write(settings, device))
    except S2VError as error:
        if rank:   # the first one's are said at the end; here each process has videos, and faults, of its own
            log.error("process %d of %d stopped: %s", rank + 1, num_processes, error)
        raise
    return replace(config, data=replace(config.data, validation=(settings.windows,)))


def _write(settings: PrecomputeConfig, device: torch.device) -> PrecomputeReport:
    encoders = ModelEncoders(settings.model, device=device, with_text=settings.prompts == "encoded")
    return write_windows(find_footage(settings), encoders, settings)


@in_words()
def precompute(arguments: argparse.Namespace, say: Callable[[str], None] = log.info) -> int:
    """Write a run's windows; of several processes, each those of its share of the videos.

    Raises: S2VError.
    """
    if arguments.quiet:
        logging.getLogger("s2v_core").setLevel(logging.WARNING)
    config: TrainConfig = read_train_config(Path(arguments.config))
    settings = config.precompute_validation if arguments.validation else config.precompute
    rank, _, num_processes = launched()
    share = f"process {rank + 1} of {num_processes}: " if num_processes > 1 else ""
    say(f"{settings.windows}: {share}{_write(settings, own_device(arguments.device))}")
    return 0


class TrainProgress:
    """Follows one run: on a terminal one line that is redrawn, elsewhere a plain line now and then.

    The loss shown is a running mean over about twenty steps; time left is what the mean step says.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        device: torch.device,
        is_quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stream = stream
        self.device = device
        self.is_quiet = is_quiet
        self.clock = clock
        self.is_terminal = stream.isatty()
        self.steps = self.first = 0
        self.began = self.said = clock()
        self.loss: float | None = None

    def started(self, step: int, steps: int) -> None:
        self.first, self.steps, self.began = step, steps, self.clock()
        self.said = self.began

    def stepped(self, report: StepReport) -> None:
        self.loss = report.loss if self.loss is None else 0.95 * self.loss + 0.05 * report.loss
        now = self.clock()
        if self.is_quiet or not (self.is_terminal or now - self.said >= REPORT_EVERY or report.step == self.steps):
            return
        self.said = now
        line = self._line(report, now)
        if self.is_terminal:
            self.stream.write("\r\x1b[K" + line[: shutil.get_terminal_size().columns - 1])
        else:
            self.stream.write(line + "\n")
        self.stream.flush()

    def close(self) -> None:
        if self.is_terminal and not self.is_quiet and self.loss is not None:
            self.stream.write("\n")
            self.stream.flush()

    def _line(self, report: StepReport, now: float) -> str:
        filled = BAR_WIDTH * report.step // self.steps
        mean = (now - self.began) / max(1, report.step - self.first)
        return (
            f"step {report.step}/{self.steps}  [{'#' * filled}{'-' * (BAR_WIDTH - filled)}]  loss {self.loss:.4f}"
            f"  {_duration(mean * (self.steps - report.step))} left  {report.num_samples / mean:.2f} clips/s"
            f"  {report.num_tokens / mean:.0f} tokens/s  {free_memory(self.device) / GB:.1f} GB free"
        )


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
