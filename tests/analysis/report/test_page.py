"""The report says what the journal says, needs nothing beside itself, and is written whatever state the run is in."""

import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from runyard.analysis.report.page import render, write_report
from runyard.data import manifest
from runyard.errors import UserError
from runyard.runs import journal
from runyard.runs.code.snapshot import take_snapshot
from runyard.runs.results.facts import load_report_data
from tests.support.fake_runs import start

VOID = {"meta", "link", "img", "br", "source"}


class Page(HTMLParser):
    """The page's elements; an unbalanced tag is an error."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.values, self.words = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "data":
            self.values.append(float(dict(attrs)["value"]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))


def text_of(fake):
    """The page of a run, with stand-ins for the figures, which take seconds."""
    facts = load_report_data(fake.run)
    return render(facts, {"curves": b"1"} | ({} if facts.confusion is None else {"confusion": b"2"}))


def references(text):
    """Everything the page could load from elsewhere."""
    found = re.findall(r"(?:src|srcset|href|action|poster|data)\s*=\s*[\"']([^\"']*)", text)
    found += re.findall(r"url\(([^)]*)\)|@import\s+(\S+)", text)
    return [f for f in map(str, found) if not f.startswith("data:") and f != ""]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, make_fake_run):
    """A finished run that was resumed twice, its report written."""
    fake = make_fake_run(tmp_path_factory.mktemp("finished"), epochs=12).train(restarts=(4, 9))
    fake.finish(images=1000, arrays=True)
    return fake, write_report(fake.run).read_text()


def test_the_report_is_a_page_and_two_figures_each_as_png_and_pdf(finished):
    fake, _ = finished
    folder = fake.path / "report"
    assert {p.name for p in folder.iterdir()} == {
        "index.html",
        "curves.png",
        "curves.pdf",
        "confusion.png",
        "confusion.pdf",
    }
    from PIL import Image

    for name in ("curves.png", "confusion.png"):
        with Image.open(folder / name) as picture:
            assert picture.info["dpi"] == pytest.approx((300, 300), abs=0.1)
            assert picture.width > 1500


def test_the_page_loads_nothing_from_anywhere(finished):
    _, text = finished
    assert references(text) == []
    assert "http" not in re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]*", "", text).replace("http-equiv", "")
    assert "<script" not in text
    assert "default-src 'none'" in text
    assert references('<img src="//there/x.png">') == ["//there/x.png"]  # negative control: the search finds one


def test_the_page_is_well_formed_and_every_picture_has_words(finished):
    _, text = finished
    tags = Page(text).tags
    assert all(attrs.get("alt") for tag, attrs in tags if tag == "img")
    assert any(attrs.get("name") == "viewport" for tag, attrs in tags if tag == "meta")
    assert "prefers-color-scheme: dark" in text


def test_every_headline_number_is_the_journals(finished):
    fake, text = finished
    rows, _ = journal.read_journal(fake.journal.path)
    final = next(row for row in rows if row["event"] == "final")
    last = journal.epochs(rows)[-1]
    values = Page(text).values
    for key in ("top1", "top1_best", "loss", "clock_s", "parameters"):
        assert final[key] in values, key
    assert {last["train_loss"], 2.0, 12.0} <= set(values)
    assert f"{100 * final['top1']:.2f} %" in Page(text).text
    assert "4,693,962" in Page(text).text


def test_every_class_has_its_accuracy_and_its_count(finished):
    fake, text = finished
    text = Page(text).text
    for label, name in enumerate(fake.classes):
        right, of = fake.confusion[label, label], fake.confusion[label].sum()
        assert f"{name} {100 * right / of:.1f} % {right} / {of}" in text


def test_the_most_confused_pairs_are_shown_with_images_that_were_really_mistaken(finished):
    fake, text = finished
    mistakes = fake.confusion * (1 - np.eye(10, dtype=int))
    true, predicted = divmod(int(mistakes.argmax()), 10)
    assert f"{fake.classes[true]} → {fake.classes[predicted]} {mistakes.max()} of" in Page(text).text
    predictions = np.load(fake.path / "predictions.npz")
    shown = re.findall(r'alt="test image (\d+): (\w+) taken for (\w+)"', text)
    assert len(shown) > 20
    for index, was, taken in shown:
        assert fake.classes[predictions["label"][int(index)]] == was
        assert fake.classes[predictions["predicted"][int(index)]] == taken


def test_the_papers_figures_stand_beside_ours_for_cifar10_only(finished, fake_run):
    _, text = finished
    words = Page(text).text
    for figure in ("1.8417", "0.5475", "1.7560", "0.5314", "43.33 %", "91.09 %", "92.68 %", "869", "960", "845", "941"):
        assert figure in words
    other = (
        fake_run(epochs=2, **{"data.kind": "cifar100", "data.name": "cifar100"})
        .train()
        .finish(images=1000, arrays=True)
    )
    assert "1.8417" not in text_of(other)


def test_each_restart_is_listed_with_where_it_went_on(finished):
    words = Page(finished[1]).text
    assert "Restart 1" in words
    assert "Restart 2" in words
    assert "Restart 3" not in words
    assert "resumed from step_00001365, step 1365" in words
    assert "gpu-018" in words


def test_markup_in_a_class_name_or_a_message_is_shown_as_text(fake_run):
    fake = fake_run(epochs=1, classes=["<script>alert(1)</script>", 'a"b<img src=x>', "$x_", "猫"])
    fake.train().journal.write("warning", message="<b>bold</b>")
    text = text_of(fake.finish(0.5, images=80, arrays=True))
    tags = Page(text).tags
    assert not any(tag in ("script", "b") and attrs for tag, attrs in tags)
    assert "<script>" not in text
    assert not any(attrs.get("src") == "x" for _, attrs in tags)
    assert "&lt;script&gt;" in text
    assert "&lt;b&gt;bold" in text


def test_without_escaping_the_markup_would_be_live(fake_run, monkeypatch):
    """Negative control of the test above."""
    from runyard.analysis import html

    monkeypatch.setattr(html, "ENVIRONMENT", html.ENVIRONMENT.overlay(autoescape=False))
    fake = fake_run(epochs=1, classes=["<script>alert(1)</script>", "b"]).train().finish(0.5, images=80, arrays=True)
    assert "<script>" in text_of(fake)


RENDER = """
import sys
from runyard.analysis.report.page import render
from runyard.runs.results.facts import load_report_data
from runyard.runs.run import Run
print(render(load_report_data(Run.open(sys.argv[1])), {"curves": b""}))
"""


def test_the_code_that_is_copied_for_a_job_writes_the_report(finished, tmp_path):
    """And the control: without the template it does not."""
    code = tmp_path / "store" / take_snapshot(tmp_path / "store")[:16]
    command = [sys.executable, "-c", RENDER, str(finished[0].path)]
    environment = os.environ | {"PYTHONPATH": str(code), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "<h2>Curves</h2>" in done.stdout, done.stderr
    (code / "runyard/analysis/report/report.html").unlink()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "TemplateNotFound" in done.stderr


def test_an_unfinished_run_has_a_report_that_says_so(fake_run):
    fake = fake_run(epochs=20).train(done=3)
    words = Page(write_report(fake.run).read_text()).text
    assert "This run is not finished: 3 of 20 epochs" in words
    assert "Top-1 so far" in words
    assert not (fake.path / "report" / "confusion.png").exists()


def test_a_failed_run_says_why(fake_run):
    fake = fake_run(epochs=20).train(done=2)
    fake.journal.write("stop", reason="failed", message="loss is nan at step 801 on rank 1")
    words = Page(text_of(fake)).text
    assert "failed after 2 of 20 epochs: loss is nan at step 801 on rank 1" in words


def test_a_run_that_was_started_again_is_no_longer_called_interrupted(fake_run):
    fake = fake_run(epochs=20).train(done=2)
    fake.journal.write("stop", reason="interrupted", message="")
    assert load_report_data(fake.run).status[0] == "interrupted"
    fake.journal.write(**start(780))
    assert load_report_data(fake.run).status[0] == "running"


def test_a_failure_after_training_finished_does_not_unfinish_it(fake_run):
    fake = fake_run(epochs=1).train().finish(images=1000, arrays=True)
    fake.journal.write("stop", reason="failed", message="the report could not be written")
    assert load_report_data(fake.run).status[0] == "finished"


def test_a_run_that_never_started_has_a_report(fake_run):
    assert "has not started" in Page(write_report(fake_run().run).read_text()).text


def test_broken_lines_of_the_journal_are_counted_and_said(fake_run):
    fake = fake_run(epochs=2).train()
    with open(fake.journal.path, "a") as file:
        file.write('{"event": "epo\n[1]\n')
    assert "2 lines of the run's journal could not be read" in Page(text_of(fake)).text


def test_a_run_of_one_epoch_has_a_report(fake_run):
    assert write_report(fake_run(epochs=1).train().finish(images=1000, arrays=True).run).exists()


def test_epochs_without_test_figures_are_left_out_and_nothing_is_made_up(fake_run):
    facts = load_report_data(fake_run(epochs=10, evaluate_every_epochs=4).train().run)
    assert facts.series("test_top1")[0] == [4, 8, 10]
    assert facts.series("train_loss")[0] == list(range(1, 11))


def test_damaged_values_in_the_journal_are_left_out(fake_run):
    fake = fake_run(epochs=3).train(done=2)
    fake.journal.write("epoch", epoch=3, step=None, train_loss="x", test_top1=float("nan"), lr=[1])
    fake.journal.write("final", top1=None, confusion=[[1, 2], [3]], classes="ab")
    words = Page(text_of(fake)).text
    assert "Known after the final evaluation" in words


def test_when_the_arrays_are_gone_the_page_says_so(fake_run):
    fake = fake_run(epochs=1).train().finish(images=1000, arrays=True)
    shutil.rmtree(manifest.dataset_dir(fake.run.config.data))
    text = text_of(fake)
    assert "the prepared images are no longer at" in text
    assert 'class="faces"' not in text


def test_images_of_another_data_set_in_the_same_place_are_not_shown(fake_run):
    fake = fake_run(epochs=1).train().finish(images=1000, arrays=True)
    labels = manifest.dataset_dir(fake.run.config.data) / "test_labels.npy"
    np.save(labels, np.load(labels)[::-1])
    text = text_of(fake)
    assert "no longer those the run was tested on" in text
    assert 'class="faces"' not in text


@pytest.mark.parametrize("name", ["predictions.npz", "data.json"])
def test_a_damaged_file_of_the_run_costs_the_sample_images_only(fake_run, name):
    fake = fake_run(epochs=1).train().finish(images=1000, arrays=True)
    content = (fake.path / name).read_bytes()
    (fake.path / name).write_bytes(content[: len(content) // 2])
    text = text_of(fake)
    assert "Test images are not shown" in text


def test_a_validation_part_decides_which_epoch_is_best(fake_run):
    fake = fake_run(epochs=5).train(validation=True)
    rows = [json.loads(line) for line in fake.journal.path.read_text().splitlines()]
    for row in rows[1:]:
        row["val_top1"] = 0.9 - 0.1 * abs(row["epoch"] - 2)
    fake.journal.path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert load_report_data(fake.run).best() == (0.9, 2)
    assert "validation, epoch 2" in Page(text_of(fake)).text


def test_an_unwritable_run_is_one_line(fake_run):
    fake = fake_run(epochs=1).train()
    (fake.path / "report").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="cannot write the report") as caught:
        write_report(fake.run)
    assert "\n" not in str(caught.value)


def test_the_report_needs_no_torch_and_imports_matplotlib_when_it_draws():
    heavy = ("torch", "matplotlib", "ffcv", "PIL")
    program = f"import sys, runyard.analysis.report.page; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
