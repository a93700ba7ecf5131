"""The results of a run as web pages: each executed notebook, and an index. The pages need no network."""

import html
import re
from copy import deepcopy
from pathlib import Path

import jinja2
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

try:
    from latex2mathml.converter import convert as to_mathml
except ImportError:  # formulas then stay as they were typed
    to_mathml = None

# nbconvert's page without the scripts that it would load from the network (require.js, MathJax, Mermaid).
TEMPLATE = """{% extends "lab/index.html.j2" %}
{% block html_head_js_requirejs %}{% endblock %}
{% block html_head_js_mathjax %}{% endblock %}
{% block html_head_js_mermaidjs %}{% endblock %}
"""
COLAB_BADGE = re.compile(r"!\[(Open in Colab)\]\([^)]*\)")
LESSON_LINK = re.compile(r"(\]\([^):#]*)\.ipynb(#[^)]*)?\)")


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
    """One notebook as a page: badge without its picture, links to other lessons' pages, pictures inside."""
    notebook = deepcopy(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = LESSON_LINK.sub(r"\1.html\2)", COLAB_BADGE.sub(r"\1", cell.source))
    page, _ = exporter_for(Path(path).parent).from_notebook_node(notebook, {"metadata": {"name": Path(path).stem}})
    return page


INDEX = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Build a GPT: results of a run</title>
<style>
:root {{ color-scheme: light dark; --text: #1c2128; --page: #fff; --line: #d5dae0; --soft: #57606a; --bad: #b42318; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --text: #e6e9ed; --page: #15181c; --line: #363c44; --soft: #9aa4af; --bad: #ff8a80; }}
  a {{ color: #8ab8ff; }}
}}
body {{ font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page); max-width: 62rem;
  margin: 2rem auto; padding: 0 1rem; }}
.table {{ overflow-x: auto; }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{ text-align: left; padding: .4rem .8rem .4rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }}
th {{ color: var(--soft); font-weight: 600; }}
.number {{ text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }}
.soft {{ color: var(--soft); }} .bad {{ color: var(--bad); }}
</style></head><body>
<h1>Results of a run</h1>
<p>{summary}</p>
<div class="table"><table>
<thead><tr><th>Lesson</th><th class="number">Seconds</th><th class="number">Peak memory</th><th>Result</th></tr></thead>
<tbody>
{rows}
</tbody></table></div>
<p class="soft">Scale: {scale}. Number format: {dtype}. Data: {data}.<br>{machine}<br>{finished}</p>
</body></html>
"""
ROW = ('<tr><td><a href="{name}.html">{name}</a> <a class="soft" href="{name}.ipynb">ipynb</a></td>'
       '<td class="number">{seconds:.1f}</td><td class="number">{peak_mb:.0f} MB</td><td{style}>{said}</td></tr>')


def index_page(report):
    """The index of a run from the dictionary that also becomes report.json."""
    rows = [ROW.format(name=html.escape(r["name"]), seconds=r["seconds"], peak_mb=r["peak_mb"],
                       style=' class="bad"' if r["error"] else "", said=html.escape(r["error"] or r["headline"]))
            for r in report["notebooks"]]
    failed = sum(bool(r["error"]) for r in report["notebooks"])
    summary = f"{len(rows)} lessons in {report['seconds']:.0f} seconds, " + (
        f'<strong class="bad">{failed} failed</strong>.' if failed else "all of them without an error.")
    if report["stopped"]:
        summary = f'<strong class="bad">Stopped after {len(rows)} of {report["lessons"]} lessons.</strong> ' + summary
    words = {key: html.escape(report[key]) for key in ("scale", "dtype", "data", "machine", "finished")}
    return INDEX.format(summary=summary, rows="\n".join(rows), **words)
