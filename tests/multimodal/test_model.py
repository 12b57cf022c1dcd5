"""The whole model, on tiny random weights with open gates: what may leak into what, and what may not."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from multimodal.batch import Batch, Sample
from multimodal.errors import UserError
from multimodal.loss import IGNORE
from multimodal.model import MultimodalModel
from tests.multimodal.tiny_decoders import LAYERS
from tests.tiny_models import CONFIG, TILE, ask, picture, tiny_model

FIRST_ADAPTED = 1
ONE, TWO, FOUR = picture(seed=1), picture(2 * TILE, TILE, seed=2), picture(2 * TILE, 2 * TILE, seed=3)
CHATS = {
    "one tile": ask(ONE, "Describe the image."),
    "two tiles": ask(TWO, "Where is the fox?"),
    "four tiles": ask("Who saw whom?", FOUR, "Describe the image."),
    "text only": ask("Repeat after me in English: one two three."),
    "interleaved": ask("The fox:", TWO, "and the dog:", ONE, "and the square:", FOUR, "Who is it?"),
    "side by side": ask(ONE, FOUR, "Describe the image."),
}
ANSWER = "The red circle."


@pytest.fixture(scope="module")
def model() -> MultimodalModel:
    """Shared; not to be changed."""
    return tiny_model()


@torch.no_grad()
def logits(model: MultimodalModel, batch: Batch, *, blind: bool = False) -> Tensor:
    memory = None if blind else model.memory(batch)
    return model.decoder(batch.input_ids, batch.attention_mask, memory=memory)


def answered(model: MultimodalModel) -> list[Sample]:
    return [model.sample(chat, ANSWER) for chat in CHATS.values()]


# ---- batches ------------------------------------------------------------------------------------------------------


def test_in_a_batch_every_sample_is_as_alone(model: MultimodalModel) -> None:
    samples = answered(model)
    batch = model.collate(samples)
    together = logits(model, batch)
    for row, sample in enumerate(samples):
        alone = model.collate([sample])
        length = alone.input_ids.shape[1]
        torch.testing.assert_close(together[row, :length], logits(model, alone)[0], atol=1e-5, rtol=1e-5)
    seen = (together - logits(model, batch, blind=True)).abs().amax(-1)
    assert seen[0].max() > 0.05, "the pictures change nothing, so this test shows nothing"
    assert torch.equal(seen[3], torch.zeros_like(seen[3])), "a row without pictures is the bare decoder's to the bit"


def test_the_loss_of_a_batch_is_the_sum_over_its_samples(model: MultimodalModel) -> None:
    samples = answered(model)
    with torch.no_grad():
        total, tokens = model.loss(model.collate(samples))
        alone = [model.loss(model.collate([sample])) for sample in samples]
    torch.testing.assert_close(total, torch.stack([loss for loss, _ in alone]).sum(), atol=1e-4, rtol=1e-5)
    assert tokens == sum(count for _, count in alone) == sum(len(s.turns[0].answer) for s in samples)


def test_rows_of_unlike_length_go_through_the_decoder_apart_with_the_same_loss(model: MultimodalModel) -> None:
    long = model.sample(CHATS["interleaved"], ANSWER * 12)
    samples = [long, *(model.sample(CHATS["one tile"], "A fox.") for _ in range(10)), long]
    batch = model.collate(samples)
    sizes: list[tuple[int, ...]] = []
    handle = model.decoder.lm.model.layers[0].register_forward_pre_hook(
        lambda _m, args, kwargs: sizes.append(tuple((args[0] if args else kwargs["hidden_states"]).shape[:2])),
        with_kwargs=True,
    )
    with torch.no_grad():
        total, tokens = model.loss(batch)
        handle.remove()
        alone = [model.loss(model.collate([sample])) for sample in samples]
    assert [rows for rows, _ in sizes] == [10, 2] and sizes[0][1] < sizes[1][1] == batch.input_ids.shape[1]
    assert tokens == sum(count for _, count in alone)
    torch.testing.assert_close(total, torch.stack([loss for loss, _ in alone]).sum(), atol=1e-3, rtol=1e-5)


def test_text_alone_goes_through_the_bare_decoder_without_gradient_and_counts_the_same() -> None:
    model = tiny_model().train()
    samples = answered(model)
    mixed, pictures = model.collate(samples), model.collate([s for s in samples if s.media.get("image")])
    calls: list[tuple[int, bool]] = []
    model.decoder.lm.model.layers[-1].register_forward_hook(
        lambda _m, _i, out: calls.append(((out if torch.is_tensor(out) else out[0]).shape[0], torch.is_grad_enabled()))
    )
    model.loss(pictures)[0].backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    loss, _ = model.loss(mixed)
    loss.backward()
    assert calls[1:] == [(len(samples) - 1, True), (1, False)]
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (name in expected)
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, expected[name], atol=1e-4, rtol=1e-4)
    text = model.collate([s for s in samples if not s.media.get("image")])
    alone, _ = model.loss(text)
    assert not alone.requires_grad
    with torch.no_grad():
        bare = model.decoder.lm(input_ids=text.input_ids).logits.flatten(0, 1)
        torch.testing.assert_close(alone, F.cross_entropy(bare, text.targets.flatten(), reduction="sum"))


def test_padding_on_the_right_needs_no_mask_and_on_the_left_has_one(model: MultimodalModel) -> None:
    samples, masks = answered(model), []
    handle = model.decoder.lm.model.register_forward_pre_hook(
        lambda _m, _args, kwargs: masks.append(kwargs["attention_mask"]), with_kwargs=True
    )
    with torch.no_grad():
        right, _ = model.loss(model.collate(samples))
        assert masks and all(mask is None for mask in masks)
        masks.clear()
        left = model.collate(samples, pad_left=True)
        memory, inserted = model.memory(left), model.inserted(left)
        positions = (left.attention_mask.cumsum(1) - 1).clamp(min=0)
        hidden = model.decoder.hidden(
            left.input_ids, left.attention_mask, memory=memory, inserted=inserted, position_ids=positions
        )
        model.loss(left)
        assert masks and all(mask is not None for mask in masks)
    handle.remove()
    expected = F.cross_entropy(model.decoder.head(hidden).flatten(0, 1), left.targets.flatten(), reduction="sum")
    torch.testing.assert_close(right, expected, atol=1e-3, rtol=1e-4)


def test_several_turns_about_one_picture_encode_it_once(model: MultimodalModel) -> None:
    chat = CHATS["four tiles"]
    first, second = (model.sample(chat, answer) for answer in (ANSWER, "A dog, a fox and the user."))
    both = Sample(first.media, (*first.turns, *second.turns))
    batch = model.collate([both])
    assert len(batch.media["image"].items) == 1
    with torch.no_grad():
        expected = model.loss(model.collate([first]))[0] + model.loss(model.collate([second]))[0]
        torch.testing.assert_close(model.loss(batch)[0], expected, atol=1e-4, rtol=1e-5)


def test_a_taught_answer_is_held_to_what_the_decoder_says_after_the_text(model: MultimodalModel) -> None:
    seen, text = (model.sample(CHATS[name], ANSWER * 3).turns[0] for name in ("one tile", "text only"))
    media = model.sample(CHATS["one tile"]).media
    taught = Sample(media, (replace(seen, teacher=text.prompt),))
    samples = [*answered(model) * 3, taught, Sample({}, (replace(text, teacher=text.prompt),))]
    with torch.no_grad():
        loss, tokens = model.loss(model.collate([taught]))
        student = logits(model, model.collate([Sample(media, (seen,))]))[0, -len(seen.answer) - 1 : -1]
        teacher = logits(model, model.collate([Sample({}, (text,))]))[0, -len(text.answer) - 1 : -1]
        expected = (teacher.softmax(-1) * (teacher.log_softmax(-1) - student.log_softmax(-1))).sum()
        torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
        assert expected > 1e-2 and tokens == len(seen.answer)
        assert model.loss(model.collate(samples[-1:]))[0] < 1e-5, "after the same text it says the same"
        total, tokens = model.loss(model.collate(samples))
        alone = [model.loss(model.collate([sample])) for sample in samples]
    torch.testing.assert_close(total, torch.stack([loss for loss, _ in alone]).sum(), atol=1e-3, rtol=1e-5)
    assert tokens == sum(count for _, count in alone)


# ---- who sees what ------------------------------------------------------------------------------------------------


def rows_with(model: MultimodalModel, *chats: Any) -> tuple[list[int], list[Tensor]]:
    """Positions of the placeholders, and the logits of each chat, which must have equal ids."""
    batches = [model.collate([model.sample(chat)]) for chat in chats]
    assert all(torch.equal(batch.input_ids, batches[0].input_ids) for batch in batches)
    at = (batches[0].input_ids[0] >= model.decoder.vocab_size).nonzero().flatten().tolist()
    return at, [logits(model, batch)[0] for batch in batches]


def changed(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).abs().amax(-1) > 1e-4


def test_text_before_a_picture_is_unchanged_to_the_bit_by_its_pixels(model: MultimodalModel) -> None:
    (at,), (a, b) = rows_with(model, *(ask("Who saw whom?", picture(seed=s), "Describe the image.") for s in (1, 2)))
    assert torch.equal(a[:at], b[:at])
    assert changed(a[at:], b[at:]).all()


def test_a_later_picture_changes_nothing_before_it_and_everything_after(model: MultimodalModel) -> None:
    other = picture(2 * TILE, TILE, seed=9)
    chats = (ask("The fox", a, "saw", b, "and", c, "Who?") for a, b, c in ((TWO, ONE, FOUR), (TWO, picture(), FOUR)))
    (_, second, _), (a, b) = rows_with(model, *chats)
    assert torch.equal(a[:second], b[:second])
    assert changed(a[second:], b[second:]).all()
    chats = (ask("The fox", picture_, "saw", ONE, "Who?") for picture_ in (TWO, other))
    (first, second), (a, b) = rows_with(model, *chats)
    assert torch.equal(a[:first], b[:first]) and changed(a[first:second], b[first:second]).all()


def test_pictures_side_by_side_are_seen_together(model: MultimodalModel) -> None:
    (first, second), (a, b) = rows_with(model, *(ask("Who?", ONE, p, "Describe the image.") for p in (TWO, FOUR)))
    assert second == first + 1
    assert torch.equal(a[:first], b[:first]) and changed(a[first:], b[first:]).all()


def test_order_of_the_pictures_matters_where_text_stands_between_them(model: MultimodalModel) -> None:
    (at, _), (a, b) = rows_with(model, ask(ONE, "The fox", TWO, "Who?"), ask(TWO, "The fox", ONE, "Who?"))
    assert changed(a[at:], b[at:]).all()


# ---- text only ----------------------------------------------------------------------------------------------------


def test_text_only_is_the_bare_decoder_to_the_bit(model: MultimodalModel) -> None:
    samples = [model.sample(ask(text), ANSWER) for text in ("Who saw whom?", "Describe the image, a fox and a dog.")]
    batch, lm = model.collate(samples), model.decoder.lm
    assert model.memory(batch) is None
    with torch.no_grad():
        bare = lm(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        assert torch.equal(logits(model, batch), bare.logits)
        loss, tokens = model.loss(batch)
        hidden = lm.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
        keep = batch.targets != IGNORE
        expected = F.cross_entropy(lm.lm_head(hidden[keep]), batch.targets[keep], reduction="sum")
    assert torch.equal(loss, expected) and tokens == int(keep.sum())
    prompts = model.collate([model.sample(ask("Who saw whom?"))])
    new = lm.generate(input_ids=prompts.input_ids, max_new_tokens=6, do_sample=False)[0, prompts.input_ids.shape[1] :]
    text = model.tokenizer.decode(new, skip_special_tokens=True).strip()
    assert model.chat(ask("Who saw whom?"), max_new_tokens=6) == text


# ---- generation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beams", [1, 3])
def test_a_batch_generates_what_each_sample_generates_alone(model: MultimodalModel, beams: int) -> None:
    samples = [model.sample(chat) for chat in CHATS.values()]
    options = {"max_new_tokens": 8, "num_beams": beams}
    together = model.generate(samples, **options)
    assert together == [model.generate([sample], **options)[0] for sample in samples]
    assert together[0] == model.chat(CHATS["one tile"], **options)


def test_generated_tokens_end_with_the_end_of_turn_or_with_the_last_one(model: MultimodalModel) -> None:
    samples = [model.sample(chat) for chat in CHATS.values()]
    whole = model.generate_ids(samples, max_new_tokens=6)
    end = whole[0][2]
    cut = model.generate_ids(samples, max_new_tokens=6, eos_token_id=[end])
    expected = [ids[: ids.index(end) + 1] if end in ids else ids for ids in whole]
    assert cut == expected and [len(ids) for ids in whole] == [6] * len(whole) and len(cut[0]) < 6
    texts = model.tokenizer.batch_decode(whole, skip_special_tokens=True)
    assert model.generate(samples, max_new_tokens=6) == [text.strip() for text in texts]


def test_other_pictures_make_other_texts(model: MultimodalModel) -> None:
    samples = [model.sample(ask(picture(seed=seed), "Describe the image.")) for seed in range(4)]
    assert len(set(model.generate(samples, max_new_tokens=8))) > 1


def test_training_and_gradients_are_off_while_generating(model: MultimodalModel) -> None:
    before = [p.requires_grad for p in model.parameters()]
    model.chat(CHATS["one tile"], max_new_tokens=2)
    assert [p.requires_grad for p in model.parameters()] == before
    assert all(p.grad is None for p in model.parameters())


# ---- gradients ----------------------------------------------------------------------------------------------------


def gradients(model: MultimodalModel, part: str) -> dict[str, float]:
    return {name: 0.0 if p.grad is None else float(p.grad.abs().max()) for name, p in model.parts()[part]}


def test_closed_gates_let_only_themselves_learn_first_and_everything_next() -> None:
    model = tiny_model(opened=False).train()
    for tokens in model.parts()["tokens"]:
        tokens[1].requires_grad_(False)
    batch = model.collate(answered(model))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.loss(batch)[0].backward()
    assert all(gradients(model, "gates").values())
    assert not any(gradients(model, "adapter").values()) and not any(gradients(model, "encoder").values())
    optimizer.step()
    optimizer.zero_grad()
    model.loss(batch)[0].backward()
    adapter = gradients(model, "adapter")
    assert all(adapter.values()), [name for name, value in adapter.items() if not value]
    assert gradients(model, "encoder")["image.encoder.class_token_D"]
    assert all(p.grad is None for p in model.decoder.lm.parameters())


@pytest.mark.parametrize("tokens", [False, True])
def test_below_the_first_adapter_nothing_needs_a_gradient_unless_tokens_learn(tokens: bool) -> None:
    model = tiny_model()
    for _, parameter in model.parts()["tokens"]:
        parameter.requires_grad_(tokens)
    needed: list[bool] = []
    for layer in model.decoder.lm.model.layers:
        layer.register_forward_hook(
            lambda _m, _i, out: needed.append((out if torch.is_tensor(out) else out[0]).requires_grad)
        )
    model.loss(model.collate(answered(model)))[0].backward()
    with_pictures, text_alone = needed[:LAYERS], needed[LAYERS:]
    assert with_pictures == [tokens] * FIRST_ADAPTED + [True] * (LAYERS - FIRST_ADAPTED)
    assert text_alone == [False] * LAYERS
    assert (model.decoder.extra_embedding.weight.grad is not None) == tokens


@pytest.mark.parametrize("trained", [False, True])
def test_a_frozen_encoder_runs_without_gradient(trained: bool) -> None:
    model = tiny_model()
    image: Any = model.modalities["image"]
    image.encoder.requires_grad_(trained)
    needed: list[bool] = []
    image.adapter.projector.register_forward_pre_hook(lambda _m, args: needed.append(args[0].requires_grad))
    model.loss(model.collate(answered(model)))[0].backward()
    assert needed == [trained]
    encoder = gradients(model, "encoder")
    assert all(value > 0 for value in encoder.values()) if trained else not any(encoder.values())
    assert all(gradients(model, "adapter").values())


def test_parts_hold_every_trainable_parameter_once(model: MultimodalModel) -> None:
    parts = [id(p) for named in model.parts().values() for _, p in named]
    frozen = {id(p) for p in model.decoder.lm.parameters()}
    assert len(parts) == len(set(parts)) and set(parts) == {id(p) for p in model.parameters()} - frozen
    names = [name for named in model.parts().values() for name, _ in named]
    assert len(names) == len(set(names))


def test_training_mode_never_reaches_the_decoder() -> None:
    model = tiny_model().train()
    assert model.modalities["image"].training and not any(m.training for m in model.decoder.lm.modules())


# ---- use ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chat", "words"),
    [
        (ask("<|image|> and <|image|>", ONE), ("2 <|image|>", "1")),
        (ask("<|image|>"), ("1 <|image|>",)),
        ([{"role": "user", "content": [{"type": "video", "video": "a.mp4"}]}], ("video",)),
        (ask("no-such-picture.jpg", Image.new("L", (4, 4)), b"not a picture"), ("not a picture",)),
    ],
)
def test_what_cannot_be_understood_is_refused(model: MultimodalModel, chat: Any, words: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as error:
        model.chat(chat)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


def test_modalities_are_known_and_there_once(model: MultimodalModel) -> None:
    with pytest.raises(UserError, match=r"'smell'.*image"):
        model.add("smell", CONFIG)
    with pytest.raises(UserError, match="attached already"):
        tiny_model().add("image", CONFIG)


def test_the_log_has_every_gate() -> None:
    model = tiny_model(opened=False)
    assert len(model.log_values()) == 4 and not any(model.log_values().values())
    gate = next(p for _, p in model.parts()["gates"])
    nn.init.constant_(gate, 0.5)
    assert sorted(model.log_values().values())[-1] == pytest.approx(0.4621, abs=1e-4)
