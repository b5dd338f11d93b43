"""The FSDD loader and its cochlea, on the committed subset and on files that are damaged."""

from __future__ import annotations

import io
import wave
import zipfile
from pathlib import Path

import numpy as np
import pytest

from grasp_plugin.data.fsdd import Spoken, load_fsdd, loudness, to_spikes
from grasp_plugin.errors import Invalid

SUBSET = Path(__file__).resolve().parents[2] / "examples" / "data" / "fsdd_subset.zip"
needs_subset = pytest.mark.skipif(not SUBSET.exists(), reason="needs a checkout")


def wav(sound: np.ndarray, rate: int = 8000, channels: int = 1) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((sound * 2**15).astype("<i2").tobytes())
    return out.getvalue()


def tone(hz: float, seconds: float = 0.3) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(round(8000 * seconds)) / 8000)


@needs_subset
def test_the_committed_subset() -> None:
    recordings = load_fsdd(SUBSET)
    assert np.bincount([one.label for one in recordings]).tolist() == [40] * 10
    assert {one.speaker for one in recordings} == {"george", "jackson", "nicolas", "yweweler"}
    assert {one.index for one in recordings} == set(range(10))
    assert all(0.1 < len(one.sound) / 8000 < 2 for one in recordings)
    assert SUBSET.stat().st_size < 3_000_000
    assert (SUBSET.parent / "LICENSE-FSDD.txt").is_file()
    few = load_fsdd(SUBSET, speakers=["nicolas"], indices=[3, 4])
    assert [(one.label, one.index) for one in few[:4]] == [(0, 3), (0, 4), (1, 3), (1, 4)]


def test_folder_and_zip_read_the_same(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "3_ann_7.wav").write_bytes(wav(tone(440)))
    (tmp_path / "a" / "notes.txt").write_text("no recording")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "a" / "b" / "3_ann_7.wav", "3_ann_7.wav")
    (one,), (other,) = load_fsdd(tmp_path / "a"), load_fsdd(tmp_path / "a.zip")
    assert (one.label, one.speaker, one.index) == (3, "ann", 7)
    assert np.array_equal(one.sound, other.sound)
    assert np.allclose(one.sound, tone(440), atol=2**-14)


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (b"", "EOFError"), (b"RIFFnothing", "Error"), (wav(tone(440), rate=16000), "16000"),
        (wav(tone(440), channels=2), "2, 2"), (wav(tone(440)[:0]), "0 bytes"),
        (wav(tone(440))[:30], "Error"),
    ],
)  # fmt: skip
def test_damaged_files_are_named(tmp_path: Path, content: bytes, got: str) -> None:
    (tmp_path / "1_ann_0.wav").write_bytes(content)
    with pytest.raises(Invalid, match=r"1_ann_0\.wav.*expected an FSDD recording") as caught:
        load_fsdd(tmp_path)
    assert got in str(caught.value)
    assert "github.com" in caught.value.remedy


def test_what_is_missing_says_where_it_is_obtained(tmp_path: Path) -> None:
    (tmp_path / "text.zip").write_text("hello")
    for source in (tmp_path / "none.zip", tmp_path / "text.zip", tmp_path):
        with pytest.raises(Invalid, match=r"github\.com"):
            load_fsdd(source)
    (tmp_path / "1_ann_0.wav").write_bytes(wav(tone(440)))
    with pytest.raises(Invalid, match="got none"):
        load_fsdd(tmp_path, speakers=["bob"])
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "1_ann_0.wav").write_bytes(wav(tone(440)))
    with pytest.raises(Invalid, match="expected one recording"):
        load_fsdd(tmp_path)


def test_bands_lie_in_the_order_of_frequency() -> None:
    loudest = [int(loudness(tone(hz))[5].argmax()) for hz in (150, 300, 600, 1200, 2400, 3600)]
    assert loudest == sorted(loudest)
    assert len(set(loudest)) == 6
    assert loudest[0] < 4
    assert loudest[-1] > 27


def test_loudness_is_relative_and_silence_is_zero() -> None:
    soft, loud = loudness(0.1 * tone(440)), loudness(tone(440))
    assert np.allclose(soft, loud)
    assert loud.max() == 1
    assert loud.min() >= 0
    assert not loudness(np.zeros(800)).any()


def test_spikes_add_up_to_the_loudness() -> None:
    sound = np.concatenate([np.zeros(800), tone(440), np.zeros(800)])
    spikes = to_spikes(Spoken(0, "ann", 0, sound), steps=60, rise=0.2)
    assert spikes.shape == (60, 64)
    assert set(np.unique(spikes)) == {0, 1}
    band = int(loudness(sound)[20].argmax())
    rises, falls = np.flatnonzero(spikes[:, band]), np.flatnonzero(spikes[:, 32 + band])
    assert len(rises)
    assert len(falls)
    assert rises[0] < falls[-1]
    assert not spikes[:8].any()
    assert not spikes[50:].any()
    short = to_spikes(Spoken(0, "ann", 0, sound), steps=20, rise=0.2)
    assert np.array_equal(short, spikes[:20])


@pytest.mark.parametrize(
    "options",
    [{"rise": 0.0}, {"steps": 0}, {"bands": 0}, {"dt_s": 1e-4}],
)
def test_options_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(Invalid):
        to_spikes(Spoken(0, "ann", 0, tone(440)), **options)  # type: ignore[arg-type]


def test_too_short_a_sound() -> None:
    with pytest.raises(Invalid, match="Pad it"):
        loudness(np.zeros(100))
