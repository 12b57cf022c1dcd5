"""The frozen decoder over every family: text-only to the bit, media where and only where they belong, generation."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from multimodal.decoder import FrozenDecoder
from multimodal.errors import UserError
from multimodal.loss import frozen_head_loss
from multimodal.memory import token_groups
from multimodal.seam import KEYWORD
from tests.multimodal.tiny_decoders import (
    FAMILIES,
    IMAGE,
    SLIDING_FAMILIES,
    VOCAB,
    WIDTH,
    TinyAdapter,
    grafted,
    greedy,
    memory_of,
    prompt,
    tiny_adapter,
    tiny_decoder,
    tiny_memory,
)

families = pytest.mark.parametrize("family", FAMILIES)


# ---- text only ----------------------------------------------------------------------------------------------------


@families
@torch.no_grad()
def test_text_only_is_the_bare_decoder_to_the_bit(family: str):
    bare, decoder = tiny_decoder(family), grafted(family)
    ids, mask = prompt()
    ids = ids.clamp(max=VOCAB - 1)
    assert torch.equal(decoder(ids, mask), bare(ids, attention_mask=mask).logits)
    expected = bare.model if hasattr(bare, "model") else bare.gpt_neox
    assert torch.equal(decoder.hidden(ids), expected(ids).last_hidden_state)
    ways: list[dict[str, Any]] = [{"do_sample": False}, {"num_beams": 2, "do_sample": False}, {"do_sample": True}]
    for kw in ways:
        torch.manual_seed(0)
        out = bare.generate(input_ids=ids, attention_mask=mask, max_new_tokens=5, **kw)[:, 8:]
        torch.manual_seed(0)
        assert torch.equal(decoder.generate(ids, mask, max_new_tokens=5, **kw), out)


@families
@torch.no_grad()
def test_rows_without_visible_media_are_unchanged_to_the_bit(family: str):
    decoder = grafted(family)
    ids, mask = prompt()
    bare, grown = decoder.hidden(ids, mask), decoder.hidden(ids, mask, memory=memory_of(decoder, ids))
    assert torch.equal(grown[1], bare[1])  # text-only row beside rows with media
    assert torch.equal(grown[0, :3], bare[0, :3])  # text before the placeholder
    assert ((grown - bare)[0, 3:].abs().amax(-1) > 1e-3).all() and ((grown - bare)[2, 4:].abs().amax(-1) > 1e-3).all()


def test_a_placeholder_without_memory_group_adds_nothing():
    decoder = grafted()
    ids, mask = prompt()
    placeholders = torch.zeros_like(ids, dtype=torch.bool)
    memory = tiny_memory(torch.randn(3, 5, WIDTH), placeholders, image=decoder.adapters["image"])
    assert torch.equal(decoder.hidden(ids, mask, memory=memory), decoder.hidden(ids, mask))


@pytest.mark.parametrize("family", SLIDING_FAMILIES)
@torch.no_grad()
def test_the_window_slides(family: str):
    """What all tests of these families take for granted: their prompts are longer than the window."""
    narrow, wide = grafted(family), grafted(family, sliding_window=64)
    ids, mask = prompt()
    near, far = (decoder.hidden(ids, mask, memory=memory_of(decoder, ids))[0] for decoder in (narrow, wide))
    assert torch.equal(near[:4], far[:4]) and not torch.isclose(near[4:], far[4:], atol=1e-4).all(-1).any()


# ---- generation ---------------------------------------------------------------------------------------------------


@families
@torch.no_grad()
def test_cached_equals_uncached_with_left_padding(family: str):
    decoder = grafted(family)
    ids, mask = prompt()
    memory = memory_of(decoder, ids)
    by_hand = greedy(decoder, ids, mask, memory, 8)
    out = decoder.generate(ids, mask, memory=memory, max_new_tokens=8, do_sample=False)
    assert torch.equal(out, by_hand)
    assert not torch.equal(out, decoder.generate(ids, mask, max_new_tokens=8, do_sample=False)), "media changed nothing"
    assert int(out.max()) < VOCAB


@families
@torch.no_grad()
def test_static_cache_equals_dynamic_cache(family: str):
    decoder = grafted(family)
    ids, mask = prompt()
    memory = memory_of(decoder, ids)
    out = [
        decoder.generate(ids, mask, memory=memory, max_new_tokens=8, do_sample=False, cache_implementation=kind)
        for kind in ("static", "dynamic")
    ]
    assert torch.equal(*out)


@families
@torch.no_grad()
def test_beams_of_a_batch_equal_beams_of_each_prompt_alone(family: str):
    decoder = grafted(family)
    ids, mask = prompt()
    memory = memory_of(decoder, ids)
    kw: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "num_beams": 3}
    out = decoder.generate(ids, mask, memory=memory, num_return_sequences=2, **kw)
    assert out.shape == (6, 5)
    for row in range(3):
        start = int((mask[row] == 0).sum())  # alone, and without its padding
        one, one_mask = ids[row : row + 1, start:], mask[row : row + 1, start:]
        torch.manual_seed(3)
        media = torch.randn(3, 5, WIDTH)[row : row + 1]
        alone = tiny_memory(media, one >= VOCAB, image=decoder.adapters["image"])
        expected = decoder.generate(one, one_mask, memory=alone, num_return_sequences=2, **kw)
        assert torch.equal(out[2 * row : 2 * row + 2], expected)
    assert memory.batch_size == 3, "the caller's memory was touched"


@torch.no_grad()
def test_several_samples_per_prompt_see_their_own_media():
    decoder = grafted()
    ids, mask = prompt()
    memory = memory_of(decoder, ids)
    torch.manual_seed(0)
    out = decoder.generate(ids, mask, memory=memory, max_new_tokens=4, do_sample=True, num_return_sequences=3)
    torch.manual_seed(0)
    expected = decoder.generate(
        ids.repeat_interleave(3, 0),
        mask.repeat_interleave(3, 0),
        memory=memory.expand(3),
        max_new_tokens=4,
        do_sample=True,
    )
    assert out.shape == (9, 4) and torch.equal(out, expected)


@families
@torch.no_grad()
def test_without_a_cache_and_with_ids_untouched(family: str):
    """No extra token in the prompt: ids go in as ids, and `use_cache=False` is honoured."""
    decoder = grafted(family)
    ids, mask = prompt()
    groups = ids >= VOCAB
    known = ids.clamp(max=VOCAB - 1)
    memory = tiny_memory(torch.randn(3, 5, WIDTH), groups, image=decoder.adapters["image"])
    kw: dict[str, Any] = {"memory": memory, "max_new_tokens": 6, "do_sample": False}
    out = decoder.generate(known, mask, **kw)
    assert out.shape == (3, 6)
    assert torch.equal(out, decoder.generate(known, mask, use_cache=False, **kw))
    assert torch.equal(out, greedy(decoder, known, mask, memory, 6))


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_prompt_in_pieces_sees_the_right_columns(family: str):
    decoder = grafted(family)
    ids, _ = prompt()
    memory = memory_of(decoder, ids)
    whole = decoder.hidden(ids, memory=memory)
    cache = DynamicCache(config=decoder.lm.config)
    pieces = []
    for start, end in ((0, 3), (3, 7), (7, 8)):
        embeds = decoder.embed(ids[:, start:end])
        out = decoder.seam.decoder(inputs_embeds=embeds, past_key_values=cache, use_cache=True, **{KEYWORD: memory})
        pieces.append(out.last_hidden_state)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_generate_leaves_nothing_behind_even_when_it_fails():
    decoder = grafted()
    ids, mask = prompt()
    memory, before = memory_of(decoder, ids), decoder.hidden(ids, mask)
    decoder.generate(ids, mask, memory=memory, max_new_tokens=2, do_sample=False)
    with pytest.raises(ValueError):
        decoder.generate(ids, mask, memory=memory, max_new_tokens=2, no_such_option=1)
    assert decoder.seam.memory is None and torch.equal(decoder.hidden(ids, mask), before)


@torch.no_grad()
def test_result_objects_of_transformers_are_unwrapped():
    decoder = grafted()
    ids, mask = prompt()
    kw: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False}
    assert torch.equal(
        decoder.generate(ids, mask, return_dict_in_generate=True, **kw), decoder.generate(ids, mask, **kw)
    )


# ---- batches and media --------------------------------------------------------------------------------------------


@families
@torch.no_grad()
def test_each_row_alone_equals_the_batch(family: str):
    decoder = grafted(family)
    ids, mask = prompt()
    batch = decoder.hidden(ids, mask, memory=memory_of(decoder, ids), position_ids=(mask.cumsum(1) - 1).clamp(min=0))
    for row in range(3):
        start = int((mask[row] == 0).sum())
        torch.manual_seed(3)
        media = torch.randn(3, 5, WIDTH)[row : row + 1]
        one = ids[row : row + 1, start:]
        alone = decoder.hidden(one, memory=tiny_memory(media, one >= VOCAB, image=decoder.adapters["image"]))
        torch.testing.assert_close(batch[row : row + 1, start:], alone, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_a_later_image_changes_nothing_before_it_to_the_bit():
    decoder = grafted()
    ids = torch.randint(1, VOCAB, (1, 9))
    ids[0, 2] = ids[0, 6] = IMAGE
    group = torch.tensor([[1, 1, 2, 2]])
    media, image = torch.randn(1, 4, WIDTH), decoder.adapters["image"]
    other = media.clone()
    other[0, 2:] += 1
    outs = [
        decoder.hidden(ids, memory=tiny_memory(m, ids >= VOCAB, memory_group=group, image=image))
        for m in (media, other)
    ]
    assert torch.equal(outs[0][:, :6], outs[1][:, :6]) and not torch.equal(outs[0][:, 6:], outs[1][:, 6:])
    other = media.clone()
    other[0, :2] += 1
    third = decoder.hidden(ids, memory=tiny_memory(other, ids >= VOCAB, memory_group=group, image=image))
    assert torch.equal(third[:, :2], outs[0][:, :2]) and not torch.equal(third[:, 2:6], outs[0][:, 2:6])


def test_several_adapters_work_in_order_of_attachment_but_video_before_image():
    ids, mask = prompt()

    def run(*names: str) -> tuple[list[str], Tensor]:
        decoder = FrozenDecoder(tiny_decoder())
        seeds = {"image": 1, "video": 7, "depth": 8}
        for name in names:
            decoder.attach(name, tiny_adapter(seed=seeds[name]))
        called: list[str] = []
        for name, adapter in decoder.adapters.items():
            assert isinstance(adapter, TinyAdapter)
            adapter.layers["1"].register_forward_pre_hook(lambda *_, name=name: called.append(name))
        out = decoder.hidden(ids, mask, memory=memory_of(decoder, ids))
        return called, out

    assert run("image", "video")[0] == ["video", "image"] and run("video", "image")[0] == ["video", "image"]
    assert torch.equal(run("image", "video")[1], run("video", "image")[1])
    assert run("depth", "image")[0] == ["depth", "image"] and run("image", "depth")[0] == ["image", "depth"]
    assert run("image", "depth", "video")[0] == ["video", "image", "depth"]
    assert not torch.equal(run("image", "depth")[1], run("depth", "image")[1])


def test_detached_adapters_are_gone_and_memory_may_leave_some_out():
    decoder = grafted()
    ids, mask = prompt()
    memory, with_image = memory_of(decoder, ids), None
    with_image = decoder.hidden(ids, mask, memory=memory)
    decoder.attach("video", tiny_adapter((1, 2), seed=9))
    assert torch.equal(decoder.hidden(ids, mask, memory=memory), with_image)
    image = decoder.detach("image")
    with pytest.raises(ValueError, match="image"):
        decoder.hidden(ids, mask, memory=memory)
    decoder.attach("image", image)
    assert torch.equal(decoder.hidden(ids, mask, memory=memory), with_image)


# ---- extra tokens -------------------------------------------------------------------------------------------------


@families
def test_extra_tokens_read_their_own_rows_and_start_at_the_mean(family: str):
    decoder = FrozenDecoder(tiny_decoder(family), extra_tokens=3)
    table = decoder.lm.get_input_embeddings()
    mean = table(torch.arange(VOCAB)).mean(0)
    torch.testing.assert_close(decoder.extra_embedding.weight.data, mean.expand(3, -1), atol=1e-5, rtol=1e-4)
    ids = torch.tensor([[5, VOCAB + 1, 7]])
    with torch.no_grad():
        decoder.extra_embedding.weight[1] = table(torch.tensor(9))
    torch.testing.assert_close(decoder.hidden(ids), decoder.hidden(torch.tensor([[5, 9, 7]])))
    assert decoder(ids).shape[-1] == VOCAB
    with pytest.raises(ValueError, match=f"expected below {VOCAB + 3}"):
        decoder.hidden(torch.tensor([[VOCAB + 3]]))


def test_extra_rows_learn_only_if_they_may():
    decoder = grafted()
    ids, mask = prompt()
    decoder.hidden(ids, mask, memory=memory_of(decoder, ids)).square().sum().backward()
    grad = decoder.extra_embedding.weight.grad
    assert grad is not None and grad[0].any() and not grad[1:].any()


def test_bf16_decoder_under_fp32_adapters():
    decoder = FrozenDecoder(tiny_decoder().bfloat16())
    decoder.attach("image", tiny_adapter())
    ids, mask = prompt()
    memory = memory_of(decoder, ids)
    hidden = decoder.hidden(ids, mask, memory=memory)
    assert hidden.dtype == torch.bfloat16 and decoder.extra_embedding.weight.dtype == torch.float32
    hidden.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in decoder.adapters.parameters())
    assert decoder.generate(ids, mask, memory=memory, max_new_tokens=2, do_sample=False).shape == (3, 2)


# ---- frozen -------------------------------------------------------------------------------------------------------


def train_steps(decoder: FrozenDecoder, steps: int) -> list[set[str]]:
    """SGD on the loss; per step, the names of the adapter's tensors that got a gradient."""
    ids, mask = prompt()
    targets = ids.clamp(max=VOCAB - 1)
    optimizer = torch.optim.SGD([p for p in decoder.parameters() if p.requires_grad], lr=0.1)
    moved = []
    for _ in range(steps):
        optimizer.zero_grad()
        total, count = frozen_head_loss(decoder.hidden(ids, mask, memory=memory_of(decoder, ids)), targets, decoder)
        (total / count).backward()
        moved.append({n for n, p in decoder.adapters.named_parameters() if p.grad is not None and p.grad.any()})
        optimizer.step()
    return moved


@families
def test_training_moves_gates_first_and_never_the_decoder(family: str):
    decoder = FrozenDecoder(tiny_decoder(family))
    decoder.attach("image", tiny_adapter(gate=0))
    ids, mask = prompt()
    assert torch.equal(decoder.hidden(ids, mask, memory=memory_of(decoder, ids)), decoder.hidden(ids, mask))
    known = ids.clamp(max=VOCAB - 1)
    before, logits = decoder.sha256(), decoder(known, mask)
    decoder.train()
    first, second = train_steps(decoder, 2)
    names = {name for name, _ in decoder.adapters.named_parameters()}
    assert first == {name for name in names if name.endswith(("attn_gate.weight", "ffn_gate.weight"))}
    assert second == names
    assert decoder.sha256() == before and torch.equal(decoder(known, mask), logits)
    assert all(p.grad is None for p in decoder.lm.parameters())


def test_frozen_whatever_is_called():
    decoder = grafted("gpt_neox").train()
    assert decoder.training and decoder.adapters.training
    assert not any(module.training for module in decoder.lm.modules())
    decoder.requires_grad_(True)
    assert not any(p.requires_grad for p in decoder.lm.parameters())
    assert all(p.requires_grad for p in decoder.adapters.parameters()) and decoder.extra_embedding.weight.requires_grad
    outer = nn.ModuleList([decoder]).train()
    assert outer.training and not any(module.training for module in decoder.lm.modules())


def test_the_decoder_keeps_its_state_dict():
    bare = tiny_decoder("qwen2").state_dict()
    grown = grafted("qwen2").lm.state_dict()
    assert list(bare) == list(grown) and all(torch.equal(bare[name], grown[name]) for name in bare)


def test_hash_sees_every_change_and_nothing_else():
    decoder, same = FrozenDecoder(tiny_decoder()), grafted()
    first = decoder.sha256()
    assert same.sha256() == first
    weight = next(decoder.lm.parameters())
    assert weight is decoder.lm.lm_head.weight or not decoder.lm.config.tie_word_embeddings
    weight.view(-1)[3] += 1e-3
    changed = decoder.sha256()
    assert changed != first
    decoder.lm.bfloat16()
    assert decoder.sha256() not in (first, changed)
    untied = tiny_decoder()
    untied.lm_head.weight = nn.Parameter(untied.lm_head.weight.clone())
    assert FrozenDecoder(untied).sha256() != first


# ---- misuse ----------------------------------------


def test_misuse_is_refused_with_one_line():
    decoder = grafted()
    ids, mask = prompt()
    with pytest.raises(UserError, match="layer 4; expected 0 to 3"):
        decoder.attach("video", tiny_adapter((1, 4)))
    with pytest.raises(UserError, match="attached already"):
        decoder.attach("image", tiny_adapter())
    with pytest.raises(UserError, match="attached: image"):
        decoder.detach("video")
    memory = memory_of(decoder, ids[:2])
    with pytest.raises(ValueError, match="3 rows, its memory 2"):
        decoder.hidden(ids, mask, memory=memory)
    with pytest.raises(ValueError, match="3 rows, its memory 2"):
        decoder.generate(ids, mask, memory=memory, max_new_tokens=1)


def test_decoders_that_would_be_silently_wrong_are_refused():
    lm = tiny_decoder()
    forward = lm.model.forward
    lm.model.forward = lambda *args, cross_memory=None, **kw: forward(*args, **kw)  # drops the keyword
    with pytest.raises(UserError, match="passes no keywords on to layer 0"):
        FrozenDecoder(lm)
    lm.model.forward = forward
    lm.lm_head.register_forward_hook(lambda _m, _a, out: out)
    FrozenDecoder(lm).release()
    lm.register_forward_hook(lambda _m, _a, out: {**out, "logits": out.logits * 2} and type(out)(logits=out.logits * 2))
    with pytest.raises(UserError, match="not known here"):
        FrozenDecoder(lm)


def test_token_groups_follow_the_placeholders_of_the_prompt():
    ids, _ = prompt()
    assert token_groups(ids >= VOCAB).tolist() == [[0, 0, 0, 1, 1, 1, 1, 1], [0] * 8, [0, 0, 0, 0, 1, 1, 1, 1]]
