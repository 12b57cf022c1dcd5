"""An image encoder as a folder."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from multimodal.errors import UserError
from vision.encoder import ImageEncoder
from vision.encoder_folder import ENCODER_CONFIG, ENCODER_FILE, load_encoder, read_encoder, save_encoder
from vision.image_modality import EncoderOptions

SIZES = {"tile_size": 16, "patch_size": 8, "width": 16, "layers": 3, "global_layers": 1, "heads": 2, "taps": (1, 3)}


def test_what_is_written_is_read_in_bf16_and_says_its_sizes_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = ImageEncoder(EncoderOptions(**SIZES, weights=Path("somewhere")))  # type: ignore[arg-type]
    save_encoder(encoder, tmp_path / "encoder")
    found = json.loads((tmp_path / "encoder" / ENCODER_CONFIG).read_text())
    assert found["taps"] == [1, 3] and found["width"] == 16 and not {"weights", "name"} & set(found)
    read = read_encoder(tmp_path / "encoder")
    again = ImageEncoder(EncoderOptions(**SIZES))  # type: ignore[arg-type]
    load_encoder(again, tmp_path / "encoder")
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(read.state_dict()[name], tensor.to(torch.bfloat16).float())
        assert torch.equal(again.state_dict()[name], tensor.to(torch.bfloat16).float())


def test_a_full_disk_is_one_line_and_leaves_the_older_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = ImageEncoder(EncoderOptions(**SIZES))  # type: ignore[arg-type]
    save_encoder(encoder, tmp_path)
    before = (tmp_path / ENCODER_FILE).read_bytes()

    def full(tensors: object, file: Path) -> None:
        file.write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("vision.encoder_folder.save_file", full)
    with pytest.raises(UserError, match=r"cannot write .*encoder\.safetensors: I/O error: No space left"):
        save_encoder(encoder, tmp_path)
    assert (tmp_path / ENCODER_FILE).read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([ENCODER_FILE, ENCODER_CONFIG])
