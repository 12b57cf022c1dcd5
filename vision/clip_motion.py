"""Motion for an image encoder, which sees one frame at a time: a frame's neighbours in time as its colours."""

from collections.abc import Sequence

from PIL import Image


def neighbours_as_colours(frames: Sequence[Image.Image]) -> list[Image.Image]:
    """For each frame a picture whose red, green and blue are the grey of the frame before it, its own, and the grey of
    the frame after it; the first and the last frame stand in for what lies beyond them."""
    grey = [frame.convert("L") for frame in frames]
    padded = [grey[0], *grey, grey[-1]]
    return [Image.merge("RGB", padded[i : i + 3]) for i in range(len(grey))]
