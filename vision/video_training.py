"""The stages of video-adapter training on an image model: video-text pairs, then question answering, on
simple clips before all others.

Llama 3 paper, section 7.3 / spec A5.3. All train the aggregator and the video layers only; the image adapter, its
encoder and the decoder stay as they are. A stage starts from the weights of the one before with a fresh optimizer.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from multimodal.adapter_merge import START
from multimodal.config import dump, expect_at_least
from multimodal.data.broken import BrokenSamples, OnError
from multimodal.data.feature_cache import FeatureCache
from multimodal.data.word_times import MOST_WORDS, WORD_TIMES, read_word_times
from multimodal.errors import UserError
from multimodal.hashing import weights_sha256
from multimodal.metrics import Evaluation
from multimodal.model import MultimodalModel
from multimodal.pretrained import BUILTIN
from multimodal.quantization import DecoderQuantization
from multimodal.train.config import StageConfig, TrainConfig
from multimodal.train.loop import TrainResult, train
from vision.builtin_clips import BuiltinClips
from vision.clip_language import KINDS
from vision.clip_layouts import read_clips
from vision.clip_question import ClipSet, QuestionedClip
from vision.clip_stories import ALONE_KINDS
from vision.grid import grid_cuttings
from vision.image_adapter import ImageAdapterConfig
from vision.image_modality import EncoderOptions, ImageConfig, ImageModality
from vision.image_model import image_model
from vision.video_answering import AskedClip, ClipSamples, ask_clips, evaluate_clips, reversal_metrics
from vision.video_modality import VideoConfig, VideoModality

CLIPS = "clips"
STATISTICS_FROM = 64
"""Clips from whose features their mean and deviation are taken."""
IMAGE_PARTS = ("adapter", "gates", "encoder", "tokens")
"""Parts of the model that stay as they are."""


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
    cuttings: int = 0
    """So many parts of one to four words are cut out of GRID's training clips, by their word_times.tsv, and learnt from
    as well."""
    on_error: OnError = "skip"
    """A broken clip is skipped, counted and reported, or ends the run."""
    clips: int = 4000
    """Built-in clips in an epoch."""
    clip_size: int = 64
    """Their size in pixels."""
    clip_frames: int = 24
    """Their frames."""
    clip_folder: Path | None = None
    """Where their files are kept; by default in the run folder."""

    def __post_init__(self) -> None:
        expect_at_least(1, of="data.", questions=self.questions, clips=self.clips)
        expect_at_least(0, of="data.", dev_count=self.dev_count, cuttings=self.cuttings)
        wrong = {
            f"--data.choice {self.choice}: expected 0 to 1": not 0 <= self.choice <= 1,
            f"--data.misread {self.misread}: expected 0 to below 1": not 0 <= self.misread < 1,
        }
        for what, holds in wrong.items():
            if holds:
                raise UserError(what)


@dataclass(frozen=True, kw_only=True)
class VideoPretrainConfig(StageConfig):
    """The first stage, captions of built-in clips or of the clips of `source`; 0 steps leave it out."""

    source: str = CLIPS
    """"clips" (built in), or clips with captions as in `data.source`."""
    frames: int = 16
    group: int = 16
    """Frames that are merged into one in this stage."""


@dataclass(frozen=True, kw_only=True)
class SimpleConfig(StageConfig):
    """A stage of simple clips alone, before all questions about all clips: built-in ones with a single object, or parts
    of GRID's training clips with few words; 0 steps leave it out."""

    clips: int = 4000
    """So many of them."""
    words: int = 1
    """Of GRID: at most so many words in each."""

    def __post_init__(self) -> None:
        expect_at_least(1, of="simple.", clips=self.clips, words=self.words)


@dataclass(frozen=True, kw_only=True)
class VideoQAConfig:
    """Train a video adapter on an image model with a frozen decoder."""

    run_dir: Path
    """Folder for logs, checkpoints and the adapter."""
    train: TrainConfig
    """Of the second stage. The image parts (adapter, gates, encoder, tokens) have a rate of 0."""
    image: Path | None = None
    """Adapter folder with an image adapter to build on; it names the decoder. Without one, `encoder` with an image
    adapter that knows nothing."""
    decoder: str = BUILTIN
    """"builtin", a folder, or a name of the hub."""
    decoder_quantize: DecoderQuantization = "none"
    """Keep the weights of its linear layers in 8 bits (needs the extra: pip install graft-multimodal[quantize])."""
    encoder: EncoderOptions = field(default_factory=EncoderOptions)
    image_adapter: ImageAdapterConfig = field(default_factory=ImageAdapterConfig)
    stretch: bool = False
    """Of pictures: fill the tiles and ignore the aspect ratio."""
    video: VideoConfig = field(default_factory=VideoConfig)
    begin: Literal["new", "image"] = "new"
    """With video layers that know nothing and are closed, as in the paper, or with copies of those of `image`, which
    read a clip as they read pictures (needs --video.adapter.aggregator.start frames)."""
    data: ClipDataConfig = field(default_factory=ClipDataConfig)
    pretrain: VideoPretrainConfig = field(default_factory=VideoPretrainConfig)
    simple: SimpleConfig = field(default_factory=SimpleConfig)
    cache: Literal["auto", "off"] = "auto"
    """Keep the frozen encoder's features on disk; off computes them anew each time, to the same losses."""
    cache_dir: Path | None = None
    """Where; by default in the run folder."""
    cache_gb: float = 10.0
    """At most so much, in 10^9 bytes."""
    checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""
    resume: bool = False
    """Go on from the newest checkpoint of the run folder."""


def build_video_model(config: VideoQAConfig) -> MultimodalModel:
    """The image model with new video parts, on the device of the run.

    Raises:
        UserError: as `image_model`; no image adapter in the folder, or it has video parts already; or image layers
            that are to read clips and cannot.
    """
    if config.video.to_image_layers and config.image is None:
        raise UserError(
            "--video.to-image-layers without --image: the image layers of a new adapter are closed and stay closed; "
            "expected an adapter folder"
        )
    if config.begin == "image" and config.image is None:
        raise UserError("--begin image without --image: expected an adapter folder")
    model = image_model(
        config.image,
        config.train,
        decoder=config.decoder,
        quantize=config.decoder_quantize,
        new=ImageConfig(encoder=config.encoder, adapter=config.image_adapter, stretch=config.stretch),
    )
    if "image" not in model.modalities or "video" in model.modalities:
        kinds = ", ".join(model.modalities)
        raise UserError(f"{config.image}: an adapter for {kinds}; expected one for images, without video")
    model.add("video", config.video)
    if config.begin == "image":
        image = model.modalities["image"]
        assert isinstance(image, ImageModality)
        _video(model).adapter.begin_as(image.adapter)
    if config.checkpointing:
        model.decoder.enable_gradient_checkpointing()
    if config.cache != "off":
        cache = FeatureCache(config.cache_dir or config.run_dir / "features", max_gb=config.cache_gb)
        _video(model).use_cache(cache)
    return model


def _video(model: MultimodalModel) -> VideoModality:
    modality = model.modalities["video"]
    assert isinstance(modality, VideoModality)
    return modality


def clip_set(config: VideoQAConfig, *, dev: bool = False, captions: bool = False) -> ClipSet:
    """The clips of one stage, or those that are evaluated in training.

    Raises:
        UserError: the source cannot be read, or has no question of the kinds asked for.
    """
    data = config.data
    source = config.pretrain.source if captions else data.source
    if source == CLIPS:
        builtin = _builtin_clips(config)
        if dev:
            return replace(builtin, count=data.dev_count, seed=builtin.seed + 1, split="held_out", more=False)
        return replace(builtin, captions=captions)
    split = data.dev_split if dev else data.train_split
    clips = read_questions(source, split=split, kinds=() if captions else data.kinds)
    if dev or captions or not data.cuttings:
        return clips[: data.dev_count] if dev else clips
    return clips + _cut(config, clips, count=data.cuttings, most=MOST_WORDS)


def _builtin_clips(config: VideoQAConfig) -> BuiltinClips:
    """Those to learn from.

    Raises:
        UserError: an unknown kind of question.
    """
    data = config.data
    _check_kinds(data.kinds)
    return BuiltinClips(
        folder=data.clip_folder or config.run_dir / "clips",
        count=data.clips,
        seed=config.train.seed,
        split="train",
        size=data.clip_size,
        frames=data.clip_frames,
        kinds=data.kinds or KINDS,
        more=True,
    )


def _cut(config: VideoQAConfig, clips: Sequence[QuestionedClip], *, count: int, most: int) -> list[QuestionedClip]:
    """Parts of the training clips of GRID.

    Raises:
        UserError: the source has no word times, or only some kinds of questions are asked for.
    """
    if config.data.kinds:
        raise UserError("cuttings with --data.kinds: expected all kinds of questions")
    times = read_word_times(Path(config.data.source) / WORD_TIMES)
    return grid_cuttings(clips, times, count=count, seed=config.train.seed, most=most)


def simple_clips(config: VideoQAConfig) -> ClipSet:
    """The clips of the stage of that name, none if it is left out.

    Raises:
        UserError: the source cannot be read, is neither built in nor GRID, or has no simple clips for the kinds asked.
    """
    simple, data = config.simple, config.data
    if not simple.steps:
        return []
    if data.source != CLIPS:
        return _cut(config, read_questions(data.source, split=data.train_split), count=simple.clips, most=simple.words)
    builtin = _builtin_clips(config)
    kinds = tuple(kind for kind in ALONE_KINDS if kind in builtin.kinds)
    if not kinds:
        raise UserError(
            f"--simple.steps with --data.kinds {' '.join(data.kinds)}: expected some of {', '.join(ALONE_KINDS)}"
        )
    return replace(builtin, count=simple.clips, kinds=kinds, alone=True)


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


def held_out_clips(
    folder: Path, *, count: int, seed: int, kinds: Sequence[str] = (), size: int = 64, frames: int = 24
) -> list[QuestionedClip]:
    """Built-in clips with one question each, about an object that training never shows.

    Raises:
        UserError: an unknown kind of question.
    """
    _check_kinds(kinds)
    clips = BuiltinClips(
        folder=folder,
        count=count,
        seed=seed,
        split="held_out",
        size=size,
        frames=frames,
        kinds=tuple(kinds) or KINDS,
    )
    return [clips[i] for i in range(count)]


def _check_kinds(kinds: Sequence[str]) -> None:
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown:
        raise UserError(f"questions of the kind {unknown[0]!r}; expected some of {', '.join(KINDS)}")


def ask_both_ways(
    model: MultimodalModel, clips: Sequence[QuestionedClip], *, choice: bool
) -> dict[str, list[AskedClip]]:
    """What is evaluated: open questions as "accuracy" and, if they are trained, options as "choice_accuracy"."""
    asked = {"accuracy": ask_clips(model, clips)}
    if choice and (offered := ask_clips(model, clips, choice=True)):
        asked["choice_accuracy"] = offered
    return asked


def evaluate_both_ways(
    model: MultimodalModel, asked: dict[str, list[AskedClip]], *, seed: int = 0, max_new_tokens: int = 12
) -> tuple[dict[str, Evaluation[AskedClip]], dict[str, float]]:
    """The evaluations by name, and all numbers for `metrics.json`."""
    found = {
        name: evaluate_clips(model, some, name=name, seed=seed, max_new_tokens=max_new_tokens)
        for name, some in asked.items()
    }
    metrics: dict[str, float] = {}
    for name, evaluation in found.items():
        metrics |= evaluation.metrics() | reversal_metrics(evaluation, name=name)
    return found, metrics


def _dev_questions(model: MultimodalModel, config: VideoQAConfig) -> dict[str, list[AskedClip]]:
    """Those that are evaluated in training, empty if there are to be none."""
    if not config.data.dev_count:
        return {}
    found = clip_set(config, dev=True)
    asked = ask_both_ways(model, [found[i] for i in range(len(found))], choice=config.data.choice > 0)
    if len({one.name for one in asked["accuracy"]}) < 2:
        raise UserError(
            f"{config.data.source}: fewer than two readable clips in split {config.data.dev_split} "
            "(--data.dev-count 0 trains without)"
        )
    return asked


def _fit_statistics(model: MultimodalModel, clips: ClipSet, *, seed: int) -> None:
    """Statistics of the features of some clips, drawn by the seed, so that a resumed run finds the same ones.

    Raises:
        UserError: none of them can be read.
    """
    broken = BrokenSamples(what="clips")
    drawn = random.Random(f"statistics/{seed}").sample(range(len(clips)), min(STATISTICS_FROM, len(clips)))
    chosen = [clips[number] for number in drawn]
    read = (broken.read(lambda c=c: _video(model).prepare(c.clip, between=c.between), id=c.name) for c in chosen)
    try:
        _video(model).fit_statistics(frames for frames in read if frames is not None)
    except ValueError:
        found = f"none of {len(chosen)} clips can be read, the first is {chosen[0].name}" if chosen else "no clips"
        raise UserError(f"{found}; expected clips to learn from") from None


def _stage(
    config: VideoQAConfig,
    model: MultimodalModel,
    settings: TrainConfig,
    name: str,
    clips: ClipSet,
    dev: dict[str, list[AskedClip]],
) -> TrainResult:
    data = config.data
    return train(
        task=model,
        dataset=ClipSamples(
            model,
            clips,
            questions=data.questions,
            own_first=data.source == CLIPS,
            choice=data.choice,
            misread=data.misread,
            on_error=data.on_error,
        ),
        collate=model.collate,
        config=settings,
        run_dir=config.run_dir / name,
        resume=config.resume,
        evaluate=(lambda step: evaluate_both_ways(model, dev, seed=settings.seed)[1]) if dev else None,
        config_yaml=dump(config),
    )


def _before(stage: StageConfig, config: VideoQAConfig) -> TrainConfig:
    """Settings of a stage before the main one, in which nothing is evaluated."""
    return replace(stage.settings(config.train, rates=config.train.learning_rates), eval_every=0)


def _check_rates(config: VideoQAConfig) -> None:
    for rates in (s.learning_rates for s in (config.train, config.pretrain, config.simple)):
        moved = [part for part in IMAGE_PARTS if rates.get(part)]
        if moved:
            raise UserError(
                f"--learning-rates has {moved[0]} {rates[moved[0]]}: expected 0; video training leaves the image "
                "parts as they are"
            )


def train_video_qa(
    config: VideoQAConfig, *, report: Callable[[str], None] = print
) -> tuple[MultimodalModel, TrainResult]:
    """All stages; the trained model, its adapter saved in `run_dir/adapter`, and what the last stage did.

    Raises:
        UserError: anything the user can put right.
    """
    _check_rates(config)
    model = build_video_model(config)
    start = model.modalities_sha256()
    frozen = (model.decoder.sha256(), weights_sha256(model.modalities["image"]))
    early, video = config.pretrain, config.video
    # a fault in them costs no training
    clips, simple, dev = clip_set(config), simple_clips(config), _dev_questions(model, config)
    _fit_statistics(model, clips, seed=config.train.seed)
    if early.steps:
        _video(model).resample(frames=early.frames, group=early.group)
        _stage(config, model, _before(early, config), "pretrain", clip_set(config, captions=True), {})
        _video(model).resample(frames=video.frames, group=video.adapter.aggregator.group)
    if len(simple):
        _stage(config, model, _before(config.simple, config), "simple", simple, {})
    result = _stage(config, model, config.train, "answer", clips, dev)
    if (model.decoder.sha256(), weights_sha256(model.modalities["image"])) != frozen:
        raise RuntimeError("frozen weights have changed; this is a defect of Graft")
    recipe = {START: start} | asdict(config)
    model.save_pretrained(config.run_dir / "adapter", recipe=recipe, metrics=result.metrics)
    if result.skipped:
        report(f"{result.skipped} samples with broken clips were skipped")
    if (cache := _video(model).cache) is not None and not config.train.workers:  # workers count for themselves
        report(f"feature cache: {cache.hits} clips read, {cache.misses} computed")
    report(f"adapter saved in {config.run_dir / 'adapter'} ({result.steps} steps, {result.seconds:.0f} s)")
    return model, result
