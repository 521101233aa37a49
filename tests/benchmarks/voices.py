"""Whether voices are told from music and from each other: sounds put together here, of which all is known.

    python tests/benchmarks/voices.py            # takes espeak-ng, or `pip install espeakng-loader`
    python tests/benchmarks/voices.py --diarize  # and `pip install --no-deps silero-vad resemblyzer`

Music is chords and drums that come again every two seconds, as loud as the voice. Conversations are eight sentences of
several voices, with pauses between them and without. Prints a table with the goals; exit code 1 when one is missed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import wave
from pathlib import Path

import numpy as np
import soxr
import torch

from s2v_core.conditioning.diarize import diarize
from s2v_core.conditioning.isolation import isolate_voice
from s2v_core.conditioning.voice_engine import voice_engine
from s2v_core.config import SAMPLE_RATE
from s2v_core.media.audio_io import Sound, sound_from_waveform
from s2v_core.media.speech import write_speech
from s2v_core.training.measure import compressed_loudness, correlation
from s2v_core.training.voices import HELD_OUT_SENTENCES

FPS = 16.0
BEAT = SAMPLE_RATE // 2
CHORDS = ((220.0, 277.2, 329.6), (146.8, 185.0, 220.0), (164.8, 207.7, 246.9), (196.0, 246.9, 293.7))
VOICES = ("en-us+m7", "en-us+f2", "de")
CASTS = (("en-us+m1", "en-us+f2"), ("en-us+f2", "en-us+f4"), ("de", "de+f2"), ("en-us+m1", "en-us+f4", "en-us+m7"))

Line = tuple[str, float, str, bool]
Turns = list[tuple[int, int, int]]
"""Samples from, to, and the voice."""


def said(text: str, voice: str) -> np.ndarray:
    """[S] at 16 kHz."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "said.wav")
        write_speech(text, voice, path)
        with wave.open(str(path)) as file:
            samples = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32_768
            rate = file.getframerate()
    samples = soxr.resample(samples, rate, SAMPLE_RATE)
    loud = np.flatnonzero(np.abs(samples) > 0.01)
    return samples[loud[0] : loud[-1]]


def sound_of(samples: np.ndarray) -> Sound:
    return sound_from_waveform(torch.from_numpy(samples.astype(np.float32))[None], SAMPLE_RATE)


def music(num_samples: int, rng: np.random.Generator) -> np.ndarray:
    t = np.arange(BEAT) / SAMPLE_RATE
    parts = []
    for beat in range(-(-num_samples // BEAT)):
        chord = sum(np.sin(2 * np.pi * pitch * n * t) / n for pitch in CHORDS[beat % 4] for n in range(1, 6))
        snare, drum = 0.6 * rng.standard_normal(BEAT) * np.exp(-25 * t), np.sin(2 * np.pi * 60 * t) * np.exp(-12 * t)
        parts.append(0.2 * chord * np.exp(-2 * t) + (snare if beat % 2 else drum))
    return np.concatenate(parts)[:num_samples]


def isolation() -> list[Line]:
    before, after, alone = [], [], []
    for number, voice in enumerate(VOICES):
        pause = np.zeros(BEAT)
        speech = np.concatenate([np.append(said(text, voice), pause) for text in HELD_OUT_SENTENCES[:5]])
        band = music(len(speech), np.random.default_rng(number))
        song = sound_of(speech + band * np.sqrt(np.mean(speech**2) / np.mean(band**2)))
        clean = compressed_loudness(speech, int(len(speech) / SAMPLE_RATE * FPS), FPS)
        for found, sound in ((before, song), (after, isolate_voice(song)), (alone, isolate_voice(sound_of(speech)))):
            found.append(correlation(compressed_loudness(sound.read(0, sound.num_samples), len(clean), FPS), clean))
    return [
        ("loudness of voice and music, r with the voice", float(np.mean(before)), "", True),
        ("the same with --isolate-voice", float(np.mean(after)), "0.9 or more", min(after) >= 0.9),
        ("a voice without music, with --isolate-voice", float(np.mean(alone)), "0.95 or more", min(alone) >= 0.95),
    ]


def conversation(voices: tuple[str, ...], pause: float, seed: int) -> tuple[np.ndarray, Turns]:
    rng, at = np.random.default_rng(seed), BEAT
    parts, turns = [np.zeros(BEAT)], []
    for number in range(8):
        voice = number if number < len(voices) else int(rng.integers(len(voices)))
        words = said(HELD_OUT_SENTENCES[(number + seed) % len(HELD_OUT_SENTENCES)], voices[voice])
        gap = np.zeros(round(pause * rng.uniform(0.5, 1.5) * SAMPLE_RATE))
        turns.append((at, at + len(words), voice))
        parts += [words * rng.uniform(0.3, 1.0), gap]
        at += len(words) + len(gap)
    return np.concatenate(parts), turns


def wrong(turns: Turns, samples: np.ndarray, num_voices: int) -> float:
    """Share of the spoken time that another voice, or nobody, is said to speak."""
    truth, told = (np.full(len(samples) // 160, -1) for _ in range(2))
    for start, stop, voice in turns:
        truth[start // 160 : stop // 160] = voice
    for turn in diarize(sound_of(samples), num_voices, voice_engine()):
        told[round(100 * turn.start) : round(100 * turn.end)] = turn.voice
    return float(np.mean((told != truth)[truth >= 0]))


def voices() -> list[Line]:
    lines = []
    for name, pause, goal in (("with pauses of half a second", 0.5, 0.05), ("without pauses", 0.0, 0.1)):
        found = []
        for seed, cast in enumerate(CASTS):
            samples, turns = conversation(cast, pause, seed)
            found.append(wrong(turns, samples, len(cast)))
        mean = float(np.mean(found))
        lines.append((f"time given to the wrong voice, {name}", mean, f"{goal:g} or less", mean <= goal))
        lines.append(("the worst of these conversations", max(found), "", True))
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--diarize", action="store_true", help="measure --diarize too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = isolation() + (voices() if options.diarize else [])
    for name, value, goal, reached in lines:
        print(f"{name:62} {value:6.3f}  {goal:14} {'' if reached else 'missed'}")
    return 0 if all(reached for *_, reached in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
