# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Questions about pictures: from any data, to any model, and to lmms-eval."""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import datasets
import pytest
import tomllib
import torch
from PIL import Image
from tiny_models import (
    TEXT_FIELDS,
    TOWER,
    tiny_conversation_processor,
    tiny_text_tokenizer,
    tiny_understanding_with_processor,
)
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

pytest.importorskip("accelerate")
pytest.importorskip("sklearn")
from accelerate import PartialState  # noqa: E402

from transformers_tokenflow.evaluation import EvaluationError, lmms_eval_plugin  # noqa: E402
from transformers_tokenflow.evaluation.data import describe_rows  # noqa: E402
from transformers_tokenflow.evaluation.parts import Parts  # noqa: E402
from transformers_tokenflow.evaluation.understanding import (  # noqa: E402
    SHORT_ANSWER,
    Answerer,
    answer_questions,
    ask,
    load_questions,
    read_answers,
    summarize,
)

COLUMNS = {"image": "image", "question": "question"}


def picture(color: str, size: int = 40) -> Image.Image:
    return Image.new("RGB", (size, size), color)


def tiny_llava() -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """LLaVA as transformers has it, with random weights."""
    tokenizer = tiny_text_tokenizer(pad_token="<unk>")
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    template = tiny_conversation_processor().chat_template
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(**TOWER, projection_dim=16),
            text_config=LlamaConfig(**TEXT_FIELDS, vocab_size=len(tokenizer), initializer_range=0.5),
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
            vision_feature_layer=-1,
        )
    )
    return model.eval(), processor


class TestAnswerer:
    @pytest.mark.parametrize(
        "make",
        [tiny_llava, lambda: tiny_understanding_with_processor(text_config={"initializer_range": 0.5})],
        ids=["llava", "tokenflow"],
    )
    def test_a_batch_answers_as_one_by_one(self, make, tmp_path):
        for part in make():
            part.save_pretrained(tmp_path)
        answerer = Answerer.from_pretrained(str(tmp_path), torch.device("cpu"), torch.float32)
        questions = [("red", "what is this?"), ("blue", "a far longer question about it, is it not?"), ("lime", "hm")]
        conversations = [ask(picture(color), text) for color, text in questions]
        options = {"do_sample": False, "max_new_tokens": 6}
        together = answerer.answer(conversations, **options)
        assert together == [answerer.answer([one], **options)[0] for one in conversations]
        assert len(set(together)) > 1 and all(text == text.strip() for text in together)

        inputs = answerer.processor.apply_chat_template(
            conversations[0], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        ids = answerer.model.generate(**inputs, **options)[0, inputs["input_ids"].shape[1] :]
        assert together[0] == answerer.processor.decode(ids, skip_special_tokens=True).strip()

    def test_mistakes(self, tmp_path):
        device = torch.device("cpu")
        with pytest.raises(EvaluationError, match="can't be loaded as an image-text-to-text model"):
            Answerer.from_pretrained(str(tmp_path), device, torch.float32)
        LlamaConfig(**TEXT_FIELDS).save_pretrained(tmp_path)
        with pytest.raises(EvaluationError, match="can't be loaded as an image-text-to-text model"):
            Answerer.from_pretrained(str(tmp_path), device, torch.float32)
        model, processor = tiny_llava()
        processor.chat_template = None
        for part in (model, processor):
            part.save_pretrained(tmp_path / "mute")
        with pytest.raises(EvaluationError, match="has no chat template"):
            Answerer.from_pretrained(str(tmp_path / "mute"), device, torch.float32)


def write_parquet(path: Path, **columns: list) -> None:
    features = datasets.Features({name: datasets.Image() for name in columns if name in ("image", "photo")})
    rows = datasets.Dataset.from_dict(columns)
    for name, feature in features.items():
        rows = rows.cast_column(name, feature)
    rows.to_parquet(path)


class TestData:
    def test_table(self, tmp_path):
        path = tmp_path / "q.parquet"
        write_parquet(path, photo=[picture("red"), picture("blue")], text=["color?", "what?"], answer=["red", "sky"])
        columns = {"image": "photo", "question": "text"}
        rows = load_questions(str(path), None, None, columns)
        assert rows.column_names == ["image", "question", "answers"] and len(rows) == 2
        assert rows[1]["image"].getpixel((0, 0)) == (0, 0, 255) and rows[1]["answers"] == "sky"
        assert len(load_questions(str(path), None, None, columns, limit=1)) == 1
        assert len(load_questions(str(path), None, None, columns, limit=9)) == 2
        described = describe_rows(str(path), None, rows)
        again = describe_rows(str(path), None, load_questions(str(path), None, None, columns))
        write_parquet(path, photo=[picture("red"), picture("green")], text=["color?", "what?"], answer=["red", "sky"])
        changed = describe_rows(str(path), None, load_questions(str(path), None, None, columns))
        assert again == described and changed.pop("files") != described.pop("files")
        assert (
            changed
            == described
            == {
                "dataset": "q",
                "on_hub": False,
                "path": str(path),
                "config": None,
                "split": "train",
                "revision": None,
                "rows": 2,
            }
        )

    def test_lines_with_paths(self, tmp_path):
        picture("red").save(tmp_path / "red.png")
        row = {"image": str(tmp_path / "red.png"), "question": "color?", "answers": ["red", "scarlet"]}
        (tmp_path / "q.jsonl").write_text(json.dumps(row))
        rows = load_questions(str(tmp_path / "q.jsonl"), None, None, COLUMNS)
        assert rows[0]["image"].size == (40, 40) and rows[0]["answers"] == ["red", "scarlet"]

    def test_folder_with_splits(self, tmp_path):
        for split, answer in (("train", "a"), ("validation", "b")):
            write_parquet(tmp_path / f"{split}-0.parquet", image=[picture("red")], question=["?"], answer=[answer])
        assert load_questions(str(tmp_path), None, None, COLUMNS)[0]["answers"] == "b"
        assert load_questions(str(tmp_path), None, "train", COLUMNS)[0]["answers"] == "a"
        with pytest.raises(EvaluationError, match='Unknown split "test"'):
            load_questions(str(tmp_path), None, "test", COLUMNS)

    def test_mistakes(self, tmp_path):
        path = tmp_path / "q.parquet"
        write_parquet(path, image=[picture("red")], question=["?"])
        with pytest.raises(EvaluationError, match="has no column answer; its columns are image, question"):
            load_questions(str(path), None, None, COLUMNS)
        with pytest.raises(EvaluationError, match="has no column photo"):
            load_questions(str(path), None, None, {**COLUMNS, "image": "photo"})
        (tmp_path / "q.txt").write_text("what?")
        with pytest.raises(EvaluationError, match="is no table"):
            load_questions(str(tmp_path / "q.txt"), None, None, COLUMNS)
        with pytest.raises(EvaluationError, match="can't be loaded"):
            load_questions(str(tmp_path / "nothing"), None, None, COLUMNS)

    def test_answers(self):
        assert read_answers("red") == ["red"] and read_answers(3) == ["3"]
        assert read_answers(["a", "b"]) == ["a", "b"]
        assert read_answers([{"answer": "a", "answer_id": 1}, {"answer": "b", "answer_id": 2}]) == ["a", "b"]
        for nothing in (None, []):
            with pytest.raises(EvaluationError, match="has no answer"):
                read_answers(nothing)


class Parrot:
    """Answers by the color of the picture, and remembers what it was asked."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def answer(self, conversations, **options):
        self.options = options
        contents = [conversation[0]["content"] for conversation in conversations]
        self.batches.append([content[1]["text"] for content in contents])
        return ["Yes" if content[0]["image"].getpixel((0, 0))[0] > 100 else "No" for content in contents]


def test_questions_are_asked_and_scored(tmp_path):
    colors = ["red", "blue", "red", "blue", "red"]
    rows = {
        "image": [picture(color) for color in colors],
        "question": [f"is {number} red?" for number in range(5)],
        "answer": ["yes", "no", "no", "no", "yes"],
    }
    write_parquet(tmp_path / "q.parquet", **rows)
    questions = load_questions(str(tmp_path / "q.parquet"), None, None, COLUMNS)
    parrot, kept, states = Parrot(), Parts(tmp_path / "parts", {}, PartialState(cpu=True)), []
    answer_questions(parrot, questions, kept, SHORT_ANSWER, 2, 7, lambda *state: states.append(state))
    records, sums = kept.collect()
    kept.close()
    assert [len(batch) for batch in parrot.batches] == [2, 2, 1] and states == [(2, 5), (4, 5), (5, 5)]
    assert parrot.batches[0][0] == "is 0 red?\nAnswer the question using a single word or phrase."
    assert parrot.options == {"do_sample": False, "max_new_tokens": 7}
    assert records["00000002"] == {"question": "is 2 red?", "answers": ["no"], "prediction": "Yes"}
    result = summarize(records, sums)
    assert result["questions"] == 5 and result["metrics"]["exact_match"] == 0.8
    assert result["metrics"]["yes_no_balanced_accuracy"] == pytest.approx((1 + 2 / 3) / 2)


def test_rows_that_can_not_be_read_are_left_out(tmp_path):
    picture("red").save(tmp_path / "red.png")
    content = (tmp_path / "red.png").read_bytes()
    images = [content, content[:60], None, content, content, b"no picture"]
    questions = ["is 0 red?", "cut?", "null?", None, "unanswered?", "broken?"]
    rows = {
        "image": [image and {"bytes": image, "path": None} for image in images],
        "question": questions,
        "answer": ["yes", "yes", "yes", "yes", None, "yes"],
    }
    table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image(decode=False))
    table.cast_column("image", datasets.Image()).to_parquet(tmp_path / "q.parquet")
    parrot, kept = Parrot(), Parts(tmp_path / "parts", {}, PartialState(cpu=True))
    loaded = load_questions(str(tmp_path / "q.parquet"), None, None, COLUMNS)
    answer_questions(parrot, loaded, kept, SHORT_ANSWER, 2, 7, lambda *state: None)
    records, sums = kept.collect()
    kept.close()
    result = summarize(records, sums)
    assert [len(batch) for batch in parrot.batches] == [1]
    assert result["questions"] == 1 and result["metrics"]["exact_match"] == 1
    assert list(result["unreadable"]) == [f"{number:08d}" for number in range(1, 6)]
    assert result["unreadable"]["00000002"] == "the row has no picture"
    assert result["unreadable"]["00000003"] == "the question is no text: got None"
    assert result["unreadable"]["00000004"] == "a question has no answer: got None"
    with pytest.raises(EvaluationError, match="none of the questions can be read"):
        summarize({name: record for name, record in records.items() if name != "00000000"}, sums)


@pytest.fixture
def lmms_eval(monkeypatch):
    """As much of lmms-eval 0.7 as the model touches."""

    class Model:
        def __init__(self):
            self.task_dict = {}
            self.cached = []
            self.cache_hook = SimpleNamespace(add_partial=lambda *arguments: self.cached.append(arguments))

    class Messages:
        def __init__(self, messages):
            self.messages = messages

        def to_hf_messages(self):
            return self.messages

    class Collator:
        """In its own order: from the last to the first, one kind of options at a time."""

        def __init__(self, requests, sort_fn, group_fn, grouping):
            assert grouping
            groups = {}
            for index, request in sorted(enumerate(requests), key=lambda item: -sort_fn(item[1])):
                groups.setdefault(json.dumps(group_fn(request)), []).append((index, request))
            self.groups, self.order = groups, []

        def get_batched(self, n):
            for group in self.groups.values():
                for start in range(0, len(group), n):
                    self.order += [index for index, _ in group[start : start + n]]
                    yield [request for _, request in group[start : start + n]]

        def get_original(self, answers):
            return [answer for _, answer in sorted(zip(self.order, answers, strict=True))]

    contents = {
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.api.instance": {"Instance": SimpleNamespace},
        "lmms_eval.api.model": {"lmms": Model},
        "lmms_eval.models": {},
        "lmms_eval.models.registry_v2": {"ModelManifest": SimpleNamespace},
        "lmms_eval.protocol": {"ChatMessages": Messages},
        "lmms_eval.utils": {"Collator": Collator},
    }
    for name, values in contents.items():
        module = ModuleType(name)
        module.__dict__.update(values)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "transformers_tokenflow.evaluation.lmms_eval_model", raising=False)


class TestLmmsEval:
    def test_entry_point(self, lmms_eval):
        project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
        path, _, name = project["entry-points"]["lmms_eval.models"]["tokenflow"].partition(":")
        assert (path, getattr(lmms_eval_plugin, name)) == (lmms_eval_plugin.__name__, lmms_eval_plugin.manifest)
        manifest = lmms_eval_plugin.manifest()
        assert manifest.model_id == "tokenflow"
        module, _, name = manifest.chat_class_path.rpartition(".")
        __import__(module)
        assert sys.modules[module].TokenFlow.__name__ == name and not sys.modules[module].TokenFlow.is_simple

    def test_requests_are_answered_in_their_order(self, lmms_eval, tmp_path):
        from transformers_tokenflow.evaluation.lmms_eval_model import TokenFlow

        for part in tiny_understanding_with_processor(text_config={"initializer_range": 0.5}):
            part.save_pretrained(tmp_path)
        model = TokenFlow(str(tmp_path), device="cpu", dtype="float32", batch_size="2", max_batch_size=4)
        documents = [(color, f"question {color}") for color in ("red", "blue", "lime")]
        model.task_dict = {"task": {"test": documents}}
        options = [{"max_new_tokens": 5}, {"max_new_tokens": 5}, {"max_new_tokens": 3, "until": ["\n"]}]

        def conversation(document):
            return ask(picture(document[0]), document[1])

        requests = [
            SimpleNamespace(args=(document[1], conversation, option, index, "task", "test"))
            for index, (document, option) in enumerate(zip(documents, options, strict=True))
        ]
        answers = model.generate_until(requests)
        for answer, document, option in zip(answers, documents, options, strict=True):
            tokens = option["max_new_tokens"]
            (expected,) = model.answerer.answer([conversation(document)], do_sample=False, max_new_tokens=tokens)
            assert answer == expected
        assert sorted(call[1][0] for call in model.cached) == sorted(document[1] for document in documents)
        assert (model._rank, model._world_size, model.batch_size) == (0, 1, 2)
        for method in (model.loglikelihood, model.generate_until_multi_round):
            with pytest.raises(NotImplementedError):
                method(requests)

    def test_options(self, lmms_eval):
        from transformers_tokenflow.evaluation.lmms_eval_model import cut, generate_options

        greedy = {"temperature": 0, "top_p": None, "num_beams": 1, "until": ["\n"], "max_new_tokens": 9}
        assert generate_options(greedy) == {"max_new_tokens": 9, "do_sample": False, "num_beams": 1}
        assert generate_options({"temperature": 0.5, "top_p": 0.9}) == {
            "max_new_tokens": 1024,
            "do_sample": True,
            "temperature": 0.5,
            "top_p": 0.9,
        }
        assert generate_options({"temperature": 0.5, "do_sample": False}) == {
            "max_new_tokens": 1024,
            "do_sample": False,
        }
        assert cut("a. b\nc", ["\n", "."]) == "a" and cut("a b", "b") == "a " and cut("a", []) == "a"
