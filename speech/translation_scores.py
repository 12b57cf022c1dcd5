"""BLEU and chrF of translations by sacrebleu, 0 to 100 as it gives them.

Both compare spoken forms, which are what the model learns to write: case and punctuation are no part of the score, so
it is not the cased BLEU of the literature. BLEU counts words and is 0 where no text has four of them; of languages that
are written without spaces, chrF alone says something.
"""

from collections.abc import Sequence

import sacrebleu

from speech.word_errors import spoken_pairs


def bleu(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Corpus BLEU, 0 to 100, one reference each; raises as `word_error_rate`."""
    said, truths = spoken_pairs(predictions, references)
    return sacrebleu.corpus_bleu(said, [truths]).score


def chrf(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Corpus chrF (characters, no words), 0 to 100, one reference each; raises as `word_error_rate`."""
    said, truths = spoken_pairs(predictions, references)
    return sacrebleu.corpus_chrf(said, [truths]).score
