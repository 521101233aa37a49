"""Clips that a run generates as it goes: from fixed inputs that it does not learn from, as `generate` makes them.

Knows a student, footage and the clip loop; not when clips are due, nor where their scores go.
"""

from __future__ import annotations

import logging
import tempfile
import wave
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ..conditioning.audio import SoundFeatures, SoundSource
from ..config import SAMPLE_RATE, ModelConfig
from ..denoiser import TransformerDenoiser
from ..errors import ConfigError, OutputError, S2VError
from ..media.video_io import join_segments, to_pictures, write_segment
from ..types import ClipPlan, ClipSettings, Conditioning, SamplerSettings
from ..video.generate import generate_clips
from ..video.timeline import plan_clips
from .config import PrecomputeConfig
from .encoders import ModelEncoders
from .footage import Footage, find_footage
from .measure import best_lag, compressed_loudness, correlation, mouth_opening
from .student import Student

log = logging.getLogger(__name__)

MOST_LAG = 5   # frames, either way


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """What one clip is generated from."""

    plan: ClipPlan
    prompt: str
    conditioning: Conditioning   # its prompts still to be encoded where the student does that
    sound: SoundSource


class Samples:
    """A run's samples: the same scenes every time, by the student as it is then.

    Args:
        footage: where pictures, sounds and prompts come from: its first videos that have one sound.
        model: the student's; its negative prompt, shift and guidance are used.
        num_clips: of one clip's length each, from the video's start.
        steps: denoising steps.
        encodes_prompts: the student has a text encoder of its own.

    Raises: ConfigError when the footage has no usable video.
    """

    def __init__(
        self,
        footage: PrecomputeConfig,
        model: ModelConfig,
        *,
        num_clips: int,
        steps: int,
        encodes_prompts: bool,
        device: torch.device,
    ) -> None:
        self.device = device
        self.model = model
        self.talks = footage.source == "synthetic"   # mouths are measured on drawn faces alone
        self.clip = ClipSettings(
            frames=footage.clip_frames,
            motion_frames=footage.motion_frames,
            warmup_frames=footage.warmup_frames,
            fps=footage.fps,
        )
        self.settings = SamplerSettings(steps=steps, shift=model.default_shift, guidance_scale=model.default_guidance)
        self._encoders = ModelEncoders(footage.model, device=device, with_text=False)
        text = None if encodes_prompts else ModelEncoders(footage.model, device=device, with_text=True)
        self.scenes = self._scenes(footage, num_clips, text)

    def _scenes(self, config: PrecomputeConfig, num_clips: int, text: ModelEncoders | None) -> list[Scene]:
        scenes: list[Scene] = []
        items = find_footage(config)
        for item in items:
            if len(scenes) == num_clips:
                break
            try:
                footage = item.open()
            except S2VError as error:
                log.warning("no sample of %s: %s", item.name, error)
                continue
            if footage.sound is not None:
                scenes.append(self._scene(footage, footage.sound, len(scenes), text))
        if not scenes:
            raise ConfigError(f"precompute_validation: not one of {len(items)} videos can be generated anew")
        return scenes

    def _scene(self, footage: Footage, sound: SoundSource, index: int, text: ModelEncoders | None) -> Scene:
        num_frames = min(footage.num_frames, self.clip.frames - self.clip.warmup_frames)
        (plan,) = plan_clips(num_frames, self.clip, seed=index, start_from_image=False)
        picture = footage.frames(0, 1) if footage.reference is None else footage.reference
        told, untold = (
            torch.empty(1, 0, self.model.transformer.text_dim) if text is None else text.encode_prompt(prompt)[None]
            for prompt in (footage.prompt, self.model.negative_prompt)
        )
        return Scene(
            plan=plan,
            prompt=footage.prompt,
            conditioning=Conditioning(
                size=footage.size,
                prompt_embeds=told,
                negative_prompt_embeds=untold,
                reference_frames=picture,
                reference_latent=self._encoders.encode_frames(picture),
                audio=SoundFeatures(sound, self._encoders.hidden_states, fps=self.clip.fps),
            ),
            sound=sound,
        )

    @torch.no_grad()
    def make(self, student: Student, path: Path | None) -> dict[str, float]:
        """Generate every scene. The state of torch's random numbers is as before, whatever a model has drawn.

        Args:
            path: of the mp4s, the number of the scene is added to its name; None: nothing is written.

        Returns: scores of drawn faces: `mouth_r`, `worst_mouth_r` (Pearson's r of mouth opening with loudness, mean
            and least over scenes), `other_r` (the mean with another scene's sound: chance) and `lag` (frames that the
            mouths come late); nothing for other footage.
        """
        seen = []
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            for number, scene in enumerate(self.scenes):
                pictures = self.generate(student, scene)
                seen.append(pictures)
                if path is not None:
                    self._write(pictures, scene.sound, path.with_name(f"{path.stem}-{number}{path.suffix}"))
        return self._scores(seen) if self.talks else {}

    def generate(self, student: Student, scene: Scene) -> np.ndarray:
        """[F, H, W, 3] uint8."""
        conditioning = scene.conditioning
        if student.prompts is not None:
            told, untold = student.prompts((scene.prompt, self.model.negative_prompt)).split(1)
            conditioning = replace(conditioning, prompt_embeds=told, negative_prompt_embeds=untold)
        denoiser = TransformerDenoiser(student.transformer, self.settings, device=self.device)
        (clip,) = generate_clips(
            [scene.plan], conditioning, denoiser, self._encoders.codec, self.clip, on_step=_nobody_watches
        )
        return np.stack(list(to_pictures(clip.frames)))

    def _scores(self, seen: Sequence[np.ndarray]) -> dict[str, float]:
        mouths = [mouth_opening(pictures) for pictures in seen]
        heard = [self.loudness(scene, len(mouth)) for scene, mouth in zip(self.scenes, mouths, strict=True)]
        rs = [correlation(mouth, loudness) for mouth, loudness in zip(mouths, heard, strict=True)]
        most = min(MOST_LAG, min(map(len, mouths)) // 4)
        by_lag = [best_lag(mouth, loudness, most)[1] for mouth, loudness in zip(mouths, heard, strict=True)]
        lag = max(by_lag[0], key=lambda lag: sum(r[lag] for r in by_lag))
        scores = {"mouth_r": float(np.mean(rs)), "worst_mouth_r": min(rs), "lag": float(lag)}
        if len(mouths) > 1:
            next_scenes = [*self.scenes[1:], self.scenes[0]]
            others = [self.loudness(scene, len(mouth)) for scene, mouth in zip(next_scenes, mouths, strict=True)]
            scores["other_r"] = float(np.mean([correlation(*pair) for pair in zip(mouths, others, strict=True)]))
        return scores

    def loudness(self, scene: Scene, num_frames: int) -> np.ndarray:
        """[F] of a scene's sound, compressed as mouths follow it."""
        waveform = scene.sound.read(0, scene.sound.num_samples)
        return compressed_loudness(waveform, num_frames, self.clip.fps)

    def _write(self, pictures: np.ndarray, sound: SoundSource, path: Path) -> None:
        """A sample that the disk refuses is not worth the run."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix="s2v-sample-") as folder:
                segment, audio = Path(folder) / "0.mp4", Path(folder) / "sound.wav"
                write_segment(segment, pictures, fps=self.clip.fps)
                _write_wav(audio, sound.read(0, sound.num_samples))
                join_segments([segment], path, audio=audio, fps=self.clip.fps, num_frames=len(pictures))
        except (OSError, OutputError) as error:
            log.warning("the sample %s is not written: %s", path, error)


def _write_wav(path: Path, samples: np.ndarray) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes((samples.clip(-1, 1) * 32767).astype("<i2").tobytes())


def _nobody_watches(done: int, total: int) -> None:
    pass
