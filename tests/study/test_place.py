"""The places of a study's runs: what `--on` takes, and how much room a place has."""

from __future__ import annotations

import pytest

from slimrl.errors import SettingsError
from slimrl.study.launcher import LocalLauncher, Room, Slots
from slimrl.study.place import HERE, Place


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("local", Place(), "on this machine"),
        ("ray", Place("ray"), "on Ray"),
        ("ray://head:10001", Place("ray", "ray://head:10001"), "on Ray (ray://head:10001)"),
        ("ray:head:6379,gpus=0.25", Place("ray", "head:6379", gpus=0.25), "on Ray (head:6379)"),
        ("slurm", Place("slurm"), "on SLURM"),
        (
            "slurm:gpu,cpus=8,gpus=1,time=04:00:00,exclusive=",
            Place("slurm", "gpu", 8, 1.0, {"time": "04:00:00", "exclusive": ""}),
            "on SLURM (gpu)",
        ),
    ],
)
def test_a_place_is_read_and_told(text: str, place: Place, words: str) -> None:
    assert Place.read(text) == place
    assert str(place) == words


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("slrum:gpu", "is no place for runs; did you mean slurm"),
        ("local,cpus=2", "is no place for runs"),
        ("", "is no place for runs"),
        ("slurm,gpu", "'gpu' is no option=value"),
        ("slurm,cpus=two", "cpus takes a number, and not 'two'"),
        ("slurm,gpus=0.5", "whole numbers"),
        ("ray,cpus=1.5", "whole numbers"),
        ("ray,cpus=-1", "cpus takes a number, and not '-1'"),
        ("slurm,array=0-3", "array is set by SlimRL"),
        ("slurm,job-name=mine", "job-name is set by SlimRL"),
        ("ray,time=1", "Ray takes cpus and gpus of a run, and not time"),
    ],
)
def test_what_is_no_place_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        Place.read(text)


@pytest.mark.parametrize(
    ("text", "room", "wanted", "threads", "slots"),
    [
        ("slurm,gpus=2", Room(64, 8, 16), 0, 8, Slots(4, 8, 1.0, devices=2)),
        ("ray,gpus=4,cpus=8", Room(64, 8, 16), 0, 0, Slots(2, 2, 1.0, devices=4)),
        ("slurm,cpus=4", Room(16, 0, 8), 0, 2, Slots(4, 2, 0.5, devices=2)),
        ("slurm", Room(16, 0, 8), 0, 0, Slots(8, 1, 0.25, devices=2)),
        ("slurm", Room(6, 0, 2), 0, 0, Slots(6, 1, 0.5)),
        ("slurm,cpus=2", Room(7, 0, 4), 0, 0, Slots(3, 2, 0.5)),
        ("slurm,cpus=2", Room(7, 0, 4), 20, 2, Slots(20, 2, 0.5)),
        ("ray", Room(6, 0, 2), 0, 2, Slots(3, 2, 1.0)),
        ("ray,gpus=0.25", Room(64, 4, 16), 0, 0, Slots(16, 1, 0.25)),
        ("ray,gpus=0.2", Room(64, 1, 64), 0, 0, Slots(5, 1, 0.2)),
        ("ray,gpus=1,cpus=8", Room(16, 8, 8), 0, 0, Slots(2, 8, 1.0)),
        ("slurm,gres=gpu:a100:1,cpus=8", Room(256, 8, 128), 0, 0, Slots(32, 8, 1.0)),
    ],
)
def test_there_are_as_many_slots_as_runs_fit(
    text: str, room: Room, wanted: int, threads: int, slots: Slots, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Place, "room", lambda _: room)
    assert Place.read(text).slots(wanted, threads=threads, devices=slots.devices) == slots


def test_a_run_that_fits_nowhere_or_has_other_threads_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Place, "room", lambda _: Room(4, 1, 2))
    with pytest.raises(
        SettingsError, match=r"4 CPUs \(2 in its largest node\) and 1 GPUs, which is not enough for a run with 8 CPUs"
    ):
        Place.read("slurm,cpus=8").slots(0, threads=0)
    with pytest.raises(SettingsError, match="not enough for a run with 4 CPUs"):
        Place.read("slurm,cpus=4").slots(0, threads=0)
    with pytest.raises(SettingsError, match="the study's runs have 1 threads each"):
        Place.read("slurm,cpus=2").slots(0, threads=1)
    with pytest.raises(SettingsError, match=r"have 1 threads on each of 2 devices, .*; set cpus=2, or give"):
        Place.read("slurm,cpus=4").slots(0, threads=1, devices=2)
    with pytest.raises(SettingsError, match="cpus=3 in --on cannot be shared by devices=2 of a run; set a multiple"):
        Place.read("slurm,cpus=3").slots(0, threads=0, devices=2)
    for text, devices in (("ray,gpus=4", 1), ("slurm,gpus=1", 2), ("ray,gpus=0.5", 2)):
        with pytest.raises(
            SettingsError, match=f"but the study's runs use devices={devices}; give both the same number"
        ):
            Place.read(text).slots(0, threads=0, devices=devices)


def test_here_runs_are_children() -> None:
    assert isinstance(HERE.launcher(Slots(1, 1, 1.0), 0), LocalLauncher)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("local", "2 CPU threads"),
        ("slurm", "2 CPU threads and 0 GPUs"),
        ("slurm,gpus=1", "2 CPU threads and 1 GPU"),
        ("slurm,gres=gpu:2", "2 CPU threads"),
        ("ray,gpus=0.25", "2 CPU threads and 0.25 of a GPU"),
    ],
)
def test_the_portion_of_a_run_is_told(text: str, words: str) -> None:
    assert Place.read(text).portion(2) == words
