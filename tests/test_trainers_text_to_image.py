# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""The generator's trainer: learning, resuming, logging, averaging, adapters, what it draws."""

import random
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import tiny_text_to_image
from tiny_text_to_image_training import NAMES, code_rows, tiny_arguments, tiny_trainer
from tiny_training import gradient_pictures

from transformers_tokenflow import TokenFlowForTextToImage, TokenFlowProcessor
from transformers_tokenflow.trainers import TextToImageTrainer
from transformers_tokenflow.trainers.checkpoints import EXTRA_STATE_NAME
from transformers_tokenflow.trainers.recipe import last_checkpoint
from transformers_tokenflow.trainers.streams import ExampleStream

EVERYTHING: dict[str, Any] = {
    "max_steps": 20,
    "save_strategy": "steps",
    "save_steps": 10,
    "gradient_accumulation_steps": 2,
    "per_device_train_batch_size": 2,
    "text_dropout": 0.3,
    "first_sentence_probability": 0.3,
    "ema_decay": 0.9,
    "warmup_steps": 5,
}


def logged(trainer: Any, first_step: int = 0) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "loss" in entry and entry["step"] > first_step]


def state(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def assert_equal(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in expected)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Any:
    trainer = tiny_trainer(tmp_path_factory.mktemp("uninterrupted"), **EVERYTHING)
    trainer.train()
    return trainer


def test_resumed_run_ends_bit_for_bit_like_one_that_was_not_interrupted(uninterrupted, tmp_path):
    tiny_trainer(tmp_path, **{**EVERYTHING, "max_steps": 10}).train()
    torch.manual_seed(99)
    random.seed(99)
    resumed = tiny_trainer(tmp_path, **EVERYTHING)
    resumed.train(resume_from_checkpoint=last_checkpoint(tmp_path))
    assert resumed.state.global_step == 20
    assert_equal(state(resumed), state(uninterrupted))
    assert_equal(resumed.averaged.state_dict(), uninterrupted.averaged.state_dict())
    assert logged(resumed, 10) == logged(uninterrupted, 10)
    for key, values in resumed.optimizer.state_dict()["state"].items():
        assert_equal(values, uninterrupted.optimizer.state_dict()["state"][key])


def test_it_learns(tmp_path):
    trainer = tiny_trainer(tmp_path, max_steps=200, per_device_train_batch_size=8, text_dropout=0.0)
    trainer.train()
    first, last = logged(trainer)[0], logged(trainer)[-1]
    assert first["loss"] > 3.5 and last["loss"] < 1.0
    assert last["accuracy"] > 0.7 > first["accuracy"]
    metrics = trainer.evaluate()
    assert metrics["eval_accuracy"] > 0.7 and metrics["eval_loss"] < 1.0
    # In one pass: a further one feeds a scale's own codes, which a model that knows eight pictures by heart never saw.
    prompt = trainer.processing_class(text=[NAMES[1]], return_tensors="pt")
    drawn = trainer.model.generate(**prompt, guidance_scale=0, top_k=[1], top_p=[0.0])
    expected = torch.tensor(code_rows()[1]["codes"])
    assert (drawn.codes[0] == expected).float().mean() > 0.7


def test_only_what_is_trained_is_averaged(uninterrupted):
    model = uninterrupted.model
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(list(uninterrupted.averaged.module.parameters())) == len(trained) < len(list(model.parameters()))
    assert not any(parameter.requires_grad for parameter in model.tokenizer.parameters())
    saved = torch.load(Path(uninterrupted.args.output_dir) / "checkpoint-20" / EXTRA_STATE_NAME, weights_only=True)
    assert saved.keys() == {"averaged"}


def test_saved_folder_holds_everything_with_averaged_weights(uninterrupted, tmp_path):
    uninterrupted.save_model(str(tmp_path))
    loaded, processor = TokenFlowForTextToImage.from_pretrained(tmp_path), TokenFlowProcessor.from_pretrained(tmp_path)
    raw = state(uninterrupted)
    with uninterrupted.averaged_weights():
        assert_equal(loaded.state_dict(), state(uninterrupted))
    assert any(not torch.equal(tensor, raw[name]) for name, tensor in loaded.state_dict().items())
    codes = loaded.generate(**processor(text=["an owl"], return_tensors="pt"), guidance_scale=0, seed=0).codes
    assert loaded.tokenizer.decode(codes).pixel_values.shape == (1, 3, 32, 32)


def test_losses_and_accuracies_are_logged_per_scale(uninterrupted):
    for entry in [*logged(uninterrupted), uninterrupted.evaluate()]:
        prefix = "" if "loss" in entry else "eval_"
        for index in range(3):
            assert 0 <= entry[f"{prefix}accuracy_scale_{index}"] <= 1
            assert entry[f"{prefix}code_loss_scale_{index}"] > 0
        total = sum(size * entry[f"{prefix}code_loss_scale_{index}"] for index, size in enumerate((1, 4, 16)))
        if prefix:
            assert entry["eval_loss"] == pytest.approx(total / 21, rel=1e-4)


def test_every_picture_of_a_step_counts_alike_however_they_are_divided(tmp_path):
    changes = {"max_steps": 1, "optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.0}
    divisions = (
        {"per_device_train_batch_size": 14},
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4},
    )
    whole, parts = (tiny_trainer(tmp_path, code_rows(14), **changes, **division) for division in divisions)
    whole.train()
    parts.train()
    assert logged(parts)[0]["loss"] == pytest.approx(logged(whole)[0]["loss"], 1e-4)
    for name, tensor in state(parts).items():
        torch.testing.assert_close(tensor, state(whole)[name], atol=1e-5, rtol=1e-4)


def test_coarse_steps_train_the_first_scales_alone(tmp_path):
    trainer = tiny_trainer(tmp_path, coarse_step_probability=1.0, coarse_scales=2, max_steps=2, weight_decay=0.0)
    batch = next(iter(trainer.get_train_dataloader()))
    inputs = trainer.coarse(batch)
    assert torch.equal(inputs["labels"], batch["labels"][:, :5]) and torch.equal(
        inputs["codes"], batch["labels"][:, :1]
    )
    trainer.model.eval()
    with torch.no_grad():
        whole, coarse = trainer.model(**batch).logits, trainer.model(**inputs).logits
    torch.testing.assert_close(coarse, whole[:, :5])
    before = trainer.model.model.position_embedding.weight.clone()
    trainer.train()
    changed = (trainer.model.model.position_embedding.weight != before).any(dim=1)
    assert changed.tolist() == [True] * 5 + [False] * 16
    with pytest.raises(ValueError, match="coarse_scales must lie between 1 and the 3 scales; got 4"):
        tiny_trainer(tmp_path, coarse_scales=4)


def test_refinement_passes_are_trained_on_codes_of_which_a_share_is_drawn(tmp_path):
    trainer = tiny_trainer(tmp_path, refinement_probability=1.0, per_device_train_batch_size=8)
    batch = next(iter(trainer.get_train_dataloader()))
    drawn = torch.stack([trainer.draw_codes(trainer.model, batch) for _ in range(20)])
    kept = (drawn == batch["labels"]).float().mean(dim=2).flatten()
    # An untrained model hardly ever draws the right code, so that shares lie anywhere between none and all.
    assert kept.min() < 0.2 and kept.max() > 0.8 and 0.35 < kept.mean() < 0.65


def test_it_learns_to_refine(tmp_path):
    options = {"max_steps": 200, "per_device_train_batch_size": 8, "text_dropout": 0.0}
    accuracies = []
    for name, probability in (("without", 0.0), ("with", 1.0)):
        trainer = tiny_trainer(tmp_path / name, refinement_probability=probability, **options)
        trainer.train()
        prompt = trainer.processing_class(text=list(NAMES), return_tensors="pt")
        drawn = trainer.model.generate(**prompt, guidance_scale=0, top_k=[1, 1], top_p=[0.0, 0.0]).codes
        expected = torch.tensor([row["codes"] for row in code_rows()])[: len(drawn)]
        accuracies.append((drawn == expected).float().mean().item())
    assert accuracies[1] > 0.7 and accuracies[1] > accuracies[0] + 0.1


@pytest.mark.parametrize(
    "steps",
    [{"coarse_step_probability": 0.5, "coarse_scales": 1}, {"refinement_probability": 0.5}],
    ids=["coarse", "refinement"],
)
def test_steps_of_all_kinds_resume_bit_for_bit(tmp_path, steps):
    options = {**EVERYTHING, **steps}
    whole = tiny_trainer(tmp_path / "whole", **options)
    whole.train()
    tiny_trainer(tmp_path / "parts", **{**options, "max_steps": 10}).train()
    torch.manual_seed(99)
    resumed = tiny_trainer(tmp_path / "parts", **options)
    resumed.train(resume_from_checkpoint=last_checkpoint(tmp_path / "parts"))
    assert_equal(state(resumed), state(whole))


def test_samples_are_drawn_at_evaluation_and_always_the_same(tmp_path):
    options = {"sample_prompts": ["an owl", "car"], "sample_options": {"top_k": [5], "top_p": [0.0]}}
    for name in ("one", "other"):
        tiny_trainer(tmp_path / name, **options).evaluate()
    pictures = [
        np.asarray(Image.open(tmp_path / name / "pictures" / "eval_samples-0.png")) for name in ("one", "other")
    ]
    assert (pictures[0] == pictures[1]).all() and pictures[0].shape[1] > 2 * 32


def test_no_samples_where_no_pictures_are_logged(tmp_path):
    trainer = tiny_trainer(tmp_path, sample_prompts=["an apple"], logged_pictures=0)
    assert trainer.evaluate()["eval_loss"] > 0
    assert not (tmp_path / "pictures").exists()


def test_an_evaluation_of_nothing_is_an_error(tmp_path):
    trainer = tiny_trainer(tmp_path, dataloader_drop_last=True, per_device_eval_batch_size=8)
    with pytest.raises(ValueError, match="nothing to evaluate"):
        trainer.evaluate()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance": 3.0}, "sample_options: generate does not take guidance"),
        ({"seed": 3}, "sample_options: generate does not take seed"),
        ({"top_k": [5, 1], "top_p": [0.5]}, "an entry per pass"),
    ],
)
def test_sample_options_are_looked_at_before_training(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        tiny_trainer(tmp_path, sample_options=options)


def test_an_optimizer_that_is_given_can_not_be_another(tmp_path):
    model, processor = tiny_text_to_image()
    given = torch.optim.SGD(model.parameters(), lr=0.1)
    for changes in ({"muon": True}, {"part_learning_rates": {"visual_head": 0.0}}):
        with pytest.raises(ValueError, match="leave muon and part_learning_rates out"):
            TextToImageTrainer(
                model, tiny_arguments(tmp_path, **changes), processing_class=processor, optimizers=(given, None)
            )


def test_bf16_on_the_cpu(tmp_path):
    trainer = tiny_trainer(
        tmp_path, bf16=True, max_steps=3, ema_decay=0.5, sample_prompts=["owl"], sample_options={"guidance_scale": 2.0}
    )
    trainer.train()
    assert all(np.isfinite(entry["loss"]) for entry in logged(trainer))
    assert np.isfinite(trainer.evaluate()["eval_loss"])
    assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())


def test_text_head_learns_the_end_of_the_image_too(tmp_path):
    trainer = tiny_trainer(tmp_path, use_text_head=True, max_steps=2)
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["end_ids"].shape[0] == 4 and batch["end_ids"][0, -1] == trainer.processing_class.tokenizer.eos_token_id
    before = trainer.model.text_head.weight.clone()
    trainer.train()
    assert not torch.equal(trainer.model.text_head.weight, before)


def test_pictures_are_encoded_by_the_model(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    rows = datasets.Dataset.from_dict({"image": gradient_pictures(6), "text": NAMES[:6]}, features=features)
    trainer = tiny_trainer(tmp_path, rows=rows, max_steps=2)
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["pixel_values"].shape == (4, 3, 32, 32)
    labels = trainer._with_labels(batch)["labels"]
    assert torch.equal(labels, trainer.model.tokenizer.encode(batch["pixel_values"]).codes)
    trainer.train()
    assert np.isfinite(logged(trainer)[-1]["loss"])


def test_rows_are_evaluated_and_streamed_as_those_of_the_constructor(tmp_path):
    stream = code_rows().to_iterable_dataset().map(dict)
    trainer = tiny_trainer(tmp_path, rows=stream, max_steps=1)
    assert isinstance(trainer.train_dataset, ExampleStream)
    assert trainer.evaluate(code_rows(5))["eval_loss"] == trainer.evaluate()["eval_loss"]
    assert trainer.predict(code_rows(5)).metrics["test_accuracy"] == trainer.evaluate()["eval_accuracy"]


def test_rows_of_a_transform_are_taken_for_what_they_hold(tmp_path):
    examples = code_rows().with_transform(lambda rows: {"prompt": [text[0] for text in rows["text"]], **codes(rows)})
    tiny_trainer(tmp_path, examples).train()
    rows = code_rows().with_transform(lambda rows: {"text": ["fox"] * len(rows["text"]), **codes(rows)})
    trainer = tiny_trainer(tmp_path, rows, text_dropout=0.0)
    trainer.train()
    assert trainer.train_dataset[0]["prompt"] == "fox"


def codes(rows: dict[str, list]) -> dict[str, list]:
    return {"codes": rows["codes"]}


def test_official_settings_are_the_defaults(tmp_path):
    args = type(tiny_arguments(tmp_path))(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    assert (args.learning_rate, args.warmup_steps, args.weight_decay, args.max_grad_norm) == (5e-4, 5000, 0.1, 0.5)
    assert (args.text_dropout, args.first_sentence_probability) == (0.1, 0.2)
    assert str(args.lr_scheduler_type.value) == "constant_with_warmup"


def test_norms_and_biases_do_not_decay(tmp_path):
    trainer = tiny_trainer(tmp_path, weight_decay=0.1)
    decays = {
        id(p): group["weight_decay"] for group in trainer.create_optimizer().param_groups for p in group["params"]
    }
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad:
            assert decays[id(parameter)] == (0.0 if "norm" in name or name.endswith("bias") else 0.1), name
        else:
            assert id(parameter) not in decays and name.startswith("tokenizer.")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"text_dropout": 1.5}, "text_dropout must lie in"),
        ({"lora_rank": -1}, "lora_rank must not be negative"),
        ({"lora_modules_to_save": ["visual_head"]}, "set lora_rank too"),
        ({"sample_options": "[1]"}, "sample_options must map"),
        ({"sample_prompts": "an apple"}, "sample_prompts is a list of texts; got 'an apple'"),
        ({"trainable_parts": ["nothing"]}, "no parameters begin with nothing"),
        ({"label_smoothing_factor": 0.1}, "of its own, without label_smoothing_factor"),
    ],
)
def test_wrong_settings(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_trainer(tmp_path, **changes)


def test_a_processor_is_needed(tmp_path):
    model = tiny_trainer(tmp_path).model
    with pytest.raises(ValueError, match="needs processing_class"):
        type(tiny_trainer(tmp_path))(model, tiny_arguments(tmp_path))
