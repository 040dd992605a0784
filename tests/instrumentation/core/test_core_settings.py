from __future__ import annotations

import re
from pathlib import Path

import pytest
from auditspan import settings

OWN = "OTEL_AUDITSPAN_"
README = (Path(__file__).parents[3] / "README.md").read_text()


def test_without_any_variable_records_go_to_the_local_collector():
    chosen = settings.read({})
    assert (chosen.endpoint, chosen.protocol) == ("http://localhost:4317", "grpc")
    assert chosen.problems == ()
    assert not chosen.disabled
    assert chosen.span_attributes


@pytest.mark.parametrize(
    ("environ", "endpoint", "protocol", "headers"),
    [
        ({"OTEL_AUDITSPAN_ENDPOINT": "https://audit:4317"}, "https://audit:4317", "grpc", ()),
        ({"OTEL_AUDITSPAN_ENDPOINT": "audit:4317"}, "http://audit:4317", "grpc", ()),
        ({"OTEL_AUDITSPAN_ENDPOINT": "http://audit:4318"}, "http://audit:4318", "http/protobuf", ()),
        (
            {"OTEL_AUDITSPAN_ENDPOINT": "http://audit:4318", "OTEL_AUDITSPAN_PROTOCOL": "grpc"},
            "http://audit:4318",
            "grpc",
            (),
        ),
        (
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://shared:9999",
                "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
                "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20x",
            },
            "http://shared:9999",
            "http/protobuf",
            (("authorization", "Bearer x"),),
        ),
        (
            {
                "OTEL_AUDITSPAN_ENDPOINT": "http://audit:1",
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://shared:9999",
                "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
                "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20x",
            },
            "http://audit:1",
            "grpc",
            (),
        ),
    ],
    ids=[
        "own",
        "without-scheme",
        "port-of-http",
        "protocol-wins",
        "shared",
        "own-takes-no-shared-credentials",
    ],
)
def test_where_records_go(environ, endpoint, protocol, headers):
    chosen = settings.read(environ)
    assert (chosen.endpoint, chosen.protocol, chosen.headers) == (endpoint, protocol, headers)
    assert chosen.problems == ()


@pytest.mark.parametrize(
    ("name", "value", "field", "allowed"),
    [
        ("SPOOL_MAX_BYTES", "1 GB", "spool_max_bytes", "bytes"),
        ("SPOOL_MAX_BYTES", "-5", "spool_max_bytes", "1048576 or more"),
        ("CONTEXT_TTL_S", "soon", "context_ttl_s", "seconds"),
        ("CONTEXT_TTL_S", "inf", "context_ttl_s", "seconds"),
        ("CONTEXT_TTL_S", "nan", "context_ttl_s", "seconds"),
        ("SPOOL_SYNC", "perhaps", "spool_sync", "on or off"),
        ("SPAN_ATTRIBUTES", "none", "span_attributes", "on or off"),
        ("PROTOCOL", "carrier-pigeon", "protocol", "grpc or http/protobuf"),
        ("ENDPOINT", "ftp://audit", "endpoint", "http://HOST:PORT"),
        ("ENDPOINT", "http://user:hunter2@audit:4317", "endpoint", "without user and password"),
        ("ENDPOINT", "http://audit:99999", "endpoint", "http://HOST:PORT"),
        ("DISABLED", "maybe", "disabled", "on or off"),
    ],
)
def test_a_wrong_value_is_named_and_replaced_by_the_default(name, value, field, allowed):
    chosen = settings.read({OWN + name: value})
    assert getattr(chosen, field) == getattr(settings.Settings(), field)
    (problem,) = chosen.problems
    assert OWN + name in problem
    assert allowed in problem


def test_a_credential_is_never_repeated():
    chosen = settings.read(
        {
            "OTEL_AUDITSPAN_ENDPOINT": "http://user:hunter2@audit:4317",
            "OTEL_AUDITSPAN_HEADERS": "authorization=hunter2\n,bad header=hunter2",
        }
    )
    assert len(chosen.problems) == 2
    assert "hunter2" not in repr(chosen)
    assert "hunter2" not in repr(settings.read({"OTEL_AUDITSPAN_HEADERS": "authorization=hunter2"}))


def test_a_misspelt_variable_is_named():
    (problem,) = settings.read({"OTEL_AUDITSPAN_SPOOLDIR": "/x"}).problems
    assert problem.startswith("OTEL_AUDITSPAN_SPOOLDIR is not a variable of ours")


def test_lists_are_separated_by_commas():
    chosen = settings.read({"OTEL_AUDITSPAN_READS": " /reports/*, ,/orders/{order_id} "})
    assert chosen.reads == ("/reports/*", "/orders/{order_id}")


@pytest.mark.parametrize("name", ["OTEL_AUDITSPAN_DISABLED", "OTEL_SDK_DISABLED"])
def test_two_switches_turn_it_off(name):
    assert settings.read({name: "true"}).disabled


def test_each_service_has_a_spool_folder_of_its_own(tmp_path):
    home = {"HOME": str(tmp_path)}
    assert settings.default_spool_dir(home, "shop") == tmp_path / ".local/state/auditspan/shop"
    assert settings.default_spool_dir({"XDG_STATE_HOME": "/var/state"}, "shop") == Path(
        "/var/state/auditspan/shop"
    )
    assert settings.default_spool_dir({"XDG_STATE_HOME": "relative"} | home, "shop").is_relative_to(tmp_path)


def test_services_that_are_given_the_same_folder_do_not_share_it():
    given = {"OTEL_AUDITSPAN_SPOOL_DIR": "/var/spool/auditspan"}
    assert settings.read(given, service_name="shop").spool_dir == Path("/var/spool/auditspan/shop")
    assert settings.read(given, service_name="billing").spool_dir == Path("/var/spool/auditspan/billing")
    assert settings.read(given).spool_dir == Path("/var/spool/auditspan/unknown_service")
    assert settings.read(given, service_name="../shop").spool_dir.parent == Path("/var/spool/auditspan")


@pytest.mark.parametrize("service", ["../../etc", "a/b", "..", ".", "", "x\0y"])
def test_a_service_name_can_not_lead_out_of_the_folder(tmp_path, service):
    folder = settings.default_spool_dir({"XDG_STATE_HOME": str(tmp_path)}, service)
    assert folder.parent == tmp_path / "auditspan"
    assert folder.name not in ("", ".", "..")


def test_without_a_home_records_wait_in_the_temporary_folder():
    assert "auditspan-" in str(settings.default_spool_dir({"HOME": "/nonexistent"}, "shop"))


def test_every_constant_is_a_variable_that_is_known():
    constants = {v for v in vars(settings).values() if isinstance(v, str) and v.startswith(OWN)} - {
        settings.PREFIX
    }
    assert constants == set(settings.VARIABLES)


def test_another_collectors_headers_are_not_sent_to_the_default_endpoint():
    environ = {
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://vendor.example",
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20of-the-vendor",
    }
    assert settings.read(environ).headers == ()


@pytest.mark.parametrize("word", ["full", "FULL", "on", "true"])
def test_waiting_for_the_disk_at_every_record_has_two_names(word):
    chosen = settings.read({settings.SPOOL_SYNC: word})
    assert chosen.spool_sync
    assert chosen.problems == ()


@pytest.mark.parametrize(("variable", "value"), re.findall(rf"({OWN}\w+)=([^\s`]+)", README))
def test_what_the_readme_sets_is_accepted(variable, value):
    assert settings.read({variable: value}).problems == ()
