# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""The diffusers pipeline. As diffusers copies this file alone out of a folder, it imports no other of this package."""

import functools
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from transformers import AutoModel, AutoProcessor, PreTrainedModel, ProcessorMixin

MODEL_TYPE = "tokenflow_text_to_image"
OUTPUT_TYPES = ("pil", "np", "pt", "latent")
AUTO_CLASSES = {"model": AutoModel, "processor": AutoProcessor}
# Arguments of `from_pretrained` that the processor needs as well.
HUB_ARGUMENTS = (
    "cache_dir",
    "force_download",
    "local_files_only",
    "proxies",
    "revision",
    "subfolder",
    "token",
    "trust_remote_code",
)
# Those that have no meaning for models of transformers.
DIFFUSERS_ARGUMENTS = (
    "custom_pipeline",
    "custom_revision",
    "disable_mmap",
    "load_connected_pipeline",
    "low_cpu_mem_usage",
    "offload_state_dict",
    "provider",
    "provider_options",
    "sess_options",
    "use_flashpack",
    "use_onnx",
)

Callback = Callable[["TokenFlowPipeline", int, int, dict[str, torch.Tensor]], Any]


class TokenFlowPipeline(DiffusionPipeline):
    """
    Draws pictures of texts, as a pipeline of diffusers.

        pipe = TokenFlowPipeline.from_pretrained(repository)
        pictures = pipe("a red apple", num_images_per_prompt=4, generator=torch.Generator().manual_seed(0)).images

    A folder serves transformers and diffusers alike: model and processor lie in its root, where transformers puts them,
    and `model_index.json` leads `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` to this file, which
    diffusers tells none of its arguments: weights come in the dtype that they are saved in, from the main branch. For
    another `dtype`, `revision` or `variant` call `TokenFlowPipeline.from_pretrained`, or pass `model` and `processor`.

    Args:
        model (`TokenFlowForTextToImage`):
            The generator, with its image tokenizer.
        processor (`TokenFlowProcessor`):
            Prepares prompts and pictures.

    Raises:
        ValueError: the model is no generator.
    """

    model_cpu_offload_seq = "model"
    # The folder's index names no place for them: `register_to_config` loads those that were not passed.
    _optional_components = ["model", "processor"]
    _callback_tensor_inputs = ["codes", "pixel_values"]
    _interrupt = False

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin):
        super().__init__()
        if model is not None and (model_type := model.config.model_type) != MODEL_TYPE:
            raise ValueError(f"TokenFlowPipeline takes a generator, {MODEL_TYPE!r}; got a model of type {model_type!r}")
        self.register_modules(model=model, processor=processor)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        negative_prompt: str | list[str] | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        image: Any = None,
        codes: torch.Tensor | None = None,
        keep_scales: int | None = None,
        mask: Any = None,
        scorer: Callable[[torch.Tensor, list[str]], torch.Tensor] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] | None = ("codes",),
        callback_on_scale_end: Callable[[int, torch.Tensor], Any] | None = None,
        **kwargs: Any,
    ) -> ImagePipelineOutput | tuple:
        """
        Draw.

        Args:
            prompt: a text, or B of them.
            negative_prompt: what guidance leads away from, for all or for each prompt; by default the processor's.
            guidance_scale: t in (1 + t) conditional - t unconditional scores, at the last scale; 0 is none.
            num_images_per_prompt: n. Pictures of a prompt follow each other.
            generator: one for all N = B · n pictures, or one for each, whose picture is then, in fp32, the same alone.
            image: a picture of which something is kept, in any form the image processor takes; or B or N of them.
            codes: (1 or B or N, L), in place of `image`.
            keep_scales: how many coarse scales of it are kept.
            mask: where it is drawn anew: white or true. A picture or array of any size; or B or N of them.
            scorer: with `best_of`: called with semantic features (M, h·w, d_teacher) and M texts, gives (M,) scores.
            output_type: "pil", "np" (N, H, W, 3) and "pt" (N, 3, H, W) in [0, 1], or "latent" for codes (N, L).
            return_dict: False gives a tuple of the pictures.
            callback_on_step_end: called after every scale with the pipeline, the scale's index, its side and the
                tensors that are asked for, also one of diffusers' `PipelineCallback`. What it returns changes nothing;
                where it sets the pipeline's `_interrupt`, drawing ends with that scale.
            callback_on_step_end_tensor_inputs: of `codes`, all so far (N, length), which `decode` makes pictures of,
                and `pixel_values`, what they decode to, (N, 3, H, W).
            callback_on_scale_end: the same as `generate` has it: called with the scale's index and the codes; returns
                False to end drawing there.
            kwargs: further arguments of the model's `generate`: `top_k`, `top_p`, `temperature`, `best_of`,
                `prune_at`, `seed`, ...

        Returns:
            `ImagePipelineOutput` with `images`: a list, array or tensor of N pictures.

        Raises:
            ValueError: an argument is out of range, or does not fit another.
        """
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        tensor_inputs = callback_on_step_end_tensor_inputs or ()
        self._check(output_type, tensor_inputs, image, codes, keep_scales, mask)
        self._onload()
        inputs = self.processor.prepare_generation(prompt, negative_prompt)
        if image is not None:
            pixel_values = self.processor(images=image, return_tensors="pt")["pixel_values"]
            codes = self.model.tokenizer.encode(pixel_values.to(self._execution_device)).codes
        if mask is not None:
            mask = self.processor.prepare_mask(mask, self.model.tokenizer.config.grid_size)
        if scorer is not None:
            texts = [prompt] if isinstance(prompt, str) else list(prompt)
            kwargs["scorer"] = lambda features, index: scorer(features, [texts[i] for i in index.tolist()])
        scales = self.model.tokenizer.config.scales
        self._interrupt = False
        with self.progress_bar(total=len(scales)) as bar:

            def on_scale_end(index: int, prefix: torch.Tensor) -> bool:
                bar.update()
                if callback_on_scale_end is not None and callback_on_scale_end(index, prefix) is False:
                    self._interrupt = True
                if callback_on_step_end is not None:
                    tensors = self._callback_tensors(prefix, tensor_inputs)
                    callback_on_step_end(self, index, scales[index], tensors)
                return not self._interrupt

            codes = self.model.generate(
                **inputs,
                guidance_scale=guidance_scale,
                num_images_per_prompt=num_images_per_prompt,
                generator=generator,
                codes=codes,
                keep_scales=keep_scales,
                mask=mask,
                callback_on_scale_end=on_scale_end,
                **kwargs,
            ).codes
        images = codes if output_type == "latent" else self.decode(codes, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    @torch.no_grad()
    def decode(self, codes: torch.Tensor, output_type: str = "pil") -> Any:
        """Pictures of codes (N, L), of all scales or of the first few: a list, an array or a tensor."""
        self._onload()
        return self.processor.postprocess(self._decode(codes.to(self._execution_device)), output_type=output_type)

    def _decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Pixels (N, 3, H, W) of codes (N, L). One by one: a picture is the same, to the last bit, in any batch."""
        return torch.cat([self.model.tokenizer.decode(row[None]).pixel_values for row in codes])

    @property
    def num_timesteps(self) -> int:
        """Number of scales, each of which is a step."""
        return len(self.model.tokenizer.config.scales)

    @property
    def interrupt(self) -> bool:
        """Whether a callback has ended the last drawing early."""
        return self._interrupt

    def _check(
        self, output_type: str, tensor_inputs: Sequence[str], image: Any, codes: Any, keep_scales: int | None, mask: Any
    ) -> None:
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type is one of {', '.join(OUTPUT_TYPES)}; got {output_type!r}")
        if unknown := set(tensor_inputs) - set(self._callback_tensor_inputs):
            known = " and ".join(self._callback_tensor_inputs)
            raise ValueError(f"callbacks can be given {known}; got {', '.join(sorted(unknown))}")
        if image is not None and codes is not None:
            raise ValueError("pass image or codes, not both")
        if (image is not None or codes is not None) and mask is None and not keep_scales:
            raise ValueError("nothing of the picture would be kept: say what, by `keep_scales` or `mask`")

    def _callback_tensors(self, codes: torch.Tensor, names: Sequence[str]) -> dict[str, torch.Tensor]:
        tensors = {"codes": codes}
        if "pixel_values" in names:
            tensors["pixel_values"] = self._decode(codes)
        return {name: tensors[name] for name in names}

    def _onload(self) -> None:
        """Bring an offloaded model to its device, which accelerate's hook does before `forward` only."""
        hook = getattr(self.model, "_hf_hook", None)
        if hook is not None:
            hook.pre_forward(self.model)

    # ---- Loading and saving ----

    def register_to_config(self, **kwargs: Any) -> None:
        """
        As of any pipeline, but when diffusers notes where it has loaded this one from, which it does last, components
        that it has found no entries for are loaded from there.
        """
        super().register_to_config(**kwargs)
        source = kwargs.get("_name_or_path")
        if source is None:
            return
        # Where this code itself has come from that folder, it has been trusted.
        is_remote = type(self).__module__.startswith("diffusers_modules")
        for name, auto_class in AUTO_CLASSES.items():
            if getattr(self, name) is None:
                component = auto_class.from_pretrained(source, trust_remote_code=is_remote)
                self.register_modules(**{name: component})

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> "TokenFlowPipeline":
        """
        Load model and processor, as the Auto classes of transformers do.

        Args:
            pretrained_model_name_or_path: a folder or a repository of the Hub.
            kwargs: `model` and `processor`, which are not loaded then; `dtype` or `torch_dtype`, also as a dictionary
                with the keys "model" or "default"; `variant`; and what transformers' `from_pretrained` takes.

        Raises:
            ValueError: there are no weights of that `variant`.
        """
        components = {name: kwargs.pop(name) for name in AUTO_CLASSES if name in kwargs}
        # None stands for components of other pipelines, such as `safety_checker`, that are not wanted.
        kwargs = {
            name: value for name, value in kwargs.items() if name not in DIFFUSERS_ARGUMENTS and value is not None
        }
        dtype = kwargs.pop("torch_dtype", None) or kwargs.pop("dtype", None)
        dtype = dtype.get("model", dtype.get("default", torch.float32)) if isinstance(dtype, dict) else dtype
        if dtype is not None:
            kwargs["dtype"] = dtype
        if kwargs.get("device_map") == "balanced":  # diffusers' name for it
            kwargs["device_map"] = "auto"
        if "processor" not in components:
            hub = {name: value for name, value in kwargs.items() if name in HUB_ARGUMENTS}
            components["processor"] = AutoProcessor.from_pretrained(pretrained_model_name_or_path, **hub)
        if "model" not in components:
            components["model"] = load_model(pretrained_model_name_or_path, **kwargs)
        pipe = cls(**components)
        super(TokenFlowPipeline, pipe).register_to_config(_name_or_path=str(pretrained_model_name_or_path))
        return pipe

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """
        Save model and processor where transformers looks for them, and what leads diffusers there.

        Args:
            save_directory: the folder.
            safe_serialization: has no effect: transformers knows safetensors only.
            variant: part of the names of the weights' files, such as "fp16".
            max_shard_size: of one of these files.
            push_to_hub: whether to upload the folder, to the repository `repo_id` or one of the folder's name.
            kwargs: of `push_to_hub`: `repo_id`, `private`, `token`, `commit_message`, `create_pr`.
        """
        shards = {} if max_shard_size is None else {"max_shard_size": max_shard_size}

        def save(folder: str | os.PathLike) -> None:
            self.model.save_pretrained(folder, variant=variant, **shards)
            self.processor.save_pretrained(folder)
            self.save_config(folder)

        if push_to_hub:
            repo_id = kwargs.pop("repo_id", None) or Path(save_directory).resolve().name
            self.model.push_saved(save, repo_id, save_directory, **kwargs)
        else:
            save(save_directory)

    def push_to_hub(  # type: ignore[override]
        self, repo_id: str, safe_serialization: bool = True, variant: str | None = None, **kwargs: Any
    ) -> str:
        """
        Upload model, processor, what leads diffusers to them, and a card, which says so of the model.

        Args:
            repo_id: is made, if it is not there.
            safe_serialization: has no effect, as in `save_pretrained`.
            variant: part of the names of the weights' files.
            kwargs: `private`, `token`, `commit_message`, `create_pr`, ..., as the model's `push_to_hub` takes them.

        Returns:
            The address of the commit.
        """
        return str(self.model.push_saved(functools.partial(self.save_pretrained, variant=variant), repo_id, **kwargs))

    def save_config(self, save_directory: str | os.PathLike, **_: Any) -> None:
        """Write `model_index.json` and this file into a folder of transformers: diffusers can then load it, too."""
        module = Path(__file__)
        index = {
            "_class_name": [module.stem, TokenFlowPipeline.__name__],
            "_diffusers_version": diffusers.__version__,
            **{name: [None, None] for name in AUTO_CLASSES},
        }
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / self.config_name).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        if module.resolve() != (folder / module.name).resolve():
            shutil.copyfile(module, folder / module.name)


def load_model(name: str | os.PathLike, variant: str | None = None, **kwargs: Any) -> PreTrainedModel:
    """The generator in a folder or a repository of the Hub; a ValueError where it is not there in that variant."""
    if variant is None:
        return AutoModel.from_pretrained(name, **kwargs)
    try:
        return AutoModel.from_pretrained(name, variant=variant, **kwargs)
    except OSError as error:
        raise ValueError(
            f"You are trying to load the model files of the `variant={variant}`, but no such modeling files are "
            f"available: {error}"
        ) from error


__all__ = ["TokenFlowPipeline"]
