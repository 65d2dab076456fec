"""Complete the documentation site when MkDocs builds it: generated pages, pages of other folders, tables, guides."""

import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from scripts import docs_reference, docs_tables

ROOT = Path(__file__).parent.parent
GUIDES = "How-to guides"
# A file of the repository -> its page. Every other README below experiments/ becomes a page of experiments/.
PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmarks.md",
    "benchmarks/GPU.md": "gpu.md",
    "experiments/README.md": "experiments.md",
    "experiments/records/README.md": "records.md",
    "experiments/fair/README.md": "fair-recipe.md",
    "experiments/published/README.md": "published.md",
}
# A file or folder of the repository -> the page that is generated from it.
REFERENCE = {
    "flr/config/schema.py": "reference/commands.md",
    "conf": "reference/config.md",
    "flr/models": "reference/models.md",
}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def repository_pages() -> dict[str, str]:
    """Map each Markdown file outside of docs/ to its page on the site."""
    pages = dict(PAGES)
    for path in sorted((ROOT / "experiments").rglob("README.md")):
        source = path.relative_to(ROOT).as_posix()
        pages.setdefault(source, f"{path.parent.relative_to(ROOT).as_posix()}.md")
    return pages


def with_site_links(text: str, source: str, pages: dict[str, str], images: set[str]) -> str:
    """Rewrite the relative links of a file for the site.

    Args:
        text: Its Markdown.
        source: Its path in the repository.
        pages: Repository file -> page.
        images: Receives the repository paths of its images.
    """

    def rewrite(match: re.Match[str]) -> str:
        mark, label, target = match.groups()
        if "://" in target or target.startswith("#"):
            return match[0]
        place, _, anchor = target.partition("#")
        path = os.path.normpath((PurePosixPath(source).parent / place).as_posix())
        anchor = f"#{anchor}" if anchor else ""
        folder = PurePosixPath(pages[source]).parent
        if path.startswith("docs/"):
            return f"{mark}[{label}]({os.path.relpath(path[5:], folder)}{anchor})"
        readme = f"{path}/README.md"
        if path in pages or readme in pages:
            return f"[{label}]({os.path.relpath(pages.get(path) or pages[readme], folder)}{anchor})"
        if mark:
            images.add(path)
            return f"![{label}]({os.path.relpath(path, folder)})"
        return label if path in label or label.strip("`") in path else f"{label} (`{path}`)"

    return LINK.sub(rewrite, text)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add to the navigation the guides and datasets that it does not list, and the pages of single experiments."""
    guides: list[Any] = next(section[GUIDES] for section in config.nav or [] if GUIDES in section)
    datasets: list[Any] = next(entry["Datasets"] for entry in guides if isinstance(entry, dict))
    for folder, listed in (("guide", guides), ("datasets", datasets)):
        for path in sorted((ROOT / "docs" / folder).glob("*.md")):
            if (place := f"{folder}/{path.name}") not in listed:
                listed.append(place)
    results: list[Any] = next(section["Results"] for section in config.nav or [] if "Results" in section)
    results.append(
        {"Single experiments": [page for page in repository_pages().values() if page.startswith("experiments/")]}
    )
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not files of docs/."""
    pages, images = repository_pages(), set[str]()
    for source, page in pages.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=with_site_links(text, source, pages, images)))
    for image in sorted(images):
        files.append(File.generated(config, image, abs_src_path=str(ROOT / image)))
    for page, text in docs_reference.pages().items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill the tables between markers, and rewrite the links of a file in docs/ to the rest of the repository."""
    if page.file.generated_by is None:
        source = f"docs/{page.file.src_uri}"
        markdown = with_site_links(
            markdown, source, repository_pages() | REFERENCE | {source: page.file.src_uri}, images=set()
        )
    return docs_tables.fill(markdown)
