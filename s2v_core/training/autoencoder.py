"""Fit the small video autoencoder to drawn faces: `python -m s2v_core.training.autoencoder --config FILE.yaml`.

Knows nothing of sound, of the transformer or of its training.

Trained plainly, such an autoencoder draws the four frames of a latent frame alike: the mouth stands still in each. So
the differences among the four are made expensive, and most of what it sees are mouths that change from frame to frame.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..config import VAEConfig
from ..errors import ConfigError
from ..geometry import TEMPORAL_STRIDE
from ..models.vae import WanVAE
from .export import save_weights
from .haar_start import begin_as_averages
from .measure import correlation, mouth_opening
from .recipes import recipe_parser, recipe_run
from .synthetic import SyntheticClip
from .whole_video import decode_latents, encode_frames


@dataclass(frozen=True, kw_only=True, slots=True)
class AutoencoderRecipe:
    """One training run. All but its duration follows from these numbers."""

    dim: int = 16
    num_res_blocks: int = 1
    seed: int = 0
    steps: int = 3000
    batch: int = 4
    frames: int = 9              # of a training window: 4n+1
    crop: int = 48  # pixels
    whole_every: int = 8  # steps between whole pictures, one a batch, so that attention sees as many cells as in use
    windows: int = 800           # held in memory, drawn anew one by one as training goes on
    renew: int = 1               # windows drawn anew before a step
    learning_rate: float = 2e-3
    warmup: int = 50             # steps
    decay: float = 0.5           # the last share of the steps, in which the learning rate falls
    detail: float = 3.0          # weight of the differences among the frames of a latent frame
    mouth: float = 3.0           # weight of mouths
    noise: float = 0.1           # on the latents, of each channel's standard deviation: what a generator may get wrong
    shaken: float = 0.75         # share of windows whose mouths open at random from frame to frame
    ema: float = 0.995           # of the weights that are kept
    only_decoder: bool = False   # the encoder of the run before stays, and with it all latents ever made with it

    def __post_init__(self) -> None:
        if self.frames % TEMPORAL_STRIDE != 1 or self.crop % 16 or self.crop > 64:
            raise ConfigError(f"frames must be 4n+1, crop 16 to 64 in 16s; got {self.frames} and {self.crop}")

    @property
    def vae(self) -> VAEConfig:
        """Latents are not normalised while the autoencoder learns."""
        return VAEConfig(
            dim=self.dim, num_res_blocks=self.num_res_blocks, latent_mean=(0.0,) * 16, latent_std=(1.0,) * 16
        )


# --- what it is shown ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """A stretch of a drawn clip: [F, H, W, 3] uint8, and where its mouths are: [P, 4] pixels."""

    frames: np.ndarray
    mouths: np.ndarray


def draw_window(seed: int, recipe: AutoencoderRecipe) -> Window:
    rng = np.random.default_rng(seed)
    side = int(rng.choice((64, 96, 128), p=(0.15, 0.15, 0.7)))
    num_faces = 1 if side == 64 else int(rng.choice(3, p=(0.75, 0.15, 0.10))) + 1
    start = int(rng.integers(0, 128))
    stop = start + recipe.frames
    clip = SyntheticClip(seed, num_frames=stop, width=side, height=side, num_faces=num_faces, silent=True)
    shaken = rng.random() < recipe.shaken
    clip.people = [
        replace(person, openings=_openings(stop, shaken, rng), widths=rng.uniform(-1, 1, stop),
                blinks=(rng.random(stop) < 0.25) if shaken else person.blinks)
        for person in clip.people
    ]  # fmt: skip
    boxes = clip.mouth_boxes(start, stop)
    mouths = np.concatenate([boxes[..., :2].min(0), boxes[..., 2:].max(0)], -1)
    return Window(frames=clip.frames(start, stop), mouths=mouths)


def _openings(num_frames: int, shaken: bool, rng: np.random.Generator) -> np.ndarray:
    """[F] as speech opens a mouth: from one frame to the next at random, or slowly."""
    if shaken:
        return np.where(rng.random(num_frames) < 0.25, 0, rng.uniform(0, 1.2, num_frames))
    return np.clip(0.5 + 0.7 * np.sin(np.arange(num_frames) * rng.uniform(0.1, 0.6) + rng.uniform(0, 6)), 0, 1.2)


class WindowPool:
    """Windows in memory, some drawn anew before every batch."""

    def __init__(self, recipe: AutoencoderRecipe) -> None:
        self._recipe = recipe
        self._next = recipe.seed * 10_000_000
        self._windows: list[Window] = []
        self._rng = np.random.default_rng(recipe.seed)

    def _draw(self) -> None:
        window = draw_window(self._next, self._recipe)
        self._next += 1
        if len(self._windows) < self._recipe.windows:
            self._windows.append(window)
        else:
            self._windows[self._rng.integers(len(self._windows))] = window

    def batch(self, *, whole: bool) -> tuple[Tensor, Tensor]:
        """[B, 3, F, H, W] frames in [-1, 1] and [B, 1, 1, H, W] 1 where a mouth is: crops, or one whole picture."""
        filled = len(self._windows) >= self._recipe.windows
        for _ in range(self._recipe.renew if filled else self._recipe.batch):
            self._draw()
        rows = self._rng.integers(0, len(self._windows), 1 if whole else self._recipe.batch)
        pairs = [self._piece(self._windows[row], whole) for row in rows]
        frames = torch.from_numpy(np.stack([frames for frames, _ in pairs])).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
        mouths = torch.from_numpy(np.stack([mouths for _, mouths in pairs])).float()[:, None, None]
        if self._rng.random() < 0.5:
            frames, mouths = frames.flip(-1), mouths.flip(-1)
        return frames.contiguous(memory_format=torch.channels_last_3d), mouths

    def _piece(self, window: Window, whole: bool) -> tuple[np.ndarray, np.ndarray]:
        side, crop = window.frames.shape[1], window.frames.shape[1] if whole else self._recipe.crop
        mask = np.zeros((side, side), np.float32)
        for left, top, right, bottom in window.mouths:
            mask[max(0, int(top)) : max(0, int(bottom) + 1), max(0, int(left)) : max(0, int(right) + 1)] = 1
        x, y = (int(i) for i in self._rng.integers(0, side - crop + 1, 2))
        if self._rng.random() < 0.6:   # about a mouth, which may lie anywhere in the crop
            left, top, right, bottom = window.mouths[self._rng.integers(len(window.mouths))]
            middle = np.asarray([left + right, top + bottom]) / 2 - crop / 2 + self._rng.uniform(-0.4, 0.4, 2) * crop
            x, y = (int(i) for i in np.clip(middle, 0, side - crop))
        return window.frames[:, y : y + crop, x : x + crop], mask[y : y + crop, x : x + crop]


# --- the loss and the loop --------------------------------------------------------------------------------


def haar(frames: Tensor) -> Tensor:
    """[B, C, 1+4n, H, W] -> [B, C, n, 4, H, W]: of every four frames the mean, then their three differences."""
    a, b, c, d = frames[:, :, 1:].unflatten(2, (-1, TEMPORAL_STRIDE)).unbind(3)
    return torch.stack([a + b + c + d, a + b - c - d, (a - b) * 2**0.5, (c - d) * 2**0.5], 3) / 2


def reconstruction_loss(out: Tensor, frames: Tensor, mouths: Tensor, recipe: AutoencoderRecipe) -> Tensor:
    """Mean absolute error of the first frame and of the others' Haar coefficients, mouths and differences dearer."""
    weight = 1 + (recipe.mouth - 1) * mouths                                     # [B, 1, 1, H, W]
    first = ((out - frames)[:, :, :1].abs() * weight).mean()
    bands = ((haar(out) - haar(frames)).abs() * weight[:, :, None]).mean((0, 1, 2, 4, 5))
    return first / (frames.shape[2]) + (bands[0] + recipe.detail * bands[1:].sum()) / TEMPORAL_STRIDE


def rate_at(step: int, recipe: AutoencoderRecipe, *, done: float) -> float:
    """Learning rate: a rise over `warmup` steps, a plateau, a cosine fall over the last `decay` of the run.

    Args:
        done: share of the run that is over, 0 to 1.
    """
    fall = max(0.0, (done - (1 - recipe.decay)) / recipe.decay)
    return (
        recipe.learning_rate * min(1, (step + 1) / recipe.warmup) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * fall)))
    )


def train(
    recipe: AutoencoderRecipe, *, seconds: float = math.inf, begin: Path | None = None, every: int = 50
) -> Iterator[tuple[dict[str, float], WanVAE]]:
    """Fit an autoencoder.

    Args:
        seconds: a limit; the learning rate falls to its end by then too.
        begin: `vae.safetensors` of an earlier run to go on from; its latents' mean and deviation play no part.

    Yields: after `every` steps what was measured, and the model with averaged weights, which goes on changing.
    Raises: ConfigError for a decoder alone without an encoder to fit it to.
    """
    torch.manual_seed(recipe.seed)
    vae = WanVAE(recipe.vae)
    begin_as_averages(vae)
    if begin is not None:
        vae.load_state_dict({name: tensor.float() for name, tensor in load_file(begin).items()})
    if recipe.only_decoder:
        if begin is None:
            raise ConfigError("only_decoder goes on from an autoencoder: name its vae.safetensors with --begin")
        vae.encoder.requires_grad_(False)
        vae.conv1.requires_grad_(False)
    learning = [parameter for parameter in vae.parameters() if parameter.requires_grad]
    kept = WanVAE(vae.config).requires_grad_(False)
    kept.load_state_dict(vae.state_dict())
    pool = WindowPool(recipe)
    optimizer = torch.optim.AdamW(learning, lr=recipe.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4)
    began, losses = time.monotonic(), []
    for step in range(recipe.steps):
        spent = time.monotonic() - began
        done = max(step / recipe.steps, spent / seconds)
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, recipe, done=done)
        frames, mouths = pool.batch(whole=step % recipe.whole_every == recipe.whole_every - 1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            latents = encode_frames(vae, frames).float()
            spread = latents.std((0, 2, 3, 4), keepdim=True)
            out = decode_latents(vae, latents + torch.randn_like(latents) * spread * recipe.noise).float()
        loss = reconstruction_loss(out, frames, mouths, recipe)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(
                list(kept.parameters()), list(vae.parameters()), 1 - min(recipe.ema, (step + 1) / (step + 10))
            )
        losses.append(loss.item())
        if step % every == every - 1 or done >= 1 or step == recipe.steps - 1:
            yield (
                {"step": step + 1, "seconds": round(time.monotonic() - began, 1), "loss": float(np.mean(losses))},
                kept,
            )
            losses = []
        if done >= 1:
            return


@torch.no_grad()
def judge(vae: WanVAE, *, side: int, num_clips: int, num_frames: int = 81) -> dict[str, float]:
    """How faithful the autoencoder is on held-out people: PSNR in dB, and Pearson r of mouths seen in its pictures."""
    scores: dict[str, list[float]] = {"psnr": [], "mouth_r": []}
    for seed in range(num_clips):
        clip = SyntheticClip(seed, num_frames=num_frames, width=side, height=side, held_out=True)
        truth = clip.frames()
        frames = torch.from_numpy(truth).permute(3, 0, 1, 2)[None] / 127.5 - 1
        out = torch.cat(list(vae.decoder().decode(vae.encode(frames))), 2)
        scores["psnr"].append(-10 * math.log10(((out - frames) / 2).square().mean().item()))
        seen = ((out[0].permute(1, 2, 3, 0) + 1) * 127.5).round().byte().numpy()
        scores["mouth_r"].append(correlation(mouth_opening(seen), mouth_opening(truth)))
    return {"psnr": float(np.mean(scores["psnr"])), "mouth_r": float(np.mean(scores["mouth_r"])),
            "worst_mouth_r": float(np.min(scores["mouth_r"]))}  # fmt: skip


@torch.no_grad()
def latent_statistics(vae: WanVAE, *, side: int, num_clips: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each latent channel over training clips."""
    latents = []
    for seed in range(num_clips):
        clip = SyntheticClip(seed, num_frames=33, width=side, height=side)
        frames = torch.from_numpy(clip.frames()).permute(3, 0, 1, 2)[None] / 127.5 - 1
        latents.append(encode_frames(vae, frames).transpose(0, 1).flatten(1))
    every = torch.cat(latents, 1)
    return tuple(every.mean(1).tolist()), tuple(every.std(1).tolist())


def save(vae: WanVAE, folder: Path) -> None:
    """`vae.safetensors` in bfloat16 and `vae.json`, its settings as `config.VAEConfig` names them."""
    save_weights(folder / "vae.safetensors", {k: v.bfloat16().contiguous() for k, v in vae.state_dict().items()})
    (folder / "vae.json").write_text(json.dumps(asdict(vae.config), indent=2) + "\n", encoding="utf-8")


def _final_config(vae: WanVAE, recipe: AutoencoderRecipe, options: argparse.Namespace) -> VAEConfig:
    """With how latents are normalised: measured, or as before where the encoder has not changed."""
    if recipe.only_decoder:
        before = json.loads(options.begin.with_suffix(".json").read_text(encoding="utf-8"))
        mean, std = tuple(before["latent_mean"]), tuple(before["latent_std"])
    else:
        mean, std = latent_statistics(vae, side=128, num_clips=4 * options.clips)
    return replace(vae.config, latent_mean=mean, latent_std=std)


def main(argv: list[str] | None = None) -> None:
    parser = recipe_parser("Fit the small video autoencoder to drawn faces.", "vae.safetensors and vae.json")
    parser.add_argument("--begin", type=Path, help="vae.safetensors of an earlier run, beside its vae.json")
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop after these, the learning rate fallen")
    parser.add_argument("--clips", type=int, default=10, help="held-out clips that the result is judged by")
    options = parser.parse_args(argv)
    with recipe_run(AutoencoderRecipe, options) as (recipe, tell):
        for report, vae in train(recipe, seconds=options.seconds, begin=options.begin):
            if report["step"] % 300 == 0:
                report |= judge(vae, side=128, num_clips=2, num_frames=33)
            save(vae, options.out)
            tell(report)
        vae.config = vae.decoder.config = _final_config(vae, recipe, options)
        vae = vae.bfloat16().float()   # as it will be loaded
        save(vae, options.out)
        tell({"held_out": judge(vae, side=128, num_clips=options.clips)})


if __name__ == "__main__":
    main()
