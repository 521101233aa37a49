"""Sound in: any file or waveform, as mono float32 at 16 kHz, kept on disk and read a stretch at a time.

Knows no models and no video. An hour of sound takes no more memory than a second of it.
"""

from __future__ import annotations

import contextlib
import logging
import math
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain, groupby
from pathlib import Path
from types import TracebackType
from typing import IO, Protocol

import av
import numpy as np
import soxr
from torch import Tensor

from ..config import FEATURE_WINDOW, SAMPLE_RATE
from ..errors import MediaError, OutputError
from .containers import open_media

log = logging.getLogger(__name__)

SILENCE_LEVEL = 10 ** (-90 / 20)   # half of the whole swing; -90 dB is one step of 16-bit sound
PADDING_SAMPLES = 4096             # at most this much coder padding is cut where a file states a shorter length
BLOCK = 2**18                      # samples handled at a time
_STATES_LENGTH = ("flac", "mov", "matroska")   # formats whose header says how long they are, no guess from the bit rate


class Sound:
    """Mono float32 sound at 16 kHz in a nameless temporary file, which goes when this is closed or collected.

    Attributes:
        duration: seconds, exact: the source's samples over its sample rate.
        num_samples: at 16 kHz, ceil(duration * 16000).
        mean, variance: over all samples; the variance is the population's.
    """

    def __init__(self, file: IO[bytes], *, duration: Fraction, num_samples: int) -> None:
        self._file = file
        self._finalizer = weakref.finalize(self, file.close)
        self.duration = duration
        self.num_samples = num_samples
        self.mean, self.variance = sound_statistics(self)

    def read(self, start: int, stop: int) -> np.ndarray:
        """[stop-start] float32 samples; both ends lie within the sound."""
        assert 0 <= start <= stop <= self.num_samples, (start, stop, self.num_samples)
        samples = np.empty(stop - start, np.float32)
        with _temporary_disk():
            self._file.seek(start * samples.itemsize)
            count = self._file.readinto(memoryview(samples).cast("B"))
        assert count == samples.nbytes, (count, samples.nbytes)
        return samples

    def close(self) -> None:
        self._finalizer()

    def __enter__(self) -> Sound:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def open_sound(path: str | Path) -> Sound:
    """Decode the sound of a file once: any rate, channels and container that PyAV reads, also a video's sound track.

    Channels are averaged, then resampled by soxr's HQ recipe in a stream: sample for sample what librosa gives at
    16 kHz. An edge of coder padding is cut where the file states its length.

    Raises: MediaError for a file that is missing, empty, no media, without sound, cut off or broken, and for sound that
        is too short, silent, or not finite; OutputError when the temporary folder cannot hold it.
    """
    path = Path(path)
    check_sound_file(path)
    with _opened(path) as container:
        stream = _sound_stream(container, path)
        frames = _decoded(container, stream, path, logging.WARNING)
        first = next(frames, None)
        if first is None:
            raise MediaError(f"{path} has a sound track without a single sample; export it again")
        _check_layout(first, path)
        end = Fraction(0)   # seconds, on the file's clock, which may begin late or leave gaps
        with _Recorder(str(path), first.sample_rate) as recorder:
            for frame in chain([first], frames):
                if frame.sample_rate != recorder.rate:
                    raise MediaError(
                        f"{path} changes its sample rate from {recorder.rate} to {frame.sample_rate} Hz on the way; "
                        "convert it to wav first"
                    )
                recorder.add(_samples(frame, path))
                if frame.pts is not None:
                    end = frame.pts * frame.time_base + Fraction(frame.samples, frame.sample_rate)
            return recorder.finish(_true_length(container, stream, recorder, end, path))


def sound_from_waveform(waveform: Tensor, sample_rate: int) -> Sound:
    """The same from sound that is in memory already.

    Args:
        waveform: [C, S], -1..1.
        sample_rate: Hz.

    Raises: as `open_sound`, about "the sound".
    """
    if waveform.ndim != 2:
        raise MediaError(f"the sound must have the shape [channels, samples], got {list(waveform.shape)}")
    if sample_rate < 1:
        raise MediaError(f"the sound's sample rate must be 1 Hz or more, got {sample_rate}")
    with _Recorder("the sound", sample_rate) as recorder:
        if waveform.numel():
            for part in waveform.split(BLOCK, dim=1):
                recorder.add(part.detach().float().cpu().numpy())
        return recorder.finish(recorder.num_source)


def recorded(blocks: Iterable[np.ndarray], *, name: str, duration: Fraction) -> Sound:
    """Mono sound at 16 kHz that is made a block at a time, kept as any other.

    Args:
        blocks: [n] samples each.
        name: of the sound, for what errors say.
        duration: seconds, exact.

    Raises: as `open_sound`, about the name.
    """
    with _Recorder(name, SAMPLE_RATE) as recorder:
        for block in blocks:
            recorder.add(block[None])
        sound = recorder.finish(recorder.num_source)
    sound.duration = duration
    return sound


def sound_format(path: Path) -> tuple[int, int]:
    """Sample rate in Hz and number of channels of a file's sound. Raises: MediaError."""
    with _opened(path) as container:
        stream = _sound_stream(container, path)
        return stream.rate, stream.channels


def sound_frames(path: Path) -> Iterator[av.AudioFrame]:
    """A file's sound as it was recorded, a piece at a time. Raises: MediaError."""
    with _opened(path) as container:   # what is left out of it was told when it was opened
        yield from _decoded(container, _sound_stream(container, path), path, logging.DEBUG)


def resampled(path: Path, *, sample_format: str, layout: str, rate: int) -> Iterator[av.AudioFrame]:
    """A file's sound in another form: sample after sample, whatever its clock says, as `open_sound` hears it.

    Args:
        sample_format, layout: by FFmpeg's names, such as fltp and stereo.
        rate: Hz.

    Raises: MediaError.
    """
    for _, frames in groupby(sound_frames(path), key=lambda frame: (frame.format.name, frame.layout.name)):
        resampler = av.AudioResampler(sample_format, layout, rate)   # takes frames of one form
        for frame in frames:
            frame.pts = None
            yield from resampler.resample(frame)
        yield from resampler.resample(None)


class _Recorder:
    """Takes a source's samples as they come, leaves a `Sound`; without one, nothing stays behind."""

    def __init__(self, name: str, rate: int) -> None:
        self.name = name
        self.rate = rate
        self.num_source = 0   # samples seen, per channel
        self._num_bad = 0
        self._low, self._high = math.inf, -math.inf
        self._resampler = None
        if rate != SAMPLE_RATE:
            self._resampler = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
        with _temporary_disk():
            self._file = tempfile.TemporaryFile(prefix="s2v-sound-")

    def __enter__(self) -> _Recorder:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            with contextlib.suppress(OSError):   # a full disk refuses the last flush too
                self._file.close()

    def add(self, samples: np.ndarray) -> None:
        """[C, n] float32."""
        if not samples.size:
            return
        self.num_source += samples.shape[1]
        bad = np.count_nonzero(~np.isfinite(samples))
        self._num_bad += bad
        if bad:
            return   # refused at the end, when all are counted
        mono = samples.mean(axis=0)
        self._low, self._high = min(self._low, float(mono.min())), max(self._high, float(mono.max()))
        self._write(mono if self._resampler is None else self._resampler.resample_chunk(mono))

    def finish(self, num_source: int) -> Sound:
        """The first `num_source` samples as sound."""
        num_samples = math.ceil(Fraction(num_source * SAMPLE_RATE, self.rate))
        self._check(num_source, num_samples)
        if self._resampler is not None:
            self._write(self._resampler.resample_chunk(np.empty(0, np.float32), last=True))
        with _temporary_disk():
            self._file.truncate(num_samples * 4)   # cuts, or adds the zero that the resampler rounded away
        return Sound(self._file, duration=Fraction(num_source, self.rate), num_samples=num_samples)

    def _write(self, samples: np.ndarray) -> None:
        with _temporary_disk():
            self._file.write(np.ascontiguousarray(samples, np.float32).data)

    def _check(self, num_source: int, num_samples: int) -> None:
        if not num_source:
            raise MediaError(f"{self.name} has no samples; give at least {FEATURE_WINDOW / SAMPLE_RATE} s of sound")
        if self._num_bad:
            raise MediaError(
                f"{self.name} has {self._num_bad} samples that are not numbers (NaN or infinite); export it again"
            )
        if num_samples < FEATURE_WINDOW:
            raise MediaError(
                f"{self.name} is only {num_source / self.rate:.3g} s long ({num_source} samples); "
                f"at least {FEATURE_WINDOW / SAMPLE_RATE} s of sound is needed"
            )
        level = (self._high - self._low) / 2
        if level < SILENCE_LEVEL:
            raise MediaError(
                f"{self.name} is silent (level {level:.2g}, where 1 is full scale); give sound that can be heard"
            )


class Samples(Protocol):
    """Sound that is read a stretch at a time."""

    num_samples: int

    def read(self, start: int, stop: int) -> np.ndarray:
        """[stop-start] samples."""
        ...


def sound_statistics(sound: Samples) -> tuple[float, float]:
    """Mean and population variance, block by block in float64 (Chan et al.: exact with a large offset too)."""
    count, mean, spread = 0, 0.0, 0.0
    for start in range(0, sound.num_samples, BLOCK):
        block = sound.read(start, min(start + BLOCK, sound.num_samples)).astype(np.float64)
        step = block.mean() - mean
        spread += block.var() * len(block) + step**2 * count * len(block) / (count + len(block))
        count += len(block)
        mean += step * len(block) / count
    return float(mean), float(spread / count)


def check_sound_file(path: Path) -> None:
    """Whether there is a file with something in it. Raises: MediaError."""
    if path.is_dir():
        raise MediaError(f"{path} is a folder; give a sound file, or a video with sound")
    if not path.is_file():
        raise MediaError(f"there is no sound file {path}; check its name and folder")
    if not path.stat().st_size:
        raise MediaError(f"{path} is empty (0 bytes); copy or export it again")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[av.container.InputContainer]:
    try:
        container = open_media(path)
    except (av.error.FFmpegError, OSError) as error:
        raise MediaError(
            f"{path} cannot be read as sound ({error.strerror}); "
            "give a sound file such as wav or mp3, or a video with sound"
        ) from error
    with container:
        yield container


def _sound_stream(container: av.container.InputContainer, path: Path) -> av.AudioStream:
    stream = container.streams.best("audio")
    if stream is None:
        found = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
        raise MediaError(f"{path} has no sound track (found: {found}); give a sound file, or a video with sound")
    if stream.codec_context is None:
        raise MediaError(f"{path} holds sound in a form that cannot be decoded here; convert it to wav first")
    return stream


def _decoded(
    container: av.container.InputContainer, stream: av.AudioStream, path: Path, level: int
) -> Iterator[av.AudioFrame]:
    """Args: level: of the message about what is left out."""
    seconds = Fraction(0)
    try:
        for frame in _frames(container.demux(stream), path, level):
            seconds += Fraction(frame.samples, frame.sample_rate)
            yield frame
    except av.error.FFmpegError as error:
        raise MediaError(
            f"{path} is broken or cut off after {float(seconds):.1f} s of sound ({error.strerror}); "
            "copy it again, or convert what still plays to wav"
        ) from error


def _frames(packets: Iterable[av.Packet], path: Path, level: int) -> Iterator[av.AudioFrame]:
    """Decode. One unreadable packet amid good ones is passed over: mp3 files glued together have a header there."""
    fault = None
    for packet in packets:
        try:
            frames = packet.decode()
        except av.error.FFmpegError as error:
            if fault is not None:
                raise
            fault = error
            continue
        if frames and fault is not None:
            log.log(level, "%s: one packet of sound cannot be decoded and is left out (%s)", path, fault.strerror)
            fault = None
        yield from frames
    if fault is not None:
        raise fault


def _check_layout(frame: av.AudioFrame, path: Path) -> None:
    """What is heard of a video is mono or stereo. Raises: MediaError for channels that nobody knows how to mix."""
    try:
        av.AudioResampler("fltp", "stereo", frame.sample_rate).resample(frame)
    except av.error.ArgumentError as error:
        raise MediaError(
            f"{path} has {frame.layout.nb_channels} channels of sound, which cannot be mixed to two here; "
            "mix it to mono or stereo first"
        ) from error


def _samples(frame: av.AudioFrame, path: Path) -> np.ndarray:
    """[C, n] float32; whole numbers as fractions of full scale."""
    try:
        values = frame.to_ndarray()
    except ValueError as error:
        form = frame.format.name
        raise MediaError(f"{path} holds samples as {form}, which is not read; convert it to wav") from error
    if frame.format.is_packed:
        values = values.reshape(-1, len(frame.layout.channels)).T
    if values.dtype.kind == "u":
        return (values.astype(np.float32) - 128) / 128   # 8 bits: silence is 128
    if values.dtype.kind == "i":
        return values.astype(np.float32) / -float(np.iinfo(values.dtype).min)
    with np.errstate(over="ignore"):   # float64 beyond float32 becomes infinite, which is refused
        return values.astype(np.float32)


def _true_length(
    container: av.container.InputContainer, stream: av.AudioStream, recorder: _Recorder, end: Fraction, path: Path
) -> int:
    """Samples of the sound proper, without the padding that fills a coder's last packet.

    Args:
        end: seconds, of the last sample on the file's clock.
    """
    stated = _stated_seconds(container, stream)
    if stated is None:
        return recorder.num_source
    seconds = Fraction(recorder.num_source, recorder.rate)
    if max(seconds, end) < stated - max(Fraction(1, 2), stated / 100):
        raise MediaError(
            f"{path} is cut off: it says {float(stated):.1f} s and holds {float(seconds):.1f} s of sound; "
            "copy it again, or convert what still plays to wav"
        )
    length = round(stated * recorder.rate)
    return length if 0 < recorder.num_source - length <= PADDING_SAMPLES else recorder.num_source


def _stated_seconds(container: av.container.InputContainer, stream: av.AudioStream) -> Fraction | None:
    """How long the file says its sound is, where it knows."""
    if not container.format.name.startswith(_STATES_LENGTH):
        return None
    if stream.duration:
        return stream.duration * stream.time_base
    if container.duration and len(container.streams) == 1:   # with others, it is the longest one's
        return Fraction(container.duration, av.time_base)
    return None


@contextlib.contextmanager
def _temporary_disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"the sound cannot be kept in the temporary folder {tempfile.tempdir or '(none)'} ({error.strerror}); "
            "free some space there (an hour takes 230 MB), or point TMPDIR to another folder"
        ) from error
