"""A request with its media opened, checked and held open: all that the clips are made from, but for the models.

Knows where each thing is read; not what the models make of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image
from torch import Tensor

from ..cast import Cast, open_cast
from ..components import Components
from ..conditioning.driving import Driving, drive
from ..conditioning.image import fit_picture
from ..conditioning.pose import PoseVideo
from ..conditioning.pose_footage import drawn_poses, skeleton_finder
from ..geometry import VideoSize, fit_size
from ..media.audio_io import open_sound
from ..media.image_io import read_picture
from ..media.speech import SPEED, VOICE, speech_file
from ..media.video_io import TimedFrame, probe_video, read_timed_frames, require_writable
from ..request import Request
from ..video.color import ColourMatch, Grade
from ..video.storyboard import Script, direct, read_storyboard
from ..video.take import Take
from .identity import clip_identities, run_identity
from .plan import JobPlan, plan_job


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A request with its media opened and its plan made."""

    request: Request
    picture: Image.Image
    cast: Cast
    driving: Driving
    pose: PoseVideo | None
    scripts: tuple[Script, ...]              # one per clip
    pictures: dict[str, Image.Image]         # of the scenes, by the names in their scripts
    plan: JobPlan

    def made_from(self) -> list[dict[str, object]]:
        """What each clip is made from: see `clip_identities`."""
        return clip_identities(
            self.request, self.plan, scripts=self.scripts, images=self.pictures, cast=self.cast, driving=self.driving
        )

    def fitted_pictures(self) -> dict[str | None, Tensor]:
        """The reference pictures of the clips, by the names in their scripts: [1, 3, 1, H, W] in [-1, 1]."""
        names = dict.fromkeys(script.image for script in self.scripts)
        return {n: fit_picture(self.picture if n is None else self.pictures[n], self.plan.size) for n in names}

    def grade(self) -> Grade | None:
        """Each clip's frames to the colours of its reference picture."""
        method = self.request.match_colour
        if method == "off":
            return None
        matches = {name: ColourMatch(picture, method) for name, picture in self.fitted_pictures().items()}
        return lambda plan, frames: matches[self.scripts[plan.index].image](frames)


@contextmanager
def open_job(request: Request, components: Components) -> Iterator[Job]:
    """The request's media, opened and checked, and the plan that follows from them.

    Raises: MediaError, ShapeError, ConfigError; OutputError for a place that cannot be written.
    """
    with ExitStack() as stack:
        if request.output is not None:
            require_writable(request.output)
        picture, unheeded = read_picture(request.image), request.unheeded()
        size = request.size or fit_size(*picture.size, request.max_area or components.config.default_area)
        if request.say is not None:
            request = replace(request, say=None, audio=_say(request))
        cast = stack.enter_context(open_cast(request, picture, size))
        heard, separate = stack.enter_context(open_sound(cast.heard)), None
        if request.driving_audio is not None:
            separate = stack.enter_context(open_sound(request.driving_audio))
        driving = drive(heard, separate, request.driving_settings())
        pose = _open_pose(request, size)
        scenes = () if request.storyboard is None else read_storyboard(request.storyboard)
        pictures = {scene.image: read_picture(Path(scene.image)) for scene in scenes if scene.image is not None}
        plan = plan_job(request, components, size, driving, pose, scenes)
        clips, scripts = direct(plan.clips, plan.scenes)
        cast = cast.directed(clips, [script.speaker for script in scripts], plan.fps)
        job = Job(
            request=request, picture=picture, cast=cast, driving=driving, pose=pose, scripts=scripts,
            pictures=pictures, plan=replace(plan, clips=clips, remarks=(*cast.remarks(), *plan.remarks, *unheeded)),
        )  # fmt: skip
        finished = 0
        if plan.take.exists():   # only then: the identity is read from all the weights' files
            identity = run_identity(request, job.plan, cast, components.identity())
            finished = Take.count_finished(plan.take, identity, job.made_from())
        yield replace(job, plan=replace(job.plan, finished_clips=finished))


def _say(request: Request) -> Path:
    """The words of a request, spoken; beside its output."""
    assert request.say is not None
    beside = request.output or Path("video.mp4")
    speed = SPEED if request.speech_speed is None else request.speech_speed
    return speech_file(request.say, request.voice or VOICE, beside, speed)


def _open_pose(request: Request, size: VideoSize) -> PoseVideo | None:
    path = request.pose_video or request.pose_footage
    if path is None:
        return None
    duration = probe_video(path).duration
    find = None if request.pose_footage is None else skeleton_finder()

    def read() -> Iterator[TimedFrame]:
        frames = read_timed_frames(path)
        return frames if find is None else drawn_poses(frames, find)

    return PoseVideo(read, duration=duration, size=size, fps=request.fps, start=request.pose_skip)
