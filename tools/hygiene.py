"""What a saved notebook must look like: `violations` lists what is wrong, `clean` puts right what can be put right."""

import re
from pathlib import Path
from urllib.parse import unquote, urlparse

from tools import notebooks

MAX_KB = 500
SOLUTION_TITLE = re.compile(r'#@title Solution \S.* \{ display-mode: "form" \}')
SOLUTION_METADATA = {"cellView": "form", "jupyter": {"source_hidden": True}}
SOLUTION_TAGS = {"solution", "hide-input"}
SETUP_METADATA = {**SOLUTION_METADATA, "tags": ["setup", "hide-input"]}
COLAB_LINK = re.compile(r"https://colab\.research\.google\.com/github/([\w.-]+/[\w.-]+)/blob/main/([^)\s]+)")
ABSOLUTE_PATH = re.compile(r"""(?<![\w.:/~])/(?:home|root|Users|work|tmp|var|usr|opt|mnt|content|private)/\w
                               |(?<!\w)[A-Za-z]:\\+(?:Users|Windows|Temp)|file:///|/site-packages/""", re.VERBOSE)
ADDRESS = re.compile(r"\bat 0x[0-9a-fA-F]{6,}")
WARNING = re.compile(r"\b\w*Warning\b:|\bWARNING\b")
IMAGE = re.compile(r"""!\[[^\]]*\]\(\s*<?([^)\s>]+)
                       |<(?:img|source|image)\b[^>]*?\b(?:src|srcset|href)\s*=\s*["']?([^"'\s>]+)""", re.VERBOSE)
REMOTE_IMAGE = re.compile(r"""\bImage\(\s*(?:url\s*=\s*|data\s*=\s*)?["'](?:https?:)?//[^"']*""")  # IPython.display's
LINK = re.compile(r"\[(?:[^\[\]]|!\[[^\]]*\]\([^)]*\))*\]\(\s*<?([^)\s>]+)[^)]*\)")
DEFINED_LINK = re.compile(r"^ {0,3}\[[^\]]+\]:\s*<?([^\s>]+)", re.MULTILINE)
COLAB_BADGE = f"[![Open in Colab](../{notebooks.BADGE})](https://colab.research.google.com/github/"
LESSONS_NAMED = re.compile(r"\b[Ll]essons?\s+((?:\d+\.\d+[a-z]?(?:\s*(?:,|–|-|and|or|to)\s*)*)+)")
LESSON_FILE = re.compile(r"(?<![\w/.-])(0\d[a-z]?_\w+(?:/\d\d[a-z]?_\w+)?)")
QUICK_BRANCH = re.compile(r"""^\s*(?:el)?if\b.*(?:\bquick\b|["']full["']|\bscale\(\))""", re.MULTILINE)
METADATA = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"}}


def clean(notebook):
    """Bring an executed notebook into the form in which it is saved, in place: counts 1..n, progress bars (the only
    thing that may stand on stderr) dropped, no metadata of one run or one machine. Warnings are left for `violations`.
    """
    notebook.metadata = METADATA
    for cell in notebook.cells:
        for key in ("execution", "collapsed", "ExecuteTime", "outputId", "colab", "id", "trusted"):
            cell.metadata.pop(key, None)
    for number, (_, cell) in enumerate(notebooks.code_cells(notebook), 1):
        cell.execution_count = number
        cell.outputs = notebooks.merge_streams(output for output in cell.outputs if not is_progress(output))
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = number
    return notebook


def is_progress(output):
    return output.output_type == "stream" and output.name == "stderr" and not WARNING.search(output.text)


def text_of(output):
    """All the text of an output; pictures in base64 have none."""
    data = output.get("data", {})
    texts = [output.get("text", ""), *(v for k, v in data.items() if isinstance(v, str) and k != "image/png")]
    return "\n".join(texts)


def violations(path, root=notebooks.ROOT):
    """What is wrong with the notebook at `path`, one sentence each."""
    path, root = Path(path), Path(root)
    notebook = notebooks.read(path)
    found = [f"{path.stat().st_size / 1000:.0f} kB; at most {MAX_KB}"] if path.stat().st_size > 1000 * MAX_KB else []
    if extra := set(notebook.metadata) - set(METADATA):
        found.append(f"metadata of the notebook holds {sorted(extra)}")
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        found.append("the kernelspec is not python3")
    if notebook.metadata.get("language_info", {}) not in ({}, {"name": "python"}):
        found.append("language_info holds more than the name")
    found += [f"cell {i}: {what}" for i, cell in notebooks.code_cells(notebook) for what in wrong_with_code(cell)]
    found += saved_outputs(notebook)
    found += [f"cell {i}: {what}" for i, cell in enumerate(notebook.cells) if cell.cell_type == "markdown"
              for what in wrong_with_prose(cell.source, path, root)]
    found += [f"cell {i}: {what}" for i, cell in notebooks.code_cells(notebook)
              for what in missing_lessons(cell.source, path, root)]
    return found + structure(notebook, path, root)


def saved_outputs(notebook):
    """Counts 1..n; no errors, stderr, widgets, warnings, paths or addresses of one machine."""
    cells = notebooks.code_cells(notebook)
    counts = [cell.execution_count for _, cell in cells]
    found = [] if counts == list(range(1, len(counts) + 1)) else [f"execution counts are not 1..n: {counts}"]
    for i, cell in cells:
        for output in cell.outputs:
            text = text_of(output)
            if output.output_type == "error":
                found.append(f"cell {i}: a saved error: {output.ename}: {output.evalue}")
            if output.get("name") == "stderr":
                found.append(f"cell {i}: saved stderr: {output.text[:100]!r}")
            if any("widget" in kind for kind in output.get("data", {})):
                found.append(f"cell {i}: a saved widget")
            found += [f"cell {i}: a picture from elsewhere: {address}" for address in remote_pictures(text)]
            if WARNING.search(text):
                found.append(f"cell {i}: a saved warning: {text[:100]!r}")
            if match := ABSOLUTE_PATH.search(text):
                found.append(f"cell {i}: a path of one machine: {text[max(0, match.start() - 20):match.end() + 30]!r}")
            if match := ADDRESS.search(text):
                found.append(f"cell {i}: an object's address: {text[max(0, match.start() - 40):match.end()]!r}")
    return found


def wrong_with_code(cell):
    found = [] if cell.source.strip() else ["an empty code cell"]
    if QUICK_BRANCH.search(cell.source):
        found.append("branches on the scale; name both settings once in a table instead")
    found += [f"a picture from elsewhere: {address}" for address in remote_pictures(cell.source)]
    for key in ("execution", "colab", "outputId", "ExecuteTime"):
        if key in cell.metadata:
            found.append(f"metadata of one run: {key}")
    if "setup" in notebooks.tags(cell):
        if any(cell.metadata.get(key) != value for key, value in SETUP_METADATA.items()):
            found.append("a setup cell that is not folded: its metadata are not hygiene.SETUP_METADATA")
    elif "solution" in notebooks.tags(cell) or cell.source.startswith("#@title Solution"):
        wanted = all(cell.metadata.get(key) == value for key, value in SOLUTION_METADATA.items())
        if not wanted or not SOLUTION_TAGS.issubset(notebooks.tags(cell)):
            found.append("a solution that is not folded: metadata and tags are not those of STYLE")
        if not SOLUTION_TITLE.fullmatch(cell.source.split("\n", 1)[0]):
            found.append('a solution whose first line is not #@title Solution ... { display-mode: "form" }')
    return found


def without_code(source):
    """Markdown without its code blocks and code spans, where a bracket is only a bracket."""
    return re.sub(r"(`+)(?:(?!\1).)+?\1", "", re.sub(r"^```.*?^```", "", source, flags=re.DOTALL | re.MULTILINE))


def wrong_with_prose(source, path, root):
    """Pictures from elsewhere, dead links, lessons that are not there, folds that are not closed."""
    found = [f"a picture from elsewhere: {address}" for address in remote_pictures(source)]
    found += missing_lessons(source, path, root)
    source = without_code(source)
    for tag in ("details", "summary"):
        if len(re.findall(f"<{tag}[ >]", source)) != source.count(f"</{tag}>"):
            found.append(f"<{tag}> is not closed")
    for address in pictures(source):
        if not is_remote(address) and not address.startswith(("attachment:", "data:")) \
                and not (path.parent / address).exists():
            found.append(f"a picture that does not exist: {address}")
    for address in LINK.findall(source) + DEFINED_LINK.findall(source):
        parts = urlparse(address)
        if not parts.scheme and parts.path:
            target = (path.parent / unquote(parts.path)).resolve()
            if not target.exists() or not target.is_relative_to(root.resolve()):
                found.append(f"a link that leads nowhere: {address}")
    return found


def is_remote(address):
    return address.startswith("//") or urlparse(address).scheme in ("http", "https")


def pictures(text):
    return [markdown or tag for markdown, tag in IMAGE.findall(text)]


def remote_pictures(text):
    """Addresses of pictures on other hosts in Markdown, HTML or a call of IPython's `Image`."""
    return [address for address in pictures(text) if is_remote(address)] + REMOTE_IMAGE.findall(text)


def missing_lessons(text, path, root):
    """Lessons named in a text that do not exist, or are said to be in preparation."""
    there = {notebooks.number_of(p) for p in notebooks.lessons(root)}
    named = " ".join(LESSONS_NAMED.findall(text))
    found = [number for number in re.findall(r"\d+\.\d+[a-z]?", named) if number not in there]
    found += [name for name in LESSON_FILE.findall(text)
              if not any(list(folder.glob(name + "*")) for folder in (path.parent, root))]  # fmt: skip
    found += ["in preparation"] if "in preparation" in text else []
    return [f"a lesson that is not there: {name}" for name in found]


def structure(notebook, path, root):
    """The badge leads to this notebook, one setup cell, never three code cells in a row."""
    found, in_a_row = [], 0
    for i, cell in enumerate(notebook.cells):
        folded = "solution" in notebooks.tags(cell)  # a reader sees one line of it
        in_a_row = in_a_row + (not folded) if cell.cell_type == "code" else 0
        if in_a_row == 3 and not folded:
            found.append(f"cell {i}: the third code cell in a row")
    links = [link for cell in notebook.cells[:1] for link in COLAB_LINK.findall(cell.source)]
    own = path.resolve().relative_to(root.resolve()).as_posix()
    if [target for _, target in links] != [own] or COLAB_BADGE not in notebook.cells[0].source:
        found.append(f"the first cell should have one Colab badge {COLAB_BADGE}... that ends in /blob/main/{own}")
    if sum("setup" in notebooks.tags(cell) for cell in notebook.cells) != 1:
        found.append("there should be one cell with the tag 'setup'")
    if notebooks.navigation(path, root) not in notebook.cells[0].source:
        found.append("below the badge there should be the links that `python -m tools.carry` puts there")
    return found


