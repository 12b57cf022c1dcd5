"""The adapter learns to hand over tokens: CTC of its embeddings against the decoder's own, the pause as the blank.

A decoder that repeats tokens which are held for several positions, with pauses between (`multimodal.data.text`), has
been taught to read what CTC writes. So the adapter first learns to write that, without the decoder: the loss of the
decoder's answers says little as long as nothing in the embeddings resembles a token. Each embedding is also drawn to
the mean of the decoder's, weighted by how probable each token is there, the more the surer it is.

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
from speech.frames import frame_mask

SCALE = 25.0
"""Nats for a cosine of 1. Embeddings of a small decoder have cosines of a half with each other."""
CLOSENESS = 2.5
"""Nats for a right angle between an embedding and the tokens that it is taken for, at each position. Without it tokens
can be told apart (2 % of words wrong), but are far from the decoder's (a cosine of 0.55), which it cannot read."""


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
        self.table_VD = model.decoder.lm.get_input_embeddings().weight.detach().float()
        self.directions_VD = F.normalize(self.table_VD, dim=-1)

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
        """Summed loss and the number of tokens; utterances that are too short for their tokens have no CTC loss."""
        embeddings_BED, lengths_B = self.speech.encode(batch.sound)
        logits_BEV = self.logits(embeddings_BED)
        found = ctc_loss(logits_BEV, lengths_B, batch.targets, batch.lengths, blank=self.pause)
        taken_for_BEV = logits_BEV.detach().float().softmax(dim=-1)
        meant_BED = taken_for_BEV @ self.table_VD
        apart_BE = taken_for_BEV.amax(dim=-1) * (1 - F.cosine_similarity(embeddings_BED, meant_BED, dim=-1))
        there_BE = frame_mask(lengths_B, apart_BE.shape[1])
        return found.total + CLOSENESS * apart_BE[there_BE].sum(), found.tokens

    @torch.no_grad()
    def transcribe(self, waveforms: Sequence[Tensor]) -> list[str]:
        """Greedy transcripts of one batch, without the decoder."""
        sound = self.log_mel.collate(waveforms).to(self.table_VD.device)
        embeddings_BED, lengths_B = self.speech.encode(sound)
        found = ctc_decode(self.logits(embeddings_BED), lengths_B, blank=self.pause)
        return [text.strip() for text in self.tokenizer.batch_decode(found, skip_special_tokens=True)]
