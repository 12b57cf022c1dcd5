"""Contrastive (CLIP-style) pre-training of the image encoder: pictures and their texts meet in one space.

Llama 3 paper, section 7.2 / spec A2.5. Only the image encoder goes on; the text tower, both projections, the
temperature and the captioner, if there is one, are thrown away. A batch may hold several texts of one picture, and
equal texts of different pictures: all of these count as positives.

Legend: I pictures, J texts, T tokens of a text, D width of a tower, E width of the shared space.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision.captioner import Captioner
from vision.encoder import Block, ImageEncoder
from vision.tiling import TileBatch

MAX_SCALE = 100.0


@dataclass(frozen=True)
class ContrastiveBatch:
    """Pictures and texts: input_ids and attention_mask [J, T] (1 = token), image_index [J] the picture of each text.

    A captioner needs the padding on the right.
    """

    tiles: TileBatch
    input_ids: Tensor
    attention_mask: Tensor
    image_index: Tensor

    def to(self, device: torch.device | str) -> "ContrastiveBatch":
        return replace(
            self,
            tiles=self.tiles.to(device),
            input_ids=self.input_ids.to(device),
            attention_mask=self.attention_mask.to(device),
            image_index=self.image_index.to(device),
        )


def contrastive_loss(u_IE: Tensor, v_JE: Tensor, scale: Tensor | float, positives_IJ: Tensor | None = None) -> Tensor:
    """Symmetric cross-entropy over cosine similarities (spec A2.5), in fp32.

    Args:
        u_IE, v_JE: vectors of pictures and texts, of any length; they are normalised here.
        scale: exp(s), the inverse temperature.
        positives_IJ: bool, which pairs belong together (None: the diagonal). Several positives of a row share its
            target equally.

    Returns:
        Scalar: the mean over pictures and the mean over texts, averaged. Rows without any positive are left out.
    """
    logits_IJ = scale * F.normalize(u_IE.float(), dim=-1) @ F.normalize(v_JE.float(), dim=-1).T
    if positives_IJ is None:
        positives_IJ = torch.eye(len(u_IE), dtype=torch.bool, device=u_IE.device)
    return 0.5 * (_soft_cross_entropy(logits_IJ, positives_IJ) + _soft_cross_entropy(logits_IJ.T, positives_IJ.T))


def _soft_cross_entropy(logits: Tensor, positives: Tensor) -> Tensor:
    counts = positives.sum(dim=1)
    log_probabilities = logits.log_softmax(dim=1).masked_fill(~positives, 0).sum(dim=1)
    return -(log_probabilities / counts.clamp(min=1)).sum() / (counts > 0).sum().clamp(min=1)


def positive_pairs(image_index_J: Tensor, images: int, input_ids_JT: Tensor, attention_mask_JT: Tensor) -> Tensor:
    """Which texts fit which pictures [I, J]: a picture's own texts, and every text equal to one of them."""
    own_IJ = image_index_J == torch.arange(images, device=image_index_J.device).unsqueeze(1)
    ids_JT = input_ids_JT.masked_fill(attention_mask_JT == 0, -1)
    _, text_J = ids_JT.unique(dim=0, return_inverse=True)
    same_JJ = text_J.unsqueeze(0) == text_J.unsqueeze(1)
    return (own_IJ.float() @ same_JJ.float()) > 0


class TextTower(nn.Module):
    """A small text encoder over the decoder's token ids: bidirectional transformer, mean over the tokens.

    Padding, on either side, is seen by nobody. Tokens after the first `max_length` are not read.
    """

    def __init__(
        self, *, vocab_size: int, width: int = 192, layers: int = 3, heads: int = 6, max_length: int = 77
    ) -> None:
        super().__init__()
        self.width = width
        self.tokens = nn.Embedding(vocab_size, width)
        self.positions = nn.Embedding(max_length, width)
        self.layers = nn.ModuleList(Block(width=width, heads=heads, depth=layers) for _ in range(layers))
        self.norm = nn.LayerNorm(width, eps=1e-5)
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=0.01)

    def forward(self, input_ids_JT: Tensor, attention_mask_JT: Tensor) -> Tensor:
        """Text vectors [J, D]; every text needs at least one token."""
        last = self.positions.num_embeddings - 1
        position_JT = attention_mask_JT.long().cumsum(dim=1) - 1
        read_JT = attention_mask_JT.bool() & (position_JT <= last)
        # Padding may carry any id, such as one beyond the table.
        x_JTD = self.tokens(input_ids_JT.masked_fill(~read_JT, 0)) + self.positions(position_JT.clamp(0, last))
        for layer in self.layers:
            x_JTD = layer(x_JTD, read_JT[:, None, None, :])
        weight_JT1 = read_JT.unsqueeze(-1).to(x_JTD.dtype)
        return (self.norm(x_JTD) * weight_JT1).sum(dim=1) / weight_JT1.sum(dim=1).clamp(min=1)


class ContrastiveTask(nn.Module):
    """Image encoder and text tower under the contrastive loss; a `Task` of the training engine (spec A2.5).

    Args:
        encoder: its plain ViT is trained; taps, global layers and tile tables join later (spec 0.1).
        embed_dim: E, width of the shared space.
        captioner: learns beside it to say the texts; `caption_weight` is the weight of its loss.
        patch_dropout: share of the patches that the encoder does not see in training.
        misread: share of the words already said that the captioner reads wrong in training.
    """

    def __init__(
        self,
        encoder: ImageEncoder,
        text: TextTower,
        *,
        embed_dim: int = 192,
        captioner: Captioner | None = None,
        caption_weight: float = 2.0,
        patch_dropout: float = 0.0,
        misread: float = 0.0,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.patch_dropout, self.misread = patch_dropout, misread
        self.text = text
        self.captioner = captioner
        self.caption_weight = caption_weight
        width = encoder.config.width
        self.image_projection = nn.Linear(width, embed_dim, bias=False)
        self.text_projection = nn.Linear(text.width, embed_dim, bias=False)
        nn.init.normal_(self.image_projection.weight, std=width**-0.5)
        nn.init.normal_(self.text_projection.weight, std=text.width**-0.5)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def scale(self) -> Tensor:
        """exp(s), at most 100. The parameter itself is held back: clamping its exponential would stop its gradient
        for good.
        """
        with torch.no_grad():
            self.log_scale.clamp_(max=math.log(MAX_SCALE))
        return self.log_scale.exp()

    def embed_images(self, tiles: TileBatch) -> Tensor:
        """Unit vectors [I, E]."""
        return F.normalize(self.image_projection(self.encoder.pool(tiles)), dim=-1)

    def embed_texts(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Unit vectors [J, E]."""
        return F.normalize(self.text_projection(self.text(input_ids, attention_mask)), dim=-1)

    def loss(self, batch: ContrastiveBatch) -> tuple[Tensor, int]:
        """Mean loss times the number of texts, and that number."""
        texts, index = len(batch.input_ids), batch.image_index
        positives_IJ = positive_pairs(index, len(batch.tiles), batch.input_ids, batch.attention_mask)
        dropped = self.patch_dropout if self.training else 0.0
        tokens, pooled_ID = self.encoder.tokens_and_pool(batch.tiles, dropped=dropped)
        v_JE = self.embed_texts(batch.input_ids, batch.attention_mask)
        loss = contrastive_loss(self.image_projection(pooled_ID), v_JE, self.scale(), positives_IJ)
        if self.captioner is not None:
            misread = self.misread if self.training else 0.0
            said = self.captioner.loss(tokens, batch.input_ids, batch.attention_mask, index.tolist(), misread=misread)
            loss = loss + self.caption_weight * said
        return loss * texts, texts

    def parts(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """Trainables: 'encoder', which is kept, and 'text', all that is thrown away afterwards."""
        text = [(name, parameter) for name, parameter in self.named_parameters() if not name.startswith("encoder.")]
        return {"encoder": self.encoder.parts()["encoder"], "text": text}


@dataclass(frozen=True)
class RetrievalRecall:
    """Recall at k in both directions, {k: share of queries}, 0 to 1."""

    text_to_image: dict[int, float]
    image_to_text: dict[int, float]


def retrieval_recall(
    image_vectors_IE: Tensor, text_vectors_JE: Tensor, image_of_text_J: Tensor, ks: Sequence[int] = (1, 5)
) -> RetrievalRecall:
    """How often the right picture (or one of the right texts) is among the k most similar; a tie with a wrong one
    counts as wrong.

    Pictures without a text are candidates for texts, but no queries.
    """
    similarity_IJ = F.normalize(image_vectors_IE.float(), dim=-1) @ F.normalize(text_vectors_JE.float(), dim=-1).T
    own_IJ = image_of_text_J == torch.arange(len(image_vectors_IE), device=image_of_text_J.device).unsqueeze(1)

    def recall(similarity: Tensor, own: Tensor) -> dict[int, float]:
        best = similarity.masked_fill(~own, -torch.inf).amax(dim=1, keepdim=True)
        better = (~own & (similarity >= best)).sum(dim=1)[own.any(dim=1)]
        return {k: (better < k).float().mean().item() for k in ks}

    return RetrievalRecall(recall(similarity_IJ.T, own_IJ.T), recall(similarity_IJ, own_IJ))
