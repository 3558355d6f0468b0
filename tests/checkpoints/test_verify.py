"""`eat verify` distinguishes the weights that gave published outputs from others."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import eat
from eat_audio.checkpoints import verify
from eat_audio.checkpoints.convert import write
from eat_audio.models.common.feature_extraction import EATFeatureExtractor
from eat_audio.models.eat.modeling import EATConfig, EATForAudioClassification, EATModel

SHAPE: dict[str, Any] = {"embed_dim": 768, "depth": 1, "num_heads": 12, "num_labels": 3}
SSLAM = verify.RECORDS[1]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier with made weights, as the authors' code writes it."""
    torch.manual_seed(0)
    model = EATForAudioClassification(EATConfig(**SHAPE))
    path = tmp_path_factory.mktemp("checkpoint") / "released.pt"
    write(model, EATFeatureExtractor(), path, layout="released")
    return path


@pytest.fixture
def published(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Records with the output of the made weights in place of SSLAM's."""
    folder = tmp_path / "outputs"
    shutil.copytree(verify.FOLDER, folder)
    model = verify.load_model(checkpoint, EATModel)
    features = EATFeatureExtractor(mean=-4.268, std=4.569, released_padding=True)
    recording = verify.load_audio(folder / verify.RECORDING).numpy()
    inputs = features(recording, padding="max_length", max_length=1024)
    with torch.no_grad():
        patches = model(**inputs).last_hidden_state[0, 1:]
    assert patches.shape == (512, 768)
    np.save(folder / SSLAM.file, patches[:: verify.STEP].numpy())
    monkeypatch.setattr(verify, "FOLDER", folder)
    return folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    return lambda *words: eat(monkeypatch, capsys, "verify", *words)


def test_the_weights_that_gave_an_output_agree_with_it(
    run: Any, published: Path, checkpoint: Path
) -> None:
    code, out, _ = run(checkpoint)
    lines = [line.split("\t") for line in out.splitlines()]
    assert code == 0 and lines[1][0] == SSLAM.model and lines[1][3] == "yes"
    assert float(lines[1][1]) < 1e-5 and lines[2][3] == "no"


def test_other_weights_do_not(run: Any, published: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = EATModel(EATConfig(**SHAPE))
    write(model, EATFeatureExtractor(), tmp_path / "other", layout="eat-audio")
    code, _, err = run(tmp_path / "other")
    assert code == 2 and "gives no published output; the nearest is" in err


def test_a_slight_change_of_one_layer_is_noticed(
    run: Any, published: Path, checkpoint: Path, tmp_path: Path
) -> None:
    model = verify.load_model(checkpoint)
    with torch.no_grad():
        model.model.blocks[0].mlp.fc2.weight.mul_(1.1)
    write(model, EATFeatureExtractor(), tmp_path / "changed", layout="eat-audio")
    assert run(tmp_path / "changed")[0] == 2


def test_a_model_without_published_outputs_gets_one_sentence(run: Any, tmp_path: Path) -> None:
    model = EATModel(EATConfig(**SHAPE | {"embed_dim": 96}))
    write(model, EATFeatureExtractor(), tmp_path / "narrow", layout="eat-audio")
    code, _, err = run(tmp_path / "narrow")
    assert code == 2 and "is eat of width 96; outputs were published of" in err


def test_the_published_rows_are_those_of_the_authors() -> None:
    rows = {record.file: np.load(verify.FOLDER / record.file) for record in verify.RECORDS}
    eat_rows, sslam_rows = rows["eat_base_30ep_as2m.npy"], rows["sslam.npy"]
    assert eat_rows.shape == (65, 768) and sslam_rows.shape == (64, 768)
    assert eat_rows[0, :3] == pytest.approx([-0.085356, 0.214788, -0.131539], abs=1e-6)
    assert eat_rows[-1, :2] == pytest.approx([-0.196078, -0.001391], abs=1e-6)
    assert sslam_rows[0, :2] == pytest.approx([-0.346537, -0.160365], abs=1e-6)
    assert len(verify.load_audio(verify.FOLDER / verify.RECORDING)) == 160_000
