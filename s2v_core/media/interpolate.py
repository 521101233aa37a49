"""A video at a higher frame rate: frames between its frames, by the motion that an encoder would find.

Knows pictures and rates; the work is FFmpeg's `minterpolate` filter, which PyAV brings.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np

from .video_io import read_frames, write_segment

log = logging.getLogger(__name__)

# Motion is found in both directions and per block; where a block belongs to nothing, its neighbours share it. At a cut
# the frame before it is repeated.
MOTION = "mi_mode=mci:mc_mode=obmc:me_mode=bidir:vsbmc=1"


@contextmanager
def at_rate(
    segments: Sequence[Path],
    fps: float,
    to_fps: float,
    num_frames: int,
    folder: Path,
    *,
    on_frame: Callable[[], None] = lambda: None,
) -> Iterator[Sequence[Path]]:
    """Segments of a video at `fps` as segments at `to_fps` with so many frames in all, which lie in `folder` meanwhile.

    Args:
        on_frame: called with each frame that is made; whatever it raises ends the work, and leaves nothing behind.

    Raises: OutputError.
    """
    if to_fps == fps:
        yield segments
        return
    smooth = folder / "interpolated.mp4"
    try:
        frames = _interpolated_segments(segments, fps=fps, to_fps=to_fps, num_frames=num_frames)
        write_segment(smooth, _announced(frames, on_frame), fps=to_fps)
        yield (smooth,)
    finally:
        smooth.unlink(missing_ok=True)


def _interpolated_segments(
    segments: Sequence[Path], *, fps: float, to_fps: float, num_frames: int
) -> Iterator[np.ndarray]:
    log.info("interpolating from %g to %g frames per second", fps, to_fps)
    pictures = chain.from_iterable(read_frames(segment) for segment in segments)
    from_rate, to_rate = (Fraction(rate).limit_denominator(1001) for rate in (fps, to_fps))
    return interpolated(pictures, fps=from_rate, to_fps=to_rate, num_frames=num_frames)


def _announced(frames: Iterator[np.ndarray], on_frame: Callable[[], None]) -> Iterator[np.ndarray]:
    for frame in frames:
        on_frame()
        yield frame


def interpolated(
    pictures: Iterable[np.ndarray], *, fps: Fraction, to_fps: Fraction, num_frames: int
) -> Iterator[np.ndarray]:
    """Pictures at `fps` as `num_frames` pictures at `to_fps`, both from time 0; after the last one it is held.

    A dozen pictures are in memory at a time.

    Args:
        pictures: [H, W, 3] uint8, of one size, at least one.
    """
    graph, made = None, 0
    for index, picture in enumerate(_held(pictures)):
        graph = graph or _graph(picture.shape[1], picture.shape[0], fps, to_fps)
        graph.push(_frame(picture, index, fps))
        for frame in _ready(graph):
            yield frame.to_ndarray(format="rgb24", src_color_range="JPEG", dst_color_range="JPEG")
            made += 1
            if made == num_frames:
                return


def _held(pictures: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The pictures, and then the last one for ever."""
    picture = None
    for picture in pictures:
        yield picture
    assert picture is not None, "there is nothing to interpolate"
    while True:
        yield picture


def _graph(width: int, height: int, fps: Fraction, to_fps: Fraction) -> av.filter.Graph:
    graph = av.filter.Graph()
    source = graph.add_buffer(width=width, height=height, format="yuv444p", time_base=1 / fps)
    motion = graph.add("minterpolate", f"fps={to_fps.numerator}/{to_fps.denominator}:{MOTION}")
    sink = graph.add("buffersink")
    source.link_to(motion)
    motion.link_to(sink)
    graph.configure()
    return graph


def _frame(picture: np.ndarray, index: int, fps: Fraction) -> av.VideoFrame:
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
    frame = frame.reformat(format="yuv444p", src_color_range="JPEG", dst_color_range="JPEG")
    frame.pts, frame.time_base = index, 1 / fps
    return frame


def _ready(graph: av.filter.Graph) -> Iterator[av.VideoFrame]:
    while True:
        try:
            yield graph.pull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return
