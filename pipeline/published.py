"""The JSON schema of the config as it ships: `kdpipe schema` prints it without building it.

It is generated from the pydantic models, which stay the only schema, and a test keeps it true:
built anew it takes as long as all the models of all methods together.

python -m kdpipe.pipeline.published > pipeline/schema.json
"""

from __future__ import annotations

import json
from importlib.metadata import entry_points
from importlib.resources import files

from kdpipe.targets import GROUP


def published() -> str:
    """The text of `schema.json`, or a new one where other packages bring targets.

    Raises UsageError when one of those is broken.
    """
    if entry_points(group=GROUP):
        return generated()
    return (files("kdpipe.pipeline") / "schema.json").read_text("utf-8")


def generated() -> str:
    """The schema of the models as they are now."""
    from kdpipe.pipeline.config import schema

    return json.dumps(schema().model_json_schema(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(generated(), end="")
