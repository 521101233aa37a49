"""S2V Speaker, S2V Person, S2V Who Speaks: people in the picture, and what moves one mouth and no other.

Knows widgets; voices are `voices.py`'s business.
"""

from __future__ import annotations

from . import host
from .host import io
from .sockets import CATEGORY, SpeakersIO

EXAMPLE = "0,2.4,anna\n2.4,4.8,ben"


def region() -> list[io.Input]:
    return [
        side("left", 0.0, "Where the speaker's region begins, as a fraction of the picture's width, 0 to 1."),
        side("top", 0.0, "Where the region begins, as a fraction of the picture's height, 0 to 1."),
        side("right", 1.0, "Where the region ends, as a fraction of the picture's width, 0 to 1."),
        side("bottom", 1.0, "Where the region ends, as a fraction of the picture's height, 0 to 1."),
    ]


def drawn_region() -> io.Input:
    return io.Mask.Input("mask", optional=True,
                         tooltip="White where the speaker is, drawn on the picture; in place of the four "
                                 "sides.")  # fmt: skip


def face() -> io.Input:
    return io.Int.Input("face", default=0, min=0, max=16, optional=True,
                        tooltip="Or the speaker's face among the photographed ones in the picture, counted from the "
                                "left, from 1; found with the package opencv-python-headless<5. 0: as the sides or "
                                "the mask say.")  # fmt: skip


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
                *region(),
                io.Float.Input("start", default=0.0, min=0.0, max=86400.0, step=0.1, round=0.001,
                               tooltip="Seconds into the mixed sound at which the voice begins."),
                io.Float.Input("end", default=0.0, min=0.0, max=86400.0, step=0.1, round=0.001,
                               tooltip="Seconds into the mixed sound at which it is cut off. 0: it is heard whole."),
                drawn_region(),
                SpeakersIO.Input("speakers", optional=True,
                                 tooltip="From the S2V Speaker before. Leave it open for the first."),
                face(),
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
        face: int = 0,
    ) -> io.NodeOutput:
        from .voices import mixed, speak

        voice = speak(audio, mask, (left, top, right, bottom), start=start, end=end, face=face)
        spoken = (*(speakers or ()), voice)
        return io.NodeOutput(spoken, mixed(spoken).as_audio())


class Person(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="S2VPerson",
            display_name="S2V Person",
            category=CATEGORY,
            description="One of several people whose words are all in one sound. Chain one node a person, and connect "
                        "the last one to S2V Who Speaks.",
            search_aliases=["multi person", "interview", "dialogue", "who speaks", "podcast"],
            inputs=[
                io.String.Input("name", default="anna", tooltip="What S2V Who Speaks calls this one."),
                *region(),
                drawn_region(),
                SpeakersIO.Input("speakers", optional=True,
                                 tooltip="From the S2V Person before. Leave it open for the first."),
                face(),
            ],
            outputs=[
                SpeakersIO.Output("speakers_out", display_name="speakers",
                                  tooltip="For the next S2V Person, or S2V Who Speaks."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        name: str,
        left: float,
        top: float,
        right: float,
        bottom: float,
        mask: object | None = None,
        speakers: tuple | None = None,
        face: int = 0,
    ) -> io.NodeOutput:
        from .voices import stand

        return io.NodeOutput((*(speakers or ()), stand(name, mask, (left, top, right, bottom), face)))


class WhoSpeaks(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="S2VWhoSpeaks",
            display_name="S2V Who Speaks",
            category=CATEGORY,
            description="Shares one sound out to several people: whose it is when, as a table or as subtitles. "
                        "Meanwhile everybody else hears silence.",
            search_aliases=["diarization", "turns", "subtitles", "srt", "dialogue"],
            inputs=[
                SpeakersIO.Input("speakers", tooltip="From the last S2V Person."),
                io.String.Input("text", multiline=True, default=EXAMPLE,
                                tooltip="Lines of start,end,name, in seconds or minutes:seconds of the sound; or "
                                        "subtitles (.srt) whose lines begin with the name and a colon."),
                io.Audio.Input("audio", optional=True,
                               tooltip="The sound, to find in it who speaks when, in place of text: the people in the "
                                       "order of their nodes are those first, second, ... heard. Needs the packages "
                                       "silero-vad and resemblyzer."),
                io.Int.Input("voices", default=0, min=0, max=16, optional=True,
                             tooltip="How many voices are heard in audio. 0: as many as there are people."),
            ],
            outputs=[
                SpeakersIO.Output("speakers_out", display_name="speakers",
                                  tooltip="For the speakers input of S2V Audio Encode, whose audio is what is shared."),
                io.String.Output("turns", display_name="turns",
                                 tooltip="Who speaks when, as text; what was found, to be corrected."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, speakers: tuple, text: str, audio: dict | None = None, voices: int = 0) -> io.NodeOutput:
        from .voices import found_turns, share_out

        turns = text if audio is None else found_turns(speakers, audio, voices)
        return io.NodeOutput(share_out(speakers, turns), turns)
