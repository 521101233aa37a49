"""The extension: the list of nodes that ComfyUI shows.

Knows the nodes' names; what they do is in their files.
"""

from __future__ import annotations

from . import audio, clip, dub, loaders, pose, say, speaker, storyboard, video
from .faster import FasterSampling
from .host import ComfyExtension, io

NODES: tuple[type[io.ComfyNode], ...] = (
    loaders.LoadModel,
    loaders.LoadBundledModel,
    say.Say,
    speaker.Speaker,
    speaker.Person,
    speaker.WhoSpeaks,
    audio.AudioEncode,
    clip.Conditioning,
    clip.SampleClip,
    clip.DecodeClip,
    storyboard.Storyboard,
    pose.PoseFromFootage,
    video.LongVideo,
    dub.DubVideo,
    FasterSampling,
)


class WanS2VExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return list(NODES)


def comfy_entrypoint() -> WanS2VExtension:
    return WanS2VExtension()
