"""Write the card of the model that ships with the package, from what its build measured."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

CARD = Path(__file__).with_suffix(".md")


def write_card(report: Mapping[str, Any], path: Path) -> None:
    """Write the card of a finished build."""
    held = report["held_out"]
    entered = [row for row in report["classes"] if row["enters"]]
    rows = [
        f"| {row['name']} | {row['by']} | {row['clips']} | {row['groups']} | "
        + " | ".join(f"{row[key]:.2f}" for key in ("ap", "ap_all", "threshold"))
        + f" | {row['precision']:.2f} | {row['recall']:.2f} |"
        for row in entered
    ]
    robustness = [
        f"| {title} | {' | '.join(f'{share:.1%}' for share in shares.values())} |"
        for title, shares in held.items()
        if isinstance(shares, dict)
    ]
    missed = [
        f"{r['name']} ({r['ap']:.2f}, {r['clips']})" for r in report["classes"] if not r["enters"]
    ]
    among, over, first = held["as it is"].values()
    text = CARD.read_text(encoding="utf-8").format(
        summary=(
            f"the tagger that ships with eat-audio ({len(entered)} sounds; on ESC-10's fold "
            f"{report['fold']} the right label is first among ESC-10's ten for {among:.1%}, over "
            f"its threshold for {over:.1%}, first of all {len(entered)} for {first:.1%}); "
            "--model eat-base-30ep-as2m takes a larger one, `eat models` lists all"
        ),
        parameters=report["parameters"] / 1e6,
        count=len(entered),
        fold=report["fold"],
        held=held,
        robustness="\n".join(robustness),
        false=held["silence, noise and hum with a label"],
        classes="\n".join(rows),
        missed=", ".join(missed) + " (average precision, recordings)",
        recordings=", ".join(f"{n} of {name}" for name, n in report["recordings"].items()),
        views=f"{report['views']:,}",
        cpu_seconds=report["cpu_seconds"],
        **report["least"],
    )
    path.write_text(text, encoding="utf-8")
