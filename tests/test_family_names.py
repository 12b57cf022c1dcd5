"""Names of model families stand in tables: no code asks for one by its name."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import multimodal
from speech.encoder import FAMILIES as SPEECH
from tests.multimodal.tiny_decoders import FAMILIES as DECODERS
from vision.hub_encoder import FAMILIES as VISION

ROOT = Path(multimodal.__path__[0]).parent
WORDS = {"clip", "siglip", "dino", "whisper", "wav2vec", "parakeet", "smollm", *DECODERS}
OF_ONE_MODEL = {"mllama.py", "mllama_config.py", "mllama_names.py"}
"""Files that are about Llama 3.2 Vision alone, and say so of what is not."""


def asked_for(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Texts that something is compared with (==, in, match, startswith, endswith), with their lines."""
    for node in ast.walk(tree):
        compared: list[ast.AST] = []
        if isinstance(node, ast.Compare):
            compared = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            compared = [node.value]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            compared = list(node.args) if node.func.attr in ("startswith", "endswith") else []
        for part in (part for side in compared for part in ast.walk(side)):
            if isinstance(part, ast.Constant) and isinstance(part.value, str):
                yield part.lineno, part.value


def names_a_family(text: str) -> bool:
    """A family's name, also with a version and a part behind it ("dinov3", "clip_vision_model")."""
    return re.fullmatch(rf"({'|'.join(WORDS)})(v?\d+)?([-_.].*)?", text.lower()) is not None


def test_no_code_asks_for_a_family_by_name() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text!r}"
        for room in ("multimodal", "vision", "speech", "scripts")
        for path in (ROOT / room).rglob("*.py")
        if path.name not in OF_ONE_MODEL
        for line, text in asked_for(ast.parse(path.read_text()))
        if names_a_family(text)
    ]
    assert not found


def test_the_test_would_find_one() -> None:
    code = "if kind == 'clip_vision_model': pass\nif kind in ('a', 'whisper'): pass\nkind.startswith('dinov3')"
    lines = [line for line, text in asked_for(ast.parse(code)) if names_a_family(text)]
    assert lines == [1, 2, 3] and all(map(names_a_family, [*VISION, *SPEECH])) and not names_a_family("clips")
