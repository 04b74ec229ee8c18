"""The methods described for people and for JSON: `kdpipe methods`, and docs/methods.md."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from kdpipe.stages.distill import METHODS
from kdpipe.stages.distill.left_out import LEFT_OUT
from kdpipe.stages.distill.method import Method
from kdpipe.stages.distill.schemes import SCHEMES
from kdpipe.stages.distill.synthesis import SYNTHESES

_INTRO = """\
# Distillation methods

<!-- Generated: kdpipe methods --markdown > docs/methods.md -->

Each entry under `distill.methods` in a config is one of these, alone or in any mix:

```yaml
distill:
  methods:
    - kd                                        # a bare word takes the defaults
    - {kind: dkd, beta: 8, warmup_epochs: 20}
    - {kind: at, taps: [stage2, stage3], weight: 500}
```

Every method also takes `weight`, `warmup_epochs` (a linear ramp of the weight), `start` and `stop`
(the epochs between which it counts), and `taps` and `teacher_taps` (what is compared). A tap is a
role (`stage1` ..., `embedding`, `logits`), a module path, `stages` for all stages, `last` for the
last one; `:in` and `:pre` take a module's input, or what enters its last activation. Weights below
are the published ones for the normalisation that is written in the method's own docstring.

What methods need: *labels* and *index* come with every train split; *connector* means that it
learns something that does not ship; *memory* keeps what earlier batches said; *preparation* is a
phase before the training; *opponent* is a second player with an optimizer of its own. *dense*
methods are for maps of logits (`task: segmentation`), *vectors* methods for one vector per image
(`task: classification`); a config that mixes the two up is refused before anything runs. Others
take both: to those on logits each pixel of a map is a sample, also one without a label. What needs
an *embedding* finds none in a U-Net.
"""


def rows() -> list[dict[str, Any]]:
    """Each method: kind, group, needs, summary, paper, default weight and taps, settings."""
    return [
        {
            "kind": _default(method, "kind"),
            "group": _group(method),
            "needs": list(method.needs),
            "summary": method.summary,
            "paper": method.paper,
            "weight": _default(method, "weight"),
            "taps": list(_default(method, "taps")),
            "settings": dict(_settings(method)),
        }
        for method in METHODS
    ]


def markdown() -> str:
    """docs/methods.md, whole."""
    parts = [_INTRO]
    groups = {_group(method): _title(method) for method in METHODS}
    found = rows()
    for group, title in groups.items():
        parts.append(f"## {group.capitalize()}\n\n{title}\n\n{_table(found, group)}\n")
    parts.append(f"## Who teaches whom\n\n`distill.scheme` is one of:\n\n{_others(SCHEMES)}\n")
    parts.append(f"## Without data\n\n`distill.source` is one of:\n\n{_others(SYNTHESES)}\n")
    reasons = "\n".join(f"| {name} | {reason} |" for name, reason in LEFT_OUT.items())
    parts.append(f"## Left out, and why\n\n| method | reason |\n|---|---|\n{reasons}\n")
    return "\n".join(parts).rstrip()


def _table(found: list[dict[str, Any]], group: str) -> str:
    head = "| kind | what is matched | needs | weight | settings | paper |"
    lines = [head, "|---|---|---|---|---|---|"]
    for row in found:
        if row["group"] == group:
            settings = ", ".join(f"`{k}` {v['default']}" for k, v in row["settings"].items())
            cells = (
                f"`{row['kind']}`", row["summary"], ", ".join(row["needs"]),
                f"{row['weight']:g}", settings, _linked(row["paper"]),
            )  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _others(kinds: Sequence[type[Any]]) -> str:
    """What is not a method but is listed like one: schemes, and sources of images."""
    lines = ["| kind | what happens | settings | paper |", "|---|---|---|---|"]
    for one in kinds:
        own = {name: field for name, field in one.model_fields.items() if name != "kind"}
        settings = ", ".join(f"`{name}` {_shown(field)}" for name, field in own.items())
        kind = _default(one, "kind")
        lines.append(f"| `{kind}` | {one.summary} | {settings} | {_linked(one.paper)} |")
    return "\n".join(lines)


def _settings(method: type[Method]) -> Iterator[tuple[str, dict[str, Any]]]:
    """What a method takes beyond what all methods take, and defaults of its own."""
    for name, field in method.model_fields.items():
        inherited = Method.model_fields.get(name)
        new = inherited is None
        changed = inherited is not None and _shown(field) != _shown(inherited)
        if new or (changed and name not in ("kind", "weight", "taps")):
            yield name, {"default": _shown(field), "description": field.description or ""}


def _shown(field: Any) -> str:
    if field.is_required():
        return "(required)"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(str(item) for item in value)}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _default(model: Any, name: str) -> Any:
    return model.model_fields[name].default


def _group(method: type[Method]) -> str:
    """The folder that the method's file is in."""
    return method.__module__.split(".")[-2]


def _title(method: type[Method]) -> str:
    package = sys.modules[method.__module__.rpartition(".")[0]]
    return inspect.getdoc(package) or ""


def _linked(paper: str) -> str:
    return re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", paper)
