# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""What the tabs of the page do, without the page. What a visitor can put right is a `CommandError`."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any, TypeVar

import torch
from PIL import Image, UnidentifiedImageError
from transformers import TextIteratorStreamer

from transformers_tokenflow import TextToImagePipeline
from transformers_tokenflow.answering import ask
from transformers_tokenflow.commands import CommandError, one_line
from transformers_tokenflow.commands.describing import Describer
from transformers_tokenflow.commands.reconstruction import psnr
from transformers_tokenflow.commands.token_maps import draw_token_map, entry_colors
from transformers_tokenflow.commands.tokenizers import Tokenizer
from transformers_tokenflow.image_reading_tokenflow import open_picture

MAX_PIXELS = 40_000_000
MAX_PASSES = 8
SIDE = 320

Item = TypeVar("Item")


def read_upload(path: str | None) -> Image.Image:
    """
    Read a picture's file.

    Raises:
        CommandError: there is none, it is no picture, or it is too large.
    """
    if path is None:
        raise CommandError("choose a picture first")
    try:
        picture = open_picture(path)
        size = picture.size
        if math.prod(size) <= MAX_PIXELS:
            picture.load()
    except UnidentifiedImageError:
        raise CommandError("the file is no picture, or of a kind that can't be read here") from None
    except Exception as error:  # PIL's readers raise errors of every kind
        raise CommandError(f"the picture can't be read: {one_line(error)}") from error
    if math.prod(size) > MAX_PIXELS:
        raise CommandError(
            f"the picture has {size[0]}×{size[1]} pixels; at most {MAX_PIXELS // 10**6} million are read"
        )
    return picture


def enlarge(picture: Image.Image) -> Image.Image:
    """A small picture with each pixel several times as wide, so that browsers don't blur it."""
    factor = math.ceil(SIDE / picture.width)
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


# ---- Pictures to tokens and back ----


@dataclass
class Encoded:
    """
    A picture and its tokens.

    Args:
        original: as the tokenizer is given it.
        prefixes: what the first scale gives, the first two, and so on.
        maps: for each scale a map of its tokens, in the colours of each codebook.
        facts: for each prefix a line about it.
    """

    original: Image.Image
    prefixes: list[Image.Image]
    maps: list[list[Image.Image]]
    facts: list[str]


@torch.inference_mode()
def encode(picture: Image.Image, tokenizer: Tokenizer) -> Encoded:
    """Turn a picture into tokens, and each prefix of its scales back into a picture."""
    model, processor = tokenizer.model, tokenizer.processor
    pixel_values = processor(images=picture, return_tensors="pt")["pixel_values"]
    encoded = model.encode(pixel_values.to(tokenizer.device))
    features = model.quantizer.codes_to_features(encoded.codes)[0]
    decoded = torch.cat([model.decode_features(prefix[None]).pixel_values for prefix in features])
    original, *prefixes = processor.postprocess(torch.cat([pixel_values, decoded.cpu()]))
    colors = entry_colors(model.quantizer).values()
    maps = [[draw_token_map(codes[0], part, SIDE) for part in colors] for codes in encoded.codes_per_scale]
    bits = (model.config.codebook_size - 1).bit_length()
    facts, tokens = [], 0
    for scale, prefix in zip(model.config.scales, prefixes, strict=True):
        tokens += scale**2
        size = f"{tokens} of {model.config.num_image_tokens} tokens, {math.ceil(tokens * bits / 8)} bytes"
        facts.append(f"Up to the scale {scale}×{scale}: {size}. PSNR {psnr(original, prefix):.1f} dB.")
    return Encoded(enlarge(original), [enlarge(prefix) for prefix in prefixes], maps, facts)


# ---- Prompts to pictures ----


def draw(
    painter: TextToImagePipeline, prompt: str, seed: int | None, guidance_scale: float, top_k: str, top_p: str
) -> Iterator[list[tuple[Image.Image, str]]]:
    """
    Draw a picture.

    Args:
        painter: the pipeline.
        prompt: its text.
        seed: the same one draws the same picture; none is 0.
        guidance_scale: how much the prompt counts.
        top_k, top_p: numbers with commas between them, one for each pass over a scale, or one for all.

    Returns:
        After every scale, the pictures so far and the names of their scales.

    Raises:
        CommandError: there is no prompt, or a setting can't be.
    """
    if not prompt.strip():
        raise CommandError("write what to draw first")
    settings = {"top_k": read_numbers(top_k, int, "top-k"), "top_p": read_numbers(top_p, float, "top-p")}
    scales = painter.model.tokenizer.config.scales
    finished: SimpleQueue = SimpleQueue()

    def work(stopped: Event) -> None:
        def put(index: int, codes: torch.Tensor) -> None:
            if stopped.is_set():
                raise InterruptedError
            finished.put((index, codes))

        options: dict[str, Any] = {"seed": int(seed or 0), "guidance_scale": guidance_scale, **settings}
        painter(prompt.strip(), output_type="latent", callback_on_scale_end=put, **options)

    pictures: list[tuple[Image.Image, str]] = []
    for index, codes in follow(work, iter(finished.get, None), lambda: finished.put(None)):
        pictures = [*pictures, (enlarge(painter.decode(codes)[0]), f"{scales[index]}×{scales[index]}")]
        yield pictures


def read_numbers(text: str, kind: type[int] | type[float], name: str) -> Any:
    """A number, which counts for every pass, or a list of those with commas between them; or a CommandError."""
    try:
        numbers = [kind(part) for part in text.split(",")]
    except ValueError:
        raise CommandError(f"{name} takes numbers with commas between them; got {text!r}") from None
    if len(numbers) > MAX_PASSES:
        raise CommandError(f"{name} may have {MAX_PASSES} numbers, one for each pass over a scale; got {len(numbers)}")
    return numbers[0] if len(numbers) == 1 else numbers


# ---- Questions about pictures ----


def answer(describer: Describer, picture: Image.Image, question: str, max_new_tokens: int) -> Iterator[str]:
    """
    Answer a question about a picture.

    Args:
        describer: the model.
        picture: what the question is about.
        question: by default what the processor says.
        max_new_tokens: that the answer may have.

    Returns:
        The answer so far, longer each time.

    Raises:
        CommandError: the model refuses the question.
    """
    model, processor = describer.model, describer.processor
    conversation = ask(picture, question.strip() or processor.default_question)
    prompt = processor.apply_chat_template(conversation, add_generation_prompt=True)
    streamer: Any = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)

    def work(stopped: Event) -> None:
        inputs = processor(text=[prompt], images=[picture], return_tensors="pt").to(model.device)
        model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            streamer=streamer,
            stopping_criteria=[lambda ids, scores: torch.full((len(ids),), stopped.is_set(), device=ids.device)],
        )

    said = ""
    for piece in follow(work, streamer, streamer.end):
        if piece:
            said += piece
            yield said.strip()


def follow(work: Callable[[Event], Any], items: Iterator[Item], end: Callable[[], None]) -> Iterator[Item]:
    """
    What a function hands over while it works in a thread of its own.

    Args:
        work: called with an event that is set when nobody waits any more.
        items: what it hands over.
        end: makes `items` end.

    Raises:
        CommandError: `work` refused its arguments.
    """
    stopped = Event()
    errors: list[Exception] = []

    def run() -> None:
        try:
            work(stopped)
        except Exception as error:  # for the one who waits
            errors.append(error)
        finally:
            end()

    thread = Thread(target=run, daemon=True)
    thread.start()
    try:
        yield from items
    finally:
        stopped.set()
        thread.join()
    if errors and isinstance(errors[0], ValueError):
        raise CommandError(one_line(errors[0])) from errors[0]
    if errors:
        raise errors[0]
