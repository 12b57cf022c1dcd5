"""Whole systems as configurations: those of the paper and of Llama 3.2 Vision, and what our training recipes train.

A system can be built on the meta device, where its parts have shapes and no data.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import yaml
from torch import nn
from transformers import PretrainedConfig

from multimodal.config import parse
from multimodal.decoder import FrozenDecoder
from multimodal.decoder_shape import DecoderShape
from multimodal.errors import UserError
from multimodal.meta_decoder import meta_decoder, read_config
from multimodal.meta_run import META
from speech import speech_cost
from speech.asr_training import AsrConfig
from speech.best_rq import BestRQConfig, BestRQTask
from speech.conformer import ConformerConfig
from speech.speech_adapter import SpeechAdapterConfig
from speech.speech_cost import MetaSpeech
from speech.speech_modality import SpeechConfig
from vision import image_cost, video_cost
from vision.caption_training import CaptioningConfig
from vision.image_adapter import ImageAdapterConfig
from vision.image_modality import EncoderOptions, ImageConfig, ImageModality
from vision.video_modality import VideoConfig, VideoModality
from vision.video_training import VideoQAConfig

SYSTEMS = Path(__file__).parent / "configs" / "paper"


@dataclass(frozen=True, kw_only=True)
class SystemConfig:
    """A decoder by its sizes, and the parts around it."""

    decoder: DecoderShape = field(default_factory=DecoderShape)
    parts: tuple[Literal["image", "video", "speech"], ...] = ("image", "video", "speech")
    """Which the system has; video builds on image."""
    encoder: EncoderOptions = field(default_factory=EncoderOptions)
    image_adapter: ImageAdapterConfig = field(default_factory=ImageAdapterConfig)
    video: VideoConfig = field(default_factory=VideoConfig)
    speech_encoder: ConformerConfig = field(default_factory=ConformerConfig)
    speech_adapter: SpeechAdapterConfig = field(default_factory=SpeechAdapterConfig)
    best_rq: BestRQConfig = field(default_factory=BestRQConfig)
    notes: tuple[str, ...] = ()
    """Said below the table: how its counts and those of the paper go together."""

    def __post_init__(self) -> None:
        if "video" in self.parts and "image" not in self.parts:
            raise UserError("--parts has video without image: expected both, the image encoder sees the frames")


@dataclass(frozen=True)
class System:
    """What is described: the decoder's configuration, and those of the parts that there are."""

    name: str
    decoder: PretrainedConfig
    image: ImageConfig | None = None
    video: VideoConfig | None = None
    speech: SpeechConfig | None = None
    best_rq: BestRQConfig | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class MetaSystem:
    """A system on the meta device, image and video parts attached to the decoder."""

    decoder: FrozenDecoder
    image: ImageModality | None = None
    video: VideoModality | None = None
    speech: MetaSpeech | None = None
    best_rq: BestRQTask | None = None

    def modules(self) -> dict[str, nn.Module]:
        """Its parts by name."""
        found: dict[str, nn.Module] = {"decoder": self.decoder.lm}
        if self.image is not None:
            found |= image_cost.modules(self.image)
        if self.video is not None:
            found |= video_cost.modules(self.video)
        if self.speech is not None:
            found |= speech_cost.modules(self.speech)
        if self.best_rq is not None:
            found["BEST-RQ heads"] = self.best_rq.heads
        return found


def _from_sizes(name: str, config: SystemConfig) -> System:
    speech = SpeechConfig(encoder=config.speech_encoder, adapter=config.speech_adapter)
    return System(
        name,
        config.decoder.config(),
        image=ImageConfig(encoder=config.encoder, adapter=config.image_adapter) if "image" in config.parts else None,
        video=config.video if "video" in config.parts else None,
        speech=speech if "speech" in config.parts else None,
        best_rq=config.best_rq if "speech" in config.parts else None,
        notes=config.notes,
    )


def _from_captioning(name: str, config: CaptioningConfig) -> System:
    image = ImageConfig(encoder=config.encoder, adapter=config.adapter, stretch=config.stretch)
    return System(name, read_config(config.decoder), image=image)


def _from_video(name: str, config: VideoQAConfig) -> System:
    image = ImageConfig(encoder=config.encoder, adapter=config.image_adapter, stretch=config.stretch)
    return System(name, read_config(config.decoder), image=image, video=config.video)


def _from_asr(name: str, config: AsrConfig) -> System:
    speech = SpeechConfig(encoder=config.encoder_sizes, encoder_name=config.encoder_name, adapter=config.adapter)
    return System(name, read_config(config.decoder), speech=speech)


KINDS: dict[type, Callable[[str, Any], System]] = {
    SystemConfig: _from_sizes,
    CaptioningConfig: _from_captioning,
    VideoQAConfig: _from_video,
    AsrConfig: _from_asr,
}
"""What a YAML file may configure, and the system that it is of."""


def config_file(name: str) -> Path:
    """The file of a system, by its name (8b, 70b, 405b, 11b, 90b) or path.

    Raises:
        UserError: neither.
    """
    named = SYSTEMS / f"{name.lower()}.yaml"
    if "/" not in name and named.is_file():
        return named
    if Path(name).is_file():
        return Path(name)
    known = sorted((path.stem for path in SYSTEMS.glob("*.yaml")), key=lambda stem: (len(stem), stem))
    raise UserError(f"--config {name}: no such file or system; expected a YAML file or one of {', '.join(known)}")


def read_system(name: str, flags: Sequence[str] = ()) -> System:
    """A system by name or file; `flags` change its settings (`--encoder.tile-size 560`).

    Raises:
        UserError: there is none, it configures nothing that is known here, or a setting is wrong.
    """
    file = config_file(name)
    given = _top_level(file)
    errors: list[UserError] = []
    for kind, system_of in KINDS.items():
        names = {setting.name for setting in fields(kind)}
        if not given <= names:
            continue
        required = ["--run-dir", "unused"] if "run_dir" in names and "run_dir" not in given else []
        try:
            return system_of(file.stem, parse(kind, ["--config", str(file), *required, *flags]))
        except UserError as error:
            errors.append(error)
    if errors:
        raise errors[0]
    expected = ", ".join(kind.__name__.removesuffix("Config") for kind in KINDS)
    raise UserError(f"{file}: settings of none of {expected}; expected those of one")


def _top_level(file: Path) -> set[str]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return set()  # `parse` says what is wrong
    return {str(key).replace("-", "_") for key in content} if isinstance(content, Mapping) else set()


def build(system: System, *, checkpointing: bool = False) -> MetaSystem:
    """The system's parts on the meta device, from the classes that training uses.

    Raises:
        UserError: sizes that do not fit, or an encoder of the hub, whose sizes are with its weights.
    """
    for part in (system.image and system.image.encoder.name, system.speech and system.speech.encoder_name):
        if part:
            raise UserError(f"encoder {part}: an encoder of the hub is not described; expected Graft's own")
    decoder = meta_decoder(system.decoder)
    image = video = speech = best_rq = None
    with META:
        if system.image is not None:
            unloaded = replace(system.image, encoder=replace(system.image.encoder, weights=None))
            image = ImageModality.create(unloaded, decoder)
            decoder.attach(image.kind, image.adapter)
            if system.video is not None:
                video = VideoModality.create(system.video, decoder, image)
                decoder.attach(video.kind, video.adapter)
        if system.speech is not None:
            speech = MetaSpeech(system.speech, decoder.dim)
            best_rq = system.best_rq and BestRQTask(speech.encoder, system.best_rq)
    if checkpointing:
        decoder.enable_gradient_checkpointing()
        for encoder in (image and image.encoder, speech and speech.encoder):
            if encoder is not None:
                encoder.enable_gradient_checkpointing()  # type: ignore[operator]
    return MetaSystem(decoder, image, video, speech, best_rq)
