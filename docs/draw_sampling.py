"""Draws docs/sampling.png: what each setting of drawing does, with the small generator.

python docs/draw_sampling.py
"""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from transformers import pipeline

import transformers_tokenflow  # noqa: F401  (registers the task)
from transformers_tokenflow.scoring import OpenClipScorer

ROOT = Path(__file__).resolve().parents[1]
MODEL, TEACHER = ROOT / "hub_cards" / "tokenflow-tiny-text-to-image", ROOT / "hub_cards" / "tokenflow-tiny-teacher"
PROMPT, COLUMNS, TILE, LABEL = "a red apple", 8, 96, 230


def rows(painter: Any) -> dict[str, dict[str, Any]]:
    """Settings by the label of their row."""
    given = painter(PROMPT, seed=0)
    left_half = np.arange(64)[None, :].repeat(64, axis=0) < 32
    return {
        "defaults: one pass, guidance 1.5": {},
        "guidance_scale=0": {"guidance_scale": 0.0},
        "guidance_scale=7.5": {"guidance_scale": 7.5},
        "guidance_scale=15": {"guidance_scale": 15.0},
        'guidance_schedule="constant"': {"guidance_schedule": "constant"},
        "two passes: top_k=[1200, 1]": {"top_k": [1200, 1], "top_p": [0.8, 0.0]},
        "three passes: top_k=[1200, 100, 1]": {"top_k": [1200, 100, 1], "top_p": [0.8, 0.8, 0.0]},
        "no filter: top_k=0, top_p=0": {"top_k": [0], "top_p": [0.0]},
        "temperature=0.5": {"temperature": 0.5},
        "keep_scales=3 of the first picture": {"image": given, "keep_scales": 3},
        "mask: left half of it drawn anew": {"image": given, "mask": left_half},
        "best_of=4": {"best_of": 4, "scorer": OpenClipScorer(f"local-dir:{TEACHER}")},
    }


def main() -> None:
    """Draw a row of seeds per setting."""
    painter = pipeline("text-to-image", model=str(MODEL))
    settings = rows(painter)
    sheet = Image.new("RGB", (LABEL + COLUMNS * (TILE + 4), len(settings) * (TILE + 4)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for row, (label, options) in enumerate(settings.items()):
        draw.text((6, row * (TILE + 4) + TILE // 2 - 8), label, (30, 30, 30), font)
        pictures = painter(PROMPT, seed=0, num_images_per_prompt=COLUMNS, **options)
        for column, picture in enumerate(pictures):
            tile = picture.resize((TILE, TILE), Image.Resampling.NEAREST)
            sheet.paste(tile, (LABEL + column * (TILE + 4), row * (TILE + 4)))
    sheet.quantize(256).save(ROOT / "docs" / "sampling.png", optimize=True)


if __name__ == "__main__":
    main()
