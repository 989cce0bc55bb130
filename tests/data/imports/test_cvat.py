"""CVAT's XML: turned shapes, projects with subsets, what has no area; the shared export tries the rest."""

from pathlib import Path

import numpy as np
import pytest
from exports import agree, bring, inside, layers, names, oval, picture

SIZE = (60, 90)
LABELS = "".join(f"<label><name>{name}</name><type>any</type></label>" for name in ("tree", "nuts &amp; bolts"))
PART = "<label><name>nose</name><type>points</type><parent>face</parent></label>"
FACE = "<label><name>face</name><type>skeleton</type></label>"


def export(root: Path, images: str, meta: str = "task") -> Path:
    labels = f"<labels>{LABELS}{FACE}{PART}</labels>"
    text = f"<annotations><version>1.1</version><meta><{meta}>{labels}</{meta}></meta>{images}</annotations>"
    root.mkdir(parents=True, exist_ok=True)
    (root / "annotations.xml").write_text('<?xml version="1.0" encoding="utf-8"?>\n' + text, encoding="utf-8")
    return root


def image(name: str, shapes: str = "", **more: object) -> str:
    attributes = "".join(f' {key}="{value}"' for key, value in more.items())
    return f'<image id="0" name="{name}" width="90" height="60"{attributes}>{shapes}</image>'


SHAPES = """
<box label="tree" xtl="20" ytl="15" xbr="60" ybr="35" rotation="30.00" z_order="1" occluded="0"><attribute name="a">1</attribute></box>
<ellipse label="nuts &amp; bolts" cx="60" cy="40" rx="20" ry="9" rotation="40" z_order="0" occluded="1"/>
<polyline label="tree" points="1,1;50,2" z_order="0"/><points label="tree" points="1,1;5,5" z_order="0"/>
<cuboid label="tree" xtl1="1" z_order="0"/><mask label="tree" rle="1, 2" left="0" top="0" width="2" height="2" z_order="0"/>
<skeleton label="face" z_order="0"><points label="nose" points="5,5" occluded="0"/></skeleton>
"""  # noqa: E501


def test_turned_shapes_and_what_has_no_area(tmp_path: Path) -> None:
    picture(tmp_path / "in/images/a.jpg", *SIZE)
    found, source, masks = bring(export(tmp_path / "in", image("a.jpg", SHAPES)), tmp_path / "new")
    angle, ring = np.radians(30), []
    for x, y in ((-20, -10), (20, -10), (20, 10), (-20, 10)):
        ring.append([40 + x * np.cos(angle) - y * np.sin(angle), 25 + x * np.sin(angle) + y * np.cos(angle)])
    assert source.classes == ("background", "tree", "nuts & bolts")
    assert agree(masks["a"], layers(SIZE, (oval(60, 40, 20, 9, 40, SIZE), 2), (inside(ring, SIZE), 1)))
    assert [left.what for left in found.left] == ["polyline", "points", "cuboid", "damaged mask", "skeleton"]
    _, _, masks = bring(tmp_path / "in", tmp_path / "new2", lines=3)
    assert (masks["a"][:3, 5:45] == 1).mean() > 0.5


def test_projects_have_subsets_and_names_may_lack_a_suffix(tmp_path: Path) -> None:
    box = '<box label="tree" xtl="2" ytl="2" xbr="50" ybr="50" z_order="0"/>'
    for seed, part in enumerate(("Train", "Validation")):
        picture(tmp_path / f"in/images/{part}/frame_000000.PNG", *SIZE, seed)
        picture(tmp_path / f"in/images/{part}/b.jpg", *SIZE, seed + 5)
    images = "".join(
        image(name, shapes, subset=part)
        for part in ("Train", "Validation")
        for name, shapes in (("frame_000000", box), ("b.jpg", ""))
    )
    found, source, _ = bring(export(tmp_path / "in", images, meta="project"), tmp_path / "new")
    assert found.divided == "as in the export" and len(source.train) == len(source.val) == 1
    assert names(source)["unlabeled"] == ["b", "b_2"]


def test_videos_and_damage(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='is of "CVAT for video"; export the task as "CVAT for images'):
        bring(export(tmp_path / "in", '<track id="0" label="tree"/>'), tmp_path / "new")
    (tmp_path / "in/annotations.xml").write_text("<annotations><image>")
    with pytest.raises(ValueError, match="not readable as XML"):
        bring(tmp_path / "in", tmp_path / "new")
