"""TensorBoard itself reads what was written, without the steps that a resume repeats."""

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from multimodal.train.event_file import EventFile


def write(folder: Path, first: int, last: int, value: float) -> None:
    events = EventFile(folder, first_step=first)
    for step in range(first, last + 1):
        events.scalars({"loss": value, "part/rate": 2.0}, step)
    events.close()


def test_tensorboard_reads_a_resumed_run(tmp_path: Path) -> None:
    write(tmp_path, 1, 5, 1.0)
    write(tmp_path, 4, 6, 0.5)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"loss", "part/rate"}
    read = [(event.step, event.value) for event in events.Scalars("loss")]
    assert read == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 0.5), (5, 0.5), (6, 0.5)]
