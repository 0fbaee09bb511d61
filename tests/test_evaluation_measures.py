# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Numbers about reconstructions, and the networks that some of them take."""

from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from tiny_models import pictures, tiny_model

pytest.importorskip("torchmetrics")
pytest.importorskip("open_clip")
from skimage.metrics import peak_signal_noise_ratio, structural_similarity  # noqa: E402
from torchmetrics.image.fid import FrechetInceptionDistance  # noqa: E402
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity  # noqa: E402

from transformers_tokenflow.evaluation import EvaluationError, networks  # noqa: E402
from transformers_tokenflow.evaluation.measures import CodebookUse, official_ssim, psnr, ssim  # noqa: E402
from transformers_tokenflow.evaluation.networks import (  # noqa: E402
    clip_distance,
    inception_distance,
    perceptual_similarity,
)
from transformers_tokenflow.evaluation.reconstruction import (  # noqa: E402
    ReconstructionMeasures,
    plot_cluster_sizes,
    reconstruct,
)
from transformers_tokenflow.scoring import OpenClipScorer  # noqa: E402

TEACHER = Path(__file__).parents[1] / "hub_cards" / "tokenflow-tiny-teacher"


@pytest.fixture(scope="module")
def scorer() -> OpenClipScorer:
    return OpenClipScorer(str(TEACHER))


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures and blurred, noisy ones."""
    real = torch.nn.functional.avg_pool2d(torch.rand(3, 3, 100, 100), 5, stride=1)
    return (real + 0.05 * torch.randn(real.shape)).clamp(0, 1), real


class TestNearness:
    def test_psnr(self, pair):
        expected = [peak_signal_noise_ratio(b.numpy(), a.numpy(), data_range=1) for a, b in zip(*pair, strict=True)]
        assert psnr(*pair).tolist() == pytest.approx(expected, abs=1e-4)
        assert psnr(pair[0], pair[0]).isposinf().all()

    def test_ssim_with_a_gaussian_window(self, pair):
        options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
        expected = [
            structural_similarity(b.numpy(), a.numpy(), channel_axis=0, **options) for a, b in zip(*pair, strict=True)
        ]
        assert ssim(*pair).shape == (3,)
        assert ssim(*pair).tolist() == pytest.approx(expected, abs=0.01)  # the borders differ
        assert ssim(pair[0][:1], pair[1][:1]).shape == (1,)

    def test_official_ssim_has_another_range(self, pair):
        wide, narrow = (
            [
                structural_similarity(b.numpy(), a.numpy(), channel_axis=0, data_range=value)
                for a, b in zip(*pair, strict=True)
            ]
            for value in (2.0, 1.0)
        )
        assert official_ssim(*pair).tolist() == pytest.approx(wide) and np.mean(wide) > np.mean(narrow)


class TestCodebookUse:
    def test_counts(self):
        use = CodebookUse([1, 2], 8)
        use.update([torch.tensor([[[3]]]), torch.tensor([[[3, 3], [4, 5]]])])
        use.update([torch.tensor([[[2]]]), torch.tensor([[[3, 3], [3, 3]]])])
        assert use.cluster_sizes().tolist() == [0, 0, 1, 7, 1, 1, 0, 0]
        assert use.utilization() == 0.5
        # Of two tokens both were distinct; of eight, of eight entries, three.
        assert use.utilization_per_scale() == {1: 1.0, 2: 3 / 8}

    def test_nothing_used(self):
        use = CodebookUse([1, 2], 8)
        assert use.utilization() == 0 and use.utilization_per_scale() == {1: 0, 2: 0}

    def test_plot(self, tmp_path):
        for name, counts in {"some": torch.arange(16).view(2, 8), "none": torch.zeros(2, 8, dtype=torch.long)}.items():
            plot_cluster_sizes(counts, [1, 2], tmp_path / f"{name}.png")
            assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


class TestReconstruction:
    def test_is_the_models(self):
        model = tiny_model()
        pixels = pictures(model.config, batch=5)
        outputs = list(reconstruct(model, pixels, batch_size=2))
        assert [len(output.codes) for output in outputs] == [2, 2, 1]
        codes = model.encode(pixels).codes
        assert torch.equal(torch.cat([output.codes for output in outputs]), codes)
        expected = (model.decode(codes).pixel_values.clamp(-1, 1) + 1) / 2
        torch.testing.assert_close(torch.cat([output.fake for output in outputs]), expected)
        torch.testing.assert_close(torch.cat([output.real for output in outputs]), (pixels + 1) / 2)

    def test_sums_of_parts_are_those_of_the_whole(self, scorer):
        model = tiny_model()
        pixels, names = pictures(model.config, batch=6), list("abcdef")
        whole = ReconstructionMeasures(model, clip_distance(scorer))
        records = whole.update(names, pixels)
        expected = whole.summarize(records, whole.sums())
        parts = [ReconstructionMeasures(model, clip_distance(scorer)) for _ in range(2)]
        collected, sums = {}, {}
        for part, share in zip(parts, (slice(0, 2), slice(2, 6)), strict=True):
            collected |= part.update(names[share], pixels[share])
            sums = {name: value + sums.get(name, 0) for name, value in part.sums().items()}
        results = parts[0].summarize(collected, sums)
        assert results["metrics"] == pytest.approx(expected["metrics"], rel=1e-4)
        assert results["pictures"] == 6 and results["cluster_sizes"] == expected["cluster_sizes"]
        assert list(results["metrics"]) == ["rfid", "psnr", "ssim", "ssim_official", "codebook_utilization"]
        assert results["cluster_sizes"]["mean"] == pytest.approx(6 * 21 / 48)

    def test_fid_is_torchmetrics_of_bytes(self, scorer):
        model = tiny_model()
        measures = ReconstructionMeasures(model, clip_distance(scorer))
        records = measures.update(list("abcd"), pictures(model.config, batch=4))
        (output,) = reconstruct(model, pictures(model.config, batch=4))
        metric = FrechetInceptionDistance(networks.ClipFeatures(scorer))
        metric.update((output.real * 255).round().byte(), real=True)
        metric.update((output.fake * 255).round().byte(), real=False)
        result = measures.summarize(records, measures.sums())["metrics"]["rfid"]
        assert result == pytest.approx(metric.compute().item(), rel=1e-3) and result > 0

    def test_lpips_is_kept_of_each_picture(self):
        class Distance:
            resets = 0

            def __call__(self, fake, real):
                assert fake.min() >= 0 and fake.max() <= 1
                return (fake - real).abs().mean(dim=(1, 2, 3))

            def reset(self):
                self.resets += 1

        model, distance = tiny_model(), Distance()
        measures = ReconstructionMeasures(model, lpips=distance)
        records = measures.update(["a", "b"], pictures(model.config))
        (output,) = reconstruct(model, pictures(model.config))
        expected = (output.fake - output.real).abs().mean(dim=(1, 2, 3)).tolist()
        assert [record["lpips"] for record in records.values()] == pytest.approx(expected)
        assert distance.resets == 1 and "rfid" not in measures.summarize(records, measures.sums())["metrics"]


class TestNetworks:
    def test_features_of_bytes(self, scorer):
        pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
        expected = scorer.model.encode_image(pixels.float() / 127.5 - 1)
        torch.testing.assert_close(networks.ClipFeatures(scorer)(pixels), expected)

    def test_without_weights(self, monkeypatch):
        def refuse(*arguments, **options):
            raise URLError("no network")

        monkeypatch.setattr(networks, "FrechetInceptionDistance", refuse)
        monkeypatch.setattr(networks, "LearnedPerceptualImagePatchSimilarity", refuse)
        with pytest.raises(EvaluationError, match="Inception's weights are not here .*no network"):
            inception_distance(torch.device("cpu"))
        with pytest.raises(EvaluationError, match="AlexNet's weights are not here .*no network"):
            perceptual_similarity(torch.device("cpu"))

    def test_without_torch_fidelity(self, monkeypatch):
        def refuse(*arguments, **options):
            raise ModuleNotFoundError("torch-fidelity")

        monkeypatch.setattr(networks, "FrechetInceptionDistance", refuse)
        with pytest.raises(EvaluationError, match="pip install torch-fidelity"):
            inception_distance(torch.device("cpu"))

    def test_lpips_of_equal_pictures(self, monkeypatch):
        """With random weights in place of those that would be downloaded."""
        from torchvision.models import AlexNet_Weights, alexnet

        state = alexnet().state_dict()
        monkeypatch.setattr(AlexNet_Weights, "get_state_dict", lambda *arguments, **options: state)
        metric = perceptual_similarity(torch.device("cpu"))
        assert isinstance(metric, LearnedPerceptualImagePatchSimilarity)
        pixels = torch.rand(2, 3, 64, 64)
        assert metric(pixels, pixels).tolist() == pytest.approx([0, 0], abs=1e-6)
        assert metric(pixels, pixels.flip(0)).shape == (2,)
