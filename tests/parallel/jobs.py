"""What the ranks of the tests do, and what they leave in files for the tests to look at.

`python -m tests.parallel.jobs FOLDER` runs everything once: 2 ranks, then 4. Processes are forked from one that has
imported all there is, which takes longer than the work itself.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
import yaml

from s2v_core.cli import main as generate
from s2v_core.config import ModelConfig, VAEConfig
from s2v_core.denoiser import TransformerDenoiser
from s2v_core.errors import OutputError
from s2v_core.models.vae import WanVAE
from s2v_core.parallel.codec import CodecPart, SharedCodec
from s2v_core.parallel.context import SharedSequence, share_sequences
from s2v_core.parallel.layout import Layout, denoising_layout, sequence_layout
from s2v_core.parallel.ranks import Ranks, make_ranks
from s2v_core.parallel.together import Lead, follow, share_denoising
from s2v_core.parallel.weights import shard_layers, shard_rest, whole
from s2v_core.train import main as train
from s2v_core.training.checkpoint import load_newest, save_checkpoint
from s2v_core.training.config import ObjectiveConfig, OptimizerConfig
from s2v_core.training.export import export_student
from s2v_core.training.lora import add_lora, export_lora
from s2v_core.training.objective import Batch, draw, velocity_loss
from s2v_core.training.student import Student, checkpoint_blocks, store_weights
from s2v_core.training.trainer import Trainer
from s2v_core.training.windows import save_window
from s2v_core.types import ClipInputs, SamplerSettings

from ..training.test_windows import some_window
from ..training.tiny import CONFIG, TEXT, tiny_student, tiny_transformer

CPU = torch.device("cpu")
LAYOUTS = {
    2: (Layout(data=2), Layout(ulysses=2), Layout(ring=2)),
    4: (Layout(data=4), Layout(ring=4), Layout(ring=2, ulysses=2), Layout(data=2, ring=2), Layout(data=2, ulysses=2)),
}
OBJECTIVE = ObjectiveConfig(mouth_loss=0.5, face_weight=2.0)
OPTIMIZER = OptimizerConfig(learning_rate=1e-3, warmup_steps=2, ema=0.9, max_grad_norm=0.2)
STUDENTS = ("plain", "text", "checkpointed", "audio", "lora", "bf16")


# ---- the same for one process and for several ---------------------------------------------------------------------


def some_batch(number: int, *, embeds: bool = True) -> Batch:
    """Even numbers: 133 tokens, 75 of them video, and a past; odd ones: 75 tokens, 50 of them video, a pose,
    and two speakers."""
    generator = torch.Generator().manual_seed(number)
    num_latents, motion = (3, True) if number % 2 == 0 else (2, False)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(2, *shape, generator=generator)

    return Batch(
        latents=some(16, num_latents, 10, 10),
        reference_latent=some(16, 1, 10, 10),
        audio_features=some(3, 6, 4 * num_latents),
        prompts=(f"face {number}", "another"),
        prompt_embeds=some(5, 12) if embeds else None,
        motion_latents=some(16, 19, 10, 10) if motion else None,
        pose_latents=None if motion else some(16, num_latents, 10, 10),
        face_mask=some(num_latents, 10, 10).sigmoid(),
        mouth_mask=some(num_latents, 10, 10).sigmoid(),
        speaker_features=None if motion else some(2, 3, 6, 4 * num_latents),
        speaker_masks=None if motion else some(2, num_latents, 10, 10).sigmoid(),
    )


class Numbered:
    """Batches by number. A `BatchSource`."""

    def __init__(self, *, embeds: bool = True) -> None:
        self.embeds = embeds

    def batch(self, index: int) -> Batch:
        return some_batch(index, embeds=self.embeds)


def make_student(kind: str = "plain") -> Student:
    student = tiny_student(learns_text=kind == "text")
    if kind == "lora":
        add_lora(student.transformer, rank=2, alpha=4.0, seed=0)
        with torch.no_grad():
            for name, parameter in student.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
        store_weights(student.transformer, frozen=torch.bfloat16)
    student.choose_trained({"audio": "audio", "lora": "lora"}.get(kind, "all"))
    student.transformer.compute_dtype = torch.bfloat16 if kind == "bf16" else torch.float32
    if kind in ("checkpointed", "audio", "lora"):
        checkpoint_blocks(student.transformer)
    return student


def loss_of(student: Student, number: int) -> torch.Tensor:
    batch = some_batch(number, embeds=student.prompts is None)
    drawn = draw(batch, OBJECTIVE, np.random.default_rng([0, number]))
    return velocity_loss(student(batch, drawn), batch, drawn, OBJECTIVE)


def make_trainer(ranks: Ranks | None, *, accumulate: int = 1) -> Trainer:
    student = make_student("text") if ranks is None else shared(make_student("text"), ranks)
    return Trainer(
        student, Numbered(embeds=False), objective=OBJECTIVE, optimizer=OPTIMIZER, steps=6, seed=0,
        accumulate=accumulate, ranks=ranks,
    )  # fmt: skip


def qkv(num_tokens: int, num_heads: int = 4) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(num_tokens)
    return tuple(torch.randn(2, num_tokens, num_heads, 8, generator=generator) for _ in range(4))


def clip_inputs() -> tuple[ClipInputs, torch.Tensor]:
    """A clip of 133 tokens, and its noise."""
    batch = some_batch(0)
    inputs = ClipInputs(
        prompt_embeds=batch.prompt_embeds[:1],
        negative_prompt_embeds=batch.prompt_embeds[1:],
        reference_latent=batch.reference_latent[:1],
        motion_latents=batch.motion_latents[:1],
        audio_features=batch.audio_features[:1],
        pose_latents=None,
    )
    return inputs, torch.randn(1, 16, 3, 10, 10, generator=torch.Generator().manual_seed(7))


def nobody_watches(step: int, steps: int) -> None:
    pass


CACHED = SamplerSettings(steps=10, guidance_scale=4.5, step_cache=0.2)   # half of these steps are foretold
THREE = SamplerSettings(steps=2, guidance_scale=4.5, audio_guidance_scale=6.0)   # branches
SETTINGS = (*(SamplerSettings(steps=3, guidance_scale=scale) for scale in (4.5, 1.0)), THREE, CACHED)   # two, one, ...


def write_settings(folder: Path) -> None:
    """Runs of three steps over the same windows: alone, of two data groups, and of two ranks that share a sequence."""
    model = ModelConfig(name="tiny", transformer=CONFIG, text_encoder=TEXT)
    (folder / "model.json").write_text(json.dumps(asdict(model)))
    for seed in range(8):
        window = replace(some_window(seed, motion=seed < 5), prompt_embeds=None)
        save_window(folder / "windows" / f"{seed}.safetensors", window, fingerprint="f", model="m")
    for name, accumulate, parallel in (("alone", 2, None), ("data", 1, None), ("ulysses", 2, {"ulysses": 2})):
        settings = {
            "name": name,
            "model": {"config": str(folder / "model.json"), "text_encoder": "trained"},
            "data": {"windows": [str(folder / "windows")], "batch_size": 2, "accumulate": accumulate,
                     "validation": [str(folder / "windows")]},
            "run": {"output": str(folder / name), "steps": 3, "validate_every": 3, "validation_batches": 1,
                    "export_dtype": "fp32"},
            "parallel": parallel,
        }  # fmt: skip
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(settings))


# ---- of several ---------------------------------------------------------------------------------------------------


def shared(student: Student, ranks: Ranks) -> Student:
    share_sequences(student.transformer, ranks)
    shard_layers(student.transformer, ranks.meshes.world)
    shard_rest(student, ranks.meshes.world)
    return student


def gradients(ranks: Ranks, kind: str, number: int) -> dict[str, object]:
    """Mean loss, and gradients as they are after the backward pass, of one batch for each data group."""
    student = shared(make_student(kind), ranks)
    loss = loss_of(student, number + ranks.data_rank)
    loss.backward()
    student.transformer.sharding.forget_unused()
    found = {name: whole(p.grad) for name, p in student.trained().items() if p.grad is not None}
    return {"loss": ranks.mean(loss.item()), "gradients": found}


def attention(ranks: Ranks, num_tokens: int) -> dict[str, torch.Tensor]:
    """Attention of few tokens, and its gradients: some ranks have padding alone."""
    sequence = SharedSequence(make_student().transformer, ranks)
    size, rank = ranks.layout.context, sequence.context.rank()
    per_rank = -(-num_tokens // size)
    rows = slice(rank * per_rank, (rank + 1) * per_rank)
    padded = [torch.cat([x, torch.zeros(2, size * per_rank - num_tokens, 4, 8)], 1) for x in qkv(num_tokens)]
    q, k, v, grad = (x[:, rows].clone() for x in padded)
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    sequence.num_tokens = num_tokens
    out = sequence.attend(torch_sdpa, q, k, v)
    out.backward(grad)
    parts = {}
    for name, x in (("out", out.detach()), ("q", q.grad), ("k", k.grad), ("v", v.grad)):
        every = [torch.empty_like(x) for _ in range(size)]
        dist.all_gather(every, x.contiguous(), group=sequence.context)
        parts[name] = torch.cat(every, 1)[:, :num_tokens]
    return parts


def torch_sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    out = torch.nn.functional.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2)


def steps(trainer: Trainer, num: int) -> list[tuple[float, float]]:
    return [(report.loss, report.grad_norm) for report in (trainer.train_step() for _ in range(num))]


def run(ranks: Ranks, folder: Path) -> dict[str, object]:
    """Four steps in one go; two, a checkpoint, and two more from it; what is exported there."""
    straight = make_trainer(ranks)
    before = steps(straight, 2)
    save_checkpoint(folder, 2, {"trainer": straight.state_dict()}, keep=1, ranks=ranks)
    resumed = make_trainer(ranks)
    resumed.load_state_dict(*(part["trainer"] for part in load_newest(folder)))
    with resumed.averaged() as student:
        loss_of(student, 1)   # leaves weights gathered, which must not outlive the average
        exported = export_student(student, folder / "export", dtype=torch.float32, writes=ranks.is_main)
    after = steps(straight, 2)
    again = steps(resumed, 2)
    return {"before": before, "after": after, "again": again, "exported": len(exported)}


def full_disk(ranks: Ranks, folder: Path) -> dict[str, object]:
    """The last rank cannot write its part."""
    save_checkpoint(folder, 1, {"x": torch.ones(2)}, keep=2, ranks=ranks)
    write = os.fsync
    if ranks.rank == ranks.layout.size - 1:
        os.fsync = refuse
    try:
        save_checkpoint(folder, 2, {"x": torch.ones(2)}, keep=2, ranks=ranks)
        raised = ""
    except OutputError as error:
        raised = str(error)
    finally:
        os.fsync = write
    every: list[str] = [""] * ranks.layout.size
    dist.all_gather_object(every, raised)
    return {"raised": every}


def refuse(_: int) -> None:
    raise OSError(28, "No space left on device")


def denoised(layout: Layout) -> dict[str, object]:
    """Latents of a video for each of `SETTINGS`, which the first rank leads, and how many tokens a block was given."""
    model, seen = tiny_transformer(), []
    share_denoising(model, make_ranks(layout, CPU), make_ranks(sequence_layout(layout.size, 2), CPU))
    model.blocks[0].register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].shape[1]))

    @contextmanager
    def denoising(settings: SamplerSettings):
        yield TransformerDenoiser(model, settings)

    if dist.get_rank():
        follow(denoising, nothing_else)
        return {}
    found, tokens, lead = [], [], Lead()
    for settings in SETTINGS:
        seen.clear()
        with lead.denoising(TransformerDenoiser(model, settings), settings) as led:
            found.append(led(*clip_inputs(), nobody_watches))
        tokens.append(set(seen))
    lead.dismiss()
    return {"latents": found, "tokens": tokens}


def nothing_else() -> CodecPart:
    raise AssertionError("nothing else was asked for")


HEIGHTS = (5, 8, 3)   # latent rows of pictures: shared out unevenly, evenly, and too few for four


def tiny_vae() -> WanVAE:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return WanVAE(VAEConfig(dim=4)).requires_grad_(False)


def pictures(height: int, num_frames: int = 9) -> torch.Tensor:
    """Of so many latent rows and three columns."""
    generator = torch.Generator().manual_seed(height)
    return torch.randn(1, 3, num_frames, 8 * height, 24, generator=generator).mul(0.4).clamp(-1, 1)


def some_latents(height: int) -> torch.Tensor:
    return torch.randn(1, 16, 6, height, 3, generator=torch.Generator().manual_seed(height))


def coded(codec: WanVAE | SharedCodec, height: int) -> dict[str, torch.Tensor]:
    """Pictures encoded; latents decoded by two streams in turns, of which one is primed."""
    latents, one, other = some_latents(height), codec.decoder(), codec.decoder()
    one.prime(latents[:, :, :2])
    parts = [*other.decode(-latents[:, :, :2]), *one.decode(latents[:, :, 2:4]), *other.decode(latents[:, :, 2:3])]
    return {
        "latents": codec.encode(pictures(height)),
        "frames": torch.cat([*parts, *one.decode(latents[:, :, 4:])], 2),
    }


def shared_coding(ranks: Ranks) -> dict[object, object]:
    """On the first rank what was coded, by latent rows of the picture; on the others what they still keep."""
    part = CodecPart(tiny_vae())
    if not ranks.is_main:
        follow(nothing_else, lambda: part)
        return {"streams left": len(part.streams)}
    lead = Lead()
    codec = SharedCodec(part.vae, lead)
    found = {height: coded(codec, height) for height in HEIGHTS}
    codec.decoder()   # lets the others' streams go
    lead.dismiss()
    return found


def words(folder: Path, name: str) -> list[str]:
    """The command of a video of two clips by the bundled model."""
    samples = Path(__file__).parents[2] / "samples"
    said = {"image": samples / "drawn.png", "audio": samples / "speech.wav", "size": "64x64", "steps": 1,
            "frames": 84, "take": folder / f"{name}.take", "output": folder / f"{name}.mp4"}  # fmt: skip
    return ["generate", "--quiet", *(str(word) for key, value in said.items() for word in (f"--{key}", value))]


class Sent:
    """Bytes that this rank sends in a `with`."""

    def __enter__(self) -> Sent:
        self.bytes = 0
        self.originals = dist.all_to_all_single, dist.all_gather, dist.batch_isend_irecv
        dist.all_to_all_single, dist.all_gather, dist.batch_isend_irecv = self.all_to_all, self.gather, self.passing
        return self

    def __exit__(self, *error: object) -> None:
        dist.all_to_all_single, dist.all_gather, dist.batch_isend_irecv = self.originals

    def all_to_all(self, out: torch.Tensor, x: torch.Tensor, group: dist.ProcessGroup) -> object:
        self.bytes += x.nbytes * (group.size() - 1) // group.size()
        return self.originals[0](out, x, group=group)

    def gather(self, parts: list[torch.Tensor], x: torch.Tensor, group: dist.ProcessGroup | None = None) -> object:
        self.bytes += x.nbytes * (dist.get_world_size(group) - 1)
        return self.originals[1](parts, x, group=group)

    def passing(self, works: list[dist.P2POp]) -> object:
        self.bytes += sum(work.tensor.nbytes for work in works if work.op is dist.isend)
        return self.originals[2](works)


def traffic(ranks: Ranks) -> int:
    """Bytes that this rank sends in one forward pass."""
    model = tiny_transformer()
    share_sequences(model, ranks)
    inputs, noise = clip_inputs()
    with torch.no_grad(), Sent() as sent:
        clip = model.prepare_clip(
            prompt=model.prepare_prompt(inputs.prompt_embeds), num_latents=3,
            reference_latent=inputs.reference_latent, audio_features=inputs.audio_features,
            motion_latents=inputs.motion_latents,
        )  # fmt: skip
        model(noise, torch.tensor([500.0]), clip)
    return sent.bytes


def coding_traffic(height: int) -> list[dict[str, int]]:
    """Bytes that every rank sends when the second to fourth latent frame are decoded, and when pictures are encoded."""
    part, latents, frames = CodecPart(tiny_vae()), some_latents(height), pictures(height)
    part.decode(0, latents[:, :, :1])
    with Sent() as decoding:
        part.decode(0, latents[:, :, 1:4])
    with Sent() as encoding:
        part.encode(frames.shape, frames if dist.get_rank() == 0 else None)
    every: list[dict[str, int]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(every, {"decoding": decoding.bytes, "encoding": encoding.bytes})
    return every


def lora_file(ranks: Ranks, folder: Path) -> None:
    export_lora(shared(make_student("lora"), ranks).transformer, folder, dtype=torch.float32, writes=ranks.is_main)


def everything(rank: int, size: int, ports: list[int], folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1")
    if size == 2:
        for name in ("data", "ulysses"):
            os.environ["MASTER_PORT"] = str(ports.pop())
            assert train(["--config", str(folder / f"{name}.yaml"), "--device", "cpu", "--quiet"]) == 0
        os.environ["MASTER_PORT"] = str(ports.pop())
        assert generate(words(folder, "two")) == 0
    os.environ["MASTER_PORT"] = str(ports.pop())
    dist.init_process_group("gloo")
    found: dict[object, object] = {}
    for layout in LAYOUTS[size]:
        ranks = make_ranks(layout, CPU)
        for number in (0, 1):   # the other groups' batches are of the other kind
            found[str(layout), "plain", number] = gradients(ranks, "plain", number)
        if layout.context == size:
            found[str(layout), "traffic"] = traffic(ranks)
            for num_tokens in (5, 16, 3):
                found[str(layout), "attention", num_tokens] = attention(ranks, num_tokens)
    mixed = make_ranks(LAYOUTS[size][-1] if size == 2 else Layout(ring=2, ulysses=2), CPU)
    for kind in STUDENTS[1:]:
        found[str(mixed.layout), kind, 0] = gradients(mixed, kind, 0)
    found[str(mixed.layout), "checkpointed", 1] = gradients(mixed, "checkpointed", 1)
    groups = make_ranks(Layout(data=2, ring=size // 2), CPU)
    found["run"] = run(groups, folder / f"run-{size}")
    found["full disk"] = full_disk(groups, folder / f"disk-{size}")
    lora_file(groups, folder / f"lora-{size}")
    found["denoised"] = denoised(denoising_layout(size, 2))
    if size == 4:   # all of them on one sequence, both branches one after the other
        found["denoised by one group"] = denoised(Layout(ring=2, ulysses=2))
    found["coded"] = shared_coding(groups)
    found["coding traffic"] = coding_traffic(5)
    every: list[object] = [None] * size
    dist.all_gather_object(every, found["coded"].get("streams left"))
    found["streams left"] = every[1:]
    if rank == 0:
        torch.save(found, folder / f"found-{size}.pt")
    dist.barrier()
    dist.destroy_process_group()


def free_ports(num: int) -> list[int]:
    probes = [socket.socket() for _ in range(num)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def main(folder: Path) -> None:
    write_settings(folder)
    for size in LAYOUTS:
        multiprocessing.start_processes(everything, (size, free_ports(4), folder), nprocs=size, start_method="fork")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
