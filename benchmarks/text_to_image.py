"""Speed, arithmetic and memory of the generator beside the naive way and this machine's own limits.

python -m benchmarks.text_to_image [--quick] [--full-size] [--tiny] [--output FILE.json]

Everything that is compared runs in one process, alternating, and the medians' ratios are what counts. bf16 is measured
too where the machine has instructions for it; random weights rarely give both ways the same codes in it.
"""

import statistics
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from benchmarks.measuring import (
    Row,
    count_flops,
    has_fast_bf16,
    interleaved,
    machine,
    machine_peak,
    peak_memory,
    resident,
    short,
    show,
    show_rows,
    write_results,
)
from benchmarks.naive_text_to_image import naive_generate
from transformers_tokenflow import TokenFlowConfig, TokenFlowForTextToImage, TokenFlowTextToImageConfig

TOP_K, TOP_P = [1200, 100, 1], [0.8, 0.8, 0.0]
# Of a sentence, and of the official negative prompt, with their beginning and "<img>".
PROMPT_TOKENS, NEGATIVE_TOKENS = 20, 64
# Scales with as many tokens are large.
LARGE = 10

# The image tokenizer has no part in what is measured but for its codebooks: it is small.
TOKENIZER: dict[str, Any] = {
    "image_size": 256,
    "scales": [1, 2, 4, 6, 8, 10, 12, 14, 16],
    "codebook_size": 32768,
    "pixel_channels": 32,
    "pixel_channel_multipliers": [1, 1, 1, 1, 1],
    "pixel_num_res_blocks": 1,
    "pixel_latent_channels": 32,
    "semantic_config": {
        "model_type": "vit",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 256,
        "patch_size": 16,
    },
    "semantic_feature_layer": -1,
    "semantic_decoder_config": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 16,
    },
}
TEXT = {
    "vocab_size": 32001,
    "pad_token_id": 32000,
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": 2048,
}


@dataclass
class Case:
    """A generator and its prompts."""

    model: TokenFlowForTextToImage
    prompt_ids: Tensor  # (1, P)
    negative_ids: Tensor  # (1, P')

    def generate(self, **options: Any) -> Tensor:
        """Codes (N, L) as the package draws them."""
        settings = {"guidance_scale": 7.5, "top_k": TOP_K, "top_p": TOP_P, **options}
        return self.model.generate(self.prompt_ids, negative_prompt_ids=self.negative_ids, **settings).codes

    def generate_naively(self, **options: Any) -> Tensor:
        """Codes (1, L) the straightforward way."""
        return naive_generate(self.model, self.prompt_ids, self.negative_ids, **options)


def make_case(text: dict[str, Any], tokenizer: TokenFlowConfig, dtype: torch.dtype = torch.float32) -> Case:
    """A generator with random weights, and random prompts."""
    torch.manual_seed(0)
    config = TokenFlowTextToImageConfig(text_config=text, tokenizer_config=tokenizer)
    model = TokenFlowForTextToImage._from_config(config, dtype=dtype).eval()
    prompts = (torch.randint(0, text["vocab_size"] - 1, (1, length)) for length in (PROMPT_TOKENS, NEGATIVE_TOKENS))
    return Case(model, *prompts)


# ---- Arithmetic ----


def counted_flops(case: Case) -> int:
    """The arithmetic of drawing a picture, as it is done."""
    return count_flops(case.generate)


def layers_flops(model: TokenFlowForTextToImage, num_tokens: int, num_pairs: int) -> int:
    """Of all layers, for tokens that make so many pairs of a query and a key."""
    text = model.config.text_config
    width = text.num_attention_heads * text.head_dim
    matrices = text.hidden_size * (
        2 * width + 2 * text.num_key_value_heads * text.head_dim + 3 * text.intermediate_size
    )
    return text.num_hidden_layers * (2 * num_tokens * matrices + 4 * num_pairs * width)


def pass_flops(model: TokenFlowForTextToImage, index: int, prompt_lengths: tuple[int, int]) -> int:
    """The least arithmetic of one pass over a scale after the first, with guidance: the scale's own tokens alone."""
    text, image = model.config.text_config, model.config.tokenizer_config
    num_tokens = image.scales[index] ** 2
    seen = sum(scale * scale for scale in image.scales[1 : index + 1])
    pairs = sum(num_tokens * (length + seen) for length in prompt_lengths)
    projector = 2 * num_tokens * text.hidden_size * (image.quantized_dim + text.hidden_size)
    head = 2 * num_tokens * text.hidden_size * image.codebook_size  # of guided states
    return layers_flops(model, 2 * num_tokens, pairs) + projector + head


def least_flops(case: Case) -> int:
    """The least arithmetic of a picture: prompts once, every pass its own tokens, scores of codes alone."""
    model, lengths = case.model, (case.prompt_ids.shape[1], case.negative_ids.shape[1])
    pairs = sum(length * (length + 1) // 2 for length in lengths)
    text, image = model.config.text_config, model.config.tokenizer_config
    prompts = layers_flops(model, sum(lengths), pairs)
    first_head = 2 * text.hidden_size * image.codebook_size  # without guidance
    passes = sum(pass_flops(model, index, lengths) for index in range(1, len(image.scales)))
    return prompts + first_head + len(TOP_K) * passes


# ---- Time ----


class Clock(BaseStreamer):
    """Notes when each pass ends."""

    def __init__(self) -> None:
        self.times = [time.perf_counter()]

    def put(self, value: Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass

    def durations(self) -> list[float]:
        """Seconds that the passes took, the prompts' with the first."""
        return [end - start for start, end in zip(self.times, self.times[1:], strict=False)]


def benchmark_passes(case: Case, repeats: int, peak: float) -> list[dict[str, Any]]:
    """Every large scale's passes, drawing included, beside the machine's peak."""
    runs = []
    for _ in range(repeats + 1):
        clock = Clock()
        case.generate(streamer=clock)
        runs.append(clock.durations())
    medians = [statistics.median(parts) for parts in zip(*runs[1:], strict=True)]
    lengths = (case.prompt_ids.shape[1], case.negative_ids.shape[1])
    rows = []
    for index, scale in enumerate(case.model.tokenizer.config.scales):
        if index == 0:
            continue
        first = 1 + (index - 1) * len(TOP_K)
        durations = medians[first : first + len(TOP_K)]
        flops = pass_flops(case.model, index, lengths)
        rows.append(
            {
                "scale": scale,
                "gflop_per_pass": flops / 1e9,
                **{f"pass_{number + 1}_seconds": duration for number, duration in enumerate(durations)},
                "peak_fraction": len(durations) * flops / sum(durations) / peak,
            }
        )
    return rows


def benchmark_picture(case: Case, repeats: int, peak: float) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The package against the straightforward way, and against the least arithmetic."""
    greedy = {"top_k": [1] * len(TOP_K), "top_p": [0.0] * len(TOP_K)}
    same = (case.generate(**greedy) == case.generate_naively(**greedy)).float().mean().item()
    ways = {
        "ours": case.generate,
        "four": partial(case.generate, num_images_per_prompt=4),
        "naive": case.generate_naively,
    }
    case.generate()  # the comparison of codes above has warmed up the rest
    durations = interleaved(ways, repeats, warm_up=False)
    ours, four, naive = (durations[name] for name in ways)
    passes = benchmark_passes(case, repeats, peak)
    large = [row for row in passes if row["scale"] >= LARGE] or passes[-1:]
    total = sum(row["gflop_per_pass"] for row in large)
    return {
        "ours_seconds": ours,
        "naive_seconds": naive,
        "same_greedy_codes": same,
        "four_pictures_seconds": four,
        "tflop": counted_flops(case) / 1e12,
        "least_tflop": least_flops(case) / 1e12,
        "large_scales_peak_fraction": total / sum(row["gflop_per_pass"] / row["peak_fraction"] for row in large),
        "ours_bytes": peak_memory(case.generate),
        "naive_bytes": peak_memory(case.generate_naively),
    }, passes


# ---- Full size ----


def draw_at_full_size(is_tiny: bool) -> dict[str, Any]:
    """One picture of a 7B with random weights in bf16, decoded: how long it takes, and the process's peak memory."""
    config = TokenFlowTextToImageConfig()
    text = {"model_type": "llama", **config.text_config.to_dict()}
    tokenizer: TokenFlowConfig = config.tokenizer_config
    if is_tiny:
        text |= {"num_hidden_layers": 1, "hidden_size": 128, "head_dim": 32, "num_attention_heads": 4}
        text |= {"num_key_value_heads": 4, "intermediate_size": 128}
        tokenizer = TokenFlowConfig.from_fields(TOKENIZER)
    start = time.perf_counter()
    case = make_case(text, tokenizer, torch.bfloat16)
    made = time.perf_counter()
    codes = case.generate(seed=0)
    drawn = time.perf_counter()
    with torch.no_grad():
        pixel_values = case.model.tokenizer.decode(codes).pixel_values
    decoded = time.perf_counter()
    return {
        "parameters": case.model.num_parameters(),
        "pixels": pixel_values.shape[-1],
        "init_seconds": made - start,
        "draw_seconds": drawn - made,
        "decode_seconds": decoded - drawn,
        "tflop": least_flops(case) / 1e12,
        "peak_fraction": least_flops(case) / (drawn - made) / machine_peak(torch.bfloat16)["matmul"],
        "peak_gib": resident("VmHWM") / 2**30,
    }


def mid_size(is_tiny: bool, dtype: torch.dtype) -> Case:
    """The generator that is compared, or a very small one to try the benchmark with."""
    if is_tiny:
        small = {"vocab_size": 101, "pad_token_id": 100, "hidden_size": 64, "intermediate_size": 96}
        text = {**TEXT, **small, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4}
        return make_case(text, TokenFlowConfig.from_fields({**TOKENIZER, "codebook_size": 2048}), dtype)
    return make_case(TEXT, TokenFlowConfig.from_fields(TOKENIZER), dtype)


def picture_rows(name: str, found: dict[str, Any], peak: float) -> list[Row]:
    """The generator's part of the table of all benchmarks."""
    ours, naive = "ours_seconds", "naive_seconds"
    durations, memory = (found[ours], found[naive]), (found["ours_bytes"], found["naive_bytes"])
    rates = (found["large_scales_peak_fraction"] * peak, peak)
    return [
        Row(name, "a picture, beside the straightforward way", *durations, "s", "at most 0.1"),
        Row(name, "extra memory, beside that way", *(size / 1e6 for size in memory), "MB", "at most 0.5"),
        Row(name, "four pictures, beside one", found["four_pictures_seconds"], found[ours], "s", "at most 3.2"),
        Row(name, "arithmetic, beside the least", found["tflop"], found["least_tflop"], "TFLOP", "at most 1.05"),
        Row(
            name, "large scales, beside the machine's peak", *(rate / 1e9 for rate in rates), "GFLOP/s", "at least 0.6"
        ),
        Row(name, "greedy codes that are the same in both ways", 100 * found["same_greedy_codes"], 100.0, "%"),
    ]


def main(
    quick: Annotated[bool, typer.Option(help="One repetition.")] = False,
    full_size: Annotated[bool, typer.Option(help="Draw a picture with a 7B in bf16, and nothing else.")] = False,
    tiny: Annotated[bool, typer.Option(help="Very small models, to see that the benchmark works.")] = False,
    output: Annotated[Path | None, typer.Option(help="Write the numbers as JSON.")] = None,
) -> None:
    """Measure the generator."""
    rows: list[Row] = []
    result: dict[str, Any] = {}
    if full_size:
        result["full_size"] = draw_at_full_size(tiny)
        show(f"A picture at full size, bf16, on {machine()}", [result["full_size"]])
    else:
        for dtype in [torch.float32, torch.bfloat16] if has_fast_bf16() else [torch.float32]:
            name, peak = short(dtype), machine_peak(dtype)["matmul"]
            picture, passes = benchmark_picture(mid_size(tiny, dtype), 1 if quick else 3, peak)
            show(f"Passes, {name}; the peak of {machine()} is {peak / 1e9:.0f} GFLOP/s", passes)
            found = picture_rows(f"generator of mid size, {name}", picture, peak)
            show_rows(f"A picture, {name}: prompt and negative prompt, 9 scales, three passes, guidance", found)
            rows += found
            result[name] = {"peak": peak, "picture": picture, "passes": passes}
    write_results(output, rows, **result)


if __name__ == "__main__":
    typer.run(main)
