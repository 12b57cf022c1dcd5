"""Messages to token ids under several chat templates: media in their places, prompt and answer as one chat."""

import copy
from itertools import groupby
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from multimodal.errors import UserError
from multimodal.messages import Medium, Message, Vocabulary, encode_answer, encode_prompt, placeholder
from multimodal.tokenizer import AnyTokenizer
from tests.multimodal.tiny_tokenizers import FOREIGN, builtin_tokenizer, foreign_tokenizer

# On a busy machine time says nothing.
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])

IMAGE, AUDIO = 1000, 1002
KINDS = (*FOREIGN, "builtin")
templates = pytest.mark.parametrize("kind", KINDS)
# No template says whether it keeps white space around a text, and one text may not spell the tokens of another's frame.
words = st.text(alphabet=st.characters(codec="utf-8", exclude_characters="<|>")).map(str.strip).filter(bool)


def tokenizer_of(kind: str) -> AnyTokenizer:
    return builtin_tokenizer() if kind == "builtin" else foreign_tokenizer(kind)


def vocabulary(kind: str = "builtin") -> Vocabulary:
    return Vocabulary(tokenizer_of(kind), {"image": IMAGE, "audio": AUDIO})


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


def image(name: str) -> dict[str, Any]:
    return {"type": "image", "image": name}


def user(*parts: dict[str, Any]) -> Message:
    return {"role": "user", "content": list(parts)}


def with_placeholders(kind: str) -> AnyTokenizer:
    """The same tokenizer that knows the placeholders itself, for comparison; their ids are its last."""
    tokenizer = copy.deepcopy(tokenizer_of(kind))
    tokenizer.add_tokens([placeholder("image"), placeholder("audio")], special_tokens=True)
    return tokenizer


def readable(ids: list[int], kind: str = "builtin") -> str:
    """The text of ids, media as placeholders, without the space that Graft's tokenizer puts behind those."""
    known = {IMAGE: placeholder("image"), AUDIO: placeholder("audio")}
    runs = groupby(ids, key=lambda i: i if i in known else None)
    decode = tokenizer_of(kind).decode
    said = "".join(decode(list(run)) if i is None else known[i] * len(list(run)) for i, run in runs)
    return said.replace("|> ", "|>") if kind == "builtin" else said


# Prompt and answer -----------------------------------------------------------------------------------------------


@templates
@quick
@given(question=words, answer=words)
def test_prompt_and_answer_are_the_whole_chat(kind: str, question: str, answer: str) -> None:
    tokenizer = tokenizer_of(kind)
    messages = [{"role": "user", "content": question}]
    found = encode_prompt(messages, vocabulary(kind)).ids + encode_answer(messages, answer, vocabulary(kind))
    whole = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": answer}], tokenize=False)
    # What a template writes behind the end of the turn is nothing that a decoder is asked for.
    assert found == tokenizer.encode(whole.rstrip("\n"), add_special_tokens=False)


@templates
def test_prompt_and_answer_of_a_longer_chat_with_media_are_the_whole_chat(kind: str) -> None:
    messages = [
        user(image("a.png"), text("What is this?")),
        {"role": "assistant", "content": "A fox."},
        user(text("And these"), image("b.png"), image("c.png"), text("two? "), {"type": "audio", "audio": "d.wav"}),
    ]
    prompt = encode_prompt(messages, vocabulary(kind))
    found = prompt.ids + encode_answer(messages, "Two dogs.", vocabulary(kind))
    assert prompt.media == (
        Medium("image", "a.png"),
        Medium("image", "b.png"),
        Medium("image", "c.png"),
        Medium("audio", "d.wav"),
    )
    spelt = [
        {"role": "user", "content": "<|image|>What is this?"},
        {"role": "assistant", "content": "A fox."},
        {"role": "user", "content": "And these<|image|><|image|>two? <|audio|>"},
        {"role": "assistant", "content": "Two dogs."},
    ]
    tokenizer = with_placeholders(kind)
    whole = tokenizer.apply_chat_template(spelt, tokenize=False).rstrip("\n")
    ids = {i: tokenizer.convert_tokens_to_ids(placeholder(k)) for k, i in (("image", IMAGE), ("audio", AUDIO))}
    assert [ids.get(i, i) for i in found] == tokenizer.encode(whole, add_special_tokens=False)


@pytest.mark.parametrize(
    ("kind", "end"), [("llama3", "<|eot_id|>"), ("chatml", "<|im_end|>"), ("plain", "</s>"), ("builtin", "<|eot_id|>")]
)
def test_an_answer_ends_with_the_token_that_ends_a_turn(kind: str, end: str) -> None:
    tokenizer = tokenizer_of(kind)
    answer = encode_answer([user(text("Who?"))], "A fox.", vocabulary(kind))
    assert answer == [*tokenizer.encode("A fox.", add_special_tokens=False), tokenizer.convert_tokens_to_ids(end)]


def test_nothing_is_begun_twice() -> None:
    ids = encode_prompt([user(text("Who?"))], vocabulary("llama3")).ids
    assert ids.count(tokenizer_of("llama3").bos_token_id) == 1


def test_without_a_chat_template_the_text_is_begun_and_ended() -> None:
    there = vocabulary("no template")
    messages = [{"role": "system", "content": "Be brief."}, user(image("a.png"), text("Who?"))]
    assert readable(encode_prompt(messages, there).ids, "no template") == "<s>Be brief.\n<|image|>Who?\n"
    assert readable(encode_answer(messages, "A fox.", there), "no template") == "A fox.</s>"


def test_without_a_chat_template_and_special_tokens_there_is_the_text_alone() -> None:
    bare = copy.deepcopy(foreign_tokenizer("no template"))
    bare.bos_token = bare.eos_token = None
    there = Vocabulary(bare, {"image": IMAGE})
    prompt, answer = (bare.encode(said, add_special_tokens=False) for said in ("Who?\n", "A fox."))
    assert encode_prompt([user(image("a.png"), text("Who?"))], there).ids == [IMAGE, *prompt]
    assert encode_answer([user(text("Who?"))], "A fox.", there) == answer


def test_a_refusal_of_the_template_is_said() -> None:
    messages = [{"role": "system", "content": "Be brief."}, user(text("Who?"))]
    with pytest.raises(UserError, match="no system message here"):
        encode_prompt(messages, vocabulary("plain"))


# Places of media -------------------------------------------------------------------------------------------------


@quick
@given(st.lists(st.sampled_from(["image", "audio"]) | words, max_size=8))
def test_media_stand_where_their_parts_stand(parts: list[str]) -> None:
    media = [p in ("image", "audio") for p in parts]
    given_parts = [{"type": p, p: n} if m else text(p) for n, (p, m) in enumerate(zip(parts, media, strict=True))]
    prompt = encode_prompt([user(*given_parts)], vocabulary())
    inner = "".join(placeholder(p) if m else p for p, m in zip(parts, media, strict=True))
    assert readable(prompt.ids) == f"<|begin_of_text|><|user|>{inner}<|assistant|>"
    assert prompt.media == tuple(Medium(p, n) for n, (p, m) in enumerate(zip(parts, media, strict=True)) if m)


def test_placeholders_in_the_text_decide_the_place() -> None:
    messages = [user(image("a.png"), image("b.png"), text("Is <|image|> like <|image|>?"))]
    prompt = encode_prompt(messages, vocabulary())
    assert readable(prompt.ids) == "<|begin_of_text|><|user|>Is <|image|> like <|image|>?<|assistant|>"
    assert [m.source for m in prompt.media] == ["a.png", "b.png"]


def test_placeholders_of_one_kind_leave_other_media_where_they_are() -> None:
    messages = [user(image("a.png"), {"type": "audio", "audio": "b.wav"}, text("Is <|image|> loud?"))]
    prompt = encode_prompt(messages, vocabulary())
    assert readable(prompt.ids) == "<|begin_of_text|><|user|><|audio|>Is <|image|> loud?<|assistant|>"


def test_a_string_may_hold_placeholders_for_media_of_another_message() -> None:
    messages = [user(image("a.png")), {"role": "user", "content": "See <|image|>."}]
    assert readable(encode_prompt(messages, vocabulary()).ids).count("<|image|>") == 1


@pytest.mark.parametrize(("spelt", "pictures"), [(3, 2), (1, 2), (1, 0)])
def test_placeholders_and_media_must_be_as_many(spelt: int, pictures: int) -> None:
    messages = [user(*[image("a.png")] * pictures, text("<|image|> " * spelt))]
    with pytest.raises(UserError, match=rf"{spelt} <\|image\|>.* {pictures} "):
        encode_prompt(messages, vocabulary())


def test_encode_finds_every_placeholder() -> None:
    there, tokenizer = vocabulary(), builtin_tokenizer()
    between = tokenizer.encode(" and ", add_special_tokens=False)
    assert there.encode("") == []
    assert there.encode("<|image|><|image|> and <|audio|>") == [IMAGE, IMAGE, *between, AUDIO]
    video = there.encode("<|video|>")  # a placeholder that this model does not have is text
    assert tokenizer.decode(video) == " <|video|>" and max(video) < IMAGE


@pytest.mark.parametrize("said", ["", "<|image|> and <|audio|>"])
def test_encode_without_any_media_is_that_of_the_tokenizer(said: str) -> None:
    assert Vocabulary(builtin_tokenizer(), {}).encode(said) == builtin_tokenizer().encode(
        said, add_special_tokens=False
    )


# What cannot be meant --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["video", "image"])
def test_a_medium_needs_its_adapter(kind: str) -> None:
    hearing = Vocabulary(builtin_tokenizer(), {"audio": AUDIO})
    with pytest.raises(UserError, match=f"no {kind} adapter"):
        encode_prompt([user({"type": kind, kind: "a"}, text("What?"))], hearing)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "smell", "smell": "rose"},
        {"type": "image"},
        {"type": "image", "path": "a.png"},
        {"type": "text"},
        {"type": "text", "text": None},
        {"text": "Who?"},
        {},
        "Who?",
        ["Who?"],
    ],
)
def test_a_part_that_is_not_known_is_shown(part: Any) -> None:
    with pytest.raises(UserError, match="expected type text, image, video or audio") as found:
        encode_prompt([user(text("Hello."), part)], vocabulary())
    assert str(part) in str(found.value)


@pytest.mark.parametrize(
    "message",
    [{"role": "user"}, {"content": "Who?"}, {"role": "user", "content": None}, {"role": "user", "content": 3}],
)
def test_a_message_that_is_not_whole_is_shown(message: Message) -> None:
    with pytest.raises(UserError, match="expected a role") as found:
        encode_prompt([message], vocabulary())
    assert str(message) in str(found.value)


# A template that writes the placeholders itself ---------------------------------------------------------------------

_PARTS = (
    "{% for m in messages %}[{{ m['role'] }}]{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for p in m['content'] %}{% if p['type'] == 'image' %}(a picture)<|image|>{% else %}{{ p['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


def rendered(template: str, *parts: dict[str, Any]) -> str:
    """The prompt as text, with placeholders spelt out."""
    tokenizer = copy.deepcopy(foreign_tokenizer("llama3"))
    tokenizer.chat_template = template
    ids = encode_prompt([user(*parts)], Vocabulary(tokenizer, {"image": IMAGE, "audio": AUDIO})).ids
    names = {IMAGE: placeholder("image"), AUDIO: placeholder("audio")}
    return "".join(names.get(i) or tokenizer.decode([i]) for i in ids)


def test_a_template_that_knows_pictures_gets_them_as_parts() -> None:
    assert rendered(_PARTS, text("Who"), image("a"), text("?")) == "[user]Who(a picture)<|image|>?[assistant]"
    assert rendered(_PARTS, text("Who <|image|>?"), image("a")) == "[user]Who (a picture)<|image|>?[assistant]"
    assert rendered(_PARTS, text("Who?")) == "[user]Who?[assistant]"
    sound = {"type": "audio", "audio": "a"}
    assert rendered(_PARTS, sound, image("a")) == "[user]<|audio|>(a picture)<|image|>[assistant]"
    assert rendered(_PARTS, sound, text("What?")) == "[user]<|audio|>What?[assistant]"


def test_a_template_that_only_mentions_the_placeholder_gets_text() -> None:
    template = "{# <|image|> #}{% for m in messages %}{{ m['content'] | trim }}{% endfor %}"
    assert rendered(template, image("a"), text("Who?")) == "<|image|>Who?"
