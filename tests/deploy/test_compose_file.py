"""deploy/compose fits together: names, ports, variables and secrets agree with each other and with the code."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from auditspan import settings
from auditspan.propagation import KeyRing

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "compose"
TEXT = (FOLDER / "compose.yaml").read_text()
COMPOSE = yaml.safe_load(TEXT)
SERVICES = COMPOSE["services"]
COLLECTOR = yaml.safe_load((FOLDER / "collector.yaml").read_text())
REQUIRED = re.compile(r"\$\{(\w+):\?run new_env\.py first\}")
# Set for the container alone, and read by the command that stands beside them.
ONE_SHOT = {"shop-people": {"ALICE", "BOB", "CAROL"}, "backoffice-people": {"ALICE", "DAVE"}}
SHOP = ("gateway", "orders", "billing", "shipping", "backoffice")
# Documented on the images' pages, and by clickhouse-client.
CLICKHOUSE = {
    "CLICKHOUSE_USER",
    "CLICKHOUSE_PASSWORD",
    "CLICKHOUSE_DEFAULT_ACCESS_MANAGEMENT",
    "CLICKHOUSE_HOST",
}


def example_names() -> list[str]:
    return re.findall(r"^(\w+)=", (FOLDER / ".env.example").read_text(), re.MULTILINE)


def environment(name: str) -> dict[str, str]:
    return SERVICES[name].get("environment", {})


def open_telemetry_variables() -> set[str]:
    modules = ("opentelemetry.environment_variables", "opentelemetry.sdk.environment_variables")
    return {
        name
        for module in modules
        for name in vars(importlib.import_module(module))
        if name.startswith("OTEL_")
    }


def words_of_the_shop() -> str:
    return "\n".join(
        path.read_text() for path in (ROOT / "examples" / "shop").rglob("*.py") if path.name != "demo.py"
    )


def listening() -> dict[str, set[int]]:
    """Ports that each service listens on, as its own command or configuration says."""
    ports = {"clickhouse": {8123}, "collector": set()}
    for section in ("grpc", "http"):
        ports["collector"].add(int(COLLECTOR["receiver"][section]["listen"].rpartition(":")[2]))
    for name in SHOP:
        said = " ".join(SERVICES[name]["command"]) + " " + environment(name).get("SHOP_BILLING_LISTEN", "")
        ports[name] = {int(port) for port in re.findall(r"(?:--port=|0\.0\.0\.0:)(\d+)", said)}
    return ports


def reached(name: str) -> set[tuple[str, int]]:
    """host:port pairs that a service's environment names, other than its own listener."""
    values = [value for key, value in environment(name).items() if not key.endswith("_LISTEN")]
    if name == "collector":
        values.append(COLLECTOR["clickhouse"]["url"])
    found = [pair for value in values for pair in re.findall(r"(?:^|//|,)([a-z][a-z-]+):(\d+)", value)]
    return {(host, int(port)) for host, port in found}


def test_each_variable_is_one_that_its_program_knows():
    shop, otel = words_of_the_shop(), open_telemetry_variables()
    script = (ROOT / "deploy" / "clickhouse" / "apply-users.sh").read_text()
    command_line = (ROOT / "collector" / "src" / "auditspan_collector" / "cli" / "connection.py").read_text()
    for service in SERVICES:
        for name in environment(service):
            known = (
                name in settings.VARIABLES
                or name in otel
                or name in CLICKHOUSE
                or name in ONE_SHOT.get(service, ())
                or (name.startswith("SHOP_") and f'"{name}"' in shop)
                or (service == "clickhouse-users" and f"{{{name}:" in script)
                or (service == "collector" and f"${{env:{name}}}" in (FOLDER / "collector.yaml").read_text())
                or (service == "auditspan" and f'"{name}"' in command_line)
            )
            assert known, f"{service}: {name}"


def test_the_collector_gets_each_variable_that_its_configuration_reads():
    read = set(re.findall(r"\$\{env:(\w+)\}", str(COLLECTOR)))
    assert read == set(environment("collector"))


def test_every_secret_comes_from_env_and_has_no_default():
    from_secrets = {secret["environment"] for secret in COMPOSE["secrets"].values()}
    assert set(REQUIRED.findall(TEXT)) | from_secrets == set(example_names())
    assert not re.search(r"\$\{\w+:?-", TEXT), "a default would be a password that others know"
    for line in (FOLDER / ".env.example").read_text().splitlines():
        assert line.startswith("#") or line.endswith("=") or not line, line
    for service in SERVICES:
        for name, value in environment(service).items():
            if re.search("PASSWORD|TOKEN|HEADERS|KEY", name) and not name.endswith("_FILE"):
                assert REQUIRED.search(value), f"{service}: {name}"


def test_what_one_service_calls_listens_there_in_a_network_of_both():
    ports = listening()
    pairs = {(name, host, port) for name in SERVICES for host, port in reached(name)}
    assert {(name, host) for name, host, _ in pairs} == {
        ("auditspan", "clickhouse"),
        ("collector", "clickhouse"),
        ("gateway", "collector"),
        ("gateway", "orders"),
        ("orders", "collector"),
        ("orders", "billing"),
        ("billing", "collector"),
        ("shipping", "collector"),
        ("backoffice", "collector"),
        ("backoffice", "orders"),
    }
    for name, host, port in pairs:
        assert port in ports[host], f"{name} calls {host}:{port}; it listens on {ports[host]}"
        assert set(SERVICES[name]["networks"]) & set(SERVICES[host]["networks"]), f"{name} can't reach {host}"


def test_the_actor_travels_to_the_services_that_are_called_and_nowhere_else():
    called = {
        "gateway": "orders:8001",
        "orders": "billing:8002,queue:shipping",
        "billing": None,
        "shipping": None,
        "backoffice": "orders:8001",
    }
    for name, destination in called.items():
        assert environment(name).get("OTEL_AUDITSPAN_CONTEXT_DESTINATIONS") == destination


def test_a_token_writes_in_the_name_of_one_service():
    senders = {sender["name"]: sender for sender in COLLECTOR["receiver"]["senders"]}
    for name in SHOP:
        token = f"AUDITSPAN_{name.upper()}_TOKEN"
        assert senders[name]["services"] == [name] == [environment(name)["OTEL_SERVICE_NAME"]]
        assert senders[name]["token"] == f"${{env:{token}}}"
        assert f"authorization=Bearer%20${{{token}:?" in environment(name)["OTEL_AUDITSPAN_HEADERS"]
    assert len({sender["token"] for sender in senders.values()}) == len(senders) == len(SHOP)


def test_only_gateway_and_back_office_are_published_and_only_to_this_machine():
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {"gateway": ["127.0.0.1:8000:8000"], "backoffice": ["127.0.0.1:8003:8003"]}
    outside = {name for name, network in COMPOSE["networks"].items() if not network.get("internal")}
    assert {name for name, service in SERVICES.items() if outside & set(service.get("networks", ()))} == {
        "gateway",
        "backoffice",
    }


def test_images_are_pinned_by_a_tag():
    images = [service["image"] for service in SERVICES.values()]
    for file in (ROOT / "deploy" / "docker").glob("*.Dockerfile"):
        images += re.findall(r"^FROM (\S+)", file.read_text(), re.MULTILINE)
    assert len(images) > 8
    for image in images:
        assert re.fullmatch(r"[a-z/-]+:\d+\.\d[\w.-]*", image), image


def test_the_images_that_are_built_here_have_the_packages_version():
    version = re.search(
        r'^version = "(.+)"', (ROOT / "collector" / "pyproject.toml").read_text(), re.MULTILINE
    )
    own = {service["image"] for service in SERVICES.values() if service["image"].startswith("auditspan/")}
    assert own == {f"auditspan/collector:{version[1]}", f"auditspan/shop:{version[1]}"}


def test_the_server_is_of_the_version_that_the_embedded_engine_is_tested_with():
    engine = re.search(r"^chdb-core==(\d+\.\d+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    images = {service["image"] for service in SERVICES.values() if service["image"].startswith("clickhouse/")}
    assert images == {f"clickhouse/clickhouse-server:{engine[1]}"}


def test_who_waits_for_a_service_waits_for_something_that_it_can_show():
    for name, service in SERVICES.items():
        for other, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_completed_successfully":
                assert SERVICES[other]["restart"] == "no", f"{name} waits for {other}, which never ends"
            else:
                in_image = SERVICES[other]["image"].startswith(
                    "auditspan/collector"
                )  # HEALTHCHECK in its Dockerfile
                assert in_image or "healthcheck" in SERVICES[other], f"{name} waits for {other}"


def test_every_volume_and_mounted_file_is_there_and_no_two_services_share_records():
    used: dict[str, list[str]] = {}
    for name, service in SERVICES.items():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            used.setdefault(source, []).append(name)
            assert source in COMPOSE["volumes"] or (FOLDER / source).exists(), volume
    assert set(COMPOSE["volumes"]) <= set(used)
    shared = {source: names for source, names in used.items() if len(names) > 1}
    assert shared == {
        "gateway-data": ["shop-people", "gateway"],
        "backoffice-data": ["backoffice-people", "backoffice"],
        "orders-data": ["orders", "backoffice"],
        "shop-queue": ["orders", "shipping"],
    }
    (of_orders,) = [v for v in SERVICES["backoffice"]["volumes"] if v.startswith("orders-data")]
    assert of_orders.endswith(":ro")


def test_only_clickhouse_keeps_capabilities():
    for name, service in SERVICES.items():
        hardened = service.get("cap_drop") == ["ALL"] and "no-new-privileges:true" in service["security_opt"]
        assert hardened or name == "clickhouse", name


def test_secret_files_belong_to_the_user_of_the_image():
    user = re.search(
        r"^USER (\d+):(\d+)$", (ROOT / "deploy/docker/shop.Dockerfile").read_text(), re.MULTILINE
    )
    for name in SHOP:
        for secret in SERVICES[name]["secrets"]:
            assert (secret["uid"], secret["gid"], secret["mode"]) == (user[1], user[2], "0o400")
            assert secret["source"] in COMPOSE["secrets"]


def test_new_env_draws_a_different_secret_for_each_name_and_never_overwrites(tmp_path):
    target = tmp_path / ".env"
    command = [sys.executable, str(FOLDER / "new_env.py"), str(target)]
    subprocess.run(command, check=True, capture_output=True)
    assert target.stat().st_mode & 0o777 == 0o600
    drawn = dict(re.findall(r'^(\w+)="(?:first )?([0-9a-f]{64})"$', target.read_text(), re.MULTILINE))
    assert list(drawn) == example_names()
    assert len(set(drawn.values())) == len(drawn)
    keys = re.search(r'^AUDIT_CONTEXT_KEYS="(.+)"$', target.read_text(), re.MULTILINE)
    assert KeyRing.from_text(keys[1]).signing_id == "first"
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 1
    assert "delete it first" in again.stderr
    assert target.read_text().count(next(iter(drawn.values()))) == 1


def test_env_is_ignored_by_git():
    command = ["git", "check-ignore", "--quiet", "--no-index", "deploy/compose/.env"]
    if not (ROOT / ".git").exists():
        pytest.fail("run from a clone")
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0
