"""Every option of `wan-s2v generate`, once: its name, what it takes, its default, and where it may be said.

Knows how text becomes a checked value; not who wrote it (command line, YAML file, batch) nor what it is used for.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import ConfigError
from .geometry import VideoSize
from .sampling.presets import LIP_SAFE, PRESETS
from .speakers import Speaker, parse_speaker
from .times import parse_seconds

AREAS = {"480p": 832 * 480, "720p": 1280 * 720}   # pixels of a video
DTYPES = ("auto", "bf16", "fp16", "fp32")
ATTENTIONS = ("auto", "sdpa", "cudnn", "flash", "sage", "xformers")
OFFLOADS = ("auto", "none", "model", "blocks")
MATMULS = ("off", "fp8", "int8")
VAE_DTYPES = ("fp32", "bf16")
COLOR_MATCHES = ("off", "lab", "mkl")

JOB = "job"          # of one video: may differ from line to line of a batch
MODELS = "models"    # of the loaded models, which a whole batch shares
COMMAND = "command"  # of the command itself

Parser = Callable[[str, object], object]
"""Option name, value as written -> checked value. Raises ConfigError."""


def text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{name} must be text, got {value!r}")
    return value


def file(name: str, value: object) -> Path:
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{name} must name a file or folder, got {value!r}")
    return Path(value).expanduser()


def whole(name: str, value: object) -> int:
    try:
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise ValueError
        return int(value)
    except ValueError:
        raise ConfigError(f"{name} must be a whole number, got {value!r}") from None


def number(name: str, value: object) -> float:
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError
        found = float(value)
        if not math.isfinite(found):
            raise ValueError
        return found
    except ValueError:
        raise ConfigError(f"{name} must be a number, got {value!r}") from None


def frame_rate(name: str, value: object) -> float:
    """Frames a second; the rounded names of NTSC's rates, such as 23.976, 23.98 and 29.97, stand for the exact ones."""
    said = number(name, value)
    exact = (whole * 1000 / 1001 for whole in (24, 30, 48, 60, 120))
    return next((rate for rate in exact if abs(rate - said) < 0.005), said)


def seconds(name: str, value: object) -> float:
    """12.5, or 1:02.5."""
    try:
        return parse_seconds(value)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error


def interval(name: str, value: object) -> tuple[float, float]:
    """LOW:HIGH, or a list of the two."""
    ends = value if isinstance(value, list | tuple) else str(value).split(":")
    if len(ends) != 2:
        raise ConfigError(f"{name} must be LOW:HIGH, such as 0.2:0.8; got {value!r}")
    return number(name, ends[0]), number(name, ends[1])


def threshold(name: str, value: object) -> float:
    """A number, "on" for the one at which lips are safe, or "off" for 0."""
    if value is True or value == "on":   # YAML reads on as true
        return LIP_SAFE
    return 0.0 if value is False or value == "off" else number(name, value)


def flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be true or false, got {value!r}")
    return value


def size(name: str, value: object) -> VideoSize | int:
    """A size in pixels, or the area that a name such as 480p stands for."""
    written = str(value).strip().lower()
    if written in AREAS:
        return AREAS[written]
    sides = re.fullmatch(r"(\d+)\s*x\s*(\d+)", written)
    if sides is None:
        raise ConfigError(f"{name} must be WIDTHxHEIGHT in pixels or one of {', '.join(AREAS)}; got {value!r}")
    return VideoSize(width=int(sides[1]), height=int(sides[2]))


def one_of(choices: Collection[str]) -> Parser:
    def parse(name: str, value: object) -> str:
        if value is False and "off" in choices:   # YAML reads off as false
            return "off"
        if not isinstance(value, str) or value not in choices:
            raise ConfigError(f"{name} must be one of {', '.join(choices)}; got {value!r}")
        return str(value)

    return parse


def loras(name: str, value: object) -> tuple[tuple[Path, float], ...]:
    """FILE or FILE:STRENGTH, one or a list of them."""
    return tuple(_lora(name, item) for item in (value if isinstance(value, list | tuple) else [value]))


def _lora(name: str, value: object) -> tuple[Path, float]:
    head, colon, tail = str(value).rpartition(":")
    if not colon or re.search(r"[/\\]", tail):   # no strength; the only colon may be a drive's
        return file(name, value), 1.0
    return file(name, head), number(f"the strength after the colon of {name} {value}", tail)


def speakers(name: str, value: object) -> tuple[Speaker, ...]:
    """One speaker or a list of them."""
    try:
        return tuple(parse_speaker(item) for item in (value if isinstance(value, list | tuple) else [value]))
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error


REPEATED = (loras, speakers)   # options that may be given more than once


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    name: str             # as on the command line, without its dashes
    group: str            # heading in the help
    help: str
    parse: Parser
    metavar: str = ""
    field: str = ""       # the attribute that it sets; empty: the name with underscores
    scope: str = JOB
    short: str = ""

    @property
    def target(self) -> str:
        return self.field or self.name.replace("-", "_")


WHAT, SOUND, POSE, PICTURE, SAMPLING, MODEL, WORK = (
    "what to make", "sound", "pose", "picture and time", "sampling", "model and machine", "jobs and messages"
)  # fmt: skip

OPTIONS: dict[str, Option] = {
    option.name: option
    for option in (
        Option(name="image", group=WHAT, metavar="FILE", parse=file,
               help="picture of who talks or sings (PNG, JPEG, WebP, ...)"),
        Option(name="audio", group=WHAT, metavar="FILE", parse=file,
               help="what is heard: any sound file, or a video with sound (default: the speakers' voices together)"),
        Option(name="speaker", group=WHAT, metavar="audio=FILE,region=L:T:R:B", parse=speakers, field="speakers",
               help="somebody in the picture with a voice and a place: left, top, right, bottom in pixels or fractions "
                    "of the picture, a picture that is white there, or face:1, the first photographed face from the "
                    "left (pip install 'wan-s2v[dub]' finds them); start= and end= in seconds, name=; "
                    "may be given more than once (default: everybody in the picture speaks)"),
        Option(name="who-speaks", group=WHAT, metavar="FILE", parse=file,
               help="shares --audio out to speakers without a voice of their own: lines of start,end,name (as "
                    "0,4.5,anna), or subtitles that begin with the name"),
        Option(name="diarize", group=WHAT, metavar="N", parse=whole,
               help="or finds who speaks when in --audio, where N voices are heard: the first speaker given is the "
                    "voice that is first heard, and so on. What is found is written beside the output, and used again "
                    "as you correct it. Needs two packages: pip install --no-deps silero-vad resemblyzer"),
        Option(name="prompt", group=WHAT, metavar="TEXT", parse=text,
               help='what is seen, in words: "a man talks to the camera" (default: nothing)'),
        Option(name="negative-prompt", group=WHAT, metavar="TEXT", parse=text,
               help="what should not be seen (default: the model's own list)"),
        Option(name="output", group=WHAT, metavar="FILE", parse=file, short="-o",
               help="the video to write, an .mp4"),
        Option(name="storyboard", group=WHAT, metavar="FILE", parse=file,
               help="prompts by their times, a line each ('0:12.5 she laughs') or YAML: each holds from the clip that "
                    "begins nearest to its time (default: one prompt throughout)"),
        Option(name="start-from-image", group=WHAT, parse=flag,
               help="begin with the picture itself, instead of only keeping its looks"),
        Option(name="say", group=SOUND, metavar="TEXT", parse=text,
               help="words to speak in place of --audio, by espeak-ng on this machine (pip install 'wan-s2v[say]' "
                    "brings it); the wav is kept beside the output"),
        Option(name="voice", group=SOUND, metavar="NAME", parse=text,
               help="who says them: a language and a variant of espeak-ng, such as de or en-us+f3 (default: en-us)"),
        Option(name="speech-speed", group=SOUND, metavar="WPM", parse=whole,
               help="how fast: 80 to 450 words a minute (default: 175)"),
        Option(name="driving-audio", group=SOUND, metavar="FILE", parse=file,
               help="moves the mouth in place of what is heard: the vocals alone of a song, on the clock of --audio "
                    "(default: --audio)"),
        Option(name="audio-start", group=SOUND, metavar="TIME", parse=seconds,
               help="leave out the sound before it; seconds, or minutes:seconds (default: 0)"),
        Option(name="audio-end", group=SOUND, metavar="TIME", parse=seconds,
               help="leave out the sound after it (default: its end)"),
        Option(name="audio-offset", group=SOUND, metavar="MS", parse=number,
               help="milliseconds that the picture moves later than the sound; below 0, earlier. What is heard stays "
                    "where it is (default: 0)"),
        Option(name="loudness", group=SOUND, metavar="LUFS", parse=number,
               help="bring every 3 s of the driving sound to one loudness, such as -23: whispers move the mouth too. "
                    "What is heard stays as it is (default: off)"),
        Option(name="noise-gate", group=SOUND, metavar="DB", parse=number,
               help="silence below a level, such as -45, in the driving sound, after --loudness: noise does not move "
                    "the mouth. What is heard stays as it is (default: off)"),
        Option(name="isolate-voice", group=SOUND, parse=flag,
               help="take the music out of the driving sound, before --loudness, by what comes again and again in it. "
                    "Vocals from a separation program, as --driving-audio, are better. What is heard stays as it is"),
        Option(name="pose-video", group=POSE, metavar="FILE", parse=file,
               help="a video of drawn poses to follow, at any frame rate (default: free movement)"),
        Option(name="pose-footage", group=POSE, metavar="FILE", parse=file,
               help="or footage of a person to follow: the poses are drawn from it, a third of a second of work per "
                    "frame; needs mediapipe: pip install 'wan-s2v[pose]'"),
        Option(name="pose-strength", group=POSE, metavar="X", parse=number,
               help="how closely: 0 (not at all) to 2 (default: 1)"),
        Option(name="pose-start", group=POSE, metavar="TIME", parse=seconds,
               help="follow it only from this moment of the video on; to the nearest four frames (default: 0)"),
        Option(name="pose-end", group=POSE, metavar="TIME", parse=seconds,
               help="and only up to this one (default: the video's end)"),
        Option(name="pose-skip", group=POSE, metavar="TIME", parse=seconds,
               help="leave out so much of the pose video's beginning (default: 0)"),
        Option(name="pose-steps", group=POSE, metavar="K", parse=whole,
               help="follow it in the first K denoising steps of each clip, and leave the rest to the sound "
                    "(default: all)"),
        Option(name="size", group=PICTURE, metavar="SIZE", parse=size,
               help="WIDTHxHEIGHT in pixels, multiples of 16; or 480p, 720p: the picture's shape at that area "
                    "(default: the picture's shape at the model's area)"),
        Option(name="fps", group=PICTURE, metavar="N", parse=frame_rate,
               help="frames per second that are made, 1 to 120 (29.97 is 30000/1001): 24, 25 and 30 take 1.5, 1.6 and "
                    "1.9 times the work of 16, and movements are a little slower than life (default: 16, which Wan-S2V "
                    "was trained at)"),
        Option(name="output-fps", group=PICTURE, metavar="N", parse=frame_rate,
               help="frames per second of the file, above --fps: frames between frames by their motion, at the end, "
                    "for some 3 s of work per second at 832x480; fast hands may smear (default: --fps)"),
        Option(name="frames", group=PICTURE, metavar="N", parse=whole, field="num_frames",
               help="stop after N frames (default: as many as cover the sound)"),
        Option(name="seed", group=SAMPLING, metavar="N", parse=whole,
               help="another number, another video; the same number, the same video (default: 0)"),
        Option(name="preset", group=SAMPLING, metavar="NAME", parse=one_of(PRESETS),
               help="settings of few-step LoRAs, which --lora brings: lightning-4 and lightning-8 for LightX2V's, 4 or "
                    "8 steps without guidance; what you say of them yourself holds (default: none)"),
        Option(name="steps", group=SAMPLING, metavar="N", parse=whole,
               help="denoising steps per clip: more is finer and slower (default: the model's)"),
        Option(name="guidance", group=SAMPLING, metavar="X", parse=number, field="guidance_scale",
               help="how strictly prompt and sound are followed; 1 switches it off and halves the work "
                    "(default: the model's)"),
        Option(name="sync-strength", group=SAMPLING, metavar="X", parse=number,
               help="how strictly lips follow the sound: 1.5 is more than the prompt, 0.5 less; other than 1 it takes "
                    "half as long again (default: 1, as trained)"),
        Option(name="audio-guidance", group=SAMPLING, metavar="X", parse=number, field="audio_guidance_scale",
               help="the same as a number of its own: guidance of the sound, --guidance is then the prompt's "
                    "(default: --guidance times --sync-strength)"),
        Option(name="apg", group=SAMPLING, parse=flag,
               help="guidance that does not oversaturate: for high --guidance (default: off)"),
        Option(name="guidance-interval", group=SAMPLING, metavar="LOW:HIGH", parse=interval,
               help="guide only while the noise level is in it, such as 0.2:0.8; the other steps take half the work "
                    "(default: 0:1, all)"),
        Option(name="step-cache", group=SAMPLING, metavar="X", parse=threshold,
               help="foretell a step from those before it where no part of the picture is expected to change by more "
                    f"than this share: on is {LIP_SAFE:g}, at which lips moved as without; a slightly different video "
                    "in less time, from some 16 steps on (default: off)"),
        Option(name="shift", group=SAMPLING, metavar="X", parse=number,
               help="above 1, more steps at high noise, where large frames are decided (default: the model's)"),
        Option(name="solver", group=SAMPLING, metavar="NAME", parse=text,
               help="unipc, dpm++, euler, or few-step for distilled weights (default: unipc)"),
        Option(name="continuity", group=SAMPLING, metavar="HOW", parse=text,
               help="how a clip continues the one before: exact, as the reference does it; "
                    "or carry, which decodes less and looks slightly different (default: exact)"),
        Option(name="first-window", group=SAMPLING, metavar="WHAT", parse=text,
               help="with --start-from-image, what was before its last moments: grey, as in the reference, or the "
                    "image all along (default: grey)"),
        Option(name="match-colour", group=SAMPLING, metavar="HOW", parse=one_of(COLOR_MATCHES),
               help="against drifting colours: each clip is given the picture's, by lab (lightness and two colour "
                    "axes) or mkl (red, green and blue together); or off (default: off)"),
        Option(name="model", group=MODEL, metavar="DIR", parse=file, scope=MODELS, field="folder",
               help="folder of Wan2.2-S2V-14B weights (default: the small model that comes with this package)"),
        Option(name="lora", group=MODEL, metavar="FILE[:STRENGTH]", parse=loras, scope=MODELS, field="loras",
               help="add a LoRA, with a strength (default: 1); may be given more than once"),
        Option(name="dtype", group=MODEL, metavar="TYPE", parse=one_of(DTYPES), scope=MODELS,
               help="numbers to compute with: bf16, fp16, fp32 (default: auto, what suits the device)"),
        Option(name="matmul", group=MODEL, metavar="TYPE", parse=one_of(MATMULS), scope=MODELS,
               help="multiply the transformer's large matrices in 8 bits, a byte a weight: fp8, for GPUs that have "
                    "it (RTX 40, H100 and later; a CPU is slower by it), or int8, for CPUs (half of fp32's time). A "
                    "forward is off by 0.02 (fp8) or 0.007 (int8) of its size, by bf16 alone 0.004; frames of the "
                    "small model are 40.6 and 42.0 dB from fp32's, bf16's 42.2 (default: off)"),
        Option(name="vae-dtype", group=MODEL, metavar="TYPE", parse=one_of(VAE_DTYPES), scope=MODELS,
               help="numbers that the video autoencoder computes with: fp32, or bf16, in half of the memory; frames of "
                    "the small model are then 41.9 dB from fp32's (default: fp32)"),
        Option(name="device", group=MODEL, metavar="NAME", parse=text, scope=MODELS,
               help="cuda, cuda:1, mps, cpu (default: auto, the fastest found)"),
        Option(name="attention", group=MODEL, metavar="NAME", parse=one_of(ATTENTIONS), scope=MODELS,
               help="sdpa or cudnn, which torch brings; flash, sage or xformers, where installed (default: auto, "
                    "sdpa)"),
        Option(name="offload", group=MODEL, metavar="WHAT", parse=one_of(OFFLOADS), scope=MODELS,
               help="what waits in main memory to spare the GPU's: none, model (each model while unused) or "
                    "blocks (the transformer's layers too) (default: auto, as little as fits)"),
        Option(name="take", group=WORK, metavar="DIR", parse=file,
               help="folder for finished clips: a stopped job continues from there (default: beside the output)"),
        Option(name="batch", group=WORK, metavar="FILE.jsonl", parse=file, scope=COMMAND,
               help="many jobs: one JSON object per line with the options of its video; "
                    "all other options are defaults for every line"),
        Option(name="skip-existing", group=WORK, parse=flag, scope=COMMAND,
               help="leave videos alone that are there already: a --batch that was stopped goes on where it stood"),
        Option(name="dry-run", group=WORK, parse=flag, scope=COMMAND,
               help="check everything and print the plan, make nothing"),
        Option(name="quiet", group=WORK, parse=flag, scope=COMMAND,
               help="no plan and no progress, only results and errors"),
        Option(name="debug", group=WORK, parse=flag, scope=COMMAND,
               help="show the full traceback of an error, and more of what happens"),
    )
}  # fmt: skip


def nearest(name: str, known: Collection[str]) -> str:
    """A hint at the name that was probably meant, or nothing."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def check_values(said: Mapping[str, object], folder: Path, scopes: Collection[str]) -> dict[str, object]:
    """Checked values by option name.

    Args:
        said: option names (dashes or underscores) and values as written; None stands for the option's default.
        folder: where relative paths start.
        scopes: the kinds of option that may be said here.

    Raises: ConfigError for an unknown name, a value of the wrong kind, or an option that is not for here.
    """
    return {name: _check(name, value, folder, scopes) for name, value in _named(said).items()}


def _named(said: Mapping[str, object]) -> dict[str, object]:
    named: dict[str, object] = {}
    for key, value in said.items():
        name = str(key).replace("_", "-")
        if name not in OPTIONS:
            raise ConfigError(f"unknown option {str(key)!r}{nearest(name, OPTIONS)}")
        if name in named:
            raise ConfigError(f"option {name!r} is given twice")
        named[name] = value
    return named


def _check(name: str, value: object, folder: Path, scopes: Collection[str]) -> object:
    option = OPTIONS[name]
    if option.scope not in scopes:
        raise ConfigError(f"{name!r} is for all jobs together: give it on the command line or in --config")
    return None if value is None else _resolve(option.parse(name, value), folder)


def _resolve(value: object, folder: Path) -> object:
    """Relative paths start at `folder`."""
    if isinstance(value, Path):
        return folder / value
    if isinstance(value, tuple):
        return tuple(_resolve(item, folder) for item in value)
    return value.under(folder) if isinstance(value, Speaker) else value


def request_fields(
    said: Mapping[str, object],
    options: Mapping[str, Option],
    *,
    needed: Sequence[str],
    read: Sequence[tuple[str, object]],
) -> dict[str, object]:
    """Fields of a request, from checked values of a job's options.

    Args:
        needed: options that must be given.
        read: what the job reads, with its names; what is a path must not be the output.

    Raises: ConfigError when a needed one is missing, or the output is no .mp4 or one of the files that are read.
    """
    missing = [f"--{name}" for name in needed if name not in said]
    if missing:
        raise ConfigError(f"{' and '.join(missing)} must be given")
    output = said["output"]
    for name, path in read:
        if isinstance(path, Path) and path.resolve() == output.resolve():
            raise ConfigError(f"output {output} would overwrite the {name} that it is made from")
    if output.suffix.lower() != ".mp4":
        raise ConfigError(f"output must be named .mp4, got {output}")
    fields = {options[name].target: value for name, value in said.items()}
    if isinstance(fields.get("size"), int):   # given by name: what is read decides the shape
        fields["max_area"] = fields.pop("size")
    return fields
