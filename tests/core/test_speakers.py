"""Sound that is heard in a part of the picture: whose, how much, and nowhere else."""

from __future__ import annotations

import torch

from s2v_core.config import TransformerConfig
from s2v_core.models.audio import sound_shares
from s2v_core.models.dit import ClipContext, WanS2VTransformer

CONFIG = TransformerConfig(
    dim=48, ffn_dim=64, num_heads=2, num_layers=3, text_dim=12, text_len=16, audio_dim=10, audio_inject_layers=(0, 2)
)
T, H, W = 2, 8, 12
LEFT, RIGHT = 0, 1


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


SILENCE, SPEECH = drawn(1, 1, 25, 10, 4 * T), drawn(2, 1, 2, 25, 10, 4 * T)


def clip(model: WanS2VTransformer, **changes: torch.Tensor) -> ClipContext:
    return model.prepare_clip(
        prompt=model.prepare_prompt(drawn(3, 1, 5, 12)),
        num_latents=T,
        reference_latent=drawn(4, 1, 16, 1, H, W),
        motion_latents=drawn(5, 1, 16, 19, H, W),
        **{"audio_features": SILENCE} | changes,
    )


def masks(*columns: tuple[int, int]) -> torch.Tensor:
    """[1, S, T, H, W]: each speaker has the latent cells of these columns."""
    found = torch.zeros(1, len(columns), T, H, W)
    for s, (start, stop) in enumerate(columns):
        found[:, s, ..., start:stop] = 1
    return found


def velocity(model: WanS2VTransformer, context: ClipContext) -> torch.Tensor:
    return model(drawn(6, 1, 16, T, H, W), torch.tensor([500.0]), context)


def test_one_speaker_everywhere_is_the_plain_run_bit_for_bit(model):
    plain = clip(model, audio_features=SPEECH[:, LEFT])
    routed = clip(model, speaker_features=SPEECH[:, :1], speaker_masks=masks((0, W)))
    assert torch.equal(velocity(model, routed), velocity(model, plain))
    assert len(routed.sounds) == 1 and routed.sounds[0].share is None, "nothing is computed for nobody"


def added(model, context, layer=0):
    """[T, H/2, W/2, D] what an audio layer adds to the video tokens."""
    video = drawn(7, 1, context.layout.num_video, CONFIG.dim)
    return model.audio_injector.added(layer, video, context.sounds).view(T, H // 2, W // 2, -1)


def test_a_speaker_is_heard_in_its_region_alone_and_silence_in_the_rest(model):
    regions = masks((0, 4), (8, W))
    context = clip(model, speaker_features=SPEECH, speaker_masks=regions)
    louder = SPEECH.clone()
    louder[:, LEFT] += 1
    moved = added(model, clip(model, speaker_features=louder, speaker_masks=regions)) - added(model, context)
    assert (moved[:, :, :2].abs().amax(-1) > 1e-3).all() and not moved[:, :, 2:].any()
    for cells, features in (((0, 2), SPEECH[:, LEFT]), ((2, 4), SILENCE), ((4, 6), SPEECH[:, RIGHT])):
        alone = added(model, clip(model, audio_features=features))[:, :, slice(*cells)]
        torch.testing.assert_close(added(model, context)[:, :, slice(*cells)], alone, atol=1e-6, rtol=1e-6)


def test_a_soft_edge_hears_both_sides_in_proportion(model):
    soft = masks((0, 4))
    soft[..., 4:6] = 0.25
    found = added(model, clip(model, speaker_features=SPEECH[:, :1], speaker_masks=soft))[:, :, 2]
    silent, speaking = (added(model, clip(model, audio_features=f))[:, :, 2] for f in (SILENCE, SPEECH[:, LEFT]))
    torch.testing.assert_close(found, 0.75 * silent + 0.25 * speaking, atol=1e-5, rtol=1e-5)


def test_shares_come_to_one_also_where_regions_overlap():
    shares = sound_shares(torch.rand(2, 3, T, H, W, generator=torch.Generator().manual_seed(0)), (1, 2, 2))
    assert shares.shape == (2, 4, T * H * W // 4) and shares.min() >= 0
    torch.testing.assert_close(shares.sum(1), torch.ones(2, T * H * W // 4))
    both = sound_shares(masks((0, W), (0, W)), (1, 2, 2))
    assert torch.equal(both[0, :, 0], torch.tensor([0, 0.5, 0.5]))


def test_with_gradients_every_audio_layer_is_called_once_whoever_speaks(model):
    names = [f"audio_injector.{name}" for name, m in model.audio_injector.named_modules() if not any(m.children())]
    calls = dict.fromkeys(names, 0)

    def counted(name):
        return model.get_submodule(name).register_forward_hook(lambda *_: calls.update({name: calls[name] + 1}))

    handles = [counted(name) for name in names]
    routed = {"speaker_features": SPEECH, "speaker_masks": masks((0, 4), (6, W))}
    with torch.enable_grad():
        alone, together = velocity(model, clip(model)), velocity(model, clip(model, **routed))
    assert {name: count for name, count in calls.items() if count != 2} == {}
    for handle in handles:
        handle.remove()
    with torch.no_grad():
        for context, expected in ((clip(model), alone), (clip(model, **routed), together)):
            torch.testing.assert_close(velocity(model, context), expected, atol=2e-5, rtol=1e-4)


def test_branches_with_and_without_speakers_give_in_one_pass_what_each_gives_alone(model):
    routed = clip(model, speaker_features=SPEECH, speaker_masks=masks((0, 4), (6, W)))
    deaf, silent = clip(model, audio_features=0 * SILENCE), clip(model)
    together = model(
        drawn(6, 1, 16, T, H, W).expand(3, -1, -1, -1, -1), torch.full((3,), 500.0), routed.joined(deaf, silent)
    )
    alone = torch.cat([velocity(model, context) for context in (routed, deaf, silent)])
    torch.testing.assert_close(together, alone, atol=2e-5, rtol=1e-4)
