"""Sound files of every kind come in as the same 16 kHz mono; what cannot drive a video is refused in a sentence."""

from __future__ import annotations

import gc
import os
import tracemalloc
import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soxr
import torch

from s2v_core.errors import MediaError, OutputError
from s2v_core.media.audio_io import Sound, open_sound, sound_from_waveform

LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}


def tones(seconds: float, rate: int, channels: int = 1) -> np.ndarray:
    """[C, S]: another tone in every channel."""
    time = np.arange(round(seconds * rate)) / rate
    return np.stack([0.3 * np.sin(2 * np.pi * (200 + 70 * c) * time) for c in range(channels)]).astype(np.float32)


def write(
    path: Path, samples: np.ndarray, rate: int, codec: str, *, picture: bool = False, **options: str
) -> Path:
    with av.open(str(path), "w", options=options) as out:
        out.metadata["title"] = "Zaz"
        video = out.add_stream("mpeg4", rate=10) if picture else None
        stream = out.add_stream(codec, rate=rate, layout=LAYOUTS[len(samples)]) if samples.size else None
        if video:
            video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
            for packet in video.encode(av.VideoFrame(32, 32, "yuv420p")):
                out.mux(packet)
            out.mux(video.encode(None))
        for start in range(0, samples.shape[1], 1024) if stream else ():
            part = np.ascontiguousarray(samples[:, start : start + 1024])
            frame = av.AudioFrame.from_ndarray(part, format="fltp", layout=LAYOUTS[len(samples)])
            frame.sample_rate, frame.pts = rate, start
            out.mux(stream.encode(frame))
        if stream:
            out.mux(stream.encode(None))
    return path


def read_all(sound: Sound) -> np.ndarray:
    return sound.read(0, sound.num_samples)


def expected(samples: np.ndarray, rate: int) -> np.ndarray:
    mono = samples.mean(axis=0)
    return mono if rate == 16_000 else soxr.resample(mono, rate, 16_000, quality="HQ")


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("rate", [8000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000, 192_000])
def test_any_rate_and_channels_become_the_mono_that_librosa_gives(rate: int, channels: int, tmp_path: Path) -> None:
    samples = tones(0.73, rate, channels)
    with open_sound(write(tmp_path / "a.wav", samples, rate, "pcm_f32le")) as sound:
        want = expected(samples, rate)
        assert sound.duration == Fraction(samples.shape[1], rate)
        assert sound.num_samples == -(-samples.shape[1] * 16_000 // rate)
        found = read_all(sound)
        assert np.array_equal(found[: len(want)], want)
        assert len(found) - len(want) in (0, 1) and not found[len(want) :].any()


@pytest.mark.parametrize(
    ("name", "codec", "rate", "error"),
    [
        ("a.wav", "pcm_s16le", 44_100, 2e-5), ("a.wav", "pcm_u8", 22_050, 6e-3), ("a.wav", "pcm_s24le", 48_000, 2e-7),
        ("a.wav", "pcm_f64le", 44_100, 0), ("a.wav", "pcm_s32le", 44_100, 1e-7), ("a.flac", "flac", 96_000, 2e-5),
        ("a.mp3", "libmp3lame", 44_100, 2e-2), ("a.m4a", "aac", 44_100, 3e-2), ("a.ogg", "libopus", 48_000, 2e-2),
        ("a.opus", "libopus", 48_000, 2e-2), ("a.mkv", "flac", 48_000, 2e-5), ("a.webm", "libopus", 48_000, 2e-2),
        ("a.ac3", "ac3", 48_000, 2e-2),
    ],
)  # fmt: skip
def test_every_container_and_coding_is_read(name: str, codec: str, rate: int, error: float, tmp_path: Path) -> None:
    samples = tones(1.0, rate, 2)
    with open_sound(write(tmp_path / name, samples, rate, codec)) as sound:
        found, want = read_all(sound), expected(samples, rate)
        late = 256 * 16_000 // rate if codec == "ac3" else 0   # this one has no place to say how late its coder is
        middle = slice(2000, 12_000)                           # lossy coders blur the edges
        assert np.abs(found[late:][middle] - want[middle]).max() <= error


def test_a_video_gives_its_sound_track(tmp_path: Path) -> None:
    samples = tones(1.0, 44_100)
    path = write(tmp_path / "film.mp4", samples, 44_100, "aac", picture=True)
    with open_sound(path) as sound:
        assert np.abs(read_all(sound)[2000:12_000] - expected(samples, 44_100)[2000:12_000]).max() < 3e-2


def test_the_padding_of_an_aac_file_is_no_part_of_the_sound(tmp_path: Path) -> None:
    path = write(tmp_path / "a.m4a", tones(3.0, 44_100), 44_100, "aac")
    with av.open(str(path)) as container:
        assert sum(frame.samples for frame in container.decode(audio=0)) > 3 * 44_100
    with open_sound(path) as sound:
        assert sound.duration == 3 and sound.num_samples == 48_000


@pytest.mark.parametrize(("name", "begins", "gap"), [("a.m4a", 0.0, 2.0), ("a.mka", 0.6, 0.0), ("a.mka", 0.0, 2.0)])
def test_sound_that_begins_late_or_has_a_gap_is_whole(name: str, begins: float, gap: float, tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.m4a", tones(2.0, 44_100), 44_100, "aac")
    with av.open(str(whole)) as source, av.open(str(tmp_path / name), "w") as out:
        stream = out.add_stream_from_template(source.streams.audio[0])
        for packet in (packet for packet in source.demux(audio=0) if packet.size):
            packet.pts = packet.dts = packet.pts + round(44_100 * (begins + gap * (packet.pts > 44_100)))
            packet.stream = stream
            out.mux(packet)
    with open_sound(tmp_path / name) as sound:
        assert float(sound.duration) == pytest.approx(2.0, abs=0.05)


def test_sound_in_memory_is_the_same_as_in_a_file(tmp_path: Path) -> None:
    samples = tones(2.0, 44_100, 2)
    with (
        open_sound(write(tmp_path / "a.wav", samples, 44_100, "pcm_f32le")) as file,
        sound_from_waveform(torch.from_numpy(samples), 44_100) as memory,
    ):
        assert np.array_equal(read_all(file), read_all(memory))
        assert (file.duration, file.mean, file.variance) == (memory.duration, memory.mean, memory.variance)


def test_a_stretch_is_the_part_of_the_whole() -> None:
    with sound_from_waveform(torch.from_numpy(tones(1.0, 48_000)), 48_000) as sound:
        whole = read_all(sound)
        assert np.array_equal(sound.read(5000, 7001), whole[5000:7001])
        assert np.array_equal(np.concatenate([sound.read(9000, 16_000), sound.read(0, 9000)]), np.roll(whole, -9000))
        assert sound.read(3, 3).shape == (0,)


@pytest.mark.parametrize("offset", [0.0, 0.9])
def test_mean_and_variance_are_the_whole_sounds(offset: float) -> None:
    samples = tones(40.0, 16_000) * 1e-3 + np.float32(offset)   # several blocks
    with sound_from_waveform(torch.from_numpy(samples), 16_000) as sound:
        assert sound.mean == pytest.approx(samples.mean(dtype=np.float64), rel=1e-9, abs=1e-12)
        assert sound.variance == pytest.approx(samples.var(dtype=np.float64), rel=1e-9)


def test_long_sound_stays_out_of_memory(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", tones(600.0, 8000), 8000, "pcm_s16le")
    tracemalloc.start()
    try:
        sound = open_sound(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    with sound:
        assert sound.num_samples * 4 == 38_400_000
        assert peak < 10_000_000


def test_nothing_is_left_in_the_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = len(os.listdir("/proc/self/fd"))
    closed = sound_from_waveform(torch.from_numpy(tones(1.0, 16_000)), 16_000)
    closed.close()
    forgotten = sound_from_waveform(torch.from_numpy(tones(1.0, 16_000)), 16_000)
    assert len(os.listdir("/proc/self/fd")) == before + 1
    del forgotten
    gc.collect()
    with pytest.raises(MediaError):
        sound_from_waveform(torch.zeros(1, 16_000), 16_000)
    assert len(os.listdir("/proc/self/fd")) == before and not list(tmp_path.iterdir())


def test_a_full_temporary_disk_is_said() -> None:
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, limits[1]))
    try:
        with pytest.raises(OutputError, match=r"temporary folder .*File too large.*TMPDIR"):
            sound_from_waveform(torch.from_numpy(tones(60.0, 16_000)), 16_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_title_in_an_old_encoding_is_no_fault(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", tones(1.0, 16_000), 16_000, "pcm_s16le")
    path.write_bytes(path.read_bytes().replace(b"Zaz", b"Z\xe9z"))
    with pytest.raises(UnicodeDecodeError):
        av.open(str(path))
    with open_sound(path) as sound:
        assert sound.duration == 1


def test_mp3_files_glued_together_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "a.mp3", tones(2.0, 44_100), 44_100, "libmp3lame")
    path.write_bytes(path.read_bytes() * 2)
    with open_sound(path) as sound:
        assert 4 <= sound.duration < 4.1
    assert "one packet of sound cannot be decoded and is left out" in caplog.text


def cut(path: Path, share: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def spoilt(path: Path) -> Path:
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 1500] = np.random.default_rng(0).bytes(1500)
    path.write_bytes(data)
    return path


def no_file(folder: Path) -> Path:
    return folder / "none.wav"


def a_folder(folder: Path) -> Path:
    return folder


def empty_file(folder: Path) -> Path:
    (folder / "a.wav").touch()
    return folder / "a.wav"


def text(folder: Path) -> Path:
    (folder / "a.wav").write_text("hello, this is no sound\n" * 50)
    return folder / "a.wav"


def video_only(folder: Path) -> Path:
    return write(folder / "a.mp4", np.empty((1, 0), np.float32), 0, "", picture=True)


def no_samples(folder: Path) -> Path:
    path = write(folder / "a.wav", tones(1.0, 16_000), 16_000, "pcm_s16le")
    data = path.read_bytes()
    start = data.index(b"data")
    path.write_bytes(data[: start + 4] + bytes(4))
    return path


def one_sample(folder: Path) -> Path:
    return write(folder / "a.wav", np.full((1, 1), 0.5, np.float32), 16_000, "pcm_s16le")


def too_short(folder: Path) -> Path:
    return write(folder / "a.wav", tones(0.0249, 48_000), 48_000, "pcm_s16le")


def silent(folder: Path) -> Path:
    return write(folder / "a.wav", np.zeros((2, 16_000), np.float32), 16_000, "pcm_s16le")


def hum_below_hearing(folder: Path) -> Path:
    return write(folder / "a.wav", tones(1.0, 16_000) * 1e-4, 16_000, "pcm_f32le")   # 0.3e-4: -90.5 dB


def constant(folder: Path) -> Path:
    return write(folder / "a.wav", np.full((1, 16_000), 0.5, np.float32), 16_000, "pcm_f32le")


def not_numbers(folder: Path) -> Path:
    samples = tones(1.0, 44_100, 2)
    samples[0, 100], samples[1, 30_000], samples[1, 30_001] = np.nan, np.inf, -np.inf
    return write(folder / "a.wav", samples, 44_100, "pcm_f32le")


def beyond_float32(folder: Path) -> Path:
    path = write(folder / "a.wav", tones(1.0, 16_000), 16_000, "pcm_f64le")
    data = bytearray(path.read_bytes())
    data[-80:-72] = np.float64(1e300).tobytes()
    path.write_bytes(data)
    return path


def m4a_cut(folder: Path) -> Path:
    return cut(write(folder / "a.m4a", tones(3.0, 44_100), 44_100, "aac"), 0.5)


def streamable_m4a_cut(folder: Path) -> Path:
    return cut(write(folder / "a.m4a", tones(3.0, 44_100), 44_100, "aac", movflags="faststart"), 0.5)


def flac_cut(folder: Path) -> Path:
    return cut(write(folder / "a.flac", tones(3.0, 44_100), 44_100, "flac"), 0.5)


def mkv_cut(folder: Path) -> Path:
    return cut(write(folder / "a.mka", tones(3.0, 44_100), 44_100, "aac"), 0.5)


def nine_channels(folder: Path) -> Path:
    with wave.open(str(folder / "a.wav"), "wb") as file:
        file.setnchannels(9)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes((tones(1.0, 16_000).repeat(9, axis=0).T * 32_000).astype("<i2").tobytes())
    return folder / "a.wav"


def whole_numbers_of_64_bits(folder: Path) -> Path:
    return write(folder / "a.wav", tones(1.0, 16_000), 16_000, "pcm_s64le")


def mp3_spoilt(folder: Path) -> Path:
    return spoilt(write(folder / "a.mp3", tones(3.0, 44_100), 44_100, "libmp3lame"))


def two_rates(folder: Path) -> Path:
    first = write(folder / "a.mp3", tones(1.0, 44_100), 44_100, "libmp3lame")
    second = write(folder / "b.mp3", tones(1.0, 32_000), 32_000, "libmp3lame")
    first.write_bytes(first.read_bytes() + second.read_bytes())
    return first


def unknown_coding(folder: Path) -> Path:
    path = write(folder / "a.mkv", tones(1.0, 44_100), 44_100, "aac")
    path.write_bytes(path.read_bytes().replace(b"A_AAC", b"A_QQQ"))
    return path


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (no_file, "there is no sound file .*none.wav; check its name"),
        (a_folder, "is a folder; give a sound file"),
        (empty_file, r"a\.wav is empty \(0 bytes\); copy or export it again"),
        (text, r"a\.wav cannot be read as sound \(Invalid data.*\); give a sound file such as"),
        (video_only, r"a\.mp4 has no sound track \(found: video\); give a sound file"),
        (no_samples, r"a\.wav has a sound track without a single sample; export it again"),
        (one_sample, r"a\.wav is only 6\.25e-05 s long \(1 samples\); at least 0\.025 s of sound is needed"),
        (too_short, r"a\.wav is only 0\.0249 s long \(1195 samples\); at least 0\.025 s"),
        (silent, r"a\.wav is silent \(level 0, .*\); give sound that can be heard"),
        (hum_below_hearing, r"a\.wav is silent \(level 3e-05, "),
        (constant, r"a\.wav is silent \(level 0, "),
        (not_numbers, r"a\.wav has 3 samples that are not numbers \(NaN or infinite\); export it again"),
        (beyond_float32, r"a\.wav has 1 samples that are not numbers"),
        (m4a_cut, r"a\.m4a cannot be read as sound"),
        (streamable_m4a_cut, r"a\.m4a is broken or cut off after 1\.\d s of sound .*; copy it again"),
        (flac_cut, r"a\.flac is broken or cut off after 1\.\d s"),
        (mkv_cut, r"a\.mka is cut off: it says 3\.0 s and holds 1\.\d s of sound; copy it again"),
        (mp3_spoilt, r"a\.mp3 is broken or cut off after 1\.\d s"),
        (whole_numbers_of_64_bits, r"a\.wav holds samples as s64, which is not read; convert it to wav"),
        (nine_channels, r"a\.wav has 9 channels of sound, which cannot be mixed to two here; mix it to mono or stereo"),
        (two_rates, r"a\.mp3 changes its sample rate from \d+ to \d+ Hz on the way; convert it to wav"),
        (unknown_coding, r"a\.mkv holds sound in a form that cannot be decoded here; convert it"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_drive_a_video_is_refused_in_a_sentence(make: object, says: str, tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=says) as caught:
        open_sound(make(tmp_path))
    assert "\n" not in str(caught.value)


def test_quiet_sound_above_minus_90_db_is_heard(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", tones(1.0, 16_000) * 1.1e-4, 16_000, "pcm_f32le")
    with open_sound(path) as sound:
        assert sound.variance == pytest.approx(3.3e-5**2 / 2, rel=0.01)


@pytest.mark.parametrize(
    ("waveform", "rate", "says"),
    [
        (torch.zeros(16_000), 16_000, r"shape \[channels, samples\], got \[16000\]"),
        (torch.zeros(2, 0), 16_000, "the sound has no samples"),
        (torch.zeros(0, 100), 16_000, "the sound has no samples"),
        (torch.zeros(1, 100), 0, "sample rate must be 1 Hz or more, got 0"),
        (torch.full((1, 16_000), float("nan")), 16_000, "the sound has 16000 samples that are not numbers"),
        (torch.zeros(1, 16_000), 16_000, "the sound is silent"),
    ],
)
def test_a_waveform_that_cannot_drive_a_video_is_refused(waveform: torch.Tensor, rate: int, says: str) -> None:
    with pytest.raises(MediaError, match=says):
        sound_from_waveform(waveform, rate)


def test_a_file_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.wav", tones(1.0, 16_000), 16_000, "pcm_s16le")

    def refuse(*args: object, **kwargs: object) -> None:
        raise av.error.PermissionError(13, "Permission denied", str(path))   # the tests may run as root

    monkeypatch.setattr(av, "open", refuse)
    with pytest.raises(MediaError, match=r"a\.wav cannot be read as sound \(Permission denied\)"):
        open_sound(path)
