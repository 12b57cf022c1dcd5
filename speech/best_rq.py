"""BEST-RQ: pre-training the speech encoder on sound alone (Chiu et al. 2022; Llama 3 paper, section 8.2 / spec B2.1).

Spans of the features are replaced by noise, and the encoder guesses what random codebooks say about the clean ones.
Projections and codebooks are drawn once from a seed and never move; what learns is the encoder and one softmax head for
each codebook, thrown away afterwards. Only masked frames go through the heads, one codebook at a time.

Legend: B utterances, M mel frames (10 ms), T encoder frames (40 ms), F mel bands, N masked frames, S stacked features
(stack * F), C codebooks, V entries of a codebook, P width of an entry, D encoder width.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from multimodal.errors import UserError
from speech.conformer import Conformer
from speech.frames import SpeechBatch, ceil_divide, frame_mask, stack_frames, trim

log = logging.getLogger(__name__)

ROWS = 8192
"""Frames that are compared with a codebook at a time."""
LOW_USAGE = 0.1
"""Share of a codebook's entries under which something is wrong, as soon as there are enough labels to tell."""
ENOUGH_LABELS = 1000


@dataclass(frozen=True, kw_only=True)
class BestRQConfig:
    """Targets and masks. The paper has 16 codebooks of 8192 entries (spec B2.1)."""

    codebooks: int = 4
    entries: int = 512
    """Entries of each codebook."""
    code_dim: int = 16
    """Width of an entry."""
    mask_probability: float = 0.025
    """How often a span starts at a mel frame."""
    mask_span: int = 32
    """Mel frames of a span."""
    noise: float = 0.1
    """Standard deviation of the noise in place of masked frames."""
    without_loudness: bool = False
    """Labels of frames that are each brought to mean 0 and deviation 1. Loudness is three quarters of the variance of
    log-mel, and without this of what most labels say."""
    seed: int = 0
    """Of projections and codebooks."""

    def __post_init__(self) -> None:
        for name in ("codebooks", "entries", "code_dim", "mask_span"):
            if getattr(self, name) < 1:
                raise UserError(f"BEST-RQ: {name} {getattr(self, name)}, expected 1 or more")
        if not 0 < self.mask_probability <= 1:
            raise UserError(f"BEST-RQ: mask_probability {self.mask_probability}, expected more than 0, at most 1")
        if self.noise < 0:
            raise UserError(f"BEST-RQ: noise {self.noise}, expected 0 or more")


class RandomProjectionQuantizer(nn.Module):
    """Labels of stacked features: for each codebook the entry nearest by cosine to a random projection (spec B2.1).

    Features of unit variance are expected, else most labels are the same.

    Args:
        features: S.
        codebooks, entries, code_dim, seed: as in `BestRQConfig`.
    """

    def __init__(self, *, features: int, codebooks: int, entries: int, code_dim: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        bound = (6 / (features + code_dim)) ** 0.5  # Xavier
        # Drawn on the CPU whatever the default device is: there the same seed gives the same codebooks everywhere.
        drawn = {"generator": generator, "device": generator.device}
        projections_CSP = torch.rand(codebooks, features, code_dim, **drawn) * 2 * bound - bound
        entries_CVP = F.normalize(torch.randn(codebooks, entries, code_dim, **drawn), dim=-1)
        self.projections_CSP: Tensor
        self.entries_CVP: Tensor
        self.register_buffer("projections_CSP", projections_CSP)
        self.register_buffer("entries_CVP", entries_CVP)

    @torch.no_grad()
    def forward(self, x_NS: Tensor) -> Tensor:
        """Labels [N, C], int64, of each frame for itself; in fp32 under any autocast."""
        with torch.autocast(x_NS.device.type, enabled=False):
            labels = [
                # Entries have unit length: the length of the projection does not change which one is nearest.
                torch.cat([(x_RS.float() @ projection_SP @ entries_VP.T).argmax(dim=-1) for x_RS in x_NS.split(ROWS)])
                for projection_SP, entries_VP in zip(self.projections_CSP, self.entries_CVP, strict=True)
            ]
        return torch.stack(labels, dim=-1)


def mask_spans(
    lengths_B: Tensor,
    *,
    stack: int = 4,
    span: int = 32,
    probability: float = 0.025,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Which encoder frames are masked: bool [B, T], never on padding (spec B2.1).

    Spans may start at each mel frame and overlap. They are moved back to where an encoder frame begins, so that an
    encoder frame is masked if and only if all its mel frames are. Away from the edges the share of masked frames is
    1 - (1 - probability) ** span.

    Args:
        lengths_B: mel frames of each utterance.
        stack: mel frames of an encoder frame.
        span: mel frames of a span, a multiple of `stack`.
        probability: of a span starting at a mel frame.
        generator: on the device of the lengths; None is that device's own.

    Raises:
        ValueError: a span that is no multiple of the stack.
    """
    if span % stack:
        raise ValueError(f"a mask span of {span} mel frames, expected a multiple of {stack}")
    lengths_B = ceil_divide(lengths_B, stack)
    shape = (len(lengths_B), int(lengths_B.max()))
    # A span starts in an encoder frame where it would at any of its mel frames.
    starts_BT = torch.rand(shape, generator=generator, device=lengths_B.device) < 1 - (1 - probability) ** stack
    reach = span // stack
    begun_BT = F.pad(starts_BT.long().cumsum(dim=1), (reach, 0))  # starts so far; their change is those within reach
    return (begun_BT[:, reach:] > begun_BT[:, :-reach]) & frame_mask(lengths_B, shape[1])


class BestRQTask(nn.Module):
    """Conformer and softmax heads under the BEST-RQ loss; a `Task` of the training engine (spec B2.1).

    Masks and noise are drawn from the global generators, which a checkpoint keeps.

    Args:
        encoder: it goes on afterwards, the heads do not.
        config: targets and masks.

    Raises:
        UserError: spans that are no multiple of the encoder's stacked frames.
    """

    def __init__(self, encoder: Conformer, config: BestRQConfig) -> None:
        super().__init__()
        shape = encoder.config
        if config.mask_span % shape.stack:
            raise UserError(f"BEST-RQ: mask_span {config.mask_span}, expected a multiple of stack {shape.stack}")
        self.config = config
        self.encoder = encoder
        self.quantizer = RandomProjectionQuantizer(
            features=shape.stack * shape.mels,
            codebooks=config.codebooks,
            entries=config.entries,
            code_dim=config.code_dim,
            seed=config.seed,
        )
        self.heads = nn.ModuleList(nn.Linear(shape.width, config.entries) for _ in range(config.codebooks))
        self.statistics = LabelStatistics(codebooks=config.codebooks, entries=config.entries)

    def parts(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """Trainables: 'encoder', which is kept, and 'heads', which are thrown away afterwards."""
        named = list(self.named_parameters())
        return {part: [(n, p) for n, p in named if n.startswith(f"{part}.")] for part in ("encoder", "heads")}

    def loss(self, batch: SpeechBatch) -> tuple[Tensor, int]:
        """Cross-entropy in nats, averaged over the codebooks, summed over the masked frames; and their number."""
        config, stack = self.config, self.encoder.config.stack
        x_BMF = trim(batch.padded, batch.lengths)
        mask_BT = mask_spans(batch.lengths, stack=stack, span=config.mask_span, probability=config.mask_probability)
        labels_NC = self.labels(stack_frames(x_BMF, stack)[mask_BT])
        mask_BM = mask_BT.repeat_interleave(stack, dim=1)[:, : x_BMF.shape[1]]
        noisy_BMF = torch.where(mask_BM[..., None], config.noise * torch.randn_like(x_BMF), x_BMF)
        hidden_ND = self.encoder(noisy_BMF, batch.lengths)[mask_BT]
        total, correct_C = self.guess(hidden_ND, labels_NC)
        if self.training:
            self.statistics.count(labels_NC)
        self.statistics.latest = (total.detach(), correct_C, len(labels_NC))
        return total, len(labels_NC)

    def labels(self, x_NS: Tensor) -> Tensor:
        """What is to be guessed, [N, C], of clean stacked features."""
        return self.quantizer(F.layer_norm(x_NS, x_NS.shape[1:]) if self.config.without_loudness else x_NS)

    def log_values(self) -> dict[str, float]:
        """See `LabelStatistics.values`."""
        return self.statistics.values()

    def guess(self, hidden_ND: Tensor, labels_NC: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and the right guesses [C]. Logits are made anew in the backward pass: 16 times 8192 of them for
        each frame would be most of the memory.
        """
        losses, correct = [], []
        for head, labels_N in zip(self.heads, labels_NC.unbind(dim=-1), strict=True):
            loss, right = cast(
                tuple[Tensor, Tensor], checkpoint(_head_loss, head, hidden_ND, labels_N, use_reentrant=False)
            )
            losses.append(loss)
            correct.append(right)
        return torch.stack(losses).mean(), torch.stack(correct)


def _head_loss(head: Callable[[Tensor], Tensor], hidden_ND: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
    logits_NV = head(hidden_ND).float()
    correct = (logits_NV.detach().argmax(dim=-1) == labels_N).sum()
    return F.cross_entropy(logits_NV, labels_N, reduction="sum"), correct


class LabelStatistics(nn.Module):
    """What the labels of a run look like, and how much better than blind guessing the encoder is.

    Args:
        codebooks: C.
        entries: V.
    """

    def __init__(self, *, codebooks: int, entries: int) -> None:
        super().__init__()
        self.counts_CV: Tensor
        self.register_buffer("counts_CV", torch.zeros(codebooks, entries, dtype=torch.long), persistent=False)
        self.latest: tuple[Tensor, Tensor, int] | None = None
        """Summed loss, right guesses [C] and frames of the newest batch."""
        self._warned = False

    def count(self, labels_NC: Tensor) -> None:
        """Take the labels of a batch into account."""
        codebooks, entries = self.counts_CV.shape
        numbers_NC = labels_NC + torch.arange(codebooks, device=labels_NC.device) * entries
        self.counts_CV += numbers_NC.flatten().bincount(minlength=codebooks * entries).view(codebooks, entries)

    def values(self) -> dict[str, float]:
        """Numbers for the log; empty before the first labels.

        `code_usage.c` is the share of the entries of codebook c that were ever a label (while there are fewer labels
        than entries: of the labels), `code_perplexity.c` the perplexity of its labels; both since the run began or went
        on. Of the newest batch, averaged over the codebooks: `accuracy`, `accuracy_above_unigram` (minus that of always
        guessing the most frequent label) and `nats_below_unigram` (entropy of the labels minus the loss; above 0 the
        encoder has learned something).

        The first time that a usage is under 10 % a warning is logged, once there are 1000 labels.
        """
        seen = int(self.counts_CV[0].sum())
        if not seen or self.latest is None or not self.latest[2]:
            return {}
        total, correct_C, frames = self.latest
        share_CV = self.counts_CV.double() / seen
        usage_C = (self.counts_CV > 0).sum(dim=1).double() / min(seen, self.counts_CV.shape[1])
        entropy_C = -torch.special.xlogy(share_CV, share_CV).sum(dim=1)
        accuracy_C = correct_C.double() / frames
        self._warn(usage_C, seen)
        return {
            **{f"code_usage.{c}": usage for c, usage in enumerate(usage_C.tolist())},
            **{f"code_perplexity.{c}": perplexity for c, perplexity in enumerate(entropy_C.exp().tolist())},
            "accuracy": accuracy_C.mean().item(),
            "accuracy_above_unigram": (accuracy_C - share_CV.amax(dim=1)).mean().item(),
            "nats_below_unigram": entropy_C.mean().item() - total.item() / frames,
        }

    def _warn(self, usage_C: Tensor, seen: int) -> None:
        codebook = int(usage_C.argmin())
        if self._warned or seen < ENOUGH_LABELS or usage_C[codebook] >= LOW_USAGE:
            return
        self._warned = True
        log.warning(
            "BEST-RQ: codebook %d has used %d of its %d entries for %d frames: the features are hardly normalised; "
            "expected zero mean and unit variance in every mel band",
            codebook,
            int((self.counts_CV[codebook] > 0).sum()),
            self.counts_CV.shape[1],
            seen,
        )
