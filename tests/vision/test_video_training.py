"""Both stages of video training on tiny sizes: what learns, what stays, what is saved, and resuming to the bit."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from multimodal.config import dump, parse
from multimodal.errors import UserError
from multimodal.hashing import weights_sha256
from multimodal.model import MultimodalModel
from multimodal.quantization import quantization_of
from tests.tiny_models import ENCODER, LOW_MEMORY, VIDEO, ask, clip_file, tiny_model, train_config
from tests.vision.made_grid import make_grid
from vision.clip_data import ClipDataConfig
from vision.image_modality import EncoderOptions
from vision.video_training import (
    SimpleConfig,
    VideoPretrainConfig,
    VideoQAConfig,
    build_video_model,
    train_video_qa,
)

RATES = {
    "aggregator": 1e-2,
    "video": 1e-2,
    "video_gates": 0.1,
    "adapter": 0.0,
    "gates": 0.0,
    "encoder": 0.0,
    "late": 0.0,
    "tokens": 0.0,
}


@pytest.fixture
def config(tmp_path: Path, decoder_folder: Path) -> VideoQAConfig:
    """Two steps on four built-in clips, without a dev split."""
    return VideoQAConfig(
        run_dir=tmp_path / "run",
        train=train_config(learning_rates=RATES),
        decoder=str(decoder_folder),
        encoder=EncoderOptions(**ENCODER),
        video=VIDEO,
        data=ClipDataConfig(clips=4, clip_size=16, clip_frames=8, dev_count=0, questions=2, clip_folder=tmp_path / "c"),
    )


def weights(run_dir: Path) -> bytes:
    return (run_dir / "adapter" / "adapter.safetensors").read_bytes()


def losses(run_dir: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run_dir / "log.jsonl").read_text().splitlines()]


def test_numbers_that_cannot_be_are_refused_before_training() -> None:
    for number in ("clips", "words"):
        with pytest.raises(UserError, match=f"--simple.{number} 0"):
            SimpleConfig(**{number: 0})  # type: ignore[arg-type]


def test_a_dev_split_without_a_shuffled_control_is_refused_before_training(config: VideoQAConfig) -> None:
    """Of two clips one is asked three questions and the other one: most have the same clip."""
    folder = config.run_dir.parent / "mine"
    folder.mkdir()
    lines = ["video\tquestion\tanswer\tsplit"]
    for number, questions in enumerate((3, 1)):
        clip_file(folder / f"{number}.mp4", seed=number)
        lines += [f"{number}.mp4\tWhat {i}?\tyes\t{split}" for i in range(questions) for split in ("train", "dev")]
    (folder / "questions.tsv").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=r"split dev: shuffled control: found 4 samples, 3 with the same media"):
        train_video_qa(replace(config, data=replace(config.data, source=str(folder), dev_count=4)))
    assert not (config.run_dir / "answer").exists()


def test_keeping_the_best_of_what_is_not_evaluated_is_refused_before_training(config: VideoQAConfig) -> None:
    simple = replace(config, simple=SimpleConfig(steps=1, clips=2))
    for wrong, flag in (
        (replace(simple, train=replace(config.train, keep_best="accuracy")), "train"),
        (replace(simple, simple=SimpleConfig(steps=1, clips=2, keep_best="accuracy")), "simple"),
        (replace(simple, pretrain=VideoPretrainConfig(steps=1, keep_best="accuracy")), "pretrain"),
    ):
        with pytest.raises(UserError, match=f"--{flag}.keep-best accuracy: nothing is evaluated there"):
            train_video_qa(wrong)
    assert not (config.run_dir / "simple").exists()


def test_both_stages_train_the_video_parts_alone(config: VideoQAConfig) -> None:
    full = replace(
        config,
        pretrain=VideoPretrainConfig(steps=3, frames=4, group=4, batch_size=4),
        data=replace(config.data, dev_count=4, choice=0.5),
    )
    before = build_video_model(full)
    lines: list[str] = []
    model, result = train_video_qa(full, report=lines.append)
    statistics = model.modalities["video"].adapter.aggregator.norm_in  # type: ignore[union-attr]
    assert statistics.mean_C.abs().max() > 0 and not torch.equal(
        statistics.deviation_C, torch.ones_like(statistics.mean_C)
    )
    assert len(losses(config.run_dir / "pretrain")) == 3 and result.steps == 2
    controls = ("", "_shuffled", "_blank", "_middle_frame", "_reversed")
    assert {f"{name}{c}" for name in ("accuracy", "choice_accuracy") for c in controls} <= result.metrics.keys()
    assert model.decoder.sha256() == before.decoder.sha256()
    assert weights_sha256(model.modalities["image"]) == weights_sha256(before.modalities["image"])
    pairs = zip(before.modalities["video"].parameters(), model.modalities["video"].parameters(), strict=True)
    assert sum(not torch.equal(a, b) for a, b in pairs) > 10
    assert "adapter saved" in lines[-1] and "feature cache" in lines[0]
    again = MultimodalModel.from_pretrained(config.run_dir / "adapter", device="cpu")
    clip = next((config.run_dir.parent / "c").glob("*.mp4"))
    assert again.chat(ask(clip, "Who?"), max_new_tokens=8) == model.eval().chat(ask(clip, "Who?"), max_new_tokens=8)
    assert again.modalities["video"].config.frames == VIDEO.frames  # type: ignore[union-attr]
    kept = again.modalities["video"].adapter.aggregator.norm_in  # type: ignore[union-attr]
    assert torch.equal(kept.mean_C, statistics.mean_C) and torch.equal(kept.deviation_C, statistics.deviation_C)


def test_a_cache_changes_no_loss_and_resuming_is_exact(config: VideoQAConfig, tmp_path: Path) -> None:
    long = replace(config, train=replace(config.train, steps=6))
    train_video_qa(long, report=lambda _: None)
    uncached = replace(long, run_dir=tmp_path / "uncached", cache="off")
    train_video_qa(uncached, report=lambda _: None)
    assert losses(long.run_dir / "answer") == losses(uncached.run_dir / "answer")
    assert weights(long.run_dir) == weights(uncached.run_dir)
    assert not (tmp_path / "uncached" / "features").exists()

    stopped = replace(long, run_dir=tmp_path / "stopped", train=replace(long.train, save_every=3))
    train_video_qa(stopped, report=lambda _: None)
    for folder in (tmp_path / "stopped" / "answer" / "checkpoints").glob("step-*6"):
        folder.rename(tmp_path / "later")
    log = tmp_path / "stopped" / "answer" / "log.jsonl"
    log.write_text("".join(line + "\n" for line in log.read_text().splitlines()[:3]))
    train_video_qa(replace(stopped, resume=True), report=lambda _: None)
    assert losses(tmp_path / "stopped" / "answer") == losses(long.run_dir / "answer")
    assert weights(tmp_path / "stopped") == weights(long.run_dir)


def test_it_builds_on_an_image_adapter(config: VideoQAConfig, adapter_folder: Path) -> None:
    model = build_video_model(replace(config, image=adapter_folder))
    assert weights_sha256(model.modalities["image"]) == weights_sha256(tiny_model().modalities["image"])
    train_video_qa(replace(config, image=adapter_folder), report=lambda _: None)
    with pytest.raises(UserError, match="adapter for image, video; expected one for images, without video"):
        build_video_model(replace(config, image=config.run_dir / "adapter"))


def test_it_may_begin_as_the_image_adapter(config: VideoQAConfig, adapter_folder: Path) -> None:
    aggregator = replace(VIDEO.adapter.aggregator, start="frames")
    adapter = replace(VIDEO.adapter, aggregator=aggregator, every=1)
    begun = replace(config, image=adapter_folder, begin="image", video=replace(VIDEO, adapter=adapter))
    model = build_video_model(begun)
    image, layers = tiny_model().modalities["image"].adapter, model.modalities["video"].adapter.layers  # type: ignore[union-attr]
    assert weights_sha256(layers) == weights_sha256(image.layers)  # type: ignore[arg-type]
    train_video_qa(begun, report=lambda _: None)
    again = MultimodalModel.from_pretrained(begun.run_dir / "adapter", device="cpu")
    assert weights_sha256(again.modalities["video"].adapter.layers) != weights_sha256(layers)  # type: ignore[arg-type, union-attr]
    with pytest.raises(UserError, match="--begin image without --image"):
        build_video_model(replace(begun, image=None))
    with pytest.raises(UserError, match="video layers of other sizes than the image adapter's"):
        build_video_model(replace(begun, video=replace(VIDEO, adapter=replace(adapter, ffn=24))))


def test_the_image_layers_read_clips_if_the_config_says_so(config: VideoQAConfig, adapter_folder: Path) -> None:
    """With the same seed and data, the choice alone makes the difference, and the adapter keeps it."""
    closed = replace(config, image=adapter_folder)
    shown = replace(closed, run_dir=config.run_dir / "shown", video=replace(VIDEO, to_image_layers=True))
    for one in (closed, shown):
        train_video_qa(one, report=lambda _: None)
    assert losses(shown.run_dir / "answer")[0] != losses(closed.run_dir / "answer")[0]
    for one in (closed, shown):
        again = MultimodalModel.from_pretrained(one.run_dir / "adapter", device="cpu")
        assert again.modalities["video"].config.to_image_layers == (one is shown)  # type: ignore[union-attr]
    with pytest.raises(UserError, match="--image: the image layers of a new adapter"):
        build_video_model(replace(shown, image=None))


def test_it_trains_on_a_quantized_decoder_with_little_memory(config: VideoQAConfig, adapter_folder: Path) -> None:
    frugal = replace(config, decoder_quantize="int8", train=replace(config.train, **LOW_MEMORY), checkpointing=True)
    model, _ = train_video_qa(frugal, report=lambda _: None)
    again = MultimodalModel.from_pretrained(config.run_dir / "adapter", device="cpu")
    assert quantization_of(again.decoder.lm) == "int8" and again.decoder.sha256() == model.decoder.sha256()
    with pytest.raises(UserError, match=r"--decoder\.quantize int8: .* is for a decoder with quantization none"):
        build_video_model(replace(frugal, image=adapter_folder))


def test_broken_clips_are_skipped_and_reported(config: VideoQAConfig, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for i in range(3):
        clip_file(folder / f"{i}.mp4", seed=i)
    (folder / "1.mp4").write_bytes((folder / "1.mp4").read_bytes()[:200])
    rows = [f"{i}.mp4\tWho?\ta fox\tsubject" for i in range(3)]
    (folder / "train.tsv").write_text("\n".join(["video\tquestion\tanswer\tkind", *rows]) + "\n")
    own = replace(config, data=replace(config.data, source=str(folder)))
    lines: list[str] = []
    _, result = train_video_qa(own, report=lines.append)
    assert result.skipped >= 1 and "broken clips were skipped" in lines[0]
    with pytest.raises(UserError, match=r"1\.mp4"):
        train_video_qa(replace(own, run_dir=tmp_path / "fails", data=replace(own.data, on_error="fail")))
    with pytest.raises(UserError, match="no question of the kinds colour"):
        train_video_qa(replace(own, run_dir=tmp_path / "x", data=replace(own.data, kinds=("colour",))))


def test_simple_clips_come_before_all_others(config: VideoQAConfig, tmp_path: Path) -> None:
    parts = replace(config.data, source=str(make_grid(tmp_path / "grid")))
    for name, data in (("rendered", config.data), ("grid", parts)):
        simple = SimpleConfig(steps=3, clips=7, words=1, batch_size=4)
        short = replace(config, run_dir=tmp_path / name, data=data, simple=simple)
        _, result = train_video_qa(short)
        assert len(losses(short.run_dir / "simple")) == 3 and result.steps == 2
        with pytest.raises(UserError, match=r"encoder 0\.1: expected 0"):
            train_video_qa(replace(short, simple=replace(simple, learning_rates={**RATES, "encoder": 0.1})))


def test_what_cannot_be_meant_is_one_line(config: VideoQAConfig) -> None:
    moving = replace(config.train, learning_rates={**RATES, "encoder": 1e-4})
    with pytest.raises(UserError, match=r"encoder 0\.0001: expected 0; video training leaves the image parts"):
        train_video_qa(replace(config, train=moving))
    with pytest.raises(UserError, match="kind 'colour'; expected some of direction"):
        train_video_qa(replace(config, data=replace(config.data, kinds=("colour",))))


def test_a_written_configuration_is_read_back(config: VideoQAConfig, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(dump(config))
    assert parse(VideoQAConfig, ["--config", str(tmp_path / "run.yaml")]) == config
