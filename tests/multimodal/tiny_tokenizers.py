"""Small tokenizers for every test that needs one: the built-in kind, and the kinds that other decoders bring along.

    from tests.multimodal.tiny_tokenizers import FOREIGN, builtin_tokenizer, foreign_tokenizer

Those of other decoders are byte-level BPE with the pre-tokenisation of Llama 3; they differ in their chat template.
"""

from functools import cache

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from multimodal.tokenizer import AnyTokenizer, train_tokenizer

TEXTS = (
    "The fox saw a dog. The dog did not see the fox!\nWho saw whom? A fox, they said, saw the dog.",
    "There is a small red circle left of a big blue square. Describe the image.",
    "Repeat after me in English: one two three, 1 2 3 and 10.",
    "Where is the red circle? It is left of the square.\n\nThe user and the assistant are friends.",
)
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The form of Llama 3: headers, content without white space around it, an end of turn that is not the end of text.
_LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
# ChatML: no begin token, and a newline after the end of turn that no decoder is asked to write.
_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Roles in plain text, the end of text after answers alone, and no system message.
_PLAIN = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ raise_exception('no system message here') }}{% endif %}"
    "### {{ m['role'] }}:\n{{ m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}### assistant:\n{% endif %}"
)
_TEMPLATES = {"llama3": _LLAMA3, "chatml": _CHATML, "plain": _PLAIN, "no template": None}
FOREIGN = ("llama3", "chatml", "plain")
_SPECIAL = ("<s>", "</s>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|im_start|>", "<|im_end|>")


@cache
def builtin_tokenizer() -> AnyTokenizer:
    """The built-in decoder's tokenizer, learnt from a few sentences. Not to be changed: all tests share it."""
    return train_tokenizer(TEXTS, vocab_size=330)


@cache
def foreign_tokenizer(template: str) -> AnyTokenizer:
    """A tokenizer with the chat template "llama3", "chatml" or "plain", or with "no template"."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.add_special_tokens(list(_SPECIAL))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.chat_template = _TEMPLATES[template]
    return fast
