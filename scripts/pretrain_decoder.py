"""Train the built-in decoder: prose, scenes in words with their captions and questions, and sentences to repeat.

python -m scripts.pretrain_decoder --config scripts/configs/decoder.yaml --text FOLDER --run-dir runs/decoder
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from multimodal.config import dump, parse
from multimodal.data.packing import Document, Row, fill_row, pack_rows
from multimodal.data.text import (
    REPEAT_PROMPT,
    chat_source,
    mixture,
    prose_source,
    read_texts,
    repeat_source,
    sentences,
    split_prose,
    stretch,
)
from multimodal.errors import UserError, run_cli
from multimodal.pretrained import read_decoder, write_decoder
from multimodal.pretraining import DecoderTask, NewDecoder, answer_perplexity, answers, exact_share, perplexity
from multimodal.report import write_json
from multimodal.tokenizer import PAUSE, AnyTokenizer, train_tokenizer
from multimodal.train.config import TrainConfig
from multimodal.train.loop import train
from scripts.spoken_texts import to_repeat
from speech.spoken_texts import digits_in_a_row
from vision.caption_data import read_captions, tidy_caption
from vision.captioning import CAPTION_PROMPT
from vision.clip_captions import CLIP_PROMPT, clip_caption
from vision.clip_language import clip_sample, questions_by_kind
from vision.scene_language import KINDS, caption, question_answer, scene_in_words
from vision.scenes import Split, sample_scene


@dataclass(frozen=True, kw_only=True)
class Config:
    """Pre-training of the built-in decoder."""

    text: tuple[Path, ...]
    """Text files (.txt, .txt.xz) or folders of them."""
    run_dir: Path
    """Folder for the run; the decoder is saved in its `decoder` subfolder."""
    train: TrainConfig
    shape: NewDecoder = field(default_factory=NewDecoder)
    vocabulary: int = 2048
    """Entries of the tokenizer."""
    context: int = 256
    """Tokens of a row."""
    weights: tuple[float, float, float, float, float] = (0.1, 0.3, 0.55, 0.0, 0.05)
    """Shares of documents: prose, scenes, sentences to repeat, captions, clips."""
    captions: str = ""
    """Captions to learn as text, from the train split of a source that `train_captioning` takes too; its dev split is
    measured."""
    start: str = ""
    """Go on from this decoder, with its tokenizer, in place of a new one."""
    held_out: int = 500
    """Unseen sentences to copy and questions to answer in the final measurement; a fifth of it during training."""
    resume: bool = False
    """Go on from the newest checkpoint of the run folder."""


@dataclass(frozen=True)
class Rows:
    """Endless rows of documents, drawn anew for each index."""

    draw: Callable[[random.Random], Document]
    count: int
    length: int

    def __len__(self) -> int:
        return self.count

    def sample(self, index: int, rng: random.Random) -> Row:
        return fill_row(self.draw, rng, length=self.length)


HARD_KINDS = ("exists", "relation", "position", "count")
"""Questions that take a small decoder the longest; half of all questions are of these kinds alone."""


def scene_turns(rng: random.Random) -> list[tuple[str, str]]:
    """A conversation about one scene in words: caption and questions in any order; a quarter have one turn."""
    scene = sample_scene(rng, split="any")
    kinds = [HARD_KINDS if rng.random() < 0.5 else KINDS for _ in range(rng.randint(8, 14))]
    turns = [question_answer(scene, rng, kinds=some) for some in kinds]
    turns.insert(rng.randrange(len(turns) + 1), (CAPTION_PROMPT, caption(scene, rng)))
    turns = turns[:1] if rng.random() < 0.25 else turns
    return [(f"{scene_in_words(scene, rng)}\n{turns[0][0]}", turns[0][1]), *turns[1:]]


def clip_turns(rng: random.Random) -> list[tuple[str, str]]:
    """A conversation about a clip whose caption stands before the first question. The caption does not answer every
    question; what they are like is what is to be learnt.
    """
    scene, question = clip_sample(rng.getrandbits(40), seed=0, split="train")
    others = [other for asked in questions_by_kind(scene).values() for other in asked]
    asked = [question, *rng.sample(others, min(len(others), 6))]
    said = clip_caption(scene, rng)
    turns = [(CLIP_PROMPT, said), *((one.question, one.answer) for one in asked)]
    return [(f"clip: {said}\n{turns[0][0]}", turns[0][1]), *turns[1:]]


def scene_question(rng: random.Random, *, split: Split) -> tuple[str, str]:
    """One question about a scene in words, and its answer."""
    scene = sample_scene(rng, split=split)
    question, answer = question_answer(scene, rng)
    return f"{scene_in_words(scene, rng)}\n{question}", answer


def measure(
    lm: LlamaForCausalLM,
    tokenizer: AnyTokenizer,
    held_out: list[str],
    unseen: list[str],
    captions: list[str],
    *,
    context: int,
    count: int,
) -> dict[str, float]:
    """Perplexity on held-out prose and captions (if any), exact copies of unseen sentences as written and as a speech
    adapter hands them over (tokens held, with pauses), of digits so, and answers about unseen scenes in words."""
    rng = random.Random(1)
    digits = [digits_in_a_row(rng) for _ in range(count)]
    unseen = rng.sample(unseen, min(count, len(unseen)))
    copied = answers(lm, tokenizer, [f"{REPEAT_PROMPT} {s}" for s in unseen])
    turns = [scene_question(rng, split="held_out") for _ in range(count)]
    said = answers(lm, tokenizer, [q for q, _ in turns], max_new_tokens=12)
    described = [(CAPTION_PROMPT, caption) for caption in captions[:count]]
    return {
        **({"caption_perplexity": answer_perplexity(lm, tokenizer, described)} if described else {}),
        "prose_perplexity": perplexity(lm, tokenizer, held_out, context=context),
        "copy_exact": exact_share(copied, unseen),
        "copy_held_exact": exact_share(answers(lm, tokenizer, [held(tokenizer, s, rng) for s in unseen]), unseen),
        "digits_held_exact": exact_share(answers(lm, tokenizer, [held(tokenizer, s, rng) for s in digits]), digits),
        "scene_question_accuracy": exact_share(said, [a for _, a in turns]),
    }


def held(tokenizer: AnyTokenizer, text: str, rng: random.Random) -> list[int]:
    """The question to repeat `text`, as token ids, each of which is held for some positions, with pauses."""
    prompt, ids = (tokenizer.encode(t, add_special_tokens=False) for t in (f"{REPEAT_PROMPT} ", text))
    return prompt + stretch(ids, rng, pause_id=tokenizer.convert_tokens_to_ids(PAUSE), gap=0.4)


def new_decoder(config: Config, prose: list[str]) -> tuple[LlamaForCausalLM, AnyTokenizer]:
    """A tokenizer learnt from the text, and a random decoder for it."""
    rng = random.Random(config.train.seed)
    scene_text = ["\n".join(chain.from_iterable(scene_turns(rng))) for _ in range(1000)]
    tokenizer = train_tokenizer([*prose, *scene_text], vocab_size=config.vocabulary)
    return config.shape.build(tokenizer, context=2 * config.context), tokenizer


def load_start(name: str) -> tuple[LlamaForCausalLM, AnyTokenizer]:
    """A trained decoder to go on from.

    Raises:
        UserError: it cannot be read, or is not a Llama.
    """
    lm, tokenizer = read_decoder(name, dtype=torch.float32)
    if not isinstance(lm, LlamaForCausalLM):
        raise UserError(f"--start {name} is a {type(lm).__name__}: expected a LlamaForCausalLM")
    return lm, tokenizer


def read_caption_texts(source: str, *, split: str) -> list[str]:
    """All captions of a split, tidied as in captioning."""
    records = read_captions(source, split=split)
    return [tidy_caption(caption) for record in records for caption in record.captions]


def unseen_captions(source: str) -> list[str]:
    """Captions of the dev split, to measure; none where the source has no such split."""
    try:
        return read_caption_texts(source, split="dev")
    except UserError as error:
        print(f"unseen captions are not measured: {error}")
        return []


def model_card(config: Config, shape: LlamaConfig, scores: dict[str, float], *, minutes: float) -> str:
    """What the decoder is, what it was trained on, and what was measured."""
    texts = ", ".join(path.name for path in config.text)
    captions = f", the train captions of {Path(config.captions).name}" if config.captions else ""
    lines = [
        "# Graft's built-in decoder" if not config.captions else "# Graft's decoder with captions",
        "",
        f"A Llama-style decoder for `transformers`: {shape.num_hidden_layers} layers, width {shape.hidden_size}, "
        f"{shape.num_attention_heads} heads, {shape.num_key_value_heads} key/value heads, tied embeddings, "
        f"{shape.vocab_size} tokens, bf16.",
        "",
        f"Trained for {minutes:.0f} minutes on {texts}{captions}, and on generated text: scenes in words with "
        "captions and questions, and sentences to repeat. A base for adapters; it knows nothing of the world.",
        "",
        "| measured on held-out text | |",
        "| --- | --- |",
        f"| perplexity per token on prose | {scores['prose_perplexity']:.1f} |",
        f"| unseen sentences of 4 to 20 words copied exactly ({config.held_out}) | {scores['copy_exact']:.3f} |",
        f"| the same, tokens held for 1 to 3 positions, with pauses | {scores['copy_held_exact']:.3f} |",
        f"| 1 to 8 digits in words, held in the same way | {scores['digits_held_exact']:.3f} |",
        f"| questions about a described scene ({config.held_out}) | {scores['scene_question_accuracy']:.3f} |",
        *(f"| perplexity per token on unseen captions | {scores[name]:.1f} |" for name in scores if "caption" in name),
        "",
        "Rebuild: `make decoder` (see `scripts/configs/decoder.yaml`)."
        if not config.start
        else f"Went on from {config.start}.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    config = parse(Config, description=__doc__)
    torch.manual_seed(config.train.seed)
    prose, held_out = split_prose(read_texts(config.text))
    seen = sentences(prose)
    unseen = sorted(set(sentences(held_out)) - set(seen))
    lm, tokenizer = new_decoder(config, prose) if not config.start else load_start(config.start)
    captions = read_caption_texts(config.captions, split="train") if config.captions else [""]
    others = unseen_captions(config.captions) if config.captions else []
    sources = (
        prose_source(tokenizer, prose, length=config.context),
        chat_source(tokenizer, scene_turns),
        repeat_source(tokenizer, seen, writers=[to_repeat]),
        chat_source(tokenizer, lambda rng: [(CAPTION_PROMPT, rng.choice(captions))]),
        chat_source(tokenizer, clip_turns),
    )
    rows = Rows(
        mixture(list(zip(config.weights, sources, strict=True))),
        count=config.train.steps * config.train.batch_size,
        length=config.context,
    )
    result = train(
        task=DecoderTask(lm),
        dataset=rows,
        collate=lambda batch: pack_rows(batch, length=config.context, pad_id=tokenizer.pad_token_id),
        config=config.train,
        run_dir=config.run_dir,
        resume=config.resume,
        evaluate=lambda step: measure(
            lm, tokenizer, held_out, unseen, others, context=config.context, count=config.held_out // 5
        ),
        config_yaml=dump(config),
    )
    write_decoder(lm.eval().to(torch.bfloat16), tokenizer, config.run_dir / "decoder")  # type: ignore[arg-type]
    # What ships is bf16 on disk and read as fp32: measure exactly that.
    shipped = LlamaForCausalLM.from_pretrained(config.run_dir / "decoder", dtype=torch.float32).eval()
    with torch.no_grad():
        scores = measure(shipped, tokenizer, held_out, unseen, others, context=config.context, count=config.held_out)
    write_json(config.run_dir / "metrics.json", scores | {"train_seconds": result.seconds, "steps": result.steps})
    (config.run_dir / "decoder" / "README.md").write_text(
        model_card(config, shipped.config, scores, minutes=result.seconds / 60)
    )
    print(" ".join(f"{name} {value:.4g}" for name, value in scores.items()))


if __name__ == "__main__":
    run_cli(main)
