import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

import ui
from ui.__main__ import main

ROOT = Path(ui.__file__).parent.parent


def test_help_does_not_import_streamlit():
    script = (
        "import sys\n"
        "from ui.__main__ import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "print([name for name in ('streamlit', 'httpx', 'pandas') if name in sys.modules])\n"
    )
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--server" in result.stdout and result.stdout.endswith("[]\n")


def test_a_taken_port_is_one_sentence(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["--port", str(port)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(rf"Port {port} on 127\.0\.0\.1 is taken .*--port\.\n", printed.err)


def test_an_address_of_another_machine_is_one_sentence(capsys):
    assert main(["--host", "192.0.2.1", "--port", "8502"]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("Cannot listen on 192.0.2.1, port 8502") and printed.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--server", "localhost:8501"], "http://127.0.0.1:8501"),
        (["--port", "99999"], "65535"),
        (["--language", "fr"], "zh"),
    ],
)
def test_a_wrong_option_says_what_was_expected(arguments, named, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    printed = capsys.readouterr().err
    assert end.value.code == 2
    assert named in printed and arguments[1] in printed


@pytest.mark.slow
def test_ctrl_c_ends_with_code_0_and_no_traceback():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "ui", "--port", str(port)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        # Streamlit says so when it listens; before that line Ctrl-C would meet its start.
        lines = iter(process.stdout.readline, "")
        assert any("server started" in line for line in lines)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health") as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    assert "Traceback" not in printed
