"""One face followed through a shot: which of the faces of each frame it is, and its box, steadied over time.

Knows boxes and times; no pictures and no detectors.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from .faces import Face
from .request import Box

OVERLAP = 0.25          # of two boxes, over their union, from which they may be the same face
BRIDGE_SECONDS = 0.12   # a found face that is missed for no longer is taken to be where it must have been
LEAST_SECONDS = 0.25    # a found face that is seen for less is taken for an error
MASK_SECONDS = 0.06     # standard deviation of the steadying of the box that the mask follows
MEDIAN_FRAMES = 5       # detections that stand alone among so many are dropped

NO_FACE, IN_PROFILE, TOO_SHORT = "no face", "in profile", "seen too briefly"


@dataclass(frozen=True, kw_only=True, slots=True)
class Track:
    """The face that is dubbed, frame by frame."""

    boxes: tuple[Box | None, ...]
    reasons: tuple[str, ...]   # why there is no box; "" where there is one


@dataclass
class _Candidate:
    """One face within a scene, as far as it has been followed."""

    faces: dict[int, Face] = field(default_factory=dict)   # by frame

    @property
    def last(self) -> int:
        return next(reversed(self.faces))

    @property
    def frontal(self) -> list[int]:
        return [k for k, face in self.faces.items() if not face.in_profile]

    @property
    def area(self) -> float:
        return sum(_area(self.faces[k].box) for k in self.frontal)

    @property
    def x(self) -> float:
        return float(np.mean([(face.box[0] + face.box[2]) / 2 for face in self.faces.values()]))


def follow(
    faces: Sequence[Sequence[Face]],
    cuts: Collection[int],
    *,
    step: float,
    is_given: bool,
    which: int | None = None,
) -> Track:
    """Follow a face through every scene.

    Args:
        faces: of each frame.
        cuts: frames that open a new scene.
        step: seconds a frame.
        is_given: the boxes are the user's: short gaps stay gaps, and nothing is steadied.
        which: the face in each scene, counted from the left; None: the one that covers most, over the scene.
    """
    boxes: list[Box | None] = [None] * len(faces)
    reasons = [NO_FACE] * len(faces)
    for first, stop in scenes(len(faces), cuts):
        candidates = _candidates(faces, first, stop, step)
        if not is_given:
            least = LEAST_SECONDS / step
            for face in (c for c in candidates if len(c.faces) < least):
                for k in face.faces:
                    reasons[k] = TOO_SHORT
            candidates = [c for c in candidates if len(c.faces) >= least]
        chosen = _choose(candidates, which)
        if chosen is None:
            continue
        for k, face in chosen.faces.items():
            boxes[k], reasons[k] = (None, IN_PROFILE) if face.in_profile else (face.box, "")
        if not is_given:
            _bridge(boxes, reasons, chosen, step)
            _steady(boxes, first, stop, MASK_SECONDS / step)
    return Track(boxes=tuple(boxes), reasons=tuple(reasons))


def scenes(num_frames: int, cuts: Collection[int]) -> list[tuple[int, int]]:
    """First frame and one past the last of each scene."""
    edges = sorted({0, num_frames, *(k for k in cuts if 0 < k < num_frames)})
    return list(zip(edges, edges[1:], strict=False))


def runs(flags: Sequence[bool], first: int = 0) -> Iterator[tuple[int, int]]:
    """First and one past the last of each stretch of True, counted from `first`."""
    start = None
    for k, flag in enumerate([*flags, False], start=first):
        if flag and start is None:
            start = k
        elif not flag and start is not None:
            yield start, k
            start = None


def smooth(values: np.ndarray, sigma: float) -> np.ndarray:
    """[F, n] rows under a Gaussian of `sigma` frames; at the ends it goes on as it was going there."""
    reach = min(int(3 * sigma), len(values) - 1)
    if reach < 1:
        return values
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    head = 2 * values[0] - values[reach:0:-1]
    tail = 2 * values[-1] - values[-2 : -reach - 2 : -1]
    padded = np.concatenate([head, values, tail])
    columns = [np.convolve(column, weights / weights.sum(), mode="valid") for column in padded.T]
    return np.stack(columns, axis=1)


def _candidates(faces: Sequence[Sequence[Face]], first: int, stop: int, step: float) -> list[_Candidate]:
    """Faces of a scene, each joined from frame to frame by where it is."""
    found: list[_Candidate] = []
    patience = max(1, round(2 * LEAST_SECONDS / step))   # frames after which a face that comes back is another one
    for k in range(first, stop):
        pairs = [
            (overlap(candidate.faces[candidate.last].box, face.box), i, j)
            for i, candidate in enumerate(found)
            for j, face in enumerate(faces[k])
            if k - candidate.last <= patience
        ]
        taken: set[int] = set()
        joined: set[int] = set()
        for share, i, j in sorted(pairs, reverse=True):
            if share >= OVERLAP and i not in joined and j not in taken:
                found[i].faces[k] = faces[k][j]
                joined.add(i)
                taken.add(j)
        found += [_Candidate({k: face}) for j, face in enumerate(faces[k]) if j not in taken]
    return _same_again(found)


def _same_again(found: list[_Candidate]) -> list[_Candidate]:
    """A face that was away and is back not far from there, about as large, is the same one."""
    joined: list[_Candidate] = []
    for candidate in found:
        start = next(iter(candidate.faces))
        before = [
            c for c in joined
            if c.last < start and _is_near(c.faces[c.last].box, candidate.faces[start].box)
        ]  # fmt: skip
        if before:
            max(before, key=lambda c: c.last).faces.update(candidate.faces)
        else:
            joined.append(candidate)
    return joined


def _is_near(a: Box, b: Box) -> bool:
    side, other = (_area(box) ** 0.5 for box in (a, b))
    apart = max(abs(a[0] + a[2] - b[0] - b[2]), abs(a[1] + a[3] - b[1] - b[3])) / 2
    return apart < max(side, other) and max(side, other) < 1.5 * min(side, other)


def _choose(candidates: list[_Candidate], which: int | None) -> _Candidate | None:
    visible = [candidate for candidate in candidates if candidate.frontal]
    if which is not None:
        ordered = sorted(visible, key=lambda candidate: candidate.x)
        return ordered[which - 1] if which <= len(ordered) else None
    return max(visible, key=lambda candidate: candidate.area, default=None)


def _bridge(boxes: list[Box | None], reasons: list[str], chosen: _Candidate, step: float) -> None:
    """Fill short gaps between two frames that show the face."""
    known = chosen.frontal
    for a, b in zip(known, known[1:], strict=False):
        if 1 < b - a <= BRIDGE_SECONDS / step + 1:
            for k in range(a + 1, b):
                share = (k - a) / (b - a)
                left, right = np.asarray(boxes[a]), np.asarray(boxes[b])
                boxes[k], reasons[k] = tuple(((1 - share) * left + share * right).tolist()), ""


def _steady(boxes: list[Box | None], first: int, stop: int, sigma: float) -> None:
    """Drop the tremble of a detector."""
    for a, b in list(runs([box is not None for box in boxes[first:stop]], first)):
        values = smooth(_median(np.asarray(boxes[a:b], np.float64)), sigma)
        boxes[a:b] = [tuple(row) for row in values.tolist()]


def _median(values: np.ndarray) -> np.ndarray:
    half = min(MEDIAN_FRAMES, len(values)) // 2
    padded = np.pad(values, ((half, half), (0, 0)), mode="edge")
    return np.stack([np.median(padded[k : k + 2 * half + 1], axis=0) for k in range(len(values))])


def overlap(a: Box, b: Box) -> float:
    """Shared area over joined area."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / (_area(a) + _area(b) - width * height)


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
