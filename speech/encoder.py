"""What a speech encoder is, and those of `transformers` in the conformer's place: Whisper, wav2vec2-BERT, Parakeet.

They bring their own features: `HubSpeechEncoder.features` turns a waveform into what `forward` takes. As with the
conformer, padding is seen by nobody. What differs between the families is data: the table `FAMILIES`.

Legend: B utterances, M input frames, F channels of an input frame, T output frames, D width, S samples.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AutoFeatureExtractor, AutoModel, PreTrainedModel, SequenceFeatureExtractor

from multimodal.errors import UserError
from speech.frames import Length, ceil_divide, frame_mask, trim

SHORTEST_SECONDS = 0.1


class SpeechEncoder(Protocol):
    """An `nn.Module` from input frames to features, the same alone and in any batch."""

    @property
    def feature_dim(self) -> int:
        """D: width of the features."""
        ...

    def output_length(self, length: Length) -> Length:
        """Feature frames of so many input frames; a tensor for a tensor."""
        ...

    def enable_gradient_checkpointing(self) -> None:
        """Keep fewer activations for the backward pass."""
        ...

    def __call__(self, features_BMF: Tensor, lengths_B: Tensor) -> Tensor:
        """Features [B, T, D], T being `output_length` of the longest utterance."""
        ...


@dataclass(frozen=True)
class Family:
    """What a family of models does in its own way.

    stride: input frames of an output frame, from the model's config. window: input frames that the model always hears,
    silence behind the utterance; None: padding is masked.
    """

    stride: Callable[[Any], int]
    window: Callable[[Any], int] | None = None


FAMILIES = {
    "whisper": Family(stride=lambda _: 2, window=lambda config: 2 * config.max_source_positions),
    "wav2vec2-bert": Family(stride=lambda _: 1),
    "parakeet_encoder": Family(stride=lambda config: config.subsampling_factor),
}


class HubSpeechEncoder(nn.Module):
    """A speech encoder of `transformers` (in place of that of spec B2).

    Args:
        model: Whisper, wav2vec2-BERT or Parakeet; of a model with a head or a decoder the encoder alone is kept.
        extractor: the model's own feature extractor.

    Raises:
        UserError: a model of another family, or an extractor that does not make spectral features.
    """

    def __init__(self, model: PreTrainedModel, extractor: SequenceFeatureExtractor) -> None:
        super().__init__()
        encoder = model.get_encoder()
        kept: Any = encoder if isinstance(encoder, PreTrainedModel) else model
        config = kept.config
        if config.model_type not in FAMILIES:
            raise UserError(f"speech encoder: found {config.model_type!r}, expected one of {', '.join(FAMILIES)}")
        self.extractor: Any = extractor
        if "input_features" not in self.extractor.model_input_names:
            raise UserError(f"speech encoder: {type(extractor).__name__} is not the extractor of {config.model_type}")
        config.apply_spec_augment = False  # wav2vec2-BERT's own, on by default in training
        if getattr(kept, "adapter", None) is not None:
            kept.adapter = None  # wav2vec2-BERT's, in the place of which the speech adapter stands
        self.model: PreTrainedModel = kept
        family = FAMILIES[config.model_type]
        self.stride = family.stride(config)
        self.window = None if family.window is None else family.window(config)

    @classmethod
    def from_pretrained(cls, name: str) -> "HubSpeechEncoder":
        """Load a model and its feature extractor from a folder or the hub, in fp32.

        Raises:
            UserError: no such model, or one of another family.
        """
        try:
            model = AutoModel.from_pretrained(name, dtype=torch.float32)
            extractor = AutoFeatureExtractor.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise UserError(f"speech encoder {name}: cannot be loaded: {str(error).splitlines()[0]}") from error
        return cls(model, extractor)

    @property
    def feature_dim(self) -> int:
        """D: width of the features."""
        return self.model.config.hidden_size

    @property
    def sample_rate(self) -> int:
        """Samples in a second of what `features` takes."""
        return self.extractor.sampling_rate

    def output_length(self, length: Length) -> Length:
        """Feature frames of so many input frames; a tensor for a tensor."""
        return ceil_divide(length, self.stride)

    def enable_gradient_checkpointing(self) -> None:
        """Recompute each layer in the backward pass instead of keeping its activations."""
        # The newer of the two names warns under the older one, and transformers 5.17 knows the older one alone.
        older = self.model.gradient_checkpointing_enable
        getattr(self.model, "activation_checkpointing_enable", older)({"use_reentrant": False})

    def train(self, mode: bool = True) -> "HubSpeechEncoder":
        """As ever, but batch norms (Parakeet's) keep their statistics: those of a batch would hold its padding."""
        super().train(mode)
        for module in self.model.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.eval()
        return self

    def features(self, samples_S: Tensor) -> Tensor:
        """Input frames [M, F] of one mono waveform at `sample_rate`, as the model's own extractor makes them.

        Raises:
            UserError: less than 0.1 s, or more than the model hears at once.
        """
        seconds = len(samples_S) / self.sample_rate
        if seconds < SHORTEST_SECONDS:
            raise UserError(f"speech of {seconds:.2f} s, expected at least {SHORTEST_SECONDS} s")
        if self.window is not None and len(samples_S) > self.window * self.extractor.hop_length:
            longest = self.window * self.extractor.hop_length / self.sample_rate
            raise UserError(f"speech of {seconds:.2f} s, the encoder hears at most {longest:g} s at once")
        made = self.extractor(
            samples_S.cpu().numpy(), sampling_rate=self.sample_rate, return_tensors="pt", return_attention_mask=True
        )
        if self.window is None:
            return made["input_features"][0, : int(made["attention_mask"].sum())]
        # Every frame that hears a sample; those behind are pure silence, which `forward` puts back.
        heard = ceil_divide(len(samples_S) + self.extractor.n_fft // 2, self.extractor.hop_length)
        return made["input_features"][0, :, : min(heard, self.window)].T

    def forward(self, features_BMF: Tensor, lengths_B: Tensor) -> Tensor:
        """Features [B, T, D], the model's last hidden states; T is `output_length` of the longest utterance.

        Args:
            features_BMF: what `features` made of each utterance, padded with anything.
            lengths_B: int64, input frames of each utterance.

        Raises:
            ValueError: a length below 1, beyond the features, or beyond what the model hears at once.
        """
        x_BMF = trim(features_BMF, lengths_B)
        valid_BM = frame_mask(lengths_B, x_BMF.shape[1])
        if self.window is None:
            return self.model(x_BMF, attention_mask=valid_BM).last_hidden_state
        x_BMF = _with_silence(x_BMF, valid_BM, self.window)
        return self.model(x_BMF.transpose(1, 2)).last_hidden_state[:, : self.output_length(valid_BM.shape[1])]


def _with_silence(x_BMF: Tensor, valid_BM: Tensor, window: int) -> Tensor:
    """Whisper's features padded to its window as if the waveform had been: [B, window, F].

    Its features are (log10(power) + 4) / 4, held at -10 in the logarithm and at 8 below the loudest of the utterance.
    """
    if x_BMF.shape[1] > window:
        raise ValueError(f"{x_BMF.shape[1]} input frames, the model hears {window} at once")
    loudest_B = x_BMF.masked_fill(~valid_BM[..., None], -torch.inf).amax(dim=(1, 2))
    silence_B11 = (loudest_B - 2.0).clamp(min=-1.5)[:, None, None]
    x_BMF = torch.where(valid_BM[..., None], x_BMF, silence_B11)
    tail_BMF = silence_B11.expand(-1, window - x_BMF.shape[1], x_BMF.shape[2])
    return torch.cat([x_BMF, tail_BMF], dim=1)
