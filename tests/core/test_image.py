"""Pictures: what people have is read as it looks, fills the frame, or is refused in one sentence."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
from PIL import Image

from s2v_core.conditioning.image import fit_picture
from s2v_core.errors import MediaError
from s2v_core.geometry import VideoSize, fit_size
from s2v_core.media.image_io import read_picture

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def corners(width: int = 64, height: int = 48) -> Image.Image:
    """Red, green, blue, white: top left, top right, bottom left, bottom right."""
    picture = Image.new("RGB", (2, 2))
    picture.putdata([RED, GREEN, BLUE, WHITE])
    return picture.resize((width, height), Image.Resampling.NEAREST)


def saved(tmp_path, picture: Image.Image, name: str = "picture.png", **options):
    path = tmp_path / name
    picture.save(path, **options)
    return path


def close(pixel, colour, tolerance: int = 4) -> bool:
    return all(abs(a - b) <= tolerance for a, b in zip(pixel, colour, strict=True))


def test_a_plain_picture_is_read_as_it_is(tmp_path):
    picture = read_picture(saved(tmp_path, corners()))
    assert picture.mode == "RGB" and np.array_equal(picture, corners())


def test_exif_rotation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6   # the camera was held so that the stored picture must turn a quarter clockwise
    picture = read_picture(saved(tmp_path, corners(), exif=exif))
    assert picture.size == (48, 64)
    assert [picture.getpixel(at) for at in ((0, 0), (47, 0), (0, 63), (47, 63))] == [BLUE, RED, WHITE, GREEN]


def test_what_is_transparent_becomes_white_and_half_transparent_half_white(tmp_path):
    picture = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    picture.paste((200, 0, 0, 255), (0, 0, 32, 32))
    picture.paste((0, 0, 0, 128), (32, 32, 64, 64))
    read = read_picture(saved(tmp_path, picture))
    assert read.getpixel((5, 5)) == (200, 0, 0)
    assert read.getpixel((60, 5)) == WHITE
    assert close(read.getpixel((60, 60)), (127, 127, 127), 1)


def test_transparency_of_grey_and_palette_pictures_becomes_white(tmp_path):
    grey = saved(tmp_path, Image.new("LA", (40, 40), (0, 0)), "grey.png")
    palette = Image.new("P", (40, 40), 0)
    palette.putpalette([10, 20, 30] * 256)
    for path in (grey, saved(tmp_path, palette, "palette.png", transparency=0)):
        assert read_picture(path).getpixel((20, 20)) == WHITE


def test_grey_palette_and_cmyk_keep_their_colours(tmp_path):
    grey = read_picture(saved(tmp_path, Image.new("L", (40, 40), 77)))
    palette = read_picture(saved(tmp_path, corners().quantize(4), "palette.png"))
    cmyk = read_picture(saved(tmp_path, corners().convert("CMYK"), "cmyk.tif"))
    assert grey.getpixel((0, 0)) == (77, 77, 77)
    for picture in (palette, cmyk):
        assert picture.mode == "RGB"
        assert close(picture.getpixel((0, 0)), RED) and close(picture.getpixel((63, 0)), GREEN)


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    ramp = np.tile(np.linspace(0, 65535, 256, dtype=np.uint16), (64, 1))
    read = np.array(read_picture(saved(tmp_path, Image.fromarray(ramp))))[0, :, 0]
    assert np.array_equal(read, np.arange(256))


def profile_of(**channels: tuple[float, float, float]) -> bytes:
    """An ICC profile (version 4) of a screen with the given primaries, as XYZ on the D50 white, and a gamma of 2.2."""

    def number(value: float) -> bytes:
        return struct.pack(">i", round(value * 65536))

    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(2.2 * 256)) + bytes(2)
    said = "A screen".encode("utf-16-be")
    tags = {"desc": b"mluc" + bytes(4) + struct.pack(">II2s2sII", 1, 12, b"en", b"US", len(said), 28) + said}
    tags["wtpt"] = b"XYZ " + bytes(4) + b"".join(map(number, (0.9642, 1.0, 0.8249)))
    for name, primary in channels.items():
        tags[f"{name}XYZ"] = b"XYZ " + bytes(4) + b"".join(map(number, primary))
        tags[f"{name}TRC"] = curve
    table, body, at = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += struct.pack(">4sII", name.encode(), at + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">I4sI4s4s4s", at + len(body), bytes(4), 0x04000000, b"mntr", b"RGB ", b"XYZ ") + bytes(12)
    head += b"acsp" + bytes(28) + b"".join(map(number, (0.9642, 1.0, 0.8249)))
    return head.ljust(128, b"\0") + table + body


# Display P3's primaries, which phones write; Source: Apple's Display P3 profile.
P3 = {"r": (0.51512, 0.2412, -0.00105), "g": (0.29198, 0.69225, 0.04189), "b": (0.1571, 0.06657, 0.78407)}


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colours_are_those_that_the_pictures_profile_means(tmp_path, mode):
    """P3's (200, 100, 80) is sRGB's (214, 95, 74): redder than its numbers say."""
    picture = Image.new("RGB", (40, 40), (200, 100, 80))
    picture = picture.quantize(4) if mode == "P" else picture.convert(mode)
    if mode == "RGBA":
        picture.paste((0, 0, 0, 0), (0, 0, 20, 40))
    plain = read_picture(saved(tmp_path, picture, "plain.png"))
    assert close(plain.getpixel((30, 20)), (200, 100, 80), 1)
    read = read_picture(saved(tmp_path, picture, "phone.png", icc_profile=profile_of(**P3)))
    assert read.mode == "RGB" and close(read.getpixel((30, 20)), (214, 95, 74), 3)
    assert mode != "RGBA" or read.getpixel((5, 5)) == WHITE
    broken = read_picture(saved(tmp_path, picture, "broken.png", icc_profile=b"no profile"))
    assert close(broken.getpixel((30, 20)), (200, 100, 80), 1)


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (40, 40), colour) for colour in (RED, GREEN, BLUE)]
    path = saved(tmp_path, frames[0], "moving.gif", save_all=True, append_images=frames[1:])
    assert close(read_picture(path).getpixel((0, 0)), RED)


def test_bad_pictures_are_refused_with_the_reason(tmp_path, monkeypatch):
    (tmp_path / "text.png").write_text("this is no picture")
    whole = saved(tmp_path, Image.effect_noise((200, 200), 50), "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.png").write_bytes(b"")
    saved(tmp_path, Image.new("RGB", (1, 1)), "dot.png")
    saved(tmp_path, Image.new("RGB", (8000, 20)), "strip.png")
    saved(tmp_path, Image.new("RGB", (20, 8000)), "tower.png")
    saved(tmp_path, Image.new("L", (2000, 1000)), "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500_000)
    saved(tmp_path, Image.new("F", (40, 40), 0.5), "fractions.tif")
    for name, words in {
        "fractions.tif": "fractions, which do not say what is white; save it as PNG",
        "missing.png": "there is no picture",
        ".": "is a folder",
        "text.png": "is not a picture",
        "empty.png": "is not a picture",
        "cut.png": "cut short or damaged",
        "dot.png": "is 1x1 pixels; use a picture of at least 32",
        "strip.png": "is 8000x20 pixels, a shape beyond 4:1; crop it",
        "tower.png": "is 20x8000 pixels, a shape beyond 4:1; crop it",
        "bomb.png": "too large a picture",
    }.items():
        with pytest.raises(MediaError, match=words) as caught:
            read_picture(tmp_path / name)
        assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(37, 53), (40, 160), (160, 40), (53, 37), (720, 1280), (1280, 720), (499, 500)])
@pytest.mark.parametrize("area", [64 * 64, 64 * 128, 448 * 832])
def test_no_shape_and_size_leave_a_bar(shape, area):
    height, width = shape
    white = Image.new("RGB", (width, height), "white")
    size = fit_size(width, height, area)
    for target in (size, VideoSize(width=size.height, height=size.width)):
        frames = fit_picture(white, target)
        assert frames.shape == (1, 3, 1, target.height, target.width) and frames.dtype == torch.float32
        assert bool((frames == 1).all())


def test_the_middle_stays_in_the_middle_and_values_span_minus_one_to_one():
    picture = Image.new("RGB", (300, 100))
    picture.paste(WHITE, (140, 40, 160, 60))
    frames = fit_picture(picture, VideoSize(width=96, height=96))[0, :, 0]
    assert frames.min() == -1 and frames.max() == 1
    rows, columns = (frames[0] > 0).nonzero(as_tuple=True)
    assert abs(rows.float().mean() - 47.5) <= 0.5 and abs(columns.float().mean() - 47.5) <= 0.5


def test_shrinking_is_antialiased():
    stripes = np.zeros((512, 512, 3), np.uint8)
    stripes[:, ::2] = 255
    frames = fit_picture(Image.fromarray(stripes), VideoSize(width=64, height=64))
    assert frames.abs().max() < 0.05   # mid grey; picking pixels would give black or white
