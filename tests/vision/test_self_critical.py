"""Self-critical training: its gradient is that of REINFORCE, and rewards alone teach which caption a picture has."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from multimodal.batch import Sample
from multimodal.loss import IGNORE
from multimodal.metrics import CiderD
from multimodal.model import MultimodalModel
from multimodal.turns import Turns
from tests.tiny_models import picture, tiny_model
from tests.vision.test_captioning import groups_of, images, learn, model_of_eight_captions
from vision.caption_data import read_captions
from vision.captioning import CAPTION_PROMPT, evaluate_with_controls
from vision.self_critical import DRAW, END, Referenced, ReferencedPictures, SelfCriticalTask, advantages

REFERENCES = [("a fox on a hill", "the fox"), ("two dogs", "a dog and a dog")]
DRAWS = 3


@pytest.fixture(scope="module")
def model() -> MultimodalModel:
    """With open gates; not to be changed."""
    return tiny_model()


def asked_of(model: MultimodalModel) -> list[Referenced]:
    turn = Turns(model)(CAPTION_PROMPT, None)
    tiles = [model.modalities["image"].prepare(picture(seed=i)) for i in range(2)]  # type: ignore[operator]
    return [Referenced(Sample({"image": (t,)}, (turn,)), r) for t, r in zip(tiles, REFERENCES, strict=True)]


def task_of(model: MultimodalModel, reward: Callable[[str], float], *, draws: int = DRAWS) -> SelfCriticalTask:
    """With a reward of each caption's own: those of a random decoder have no n-gram in common with any."""
    task = SelfCriticalTask(model, REFERENCES, draws=draws).train()

    def score(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
        return [float(reward(text)) for text in predictions]

    task.score = score  # type: ignore[assignment]
    return task


def parameters_of(model: MultimodalModel) -> list[torch.nn.Parameter]:
    return [p for _, named in model.parts().items() for _, p in named]


def test_an_advantage_is_over_the_mean_of_the_others() -> None:
    found = advantages(torch.tensor([1.0, 2.0, 6.0, 4.0, 4.0, 4.0]), draws=3)
    assert found.tolist() == [1 - 4, 2 - 3.5, 6 - 1.5, 0, 0, 0]
    with pytest.raises(ValueError, match="1 captions of a picture; expected 2 or more"):
        SelfCriticalTask(tiny_model(), REFERENCES, draws=1)


def test_the_gradient_is_that_of_reinforce(model: MultimodalModel) -> None:
    asked = asked_of(model)
    task = task_of(model, len)
    torch.manual_seed(5)
    loss, count = task.loss(asked)
    parameters = parameters_of(model)
    found = torch.autograd.grad(loss, parameters, allow_unused=True)

    torch.manual_seed(5)
    ids = model.generate_ids([one.asked for one in asked], num_return_sequences=DRAWS, **DRAW)
    texts = model.tokenizer.batch_decode(ids, skip_special_tokens=True)
    end = model.decoder.lm.generation_config.eos_token_id
    rewards = [float(len(f"{t} {END}" if one[-1] == end else t)) for t, one in zip(texts, ids, strict=True)]
    assert count == len(ids) == 2 * DRAWS and task.log_values()["reward"] == pytest.approx(sum(rewards) / count)
    total = torch.zeros(())
    for number, (caption, reward) in enumerate(zip(ids, rewards, strict=True)):
        first = number // DRAWS * DRAWS
        others = [rewards[i] for i in range(first, first + DRAWS) if i != number]
        one = asked[number // DRAWS].asked
        rows = model.collate([Sample(one.media, (replace(one.turns[0], answer=caption),))])
        logits = model.decoder(rows.input_ids, rows.attention_mask, memory=model.memory(rows))
        said = F.cross_entropy(logits[0], rows.targets[0], ignore_index=IGNORE, reduction="sum")
        total = total + (reward - sum(others) / len(others)) * said
    expected = torch.autograd.grad(total, parameters, allow_unused=True)
    torch.testing.assert_close(loss, total, rtol=1e-4, atol=1e-3)
    assert sum(g is not None and bool(g.any()) for g in expected) > 10
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None and theirs is not None:
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3 * max(1.0, float(theirs.abs().max())))


def test_captions_of_equal_reward_teach_nothing(model: MultimodalModel) -> None:
    loss, _ = task_of(model, lambda _: 0.5).loss(asked_of(model))
    found = torch.autograd.grad(loss, parameters_of(model), allow_unused=True)
    assert loss.item() == 0 and not any(g is not None and g.any() for g in found)


def test_the_whole_model_learns_in_bf16_too(model: MultimodalModel) -> None:
    """Drawing casts the weights without gradient, and what autocast keeps of that must not stand in for them after."""
    learnt = []
    for bf16 in (False, True):
        torch.manual_seed(5)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss, _ = task_of(model, len).loss(asked_of(model))
        found = torch.autograd.grad(loss, parameters_of(model), allow_unused=True)
        learnt.append([g is not None and bool(g.any()) for g in found])
    assert learnt[0] == learnt[1] and sum(learnt[0]) > 10


def test_what_other_pictures_captions_give_is_taken_off(model: MultimodalModel) -> None:
    """Here a caption scores its length times a number of the picture whose captions it is compared with."""
    numbers = {REFERENCES[0][0]: 3.0, REFERENCES[1][0]: 1.0}
    losses = []
    for contrast in (0.0, 0.5):
        task = SelfCriticalTask(model, REFERENCES, draws=DRAWS, contrast=contrast)
        said: list[str] = []

        def score(
            predictions: Sequence[str], references: Sequence[Sequence[str]], said: list[str] = said
        ) -> list[float]:
            said[:] = predictions[: 2 * DRAWS]  # once for each picture that they are compared with
            of = [numbers[several[0].removesuffix(f" {END}")] for several in references]
            return [len(text) * number for text, number in zip(predictions, of, strict=True)]

        task.score = score  # type: ignore[assignment]
        torch.manual_seed(5)
        losses.append(task.loss(asked_of(model))[0].item())
        found, lengths = task.log_values(), [len(text) for text in said]
        first, second = sum(lengths[:DRAWS]), sum(lengths[DRAWS:])
        assert found["reward"] == pytest.approx((3 * first + second) / len(said))
        if contrast:
            assert found["reward_of_others"] == pytest.approx((first + 3 * second) / len(said))
            # 3 - 0.5 * 1 for the first picture, 1 - 0.5 * 3 for the second
            reward = torch.tensor([*(2.5 * n for n in lengths[:DRAWS]), *(-0.5 * n for n in lengths[DRAWS:])])
            assert torch.allclose(task._reward(said, [[f"{r} {END}" for r in one] for one in REFERENCES]), reward)
        else:
            assert "reward_of_others" not in found
    assert losses[0] != losses[1]


def test_what_the_decoder_would_rather_draw_changes_nothing(model: MultimodalModel) -> None:
    settings = model.decoder.lm.generation_config
    said: list[list[str]] = []
    for wanted in ({}, {"temperature": 0.01, "top_p": 0.1, "repetition_penalty": 3.0, "num_beams": 2}):
        before = {name: getattr(settings, name) for name in wanted}
        settings.update(**wanted)
        try:
            torch.manual_seed(5)
            said.append([])
            task_of(model, lambda text: float(said[-1].append(text) or len(text))).loss(asked_of(model))
        finally:
            settings.update(**before)
    assert said[0] == said[1] and len(set(said[0])) > 2


def test_a_caption_that_is_cut_short_is_not_taken_for_a_whole_one() -> None:
    score = SelfCriticalTask(tiny_model(), REFERENCES, draws=2).score
    references = [[f"{text} {END}" for text in REFERENCES[0]]] * 2
    whole, cut = score([f"a fox on a hill {END}", "a fox on a"], references)
    assert whole > cut
    plain = CiderD(REFERENCES)(["a fox on a hill", "a fox on a"], [REFERENCES[0]] * 2)
    assert cut / whole < plain[1] / plain[0]


def test_no_dropout_in_any_mode(model: MultimodalModel) -> None:
    task = SelfCriticalTask(model, REFERENCES, draws=2)
    assert task.train().training and not any(module.training for module in model.modules())


def test_pictures_come_with_their_captions(model: MultimodalModel, captions_folder: Path) -> None:
    pictures = ReferencedPictures(model, images(model, captions_folder))
    records = read_captions(captions_folder, split="train")
    assert len(pictures) == len(records)
    found = pictures.sample(1, random.Random(0))
    assert found is not None and found.references == records[1].captions
    assert found.asked.turns == (Turns(model)(CAPTION_PROMPT, None),) and len(found.asked.media["image"]) == 1


def test_rewards_alone_teach_which_caption_a_picture_has() -> None:
    model, asked = model_of_eight_captions()
    turn = Turns(model)(CAPTION_PROMPT, None)
    batch = [Referenced(Sample({"image": one.images}, (turn,)), one.references) for one in asked]
    task = SelfCriticalTask(model, [one.references for one in asked], draws=8).train()
    before = evaluate_with_controls(model, asked, max_new_tokens=16).scores["cider_d"].score

    def step() -> torch.Tensor:
        loss, count = task.loss(batch)
        return loss / count

    torch.manual_seed(0)
    learn(step, groups_of(model), steps=60)
    scores = evaluate_with_controls(model, asked, max_new_tokens=16).scores["cider_d"]
    assert scores.score > 4 > before and scores.score > 2 * scores.shuffled and scores.score > 2 * scores.blank
