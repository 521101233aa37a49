"""The words `train` and `precompute`: their options, and what they say.

Knows how people are spoken to; the work is `run.py`'s and `precompute.py`'s.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from ..placement import choose_device
from .config import TrainConfig, read_train_config
from .encoders import ModelEncoders
from .footage import find_footage
from .precompute import precompute as write_windows
from .run import EXPORT, export, make_trainer
from .run import train as run_training
from .trainer import StepReport

log = logging.getLogger(__name__)

BAR_WIDTH = 20
REPORT_EVERY = 30.0   # seconds between lines where there is no terminal


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    _add_common_arguments(parser)
    parser.add_argument("--export", action="store_true", help="only write the newest checkpoint's weights")


def add_precompute_arguments(parser: argparse.ArgumentParser) -> None:
    _add_common_arguments(parser)
    parser.add_argument("--validation", action="store_true", help="write the windows of precompute_validation")


def _add_common_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, metavar="FILE.yaml", help="the run's settings")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--quiet", action="store_true", help="say nothing on the way")
    parser.add_argument("--debug", action="store_true", help="show the full traceback of an error")


def train(arguments: argparse.Namespace, stream: TextIO | None = None) -> int:
    """Run, resume or export a training run.

    Raises: S2VError.
    """
    config = read_train_config(Path(arguments.config))
    device = choose_device(arguments.device)
    if arguments.export:
        trainer = make_trainer(config, device=device)
        paths = export(trainer, config.run.output / EXPORT)
        log.info("step %d exported: %s", trainer.step, ", ".join(map(str, paths)))
        return 0
    progress = TrainProgress(stream or sys.stderr, is_quiet=arguments.quiet)
    result = run_training(config, device=device, progress=progress)
    log.info("%d steps done; weights in %s", result.steps, ", ".join(map(str, result.exported)))
    return 0


def precompute(arguments: argparse.Namespace) -> int:
    """Write a run's windows.

    Raises: S2VError.
    """
    config: TrainConfig = read_train_config(Path(arguments.config))
    settings = config.precompute_validation if arguments.validation else config.precompute
    encoders = ModelEncoders(
        settings.model, device=choose_device(arguments.device), with_text=settings.prompts == "encoded"
    )
    report = write_windows(find_footage(settings), encoders, settings)
    log.info("%s: %s", settings.windows, report)
    return 0


class TrainProgress:
    """Follows one run: on a terminal one line that is redrawn, elsewhere a plain line now and then.

    The loss shown is a running mean over about twenty steps; time left is what the mean step says.
    """

    def __init__(
        self, stream: TextIO, *, is_quiet: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.stream = stream
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
            f"  {report.num_samples / mean:.2f} clips/s  {report.num_tokens / mean:.0f} tokens/s"
            f"  {_duration(mean * (self.steps - report.step))} left"
        )


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
