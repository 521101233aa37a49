"""Recorded cases of pictures brought to a size.

The reference scales the short side to the frame's short side and fills what stays empty with black. That rule is
written out here, on our resampling and our crop, to show that both are the reference's; our own rule leaves no bars
(`tests/core/test_image.py`).
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from s2v_core.conditioning.image import centre_crop, resize

from ..case import Case


def resize_crop(case: Case) -> dict[str, Tensor]:
    picture = Image.fromarray(case.tensors["in.image"].numpy())
    height, width = case.args["target"]
    short = min(height, width)
    scaled = resize(picture, *(max(short, side * short // min(picture.size)) for side in picture.size))
    canvas = Image.new("RGB", (max(width, scaled.width), max(height, scaled.height)))
    canvas.paste(scaled, ((canvas.width - scaled.width) // 2, (canvas.height - scaled.height) // 2))
    return {"out.pil_uint8": torch.from_numpy(np.array(centre_crop(canvas, width, height)))}


KINDS = {"resize_crop": resize_crop}
