"""What is learnt and asked, and the proof that learning works: pictures are told apart, and the controls fail."""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from multimodal.batch import Sample, Turn
from multimodal.decoder import FrozenDecoder
from multimodal.loss import IGNORE
from multimodal.model import MultimodalModel
from multimodal.tokenizer import train_tokenizer
from multimodal.turns import Turns
from tests.tiny_models import CONFIG, TILE, ask, decoder_for, picture, tiny_model
from vision.caption_data import CaptionImages, read_captions
from vision.captioning import (
    CAPTION_PROMPT,
    DETAIL_PROMPT,
    Asked,
    CaptionSamples,
    SceneSamples,
    ask_captions,
    ask_scenes,
    evaluate_both,
    evaluate_with_controls,
)
from vision.scene_language import inventory
from vision.scenes import SceneMix, scene_sample
from vision.tiling import Tiles


@pytest.fixture(scope="module")
def model() -> MultimodalModel:
    """Shared; not to be changed."""
    return tiny_model()


def images(model: MultimodalModel, folder: Path, split: str = "train") -> CaptionImages:
    return CaptionImages(read_captions(folder, split=split), model.modalities["image"].tiling)  # type: ignore[arg-type]


def decoded(model: MultimodalModel, ids: Sequence[int]) -> str:
    known = [i for i in ids if i < model.decoder.vocab_size]
    return str(model.tokenizer.decode(known, skip_special_tokens=True)).strip()


# ---- samples ------------------------------------------------------------------------------------------------------


def test_a_turn_is_that_of_the_conversation(model: MultimodalModel) -> None:
    turns = Turns(model)
    for text, answer, pictures in (("Who?", "A fox.", 1), ("Who?", None, 2), ("Who?", "A dog.", 1), ("Where?", "", 0)):
        expected = model.sample(ask(*[picture() for _ in range(pictures)], text), answer).turns[0]
        assert turns(text, answer, media=pictures) == expected


def test_captions_of_a_picture_become_turns_about_it(model: MultimodalModel, captions_folder: Path) -> None:
    found = images(model, captions_folder)
    for number in (1, 2, 5):
        samples = CaptionSamples(model, found, captions=number)
        assert len(samples) == 4
        sample = samples.sample(0, random.Random(3))
        assert sample is not None and len(sample.turns) == min(number, 2) and len(sample.media["image"]) == 1
        answers = {decoded(model, turn.answer) for turn in sample.turns}
        assert len(answers) == len(sample.turns) and answers <= set(found.records[0].captions)
        assert all(decoded(model, turn.prompt) == CAPTION_PROMPT for turn in sample.turns)


def test_the_text_of_a_sample_can_be_had_without_its_pictures(
    model: MultimodalModel, captions_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenes = SceneSamples(model, count=3, size=TILE, seed=1, questions=2, inventory=True, mix=SceneMix(unnamed=0.5))
    captioned = CaptionSamples(model, images(model, captions_folder), captions=1)
    sample = captioned.sample(0, random.Random(4))
    assert sample is not None
    expected = [scenes.sample(index, random.Random(index)).turns for index in range(3)]
    monkeypatch.setattr(type(model.modalities["image"]), "prepare", None)
    monkeypatch.setattr(CaptionImages, "_item", None)
    assert [scenes.text(index, random.Random(index)) for index in range(3)] == expected
    every = captioned.text(0, random.Random(4))
    assert {decoded(model, turn.answer) for turn in every} == set(captioned.images.records[0].captions)
    assert sample.turns[0] in every


def test_a_caption_is_drawn_anew_and_equal_generators_draw_equal_ones(
    model: MultimodalModel, captions_folder: Path
) -> None:
    samples = CaptionSamples(model, images(model, captions_folder))

    def drawn(seed: int) -> list[int]:
        sample = samples.sample(0, random.Random(seed))
        assert sample is not None
        return sample.turns[0].answer

    assert {tuple(drawn(seed)) for seed in range(8)} == {tuple(drawn(seed)) for seed in range(8)}
    assert len({tuple(drawn(seed)) for seed in range(8)}) == 2


def test_a_question_is_asked_in_place_of_the_prompt_and_of_all_its_pictures(
    model: MultimodalModel, tmp_path: Path
) -> None:
    for name in "ab":
        picture().save(tmp_path / f"{name}.png")
    (tmp_path / "m.jsonl").write_text('{"images": ["a.png", "b.png"], "question": "Who?", "answer": "A fox."}\n')
    found = CaptionImages(read_captions(tmp_path / "m.jsonl"), model.modalities["image"].tiling)  # type: ignore[arg-type]
    sample = CaptionSamples(model, found).sample(0, random.Random(0))
    assert sample is not None and len(sample.media["image"]) == 2
    (turn,) = sample.turns
    assert turn.media == {"image": (0, 1)} and decoded(model, turn.prompt) == "Who?"
    assert decoded(model, turn.answer) == "A fox."


def test_words_already_said_may_be_read_wrong(model: MultimodalModel, captions_folder: Path) -> None:
    found = images(model, captions_folder)

    def turns(share: float) -> list[Turn]:
        samples = (
            CaptionSamples(model, found, misread=share).sample(0, random.Random(1)),
            SceneSamples(model, count=1, size=TILE, seed=0, questions=2, misread=share).sample(0, random.Random(1)),
        )
        return [turn for sample in samples if sample is not None for turn in sample.turns]

    for right, wrong in zip(turns(0.0), turns(0.5), strict=True):
        assert right.misread is None and wrong.misread is not None
        assert replace(wrong, misread=None) == right and len(wrong.misread) == len(right.answer)
        assert max(wrong.misread) < model.decoder.vocab_size
    assert any(turn.misread != turn.answer for turn in turns(0.5))


def test_a_broken_picture_is_no_sample(model: MultimodalModel, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"not a picture")
    (tmp_path / "captions.tsv").write_text("image\tcaption\na.png\tA fox.\n")
    found = CaptionImages(read_captions(tmp_path), model.modalities["image"].tiling)  # type: ignore[arg-type]
    assert CaptionSamples(model, found).sample(0, random.Random(0)) is None


def test_scenes_are_a_function_of_index_and_generator(model: MultimodalModel) -> None:
    samples = SceneSamples(model, count=5, size=TILE, seed=1, questions=2)
    assert len(samples) == 5
    a, b = (samples.sample(2, random.Random(7)) for _ in range(2))
    assert a.turns == b.turns and torch.equal(a.media["image"][0].pixels, b.media["image"][0].pixels)
    assert len(a.turns) == 3 and decoded(model, a.turns[0].prompt) == CAPTION_PROMPT
    assert samples.sample(2, random.Random(8)).turns != a.turns
    batch = model.collate([a, samples.sample(3, random.Random(7))])
    assert batch.input_ids.shape[0] == 6 and len(batch.media["image"].items) == 2
    for row, turn in zip(batch.targets, (*a.turns,), strict=False):
        assert row[row != IGNORE].tolist() == turn.answer


def test_scenes_may_be_described_in_full(model: MultimodalModel) -> None:
    mix = SceneMix(unnamed_first=1)
    samples = SceneSamples(model, count=2, size=TILE, seed=1, questions=1, inventory=True, mix=mix)
    turns = samples.sample(1, random.Random(0)).turns
    assert [decoded(model, turn.prompt) for turn in turns[:2]] == [CAPTION_PROMPT, DETAIL_PROMPT] and len(turns) == 3
    scene = scene_sample(1, seed=1, split="train", size=TILE, mix=mix)[1]
    assert decoded(model, turns[1].answer) == inventory(scene)


def test_held_out_scenes_are_asked_of_combinations_never_seen(model: MultimodalModel) -> None:
    captions, questions = ask_scenes(model, count=6, size=TILE, seed=2)
    again, _ = ask_scenes(model, count=6, size=TILE, seed=2)
    assert [a.references for a in captions] == [a.references for a in again]
    assert len(captions) == 6 and [q.source for q in questions] == [f"scene {i // 2}" for i in range(12)]
    seen = [scene_sample(i, seed=2, split="held_out", size=TILE)[1] for i in range(6)]
    assert [a.scene for a in captions] == seen


def test_all_captions_of_a_picture_are_references(model: MultimodalModel, captions_folder: Path) -> None:
    found = images(model, captions_folder, "test")
    samples = [found.sample(i, random.Random(i)) for i in range(3)]
    asked = ask_captions([s for s in samples if s is not None])
    assert [a.references for a in asked] == [r.captions for r in found.records]
    assert [a.source for a in asked] == [r.id for r in found.records] and asked[0].prompt == CAPTION_PROMPT


# ---- evaluation ---------------------------------------------------------------------------------------------------


def asked_of(model: MultimodalModel, pictures: Sequence[Image.Image], texts: Sequence[str]) -> list[Asked]:
    prepare: Callable[[Image.Image], Tiles] = model.modalities["image"].prepare  # type: ignore[assignment]
    return [
        Asked((prepare(image),), CAPTION_PROMPT, (text,), f"picture {i}")
        for i, (image, text) in enumerate(zip(pictures, texts, strict=True))
    ]


def test_all_pictures_of_a_record_are_shown_and_none_of_them_to_its_own_control(
    model: MultimodalModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Several questions about one picture are several records; each picture stands with another, too."""
    for name in "abc":
        picture(seed=ord(name)).save(tmp_path / f"{name}.png")
    rows = [([f"{name}.png"], f"{name}{i}") for name in "abc" for i in range(4)] + [(["a.png", "b.png"], "ab")]
    lines = [json.dumps({"images": names, "question": f"Who is {q}?", "answer": q}) for names, q in rows]
    (tmp_path / "some.jsonl").write_text("\n".join(lines))
    found = CaptionImages(read_captions(tmp_path / "some.jsonl"), model.modalities["image"].tiling)  # type: ignore[arg-type]
    samples = [found.sample(i, random.Random(i)) for i in range(len(found))]
    asked = ask_captions([s for s in samples if s is not None])
    assert [len(one.images) for one in asked] == [1] * 12 + [2]
    shown: list[list[torch.Tensor]] = []

    def generate(samples: Sequence[Sample], **options: Any) -> list[str]:
        for sample in samples:
            assert len(sample.turns[0].media["image"]) == len(sample.media["image"])
            shown.append([tiles.pixels for tiles in sample.media["image"]])
        return ["text"] * len(samples)

    monkeypatch.setattr(model, "generate", generate)
    (found_answers,) = evaluate_both(model, asked, batch_size=4)
    assert set(found_answers.scores) == {"qa_accuracy"}
    true, shuffled, blank = shown[:13], shown[13:26], shown[26:]
    for one, mine, anothers, nothing in zip(asked, true, shuffled, blank, strict=True):
        own = [tiles.pixels for tiles in one.images]
        assert all(map(torch.equal, mine, own)) and len(mine) == len(own) == len(nothing)
        assert len(anothers) != len(own) or not all(map(torch.equal, anothers, own))
        assert not any(pixels.any() for pixels in nothing)


def test_scenes_get_every_score_and_pictures_those_of_captions(
    model: MultimodalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    captions, questions = ask_scenes(model, count=3, size=TILE, seed=2)
    monkeypatch.setattr(model, "generate", lambda samples, **_: ["a red circle"] * len(samples))
    assert set(evaluate_with_controls(model, captions).scores) == {"cider_d", "bleu4", "object_f1"}
    both = evaluate_both(model, [*questions, *captions])
    assert [len(one.samples) for one in both] == [3, 6] and [len(one.scores) for one in both] == [3, 1]
    with pytest.raises(ValueError, match="scores of their own"):
        evaluate_with_controls(model, [*captions, *questions])
    plain = [replace(one, scene=None) for one in captions]
    assert set(evaluate_with_controls(model, plain).scores) == {"cider_d", "bleu4"}
    assert set(evaluate_with_controls(model, questions).scores) == {"qa_accuracy"}


COLOURS = {
    (230, 30, 30): "a ripe tomato on a plate",
    (20, 40, 220): "the open sea at noon",
    (30, 200, 40): "fresh grass after rain",
    (240, 230, 30): "seven lemons in one bowl",
    (250, 250, 250): "snow covers every roof",
    (5, 5, 5): "nobody sees their way tonight",
    (150, 30, 170): "violets grow by our door",
    (250, 140, 20): "an orange cat sleeps here",
}


def learn(step: Callable[[], torch.Tensor], parameters: Any, *, steps: int, **settings: Any) -> None:
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.0, **settings)
    for _ in range(steps):
        optimizer.zero_grad()
        step().backward()
        optimizer.step()


def model_of_eight_captions() -> tuple[MultimodalModel, list[Asked]]:
    """A new image adapter on a decoder that knows eight captions by heart, and the pictures that they belong to."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer([*COLOURS.values(), CAPTION_PROMPT] * 3, vocab_size=400)
    lm = decoder_for(tokenizer)
    begin = tokenizer.apply_chat_template(
        [{"role": "user", "content": CAPTION_PROMPT}], tokenize=False, add_generation_prompt=True
    )
    text = tokenizer([f"{begin}{caption}<|eot_id|>" for caption in COLOURS.values()], return_tensors="pt", padding=True)
    labels = text["input_ids"].masked_fill(text["attention_mask"] == 0, IGNORE)
    learn(lambda: lm(**text, labels=labels).loss, lm.parameters(), steps=120, lr=5e-3)

    model = MultimodalModel(FrozenDecoder(lm), tokenizer, decoder_name="tiny")
    model.add("image", CONFIG)
    return model, asked_of(
        model, [Image.new("RGB", (TILE, TILE), colour) for colour in COLOURS], list(COLOURS.values())
    )


def groups_of(model: MultimodalModel) -> list[dict[str, Any]]:
    rates = {"adapter": 3e-3, "gates": 3e-2, "encoder": 2e-3, "late": 2e-3, "tokens": 1e-3}
    return [{"params": [p for _, p in named], "lr": rates[part]} for part, named in model.parts().items()]


def test_an_adapter_learns_to_tell_pictures_apart_that_the_frozen_decoder_cannot() -> None:
    model, asked = model_of_eight_captions()
    turns = Turns(model)
    samples = [Sample({"image": one.images}, (turns(one.prompt, one.references[0]),)) for one in asked]
    batch, before = model.collate(samples), model.decoder.sha256()

    def step() -> torch.Tensor:
        loss, tokens = model.loss(batch)
        return loss / tokens

    learn(step, groups_of(model), steps=120)

    result = evaluate_with_controls(model, asked, max_new_tokens=16)
    right = [said == one.references[0] for said, one in zip(result.predictions, asked, strict=True)]
    assert sum(right) >= 7, list(zip(result.predictions, COLOURS.values(), strict=True))
    assert sum(said == one.references[0] for said, one in zip(result.shuffled, asked, strict=True)) <= 1
    assert len(set(result.blank)) == 1, "the blank picture is the same for all"
    scores = result.scores["cider_d"]
    assert scores.score > 2 * scores.shuffled and scores.score > 2 * scores.blank
    assert model.decoder.sha256() == before
