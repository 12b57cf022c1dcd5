"""Spoken dialogue: the targets are what the decoder says in text, kept as they were, and asked for without a prompt."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from multimodal.decoder import FrozenDecoder
from multimodal.errors import UserError
from multimodal.messages import encode_prompt
from multimodal.model import MultimodalModel
from multimodal.turns import Turns
from speech.asr import SpeechSamples, Spoken, answer_speech, evaluate_sets, evaluate_speech, prompt_of
from speech.dialogue import in_text, text_replies, with_replies, without_empty_replies
from speech.utterance import FileSound, Reply, Utterance
from tests.multimodal.tiny_tokenizers import FOREIGN, builtin_tokenizer, foreign_tokenizer
from tests.speech.made_speech import save, tone
from tests.speech.test_speech_modality import CONFIG, ask, with_speech
from tests.tiny_models import decoder_for

TEXTS = ("The fox saw a dog.", "one two three", "Who saw whom?", "Where is the red circle? It is left of the square.")
LENGTH = 6


@pytest.fixture(scope="module")
def model() -> MultimodalModel:
    """Not to be changed."""
    return with_speech()


@pytest.fixture(scope="module")
def utterances(tmp_path_factory: pytest.TempPathFactory) -> list[Utterance]:
    """Each text said twice, to be replied to, and once to be transcribed."""
    folder = tmp_path_factory.mktemp("sounds")
    sounds = [FileSound(save(folder / f"{i}.wav", tone(i))) for i in range(len(TEXTS))]
    said = [Utterance(sound=s, text=t, id=t, task="dialogue") for s, t in zip(sounds, TEXTS, strict=True)]
    return [*said, *said, *(replace(u, task="transcribe") for u in said)]


def test_the_replies_are_the_decoders_own_to_the_text(model: MultimodalModel, utterances: list[Utterance]) -> None:
    found = with_replies(model, utterances, max_new_tokens=LENGTH, batch_size=3)
    assert [u.text for u in found] == [u.text for u in utterances]
    for utterance in found[: 2 * len(TEXTS)]:
        prompt = model.collate([model.sample([{"role": "user", "content": utterance.text}])])
        new = model.decoder.lm.generate(input_ids=prompt.input_ids, max_new_tokens=LENGTH, do_sample=False)
        assert utterance.reply is not None
        assert list(utterance.reply.ids) == new[0, prompt.input_ids.shape[1] :].tolist()
        said = model.chat([{"role": "user", "content": utterance.text}], max_new_tokens=LENGTH)
        assert utterance.reply.text == utterance.wanted == said
    assert len({u.wanted for u in found}) > 4 and all(u.reply is None for u in found[2 * len(TEXTS) :])


@pytest.mark.parametrize("template", ["builtin", *FOREIGN, "no template"])
def test_training_asks_as_a_chat_of_sound_alone_does(template: str) -> None:
    tokenizer = builtin_tokenizer() if template == "builtin" else foreign_tokenizer(template)
    model = MultimodalModel(FrozenDecoder(decoder_for(tokenizer)), tokenizer, decoder_name="tiny")
    model.add("audio", CONFIG)
    asked = Turns(model, kind="audio", text_first=True)(prompt_of("dialogue", "English"), None)
    assert asked == model.sample(ask(tone(3))).turns[0]


@pytest.mark.parametrize("loss", ["cross-entropy", "kl"])
def test_a_reply_is_learnt_as_it_is_or_from_the_text(
    model: MultimodalModel, utterances: list[Utterance], loss: str
) -> None:
    heard = with_replies(model, utterances, max_new_tokens=LENGTH)
    samples = SpeechSamples(model, heard, dialogue_loss=loss)  # type: ignore[arg-type]
    sample, transcribed = samples.sample(0, random.Random(0)), samples.sample(len(heard) - 1, random.Random(0))
    assert sample is not None and transcribed is not None
    text = encode_prompt(in_text(heard[0].text), model.vocabulary).ids
    turn, reply = sample.turns[0], heard[0].reply
    assert reply is not None and turn.answer == list(reply.ids) and turn.teacher == (text if loss == "kl" else None)
    assert transcribed.turns[0].teacher is None and transcribed.turns[0].prompt != turn.prompt
    with torch.no_grad():
        total, tokens = model.loss(model.collate([sample, transcribed]))
        own, one = model.loss(model.collate([transcribed]))
        said = torch.tensor([text + turn.answer])
        student = model.decoder(
            (batch := model.collate([sample])).input_ids, batch.attention_mask, inserted=model.inserted(batch)
        )[0, -len(turn.answer) - 1 : -1].log_softmax(-1)
        teacher = model.decoder(said)[0, len(text) - 1 : -1].log_softmax(-1)
    each = (teacher.exp() * (teacher - student)).sum(-1) if loss == "kl" else -student[range(LENGTH), turn.answer]
    torch.testing.assert_close(total - own, each.sum(), atol=1e-4, rtol=1e-4)
    assert tokens - one == LENGTH and teacher.argmax(-1).tolist() == turn.answer


def test_who_is_replied_nothing_teaches_nothing(utterances: list[Utterance]) -> None:
    replies = {text: Reply("" if text == TEXTS[1] else "So?", (1,)) for text in TEXTS}
    replied = [replace(u, reply=replies[u.text]) if u.task == "dialogue" else u for u in utterances]
    left = without_empty_replies(replied)
    assert len(left) == len(utterances) - 2 and [u.task for u in left if u.text == TEXTS[1]] == ["transcribe"]
    with pytest.raises(UserError, match="replies nothing to any of 2 utterances"):
        without_empty_replies([u for u in replied if u.text == TEXTS[1]])
    assert without_empty_replies(utterances[-1:]) == utterances[-1:]


def test_kept_replies_are_used_again_and_those_of_others_refused(
    model: MultimodalModel, utterances: list[Utterance], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "run" / "replies.jsonl"
    first = with_replies(model, utterances, max_new_tokens=LENGTH, kept=kept)
    with monkeypatch.context() as patched:
        patched.setattr(model, "generate_ids", lambda *_, **__: pytest.fail("made anew"))
        assert with_replies(model, utterances, max_new_tokens=LENGTH, kept=kept) == first
        with pytest.raises(UserError, match=r"replies\.jsonl: replies of another decoder or of another --max-new"):
            with_replies(model, utterances, max_new_tokens=LENGTH + 1, kept=kept)
        more = [*utterances, replace(utterances[0], text="Something else.")]
        with pytest.raises(UserError, match=r"no reply to 'Something else\.'"):
            with_replies(model, more, max_new_tokens=LENGTH, kept=kept)
        assert with_replies(model, utterances[-1:], max_new_tokens=LENGTH, kept=tmp_path / "none") == utterances[-1:]
    other = with_speech()
    with torch.no_grad():
        next(other.decoder.lm.parameters()).mul_(1.5)
    with pytest.raises(UserError, match="another decoder"):
        with_replies(other, utterances, max_new_tokens=LENGTH, kept=kept)


def test_replies_are_judged_to_the_letter_beside_both_controls(
    model: MultimodalModel, utterances: list[Utterance]
) -> None:
    heard = [u.sound.waveform(16_000) for u in utterances[: len(TEXTS)]]
    said = answer_speech(model, [""] * len(TEXTS), heard, batch_size=2, max_new_tokens=LENGTH)
    spoken = [
        Spoken(replace(u, reply=Reply(text, ())), waveform_S)
        for u, text, waveform_S in zip(utterances, said, heard, strict=False)
    ]
    scores = evaluate_speech(model, spoken, max_new_tokens=LENGTH).metrics("dialogue")
    assert scores["dialogue_exact"] == 1 and scores["dialogue_wer"] == 0
    assert {f"dialogue_{name}_{c}" for name in ("exact", "wer") for c in ("shuffled", "silence")} <= scores.keys()
    assert len(set(said)) > 1 and scores["dialogue_exact_shuffled"] < 1
    upper = [
        replace(one, utterance=replace(one.utterance, reply=Reply(one.utterance.wanted + "!", ()))) for one in spoken
    ]
    assert evaluate_speech(model, upper, max_new_tokens=LENGTH).metrics()["exact"] == 0


def test_replies_without_words_have_no_word_error_rate(model: MultimodalModel, utterances: list[Utterance]) -> None:
    silent = [
        Spoken(replace(u, reply=Reply(text, ())), u.sound.waveform(16_000))
        for u, text in zip(utterances[: len(TEXTS)], ("...", "", "?", "!"), strict=True)
    ]
    found = evaluate_speech(model, silent, max_new_tokens=LENGTH).metrics()
    assert found["exact"] == 0 and "wer" not in found


def test_a_set_of_dialogue_gets_its_replies_by_the_search_that_answers(
    model: MultimodalModel, utterances: list[Utterance]
) -> None:
    sets = {"dialogue": utterances[: len(TEXTS)]}
    for beams in (1, 3):
        found = evaluate_sets(model, sets, max_new_tokens=LENGTH, num_beams=beams)["dialogue"].evaluation
        expected = text_replies(model, TEXTS, batch_size=4, max_new_tokens=LENGTH, num_beams=beams)
        assert {one.utterance.text: one.utterance.reply for one in found.samples} == expected
