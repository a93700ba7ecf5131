"""Executed notebooks as web pages that need no network. What is folded in a notebook is folded here too."""

import re
from copy import deepcopy
from pathlib import Path

import jinja2
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from tools import hygiene, notebooks

try:
    from latex2mathml.converter import convert as to_mathml
except ImportError:  # formulas then stay as they were typed
    to_mathml = None

# nbconvert's page without the scripts that it would load from the network (require.js, MathJax, Mermaid).
TEMPLATE = """{% extends "lab/index.html.j2" %}
{% block html_head_js_requirejs %}{% endblock %}
{% block html_head_js_mathjax %}{% endblock %}
{% block html_head_js_mermaidjs %}{% endblock %}
{% block html_head_css %}{{ super() }}
<style>
.jp-OutputArea-child { display: flex } .jp-OutputArea-output { flex: 1; min-width: 0 }
.jp-RenderedSVG img, .jp-RenderedImage img { max-width: 100%; height: auto }
details.folded { margin: .4em 0 .4em 1em } details.folded > summary { cursor: pointer; color: #57606a }</style>
{% endblock %}
{% macro fold(title, inner) %}
{%- if title %}<details class="folded"><summary>{{ title | e }}</summary>{{ inner }}</details>{% else %}{{ inner }}
{%- endif %}{% endmacro %}
{% block codecell %}{{ fold(cell.metadata.folded_cell, super()) }}{% endblock %}
{% block input_group %}{{ fold(cell.metadata.folded_code, super()) }}{% endblock %}
{% block data_svg %}<div class="jp-RenderedSVG jp-OutputArea-output"><img alt="{{ output.data['text/plain'] | e }}"
src="data:image/svg+xml;base64,{{ output.data['image/svg+xml'] | text_base64 }}"></div>{% endblock %}
"""
FORM = re.compile(r"^#@title | \(double-click to open\)|; double-click to open| \{ display-mode.*")
COLAB_BADGE = re.compile(r"!\[(Open in Colab)\]\([^)]*\)")
LESSON_LINK = re.compile(r"(\]\([^):#]*)\.ipynb(#[^)]*)?\)")
ALL_LESSONS = "../README.md#the-lessons"


class Renderer(IPythonRenderer):
    """Markdown to HTML with formulas as MathML, which browsers draw by themselves."""

    def formula(self, body, display, otherwise):
        try:
            return to_mathml(body, display=display)
        except Exception:  # no latex2mathml, or a command that it does not know
            return otherwise

    def inline_math(self, body):
        return self.formula(body, "inline", super().inline_math(body))

    def block_math(self, body):
        return f"<p>{self.formula(body, 'block', super().block_math(body))}</p>"

    def latex_environment(self, name, body):
        return self.formula(f"\\begin{{{name}}}{body}\\end{{{name}}}", "block", super().latex_environment(name, body))

    def _html_embed_images(self, html):  # nbconvert's closes a <details> at once, and what is folded stands open
        return super()._html_embed_images(html) if "<img" in html else html


def exporter_for(folder):
    @jinja2.pass_context
    def markdown(context, source):
        attachments = context.get("cell", {}).get("attachments", {})
        renderer = Renderer(escape=False, attachments=attachments, embed_images=True, path=str(folder))
        return MarkdownWithMath(renderer=renderer).render(source)

    exporter = HTMLExporter(raw_template=TEMPLATE, embed_images=True)
    exporter.register_filter("markdown2html", markdown)
    return exporter


def notebook_page(notebook, path):
    """One notebook as a page: badge without its picture, links to other lessons' pages, pictures inside, and no
    progress bars: each of their steps would be a line, on red.
    """
    notebook = deepcopy(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not hygiene.is_progress(output)]
        if cell.cell_type == "markdown":
            source = COLAB_BADGE.sub(r"\1", cell.source).replace(ALL_LESSONS, "../index.html")
            cell.source = LESSON_LINK.sub(r"\1.html\2)", source)
        elif cell.metadata.get("jupyter", {}).get("source_hidden"):
            lines = cell.source.split("\n")
            title = lines.pop(lines[0].startswith("# -> "))  # finished code bears its mark above its title
            cell.source = "\n".join(lines)
            what = "cell" if "solution" in notebooks.tags(cell) else "code"  # a solution hides its output too
            cell.metadata[f"folded_{what}"] = FORM.sub("", title)
    name = notebooks.title_in(notebook)
    page, _ = exporter_for(Path(path).parent).from_notebook_node(notebook, {"metadata": {"name": name}})
    return page
