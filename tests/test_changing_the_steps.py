"""docs/operations.md, 'Changing the steps': a step that is added to `create_account` runs once for each account.

The tests take the page's code. Each way to create an account runs in a copy of the program that has a fourth step.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import create_account
from clients.panic import panic_if
from create_account import commit_account, generate_guid, stage_account
from operations.steps import are_of_batches, names_of

from .conftest import HANG_S, ROOT, ServerWorld, World, numbered, wait_until
from .operations.backfills import killed
from .operations.commands import Done, assert_verdict, commit, halt, script, stage

PAGE = (ROOT / "docs" / "operations.md").read_text()
SOURCE = (ROOT / "create_account.py").read_text()
RESULT = '    return {"uuid": uuid, "guid": committed.guid}\n'
WORKFLOW = SOURCE[SOURCE.index("@types.coroutine") : SOURCE.index("#: 100 years")]
SINGLE_RUNS = "create_account has other steps than a batch: each account is a single run, which is slower"


def code(kind: str) -> str:
    """Return the page's block of this kind."""
    [block] = re.findall(rf"```python {kind}\n(.*?)```", PAGE, re.DOTALL)
    return str(block)


def changed(*edits: tuple[str, str]) -> str:
    source = SOURCE
    for text, edit in edits:
        assert source.count(text) == 1, text
        source = source.replace(text, edit)
    return source


ADDED = [("# -- Steps ", code("step") + "\n\n# -- Steps "), (RESULT, code("call") + RESULT)]
RAISED = [
    ("#: 100 years", WORKFLOW.replace("def create_account(", "def create_account_1(") + "#: 100 years"),
    ('    resonate.register(create_account, name="create_account")\n', code("register")),
]

#: The program, by what happens to the version.
SOURCES = {"same version": changed(*ADDED), "version raised": changed(*ADDED, *RAISED)}


@dataclass
class Changed:
    """The program with the fourth step, in a world."""

    world: World
    directory: Path

    def start(self, *arguments: str, **env: str) -> subprocess.Popen[str]:
        paths = {"PYTHONPATH": str(self.directory), "STEPS_FILE": str(self.world.steps_file), "LEASE": "2"}
        return subprocess.Popen(
            [sys.executable, *arguments], env=self.world.environ() | paths | env, cwd=self.world.directory, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, *arguments: str, stdin: str = "", crash: str = "") -> Done:
        """Run the program with the points of crash.py."""
        with self.start("-m", "tests.crash", *arguments, CRASH=crash) as process:
            out, err = process.communicate(stdin, timeout=HANG_S)
        assert "Traceback" not in err, err
        assert process.returncode == -signal.SIGKILL or not crash
        return Done([], process.returncode, out, err)

    def operations(self, *arguments: str, stdin: str = "") -> Done:
        return self.run("-m", "operations", *arguments, stdin=stdin)

    def announced(self) -> list[str]:
        """Return the uuids for which the fourth step ran."""
        file = self.world.directory / "announced"
        return [line.split()[0] for line in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture(
    params=[
        pytest.param("version raised", marks=pytest.mark.slow),
        pytest.param("same version", marks=pytest.mark.deep),
    ]
)
def source(request: pytest.FixtureRequest) -> str:
    return SOURCES[request.param]


def changed_program(world: World, source: str) -> Changed:
    directory = world.directory / "changed"
    directory.mkdir()
    (directory / "create_account.py").write_text(source)
    for name in ("clients", "operations", "tests"):
        (directory / name).symlink_to(ROOT / name)
    return Changed(world, directory)


@pytest.fixture
def program(embedded_world: World, source: str) -> Changed:
    return changed_program(embedded_world, source)


# -- Each way to create an account -----------------------------------------


@pytest.mark.parametrize("point", ["", "after write 1", "after save 3", "before settle the promise"])
def test_single_run_and_its_reruns_run_the_step_once_also_after_a_kill(program: Changed, point: str) -> None:
    if point:
        program.run("u", crash=point)
    for _ in range(2):
        done = program.run("--steps", "u")
        assert done.returncode == 0, done.stderr
        assert "step 4, announce: " in done.stderr
    assert program.announced() == ["u"]


def test_application_runs_the_step_once(program: Changed) -> None:
    [application] = re.findall(r"```python application\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    with program.start("-c", application) as process:
        assert process.communicate(timeout=HANG_S)[0] == "True\n"
    assert program.announced() == ["user-123"]


@pytest.mark.parametrize("count", [1, 2, 300])
def test_backfill_makes_single_runs_says_so_and_runs_the_step_once_for_each_account(
    program: Changed, count: int
) -> None:
    uuids = numbered("u", count)
    first, again = (program.operations("backfill", stdin="\n".join(uuids)) for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert first.stdout == again.stdout
    assert [line.split("\t")[0] for line in first.stdout.splitlines()] == uuids
    assert first.stderr.count(SINGLE_RUNS) == 1
    assert sorted(program.announced()) == sorted(uuids)


@pytest.mark.parametrize(
    ("found", "point"),
    [("a row", ""), ("an account", "after save 2"), ("both", ""), ("nothing", "after save 3"), ("a lost account", "")],
)
def test_adoption_runs_the_step_once(program: Changed, guid: str, found: str, point: str) -> None:
    world = program.world
    if found == "a lost account":
        guid = world.run("u").guid
        world.lose_ledger()
        assert world.accounts("u") == []  # this makes the empty file
    else:
        halt(world, "u")
    if found in ("a row", "both"):
        stage(world, "u", guid)
    if found in ("an account", "both"):
        commit(world, "u", guid)
    again = ["--again"] * (found in ("nothing", "a lost account"))
    if point:
        program.run("-m", "operations", "adopt", *again, "u", crash=point)
    done, repeated = (program.operations("adopt", *again, "u") for _ in range(2))
    assert done.returncode == repeated.returncode == 0, done.stderr
    assert program.run("u").stdout == done.stdout == repeated.stdout
    assert found == "nothing" or done.stdout == f"UUID: u\nGUID: {guid}\n"
    assert program.announced() == ["u"]
    assert world.rows("u") == world.accounts("u")


def test_worker_and_every_other_process_of_a_server_run_the_step_once(
    server_world: ServerWorld, source: str, user: str, guid: str
) -> None:
    program = changed_program(server_world, source)
    requested, single, adopted, *listed = uuids = numbered(user, 6)
    halt(server_world, adopted)
    stage(server_world, adopted, guid)
    with program.start("-m", "operations", "worker") as worker:
        version = ["--version", "2"] if "version=2" in source else []
        invoke = ["resonate", "invoke", "-S", server_world.env["RESONATE_URL"], f"create-account-{requested}"]
        call = ["--func", "create_account", "--json-args", f'["{requested}"]', "--target", "poll://any@create-account"]
        subprocess.run([*invoke, *call, *version, "--timeout", "36500d"], check=True, capture_output=True)
        wait_until(lambda: requested in program.announced())
        assert program.run(single).returncode == 0
        assert program.operations("adopt", adopted).returncode == 0
        assert program.operations("backfill", stdin="\n".join(listed)).returncode == 0
        for uuid in uuids:
            assert program.run(uuid).returncode == 0
        worker.send_signal(signal.SIGTERM)
        worker.communicate(timeout=HANG_S)
    assert sorted(program.announced()) == sorted(uuids)


# -- What began before the change ------------------------------------------


def test_account_that_began_before_the_change_ends_with_the_steps_of_its_version(program: Changed) -> None:
    raised = "create_account_1" in (program.directory / "create_account.py").read_text()
    program.world.run("u", crash="after save 2")
    assert program.operations("halted").returncode == 0
    assert "pending\n" in program.operations("check", "u").stdout
    assert program.run("u").returncode == 0
    assert program.announced() == ([] if raised else ["u"])


@pytest.mark.slow
def test_former_program_says_that_it_lacks_the_new_version(embedded_world: World) -> None:
    program = changed_program(embedded_world, SOURCES["version raised"])
    program.run("u", crash="after save 2")
    cause = "function not found: create_account (version 2)"
    assert f"cannot execute promise create-account-u: {cause}" in embedded_world.run("u").err
    halted, check = script(embedded_world, "halted"), script(embedded_world, "check", "u")
    assert (halted.returncode, halted.stdout.splitlines()[-1]) == (98, "1 halted, 0 adopted")
    assert f"cannot be executed: {cause}" in halted.stdout
    assert check.stdout.splitlines()[0] == f"promise create-account-u: pending and cannot be executed: {cause}"
    assert f"staged: promise create-account-u is pending and cannot be executed: {cause}" in check.stdout
    assert program.operations("halted").returncode == 0
    assert program.run("u").returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("point", ["after save 1", "after write 3", "after save 4"])
@pytest.mark.parametrize("version", SOURCES)
def test_interrupted_batch_ends_with_its_steps_if_their_version_is_registered_and_else_stays_pending(
    embedded_world: World, version: str, point: str
) -> None:
    """The former program ends it, too."""
    program, uuids = changed_program(embedded_world, SOURCES[version]), numbered("u", 3)
    killed(embedded_world, uuids, point)
    accounts = [embedded_world.accounts(uuid) for uuid in uuids]
    lacks = 0 if version == "version raised" else 3
    halted = program.operations("halted")
    done = program.operations("backfill", stdin="\n".join([*uuids, "new"]))
    assert halted.returncode == done.returncode == (98 if lacks else 0), done.stderr
    assert f"created 1, existing {3 - lacks}, halted {lacks}" in done.stderr
    cause = "function not found: create_accounts (version 1)"
    assert halted.stdout.count(cause) == done.stderr.count(cause) == lacks
    assert not lacks or [embedded_world.accounts(uuid) for uuid in uuids] == accounts
    assert script(embedded_world, "backfill", stdin="\n".join(uuids)).returncode == 0
    for uuid in uuids:
        assert_verdict(embedded_world, uuid, 0, "exists")
    assert program.announced() == ["new"]


# -- The steps of a batch --------------------------------------------------


def edited(text: str, edit: str) -> Any:
    """Return the workflow after an edit, with the steps of the program."""
    assert WORKFLOW.count(text) == 1, text
    names = vars(create_account).copy()
    exec(WORKFLOW.replace(text, edit), names)  # noqa: S102
    return names["create_account"]


async def as_coroutine(ctx: Any, uuid: str) -> Any:
    """The same steps, written with `await`."""
    guid = await ctx.run(generate_guid, uuid)
    staged = await ctx.run(stage_account, uuid, guid)
    panic_if(staged.type == "exists_diff", "SQLite exists_diff", uuid, staged)
    panic_if(staged.type == "ordering_violated", "ordering violated", uuid, staged)
    committed = await ctx.run(commit_account, uuid, staged.guid)
    panic_if(committed.type == "exists_diff", "TigerBeetle exists_diff", uuid, committed)
    panic_if(committed.type == "ordering_violated", "ordering violated", uuid, committed)
    return {"uuid": uuid, "guid": committed.guid}


def test_batch_does_what_create_account_does() -> None:
    assert are_of_batches(create_account.create_account)
    assert are_of_batches(as_coroutine)
    assert names_of(create_account.create_account) == ["generate_guid", "stage_account", "commit_account"]


EDITS = {
    "a step at the end": (RESULT, "    yield from ctx.run(print, uuid).__await__()\n" + RESULT),
    "a step without an end": (RESULT, "    while True:\n        yield from ctx.run(print, uuid).__await__()\n"),
    "a step that nobody waits for": (RESULT, "    ctx.run(print, uuid).close()\n" + RESULT),
    "no step 3": ("yield from saved(ctx.run(commit_account, uuid, staged.guid))", "staged"),
    "another step 2": ("ctx.run(stage_account,", "ctx.run(commit_account,"),
    "another guid": ("uuid, staged.guid)", "uuid, guid)"),
    "another result": (RESULT, '    return {"uuid": uuid, "guid": guid}\n'),
    "no panic": ('panic_if(staged.type == "ordering_violated"', "panic_if(False"),
    "another request to the SDK": (RESULT, "    yield from ctx.sleep(1).__await__()\n" + RESULT),
}


@pytest.mark.parametrize("name", EDITS)
def test_batch_is_not_used_for_other_steps(name: str) -> None:
    assert not are_of_batches(edited(*EDITS[name]))
