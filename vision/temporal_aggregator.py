"""The temporal aggregator: a perceiver resampler that merges consecutive frames into one frame's worth of tokens.

Llama 3 paper, section 7.3 / spec A5. Each group of `group` consecutive frames of a clip is read by the same learned
latents, which attend to the tokens of the frames and to each other. Every token carries the time of its frame, from 0
(the start of the clip) to 1 (its end), as a function of the time alone: there is no table by frame number, so weights
carry over when the number of frames and the size of the groups change between the stages of training. Without times a
clip and its reverse would be the same.

Latents may start from the frames (`start`): then a merged frame is the mean of its frames, place by place, and what the
latents read on top of it. Nothing has to be learnt for what is where in a clip to come through.

Legend: F frames of all clips, M groups of all clips, P tokens of a frame, S tokens of the largest group, N tokens of
all frames, V those of them that have a latent at their place, C feature width, D width of the aggregator, Q latents, T
tokens of a group and latents, E width of the output, H heads, K head dimension, W frequencies.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multimodal.attention import attend
from multimodal.channel_statistics import channel_statistics
from multimodal.errors import UserError
from multimodal.layers import SwiGLU
from vision.encoder import ImageFeatures


@dataclass(frozen=True, kw_only=True)
class TemporalAggregatorConfig:
    """Sizes of the temporal aggregator (spec A5.2; the paper states the group alone)."""

    group: int = 16
    """Consecutive frames that are merged into one; the paper: 16 in pre-training, 32 afterwards."""
    latents: int = 65
    """Tokens of a merged frame; the default is as many as a tile has."""
    start: Literal["latents", "frames"] = "latents"
    """What the latents begin with: what was learnt alone, or besides it the mean of the frames that are merged, the
    first latent that of their first tokens, and so on."""
    width: int = 192
    layers: int = 2
    heads: int = 6
    ffn_ratio: float = 8 / 3
    """Hidden width of the feed-forward, times the width."""
    time_frequencies: int = 5
    """Waves of the time with periods of 2, 1, 1/2 ... of a clip. The default ends at 1/8, the fastest that 16 frames
    tell apart: a faster one would mean something else to another number of frames."""

    def __post_init__(self) -> None:
        for name in ("group", "latents", "width", "layers", "heads", "time_frequencies"):
            if getattr(self, name) < 1:
                raise UserError(f"temporal aggregator: {name} {getattr(self, name)}, expected 1 or more")
        if self.width % self.heads:
            raise UserError(f"temporal aggregator: width {self.width} does not divide into {self.heads} heads")
        if self.ffn_ratio <= 0:
            raise UserError(f"temporal aggregator: ffn_ratio {self.ffn_ratio}, expected more than 0")


class TimeSignal(nn.Module):
    """A vector for each time in [0, 1]: a linear map of sines and cosines with periods from two clips downwards."""

    def __init__(self, *, width: int, frequencies: int) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.proj = nn.Linear(2 * frequencies, width, bias=False)

    def forward(self, times: Tensor) -> Tensor:
        """[...] -> [..., width]"""
        rates_W = math.pi * 2.0 ** torch.arange(self.frequencies, device=times.device)
        angles = times.float()[..., None] * rates_W
        return self.proj(torch.cat([angles.sin(), angles.cos()], dim=-1).to(self.proj.weight.dtype))


class FeatureStatistics(nn.Module):
    """Features less their mean, over their deviation, channel by channel; the identity until it is fitted.

    Features of a frozen encoder are mostly what all frames have in common. Attention that starts out even passes on
    little else, and what tells one frame from another is learnt slowly or not at all.
    """

    mean_C: Tensor
    deviation_C: Tensor

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        self.register_buffer("mean_C", torch.zeros(feature_dim))
        self.register_buffer("deviation_C", torch.ones(feature_dim))

    @torch.no_grad()
    def fit(self, chunks: Iterable[Tensor]) -> None:
        """Take mean and deviation from features [N, C] in chunks.

        Raises:
            ValueError: there are none.
        """
        mean_C, deviation_C = channel_statistics(chunks)
        self.mean_C.copy_(mean_C)
        self.deviation_C.copy_(deviation_C.clamp(min=1e-3))  # a channel that never moves is not blown up

    def forward(self, tokens_NC: Tensor) -> Tensor:
        return (tokens_NC - self.mean_C) / self.deviation_C


class ResamplerLayer(nn.Module):
    """Latents read the frames and each other, then a feed-forward, both pre-norm (as in Flamingo; spec A5.2)."""

    def __init__(self, *, width: int, heads: int, ffn: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_tokens = nn.LayerNorm(width)
        self.norm_latents = nn.LayerNorm(width)
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.norm_ffn = nn.LayerNorm(width)
        self.ffn = SwiGLU(width, ffn)

    def forward(self, z_MQD: Tensor, x_MSD: Tensor, mask_M11S: Tensor | None) -> Tensor:
        """Latents after reading the tokens. `mask_M11S`: True where a token may be seen; None: everywhere."""
        q_MHQK, k_MHTK, v_MHTK = self.project(z_MQD, x_MSD)
        if mask_M11S is not None:
            mask_M11S = F.pad(mask_M11S, (0, z_MQD.shape[1]), value=True)  # the latents are always there
        read_MHQK = attend(q_MHQK, k_MHTK, v_MHTK, mask=mask_M11S)
        z_MQD = z_MQD + self.out(read_MHQK.transpose(1, 2).flatten(2))
        return z_MQD + self.ffn(self.norm_ffn(z_MQD))

    def project(self, z_MQD: Tensor, x_MSD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of the latents, keys and values of the tokens and, after them, of the latents."""
        latents_MQD = self.norm_latents(z_MQD)
        seen_MTD = torch.cat([self.norm_tokens(x_MSD), latents_MQD], dim=1)
        q_MHQK = self.q(latents_MQD).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k_MHTK, v_MHTK = self.kv(seen_MTD).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return q_MHQK, k_MHTK, v_MHTK


class TemporalAggregator(nn.Module):
    """Perceiver resampler over groups of consecutive frames.

    Args:
        config: sizes.
        feature_dim: C of the image encoder's features.
        out_dim: E, width of the tokens that come out.

    Example:
        aggregator = TemporalAggregator(TemporalAggregatorConfig(group=4), feature_dim=960, out_dim=256)
        merged = aggregator(encoder(tiles_of_all_frames), frames=(16, 12), times=times_F)
        assert merged.lengths == (aggregator.output_length(16), aggregator.output_length(12))
    """

    def __init__(self, config: TemporalAggregatorConfig, *, feature_dim: int, out_dim: int) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.norm_in = FeatureStatistics(feature_dim)
        self.proj_in = nn.Linear(feature_dim, width, bias=False)
        self.time = TimeSignal(width=width, frequencies=config.time_frequencies)
        self.latents_QD = nn.Parameter(torch.randn(config.latents, width) * width**-0.5)
        ffn = round(width * config.ffn_ratio)
        self.layers = nn.ModuleList(
            ResamplerLayer(width=width, heads=config.heads, ffn=ffn) for _ in range(config.layers)
        )
        self.norm_out = nn.LayerNorm(width)
        self.proj_out = nn.Linear(width, out_dim, bias=False)
        self.proj_mean = nn.Linear(feature_dim, out_dim) if config.start == "frames" else None
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
            if isinstance(module, ResamplerLayer):
                for last in (module.out, module.ffn.down):
                    last.weight.mul_((2 * self.config.layers) ** -0.5)

    @torch.no_grad()
    def begin_as_projector(self, projector: nn.Linear) -> None:
        """Give what `projector` gives for the mean of the frames, until training adds to it.

        Raises:
            ValueError: the latents do not start from the frames.
        """
        if self.proj_mean is None:
            raise ValueError("the aggregator starts from latents alone; expected start='frames'")
        self.proj_mean.load_state_dict(projector.state_dict())
        self.proj_out.weight.zero_()

    def output_length(self, frames: int) -> int:
        """Tokens that come out for a clip of so many frames: `latents` for each group, complete or not."""
        return -(-frames // self.config.group) * self.config.latents

    def forward(self, features: ImageFeatures, *, frames: Sequence[int], times: Tensor) -> ImageFeatures:
        """Merge the frames of several clips, each clip for itself.

        Args:
            features: of all frames, clip after clip in order of time; tokens [N, C], `lengths` holds P of each frame.
            frames: frames of each clip, 1 or more.
            times: [F], continuous time of each frame in its clip, from 0 to 1.

        Returns:
            tokens [sum of output lengths, E], clip after clip; `lengths` holds `output_length` of each clip.

        Raises:
            ValueError: a clip without frames, or numbers of frames that do not agree.
        """
        if min(frames, default=0) < 1 or not sum(frames) == len(features.lengths) == len(times):
            found = f"clips of {tuple(frames)} frames, features of {len(features.lengths)} and {len(times)} times"
            raise ValueError(f"{found}; expected one of each for every frame, and no empty clip")
        lengths_F = torch.tensor(features.lengths, device=features.tokens.device)
        tokens_NC = features.tokens.to(self.proj_in.weight.dtype)
        x_ND = self.proj_in(self.norm_in(tokens_NC))
        time_FD = self.time(times.to(x_ND.device)).to(x_ND.dtype)
        x_ND = x_ND + time_FD.repeat_interleave(lengths_F, dim=0, output_size=len(x_ND))
        groups = self._groups(features.lengths, frames)
        x_MSD, mask_M11S = _pad(x_ND, [sum(group) for group in groups])
        z_MQD = self.latents_QD.to(x_ND.dtype).expand(len(x_MSD), -1, -1)
        start_MQE = 0.0
        if self.proj_mean is not None:
            both = torch.cat([x_ND, tokens_NC], dim=1)
            mean_MQD, mean_MQC = _mean_by_place(both, groups, places=self.config.latents).tensor_split(
                [x_ND.shape[1]], -1
            )
            z_MQD, start_MQE = z_MQD + mean_MQD.to(x_ND.dtype), self.proj_mean(mean_MQC)
        for layer in self.layers:
            z_MQD = layer(z_MQD, x_MSD, mask_M11S)
        merged_MQE = start_MQE + self.proj_out(self.norm_out(z_MQD))
        return ImageFeatures(merged_MQE.flatten(0, 1), tuple(self.output_length(count) for count in frames))

    def _groups(self, lengths: Sequence[int], frames: Sequence[int]) -> list[Sequence[int]]:
        """Tokens of each frame of every group: frames are counted anew from the start of each clip."""
        groups: list[Sequence[int]] = []
        first = 0
        for count in frames:
            last = first + count
            groups += [
                lengths[start : min(start + self.config.group, last)] for start in range(first, last, self.config.group)
            ]
            first = last
        return groups


def _pad(x_ND: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    """Groups of so many tokens, side by side [M, S, D], and a mask [M, 1, 1, S] of what is there (None: everything)."""
    longest = max(lengths)
    if min(lengths) == longest:
        return x_ND.unflatten(0, (-1, longest)), None
    x_MSD = nn.utils.rnn.pad_sequence(list(x_ND.split(list(lengths))), batch_first=True)
    there_MS = torch.arange(longest, device=x_ND.device) < torch.tensor(lengths, device=x_ND.device)[:, None]
    return x_MSD, there_MS[:, None, None]


def _mean_by_place(tokens_NC: Tensor, groups: Sequence[Sequence[int]], *, places: int) -> Tensor:
    """Means [M, Q, C] of the first, second ... token of the frames of each group; 0 where none of them has so many.

    Args:
        tokens_NC: of all frames.
        groups: tokens of each frame, group by group.
        places: Q, how many tokens of a frame are looked at.
    """
    # Where tokens go follows from lengths alone and is found on the CPU: tokens may be on the meta device.
    frames = [(number, length) for number, group in enumerate(groups) for length in group]
    place_N = torch.cat([torch.arange(length, device="cpu") for _, length in frames])
    first_N = torch.cat([torch.full((length,), number * places, device="cpu") for number, length in frames])
    kept_V = (place_N < places).nonzero()[:, 0]
    slot_V = (first_N + place_N)[kept_V]
    counts = slot_V.bincount(minlength=len(groups) * places).clamp(min=1)
    slot_V, kept_V, counts = (t.to(tokens_NC.device) for t in (slot_V, kept_V, counts))
    sums = tokens_NC.new_zeros(len(counts), tokens_NC.shape[1]).index_add(0, slot_V, tokens_NC.index_select(0, kept_V))
    return (sums / counts[:, None]).unflatten(0, (-1, places))
