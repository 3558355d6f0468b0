"""`eat convert`: a released file becomes a folder of ours, and that a released file again."""

import errno
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import golden_sets
from eat_audio import cli
from eat_audio.checkpoints import hub
from eat_audio.checkpoints.load import load_model, load_model_and_features
from eat_audio.models import save
from eat_audio.models.audiomae.modeling import AudioMAEConfig, AudioMAEForAudioClassification
from eat_audio.models.beats.modeling import BEATsConfig, BEATsForAudioClassification
from eat_audio.models.common.feature_extraction import (
    AudioMAEFeatureExtractor,
    BEATsFeatureExtractor,
    EATFeatureExtractor,
)
from eat_audio.models.eat.modeling import EATConfig, EATForAudioClassification
from eat_audio.writing import Sink


@pytest.fixture
def convert(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def convert(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["eat", "convert", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        err = re.sub(r"^next: .*\n\Z", "", said.err, flags=re.M)  # test_cli is about the next step
        return ended.value.code, said.out, err

    return convert


@pytest.fixture
def released() -> Path:
    """A pre-training checkpoint of the released trainer."""
    return golden_sets("fp16_pretrain.pt")[0]


def same(one: Path, other: Path) -> bool:
    mine, theirs = load_model(one).state_dict(), load_model(other).state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[n], theirs[n]) for n in mine)


def unknown(out: Path) -> str:
    where = "see where the weights were released"
    return f"{out}: the licence of these weights is unknown; {where}\n"


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("README.md", "---\nlanguage: en\nlicense: cc-by-nc-4.0\n---\n# EAT", "cc-by-nc-4.0"),
        ("README.md", "---\nlicense: other\nlicense_name: 'mine \x1b'\n---\n", "mine \\x1b"),
        ("README.md", "license: mit", hub.UNKNOWN),
        ("config.json", '{"license": "cc-by-nc-sa-4.0"}', "cc-by-nc-sa-4.0"),
        ("config.json", '{"license": 3}', hub.UNKNOWN),
        ("run.json", "{}", None),
    ],
)
def test_the_licence_is_what_lies_beside_the_weights(
    name: str, text: str, expected: str | None, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert hub.licence_of(tmp_path) == expected


def test_the_licence_is_shown_when_weights_are_converted(
    convert: Any, released: Path, tmp_path: Path
) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n", encoding="utf-8")
    shutil.copy(released, tmp_path / "a.pt")
    _, _, err = convert(tmp_path / "a.pt", tmp_path / "out")
    assert err == f"{tmp_path / 'out'}: the licence of these weights is cc-by-nc-4.0\n"


def test_a_released_file_becomes_a_folder(convert: Any, released: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "eat"
    output = f"{out}: EATModel, 41 tensors\n"
    assert convert(released, out) == (0, output, unknown(out))
    files = {path.name for path in out.iterdir()}
    assert files == {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert same(out, released)


@pytest.mark.parametrize("layout", ["released", "fairseq", "released-hf"])
def test_a_model_is_written_as_its_authors_have_it(
    layout: str, convert: Any, released: Path, tmp_path: Path
) -> None:
    code, _, err = convert(released, tmp_path / "out", "--to", layout)
    assert (code, err) == (0, unknown(tmp_path / "out"))
    assert (tmp_path / "out").is_dir() == (layout == "released-hf")
    assert same(tmp_path / "out", released)


def test_the_teacher_is_taken_on_request(convert: Any, released: Path, tmp_path: Path) -> None:
    convert(released, tmp_path / "student")
    assert convert(released, tmp_path / "teacher", "--weights", "teacher")[0] == 0
    assert convert(released, tmp_path / "before", "--teacher")[0] == 0, "as in version 1"
    assert not same(tmp_path / "student", tmp_path / "teacher")
    assert same(tmp_path / "before", tmp_path / "teacher")
    code, _, err = convert(tmp_path / "student", tmp_path / "again", "--weights", "teacher")
    assert code == 2 and "student: holds no teacher; only checkpoints of EAT's" in err


def test_a_beats_file_hears_with_the_statistics_of_beats(convert: Any, tmp_path: Path) -> None:
    config = BEATsConfig.named(
        "tiny", encoder_layers=1, encoder_embed_dim=32, encoder_attention_heads=2, embed_dim=16
    )
    model = BEATsForAudioClassification(config)
    save(model, BEATsFeatureExtractor(), tmp_path / "ours")
    assert convert(tmp_path / "ours", tmp_path / "beats.pt", "--to", "released")[0] == 0
    assert {"cfg", "model"} <= torch.load(tmp_path / "beats.pt", weights_only=True).keys()
    features = load_model_and_features(tmp_path / "beats.pt")[1]
    assert type(features) is BEATsFeatureExtractor
    assert features.mean == BEATsFeatureExtractor().mean and same(
        tmp_path / "ours", tmp_path / "beats.pt"
    )
    code, _, err = convert(tmp_path / "ours", tmp_path / "hf", "--to", "released-hf")
    assert code == 2 and "of BEATs no Hugging Face folder was released" in err


def test_what_is_lost_is_said(convert: Any, tmp_path: Path) -> None:
    config = EATConfig(embed_dim=16, depth=1, num_heads=2, id2label={0: "cat", 1: "dog"})
    save(EATForAudioClassification(config), EATFeatureExtractor(), tmp_path / "ours")
    code, _, err = convert(tmp_path / "ours", tmp_path / "a.pt", "--to", "released")
    assert code == 0
    out = tmp_path / "a.pt"
    assert err == f"{out}: this layout has no place for the names of its labels\n{unknown(out)}"


def test_nothing_is_overwritten_and_no_layout_made_up(
    convert: Any, released: Path, tmp_path: Path
) -> None:
    code, _, err = convert(released, tmp_path)
    assert code == 2 and err == f"eat: {tmp_path}: exists already; expected a new name\n"
    code, _, err = convert(released, tmp_path / "a", "--to", "onnx")
    assert code == 2
    assert err == "eat: --to onnx: expected one of eat-audio, released, released-hf\n"


@pytest.mark.parametrize("final_norm", [False, True])
def test_an_audiomae_classifier_with_and_without_a_last_norm_comes_back(
    final_norm: bool, convert: Any, tmp_path: Path
) -> None:
    config = AudioMAEConfig(embed_dim=16, depth=1, num_heads=2, final_norm=final_norm, num_labels=3)
    save(AudioMAEForAudioClassification(config), AudioMAEFeatureExtractor(), tmp_path / "ours")
    assert convert(tmp_path / "ours", tmp_path / "a.pt", "--to", "released")[0] == 0
    assert same(tmp_path / "ours", tmp_path / "a.pt")


@pytest.mark.parametrize("layout", ["eat-audio", "released", "released-hf"])
def test_others_may_read_what_is_written_if_the_umask_says_so(
    layout: str, convert: Any, released: Path, tmp_path: Path
) -> None:
    before = os.umask(0o022)
    try:
        assert convert(released, tmp_path / "out", "--to", layout)[0] == 0
    finally:
        os.umask(before)
    files = [*(tmp_path / "out").iterdir()] if (tmp_path / "out").is_dir() else [tmp_path / "out"]
    assert {file.stat().st_mode & 0o777 for file in files} == {0o644}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("layout", ["eat-audio", "released", "released-hf"])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    layout: str,
    convert: Any,
    released: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("eat_audio.checkpoints.convert.save", full)
    monkeypatch.setattr("eat_audio.checkpoints.convert.write_tensors", full)
    monkeypatch.setattr(Sink, "__exit__", lambda sink, *_: (sink._file.close(), full()))
    code, _, err = convert(released, tmp_path / "out", "--to", layout)
    assert (code, err) == (
        2,
        f"eat: {tmp_path / 'out'}: cannot be written (No space left on device)\n",
    )
    assert list(tmp_path.iterdir()) == []


def test_a_sink_keeps_the_first_error_until_it_is_left(tmp_path: Path) -> None:
    """Torch ends the process, or speaks of positions, where its writing fails."""

    class Full:
        def write(self, _: bytes) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def close(self) -> None:
            pass

    with pytest.raises(OSError, match="No space left"), Sink(tmp_path / "a.pt") as file:
        file._file.close()
        file._file = Full()  # type: ignore[assignment]
        torch.save({"a": torch.ones(3)}, file)  # type: ignore[arg-type]
    with Sink(tmp_path / "a.pt") as file:
        torch.save({"a": torch.ones(3)}, file)  # type: ignore[arg-type]
    assert torch.load(tmp_path / "a.pt", weights_only=True)["a"].tolist() == [1, 1, 1]
