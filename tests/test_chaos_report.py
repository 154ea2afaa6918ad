"""The page docs/chaos.md shows the rows of chaos.csv."""

import chaos_report


def test_the_page_shows_what_was_measured():
    page = chaos_report.PAGE.read_text()
    assert page == chaos_report.updated(page), "run: python tests/chaos_report.py"


def test_a_report_replaces_its_older_row(tmp_path, monkeypatch):
    monkeypatch.setattr(chaos_report, "RESULTS", tmp_path / "chaos.csv")
    chaos_report.report("5 of these", {"longest_s": 9.9})
    chaos_report.report("2 of those", {"wrong": 0})
    chaos_report.report("5 of these", {"longest_s": 1.5, "wrong": 0})
    page = chaos_report.updated(f"before\n{chaos_report.BEGIN}{chaos_report.END}after\n")
    assert "### 5 of these\n" in page
    assert "| longest s | 1.5 |\n| wrong | 0 |\n" in page
    assert "9.9" not in page
    assert [page.count(name) for name in ("5 of these", "2 of those")] == [1, 1]
    assert page.startswith("before\n")
    assert page.endswith("after\n")
    assert page == chaos_report.updated(page)
