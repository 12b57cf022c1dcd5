"""Transcribe or translate recordings with a trained adapter.

python -m scripts.transcribe talk.mp3 interviews/ "more/*.wav" --adapter runs/demo-asr/adapter --format srt
python -m scripts.transcribe --microphone 5 --adapter runs/demo-asr/adapter
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from multimodal.config import parse
from multimodal.errors import UserError, run_cli
from multimodal.files import find_files, write_whole
from multimodal.model import MultimodalModel
from speech.audio import AUDIO_SUFFIXES
from speech.microphone import record
from speech.subtitles import Format, write_segments
from speech.transcribing import transcribe
from speech.voice_activity import VoiceActivity


@dataclass(frozen=True, kw_only=True)
class Config:
    """Transcribe recordings."""

    recordings: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Sound or video files, folders or globs."""
    microphone: float | None = None
    """Record so many seconds from the microphone in place of files (pip install graft-multimodal[microphone])."""
    adapter: Path
    """Adapter folder."""
    decoder: str | None = None
    """Use this decoder in place of the one that the adapter names."""
    force_decoder: bool = False
    """Accept a decoder whose weights differ from those that the adapter was trained on."""
    language: str = "English"
    """Of the text, by name or code."""
    translate: bool = False
    """Translate into the language in place of transcribing."""
    format: Format = "jsonl"
    """One JSON line a recording, or subtitles."""
    output: Path | None = None
    """JSONL file, or folder for subtitles; by default everything goes to the standard output."""
    longest_seconds: float = 20.0
    """Longer speech is cut at pauses."""
    voice: VoiceActivity = field(default_factory=VoiceActivity)
    """What counts as speech. In steady loud noise a smaller margin finds more; --voice.margin-db 0 leaves out nothing
    but silence."""
    beams: int = 1
    """Beam search width; 1 = greedy."""
    max_new_tokens: int = 256
    """Longer texts are cut off: about two tokens a word."""
    batch_size: int = 16
    device: str = "auto"


def main() -> None:
    config = parse(Config, description=__doc__)
    sources = find_sources(config)
    expect_room(config)
    model = MultimodalModel.from_pretrained(
        config.adapter, decoder=config.decoder, force_decoder=config.force_decoder, device=config.device
    )
    if config.microphone is not None:  # only now, so that the text follows at once
        sources = {Path("microphone"): listen(config.microphone)}
    lines: list[str] = []
    broken = 0
    try:
        for file, source in sources.items():
            try:
                text = transcribed(model, file, source, config)
            except UserError as error:
                if len(sources) == 1:
                    raise
                broken += 1
                print(f"skipped: {error}", file=sys.stderr)
                continue
            if config.output is None:
                print(text, end="", flush=True)
            elif config.format == "jsonl":
                lines.append(text)
            else:
                write_whole(config.output / f"{file.stem}.{config.format}", text)
    finally:  # what was written down before an interruption is kept, too
        if config.output is not None and lines:
            write_whole(config.output, "".join(lines))
    if broken == len(sources):
        raise UserError(f"none of {len(sources)} recordings could be read")


def transcribed(model: MultimodalModel, file: Path, source: Path | bytes, config: Config) -> str:
    """What is said in a recording, in the format asked for."""
    segments = transcribe(
        model,
        source,
        task="translate" if config.translate else "transcribe",
        language=config.language,
        longest_seconds=config.longest_seconds,
        batch_size=config.batch_size,
        rule=config.voice,
        num_beams=config.beams,
        max_new_tokens=config.max_new_tokens,
    )
    return write_segments(str(file), list(segments), config.format)


def expect_room(config: Config) -> None:
    """Raises UserError where the output could not be written in the end."""
    if config.output is None:
        return
    if config.format == "jsonl" and config.output.is_dir():
        raise UserError(f"--output {config.output}: a folder; expected a file for JSON lines, or --format srt or vtt")
    if config.format != "jsonl" and config.output.is_file():
        raise UserError(f"--output {config.output}: a file; expected a folder for subtitles")


def find_sources(config: Config) -> dict[Path, Path | bytes]:
    """What the user named: files by themselves; none where the microphone is wanted."""
    if config.microphone is None:
        files = find_files(config.recordings, AUDIO_SUFFIXES, what="sound")
        first: dict[str, Path] = {}
        for file in files if config.output is not None and config.format != "jsonl" else ():
            if (other := first.setdefault(file.stem, file)) != file:
                raise UserError(
                    f"{other} and {file} would both be written as {file.stem}.{config.format}; expected files of "
                    "different names, or one folder at a time"
                )
        return {file: file for file in files}
    if config.recordings:
        raise UserError(f"--microphone beside {config.recordings[0]}: expected either a microphone or recordings")
    return {}


def listen(seconds: float) -> bytes:
    """A recording from the microphone, with a word when it begins."""
    return record(seconds, ready=lambda: print(f"speak now: recording {seconds:g} s", file=sys.stderr, flush=True))


if __name__ == "__main__":
    run_cli(main)
