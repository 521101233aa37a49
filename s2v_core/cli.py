"""The command `wan-s2v`: options in, a pipeline run, one sentence and an exit code out.

Knows how people are spoken to; not how a video is made (`pipeline.py`) nor how job files are written (`jobs.py`).
Exit codes: 0 done, 1 the work failed, 2 the request cannot be met as asked, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO

from .dub.options import DUB_OPTIONS, make_dub_request, read_dub_values, shared_values
from .errors import CheckpointError, ConfigError, Interrupted, MediaError, OutputError, S2VError, ShapeError
from .options import COMMAND, JOB, MODELS, OPTIONS, REPEATED, Option, check_values, flag, nearest
from .progress import Progress
from .times import duration
from .training.arguments import add_precompute_arguments, add_train_arguments

if TYPE_CHECKING:  # these import torch, which nobody who asks for --help should wait for
    from .dub.request import DubRequest
    from .dub.run import Dubber, DubPlan, DubResult
    from .jobs import Job, ModelOptions
    from .pipeline import JobPlan, RunResult, WanS2VPipeline
    from .request import Request

BAD_REQUEST = (ConfigError, ShapeError, MediaError, CheckpointError)

Loader = Callable[..., "WanS2VPipeline"]
"""load(ModelOptions, load_weights=bool) -> pipeline."""


def main(argv: Sequence[str] | None = None, *, load: Loader | None = None) -> int:
    """Run one command.

    Args:
        argv: what follows the program's name; None: the process's own.
        load: makes the pipeline; None: the real one.

    Returns: the exit code.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):   # a name that the console cannot write is no reason to fail
        sys.stdout.reconfigure(errors="backslashreplace")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")   # before torch loads: its idle threads spin, up to 3x the time
    words = list(sys.argv[1:] if argv is None else argv)
    arguments = argparse.Namespace(debug="--debug" in words)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    logging.getLogger("s2v_core").setLevel(logging.DEBUG if arguments.debug else logging.INFO)
    try:
        _, strangers = build_parser().parse_known_args(words, arguments)
        if strangers:
            raise ConfigError(f"unknown option {strangers[0]}{_nearest_flag(strangers[0])}")
        return COMMANDS[arguments.command].run(arguments, load or load_pipeline)
    except KeyboardInterrupt:
        say("wan-s2v: stopped", sys.stderr)
        return 130
    except Exception as error:
        return complain(error, is_debug=bool(arguments.debug))


def load_pipeline(options: ModelOptions, *, load_weights: bool) -> WanS2VPipeline:
    """The real pipeline, with the options' weights."""
    from .pipeline import WanS2VPipeline
    from .placement import DTYPES

    return WanS2VPipeline.from_pretrained(
        options.folder,
        torch_dtype=DTYPES.get(options.dtype),   # "auto" is in no table
        matmul=options.matmul,
        vae_dtype=DTYPES[options.vae_dtype],
        device_map=None if options.device == "auto" else options.device,
        attention=options.attention,
        offload=options.offload,
        loras=list(options.loras),
        load_weights=load_weights,
    )


# What people read.


def say(text: str, stream: TextIO | None = None) -> None:
    """The only place that prints: results go to stdout, everything about the work to stderr."""
    print(text, file=stream or sys.stdout, flush=True)


def sentence(error: BaseException) -> str:
    """What went wrong, for a person."""
    if isinstance(error, S2VError):
        return str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return (
            "out of memory: try a smaller --size, --offload blocks or --dtype bf16; "
            "run again with --debug for the details"
        )
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename or 'no file named'}; run again with --debug for the details"
    first_line = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first_line.rstrip('.')}; run again with --debug for the details"


def complain(error: Exception, *, is_debug: bool, where: str = "") -> int:
    """Say what went wrong, and which exit code that is."""
    if is_debug:
        traceback.print_exception(error, file=sys.stderr)
    say(f"wan-s2v: {where and where + ': '}{sentence(error)}", sys.stderr)
    if isinstance(error, Interrupted):
        return 130
    return 2 if isinstance(error, BAD_REQUEST) else 1


# What people may say.


class Parser(argparse.ArgumentParser):
    """Raises where argparse would print its usage and leave."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="wan-s2v",
        description="Make a picture talk: a portrait, a sound and a few words become a video of the sound's length.",
        epilog="'wan-s2v COMMAND --help' explains a command.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        subparser = commands.add_parser(
            name, help=command.help, description=command.help, epilog=command.epilog, allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        command.add_arguments(subparser)
    return parser


def add_options(parser: argparse.ArgumentParser, options: Mapping[str, Option]) -> dict[str, argparse._ArgumentGroup]:
    """The options under their headings. Returns: the headings."""
    groups: dict[str, argparse._ArgumentGroup] = {}
    for option in options.values():
        if option.group not in groups:
            groups[option.group] = parser.add_argument_group(option.group)
        _add(groups[option.group], option)
    return groups


def add_dub_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser, DUB_OPTIONS)


def add_generate_arguments(parser: argparse.ArgumentParser) -> None:
    groups = add_options(parser, OPTIONS)
    groups[OPTIONS["batch"].group].add_argument(
        "--config", metavar="FILE.yaml", help="options from a YAML file, by the names above without their dashes; "
        "what the command line says wins",
    )  # fmt: skip


def _add(group: argparse._ArgumentGroup, option: Option) -> None:
    names = [*([option.short] if option.short else []), f"--{option.name}"]
    if option.parse is flag and option.scope == JOB:   # --no-... overrides a YAML file
        group.add_argument(*names, action=argparse.BooleanOptionalAction, default=None, help=option.help)
    elif option.parse is flag:
        group.add_argument(*names, action="store_const", const=True, help=option.help)
    else:
        action = "append" if option.parse in REPEATED else "store"
        group.add_argument(*names, action=action, metavar=option.metavar, help=option.help)


def add_inspect_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="a weight file: .safetensors, .gguf, .pth, an index")
    parser.add_argument("--debug", action="store_true", help="show the full traceback of an error")


def _nearest_flag(stranger: str) -> str:
    hint = nearest(stranger.lstrip("-").partition("=")[0], {**OPTIONS, **DUB_OPTIONS})
    return hint.replace("mean ", "mean --") if stranger.startswith("-") else ""


# What is done.


def generate(arguments: argparse.Namespace, load: Loader) -> int:
    """One video, or a batch of them."""
    from .jobs import make_job, make_model_options, read_batch

    values = read_values(arguments)
    arguments.debug = is_debug = bool(values.get("debug"))
    is_quiet, is_dry = bool(values.get("quiet")), bool(values.get("dry-run"))
    if is_quiet:
        logging.getLogger("s2v_core").setLevel(logging.WARNING)
    batch = values.get("batch")
    jobs = read_batch(batch, values) if isinstance(batch, Path) else [make_job(values)]
    if values.get("skip-existing"):
        jobs = without_existing(jobs)
        if not jobs:
            return 0
    pipeline = load(make_model_options(values), load_weights=not is_dry)

    def work() -> int:
        if batch is None:
            run_job(pipeline, jobs[0], is_quiet=is_quiet, is_dry=is_dry)
            return 0
        return run_batch(pipeline, jobs, is_quiet=is_quiet, is_dry=is_dry, is_debug=is_debug)

    if os.environ.get("WORLD_SIZE", "1") == "1":
        return work()
    with pipeline.together() as leads:   # torchrun: one process reads and writes, all of them denoise and decode
        return work() if leads else 0


def read_values(arguments: argparse.Namespace) -> dict[str, object]:
    """Checked option values: the YAML file's, and over them the command line's."""
    from .jobs import read_config

    said = {name: value for name in OPTIONS if (value := getattr(arguments, name.replace("-", "_"))) is not None}
    values = check_values(said, Path(), (JOB, MODELS, COMMAND))
    return {**read_config(Path(arguments.config)), **values} if arguments.config else values


def without_existing(jobs: Sequence[Job]) -> list[Job]:
    """The jobs whose videos are not there: a video appears when it is complete. The others are named."""
    left = []
    for job in jobs:
        if job.request.output.exists():
            say(f"{job.where and job.where + ': '}{job.request.output} is there already, and stays as it is")
        else:
            left.append(job)
    return left


def run_batch(pipeline: WanS2VPipeline, jobs: Sequence[Job], *, is_quiet: bool, is_dry: bool, is_debug: bool) -> int:
    """All jobs in order; one that fails does not stop the rest."""
    num_failed = 0
    for job in jobs:
        try:
            run_job(pipeline, job, is_quiet=is_quiet, is_dry=is_dry)
        except Interrupted as error:
            hint = "; with --skip-existing, videos that are done are not made again" if job is not jobs[0] else ""
            raise Interrupted(f"{error}{hint}") from error
        except Exception as error:
            complain(error, is_debug=is_debug, where=job.where)
            num_failed += 1
    say(f"{len(jobs) - num_failed} {'ready' if is_dry else 'done'}, {num_failed} failed")
    return 1 if num_failed else 0


def run_job(pipeline: WanS2VPipeline, job: Job, *, is_quiet: bool, is_dry: bool) -> None:
    """Say what one video will be, and make it."""
    heading = f"{job.where}: " if job.where else ""
    if is_dry:
        say(f"{heading}{job.request.output}\n{pipeline.plan(job.request)}")
        return
    began = time.monotonic()
    result = follow(pipeline, job.request, Watch(f"{heading}{job.request.output}", is_quiet=is_quiet))
    length = f"{result.num_frames} frames, {result.seconds:.2f} s"
    say(f"{result.path}: {length}, made in {duration(time.monotonic() - began)}")


def dub(arguments: argparse.Namespace, load: Loader) -> int:
    """New speech on existing footage."""
    from .dub.run import Dubber
    from .jobs import make_model_options

    values = read_dub_values(arguments)
    request = make_dub_request(values)
    is_quiet, is_dry = bool(values.get("quiet")), bool(values.get("dry-run"))
    if is_quiet:
        logging.getLogger("s2v_core").setLevel(logging.WARNING)
    dubber = Dubber(load(make_model_options(shared_values(values)), load_weights=not is_dry).components)
    if is_dry:
        say(f"{request.output}\n{dubber.plan(request)}")
        return 0
    began = time.monotonic()
    result = follow(dubber, request, Watch(str(request.output), is_quiet=is_quiet))
    length = f"{result.num_frames} frames, {result.seconds:.2f} s"
    say(f"{result.path}: {length}, made in {duration(time.monotonic() - began)}")
    if result.untouched:
        say(f"frames left as they are: {', '.join(str(untouched) for untouched in result.untouched)}")
    return 0


class Watch(Progress):
    """A progress line, and before it the plan."""

    def __init__(self, heading: str, *, is_quiet: bool) -> None:
        super().__init__(io.StringIO() if is_quiet else sys.stderr)
        self.heading = heading
        self.plan: JobPlan | DubPlan | None = None

    def planned(self, plan: JobPlan | DubPlan) -> None:
        self.plan = plan
        say(f"{self.heading}\n{plan}", self.stream)


def follow(
    pipeline: WanS2VPipeline | Dubber, request: Request | DubRequest, watch: Watch
) -> RunResult | DubResult:
    """Run under somebody's eyes; say where the finished clips are when it stops early."""
    try:
        return pipeline.run(request, progress=watch)
    except (KeyboardInterrupt, Interrupted) as error:
        raise Interrupted(f"stopped; {kept(watch.plan)}") from error
    except S2VError:
        raise
    except Exception as error:   # one that no room has put into words
        raise OutputError(f"{sentence(error)}; {kept(watch.plan)}") from error
    finally:
        watch.close()


def kept(plan: JobPlan | DubPlan | None) -> str:
    if plan is None or not plan.take.is_dir():
        return "nothing was finished yet"
    return f"finished clips are kept in {plan.take}, and the same command continues there"


def inspect(arguments: argparse.Namespace, _load: Loader) -> int:
    """Say what weight files are; a bad one does not hide the others."""
    from .checkpoints.inspect import inspect_file

    code = 0
    for file in arguments.files:
        try:
            say(str(inspect_file(Path(file))))
        except Exception as error:
            code = max(code, complain(error, is_debug=arguments.debug))
    return code


def train(arguments: argparse.Namespace, _load: Loader) -> int:
    from .training.command import train

    return train(arguments, say)


def precompute(arguments: argparse.Namespace, _load: Loader) -> int:
    from .training.command import precompute

    return precompute(arguments, say)


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """A word after `wan-s2v`."""

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, Loader], int]
    epilog: str = ""


COMMANDS: Mapping[str, Command] = {
    "generate": Command(
        help="make a talking video from a picture, a sound and a few words",
        add_arguments=add_generate_arguments,
        run=generate,
        epilog="""examples:
  wan-s2v generate --image face.png --audio speech.wav --prompt "a person talks" -o talk.mp4
  wan-s2v generate --config settings.yaml --seed 7 -o talk.mp4
  wan-s2v generate --model Wan2.2-S2V-14B --batch jobs.jsonl --dry-run""",
    ),
    "dub": Command(
        help="give existing footage new speech: the mouth is made anew, everything else stays as it is",
        add_arguments=add_dub_arguments,
        run=dub,
        epilog="""examples:
  wan-s2v dub --video shot.mp4 --audio new.wav -o dubbed.mp4
  wan-s2v dub --video shot.mp4 --audio new.wav --face-box 0.3,0.2,0.6,0.7 --length trim -o dubbed.mp4
  wan-s2v dub --video shot.mp4 --audio new.wav --mask mouth.png --start 2 --end 7.5 -o dubbed.mp4 --dry-run""",
    ),
    "inspect": Command(
        help="say what a weight file is, which model it fits, its dtypes and what is missing",
        add_arguments=add_inspect_arguments,
        run=inspect,
    ),
    "train": Command(
        help="train or fine-tune a model by a YAML file's settings, on one device or, launched by torchrun, on several",
        add_arguments=add_train_arguments,
        run=train,
        epilog="""examples:
  wan-s2v train --config configs/stage1-audio.yaml --stage configs/stage2-speech.yaml --dry-run
  wan-s2v train --config configs/bundled/transformer.yaml""",
    ),
    "precompute": Command(
        help="encode a training run's videos, sounds and prompts once, to train from",
        add_arguments=add_precompute_arguments,
        run=precompute,
    ),
}
