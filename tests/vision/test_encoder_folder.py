"""An image encoder as a folder."""

import json
from pathlib import Path

import torch

from vision.encoder import ImageEncoder
from vision.encoder_folder import ENCODER_CONFIG, load_encoder, read_encoder, save_encoder
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
