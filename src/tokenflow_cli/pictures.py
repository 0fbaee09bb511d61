# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Commands of tokenizers: pictures to tokens, back, and what tokens have in common."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from .mistakes import fail, load_commands
from .options import (
    AsJson,
    BatchSize,
    Device,
    Dtype,
    LoadingDtype,
    Model,
    Pictures,
    PicturesOrTables,
    check_picture_name,
)
from .output import progress_bar, report_failures, show


def reconstruct(
    pictures: Pictures,
    model: Model = None,
    output: Annotated[Path, typer.Option(help="Folder for the reconstructions.")] = Path("reconstructions"),
    sheet: Annotated[
        Path | None,
        typer.Option(
            help="Also draw originals and what each prefix of scales gives on this picture.",
            dir_okay=False,
            callback=check_picture_name,
        ),
    ] = None,
    device: Device = "auto",
    dtype: LoadingDtype = Dtype.FLOAT32,
    batch_size: BatchSize = 16,
    as_json: AsJson = False,
) -> None:
    """
    Send pictures through the tokenizer, and save what comes back as PNGs.

    Examples:

    tokenflow reconstruct photo.jpg

    tokenflow reconstruct photos/ --model tokenflow-xl --sheet sheet.png
    """
    from transformers_tokenflow.commands import counted
    from transformers_tokenflow.commands.contact_sheet import draw_contact_sheet
    from transformers_tokenflow.commands.pictures import FileNames, refuse_other_pictures, save_sheet
    from transformers_tokenflow.commands.reconstruction import reconstruct_pictures
    from transformers_tokenflow.commands.tokenizers import load_tokenizer

    if sheet is not None:
        refuse_other_pictures(sheet)
    tokenizer = load_tokenizer(model, device, dtype.value)
    output.mkdir(parents=True, exist_ok=True)
    names = FileNames(output)
    written: dict[str, Path] = {}
    psnrs: dict[str, float] = {}
    shown, failures = [], {}
    with progress_bar("reconstructing") as advance:
        for reconstructions, unreadable, total in reconstruct_pictures(pictures, tokenizer, batch_size):
            for reconstruction in reconstructions:
                written[reconstruction.path] = names.save(reconstruction.prefixes[-1], reconstruction.path)
                psnrs[reconstruction.path] = reconstruction.psnrs[-1]
                if sheet is not None:
                    shown.append(reconstruction)
            failures.update(unreadable)
            advance(len(psnrs) + len(failures), total)
    report_failures(failures)
    if not psnrs:
        fail("no picture could be reconstructed")
    if sheet is not None:
        save_sheet(draw_contact_sheet(shown, tokenizer.model.config.scales), sheet)
    facts = {
        "output": output,
        "psnr": mean(psnrs),
        "pictures": [{"path": path, "output": written[path], "psnr": psnrs[path]} for path in psnrs],
        "sheet": sheet,
        "failures": failures,
    }
    show(as_json, facts, psnr_table(psnrs), f"{output} got {counted(len(psnrs), 'reconstruction')}")


def psnr_table(psnrs: dict[str, float]) -> Table:
    """Pictures and how near their reconstructions come to them."""
    table = Table("picture", show_footer=True)
    table.columns[0].footer, table.columns[0].overflow = "mean", "fold"
    table.add_column("PSNR (dB)", f"{mean(psnrs):.2f}", justify="right")
    for path, value in psnrs.items():
        table.add_row(Text(path), f"{value:.2f}")
    return table


def mean(psnrs: dict[str, float]) -> float:
    """The mean of all pictures."""
    return sum(psnrs.values()) / len(psnrs)


def encode(
    pictures: PicturesOrTables,
    codes: Annotated[Path, typer.Argument(metavar="CODES.PARQUET", help="Parquet file to write.", dir_okay=False)],
    model: Model = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            help="A column to keep beside `text`, of parquet files or a folder's metadata; repeatable.",
            show_default="none",
        ),
    ] = None,
    device: Device = "auto",
    dtype: LoadingDtype = Dtype.FLOAT32,
    batch_size: BatchSize = 16,
    as_json: AsJson = False,
) -> None:
    """
    Turn pictures into tokens: a parquet file with the columns path, codes, height and width.

    Captions are kept as the column text: those of parquet files, and of a folder's metadata.jsonl, .csv or .parquet.

    What is done is kept every few seconds. After an interruption, or with more pictures in the folder, the same
    command goes on from there. Pictures that changed since are encoded anew. Pictures that can't be read are listed and
    left out.

    On several devices: accelerate launch -m transformers_tokenflow.cli encode ... Its processes share out the pictures;
    after an interruption there may be more of them, or fewer.

    Examples:

    tokenflow encode photos/ codes.parquet

    tokenflow encode train-0.parquet train-1.parquet codes.parquet --keep license
    """
    from transformers_tokenflow.commands import counted
    from transformers_tokenflow.commands.encoding import encode_pictures
    from transformers_tokenflow.commands.processes import launched_processes
    from transformers_tokenflow.commands.tokenizers import load_tokenizer

    if codes.suffix != ".parquet":
        raise typer.BadParameter(f"the last argument is the file to write, and ends in .parquet; got {codes}")
    with launched_processes(device) as processes:
        tokenizer = load_tokenizer(model, device, dtype.value)
        with progress_bar("encoding") as advance:
            report = encode_pictures(pictures, codes, tokenizer, batch_size, advance, keep or (), processes)
    if not processes.is_main:
        return
    report_failures(report.failures)
    if not report.encoded + report.done_before:
        fail("no picture could be encoded")
    tokens = tokenizer.model.config.num_image_tokens
    facts = {
        "codes": codes,
        "encoded": report.encoded,
        "done_before": report.done_before,
        "tokens_per_picture": tokens,
        "failures": report.failures,
    }
    before = f", and had {report.done_before:,} before" if report.done_before else ""
    got = f"{counted(report.encoded, 'picture')} of {counted(tokens, 'token')}"
    show(as_json, facts, f"{codes} got {got}{before}")


def decode(
    codes: Annotated[
        Path, typer.Argument(metavar="CODES.PARQUET", help="Parquet file to read.", exists=True, dir_okay=False)
    ],
    folder: Annotated[Path, typer.Argument(help="Folder for the pictures.", file_okay=False)],
    model: Model = None,
    device: Device = "auto",
    dtype: LoadingDtype = Dtype.FLOAT32,
    batch_size: BatchSize = 16,
    as_json: AsJson = False,
) -> None:
    """
    Turn tokens back into pictures: PNGs that are named like the pictures they come from.

    Examples:

    tokenflow decode codes.parquet decoded/

    tokenflow decode codes.parquet decoded/ --model tokenflow-xl --device cuda --dtype bfloat16
    """
    from transformers_tokenflow.commands import counted
    from transformers_tokenflow.commands.encoding import decode_pictures
    from transformers_tokenflow.commands.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(model, device, dtype.value)
    with progress_bar("decoding") as advance:
        count = decode_pictures(codes, folder, tokenizer, batch_size, advance)
    show(as_json, {"folder": folder, "pictures": count}, f"{folder} got {counted(count, 'picture')}")


def cluster(
    pictures: PicturesOrTables,
    output: Annotated[Path, typer.Option(help="HTML file to write, which needs no other.", dir_okay=False)] = Path(
        "clusters.html"
    ),
    model: Model = None,
    scale: Annotated[
        list[int] | None,
        typer.Option(
            help="Side of the token map that is grouped; repeatable.", show_default="the first two of the model's"
        ),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Clusters of each kind.")] = 16,
    members: Annotated[int, typer.Option(min=1, help="Pictures of each cluster.")] = 12,
    device: Device = "auto",
    dtype: LoadingDtype = Dtype.FLOAT32,
    batch_size: BatchSize = 16,
    as_json: AsJson = False,
) -> None:
    """
    Show which pictures and patches share an entry: of one codebook alone, of the other, and of both.

    Examples:

    tokenflow cluster photos/

    tokenflow cluster photos/ --scale 2 --scale 4 --count 30 --output clusters.html
    """
    from transformers_tokenflow.commands.tokenizers import load_tokenizer

    if output.suffix.lower() not in (".html", ".htm"):
        raise typer.BadParameter(f"--output is a page, and ends in .html; got {output}")
    commands = load_commands("clustering")
    tokenizer = load_tokenizer(model, device, dtype.value)
    with progress_bar("grouping") as advance:
        report = commands.cluster_pictures(
            pictures, output, tokenizer, scale or [], count, members, batch_size, advance
        )
    report_failures(report.failures)
    facts = {"output": output, "pictures": report.pictures, "failures": report.failures}
    show(as_json, facts, f"the clusters are in {output}")
