"""Which utterances a run learns and is judged by: built-in sentences, digits in a row, or any set with transcripts."""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from multimodal.data.broken import OnError
from multimodal.data.buckets import LengthBuckets
from multimodal.data.order import Order
from multimodal.data.word_times import WORD_TIMES, read_word_times
from multimodal.errors import UserError
from multimodal.train.config import TrainConfig
from speech.augment import Augment
from speech.cuttings import cuttings
from speech.foreign_texts import SOURCE_LANGUAGES
from speech.fsdd import connected_digits, is_fsdd
from speech.spoken_data import foreign_utterances, spoken_sentences
from speech.spoken_texts import Writer, digits_in_a_row, number_phrase, piece_of, short_prose
from speech.transcript_rows import Languages, SpeechColumns
from speech.transcripts import read_transcripts
from speech.utterance import Utterance, Waveforms

SPOKEN = "spoken"
WRITERS: tuple[Writer, ...] = (number_phrase, short_prose)
TEST_COUNT = 300
"""Built-in sentences, or digits in a row, in a test that names no number."""


@dataclass(frozen=True, kw_only=True)
class SpeechDataConfig:
    """Where speech comes from and how it is used."""

    source: str = SPOKEN
    """"spoken" (built in, needs espeakng-loader), a folder with a transcript table, a JSONL manifest, a folder as
    FSDD, LibriSpeech or GRID have it, or a data set of the hub (fixie-ai/covost2)."""
    subset: str = ""
    """Configuration of a data set of the hub, as de_en or en_us; a language in it is taken as that of the texts."""
    limit: int = 0
    """Lines of each split that are used, the first ones; 0 = all. A data set of the hub is streamed into memory."""
    train_split: str = "train"
    dev_split: str = "dev"
    """Evaluated during training, with controls. Never the split that is reported."""
    dev_count: int = 50
    """Utterances of the dev split that are used; 0 = none."""
    test_split: str = ""
    """Evaluated once at the end; empty = none. Built-in sentences have a test of their own."""
    test_count: int = 0
    """So many of them, chosen by the seed; 0 = all."""
    columns: SpeechColumns = field(default_factory=SpeechColumns)
    language: str = "English"
    """Of texts that do not say theirs."""
    translation_language: str = "English"
    """Of translations beside the texts, where the data set does not say it."""
    speaker: str = ""
    """A speaker held out of training, who alone speaks in the test."""
    share: float = 1.0
    """Part of the training utterances that is used, chosen by the seed."""
    connected: int = 0
    """FSDD: digits in a row made of the single ones, so many in an epoch beside them."""
    digits: tuple[int, int] = (3, 6)
    """How many digits are in a row."""
    cuttings: int = 0
    """Pieces of one to four words, so many in an epoch: cut out of sentences whose word times are beside them in
    `word_times.tsv` (id, word, start, end), or said so by the built-in voices."""
    sentences: int = 20000
    """Built-in sentences in an epoch."""
    voices: int = 0
    """Utterances of the built-in voices in an epoch beside the recordings of a set: they say digits in a row beside
    FSDD, built-in sentences beside others."""
    translations: int = 0
    """Built-in numbers, times and dates in other languages to translate into English in an epoch; as many of each
    language are transcribed, which alone is what CTC learns (needs num2words)."""
    dialogue: float = 0.0
    """Part of the utterances to transcribe, chosen by the seed, that are also to be replied to, without any prompt, as
    the decoder replies to their transcripts."""
    zero_shot: str = "Italian"
    """The language that is transcribed, but translated in the test alone; empty = none."""
    temperature: float = 1.0
    """Mixing of tasks and languages: shares are proportional to their numbers to the power of 1 / temperature."""
    silence: float = 0.02
    """Part of the training samples in which nothing is said, and nothing is to be written."""
    batch_seconds: float = 0.0
    """Seconds of sound in a batch of utterances of like length (at most batch-size of them); 0 = any lengths."""
    buckets: int = 8
    """Classes of length."""
    augment: Augment = field(default_factory=Augment)
    keep_mb: float = 500.0
    """Megabytes of sound that are kept in memory for later epochs (of each worker process); 0 = none."""
    on_error: OnError = "skip"
    """A broken recording is skipped, counted and reported, or ends the run."""

    def __post_init__(self) -> None:
        wrong = {
            f"share {self.share}, expected more than 0, at most 1": not 0 < self.share <= 1,
            f"temperature {self.temperature}, expected 1 or more": self.temperature < 1,
            f"dialogue {self.dialogue}, expected 0 to 1": not 0 <= self.dialogue <= 1,
            f"silence {self.silence}, expected 0 to below 1": not 0 <= self.silence < 1,
            f"batch_seconds {self.batch_seconds}, expected 0 or more": self.batch_seconds < 0,
            f"buckets {self.buckets}, expected 1 or more": self.buckets < 1,
            f"keep_mb {self.keep_mb}, expected 0 or more": self.keep_mb < 0,
            f"limit {self.limit}, expected 0 or more": self.limit < 0,
            f"voices {self.voices}, expected 0 or more": self.voices < 0,
            f"zero_shot {self.zero_shot!r}, expected one of {', '.join(SOURCE_LANGUAGES)}": (
                bool(self.zero_shot) and self.zero_shot not in SOURCE_LANGUAGES
            ),
        }
        for what, holds in wrong.items():
            if holds:
                raise UserError(f"speech data: {what}")

    @property
    def translated(self) -> tuple[str, ...]:
        """Languages whose translation is learnt."""
        return tuple(language for language in SOURCE_LANGUAGES if language != self.zero_shot)

    def read(self, split: str) -> list[Utterance]:
        """Utterances of a split of a set on disk, as they are there."""
        return read_transcripts(
            self.source,
            split=split,
            columns=self.columns,
            languages=Languages(self.language, self.translation_language),
            speaker=self.speaker,
            subset=self.subset,
            limit=self.limit,
        )


def training_utterances(data: SpeechDataConfig, *, seed: int, writers: Sequence[Writer] = WRITERS) -> list[Utterance]:
    """What a run learns, tasks mixed as the temperature says. Those of dialogue have no replies yet.

    Raises:
        UserError: the source cannot be read.
    """
    if data.source == SPOKEN:
        found = spoken_sentences(writers, count=data.sentences, split="train", seed=seed)
        pieces = [piece_of(writer) for writer in writers]
        found += spoken_sentences(pieces, count=data.cuttings, split="train", seed=seed, name="piece")
        found += foreign_utterances(
            data.translated, task="translate", count=data.translations, split="train", seed=seed
        )
        as_many = data.translations * len(SOURCE_LANGUAGES) // len(data.translated)
        found += foreign_utterances(SOURCE_LANGUAGES, task="transcribe", count=as_many, split="train", seed=seed)
    else:
        folder = Path(data.source).expanduser()
        found = data.read(data.train_split)
        if data.share < 1:
            found = random.Random(f"share/{seed}").sample(found, max(1, round(data.share * len(found))))
        if data.connected:
            found += connected_digits(found, count=data.connected, seed=seed, digits=(1, data.digits[1]))
        if data.cuttings:
            times = read_word_times(folder / WORD_TIMES)
            found += cuttings(found, times, count=data.cuttings, seed=seed)
        if data.voices:
            said = [digits_in_a_row] if is_fsdd(folder) else writers
            found += spoken_sentences(said, count=data.voices, split="train", seed=seed, name="voice")
    transcribed = [u for u in found if u.task == "transcribe"]
    chosen = random.Random(f"dialogue/{seed}").sample(transcribed, round(data.dialogue * len(transcribed)))
    return mix([*found, *as_dialogue(chosen)], temperature=data.temperature)


def as_dialogue(utterances: Sequence[Utterance]) -> list[Utterance]:
    """The same utterances, to be replied to."""
    return [replace(u, task="dialogue") for u in utterances]


def mix(utterances: Sequence[Utterance], *, temperature: float) -> list[Utterance]:
    """Repeat the rarer tasks and languages until their shares are those of the temperature; the most frequent stays.

    With n_i utterances of a kind, shares are proportional to n_i ** (1 / temperature); 1 leaves all as it is.
    """
    kinds: defaultdict[tuple[str, str], list[Utterance]] = defaultdict(list)
    for utterance in utterances:
        kinds[utterance.task, utterance.language].append(utterance)
    largest = max(map(len, kinds.values()), default=0)
    mixed: list[Utterance] = []
    for kind in kinds.values():
        wanted = round(largest * (len(kind) / largest) ** (1 / temperature))
        mixed += [kind[i % len(kind)] for i in range(wanted)]
    return mixed


def dev_utterances(data: SpeechDataConfig, *, seed: int, writers: Sequence[Writer] = WRITERS) -> list[Utterance]:
    """What is evaluated during training, of one task; empty if there is to be nothing.

    Raises:
        UserError: the source cannot be read.
    """
    if not data.dev_count:
        return []
    if data.source == SPOKEN:
        return spoken_sentences(writers, count=data.dev_count, split="held_out", seed=seed + 1)
    try:
        found = [u for u in data.read(data.dev_split) if u.task == "transcribe"]
    except UserError as error:
        raise UserError(f"{error} (--data.dev-count 0 trains without)") from None
    return random.Random(f"dev/{seed}").sample(found, min(data.dev_count, len(found)))


def evaluation_sets(
    data: SpeechDataConfig, *, seed: int, writers: Sequence[Writer] = WRITERS
) -> dict[str, list[Utterance]]:
    """What a run is judged by: utterances of one task each, by the name that their scores get; "" is the main set.

    The set "dialogue" has no replies yet; where a part of the training is dialogue, the main set is in it too.

    Raises:
        UserError: the source cannot be read.
    """
    count = data.test_count
    if data.source == SPOKEN:
        count = count or TEST_COUNT
        sets = {"": spoken_sentences(writers, count=count, split="held_out", seed=seed + 2)}
        if data.translations:
            foreign = partial(foreign_utterances, count=count, split="held_out", seed=seed + 2)
            sets["foreign"] = foreign(SOURCE_LANGUAGES, task="transcribe")
            sets["translation"] = foreign(data.translated, task="translate")
            if data.zero_shot:
                sets["zero_shot"] = foreign((data.zero_shot,), task="translate")
        return _with_dialogue(sets, data)
    if not data.test_split:
        return {}
    found = data.read(data.test_split)
    sets = {
        "": [u for u in found if u.task == "transcribe"],
        "translation": [u for u in found if u.task == "translate"],
    }
    if is_fsdd(Path(data.source).expanduser()):
        sets["connected"] = connected_digits(found, count=count or TEST_COUNT, seed=seed + 2, digits=data.digits)
    sets["dialogue"] = [u for u in found if u.task == "dialogue"]
    rng = random.Random(f"test/{seed}")
    sets = {name: rng.sample(some, min(count or len(some), len(some))) for name, some in sets.items() if some}
    return _with_dialogue(sets, data)


def _with_dialogue(sets: dict[str, list[Utterance]], data: SpeechDataConfig) -> dict[str, list[Utterance]]:
    main = sets.get("", []) if data.dialogue else []
    replied = [*as_dialogue(main), *sets.get("dialogue", [])]
    return sets | {"dialogue": replied} if replied else sets


def batches_by_seconds(waveforms: Waveforms, data: SpeechDataConfig, train: TrainConfig) -> Order | None:
    """The order of a run whose batches are so many seconds long; None where they are so many utterances."""
    if not data.batch_seconds:
        return None
    return LengthBuckets(
        waveforms.seconds, most=data.batch_seconds, batch_size=train.batch_size, seed=train.seed, buckets=data.buckets
    )
