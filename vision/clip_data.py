"""Which clips a run learns from and is judged on: built-in ones, or those of a source on disk with their questions."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from multimodal.config import expect_at_least
from multimodal.data.broken import OnError
from multimodal.data.word_times import MOST_WORDS, WORD_TIMES, read_word_times
from multimodal.errors import UserError
from vision.builtin_clips import BuiltinClips
from vision.clip_captions import CLIP_DETAIL_PROMPT
from vision.clip_language import KINDS
from vision.clip_layouts import read_clips
from vision.clip_question import ClipSet, QuestionedClip
from vision.clip_stories import ALONE_KINDS
from vision.grid import grid_cuttings

CLIPS = "clips"


@dataclass(frozen=True, kw_only=True)
class ClipDataConfig:
    """Where clips with questions come from and how they are used."""

    source: str = CLIPS
    """"clips" (built in), a folder with clips and questions or a public set, a table, or a JSONL manifest."""
    train_split: str = "train"
    dev_split: str = "dev"
    """Evaluated during training, with controls. Never the split that is reported."""
    dev_count: int = 100
    """Clips of the dev split that are used; 0 = none. Built-in clips have held-out combinations there."""
    kinds: tuple[str, ...] = ()
    """Kinds of questions that are asked; none named: all."""
    questions: int = 3
    """Questions about a clip learnt in one step; the clip is encoded once for all of them."""
    choice: float = 0.3
    """Share of the questions with options that are asked as multiple choice, by option letter."""
    misread: float = 0.0
    """Share of the words already said that the decoder reads wrong in training, so that clips are looked at."""
    unseen_pairs: int = 0
    """Words that never stand side by side in so many clips' questions and answers, though both are frequent, are not
    denied beside each other, so that new pairs can be said (`multimodal.unseen_pairs`). 0: whatever is not said is
    denied."""
    cuttings: int = 0
    """So many parts of one to four words are cut out of GRID's training clips, by their word_times.tsv, and learnt from
    as well."""
    on_error: OnError = "skip"
    """A broken clip is skipped, counted and reported, or ends the run."""
    inventory: bool = False
    """Of built-in clips, also learn to say everything that can be asked about them, which `--describe-with` reads."""
    clips: int = 4000
    """Built-in clips in an epoch."""
    clip_size: int = 64
    """Their size in pixels."""
    clip_frames: int = 24
    """Their frames."""
    clip_folder: Path | None = None
    """Where their files are kept; by default in the run folder."""

    def __post_init__(self) -> None:
        sizes = {"clip_size": self.clip_size, "clip_frames": self.clip_frames}
        expect_at_least(1, of="data.", questions=self.questions, clips=self.clips, **sizes)
        expect_at_least(0, of="data.", dev_count=self.dev_count, cuttings=self.cuttings, unseen_pairs=self.unseen_pairs)
        wrong = {
            f"--data.choice {self.choice}: expected 0 to 1": not 0 <= self.choice <= 1,
            f"--data.misread {self.misread}: expected 0 to below 1": not 0 <= self.misread < 1,
            f"--data.inventory of {self.source}: expected built-in clips": self.inventory and self.source != CLIPS,
        }
        for what, holds in wrong.items():
            if holds:
                raise UserError(what)

    @property
    def describe_with(self) -> str:
        """The prompt for what `inventory` teaches; empty without it."""
        return CLIP_DETAIL_PROMPT if self.inventory else ""


@dataclass(frozen=True)
class ClipSets:
    """The clips of a run.

    Args:
        data: where they come from.
        folder: where rendered ones are kept.
        seed: of all that is drawn.
    """

    data: ClipDataConfig
    folder: Path
    seed: int

    def learnt(self) -> ClipSet:
        """Clips with questions to learn from, of GRID with the cuttings that are asked for.

        Raises:
            UserError: the source cannot be read, has no question of the kinds asked for, or cannot be cut.
        """
        if self.data.source == CLIPS:
            if self.data.cuttings:
                raise UserError("--data.cuttings with built-in clips: expected a folder in GRID's layout")
            return self._builtin()
        clips = read_questions(self.data.source, split=self.data.train_split, kinds=self.data.kinds)
        return clips + self._cut(clips, self.data.cuttings, most=MOST_WORDS) if self.data.cuttings else clips

    def judged(self) -> list[QuestionedClip]:
        """Clips that are evaluated in training; of the built-in ones, such as training never shows.

        Raises:
            UserError: the source cannot be read, or has no question of the kinds asked for.
        """
        data = self.data
        if data.source == CLIPS:
            return self._held_out(data.dev_count, seed=self.seed + 1)
        return read_questions(data.source, split=data.dev_split, kinds=data.kinds)[: data.dev_count]

    def reported(self, count: int) -> list[QuestionedClip]:
        """Built-in clips such as training never shows, and others than those that are judged while it runs.

        Raises:
            UserError: an unknown kind of question.
        """
        return self._held_out(count, seed=self.seed + 2)

    def captioned(self, source: str) -> ClipSet:
        """Clips with captions, built-in ones or those of another source.

        Raises:
            UserError: the source cannot be read.
        """
        if source == CLIPS:
            everything = replace(self, data=replace(self.data, kinds=()))  # kinds are those of questions
            return replace(everything._builtin(), captions=True)
        return read_questions(source, split=self.data.train_split)

    def simple(self, count: int, *, words: int) -> ClipSet:
        """Built-in clips of a single object, or parts of GRID's training clips with at most so many words.

        Raises:
            UserError: the source cannot be read, is neither of these, or has no such clips for the kinds asked for.
        """
        if self.data.source != CLIPS:
            clips = read_questions(self.data.source, split=self.data.train_split)
            return self._cut(clips, count, most=words)
        builtin = self._builtin()
        kinds = tuple(kind for kind in ALONE_KINDS if kind in builtin.kinds)
        if not kinds:
            raise UserError(
                f"--simple.steps with --data.kinds {' '.join(self.data.kinds)}: "
                f"expected some of {', '.join(ALONE_KINDS)}"
            )
        return replace(builtin, count=count, kinds=kinds, alone=True)

    def _builtin(self) -> BuiltinClips:
        data = self.data
        unknown = sorted(set(data.kinds) - set(KINDS))
        if unknown:
            raise UserError(f"questions of the kind {unknown[0]!r}; expected some of {', '.join(KINDS)}")
        return BuiltinClips(
            folder=self.folder,
            count=data.clips,
            seed=self.seed,
            split="train",
            size=data.clip_size,
            frames=data.clip_frames,
            kinds=data.kinds or KINDS,
            more=True,
            inventory=data.inventory,
        )

    def _held_out(self, count: int, *, seed: int) -> list[QuestionedClip]:
        """One question each, about an object that training never shows."""
        clips = replace(self._builtin(), count=count, seed=seed, split="held_out", more=False)
        return [clips[number] for number in range(count)]

    def _cut(self, clips: Sequence[QuestionedClip], count: int, *, most: int) -> list[QuestionedClip]:
        if self.data.kinds:
            raise UserError("cuttings with --data.kinds: expected all kinds of questions")
        times = read_word_times(Path(self.data.source) / WORD_TIMES)
        return grid_cuttings(clips, times, count=count, seed=self.seed, most=most)


def read_questions(source: str, *, split: str, kinds: Sequence[str] = ()) -> list[QuestionedClip]:
    """The clips of a source on disk with their questions of some kinds (none named: all).

    Raises:
        UserError: the source cannot be read, or has no such question.
    """
    clips = read_clips(source, split=split)
    if kinds:
        asked = (tuple(question for question in clip.questions if question.kind in kinds) for clip in clips)
        clips = [replace(clip, questions=some) for clip, some in zip(clips, asked, strict=True) if some]
        if not clips:
            raise UserError(f"{source}: no question of the kinds {', '.join(kinds)}")
    return clips
