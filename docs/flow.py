"""Draws docs/flow.png, the picture of the flow in the README: ``python docs/flow.py``."""

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

INK, SOFT = "#1f2933", "#52606d"
COLORS = {"data": "#e4e7eb", "compute": "#d9e8ff", "store": "#d8f3dc", "read": "#fff3c4", "record": "#fde2e2"}

# name: (x, y, width, title, detail, color)
BOXES = {
    "table": (0.2, 4.0, 2.3, "behavior table", "your columns,\nmapped by a contract", "data"),
    "clean": (3.1, 4.0, 2.3, "clean behaviors", "validate, deduplicate,\nclean; each row counted", "compute"),
    "history": (6.0, 4.0, 2.3, "histories", "last L behaviors\nas of a time, ragged", "compute"),
    "encode": (8.9, 4.0, 2.3, "encoder", "one space =\ndigest of its weights", "compute"),
    "quarantine": (3.1, 2.3, 2.3, "quarantine", "bad rows,\neach with its reason", "record"),
    "policy": (8.9, 2.3, 2.3, "policy", "new = α · old +\n(1 − α) · extracted", "compute"),
    "staged": (6.0, 2.3, 2.3, "staged tick", "created once;\na retry applies it", "record"),
    "redis": (4.2, 0.5, 3.0, "Redis: fills + manifest", "rows guarded by tick,\none SET is the cutover", "store"),
    "log": (8.2, 0.5, 3.0, "embedding log + ledger", "what reads returned,\nand since when", "store"),
    "online": (4.2, -1.2, 3.0, "get_online_features", "one generation\nper answer", "read"),
    "offline": (8.2, -1.2, 3.0, "get_historical_features", "the same bits,\nas of any time", "read"),
}
ARROWS = [
    ("table", "clean"),
    ("clean", "history"),
    ("history", "encode"),
    ("clean", "quarantine"),
    ("encode", "policy"),
    ("policy", "staged"),
    ("staged", "redis"),
    ("staged", "log"),
    ("redis", "online"),
    ("log", "offline"),
]
HEIGHT = 1.15


def center(name: str) -> tuple[float, float]:
    """Middle of a box."""
    x, y, width, *_ = BOXES[name]
    return x + width / 2, y + HEIGHT / 2


def main() -> None:
    """Draw the picture."""
    figure, axes = plt.subplots(figsize=(11.6, 6.6))
    axes.set_xlim(0, 11.5)
    axes.set_ylim(-1.5, 5.5)
    axes.axis("off")
    patches = {}
    for name, (x, y, width, title, detail, color) in BOXES.items():
        box = FancyBboxPatch(
            (x, y), width, HEIGHT, boxstyle="round,pad=0.02,rounding_size=0.12", fc=COLORS[color], ec=SOFT, lw=1
        )
        axes.add_patch(box)
        patches[name] = box
        axes.text(x + width / 2, y + 0.9, title, ha="center", va="center", color=INK, fontsize=11, weight="bold")
        axes.text(x + width / 2, y + 0.4, detail, ha="center", va="center", color=SOFT, fontsize=9.5)
    for start, end in ARROWS:
        axes.add_patch(
            FancyArrowPatch(
                center(start),
                center(end),
                patchA=patches[start],
                patchB=patches[end],
                arrowstyle="-|>",
                mutation_scale=14,
                color=INK,
                lw=1.3,
                shrinkA=2,
                shrinkB=2,
            )
        )
    figure.savefig(Path(__file__).with_name("flow.png"), dpi=110, bbox_inches="tight", facecolor="white")


if __name__ == "__main__":
    main()
