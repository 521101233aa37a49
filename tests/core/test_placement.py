"""Where things run: devices, dtypes, and blocks that visit the device one at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import nn

from s2v_core import placement
from s2v_core.errors import ConfigError
from s2v_core.placement import (
    ALIGNED,
    GIB,
    BlockStreamer,
    MemoryEstimate,
    blocks_that_stay,
    choose_device,
    choose_dtype,
    free_memory,
    num_bytes,
    on_device,
)

from ..pretended_gpu import GPU, pretended_gpu

CPU = torch.device("cpu")


def test_an_absent_device_is_refused_by_name() -> None:
    missing = "mps" if not torch.backends.mps.is_available() else "cuda"
    with pytest.raises(ConfigError, match=f"device '{missing}' is not available here"):
        choose_device(missing)
    with pytest.raises(ConfigError, match="got 'gpu5'"):
        choose_device("gpu5")


def test_dtype_follows_the_request_then_the_device_then_the_file() -> None:
    assert choose_dtype(torch.float16, CPU, torch.bfloat16) is torch.float16
    assert choose_dtype(None, CPU, torch.float32) is torch.float32
    assert choose_dtype(None, CPU, torch.float8_e4m3fn) is torch.bfloat16
    assert choose_dtype(None, torch.device("cuda"), torch.float32) is torch.bfloat16


def chain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(4)))


def test_streamed_blocks_compute_the_same_and_end_at_home() -> None:
    model, x = chain(), torch.randn(3, 8)
    expected = model(x)
    home = [p.data_ptr() for p in model.parameters()]
    streamer = BlockStreamer(model, CPU)
    for _ in range(2):
        assert torch.equal(model(x), expected)
    assert [p.data_ptr() for p in model.parameters()] == home
    streamer.stop()
    assert torch.equal(model(x), expected)


def test_a_running_block_works_on_a_copy_and_at_most_two_are_away() -> None:
    model = chain()
    home = {p.data_ptr() for p in model.parameters()}
    streamer = BlockStreamer(model, CPU)
    away = []

    def look(_module: nn.Module, _inputs: tuple) -> None:
        visiting = sum(all(p.data_ptr() not in home for p in block.parameters()) for block in model)
        away.append(visiting + len(streamer.coming))

    for block in model:
        block[0].register_forward_pre_hook(look)
    model(torch.randn(1, 8))
    assert away == [2, 2, 2, 2]


def test_a_block_is_copied_whole_while_the_one_before_computes() -> None:
    """Told without a clock: every block goes on computing until it sees the copy of the next one finished."""
    arrived = [threading.Event() for _ in range(6)]

    class Patient(nn.Linear):
        number = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert arrived[(self.number + 1) % 6].wait(timeout=300), "its copy has not begun, or waits for us"
            return super().forward(x)

    model = nn.Sequential(*(Patient(8, 8) for _ in arrived))
    owner = {}
    for number, block in enumerate(model):
        block.number = number
        owner[block.weight.data_ptr()] = number

    def copy(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        copies = [t.clone() for t in tensors]
        arrived[owner[tensors[0].data_ptr()]].set()
        return copies

    streamer = BlockStreamer(model, CPU, copy)
    model(torch.randn(1, 8))
    streamer.stop()
    assert all(event.is_set() for event in arrived)
    assert streamer.copied_seconds > 0


def test_a_block_that_runs_twice_is_copied_once() -> None:
    model, x, copied = chain(), torch.randn(3, 8), []

    def copy(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        copied.append(1)
        return [t.clone() for t in tensors]

    streamer = BlockStreamer(model, CPU, copy)
    expected = model[0](model[0](x))
    for block in list(model)[1:]:
        expected = block(expected)
    streamer.stop()
    assert len(copied) == 5   # four, and the first again for the next step
    assert torch.equal(expected, model(model[0](x)))


class Unfinished:
    """An event of a device that has not finished anything yet."""

    finished = threading.Event()

    def record(self, stream: object) -> None:
        pass

    def synchronize(self) -> None:
        assert self.finished.wait(timeout=300)


@torch.no_grad()
def test_a_host_that_runs_ahead_of_the_device_asks_for_no_block_until_one_is_done(monkeypatch) -> None:
    """Else all blocks would be on the device before it has finished the first."""
    model, copied = chain(), []
    with pretended_gpu():
        monkeypatch.setattr(torch.cuda, "Event", Unfinished)
        monkeypatch.setattr(torch.cuda.Stream, "wait_event", lambda self, event: None)
        streamer = BlockStreamer(model, GPU, lambda tensors: copied.append(1) or list(tensors))
        host = threading.Thread(target=lambda: model(torch.randn(1, 8)))
        host.start()
        time.sleep(0.3)
        asked = len(copied)
        Unfinished.finished.set()
        host.join()
        streamer.stop()
    assert asked == 0
    assert len(copied) == 5


@torch.no_grad()
def test_what_is_pinned_takes_no_more_than_the_next_power_of_two() -> None:
    model = nn.Sequential(*(nn.Linear(300, 300) for _ in range(4)))   # tensor by tensor it would be 1.45 times as much
    expected = model(torch.ones(1, 300))
    asked = []
    with pretended_gpu():
        empty = torch.empty
        with mock.patch.object(torch, "empty", lambda *a, **k: asked.append(a[0]) or empty(*a, **k)):
            streamer = BlockStreamer(model, GPU)
        homes = [tensor for home in streamer.home for tensor in home]
        streamer.stop()
    assert sum(asked) == 2**21 and num_bytes(model) > 2**20
    assert all(t.data_ptr() % ALIGNED == homes[0].data_ptr() % ALIGNED for t in homes)
    assert torch.equal(model(torch.ones(1, 300)), expected)


def test_what_an_earlier_video_pinned_is_not_pinned_again() -> None:
    model = chain()
    home = [p.data_ptr() for p in model.parameters()]
    with pretended_gpu(), mock.patch.object(torch.Tensor, "is_pinned", lambda self: True):
        BlockStreamer(model, GPU).stop()
        assert [p.data_ptr() for p in model.parameters()] == home


@torch.no_grad()
def test_where_no_more_can_be_pinned_blocks_come_from_where_they_are(monkeypatch, caplog) -> None:
    empty = torch.empty

    def full(*shape: object, pin_memory: bool = False, **settings: object) -> torch.Tensor:
        if pin_memory:
            raise RuntimeError("cudaHostAlloc: out of memory")
        return empty(*shape, **settings)

    model, x = chain(), torch.randn(3, 8)
    expected = model(x)
    with pretended_gpu():
        with mock.patch.object(torch, "empty", full):
            streamer = BlockStreamer(model, GPU)
        assert torch.allclose(model(x.to(GPU)).cpu(), expected)
        streamer.stop()
    assert caplog.text.count("no more memory can be pinned (cudaHostAlloc: out of memory)") == 1


@torch.no_grad()
def test_weights_go_home_after_a_move_that_fails_and_after_a_block_that_is_interrupted() -> None:
    model = chain()
    with pretended_gpu():
        with pytest.raises(MemoryError), mock.patch.object(torch.Tensor, "to", Crowded()), on_device(model, GPU):
            pass
        assert {p.device for p in model.parameters()} == {CPU}
        streamer = BlockStreamer(model, GPU)
        model[1].register_forward_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            model(torch.randn(1, 8).to(GPU))
        streamer.stop()
        assert {p.device for p in model.parameters()} == {CPU}


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


class Crowded:
    """`Tensor.to` of a device that has room for three tensors."""

    def __init__(self) -> None:
        self.left, self.to = 3, torch.Tensor.to

    def __get__(self, tensor: torch.Tensor, kind: type) -> object:
        self.left -= 1
        if self.left < 0:
            raise MemoryError
        return self.to.__get__(tensor, kind)


def test_memory_that_is_only_cached_is_free() -> None:
    with pretended_gpu(free=GIB):
        with mock.patch.object(torch.cuda, "memory_reserved", lambda device: 5 * GIB):
            with mock.patch.object(torch.cuda, "memory_allocated", lambda device: 3 * GIB):
                assert free_memory(GPU) == 3 * GIB


def test_a_gpu_that_a_machine_does_not_have_is_refused() -> None:
    with pretended_gpu():
        assert choose_device("cuda:0") == GPU
        with pytest.raises(ConfigError, match="device 'cuda:3' is not available here"):
            choose_device("cuda:3")


def test_a_module_comes_back_after_its_turn() -> None:
    model = nn.Linear(2, 2)
    with on_device(model, CPU) as here:
        assert here is model
    assert model.weight.device == CPU
    assert num_bytes(model) == 24


def test_an_estimate_says_whether_it_fits() -> None:
    parts = {"weights": 10 * GIB, "denoising": 4 * GIB, "decoding": 6 * GIB, "host": GIB}
    assert "16.0 GB at the peak" in str(MemoryEstimate(**parts, available=24 * GIB))
    assert str(MemoryEstimate(**parts, available=24 * GIB)).endswith("fits")
    assert "may NOT fit" in str(MemoryEstimate(**parts, available=12 * GIB))
    assert MemoryEstimate(**parts, available=24 * GIB, is_host=True).device_peak == 17 * GIB   # frames are there too
    assert MemoryEstimate(**parts, available=24 * GIB, encoding=20 * GIB).device_peak == 20 * GIB   # alone, before


def test_as_many_blocks_stay_as_there_is_room_for() -> None:
    """Forty blocks of 0.7 GB beside 9 GB of everything else."""
    block, needed = int(0.7 * GIB), 9 * GIB
    stay = {
        room: blocks_that_stay(available=room * GIB, needed=needed, per_block=block, num_blocks=40)
        for room in (8, 9, 12, 24, 80)
    }
    assert stay == {8: 0, 9: 0, 12: 4, 24: 21, 80: 40}


def test_blocks_that_stay_and_blocks_that_visit_make_the_same_model() -> None:
    model, x = chain(), torch.randn(3, 8)
    expected = model(x)
    streamer = BlockStreamer(model[2:], CPU)
    with on_device(model[0], CPU), on_device(model[1], CPU):
        assert torch.equal(model(x), expected)
    streamer.stop()


def test_memory_that_caches_files_counts_as_free(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  8000 kB\nMemFree:  100 kB\nMemAvailable:    7000 kB\nHugePages_Total:  0\n")
    monkeypatch.setattr(placement, "_MEMORY", meminfo)
    assert free_memory(CPU) == 7000 * 1024
