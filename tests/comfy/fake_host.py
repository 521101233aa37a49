"""As much of ComfyUI's interface as the pack needs to be imported and tried without it.

Knows names; what it does is the least that each name promises.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType, SimpleNamespace

import av
import torch
import torch.nn.functional as F
from torch import nn

from s2v_core.config import WAN_LATENT_MEAN, WAN_LATENT_STD
from s2v_core.ops import layers

from ..core.dub_footage import write_video
from .server import ROOT


class Part:
    """An input or output of a schema."""

    def __init__(self, id=None, **values):
        self.id, self.extra_dict = id, {}
        self.__dict__.update(values)


class Schema:
    __dataclass_fields__ = dict.fromkeys(
        ("node_id", "display_name", "category", "description", "inputs", "outputs", "hidden")
    )

    def __init__(self, **fields):
        self.__dict__.update(fields)


class AnyType:
    Input = Output = Part


class Io(ModuleType):
    Schema, Input, Output = Schema, Part, Part
    ComfyNode = object
    Hidden = SimpleNamespace(unique_id="UNIQUE_ID")

    class NodeOutput:
        def __init__(self, *args):
            self.args = args

    @staticmethod
    def Custom(name):
        return AnyType

    def __getattr__(self, name):
        if name[0].isupper():
            return AnyType
        raise AttributeError(name)


class Wan21:
    mean = torch.tensor(WAN_LATENT_MEAN).view(1, -1, 1, 1, 1)
    std = torch.tensor(WAN_LATENT_STD).view(1, -1, 1, 1, 1)

    def process_in(self, x):
        return (x - self.mean) / self.std

    def process_out(self, x):
        return x * self.std + self.mean


class WrapperExecutor:
    @classmethod
    def new_class_executor(cls, function, model, wrappers):
        return SimpleNamespace(execute=function)


class CFGGuider:
    """Knows conditionings by name; those that are sampled are those that were set."""

    def __init__(self, model):
        self.inner_model, self.cfg = model, None

    def inner_set_conds(self, conds):
        self.conds = conds

    def set_conds(self, positive, negative):
        self.inner_set_conds({"positive": positive, "negative": negative})

    def set_cfg(self, cfg):
        self.cfg = cfg


class VideoFromComponents:
    """Frames in memory; to bytes it cannot be written, as on older hosts."""

    def __init__(self, pictures, rate):
        self.pictures, self.rate = pictures, rate

    def get_stream_source(self):
        raise ValueError("Could not determine output format")

    def save_to(self, path, metadata=None):
        write_video(path, self.pictures, self.rate)


class VideoFromFile:
    """A file, or what is shown of it, as on later hosts."""

    def __init__(self, file, *, start_time=0.0, duration=0.0, crop=None):
        self.file, self.start_time, self.duration, self.crop = file, start_time, duration, crop

    def get_stream_source(self):
        if not isinstance(self.file, str):
            self.file.seek(0)
        return self.file

    def get_dimensions(self):
        with av.open(self.get_stream_source()) as container:
            stream = container.streams.video[0]
            return self.crop[2:] if self.crop else (stream.width, stream.height)

    def get_duration(self):
        with av.open(self.get_stream_source()) as container:
            left = container.duration / av.time_base - self.start_time
        return min(self.duration, left) if self.duration else left

    def save_to(self, path, metadata=None, crf=None):
        with av.open(self.file) as container:
            rate = container.streams.video[0].average_rate
            end = self.start_time + self.get_duration()
            left, top, width, height = self.crop or (0, 0, *self.get_dimensions())
            write_video(path, [
                frame.to_ndarray(format="rgb24")[top : top + height, left : left + width]
                for frame in container.decode(video=0) if self.start_time <= frame.time < end
            ], rate)  # fmt: skip


class ProgressBar:
    """Keeps what it was told."""

    def __init__(self, total, node_id=None):
        self.total, self.shown = total, []

    def update_absolute(self, value, total=None, preview=None):
        self.shown.append((value, preview))


def attention(q, k, v, heads, transformer_options):
    q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def conditioning_set_values(conditioning, values):
    return [[embeds, {**old, **values}] for embeds, old in conditioning]


def fake_modules(root):
    """Module name -> its contents. `root` is where its folders would be."""
    folder = {
        "get_filename_list": lambda kind: [path.name for path in root.glob("*.safetensors")],
        "get_folder_paths": lambda kind: [str(root)],
        "recursive_search": lambda path, excluded_dir_names: ([file.name for file in root.iterdir()], {}),
        "get_full_path": lambda kind, name: str(root / name) if (root / name).is_file() else None,
        "get_output_directory": lambda: str(root / "output"),
        "get_temp_directory": lambda: str(root / "temp"),
    }
    model = type("HostModel", (nn.Module,), {})
    return {
        "comfy": {},
        "comfy.conds": {"CONDConstant": SimpleNamespace},
        "comfy.latent_formats": {"Wan21": Wan21},
        "comfy.ldm": {}, "comfy.ldm.wan": {}, "comfy.ldm.modules": {},
        "comfy.ldm.wan.vae": {"WanVAE": object},
        "comfy.ldm.modules.attention": {"optimized_attention": attention},
        "comfy.lora": {},
        "comfy.model_base": {
            "BaseModel": model, "WAN22_S2V": type("HostS2V", (model,), {}), "ModelType": SimpleNamespace(FLOW="flow"),
        },
        "comfy.model_management": {"throw_exception_if_processing_interrupted": lambda: None},
        "comfy.model_patcher": {name: type(name, (), {}) for name in ("ModelPatcher", "LowVramPatch")},
        "comfy.ops": {"manual_cast": layers, "CastWeightBiasOp": type("CastWeightBiasOp", (), {})},
        "comfy.patcher_extension": {
            "WrappersMP": SimpleNamespace(
                DIFFUSION_MODEL="diffusion", OUTER_SAMPLE="outer", PREDICT_NOISE="predict",
            ),
            "get_all_wrappers": lambda kind, options: [], "WrapperExecutor": WrapperExecutor,
        },
        "comfy.samplers": {
            "SAMPLER_NAMES": ["euler"], "SCHEDULER_NAMES": ["simple"], "CFGGuider": CFGGuider,
            "KSAMPLER": lambda sample: sample,
            "calc_cond_batch": lambda model, conds, x, sigma, options: [model(cond, x, sigma) for cond in conds],
        },
        "comfy.sd": {"CLIP": object, "VAE": object},
        "comfy.supported_models": {"WAN22_S2V": type("HostConfig", (), {}), "models": []},
        "comfy.utils": {"ProgressBar": ProgressBar},
        "folder_paths": folder,
        "latent_preview": {"get_previewer": lambda device, latent_format: None},
        "node_helpers": {"conditioning_set_values": conditioning_set_values},
        "comfy_api": {},
        "comfy_execution": {},
        "comfy_execution.graph_utils": {"ExecutionBlocker": SimpleNamespace},
        "comfy_api.latest": {
            "ComfyExtension": object,
            "io": Io("io"),
            "InputImpl": SimpleNamespace(VideoFromFile=VideoFromFile, VideoFromComponents=VideoFromComponents),
        },
    }  # fmt: skip


def load_pack(monkeypatch, root):
    """The pack, loaded by its path as the host loads it."""
    for name, contents in fake_modules(root).items():
        module = ModuleType(name)
        module.__path__ = []
        module.__spec__ = importlib.util.spec_from_loader(name, loader=None)
        module.__dict__.update(contents)
        monkeypatch.setitem(sys.modules, name, module)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    name = "custom_nodes/wan_s2v under a fake host"
    for known in [known for known in sys.modules if known == name or known.startswith(name + ".")]:
        monkeypatch.delitem(sys.modules, known)
    spec = importlib.util.spec_from_file_location(name, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def part(pack, name):
    """A module of the pack."""
    return importlib.import_module(f"{pack.__name__}.{name}")
