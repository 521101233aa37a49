"""A pack for tests alone: a prompt and ears of the big model's widths, and eyes for poses, without any weights.

Knows their shapes only; what they say depends on text, sound and picture, and is the same every time.
"""

from __future__ import annotations

import hashlib
import sys
from types import ModuleType, SimpleNamespace

import torch

LAYERS, WIDTH, TEXT_TOKENS, TEXT_WIDTH = 25, 1024, 512, 4096


def noise(seed_text, *shape):
    seed = int.from_bytes(hashlib.sha256(seed_text.encode()).digest()[:6], "big")
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Holistic:
    """Looks like mediapipe's finder from outside, and sees somebody where the picture's brightness puts them."""

    def __init__(self, **options):
        pass

    def process(self, picture):
        x = float(picture.mean()) / 255
        points = [SimpleNamespace(x=x + 0.02 * (i % 5), y=(i + 1) / 40, visibility=1.0) for i in range(33)]
        body = SimpleNamespace(landmark=points)
        return SimpleNamespace(
            pose_landmarks=body, left_hand_landmarks=None, right_hand_landmarks=None, face_landmarks=None
        )


FINDER = "mediapipe.python.solutions.holistic"
for end in range(1, 5):
    name = ".".join(FINDER.split(".")[:end])
    sys.modules[name] = ModuleType(name)
sys.modules[FINDER].Holistic = Holistic


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
