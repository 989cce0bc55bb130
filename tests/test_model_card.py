"""The card beside the checkpoints says what summary and configuration say."""

from conftest import SUMMARY

from pcr_seg.training.model_card import model_card

CONFIG = {
    "backbone": {"weights": None}, "model": {"_target_": "pcr_seg.models.mlp.MLP"}, "global_batch": 8,
    "data": {"crop_size": 321},
}  # fmt: skip
VERSIONS = {"pcr-seg": "0.1", "torch": "2.9"}


def rows(card: str) -> list[list[str]]:
    """Cells of all lines of tables."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in card.splitlines() if line[:1] == "|"]


def test_card_of_one_head() -> None:
    card = model_card(SUMMARY | {"versions": VERSIONS, "method": "supervised"}, CONFIG)
    assert "# supervised on camvid, 46 labeled images" in card and "by\nthe labeled images alone" in card
    assert "55.0 mIoU is optimistic" in card and "initial weights apply" not in card
    assert rows(card)[-5:] == [
        ["IoU of `last.ckpt`", "linear head"], ["---", "---"], ["sky", "90.0"], ["sign", "-"], ["mean", "50.0"]
    ]  # fmt: skip
    assert ["training", "800 iterations of 8 labeled images, crops of 321 pixels, seed 0"] in rows(card)
    assert ["commit", "abc; torch 2.9"] in rows(card)
    assert ["network", f"{SUMMARY['backbone']}, decoder MLP"] in rows(card)


def test_card_of_two_heads_and_pretrained_weights() -> None:
    both = {"iou_prototype": {"sky": 0.25, "sign": 0.5}, "miou_prototype_last": 0.375, "versions": VERSIONS}
    card = model_card(SUMMARY | both, CONFIG | {"backbone": {"weights": "timm"}})
    assert "by\nsemi-supervised learning" in card and "and of the initial weights apply" in card
    assert rows(card)[-3:] == [["sky", "90.0", "25.0"], ["sign", "-", "50.0"], ["mean", "50.0", "37.5"]]
    assert "{" not in card and "with pcr-seg 0.1." in card
    mere_checkout = {"versions": VERSIONS | {"pcr-seg": None}}
    assert "with pcr-seg." in model_card(SUMMARY | mere_checkout, CONFIG)
