"""Input frames of the speech encoders of `transformers`, made by each model's own feature extractor on the CPU.

All three families hear log-mel features: Whisper every 10 ms, held in a range of its own; Parakeet every 10 ms and
wav2vec2-BERT two by two (20 ms), normalised over the utterance. What differs is data (`speech.encoder.FAMILIES`).

Legend: B utterances, S samples, M input frames, F channels of an input frame, T frames of 10 ms, C mel channels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import SequenceFeatureExtractor

from multimodal.errors import UserError
from speech.augment import Augment, Randomness, mask_features
from speech.frames import SpeechBatch, frame_mask, pad_batch

SHORTEST_SECONDS = 0.1


@dataclass(frozen=True)
class ExtractorFamily:
    """What a family's extractors do in their own way, of an extractor.

    frames: input frames of so many samples, before any window cuts them off. stack: frames of 10 ms side by side in an
    input frame.
    """

    frames: Callable[[Any, int], int]
    stack: Callable[[Any], int] = lambda _: 1


def expect_heard(seconds: float, longest_seconds: float) -> None:
    """Raises UserError if a recording is longer than what the encoder hears at once."""
    if seconds > longest_seconds:
        raise UserError(
            f"speech of {seconds:.2f} s, the encoder hears at most {longest_seconds:g} s at once "
            "(scripts.transcribe cuts longer recordings at pauses)"
        )


class HubFeatures:
    """The face of `LogMel` for a model's own extractor (`SpeechFeatures` of `speech.encoder`).

    Args:
        extractor: the model's feature extractor, which makes spectral features.
        family: what it does in its own way.
        window: input frames that the model hears at once; None: any number.
    """

    def __init__(self, extractor: SequenceFeatureExtractor, *, family: ExtractorFamily, window: int | None) -> None:
        self.extractor: Any = extractor
        self.family, self.window = family, window
        self.stack = self.family.stack(extractor)

    @property
    def rate(self) -> int:
        """Samples in a second."""
        return self.extractor.sampling_rate

    @property
    def frame_seconds(self) -> float:
        """From one input frame to the next."""
        return self.stack * getattr(self.extractor, "hop_length", 160) / self.rate

    @property
    def longest_seconds(self) -> float:
        """What the model hears at once."""
        return inf if self.window is None else self.window * self.frame_seconds

    @property
    def _shortest(self) -> int:
        return round(SHORTEST_SECONDS * self.rate)

    def output_length(self, samples: int) -> int:
        """Input frames of so many samples, in a batch that `collate` made."""
        frames = self.family.frames(self.extractor, max(samples, self._shortest))
        return frames if self.window is None else min(frames, self.window)

    def __call__(self, samples_S: Tensor) -> Tensor:
        """Input frames [M, F] of one mono waveform at `rate`, as the extractor makes them.

        Raises:
            UserError: less than 0.1 s, or more than the model hears at once.
        """
        expect_heard(len(samples_S) / self.rate, self.longest_seconds)
        if len(samples_S) < self._shortest:
            raise UserError(f"speech of {len(samples_S) / self.rate:.2f} s, expected at least {SHORTEST_SECONDS} s")
        made = self.extractor(
            samples_S.cpu().numpy(), sampling_rate=self.rate, return_tensors="pt", return_attention_mask=True
        )
        if self.window is None:
            return made["input_features"][0, : int(made["attention_mask"].sum())]
        # Whisper's extractor pads to the window; those behind are pure silence, which the encoder puts back.
        return made["input_features"][0, :, : self.output_length(len(samples_S))].T

    def collate(self, waveforms: Sequence[Tensor]) -> SpeechBatch:
        """Input frames [B, M, F]. What is shorter than 0.1 s gets silence behind it.

        Raises:
            UserError: a waveform is longer than the model hears at once.
        """
        return pad_batch([self(F.pad(w_S, (0, max(0, self._shortest - len(w_S))))) for w_S in waveforms])

    def frames(self, batch: SpeechBatch) -> SpeechBatch:
        """What `collate` made: nothing is left to do on the device."""
        return batch

    def masked(self, batch: SpeechBatch, *, settings: Augment, rng: Randomness) -> SpeechBatch:
        """SpecAugment on frames of 10 ms and their mel channels, as for the conformer, but each channel's mean over the
        utterance is what is set: Whisper's features are not normalised, and 0 may be louder than all of a quiet one.
        """
        x_BTC = batch.padded.unflatten(2, (self.stack, -1)).flatten(1, 2)
        frames_B = self.stack * batch.lengths
        inside_BT1 = frame_mask(frames_B, x_BTC.shape[1])[..., None]
        mean_BC = torch.where(inside_BT1, x_BTC, 0.0).sum(1) / frames_B[:, None]
        x_BTC = mask_features(x_BTC, frames_B, settings=settings, rng=rng, fill_BC=mean_BC)
        return SpeechBatch(x_BTC.unflatten(1, (-1, self.stack)).flatten(2), batch.lengths)
