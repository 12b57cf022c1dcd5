"""Caption pictures with a trained adapter, and look where each word looked."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from multimodal.attention_weights import record_cross_attention
from multimodal.batch import Sample, Turn
from multimodal.errors import UserError
from multimodal.files import find_files
from multimodal.model import MultimodalModel
from multimodal.tokenizer import pieces_of
from multimodal.turns import Turns
from vision.attention_map import attention_heat, draw_attention, merge_tokens
from vision.captioning import CAPTION_PROMPT
from vision.described_answers import answerer
from vision.encoder import ImageEncoder
from vision.image_modality import image_of
from vision.picture import PICTURE_SUFFIXES, PictureSource, open_picture
from vision.tiling import Tiles


def find_pictures(paths: Sequence[str]) -> list[Path]:
    """Picture files named by paths, folders (all pictures below) and globs, in order, none twice.

    Raises:
        UserError: no path, one that matches nothing, or a folder without a picture.
    """
    return find_files(paths, PICTURE_SUFFIXES, what="picture")


def caption_pictures(
    model: MultimodalModel,
    pictures: Sequence[PictureSource],
    *,
    prompt: str = CAPTION_PROMPT,
    batch_size: int = 16,
    describe_with: str = "",
    **options: Any,
) -> Iterator[tuple[int, str | UserError]]:
    """Yields (position, caption) in order; for a picture that cannot be read the error instead of a caption.

    With a prompt to `describe_with` the picture is described first, and `prompt` answered from that alone.
    """
    tiling = image_of(model).tiling
    answer = answerer(model, batch_size=batch_size, describe_with=describe_with, **options)
    for start in range(0, len(pictures), batch_size):
        ready: dict[int, tuple[Tiles]] = {}
        broken: dict[int, UserError] = {}
        for i, picture in enumerate(pictures[start : start + batch_size], start):
            try:
                ready[i] = (tiling.tile(open_picture(picture)),)
            except UserError as error:
                broken[i] = error
        texts = answer(list(ready.values()), [prompt] * len(ready))
        done: dict[int, str | UserError] = dict(zip(ready, texts, strict=True)) | broken
        yield from sorted(done.items())


@torch.no_grad()
def attention_picture(
    model: MultimodalModel, picture: PictureSource, caption: str, *, prompt: str = CAPTION_PROMPT
) -> Image.Image:
    """The picture once per word of the caption, bright where the word looked: mean over layers and heads.

    Raises:
        UserError: the encoder gives fewer tokens than patches, so that they cannot be placed.
    """
    modality = image_of(model)
    rgb = open_picture(picture)
    tiles = modality.tiling.tile(rgb)
    side, before = _patches(modality.encoder)
    turn: Turn = Turns(model)(prompt, caption)
    ids = turn.answer[:-1]
    batch = model.collate([Sample({"image": (tiles,)}, (turn,))]).to(model.device)
    with record_cross_attention(model.decoder.adapters["image"].layers.values()) as looks:  # type: ignore[union-attr, arg-type]
        model.decoder.hidden(batch.input_ids, batch.attention_mask, memory=model.memory(batch))
    weights_TS = torch.stack(looks).mean(0)[0, len(turn.prompt) - 1 :][: len(ids)].float().cpu()
    words, weights_WS = merge_tokens(pieces_of(model.tokenizer, ids), weights_TS)
    heat = attention_heat(weights_WS, grid=tiles.grid, patches_per_side=side, before=before)
    rows, columns = tiles.grid
    fitted = modality.tiling.fit(*rgb.size)
    canvas = (columns * modality.tiling.tile_size, rows * modality.tiling.tile_size)
    return draw_attention(rgb, words, heat, (fitted[0] / canvas[0], fitted[1] / canvas[1]))


def _patches(encoder: Any) -> tuple[int, int]:
    """Patches along the side of a tile, and how many tokens stand before them: class token, registers."""
    if isinstance(encoder, ImageEncoder):
        return encoder.config.patch_side, 1
    side = encoder.tile_size // encoder.model.config.patch_size
    before = encoder.tokens_per_tile - side * side
    if before < 0:
        raise UserError(f"{encoder.tokens_per_tile} tokens a tile: expected a token for each of {side * side} patches")
    return side, before
