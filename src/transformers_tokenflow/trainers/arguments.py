# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""Arguments of the trainers."""

from dataclasses import dataclass, field

from transformers import TrainingArguments

from .losses import PIXEL_LOSSES


@dataclass
class CommonTrainingArguments(TrainingArguments):
    """Arguments that all trainers of the package have."""

    # Of those that may come as a string of JSON.
    _VALID_DICT_FIELDS = [*TrainingArguments._VALID_DICT_FIELDS, "part_learning_rates"]

    ema_decay: float = field(
        default=0.0, metadata={"help": "Decay of the averaged weights, which are evaluated and saved; 0: none."}
    )
    part_learning_rates: dict | str | None = field(
        default=None, metadata={"help": "Learning rates by module prefix, such as {'semantic_encoder': 1e-5}."}
    )
    muon: bool = field(
        default=False,
        metadata={"help": "Train matrices of layers with Muon, the rest with AdamW: small models need half the steps."},
    )
    trainable_parts: list[str] | None = field(
        default=None,
        metadata={"help": "Module prefixes to train, all others are frozen: ['pixel_decoder'] trains a new decoder."},
    )
    logged_pictures: int = field(default=8, metadata={"help": "Pictures of an evaluation that are logged."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "The data collator decides what is kept."})

    def __post_init__(self) -> None:
        self._check_counts("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")
        super().__post_init__()
        self._check_probabilities("ema_decay")
        self._make_lists("trainable_parts")
        if self.ema_decay > 0 and self.load_best_model_at_end and self.save_only_model:
            raise ValueError(
                "load_best_model_at_end needs the averaged weights (ema_decay), which save_only_model does not save"
            )
        if not isinstance(self.part_learning_rates, dict | None):
            raise ValueError(f"part_learning_rates must map prefixes to rates; got {self.part_learning_rates!r}")
        if self.n_gpu > 1:
            raise ValueError(
                f"one process sees {self.n_gpu} GPUs: start one per GPU with `accelerate launch`, or show it a single "
                "one with CUDA_VISIBLE_DEVICES"
            )

    def _check_counts(self, *names: str) -> None:
        for name in names:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")

    def _make_lists(self, *names: str) -> None:
        for name in names:
            if isinstance(value := getattr(self, name), str):
                setattr(self, name, [value])

    def _check_probabilities(self, *names: str) -> None:
        for name in names:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1]; got {getattr(self, name)}")


@dataclass
class TokenFlowTrainingArguments(CommonTrainingArguments):
    """
    Arguments of [`TokenFlowTrainer`], with the official code's settings as defaults.

    Weights of the codebook, commitment and entropy losses belong to the quantiser: see [`TokenFlowConfig`].
    """

    adam_beta2: float = field(default=0.95, metadata={"help": "Second beta of Adam."})
    learning_rate: float = field(default=1e-4, metadata={"help": "Learning rate (paper Table 11)."})
    lr_scheduler_type: str = field(default="constant_with_warmup", metadata={"help": "Schedule of the learning rate."})
    pixel_loss: str = field(default="mse", metadata={"help": "'mse', or 'psnr', minus the pictures' mean PSNR in dB."})
    pixel_loss_weight: float = field(default=1.0, metadata={"help": "Weight of the loss between pixels."})
    semantic_loss_weight: float = field(default=1.0, metadata={"help": "Weight of the distillation."})
    perceptual_loss: str = field(default="lpips", metadata={"help": "'lpips', 'teacher' (its features), or 'none'."})
    perceptual_loss_weight: float = field(default=1.0, metadata={"help": "Weight of the perceptual loss."})
    adversarial_weight: float = field(default=0.5, metadata={"help": "Weight of the adversarial loss; 0: no GAN."})
    adversarial_start_step: int = field(default=20_000, metadata={"help": "Step from which the GAN is trained."})
    adaptive_adversarial_weight: bool = field(
        default=False,
        metadata={"help": "Scale the adversarial loss by the ratio of gradients at the last layer, as VQGAN does."},
    )
    discriminator_channels: int = field(default=64, metadata={"help": "Width of PatchGAN's first layer."})
    discriminator_num_layers: int = field(default=3, metadata={"help": "PatchGAN's layers of stride 2."})
    discriminator_learning_rate: float | None = field(
        default=None, metadata={"help": "Constant learning rate of the discriminator; as the model's by default."}
    )
    discriminator_from: str | None = field(
        default=None, metadata={"help": "Folder of a checkpoint whose discriminator the training starts with."}
    )
    scale_dropout: float = field(
        default=0.1, metadata={"help": "Probability that a step leaves out one random scale, never the first."}
    )
    codebook_initialization: str = field(
        default="random", metadata={"help": "'random', or 'kmeans' to cluster features of the training pictures."}
    )
    codebook_initialization_batches: int = field(default=16, metadata={"help": "Batches that k-means sees."})
    codebook_restart_steps: int = field(
        default=0, metadata={"help": "Every so many steps entries that were not used since are moved; 0: never."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pixel_loss not in PIXEL_LOSSES:
            raise ValueError(f"pixel_loss is one of {', '.join(PIXEL_LOSSES)}; got {self.pixel_loss!r}")
        if self.codebook_initialization not in ("random", "kmeans"):
            raise ValueError(f"codebook_initialization is 'random' or 'kmeans'; got {self.codebook_initialization!r}")
        self._check_probabilities("scale_dropout")


@dataclass
class AdapterTrainingArguments(CommonTrainingArguments):
    """Arguments of the trainers of models with a language model in them, which may be trained through adapters."""

    lora_rank: int = field(
        default=0, metadata={"help": "Train adapters of this rank on attention and MLP, nothing else; 0: everything."}
    )
    lora_modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules that are trained in full beside them, such as ['projector']."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._make_lists("lora_modules_to_save")
        if self.lora_rank < 0:
            raise ValueError(f"lora_rank must not be negative; got {self.lora_rank}")
        if self.lora_modules_to_save and self.lora_rank == 0:
            raise ValueError("lora_modules_to_save stand beside adapters: set lora_rank too")
        if self.trainable_parts is not None and self.lora_rank > 0:
            raise ValueError("with lora_rank adapters are trained, and lora_modules_to_save: leave trainable_parts out")


@dataclass
class TextToImageTrainingArguments(AdapterTrainingArguments):
    """Arguments of [`TextToImageTrainer`], with the official settings as defaults."""

    _VALID_DICT_FIELDS = [*AdapterTrainingArguments._VALID_DICT_FIELDS, "sample_options"]

    learning_rate: float = field(default=5e-4, metadata={"help": "Learning rate (official)."})
    lr_scheduler_type: str = field(default="constant_with_warmup", metadata={"help": "Schedule of the learning rate."})
    warmup_steps: float = field(default=5_000, metadata={"help": "Steps of linear warm-up (official)."})
    weight_decay: float = field(
        default=0.1, metadata={"help": "Weight decay of matrices; norms and biases have none (official)."}
    )
    max_grad_norm: float = field(default=0.5, metadata={"help": "Norm that gradients are clipped to (official)."})
    text_dropout: float = field(
        default=0.1, metadata={"help": "Probability that a caption is left out, which guidance needs (paper)."}
    )
    first_sentence_probability: float = field(
        default=0.2, metadata={"help": "Probability that a caption is cut to its first sentence (paper)."}
    )
    coarse_step_probability: float = field(
        default=0.0,
        metadata={"help": "Probability that a step trains the first `coarse_scales` alone, which takes less time."},
    )
    coarse_scales: int = field(default=1, metadata={"help": "How many scales such a step trains."})
    refinement_probability: float = field(
        default=0.0,
        metadata={"help": "Probability that a step trains refinement passes too, which makes it 2.3 times as long."},
    )
    sample_prompts: list[str] | None = field(
        default=None, metadata={"help": "Prompts of pictures that are drawn at every evaluation, with fixed seeds."}
    )
    sample_options: dict | str | None = field(
        default=None, metadata={"help": "How they are drawn, as `generate` takes it: {'guidance_scale': 3.0}."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_probabilities("text_dropout", "first_sentence_probability")
        self._check_probabilities("coarse_step_probability", "refinement_probability")
        if isinstance(self.sample_prompts, str):
            raise ValueError(f"sample_prompts is a list of texts; got {self.sample_prompts!r}")
        if not isinstance(self.sample_options, dict | None):
            raise ValueError(f"sample_options must map options to values; got {self.sample_options!r}")


@dataclass
class UnderstandingTrainingArguments(AdapterTrainingArguments):
    """Arguments of [`UnderstandingTrainer`], with the official settings of the second stage as defaults."""

    learning_rate: float = field(default=2e-5, metadata={"help": "Learning rate (official; 1e-3 in stage 1)."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule of the learning rate (official)."})
    warmup_steps: float = field(default=0.03, metadata={"help": "Share, or number, of steps of warm-up (official)."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Times that the data are seen (official)."})
    ddp_timeout: int = field(
        default=86_400, metadata={"help": "Seconds that processes wait for the main one, which tokenises for all."}
    )
    max_length: int = field(
        default=2048,
        metadata={"help": "Tokens of a conversation with pictures; what is longer is cut (official)."},
    )
    packing: bool = field(
        default=False, metadata={"help": "Put several conversations into a row of max_length, apart from each other."}
    )
    turns_per_conversation: int = field(
        default=4, metadata={"help": "Of rows with `questions`, how many are drawn for a conversation in every epoch."}
    )
    logged_answers: int = field(
        default=4, metadata={"help": "Conversations of an evaluation whose first question is answered and logged."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_counts("max_length", "turns_per_conversation")
