"""What pytest-benchmark stores about the machine: what makes a number comparable, not what it is called."""


def pytest_benchmark_update_machine_info(config, machine_info):
    for private in ("node", "release"):
        machine_info.pop(private, None)
