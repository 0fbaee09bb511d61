"""Speed of the understanding model beside transformers' LLaVA with the same language model and a vision tower as large.

python -m benchmarks.understanding [--quick] [--tiny FOLDER] [--output FILE.json]

The tower is once our semantic encoder, and once as many more layers of it as take the arithmetic of both encoders.
Everything that is compared runs in one process, alternating, and the medians' ratios are what counts.
"""

import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from transformers import LlavaConfig, LlavaForConditionalGeneration, PreTrainedModel

from benchmarks.measuring import Row, count_flops, interleaved, show_rows, write_results
from transformers_tokenflow import TokenFlowConfig, TokenFlowForConditionalGeneration, TokenFlowUnderstandingConfig

# Of a question with its conversation around it.
QUESTION_TOKENS = 32
ANSWER_TOKENS = 64
IMAGE_TOKEN = 1
# The official model with all widths and the codebook an eighth, and depths a quarter: what parts cost beside each other
# stays nearly what it is, but for the pixel encoder, whose depth can't be less than half.
TEXT = {
    "model_type": "qwen2",
    "vocab_size": 152064 // 8,
    "hidden_size": 640,
    "intermediate_size": 1728,
    "num_hidden_layers": 12,
    "num_attention_heads": 10,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
TOWER = {
    "model_type": "siglip_vision_model",
    "hidden_size": 144,
    "intermediate_size": 538,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "image_size": 384,
    "patch_size": 14,
    "vision_use_head": False,
}
TOKENIZER = {
    "codebook_size": 4096,
    "semantic_config": TOWER,
    "pixel_channels": 16,
    "pixel_num_res_blocks": 1,
    "pixel_latent_channels": 32,
    "norm_num_groups": 4,
    "semantic_decoder_config": {"hidden_size": 144, "intermediate_size": 576, "num_attention_heads": 4},
    "teacher_hidden_size": 144,
}


@dataclass
class Case:
    """A model of ours, its twins of transformers, and one picture with a question."""

    model: TokenFlowForConditionalGeneration
    twins: dict[str, PreTrainedModel]
    input_ids: Tensor  # (1, T)
    pixel_values: Tensor  # (1, 3, H, H)
    codes: Tensor  # (1, L)

    def answer(self, of: str, num_tokens: int) -> Tensor:
        """`num_tokens` of an answer, of our model from pixels or codes, or of a twin: (1, T + num_tokens)"""
        model = self.twins.get(of, self.model)
        inputs = {"image_codes": self.codes} if of == "codes" else {"pixel_values": self.pixel_values}
        options: dict[str, Any] = {"min_new_tokens": num_tokens, "max_new_tokens": num_tokens, "do_sample": False}
        mask = torch.ones_like(self.input_ids)
        return model.generate(self.input_ids, attention_mask=mask, **inputs, **options)


def make_twin(config: TokenFlowUnderstandingConfig, num_layers: int | None = None) -> PreTrainedModel:
    """A LLaVA with our semantic encoder, or one of other depth, as its tower, and the same language model."""
    torch.manual_seed(0)
    tower: Any = copy.deepcopy(config.tokenizer_config.semantic_config)
    tower.num_hidden_layers = tower.num_hidden_layers if num_layers is None else num_layers
    # CLIP's class token is no place of its own in the sequence.
    strategy = "default" if tower.model_type == "clip_vision_model" else "full"
    llava = LlavaConfig(
        vision_config=tower.to_dict(),
        text_config=config.text_config.to_dict(),
        image_token_index=config.image_token_id,
        vision_feature_layer=config.tokenizer_config.semantic_feature_layer,
        vision_feature_select_strategy=strategy,
        image_seq_length=config.num_image_features,
    )
    return LlavaForConditionalGeneration(llava).eval()


def make_case(config: TokenFlowUnderstandingConfig, model: TokenFlowForConditionalGeneration | None = None) -> Case:
    """Both models, with random weights unless ours is given, and random inputs."""
    torch.manual_seed(0)
    model = TokenFlowForConditionalGeneration(config).eval() if model is None else model
    size = config.tokenizer_config.image_size
    pixel_values = torch.rand(1, 3, size, size) * 2 - 1
    question = torch.randint(2, config.text_config.vocab_size, (QUESTION_TOKENS,))
    question[question == config.image_token_id] = 2
    ids = torch.cat([torch.full((config.num_image_features,), config.image_token_id), question])[None]
    twins = {"llava": make_twin(config), "larger_llava": make_twin(config, layers_of_both(model, pixel_values))}
    return Case(model, twins, ids, pixel_values, model.model.tokenizer.encode(pixel_values).codes)


def layers_of_both(model: TokenFlowForConditionalGeneration, pixel_values: Tensor) -> int:
    """How many layers of the semantic encoder take the arithmetic of both encoders and the quantiser."""
    with torch.device("meta"):
        towers = [make_twin(model.config, depth).model.vision_tower for depth in (1, 2)]
    one, two = (count_flops(partial(tower, pixel_values.to("meta"))) for tower in towers)
    return 1 + round((count_flops(lambda: model.model.tokenizer.encode(pixel_values)) - one) / (two - one))


def scaled_case() -> Case:
    """The official model, smaller in all its parts alike."""
    tokenizer = TokenFlowConfig.from_fields(TOKENIZER)
    config = TokenFlowUnderstandingConfig(
        text_config=TEXT, tokenizer_config=tokenizer.to_dict(), image_token_id=IMAGE_TOKEN
    )
    return make_case(config)


@torch.no_grad()
def measure(case: Case, repeats: int) -> dict[str, Any]:
    """Seconds to the first token and tokens per second after it, and what they make of the bars."""
    ways = ("pixels", "codes", *case.twins)
    first = interleaved({of: partial(case.answer, of, 1) for of in ways}, repeats)
    whole = interleaved({of: partial(case.answer, of, 1 + ANSWER_TOKENS) for of in ways}, repeats)
    rate = {of: ANSWER_TOKENS / (whole[of] - first[of]) for of in ways}
    return {
        "first_token_seconds": first,
        "tokens_per_second": rate,
        "first_token_beside_llava": first["pixels"] / first["llava"],
        "first_token_beside_larger_llava": first["pixels"] / first["larger_llava"],
        "decoding_beside_llava": rate["pixels"] / rate["llava"],
        "codes_beside_pixels": first["pixels"] / first["codes"],
    }


@torch.no_grad()
def official_arithmetic() -> dict[str, int]:
    """FLOPs to the first token at the official size, of both models, counted on the meta device."""
    config = TokenFlowUnderstandingConfig()
    with torch.device("meta"):
        model, twin = TokenFlowForConditionalGeneration(config).eval(), make_twin(config)
        pixels = torch.empty(1, 3, 384, 384)
        embeds = torch.empty(1, config.num_image_features + QUESTION_TOKENS, config.text_config.hidden_size)
    features = config.num_image_features * config.feature_dim
    projector = 2 * config.num_image_features * config.text_config.hidden_size * config.text_config.hidden_size
    return {
        "language_model": count_flops(lambda: model.model.language_model(inputs_embeds=embeds)),
        "projector": projector + 2 * features * config.text_config.hidden_size,
        "tokenflow_encoders": count_flops(lambda: model.model.tokenizer.extract_features(pixels)),
        "siglip": count_flops(lambda: twin.model.vision_tower(pixels, output_hidden_states=True)),
    }


def main(
    quick: Annotated[bool, typer.Option(help="Fewer repeats.")] = False,
    tiny: Annotated[Path, typer.Option(help="Folder of a trained model, measured as well if it is there.")] = Path(
        "hub_cards/tokenflow-tiny-understanding"
    ),
    output: Annotated[Path | None, typer.Option(help="JSON file for the figures.")] = None,
) -> None:
    """Compares with LLaVA."""
    repeats = 3 if quick else 7
    cases = {"the official model's parts, smaller": scaled_case}
    if tiny.is_dir():
        trained = TokenFlowForConditionalGeneration.from_pretrained(tiny, dtype=torch.float32).eval()
        cases[tiny.name] = partial(make_case, trained.config, trained)
    results: dict[str, Any] = {"official_flops": official_arithmetic()}
    rows: list[Row] = []
    for name, make in cases.items():
        found = results[name] = measure(make(), repeats)
        rows += answer_rows(name, found)
    show_rows("Answers", rows)
    flops = results["official_flops"]
    shared = flops["language_model"] + flops["projector"]
    ratio = (shared + flops["tokenflow_encoders"]) / (shared + flops["siglip"])
    results["official_first_token_flops_beside_llava"] = ratio
    typer.echo(f"arithmetic to the first token at the official size: {ratio:.3f} times LLaVA's")
    write_results(output, rows, **results)


def answer_rows(name: str, found: dict[str, Any]) -> list[Row]:
    """A model's part of the table of all benchmarks."""
    first = {of: 1e3 * duration for of, duration in found["first_token_seconds"].items()}
    further = {of: 1e3 / rate for of, rate in found["tokens_per_second"].items()}
    return [
        Row(name, "first token, beside LLaVA", first["pixels"], first["llava"], "ms", "at most 1.15"),
        Row(
            name,
            "first token, beside LLaVA with a tower as large as both encoders",
            first["pixels"],
            first["larger_llava"],
            "ms",
            "at most 1.15",
        ),
        Row(name, "first token, codes beside pixels", first["codes"], first["pixels"], "ms", "at most 0.5"),
        Row(name, "a further token, beside LLaVA", further["pixels"], further["llava"], "ms", "1"),
    ]


if __name__ == "__main__":
    typer.run(main)
