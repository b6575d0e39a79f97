"""The words of runc and crun, and Docker's exit codes for them."""

from __future__ import annotations

import pytest

from insula.drivers.oci.faults import plain_words, refusal

RUNC = (
    'time="2026-01-02T03:04:05Z" level=warning msg="lstat : no such file"\n'
    'time="2026-01-02T03:04:05Z" level=error msg="runc create failed: unable to start container process: '
    'exec: \\"foo\\": executable file not found in $PATH"\n'
)
CRUN = "2026-01-02T03:04:05.678901Z: executable file `foo` not found in $PATH: No such file or directory\n"


def test_runcs_sentence() -> None:
    assert plain_words(RUNC) == (
        'runc create failed: unable to start container process: exec: "foo": executable file not found in $PATH'
    )


def test_cruns_sentence() -> None:
    assert plain_words(CRUN) == 'unable to start container process: exec: "foo": executable file not found in $PATH'


def test_no_words() -> None:
    assert plain_words("") == ""
    assert "without a word" in refusal("", "create", None).message


@pytest.mark.parametrize(
    ("stderr", "code"),
    [
        (RUNC, 127),
        (CRUN, 127),
        ("2026-01-02T03:04:05.6Z: executable file `/bin/foo` not found in $PATH: No such file or directory", 127),
        ("2026-01-02T03:04:05.6Z: open executable: Operation not permitted", 126),
        ("2026-01-02T03:04:05.6Z: mount `x` to `y`: Not a directory", 126),
        ('level=error msg="exec: \\"/x\\": stat /x: no such file or directory"', 127),
        ('level=error msg="exec: \\"/x\\": permission denied"', 126),
        ('level=error msg="exec: \\"/dev\\": is a directory"', 126),
        ('level=error msg="error mounting \\"/a\\": not a directory"', 126),
        ('level=error msg="error setting cgroup config"', 128),
    ],
)
def test_exit_codes(stderr: str, code: int) -> None:
    assert refusal(stderr, "create", "cmd").code == code


def test_the_sentence_is_dockers() -> None:
    fault = refusal(RUNC, "create", "conmon ...")
    assert fault.message == (
        "failed to create task for container: failed to create shim task: OCI runtime create failed: runc create failed: "
        'unable to start container process: exec: "foo": executable file not found in $PATH: unknown'
    )
    assert fault.command == "conmon ..."
    assert refusal(CRUN, "exec", None).message == (
        'OCI runtime exec failed: exec failed: unable to start container process: exec: "foo": executable file not found '
        "in $PATH: unknown"
    )


def test_hints() -> None:
    assert "Are you trying to mount a directory onto a file" in refusal("x: not a directory", "create", None).message
    limits = 'level=error msg="error setting rlimits for ready process: operation not permitted"'
    assert "CAP_SYS_RESOURCE" in refusal(limits, "create", None).message
