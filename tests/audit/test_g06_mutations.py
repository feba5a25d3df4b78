"""G6: every change of a log is found, and a good log raises no alarm."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from brix_core import BRIX
from brix_core.audit.canonical import canonical, digest_of, parsed
from brix_core.audit.lines import Head
from brix_core.audit.log import close_logs, flush_logs
from brix_core.audit.verify import verify
from tests.audit.logs import KEY, Parrot, write_log

MUTATIONS = 10_000
LOG, HEAD = "brix_audit.jsonl", "brix_audit.head"

Files = dict[str, bytes]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of two files."""
    path = tmp_path_factory.mktemp("good")
    client = BRIX.wrap(Parrot(), log_path=path, log_max_bytes=8_192, record=False)
    for number in range(12):
        client.complete_sync(f"question {number}")
        flush_logs()  # a file is rotated between two batches
    close_logs()
    assert len(list(path.glob("*.jsonl"))) == 2
    return path


def read(path: Path) -> Files:
    return {file.name: file.read_bytes() for file in path.iterdir() if file.name != "brix_audit.lock"}


def _some_file(files: Files, dice: random.Random) -> str:
    return dice.choice(sorted(files))


def _some_log(files: Files, dice: random.Random) -> str:
    return dice.choice(sorted(name for name in files if name != HEAD))


def edit_byte(files: Files, dice: random.Random) -> None:
    name = _some_file(files, dice)
    text = bytearray(files[name])
    text[dice.randrange(len(text))] ^= dice.randrange(1, 256)
    files[name] = bytes(text)


def delete_bytes(files: Files, dice: random.Random) -> None:
    name = _some_file(files, dice)
    text = files[name]
    start = dice.randrange(len(text))
    files[name] = text[:start] + text[start + dice.randint(1, 50) :]


def insert_bytes(files: Files, dice: random.Random) -> None:
    name = _some_file(files, dice)
    text, start = files[name], dice.randrange(len(files[name]) + 1)
    files[name] = text[:start] + dice.choice([b" ", b"\n", b"0", b"x", b"{}\n", dice.randbytes(3)]) + text[start:]


def truncate(files: Files, dice: random.Random) -> None:
    name = _some_file(files, dice)
    files[name] = files[name][: dice.randrange(len(files[name]))]


def _lines(change: Callable[[list[bytes], random.Random], None]) -> Callable[[Files, random.Random], None]:
    def mutate(files: Files, dice: random.Random) -> None:
        name = _some_log(files, dice)
        lines = files[name].splitlines(keepends=True)
        change(lines, dice)
        files[name] = b"".join(lines)

    mutate.__name__ = change.__name__
    return mutate


def delete_line(lines: list[bytes], dice: random.Random) -> None:
    del lines[dice.randrange(len(lines))]


def cut_lines(lines: list[bytes], dice: random.Random) -> None:
    del lines[dice.randrange(len(lines)) :]


def repeat_line(lines: list[bytes], dice: random.Random) -> None:
    lines.insert(dice.randrange(len(lines) + 1), dice.choice(lines))


def swap_lines(lines: list[bytes], dice: random.Random) -> None:
    one, two = dice.sample(range(len(lines)), 2)
    lines[one], lines[two] = lines[two], lines[one]


def move_line(lines: list[bytes], dice: random.Random) -> None:
    start, goal = dice.sample(range(len(lines)), 2)
    lines.insert(goal, lines.pop(start))


def delete_file(files: Files, dice: random.Random) -> None:
    del files[_some_file(files, dice)]


def swap_files(files: Files, dice: random.Random) -> None:
    one, two = dice.sample(sorted(files), 2)
    files[one], files[two] = files[two], files[one]


WAYS = (
    edit_byte,
    delete_bytes,
    insert_bytes,
    truncate,
    *map(_lines, (delete_line, cut_lines, repeat_line, swap_lines, move_line)),
    delete_file,
    swap_files,
)


def test_ten_thousand_random_mutations_and_none_is_missed(good: Path, tmp_path: Path) -> None:
    original, dice = read(good), random.Random(6)
    tried, missed = Counter[str](), []
    for number in range(MUTATIONS):
        way = dice.choice(WAYS)
        files = dict(original)
        way(files, dice)
        if files == original:  # such as a swap of equal pieces
            continue
        changed = [name for name in original.keys() | files.keys() if files.get(name) != original.get(name)]
        for name in changed:
            if name in files:
                (tmp_path / name).write_bytes(files[name])
            else:
                (tmp_path / name).unlink(missing_ok=True)
        for name in original.keys() - set(changed):
            if not (tmp_path / name).exists():
                (tmp_path / name).write_bytes(original[name])
        tried[way.__name__] += 1
        if verify(tmp_path).ok:
            missed.append((number, way.__name__, changed))
        for name in changed:
            (tmp_path / name).write_bytes(original[name])
    assert not missed
    assert sum(tried.values()) > 0.95 * MUTATIONS
    assert set(tried) == {way.__name__ for way in WAYS}
    assert verify(tmp_path).ok


def test_the_first_changed_entry_is_named(good: Path, tmp_path: Path) -> None:
    path = tmp_path / "log"
    shutil.copytree(good, path)
    lines = (path / LOG).read_bytes().splitlines(keepends=True)
    run_id = parsed(lines[2])["run_id"]
    lines[2] = lines[2].replace(b'"outcome":"ok"', b'"outcome":"OK"')
    (path / LOG).write_bytes(b"".join(lines))
    problem = verify(path).problems[0]
    assert (problem.file, problem.line, problem.run_id) == (LOG, 3, run_id)


def forged(path: Path) -> None:
    """Change the first entry, and make everything after it anew, as far as that goes without a key."""
    lines = (path / LOG).read_bytes().splitlines()
    made: list[bytes] = []
    for number, line in enumerate(lines):
        fields = parsed(line)
        if number == 1:
            fields["cost_usd"] = 0.0
        elif made:
            fields["log"]["previous"] = digest_of(made[-1])
        if number > 1 and fields["log"]["kind"] == "call":
            before = {name: value for name, value in parsed(made[-1]).items() if name != "log"}
            fields["chain_hash"] = digest_of(canonical(before))
        made.append(canonical(fields))
    text = b"\n".join(made) + b"\n"
    (path / LOG).write_bytes(text)
    head, seal = Head.read((path / HEAD).read_bytes())
    fields = head._replace(hash=digest_of(made[-1]), size=len(text))._asdict()
    (path / HEAD).write_bytes(canonical({**fields, **({} if seal is None else {"seal": dict(seal)})}) + b"\n")


def test_a_forgery_of_all_files_is_found_with_a_key_and_only_with_one(tmp_path: Path) -> None:
    write_log(tmp_path, 10, log_key=KEY)
    assert verify(tmp_path, KEY).ok
    forged(tmp_path)
    assert verify(tmp_path).ok  # as documented: who can write every file can make them anew
    found = verify(tmp_path, KEY)
    assert not found.ok
    assert any("seal does not fit" in problem.what for problem in found.problems)


def test_a_log_whose_seals_were_taken_off_does_not_verify_with_a_key(tmp_path: Path) -> None:
    write_log(tmp_path, 3)
    assert verify(tmp_path).ok
    assert any("seal is missing" in problem.what for problem in verify(tmp_path, KEY).problems)


def test_another_key_is_told_apart(tmp_path: Path) -> None:
    write_log(tmp_path, 3, log_key=KEY)
    assert any(
        "another key" in problem.what for problem in verify(tmp_path, b"another secret of 32 bytes......").problems
    )


def test_an_ed25519_key_seals_and_its_public_half_verifies(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "key.pem").write_bytes(pem)
    log = tmp_path / "log"
    write_log(log, 5, log_key=tmp_path / "key.pem")
    assert verify(log, public).ok
    assert verify(log, key.public_key()).ok
    assert not verify(log, Ed25519PrivateKey.generate().public_key()).ok
    forged(log)
    assert not verify(log, public).ok


def test_a_sealed_log_is_not_gone_on_with_by_whoever_lacks_its_key(tmp_path: Path) -> None:
    from brix_core import BrixConfigurationError

    write_log(tmp_path, 3, log_key=KEY)
    with pytest.raises(BrixConfigurationError, match="sealed with the key"):
        BRIX.wrap(Parrot(), log_path=tmp_path)
    write_log(tmp_path, 2, log_key=KEY)
    found = verify(tmp_path, KEY)
    assert (found.ok, found.entries, found.closed) == (True, 5, True)
