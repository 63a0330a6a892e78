"""Cl-InfoNCE against slow references written from the formulas, in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from wcl_ray.model import loss as loss_module
from wcl_ray.model.loss import cl_infonce
from wcl_ray.model.losses.paper import partners


def embeddings(b: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(2, b, 5, dtype=torch.float64, generator=generator)
    return z[0], z[1]


def whole(
    z1: torch.Tensor, z2: torch.Tensor, clusters: list[int], tau: float, estimator: str
) -> torch.Tensor:
    c = torch.tensor(clusters)[:, None]
    return cl_infonce(z1, z2, z1, z2, c, c, 0, tau, estimator).loss


def supcon_reference(z1: torch.Tensor, z2: torch.Tensor, clusters: list[int], tau: float) -> float:
    """Mean over 2B views of: mean over positives of -log p, denominator the other 2B - 1 views."""
    views = F.normalize(torch.cat([z1, z2]), dim=1).tolist()
    b = len(clusters)
    total = 0.0
    for i in range(2 * b):
        scores = {
            j: sum(p * q for p, q in zip(views[i], views[j], strict=True)) / tau
            for j in range(2 * b)
            if j != i
        }
        log_all = math.log(sum(math.exp(s) for s in scores.values()))
        mine = clusters[i % b]
        positives = [j for j in scores if j % b == i % b or (mine >= 0 and clusters[j % b] == mine)]
        total += sum(log_all - scores[j] for j in positives) / len(positives)
    return total / (2 * b)


def paper_reference(z1: torch.Tensor, z2: torch.Tensor, partner: list[int], tau: float) -> float:
    """log n - Cl-InfoNCE of the pairs (x_i, y_i), both ways round."""
    n = len(partner)
    x, y = F.normalize(z1, dim=1).tolist(), F.normalize(z2, dim=1).tolist()

    def bound(anchors: list[list[float]], pairs: list[list[float]]) -> float:
        total = 0.0
        for i in range(n):
            scores = [sum(p * q for p, q in zip(anchors[i], c, strict=True)) / tau for c in pairs]
            total += scores[i] - math.log(sum(math.exp(s) for s in scores) / n)
        return total / n

    forward = bound(x, [y[partner[i]] for i in range(n)])
    inverse = [partner.index(j) for j in range(n)]
    backward = bound(y, [x[inverse[j]] for j in range(n)])
    return math.log(n) - (forward + backward) / 2


patterns = st.lists(st.integers(-1, 3), min_size=2, max_size=9)


@settings(max_examples=40)
@given(patterns, st.sampled_from([0.1, 0.5, 1.0]))
def test_supcon_matches_the_reference(clusters: list[int], tau: float) -> None:
    z1, z2 = embeddings(len(clusters))
    expected = supcon_reference(z1, z2, clusters, tau)
    assert float(whole(z1, z2, clusters, tau, "supcon")) == pytest.approx(expected, rel=1e-9)


@settings(max_examples=40)
@given(patterns, st.sampled_from([0.1, 0.5, 1.0]))
def test_paper_matches_the_reference(clusters: list[int], tau: float) -> None:
    z1, z2 = embeddings(len(clusters))
    partner = partners(torch.tensor(clusters)).tolist()
    expected = paper_reference(z1, z2, partner, tau)
    assert float(whole(z1, z2, clusters, tau, "paper")) == pytest.approx(expected, rel=1e-9)


@given(st.lists(st.integers(-1, 5), min_size=1, max_size=40))
def test_partners_are_a_derangement_inside_clusters(clusters: list[int]) -> None:
    partner = partners(torch.tensor(clusters)).tolist()
    assert sorted(partner) == list(range(len(clusters)))
    for i, j in enumerate(partner):
        friends = [k for k, c in enumerate(clusters) if k != i and c == clusters[i] >= 0]
        assert j in friends if friends else j == i


def test_all_alone_is_nt_xent() -> None:
    z1, z2 = embeddings(6)
    z = F.normalize(torch.cat([z1, z2]), dim=1)
    logits = (z @ z.T / 0.2).fill_diagonal_(-torch.inf)
    target = torch.arange(12).roll(6)
    expected = F.cross_entropy(logits, target)
    assert torch.allclose(whole(z1, z2, [-1] * 6, 0.2, "supcon"), expected)
    # distinct clusters are the same thing as no clusters
    assert torch.allclose(whole(z1, z2, list(range(6)), 0.2, "supcon"), expected)


@pytest.mark.parametrize("estimator", ["supcon", "paper"])
def test_names_of_clusters_do_not_matter(estimator: str) -> None:
    z1, z2 = embeddings(6)
    a = whole(z1, z2, [0, 0, 1, 1, 2, -1], 0.2, estimator)
    b = whole(z1, z2, [7, 7, 3, 3, 9, -1], 0.2, estimator)
    assert torch.allclose(a, b)


@pytest.mark.parametrize("estimator", ["supcon", "paper"])
def test_several_granularities_are_averaged(estimator: str) -> None:
    z1, z2 = embeddings(6)
    columns = [[0, 0, 1, 1, 2, 2], [0, 0, 0, 0, 1, -1]]
    c = torch.tensor(columns).T
    both = cl_infonce(z1, z2, z1, z2, c, c, 0, 0.2, estimator).loss
    each = [whole(z1, z2, column, 0.2, estimator) for column in columns]
    assert torch.allclose(both, torch.stack(each).mean())


@pytest.mark.parametrize("estimator", ["supcon", "paper"])
def test_local_anchors_add_up_to_the_whole(estimator: str) -> None:
    z1, z2 = embeddings(8)
    c = torch.tensor([0, 1, 0, 2, 1, 2, 2, -1])[:, None]
    parts = [
        cl_infonce(z1[o : o + 4], z2[o : o + 4], z1, z2, c[o : o + 4], c, o, 0.2, estimator).loss
        for o in (0, 4)
    ]
    assert torch.allclose(
        torch.stack(parts).mean(), whole(z1, z2, c[:, 0].tolist(), 0.2, estimator)
    )


@pytest.mark.parametrize("estimator", ["supcon", "paper"])
def test_gradients(estimator: str) -> None:
    z1, z2 = (z.requires_grad_() for z in embeddings(5))
    assert torch.autograd.gradcheck(
        lambda a, b: whole(a, b, [0, 0, 1, -1, 1], 0.3, estimator), (z1, z2)
    )


@pytest.mark.parametrize("estimator", ["supcon", "paper"])
def test_safe_at_low_temperature_under_autocast(estimator: str) -> None:
    z = torch.randn(16, 8, requires_grad=True)
    c = torch.arange(16)[:, None] // 3
    with torch.autocast("cpu", torch.bfloat16):
        result = cl_infonce(z, z, z, z, c, c, 0, 0.01, estimator)  # equal views: extreme logits
    assert result.loss.dtype == torch.float32
    assert torch.isfinite(result.loss)
    result.loss.backward()
    assert z.grad is not None
    assert torch.isfinite(z.grad).all()


def test_counts_of_positives() -> None:
    z1, z2 = embeddings(5)
    c = torch.tensor([0, 0, 0, 1, -1])[:, None]
    result = cl_infonce(z1, z2, z1, z2, c, c, 0, 0.2)
    assert float(result.positives) == pytest.approx(6 / 5)
    assert float(result.without_positive) == pytest.approx(2 / 5)


@pytest.mark.parametrize("estimator", ["supcon", "paper"])
@settings(max_examples=40)
@given(
    rows=st.lists(st.tuples(st.integers(-1, 3), st.integers(-1, 1), st.booleans()), min_size=1),
    workers=st.integers(1, 3),
    tau=st.sampled_from([0.01, 0.2, 1.0]),
)
def test_broken_images_are_no_part_of_the_loss(
    estimator: str, rows: list[tuple[int, int, bool]], workers: int, tau: float
) -> None:
    """Loss, metrics and gradient are those of the batch without them, whatever the workers."""
    rows = [*rows, (0, 0, True)]
    rows += [(0, 0, False)] * (-len(rows) % workers)
    z = torch.stack(embeddings(len(rows)))
    clusters = torch.tensor([row[:2] for row in rows])
    valid = torch.tensor([row[2] for row in rows])
    z[:, ~valid] = z[:, valid.nonzero()[0]]  # pixels are copied: the views would be near twins
    whole, kept = z.clone().requires_grad_(), z[:, valid].clone().requires_grad_()
    groups = clusters[valid]
    expected = cl_infonce(*kept, *kept, groups, groups, 0, tau, estimator)
    b = len(rows) // workers
    parts = [
        cl_infonce(*whole[:, o : o + b], *whole, clusters[o : o + b], clusters, o, tau, estimator,
                   valid)
        for o in range(0, len(rows), b)
    ]  # fmt: skip
    for found, right in zip(zip(*parts, strict=True), expected, strict=True):
        assert float(torch.stack(found).mean()) == pytest.approx(float(right), rel=1e-9, abs=1e-12)
    torch.stack([part.loss for part in parts]).mean().backward()
    expected.loss.backward()
    assert whole.grad is not None
    assert kept.grad is not None
    torch.testing.assert_close(whole.grad[:, valid], kept.grad, rtol=1e-8, atol=1e-10)
    assert (whole.grad[:, ~valid] == 0).all()


@pytest.mark.parametrize("estimator", ["supcon", "paper"])
def test_a_batch_without_a_readable_image(estimator: str) -> None:
    z = torch.stack(embeddings(4)).requires_grad_()
    groups, valid = torch.zeros(4, 1, dtype=torch.int64), torch.zeros(4, dtype=torch.bool)
    result = cl_infonce(*z, *z, groups, groups, 0, 0.2, estimator, valid)
    result.loss.backward()
    assert float(result.loss) == 0
    assert z.grad is not None
    assert (z.grad == 0).all()


def weighted_reference(
    z1: torch.Tensor,
    z2: torch.Tensor,
    weight: list[list[float]],
    candidates: list[list[bool]],
    tau: float,
) -> list[float]:
    """For each image, mean over its two views: weighted mean of -log p over the other views, of
    which the image's own has weight 1; the denominator over the views of the candidates."""
    views = F.normalize(torch.cat([z1, z2]), dim=1).tolist()
    b = len(weight)
    losses = [0.0] * b
    for i in range(2 * b):
        scores = {
            j: sum(p * q for p, q in zip(views[i], views[j], strict=True)) / tau
            for j in range(2 * b)
            if j != i
        }
        inside = [j for j in scores if candidates[i % b][j % b] or j % b == i % b]
        log_all = math.log(sum(math.exp(scores[j]) for j in inside))
        weights = {j: 1.0 if j % b == i % b else weight[i % b][j % b] for j in scores}
        wanted = sum(w * (log_all - scores[j]) for j, w in weights.items())
        losses[i % b] += wanted / sum(weights.values()) / 2
    return losses


def test_graded_positives_match_the_reference() -> None:
    z1, z2 = embeddings(6)
    similarity = torch.rand(6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    similarity[2] = 0  # shares nothing: its other view is its only positive
    c = torch.tensor([0, 0, -1, 1, 2, 1])[:, None]
    weight = torch.maximum(similarity**2, ((c == c.T) & (c >= 0)).double())
    expected = weighted_reference(z1, z2, weight.tolist(), [[True] * 6] * 6, 0.2)
    result = cl_infonce(z1, z2, z1, z2, c, c, 0, 0.2, similarity=similarity)
    assert float(result.loss) == pytest.approx(sum(expected) / 6, rel=1e-9)
    others = weight.masked_fill(torch.eye(6, dtype=torch.bool), 0).sum(1)
    assert float(result.positives) == pytest.approx(float(others.mean()))
    assert float(result.without_positive) == pytest.approx(1 / 6)
    halves = [
        cl_infonce(
            *(z1[o : o + 3], z2[o : o + 3], z1, z2, c[o : o + 3], c, o, 0.2),
            similarity=similarity[o : o + 3],
        ).loss
        for o in (0, 3)
    ]
    assert float(sum(halves) / 2) == pytest.approx(float(result.loss), rel=1e-9)


@pytest.mark.parametrize(
    ("case", "compiled"),
    [
        ("supcon", False),
        ("paper", False),
        ("graded", False),
        ("siblings", False),
        pytest.param("supcon", True, marks=pytest.mark.slow),
    ],
)
def test_a_large_batch_in_parts_has_the_same_loss_and_gradients(
    case: str, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    z1, z2 = (z.requires_grad_() for z in embeddings(24))
    fine = torch.randint(-1, 6, (24,), generator=torch.Generator().manual_seed(1))
    clusters = torch.stack([fine.div(2, rounding_mode="floor"), fine], dim=1)
    valid = torch.arange(24) != 5
    similarity = torch.rand(24, 24, generator=torch.Generator().manual_seed(2)).double()
    offset, local = 7, slice(7, 18)  # as of one worker of several
    estimator = "paper" if case == "paper" else "supcon"
    sizes, real = [], loss_module._in_parts

    def counted(function: Any, size: int, *views: torch.Tensor) -> Any:
        sizes.append(size)
        return real(function, size, *views)

    monkeypatch.setattr(loss_module, "_in_parts", counted)

    def evaluate(most_pairs: int) -> tuple[list[float], list[torch.Tensor]]:
        monkeypatch.setattr(loss_module, "MOST_PAIRS", most_pairs)
        function = torch.compile(cl_infonce, backend="aot_eager") if compiled else cl_infonce
        result = function(
            *(z1[local], z2[local], z1, z2, clusters[local], clusters, offset, 0.2),
            *(estimator, valid),
            similarity=similarity[local] if case == "graded" else None,
            siblings=case == "siblings",
            level_weights=(1.0, 3.0),
        )
        gradients = torch.autograd.grad(result.loss, (z1, z2))
        return [float(x.detach()) for x in result], list(gradients)

    values, gradients = evaluate(11 * 24)
    assert not sizes
    parts, gradients_of_parts = evaluate(11 * 24 - 1)
    assert sizes == [5]
    assert parts == pytest.approx(values, rel=1e-12)
    for whole_batch, in_parts in zip(gradients, gradients_of_parts, strict=True):
        torch.testing.assert_close(in_parts, whole_batch, rtol=1e-10, atol=1e-12)


def test_a_large_batch_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    z1, z2 = embeddings(24)
    clusters = torch.arange(24)[:, None] // 3
    given = z1, z2, z1, z2, clusters, clusters, 0, 0.2
    expected = [float(x) for x in cl_infonce(*given)]
    monkeypatch.setattr(loss_module, "MOST_PAIRS", 100)
    assert [float(x) for x in cl_infonce(*given)] == pytest.approx(expected, rel=1e-12)


def test_clusters_are_graded_positives_of_weight_1() -> None:
    z1, z2 = embeddings(6)
    c = torch.tensor([0, 0, 1, 1, 1, 2])[:, None]
    same = (c == c.T).double()
    none, valid = torch.full_like(c, -1), torch.tensor([True, True, True, False, True, True])
    by_cluster = cl_infonce(z1, z2, z1, z2, c, c, 0, 0.2, "supcon", valid)
    graded = cl_infonce(z1, z2, z1, z2, none, none, 0, 0.2, "supcon", valid, similarity=same)
    assert float(graded.loss) == pytest.approx(float(by_cluster.loss), rel=1e-12)
    assert float(graded.positives) == pytest.approx(float(by_cluster.positives))


@pytest.mark.parametrize("weights", [(), (3.0, 1.0)])
def test_siblings_are_contrasted_at_the_finer_level(weights: tuple[float, ...]) -> None:
    z1, z2 = embeddings(7)
    # coarse and fine; one image has no cluster at all, one no coarse cluster
    levels = torch.tensor([[0, 0], [0, 0], [0, 1], [1, 2], [1, 2], [-1, 3], [-1, -1]])
    coarse, fine = levels.T.tolist()
    same = [[[float(p == q >= 0) for q in column] for p in column] for column in (coarse, fine)]
    everyone = [[True] * 7] * 7
    siblings = [[p < 0 or p == q for q in coarse] for p in coarse]
    expected = [
        sum(weighted_reference(z1, z2, same[level], candidates, 0.2)) / 7
        for level, candidates in enumerate((everyone, siblings))
    ]
    first, second = weights or (1.0, 1.0)
    result = cl_infonce(
        z1, z2, z1, z2, levels, levels, 0, 0.2, siblings=True, level_weights=weights
    )
    mean = (first * expected[0] + second * expected[1]) / (first + second)
    assert float(result.loss) == pytest.approx(mean, rel=1e-9)


def test_siblings_of_the_deepest_ancestor_known() -> None:
    """Without a cluster at the second level, the third is contrasted within the first."""
    z1, z2 = embeddings(5)
    levels = torch.tensor([[0, 0, 0], [0, -1, 1], [0, -1, 1], [1, 1, 2], [1, 1, 2]])
    result = cl_infonce(
        z1, z2, z1, z2, levels, levels, 0, 0.2, siblings=True, level_weights=(0.0, 0.0, 1.0)
    )
    fine, near = levels[:, 2].tolist(), [[0], [0, 1, 2], [0, 1, 2], [3, 4], [3, 4]]
    same = [[float(p == q) for q in fine] for p in fine]
    candidates = [[q in group for q in range(5)] for group in near]
    expected = sum(weighted_reference(z1, z2, same, candidates, 0.2)) / 5
    assert float(result.loss) == pytest.approx(expected, rel=1e-9)


def test_a_weight_for_each_level() -> None:
    z1, z2 = embeddings(3)
    c = torch.zeros(3, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match="1 level weights for 2 levels"):
        cl_infonce(z1, z2, z1, z2, c, c, 0, 0.2, level_weights=(1.0,))


def test_an_estimator_returns_one_loss_per_level_and_image() -> None:
    z1, z2 = embeddings(3)
    c = torch.zeros(3, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"shape \(3,\), not \(G, b\) = \(1, 3\)"):
        cl_infonce(z1, z2, z1, z2, c, c, 0, 0.2, lambda batch: batch.z1.sum(1))


def test_unknown_estimator() -> None:
    z1, z2 = embeddings(2)
    with pytest.raises(ValueError, match="simclr"):
        whole(z1, z2, [0, 0], 0.2, "simclr")


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["supcon", "paper"])
def test_compiles_without_graph_breaks(estimator: str) -> None:
    compiled = torch.compile(cl_infonce, backend="aot_eager", fullgraph=True)
    clusters, valid = (torch.arange(6) // 2)[:, None], torch.arange(6) != 3
    gradients, losses = [], []
    for work in (cl_infonce, compiled):
        z1, z2 = (z.float().requires_grad_() for z in embeddings(6))
        result = work(z1, z2, z1, z2, clusters, clusters, 0, 0.2, estimator, valid)
        result[0].backward()
        losses.append(result[0].detach())
        gradients.append(z1.grad)
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients)
