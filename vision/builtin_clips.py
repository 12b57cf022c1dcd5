"""Built-in clips as a data set: rendered when they are first asked for, and written as MP4 files, so that they take the
same way in as filmed ones."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vision.clip_captions import CLIP_DETAIL_PROMPT, CLIP_PROMPT, clip_caption, clip_inventory
from vision.clip_language import KINDS, clip_sample, questions_by_kind
from vision.clip_question import ClipQuestion, QuestionedClip
from vision.clip_scenes import ClipScene, render_clip
from vision.clip_writing import write_mp4
from vision.scenes import Split

FPS = 8


@dataclass(frozen=True, kw_only=True)
class BuiltinClips:
    """Clips with questions, by number (`vision.clip_language.clip_sample`).

    Args:
        folder: where the files are kept; the name of a file says all that it depends on.
        count: clips in an epoch.
        size: of the pictures, in pixels.
        frames: of a clip, 8 a second.
        alone: show a single object; `kinds` are among `vision.clip_stories.ALONE_KINDS`.
        more: ask everything else there is to ask about a clip, too, after the question that it was drawn for.
        inventory: with more, also describe a clip in full, before anything else.
        captions: describe clips instead of asking about them.
    """

    folder: Path
    count: int
    seed: int
    split: Split
    size: int = 64
    frames: int = 24
    kinds: Sequence[str] = KINDS
    alone: bool = False
    more: bool = False
    inventory: bool = False
    captions: bool = False

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> QuestionedClip:
        scene, clip = self._made(index)
        if not clip.clip.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_mp4(render_clip(scene, frames=self.frames, size=self.size), clip.clip, fps=FPS)
        return clip

    def unwritten(self, index: int) -> QuestionedClip:
        """The same, but the file may not be there."""
        return self._made(index)[1]

    def _made(self, index: int) -> tuple[ClipScene, QuestionedClip]:
        if not 0 <= index < self.count:
            raise IndexError(index)
        scene, question = clip_sample(index, seed=self.seed, split=self.split, kinds=self.kinds, alone=self.alone)
        subset = "" if tuple(self.kinds) == KINDS else "-".join(("", *self.kinds))
        subset += "-alone" if self.alone else ""
        name = f"{self.split}{subset}-{self.seed}-{self.size}px-{self.frames}f-{index:06d}"
        questions = [question]
        if self.captions:
            caption = clip_caption(scene, random.Random(f"caption {name}"))
            questions = [ClipQuestion("caption", CLIP_PROMPT, caption)]
        elif self.more:
            others = (other for asked in questions_by_kind(scene).values() for other in asked)
            questions += [other for other in others if other.question != question.question]
            if self.inventory:
                questions.insert(0, ClipQuestion("inventory", CLIP_DETAIL_PROMPT, clip_inventory(scene)))
        return scene, QuestionedClip(self.folder / f"{name}.mp4", tuple(questions), name)
