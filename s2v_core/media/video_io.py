"""Video files: look at one, read its frames by time, write frames as a segment, join segments with a sound.

Knows files and PyAV; nothing of clips, takes or models.
"""

from __future__ import annotations

import errno
import heapq
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from av.container import InputContainer, OutputContainer
from av.stream import Disposition
from torch import Tensor

from ..errors import MediaError, OutputError
from .containers import file_name, open_media, packet_time, reading
from .sound_track import first_sample, sound_packets

ENCODER_THREADS = 4   # the number changes the bits x264 writes, so it is not the machine's to choose
REORDER = 2           # frames by which x264 decodes ahead of what it shows, with the three B-frames of its presets
X264 = {
    "crf": "16",      # visually lossless
    "preset": "medium",
    "x264-params": "mbtree=0",   # with it, x264's AVX-512 code gives other bits in a few runs of a hundred
}
UNEVEN_TICK = Fraction(1, 90_000)   # seconds: what frames that do not come evenly are timed in
# Colours by their numbers in ITU-T H.273, which files and encoders share.
BT709, BT601, BT2020 = 1, 5, 9
PQ, HLG = 16, 18
OF_BT2020 = (14, 15, PQ, HLG)   # transfer curves
MATRICES = {1: BT709, 5: BT601, 6: BT601, 7: 7, 9: BT2020, 10: BT2020}   # what stands in a file: how swscale decodes it


# ---- reading -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoInfo:
    """What a video file holds."""

    width: int               # as stored, before any rotation
    height: int
    num_frames: int
    fps: float               # on average
    duration: float          # seconds, from the first frame's start to the last one's end
    video_codec: str
    audio_codec: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelTags:
    """What a player must know of a video's pixels to show them right."""

    aspect: Fraction = Fraction(1)   # a pixel's width to its height
    primaries: int = BT709
    transfer: int = BT709
    matrix: int = BT709

    @property
    def is_hdr(self) -> bool:
        return self.transfer in (PQ, HLG)


AS_DRAWN = PixelTags()


@dataclass(frozen=True, kw_only=True, slots=True)
class TimedFrame:
    """A frame and when it appears; its pixels are made on demand."""

    seconds: float   # since the first frame
    frame: av.VideoFrame = field(repr=False)

    def picture(self) -> np.ndarray:
        """[H, W, 3] uint8 RGB, upright."""
        return np.rot90(_rgb(self.frame), k=round(self.frame.rotation / 90)).copy()


def probe_video(path: Path) -> VideoInfo:
    """Look through a file without decoding it.

    Raises: MediaError for a file that is missing, no video, or without a picture track.
    """
    with reading(path), open_media(path) as container:
        stream = _picture_stream(container, path)
        audio = container.streams.best("audio")
        step = 1 / (stream.average_rate or stream.guessed_rate or Fraction(25))
        starts, stops = [], []
        for packet in container.demux(stream):
            if packet.size and not packet.is_discard:
                starts.append(packet_time(packet, default=len(starts) * step))
                stops.append(starts[-1] + (packet.duration * packet.time_base if packet.duration else step))
        if not starts:
            raise MediaError(f"{path} has a picture track without a single frame; export it again")
        duration = max(stops) - min(starts)
        return VideoInfo(
            width=stream.width,
            height=stream.height,
            num_frames=len(starts),
            fps=float(len(starts) / duration),
            duration=float(duration),
            video_codec=stream.codec_context.name,
            audio_codec=None if audio is None else audio.codec_context.name,
        )


def read_tags(path: Path) -> PixelTags:
    """What must be said of a file's upright pictures where they are written again: their pixels' shape, and the wide
    colours of BT.2020. All others are close to BT.709.

    Raises: MediaError as `probe_video`.
    """
    with reading(path), open_media(path) as container:
        stream = _picture_stream(container, path)
        frame = next(container.decode(stream), None)
        aspect = stream.sample_aspect_ratio or Fraction(1)
        aspect = 1 / aspect if frame is not None and frame.rotation % 180 else aspect
        colours = stream.codec_context
        transfer = colours.color_trc if colours.color_trc in OF_BT2020 else BT709
        if colours.color_primaries != BT2020 and transfer == BT709:
            return PixelTags(aspect=aspect)
        return PixelTags(aspect=aspect, primaries=BT2020, transfer=transfer, matrix=BT2020)


def read_timed_frames(path: Path) -> Iterator[TimedFrame]:
    """Every frame with its time, in order, one in memory.

    Raises: MediaError as `probe_video`, and where the file breaks off.
    """
    with reading(path), open_media(path) as container:
        stream = _picture_stream(container, path)
        stream.thread_type = "AUTO"
        step = 1 / (stream.average_rate or stream.guessed_rate or Fraction(25))
        first = None
        for index, frame in enumerate(container.decode(stream)):
            seconds = index * step if frame.pts is None else frame.pts * frame.time_base
            first = seconds if first is None else first
            yield TimedFrame(seconds=float(seconds - first), frame=frame)
        if first is None:
            raise MediaError(f"{path} has a picture track without a single frame; export it again")


def read_frames(path: Path) -> Iterator[np.ndarray]:
    """Every frame, [H, W, 3] uint8, in order, one in memory."""
    return (frame.picture() for frame in read_timed_frames(path))


def sound_delay(path: Path) -> Fraction:
    """Seconds from a video's first frame to the first sample of its own sound, on the file's clock; may be below 0.

    `read_timed_frames` and `open_sound` both count from 0.

    Raises: MediaError for a file that lacks one of the two.
    """
    with closing(read_timed_frames(path)) as frames:
        first = next(frames).frame
        return first_sample(path) - (Fraction(0) if first.pts is None else first.pts * first.time_base)


def _picture_stream(container: InputContainer, path: Path) -> av.VideoStream:
    """The picture track; the cover of a song is none."""
    stream = container.streams.best("video")
    if stream is None or stream.disposition & Disposition.attached_pic:
        raise MediaError(f"{path} has no picture track; give a video file")
    return stream


def _rgb(frame: av.VideoFrame) -> np.ndarray:
    """[H, W, 3] uint8 by the frame's own colour matrix; old files that name none follow the custom of their size."""
    if frame.format.is_rgb or frame.format.has_palette:
        return frame.to_ndarray(format="rgb24")
    matrix = MATRICES.get(int(frame.colorspace), BT709 if frame.height >= 720 else BT601)
    full_range = int(frame.color_range) == 2 or frame.format.name.startswith("yuvj")
    return frame.to_ndarray(
        format="rgb24",
        src_colorspace=matrix,
        dst_colorspace="DEFAULT",
        src_color_range="JPEG" if full_range else "MPEG",
        dst_color_range="JPEG",
    )


# ---- writing -------------------------------------------------------------------------------------------------------


def to_pictures(frames: Tensor) -> Iterator[np.ndarray]:
    """[1, 3, F, H, W] in [-1, 1] -> F pictures [H, W, 3] uint8, made one at a time."""
    for frame in frames[0].unbind(dim=1):
        yield ((frame.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()


def write_segment(
    path: Path, pictures: Iterable[np.ndarray], *, fps: float, tags: PixelTags = AS_DRAWN
) -> None:
    """Encode pictures as a piece of h264 that `join_segments` can join: the same pictures give the same bytes.

    The file appears complete or not at all.

    Args:
        pictures: [H, W, 3] uint8, all of one size, at least one. With an odd side, colour is kept for every pixel:
            few players but many programs read that.
        tags: what their pixels are.

    Raises: OutputError when it cannot be written.
    """
    rate = _exact_rate(fps)
    with _replacing(path) as partial, _create(partial, rate) as container:
        stream = None
        for index, picture in enumerate(pictures):
            stream = stream or _h264_stream(container, rate, tags, height=picture.shape[0], width=picture.shape[1])
            frame = _yuv(picture, stream.pix_fmt, tags.matrix)
            frame.pts, frame.time_base = index, 1 / rate
            container.mux(stream.encode(frame))
        assert stream is not None, "a segment needs at least one picture"
        container.mux(stream.encode(None))


def join_segments(
    segments: Sequence[Path],
    output: Path,
    *,
    audio: Path,
    fps: float,
    num_frames: int,
    times: Sequence[float] | None = None,
    audio_start: Fraction = Fraction(0),
    audio_seconds: Fraction | None = None,
) -> None:
    """Put segments one behind the other, add the original sound, and write an mp4 that starts to play at once.

    Nothing is encoded again but sound that an mp4 cannot carry, or that has gaps on its clock (to AAC). Picture and
    sound both start at 0; the picture lasts num_frames / fps exactly, and longer sound ends with it. The file appears
    complete or not at all, and the same inputs give the same bytes.

    Args:
        segments: from `write_segment`, of one size and fps; in all num_frames frames.
        audio: any file with sound.
        times: [num_frames + 1] seconds, rising: when each frame shows and when the last one ends; None: evenly.
        audio_start: seconds into the sound that are left out.
        audio_seconds: how much of it is heard from there; None: all.

    Raises: MediaError about the sound; OutputError when segments do not fit together or the disk refuses.
    """
    rate = _exact_rate(fps)
    clock = _Clock.even(rate, num_frames) if times is None else _Clock.uneven(rate, times)
    with _replacing(output) as partial, _create(partial, 1 / clock.tick) as container:
        pictures = _joined_packets(segments, container, clock)
        end = clock.ticks[-1] * clock.tick
        end = end if audio_seconds is None else min(end, audio_seconds)
        sound = sound_packets(audio, container, start=audio_start, end=end)
        for packet in heapq.merge(pictures, sound, key=lambda packet: packet.dts * packet.time_base):
            container.mux(packet)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Clock:
    """When the frames of a file show."""

    rate: Fraction         # of the segments, frames a second
    ticks: Sequence[int]   # [F + 1] one a frame, and the end
    tick: Fraction         # seconds

    @classmethod
    def even(cls, rate: Fraction, num_frames: int) -> _Clock:
        return cls(rate=rate, ticks=range(num_frames + 1), tick=1 / rate)

    @classmethod
    def uneven(cls, rate: Fraction, times: Sequence[float]) -> _Clock:
        return cls(rate=rate, ticks=[round(seconds / UNEVEN_TICK) for seconds in times], tick=UNEVEN_TICK)

    def at(self, index: int) -> int:
        """The tick of a frame; before the first and past the last, at the pace of the first and the last two."""
        last = len(self.ticks) - 1
        if index < 0:
            return self.ticks[0] + index * (self.ticks[1] - self.ticks[0])
        return self.ticks[min(index, last)] + max(0, index - last) * (self.ticks[last] - self.ticks[last - 1])


def require_writable(output: Path) -> None:
    """Find out before the work whether its result can be kept; nothing is left behind. Raises: OutputError."""
    if output.is_dir():
        raise OutputError(f"{output} is a folder; name a file in it")
    try:
        folder = next(folder for folder in _real(output).parents if folder.exists())   # others are made later
        probe = folder / f".{output.name}.{os.getpid()}.part"   # a job may be writing to `_partial(output)`
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise _output_error(output, error) from error


def _exact_rate(fps: float) -> Fraction:
    return Fraction(fps).limit_denominator(1001)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to: afterwards it is safely on disk under `path`; after an error it is gone.

    A link stays, and what it leads to is replaced.
    """
    target = _real(path)
    partial = _partial(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        _sync(partial)
        os.replace(partial, target)
        if os.name == "posix":   # elsewhere a folder cannot be opened
            _sync(target.parent)
    except (OSError, av.error.FFmpegError) as error:
        raise _output_error(path, error) from error
    finally:
        if os.path.lexists(partial):
            partial.unlink()


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _output_error(path: Path, error: OSError | av.error.FFmpegError) -> OutputError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(f"{path} cannot be written: the disk is full; free space and run the same command again")
    return OutputError(f"{path} cannot be written ({error.strerror}); choose a folder that can be written")


def _create(path: Path, rate: Fraction) -> OutputContainer:
    ticks = str(rate.numerator * math.ceil(10_000 / rate.numerator))   # a frame is a whole number of ticks
    clocks = {"movie_timescale": ticks, "video_track_timescale": ticks}
    options = {"movflags": "+faststart", "fflags": "+bitexact", **clocks}
    return av.open(file_name(path), "w", format="mp4", options=options)


def _h264_stream(
    container: OutputContainer, rate: Fraction, tags: PixelTags, *, height: int, width: int
) -> av.VideoStream:
    if "libx264" not in av.codecs_available:
        raise OutputError("this PyAV was built without the x264 encoder; install its own wheel with `pip install av`")
    stream = container.add_stream("libx264", rate=rate, options=X264)
    stream.width, stream.height = width, height
    stream.pix_fmt = "yuv444p" if width % 2 or height % 2 else "yuv420p"
    context = stream.codec_context
    context.thread_count = ENCODER_THREADS
    context.color_primaries, context.color_trc, context.colorspace = tags.primaries, tags.transfer, tags.matrix
    context.color_range = 1   # limited
    if tags.aspect != 1:
        context.sample_aspect_ratio = tags.aspect
    return stream


def _yuv(picture: np.ndarray, pix_fmt: str, matrix: int) -> av.VideoFrame:
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
    return frame.reformat(format=pix_fmt, dst_colorspace=matrix, src_color_range="JPEG", dst_color_range="MPEG")


def _joined_packets(segments: Sequence[Path], container: OutputContainer, clock: _Clock) -> Iterator[av.Packet]:
    """The segments' packets with times that run through."""
    with _segment(segments[0]) as first:
        stream = container.add_stream_from_template(first.streams.video[0], opaque=True)
        header = first.streams.video[0].codec_context.extradata
    return _restamped(segments, stream, header, clock)


@contextmanager
def _segment(path: Path) -> Iterator[InputContainer]:
    try:
        with av.open(file_name(path)) as container:
            yield container
    except (av.error.FFmpegError, OSError) as error:
        raise OutputError(f"{path} is damaged ({error.strerror}); delete it and run the same command again") from error


def _restamped(
    segments: Sequence[Path], stream: av.VideoStream, header: bytes | None, clock: _Clock
) -> Iterator[av.Packet]:
    num_frames = len(clock.ticks) - 1
    before = 0   # frames of the segments that are through
    for segment in segments:
        with _segment(segment) as source:
            if source.streams.video[0].codec_context.extradata != header:
                raise OutputError(f"{segment} was encoded unlike {segments[0].name}; delete them and run again")
            count = 0
            for packet in source.demux(video=0):
                if not packet.size:
                    continue
                index = before + round(packet.pts * packet.time_base * clock.rate)
                packet.pts, packet.dts = clock.at(index), clock.at(before + count - REORDER)
                packet.duration, packet.time_base, packet.stream = clock.at(index + 1) - packet.pts, clock.tick, stream
                count += 1
                yield packet
            before += count
    if before != num_frames:
        raise OutputError(
            f"the segments in {segments[0].parent} hold {before} frames and the video has {num_frames}; "
            "delete them and run again"
        )
