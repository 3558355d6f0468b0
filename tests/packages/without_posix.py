"""A plugin of pytest: take away what Windows lacks, before tests are collected."""

import importlib
import importlib.util
import os
import signal
import sys
import warnings

import pytest

MODULES = ("fcntl", "grp", "pty", "pwd", "readline", "resource", "termios", "tty")
SIGNALS = ("SIGALRM", "SIGCHLD", "SIGHUP", "SIGKILL", "SIGQUIT", "SIGSTOP", "SIGUSR1")
FUNCTIONS = ("fork", "geteuid", "getuid", "killpg", "mkfifo", "setsid", "sysconf", "uname", "wait4")
FIRST = (
    "datasets gradio IPython matplotlib.pyplot moto multiprocessing.forkserver psutil "
    "pyarrow.parquet ray rich.progress schemathesis selenium.webdriver sklearn soundfile torch "
    "torch.distributed.fsdp torch.multiprocessing torch.testing transformers uvicorn"
)
"""Packages of others that use it on this system, and something else on Windows."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """Import what needs it, and take it away."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in FIRST.split():
            if importlib.util.find_spec(name.partition(".")[0]):
                importlib.import_module(name)
    for name in MODULES:
        sys.modules[name] = None  # type: ignore[assignment]
    for module, names in ((signal, (*SIGNALS, "pthread_sigmask")), (os, FUNCTIONS)):
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
