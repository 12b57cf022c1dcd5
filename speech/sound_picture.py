"""A recording to look at and to listen to: its waveform above its log-mel features, and the sound as FLAC.

Legend: S samples, T frames, C mel channels.
"""

import io

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from multimodal.report import Media, audio_media, image_media
from speech.features import LogMel

WAVE_HEIGHT, MEL_SCALE, WIDTH = 80, 2, 480
_INK, _PAPER = (42, 92, 170), (250, 250, 252)


def sound_picture(waveform_S: Tensor, log_mel: LogMel) -> Image.Image:
    """Waveform (the loudest moment fills its height) above mel channels (low ones below, brighter is louder)."""
    from matplotlib import colormaps

    lengths = torch.tensor([len(waveform_S)])
    device = log_mel.mean_C.device
    features_TC = log_mel(waveform_S[None].to(device), lengths.to(device))[0][0].cpu()
    low, high = features_TC.quantile(0.02), features_TC.quantile(0.995)
    level_CT = ((features_TC - low) / (high - low).clamp(min=1e-6)).clamp(0, 1).T.flip(0)
    coloured = (colormaps["magma"](level_CT.numpy())[..., :3] * 255).astype(np.uint8)
    mel = Image.fromarray(coloured).resize((WIDTH, MEL_SCALE * level_CT.shape[0]), Image.Resampling.BILINEAR)
    picture = Image.new("RGB", (WIDTH, WAVE_HEIGHT + mel.height), _PAPER)
    picture.paste(mel, (0, WAVE_HEIGHT))
    draw, loudest = ImageDraw.Draw(picture), float(waveform_S.abs().max().clamp(min=1e-6))
    for x, part in enumerate(torch.tensor_split(waveform_S, WIDTH)):
        if len(part):
            top, bottom = (WAVE_HEIGHT / 2 * (1 - 0.95 * float(v) / loudest) for v in (part.max(), part.min()))
            draw.line((x, top, x, bottom), fill=_INK)
    return picture


def sound_media(waveform_S: Tensor, log_mel: LogMel, label: str = "") -> tuple[Media, Media]:
    """The picture and the sound for a report."""
    import soundfile

    buffer = io.BytesIO()
    samples = waveform_S.clamp(-1, 1).numpy()
    soundfile.write(buffer, samples, log_mel.config.rate, format="FLAC", subtype="PCM_16")
    return image_media(sound_picture(waveform_S, log_mel), label), audio_media(
        buffer.getvalue(), label, mime="audio/flac"
    )
