"""One optimiser step after another: batches in, losses out, everything of a step decided by the seed and its number.

Knows a student and a source of batches; not files, logs or signals. Step k draws from (seed, k) and takes batch k
of its source, so a run that is resumed at k goes on exactly as it would have.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import CheckpointError, OutputError
from ..parallel.context import SharedSequence
from ..parallel.ranks import Ranks
from ..parallel.state import from_pieces, optimizer_state, own_part
from ..parallel.weights import let_go, own_rows, whole
from .config import ObjectiveConfig, OptimizerConfig
from .objective import Batch, draw, velocity_loss
from .optimizers import load_moments, make_optimizer, set_learning_rate
from .student import Student


class BatchSource(Protocol):
    """Batches by number, the same ones whoever asks and whenever."""

    def batch(self, index: int) -> Batch: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReport:
    """What a step did."""

    step: int              # 1 is the first
    loss: float            # mean over the step's batches
    grad_norm: float       # before clipping
    learning_rate: float
    num_samples: int
    num_tokens: int        # video tokens
    seconds: float


class Average:
    """An exponential moving average of weights, in float32.

    The decay grows into its value, as min(decay, (1 + n) / (10 + n)) after n updates: the first weights are forgotten.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        self.parameters = parameters
        self.weights = {name: own_rows(p.detach()).float().clone() for name, p in parameters.items()}

    @torch.no_grad()
    def begin(self) -> None:
        """With the weights as they are now."""
        self.num_updates = 0
        for name, parameter in self.parameters.items():
            self.weights[name].copy_(own_rows(parameter.detach()))

    @torch.no_grad()
    def update(self) -> None:
        self.num_updates += 1
        step = 1 - min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        own = [own_rows(p.detach()).float() for p in self.parameters.values()]
        torch._foreach_lerp_(list(self.weights.values()), own, step)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The averages where the weights are, for a while, and the weights where the averages are."""
        self._change_places()
        try:
            yield
        finally:
            self._change_places()

    @torch.no_grad()
    def _change_places(self) -> None:
        """One by one: a second copy of all of them may not fit, and sharded weights have a fixed place."""
        for name, parameter in self.parameters.items():
            rows = own_rows(parameter.detach())
            own = rows.clone()
            rows.copy_(self.weights[name])
            self.weights[name].copy_(own)

    def state_dict(self) -> dict[str, Any]:
        return {"num_updates": self.num_updates, "weights": self.weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Its tensors are `Pieces`."""
        self.num_updates = state["num_updates"]
        for name, weights in self.weights.items():
            weights.copy_(state["weights"][name].part_of(self.parameters[name]))


def _of_another_run(how: str) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint is of a run with another model or other parts trained: {how}; name another output, or go on "
        "with the settings that it was made with"
    )


def learning_rate(step: int, steps: int, config: OptimizerConfig) -> float:
    """Of step `step` (0 is the first) of `steps`: up to the full rate in `warmup_steps`, level, down at the end."""
    up = min(1.0, (step + 1) / max(1, config.warmup_steps))
    num_decay = round(steps * config.decay_fraction)
    down = min(1.0, (steps - step) / num_decay) if num_decay else 1.0
    return config.learning_rate * min(up, down)


class Trainer:
    """A student with its optimiser.

    Args:
        source: of the batches; `accumulate` of them, for each group of ranks, make a step. None: no step is made, and
            there is no optimiser.
        steps: of the whole run: the learning rate falls towards its end.
        ranks: that train together, each with its own trainer of a student that is shared out among them.
    """

    def __init__(
        self,
        student: Student,
        source: BatchSource | None,
        *,
        objective: ObjectiveConfig,
        optimizer: OptimizerConfig,
        steps: int,
        seed: int,
        accumulate: int = 1,
        device: torch.device | str = "cpu",
        ranks: Ranks | None = None,
    ) -> None:
        self.student = student.to(device)
        self.ranks = ranks or Ranks()
        self.source = source
        self.objective = objective
        self.config = optimizer
        self.steps = steps
        self.seed = seed
        self.accumulate = accumulate
        self.device = torch.device(device)
        self.step = 0   # optimiser steps done
        trained = student.trained()
        self.optimizer = None if source is None else make_optimizer(trained.values(), optimizer)
        self.average = Average(trained, optimizer.ema) if optimizer.ema else None

    def train_step(self) -> StepReport:
        """The next step.

        Raises: OutputError when the loss is no longer a number; the weights are then as they were before the step.
        """
        assert self.optimizer is not None, "a trainer without batches makes no step"
        began = time.perf_counter()
        rate = learning_rate(self.step, self.steps, self.config)
        set_learning_rate(self.optimizer, rate)
        self.optimizer.zero_grad()
        total, num_samples, num_tokens = 0.0, 0, 0
        num_groups = self.ranks.layout.data
        for part in range(self.accumulate):
            batch, loss = self.loss_of((self.step * self.accumulate + part) * num_groups + self.ranks.data_rank)
            (loss / self.accumulate).backward()
            total += loss.item() / self.accumulate
            num_samples += num_groups * batch.latents.shape[0]
            num_tokens += num_groups * batch.latents[:, 0].numel() // 4
        total = self.ranks.mean(total)
        norm = self._clip_gradients()
        if not math.isfinite(total) or not math.isfinite(norm):
            raise OutputError(
                f"the loss of step {self.step + 1} is {total:g} with gradients of norm {norm:g}; the weights before it "
                "are kept: resume from the last checkpoint with a lower learning_rate, or look for broken windows"
            )
        self.optimizer.step()
        self.step += 1
        if self.average:
            self.average.update()
        return StepReport(
            step=self.step,
            loss=total,
            grad_norm=norm,
            learning_rate=rate,
            num_samples=num_samples,
            num_tokens=num_tokens,
            seconds=time.perf_counter() - began,
        )

    def _clip_gradients(self) -> float:
        """The gradients' norm before it was limited; that of all ranks' rows together."""
        sharding = self.student.transformer.sharding
        if isinstance(sharding, SharedSequence):
            sharding.forget_unused()
        norm = nn.utils.clip_grad_norm_(self.student.trained().values(), self.config.max_grad_norm)
        return whole(norm).item()

    def loss_of(self, index: int) -> tuple[Batch, Tensor]:
        """A batch and its loss, drawn from the seed and the batch's number."""
        assert self.source is not None, "a trainer without batches makes no step"
        batch = self.source.batch(index)
        drawn = draw(batch, self.objective, np.random.default_rng([self.seed, index]))
        batch = batch.to(self.device)
        return batch, velocity_loss(self.student(batch, drawn), batch, drawn, self.objective)

    @contextmanager
    def averaged(self) -> Iterator[Student]:
        """The student with its averaged weights, where they are kept, and in evaluation."""
        self.student.eval()
        let_go(self.student)
        try:
            with nullcontext() if self.average is None else self.average.in_place():
                yield self.student
        finally:
            let_go(self.student)
            self.student.train()

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on but the settings and the source: this rank's part of it."""
        assert self.optimizer is not None, "a trainer without batches has nothing new to save"
        return {
            "step": self.step,
            "weights": {name: own_rows(p.detach()) for name, p in self.student.trained().items()},
            "optimizer": own_part(self.optimizer.state_dict()),
            "average": self.average.state_dict() if self.average else None,
        }

    @torch.no_grad()
    def load_state_dict(self, *states: Mapping[str, Any]) -> None:
        """Go on where a trainer was.

        Args:
            states: of all its ranks, in their order; there may have been more or fewer than there are now. Of the
                optimiser they bring what it remembers, not its settings.

        Raises: CheckpointError when it had another model, or trained another part of it.
        """
        state, parameters = from_pieces(states), self.student.trained()
        strangers = sorted(state["weights"].keys() ^ parameters.keys())
        if strangers:
            raise _of_another_run(f"only one of the two trains {strangers[0]}")
        for name, parameter in parameters.items():
            own, saved = own_rows(parameter), state["weights"][name].part_of(parameter)
            if saved.shape != own.shape:
                raise _of_another_run(f"{name} is {list(saved.shape)} there and {list(own.shape)} here")
            own.copy_(saved)
        if self.optimizer is not None:
            load_moments(self.optimizer, lambda in_order: optimizer_state(state["optimizer"], in_order))
        self.step = state["step"]
        if self.average and state["average"]:
            self.average.load_state_dict(state["average"])
        elif self.average:   # none was kept until now
            self.average.begin()
