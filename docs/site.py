"""Hooks of mkdocs: add the repository's other documents and the reference to the site, and adapt links.

    make docs

Documents keep the links of the repository. On the site, a link to a document leads to its page, and a link to a module
or a config leads to the reference. Other files are named without a link. A link to nothing is kept, so that mkdocs
fails.

The site loads nothing from elsewhere: the build copies Mermaid into it. Without a network, figures are shown as text.
"""

from __future__ import annotations

import inspect
import json
import os
import posixpath
import re
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from functools import cache
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.request import urlopen

import griffe

ROOT = Path(__file__).parents[1]
PACKAGES = ("zoo", "datamodules", "evaluation", "run_folder", "callbacks", "commands")
DOCUMENTS = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "examples/quickstart.ipynb": "examples/quickstart.md",
}
FOLDERS = {"Timings": "timings", "Studies": "studies", "Recipes": "recipes"}
SHOWN = ("docs", *FOLDERS.values())
COMMANDS_PAGE, CONFIGS_PAGE = "reference/commands.md", "reference/configs.md"
LINK = re.compile(r"\[((?:[^\[\]]|!\[[^\]]*\]\([^)]*\))*)\]\((?!\w+:|#|/)([^)\s#]+)(#[^)\s]*)?\)")
MERMAID, SCRIPT = "https://unpkg.com/mermaid@11/dist/mermaid.min.js", "assets/mermaid.min.js"


# ---- called by mkdocs


def on_config(config: Any) -> Any:
    """Complete the navigation."""
    sys.path.insert(0, str(ROOT))
    for section in config.nav:
        if "Measured" in section:
            section["Measured"] = [
                {title: [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / folder).glob("*.md"))]}
                for title, folder in FOLDERS.items()
            ]
        elif "Reference" in section:
            python = [{package: navigation(package)} for package in PACKAGES]
            section["Reference"] += [{"Commands": COMMANDS_PAGE}, {"Configs": CONFIGS_PAGE}, {"Python": python}]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are not in docs/."""
    from mkdocs.structure.files import File

    outside = [ROOT / name for name in DOCUMENTS]
    for folder in FOLDERS.values():
        outside += [path for path in (ROOT / folder).iterdir() if path.suffix in (".md", ".png")]
    for path in outside:
        files.append(File.generated(config, page_of(path), abs_src_path=str(path)))
    for module in modules():
        files.append(File.generated(config, module_page(module), content=f"# {module}\n\n::: {module}\n"))
    files.append(File.generated(config, COMMANDS_PAGE, content=commands_page()))
    files.append(File.generated(config, CONFIGS_PAGE, content=configs_page()))
    if script := mermaid():
        files.append(File.generated(config, SCRIPT, content=script))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in notebook cells, and turn links of the repository into links of the site."""
    uri = page.file.src_uri
    if (file := file_of(uri)) is None:
        return markdown  # a generated page
    if file.suffix == ".ipynb":
        markdown = notebook(markdown)
    if mermaid() is None:
        markdown = markdown.replace("```mermaid\n", "```text\n")
    return LINK.sub(lambda found: site_link(file, uri, found[1], found[2], found[3] or ""), markdown)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Load Mermaid on a page with a figure, because the theme would load it from elsewhere."""
    if '<pre class="mermaid">' not in output:
        return output
    source = posixpath.relpath(SCRIPT, posixpath.dirname(page.url))
    return output.replace("</head>", f'<script src="{source}"></script></head>', 1)


def on_post_build(**_: Any) -> None:
    """Fail if a public name has no docstring, because the reference would not show it."""
    from mkdocs.exceptions import PluginError

    if names := [name for module in modules() for name in undocumented(module)]:
        raise PluginError(f"public names without a docstring: {', '.join(names)}")


@cache
def mermaid() -> bytes | None:
    """Return Mermaid's script, which draws the figures, or None without a network."""
    try:
        with urlopen(MERMAID, timeout=20) as answer:
            return answer.read()
    except OSError:
        return None


class Examples(griffe.Extension):
    """Show `Example:` of a docstring as code. The parser of Google's style only knows the plural."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rename the section. Griffe calls this for each class, function and module."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)


def notebook(content: str) -> str:
    """Return the cells of a notebook with their saved outputs, as Markdown."""
    shown = []
    for cell in json.loads(content)["cells"]:
        text = "".join(cell["source"])
        shown.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
        for output in cell.get("outputs", ()):
            data = output.get("data", {"text/plain": output.get("text", "")})
            if picture := "".join("".join(data.get("image/png", "")).split()):
                shown.append(f"![output of the cell above](data:image/png;base64,{picture})")
            else:
                shown.append(f"```text\n{''.join(data['text/plain']).strip()}\n```")
    return "\n\n".join(shown)


# ---- links


def page_of(path: Path) -> str:
    """Return the page of a document of the repository, as mkdocs names it."""
    name = path.relative_to(ROOT).as_posix()
    return DOCUMENTS.get(name, name.removeprefix("docs/"))


def file_of(uri: str) -> Path | None:
    """Return the document of a page, or None for a generated page."""
    names = [name for name, page in DOCUMENTS.items() if page == uri] or [f"docs/{uri}", uri]
    return next((path for name in names if (path := ROOT / name).is_file()), None)


def site_link(file: Path, uri: str, text: str, target: str, anchor: str) -> str:
    """Return the site's link for a document's link, or only the text for a file without a page."""
    path = Path(os.path.normpath(file.parent / target))
    if path.is_dir() and (path / "README.md").is_file():
        path /= "README.md"
    if path.is_dir() and (path / "__init__.py").is_file():
        path /= "__init__.py"
    if not path.is_relative_to(ROOT) or not path.exists():
        return f"[{text}]({target}{anchor})"  # keep the broken link, so that mkdocs fails
    name = path.relative_to(ROOT)
    if name.parts[0] == "configs":
        page, anchor = CONFIGS_PAGE, f"#{name.stem}" if path.is_file() else ""
    elif name.parts[0] in PACKAGES and path.suffix == ".py":
        page = module_page(".".join(name.with_suffix("").parts).removesuffix(".__init__"))
    elif (
        name.as_posix() in DOCUMENTS
        or name.parts[0] == "docs"
        or (name.parts[0] in FOLDERS.values() and path.is_file())
    ):
        page = page_of(path)
        if path.suffix in (".py", ".yaml", ".jsonl"):
            return text
    else:
        return text
    return f"[{text}]({posixpath.relpath(page, posixpath.dirname(uri))}{anchor})"


# ---- the reference


def modules() -> Iterator[str]:
    """Yield the dotted names of the packages' public modules, each package before its modules."""
    for package in PACKAGES:
        for path in sorted(
            (ROOT / package).rglob("*.py"), key=lambda path: (path.parent, path.name != "__init__.py", path)
        ):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            # the plugin imports lmms-eval, which is in another environment
            if not any(part.startswith("_") for part in name.split(".")) and "lmms_eval" not in name:
                yield name


def module_page(module: str) -> str:
    """Return the page of a module. A package's page is the index of its folder."""
    path = ROOT.joinpath(*module.split("."))
    return f"reference/{module.replace('.', '/')}{'/index.md' if path.is_dir() else '.md'}"


def navigation(package: str) -> list[Any]:
    """Return the pages of a package: its own first, then its modules and packages."""
    inside = [name for name in modules() if name.rpartition(".")[0] == package]
    is_package = {name: ROOT.joinpath(*name.split(".")).is_dir() for name in inside}
    entries: list[Any] = [module_page(package)]
    for name in sorted(inside, key=lambda name: (is_package[name], name)):
        entries.append({name.rpartition(".")[2]: navigation(name) if is_package[name] else module_page(name)})
    return entries


def undocumented(module: str) -> Iterator[str]:
    """Yield the public classes, functions and methods of a module without own or inherited docstring."""
    found = import_module(module)
    if not found.__doc__ and not hasattr(found, "__path__"):
        yield module
    for name, thing in vars(found).items():
        if name.startswith("_") or getattr(thing, "__module__", None) != module or not callable(thing):
            continue
        if (inspect.isclass(thing) or inspect.isfunction(thing)) and not thing.__doc__:
            yield f"{module}.{name}"
        for method, function in vars(thing).items() if inspect.isclass(thing) else ():
            is_method = inspect.isfunction(function) or isinstance(function, (property, classmethod, staticmethod))
            documented = (getattr(vars(kind).get(method), "__doc__", None) for kind in thing.__mro__)
            if is_method and not method.startswith("_") and not any(documented):
                yield f"{module}.{name}.{method}"


def commands_page() -> str:
    """Return the help of every command."""
    from commands import main

    pages = [f"# Commands\n\n```text\n{(main.__doc__ or '').strip()}\n```"]
    for command in main.COMMANDS:
        called = patch.object(sys, "argv", ["main.py", command, "--help"])
        with patch.dict(os.environ, COLUMNS="110"), called, suppress(SystemExit), redirect_stdout(text := StringIO()):
            main.run(command)
        pages.append(f"## {command}\n\n```text\n{text.getvalue().strip()}\n```")
    return "\n\n".join(pages) + "\n"


def configs_page() -> str:
    """Return every config of configs/, and the files for sbatch."""
    page = [
        "# Configs",
        "`--config NAME.yaml` takes a file of this name in `configs/`, or a path; several compose in any order.",
    ]
    for file in (*sorted((ROOT / "configs").glob("*.yaml")), *sorted((ROOT / "configs/slurm").iterdir())):
        language = "yaml" if file.suffix == ".yaml" else "bash"
        text = file.read_text(encoding="utf-8").strip()
        page.append(f"## {file.name} {{: #{file.stem} }}\n\n```{language}\n{text}\n```")
    return "\n\n".join(page) + "\n"
