"""The benchmark on its tiniest shapes: its sides compute the same, tricks are taken away, goals are judged."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from multimodal.errors import UserError
from multimodal.model import MultimodalModel
from scripts.benchmarks import flops, image, plain
from scripts.benchmarks.captioning import Job, captioning_batch, captioning_model, optimizer_of
from scripts.benchmarks.case import Agreement, Case, Goal, Pair, Settings, Side
from scripts.benchmarks.memory import peak_above
from scripts.benchmarks.mllama import mllama_loss, mllama_of, picture_inputs, strict_masks
from scripts.benchmarks.page import show, write
from scripts.benchmarks.run import Row, SuiteResult, Verdict, growth, measure, run_suite
from scripts.benchmarks.sizes import SIZES, TINY
from scripts.benchmarks.suites import SUITES
from scripts.benchmarks.timing import Times, alternate, summarise

SETTINGS = Settings(size=TINY, repeats=1, memory=False)
MIXED = Job(batch=6, caption=(2, 6), tiles=(1, 2, 4), text_only=0.5)


def build(suite: str, name: str) -> Pair:
    found = [case for case in SUITES[suite](SETTINGS).cases if case.name == name]
    assert len(found) == 1, [case.name for case in SUITES[suite](SETTINGS).cases]
    return found[0].build()


def agrees(pair: Pair) -> Agreement:
    assert pair.agree is not None
    found = pair.agree()
    assert found.holds, found
    return found


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("size", SIZES)
def test_rows_have_names_of_their_own_and_goals_as_planned(suite: str, size: str) -> None:
    cases = SUITES[suite](replace(SETTINGS, size=SIZES[size])).cases
    assert len({case.name for case in cases}) == len(cases)
    assert all(case.suite == suite and case.peer for case in cases)


# ---- sides that compute the same --------------------------------------------------------------------------------


def test_mllama_has_our_function_with_and_without_pictures() -> None:
    model = captioning_model(SETTINGS, MIXED)
    batch, peer = captioning_batch(model, SETTINGS, MIXED), mllama_of(model)
    parts = picture_inputs(batch)
    assert [len(part["input_ids"]) for part in parts] == [3, 3] and "pixel_values" not in parts[1]
    (ours, count), (theirs, their_count) = model.loss(batch), mllama_loss(peer, parts)
    assert count == their_count
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-5)
    ours.backward()
    theirs.backward()
    mine, other = dict(model.named_parameters(remove_duplicate=False)), dict(peer.named_parameters())
    pairs = {
        "modalities.image.encoder.class_token_D": "model.vision_model.class_embedding",
        "modalities.image.encoder.layers.0.mlp.0.weight": "model.vision_model.transformer.layers.0.mlp.fc1.weight",
        "modalities.image.adapter.projector.bias": "model.multi_modal_projector.bias",
        "modalities.image.adapter.layers.1.ffn.up.weight": "model.language_model.layers.1.mlp.up_proj.weight",
    }
    for name, theirs_name in pairs.items():
        torch.testing.assert_close(mine[name].grad, other[theirs_name].grad, atol=1e-4, rtol=1e-3)
    assert {name for name, p in other.items() if p.grad is None} == {
        name for name, p in other.items() if not p.requires_grad
    }
    shared = {p.data_ptr() for p in model.parameters()}
    assert all((p.data_ptr() in shared) is not p.requires_grad for name, p in other.items() if "embed" not in name)
    with strict_masks(), torch.no_grad():
        strict = peer(**parts[0]).loss
    assert abs(strict - peer(**parts[0]).loss) > 1e-6, "its own masks let real tokens see padded tiles"


def test_every_trick_can_be_taken_away_and_changes_no_result() -> None:
    model = captioning_model(SETTINGS, MIXED)
    batch = captioning_batch(model, SETTINGS, MIXED)
    weights = [p for name, p in model.modalities.named_parameters() if "encoder" not in name]
    expected = model.loss(batch)
    gradients = torch.autograd.grad(expected[0], weights)
    for names in plain.tricks_to_remove(()):
        with plain.without(model, names):
            loss, count = model.loss(batch)
            found = torch.autograd.grad(loss, weights)
        assert count == expected[1]
        torch.testing.assert_close(loss, expected[0], atol=1e-3, rtol=1e-5)
        for a, b in zip(found, gradients, strict=True):
            torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)
    assert torch.equal(model.loss(batch)[0], expected[0]), "nothing stays taken away"
    with pytest.raises(UserError, match="--without magic"):
        plain.tricks_to_remove(("magic",))


def test_what_is_taken_away_is_not_there() -> None:
    model = captioning_model(SETTINGS, MIXED)
    batch = captioning_batch(model, SETTINGS, MIXED)
    optimizer_of(model, MIXED)  # what is not trained is frozen
    needed: list[bool] = []
    encoder: Any = model.modalities["image"].encoder
    model.decoder.lm.model.layers[0].register_forward_hook(lambda _m, _a, out: needed.append(out.requires_grad))
    rows: list[int] = []
    encoder.layers[0].register_forward_hook(lambda _m, args, _o: rows.append(args[0].shape[0] * args[0].shape[1]))
    model.loss(batch)
    tiles, per_tile = sum(batch.media["image"].items.lengths), encoder.tokens_per_tile
    assert not any(needed) and sum(rows) == tiles * per_tile
    rows.clear()
    with plain.without(model, ("free-prefix", "real-tiles")):
        model.loss(batch)
    assert any(needed) and rows == [3 * 4 * per_tile]


@pytest.mark.parametrize(
    ("suite", "name"),
    [
        ("image", "train step, 1 tile, frozen encoder with the feature cache"),
        ("image", "text alone, beside the bare decoder"),
        ("image", "pictures and as much text alone, beside pictures and the bare decoder"),
        ("generate", "generation, batch 8, 4 tiles"),
        ("speech", "conformer, forward and backward, ragged batch, transformers LASR"),
        ("video", "16 frames of a clip of 1 s"),
        ("video", "temporal aggregator, forward and backward, 4 frames"),
    ],
)
def test_sides_agree_before_they_are_timed(suite: str, name: str) -> None:
    pair = build(suite, name)
    agrees(pair)
    for side in (pair.ours, pair.theirs):
        side.step()
        assert side.samples > 0 and side.tokens > 0


@pytest.mark.parametrize(("whose", "expected"), [("nobody", []), ("ours", [True]), ("both", [True, False])])
def test_layers_are_compiled_of_those_who_ask(
    monkeypatch: pytest.MonkeyPatch, whose: Any, expected: list[bool]
) -> None:
    compiled: list[bool] = []
    monkeypatch.setattr(image, "compile_layers", lambda one, _: compiled.append(isinstance(one, MultimodalModel)))
    (case,) = (c for c in SUITES["image"](replace(SETTINGS, compile=whose)).cases if c.name == "train step, 1 tile")
    case.build()
    assert compiled == expected


# ---- measuring ----------------------------------------------------------------------------------------------------


def test_sides_are_timed_in_turn_after_a_step_that_does_not_count() -> None:
    calls: list[str] = []
    pair = Pair(Side(lambda: calls.append("a"), 2, 10), Side(lambda: calls.append("b"), 2, 10), None)
    times = alternate(pair, replace(SETTINGS, repeats=4))
    assert "".join(calls) == "ab" * 5 and len(times.ours) == len(times.theirs) == 4
    calls.clear()
    assert len(alternate(pair, replace(SETTINGS, repeats=9, seconds=1e-9)).ours) == 3, "three pairs in any case"
    assert Times((1.0, 2.0), (4.0, 4.0)).ratios(measure="speed") == [4.0, 2.0]
    assert Times((1.0, 2.0), (4.0, 4.0)).ratios(measure="cost") == [0.25, 0.5]
    found = summarise(Side(lambda: None, 6, 30, 2e12), (1.0, 2.0, 4.0))
    assert (found.seconds, found.spread) == (2.0, 1.5)
    assert (found.samples_per_second, found.tokens_per_second, found.teraflops) == (3.0, 15.0, 1.0)


def test_sides_that_disagree_are_not_timed() -> None:
    steps: list[int] = []
    side = Side(lambda: steps.append(1), 1, 1)
    case = Case(suite="s", name="n", peer="p", build=lambda: Pair(side, side, lambda: Agreement("x", 0.2, 0.1)))
    row = measure(case, SETTINGS)
    assert not row.agrees and row.times is None and not steps and row.verdicts(SETTINGS) == []


def test_a_peak_is_that_of_the_step_alone() -> None:
    kept = torch.ones(10_000_000)
    torch.ones(30_000_000)  # freed before the step

    def step() -> None:
        (kept * 2).sum()

    assert peak_above(step, torch.device("cpu")).above == pytest.approx(40, abs=15)


def test_goals_are_judged_by_the_median_on_their_own_machine() -> None:
    case = Case(
        suite="s",
        name="n",
        peer="p",
        build=lambda: pytest.fail("built"),
        goals=(Goal(2.0, 3.0), Goal(0.4, None, "memory")),
    )
    side = summarise(Side(lambda: None, 1, 1), (1.0,))
    row = Row(case, None, Times((1.0, 1.0, 1.0), (9.0, 2.0, 1.0)), side, side, our_memory=50.0, their_memory=100.0)
    assert [(v.value, v.goal, v.reached) for v in row.verdicts(SETTINGS)] == [(2.0, 2.0, True), (0.5, 0.4, False)]
    assert [v.reached for v in row.verdicts(replace(SETTINGS, device="cuda:0"))] == [False, None]


def test_growth_is_an_exponent() -> None:
    def row(tiles: int, seconds: float) -> Row:
        case = Case(suite="s", name=str(tiles), peer="p", build=lambda: pytest.fail("built"), sweep=("tiles", tiles))
        side = summarise(Side(lambda: None, 1, 1), (seconds,))
        return Row(case, None, Times((seconds,), (1.0,)), side, side, our_memory=seconds**0.5, their_memory=1.0)

    time, memory = growth("s", [row(4, 16.0), row(1, 1.0), row(2, 3.0)])
    assert (time.value, time.reached) == (pytest.approx(2.0), False)
    assert (memory.value, memory.reached) == (pytest.approx(1.0), True)


def test_the_ideal_count_is_that_of_the_products() -> None:
    job = Job(batch=2, caption=(3, 3), tiles=(1, 4))
    model = captioning_model(SETTINGS, job)
    batch = captioning_batch(model, SETTINGS, job)
    encoder: Any = model.modalities["image"].encoder
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        encoder(batch.media["image"].items)
    counted = flops.count_batch(batch, TINY)
    assert counted.pictures == (5, 20) and not counted.blind
    ideal = sum(flops.encoder_forward(TINY.encoder, tokens) for tokens in counted.pictures)
    assert counter.get_total_flops() == ideal
    assert flops.peak_of("NVIDIA H200") == 989e12 and flops.peak_of("potato") is None


def test_results_are_written_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run_suite("video", SETTINGS, only="temporal", report=lambda _: None)
    assert [verdict.what for verdict in result.verdicts] == ["growth of time with frames, exponent"]
    missed = Verdict("video", "a goal", 1.0, 2.0)
    result = SuiteResult(result.suite, result.rows, (*result.verdicts, missed), ())
    show([result], Console(width=300))
    assert "missed" in capsys.readouterr().out
    page = write([result], SETTINGS, tmp_path, began=0.0)
    kept = json.loads((tmp_path / "video.json").read_text())
    assert [row["sweep"] for row in kept["rows"]] == [["frames", 2], ["frames", 4]]
    assert kept["rows"][0]["ratio"] > 0 and kept["rows"][0]["agreement"]["difference"] < 1e-4
    assert "a goal" in page.read_text() and "resampler with einsum" in page.read_text()
    assert (tmp_path / "plots" / "time_of_a_step_against_frames.png").stat().st_size > 1000
