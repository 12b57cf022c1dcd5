"""A clip on paper: its sampled frames in a row, and under them once for each word, bright where the word looked."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

MOST_FRAMES = 16
"""That can be told apart on a page."""
_GAP = 4
_DIM = 0.15  # brightness of a frame that nothing looked at
_TEXT = (30, 32, 38)


def draw_film_strip(
    frames: Sequence[Image.Image],
    labels: Sequence[str] = (),
    *,
    words: Sequence[str] = (),
    weights_WF: Tensor | None = None,
    side: int = 72,
    most: int = MOST_FRAMES,
) -> Image.Image:
    """The frames of a clip side by side; of more than `most`, one stands for several, with all that looked at them.

    Args:
        frames: of one clip, in order.
        labels: a text above each frame, such as its time; none: no texts.
        words: one row of frames each.
        weights_WF: how much each word looked at each frame; each word is scaled to its own peak.
        side: longer side of a frame in pixels.

    Raises: ValueError if there is not one row of weights for each word, or one weight for each frame.
    """
    shape = (0, len(frames)) if weights_WF is None else tuple(weights_WF.shape)
    if shape != (len(words), len(frames)) or not frames:
        raise ValueError(f"weights {shape} for {len(words)} words and {len(frames)} frames")
    if len(frames) > most:
        runs = [(round(i * len(frames) / most), round((i + 1) * len(frames) / most)) for i in range(most)]
        middles = [(start + end) // 2 for start, end in runs]
        frames, labels = [frames[at] for at in middles], [labels[at] for at in middles] if labels else ()
        if weights_WF is not None:
            weights_WF = torch.stack([weights_WF[:, start:end].sum(1) for start, end in runs], dim=1)
    font = ImageFont.load_default(13)
    small = [_scaled(frame.convert("RGB"), side) for frame in frames]
    width, height = max(frame.width for frame in small), max(frame.height for frame in small)
    left = _GAP + max((round(font.getlength(word)) + _GAP for word in words), default=0)
    top = _GAP + (18 if labels else 0)
    sheet = Image.new("RGB", (left + len(small) * (width + _GAP), top + (1 + len(words)) * (height + _GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, frame in enumerate(small):
        x = left + column * (width + _GAP)
        if labels:
            draw.text((x + width // 2, _GAP), labels[column], fill=_TEXT, font=font, anchor="ma")
        sheet.paste(frame, (x, top))
    for row, word in enumerate(words):
        y = top + (1 + row) * (height + _GAP)
        draw.text((left - _GAP, y + height // 2), word, fill=_TEXT, font=font, anchor="rm")
        assert weights_WF is not None
        strengths = (weights_WF[row] / weights_WF[row].max().clamp(min=1e-12)).tolist()
        for column, (frame, strength) in enumerate(zip(small, strengths, strict=True)):
            lit = np.asarray(frame, np.float32) * (_DIM + (1 - _DIM) * strength)
            sheet.paste(Image.fromarray(lit.astype(np.uint8)), (left + column * (width + _GAP), y))
    return sheet


def _scaled(frame: Image.Image, side: int) -> Image.Image:
    scale = side / max(frame.size)
    return frame.resize((max(1, round(frame.width * scale)), max(1, round(frame.height * scale))))


def stack_strips(strips: Sequence[Image.Image]) -> Image.Image:
    """Strips of several clips below each other."""
    sheet = Image.new("RGB", (max(s.width for s in strips), sum(s.height for s in strips)), "white")
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    return sheet
