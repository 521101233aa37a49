"""Ring attention's arithmetic without a ring: blocks of keys one after another, forward and backward."""

from __future__ import annotations

import pytest
import torch

from s2v_core.errors import CheckpointError, ConfigError
from s2v_core.parallel.layout import Layout
from s2v_core.parallel.ranks import launched, make_ranks
from s2v_core.parallel.ring import attend_block, attend_block_backward, merge
from s2v_core.training.checkpoint import load_checkpoint, save_checkpoint

from .jobs import qkv, torch_sdpa

BLOCKS = (slice(0, 5), slice(5, 16), slice(16, 19))


def inputs():
    """Large scores, so that blocks weigh differently: [B, h, n, d]."""
    q, k, v, grad = (x.transpose(1, 2) for x in qkv(19))
    return 4 * q, k, v, grad


def exact():
    q, k, v, grad = inputs()
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    out = torch_sdpa(*(x.transpose(1, 2) for x in leaves)).transpose(1, 2)
    out.backward(grad)
    return out.detach(), [x.grad for x in leaves]


def merged(q, k, v):
    out, lse, _ = attend_block(q, k[:, :, BLOCKS[0]], v[:, :, BLOCKS[0]])
    for block in BLOCKS[1:]:
        out, lse = merge(out, lse, *attend_block(q, k[:, :, block], v[:, :, block])[:2])
    return out, lse


def test_blocks_merge_to_the_whole_and_the_final_lse_gives_exact_gradients():
    q, k, v, grad = inputs()
    expected, gradients = exact()
    out, lse = merged(q, k, v)
    torch.testing.assert_close(out, expected, atol=2e-6, rtol=0)
    parts = [attend_block_backward(grad, q, k[:, :, b], v[:, :, b], out, lse, ()) for b in BLOCKS]
    found = [sum(part[0] for part in parts), *(torch.cat([part[i] for part in parts], 2) for i in (1, 2))]
    for mine, right in zip(found, gradients, strict=True):
        torch.testing.assert_close(mine, right, atol=2e-5, rtol=0)


def test_differentiating_the_merge_is_wrong_although_its_forward_is_right():
    q, k, v, grad = inputs()
    expected, (right, _, _) = exact()
    leaf = q.clone().requires_grad_()
    out, _ = merged(leaf, k, v)
    torch.testing.assert_close(out, expected, atol=2e-6, rtol=0)
    out.backward(grad)
    assert (leaf.grad - right).norm() > 0.2 * right.norm()


def test_a_blocks_own_lse_in_the_backward_pass_is_wrong():
    q, k, v, grad = inputs()
    _, (right, _, _) = exact()
    wrong = 0
    for b in BLOCKS:
        out, lse, _ = attend_block(q, k[:, :, b], v[:, :, b])
        wrong = wrong + attend_block_backward(grad, q, k[:, :, b], v[:, :, b], out, lse, ())[0]
    assert (wrong - right).norm() > 0.2 * right.norm()


# ---- layouts ------------------------------------------------------------------------------------------------------


def test_heads_that_cannot_be_shared_out_are_refused_with_what_can_be_done():
    with pytest.raises(ConfigError, match="40 heads cannot be shared by 3 Ulysses ranks: choose a divisor of 40"):
        Layout(ulysses=3).check_heads(40)
    Layout(ulysses=8).check_heads(40)


def test_a_layout_of_another_number_of_processes_is_refused():
    with pytest.raises(ConfigError, match="makes 8 processes, and 4 were launched: launch 8 .torchrun"):
        Layout(data=2, ulysses=4).check_size(4)
    with pytest.raises(ConfigError, match="counts from 1"):
        Layout(ring=0)


def test_processes_are_counted_as_the_launcher_says(monkeypatch):
    for name, value in (("RANK", "5"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "8")):
        monkeypatch.setenv(name, value)
    assert launched() == (5, 1, 8)


def test_one_process_agrees_with_itself():
    ranks = make_ranks(Layout(), torch.device("cpu"))
    assert ranks.is_main and ranks.is_alone and ranks.any(True) and not ranks.any(False) and ranks.mean(0.1) == 0.1


def test_a_checkpoint_that_lacks_a_part_is_named(tmp_path):
    whole = tmp_path / "step-00000003.checkpoint"
    whole.mkdir()
    save_checkpoint(tmp_path / "other", 1, {"x": torch.ones(2)}, keep=1).rename(whole / "00000-of-00002")
    with pytest.raises(CheckpointError, match="step-00000003.checkpoint lacks parts of some processes"):
        load_checkpoint(whole)
