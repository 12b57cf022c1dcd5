"""Text that teaches a small decoder to speak and to obey: prose, chat turns, and sentences to repeat.

A frozen decoder can only follow what it already does. "Repeat after me" must therefore be in its own training, also in
the forms in which a speech adapter will hand words over: every token held for several positions, with pauses between.
"""

import lzma
import random
import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from multimodal.data.packing import Document
from multimodal.errors import UserError
from multimodal.tokenizer import PAUSE, AnyTokenizer

Draw = Callable[[random.Random], Document]
Writer = Callable[[random.Random], str]
"""Writes one sentence."""
SayingWriter = Callable[[random.Random], tuple[str, str, str]]
"""Writes a prompt, what comes after it, and the answer."""
REPEAT_PROMPT = "Repeat after me in {language}:"
TRANSLATE_PROMPT = "Translate the following sentence into {language}:"
"""The paper's prompts name the language of the answer alone (Llama 3 paper, section 8.2 / spec B4)."""
BACKWARDS_PROMPT = "Say it backwards:"
CHUNK_CHARACTERS = 2000
HELD_OUT_EVERY = 50


def read_texts(paths: Sequence[Path]) -> str:
    """All text of the given `.txt` and `.txt.xz` files (a folder stands for the files in it), newlines normalised.

    Raises:
        UserError: a path is missing, holds no text file, or is not UTF-8.
    """
    files: list[Path] = []
    for path in paths:
        found = sorted(p for p in path.iterdir() if p.name.endswith((".txt", ".txt.xz"))) if path.is_dir() else [path]
        if not found or not found[0].is_file():
            raise UserError(f"{path}: no text found; expected a .txt or .txt.xz file, or a folder of them")
        files += found
    texts = []
    for file in files:
        try:
            raw = lzma.decompress(file.read_bytes()) if file.suffix == ".xz" else file.read_bytes()
            texts.append(raw.decode("utf-8"))
        except (lzma.LZMAError, UnicodeDecodeError) as error:
            raise UserError(f"{file}: not a UTF-8 text file ({error}); expected .txt or .txt.xz") from None
    return "\n\n\n".join(texts).replace("\r\n", "\n")


def split_prose(text: str) -> tuple[list[str], list[str]]:
    """Cut text into chunks at paragraph ends; every fiftieth chunk is held out. Returns (train, held out)."""
    chunks: list[str] = []
    lines: list[str] = []
    size = 0
    for paragraph in text.split("\n\n"):
        lines.append(re.sub(r"\s+", " ", paragraph).strip())
        size += len(paragraph)
        if size >= CHUNK_CHARACTERS:
            chunks.append("\n".join(line for line in lines if line))
            lines, size = [], 0
    train = [c for i, c in enumerate(chunks) if i % HELD_OUT_EVERY]
    return train, chunks[::HELD_OUT_EVERY]


def sentences(chunks: Sequence[str], *, words: tuple[int, int] = (4, 20)) -> list[str]:
    """Sentences of `words[0]` to `words[1]` words found in `chunks`, in order, without repetitions."""
    found: dict[str, None] = {}
    for chunk in chunks:
        for sentence in re.split(r"(?<=[.!?])\s+", chunk.replace("\n", " ")):
            if words[0] <= len(sentence.split()) <= words[1]:
                found[sentence.strip()] = None
    return list(found)


def spoken_form(sentence: str) -> str:
    """A sentence as speech recognition writes it: lower case, letters of any alphabet with their marks (vowel signs,
    accents), digits and apostrophes alone.

    Numbers stay as they are: merging "six two" into "62" would hide what was heard.
    """
    lower = unicodedata.normalize("NFKC", sentence).lower().replace("i\u0307", "i")  # of the Turkish capital
    plain = unicodedata.normalize("NFKC", lower).replace("’", "'")
    kept = (c if c == "'" or unicodedata.category(c)[0] in "LMN" else " " for c in plain)
    return " ".join("".join(kept).split())


def chat_document(tokenizer: AnyTokenizer, user: str | list[int], assistant: str | list[int]) -> Document:
    """One user turn and one assistant turn; only the answer and its end-of-turn token count in the loss.

    Either may be token ids, for what no text spells (random tokens, tokens held for several positions).
    """
    frame = [
        tokenizer.convert_tokens_to_ids(t) for t in ("<|begin_of_text|>", "<|user|>", "<|assistant|>", "<|eot_id|>")
    ]
    begin, user_id, assistant_id, end = frame
    question = tokenizer.encode(user, add_special_tokens=False) if isinstance(user, str) else user
    answer = tokenizer.encode(assistant, add_special_tokens=False) if isinstance(assistant, str) else assistant
    ids = [begin, user_id, *question, assistant_id, *answer, end]
    return Document(ids, [False] * (len(question) + 3) + [True] * (len(answer) + 1))


def stretch(ids: Sequence[int], rng: random.Random, *, pause_id: int, most: int = 3, gap: float = 0.2) -> list[int]:
    """Hold each token for 1 to `most` positions and follow it by pauses with probability `gap`.

    Between equal tokens there is always a pause, as there is a blank in CTC: one that is held is not one said twice.
    """
    out: list[int] = []
    for token in ids:
        out += [pause_id] if out and out[-1] == token else []
        out += [token] * rng.randint(1, most)
        while rng.random() < gap:
            out.append(pause_id)
    return out


def as_heard(ids: Sequence[int], rng: random.Random, *, pause_id: int) -> list[int]:
    """Tokens as a speech adapter hands them over: held and with pauses, a little or much, and silence at both ends."""
    held = stretch(ids, rng, pause_id=pause_id, most=rng.randint(1, 4), gap=rng.uniform(0, 0.75))
    before, after = (rng.randint(0, rng.choice((0, 4, 10))) for _ in range(2))
    return [pause_id] * before + held + [pause_id] * after


def prose_source(tokenizer: AnyTokenizer, chunks: Sequence[str], *, length: int) -> Draw:
    """Windows of at most `length` tokens from the chunks, all tokens counted.

    Raises:
        UserError: there is too little text.
    """
    begin = tokenizer.convert_tokens_to_ids("<|begin_of_text|>")
    ids_of_chunks = tokenizer(list(chunks), add_special_tokens=False)["input_ids"] if chunks else []
    encoded = [ids for ids in ids_of_chunks if len(ids) > 8]
    if not encoded:
        raise UserError(f"too little text to train on: expected two chunks of {CHUNK_CHARACTERS} characters or more")

    def draw(rng: random.Random) -> Document:
        ids = encoded[rng.randrange(len(encoded))]
        start = rng.randrange(max(1, len(ids) - length // 2))
        window = [begin, *ids[start : start + length - 1]]
        return Document(window, [False] + [True] * (len(window) - 1))

    return draw


def repeat_source(tokenizer: AnyTokenizer, examples: Sequence[str], *, writers: Sequence[Writer] = ()) -> Draw:
    """Sentences, word salads and their stretched forms after "Repeat after me in English:", some of them after
    "Translate the following sentence into English:", which changes nothing where they are English, and a few to be
    said backwards: to find the token before a known one is what questions about a description ask for.

    Args:
        examples: sentences.
        writers: of more sentences, such as will be spoken; a quarter of the texts is theirs.

    Raises:
        UserError: there are no sentences.
    """
    if not examples:
        raise UserError("no sentence to repeat in the text: expected some that end in . ! or ?")
    pause_id = tokenizer.convert_tokens_to_ids(PAUSE)
    first = len(tokenizer.all_special_ids)  # the special tokens come first
    words = sorted({word for sentence in examples for word in sentence.split()})

    def words_of(rng: random.Random) -> str:
        kind = rng.random()
        if writers and kind < 0.25:
            return rng.choice(writers)(rng)
        sentence = examples[rng.randrange(len(examples))]
        if kind < 0.35:
            return sentence
        if kind < 0.45:
            return spoken_form(sentence) or sentence
        # Unlikely words make copying the only way: the words of several sentences, shuffled, or rare ones.
        if kind < 0.6:
            pool = " ".join(examples[rng.randrange(len(examples))] for _ in range(3)).split()
            rng.shuffle(pool)
        else:
            pool = rng.choices(words, k=20)
        if kind < 0.75:
            return " ".join(pool[: rng.randint(1, 20)])
        # Words that come again and again: who looks only for the word before the next one skips what lies between.
        return " ".join(rng.choices(pool[: rng.randint(2, 8)], k=rng.randint(4, 20)))

    @cache
    def encoded(prompt: str) -> list[int]:
        return tokenizer.encode(prompt, add_special_tokens=False)

    def draw(rng: random.Random) -> Document:
        kind = rng.random()
        prompt = (TRANSLATE_PROMPT if rng.random() < 0.15 else REPEAT_PROMPT).format(language="English")
        if kind < 0.15:
            pool = [rng.randrange(first, len(tokenizer)) for _ in range(rng.choice((4, 8, 24)))]
            ids = rng.choices(pool, k=rng.randint(1, 24))
        else:
            ids = tokenizer.encode(words_of(rng), add_special_tokens=False)
        heard = ids
        if 0.1 < kind < 0.2:
            return chat_document(tokenizer, encoded(BACKWARDS_PROMPT) + ids, ids[::-1])
        if 0.2 < kind < 0.25:
            heard = [token for token in ids for _ in range(2)]
        elif kind > 0.5:
            heard = as_heard(ids, rng, pause_id=pause_id)
        return chat_document(tokenizer, encoded(prompt) + heard, ids)

    return draw


def saying_source(tokenizer: AnyTokenizer, writer: SayingWriter) -> Draw:
    """What is to be said after a prompt, such as a translation; what is asked about is written, or held like speech."""
    pause_id = tokenizer.convert_tokens_to_ids(PAUSE)

    def draw(rng: random.Random) -> Document:
        prompt, asked, answer = (tokenizer.encode(text, add_special_tokens=False) for text in writer(rng))
        heard = as_heard(asked, rng, pause_id=pause_id) if rng.random() < 0.6 else asked
        return chat_document(tokenizer, prompt + heard, answer)

    return draw


def conversation(tokenizer: AnyTokenizer, turns: Sequence[tuple[str, str]]) -> Document:
    """Several turns of question and answer in one document; all answers count."""
    documents = [chat_document(tokenizer, *turn) for turn in turns]
    begins = [0] + [1] * (len(documents) - 1)  # only the conversation begins with the start token
    ids = [token for doc, skip in zip(documents, begins, strict=True) for token in doc.ids[skip:]]
    return Document(ids, [flag for doc, skip in zip(documents, begins, strict=True) for flag in doc.counts[skip:]])


def chat_source(tokenizer: AnyTokenizer, turns: Callable[[random.Random], Sequence[tuple[str, str]]]) -> Draw:
    """Conversations of questions and answers, made by `turns`."""
    return lambda rng: conversation(tokenizer, turns(rng))


def mixture(sources: Sequence[tuple[float, Draw]]) -> Draw:
    """Draw each document from one of the sources, with the given weights (shares of documents, not of tokens)."""
    weights = [weight for weight, _ in sources]
    return lambda rng: rng.choices(sources, weights)[0][1](rng)
