"""Sound: kinds wav2vec2, audio_bucket, audio_layout."""

from __future__ import annotations

import torch
from torch import Tensor

from s2v_core.checkpoints.keymaps import audio_config_from_official
from s2v_core.conditioning.audio import (
    SoundFeatures,
    feature_indices,
    interpolate_states,
    num_features,
    num_hidden_states,
    read_normalised,
    state_positions,
)
from s2v_core.config import FEATURE_VIDEO_RATE
from s2v_core.media.audio_io import sound_from_waveform
from s2v_core.models.sound_encoder import SoundEncoder, sound_encoder_keys

from ..case import Case


def wav2vec2(case: Case) -> dict[str, Tensor]:
    encoder = SoundEncoder(audio_config_from_official(case.config))
    weights = case.weights[0]
    encoder.load_state_dict({ours: weights[theirs] for theirs, ours in sound_encoder_keys(weights).items()})
    waveform = case.tensors["in.waveform"]
    with sound_from_waveform(waveform if waveform.ndim == 2 else waveform[None], case.args["sample_rate"]) as sound:
        values = read_normalised(sound, 0, sound.num_samples)
        clock = SoundFeatures(sound, encoder.hidden_states, fps=FEATURE_VIDEO_RATE)
        found = {
            "mid.mono16k": torch.from_numpy(sound.read(0, sound.num_samples)),
            "out.input_values": values[:, : case.tensors.get("out.input_values", values).shape[1]],   # its beginning
            "out.hidden": encoder.hidden_states(values),
            "out.feat30": clock.window(0, num_features(num_hidden_states(sound.num_samples)))[0].transpose(1, 2),
        }
    return {name: tensor for name, tensor in found.items() if name in case.tensors}


def resampled(states: Tensor) -> Tensor:
    """[L, T, C] hidden states of a whole sound -> [L, N, C] features at 30 a second."""
    num_states = states.shape[1]
    return interpolate_states(states, *state_positions(torch.arange(num_features(num_states)), num_states))


def bucket(features: Tensor, indices: Tensor, *, neighbours: int, fps: float) -> Tensor:
    """[L, N, C] features -> [F, L, C*(2*neighbours+1)]: each frame's and its neighbours', zeros past the end."""
    num = features.shape[1]
    reach = torch.arange(-neighbours, neighbours + 1) * int(FEATURE_VIDEO_RATE / fps)
    chosen = (indices[:, None] + reach).clamp(0, num - 1)                # [F, 2m+1]
    found = features[:, chosen].flatten(2).transpose(0, 1)               # [F, L, C*(2m+1)]
    return torch.where((indices < num)[:, None, None], found, torch.zeros(()))


def audio_bucket(case: Case) -> dict[str, Tensor]:
    args = case.args
    features = resampled(case.tensors["in.features"].float())
    indices = feature_indices(args["num_repeat"] * args["batch_frames"], args["fps"])
    rows = bucket(features, indices, neighbours=args["m"], fps=args["fps"])
    found = {"out.interp": features, "out.indices": indices, "out.bucket": rows}
    if "out.bucket_tail" in case.tensors:
        found["out.bucket_tail"] = rows[-2 * args["batch_frames"] :]
    return {name: tensor for name, tensor in found.items() if name in case.tensors}


def audio_layout(case: Case) -> dict[str, Tensor]:
    args = case.args
    features = resampled(case.tensors["in.features"].float())
    indices = feature_indices(args["num_repeat"] * args["batch_frames"], args["fps"])
    rows = bucket(features, indices, neighbours=args["m"], fps=args["fps"])
    return {"out.audio_emb": rows.permute(1, 2, 0)[None]}


KINDS = {"wav2vec2": wav2vec2, "audio_bucket": audio_bucket, "audio_layout": audio_layout}
