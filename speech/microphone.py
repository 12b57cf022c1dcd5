"""A recording from the microphone, as the bytes of a sound file that any reader of sound takes."""

import io
from collections.abc import Callable

from multimodal.errors import UserError

HINT = "expected a microphone that the system lets programs use"


def record(seconds: float, *, ready: Callable[[], None] = lambda: None) -> bytes:
    """Record from the default microphone at its own sampling rate; returns when the time is over.

    Args:
        ready: called when there is a microphone, right before it listens.

    Returns:
        A WAV file of one channel, float32.

    Raises:
        UserError: the package `sounddevice` is not there, no microphone is, or it cannot be used.
    """
    if seconds <= 0:
        raise UserError(f"a recording of {seconds} s; expected more than 0")
    try:
        import sounddevice  # type: ignore[import-not-found]
    except ImportError:
        raise UserError(
            "a microphone needs the package sounddevice: expected it to be installed (pip install sounddevice)"
        ) from None
    except OSError as error:  # the wheel of Linux comes without PortAudio
        raise UserError(f"sounddevice: {error}; expected PortAudio (Debian's package libportaudio2)") from error
    try:
        rate = int(sounddevice.query_devices(kind="input")["default_samplerate"])
        ready()
        samples_SC = sounddevice.rec(round(seconds * rate), samplerate=rate, channels=1, dtype="float32", blocking=True)
    except (sounddevice.PortAudioError, ValueError) as error:
        raise UserError(f"microphone: {error}; {HINT}") from error
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, samples_SC, rate, format="WAV", subtype="FLOAT")
    return file.getvalue()
