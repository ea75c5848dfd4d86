import numpy as np

from utils.tensorboard import EventWriter


def test_tensorboard_gets_scalars_and_pictures(tmp_path):
    writer = EventWriter(tmp_path)
    writer.add_scalar("loss/train", 0.5, 3)
    writer.add_image("predictions", np.zeros((32, 32, 3), np.uint8), 3)
    writer.close()
    (events,) = tmp_path.iterdir()
    content = events.read_bytes()
    assert b"loss/train" in content and b"\x89PNG" in content


def test_only_the_main_process_writes_to_tensorboard(tmp_path, monkeypatch):
    for name, value in (("RANK", "1"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    writer = EventWriter(tmp_path)
    writer.add_scalar("loss/train", 0.5, 3)
    writer.close()
    assert not list(tmp_path.iterdir())
