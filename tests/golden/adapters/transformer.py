"""The transformer and its parts: kinds dit, audio_encoder, framepack, time_embedding, and so on."""

from __future__ import annotations

import re
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from s2v_core.checkpoints.keymaps import transformer_config_from_official
from s2v_core.models.dit import WanS2VTransformer, sinusoid
from s2v_core.models.dit_blocks import PromptKeys, unpatchify
from s2v_core.models.positions import motion_positions
from s2v_core.ops.rope import rope_table
from s2v_core.sampling.guidance import guide

from ..case import Case


def transformer(case: Case, **changes: object) -> WanS2VTransformer:
    """The case's model, or one that differs in some settings."""
    settings = case.config.get("dit", case.config)
    model = WanS2VTransformer(replace(transformer_config_from_official(settings), **changes)).eval()
    model.load_state_dict(case.weights[0])
    return model


def prompt_embeds(case: Case, prefix: str) -> list[Tensor]:
    return [case.tensors[name] for name in sorted(case.tensors, key=_number) if re.fullmatch(rf"{prefix}#\d+", name)]


def _number(name: str) -> int:
    digits = re.search(r"#(\d+)$", name)
    return int(digits[1]) if digits else -1


def padded(rows: list[Tensor]) -> Tensor:
    longest = max(len(r) for r in rows)
    return torch.stack([F.pad(r, (0, 0, 0, longest - len(r))) for r in rows])


def as_scales(modulation: Tensor) -> Tensor:
    """What we add to the reference's modulation [B, 6, ...], so that scales multiply as they are."""
    return modulation.new_tensor((0, 1, 0, 0, 1, 0)).view(6, *[1] * (modulation.dim() - 2))


class Recorder:
    """Keeps what the blocks are given and give back during one forward."""

    def __init__(self, model: WanS2VTransformer) -> None:
        self.seen: dict[str, Tensor] = {}
        self.handles = [model.head.register_forward_hook(self._head)]
        for i, block in enumerate(model.blocks):
            self.handles.append(
                block.register_forward_hook(lambda layer, inputs, out, i=i: self._block(i, layer, inputs, out))
            )

    def _block(self, i: int, block: torch.nn.Module, inputs: tuple, out: Tensor) -> None:
        """Copies: sound is added to a block's result in place. The last block leaves out what nobody reads."""
        *given, part = inputs
        self.seen["mid.tokens" if i == 0 else f"mid.after_audio#{i - 1}"] = inputs[0].clone()
        self.seen[f"mid.block#{i}"] = block.forward(*given) if part == "video" else out.clone()

    def _head(self, _module: torch.nn.Module, _inputs: tuple, out: Tensor) -> None:
        self.seen["mid.head"] = out

    def stop(self) -> None:
        for handle in self.handles:
            handle.remove()


def forward(
    model: WanS2VTransformer, case: Case, embeds: list[Tensor], *, num_near: int = 2, audio_scale: float = 1.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """One forward on the case's inputs: the velocity, and what was seen on the way."""
    args, tensors = case.args, case.tensors
    x = tensors["in.x"]
    config = model.config
    features = tensors.get("in.audio_input")
    if features is None:
        features = torch.zeros(len(x), config.num_audio_layers, config.audio_dim, 4 * x.shape[2])
    clip = model.prepare_clip(
        prompt=model.prepare_prompt(padded(embeds)),
        num_latents=x.shape[2],
        reference_latent=tensors["in.ref_latents"],
        audio_features=features * audio_scale,
        motion_latents=None if args.get("drop_motion_frames") else tensors["in.motion_latents"],
        pose_latents=tensors.get("in.cond_states"),
        num_near=num_near if case.config.get("add_last_motion", True) else 0,
        audio_prefix_frames=args["motion_frames"][0],
    )
    assert clip.rope.shape[0] == clip.layout.total
    recorder = Recorder(model)
    time = model.embed_time(tensors["in.t"])
    velocity = model(x, time, clip)
    recorder.stop()
    seen = recorder.seen | {
        "mid.e": time.head,
        "mid.e0": time.modulation - as_scales(time.modulation),
        "mid.seg": torch.tensor([clip.layout.num_video]),
        "mid.rope": clip.rope.squeeze(1).expand(len(x), -1, -1, -1),
    }
    return velocity, seen


def recorded(case: Case, computed: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of what was computed, what the case has a record of."""
    return {name: value for name, value in computed.items() if name in case.tensors}


def dit(case: Case) -> dict[str, Tensor]:
    variants = [re.fullmatch(r"out\.v#(drop|padd)_(\d)", name) for name in case.tensors]
    variants = [v for v in variants if v]
    embeds = prompt_embeds(case, "in.context")
    if variants:
        out = {}
        for v in variants:
            model = transformer(case, motion_drop_mode=v[1])
            out[v[0]] = forward(model, case, embeds, num_near=int(v[2]))[0]
        return out
    model = transformer(case)
    velocity, seen = forward(model, case, embeds, num_near=case.args.get("add_last_motion", 2))
    out = {"out.v": velocity} | recorded(case, seen)
    if "out.v_uncond" in case.tensors:
        negative = forward(model, case, prompt_embeds(case, "in.context_null"), audio_scale=0.0)[0]
        scale = case.args.get("guide_scale") or _recorded_scale(case)
        out |= {"out.v_uncond": negative, "out.v_guided": guide((velocity, negative), (scale,))}
    return out


def _recorded_scale(case: Case) -> float:
    """The guidance scale, which the manifest states in words beside the guided tensor."""
    return float(re.search(r"u \+ ([\d.]+)\*\(c-u\)", case.entry["tensors"]["out.v_guided"]["meaning"])[1])


def audio_encoder(case: Case) -> dict[str, Tensor]:
    encoder = transformer(case).casual_audio_encoder
    features = case.tensors["in.features"]
    prefix = re.search(r"official: (\d+) copies", case.entry["tensors"]["out.global"]["meaning"])
    tokens, style = encoder(features, int(prefix[1]) if prefix else 0)
    mixed = encoder.mix(features)
    pyramid = encoder.encoder
    out = {"out.local": tokens, "mid.weighted": mixed.transpose(1, 2), "mid.conv1_local": pyramid.conv1_local(mixed)}
    if style is not None:
        out |= {"out.global": style, "mid.conv1_global": pyramid.conv1_global(mixed)}
    return recorded(case, out)


def framepack(case: Case) -> dict[str, Tensor]:
    args = case.args
    model = transformer(case, motion_drop_mode=args["framepack_drop_mode"])
    latents = case.tensors["in.motion_latents"]
    num_near = args["add_last_motion"]
    seen = num_near if args["framepack_drop_mode"] == "drop" else 2
    positions = motion_positions(*latents.shape[-2:], model.config.motion_buckets, seen)
    return {
        "out.tokens": model.frame_packer(latents[None], num_near),
        "out.positions": positions,
        "out.rope": rope_table(positions, model.config.head_dim).squeeze(1),
    }


def time_embedding(case: Case) -> dict[str, Tensor]:
    model = transformer(case)
    time = model.embed_time(case.tensors["in.t"])
    sines = sinusoid(case.tensors["in.t"], model.config.freq_dim)
    modulation = time.modulation - as_scales(time.modulation)
    return {"out.e": time.head, "out.e0": modulation[:, :, 0], "mid.sinusoid": sines}


def text_embedding(case: Case) -> dict[str, Tensor]:
    text = transformer(case).embed_text(case.tensors["in.context"][None])[0]
    num_recorded = len(case.tensors["out.context"])
    return {"out.context": torch.cat([text[: num_recorded - 1], text[-1:]])}


def block(case: Case) -> dict[str, Tensor]:
    model = transformer(case)
    tensors, args = case.tensors, case.args
    layer = model.blocks[args["block"]]
    seen: dict[str, Tensor] = {}
    layer.self_attn.register_forward_hook(
        lambda _, inputs, out: seen.update({"mid.self_attn_in": inputs[0], "mid.self_attn_out": out})
    )
    layer.self_attn.norm_q.register_forward_hook(lambda _, inputs, out: seen.update({"mid.q_normed": out}))
    layer.ffn.register_forward_hook(lambda _, inputs, out: seen.update({"mid.ffn_in": inputs[0], "mid.ffn_out": out}))
    layer.norm3.register_forward_hook(lambda _, inputs, out: seen.update({"mid.cross_attn_in": out}))
    layer.cross_attn.o.register_forward_hook(lambda _, inputs, out: seen.update({"mid.cross_attn_out": out}))
    angles = tensors["in.rope_angles"].double()
    rope = torch.stack([angles.cos(), angles.sin()], dim=-1).float().unsqueeze(1)
    keys_values = PromptKeys(*layer.cross_attn.keys_values(tensors["in.context"]))
    e0 = tensors["in.e0"]
    out = layer(tensors["in.x"], e0 + as_scales(e0), rope, keys_values, args["segment"])
    return {"out.x": out} | recorded(case, seen)


def audio_inject(case: Case) -> dict[str, Tensor]:
    model = transformer(case)
    tensors, args = case.tensors, case.args
    injector = model.audio_injector
    i, num_video = injector.index_of[args["layer"]], args["noisy_tokens"]
    assert i == args["injector_index"]
    context = injector.prepare(tensors["in.audio_local"], tensors["in.audio_global"], torch.float32)[i]
    hidden = tensors["in.hidden"]
    seen: dict[str, Tensor] = {}
    injector.injector[i].q.register_forward_hook(lambda _, inputs, out: seen.update({"mid.adain": inputs[0]}))
    injector.injector[i].o.register_forward_hook(lambda _, inputs, out: seen.update({"mid.residual": out}))
    video = hidden[:, :num_video]
    moved = video + injector.residual(i, video, context)
    return {"out.hidden": torch.cat([moved, hidden[:, num_video:]], dim=1)} | recorded(case, seen)


def norm_eps(case: Case) -> dict[str, Tensor]:
    model, x = transformer(case), case.tensors["in.x"]
    layer = model.blocks[0]
    computed = {
        "out.norm1": layer.norm1(x),
        "out.norm3": layer.norm3(x),
        "out.norm_q": layer.self_attn.norm_q(x),
        "out.head": model.head(x, torch.zeros(1, model.config.dim)),
    }
    return recorded(case, computed)


def unpatchified(case: Case) -> dict[str, Tensor]:
    patch = transformer_config_from_official(case.config).patch_size
    return {"out.x": unpatchify(case.tensors["in.x"], tuple(case.args["grid"]), patch)}


def rope_rows(case: Case) -> dict[str, Tensor]:
    """Rows of the complex table: row n holds every axis at position n."""
    out = {}
    for name, table in case.tensors.items():
        rows, pairs = table.shape[:2]
        positions = torch.arange(rows)[:, None].expand(-1, 3)
        out[name] = rope_table(positions, 2 * pairs).squeeze(1)
    return out


KINDS = {
    "dit": dit,
    "audio_encoder": audio_encoder,
    "framepack": framepack,
    "time_embedding": time_embedding,
    "text_embedding": text_embedding,
    "block": block,
    "audio_inject": audio_inject,
    "norm_eps": norm_eps,
    "unpatchify": unpatchified,
    "rope_table": rope_rows,
}
