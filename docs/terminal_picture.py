"""Draws docs/terminal.png: commands as typed, with their real output.

pip install -e '.[plot]' && python docs/terminal_picture.py
"""

import subprocess
import textwrap
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COMMANDS = [
    'pymixtral generate -p "Once upon a time" -n 60 --seed 2',
    "pymixtral quantize tests/data/tiny-mixtral tiny.gguf --type q4_k_m --force",
]
COLUMNS = 100
TYPED, SHOWN, NOTED = "#9ece6a", "#c0caf5", "#7a88b8"


def main() -> None:
    root = Path(__file__).resolve().parent.parent
    lines: list[tuple[str, str]] = []
    for command in COMMANDS:
        done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True, cwd=root)
        lines.append((f"$ {command}", TYPED))
        for text, color in ((done.stdout, SHOWN), (done.stderr, NOTED)):
            for line in text.strip("\n").splitlines():
                shown = line.split("\r")[-1]  # the last state of a progress bar
                lines += [(part, color) for part in textwrap.wrap(shown, COLUMNS, drop_whitespace=False) or [""]]
        lines.append(("", SHOWN))
    lines.pop()
    (root / "tiny.gguf").unlink()
    width, height = 0.083 * COLUMNS + 0.4, 0.19 * len(lines) + 0.3
    figure = plt.figure(figsize=(width, height), facecolor="#1a1b26")
    for i, (text, color) in enumerate(lines):
        y = 1 - (0.15 + 0.19 * (i + 0.8)) / height
        figure.text(0.2 / width, y, text.replace("$", r"\$"), color=color, family="DejaVu Sans Mono", fontsize=9.5)
    figure.savefig(root / "docs" / "terminal.png", dpi=110, facecolor=figure.get_facecolor())


if __name__ == "__main__":
    main()
