"""Weight files of every format opened without reading them, and every broken one refused in one sentence."""

from __future__ import annotations

import json
import os
import pickle
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from s2v_core.checkpoints.files import open_weights
from s2v_core.errors import CheckpointError

from .checkpoints_tiny import save_gguf, save_sharded

TENSORS = {
    "a.weight": torch.arange(12.0).view(3, 4),
    "b": torch.randn(5).bfloat16(),
    "c": torch.randn(2, 3).half(),
    "d.weight": torch.randn(2, 8).to(torch.float8_e4m3fn),
    "e": torch.tensor(2.5),
}


@pytest.fixture
def plain(tmp_path):
    path = tmp_path / "plain.safetensors"
    save_file(TENSORS, path, metadata={"made": "here"})
    return path


def fault(path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_weights(path)
    text = str(caught.value)
    assert "\n" not in text
    return text


# ---- safetensors


def test_safetensors_gives_shapes_formats_sizes_and_metadata(plain):
    file = open_weights(plain)
    assert {n: (t.shape, t.format, t.num_bytes) for n, t in file.tensors.items()} == {
        "a.weight": ((3, 4), "F32", 48),
        "b": ((5,), "BF16", 10),
        "c": ((2, 3), "F16", 12),
        "d.weight": ((2, 8), "F8_E4M3", 16),
        "e": ((), "F32", 4),
    }
    assert file.metadata == {"made": "here"}


def test_safetensors_gives_its_numbers(plain):
    for name, stored in open_weights(plain).tensors.items():
        expected = TENSORS[name]
        if stored.is_packed:
            assert torch.equal(stored.read(), expected.view(torch.uint8))
            assert torch.equal(stored.dense(torch.float32), expected.float())
        else:
            assert torch.equal(stored.read(), expected)


def test_a_tensor_that_starts_off_its_alignment_is_read(tmp_path):
    header = {"x": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
              "y": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]}}  # fmt: skip
    text = json.dumps(header).encode()
    path = tmp_path / "odd.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"\7" + struct.pack("<2f", 1.5, -2.0))
    assert open_weights(path).tensors["y"].read().tolist() == [1.5, -2.0]


def test_writing_to_a_mapped_tensor_does_not_reach_the_file(plain):
    before = plain.read_bytes()
    open_weights(plain).tensors["a.weight"].read().zero_()
    assert plain.read_bytes() == before


def test_opening_reads_no_tensor_data(plain, monkeypatch):
    import s2v_core.checkpoints.files as files

    def refuse(_descriptor):
        raise AssertionError("the file was mapped")

    monkeypatch.setattr(files, "_map_privately", refuse)
    stored = open_weights(plain).tensors["a.weight"]
    with pytest.raises(AssertionError, match="mapped"):
        stored.read()


@pytest.mark.parametrize("missing_bytes", [1, 20])
def test_truncated_safetensors_is_told_by_its_size(plain, missing_bytes):
    content = plain.read_bytes()
    plain.write_bytes(content[:-missing_bytes])
    assert f"{len(content) - missing_bytes} of {len(content)} bytes" in fault(plain)


@pytest.mark.parametrize("kept", [9, 60])
def test_safetensors_cut_inside_its_header(plain, kept):
    plain.write_bytes(plain.read_bytes()[:kept])
    assert "cut short" in fault(plain)


def test_damaged_header(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", 20) + b'{"a": {"dtype": 3}}}' + bytes(100))
    assert "header cannot be read" in fault(path)


def test_header_that_contradicts_itself(tmp_path):
    text = json.dumps({"x": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    assert "x [3] does not fill its 8 bytes" in fault(path)


def test_number_format_that_cannot_be_read_is_named_on_reading(tmp_path):
    text = json.dumps({"x": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(2))
    with pytest.raises(CheckpointError, match="F4"):
        open_weights(path).tensors["x"].read()


# ---- what is not weights


@pytest.mark.parametrize(
    "content,says",
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "git-lfs pointer"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "web page"),
        (b"Entry not found", "text, not weights"),
        (b"\x89PNG\r\n\x1a\n" + bytes(range(200)), "not a weight file"),
        (b"\x01\x02\x03", "not a weight file"),
    ],
)
def test_things_that_are_no_weights(tmp_path, content, says):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    text = fault(path)
    assert says in text and str(path) in text


def test_missing_file_and_folder(tmp_path):
    assert "does not exist" in fault(tmp_path / "nothing.safetensors")
    assert fault(tmp_path).endswith("is a folder: give the weight file in it")
    index = save_sharded(tmp_path, TENSORS)
    assert fault(tmp_path).endswith(f"is a folder: give the weight file in it, such as {index.name}")


def test_unreadable_file(plain, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)   # permissions do not bind root, who may run the tests
    assert "cannot be read: Permission denied" in fault(plain)


# ---- sharded sets


def test_index_joins_its_shards(tmp_path):
    index = save_sharded(tmp_path, TENSORS)
    file = open_weights(index)
    assert file.tensors.keys() == TENSORS.keys()
    assert torch.equal(file.tensors["a.weight"].read(), TENSORS["a.weight"])


def test_any_shard_stands_for_its_set(tmp_path):
    index = save_sharded(tmp_path, TENSORS)
    index.unlink()
    shard = tmp_path / "diffusion_pytorch_model-00002-of-00003.safetensors"
    assert open_weights(shard).tensors.keys() == TENSORS.keys()


@pytest.mark.parametrize("through_index", [True, False])
def test_missing_shard_is_named_with_its_folder(tmp_path, through_index):
    index = save_sharded(tmp_path, TENSORS)
    (tmp_path / "diffusion_pytorch_model-00002-of-00003.safetensors").unlink()
    text = fault(index if through_index else tmp_path / "diffusion_pytorch_model-00001-of-00003.safetensors")
    assert "diffusion_pytorch_model-00002-of-00003.safetensors is missing" in text and str(tmp_path) in text
    assert "1 of the 3 shards" in text


def test_shard_without_a_tensor_that_the_index_promises(tmp_path):
    index = save_sharded(tmp_path, TENSORS)
    save_file({"other": torch.zeros(1)}, tmp_path / "diffusion_pytorch_model-00001-of-00003.safetensors")
    assert "lacks 2 tensors" in fault(index)


def test_index_that_is_no_index(tmp_path):
    path = tmp_path / "x.safetensors.index.json"
    path.write_text('{"weights": []}')
    assert "weight_map" in fault(path)


def test_index_cannot_point_out_of_its_folder(tmp_path):
    (tmp_path / "inner").mkdir()
    save_file(TENSORS, tmp_path / "secret.safetensors")
    path = tmp_path / "inner" / "x.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"b": "../secret.safetensors"}}))
    assert "secret.safetensors is missing" in fault(path)


# ---- torch pickles


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrap", [lambda t: t, lambda t: {"state_dict": t}, lambda t: {**t, "epoch": 3}])
def test_torch_pickles(tmp_path, zipped, wrap):
    path = tmp_path / "x.pth"
    tensors = {name: t for name, t in TENSORS.items() if not name.startswith("d")}
    torch.save(wrap(tensors), path, _use_new_zipfile_serialization=zipped)
    file = open_weights(path)
    assert file.tensors.keys() == tensors.keys()
    assert all(torch.equal(file.tensors[name].read(), t) for name, t in tensors.items())


def test_fp8_in_a_torch_pickle(tmp_path):
    torch.save({"d.weight": TENSORS["d.weight"]}, tmp_path / "x.pth")
    stored = open_weights(tmp_path / "x.pth").tensors["d.weight"]
    assert stored.format == "F8_E4M3" and torch.equal(stored.dense(torch.float32), TENSORS["d.weight"].float())


class Evil:
    def __reduce__(self):
        return os.system, ("exit 1",)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickle_with_code_is_refused(tmp_path, zipped):
    path = tmp_path / "x.pth"
    torch.save({"a": Evil()}, path) if zipped else path.write_bytes(pickle.dumps(Evil()))
    assert "refused: it is a pickle that wants to run code" in fault(path)


@pytest.mark.parametrize("zipped,part", [(True, 0.3), (True, 0.99), (False, 0.05), (False, 0.5), (False, 0.99)])
def test_truncated_torch_pickle(tmp_path, zipped, part):
    path = tmp_path / "x.pth"
    torch.save({"a": torch.randn(100)}, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    assert "cut short" in fault(path)


def test_torch_pickle_without_tensors(tmp_path):
    torch.save([1, 2], tmp_path / "x.pth")
    assert "without weights" in fault(tmp_path / "x.pth")


# ---- GGUF


def test_gguf_formats_and_orientation(tmp_path):
    array = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "wan")
    writer.add_tensor("f32", array)
    writer.add_tensor("f16", array.astype(np.float16))
    for kind in ("BF16", "Q8_0", "Q4_0"):
        packed = gguf.quants.quantize(array, gguf.GGMLQuantizationType[kind])
        writer.add_tensor(kind.lower(), packed, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensors = open_weights(tmp_path / "x.gguf").tensors
    assert {t.shape for t in tensors.values()} == {(4, 64)}
    assert {n: t.format for n, t in tensors.items()} == {n: n.upper() for n in tensors}
    assert torch.equal(tensors["f32"].read(), torch.from_numpy(array))
    assert tensors["q8_0"].read().shape == (4, 68)
    for name, tolerance in {"f16": 2e-3, "bf16": 2e-2, "q8_0": 2e-2, "q4_0": 0.5}.items():
        assert (tensors[name].dense(torch.float32) - torch.from_numpy(array)).abs().max() < tolerance


def test_gguf_conv_gets_its_five_axes_back(tmp_path):
    conv = torch.randn(8, 3, 1, 2, 2)
    save_gguf(tmp_path / "x.gguf", {"patch.weight": conv})
    stored = open_weights(tmp_path / "x.gguf").tensors["patch.weight"]
    assert stored.shape == (8, 3, 1, 2, 2) and torch.equal(stored.read(), conv.half())


@pytest.mark.parametrize("part", [0.01, 0.05, 0.2, 0.9, 0.999])
def test_truncated_gguf(tmp_path, part):
    path = tmp_path / "x.gguf"
    save_gguf(path, {"a.weight": torch.randn(64, 64), "b": torch.randn(7)})
    content = path.read_bytes()
    path.write_bytes(content[: max(6, int(len(content) * part))])
    assert "cut short" in fault(path)


def test_the_ending_does_not_matter(tmp_path, plain):
    disguised = tmp_path / "weights.ckpt"
    disguised.write_bytes(plain.read_bytes())
    assert open_weights(disguised).tensors.keys() == TENSORS.keys()
