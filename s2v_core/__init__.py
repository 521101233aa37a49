"""Wan-S2V without a host: model, encoders, sampling, the long-video loop, training.

    from s2v_core import WanS2VPipeline
    pipe = WanS2VPipeline.from_pretrained()
    pipe(image_path="face.png", audio_path="speech.wav", prompt="a woman sings").save("out.mp4")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .pipeline import WanS2VPipeline

__all__ = ["WanS2VPipeline"]


def __getattr__(name: str) -> object:
    """Heavy imports wait until somebody wants the pipeline: `wan-s2v --help` does not."""
    if name == "WanS2VPipeline":
        from .pipeline import WanS2VPipeline

        return WanS2VPipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
