"""Socket types of our own, and the inputs that several nodes share.

Knows the host's schema language; not what an input is used for.
"""

from __future__ import annotations

from .host import io

CATEGORY = "Wan S2V"

DrivingSoundIO = io.Custom("S2V_AUDIO")
MotionIO = io.Custom("S2V_MOTION")
ClipIO = io.Custom("S2V_CLIP")
SpeakersIO = io.Custom("S2V_SPEAKERS")
StoryboardIO = io.Custom("S2V_STORYBOARD")

ADVANCED_GUIDANCE = ("audio_guidance", "apg")
ADVANCED_POSE = ("pose_strength", "pose_start", "pose_end", "pose_steps", "pose_skip")


def what_to_show() -> list[io.Input]:
    return [
        io.Conditioning.Input("positive", tooltip="What is seen, encoded by a CLIP Text Encode node."),
        io.Conditioning.Input("negative", tooltip="What should not be seen. Unused while cfg is 1."),
        io.Vae.Input("vae", tooltip="The Wan 2.1 VAE, or the bundled one."),
        io.Image.Input("image", tooltip="Who talks or sings. The first picture is used, scaled and cropped to fit."),
        DrivingSoundIO.Input("audio", tooltip="From S2V Audio Encode."),
    ]


def how_large() -> list[io.Input]:
    return [
        io.Int.Input("width", default=0, min=0, max=4096, step=16,
                     tooltip="Pixels, a multiple of 16, 64 to 4096. 0 with height 0: the picture's shape, at the "
                             "area that the model likes (832x480 for the big one)."),
        io.Int.Input("height", default=0, min=0, max=4096, step=16, tooltip="Pixels, as width."),
        io.Float.Input("fps", default=16.0, min=1.0, max=60.0, step=1.0, round=0.001,
                       tooltip="Frames per second that are made, 1 to 60: 24, 25 and 30 take 1.5, 1.6 and 1.9 times "
                               "the work of 16, which Wan-S2V was trained at."),
    ]  # fmt: skip


def how_to_sample(samplers: tuple[str, ...], schedulers: tuple[str, ...]) -> list[io.Input]:
    return [
        io.Int.Input("seed", default=0, min=0, max=2**53 - 1, control_after_generate=True,
                     tooltip="Another number, another video. Clip r draws its noise from seed + r."),
        io.Int.Input("steps", default=40, min=1, max=200,
                     tooltip="Denoising steps of a clip, 1 to 200: 40 for the big model, 12 for the bundled one, "
                             "4 with a few-step LoRA."),
        io.Float.Input("cfg", default=4.5, min=1.0, max=20.0, step=0.1, round=0.01,
                       tooltip="How strictly prompt and sound are followed, 1 to 20. 1 switches guidance off and "
                               "halves the work, as few-step LoRAs want it."),
        io.Combo.Input("sampler_name", options=list(samplers), default="wan_unipc",
                       tooltip="wan_unipc is the official solver; all samplers of ComfyUI work too."),
        io.Combo.Input("scheduler", options=list(schedulers), default="wan",
                       tooltip="Which noise levels the steps visit: wan is the official schedule, wan_few_step that of "
                               "distilled LoRAs. The shift is the model's; a ModelSamplingSD3 node changes it."),
    ]  # fmt: skip


def how_to_guide() -> list[io.Input]:
    return [
        io.Float.Input("sync_strength", default=1.0, min=0.0, max=3.0, step=0.05, round=0.01, optional=True,
                       tooltip="How strongly mouths follow the sound, 0 to 3; 1 is as trained. Other than 1, a step "
                               "takes three evaluations in place of two."),
        io.Float.Input("audio_guidance", default=0.0, min=0.0, max=20.0, step=0.1, round=0.01, optional=True,
                       tooltip="Guidance of the sound alone, 1 to 20; cfg is then that of the prompt. 0: cfg times "
                               "sync_strength."),
        io.Boolean.Input("apg", default=False, optional=True,
                         tooltip="Adaptive projected guidance: less oversaturated at a high cfg."),
    ]  # fmt: skip


def how_to_begin() -> list[io.Input]:
    return [
        io.Boolean.Input("start_from_image", default=False,
                         tooltip="Begin with the picture itself, instead of only keeping its looks."),
        io.Video.Input("pose_video", optional=True,
                       tooltip="A video of drawn poses to follow, at any frame rate, over its whole length. "
                               "Past its end the movement is free."),
    ]  # fmt: skip


def how_to_follow() -> list[io.Input]:
    return [
        io.Float.Input("pose_strength", default=1.0, min=0.0, max=2.0, step=0.05, round=0.01, optional=True,
                       tooltip="How closely the pose video is followed, 0 (not at all) to 2."),
        io.Float.Input("pose_start", default=0.0, min=0.0, max=86400.0, step=0.01, round=0.001, optional=True,
                       tooltip="Seconds of the video: before it, the movement is free."),
        io.Float.Input("pose_end", default=0.0, min=0.0, max=86400.0, step=0.01, round=0.001, optional=True,
                       tooltip="Seconds of the video: after it, the movement is free. 0: at the video's end."),
    ]  # fmt: skip


def how_much_to_follow() -> list[io.Input]:
    return [
        io.Int.Input("pose_steps", default=0, min=0, max=200, optional=True,
                     tooltip="Follow the pose video only in the first so many denoising steps of each clip, "
                             "and leave the rest to the sound. 0: in all of them."),
        io.Float.Input("pose_skip", default=0.0, min=0.0, max=86400.0, step=0.01, round=0.001, optional=True,
                       tooltip="Seconds left out at the pose video's beginning."),
    ]  # fmt: skip
