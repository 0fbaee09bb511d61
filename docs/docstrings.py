"""The house's docstrings as mkdocstrings takes them: no Markdown in types, and fields of arguments with their help."""

import ast
import re
from typing import Any

from griffe import Attribute, Docstring, Extension, Object

# As transformers writes them: "image_size (`int`, *optional*):" and "[`TokenFlowModel`]".
TYPED_NAME = re.compile(r"^( *[\w, ]+ \()(.*)(\):)$", re.M)
REFERENCE = re.compile(r"\[(`[\w.]+`)\](?!\()")


class HouseDocstrings(Extension):
    """What griffe reads of the package, made ready."""

    def on_instance(self, *, obj: Object, **kwargs: Any) -> None:
        """Take Markdown out of where it is not rendered."""
        if obj.docstring is not None:
            text = TYPED_NAME.sub(lambda match: match[1] + re.sub("[`*]", "", match[2]) + match[3], obj.docstring.value)
            obj.docstring.value = REFERENCE.sub(r"\1", text)

    def on_attribute_instance(self, *, node: Any, attr: Attribute, **kwargs: Any) -> None:
        """`field(default=…, metadata={"help": …})` of a dataclass becomes a default and a docstring."""
        call = getattr(node, "value", None)
        if not isinstance(call, ast.Call) or getattr(call.func, "id", None) != "field":
            return
        options = {keyword.arg: keyword.value for keyword in call.keywords}
        attr.value = ast.unparse(options["default"]) if "default" in options else None
        if "metadata" in options:
            attr.docstring = Docstring(ast.literal_eval(options["metadata"])["help"], parent=attr)
