"""Turns about prepared media: those of the conversation, whatever the kind and the number of the media."""

from multimodal.turns import Turns
from tests.tiny_models import ask, picture, tiny_video_model


def test_a_turn_is_that_of_the_conversation() -> None:
    model = tiny_video_model()
    for kind, medium in (("image", picture()), ("video", [picture()])):
        turns = Turns(model, kind=kind)
        for text, answer, media in (("Who?", "A fox.", 1), ("Who?", None, 2), ("Who?", "A dog.", 1), ("Where?", "", 0)):
            expected = model.sample(ask(*[medium] * media, text), answer).turns[0]
            assert turns(text, answer, media=media) == expected
