"""The report's page: number formats, tables and the HTML around them. Uses the standard library only.

A page is one file without scripts that fetches nothing, so that it can be opened years later from a disk or an
attachment, or on a phone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

NOT_MEASURED = "not measured"
LONG_LIST = 24  # longer lists are only counted, since a thousand class names would bury the rest of the table

# Colours are variables, so that inline SVGs follow the reader's light or dark setting.
CSS = """
:root{color-scheme:light dark;--bg:#f6f7f9;--card:#fff;--ink:#1c2330;--soft:#5c6675;--line:#d9dee6;--hit:46,122,204;
--miss:222,98,28;--warn:#9a5b00;--c0:#2d7dd2;--c1:#e0701f;--c2:#239a5b;--c3:#b04bb8;--c4:#d23f4b;--c5:#8a7a1c;
--c6:#1498a6;--c7:#7b63d8}
@media (prefers-color-scheme:dark){:root{--bg:#12161c;--card:#1b212a;--ink:#e6eaf0;--soft:#9aa6b6;--line:#353e4b;
--hit:78,154,236;--miss:240,126,60;--warn:#e9b04a;--c0:#5aa5f0;--c1:#f59550;--c2:#4fc487;--c3:#d583dc;--c4:#f0707a;
--c5:#c9b64a;--c6:#47c5d2;--c7:#a593f5}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.45 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1120px;margin:0 auto;padding:20px 14px 48px}
h1{font-size:1.5rem;margin:0 0 4px;overflow-wrap:anywhere}h2{font-size:1.1rem;margin:0 0 10px}
p{margin:6px 0}.soft,figcaption{color:var(--soft);font-size:.88rem}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:16px;margin:14px 0}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr));gap:14px}
.grid section{margin:0;min-width:0}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:10px;margin:14px 0}
.tile{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:10px 14px}
.tile b{display:block;font-size:1.3rem;font-variant-numeric:tabular-nums}.tile span{color:var(--soft);font-size:.82rem}
figure{margin:0}figcaption{margin-top:6px}figure svg,figure img{display:block;width:100%;height:auto}
figure svg{max-width:540px}
figure.natural img{width:auto;max-width:100%}
svg *{stroke-linejoin:round;stroke-linecap:butt}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.92rem;font-variant-numeric:tabular-nums}
th,td{text-align:left;vertical-align:top;padding:5px 14px 5px 0;border-bottom:1px solid var(--line)}
thead th{color:var(--soft);font-weight:600}tbody th{font-weight:500}
table.values{width:100%;table-layout:fixed}table.values th{width:42%}
table.values th,table.values td{overflow-wrap:anywhere;padding-top:3px;padding-bottom:3px}
table.heat{border-collapse:separate;border-spacing:1px;font-size:.78rem}
table.heat th,table.heat td{border:0;padding:2px 4px;text-align:right;vertical-align:middle;white-space:nowrap}
table.heat thead th{text-align:center;vertical-align:bottom;font-weight:400}
table.heat thead span{writing-mode:vertical-rl;transform:rotate(180deg);max-height:150px;overflow:hidden}
table.heat tbody th{position:sticky;left:0;background:var(--card);font-weight:400;z-index:1;
max-width:160px;overflow:hidden;text-overflow:ellipsis}
table.heat td{min-width:38px;height:26px;background:rgba(var(--miss),var(--a,0))}
table.heat td.hit{background:rgba(var(--hit),var(--a,0))}table.heat td.sum{background:none;color:var(--soft)}
table.search td{min-width:72px;height:34px;padding:2px 8px}
table.search td.best{outline:2px solid var(--ink);font-weight:700}
table.small td{min-width:14px;height:14px;padding:0}table.small th{font-size:.7rem;padding:0 2px}
table.small td.sum{padding-left:6px;font-size:.7rem}
.warn{color:var(--warn)}ul{margin:6px 0;padding-left:20px}
.name{white-space:nowrap}
.swatch{display:inline-block;width:26px;height:0;border-top:4px solid;vertical-align:middle;margin-right:8px}
table.wide{width:100%;font-size:.84rem}table.wide th,table.wide td{padding-right:10px}
table.wide tbody th{min-width:12em;max-width:18em}
table.wide .long{overflow-wrap:anywhere}table.wide td:has(.long){min-width:8em}
@media (max-width:560px){section{padding:12px}table{font-size:.8rem}th,td{padding-right:8px}}
"""


class Markup(str):
    """Text that is HTML already; all other text is escaped when it is put into the page."""


def html(value: Any) -> str:
    """``value`` as HTML: escaped unless it is Markup."""
    return value if isinstance(value, Markup) else escape(str(value))


def percent(fraction: float, missing: str = NOT_MEASURED) -> str:
    return f"{100 * fraction:.2f} %" if math.isfinite(fraction) else missing


def points(difference: float) -> str:
    """A difference of two accuracies, in percentage points."""
    return f"{100 * difference:+.2f} points".replace("-", "−") if math.isfinite(difference) else NOT_MEASURED


def rate(images_per_s: float) -> str:
    if not math.isfinite(images_per_s):
        return NOT_MEASURED
    return f"{images_per_s:,.0f}" if images_per_s >= 100 else f"{images_per_s:.3g}"


def duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return NOT_MEASURED
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def hours(seconds: float) -> str:
    """Hours, as in publications; below one hour with the plain duration too."""
    if not math.isfinite(seconds):
        return NOT_MEASURED
    return f"{seconds / 3600:.3g} h" + (f" ({duration(seconds)})" if seconds < 3600 else "")


def flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """The values of nested mappings as (dotted key, text), in the mappings' order."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            rows += flatten(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", _text(value)))
    return rows


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"{len(value):,} values" if len(value) > LONG_LIST else ", ".join(map(_text, value)) or "none"
    return "none" if value is None else str(value)


def values_table(values: Mapping[str, Any]) -> Markup:
    """A table of dotted keys and their values; long keys may be broken after a dot or an underscore."""
    keyed = [(re.sub(r"([._])", r"\1<wbr>", escape(key)), value) for key, value in flatten(values)]
    return table((), [(Markup(key), value) for key, value in keyed], "values")


def table(headers: Sequence[Any], rows: Iterable[Sequence[Any]], css_class: str = "") -> Markup:
    """An HTML table whose first column names the row; without a header line if ``headers`` is empty."""
    head = "".join(f'<th scope="col">{html(cell)}</th>' for cell in headers)
    body = "".join(
        f'<tr><th scope="row">{html(row[0])}</th>{"".join(f"<td>{html(cell)}</td>" for cell in row[1:])}</tr>\n'
        for row in rows
    )
    thead = f"<thead><tr>{head}</tr></thead>" if headers else ""
    return Markup(f'<div class="scroll"><table class="{css_class}">{thead}<tbody>\n{body}</tbody></table></div>')


def section(name: str, title: str, *content: Any) -> Markup:
    """``<section id=name>``; content that is not Markup becomes an escaped paragraph."""
    inner = "\n".join(part if isinstance(part, Markup) else f"<p>{html(part)}</p>" for part in content)
    return Markup(f'<section id="{html(name)}"><h2>{html(title)}</h2>\n{inner}\n</section>\n')


def soft(text: str) -> Markup:
    return Markup(f'<p class="soft">{html(text)}</p>')


def figure(drawing: Markup, caption: str) -> Markup:
    return Markup(f"<figure>{drawing}<figcaption>{html(caption)}</figcaption></figure>")


def tiles(items: Iterable[tuple[str, str]]) -> Markup:
    """Large figures, (name, value) each, with the name below in small print."""
    return Markup(
        '<div class="tiles">'
        + "".join(f'<div class="tile"><b>{html(value)}</b><span>{html(name)}</span></div>' for name, value in items)
        + "</div>\n"
    )


def grid(sections: Iterable[Markup]) -> Markup:
    return Markup(f'<div class="grid">\n{"".join(sections)}</div>\n')


MARK = "</style>\n</head>\n<body>\n<main>\n<h1>"
"""Text that every page of this package contains, by which it is recognised."""


def page(title: str, subtitle: str, body: Iterable[Markup]) -> str:
    """The whole HTML document."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html(title)}</title>\n<style>{CSS}{MARK}{html(title)}"
        f'</h1>\n<p class="soft">{html(subtitle)}</p>\n{"".join(body)}</main>\n</body>\n</html>\n'
    )
