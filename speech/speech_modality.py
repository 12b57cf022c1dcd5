"""Recordings as a modality of `MultimodalModel`: features, speech encoder and speech adapter in one place.

A recording takes as many tokens of the prompt as the adapter makes embeddings of it, between two marks of its own:
<speech> e_1 ... e_n </speech> (Llama 3 paper, section 8.2 / spec B4). The decoder reads the embeddings in their place.
The conformer's stand for 80 ms each; those of a hub encoder for twice its own frames, `embedding_seconds`.

Legend: B recordings, S samples, M input frames of the encoder, F their channels, T encoder frames, C encoder width,
E embeddings of a recording, N those of all rows, D decoder width.
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
from speech.augment import Augment
from speech.conformer import Conformer, ConformerConfig
from speech.encoder import HubSpeechEncoder
from speech.features import LogMel, LogMelConfig
from speech.frames import SpeechBatch
from speech.hub_features import HubFeatures, expect_heard
from speech.speech_adapter import STRIDE, SpeechAdapter, SpeechAdapterConfig, embedding_rms

MARKS = (len(MEDIA_KINDS), len(MEDIA_KINDS) + 1)
"""Rows of the decoder's extra tokens that begin and end speech; the placeholders of the media come before them."""


@dataclass(frozen=True, kw_only=True)
class SpeechConfig:
    """How recordings reach the decoder."""

    encoder: ConformerConfig = field(default_factory=ConformerConfig)
    encoder_name: str = ""
    """Hub name or folder of a speech encoder of transformers; empty: a conformer."""
    encoder_taps: tuple[int, ...] = ()
    """Its layers whose outputs join the last hidden states, counted from 1."""
    adapter: SpeechAdapterConfig = field(default_factory=SpeechAdapterConfig)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "SpeechConfig":
        """The inverse of `to_dict`.

        Raises:
            UserError: settings are missing, or there are others.
        """
        try:
            return cls(
                encoder=ConformerConfig(**values["encoder"]),
                encoder_name=values.get("encoder_name", ""),
                encoder_taps=tuple(values.get("encoder_taps", ())),
                adapter=SpeechAdapterConfig(**values["adapter"]),
            )
        except (KeyError, TypeError) as error:
            raise UserError(f"speech configuration: {error}; expected that of this version of Graft") from None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


class SpeechModality(nn.Module):
    """Features, speech encoder and speech adapter for one decoder.

    Args:
        config: sizes, or the name of an encoder.
        decoder: whose embeddings the adapter's are as loud as.

    Raises:
        UserError: the encoder of that name cannot be loaded.
    """

    kind = "audio"
    joins = "embeddings"
    marks = MARKS

    def __init__(self, config: SpeechConfig, decoder: FrozenDecoder) -> None:
        super().__init__()
        self.config = config
        self.log_mel: LogMel | HubFeatures
        self.encoder: Conformer | HubSpeechEncoder
        if config.encoder_name:
            self.encoder = HubSpeechEncoder.from_pretrained(config.encoder_name, taps=config.encoder_taps)
            self.log_mel = self.encoder.features
        else:
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

    @property
    def rate(self) -> int:
        """Samples in a second of a waveform."""
        return self.log_mel.rate

    @property
    def longest_seconds(self) -> float:
        """What the encoder hears at once; infinite where it does not matter."""
        return self.log_mel.longest_seconds

    @property
    def embedding_seconds(self) -> float:
        """Sound that an embedding stands for: 0.08 with the conformer, 0.04 with Whisper."""
        return self.log_mel.frame_seconds * self.encoder.stride * STRIDE

    def prepare(self, source: AudioSource) -> Tensor:
        """A recording, from a file or in memory, as a waveform [S].

        Raises:
            UserError: it cannot be read, or is longer than what the encoder hears at once.
        """
        waveform_S = read_audio(source, rate=self.rate)
        expect_heard(len(waveform_S) / self.rate, self.longest_seconds)
        return waveform_S

    def blank(self, item: Tensor) -> Tensor:
        """Silence of the same length, for the control."""
        return torch.zeros_like(item)

    def output_length(self, samples: int) -> int:
        """Embeddings of so many samples."""
        return self.adapter.output_length(self.encoder.output_length(self.log_mel.output_length(samples)))

    def span(self, item: Tensor, placeholder: int) -> list[int]:
        """The tokens that a recording takes in the prompt."""
        return [self.begin, *[placeholder] * self.output_length(len(item)), self.end]

    def collate(self, items: Sequence[Tensor]) -> SpeechBatch:
        return self.log_mel.collate(items)

    def encode(self, sound: SpeechBatch) -> tuple[Tensor, Tensor]:
        """Embeddings [B, E, D] of recordings, and how many each has. A frozen encoder runs without gradient."""
        trained = torch.is_grad_enabled() and any(p.requires_grad for p in self.encoder.parameters())
        with torch.set_grad_enabled(trained):
            frames = self.log_mel.frames(sound)
            if self.training and self.augment is not None:
                rng = torch.default_generator  # a checkpoint keeps it
                frames = self.log_mel.masked(frames, settings=self.augment, rng=rng)
            hidden_BTC = self.encoder(frames.padded, frames.lengths)
        hidden_lengths_B = self.encoder.output_length(frames.lengths)
        return self.adapter(hidden_BTC, hidden_lengths_B), self.adapter.output_length(hidden_lengths_B)

    def embeddings(self, batch: MediaBatch) -> Tensor:
        """Embeddings [N, D] of all recordings, row by row of the batch."""
        embeddings_BED, lengths_B = self.encode(batch.items)
        lengths = lengths_B.tolist()
        return torch.cat([embeddings_BED[i, : lengths[i]] for row in batch.rows for i, _ in row])

    def parts(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """Trainables: the adapter and the encoder. The marks are trained with the decoder's extra tokens."""
        modules = {"adapter": self.adapter, "encoder": self.encoder}
        return {part: [(f"{part}.{n}", p) for n, p in m.named_parameters()] for part, m in modules.items()}

    def log_values(self) -> dict[str, float]:
        """Nothing but the loss to watch."""
        return {}
