"""Sentences of GRID in noise: heard, seen, and both, with a speech adapter and a video adapter on one frozen decoder.

python -m scripts.evaluate_audiovisual --adapter runs/asr/adapter runs/qa/adapter --source FOLDER --run-dir runs/av

"Both" is late fusion: the two adapters were not trained together, and nothing is trained here. Word by word, the
speech adapter's log-probability of each word that may stand there (given the words before it) and the video adapter's
(as the answer to the slot's question) are added with the weights 1 - w and w. The weight w is chosen on the dev split
alone; the reported split is decoded with that one. All numbers but the free transcript know the grammar. "Joint prompt"
shows clip and sound to the model in one user turn, which neither adapter was trained for.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from multimodal.batch import Turn
from multimodal.config import parse
from multimodal.data.broken import BrokenSamples
from multimodal.data.grid_grammar import SLOTS
from multimodal.errors import UserError, run_cli
from multimodal.late_fusion import (
    AnswerExpert,
    Sentence,
    TranscriptExpert,
    Vote,
    choose_weight,
    decode,
    slot_accuracy,
)
from multimodal.messages import Message, encode_prompt
from multimodal.metrics import derangement
from multimodal.model import MultimodalModel
from multimodal.report import write_json
from multimodal.turns import Turns
from speech.asr import answer_speech, prompt_of, speech_of
from speech.augment import add_noise
from speech.word_errors import word_error_rate
from vision.clip_data import read_questions
from vision.clip_frames import ClipFrames
from vision.clip_question import QuestionedClip
from vision.grid import slot_question

PROMPT = prompt_of("transcribe", "English")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Evaluate sound and pictures together on GRID."""

    adapter: tuple[Path, ...]
    """Adapter folders for one decoder: of speech and of clips, or one that holds both."""
    source: str
    """Folder with GRID's `transcripts.tsv` and clips with sound."""
    run_dir: Path
    """Gets `metrics.json`."""
    split: str = "test"
    """What is reported."""
    dev_split: str = "dev"
    """Where the weight of the pictures is chosen."""
    count: int = 0
    """At most so many clips of each split; 0 = all."""
    snr_db: float | None = 0.0
    """White noise over the sound: ratio of the powers of speech and noise in each clip, in dB; None = no noise."""
    max_new_tokens: int = 32
    """Of a free transcript."""
    batch_size: int = 8
    """Clips at once; each is scored with every word of a slot."""
    seed: int = 0
    """Of the noise and of the shuffled controls."""
    decoder: str | None = None
    """Use this decoder in place of the one that the first adapter names."""
    force_decoder: bool = False
    device: str = "auto"


@dataclass(frozen=True)
class Filmed:
    """A sentence, its sound [S] with noise, and its clip as the image encoder's features."""

    words: Sentence
    waveform: Tensor
    clip: ClipFrames


def main() -> None:
    config = parse(Config, description=__doc__)
    if config.split == config.dev_split:
        raise UserError(f"--split and --dev-split are both {config.split}: expected a weight chosen on other clips")
    model = load_model(config)
    dev, test = (read_filmed(model, config, split) for split in (config.dev_split, config.split))
    weight, by_weight = choose_weight(Experts(model, dev, config.batch_size).dev_score)
    print(f"weight of the pictures {weight:.2f}, chosen on {len(dev)} clips of the {config.dev_split} split")
    scores = evaluate(Experts(model, test, config.batch_size), weight, seed=config.seed)
    print(table(scores))
    waves = [one.waveform for one in test]
    limits = {"batch_size": config.batch_size, "max_new_tokens": config.max_new_tokens}
    free_wer = word_error_rate(answer_speech(model, [PROMPT] * len(test), waves, **limits), sentences_of(test))
    print(f"sound alone, free transcript: wer {free_wer:.3f}")
    metrics = {f"{system}_{name}": value for system, row in scores.items() for name, value in row.items()}
    facts = {"weight": weight, "dev_words_by_weight": by_weight, "clips": len(test), "dev_clips": len(dev)}
    facts |= {"snr_db": config.snr_db, "seed": config.seed}
    write_json(config.run_dir / "metrics.json", metrics | {"sound_free_wer": free_wer} | facts)


def load_model(config: Config) -> MultimodalModel:
    """All adapters on one decoder."""
    if not config.adapter:
        raise UserError("no adapter given; expected --adapter with a folder of speech and one of clips")
    model = MultimodalModel.from_pretrained(
        config.adapter[0], decoder=config.decoder, force_decoder=config.force_decoder, device=config.device
    )
    for folder in config.adapter[1:]:
        model.load_adapter(folder, force_decoder=config.force_decoder)
    for kind in ("audio", "video"):
        if kind not in model.modalities:
            raise UserError(
                f"--adapter {' '.join(map(str, config.adapter))}: no {kind} parts; expected audio and video"
            )
    return model


def read_filmed(model: MultimodalModel, config: Config, split: str) -> list[Filmed]:
    """The sentences of a split; clips whose sound or pictures cannot be read are left out with a warning."""
    clips = read_questions(config.source, split=split, kinds=tuple(SLOTS))
    broken = BrokenSamples(what="clips")
    found = []
    for clip in clips[: config.count or None]:
        answers = {question.kind: question.answer for question in clip.questions}
        if answers.keys() != SLOTS.keys():
            raise UserError(f"{config.source}: {clip.name} has {', '.join(answers)}; expected the sentences of GRID")
        words = tuple(answers[slot] for slot in SLOTS)
        one = broken.read(partial(read_one, model, config, clip, words), id=clip.name)
        if one is not None:
            found.append(one)
    if len(found) < 2:
        raise UserError(f"{config.source}: {len(found)} clips of split {split!r} can be read; expected two or more")
    return found


def read_one(model: MultimodalModel, config: Config, clip: QuestionedClip, words: Sentence) -> Filmed:
    """One clip; its noise depends on the seed and its name alone."""
    waveform_S = speech_of(model).prepare(clip.clip)
    if config.snr_db is not None:
        rng = random.Random(f"noise/{config.seed}/{clip.name}")
        waveform_S = add_noise(waveform_S, snr_db=config.snr_db, rng=rng)
    video: Any = model.modalities["video"]
    (frames,) = video.collate([video.prepare(clip.clip)]).to(model.device).clips
    return Filmed(words, waveform_S, frames.with_features(video.encode(frames)))


def sentences_of(filmed: Sequence[Filmed]) -> list[str]:
    return [" ".join(one.words) for one in filmed]


class Experts:
    """Who has an opinion on the sentences of a split: by sound, by pictures, and by both in one prompt."""

    def __init__(self, model: MultimodalModel, filmed: Sequence[Filmed], batch_size: int) -> None:
        self.filmed, self.own = filmed, range(len(filmed))
        sounds = [{"audio": (one.waveform,)} for one in filmed]
        clips = [{"video": (one.clip,)} for one in filmed]
        ask = Turns(model, kind="video")
        self.pictures = AnswerExpert(
            model, clips, SLOTS, lambda slot, word: ask(slot_question(slot), word), batch_size=batch_size
        )
        prompt = Turns(model, kind="audio", text_first=True)(PROMPT, None)
        self.sound = TranscriptExpert(model, sounds, SLOTS, prompt, batch_size=batch_size)
        pairs = [sound | clip for sound, clip in zip(sounds, clips, strict=True)]
        self.joint = TranscriptExpert(model, pairs, SLOTS, joint_prompt(model), batch_size=batch_size)

    def fused(self, weight: float, *, heard: Sequence[int], seen: Sequence[int]) -> list[Vote]:
        """Sound and pictures, of the sentences given by number."""
        return [Vote(self.sound, 1 - weight, heard), Vote(self.pictures, weight, seen)]

    def score(self, votes: Sequence[Vote]) -> dict[str, float]:
        """Accuracies and WER of what the votes agree on."""
        said = decode(SLOTS, votes)
        wer = word_error_rate([" ".join(one) for one in said], sentences_of(self.filmed))
        return slot_accuracy(SLOTS, said, [one.words for one in self.filmed]) | {"wer": wer}

    def dev_score(self, weight: float) -> float:
        """What the weight is chosen by."""
        return self.score(self.fused(weight, heard=self.own, seen=self.own))["words"]


def joint_prompt(model: MultimodalModel) -> Turn:
    """The clip, then the prompt of speech recognition, then the sound."""
    parts = [{"type": "video", "video": None}, {"type": "text", "text": PROMPT}, {"type": "audio", "audio": None}]
    messages: list[Message] = [{"role": "user", "content": parts}]
    return model.turn(messages, encode_prompt(messages, model.vocabulary), None)


def evaluate(experts: Experts, weight: float, *, seed: int) -> dict[str, dict[str, float]]:
    """The scores of each system, and of its controls: another sentence's sound, or pictures."""
    own = experts.own
    other = derangement(len(own), random.Random(f"controls/{seed}"), groups=sentences_of(experts.filmed))
    systems = {
        "sound": experts.fused(0, heard=own, seen=own),
        "pictures": experts.fused(1, heard=own, seen=own),
        "both": experts.fused(weight, heard=own, seen=own),
        "joint_prompt": [Vote(experts.joint, 1, own)],
        "sound_shuffled": experts.fused(0, heard=other, seen=own),
        "pictures_shuffled": experts.fused(1, heard=own, seen=other),
        "both_sound_shuffled": experts.fused(weight, heard=other, seen=own),
        "both_pictures_shuffled": experts.fused(weight, heard=own, seen=other),
    }
    return {name: experts.score(votes) for name, votes in systems.items()}


def table(scores: Mapping[str, Mapping[str, float]]) -> str:
    """One line a system."""
    columns = list(next(iter(scores.values())))
    lines = [f"{'':<23}" + "".join(f"{name:>12}" for name in columns)]
    for system, row in scores.items():
        lines.append(f"{system.replace('_', ' '):<23}" + "".join(f"{row[name]:>12.3f}" for name in columns))
    return "\n".join(lines)


if __name__ == "__main__":
    run_cli(main)
