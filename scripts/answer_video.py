"""Answer a question about clips, and pictures beside them, with a trained adapter.

python -m scripts.answer_video clip.mp4 --question "which object moves first?" --adapter runs/demo-video/adapter
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from PIL import Image

from multimodal.config import expect_at_least, parse
from multimodal.errors import UserError, run_cli
from multimodal.messages import Message
from multimodal.model import MultimodalModel
from vision.clip_captions import CLIP_PROMPT
from vision.described_answers import answer_from, description_options
from vision.video_report import attention_strips


@dataclass(frozen=True, kw_only=True)
class Config:
    """Answer a question about clips."""

    clips: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Videos, animations or folders of frames, in the order in which they are talked about."""
    adapter: Path
    """Adapter folder."""
    question: str = CLIP_PROMPT
    images: tuple[Path, ...] = ()
    """Pictures that are shown before the clips."""
    decoder: str | None = None
    """Use this decoder in place of the one that the adapter names."""
    force_decoder: bool = False
    """Accept a decoder whose weights differ from those that the adapter was trained on."""
    describe_with: str = ""
    """Prompt for a description of what is shown from which alone the answer is then made, such as "Describe everything
    in the video."; empty: answer at the clip."""
    beams: int = 1
    """Beam search width; 1 = greedy."""
    max_new_tokens: int = 32
    attention: Path | None = None
    """Picture file for a film strip of the clips with the weight of each frame, word by word."""
    device: str = "auto"

    def __post_init__(self) -> None:
        expect_at_least(1, beams=self.beams, max_new_tokens=self.max_new_tokens)
        known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.SAVE}
        if self.attention is not None and self.attention.suffix.lower() not in known:
            raise UserError(f"--attention {self.attention}: expected the name of a picture, such as strip.png")
        if self.describe_with and self.attention is not None:
            raise UserError("--attention with --describe-with: answers from a description look at no clip")


def main() -> None:
    config = parse(Config, description=__doc__)
    if not config.clips:
        raise UserError("no clip given; expected videos, animations or folders of frames")
    model = MultimodalModel.from_pretrained(
        config.adapter, decoder=config.decoder, force_decoder=config.force_decoder, device=config.device
    )
    shown = [{"type": "image", "image": image} for image in config.images]
    shown += [{"type": "video", "video": clip} for clip in config.clips]
    prompt = config.describe_with or config.question
    messages: list[Message] = [{"role": "user", "content": [*shown, {"type": "text", "text": prompt}]}]
    options = {"num_beams": config.beams, "max_new_tokens": config.max_new_tokens}
    if config.describe_with:
        description = model.chat(messages, **description_options(options))
        (answer,) = answer_from(model, [description], [config.question], batch_size=1, **options)
    else:
        answer = model.chat(messages, **options)
    print(answer)
    if config.attention is not None and answer:
        config.attention.parent.mkdir(parents=True, exist_ok=True)
        attention_strips(model, messages, answer).save(config.attention)


if __name__ == "__main__":
    run_cli(main)
