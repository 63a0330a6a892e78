"""kNN, probe and geometry against naive references; embedding on a real Ray."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import png, write_parquet

from wcl_ray.config import DataConfig, EvaluateConfig, ModelConfig
from wcl_ray.data.augment import centre
from wcl_ray.data.decode import decode_batch
from wcl_ray.data.sources import open_source
from wcl_ray.data.sources.base import FAULT, ID, KEY
from wcl_ray.errors import UserError, find_user_error
from wcl_ray.evaluate import knn, probe, retrieval
from wcl_ray.evaluate.embed import (
    DISTANCE,
    TEST,
    embed,
    feature_tensor,
    resources,
)
from wcl_ray.evaluate.few_shot import draw_shots, few_shot_probe
from wcl_ray.evaluate.geometry import distances, feature_std, rank_me, uniformity
from wcl_ray.evaluate.knn import knn_accuracy, nearest
from wcl_ray.evaluate.left_out import left_out
from wcl_ray.evaluate.metrics import evaluate_features
from wcl_ray.evaluate.probe import (
    STRENGTHS,
    TOLERANCE,
    fit,
    linear_probe,
    loss_and_gradient,
    predict,
    split,
)
from wcl_ray.evaluate.retrieval import chance_recall, mean_average_precision, recall_at
from wcl_ray.evaluate.run import (
    _readable,
    evaluate_encoder,
    results_table,
    retrieval_table,
)
from wcl_ray.model.encoder import EncoderSpec, build_encoder


def blobs(n: int, seed: int, noise: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 4
    return F.one_hot(y, 6).float() + noise * torch.randn(n, 6, generator=generator), y


def test_knn_against_a_loop() -> None:
    train_x, train_y = blobs(60, 0, 0.6)
    test_x, test_y = blobs(25, 1, 0.6)
    right = 0
    for x, y in zip(test_x, test_y, strict=True):
        scores = [float(F.cosine_similarity(x, t, dim=0)) for t in train_x]
        nearest = sorted(range(60), key=lambda i: -scores[i])[:7]
        votes = [0.0] * 4
        for i in nearest:
            votes[int(train_y[i])] += math.exp(scores[i] / 0.07)
        right += votes.index(max(votes)) == int(y)
    assert knn_accuracy(train_x, train_y, test_x, test_y, 7) == right / 25
    assert 0.5 < right / 25 < 1


def test_neighbours_are_the_same_in_chunks_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    (x, y), (queries, truth) = blobs(300, 0, 0.6), blobs(75, 1, 0.6)
    whole = F.normalize(queries, dim=1) @ F.normalize(x, dim=1).T
    accuracy = knn_accuracy(x, y, queries, truth, 9)
    monkeypatch.setattr(knn, "BANK", 7)  # fewer than there are neighbours
    monkeypatch.setattr(knn, "QUERIES", 20)
    similarity, index = nearest(x, queries, 9)
    assert torch.allclose(similarity, whole.topk(9)[0], atol=1e-6)
    assert torch.equal(whole.gather(1, index), whole.topk(9)[0])
    assert knn_accuracy(x, y, queries, truth, 9) == accuracy
    assert nearest(x[:5], queries, 9)[1].shape == (75, 5)


def test_classes_never_seen_are_wrong() -> None:
    train_x, train_y = blobs(40, 0, 0.1)
    test_x, test_y = blobs(20, 1, 0.1)
    test_y[:5] = -1
    assert knn_accuracy(train_x, train_y, test_x, test_y, 5) == 0.75
    assert linear_probe(train_x, train_y, test_x, test_y, 0).accuracy == 0.75


def test_probe_separates_and_chooses_without_the_test_set() -> None:
    train_x, train_y = blobs(400, 0, 0.5)
    test_x, test_y = blobs(200, 1, 0.5)
    good = linear_probe(train_x, train_y, test_x, test_y, 0)
    assert good.accuracy > 0.75
    assert good.mean_class_accuracy == pytest.approx(good.accuracy, abs=0.05)
    assert good.strength in STRENGTHS
    nonsense = linear_probe(train_x, train_y, test_x, test_y.flip(0), 0)
    assert nonsense.strength == good.strength  # the test labels had no say
    assert nonsense.validation == good.validation
    assert nonsense.accuracy < good.accuracy


def test_probe_is_the_same_solver_for_any_number_of_rows() -> None:
    """Every row three times is the same problem, and has the same answer."""
    x, y = blobs(8000, 0, 0.8)
    zero = torch.zeros(7, 4)
    tolerance = TOLERANCE * float(loss_and_gradient(x, y, zero, 0.0)[1].abs().max())
    few, steps = fit(x, y, zero, 1e-4, tolerance)
    many, more = fit(x.repeat(3, 1), y.repeat(3), zero, 1e-4, tolerance)
    assert steps == more < 100
    assert torch.allclose(few, many, atol=2e-3)
    tight, _ = fit(x, y, zero, 1e-4, tolerance / 1000)
    assert (predict(x, many) == predict(x, tight)).float().mean() > 0.998


PROBE = """
import sys, torch
from wcl_ray.evaluate.probe import linear_probe
x, y = torch.randn(80, 4), torch.arange(80) % 2
linear_probe(x, y, x, y, 0, 2)
assert "torch._dynamo" not in sys.modules
"""


@pytest.mark.slow
def test_the_probe_does_not_import_the_compiler() -> None:
    """torch.optim does, which would add 1.5 s to each process that fits a probe."""
    subprocess.run([sys.executable, "-c", PROBE], check=True)


def test_gradient_of_the_probe_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = blobs(500, 0)
    weight = torch.randn(7, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    expected = F.cross_entropy(x @ weight[:-1] + weight[-1], y)
    expected = expected + 0.5 * 0.3 * weight[:-1].square().sum()
    expected.backward()
    monkeypatch.setattr(probe, "CHUNK", 1000)
    largest = 0
    for _, part in probe._chunks(x, weight.detach()):
        largest = max(largest, len(part))
    assert largest * (7 + 4) <= 1000
    value, gradient = loss_and_gradient(x, y, weight.detach(), 0.3)
    assert value == pytest.approx(float(expected.detach()), rel=1e-5)
    assert weight.grad is not None
    assert torch.allclose(gradient, weight.grad, atol=1e-5)
    mean, std = probe.feature_scale(x)
    assert torch.allclose(mean, x.mean(0), atol=1e-6)
    assert torch.allclose(std, x.std(0, correction=0), atol=1e-6)


def test_a_probe_that_has_not_converged_says_so() -> None:
    train_x, train_y = blobs(400, 0, 0.5)
    found = linear_probe(train_x, train_y, train_x, train_y, 0, cap=2)
    assert found.capped == 6
    assert linear_probe(train_x, train_y, train_x, train_y, 0).capped == 0
    assert "6 of its 6 fits had not converged" in left_out({"probe_capped": found.capped})[0]


def test_features_are_copied_once_and_sorted() -> None:
    rng = np.random.default_rng(0)
    ids, x = rng.permutation(60), rng.standard_normal((60, 3), dtype=np.float32)
    bad, side = ids % 7 == 0, ids % 2 == 0
    flat = pa.array(x.reshape(-1))
    whole = pa.table(
        {
            ID: ids,
            KEY: pa.array([f"k{i}" for i in ids]),
            FAULT: pa.array(["cut off" if b else None for b in bad], pa.string()),
            TEST: side,
            "feature": pa.FixedSizeListArray.from_arrays(flat, 3, mask=pa.array(bad)),
        }
    )
    parts = [whole.slice(start, 17) for start in range(0, 60, 17)]
    table, unreadable = _readable(parts, True)
    wanted = np.sort(ids[side & ~bad])
    assert np.array_equal(table[ID].to_numpy(), wanted)
    assert np.array_equal(feature_tensor(table["feature"]).numpy(), x[np.argsort(ids)][wanted])
    assert unreadable == {"count": 5, "first": [f"k{i}: cut off" for i in range(0, 57, 14)]}
    tensor = feature_tensor(table["feature"])
    assert tensor.data_ptr() == table["feature"].chunk(0).flatten().buffers()[1].address


def test_probe_chooses_a_strong_penalty_where_features_are_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    train_x, test_x = torch.randn(2, 200, 150, generator=generator)
    y = torch.arange(200) % 2
    train_x[:, 0] += 1.5 * y
    test_x[:, 0] += 1.5 * y
    found = linear_probe(train_x, y, test_x, y, 0)
    assert found.strength >= 1e-2
    assert found.accuracy > 0.55


@settings(max_examples=60)
@given(st.lists(st.integers(0, 6), min_size=2, max_size=80), st.integers(0, 3))
def test_split_takes_a_fifth_of_every_class(labels: list[int], seed: int) -> None:
    y = torch.tensor(labels)
    used, held = split(y, seed)
    assert sorted([*used.tolist(), *held.tolist()]) == list(range(len(y)))
    assert len(used)
    assert len(held)
    for c in range(7):
        count, out = labels.count(c), int((y[held] == c).sum())
        assert abs(out - count / 5) <= 1
        if max(map(labels.count, labels)) > 1:
            assert count == 0 or out < count  # every class is still fitted on


def test_split_needs_two_rows() -> None:
    with pytest.raises(ValueError, match="at least 2 labelled images, not 1"):
        split(torch.tensor([0]), 0)


def test_probe_is_not_thrown_by_a_feature_that_was_constant_in_training() -> None:
    (train_x, train_y), (test_x, test_y) = blobs(400, 0, 0.8), blobs(400, 1, 0.8)
    dead = torch.full((400, 1), 0.1)
    moving = dead.clone()
    moving[::2] = 0.35
    plain = linear_probe(train_x, train_y, test_x, test_y, 0)
    with_dead = linear_probe(
        torch.cat([train_x, dead], 1), train_y, torch.cat([test_x, moving], 1), test_y, 0
    )
    assert with_dead.accuracy == pytest.approx(plain.accuracy, abs=0.006)


def test_rank_me() -> None:
    q = torch.linalg.qr(torch.randn(200, 8, generator=torch.Generator().manual_seed(0)))[0]
    assert rank_me(q) == pytest.approx(8, rel=0.01)
    assert rank_me(torch.ones(50, 8)) == pytest.approx(1, abs=0.01)
    assert rank_me(torch.zeros(50, 8)) == pytest.approx(1, abs=0.01)  # collapsed, not nan


def test_spread_figures_do_not_hang_on_the_order_of_the_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = 2 * torch.randn(6, 1, 16, generator=generator)
    x = (centres + 0.5 * torch.randn(6, 2000, 16, generator=generator)).reshape(-1, 16)
    mixed = x[torch.randperm(len(x), generator=generator)]
    assert uniformity(x) == pytest.approx(uniformity(mixed), abs=0.1)
    assert rank_me(x) == pytest.approx(rank_me(mixed), rel=0.02)
    assert feature_std(x) == pytest.approx(feature_std(mixed), rel=0.02)


def test_uniformity_distances_feature_std() -> None:
    x = F.normalize(torch.randn(300, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    pairs = [float((x[i] - x[j]).square().sum()) for i in range(40) for j in range(i)]
    expected = math.log(sum(math.exp(-2 * d) for d in pairs) / len(pairs))
    assert uniformity(x[:40]) == pytest.approx(expected, rel=1e-4)
    assert uniformity(torch.ones(30, 4)) == pytest.approx(0, abs=1e-4)
    assert float(distances(x, x).mean()) == pytest.approx(0, abs=1e-6)
    assert float(distances(x, -x).mean()) == pytest.approx(4, rel=1e-5)
    assert feature_std(x) == pytest.approx(1, abs=0.05)
    assert feature_std(torch.ones(30, 4)) == pytest.approx(0, abs=1e-5)


def features(n: int, seed: int, label: bool = True) -> pa.Table:
    x, y = blobs(n, seed)
    flat = pa.FixedSizeListArray.from_arrays(pa.array(x.flatten().numpy()), 6)
    names = [None if i == 3 else f"c{v}" for i, v in enumerate(y.tolist())]
    return pa.table({"feature": flat} | ({"label": names} if label else {}))


def test_all_figures_at_once() -> None:
    found = evaluate_features(features(80, 0), features(40, 1), "label", EvaluateConfig(), 0)
    assert found["knn"] > 0.9
    assert found["probe"] > 0.9
    assert found["classes"] == 4
    assert found["unseen"] == 0
    assert 1 <= found["rank_me"] <= 6
    bare = evaluate_features(features(80, 0, label=False), None, None, EvaluateConfig(), 0)
    assert "knn" not in bare
    assert "uniformity" in bare
    text = results_table({"a": found, "b": bare})
    assert "kNN" in text
    assert len(text.splitlines()) == 4


def test_wrong_input_is_named() -> None:
    train, test = features(80, 0), features(40, 1)
    unlabelled = test.set_column(1, "label", pa.nulls(40, pa.string()))
    with pytest.raises(UserError, match="'label' has no value among the test images"):
        evaluate_features(train, unlabelled, "label", EvaluateConfig(), 0)
    values = feature_tensor(train["feature"]).numpy().copy()
    values[5, 2] = np.nan
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), 6)
    with pytest.raises(UserError, match="not finite"):
        evaluate_features(train.set_column(0, "feature", column), None, None, EvaluateConfig(), 0)


@pytest.mark.usefixtures("ray_local")
def test_embedding_is_that_of_the_centre_crops(tmp_path: Path) -> None:
    images = [png(i) if i != 7 else b"no image" for i in range(96)]
    folder = write_parquet(tmp_path, image=pa.array(images, pa.binary()))
    model = ModelConfig()
    encoder = build_encoder(model, 16).eval()
    weights = EncoderSpec(model, 16).export(encoder)
    rows = open_source(DataConfig(path=folder)).images(["species"])
    table = pa.concat_tables(
        __import__("ray").get(
            embed(
                rows, weights, store_size=16, columns=("species",), batch_size=20, views=True
            ).to_arrow_refs()
        )
    ).sort_by(ID)
    assert [i for i, fault in enumerate(table[FAULT].to_pylist()) if fault] == [7]
    assert table["feature"].null_count == 1
    good = table.filter(table[FAULT].is_null())
    decoded = decode_batch([image for i, image in enumerate(images) if i != 7], 16)
    with torch.no_grad():
        expected = encoder.features(centre(*decoded.tensors(), 16)).numpy()
    assert np.allclose(feature_tensor(good["feature"]).numpy(), expected, atol=1e-4)
    assert table[DISTANCE].null_count == 1
    assert 0 < np.mean(good[DISTANCE].to_numpy()) < 2  # of a random view
    assert good["species"].to_pylist()[:3] == ["s0", "s1", "s2"]


@pytest.mark.usefixtures("ray_local")
def test_one_class_is_an_error(tmp_path: Path) -> None:
    folder = write_parquet(tmp_path, species=["only"] * 96)
    model = ModelConfig()
    weights = EncoderSpec(model, 16).export(build_encoder(model, 16))
    source = open_source(DataConfig(path=folder))
    with pytest.raises(Exception, match="only one class") as caught:
        evaluate_encoder(
            weights, source.images(["species"]), source.images(["species"]), label="species",
            store_size=16, config=EvaluateConfig(), seed=0, gpu=False,
        )  # fmt: skip
    assert isinstance(find_user_error(caught.value), UserError)


@pytest.mark.parametrize("cpus", [1.0, 4.0, 16.0])
@pytest.mark.parametrize("gpus", [0, 1, 4])
def test_actors_on_gpus_leave_cpus_to_readers(
    gpus: int, cpus: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"Alive": True, "Resources": {"CPU": cpus, "GPU": float(gpus)}}
    other = {"Alive": True, "Resources": {"CPU": 64.0}}  # whose CPUs no actor on a GPU can have
    monkeypatch.setattr("ray.nodes", lambda: [other, own])
    found = resources(gpus)
    assert found["gpu"] == bool(gpus)
    assert found["cpus"] >= 1
    if gpus:
        assert found["actors"] == gpus
        assert gpus * found["cpus"] <= max(gpus, cpus / 2)


def test_recall_and_average_precision() -> None:
    """Against their definitions, query by query."""
    (train_x, train_y), (test_x, test_y) = blobs(90, 0, 1.5), blobs(40, 1, 1.5)
    test_y[:4] = -1
    _, index = nearest(train_x, test_x, 10)
    precisions, hits = [], {1: 0, 5: 0, 10: 0}
    similarity = F.normalize(test_x, dim=1) @ F.normalize(train_x, dim=1).T
    for row, y in zip(similarity, test_y.tolist(), strict=True):
        ranked = (train_y[row.argsort(descending=True)] == y).tolist()
        at = [sum(ranked[: i + 1]) / (i + 1) for i, hit in enumerate(ranked) if hit]
        precisions.append(sum(at) / len(at) if at else 0.0)
        for k in hits:
            hits[k] += any(ranked[:k])
    for k, count in hits.items():
        assert recall_at(k, index, train_y, test_y) == pytest.approx(count / 40)
    expected = sum(precisions) / 40
    assert 0.1 < expected < 0.9
    sides = train_x, train_y, test_x, test_y
    assert mean_average_precision(*sides, 0) == pytest.approx(expected, abs=1e-5)


def test_average_precision_of_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    sides = (*blobs(200, 0, 0.6), *blobs(400, 1, 0.6))
    whole = mean_average_precision(*sides, 0)
    monkeypatch.setattr(retrieval, "CHUNK", 1000)  # five queries at a time
    assert mean_average_precision(*sides, 0) == pytest.approx(whole, abs=1e-5)
    monkeypatch.setattr(retrieval, "MOST_QUERIES", 100)
    parts = [mean_average_precision(*sides, seed) for seed in (0, 1)]
    assert parts[0] != parts[1]
    assert parts == pytest.approx([whole, whole], abs=0.1)


def test_few_shot_probes() -> None:
    sides = (*blobs(400, 0, 0.7), *blobs(300, 1, 0.7))
    one, five, ten = (few_shot_probe(n, *sides, seed=0) for n in (1, 5, 10))
    assert 0.3 < one.mean < five.mean <= ten.mean + 0.02
    assert min(one.std, five.std, ten.std) > 0
    assert one == few_shot_probe(1, *sides, seed=0) != few_shot_probe(1, *sides, seed=7)
    sides[3][:150] = -1  # never right
    assert few_shot_probe(10, *sides, seed=0).mean < 0.55
    y = torch.tensor([2, 0, 2, 2, 0, 3, 2])  # class 1 has no image
    rows = draw_shots(y, 2, seed=1)
    assert y[rows].tolist() == [0, 0, 2, 2, 3]
    assert len(set(rows.tolist())) == 5
    drawn = {i for seed in range(20) for i in draw_shots(y, 2, seed).tolist()}
    assert drawn == set(range(7))


@pytest.mark.parametrize("k", [1, 3, 40])
def test_recall_of_random_features_is_that_of_chance(k: int) -> None:
    generator = torch.Generator().manual_seed(k)
    train_y = torch.tensor([0] * 30 + [1] * 8 + [2] * 2)
    test_y = torch.tensor([0, 1, 2, 2, -1])
    draws = [
        recall_at(k, torch.randperm(40, generator=generator).expand(5, -1), train_y, test_y)
        for _ in range(4000)
    ]
    assert chance_recall(k, train_y, test_y) == pytest.approx(np.mean(draws), abs=0.02)


def test_extended_figures() -> None:
    train, test = features(80, 0), features(40, 1)
    found = evaluate_features(train, test, "label", EvaluateConfig(), 0, extended=True)
    plain = evaluate_features(train, test, "label", EvaluateConfig(), 0)
    assert plain.items() <= found.items()
    extra = found.keys() - plain.keys()
    assert extra == {"recall@1", "recall@5", "recall@10", "map", "few_shot", "chance"}
    text = retrieval_table(found)
    assert re.search(r"recall@10 +mAP +1-shot +5-shot +10-shot", text)
    assert f"{found['few_shot']['5']['mean']:.1%} ± " in text
