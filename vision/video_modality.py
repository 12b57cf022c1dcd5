"""Clips as a modality of `MultimodalModel`: sampling, the image modality's encoder, aggregator and video adapter.

Llama 3 paper, section 7.3 / spec A5. A clip takes one token of the prompt. Its frames go through the encoder of the
image modality, without gradient, a few at a time: what is kept of a clip is its features.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from multimodal.batch import MediaBatch
from multimodal.data.feature_cache import FeatureCache, cache_key, file_key
from multimodal.decoder import FrozenDecoder
from multimodal.decoder_sizes import decoder_sizes
from multimodal.errors import UserError
from multimodal.memory import AdapterMemory
from multimodal.train.precision import autocast, resolve_precision
from vision.clip import ClipSource, read_clip
from vision.clip_frames import ClipBatch, ClipFrames, FrameOrder, join_features
from vision.clip_motion import neighbours_as_colours
from vision.cross_layers import gate_values, split_gates
from vision.encoder import ImageFeatures
from vision.image_modality import ImageModality
from vision.picture_features import encoder_key
from vision.temporal_aggregator import TemporalAggregatorConfig
from vision.tiling import Tiling
from vision.video_adapter import VideoAdapter, VideoAdapterConfig

log = logging.getLogger(__name__)

KEPT_DTYPE = torch.bfloat16
"""Of frame features: rounded whether or not they are cached, so that a cache changes no loss."""


@dataclass(frozen=True, kw_only=True)
class VideoConfig:
    """How clips reach the decoder."""

    adapter: VideoAdapterConfig = field(default_factory=VideoAdapterConfig)
    frames: int = 16
    """Frames sampled of a clip; the paper: 16 in pre-training, 64 afterwards."""
    max_tiles: int = 0
    """Tiles of a frame at most; 0 = as for pictures."""
    stretch: bool = False
    """Fill the tiles and ignore the aspect ratio."""
    motion: bool = False
    """Show the encoder each sampled frame with its neighbours as its colours (`vision.clip_motion`)."""
    to_image_layers: bool = False
    """Let the image cross-attention layers read the merged frames too, in conversations without a picture."""
    frames_at_once: int = 16
    """Frames in the image encoder at once; fewer save memory."""

    def __post_init__(self) -> None:
        for name in ("frames", "frames_at_once"):
            if getattr(self, name) < 1:
                raise UserError(f"video: {name} {getattr(self, name)}, expected 1 or more")
        if self.max_tiles < 0:
            raise UserError(f"video: max_tiles {self.max_tiles}, expected 0 or more")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "VideoConfig":
        """The inverse of `to_dict`.

        Raises:
            UserError: settings are missing, or there are others.
        """
        try:
            adapter: dict[str, Any] = dict(values["adapter"])
            adapter["aggregator"] = TemporalAggregatorConfig(**adapter["aggregator"])
            others: dict[str, Any] = {name: value for name, value in values.items() if name != "adapter"}
            return cls(adapter=VideoAdapterConfig(**adapter), **others)
        except (KeyError, TypeError) as error:
            raise UserError(f"video settings of the adapter: {error}; expected what save_pretrained wrote") from error

    def to_dict(self) -> dict[str, Any]:
        """For `adapter_config.json`."""
        return asdict(self)


class VideoModality(nn.Module):
    """Temporal aggregator and video cross-attention layers on top of an image modality, which is left as it is.

    Args:
        config: sizes, and how clips are sampled.
        decoder: to graft on.
        image: whose encoder sees the frames; it is not a part of this module.

    Raises:
        UserError: sizes that do not fit.
    """

    kind = "video"
    joins = "cross-attention"
    builds_on = ("image",)

    def __init__(self, config: VideoConfig, decoder: FrozenDecoder, image: ImageModality) -> None:
        super().__init__()
        self.config = config
        self._image = (image,)  # in a tuple: its parameters are its own
        self.adapter = VideoAdapter(
            config.adapter,
            decoder=decoder_sizes(decoder),
            feature_dim=image.encoder.feature_dim,
            image_layers=[int(layer) for layer in image.adapter.layers],
        )
        self.cache: FeatureCache | None = None
        self._cache_base = ""
        self._noted: set[str] = set()
        """Damaged clips that were told of."""

    @classmethod
    def create(
        cls, config: VideoConfig | Mapping[str, Any], decoder: FrozenDecoder, image: ImageModality
    ) -> "VideoModality":
        """For a decoder with an image modality, from a configuration or what `to_dict` made of one."""
        return cls(config if isinstance(config, VideoConfig) else VideoConfig.from_dict(config), decoder, image)

    @property
    def image(self) -> ImageModality:
        return self._image[0]

    @property
    def tiling(self) -> Tiling:
        """How frames become tiles: as pictures do, but for this modality's own settings."""
        tiling = self.image.tiling
        most = self.config.max_tiles or tiling.max_tiles
        return replace(tiling, max_tiles=min(most, tiling.max_tiles), stretch=self.config.stretch or tiling.stretch)

    def resample(self, *, frames: int, group: int) -> None:
        """Go on with other numbers of sampled and of merged frames (spec A5.3); no weight depends on them."""
        aggregator = replace(self.adapter.config.aggregator, group=group)
        adapter = replace(self.adapter.config, aggregator=aggregator)
        self.config = replace(self.config, frames=frames, adapter=adapter)
        self.adapter.config, self.adapter.aggregator.config = adapter, aggregator
        self.use_cache(self.cache)

    def use_cache(self, cache: FeatureCache | None) -> None:
        """Keep frame features of clips that are files on disk, as long as the encoder and the sampling stay."""
        self.cache = cache
        precision = resolve_precision("auto", next(self.image.encoder.parameters()).device)
        self._cache_base = cache_key(
            encoder_key(self.image.encoder), self.tiling, self.config.frames, self.config.motion, precision
        )

    def prepare(
        self,
        source: ClipSource,
        *,
        between: tuple[float, float] | None = None,
        order: FrameOrder | None = None,
    ) -> ClipFrames:
        """A clip's sampled frames, as cached features if there are any, else as tiles.

        Args:
            source: as for `read_clip`.
            between: start and end in seconds of a part that is shown as a clip of its own; None: all of it.
            order: of the frames, in a control; None: as they are. Where neighbours become colours they do so after it.

        Raises:
            UserError: it cannot be read, or has no frame in that part.
        """
        if order is not None and not self.config.motion:
            return self.prepare(source, between=between).reordered(order)
        key = "" if self.cache is None or order is not None else file_key(self._cache_base, source, *(between or ()))
        if self.cache is not None and key and (found := self.cache.load(key)) is not None:
            frames = found["tokens"].split(found["lengths"].tolist())
            grids = tuple((rows, columns) for rows, columns in found["grids"].tolist())
            return ClipFrames(grids, found["times"], frames, encoded=True)
        clip = read_clip(source, count=self.config.frames)
        if clip.note and str(source) not in self._noted:
            self._noted.add(str(source))
            log.warning("%s: %s", source if isinstance(source, str | Path) else "a clip", clip.note)
        pictures = clip.frames if order is None else order(clip.frames)
        pictures = neighbours_as_colours(pictures) if self.config.motion else pictures
        shown, positions = range(len(pictures)), clip.positions
        if between is not None:
            start, end = between
            shown = [number for number, at in enumerate(clip.seconds) if start <= at <= end]
            positions = [(clip.seconds[number] - start) / (end - start) for number in shown]
            if not shown:
                raise UserError(f"{source}: no frame between {start:.2f} and {end:.2f} s; expected a part of the clip")
        tiling = self.tiling
        return ClipFrames.from_tiles([tiling.tile(pictures[number]) for number in shown], positions, key=key)

    def blank(self, item: ClipFrames) -> ClipFrames:
        """As many frames with nothing on them, for the blank control."""
        return item.blank(self.tiling.tile_size)

    def span(self, item: ClipFrames, placeholder: int) -> list[int]:
        """The tokens that a clip takes in the prompt: one, however long it is."""
        return [placeholder]

    def collate(self, items: Sequence[ClipFrames]) -> ClipBatch:
        return ClipBatch(tuple(items))

    @torch.no_grad()
    def encode(self, clip: ClipFrames) -> ImageFeatures:
        """Features of every frame of one clip, from the frozen encoder, which is in eval mode meanwhile.

        Each clip for itself and in the device's own precision, so that features are the same to the bit in any batch,
        in training and afterwards, from the cache or not.
        """
        if clip.encoded:
            return clip.features()
        features = self._encode_tiles(clip)
        if self.cache is not None and clip.key:
            self.cache.store(
                clip.key,
                {
                    "tokens": features.tokens,
                    "lengths": torch.tensor(features.lengths),
                    "grids": torch.tensor(clip.grids),
                    "times": clip.times,
                },
            )
        return features

    def _encode_tiles(self, clip: ClipFrames) -> ImageFeatures:
        """`frames_at_once` by `frames_at_once`, written into their place: of more frames nothing but the features is
        held (spec A5.5), and these once."""
        encoder, device = self.image.encoder, clip.times.device
        lengths = tuple(rows * columns * encoder.tokens_per_tile for rows, columns in clip.grids)
        tokens_NC = torch.empty(sum(lengths), encoder.feature_dim, dtype=KEPT_DTYPE, device=device)
        training, step, done = encoder.training, self.config.frames_at_once, 0
        encoder.eval()
        try:
            with autocast(device, resolve_precision("auto", device)):
                for start in range(0, len(clip), step):
                    part_NC = encoder(clip.tile_batch(start, start + step)).tokens
                    tokens_NC[done : done + len(part_NC)] = part_NC
                    done += len(part_NC)
        finally:
            encoder.train(training)
        return ImageFeatures(tokens_NC, lengths)

    def fit_statistics(self, clips: Iterable[ClipFrames]) -> None:
        """Take the statistics by which the aggregator normalises features from those of some clips, one at a time.

        Raises:
            ValueError: there are none.
        """
        device = self.adapter.aggregator.latents_QD.device
        self.adapter.aggregator.norm_in.fit(self.encode(clip.to(device)).tokens for clip in clips)

    def memory(self, batch: MediaBatch) -> dict[str, AdapterMemory]:
        """Keys and values of a batch of clips, for the video layers and, if the settings say so, the image layers."""
        clips: ClipBatch = batch.items
        features = join_features(self.encode(clip) for clip in clips.clips)
        merged = self.adapter.merge(
            features, frames=[len(clip) for clip in clips.clips], times=torch.cat([clip.times for clip in clips.clips])
        )
        found = {self.kind: self.adapter.layers.memory(merged.tokens, merged.lengths, batch)}
        if self.config.to_image_layers:
            found[self.image.kind] = self.image.adapter.layers.memory(merged.tokens, merged.lengths, batch)
        return found

    def parts(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """Trainables, apart from those of the image modality: aggregator, layers, and their gates."""
        gates, layers = split_gates(self.adapter.layers)
        return {
            "aggregator": [(f"adapter.aggregator.{n}", p) for n, p in self.adapter.aggregator.named_parameters()],
            "video": [(f"adapter.layers.{n}", p) for n, p in layers],
            "video_gates": [(f"adapter.layers.{n}", p) for n, p in gates],
        }

    def log_values(self) -> dict[str, float]:
        """tanh of each gate."""
        return {f"video_gate.{name}": value for name, value in gate_values(self.adapter.layers).items()}
