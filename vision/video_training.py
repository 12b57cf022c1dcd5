"""The stages of video-adapter training on an image model: video-text pairs, then question answering, on simple
clips before all others.

Llama 3 paper, section 7.3 / spec A5.3. All train the aggregator and the video layers only; the image adapter, its
encoder and the decoder stay as they are. A stage starts from the weights of the one before with a fresh optimizer.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from multimodal.adapter_merge import START
from multimodal.config import dump, expect_at_least
from multimodal.data.broken import BrokenSamples
from multimodal.data.feature_cache import FeatureCache
from multimodal.errors import UserError
from multimodal.hashing import weights_sha256
from multimodal.metrics import Evaluation, derangement
from multimodal.model import MultimodalModel
from multimodal.pretrained import BUILTIN
from multimodal.quantization import DecoderQuantization
from multimodal.train.config import StageConfig, TrainConfig
from multimodal.train.loop import TrainResult, train
from multimodal.unseen_pairs import undenied
from vision.clip_data import CLIPS, ClipDataConfig, ClipSets
from vision.clip_question import ClipSet, QuestionedClip
from vision.image_adapter import ImageAdapterConfig
from vision.image_modality import EncoderOptions, ImageConfig, image_of
from vision.image_model import image_model
from vision.video_answering import DESCRIBED, AskedClip, ClipSamples, ask_clips, evaluate_clips, reversal_metrics
from vision.video_modality import VideoConfig, VideoModality

STATISTICS_FROM = 64
"""Clips from whose features their mean and deviation are taken."""
IMAGE_PARTS = ("adapter", "gates", "encoder", "late", "tokens")
"""Parts of the model that stay as they are."""


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
    """Of the second stage. The image parts (adapter, gates, encoder, late, tokens) have a rate of 0."""
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
        _video(model).adapter.begin_as(image_of(model).adapter)
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


def clip_sets(config: VideoQAConfig) -> ClipSets:
    """The clips of a run; rendered ones are kept in its folder if no other is named."""
    return ClipSets(config.data, folder=config.data.clip_folder or config.run_dir / "clips", seed=config.train.seed)


def ask_both_ways(
    model: MultimodalModel, clips: Sequence[QuestionedClip], *, choice: bool
) -> dict[str, list[AskedClip]]:
    """What is evaluated: open questions as "accuracy" and, if they are trained, options as "choice_accuracy"."""
    asked = {"accuracy": ask_clips(model, clips)}
    if choice and (offered := ask_clips(model, clips, choice=True)):
        asked["choice_accuracy"] = offered
    return asked


def evaluate_both_ways(
    model: MultimodalModel,
    asked: dict[str, list[AskedClip]],
    *,
    describe_with: str = "",
    seed: int = 0,
    max_new_tokens: int = 12,
) -> tuple[dict[str, Evaluation[AskedClip]], dict[str, float]]:
    """The evaluations by name, and all numbers for `metrics.json`; with a prompt to `describe_with` open questions are
    answered from descriptions, too (`DESCRIBED`).
    """
    options: dict[str, Any] = {"seed": seed, "max_new_tokens": max_new_tokens}
    found = {name: evaluate_clips(model, some, name=name, **options) for name, some in asked.items()}
    if describe_with:
        options["describe_with"] = describe_with
        found[DESCRIBED] = evaluate_clips(model, asked["accuracy"], name=DESCRIBED, **options)
    metrics: dict[str, float] = {}
    for name, evaluation in found.items():
        metrics |= evaluation.metrics() | reversal_metrics(evaluation, name=name)
    return found, metrics


def _dev_questions(model: MultimodalModel, config: VideoQAConfig) -> dict[str, list[AskedClip]]:
    """Those that are evaluated in training, empty if there are to be none."""
    if not config.data.dev_count:
        return {}
    asked = ask_both_ways(model, clip_sets(config).judged(), choice=config.data.choice > 0)
    for some in asked.values():
        try:
            derangement(len(some), random.Random(0), groups=[one.name for one in some])
        except UserError as error:
            where = f"{config.data.source}, split {config.data.dev_split}"
            raise UserError(f"{where}: {error} (--data.dev-count 0 trains without)") from None
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
    samples = ClipSamples(
        model,
        clips,
        questions=data.questions,
        always=1 + data.inventory if data.source == CLIPS else None,
        choice=data.choice,
        misread=data.misread,
        on_error=data.on_error,
    )

    def evaluate(step: int) -> dict[str, float]:
        return evaluate_both_ways(model, dev, describe_with=data.describe_with, seed=settings.seed)[1]

    with undenied(model, samples, samples=data.unseen_pairs, seed=settings.seed):
        return train(
            task=model,
            dataset=samples,
            collate=model.collate,
            config=settings,
            run_dir=config.run_dir / name,
            resume=config.resume,
            evaluate=evaluate if dev else None,
            config_yaml=dump(config),
        )


def _before(stage: StageConfig, config: VideoQAConfig) -> TrainConfig:
    """Settings of a stage before the main one, in which nothing is evaluated."""
    return replace(stage.settings(config.train, rates=config.train.learning_rates), eval_every=0)


def _check_stages(config: VideoQAConfig) -> None:
    """What a later stage would refuse costs no training."""
    early = {"pretrain": config.pretrain, "simple": config.simple}
    kept = {name: stage.keep_best for name, stage in early.items() if stage.steps}
    kept |= {} if config.data.dev_count else {"train": config.train.keep_best}
    for name, wanted in kept.items():
        if wanted:
            raise UserError(
                f"--{name}.keep-best {wanted}: nothing is evaluated there; expected it of the main stage, with "
                "--data.dev-count"
            )
    for rates in (s.learning_rates for s in (config.train, *early.values())):
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
    _check_stages(config)
    model = build_video_model(config)
    start = model.modalities_sha256()
    frozen = (model.decoder.sha256(), weights_sha256(image_of(model)))
    early, video, sets = config.pretrain, config.video, clip_sets(config)
    # a fault in them costs no training
    clips, dev = sets.learnt(), _dev_questions(model, config)
    simple = sets.simple(config.simple.clips, words=config.simple.words) if config.simple.steps else None
    _fit_statistics(model, clips, seed=config.train.seed)
    if early.steps:
        _video(model).resample(frames=early.frames, group=early.group)
        _stage(config, model, _before(early, config), "pretrain", sets.captioned(early.source), {})
        _video(model).resample(frames=video.frames, group=video.adapter.aggregator.group)
    if simple is not None:
        _stage(config, model, _before(config.simple, config), "simple", simple, {})
    result = _stage(config, model, config.train, "answer", clips, dev)
    if (model.decoder.sha256(), weights_sha256(image_of(model))) != frozen:
        raise RuntimeError("frozen weights have changed; this is a defect of Graft")
    recipe = {START: start} | asdict(config)
    model.save_pretrained(config.run_dir / "adapter", recipe=recipe, metrics=result.metrics)
    if result.skipped:
        report(f"{result.skipped} samples with broken clips were skipped")
    if (cache := _video(model).cache) is not None and not config.train.workers:  # workers count for themselves
        report(f"feature cache: {cache.hits} clips read, {cache.misses} computed")
    report(f"adapter saved in {config.run_dir / 'adapter'} ({result.steps} steps, {result.seconds:.0f} s)")
    return model, result
