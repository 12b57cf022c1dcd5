"""The built-in tokenizer: nothing is lost, the special tokens come first, and chats read as written."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from multimodal.tokenizer import BEGIN, END_OF_TURN, PAD, PAUSE, ROLES, pieces_of, train_tokenizer
from tests.multimodal.tiny_tokenizers import TEXTS, builtin_tokenizer

# On a busy machine time says nothing.
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])

SPECIAL = [BEGIN, END_OF_TURN, PAD, PAUSE, *(f"<|{role}|>" for role in ROLES)]


def encode(text: str) -> list[int]:
    return builtin_tokenizer().encode(text, add_special_tokens=False)


@quick
@given(st.text(min_size=1).filter(lambda text: "<|" not in text))  # special tokens take no space; hypothesis tries ours
def test_every_text_comes_back_behind_a_space(text: str) -> None:
    assert builtin_tokenizer().decode(encode(text)) == f" {text}"


def test_a_word_is_the_same_tokens_at_the_start_and_in_the_middle() -> None:
    assert encode("The fox saw")[: len(encode("The fox"))] == encode("The fox")
    assert encode("saw fox") == [*encode("saw"), *encode("fox")]
    assert encode("") == []


@pytest.mark.parametrize("text", ["é and e\u0301 are two", " a  b\n\n\tc ", "日本語 🙂", "I 'm , don 't ."])
def test_no_normalisation_and_no_clean_up(text: str) -> None:
    assert builtin_tokenizer().decode(encode(text)) == f" {text}"


def test_the_special_tokens_have_the_lowest_ids() -> None:
    tokenizer = builtin_tokenizer()
    assert tokenizer.convert_tokens_to_ids(SPECIAL) == list(range(len(SPECIAL)))
    assert sorted(tokenizer.all_special_ids) == list(range(len(SPECIAL)))
    assert [encode(token) for token in SPECIAL] == [[i] for i in range(len(SPECIAL))]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (BEGIN, END_OF_TURN, PAD)


@quick
@given(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="<|>")))
def test_plain_text_has_no_special_tokens(text: str) -> None:
    assert all(i >= len(SPECIAL) for i in encode(text))


def test_the_vocabulary_is_as_large_as_asked_and_no_id_is_missing() -> None:
    tokenizer = train_tokenizer(TEXTS, vocab_size=300)
    assert len(tokenizer) == 300
    assert sorted(tokenizer.get_vocab().values()) == list(range(300))


def test_merges_are_learnt() -> None:
    assert len(encode("The fox saw a dog.")) < len("The fox saw a dog.") / 2


def test_each_digit_is_a_token() -> None:
    tokenizer = train_tokenizer(["In 1234567 and in 1234567."] * 9, vocab_size=330)  # has every reason to merge them
    ids = tokenizer.encode("1234567", add_special_tokens=False)
    assert [tokenizer.decode([i]) for i in ids] == [" ", *"1234567"]


def test_special_tokens_can_be_left_out_when_reading() -> None:
    assert builtin_tokenizer().decode(encode("".join(SPECIAL) + "a fox"), skip_special_tokens=True) == " a fox"


def test_a_chat_reads_as_written() -> None:
    system, user = {"role": "system", "content": " Be brief."}, {"role": "user", "content": "Who?\n"}
    answer = {"role": "assistant", "content": "A fox."}
    render = builtin_tokenizer().apply_chat_template
    prompt = render([system, user], tokenize=False, add_generation_prompt=True)
    assert prompt == "<|begin_of_text|><|system|> Be brief.<|user|>Who?\n<|assistant|>"
    whole = render([system, user, answer], tokenize=False)
    assert whole == prompt + "A fox.<|eot_id|>"
    again = render([system, user, answer, user], tokenize=False, add_generation_prompt=True)
    assert again == whole + "<|user|>Who?\n<|assistant|>"


def test_padding_is_on_the_left_and_masked() -> None:
    batch = builtin_tokenizer()(["a fox saw a dog", "a"], padding=True, add_special_tokens=False)
    rows = batch["input_ids"]
    assert rows[1] == [builtin_tokenizer().pad_token_id] * (len(rows[0]) - 1) + encode("a")
    assert batch["attention_mask"][1] == [0] * (len(rows[0]) - 1) + [1]


def test_a_saved_tokenizer_is_the_same(tmp_path: Path) -> None:
    tokenizer = builtin_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "Where is the red circle? 12  é 🙂 <|pause|>\n"
    chat = [{"role": "user", "content": text}]
    assert loaded.encode(text, add_special_tokens=False) == encode(text)
    assert loaded.decode(encode(text)) == tokenizer.decode(encode(text))
    assert sorted(loaded.all_special_ids) == sorted(tokenizer.all_special_ids)
    assert loaded.padding_side == "left"
    assert loaded.apply_chat_template(chat, tokenize=False) == tokenizer.apply_chat_template(chat, tokenize=False)


def test_pieces_of_sentencepiece_keep_the_space_that_a_token_alone_loses() -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    texts = ["a dog runs to the dogs."]
    tokenizer.train_from_iterator(texts * 3, trainers.BpeTrainer(vocab_size=24, show_progress=False))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)
    ids = fast.encode(texts[0])
    assert not any(fast.decode([token]).startswith(" ") for token in ids)
    pieces = pieces_of(fast, ids)
    assert len(pieces) == len(ids) > 6 and "".join(pieces) == texts[0]
    assert sum(piece.startswith(" ") for piece in pieces) == 5


def test_pieces_of_letters_in_several_tokens_come_whole() -> None:
    ids = encode("日本 fox")
    assert len(ids) > 5, "three bytes a letter"
    pieces = pieces_of(builtin_tokenizer(), ids)
    assert "".join(pieces) == " 日本 fox" and not any("\ufffd" in piece for piece in pieces)
    assert [piece for piece in pieces if piece][1:3] == ["日", "本"] or [p for p in pieces if p][:2] == [" 日", "本"]
