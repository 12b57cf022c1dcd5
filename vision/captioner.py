"""Captioning as a second objective of the encoder's pre-training: each word of a text from those before it and the
picture's tokens.

CoCa (Yu et al. 2022) trains it beside the contrastive loss; Tschannen et al. 2023 ("Image captioners are scalable
vision learners too") show that it alone teaches what contrast leaves out. Contrast compares whole pictures, which
colours and places tell apart; every word of a caption asks for one thing at one place. The text decoder is thrown away.

Legend: I pictures, P tokens of a picture, J texts, L text tokens, D width of the text decoder, V vocabulary, H heads, K
head dimension.
"""

from collections import defaultdict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multimodal.attention import attend
from multimodal.batch import length_groups
from vision.encoder import Block


class CaptionerLayer(nn.Module):
    """Pre-norm transformer layer: words read the words before them, then the picture, then a feed-forward."""

    def __init__(self, *, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.heads = heads
        self.text = Block(width=width, heads=heads, depth=depth)
        self.norm_cross = nn.LayerNorm(width)
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(width, 2 * width, bias=False)
        self.cross_out = nn.Linear(width, width, bias=False)
        for linear in (self.q, self.kv):
            nn.init.normal_(linear.weight, std=width**-0.5)
        nn.init.normal_(self.cross_out.weight, std=(2 * depth * width) ** -0.5)

    def forward(self, x_JLD: Tensor, picture_IPD: Tensor, image_index_J: Tensor, past_LL: Tensor) -> Tensor:
        """`image_index_J`: the picture of each text; `past_LL`: bool, True where a word may read another."""
        x_JLD = x_JLD + self.text.attention(self.text.norm_attention(x_JLD), past_LL)
        q_JHLK = self.q(self.norm_cross(x_JLD)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        kv_IP2HK = self.kv(picture_IPD).unflatten(-1, (2, self.heads, -1))
        k_JHPK, v_JHPK = kv_IP2HK.index_select(0, image_index_J).permute(2, 0, 3, 1, 4)
        x_JLD = x_JLD + self.cross_out(attend(q_JHLK, k_JHPK, v_JHPK).transpose(1, 2).flatten(2))
        return x_JLD + self.text.mlp(self.text.norm_mlp(x_JLD))


class Captioner(nn.Module):
    """A small causal text decoder that looks at the tokens of one picture.

    Args:
        image_width: width of the picture's tokens.
        max_length: text tokens that are learnt; those after them are not.
    """

    def __init__(
        self, *, vocab_size: int, image_width: int, width: int, layers: int, heads: int, max_length: int
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, width)
        self.positions = nn.Embedding(max_length, width)
        self.start_D = nn.Parameter(torch.zeros(width))
        self.image = nn.Linear(image_width, width)
        self.layers = nn.ModuleList(CaptionerLayer(width=width, heads=heads, depth=layers) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=0.02)

    def forward(
        self, pictures: Sequence[Tensor], input_ids_JL: Tensor, attention_mask_JL: Tensor, image_index: Sequence[int]
    ) -> Tensor:
        """Logits [tokens, V] of all text tokens, text after text.

        Args:
            pictures: tokens [P, image_width] of each picture; the numbers may differ.
            input_ids_JL, attention_mask_JL: texts, padded on the right (mask 1 = token).
            image_index: the picture of each text.
        """
        read_JL = attention_mask_JL.bool()
        lengths_J = read_JL.sum(1).tolist()
        place_JL = torch.arange(read_JL.numel(), device=read_JL.device).unflatten(0, read_JL.shape)
        states, places = [], []
        for rows in _alike([len(pictures[i]) for i in image_index], lengths_J):
            rows_R = torch.tensor(rows, device=read_JL.device)
            longest = max(lengths_J[row] for row in rows)
            read_RL = read_JL[rows_R, :longest]
            shown = sorted({image_index[row] for row in rows})
            picture_IPD = self.image(torch.stack([pictures[i] for i in shown]))
            index_R = torch.tensor([shown.index(image_index[row]) for row in rows], device=read_JL.device)
            states.append(self._read(input_ids_JL[rows_R, :longest], read_RL, picture_IPD, index_R)[read_RL])
            places.append(place_JL[rows_R, :longest][read_RL])
        return F.linear(torch.cat(states)[torch.cat(places).argsort()], self.tokens.weight)

    def _read(self, ids_JL: Tensor, read_JL: Tensor, picture_IPD: Tensor, image_index_J: Tensor) -> Tensor:
        """Last states [J, L, D] of texts; padding comes last, so that causality keeps it from the tokens that count."""
        before_JLD = self.tokens(ids_JL.masked_fill(~read_JL, 0)[:, :-1])
        start_J1D = self.start_D.expand(len(ids_JL), 1, -1)
        x_JLD = torch.cat([start_J1D, before_JLD], dim=1) + self.positions.weight[: ids_JL.shape[1]]
        past_LL = torch.ones(2 * x_JLD.shape[1:2], dtype=torch.bool, device=x_JLD.device).tril()
        for layer in self.layers:
            x_JLD = layer(x_JLD, picture_IPD, image_index_J, past_LL)
        return self.norm(x_JLD)

    def loss(
        self,
        pictures: Sequence[Tensor],
        input_ids_JL: Tensor,
        attention_mask_JL: Tensor,
        image_index: Sequence[int],
        *,
        misread: float = 0.0,
    ) -> Tensor:
        """Mean cross-entropy of a text token, in nats; arguments as in `forward`.

        `misread`: share of the tokens already said that are read as any others, as in `multimodal.batch.misread`.
        """
        kept = slice(0, self.positions.num_embeddings)
        ids_JL, mask_JL = input_ids_JL[:, kept], attention_mask_JL[:, kept]
        read_JL = ids_JL
        if misread:
            wrong_JL = torch.rand(ids_JL.shape, device=ids_JL.device) < misread
            read_JL = torch.where(wrong_JL, torch.randint_like(ids_JL, self.tokens.num_embeddings), ids_JL)
        return F.cross_entropy(self(pictures, read_JL, mask_JL, image_index).float(), ids_JL[mask_JL.bool()])


def _alike(picture_lengths: list[int], text_lengths: list[int]) -> list[list[int]]:
    """Rows whose pictures have equally many tokens, and whose texts are of similar length: nothing needs a mask."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for row, length in enumerate(picture_lengths):
        by_length[length].append(row)
    return [
        [rows[i] for i in group]
        for rows in by_length.values()
        for group in length_groups([text_lengths[row] for row in rows])
    ]
