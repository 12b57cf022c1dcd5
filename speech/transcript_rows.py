"""What a line of any data set with transcripts says, and the utterances it gives."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import cast, get_args

from multimodal.data.text import spoken_form
from multimodal.errors import UserError
from speech.utterance import Sound, SpeechTask, Utterance

AUDIO_NAMES = ("audio", "path", "file", "file_name", "audio_filepath", "id")
TEXT_NAMES = ("text", "sentence", "transcript", "transcription")
_CODE = re.compile(r"([a-z]{2,3})(?:[-_]\w+)*")


@dataclass(frozen=True)
class SpeechColumns:
    """Names of the columns (tables, data sets of the hub) or keys (JSONL); empty: the first of the usual ones that is
    there."""

    audio: str = ""
    text: str = ""
    translation: str = "translation"
    """Of the text, where there is one: each sound is then transcribed and translated."""
    language: str = "language"
    """Of the text: its name or its code (de, zh-CN)."""
    task: str = "task"
    """transcribe, translate (the text is then a translation) or dialogue (what is said, to be replied to as the decoder
    does); transcribe where there is none."""
    speaker: str = "speaker"
    split: str = "split"


DEFAULT_COLUMNS = SpeechColumns()


@dataclass(frozen=True)
class Row:
    """What one line says; the sound by its name, and empty what it does not say."""

    where: str
    audio: str
    text: str
    translation: str = ""
    language: str = ""
    task: str = ""
    speaker: str = ""
    split: str = ""


@dataclass(frozen=True)
class Languages:
    """Of texts and translations that do not say theirs."""

    text: str = "English"
    translation: str = "English"


ENGLISH = Languages()


def first_of(names: Sequence[str], found: Collection[str]) -> str:
    """The first of the names that was found; else the first, which the message will then ask for."""
    return next((name for name in names if name in found), names[0])


def language_name(said: str) -> str:
    """A language by its name, as prompts want it; what is no known code stays as it is.

    Example:
        >>> language_name("sv-SE"), language_name("French")
        ('Swedish', 'French')
    """
    code = _CODE.fullmatch(said)
    if code is None:
        return said
    from transformers.models.whisper.tokenization_whisper import LANGUAGES  # slow to import, and few rows hold codes

    return LANGUAGES.get(code[1], "").title() or said


def says_something(row: Row) -> bool:
    """Whether there is a word in its text or translation: not in "..." or a note."""
    return any(map(spoken_form, (row.text, row.translation)))


def utterances_of(row: Row, sound: Sound, languages: Languages) -> list[Utterance]:
    """What a row gives: its text, and its translation as an utterance of its own.

    Raises:
        UserError: its task is none.
    """
    task = row.task or "transcribe"
    if task not in get_args(SpeechTask):
        raise UserError(f"{row.where}: task {task!r}; expected transcribe, translate or dialogue")
    language = language_name(row.language or languages.text)
    spoken = Utterance(
        sound=sound, text=row.text, id=row.audio, language=language, task=cast(SpeechTask, task), speaker=row.speaker
    )
    if not row.translation:
        return [spoken]
    translated = Utterance(
        sound=sound,
        text=row.translation,
        id=f"{row.audio}, translated",
        language=language_name(languages.translation),
        task="translate",
        speaker=row.speaker,
    )
    return [spoken, translated] if spoken_form(row.text) else [translated]
