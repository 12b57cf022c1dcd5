"""A described system, as tables for a terminal and as plain values for JSON."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table
from torch import nn

from multimodal.meta_run import PieceCost
from multimodal.stage_cost import CARDS, USABLE, Settings, StageCost, Workload, every_settings, parameters
from scripts.stages import EncoderSize
from scripts.systems import MetaSystem, System


@dataclass(frozen=True)
class Part:
    """A part of a system: its parameters, the shapes of its largest weights with how often each occurs, and bytes of
    the weights as they are kept (decoder bf16, else fp32)."""

    name: str
    parameters: int
    shapes: tuple[tuple[tuple[int, ...], int], ...]
    bytes: int


@dataclass(frozen=True)
class Description:
    """What is known of a system at a workload."""

    name: str
    parts: tuple[Part, ...]
    encoder_sizes: tuple[EncoderSize, ...]
    workload: Workload
    stages: tuple[StageCost, ...]
    notes: tuple[str, ...]

    @classmethod
    def of(
        cls,
        system: System,
        built: MetaSystem,
        workload: Workload,
        stages: Sequence[StageCost],
        sizes: Sequence[EncoderSize],
    ) -> "Description":
        """Of a system, built on the meta device, and what its stages cost."""
        parts = tuple(_part(name, module) for name, module in built.modules().items())
        return cls(system.name, parts, tuple(sizes), workload, tuple(stages), system.notes)

    def part(self, name: str) -> Part:
        """The part of that name."""
        return next(part for part in self.parts if part.name == name)


def _part(name: str, module: nn.Module) -> Part:
    weights = {id(p): p for p in module.parameters()}.values()
    counts: dict[tuple[int, ...], int] = {}
    for weight in weights:
        shape = tuple(weight.shape)
        counts[shape] = counts.get(shape, 0) + 1
    numbers = {shape: count * math.prod(shape) for shape, count in counts.items()}
    largest = sorted(counts, key=lambda shape: -numbers[shape])[:3]
    shapes = tuple((shape, counts[shape]) for shape in largest)
    return Part(name, parameters([module]), shapes, sum(p.numel() * p.element_size() for p in weights))


def as_json(description: Description) -> dict[str, Any]:
    """Plain values, with what the tables compute from them."""
    values = asdict(description)
    for plain, stage in zip(values["stages"], description.stages, strict=True):
        plain["flops_per_sample"] = stage.flops
        plain["flops_per_sample_checkpointed"] = stage.flops_checkpointed
        plain["memory"] = [
            asdict(settings) | asdict(stage.memory(settings)) | {"total": stage.memory(settings).total}
            for settings in every_settings(training=bool(stage.trained))
        ]
        plain["fits"] = {str(card): _settings(stage.settings_for(card)) for card in CARDS}
    return values


def _settings(settings: Settings | None) -> dict[str, Any] | None:
    return None if settings is None else asdict(settings)


def tables(description: Description) -> Iterator[Table | str]:
    """What is printed, one after the other."""
    yield parts_table(description)
    yield from description.notes
    if description.encoder_sizes:
        yield sizes_table(description.encoder_sizes)
    yield stages_table(description)
    yield pieces_table(description.stages)
    yield memory_table(description.stages)
    yield cards_table(description.stages)


def parts_table(description: Description) -> Table:
    """Parameters, shapes and bytes of each part, and of all."""
    table = _table(f"{description.name}: parts", "part", "parameters", "weights", "largest shapes", text=(0, 3))
    for part in description.parts:
        shapes = ", ".join(f"{count} x {' x '.join(map(str, shape))}" for shape, count in part.shapes)
        table.add_row(part.name, f"{part.parameters:,}", gigabytes(part.bytes), shapes)
    total = [sum(part.parameters for part in description.parts), sum(part.bytes for part in description.parts)]
    table.add_section()
    table.add_row("all", f"{total[0]:,}", gigabytes(total[1]), "")
    return table


def sizes_table(sizes: Sequence[EncoderSize]) -> Table:
    """Image encoder and tokens of a picture by tile size."""
    most = len(sizes[0].tokens)
    columns = [f"{n} tile{'s' * (n > 1)}" for n in range(1, most + 1)]
    table = _table("Tokens of a picture", "tile", "encoder parameters", *columns)
    for size in sizes:
        table.add_row(f"{size.tile_size} px", f"{size.parameters:,}", *(f"{tokens:,}" for tokens in size.tokens))
    return table


def stages_table(description: Description) -> Table:
    """Trained parameters and operations of each stage."""
    load = description.workload
    title = f"Stages: batch {load.batch}, {load.text_tokens} text tokens, {load.seconds:g} s of speech"
    table = _table(title, "stage", "trained parameters", "TFLOP a sample", "checkpointing", "trained", text=(0, 4))
    for stage in description.stages:
        parts = ", ".join(f"{name} {billions(count)}" for name, count in stage.trained.items())
        again = tera(stage.flops_checkpointed) if stage.trained else ""
        table.add_row(stage.name, f"{sum(stage.trained.values()):,}", tera(stage.flops), again, parts or "nothing")
    return table


def pieces_table(stages: Sequence[StageCost]) -> Table:
    """Where the operations of a sample are."""
    table = _table("TFLOP a sample, nothing recomputed", "stage", "piece", "forward", "backward", text=(0, 1))
    for stage in stages:
        for i, piece in enumerate(stage.run.pieces):
            table.add_row("" if i else stage.name, piece.name, *_tera_of(piece, stage.batch))
        table.add_section()
    return table


def _tera_of(piece: PieceCost, batch: int) -> tuple[str, str]:
    return tera(piece.forward / batch), tera(piece.backward / batch) if piece.backward else ""


def memory_table(stages: Sequence[StageCost]) -> Table:
    """Bytes of a step as it is, and of activations with checkpointing."""
    columns = (
        "decoder",
        "parts",
        "gradients",
        "optimizer",
        "activations",
        "all",
        "activations, checkpointing",
        "least",
    )
    table = _table("GB of a step (decoder bf16, parts and optimizer fp32)", "stage", *columns)
    for stage in stages:
        memory = stage.memory(Settings())
        numbers = (memory.decoder, memory.parts, memory.gradients, memory.optimizer, memory.activations, memory.total)
        again = gigabytes(stage.checkpointed.peak) if stage.trained else ""
        table.add_row(stage.name, *(gigabytes(n) if n else "" for n in numbers), again, gigabytes(stage.least))
    return table


def cards_table(stages: Sequence[StageCost]) -> Table:
    """The least sacrifice with which a step of each stage fits on a card."""
    title = f"What fits, with {USABLE:.0%} of a card planned for"
    table = _table(title, "stage", *(f"{card} GB" for card in CARDS), text=range(5))
    table.caption = (
        "--checkpointing, --train.optimizer adamw8bit, --decoder.quantize int8, --train.master-weights bf16; no: what "
        "every one of them leaves. Smaller batches (--batch) need less."
    )
    table.caption_justify = "left"
    for stage in stages:
        fits = [stage.settings_for(card) for card in CARDS]
        needed = f"no: {gigabytes(stage.least / USABLE)} GB"
        table.add_row(stage.name, *(needed if settings is None else str(settings) for settings in fits))
    return table


def _table(title: str, *columns: str, text: Sequence[int] = (0,)) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i in text else "right")
    return table


def gigabytes(count: float) -> str:
    """In 10^9 bytes."""
    return f"{count / 1e9:,.2f}" if count < 1e10 else f"{count / 1e9:,.1f}"


def tera(count: float) -> str:
    """In 10^12 operations."""
    return f"{count / 1e12:,.3g}" if count < 1e15 else f"{count / 1e12:,.0f}"


def billions(count: int) -> str:
    """A number of parameters, short."""
    return f"{count / 1e9:,.2f} B" if count >= 1e9 else f"{count / 1e6:,.1f} M" if count >= 1e6 else f"{count:,}"
