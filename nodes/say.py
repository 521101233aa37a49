"""S2V Say: written words become sound.

Knows widgets; who speaks is the core's business.
"""

from __future__ import annotations

from ..s2v_core.media.speech import FASTEST, SLOWEST, SPEED, VOICE
from . import host
from .host import io
from .sockets import CATEGORY

EXAMPLE = "Good morning. These words were written, and a small program says them."


class Say(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="S2VSay",
            display_name="S2V Say",
            category=CATEGORY,
            description="Written words become speech, by espeak-ng on this machine. The wav stays in the output "
                        "folder.",
            search_aliases=["text to speech", "tts", "espeak", "speak", "voice"],
            inputs=[
                io.String.Input("text", multiline=True, default=EXAMPLE, tooltip="What is said."),
                io.String.Input("voice", default=VOICE,
                                tooltip="Who says it: a language of espeak-ng and a variant, such as en-us, de or "
                                        "en-us+f3."),
                io.Int.Input("speed", default=SPEED, min=SLOWEST, max=FASTEST, optional=True,
                             tooltip="Words a minute, 80 to 450."),
            ],
            outputs=[io.Audio.Output("audio", display_name="audio", tooltip="For S2V Audio Encode, or Save Audio.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, text: str, voice: str, speed: int = SPEED) -> io.NodeOutput:
        from ..s2v_core.media.speech import speech_file
        from .run import FOLDER
        from .waveform import read_wav

        spoken = speech_file(text, voice.strip() or VOICE, host.output_folder() / FOLDER / "speech", speed)
        return io.NodeOutput(read_wav(spoken).as_audio())
