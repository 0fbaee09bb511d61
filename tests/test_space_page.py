# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""The page to try, in a browser where there is one. `make test-space` runs it: gradio is not in .venv."""

import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tiny_models import tiny_model, tiny_talker, tiny_text_to_image

from transformers_tokenflow import TextToImagePipeline, TokenFlowImageProcessor
from transformers_tokenflow.commands.tokenizers import Tokenizer

gradio_client = pytest.importorskip("gradio_client", reason="`make test-space` has gradio")
playwright = pytest.importorskip("playwright.sync_api", reason="`make test-space` has playwright")

SPACE = Path(__file__).parents[1] / "hub_cards" / "space"
BUTTERFLY = str(SPACE / "pictures" / "butterfly-noto.png")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")


@pytest.fixture(scope="module")
def app() -> Iterator[ModuleType]:
    sys.path.insert(0, str(SPACE))
    import app

    yield app
    sys.path.remove(str(SPACE))


@pytest.fixture(scope="module")
def understanding(tmp_path_factory) -> Path:
    """Where an understanding model is, or is not yet."""
    return tmp_path_factory.mktemp("models") / "understanding"


@pytest.fixture(scope="module")
def url(app, understanding) -> Iterator[str]:
    """The address of the page, with models of random weights."""
    torch.manual_seed(0)
    processor = TokenFlowImageProcessor(size={"shortest_edge": 32})
    tokenizer = Tokenizer("tiny", tiny_model(), processor, torch.device("cpu"))
    model, text_processor = tiny_text_to_image()
    painter = TextToImagePipeline(model=model, processor=text_processor, task="text-to-image")
    page = app.build(tokenizer, painter, str(understanding))
    with pytest.MonkeyPatch.context() as patch:
        # gradio gives itself three seconds to answer, which a busy machine may not keep.
        patch.setattr("gradio.networking.url_ok", lambda url: True)
        app.serve(page, prevent_thread_lock=True, quiet=True)
    yield page.local_url
    page.close(verbose=False)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, url) -> Iterator[Any]:
    """The page, opened anew."""
    page = browser.new_page(viewport={"width": 1150, "height": 1000})
    page.set_default_timeout(60_000)
    page.goto(url)
    page.get_by_role("heading", name="TokenFlow").wait_for()
    yield page
    page.close()


def upload(page: Any, path: Path | str) -> None:
    page.locator("[role=tabpanel]:visible input[type=file]").first.set_input_files(path)


def wait_for_pictures(page: Any, count: int) -> None:
    """Wait until so many pictures of the page's own are there and loaded, besides examples."""
    page.wait_for_function(
        """count => [...document.querySelectorAll("[role=tabpanel] .image-container img, .grid-wrap img")]
            .filter(image => image.offsetParent && image.complete && image.naturalWidth).length == count""",
        arg=count,
    )


def open_tab(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name).click()


@in_browser
class TestInBrowser:
    def test_a_picture_and_its_tokens(self, page):
        upload(page, BUTTERFLY)
        page.get_by_text("21 of 21 tokens, 16 bytes").wait_for()
        wait_for_pictures(page, 5)
        page.get_by_role("spinbutton").first.fill("1")
        page.get_by_role("spinbutton").first.press("Enter")
        page.get_by_text("1 of 21 tokens, 1 bytes").wait_for()

    def test_an_example(self, page):
        page.locator("[role=tabpanel]:visible .gallery-item").first.click()
        page.get_by_text("21 of 21 tokens").wait_for()

    def test_a_file_that_is_no_picture(self, page, tmp_path):
        path = tmp_path / "notes.png"
        path.write_text("no picture")
        upload(page, path)
        page.get_by_text("The file is no picture, or of a kind that can't be read here.").wait_for()

    def test_a_file_that_is_too_large(self, page, tmp_path):
        path = tmp_path / "large.png"
        path.write_bytes(bytes(11_000_000))
        upload(page, path)
        page.get_by_text("exceed the maximum allowed size of 10").wait_for()

    def test_a_picture_appears_scale_by_scale(self, page):
        open_tab(page, "Prompt")
        page.get_by_role("button", name="Draw").click()
        page.locator(".caption-label", has_text="4×4").wait_for()
        wait_for_pictures(page, 4)
        page.get_by_role("button", name="The next seed").click()
        playwright.expect(page.get_by_label("Seed")).to_have_value("1")

    def test_a_setting_that_can_t_be(self, page):
        open_tab(page, "Prompt")
        page.get_by_label("Top-p").fill("2")
        page.get_by_role("button", name="Draw").click()
        page.get_by_text("Top_p must lie in [0, 1]").wait_for()

    def test_a_question_before_and_after_its_model_is_there(self, page, understanding):
        open_tab(page, "question")
        page.get_by_role("button", name="Ask").click()
        page.get_by_text("Choose a picture first.").wait_for()
        upload(page, BUTTERFLY)
        page.get_by_role("button", name="Remove Image").wait_for()
        page.get_by_role("button", name="Ask").click()
        page.get_by_text("A model that answers questions isn't set up here yet.").wait_for()
        for part in tiny_talker():
            part.save_pretrained(understanding)
        page.get_by_role("button", name="Ask").click()
        playwright.expect(page.get_by_label("Answer", exact=True)).to_have_value(re.compile("^[abc]"), timeout=60_000)


class TestByProgram:
    def test_draws(self, url):
        client = gradio_client.Client(url, verbose=False)
        job = client.submit("an owl", 0, 2, "20", "0.8", api_name="/draw")
        picture, steps = job.result(timeout=120)
        assert Path(picture).is_file() and [step["caption"] for step in steps] == ["1×1", "2×2", "4×4"]
        assert len(job.outputs()) == 3

    def test_mistakes_are_told(self, url):
        client = gradio_client.Client(url, verbose=False)
        with pytest.raises(Exception, match="Write what to draw first"):
            client.predict("", 0, 2, "20", "0.8", api_name="/draw")


class TestArguments:
    def test_small_models_by_default(self, app, monkeypatch):
        names = app.read_arguments([])
        assert Path(names.tokenizer) == SPACE.parent / "tokenflow-tiny" and names.dtype == "float32"
        monkeypatch.setattr(app, "HERE", Path("/home/user/app"))
        assert app.read_arguments([]).generator == "transformers-tokenflow/tokenflow-tiny-text-to-image"

    def test_environment_and_arguments(self, app, monkeypatch):
        monkeypatch.setenv("TOKENFLOW_UNDERSTANDING", "some/model")
        monkeypatch.setenv("TOKENFLOW_TOKENIZER", "some/tokenizer")
        names = app.read_arguments(["--tokenizer", "another/tokenizer", "--dtype", "bfloat16"])
        assert (names.understanding, names.tokenizer, names.dtype) == ("some/model", "another/tokenizer", "bfloat16")
