"""The compose file publishes nothing beyond loopback and holds no secrets; what the image copies is there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from autokd.cli import cli

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docker"
COMPOSE: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (FOLDER / "Dockerfile").read_text()


def test_services_are_those_promised() -> None:
    assert set(SERVICES) == {"ray-head", "ray-worker", "mlflow", "postgres"}
    assert SERVICES["ray-worker"]["deploy"]["replicas"] >= 2


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_bound_to_loopback(name: str) -> None:
    service = SERVICES[name]
    assert "network_mode" not in service and service.get("privileged") is None
    for port in service.get("ports", []):
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", str(port)), f"{name} publishes {port}"


def test_only_mlflow_is_published() -> None:
    assert [name for name, service in SERVICES.items() if service.get("ports")] == ["mlflow"]


def test_no_secret_is_written_down() -> None:
    example = (FOLDER / ".env.example").read_text()
    for secret in ("POSTGRES_PASSWORD", "RAY_AUTH_TOKEN"):
        assert re.search(rf"^{secret}=$", example, re.MULTILINE)
    assert ".env" in (FOLDER / ".gitignore").read_text().split()
    for service in SERVICES.values():
        for name, value in (service.get("environment") or {}).items():
            if "PASSWORD" in name or "TOKEN" in name or "://" in str(value) and "@" in str(value):
                assert "${POSTGRES_PASSWORD:?" in str(value) or str(value).startswith("${RAY_AUTH_TOKEN:?")


@pytest.mark.parametrize("name", ["ray-head", "ray-worker"])
def test_ray_asks_for_a_token(name: str) -> None:
    environment = SERVICES[name]["environment"]
    assert environment["RAY_AUTH_MODE"] == "token" and "RAY_AUTH_TOKEN" in environment


def test_every_variable_is_in_the_example() -> None:
    known = set(re.findall(r"^(\w+)=", (FOLDER / ".env.example").read_text(), re.MULTILINE))
    used = set(re.findall(r"(?<!\$)\$\{(\w+)", (FOLDER / "compose.yaml").read_text()))
    assert used <= known


def test_services_wait_for_services_that_can_say_they_are_well() -> None:
    for service in SERVICES.values():
        for other in service.get("depends_on", {}):
            assert "healthcheck" in SERVICES[other]
        for volume in service.get("volumes", []):
            assert volume.split(":")[0] in COMPOSE["volumes"]


def test_all_nodes_share_the_run_folder_and_the_image() -> None:
    head, worker = SERVICES["ray-head"], SERVICES["ray-worker"]
    assert head["image"] == worker["image"] == SERVICES["mlflow"]["image"]
    assert set(head["volumes"]) & set(worker["volumes"])
    assert "--num-cpus=0" in head["command"]
    assert "mlflow:5000" in SERVICES["mlflow"]["environment"]["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    assert head["environment"]["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"


def test_the_image_copies_what_is_there() -> None:
    sources = [word for line in re.findall(r"^COPY (.*) \S+$", DOCKERFILE, re.MULTILINE) for word in line.split()]
    assert {"pyproject.toml", "autokd", "search_spaces"} <= set(sources)
    kept = (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
    for source in sources:
        assert (ROOT / source).exists() and f"!{source}" in kept


def test_the_image_has_a_python_that_autokd_takes() -> None:
    lowest = re.search(r'requires-python = ">=3\.(\d+)"', (ROOT / "pyproject.toml").read_text())
    image = re.search(r"^FROM python:3\.(\d+)-slim$", DOCKERFILE, re.MULTILINE)
    assert lowest and image and int(image[1]) >= int(lowest[1])


def test_the_images_command_exists() -> None:
    assert '"autokd", "--help"' in DOCKERFILE and "search" in cli.commands
    assert "\nUSER autokd\n" in DOCKERFILE
