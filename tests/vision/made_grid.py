"""A small folder in GRID's layout: three clips of noise with six words each, one to train on and two for dev."""

from pathlib import Path

from tests.tiny_models import clip_file

SENTENCES = {
    "a": ("train", "bin blue at f three soon"),
    "b": ("dev", "lay red by l six now"),
    "c": ("dev", "set red in a two now"),
}


def make_grid(folder: Path) -> Path:
    """Writes it; each clip has six frames, of which the last five are words."""
    (folder / "clips").mkdir(parents=True)
    transcripts, times = ["id\tsplit\ttext"], ["id\tword\tstart_s\tend_s"]
    for number, (name, (split, text)) in enumerate(SENTENCES.items()):
        clip_file(folder / "clips" / f"{name}.mp4", frames=6, seed=number)
        transcripts.append(f"{name}\t{split}\t{text}")
        times += [f"{name}\t{word}\t{0.125 * (i + 1)}\t{0.125 * (i + 2)}" for i, word in enumerate(text.split())]
    (folder / "transcripts.tsv").write_text("\n".join(transcripts) + "\n")
    (folder / "word_times.tsv").write_text("\n".join(times) + "\n")
    return folder
