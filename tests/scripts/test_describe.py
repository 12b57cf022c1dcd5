"""Systems of the paper have the paper's parameters and tokens; descriptions of small ones as people run the script."""

import json
import time
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import yaml
from transformers import MllamaConfig, MllamaForConditionalGeneration

import scripts
from multimodal.errors import UserError
from multimodal.meta_run import META
from multimodal.stage_cost import CARDS, Workload, parameters
from scripts.describe import describe
from scripts.stages import EncoderSize, encoder_sizes
from scripts.systems import SYSTEMS, build, config_file, read_system
from tests.scripts.conftest import Cli
from tests.vision.tiny_mllama import RELEASED_TEXT
from vision.encoder import ImageEncoder
from vision.image_cost import STAGES as IMAGE_STAGES

CONFIGS = Path(scripts.__path__[0]) / "configs"
BILLION, MILLION = 10**9, 10**6


@cache
def encoders(name: str) -> dict[int, EncoderSize]:
    """The image encoder of a system by tile size."""
    return {size.tile_size: size for size in encoder_sizes(read_system(name))}


@cache
def counts(name: str, *flags: str) -> dict[str, int]:
    """Parameters of each part of a system."""
    return {part: parameters([module]) for part, module in build(read_system(name, flags)).modules().items()}


def test_every_system_has_its_configuration() -> None:
    assert {path.stem for path in SYSTEMS.glob("*.yaml")} == {"8b", "70b", "405b", "11b", "90b"}
    assert config_file("70B") == SYSTEMS / "70b.yaml"


@pytest.mark.parametrize(("name", "billions"), [("8b", 8.03), ("70b", 70.55), ("405b", 405.85)])
def test_decoders(name: str, billions: float) -> None:
    assert counts(name)["decoder"] == pytest.approx(billions * BILLION, rel=1e-3)


@pytest.mark.parametrize(("tile_size", "millions"), [(448, 836.3), (560, 863.6)])
def test_image_encoder(tile_size: int, millions: float) -> None:
    assert round(encoders("8b")[tile_size].parameters / MILLION, 1) == millions


@pytest.mark.parametrize("tile_size", [448, 560])
def test_our_own_numerics_leave_out_the_rows_of_padding_and_of_no_picture(tile_size: int) -> None:
    config = read_system("8b").image
    assert config is not None
    sized = replace(config.encoder, tile_size=tile_size)
    with META:
        padded, strict = ImageEncoder(sized), ImageEncoder(replace(sized, numerics="strict"))
    rows, tokens = 9 * 4 - 23, (tile_size // 14) ** 2 + 1
    assert parameters([padded]) - parameters([strict]) == rows * (tokens + 2) * 1280


@pytest.mark.parametrize(("name", "billions", "digits"), [("8b", 1.745, 3), ("70b", 17.1, 1), ("405b", 98.8, 1)])
def test_image_adapter(name: str, billions: float, digits: int) -> None:
    assert round(counts(name)["image cross-attention"] / BILLION, digits) == billions


@pytest.mark.parametrize(("name", "billions"), [("8b", 0.6), ("70b", 4.6)])
def test_video_parts(name: str, billions: float) -> None:
    found = counts(name)["video aggregator"] + counts(name)["video cross-attention"]
    assert found == pytest.approx(billions * BILLION, rel=0.1) and round(found / BILLION, 1) == billions


@pytest.mark.parametrize("name", ["8b", "70b"])
def test_speech_parts(name: str) -> None:
    assert round(counts(name)["speech encoder"] / BILLION, 1) == 1.0
    assert 89.5 * MILLION < counts(name)["speech adapter"] < 102.5 * MILLION
    assert round(counts(name)["BEST-RQ heads"] / MILLION) == 201


def test_the_speech_adapter_grows_with_the_decoder() -> None:
    assert [round(counts(name)["speech adapter"] / MILLION) for name in ("8b", "70b")] == [90, 102]


@pytest.mark.parametrize(("tile_size", "tokens"), [(336, 2308), (448, 4100), (560, 6404)])
def test_tokens_of_a_picture(tile_size: int, tokens: int) -> None:
    assert encoders("8b")[tile_size].tokens == tuple(n * tokens // 4 for n in (1, 2, 3, 4))


@pytest.mark.parametrize("name", RELEASED_TEXT)
@pytest.mark.parametrize("tile_size", [448, 560])
def test_released_systems_have_the_parameters_that_transformers_gives_them(name: str, tile_size: int) -> None:
    config = MllamaConfig(text_config=RELEASED_TEXT[name], vision_config={"image_size": tile_size})
    with META:
        released = parameters([MllamaForConditionalGeneration(config)])
    extra_tokens = 8 * config.text_config.hidden_size  # Graft keeps them beside the decoder, which is counted without
    assert sum(counts(name, "--encoder.tile-size", str(tile_size)).values()) + extra_tokens == released


@pytest.mark.parametrize(
    ("recipe", "parts"),
    [
        ("demo", {"image encoder", "image projector", "image cross-attention"}),
        ("demo_video", {"image encoder", "image cross-attention", "video aggregator", "video cross-attention"}),
        ("demo_asr", {"speech encoder", "speech adapter"}),
        ("grid_speech", {"speech encoder", "speech adapter"}),
    ],
)
def test_training_recipes_are_systems(recipe: str, parts: set[str]) -> None:
    assert counts(str(CONFIGS / f"{recipe}.yaml")).keys() >= parts | {"decoder"}


def test_the_video_demo_is_described_with_the_sizes_of_the_demo_it_builds_on() -> None:
    image, video = (yaml.safe_load((CONFIGS / name).read_text()) for name in ("demo.yaml", "demo_video.yaml"))
    assert video["image"] == f"{image['run-dir']}/adapter"
    assert video["encoder"] == {name: size for name, size in image["encoder"].items() if name != "weights"}
    assert video["image-adapter"] == image["adapter"]


def test_the_largest_system_is_described_in_seconds() -> None:
    started = time.process_time()
    found = describe("405b", Workload(batch=4))
    assert time.process_time() - started < 60
    assert {stage.name for stage in found.stages} == set(IMAGE_STAGES)
    for stage in found.stages:
        assert stage.flops > 1.5e14, "twice 4e11 weights for each of 192 tokens, forwards alone"
        assert stage.least > 4e11 and not any(map(stage.settings_for, CARDS))


# ---- the script ---------------------------------------------------------------------------------------------------

SMALL = {
    "decoder": {"layers": 8, "width": 64, "heads": 4, "kv-heads": 2, "ffn": 128, "vocabulary": 100},
    "encoder": {"tile-size": 28, "patch-size": 14, "width": 32, "layers": 4, "global-layers": 1, "heads": 2},
    "image-adapter": {"cross-layers": 4},
    "video": {"frames": 4, "adapter": {"aggregator": {"group": 4, "latents": 5, "width": 32, "layers": 1, "heads": 2}}},
    "speech-encoder": {"width": 32, "layers": 2, "heads": 2, "ffn": 64},
    "speech-adapter": {"width": 32, "heads": 2, "ffn": 64},
    "best-rq": {"codebooks": 2, "entries": 32},
    "notes": ["a note"],
}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(SMALL))
    return file


def test_tables_and_json_say_the_same(cli: Cli, small: Path, tmp_path: Path) -> None:
    out = tmp_path / "made" / "small.json"
    ended = cli("describe", "--config", small, "--batch", 2, "--seconds=2", "--encoder.heads", 4, "--json", out)
    assert ended.status == 0, ended.err
    values = json.loads(out.read_text())
    assert values["workload"]["batch"] == 2 and values["name"] == "small"
    stages = {stage["name"]: stage for stage in values["stages"]}
    assert {name.split(":")[0] for name in stages} == {
        "image",
        "video",
        "speech",
    } and "speech: encoder, BEST-RQ" in stages
    for part in values["parts"]:
        assert f"{part['parameters']:,}" in ended.out
    for name, stage in stages.items():
        assert name in ended.out and stage["flops_per_sample"] > 0
        assert stage["flops_per_sample_checkpointed"] >= stage["flops_per_sample"]
        totals = [memory["total"] for memory in stage["memory"]]
        assert min(totals) > 0 and all(stage["fits"].values())
    assert "a note" in ended.out and stages["image: use"]["trained"] == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "missing --config"),
        (("--config", "7b"), "expected a YAML file or one of 8b, 11b, 70b, 90b, 405b"),
        (("--config", "8b", "--batch"), "--batch has no value"),
        (("--config", "8b", "--batch", "0"), "--batch is 0"),
        (("--config", "8b", "--encoder.tile-size", "450"), "450 is not a multiple of patch_size 14"),
        (("--config", "8b", "--parts", "video"), "video without image"),
        (("--config", str(CONFIGS / "decoder.yaml")), "settings of none of"),
    ],
)
def test_bad_input_is_one_line(cli: Cli, arguments: tuple[str, ...], message: str) -> None:
    ended = cli("describe", *arguments)
    assert ended.status == 2 and message in ended.err and ended.err.count("\n") == 1


def test_encoders_of_the_hub_are_refused_with_the_reason() -> None:
    with pytest.raises(UserError, match="an encoder of the hub is not described"):
        build(read_system(str(CONFIGS / "demo.yaml"), ["--encoder.name", "google/vit"]))
