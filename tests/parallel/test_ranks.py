"""2 and 4 processes on the CPU against one: losses, gradients, attention, steps, checkpoints, exports, generating."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from s2v_core.cli import main as generate
from s2v_core.denoiser import TransformerDenoiser
from s2v_core.errors import OutputError, S2VError
from s2v_core.parallel import together
from s2v_core.parallel.layout import Layout, denoising_layout, sequence_layout
from s2v_core.train import main
from s2v_core.training.checkpoint import checkpoints, load_checkpoint, load_newest
from s2v_core.training.export import export_student
from s2v_core.training.lora import export_lora

from ..training.tiny import CONFIG, tiny_transformer
from .jobs import (
    CACHED,
    HEIGHTS,
    LAYOUTS,
    SETTINGS,
    STUDENTS,
    clip_inputs,
    coded,
    loss_of,
    make_student,
    make_trainer,
    nobody_watches,
    qkv,
    steps,
    tiny_vae,
    torch_sdpa,
    words,
)  # fmt: skip

ROOT = Path(__file__).parents[2]
EXACT = 1e-5   # float32, relative to a tensor's largest value


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the ranks have left; they run once."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.parallel.jobs", str(folder)], cwd=ROOT, env=environment, capture_output=True,
        timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    return folder


@pytest.fixture(scope="module")
def found(folder):
    return {size: torch.load(folder / f"found-{size}.pt", weights_only=False) for size in LAYOUTS}


def assert_same(found, expected, exact=EXACT):
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= exact * max(expected.abs().max().item(), 1e-3)


@lru_cache
def alone(kind, number, num_groups):
    """The mean loss of batches and its gradients in one process."""
    student = make_student(kind)
    total = 0.0
    for group in range(num_groups):
        loss = loss_of(student, number + group) / num_groups
        loss.backward()
        total += loss.item()
    return total, {name: p.grad for name, p in student.trained().items() if p.grad is not None}


def compare(found, kind, number, num_groups, exact=EXACT):
    loss, gradients = alone(kind, number, num_groups)
    assert found["loss"] == pytest.approx(loss, rel=exact)
    assert found["gradients"].keys() == gradients.keys(), "what is not used has no gradient, and all else has"
    for name, gradient in gradients.items():
        assert_same(found["gradients"][name], gradient, exact)


EVERY_LAYOUT = [(size, layout) for size, layouts in LAYOUTS.items() for layout in layouts]


@pytest.mark.parametrize("size, layout", EVERY_LAYOUT, ids=str)
@pytest.mark.parametrize("number", [0, 1])
def test_loss_and_gradients_are_those_of_one_process(found, size, layout, number):
    """133 or 75 tokens, so no number of ranks has equal shares; data groups get batches of different kinds."""
    compare(found[size][str(layout), "plain", number], "plain", number, layout.data)


@pytest.mark.parametrize("size, layout", [(2, Layout(ring=2)), (4, Layout(ring=2, ulysses=2))], ids=str)
@pytest.mark.parametrize("kind", [kind for kind in STUDENTS[1:] if kind != "bf16"])
def test_text_encoders_checkpointing_frozen_parts_and_loras_are_too(found, size, layout, kind):
    for number in (0, 1) if kind == "checkpointed" else (0,):   # 1: two speakers
        compare(found[size][str(layout), kind, number], kind, number, 1)


def test_bf16_blocks_differ_by_their_rounding(found):
    loss, gradients = alone("bf16", 0, 1)
    for size, layout in ((2, Layout(ring=2)), (4, Layout(ring=2, ulysses=2))):
        mine = found[size][str(layout), "bf16", 0]
        assert mine["loss"] == pytest.approx(loss, rel=2e-3)
        error = sum((mine["gradients"][name] - g).square().sum() for name, g in gradients.items())
        assert error < 0.03**2 * sum(g.square().sum() for g in gradients.values())
        assert {g.dtype for g in mine["gradients"].values()} == {torch.float32}


@pytest.mark.parametrize("num_tokens", [16, 5, 3])
@pytest.mark.parametrize("size, layout", [entry for entry in EVERY_LAYOUT if entry[1].data == 1], ids=str)
def test_attention_is_exact_even_where_ranks_have_padding_alone(found, size, layout, num_tokens):
    q, k, v, grad = qkv(num_tokens)
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    out = torch_sdpa(q, k, v)
    out.backward(grad)
    mine = found[size][str(layout), "attention", num_tokens]
    for name, expected in (("out", out.detach()), ("q", q.grad), ("k", k.grad), ("v", v.grad)):
        assert_same(mine[name], expected, 3e-6)


# ---- steps, checkpoints, exports ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", LAYOUTS)
def test_steps_have_the_loss_and_the_gradient_norm_of_one_process_with_as_many_batches(found, size):
    mine = found[size]["run"]
    expected = steps(make_trainer(None, accumulate=2), 4)
    for (loss, norm), (loss_alone, norm_alone) in zip(mine["before"] + mine["after"], expected, strict=True):
        assert loss == pytest.approx(loss_alone, rel=EXACT) and norm == pytest.approx(norm_alone, rel=1e-4)
        assert norm > 0.2, "gradients are clipped here"


@pytest.mark.parametrize("size", LAYOUTS)
def test_a_resumed_run_goes_on_bit_for_bit(found, size):
    assert found[size]["run"]["again"] == found[size]["run"]["after"]


@pytest.mark.parametrize("size", LAYOUTS)
def test_one_process_goes_on_where_several_stopped(folder, found, size):
    trainer = make_trainer(None, accumulate=2)
    trainer.load_state_dict(*(part["trainer"] for part in load_newest(folder / f"run-{size}")))
    assert trainer.step == 2
    for (loss, _), (expected, _) in zip(steps(trainer, 2), found[size]["run"]["after"], strict=True):
        assert loss == pytest.approx(expected, rel=EXACT)


@pytest.mark.parametrize("size", LAYOUTS)
def test_the_exported_files_are_those_that_one_process_exports(folder, found, size, tmp_path):
    trainer = make_trainer(None)
    (path,) = checkpoints(folder / f"run-{size}")
    parts = load_checkpoint(path)
    assert len(parts) == size
    trainer.load_state_dict(*(part["trainer"] for part in parts))
    with trainer.averaged() as student:
        files = export_student(student, tmp_path, dtype=torch.float32)
    assert found[size]["run"]["exported"] == len(files) == 2
    for file in files:
        mine, expected = load_file(folder / f"run-{size}/export" / file.name), load_file(file)
        assert mine.keys() == expected.keys() and all(torch.equal(mine[name], expected[name]) for name in mine)


@pytest.mark.parametrize("size", LAYOUTS)
def test_a_sharded_lora_is_exported_whole(folder, size, tmp_path):
    (path,) = export_lora(make_student("lora").transformer, tmp_path, dtype=torch.float32)
    mine, expected = load_file(folder / f"lora-{size}/lora.safetensors"), load_file(path)
    assert mine.keys() == expected.keys() and all(torch.equal(mine[name], expected[name]) for name in mine)


@pytest.mark.parametrize("size", LAYOUTS)
def test_a_checkpoint_that_one_rank_cannot_write_is_refused_by_all_and_earlier_ones_stay(folder, found, size):
    *others, last = found[size]["full disk"]["raised"]
    assert "No space left on device" in last and "earlier ones are kept" in last
    assert all("another process failed" in message for message in others)
    assert [path.name for path in (folder / f"disk-{size}").iterdir()] == ["step-00000001.checkpoint"]
    assert len(load_newest(folder / f"disk-{size}")) == size


def entries(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_the_command_trains_on_several_processes_as_on_one(folder):
    """Its losses, gradient norms and validation; each line logged once; the exported weights."""
    assert main(["--config", str(folder / "alone.yaml"), "--device", "cpu", "--quiet"]) == 0
    expected = entries(folder / "alone")
    assert [entry["step"] for entry in expected] == [1, 2, 3, 3]
    weights = load_file(folder / "alone/export/transformer.safetensors")
    for name in ("data", "ulysses"):
        for mine, other in zip(entries(folder / name), expected, strict=True):
            assert mine.keys() == other.keys()
            for key in mine.keys() & {"loss", "grad_norm", "validation", "learning_rate"}:
                assert mine[key] == pytest.approx(other[key], rel=1e-4)
        exported = load_file(folder / name / "export/transformer.safetensors")
        assert exported.keys() == weights.keys()
        assert all((exported[key] - weights[key]).abs().max() < 1e-5 for key in weights)


# ---- generating ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size, name", [(2, "denoised"), (4, "denoised"), (4, "denoised by one group")])
def test_denoised_latents_are_those_of_one_process(found, size, name):
    """With guidance, without, and with a step cache; by groups that have a branch each, or by one."""
    for settings, latents in zip(SETTINGS, found[size][name]["latents"], strict=True):
        assert_same(latents, TransformerDenoiser(tiny_transformer(), settings)(*clip_inputs(), nobody_watches))


@pytest.mark.parametrize("size, name", [(2, "denoised"), (4, "denoised"), (4, "denoised by one group")])
def test_the_step_cache_foretells_the_steps_that_it_foretells_in_one_process(found, size, name):
    model, evaluated = tiny_transformer(), []
    branches = model.branches
    model.branches = lambda *args: evaluated.append(1) or branches(*args)
    latents = TransformerDenoiser(model, CACHED)(*clip_inputs(), nobody_watches)
    assert 3 <= len(evaluated) < CACHED.steps
    assert_same(found[size][name]["latents"][SETTINGS.index(CACHED)], latents)
    exact = TransformerDenoiser(tiny_transformer(), replace(CACHED, step_cache=0.0))(*clip_inputs(), nobody_watches)
    assert (latents - exact).abs().max() > 100 * EXACT * exact.abs().max(), "other steps would have been seen"


@pytest.mark.parametrize("size", LAYOUTS)
def test_nobody_is_idle_where_there_are_fewer_branches_than_groups(found, size):
    """Of 133 tokens: two branches are shared by halves of the processes, the only one of a step or the third by all."""
    of_half, of_all = -(-133 // (size // 2)), -(-133 // size)
    two, one, three, _ = found[size]["denoised"]["tokens"]
    assert (two, one, three) == ({of_half}, {of_all}, {of_half, of_all})


def test_processes_share_branches_then_heads_and_then_a_ring():
    assert denoising_layout(2, 40) == Layout(data=2)
    assert denoising_layout(8, 40) == Layout(data=2, ulysses=4)
    assert denoising_layout(12, 40) == Layout(data=2, ring=3, ulysses=2)
    assert denoising_layout(3, 40) == Layout(ring=3)
    assert sequence_layout(8, 40) == Layout(ulysses=8)
    assert sequence_layout(12, 40) == Layout(ring=3, ulysses=4)


@pytest.mark.parametrize("size, layout", [entry for entry in EVERY_LAYOUT if entry[1].data == 1], ids=str)
def test_what_goes_over_the_wire_is_what_the_formula_says(found, size, layout):
    """A rank's bytes of one forward pass: n own tokens of D channels; audio layers send nothing."""
    own = -(-133 // size) * CONFIG.dim * 4
    heads = 4 * own * (layout.ulysses - 1) // layout.ulysses   # q, k, v there and the result back
    ring = 2 * own * (layout.ring - 1)                         # k and v, as often as there are others
    patches = -(-133 // size) * 64 * 4 * (size - 1)            # 2 x 2 cells of 16 channels, once
    assert found[size][str(layout), "traffic"] == CONFIG.num_layers * (heads + ring) + patches


@pytest.mark.parametrize("height", HEIGHTS)
@pytest.mark.parametrize("size", LAYOUTS)
def test_pictures_and_latents_are_coded_by_rows_as_by_one_process(found, size, height):
    """Shares that do not come out even, streams that take turns, and pictures of fewer latent rows than ranks."""
    for name, expected in coded(tiny_vae(), height).items():
        assert_same(found[size]["coded"][height][name], expected)


@pytest.mark.parametrize("size", LAYOUTS)
def test_nobody_keeps_a_stream_that_the_first_process_has_let_go(found, size):
    assert found[size]["streams left"] == [0] * (size - 1)


def shares(num_rows, size):
    """Every rank's rows."""
    edges = [num_rows * rank // size for rank in range(size + 1)]
    return [stop - start for start, stop in zip(edges, edges[1:], strict=False)]


def halo(convolutions, width):
    """Bytes of the rows that one neighbour is sent: (frames, cells' scale, channels) of what each convolution sees."""
    return sum(frames * scale * width * channels * 4 for frames, scale, channels in convolutions)


def decoder_convolutions(config):
    """Of one latent frame that is not the stream's first: every 3x3 convolution, and those of the doublings."""
    widths = [config.dim * factor for factor in (config.dim_mult[-1], *config.dim_mult[::-1])]
    seen, frames, scale = [(1, 1, config.latent_channels), *[(1, 1, widths[0])] * 4], 1, 1
    for i, (num_in, num_out) in enumerate(zip(widths, widths[1:], strict=False)):
        channels = num_in // 2 if i else num_in
        for _ in range(config.num_res_blocks + 1):
            seen += [(frames, scale, channels), (frames, scale, num_out)]
            channels = num_out
        if i < len(config.temporal_downsample):
            frames *= 2 if config.temporal_downsample[::-1][i] else 1
            seen.append((frames, scale, num_out))
            scale *= 2
    return [*seen, (frames, scale, channels)]


@pytest.mark.parametrize("size", LAYOUTS)
def test_decoding_by_rows_sends_edges_keys_and_the_result_and_no_more(found, size):
    """Three latent frames of 5 x 3 cells: two edges of every convolution's frames, one where the picture ends; keys
    and values of the longest share to all others; own pixels to the first."""
    config, width, rows = tiny_vae().config, 3, shares(5, size)
    keys = max(rows) * width * 2 * config.dim * config.dim_mult[-1] * 4 * (size - 1)
    for rank, traffic in enumerate(found[size]["coding traffic"]):
        neighbours = (rank > 0) + (rank < size - 1)
        pixels = 0 if rank == 0 else 3 * 4 * 8 * rows[rank] * 8 * width * 4
        expected = 3 * (neighbours * halo(decoder_convolutions(config), width) + keys + pixels)
        assert traffic["decoding"] == expected


def encoder_convolutions(config, frames):
    """What each 3x3 convolution sees of the stream's first frame (1), or of four: those of both edges, and those that
    halve the picture, which need the row below alone."""
    widths = [config.dim * factor for factor in (1, *config.dim_mult)]
    scale = 2 ** len(config.temporal_downsample)
    both, below, is_first = [(frames, scale, 3)], [], frames == 1
    for i, (num_in, num_out) in enumerate(zip(widths, widths[1:], strict=False)):
        for j in range(config.num_res_blocks):
            both += [(frames, scale, num_out if j else num_in), (frames, scale, num_out)]
        if i < len(config.temporal_downsample):
            below.append((frames, scale, num_out))
            frames = frames // 2 if config.temporal_downsample[i] and not is_first else frames
            scale //= 2
    return [*both, *[(frames, 1, widths[-1])] * 5], below


@pytest.mark.parametrize("size", LAYOUTS)
def test_encoding_by_rows_sends_edges_keys_the_pictures_and_the_result(found, size):
    """9 frames of 40 x 24 pixels, 3 latent frames: the first, and two of four frames each."""
    config, width, rows = tiny_vae().config, 3, shares(5, size)
    keys = 3 * max(rows) * width * 2 * config.dim * config.dim_mult[-1] * 4 * (size - 1)
    pieces = [encoder_convolutions(config, 1), *[encoder_convolutions(config, 4)] * 2]
    both, below = (sum(halo(piece[side], width) for piece in pieces) for side in (0, 1))
    for rank, traffic in enumerate(found[size]["coding traffic"]):
        up, down = rank > 0, rank < size - 1
        given = 3 * 9 * 8 * sum(rows[1:]) * 8 * width * 4 if rank == 0 else 0
        result = 0 if rank == 0 else 3 * config.latent_channels * rows[rank] * width * 4
        assert traffic["encoding"] == (up + down) * both + up * below + keys + given + result


def test_the_command_generates_on_two_processes_as_on_one(folder):
    """Two clips: latents of both, and the decoded frames that the second one is shown."""
    assert generate(words(folder, "alone")) == 0
    for name in ("latents/0000", "latents/0001", "motion/0000"):
        mine, expected = (load_file(folder / f"{take}.take/{name}.safetensors")["tensor"] for take in ("two", "alone"))
        assert_same(mine, expected)


def test_after_common_work_that_failed_nobody_is_told_anything_more(monkeypatch):
    told = []
    monkeypatch.setattr(together, "_tell", told.append)
    lead = together.Lead()
    with pytest.raises(OutputError), lead.denoising(None, "settings"), lead.call("clip"):
        raise OutputError("the device is out of memory")
    for go_on in (lead.dismiss, lambda: lead.call("video", "settings").__enter__()):
        with pytest.raises(S2VError, match="start all of them again"):
            go_on()
    assert told == [("video", "settings"), ("clip",)]
