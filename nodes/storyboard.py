"""S2V Storyboard: prompts by their times, encoded.

Knows widgets; how text is read and where scenes begin is the core's business.
"""

from __future__ import annotations

from . import host
from .host import io
from .sockets import CATEGORY, StoryboardIO

EXAMPLE = "a person talks to the camera\n0:05 the person laughs"


class Storyboard(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="S2VStoryboard",
            display_name="S2V Storyboard",
            category=CATEGORY,
            description="Prompts by their times for S2V Long Video: one per line, each from the clip on that begins "
                        "nearest to its time.",
            search_aliases=["prompt schedule", "prompt travel", "scenes", "timeline"],
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder, as for CLIP Text Encode."),
                io.String.Input("text", multiline=True, default=EXAMPLE,
                                tooltip="A prompt per line, with its time before it: 0:12.5 (minutes:seconds), or "
                                        "clip 3. Lines without times are a clip each. [seed 7, guidance 6, image 2, "
                                        "speaker anna] before a prompt changes these too."),
                io.Image.Input("images", optional=True,
                               tooltip="Pictures that [image 2] in the text names, by their numbers, from 1."),
            ],
            outputs=[StoryboardIO.Output(display_name="storyboard", tooltip="For S2V Long Video.")],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, text: str | None) -> bool | str:
        from ..s2v_core.errors import ConfigError
        from ..s2v_core.video.storyboard import parse_storyboard

        try:
            if text is not None:   # None: from another node, not known yet
                parse_storyboard(text)
        except ConfigError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, clip: object, text: str, images: object | None = None) -> io.NodeOutput:
        from ..s2v_core.video.storyboard import parse_storyboard
        from .job import Board

        scenes = parse_storyboard(text)
        prompts = dict.fromkeys(scene.prompt for scene in scenes if scene.prompt is not None)
        encoded = {prompt: host.encode_prompt(clip, prompt) for prompt in prompts}
        return io.NodeOutput(Board(scenes=scenes, prompts=encoded, images=images))
