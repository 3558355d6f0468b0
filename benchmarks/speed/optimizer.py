"""How fast the weights move: AdamW and the teacher's average, against loops over parameters."""

import math
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks.speed.baseline import Adam, follow
from benchmarks.speed.measure import Case
from eat_audio.models.common.feature_extraction import EATFeatureExtractor
from eat_audio.models.eat.modeling import EATConfig
from eat_audio.pretraining.eat import EATMethod, EATPretraining
from eat_audio.training.optim import Optim, adamw, parameter_groups, set_rates

STEPS = 10**9
"""So many that the rate stays at its peak meanwhile."""
WITHIN = 1e-3
"""Of the way that weights go; a teacher goes 2e-4 of their size, which float32 tells to 6e-8."""


def optimizer(size: str, device: str) -> Iterator[Case]:
    """A step of AdamW, one of the teacher, and both, over the weights of EAT pre-training."""
    weights = _Weights(size, device)
    million = sum(p.numel() for p in weights.parameters) / 1e6
    parts = (
        (("AdamW",), None),
        (("EMA",), None),
        (("AdamW", "EMA"), 3.0),
    )
    for names, target in parts:
        yield Case(
            name=f"{' + '.join(names)}, {million:.1f} M weights",
            ours=partial(weights.ours, names),
            plain=partial(weights.plain, names),
            clips=1,
            difference=partial(weights.difference, names),
            within=WITHIN,
            target=target,
            settings={"dtype": "float32", "million_weights": round(million, 1)},
        )


class _Weights:
    """The same weights, moments and gradients twice."""

    def __init__(self, size: str, device: str) -> None:
        settings = Optim(decay_all=True)  # as the plain way does
        config = EATConfig.named(size)
        with torch.device(device):
            self.objective = EATPretraining(
                config, EATMethod(), EATFeatureExtractor(), frames=1_024
            )
        named = [(n, p) for n, p in self.objective.named_parameters() if p.requires_grad]
        self.parameters: list[Tensor] = [parameter for _, parameter in named]
        with torch.no_grad():
            for weight in self.objective.parameters():  # a teacher far from its student
                weight.normal_(0, 0.02)
            for learnt in self.parameters:
                learnt.grad = torch.randn_like(learnt)
        self.settings = settings
        self.step = 0
        self.optimizer = adamw(parameter_groups(named, settings, layers=self.objective), settings)
        self.copies = _copied(self.parameters)
        for copy, learnt in zip(self.copies, self.parameters, strict=True):
            copy.grad = learnt.grad
        self.adam = Adam(self.copies, lr=settings.lr, weight_decay=settings.weight_decay)
        student = {id(p) for p in self.objective.student.model.parameters()}
        self.student = [
            copy for copy, p in zip(self.copies, self.parameters, strict=True) if id(p) in student
        ]
        teacher = zip(
            self.objective.teacher.parameters(),
            self.objective.student.model.parameters(),
            strict=True,
        )
        self.teacher: list[Tensor] = [old for old, new in teacher if new.requires_grad]
        self.teacher_copy = _copied(self.teacher)

    def ours(self, names: tuple[str, ...]) -> None:
        """A step, as training takes it."""
        if "AdamW" in names:
            set_rates(self.optimizer, self.settings, self.step, STEPS)
            self.optimizer.step()
            self.step += 1
        if "EMA" in names:
            self.objective.after_step(0)

    def plain(self, names: tuple[str, ...]) -> None:
        """The same step on the copies."""
        if "AdamW" in names:
            self.adam.step()
        if "EMA" in names:
            follow(self.teacher_copy, self.student, self.objective.method.tau.decay(0))

    def difference(self, names: tuple[str, ...]) -> float:
        """How far apart both ways take the weights, as a share of the way that they go."""
        self._meet()
        ours, plain = self.parameters + self.teacher, self.copies + self.teacher_copy
        before = _copied(ours)
        self.ours(names)
        self.plain(names)
        apart, way = (
            sum((a.detach() - b.detach()).double().square().sum().item() for a, b in pairs)
            for pairs in (zip(ours, plain, strict=True), zip(plain, before, strict=True))
        )
        return math.sqrt(apart / way) if way else math.inf

    @torch.no_grad()
    def _meet(self) -> None:
        """Make both ways go on from the same place."""
        torch._foreach_copy_(self.copies, self.parameters)
        torch._foreach_copy_(self.teacher_copy, self.teacher)
        self.adam.steps = self.step
        for parameter, (mean, square) in zip(self.parameters, self.adam.moments, strict=True):
            if state := self.optimizer.state.get(parameter):
                mean.copy_(state["exp_avg"])
                square.copy_(state["exp_avg_sq"])


def _copied(weights: Sequence[Tensor]) -> list[Tensor]:
    return [weight.detach().clone() for weight in weights]
