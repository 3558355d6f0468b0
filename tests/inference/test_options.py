"""The options of commands that decide how fast a model runs."""

import os
import warnings
from typing import Any

import pytest

from eat_audio import cli
from eat_audio.errors import EatError


class Reached(EatError):
    """The function behind a command was called."""


@pytest.mark.parametrize(
    ("words", "function"),
    [
        (["predict", "a.wav", "--model", "m"], "inference.predictor.load"),
        (["embed", "a.wav", "--model", "m", "-o", "x"], "inference.predictor.load"),
        (["detect", "a.wav", "--model", "m", "-o", "x"], "inference.predictor.load"),
        (["evaluate", "m", "--data", "d"], "evaluation.evaluate.evaluate_model"),
        (["probe", "m", "--data", "d"], "evaluation.probe.probe_encoder"),
    ],
)
def test_commands_pass_the_precision_on(
    words: list[str], function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def called(*sources: Any, **options: Any) -> None:
        given.update(options)
        raise Reached

    monkeypatch.setattr(f"eat_audio.{function}", called)
    for precision in ("auto", "bf16"):
        with pytest.raises(Reached):
            cli.app([*words, "--precision", precision], standalone_mode=False)
        assert given["precision"] == precision
    if function.endswith("load"):
        assert given["compile"] is False
        with pytest.raises(Reached):
            cli.app([*words, "--compile"], standalone_mode=False)
        assert given["compile"] is True


def test_compiling_is_not_for_a_cluster() -> None:
    words = ["embed", "a.wav", "-o", "x", "--on", "ray", "--compile"]
    with pytest.raises(EatError, match="--compile: not with --on"):
        cli.app(words, standalone_mode=False)


@pytest.mark.parametrize(("policy", "expected"), [(None, "passive"), ("active", "active")])
def test_threads_do_not_spin_unless_the_user_says_so(
    policy: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", policy or "")
    if policy is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setattr("warnings.showwarning", warnings.showwarning)
    monkeypatch.setattr("sys.argv", ["eat", "--help"])
    with pytest.raises(SystemExit):
        cli.main()
    assert os.environ["OMP_WAIT_POLICY"] == expected
