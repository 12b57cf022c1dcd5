"""Say what a system needs before anybody trains it: parameters, operations, bytes, and which cards it fits on.

python -m scripts.describe --config 8b
python -m scripts.describe --config scripts/configs/demo.yaml --batch 8 --json demo.json

Names: 8b, 70b, 405b (the paper's systems), 11b, 90b (Llama 3.2 Vision); or a YAML file of such a system or of a
training recipe. Flags change its settings: --encoder.tile-size 560. Nothing is loaded or computed: the real modules are
built and run on tensors without data.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from rich.console import Console

from multimodal.config import parse
from multimodal.errors import UserError, run_cli
from multimodal.report import write_json
from multimodal.stage_cost import Workload
from scripts.description import Description, as_json, tables
from scripts.stages import encoder_sizes, stage_costs
from scripts.systems import build, read_system


@dataclass(frozen=True, kw_only=True)
class Options(Workload):
    """Describe a system; its own settings are flags as well."""

    json: Path | None = None
    """Write everything to this file too."""


def split_flags(argv: Sequence[str]) -> tuple[str, list[str], list[str]]:
    """The value of --config, the flags of `Options`, and those of the system.

    Raises:
        UserError: --config is missing, or a flag has no value.
    """
    own = {f"--{setting.name.replace('_', '-')}" for setting in fields(Options)}
    name, options, others = "", list[str](), list[str]()
    words = iter(argv)
    for word in words:
        flag, equals, value = word.partition("=")
        flag = flag.replace("_", "-")
        if flag not in own | {"--config"}:
            others.append(word)
            continue
        value = value if equals else next(words, "")
        if not value:
            raise UserError(f"{flag} has no value: expected one")
        if flag == "--config":
            name = value
        else:
            options.append(f"{flag}={value}")
    if not name:
        raise UserError("missing --config: expected a system (8b, 70b, 405b, 11b, 90b) or a YAML file")
    return name, options, others


def describe(name: str, workload: Workload, flags: Sequence[str] = ()) -> Description:
    """Everything about a system.

    Raises:
        UserError: see `read_system` and `build`.
    """
    system = read_system(name, flags)
    plain, checkpointed = build(system), build(system, checkpointing=True)
    stages = stage_costs(plain, checkpointed, workload)
    return Description.of(system, plain, workload, stages, encoder_sizes(system))


def main() -> None:
    if {"--help", "-h"} & set(sys.argv):
        parse(Options, ["--help"], description=__doc__)
    name, options, flags = split_flags(sys.argv[1:])
    config = parse(Options, options, description=__doc__)
    workload = Workload(**{setting.name: getattr(config, setting.name) for setting in fields(Workload)})
    description = describe(name, workload, flags)
    console = Console(width=None if sys.stdout.isatty() else 160)
    for table in tables(description):
        console.print(table)
    if config.json is not None:
        write_json(config.json, as_json(description))


if __name__ == "__main__":
    run_cli(main)
