"""Prints a pip constraint for each lower bound of pyproject.toml; `make test-lowest` installs by them."""

import re
import tomllib
from pathlib import Path

LOWER_BOUND = re.compile(r"(?P<name>[\w.-]+)(?:\[[\w,]+\])?>=(?P<version>[\d.]+)")


def constraints(pyproject: str) -> list[str]:
    project = tomllib.loads(pyproject)["project"]
    requirements = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    return [LOWER_BOUND.match(requirement).expand(r"\g<name>==\g<version>") for requirement in requirements]


if __name__ == "__main__":
    print(*constraints(Path("pyproject.toml").read_text()), sep="\n")
