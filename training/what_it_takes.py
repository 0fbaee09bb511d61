"""What training the large models takes: memory, arithmetic and hours, computed from their configurations.

    python -m training.what_it_takes --gpus 8 --gpu h100

Arithmetic is counted by running a step on the meta device, which has shapes and no numbers, and so is what a step
keeps for its backward pass. Weights take 4 bytes (Trainer's `bf16` keeps them in fp32), and trained ones 12 more for
gradients and Adam. What a card's libraries, fragmentation and communication take comes on top.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import vgg16

from benchmarks.measuring import count_flops
from benchmarks.pages import replace_between
from transformers_tokenflow import (
    TokenFlowConfig,
    TokenFlowForConditionalGeneration,
    TokenFlowForTextToImage,
    TokenFlowModel,
    TokenFlowTextToImageConfig,
    TokenFlowUnderstandingConfig,
)
from transformers_tokenflow.trainers.discriminator import PatchDiscriminator, discriminator_loss

# Dense products in bf16 per second, by their makers' data sheets, and memory in bytes.
GPUS = {"a100": (312e12, 80e9), "h100": (989e12, 80e9), "h200": (989e12, 141e9)}
WEIGHT_BYTES, TRAINING_BYTES = 4, 12
PROMPT_TOKENS = 128
# Of a conversation, beside the picture's.
TEXT_TOKENS = 300


@dataclass(frozen=True)
class Cost:
    """
    Of training on one sample.

    Args:
        flops: forward and backward.
        forward_flops: forward alone, which gradient checkpointing does again.
        activation_bytes: what is kept for the backward pass, in bf16.
        trained, frozen: numbers of parameters.
        replicated: frozen ones that FSDP leaves whole on every card: those of an image tokenizer in another model.
    """

    flops: int
    forward_flops: int
    activation_bytes: int
    trained: int
    frozen: int
    replicated: int = 0

    def hours(self, samples: float, gpus: int, gpu: str, utilization: float, checkpointing: bool = False) -> float:
        """How long so many samples take on so many cards that reach a share of their peak."""
        flops = self.flops + (self.forward_flops if checkpointing else 0)
        return samples * flops / (gpus * GPUS[gpu][0] * utilization) / 3600

    def bytes_per_gpu(self, per_device_batch: int, shards: int = 1) -> float:
        """Memory of one card, which holds all weights and their optimizer's state, or with FSDP a shard of them."""
        state = (WEIGHT_BYTES + TRAINING_BYTES) * self.trained + WEIGHT_BYTES * (self.frozen - self.replicated)
        return state / shards + WEIGHT_BYTES * self.replicated + per_device_batch * self.activation_bytes


@dataclass(frozen=True)
class Job:
    """A training: what it costs per sample, how many there are, and how many a card takes at a time."""

    name: str
    cost: Callable[[], Cost]
    samples: float
    per_device_batch: int
    source: str
    is_sharded: bool = False


class KeptTensors:
    """Counts the bytes of what autograd keeps, each storage once and parameters not at all."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self._known = {parameter.untyped_storage()._cdata for parameter in parameters}
        self._held: list[torch.Tensor] = []  # while they live, no other storage gets their place
        self.bytes = 0

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        """Called with every tensor that is kept."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._known:
            self._known.add(storage._cdata)
            self._held.append(tensor)
            self.bytes += storage.nbytes()
        return tensor


def measure(model: nn.Module, loss: Callable[[], torch.Tensor]) -> Cost:
    """What a step costs whose loss a function computes with a model, on the meta device or on a real one."""
    with torch.no_grad():
        loss()  # makes what is made once, and is no part of a step: the quantiser's matrices
    kept = KeptTensors(list(model.parameters()))
    with (
        torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda tensor: tensor),
        FlopCounterMode(display=False) as counter,
    ):
        value = loss()
        forward = counter.get_total_flops()
        value.backward()
        total = counter.get_total_flops()
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    frozen = sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)
    inner = (part for part in model.modules() if isinstance(part, TokenFlowModel) and part is not model)
    replicated = sum(parameter.numel() for part in inner for parameter in part.parameters())
    return Cost(total, forward, kept.bytes, trained, frozen, replicated)


def on_meta(make: Callable[[], nn.Module]) -> Any:
    """A model of shapes alone, in the precision that products are made in."""
    with torch.device("meta"):
        return make().to(torch.bfloat16).train()


def tokenizer_cost(config: TokenFlowConfig) -> Cost:
    """An image tokenizer's step with everything in it: teacher, LPIPS and discriminator."""
    model = on_meta(lambda: TokenFlowModel(config))
    size = config.image_size
    pixels = torch.empty(1, 3, size, size, device="meta", dtype=torch.bfloat16)
    target = torch.empty(1, config.grid_size**2, config.teacher_hidden_size, device="meta", dtype=torch.bfloat16)
    cost = measure(model, lambda: model(pixels, teacher_features=target, return_loss=True).loss)
    judges = judge_flops(size) + count_flops(lambda: model.semantic_encoder.features(pixels))
    return replace(cost, flops=cost.flops + judges)


def judge_flops(size: int) -> int:
    """What judges a reconstruction: VGG16 of both pictures and back, the discriminator, and its own step."""
    perceptual, discriminator = on_meta(lambda: vgg16().features), on_meta(PatchDiscriminator)
    perceptual.requires_grad_(False)
    real, fake = (torch.empty(1, 3, size, size, device="meta", dtype=torch.bfloat16) for _ in range(2))
    fake.requires_grad_()

    def steps() -> None:
        (perceptual(fake) - perceptual(real)).square().mean().backward()
        discriminator(fake).mean().backward()
        discriminator_loss(discriminator(real), discriminator(fake.detach())).backward()

    return count_flops(steps)


def generator_cost(config: TokenFlowTextToImageConfig) -> Cost:
    """A generator's step on codes and a prompt."""
    model = on_meta(lambda: TokenFlowForTextToImage(config))
    prompt = torch.zeros(1, PROMPT_TOKENS, dtype=torch.long, device="meta")
    codes = torch.zeros(1, config.tokenizer_config.num_image_tokens, dtype=torch.long, device="meta")
    return measure(model, lambda: model(prompt, labels=codes).loss)


def understanding_cost(config: TokenFlowUnderstandingConfig, stage: int) -> Cost:
    """An understanding model's step on a picture and a conversation; in the first stage the projector alone learns."""
    model = on_meta(lambda: TokenFlowForConditionalGeneration(config))
    if stage == 1:
        model.requires_grad_(False)
        model.model.projector.requires_grad_(True)
    size = config.tokenizer_config.image_size
    pixels = torch.empty(1, 3, size, size, device="meta", dtype=torch.bfloat16)
    image = torch.full((1, config.num_image_features), config.image_token_id, device="meta")
    os.environ["TRANSFORMERS_DISABLE_TORCH_CHECK"] = "1"  # without numbers, places of pictures can't be counted
    ids = torch.cat([image, torch.zeros(1, TEXT_TOKENS, dtype=torch.long, device="meta")], dim=1)
    return measure(model, lambda: model(ids, pixel_values=pixels, labels=ids).loss)


def paper_jobs() -> list[Job]:
    """The paper's trainings."""
    tokenizers = [
        Job(
            f"TokenFlow-{name.upper()}",
            partial(tokenizer_cost, TokenFlowConfig.from_preset(f"tokenflow-{name}")),
            steps * 256,
            per_device,
            f"{steps:,} steps of 256 (Table 11)",
        )
        for name, steps, per_device in (("b", 1_000_000, 32), ("l", 500_000, 16), ("xl", 500_000, 8))
    ]
    understanding = TokenFlowUnderstandingConfig()
    return [
        *tokenizers,
        Job(
            "generator, 7B", partial(generator_cost, TokenFlowTextToImageConfig()), 120e6, 16,
            "two epochs of 60 M pictures (§4.1)", is_sharded=True,
        ),
        Job(
            "understanding, 14B, projector", partial(understanding_cost, understanding, 1), 558e3, 8,
            "LLaVA-1.5's 558 K captions", is_sharded=True,
        ),
        Job(
            "understanding, 14B", partial(understanding_cost, understanding, 2), 665e3, 4,
            "LLaVA-1.5's 665 K conversations", is_sharded=True,
        ),
    ]  # fmt: skip


def row(job: Job, gpus: int, gpu: str, utilization: float) -> list[str]:
    """A line of the table. Sharded models recompute what their layers keep, as their recipes do."""
    cost = job.cost()
    memory = cost.bytes_per_gpu(0 if job.is_sharded else job.per_device_batch, gpus if job.is_sharded else 1)
    hours = cost.hours(job.samples, gpus, gpu, utilization, checkpointing=job.is_sharded)
    return [
        job.name,
        f"{cost.trained / 1e9:.2f} + {cost.frozen / 1e9:.2f} G",
        f"{cost.flops / 1e12:.2f}",
        f"{cost.activation_bytes / 1e9:.2f} GB",
        f"{memory / 1e9:.0f} GB" + (" + layers' inputs" if job.is_sharded else f" at {job.per_device_batch}"),
        f"{job.samples / 1e6:,.1f} M: {job.source}",
        f"{hours:,.0f}",
    ]


def table(jobs: list[Job], gpus: int, gpu: str, utilization: float) -> str:
    """The page's table, in Markdown."""
    heads = [
        "training",
        "parameters, trained + frozen",
        "TFLOP a sample",
        "kept a sample",
        "memory of a card",
        "samples",
    ]
    lines = [[*heads, f"hours on {gpus} {gpu.upper()}"], ["---", *["---:"] * 4, "---", "---:"]]
    lines += [row(job, gpus, gpu, utilization) for job in jobs]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(
    gpus: Annotated[int, typer.Option(min=1, help="How many cards.")] = 8,
    gpu: Annotated[str, typer.Option(help=f"Which: {', '.join(GPUS)}.")] = "h100",
    utilization: Annotated[float, typer.Option(help="Share of the peak that training reaches.")] = 0.4,
    output: Annotated[Path | None, typer.Option(help="A page whose table is written anew.")] = None,
) -> None:
    """Computes what the paper's trainings take."""
    if gpu not in GPUS:
        raise typer.BadParameter(f"expected one of {', '.join(GPUS)}; got {gpu!r}")
    if not 0 < utilization <= 1:
        raise typer.BadParameter(f"utilization must lie in (0, 1]; got {utilization}")
    text = table(paper_jobs(), gpus, gpu, utilization)
    if output is None:
        typer.echo(text)
        return
    replace_between(output, "<!-- table -->", "<!-- end of table -->", text)


if __name__ == "__main__":
    typer.run(main)
