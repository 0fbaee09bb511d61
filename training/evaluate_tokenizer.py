"""Measures a small tokenizer on the held-out splits and on photographs nobody trained on; writes `results.json`.

python -m training.evaluate_tokenizer hub_cards/tokenflow-tiny
"""

import json
from pathlib import Path
from typing import Annotated, Any

import skimage.data
import torch
import typer
from datasets import Dataset, load_dataset
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance

from training.retrieval import cross_style_retrieval_accuracy
from transformers_tokenflow import TokenFlowModel
from transformers_tokenflow.evaluation.measures import CodebookUse
from transformers_tokenflow.evaluation.reconstruction import reconstruct
from transformers_tokenflow.trainers.data import PictureTransform
from transformers_tokenflow.trainers.teachers import Teacher, load_teacher

# Pictures that come inside scikit-image's package; its others would be downloaded.
SAMPLE_PHOTOS = ("astronaut", "cat", "coffee", "rocket")


def sample_photos() -> dict[str, Image.Image]:
    """Photographs of scikit-image and scikit-learn, which are in no training data."""
    photos = {name: Image.fromarray(getattr(skimage.data, name)()) for name in SAMPLE_PHOTOS}
    samples = load_sample_images()
    names = [Path(name).stem for name in samples.filenames]
    return photos | {name: Image.fromarray(array) for name, array in zip(names, samples.images, strict=True)}


def to_pixels(pictures: list[Image.Image], size: int) -> Tensor:
    """Pictures to (N, 3, size, size) in [-1, 1], as the official evaluation crops them."""
    transform = PictureTransform(size, train=False)
    return torch.stack([transform(picture, None) for picture in pictures])


def measure_split(
    model: TokenFlowModel, pixel_values: Tensor, distance: FrechetInceptionDistance | None = None
) -> dict[str, Tensor | None]:
    """Codes, PSNR per picture, and mean decoded semantic features of (N, 3, H, H), which go into the distance, too."""
    outputs = list(reconstruct(model, pixel_values))
    if distance is not None:
        for output in outputs:
            output.add_to(distance)
    features = [output.semantic_features.mean(dim=1) for output in outputs if output.semantic_features is not None]
    return {
        "codes": torch.cat([output.codes for output in outputs]),
        "psnr": torch.cat([output.psnr() for output in outputs]),
        "features": torch.cat(features) if features else None,
    }


@torch.no_grad()
def teacher_features(teacher: Teacher, pixel_values: Tensor, batch_size: int = 256) -> Tensor:
    """The teacher's mean patch features, which are its picture embeddings: (N, D)."""
    return torch.cat([teacher(batch).mean(dim=1) for batch in pixel_values.split(batch_size)])


def retrieval(features: Tensor, rows: Dataset) -> float:
    """Share of pictures whose nearest in another style is the same thing."""
    return cross_style_retrieval_accuracy(features, rows["name"], rows["style"])


def measure(
    model: TokenFlowModel,
    teacher: Teacher,
    splits: dict[str, Dataset],
    distance: FrechetInceptionDistance | None = None,
) -> dict[str, Any]:
    """Every number of the card; the splits' pictures and what came back go into the distance, if there is one."""
    size = model.config.image_size
    pixels = {name: to_pixels(rows["image"], size) for name, rows in splits.items()}
    outputs = {name: measure_split(model, batch, distance) for name, batch in pixels.items()}
    photos = sample_photos()
    photo_psnr = measure_split(model, to_pixels(list(photos.values()), size))["psnr"]
    codes = torch.cat([output["codes"] for output in outputs.values()])
    use = CodebookUse(model.config.scales, model.config.codebook_size)
    use.update(model.quantizer.split_codes(codes))
    results = {
        "psnr": {name: round(output["psnr"].mean().item(), 2) for name, output in outputs.items()},
        "psnr_sample_photos": {"mean": round(photo_psnr.mean().item(), 2)}
        | {name: round(value.item(), 2) for name, value in zip(photos, photo_psnr, strict=True)},
        "validation_pictures": len(codes),
        "codebook_utilization": round(use.utilization(), 4),
        "codebook_utilization_per_scale": {
            scale: round(share, 4) for scale, share in use.utilization_per_scale().items()
        },
    }
    decoded = outputs["heldout_names"]["features"]
    if decoded is not None:
        own = retrieval(teacher_features(teacher, pixels["heldout_names"]), splits["heldout_names"])
        ours = retrieval(decoded, splits["heldout_names"])
        results["retrieval_heldout_names"] = {
            "decoded_features": round(ours, 4),
            "teacher_features": round(own, 4),
            "ratio": round(ours / own, 4),
        }
    return results


def main(
    folder: Annotated[Path, typer.Argument()] = Path("hub_cards/tokenflow-tiny"),
    teacher: str = "local-dir:hub_cards/tokenflow-tiny-teacher",
    data: Path = Path("data/tiny"),
    output: Path | None = None,
    threads: int = 2,
) -> None:
    """Evaluates the tokenizer in FOLDER on the held-out splits of DATA."""
    torch.set_num_threads(threads)
    model = TokenFlowModel.from_pretrained(folder, dtype=torch.float32).eval()
    splits = {name: rows for name, rows in load_dataset(str(data)).items() if name != "train"}
    results = measure(model, load_teacher(teacher), splits)
    (output or folder / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    typer.echo(json.dumps(results, indent=2))


if __name__ == "__main__":
    typer.run(main)
