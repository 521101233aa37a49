"""S2V Dub Video: new speech on existing footage.

Knows widgets; the run is in `dubbing.py`.
"""

from __future__ import annotations

from ..s2v_core.dub.request import LENGTHS
from . import host
from .host import io
from .sockets import ADVANCED_GUIDANCE, CATEGORY, DrivingSoundIO, how_to_guide, how_to_sample


class DubVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        from .sampling import SAMPLERS, SCHEDULERS

        return host.schema(
            node_id="S2VDubVideo",
            display_name="S2V Dub Video",
            category=CATEGORY,
            description="Gives existing footage new speech: the mouth is made anew, everything else stays as it was, "
                        "with the footage's size and frame rate. Save it with Save Video.",
            search_aliases=["wan s2v", "dubbing", "lip sync", "redub", "video to video"],
            inputs=[
                io.Model.Input("model", tooltip="A Wan2.2-S2V model: ours, or the host's own."),
                io.Conditioning.Input("positive", tooltip="What is seen, encoded by a CLIP Text Encode node."),
                io.Conditioning.Input("negative", tooltip="What should not be seen. Unused while cfg is 1."),
                io.Vae.Input("vae", tooltip="The Wan 2.1 VAE, or the bundled one."),
                io.Video.Input("video", tooltip="The footage, at any size and frame rate, also a varying one."),
                DrivingSoundIO.Input("audio", tooltip="From S2V Audio Encode; it begins with the first frame."),
                *how_to_sample(SAMPLERS, SCHEDULERS),
                io.Combo.Input("length", options=list(LENGTHS), default="hold",
                               tooltip="When sound and footage are not equally long: hold or loop end with the longer "
                                       "(the last frame stands still, or the last second goes back and forth), trim "
                                       "with the shorter."),
                io.Float.Input("strength", default=1.0, min=0.05, max=1.0, step=0.05, round=0.01,
                               tooltip="How much of the old mouth is given up; below 1 its old movement shines "
                                       "through."),
                io.Float.Input("mask_padding", default=0.0, min=-0.5, max=2.0, step=0.05, round=0.01,
                               tooltip="Grows the region by so many heights of the face; below 0 it shrinks."),
                io.Int.Input("face", default=0, min=0, max=16,
                             tooltip="Which of several people, counted from the left; 0: the one who fills most. "
                                     "Unused with a mask."),
                io.Float.Input("start", default=0.0, min=0.0, max=86400.0, step=0.1, round=0.001,
                               tooltip="Seconds of the footage: nothing changes before."),
                io.Float.Input("end", default=0.0, min=0.0, max=86400.0, step=0.1, round=0.001,
                               tooltip="Seconds of the footage: nothing changes from here on. 0: its end."),
                io.Int.Input("draw_every", default=0, min=0, max=8,
                             tooltip="The model draws every n-th frame, those between are blended. 0: each one up to "
                                     "30 a second, every second one up to 60."),
                io.Int.Input("side", default=0, min=0, max=2048, step=16,
                             tooltip="Pixels of the square that the face is drawn in, a multiple of 16, at least 64. "
                                     "0: the model's own area."),
                io.Mask.Input("mask", optional=True,
                              tooltip="White where the mouth is made anew: one for all frames, or one a frame. "
                                      "Without it the face is found, which needs the package "
                                      "opencv-python-headless<5."),
                *how_to_guide(),
            ],
            outputs=[
                io.Video.Output(display_name="video", tooltip="A file on disk, with the sound; for Save Video."),
                io.String.Output(display_name="report",
                                 tooltip="What was done about the length, and which frames stay as they were."),
            ],
            advanced=("draw_every", "side", *ADVANCED_GUIDANCE),
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        model: object,
        positive: list,
        negative: list,
        vae: object,
        video: object,
        audio: object,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        length: str,
        strength: float,
        mask_padding: float,
        face: int,
        start: float,
        end: float,
        draw_every: int,
        side: int,
        mask: object | None = None,
        sync_strength: float = 1.0,
        audio_guidance: float = 0.0,
        apg: bool = False,
    ) -> io.NodeOutput:
        from .dubbing import dub_video, request_of
        from .model import default_area
        from .sampling import Sampling

        request = request_of(
            video, seed=seed, length=length, strength=strength, mask_padding=mask_padding, face=face or None,
            start=start, end=end or None, draw_every=draw_every or None,
        )  # fmt: skip
        sampling = Sampling(
            seed=seed, steps=steps, cfg=cfg, sampler=sampler_name, scheduler=scheduler,
            sync_strength=sync_strength, audio_guidance=audio_guidance, apg=apg,
        )  # fmt: skip
        path, report = dub_video(
            request,
            model=model,
            model_area=default_area(model),
            positive=positive,
            negative=negative,
            vae=vae,
            sound=audio,
            mask=mask,
            side=side,
            sampling=sampling,
            node_id=cls.hidden.unique_id,
        )
        return io.NodeOutput(host.video_file(path), report)
