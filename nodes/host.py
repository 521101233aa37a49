"""Everything of ComfyUI that the pack uses: the only file that imports it.

Knows the host's functions and folders; not our model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import signature
from io import BytesIO
from pathlib import Path

import av
import comfy.conds
import comfy.latent_formats
import comfy.ldm.wan.vae
import comfy.lora
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.patcher_extension
import comfy.samplers
import comfy.sd
import comfy.supported_models
import comfy.utils
import folder_paths
import latent_preview
import node_helpers
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy_api.latest import ComfyExtension, InputImpl, io
from comfy_execution.graph_utils import ExecutionBlocker
from PIL import Image
from torch import Tensor, nn

__all__ = ["ComfyExtension", "io", "optimized_attention"]

CLIP = comfy.sd.CLIP
VAE = comfy.sd.VAE
ModelPatcher = comfy.model_patcher.ModelPatcher
BaseModel = comfy.model_base.BaseModel
HostS2VModel = comfy.model_base.WAN22_S2V
HostS2VConfig = comfy.supported_models.WAN22_S2V
CastingLayers = comfy.ops.manual_cast
CastingLayer = comfy.ops.CastWeightBiasOp
FLOW = comfy.model_base.ModelType.FLOW
LATENT_FORMAT = comfy.latent_formats.Wan21()
SAMPLERS: tuple[str, ...] = tuple(comfy.samplers.SAMPLER_NAMES)
SCHEDULERS: tuple[str, ...] = tuple(comfy.samplers.SCHEDULER_NAMES)
PREVIEW_SIZE = 512   # pixels of a picture's longer side, in the browser

FINEST = 6           # constant rate factor of h264 that is read again

Video = object     # the host's VIDEO
Sampler = object   # what the host's samplers take for one


# ---- nodes -----------------------------------------------------------------------------------------------------------


def schema(*, advanced: Sequence[str] = (), **fields: object) -> io.Schema:
    """A node's schema; fields that this host is too old to know (search aliases) are left out.

    Args:
        advanced: names of inputs that the page shows once a node's advanced inputs are asked for.
    """
    known = io.Schema.__dataclass_fields__
    for name in advanced:
        (shown,) = (one for one in fields["inputs"] if one.id == name)
        shown.extra_dict = {**shown.extra_dict, "advanced": True}
    return io.Schema(**{name: value for name, value in fields.items() if name in known})


def with_values(conditioning: list, values: Mapping[str, object]) -> list:
    """The conditioning with further values for the model, in every part of it."""
    return node_helpers.conditioning_set_values(conditioning, dict(values))


def encode_prompt(clip: CLIP, text: str) -> list:
    """A prompt's CONDITIONING, as the host's own CLIP Text Encode makes it."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def nothing_because(reason: str) -> ExecutionBlocker:
    """An output that holds nothing: a node that is connected to it says `reason`, the others run."""
    return ExecutionBlocker(reason)


def video_file(path: Path) -> InputImpl.VideoFromFile:
    """A VIDEO that stays on disk."""
    return InputImpl.VideoFromFile(str(path))


def whole_source(video: Video) -> str | BytesIO | None:
    """The file or the bytes of a VIDEO; None where it shows something else: frames, or what a node left of a file.

    Later hosts trim and crop a file when it is read their way, and go on naming the whole file.
    """
    if isinstance(video, InputImpl.VideoFromComponents):
        return None
    source = video.get_stream_source()
    whole = InputImpl.VideoFromFile(source)
    try:
        same = video.get_dimensions() == whole.get_dimensions() and video.get_duration() == whole.get_duration()
    except (OSError, ValueError, av.error.FFmpegError):
        return source   # whoever reads it says what is wrong with it
    return source if same else None


def save_video(video: Video, path: Path) -> None:
    """What a VIDEO shows as an mp4, as close to it as this host can. Raises: OSError, ValueError, FFmpegError."""
    finest = {"crf": FINEST} if "crf" in signature(video.save_to).parameters else {}
    video.save_to(str(path), **finest)


# ---- folders ---------------------------------------------------------------------------------------------------------


def model_names(folder: str) -> list[str]:
    """The weight files in one of the host's model folders, GGUF among them, which the host itself does not list."""
    found = set(folder_paths.get_filename_list(folder))
    for root in folder_paths.get_folder_paths(folder):
        files, _ = folder_paths.recursive_search(root, excluded_dir_names=[".git"])
        found.update(name for name in files if name.lower().endswith(".gguf"))
    return sorted(found)


def model_path(folder: str, name: str) -> Path | None:
    """Where a file of a model folder lies; None when it does not."""
    path = folder_paths.get_full_path(folder, name)
    return None if path is None else Path(path)


def model_folders(folder: str) -> list[str]:
    return folder_paths.get_folder_paths(folder)


def output_folder() -> Path:
    return Path(folder_paths.get_output_directory())


def temp_folder() -> Path:
    return Path(folder_paths.get_temp_directory())


# ---- running ---------------------------------------------------------------------------------------------------------


def stop_if_asked() -> None:
    """Raises the host's own exception once somebody has pressed Cancel."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def bring(patchers: Sequence[ModelPatcher], memory: float = 0) -> None:
    """Models to their device, as the host decides, with `memory` bytes to spare."""
    comfy.model_management.load_models_gpu(list(patchers), memory_required=memory)


class Progress:
    """A node's bar in the browser, with a picture above it."""

    def __init__(self, total: int, node_id: str | None) -> None:
        self._bar = comfy.utils.ProgressBar(total, node_id=node_id)

    def show(self, done: int, picture: Image.Image | None = None) -> None:
        """Raises the host's interruption too."""
        preview = None if picture is None else ("JPEG", picture, PREVIEW_SIZE)
        self._bar.update_absolute(done, preview=preview)


class Previews:
    """Quick looks at latents in the model's space, as the host's samplers give them."""

    def __init__(self, model: ModelPatcher) -> None:
        self._previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)

    def picture(self, denoised: Tensor) -> Image.Image | None:
        """None when previews are off, or when a pack has put its own in their place and shows them itself."""
        made = self._previewer and self._previewer.decode_latent_to_preview_image("JPEG", denoised)
        return made[1] if made else None


# ---- sampling --------------------------------------------------------------------------------------------------------


def host_sampler(name: str) -> Sampler:
    return comfy.samplers.sampler_object(name)


def function_sampler(sample: Callable[..., Tensor]) -> Sampler:
    """A sampler from `sample(model, x, sigmas, extra_args, callback, disable)`."""
    return comfy.samplers.KSAMPLER(sample)


def host_sigmas(model: ModelPatcher, scheduler: str, steps: int) -> Tensor:
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), scheduler, steps)


def sampling_shift(model: ModelPatcher) -> float | None:
    """The schedule shift that the model carries, from its loader or from a node such as ModelSamplingSD3.

    Returns: None where a node has made it another kind of model, such as ModelSamplingDiscrete.
    """
    shift = getattr(model.get_model_object("model_sampling"), "shift", None)
    return None if shift is None else float(shift)


class Guider(comfy.samplers.CFGGuider):
    """Several conditionings to one estimate, where the host's own guidance knows two.

    Args:
        told: conditionings, each of which the model is asked under.
        combine: `(x, sigma [B], denoised of each)` to the guided one; what is attached to the model to change the
            host's guidance is left out.
    """

    def __init__(
        self,
        model: ModelPatcher,
        told: Sequence[list],
        combine: Callable[[Tensor, Tensor, Sequence[Tensor]], Tensor],
    ) -> None:
        super().__init__(model)
        self._names = ("positive", *(f"middle_{i}" for i in range(1, len(told) - 1)), "negative")
        self._combine = combine
        self.inner_set_conds(dict(zip(self._names, told, strict=True)))

    def predict_noise(
        self, x: Tensor, timestep: Tensor, model_options: dict | None = None, seed: int | None = None
    ) -> Tensor:
        conditionings = [self.conds[name] for name in self._names]
        denoised = comfy.samplers.calc_cond_batch(self.inner_model, conditionings, x, timestep, model_options or {})
        return self._combine(x, timestep, denoised)


def host_guider(model: ModelPatcher, positive: list, negative: list, cfg: float) -> comfy.samplers.CFGGuider:
    """The host's own guidance, and what is attached to the model to change it."""
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    return guider


def sample(
    guider: comfy.samplers.CFGGuider,
    noise: Tensor,
    *,
    sampler: Sampler,
    sigmas: Tensor,
    seed: int,
    callback: Callable[[int, Tensor, Tensor, int], None],
    kept: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Noise to latents as the VAE makes them (not normalised), through everything that is attached to the model.

    Args:
        kept: latents as the VAE makes them, and a mask [1, 1, T, h, w] of what is made anew: where it is 0 they stay.
    """
    latents, mask = (torch.zeros_like(noise), None) if kept is None else kept
    made = guider.sample(noise, latents, sampler, sigmas, mask, callback, disable_pbar=True, seed=seed)
    return made.to(comfy.model_management.intermediate_device())


# ---- models ----------------------------------------------------------------------------------------------------------


def read_state_dict(path: Path) -> dict[str, Tensor]:
    return comfy.utils.load_torch_file(str(path), safe_load=True)


@contextmanager
def _recognised(config: type[HostS2VConfig]) -> Iterator[None]:
    """While this lasts, the host finds our configuration first."""
    comfy.supported_models.models.insert(0, config)
    try:
        yield
    finally:
        comfy.supported_models.models.remove(config)


def load_diffusion_model(
    tensors: dict[str, Tensor], config: type[HostS2VConfig], options: Mapping[str, object]
) -> ModelPatcher:
    """Weights into the model of `config`; dtypes, fp8 and operations are chosen by the host."""
    with _recognised(config):
        return comfy.sd.load_diffusion_model_state_dict(tensors, model_options=dict(options))


def compute_dtype() -> torch.dtype:
    """What the host would compute a large transformer in on this machine."""
    return comfy.model_management.unet_dtype(supported_dtypes=HostS2VConfig.supported_inference_dtypes)


def patch_function(patches: list, key: str) -> Callable[[Tensor], Tensor]:
    """A weight -> the weight with LoRAs and the like added."""
    return lambda weight: comfy.lora.calculate_weight(patches, weight, key, intermediate_dtype=weight.dtype)


def is_lowvram_patch(function: Callable[[Tensor], Tensor]) -> bool:
    """Whether this is how the host patches a weight that it holds back."""
    return isinstance(function, comfy.model_patcher.LowVramPatch)


def make_vae(weights: dict[str, Tensor], make: Callable[..., nn.Module]) -> VAE:
    """The host's VAE around our own first stage, in float32; `make` stands in for the host's class meanwhile."""
    theirs = comfy.ldm.wan.vae.WanVAE
    comfy.ldm.wan.vae.WanVAE = make
    try:
        return VAE(sd=weights, dtype=torch.float32)
    finally:
        comfy.ldm.wan.vae.WanVAE = theirs


def vae_patcher(model: nn.Module) -> ModelPatcher:
    """A first stage under the host's memory management."""
    return ModelPatcher(
        model,
        load_device=comfy.model_management.vae_device(),
        offload_device=comfy.model_management.vae_offload_device(),
    )


def constant(value: object) -> comfy.conds.CONDConstant:
    """A value for the model that is no tensor."""
    return comfy.conds.CONDConstant(value)


def tensor(value: Tensor) -> comfy.conds.CONDRegular:
    """A tensor [B, ...] for the model."""
    return comfy.conds.CONDRegular(value)


def run_wrapped(
    function: Callable[..., Tensor], model: nn.Module, options: dict, *args: object, **extra: object
) -> Tensor:
    """Call `function(*args, options, **extra)` through what is wrapped around the diffusion model."""
    kind = comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL
    wrappers = comfy.patcher_extension.get_all_wrappers(kind, options)
    executor = comfy.patcher_extension.WrapperExecutor.new_class_executor(function, model, wrappers)
    return executor.execute(*args, options, **extra)


def after_sampling(model: ModelPatcher, name: str, then: Callable[[], None]) -> None:
    """Have `then` called at the end of every sampling run of the model and its clones, whatever ends it."""

    def around(executor: Callable[..., Tensor], *args: object, **kwargs: object) -> Tensor:
        try:
            return executor(*args, **kwargs)
        finally:
            then()

    model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, name, around)


def around_guidance(
    model: ModelPatcher,
    name: str,
    around: Callable[[Callable[[], Tensor], Callable[[], Tensor], Tensor, float, Sequence[float]], Tensor],
) -> None:
    """Let `around` give the clean estimate of every step of the model and its clones, whatever samples and guides.

    Args:
        around: `(guided, alone, x, sigma, sigmas)`: two functions that evaluate the model, as guidance would and under
            the positive conditioning alone; the latents; their noise level; and all levels of the run.
    """

    def wrapped(
        executor: Callable[..., Tensor], x: Tensor, timestep: Tensor, options: dict, seed: int | None = None
    ) -> Tensor:
        guider = executor.class_obj

        def alone() -> Tensor:
            told = [guider.conds["positive"]]
            return comfy.samplers.calc_cond_batch(guider.inner_model, told, x, timestep, options)[0]

        levels = options["transformer_options"]["sample_sigmas"].tolist()
        return around(lambda: executor(x, timestep, options, seed), alone, x, float(timestep[0]), levels)

    model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.PREDICT_NOISE, name, wrapped)
