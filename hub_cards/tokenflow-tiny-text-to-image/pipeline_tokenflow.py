# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""The transformers pipeline `text-to-image`: texts to pictures."""

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.pipelines.base import Pipeline

from .processing_tokenflow import separate_masks
from .push_tokenflow import PUSH_ARGUMENTS
from .sampling_tokenflow import plain_seeds

MODEL_TYPE = "tokenflow_text_to_image"
OUTPUT_TYPES = ("pil", "np", "pt", "latent")
# Arguments that belong to a call, and can't be settled when a pipeline is made.
OF_A_CALL = ("generator", "image", "codes", "mask")


@dataclass
class Request:
    """A prompt with all that is its own; the rest counts for every prompt of a call."""

    text: str
    negative_prompt: str | None = None
    seed: int | None = None
    generators: torch.Generator | Sequence[torch.Generator] | None = None
    image: Any = None
    codes: torch.Tensor | None = None
    mask: Any = None


class TextToImagePipeline(Pipeline):
    """
    Draws pictures of texts.

        painter = pipeline("text-to-image", model=repository)
        picture = painter("a red apple", seed=0)

    A text gives a PIL image, a list of texts a list. See `__call__` for what can be asked for.

    Raises:
        ValueError: the model is no generator; or an option is given as a default that belongs to a call (`generator`,
            `image`, `codes`, `mask`), or is an unknown `output_type`.
    """

    _load_processor = True
    _load_tokenizer = False
    _load_image_processor = False
    _load_feature_extractor = False
    _load_video_processor = False
    _pipeline_calls_generate = True

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if (model_type := self.model.config.model_type) != MODEL_TYPE:
            raise ValueError(f"text-to-image takes a generator, {MODEL_TYPE!r}; got a model of type {model_type!r}")

    def __call__(  # type: ignore[override]
        self,
        inputs: str | Iterable[str],
        negative_prompt: str | Sequence[str] | None = None,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        image: Any = None,
        codes: torch.Tensor | None = None,
        mask: Any = None,
        batch_size: int | None = None,
        num_workers: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """
        Draw.

        Args:
            inputs: a text or a list of texts; or a dataset or generator of texts, whose pictures come one by one.
            negative_prompt: what guidance leads away from, for all or for each text; by default the processor's.
            seed: a number, of which picture i gets seed + i, or one per text, whose pictures count on from it. A
                picture with a seed is, in fp32, the same in a batch and alone.
            generator: one for all, or one per picture. Without seeds and generators torch's own is used.
            image: a picture of which something is kept, in any form the image processor takes, for all or for each
                text, by a list or as a batch (number of texts, 3, H, W): `keep_scales` or `mask` says what.
            codes: (L,) or (number of texts, L), in place of `image`.
            mask: where `image` is drawn anew: white or true. A picture or array (H, W) of any size, for all or for each
                text, by a list or as an array (number of texts, H, W).
            batch_size: texts that are drawn at a time.
            num_workers: processes that read a dataset.
            kwargs: `num_images_per_prompt`, where more than one give a list for each text; `output_type`, "pil", "np"
                (H, W, 3) and "pt" (3, H, W) in [0, 1], or "latent" for codes (L,); `best_of` with `scorer`, called
                with semantic features (M, h·w, d_teacher) and M texts and giving (M,) scores; and, as `generate` takes
                them, `guidance_scale`, `top_k`, `top_p`, `temperature`, `keep_scales`, `prune_at`,
                `callback_on_scale_end`, ... All of these, `seed` and `negative_prompt` can also be given to
                `pipeline(...)`, as defaults for its calls.

        Raises:
            ValueError: an input is no text, there are not as many of something as texts, or `generate` refuses.
        """
        params = {**self._forward_params, **kwargs}
        if kwargs.get("scorer") is not None and "best_of" not in params:
            raise ValueError("the scorer has nothing to choose from: say by best_of how many to draw for each picture")
        if negative_prompt is None:
            negative_prompt = self._preprocess_params.get("negative_prompt")
        if seed is None and generator is None:
            seed = self._preprocess_params.get("seed")
        if generator is not None and (self._num_workers if num_workers is None else num_workers):
            raise ValueError("in processes that read a dataset generators are copies: pass seed, or num_workers=0")
        if image is not None and codes is not None:
            raise ValueError("pass image or codes, not both")
        if (image is not None or codes is not None) and mask is None and not params.get("keep_scales"):
            raise ValueError("nothing of the picture would be kept: say what, by `keep_scales` or `mask`")
        texts = [inputs] if isinstance(inputs, str) else inputs
        own = {"negative_prompt": negative_prompt, "image": image, "codes": codes, "mask": mask}
        requests = make_requests(texts, own, seed, generator, params.get("num_images_per_prompt", 1))
        options = {"batch_size": batch_size, "num_workers": num_workers, **kwargs}
        if isinstance(inputs, str):
            return super().__call__(next(requests), **options)
        if isinstance(inputs, (list, tuple)):
            return super().__call__(list(requests), **options) if inputs else []
        return super().__call__(requests, **options)

    def _sanitize_parameters(self, output_type: str | None = None, **kwargs: Any) -> tuple[dict, dict, dict]:
        kwargs.pop("local_files_only", None)  # `pipeline` passes it on
        if settled := [name for name in OF_A_CALL if name in kwargs]:
            raise ValueError(f"{', '.join(settled)} can't be settled for all calls: pass it when you call the pipeline")
        # What `__call__` looks up: not of every text alike, as all that is passed to `_forward` is.
        shared_out = {name: kwargs.pop(name) for name in ("negative_prompt", "seed") if name in kwargs}
        postprocess = {}
        if output_type is not None:
            if output_type not in OUTPUT_TYPES:
                raise ValueError(f"output_type is one of {', '.join(OUTPUT_TYPES)}; got {output_type!r}")
            postprocess["output_type"] = kwargs["output_type"] = output_type
        return shared_out, kwargs, postprocess

    def preprocess(self, input_: Request | str, **_: Any) -> dict[str, Request]:
        """Leave the work to `_forward`: the processor pads texts, and makes masks, for a whole batch."""
        return {"request": Request(input_) if isinstance(input_, str) else input_}

    def _forward(
        self,
        input_tensors: dict[str, Request | list[Request]],
        num_images_per_prompt: int = 1,
        output_type: str = "pil",
        scorer: Callable[[torch.Tensor, list[str]], torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> dict[str, torch.Tensor]:
        """Draw B texts at once: codes (B, n, L) and, unless they are what is wanted, pixels (B, n, 3, H, W)."""
        given = input_tensors["request"]
        requests = given if isinstance(given, list) else [given]
        texts = [request.text for request in requests]
        if scorer is not None and "best_of" in kwargs:
            kwargs["scorer"] = lambda features, index: scorer(features, [texts[i] for i in index.tolist()])
        codes = self.model.generate(
            **self._prepare_inputs(requests, texts),
            num_images_per_prompt=num_images_per_prompt,
            **self._prepare_generate_kwargs(kwargs),
        ).codes
        # One row per text: the base class takes batches apart along the first axis.
        shape = (len(requests), num_images_per_prompt)
        output = {"codes": codes.unflatten(0, shape)}
        if output_type != "latent":
            output["pixel_values"] = self._decode(codes).unflatten(0, shape)
        return output

    def _decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Pixels (N, 3, H, W) of codes (N, L). One by one: a picture is the same, to the last bit, in any batch."""
        return torch.cat([self.model.tokenizer.decode(row[None]).pixel_values for row in codes])

    def _prepare_inputs(self, requests: list[Request], texts: list[str]) -> dict[str, Any]:
        """What `generate` is given of B prompts."""
        first = requests[0]
        negative = [request.negative_prompt for request in requests]
        inputs = dict(self.processor.prepare_generation(texts, negative))
        if first.seed is not None:
            inputs["seed"] = [request.seed for request in requests]
        elif isinstance(first.generators, torch.Generator):
            inputs["generator"] = first.generators
        elif first.generators is not None:
            inputs["generator"] = [source for request in requests for source in request.generators]
        if first.codes is not None:
            inputs["codes"] = torch.stack([torch.as_tensor(request.codes) for request in requests])
        elif first.image is not None:
            images = [request.image for request in requests]
            pixel_values = self.processor(images=images, return_tensors="pt")["pixel_values"]
            inputs["codes"] = self.model.tokenizer.encode(pixel_values.to(self.device)).codes
        if first.mask is not None:
            grid = self.model.tokenizer.config.grid_size
            inputs["mask"] = self.processor.prepare_mask([request.mask for request in requests], grid)
        return inputs

    def postprocess(self, model_outputs: dict[str, torch.Tensor], output_type: str = "pil", **_: Any) -> Any:
        """The pictures of one text: one, or several together."""
        name = "codes" if output_type == "latent" else "pixel_values"
        (result,) = model_outputs[name]
        if output_type != "latent":
            result = self.processor.postprocess(result, output_type=output_type)
        return result[0] if len(result) == 1 else result

    def decode(self, codes: torch.Tensor, output_type: str = "pil") -> Any:
        """
        Pictures of codes.

        Args:
            codes: (N, L) of all scales, or of the first few, as `callback_on_scale_end` is given them.
            output_type: "pil" for a list, "np" for an array (N, H, W, 3), "pt" for a tensor (N, 3, H, W).
        """
        with torch.no_grad():
            pixel_values = self._decode(codes.to(self.model.device))
        return self.processor.postprocess(pixel_values, output_type=output_type)

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """
        Save model and processor, with their code and this pipeline's.

        Args:
            save_directory: the folder.
            push_to_hub: whether to upload it as well, to `repo_id`, or a repository of the folder's name.
            kwargs: of the model's `save_pretrained` and of `push_to_hub`.
        """
        options = {name: kwargs.pop(name) for name in PUSH_ARGUMENTS if name in kwargs}

        def save(folder: str | os.PathLike) -> None:
            self.model.save_pretrained(folder, **kwargs)
            self.processor.save_pretrained(folder)

        if push_to_hub:
            repo_id = options.pop("repo_id", None) or Path(save_directory).resolve().name
            self.model.push_saved(save, repo_id, save_directory, **options)
        else:
            save(save_directory)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> Any:  # type: ignore[override]
        """Upload model, processor, their code and a card; see the model's `push_to_hub`."""
        return self.model.push_saved(self.save_pretrained, repo_id, **kwargs)


def make_requests(
    texts: Iterable[str],
    own: dict[str, Any],
    seed: int | Sequence[int] | None,
    generator: torch.Generator | Sequence[torch.Generator] | None,
    per_text: int,
) -> Iterator[Request]:
    """
    Share out among texts what is given for all, or for each of them.

    Args:
        texts: B of them, or an iterable whose number is not known.
        own: values by name, alone, as lists, or as arrays with one more axis: codes (L,), (1, L) or (B, L).
        seed: of the first picture of all, or of the first one of each text.
        generator: one, or one per picture.
        per_text: pictures per text.

    Raises:
        ValueError: a list does not have as many values as there are texts, or pictures.
    """
    if (
        not isinstance(texts, Iterable)
        and not hasattr(texts, "__getitem__")
        or isinstance(texts, (Mapping, Set, bytes))
    ):
        raise ValueError(f"expected a text, or several; got {type(texts).__name__}")
    if seed is not None and generator is not None:
        raise ValueError("pass seed or generator, not both")
    values = {name: for_each(one_each(value, name), texts, name) for name, value in own.items()}
    seed = plain_seeds(seed)
    values["seed"] = itertools.count(seed, per_text) if isinstance(seed, int) else for_each(seed, texts, "seed")
    values["generators"] = for_each(generator, texts, "generator", per_text)
    every_text = (texts[index] for index in range(len(texts))) if isinstance(texts, Sized) else texts  # type: ignore[index]
    return (
        Request(text, **dict(zip(values, of_text, strict=True)))
        for text, *of_text in zip(every_text, *values.values(), strict=False)
    )


def one_each(value: Any, name: str) -> Any:
    """A batch (B, ...) of arrays as a list, and of a single one as itself; anything else as it is."""
    if not isinstance(value, (np.ndarray, torch.Tensor)):
        return value
    if name == "mask":
        parts = separate_masks(value)
    else:
        parts = list(value) if value.ndim == {"codes": 2, "image": 4}.get(name) else [value]
    return parts[0] if len(parts) == 1 else parts


def for_each(value: Any, texts: Iterable[str], name: str, per_text: int = 1) -> Iterator[Any]:
    """A list's values, in groups of more than one per text; what is no list comes again and again."""
    if not isinstance(value, (list, tuple)):
        return itertools.repeat(value)
    if not isinstance(texts, Sized):
        raise ValueError(f"a list as `{name}` takes a list of texts, whose number is known")
    if len(value) != len(texts) * per_text:
        raise ValueError(f"expected {len(texts) * per_text} values as `{name}`; got {len(value)}")
    if name != "generator":
        return iter(value)
    return iter([value[start : start + per_text] for start in range(0, len(value), per_text)])


__all__ = ["TextToImagePipeline"]
