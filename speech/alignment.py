"""The adapter learns to hand over tokens: CTC of its embeddings against the decoder's own, the pause as the blank.

A decoder that repeats tokens which are held for several positions, with pauses between (`multimodal.data.text`), has
been taught to read what CTC writes. So the adapter first learns to write that, without the decoder: the loss of the
decoder's answers says little as long as nothing in the embeddings resembles a token.

Legend: B utterances, E embeddings of each (80 ms), D decoder width, V vocabulary.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multimodal.data.text import spoken_form
from multimodal.errors import UserError
from multimodal.model import MultimodalModel
from multimodal.tokenizer import PAUSE
from speech.asr import speech_of
from speech.ctc import ctc_decode, ctc_loss
from speech.encoder import SpeechFeatures
from speech.encoder_training import CTCBatch, collate_transcribed

SCALE = 25.0
"""Nats for a cosine of 1. Fixed: were it learnt, it would grow, and embeddings half way between tokens would do, which
the decoder has never met; embeddings of a small decoder have cosines of a half with each other."""


class AlignmentTask(nn.Module):
    """Embeddings of speech under a CTC loss over the decoder's vocabulary; a `Task` of the training engine.

    Args:
        model: with speech. Its decoder needs a token for a pause.

    Raises:
        UserError: the decoder has none.
    """

    def __init__(self, model: MultimodalModel) -> None:
        super().__init__()
        self.speech, self.tokenizer = speech_of(model), model.tokenizer
        pause = self.tokenizer.get_vocab().get(PAUSE)
        if pause is None:
            raise UserError(f"decoder {model.decoder_name} has no token {PAUSE}; expected --align.steps 0")
        self.pause: int = pause
        table_VD = model.decoder.lm.get_input_embeddings().weight.detach()
        self.directions_VD: Tensor
        self.register_buffer("directions_VD", F.normalize(table_VD.float(), dim=-1), persistent=False)

    @property
    def log_mel(self) -> SpeechFeatures:
        return self.speech.log_mel

    def parts(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """Trainables: adapter and encoder."""
        return self.speech.parts()

    def collate(self, samples: Sequence[tuple[Tensor, str]]) -> CTCBatch:
        """Waveforms with the tokens of their transcripts."""
        return collate_transcribed(samples, self.log_mel, self._tokens)

    def _tokens(self, text: str) -> list[int]:
        return self.tokenizer.encode(spoken_form(text), add_special_tokens=False)

    def logits(self, embeddings_BED: Tensor) -> Tensor:
        """Scaled cosines [B, E, V] with the embeddings of all tokens: decoders read directions alone (RMSNorm)."""
        return SCALE * (F.normalize(embeddings_BED, dim=-1) @ self.directions_VD.T)

    def loss(self, batch: CTCBatch) -> tuple[Tensor, int]:
        """Summed CTC loss and the number of tokens; utterances that are too short for their tokens are left out."""
        embeddings_BED, lengths_B = self.speech.encode(batch.sound)
        found = ctc_loss(self.logits(embeddings_BED), lengths_B, batch.targets, batch.lengths, blank=self.pause)
        return found.total, found.tokens

    @torch.no_grad()
    def transcribe(self, waveforms: Sequence[Tensor]) -> list[str]:
        """Greedy transcripts of one batch, without the decoder."""
        sound = self.log_mel.collate(waveforms).to(self.directions_VD.device)
        embeddings_BED, lengths_B = self.speech.encode(sound)
        found = ctc_decode(self.logits(embeddings_BED), lengths_B, blank=self.pause)
        return [text.strip() for text in self.tokenizer.batch_decode(found, skip_special_tokens=True)]
