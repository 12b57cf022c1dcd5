"""Caption pictures with a trained adapter; one JSON line each.

python -m scripts.caption dog.jpg holiday/ "more/*.png" --adapter runs/demo/adapter
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from multimodal.config import expect_at_least, parse
from multimodal.errors import UserError, run_cli
from multimodal.files import write_whole
from multimodal.model import MultimodalModel
from vision.caption_pictures import attention_picture, caption_pictures, find_pictures
from vision.captioning import CAPTION_PROMPT


@dataclass(frozen=True, kw_only=True)
class Config:
    """Caption pictures."""

    images: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Picture files, folders or globs."""
    adapter: Path
    """Adapter folder."""
    decoder: str | None = None
    """Use this decoder in place of the one that the adapter names."""
    force_decoder: bool = False
    """Accept a decoder whose weights differ from those that the adapter was trained on."""
    prompt: str = CAPTION_PROMPT
    """What to ask of each picture."""
    describe_with: str = ""
    """Prompt for a description of the picture from which alone the answer is then made, such as "Describe everything in
    the image."; empty: answer at the picture."""
    beams: int = 3
    """Beam search width; 1 = greedy."""
    sample: bool = False
    """Sample in place of searching."""
    temperature: float = 0.8
    top_p: float = 0.9
    seed: int = 0
    max_new_tokens: int = 48
    batch_size: int = 16
    output: Path | None = None
    """JSONL file; by default the lines go to the standard output."""
    attention: Path | None = None
    """Folder for a picture of where each word looked."""
    device: str = "auto"

    def __post_init__(self) -> None:
        expect_at_least(1, beams=self.beams, max_new_tokens=self.max_new_tokens, batch_size=self.batch_size)
        if self.temperature <= 0:
            raise UserError(f"--temperature {self.temperature}: expected more than 0")
        if not 0 < self.top_p <= 1:
            raise UserError(f"--top-p {self.top_p}: expected more than 0, at most 1")
        if self.describe_with and self.attention is not None:
            raise UserError("--attention with --describe-with: answers from a description look at no picture")


def main() -> None:
    config = parse(Config, description=__doc__)
    pictures = find_pictures(config.images)
    model = MultimodalModel.from_pretrained(
        config.adapter, decoder=config.decoder, force_decoder=config.force_decoder, device=config.device
    )
    torch.manual_seed(config.seed)
    options: dict[str, Any] = {"max_new_tokens": config.max_new_tokens}
    if config.sample:
        options |= {"do_sample": True, "temperature": config.temperature, "top_p": config.top_p}
    else:
        options |= {"num_beams": config.beams}
    lines: list[str] = []
    broken = 0
    said = caption_pictures(
        model,
        pictures,
        prompt=config.prompt,
        batch_size=config.batch_size,
        describe_with=config.describe_with,
        **options,
    )
    try:
        for i, found in said:
            if isinstance(found, UserError):
                if len(pictures) == 1:
                    raise found
                broken += 1
                print(f"skipped: {found}", file=sys.stderr)
                continue
            lines.append(json.dumps({"image": str(pictures[i]), "caption": found}, ensure_ascii=False))
            if config.output is None:
                print(lines[-1], flush=True)
            if config.attention is not None and found:
                config.attention.mkdir(parents=True, exist_ok=True)
                drawn = attention_picture(model, pictures[i], found, prompt=config.prompt)
                drawn.save(config.attention / f"{i:04d}-{pictures[i].stem}.png")
    finally:  # what was said before an interruption is kept, too
        if config.output is not None and lines:
            write_whole(config.output, "".join(f"{line}\n" for line in lines))
    if broken == len(pictures):
        raise UserError(f"none of {len(pictures)} pictures could be read")


if __name__ == "__main__":
    run_cli(main)
