"""Checks that fit any file."""

from __future__ import annotations

from pathlib import Path

from m2f_export.doctor import catalogue
from m2f_export.doctor.findings import Finding
from m2f_export.export_errors import ExportError
from m2f_export.files import is_page, is_pointer, read_head


def check_content(path: Path) -> list[Finding]:
    """Find a file that cannot be read, is empty, or holds something in place of its content."""
    try:
        head = read_head(path)
    except ExportError as failure:
        return [catalogue.FILE_UNREADABLE(path, reason=failure)]
    if not head:
        return [catalogue.FILE_EMPTY(path, name=path.name)]
    for stands_in, entry in ((is_pointer, catalogue.GIT_LFS_POINTER), (is_page, catalogue.WEB_PAGE)):
        if stands_in(head):
            return [entry(path, name=path.name)]
    return []
