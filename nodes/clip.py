"""Nodes for one clip at a time: conditioning for any sampler, decoding, and both with the sampling in between.

Know widgets; the work is in `job.py`, `sampling.py` and the core.
"""

from __future__ import annotations

from . import host
from .host import io
from .sockets import (
    ADVANCED_GUIDANCE,
    ADVANCED_POSE,
    CATEGORY,
    ClipIO,
    MotionIO,
    how_large,
    how_much_to_follow,
    how_to_begin,
    how_to_follow,
    how_to_guide,
    how_to_sample,
    what_to_show,
)


def motion_input() -> io.Input:
    return MotionIO.Input("motion", optional=True, tooltip="From the clip before. Leave it open for the first clip.")


def motion_output() -> io.Output:
    return MotionIO.Output("motion_out", display_name="motion", tooltip="For the next clip.")


def frames_output() -> io.Output:
    return io.Image.Output(display_name="images", tooltip="The clip's frames: 77 of the first clip, then 80 each, and "
                                                          "exactly to the sound's end in the last.")  # fmt: skip


class Conditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="S2VConditioning",
            display_name="S2V Conditioning",
            category=CATEGORY,
            description="Conditioning and empty latents of one clip, for KSampler, SamplerCustom and the like, with "
                        "our model or the host's own. S2V Decode Clip makes frames of the result.",
            search_aliases=["wan sound image to video", "s2v ksampler"],
            inputs=[*what_to_show(), *how_large(), *how_to_begin(), motion_input()],
            outputs=[
                io.Conditioning.Output("positive_out", display_name="positive", tooltip="For the sampler."),
                io.Conditioning.Output("negative_out", display_name="negative",
                                       tooltip="For the sampler; it hears nothing."),
                io.Latent.Output(display_name="latent", tooltip="Empty latents of the clip's size."),
                ClipIO.Output(display_name="clip", tooltip="For S2V Decode Clip."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        positive: list,
        negative: list,
        vae: object,
        image: object,
        audio: object,
        width: int,
        height: int,
        fps: float,
        start_from_image: bool,
        pose_video: object | None = None,
        motion: object | None = None,
    ) -> io.NodeOutput:
        from .codec import default_area
        from .job import Clip, Job
        from .sampling import clip_keys

        job = Job.of(
            model_area=default_area(vae), positive=positive, negative=negative, vae=vae, image=image, sound=audio,
            width=width, height=height, fps=fps, seed=0, start_from_image=start_from_image, pose_video=pose_video,
        )  # fmt: skip
        plan, before = job.next_plan(motion), job.memory_before(motion)
        inputs, opening = job.inputs(plan, before)
        for_positive, for_negative = clip_keys(inputs)
        clip = Clip(plan=plan, opening=opening, before=before, size=job.conditioning.size, fps=fps)
        return io.NodeOutput(
            host.with_values(positive, for_positive),
            host.with_values(negative, for_negative),
            {"samples": job.empty_latents()},
            clip,
        )


class DecodeClip(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="S2VDecodeClip",
            display_name="S2V Decode Clip",
            category=CATEGORY,
            description="Frames of a sampled clip: decoded after the frames before it, warm-up and what lies past the "
                        "sound's end dropped, so that picture and sound stay together.",
            search_aliases=["vae decode", "s2v decode"],
            inputs=[
                io.Latent.Input("latent", tooltip="From a sampler."),
                ClipIO.Input("clip", tooltip="From the S2V Conditioning node that the sampler used."),
                io.Vae.Input("vae", tooltip="The same VAE as there."),
            ],
            outputs=[frames_output(), motion_output()],
        )

    @classmethod
    def execute(cls, latent: dict, clip: object, vae: object) -> io.NodeOutput:
        from .job import decode
        from .pictures import to_image

        frames, motion = decode(clip, latent["samples"], vae)
        return io.NodeOutput(to_image(frames), motion)


class SampleClip(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        from .sampling import SAMPLERS, SCHEDULERS

        return host.schema(
            node_id="S2VSampleClip",
            display_name="S2V Sample Clip",
            category=CATEGORY,
            description="One clip of 80 frames (5 seconds at 16 fps). Chain several by their motion sockets, each with "
                        "its own prompt if you like; S2V Long Video does the whole sound at once.",
            search_aliases=["wan s2v sampler", "extend", "ksampler"],
            inputs=[
                io.Model.Input("model", tooltip="A Wan2.2-S2V model: ours, or the host's own."),
                *what_to_show(),
                *how_to_sample(SAMPLERS, SCHEDULERS),
                *how_large(),
                *how_to_begin(),
                motion_input(),
                *how_to_guide(),
                *how_to_follow(),
                *how_much_to_follow(),
            ],
            outputs=[
                frames_output(),
                motion_output(),
                io.Latent.Output(display_name="latent", tooltip="What was sampled."),
            ],
            advanced=(*ADVANCED_GUIDANCE, *ADVANCED_POSE),
            hidden=[io.Hidden.unique_id],
        )

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
        start_from_image: bool,
        pose_video: object | None = None,
        motion: object | None = None,
        sync_strength: float = 1.0,
        audio_guidance: float = 0.0,
        apg: bool = False,
        pose_strength: float = 1.0,
        pose_start: float = 0.0,
        pose_end: float = 0.0,
        pose_steps: int = 0,
        pose_skip: float = 0.0,
    ) -> io.NodeOutput:
        from .job import Job, pose_control
        from .model import default_area
        from .pictures import to_image
        from .run import sample_clip
        from .sampling import Sampling

        job = Job.of(
            model_area=default_area(model), positive=positive, negative=negative, vae=vae, image=image, sound=audio,
            width=width, height=height, fps=fps, seed=seed, start_from_image=start_from_image, pose_video=pose_video,
            pose_control=pose_control(pose_strength, pose_start, pose_end, pose_steps, fps), pose_skip=pose_skip,
        )  # fmt: skip
        sampling = Sampling(
            seed=seed, steps=steps, cfg=cfg, sampler=sampler_name, scheduler=scheduler,
            sync_strength=sync_strength, audio_guidance=audio_guidance, apg=apg,
        )  # fmt: skip
        clip, after = sample_clip(job, model, sampling, motion, node_id=cls.hidden.unique_id)
        latents = host.LATENT_FORMAT.process_out(clip.latents)
        return io.NodeOutput(to_image(clip.frames), after, {"samples": latents})
