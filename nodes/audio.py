"""S2V Audio Encode: sound in, the sound that drives a video out.

Knows widgets; sound is `sound.py`'s business.
"""

from __future__ import annotations

from . import host
from .host import io
from .sockets import CATEGORY, DrivingSoundIO, SpeakersIO


class AudioEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="S2VAudioEncode",
            display_name="S2V Audio Encode",
            category=CATEGORY,
            description="Makes sound ready to drive a video: trims it, keeps it for the result, and hears it clip by "
                        "clip as the video needs it.",
            search_aliases=["wav2vec", "speech", "lip sync", "trim audio"],
            inputs=[
                io.Audio.Input("audio", tooltip="What is heard in the video. Any rate and number of channels."),
                io.AudioEncoder.Input("audio_encoder", tooltip="wav2vec2_large_english from the host's loader, or the "
                                                               "bundled one."),
                io.Float.Input("start", default=0.0, min=0.0, max=86400.0, step=0.01, round=0.001,
                               tooltip="Seconds: where the video begins in the sound."),
                io.Float.Input("end", default=0.0, min=0.0, max=86400.0, step=0.01, round=0.001,
                               tooltip="Seconds: where the video ends in the sound. 0: at the sound's end."),
                io.Float.Input("offset", default=0.0, min=-10.0, max=10.0, step=0.01, round=0.001,
                               tooltip="Seconds that the mouth moves later than the sound, -10 to 10; below 0, "
                                       "earlier. What is heard stays where it is."),
                io.Audio.Input("driving_audio", optional=True,
                               tooltip="Moves the mouth in place of what is heard: the vocals alone of a song, for "
                                       "instance. As long as audio, and trimmed alike."),
                io.Float.Input("loudness", default=0.0, min=-60.0, max=0.0, step=1.0, round=0.1, optional=True,
                               tooltip="LUFS, -60 to 0: brings every 3 s of the sound that moves the mouth to one "
                                       "loudness, such as -23. 0: off. What is heard stays as it is."),
                io.Float.Input("noise_gate", default=0.0, min=-90.0, max=0.0, step=1.0, round=0.1, optional=True,
                               tooltip="dB, -90 to 0: what is quieter does not move the mouth, such as -45; after "
                                       "loudness. 0: off. What is heard stays as it is."),
                SpeakersIO.Input("speakers", optional=True,
                                 tooltip="From the last S2V Speaker: each voice moves the mouth in its own region, in "
                                         "place of audio, which is only heard. Or from S2V Who Speaks: audio is shared "
                                         "out. Trimmed and moved alike."),
                io.Boolean.Input("isolate_voice", default=False, optional=True,
                                 tooltip="Take the music out of the sound that moves the mouth, before loudness, by "
                                         "what comes again and again in it. Vocals from a separation program, as "
                                         "driving_audio, are better. What is heard stays as it is."),
            ],
            outputs=[
                DrivingSoundIO.Output(display_name="s2v_audio", tooltip="For the S2V nodes."),
                io.Audio.Output(display_name="trimmed", tooltip="What is heard, trimmed."),
                io.AudioEncoderOutput.Output(display_name="encoder_output",
                                             tooltip="The whole trimmed sound, encoded, for the host's own "
                                                     "WanSoundImageToVideo. Made only where it is used."),
                io.Float.Output(display_name="seconds", tooltip="How long the trimmed sound is."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        audio: dict,
        audio_encoder: object,
        start: float,
        end: float,
        offset: float,
        driving_audio: dict | None = None,
        loudness: float = 0.0,
        noise_gate: float = 0.0,
        speakers: tuple | None = None,
        isolate_voice: bool = False,
    ) -> io.NodeOutput:
        from .sound import DrivingSound, encode_with, trimmed
        from .voices import check_driven

        if speakers:
            check_driven(speakers, driving_audio, isolate_voice)
        heard, driving = trimmed(audio, driving_audio, start=start, end=end, offset=offset)
        sound = DrivingSound(
            heard, driving, encode_with(audio_encoder),
            loudness=loudness, noise_gate=noise_gate, isolate=isolate_voice,
            speakers=speakers or (), speakers_later=offset - start,
        )  # fmt: skip
        return io.NodeOutput(sound, heard.as_audio(), sound.encoder_output(), float(heard.seconds))
