"""The suites of the benchmark by name."""

from collections.abc import Callable

from scripts.benchmarks.case import Settings, Suite
from scripts.benchmarks.generate import generate_suite
from scripts.benchmarks.image import image_suite
from scripts.benchmarks.speech import speech_suite
from scripts.benchmarks.video import video_suite

SUITES: dict[str, Callable[[Settings], Suite]] = {
    "image": image_suite,
    "generate": generate_suite,
    "speech": speech_suite,
    "video": video_suite,
}
