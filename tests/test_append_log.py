"""A log survives the death of its writer."""

from geo_mvmf import append_log


def test_a_log_loses_its_torn_last_line_only(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"a": 1}\n{"b":')
    with append_log.AppendLog(path) as log:
        log.write({"c": 3})
    assert path.read_text() == '{"a": 1}\n{"c": 3}\n'
