"""What stands in the tables of the page."""

import re


def cells(table):
    """The texts of a table's body, a list a row."""
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", table.partition("<tbody>")[2])
    return [re.findall(r"<td[^>]*>([^<]*)", row) for row in rows]
