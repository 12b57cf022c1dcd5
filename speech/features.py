"""Waveform -> log-mel features: 80 numbers every 10 ms, normalised by statistics that are kept with the model.

Llama 3 paper, section 8.2 / spec B2: 80-dimensional mel features with a 10 ms hop, 6,000 frames for 60 s. Normalising
is no ornament: random codebooks collapse to a handful of codes on features with a mean of -8 (spec B2.1, pitfall 3).

Choices where the paper says nothing: torchaudio's filter bank with its defaults (HTK mel scale, triangles of height 1),
25 ms periodic Hann window, power spectrum of the next power of two, natural logarithm of power + 2**-24 (about the
power of 16-bit rounding noise, so that digital and near silence look alike). Frame t is the window that starts at
t * hop; after the end of the utterance there is silence. So T = ceil(S / hop), the last samples count too, a single
sample is one frame, and nothing depends on how far a batch is padded, or with what: centred frames would reflect it.

Legend: B batch, S samples, T frames, N samples of a window, F frequency bins, C mel channels.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import inf

import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor, nn

from multimodal.channel_statistics import channel_statistics
from multimodal.errors import UserError
from speech.augment import Augment, Randomness, mask_features
from speech.frames import Length, SpeechBatch, ceil_divide, frame_mask, pad_batch

FLOOR = 2.0**-24


@dataclass(frozen=True, kw_only=True)
class LogMelConfig:
    """Shape of the features (spec B2): samples a second, mel channels, hop and window in samples."""

    rate: int = 16_000
    channels: int = 80
    hop: int = 160
    window: int = 400

    def __post_init__(self) -> None:
        if min(self.rate, self.channels, self.hop) < 1 or self.window < self.hop:
            raise UserError(f"speech features: {self}, expected numbers from 1 on and a window no shorter than the hop")

    @property
    def fft_size(self) -> int:
        """The window's length, rounded up to a power of two."""
        return 1 << (self.window - 1).bit_length()

    def filters(self) -> Tensor:
        """The mel filter bank, float32 [F, C].

        Raises:
            UserError: so many channels that some hear no frequency of the transform.
        """
        bins = self.fft_size // 2 + 1
        filters_FC = torchaudio.functional.melscale_fbanks(
            bins, 0.0, self.rate / 2, self.channels, self.rate, norm=None, mel_scale="htk"
        )
        if not bool((filters_FC > 0).any(0).all()):
            raise UserError(f"speech features: {self.channels} mel channels are too many for a window of {self.window}")
        return filters_FC


class LogMel(nn.Module):
    """Normalised log-mel features of a ragged batch, computed in float32 on the module's device, whatever the autocast.

    `mean_C` and `std_C` are saved with the model; they start as 0 and 1: call `fit_statistics` before training.
    It is the conformer's `SpeechFeatures` (`speech.encoder`).
    """

    longest_seconds = inf

    window_N: Tensor
    filters_FC: Tensor
    mean_C: Tensor
    std_C: Tensor

    def __init__(self, config: LogMelConfig | None = None) -> None:
        super().__init__()
        self.config = config or LogMelConfig()
        self.register_buffer("window_N", torch.hann_window(self.config.window), persistent=False)
        self.register_buffer("filters_FC", self.config.filters(), persistent=False)
        self.register_buffer("mean_C", torch.zeros(self.config.channels))
        self.register_buffer("std_C", torch.ones(self.config.channels))

    @property
    def rate(self) -> int:
        """Samples in a second."""
        return self.config.rate

    @property
    def frame_seconds(self) -> float:
        """From one frame to the next."""
        return self.config.hop / self.config.rate

    def output_length(self, samples: Length) -> Length:
        """Frames of so many samples; a tensor for a tensor."""
        return ceil_divide(samples, self.config.hop)

    @torch.no_grad()
    def forward(self, waveform_BS: Tensor, samples_B: Tensor) -> tuple[Tensor, Tensor]:
        """Features of a batch.

        Args:
            waveform_BS: mono, -1..1, S >= 1; what stands behind an utterance's end is ignored.
            samples_B: int64, valid samples of each utterance.

        Returns:
            features [B, T, C], float32, exactly 0 behind an utterance's end, and their valid lengths [B].
        """
        frames_B = self.output_length(samples_B)
        features_BTC = (self._log_mel(waveform_BS, samples_B) - self.mean_C) / self.std_C
        return torch.where(frame_mask(frames_B, features_BTC.shape[1])[:, :, None], features_BTC, 0.0), frames_B

    def collate(self, waveforms: Sequence[Tensor]) -> SpeechBatch:
        """Waveforms [B, S]: the features are made on the device."""
        return pad_batch(list(waveforms))

    def frames(self, batch: SpeechBatch) -> SpeechBatch:
        """Features of waveforms, as `forward` makes them."""
        return SpeechBatch(*self(batch.padded, batch.lengths))

    def masked(self, batch: SpeechBatch, *, settings: Augment, rng: Randomness) -> SpeechBatch:
        """SpecAugment on features."""
        return SpeechBatch(mask_features(batch.padded, batch.lengths, settings=settings, rng=rng), batch.lengths)

    @torch.no_grad()
    def fit_statistics(self, waveforms: Iterable[Tensor]) -> None:
        """Set mean and standard deviation of each mel channel to those of all frames of `waveforms` ([S] each).

        Raises:
            UserError: there is no frame.
        """
        try:
            mean_C, std_C = channel_statistics(self._of_one(waveform_S) for waveform_S in waveforms if len(waveform_S))
        except ValueError:
            raise UserError(
                "speech features: no sound to take the statistics from; expected at least one utterance"
            ) from None
        self.mean_C.copy_(mean_C)
        self.std_C.copy_(std_C.clamp(min=1e-2))  # a channel that never moves (silence alone) stays finite

    def _of_one(self, waveform_S: Tensor) -> Tensor:
        """Before normalising, [T, C], of one utterance."""
        waveform_1S = waveform_S.to(self.mean_C.device).unsqueeze(0)
        return self._log_mel(waveform_1S, torch.tensor([waveform_1S.shape[1]], device=waveform_1S.device))[0]

    def _log_mel(self, waveform_BS: Tensor, samples_B: Tensor) -> Tensor:
        """Before normalising, [B, T, C]; frames behind an utterance's end are those of silence."""
        longest = waveform_BS.shape[1]
        waveform_BS = torch.where(frame_mask(samples_B, longest), waveform_BS.float(), 0.0)
        behind = (self.output_length(longest) - 1) * self.config.hop + self.config.window - longest
        frames_BTN = F.pad(waveform_BS, (0, behind)).unfold(1, self.config.window, self.config.hop)
        with torch.autocast(waveform_BS.device.type, enabled=False):
            spectrum_BTF = torch.fft.rfft(frames_BTN * self.window_N, n=self.config.fft_size)
            power_BTF = spectrum_BTF.real.square() + spectrum_BTF.imag.square()
            return torch.log(power_BTF @ self.filters_FC + FLOOR)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "LogMel":
        """Moves to a device, but stays float32 where the model around it is cast to bfloat16."""

        def moved(tensor: Tensor) -> Tensor:
            new = fn(tensor)
            return new if new.is_meta or tensor.is_meta else tensor.to(new.device)

        return super()._apply(moved, recurse)
