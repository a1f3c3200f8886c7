"""A run folder read back: as the run went on, whatever was killed, damaged or written by another version."""

import json

import pytest

from geo_mvmf.errors import BadInputError
from geo_mvmf.model.configuration import TrainingConfig
from geo_mvmf.model.run_record import read_run


@pytest.fixture
def folder(tmp_path):
    """A run folder with options, whose log a test writes."""
    config = TrainingConfig(stage="head", table="/no/photos.csv", out="/elsewhere")
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    return tmp_path


def write_log(folder, *records):
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def step(number, loss):
    return {"event": "step", "step": number, "loss": loss, "learning_rate": 0.1}


def test_steps_that_were_done_again_count_once(folder):
    write_log(
        folder,
        {"event": "start"}, step(10, 3.0), step(20, 2.9),
        {"event": "resume", "step": 10}, step(20, 2.0), step(30, 1.0),
    )  # fmt: skip
    record = read_run(folder)
    assert record.steps[["step", "loss"]].to_numpy().tolist() == [[10.0, 3.0], [20.0, 2.0], [30.0, 1.0]]
    assert record.resumed == 1


def test_what_a_killed_run_did_beyond_its_checkpoint_and_never_again_is_left_out(folder):
    write_log(folder, {"event": "start"}, step(10, 3.0), step(40, 9.0), {"event": "resume", "step": 10}, step(15, 2.0))
    assert read_run(folder).steps["step"].tolist() == [10.0, 15.0]


def test_a_run_that_began_again_from_nothing_is_the_second_one(folder):
    write_log(folder, {"event": "start"}, step(10, 3.0), {"event": "start"}, step(5, 2.0))
    assert read_run(folder).steps["step"].tolist() == [5.0]


def test_logs_without_fields_and_with_damage_are_read(folder):
    (folder / "log.jsonl").write_text('{"event": "step", "step": 1, "loss": 2.0}\n{"event": "validation", "st')
    record = read_run(folder)
    assert record.steps["learning_rate"].isna().all()
    assert record.validations.empty
    assert record.remarks == ("1 of 2 lines of log.jsonl are damaged and left out.",)
    (folder / "log.jsonl").unlink()
    assert read_run(folder).steps.empty


def test_lines_that_mean_harm_do_none(folder):
    digits = "1" + "0" * 400
    lines = [
        "[" * 100_000,
        f'{{"event": "step", "step": {digits}, "loss": 1.0}}',
        f'{{"event": "resume", "step": {digits}}}',
        f'{{"event": "end", "stopped_early": {digits}}}',
        '{"event": "step", "step": Infinity, "loss": 1.0}',
        '{"event": "validation", "step": 5, "nll": -Infinity}',
        json.dumps(step(7, 2.0)),
    ]
    (folder / "log.jsonl").write_text("\n".join(lines))
    record = read_run(folder)
    assert record.steps["step"].tolist() == [7.0]
    assert record.best is None
    assert record.stopped_early is None
    assert record.remarks == ("1 of 7 lines of log.jsonl are damaged and left out.",)


def test_a_loss_that_was_not_written_is_another_thing_than_one_that_is_no_number(folder):
    write_log(folder, {"event": "step", "step": 1}, step(2, float("nan")), step(3, 1.0))
    assert str(read_run(folder).steps["loss"].tolist()) == "[nan, inf, 1.0]"


def test_options_of_other_versions_do_no_harm(folder):
    config = json.loads((folder / "config.json").read_text())
    del config["block_level"]
    config |= {"invented": 1, "augment": {"invented_too": 2.0}}
    (folder / "config.json").write_text(json.dumps(config))
    record = read_run(folder)
    assert record.config.block_level == 4
    assert record.config.out == str(folder)
    assert "invented, invented_too" in record.remarks[0]


@pytest.mark.parametrize("text", ["", "[]", '{"stage": "none"}', '{"stage": "head", "table": 1, "out": "x"}'])
def test_options_that_are_none_are_named(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(BadInputError, match=r"config\.json: cannot be read as the options of a run"):
        read_run(folder)


def test_what_is_no_run_folder_is_told_what_to_give(tmp_path):
    with pytest.raises(BadInputError, match=r"no config\.json; give the run folder"):
        read_run(tmp_path)
    (tmp_path / "train.toml").write_text("")
    with pytest.raises(BadInputError, match="is a file and no folder"):
        read_run(tmp_path / "train.toml")
