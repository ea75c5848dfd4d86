import pytest

from report.__main__ import main
from report.records import Record
from tests.report.made_runs import make_run


def test_records_are_kept_and_nothing_else(tmp_path, capsys):
    run = make_run(tmp_path / "run", [0.5, 0.75])
    for name in ("log.txt", "panels.png", "predictions/a.png", "checkpoints/best.pth", "facts.json"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("{}")
    main([str(run), "--keep", str(tmp_path / "kept" / "run")])
    kept = tmp_path / "kept" / "run"
    names = ["config.json", "facts.json", "metrics.csv", "metrics.json", "test_images.csv"]
    assert sorted(path.name for path in kept.iterdir()) == names
    assert all((kept / name).read_bytes() == (run / name).read_bytes() for name in names)
    assert capsys.readouterr().out.strip() == str(kept)
    assert Record(kept).finished and Record(kept).dice() == {"image0": 0.5, "image1": 0.75}


@pytest.mark.parametrize("runs", [1, 2])
def test_nothing_is_overwritten_and_runs_are_not_mixed(runs, tmp_path, capsys):
    folders = [str(make_run(tmp_path / f"run{i}", [0.5])) for i in range(runs)]
    before = (tmp_path / "run0" / "config.json").read_bytes()
    with pytest.raises(SystemExit) as end:
        main([*folders, "--keep", str(tmp_path / "run0")])
    assert end.value.code == 2 and f"--keep {tmp_path / 'run0'}: " in capsys.readouterr().err
    assert (tmp_path / "run0" / "config.json").read_bytes() == before
