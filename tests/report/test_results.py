"""The records in results/ and what pages say about them: a changed record, table or sentence fails here."""

import re

import pytest
from scipy.stats import fisher_exact

from report import result_tables as tables
from report import results
from report.compare_page import holm, paired_test
from report.result_tables import by_unit, epochs_of, image_scores, last_epoch, leaked_in, percent, record
from tests.tiny import ROOT

STABLE17, STABLE18 = results.stable("isic17"), results.stable("isic18")
UNET17, UNET18 = ["isic17/stable_unet_42"], ["isic18/stable_unet_42"]


def text_of(page):
    """The text of a page on one line, so that a sentence may be broken anywhere."""
    return re.sub(r"\s*\n[# ]*", " ", (ROOT / page).read_text(encoding="utf-8"))


def selected(names, score="miou", clean=False):
    return percent(image_scores(name, clean)[score] for name in names)


def last(names, score="miou"):
    return percent(last_epoch(name)[score] for name in names)


def mean(names, of):
    return 100 * sum(of(name)["miou"] for name in names) / len(names)


def minutes(name):
    return f"{sum(row['seconds'] for row in epochs_of(name)) / 60:.1f}"


def compared(one, other, score="dsc"):
    return paired_test(by_unit(one, score, False), by_unit(other, score, False))


def p(one, other, score="dsc"):
    return f"{compared(one, other, score)['p']:#.2g}"


def scan_difference(folder, run):
    return f"{100 * compared([f'{folder}/robust_42'], [f'{folder}/{run}'], 'miou')['mean']:+.2f}"


def miou(name, epoch, digits=1):
    return f"{100 * epochs_of(name)[epoch - 1]['miou']:.{digits}f}"


@pytest.mark.parametrize("page", results.PAGES)
def test_the_tables_are_those_of_the_records(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert text.count("<!-- table ") == text.count("<!-- end -->") > 0
    assert results.rewritten(text) == text, "python -m report.results makes the tables again"


def published_acdc():
    """Sentences about the published lists of ACDC."""
    page, points = "docs/results.md", []
    for ours, others in results.PUBLISHED_ACDC_PAIRS.values():
        points.append(f"{100 * compared(ours, others)['mean']:+.2f}")
    ours, others = results.SEEDS_OF_ACDC.values()
    assert compared(ours, others)["p"] > 0.05 and [text[0] for text in points] == ["+", "-", "-"]
    yield page, f"VM-UNet's mean is {points[0][1:]} points higher, which is not significant (p = {p(ours, others)})"
    yield page, f"5 to 10 mm away, cost {points[1][1:]} points"
    yield page, f"instead of enlarged to 224 x 224 cost {points[2][1:]}, in one seed"


def hippocampus():
    """Sentences about the folds of the hippocampus."""
    page, zoom, pad = "docs/results.md", "zoom128_context1", "pad64_context1"
    both = [percent(tables.means_of_folds(results.hippocampus(name))) for name in (zoom, "nnunet_2d")]
    yield "README.md", f"after a short schedule: Dice {both[0]}, nnU-Net 2d {both[1]}"
    pairs = [
        ((zoom, "nnunet_2d"), range(5)),
        ((zoom, pad), range(5)),
        (("unet_" + zoom, zoom), [0]),
        ((pad, "pad64"), [0]),
    ]
    tests = [tables.test_of_folds(*(results.hippocampus(name, folds) for name in names)) for names, folds in pairs]
    ahead, enlarged, unet, neighbours = (f"{100 * test['mean']:.2f}" for test in tests)
    yield page, f"VM-UNet is {ahead} points ahead (p < 0.0001)"
    assert tests[0]["p"] < 0.0001
    yield page, f"surrounds them with zeros, which costs {enlarged} points"
    yield page, f"The U-Net is {unet} points ahead (p = {tests[2]['p']:#.2g})"
    yield page, f"1 mm away, are worth {neighbours} points on the hippocampus"
    times = [sorted((minutes(run) for run in results.hippocampus(name)), key=float) for name in (zoom, pad)]
    (least, *_, most), (low, *_, high) = times
    yield page, f"an enlarged fold took {least} to {most} minutes and those of a padded one {low} to {high}"


def test_every_table_stands_in_a_page():
    shown = [name for page in results.PAGES for _, name, _ in results.TABLE.findall((ROOT / page).read_text("utf-8"))]
    assert sorted(shown) == sorted(results.TABLES)


def test_scores_from_counts_are_those_that_the_runs_stored():
    for folder in tables.SETS:
        for path in (ROOT / "results" / folder).glob("*/test_images.csv"):
            name = f"{folder}/{path.parent.name}"
            stored = {score: record(name).scores[score] for score in tables.SCORES}
            assert {score: image_scores(name)[score] for score in stored} == pytest.approx(stored, abs=1e-12), name


def test_thresholded_jaccard_and_leaked_images_by_hand(monkeypatch):
    counts = {"a": (80, 20, 0, 0), "b": (64, 36, 0, 0), "c": (65, 0, 35, 0)}  # Jaccard 0.80, 0.64, 0.65
    rows = {name: dict(zip(tables.COUNTS, map(float, four), strict=True)) for name, four in counts.items()}
    made = type("Run", (), {"test_rows": rows})
    monkeypatch.setattr(tables, "record", lambda name: made)
    monkeypatch.setattr(tables, "leaked_in", lambda name: {"a"})
    found, clean = (tables.image_scores.__wrapped__("made", clean) for clean in (False, True))
    assert found["threshold"] == pytest.approx((0.80 + 0.65) / 3) and found["miou_per_image"] == pytest.approx(2.09 / 3)
    assert (found["images"], clean["images"]) == (3, 2)
    assert clean["miou"] == pytest.approx(129 / 200) and clean["threshold"] == pytest.approx(0.65 / 2)


def test_the_reported_images_are_none_of_the_training_images():
    for name in ("isic17/stable_42", "isic18/stable_42", "isic17_official/robust_42", "isic18_unseen/robust_42"):
        table, column = tables.SETS[name.partition("/")[0]]
        rows = tables.read_rows(tables.LISTED.with_name(table), "id", column)
        assert not {row["id"] for row in rows if row[column] == "train"} & record(name).test_rows.keys()


def fragments():
    """(page, what it says), from the records."""
    lost17, unseen = "isic17/published_42", "isic18_unseen"
    dsc17, dsc18 = selected(STABLE17, "dsc"), selected(STABLE18, "dsc")
    worth = [mean(names, image_scores) - mean(names, last_epoch) for names in (STABLE17, UNET17)]
    leads = [mean(STABLE17, of) - mean(UNET17, of) for of in (last_epoch, image_scores)]
    broken = [[fell(name) for name in names] for names in (results.FAST, results.SLOW)]
    fisher = fisher_exact([[sum(b), len(b) - sum(b)] for b in broken]).pvalue
    scan = {
        (f, r): scan_difference(f, f"robust_{r}_42") for f in ("isic17_official", unseen) for r in ("no_scan", "conv7")
    }
    acdc_p, leaks = p(["acdc/stable_vmunet_42"], ["acdc/stable_unet_42"]), len(leaked_in("isic17/stable_42"))
    front = f"{leaks} of the images show a lesion of the training set. Without them VM-UNet has"
    yield "README.md", f"{front} {selected(STABLE17, clean=True)}."
    yield "README.md", f"here (p = {p(STABLE17, UNET17)}) or on ISIC18 (p = {p(STABLE18, UNET18)})"
    yield "README.md", f"collapses on ISIC17 at epoch {lost_epoch(lost17)}"
    yield "README.md", f"`results/isic17/stable_42` took {minutes('isic17/stable_42')} minutes"
    page = "docs/results.md"
    yield (
        page,
        f"worth {worth[0]:.2f} points of mIoU for VM-UNet (mean of three seeds) and {worth[1]:.2f} for the U-Net",
    )
    yield page, f"VM-UNet is {leads[0]:.2f} points ahead of the U-Net, in the selected epoch {leads[1]:.2f}"
    without = (
        f"{mean(STABLE17, lambda name: image_scores(name, True)):.2f} instead of {mean(STABLE17, image_scores):.2f}"
    )
    for run, said in {
        "isic18/stable_42": "{} of the 779 images leaked",
        "isic17_official/robust_42": "{} of the 529 images show a lesion of the official training set",
        f"{unseen}/robust_42": "{} of them show a lesion of the training set",
    }.items():
        yield page, said.format(len(leaked_in(run)))
    yield page, f"Without the {leaks} leaked images VM-UNet has an mIoU of {without}"
    higher, lower = (" and ".join(scan[f, r][1:] for r in ("no_scan", "conv7")) for f in ("isic17_official", unseen))
    assert [text[0] for text in scan.values()] == ["-", "-", "+", "+"]
    yield page, f"score {higher} points higher, on the 144 photographs {lower} lower"
    unet = scan_difference("isic17_official", "robust_unet_42")
    assert unet[0] == "-"
    yield page, f"VM-UNet is {unet[1:]} points lower on the official test"
    ours = compared(["acdc/stable_unet_42"], ["acdc/stable_vmunet_42"])
    yield page, f"The U-Net is {100 * ours['mean']:.2f} points ahead (p = {acdc_p})"
    yield from published_acdc()
    yield from hippocampus()
    page = "docs/collapse.md"
    yield page, f"reaches mIoU {miou(lost17, 80)} on ISIC17 at epoch 80"
    yield page, f"mIoU {miou(lost17, 101)} at epoch 101, {miou(lost17, 102)} at epoch 102"
    yield page, f"never above {100 * max(row['miou'] for row in epochs_of(lost17)[102:]):.1f}"
    yield page, f"gives p = {fisher:.2f}"
    fp32 = "isic17/ablation/published_fp32"
    yield page, f"falls from mIoU {miou(fp32, 84)} to {miou(fp32, 85)} at epoch 85. It recovers from epoch 114 on"
    yield page, f"is back at {miou(fp32, 128)} at epoch 128, its last"
    same = [["isic17/stable_42"], ["isic17/stable_at_1e-3_42"]]
    more = mean(same[0], image_scores) - mean(same[1], image_scores)
    yield page, f"{more:.2f} points of mIoU more than at 1e-3 ({selected(same[0])} against {selected(same[1])})"
    yield page, f"Dice of images is not significant (p = {p(*same)})"
    yield from traced()
    page = "configs/recipes.py"
    yield page, f"ISIC17: {selected([lost17])}, then the training collapses (docs/collapse.md), {last([lost17])}"
    yield page, f"ISIC18, without a collapse: {selected(['isic18/published_42'])}, {last(['isic18/published_42'])}."
    both = [f"{name}: {selected(runs)}, {last(runs)}." for name, runs in (("ISIC17", STABLE17), ("ISIC18", STABLE18))]
    yield page, f"{both[0]} {both[1]}"
    yield page, f"ISIC17: {selected(['isic17/robust_42'])}; ISIC18: {selected(['isic18/robust_42'])}."
    page = "results/isic17/README.md"
    yield page, f"mIoU {selected(STABLE17)}, DSC {dsc17}; last epoch {last(STABLE17)} and {last(STABLE17, 'dsc')}"
    yield page, f"{selected(UNET17)} and {selected(UNET17, 'dsc')}, last epoch {last(UNET17)} and {last(UNET17, 'dsc')}"
    yield page, f"(p = {p(STABLE17, UNET17)})"
    yield page, "took {}, {} and {} minutes".format(*map(minutes, STABLE17))
    page = "results/isic18/README.md"
    seeds = f"{last(STABLE18)} and {last(STABLE18, 'dsc')}"
    yield page, f"mIoU {selected(STABLE18)} and DSC {dsc18} (three seeds), last epoch {seeds}"
    yield page, f"{selected(UNET18)} and {selected(UNET18, 'dsc')}, last epoch {last(UNET18)} and {last(UNET18, 'dsc')}"
    yield page, f"mIoU {miou('isic18/published_42', 77)}, then {miou('isic18/published_42', 78)}"
    yield page, f"epoch 295 ({miou('isic18/published_42', 294)}, then {miou('isic18/published_42', 295)})"
    yield page, f"took {minutes('isic18/stable_42')} minutes"
    page = "results/acdc/README.md"
    yield page, f"the epochs took {minutes('acdc/stable_vmunet_42')} and {minutes('acdc/stable_unet_42')} minutes"
    times = sorted(map(minutes, (name for (name,) in results.OFFICIAL.values())))
    yield "results/isic17_official/README.md", f"took {times[0]} to {times[-1]} minutes"
    times = sorted(map(minutes, STABLE17))
    yield "benchmarks/README.md", f"took {times[0]} to {times[-1]} minutes"
    v2 = ["isic17/stable_vmunetv2_42"]
    values = f"{selected(same[0])} and `vmunetv2` {selected(v2)}, in the last epoch {last(same[0])} and {last(v2)}"
    yield "docs/networks.md", f"`vmunet` has an mIoU of {values}"


def fell(name):
    """Whether a run fell below half of its highest mIoU after its first epochs."""
    scores = [row["miou"] for row in epochs_of(name)]
    return min(scores[tables.EARLY :]) < max(scores) / 2


def traced():
    """What docs/collapse.md says of the trace."""
    page, trace = "docs/collapse.md", tables.read_rows(ROOT / "results/isic17/collapse_43/trace_bf16.csv")
    columns = {name: [float(row[name]) for row in trace] for name in trace[0]}
    step, loss = columns["largest delta encoder 3/1"], columns["train_loss"]
    first, third, tenth, twentieth = (step[epoch - 1] for epoch in (1, 3, 10, 20))
    steps = f"{first:.2f} after one epoch to {third:.1f} after three, {tenth:.0f} after ten and {twentieth:.0f} after"
    yield page, f"{steps} twenty. From then on it stays between {min(step[19:]):.0f} and {max(step[19:]):.0f}"
    outputs = columns["output encoder 3/1"]
    yield (
        page,
        f"is {outputs[0]:.1f} after the first epoch and {min(outputs[19:]):.0f} to {max(outputs[19:]):.0f} from the",
    )
    fall = " to ".join(f"{row['miou']:.2f}" for row in (epochs_of("isic17/collapse_43")[e - 1] for e in (20, 23)))
    yield page, f"20 to 23 the loss rises from {loss[19]:.2f} to {loss[22]:.2f} and the mIoU falls from {fall}"
    one, two = columns["mean delta encoder 0/0"], columns["mean delta encoder 0/1"]
    yield page, f"it is {two[22]:.3f} at the peak of the loss, as at the start, and {two[23]:.3f} one epoch"
    yield page, f"risen from {one[21]:.3f} to {one[22]:.3f} at the peak"


def lost_epoch(name):
    detector = tables.CollapseDetector()
    for row in epochs_of(name):
        detector.add_epoch(row)
    return detector.since


def test_sentences_have_the_numbers_of_the_records():
    missing = [f"{page}: {said}" for page, said in fragments() if said not in text_of(page)]
    assert not missing, "\n".join(["found no", *missing])


def corrected(pairs, score, clean):
    """{label: p by Holm's correction} of a family of paired tests."""
    tests = [paired_test(*(by_unit(names, score, clean) for names in sides)) for sides in pairs.values()]
    return dict(zip(pairs, holm([test["p"] for test in tests]), strict=True))


@pytest.mark.parametrize("clean", [False, True])
def test_what_the_text_calls_significant(clean):
    scan, splits = corrected(results.SCAN, "miou", clean), corrected(results.SPLITS, "dsc", clean)
    assert [label for label, value in scan.items() if value < 0.05] == ["official, VM-UNet − U-Net"][clean:]
    assert [label for label, value in splits.items() if value < 0.05] == ["ISIC17, stable − VM-UNetV2"]


def test_the_text_has_the_tests_of_the_scan():
    found, text = corrected(results.SCAN, "miou", False), text_of("docs/results.md")
    others = {label: value for label, value in found.items() if not label.endswith("U-Net")}
    lowest, highest = (f"{extreme(others.values()):#.2g}" for extreme in (min, max))
    assert f"(p from {lowest} to {highest} after Holm's correction)" in text
    unet = "official, VM-UNet − U-Net"
    clean = corrected(results.SCAN, "miou", True)[unet]
    assert f"official test (p = {found[unet]:#.2g}), but without its leaked images" in text
    assert f"(p = {clean:#.2g}). On the 144 photographs" in text
    assert f"no significant difference (p = {found['unseen, VM-UNet − U-Net']:#.2g})" in text
    intervals = [(test["low"], test["high"]) for test in (compared(*results.SCAN[label], "miou") for label in others)]
    outside = [label for label, (low, high) in zip(others, intervals, strict=True) if low > 0 or high < 0]
    assert outside == ["official, VM-UNet − 7 x 7 convolution", "unseen, VM-UNet − 7 x 7 convolution"]
    widths = sorted(100 * (high - low) for low, high in intervals)
    assert f"{widths[0]:.1f} to {widths[-1]:.1f} points wide" in text
