"""`gh`, `curl` and `pip` without a network: a forge whose comments are one JSON file.

Usage: forge_stub.py gh|curl|pip ARGUMENTS. The file is $FORGE; every call is appended to its log.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

ME, LOGIN = 7, "github-actions[bot]"


def main(name: str, arguments: list[str]) -> None:
    """Do what the command would, on the file."""
    path = Path(os.environ["FORGE"])
    forge = json.loads(path.read_text())
    forge["log"].append([name, *arguments])
    answer = {"gh": gh, "curl": curl, "pip": lambda *_: ""}[name](forge, arguments)
    path.write_text(json.dumps(forge))
    if answer is None:
        sys.exit(f"{name}: HTTP 403: Resource not accessible by integration")
    print(answer, end="")


def gh(forge: dict[str, Any], arguments: list[str]) -> str | None:
    """`gh api`: list, get, create and change comments; list pull requests."""
    assert arguments.pop(0) == "api"
    options: dict[str, list[str]] = {}
    words = []
    while arguments:
        word = arguments.pop(0)
        if word == "--paginate" or not word.startswith("-"):
            words.append(word)
        else:
            options.setdefault(word, []).append(arguments.pop(0))
    (url,) = [word for word in words if word != "--paginate"]
    fields = dict(field.split("=", 1) for flag in ("-f", "-F") for field in options.get(flag, []))
    method = (options.get("-X") or options.get("--method") or [""])[0]
    method = method or ("POST" if fields else "GET")
    found = call(forge, method, f"/{url}", _read(fields), LOGIN)
    return None if found is None else filtered(found, options.get("--jq", [""])[0])


def _read(fields: dict[str, str]) -> dict[str, str]:
    return {
        name: Path(value[1:]).read_text("utf-8") if value.startswith("@") else value
        for name, value in fields.items()
    }


def curl(forge: dict[str, Any], arguments: list[str]) -> str | None:
    """GitLab's API by `curl --fail`."""
    url, method, body = "", "", ""
    while arguments:
        word = arguments.pop(0)
        if word == "--header":
            assert arguments.pop(0) == "PRIVATE-TOKEN: secret"
        elif word == "--request":
            method = arguments.pop(0)
        elif word == "--data-urlencode":
            field, file = arguments.pop(0).split("@")
            assert field == "body"
            body = Path(file).read_text("utf-8")
        elif not word.startswith("--"):
            url = word
    method = method or ("POST" if body else "GET")
    if url.endswith("/user"):
        return json.dumps({"id": ME, "username": "bot"})
    found = call(forge, method, url, {"body": body}, ME)
    return None if found is None else json.dumps(found)


def call(
    forge: dict[str, Any], method: str, url: str, fields: dict[str, str], me: str | int
) -> Any:
    """One request; None where the token may not do it."""
    path, query = urlsplit(url).path, parse_qs(urlsplit(url).query)
    comments: list[dict[str, Any]] = forge["comments"]
    if path.endswith("/pulls"):
        return [pull for pull in forge["pulls"] if pull["head"]["label"] == fields["head"]]
    if method == "GET" and path.endswith(("/comments", "/notes")):
        size, page = int(query.get("per_page", ["9999"])[0]), int(query.get("page", ["1"])[0])
        return comments[(page - 1) * size : page * size]
    if method != "GET" and forge["forbidden"]:
        return None
    if method == "POST":
        author = {"id": me, "login": me}
        new = {"id": 1000 + len(comments), "user": author, "author": author, **fields}
        comments.append(new)
        return new
    (found,) = [c for c in comments if str(c["id"]) == path.rsplit("/", 1)[1]]
    found |= fields
    return found


def filtered(found: Any, query: str) -> str:
    """The three jq programs of the examples; `test_github.py` compares them with jq itself."""
    if not query:
        return json.dumps(found)
    if query == ".body":
        return f"{found['body']}\n"
    if "startswith" in query:
        tag = f"<!-- kdpipe:{os.environ['ID']} -->"
        rows = [c for c in found if c["user"]["login"] == LOGIN and c["body"].startswith(tag)]
        return "".join(f"{row['id']}\n" for row in rows)
    assert re.search(r"\.head\.sha == env\.SHA", query), query
    rows = [pull for pull in found if pull["head"]["sha"] == os.environ["SHA"]]
    return "".join(f"{row['number']}\n" for row in rows)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
