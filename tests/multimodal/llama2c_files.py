"""Small llama2.c files (version 0) for tests: a random checkpoint, and a tokenizer of a few pieces.

    from tests.multimodal.llama2c_files import SIZES, tokens, write_checkpoint, write_tokenizer

The real checkpoint, where it is: `STORIES`, a folder, and `real`, a mark that skips a test without it.
"""

import os
import struct
from pathlib import Path

import numpy as np
import pytest

STORIES = Path(os.environ.get("GRAFT_DATA", Path(__file__).parents[2].parent / "shared" / "data")) / "stories260K"
real = pytest.mark.skipif(not STORIES.is_dir(), reason=f"no {STORIES} (set GRAFT_DATA)")

_TEXT = "the fox saw the dog; the fox said: see the dog there, see the fox here"
_PIECES = (" t", "he", " the", "th", "er", "se", "ee", " s", " f", "ox", " fox", "see", "aa", "o", "e", "ere", "re")
SIZES = {"dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 0, "seq_len": 32}


def tokens() -> list[tuple[bytes, float]]:
    """Control tokens, bytes, merged pieces, then letters; scores fall with every token, as in SentencePiece."""
    control = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces = list(dict.fromkeys([*_PIECES, *sorted({*_TEXT, "a", "é"})]))
    return [(token.encode(), 0.0) for token in control] + [(p.encode(), float(-i)) for i, p in enumerate(pieces)]


def write_tokenizer(path: Path, table: list[tuple[bytes, float]] | None = None) -> Path:
    """A tokenizer file."""
    table = tokens() if table is None else table
    parts = [struct.pack("<i", max(len(token) for token, _ in table))]
    parts += [struct.pack("<fi", score, len(token)) + token for token, score in table]
    path.write_bytes(b"".join(parts))
    return path


def write_checkpoint(path: Path, *, tied: bool = True, seed: int = 0, **sizes: int) -> dict[str, np.ndarray]:
    """A checkpoint file with random weights; returned by llama2.c's names for them."""
    s = {**SIZES, "vocab_size": len(tokens()), **sizes}
    d, f, n, v = s["dim"], s["hidden_dim"], s["n_layers"], s["vocab_size"]
    head = d // s["n_heads"]
    kv = head * s["n_kv_heads"]
    shapes = {
        "tok_embeddings": (v, d),
        "attention_norm": (n, d),
        "wq": (n, d, d),
        "wk": (n, kv, d),
        "wv": (n, kv, d),
        "wo": (n, d, d),
        "ffn_norm": (n, d),
        "w1": (n, f, d),
        "w2": (n, d, f),
        "w3": (n, f, d),
        "norm": (d,),
        "freqs_cos": (s["seq_len"], head // 2),
        "freqs_sin": (s["seq_len"], head // 2),
    } | ({} if tied else {"output": (v, d)})
    rng = np.random.default_rng(seed)
    weights = {name: rng.normal(scale=0.4, size=shape).astype("<f4") for name, shape in shapes.items()}
    numbers = [*s.values()]
    numbers[5] = v if tied else -v
    path.write_bytes(struct.pack("<7i", *numbers) + b"".join(w.tobytes() for w in weights.values()))
    return weights
