"""Train the built-in decoder: prose, scenes in words with their captions and questions, sentences to repeat, and
numbers and dates of other languages to translate.

python -m scripts.pretrain_decoder --config scripts/configs/decoder.yaml --text FOLDER --run-dir runs/decoder
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor
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
    saying_source,
    sentences,
    split_prose,
    stretch,
)
from multimodal.errors import UserError, run_cli
from multimodal.pretrained import read_decoder, write_decoder
from multimodal.pretraining import (
    DecoderTask,
    NewDecoder,
    answer_perplexity,
    answers,
    exact_share,
    perplexity,
    take_tokenizer,
)
from multimodal.report import write_json
from multimodal.tokenizer import PAUSE, AnyTokenizer, train_tokenizer
from multimodal.train.config import TrainConfig
from multimodal.train.loop import train
from scripts.spoken_texts import to_repeat
from speech.foreign_texts import foreign_saying
from speech.spoken_texts import digits_in_a_row
from vision.caption_data import read_captions, tidy_caption
from vision.captioning import CAPTION_PROMPT
from vision.clip_captions import CLIP_PROMPT, clip_caption, clip_inventory
from vision.clip_language import clip_sample
from vision.clip_language import questions_by_kind as clip_questions_by_kind
from vision.scene_language import KINDS, caption, inventory, question_answer, questions_by_kind, scene_in_words
from vision.scenes import Scene, sample_scene


@dataclass(frozen=True, kw_only=True)
class Shares:
    """Shares of documents, not of tokens, in any unit."""

    prose: float = 0.02
    scenes: float = 0.28
    """Scenes in words with their captions and questions."""
    repeat: float = 0.38
    """Sentences to repeat, as they are and as speech adapters hand them over."""
    captions: float = 0.0
    """Those of the source of captions."""
    clips: float = 0.1
    """Clips in words with their captions and questions."""
    foreign: float = 0.3
    """Numbers, times and dates of other languages, to repeat and to translate (needs num2words)."""

    def __post_init__(self) -> None:
        shares = asdict(self)
        if min(shares.values()) < 0 or not any(shares.values()):
            raise UserError(f"shares {shares}: expected 0 or more, and one above 0")


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
    shares: Shares = field(default_factory=Shares)
    keep_of_start: float = 0.0
    """With start: share of its weights in the mean with those learnt that is saved, so that what it knew is not lost
    (Wortsman et al. 2021, arXiv 2109.01903). If above 0, embeddings stay as they were: those of rare tokens drift."""
    captions: str = ""
    """Captions to learn as text, from the train split of a source that `train_captioning` takes too; its dev split is
    measured."""
    start: str = ""
    """Go on from this decoder in place of a new one."""
    new_tokenizer: bool = False
    """With start: learn a tokenizer from the text all the same. Entries of both keep their embeddings."""
    held_out: int = 500
    """Unseen sentences to copy and questions to answer in the final measurement; a fifth of it during training."""
    resume: bool = False
    """Go on from the newest checkpoint of the run folder."""

    def __post_init__(self) -> None:
        if not 0 <= self.keep_of_start < 1:
            raise UserError(f"--keep-of-start {self.keep_of_start}: expected 0 to below 1")
        if self.shares.captions and not self.captions:
            raise UserError(f"--shares.captions {self.shares.captions}: expected --captions to take them from")
        if not self.start and (self.new_tokenizer or self.keep_of_start):
            raise UserError("--new-tokenizer and --keep-of-start are for a decoder to go on from; expected --start")


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


REPEAT_ENGLISH = REPEAT_PROMPT.format(language="English")
HARD_KINDS = ("relation", "relation", "relation", "relation", "count", "count", "position", "position", "colour")
"""Questions that take a small decoder the longest, in the shares in which two thirds of all questions are asked."""
SIDES_SHARE = 1 / 3
"""Of scenes that are asked about left and right alone: "left" is a place as well as a relation, and among questions of
all kinds a small decoder did not tell them apart in 45 minutes (RESULTS.md)."""
SCENE_TEXTS, SPOKEN_TEXTS, FOREIGN_TEXTS = 1_000, 6_000, 24_000
"""In the tokenizer's training: so many that their frequent words are one token, as speech wants them."""


def scene_turns(rng: random.Random) -> list[tuple[str, str]]:
    """A conversation about one scene in words, half of the time in those in which adapters describe pictures: caption
    and questions in any order; a quarter have one turn. A third of scenes are asked about left and right alone.
    """
    scene = sample_scene(rng, split="any")
    said = inventory(scene) if rng.random() < 0.5 else scene_in_words(scene, rng)
    turns = sides_turns(scene, rng) if rng.random() < SIDES_SHARE else []
    if not turns:
        kinds = rng.choices((HARD_KINDS, HARD_KINDS, KINDS), k=rng.randint(8, 14))
        turns = [question_answer(scene, rng, kinds=some) for some in kinds]
        turns.insert(rng.randrange(len(turns) + 1), (CAPTION_PROMPT, caption(scene, rng)))
        turns = turns[:1] if rng.random() < 0.25 else turns
    return [(f"{said}\n{turns[0][0]}", turns[0][1]), *turns[1:]]


def sides_turns(scene: Scene, rng: random.Random) -> list[tuple[str, str]]:
    """Which objects are left or right of which, at most twelve questions; none where all stand below each other."""
    asked = [
        one for one in questions_by_kind(scene).get("relation", ()) if " left of " in one[0] or " right of " in one[0]
    ]
    return rng.sample(asked, min(len(asked), 12))


def clip_turns(rng: random.Random) -> list[tuple[str, str]]:
    """A conversation about a clip that is described before the first question: in full, so that all answers follow, or
    a fifth of the time by its caption, so that their form is learnt.
    """
    scene, question = clip_sample(rng.getrandbits(40), seed=0, split="any")
    others = [other for asked in clip_questions_by_kind(scene).values() for other in asked]
    asked = [question, *rng.sample(others, min(len(others), 8))]
    rng.shuffle(asked)
    caption = clip_caption(scene, rng)
    turns = [*((one.question, one.answer) for one in asked), (CLIP_PROMPT, caption)]
    said = f"clip: {caption}" if rng.random() < 0.2 else clip_inventory(scene)
    return [(f"{said}\n{turns[0][0]}", turns[0][1]), *turns[1:]]


def scene_question(rng: random.Random, say: Callable[[Scene, random.Random], str] = scene_in_words) -> tuple[str, str]:
    """One question about a scene in words, with pairs of which adapters see no picture in training, and its answer."""
    scene = sample_scene(rng, split="held_out")
    question, answer = question_answer(scene, rng)
    return f"{say(scene, rng)}\n{question}", answer


def clip_question(rng: random.Random) -> tuple[str, str]:
    """The same of a clip, in the words in which adapters describe clips."""
    scene, question = clip_sample(rng.getrandbits(40), seed=1, split="held_out")
    return f"{clip_inventory(scene)}\n{question.question}", question.answer


QUESTIONS: dict[str, Callable[[random.Random], tuple[str, str]]] = {
    "scene_question_accuracy": scene_question,
    "described_question_accuracy": lambda rng: scene_question(rng, lambda scene, _: inventory(scene)),
    "clip_question_accuracy": clip_question,
}
"""What is asked in the measurements, by the name of the score."""


def measure(
    lm: LlamaForCausalLM,
    tokenizer: AnyTokenizer,
    held_out: list[str],
    unseen: list[str],
    captions: list[str],
    *,
    context: int,
    count: int,
    foreign: bool,
) -> dict[str, float]:
    """Perplexity on held-out prose and captions (if any), exact copies of unseen sentences as written and as a speech
    adapter hands them over (tokens held, with pauses), of digits so, what is said of numbers and dates in other
    languages (if it learns them), held in the same way, and answers about unseen scenes and clips in words."""
    rng = random.Random(1)
    digits = [digits_in_a_row(rng) for _ in range(count)]
    unseen = rng.sample(unseen, min(count, len(unseen)))
    copied = answers(lm, tokenizer, [f"{REPEAT_ENGLISH} {s}" for s in unseen])
    sayings = [foreign_saying(rng, held_out=True) for _ in range(count if foreign else 0)]
    answered = answers(lm, tokenizer, [held(tokenizer, asked, rng, prompt=prompt) for prompt, asked, _ in sayings])
    turns = {name: [ask(rng) for _ in range(count)] for name, ask in QUESTIONS.items()}
    answered_right = {
        name: exact_share(answers(lm, tokenizer, [q for q, _ in some], max_new_tokens=12), [a for _, a in some])
        for name, some in turns.items()
    }
    described = [(CAPTION_PROMPT, caption) for caption in captions[:count]]
    return {
        **({"caption_perplexity": answer_perplexity(lm, tokenizer, described)} if described else {}),
        "prose_perplexity": perplexity(lm, tokenizer, held_out, context=context),
        "copy_exact": exact_share(copied, unseen),
        "copy_held_exact": exact_share(answers(lm, tokenizer, [held(tokenizer, s, rng) for s in unseen]), unseen),
        "digits_held_exact": exact_share(answers(lm, tokenizer, [held(tokenizer, s, rng) for s in digits]), digits),
        **({"foreign_held_exact": exact_share(answered, [answer for *_, answer in sayings])} if foreign else {}),
        **answered_right,
    }


def held(tokenizer: AnyTokenizer, text: str, rng: random.Random, *, prompt: str = REPEAT_ENGLISH) -> list[int]:
    """A prompt and the text after it, as token ids, of which the text's are held for some positions, with pauses."""
    asked, ids = (tokenizer.encode(t, add_special_tokens=False) for t in (prompt, text))
    return asked + stretch(ids, rng, pause_id=tokenizer.convert_tokens_to_ids(PAUSE), gap=0.4)


def new_tokenizer(config: Config, prose: list[str]) -> AnyTokenizer:
    """A tokenizer learnt from the text and from generated text."""
    rng = random.Random(config.train.seed)
    scene_texts = ["\n".join(chain.from_iterable(scene_turns(rng))) for _ in range(SCENE_TEXTS)]
    spoken_texts = [to_repeat(rng) for _ in range(SPOKEN_TEXTS)]
    foreign_texts = [foreign_saying(rng)[1] for _ in range(FOREIGN_TEXTS if config.shares.foreign else 0)]
    return train_tokenizer([*prose, *scene_texts, *spoken_texts, *foreign_texts], vocab_size=config.vocabulary)


def start_decoder(config: Config, prose: list[str]) -> tuple[LlamaForCausalLM, AnyTokenizer]:
    """What training begins with: a random decoder, or the one to go on from.

    Raises:
        UserError: as `load_start`.
    """
    if not config.start:
        tokenizer = new_tokenizer(config, prose)
        return config.shape.build(tokenizer, context=2 * config.context), tokenizer
    lm, tokenizer = load_start(config.start)
    if config.new_tokenizer:
        known, tokenizer = tokenizer, new_tokenizer(config, prose)
        take_tokenizer(lm, known, tokenizer)
    return lm, tokenizer


def load_start(name: str) -> tuple[LlamaForCausalLM, AnyTokenizer]:
    """A trained decoder to go on from.

    Raises:
        UserError: it cannot be read, or is not a Llama.
    """
    lm, tokenizer = read_decoder(name, dtype=torch.float32)
    if not isinstance(lm, LlamaForCausalLM):
        raise UserError(f"--start {name} is a {type(lm).__name__}: expected a LlamaForCausalLM")
    return lm, tokenizer


@torch.no_grad()
def keep_start(lm: LlamaForCausalLM, before: Mapping[str, Tensor], *, share: float) -> None:
    """Mean of the weights learnt and a share of those before (in place); embeddings are kept, unless the share is 0."""
    for name, weight in lm.named_parameters():
        kept = 1.0 if share and weight is lm.model.embed_tokens.weight else share
        weight.lerp_(before[name], kept)


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
    foreign = [name for name in scores if "foreign" in name]
    shares = ", ".join(f"{name} {share:g}" for name, share in asdict(config.shares).items() if share)
    captions = f", the train captions of {Path(config.captions).name}" if config.captions else ""
    lines = [
        "# Graft's built-in decoder" if not config.captions else "# Graft's decoder with captions",
        "",
        f"A Llama-style decoder for `transformers`: {shape.num_hidden_layers} layers, width {shape.hidden_size}, "
        f"{shape.num_attention_heads} heads, {shape.num_key_value_heads} key/value heads, tied embeddings, "
        f"{shape.vocab_size} tokens, bf16.",
        "",
        f"Trained for {minutes:.0f} minutes on {texts}{captions}, and on generated text (shares of documents: "
        f"{shares}). A base for adapters; it knows nothing of the world.",
        "",
        "| measured on held-out text | |",
        "| --- | --- |",
        f"| perplexity per token on prose | {scores['prose_perplexity']:.1f} |",
        f"| unseen sentences of 4 to 20 words copied exactly ({config.held_out}) | {scores['copy_exact']:.3f} |",
        f"| the same, tokens held for 1 to 3 positions, with pauses | {scores['copy_held_exact']:.3f} |",
        f"| 1 to 8 digits in words, held in the same way | {scores['digits_held_exact']:.3f} |",
        *(f"| numbers and dates of other languages, held in the same way | {scores[name]:.3f} |" for name in foreign),
        f"| questions about a described scene ({config.held_out}) | {scores['scene_question_accuracy']:.3f} |",
        f"| the same, described as adapters do | {scores['described_question_accuracy']:.3f} |",
        f"| questions about a clip, so described | {scores['clip_question_accuracy']:.3f} |",
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
    lm, tokenizer = start_decoder(config, prose)
    before = {name: w.detach().clone() for name, w in lm.named_parameters()} if config.keep_of_start else {}
    captions = read_caption_texts(config.captions, split="train") if config.captions else [""]
    others = unseen_captions(config.captions) if config.captions else []
    shares, foreign = config.shares, config.shares.foreign > 0
    sources = [
        (shares.prose, prose_source(tokenizer, prose, length=config.context)),
        (shares.scenes, chat_source(tokenizer, scene_turns)),
        (shares.repeat, repeat_source(tokenizer, seen, writers=[to_repeat])),
        (shares.captions, chat_source(tokenizer, lambda rng: [(CAPTION_PROMPT, rng.choice(captions))])),
        (shares.clips, chat_source(tokenizer, clip_turns)),
        (shares.foreign, saying_source(tokenizer, foreign_saying)),
    ]
    rows = Rows(
        mixture(sources),
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
            lm, tokenizer, held_out, unseen, others, context=config.context, count=config.held_out // 5, foreign=foreign
        ),
        config_yaml=dump(config),
    )
    if before:
        keep_start(lm, before, share=config.keep_of_start)
    write_decoder(lm.eval().to(torch.bfloat16), tokenizer, config.run_dir / "decoder")  # type: ignore[arg-type]
    # What ships is bf16 on disk and read as fp32: measure exactly that.
    shipped = LlamaForCausalLM.from_pretrained(config.run_dir / "decoder", dtype=torch.float32).eval()
    with torch.no_grad():
        scores = measure(
            shipped, tokenizer, held_out, unseen, others, context=config.context, count=config.held_out, foreign=foreign
        )
    write_json(config.run_dir / "metrics.json", scores | {"train_seconds": result.seconds, "steps": result.steps})
    (config.run_dir / "decoder" / "README.md").write_text(
        model_card(config, shipped.config, scores, minutes=result.seconds / 60)
    )
    print(" ".join(f"{name} {value:.4g}" for name, value in scores.items()))


if __name__ == "__main__":
    run_cli(main)
