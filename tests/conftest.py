"""Check that cdropout can be imported, select slow tests by name, and define shared fixtures."""

import os
import signal

import pytest

# When NumPy is imported, OpenBLAS would start threads in each test process, and starting threads
# takes as long as the import itself. The tests multiply only small matrices.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# JAX reads this variable when it creates its first array. The tests of sharding use four devices.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")


def pytest_configure(config):
    check_package()
    select_named_tests(config)


def check_package():
    """Raise a usage error with instructions if cdropout cannot be imported."""
    try:
        import cdropout  # noqa: F401
    except ImportError as error:
        message = str(error)
        if isinstance(error, ModuleNotFoundError) and error.name == "cdropout":
            message = "cdropout is not installed: run `pip install -e .` in its checkout"
        message += ". See the beginning of CONTRIBUTING.md."
        raise pytest.UsageError(message) from None


def select_named_tests(config):
    """Include slow tests if each argument selects a test (`file::test`) and `-m` is not used."""
    named = config.args and all("::" in argument for argument in config.args)
    if named and config.option.markexpr == "not slow":  # the default in pyproject.toml
        config.option.markexpr = ""


@pytest.fixture(autouse=True)
def restore_num_threads():
    """Restore cdropout's number of threads after each test."""
    from cdropout import get_num_threads, set_num_threads

    number = get_num_threads()
    yield
    set_num_threads(number)


@pytest.fixture
def unchanged():
    """Provide arrays, generators, a mask and a module; assert after the test that none changed."""
    from .helpers.bad_calls import unchanged_objects

    with unchanged_objects() as objects:
        yield objects


@pytest.fixture
def calls_with(unchanged):
    """Return a function that returns all valid calls with the named arguments."""
    from .helpers.bad_calls import valid_calls

    calls = valid_calls(unchanged)
    return lambda *names: [call for call in calls if call.has(*names)]


@pytest.fixture
def alarm():
    """Return a function that installs a handler of SIGALRM and schedules one such signal."""
    before = signal.getsignal(signal.SIGALRM)

    def set_alarm(handler, seconds):
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, seconds)

    yield set_alarm
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)
