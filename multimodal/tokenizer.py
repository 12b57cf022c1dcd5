"""The built-in decoder's tokenizer: byte-level BPE with chat tokens, in the format of `transformers`."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

# transformers declares every form of a tokenizer's input and output at once; no caller can use such types.
AnyTokenizer = Any
BEGIN, END_OF_TURN, PAD, PAUSE = "<|begin_of_text|>", "<|eot_id|>", "<|pad|>", "<|pause|>"
ROLES = ("system", "user", "assistant")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}<|eot_id|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> AnyTokenizer:
    """Learn a byte-level BPE of `vocab_size` entries (bytes, merges and the special tokens together) from `texts`.

    A space goes before every text, and before what follows a special token, as in SentencePiece: a word is the same
    tokens at the start and in the middle. What is decoded has that space.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [BEGIN, END_OF_TURN, PAD, PAUSE, *(f"<|{role}|>" for role in ROLES)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END_OF_TURN,
        pad_token=PAD,
        additional_special_tokens=special[3:],
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def pieces_of(tokenizer: AnyTokenizer, ids: Sequence[int]) -> list[str]:
    """What each token adds to the text of those before it; "" for one that completes no letter yet.

    Decoded alone, a token of SentencePiece loses the space before it, and part of a letter is no text at all.
    """
    texts = [str(tokenizer.decode(ids[:end])).rstrip("\ufffd") for end in range(len(ids) + 1)]
    return [after[len(before) :] for before, after in pairwise(texts)]
