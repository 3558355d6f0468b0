"""Commands start without what they do not need, and give what the whole of transformers gives.

Modules are counted, not seconds, as machines differ; `python -m benchmarks.commands --only start`
measures the seconds.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import eat_audio as eat
from eat_audio.models import model_types, save

HEAVY = {
    *("transformers.modeling_utils", "transformers.generation.utils", "torch._dynamo", "sympy"),
    *("torch.distributed.tensor", "scipy", "sklearn", "pandas", "pyarrow", "matplotlib", "av"),
}
"""What no command that runs a model on a WAV file needs; each costs 0.1 to 4 s of a processor."""
PROGRAM = """
import sys
sys.argv = ["eat", *sys.argv[1:]]
from eat_audio.cli import main
try:
    main()
finally:
    print("\\n" + " ".join(sys.modules), file=sys.stderr)
"""
EXAMPLES = Path(eat.__file__).parent / "weights" / "examples"


def run(*words: str) -> tuple[str, set[str]]:
    """Run `eat WORDS` in a process of its own; return its output and the modules it imported."""
    command = [sys.executable, "-c", PROGRAM, *words]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return done.stdout, set(done.stderr.splitlines()[-1].split())


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An example of the shipped model as a WAV file."""
    import soundfile

    samples, rate = soundfile.read(sorted(EXAMPLES.iterdir())[0])
    path = tmp_path_factory.mktemp("recording") / "one.wav"
    soundfile.write(path, samples, rate)
    return path


def test_help_imports_neither_torch_nor_numpy() -> None:
    _, modules = run("--help")
    assert not modules & {"torch", "numpy", "transformers", "importlib.metadata", "rich.console"}
    assert len(modules) < 400  # 234 with Python 3.11


def test_predict_imports_only_what_it_needs_and_gives_the_same_scores(recording: Path) -> None:
    output, modules = run("predict", str(recording), "--json", "--top-k", "14")
    assert not modules & HEAVY
    scores = {one["label"]: one["score"] for one in json.loads(output)["predictions"]}
    expected = {one.label: one.score for one in eat.load().predict(recording, top_k=14)}
    assert list(scores) == list(expected)
    assert scores == pytest.approx(expected, abs=1e-6)


def test_models_of_every_method_compute_the_same_as_plain_modules(tmp_path: Path) -> None:
    program = (
        "import sys; sys.argv[0] = 'eat'\n"
        "import numpy as np, torch\n"
        "from eat_audio.models import use_plain_modules\n"
        "use_plain_modules()\n"
        "from eat_audio.inference.predictor import load\n"
        "for place in sys.argv[1:]:\n"
        "    predictor = load(place, precision='fp32')\n"
        "    np.save(place + '.npy', predictor.embed(np.sin(np.arange(9_000))).patches)\n"
        "assert 'transformers.modeling_utils' not in sys.modules\n"
    )
    waveform = np.sin(np.arange(9_000))
    places = []
    for name, spec in model_types().items():
        torch.manual_seed(0)
        config = spec.config.named("tiny", depth=2).for_labels("ab", several=True, pooling="mean")
        save(spec.classifier(config), spec.feature_extractor(), tmp_path / name)
        places.append(str(tmp_path / name))
    done = subprocess.run(
        [sys.executable, "-c", program, *places], capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    for place in places:
        expected = eat.load(place, precision="fp32").embed(waveform).patches
        np.testing.assert_allclose(np.load(place + ".npy"), expected, atol=1e-5)
