"""S2V Speaker: somebody in the picture, and the voice that moves this mouth and no other.

Knows widgets; voices are `voices.py`'s business.
"""

from __future__ import annotations

from . import host
from .host import io
from .sockets import CATEGORY, SpeakersIO


def side(name: str, default: float, tooltip: str) -> io.Input:
    return io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.01, round=0.001, tooltip=tooltip)


class Speaker(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="S2VSpeaker",
            display_name="S2V Speaker",
            category=CATEGORY,
            description="One of several people in the picture, with a voice that only this one says. Chain one node a "
                        "voice, and connect the last one's two outputs to S2V Audio Encode.",
            search_aliases=["multi person", "two people", "dialogue", "conversation", "multitalk"],
            inputs=[
                io.Audio.Input("audio", tooltip="The voice, alone. Any rate and number of channels."),
                side("left", 0.0, "Where the speaker's region begins, as a fraction of the picture's width, 0 to 1."),
                side("top", 0.0, "Where the region begins, as a fraction of the picture's height, 0 to 1."),
                side("right", 1.0, "Where the region ends, as a fraction of the picture's width, 0 to 1."),
                side("bottom", 1.0, "Where the region ends, as a fraction of the picture's height, 0 to 1."),
                io.Float.Input("start", default=0.0, min=0.0, max=86400.0, step=0.1, round=0.001,
                               tooltip="Seconds into the mixed sound at which the voice begins."),
                io.Float.Input("end", default=0.0, min=0.0, max=86400.0, step=0.1, round=0.001,
                               tooltip="Seconds into the mixed sound at which it is cut off. 0: it is heard whole."),
                io.Mask.Input("mask", optional=True,
                              tooltip="White where the speaker is, drawn on the picture; in place of the four sides."),
                SpeakersIO.Input("speakers", optional=True,
                                 tooltip="From the S2V Speaker before. Leave it open for the first."),
            ],
            outputs=[
                SpeakersIO.Output("speakers_out", display_name="speakers",
                                  tooltip="For the next S2V Speaker, or the speakers input of S2V Audio Encode."),
                io.Audio.Output("mix", display_name="mix",
                                tooltip="All voices so far together, for the audio input of S2V Audio Encode."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        audio: dict,
        left: float,
        top: float,
        right: float,
        bottom: float,
        start: float,
        end: float,
        mask: object | None = None,
        speakers: tuple | None = None,
    ) -> io.NodeOutput:
        from .voices import mixed, speak

        spoken = (*(speakers or ()), speak(audio, mask, (left, top, right, bottom), start=start, end=end))
        return io.NodeOutput(spoken, mixed(spoken).as_audio())
