"""Compiled layers: the same losses and gradients over every shape of batch, and where they are left as they were."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from multimodal.batch import Batch
from multimodal.errors import UserError
from multimodal.layers import SwiGLU
from multimodal.model import MultimodalModel
from multimodal.train.compiled import compile_layers, uncompiled
from multimodal.train.loop import train
from speech.conformer import Conformer, ConformerConfig
from tests.tiny_models import ask, picture, tiny_model, train_config

CPU = torch.device("cpu")


class Counting:
    """A backend that runs graphs as they are, and counts how many it was given and how often they ran."""

    def __init__(self) -> None:
        self.graphs = self.runs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        self.graphs += 1

        def run(*args: Any) -> Any:
            self.runs += 1
            return graph(*args)

        return run


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    torch._dynamo.reset()
    before = torch._dynamo.config.recompile_limit
    yield
    torch._dynamo.config.recompile_limit = before
    torch._dynamo.reset()


def batch(model: MultimodalModel, seed: int) -> Batch:
    """Pictures of one to four tiles, texts of any length, some without a picture."""
    rng = random.Random(seed)
    samples = []
    for number in range(rng.randint(2, 4)):
        question, answer = "say " * rng.randint(1, 6), "a fox " * rng.randint(1, 4)
        size = rng.choice([(16, 16), (32, 16), (32, 32)])
        seen = [picture(*size, seed=number)] if not number or rng.random() < 0.7 else []
        samples.append(model.sample(ask(*seen, question), answer))
    return model.collate(samples)


def gradients(model: MultimodalModel, batch: Batch) -> dict[str, Tensor]:
    model.zero_grad()
    loss, _ = model.loss(batch)
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None} | {"loss": loss}


def test_gradients_stay_over_every_shape_with_few_graphs() -> None:
    model, backend = tiny_model(), Counting()
    model.train()
    batches = [batch(model, seed) for seed in range(12)]
    expected = [gradients(model, one) for one in batches]
    compile_layers(model, CPU, backend=backend)  # type: ignore[arg-type]
    for one, plain in zip(batches, expected, strict=True):
        found = gradients(model, one)
        assert found.keys() == plain.keys()
        for name, gradient in plain.items():
            torch.testing.assert_close(found[name], gradient, atol=1e-4, rtol=1e-4)
    made = backend.graphs
    for one in batches:
        gradients(model, one)
    assert backend.graphs == made < 40 and backend.runs > 24 * made // 10


def test_within_uncompiled_nothing_of_it_runs() -> None:
    model, backend = tiny_model(), Counting()
    compile_layers(model, CPU, backend=backend)  # type: ignore[arg-type]
    sample = model.sample(ask(picture(), "say"))
    with uncompiled():
        model.generate([sample], max_new_tokens=3)
    assert not backend.graphs
    model.decoder.hidden(torch.ones(1, 3, dtype=torch.long))
    assert backend.graphs


def test_every_stack_is_compiled_and_of_hooked_layers_the_children() -> None:
    model = tiny_model()
    encoder: Any = model.modalities["image"].encoder  # type: ignore[union-attr]
    decoder: Any = model.decoder
    compiled = compile_layers(model, CPU, backend="eager")
    adapted = decoder.adapters["image"].layers.children()
    expected = {*encoder.layers, *encoder.global_layers, *adapted}
    expected |= {child for layer in decoder.seam.layers for child in layer.children()}
    assert set(compiled) == expected


def test_layers_of_unlike_lengths_stay_as_they_are() -> None:
    encoder, backend = Conformer(ConformerConfig(width=16, layers=2, heads=2, ffn=32)), Counting()
    compile_layers(encoder, CPU, backend=backend)  # type: ignore[arg-type]
    encoder(torch.randn(2, 40, 80), torch.tensor([40, 12]))
    assert not backend.graphs


class Stack(nn.Module):
    """A task of two layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(SwiGLU(4, 8) for _ in range(2))
        self.was_compiled: list[bool] = []

    def __len__(self) -> int:
        return 8

    def sample(self, index: int, rng: random.Random) -> Tensor:
        return torch.full((4,), float(index + 1))

    def parts(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        return {"layers": list(self.named_parameters())}

    def loss(self, batch: Tensor) -> tuple[Tensor, int]:
        x = batch
        for layer in self.layers:
            self.was_compiled.append(layer._compiled_call_impl is not None)
            x = x + layer(x)
        return (x - 1).square().sum(), len(batch)


def test_a_run_is_compiled_where_it_is_asked_for(tmp_path: Path) -> None:
    tasks = [Stack(), Stack()]
    for task, compiled in zip(tasks, (False, True), strict=True):
        settings = train_config(
            steps=3, batch_size=4, learning_rates={"layers": 0.01}, precision="fp32", compile=compiled
        )
        folder = tmp_path / str(compiled)
        train(task=task, dataset=task, collate=torch.stack, config=settings, run_dir=folder)
        assert task.was_compiled == [compiled] * 2 * 3
        assert all(layer._compiled_call_impl is None for layer in task.layers)  # the model is handed back as it was
    for plain, compiled in zip(*(task.parameters() for task in tasks), strict=True):
        torch.testing.assert_close(compiled, plain, atol=1e-5, rtol=1e-5)


def test_without_a_compiler_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(UserError, match=r"--train\.compile: found no C"):
        compile_layers(Stack(), CPU)
    compile_layers(Stack(), torch.device("cuda"))  # its compiler comes with torch
    monkeypatch.undo()
    monkeypatch.setattr("sysconfig.get_path", lambda name: "/nowhere")
    with pytest.raises(UserError, match=r"/nowhere/Python\.h is not there; expected the headers of Python"):
        compile_layers(Stack(), CPU)
