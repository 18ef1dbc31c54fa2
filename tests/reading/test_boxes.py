"""Images with boxes: each form of annotation, where boxes lie after all that moves an image, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import fmeco as api
from fmeco.config.check import choose
from fmeco.config.dataset_argument import section_for_use
from fmeco.core import MISSING_CLASS, ConfigError, Data, DataError, Inputs, fit, mix, pad
from fmeco.data.decoded_cache import Decoded
from fmeco.data.loader import evaluation_batches
from fmeco.datasets._boxes import BoxedImages
from fmeco.testing.bench import ALONE, CPU, Bench
from fmeco.testing.dataset import checks
from fmeco.testing.report import Report
from tests.conftest import Answer
from tests.data.test_data import build

CLASSES = ("cat", "dog")
COLOURS = {"cat": (255, 0, 0), "dog": (0, 255, 0)}
Box = tuple[str, int, int, int, int]
# Image -> its size, and its objects: class, left, top, right, bottom. The pixels of each have the colour of its class.
SCENES: dict[str, tuple[tuple[int, int], list[Box]]] = {
    "a": ((101, 67), [("cat", 10, 8, 43, 40), ("dog", 55, 20, 98, 60)]),
    "b": ((67, 103), [("dog", 5, 50, 30, 90)]),
    "c": ((64, 64), []),
    "d": ((87, 55), [("cat", 0, 0, 33, 20), ("dog", 40, 30, 87, 55)]),
}


def draw(file: Path, size: tuple[int, int], objects: list[Box], orientation: int = 1) -> None:
    """Draw a picture that is stored so that it looks like this once it is turned by its EXIF orientation."""
    pixels = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    for name, left, top, right, bottom in objects:
        pixels[top:bottom, left:right] = COLOURS[name]
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's turns, each of which `upright` does backwards
    image = Image.fromarray(pixels)
    if orientation > 1:
        image = image.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[274] = orientation
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file, exif=exif)


def pictures(folder: str) -> None:
    for name, (size, objects) in SCENES.items():
        draw(Path(folder, f"{name}.png"), size, objects)


def write(file: str, text: str) -> str:
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Path(file).write_text(text)
    return file


def coco(folder: str = "coco", **changes: Any) -> str:
    """JSON above images/, with ids that neither begin at 1 nor follow one another."""
    pictures(f"{folder}/images")
    images = [
        {"id": 10 * i, "file_name": f"{name}.png", "width": size[0], "height": size[1]}
        for i, (name, (size, _)) in enumerate(SCENES.items())
    ]
    annotations = [
        {"id": 7 * i + k, "image_id": 10 * i, "category_id": {"cat": 17, "dog": 3}[c], "bbox": [x, y, x2 - x, y2 - y]}
        for i, (_, objects) in enumerate(SCENES.values())
        for k, (c, x, y, x2, y2) in enumerate(objects)
    ]
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 17, "name": "cat"}, {"id": 3, "name": "dog"}],
    }
    write(f"{folder}/annotations/instances.json", json.dumps({**content, **changes}))
    return folder


def voc_xml(size: tuple[int, int], objects: list[Box], extra: str = "") -> str:
    boxes = "".join(
        f"<object><name>{c}</name><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox>"
        f"{extra}</object>"
        for c, x, y, x2, y2 in objects
    )
    return f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>{boxes}</annotation>"


def voc(folder: str = "voc") -> str:
    pictures(f"{folder}/JPEGImages")
    for name, scene in SCENES.items():
        write(f"{folder}/Annotations/{name}.xml", voc_xml(*scene))
    return folder


def yolo(folder: str = "yolo") -> str:
    pictures(f"{folder}/images")
    for name, ((w, h), objects) in SCENES.items():
        lines = [
            f"{CLASSES.index(c)} {(x + x2) / 2 / w:.8f} {(y + y2) / 2 / h:.8f} {(x2 - x) / w:.8f} {(y2 - y) / h:.8f}\n"
            for c, x, y, x2, y2 in objects
        ]
        write(f"{folder}/labels/{name}.txt", "".join(lines))
    write(f"{folder}/data.yaml", "names: {0: cat, 1: dog}\n")
    return folder


HEADER = "path,xmin,ymin,xmax,ymax,label\n"


def table(folder: str = "table", header: str = HEADER, more: str = "") -> str:
    pictures(folder)
    rows = [
        f"{name}.png,{','.join(map(str, one[1:]))},{one[0]}\n" if one else f"{name}.png,,,,,\n"
        for name, (_, objects) in SCENES.items()
        for one in (objects or [()])
    ]
    return write(f"{folder}/boxes.csv", header + "".join(rows) + more)


FORMS: dict[str, Callable[[], str]] = {"coco": coco, "voc": voc, "yolo": yolo, "table": table}


def boxes(path: str, **keys: Any) -> Data:
    return build(
        **{"name": "boxes", "path": path, "image_size": 64, "background": [0, 0, 0], "val_fraction": 0.3, **keys}
    )


def parts(data: Data) -> list[BoxedImages]:
    return [part for part in (data.train, data.val, data.test) if isinstance(part, BoxedImages)]


def in_files(data: Data) -> dict[str, list[list[float]]]:
    """Boxes in the pixels of the files, by the names of images."""
    found = {Path(part.name(i)).stem: part.boxed.of_image(i) for part in parts(data) for i in range(len(part))}
    return {name: np.round(one, 3).tolist() for name, one in sorted(found.items())}


EXPECTED = {
    name: [[x, y, x2, y2, CLASSES.index(c) + 1] for c, x, y, x2, y2 in objects] for name, (_, objects) in SCENES.items()
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_gives_the_same_boxes(form: str) -> None:
    path = FORMS[form]()
    write(f"{form}/other.yaml", "a program's own: !tag [")
    write(f"{form}/other.json", '{"images": 3}')
    data = boxes(path)
    assert in_files(data) == EXPECTED
    assert data.spec.targets["boxes"].classes == CLASSES
    assert data.spec.inputs["boxes"].rides == "image" and not data.spec.windows
    assert all((part.targets["boxes"] == 0).all() for part in parts(data))
    assert data.notes == ()
    assert (
        max(len(EXPECTED[Path(data.split("train").name(i)).stem]) for i in range(len(data.split("train"))))
        == (data.spec.inputs["boxes"].shape[0])
    )
    # As for `evaluate --dataset`, with the spec of a checkpoint; the form need not be its own.
    shape = dataclasses.replace(data.spec.inputs["boxes"], shape=(1, 5))  # fewer than an image of the new data has
    spec = dataclasses.replace(data.spec, inputs={**data.spec.inputs, "boxes": shape})
    again = build(name="boxes", known=spec, whole=True, path=FORMS["table"]())
    assert again.spec.inputs["boxes"].shape == (1, 5)
    assert sum(len(fit(part[i], again.spec)["boxes"]) for part in parts(again) for i in range(4)) == 5
    assert in_files(again) == EXPECTED and again.val is None and len(again.split("test")) == 4
    # Batches are padded, also those in which no image has an object.
    for batch in evaluation_batches(again, again.split("test"), batch_size=1, reading=ALONE, device=CPU):
        assert batch.views[0]["boxes"].shape[::2] == (1, 5) and not batch.skipped


def extent(image: Tensor, colour: int) -> list[float] | None:
    """Where the pixels of a colour begin and end; None if there are none."""
    other = image[1 - colour].float()
    rows, columns = torch.nonzero((image[colour].float() > 127) & (other < 127), as_tuple=True)
    if not len(rows):
        return None
    return [float(columns.min()), float(rows.min()), float(columns.max()) + 1, float(rows.max()) + 1]


def agree(sample: Inputs, most: float = 1.0) -> int:
    """Compare each box with the pixels of its object. Returns the number of objects that are in sight."""
    seen = 0
    for code in (1, 2):
        (of_class,) = [sample["boxes"][sample["boxes"][:, 4] == code]]
        shown = extent(sample["image"], code - 1)
        if not len(of_class):
            assert shown is None or min(shown[2] - shown[0], shown[3] - shown[1]) <= 2
            continue
        seen += 1
        if shown is None:
            sides = of_class[0, 2:4] - of_class[0, :2]
            assert sides.min() < 2, (code, of_class)
            continue
        assert np.abs(np.array(shown) - of_class[0, :4].numpy()).max() <= most, (code, shown, of_class)
    return seen


@pytest.mark.parametrize("keys", [{"fit": "letterbox"}, {"fit": "squash"}, {"fit": "letterbox", "crop_share": 0.8}])
@pytest.mark.parametrize("size", [64, 75, 180])
def test_boxes_lie_on_the_pixels_of_their_objects(keys: dict[str, Any], size: int) -> None:
    data = boxes(coco(), image_size=size, **keys)
    samples = [fit(part[i], data.spec) for part in parts(data) for i in range(len(part))]
    assert sum(agree(sample) for sample in samples) == 5
    for part in parts(data):  # and back on those of their files
        for i in range(len(part)):
            found = part.back(i, "boxes", fit(part[i], data.spec)["boxes"])
            if "crop_share" not in keys:
                assert torch.allclose(found, torch.from_numpy(part.boxed.of_image(i)), atol=1e-3)


@pytest.mark.parametrize(
    "keys", [{"name": "standard", "color": 0}, {"name": "light"}, {"name": "light", "flip": 1, "shift": 0}]
)
def test_boxes_stay_on_their_objects_when_images_are_augmented(keys: dict[str, Any]) -> None:
    data = boxes(table(), image_size=90)
    augment = choose("augment", keys).build(spec=data.spec, train=data.train)
    samples = [part[i] for part in parts(data) for i in range(len(part))] * 8
    keys_of = mix(3, torch.arange(len(samples)))
    views = [fit(augment.sample(one, int(key)), data.spec) for one, key in zip(samples, keys_of, strict=True)]
    made = augment.batch({name: pad([view[name] for view in views]) for name in ("image", "boxes")}, keys_of)
    # A crop rounds its corners to pixels before it is enlarged, by at most 1.7.
    assert sum(agree({n: x[i] for n, x in made.items()}, 1.7) for i in range(len(samples))) > 30
    changed = [
        not torch.equal(a["boxes"][: len(b)], b) for a, b in zip(views, made["boxes"], strict=True) if len(a["boxes"])
    ]
    assert any(changed)


@pytest.mark.parametrize("stored", [True, False])
def test_boxes_of_photographs_that_the_camera_turned(stored: bool) -> None:
    """Annotated by a tool that shows the pixels as they are stored, or by one that turns them upright."""
    size, objects = SCENES["a"]
    images, annotations = [], []
    for orientation in range(1, 9):
        file = Path("turned", f"{orientation}.png")
        draw(file, size, objects, orientation)
        with Image.open(file) as raw:
            own = raw.size if stored else size
            drawn = torch.from_numpy(np.array(raw)).permute(2, 0, 1)
        images.append({"id": orientation, "file_name": file.name, "width": own[0], "height": own[1]})
        for colour, (name, *corners) in enumerate(objects):
            x, y, x2, y2 = extent(drawn, colour) if stored else corners
            box = {"bbox": [x, y, x2 - x, y2 - y], "category_id": CLASSES.index(name)}
            annotations.append({"id": len(annotations), "image_id": orientation, **box})
    categories = [{"id": code, "name": name} for code, name in enumerate(CLASSES)]
    write("turned/all.json", json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    data = boxes("turned")
    assert in_files(data) == {str(i): EXPECTED["a"] for i in range(1, 9)}
    assert sum(agree(part[i]) for part in parts(data) for i in range(len(part))) == 16
    assert any("7 images have boxes for the pixels as the camera stored them" in note for note in data.notes) == stored
    # In a table without sizes, a box may show that it is for the stored pixels.
    draw(Path("one", "6.png"), (40, 90), [], 6)
    row = "6.png,60,5,85,30,cat\n" if stored else "6.png,5,60,30,85,cat\n"
    path = write("one/boxes.csv", HEADER + row)
    if stored:
        with pytest.raises(
            DataError, match=r"boxes\.csv:2 \(6\.png\): the box ends at 85, 30, outside of the picture of 40x90, but"
        ):
            boxes(path)
    elif not stored:
        draw(Path("one", "5.png"), (40, 90), [])
        data = boxes(write("one/boxes.csv", HEADER + row + row.replace("6.png", "5.png")))
        assert "1 images are turned upright (EXIF); their boxes are read for the upright pictures" in data.notes


def row(text: str) -> Callable[[], str]:
    return lambda: table(more=text + "\n")


def changed(make: Callable[[], str], file: str, old: str, new: str) -> Callable[[], str]:
    """A dataset in which a file has other words."""

    def made() -> str:
        path = make()
        text = Path(file).read_text()
        assert old in text
        Path(file).write_text(text.replace(old, new, 1))
        return path

    return made


def without(make: Callable[[], str], file: str) -> Callable[[], str]:
    def made() -> str:
        path = make()
        Path(file).unlink()
        return path

    return made


JSON = "coco/annotations/instances.json"
REFUSED: dict[str, tuple[Callable[[], str], str]] = {
    "outside": (
        row("b.png,67,1,70,9,cat"),
        r"boxes\.csv:8 \(b\.png\): from 67, 1 to 70, 9 lies outside of the picture of 67x103",
    ),
    "inverted": (row("b.png,30,1,7,9,cat"), r"boxes\.csv:8 \(b\.png\): from 30, 1 to 7, 9 ends before it begins"),
    "no area": (row("b.png,7,1,7,9,cat"), "from 7, 1 to 7, 9 has no area"),
    "not finite": (row("b.png,nan,1,7,9,cat"), "from nan, 1 to 7, 9 is not finite"),
    "no number": (row('b.png,"1,5",1,7,9,cat'), r"boxes\.csv:8: 1,5 is not a number"),
    "half a box": (row("b.png,1,1,7,,cat"), r"boxes\.csv:8: a box needs all four numbers and a label"),
    "objects and none": (
        row("b.png,,,,,"),
        r"boxes\.csv:8: b\.png has no objects by this row, and other rows, such as 4",
    ),
    "absent images": (row("e.png,1,1,7,9,cat"), r"boxes\.csv: 1 of 5 images do not exist in table: e\.png"),
    "another size": (
        changed(coco, JSON, '"width": 101', '"width": 100'),
        r"instances\.json says 100x67, and images/a\.png has 101x67|instances\.json says 100x67, and a\.png has 101x67",
    ),
    "an id twice": (changed(coco, JSON, '"id": 10,', '"id": 0,'), r"instances\.json: images: two have the id 0"),
    "an image twice": (changed(coco, JSON, "b.png", "a.png"), r"instances\.json: listed more than once: a\.png"),
    "a name twice": (changed(coco, JSON, '"dog"', '"cat"'), "categories: two classes have the name cat"),
    "Unicode twice": (
        changed(changed(coco, JSON, '"dog"', '"\\u00fc"'), JSON, '"cat"', '"u\\u0308"'),
        "categories: two classes have the name ü",
    ),
    "strange category": (
        changed(coco, JSON, '"category_id": 3', '"category_id": 4'),
        "annotation 1 has no category_id",
    ),
    "strange image": (changed(coco, JSON, '"image_id": 10', '"image_id": 11'), "annotation 7 is of no image"),
    "an image in a list": (changed(coco, JSON, '"image_id": 10', '"image_id": [10]'), "annotation 7 is of no image"),
    "a category in braces": (
        changed(coco, JSON, '"category_id": 3', '"category_id": {}'),
        "annotation 1 has no category_id",
    ),
    "no bbox": (
        changed(coco, JSON, '"bbox": [10, 8, 33, 32]', '"bbox": [10, 8, 33]'),
        r"annotation 0: expected bbox: \[x, y",
    ),
    "cut off": (changed(coco, JSON, "]}", "]"), r"instances\.json: not valid JSON"),
    "no xml": (
        without(voc, "voc/Annotations/b.xml"),
        "1 of 4 images have no XML file of the same name: JPEGImages/b.png",
    ),
    "no image": (
        without(voc, "voc/JPEGImages/b.png"),
        "1 files of annotations belong to no image: Annotations/b.xml",
    ),
    "no bndbox": (
        changed(voc, "voc/Annotations/b.xml", "<bndbox>", "<polygon>"),
        r"b\.xml: not valid XML: mismatched tag: line 1",
    ),
    "a word": (
        changed(voc, "voc/Annotations/b.xml", "<xmin>6<", "<xmin>six<"),
        r"b\.xml: object 1: xmin: six is not a number",
    ),
    "no txt": (without(yolo, "yolo/labels/b.txt"), r"1 of 4 images have no text file of the same name: images/b\.png"),
    "no names": (without(yolo, "yolo/data.yaml"), "nothing says what the classes of the text files are called"),
    "no class 5": (
        changed(yolo, "yolo/labels/b.txt", "1 ", "5 "),
        r"b\.txt:1: there is no class 5: yolo/data\.yaml names 0 to 1",
    ),
    "outlines": (
        changed(yolo, "yolo/labels/b.txt", "1 ", "1 0.1 0.1 "),
        r"b\.txt:1: 7 values, where 5 are expected.*outlines",
    ),
    "pixels": (
        changed(yolo, "yolo/labels/b.txt", "1 ", "1 3"),
        r"b\.txt:1: .*expected shares of the picture's width and height",
    ),
    "two forms": (lambda: (coco("both"), voc("both"))[0], r"both: holds annotations in 2 forms: coco, voc"),
    "nothing": (lambda: (pictures("none"), "none")[1], "none: no annotations of boxes were found"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_meant_is_refused_by_name(case: str) -> None:
    make, message = REFUSED[case]
    path = make()
    with pytest.raises((DataError, ConfigError), match=message):
        boxes(path)


def test_bad_boxes_can_be_skipped_and_those_at_the_edge_are_clipped() -> None:
    path = table(more="b.png,67,1,70,9,cat\nb.png,-1,1,7,9,cat\nb.png,60,1,70,9,dog\n")
    data = boxes(path, bad_boxes="skip")
    assert in_files(data)["b"] == [[5, 50, 30, 90, 2], [0, 1, 7, 9, 1], [60, 1, 67, 9, 2]]
    said = "\n".join(data.notes)
    assert "1 boxes cannot be used and are skipped: table/boxes.csv:8 (b.png): from 67, 1 to 70, 9 lies outside" in said
    assert "2 boxes reach beyond the edge of their picture, by up to 3 pixels (table/boxes.csv:10 (b.png))" in said
    small = boxes(table(more="b.png,40,1,43,9,cat\n"), image_size=24)
    assert "1 boxes are narrower or lower than a pixel in images of 24, and are dropped" in "\n".join(small.notes)


def test_crowds_difficult_objects_and_images_without_annotations() -> None:
    path = changed(coco, JSON, '"category_id": 3, ', '"category_id": 3, "iscrowd": 1, ')()
    data = boxes(path)
    assert in_files(data)["a"] == EXPECTED["a"][:1]
    assert f"{JSON}: 1 boxes around crowds (iscrowd) are left out" in data.notes
    voc()
    write("voc/Annotations/a.xml", voc_xml(*SCENES["a"], extra="<difficult>1</difficult>"))
    data = boxes("voc")
    assert in_files(data)["a"] == [] and "2 objects marked as difficult are left out" in "\n".join(data.notes)
    assert in_files(boxes("voc", difficult=True)) == EXPECTED
    without(yolo, "yolo/labels/b.txt")()
    for what, value in (("background", 0), ("unlabelled", MISSING_CLASS)):
        data = boxes("yolo", unannotated=what)
        values = {
            Path(part.name(i)).stem: int(part.targets["boxes"][i]) for part in parts(data) for i in range(len(part))
        }
        assert values == {"a": 0, "b": value, "c": 0, "d": 0}
        assert "1 images without a text file" in "\n".join(data.notes)


def test_classes_are_chosen_by_name_and_a_checkpoints_keep_their_order() -> None:
    path = coco()
    first = boxes(path, classes=["dog", "cat"])
    assert first.spec.targets["boxes"].classes == ("dog", "cat") and in_files(first)["b"] == [[5, 50, 30, 90, 1]]
    assert in_files(build(name="boxes", known=first.spec, path=table()))["b"] == [[5, 50, 30, 90, 1]]
    dogs = boxes(path, classes=["dog"])
    assert "boxes of classes that dataset.classes does not name are left out: cat (2)" in dogs.notes
    assert in_files(dogs)["a"] == [[55, 20, 98, 60, 1]]
    with pytest.raises(DataError, match="the checkpoint has no class cat; it has: dog"):
        build(name="boxes", known=dogs.spec, path=path)
    with pytest.raises(ConfigError, match=r"dataset\.classes names cow, which the data does not have"):
        boxes(path, classes=["cow"])
    with pytest.raises(ConfigError, match="fit: crop would cut off objects"):
        boxes(path, fit="crop")
    old = dict(first.spec.preprocessing)
    for key in ("decode", "background", "fit", "crop_share", "windows"):
        del old[key]
    with pytest.raises(ConfigError, match="the checkpoint is older than images that are fitted whole"):
        build(name="boxes", known=dataclasses.replace(first.spec, preprocessing=old), path=path)
    # New data of a checkpoint is read by its dataset, a folder too, with the classes that it was trained with.
    trained = {"name": "boxes", "path": "old", "classes": ["dog"], "image_column": "file"}
    for place in (path, JSON):
        assert section_for_use(place, trained, "boxes") == {**trained, "path": place}


def test_splits_by_folders_files_and_lists() -> None:
    folder = coco()
    whole = json.loads(Path(JSON).read_text())
    Path(JSON).unlink()
    for part, ids in (("train", (0, 20, 30)), ("val", (10,))):
        entries = [one for one in whole["images"] if one["id"] in ids]
        objects = [one for one in whole["annotations"] if one["image_id"] in ids]
        content = {**whole, "images": entries, "annotations": objects}
        write(f"coco/annotations/instances_{part}2017.json", json.dumps(content))
    names = {"train": ["images/a.png", "images/c.png", "images/d.png"], "val": ["images/b.png"]}

    def found(data: Data) -> dict[str, list[str]]:
        return {
            split: [part.name(i).removeprefix("JPEG").lower() for i in range(len(part))]
            for split, part in (("train", data.train), ("val", data.val))
            if part is not None
        }

    assert [[Path(n).name for n in one] for one in found(boxes(folder)).values()] == [
        ["a.png", "c.png", "d.png"],
        ["b.png"],
    ]
    voc()
    write("voc/ImageSets/Main/train.txt", "a\nc\nd\n")
    write("voc/ImageSets/Main/val.txt", "b\n")
    assert found(boxes("voc")) == names
    write("voc/ImageSets/Main/val.txt", "b\na\n")
    with pytest.raises(DataError, match=r"val\.txt: a: also listed in train\.txt"):
        boxes("voc")
    yolo()
    for inner in ("images", "labels"):  # images/train and labels/train, as train/images and train/labels
        for part, stems in (("train", "acd"), ("valid", "b")):
            for stem in stems:
                old = next(Path("yolo", inner).glob(f"{stem}.*"))
                for new in (Path("inside", inner, part, old.name), Path("around", part, inner, old.name)):
                    new.parent.mkdir(parents=True, exist_ok=True)
                    new.write_bytes(old.read_bytes())
    for folder, text in (
        ("inside", "names: [cat, dog]\n"),
        ("around", "names: [cat, dog]\ntrain: ../train/images\nval: ../valid/images\n"),
    ):
        write(f"{folder}/data.yaml", text)
        data = boxes(folder)
        assert [[Path(n).name for n in one] for one in found(data).values()] == [["a.png", "c.png", "d.png"], ["b.png"]]
        assert in_files(data) == EXPECTED
    Path("inside/images/train").rename("inside/images/train2017")
    Path("inside/images/valid").rename("inside/images/val2017")
    with pytest.raises(DataError, match="the folders train2017, val2017 look like splits"):
        boxes("inside")
    path = table(header=HEADER.replace("label", "label,fold"))
    lines = Path(path).read_text().splitlines()
    rows = [line + (",val" if line.startswith("b") else ",train") for line in lines[1:]]
    write(path, "\n".join([lines[0], *rows]) + "\n")
    assert found(boxes(path, split_column="fold")) == {"train": ["a.png", "c.png", "d.png"], "val": ["b.png"]}
    write(path, "\n".join([lines[0], rows[0].replace("train", "val"), *rows[1:]]) + "\n")
    with pytest.raises(DataError, match=r"in two splits by column 'fold': a\.png"):
        boxes(path, split_column="fold")


def test_a_changed_box_is_read_again() -> None:
    before = boxes(table(), limit=1)
    same = boxes(table(), limit=1)
    after = boxes(changed(table, "table/boxes.csv", "a.png,10,", "a.png,11,")(), classes=["cat", "dog"])
    one, other = (
        next((p, i) for p in parts(data) for i in range(len(p)) if p.name(i) == "a.png")
        for data in (boxes(table()), after)
    )
    assert one[0].content != other[0].content and one[0].digest(one[1]) != other[0].digest(other[1])
    assert one[0].stamps is not None and other[0].stamps is not None
    assert one[0].stamps[one[1]] != other[0].stamps[other[1]] and before.spec.fingerprint != after.spec.fingerprint
    assert len(before.split("train")) == 1 and before.spec.sizes == same.spec.sizes
    for part in parts(boxes(table())):
        for _ in range(2):  # cold and warm; an image without objects, too
            cached = Decoded(part, Path("cache"), 1 << 20)
            assert all(torch.equal(cached[i]["boxes"], part[i]["boxes"]) for i in range(len(part)))


@pytest.mark.parametrize("form", FORMS)
def test_the_dataset_keeps_the_promises_of_its_kind(form: str) -> None:
    report = Report()
    choice = choose("dataset", {"name": "boxes", "path": FORMS[form](), "image_size": 32, "val_fraction": 0.3})
    report.run(choice.plugin.file, checks(choice, Bench(Path("bench"), None, None, ())))
    assert report.problems == []


def test_a_run_is_evaluated_on_new_data_in_any_form(fmeco: Callable[..., Answer]) -> None:
    data = {"name": "boxes", "path": table(), "image_size": 32, "val_fraction": 0.3, "classes": ["dog", "cat"]}
    train = {"epochs": 1, "batch_size": 3, "tensorboard": False}
    objective = {"name": "detection", "width": 16, "depth": 1}
    config = {"dataset": data, "backbone": {"name": "cnn", "widths": [8, 8]}, "objective": objective, "train": train}
    api.pretrain(config, out="run")
    answers = []
    for form, make in FORMS.items():
        answer = fmeco("evaluate", "run", "--dataset", make(), "--json")
        assert answer.code == 0, (form, answer.err)
        answers.append(answer.json["metrics"])
    assert answers[0] == answers[1] == answers[2] == answers[3]
    assert {"test_ap/cat", "test_ap/dog"} <= set(answers[0])
    answer = fmeco("predict", "run", "voc/JPEGImages/a.png", "--set", "objective.score=0.001", "--output", "found")
    assert answer.code == 0, answer.err
    with Image.open("found/a.png") as drawn:
        assert drawn.size == (101, 67)
