"""The stages of image-adapter training: initial, then annealing at a higher tile resolution, then self-critical.

Llama 3 paper, section 7.3 / spec A4.6; the last one, which it does not have, is told in `vision.self_critical`. Each
starts from the weights of the one before with a fresh optimizer.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from multimodal.adapter_merge import START
from multimodal.config import dump, expect_at_least
from multimodal.data.feature_cache import FeatureCache
from multimodal.data.order import Order, SeededOrder
from multimodal.errors import UserError
from multimodal.metrics import derangement
from multimodal.model import MultimodalModel
from multimodal.pretrained import BUILTIN
from multimodal.quantization import DecoderQuantization
from multimodal.train.config import StageConfig, TrainConfig
from multimodal.train.loop import Collate, TrainResult, train
from multimodal.train.precision import resolve_device, resolve_precision
from multimodal.train.task import Task
from multimodal.unseen_pairs import undenied
from vision.caption_data import CaptionImages, ImageTextSample, read_captions
from vision.caption_tables import CaptionRecord, Columns
from vision.captioning import Asked, CaptionSamples, SceneSamples, ask_captions, captions_and_questions, evaluate_both
from vision.image_adapter import ImageAdapterConfig
from vision.image_modality import EncoderOptions, ImageConfig, image_of
from vision.image_model import image_model
from vision.scenes import SceneMix
from vision.self_critical import MAX_NEW_TOKENS, ReferencedPictures, SelfCriticalTask
from vision.tiling import Augment

SCENES = "scenes"


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where captioned pictures come from and how they are used."""

    source: str = SCENES
    """"scenes" (built in), a folder with pictures and a captions table, a JSONL manifest, or a data set of the hub."""
    subset: str = ""
    """Configuration of a data set of the hub that has several."""
    limit: int = 0
    """Pictures of the training split that are used, the first ones; 0 = all. Of a data set of the hub more are not
    fetched."""
    train_split: str = "train"
    dev_split: str = "dev"
    """Evaluated during training, with controls. Never the split that is reported."""
    dev_count: int = 100
    """Pictures of the dev split that are used; 0 = none."""
    columns: Columns = field(default_factory=Columns)
    on_error: Literal["skip", "fail"] = "skip"
    """A broken picture is skipped, counted and reported, or ends the run."""
    captions: int = 1
    """Captions of a picture learnt in one step; the picture is encoded once for all of them."""
    flip: bool = False
    """Mirror half of the pictures. Makes "left" and "right" wrong."""
    crop_scale: tuple[float, float] = (1.0, 1.0)
    """Random crops of this part of the area."""
    scenes: int = 20000
    """Built-in scenes in an epoch."""
    scene_size: int = 64
    """Their size in pixels."""
    mix: SceneMix = field(default_factory=SceneMix)
    """Which of the built-in training scenes are made easier."""
    questions: int = 3
    """Questions about a built-in scene learnt in one step."""
    inventory: bool = False
    """Learn a full description of a built-in scene too."""
    misread: float = 0.0
    """Share of the words already said that the decoder reads wrong in training, so that pictures are looked at."""
    unseen_pairs: int = 0
    """Words that never stand side by side in so many samples, though both are frequent, are not denied beside each
    other, so that new pairs can be said (`multimodal.unseen_pairs`). 0: whatever is not said is denied."""

    def __post_init__(self) -> None:
        expect_at_least(1, of="data.", captions=self.captions, scenes=self.scenes, scene_size=self.scene_size)
        counts = {
            "dev_count": self.dev_count,
            "questions": self.questions,
            "limit": self.limit,
            "unseen_pairs": self.unseen_pairs,
        }
        expect_at_least(0, of="data.", **counts)
        if not 0 <= self.misread < 1:
            raise UserError(f"--data.misread {self.misread}: expected 0 to below 1")

    def read(self, split: str, *, limit: int) -> list[CaptionRecord]:
        """The first `limit` (0 = all) records of a split.

        Raises:
            UserError: as `read_captions`.
        """
        return read_captions(
            self.source, split=split, columns=self.columns, subset=self.subset or None, limit=limit or None
        )


@dataclass(frozen=True, kw_only=True)
class AnnealConfig(StageConfig):
    """The second stage; 0 steps leave it out. Rates that are not named are a fifth of the first stage's."""

    tile_size: int = 0
    """Pixels of a tile; 0 = as before."""


@dataclass(frozen=True, kw_only=True)
class SelfCriticalConfig(StageConfig):
    """The last stage, which raises CIDEr-D; 0 steps leave it out. Rates that are not named are a tenth of the first
    stage's."""

    draws: int = 5
    """Captions that are drawn of each picture, and compared."""
    contrast: float = 0.0
    """How much the CIDEr-D with the captions of other pictures counts against a caption. At 0 what is said of every
    picture alike becomes likelier too, and a picture matters less."""

    def __post_init__(self) -> None:
        if self.draws < 2:
            raise UserError(f"--self-critical.draws {self.draws}: expected 2 or more, which are compared")
        expect_at_least(0, of="self-critical.", contrast=self.contrast)


@dataclass(frozen=True, kw_only=True)
class CaptioningConfig:
    """Train an image adapter on a frozen decoder."""

    run_dir: Path
    """Folder for logs, checkpoints and the adapter."""
    train: TrainConfig
    decoder: str = BUILTIN
    """"builtin", a folder, or a name of the hub."""
    decoder_quantize: DecoderQuantization = "none"
    """Keep the weights of its linear layers in 8 bits (needs the extra: pip install graft-multimodal[quantize])."""
    start: Path | None = None
    """Image adapter to go on from, with its own decoder and sizes: one trained here, or of convert_mllama."""
    encoder: EncoderOptions = field(default_factory=EncoderOptions)
    adapter: ImageAdapterConfig = field(default_factory=ImageAdapterConfig)
    data: DataConfig = field(default_factory=DataConfig)
    anneal: AnnealConfig = field(default_factory=AnnealConfig)
    self_critical: SelfCriticalConfig = field(default_factory=SelfCriticalConfig)
    stretch: bool = False
    """Fill the tiles and ignore the aspect ratio, for pictures that were squashed to squares."""
    cache: Literal["auto", "off"] = "auto"
    """Keep on disk what an encoder that stays frozen makes of pictures that are files and are not augmented; off
    computes it anew each time."""
    cache_dir: Path | None = None
    """Where; by default in the run folder."""
    cache_gb: float = 10.0
    """At most so much, in 10^9 bytes."""
    checkpointing: bool = False
    """Recompute activations in the backward pass to save memory (not those of an encoder of transformers in the
    self-critical stage)."""
    resume: bool = False
    """Go on from the newest checkpoint of the run folder."""


def build_model(config: CaptioningConfig) -> MultimodalModel:
    """The frozen decoder with a new image adapter, or one to go on from, on the device of the run.

    Raises:
        UserError: as `image_model`, or the adapter to go on from is not one for images alone.
    """
    model = image_model(
        config.start,
        config.train,
        decoder=config.decoder,
        quantize=config.decoder_quantize,
        new=ImageConfig(encoder=config.encoder, adapter=config.adapter, stretch=config.stretch),
    )
    if list(model.modalities) != ["image"]:
        found = ", ".join(model.modalities)
        raise UserError(f"{config.start}: an adapter for {found}; expected one for images alone")
    if config.checkpointing:
        model.decoder.enable_gradient_checkpointing()
        image_of(model).encoder.enable_gradient_checkpointing()  # type: ignore[operator]
    return model


def training_data(model: MultimodalModel, config: CaptioningConfig) -> SceneSamples | CaptionSamples:
    """The samples of one stage, tiled as the model wants them now.

    Raises:
        UserError: the source cannot be read.
    """
    data = config.data
    if data.source == SCENES:
        return SceneSamples(
            model,
            count=data.scenes,
            size=data.scene_size,
            seed=config.train.seed,
            questions=data.questions,
            inventory=data.inventory,
            mix=data.mix,
            misread=data.misread,
        )
    return CaptionSamples(model, _training_pictures(model, data), captions=data.captions, misread=data.misread)


def _training_pictures(model: MultimodalModel, data: DataConfig) -> CaptionImages:
    return CaptionImages(
        data.read(data.train_split, limit=data.limit),
        image_of(model).tiling,
        on_error=data.on_error,
        augment=Augment(flip=data.flip, crop_scale=data.crop_scale),
        prepare=image_of(model).prepare if image_of(model).kept is not None else None,
    )


def use_feature_cache(model: MultimodalModel, config: CaptioningConfig, settings: TrainConfig) -> None:
    """Keep the features of an encoder that stays frozen in this stage; of another one, none."""
    parts = image_of(model).encoder.parts()
    moved = any(named and settings.learning_rates.get(part, 1.0) for part, named in parts.items())
    if config.cache == "off" or moved or config.data.source == SCENES:
        image_of(model).use_cache(None)
        return
    cache = FeatureCache(config.cache_dir or config.run_dir / "features", max_gb=config.cache_gb)
    precision = resolve_precision(settings.precision, resolve_device(settings.device))
    image_of(model).use_cache(cache, precision=precision)


def training_order(data: DataConfig, settings: TrainConfig, *, samples: int) -> Order | None:
    """As they stand for built-in scenes that begin with easier ones; else None, the engine's random order."""
    if data.source != SCENES or not data.mix.unnamed_first:
        return None
    return SeededOrder(length=samples, batch_size=settings.batch_size, seed=settings.seed, shuffle=False)


def ask_pictures(model: MultimodalModel, records: Sequence[CaptionRecord]) -> list[Asked]:
    """Those of the pictures that can be read, to be captioned or asked about; the others are told of and skipped."""
    images = CaptionImages(records, image_of(model).tiling)
    found = (images.sample(i, random.Random(i)) for i in range(len(images)))
    return ask_captions([s for s in found if isinstance(s, ImageTextSample)])


def _dev_pictures(model: MultimodalModel, data: DataConfig) -> list[Asked]:
    """The dev split, empty if there is to be none. Read before training, so that a fault in it costs no training."""
    if data.source == SCENES or not data.dev_count:
        return []
    without = "(--data.dev-count 0 trains without)"
    try:
        asked = ask_pictures(model, data.read(data.dev_split, limit=data.dev_count))
        if len(asked) < 2:
            raise UserError(
                f"{data.source}: readable pictures in split {data.dev_split}: {len(asked)}; expected at least two"
            )
        for part in captions_and_questions(asked):
            derangement(len(part), random.Random(0), groups=[one.looks for one in part])
    except UserError as error:
        raise UserError(f"{error} {without}") from None
    return asked


@dataclass(frozen=True)
class _Stage:
    """One of the stages of a run."""

    name: str
    settings: TrainConfig
    tile_size: int = 0
    """Pixels of a tile from here on; 0 = as before."""


def _stages(config: CaptioningConfig) -> list[_Stage]:
    """Those that have steps, in order; all settings are made, and so checked, before the first."""
    main, rates = config.train, config.train.learning_rates
    stages = [_Stage("initial", main)]
    if config.anneal.steps:
        settings = config.anneal.settings(main, rates={part: rate / 5 for part, rate in rates.items()})
        stages.append(_Stage("anneal", settings, config.anneal.tile_size))
    if config.self_critical.steps:
        if config.data.source == SCENES:
            raise UserError(
                f"--self-critical.steps {config.self_critical.steps}: built-in scenes have no captions by people to be "
                "judged by; expected --data.source to be captioned pictures, or 0"
            )
        settings = config.self_critical.settings(main, rates={part: rate / 10 for part, rate in rates.items()})
        if config.self_critical.contrast and settings.batch_size // settings.accumulate < 2:
            raise UserError(
                f"--self-critical.contrast {config.self_critical.contrast}: {settings.batch_size} pictures in "
                f"{settings.accumulate} micro-batches; expected two or more in each, to be compared"
            )
        stages.append(_Stage("self_critical", settings))
    for stage in stages:
        if set(stage.settings.learning_rates) != set(rates):
            raise UserError(
                f"stage {stage.name} has learning rates for {', '.join(sorted(stage.settings.learning_rates))}; "
                f"expected {', '.join(sorted(rates))}"
            )
        if stage.settings.keep_best and not config.data.dev_count:
            raise UserError(
                f"stage {stage.name} keeps the best {stage.settings.keep_best} of --data.dev-count 0; expected pictures"
            )
    return stages


def _run(stage: _Stage, config: CaptioningConfig, model: MultimodalModel, dev: Sequence[Asked]) -> TrainResult:
    """Train one stage: on captions, or, if it is the self-critical one, on what the model draws."""

    def evaluate(step: int) -> dict[str, float]:
        found = evaluate_both(model, dev, max_new_tokens=MAX_NEW_TOKENS)
        return {name: value for evaluation in found for name, value in evaluation.metrics().items()}

    use_feature_cache(model, config, stage.settings)
    task: Task = model
    collate: Collate = model.collate
    unseen_from = config.data.unseen_pairs
    if stage.name == "self_critical":
        pictures = _training_pictures(model, config.data)
        samples: SceneSamples | CaptionSamples = ReferencedPictures(model, pictures)
        captions = [record.captions for record in pictures.records]
        chosen = config.self_critical
        task = SelfCriticalTask(model, captions, draws=chosen.draws, contrast=chosen.contrast)
        collate = list
        unseen_from = 0  # its loss denies nothing
    else:
        samples = training_data(model, config)
    with undenied(model, samples, samples=unseen_from, seed=stage.settings.seed):
        result = train(
            task=task,
            dataset=samples,
            collate=collate,
            config=stage.settings,
            run_dir=config.run_dir / stage.name,
            resume=config.resume,
            evaluate=evaluate if dev else None,
            config_yaml=dump(config),
            order=training_order(config.data, stage.settings, samples=len(samples)),
            start_counts=stage.name != "initial" or config.start is not None,
        )
    image_of(model).use_cache(None)
    return result


def train_captioning(
    config: CaptioningConfig, *, report: Callable[[str], None] = print
) -> tuple[MultimodalModel, TrainResult]:
    """All stages; the trained model, its adapter saved in `run_dir/adapter`, and what the last stage did.

    Raises:
        UserError: anything the user can put right.
    """
    first, *others = _stages(config)
    model = build_model(config)
    for stage in others:
        if stage.tile_size:
            image_of(model).expect_resizable(stage.tile_size)
    sha256, start = model.decoder.sha256(), model.modalities_sha256()
    result = _run(first, config, model, _dev_pictures(model, config.data))
    for stage in others:
        if stage.tile_size:
            image_of(model).resize_tiles(stage.tile_size)
        result = _run(stage, config, model, _dev_pictures(model, config.data))
    if model.decoder.sha256() != sha256:
        raise RuntimeError("the frozen decoder's weights have changed; this is a defect of Graft")
    recipe: Mapping[str, Any] = {START: start} | asdict(config)
    model.save_pretrained(config.run_dir / "adapter", recipe=recipe, metrics=result.metrics)
    if result.skipped:
        report(f"{result.skipped} samples with broken pictures were skipped")
    report(f"adapter saved in {config.run_dir / 'adapter'} ({result.steps} steps, {result.seconds:.0f} s)")
    return model, result
