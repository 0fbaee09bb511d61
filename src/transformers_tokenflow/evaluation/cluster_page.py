# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Clusters as a page of HTML that needs nothing beside it (paper Figs. 4 and 11)."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from PIL import Image, ImageDraw

from .clusters import JOINT, PIXEL, SEMANTIC, Cluster, Groups, Member

TITLES = {SEMANTIC: "Semantic codebook alone", PIXEL: "Pixel codebook alone", JOINT: "Shared index"}
THUMBNAIL = 84
FRAME = (230, 30, 120)
# Cells around a token that its thumbnail shows, on every side.
SURROUNDINGS = 1


def thumbnail(picture: Image.Image, member: Member, scale: int) -> Image.Image:
    """
    A token's cell with those around it, framed; of a map that is one token, the picture.

    Args:
        picture: as the model is given it, square.
        member: the token.
        scale: side of its map.
    """
    if scale == 1:
        return picture.resize((THUMBNAIL, THUMBNAIL), _filter(picture.width))
    cell = picture.width / scale
    span = min(2 * SURROUNDINGS + 1, scale)
    left, top = (min(max(place - SURROUNDINGS, 0), scale - span) for place in (member.column, member.row))
    box = (left * cell, top * cell, (left + span) * cell, (top + span) * cell)
    part = picture.resize((THUMBNAIL, THUMBNAIL), _filter(int(span * cell)), box)
    corner = [(member.column - left) * THUMBNAIL / span, (member.row - top) * THUMBNAIL / span]
    frame = [*corner, corner[0] + THUMBNAIL / span - 1, corner[1] + THUMBNAIL / span - 1]
    ImageDraw.Draw(part).rectangle(frame, outline=FRAME, width=2)
    return part


def _filter(width: int) -> Image.Resampling:
    return Image.Resampling.NEAREST if width < THUMBNAIL else Image.Resampling.LANCZOS


def data_url(picture: Image.Image) -> str:
    """A picture as it can stand in a page."""
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def render(
    chosen: Mapping[tuple[int, str], Sequence[Cluster]],
    groups: Groups,
    pictures: Mapping[str, Image.Image],
    model: str,
    count: int,
) -> str:
    """
    Make the page.

    Args:
        chosen: the clusters to be shown, by scale and kind of index.
        groups: where they come from.
        pictures: by name, those of the clusters' members, as the model is given them.
        model: its name.
        count: how many pictures were grouped.
    """
    sections: dict[str, list[dict[str, Any]]] = {}
    for (scale, kind), clusters in chosen.items():
        grouping = groups.groupings[scale, kind]
        title = "Whole pictures: the scale of one token" if scale == 1 else f"Patches: the scale {scale}×{scale}"
        sections.setdefault(title, []).append(
            {
                "title": TITLES[kind],
                "entries": len(grouping.clusters),
                "mean": grouping.tokens_per_entry,
                "clusters": [(cluster, _thumbnails(cluster, pictures, scale)) for cluster in clusters],
            }
        )
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    return environment.get_template("clusters.html.jinja").render(
        model=model, pictures=count, codebook_size=groups.model.config.codebook_size, sections=sections
    )


def _thumbnails(cluster: Cluster, pictures: Mapping[str, Image.Image], scale: int) -> list[tuple[str, str]]:
    """Name and data of what a cluster's members look like."""
    return [
        (member.picture, data_url(thumbnail(pictures[member.picture], member, scale))) for member in cluster.members
    ]
