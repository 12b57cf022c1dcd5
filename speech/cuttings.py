"""Pieces of sentences whose words have times: single words and a few in a row, cut out of their recordings."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePath

from multimodal.data.word_times import WordTimes, draw_pieces
from speech.utterance import CutSound, Utterance


def cuttings(utterances: Sequence[Utterance], times: WordTimes, *, count: int, seed: int) -> list[Utterance]:
    """`count` pieces of one to four words, each of an utterance drawn by the seed.

    Raises:
        UserError: no utterance has word times.
    """
    by_name = {PurePath(utterance.id).stem: utterance for utterance in utterances}
    return [
        replace(
            by_name[piece.name],
            sound=CutSound(by_name[piece.name].sound, piece.start, piece.end),
            text=" ".join(piece.words),
            id=piece.label,
        )
        for piece in draw_pieces(list(by_name), times, count=count, seed=seed)
    ]
