"""Pre-train the image encoder on pictures with captions (Llama 3 paper, section 7.1 / spec A2.5).

The text tower reads the tokens of a decoder's tokenizer and is thrown away afterwards.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from multimodal.config import dump
from multimodal.errors import UserError
from multimodal.pretrained import BUILTIN, decoder_path, read_tokenizer
from multimodal.tokenizer import AnyTokenizer
from multimodal.train.config import TrainConfig
from multimodal.train.loop import TrainResult, train
from vision.caption_data import CaptionImages
from vision.caption_training import SCENES, DataConfig, training_order
from vision.captioner import Captioner
from vision.contrastive import ContrastiveBatch, ContrastiveTask, TextTower, retrieval_recall
from vision.encoder import ImageEncoder
from vision.encoder_folder import load_encoder, save_encoder
from vision.image_modality import EncoderOptions
from vision.picture import open_picture
from vision.scene_language import caption, scene_in_words
from vision.scenes import AS_DRAWN, SceneMix, Split, scene_sample
from vision.tiling import Augment, Tiles, Tiling, batch_tiles


@dataclass(frozen=True, kw_only=True)
class ContrastiveConfig:
    """Contrastive pre-training of Graft's own image encoder."""

    run_dir: Path
    """The encoder is saved in its `encoder` subfolder."""
    train: TrainConfig
    encoder: EncoderOptions = field(default_factory=EncoderOptions)
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: str = BUILTIN
    """Decoder whose tokenizer the text tower reads."""
    text_width: int = 128
    text_layers: int = 3
    text_heads: int = 4
    text_length: int = 64
    """Tokens of a caption; longer ones are cut."""
    embed_dim: int = 128
    """Width of the space in which pictures and texts meet."""
    caption_weight: float = 0.0
    """Weight of a captioning loss beside the contrastive one (CoCa has 2); 0 = none. Its text decoder has the text
    tower's sizes."""
    patch_dropout: float = 0.0
    """Share of the patches of a picture that are left out in training: cheaper steps, and less is learnt by heart."""
    stretch: bool = False
    """Fill the tiles and ignore the aspect ratio, for pictures that were squashed to squares."""
    resume: bool = False
    """Go on from the newest checkpoint of the run folder."""

    def __post_init__(self) -> None:
        if not 0 <= self.patch_dropout < 1:
            raise UserError(f"--patch-dropout {self.patch_dropout}: expected 0 to below 1")


@dataclass(frozen=True)
class CaptionedTiles:
    """A picture and some captions of it."""

    tiles: Tiles
    captions: tuple[str, ...]


@dataclass(frozen=True)
class ScenePairs:
    """Built-in scenes, each text of them a caption or, as often, a full description in words."""

    tiling: Tiling
    count: int
    size: int
    seed: int
    split: Split = "train"
    mix: SceneMix = AS_DRAWN
    captions: int = 1

    def __len__(self) -> int:
        return self.count

    def sample(self, index: int, rng: random.Random) -> CaptionedTiles:
        picture, scene, _ = scene_sample(index, seed=self.seed, split=self.split, size=self.size, mix=self.mix)
        ways = (rng.choice((caption, scene_in_words)) for _ in range(self.captions))
        return CaptionedTiles(self.tiling.tile(open_picture(picture)), tuple(say(scene, rng) for say in ways))


@dataclass(frozen=True)
class CaptionPairs:
    """Captioned pictures, each with some of its captions; all of them if there are fewer."""

    images: CaptionImages
    captions: int = 1

    def __len__(self) -> int:
        return len(self.images)

    def sample(self, index: int, rng: random.Random) -> CaptionedTiles | None:
        found = self.images.sample(index, rng)
        return None if found is None else CaptionedTiles(found.tiles[0], found.draw(self.captions, rng))


def collate_pairs(pairs: Sequence[CaptionedTiles], tokenizer: AnyTokenizer, *, length: int) -> ContrastiveBatch:
    """A batch of pictures with their texts, picture after picture."""
    text = tokenizer(
        [caption for pair in pairs for caption in pair.captions],
        return_tensors="pt",
        padding=True,
        padding_side="right",
        truncation=True,
        max_length=length,
        add_special_tokens=False,
    )
    index = torch.tensor([i for i, pair in enumerate(pairs) for _ in pair.captions])
    tiles = batch_tiles([pair.tiles for pair in pairs])
    return ContrastiveBatch(tiles, text["input_ids"], text["attention_mask"], index)


def _pairs(config: ContrastiveConfig, tiling: Tiling, *, dev: bool) -> ScenePairs | CaptionPairs:
    data = config.data
    if data.source == SCENES:
        seed, count = config.train.seed + dev, data.dev_count if dev else data.scenes
        if dev:
            return ScenePairs(tiling, count, data.scene_size, seed, "held_out")
        return ScenePairs(tiling, count, data.scene_size, seed, mix=data.mix, captions=data.captions)
    records = data.read(data.dev_split, limit=data.dev_count) if dev else data.read(data.train_split, limit=data.limit)
    augment = None if dev else Augment(flip=data.flip, crop_scale=data.crop_scale)
    return CaptionPairs(
        CaptionImages(records, tiling, on_error=data.on_error, augment=augment),
        captions=1 if dev else data.captions,
    )


def pretrain_image_encoder(config: ContrastiveConfig) -> TrainResult:
    """Train, measure retrieval on held-out pairs, save the encoder; returns what the run did.

    Raises:
        UserError: anything the user can put right.
    """
    tokenizer = read_tokenizer(decoder_path(config.tokenizer), name=config.tokenizer)
    torch.manual_seed(config.train.seed)
    encoder = ImageEncoder(config.encoder)
    if config.encoder.weights is not None:
        load_encoder(encoder, config.encoder.weights)
    text = TextTower(
        vocab_size=len(tokenizer),
        width=config.text_width,
        layers=config.text_layers,
        heads=config.text_heads,
        max_length=config.text_length,
    )
    captioner = Captioner(
        vocab_size=len(tokenizer),
        image_width=encoder.config.width,
        width=config.text_width,
        layers=config.text_layers,
        heads=config.text_heads,
        max_length=config.text_length,
    )
    task = ContrastiveTask(
        encoder,
        text,
        embed_dim=config.embed_dim,
        captioner=captioner if config.caption_weight else None,
        caption_weight=config.caption_weight,
        patch_dropout=config.patch_dropout,
        misread=config.data.misread,
    )
    tiling = Tiling(encoder.tile_size, config.encoder.max_tiles, config.stretch, encoder.pixel_mean, encoder.pixel_std)
    held_out = _pairs(config, tiling, dev=True) if config.data.dev_count else None

    pairs = _pairs(config, tiling, dev=False)
    result = train(
        task=task,
        dataset=pairs,
        collate=lambda pairs: collate_pairs(pairs, tokenizer, length=config.text_length),
        config=config.train,
        run_dir=config.run_dir,
        resume=config.resume,
        evaluate=(
            None if held_out is None else lambda step: measure(task, held_out, tokenizer, length=config.text_length)
        ),
        config_yaml=dump(config),
        order=training_order(config.data, config.train, samples=len(pairs)),
    )
    encoder.positions.stretch_local_()
    save_encoder(encoder, config.run_dir / "encoder")
    return result


def measure(
    task: ContrastiveTask, pairs: ScenePairs | CaptionPairs, tokenizer: AnyTokenizer, *, length: int
) -> dict[str, float]:
    """Recall at 1 and 5 among all of `pairs`, with the first caption drawn for each picture; and, where the task has a
    captioner, `caption_loss`: nats per token of all of them.
    """
    found = [pairs.sample(i, random.Random(i)) for i in range(len(pairs))]
    kept = [pair for pair in found if pair is not None]
    device = task.log_scale.device
    images, texts, nats, tokens = [], [], 0.0, 0
    with torch.no_grad():
        for start in range(0, len(kept), 64):
            batch = collate_pairs(kept[start : start + 64], tokenizer, length=length).to(device)
            pictures, pooled_ID = task.encoder.tokens_and_pool(batch.tiles)
            images.append(task.image_projection(pooled_ID))
            texts.append(task.embed_texts(batch.input_ids, batch.attention_mask))
            if task.captioner is not None:
                mask, index = batch.attention_mask, batch.image_index.tolist()
                count = int(mask.sum())
                nats += count * task.captioner.loss(pictures, batch.input_ids, mask, index).item()
                tokens += count
    recall = retrieval_recall(torch.cat(images), torch.cat(texts), torch.arange(len(kept), device=device))
    return {
        **{f"text_to_image_recall@{k}": value for k, value in recall.text_to_image.items()},
        **{f"image_to_text_recall@{k}": value for k, value in recall.image_to_text.items()},
        **({"caption_loss": nats / tokens} if tokens else {}),
    }
