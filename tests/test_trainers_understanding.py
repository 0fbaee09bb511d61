# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""The understanding model's trainer: loss, learning, resuming, packing, lengths, adapters, two processes, answers."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_training import gradient_pictures
from tiny_understanding_training import (
    NAMES,
    codes_of,
    divided_rows,
    message_rows,
    question_rows,
    tiny_arguments,
    tiny_pair,
    tiny_trainer,
)
from transformers import AutoModelForImageTextToText, AutoProcessor

from transformers_tokenflow import TokenFlowForConditionalGeneration, UnderstandingTrainer
from transformers_tokenflow.trainers.checkpoints import EXTRA_STATE_NAME
from transformers_tokenflow.trainers.conversation_batches import ConversationCollator
from transformers_tokenflow.trainers.conversation_data import IGNORED, conversations
from transformers_tokenflow.trainers.recipe import last_checkpoint

EVERYTHING: dict[str, Any] = {
    "max_steps": 6,
    "save_strategy": "steps",
    "save_steps": 3,
    "gradient_accumulation_steps": 2,
    "per_device_train_batch_size": 2,
    "ema_decay": 0.9,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 2,
}


def logged(trainer: Any, first_step: int = 0) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "loss" in entry and entry["step"] > first_step]


def state(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """Names of the tensors that differ."""
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


def batch_of(trainer: Any, indices: list[int]) -> dict[str, torch.Tensor]:
    return trainer.data_collator([trainer.train_dataset[index] for index in indices])


# ---- Loss ----


def test_loss_is_the_models_own(tmp_path):
    trainer = tiny_trainer(tmp_path)
    batch = batch_of(trainer, list(range(6)))
    with torch.no_grad():
        expected = trainer.model(**batch).loss
        torch.testing.assert_close(trainer.compute_loss(trainer.model, batch), expected)
        half = trainer.compute_loss(trainer.model, batch, num_items_in_batch=2 * (batch["labels"] != IGNORED).sum())
    torch.testing.assert_close(half, expected / 2)


def test_scores_are_computed_where_answers_are_alone(tmp_path):
    trainer = tiny_trainer(tmp_path)
    batch = batch_of(trainer, [0, 1, 2])
    with torch.no_grad():
        logits, targets = trainer.answer_logits(trainer.model, batch)
        whole = trainer.model(**{name: value for name, value in batch.items() if name != "labels"}).logits
    kept = (batch["labels"][:, 1:] != IGNORED).any(dim=0).nonzero()[:, 0]
    assert logits.shape[1] == len(kept) < batch["labels"].shape[1] - 16
    torch.testing.assert_close(logits, whole[:, kept])
    assert torch.equal(targets, batch["labels"][:, kept + 1])


def test_loss_of_a_step_is_the_mean_over_its_answers_tokens_however_it_is_divided(tmp_path):
    whole = tiny_trainer(tmp_path / "whole", per_device_train_batch_size=8, max_steps=3)
    parts = tiny_trainer(tmp_path / "parts", per_device_train_batch_size=2, gradient_accumulation_steps=4, max_steps=3)
    whole.train()
    parts.train()
    assert [entry["loss"] for entry in logged(parts)] == pytest.approx([entry["loss"] for entry in logged(whole)], 1e-4)
    for name, tensor in state(parts).items():
        torch.testing.assert_close(tensor, state(whole)[name], atol=1e-4, rtol=1e-3)


def test_pictures_are_encoded_by_the_model(tmp_path):
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "messages": datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")}),
        }
    )
    columns = {"image": gradient_pictures(4), "messages": message_rows(4, text_only=0)["messages"][:]}
    trainer = tiny_trainer(tmp_path, rows=datasets.Dataset.from_dict(columns, features=features), max_steps=1)
    batch = batch_of(trainer, [0, 1, 2, 3])
    codes = trainer.model.model.tokenizer.encode(batch["pixel_values"]).codes
    with_codes = {name: value for name, value in batch.items() if name != "pixel_values"} | {"image_codes": codes}
    with torch.no_grad():
        losses = [trainer.compute_loss(trainer.model, inputs) for inputs in (batch, with_codes)]
        torch.testing.assert_close(losses[0], losses[1])
        torch.testing.assert_close(losses[0], trainer.model(**batch).loss, atol=1e-3, rtol=1e-3)
    trainer.train()
    assert np.isfinite(logged(trainer)[-1]["loss"])


@pytest.mark.parametrize("text_only", [1, 2])
def test_text_alone_is_learned_beside_pictures_and_without(tmp_path, text_only):
    trainer = tiny_trainer(tmp_path, rows=message_rows(8, text_only), max_steps=2, per_device_train_batch_size=8)
    assert ("image_codes" in next(iter(trainer.get_train_dataloader()))) == (text_only == 2)
    before = state(trainer)
    trainer.train()
    learned = changed(before, state(trainer))
    assert "lm_head.weight" in learned
    assert ("model.projector.linear_1.weight" in learned) == (text_only == 2)


def test_text_alone_has_nothing_to_teach_the_projector_but_is_no_error(tmp_path):
    trainer = tiny_trainer(tmp_path, message_rows(8, text_only=1), trainable_parts=["model.projector"], max_steps=2)
    before = state(trainer)
    trainer.train()
    assert len(logged(trainer)) == 2 and not changed(before, state(trainer))


def test_label_smoothing_is_heeded(tmp_path):
    plain, smooth = tiny_trainer(tmp_path), tiny_trainer(tmp_path, label_smoothing_factor=0.1)
    batch = batch_of(plain, [1, 2])
    with torch.no_grad():
        logits, targets = plain.answer_logits(plain.model, batch)
        expected = torch.nn.functional.cross_entropy(logits[targets >= 0], targets[targets >= 0], label_smoothing=0.1)
        torch.testing.assert_close(smooth.compute_loss(plain.model, batch), expected)


# ---- Training ----


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Any:
    trainer = tiny_trainer(tmp_path_factory.mktemp("uninterrupted"), question_rows(), **EVERYTHING)
    trainer.train()
    return trainer


def resumed_run(folder: Path, rows: Any, options: dict[str, Any], model: Any = lambda: None) -> Any:
    """A run that was interrupted after three steps."""
    tiny_trainer(folder, rows, model(), **{**options, "max_steps": 3}).train()
    torch.manual_seed(99)
    random.seed(99)
    resumed = tiny_trainer(folder, rows, model(), **options)
    resumed.train(resume_from_checkpoint=last_checkpoint(folder))
    return resumed


def assert_same_run(resumed: Any, whole: Any) -> None:
    assert resumed.state.global_step == whole.state.global_step == 6
    assert not changed(state(resumed), state(whole))
    assert [entry["loss"] for entry in logged(resumed, 3)] == [entry["loss"] for entry in logged(whole, 3)]
    for ours, other in zip(resumed.averaged.parameters(), whole.averaged.parameters(), strict=True):
        assert torch.equal(ours, other)


def test_resumed_run_ends_bit_for_bit_like_one_that_was_not_interrupted(uninterrupted, tmp_path):
    # The schedule depends on the number of steps: the interrupted run ends at half of them, not knowing of the rest.
    options = {**EVERYTHING, "lr_scheduler_type": "constant_with_warmup"}
    whole = tiny_trainer(tmp_path / "whole", question_rows(), **options)
    whole.train()
    assert_same_run(resumed_run(tmp_path / "parts", question_rows(), options), whole)


@pytest.mark.parametrize(
    "changes",
    [
        {"train_sampling_strategy": "group_by_length"},
        # Of two steps in each epoch, the interruption comes in the second one.
        {"train_sampling_strategy": "group_by_length", "per_device_train_batch_size": 8},
        {"packing": True, "max_length": 100},
        {"muon": True},
    ],
)
def test_other_runs_resume_too(tmp_path, changes):
    options = {**EVERYTHING, "lr_scheduler_type": "constant_with_warmup", "gradient_accumulation_steps": 1, **changes}
    whole = tiny_trainer(tmp_path / "whole", **options)
    whole.train()
    assert_same_run(resumed_run(tmp_path / "parts", None, options), whole)


def test_it_learns_and_says_so(tmp_path):
    trainer = tiny_trainer(
        tmp_path,
        message_rows(16, text_only=0),
        max_steps=60,
        per_device_train_batch_size=16,
        learning_rate=5e-3,
        logged_answers=2,
    )
    trainer.train()
    first, last = logged(trainer)[0], logged(trainer)[-1]
    assert first["loss"] > 3.5 and last["loss"] < 0.3
    assert last["token_accuracy"] > 0.9 > first["token_accuracy"]
    trainer.eval_dataset = conversations(message_rows(8, 0), trainer.processing_class, trainer.model.config)
    metrics = trainer.evaluate()
    assert metrics["eval_answer_accuracy"] == 1 and metrics["eval_token_accuracy"] == 1 and metrics["eval_loss"] < 0.3
    texts = (tmp_path / "answers" / "eval-60.txt").read_text(encoding="utf-8").splitlines()
    assert texts == ["user: what is it? assistant: → apple (apple)", "user: what is it? assistant: → house (house)"]
    processor = trainer.processing_class
    message = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is it?"}]}]
    text = processor.apply_chat_template(message, add_generation_prompt=True)
    inputs = processor(text=[text] * 2, image_codes=[codes_of("fish"), codes_of("moon")], return_tensors="pt")
    ids = trainer.model.generate(**inputs, do_sample=False, max_new_tokens=10)[:, inputs["input_ids"].shape[1] :]
    assert processor.batch_decode(ids, skip_special_tokens=True) == ["fish", "moon"]


def test_only_what_is_trained_is_averaged(uninterrupted):
    model = uninterrupted.model
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(list(uninterrupted.averaged.module.parameters())) == len(trained) < len(list(model.parameters()))
    saved = torch.load(Path(uninterrupted.args.output_dir) / "checkpoint-6" / EXTRA_STATE_NAME, weights_only=True)
    assert saved.keys() == {"averaged"}


def test_the_image_tokenizer_stays_as_it_was(uninterrupted):
    tokenizer = uninterrupted.model.model.tokenizer
    uninterrupted.model.train()
    assert not any(module.training for module in tokenizer.modules())
    assert not any(parameter.requires_grad for parameter in tokenizer.parameters())
    untrained = tiny_pair()[0].model.tokenizer.state_dict()
    assert not changed(untrained, tokenizer.state_dict())


def test_saved_folder_holds_everything_with_averaged_weights(uninterrupted, tmp_path):
    uninterrupted.save_model(str(tmp_path))
    loaded, processor = AutoModelForImageTextToText.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    with uninterrupted.averaged_weights():
        assert not changed(loaded.state_dict(), state(uninterrupted))
    assert changed(loaded.state_dict(), state(uninterrupted))
    assert processor.chat_template == uninterrupted.processing_class.chat_template
    assert processor.image_token_id == loaded.config.image_token_id


def test_stage_one_trains_the_projector_alone(tmp_path):
    trainer = tiny_trainer(tmp_path, trainable_parts=["model.projector"], max_steps=2)
    before = state(trainer)
    trainer.train()
    learned = changed(before, state(trainer))
    assert learned and all(name.startswith("model.projector.") for name in learned)


def test_gradient_checkpointing_changes_nothing(tmp_path):
    plain = tiny_trainer(tmp_path / "plain", max_steps=3)
    checkpointed = tiny_trainer(tmp_path / "checkpointed", max_steps=3, activation_checkpointing=True)
    plain.train()
    checkpointed.train()
    assert checkpointed.model.is_activation_checkpointing
    assert not changed(state(plain), state(checkpointed))


def test_bf16_on_the_cpu(tmp_path):
    trainer = tiny_trainer(tmp_path, bf16=True, max_steps=2, ema_decay=0.5, logged_answers=1)
    trainer.train()
    assert np.isfinite(logged(trainer)[-1]["loss"]) and np.isfinite(trainer.evaluate()["eval_loss"])
    assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())


def test_two_processes_give_the_losses_and_weights_of_one(tmp_path):
    """By turns one of the processes sees text alone, and so no picture that its projector could learn from."""
    settings = {"max_steps": 4, "train_sampling_strategy": "sequential", "learning_rate": 1e-3}
    one = tiny_trainer(tmp_path / "one", divided_rows(), per_device_train_batch_size=4, **settings)
    one.train()
    metrics = one.evaluate()
    script = Path(__file__).with_name("tiny_understanding_training.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    options = json.dumps(
        {**settings, "per_device_train_batch_size": 2, "ddp_backend": "gloo", "activation_checkpointing": True}
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    (tmp_path / "two").mkdir()
    subprocess.run([*command, script, str(tmp_path / "two"), options], check=True, env=environment, timeout=250)
    two = torch.load(tmp_path / "two" / "result.pt", weights_only=True)
    assert two["losses"] == pytest.approx([entry["loss"] for entry in logged(one)], rel=1e-4)
    for name, tensor in two["weights"].items():
        torch.testing.assert_close(tensor, state(one)[name], atol=1e-5, rtol=1e-3)
    for name in ("eval_loss", "eval_token_accuracy", "eval_answer_accuracy"):
        assert two["metrics"][name] == pytest.approx(metrics[name], rel=1e-4)


# ---- Evaluation ----


def test_measures_are_means_over_tokens_whatever_the_batches(tmp_path):
    results = [tiny_trainer(tmp_path, per_device_eval_batch_size=size).evaluate() for size in (2, 5)]
    for name in ("eval_loss", "eval_token_accuracy", "eval_answer_accuracy"):
        assert results[0][name] == pytest.approx(results[1][name], rel=1e-5)
    trainer = tiny_trainer(tmp_path)
    batch = ConversationCollator(0)([trainer.eval_dataset[index] for index in range(5)])
    with torch.no_grad():
        assert results[0]["eval_loss"] == pytest.approx(trainer.model(**batch).loss.item(), rel=1e-5)


def test_datasets_are_evaluated_by_name_and_answers_are_always_the_same(tmp_path):
    texts = []
    for run in ("one", "other"):
        trainer = tiny_trainer(tmp_path / run, logged_answers=3)
        parts = {"codes": question_rows(4), "text": message_rows(4, text_only=1)}
        config, processor = trainer.model.config, trainer.processing_class
        trainer.eval_dataset = {name: conversations(rows, processor, config) for name, rows in parts.items()}
        metrics = trainer.evaluate()
        assert {"eval_codes_loss", "eval_text_token_accuracy"} <= metrics.keys()
        texts.append([(tmp_path / run / "answers" / f"eval_{name}-0.txt").read_text() for name in parts])
    assert texts[0] == texts[1] and all(len(text.splitlines()) == 3 for text in texts[0])


def test_answers_are_to_the_first_question_with_its_picture_alone(tmp_path):
    trainer = tiny_trainer(tmp_path)
    features = datasets.Features(
        {
            "images": datasets.List(datasets.Image()),
            "messages": datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")}),
        }
    )
    turns = [("user", "<image> a"), ("assistant", "b"), ("user", "<image> c"), ("assistant", "d")]
    messages = [{"role": role, "content": content} for role, content in turns]
    columns = {"images": [gradient_pictures(2)], "messages": [messages]}
    rows = datasets.Dataset.from_dict(columns, features=features)
    example = conversations(rows, trainer.processing_class, trainer.model.config)[0]
    line = trainer.answer(example)
    assert line.startswith("user: a assistant: →") and line.endswith("(b)")


def test_rows_are_evaluated_as_those_of_the_constructor(tmp_path):
    trainer = tiny_trainer(tmp_path)
    expected = trainer.evaluate()["eval_loss"]
    assert trainer.evaluate(message_rows(5))["eval_loss"] == expected
    assert trainer.evaluate({"same": message_rows(5)})["eval_same_loss"] == expected
    assert trainer.predict(message_rows(5)).metrics["test_loss"] == expected


def test_examples_without_answers_count_for_nothing(tmp_path):
    silent = {"input_ids": [1, 2, 3, 4], "labels": [4, *[IGNORED] * 3]}  # nothing predicts the first token
    spoken = {**silent, "labels": [IGNORED, 2, 3, 4]}
    trainer = tiny_trainer(tmp_path, [silent] * 4, logged_answers=2, max_steps=1)
    expected = trainer.evaluate([spoken])
    metrics = trainer.evaluate([silent, spoken, silent])
    assert metrics["eval_loss"] == pytest.approx(expected["eval_loss"])
    assert (tmp_path / "answers" / "eval-0.txt").read_text(encoding="utf-8").count("→") == 1
    with pytest.raises(ValueError, match="no token of an answer"):
        trainer.evaluate([silent])
    trainer.train()
    assert logged(trainer)[0]["loss"] == 0


def test_nothing_to_evaluate(tmp_path):
    trainer = tiny_trainer(tmp_path, dataloader_drop_last=True, per_device_eval_batch_size=8)
    with pytest.raises(ValueError, match="dataloader_drop_last leaves no batch"):
        trainer.evaluate()


# ---- Packing and lengths ----


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_conversations_do_not_see_each_other(tmp_path, attention):
    model, _ = tiny_pair()
    model.set_attn_implementation(attention)
    packed = tiny_trainer(tmp_path, model=model, packing=True, max_length=160)
    single = tiny_trainer(tmp_path, model=model)
    rows = packed.train_dataset.rows
    assert len(rows) < 8 and max(map(len, rows)) > 2
    batch = batch_of(packed, list(range(len(rows))))
    assert "attention_mask" not in batch
    with torch.no_grad():
        together = packed.compute_loss(model, batch)
        apart = single.compute_loss(model, batch_of(single, list(range(16))))
        torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)
        # What is said in the first conversation of a row does not reach the second one.
        inputs = {name: value for name, value in batch_of(packed, [0]).items() if name != "labels"}
        start = int((inputs["position_ids"][0] == 0).nonzero()[1, 0])
        before = model(**inputs, use_cache=False).logits
        other = inputs["input_ids"].clone()
        other[0, start - 3 : start] = 5
        after = model(**{**inputs, "input_ids": other}, use_cache=False).logits
    torch.testing.assert_close(after[:, start:], before[:, start:])
    assert not torch.allclose(after[:, :start], before[:, :start])


def test_what_can_not_be_packed(tmp_path):
    for rows in (question_rows(), message_rows().to_iterable_dataset()):
        with pytest.raises(ValueError, match="packing needs to know how long conversations are"):
            tiny_trainer(tmp_path, rows=rows, packing=True)
    model, _ = tiny_pair()
    model.config.text_config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(ValueError, match="kept apart in rows alone: set per_device_train_batch_size to 1"):
        tiny_trainer(tmp_path, model=model, packing=True)


def test_batches_of_like_lengths_without_reading_pictures(tmp_path, monkeypatch):
    trainer = tiny_trainer(tmp_path, message_rows(64, 2), train_sampling_strategy="group_by_length")
    dataset = trainer.train_dataset
    monkeypatch.setattr(dataset.reader, "pictures", lambda *_: pytest.fail("a picture was read"))
    indices = list(trainer._get_train_sampler())
    assert sorted(indices) == list(range(64))
    spreads = [np.ptp([dataset.lengths[index] for index in indices[start : start + 4]]) for start in range(0, 64, 4)]
    assert np.mean(spreads) < 0.3 * np.ptp(dataset.lengths)


@pytest.mark.parametrize("rows", [message_rows(8), question_rows(8)])
def test_batches_of_like_lengths_are_evaluated_in_order(tmp_path, rows):
    options = {"train_sampling_strategy": "group_by_length", "eval_strategy": "steps", "eval_steps": 1, "max_steps": 1}
    trainer = tiny_trainer(tmp_path, rows, **options)
    trainer.train()
    assert trainer.evaluate()["eval_loss"] == tiny_trainer(tmp_path, rows, model=trainer.model).evaluate()["eval_loss"]


def test_lengths_of_drawn_questions_are_found_by_reading(tmp_path):
    trainer = tiny_trainer(tmp_path, question_rows(8), train_sampling_strategy="group_by_length", max_steps=1)
    trainer.train()
    assert len(logged(trainer)) == 1


def test_examples_may_be_made_by_a_transform(tmp_path):
    examples = [tiny_trainer(tmp_path).train_dataset[index] for index in range(4)]
    rows = datasets.Dataset.from_dict({"index": list(range(4)), "messages": [[]] * 4}).with_transform(
        lambda rows: {name: [examples[index][name] for index in rows["index"]] for name in ("input_ids", "labels")}
    )
    trainer = tiny_trainer(tmp_path, rows)
    assert trainer.train_dataset is rows


# ---- Adapters ----


LORA: dict[str, Any] = {"lora_rank": 2, "lora_modules_to_save": ["projector"]}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    model, processor = tiny_pair()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_adapters_are_trained_saved_and_loaded(base, tmp_path):
    pytest.importorskip("peft")
    model = TokenFlowForConditionalGeneration.from_pretrained(base)
    trainer = tiny_trainer(tmp_path, model=model, logged_answers=1, **LORA)
    names = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert names and all("lora_" in name or ".projector.modules_to_save." in name for name in names)
    assert {name.split("layers.")[0] for name in names if "lora_" in name} == {"base_model.model.model.language_model."}
    trainer.train()
    expected = trainer.evaluate()["eval_loss"]
    trainer.save_model()
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert any("projector" in name for name in saved) and not any("tokenizer" in name for name in saved)
    again = tiny_trainer(tmp_path / "again", model=TokenFlowForConditionalGeneration.from_pretrained(tmp_path))
    assert again.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)
    again.train()
    assert again.evaluate()["eval_loss"] < expected


def test_adapters_resume_bit_for_bit(base, tmp_path):
    pytest.importorskip("peft")
    options = {**EVERYTHING, "lr_scheduler_type": "constant_with_warmup", **LORA}

    def model() -> Any:
        return TokenFlowForConditionalGeneration.from_pretrained(base)

    torch.manual_seed(5)
    whole = tiny_trainer(tmp_path / "whole", model=model(), **options)
    whole.train()
    torch.manual_seed(5)
    assert_same_run(resumed_run(tmp_path / "parts", None, options, model), whole)


# ---- Settings ----


def test_official_settings_are_the_defaults(tmp_path):
    args = type(tiny_arguments(tmp_path))(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    assert (args.learning_rate, args.warmup_steps, args.weight_decay, args.num_train_epochs) == (2e-5, 0.03, 0.0, 1)
    assert (str(args.lr_scheduler_type.value), args.max_length, args.optim.value) == (
        "cosine",
        2048,
        "adamw_torch_fused",
    )
    assert args.ddp_timeout_delta.days == 1  # tokenising millions of conversations takes hours


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"max_length": 0}, "max_length must be at least 1; got 0"),
        ({"turns_per_conversation": 0}, "turns_per_conversation must be at least 1"),
        ({"lora_modules_to_save": ["projector"]}, "set lora_rank too"),
        ({"trainable_parts": ["projector"]}, "no parameters begin with projector"),
        ({"trainable_parts": ["model.tokenizer"]}, "nothing would be trained"),
        ({"bf16_full_eval": True}, "of its own, without bf16_full_eval"),
    ],
)
def test_wrong_settings(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_trainer(tmp_path, **changes)


def test_a_processor_is_needed(tmp_path):
    with pytest.raises(ValueError, match="needs processing_class"):
        UnderstandingTrainer(tiny_pair()[0], tiny_arguments(tmp_path))


def test_names_of_the_data_are_different():
    assert len({tuple(codes_of(name)) for name in NAMES}) == len(NAMES)
