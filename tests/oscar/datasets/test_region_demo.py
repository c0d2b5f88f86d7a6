"""What `lavis-ext demo --all` exports as Oscar's and VinVL's files, through every declaration to batches."""

from pathlib import Path

import pytest

from lavis_ext.common.config.cards import load_cards, split_names
from lavis_ext.datasets.builders import BuildContext, build_datasets
from lavis_ext.datasets.mixture import Mixture
from lavis_ext.demo.world import World
from lavis_ext.prepare import PrepareOptions, prepare
from tests.world.export import export_world

CASES = [
    (name, kind)
    for name, types in load_cards().families["oscar"].datasets.items()
    for kind, config in types.items()
    if config.family == "oscar"
]


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mirror of both families."""
    root = tmp_path_factory.mktemp("mirror")
    export_world(World(seed=1, train=10, val=4, test=4, hidden=4), root, ["oscar", "vinvl"])
    return root


@pytest.mark.slow
def test_every_name_and_type(mirror: Path, tmp_path: Path) -> None:
    wanted = [f"{name}[{kind}]" for name, kind in CASES] + ["oscar/base-vg-labels"]
    report = prepare(wanted, PrepareOptions(cache_root=tmp_path, mirror=str(mirror)))
    assert report.exit_code == 0, report.lines()
    assert len(CASES) == 14
    for name, kind in CASES:
        config = load_cards().dataset(name, kind)
        built = build_datasets(config, BuildContext(tmp_path, split_names(config)))
        assert list(built) == split_names(config)
        for split, dataset in built.items():
            mixture = Mixture({name: dataset}, batch_size=8, num_workers=0, shuffle=False)
            batches = list(mixture)
            assert sum(len(batch["image_id"]) for batch in batches) == len(dataset) > 0
            assert mixture.faults.summary()[f"{name}/{split}"]["bad"] == 0
            assert all(batch["img_feats"].shape[-1] == 2054 for batch in batches)
