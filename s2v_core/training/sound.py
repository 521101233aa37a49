"""Fit the small sound encoder to hear spectra: `python -m s2v_core.training.sound --config FILE.yaml --out FOLDER`.

Knows nothing of pictures. Every hidden state learns to tell the log mel spectrum and the loudness where it stands; what
reads the mel and loudness is thrown away, and the encoder is frozen from then on.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import FEATURE_RATE, SAMPLE_RATE, AudioEncoderConfig
from ..errors import ConfigError
from ..models.sound_encoder import SoundEncoder
from .export import save_weights
from .recipes import recipe_parser, recipe_run
from .voices import speech_track, voices

HOP = SAMPLE_RATE // FEATURE_RATE
WINDOW = 400       # samples a hidden state hears before the transformer
NUM_MELS = 40
FLOOR = 1e-3       # of mel energy, where the sound's variance is 1
LOUDNESS_HOPS = 5  # hidden states that loudness is averaged over: 100 ms


@dataclass(frozen=True, kw_only=True, slots=True)
class SoundRecipe:
    """One training run. All but its duration follows from these numbers and the voices that the machine has."""

    hidden_size: int = 96
    num_layers: int = 3
    num_heads: int = 4
    intermediate_size: int = 192
    conv_dim: int = 64
    seed: int = 0
    steps: int = 500
    batch: int = 6
    shortest: float = 2.0        # seconds of a training piece
    longest: float = 6.0
    tracks: int = 120            # of 10 s, held in memory, one drawn anew a step
    learning_rate: float = 2e-3
    warmup: int = 30             # steps

    def __post_init__(self) -> None:
        if not 0.5 <= self.shortest <= self.longest <= 10:
            raise ConfigError(f"pieces last 0.5 to 10 s, got {self.shortest} to {self.longest}")

    @property
    def encoder(self) -> AudioEncoderConfig:
        """Group norm: layer norm would forget how loud a moment is."""
        return AudioEncoderConfig(
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            intermediate_size=self.intermediate_size,
            conv_dim=(self.conv_dim,) * 7,
            feat_extract_norm="group",
            do_stable_layer_norm=False,
            num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=4,
        )


def normalise(waveform: Tensor) -> Tensor:
    """[B, S] to zero mean and unit variance, as the encoder is fed; silence stays zero."""
    centred = waveform - waveform.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-7).sqrt()


def mel_filters(num_mels: int = NUM_MELS, size: int = WINDOW) -> Tensor:
    """[num_mels, size//2+1] triangles, evenly spread in mels from 60 to 7600 Hz.

    Source: O'Shaughnessy's mel, 2595 log10(1 + f/700).
    """
    low, high = (2595 * math.log10(1 + f / 700) for f in (60, 7600))
    edges = 700 * (10 ** (torch.linspace(low, high, num_mels + 2) / 2595) - 1)
    frequencies = torch.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    rising = (frequencies - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - frequencies) / (edges[2:] - edges[1:-1])[:, None]
    return torch.minimum(rising, falling).clamp(min=0)


def spectrum_targets(waveform: Tensor) -> Tensor:
    """What each hidden state should tell.

    Args:
        waveform: [B, S] normalised.

    Returns: [B, T, NUM_MELS+1] log mel energies and last the compressed loudness, all of about unit size.
    """
    windows = waveform.unfold(1, WINDOW, HOP)                                        # [B, T, 400]
    power = torch.fft.rfft(windows * torch.hann_window(WINDOW)).abs().square() / WINDOW
    mel = (power @ mel_filters().T + FLOOR).log()
    energy = windows.square().mean(-1)
    smooth = F.avg_pool1d(energy[:, None], LOUDNESS_HOPS, 1, LOUDNESS_HOPS // 2, count_include_pad=False)[:, 0]
    return torch.cat([(mel - math.log(FLOOR) - 3) / 3, 2 * smooth.pow(0.3)[..., None] - 1], -1)


class TrackPool:
    """Ten-second tracks of speech in memory, one drawn anew before every batch."""

    def __init__(self, recipe: SoundRecipe) -> None:
        self._recipe = recipe
        self._rng = np.random.default_rng(recipe.seed)
        self._tracks: list[np.ndarray] = []

    def _draw(self) -> np.ndarray:
        choices = voices(held_out=False)
        voice = choices[self._rng.integers(len(choices))]
        track = speech_track(voice, 10 * SAMPLE_RATE, self._rng, held_out=False)
        if self._rng.random() < 0.3:   # a room is never quite silent
            track = track + self._rng.standard_normal(len(track)).astype(np.float32) * 10 ** self._rng.uniform(-4, -2)
        return track

    def batch(self) -> Tensor:
        """[B, S] normalised."""
        rng, recipe = self._rng, self._recipe
        if len(self._tracks) < recipe.tracks:
            self._tracks += [self._draw() for _ in range(recipe.batch if not self._tracks else 1)]
        else:
            self._tracks[rng.integers(recipe.tracks)] = self._draw()
        length = int(rng.uniform(recipe.shortest, recipe.longest) * SAMPLE_RATE)
        starts = rng.integers(0, 10 * SAMPLE_RATE - length + 1, recipe.batch)
        rows = rng.integers(0, len(self._tracks), recipe.batch)
        pieces = [self._tracks[row][start : start + length] for row, start in zip(rows, starts, strict=True)]
        return normalise(torch.from_numpy(np.stack(pieces)).float())


def train(
    recipe: SoundRecipe, *, seconds: float = math.inf
) -> Iterator[tuple[dict[str, float], SoundEncoder, nn.ModuleList]]:
    """Fit a sound encoder.

    Args:
        seconds: a limit; the learning rate falls to its end by then too.

    Yields: after every 25 steps what was measured, the encoder, and the linear readers, one a hidden state.
    """
    torch.manual_seed(recipe.seed)
    encoder = SoundEncoder(recipe.encoder)
    heads = nn.ModuleList(nn.Linear(recipe.hidden_size, NUM_MELS + 1) for _ in range(recipe.num_layers + 1))
    pool = TrackPool(recipe)
    parameters = [*encoder.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=1e-3)
    began, losses = time.monotonic(), []
    for step in range(recipe.steps):
        done = max(step / recipe.steps, (time.monotonic() - began) / seconds)
        for group in optimizer.param_groups:
            group["lr"] = (
                recipe.learning_rate
                * min(1, (step + 1) / recipe.warmup)
                * max(0.01, math.cos(math.pi / 2 * min(1, done)))
            )
        waveform = pool.batch()
        loss = spectrum_loss(encoder, heads, waveform)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(loss.item())
        if step % 25 == 24 or done >= 1 or step == recipe.steps - 1:
            report = {"step": step + 1, "seconds": round(time.monotonic() - began, 1), "loss": float(np.mean(losses))}
            yield report, encoder, heads
            losses = []
        if done >= 1:
            return


def spectrum_loss(encoder: SoundEncoder, heads: nn.ModuleList, waveform: Tensor) -> Tensor:
    """Mean squared error of what all hidden states tell of [B, S] normalised sound; loudness counts a fifth."""
    states = encoder.wav2vec2(waveform, output_hidden_states=True).hidden_states
    targets = spectrum_targets(waveform)
    errors = torch.stack(
        [(head(state) - targets).square().mean((0, 1)) for head, state in zip(heads, states, strict=True)]
    )
    return 0.8 * errors[:, :-1].mean() + 0.2 * errors[:, -1].mean()


@torch.no_grad()
def judge(encoder: SoundEncoder, heads: nn.ModuleList, *, num_tracks: int) -> dict[str, float]:
    """On held-out voices and sentences: share of the log mel spectrum that the last state explains, r of loudness."""
    told, true = [], []
    for seed in range(num_tracks):
        rng = np.random.default_rng(seed)
        choices = voices(held_out=True)
        track = speech_track(choices[seed % len(choices)], 8 * SAMPLE_RATE, rng, held_out=True)
        waveform = normalise(torch.from_numpy(track)[None])
        told.append(heads[-1](encoder.hidden_states(waveform)[-1].float()))
        true.append(spectrum_targets(waveform)[0])
    told, true = torch.cat(told), torch.cat(true)
    explained = 1 - (told - true)[:, :-1].square().mean() / (true[:, :-1] - true[:, :-1].mean(0)).square().mean()
    loudness = torch.corrcoef(torch.stack([told[:, -1], true[:, -1]]))[0, 1]
    return {"explained": float(explained), "loudness_r": float(loudness)}


@torch.no_grad()
def silence_distance(encoder: SoundEncoder) -> float:
    """How far apart features of silence and of speech lie: their distance over the spread of those of speech."""
    choices = voices(held_out=True)
    track = speech_track(choices[0], 4 * SAMPLE_RATE, np.random.default_rng(0), held_out=True)
    waveform = torch.from_numpy(track)[None]
    speech = encoder.hidden_states(normalise(waveform))[-1].float()                          # [T, C]
    silence = encoder.hidden_states(torch.zeros(1, 2 * SAMPLE_RATE))[-1].float()[20:-20].mean(0)
    loud = waveform[0].unfold(0, WINDOW, HOP).square().mean(-1) > waveform.square().mean()
    return float((speech[loud] - silence).norm(dim=-1).mean() / speech[loud].std(0).norm())


def save(encoder: SoundEncoder, folder: Path) -> None:
    """`audio_encoder.safetensors`, in bfloat16."""
    tensors = {k: v.bfloat16().contiguous() for k, v in encoder.state_dict().items()}
    save_weights(folder / "audio_encoder.safetensors", tensors)


def main(argv: list[str] | None = None) -> None:
    parser = recipe_parser("Fit the small sound encoder to hear spectra.", "audio_encoder.safetensors and .json")
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop after these, the learning rate fallen")
    options = parser.parse_args(argv)
    with recipe_run(SoundRecipe, options) as (recipe, tell):
        for report, encoder, heads in train(recipe, seconds=options.seconds):   # noqa: B007 the last ones are kept
            tell(report)
        encoder.bfloat16().float()   # as it will be loaded
        save(encoder, options.out)
        settings = json.dumps(asdict(recipe.encoder), indent=2) + "\n"
        (options.out / "audio_encoder.json").write_text(settings, encoding="utf-8")
        tell({"held_out": judge(encoder, heads, num_tracks=12), "silence_distance": silence_distance(encoder)})


if __name__ == "__main__":
    main()
