# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""How official names and tensors become those here; every key is accounted for, or the conversion fails."""

import re
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn

from ..commands import counted
from .checkpoints import Checkpoint, StateDict

Renames = Sequence[tuple[str, str]]


def shapes_of(model: nn.Module) -> dict[str, torch.Size]:
    """The names of a model's tensors, and their shapes."""
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


class Layout:
    """
    What the tensors of a model are made of.

    Args:
        shapes: of all tensors of the model, by their names here.
        renames: patterns of names here, as they begin, to official ones. Other names are official ones.
        dropped: official keys that are not needed.
    """

    def __init__(self, shapes: Mapping[str, torch.Size], renames: Renames, dropped: Sequence[str] = ()):
        self.shapes = dict(shapes)
        self.dropped = set(dropped)
        self._renames = [(re.compile(pattern), target) for pattern, target in renames]

    def official_keys(self, name: str) -> list[str]:
        """The official keys that a tensor is made of."""
        return [self.renamed(name)]

    def renamed(self, name: str) -> str:
        """The first of the renames that fits."""
        for pattern, target in self._renames:
            if match := pattern.match(name):
                return match.expand(target) + name[match.end() :]
        return name

    def arrange(self, name: str, keys: list[str], tensors: list[torch.Tensor]) -> torch.Tensor:
        """A tensor as it is here, from those of its official keys; it may be a view of them."""
        return tensors[0]


class JointLayout(Layout):
    """
    A model with another inside, whose official keys have a prefix of their own.

    Args:
        outer, inner: the layouts of both; tensors behind the prefix are the inner one's.
        prefix: of the inner model's names here.
        official_prefix: of its official keys.
    """

    def __init__(self, outer: Layout, inner: Layout, prefix: str, official_prefix: str):
        shapes = {name: shape for name, shape in outer.shapes.items() if not name.startswith(prefix)}
        shapes.update({prefix + name: shape for name, shape in inner.shapes.items()})
        super().__init__(shapes, (), [*outer.dropped, *(official_prefix + key for key in inner.dropped)])
        self.outer, self.inner = outer, inner
        self.prefix, self.official_prefix = prefix, official_prefix

    def official_keys(self, name: str) -> list[str]:
        if not name.startswith(self.prefix):
            return self.outer.official_keys(name)
        return [self.official_prefix + key for key in self.inner.official_keys(name.removeprefix(self.prefix))]

    def arrange(self, name: str, keys: list[str], tensors: list[torch.Tensor]) -> torch.Tensor:
        if not name.startswith(self.prefix):
            return self.outer.arrange(name, keys, tensors)
        keys = [key.removeprefix(self.official_prefix) for key in keys]
        return self.inner.arrange(name.removeprefix(self.prefix), keys, tensors)


class ConvertedStateDict(Mapping[str, torch.Tensor]):
    """
    The tensors of a model, by their names here, each of which is made when it is asked for.

    Args:
        state_dict: official keys to tensors.
        layout: of the model.

    Raises:
        ValueError: keys are missing, left over, or of another shape than the model's; it lists them.
    """

    def __init__(self, state_dict: StateDict, layout: Layout):
        self._state_dict, self._layout = state_dict, layout
        self._keys = {name: layout.official_keys(name) for name in layout.shapes}
        # name -> tensor on the meta device, of the shape and dtype that the converted one has
        self.specs: dict[str, torch.Tensor] = {}
        self._account()

    def _account(self) -> None:
        problems: set[str] = set()
        used = set(self._layout.dropped)
        for name, shape in self._layout.shapes.items():
            keys = self._keys[name]
            used.update(keys)
            if missing := [key for key in keys if key not in self._state_dict]:
                problems.update(f"missing {key}" for key in missing)
                continue
            tensors = [self._state_dict[key].to("meta") for key in keys]
            try:
                self.specs[name] = self._layout.arrange(name, keys, tensors)
                fits = self.specs[name].shape == shape
            except RuntimeError:  # parts that can't be joined
                fits = False
            if not fits:
                got = ", ".join(
                    f"{key} of shape {tuple(tensor.shape)}" for key, tensor in zip(keys, tensors, strict=True)
                )
                problems.add(f"{got} can't become {name} of shape {tuple(shape)}")
        problems.update(f"left over {key}" for key in self._state_dict if key not in used)
        if problems:
            raise ValueError(
                f"the checkpoint does not fit, {counted(len(problems), 'problem')}: {'; '.join(sorted(problems))}"
            )

    def __getitem__(self, name: str) -> torch.Tensor:
        keys = self._keys[name]
        return self._layout.arrange(name, keys, [self._state_dict[key] for key in keys])

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def release(self) -> None:
        """Let go of files that the tensors are read from."""
        if isinstance(self._state_dict, Checkpoint):
            self._state_dict.release()

    def copied(self) -> dict[str, torch.Tensor]:
        """All of them, as copies: training must not change the caller's tensors, nor need the file they come from."""
        return {name: self[name].clone() for name in self}
