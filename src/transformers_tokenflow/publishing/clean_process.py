# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""
Loads a folder by its remote code in a process that can't import this package, as users of the Hub load it.

Run as a script, with the folder; the last line of its output is a JSON object with what was found.
"""

import json
import sys
from pathlib import Path
from typing import Any

ABSENT = "transformers_tokenflow"


class Absent:
    """Makes imports of the package fail as where it is not installed."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] == ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def main(folder: Path) -> dict[str, Any]:
    """Load configuration, model and processor; gives the model's class and the keys of weights that did not fit."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    auto_class = next(name for name in config.auto_map if name.startswith("AutoModel"))
    # Weights of another shape are reported with the rest, and are no error of their own.
    model, report = getattr(transformers, auto_class).from_pretrained(
        folder, trust_remote_code=True, dtype="auto", output_loading_info=True, ignore_mismatched_sizes=True
    )
    loaded: list[Any] = [config, model]
    if (folder / "processor_config.json").is_file():
        loaded.append(transformers.AutoProcessor.from_pretrained(folder, trust_remote_code=True))
    elif (folder / "preprocessor_config.json").is_file():
        loaded.append(transformers.AutoImageProcessor.from_pretrained(folder, trust_remote_code=True))
    foreign = [type(part).__name__ for part in loaded if not type(part).__module__.startswith("transformers_modules.")]
    keys = {kind: sorted(report[kind]) for kind in ("missing_keys", "unexpected_keys")}
    keys["mismatched_keys"] = sorted(name for name, *_ in report["mismatched_keys"])
    return {"class": type(model).__name__, "foreign": foreign, **keys}


if __name__ == "__main__":
    # Python looks for modules in a script's own folder first; users have none of those that lie in this one.
    own = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != own]
    sys.meta_path.insert(0, Absent())  # type: ignore[arg-type]
    found = main(Path(sys.argv[1]))
    sys.stdout.write(f"{json.dumps(found)}\n")
