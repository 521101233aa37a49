"""How many processes share a run, and what each kind of sharing is for.

Knows counts alone; no tensors, no processes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ..errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """How processes share a step: `data` groups, and inside each `ring * ulysses` processes that share every sequence.

    Weights and optimiser are sharded over all of them, whatever the layout. Ranks of one Ulysses group are neighbours,
    as they exchange most.
    """

    data: int = 1      # groups with a batch each
    ring: int = 1      # keys and values pass round in a ring
    ulysses: int = 1   # every rank has all tokens for some of the heads; divides the number of heads

    def __post_init__(self) -> None:
        if min(self.data, self.ring, self.ulysses) < 1:
            raise ConfigError(f"a layout counts from 1, got data {self.data}, ring {self.ring}, ulysses {self.ulysses}")

    @property
    def context(self) -> int:
        return self.ring * self.ulysses

    @property
    def size(self) -> int:
        return self.data * self.context

    def __str__(self) -> str:
        return f"{self.data} x data, {self.ring} x ring, {self.ulysses} x Ulysses"

    @property
    def setting(self) -> str:
        """As a run's settings spell it."""
        return f"parallel: {{data: {self.data}, ring: {self.ring}, ulysses: {self.ulysses}}}"

    def check_heads(self, num_heads: int) -> None:
        """Raises: ConfigError when the heads cannot be shared out evenly."""
        if num_heads % self.ulysses:
            raise ConfigError(
                f"the model's {num_heads} heads cannot be shared by {self.ulysses} Ulysses ranks: "
                f"choose a divisor of {num_heads}, and ring for the rest"
            )

    def check_size(self, num_processes: int) -> None:
        """Raises: ConfigError when another number of processes was launched."""
        if self.size != num_processes:
            raise ConfigError(
                f"parallel: {self} makes {self.size} processes, and {num_processes} "
                f"{'was' if num_processes == 1 else 'were'} launched: launch {self.size} (torchrun --nproc-per-node "
                f"{self.size} -m s2v_core.train ...), or set parallel to what --dry-run --gpus {num_processes} finds"
            )


def denoising_layout(num_processes: int, num_heads: int) -> Layout:
    """How processes share a video's denoising: guidance's branches first, then heads, and a ring for what is left."""
    data = 2 - num_processes % 2
    return replace(sequence_layout(num_processes // data, num_heads), data=data)


def sequence_layout(num_processes: int, num_heads: int) -> Layout:
    """How processes share one sequence: heads first, and a ring for what is left."""
    ulysses = math.gcd(num_processes, num_heads)
    return Layout(ring=num_processes // ulysses, ulysses=ulysses)
