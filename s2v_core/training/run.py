"""A training run from its settings to exported weights: resumed where it stopped, logged, saved, measured.

Knows the order of things and the files of a run; steps are the trainer's business.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, TextIO

import torch

from ..errors import Interrupted, OutputError
from ..parallel.layout import Layout
from ..parallel.ranks import Ranks, launched, make_ranks
from ..placement import DTYPES, free_memory
from .checkpoint import load_newest, save_checkpoint
from .config import RunConfig, TrainConfig
from .dataset import Ahead, KeptWindows, WindowBatches, Windows
from .encoders import ModelEncoders
from .export import export_student
from .footage import find_footage
from .live import LiveWindows
from .lora import export_lora
from .precompute import find_windows, write_empty_prompt
from .setup import build_student, model_config
from .trackers import Trackers
from .trainer import BatchSource, StepReport, Trainer
from .validate import Validation

log = logging.getLogger(__name__)

LOG_FILE, CHECKPOINTS, EXPORT = "log.jsonl", "checkpoints", "export"


class Progress(Protocol):
    """Who is told how far a run is."""

    def started(self, step: int, steps: int) -> None: ...
    def stepped(self, report: StepReport) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResult:
    """A finished run."""

    steps: int
    exported: tuple[Path, ...]
    last_loss: float | None   # None when there was nothing left to do


def layout_of(config: TrainConfig, *, makes_steps: bool = True) -> Layout:
    """How the processes that were launched share the run.

    Args:
        makes_steps: without, they only share its weights, which any number can.

    Raises: ConfigError when they cannot share it as the settings say.
    """
    num_processes = launched()[2]
    layout = config.parallel if config.parallel and makes_steps else Layout(data=num_processes)
    layout.check_size(num_processes)
    layout.check_heads(model_config(config).transformer.num_heads)
    return layout


def open_windows(config: TrainConfig, *, device: torch.device, ranks: Ranks) -> Windows:
    """What a run learns from: the windows of its folders, or those that it encodes itself as it needs them.

    Raises: ConfigError, CheckpointError.
    """
    if config.data.windows:
        return KeptWindows(find_windows(config.data.windows))
    settings = config.precompute
    encoders = ModelEncoders(settings.model, device=device, with_text=settings.prompts == "encoded")
    windows = LiveWindows(find_footage(settings), encoders, settings, reader=encoders.files.config.transformer)
    if ranks.is_main:
        write_empty_prompt(encoders, settings)
    ranks.wait()   # the others read it
    return windows


@contextmanager
def open_batches(config: TrainConfig, *, device: torch.device, ranks: Ranks) -> Iterator[Ahead]:
    """This process's batches, made in the background for as long as they are wanted.

    Raises: ConfigError when the windows are not for this model.
    """
    source = WindowBatches(
        open_windows(config, device=device, ranks=ranks),
        batch_size=config.data.batch_size,
        first_clip=config.data.first_clip,
        seed=config.run.seed,
        clip_latents=config.data.clip_latents,
    )
    source.check_fit(model_config(config).transformer, with_embeds=config.model.text_encoder == "frozen")
    num_groups = ranks.layout.data
    batches = Ahead(source, stride=num_groups, stop=config.run.steps * config.data.accumulate * num_groups)
    try:
        yield batches
    finally:
        batches.close()


def make_trainer(
    config: TrainConfig, *, device: torch.device, ranks: Ranks | None = None, source: BatchSource | None = None
) -> Trainer:
    """A trainer that stands where the run's newest checkpoint stands, or at its start.

    Args:
        ranks: that train together; None: as the settings share out those that were launched.
        source: of its batches; None: it will make no step, and is asked for its weights alone.

    Raises: ConfigError, CheckpointError.
    """
    ranks = ranks or make_ranks(layout_of(config), device)
    trainer = Trainer(
        build_student(config, device=device, ranks=ranks, learns=source is not None),
        source,
        objective=config.objective,
        optimizer=config.optimizer,
        steps=config.run.steps,
        seed=config.run.seed,
        accumulate=config.data.accumulate,
        device=device,
        ranks=ranks,
    )
    saved = load_newest(config.run.output / CHECKPOINTS)
    if saved:
        _warn_of_changes(json.loads(saved[0]["config"]), _plain(config))
        trainer.load_state_dict(*(part["trainer"] for part in saved))
    return trainer


def train(
    config: TrainConfig, *, device: torch.device, progress: Progress, ranks: Ranks | None = None
) -> RunResult:
    """Run, or go on with, a training run to its last step, and export its weights.

    SIGTERM and Ctrl-C let the step at hand finish and be saved.

    Raises: Interrupted when it was asked to stop; OutputError for a loss that is no number, or a full disk.
    """
    run, ranks = config.run, ranks or make_ranks(layout_of(config), device)
    with ExitStack() as stack:
        batches = stack.enter_context(open_batches(config, device=device, ranks=ranks))
        trainer = make_trainer(config, device=device, ranks=ranks, source=batches)
        report, validation = None, Validation(config, device=device)
        run_log = stack.enter_context(_RunLog(run.output, trainer.step, config, writes=ranks.is_main))
        stop = stack.enter_context(_asked_to_stop())

        def measure() -> None:
            run_log.write({"step": trainer.step, **validation.measure(trainer)})

        progress.started(trainer.step, run.steps)
        try:
            if _measures(run, trainer.step) and ranks.any(ranks.is_main and trainer.step not in run_log.measured):
                measure()   # the run was stopped, or failed, after this step was saved
            while trainer.step < run.steps:
                report = trainer.train_step()
                progress.stepped(report)
                if report.step % run.log_every == 0:
                    run_log.write(_entry(report, device))
                stops = ranks.any(stop())
                if report.step % run.save_every == 0 or report.step == run.steps or stops:
                    save(trainer, config)   # before anything else is tried
                if stops and report.step < run.steps:
                    raise Interrupted(f"stopped; step {report.step} is saved, and the same command goes on there")
                if _measures(run, report.step):
                    measure()
        finally:
            progress.close()
    return RunResult(
        steps=trainer.step,
        exported=tuple(export(trainer, config)),
        last_loss=None if report is None else report.loss,
    )


def _measures(run: RunConfig, step: int) -> bool:
    return bool(run.validate_every and step and step % run.validate_every == 0)


def save(trainer: Trainer, config: TrainConfig) -> Path:
    state = {"trainer": trainer.state_dict(), "config": json.dumps(_plain(config))}
    folder, keep = config.run.output / CHECKPOINTS, config.run.keep
    return save_checkpoint(folder, trainer.step, state, keep=keep, ranks=trainer.ranks)


def export(trainer: Trainer, config: TrainConfig) -> list[Path]:
    """The weights to use, the averaged ones where an average is kept: the models that learnt, or the LoRA alone.

    Returns: what was written, of several ranks by the first one alone.
    """
    folder, dtype, writes = config.run.output / EXPORT, DTYPES[config.run.export_dtype], trainer.ranks.is_main
    with trainer.averaged() as student:
        if config.model.trained == "lora":
            written = export_lora(student.transformer, folder, dtype=dtype, writes=writes)
        else:
            written = export_student(student, folder, dtype=dtype, writes=writes)
    trainer.ranks.wait()   # a further stage reads what was written
    return written


def _entry(report: StepReport, device: torch.device) -> dict[str, Any]:
    return {
        "step": report.step,
        "loss": report.loss,
        "grad_norm": report.grad_norm,
        "learning_rate": report.learning_rate,
        "samples_per_second": round(report.num_samples / report.seconds, 3),
        "tokens_per_second": round(report.num_tokens / report.seconds, 1),
        "seconds": round(report.seconds, 4),
        "free_memory_gb": round(free_memory(device) / 1e9, 2),
    }


class _RunLog:
    """One JSON object a line; and the trackers that were asked for.

    Lines of steps after the one that the run goes on from are dropped: they are about to be made again.

    Args:
        writes: of several ranks the first one alone does.
    """

    def __init__(self, folder: Path, step: int, config: TrainConfig, *, writes: bool) -> None:
        self.path = folder / LOG_FILE
        self.measured: set[float] = set()   # steps whose weights were validated
        self._file: TextIO | None = None
        self._trackers = Trackers(
            config.run.trackers if writes else (), run_name=config.name, folder=folder, settings=_plain(config)
        )
        if writes:
            self._file = self._opened(folder, step)

    def _opened(self, folder: Path, step: int) -> TextIO:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lines = self.path.read_text().splitlines() if self.path.exists() else []
            kept = [line for line in lines if _step_of(line) <= step]
            self.measured = {_step_of(line) for line in kept if "loss" not in json.loads(line)}
            partial = self.path.with_suffix(".partial")
            partial.write_text("".join(line + "\n" for line in kept))
            os.replace(partial, self.path)
            return self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise OutputError(f"{self.path} cannot be written ({error.strerror}); choose another output") from error

    def write(self, entry: Mapping[str, Any]) -> None:
        if self._file is None:
            return
        try:
            self._file.write(json.dumps(entry) + "\n")
            self._file.flush()
        except OSError as error:
            raise OutputError(f"{self.path} cannot be written ({error.strerror}); free space, then resume") from error
        self._trackers.log(entry)

    def __enter__(self) -> _RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
        self._trackers.close()


def _step_of(line: str) -> float:
    """Of a log line; a line that was cut off when the run was killed counts as not made yet."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")


@contextmanager
def _asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM or SIGINT has come; a second one acts at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def ask(number: int, _frame: FrameType | None) -> None:
        asked.set()
        signal.signal(number, before[number])
        log.info("finishing the step, then saving")

    for number in before:
        signal.signal(number, ask)
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _plain(config: TrainConfig) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(config), default=str))


def _warn_of_changes(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Settings that change what the next steps do; where a run is kept and how it is logged do not."""
    changes = []
    for part in ("model", "data", "objective", "optimizer"):
        changes += [(f"{part}: {name}", saved[part].get(name), value) for name, value in now[part].items()]
    changes += [(f"run: {name}", saved["run"].get(name), now["run"][name]) for name in ("steps", "seed")]
    for name, before, value in changes:
        if before != value:
            log.warning("%s was %s when the run was saved, now it is %s", name, before, value)
