"""Templates: how the text columns of a row become one text, such as "{title}\\n\\n{body}", and when it is none."""

import string
from collections.abc import Sequence

from fletcher_core.errors import ConfigError
from fletcher_core.sql import identifier, literal

_SEPARATOR = "\n\n"


def parse_template(template: str, text_columns: Sequence[str]) -> list[tuple[str, str | None]]:
    """The template as (text, the column after it or None) pairs.

    Raises:
        ConfigError: a field that is no text column, a text column without a field, a format or conversion.
    """
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ConfigError(f"template {template!r} cannot be read: {error} (write {{{{ for a brace)") from error
    for _, column, form, conversion in parsed:
        if form or conversion:
            raise ConfigError(f"template {template!r}: a field is a column name alone, without ':' or '!'")
        if column is not None and column not in text_columns:
            names = ", ".join(text_columns)
            raise ConfigError(f"template names {column!r}, which is not in text_columns ({names}): add it there")
    unused = sorted(set(text_columns) - {column for _, column, _, _ in parsed if column is not None})
    if unused:
        raise ConfigError(f"template leaves out {unused[0]!r} of text_columns: name it there, or drop the column")
    return [(text, column) for text, column, _, _ in parsed]


def text_sql(text_columns: Sequence[str], template: str | None) -> str:
    """SQL: the row's text, by the template, or the columns that are not null with an empty line between them."""
    columns = [f"CAST({identifier(name)} AS VARCHAR)" for name in text_columns]
    if template is not None:
        parts: list[str] = []
        for text, column in parse_template(template, text_columns):
            parts += [literal(text)] if text else []
            parts += [f"coalesce(CAST({identifier(column)} AS VARCHAR), '')"] if column is not None else []
        return f"concat({', '.join(parts)})"
    return columns[0] if len(columns) == 1 else f"concat_ws({literal(_SEPARATOR)}, {', '.join(columns)})"


def is_blank(column: str) -> str:
    """SQL: true for null, and for texts of separators, control and format characters alone.

    Most texts begin with a printable ASCII character, which a comparison settles without a search.
    """
    text = f"CAST({column} AS VARCHAR)"
    searched = f"coalesce(NOT regexp_matches({text}, '[^\\p{{Z}}\\p{{Cc}}\\p{{Cf}}]'), true)"
    return f"CASE WHEN {text} >= '!' AND {text} < chr(127) THEN false ELSE {searched} END"


def embeddable_sql(text_columns: Sequence[str], template: str | None) -> str:
    """SQL: `text_sql`, but null where all columns are, and '' where all are blank."""
    names = [identifier(name) for name in text_columns]
    return (
        f"CASE WHEN {' AND '.join(f'{name} IS NULL' for name in names)} THEN NULL "
        f"WHEN {' AND '.join(map(is_blank, names))} THEN '' ELSE {text_sql(text_columns, template)} END"
    )
