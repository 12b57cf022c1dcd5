"""A converted llama2.c decoder computes and tokenises as llama2.c does; a spoilt file is named, nothing is written."""

import struct
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from multimodal.errors import UserError
from multimodal.llama2c import convert, read_checkpoint, read_tokenizer
from tests.multimodal.llama2c_files import SIZES, STORIES, real, tokens, write_checkpoint, write_tokenizer

STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
    "One day, she saw a big, red ball. She wanted to play with it, but it was too high."
)


# ---- weights ------------------------------------------------------------------------------------------------------


def by_hand(weights: dict[str, Any], ids: list[int]) -> np.ndarray:
    """Logits [T, V] as llama2.c computes them, RoPE turning neighbours."""
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    heads, kv_heads = SIZES["n_heads"], SIZES["n_kv_heads"]
    size, length = SIZES["dim"] // heads, len(ids)

    def norm(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * scale

    def turned(x: np.ndarray) -> np.ndarray:
        angle = np.arange(length)[:, None] * 10000.0 ** (-np.arange(0, size, 2) / size)
        pairs = x.reshape(length, -1, size // 2, 2)
        complexes = (pairs[..., 0] + 1j * pairs[..., 1]) * np.exp(1j * angle)[:, None]
        return np.stack([complexes.real, complexes.imag], -1).reshape(length, -1, size)

    x = w["tok_embeddings"][ids]
    for i in range(SIZES["n_layers"]):
        h = norm(x, w["attention_norm"][i])
        q, k = turned(h @ w["wq"][i].T), turned(h @ w["wk"][i].T).repeat(heads // kv_heads, 1)
        v = (h @ w["wv"][i].T).reshape(length, kv_heads, size).repeat(heads // kv_heads, 1)
        scores = np.einsum("ihk,jhk->hij", q, k) / np.sqrt(size) + np.triu(np.full((length, length), -1e9), 1)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        x = x + np.einsum("hij,jhk->ihk", shares, v).reshape(length, -1) @ w["wo"][i].T
        h = norm(x, w["ffn_norm"][i])
        gate = h @ w["w1"][i].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w["w3"][i].T)) @ w["w2"][i].T
    return norm(x, w["norm"]) @ w.get("output", w["tok_embeddings"]).T


@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_logits_are_those_of_llama2c(tmp_path: Path, tied: bool) -> None:
    weights = write_checkpoint(tmp_path / "model.bin", tied=tied)
    write_tokenizer(tmp_path / "tok.bin")
    converted = convert(tmp_path / "model.bin", tmp_path / "tok.bin", tmp_path / "out")
    for lm in (converted, AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)):
        ids = [1, 260, 270, 5, 268, 261]
        found = lm(torch.tensor([ids])).logits[0].numpy()
        np.testing.assert_allclose(found, by_hand(weights, ids), atol=2e-4)
        assert lm.config.tie_word_embeddings is tied
        assert (lm.lm_head.weight is lm.model.embed_tokens.weight) is tied


# ---- tokens -------------------------------------------------------------------------------------------------------


def encoded_by_hand(text: str, table: list[tuple[bytes, float]]) -> list[int]:
    """llama2.c's encoder: characters, or their bytes, then the best-scoring neighbours merged, the leftmost first."""
    number = {token: i for i, (token, _) in enumerate(table)}
    ids: list[int] = []
    for character in " " + text if text else "":
        raw = character.encode()
        ids += [number[raw]] if raw in number else [byte + 3 for byte in raw]
    while True:
        pairs = (table[a][0] + table[b][0] for a, b in pairwise(ids))
        made = [(table[number[pair]][1], -at, number[pair]) for at, pair in enumerate(pairs) if pair in number]
        if not made:
            return ids
        _, at, token = max(made)
        ids[-at : 2 - at] = [token]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tok.bin")
    return read_tokenizer(path, vocab_size=len(tokens()), context=32)


@settings(deadline=None, max_examples=60)
@given(text=st.text(alphabet="theo fxsgdra;:,é\n▁🙂<", max_size=40))
def test_tokens_are_those_of_llama2c_and_make_the_text_again(small: Any, text: str) -> None:
    ids = small.encode(text, add_special_tokens=False)
    assert ids == encoded_by_hand(text, tokens())
    assert small.decode(ids) == text
    assert small.encode(text) == [1, *ids]


# ---- the real checkpoint ------------------------------------------------------------------------------------------


@real
@torch.no_grad()
def test_the_real_checkpoint_tells_its_story_word_for_word(tmp_path: Path) -> None:
    convert(STORIES / "stories260K.bin", STORIES / "tok512.bin", tmp_path / "out")
    lm, tokenizer = (auto.from_pretrained(tmp_path / "out") for auto in (AutoModelForCausalLM, AutoTokenizer))
    ids = lm.generate(torch.tensor([[1]]), max_new_tokens=90, do_sample=False)[0]
    assert tokenizer.decode(ids, skip_special_tokens=True).startswith(STORY)
    assert tokenizer.chat_template is None
    data = (STORIES / "tok512.bin").read_bytes()
    table, at = [], 4
    while at < len(data):
        score, length = struct.unpack_from("<fi", data, at)
        table.append((data[at + 8 : at + 8 + length], score))
        at += 8 + length
    for text in (STORY, STORY.swapcase(), "“Lily’s”   ball…\n\n\tИ ещё: aaaa eeee...!!! 12345"):
        found = tokenizer.encode(text, add_special_tokens=False)
        assert found == encoded_by_hand(text, table) and tokenizer.decode(found) == text


# ---- bad files ----------------------------------------------------------------------------------------------------


def patched(at: int, number: int) -> Callable[[bytes], bytes]:
    """Another int32 at a place of a file."""
    return lambda data: data[:at] + struct.pack("<i", number) + data[at + 4 :]


BAD_CHECKPOINTS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "truncated": (lambda data: data[:-8], "bytes long; expected"),
    "longer": (lambda data: data + b"more", "bytes long; expected"),
    "short": (lambda data: data[:20], "20 bytes long; expected a llama2.c checkpoint"),
    "text": (lambda _: b"no checkpoint at all, but a text", "expected the sizes"),
    "later": (patched(0, 0x616B3432), "expected version 0"),
    "other sizes": (patched(8, 3), "3 layers"),
    "no heads": (patched(12, 3), "expected the sizes"),
    "not finite": (lambda data: data[:64] + b"\xff" * 4 + data[68:], "not finite"),
}
BAD_TOKENIZERS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "truncated": (lambda data: data[:-1], "ends within token"),
    "zeros": (lambda data: data[:4] + bytes(80), "token 0 has length 0"),
    "not UTF-8": (lambda data: data.replace("é".encode(), b"\xff\xff"), "is not text"),
    "cut in a header": (lambda data: data[:8], "ends within token 0"),
    "a token less": (lambda data: data[:-10], "as in the checkpoint"),
    "text": (lambda _: b"no tokenizer at all", "ends within token 0"),
    "no control tokens": (lambda data: data.replace(b"<unk>", b"<pad>"), "expected the tokens <unk>"),
    "no bytes": (lambda data: data.replace(b"<0x41>", b"<byte>"), "expected the tokens <unk>"),
    "twice": (lambda data: data.replace(b" the", b" fox"), "twice"),
}


@pytest.mark.parametrize("which", [*(f"model {n}" for n in BAD_CHECKPOINTS), *(f"tok {n}" for n in BAD_TOKENIZERS)])
def test_a_spoilt_file_is_one_line_and_writes_nothing(tmp_path: Path, which: str) -> None:
    kind, _, fault = which.partition(" ")
    write_checkpoint(tmp_path / "model.bin")
    write_tokenizer(tmp_path / "tok.bin")
    change, message = (BAD_CHECKPOINTS if kind == "model" else BAD_TOKENIZERS)[fault]
    file = tmp_path / f"{kind}.bin"
    file.write_bytes(change(file.read_bytes()))
    before = set(tmp_path.iterdir())
    with pytest.raises(UserError, match=message) as caught:
        convert(tmp_path / "model.bin", tmp_path / "tok.bin", tmp_path / "out")
    assert file.name in str(caught.value) and "\n" not in str(caught.value)
    assert set(tmp_path.iterdir()) == before


def test_a_write_that_fails_leaves_nothing_and_a_used_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path / "model.bin")
    write_tokenizer(tmp_path / "tok.bin")
    before = set(tmp_path.iterdir())

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("transformers.PreTrainedTokenizerFast.save_pretrained", full)
        with pytest.raises(OSError, match="No space left"):
            convert(tmp_path / "model.bin", tmp_path / "tok.bin", tmp_path / "out")
    assert set(tmp_path.iterdir()) == before
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("kept")
    with pytest.raises(UserError, match="expected a new folder"):
        convert(tmp_path / "model.bin", tmp_path / "tok.bin", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_grouped_heads_and_a_long_context_are_read_from_the_header(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model.bin", n_kv_heads=4, seq_len=64)
    config = read_checkpoint(tmp_path / "model.bin").config
    assert (config.num_key_value_heads, config.max_position_embeddings, config.hidden_size) == (4, 64, 16)
