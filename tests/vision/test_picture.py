"""Every kind of picture file that people have: shown as it looks, or refused in one line that names it."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from multimodal.errors import UserError
from vision import picture
from vision.picture import open_picture

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def near(color: object, expected: tuple[int, int, int], by: int = 3) -> bool:
    return bool(np.abs(np.array(color, dtype=int) - expected).max() <= by)


def refuses(source: Path | bytes, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        open_picture(source)
    message = str(caught.value)
    assert "\n" not in message and "expected" in message
    for word in (str(source) if isinstance(source, Path) else "bytes", *words):
        assert word in message


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "ppm"])
def test_lossless_files_come_back_exactly(tmp_path: Path, suffix: str) -> None:
    noise(13, 7).save(tmp_path / f"a.{suffix}")
    opened = open_picture(str(tmp_path / f"a.{suffix}"))
    assert opened.mode == "RGB" and np.array_equal(opened, noise(13, 7))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(tmp_path: Path, orientation: int) -> None:
    upright = Image.new("RGB", (48, 32), BLUE)
    upright.paste(RED, (0, 0, 16, 16))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transposition that a camera would have made
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.jpg", exif=exif, quality=95, subsampling=0)
    opened = open_picture(tmp_path / "a.jpg")
    assert opened.size == (48, 32)
    assert near(opened.getpixel((4, 4)), RED, 8) and near(opened.getpixel((40, 28)), BLUE, 8)


def test_damaged_exif_does_not_lose_the_picture(tmp_path: Path) -> None:
    noise(8, 8).save(tmp_path / "a.jpg", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7f")
    assert open_picture(tmp_path / "a.jpg").size == (8, 8)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bit_grey_keeps_its_brightness(tmp_path: Path, suffix: str) -> None:
    levels = np.array([[0, 257 * 64, 257 * 128, 65535]], dtype=np.uint16)
    Image.fromarray(levels).save(tmp_path / f"a.{suffix}")
    assert np.array(open_picture(tmp_path / f"a.{suffix}"))[0, :, 1].tolist() == [0, 64, 128, 255]


@pytest.mark.parametrize(
    "values",
    [
        np.array([[0, 0.5, 1]], np.float32),
        np.array([[0, 127.5, 255]], np.float32),
        np.array([[0, 32768, 65535]], np.int32),
    ],
)
def test_float_and_32_bit_files_are_scaled(tmp_path: Path, values: np.ndarray) -> None:
    Image.fromarray(values).save(tmp_path / "a.tiff")
    assert near(np.array(open_picture(tmp_path / "a.tiff"))[0, :, 0], (0, 128, 255), 1)


def test_floats_outside_the_usual_ranges_are_stretched_and_not_a_number_is_no_problem() -> None:
    values = np.array([[-2.0, 0.0, 2.0, np.nan, np.inf]], dtype=np.float32)
    assert np.array(open_picture(values))[0, :, 0].tolist()[:3] == [0, 128, 255]


def test_cmyk_and_grey_and_black_and_white(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), RED).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    assert near(open_picture(tmp_path / "cmyk.jpg").getpixel((8, 8)), RED, 8)
    for mode in ("L", "1"):
        Image.new("RGB", (16, 16), WHITE).convert(mode).save(tmp_path / "grey.png")
        assert open_picture(tmp_path / "grey.png").getpixel((8, 8)) == WHITE


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa"])
def test_transparency_is_shown_on_white(mode: str) -> None:
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 2, 4))
    opened = open_picture(image.convert("RGBA" if mode == "RGBA" else mode))
    assert opened.getpixel((0, 0)) == (0, 0, 0) and opened.getpixel((3, 0)) == WHITE


def test_half_transparent_is_mixed_with_white() -> None:
    assert near(open_picture(Image.new("RGBA", (2, 2), (255, 0, 0, 128))).getpixel((0, 0)), (255, 127, 127), 1)


def test_palettes_with_and_without_a_transparent_colour(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([*GREEN, *BLUE])
    image.paste(0, (0, 0, 2, 4))
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "clear.png", transparency=0)
    image.save(tmp_path / "clear.gif", transparency=0)
    assert open_picture(tmp_path / "plain.png").getpixel((0, 0)) == GREEN
    for name in ("clear.png", "clear.gif"):
        assert open_picture(tmp_path / name).getpixel((0, 0)) == WHITE
        assert open_picture(tmp_path / name).getpixel((3, 0)) == BLUE


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tiff"])
def test_animations_show_their_first_frame(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in (RED, GREEN, BLUE)]
    extra = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], **extra)
    assert open_picture(tmp_path / f"a.{suffix}").getpixel((4, 4)) == RED


@pytest.mark.parametrize("size", [(1, 1), (10000, 20), (20, 10000), (1, 3000)])
def test_extreme_sizes_are_legal(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, GREEN).save(tmp_path / "a.png")
    assert open_picture(tmp_path / "a.png").size == size


def test_huge_jpeg_is_decoded_small_and_still_upright(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (1601, 801), RED).save(tmp_path / "a.jpg", exif=exif)
    assert open_picture(tmp_path / "a.jpg").size == (801, 1601)
    monkeypatch.setattr(picture, "DRAFT_PIXELS", 400_000)
    width, height = open_picture(tmp_path / "a.jpg").size
    assert width * height <= 410_000 and abs(height / width - 1601 / 801) < 0.02


def promise(path: Path, width: int, height: int) -> Path:
    """A small PNG whose header claims to be large: decoding it would fail, so only reading the header can refuse it."""
    buffer = io.BytesIO()
    Image.new("1", (1, 1)).save(buffer, "png")
    data = bytearray(buffer.getvalue())
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)
    return path


def test_over_the_pixel_limit_is_refused_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for width in (20_000, 60_000):
        refuses(promise(tmp_path / "bomb.png", width, 15_000), "200 megapixels")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # switched off by another library
    refuses(tmp_path / "bomb.png", "60000 x 15000")


def test_between_pillows_limit_and_ours_there_is_no_warning(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    refuses(promise(tmp_path / "large.png", 13_000, 15_000), "truncated")  # it gets as far as decoding
    assert not recwarn.list


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp", "tiff"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_truncated_files_are_refused(tmp_path: Path, suffix: str, part: float) -> None:
    buffer = io.BytesIO()
    noise(64, 64).save(buffer, {"jpg": "jpeg"}.get(suffix, suffix))
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(buffer.getvalue()[: int(len(buffer.getvalue()) * part)])
    refuses(path)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_things_that_are_no_picture_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("not a picture at all")
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "a.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    refuses(tmp_path / "text.jpg", "not a picture", "not a pi")
    refuses(tmp_path / "empty.png", "empty")
    refuses(tmp_path / "folder.png", "folder")
    refuses(tmp_path / "absent.png", "no such file")
    refuses(tmp_path / "text.jpg" / "deeper.png", "Not a directory")
    refuses(tmp_path / "a.eps", "not a picture")
    refuses(b"\x00" * 32, "not a picture")
    refuses(b"", "empty")
    refuses(Path("/dev/null"), "not a regular file")


def test_png_with_a_flipped_bit_is_refused(tmp_path: Path) -> None:
    noise(32, 32).save(tmp_path / "a.png")
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "a.png").write_bytes(data)
    refuses(tmp_path / "a.png", "broken")


def test_pil_image_is_not_changed_and_a_truncated_one_is_refused(tmp_path: Path) -> None:
    given = noise(9, 5, "L")
    opened = open_picture(given)
    assert given.mode == "L" and opened.mode == "RGB" and opened.size == (9, 5)
    noise(64, 64).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:1500])
    with Image.open(tmp_path / "a.jpg") as lazy, pytest.raises(UserError, match="cat 7: truncated"):
        open_picture(lazy, name="cat 7")
    with pytest.raises(UserError, match="0 x 0"):
        open_picture(Image.new("RGB", (0, 0)))


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.uint16, torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.bool]
)
def test_arrays_and_tensors_of_every_type_and_order(dtype: torch.dtype) -> None:
    full = {torch.uint8: 255, torch.uint16: 65535}.get(dtype, 1)
    pixels = torch.zeros(5, 6, 3)
    pixels[:, 3:, 2] = full  # right half blue
    tensor = pixels.to(dtype)
    given = [tensor, tensor.permute(2, 0, 1)] + (
        [] if dtype == torch.bfloat16 else [tensor.numpy(), tensor.permute(2, 0, 1).numpy()]
    )
    for values in given:
        opened = open_picture(values)
        assert opened.size == (6, 5)
        assert opened.getpixel((0, 0)) == (0, 0, 0) and opened.getpixel((5, 3)) == BLUE


def test_arrays_with_other_channels() -> None:
    assert open_picture(np.full((4, 6), 255, np.uint8)).getpixel((0, 0)) == WHITE
    assert open_picture(np.full((4, 6, 1), 1.0)).getpixel((0, 0)) == WHITE
    assert open_picture(np.zeros((4, 6, 4), np.uint8)).getpixel((0, 0)) == WHITE
    assert open_picture(torch.zeros(2, 5, 7, dtype=torch.uint8)).size == (7, 5)


@pytest.mark.parametrize("shape", [(3,), (5, 6, 7), (2, 3, 8, 8), (0, 4, 3), (4, 0)])
def test_arrays_of_a_wrong_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="shape"):
        open_picture(np.zeros(shape, np.float32))
    with pytest.raises(UserError, match="shape"):
        open_picture(np.zeros((4, 4), complex))
