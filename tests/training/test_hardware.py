"""The precision, the device and the threads that a machine runs models fast with."""

from typing import Any

import pytest
import torch
from torch import nn

from eat_audio.errors import EatError
from eat_audio.training.hardware import (
    NATIVE_ON_CPU,
    compile_forward,
    divide_threads,
    has_bfloat16,
    prepare_inference,
    resolve_precision,
)
from eat_audio.training.loop import Training

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def pretend(monkeypatch: pytest.MonkeyPatch, *native: str) -> None:
    """Let torch report these instructions of the CPU, and no others."""
    for name in NATIVE_ON_CPU:
        monkeypatch.setattr(torch.cpu, name, lambda name=name: name in native, raising=False)


@pytest.mark.parametrize("native", NATIVE_ON_CPU)
def test_auto_is_bfloat16_on_a_cpu_that_has_either_kind_of_instruction(
    native: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, native)
    assert has_bfloat16(CPU) and resolve_precision("auto", CPU) == "bf16"
    assert prepare_inference(nn.Linear(2, 2), device="cpu").weight.dtype == torch.bfloat16


def test_auto_is_float32_on_a_cpu_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    assert not has_bfloat16(CPU) and resolve_precision("auto", CPU) == "fp32"
    assert prepare_inference(nn.Linear(2, 2), device="cpu").weight.dtype == torch.float32


def test_auto_is_float32_where_torch_cannot_say(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NATIVE_ON_CPU:
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert not has_bfloat16(CPU)


@pytest.mark.parametrize("native", [True, False])
def test_auto_is_bfloat16_on_a_gpu_only_if_it_is_not_emulated(
    native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return including_emulation or native

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    expected = "bf16" if native else "fp32"
    assert resolve_precision("auto", GPU) == expected
    assert Training().resolved_precision(GPU) == expected


def test_a_named_precision_is_taken_whatever_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    assert resolve_precision("bf16", CPU) == "bf16"
    pretend(monkeypatch, *NATIVE_ON_CPU)
    assert resolve_precision("fp32", CPU) == "fp32"


def test_training_on_a_cpu_is_in_float32_unless_it_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, *NATIVE_ON_CPU)
    assert Training().resolved_precision(CPU) == "fp32"
    assert Training(precision="bf16").resolved_precision(CPU) == "bf16"


@pytest.mark.parametrize("name", ["fp16", "", "BF16", "x" * 1_000])
def test_an_unknown_precision_is_named_in_a_short_sentence(name: str) -> None:
    with pytest.raises(EatError, match="expected auto, fp32 or bf16") as error:
        resolve_precision(name, CPU)
    assert len(str(error.value)) < 120


def test_narrow_models_run_on_one_thread_for_each_of_several_recordings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert (divide_threads(768), chosen) == (1, [])
    assert (divide_threads(192), chosen) == (4, [1])


class Doubling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


def test_a_method_is_compiled_with_frozen_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    options = []

    def compiled(function: Any, **more: Any) -> Any:
        options.append(more)
        return lambda x: function(x) + 1

    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    model = Doubling()
    compile_forward(model, "encode")
    assert options == [{"options": {"freezing": True}}]
    assert model.encode(torch.tensor(3.0)).item() == 7


def test_compiling_without_a_compiler_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(EatError, match=r"no C\+\+ compiler no-such-compiler is found"):
        compile_forward(Doubling(), "encode")


@pytest.mark.slow
def test_a_compiled_method_returns_the_same() -> None:
    model = nn.Linear(8, 8).eval()
    x = torch.randn(3, 8)
    with torch.inference_mode():
        expected = model(x)
        compile_forward(model, "forward")
        torch.testing.assert_close(model(x), expected)
