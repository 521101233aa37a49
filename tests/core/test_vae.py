"""The autoencoder: exact in pieces, primed, replayed; its parameters, precision, memory and arithmetic."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from s2v_core.config import VAEConfig
from s2v_core.errors import ConfigError, ShapeError
from s2v_core.geometry import num_latent_frames
from s2v_core.models.vae import DecoderStream, WanVAE, decoder_receptive_field
from s2v_core.models.vae_layers import Carry, CausalConv, ChannelNorm, Downsample, Upsample

from ..golden.case import ROOT

TINY = VAEConfig(dim=4)
SHALLOW = VAEConfig(dim=8, dim_mult=(1, 2, 2), num_res_blocks=1, temporal_downsample=(True, True))
ONE_RATE = VAEConfig(dim=6, dim_mult=(1, 1, 2, 1), num_res_blocks=1, temporal_downsample=(False, True, False))
CONFIGS = {"tiny": TINY, "shallow": SHALLOW, "one rate": ONE_RATE}


def make(config: VAEConfig = TINY, seed: int = 0) -> WanVAE:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vae = WanVAE(config)
        for name, parameter in vae.named_parameters():
            if name.endswith("gamma"):
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return vae


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pixels(num_frames: int, size: int = 16, batch: int = 1) -> Tensor:
    return noise(batch, 3, num_frames, size, size).mul(0.4).clamp(-1, 1)


def latents_of(num_latents: int, size: int = 2, batch: int = 1) -> Tensor:
    return noise(batch, 16, num_latents, size, size)


def decode(vae: WanVAE, latents: Tensor, stream: DecoderStream | None = None) -> Tensor:
    return torch.cat(list((stream or vae.decoder()).decode(latents)), 2)


# --- parameters ---------------------------------------------------------------------------------------------------


def test_parameters_are_those_of_the_published_file():
    published = json.loads((ROOT / "keys_vae21.json").read_text(encoding="utf-8"))
    state = WanVAE(VAEConfig(), device="meta").state_dict()
    assert {name: list(t.shape) for name, t in state.items()} == {k: v["shape"] for k, v in published["keys"].items()}
    assert len(state) == published["num_keys"] == 194
    assert sum(t.numel() for t in state.values()) == published["total_parameters"] == 126_892_531


def test_weights_may_come_after_construction_and_copies_are_whole():
    vae, empty = make(), WanVAE(TINY, device="meta")
    empty.load_state_dict(vae.state_dict(), assign=True)
    twin = copy.deepcopy(vae)
    with torch.no_grad():
        vae.conv2.weight.mul_(2)
    latents = latents_of(3)
    assert torch.equal(decode(twin, latents), decode(make(), latents))
    assert torch.equal(decode(empty, latents), decode(vae, latents))   # assigned tensors are shared
    assert not torch.equal(decode(empty, latents), decode(twin, latents))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (VAEConfig(dim_mult=(1, 2)), "2 widths has 1 downsampling steps, temporal_downsample names 3"),
        (VAEConfig(temporal_downsample=(True, True, True)), "at most 4 frames"),
        (VAEConfig(latent_channels=8), "need 8 values"),
    ],
)
def test_impossible_settings_are_named(config, said):
    with pytest.raises(ConfigError, match=said):
        WanVAE(config, device="meta")


# --- layers against plain operations on whole videos --------------------------------------------------------------


@pytest.mark.parametrize("pieces", [(1, 4, 4), (1, 2, 2, 2), (1, 1, 1, 1), (3, 2)])
def test_a_causal_convolution_is_a_padded_3d_convolution(pieces):
    conv, carry = CausalConv(5, 7), Carry()
    video = noise(2, 5, sum(pieces), 6, 4)
    with torch.no_grad():
        ours = [y for piece in video.split(pieces, 2) for y in conv(list(piece.unbind(2)), carry)]
        whole = F.conv3d(F.pad(video, (1, 1, 1, 1, 2, 0)), conv.weight, conv.bias)
    torch.testing.assert_close(torch.stack(ours, 2), whole, atol=2e-6, rtol=1e-5)


def test_upsampling_is_a_convolution_of_doubled_cells():
    layer = Upsample(6, in_time=False, rate=1)
    conv, frame = layer.resample["1"], noise(2, 6, 5, 3)
    with torch.no_grad():
        (ours,) = layer([frame], Carry())
        plain = conv(F.interpolate(frame, scale_factor=2.0, mode="nearest-exact"))
    torch.testing.assert_close(ours, plain, atol=2e-6, rtol=1e-5)


def test_time_is_doubled_after_the_first_frame_which_later_ones_do_not_see():
    layer, carry = Upsample(4, in_time=True, rate=1), Carry()
    frames = [noise(1, 4, 3, 3, seed=i) for i in range(4)]
    counts, seconds = [], []
    with torch.no_grad():
        for first in (frames[0], frames[0] + 1):
            carry = Carry()
            counts.append(len(layer([first], carry)))
            carry.is_first = False
            seconds.append(layer([frames[1]], carry))
            counts.append(len(seconds[-1]))
    assert counts == [1, 2, 1, 2]
    assert all(torch.equal(a, b) for a, b in zip(*seconds, strict=True))


def test_time_is_halved_over_windows_that_overlap_by_one_frame():
    layer, carry = Downsample(4, in_time=True), Carry()
    frames = [noise(1, 4, 6, 6, seed=i) for i in range(5)]
    with torch.no_grad():
        first = layer(frames[:1], carry)
        carry.is_first = False
        rest = layer(frames[1:], carry)
        halved = torch.stack([layer.resample["1"](F.pad(x, (0, 1, 0, 1))) for x in frames], 2)
        plain = F.conv3d(halved, layer.time_conv.weight, layer.time_conv.bias, stride=(2, 1, 1))
    assert torch.equal(first[0], halved[:, :, 0])
    torch.testing.assert_close(torch.stack(rest, 2), plain, atol=2e-6, rtol=1e-5)


def test_norms_measure_lengths_in_float32():
    norm = ChannelNorm(8, 1, 1).half()
    loud = torch.full((1, 8, 2, 2), 300.0, dtype=torch.float16)   # a sum of squares of 720,000; float16 ends at 65,504
    with torch.no_grad():
        assert torch.allclose(norm(loud).float(), torch.ones(1), atol=1e-2)
        assert torch.equal(norm(torch.zeros_like(loud)), torch.zeros_like(loud))


# --- streams ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("pieces", [(7,), (1, 6), (2, 5), (3, 1, 3), (1,) * 7])
def test_decoding_in_pieces_is_decoding_at_once(config, pieces):
    vae, latents = make(config), latents_of(7)
    stream = vae.decoder()
    parts = [decode(vae, piece, stream) for piece in latents.split(pieces, 2)]
    whole = decode(vae, latents)
    assert whole.shape[2] == 1 + 6 * 2 ** sum(config.temporal_downsample)
    assert torch.equal(torch.cat(parts, 2), whole)


def test_a_decoded_latent_frame_is_handed_out_before_the_next_is_decoded():
    stream = make().decoder()
    pieces = stream.decode(latents_of(4))
    assert next(pieces).shape == (1, 3, 1, 16, 16)
    reference = make().decoder()
    list(reference.decode(latents_of(4)[:, :, :1]))
    assert state_bytes(stream) == state_bytes(reference)
    assert [piece.shape[2] for piece in pieces] == [4, 4, 4]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("pieces", [(1, 16), (4, 13), (2, 3, 4, 8), (1,) * 17])
def test_encoding_in_pieces_is_encoding_at_once(config, pieces):
    vae, frames = make(config), pixels(17)
    stream = vae.encoder_stream()
    parts = [stream.encode(piece) for piece in frames.split(pieces, 2)]
    assert torch.equal(torch.cat(parts, 2), vae.encode(frames))


def test_frames_that_fill_no_latent_frame_wait_and_are_ignored_at_the_end():
    vae, frames = make(), pixels(12)
    assert torch.equal(vae.encode(frames), vae.encode(frames[:, :, :9]))
    stream = vae.encoder_stream()
    assert [stream.encode(frames[:, :, i : i + 1]).shape[2] for i in range(12)] == [1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]
    assert stream.encode(frames[:, :, :1]).shape == (1, 16, 1, 2, 2)


def test_waiting_frames_are_the_streams_own():
    vae, frames = make(), pixels(5)
    stream, buffer = vae.encoder_stream(), frames[:, :, :3].clone()
    first = stream.encode(buffer)
    buffer.zero_()
    assert torch.equal(torch.cat([first, stream.encode(frames[:, :, 3:])], 2), vae.encode(frames))


def test_a_batch_is_its_videos():
    vae, latents, frames = make(), latents_of(3, batch=2), pixels(9, batch=2)
    singles = torch.cat([decode(vae, one) for one in latents.split(1)])
    torch.testing.assert_close(decode(vae, latents), singles, atol=1e-5, rtol=0)
    singles = torch.cat([vae.encode(one) for one in frames.split(1)])
    torch.testing.assert_close(vae.encode(frames), singles, atol=1e-5, rtol=0)


def test_streams_do_not_share_a_past():
    vae, latents = make(), latents_of(4)
    one, other = vae.decoder(), vae.decoder()
    parts = []
    for latent in latents.split(1, 2):
        parts.append(decode(vae, latent, one))
        decode(vae, -latent, other)
    assert torch.equal(torch.cat(parts, 2), decode(vae, latents))


def test_pixels_are_clamped():
    vae = make()
    with torch.no_grad():
        vae.decoder.head["2"].weight.mul_(50)
    frames = decode(vae, latents_of(2))
    assert frames.amin() == -1 and frames.amax() == 1


# --- priming and replay -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("pieces", [(1,), (2,), (3,), (6,), (19,), (7, 12), (1, 1, 1), (45,)])
def test_primed_latents_shape_what_follows_as_if_they_had_been_decoded(config, pieces):
    vae, latents = make(config), latents_of(sum(pieces) + 3)
    stream = vae.decoder()
    for piece in latents[:, :, : sum(pieces)].split(pieces, 2):
        stream.prime(piece)
    following = decode(vae, latents[:, :, sum(pieces) :], stream)
    assert torch.equal(following, decode(vae, latents)[:, :, -following.shape[2] :])


def test_priming_again_after_decoding():
    vae, latents = make(), latents_of(30)
    stream = vae.decoder()
    stream.prime(latents[:, :, :5])
    decode(vae, latents[:, :, 5:7], stream)
    stream.prime(latents[:, :, 7:29])
    assert torch.equal(decode(vae, latents[:, :, 29:], stream), decode(vae, latents)[:, :, -4:])


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_fresh_stream_fed_the_receptive_field_goes_on_as_the_old_one(config):
    vae, reach = make(config), decoder_receptive_field(config)
    latents = latents_of(reach + 6)
    whole = decode(vae, latents)
    for num_wanted in (1, 3):
        tail = latents[:, :, -(reach - 1 + num_wanted) :]
        stream = vae.decoder()
        stream.prime(tail[:, :, :-num_wanted])
        resumed = decode(vae, tail[:, :, -num_wanted:], stream)
        assert torch.equal(resumed, whole[:, :, -resumed.shape[2] :])


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_receptive_field_is_no_larger_than_what_frames_depend_on(config):
    """A NaN reaches every value that depends on it, whatever its weight."""
    vae, reach = make(config), decoder_receptive_field(config)
    latents = latents_of(reach + 4)
    latents[:, :, 2] = math.nan   # not the first or second, which the stream treats apart
    touched = [bool(piece.isnan().any()) for piece in vae.decoder().decode(latents)]
    assert touched == [2 <= i < 2 + reach for i in range(len(touched))]


def test_wan_2_1_looks_back_38_latent_frames():
    assert decoder_receptive_field(VAEConfig()) == decoder_receptive_field(TINY) == 39


# --- precision and memory -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.bfloat16, 0.1), (torch.float16, 0.0125)])
def test_half_precision_weights_give_float32_results(dtype, allowed):
    exact, half = make(), make().to(dtype)
    latents, frames = latents_of(3), pixels(9)
    for ours, truth in ((decode(half, latents), decode(exact, latents)), (half.encode(frames), exact.encode(frames))):
        assert ours.dtype == torch.float32
        assert 0 < (ours - truth).norm() < allowed * truth.norm()


def state_bytes(stream: DecoderStream) -> int:
    """Of the memory that a stream holds: the whole storage behind every tensor, counted once."""
    held = [frame for frames in stream._carry.past.values() for frame in frames] + list(stream._carry.kernels.values())
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}.values())


def test_a_stream_holds_no_more_after_twenty_latent_frames_than_after_three():
    stream, sizes = make().decoder(), []
    for latent in latents_of(20).split(1, 2):
        list(stream.decode(latent))
        sizes.append(state_bytes(stream))
    assert sizes[0] < sizes[1] < sizes[2]   # doubling in time sees its first frame at the second latent frame
    assert set(sizes[2:]) == {sizes[2]}


def test_carried_frames_are_two_a_layer():
    vae = make()
    stream = vae.decoder()
    list(stream.decode(latents_of(5)))
    causal = [m for m in vae.decoder.modules() if isinstance(m, CausalConv)]
    assert {layer: len(frames) for layer, frames in stream._carry.past.items()} == dict.fromkeys(causal, 2)


# --- bad input ----------------------------------------------------------------------------------------------------


def test_shapes_that_cannot_be_are_named():
    vae = make()
    with pytest.raises(ShapeError, match=r"frames \[B, 3, F, H, W\] of 3 channels, got \[3, 5, 16, 16\]"):
        vae.encode(pixels(5)[0])
    with pytest.raises(ShapeError, match="of 3 channels, got"):
        vae.encode(torch.zeros(1, 4, 1, 16, 16))
    with pytest.raises(ShapeError, match="of 3 channels, got"):
        vae.encode(torch.zeros(1, 3, 0, 16, 16))
    with pytest.raises(ShapeError, match="at least 8x8 pixels, got 16x4"):
        vae.encode(torch.zeros(1, 3, 1, 4, 16))
    with pytest.raises(ShapeError, match="of 16 channels, got"):
        list(vae.decoder().decode(torch.zeros(1, 8, 1, 2, 2)))


def test_a_stream_keeps_its_size():
    vae = make()
    stream = vae.decoder()
    list(stream.decode(latents_of(1)))
    with pytest.raises(ShapeError, match="open another stream"):
        stream.prime(latents_of(1, size=3))
    encoder = vae.encoder_stream()
    encoder.encode(pixels(1))
    with pytest.raises(ShapeError, match="open another stream"):
        encoder.encode(pixels(1, batch=2))


# --- arithmetic ---------------------------------------------------------------------------------------------------


def flops(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


class Costs:
    """Floating-point operations of whole encodes and decodes at one size."""

    def __init__(self, vae: WanVAE, height: int, width: int) -> None:
        self.vae = vae
        self.height, self.width = height, width

    def zeros(self, channels: int, length: int, stride: int) -> Tensor:
        shape = 1, channels, length, self.height // stride, self.width // stride
        return torch.zeros(shape, device=self.vae.conv1.weight.device)

    def encode(self, num_frames: int) -> int:
        return flops(lambda: self.vae.encode(self.zeros(3, num_frames, 1)))

    def decode(self, num_latents: int, num_primed: int = 0) -> int:
        stream = self.vae.decoder()
        priming = flops(lambda: stream.prime(self.zeros(16, num_primed, 8))) if num_primed else 0
        return priming + flops(lambda: list(stream.decode(self.zeros(16, num_latents, 8))))


class SteadyCosts(Costs):
    """The same from four latent frames: every later one costs as much as the fourth."""

    def encode(self, num_frames: int) -> int:
        stream = self.vae.encoder_stream()
        steps = [flops(lambda length=length: stream.encode(self.zeros(3, length, 1))) for length in (1, 4, 4, 4)]
        return _extended(steps, num_latent_frames(num_frames))

    def decode(self, num_latents: int, num_primed: int = 0) -> int:
        assert not num_primed
        stream = self.vae.decoder()
        return _extended([flops(lambda: list(stream.decode(self.zeros(16, 1, 8)))) for _ in range(4)], num_latents)


def _extended(steps: list[int], length: int) -> int:
    return sum(steps[:length]) + max(0, length - len(steps)) * steps[-1]


def share_of_one_clip(costs: Costs) -> float:
    """Our one-clip video against the reference's calls: it also encodes a grey past twice and a black pose video."""
    ours = costs.encode(1) + costs.decode(21)
    return ours / (costs.encode(1) + 2 * costs.encode(73) + costs.encode(81) + costs.decode(21))


def test_a_one_clip_video_costs_two_fifths_of_the_references_calls():
    assert share_of_one_clip(Costs(make(), 16, 16)) <= 0.40


def test_a_one_clip_video_costs_two_fifths_with_the_real_model_at_832x480():
    assert share_of_one_clip(SteadyCosts(WanVAE(VAEConfig(), device="meta"), 480, 832)) <= 0.40


def test_later_latent_frames_all_cost_the_same():
    exact, steady = Costs(make(), 16, 16), SteadyCosts(make(), 16, 16)
    assert exact.decode(8) == steady.decode(8) and exact.encode(29) == steady.encode(29)


def test_priming_with_the_motion_latents_saves_three_tenths_of_a_continuing_clip():
    costs = Costs(make(VAEConfig(dim=8)), 16, 16)
    assert costs.decode(20, num_primed=19) <= 0.70 * costs.decode(39)


def test_pairs_of_frames_and_doubled_cells_spare_arithmetic():
    """Decoding costs at most 0.70 of what plain 3x3x3 convolutions over every frame, as in the reference, would."""
    vae = make(VAEConfig(dim=8))
    assert Costs(vae, 16, 16).decode(21) <= 0.70 * plain_decode_flops(vae, 21, 2, 2)


def plain_decode_flops(vae: WanVAE, num_latents: int, height: int, width: int) -> int:
    """Of the convolutions alone, every one over every frame and cell of its layer's output."""
    total = 0
    frames, (h, w) = num_latents, (height, width)

    def add(layer: torch.nn.Module) -> None:
        nonlocal total
        for m in layer.modules():
            if isinstance(m, torch.nn.Conv2d | torch.nn.Conv3d):
                total += 2 * m.weight.numel() * frames * h * w

    for block in (vae.conv2, vae.decoder.conv1, *vae.decoder.middle):
        add(block)
    for block in vae.decoder.upsamples:
        if isinstance(block, Upsample):
            if block.time_conv is not None:
                add(block.time_conv)
                frames = 1 + 2 * (frames - 1)
            h, w = 2 * h, 2 * w
            add(block.resample)
        else:
            add(block)
    add(vae.decoder.head)
    return total
