"""Talking faces measured from pixels and sound: mouth opening, loudness, lip-sync, identity, head and camera motion.

Knows nothing of how the pictures were made: no parameter of the generator comes in, only what anybody can see. Made for
drawn faces with a dark open mouth, one in each region looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

from ..config import SAMPLE_RATE
from ..errors import ShapeError

Region = tuple[float, float, float, float]   # left, top, right, bottom, pixels

SKIN_TOLERANCE = (
    0.07  # distance of skin from its usual colour, as a share of that colour's length; at twice this none is
)
BOX = 24   # levels of a channel that count as one colour
AROUND = 0.2   # of a face's height and width: it is looked for no farther than this from where it was; a neck is longer
DARK, BLACK = 0.52, 0.2   # of the skin's brightness: a mouth's inside is darker than the first, fully so at the second
NOD, SHAKE = 0.012, 0.012   # of the face's width: swings beyond these (root mean square) are meant
SWING_HZ = (0.35, 1.9)      # how fast heads nod
ZOOM = 0.02                 # growth a second beyond which the camera moves in
PAN = 0.012                 # drift a second, of the picture's width, beyond which it pans


@dataclass(frozen=True, kw_only=True, slots=True)
class FaceTrack:
    """Where skin is seen, frame by frame, in pixels of the picture."""

    x: np.ndarray          # [F] middle
    y: np.ndarray          # [F]
    width: np.ndarray      # [F]
    height: np.ndarray     # [F]
    skin: np.ndarray       # [3] its colour, 0 to 255


def _check(frames: np.ndarray) -> None:
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise ShapeError(f"measuring takes frames [F, H, W, 3] of uint8, got {list(frames.shape)} of {frames.dtype}")


def _brightness(pixels: np.ndarray) -> np.ndarray:
    return pixels @ np.asarray([0.299, 0.587, 0.114], np.float32)


def _usual_color(pixels: np.ndarray) -> np.ndarray:
    """[3] the middle of the commonest colours among [n, 3], wherever the edges of the boxes they are counted in lie."""
    fullest = max((_fullest_box(pixels, np.asarray(moved)) for moved in product((0, BOX // 2), repeat=3)), key=np.sum)
    return np.median(pixels[fullest], axis=0)


def _fullest_box(pixels: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """[n] which pixels are in the box of colours that holds most of them; the boxes' edges are moved by [3]."""
    boxes = ((pixels + moved) // BOX).astype(np.int64) @ np.asarray([1, 16, 256])
    values, counts = np.unique(boxes, return_counts=True)
    return boxes == values[counts.argmax()]


def _cut(frames: np.ndarray, region: Region | None) -> tuple[np.ndarray, int, int]:
    if region is None:
        return frames, 0, 0
    left, top, right, bottom = (int(round(x)) for x in region)
    return frames[:, max(0, top) : bottom, max(0, left) : right], max(0, left), max(0, top)


def track_face(frames: np.ndarray, region: Region | None = None) -> FaceTrack:
    """Follow a face by its skin.

    Args:
        frames: [F, H, W, 3] uint8, with one face whose middle is near the region's middle in the first frame.
        region: the part of the picture to look at, in pixels; all of it where None.

    Raises: ShapeError for frames of another shape.
    """
    _check(frames)
    cut, dx, dy = _cut(frames, region)
    _, H, W, _ = cut.shape
    middle = cut[0, int(0.36 * H) : int(0.70 * H), int(0.38 * W) : int(0.62 * W)]   # more cheeks than eyes
    skin = _usual_color(middle.reshape(-1, 3).astype(np.float32))
    boxes, box = [], (0.0, 0.1 * H, float(W), 0.86 * H)
    for frame in cut:
        box = _skin_box(frame, skin, box)
        boxes.append(box)
        grow_x, grow_y = AROUND * (box[2] - box[0]), AROUND * (box[3] - box[1])
        box = (box[0] - grow_x, box[1] - grow_y, box[2] + grow_x, box[3] + grow_y)
    left, top, right, bottom = np.asarray(boxes).T
    return FaceTrack(
        x=(left + right) / 2 + dx, y=(top + bottom) / 2 + dy, width=right - left, height=bottom - top, skin=skin
    )


def _skin_box(frame: np.ndarray, skin: np.ndarray, around: Region) -> Region:
    """The skin-coloured pixels' left, top, right, bottom, to fractions of a pixel; `around` where there are none.

    Args:
        around: the part of the picture to look at, so that a shirt of the skin's colour is told from a face.
    """
    x, y = max(0, int(around[0])), max(0, int(around[1]))
    pixels = frame[y : int(np.ceil(around[3])), x : int(np.ceil(around[2]))].astype(np.float32)
    distance = np.linalg.norm(pixels - skin, axis=-1) / (SKIN_TOLERANCE * np.linalg.norm(skin))
    mask = np.clip(2 - distance, 0, 1)
    rows, columns = _without_gaps(mask, 1).sum(1), _without_gaps(mask, 0).sum(0)   # eyes and mouths are face too
    if not rows.any():
        return around
    rows = rows * (rows > 0.35 * np.sort(rows)[-max(1, len(rows) // 12)])      # no neck, no specks
    columns = columns * (columns > 0.25 * np.sort(columns)[-max(1, len(columns) // 12)])
    (left, right), (top, bottom) = _ends(columns, 0.03), _ends(rows, 0.03)
    return left + x, top + y, right + x, bottom + y


def _without_gaps(mask: np.ndarray, axis: int) -> np.ndarray:
    """What lies between two parts of a mask along an axis is filled up, to the lesser of them."""
    before = np.maximum.accumulate(mask, axis)
    behind = np.flip(np.maximum.accumulate(np.flip(mask, axis), axis), axis)
    return np.minimum(before, behind)


def _ends(weights: np.ndarray, share: float) -> tuple[float, float]:
    """Between which positions all but `share` of the weight lies on each side."""
    total = np.concatenate([[0.0], np.cumsum(weights)])
    if total[-1] <= 0:
        return 0.0, float(len(weights))
    start, stop = np.interp([share, 1 - share], total / total[-1], np.arange(len(total)))
    return float(start), float(stop)


def mouth_opening(frames: np.ndarray, region: Region | None = None) -> np.ndarray:
    """How much of a face is the dark inside of its mouth.

    Args:
        frames: [F, H, W, 3] uint8.
        region: as in `track_face`.

    Returns: [F] area in squares of the face's usual width; 0 is a shut mouth.
    Raises: ShapeError for frames of another shape.
    """
    track = track_face(frames, region)
    width, height = float(np.median(track.width)), float(np.median(track.height))
    limit, black = DARK * _brightness(track.skin), BLACK * _brightness(track.skin)
    rows, columns = np.arange(frames.shape[1])[:, None] + 0.5, np.arange(frames.shape[2])[None] + 0.5
    areas = np.zeros(len(frames))
    for k, frame in enumerate(frames):
        # the lower middle of the face: below the eyes, inside its outline, between the corners of the widest mouth
        growth = track.width[k] / width
        across = np.abs(columns - track.x[k]) / (width * growth)
        down = (rows - track.y[k]) / (height * growth)
        inside = (across < 0.36) & (down > 0.02) & ((across / 0.46) ** 2 + (down / 0.48) ** 2 < 1)
        dark = np.clip((limit - _brightness(frame[inside].astype(np.float32))) / (limit - black), 0, 1)
        areas[k] = dark.sum() / (width * growth) ** 2
    return areas


def compressed_loudness(waveform: np.ndarray, num_frames: int, fps: float) -> np.ndarray:
    """[F] how loud a sound is about k/fps, 0 in silence: the amplitude, to the power of 0.6.

    Args:
        waveform: [S] at 16 kHz.
    """
    size = int(0.1 * SAMPLE_RATE)
    padded = np.pad(np.asarray(waveform, np.float64), (size // 2, size + int(2 * SAMPLE_RATE / fps)))
    starts = np.minimum(np.round(np.arange(num_frames) * SAMPLE_RATE / fps).astype(int), len(padded) - size)
    windows = padded[starts[:, None] + np.arange(size)] * np.hanning(size)
    return np.sqrt(np.mean(windows**2, axis=1)) ** 0.6


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's r of two series of equal length; 0 where one of them does not move."""
    a, b = np.asarray(a, np.float64) - np.mean(a), np.asarray(b, np.float64) - np.mean(b)
    scale = np.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / scale) if scale > 1e-12 else 0.0


def best_lag(mouth: np.ndarray, loudness: np.ndarray, most: int = 5) -> tuple[int, dict[int, float]]:
    """By how many frames the mouth comes late, and r for every lag from -most to most."""
    F = len(mouth)
    by_lag = {
        lag: correlation(mouth[max(0, lag) : F + min(0, lag)], loudness[max(0, -lag) : F - max(0, lag)])
        for lag in range(-most, most + 1)
    }
    return max(by_lag, key=lambda lag: by_lag[lag]), by_lag


def appearance(frame: np.ndarray, track: FaceTrack, index: int) -> dict[str, np.ndarray]:
    """Usual colours [3], 0 to 255, of hair, skin and background in one frame [H, W, 3], found from the face's place."""
    x, y, w, h = track.x[index], track.y[index], track.width[index], track.height[index]
    pixels = frame.astype(np.float32)

    def patch(left: float, top: float, right: float, bottom: float) -> np.ndarray:
        rows = pixels[max(0, int(top)) : max(1, int(bottom) + 1), max(0, int(left)) : max(1, int(right) + 1)]
        return _usual_color(rows.reshape(-1, 3))

    W = frame.shape[1]
    edge = max(2, W // 20)
    return {
        "hair": patch(x - 0.22 * w, y - 0.70 * h, x + 0.22 * w, y - 0.60 * h),
        "skin": patch(x - 0.4 * w, y, x + 0.4 * w, y + 0.3 * h),
        "background": _usual_color(np.concatenate([pixels[: W // 3, :edge], pixels[: W // 3, -edge:]]).reshape(-1, 3)),
    }


def identity_error(frames: np.ndarray, reference: np.ndarray, region: Region | None = None) -> np.ndarray:
    """[F] mean distance of the colours of hair, skin and background from the reference's, as a share of white's.

    Args:
        frames: [F, H, W, 3] uint8.
        reference: [H, W, 3] uint8.
    """
    whole = np.concatenate([reference[None], frames])
    track = track_face(whole, region)
    first, *others = (appearance(frame, track, k) for k, frame in enumerate(whole))
    distances = [[np.linalg.norm(seen[part] - first[part]) for part in first] for seen in others]
    return np.asarray(distances).mean(1) / (255 * 3**0.5)


@dataclass(frozen=True, kw_only=True, slots=True)
class Motion:
    """What a head and the camera do, with the figures it was told by."""

    head: str      # "still", "nods" or "shakes"
    camera: str    # "still", "moves in", "pans left" or "pans right"
    nod: float     # root mean square of the swing, in face widths
    shake: float
    zoom: float    # growth of the face a second, as a share
    pan: float     # drift of the face a second to the left, in picture widths


def motion(frames: np.ndarray, fps: float, region: Region | None = None) -> Motion:
    """Tell nodding, shaking and camera moves from the face's place and size.

    Args:
        frames: [F, H, W, 3] uint8, two seconds or more.
    """
    track = track_face(frames, region)
    seconds = np.arange(len(frames)) / fps
    width = float(np.median(track.width))
    size = np.sqrt(np.maximum(track.width * track.height, 1))
    zoom = float(np.polyfit(seconds, np.log(size), 1)[0])
    pan = -float(np.polyfit(seconds, track.x, 1)[0]) / frames.shape[2]
    hairline = track.y - track.height / 2   # a chin moves with the jaw too
    nod, shake = (_swing(series, fps) / width for series in (hairline, track.x))
    head = "still"
    if nod > NOD or shake > SHAKE:
        head = "nods" if nod > shake else "shakes"
    camera = "still"
    if zoom > ZOOM:
        camera = "moves in"
    elif abs(pan) > PAN:
        camera = "pans right" if pan > 0 else "pans left"
    return Motion(head=head, camera=camera, nod=nod, shake=shake, zoom=zoom, pan=pan)


def _swing(series: np.ndarray, fps: float) -> float:
    """Root mean square of what swings at a head's pace in a series, in its own unit."""
    clock = np.arange(len(series))
    rest = series - np.polyval(np.polyfit(clock, series, 3), clock)
    spectrum = np.fft.rfft(rest)
    pace = np.fft.rfftfreq(len(series), 1 / fps)
    spectrum[(pace < SWING_HZ[0]) | (pace > SWING_HZ[1])] = 0
    return float(np.sqrt(np.mean(np.fft.irfft(spectrum, len(series)) ** 2)))
