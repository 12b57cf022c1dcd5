"""Training text for the decoder: what is read, what is held out, and what "repeat" means in tokens."""

import lzma
import random
import unicodedata
from itertools import groupby, pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from multimodal.data.packing import Document
from multimodal.data.text import (
    BACKWARDS_PROMPT,
    CHUNK_CHARACTERS,
    HELD_OUT_EVERY,
    REPEAT_PROMPT,
    TRANSLATE_PROMPT,
    chat_document,
    chat_source,
    conversation,
    mixture,
    prose_source,
    read_texts,
    repeat_source,
    saying_source,
    sentences,
    split_prose,
    spoken_form,
    stretch,
)
from multimodal.errors import UserError
from multimodal.tokenizer import PAUSE
from tests.multimodal.tiny_tokenizers import TEXTS, builtin_tokenizer

# On a busy machine time says nothing.
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])

PAUSE_ID = builtin_tokenizer().convert_tokens_to_ids(PAUSE)
token_lists = st.lists(st.integers(PAUSE_ID + 1, PAUSE_ID + 4), max_size=12)


def collapsed(ids: list[int]) -> list[int]:
    """As CTC reads: each run of one token as that token once, then without pauses."""
    return [token for token, _ in groupby(ids) if token != PAUSE_ID]


# Reading ---------------------------------------------------------------------------------------------------------


def test_files_and_folders_are_read_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "books"
    folder.mkdir()
    (folder / "b.txt").write_bytes("zwei\r\nЖ".encode())
    (folder / "a.txt.xz").write_bytes(lzma.compress(b"one"))
    (folder / "notes.pdf").write_bytes(b"\xff")
    (tmp_path / "c.txt").write_text("three")
    assert read_texts([folder, tmp_path / "c.txt"]) == "one\n\n\nzwei\nЖ\n\n\nthree"


@pytest.mark.parametrize("name", ["none.txt", "empty", "latin.txt", "broken.txt.xz", "cut.txt.xz", "void.txt.xz"])
def test_what_cannot_be_read_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    (tmp_path / "broken.txt.xz").write_bytes(b"no xz")
    (tmp_path / "cut.txt.xz").write_bytes(lzma.compress(b"one" * 1000)[:-20])
    (tmp_path / "void.txt.xz").write_bytes(b"")
    with pytest.raises(UserError, match=name) as found:
        read_texts([tmp_path / name])
    assert "expected" in str(found.value) and "\n" not in str(found.value)


# Prose -----------------------------------------------------------------------------------------------------------


def paragraphs(count: int) -> list[str]:
    return [f"Paragraph number {n}" + f" {n}" * 300 + "." for n in range(count)]


def test_held_out_chunks_are_a_fiftieth_and_none_of_the_training_chunks() -> None:
    text = paragraphs(400)
    train, held_out = split_prose("\n\n".join(text))
    chunks = len(train) + len(held_out)
    assert chunks > HELD_OUT_EVERY and len(held_out) == -(-chunks // HELD_OUT_EVERY)
    in_train = {p for chunk in train for p in chunk.split("\n")}
    in_held_out = {p for chunk in held_out for p in chunk.split("\n")}
    assert in_train and in_held_out and not in_train & in_held_out
    # Nothing is lost but a rest too short for a chunk, and paragraphs are whole.
    missing = [p for p in text if p not in in_train | in_held_out]
    assert in_train | in_held_out <= set(text) and missing == text[len(text) - len(missing) :]
    assert sum(map(len, missing)) < CHUNK_CHARACTERS


def test_white_space_within_paragraphs_is_one_space() -> None:
    train, held_out = split_prose("\n\n".join(f"  a\n b\t {n}  c " + "d" * CHUNK_CHARACTERS for n in range(3)))
    assert [chunk[: len("a b 0 c")] for chunk in held_out + train] == ["a b 0 c", "a b 1 c", "a b 2 c"]


@quick
@given(st.lists(st.text(alphabet="ab .!?\n", max_size=60), max_size=4), st.integers(1, 4), st.integers(0, 4))
def test_sentences_have_as_many_words_as_asked(chunks: list[str], least: int, more: int) -> None:
    found = sentences(chunks, words=(least, least + more))
    assert all(least <= len(s.split()) <= least + more for s in found)
    assert len(set(found)) == len(found)
    joined = " ".join(" ".join(chunks).split())
    assert all(" ".join(s.split()) in joined for s in found)


def test_sentences_are_found_in_order_and_once() -> None:
    chunks = ["One two. A fox saw a dog!\nIt did. Did it see\na fox?", "A fox saw a dog! That was that then."]
    assert sentences(chunks, words=(4, 5)) == ["A fox saw a dog!", "Did it see a fox?", "That was that then."]
    assert sentences(chunks, words=(2, 2)) == ["One two.", "It did."]


@quick
@given(st.text())
def test_the_spoken_form_has_no_more_than_speech_has(text: str) -> None:
    spoken = spoken_form(text)
    assert all(unicodedata.category(character)[0] in "LMN" or character in "' " for character in spoken)
    assert spoken == spoken.lower()
    assert spoken == " ".join(spoken.split()) == spoken_form(spoken)


def test_spoken_form() -> None:
    assert spoken_form("“Don’t,” said Tom—twice;  at 10!") == "don't said tom twice at 10"


@pytest.mark.parametrize(
    ("said", "spoken"),
    [
        ("हिन्दी में बोलो।", "हिन्दी में बोलो"),
        ("தமிழ், வணக்கம்!", "தமிழ் வணக்கம்"),
        ("ภาษาไทย สวัสดี", "ภาษาไทย สวัสดี"),
        ("«İstanbul» IŞIK", "istanbul işik"),
        ("Cafe\u0301 snake_case", "café snake case"),
    ],
)
def test_the_marks_of_a_script_belong_to_its_letters(said: str, spoken: str) -> None:
    assert spoken_form(said) == unicodedata.normalize("NFKC", spoken)


# Documents -------------------------------------------------------------------------------------------------------


@quick
@given(st.text(), st.text())
def test_a_chat_document_is_what_the_chat_template_renders(user: str, assistant: str) -> None:
    tokenizer = builtin_tokenizer()
    turn = [{"role": "user", "content": user}]
    prompt = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template([*turn, {"role": "assistant", "content": assistant}], tokenize=False)
    document = chat_document(tokenizer, user, assistant)
    assert document.ids == tokenizer.encode(whole, add_special_tokens=False)
    before = len(tokenizer.encode(prompt, add_special_tokens=False))
    assert document.counts == [False] * before + [True] * (len(document.ids) - before)


@quick
@given(st.lists(st.tuples(st.text(max_size=8), st.text(max_size=8)), min_size=1, max_size=4))
def test_a_conversation_is_what_the_chat_template_renders(turns: list[tuple[str, str]]) -> None:
    tokenizer = builtin_tokenizer()
    messages: list[dict[str, str]] = []
    ids: list[int] = []
    counts: list[bool] = []
    for user, assistant in turns:
        messages.append({"role": "user", "content": user})
        for counted in (False, True):
            if counted:
                messages.append({"role": "assistant", "content": assistant})
            whole = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=not counted)
            ids = tokenizer.encode(whole, add_special_tokens=False)
            counts += [counted] * (len(ids) - len(counts))
    assert conversation(tokenizer, turns) == Document(ids, counts)


def test_a_chat_document_takes_ids_for_text() -> None:
    tokenizer = builtin_tokenizer()
    user, assistant = (tokenizer.encode(t, add_special_tokens=False) for t in ("Who?", "A fox."))
    assert chat_document(tokenizer, user, assistant) == chat_document(tokenizer, "Who?", "A fox.")


@quick
@given(token_lists, st.integers(1, 4), st.sampled_from([0.0, 0.2, 0.6]), st.integers(0, 10**6))
def test_stretching_keeps_the_order_and_nothing_is_lost(ids: list[int], most: int, gap: float, seed: int) -> None:
    held = stretch(ids, random.Random(seed), pause_id=PAUSE_ID, most=most, gap=gap)
    assert collapsed(held) == ids
    sounding = [i for i in held if i != PAUSE_ID]
    assert len(ids) <= len(sounding) <= most * len(ids)
    if not gap:
        assert len(held) - len(sounding) == sum(a == b for a, b in pairwise(ids))
    if most == 1:
        assert sounding == ids
    assert held == stretch(ids, random.Random(seed), pause_id=PAUSE_ID, most=most, gap=gap)


def test_stretching_holds_and_pauses() -> None:
    held = stretch([8, 9] * 500, random.Random(0), pause_id=PAUSE_ID, most=3, gap=0.2)
    pauses = held.count(PAUSE_ID)
    assert 1900 < len(held) - pauses < 2100  # twice on average
    assert 200 < pauses < 300  # a quarter of a pause for each token


def form_of(question: list[int], answer: list[int]) -> str:
    """In which form a question holds its answer."""
    tokenizer = builtin_tokenizer()
    prompts = [prompt.format(language="English") for prompt in (REPEAT_PROMPT, TRANSLATE_PROMPT)]
    asked = [f"<|begin_of_text|><|user|>{prompt}" for prompt in (*prompts, BACKWARDS_PROMPT)]
    said = tokenizer.decode(question).replace("> ", ">")
    begin = next(text for text in asked if said.startswith(text))
    prompt = tokenizer.encode(begin, add_special_tokens=False)
    heard = question[len(prompt) :]
    assert question[: len(prompt)] == prompt
    if begin == asked[2]:
        assert heard == answer[::-1]
        return "backwards"
    if heard in (answer, [i for i in answer for _ in range(2)]):
        return "alone" if heard == answer else "doubled"
    assert collapsed(heard) == answer
    return "translated" if begin == asked[1] else "stretched"


def test_what_is_to_be_repeated_is_what_is_asked() -> None:
    tokenizer = builtin_tokenizer()
    examples = sentences(TEXTS)
    assert len(examples) > 3
    written = ["two foxes and", "two dogs"]
    draw, rng = repeat_source(tokenizer, examples, writers=[lambda rng: rng.choice(written)]), random.Random(0)
    forms, said = set(), set()
    for _ in range(400):
        document = draw(rng)
        middle = document.ids.index(tokenizer.convert_tokens_to_ids("<|assistant|>"))
        answer = document.ids[middle + 1 :]
        assert document.counts == [i > middle for i in range(len(document.ids))]
        assert answer.pop() == tokenizer.eos_token_id
        assert min(answer) > max(tokenizer.all_special_ids)
        forms.add(form_of(document.ids[:middle], answer))
        said.add(tokenizer.decode(answer).strip())
    assert forms == {"alone", "doubled", "stretched", "translated", "backwards"}
    assert said & set(examples) and said & {spoken_form(s) for s in examples} and said > set(written)


def test_prose_is_drawn_in_windows_of_the_chunks() -> None:
    tokenizer = builtin_tokenizer()
    draw, rng = prose_source(tokenizer, TEXTS, length=12), random.Random(0)
    windows = [draw(rng) for _ in range(1500)]
    pairs = {pair for w in windows for pair in pairwise(w.ids)}
    for window in windows:
        assert window.ids[0] == tokenizer.bos_token_id and 6 < len(window.ids) <= 12
        assert any(tokenizer.decode(window.ids[1:]) in f" {text}" for text in TEXTS)
        assert window.counts == [False] + [True] * (len(window.ids) - 1)
    for text in TEXTS:  # every token of every chunk has its turn
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert set(pairwise(ids)) <= pairs


def test_too_little_text_is_an_error_before_training() -> None:
    with pytest.raises(UserError, match="too little text"):
        prose_source(builtin_tokenizer(), split_prose("A fox saw a dog.")[0], length=12)
    with pytest.raises(UserError, match="too little text"):
        prose_source(builtin_tokenizer(), ["A fox."], length=12)
    with pytest.raises(UserError, match="no sentence"):
        repeat_source(builtin_tokenizer(), [])


def test_a_mixture_has_the_shares_asked_for() -> None:
    draws = [lambda rng, n=n: Document([n], [True]) for n in range(3)]
    rng = random.Random(0)
    draw = mixture([(3.0, draws[0]), (1.0, draws[1]), (0.0, draws[2])])
    drawn = [draw(rng).ids[0] for _ in range(1000)]
    assert 700 < drawn.count(0) < 800 and drawn.count(2) == 0


def test_documents_are_functions_of_the_generator_alone() -> None:
    tokenizer = builtin_tokenizer()
    draw = mixture(
        [
            (1.0, prose_source(tokenizer, TEXTS, length=12)),
            (1.0, repeat_source(tokenizer, sentences(TEXTS))),
            (1.0, chat_source(tokenizer, lambda rng: [(f"{rng.random()}?", "Yes.")])),
        ]
    )
    first, second = random.Random(7), random.Random(7)
    documents = [draw(first) for _ in range(30)]
    assert documents == [draw(second) for _ in range(30)]
    assert len({tuple(d.ids) for d in documents}) > 20


def test_a_saying_is_asked_as_written_or_held_and_its_answer_alone_counts() -> None:
    tokenizer = builtin_tokenizer()
    said = ("Say it in English:", "der Fuchs sah", "the fox saw")
    prompt, asked, answer = (tokenizer.encode(text, add_special_tokens=False) for text in said)
    draw, rng = saying_source(tokenizer, lambda rng: said), random.Random(0)
    heard: set[tuple[int, ...]] = set()
    for _ in range(100):
        document = draw(rng)
        middle = document.ids.index(tokenizer.convert_tokens_to_ids("<|assistant|>"))
        assert document.ids[2 : 2 + len(prompt)] == prompt
        assert document.ids[middle + 1 :] == [*answer, tokenizer.eos_token_id]
        assert document.counts == [i > middle for i in range(len(document.ids))]
        heard.add(tuple(document.ids[2 + len(prompt) : middle]))
        assert collapsed(list(document.ids[2 + len(prompt) : middle])) == asked
    assert tuple(asked) in heard and len(heard) > 20
