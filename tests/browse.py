"""
Looks at the built documentation in a real browser: `make test-docs`. Needs Chromium (Debian: `chromium`).

Also at the page that `nfsrwlock timeline` makes: whether it shows what was recorded, and filters it.

Each page is opened at the width of a desk and of a phone, light and dark. It fails if a link inside the documentation
leads nowhere, a picture does not load, or a page is wider than its window. The pictures are in `docs/_build/pictures`.
"""

from __future__ import annotations

import html.parser
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shutil import which
from urllib.parse import unquote, urldefrag

ROOT = Path(__file__).parents[1]
BUILT = ROOT / "docs" / "_build" / "html"
PICTURES = ROOT / "docs" / "_build" / "pictures"
#: Name and width in pixels of what a page is looked at with.
WINDOWS = {"desk": 1280, "phone": 390}
#: Pages that pictures are taken of; all are measured.
SHOWN = ["index.html", "tutorial.html", "how-to/troubleshooting.html", "reference/python.html", "benchmarks.html"]
#: Reports how wide a page is, and which pictures did not load, as its title.
MEASURE = """<script>addEventListener('load', () => setTimeout(() => {
const broken = [...document.images].filter(i => i.complete && !i.naturalWidth && i.loading != 'lazy').map(i => i.src);
const root = document.documentElement;
const wide = [...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1
    && !e.closest('.highlight, .table-wrapper, .sidebar-drawer, .toc-drawer, .sig, table'))
    .map(e => e.tagName + ' ' + e.className);
root.setAttribute('data-seen', JSON.stringify([innerWidth, root.scrollWidth, broken, wide.slice(0, 3)]));
}, 100))</script>"""


#: Reports what bars and lines of tables a timeline shows: all of them, of one lock, of one host, with a text.
FILTER = """<script>
const shown = () => [...document.querySelectorAll('#picture rect[data-lock], #tables tbody tr')]
    .filter(e => !e.classList.contains('off')).map(e => e.tagName).sort().join(' ');
const seen = [shown()];
for (const [id, value] of [['lock', LOCK], ['host', 'b'], ['text', 'exclusive']]) {
    const field = document.getElementById(id);
    field.value = value; field.dispatchEvent(new Event('input')); seen.push(shown());
    field.value = ''; field.dispatchEvent(new Event('input'));
}
document.documentElement.setAttribute('data-seen', seen.join('|'));
</script>"""


class Page(html.parser.HTMLParser):
    """The links and anchors of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take note of what leads away, or can be led to."""
        for name, value in attrs:
            if name == "id" and value:
                self.anchors.add(value)
            elif name in ("href", "src") and value and (tag, name) != ("link", "href"):
                self.links.append(value)


def broken_links(pages: dict[Path, Page]) -> list[str]:
    """Links of the documentation to itself that lead nowhere."""
    found = []
    for path, page in pages.items():
        for link in page.links:
            name, anchor = urldefrag(unquote(link))
            if re.match(r"[a-z]+:|//", name):
                continue
            target = (path.parent / name.partition("?")[0]).resolve() if name else path
            if not target.exists() or (anchor and target in pages and anchor not in pages[target].anchors):
                found.append(f"{path.relative_to(BUILT)}: {link}")
    return found


def chromium(*arguments: str) -> str:
    """Run the browser without a window, with a profile of its own."""
    program = which("chromium") or which("chromium-browser") or which("google-chrome")
    if program is None:
        sys.exit("needs Chromium; on Debian: apt-get install chromium")
    with tempfile.TemporaryDirectory() as profile:
        fixed = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}"]
        ran = subprocess.run([program, *fixed, *arguments], capture_output=True, text=True, timeout=120, check=True)
    return ran.stdout


def measure(path: Path, window: str) -> list[str]:
    """What is wrong with a page in a window. A frame stands for it, for a phone is narrower than any window."""
    width = WINDOWS[window]
    copy = path.with_name(f".{window}-{path.name}")
    copy.write_text(path.read_text().replace("</head>", MEASURE + "</head>"))
    frame = path.with_name(f".frame-{window}-{path.name}")
    frame.write_text(
        f"<iframe id=f src='{copy.name}' style='width:{width}px;height:900px;border:0'></iframe>"
        """<script>
        setInterval(() => { const seen = f.contentDocument?.documentElement?.getAttribute('data-seen');
        if (seen) document.title = seen; }, 50)</script>"""
    )
    try:
        dom = chromium(
            "--allow-file-access-from-files",
            "--virtual-time-budget=4000",
            "--window-size=1400,1000",
            "--dump-dom",
            frame.as_uri(),
        )
    finally:
        copy.unlink()
        frame.unlink()
    title = re.search(r"<title>\[(\d+),(\d+),\[(.*?)\],\[(.*?)\]\]</title>", dom)
    where = f"{path.relative_to(BUILT)} ({window})"
    if title is None:
        return [f"{where}: could not be measured"]
    problems = [f"{where}: does not load {title[3]}"] if title[3] else []
    if int(title[2]) > int(title[1]) or title[4]:
        problems.append(f"{where}: is wider than its window: {title[4]}")
    return problems


def picture(name: str, window: str, dark: bool) -> None:
    """Take a picture of a page."""
    path = BUILT / name
    theme = "dark" if dark else "light"
    copy = path.with_name(f".{window}-{theme}-{path.name}")
    body = path.read_text().replace('data-theme="auto"', "").replace("<body", f'<body data-theme="{theme}"')
    body = re.sub(r"document\.body\.dataset\.theme = [^;]*;", f'document.body.dataset.theme = "{theme}";', body)
    copy.write_text(body)
    frame = path.with_name(f".frame-{window}-{theme}-{path.name}")
    width = WINDOWS[window]
    frame.write_text(
        f"<body style='margin:0'><iframe src='{copy.name}' style='width:{width}px;height:1600px;border:0'></iframe>"
    )
    try:
        PICTURES.mkdir(parents=True, exist_ok=True)
        to = PICTURES / f"{name.replace('/', '-').removesuffix('.html')}-{window}-{theme}.png"
        chromium(
            "--allow-file-access-from-files",
            "--virtual-time-budget=4000",
            f"--window-size={max(width, 500)},1600",
            f"--screenshot={to}",
            frame.as_uri(),
        )
    finally:
        copy.unlink()
        frame.unlink()


def timeline_problems() -> list[str]:
    """What is wrong with the page of a timeline: two hosts, two locks, one exclusive hold."""
    program = [sys.executable, "-m", "nfsrwlock"]
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory).resolve()
        for host, mode, name in (("a", "--write", "one"), ("b", "--read", "one"), ("b", "--read", "two")):
            environment = {**os.environ, "NFSRWLOCK_TRACE": f"{place}/trace", "NFSRWLOCK_HOST": host}
            subprocess.run([*program, "run", mode, name, "--", "true"], cwd=place, env=environment, check=True)
        page = place / "page.html"
        subprocess.run([*program, "timeline", "trace", "-o", page], cwd=place, check=True)
        script = FILTER.replace("LOCK", "'one'")
        page.write_text(page.read_text().replace("</body>", f"{script}</body>"))
        dom = chromium("--virtual-time-budget=4000", "--dump-dom", page.as_uri())
    found = re.search(r'data-seen="([^"]*)"', dom)
    seen = [words.split() for words in found[1].split("|")] if found else []
    bars = [words.count("rect") for words in seen]
    rows = [words.count("TR") for words in seen]
    # Of locks two lines, of holds three; nobody waited. Lines about a lock name no host.
    wanted = [3, 2, 2, 1], [5, 3, 4, 1]
    return [] if (bars, rows) == wanted else [f"the timeline's page shows {bars} bars and {rows} lines: not {wanted}"]


def main() -> None:
    """Look at all pages, and say what is wrong."""
    paths = [
        path for path in sorted(BUILT.rglob("*.html")) if not path.name.startswith(".") and "_static" not in path.parts
    ]
    problems = broken_links({path: Page(path) for path in paths}) + timeline_problems()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for found in pool.map(lambda job: measure(*job), [(path, window) for path in paths for window in WINDOWS]):
            problems += found
        list(
            pool.map(
                lambda job: picture(*job),
                [(name, w, dark) for name in SHOWN for w in WINDOWS for dark in (False, True)],
            )
        )
    print(f"{len(paths)} pages; pictures in {PICTURES.relative_to(ROOT)}")
    if problems:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
