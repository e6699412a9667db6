"""A secret of the environment never becomes part of a run's configuration, and is not printed on the way."""

from __future__ import annotations

import pytest

from runyard.config.compose import compose
from runyard.errors import UserError

SECRET = "5ec7e75ec7e75ec7"


@pytest.mark.parametrize(("override", "setting"), [
    ("tracking.project=${oc.env:WANDB_API_KEY}", "tracking.project"), ("name=run-${oc.env:WANDB_API_KEY}", "name"),
    (f"tracking.tags=[a,{SECRET}]", "tracking.tags"), (f"cluster.env_setup=[export X={SECRET}]", "cluster.env_setup"),
    ("model=${oc.env:WANDB_API_KEY}", "model"), ("epochs=${oc.env:SHORT_TOKEN}", "epochs"),
    ("name=${oc.env:NO_SUCH_PASSWORD,x}", "name"), ("name=${oc.env:'DB_PASS'}", "name"),
    ("name=${oc.env:MYSQL_PWD,x}", "name"), ("name=${oc.env:GITHUB_PAT,x}", "name"),
    (f"+{SECRET}=1", "a name of a setting"), ("notify.command='curl ${oc.env:SLACK_WEBHOOK}'", "notify.command"),
])  # fmt: skip
def test_a_configuration_that_holds_a_secret_is_refused_without_saying_it(
    override: str, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setenv("SHORT_TOKEN", "12")
    with pytest.raises(UserError) as refused:
        compose(["experiment=starter", override])
    assert SECRET not in str(refused.value)
    assert str(refused.value).startswith(f"{setting}: holds the value of ")
    assert "in their environment" in str(refused.value)


def test_other_variables_and_what_only_looks_like_a_secret_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_PROJECT", "long-project-name")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "long-project-name")
    monkeypatch.setenv("SSH_KEY", "/tmp")
    monkeypatch.setenv("SHORT_KEY", "long")
    monkeypatch.setenv("PWD", "folder")
    made = compose(
        ["experiment=starter", "tracking.project=${oc.env:MY_PROJECT}", "data.root=/tmp/data", "name=${oc.env:PWD}"]
    )
    assert made.config.tracking.project == "long-project-name"
