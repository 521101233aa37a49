"""S2V Long Video: the whole sound in one node.

Knows widgets; the run is in `run.py`.
"""

from __future__ import annotations

from ..s2v_core.types import COLOR_MATCHES, CONTINUITIES, FIRST_WINDOWS
from . import host
from .host import io
from .sockets import (
    ADVANCED_GUIDANCE,
    ADVANCED_POSE,
    CATEGORY,
    StoryboardIO,
    how_large,
    how_much_to_follow,
    how_to_begin,
    how_to_follow,
    how_to_guide,
    how_to_sample,
    what_to_show,
)


class LongVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        from .sampling import SAMPLERS, SCHEDULERS

        return host.schema(
            node_id="S2VLongVideo",
            display_name="S2V Long Video",
            category=CATEGORY,
            description="A picture and a sound become a video of exactly the sound's length, however long. Clips are "
                        "kept on disk as they are finished: after Cancel, run again to go on. Save it with Save Video.",
            search_aliases=["wan s2v", "talking head", "lip sync", "sound to video", "speech to video", "extend"],
            inputs=[
                io.Model.Input("model", tooltip="A Wan2.2-S2V model: ours, or the host's own."),
                *what_to_show(),
                *how_to_sample(SAMPLERS, SCHEDULERS),
                *how_large(),
                io.Combo.Input("continuity", options=list(CONTINUITIES), default="exact",
                               tooltip="How a clip continues the one before: exact, as the official code does it; "
                                       "carry decodes less and looks slightly different."),
                *how_to_begin(),
                StoryboardIO.Input("storyboard", optional=True,
                                   tooltip="From S2V Storyboard: prompts by their times, in place of positive from "
                                           "the first one on."),
                io.Boolean.Input("with_images", default=False, optional=True,
                                 tooltip="Give all frames as IMAGE too: 12 bytes of memory a pixel, 4.8 MB a frame at "
                                         "832x480. The video itself needs none of it."),
                io.Combo.Input("match_colour", options=list(COLOR_MATCHES), default="off", optional=True,
                               tooltip="Against drifting colours: each clip is given the colours of the picture, by "
                                       "lab (lightness and two colour axes) or mkl (red, green and blue together)."),
                *how_to_follow(),
                *how_to_guide(),
                *how_much_to_follow(),
                io.Combo.Input("first_window", options=list(FIRST_WINDOWS), default="grey", optional=True,
                               tooltip="With start_from_image, what came before its last moments: grey, as in the "
                                       "official code, or the image all along."),
                io.Float.Input("output_fps", default=0.0, min=0.0, max=120.0, step=1.0, round=0.001, optional=True,
                               tooltip="Frames per second of the file, above fps: frames between frames by their "
                                       "motion, some 3 s of work per second at 832x480; fast hands may smear. "
                                       "0: as fps."),
            ],
            outputs=[
                io.Video.Output(display_name="video", tooltip="A file on disk, with the sound; for Save Video."),
                io.Image.Output(display_name="images", tooltip="All frames, once with_images is on; not compressed."),
            ],
            advanced=("with_images", *ADVANCED_GUIDANCE, *ADVANCED_POSE, "first_window", "output_fps"),
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        model: object,
        positive: list,
        negative: list,
        vae: object,
        image: object,
        audio: object,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        width: int,
        height: int,
        fps: float,
        continuity: str,
        start_from_image: bool,
        pose_video: object | None = None,
        storyboard: object | None = None,
        with_images: bool = False,
        match_colour: str = "off",
        pose_strength: float = 1.0,
        pose_start: float = 0.0,
        pose_end: float = 0.0,
        sync_strength: float = 1.0,
        audio_guidance: float = 0.0,
        apg: bool = False,
        pose_steps: int = 0,
        pose_skip: float = 0.0,
        first_window: str = "grey",
        output_fps: float = 0.0,
    ) -> io.NodeOutput:
        from ..s2v_core.request import check_output_fps
        from .job import Job, pose_control
        from .model import default_area
        from .run import long_video
        from .sampling import Sampling, check_choice

        check_choice("continuity", continuity, CONTINUITIES)
        check_choice("match_colour", match_colour, COLOR_MATCHES)
        if output_fps:
            check_output_fps(output_fps, fps)
        job = Job.of(
            model_area=default_area(model), positive=positive, negative=negative, vae=vae, image=image, sound=audio,
            width=width, height=height, fps=fps, seed=seed, start_from_image=start_from_image, pose_video=pose_video,
            storyboard=storyboard,
            pose_control=pose_control(pose_strength, pose_start, pose_end, pose_steps, fps),
            pose_skip=pose_skip, match_colour=match_colour,
            first_window=first_window,
        )  # fmt: skip
        sampling = Sampling(
            seed=seed, steps=steps, cfg=cfg, sampler=sampler_name, scheduler=scheduler,
            sync_strength=sync_strength, audio_guidance=audio_guidance, apg=apg,
        )  # fmt: skip
        path, images = long_video(
            job, model, audio, sampling,
            continuity=continuity, output_fps=output_fps or fps, with_images=with_images,
            node_id=cls.hidden.unique_id,
        )  # fmt: skip
        if images is None:
            images = host.nothing_because("switch on with_images in S2V Long Video to get its frames here")
        return io.NodeOutput(host.video_file(path), images)
