"""The page of speech recognition: sounds to see and to hear, errors in colour, numbers with their controls."""

import io
from base64 import b64decode

import soundfile
import torch

from multimodal.report import RunFacts, render
from speech.asr import Spoken, evaluate_speech
from speech.asr_report import asr_report, speech_cards
from speech.features import LogMel
from speech.sound_picture import sound_media, sound_picture
from speech.utterance import JoinedSounds, Utterance
from tests.speech.made_speech import tone
from tests.speech.test_speech_modality import with_speech


def test_the_picture_shows_where_the_sound_is() -> None:
    log_mel = LogMel()
    waveform_S = torch.cat([torch.zeros(16_000), tone(5, seconds=1, rate=16_000)])
    log_mel.fit_statistics([waveform_S])
    picture = sound_picture(waveform_S, log_mel).convert("L")
    width, height = picture.size
    left, right = (
        list(picture.crop(box).getdata())
        for box in ((0, 90, width // 2 - 9, height), (width // 2 + 9, 90, width, height))
    )
    assert max(right) > max(left) + 50 and sound_picture(torch.zeros(1), LogMel()).size == picture.size
    _, sound = sound_media(waveform_S, log_mel)
    samples, rate = soundfile.read(io.BytesIO(b64decode(sound.uri.partition(",")[2])), dtype="float32")
    assert rate == 16_000 and torch.allclose(torch.from_numpy(samples), waveform_S, atol=1e-4)


def test_a_report_has_sounds_errors_and_controls() -> None:
    model = with_speech()
    spoken = [
        Spoken(Utterance(sound=JoinedSounds((), ()), text=text, id=f"u{i}"), tone(i, rate=16_000))
        for i, text in enumerate(("one two", "three <b>", "four", "five"))
    ]
    scores = evaluate_speech(model, spoken, max_new_tokens=3)
    assert set(scores.metrics("connected")) >= {"connected_wer", "connected_wer_silence", "connected_real_time_factor"}
    report = asr_report(
        run=RunFacts(title="Speech", seed=0, seconds=1, peak_memory_mb=1),
        scores={"": scores},
        cards=speech_cards(model, scores, [1, 2]),
        cards_note="two",
        goals={"wer": 0.1},
    )
    page = render(report)
    assert page.count("<audio controls") == 2 and page.count("data:image/") == 2
    assert "word-" in page and "<b>" not in page and "missed" in page and "silence" in page


def test_translations_are_judged_by_bleu_and_chrf_beside_their_controls() -> None:
    model = with_speech()
    spoken = [
        Spoken(Utterance(sound=JoinedSounds((), ()), text=text, id=f"u{i}", task="translate"), tone(i, rate=16_000))
        for i, text in enumerate(("the house by the road", "rain in the north again", "no one is at home"))
    ]
    scores = evaluate_speech(model, spoken, max_new_tokens=3)
    assert set(scores.evaluation.scores) == {"exact", "wer", "bleu", "chrf"}
    assert {"bleu", "bleu_shuffled", "bleu_silence", "chrf_silence"} <= scores.metrics().keys()
    report = asr_report(
        run=RunFacts(title="Speech", seed=0, seconds=1, peak_memory_mb=1),
        scores={"": scores},
        cards=(),
        cards_note="",
        goals={"chrf": 100, "bleu": 0, "wer": 100},
    )
    good = {headline.label: headline.good for headline in report.headlines}
    assert (good["chrF of 100"], good["BLEU of 100"], good["word error rate"]) == (False, True, True)
    assert {row.label: row.note for row in report.scores}["BLEU of 100"] == ""
