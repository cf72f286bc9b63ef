"""A config says exactly what is wrong with it, before anything starts."""

from pathlib import Path

import pytest

from launch.local import check_launch
from pipeline.config import RunConfig, Runtime
from pipeline.config_file import ConfigError, load_config
from pipeline.model_configs import IPTConfig
from pipeline.tasks import PUBLISHED_ORDER, TASKS
from pipeline.training.placement import share_out
from stages.recipe import build_graph

CONFIGS = Path(__file__).parents[1] / "configs"
DEMO = CONFIGS / "demo.yaml"
MINIMAL = "sources: {photos: {path: somewhere}}\n"


def written(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_we_ship_is_valid(path):
    assert load_config(path).name == path.stem


def test_a_run_of_dncnns_alone_has_no_pretraining():
    config = load_config(CONFIGS / "dncnn.yaml")

    names = [stage.name for stage in build_graph(config).stages]

    assert list(config.trainings) == ["dncnn.grey15", "dncnn.grey25", "dncnn.grey50"]
    assert "pretrain" not in names
    assert "evaluate-dncnn-grey25" in names


def test_fine_tuning_from_random_weights_alone_pretrains_nothing():
    def stages(*tasks):
        overrides = [f"finetune.{task}.pretrained=false" for task in tasks]
        return {each.name: each for each in build_graph(load_config(DEMO, overrides)).stages}

    tasks = list(load_config(DEMO).finetune)
    without, one = stages(*tasks), stages(tasks[0])

    assert "pretrain" not in without
    assert [*without[f"finetune-{tasks[0]}"].inputs] == ["shards"]
    assert "pretrained" in one[f"finetune-{tasks[1]}"].inputs
    assert "pretrained" not in one[f"finetune-{tasks[0]}"].inputs


@pytest.mark.parametrize("name", ["dncnn", "dncnn-blind"])
def test_dncnns_are_trained_as_their_authors_did(name):
    config = load_config(CONFIGS / f"{name}.yaml")

    assert not config.corrupt.clip_noise
    for task, training in config.dncnn.items():
        is_blind = task.endswith("blind")
        assert training.model.depth == (20 if is_blind else 17)
        assert training.model.channels == TASKS[task].channels
        assert config.corrupt.patch_size == (50 if is_blind else 40)
        assert (training.batch, training.learning_rate, training.final_learning_rate) == (
            128,
            1e-3,
            1e-4,
        )
        assert training.data.flips_and_rotations
    # 128 × 1600 and 128 × 3000 patches an epoch, of 400 photographs.
    assert 400 * config.corrupt.crops_per_image == 128 * (3000 if name == "dncnn-blind" else 1600)


def test_the_small_ipt_has_a_few_million_parameters_and_every_published_task():
    config = load_config(CONFIGS / "small.yaml")
    scales = {name: TASKS[name].scale for name in config.pretrain.tasks}

    assert IPTConfig(size=config.ipt, scales=scales).parameters == 4_154_466
    assert list(config.finetune) == list(PUBLISHED_ORDER)
    check_launch(config)


@pytest.mark.parametrize("processes", [1, 8])
@pytest.mark.parametrize("name", ["imagenet", "imagenet-all"])
def test_processes_of_a_node_can_share_every_batch(name, processes):
    config = load_config(CONFIGS / f"{name}.yaml", (f"runtime.processes={processes}",))

    check_launch(config)


def test_two_processes_can_share_the_demos_pretraining():
    config = load_config(CONFIGS / "demo.yaml")

    share_out(config.pretrain, config.runtime, rank=0, world_size=2)


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("finetune.denoise30.learning_rate=5e-4", {"finetune.denoise30"}),
        ("finetune.denoise30.data.fresh_noise=false", {"finetune.denoise30"}),
        ("dncnn.denoise50.model.depth=6", {"dncnn.denoise50"}),
        ("pretrain.data.lanes=2", {"pretrain"}),
    ],
)
def test_override_reaches_nothing_beside_its_key_through_an_anchor(override, changed):
    before = load_config(CONFIGS / "demo.yaml").trainings
    after = load_config(CONFIGS / "demo.yaml", (override,)).trainings

    assert {key for key in before if before[key] != after[key]} == changed


def test_imagenet_config_is_the_papers_recipe():
    config = load_config(CONFIGS / "imagenet.yaml")

    pretrain = config.pretrain
    assert pretrain.tasks == ("sr2", "sr3", "sr4", "derain", "denoise30", "denoise50")
    assert (pretrain.batch, pretrain.tasks_per_step) == (256, "one")
    assert pretrain.samples == 300 * 1_280_000
    assert (pretrain.learning_rate, pretrain.final_learning_rate) == (5e-5, 2e-5)
    assert pretrain.drop_at == pytest.approx(200 / 300)
    assert (pretrain.betas, pretrain.clip_norm) == ((0.9, 0.999), None)
    assert (pretrain.contrastive.form, pretrain.contrastive.weight) == ("supcon", 0.1)
    assert (config.ipt.features, config.ipt.encoder_layers, config.ipt.decoder_layers) == (
        64,
        12,
        12,
    )
    assert config.corrupt.clip_noise
    assert {finetune.learning_rate for finetune in config.finetune.values()} == {2e-5}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("pretrain: {bacth: 3}", ["pretrain.bacth", "unknown key", "value 3", "'batch'"]),
        ("nonsense: 1", ["nonsense", "unknown key", "pretrain"]),
        ("ipt: {feature: 8}", ["ipt.feature", "'features'", "token_size"]),
        ("pretrain: {batch: many}", ["pretrain.batch", "'many'", "a number is needed"]),
        ("pretrain: {batch: 0}", ["pretrain.batch", "0", "greater than or equal to 1"]),
        ("seed: true", ["seed", "True", "a number is needed"]),
        ('pretrain: {batch: "24"}', ["pretrain.batch", "'24'", "a number is needed"]),
        ("corrupt: {clip_noise: never}", ["corrupt.clip_noise", "'never'", "true or false"]),
        ("seed: 99999999999999999999", ["seed", "less than"]),
        ("pretrain: {batch: 1.5}", ["pretrain.batch", "1.5"]),
        ("pretrain: {learning_rate: .nan}", ["pretrain.learning_rate", "nan"]),
        ("pretrain: {tasks: []}", ["pretrain.tasks: none, and no dncnn"]),
        ("pretrain: {tasks: [sr5]}", ["pretrain.tasks.0", "'sr5'", "sr2, sr3, sr4, derain"]),
        ("finetune: {sr9: {}}", ["finetune.sr9", "unknown task", "denoise30"]),
        ("finetune: {sr2: {lr: 1}}", ["finetune.sr2.lr", "unknown key", "learning_rate"]),
        ("dncnn: {sr2: {}}", ["dncnn.sr2", "×1"]),
        ("dncnn: {denoise30: {model: {channels: 1}}}", ["dncnn.denoise30.model.channels", "use 3"]),
        ("dncnn: {grey25: {}}", ["dncnn.grey25.model.channels", "3", "use 1"]),
        ("pretrain: {tasks: [sr2, grey_blind]}", ["pretrain.tasks", "grey_blind", "dncnn"]),
        ("finetune: {grey15: {}}", ["finetune.grey15", "not in pretrain.tasks"]),
        (
            "dncnn: {denoise30: {model: {batch_norm: false}}}",
            ["dncnn.denoise30.model.batch_norm", "leave it out"],
        ),
        ("pretrain: {contrastive: {weight: .inf}}", ["pretrain.contrastive.weight", "inf"]),
        ("pretrain: {tasks: [sr2, sr2]}", ["pretrain", "named twice"]),
        ("pretrain: {tasks_per_step: all, batch: 250}", ["pretrain", "250", "multiple of 6"]),
        (
            "pretrain: {tasks: [sr2]}\nfinetune: {sr3: {}}",
            ["finetune.sr3", "not in pretrain.tasks"],
        ),
        ("corrupt: {format: jpg}", ["corrupt.format", "'jpg'", "'npy' or 'png'"]),
        ("corrupt: {patch_size: 40}", ["ipt.patch_size", "48", "40"]),
        ("ipt: {token_size: 5}", ["ipt.token_size", "48"]),
        (
            "ipt: {patch_size: 42}\ncorrupt: {patch_size: 42}\nevaluate: {tiling: official}",
            ["evaluate.tiling", "multiple of 4", "42"],
        ),
        ("ipt: {attention_heads: 7}", ["ipt.attention_heads", "7", "576"]),
        ("pretrain: {source: other}", ["pretrain.source", "'other'", "photos"]),
        ("evaluate: {test_sets: {a: {}}}", ["evaluate.test_sets.a", "source or a path"]),
        ("evaluate: {test_sets: {a/b: {source: photos}}}", ["evaluate.test_sets", "a/b"]),
        ("name: a/b", ["name", "'a/b'"]),
        ("runtime: {keep_checkpoints: 1}", ["runtime.keep_checkpoints", "2"]),
    ],
)
def test_mistake_is_named_with_file_key_value_and_remedy(tmp_path, text, words):
    path = written(tmp_path, MINIMAL + text)

    with pytest.raises(ConfigError) as caught:
        load_config(path)

    for word in [str(path), *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1", ["not valid YAML"]),
        ("- 1", ["list", "not a mapping"]),
        ("", ["not a mapping"]),
        ("seed: 1\nseed: 2", ["'seed'", "twice"]),
        ("extends: nowhere.yaml", ["nowhere.yaml", "No such file"]),
        ("seed: 1", ["sources", "required"]),
    ],
)
def test_file_that_is_no_config_is_refused(tmp_path, text, words):
    path = written(tmp_path, text)

    with pytest.raises(ConfigError) as caught:
        load_config(path)

    for word in words:
        assert word in str(caught.value)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: can't be read: No such file"):
        load_config(tmp_path / "none.yaml")


def test_override_passes_the_same_checks(tmp_path):
    path = written(tmp_path, MINIMAL)

    config = load_config(path, ("pretrain.batch=64", "finetune.sr2.learning_rate=1e-4"))
    assert (config.pretrain.batch, config.finetune["sr2"].learning_rate) == (64, 1e-4)

    for override, word in [
        ("pretrain.batch=-1", "pretrain.batch: -1"),
        ("pretrain.nothing=1", "unknown key"),
        ("pretrain", "key.subkey=value"),
        ("seed.x=1", "seed"),
        ("pretrain.batch=[", "not valid YAML"),
    ]:
        with pytest.raises(ConfigError) as caught:
            load_config(path, ("seed=3", override))
        assert word in str(caught.value)


def test_child_inherits_section_by_section(tmp_path):
    (tmp_path / "parent.yaml").write_text(MINIMAL + "pretrain: {batch: 64, tasks: [sr2, sr3]}\n")
    path = written(tmp_path, "extends: parent.yaml\npretrain: {batch: 32}\n")

    config = load_config(path)

    assert (config.name, config.pretrain.batch, config.pretrain.tasks) == (
        "run",
        32,
        ("sr2", "sr3"),
    )


def test_parent_of_a_parent_is_refused(tmp_path):
    (tmp_path / "parent.yaml").write_text("extends: other.yaml\n")
    path = written(tmp_path, "extends: parent.yaml\n")

    with pytest.raises(ConfigError, match="a parent can't have a parent"):
        load_config(path)


def test_numbers_without_a_point_are_numbers(tmp_path):
    path = written(tmp_path, MINIMAL + "pretrain: {learning_rate: 5e-5, samples: 384_000_000}\n")

    pretrain = load_config(path).pretrain

    assert (pretrain.learning_rate, pretrain.samples) == (5e-5, 384_000_000)


def test_config_can_not_be_changed():
    config = RunConfig(name="run", sources={"photos": {"path": "p"}})

    with pytest.raises(ValueError, match="frozen"):
        config.seed = 1


def test_an_address_that_nobody_can_read_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shards_at\n.*; use https://…, s3://… or the path"):
        Runtime(shards_at="http://[::1/x")
