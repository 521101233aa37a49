"""Picture files: whatever people have becomes an upright RGB picture, or one sentence about what is wrong.

Knows files and Pillow; not what the picture is for.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps

from ..errors import MediaError

MIN_SIDE = 32    # pixels; below this there is nothing to keep an identity from
MAX_RATIO = 4.0  # long side to short side; beyond it a video of the picture's shape would be a strip


def read_picture(path: Path, *, behind: str = "white") -> Image.Image:
    """An sRGB picture, upright (EXIF), 8 bits a channel; the first frame where there are several.

    Grey, palette, CMYK and 16-bit pictures are converted, and those of another colour profile, such as a phone's.

    Args:
        behind: the colour that is seen through what is transparent. White suits portraits: cut-outs are made for light
            pages, and on black their hair and shadows get a dark rim. A mask painted on a layer of its own wants black.

    Raises: MediaError for a file that is missing, no picture, damaged, huge, below 32 pixels, or longer than 4:1.
    """
    if path.is_dir():
        raise MediaError(f"{path} is a folder; name a picture in it")
    if not path.exists():
        raise MediaError(f"there is no picture {path}; check the path")
    with _open(path) as picture:
        _check_size(path, *picture.size)
        if picture.mode == "F":
            raise MediaError(f"{path} is a picture of fractions, which do not say what is white; save it as PNG")
        try:
            picture.load()
            return _laid_on(behind, _in_srgb(_eight_bit(ImageOps.exif_transpose(picture))))
        except Exception as error:  # Pillow's readers raise whatever the damage leads to
            raise MediaError(f"{path} is cut short or damaged ({error}); copy or export it again") from error


def _open(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except Image.DecompressionBombError as error:
        raise MediaError(f"{path} is too large a picture ({error}); scale it down to 8000 pixels or less") from error
    except Exception as error:  # as above
        raise MediaError(f"{path} is not a picture that can be read; save it as PNG or JPEG") from error


def _check_size(path: Path, width: int, height: int) -> None:
    if max(width, height) > MAX_RATIO * min(width, height):
        raise MediaError(f"{path} is {width}x{height} pixels, a shape beyond {MAX_RATIO:g}:1; crop it around the face")
    if min(width, height) < MIN_SIDE:
        raise MediaError(f"{path} is {width}x{height} pixels; use a picture of at least {MIN_SIDE} on each side")


def _eight_bit(picture: Image.Image) -> Image.Image:
    """16-bit grey to 8: Pillow's own conversion clips instead of scaling."""
    if not picture.mode.startswith("I"):
        return picture
    values = np.asarray(picture.convert("I"))
    return Image.fromarray((values.clip(0, 65535) // 256).astype(np.uint8))


def _in_srgb(picture: Image.Image) -> Image.Image:
    """The colours that the picture's own profile means; as they are where there is none, or a broken one."""
    profile = picture.info.get("icc_profile")
    if not profile or picture.mode not in ("RGB", "RGBA", "P", "CMYK"):
        return picture
    if picture.mode == "P" or "transparency" in picture.info:
        picture = picture.convert("RGBA")
    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "sRGB" in ImageCms.getProfileDescription(own):
            return picture
        mode = "RGBA" if picture.mode == "RGBA" else "RGB"
        return ImageCms.profileToProfile(picture, own, ImageCms.createProfile("sRGB"), outputMode=mode)
    except (ImageCms.PyCMSError, OSError):
        return picture


def _laid_on(colour: str, picture: Image.Image) -> Image.Image:
    if picture.mode not in ("RGBA", "LA", "PA") and "transparency" not in picture.info:
        return picture.convert("RGB")
    ground = Image.new("RGBA", picture.size, colour)
    return Image.alpha_composite(ground, picture.convert("RGBA")).convert("RGB")
