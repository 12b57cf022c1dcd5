"""What the speech parts cost, found on the meta device: conformer, BEST-RQ heads, adapter, decoder.

Legend: B recordings, M mel frames, F mel bands, T frames of 40 ms, E embeddings, N masked frames, C codebooks.
"""

from collections.abc import Collection

import torch
from torch import Tensor, nn

from multimodal.decoder import FrozenDecoder
from multimodal.meta_decoder import decoder_pieces, embeddings, run_decoder
from multimodal.meta_layers import layers_once
from multimodal.meta_run import META, Pieces, RunCost, trained
from multimodal.stage_cost import Workload
from speech.best_rq import BestRQConfig, BestRQTask
from speech.conformer import Conformer
from speech.features import LogMelConfig
from speech.speech_adapter import SpeechAdapter
from speech.speech_modality import SpeechConfig

STAGES: dict[str, tuple[str, ...]] = {
    "speech: use": (),
    "speech: adapter, encoder frozen": ("adapter",),
    "speech: adapter and encoder": ("adapter", "encoder"),  # the paper's (spec 0.1)
}
"""The parts that each stage trains, named as in `SpeechModality.parts`."""
PRETRAINING = "speech: encoder, BEST-RQ"


class MetaSpeech(nn.Module):
    """Encoder and adapter on the meta device, as `SpeechModality` has them, without features and their statistics."""

    def __init__(self, config: SpeechConfig, decoder_dim: int) -> None:
        super().__init__()
        with META:
            self.encoder = Conformer(config.encoder)
            self.adapter = SpeechAdapter(
                config.adapter, feature_dim=self.encoder.feature_dim, decoder_dim=decoder_dim, embedding_rms=1.0
            )

    def parts(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """Trainables, as those of `SpeechModality`."""
        modules = {"adapter": self.adapter, "encoder": self.encoder}
        return {part: list(module.named_parameters(prefix=part)) for part, module in modules.items()}


def mel_frames(seconds: float) -> int:
    """Mel frames of so much sound."""
    features = LogMelConfig()
    return max(1, round(seconds * features.rate / features.hop))


def speech_run(
    speech: MetaSpeech,
    decoder: FrozenDecoder,
    workload: Workload,
    *,
    train: Collection[str],
    dtype: torch.dtype | None = torch.bfloat16,
) -> RunCost:
    """A batch of recordings with text through all parts; arguments as for `vision.image_cost.image_run`.

    The marks around speech are tokens like others here; their training costs nothing to speak of.
    """
    learning = [p for name in train for _, p in speech.parts()[name]]
    with (
        trained(learning, speech.parameters()),
        decoder_pieces(decoder, dtype, grad=bool(train), layers=speech.encoder.layers) as pieces,
    ):
        _forward(pieces, speech, decoder, workload)
        return pieces.finish()


def _encode(pieces: Pieces, encoder: Conformer, workload: Workload) -> tuple[Tensor, Tensor]:
    """Features of recordings, and their lengths, which stay on the CPU: modules read them."""
    frames = mel_frames(workload.seconds)
    x_BMF = torch.empty(workload.batch, frames, encoder.config.mels, device=META)
    lengths_B = torch.full((workload.batch,), frames)
    learns = torch.is_grad_enabled() and any(p.requires_grad for p in encoder.parameters())

    def encode() -> list[Tensor]:
        with torch.set_grad_enabled(learns):
            return [encoder(x_BMF, lengths_B)]

    (hidden_BTC,) = pieces.run("speech encoder", encode)
    return hidden_BTC, encoder.output_length(lengths_B)


def _forward(pieces: Pieces, speech: MetaSpeech, decoder: FrozenDecoder, workload: Workload) -> None:
    hidden_BTC, lengths_B = _encode(pieces, speech.encoder, workload)
    (speech_BED,) = pieces.run("speech adapter", lambda: [speech.adapter(hidden_BTC, lengths_B)])
    text_BTD = embeddings(decoder, workload.batch, workload.text_tokens)
    embeds_BTD = torch.cat([speech_BED.to(text_BTD.dtype), text_BTD], dim=1)
    losses = workload.text_tokens if torch.is_grad_enabled() else 0
    run_decoder(pieces, decoder, embeds_BTD, losses=losses)


def best_rq_run(task: BestRQTask, workload: Workload, *, dtype: torch.dtype | None = torch.bfloat16) -> RunCost:
    """Pre-training of the encoder on a batch of recordings (spec B2.1), with as many masked frames as are expected."""
    with (
        trained(list(task.parameters()), ()),
        Pieces(dtype) as pieces,
        layers_once(task.encoder.layers, pieces.kernels),
    ):
        hidden_BTC, lengths_B = _encode(pieces, task.encoder, workload)
        masked = round(masked_share(task.config) * int(lengths_B.sum()))
        labels_NC = torch.empty(masked, task.config.codebooks, dtype=torch.long, device=META)
        pieces.run("BEST-RQ heads", lambda: [task.guess(hidden_BTC.flatten(0, 1)[:masked], labels_NC)[0]])
        return pieces.finish()


def masked_share(config: BestRQConfig) -> float:
    """Share of the frames that are masked, away from the edges (see `mask_spans`)."""
    return 1 - (1 - config.mask_probability) ** config.mask_span


def modules(speech: MetaSpeech) -> dict[str, nn.Module]:
    """The parts as they are told apart in a table."""
    return {"speech encoder": speech.encoder, "speech adapter": speech.adapter}
