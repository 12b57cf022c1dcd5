"""Llama 3.2 Vision against the installed `transformers`: equal where that follows the reference, else shown to depart.

Accounted for in every comparison (measured with 5.17 and 5.23): its taps are the outputs of the layers whose inputs are
meant, so that its indices are moved by one; its text before a picture sees the picture, so that pictures come first.
Where a test of a departure fails with a newer version, that version has mended it.
"""

from typing import Any

import pytest
import torch
from PIL import Image

from multimodal.model import MultimodalModel
from tests.multimodal.tiny_decoders import greedy
from tests.tiny_models import picture
from tests.vision.tiny_mllama import (
    TAPS,
    TILE,
    WIDTH,
    batch_of,
    processor,
    released,
    save_released,
    with_taps_of_reference,
)
from vision.image_modality import ImageModality
from vision.mllama import read_mllama

ONE, WIDE, TALL, FOUR = (
    picture(TILE, TILE, seed=1),
    picture(3 * TILE, TILE, seed=2),
    picture(TILE, 2 * TILE, seed=3),
    picture(2 * TILE, 2 * TILE, seed=4),
)
SAID = "There is a small red circle left of a big blue square."


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> MultimodalModel:
    return read_mllama(save_released(tmp_path_factory.mktemp("mllama")), device="cpu")


@pytest.fixture(scope="module")
def theirs() -> Any:
    return with_taps_of_reference(released())


def positions(mask: torch.Tensor) -> torch.Tensor:
    return (mask.cumsum(1) - 1).clamp(min=0)


@torch.no_grad()
def both_logits(ours: Any, theirs: Any, texts: list[str], pictures: list[list[Image.Image]], **settings: Any) -> Any:
    """Logits of both at real tokens [N, V]."""
    batch, inputs = batch_of(ours, texts, pictures, **settings)
    own = ours.decoder(
        batch.input_ids, batch.attention_mask, memory=ours.memory(batch), position_ids=positions(batch.attention_mask)
    )
    foreign = theirs(**inputs, position_ids=positions(inputs["attention_mask"])).logits
    return own[batch.attention_mask.bool()], foreign[inputs["attention_mask"].bool()]


# ---- equal ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shown", [ONE, WIDE, TALL, FOUR], ids=["1 tile", "1 x 3", "2 x 1", "2 x 2"])
def test_logits_after_a_picture(ours: MultimodalModel, theirs: Any, shown: Image.Image) -> None:
    own, foreign = both_logits(ours, theirs, [f"<|image|>{SAID}"], [[shown]])
    torch.testing.assert_close(own, foreign, rtol=0, atol=1e-5)
    assert float(own.std()) > 0.1


def test_logits_of_several_pictures_in_groups_and_apart(ours: MultimodalModel, theirs: Any) -> None:
    text = "<|image|><|image|>The fox saw a dog.<|image|>Who saw whom?"
    own, foreign = both_logits(ours, theirs, [text], [[ONE, FOUR, WIDE]])
    torch.testing.assert_close(own, foreign, rtol=0, atol=1e-5)


@pytest.mark.parametrize("pad_left", [True, False])
def test_logits_of_a_ragged_batch(ours: MultimodalModel, theirs: Any, pad_left: bool) -> None:
    texts = [f"<|image|>{SAID}", "<|image|>A fox.", "<|image|><|image|>Where is the red circle?"]
    own, foreign = both_logits(ours, theirs, texts, [[WIDE], [ONE], [TALL, FOUR]], pad_left=pad_left)
    torch.testing.assert_close(own, foreign, rtol=0, atol=1e-5)


def test_logits_of_text_alone(ours: MultimodalModel, theirs: Any) -> None:
    own, foreign = both_logits(ours, theirs, [SAID], [[]])
    torch.testing.assert_close(own, foreign, rtol=0, atol=1e-5)


def test_llama3_rope_and_one_of_each_head(tmp_path: Any) -> None:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    }
    model = released(rope_parameters=rope, num_key_value_heads=4)
    own, foreign = both_logits(
        read_mllama(save_released(tmp_path, model), device="cpu"),
        with_taps_of_reference(model),
        [f"<|image|>{SAID}"],
        [[FOUR]],
    )
    torch.testing.assert_close(own, foreign, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 3])
def test_greedy_generation_with_and_without_cache(ours: MultimodalModel, theirs: Any, rows: int) -> None:
    texts = [f"<|image|>{SAID}", "<|image|>A fox.", "<|image|>Who?"][-rows:]
    batch, inputs = batch_of(ours, texts, [[FOUR], [WIDE], [ONE]][-rows:])
    settings: dict[str, Any] = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    memory = ours.memory(batch)
    own = ours.decoder.generate(batch.input_ids, batch.attention_mask, memory=memory, **settings)
    # min_new_tokens forbids the end of text, by hand too.
    end = ours.decoder.lm.generation_config.eos_token_id
    by_hand = _greedy_without(ours, batch, end, steps=8)
    assert torch.equal(own, by_hand) and len(own.unique()) > 1
    for cached in (True, False):
        foreign = theirs.generate(**inputs, **settings, use_cache=cached)[:, batch.input_ids.shape[1] :]
        assert torch.equal(own, foreign), cached
    if rows == 3:
        for row in range(3):
            alone, _ = batch_of(ours, [texts[row]], [[[FOUR], [WIDE], [ONE]][row]])
            one = ours.decoder.generate(alone.input_ids, alone.attention_mask, memory=ours.memory(alone), **settings)
            assert torch.equal(one[0], own[row])


def _greedy_without(ours: MultimodalModel, batch: Any, end: int, *, steps: int) -> torch.Tensor:
    """Greedy decoding by hand without a cache and without one token."""
    head = ours.decoder.lm.lm_head
    hook = head.register_forward_hook(lambda module, inputs, logits: logits.index_fill(-1, torch.tensor([end]), -1e9))
    try:
        with torch.no_grad():
            return greedy(ours.decoder, batch.input_ids, batch.attention_mask, ours.memory(batch), steps)
    finally:
        hook.remove()


# ---- where transformers departs -------------------------------------------------------------------------------------


@torch.no_grad()
def test_departure_its_taps_are_one_layer_late(ours: MultimodalModel) -> None:
    image: Any = ours.modalities["image"]
    batch, inputs = batch_of(ours, ["<|image|>A fox."], [[FOUR]])
    tiles = batch.media["image"].items
    plain = released()
    seen = {n: inputs[n] for n in ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")}
    features = plain.model.vision_model(**seen).last_hidden_state[0, 0]
    final, taps = features[..., :WIDTH], features[..., WIDTH:].unflatten(-1, (WIDTH, len(TAPS))).unbind(-1)
    own = image.encoder(tiles).tokens.view(4, 5, 1 + len(TAPS), WIDTH).unbind(2)
    _, later = image.encoder.forward_intermediates(tiles, tuple(tap + 1 for tap in TAPS))
    torch.testing.assert_close(own[0], final, rtol=0, atol=1e-5)
    for meant, late, found in zip(own[1:], later, taps, strict=True):
        torch.testing.assert_close(late, found, rtol=0, atol=1e-5)
        assert float((meant - found).abs().max()) > 0.1


def test_departure_its_text_before_a_picture_sees_it(ours: MultimodalModel, theirs: Any) -> None:
    text = f"{SAID}<|image|>A fox."
    own, foreign = both_logits(ours, theirs, [text], [[ONE]])
    other, elsewhere = both_logits(ours, theirs, [text], [[picture(TILE, TILE, seed=9)]])
    before = processor().tokenizer.encode(SAID, add_special_tokens=False)
    assert torch.equal(own[: len(before)], other[: len(before)])
    assert float((foreign - elsewhere)[: len(before)].abs().max()) > 1e-3
    assert float((own - foreign).abs().max()) > 1e-3


def test_departure_without_a_mask_it_is_causal_between_text_and_picture(ours: MultimodalModel) -> None:
    batch, inputs = batch_of(ours, [f"<|image|>{SAID}"], [[FOUR]])
    inputs = {name: value for name, value in inputs.items() if name != "cross_attention_mask"}
    with torch.no_grad():
        own = ours.decoder(batch.input_ids, batch.attention_mask, memory=ours.memory(batch))
        eager, sdpa = (with_taps_of_reference(released(attention=kind))(**inputs).logits for kind in ("eager", "sdpa"))
    torch.testing.assert_close(own, eager, rtol=0, atol=1e-5)
    assert float((sdpa - eager).abs().max()) > 0.01


# ---- numerics -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_reference_sees_padding_and_strict_does_not(ours: MultimodalModel, tmp_path: Any) -> None:
    reference: Any = ours.modalities["image"]
    strict: Any = read_mllama(save_released(tmp_path), numerics="strict", device="cpu").modalities["image"]
    assert strict.encoder.class_token_D.equal(reference.encoder.class_token_D)

    def features(modality: ImageModality, *shown: Image.Image) -> torch.Tensor:
        return modality.encoder(modality.collate([modality.prepare(p) for p in shown])).split()[0]

    for modality in (reference, strict):  # neighbours are no padding
        torch.testing.assert_close(features(modality, ONE), features(modality, ONE, FOUR, WIDE), rtol=0, atol=1e-5)
    before = features(reference, ONE)
    assert float((before - features(strict, ONE)).abs().max()) > 1e-2
    rows = {"the second tile of 1 x 1: padding": 5, "the last of 4 x 1: of no tile here": 35}
    changes = []
    for row in rows.values():
        table = reference.encoder.pre_tile.table_RD
        kept = table[row].clone()
        table[row] = -kept
        changes.append(float((features(reference, ONE) - before).abs().max()))
        table[row] = kept
    assert changes[0] > 1e-3 and changes[1] == 0, dict(zip(rows, changes, strict=True))
