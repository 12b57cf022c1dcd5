"""Scores of answers on tiny random models: what plain logits say, alone or in a batch."""

from typing import Any

import pytest
import torch

from multimodal import answer_scores
from multimodal.answer_scores import answer_log_probs
from multimodal.batch import Sample, Turn
from multimodal.model import MultimodalModel
from tests.speech.test_speech_modality import CONFIG as SPEECH
from tests.speech.test_speech_modality import REPEAT, sound
from tests.tiny_models import TILE, ask, picture, tiny_video_model

CLIP = [picture(seed=i) for i in range(6)]
CHATS: dict[str, Any] = {
    "text": ask("Who saw whom?"),
    "picture": ask(picture(2 * TILE, TILE), "Describe the image."),
    "clip": ask(CLIP, "Who?"),
    "sound": [
        {"role": "user", "content": [{"type": "text", "text": REPEAT}, {"type": "audio", "audio": sound(0.5)}]},
    ],
}
ANSWERS = ("A fox.", "The red circle is left of the square.", "no")


@pytest.fixture(scope="module")
def model() -> MultimodalModel:
    """With all modalities; not to be changed."""
    made = tiny_video_model()
    torch.manual_seed(7)
    made.add("audio", SPEECH)
    return made.eval()


def candidates(model: MultimodalModel, chat: Any) -> Sample:
    """One sample with a turn for each answer."""
    samples = [model.sample(chat, answer) for answer in ANSWERS]
    return Sample(samples[0].media, tuple(sample.turns[0] for sample in samples))


@torch.no_grad()
def by_plain_logits(model: MultimodalModel, sample: Sample) -> float:
    """The definition, of a sample with one turn: each answer token's log-softmax at the place before it."""
    batch = model.collate([sample])
    logits = model.decoder(batch.input_ids, memory=model.memory(batch), inserted=model.inserted(batch))[0]
    answer = sample.turns[0].answer
    first = batch.input_ids.shape[1] - len(answer)
    return sum(float(logits[first + i - 1].log_softmax(-1)[token]) for i, token in enumerate(answer))


@pytest.mark.parametrize("chat", CHATS)
def test_a_score_is_the_sum_of_log_softmax_of_plain_logits(model: MultimodalModel, chat: str) -> None:
    samples = [model.sample(CHATS[chat], answer) for answer in ANSWERS]
    found = answer_log_probs(model, samples, batch_size=1)
    expected = [by_plain_logits(model, sample) for sample in samples]
    assert [len(one) for one in found] == [1, 1, 1] and len(set(expected)) == 3
    torch.testing.assert_close(torch.cat(found), torch.tensor(expected), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("batch_size", [2, 9])
def test_in_a_batch_every_score_is_as_alone(model: MultimodalModel, batch_size: int) -> None:
    samples = [candidates(model, chat) for chat in CHATS.values()]
    samples.append(model.sample(CHATS["clip"], "A fox."))
    alone = [answer_log_probs(model, [sample], batch_size=1)[0] for sample in samples]
    together = answer_log_probs(model, iter(samples), batch_size=batch_size)
    assert [len(one) for one in together] == [3, 3, 3, 3, 1]
    torch.testing.assert_close(torch.cat(together), torch.cat(alone), atol=1e-4, rtol=1e-5)


def test_candidates_of_one_sample_are_scored_as_samples_of_their_own_and_its_media_encoded_once(
    model: MultimodalModel,
) -> None:
    encoded: list[int] = []
    encoder: Any = model.modalities["image"].encoder
    handle = encoder.register_forward_pre_hook(lambda _m, args: encoded.append(len(args[0].pixels)))
    one = answer_log_probs(model, [candidates(model, CHATS["picture"])], batch_size=1)[0]
    handle.remove()
    assert encoded == [2]
    apart = answer_log_probs(model, [model.sample(CHATS["picture"], text) for text in ANSWERS], batch_size=3)
    torch.testing.assert_close(one, torch.cat(apart), atol=1e-4, rtol=1e-5)


def test_the_probabilities_of_all_single_tokens_are_one(model: MultimodalModel) -> None:
    sample = model.sample(CHATS["picture"], "A fox.")
    turn = sample.turns[0]
    turns = tuple(Turn(turn.prompt, [token], turn.media) for token in range(model.decoder.vocab_size))
    scores = answer_log_probs(model, [Sample(sample.media, turns)], batch_size=1)[0]
    assert scores.exp().sum().item() == pytest.approx(1, abs=1e-4)


def test_few_logits_at_once_are_the_same(model: MultimodalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [candidates(model, chat) for chat in CHATS.values()]
    whole = answer_log_probs(model, samples, batch_size=4)
    monkeypatch.setattr(answer_scores, "CHUNK", 3)
    torch.testing.assert_close(answer_log_probs(model, samples, batch_size=4), whole, atol=1e-5, rtol=1e-5)


def test_an_empty_answer_has_no_score(model: MultimodalModel) -> None:
    with pytest.raises(ValueError, match="a turn without an answer"):
        answer_log_probs(model, [model.sample(CHATS["text"], "A fox."), model.sample(CHATS["text"])], batch_size=2)
