"""Each benchmark's files in their published form: read, counted, refused."""

import io
import zipfile
from collections import Counter
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from hatch_ray.benchmarks.files import choose_root, find_files, local_root
from hatch_ray.benchmarks.item import BadRowError
from hatch_ray.benchmarks.registry import BENCHMARKS, survey
from tests.support import benchmark_files as files
from tests.support.pictures import photo


def read(name, root):
    benchmark, patterns = BENCHMARKS[name], BENCHMARKS[name].part.patterns
    found = list(benchmark.read(find_files(local_root(str(root), patterns), patterns, name)))
    items = [item for item in found if not isinstance(item, BadRowError)]
    assert len({item.id for item in items}) == len(items)
    return items, [str(fault) for fault in found if isinstance(fault, BadRowError)]


def open_all(items, max_pixels=56 * 56):
    for item in items:
        images = item.images(max_pixels)
        assert len(images) == item.n_images
        assert all(image.mode == "RGB" and 0 < image.width * image.height <= max_pixels for image in images)


def test_spar_bench_both_kinds_from_several_files(tmp_path):
    root = files.write_spar(tmp_path / "SPAR-Bench", files.spar_rows())
    many, faults = read("spar_mv", root)
    single, _ = read("spar_si", root)
    assert not faults
    assert {(item.task, item.form, item.gold, item.n_images) for item in many} == {
        ("depth_prediction_oc_mv", "number", "2.4", 3),
        ("position_matching", "letter", "C", 2),
        ("view_change_infer", "view_change", files.VIEW_CHANGE, 2),
        ("obj_spatial_relation_oo_mv", "letter", "A", 3),
    }
    assert sorted(item.task for item in single) == ["depth_prediction_oo", "spatial_imagination_oc"]
    assert all(item.n_images == 1 and item.group == item.task for item in single)
    open_all(many + single)
    assert [item.id for item in many] == [item.id for item in read("spar_mv", root)[0]]


def test_spar_bench_as_a_flat_folder(tmp_path):
    root = files.write_spar(tmp_path / "SPAR-Bench", files.spar_rows(), files=1)
    assert len(read("spar_mv", root / "data")[0]) == 4


def test_a_file_written_by_datasets_reads_alike(tmp_path):
    """SPAR-Bench and CV-Bench were uploaded with `datasets`: its image features are {bytes, path}."""
    text = dict.fromkeys(
        ("id", "question", "answer", "task", "img_type", "format_type", "source"), datasets.Value("string")
    )
    features = datasets.Features({"image": datasets.Sequence(datasets.Image())} | text)
    (tmp_path / "s" / "data").mkdir(parents=True)
    made = datasets.Dataset.from_list(files.spar_rows(), features=features)
    made.to_parquet(str(tmp_path / "s" / "data" / "test-00000-of-00001.parquet"))
    items, faults = read("spar_mv", tmp_path / "s")
    assert len(items) == 4 and not faults
    open_all(items)


def test_the_same_id_twice_is_two_rows(tmp_path):
    rows = [files.spar_row(1, "position_matching", "C", 2)] * 3
    assert len(read("spar_mv", files.write_spar(tmp_path / "s", rows))[0]) == 3


@pytest.mark.parametrize("unpacked", [False, True])
def test_mindcube_zip_and_folder(tmp_path, unpacked):
    root = files.write_mindcube(tmp_path / "MindCube", files.mindcube_rows(), unpacked)
    items, faults = read("mindcube_tiny", root)
    assert not faults
    assert [(item.group, item.gold, item.n_images) for item in items] == [
        ("around", "A", 2), ("rotation", "B", 3), ("among", "C", 2), ("translation", "D", 3),
    ]  # fmt: skip
    open_all(items)
    if unpacked:
        assert len(read("mindcube_tiny", root / "data")[0]) == 4
    else:
        assert len(read("mindcube_tiny", root / "data.zip")[0]) == 4


def test_mmsi_bench(tmp_path):
    items, faults = read("mmsi", files.write_mmsi(tmp_path / "MMSI-Bench", files.mmsi_rows()))
    assert not faults
    assert [(item.task, item.group) for item in items] == [
        ("Positional Relationship (Cam.-Obj.)", "Pos"), ("Attribute (Meas.)", "Att"), ("Motion (Cam.)", "Mot"),
        ("MSR", "MSR"),
    ]  # fmt: skip
    assert [item.gold for item in items] == ["A", "B", "C", "D"]
    open_all(items)


def test_cv_bench(tmp_path):
    items, faults = read("cvbench", files.write_cvbench(tmp_path / "CV-Bench", files.cvbench_rows()))
    assert not faults
    assert [(item.task, item.group, item.gold) for item in items] == [
        ("Count", "ADE20K", "(B)"), ("Relation", "COCO", "(B)"), ("Depth", "Omni3D", "(B)"),
        ("Distance", "Omni3D", "(B)"),
    ]  # fmt: skip
    assert "(A) 1" in items[0].question
    open_all(items)


# --- bad rows ---------------------------------------------------------------------------------------------------


def test_every_unusable_row_has_its_reason(tmp_path):
    picture = files.encoded(1)
    bad = [
        files.spar_row(1, "room_size", "3", 2),
        files.spar_row(2, "position_matching", "", 2),
        files.spar_row(3, "position_matching", "both", 2),
        files.spar_row(4, "depth_prediction_oc_mv", "two", 3),
        files.spar_row(5, "view_change_infer", "left", 2),
        files.spar_row(6, "position_matching", "A", 2, question=None),
        files.spar_row(7, "position_matching", "A", 2, question="<|image_pad|> where?"),
        files.spar_row(8, "position_matching", "A", 2, image=[]),
        files.spar_row(9, "position_matching", "A", 2, image=None),
        files.spar_row(10, "position_matching", "A", 2, image=[{"bytes": None, "path": "a.jpg"}]),
        files.spar_row(11, "position_matching", "A", 2, image=[{"bytes": b"not an image", "path": "a.jpg"}]),
        files.spar_row(12, "position_matching", "A", 2, img_type="video"),
    ]
    _, faults = read("spar_mv", files.write_spar(tmp_path / "s", bad, files=1))
    assert faults == [
        "unknown_task", "no_answer", "gold_is_no_letter", "gold_is_no_number", "gold_is_no_view_change", "no_question",
        "reserved_token", "no_images", "no_images", "image_without_bytes", "unreadable_image", "unknown_img_type",
    ]  # fmt: skip
    rows = files.mindcube_rows()
    assert (
        read("mindcube_tiny", files.write_mindcube(tmp_path / "a", rows, images=False))[1] == ["image_file_missing"] * 4
    )
    rows = [rows[0] | {"id": "linear_1"}, rows[1] | {"gt_answer": "X"}, rows[2] | {"images": []}]
    assert read("mindcube_tiny", files.write_mindcube(tmp_path / "b", rows))[1] == [
        "id_names_no_setting", "gold_is_no_letter", "no_images",
    ]  # fmt: skip
    rows = files.mmsi_rows()
    rows = [rows[0] | {"question_type": "Colour"}, rows[1] | {"answer": "F"}, rows[2] | {"images": [picture[:8]]}]
    assert read("mmsi", files.write_mmsi(tmp_path / "m", rows))[1] == [
        "unknown_question_type", "gold_is_no_letter", "unreadable_image",
    ]  # fmt: skip
    rows = files.cvbench_rows()
    rows = [rows[0] | {"source": "Flickr"}, rows[1] | {"answer": "two"}, rows[2] | {"image": None}]
    assert read("cvbench", files.write_cvbench(tmp_path / "c", rows))[1] == [
        "unknown_source", "gold_is_no_letter", "no_images",
    ]  # fmt: skip


def test_a_truncated_image_is_found_when_it_is_opened(tmp_path):
    cut = files.encoded(1, "JPEG")
    rows = [files.spar_row(1, "position_matching", "A", 1, img_type="multi_view")]
    rows[0]["image"][0]["bytes"] = cut[: len(cut) // 2]
    (item,), _ = read("spar_mv", files.write_spar(tmp_path / "s", rows, files=1))
    with pytest.raises(BadRowError, match="unreadable_image"):
        item.images(10_000)


def test_a_few_bad_rows_are_counted_and_many_stop_with_the_commonest_reasons(tmp_path):
    good = [files.spar_row(k, "position_matching", "A", 2) for k in range(38)]
    benchmark = BENCHMARKS["spar_mv"]

    def look(name, bad):
        root = files.write_spar(tmp_path / name, good + bad, files=1)
        return survey(benchmark, find_files(root, benchmark.part.patterns, name))

    unknown = [files.spar_row(90 + k, "room_size", "3", 2) for k in range(2)]
    usable, bad, _ = look("few", unknown)
    assert (usable, dict(bad)) == (38, {"unknown_task": 2})
    with pytest.raises(ValueError, match=r"3 of 41 rows cannot be used \(2 unknown_task, 1 no_answer\), more than 5%"):
        look("many", [*unknown, files.spar_row(99, "position_matching", "", 2)])


# --- wrong folders ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(BENCHMARKS))
def test_a_wrong_folder_says_what_was_expected_and_found(tmp_path, name):
    (tmp_path / "photos").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"expected .* found notes.txt, photos/") as error:
        read(name, tmp_path)
    assert BENCHMARKS[name].part.patterns[0] in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_other_wrong_files(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="found an empty folder"):
        read("mmsi", tmp_path / "empty")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "MMSI_Bench.parquet").write_bytes(b"<html>")
    with pytest.raises(ValueError, match="is no readable parquet file"):
        read("mmsi", tmp_path / "bad")
    (tmp_path / "bad" / "data.zip").write_bytes(b"<html>")
    with pytest.raises(ValueError, match="is no readable zip"):
        read("mindcube_tiny", tmp_path / "bad")
    files.write_mmsi(tmp_path / "other", files.mmsi_rows())
    with pytest.raises(ValueError, match=r"expected test_\[23\]d.parquet, found MMSI_Bench.parquet"):
        read("cvbench", tmp_path / "other")
    (tmp_path / "other" / "MMSI_Bench.parquet").rename(tmp_path / "other" / "test-0.parquet")
    with pytest.raises(ValueError, match=r"lacks the column\(s\) image, task, img_type; it has id, images"):
        read("spar_mv", tmp_path / "other")
    root = files.write_cvbench(tmp_path / "half", files.cvbench_rows())
    (root / "test_3d.parquet").unlink()
    with pytest.raises(ValueError, match=r"expected test_2d.parquet and test_3d.parquet, found test_2d.parquet"):
        read("cvbench", root)
    with pytest.raises(ValueError, match="does not exist"):
        read("mmsi", tmp_path / "absent")
    with pytest.raises(ValueError, match="could not be fetched as a dataset of the Hugging Face hub"):
        local_root("nobody/nothing-at-all", ("*.parquet",))


def test_which_root_belongs_to_which_benchmark(tmp_path):
    spar, mmsi = (("spar_mv", "jasonzhango/SPAR-Bench"), ("mmsi", "RunsenXu/MMSI-Bench"))
    assert all(BENCHMARKS[name].part.hub == hub for name, hub in (spar, mmsi))
    assert choose_root(spar[0], [], spar[1]) == spar[1] and choose_root("matching_rgbd", []) == ""
    (tmp_path / "SPAR-Bench").mkdir()
    assert choose_root(spar[0], [str(tmp_path)], spar[1]) == str(tmp_path / "SPAR-Bench")
    assert choose_root(mmsi[0], [str(tmp_path)], mmsi[1]) == choose_root("matching_rgbd", [str(tmp_path)])
    assert choose_root(mmsi[0], [str(tmp_path)], mmsi[1]) == str(tmp_path)
    assert choose_root(mmsi[0], [str(tmp_path), "mmsi=OWNER/NAME"], mmsi[1]) == "OWNER/NAME"


def stored(picture: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, format=form, **options)
    return out.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def test_a_photo_stored_turned_is_shown_upright(tmp_path):
    """As `datasets` and the service give it."""
    wide = photo(3).resize((120, 60))
    rows = files.mmsi_rows()[:1]
    rows[0]["images"] = [stored(wide, exif=turned(orientation)) for orientation in (1, 6, 3, 8)]
    (item,), _ = read("mmsi", files.write_mmsi(tmp_path / "m", rows))
    shown = [np.asarray(image) for image in item.images(10**6)]
    pixels = np.asarray(wide)
    for image, expected in zip(
        shown, (pixels, np.rot90(pixels, -1), np.rot90(pixels, 2), np.rot90(pixels)), strict=True
    ):
        np.testing.assert_array_equal(image, expected)


UNUSABLE = {
    "image_not_in_colour": stored(Image.fromarray(np.full((60, 60), 40_000, np.uint16))),
    "image_animated": stored(photo(5), "GIF", save_all=True, append_images=[photo(6)]),
    "image_of_bad_size": stored(Image.new("RGB", (9000, 30))),
    "unreadable_image": b"\x89PNG\r\n\x1a\n nothing more",
    "image_too_many_pixels": stored(Image.new("1", (8000, 8000))),
}


@pytest.mark.parametrize("reason", UNUSABLE)
def test_a_picture_that_is_none_costs_its_row_alone(tmp_path, reason):
    rows = [files.mmsi_rows()[0] | {"id": number} for number in range(41)]
    rows[7] = rows[7] | {"images": [UNUSABLE[reason]]}
    benchmark = BENCHMARKS["mmsi"]
    paths = find_files(files.write_mmsi(tmp_path / "m", rows), benchmark.part.patterns, "MMSI-Bench")
    assert survey(benchmark, paths) == (40, Counter({reason: 1}), {})


def test_a_parquet_file_with_bytes_flipped_is_one_line(tmp_path):
    path = files.write_mmsi(tmp_path / "m", files.mmsi_rows()) / "MMSI_Bench.parquet"
    data = path.read_bytes()
    said = []
    for place in range(10, len(data) - 400, max(40, len(data) // 60)):
        spoilt = bytearray(data)
        spoilt[place : place + 40] = bytes(255 - value for value in spoilt[place : place + 40])
        (tmp_path / "spoilt.parquet").write_bytes(spoilt)
        try:
            list(BENCHMARKS["mmsi"].read((tmp_path / "spoilt.parquet",)))
        except ValueError as error:
            said.append(str(error))
    assert said
    for text in said:
        assert "spoilt.parquet is no readable parquet file" in text or "lacks the column" in text
        assert "\n" not in text


def damage(path, name):
    """Flip a byte in the middle of a member's bytes: its checksum no longer fits."""
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo(name)
    data = bytearray(path.read_bytes())
    data[member.header_offset + 30 + len(name) + member.compress_size // 2] ^= 0xFF
    path.write_bytes(data)


def test_a_damaged_zip_costs_the_row_of_one_picture(tmp_path):
    rows = files.mindcube_rows()
    path = files.write_mindcube(tmp_path, rows) / "data.zip"
    damage(path, f"data/{rows[1]['images'][0]}")
    items, _ = read("mindcube_tiny", tmp_path)
    for number, item in enumerate(items):
        if number == 1:
            with pytest.raises(BadRowError, match="unreadable_image"):
                item.images(10_000)
        else:
            assert item.images(10_000)
    damage(path, "data/raw/MindCube_tinybench.jsonl")
    with pytest.raises(ValueError, match=r"MindCube_tinybench\.jsonl of .*data\.zip cannot be read .*again"):
        read("mindcube_tiny", tmp_path)
