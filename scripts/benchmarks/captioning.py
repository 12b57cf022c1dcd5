"""The model and the data that the captioning rows run on: random weights with open gates, random pictures and captions.

Captions are short and of mixed length. The picture stands first in its prompt: text before it would see it in
`transformers` (spec A4.7.1), and the two would not compute the same.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, LlamaForCausalLM

from multimodal.batch import Batch, Sample, Turn
from multimodal.decoder import FrozenDecoder
from multimodal.model import MultimodalModel
from multimodal.pretrained import builtin_folder
from multimodal.train.config import TrainConfig
from multimodal.train.optim import build_optimizer, freeze_and_select, scale_and_clip
from multimodal.train.precision import autocast
from scripts.benchmarks.case import Settings
from vision.image_adapter import ImageAdapterConfig
from vision.image_modality import ImageConfig
from vision.tiling import Grid, Tiles

GRIDS: dict[int, Grid] = {1: (1, 1), 2: (1, 2), 4: (2, 2)}
"""A grid of so many tiles."""
FIRST_TOKEN = 3
"""Token ids below are the tokenizer's own marks."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a row trains or generates.

    Attributes:
        batch: samples.
        tiles: of each picture, in turn.
        text_only: share of samples without a picture.
        caption: least and most tokens of a caption.
        layers: of the decoder; 0 = the size's.
        trained: whether the image encoder is trained.
    """

    batch: int
    caption: tuple[int, int]
    tiles: tuple[int, ...] = (1,)
    text_only: float = 0.0
    layers: int = 0
    trained: bool = True


def captioning_model(settings: Settings, job: Job) -> MultimodalModel:
    """A frozen decoder with an image adapter whose gates are open, on the device; always the same for equal settings.

    On a GPU the decoder is kept in bf16 as in training.
    """
    size, device = settings.size, settings.torch_device
    shape = replace(size.decoder, layers=job.layers or size.decoder.layers)
    tokenizer = AutoTokenizer.from_pretrained(builtin_folder("decoder"))
    config = shape.config(
        rms_norm_eps=1e-5,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=None,  # every generation is as long as asked
    )
    torch.manual_seed(settings.seed)
    with torch.device(device):
        lm = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16 if settings.on_gpu else torch.float32)
        model = MultimodalModel(FrozenDecoder(lm), tokenizer, decoder_name="benchmark")
        adapter = ImageAdapterConfig(cross_layers=size.cross_layers)
        model.add("image", ImageConfig(encoder=size.encoder, adapter=adapter))
    _open_gates(model.modalities)
    return model.train()


@torch.no_grad()
def _open_gates(module: nn.Module) -> None:
    for parameter in module.parameters():
        if parameter.numel() == 1:
            parameter.fill_(0.5)


def captioning_batch(model: MultimodalModel, settings: Settings, job: Job) -> Batch:
    """A batch to train on, on the device. Samples with and without a picture alternate as far as the share allows."""
    rng, size = random.Random(settings.seed), settings.size
    samples = []
    for number in range(job.batch):
        blind = int((number + 1) * job.text_only) > int(number * job.text_only)
        answer = _tokens(rng, rng.randint(*job.caption), settings)
        prompt = _tokens(rng, size.prompt - 1, settings)
        samples.append(_sample(settings, prompt, answer, 0 if blind else job.tiles[number % len(job.tiles)], number))
    return model.collate(samples).to(settings.torch_device)


def prompts(settings: Settings, job: Job) -> list[Sample]:
    """Samples without an answer, prompts of mixed length, each with a picture."""
    rng = random.Random(settings.seed)
    lengths = [settings.size.prompt + (number % 3) for number in range(job.batch)]
    return [
        _sample(settings, _tokens(rng, length - 1, settings), [], job.tiles[number % len(job.tiles)], number)
        for number, length in enumerate(lengths)
    ]


def _picture(settings: Settings, tiles: int, seed: int) -> Tiles:
    """A picture of noise."""
    generator = torch.Generator().manual_seed(seed)
    side = settings.size.encoder.tile_size
    return Tiles(torch.randn(tiles, 3, side, side, generator=generator), GRIDS[tiles])


def _sample(settings: Settings, prompt: list[int], answer: list[int], tiles: int, seed: int) -> Sample:
    if not tiles:
        return Sample({}, (Turn([FIRST_TOKEN, *prompt], answer, {}),))
    placeholder = settings.size.decoder.vocabulary
    return Sample(
        {"image": (_picture(settings, tiles, seed),)}, (Turn([placeholder, *prompt], answer, {"image": (0,)}),)
    )


def _tokens(rng: random.Random, count: int, settings: Settings) -> list[int]:
    return [rng.randrange(FIRST_TOKEN, settings.size.decoder.vocabulary) for _ in range(count)]


def real_tokens(batch: Batch) -> int:
    """Text tokens of a batch that are no padding."""
    return int(batch.attention_mask.sum())


def parts_to_train(job: Job) -> dict[str, float]:
    """A learning rate for each part; tiny, so that weights stay comparable over many steps."""
    encoder = 1e-6 if job.trained else 0.0
    return {"adapter": 1e-6, "gates": 1e-6, "encoder": encoder, "late": encoder, "tokens": 0.0}


LossOf = Callable[[], tuple[Tensor, int]]


def optimizer_of(model: MultimodalModel, job: Job) -> torch.optim.Optimizer:
    """The training engine's own, over what the job trains."""
    config = TrainConfig(steps=1, batch_size=1, learning_rates=parts_to_train(job))
    return build_optimizer(model, freeze_and_select(model, config.learning_rates), config)


def training_step(loss: LossOf, optimizer: torch.optim.Optimizer, settings: Settings) -> Callable[[], float]:
    """One optimizer step, for whichever side: gradient of the mean over tokens, clipped, AdamW; the loss as a number,
    as every loop logs it."""

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with autocast(settings.torch_device, settings.precision):
            total, count = loss()
        total.float().backward()
        scale_and_clip(optimizer, weight=count, clip_norm=1.0)
        optimizer.step()
        return float(total.detach()) / count

    return step
