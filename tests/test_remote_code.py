# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Saved folders in processes that do not have the package, and the package in processes that have little else.

Nothing of this can be tested in this process: once the package is imported, its classes win even over trusted code.
"""

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_models import tiny_model, tiny_text_to_image, tiny_understanding_with_processor
from transformers import AutoConfig, AutoImageProcessor, AutoModel
from transformers.dynamic_module_utils import get_imports

import transformers_tokenflow
from transformers_tokenflow import (
    TokenFlowConfig,
    TokenFlowImageProcessor,
    TokenFlowImageProcessorPil,
    TokenFlowModel,
)

CHECKOUT = Path(__file__).parents[1]
PACKAGE = CHECKOUT / "src" / "transformers_tokenflow"
CARDS = [path.parent for path in sorted(CHECKOUT.glob("hub_cards/*/modeling_tokenflow.py"))]
MODULES = {
    "autoencoder_tokenflow.py",
    "card_tokenflow.py",
    "configuration_tokenflow.py",
    "image_processing_pil_tokenflow.py",
    "image_processing_tokenflow.py",
    "image_reading_tokenflow.py",
    "modeling_tokenflow.py",
    "push_tokenflow.py",
    "quantization_tokenflow.py",
    "semantic_tokenflow.py",
}
GENERATOR_MODULES = MODULES | {
    "attention_tokenflow.py",
    "cache_tokenflow.py",
    "conversation_tokenflow.py",
    "drawing_tokenflow.py",
    "generation_tokenflow.py",
    "loss_tokenflow.py",
    "low_bits_tokenflow.py",
    "modeling_tokenflow_text_to_image.py",
    "pipeline_tokenflow.py",
    "processing_tokenflow.py",
    "projector_tokenflow.py",
    "sampling_tokenflow.py",
}
UNDERSTANDING_MODULES = MODULES | {
    "conversation_tokenflow.py",
    "low_bits_tokenflow.py",
    "modeling_tokenflow_understanding.py",
    "processing_tokenflow.py",
    "projector_tokenflow.py",
}
DIFFUSERS_MODULE = "pipeline_tokenflow_diffusers.py"
KINDS = ["clip", "siglip", "vit"]
REQUIREMENTS = {"torch", "transformers", "numpy", "PIL", "huggingface_hub"}

# Makes imports fail as they do where a distribution is not installed, also for those who ask for its version.
BLOCK = """
    import importlib.metadata, importlib.util, sys
    blocked = {blocked!r}
    class Blocker:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in blocked:
                raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
    sys.meta_path.insert(0, Blocker())
    find_spec = importlib.util.find_spec
    importlib.util.find_spec = lambda name, *rest: None if name.split(".")[0] in blocked else find_spec(name, *rest)
"""
USE = """
    import torch
    from pathlib import Path
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoImageProcessor, AutoModel
    from PIL import Image
    for folder in sorted(path for path in Path({root!r}).iterdir() if path.is_dir()):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
        model = AutoModel.from_pretrained(folder, trust_remote_code=True)
        processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
        for loaded in (config, model, processor):
            assert type(loaded).__module__.startswith("transformers_modules."), type(loaded)
        assert type(processor).__name__ == {processor!r}, type(processor)
        expected = load_file(folder / "expected.safetensors")
        inputs = processor(images=Image.open(folder / "photo.png"), return_tensors="pt")
        assert (inputs.pixel_values - expected["pixel_values"]).abs().max() < 0.02
        encoded = model.encode(expected["pixel_values"])
        assert torch.equal(encoded.codes, expected["codes"])
        decoded = model.decode(encoded.codes)
        assert torch.equal(decoded.pixel_values, expected["decoded"])
        assert processor.postprocess(decoded.pixel_values)[0].size == (32, 32)
        again = Path({again!r}) / folder.name
        config.save_pretrained(again)
        model.save_pretrained(again)
        processor.save_pretrained(again)
    assert not {{name.split(".")[0] for name in sys.modules}} & set(blocked)
"""

USE_GENERATOR = """
    import torch
    from pathlib import Path
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoProcessor, pipeline
    folder, again = Path({folder!r}), Path({again!r})
    expected = load_file(folder / "expected.safetensors")
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    image_processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
    for loaded in (config, model, processor, image_processor, processor.image_processor):
        assert type(loaded).__module__.startswith("transformers_modules."), type(loaded)
    prompts = processor(text=["a red apple", "sun </s>"], return_tensors="pt")
    assert torch.equal(prompts.input_ids, expected["input_ids"])
    codes = model.generate(**processor.prepare_generation(["a red apple", "sun"]), seed=0).codes
    assert torch.equal(codes, expected["codes"])
    for task in ("text-to-image", None):
        painter = pipeline(task, model=str(folder), trust_remote_code=True, device="cpu")
        assert type(painter).__module__.startswith("transformers_modules."), type(painter)
        drawn = painter(["a red apple", "sun"], seed=0, output_type="latent", batch_size=2)
        assert torch.equal(torch.stack(drawn), expected["codes"])
        assert painter("sun", seed=0).size == (32, 32)
    model.model.save_pretrained(again / "layers")
    layers = AutoModel.from_pretrained(again / "layers", trust_remote_code=True)
    assert type(layers).__name__ == type(model.model).__name__
    assert torch.equal(layers.projector.linear_1.weight, model.model.projector.linear_1.weight)
    painter.save_pretrained(again / "pipeline")
    model.save_pretrained(again / "parts")
    processor.save_pretrained(again / "parts")
    model.tokenizer.save_pretrained(again / "tokenizer")
    AutoModel.from_pretrained(again / "tokenizer", trust_remote_code=True).decode(codes)
    assert not {{name.split(".")[0] for name in sys.modules}} & set(blocked)
"""
USE_DIFFUSERS = """
    from diffusers import DiffusionPipeline
    for source, target in ((folder, again / "diffusers"), (again / "diffusers", again / "twice")):
        pipe = DiffusionPipeline.from_pretrained(source, trust_remote_code=True)
        assert type(pipe).__module__.startswith("diffusers_modules."), type(pipe)
        for component in (pipe.model, pipe.processor):
            assert type(component).__module__.startswith("transformers_modules."), type(component)
        generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
        codes = pipe(["a red apple", "sun"], generator=generators, output_type="latent").images
        assert torch.equal(codes, expected["codes"])
        pipe.save_pretrained(target)
    assert "transformers_tokenflow" not in sys.modules
"""
USE_UNDERSTANDING = """
    import torch
    from pathlib import Path
    from PIL import Image
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM
    from transformers import AutoProcessor, pipeline
    folder, again = Path({folder!r}), Path({again!r})
    expected = load_file(folder / "expected.safetensors")
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    assert type(processor).__module__.startswith("transformers_modules."), type(processor)
    content = [dict(type="image", path=str(folder / "photo.png")), dict(type="text", text="what is it?")]
    messages = [dict(role="user", content=content)]
    options = dict(add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt")
    inputs = processor.apply_chat_template(messages, **options)
    assert torch.equal(inputs.input_ids, expected["input_ids"])
    for auto_class in (AutoModel, AutoModelForMultimodalLM, AutoModelForImageTextToText):
        model = auto_class.from_pretrained(folder, trust_remote_code=True)
        assert type(model).__module__.startswith("transformers_modules."), type(model)
    assert torch.equal(model.generate(**inputs, max_new_tokens=8), expected["output"])
    talker = pipeline("image-text-to-text", model=str(folder), trust_remote_code=True, device="cpu")
    (answer,) = talker(text=messages, max_new_tokens=8, return_tensors=True)
    assert torch.equal(answer["generated_token_ids"], expected["output"][0])
    model.save_pretrained(again)
    processor.save_pretrained(again)
    model.model.tokenizer.save_pretrained(again / "tokenizer")
    model.config.tokenizer_config.save_pretrained(again / "tokenizer_config")
    model.model.save_pretrained(again / "without_head")
    AutoConfig.from_pretrained(again / "tokenizer_config", trust_remote_code=True)
    tokenizer = AutoModel.from_pretrained(again / "tokenizer", trust_remote_code=True)
    codes = [part.encode(inputs.pixel_values).codes for part in (tokenizer, model.model.tokenizer)]
    assert torch.equal(*codes)
    headless = AutoModelForImageTextToText.from_pretrained(again / "without_head", trust_remote_code=True)
    assert torch.equal(headless.model.projector.linear_1.weight, model.model.projector.linear_1.weight)
    assert not {{name.split(".")[0] for name in sys.modules}} & set(blocked)
"""


def run_python(script: str, tmp_path: Path, **environment: str) -> None:
    """Run a script in a process of its own, in a folder from which this package is not found."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={**inherited, "HF_MODULES_CACHE": str(tmp_path / "modules"), **environment},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def save_with_expectations(kind: str, folder: Path) -> None:
    """A model, its processor, a photo, and what the local classes make of it."""
    processor, model = TokenFlowImageProcessor(size={"shortest_edge": 32}), tiny_model(kind)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))
    photo.save(folder / "photo.png")
    pixel_values = processor(images=photo, return_tensors="pt").pixel_values
    with torch.no_grad():
        codes = model.encode(pixel_values).codes
        decoded = model.decode(codes).pixel_values
    save_file({"pixel_values": pixel_values, "codes": codes, "decoded": decoded}, folder / "expected.safetensors")


def check_resaved(saved: Path, resaved: Path, names: Iterable[str]) -> None:
    """Code and references to it are as before after saving what remote code has loaded."""
    for name in names:
        assert (resaved / name).read_text() == (saved / name).read_text(), name
    for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
        before, after = (json.loads((folder / name).read_text()) for folder in (saved, resaved))
        for key in ("auto_map", "custom_pipelines"):
            assert before.get(key) == after.get(key), name


@pytest.fixture(scope="module")
def generator_folder(tmp_path_factory) -> Path:
    """A generator in a folder for both libraries, and what the local classes draw."""
    from transformers_tokenflow import TokenFlowPipeline

    folder = tmp_path_factory.mktemp("generator")
    model, processor = tiny_text_to_image()
    TokenFlowPipeline(model, processor).save_pretrained(folder)
    codes = model.generate(**processor.prepare_generation(["a red apple", "sun"]), seed=0).codes
    input_ids = processor(text=["a red apple", "sun </s>"], return_tensors="pt").input_ids
    save_file({"codes": codes, "input_ids": input_ids}, folder / "expected.safetensors")
    return folder


@pytest.fixture(scope="module")
def understanding_folder(tmp_path_factory) -> Path:
    """An understanding model, a photo of the model's own size, and what the local classes make of it."""
    folder = tmp_path_factory.mktemp("understanding")
    model, processor = tiny_understanding_with_processor()
    for part in (model, processor):
        part.save_pretrained(folder)
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "photo.png")
    content = [{"type": "image", "path": str(folder / "photo.png")}, {"type": "text", "text": "what is it?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    output = model.generate(**inputs, max_new_tokens=8)
    save_file({"input_ids": inputs.input_ids, "output": output}, folder / "expected.safetensors")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("remote")
    for kind in KINDS:
        save_with_expectations(kind, root / kind)
    return root


class TestSaving:
    def test_modules_and_auto_map(self, folders):
        for kind in KINDS:
            assert {path.name for path in (folders / kind).glob("*.py")} == MODULES
            assert json.loads((folders / kind / "config.json").read_text())["auto_map"] == {
                "AutoConfig": "configuration_tokenflow.TokenFlowConfig",
                "AutoModel": "modeling_tokenflow.TokenFlowModel",
            }
            assert json.loads((folders / kind / "preprocessor_config.json").read_text())["auto_map"] == {
                "AutoImageProcessor": [
                    "image_processing_pil_tokenflow.TokenFlowImageProcessorPil",
                    "image_processing_tokenflow.TokenFlowImageProcessor",
                ]
            }

    def test_generators(self, generator_folder):
        assert {path.name for path in generator_folder.glob("*.py")} == GENERATOR_MODULES | {DIFFUSERS_MODULE}
        config, processor, tokenizer = (
            json.loads((generator_folder / f"{name}.json").read_text())
            for name in ("config", "processor_config", "tokenizer_config")
        )
        assert config["auto_map"] == {
            "AutoConfig": "configuration_tokenflow.TokenFlowTextToImageConfig",
            "AutoModel": "modeling_tokenflow_text_to_image.TokenFlowForTextToImage",
        }
        own = {"AutoProcessor": "processing_tokenflow.TokenFlowProcessor"}
        assert processor["auto_map"] == tokenizer["auto_map"] == own
        assert config["custom_pipelines"]["text-to-image"]["impl"] == "pipeline_tokenflow.TextToImagePipeline"

    def test_understanding(self, understanding_folder):
        assert {path.name for path in understanding_folder.glob("*.py")} == UNDERSTANDING_MODULES
        config, processor, tokenizer = (
            json.loads((understanding_folder / f"{name}.json").read_text())
            for name in ("config", "processor_config", "tokenizer_config")
        )
        model = "modeling_tokenflow_understanding.TokenFlowForConditionalGeneration"
        assert config["auto_map"] == {
            "AutoConfig": "configuration_tokenflow.TokenFlowUnderstandingConfig",
            **dict.fromkeys(["AutoModel", "AutoModelForImageTextToText", "AutoModelForMultimodalLM"], model),
        }
        own = {"AutoProcessor": "processing_tokenflow.TokenFlowProcessor"}
        assert processor["auto_map"] == tokenizer["auto_map"] == own

    def test_requirements(self, folders, generator_folder, understanding_folder):
        paths = [*(folders / "clip").glob("*.py"), *(generator_folder / name for name in GENERATOR_MODULES)]
        paths += understanding_folder.glob("*.py")
        for path in paths:
            required = set(get_imports(path)) - set(sys.stdlib_module_names)
            assert required <= REQUIREMENTS, path.name
        assert set(get_imports(generator_folder / DIFFUSERS_MODULE)) - set(sys.stdlib_module_names) <= {
            "diffusers",
            "torch",
            "transformers",
        }

    @pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
    def test_cards_have_the_present_code(self, card):
        names = sorted(path.name for path in card.glob("*.py"))
        assert set(names) >= MODULES
        stale = [name for name in names if (card / name).read_text() != (PACKAGE / name).read_text()]
        assert not stale, f"copy {', '.join(stale)} from {PACKAGE} to {card}"


class TestWithoutThePackage:
    @pytest.mark.parametrize(
        ("blocked", "processor"),
        [
            (["transformers_tokenflow"], "TokenFlowImageProcessor"),
            (["transformers_tokenflow", "timm", "open_clip", "torchvision"], "TokenFlowImageProcessorPil"),
        ],
        ids=["package", "timm-open_clip-torchvision"],
    )
    def test_loads_works_and_saves(self, blocked, processor, folders, tmp_path):
        again = tmp_path / "again"
        script = textwrap.dedent(BLOCK).format(blocked=blocked) + textwrap.dedent(USE).format(
            root=str(folders), again=str(again), processor=processor
        )
        run_python(script, tmp_path)
        for kind in KINDS:
            for name in (*MODULES, "preprocessor_config.json"):
                assert (again / kind / name).read_text() == (folders / kind / name).read_text()
            saved, resaved = (json.loads((root / kind / "config.json").read_text()) for root in (folders, again))
            assert saved["auto_map"] == resaved["auto_map"]

    @pytest.mark.parametrize(
        "blocked",
        [
            ["transformers_tokenflow"],
            ["transformers_tokenflow", "timm", "open_clip", "torchvision", "diffusers", "typer", "datasets"],
        ],
        ids=["package", "all-extras"],
    )
    def test_generators(self, blocked, generator_folder, tmp_path):
        again = tmp_path / "again"
        script = textwrap.dedent(BLOCK + USE_GENERATOR).format(
            blocked=blocked, folder=str(generator_folder), again=str(again)
        )
        if "diffusers" not in blocked:
            script += textwrap.dedent(USE_DIFFUSERS)
        run_python(script, tmp_path)
        for part in ("pipeline", "parts"):
            check_resaved(generator_folder, again / part, [*GENERATOR_MODULES, "generation_config.json"])
        if "diffusers" not in blocked:
            names = [*GENERATOR_MODULES, DIFFUSERS_MODULE, "model_index.json"]
            check_resaved(generator_folder, again / "twice", names)

    @pytest.mark.parametrize(
        "blocked",
        [
            ["transformers_tokenflow"],
            ["transformers_tokenflow", "timm", "open_clip", "torchvision", "diffusers", "typer", "datasets"],
        ],
        ids=["package", "all-extras"],
    )
    def test_understanding(self, blocked, understanding_folder, tmp_path):
        again = tmp_path / "again"
        script = textwrap.dedent(BLOCK + USE_UNDERSTANDING).format(
            blocked=blocked, folder=str(understanding_folder), again=str(again)
        )
        run_python(script, tmp_path)
        names = [*UNDERSTANDING_MODULES, "generation_config.json", "chat_template.jinja"]
        check_resaved(understanding_folder, again, names)


class TestWithThePackage:
    def test_auto_classes(self, folders):
        assert type(AutoConfig.from_pretrained(folders / "clip")) is TokenFlowConfig
        assert type(AutoModel.from_pretrained(folders / "clip")) is TokenFlowModel
        assert type(AutoModel.from_config(TokenFlowConfig.from_pretrained(folders / "clip"))) is TokenFlowModel
        assert type(AutoImageProcessor.from_pretrained(folders / "clip")) is TokenFlowImageProcessor
        pil = AutoImageProcessor.from_pretrained(folders / "clip", backend="pil")
        assert type(pil) is TokenFlowImageProcessorPil

    def test_local_classes_win(self, folders):
        assert type(AutoModel.from_pretrained(folders / "clip", trust_remote_code=True)) is TokenFlowModel

    def test_training_names_come_when_asked_for(self):
        pytest.importorskip("datasets")
        from transformers_tokenflow.trainers import TokenFlowTrainer, TokenFlowTrainingArguments

        assert transformers_tokenflow.TokenFlowTrainer is TokenFlowTrainer
        assert transformers_tokenflow.TokenFlowTrainingArguments is TokenFlowTrainingArguments
        assert "TokenFlowTrainer" in dir(transformers_tokenflow)
        with pytest.raises(AttributeError, match="TokenFlowTeacher"):
            transformers_tokenflow.TokenFlowTeacher  # noqa: B018

    def test_importing_loads_nothing_that_is_not_needed(self, tmp_path):
        script = """
            import sys
            import transformers_tokenflow
            assert not {"diffusers", "open_clip", "timm", "torchmetrics"} & set(sys.modules)
            assert {"TokenFlowPipeline", "OpenClipScorer"} <= set(dir(transformers_tokenflow))
            from transformers_tokenflow import TokenFlowPipeline
            assert "diffusers" in sys.modules
        """
        run_python(script, tmp_path, PYTHONPATH=str(CHECKOUT / "src"))

    def test_needs_only_its_requirements(self, folders, tmp_path):
        extras = ["timm", "open_clip", "datasets", "typer", "torchvision", "lpips", "torchmetrics", "pyarrow"]
        blocked = [*extras, "diffusers"]
        script = textwrap.dedent(BLOCK).format(blocked=blocked) + textwrap.dedent(f"""
            import transformers_tokenflow
            assert not {{name.split(".")[0] for name in sys.modules}} & set(blocked)
            from transformers import AutoImageProcessor, AutoModel
            AutoModel.from_pretrained({str(folders / "clip")!r})
            processor = AutoImageProcessor.from_pretrained({str(folders / "clip")!r})
            assert type(processor) is transformers_tokenflow.TokenFlowImageProcessorPil
            extras = dict(TokenFlowTrainer="train", OpenClipScorer="train", TokenFlowPipeline="diffusers")
            for name, extra in extras.items():
                try:
                    getattr(transformers_tokenflow, name)
                except ImportError as error:
                    assert f"transformers-tokenflow[{{extra}}]" in str(error), error
                else:
                    raise AssertionError(f"{{name}} without its requirements")
        """)
        run_python(script, tmp_path, PYTHONPATH=str(CHECKOUT / "src"))
