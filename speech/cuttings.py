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
    made = []
    for piece in draw_pieces(list(by_name), times, count=count, seed=seed):
        whole = by_name[piece.name]
        sound = CutSound(whole.sound, piece.start, piece.end)
        made.append(replace(whole, sound=sound, text=" ".join(piece.words), id=f"{whole.id}, {piece.label}"))
    return made
