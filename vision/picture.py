"""Any picture a person may hand over -> an upright 8-bit RGB `PIL.Image`, or a `UserError` of one line that names it.

Legal but unusual pictures are handled, not refused: EXIF rotation, 16-bit and float images, CMYK, palettes,
transparency (shown on white), animations (first frame), 1 x 1 and 10000 x 20. Broken ones are refused.
"""

import io
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from multimodal.errors import UserError
from multimodal.files import open_file

PictureSource = str | Path | bytes | Image.Image | np.ndarray | torch.Tensor

EXPECTED = "expected a picture (JPEG, PNG, WebP, GIF, TIFF or BMP)"
MAX_PIXELS = 200_000_000
"""Above this a picture is refused: it may be a decompression bomb."""
PICTURE_SUFFIXES = frozenset(Image.registered_extensions())
DRAFT_PIXELS = 16_000_000
"""A JPEG above this is decoded at 1/2, 1/4 or 1/8 size: still far more than all tiles together show."""

Image.MAX_IMAGE_PIXELS = MAX_PIXELS  # Pillow warns from 89 MP on: less than a phone's panorama


def open_picture(source: PictureSource, *, name: str | None = None) -> Image.Image:
    """Open a picture as RGB, turned upright.

    Args:
        source: a file, its bytes, a PIL image (the frame it stands on), a numpy array (H x W or H x W x C) or a tensor
            (H x W or C x H x W) with C = 1, 2 (grey, alpha), 3 or 4 (RGB, alpha). Numbers: 8-bit as they are, 16-bit
            over their full range, floats in 0..1; any other range is stretched to 0..255.
        name: what error messages call the picture; a file has its path.

    Raises:
        UserError: missing, empty, a folder, not a picture, truncated, or over `MAX_PIXELS`.

    Example:
        >>> open_picture(np.zeros((20, 10), np.uint16)).size
        (10, 20)
    """
    if isinstance(source, Image.Image):
        return _decode(source, name or "the image given")
    if isinstance(source, np.ndarray | torch.Tensor):
        return _from_array(source, name or "the array given")
    if isinstance(source, bytes):
        return _open(io.BytesIO(source), name or "the picture's bytes")
    path = Path(source)
    with open_file(path, expected=EXPECTED) as file:
        return _open(file, name or str(path))


def _open(file: BinaryIO, name: str) -> Image.Image:
    start = file.read(8)
    file.seek(0)
    if not start:
        raise UserError(f"{name}: empty (0 bytes); {EXPECTED}")
    Image.init()
    formats = [kind for kind in Image.OPEN if kind != "EPS"]  # Pillow would run Ghostscript on those
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(file, formats=formats)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(f"{name}: over {MAX_PIXELS // 10**6} megapixels; expected at most that many") from error
    except UnidentifiedImageError as error:
        raise UserError(f"{name}: not a picture (the file starts with {start!r}); {EXPECTED}") from error
    except Exception as error:  # decoders raise whatever their parsing runs into
        raise UserError(f"{name}: broken picture ({_line(error)}); {EXPECTED}") from error
    with image:
        shrink = next(f for f in (1, 2, 4, 8) if f == 8 or image.width * image.height <= DRAFT_PIXELS * f**2)
        if shrink > 1:
            image.draft(
                None, (max(1, image.width // shrink), max(1, image.height // shrink))
            )  # JPEG only; else nothing
        return _decode(image, name)


def _decode(image: Image.Image, name: str) -> Image.Image:
    width, height = image.size
    if not width or not height:
        raise UserError(f"{name}: {width} x {height} pixels; expected at least one")
    if width * height > MAX_PIXELS:
        raise UserError(f"{name}: {width} x {height} pixels; expected at most {MAX_PIXELS // 10**6} megapixels")
    try:
        image.load()
    except Exception as error:
        kind = image.format or "picture"
        raise UserError(f"{name}: truncated or broken {kind} ({_line(error)}); expected a complete picture") from error
    try:
        return _to_rgb(_upright(image))
    except (ValueError, OSError) as error:
        raise UserError(f"{name}: colour mode {image.mode} ({_line(error)}); expected grey, RGB or CMYK") from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a damaged EXIF block says nothing about the pixels, which are loaded by now
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_uint8(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _from_array(values: np.ndarray | torch.Tensor, name: str) -> Image.Image:
    channels_first = isinstance(values, torch.Tensor)
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        array = (values.float() if values.is_floating_point() else values).numpy()  # numpy has no bfloat16
    else:
        array = values
    shape, channels = tuple(array.shape), (1, 2, 3, 4)
    if array.ndim == 3:
        if shape[0] in channels and (channels_first or shape[2] not in channels):
            array = np.moveaxis(array, 0, 2)
        if array.shape[2] == 1:
            array = array[:, :, 0]
    if (
        array.size == 0
        or array.dtype.kind not in "buif"
        or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in channels))
    ):
        raise UserError(
            f"{name}: shape {shape} of {array.dtype}; expected numbers, H x W or H x W x 3 (tensor: 3 x H x W)"
        )
    return _decode(Image.fromarray(np.ascontiguousarray(_to_uint8(array))), name)


def _to_uint8(values: np.ndarray) -> np.ndarray:
    """Numbers of any kind -> 0..255, over the type's own range where known, else the smallest usual one that fits."""
    if values.dtype == np.uint8:
        return values
    floats = np.nan_to_num(values.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(floats.min()), float(floats.max())
    kind = values.dtype.kind
    if kind == "u" and values.dtype.itemsize == 2:
        low, high = 0.0, 65535.0
    elif kind == "b" or (kind == "f" and low >= -0.25 and high <= 1.25):  # resampling overshoots 0..1 a little
        low, high = 0.0, 1.0
    elif low >= 0 and high <= 65535:
        low, high = 0.0, 255.0 if high <= 255 else 65535.0
    scaled = (floats - low) * (255.0 / max(high - low, 1e-12))
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
