"""Wrong types, values out of range and keys that nobody reads are one line, before anything is built."""

from pathlib import Path

import pytest
from conftest import composed
from omegaconf import OmegaConf

from pcr_seg.config import CONF
from pcr_seg.training.fit import KEYS
from pcr_seg.training.values import check_values

GROUPS = ("dataset", "method", "backbone", "model", "optimizer", "protocol", "hardware", "logger", "experiment")
CHOICES = [f"{group}={path.stem}" for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]
CHOICES += [f"method=ablation/{path.stem}" for path in sorted((CONF / "method/ablation").glob("*.yaml"))]


def check(*overrides: str) -> None:
    config = composed("output=x", *overrides)
    check_values(OmegaConf.to_container(config, resolve=True), KEYS)


@pytest.mark.parametrize("choice", [*CHOICES, "early_stopping.patience=3", "data.cache=x", "seed=7"])
def test_what_is_shipped_is_accepted(choice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if choice.startswith("hardware=cluster"):  # which reads what torchrun has started
        started = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4", "GROUP_WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        for name, value in started.items():
            monkeypatch.setenv(name, value)
    check(choice, *([] if choice.startswith("hardware") else ["dataset.root=somewhere"]))


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        ("data.scale=0.5", r"data\.scale=0\.5: choose \[a number, a number\]"),
        ("data.scale=[0,0]", r"data\.scale=\[0,0\]: choose two factors above 0"),
        ("data.scale=[2,1]", r"data\.scale=\[2,1\]: choose two factors above 0"),
        ("data.crop_size=33.5", r"data\.crop_size=33\.5: choose a whole number"),
        ("data.crop_size=null", r"data\.crop_size=null: choose a whole number"),
        ("optimizer.lr=fast", r"optimizer\.lr=fast: choose a number"),
        ("optimizer.weight_decay=null", r"optimizer\.weight_decay=null: choose a number"),
        ("seed=1.5", r"seed=1\.5: choose a whole number"),
        ("seed=-1", r"seed=-1: choose 0 or more"),
        ("method.num_prototypes=0", r"method\.num_prototypes=0: choose 1 or more"),
        ("method.threshold=95", r"method\.threshold=95: choose 0 to 1"),
        ("method.ema_decay=99", r"method\.ema_decay=99: choose 0 to 1"),
        ("method.prototype_gate=maybe", r"method\.prototype_gate=maybe: choose true or false"),
        ("data.on_error=ignore", r"data\.on_error=ignore: choose raise, skip"),
        ("method.auxiliary_weight=nan", r"method\.auxiliary_weight=nan: choose a number"),
        ("recipe.fixmatch.threshold=nan", r"recipe\.fixmatch\.threshold=nan: choose 0 to 1"),
        ("method.prototype_momentum={}", r"method\.prototype_momentum=\{\}: choose a number"),
        ("method.supervised_loss=[]", r"method\.supervised_loss=\[\]: choose a function, as \{_target_: "),
        ("trainer.accumulate_grad_batches=0", r"trainer\.accumulate_grad_batches=0: choose 1 or more"),
        ("trainer.max_epochs=0", r"trainer\.max_epochs=0: choose 1 or more"),
        ("trainer.check_val_every_n_epoch=0", r"trainer\.check_val_every_n_epoch=0: choose 1 or more"),
        ("trainer.max_steps=0", r"trainer\.max_steps=0: choose 1 or more, or -1"),
        ("val=3", r"val=3: choose text or null"),
        ("diagnosis=often", r"diagnosis=often: choose true or false"),
        ("+data.crop=3", r"data\.crop: no such key; did you mean crop_size\?"),
        ("+trainer.max_epoch=3", r"trainer\.max_epoch: no such key; did you mean max_epochs\?"),
        ("+faster=true", r"faster: no such key"),
        ("+model.width=3", r"model\.width: no such key"),
    ],
)
def test_a_wrong_value_is_one_line(typed: str, answer: str) -> None:
    with pytest.raises(ValueError, match=answer) as error:
        check(typed)
    assert "\n" not in str(error.value)


def test_the_modules_folder_is_not_made_for_them(tmp_path: Path) -> None:
    from conftest import small_config

    from pcr_seg.training.fit import fit

    with pytest.raises(ValueError, match=r"data\.scale=\[0,0\]"):
        fit(small_config(tmp_path, "data.scale=[0,0]"))
    assert not (tmp_path / "run").exists()
