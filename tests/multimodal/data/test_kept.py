"""Values are made once as long as there is room, and what could not be made is not kept."""

import pytest

from multimodal.data.kept import Kept


def test_a_value_is_made_once_while_there_is_room() -> None:
    kept: Kept[bytes] = Kept(megabytes=100 / 1e6, size=len)
    made: list[str] = []

    def make(key: str, length: int) -> bytes:
        made.append(key)
        return bytes(length)

    for _ in range(3):
        for key, length in {"a": 60, "too large": 41, "b": 40, "c": 1}.items():
            assert kept.get(key, lambda key=key, length=length: make(key, length)) == bytes(length)
    assert made == ["a", "too large", "b", "c"] + 2 * ["too large", "c"]


def test_what_could_not_be_made_is_made_again() -> None:
    kept: Kept[bytes] = Kept(megabytes=1, size=len)
    with pytest.raises(ZeroDivisionError):
        kept.get("a", lambda: bytes(1 // 0))
    assert kept.get("a", lambda: b"x") == b"x"
