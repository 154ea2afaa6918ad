"""The table in docs/chaos.md is what the CSV holds, and follows it."""

import chaos_report


def test_the_page_shows_what_was_measured():
    page = chaos_report.PAGE.read_text()
    assert page == chaos_report.updated(page), "python tests/chaos_report.py makes the table anew"


def test_a_report_is_a_row_of_both(tmp_path, monkeypatch):
    monkeypatch.setattr(chaos_report, "RESULTS", tmp_path / "chaos.csv")
    monkeypatch.setattr(chaos_report, "PAGE", tmp_path / "chaos.md")
    chaos_report.PAGE.write_text(f"before\n{chaos_report.BEGIN}{chaos_report.END}after\n")
    chaos_report.report("5 of these", {"longest_s": 9.9})
    chaos_report.report("2 of those", {"wrong": 0})
    chaos_report.report("5 of these", {"longest_s": 1.5, "wrong": 0})
    page = chaos_report.PAGE.read_text()
    assert "| 5 of these | longest s **1.5**, wrong **0** |" in page
    assert "9.9" not in page
    assert [page.count(name) for name in ("5 of these", "2 of those")] == [1, 1]
    assert page.startswith("before\n")
    assert page.endswith("after\n")
    assert page == chaos_report.updated(page)
