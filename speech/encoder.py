"""What a speech encoder is, and those of `transformers` in the conformer's place: Whisper, wav2vec2-BERT, Parakeet.

They bring their own features: `HubSpeechEncoder.features` turns a waveform into what `forward` takes. As with the
conformer, padding is seen by nobody. What differs between the families is data: the table `FAMILIES`.

Legend: B utterances, M input frames, F channels of an input frame, T output frames, D width, C = D * (1 + taps).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn
from transformers import AutoFeatureExtractor, PreTrainedModel, SequenceFeatureExtractor

from multimodal.errors import UserError, reported_as
from multimodal.hub_encoder import HubEncoder, read_model
from multimodal.layers import expect_taps
from speech.augment import Augment, Randomness
from speech.frames import Length, SpeechBatch, ceil_divide, frame_mask, trim
from speech.hub_features import ExtractorFamily, HubFeatures


class SpeechFeatures(Protocol):
    """What makes an encoder's input frames of waveforms: `collate` on the CPU, in any process, then `frames` on the
    device.
    """

    @property
    def rate(self) -> int:
        """Samples in a second."""
        ...

    @property
    def frame_seconds(self) -> float:
        """From one input frame to the next."""
        ...

    @property
    def longest_seconds(self) -> float:
        """What the encoder hears at once; infinite where it does not matter."""
        ...

    def output_length(self, samples: int) -> int:
        """Input frames of so many samples."""
        ...

    def collate(self, waveforms: Sequence[Tensor]) -> SpeechBatch:
        """A batch for `frames`."""
        ...

    def frames(self, batch: SpeechBatch) -> SpeechBatch:
        """Input frames [B, M, F], the same alone and in any batch."""
        ...

    def masked(self, batch: SpeechBatch, *, settings: Augment, rng: Randomness) -> SpeechBatch:
        """Input frames with the masks of SpecAugment."""
        ...


class SpeechEncoder(Protocol):
    """An `nn.Module` from input frames to features, the same alone and in any batch."""

    @property
    def feature_dim(self) -> int:
        """Width of the features."""
        ...

    @property
    def stride(self) -> int:
        """Input frames of a feature frame."""
        ...

    def output_length(self, length: Length) -> Length:
        """Feature frames of so many input frames; a tensor for a tensor."""
        ...

    def enable_gradient_checkpointing(self) -> None:
        """Keep fewer activations for the backward pass."""
        ...

    def __call__(self, features_BMF: Tensor, lengths_B: Tensor) -> Tensor:
        """Features [B, T, feature_dim], T being `output_length` of the longest utterance."""
        ...


@dataclass(frozen=True)
class Family:
    """What a family of models does in its own way.

    extractor: of its features. stride: input frames of an output frame, from the model's config. window: input frames
    that the model always hears, silence behind the utterance; None: padding is masked. sinusoids: module with a table
    of positions that is never trained.
    """

    extractor: ExtractorFamily
    stride: Callable[[Any], int]
    window: Callable[[Any], int] | None = None
    sinusoids: str | None = None


FAMILIES = {
    "whisper": Family(
        # Every frame that hears a sample: they are centred, and reach half a window beyond the last one.
        ExtractorFamily(lambda e, samples: ceil_divide(samples + e.n_fft // 2, e.hop_length)),
        stride=lambda _: 2,
        window=lambda config: 2 * config.max_source_positions,
        sinusoids="embed_positions",
    ),
    "wav2vec2-bert": Family(
        # Kaldi's frames of 25 ms that are full of samples; an incomplete stack is left out.
        ExtractorFamily(lambda e, samples: (1 + (samples - 400) // 160) // e.stride, stack=lambda e: e.stride),
        stride=lambda _: 1,
    ),
    "parakeet_encoder": Family(
        ExtractorFamily(lambda e, samples: samples // e.hop_length),
        stride=lambda config: config.subsampling_factor,
    ),
}


class HubSpeechEncoder(HubEncoder):
    """A speech encoder of `transformers` (in place of that of spec B2).

    Args:
        model: Whisper, wav2vec2-BERT or Parakeet; of a model with a head or a decoder the encoder alone is kept.
        extractor: the model's own feature extractor.
        taps: layers whose normed outputs join the last hidden states, rising numbers from 1.

    Raises:
        UserError: a model of another family, an extractor that does not make spectral features, or no such layers.
    """

    def __init__(
        self, model: PreTrainedModel, extractor: SequenceFeatureExtractor, *, taps: Sequence[int] = ()
    ) -> None:
        encoder = model.get_encoder()
        kept: Any = encoder if isinstance(encoder, PreTrainedModel) else model
        config = kept.config
        if config.model_type not in FAMILIES:
            raise UserError(f"speech encoder: found {config.model_type!r}, expected one of {', '.join(FAMILIES)}")
        if "input_features" not in getattr(extractor, "model_input_names", ()):
            raise UserError(f"speech encoder: {type(extractor).__name__} is not the extractor of {config.model_type}")
        super().__init__(kept, taps=expect_taps(taps, config.num_hidden_layers, what="speech encoder"))
        family = FAMILIES[config.model_type]
        self.stride = family.stride(config)
        self.window = None if family.window is None else family.window(config)
        self.features = HubFeatures(extractor, family=family.extractor, window=self.window)
        config.apply_spec_augment = False  # wav2vec2-BERT's own, on by default in training
        if taps:  # a layer that training leaves out at random would have no output
            for holder in (config, *kept.modules()):
                if hasattr(holder, "layerdrop"):
                    holder.layerdrop = 0.0
        for unused in ("adapter", "masked_spec_embed"):  # wav2vec2-BERT's: the speech adapter, and `masked`, do that
            if getattr(kept, unused, None) is not None:
                setattr(kept, unused, None)
        if family.sinusoids is not None:  # a buffer, which no learning rate moves
            table = kept.get_submodule(family.sinusoids)
            values_TD = table.weight.detach()
            del table.weight
            table.register_buffer("weight", values_TD)

    @classmethod
    def from_pretrained(cls, name: str, *, taps: Sequence[int] = ()) -> "HubSpeechEncoder":
        """Load a model and its feature extractor from a folder or the hub, in fp32.

        Raises:
            UserError: no such model, one of another family, no such layers, or weights that do not fit its config.
        """
        loaded = read_model(name, what="speech encoder")
        problem = f"speech encoder {name}: no feature extractor can be loaded"
        with reported_as(problem, expected="expected its files beside the weights"):
            extractor = AutoFeatureExtractor.from_pretrained(name, trust_remote_code=False)
        encoder = cls(loaded.model, extractor, taps=taps)
        encoder.accept(loaded)
        return encoder

    @property
    def sample_rate(self) -> int:
        """Samples in a second of what `features` takes."""
        return self.features.rate

    def output_length(self, length: Length) -> Length:
        """Feature frames of so many input frames; a tensor for a tensor."""
        return ceil_divide(length, self.stride)

    def train(self, mode: bool = True) -> Self:
        """As any hub encoder, and batch norms (Parakeet's) keep their statistics: those of a batch would hold its
        padding.
        """
        super().train(mode)
        for module in self.model.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.eval()
        return self

    def probe(self) -> Tensor:
        """Features [1, T, C] of half a second of silence."""
        frames_MF = self.features(torch.zeros(self.sample_rate // 2))
        return self(frames_MF[None], torch.tensor([len(frames_MF)]))

    def forward(self, features_BMF: Tensor, lengths_B: Tensor) -> Tensor:
        """Features [B, T, C], the model's last hidden states first, then the taps; T is `output_length` of the longest
        utterance.

        Args:
            features_BMF: what `features` made of each utterance, padded with anything.
            lengths_B: int64, input frames of each utterance.

        Raises:
            ValueError: a length below 1, beyond the features, or beyond what the model hears at once.
        """
        return self.join(*self.forward_intermediates(features_BMF, lengths_B, self.tap_layers))

    def forward_intermediates(
        self, features_BMF: Tensor, lengths_B: Tensor, layers: Sequence[int] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        """Last hidden states [B, T, D], and the raw outputs of `layers`, counted from 1."""
        x_BMF = trim(features_BMF, lengths_B)
        valid_BM = frame_mask(lengths_B, x_BMF.shape[1])
        if self.window is None:
            return self.run(layers, x_BMF, attention_mask=valid_BM)
        x_BMF = _with_silence(x_BMF, valid_BM, self.window)
        final_BTD, taps = self.run(layers, x_BMF.transpose(1, 2))
        frames = self.output_length(valid_BM.shape[1])
        return final_BTD[:, :frames], [tap_BTD[:, :frames] for tap_BTD in taps]


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
