"""The page: one HTML document with its style, without scripts and without anything from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

__all__ = ["Section", "details", "figure", "page", "paragraph", "percent", "table"]

STYLE = """
:root{color-scheme:light dark;--bg:#fff;--fg:#1b1f24;--dim:#57606a;--line:#d0d7de;--harm:#b42318;--cell:#1261a6;
--before:#8c959f;--c0:#1261a6;--c1:#b35900;--c2:#1a7f37;--c3:#8250df;--c4:#0b7285;--c5:#9a6700;--c6:#bf3989;--c7:#57606a}
@media (prefers-color-scheme:dark){:root{--bg:#0d1117;--fg:#e6edf3;--dim:#9da7b3;--line:#3d444d;--harm:#ff8578;
--cell:#2f81d6;--before:#7d8590;--c0:#58a6ff;--c1:#f0883e;--c2:#56d364;--c3:#bc8cff;--c4:#39c5cf;--c5:#e3b341;
--c6:#f778ba;--c7:#9da7b3}}
@media print{:root{color-scheme:light;--bg:#fff;--fg:#000;--dim:#444;--line:#bbb;--harm:#b42318;--cell:#1261a6;
--before:#8c959f;--c0:#1261a6;--c1:#b35900;--c2:#1a7f37;--c3:#8250df;--c4:#0b7285;--c5:#9a6700;--c6:#bf3989;
--c7:#57606a}section,figure{break-inside:avoid-page}nav{display:none}
svg,tr,td,th{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
body{background:var(--bg);color:var(--fg);font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:0 auto;padding:1rem}
h1{margin:.5rem 0}h2{border-bottom:1px solid var(--line);margin-top:2.5rem}h3{margin-bottom:.3rem}
a{color:var(--c0)}nav a{margin-right:.9rem}figure{margin:1rem 0}figcaption,caption{color:var(--dim);text-align:left}
.wide{overflow-x:auto}table{border-collapse:collapse;margin:.5rem 0;font-variant-numeric:tabular-nums}
th,td{border-bottom:1px solid var(--line);padding:.2rem .6rem;text-align:right;vertical-align:top}
th:first-child,td:first-child{text-align:left}td{overflow-wrap:anywhere}
summary{cursor:pointer;color:var(--dim)}.harm{color:var(--harm);fill:var(--harm);font-weight:600}
svg{display:block;width:100%;height:auto;margin:.4rem 0}
svg text{fill:var(--fg);font:12px system-ui,sans-serif}svg text.harm{fill:var(--harm);font-weight:600}
svg text.on{fill:#fff}svg text.halo{paint-order:stroke;stroke:var(--bg);stroke-width:3px;font-weight:600}
.grid{stroke:var(--line);stroke-width:.7}.box{fill:none;stroke:var(--line)}
.cell{fill:var(--cell);stroke:var(--line);stroke-width:.5}
.before{fill:var(--before)}.harmed{fill:var(--bg);stroke:var(--harm);stroke-width:1.5;stroke-dasharray:3 2}
polyline{fill:none;stroke-width:1.5}svg .strong{stroke-width:3.5}line[class^=k]{stroke-width:1.5}
.ring{fill:var(--bg);fill-opacity:.6;stroke-width:3}
.dots{fill:none;stroke-width:3.4;stroke-linecap:round;stroke-opacity:.55}
""" + "".join(f".k{i}{{stroke:var(--c{i})}}.f{i}{{fill:var(--c{i})}}" for i in range(8))
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


class Section:
    """A part of the page: an id for links, a title, and HTML in order."""

    def __init__(self, key: str, title: str, parts: Iterable[str]) -> None:
        self.key, self.title, self.parts = key, title, tuple(parts)


def percent(fraction: float) -> str:
    """A fraction in per cent, with two digits."""
    return f"{100 * fraction:.2f}"


def paragraph(text: str, look: str = "") -> str:
    """A paragraph of plain text."""
    return f"<p{_class(look)}>{escape(text)}</p>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str, harmed: Iterable[int] = ()) -> str:
    """A table of plain text; the rows whose numbers are in `harmed` are marked."""
    marked = set(harmed)
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = []
    for i, (first, *others) in enumerate(rows):
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in others)
        body.append(f'<tr{_class("harm" if i in marked else "")}><th scope="row">{escape(first)}</th>{cells}</tr>')
    return (
        f'<div class="wide"><table><caption>{escape(caption)}</caption>'
        f"<thead><tr>{top}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def details(summary: str, content: str) -> str:
    """Content that is folded away."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def figure(svg: str, caption: str, numbers: str) -> str:
    """A figure with its caption, and its numbers as a table that is folded away."""
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption>{details('The numbers', numbers)}</figure>"


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """The whole document."""
    links = "".join(f'<a href="#{s.key}">{escape(s.title)}</a>' for s in sections)
    body = "".join(f'<section id="{s.key}"><h2>{escape(s.title)}</h2>{"".join(s.parts)}</section>\n' for s in sections)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{escape(title)}</h1>\n{paragraph(lead)}\n<nav>{links}</nav>\n{body}</main>\n</body>\n</html>\n"
    )


def _class(look: str) -> str:
    return f' class="{look}"' if look else ""
