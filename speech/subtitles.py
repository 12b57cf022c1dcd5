"""Timed text as people exchange it: JSON lines, SubRip (SRT), WebVTT."""

import json
from collections.abc import Sequence
from typing import Literal

from speech.transcribing import Segment

Format = Literal["jsonl", "srt", "vtt"]


def write_segments(source: str, segments: Sequence[Segment], form: Format) -> str:
    """The segments of one recording as text that ends with a line break.

    Example:
        >>> print(write_segments("a.wav", [Segment(0.5, 1.25, "one two")], "srt"), end="")
        1
        00:00:00,500 --> 00:00:01,250
        one two
        <BLANKLINE>
    """
    if form == "jsonl":
        timed = [{"start": round(s.start, 3), "end": round(s.end, 3), "text": s.text} for s in segments]
        whole = {"audio": source, "text": " ".join(s.text for s in segments), "segments": timed}
        return json.dumps(whole, ensure_ascii=False) + "\n"
    mark = "," if form == "srt" else "."
    cues = [
        (f"{number}\n" if form == "srt" else "")
        + f"{_clock(s.start, mark)} --> {_clock(s.end, mark)}\n{_line(s.text)}\n"
        for number, s in enumerate(segments, start=1)
    ]
    return "\n".join([*(["WEBVTT\n"] if form == "vtt" else []), *cues])


def _clock(seconds: float, mark: str) -> str:
    minutes, milliseconds = divmod(round(seconds * 1000), 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{milliseconds // 1000:02d}{mark}{milliseconds % 1000:03d}"


def _line(text: str) -> str:
    """One line in which nothing reads as a time."""
    return " ".join(text.split()).replace("-->", "->")
