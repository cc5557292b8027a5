"""Templates: how the text columns of a row become one text, such as "{title}\\n\\n{body}"."""

import string
from collections.abc import Sequence

from fletcher_core.errors import ConfigError


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
