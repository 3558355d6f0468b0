"""Silent, ended and lost processes are distinguished, and end the others."""

import pytest

from eat_audio.training import distributed


class Stopped(BaseException):
    """Instead of the end of this process."""


class FakeStore(dict[str, bytes]):
    """A store of one process, that another one writes to no more."""

    def set(self, key: str, value: str) -> None:
        self[key] = value.encode()

    def check(self, keys: list[str]) -> bool:
        return all(key in self for key in keys)

    def multi_get(self, keys: list[str]) -> list[bytes]:
        return [self[key] for key in keys]


def watched(monkeypatch: pytest.MonkeyPatch, sign: str, ranks: list[int]) -> str:
    """Let a main process see the same sign of all other ranks for ever; return how that ends."""

    def end(code: int) -> None:
        assert code == 2
        raise Stopped

    def sleep(seconds: float) -> None:
        beats.append(seconds)
        if len(beats) > 50:
            raise Stopped("nobody was given up")

    beats: list[float] = []
    monkeypatch.setattr(distributed.os, "_exit", end)
    monkeypatch.setattr(distributed.time, "sleep", sleep)
    pulse = distributed._Pulse()
    pulse.store = FakeStore({f"{pulse.key}/{rank}": sign.encode() for rank in ranks})
    with pytest.raises(Stopped) as stopped:
        pulse._watch(0, ranks)
    assert sum(beats) < 60
    monkeypatch.undo()
    return str(stopped.value)


def test_a_silent_process_is_named_within_a_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert watched(monkeypatch, "7 process 99 on node2", [1, 2]) == ""
    assert capsys.readouterr().err == (
        "eat: rank 1 (process 99 on node2) has shown no sign of life for 40 s; rank 0 ends; "
        "--resume goes on from the last checkpoint\n"
    )


def test_a_process_that_has_ended_on_purpose_is_not_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(distributed, "PULSE", 1.0)
    assert watched(monkeypatch, distributed.ENDED, [1]) == "nobody was given up"


def test_no_sign_of_life_follows_that_of_an_ended_process() -> None:
    pulse = distributed._Pulse()
    pulse.store = FakeStore()
    pulse.end()
    pulse._watch(0, [1])
    assert pulse.store == {f"{pulse.key}/0": distributed.ENDED.encode()}
