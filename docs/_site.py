"""What the site needs beside docs/*.md: files of the root as pages, links to what is no page."""

import logging
import posixpath
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
# File of the repository → page of the site.
PAGES = {"README.md": "index.md", "SECURITY.md": "security.md", "CHANGELOG.md": "changelog.md"}
# Warnings stop a strict build.
logger = logging.getLogger("mkdocs.plugins.site")
IN_NOTEBOOK = re.compile(r'(?<= href=")(?!https?:)([^"#]+\.(?:md|ipynb))')
LINK = re.compile(r'(\]\(|<img[^>]* src=")(?!https?:|#|mailto:)([^)"#\s]+)')


def on_startup(command: str, dirty: bool) -> None:
    """Let a build say nothing but warnings. (--quiet would hide them from --strict, too.)"""
    if command == "build":
        logging.getLogger("mkdocs").setLevel(logging.WARNING)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie at the root, where people and registries look for them."""
    for name, page in PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """Lead links, which are relative in the repository, to a page or else into the repository."""
    names = {page: name for name, page in PAGES.items()}
    source = PurePosixPath(names.get(page.file.src_uri, f"docs/{page.file.src_uri}"))

    def led(match: re.Match[str]) -> str:
        target = (ROOT / source.parent / match[2]).resolve().relative_to(ROOT).as_posix()
        if target in PAGES:
            target = PAGES[target]
        elif target.startswith("docs/"):
            target = target.removeprefix("docs/")
        elif (ROOT / target).exists():
            return f"{match[1]}{config.extra['source']}/blob/main/{target}"
        # All pages but notebooks lie at the top; what is not there, mkdocs tells of.
        return f"{match[1]}{target}"

    return LINK.sub(led, markdown)


def on_page_content(html: str, page: Page, config: Any, files: Files) -> str:
    """Lead the links of a notebook, which the plugin leaves as they are in the repository."""
    if not page.file.src_uri.endswith(".ipynb"):
        return html

    def led(match: re.Match[str]) -> str:
        at = posixpath.normpath(posixpath.join(posixpath.dirname(page.file.src_uri), match[1]))
        if (file := files.get_file_from_path(at)) is None:
            logger.warning(f"{page.file.src_uri}: no such page: {match[1]}")
            return match[1]
        return file.url_relative_to(page.file)

    return IN_NOTEBOOK.sub(led, html)
