"""Who speaks when in one sound: its speech is cut into windows, and windows of one voice are put together.

Knows sound, and an engine that tells speech from the rest and voices from each other; not who the voices belong to.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..config import SAMPLE_RATE
from ..errors import MediaError
from .audio import SoundSource

WINDOW = 8 * SAMPLE_RATE // 5   # samples that a voice is known by: 1.6 s
HOP = SAMPLE_RATE // 5          # from one window to the next
NEAR = WINDOW // HOP // 2       # windows on each side that share half of their samples
AT_ONCE = 64                    # windows in memory
TELLING = SAMPLE_RATE // 2      # shorter stretches of speech do not say what voices there are
STARTS = 20                     # of the clustering, of which the best is kept
ROUNDS = 50                     # of the clustering, at most
CHANGE = 0.3                    # a change of voice without a pause must bring so much likeness in all
PAUSE = 0.5                     # seconds: shorter pauses belong to the turn

Stretch = tuple[int, int]
"""First sample, and the one after the last."""


class VoiceEngine(Protocol):
    """What is learnt about speech and voices."""

    def speech(self, sound: SoundSource) -> Sequence[Stretch]:
        """The stretches in which somebody speaks, in order and apart."""
        ...

    def prints(self, windows: np.ndarray) -> np.ndarray:
        """[n, D] of length 1 for [n, S] samples of speech: the more alike two voices, the larger their product."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Spoken:
    """A stretch of a sound that one voice says."""

    start: float   # seconds
    end: float
    voice: int     # counted from 0 in the order in which they are first heard


def diarize(sound: SoundSource, num_voices: int, engine: VoiceEngine) -> tuple[Spoken, ...]:
    """Who speaks when, in the order of time. Where two speak at once, the louder one is heard.

    Args:
        num_voices: how many there are, 1 or more.

    Raises: MediaError where less is spoken than that many voices would.
    """
    speech = [(start, stop) for start, stop in engine.speech(sound) if stop > start]
    windows = [list(_windows(*stretch)) for stretch in speech]
    prints = [_prints(sound, cut, engine) for cut in windows]
    lengths = np.array([stop - start for cut in windows for start, stop in cut])
    if len(lengths) < num_voices:
        raise MediaError(
            f"{sum(stop - start for start, stop in speech) / SAMPLE_RATE:.1f} s of speech are heard in "
            f"{float(sound.duration):.1f} s of sound, which is too little to tell {num_voices} voices from each other; "
            "say who speaks when in a file"
        )
    known = np.concatenate(prints)
    telling = known[lengths >= TELLING] if (lengths >= TELLING).sum() >= num_voices else known
    centres = cluster(telling, num_voices)
    centres = _without_changes(prints, centres)
    voices = [steady(found @ centres.T, CHANGE) for found in prints]
    return _turns([piece for told in zip(speech, windows, voices, strict=True) for piece in _pieces(*told)])


def _windows(start: int, stop: int) -> Iterator[Stretch]:
    """A stretch in windows that overlap; a short one is its own window."""
    last = max(start, stop - WINDOW)
    for first in [*range(start, last, HOP), last]:
        yield first, min(first + WINDOW, stop)


def _prints(sound: SoundSource, windows: Sequence[Stretch], engine: VoiceEngine) -> np.ndarray:
    """[n, D]; the windows of one stretch are equally long."""
    parts = (windows[first : first + AT_ONCE] for first in range(0, len(windows), AT_ONCE))
    return np.concatenate([engine.prints(np.stack([sound.read(*window) for window in part])) for part in parts])


def cluster(prints: np.ndarray, num_voices: int) -> np.ndarray:
    """Spherical k-means, begun from voices that are far apart; the same prints give the same voices.

    Args:
        prints: [n, D] of length 1, n at least `num_voices`.

    Returns: [num_voices, D] of length 1.
    """
    rng = np.random.default_rng(0)
    best, likeness = prints[:num_voices], -np.inf
    for _ in range(STARTS):
        centres = _far_apart(prints, num_voices, rng)
        for _ in range(ROUNDS):
            voices = (prints @ centres.T).argmax(1)
            moved = np.stack([_middle(prints[voices == k], centres[k]) for k in range(num_voices)])
            if np.array_equal(moved, centres):
                break
            centres = moved
        total = float((prints @ centres.T).max(1).sum())
        if total > likeness + 1e-9:
            best, likeness = centres, total
    return best


def _without_changes(prints: Sequence[np.ndarray], centres: np.ndarray) -> np.ndarray:
    """The voices again, of windows alone in which no other voice is heard: a change lies midway between two then."""
    pure: list[np.ndarray] = []
    voices: list[np.ndarray] = []
    for found in prints:
        said = steady(found @ centres.T, CHANGE)
        around = [np.pad(said, NEAR, mode="edge")[shift : shift + len(said)] for shift in (0, 2 * NEAR)]
        alone = (around[0] == said) & (around[1] == said)
        pure.append(found[alone])
        voices.append(said[alone])
    kept, said = np.concatenate(pure), np.concatenate(voices)
    return np.stack([_middle(kept[said == k], centre) for k, centre in enumerate(centres)])


def _far_apart(prints: np.ndarray, num: int, rng: np.random.Generator) -> np.ndarray:
    """Some of the prints, each the likelier the less it is like those before (k-means++)."""
    chosen = [prints[rng.integers(len(prints))]]
    while len(chosen) < num:
        distances = np.clip(1 - (prints @ np.stack(chosen).T).max(1), 0, None) + 1e-9
        chosen.append(prints[rng.choice(len(prints), p=distances / distances.sum())])
    return np.stack(chosen)


def _middle(prints: np.ndarray, otherwise: np.ndarray) -> np.ndarray:
    middle = prints.sum(0) if len(prints) else otherwise
    return middle / max(float(np.linalg.norm(middle)), 1e-9)


def steady(likeness: np.ndarray, change: float) -> np.ndarray:
    """[n] the most alike voice of each window, where each change from one window to the next costs something.

    Args:
        likeness: [n, voices].
        change: the cost, in likeness.

    Source: Viterbi, IEEE Transactions on Information Theory 13 (1967).
    """
    total, came = likeness[0], []
    for row in likeness[1:]:
        stays = total >= total.max() - change
        came.append(np.where(stays, np.arange(len(total)), total.argmax()))
        total = np.where(stays, total, total.max() - change) + row
    voices = [int(total.argmax())]
    for previous in reversed(came):
        voices.append(int(previous[voices[-1]]))
    return np.array(voices[::-1])


def _pieces(stretch: Stretch, windows: Sequence[Stretch], voices: np.ndarray) -> list[tuple[Stretch, int]]:
    """A stretch of speech, cut midway between the middles of windows whose voices differ."""
    middles = [(start + stop) // 2 for start, stop in windows]
    changes = [i for i in range(1, len(windows)) if voices[i] != voices[i - 1]]
    cuts = [stretch[0], *((middles[i - 1] + middles[i]) // 2 for i in changes), stretch[1]]
    said = [int(voices[i]) for i in (0, *changes)]
    return [((cuts[i], cuts[i + 1]), voice) for i, voice in enumerate(said)]


def _turns(spoken: Sequence[tuple[Stretch, int]]) -> tuple[Spoken, ...]:
    """Pieces of one voice with no more than a short pause between them are one turn."""
    order = list(dict.fromkeys(voice for _, voice in spoken))
    turns: list[Spoken] = []
    for (first, last), voice in spoken:
        start, end = first / SAMPLE_RATE, last / SAMPLE_RATE
        if turns and turns[-1].voice == order.index(voice) and start - turns[-1].end < PAUSE:
            start = turns.pop().start
        turns.append(Spoken(start=start, end=end, voice=order.index(voice)))
    return tuple(turns)
