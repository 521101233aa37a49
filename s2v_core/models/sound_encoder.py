"""wav2vec2 through `transformers`: a waveform in, all its hidden states out, and nothing else computed.

Knows no files, no video and no clock; its published weight names are mapped here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict

import torch
from torch import Tensor, nn
from transformers import Wav2Vec2Config, Wav2Vec2Model

from ..config import AudioEncoderConfig

_PREFIX = "wav2vec2."
_WEIGHT_NORM = {
    "pos_conv_embed.conv.weight_g": "pos_conv_embed.conv.parametrizations.weight.original0",
    "pos_conv_embed.conv.weight_v": "pos_conv_embed.conv.parametrizations.weight.original1",
}
_UNUSED = ("lm_head.", "project_hid.", "project_q.", "quantizer.", "masked_spec_embed")   # only training needs them


# L hidden states, S samples at 16 kHz, T hidden frames (50 a second), C width
class SoundEncoder(nn.Module):
    """A wav2vec2 encoder without heads, always in inference form: no dropout, no masking."""

    def __init__(self, config: AudioEncoderConfig) -> None:
        super().__init__()
        settings = Wav2Vec2Config(**asdict(config), apply_spec_augment=False, mask_time_prob=0.0, mask_feature_prob=0.0)
        settings._attn_implementation = "sdpa"
        self.wav2vec2 = Wav2Vec2Model(settings).eval()

    @torch.no_grad()
    def hidden_states(self, waveform: Tensor) -> Tensor:
        """What every layer hears.

        Args:
            waveform: [1, S] at 16 kHz, zero mean and unit variance over the whole track, S >= 400.

        Returns: [L, T, C] in the weights' dtype, T = (S - 400) // 320 + 1: first the input of layer 0, after the
            positional convolution; last, where the norms are the stable kind, the output of the final norm. The layers
            run one by one because `transformers` 4 and 5 disagree on that last one.
        """
        weight = next(self.parameters())
        encoder, stable = self.wav2vec2.encoder, self.wav2vec2.config.do_stable_layer_norm
        x = self.wav2vec2.feature_extractor(waveform.to(weight.device, weight.dtype))
        x, _ = self.wav2vec2.feature_projection(x.transpose(1, 2))                       # [1, T, C]
        x = x + encoder.pos_conv_embed(x)
        if not stable:
            x = encoder.layer_norm(x)
        states = x.new_empty(len(encoder.layers) + 1, *x.shape[1:])
        states[0] = x[0]
        for i, layer in enumerate(encoder.layers):
            x = layer(x)
            x = x[0] if isinstance(x, tuple) else x      # transformers 4 returns a tuple, 5 the tensor
            states[i + 1] = x[0]
        if stable:
            states[-1] = encoder.layer_norm(x)[0]
        return states


def sound_encoder_keys(keys: Iterable[str]) -> dict[str, str]:
    """Published weight name -> ours, for the names that we use.

    Takes Wav2Vec2ForCTC files (`wav2vec2.` in front, an `lm_head`) and bare Wav2Vec2Model ones, with weight norm in
    its old or new spelling.
    """
    names = {key: key.removeprefix(_PREFIX) for key in keys}
    return {key: _PREFIX + _new_weight_norm(name) for key, name in names.items() if not name.startswith(_UNUSED)}


def _new_weight_norm(name: str) -> str:
    for old, new in _WEIGHT_NORM.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name
