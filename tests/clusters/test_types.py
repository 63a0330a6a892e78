"""Types of metadata columns: detected, corrected, told, and turned into attributes."""

from __future__ import annotations

import datetime
import json
import tracemalloc
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from wcl_ray.clusters import counts as counts_module
from wcl_ray.clusters import metadata, tfidf
from wcl_ray.clusters.binarise import Attribute, attributes, outcomes
from wcl_ray.clusters.columns import SHOWN, ColumnSummary, render, summarise
from wcl_ray.clusters.counts import Columns, count_table
from wcl_ray.clusters.identifier import Spread, unordered
from wcl_ray.clusters.similarity import weigh
from wcl_ray.clusters.tfidf import vectors
from wcl_ray.clusters.types import ColumnType, detect, views_to_count
from wcl_ray.clusters.views import View, read
from wcl_ray.config import COLUMN_TYPES, ClustersConfig
from wcl_ray.data.sources.base import ID
from wcl_ray.errors import UserError

N = 600
RNG = np.random.default_rng(0)
DAY = datetime.date(2020, 1, 1)


def count(table: pa.Table, given: Mapping[str, str], parts: int) -> Columns:
    """Counts of the parts of a table, added up."""
    columns, step = table.column_names, -(-len(table) // parts)
    pieces = [table.slice(i, step) for i in range(0, len(table), step)]
    counts = [
        count_table(p, columns, None, views_to_count(p.schema, columns, given)) for p in pieces
    ]
    total = counts[0]
    for part in counts[1:]:
        total += part
    return total


def typed(
    columns: Mapping[str, Any], parts: int = 4, **given: str
) -> tuple[dict[str, ColumnType], list[Attribute], dict[str, str]]:
    """Types, attributes and what is said of each column; the shares are those of the masks."""
    table = pa.table(dict(columns))
    counts = count(table, given, parts)
    types = detect(counts, 4, given)
    found, skipped = attributes(counts, 4, 0.01, types=types)
    arrays = read(table, [a.source for a in found])
    for attribute in found:
        mask = attribute.mask(arrays[attribute.source])
        assert mask.mean() == pytest.approx(attribute.share), attribute.name
    assert len({a.code for a in found}) == len(found)
    told = {s.name: s.outcome for s in summarise(types, counts, outcomes(found), skipped)}
    return types, found, told


def type_names(columns: Mapping[str, Any], **given: str) -> dict[str, str]:
    return {name: kind.name for name, kind in typed(columns, **given)[0].items()}


TEXT = "a beetle with red green wings on the leaf of an old tree in rain"
WORDS = np.array(TEXT.split(" "))
DAYS = [DAY + datetime.timedelta(days=int(d)) for d in RNG.integers(0, 1000, N)]
CAPTIONS = [" ".join(RNG.choice(WORDS, 7)) + f" no {i}" for i in range(N)]
SENDERS = RNG.choice(RNG.permutation(40) + 1, N, p=(w := RNG.lognormal(0, 1, 40)) / w.sum())
COLUMNS: dict[str, tuple[Any, str]] = {
    "size": (RNG.normal(0, 1, N), "number"),
    "legs": (RNG.integers(0, 4, N), "number"),
    "picture": (np.arange(N), "number"),
    "colour": ([("red", "green", "blue")[i % 3] for i in range(N)], "category"),
    "serial": ([f"serial-{i}" for i in range(N)], "category"),
    "sender_id": (SENDERS, "category"),
    "sender": (SENDERS, "category"),
    "wings": ([i % 2 == 0 for i in range(N)], "boolean"),
    "damp": ([("yes", "no", None)[i % 3] for i in range(N)], "boolean"),
    "marks": ([["spot", "ring"][: i % 3] for i in range(N)], "tags"),
    "json": ([('["spot"]', '["a, b"]', None, " [] ")[i % 4] for i in range(N)], "tags"),
    "some_json": ([('["spot"]', "[1, 2]", "ring")[i % 3] for i in range(N)], "category"),
    "day": (DAYS, "date"),
    "second": (pa.array([datetime.datetime(2021, 7, d.day) for d in DAYS]), "date"),
    "iso": ([d.isoformat() if d.day > 3 else None for d in DAYS], "date"),
    "zoned": ([f"{d}T{d.day % 24:02d}:30:00Z" for d in DAYS], "date"),
    "dots": ([f"{d:%d.%m.%Y}" for d in DAYS], "date"),
    "versions": ([f"1.{i % 9}.{i % 7}" for i in range(N)], "category"),
    "slashes": ([f"{d:%Y/%m/%d}" for d in DAYS], "date"),
    "exif": ([f"{d:%Y:%m:%d} 12:00:00" for d in DAYS], "date"),
    "once_wrong": ([*(d.isoformat() for d in DAYS[1:]), "2004-08-39"], "category"),
    "note": (CAPTIONS, "text"),
    "american": ([f"{d:%m/%d/%Y %H:%M:%S} {i}" for i, d in enumerate(DAYS)], "category"),
    "delta_lat": (RNG.normal(0, 1, N), "number"),
    "delta_lon": (RNG.normal(0, 1, N), "number"),
    "gps_lat": (RNG.uniform(40, 50, N), "place"),
    "gps_lon": (RNG.uniform(0, 10, N), "place"),
    "decimalLatitude": (RNG.uniform(40, 50, N), "place"),
    "decimalLongitude": (RNG.uniform(170, 180, N), "place"),
    "lat": (RNG.uniform(40, 50, N), "number"),
    "lng": (RNG.uniform(0, 359, N), "number"),
    "spot": ([{"lat": 1.5, "lng": float(i % 9)} for i in range(N)], "place"),
    "location": ([[1.5, float(i % 9)] for i in range(N)], "place"),
    "ratio": ([[1.5, float(i % 9)] for i in range(N)], "tags"),
    "box": ([{"x": 1, "y": 2}] * N, "other"),
    "nothing": (pa.nulls(N), "category"),
}


def test_every_column_has_a_type() -> None:
    found = type_names({name: values for name, (values, _) in COLUMNS.items()})
    assert found == {name: kind for name, (_, kind) in COLUMNS.items()}


def test_blocks_do_not_matter_for_types_and_attributes() -> None:
    columns = {name: values for name, (values, _) in COLUMNS.items()}
    assert typed(columns, parts=1) == typed(columns, parts=7)


def test_what_becomes_of_a_column_is_told() -> None:
    told = typed({name: values for name, (values, _) in COLUMNS.items()})[2]
    assert told["size"] == "4 quantiles"
    assert told["legs"] == "4 values as attributes"
    assert told["wings"] == "1 value as attribute"
    assert told["marks"] == "2 tags"
    assert told["day"] == "4 quantiles of time, 4 seasons"
    assert told["zoned"] == "4 quantiles of time, 4 seasons, 4 times of day"
    assert told["note"] == f"{len(WORDS)} words"
    assert told["serial"] == ("left out: nearly every value is different: looks like an identifier")
    assert told["picture"].startswith("left out: integers from 0 to 599 that hardly repeat")
    assert told["gps_lat"].endswith(" cells")
    assert told["gps_lon"] == "together with 'gps_lat'"
    assert told["box"] == "left out: its type cannot be turned into attributes"


def test_the_table_of_columns_is_capped() -> None:
    one = ColumnSummary("size", "number", 7, 0.125, "4 quantiles")
    many = ColumnSummary("name", "category", None, 1, "left out: why")
    lines = render([one] * (SHOWN - 1) + [many] * 11).splitlines()
    assert len(lines) == SHOWN + 3  # head, rule, and the last one
    assert lines[2].split() == ["size", "number", "7", "12.5%", "4", "quantiles"]
    assert lines[-2].split() == ["name", "category", ">", "100,000", "100%", "left", "out:", "why"]
    assert lines[-1] == "and 10 more columns, 10 of them left out (clusters.json lists all)"


def test_seasons_and_times_of_day_are_those_of_the_clock() -> None:
    texts = ["2021-07-03T23:30:00+09:00", "2021:12:03 05:59:59", "0000:00:00 00:00:00", None]
    view = {form: View(("taken",), form) for form in ("minute", "season", "daypart")}
    arrays = read(pa.table({"taken": texts}), view.values())
    assert arrays[view["season"]].to_pylist() == ["Jun-Aug", "Dec-Feb", None, None]
    assert arrays[view["daypart"]].to_pylist() == ["18-24 h", "00-06 h", None, None]
    minutes = arrays[view["minute"]].to_pylist()
    utc = datetime.datetime(2021, 7, 3, 14, 30, tzinfo=datetime.timezone.utc)
    assert minutes[0] * 60 == utc.timestamp()
    zoned = pa.array([utc], pa.timestamp("us", "Asia/Tokyo"))
    same = read(pa.table({"taken": zoned}), view.values())
    assert [same[v].to_pylist()[0] for v in view.values()] == [minutes[0], "Jun-Aug", "18-24 h"]
    days = read(pa.table({"taken": pa.array([datetime.date(1969, 12, 31)])}), view.values())
    assert days[view["minute"]].to_pylist() == [-1440]


def test_between_dots_the_day_comes_first() -> None:
    iso = [f"{d}T{d.day % 24:02d}:30" for d in DAYS]
    dotted = [f"{d.day}.{d.month}.{d.year} {d.day % 24}:30" for d in DAYS]
    assert typed({"day": dotted})[1:] == typed({"day": iso})[1:]
    assert typed({"day": dotted}, day="date")[1:] == typed({"day": iso})[1:]


def test_the_forms_of_dates_are_told() -> None:
    with pytest.raises(UserError, match=r"'07/03/2021' .* is not a date; dates are read in the fo"):
        typed({"day": ["07/03/2021"] * 9}, day="date")


def test_dates_are_cut_at_quantiles_of_time() -> None:
    found = typed({"day": DAYS})[1]
    above = sorted(a.share for a in found if a.test == "after")
    assert above == pytest.approx([0.2, 0.4, 0.6, 0.8], abs=0.01)
    assert any(a.name.startswith("day after 2020-") for a in found)
    assert {a.name for a in found if a.test == "in"} >= {"day in Jun-Aug", "day in Dec-Feb"}
    assert not [a for a in found if a.test == "at"]  # dates have no time of day


def test_words_for_a_missing_date() -> None:
    dates = [d.isoformat() if d.day > 3 else "NA" for d in DAYS]
    table = pa.table({"day": dates})
    for parts in (1, 4):
        counts = count(table, {}, parts)
        types = detect(counts, 4, {})
        assert types["day"].name == "date"
        (summary,) = summarise(types, counts, {}, {})
        assert summary.missing == np.mean([d == "NA" for d in dates])


def test_the_values_that_are_no_dates_are_named() -> None:
    dates = [d.isoformat() for d in DAYS]
    dates[300], dates[7] = "NA", "unknown"
    remedy = "correct the dates, or leave them empty"
    for parts in (1, 4):
        told = typed({"day": dates}, parts)[2]["day"]
        assert told == f"left out: 1 of 599 values is not a date: 'unknown'; {remedy}"
    times = [f"{d}T{i % 24:02d}:{i % 60:02d}" for i, d in enumerate(DAYS)]
    times[500:517] = ["2021-02-30"] + 16 * ["?"]
    told = typed({"day": times})[2]["day"]
    assert told == f"left out: 17 of 600 values are not dates, such as '2021-02-30'; {remedy}"
    few = typed({"day": [*times[480:517], *CAPTIONS]})[2]["day"]
    assert "dates" not in few


def test_the_value_that_is_named_does_not_depend_on_the_order_of_blocks() -> None:
    tables = [pa.table({"day": pa.array([text, "2021-07-03"])}) for text in ("later", "sooner")]
    for first, second in (tables, tables[::-1]):
        counts = [
            count_table(t, ["day"], None, views_to_count(t.schema, ["day"], {"day": "date"}))
            for t in (first, second)
        ]
        with pytest.raises(UserError, match="the value 'later' of column 'day' is not a date"):
            detect(counts[0] + counts[1], 4, {"day": "date"})


def test_words_of_texts_are_attributes() -> None:
    found = typed({"note": CAPTIONS})[1]
    share = {a.name: a.share for a in found}
    assert share["note says beetle"] == np.mean(["beetle" in text.split() for text in CAPTIONS])
    assert "note says 17" not in share  # too rare
    assert "note says no" not in share  # in all


def test_cells_of_places_are_attributes() -> None:
    towns = np.array([[57.64911, 10.40744], [57.7, 10.5], [-33.9, 151.2]])
    place = towns[np.arange(N) % 3]
    place[:12] = np.nan
    found = typed({"latitude": place[:, 0], "longitude": place[:, 1]})[1]
    share = {a.value: a.share for a in found}
    assert share["u"] == pytest.approx(2 / 3, abs=0.02)  # as in Wikipedia: u4pruydqqvj
    (finer,) = [value for value in share if value != "u" and "u4pruydqqvj".startswith(value)]
    assert share[finer] == pytest.approx(1 / 3, abs=0.02)
    assert "u4" not in share  # the same images as u
    assert {value for value in share if value.startswith("r")} == {"r"}
    assert found[0].name.startswith("latitude, longitude within ")


QUANTITIES = {
    "price": np.round(RNG.lognormal(3, 1, 5000)).astype(int),
    "visits": RNG.poisson(40, 5000),
    "rank": RNG.integers(1, 101, 5000),
    "percent": np.where(
        RNG.random(5000) < 0.5, RNG.integers(0, 101, 5000), 5 * RNG.integers(0, 21, 5000)
    ),
    "fat": np.clip(RNG.normal(30, 12, 5000), 0, 90).astype(int),
    "born": RNG.choice(np.arange(1950, 2010), 5000, p=(b := RNG.lognormal(0, 1, 60)) / b.sum()),
    "day_of_year": RNG.choice(np.arange(1, 366), 5000, p=(b := RNG.lognormal(0, 1, 365)) / b.sum()),
    "hp": RNG.gamma(4, 10, 274).astype(int)[RNG.integers(0, 274, 5000)],  # of 274 units
}


@pytest.mark.parametrize("name", QUANTITIES)
def test_integers_with_an_order_stay_numbers(name: str) -> None:
    assert type_names({name: QUANTITIES[name]}) == {name: "number"}
    assert typed({name: QUANTITIES[name]})[2][name] in ("3 quantiles", "4 quantiles")


@pytest.mark.parametrize("values", [40, 200, 1000])
@pytest.mark.parametrize("law", ["zipf", "lognormal"])
def test_integers_without_an_order_are_categories(values: int, law: str) -> None:
    """Four of five are recognised; the others stay numbers."""
    categories = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        weight = 1 / np.arange(1, values + 1) if law == "zipf" else rng.lognormal(0, 1, values)
        counts = rng.multinomial(20_000, rng.permutation(weight) / weight.sum())
        spread = Spread.of(np.flatnonzero(counts), counts[counts > 0])
        categories += unordered(
            "sender", dict(zip(np.flatnonzero(counts), counts[counts > 0], strict=True)), spread
        )
    assert categories >= 14


def test_identifiers_that_recur_are_categories() -> None:
    _, found, told = typed({"site_id": np.arange(N) % 8})
    assert {(a.test, a.value) for a in found} == {("is", n) for n in range(8)}
    assert told["site_id"] == "8 values as attributes"


LISTS = [[["wild", "night"], ["wild"], [], ["Sea, deep", "night"], None][i % 5] for i in range(N)]
# the same tags in the texts of a table
TAG_TEXTS = {
    "json": [None if tags is None else json.dumps(tags) for tags in LISTS],
    "python": [None if tags is None else repr(tags) for tags in LISTS],
    "semicolon": ["NA" if tags is None else f" {' ; '.join(tags)};" for tags in LISTS],
    "bar": [None if tags is None else "|".join(tags) or "|" for tags in LISTS],
}


@pytest.mark.parametrize("name", TAG_TEXTS)
def test_tags_of_texts_are_those_of_lists(name: str) -> None:
    _, lists, told = typed({"it": LISTS})
    for rows, parts in ((N, 1), (N, 4), (50, 50)):  # the shares are those of any five rows
        _, found, of_texts = typed({"it": TAG_TEXTS[name][:rows]}, parts, it="tags")
        assert [(a.name, a.share) for a in found] == [(a.name, a.share) for a in lists]
        assert of_texts == told == {"it": "3 tags"}
    detected = typed({"it": TAG_TEXTS[name]})[0]["it"].name
    assert detected == ("tags" if name in ("json", "python") else "category")


def test_commas_separate_tags_where_nothing_else_does() -> None:
    texts = [("a, b", "b", '["c; d"]')[i % 3] for i in range(N)]
    for rows, parts in ((N, 1), (N, 4), (60, 60)):
        _, found, _ = typed({"it": texts[:rows]}, parts, it="tags")
        assert {a.value: a.share for a in found} == pytest.approx(
            {"a": 1 / 3, "b": 2 / 3, "c; d": 1 / 3}
        )


def test_the_table_of_columns_counts_the_tags_of_texts() -> None:
    columns = {"lists": LISTS, **TAG_TEXTS}
    given = dict.fromkeys(TAG_TEXTS, "tags")
    counts = count(pa.table(columns), given, 4)
    rows = summarise(detect(counts, 4, given), counts, {}, {})
    assert {(s.type, s.values, s.missing) for s in rows} == {("tags", 3, 0.2)}


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("name", TAG_TEXTS)
def test_vectors_of_tags_in_texts_are_those_of_lists(name: str) -> None:
    def result(values: list[Any], given: Mapping[str, str]) -> tuple[Any, str]:
        rows: Any = Rows(pa.table({ID: np.arange(N), "it": values}))
        features, line, _ = vectors(rows, ["it"], (), given=given)
        return features["feature"].to_pylist(), line

    features, line = result(LISTS, {})
    assert line == "3 words and 0 numbers of it"
    assert result(TAG_TEXTS[name], {"it": "tags"}) == (features, line)


def test_types_of_the_option() -> None:
    assert type_names({"sender": SENDERS}, sender="number") == {"sender": "number"}
    assert typed({"sender": SENDERS}, sender="number")[2]["sender"] == "4 quantiles"
    assert typed({"row": np.arange(N)}, row="number")[2]["row"] == "4 quantiles"
    assert typed({"code": [f"{i % 50}" for i in range(N)]}, code="number")[2]["code"] == (
        "4 quantiles"
    )
    assert typed({"day": DAYS}, day="category")[2]["day"].startswith("left out: no value")
    assert typed({"sex": [i % 2 for i in range(N)]}, sex="boolean")[0]["sex"].name == "boolean"
    # two columns, whatever their names, the first is the latitude
    _, found, told = typed({"a": [1.0, -1.0] * 300, "b": [8.0, 99.0] * 300}, a="place", b="place")
    assert told["b"] == "together with 'a'"
    assert {a.column for a in found} == {"a, b"}
    paths = [f"/home/x/img_{i}/{'red' if i % 3 else 'blue'}.png" for i in range(N)]
    assert typed({"path": paths}, path="text")[2]["path"] == "2 words"


def test_a_boolean_is_one_attribute_in_every_spelling() -> None:
    spellings = ["Yes", "no ", "YES", "0", "NA", "1"]
    wings = [spellings[i % 6] for i in range(N)]
    for parts in (1, 4):
        _, found, told = typed({"wings": wings}, parts, wings="boolean")
        assert [(a.name, a.share) for a in found] == [("wings is True", 0.5)]
        assert told == {"wings": "1 value as attribute"}
    # one attribute as ever, since clusters of earlier runs were made of these
    for values, code in [
        (["no", "yes"], 10029856774612927645),
        ([0, 1], 13932875100113896851),
        ([False, True], 6336175558470687094),
    ]:
        _, found, _ = typed({"wings": values * 10}, wings="boolean")
        assert [a.code for a in found] == [code]


def test_a_place_needs_two_columns() -> None:
    numbers = {"lat": [40.0, 41.0, 42.0], "lon": [8.0, 9.0, 10.0]}
    texts = {name: [str(v) for v in values] for name, values in numbers.items()}
    for columns, parts in [(numbers, 1), (numbers, 3), (texts, 3)]:
        with pytest.raises(UserError, match="the other column needs the type as well") as caught:
            typed(columns, parts, lat="place")
        assert "--clusters.types LATITUDE=place LONGITUDE=place" in str(caught.value)


def test_places_of_numbers_written_as_texts() -> None:
    numbers = {"lat": RNG.uniform(40, 50, N), "lon": RNG.uniform(0, 10, N)}
    texts = {name: [f"{v!r}" for v in values.tolist()] for name, values in numbers.items()}
    given = dict.fromkeys(numbers, "place")
    assert typed(texts, **given)[1] == typed(numbers, **given)[1]
    texts["lon"][3] = "NA"
    assert typed(texts, **given)[2]["lon"] == "together with 'lat'"
    texts["lon"][3] = "far"
    with pytest.raises(UserError, match="'far'"):
        typed(texts, **given)


@pytest.mark.parametrize(
    ("values", "kind", "shown"),
    [
        (["1", "2", "many"], "number", "'many'"),
        ([["a"], ["b"], ["c"]], "number", "['a']"),
        ([None, ["a"], ["b"]], "category", "['a']"),
        (["yes", "no", "perhaps"], "boolean", "'perhaps'"),
        ([0, 1, 2], "boolean", "2"),
        (["2021-07-03", "2021-02-30", "x"], "date", "'2021-02-30'"),
        ([2021, 2022, 2023], "date", "2021"),
        (["03.07.2021", "31.06.2021", "x"], "date", "'31.06.2021'"),
        (["a", '["b"', "c"], "tags", """'["b"'"""),
        (["a", '["b", 1]', "c"], "tags", """'["b", 1]'"""),
        ([1, 2, 3], "tags", "1"),
        ([1.0, 2.0, 3.0], "text", "1.0"),
        ([[1.0, 2.0], [1.0], [9.0, 2.0]], "place", "[1.0]"),
        ([[1.0, 2.0], [91.0, 2.0], [1.0, 2.0]], "place", "(91.0, 2.0)"),
    ],
)
def test_a_type_that_does_not_fit(values: Any, kind: str, shown: str) -> None:
    for parts in (1, 3):
        with pytest.raises(UserError) as caught:
            typed({"it": values, "size": [1, 2, 3]}, parts, it=kind)
        text = str(caught.value)
        assert text.startswith(f"clusters.types it={kind}: the value {shown} of column 'it' is not")
        assert "\n" not in text


def test_the_option_is_checked() -> None:
    assert ClustersConfig(types=("a=b=date",)).column_types == {"a=b": "date"}
    for text, words in [
        ("taken", "is not COLUMN=TYPE"),
        ("taken=day", f"the types are: {', '.join(COLUMN_TYPES)}"),
    ]:
        with pytest.raises(ValueError, match=r"clusters\.types") as caught:
            ClustersConfig(types=(text,))
        assert words in str(caught.value)
    with pytest.raises(ValueError, match="two types"):
        ClustersConfig(types=("taken=date", "taken=text"))


def test_codes_of_columns_that_keep_their_type() -> None:
    """Clusters of earlier runs were made of these."""
    columns = {
        "colour": ["red", "green", "blue", None] * 5,
        "size": [float(n) for n in range(20)],
        "x is y": [["a"], ["a", "b"]] * 10,
    }
    found = typed(columns)[1]
    assert [(a.name, a.code) for a in found][:4] == [
        ("x is y has b", 17639481036141107484),
        ("size above 11.0", 6466442881463256184),
        ("size above 7.0", 13948127231051416377),
        ("colour is blue", 18442908540031551114),
    ]


class Rows:
    """A data set in this process."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def map_batches(self, function: Any, **_: Any) -> pa.Table:
        return pa.concat_tables(function(self.table))


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (tfidf, metadata):
        monkeypatch.setattr(module, "tally", lambda rows, function: function(rows.table))


@pytest.mark.usefixtures("in_process")
def test_vectors_of_typed_columns() -> None:
    half = np.arange(N) % 2
    columns = {
        "day": [f"2021-{7 if h else 1:02d}-15" for h in half],
        "sender_id": half + 7,
        "lat": np.where(half, 57.6, -33.9),
        "lon": np.where(half, 10.4, 151.2),
        "size": half.astype(float),
        "serial": [f"s{i}" for i in range(N)],
    }
    rows: Any = Rows(pa.table({ID: np.arange(N)} | columns))
    features, line, summaries = vectors(rows, list(columns), ())
    # seasons, senders and the largest cell of each place are words
    assert line == f"6 words and 2 numbers of {', '.join(columns)}"
    assert {s.name: s.outcome for s in summaries} == {
        "day": "a number, 2 words",
        "sender_id": "2 words",
        "lat": "2 words",
        "lon": "together with 'lat'",
        "size": "a number",
        "serial": f"left out: {tfidf.NOTHING}",
    }
    feature = np.array(features["feature"].to_pylist())
    assert len(np.unique(feature, axis=0)) == 2
    assert (feature[0, :6] * feature[1, :6] == 0).all()
    assert feature[0, 6:] == pytest.approx(-feature[1, 6:])
    _, line, _ = vectors(rows, list(columns), (), given={"day": "text", "sender_id": "number"})
    assert line.startswith("4 words and 2 numbers")  # 01 and 07; the other words are in all rows


@pytest.mark.usefixtures("in_process")
def test_vectors_of_booleans_in_every_spelling() -> None:
    columns = {"wings": ["yes", "no", "YES", "0"] * 10, "size": np.sqrt(np.arange(40))}
    rows: Any = Rows(pa.table({ID: np.arange(40)} | columns))
    features, line, _ = vectors(rows, list(columns), (), given={"wings": "boolean"})
    assert line == "2 words and 1 numbers of wings, size"
    words = np.array(features["feature"].to_pylist())[:, :2]
    assert np.array_equal(words[0::4], words[2::4])
    assert np.array_equal(words[1::4], words[3::4])


@pytest.mark.usefixtures("in_process")
def test_words_of_many_texts_are_counted_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts_module, "MOST_VALUES", 300)
    monkeypatch.setattr(counts_module, "COMMON", 200)
    rows: Any = Rows(pa.table({"note": CAPTIONS}))
    counts, types = metadata.count_types(rows, ["note"], None, {}, 4, 0.01)
    assert counts[View(("note",), "words")].undercount
    assert types["note"].name == "text"
    found, _ = attributes(counts, 4, 0.01, types=types)
    assert {a.value for a in found} == set(WORDS)
    for attribute in found:
        assert attribute.share == np.mean([attribute.value in t.split() for t in CAPTIONS])


@pytest.mark.usefixtures("in_process")
def test_weights_of_dates_and_cells_in_the_similarity() -> None:
    place = np.array([[57.64911, 10.40744], [57.7, 10.5], [-33.9, 151.2]])[np.arange(N) % 3]
    table = pa.table({"day": DAYS, "lat": place[:, 0], "lon": place[:, 1]})
    rows: Any = Rows(table)
    counts, types = metadata.count_types(rows, table.column_names, None, {}, 15, 0.001)
    weighted = weigh(attributes(counts, 15, 0.001, types=types)[0], counts)
    arrays = read(table, [a.source for a, _ in weighted])
    total = dict.fromkeys(("day", "lat, lon"), 0.0)
    for attribute, weight in weighted:
        mask = attribute.mask(arrays[attribute.source])
        assert mask.mean() == pytest.approx(attribute.share)
        if attribute.test != "in":
            total[attribute.column] += weight * mask.mean()
    # as much as 16 quantile bins, and as three places of equal share
    assert total["day"] == pytest.approx(np.log(16), rel=0.01)
    assert total["lat, lon"] == pytest.approx(np.log(3), rel=0.01)
    assert {a.test for a, _ in weighted} == {"after", "before", "in", "within"}


def test_bits_are_packed_in_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    rng, n, most = np.random.default_rng(1), 20_000, 1024
    table = pa.table({ID: rng.permutation(n), "size": rng.normal(size=n)})
    chosen = [Attribute("size", "above", v, 0.5, 1.0) for v in np.linspace(-2, 2, most - 5)]

    class Blocks(Rows):
        def map_batches(self, function: Any, **_: Any) -> Any:
            whole = function(self.table)
            parts = [whole.slice(start, 7000) for start in range(0, n, 7000)]
            return type("Result", (), {"to_arrow_refs": lambda _: parts})()

    monkeypatch.setattr(metadata.ray, "get", lambda refs: refs)
    monkeypatch.setattr(metadata, "note", lambda *_: None)
    rows: Any = Blocks(table)
    tracemalloc.start()
    ids, packed = metadata.pack_attributes(rows, chosen, most)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * packed.nbytes  # one bool per attribute is eight times as much
    assert np.array_equal(ids, np.arange(n))
    size = table["size"].to_numpy()[np.argsort(table[ID].to_numpy())]
    masks = np.stack([size > a.value for a in chosen] + [np.zeros(n, bool)] * 5, axis=1)
    assert np.array_equal(packed, np.packbits(masks, axis=1))
