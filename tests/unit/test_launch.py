"""What is rendered for clusters is what they take, and says what it was asked to say; nodes that differ are named."""

from __future__ import annotations

import dataclasses
import re
import shlex
import signal
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from align import plan
from align.loading import load_shape
from envs.errors import AGAIN, FAILED, MISTAKE, UptakeError
from launch import render, sbatch
from launch.cli import app
from launch.local import run_local
from launch.named import find
from launch.preflight import Node, look, problems
from launch.run_folder import FREE_DISK
from launch.torchrun import status_of

GIB = 2**30
NODE = Node(0, "a", {"torch": "2.13.0"}, (("H100", 79 * GIB, 80 * GIB),) * 8, "token", GIB, GIB)
HEADER = "#!/usr/bin/env bash\n"


def slurm(*overrides: str, **options) -> str:
    return render.slurm("quickstart", overrides, **{"nodes": 2, "ranks": 8, "time": "24:00:00"} | options)


def k8s(*overrides: str, **options) -> list[dict]:
    options = {"nodes": 2, "ranks": 8, "image": "registry/uptake:1", "claim": "runs"} | options
    return list(yaml.safe_load_all(render.k8s("quickstart", overrides, **options)))


def filled(word: str) -> str:
    """A word as Kubernetes hands it on: $$ is a dollar, and $(NAME) a variable."""
    return re.sub(r"\$\$|\$\(\w+\)", lambda found: "$" if found[0] == "$$" else "!", word)


def test_the_batch_script_asks_for_what_was_asked_for():
    found = sbatch.directives(slurm(site={"partition": "gpu", "account": "speech"}, cpus=96, memory="900G"))
    assert found["nodes"] == "2"
    assert found["gpus-per-node"] == "8"
    assert found["ntasks-per-node"] == "1"
    assert found["partition"] == "gpu"
    assert found["account"] == "speech"
    assert found["cpus-per-task"] == "96"
    assert found["mem"] == "900G"
    assert found["signal"] == "B:USR1@300"
    assert found["requeue"] == ""


def test_the_cores_reach_the_ranks_since_srun_does_not_take_them_from_the_job():
    # sbatch's manual, --cpus-per-task: "Beginning with 22.05, srun will not inherit the --cpus-per-task value".
    assert "srun --kill-on-bad-exit=1 --cpus-per-task=96 uptake launch local" in slurm(cpus=96)
    assert "cpus" not in slurm()


@pytest.mark.parametrize(
    ("ranks", "status"),
    [
        ([MISTAKE, -signal.SIGTERM], MISTAKE),  # torchrun ends the others
        ([MISTAKE, AGAIN], MISTAKE),
        ([130, 130], AGAIN),  # all have written their checkpoint
        ([AGAIN, -signal.SIGTERM], AGAIN),
        ([-signal.SIGUSR1], AGAIN),
        ([-signal.SIGKILL, AGAIN], FAILED),
        ([-signal.SIGSEGV, -signal.SIGTERM], FAILED),
        ([1, -signal.SIGTERM], FAILED),
    ],
)
def test_a_node_ends_with_what_its_ranks_ended_with(ranks, status):
    assert status_of(ranks) == status


def test_without_gpus_none_are_asked_for():
    assert "gpus-per-node" not in sbatch.directives(slurm(gpus=False))
    assert k8s(gpus=False)[1]["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"] == {"cpu": 8}


@settings(deadline=None, max_examples=15)
@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=30))
def test_what_a_user_writes_reaches_the_command_as_one_word(text):
    override = f"wandb.project='{text.replace(chr(39), chr(39) * 2)}'"
    script = slurm(override)
    sbatch.directives(script)
    command = script[script.index("srun") : script.index("&\n")].replace("$master", "m")
    shown = subprocess.run(
        ["bash", "-c", f"srun() {{ printf '%s\\0' \"$@\"; }}; {command}"], capture_output=True, check=True
    )
    words = shown.stdout.decode().split("\0")
    assert words[1:6] == ["uptake", "launch", "local", "quickstart", override]
    given = k8s(override)[1]["spec"]["template"]["spec"]["containers"][0]["command"]
    assert [filled(word) for word in given[3:5]] == ["quickstart", override]


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1))
def test_an_option_is_one_word_to_sbatch_whatever_its_value_has(text):
    value = f"a{text}z"
    line = f"#SBATCH --comment={sbatch.quoted(value)}"
    assert sbatch.directives(f"{HEADER}{line}\n")["comment"] == value
    # sbatch groups by quotes, drops a backslash, and leaves out what follows a '#', as a shell does.
    assert shlex.split(line.removeprefix("#SBATCH"), comments=True) == [f"--comment={value}"]


def test_what_has_spaces_and_quotes_is_quoted_in_the_script():
    script = slurm(site={"comment": 'say "hi', "mail-user": "a@b.c"})
    assert '\n#SBATCH --comment="say \\"hi"\n#SBATCH --mail-user=a@b.c\n' in script


def test_an_option_without_a_value_is_given_by_its_name():
    site = render.pairs(["exclusive", "contiguous", "nice=5", "export=ALL,A=b=c", "partition=gpu"])
    script = slurm(site=site)
    assert "\n#SBATCH --exclusive\n#SBATCH --contiguous\n#SBATCH --nice=5\n#SBATCH --export=ALL,A=b=c\n" in script
    found = sbatch.directives(script)
    assert found["exclusive"] == found["contiguous"] == ""
    assert sbatch.directives(slurm(site={"exclusive": "user"}))["exclusive"] == "user"


def test_the_log_is_written_where_the_site_says():
    assert sbatch.directives(slurm())["output"] == "uptake-quickstart-%j.out"
    found = sbatch.directives(slurm(site={"output": "logs/%j.out", "error": "my logs/%j"}))
    assert (found["output"], found["error"]) == ("logs/%j.out", "my logs/%j")


@given(st.integers(0, 400), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
def test_a_time_is_read_as_sbatch_reads_it(days, hours, minutes, seconds):
    for text, long in (
        (f"{minutes}", (0, 0, minutes, 0)),
        (f"{minutes}:{seconds:02}", (0, 0, minutes, seconds)),
        (f"{hours}:{minutes:02}:{seconds:02}", (0, hours, minutes, seconds)),
        (f"{days}-{hours}", (days, hours, 0, 0)),
        (f"{days}-{hours}:{minutes:02}", (days, hours, minutes, 0)),
        (f"{days}-{hours}:{minutes:02}:{seconds:02}", (days, hours, minutes, seconds)),
    ):
        sbatch.check("time", text, "here")
        assert sbatch.seconds(text) == ((long[0] * 24 + long[1]) * 60 + long[2]) * 60 + long[3]


def test_a_job_has_time_to_train_before_it_is_asked_to_stop():
    for time in ("6", "6:00", "0:06:00", "0-0:06"):
        with pytest.raises(UptakeError, match=r"--grace 300: .* as soon as it begins"):
            slurm(time=time, grace=300)
    assert sbatch.directives(slurm(time="7", grace=300))["signal"] == "B:USR1@300"
    assert sbatch.directives(slurm(time="0", grace=300))["time"] == "0", "no limit"


def test_the_batch_script_is_bash():
    subprocess.run(["bash", "-n"], input=slurm(setup="source 'my env/bin/activate'"), text=True, check=True)


def test_the_manifests_fit_the_schema_of_kubernetes():
    service, job = k8s(namespace="speech")
    for resource in (service, job):
        kubernetes_validate.validate(resource, "1.31", strict=True)
        assert resource["metadata"]["namespace"] == "speech"
    container = job["spec"]["template"]["spec"]["containers"][0]
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 2
    # The first pod's name in the network is the job's, its index and the service's.
    assert f"--master={job['metadata']['name']}-0.{service['metadata']['name']}:29500" in container["command"]
    assert job["spec"]["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": job["metadata"]["name"]}
    ignored = [rule for rule in job["spec"]["podFailurePolicy"]["rules"] if rule["action"] == "Ignore"]
    assert {"operator": "In", "values": [AGAIN]} in [rule.get("onExitCodes") for rule in ignored]


@settings(deadline=None, max_examples=15)
@given(st.text("$()aA_ ", max_size=12))
def test_kubernetes_fills_in_no_variable(text):
    override = f"wandb.project='{text}'"
    assert filled(k8s(override)[1]["spec"]["template"]["spec"]["containers"][0]["command"][4]) == override


@pytest.mark.parametrize(
    ("option", "wrong", "right"),
    [
        ("namespace", ["", "Bad_NS!", "-a", "a-", "a.b", "x" * 64], ["default", "a-1", "x" * 63]),
        ("claim", ["", "my claim!", "a..b", ".a", "a_b", "x." * 127 + "x"], ["runs", "team.runs-2"]),
        (
            "image",
            ["", "a b", "registry/Uptake:1", "a:", "a//b", "/a", "a@sha256", "a:b:c\n"],
            ["uptake", "h:5000/team/up_take:v1.0-rc", f"docker.io/a@sha256:{'0f' * 32}", "localhost/a:b@sha256:00"],
        ),
        ("mount", ["", "work", "/", "/a:b", "/a\nb"], ["/work", "/my runs/größe"]),
    ],
)
def test_a_name_that_kubernetes_would_not_take_is_refused(option, wrong, right):
    for value in wrong:
        with pytest.raises(UptakeError, match=f"^--{option} '{re.escape(value)}': expected "):
            k8s(**{option: value})
    for value in right:
        assert value in str(k8s(**{option: value}))


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("#SBATCH --nodes=1\n", "the first line names no interpreter"),
        (HEADER + "#SBATCH --nodez=1\n", "no option --nodez; did you mean 'nodes'"),
        (HEADER + "#SBATCH --nodes=two\n", "--nodes=two: expected a number"),
        (HEADER + "#SBATCH --time=tomorrow\n", "expected minutes, h:mm:ss"),
        (HEADER + "#SBATCH --signal=USR1@70000000\n", "expected [B:]SIGNAL@SECONDS"),
        (HEADER + "#SBATCH --signal=USR1@70000\n", "expected [B:]SIGNAL@SECONDS, at most 65535"),
        (HEADER + "#SBATCH --mem=lots\n", "expected a size"),
        (HEADER + "#SBATCH --account=\n", "--account needs a value"),
        (HEADER + "#SBATCH --requeue=yes\n", "--requeue takes no value"),
        (HEADER + "#SBATCH --exclusive=me\n", "--exclusive=me: expected user, mcs, topo, or no value"),
        (
            HEADER + "#SBATCH --comment=a b\n",
            '--comment=a b: sbatch would read a part of it as something else; write "a b"',
        ),
        (HEADER + '#SBATCH --comment="a\n', 'write "\\"a"'),
        (HEADER + "#SBATCH --comment=a#b\n", 'write "a#b"'),
        (HEADER + "#SBATCH -N 2\n", "write #SBATCH --option=value"),
        (HEADER + "#SBATCH --nodes=1\n#SBATCH --nodes=2\n", "line 3: --nodes is given twice"),
        (HEADER + "echo\n#SBATCH --nodes=2\n", "line 3: '#SBATCH --nodes=2' stands below a command"),
    ],
)
def test_a_header_that_sbatch_would_refuse_or_ignore_is_refused_with_its_line(script, said):
    with pytest.raises(UptakeError) as refused:
        sbatch.directives(script)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"time": "1day"}, "--time=1day"),
        ({"site": {"partiton": "gpu"}}, "did you mean 'partition'"),
        ({"site": {"nodes": "3"}}, "--nodes is given twice"),
        ({"site": {"comment": "two\nlines"}}, "expected one line"),
        ({"site": {"partition": None}}, "--site partition: --partition needs a value; write --partition=VALUE"),
        (
            {"site": {"exclusive": ""}},
            "--site exclusive=: --exclusive needs a value; write --exclusive=VALUE, or --exc",
        ),
        ({"site": {"contiguous": "yes"}}, "--contiguous takes no value, found 'yes'; write --contiguous"),
        ({"grace": 70000}, "--grace 70000: sbatch asks at most 65535 seconds before the end"),
    ],
)
def test_an_option_that_sbatch_would_not_take_is_refused_before_anything_is_submitted(options, said):
    with pytest.raises(UptakeError) as refused:
        slurm(**options)
    assert said in str(refused.value)


def test_a_site_option_is_given_once():
    with pytest.raises(UptakeError, match="--site qos=b: qos is given twice"):
        render.pairs(["qos=a", "qos=b"])


def test_a_script_is_not_written_into_a_folder_that_is_not_there(tmp_path: Path):
    done = CliRunner().invoke(app, ["launch", "slurm", "quickstart", "--out", str(tmp_path / "no" / "job.sh")])
    assert isinstance(done.exception, UptakeError)
    assert f"there is no folder {tmp_path / 'no'}; make it first" in str(done.exception)


def test_a_run_whose_name_is_no_name_for_a_job_is_refused():
    with pytest.raises(UptakeError, match="set name="):
        slurm("name=" + "x" * 60)


def test_a_setting_that_the_trainer_would_refuse_is_refused_by_the_launcher():
    with pytest.raises(UptakeError, match="unknown key"):
        slurm("grpo.iteration=3")


def test_a_tool_that_is_missing_is_named(monkeypatch):
    from launch import submit

    monkeypatch.setenv("PATH", "")
    with pytest.raises(UptakeError, match="sbatch is not on this machine; write the file with --out"):
        submit.to_slurm(slurm())


def test_nodes_of_one_kind_have_no_problems():
    assert problems([NODE, dataclasses.replace(NODE, index=1, host="b")], 8, "token") == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"versions": {"torch": "2.12.0"}}, "node 1 (b): torch 2.12.0, node 0 has 2.13.0"),
        ({"gpus": NODE.gpus[:6]}, "node 1 (b): 6 GPUs for 8 ranks"),
        ({"gpus": (("H100", 9 * GIB, 80 * GIB), *NODE.gpus[1:])}, "GPU 0 (H100) has 9 of 80 GiB free"),
        ({"token": ""}, "does not see the run folder of node 0"),
        ({"free_disk": GIB // 2}, "0.5 GiB free for the run folder, this run needs 1.0"),
        ({"wrong": "no checkpoint 'mine'"}, "node 1 (b): no checkpoint 'mine'"),
    ],
)
def test_a_node_that_differs_is_named_with_the_difference(change, said):
    other = dataclasses.replace(NODE, index=1, host="b", **change)
    found = problems([NODE, other], 8, "token")
    assert len(found) == 1
    assert said in found[0]


def test_what_a_node_has_yet_to_write_follows_from_the_run_and_a_policy_that_it_cannot_read_is_named(tmp_path: Path):
    def seen(name: str, *overrides: str) -> Node:
        return look(0, find(name, [f"runs={tmp_path}", *overrides]))

    model, hidden = load_shape("pocket")
    for name, key, *more in (("quickstart", "grpo"), ("recipes/ppo", "ppo"), ("sft/pocket", "sft", "data.path=x")):
        one, three = (seen(name, f"{key}.save_total_limit={n}", *more).needed_disk for n in (1, 3))
        section = find(name, more).section
        assert three - one == 2 * plan.checkpoint(plan.written(model, hidden, section)[1], section) > 0
        assert one > FREE_DISK
    assert "no checkpoint 'mine': not a folder" in seen("quickstart", "policy=mine").wrong


def test_a_warm_start_is_launched_by_its_name_or_by_its_file(tmp_path: Path):
    assert find("sft/pocket", ["data.path=x"]).command == ("sft", "pocket")
    mine = tmp_path / "mine.yaml"
    mine.write_text("data: {path: x}\n")
    found = find(str(mine), [])
    assert found.command == ("sft", str(mine)) and found.section.section == "sft"
    mine.write_text("ppo: {}\n")
    assert find(str(mine), []).command == ("train", str(mine))
    with pytest.raises(UptakeError, match=r"no configuration 'pockt'.* did you mean 'pocket'"):
        find("sft/pockt", [])
    script = render.slurm("sft/pocket", ["data.path=x"], nodes=1, ranks=2, time="1:00:00")
    assert "uptake launch local sft/pocket data.path=x" in script and "#SBATCH --job-name=uptake-warm-start" in script
    done = tmp_path / "warm-start" / "policy" / "config.json"
    done.parent.mkdir(parents=True)
    done.write_text("{}")
    assert run_local("sft/pocket", ["data.path=x", f"runs={tmp_path}"]) == 0


def test_a_finished_run_is_left_alone(tmp_path: Path, capsys):
    (tmp_path / "quickstart").mkdir()
    (tmp_path / "quickstart" / "report.html").write_text("done")
    assert run_local("quickstart", [f"runs={tmp_path}"]) == 0
    assert "finished" in capsys.readouterr().out


@pytest.mark.parametrize("master", ["", "node0", "node0:", ":29500", "node0:x", "node0:²", "node0:99999"])
def test_several_nodes_need_to_know_where_to_meet(tmp_path: Path, master):
    with pytest.raises(UptakeError, match="give HOST:PORT of the first one"):
        run_local("quickstart", [f"runs={tmp_path}"], nodes=2, master=master)


def test_a_node_has_a_place_among_the_nodes(tmp_path: Path):
    with pytest.raises(UptakeError, match="it is 0 to 1"):
        run_local("quickstart", [f"runs={tmp_path}"], nodes=2, node_rank=2, master="a:1234")
