"""What is never shown is not denied: which tokens are left out, and that new pairs are then told right."""

import random
from collections.abc import Sequence
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from multimodal.batch import Turn
from multimodal.loss import IGNORE
from multimodal.unseen_pairs import UnseenPairs, undenied, unseen_pairs
from tests.tiny_models import ask, picture, tiny_model

VOCAB = 30
A, RED, BLUE, GREEN, STAR, RING, HEART, RARE, TWO, END = range(10, 20)
COLOURS, SHAPES = (RED, BLUE, GREEN), (STAR, RING, HEART)
NAME, WHICH, MANY = 1, 2, 3
PLACEHOLDER = VOCAB + 3


def turns(repeat: int = 50) -> list[Turn]:
    """Every pair but the red star, named and asked for; there are always two, of anything."""
    pairs = [pair for pair in product(COLOURS, SHAPES) if pair != (RED, STAR)] * repeat
    named = [Turn([PLACEHOLDER, NAME], [A, *pair, END], {}) for pair in pairs]
    asked = [Turn([PLACEHOLDER, WHICH, shape], [colour, END], {}) for colour, shape in pairs]
    counted = [Turn([PLACEHOLDER, MANY, shape], [TWO, END], {}) for _, shape in pairs]
    return [*named, *asked, *counted, Turn([NAME], [A, BLUE, RARE, END], {})]


def found_in(some: Sequence[Turn]) -> UnseenPairs:
    return unseen_pairs(some, vocab_size=VOCAB)


def excluded(found: UnseenPairs, *rows: tuple[Sequence[int], Sequence[int]]) -> list[set[int]]:
    """The tokens left out at each answer token of rows (prompt, answer), padded to one length."""
    read = [[*prompt, *answer] for prompt, answer in rows]
    said = [[*[IGNORE] * (len(prompt) - 1), *answer, IGNORE] for prompt, answer in rows]
    longest = max(map(len, read))
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in read])
    targets = torch.tensor([[*row, *[IGNORE] * (longest - len(row))] for row in said])
    left = found.excluded(ids, targets)
    return [set(left.tokens_K[row].tolist()) for row in left.mask_NK]


def test_a_pair_that_is_missing_is_not_denied_from_either_side() -> None:
    found = found_in(turns())
    assert excluded(found, ([NAME], [A, RED, RING, END])) == [set(), set(), {STAR}, set()]
    assert excluded(found, ([NAME], [A, BLUE, STAR, END])) == [set(), {RED}, set(), set()]
    assert excluded(found, ([NAME], [A, BLUE, HEART, END])) == [set()] * 4


def test_a_pair_is_expected_among_words_of_its_kinds_however_much_else_is_said() -> None:
    found = found_in([*turns(), *[Turn([MANY, RING], [TWO, END], {})] * 20_000])
    assert excluded(found, ([NAME], [A, RED, RING, END])) == [set(), set(), {STAR}, set()]


def test_where_a_word_begins_the_answer_its_kind_is_known_all_the_same() -> None:
    pairs = [pair for pair in product(COLOURS, SHAPES) if pair != (RED, STAR)] * 30
    found = found_in([Turn([NAME], [*pair, END], {}) for pair in pairs])
    assert excluded(found, ([NAME], [BLUE, STAR, END]), ([NAME], [RED, RING, END])) == [
        *({RED}, set(), set()),
        *(set(), {STAR}, set()),
    ]


def test_what_no_answer_to_such_a_prompt_begins_with_is_not_denied() -> None:
    found = found_in(turns())
    star, ring = ([WHICH, STAR], [BLUE, END]), ([WHICH, RING], [BLUE, END])
    assert excluded(found, star) == [{RED}, set()] and excluded(found, ring) == [set(), set()]
    # Another row is not asked for.
    assert excluded(found, ring, star, ring) == [set(), set(), {RED}, set(), set(), set()]


def test_words_of_several_tokens_are_of_a_kind_if_they_answer_the_same() -> None:
    """What each does, in two tokens that no other verb has; the red one never stops."""
    verbs = ((20, 21), (22, 23), (24, 25))
    done = [
        Turn([4, colour], [*verb, END], {}) for colour in COLOURS for verb in verbs if (colour, verb) != (RED, verbs[2])
    ] * 50
    found = found_in([*turns(), *done])
    assert excluded(found, ([4, RED], [20, 21, END])) == [{24}, set(), set()]
    assert excluded(found, ([4, BLUE], [20, 21, END])) == [set(), set(), set()]


def test_words_of_another_kind_are_denied_as_ever() -> None:
    """ "Red" is never followed by another colour and never answers "how many": that is grammar."""
    found = found_in(turns())
    colours, others = {RED, BLUE, GREEN}, {A, RARE, TWO, END}
    for row in turns(repeat=1):
        for target, left in zip(row.answer, excluded(found, (row.prompt, row.answer)), strict=True):
            assert not left & (others if target in colours or target in SHAPES else colours | {*SHAPES} | others)


def test_rare_words_and_what_was_to_be_said_are_never_left_out() -> None:
    found = found_in(turns())
    rows = ([NAME], [A, RED, STAR, END]), ([NAME], [A, RED, RARE, END]), ([WHICH, STAR], [RED, END])
    left_out, answers = excluded(found, *rows), [token for _, answer in rows for token in answer]
    assert not any(token in left for token, left in zip(answers, left_out, strict=True))
    assert not any(RARE in left for left in left_out)
    few = found_in(turns(repeat=1))  # of so few nothing can be said
    assert excluded(few, ([NAME], [A, RED, RING, END])) == [set()] * 4
    assert excluded(found_in([]), ([NAME], [A, RED, RING, END])) == [set()] * 4


def test_placeholders_and_positions_without_a_target_are_left_alone() -> None:
    found = found_in(turns())
    with_picture = excluded(found, ([VOCAB, PLACEHOLDER, WHICH, STAR], [BLUE, END]))
    assert with_picture == excluded(found, ([WHICH, STAR], [BLUE, END]))
    nothing = torch.full((2, 3), IGNORE)
    assert len(found.excluded(torch.zeros(2, 3, dtype=torch.long), nothing).mask_NK) == 0


def features(pairs: Sequence[tuple[int, int]]) -> Tensor:
    """What is seen: colour, strongly, and shape, each in a place of its own, and a little noise."""
    torch.manual_seed(0)
    seen = torch.randn(len(pairs), 2 * VOCAB) * 0.2
    for row, (colour, shape) in enumerate(pairs):
        seen[row, colour] += 2
        seen[row, VOCAB + shape] += 1
    return seen


@pytest.mark.parametrize("denies", [True, False])
def test_new_pairs_are_named_if_they_were_not_denied(denies: bool) -> None:
    pairs = [pair for pair in product(COLOURS, SHAPES) if pair != (RED, STAR)] * 20
    seen, said = features(pairs), torch.tensor([[A, *pair, END] for pair in pairs])
    everywhere = found_in(turns()).excluded(F.pad(said[:, :-1], (1, 0), value=NAME), said)
    left_out = everywhere.out_of(torch.zeros(4 * len(pairs), VOCAB), slice(None))[2::4, list(SHAPES)].isinf()
    shapes = torch.tensor([SHAPES.index(shape) for _, shape in pairs])
    torch.manual_seed(0)
    layer = torch.nn.Linear(2 * VOCAB, len(SHAPES))  # grammar says that it is a shape
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    for _ in range(150):
        logits = layer(seen)
        loss = F.cross_entropy(logits if denies else logits.masked_fill(left_out, -torch.inf), shapes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (layer(seen).argmax(1) == shapes).float().mean() > 0.95
    right = (layer(features([(RED, STAR)] * 50)).argmax(1) == SHAPES.index(STAR)).float().mean()
    assert right < 0.4 if denies else right > 0.8


class Texts:
    """Turns without media."""

    def __len__(self) -> int:
        return len(turns())

    def text(self, index: int, rng: random.Random) -> tuple[Turn, ...]:
        return (turns()[index],)


def test_a_model_leaves_them_undenied_for_a_while() -> None:
    model = tiny_model()
    batch = model.collate([model.sample(ask(picture(), "Who?"), "A fox.")])
    before = model.loss(batch)[0].item()
    with undenied(model, Texts(), samples=0, seed=0):
        assert model.unseen_pairs is None and model.loss(batch)[0].item() == before
    with pytest.raises(RuntimeError, match="stop"), undenied(model, Texts(), samples=10_000, seed=0):
        assert model.unseen_pairs is not None and model.unseen_pairs.next_LL.any()
        model.unseen_pairs = everything(model.decoder.vocab_size)
        # Each target is then alone in its softmax.
        assert model.loss(batch)[0].item() == pytest.approx(0, abs=1e-5) and before > 1
        raise RuntimeError("stop")
    assert model.unseen_pairs is None and model.loss(batch)[0].item() == before


def everything(vocab_size: int) -> UnseenPairs:
    size = vocab_size + 2
    table = torch.ones(size, size, dtype=torch.bool)
    return UnseenPairs(torch.arange(vocab_size), torch.arange(size), table, table.float(), table, table)


def test_the_pairs_of_some_samples_depend_on_the_seed_alone() -> None:
    model = tiny_model()
    found = []
    for seed in (0, 0, 1):
        with undenied(model, Texts(), samples=500, seed=seed):
            assert model.unseen_pairs is not None
            found.append(model.unseen_pairs)
    assert torch.equal(found[0].tokens_K, found[1].tokens_K) and torch.equal(found[0].next_LL, found[1].next_LL)
    assert not all(torch.equal(getattr(found[0], name), getattr(found[2], name)) for name in ("tokens_K", "next_LL"))
