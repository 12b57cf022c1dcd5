"""A CTC head on the encoder's frames: speech recognition without a decoder (Graves et al. 2006).

A small encoder must already expose letters or words before a frozen decoder can read it; this head teaches it so. It
stands on the encoder's frames (the conformer's 40 ms, Whisper's and wav2vec2-BERT's 20 ms): the adapter's, half as
many, are too few for spelled letters, and so are often Parakeet's of 80 ms.

Legend: B utterances, T frames, D encoder width, U tokens of the longest target, V vocabulary.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multimodal.data.text import spoken_form
from speech.frames import frame_mask


@dataclass(frozen=True)
class CTCLoss:
    """The loss summed over utterances (nats, fp32), their target tokens, and how many utterances were left out."""

    total: Tensor
    tokens: int
    skipped: int


def frames_needed(targets_BU: Tensor, target_lengths_B: Tensor) -> Tensor:
    """Least frames [B] in which targets fit: one for each token, and one for the blank between two equal ones."""
    equal_BU = targets_BU[:, 1:] == targets_BU[:, :-1]
    return target_lengths_B + (equal_BU & frame_mask(target_lengths_B - 1, equal_BU.shape[1])).sum(dim=1)


def ctc_loss(
    logits_BTV: Tensor, lengths_B: Tensor, targets_BU: Tensor, target_lengths_B: Tensor, *, blank: int
) -> CTCLoss:
    """Summed CTC loss in fp32.

    A target that does not fit into its frames has no finite loss: such an utterance is left out and counted, since a
    speed perturbation may bring it about at any time. No other infinity is hidden.

    Args:
        logits_BTV: of every frame.
        lengths_B: frames of each utterance.
        targets_BU: int64 token ids; padding may be anything.
        target_lengths_B: tokens of each target, 0 or more.
        blank: id of the blank.

    Raises:
        ValueError: a target that is the blank, or outside the vocabulary.
    """
    inside_BU = frame_mask(target_lengths_B, targets_BU.shape[1])
    tokens, vocabulary = targets_BU[inside_BU], logits_BTV.shape[2]
    if bool(((tokens < 0) | (tokens >= vocabulary) | (tokens == blank)).any()):
        raise ValueError(
            f"token ids from {tokens.min()} to {tokens.max()}, expected 0 to {vocabulary - 1} without the blank {blank}"
        )
    fits_B = frames_needed(targets_BU, target_lengths_B) <= lengths_B
    log_probabilities_BTV = logits_BTV[fits_B].float().log_softmax(dim=-1)
    kept = len(log_probabilities_BTV)
    total = log_probabilities_BTV[:0].sum()
    if kept:
        unlike_blank = int(blank == 0)
        total = F.ctc_loss(
            log_probabilities_BTV.transpose(0, 1),
            targets_BU.masked_fill(~inside_BU, unlike_blank)[fits_B],
            lengths_B[fits_B],
            target_lengths_B[fits_B],
            blank=blank,
            reduction="sum",
        )
    return CTCLoss(total, int(target_lengths_B[fits_B].sum()), len(fits_B) - kept)


@torch.no_grad()
def ctc_decode(logits_BTV: Tensor, lengths_B: Tensor, *, blank: int) -> list[list[int]]:
    """Token ids of each utterance: the best of every frame, repetitions merged, blanks left out."""
    best_BT = logits_BTV.argmax(dim=-1).cpu()
    merged = (row_T[:length].unique_consecutive() for row_T, length in zip(best_BT, lengths_B.tolist(), strict=True))
    return [ids[ids != blank].tolist() for ids in merged]


@dataclass(frozen=True)
class Characters:
    """The characters of some texts, in spoken form, by number."""

    names: str

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Characters":
        """All that there are in the texts."""
        return cls("".join(sorted({character for text in texts for character in spoken_form(text)})))

    def encode(self, text: str) -> list[int]:
        """Numbers of the text's characters; those that are not known are left out."""
        return [number for character in spoken_form(text) if (number := self.names.find(character)) >= 0]

    def decode(self, ids: Iterable[int]) -> str:
        """The inverse of `encode` for texts in spoken form."""
        return "".join(self.names[i] for i in ids)


class CTCHead(nn.Module):
    """Linear layer to V tokens and the blank, whose id is V.

    Args:
        width: D.
        vocabulary: V.
    """

    def __init__(self, *, width: int, vocabulary: int) -> None:
        super().__init__()
        self.blank = vocabulary
        self.linear = nn.Linear(width, vocabulary + 1)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """Logits [B, T, V + 1]."""
        return self.linear(hidden_BTD)

    def loss(self, hidden_BTD: Tensor, lengths_B: Tensor, targets_BU: Tensor, target_lengths_B: Tensor) -> CTCLoss:
        """`ctc_loss` of the encoder's features."""
        return ctc_loss(self(hidden_BTD), lengths_B, targets_BU, target_lengths_B, blank=self.blank)

    @torch.no_grad()
    def decode(self, hidden_BTD: Tensor, lengths_B: Tensor) -> list[list[int]]:
        """Token ids of each utterance: the best of every frame, repetitions merged, blanks left out."""
        return ctc_decode(self(hidden_BTD), lengths_B, blank=self.blank)
