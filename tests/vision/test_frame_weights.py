"""Weights of frames: what a word sees sums to one, and lies where the weights were put."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.tiny_models import ask, clip_file, picture, tiny_video_model
from vision.film_strip import draw_film_strip, stack_strips
from vision.frame_weights import record_resampler, word_frame_weights
from vision.video_report import attention_strips


def test_weights_are_shares_of_the_clips_that_a_word_sees(tmp_path: Path) -> None:
    model = tiny_video_model()
    clip = clip_file(tmp_path / "a.mp4", frames=9)
    parts = ([picture(seed=i) for i in range(5)], clip, picture(seed=9), "Who?")
    words, weights = word_frame_weights(model, ask(*parts), "A fox is here.")
    assert words == ["A", "fox", "is", "here."]
    assert [tuple(w.shape) for w in weights] == [(4, 5), (4, 6)]
    torch.testing.assert_close(torch.cat(weights, dim=1).sum(1), torch.ones(4))
    strip = attention_strips(model, ask(*parts), "A fox.")
    assert isinstance(strip, Image.Image) and strip.height > strip.width / 4


def test_recorded_weights_are_those_of_the_layer() -> None:
    model = tiny_video_model()
    modality: Any = model.modalities["video"]
    layer = modality.adapter.aggregator.layers[0]
    z, x = torch.randn(2, 3, 16), torch.randn(2, 7, 16)
    mask = torch.ones(2, 1, 1, 7, dtype=torch.bool)
    mask[1, ..., 4:] = False
    with record_resampler([layer]) as looks, torch.no_grad():
        layer(z, x, mask)
    (weights,) = looks
    assert weights.shape == (2, 3, 7) and not weights[1, :, 4:].any()
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3))
    # Each head's values, seen with these weights, are its output where the latents do not look at each other.
    q, k, _ = layer.project(z, x)
    expected = (q @ k[:, :, :7].transpose(-1, -2) / q.shape[-1] ** 0.5).masked_fill(~mask, -1e9).softmax(-1).mean(1)
    torch.testing.assert_close(weights, expected)


def test_a_strip_is_bright_where_the_word_looked() -> None:
    frames = [Image.new("RGB", (20, 10), "white")] * 3
    weights = torch.tensor([[0.0, 0.1, 0.9], [0.5, 0.0, 0.0]])
    strip = draw_film_strip(frames, ["0", "1", "2"], words=("a", "word"), weights_WF=weights, side=20)
    plain = draw_film_strip(frames, side=20)
    assert strip.width > plain.width and strip.height > 2 * plain.height
    assert stack_strips([strip, plain]).size == (strip.width, strip.height + plain.height)
    with pytest.raises(ValueError, match="1 words and 3 frames"):
        draw_film_strip(frames, words=("a",), weights_WF=weights)


def test_of_many_frames_one_stands_for_several_with_what_looked_at_them() -> None:
    frames = [Image.new("RGB", (8, 8), (200, 200, number)) for number in range(50)]
    labels = [str(number) for number in range(50)]
    weights = torch.zeros(1, 50)
    weights[0, 49] = weights[0, 47] = 0.5
    strip = draw_film_strip(frames, labels, words=["w"], weights_WF=weights, side=8, most=10)
    few = [frames[number] for number in range(2, 50, 5)]
    added = torch.tensor([[0.0] * 9 + [1.0]])
    expected = draw_film_strip(few, labels[2::5], words=["w"], weights_WF=added, side=8)
    assert strip.size == expected.size and strip.tobytes() == expected.tobytes()
