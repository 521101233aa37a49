"""A pack for tests alone: a prompt and ears of the big model's widths, without the big models' weights.

Knows their shapes only; what they say depends on the text and the sound, and is the same every time.
"""

from __future__ import annotations

import hashlib

import torch

LAYERS, WIDTH, TEXT_TOKENS, TEXT_WIDTH = 25, 1024, 512, 4096


def noise(seed_text, *shape):
    seed = int.from_bytes(hashlib.sha256(seed_text.encode()).digest()[:6], "big")
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Ears:
    """Looks like the host's audio encoder from outside."""

    class model:
        do_normalize = True

    def encode_audio(self, audio, sample_rate):
        assert sample_rate == 16000
        wave = audio.mean(1)
        windows = wave.unfold(1, 400, 320)                                     # [1, T, 400]
        states = windows @ noise("ears", 400, WIDTH) / 20
        layers = [torch.tanh(states * (1 + i / LAYERS)) for i in range(LAYERS)]
        return {"encoded_audio": layers[-1], "encoded_audio_all_layers": layers, "audio_samples": wave.shape[1]}


class StandInEars:
    RETURN_TYPES, FUNCTION, CATEGORY = ("AUDIO_ENCODER",), "make", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def make(self):
        return (Ears(),)


class StandInPrompt:
    RETURN_TYPES, FUNCTION, CATEGORY = ("CONDITIONING",), "make", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"text": ("STRING", {"default": ""})}}

    def make(self, text):
        return ([[noise("prompt " + text, 1, TEXT_TOKENS, TEXT_WIDTH), {}]],)


NODE_CLASS_MAPPINGS = {"StandInEars": StandInEars, "StandInPrompt": StandInPrompt}
