"""Both stages of captioning on tiny sizes: what is saved, what is refused before it costs time, what is skipped."""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPVisionConfig, CLIPVisionModel

from multimodal.adapter_merge import merge_adapters
from multimodal.config import dump, parse
from multimodal.errors import UserError
from multimodal.model import MultimodalModel
from multimodal.quantization import quantization_of
from tests.tiny_models import ENCODER, LOW_MEMORY, RATES, TILE, ask, picture, tiny_model, tiny_video_model, train_config
from vision.caption_training import (
    AnnealConfig,
    CaptioningConfig,
    DataConfig,
    SelfCriticalConfig,
    ask_pictures,
    build_model,
    train_captioning,
    training_data,
    training_order,
)
from vision.captioning import CaptionSamples, SceneSamples
from vision.image_modality import EncoderOptions
from vision.scenes import SceneMix

ENCODER_PARTS = ("encoder", "late")


@pytest.fixture
def config(tmp_path: Path, decoder_folder: Path, captions_folder: Path) -> CaptioningConfig:
    """Two steps on the four pictures of the train split, without a dev split."""
    return CaptioningConfig(
        run_dir=tmp_path / "run",
        train=train_config(),
        decoder=str(decoder_folder),
        encoder=EncoderOptions(**ENCODER),
        data=DataConfig(source=str(captions_folder), dev_count=0),
    )


def rates(run_dir: Path) -> list[dict[str, float]]:
    records = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    return [record["learning_rate"] for record in records if "learning_rate" in record]


@torch.no_grad()
def logits(model: MultimodalModel, *, size: int = TILE) -> torch.Tensor:
    batch = model.collate([model.sample(ask(picture(2 * size, size), "Who?"), "A fox.")])
    return model.decoder(batch.input_ids, memory=model.eval().memory(batch))


def test_a_run_goes_on_from_an_adapter(config: CaptioningConfig, adapter_folder: Path, tmp_path: Path) -> None:
    before = logits(MultimodalModel.from_pretrained(adapter_folder, device="cpu"))
    start = replace(config, start=adapter_folder, train=replace(config.train, learning_rates=dict.fromkeys(RATES, 0.1)))
    assert torch.equal(logits(build_model(start)), before) and not torch.equal(logits(build_model(config)), before)
    model, _ = train_captioning(start)
    again = MultimodalModel.from_pretrained(config.run_dir / "adapter", device="cpu")
    assert torch.equal(logits(again), logits(model)) and not torch.equal(logits(again), before)
    tiny_video_model(name=str(config.decoder)).save_pretrained(tmp_path / "video")
    with pytest.raises(UserError, match="an adapter for image, video; expected one for images alone"):
        build_model(replace(config, start=tmp_path / "video"))


# ---- stages -------------------------------------------------------------------------------------------------------


def test_both_stages_train_measure_and_save(config: CaptioningConfig) -> None:
    settings = replace(
        config,
        train=replace(config.train, schedule="constant", warmup=0),
        data=replace(config.data, dev_count=2),
        anneal=AnnealConfig(steps=3, tile_size=24, learning_rates=dict.fromkeys(ENCODER_PARTS, 0.0), batch_size=4),
    )
    lines: list[str] = []
    model, result = train_captioning(settings, report=lines.append)
    assert result.steps == 3 and {"cider_d", "cider_d_shuffled", "cider_d_blank", "bleu4"} <= result.metrics.keys()
    assert rates(config.run_dir / "initial") == [pytest.approx(RATES)] * 2
    annealed = {part: rate / 5 for part, rate in RATES.items() if part not in ENCODER_PARTS}
    assert rates(config.run_dir / "anneal") == [pytest.approx(annealed)] * 3

    folder = config.run_dir / "adapter"
    assert len(lines) == 1 and str(folder) in lines[0]
    saved = json.loads((folder / "adapter_config.json").read_text())
    assert saved["recipe"]["anneal"]["tile_size"] == 24 and saved["metrics"] == pytest.approx(result.metrics)
    again = MultimodalModel.from_pretrained(folder, device="cpu")
    assert torch.equal(logits(again, size=24), logits(model, size=24))

    stages = [
        load_file(next((config.run_dir / stage / "checkpoints").glob("step-*")) / "tensors.safetensors")
        for stage in ("initial", "anneal")
    ]
    first, second = ({n: t for n, t in s.items() if n.startswith("model/")} for s in stages)
    assert any("encoder" in name for name in first) and not any("encoder" in name for name in second)
    learnt = [name for name in second if not torch.equal(first[name], second[name])]
    assert len(learnt) > len(second) / 2
    plain = tiny_model(opened=False)
    assert not torch.equal(logits(again, size=24), logits(plain)) and again.decoder.sha256() == plain.decoder.sha256()


@pytest.mark.parametrize(
    ("tile_size", "complaint"),
    [(TILE // 2, f"expected {TILE}, as it is now, or more"), (TILE + 1, "is not a multiple of patch_size")],
)
def test_a_tile_size_to_anneal_at_that_does_not_fit_costs_no_training(
    config: CaptioningConfig, tile_size: int, complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        train_captioning(replace(config, anneal=AnnealConfig(steps=1, tile_size=tile_size)))
    assert not (config.run_dir / "initial").exists()


def test_the_last_stage_learns_from_captions_that_it_draws(config: CaptioningConfig) -> None:
    settings = replace(
        config,
        train=replace(config.train, schedule="constant", warmup=0),
        data=replace(config.data, dev_count=2),
        self_critical=SelfCriticalConfig(steps=2, draws=3, contrast=0.5, learning_rates={"encoder": 0.0}),
    )
    model, result = train_captioning(settings)
    folder = config.run_dir / "self_critical"
    assert result.steps == 2 and "cider_d_blank" in result.metrics
    tenth = {part: rate / 10 for part, rate in RATES.items() if part != "encoder"}
    assert rates(folder) == [pytest.approx(tenth)] * 2
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert all(min(record["reward"], record["reward_of_others"]) >= 0 for record in records if "loss" in record)
    again = MultimodalModel.from_pretrained(config.run_dir / "adapter", device="cpu")
    assert torch.equal(logits(again), logits(model))
    half = replace(settings.self_critical, steps=1)
    first = replace(settings, run_dir=config.run_dir / "again", self_critical=half)
    train_captioning(first)
    resumed, _ = train_captioning(replace(first, self_critical=settings.self_critical, resume=True))
    assert torch.equal(logits(resumed), logits(model))


def test_a_stage_that_makes_nothing_better_ends_with_what_it_began_with(config: CaptioningConfig) -> None:
    harmful = {part: 10.0 for part in RATES}
    kept = AnnealConfig(steps=2, learning_rates=harmful, keep_best="-bleu4_blank")
    whole = replace(config, data=replace(config.data, dev_count=2), anneal=kept)
    model, result = train_captioning(whole)
    first, _ = train_captioning(replace(whole, run_dir=config.run_dir / "first", anneal=AnnealConfig()))
    assert result.metrics["best_step"] == 0 and torch.equal(logits(model), logits(first))


def test_the_last_stage_needs_captions_by_people_and_some_to_compare(config: CaptioningConfig) -> None:
    with pytest.raises(UserError, match=r"--self-critical\.steps 2: built-in scenes have no captions by people"):
        train_captioning(replace(config, data=DataConfig(), self_critical=SelfCriticalConfig(steps=2)))
    with pytest.raises(UserError, match=r"--self-critical\.draws 1: expected 2 or more"):
        SelfCriticalConfig(draws=1)
    with pytest.raises(UserError, match=r"--self-critical\.contrast -1: expected 0 or more"):
        SelfCriticalConfig(contrast=-1)
    wrong = {
        "stage self_critical has learning rates for .*enkoder": {"learning_rates": {"enkoder": 0.0}},
        "stage self_critical keeps the best cider_d of --data.dev-count 0": {"keep_best": "cider_d"},
        r"--self-critical\.contrast 1: 1 pictures in 1 micro-batches; expected two": {"contrast": 1, "batch_size": 1},
    }
    for message, settings in wrong.items():
        with pytest.raises(UserError, match=message):
            train_captioning(replace(config, self_critical=SelfCriticalConfig(steps=2, **settings)))  # type: ignore[arg-type]
    assert not config.run_dir.exists()


def test_runs_of_one_start_point_can_be_averaged_and_others_not(config: CaptioningConfig, tmp_path: Path) -> None:
    def trained(name: str, seed: int, rate: float) -> str:
        settings = replace(config.train, steps=1, seed=seed, learning_rates={**RATES, "adapter": rate})
        train_captioning(replace(config, run_dir=tmp_path / name, train=settings), report=lambda _: None)
        return str(tmp_path / name / "adapter")

    first, second, other = trained("a", 0, 1e-3), trained("b", 0, 1e-2), trained("c", 1, 1e-3)
    said: list[str] = []
    merge_adapters([first, second], tmp_path / "m", report=said.append)
    assert said == [] and "image" in MultimodalModel.from_pretrained(tmp_path / "m", device="cpu").modalities
    with pytest.raises(UserError, match="began with different weights; expected runs of one start point"):
        merge_adapters([first, other], tmp_path / "n")


def test_equal_seeds_train_equal_adapters_and_others_do_not(config: CaptioningConfig, tmp_path: Path) -> None:
    def trained(name: str, seed: int) -> bytes:
        run = replace(config, run_dir=tmp_path / name, train=replace(config.train, steps=1, seed=seed))
        train_captioning(run, report=lambda _: None)
        return (tmp_path / name / "adapter" / "adapter.safetensors").read_bytes()

    first = trained("a", 0)
    assert first == trained("b", 0) and first != trained("c", 1)


def test_an_encoder_of_transformers_trains_and_comes_back(config: CaptioningConfig, tmp_path: Path) -> None:
    shape: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "patch_size": 8}
    torch.manual_seed(0)
    clip = CLIPVisionModel(CLIPVisionConfig(**shape, num_attention_heads=2, image_size=TILE))
    clip.save_pretrained(tmp_path / "clip")
    named = replace(
        config,
        encoder=EncoderOptions(name=str(tmp_path / "clip")),
        train=replace(config.train, learning_rates={**RATES, "gates": 0.5}),
        checkpointing=True,
    )
    model, _ = train_captioning(named, report=lambda _: None)
    start, now = clip.state_dict(), model.modalities["image"].encoder.model.state_dict()  # type: ignore[union-attr]
    moved = [name for name in now if not torch.equal(now[name], next(t for n, t in start.items() if n.endswith(name)))]
    assert len(moved) > len(now) / 2, "the encoder has not learnt"
    again = MultimodalModel.from_pretrained(config.run_dir / "adapter", device="cpu")
    assert torch.equal(logits(again), logits(model))
    assert torch.equal(again.modalities["image"].encoder.model.state_dict()[moved[0]], now[moved[0]])  # type: ignore[union-attr]


@pytest.mark.parametrize("bf16", [False, True])
def test_memory_saving_changes_no_gradient(config: CaptioningConfig, bf16: bool) -> None:
    def gradients(checkpointing: bool) -> list[torch.Tensor]:
        model = build_model(replace(config, checkpointing=checkpointing))
        torch.nn.init.constant_(model.parts()["gates"][0][1], 0.5)
        found = training_data(model, config)
        batch = model.collate([s for i in range(2) if (s := found.sample(i, random.Random(0)))])
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            loss, _ = model.train().loss(batch)
        loss.backward()
        return [p.grad for named in model.parts().values() for _, p in named if p.grad is not None]

    plain, recomputed = gradients(False), gradients(True)
    assert plain and len(plain) == len(recomputed)
    # On a CPU in bf16 the two take other attention kernels, which round otherwise.
    a, b = (torch.cat([grad.flatten() for grad in grads]) for grads in (plain, recomputed))
    assert (a - b).norm() <= (0.05 if bf16 else 1e-5) * a.norm()


def test_everything_that_saves_memory_goes_together(config: CaptioningConfig) -> None:
    frugal = replace(
        config,
        decoder_quantize="int8",
        checkpointing=True,
        train=replace(config.train, **LOW_MEMORY),
        data=replace(config.data, dev_count=2),
    )
    start = {name: p.clone() for name, p in build_model(frugal).modalities.named_parameters()}
    model, _ = train_captioning(frugal, report=lambda _: None)
    now = dict(model.modalities.named_parameters())
    assert all(p.dtype is torch.float32 for p in now.values())
    assert sum(not torch.equal(now[name], p) for name, p in start.items()) > len(start) / 2
    again = MultimodalModel.from_pretrained(config.run_dir / "adapter", device="cpu")
    assert quantization_of(again.decoder.lm) == "int8" and torch.equal(logits(again), logits(model))


# ---- before training ----------------------------------------------------------------------------------------------


def test_a_cache_changes_no_loss_and_is_for_frozen_encoders_alone(config: CaptioningConfig, tmp_path: Path) -> None:
    frozen = replace(config, train=train_config(steps=4, learning_rates=RATES | {"encoder": 0, "late": 0}))
    train_captioning(frozen, report=lambda _: None)
    assert len(list((frozen.run_dir / "features").glob("*/*"))) == 4  # pictures
    again = replace(frozen, run_dir=tmp_path / "again", cache_dir=frozen.run_dir / "features")
    model, _ = train_captioning(again, report=lambda _: None)
    assert losses(frozen.run_dir) == losses(again.run_dir) and model.modalities["image"].kept is None
    off = replace(frozen, run_dir=tmp_path / "off", cache="off")
    train_captioning(off, report=lambda _: None)
    assert losses(off.run_dir) == pytest.approx(losses(again.run_dir), rel=1e-5)
    for part in ENCODER_PARTS:
        rates = RATES | dict.fromkeys(ENCODER_PARTS, 0) | {part: 1e-3}
        trained = replace(frozen, run_dir=tmp_path / part, train=train_config(steps=1, learning_rates=rates))
        train_captioning(trained, report=lambda _: None)
        assert not (trained.run_dir / "features").exists()
    assert not (off.run_dir / "features").exists()


def losses(run_dir: Path) -> list[float]:
    lines = (run_dir / "initial" / "log.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_what_the_dev_split_lacks_is_said_before_training(config: CaptioningConfig, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(config.data.source, tmp_path / "data"))
    dev = replace(config, data=replace(config.data, source=str(folder), dev_count=2))
    lines = (folder / "dev.tsv").read_text().splitlines(keepends=True)
    (folder / "dev.tsv").write_text("".join(lines[:3]))
    with pytest.raises(
        UserError, match=r"readable pictures in split dev: 1; expected at least two.*--data\.dev-count 0"
    ):
        train_captioning(dev)
    name = lines[1].split("\t")[0]
    shutil.copy(folder / "images" / name, folder / "images" / "same.png")
    (folder / "dev.tsv").write_text(f"{lines[0]}{lines[1]}same.png\tanother\n")
    with pytest.raises(UserError, match=r"found 2 samples, 2 with the same media.*--data\.dev-count 0"):
        train_captioning(dev)
    (folder / "dev.tsv").unlink()
    with pytest.raises(UserError, match=r"no table for split 'dev'.*--data\.dev-count 0"):
        train_captioning(dev)
    assert not config.run_dir.exists()


def test_a_used_run_folder_is_refused_without_resume(config: CaptioningConfig) -> None:
    (config.run_dir / "initial" / "checkpoints" / "step-00000002").mkdir(parents=True)
    with pytest.raises(UserError, match="already holds checkpoints: expected --resume"):
        train_captioning(config)


def test_scenes_are_built_as_told(config: CaptioningConfig) -> None:
    model = build_model(config)
    data = DataConfig(scenes=7, scene_size=20, questions=1, misread=0.25)
    made = training_data(model, replace(config, data=data, train=train_config(seed=3)))
    assert isinstance(made, SceneSamples)
    assert (made.count, made.size, made.questions, made.seed, made.misread) == (7, 20, 1, 3, 0.25)


def test_a_share_that_is_read_wrong_is_below_one() -> None:
    for share in (-0.1, 1.0):
        with pytest.raises(UserError, match=r"--data\.misread"):
            DataConfig(misread=share)


def test_scenes_that_begin_with_easier_ones_come_as_they_stand() -> None:
    settings = train_config(batch_size=2)
    assert training_order(DataConfig(), settings, samples=9) is None
    easier = SceneMix(unnamed_first=3)
    assert training_order(DataConfig(source="folder", mix=easier), settings, samples=9) is None
    order = training_order(DataConfig(mix=easier), settings, samples=9)
    assert order is not None and order(1) == [(0, 2), (0, 3)]


def test_pictures_are_read_as_told(config: CaptioningConfig) -> None:
    model = build_model(config)
    settings = replace(config.data, captions=2, flip=True, crop_scale=(0.5, 1.0), on_error="fail")
    made = training_data(model, replace(config, data=settings))
    assert isinstance(made, CaptionSamples) and made.captions == 2 and len(made) == 4
    assert made.images.on_error == "fail" and made.images.augment is not None
    assert made.images.augment.flip and made.images.augment.crop_scale == (0.5, 1.0)


def test_seeds_decide_the_new_adapter(config: CaptioningConfig) -> None:
    def first(seed: int) -> torch.Tensor:
        torch.manual_seed(99 + seed)
        return build_model(replace(config, train=train_config(seed=seed))).parts()["adapter"][0][1]

    assert torch.equal(first(0), first(0)) and not torch.equal(first(0), first(1))


def test_a_split_is_read_up_to_a_number(config: CaptioningConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = build_model(config), config.data
    for limit, expected in ((0, 3), (2, 2), (9, 3)):
        assert len(ask_pictures(model, data.read("test", limit=limit))) == expected
    made = training_data(model, replace(config, data=replace(data, limit=3)))
    assert isinstance(made, CaptionSamples) and len(made) == 3
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(
        "vision.caption_data.read_hub", lambda name, **settings: asked.append({"name": name, **settings})
    )
    hub = replace(data, source="someone/pictures", subset="small")
    hub.read("dev", limit=2)
    hub.read("train", limit=0)
    assert [(one["name"], one["split"], one["subset"], one["limit"]) for one in asked] == [
        ("someone/pictures", "dev", "small", 2),
        ("someone/pictures", "train", "small", None),
    ]


# ---- broken pictures ----------------------------------------------------------------------------------------------


def test_a_broken_picture_is_skipped_and_reported_or_ends_the_run(config: CaptioningConfig, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(config.data.source, tmp_path / "data"))
    (folder / "images" / "2.png").write_bytes((folder / "images" / "2.png").read_bytes()[:60])
    broken = replace(config, data=replace(config.data, source=str(folder)))
    lines: list[str] = []
    _, result = train_captioning(broken, report=lines.append)
    assert result.skipped == 1 and lines[0].startswith("1 samples with broken pictures")
    assert (config.run_dir / "adapter").is_dir()
    failing = replace(broken, run_dir=tmp_path / "fails", data=replace(broken.data, on_error="fail"))
    with pytest.raises(UserError, match=r"2\.png: .*expected"):
        train_captioning(failing)


# ---- configuration ------------------------------------------------------------------------------------------------


def test_a_written_configuration_is_read_back(config: CaptioningConfig, tmp_path: Path) -> None:
    full = replace(
        config,
        encoder=EncoderOptions(**ENCODER, taps=(1, 2)),
        anneal=AnnealConfig(steps=3, learning_rates={"encoder": 1e-4}),
    )
    for written in (config, full, replace(config, decoder_quantize="int8")):
        (tmp_path / "run.yaml").write_text(dump(written))
        assert parse(CaptioningConfig, ["--config", str(tmp_path / "run.yaml")]) == written
    flags = [
        "--run-dir",
        "runs/x",
        "--train.steps",
        "1",
        "--train.batch-size",
        "1",
        "--train.learning-rates",
        "gates",
        "1",
    ]
    for flag in ("--decoder.quantize", "--decoder-quantize"):
        assert parse(CaptioningConfig, [*flags, "--decoder", "builtin", flag, "fp8"]).decoder_quantize == "fp8"
    with pytest.raises(UserError, match="int3"):
        parse(CaptioningConfig, [*flags, "--decoder.quantize", "int3"])
