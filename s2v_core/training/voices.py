"""Speech out of nothing: sentences, espeak-ng where it is installed, a formant synthesiser in numpy where it is not.

Knows no faces and no video; what a mouth looks like while speaking is decided from the sound in `sound_shape`.
"""

from __future__ import annotations

import tempfile
import wave
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import soxr

from ..config import SAMPLE_RATE
from ..errors import MediaError
from ..media.speech import espeak_program, speak_by_program

FULL_SCALE = 0.7       # peak of a track
LOUDNESS_WINDOW = 0.10   # seconds of sound that a frame's loudness is taken over, Hann weighted
LOUD = 2.0             # times the track's standard deviation: loudness 1
COMPRESSION = 0.6      # power of the amplitude: quiet consonants still open the mouth
FLOOR = 0.12           # of compressed amplitude, below which a mouth is shut


@dataclass(frozen=True, kw_only=True, slots=True)
class Voice:
    """Who speaks. `engine` is "espeak" or "formant"; `variant` is espeak's name of the voice."""

    engine: str
    variant: str = ""
    pitch: float = 120.0     # Hz for formants; espeak's 0..99 otherwise
    speed: float = 150.0     # words a minute
    tract: float = 1.0       # formants are multiplied by this: 1.15 sounds like a short throat


def _espeak(variant: str, pitch: float, speed: float) -> Voice:
    return Voice(engine="espeak", variant=variant, pitch=pitch, speed=speed)


ESPEAK_VOICES = (
    _espeak("en-us+m1", 45, 150), _espeak("en-us+m3", 35, 165), _espeak("en-gb+m4", 50, 145),
    _espeak("en-gb+f2", 60, 155), _espeak("en-us+f4", 70, 140), _espeak("en-us+f1", 50, 170),
    _espeak("en-gb+m6", 30, 150), _espeak("en-us+klatt2", 55, 155), _espeak("en-gb+f5", 55, 150),
)  # fmt: skip
FORMANT_VOICES = tuple(
    Voice(engine="formant", pitch=pitch, speed=speed, tract=tract)
    for pitch, speed, tract in ((95, 140, 0.92), (115, 165, 1.0), (140, 150, 1.04), (190, 155, 1.12), (230, 145, 1.2))
)
HELD_OUT_ESPEAK_VOICES = (
    _espeak("en-us+m7", 40, 160), _espeak("en-gb+f3", 65, 150), _espeak("en-us+m2", 55, 145),
    _espeak("en-us+klatt4", 45, 155),
)  # fmt: skip
HELD_OUT_FORMANT_VOICES = (
    Voice(engine="formant", pitch=105, speed=150, tract=0.96),
    Voice(engine="formant", pitch=210, speed=160, tract=1.16),
)

_SUBJECTS = (
    "the gardener", "my neighbour", "an old sailor", "our teacher", "the red fox", "a tall woman", "the baker",
    "every child", "the quiet engine", "a yellow boat", "the orchestra", "nobody here", "the market", "your brother",
)  # fmt: skip
_VERBS = (
    "carries", "has forgotten", "would like", "never opened", "is painting", "remembers", "will repair", "found",
    "measures", "walked around", "is asking about", "sold", "could hear", "hides",
)  # fmt: skip
_OBJECTS = (
    "the blue umbrella", "a bag of apples", "the longest road", "three letters", "an open window", "the broken clock",
    "a warm coat", "the music", "a bowl of soup", "the garden wall", "some paper boats", "the early train",
    "a photograph", "the wooden bridge",
)  # fmt: skip
_TAILS = (
    "in the morning", "after the storm", "before we leave", "at the edge of town", "again and again", "by mistake",
    "for the first time", "near the river", "without a word", "every other day", "", "", "",
)  # fmt: skip
HELD_OUT_SENTENCES = (
    "Please call Stella and ask her to bring these things with her from the store.",
    "When the sunlight strikes raindrops in the air, they act as a prism and form a rainbow.",
    "She had your dark suit in greasy wash water all year.",
    "The quick brown dog jumps over the lazy fox, and nobody minds at all.",
    "How much wood would it take to build a house that floats?",
    "Yesterday we drove for hours, and the mountains never came any closer.",
    "I owe you an answer, so let me think aloud for a moment.",
    "Bring five thick slabs of blue cheese, and maybe a snack for Bob.",
    "It is easy to be wise when everything is over.",
    "A large size in stockings is hard to sell.",
)  # fmt: skip


def voices(*, held_out: bool, engine: str | None = None) -> tuple[Voice, ...]:
    """The voices there are on this machine; held-out ones are never trained on.

    Args:
        engine: "espeak" or "formant" for those alone; None for all that can speak here.
    """
    espeak = HELD_OUT_ESPEAK_VOICES if held_out else ESPEAK_VOICES
    formant = HELD_OUT_FORMANT_VOICES if held_out else FORMANT_VOICES
    if engine == "formant" or (engine is None and espeak_program() is None):
        return formant
    return espeak if engine == "espeak" else espeak + formant


def sentence(rng: np.random.Generator, *, held_out: bool) -> str:
    """Something to say; held-out sentences share no phrase with the others."""
    if held_out:
        return HELD_OUT_SENTENCES[rng.integers(len(HELD_OUT_SENTENCES))]
    words = [part[rng.integers(len(part))] for part in (_SUBJECTS, _VERBS, _OBJECTS, _TAILS)]
    return " ".join(words).strip() + "."


def speech_track(voice: Voice, num_samples: int, rng: np.random.Generator, *, held_out: bool) -> np.ndarray:
    """[num_samples] float32 at 16 kHz: sentences with pauses between them."""
    parts: list[np.ndarray] = [np.zeros(int(rng.uniform(0.0, 0.4) * SAMPLE_RATE), np.float32)]
    while sum(map(len, parts)) < num_samples:
        parts.append(say(voice, sentence(rng, held_out=held_out), rng))
        pause = rng.uniform(0.2, 0.6) if rng.random() < 0.75 else rng.uniform(0.8, 1.8)
        parts.append(np.zeros(int(pause * SAMPLE_RATE), np.float32))
    track = np.concatenate(parts)[:num_samples]
    return (track * (FULL_SCALE / max(float(np.abs(track).max()), 1e-3))).astype(np.float32)


def say(voice: Voice, text: str, rng: np.random.Generator) -> np.ndarray:
    """[S] float32 at 16 kHz of one sentence, peak 1."""
    if voice.engine == "formant":
        return formant_speech(text, voice, rng)
    return espeak_speech(text, voice)


@lru_cache(maxsize=4096)
def espeak_speech(text: str, voice: Voice) -> np.ndarray:
    """[S] float32 at 16 kHz, spoken by espeak-ng; always the same for the same words.

    Raises: MediaError where espeak-ng is missing, ConfigError for a voice that it does not have.
    """
    program = espeak_program()
    if program is None:
        raise MediaError("espeak-ng is not installed; install it, or take voices with engine='formant'")
    with tempfile.TemporaryDirectory(prefix="speech-") as folder:
        path = Path(folder) / "speech.wav"
        speak_by_program(program, text, voice.variant, path, pitch=voice.pitch, speed=voice.speed)
        with wave.open(str(path)) as file:
            rate, samples = file.getframerate(), np.frombuffer(file.readframes(file.getnframes()), "<i2")
    sound = soxr.resample(samples.astype(np.float32), rate, SAMPLE_RATE)
    return sound / max(float(np.abs(sound).max()), 1e-3)


# Formants in Hz of a man's vowels; Peterson and Barney, J. Acoust. Soc. Am. 24, 175 (1952).
_VOWELS = {
    "i": (270, 2290, 3010), "e": (530, 1840, 2480), "a": (730, 1090, 2440), "o": (570, 840, 2410),
    "u": (300, 870, 2240), "y": (390, 1990, 2550),
}  # fmt: skip
_LOUDNESS_OF = {"i": 0.7, "e": 0.85, "a": 1.0, "o": 0.9, "u": 0.65, "y": 0.75}
_HISSING = {"s": (4500, 7500), "z": (4000, 7000), "f": (1500, 7000), "v": (1200, 5000), "h": (700, 3500),
            "c": (2500, 6000), "x": (3000, 6500), "t": (3000, 6000), "k": (1200, 3500), "p": (500, 1800),
            "d": (2500, 5000), "g": (1000, 3000), "b": (400, 1500), "j": (2200, 5000), "q": (1200, 3500)}  # fmt: skip
_HUMMING = {"m": (250, 1000, 2200), "n": (250, 1400, 2400), "l": (350, 1200, 2600), "r": (350, 1100, 1600),
            "w": (300, 700, 2200)}  # fmt: skip


def formant_speech(text: str, voice: Voice, rng: np.random.Generator) -> np.ndarray:
    """[S] float32 at 16 kHz: letters spelt as vowels, hums, hisses and pauses. Nonsense with a speech's rhythm."""
    pieces = [_sound_of(letter, voice, rng) for letter in text.lower()]
    fade = int(0.012 * SAMPLE_RATE)
    sound = np.zeros(sum(map(len, pieces)) + fade, np.float64)
    at = 0
    for piece in pieces:   # neighbours overlap by the fade
        window = np.minimum(1, np.minimum(np.arange(1, len(piece) + 1), np.arange(len(piece), 0, -1)) / fade)
        sound[at : at + len(piece)] += piece * window
        at += max(1, len(piece) - fade)
    sound = sound[:at]
    return (sound / max(float(np.abs(sound).max()), 1e-3)).astype(np.float32)


def _sound_of(letter: str, voice: Voice, rng: np.random.Generator) -> np.ndarray:
    beat = 150 / voice.speed
    if letter in _VOWELS:
        stress = rng.uniform(0.55, 1.0)
        return stress * _LOUDNESS_OF[letter] * _voiced(_VOWELS[letter], rng.uniform(0.09, 0.17) * beat, voice, rng)
    if letter in _HUMMING:
        return 0.35 * _voiced(_HUMMING[letter], rng.uniform(0.05, 0.09) * beat, voice, rng)
    if letter in _HISSING:
        return rng.uniform(0.06, 0.18) * _hiss(*_HISSING[letter], rng.uniform(0.04, 0.09) * beat, rng)
    seconds = {" ": 0.03, ",": 0.2, ".": 0.15, "?": 0.15}.get(letter, 0.02)
    return np.zeros(int(seconds * beat * SAMPLE_RATE) + 1)


def _voiced(formants: tuple[int, ...], seconds: float, voice: Voice, rng: np.random.Generator) -> np.ndarray:
    """Harmonics of the pitch, each as loud as the formants near it make it."""
    clock = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    start, stop = voice.pitch * rng.uniform(0.9, 1.15, 2)
    phase = 2 * np.pi * np.cumsum(np.linspace(start, stop, len(clock))) / SAMPLE_RATE
    harmonics = np.arange(1, int(4500 / voice.pitch))
    frequencies = harmonics * voice.pitch
    gain = sum(
        weight / (1 + ((frequencies - centre * voice.tract) / (60 + 0.05 * centre)) ** 2)
        for centre, weight in zip(formants, (1.0, 0.6, 0.3), strict=True)
    )
    return np.sin(np.outer(harmonics, phase)).T @ (gain + 0.02)


def _hiss(low: float, high: float, seconds: float, rng: np.random.Generator) -> np.ndarray:
    noise = rng.standard_normal(int(seconds * SAMPLE_RATE))
    spectrum = np.fft.rfft(noise)
    frequencies = np.fft.rfftfreq(len(noise), 1 / SAMPLE_RATE)
    spectrum[(frequencies < low) | (frequencies > high)] *= 0.05
    hiss = np.fft.irfft(spectrum, len(noise))
    return hiss / max(np.abs(hiss).max(), 1e-6)


def sound_shape(waveform: np.ndarray, num_frames: int, fps: float) -> tuple[np.ndarray, np.ndarray]:
    """What a mouth does to a sound: how far it opens, how wide it is. Frame k hears the sound about k/fps.

    Both depend on the sound divided by its own standard deviation, as the sound encoder hears it.

    Args:
        waveform: [S] at 16 kHz.

    Returns: [F] compressed loudness, 0 in silence to about 1; [F] brightness, -1 (dark: "oo") to 1 (bright: "ee", "s").
    """
    size = int(LOUDNESS_WINDOW * SAMPLE_RATE)
    padded = np.pad(waveform.astype(np.float64), (size // 2, size + int(SAMPLE_RATE / fps)))
    starts = np.minimum(np.round(np.arange(num_frames) * SAMPLE_RATE / fps).astype(int), len(padded) - size)
    windows = padded[starts[:, None] + np.arange(size)] * np.hanning(size)
    scale = np.sqrt(np.mean(np.hanning(size) ** 2)) * np.sqrt(waveform.astype(np.float64).var() + 1e-7)
    amplitude = np.sqrt(np.mean(windows**2, axis=1)) / (LOUD * scale)
    loudness = np.clip((amplitude**COMPRESSION - FLOOR) / (1 - FLOOR), 0, 1.2)
    spectrum = np.abs(np.fft.rfft(windows, axis=1)) ** 2
    frequencies = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    band = (frequencies > 200) & (frequencies < 6000)
    energy = spectrum[:, band] + 1e-9 * scale**2
    centroid = np.exp((energy * np.log(frequencies[band])).sum(1) / energy.sum(1))
    brightness = np.clip(np.log(centroid / 800) / np.log(2.5), -1, 1)
    return loudness, np.where(loudness > 0, brightness, 0.0)
