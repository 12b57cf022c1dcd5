"""Where each tensor of a Llama 3.2 Vision checkpoint lies in Graft: the mapping as data.

A row of `TABLE` pairs a tensor of the checkpoint with one of Graft, by name. Names may hold the number of a layer,
{self}, {cross}, {plain} or {gated}, which differs between the two: the released decoder counts cross-attention layers
and its own through, Graft leaves the decoder as it was and names the layer that a cross-attention layer stands before
(spec A4.3). Where not the whole tensors are equal, a row says which parts: views into either, for reading and writing
alike.

Names on this side: "lm.*" of the decoder, "extra_embedding.*" of its new tokens, "encoder.*" and "adapter.*" of the
image modality. The checkpoint's names are those of transformers since 4.52; on the hub they have other prefixes.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from vision.positions import first_tile_rows

PREFIXES = (
    ("language_model.lm_head.", "lm_head."),
    ("language_model.model.", "model.language_model."),
    ("vision_model.", "model.vision_model."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
)
"""Prefixes on the hub, as all versions of transformers read them, and those that transformers has since 4.52."""


@dataclass(frozen=True)
class Sizes:
    """What the mapping depends on.

    Attributes:
        vocab_size: rows of the output head; the embedding table has those of new tokens behind them.
        text_layers: of the decoder, cross-attention layers counted in.
        cross: numbers of the cross-attention layers among them.
        plain, gated: layers of the image encoder.
        width: of the image encoder.
        taps: number of tapped layers.
        max_tiles: of a picture.
        padded: whether Graft's tile tables have the rows of padding tiles too ("reference" numerics).
    """

    vocab_size: int
    text_layers: int
    cross: tuple[int, ...]
    plain: int
    gated: int
    width: int
    taps: int
    max_tiles: int
    padded: bool

    def layers(self, stack: str) -> list[tuple[int, int]]:
        """(number in the checkpoint, number in Graft) of each layer of a stack."""
        if stack == "cross":
            return [(layer, layer - before) for before, layer in enumerate(self.cross)]
        if stack == "self":
            own = [layer for layer in range(self.text_layers) if layer not in self.cross]
            return [(layer, number) for number, layer in enumerate(own)]
        return [(layer, layer) for layer in range(self.plain if stack == "plain" else self.gated)]


Views = Callable[[Tensor, Sizes], list[Tensor]]


def _whole(tensor: Tensor, sizes: Sizes) -> list[Tensor]:
    return [tensor]


def _scalar(tensor: Tensor, sizes: Sizes) -> list[Tensor]:
    return [tensor.view(())]


def _vocabulary(table: Tensor, sizes: Sizes) -> list[Tensor]:
    return [table[: sizes.vocab_size]]


def _new_tokens(table: Tensor, sizes: Sizes) -> list[Tensor]:
    return [table[sizes.vocab_size :]]


def _third(number: int) -> Views:
    """One of queries, keys and values, which Graft's encoder has in one matrix."""
    return lambda weight, sizes: [weight.chunk(3)[number]]


def _tap_by_tap(weight: Tensor, sizes: Sizes) -> list[Tensor]:
    """Columns of Graft's projector: final features, then all channels of one tap after the other."""
    return [weight[:, : sizes.width], weight[:, sizes.width :].unflatten(1, (sizes.taps, sizes.width))]


def _channel_by_channel(weight: Tensor, sizes: Sizes) -> list[Tensor]:
    """Columns of the released projector: final features, then for each channel all taps (spec A2.6.2)."""
    tapped = weight[:, sizes.width :].unflatten(1, (sizes.width, sizes.taps))
    return [weight[:, : sizes.width], tapped.transpose(1, 2)]


def _our_tiles(table: Tensor, sizes: Sizes) -> list[Tensor]:
    """Graft's tile table, grid by grid; padded, it has the released rows."""
    if sizes.padded:
        return [table]
    first = first_tile_rows(sizes.max_tiles)
    return [table[start : start + rows * columns] for (rows, columns), start in first.items()]


def _tiles_of(after: Callable[[Tensor, Sizes], Tensor]) -> Views:
    """The released tile table: for "no picture" and then each grid `max_tiles` tiles, laid end to end in one row."""

    def views(table: Tensor, sizes: Sizes) -> list[Tensor]:
        tiles = after(table, sizes)
        if sizes.padded:
            return [tiles]
        grids = tiles.unflatten(0, (-1, sizes.max_tiles))[1:]
        counts = (rows * columns for rows, columns in first_tile_rows(sizes.max_tiles))
        return [grid[:count] for grid, count in zip(grids, counts, strict=True)]

    return views


_their_tiles = _tiles_of(lambda table, sizes: table.view(-1, sizes.width))
_their_tile_positions = _tiles_of(lambda table, sizes: table.view(len(table) * sizes.max_tiles, -1, sizes.width))


@dataclass(frozen=True)
class Row:
    """A tensor of the checkpoint and one of Graft; `theirs_at` and `ours_at` are equal parts of them, in order."""

    theirs: str
    ours: str
    theirs_at: Views = _whole
    ours_at: Views = _whole


_TEXT, _VISION = "model.language_model", "model.vision_model"
_CROSS = f"{_TEXT}.layers.{{cross}}"


def _vision_layer(stack: str, theirs: str, ours: str) -> tuple[Row, ...]:
    qkv = tuple(
        Row(f"{theirs}.self_attn.{name}_proj.weight", f"{ours}.qkv.weight", ours_at=_third(number))
        for number, name in enumerate("qkv")
    )
    names = {
        "self_attn.o_proj.weight": "out.weight",
        "mlp.fc1.weight": "mlp.0.weight",
        "mlp.fc1.bias": "mlp.0.bias",
        "mlp.fc2.weight": "mlp.2.weight",
        "mlp.fc2.bias": "mlp.2.bias",
        "input_layernorm.weight": "norm_attention.weight",
        "input_layernorm.bias": "norm_attention.bias",
        "post_attention_layernorm.weight": "norm_mlp.weight",
        "post_attention_layernorm.bias": "norm_mlp.bias",
    }
    gates = {"gate_attn": "gate_attention.weight", "gate_ffn": "gate_mlp.weight"} if stack == "gated" else {}
    return (
        *qkv,
        *(Row(f"{theirs}.{a}", f"{ours}.{b}") for a, b in names.items()),
        *(Row(f"{theirs}.{a}", f"{ours}.{b}", theirs_at=_scalar) for a, b in gates.items()),
    )


TABLE = (
    Row(f"{_TEXT}.embed_tokens.weight", "lm.model.embed_tokens.weight", theirs_at=_vocabulary),
    Row(f"{_TEXT}.embed_tokens.weight", "extra_embedding.weight", theirs_at=_new_tokens),
    *(
        Row(f"{_TEXT}.layers.{{self}}.{name}.weight", f"lm.model.layers.{{self}}.{name}.weight")
        for name in (
            *(f"self_attn.{projection}_proj" for projection in "qkvo"),
            *(f"mlp.{projection}_proj" for projection in ("gate", "up", "down")),
            "input_layernorm",
            "post_attention_layernorm",
        )
    ),
    Row(f"{_TEXT}.norm.weight", "lm.model.norm.weight"),
    Row("lm_head.weight", "lm.lm_head.weight"),
    *(
        Row(f"{_CROSS}.{theirs}.weight", f"adapter.layers.{{cross}}.{ours}.weight")
        for theirs, ours in {
            **{f"cross_attn.{name}": name for name in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")},
            **{f"mlp.{name}_proj": f"ffn.{name}" for name in ("gate", "up", "down")},
            "input_layernorm": "attn_norm",
            "post_attention_layernorm": "ffn_norm",
        }.items()
    ),
    Row(f"{_CROSS}.cross_attn_attn_gate", "adapter.layers.{cross}.attn_gate.weight", theirs_at=_scalar),
    Row(f"{_CROSS}.cross_attn_mlp_gate", "adapter.layers.{cross}.ffn_gate.weight", theirs_at=_scalar),
    Row("model.multi_modal_projector.weight", "adapter.projector.weight", _channel_by_channel, _tap_by_tap),
    Row("model.multi_modal_projector.bias", "adapter.projector.bias"),
    Row(f"{_VISION}.class_embedding", "encoder.class_token_D"),
    Row(f"{_VISION}.patch_embedding.weight", "encoder.stem.weight"),
    *(
        Row(f"{_VISION}.layernorm_{place}.{name}", f"encoder.norm_{place}.{name}")
        for place in ("pre", "post")
        for name in ("weight", "bias")
    ),
    Row(f"{_VISION}.gated_positional_embedding.embedding", "encoder.positions.local_LD"),
    Row(f"{_VISION}.gated_positional_embedding.gate", "encoder.positions.gate.weight", theirs_at=_scalar),
    Row(
        f"{_VISION}.gated_positional_embedding.tile_embedding.weight",
        "encoder.positions.tiled_RLD",
        _their_tile_positions,
        _our_tiles,
    ),
    *(
        row
        for place in ("pre", "post")
        for row in (
            Row(
                f"{_VISION}.{place}_tile_positional_embedding.embedding.weight",
                f"encoder.{place}_tile.table_RD",
                _their_tiles,
                _our_tiles,
            ),
            Row(
                f"{_VISION}.{place}_tile_positional_embedding.gate",
                f"encoder.{place}_tile.gate.weight",
                theirs_at=_scalar,
            ),
        )
    ),
    *_vision_layer("plain", f"{_VISION}.transformer.layers.{{plain}}", "encoder.layers.{plain}"),
    *_vision_layer("gated", f"{_VISION}.global_transformer.layers.{{gated}}", "encoder.global_layers.{gated}"),
)


def rows_of(sizes: Sizes) -> dict[str, list[Row]]:
    """The table with all layers written out: the rows of each tensor of the checkpoint, by its name."""
    found: dict[str, list[Row]] = {}
    for row in TABLE:
        stack = re.search(r"{(\w+)}", row.theirs)
        numbers = [({}, {})] if stack is None else [({stack[1]: a}, {stack[1]: b}) for a, b in sizes.layers(stack[1])]
        for theirs, ours in numbers:
            name = row.theirs.format(**theirs)
            found.setdefault(name, []).append(
                Row(name, row.ours.format(**ours), theirs_at=row.theirs_at, ours_at=row.ours_at)
            )
    return found


def read_into(ours: Mapping[str, Tensor], tensor: Tensor, of: list[Row], sizes: Sizes) -> None:
    """Copy a tensor of the checkpoint to where its rows say."""
    for our_part, their_part in _pairs(ours, tensor, of, sizes):
        our_part.copy_(their_part)


def written_from(ours: Mapping[str, Tensor], tensor: Tensor, of: list[Row], sizes: Sizes) -> Tensor:
    """The inverse: fill a tensor of the checkpoint, zeros to begin with."""
    for our_part, their_part in _pairs(ours, tensor, of, sizes):
        their_part.copy_(our_part)
    return tensor


def _pairs(ours: Mapping[str, Tensor], tensor: Tensor, of: list[Row], sizes: Sizes) -> Iterator[tuple[Tensor, Tensor]]:
    """Equal parts of Graft's tensors and of one of the checkpoint, as its rows say."""
    for row in of:
        yield from zip(row.ours_at(ours[row.ours], sizes), row.theirs_at(tensor, sizes), strict=True)


def canonical(name: str) -> str:
    """A name with the prefixes of transformers since 4.52."""
    return next((new + name[len(old) :] for old, new in PREFIXES if name.startswith(old)), name)


def released(name: str) -> str:
    """A canonical name with the prefixes of the hub."""
    return next((old + name[len(new) :] for old, new in PREFIXES if name.startswith(new)), name)
