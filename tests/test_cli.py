"""The command line, YAML files and config.json are three spellings of one configuration."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest

from wcl_ray.cli import parse
from wcl_ray.config import AugmentConfig, ClustersConfig, Config, DataConfig, TrainConfig, from_dict
from wcl_ray.errors import UserError
from wcl_ray.flags import Flag, keys, open_sections, read_yaml, to_words
from wcl_ray.registry import REGISTRIES
from wcl_ray.renamed import REMOVED
from wcl_ray.runs.stored import read_stored
from wcl_ray.search.options import SearchConfig, to_yaml
from wcl_ray.search.space import given_dimensions
from wcl_ray.storage import Folder
from wcl_ray.train.trackers.jsonl import MetricsLog

# Fixed by the users of the jobs: removing or renaming one breaks their scripts.
FROZEN = [
    "data.path",
    "data.id",
    "data.image",
    "data.label",
    "data.eval-path",
    "data.image-size",
    "clusters.kind",
    "clusters.columns",
    "clusters.top-k",
    "clusters.level",
    "loss.temperature",
    "loss.estimator",
    "model.backbone",
    "train.batch-size",
    "train.epochs",
    "train.lr",
    "scale.workers",
    "storage",
    "name",
    "seed",
    "resume",
]


def fails(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        parse(argv)
    assert caught.value.code == 2
    printed = capsys.readouterr()
    return " ".join((printed.err + printed.out).split())


def test_frozen_option_names() -> None:
    assert set(FROZEN) <= set(keys(Config))


def test_flags_and_defaults() -> None:
    config = parse(["--clusters.top-k", "5", "10", "--train.lr", "0.1", "--scale.workers", "1:4"])
    assert config.clusters.top_k == (5, 10)
    assert config.train.lr == 0.1
    assert config.scale.range() == (1, 4)
    assert parse([]) == Config()


def test_yaml_and_flags_win(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "data: {path: some/where, image-size: 48}\n"
        "train:\n  epochs: 7\n  compile: true\n  sync_bn: false\n"
        "clusters: {top_k: [3, 5]}\nname: null\n".replace("name: null\n", "")
    )
    config = parse(["--train.epochs", "9", f"--config={file}"])
    assert config.train.epochs == 9
    assert config.train.compile
    assert not config.train.sync_bn
    assert config.data.image_size == 48
    assert config.clusters.top_k == (3, 5)


def test_config_of_a_run_can_be_used_again(tmp_path: Path) -> None:
    config = parse(["--clusters.top-k", "5", "10", "--name", "x", "--train.compile", "--compare"])
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"version": "0", "created": 1.0, "config": config.to_dict()}))
    again = parse(["--config", str(file)])
    assert again == replace(config, name=None)


def test_config_round_trip() -> None:
    config = parse(["--clusters.top-k", "5", "10", "--name", "x", "--train.audit"])
    assert from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match="surprise"):
        from_dict(config.to_dict() | {"surprise": 1})


def test_lists_with_commas() -> None:
    wanted = parse(["--clusters.kind", "kmeans", "--clusters.k", "100", "1000"])
    assert wanted.clusters.k == (100, 1000)
    for words in (["--clusters.k", "100,1000"], ["--clusters.k=100,1000"]):
        assert parse(["--clusters.kind", "kmeans", *words]) == wanted
    assert parse(["--clusters.separator", ","]).clusters.separator == ","  # takes one value


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--train.epoch", "3"], ["--train.epoch", "did you mean --train.epochs?"]),
        (["--epochs", "3"], ["did you mean --train.epochs?"]),
        (["--train.epochs", "many"], ["--train.epochs", "many"]),
        (["--train.epochs", "0"], ["train.epochs starts at 1"]),
        (["--scale.workers", "4:2"], ["MIN is larger than MAX"]),
        (["--scale.workers", "two"], ["scale.workers is N, MIN:MAX or auto"]),
        (["--loss.estimator", "simclr"], ["loss.estimator", "simclr", "paper", "supcon"]),
        (["--loss.temperature", "0"], ["loss.temperature", "above 0"]),
        (["--method", "simcrl"], ["method 'simcrl' is none of", "did you mean simclr?"]),
        (
            ["--method", "simclr", "--clusters.kind", "attributes"],
            ["method simclr has clusters of kind instance, but clusters.kind is attributes"],
        ),
        (
            ["--method", "cmc", "--clusters.from", "clusters.csv"],
            ["method cmc has clusters of kind instance, but clusters.kind is table"],
        ),
        (["--method", "supcon"], ["method supcon needs --data.label"]),
        (["--method", "cross-entropy"], ["method cross-entropy needs --data.label"]),
        (
            ["--method", "pcl", "--clusters.features", "metadata"],
            ["method pcl clusters the encoder's features, not metadata"],
        ),
        (
            ["--method", "swav", "--clusters.k", "2", "8"],
            ["method swav has one set of prototypes, but clusters.k has 2 numbers"],
        ),
        (
            ["--method", "swav", "--loss.instance-weight", "1"],
            ["loss.instance-weight has no effect on method swav; it is for cl-infonce"],
        ),
        (
            ["--method", "cmc", "--loss.positives", "graded"],
            ["loss.positives has no effect on method cmc"],
        ),
        (
            ["--loss.positives", "graded", "--loss.estimator", "paper"],
            ["loss.positives graded needs --loss.estimator supcon"],
        ),
        (["--loss.positives", "graded", "--loss.level-weights", "1"], ["graded has no levels"]),
        (["--loss.level-weights", "1", "-1"], ["loss.level-weights 1.0 -1.0 must not be negative"]),
        (["--loss.level-weights", "0", "0"], ["loss.level-weights 0.0 0.0", "nor all 0"]),
        (
            ["--clusters.kind", "kmeans", "--clusters.k", "4", "--loss.level-weights", "1", "2"],
            ["loss.level-weights has 2 number(s), but clusters.k 1"],
        ),
        (
            ["--clusters.kind", "kmeans", "--clusters.k", "4", "9", "--loss.negatives", "siblings"],
            ["siblings needs --clusters.nested"],
        ),
        (["--config"], ["--config needs the name"]),
        (["--config", "/no/such.yaml"], ["/no/such.yaml", "No such file"]),
    ],
)
def test_errors(argv: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    message = fails(argv, capsys)
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--loss.temperature", "0"], "loss.temperature is 0"),
        (["--confirm", "-1"], "confirm is -1"),
        (["--train.lr", "abc"], "--train.lr is 'abc'; it takes a number"),
        (["--train.epochs=2.5"], "--train.epochs is '2.5'; it takes a whole number"),
        (["--clusters.k", "10,ten"], "--clusters.k is '10,ten'; it takes a whole number"),
        (["--data.keep", "row"], "--data.keep is 'row'; it takes one of auto, raw,"),
        (["--model.drop-path", "much"], "--model.drop-path is 'much'; it takes a number"),
        (["--name"], "--name needs a value"),
        (["--name", "a", "b"], "--name takes one value, not a b"),
        (["--train.compile", "yes"], "--train.compile takes no value, not 'yes'"),
        (["--clusters.k", ""], "--clusters.k is ''; it takes numbers"),
        (["--clusters.types", "-a"], "clusters.types '-a' is not COLUMN=TYPE"),
        (["--data.encoding", "foo"], "data.encoding 'foo' is not known"),
        (["--config", "a.yaml", "b.yaml"], "--config needs the name of one YAML file"),
        (["--train.no-epochs"], "unknown option --train.no-epochs"),
        (["data", "--name", "a"], "unexpected 'data'; options begin with --"),
        (["--search", "train.lr=1"], "--search needs a key: --search.KEY VALUE"),
    ],
)
def test_a_wrong_value_is_one_line(
    words: list[str], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(words, SearchConfig)
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"error: {error}")
    assert printed.err.count("\n") == 1
    assert not printed.out


@pytest.mark.parametrize("script", ["embed", "evaluate"])
def test_an_option_that_a_job_needs(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse([], job_class(script)[0])
    assert capsys.readouterr().err == "error: --run is missing; --help explains it\n"


def test_kind_of_clusters_of_a_method(tmp_path: Path) -> None:
    """It is set, may be given, and is stored."""
    label = ["--data.label", "x"]
    for method, kind in (
        ("cl-infonce", "attributes"),
        ("simclr", "instance"),
        ("supcon", "label"),
        ("pcl", "kmeans"),
    ):
        config: Config = parse(["--method", method, *label])
        assert config.clusters.kind == kind
        assert parse(["--method", method, "--clusters.kind", kind, *label]) == config
        assert from_dict(config.to_dict()) == config
        file = tmp_path / f"{method}.yaml"
        file.write_text(to_yaml(config))
        assert parse(["--config", str(file)]) == config
        search = parse(["--method", method, *label], cls=SearchConfig)
        assert search.of_trial({"loss.temperature": 0.1}).method == method


def test_unknown_yaml_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("train: {epoch: 3}")
    message = fails(["--config", str(file)], capsys)
    assert "unknown key 'train.epoch'; did you mean train.epochs?" in message
    file.write_text("train: [")
    assert "not valid YAML" in fails(["--config", str(file)], capsys)
    file.write_text("- 1\n- 2")
    assert "expected keys and values" in fails(["--config", str(file)], capsys)


def test_help_documents_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(["--name", "-h", "foo"])  # --help, whatever stands beside it
    assert caught.value.code == 0
    text = capsys.readouterr().out
    missing = [key for key in keys(Config) if f"--{key}" not in text]
    assert not missing
    assert "helptext" not in text


# Texts that YAML 1.1 takes for something else
ODD = (
    "1:4", "no", "Off", "yes", "true", "2020-01-01", "1e-3", "010", "0x1F", "1_000", "1.10", "007",
    ".5", "-1", "12", "nan", ".inf", "=", "<<", "é", "a b", "1,2",
)  # fmt: skip
QUOTED = ("null", "~", "", "a: b", "#x", "[a]", "--x", "{", "\t", "'", "*a", "%", "\U0001f426")
JOBS = ("pretrain", "tune", "cluster", "embed", "evaluate")


def job_class(script: str) -> tuple[Any, tuple[str, ...]]:
    """The configuration class of a script in ``jobs/``, and the options that it demands."""
    path = Path(__file__).parent.parent / "jobs" / f"{script}.py"
    spec = importlib.util.spec_from_file_location(f"job_{script}", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[f"job_{script}"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    names = {"tune": "SearchConfig", "cluster": "ClusterJob", "embed": "EmbedJob"}
    names |= {"evaluate": "EvaluateJob", "pretrain": "Config"}
    cls = getattr(module, names[script])
    needed = {"embed": ("run", "out"), "evaluate": ("run",)}.get(script, ())
    return cls, needed


def flag_of(key: str, kind: Any, text: str) -> Flag | None:
    """The flag of a value, None for texts that a switch does not take."""
    if kind is bool:
        head, dot, last = key.rpartition(".")
        flags = {"true": Flag(key), "yes": Flag(key)}
        flags |= dict.fromkeys(("no", "Off"), Flag(f"{head}{dot}no-{last}"))
        return flags.get(text)
    return Flag(key, (text,))


def in_yaml(values: dict[str, str], kinds: dict[str, Any]) -> str:
    """Options in nested sections; lists of one, over several lines."""
    tree: dict[str, dict[str, str]] = {}
    for key, spelling in values.items():
        head, _, last = key.rpartition(".")
        listed = f"\n    - {spelling}" if get_origin(kinds[key]) is tuple else f" {spelling}"
        tree.setdefault(head, {})[last] = listed
    lines = []
    for head, inner in tree.items():
        lines += [f"{head}:"] if head else []
        lines += [f"{'  ' if head else ''}{last}:{text}" for last, text in inner.items()]
    return "\n".join(lines) + "\n"


@pytest.mark.slow
@pytest.mark.parametrize("script", JOBS)
def test_every_option_means_the_same_in_yaml(script: str, tmp_path: Path) -> None:
    """Quoted or not, a value is the text that the command line would take."""
    cls, needed = job_class(script)
    kinds = {key: kind for key, kind in keys(cls).items() if key not in open_sections(cls)}
    if script in ("tune", "cluster"):  # what they share with the others is tried once
        kinds = {key: kind for key, kind in kinds.items() if key not in keys(Config)}
    file = tmp_path / "run.yaml"
    valued = {key: kind for key, kind in kinds.items() if kind is not bool}
    for text in (*ODD, *QUOTED):
        quoted = json.dumps(text, ensure_ascii=False)
        for spelling in {quoted, text if text in ODD else quoted}:
            file.write_text(in_yaml(dict.fromkeys(valued, spelling), kinds))
            wanted = [flag_of(key, kind, text) for key, kind in valued.items()]
            assert sorted(map(repr, read_yaml(str(file), cls))) == sorted(map(repr, wanted))
        for key in kinds.keys() - valued.keys():
            file.write_text(in_yaml({key: text if text in ODD else quoted}, kinds))
            if (flag := flag_of(key, bool, text)) is not None:
                assert read_yaml(str(file), cls) == [flag]
            else:
                with pytest.raises(ValueError, match="is true or false, not"):
                    read_yaml(str(file), cls)
        if text not in ("1:4", "no", "1.10", "007", "2020-01-01", "null", "a: b"):
            continue
        # all that take any text, through the parser
        checked = ("scale.workers", "data.encoding", "clusters.from", "clusters.types", "plugins")
        checked += tuple(REGISTRIES)
        free = [
            k for k, kind in valued.items() if str in (kind, *get_args(kind)) and k not in checked
        ]
        flags = to_words([Flag(key, (text,)) for key in free], cls)
        file.write_text(in_yaml(dict.fromkeys(free, text if text in ODD else quoted), kinds))
        base = [f"--{key}=x" for key in needed if key not in free]
        config = parse([*base, "--config", str(file)], cls=cls)
        assert config == parse([*base, *flags], cls=cls)


def test_texts_in_yaml_that_look_like_flags_or_no_value(tmp_path: Path) -> None:
    def read(text: str) -> Config:
        (tmp_path / "a.yaml").write_text(text)
        return parse(["--config", str(tmp_path / "a.yaml")])

    assert read("clusters: {columns: [--a, b, -c]}").clusters.columns == ("--a", "b", "-c")
    assert read("clusters: {columns: --a}").clusters.columns == ("--a",)
    assert read("data: {label: --a}").data.label == "--a"
    assert read("data: {label: 'None'}").data.label == "None"
    assert read("data: {label: None}").data.label is None
    assert read("clusters: {columns: [None, 'None']}").clusters.columns == ("None", "None")
    config = replace(Config(), data=DataConfig(path="x", label="None"))
    stored = {"version": "1", "config": dataclasses.asdict(config)}
    assert read(json.dumps(stored)).data.label == "None"  # of a run folder


def test_no_value_in_yaml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Options that may have none take it, the others say so."""
    file = tmp_path / "run.yaml"
    for text in ("null", "~", "", "Null"):
        file.write_text(f"data: {{label: species}}\nname: {text}\n")
        assert parse(["--config", str(file)]) == parse(["--data.label", "species"])
        file.write_text(f"train:\n  epochs: {text}\n")
        assert "train.epochs has no value" in fails(["--config", str(file)], capsys)
    file.write_text("train: {compile: [false]}")
    assert "train.compile takes one value, not a list" in fails(["--config", str(file)], capsys)
    file.write_text("search: train.lr=1")
    with pytest.raises(SystemExit):
        parse(["--config", str(file)], SearchConfig)
    assert "search is a section of options" in capsys.readouterr().err
    file.write_text("search: {train.lr: [1, [2]]}")
    assert parse(["--config", str(file)], SearchConfig).search == ("train.lr=1,['2']",)
    file.write_text("search: {train.lr: null}")
    with pytest.raises(SystemExit):
        parse(["--config", str(file)], SearchConfig)
    assert "search.train.lr has no value" in capsys.readouterr().err
    file.write_text("train: {compile: maybe}")
    assert "train.compile is true or false, not 'maybe'" in fails(["--config", str(file)], capsys)
    file.write_text("both: &both {lr: 1e-2}\ntrain: {<<: *both, epochs: 3}\n")
    assert "unknown key 'both.lr'" in fails(["--config", str(file)], capsys)
    file.write_bytes(b"name: caf\xe9\n")
    assert f"--config {file} is not valid YAML" in fails(["--config", str(file)], capsys)


def test_spaces_of_a_search_in_yaml(tmp_path: Path) -> None:
    file = tmp_path / "search.yaml"
    file.write_text(
        "search:\n  train.lr: loguniform:1e-4:1e-2\n  train.compile: [on, no]\n"
        "  loss: {temperature: [0.10, 1e-1]}\n  clusters.top-k: 5+20,010\n"
    )
    words = ["--search.train.lr", "loguniform:1e-4:1e-2", "--search.train.compile", "on,no"]
    words += ["--search.loss.temperature", "0.10,1e-1", "--search.clusters.top-k", "5+20,010"]
    config = parse(["--config", str(file)], cls=SearchConfig)
    assert config == parse(words, cls=SearchConfig)
    assert given_dimensions(config.search)["train.compile"].values == (True, False)
    stored = tmp_path / "config.json"
    stored.write_text(json.dumps({"version": "0", "created": 1.0, "config": config.to_dict()}))
    assert parse(["--config", str(stored)], cls=SearchConfig) == config


@pytest.mark.parametrize("text", [*ODD, "null", "~", "a: b", "#x", "[a]", "\U0001f426", "'"])
def test_best_of_a_search_is_read_as_it_was_written(text: str, tmp_path: Path) -> None:
    config = Config(
        data=DataConfig(path=text, label=text, id=text),
        clusters=ClustersConfig(separator=text, columns=(text, "b")),
        train=TrainConfig(lr=1e-05, compile=True, sync_bn=False),
        storage=text,
    )
    for name, content in (
        ("best.yaml", to_yaml(config, always=("data.eval-path", "loss.temperature", "compare"))),
        ("config.json", json.dumps({"version": "0", "config": config.to_dict()})),
    ):
        (tmp_path / name).write_text(content)
        assert parse(["--config", str(tmp_path / name)]) == config


def test_a_key_that_stands_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.yaml"
    for text in ("train: {epochs: 2, epochs: 3}", '{"train": {"epochs": 2, "epochs": 3}}'):
        file.write_text(text)
        assert "'epochs' occurs twice" in fails(["--config", str(file)], capsys)


def test_a_section_without_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("train: [a, b]")
    assert "train is a section of options" in fails(["--config", str(file)], capsys)


def test_old_names_of_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Options that were renamed are taken under their old name, on the command line, in files and
    from stored runs, with a warning that names the new one."""
    flags = ["--data.group=unit", "--clusters.group", "4", "--augment.grey", "0.1"]
    flags += ["--augment.solarise=0.3", "--data.keep", "anew", "--clusters.missing=alone"]
    today = Config(
        data=DataConfig(split_by="unit", keep="streaming"),
        clusters=ClustersConfig(samples_per_cluster=4),
        augment=AugmentConfig(grayscale=0.1, solarize=0.3),
    )
    assert parse(flags) == today
    assert "--data.group is now called --data.split-by" in capsys.readouterr().out
    file = tmp_path / "old.yaml"
    file.write_text(
        "data: {group: unit, keep: anew}\nclusters: {group: 4, missing: alone}\n"
        "augment: {grey: 0.1, solarise: 0.3}\n"
    )
    assert parse(["--config", str(file)]) == today
    assert (
        "--clusters.group is now called --clusters.samples-per-cluster" in capsys.readouterr().out
    )
    folder = Folder(f"{tmp_path}/run")
    options = today.to_dict()
    options["data"] |= {"group": options["data"].pop("split_by"), "keep": "anew"}
    options["clusters"]["group"] = options["clusters"].pop("samples_per_cluster")
    options["augment"]["grey"] = options["augment"].pop("grayscale")
    folder.write("config.json", json.dumps({"version": "0.2.0", "config": options}).encode())
    stored = read_stored(folder)
    assert not stored.ignored
    assert stored.config(Config) == today


def test_options_that_are_gone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are errors that say what there is instead. A stored run that had them at the value that
    still holds is the same; other values are named as left out."""
    for option, (words, _) in REMOVED.items():
        assert words in fails([f"--{option}", "1"], capsys)
    options = Config().to_dict()
    options["train"]["momentum"] = 0.9
    folder = Folder(f"{tmp_path}/run")

    def stored(**jitter: float) -> tuple[tuple[str, ...], float]:
        tree = options | {"augment": options["augment"] | jitter}
        folder.write("config.json", json.dumps({"version": "0.3.0", "config": tree}).encode())
        content = read_stored(folder)
        return content.ignored, content.config(Config).augment.jitter_strength

    assert stored() == ((), 0.5)
    assert stored(brightness=0.6, contrast=0.6, saturation=0.6, hue=0.15) == ((), 0.75)
    one_sided = {"brightness": 0.4, "contrast": 0.0, "saturation": 0.4, "hue": 0.1}
    assert stored(**one_sided) == (tuple(f"augment.{name}" for name in one_sided), 0.5)
    with pytest.raises(UserError, match=r"search.augment.hue: this option is gone; use --augment"):
        given_dimensions(["augment.hue=0.1,0.2"])
    stored(brightness=0.6, contrast=0.6, saturation=0.6, hue=0.15)
    capsys.readouterr()
    assert parse(["--config", f"{tmp_path}/run/config.json"]).augment.jitter_strength == 0.75
    assert "left out" not in capsys.readouterr().out


def test_old_names_of_metrics(tmp_path: Path) -> None:
    """A run that an older version began is continued with rows under today's names."""
    folder = Folder(str(tmp_path))
    row = {"epoch": 0, "lonely": 0.1, "wait": 0.2, "left_seconds": 3.0}
    folder.write("metrics.jsonl", (json.dumps(row) + "\n").encode())
    assert MetricsLog(folder).rows == [
        {"epoch": 0, "anchors_without_positive": 0.1, "data_wait": 0.2, "eta_seconds": 3.0}
    ]


@pytest.mark.parametrize("value", ["!!set {a, b}", "!!binary aGFsbG8=", "!!omap [a: 1]"])
def test_yaml_types_that_no_option_has_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    (tmp_path / "c.yaml").write_text(f"clusters: {{columns: {value}}}")
    with pytest.raises(SystemExit):
        parse(["--config", str(tmp_path / "c.yaml")])
    assert f"{value.split()[0]} is not a value of an option" in capsys.readouterr().err
