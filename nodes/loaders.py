"""Loader nodes: a Wan2.2-S2V file from models/diffusion_models, and the small bundled model.

Knows files and widgets; models are built in `model.py`, `gguf.py` and `bundled.py`.
"""

from __future__ import annotations

from pathlib import Path

from . import host
from .host import io
from .sockets import CATEGORY

FOLDER = "diffusion_models"
DTYPES = ("default", "fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2", "int8")
DOWNLOAD = "https://huggingface.co/Comfy-Org/Wan_2.2_ComfyUI_Repackaged"
USUAL_FILE = "wan2.2_s2v_14B_fp8_scaled.safetensors"


class LoadModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="S2VLoadModel",
            display_name="S2V Load Model",
            category=CATEGORY,
            description="Loads Wan2.2-S2V-14B (bf16, fp16, fp8_scaled or GGUF) as a MODEL that everything made for "
                        "ComfyUI models works on: LoRA loaders, ModelSamplingSD3, samplers, offloading.",
            search_aliases=["wan s2v", "sound to video", "speech to video", "unet loader", "gguf"],
            inputs=[
                io.Combo.Input("model_name", options=host.model_names(FOLDER),
                               tooltip="A Wan2.2-S2V transformer in models/diffusion_models: .safetensors or .gguf."),
                io.Combo.Input("weight_dtype", options=list(DTYPES), default="default",
                               tooltip="How weights lie in memory. default: as the file stores them; the fp8 types "
                                       "halve a bf16 file, and lose some quality; fast also multiplies in fp8, on "
                                       "cards from RTX 40 and H100 on. int8 halves it too, and multiplies in whole "
                                       "numbers, on CPUs too. GGUF files ignore it."),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="For samplers, LoRA loaders and S2V nodes.")],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, model_name: str | None) -> bool | str:
        if model_name is None:   # from another node, not known yet
            return True
        is_there = model_name and host.model_path(FOLDER, model_name) is not None
        return True if is_there else where_to_get(model_name)

    @classmethod
    def execute(cls, model_name: str | None, weight_dtype: str) -> io.NodeOutput:
        from ..s2v_core.errors import CheckpointError
        from .files import load_file

        path = host.model_path(FOLDER, model_name) if model_name else None
        if path is None:
            raise CheckpointError(where_to_get(model_name))
        return io.NodeOutput(load_file(path, weight_dtype))


def where_to_get(model_name: str | None) -> str:
    folders = host.model_folders(FOLDER)
    usual = next((folder for folder in folders if Path(folder).name == FOLDER), folders[0])   # others are older
    return (
        f"There is no {model_name or USUAL_FILE} in ComfyUI's folders for {FOLDER}. "
        f"Download it from {DOWNLOAD}, put it into {usual}, and press R to refresh."
    )


class LoadBundledModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="S2VLoadBundledModel",
            display_name="S2V Load Bundled Model",
            category=CATEGORY,
            description="Loads the small model that comes with this pack: nothing to download, runs on a CPU. "
                        "For trying things out; its videos are 128x128.",
            search_aliases=["wan s2v", "try it", "test model", "small model"],
            inputs=[],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The small transformer."),
                io.Clip.Output(display_name="clip", tooltip="Its text encoder, for CLIP Text Encode."),
                io.Vae.Output(display_name="vae", tooltip="Its autoencoder."),
                io.AudioEncoder.Output(display_name="audio_encoder", tooltip="Its ears, for S2V Audio Encode."),
                io.Image.Output(display_name="sample_image", tooltip="A face to try it with."),
                io.Audio.Output(display_name="sample_audio", tooltip="A few seconds of speech to try it with."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls) -> io.NodeOutput:
        from .bundled import load_bundled

        parts = load_bundled()
        return io.NodeOutput(
            parts.model, parts.clip, parts.vae, parts.audio_encoder, parts.sample_image, parts.sample_audio
        )
