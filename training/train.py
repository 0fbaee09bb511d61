"""Trains what a recipe describes, on one device or on all that accelerate starts it on.

    accelerate launch training/train.py RECIPE.yaml [--set key=value ...]

The same as `tokenflow train RECIPE.yaml`. A run continues from the last checkpoint in its output folder.
"""

import argparse
import sys
from pathlib import Path

from transformers_tokenflow.commands import CommandError
from transformers_tokenflow.commands.training import train_recipe


def main() -> None:
    """Reads the command line and trains."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="the YAML file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="such as training.max_steps=20")
    arguments = parser.parse_args()
    try:
        train_recipe(arguments.recipe, arguments.set)
    except CommandError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
