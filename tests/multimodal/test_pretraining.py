"""Pre-training of the built-in decoder: its start, its loss, and the ways in which it is measured."""

import math
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from multimodal.data.packing import IGNORE, Document, Row, pack_rows
from multimodal.data.text import chat_document
from multimodal.errors import UserError
from multimodal.pretraining import (
    DecoderTask,
    NewDecoder,
    answer_perplexity,
    answers,
    exact_share,
    perplexity,
    start_alike,
    take_tokenizer,
)
from multimodal.tokenizer import train_tokenizer
from tests.multimodal.tiny_tokenizers import TEXTS, builtin_tokenizer

SHAPE = NewDecoder(width=32, layers=2, heads=4, kv_heads=2, ffn=48)


@cache
def decoder() -> Any:
    """A random decoder whose logits are far enough apart for greedy decoding to be of one mind."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        lm = SHAPE.build(builtin_tokenizer(), context=128).eval()
        with torch.no_grad():
            for parameter in lm.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return lm


def rows() -> list[Row]:
    tokenizer = builtin_tokenizer()
    prose = tokenizer.encode(TEXTS[0], add_special_tokens=False)[:14]
    chat = chat_document(tokenizer, "Who?", "A fox.")
    return [[Document(prose, [True] * len(prose)), chat], [chat]]


def test_a_built_decoder_has_the_shape_asked_for() -> None:
    tokenizer = builtin_tokenizer()
    lm = SHAPE.build(tokenizer, context=128)
    config = lm.config
    assert (config.hidden_size, config.num_hidden_layers, config.intermediate_size) == (32, 2, 48)
    assert (config.num_attention_heads, config.num_key_value_heads) == (4, 2)
    assert config.vocab_size == len(tokenizer) and config.max_position_embeddings == 128
    assert lm.lm_head.weight is lm.model.embed_tokens.weight
    special = (config.bos_token_id, config.eos_token_id, config.pad_token_id)
    assert special == (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)


def test_sizes_that_do_not_go_together_are_one_line() -> None:
    with pytest.raises(UserError, match="decoder: width 32, 3 heads"):
        replace(SHAPE, heads=3).build(builtin_tokenizer(), context=128)


def test_queries_start_like_keys_and_outputs_like_values() -> None:
    lm: Any = start_alike(SHAPE.build(builtin_tokenizer(), context=128), std=0.1, outward=0.5)
    size, group = 8, 2
    for layer in lm.model.layers:
        attention = layer.self_attn
        q, k, v = (p.weight.view(-1, size, 32) for p in (attention.q_proj, attention.k_proj, attention.v_proj))
        outward = attention.o_proj.weight.view(32, -1, size)
        for head in range(4):
            torch.testing.assert_close(outward[:, head], 0.5 * v[head // group].T)
            if head % group == 0:
                assert torch.equal(q[head], k[head // group])
            else:
                assert not torch.isclose(q[head], k[head // group]).any(-1).all()
        assert 0.08 < q.std() < 0.12 and 0.08 < v.std() < 0.12
    first, second = (layer.self_attn.q_proj.weight for layer in lm.model.layers)
    assert not torch.equal(first, second)


def test_the_loss_is_the_plain_cross_entropy_of_each_document_alone() -> None:
    total, counted = 0.0, 0
    for document in (d for row in rows() for d in row):
        with torch.no_grad():
            logits = decoder()(input_ids=torch.tensor([document.ids])).logits[0]
        for t in range(1, len(document.ids)):
            if document.counts[t]:
                total -= logits[t - 1].log_softmax(-1)[document.ids[t]].item()
                counted += 1
    loss, weight = DecoderTask(decoder()).loss(pack_rows(rows(), length=40, pad_id=2))
    assert weight == counted > 10
    assert loss.item() == pytest.approx(total, rel=1e-5)


def test_every_parameter_is_a_part_and_gets_a_gradient() -> None:
    task = DecoderTask(SHAPE.build(builtin_tokenizer(), context=128))
    parts = task.parts()
    named = parts["decoder"]
    assert list(parts) == ["decoder"]
    assert {id(p) for _, p in named} == {id(p) for p in task.parameters()}
    task.loss(pack_rows(rows(), length=40, pad_id=2))[0].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for _, p in named)


def test_a_batch_in_which_nothing_counts_weighs_nothing() -> None:
    silent = [[Document([5, 6, 7], [False] * 3)]]
    loss, weight = DecoderTask(decoder()).loss(pack_rows(silent, length=4, pad_id=2))
    assert (loss.item(), weight) == (0.0, 0)


def test_a_decoder_that_knows_nothing_has_the_vocabulary_as_its_perplexity() -> None:
    lm: Any = SHAPE.build(builtin_tokenizer(), context=128)
    with torch.no_grad():
        lm.lm_head.weight.zero_()
        found = perplexity(lm, builtin_tokenizer(), TEXTS, context=16)
    assert found == pytest.approx(len(builtin_tokenizer()), rel=1e-5)


@pytest.mark.parametrize("context", [8, 9, 128])
@torch.no_grad()
def test_perplexity_counts_every_token_once_within_its_window(context: int) -> None:
    tokenizer = builtin_tokenizer()
    total, count = 0.0, 0
    for text in TEXTS[:2]:
        window: list[int] = []
        for token in tokenizer.encode(text, add_special_tokens=False):
            if len(window) in (0, context):
                window = [tokenizer.bos_token_id]
            logits = decoder()(input_ids=torch.tensor([window])).logits[0, -1]
            total += F.cross_entropy(logits, torch.tensor(token)).item()
            count += 1
            window.append(token)
    found = perplexity(decoder(), tokenizer, TEXTS[:2], context=context)
    assert found == pytest.approx(math.exp(total / count), rel=1e-4)


@torch.no_grad()
def test_perplexity_of_answers_is_that_of_the_loss() -> None:
    turns = [("say it", TEXTS[0]), ("and this, which is longer", TEXTS[1])]
    documents = [chat_document(builtin_tokenizer(), *turn) for turn in turns]
    rows = pack_rows([[document] for document in documents], length=128, pad_id=builtin_tokenizer().pad_token_id)
    loss, count = DecoderTask(decoder()).loss(rows)
    found = answer_perplexity(decoder(), builtin_tokenizer(), turns)
    assert found == pytest.approx(math.exp(loss.item() / count), rel=1e-4)


@torch.no_grad()
def greedy(question: str, *, tokens: int) -> str:
    """The answer without padding, cache or `generate`."""
    tokenizer = builtin_tokenizer()
    document = chat_document(tokenizer, question, "")
    ids = document.ids[:-1]  # without the end of the turn
    start = len(ids)
    for _ in range(tokens):
        best = int(decoder()(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        if best == tokenizer.eos_token_id:
            break
        ids.append(best)
    return tokenizer.decode(ids[start:], skip_special_tokens=True).strip()


@pytest.mark.parametrize("batch_size", [1, 2, 50])
def test_answers_are_those_of_each_question_alone_in_order(batch_size: int) -> None:
    questions = ["Where is the red circle, and who saw it?", "Who?", "A fox saw a dog.", "1 2 3", "é 🙂 and so on"]
    expected = [greedy(q, tokens=6) for q in questions]
    assert len(set(expected)) == len(questions)  # else the order would not show
    found = answers(decoder(), builtin_tokenizer(), questions, max_new_tokens=6, batch_size=batch_size)
    assert found == expected


def test_questions_may_be_token_ids() -> None:
    ids = builtin_tokenizer().encode("A fox saw", add_special_tokens=False)
    assert answers(decoder(), builtin_tokenizer(), [ids, "Who?"]) == answers(
        decoder(), builtin_tokenizer(), ["A fox saw", "Who?"]
    )


def test_an_answer_ends_with_its_turn() -> None:
    lm: Any = SHAPE.build(builtin_tokenizer(), context=128).eval()
    with torch.no_grad():  # every state says: end of turn
        lm.lm_head.weight.fill_(0.01)
        lm.lm_head.weight[builtin_tokenizer().eos_token_id] = 1.0
        for layer in lm.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    steps = []
    lm.model.register_forward_hook(lambda *_: steps.append(1))
    assert answers(lm, builtin_tokenizer(), ["Who?", "A fox saw a dog."], max_new_tokens=20) == ["", ""]
    assert len(steps) == 1


def test_no_question_no_answer() -> None:
    assert answers(decoder(), builtin_tokenizer(), []) == []


def test_exact_share() -> None:
    assert exact_share(["a", "B", " c"], ["a", "b", "c"]) == pytest.approx(1 / 3)
    assert exact_share(["a"], ["a"]) == 1
    assert math.isnan(exact_share([], []))
    with pytest.raises(ValueError):
        exact_share(["a"], [])


def test_ignored_targets_are_those_of_pytorch() -> None:
    assert torch.nn.CrossEntropyLoss().ignore_index == IGNORE


def test_a_tokenizer_is_taken_over_with_the_embeddings_of_what_both_know() -> None:
    known, new = builtin_tokenizer(), train_tokenizer(["der Hund und der Fuchs sah den Hund"] * 20, vocab_size=290)
    lm = SHAPE.build(known, context=64)
    before = lm.get_input_embeddings().weight.clone()
    take_tokenizer(lm, known, new)
    after = lm.get_input_embeddings().weight
    assert after.shape[0] == lm.config.vocab_size == len(new) and lm.lm_head.weight is after
    assert (lm.config.bos_token_id, lm.generation_config.eos_token_id) == (new.bos_token_id, new.eos_token_id)
    ids = known.get_vocab()
    kept = {name: i for name, i in new.get_vocab().items() if name in ids}
    assert len(kept) > 256 and all(torch.equal(after[i], before[ids[name]]) for name, i in kept.items())
    name = next(name for name in new.get_vocab() if name not in ids and name.startswith("Ġ"))
    pieces = known.encode(new.convert_tokens_to_string([name]).strip(), add_special_tokens=False)
    torch.testing.assert_close(after[new.get_vocab()[name]], before[pieces].mean(0))


def test_decoders_whose_table_cannot_be_exchanged_are_refused() -> None:
    known = builtin_tokenizer()
    lm = SHAPE.build(known, context=64)
    lm.config.tie_word_embeddings = False
    with pytest.raises(UserError, match="expected tied ones"):
        take_tokenizer(lm, known, known)
