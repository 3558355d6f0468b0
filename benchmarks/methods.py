"""What the page about methods draws and counts: masks of the three methods, the cost of a clip.

    python -m benchmarks.methods          (nothing is trained or measured)

Both are computed by the package itself and stand between marks in the page.
"""

import re
from pathlib import Path

import torch

from eat_audio import config as recipe
from eat_audio.pretraining.flops import REST, pretraining
from eat_audio.pretraining.run import schema
from eat_audio.rng import clip_keys

PAGE = Path(__file__).parent.parent / "docs" / "methods" / "index.md"
DRAWN = {"EAT": ("eat_base", 64), "Audio-MAE": ("audiomae_base", 64), "BEATs": ("beats_iter1", 62)}
"""Recipes whose masks are drawn, and columns of their grids: those of a clip of 10 seconds."""
COUNTED = {
    "EAT": ("eat_base",),
    "SSLAM": ("sslam_base",),
    "BAT": ("bat_base",),
    "Audio-MAE": ("audiomae_base",),
    "BEATs, iteration 1": ("beats_iter1",),
    "BEATs, later": ("beats_iter2", "tokenizer=RUN"),
    "BEATs' tokenizer": ("beats_tokenizer_iter2",),
}
PARTS = {
    "patches: log-mel to tokens, once for all masks": (REST,),
    "encoder: what is kept, over the visible patches": ("student",),
    "targets, of the whole clip: teacher or tokenizer": ("teacher", "tokenizer"),
    "quantizer: tokens to codes, in a tokenizer that is trained": ("projection", "codebook"),
    "decoder, over the whole grid: decoder, predictor or estimator": (
        *("decoder", "predictor", "estimator"),
    ),
}
"""Rows of the table, and the modules of objectives that are in them."""
SECONDS = 10.0


def picture() -> str:
    """One mask of each method: # is seen, everything else is not; low frequencies at the bottom."""
    lines = []
    for title, (name, columns) in DRAWN.items():
        settings = recipe.load(schema, name)
        masks = settings.sample_masks(clip_keys(0, 0, torch.tensor([1]), 1), (columns, 8), None)
        seen = (~masks.hidden[0, 0]).view(columns, 8).T.flip(0)  # (rows, columns), high ones first
        lines += ["", f"{title}: {int(seen.sum())} of {seen.numel()} patches"]
        lines += ["".join("#" if here else "." for here in row) for row in seen.tolist()]
    return "\n".join(["```text", *lines[1:], "```"]) + "\n"


def table() -> str:
    """GFLOP of one clip in one step, part by part."""
    costs = {}
    for title, (name, *changes) in COUNTED.items():
        costs[title] = pretraining(recipe.load(schema, name, changes), seconds=SECONDS)
    lines = [f"| GFLOP | {' | '.join(costs)} |", f"|{' --- |' * (len(costs) + 1)}"]
    for title, modules in PARTS.items():
        counts = [sum(cost.forward.get(name, 0) for name in modules) for cost in costs.values()]
        cells = [f"{count / 1e9:,.2f}" if count else "" for count in counts]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    totals = [f"{cost.total / 1e9:,.1f}" for cost in costs.values()]
    forward = [f"{sum(cost.forward.values()) / 1e9:,.1f}" for cost in costs.values()]
    lines.append(f"| forward | {' | '.join(forward)} |")
    lines.append(f"| **forward and backward** | {' | '.join(f'**{total}**' for total in totals)} |")
    return "\n".join(lines) + "\n"


def filled(text: str) -> str:
    """The page with what stands between its marks computed anew."""
    for name, made in (("picture", picture()), ("table", table())):
        mark = f"<!-- benchmarks.methods: {name} -->\n"
        pattern = re.escape(mark) + r".*?<!-- end -->"
        text, times = re.subn(pattern, lambda _: f"{mark}\n{made}\n<!-- end -->", text, flags=re.S)  # noqa: B023
        assert times == 1, f"{PAGE.name} has no place for the {name}"
    return text


def main() -> None:
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
