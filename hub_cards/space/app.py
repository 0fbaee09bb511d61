# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""A page to try TokenFlow on: python app.py [--tokenizer NAME] [--generator NAME] [--understanding NAME]"""

import argparse
import functools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from transformers.utils import logging

from transformers_tokenflow import TextToImagePipeline
from transformers_tokenflow.commands import CommandError
from transformers_tokenflow.commands.describing import load_describer
from transformers_tokenflow.commands.generation import load_painter
from transformers_tokenflow.commands.token_maps import entry_colors
from transformers_tokenflow.commands.tokenizers import Tokenizer, load_tokenizer

from tabs import answer, draw, encode, read_upload

logger = logging.get_logger(__name__)

HERE = Path(__file__).resolve().parent
PICTURES = sorted(str(path) for path in (HERE / "pictures").iterdir() if path.suffix != ".md")
PROMPTS = ["a red apple", "a tiger face", "a rocket, twemoji style", "a slice of pizza", "a butterfly, noto style"]
QUESTIONS = ["what is it?", "what is its main colour?", "which style is it drawn in?", "is it a tiger face?"]
MAX_FILE_SIZE = "10mb"
MAX_WAITING = 20
# One visitor at a time: all tabs share the processor.
COMPUTING: dict[str, Any] = {"concurrency_id": "computing", "concurrency_limit": 1}
INTRODUCTION = """
# TokenFlow
One tokenizer for understanding *and* generation: two codebooks, one shared index, a pyramid of scales
([paper](https://arxiv.org/abs/2412.03069), [code](https://github.com/transformers-tokenflow/transformers-tokenflow)).
"""
# Labels stand above their pictures, not on them.
CSS = """
.gradio-container {max-width: 1100px !important; margin: auto !important}
.facts {text-align: center}
.block:has(> label[data-testid="block-label"]) {display: flex; flex-direction: column}
label[data-testid="block-label"] {position: static !important; width: fit-content; margin: 6px}
label[data-testid="block-label"] ~ div {min-height: 0; flex: 1}
"""
# Fonts of the visitor's own: nothing is loaded from elsewhere.
FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}


class Upload(gr.Image):
    """A place for a visitor's picture, given on as its file. gr.Image would decode it, and fail in its own words."""

    is_template = True  # looks like its base class

    def preprocess(self, payload: Any) -> str | None:
        """The path of the file."""
        return None if payload is None else payload.path


@contextmanager
def shown_to_visitor() -> Iterator[None]:
    """What the visitor can put right becomes a message on the page."""
    try:
        yield
    except CommandError as error:
        message = str(error)
        sentence = f"{message[:1].upper()}{message[1:]}."
        raise gr.Error(sentence, duration=8, print_exception=False) from error


def tokens_tab(tokenizer: Tokenizer) -> None:
    """A picture, and its tokens scale by scale."""
    scales = tokenizer.model.config.scales
    names = list(entry_colors(tokenizer.model.quantizer))
    state = gr.State(time_to_live=3600)
    with gr.Row():
        upload = Upload(label="Picture", height=300, sources=["upload", "clipboard"], buttons=[])
        original = still("As the tokenizer sees it")
        decoded = still("Decoded from the tokens")
    scale = gr.Slider(1, len(scales), len(scales), step=1, label="Scales", info="How many of the scales are decoded")
    facts = gr.Markdown(elem_classes="facts")
    with gr.Row():
        maps = [still(f"The last scale's tokens: {name} codebook", buttons=[]) for name in names]
    gr.Markdown(
        "A number is a token's index, the same in both codebooks. The colours are those codebooks' main axes: tokens "
        "of like colour stand for like things."
    )
    gr.Examples(PICTURES, upload, label="Examples")

    def show(encoded: Any, count: int) -> list[Any]:
        if encoded is None:
            return [None, "", *[None] * len(maps)]
        return [encoded.prefixes[count - 1], encoded.facts[count - 1], *encoded.maps[count - 1]]

    def read(path: str | None, count: int) -> list[Any]:
        if path is None:
            return [None, None, *show(None, count)]
        with shown_to_visitor():
            encoded = encode(read_upload(path), tokenizer)
        return [encoded, encoded.original, *show(encoded, count)]

    views = [decoded, facts, *maps]
    upload.change(
        read, [upload, scale], [state, original, *views], show_progress_on=decoded, api_name="encode", **COMPUTING
    )
    scale.change(show, [state, scale], views, show_progress="hidden", api_visibility="private")


def drawing_tab(painter: TextToImagePipeline) -> None:
    """A prompt, and its picture appearing scale by scale."""
    defaults = painter.model.generation_config
    with gr.Row():
        with gr.Column():
            prompt = gr.Textbox(PROMPTS[0], label="Prompt", max_length=500)
            with gr.Row():
                seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**31)
                guidance = gr.Slider(0, 15, defaults.guidance_scale, step=0.5, label="Guidance")
            with gr.Row():
                top_k = gr.Textbox(commas(defaults.top_k), label="Top-k", info="one for each pass; 0: no limit")
                top_p = gr.Textbox(commas(defaults.top_p), label="Top-p", info="one for each pass; 0: no limit")
            with gr.Row():
                start = gr.Button("Draw", variant="primary")
                another = gr.Button("The next seed")
            gr.Examples(PROMPTS, prompt, label="Examples")
        with gr.Column():
            picture = still("Picture", height=340)
            steps = gr.Gallery(label="Scale by scale", columns=4, height=300, interactive=False)

    def run(*settings: Any) -> Iterator[tuple[Any, Any]]:
        with shown_to_visitor():
            for pictures in draw(painter, *settings):
                yield pictures[-1][0], pictures

    settings, views = [prompt, seed, guidance, top_k, top_p], [picture, steps]
    drawing = {"fn": run, "inputs": settings, "outputs": views, "show_progress_on": picture, **COMPUTING}
    gr.on([start.click, prompt.submit], api_name="draw", **drawing)
    following = another.click(lambda number: (number or 0) + 1, seed, seed, queue=False, api_visibility="private")
    following.then(api_visibility="private", **drawing)


def answering_tab(name: str, dtype: str) -> None:
    """A picture and a question, and the answer as it is written. The model is loaded for the first one."""
    load = functools.cache(load_describer)
    with gr.Row():
        upload = Upload(label="Picture", height=300, sources=["upload", "clipboard"], buttons=[])
        with gr.Column():
            question = gr.Textbox(QUESTIONS[0], label="Question", max_length=500)
            length = gr.Slider(1, 512, 64, step=1, label="Longest answer, in tokens")
            start = gr.Button("Ask", variant="primary")
            said = gr.Textbox(label="Answer", lines=4, interactive=False)
    with gr.Row():
        gr.Examples(PICTURES, upload, label="Examples")
        gr.Examples(QUESTIONS, question, label="Questions")

    def run(path: str | None, text: str, max_new_tokens: int) -> Iterator[str]:
        with shown_to_visitor():
            picture = read_upload(path)
            try:
                describer = load(name, dtype=dtype)
            except CommandError as error:
                logger.warning(f"no question can be answered: {error}")
                raise CommandError("a model that answers questions isn't set up here yet") from error
            yield from answer(describer, picture, text, max_new_tokens)

    gr.on([start.click, question.submit], run, [upload, question, length], said, api_name="answer", **COMPUTING)


def still(label: str, height: int = 300, buttons: Sequence[str] = ("download",)) -> gr.Image:
    """A place for a picture of ours."""
    return gr.Image(label=label, height=height, interactive=False, format="png", buttons=list(buttons))


def commas(value: Any) -> str:
    """A number, or several with commas between them."""
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def build(tokenizer: Tokenizer, painter: TextToImagePipeline, understanding: str, dtype: str = "float32") -> gr.Blocks:
    """The page."""
    with gr.Blocks(title="TokenFlow", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown(INTRODUCTION)
        with gr.Tab("Picture → tokens → picture"):
            tokens_tab(tokenizer)
        with gr.Tab("Prompt → picture"):
            drawing_tab(painter)
        with gr.Tab("Picture + question → answer"):
            answering_tab(understanding, dtype)
    return page.queue(max_size=MAX_WAITING)


def serve(page: gr.Blocks, **options: Any) -> None:
    """Serve the page; `options` of `launch`."""
    look = {"theme": gr.themes.Soft(**FONTS), "css": CSS, "footer_links": ["api"]}
    page.launch(max_file_size=MAX_FILE_SIZE, ssr_mode=False, **look, **options)


def read_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The names of models: arguments, or else environment variables, or else the small models."""
    parser = argparse.ArgumentParser(description="A page to try TokenFlow on.")
    kinds = {"tokenizer": "tokenflow-tiny", "generator": "tokenflow-tiny-text-to-image"}
    for kind, small in {**kinds, "understanding": "tokenflow-tiny-understanding"}.items():
        variable = f"TOKENFLOW_{kind.upper()}"
        default = os.environ.get(variable) or small_model(small)
        parser.add_argument(f"--{kind}", default=default, help=f"folder or Hub repository; by default ${variable}")
    default = os.environ.get("TOKENFLOW_DTYPE") or "float32"
    choices = ["float32", "bfloat16", "float16"]
    parser.add_argument("--dtype", default=default, choices=choices, help="by default $TOKENFLOW_DTYPE or float32")
    return parser.parse_args(arguments)


def small_model(name: str) -> str:
    """One of the small models: in a checkout its folder beside this one, elsewhere its repository."""
    return str(HERE.parent / name) if HERE.parent.name == "hub_cards" else f"transformers-tokenflow/{name}"


def main() -> None:
    """Load the models and serve the page."""
    names = read_arguments()
    try:
        models = load_tokenizer(names.tokenizer, dtype=names.dtype), load_painter(names.generator, dtype=names.dtype)
    except CommandError as error:
        raise SystemExit(f"error: {error}") from error
    serve(build(*models, names.understanding, names.dtype))


if __name__ == "__main__":
    main()
