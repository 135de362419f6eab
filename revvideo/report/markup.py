"""HTML that is built, never pasted: text becomes markup only here, and is escaped on the way.

What the report shows (class names, paths, reasons, config values) is written by others and may hold anything.
"""

import html
import json
import re

# Control characters and what reverses the direction of text would hide or reorder what stands there.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_VOID = frozenset(("br", "img", "input", "link", "meta"))


class Html(str):
    """Text that is markup already and is not escaped again."""

    __slots__ = ()


def visible(text: object) -> str:
    r"""The text with control characters, direction marks and lone surrogates as `\x1b`, `\u202e`."""
    return _UNSEEN.sub(lambda found: _written(ord(found[0])), str(text))


def _written(code: int) -> str:
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def escape(value: object) -> Html:
    """Any value as markup: `Html` as it is, None as nothing, all else as its visible text, escaped."""
    if isinstance(value, Html):
        return value
    return Html("" if value is None else html.escape(visible(value), quote=True))


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """One element.

    Args:
        name: of the element.
        children: what is in it, in this order, each as `escape` takes it.
        attributes: `class_="x"` for class, `data_id=1` for data-id; True is written without a value, None and False
            are left out.
    """
    written = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in _VOID:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{''.join(map(escape, children))}</{name}>")


def _attribute(key: str, value: object) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(value)}"'


def join(*parts: object) -> Html:
    """Parts one after the other, each as `escape` takes it."""
    return Html("".join(map(escape, parts)))


def data_block(name: str, data: object) -> Html:
    """Plain data for the page's script, in an element of id `name`; nothing in it can end the element."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return tag("script", Html(text), type="application/json", id=name)


def table(head: list, rows: list[list], *, class_: str = "", caption: object = None, sortable: bool = False) -> Html:
    """A table that scrolls sideways on a narrow page.

    Args:
        head: of each column its title, or `(title, class)`; the class "number" aligns to the right.
        rows: cells, each as `escape` takes it, or `(cell, value)`, where the column is sorted by `value`.
        class_: of the table.
        caption: above it.
        sortable: by a click on a column's title, where the page's script runs.
    """
    titles = [title if isinstance(title, tuple) else (title, "") for title in head]
    columns = [tag("th", title, scope="col", class_=kind or None) for title, kind in titles]
    body = []
    for row in rows:
        cells = []
        for number, (cell, (_, kind)) in enumerate(zip(row, titles)):
            content, value = cell if isinstance(cell, tuple) else (cell, None)
            scope = "row" if number == 0 else None
            cells.append(
                tag("td" if number else "th", content, scope=scope, class_=kind or None, data_value=_sort_value(value))
            )
        body.append(tag("tr", *cells))
    inner = tag(
        "table",
        tag("caption", caption) if caption is not None else None,
        tag("thead", tag("tr", *columns)),
        tag("tbody", *body),
        class_=" ".join(filter(None, (class_, "sortable" if sortable else ""))) or None,
    )
    return tag("div", inner, class_="scroll", tabindex=0, role="region", aria_label=caption or "table")


def _sort_value(value: object) -> object:
    return repr(float(value)) if isinstance(value, (int, float)) else value


def details(title: object, *children: object, open_: bool = False, id_: str | None = None) -> Html:
    """A part that folds."""
    return tag("details", tag("summary", title), *children, open_=open_, id_=id_)


def number(value: float | None, digits: int = 2) -> str:
    """A figure for people: `digits` behind the point, thousands apart; a dash for None."""
    if value is None:
        return "–"
    return f"{value:,.{digits}f}".replace(",", "\u202f")


def compact(value: float | None) -> str:
    """A figure of any magnitude in about four digits: 0.05, 12.34, 1080, 2.5e-4."""
    if value is None:
        return "–"
    if value and not 1e-3 <= abs(value) < 1e5:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
