"""Captioning as a second objective of the encoder's pre-training: each word of a text from those before it and the
picture's tokens.

CoCa (Yu et al. 2022) trains it beside the contrastive loss; Tschannen et al. 2023 ("Image captioners are scalable
vision learners too") show that it alone teaches what contrast leaves out. Contrast compares whole pictures, which
colours and places tell apart; every word of a caption asks for one thing at one place. The text decoder is thrown away.

Legend: I pictures, P tokens of a picture (padded), L text tokens, D width of the text decoder, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
        layer = nn.TransformerDecoderLayer(
            width, heads, 4 * width, dropout=0.0, activation=F.gelu, batch_first=True, norm_first=True
        )
        self.decoder = nn.TransformerDecoder(layer, layers, nn.LayerNorm(width))
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=0.02)

    def forward(self, pictures: list[Tensor], input_ids_IL: Tensor, attention_mask_IL: Tensor) -> Tensor:
        """Logits [tokens, V] of all text tokens, text after text.

        Args:
            pictures: tokens [P, image_width] of each picture; the numbers may differ.
            input_ids_IL, attention_mask_IL: its text, padded on the right (mask 1 = token).
        """
        padded_IPD = nn.utils.rnn.pad_sequence([self.image(tokens) for tokens in pictures], batch_first=True)
        lengths_I = torch.tensor([len(tokens) for tokens in pictures], device=padded_IPD.device)
        no_picture_IP = torch.arange(padded_IPD.shape[1], device=padded_IPD.device) >= lengths_I[:, None]
        read_IL = attention_mask_IL.bool()
        before_ILD = self.tokens(input_ids_IL.masked_fill(~read_IL, 0)[:, :-1])
        start_I1D = self.start_D.expand(len(pictures), 1, -1)
        x_ILD = torch.cat([start_I1D, before_ILD], dim=1) + self.positions.weight[: input_ids_IL.shape[1]]
        # Text padding comes last, so that causality keeps it from the tokens that count.
        later_LL = torch.ones(x_ILD.shape[1], x_ILD.shape[1], dtype=torch.bool, device=x_ILD.device).triu(1)
        x_ILD = self.decoder(
            x_ILD, padded_IPD, tgt_mask=later_LL, tgt_is_causal=True, memory_key_padding_mask=no_picture_IP
        )
        return F.linear(x_ILD[read_IL], self.tokens.weight)

    def loss(self, pictures: list[Tensor], input_ids_IL: Tensor, attention_mask_IL: Tensor) -> Tensor:
        """Mean cross-entropy of a text token, in nats."""
        kept = slice(0, self.positions.num_embeddings)
        ids_IL, mask_IL = input_ids_IL[:, kept], attention_mask_IL[:, kept]
        return F.cross_entropy(self(pictures, ids_IL, mask_IL).float(), ids_IL[mask_IL.bool()])
