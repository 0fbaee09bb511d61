"""Measures the small understanding model on held-out emoji; writes `results.json`.

    python -m training.evaluate_understanding hub_cards/tokenflow-tiny-understanding

It answers the questions of `data/tiny-questions` (see `training.prepare_questions`) freely and greedily, and an answer
counts if it is the right one, apart from spaces and articles. The yardstick for names is what the small CLIP, which the
image tokenizer learned its semantic features from, says of the same pictures: which of all names is the nearest.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import open_clip
import pyarrow.parquet as pq
import torch
import typer
from datasets import Dataset, load_dataset
from PIL import Image
from torch.nn import functional as F
from transformers import AutoModelForImageTextToText, AutoProcessor

from training.evaluate_teacher import image_features, text_features
from training.prepare_questions import SPLITS
from transformers_tokenflow import TokenFlowForConditionalGeneration
from transformers_tokenflow.answering import answer_conversations, ask, read_conversations

TEACHER = "hub_cards/tokenflow-tiny-teacher"
# What is asked about the pictures of a split. Of names that were never seen nobody can know more than their category.
ASKED = {
    "heldout_pairs": ("name", "yes_no", "colour", "style", "category", "count"),
    "heldout_names": ("category", "style", "colour", "yes_no"),
}
# The longest name has 19, and one more ends it.
MAX_NEW_TOKENS = 24
ARTICLES = {"a", "an", "the"}


@dataclass(frozen=True)
class Question:
    """A question about a picture, which is told by its index, the right answer and the one given."""

    picture: int
    kind: str
    question: str
    answer: str
    given: str = ""

    @property
    def is_right(self) -> bool:
        """Whether the answer given is the right one."""
        return normalize(self.given) == normalize(self.answer)


def normalize(answer: str) -> list[str]:
    """An answer's words and other signs in lower case, without articles."""
    return [word for word in re.findall(r"\w+|[^\w\s]", answer.lower()) if word not in ARTICLES]


class Answerer:
    """
    Answers questions about pictures.

    Args:
        model: any that transformers loads as one that reads pictures and texts.
        processor: with a chat template.
        batch_size: questions at a time.
    """

    def __init__(self, model: Any, processor: Any, batch_size: int = 128) -> None:
        self.model, self.processor, self.batch_size = model.eval(), processor, batch_size

    @torch.inference_mode()
    def read_pictures(self, images: Sequence[Image.Image]) -> Any:
        """Pictures as they are asked about: their codes (N, L), which spares reading them for every question."""
        if not isinstance(self.model, TokenFlowForConditionalGeneration):
            return images
        pixel_values = self.processor(images=images, return_tensors="pt")["pixel_values"]
        tokenizer = self.model.model.tokenizer
        return torch.cat([tokenizer.encode(part).codes for part in pixel_values.split(self.batch_size)])

    def answer(self, questions: Sequence[Question], images: Sequence[Image.Image]) -> list[Question]:
        """The same questions with the answers given to them; pictures are what their `picture` counts."""
        # Answers of one length are made together.
        order = sorted(range(len(questions)), key=lambda index: (questions[index].kind, len(questions[index].answer)))
        answered = list(questions)
        pictures = self.read_pictures(images)
        for start in range(0, len(order), self.batch_size):
            positions = order[start : start + self.batch_size]
            batch = [questions[index] for index in positions]
            conversations = [ask(pictures[question.picture], question.question) for question in batch]
            texts = answer_conversations(
                self.model, self.processor, conversations, do_sample=False, max_new_tokens=MAX_NEW_TOKENS
            )
            for index, text in zip(positions, texts, strict=True):
                answered[index] = replace(questions[index], given=text)
        return answered

    @torch.inference_mode()
    def surprise(self, questions: Sequence[Question], images: Sequence[Image.Image]) -> list[float]:
        """
        How unlikely the right answers are to the model, in nats, the token that ends them included.

        It tells models apart long before they give right answers.
        """
        tokenizer, values = self.processor.tokenizer, []
        pictures = self.read_pictures(images)
        for start in range(0, len(questions), self.batch_size):
            batch = questions[start : start + self.batch_size]
            conversations = [
                [*ask(pictures[question.picture], question.question), {"role": "assistant", "content": question.answer}]
                for question in batch
            ]
            inputs = read_conversations(self.model, self.processor, conversations, add_generation_prompt=False)
            answers = [f" {question.answer}{tokenizer.eos_token}" for question in batch]
            # Padding is on the left, so that answers are at the end.
            counts = torch.tensor([len(ids) for ids in tokenizer(answers, add_special_tokens=False)["input_ids"]])
            longest = int(counts.max())
            logits = self.model(**inputs, logits_to_keep=longest + 1).logits[:, :-1]
            losses = F.cross_entropy(logits.transpose(1, 2), inputs["input_ids"][:, -longest:], reduction="none")
            is_answer = torch.arange(longest) >= longest - counts[:, None]
            values += (losses * is_answer).sum(dim=1).tolist()
        return values


def read_questions(rows: Dataset, kinds: Sequence[str]) -> list[Question]:
    """The questions of some kinds, of all rows."""
    return [
        Question(index, **turn)
        for index, turns in enumerate(rows["questions"])
        for turn in turns
        if turn["kind"] in kinds
    ]


def standard_error(values: Sequence[float]) -> float:
    """Of the mean of values."""
    return float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else 0.0


def mean(values: Sequence[float]) -> dict[str, float]:
    """The mean of one value per picture, and its standard error."""
    return {"mean": round(float(np.mean(values)), 4), "standard_error": round(standard_error(values), 4)}


def rate(values: Sequence[float]) -> dict[str, float]:
    """The same of right answers, which are 1, and wrong ones, which are 0."""
    figures = mean(values)
    return {"accuracy": figures["mean"], "standard_error": figures["standard_error"]}


def by_picture(questions: Sequence[Question]) -> dict[int, float]:
    """The share of right answers for each picture."""
    right: dict[int, list[bool]] = defaultdict(list)
    for question in questions:
        right[question.picture].append(question.is_right)
    return {picture: float(np.mean(values)) for picture, values in right.items()}


def summarize(questions: Sequence[Question]) -> dict[str, Any]:
    """Accuracy and standard error over pictures, and what always giving the most frequent answer would get."""
    frequent = Counter(question.answer for question in questions).most_common(1)[0][1]
    shares = by_picture(questions)
    return {
        **rate(list(shares.values())),
        "questions": len(questions),
        "pictures": len(shares),
        "most_frequent_answer": round(frequent / len(questions), 4),
    }


def name_with_teacher(teacher: str, rows: Dataset, names: list[str]) -> np.ndarray:
    """Whether the small CLIP finds a picture's own name nearest of all: (N,) 0 or 1."""
    model, *_ = open_clip.create_model_and_transforms(f"local-dir:{teacher}")
    model.eval()
    texts = text_features(model, open_clip.get_tokenizer(f"local-dir:{teacher}"), names)
    nearest = (image_features(model, rows) @ texts.T).argmax(dim=1).tolist()
    return np.array([float(names[index] == name) for index, name in zip(nearest, rows["name"], strict=True)])


def compare(own: np.ndarray, yardstick: np.ndarray) -> dict[str, float]:
    """
    One accuracy as a share of another's on the same pictures.

    Args:
        own, yardstick: (N,) 0 or 1.

    Returns:
        The ratio, and its standard error, to first order in the deviations of both.
    """
    if not yardstick.any():
        return {"ratio": float("nan"), "standard_error": float("nan")}
    ratio = own.mean() / yardstick.mean()
    error = standard_error(own - ratio * yardstick) / yardstick.mean()
    return {"ratio": round(float(ratio), 4), "standard_error": round(float(error), 4)}


def judge_names(questions: Sequence[Question], rows: Dataset, teacher: str, names: list[str]) -> dict[str, Any]:
    """Names by the model and by the small CLIP, of all pictures and of those without a skin tone."""
    own = np.array([share for _, share in sorted(by_picture(questions).items())])
    reference = name_with_teacher(teacher, rows, names)
    plain = np.array([name == base for name, base in zip(rows["name"], rows["base_name"], strict=True)])
    results = {}
    for label, kept in (("all", np.ones_like(plain)), ("without_skin_tones", plain)):
        results[label] = {
            "pictures": int(kept.sum()),
            "model": rate(own[kept]),
            "teacher": rate(reference[kept]),
            "ratio_to_teacher": compare(own[kept], reference[kept]),
        }
    return {"names": len(names), **results}


def measure(answerer: Answerer, splits: dict[str, Dataset], teacher: str, names: list[str]) -> dict[str, Any]:
    """
    Every number of the card.

    Args:
        answerer: the model.
        splits: of `ASKED`, the rows with `image`, `name`, `base_name` and `questions`.
        teacher: folder of the small CLIP.
        names: all there are, of which it chooses.
    """
    results: dict[str, Any] = {}
    for split, rows in splits.items():
        images = rows["image"][:]
        answered = answerer.answer(read_questions(rows, ASKED[split]), images)
        kinds = {kind: [question for question in answered if question.kind == kind] for kind in ASKED[split]}
        results[split] = {kind: summarize(questions) for kind, questions in kinds.items() if questions}
        if "name" in ASKED[split]:
            results["names"] = judge_names(kinds["name"], rows, teacher, names)
            results["names"]["nats"] = mean(answerer.surprise(kinds["name"], images))
    return results


def read_names(data: Path) -> list[str]:
    """All names of the data."""
    tables = (pq.read_table(data / "pictures" / f"{split}.parquet", columns=["name"]) for split in SPLITS)
    return sorted({name for table in tables for name in table["name"].to_pylist()})


def load_splits(data: Path) -> dict[str, Dataset]:
    """The held-out pictures and the questions about them."""
    return {
        split: load_dataset("parquet", data_files=str(data / "pictures" / f"{split}.parquet"), split="train")
        for split in ASKED
    }


def main(
    model: Annotated[Path, typer.Argument()] = Path("hub_cards/tokenflow-tiny-understanding"),
    data: Path = Path("data/tiny-questions"),
    teacher: str = TEACHER,
    output: Annotated[Path | None, typer.Option(help="By default results.json in the model's folder.")] = None,
    batch_size: int = 128,
    threads: int = 2,
) -> None:
    """Evaluates the understanding model in the folder MODEL on the held-out pictures of DATA."""
    torch.set_num_threads(threads)
    loaded = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32)
    answerer = Answerer(loaded, AutoProcessor.from_pretrained(model), batch_size)
    results = measure(answerer, load_splits(data), teacher, read_names(data))
    (output or model / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    typer.echo(json.dumps(results, indent=2))


if __name__ == "__main__":
    typer.run(main)
