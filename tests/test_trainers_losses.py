# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""The training's losses against their formulas, and the discriminator against the official layout."""

import pytest
import torch
from tiny_models import pictures, teacher_features, tiny_model
from tiny_training import tiny_teacher
from torch import nn

from transformers_tokenflow.evaluation.measures import psnr
from transformers_tokenflow.trainers.discriminator import PatchDiscriminator, discriminator_loss, generator_loss
from transformers_tokenflow.trainers.losses import LpipsLoss, make_perceptual_loss, negative_psnr


def test_hinge_loss():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 1.0])
    expected = 0.5 * ((0 + 0.5 + 2.0) / 3 + (0 + 1.0 + 2.0) / 3)
    assert discriminator_loss(real, fake).item() == pytest.approx(expected)
    assert generator_loss(fake).item() == pytest.approx(2 / 3)


def test_model_losses_are_the_papers():
    model = tiny_model("clip").train()
    pixel_values, target = pictures(model.config), teacher_features(model.config)
    output = model(pixel_values, teacher_features=target, return_loss=True)
    assert output.pixel_loss.item() == pytest.approx((output.pixel_values - pixel_values).square().mean().item())
    unit = [part / part.norm(dim=-1, keepdim=True) for part in (output.semantic_features, target)]
    assert output.semantic_loss.item() == pytest.approx(
        0.5 * (unit[0] - unit[1]).square().sum(-1).mean().item(), rel=1e-5
    )

    quantizer, residual, terms = model.quantizer, model.extract_features(pixel_values), []
    entries = quantizer.codebook()
    for codes in quantizer.split_codes(output.codes):
        normalized = quantizer.normalize(nn.functional.adaptive_avg_pool2d(residual, codes.shape[-1]))
        chosen = entries[codes].permute(0, 3, 1, 2)
        terms.append((normalized - chosen).square().mean())
        residual = residual - nn.functional.interpolate(chosen, size=4, mode="bicubic") if codes.shape[-1] < 4 else None
    mean = torch.stack(terms).mean().item()
    assert output.codebook_loss.item() == pytest.approx(mean, rel=1e-4)
    assert output.commitment_loss.item() == pytest.approx(0.25 * mean, rel=1e-4)


def test_psnr_loss_is_minus_what_is_measured():
    real, fake = torch.rand(2, 4, 3, 8, 8)
    fake = torch.lerp(real, fake, torch.tensor([0.05, 0.1, 0.3, 0.9])[:, None, None, None])
    loss = negative_psnr(fake * 2 - 1, real * 2 - 1)
    assert loss.item() == pytest.approx(-psnr(fake, real).mean().item(), abs=0.1)
    same = real.clone().requires_grad_()
    negative_psnr(same, real).backward()
    assert same.grad.isfinite().all()


def test_discriminator_has_the_official_layout():
    discriminator = PatchDiscriminator()
    convolutions = [module for module in discriminator.modules() if isinstance(module, nn.Conv2d)]
    norms = [module for module in discriminator.modules() if isinstance(module, nn.BatchNorm2d)]
    assert [tuple(conv.weight.shape) for conv in convolutions] == [
        (64, 3, 4, 4),
        (128, 64, 4, 4),
        (256, 128, 4, 4),
        (512, 256, 4, 4),
        (1, 512, 4, 4),
    ]
    assert [conv.stride[0] for conv in convolutions] == [2, 2, 2, 1, 1]
    assert all(conv.padding == (1, 1) for conv in convolutions)
    assert [conv.bias is not None for conv in convolutions] == [True, False, False, False, True]
    assert [norm.num_features for norm in norms] == [128, 256, 512]
    slopes = [module.negative_slope for module in discriminator.modules() if isinstance(module, nn.LeakyReLU)]
    assert slopes == [0.2] * 4
    assert sum(parameter.numel() for parameter in discriminator.parameters()) == 2_765_633
    assert discriminator(torch.zeros(2, 3, 64, 64)).shape == (2, 1, 6, 6)
    assert torch.cat([conv.weight.flatten() for conv in convolutions]).std().item() == pytest.approx(0.02, rel=0.01)
    assert torch.cat([norm.weight for norm in norms]).mean().item() == pytest.approx(1.0, abs=0.005)


def test_psnr_of_a_known_error():
    target = torch.zeros(2, 3, 4, 4)
    prediction = torch.stack([torch.full((3, 4, 4), 0.1), torch.full((3, 4, 4), 0.01)])
    torch.testing.assert_close(psnr(prediction, target), torch.tensor([20.0, 40.0]))


def test_teachers_features_as_perceptual_loss():
    teacher = tiny_teacher()
    loss = make_perceptual_loss("teacher", teacher)
    real = pictures(tiny_model().config)
    fake = real.flip(0).requires_grad_()
    value = loss(fake, real)
    got, wanted = teacher(fake), teacher(real)
    assert value.item() == pytest.approx((1 - nn.functional.cosine_similarity(got, wanted, dim=-1)).mean().item())
    value.backward()
    assert fake.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert loss(real, real).item() == pytest.approx(0, abs=1e-6)


def test_names_of_perceptual_losses():
    assert make_perceptual_loss("none", None) is None
    with pytest.raises(ValueError, match="unknown perceptual loss 'ssim': expected one of lpips, teacher, none"):
        make_perceptual_loss("ssim", None)
    with pytest.raises(ValueError, match="needs a teacher"):
        make_perceptual_loss("teacher", None)


def test_lpips_without_its_weights_says_so(tmp_path, monkeypatch):
    pytest.importorskip("lpips")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def fail(*args, **kwargs):
        raise OSError("network is unreachable")

    monkeypatch.setattr("torch.hub.download_url_to_file", fail)
    with pytest.raises(
        RuntimeError,
        match="VGG16 weights, which could not be loaded .*network is unreachable.*perceptual_loss='teacher' or 'none'",
    ):
        make_perceptual_loss("lpips", None)


def test_lpips_is_frozen_and_stays_in_evaluation_mode(monkeypatch):
    lpips = pytest.importorskip("lpips")
    monkeypatch.setattr(lpips, "LPIPS", lambda **options: nn.Sequential(nn.Conv2d(3, 1, 3), nn.Dropout(0.5)))
    loss = LpipsLoss().train()
    assert not any(module.training for module in loss.modules())
    assert not any(parameter.requires_grad for parameter in loss.parameters())
