"""report.json of a run, and index.html: every lesson of which there is a page, by chapter.

It needs the standard library only.
"""

import datetime
import html
import json

from shared.files import write_atomically
from tools.notebooks import count, title_in

CHAPTERS = {"01": "Working with text", "02": "Attention", "03": "The GPT model", "04": "Classification",
            "05": "Instructions and answers"}
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Build a GPT</title>
<style>
:root {{ color-scheme: light dark; --text: #1c2128; --page: #fff; --line: #d5dae0; --soft: #57606a; --bad: #b42318; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --text: #e6e9ed; --page: #15181c; --line: #363c44; --soft: #9aa4af; --bad: #ff8a80; }}
  a {{ color: #8ab8ff; }}
}}
body {{ font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page); max-width: 62rem;
  margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{ text-align: left; padding: .4rem .8rem .4rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }}
th {{ padding-top: 1.4rem; font-size: 1.1rem; }}
.number {{ text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; color: var(--soft); }}
.soft {{ color: var(--soft); }} .bad {{ color: var(--bad); }}
@media (max-width: 42rem) {{
  th, td {{ display: block; border: 0; padding: 0 0 .1rem; text-align: left !important; }}
  td.number {{ display: inline-block; padding-right: 1rem; }}
  tr {{ display: block; border-bottom: 1px solid var(--line); padding: .5rem 0; }}
}}
</style></head><body>
<h1>Build a GPT</h1>
<p>{summary}</p>
<table>
{rows}
</table>
<p class="soft">{about}</p>
</body></html>
"""
ROW = ('<tr><td><a href="{name}.html">{title}</a> <a class="soft" href="{name}.ipynb">notebook</a></td>'
       '<td class="number">{seconds:.0f} s</td><td class="number">{peak_mb:.0f} MB</td><td{style}>{said}</td></tr>')


def row(r, earlier):
    """One lesson; a result of an earlier run says so."""
    when = f'<span class="soft">Earlier run, {html.escape(r["finished"])}:</span> ' if earlier else ""
    return ROW.format(name=html.escape(r["name"]), title=html.escape(r["title"]), seconds=r["seconds"],
                      peak_mb=r["peak_mb"], style=' class="bad"' if r["error"] else "",
                      said=when + html.escape(r["error"] or r["headline"]))


def summary(report):
    """The sentence above the table: what became of the run."""
    done, wanted, state = len(report["notebooks"]), report["lessons"], report["state"]
    failed = sum(bool(r["error"]) for r in report["notebooks"])
    if state == "finished":
        result = f'<strong class="bad">{failed} failed</strong>' if failed else "all without an error"
        return f"{count(done, 'lesson')} in {count(round(report['seconds']), 'second')}, {result}."
    if state == "stopped":
        return f'<strong class="bad">Stopped after {done} of {count(wanted, "lesson")}, {failed} failed.</strong>'
    if state == "begun":
        return f"A run has begun and not ended: {done} of {count(wanted, 'lesson')} so far."
    return f'<strong class="bad">Nothing was run: {html.escape(state)}</strong>'


def index_page(report):
    """The page, from the dictionary that also becomes report.json."""
    rows, chapter = [], None
    for r in sorted(report["notebooks"] + report["earlier"], key=lambda r: r["name"]):
        folder = r["name"].partition("/")[0]
        if folder != chapter:
            chapter, title = folder, CHAPTERS.get(folder[:2], folder)
            rows.append(f'<tr><th colspan="4">{int(folder[:2])} {html.escape(title)}</th></tr>')
        rows.append(row(r, r in report["earlier"]))
    about = [f"{name.replace('_', ' ').capitalize()}: {report[name]}" if name != "machine" else report[name]
             for name in ("scale", "number_format", "data", "machine", "finished") if report.get(name)]
    return PAGE.format(summary=summary(report), rows="\n".join(rows), about="<br>".join(map(html.escape, about)))


def earlier_results(out):
    """The rows of the report in `out`, of all runs, whose pages are still there; none where there is no such report."""
    try:
        report = json.loads((out / "report.json").read_text(encoding="utf-8"))
        rows = report["notebooks"] + report["earlier"]
        index_page({"notebooks": [], "earlier": rows, "lessons": 0, "state": ""})  # raises for rows of another program
        return [row for row in rows if (out / f"{row['name']}.html").is_file()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []


def write_report(results, out, **about):
    """Write the report on `results` and its index into `out`, with what a run before it, or beside it, has left."""
    now = datetime.datetime.now().strftime("%Y-%m-%d %H:%M")
    rows = [{"name": r.name, "title": title_in(r.notebook), "seconds": round(r.seconds, 2),
             "peak_mb": round(r.peak_mb, 1), "headline": r.headline, "error": r.error, "cell": r.cell, "finished": now}
            for r in results]
    names = {r.name for r in results}
    earlier = [row for row in earlier_results(out) if row["name"] not in names]
    report = about | {"finished": now, "notebooks": rows, "earlier": earlier}
    out.mkdir(parents=True, exist_ok=True)
    for name, text in ("report.json", json.dumps(report, indent=1) + "\n"), ("index.html", index_page(report)):
        with write_atomically(out / name) as part:
            part.write_text(text, encoding="utf-8")
