"""Recordings as a modality of `MultimodalModel`: features, speech encoder and speech adapter in one place.

A recording takes as many tokens of the prompt as it has 80 ms frames, between two marks of its own: <speech> e_1 ...
e_n </speech> (Llama 3 paper, section 8.2 / spec B4). The decoder reads the adapter's embeddings in their place.

Legend: B recordings, S samples, M mel frames, T encoder frames, E embeddings of a recording, N those of all rows, D
decoder width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from multimodal.batch import MediaBatch
from multimodal.decoder import FrozenDecoder
from multimodal.errors import UserError
from multimodal.messages import MEDIA_KINDS
from speech.audio import AudioSource, read_audio
from speech.augment import Augment, mask_features
from speech.conformer import Conformer, ConformerConfig
from speech.features import LogMel, LogMelConfig
from speech.frames import SpeechBatch, pad_batch
from speech.speech_adapter import SpeechAdapter, SpeechAdapterConfig, embedding_rms

MARKS = (len(MEDIA_KINDS), len(MEDIA_KINDS) + 1)
"""Rows of the decoder's extra tokens that begin and end speech; the placeholders of the media come before them."""


@dataclass(frozen=True, kw_only=True)
class SpeechConfig:
    """How recordings reach the decoder."""

    encoder: ConformerConfig = field(default_factory=ConformerConfig)
    adapter: SpeechAdapterConfig = field(default_factory=SpeechAdapterConfig)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "SpeechConfig":
        """The inverse of `to_dict`.

        Raises:
            UserError: settings are missing, or there are others.
        """
        try:
            return cls(encoder=ConformerConfig(**values["encoder"]), adapter=SpeechAdapterConfig(**values["adapter"]))
        except (KeyError, TypeError) as error:
            raise UserError(f"speech configuration: {error}; expected that of this version of Graft") from None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


class SpeechModality(nn.Module):
    """Log-mel features, conformer and speech adapter for one decoder.

    Args:
        config: sizes.
        decoder: whose embeddings the adapter's are as loud as.
    """

    kind = "audio"
    joins = "embeddings"
    marks = MARKS

    def __init__(self, config: SpeechConfig, decoder: FrozenDecoder) -> None:
        super().__init__()
        self.config = config
        self.log_mel = LogMel(LogMelConfig(channels=config.encoder.mels))
        self.encoder = Conformer(config.encoder)
        self.adapter = SpeechAdapter(
            config.adapter,
            feature_dim=self.encoder.feature_dim,
            decoder_dim=decoder.dim,
            embedding_rms=embedding_rms(decoder.lm.get_input_embeddings()),
        )
        self.augment: Augment | None = None
        """SpecAugment in training; not on when the model is used."""
        self.begin, self.end = (decoder.vocab_size + mark for mark in self.marks)

    @classmethod
    def create(cls, config: SpeechConfig | Mapping[str, Any], decoder: FrozenDecoder) -> "SpeechModality":
        """For a decoder, from a configuration or what `to_dict` made of one."""
        return cls(config if isinstance(config, SpeechConfig) else SpeechConfig.from_dict(config), decoder)

    def prepare(self, source: AudioSource) -> Tensor:
        """A recording, from a file or in memory, as a waveform [S].

        Raises:
            UserError: it cannot be read.
        """
        return read_audio(source, rate=self.log_mel.config.rate)

    def blank(self, item: Tensor) -> Tensor:
        """Silence of the same length, for the control."""
        return torch.zeros_like(item)

    def output_length(self, samples: int) -> int:
        """Embeddings of so many samples: one for 80 ms."""
        return self.adapter.output_length(self.encoder.output_length(self.log_mel.output_length(samples)))

    def span(self, item: Tensor, placeholder: int) -> list[int]:
        """The tokens that a recording takes in the prompt."""
        return [self.begin, *[placeholder] * self.output_length(len(item)), self.end]

    def collate(self, items: Sequence[Tensor]) -> SpeechBatch:
        return pad_batch(list(items))

    def embeddings(self, batch: MediaBatch) -> Tensor:
        """Embeddings [N, D] of all recordings, row by row of the batch. A frozen encoder runs without gradient."""
        recordings: SpeechBatch = batch.items
        trained = torch.is_grad_enabled() and any(p.requires_grad for p in self.encoder.parameters())
        with torch.set_grad_enabled(trained):
            features_BMF, lengths_B = self.log_mel(recordings.padded, recordings.lengths)
            if self.training and self.augment is not None:
                rng = torch.default_generator  # a checkpoint keeps it
                features_BMF = mask_features(features_BMF, lengths_B, settings=self.augment, rng=rng)
            hidden_BTC = self.encoder(features_BMF, lengths_B)
        embeddings_BED = self.adapter(hidden_BTC, self.encoder.output_length(lengths_B))
        lengths = [self.output_length(samples) for samples in recordings.lengths.tolist()]
        return torch.cat([embeddings_BED[i, : lengths[i]] for row in batch.rows for i, _ in row])

    def parts(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """Trainables: the adapter and the encoder. The marks are trained with the decoder's extra tokens."""
        modules = {"adapter": self.adapter, "encoder": self.encoder}
        return {part: [(f"{part}.{n}", p) for n, p in m.named_parameters()] for part, m in modules.items()}

    def log_values(self) -> dict[str, float]:
        """Nothing but the loss to watch."""
        return {}
