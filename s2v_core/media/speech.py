"""Text to speech: words to a sound file, by espeak-ng, which runs here and needs no network.

Knows the program and the package that bring espeak-ng; not what the speech is for.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import shutil
import subprocess
import wave
from pathlib import Path

import numpy as np

from ..errors import ConfigError, OutputError

log = logging.getLogger(__name__)

VOICE = "en-us"
SPEED = 175                  # words a minute, espeak-ng's own
SLOWEST, FASTEST = 80, 450
TIME_LIMIT = 600   # seconds for the program to speak: an hour of speech takes some ten

# Of espeak-ng's speak_lib.h.
SYNCHRONOUS, BY_CHARACTERS, IN_UTF8, RATE = 2, 1, 1, 1


def speech_file(text: str, voice: str, beside: Path, speed: int = SPEED) -> Path:
    """The words as a wav beside a file, under a name of its own; one that is there is used again.

    Args:
        voice: a language or voice of espeak-ng: "en-us", "de", "fr+f3".
        beside: talk.mp4 gives talk.mp4.say-1f2e3d4c.wav.
        speed: words a minute.

    Raises: ConfigError for nothing to say, an unknown voice, an impossible speed, and where espeak-ng is missing;
        OutputError.
    """
    name = hashlib.sha256(f"{voice}\n{speed}\n{text}".encode()).hexdigest()[:8]
    path = beside.with_name(f"{beside.name}.say-{name}.wav")
    if not path.is_file():
        write_speech(text, voice, path, speed)
        log.info("%s says: %s", path, text if len(text) < 60 else text[:57] + "...")
    return path


def write_speech(text: str, voice: str, path: Path, speed: int = SPEED) -> None:
    """The words as a mono 16-bit wav, which appears complete or not at all. Raises: as `speech_file`."""
    if not any(letter.isalnum() for letter in text):
        raise ConfigError(f"there is nothing to say in {text!r}; give words")
    if not SLOWEST <= speed <= FASTEST:
        raise ConfigError(f"speech goes at {SLOWEST} to {FASTEST} words a minute (usual: {SPEED}), got {speed}")
    partial = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        program = espeak_program()
        if program is not None:
            speak_by_program(program, text, voice, partial, speed=speed)
        else:
            _by_package(text, voice, partial, speed)
        os.replace(partial, path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}); choose another folder") from error
    finally:
        if os.path.lexists(partial):
            partial.unlink()


def espeak_program() -> str | None:
    """Path of espeak-ng, or None where it is not installed."""
    return shutil.which("espeak-ng")


def speak_by_program(
    program: str, text: str, voice: str, path: Path, *, pitch: float | None = None, speed: float | None = None
) -> None:
    """The words as a mono 16-bit wav.

    Args:
        pitch: 0 to 99; None: the voice's own.
        speed: words a minute; None: the voice's own.

    Raises: ConfigError for an unknown voice, OutputError for a program that does not come to an end.
    """
    manner = [*([] if pitch is None else ["-p", f"{pitch:.0f}"]), *([] if speed is None else ["-s", f"{speed:.0f}"])]
    words = [program, "-v", voice, *manner, "-b", "1", "-w", str(path), "--stdin"]
    try:
        done = subprocess.run(words, input=text.encode(), capture_output=True, timeout=TIME_LIMIT, check=False)
    except subprocess.TimeoutExpired as error:
        raise OutputError(f"espeak-ng has not finished after {TIME_LIMIT} s; give it less text at once") from error
    if done.returncode or not path.is_file():
        said = " ".join(done.stderr.decode(errors="replace").split())
        raise _unknown(voice, said or f"exit code {done.returncode}")


def _unknown(voice: str, said: str) -> ConfigError:
    return ConfigError(
        f"espeak-ng cannot speak with the voice {voice!r} ({said}); give a language such as en-us, de or fr, with a "
        "variant such as en-us+f3 where wanted"
    )


class _Voice(ctypes.Structure):
    """espeak_VOICE of speak_lib.h."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("languages", ctypes.c_char_p),
        ("identifier", ctypes.c_char_p),
        ("gender", ctypes.c_ubyte),
        ("age", ctypes.c_ubyte),
        ("variant", ctypes.c_ubyte),
        ("unused", ctypes.c_ubyte),
        ("score", ctypes.c_int),
        ("spare", ctypes.c_void_p),
    ]


def _by_package(text: str, voice: str, path: Path, speed: int) -> None:
    try:
        import espeakng_loader
    except ImportError:
        raise ConfigError(
            "text to speech needs espeak-ng: install the program, or its package with `pip install espeakng-loader`"
        ) from None
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    data = str(Path(espeakng_loader.get_data_path()).parent)
    rate = library.espeak_Initialize(SYNCHRONOUS, 0, data.encode(), 0)
    if rate <= 0:
        raise OutputError(f"espeak-ng finds no voices in {data}; install espeakng-loader again")
    _take_voice(library, voice)
    library.espeak_SetParameter(RATE, speed, 0)
    pieces: list[np.ndarray] = []

    def take(samples: object, count: int, _events: object) -> int:
        if samples and count:
            pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)(take)
    library.espeak_SetSynthCallback(callback)
    words = text.encode()
    library.espeak_Synth(words, ctypes.c_size_t(len(words) + 1), 0, BY_CHARACTERS, 0, IN_UTF8, None, None)
    library.espeak_Terminate()
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.concatenate([*pieces, np.zeros(0, np.int16)]).astype("<i2").tobytes())


def _take_voice(library: ctypes.CDLL, voice: str) -> None:
    """By its name, such as de, or by a language that several voices speak, such as en-gb; then its variant."""
    language, plus, variant = voice.partition("+")
    library.espeak_GetCurrentVoice.restype = ctypes.POINTER(_Voice)
    if library.espeak_SetVoiceByName(language.encode()):
        spoken = _Voice(languages=language.encode())
        if library.espeak_SetVoiceByProperties(ctypes.byref(spoken)):
            raise _unknown(voice, "no such voice")
    name = library.espeak_GetCurrentVoice().contents.identifier + f"{plus}{variant}".encode()
    if plus and (library.espeak_SetVoiceByName(name) or library.espeak_GetCurrentVoice().contents.identifier != name):
        raise _unknown(voice, "no such variant")
