"""Captioning as a second objective of the encoder's pre-training: each word of a text from those before it and the
picture's tokens.

CoCa (Yu et al. 2022) trains it beside the contrastive loss; Tschannen et al. 2023 ("Image captioners are scalable
vision learners too") show that it alone teaches what contrast leaves out. Contrast compares whole pictures, which
colours and places tell apart; every word of a caption asks for one thing at one place. The text decoder is thrown away.

Legend: I pictures, P tokens of a picture, L text tokens, D width of the text decoder, V vocabulary, H heads, K head
dimension.
"""

from collections import defaultdict

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

    def forward(self, x_ILD: Tensor, picture_IPD: Tensor, past_LL: Tensor) -> Tensor:
        """`past_LL`: bool, True where a word may read another."""
        x_ILD = x_ILD + self.text.attention(self.text.norm_attention(x_ILD), past_LL)
        q_IHLK = self.q(self.norm_cross(x_ILD)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k_IHPK, v_IHPK = self.kv(picture_IPD).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x_ILD = x_ILD + self.cross_out(attend(q_IHLK, k_IHPK, v_IHPK).transpose(1, 2).flatten(2))
        return x_ILD + self.text.mlp(self.text.norm_mlp(x_ILD))


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

    def forward(self, pictures: list[Tensor], input_ids_IL: Tensor, attention_mask_IL: Tensor) -> Tensor:
        """Logits [tokens, V] of all text tokens, text after text.

        Args:
            pictures: tokens [P, image_width] of each picture; the numbers may differ.
            input_ids_IL, attention_mask_IL: its text, padded on the right (mask 1 = token).
        """
        read_IL = attention_mask_IL.bool()
        lengths_I = read_IL.sum(1).tolist()
        place_IL = torch.arange(read_IL.numel(), device=read_IL.device).unflatten(0, read_IL.shape)
        states, places = [], []
        for rows in _alike([len(tokens) for tokens in pictures], lengths_I):
            rows_R = torch.tensor(rows, device=read_IL.device)
            longest = max(lengths_I[row] for row in rows)
            read_RL = read_IL[rows_R, :longest]
            picture_RPD = self.image(torch.stack([pictures[row] for row in rows]))
            states.append(self._read(input_ids_IL[rows_R, :longest], read_RL, picture_RPD)[read_RL])
            places.append(place_IL[rows_R, :longest][read_RL])
        return F.linear(torch.cat(states)[torch.cat(places).argsort()], self.tokens.weight)

    def _read(self, ids_IL: Tensor, read_IL: Tensor, picture_IPD: Tensor) -> Tensor:
        """Last states [I, L, D] of texts; padding comes last, so that causality keeps it from the tokens that count."""
        before_ILD = self.tokens(ids_IL.masked_fill(~read_IL, 0)[:, :-1])
        start_I1D = self.start_D.expand(len(ids_IL), 1, -1)
        x_ILD = torch.cat([start_I1D, before_ILD], dim=1) + self.positions.weight[: ids_IL.shape[1]]
        past_LL = torch.ones(2 * x_ILD.shape[1:2], dtype=torch.bool, device=x_ILD.device).tril()
        for layer in self.layers:
            x_ILD = layer(x_ILD, picture_IPD, past_LL)
        return self.norm(x_ILD)

    def loss(self, pictures: list[Tensor], input_ids_IL: Tensor, attention_mask_IL: Tensor) -> Tensor:
        """Mean cross-entropy of a text token, in nats."""
        kept = slice(0, self.positions.num_embeddings)
        ids_IL, mask_IL = input_ids_IL[:, kept], attention_mask_IL[:, kept]
        return F.cross_entropy(self(pictures, ids_IL, mask_IL).float(), ids_IL[mask_IL.bool()])


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
