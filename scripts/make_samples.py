"""Writes the samples that are made of nothing: a song and a conversation. Run it from the repository's root.

Knows notes and two voices; what the samples are for is in `samples/README.md`.
"""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import soxr

from s2v_core.config import SAMPLE_RATE
from s2v_core.training.voices import HELD_OUT_FORMANT_VOICES, say

SAMPLES = Path(__file__).parents[1] / "samples"
CHORDS = ((57, 60, 64), (53, 57, 60), (48, 52, 55), (55, 59, 62))   # MIDI notes: A minor, F, C, G
BEAT = 0.33         # seconds
MUSIC = 0.12        # of full scale, a note
CONVERSATION = ("could you hear the orchestra", "nobody here could hear the music")
PAUSE = 0.35        # seconds after somebody has spoken
LOUDNESS = 0.7      # of full scale, at most


def pluck(note: int, num_samples: int) -> np.ndarray:
    """A string that is plucked: harmonics of a MIDI note, the higher the sooner gone."""
    times = np.arange(num_samples) / SAMPLE_RATE
    pitch = 440 * 2 ** ((note - 69) / 12)
    return sum(np.sin(2 * np.pi * k * pitch * times) * np.exp(-3 * k * times) / k for k in range(1, 6))


def accompaniment(num_samples: int) -> np.ndarray:
    """Chords, one every four beats, a note of them on every beat."""
    music = np.zeros(num_samples)
    for beat, start in enumerate(range(0, num_samples, round(BEAT * SAMPLE_RATE))):
        chord = CHORDS[beat // 4 % len(CHORDS)]
        for note in chord if beat % 4 == 0 else (chord[beat % len(chord)] + 12,):
            music[start:] += MUSIC * pluck(note, num_samples - start)
    return music


def read(path: Path) -> np.ndarray:
    with wave.open(str(path)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 2**15
        return soxr.resample(samples, file.getframerate(), SAMPLE_RATE)


def write(path: Path, samples: np.ndarray) -> None:
    samples = samples / max(1.0, np.abs(samples).max())
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(np.round(samples * (2**15 - 1)).astype("<i2").tobytes())


def main() -> None:
    speech = read(SAMPLES / "speech.wav")
    write(SAMPLES / "song.wav", speech + accompaniment(len(speech)))
    rng, silence = np.random.default_rng(0), np.zeros(round(PAUSE * SAMPLE_RATE))
    said = [say(voice, text, rng) for voice, text in zip(HELD_OUT_FORMANT_VOICES, CONVERSATION, strict=True)]
    for spoken in said:
        print(f"{len(spoken) / SAMPLE_RATE:.2f} s, then {PAUSE} s of silence")
    write(SAMPLES / "dialogue.wav", LOUDNESS * np.concatenate([part for spoken in said for part in (spoken, silence)]))


if __name__ == "__main__":
    main()
